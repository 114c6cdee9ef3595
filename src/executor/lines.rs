//! What a program says of itself on stdout: lines that begin with `[OUTPUT]`, `[ERR_MSG]`,
//! `[ERR_CODE]` or `[INFO]` are captured, prefix off, the rest as it stands, joined by line
//! feeds; all other lines are not.
//!
//! Works on chunks as they come and holds no line whole, so a gigabyte without a line feed
//! costs no memory. Must not read or write anything.

use std::collections::BTreeMap;

use memchr::memchr;

use crate::engine::event::Captured;
use crate::value::Value;

/// Most bytes that are kept of one field; more are counted and dropped.
pub const FIELD_LIMIT: usize = 1024 * 1024;

const PREFIXES: [&[u8]; 4] = [b"[OUTPUT]", b"[ERR_MSG]", b"[ERR_CODE]", b"[INFO]"];
const NAMES: [&str; 4] = ["output", "err_msg", "err_code", "info"];

#[derive(Default)]
struct Field {
    text: Option<Vec<u8>>,
    cut: u64,
}

impl Field {
    fn begin_line(&mut self) {
        match &mut self.text {
            Some(_) => self.push(b"\n"),
            None => self.text = Some(Vec::new()),
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        let text = self.text.get_or_insert_default();
        let room = if self.cut > 0 {
            0
        } else {
            FIELD_LIMIT - text.len().min(FIELD_LIMIT)
        };
        let (kept, dropped) = bytes.split_at(room.min(bytes.len()));
        text.extend_from_slice(kept);
        self.cut += dropped.len() as u64;
    }

    fn into_value(self, name: &str, truncated: &mut BTreeMap<String, u64>) -> Option<Value> {
        let mut text = self.text?;
        let mut cut = self.cut;
        if cut > 0 {
            // The cut may have gone through a character: the rest of it goes too.
            if let Err(error) = std::str::from_utf8(&text)
                && error.error_len().is_none()
            {
                cut += (text.len() - error.valid_up_to()) as u64;
                text.truncate(error.valid_up_to());
            }
            truncated.insert(name.to_owned(), cut);
        }
        Some(Value::String(String::from_utf8_lossy(&text).into_owned()))
    }
}

enum At {
    /// At the beginning of a line, with as much of it as could still be a prefix.
    Start(Vec<u8>),
    /// In a line that is not captured.
    Other,
    /// In a line of this field.
    Field(usize),
}

/// The reader of one program's stdout.
pub struct LineParser {
    fields: [Field; 4],
    at: At,
}

impl Default for LineParser {
    fn default() -> Self {
        Self {
            fields: Default::default(),
            at: At::Start(Vec::new()),
        }
    }
}

impl LineParser {
    /// Takes the next bytes, cut anywhere.
    pub fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if let At::Start(begun) = &mut self.at {
                let Some((first, rest)) = bytes.split_first() else {
                    return;
                };
                if *first == b'\n' {
                    begun.clear();
                    bytes = rest;
                    continue;
                }
                begun.push(*first);
                bytes = rest;
                let whole = PREFIXES.iter().position(|prefix| prefix == begun);
                if let Some(index) = whole {
                    if let Some(field) = self.fields.get_mut(index) {
                        field.begin_line();
                    }
                    self.at = At::Field(index);
                } else if !PREFIXES.iter().any(|prefix| prefix.starts_with(begun)) {
                    self.at = At::Other;
                }
                continue;
            }
            let end = memchr(b'\n', bytes);
            let (line, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            if let At::Field(index) = self.at
                && let Some(field) = self.fields.get_mut(index)
            {
                field.push(line);
            }
            if end.is_some() {
                self.at = At::Start(Vec::new());
            }
            bytes = rest.get(1..).unwrap_or_default();
        }
    }

    /// What was captured.
    #[must_use]
    pub fn finish(self) -> Captured {
        let mut truncated = BTreeMap::new();
        let mut values = self
            .fields
            .into_iter()
            .zip(NAMES)
            .map(|(field, name)| field.into_value(name, &mut truncated));
        let mut next = || values.next().flatten();
        let (output, err_msg, err_code, info) = (next(), next(), next(), next());
        drop(values);
        Captured {
            output,
            err_msg,
            err_code,
            info,
            truncated,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(chunks: &[&[u8]]) -> Captured {
        let mut parser = LineParser::default();
        for chunk in chunks {
            parser.push(chunk);
        }
        parser.finish()
    }

    #[test]
    fn prefixed_lines_are_captured_and_joined() {
        let captured =
            parse(&[b"x\n[OUTPUT] ip: 1\n[OUTPUT]\n [OUTPUT]no\n[ERR_MSG]e\n[INFO]100\n[OUTPUT]z"]);
        assert_eq!(captured.output, Some(Value::from(" ip: 1\n\nz")));
        assert_eq!(captured.err_msg, Some(Value::from("e")));
        assert_eq!(captured.info, Some(Value::from("100")));
        assert_eq!(captured.err_code, None);
    }

    #[test]
    fn invalid_utf8_and_zero_bytes_survive() {
        let captured = parse(&[b"[OUTPUT]a\xff\0b\n"]);
        assert_eq!(captured.output, Some(Value::from("a\u{fffd}\0b")));
    }

    #[test]
    fn a_field_over_its_limit_is_cut_at_a_character_and_says_so() {
        let long = "é".repeat(FIELD_LIMIT);
        let captured = parse(&[b"[OUTPUT]x", long.as_bytes(), b"\n[OUTPUT]more\n"]);
        let Some(Value::String(text)) = captured.output else {
            panic!("no output")
        };
        assert!(text.len() <= FIELD_LIMIT && text.ends_with('é'));
        let dropped = 1 + long.len() + "\nmore".len() - text.len();
        assert_eq!(captured.truncated.get("output"), Some(&(dropped as u64)));
    }

    proptest::proptest! {
        #[test]
        fn where_the_chunks_are_cut_makes_no_difference(
            text in "(\\[OUTPUT\\]|\\[ERR_MSG\\]|\\[INFO\\]|\\[OUT|a|é|\n|\\[| ){0,40}",
            cuts in proptest::collection::vec(0_usize..80, 0..8),
        ) {
            let bytes = text.as_bytes();
            let mut parser = LineParser::default();
            let mut from = 0;
            let mut cuts = cuts;
            cuts.sort_unstable();
            for cut in cuts {
                let cut = cut.clamp(from, bytes.len());
                parser.push(&bytes[from..cut]);
                from = cut;
            }
            parser.push(&bytes[from..]);
            let captured = parser.finish();
            // The rule again, by whole lines.
            let expected = |prefix: &str| {
                let lines: Vec<&str> = text.split('\n').filter_map(|line| line.strip_prefix(prefix)).collect();
                (!lines.is_empty()).then(|| Value::from(lines.join("\n")))
            };
            proptest::prop_assert_eq!(captured.output, expected("[OUTPUT]"));
            proptest::prop_assert_eq!(captured.err_msg, expected("[ERR_MSG]"));
            proptest::prop_assert_eq!(captured.info, expected("[INFO]"));
        }

        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..2000)) {
            parse(&[&bytes]);
        }
    }
}
