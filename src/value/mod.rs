//! Data as an author wrote it: JSON-like values whose numbers keep their text, and trees that
//! know the place of every part.
//!
//! Why not `serde_json::Value`: it turns `1.10` into `1.1` and rounds long integers, and a
//! version or an account number must reach a command exactly as it was written.
//!
//! Leftmost room of the house: it must not use anything else of the crate, read files, or know
//! what a node is.

pub mod json;
pub mod yaml;

use std::fmt;

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// Deepest nesting of lists and maps that is read, in levels. Far above real templates, far
/// below what a stack holds.
pub const MAX_DEPTH: usize = 128;

/// Most values in one text where nothing smaller is asked for: lists, maps and what is in them,
/// keys excepted. A template of 100,000 nodes has about a million. A value takes up to 150 bytes
/// of memory, and as little as two bytes of text.
pub const MAX_VALUES: usize = 4_000_000;

/// Most problems that are reported of one input. A text of a few megabytes can have a million.
pub const MAX_PROBLEMS: usize = 1_000;

/// A place in a text. Lines and columns count from 1, columns in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Line, from 1; 0 where the value came from an object and not from a text.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

impl Place {
    /// The place of a value that came from no text.
    pub const NONE: Self = Self { line: 0, column: 0 };
}

/// A JSON-like value. Maps keep the order in which they were written, because that is the
/// order of a command's options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number by its text, valid in JSON.
    Number(String),
    /// A text.
    String(String),
    /// A list.
    List(Vec<Value>),
    /// A map in written order; no name stands twice.
    Map(Vec<(String, Value)>),
}

/// What a value is, in the words of error messages.
mod words {
    pub(super) const NULL: &str = "null";
    pub(super) const BOOL: &str = "true or false";
    pub(super) const NUMBER: &str = "a number";
    pub(super) const TEXT: &str = "a text";
    pub(super) const LIST: &str = "a list";
    pub(super) const OBJECT: &str = "an object";
}

impl Value {
    /// What the value is, for error messages: "a number", "a list".
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => words::NULL,
            Self::Bool(_) => words::BOOL,
            Self::Number(_) => words::NUMBER,
            Self::String(_) => words::TEXT,
            Self::List(_) => words::LIST,
            Self::Map(_) => words::OBJECT,
        }
    }

    /// The value as plain text, as it stands in a command's argument or is spliced into a
    /// longer text: texts as they are, everything else as JSON.
    #[must_use]
    pub fn to_plain_text(&self) -> String {
        match self {
            Self::String(text) => text.clone(),
            other => other.to_string(),
        }
    }

    /// Bytes of all its texts, names of members among them.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        match self {
            Self::Null | Self::Bool(_) => 4,
            Self::Number(text) | Self::String(text) => text.len(),
            Self::List(items) => items.iter().map(Self::text_bytes).sum(),
            Self::Map(members) => members
                .iter()
                .map(|(name, value)| name.len() + value.text_bytes())
                .sum(),
        }
    }

    /// Memory that it takes, in bytes; approximate.
    #[must_use]
    pub fn memory(&self) -> usize {
        // The value itself, and what an allocation takes beside its content.
        const VALUE: usize = 64;
        const NAME: usize = 56;
        VALUE
            + match self {
                Self::Null | Self::Bool(_) => 0,
                Self::Number(text) | Self::String(text) => text.len(),
                Self::List(items) => items.iter().map(Self::memory).sum(),
                Self::Map(members) => members
                    .iter()
                    .map(|(name, value)| NAME + name.len() + value.memory())
                    .sum(),
            }
    }

    /// The member `name` of a map.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        match self {
            Self::Map(members) => members.iter().find(|(n, _)| n == name).map(|(_, v)| v),
            _ => None,
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::String(text)
    }
}

impl fmt::Display for Value {
    /// Compact JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Number(text) => serialize_number(text, serializer),
            Self::String(text) => serializer.serialize_str(text),
            Self::List(items) => serializer.collect_seq(items),
            Self::Map(members) => {
                serializer.collect_map(members.iter().map(|(name, value)| (name, value)))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    /// Reads through [`RawValue`], so that numbers keep their text; `serde_json` only.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        let tree = json::read(raw.get(), json::Dialect::Strict).map_err(|problems| {
            D::Error::custom(
                problems
                    .first()
                    .map_or_else(|| "not JSON".to_owned(), ToString::to_string),
            )
        })?;
        Ok(tree.into_value())
    }
}

/// A value with the place of each of its parts.
#[derive(Clone, Debug)]
pub struct Tree {
    /// Where the value begins.
    pub at: Place,
    /// The value.
    pub kind: Kind,
}

/// What stands at a place of a [`Tree`].
#[derive(Clone, Debug)]
pub enum Kind {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number by its text, valid in JSON.
    Number(String),
    /// A text.
    String(String),
    /// A list.
    List(Vec<Tree>),
    /// A map in written order; no key stands twice.
    Map(Vec<(Key, Tree)>),
}

/// A key of a map and its place.
#[derive(Clone, Debug)]
pub struct Key {
    /// Where the key begins.
    pub at: Place,
    /// The key itself.
    pub name: String,
}

impl Tree {
    /// Forgets the places.
    #[must_use]
    pub fn into_value(self) -> Value {
        match self.kind {
            Kind::Null => Value::Null,
            Kind::Bool(value) => Value::Bool(value),
            Kind::Number(text) => Value::Number(text),
            Kind::String(text) => Value::String(text),
            Kind::List(items) => Value::List(items.into_iter().map(Tree::into_value).collect()),
            Kind::Map(members) => Value::Map(
                members
                    .into_iter()
                    .map(|(key, tree)| (key.name, tree.into_value()))
                    .collect(),
            ),
        }
    }

    /// What stands here, for error messages.
    #[must_use]
    pub fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::Null => words::NULL,
            Kind::Bool(_) => words::BOOL,
            Kind::Number(_) => words::NUMBER,
            Kind::String(_) => words::TEXT,
            Kind::List(_) => words::LIST,
            Kind::Map(_) => words::OBJECT,
        }
    }
}

impl Serialize for Tree {
    /// As the value without its places.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.kind {
            Kind::Null => serializer.serialize_unit(),
            Kind::Bool(value) => serializer.serialize_bool(*value),
            Kind::Number(text) => serialize_number(text, serializer),
            Kind::String(text) => serializer.serialize_str(text),
            Kind::List(items) => serializer.collect_seq(items),
            Kind::Map(members) => {
                serializer.collect_map(members.iter().map(|(key, tree)| (&key.name, tree)))
            }
        }
    }
}

/// A number as it was written; `serde_json` only.
fn serialize_number<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    RawValue::from_string(text.to_owned())
        .map_err(S::Error::custom)?
        .serialize(serializer)
}

impl From<&Value> for Tree {
    /// A tree without places, for objects that come from an API and not from a text.
    fn from(value: &Value) -> Self {
        let kind = match value {
            Value::Null => Kind::Null,
            Value::Bool(value) => Kind::Bool(*value),
            Value::Number(text) => Kind::Number(text.clone()),
            Value::String(text) => Kind::String(text.clone()),
            Value::List(items) => Kind::List(items.iter().map(Tree::from).collect()),
            Value::Map(members) => Kind::Map(
                members
                    .iter()
                    .map(|(name, value)| {
                        let key = Key {
                            at: Place::NONE,
                            name: name.clone(),
                        };
                        (key, Tree::from(value))
                    })
                    .collect(),
            ),
        };
        Self {
            at: Place::NONE,
            kind,
        }
    }
}

/// One thing that is wrong with an input: where, and what was expected instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The place in the text, where there is one.
    pub at: Place,
    /// The way to the value from the top, as `b.prev_nodes[0]`; empty at the top.
    pub path: String,
    /// What is wrong and what was expected.
    pub message: String,
    /// Whether the input, or what it means, is larger than allowed.
    pub too_large: bool,
}

impl Problem {
    /// A problem of the text itself, before it has any structure to name.
    #[must_use]
    pub fn in_text(at: Place, message: impl Into<String>) -> Self {
        Self {
            at,
            path: String::new(),
            message: message.into(),
            too_large: false,
        }
    }

    /// The problem of an input that is larger than allowed, or means more than allowed.
    #[must_use]
    pub fn too_large(at: Place, message: impl Into<String>) -> Self {
        Self {
            too_large: true,
            ..Self::in_text(at, message)
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.at.line > 0 {
            write!(f, "{}:{}: ", self.at.line, self.at.column)?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// All that is wrong with one input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    /// The file or object that the problems are in.
    pub source: String,
    /// The problems in the order of their places; never empty.
    pub list: Vec<Problem>,
}

impl Problems {
    /// Puts the name of the input to its problems, in the order of their places.
    #[must_use]
    pub fn new(source: impl Into<String>, mut list: Vec<Problem>) -> Self {
        list.sort_by_key(|problem| problem.at);
        if let Some(more) = list
            .len()
            .checked_sub(MAX_PROBLEMS)
            .filter(|more| *more > 0)
        {
            let too_large = list.iter().any(|problem| problem.too_large);
            list.truncate(MAX_PROBLEMS);
            let at = list.last().map_or(Place::NONE, |problem| problem.at);
            let mut rest = Problem::in_text(at, format!("and {more} more problems"));
            rest.too_large = too_large;
            list.push(rest);
        }
        Self {
            source: source.into(),
            list,
        }
    }

    /// Whether the input, or what it means, is larger than allowed.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        self.list.iter().any(|problem| problem.too_large)
    }
}

impl fmt::Display for Problems {
    /// A line a problem, each with the name of the input in front.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.list.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            if problem.at.line > 0 {
                write!(f, "{}:{problem}", self.source)?;
            } else {
                write!(f, "{}: {problem}", self.source)?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// How a text is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// JSON.
    Json,
    /// YAML 1.2.
    Yaml,
}

impl Format {
    /// By the ending of the file's name, else by the first character: a text that begins with
    /// `{` or `[` is JSON.
    #[must_use]
    pub fn of(file_name: &str, text: &str) -> Self {
        let ending = file_name.rsplit_once('.').map(|(_, ending)| ending);
        match ending {
            Some("json") => Self::Json,
            Some("yaml" | "yml") => Self::Yaml,
            _ if text
                .trim_start_matches('\u{feff}')
                .trim_start()
                .starts_with(['{', '[']) =>
            {
                Self::Json
            }
            _ => Self::Yaml,
        }
    }
}

/// How many values may still be read. One budget can serve several texts.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    most: usize,
    left: usize,
}

impl Budget {
    /// So many values in all.
    #[must_use]
    pub fn of(values: usize) -> Self {
        Self {
            most: values,
            left: values,
        }
    }

    /// Takes some values away; an error where there are not so many left.
    fn take(&mut self, values: usize, at: Place) -> Result<(), Problem> {
        match self.left.checked_sub(values) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(Problem::too_large(
                at,
                format!("more than {} values; expected fewer", self.most),
            )),
        }
    }
}

/// Reads JSON or YAML of at most [`MAX_VALUES`] values. `dialect` says whether bare `$name` may
/// stand for a value in JSON.
pub fn read(text: &str, format: Format, dialect: json::Dialect) -> Result<Tree, Vec<Problem>> {
    read_within(text, format, dialect, &mut Budget::of(MAX_VALUES))
}

/// Reads JSON or YAML, and no more values than `budget` has left.
pub fn read_within(
    text: &str,
    format: Format,
    dialect: json::Dialect,
    budget: &mut Budget,
) -> Result<Tree, Vec<Problem>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim().is_empty() {
        let start = Place { line: 1, column: 1 };
        return Err(vec![Problem::in_text(
            start,
            "the text is empty; expected JSON or YAML",
        )]);
    }
    match format {
        Format::Json => json::read_within(text, dialect, budget),
        Format::Yaml => yaml::read_within(text, budget),
    }
}
