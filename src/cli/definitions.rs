//! `apscli crd`: the definitions of the operator's resources, printed, written to a folder, or
//! compared with one.
//!
//! Must not know what is in a definition.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use crate::api::generate::{self, Definition};
use crate::local::own;

use super::inspect::read_text;
use super::{Context, Failure};

#[derive(Debug, Args)]
pub(super) struct CrdArgs {
    /// Write them to this folder, a file each, instead of printing them
    #[arg(long, value_name = "DIR", conflicts_with = "check")]
    write: Option<PathBuf>,
    /// Compare those in this folder; exit status 1 if they are not what would be written
    #[arg(long, value_name = "DIR")]
    check: Option<PathBuf>,
}

pub(super) fn crd(context: &Context, args: &CrdArgs) -> Result<ExitCode, Failure> {
    let definitions = generate::definitions();
    if let Some(folder) = &args.write {
        write(folder, &definitions)?;
    } else if let Some(folder) = &args.check {
        let stale = stale(folder, &definitions)?;
        if !stale.is_empty() {
            for what in stale {
                context.printer.say(&what);
            }
            let repair = format!("to repair: apscli crd --write {}", folder.display());
            context.printer.say(&repair);
            return Ok(ExitCode::FAILURE);
        }
    } else {
        let documents: Vec<&str> = definitions.iter().map(|it| it.yaml.as_str()).collect();
        context.printer.data(&documents.join("---\n"));
    }
    Ok(ExitCode::SUCCESS)
}

fn write(folder: &Path, definitions: &[Definition]) -> Result<(), Failure> {
    fs::create_dir_all(folder)
        .map_err(|error| format!("cannot make the folder {}: {error}", folder.display()))?;
    for definition in definitions {
        let path = folder.join(definition.file_name());
        // Somebody else may own the folder: a link there could lead to any file of the user's.
        fs::File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(own::NO_LINK)
            .open(&path)
            .and_then(|mut file| file.write_all(definition.yaml.as_bytes()))
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    Ok(())
}

/// What in the folder is not as it would be written, a sentence each.
fn stale(folder: &Path, definitions: &[Definition]) -> Result<Vec<String>, Failure> {
    let mut stale = Vec::new();
    for definition in definitions {
        let path = folder.join(definition.file_name());
        match fs::exists(&path) {
            Ok(true) if read_text(&path)? == definition.yaml => {}
            Ok(true) => stale.push(format!("{} is stale", path.display())),
            Ok(false) => stale.push(format!("{} is missing", path.display())),
            Err(error) => return Err(cannot_read(&path, &error)),
        }
    }
    let entries = fs::read_dir(folder).map_err(|error| cannot_read(folder, &error))?;
    for entry in entries {
        let path = entry.map_err(|error| cannot_read(folder, &error))?.path();
        let of_ours = |it: &Definition| path.file_name() == Some(it.file_name().as_ref());
        if path.extension().is_some_and(|it| it == "yaml") && !definitions.iter().any(of_ours) {
            stale.push(format!(
                "{} is no definition of today's; remove it",
                path.display()
            ));
        }
    }
    Ok(stale)
}

fn cannot_read(path: &Path, error: &io::Error) -> Failure {
    format!("cannot read {}: {error}", path.display()).into()
}
