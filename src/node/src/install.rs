//! Copies the program to where another container will find it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const EXTENSION: &str = "libapscli_python.so";

/// Copies this program and, where it is there, the extension module into `folder`. Each appears
/// there whole or not at all.
pub fn install(folder: &Path) -> Result<(), String> {
    let own = std::env::current_exe()
        .map_err(|error| format!("cannot tell where apscli-node is: {error}"))?;
    fs::create_dir_all(folder)
        .map_err(|error| format!("cannot make the folder {}: {error}", folder.display()))?;
    copy(&own, &folder.join("apscli-node"))?;
    let extension = own.with_file_name(EXTENSION);
    if extension.is_file() {
        copy(&extension, &folder.join(EXTENSION))
    } else {
        // Nodes that call Python will say so again; all others do not need it.
        eprintln!(
            "apscli-node: there is no {}, so api nodes will not run",
            extension.display()
        );
        Ok(())
    }
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    let words = |error: std::io::Error| {
        format!(
            "cannot copy {} to {}: {error}",
            from.display(),
            to.display()
        )
    };
    let part = to.with_extension("part");
    fs::copy(from, &part).map_err(words)?;
    fs::set_permissions(&part, Permissions::from_mode(0o555)).map_err(words)?;
    fs::rename(&part, to).map_err(words)
}
