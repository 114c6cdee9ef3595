//! The YAML reader: the events of `saphyr-parser` into the same [`Tree`] as JSON.
//!
//! A plain scalar is null, true, false or a number only where it reads so in YAML 1.2 *and* its
//! text is valid JSON; everything else (`0755`, `1_000`, `.5`, `yes`) is a text, as it was written.
//!
//! Must not fill parameters.

use std::collections::{BTreeMap, BTreeSet};

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use super::json::{duplicate, number_length};
use super::{Budget, Key, Kind, MAX_DEPTH, MAX_PROBLEMS, MAX_VALUES, Place, Problem, Tree};

/// Most values that aliases may add to one document. A document can double itself with every
/// alias; real ones do not come near.
const MAX_ALIASED: usize = 100_000;

/// Most bytes of texts that anchors and aliases may copy in one document. Values alone do not
/// bound them: one value can be a text of a megabyte.
const MAX_COPIED: usize = 16 * 1024 * 1024;

/// Reads one YAML document.
pub fn read(text: &str) -> Result<Tree, Vec<Problem>> {
    read_within(text, &mut Budget::of(MAX_VALUES))
}

/// The same, and no more values than `budget` has left. What an anchor or an alias copies counts
/// as if it were written there.
pub fn read_within(text: &str, budget: &mut Budget) -> Result<Tree, Vec<Problem>> {
    let mut builder = Builder {
        open: Vec::new(),
        anchors: BTreeMap::new(),
        aliased: 0,
        copied: 0,
        root: None,
        problems: Vec::new(),
        budget,
    };
    for event in Parser::new_from_str(text) {
        let taken = match event {
            Ok((event, span)) => builder.take(event, place(span)),
            Err(error) => {
                let marker = error.marker();
                let at = Place {
                    line: u32::try_from(marker.line()).unwrap_or(u32::MAX),
                    column: u32::try_from(marker.col() + 1).unwrap_or(u32::MAX),
                };
                Err(Problem::in_text(
                    at,
                    format!("not valid YAML: {}", error.info()),
                ))
            }
        };
        if let Err(problem) = taken {
            builder.problems.push(problem);
            return Err(builder.problems);
        }
    }
    match builder.root {
        Some(tree) if builder.problems.is_empty() => Ok(tree),
        Some(_) => Err(builder.problems),
        None => Err(vec![Problem::in_text(
            Place { line: 1, column: 1 },
            "the text holds no value; expected JSON or YAML",
        )]),
    }
}

fn place(span: Span) -> Place {
    Place {
        line: u32::try_from(span.start.line()).unwrap_or(u32::MAX),
        column: u32::try_from(span.start.col() + 1).unwrap_or(u32::MAX),
    }
}

/// A list or map that is still open.
struct Open {
    at: Place,
    anchor: usize,
    kind: OpenKind,
}

enum OpenKind {
    List(Vec<Tree>),
    Map {
        members: Vec<(Key, Tree)>,
        seen: BTreeSet<String>,
        key: Option<Key>,
    },
}

struct Builder<'b> {
    open: Vec<Open>,
    anchors: BTreeMap<usize, Tree>,
    aliased: usize,
    /// Bytes of texts that were copied.
    copied: usize,
    root: Option<Tree>,
    problems: Vec<Problem>,
    budget: &'b mut Budget,
}

impl Builder<'_> {
    fn take(&mut self, event: Event<'_>, at: Place) -> Result<(), Problem> {
        let tag = match &event {
            Event::Scalar(_, _, _, tag)
            | Event::SequenceStart(_, tag)
            | Event::MappingStart(_, tag) => tag.as_deref(),
            _ => None,
        };
        if let Some(tag) = tag {
            let message = format!("the tag `{tag}` is not supported; expected a plain value");
            return Err(Problem::in_text(at, message));
        }
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let is_key = matches!(
                    self.open.last(),
                    Some(Open {
                        kind: OpenKind::Map { key: None, .. },
                        ..
                    })
                );
                if !is_key {
                    self.budget.take(1, at)?;
                }
                let kind = if is_key || style != ScalarStyle::Plain {
                    Kind::String(text.into_owned())
                } else {
                    plain(text.into_owned())
                };
                self.close(Tree { at, kind }, anchor)
            }
            Event::SequenceStart(anchor, _) => self.open(at, anchor, OpenKind::List(Vec::new())),
            Event::MappingStart(anchor, _) => {
                let kind = OpenKind::Map {
                    members: Vec::new(),
                    seen: BTreeSet::new(),
                    key: None,
                };
                self.open(at, anchor, kind)
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open { at, anchor, kind }) => {
                    let kind = match kind {
                        OpenKind::List(mut items) => {
                            items.shrink_to_fit();
                            Kind::List(items)
                        }
                        OpenKind::Map { mut members, .. } => {
                            members.shrink_to_fit();
                            Kind::Map(members)
                        }
                    };
                    self.close(Tree { at, kind }, anchor)
                }
                None => Err(Problem::in_text(
                    at,
                    "not valid YAML: an end without a start",
                )),
            },
            Event::Alias(anchor) => {
                let Some(tree) = self.anchors.get(&anchor) else {
                    let message = "an alias to an anchor that is not complete here";
                    return Err(Problem::in_text(at, message));
                };
                let size = size(tree);
                self.aliased = self.aliased.saturating_add(size.values);
                if self.aliased > MAX_ALIASED || depth(tree) + self.open.len() > MAX_DEPTH {
                    let message = format!(
                        "aliases make the document too large (over {MAX_ALIASED} values or {MAX_DEPTH} levels)"
                    );
                    return Err(Problem::too_large(at, message));
                }
                let tree = copy(tree, size, at, &mut self.copied, self.budget)?;
                self.close(tree, 0)
            }
            Event::DocumentStart(_) if self.root.is_some() => {
                let message = "a second document begins here; expected one document";
                Err(Problem::in_text(at, message))
            }
            Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::StreamStart
            | Event::StreamEnd
            | Event::Nothing => Ok(()),
        }
    }

    fn open(&mut self, at: Place, anchor: usize, kind: OpenKind) -> Result<(), Problem> {
        if self.open.len() > MAX_DEPTH {
            let message = format!("nested deeper than {MAX_DEPTH} levels");
            return Err(Problem::in_text(at, message));
        }
        self.budget.take(1, at)?;
        self.open.push(Open { at, anchor, kind });
        Ok(())
    }

    /// Puts a complete value where it belongs.
    fn close(&mut self, tree: Tree, anchor: usize) -> Result<(), Problem> {
        if anchor > 0 {
            let copy = copy(&tree, size(&tree), tree.at, &mut self.copied, self.budget)?;
            self.anchors.insert(anchor, copy);
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(tree);
            return Ok(());
        };
        match &mut open.kind {
            OpenKind::List(items) => items.push(tree),
            OpenKind::Map { members, seen, key } => match key.take() {
                None => {
                    let Kind::String(name) = tree.kind else {
                        let message = format!("{} as a key; expected a text", tree.kind_name());
                        return Err(Problem::in_text(tree.at, message));
                    };
                    *key = Some(Key { at: tree.at, name });
                }
                Some(key) => {
                    if seen.insert(key.name.clone()) {
                        members.push((key, tree));
                    } else if self.problems.len() <= MAX_PROBLEMS {
                        self.problems.push(duplicate(key.at, &key.name));
                    }
                }
            },
        }
        Ok(())
    }
}

fn plain(text: String) -> Kind {
    match text.as_str() {
        "" | "~" | "null" | "Null" | "NULL" => Kind::Null,
        "true" | "True" | "TRUE" => Kind::Bool(true),
        "false" | "False" | "FALSE" => Kind::Bool(false),
        number if number_length(number) == Some(number.len()) => Kind::Number(text),
        _ => Kind::String(text),
    }
}

/// How much a tree is.
#[derive(Clone, Copy, Default)]
struct Size {
    values: usize,
    /// Of its texts, keys among them.
    bytes: usize,
}

/// The size of a tree; its depth is bounded, so the recursion is.
fn size(tree: &Tree) -> Size {
    let own = |bytes: usize| Size { values: 1, bytes };
    let add = |left: Size, right: Size| Size {
        values: left.values + right.values,
        bytes: left.bytes + right.bytes,
    };
    match &tree.kind {
        Kind::Null | Kind::Bool(_) => own(0),
        Kind::Number(text) | Kind::String(text) => own(text.len()),
        Kind::List(items) => items.iter().map(size).fold(own(0), add),
        Kind::Map(members) => members
            .iter()
            .map(|(key, value)| {
                add(
                    size(value),
                    Size {
                        values: 0,
                        bytes: key.name.len(),
                    },
                )
            })
            .fold(own(0), add),
    }
}

/// A copy of a tree of this size, where there is room for it.
fn copy(
    tree: &Tree,
    size: Size,
    at: Place,
    copied: &mut usize,
    budget: &mut Budget,
) -> Result<Tree, Problem> {
    budget.take(size.values, at)?;
    *copied = copied.saturating_add(size.bytes);
    if *copied > MAX_COPIED {
        let message = format!(
            "anchors and aliases make the document too large (over {} MiB of text)",
            MAX_COPIED / 1024 / 1024
        );
        return Err(Problem::too_large(at, message));
    }
    Ok(tree.clone())
}

fn depth(tree: &Tree) -> usize {
    match &tree.kind {
        Kind::List(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Kind::Map(members) => {
            1 + members
                .iter()
                .map(|(_, value)| depth(value))
                .max()
                .unwrap_or(0)
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<String, String> {
        read(text)
            .map(|tree| tree.into_value().to_string())
            .map_err(|problems| {
                let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
                lines.join("\n")
            })
    }

    #[test]
    fn scalars_are_what_json_would_call_them() {
        let text = "a: 1.10\nb: 0755\nc: yes\nd: ~\ne: 'true'\nf: True\ng: .5\nh: ${x}\n";
        let json =
            r#"{"a":1.10,"b":"0755","c":"yes","d":null,"e":"true","f":true,"g":".5","h":"${x}"}"#;
        assert_eq!(read_text(text).as_deref(), Ok(json));
    }

    #[test]
    fn errors_name_the_place() {
        assert_eq!(
            read_text("a: 1\na: 2\n").err().as_deref(),
            Some("2:1: the key `a` stands twice in one object")
        );
        assert_eq!(
            read_text("a: !secret x\n").err().as_deref(),
            Some("1:4: the tag `!secret` is not supported; expected a plain value")
        );
        assert!(read_text("a: [1, 2\n").is_err());
        assert!(read_text("a: 1\n---\nb: 2\n").is_err());
    }

    #[test]
    fn aliases_are_bounded() {
        assert_eq!(
            read_text("a: &x [1, 2]\nb: *x\n").as_deref(),
            Ok(r#"{"a":[1,2],"b":[1,2]}"#)
        );
        let bomb: Vec<String> = (0..12_usize)
            .map(|level| {
                let below = level
                    .checked_sub(1)
                    .map_or("x, ".to_owned(), |below| format!("*a{below}, "));
                format!("a{level}: &a{level} [{}]\n", below.repeat(10))
            })
            .collect();
        assert!(read_text(&bomb.concat()).is_err_and(|e| e.contains("aliases make")));
    }

    #[test]
    fn aliased_text_beyond_its_bytes_is_refused() {
        // Few values, 1 MiB each: 20 GB at the limit of values.
        let text = format!(
            "a: &x {}\nb: [{}]\n",
            "x".repeat(1 << 20),
            "*x, ".repeat(20_000)
        );
        assert!(read_text(&text).is_err_and(|e| e.contains("16 MiB of text")));
    }

    #[test]
    fn nested_anchors_beyond_their_bytes_are_refused() {
        // Each anchor keeps all that is below it.
        let anchors: Vec<String> = (0..100).map(|level| format!("&a{level} [")).collect();
        let anchors = anchors.concat();
        let text = format!("{anchors}{}{}", "x".repeat(1 << 20), "]".repeat(100));
        assert!(read_text(&text).is_err_and(|e| e.contains("16 MiB of text")));
    }

    #[test]
    fn depth_is_bounded() {
        assert!(read_text(&"[".repeat(100_000)).is_err());
        assert!(read_text(&"- ".repeat(100_000)).is_err());
    }
}
