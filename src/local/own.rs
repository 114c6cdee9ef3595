//! Whether a directory or file is the user's own: it belongs to the user, and nobody else may write
//! it. A run's journal says what is executed and its logs are written by name, so who can put files
//! or links into its directory could have the user execute programs, or write into any file of the
//! user's.
//!
//! Only the directory itself is looked at: who may rename things in the one above (and that is no
//! `/tmp` with the sticky bit) can replace it as a whole.
//!
//! Must not create anything.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, open};
use rustix::io::Errno;
use rustix::process::geteuid;

/// The flag of `open` by which the last part of a path may be no link.
pub const NO_LINK: i32 = OFlags::NOFOLLOW.bits().cast_signed();
/// The permission bits by which others than the owner may write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Why something is not the user's own.
#[derive(Debug, thiserror::Error)]
pub enum NotOwn {
    /// It cannot be looked at.
    #[error("cannot look at {}: {source}", path.display())]
    Io {
        /// The directory or file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It is a link, or of another kind.
    #[error("{} is a link, or no {expected}; expected a {expected} of your own", path.display())]
    Kind {
        /// What is there.
        path: PathBuf,
        /// What was expected.
        expected: &'static str,
    },
    /// It belongs to another user.
    #[error("{} belongs to the user {owner}, and you are {user}; expected a {kind} of your own{hint}", path.display())]
    Owner {
        /// The directory or file.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
        /// Its owner's number.
        owner: u32,
        /// The user's number.
        user: u32,
        /// What to do about a directory.
        hint: &'static str,
    },
    /// Others may write it.
    #[error("{} can be written by others (its mode is {mode:04o}); expected a {kind} that only you can write: chmod go-w{hint}", path.display())]
    Writable {
        /// The directory or file.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
        /// Its permission bits.
        mode: u32,
        /// What else to do about a directory.
        hint: &'static str,
    },
}

/// What to do where a directory is not one's own.
const HINT: &str = ", or name a new directory in it, which is then yours";

/// Checks that a directory is the user's own.
pub fn directory(path: &Path) -> Result<(), NotOwn> {
    // Without a slash or dot at its end, which would have a link followed.
    let last: PathBuf = path.components().collect();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = open(&last, flags, Mode::empty()).and_then(fstat_of);
    match opened {
        Ok(found) => check(path, "directory", HINT, &found),
        Err(Errno::NOTDIR | Errno::LOOP) => Err(NotOwn::Kind {
            path: path.to_path_buf(),
            expected: "directory",
        }),
        Err(error) => Err(NotOwn::Io {
            path: path.to_path_buf(),
            source: error.into(),
        }),
    }
}

/// Checks that an open file is a plain one and the user's own.
pub fn file(path: &Path, file: &File) -> Result<(), NotOwn> {
    let found = fstat_of(file).map_err(|error| NotOwn::Io {
        path: path.to_path_buf(),
        source: error.into(),
    })?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        return Err(NotOwn::Kind {
            path: path.to_path_buf(),
            expected: "file",
        });
    }
    check(path, "file", "", &found)
}

fn fstat_of(file: impl AsFd) -> Result<Stat, Errno> {
    fstat(file)
}

fn check(path: &Path, kind: &'static str, hint: &'static str, found: &Stat) -> Result<(), NotOwn> {
    judge(
        path,
        kind,
        hint,
        (found.st_uid, found.st_mode),
        geteuid().as_raw(),
    )
}

fn judge(
    path: &Path,
    kind: &'static str,
    hint: &'static str,
    (owner, mode): (u32, u32),
    user: u32,
) -> Result<(), NotOwn> {
    let path = path.to_path_buf();
    if owner != user {
        return Err(NotOwn::Owner {
            path,
            kind,
            owner,
            user,
            hint,
        });
    }
    if mode & WRITABLE_BY_OTHERS != 0 {
        return Err(NotOwn::Writable {
            path,
            kind,
            mode: mode & 0o7777,
            hint,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn words(result: Result<(), NotOwn>) -> String {
        result.map_or_else(|error| error.to_string(), |()| "own".to_owned())
    }

    #[test]
    fn only_the_owner_may_write_what_is_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        fs::create_dir(&path).unwrap();
        for (mode, own) in [
            (0o700, true),
            (0o755, true),
            (0o500, true),
            (0o1777, false),
            (0o775, false),
            (0o702, false),
            (0o2770, false),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(directory(&path).is_ok(), own, "{mode:o}");
        }
        let said = words(directory(&path));
        assert!(
            said.contains("mode is 2770") && said.contains("go-w"),
            "{said}"
        );
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        let link = dir.path().join("link");
        symlink(&path, &link).unwrap();
        for link in [link.clone(), link.join(""), link.join(".")] {
            let said = words(directory(&link));
            assert!(said.contains("is a link, or no directory"), "{said}");
        }
        assert!(words(directory(&dir.path().join("none"))).contains("cannot look at"));
    }

    #[test]
    fn file_of_another_kind_or_mode_is_not_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "").unwrap();
        let opened = File::open(&path).unwrap();
        assert_eq!(words(file(&path, &opened)), "own");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o664)).unwrap();
        assert!(words(file(&path, &opened)).contains("mode is 0664"));
        let opened = File::open(dir.path()).unwrap();
        assert!(words(file(dir.path(), &opened)).contains("no file"));
    }

    /// Root too: what another user owns, that user can change at any time.
    #[test]
    fn what_another_user_owns_is_not_own() {
        for user in [0, 1000] {
            let said = words(judge(
                Path::new("d"),
                "directory",
                HINT,
                (7, 0o40_700),
                user,
            ));
            assert!(
                said.contains(&format!("user 7, and you are {user}")),
                "{said}"
            );
            assert!(said.contains("name a new directory"), "{said}");
        }
        assert_eq!(
            words(judge(Path::new("d"), "directory", HINT, (7, 0o40_700), 7)),
            "own"
        );
    }
}
