//! Where a node's log stands in the run's folder.
//!
//! Must not open or write logs; the hands do.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::engine::name::{Attempt, NodeName};

/// The folder of the nodes' logs in a run's folder.
#[must_use]
pub fn folder(dir: &Path) -> PathBuf {
    dir.join("logs")
}

/// A node's log: its name with every byte outside `A-Z a-z 0-9 _ -` and inner dots as `%XX`,
/// and the attempt from the second on. A name too long for a file is cut and told apart by its
/// hash.
#[must_use]
pub fn path(dir: &Path, name: &NodeName, attempt: Attempt) -> PathBuf {
    const LONGEST: usize = 200;
    let mut file = String::new();
    for (index, byte) in name.as_str().bytes().enumerate() {
        if byte.is_ascii_alphanumeric() || b"_-".contains(&byte) || (byte == b'.' && index > 0) {
            file.push(char::from(byte));
        } else {
            let _ = write!(file, "%{byte:02X}");
        }
    }
    if file.len() > LONGEST {
        file.truncate(LONGEST);
        file.push('~');
        for byte in Sha256::digest(name.as_str()).iter().take(8) {
            let _ = write!(file, "{byte:02x}");
        }
    }
    if attempt > Attempt::FIRST {
        // `~` is in no encoded name, so this is no other node's file.
        let _ = write!(file, "~{attempt}");
    }
    file.push_str(".log");
    folder(dir).join(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_stays_in_its_folder_and_differs_from_others() {
        let dir = Path::new("/r");
        let file = |name: &str, attempt| path(dir, &name.parse().unwrap(), attempt);
        assert_eq!(
            file("align-1.bam", Attempt::FIRST),
            Path::new("/r/logs/align-1.bam.log")
        );
        assert_eq!(
            file("../x y", Attempt::FIRST),
            Path::new("/r/logs/%2E.%2Fx%20y.log")
        );
        assert_eq!(
            file("a", Attempt::FIRST.next()),
            Path::new("/r/logs/a~2.log")
        );
        let long = |last: char| file(&format!("{}{last}", "é".repeat(299)), Attempt::FIRST);
        assert_ne!(long('a'), long('b'));
        assert!(long('a').file_name().unwrap().len() < 255);
    }
}
