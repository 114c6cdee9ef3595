//! The one rule of parameters.
//!
//! A value that is exactly `$name` or `${name}` is that parameter, typed. Inside a longer text
//! it is spliced as text. `$$` is `$`; any other `$` is itself. Filling happens on the parsed
//! tree, so a value can never become structure.
//!
//! Must not know fields: who calls decides which rule a field has.

use crate::engine::spec::{EnvPart, EnvText};
use crate::value::{Kind, Place, Tree};

use super::{Filling, Named};

/// A piece of a text that may name parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Stands as it is.
    Literal(String),
    /// A name after a `$`, and the whole as it is written.
    Name { name: String, written: String },
}

/// Cuts a text into pieces.
pub(super) fn pieces(text: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        literal.push_str(before);
        rest = after;
        if let Some(after) = rest.strip_prefix('$') {
            literal.push('$');
            rest = after;
            continue;
        }
        let inner = rest.strip_prefix('{').unwrap_or(rest);
        let braced = inner.len() < rest.len();
        let length = inner
            .bytes()
            .take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
            .count();
        let (name, after) = inner.split_at_checked(length).unwrap_or((inner, ""));
        let after = if braced {
            after.strip_prefix('}')
        } else {
            Some(after)
        };
        match after {
            Some(after) if !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) => {
                if !literal.is_empty() {
                    pieces.push(Piece::Literal(std::mem::take(&mut literal)));
                }
                let written = if braced {
                    format!("${{{name}}}")
                } else {
                    format!("${name}")
                };
                pieces.push(Piece::Name {
                    name: name.to_owned(),
                    written,
                });
                rest = after;
            }
            _ => literal.push('$'),
        }
    }
    literal.push_str(rest);
    if !literal.is_empty() || pieces.is_empty() {
        pieces.push(Piece::Literal(literal));
    }
    pieces
}

/// Fills a value and all in it. `unknown` is told of each name that is no parameter.
pub(super) fn value(
    tree: &Tree,
    filling: Filling<'_>,
    unknown: &mut impl FnMut(Place, &str),
) -> Tree {
    let at = tree.at;
    let kind = match &tree.kind {
        Kind::String(written) => return text(written, at, filling, unknown),
        Kind::List(items) => Kind::List(
            items
                .iter()
                .map(|item| value(item, filling, unknown))
                .collect(),
        ),
        Kind::Map(members) => Kind::Map(
            members
                .iter()
                .map(|(key, member)| (key.clone(), value(member, filling, unknown)))
                .collect(),
        ),
        other => other.clone(),
    };
    Tree { at, kind }
}

fn text(
    written: &str,
    at: Place,
    filling: Filling<'_>,
    unknown: &mut impl FnMut(Place, &str),
) -> Tree {
    let pieces = pieces(written);
    let kept = || Tree {
        at,
        kind: Kind::String(written.to_owned()),
    };
    if let [Piece::Name { name, .. }] = pieces.as_slice()
        && let Named::Value(value) = filling.find(name)
    {
        return Tree {
            at,
            kind: Tree::from(value).kind,
        };
    }
    let mut filled = String::new();
    let mut is_open = false;
    for piece in &pieces {
        match piece {
            Piece::Literal(literal) => filled.push_str(literal),
            Piece::Name { name, written } => match filling.find(name) {
                Named::Value(value) => filled.push_str(&value.to_plain_text()),
                Named::Later => is_open = true,
                Named::Nothing => {
                    unknown(at, name);
                    filled.push_str(written);
                }
            },
        }
    }
    if is_open {
        // It is filled whole or not at all: half of it would have its `$$` undone too early.
        return kept();
    }
    Tree {
        at,
        kind: Kind::String(filled),
    }
}

/// The part for a name where the environment may answer: a parameter's value as it is, else the
/// variable of that name.
fn env_part(name: &str, filling: Filling<'_>) -> EnvPart {
    match filling.find(name) {
        Named::Value(value) => EnvPart::Literal(value.to_plain_text()),
        Named::Later | Named::Nothing => EnvPart::Variable(name.to_owned()),
    }
}

/// A text in which names that are no parameters are left to the environment, and a leading `~`
/// to `HOME`.
pub(super) fn env_text(written: &str, filling: Filling<'_>) -> EnvText {
    let mut parts = Vec::new();
    for piece in pieces(written) {
        match piece {
            Piece::Name { name, .. } => parts.push(env_part(&name, filling)),
            Piece::Literal(literal) => {
                let home = parts.is_empty() && (literal == "~" || literal.starts_with("~/"));
                if home {
                    parts.push(EnvPart::Home);
                    parts.push(EnvPart::Literal(
                        literal.get(1..).unwrap_or_default().to_owned(),
                    ));
                } else {
                    parts.push(EnvPart::Literal(literal));
                }
            }
        }
    }
    EnvText { parts }
}

/// Cuts a command line into words by a shell's quoting (`'…'`, `"…"`, `\`), without a shell.
/// Only what the author wrote is cut: a parameter's value stays in its word whatever it holds.
pub(super) fn words(written: &str, filling: Filling<'_>) -> Result<Vec<EnvText>, &'static str> {
    let mut words = Vec::new();
    // None between words: '' is a word, and nothing is not.
    let mut word: Option<Vec<EnvPart>> = None;
    let mut quote: Option<char> = None;
    for piece in pieces(written) {
        let literal = match piece {
            Piece::Name { name, .. } => {
                word.get_or_insert_default().push(env_part(&name, filling));
                continue;
            }
            Piece::Literal(literal) => literal,
        };
        let mut chars = literal.chars().peekable();
        while let Some(c) = chars.next() {
            match (c, quote) {
                (c, Some(open)) if c == open => quote = None,
                ('\\', None) => match chars.next() {
                    Some(c) => push_char(word.get_or_insert_default(), c),
                    None => return Err("a backslash ends the text; expected a character after it"),
                },
                ('\\', Some('"')) if matches!(chars.peek(), Some('"' | '\\')) => {
                    if let Some(c) = chars.next() {
                        push_char(word.get_or_insert_default(), c);
                    }
                }
                (c @ ('\'' | '"'), None) => {
                    quote = Some(c);
                    word.get_or_insert_default();
                }
                (c, None) if c.is_whitespace() => {
                    if let Some(parts) = word.take() {
                        words.push(EnvText { parts });
                    }
                }
                ('~', None)
                    if word.is_none()
                        && chars.peek().is_none_or(|c| *c == '/' || c.is_whitespace()) =>
                {
                    word.get_or_insert_default().push(EnvPart::Home);
                }
                (c, _) => push_char(word.get_or_insert_default(), c),
            }
        }
    }
    if quote.is_some() {
        return Err("a quote is never closed");
    }
    if let Some(parts) = word {
        words.push(EnvText { parts });
    }
    Ok(words)
}

fn push_char(parts: &mut Vec<EnvPart>, c: char) {
    if let Some(EnvPart::Literal(literal)) = parts.last_mut() {
        literal.push(c);
    } else {
        parts.push(EnvPart::Literal(c.to_string()));
    }
}
