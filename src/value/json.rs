//! The JSON reader: places for every value, numbers by their text, duplicate keys refused,
//! depth bounded, and, in templates, bare `$name` and `${name}` where a value may stand.
//!
//! Why our own: templates of the original have `"ip": $ip` without quotes, which no JSON reader
//! takes, and errors must name line and column of any value, not only of a syntax error.
//!
//! Must not fill parameters: a bare `$name` is read as the text `$name`, so that bare and quoted
//! mean the same.

use std::collections::BTreeSet;

use super::{Budget, Key, Kind, MAX_DEPTH, MAX_PROBLEMS, MAX_VALUES, Place, Problem, Tree};

/// Which JSON is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// JSON as RFC 8259 has it.
    Strict,
    /// JSON in which a bare `$name` or `${name}` may stand for a value.
    Template,
}

/// Reads one JSON document.
///
/// The error holds the first syntax error, after all duplicate keys that came before it.
pub fn read(text: &str, dialect: Dialect) -> Result<Tree, Vec<Problem>> {
    read_within(text, dialect, &mut Budget::of(MAX_VALUES))
}

/// The same, and no more values than `budget` has left.
pub fn read_within(
    text: &str,
    dialect: Dialect,
    budget: &mut Budget,
) -> Result<Tree, Vec<Problem>> {
    let mut reader = Reader {
        rest: text,
        at: Place { line: 1, column: 1 },
        dialect,
        duplicates: Vec::new(),
        budget,
    };
    let read = reader.document();
    let mut problems = reader.duplicates;
    match read {
        Ok(tree) if problems.is_empty() => Ok(tree),
        Ok(_) => Err(problems),
        Err(problem) => {
            problems.push(problem);
            Err(problems)
        }
    }
}

/// The length of the text of a JSON number at the beginning of `text`, in bytes.
pub(super) fn number_length(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let digits = |from: usize| {
        bytes
            .iter()
            .skip(from)
            .take_while(|byte| byte.is_ascii_digit())
            .count()
    };
    let mut length = usize::from(bytes.first() == Some(&b'-'));
    let whole = digits(length);
    if whole == 0 || (whole > 1 && bytes.get(length) == Some(&b'0')) {
        return None;
    }
    length += whole;
    if bytes.get(length) == Some(&b'.') {
        let fraction = digits(length + 1);
        if fraction == 0 {
            return None;
        }
        length += 1 + fraction;
    }
    if matches!(bytes.get(length), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(length + 1), Some(b'+' | b'-')));
        let exponent = digits(length + 1 + sign);
        if exponent == 0 {
            return None;
        }
        length += 1 + sign + exponent;
    }
    Some(length)
}

struct Reader<'a, 'b> {
    rest: &'a str,
    at: Place,
    dialect: Dialect,
    duplicates: Vec<Problem>,
    budget: &'b mut Budget,
}

impl<'a> Reader<'a, '_> {
    fn document(&mut self) -> Result<Tree, Problem> {
        self.skip_space();
        let tree = self.value(0)?;
        self.skip_space();
        match self.peek() {
            None => Ok(tree),
            Some(_) => Err(self.unexpected("the end of the text")),
        }
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let next = chars.next()?;
        self.rest = chars.as_str();
        if next == '\n' {
            self.at.line += 1;
            self.at.column = 1;
        } else {
            self.at.column += 1;
        }
        Some(next)
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(' ' | '\t' | '\n' | '\r')) {
            self.next();
        }
    }

    /// Takes `length` bytes, which must end on a character and hold no line feed.
    fn take(&mut self, length: usize) -> &'a str {
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .unwrap_or((self.rest, ""));
        self.rest = rest;
        let characters = u32::try_from(taken.chars().count()).unwrap_or(u32::MAX);
        self.at.column = self.at.column.saturating_add(characters);
        taken
    }

    fn unexpected(&self, expected: &str) -> Problem {
        let found = match self.peek() {
            None => "the text ends here".to_owned(),
            Some('\n' | '\r') => "the line ends here".to_owned(),
            Some(_) => {
                let word: String = self
                    .rest
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || "_+-.'".contains(*c))
                    .take(20)
                    .collect();
                let shown = if word.is_empty() {
                    self.rest.chars().take(1).collect()
                } else {
                    word
                };
                format!("found `{shown}`")
            }
        };
        Problem::in_text(self.at, format!("{found}; expected {expected}"))
    }

    fn value(&mut self, depth: usize) -> Result<Tree, Problem> {
        let at = self.at;
        if depth > MAX_DEPTH {
            let message = format!("nested deeper than {MAX_DEPTH} levels");
            return Err(Problem::in_text(at, message));
        }
        self.budget.take(1, at)?;
        let kind = match self.peek() {
            Some('{') => self.map(depth)?,
            Some('[') => self.list(depth)?,
            Some('"') => Kind::String(self.string()?),
            Some('-' | '0'..='9') => self.number()?,
            Some('$') if self.dialect == Dialect::Template => self.parameter()?,
            Some('t') if self.word("true") => Kind::Bool(true),
            Some('f') if self.word("false") => Kind::Bool(false),
            Some('n') if self.word("null") => Kind::Null,
            _ => {
                let expected = match self.dialect {
                    Dialect::Strict => {
                        "a JSON value (object, list, \"text\", number, true, false, null)"
                    }
                    Dialect::Template => {
                        "a value (object, list, \"text\", number, true, false, null, $parameter)"
                    }
                };
                return Err(self.unexpected(expected));
            }
        };
        Ok(Tree { at, kind })
    }

    /// Takes `word` if it stands here and no longer word does.
    fn word(&mut self, word: &str) -> bool {
        let Some(after) = self.rest.strip_prefix(word) else {
            return false;
        };
        if after.starts_with(|c: char| c.is_alphanumeric() || c == '_') {
            return false;
        }
        self.take(word.len());
        true
    }

    fn number(&mut self) -> Result<Kind, Problem> {
        let expected = "a number as JSON has it (no leading zero or plus, digits after the point)";
        let Some(length) = number_length(self.rest) else {
            return Err(self.unexpected(expected));
        };
        let ends = self.rest.get(length..).unwrap_or_default();
        if ends.starts_with(|c: char| c.is_alphanumeric() || ".+-_".contains(c)) {
            return Err(self.unexpected(expected));
        }
        Ok(Kind::Number(self.take(length).to_owned()))
    }

    /// `$name` or `${name}`, kept as its text.
    fn parameter(&mut self) -> Result<Kind, Problem> {
        let braced = self.rest.starts_with("${");
        let name_at = if braced { 2 } else { 1 };
        let name: usize = self
            .rest
            .chars()
            .skip(name_at)
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
            .count();
        let first = self.rest.chars().nth(name_at);
        let closed = !braced || self.rest.chars().nth(name_at + name) == Some('}');
        if name == 0 || first.is_some_and(|c| c.is_ascii_digit()) || !closed {
            return Err(self.unexpected("a parameter as `$name` or `${name}`"));
        }
        let length = name_at + name + usize::from(braced);
        Ok(Kind::String(self.take(length).to_owned()))
    }

    fn list(&mut self, depth: usize) -> Result<Kind, Problem> {
        self.next();
        let mut items = Vec::new();
        self.skip_space();
        if self.peek() == Some(']') {
            self.next();
            return Ok(Kind::List(items));
        }
        loop {
            self.skip_space();
            items.push(self.value(depth + 1)?);
            self.skip_space();
            match self.peek() {
                Some(',') => self.next(),
                Some(']') => {
                    self.next();
                    // Half of it may be room for more.
                    items.shrink_to_fit();
                    return Ok(Kind::List(items));
                }
                _ => return Err(self.unexpected("`,` or `]`")),
            };
        }
    }

    fn map(&mut self, depth: usize) -> Result<Kind, Problem> {
        self.next();
        let mut members = Vec::new();
        let mut seen = BTreeSet::new();
        self.skip_space();
        if self.peek() == Some('}') {
            self.next();
            return Ok(Kind::Map(members));
        }
        loop {
            self.skip_space();
            let at = self.at;
            if self.peek() != Some('"') {
                return Err(self.unexpected("a key in double quotes"));
            }
            let name = self.string()?;
            self.skip_space();
            if self.peek() != Some(':') {
                return Err(self.unexpected("`:` after the key"));
            }
            self.next();
            self.skip_space();
            let value = self.value(depth + 1)?;
            if seen.insert(name.clone()) {
                members.push((Key { at, name }, value));
            } else {
                // More than these are not shown.
                if self.duplicates.len() <= MAX_PROBLEMS {
                    self.duplicates.push(duplicate(at, &name));
                }
            }
            self.skip_space();
            match self.peek() {
                Some(',') => self.next(),
                Some('}') => {
                    self.next();
                    members.shrink_to_fit();
                    return Ok(Kind::Map(members));
                }
                _ => return Err(self.unexpected("`,` or `}`")),
            };
        }
    }

    fn string(&mut self) -> Result<String, Problem> {
        let start = self.at;
        self.next();
        let mut text = String::new();
        loop {
            let at = self.at;
            match self.next() {
                None => {
                    let message = "this text never ends; expected a closing `\"`";
                    return Err(Problem::in_text(start, message));
                }
                Some('"') => return Ok(text),
                Some('\\') => text.push(self.escape(at)?),
                Some(c) if c < ' ' => {
                    let message = format!(
                        "a control character (U+{:04X}) inside a text; expected an escape such as \\n",
                        u32::from(c)
                    );
                    return Err(Problem::in_text(at, message));
                }
                Some(c) => text.push(c),
            }
        }
    }

    fn escape(&mut self, at: Place) -> Result<char, Problem> {
        let escaped = match self.next() {
            Some(c @ ('"' | '\\' | '/')) => c,
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('u') => return self.unicode_escape(at),
            _ => {
                let message =
                    "unknown escape; expected one of \\\" \\\\ \\/ \\b \\f \\n \\r \\t \\uXXXX";
                return Err(Problem::in_text(at, message));
            }
        };
        Ok(escaped)
    }

    fn unicode_escape(&mut self, at: Place) -> Result<char, Problem> {
        let wrong = |message: &str| Problem::in_text(at, message);
        let first = self
            .four_hex_digits()
            .ok_or_else(|| wrong("expected four hexadecimal digits after \\u"))?;
        let code = match first {
            // A lone half of a surrogate pair is no character. It is read as U+FFFD, as a
            // script's invalid bytes are, so that a result that holds one is not lost whole.
            0xD800..=0xDBFF => {
                if !self.rest.starts_with("\\u") {
                    return Ok(char::REPLACEMENT_CHARACTER);
                }
                let (rest, place) = (self.rest, self.at);
                self.take(2);
                let second = self
                    .four_hex_digits()
                    .ok_or_else(|| wrong("expected four hexadecimal digits after \\u"))?;
                if (0xDC00..=0xDFFF).contains(&second) {
                    0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00)
                } else {
                    (self.rest, self.at) = (rest, place);
                    return Ok(char::REPLACEMENT_CHARACTER);
                }
            }
            code => code,
        };
        Ok(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    fn four_hex_digits(&mut self) -> Option<u32> {
        let digits = self.rest.get(..4)?;
        if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let code = u32::from_str_radix(digits, 16).ok()?;
        self.take(4);
        Some(code)
    }
}

/// The problem of a key that stands twice in one map.
pub(super) fn duplicate(at: Place, name: &str) -> Problem {
    Problem::in_text(at, format!("the key `{name}` stands twice in one object"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_strict(text: &str) -> Result<String, String> {
        read(text, Dialect::Strict)
            .map(|tree| tree.into_value().to_string())
            .map_err(|problems| {
                let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
                lines.join("\n")
            })
    }

    #[test]
    fn values_come_back_as_they_were_written() {
        let text =
            r#"{"v":1.10,"big":123456789012345678901234567890,"l":[null,true,"é\n"],"e":-1e-3}"#;
        assert_eq!(read_strict(text).as_deref(), Ok(text));
    }

    #[test]
    fn escapes_and_surrogates() {
        assert_eq!(read_strict(r#""\ud83d\ude00""#).as_deref(), Ok("\"😀\""));
        assert_eq!(read_strict(r#""\ud83dx""#).as_deref(), Ok("\"\u{fffd}x\""));
        assert_eq!(
            read_strict(r#""\ud83d\u0041""#).as_deref(),
            Ok("\"\u{fffd}A\"")
        );
    }

    #[test]
    fn errors_name_the_place_and_what_was_expected() {
        for (text, error) in [
            (
                "{\"a\": 1,\n  b: 2}",
                "2:3: found `b`; expected a key in double quotes",
            ),
            ("[1, 2", "1:6: the text ends here; expected `,` or `]`"),
            ("[1] x", "1:5: found `x`; expected the end of the text"),
            ("{\"é\" 1}", "1:6: found `1`; expected `:` after the key"),
            (
                "\"abc",
                "1:1: this text never ends; expected a closing `\"`",
            ),
            (
                "[01]",
                "1:2: found `01`; expected a number as JSON has it (no leading zero or plus, digits after the point)",
            ),
            (
                "{\"a\":1,\"b\":2,\"a\":3,\"b\":4}",
                "1:14: the key `a` stands twice in one object\n1:20: the key `b` stands twice in one object",
            ),
        ] {
            assert_eq!(read_strict(text), Err(error.to_owned()), "{text}");
        }
    }

    #[test]
    fn bare_parameters_are_texts_in_templates_only() {
        let tree = read("[$a, ${b_1}]", Dialect::Template);
        assert_eq!(
            tree.map(|tree| tree.into_value().to_string()).ok(),
            Some(r#"["$a","${b_1}"]"#.to_owned())
        );
        assert!(read("[$a]", Dialect::Strict).is_err());
        assert!(read("[$1]", Dialect::Template).is_err());
        assert!(read("[${a]", Dialect::Template).is_err());
    }

    #[test]
    fn depth_is_bounded() {
        let deep = "[".repeat(100_000);
        let message = read_strict(&deep).err().unwrap_or_default();
        assert_eq!(message, "1:130: nested deeper than 128 levels");
    }
}
