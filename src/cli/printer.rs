//! The only place that writes to the terminal: data to stdout, words to stderr. Whatever was written
//! elsewhere (by nodes, in objects, in files) comes out without what a terminal executes.
//!
//! Must not decide what is worth saying.

use std::error::Error;
use std::io::{self, Write};

use super::shown::{json, shown};

/// Writes data and words.
#[derive(Clone, Copy, Debug, Default)]
pub struct Printer;

impl Printer {
    /// Data for people, to stdout. A reader that went away is no error.
    pub fn data(&self, text: &str) {
        self.exactly(&shown(text));
    }

    /// Data in JSON, to stdout.
    pub fn json(&self, text: &str) {
        self.exactly(&json(text));
    }

    /// A text of ours, to stdout, as it is.
    #[allow(clippy::unused_self)]
    pub fn exactly(&self, text: &str) {
        let mut stdout = io::stdout().lock();
        let _ = stdout.write_all(text.as_bytes());
        if !text.ends_with('\n') {
            let _ = stdout.write_all(b"\n");
        }
        let _ = stdout.flush();
    }

    /// Bytes, to stdout, as they are.
    #[allow(clippy::unused_self)]
    pub fn bytes(&self, bytes: &[u8]) {
        let mut stdout = io::stdout().lock();
        let _ = stdout.write_all(bytes);
        let _ = stdout.flush();
    }

    /// A line of words, to stderr, by one write.
    #[allow(clippy::unused_self)]
    pub fn say(&self, text: &str) {
        let _ = io::stderr()
            .lock()
            .write_all(format!("{}\n", shown(text)).as_bytes());
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
