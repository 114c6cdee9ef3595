//! The one rule of parameters, and how much they may become.
//!
//! A value that is exactly `$name` or `${name}` is that parameter, typed. Inside a longer text
//! it is spliced as text. `$$` is `$`; any other `$` is itself. Filling happens on the parsed
//! tree, so a value can never become structure.
//!
//! Must not know fields: who calls decides which rule a field has.

use std::collections::BTreeMap;
use std::fmt;

use crate::engine::expr::Expr;
use crate::engine::spec::{EnvPart, EnvText};
use crate::value::{Kind, Place, Tree, Value};

use super::{Filling, Limits, Named, shown};

/// A piece of a text that may name parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Stands as it is.
    Literal(String),
    /// A name after a `$`, and the whole as it is written.
    Name { name: String, written: String },
}

/// A text with its parameters.
enum Filled<'a> {
    /// It is this parameter, and no more.
    Param(&'a Value),
    Text(String),
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

/// What a value takes: as JSON, and in memory. In bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Size {
    json: usize,
    memory: usize,
}

/// Memory of a value beside its text, in bytes: the value, and what an allocation takes.
const VALUE: usize = 64;
/// Memory of a part of a command's word, or of an environment text, beside its text.
const PART: usize = 128;

impl Size {
    fn text(bytes: usize) -> Self {
        Self {
            json: bytes + 2,
            memory: bytes + VALUE,
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            json: self.json.saturating_add(other.json),
            memory: self.memory.saturating_add(other.memory),
        }
    }

    /// The size of a value; what is in a list or map is looked through.
    fn of(value: &Value) -> Self {
        match value {
            Value::Null | Value::Bool(_) => Self::text(2),
            Value::Number(text) | Value::String(text) => Self::text(text.len()),
            Value::List(items) => items.iter().map(Self::of).fold(Self::text(0), Self::plus),
            Value::Map(members) => members
                .iter()
                .map(|(name, value)| Self::text(name.len()).plus(Self::of(value)))
                .fold(Self::text(0), Self::plus),
        }
    }
}

/// More than may be filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Exceeded {
    /// The parameter that was too much, and its size in bytes; none: the author's own text.
    param: Option<(String, usize)>,
    /// What would have become too large.
    whole: &'static str,
    limit: usize,
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            param,
            whole,
            limit,
        } = self;
        match param {
            Some((name, size)) => write!(f, "with the parameter `{name}` ({size} bytes) here, ")?,
            None => f.write_str("with this text, ")?,
        }
        write!(
            f,
            "{whole} take more than {limit} bytes; expected less. Put large values into a file \
             beside the template and fill in its name"
        )
    }
}

/// Fills in parameters, and counts what that takes before it takes it: a parameter can be put
/// into any number of places.
pub(super) struct Filler<'a> {
    filling: Filling<'a>,
    limits: Limits,
    /// JSON of the parameters in the node that is being filled, in bytes.
    node: usize,
    /// Memory of all nodes, in bytes.
    run: usize,
    /// Lists and maps that were filled in before: their size and, once it was needed, their text.
    known: BTreeMap<&'a str, (Size, Option<String>)>,
    exceeded: Option<Exceeded>,
}

impl<'a> Filler<'a> {
    pub(super) fn new(filling: Filling<'a>, limits: Limits) -> Self {
        Self {
            filling,
            limits,
            node: 0,
            run: 0,
            known: BTreeMap::new(),
            exceeded: None,
        }
    }

    /// What a name stands for.
    pub(super) fn find(&self, name: &str) -> Named<'a> {
        self.filling.find(name)
    }

    /// A node begins.
    pub(super) fn next_node(&mut self) {
        self.node = 0;
    }

    /// What was too much, once.
    pub(super) fn exceeded(&mut self) -> Option<Exceeded> {
        self.exceeded.take()
    }

    /// Counts an expression's text, before it is compiled.
    pub(super) fn take_expr(&mut self, text: &str) -> bool {
        let memory = text.len().saturating_mul(2 * Expr::MEMORY);
        self.take(None, Size { json: 0, memory })
    }

    /// Counts a part of a word, where the author wrote it: as a text it has a bound already.
    fn take_part(&mut self, text: &str) -> bool {
        let memory = text.len() + PART;
        self.take(None, Size { json: 0, memory })
    }

    fn take(&mut self, param: Option<(&str, Size)>, size: Size) -> bool {
        let node = self.node.saturating_add(size.json);
        let run = self.run.saturating_add(size.memory);
        let (whole, limit) = if node > self.limits.node {
            ("the parameters of this node", self.limits.node)
        } else if run > self.limits.run {
            ("the nodes of the run together", self.limits.run)
        } else {
            (self.node, self.run) = (node, run);
            return true;
        };
        let param = param.map(|(name, size)| (shown(name), size.json));
        self.exceeded.get_or_insert(Exceeded {
            param,
            whole,
            limit,
        });
        false
    }

    /// Counts a parameter's value, before it is copied.
    fn take_param(&mut self, name: &'a str, value: &'a Value) -> bool {
        let size = match value {
            Value::List(_) | Value::Map(_) => {
                self.known
                    .entry(name)
                    .or_insert_with(|| (Size::of(value), None))
                    .0
            }
            small => Size::of(small),
        };
        self.take(Some((name, size)), size)
    }

    /// Puts a parameter's value into a text, where there is room for it.
    fn splice(&mut self, name: &'a str, value: &'a Value, text: &mut String) {
        if let Value::String(value) = value {
            let size = Size::text(value.len());
            if self.take(Some((name, size)), size) {
                text.push_str(value);
            }
        } else if self.take_param(name, value) {
            let known = self.known.entry(name).or_default();
            text.push_str(known.1.get_or_insert_with(|| value.to_plain_text()));
        }
    }

    /// Fills a value and all in it. `unknown` is told of each name that is no parameter.
    pub(super) fn value(&mut self, tree: &Tree, unknown: &mut impl FnMut(Place, &str)) -> Tree {
        let at = tree.at;
        let kind = match &tree.kind {
            Kind::String(written) => match self.text(written, at, unknown) {
                Filled::Param(value) => Tree::from(value).kind,
                Filled::Text(text) => Kind::String(text),
            },
            Kind::List(items) => {
                Kind::List(items.iter().map(|item| self.value(item, unknown)).collect())
            }
            Kind::Map(members) => Kind::Map(
                members
                    .iter()
                    .map(|(key, member)| (key.clone(), self.value(member, unknown)))
                    .collect(),
            ),
            other => other.clone(),
        };
        Tree { at, kind }
    }

    /// The same without the places, so that nothing is held twice.
    pub(super) fn plain(&mut self, tree: &Tree, unknown: &mut impl FnMut(Place, &str)) -> Value {
        match &tree.kind {
            Kind::String(written) => match self.text(written, tree.at, unknown) {
                Filled::Param(value) => value.clone(),
                Filled::Text(text) => Value::String(text),
            },
            Kind::Null => Value::Null,
            Kind::Bool(value) => Value::Bool(*value),
            Kind::Number(text) => Value::Number(text.clone()),
            Kind::List(items) => {
                Value::List(items.iter().map(|item| self.plain(item, unknown)).collect())
            }
            Kind::Map(members) => Value::Map(
                members
                    .iter()
                    .map(|(key, member)| (key.name.clone(), self.plain(member, unknown)))
                    .collect(),
            ),
        }
    }

    fn text(
        &mut self,
        written: &str,
        at: Place,
        unknown: &mut impl FnMut(Place, &str),
    ) -> Filled<'a> {
        if !written.contains('$') {
            return Filled::Text(written.to_owned());
        }
        let pieces = pieces(written);
        if let [Piece::Name { name, .. }] = pieces.as_slice()
            && let Named::Value(name, value) = self.find(name)
        {
            return if self.take_param(name, value) {
                Filled::Param(value)
            } else {
                Filled::Text(String::new())
            };
        }
        let mut filled = String::new();
        let mut is_open = false;
        for piece in &pieces {
            match piece {
                Piece::Literal(literal) => filled.push_str(literal),
                Piece::Name { name, written } => match self.find(name) {
                    Named::Value(name, value) => self.splice(name, value, &mut filled),
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
            return Filled::Text(written.to_owned());
        }
        Filled::Text(filled)
    }

    /// The part for a name where the environment may answer: a parameter's value as it is, else
    /// the variable of that name.
    fn env_part(&mut self, name: &str) -> EnvPart {
        if !self.take_part(name) {
            return EnvPart::Literal(String::new());
        }
        match self.find(name) {
            Named::Value(name, value) => {
                let mut text = String::new();
                self.splice(name, value, &mut text);
                EnvPart::Literal(text)
            }
            Named::Later | Named::Nothing => EnvPart::Variable(name.to_owned()),
        }
    }

    /// A text in which names that are no parameters are left to the environment, and a leading
    /// `~` to `HOME`.
    pub(super) fn env_text(&mut self, written: &str) -> EnvText {
        let mut parts = Vec::with_capacity(1);
        for piece in pieces(written) {
            match piece {
                Piece::Name { name, .. } => parts.push(self.env_part(&name)),
                Piece::Literal(literal) => {
                    if !self.take_part(&literal) {
                        break;
                    }
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
            if self.exceeded.is_some() {
                break;
            }
        }
        EnvText { parts }
    }
}

/// Cuts a command line into words by a shell's quoting (`'…'`, `"…"`, `\`), without a shell.
/// Only what the author wrote is cut: a parameter's value stays in its word whatever it holds.
pub(super) fn words(written: &str, filler: &mut Filler<'_>) -> Result<Vec<EnvText>, &'static str> {
    let mut words = Vec::new();
    // None between words: '' is a word, and nothing is not.
    let mut word: Option<Vec<EnvPart>> = None;
    let mut quote: Option<char> = None;
    for piece in pieces(written) {
        let literal = match piece {
            Piece::Name { name, .. } => {
                word.get_or_insert_default().push(filler.env_part(&name));
                if filler.exceeded.is_some() {
                    return Ok(words);
                }
                continue;
            }
            Piece::Literal(literal) => literal,
        };
        if !filler.take_part(&literal) {
            return Ok(words);
        }
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
                    if let Some(mut parts) = word.take() {
                        // Each word counts as a part: a command may have a million of one letter.
                        if !filler.take_part("") {
                            return Ok(words);
                        }
                        parts.shrink_to_fit();
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

#[cfg(test)]
mod tests {
    use super::super::{Params, Template};
    use super::*;

    const LIMITS: Limits = Limits {
        values: 1_000,
        node: 2_000,
        run: 20_000,
    };

    fn problem(template: &str, params: &Params) -> String {
        let template = Template::read_within("t", template, LIMITS).unwrap();
        let problems = template.graph(Filling::With(params)).unwrap_err();
        assert!(problems.is_too_large(), "{problems}");
        assert_eq!(problems.list.len(), 1, "one clear error: {problems}");
        problems.to_string()
    }

    fn params(value: Value) -> Params {
        Params::from([("big".to_owned(), value)])
    }

    #[test]
    fn parameter_beyond_a_node_is_named() {
        let text = Value::from("x".repeat(1_500));
        for field in [
            r#""param": {"p": ["$big", "$big"]}, "action": {"type": "cmd", "cmd": "true"}"#,
            r#""param": {"p": "a $big b $big"}, "action": {"type": "cmd", "cmd": "true"}"#,
            r#""action": {"type": "cmd", "cmd": "true $big $big"}"#,
            r#""action": {"type": "cmd", "cmd": ["true", "$big", "$big"]}"#,
            r#""action": {"type": "cmd", "cmd": "true", "env": {"a": "$big", "b": "$big"}}"#,
            r#""action": {"type": "api", "module": "m", "function": "f", "path": ["$big", "$big"]}"#,
            r#""prev_nodes": ["$big", "$big"], "action": {"type": "cmd", "cmd": "true"}"#,
        ] {
            let said = problem(&format!("{{\"n\": {{{field}}}}}"), &params(text.clone()));
            assert!(
                said.contains("n.") && said.contains("`big` (1502 bytes) here, the parameters of"),
                "{field}: {said}"
            );
            assert!(said.contains("more than 2000 bytes"), "{said}");
        }
    }

    #[test]
    fn parameter_in_many_nodes_is_too_large() {
        let node = r#"{"param": {"p": "$big"}, "action": {"type": "cmd", "cmd": "true"}}"#;
        let nodes: Vec<String> = (0..20).map(|at| format!("\"n{at}\": {node}")).collect();
        let template = format!("{{{}}}", nodes.join(","));
        let list = Value::List(vec![Value::Null; 100]);
        for (value, nth) in [(Value::from("x".repeat(1_500)), 11), (list, 2)] {
            let said = problem(&template, &params(value));
            assert!(
                said.contains(&format!("n{nth}.param: with the parameter `big`")),
                "{said}"
            );
            assert!(
                said.contains("the nodes of the run together take more than 20000"),
                "{said}"
            );
        }
    }

    #[test]
    fn command_of_too_many_words_is_too_large() {
        let words = "a ".repeat(400);
        let template =
            format!("{{\"n\": {{\"action\": {{\"type\": \"cmd\", \"cmd\": \"{words}\"}}}}}}");
        let said = problem(&template, &Params::new());
        assert!(
            said.contains("n.action.cmd: with this text, the nodes"),
            "{said}"
        );
    }

    #[test]
    fn expression_of_too_many_names_is_too_large() {
        let expr = vec!["a"; 1_000].join("||");
        let template = format!(
            "{{\"a\": {{\"action\": {{\"type\": \"cmd\", \"cmd\": \"true\"}}, \"decision_expr\": \"{expr}\"}}}}"
        );
        let said = problem(&template, &Params::new());
        assert!(
            said.contains("a.decision_expr: with this text, the nodes"),
            "{said}"
        );
    }

    #[test]
    fn long_parameter_name_is_cut_in_every_error() {
        let params = Params::from([("n".repeat(100_000), Value::Null)]);
        let unknown = "$x ".repeat(300);
        let template = format!(
            "{{\"a\": {{\"action\": {{\"type\": \"cmd\", \"cmd\": \"true\"}}, \"param\": {{\"p\": \"{unknown}\"}}}}}}"
        );
        let template = Template::read("t", &template).unwrap();
        let problems = template.graph(Filling::With(&params)).unwrap_err();
        assert_eq!(problems.list.len(), 300);
        assert!(problems.to_string().len() < 60_000);
    }
}
