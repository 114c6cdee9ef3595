//! What a node's scripts are, as one hash: an operator computes it from the objects that hold them,
//! and `apscli-node` from the files that the kubelet mounted.
//!
//! A pod mounts its scripts by the name of a `ConfigMap`. Who may delete and create `ConfigMaps` in
//! the namespace can put others under that name; the hash in the decision tells.
//!
//! Must not start anything.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::decision::hex;

/// Directories within directories: a key of a `ConfigMap` has 253 characters.
const DEEPEST: usize = 128;
/// Most entries that are looked at. Some `ConfigMaps` of 1 MiB each have fewer.
const MOST: usize = 1_000_000;

/// The SHA-256, in hexadecimal, of a list of files: for each, in the order of the paths' bytes, a
/// line of its own SHA-256 in hexadecimal, two spaces and its path, as `sha256sum` prints it.
#[must_use]
pub fn manifest(hashes: &BTreeMap<String, String>) -> String {
    let mut all = Sha256::new();
    for (path, hash) in hashes {
        all.update(hash);
        all.update("  ");
        all.update(path);
        all.update("\n");
    }
    hex(&all.finalize())
}

/// Checks that the files below `folder` are those of this [`manifest`], no fewer and no others, or
/// says in words that they are not.
pub fn check(folder: &Path, expected: &str) -> Result<(), String> {
    let mut hashes = BTreeMap::new();
    walk(folder, "", 0, &mut hashes)
        .map_err(|error| format!("cannot check the scripts in {}: {error}", folder.display()))?;
    let found = manifest(&hashes);
    if found == expected {
        return Ok(());
    }
    Err(format!(
        "the scripts in {} are not those that the run was started with: found {} files with the \
         hash {found}, expected the hash {expected}; a ConfigMap that they come from was deleted \
         and created with other content. Nothing was run",
        folder.display(),
        hashes.len()
    ))
}

fn walk(
    folder: &Path,
    below: &str,
    depth: usize,
    hashes: &mut BTreeMap<String, String>,
) -> io::Result<()> {
    if depth > DEEPEST {
        return Err(io::Error::other("its directories are nested too deep"));
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else {
            return Err(io::Error::other("a file's name is no UTF-8"));
        };
        // The kubelet's own: the directory of this version of the volume, and the link to it. No
        // key of a ConfigMap begins so.
        if depth == 0 && name.starts_with("..") {
            continue;
        }
        let path = format!("{below}{name}");
        // With links followed: the kubelet mounts each file as one.
        let mut file = File::open(entry.path())
            .map_err(|error| io::Error::other(format!("{path}: {error}")))?;
        let kind = file.metadata()?.file_type();
        if kind.is_dir() {
            walk(&entry.path(), &format!("{path}/"), depth + 1, hashes)?;
        } else if kind.is_file() {
            let hash = hash(&mut file)?;
            hashes.insert(path, hash);
        } else {
            return Err(io::Error::other(format!("{path} is no file")));
        }
        if hashes.len() > MOST {
            return Err(io::Error::other("there are too many files"));
        }
    }
    Ok(())
}

fn hash(file: &mut impl Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hex(&hash.finalize())),
            Ok(read) => hash.update(buffer.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn hashes(files: &[(&str, &str)]) -> BTreeMap<String, String> {
        let files = files.iter();
        files
            .map(|(path, text)| ((*path).to_owned(), hash(&mut text.as_bytes()).unwrap()))
            .collect()
    }

    /// A volume as the kubelet makes it: files below a directory of this version, links at the top.
    fn volume(files: &[(&str, &str)]) -> tempfile::TempDir {
        let volume = tempfile::tempdir().unwrap();
        let version = volume.path().join("..2026_01_31.1");
        for (path, text) in files {
            let file = version.join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
            let top = path.split('/').next().unwrap();
            let _ = symlink(format!("..data/{top}"), volume.path().join(top));
        }
        symlink("..2026_01_31.1", volume.path().join("..data")).unwrap();
        volume
    }

    #[test]
    fn manifest_is_what_sha256sum_prints() {
        // printf 'a' > a; mkdir b; printf '' > b/c; sha256sum a b/c | sha256sum
        assert_eq!(
            manifest(&hashes(&[("b/c", ""), ("a", "a")])),
            "90db06361c0c12ddf8cd3cb5bc02ead2db696a97100efefb487b7d99d6dbfd73"
        );
    }

    #[test]
    fn scripts_that_differ_in_anything_are_refused() {
        let files = [("a.sh", "1"), ("lib/b.py", "2")];
        let expected = manifest(&hashes(&files));
        assert_eq!(check(volume(&files).path(), &expected), Ok(()));
        for other in [
            &[("a.sh", "1"), ("lib/b.py", "3")][..],
            &[("a.sh", "1"), ("lib/c.py", "2")],
            &[("a.sh", "1"), ("b.py", "2")],
            &[("a.sh", "1")],
            &[("a.sh", "1"), ("lib/b.py", "2"), ("json.py", "")],
            &[("a.sh", "1"), ("lib/b.py", "2"), (".hidden", "")],
            &[("a.sh", "1"), ("lib/b.py", "2"), ("lib/..x", "")],
            &[],
        ] {
            let error = check(volume(other).path(), &expected).unwrap_err();
            assert!(error.contains("Nothing was run"), "{other:?}: {error}");
        }
    }

    #[test]
    fn what_cannot_be_checked_is_refused() {
        let missing = check(Path::new("/no/such/folder"), "").unwrap_err();
        assert!(missing.contains("/no/such/folder"), "{missing}");
        let volume = volume(&[("a", "")]);
        symlink(".", volume.path().join("loop")).unwrap();
        let error = check(volume.path(), "").unwrap_err();
        assert!(error.contains("cannot check"), "{error}");
    }
}
