//! Text that was written elsewhere (output of nodes, objects of a cluster, files), as it may be shown
//! at a terminal.
//!
//! A terminal executes control characters: they move the cursor over what was printed before, change
//! the window's title, or make the terminal type. Bidirectional overrides let a text read as another.
//!
//! Must not write anything.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};

use tracing_subscriber::fmt::MakeWriter;

/// What is put in the place of each character that is not shown.
const INSTEAD: char = char::REPLACEMENT_CHARACTER;

/// Whether a terminal executes a character, or shows others in another order because of it: C0 but
/// for line feed and tabulator, DEL, C1, and the bidirectional embeddings, overrides and isolates.
#[must_use]
pub(super) fn is_unsafe(c: char) -> bool {
    match c {
        '\n' | '\t' => false,
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => true,
        c => c.is_control(),
    }
}

/// A text for a terminal, in lines as it was.
#[must_use]
pub(super) fn shown(text: &str) -> Cow<'_, str> {
    replaced(text, is_unsafe, INSTEAD)
}

/// A text for a cell of a table or another place where only one line may be.
#[must_use]
pub(super) fn one_line(text: &str) -> String {
    let text = shown(text);
    replaced(&text, |c| matches!(c, '\n' | '\t'), ' ').into_owned()
}

fn replaced(text: &str, is_other: impl Fn(char) -> bool, instead: char) -> Cow<'_, str> {
    if !text.contains(&is_other) {
        return Cow::Borrowed(text);
    }
    let shown = |c| if is_other(c) { instead } else { c };
    Cow::Owned(text.chars().map(shown).collect())
}

/// JSON for a terminal: its writer has escaped C0 only. What else is unsafe can only be inside a
/// string, where an escape means the same character.
#[must_use]
pub(super) fn json(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_unsafe(c) {
            let _ = write!(safe, "\\u{:04x}", u32::from(c));
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

/// Bytes that come piece by piece, as a text for a terminal. What is no UTF-8 is replaced.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// The beginning of a character whose rest has not come yet.
    cut: Vec<u8>,
}

impl Stream {
    /// The next piece.
    pub(super) fn push(&mut self, bytes: &[u8]) -> String {
        self.cut.extend_from_slice(bytes);
        let bytes = std::mem::take(&mut self.cut);
        let mut text = String::with_capacity(bytes.len());
        let mut rest = bytes.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    let Some(length) = error.error_len() else {
                        self.cut = after.to_vec();
                        break;
                    };
                    text.push(INSTEAD);
                    rest = after.get(length..).unwrap_or_default();
                }
            }
        }
        shown(&text).into_owned()
    }
}

/// A writer of log lines: each write is an event of one line, whatever is in it. So a text of
/// elsewhere cannot look like an event of its own.
#[derive(Clone, Debug)]
pub(super) struct LogLines<W> {
    writer: W,
    /// Whether the log's own color sequences are kept.
    colors: bool,
}

impl<W> LogLines<W> {
    pub(super) fn new(writer: W, colors: bool) -> Self {
        Self { writer, colors }
    }
}

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for LogLines<W> {
    type Writer = LogLine<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        LogLine {
            writer: self.writer.make_writer(),
            colors: self.colors,
        }
    }
}

/// See [`LogLines`].
#[derive(Debug)]
pub(super) struct LogLine<W> {
    writer: W,
    colors: bool,
}

impl<W: Write> Write for LogLine<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let line = text.strip_suffix('\n').unwrap_or(&text);
        if line.contains(|c| c == '\n' || is_unsafe(c)) {
            let mut safe = String::with_capacity(line.len() + 16);
            let mut rest = line;
            while let Some(c) = rest.chars().next() {
                let color = self.colors.then(|| color(rest)).flatten();
                let taken = color.unwrap_or(c.len_utf8());
                let (now, after) = rest.split_at(taken);
                match c {
                    _ if color.is_some() => safe.push_str(now),
                    '\n' => safe.push_str("\\n"),
                    c if is_unsafe(c) => {
                        let _ = write!(safe, "\\u{{{:x}}}", u32::from(c));
                    }
                    _ => safe.push_str(now),
                }
                rest = after;
            }
            safe.push('\n');
            self.writer.write_all(safe.as_bytes())?;
        } else {
            self.writer.write_all(bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// The length of the color sequence with which a text begins: it can do no more than color.
fn color(text: &str) -> Option<usize> {
    let rest = text.strip_prefix("\u{1b}[")?;
    let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == ';'))?;
    let length = 2 + digits + 1;
    rest.get(digits..)?.starts_with('m').then_some(length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOSTILE: &str = "a\u{1b}]0;t\u{7}\u{9b}2J\r\u{7f}\u{202e}b\u{2066}\t\u{0}é\n";

    #[test]
    fn what_a_terminal_executes_is_replaced() {
        let safe = "a\u{fffd}]0;t\u{fffd}\u{fffd}2J\u{fffd}\u{fffd}\u{fffd}b\u{fffd}\t\u{fffd}é\n";
        assert_eq!(shown(HOSTILE), safe);
        assert_eq!(one_line(HOSTILE), safe.replace(['\t', '\n'], " "));
        assert!(matches!(shown("plain\té\n"), Cow::Borrowed(_)));
    }

    proptest! {
        #[test]
        fn nothing_unsafe_is_left(text: String) {
            prop_assert!(!shown(&text).contains(is_unsafe));
            prop_assert!(!one_line(&text).contains(|c: char| c.is_control()));
            prop_assert_eq!(shown(&text).chars().count(), text.chars().count());
        }

        #[test]
        fn json_means_the_same(text: String) {
            let text = format!("{text}{HOSTILE}");
            let written = serde_json::to_string_pretty(&[&text]).unwrap();
            let safe = json(&written);
            prop_assert!(!safe.contains(is_unsafe));
            let read: Vec<String> = serde_json::from_str(&safe).unwrap();
            prop_assert_eq!(&read[0], &text);
        }

        #[test]
        fn pieces_are_the_whole(bytes: Vec<u8>, text: String, at in 0_usize..64) {
            let bytes = [text.as_bytes(), &bytes].concat();
            let at = at.min(bytes.len());
            let (mut whole, mut pieces) = (Stream::default(), Stream::default());
            let expected = whole.push(&bytes);
            let found = pieces.push(&bytes[..at]) + &pieces.push(&bytes[at..]);
            prop_assert_eq!(&found, &expected);
            prop_assert!(!found.contains(is_unsafe));
            prop_assert!(Stream::default().push(text.as_bytes()) == shown(&text));
        }
    }

    #[test]
    fn log_line_stays_one_line() {
        let line = |text: &str, colors| {
            let mut line = LogLine {
                writer: Vec::new(),
                colors,
            };
            line.write_all(text.as_bytes()).unwrap();
            String::from_utf8(line.writer).unwrap()
        };
        assert_eq!(line("a b\n", false), "a b\n");
        assert_eq!(
            line("a\nERROR b\u{1b}[2J\n", false),
            "a\\nERROR b\\u{1b}[2J\n"
        );
        let colored = "\u{1b}[2m12:00\u{1b}[0m \u{1b}[1;31mERROR\u{1b}[0m\n";
        assert_eq!(line(colored, true), colored);
        assert_eq!(
            line("x\u{1b}[2Jy\u{1b}]0;t\u{7}\n", true),
            "x\\u{1b}[2Jy\\u{1b}]0;t\\u{7}\n"
        );
        assert!(!line(colored, false).contains('\u{1b}'));
    }
}
