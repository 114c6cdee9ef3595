//! The only place that writes to the terminal: data to stdout, words to stderr. Whatever was written
//! elsewhere (by nodes, in objects, in files) comes out without what a terminal executes.
//!
//! Must not decide what is worth saying.

use std::error::Error;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::shown::{json, shown};

/// Writes data and words.
#[derive(Clone, Copy, Debug, Default)]
pub struct Printer;

/// Whether data could not be written.
static FAILED: AtomicBool = AtomicBool::new(false);

impl Printer {
    /// Data for people, to stdout. A reader that went away is no error; any other failure is reported
    /// on stderr and kept for [`Printer::has_failed`]. So it is with all that goes to stdout.
    pub fn data(&self, text: &str) {
        self.exactly(&shown(text));
    }

    /// Data in JSON, to stdout.
    pub fn json(&self, text: &str) {
        self.exactly(&json(text));
    }

    /// A text of ours, to stdout, as it is.
    pub fn exactly(&self, text: &str) {
        self.bytes(text.as_bytes());
        if !text.ends_with('\n') {
            self.bytes(b"\n");
        }
    }

    /// Bytes, to stdout, as they are.
    pub fn bytes(&self, bytes: &[u8]) {
        match write_all(rustix::stdio::stdout(), bytes) {
            Ok(()) | Err(Errno::PIPE) => {}
            Err(error) => {
                // Once: what follows fails as well.
                if !FAILED.swap(true, Ordering::Relaxed) {
                    let error = io::Error::from(error);
                    self.say(&format!("error: cannot write to standard output: {error}"));
                }
            }
        }
    }

    /// Whether data could not be written to stdout.
    #[must_use]
    #[allow(clippy::unused_self)]
    pub fn has_failed(&self) -> bool {
        FAILED.load(Ordering::Relaxed)
    }

    /// A line of words, to stderr, by one write.
    #[allow(clippy::unused_self)]
    pub fn say(&self, text: &str) {
        let line = format!("{}\n", shown(text));
        let _ = write_all(rustix::stdio::stderr(), line.as_bytes());
    }

    /// An error with all its causes, each once. One that lists problems, a line each, is as
    /// many errors.
    pub fn error(&self, error: &dyn Error) {
        let text = error.to_string();
        let lines: Vec<String> = text.lines().map(|line| format!("error: {line}")).collect();
        let mut text = lines.join("\n");
        let mut cause = error.source();
        while let Some(error) = cause {
            text.push_str("\n  because: ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        self.say(&text);
    }
}

/// Writes all of it, also to a file that does not block (a pipe that another program made so):
/// then it waits until there is room.
fn write_all(file: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(file, bytes) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::from_borrowed_fd(file, PollFlags::OUT)], None);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
