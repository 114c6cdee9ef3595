//! A tree → [`Spec`]: every field into its own type, every problem with its place.
//!
//! Goes on after a problem, so that an author sees all of them at once; what could not be
//! parsed is left out of the spec that comes back beside the problems.
//!
//! Must not check edges between nodes: that is the graph's part.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::engine::expr::Expr;
use crate::engine::name::NodeName;
use crate::engine::spec::{Action, Api, Cmd, EnvText, Node, Placed, Spec};
use crate::value::{Key, Kind, MAX_PROBLEMS, Place, Problem, Tree, Value};

use super::fill::{self, Filler};
use super::{Filling, Limits, Named, duration, shown};

/// Parses a template's tree.
pub(super) fn spec(tree: &Tree, filling: Filling<'_>, limits: Limits) -> Parsed {
    let mut parser = Parser {
        filling,
        filler: Filler::new(filling, limits),
        is_full: false,
        problems: Vec::new(),
        left_out: BTreeSet::new(),
    };
    let spec = parser.spec(tree);
    Parsed {
        spec,
        problems: parser.problems,
        left_out: parser.left_out,
    }
}

/// What parsing gives.
pub(super) struct Parsed {
    /// What could be parsed.
    pub spec: Spec,
    /// What was wrong with the rest.
    pub problems: Vec<Problem>,
    /// The nodes that are not in the spec because something is wrong with them.
    pub left_out: BTreeSet<String>,
}

type Members = [(Key, Tree)];

fn member<'a>(members: &'a Members, name: &str) -> Option<&'a Tree> {
    members
        .iter()
        .find(|(key, _)| key.name == name)
        .map(|(_, tree)| tree)
}

/// `{"param": {nodes}, "decision_expr": "…"}`, and not a flat map with one node named `param`.
fn wrapped(members: &Members) -> Option<&Members> {
    let known = |key: &Key| key.name == "param" || key.name == "decision_expr";
    if !members.iter().all(|(key, _)| known(key)) {
        return None;
    }
    let Kind::Map(nodes) = &member(members, "param")?.kind else {
        return None;
    };
    let is_node = member(nodes, "action")
        .is_some_and(|action| matches!(&action.kind, Kind::Map(action) if matches!(member(action, "type"), Some(Tree { kind: Kind::String(_), .. }))));
    (!is_node).then_some(nodes)
}

/// Names that are no parameters, and where they stand; not more than are shown.
#[derive(Default)]
struct Unknown(Vec<(Place, String)>);

impl Unknown {
    fn add(&mut self, at: Place, name: &str) {
        if self.0.len() <= MAX_PROBLEMS {
            self.0.push((at, name.to_owned()));
        }
    }
}

struct Parser<'a> {
    filling: Filling<'a>,
    filler: Filler<'a>,
    /// Whether more was to be filled in than may be. Nothing more is looked at.
    is_full: bool,
    problems: Vec<Problem>,
    left_out: BTreeSet<String>,
}

impl Parser<'_> {
    fn problem(&mut self, at: Place, path: &str, message: impl Into<String>) {
        // No more are shown, and there may be one for each value. What is full is not filled.
        if self.is_full || self.problems.len() > MAX_PROBLEMS {
            return;
        }
        let problem = Problem::in_text(at, message);
        let path = path.to_owned();
        self.problems.push(Problem { path, ..problem });
    }

    /// Says that too much was to be filled in, where it was.
    fn note_size(&mut self, at: Place, path: &str) {
        if let Some(exceeded) = self.filler.exceeded()
            && !self.is_full
        {
            let problem = Problem::too_large(at, exceeded.to_string());
            let path = path.to_owned();
            self.problems.push(Problem { path, ..problem });
            self.is_full = true;
        }
    }

    fn wrong_kind(&mut self, tree: &Tree, path: &str, expected: &str) {
        let message = format!("found {}; expected {expected}", tree.kind_name());
        self.problem(tree.at, path, message);
    }

    /// Fills a value by the general rule; a name that is no parameter is a problem.
    fn fill(&mut self, tree: &Tree, path: &str) -> Tree {
        let mut unknown = Unknown::default();
        let filled = self
            .filler
            .value(tree, &mut |at, name| unknown.add(at, name));
        self.note_size(tree.at, path);
        self.note_unknown(unknown, path);
        filled
    }

    /// The same without the places.
    fn fill_plain(&mut self, tree: &Tree, path: &str) -> Value {
        let mut unknown = Unknown::default();
        let filled = self
            .filler
            .plain(tree, &mut |at, name| unknown.add(at, name));
        self.note_size(tree.at, path);
        self.note_unknown(unknown, path);
        filled
    }

    fn note_unknown(&mut self, unknown: Unknown, path: &str) {
        for (at, name) in unknown.0 {
            let message = format!(
                "there is no parameter `{}`; {}",
                shown(&name),
                self.parameters()
            );
            self.problem(at, path, message);
        }
    }

    fn parameters(&self) -> String {
        const SHOWN: usize = 20;
        let names = self.filling.names();
        let more = names.len() > SHOWN;
        // A name may be of any length.
        let mut names: Vec<String> = names.into_iter().take(SHOWN).map(shown).collect();
        if more {
            names.push("…".to_owned());
        }
        if names.is_empty() {
            "no parameters are given".to_owned()
        } else {
            format!("the parameters are {}", names.join(", "))
        }
    }

    /// Whether a value hangs on a parameter that comes later, and so cannot be checked now.
    fn open(&self, tree: &Tree) -> bool {
        let is_later = |piece: &fill::Piece| match piece {
            fill::Piece::Name { name, .. } => matches!(self.filler.find(name), Named::Later),
            fill::Piece::Literal(_) => false,
        };
        matches!(&tree.kind, Kind::String(text) if fill::pieces(text).iter().any(is_later))
    }

    fn spec(&mut self, tree: &Tree) -> Spec {
        let empty = Spec {
            nodes: Vec::new(),
            decision_expr: None,
        };
        let Kind::Map(top) = &tree.kind else {
            self.wrong_kind(tree, "", "an object of nodes");
            return empty;
        };
        let (nodes, decision_expr) = match wrapped(top) {
            Some(nodes) => {
                let expr = member(top, "decision_expr");
                (
                    nodes,
                    expr.and_then(|expr| self.expr(expr, "decision_expr")),
                )
            }
            None => (top.as_slice(), None),
        };
        if nodes.is_empty() {
            self.problem(tree.at, "", "there are no nodes; expected at least one");
        }
        let mut parsed = Vec::with_capacity(nodes.len());
        for (key, tree) in nodes {
            if self.is_full {
                break;
            }
            self.filler.next_node();
            match self.node(key, tree) {
                Some(node) => parsed.push(node),
                None => {
                    self.left_out.insert(key.name.clone());
                }
            }
        }
        Spec {
            nodes: parsed,
            decision_expr,
        }
    }

    fn node(&mut self, key: &Key, tree: &Tree) -> Option<Node> {
        let name: Option<NodeName> = match key.name.parse() {
            Ok(name) => Some(name),
            Err(error) => {
                let message = format!("{error}");
                self.problem(key.at, "", message);
                None
            }
        };
        let path = name
            .as_ref()
            .map_or_else(|| "(unnamed)".to_owned(), ToString::to_string);
        let Kind::Map(members) = &tree.kind else {
            self.wrong_kind(tree, &path, "an object with `action` (a node)");
            return None;
        };
        self.known_fields(
            members,
            &path,
            &[
                "id",
                "prev_nodes",
                "action",
                "param",
                "decision_expr",
                "timeout",
            ],
        );
        let field =
            |name: &str| member(members, name).filter(|tree| !matches!(tree.kind, Kind::Null));
        let id = field("id").and_then(|id| self.id(id, &format!("{path}.id")));
        let prev_nodes = field("prev_nodes")
            .map(|prev| self.prev_nodes(prev, &format!("{path}.prev_nodes")))
            .unwrap_or_default();
        let param = field("param")
            .map(|param| self.param(param, &format!("{path}.param")))
            .unwrap_or_default();
        let decision_expr = field("decision_expr")
            .and_then(|expr| self.expr(expr, &format!("{path}.decision_expr")));
        let timeout =
            field("timeout").and_then(|limit| self.timeout(limit, &format!("{path}.timeout")));
        let action = if let Some(action) = field("action") {
            self.action(action, &format!("{path}.action"))
        } else {
            let message = "`action` is missing; expected {\"type\": \"cmd\", \"cmd\": …} or {\"type\": \"api\", \"module\": …, \"function\": …}";
            self.problem(key.at, &path, message);
            None
        };
        // A node with a bad action stays in the spec, so that its edges are checked all the
        // same; beside a problem, no spec ever runs.
        let (action, action_shown) = action.unwrap_or_else(|| {
            let none = Cmd {
                program: EnvText::default(),
                args: Vec::new(),
                env: Vec::new(),
            };
            (Action::Cmd(none), Value::Null)
        });
        if matches!(action, Action::Cmd(_)) {
            self.check_options(field("param"), &param, &format!("{path}.param"));
        }
        Some(Node {
            name: name?,
            at: key.at,
            id,
            prev_nodes,
            action,
            action_shown,
            param,
            decision_expr,
            timeout,
        })
    }

    /// A parameter's name becomes an option of a command, so it may not be cut or empty.
    fn check_options(&mut self, tree: Option<&Tree>, param: &[(String, Value)], path: &str) {
        for (name, _) in param {
            let cut = name.contains(['=', '\0']) || name.contains(char::is_whitespace);
            if cut || name.is_empty() || name.starts_with('-') {
                // The names may come from a parameter, and then have no place of their own.
                let at = match tree {
                    Some(Tree {
                        kind: Kind::Map(members),
                        at,
                    }) => members
                        .iter()
                        .find(|(key, _)| key.name == *name)
                        .map_or(*at, |(key, _)| key.at),
                    other => other.map_or(Place::NONE, |tree| tree.at),
                };
                let message = format!(
                    "`{name}` cannot be an option of a command; expected a name without leading -, =, or space"
                );
                self.problem(at, path, message);
            }
        }
    }

    fn known_fields(&mut self, members: &Members, path: &str, known: &[&str]) {
        for (key, _) in members {
            if !known.contains(&key.name.as_str()) {
                let message = format!(
                    "there is no field `{}`; expected {}",
                    key.name,
                    known.join(", ")
                );
                self.problem(key.at, path, message);
            }
        }
    }

    fn id(&mut self, tree: &Tree, path: &str) -> Option<Placed<Value>> {
        let tree = self.fill(tree, path);
        let at = tree.at;
        if matches!(tree.kind, Kind::Number(_) | Kind::String(_)) {
            return Some(Placed {
                at,
                it: tree.into_value(),
            });
        }
        self.wrong_kind(&tree, path, "a number or a text");
        None
    }

    fn prev_nodes(&mut self, tree: &Tree, path: &str) -> Vec<Placed<NodeName>> {
        if self.open(tree) {
            return Vec::new();
        }
        let tree = self.fill(tree, path);
        let Kind::List(items) = &tree.kind else {
            self.wrong_kind(&tree, path, "a list of node names");
            return Vec::new();
        };
        let mut names = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let path = format!("{path}[{index}]");
            let Kind::String(text) = &item.kind else {
                self.wrong_kind(item, &path, "a node's name");
                continue;
            };
            match text.parse() {
                Ok(it) => names.push(Placed { at: item.at, it }),
                Err(error) => self.problem(item.at, &path, format!("{error}")),
            }
        }
        names
    }

    fn param(&mut self, tree: &Tree, path: &str) -> Vec<(String, Value)> {
        match self.fill_plain(tree, path) {
            Value::Map(members) => members,
            Value::String(_) if self.open(tree) => Vec::new(),
            other => {
                let message = format!("found {}; expected an object of parameters", other.kind());
                self.problem(tree.at, path, message);
                Vec::new()
            }
        }
    }

    fn expr(&mut self, tree: &Tree, path: &str) -> Option<Placed<Expr>> {
        if self.open(tree) || matches!(tree.kind, Kind::Null) {
            return None;
        }
        if !self.splices_integers_only(tree, path) {
            return None;
        }
        let Kind::String(text) = self.fill(tree, path).kind else {
            self.wrong_kind(tree, path, "an expression as a text");
            return None;
        };
        if !self.filler.take_expr(&text) {
            self.note_size(tree.at, path);
            return None;
        }
        match Expr::parse(&text) {
            Ok(it) => Some(Placed { at: tree.at, it }),
            Err(error) => {
                let shown: String = text.chars().take(80).collect();
                self.problem(tree.at, path, format!("in `{shown}`: {error}"));
                None
            }
        }
    }

    /// A value must not become structure, in an expression as anywhere: beside other text only
    /// an integer may be filled in. (A parameter that is the whole expression is the author's
    /// choice.)
    fn splices_integers_only(&mut self, tree: &Tree, path: &str) -> bool {
        let Kind::String(text) = &tree.kind else {
            return true;
        };
        let pieces = fill::pieces(text);
        if pieces.len() < 2 {
            return true;
        }
        let integer = |value: &Value| matches!(value, Value::Number(text) if text.bytes().all(|byte| byte.is_ascii_digit()));
        let mut fine = true;
        for piece in &pieces {
            if let fill::Piece::Name { name, .. } = piece
                && matches!(self.filler.find(name), Named::Value(_, value) if !integer(value))
            {
                let message = format!(
                    "the parameter `{}` stands inside an expression; expected an integer",
                    shown(name)
                );
                self.problem(tree.at, path, message);
                fine = false;
            }
        }
        fine
    }

    fn timeout(&mut self, tree: &Tree, path: &str) -> Option<Duration> {
        if self.open(tree) {
            return None;
        }
        let tree = self.fill(tree, path);
        let (Kind::String(text) | Kind::Number(text)) = &tree.kind else {
            self.wrong_kind(&tree, path, "seconds, or a text as 30s, 5m, 1h30m");
            return None;
        };
        match duration(text) {
            Ok(length) => Some(length),
            Err(message) => {
                self.problem(tree.at, path, message);
                None
            }
        }
    }

    fn action(&mut self, tree: &Tree, path: &str) -> Option<(Action, Value)> {
        let Kind::Map(members) = &tree.kind else {
            self.wrong_kind(tree, path, "an object with `type`");
            return None;
        };
        let kind = self.text(members, tree.at, "type", path)?;
        let action = match kind.as_str() {
            "cmd" => {
                self.known_fields(members, path, &["type", "cmd", "env", "executor"]);
                self.cmd(members, tree.at, path).map(Action::Cmd)
            }
            "api" => {
                self.known_fields(
                    members,
                    path,
                    &["type", "module", "function", "path", "env", "executor"],
                );
                self.api(members, tree.at, path).map(Action::Api)
            }
            other => {
                let at = member(members, "type").map_or(tree.at, |tree| tree.at);
                let message = format!("there is no action `{other}`; expected cmd or api");
                self.problem(at, &format!("{path}.type"), message);
                None
            }
        };
        self.executor(members, path);
        // What is no parameter here is the environment's, or was reported.
        let filled = self.filler.plain(tree, &mut |_, _: &str| {});
        self.note_size(tree.at, path);
        Some((action?, filled))
    }

    /// A text field that must be there, filled.
    fn text(&mut self, members: &Members, at: Place, name: &str, path: &str) -> Option<String> {
        let Some(tree) = member(members, name) else {
            self.problem(at, path, format!("`{name}` is missing; expected a text"));
            return None;
        };
        let path = format!("{path}.{name}");
        match self.fill(tree, &path).kind {
            Kind::String(text) if !text.is_empty() => Some(text),
            Kind::String(_) => {
                self.problem(tree.at, &path, "the text is empty");
                None
            }
            _ => {
                self.wrong_kind(tree, &path, "a text");
                None
            }
        }
    }

    fn cmd(&mut self, members: &Members, at: Place, path: &str) -> Option<Cmd> {
        let env = self.env(members, path);
        let Some(tree) = member(members, "cmd") else {
            self.problem(
                at,
                path,
                "`cmd` is missing; expected a command line or a list of words",
            );
            return None;
        };
        let path = format!("{path}.cmd");
        let words = match &tree.kind {
            Kind::String(text) => match fill::words(text, &mut self.filler) {
                Ok(words) => {
                    self.note_size(tree.at, &path);
                    words
                }
                Err(message) => {
                    self.problem(tree.at, &path, message);
                    return None;
                }
            },
            Kind::List(items) => {
                let mut words = Vec::new();
                for (index, item) in items.iter().enumerate() {
                    words.push(self.env_text(item, &format!("{path}[{index}]"))?);
                }
                words
            }
            _ => {
                self.wrong_kind(tree, &path, "a command line or a list of words");
                return None;
            }
        };
        let mut words = words.into_iter();
        let Some(program) = words.next() else {
            self.problem(tree.at, &path, "the command is empty; expected a program");
            return None;
        };
        Some(Cmd {
            program,
            args: words.collect(),
            env,
        })
    }

    fn api(&mut self, members: &Members, at: Place, path: &str) -> Option<Api> {
        let env = self.env(members, path);
        let module = self.text(members, at, "module", path);
        let function = self.text(members, at, "function", path);
        let mut folders = Vec::new();
        if let Some(tree) = member(members, "path") {
            let path = format!("{path}.path");
            match &tree.kind {
                Kind::List(items) => {
                    for (index, item) in items.iter().enumerate() {
                        folders.extend(self.env_text(item, &format!("{path}[{index}]")));
                    }
                }
                Kind::String(_) => folders.extend(self.env_text(tree, &path)),
                Kind::Null => {}
                _ => self.wrong_kind(tree, &path, "a list of folders"),
            }
        }
        Some(Api {
            module: module?,
            function: function?,
            path: folders,
            env,
        })
    }

    /// What is to carry out the node in a cluster; the engine has no use for it. It must not hang
    /// on a parameter: who may run processes is asked of the template's author.
    fn executor(&mut self, members: &Members, path: &str) {
        let Some(tree) = member(members, "executor") else {
            return;
        };
        let word = match &tree.kind {
            Kind::String(text) => text.as_str(),
            _ => "",
        };
        if !matches!(word, "pod" | "process") {
            let message = "expected pod or process".to_owned();
            self.problem(tree.at, &format!("{path}.executor"), message);
        }
    }

    fn env(&mut self, members: &Members, path: &str) -> Vec<(String, EnvText)> {
        let path = format!("{path}.env");
        let entries = match member(members, "env") {
            None
            | Some(Tree {
                kind: Kind::Null, ..
            }) => return Vec::new(),
            Some(Tree {
                kind: Kind::Map(entries),
                ..
            }) => entries,
            Some(other) => {
                self.wrong_kind(other, &path, "an object of environment variables");
                return Vec::new();
            }
        };
        let mut env = Vec::new();
        for (key, tree) in entries {
            if key.name.is_empty() || key.name.contains(['=', '\0']) {
                let message = format!(
                    "`{}` cannot be the name of an environment variable",
                    key.name
                );
                self.problem(key.at, &path, message);
            } else if let Some(text) = self.env_text(tree, &format!("{path}.{}", key.name)) {
                env.push((key.name.clone(), text));
            }
        }
        env
    }

    /// A text that the environment of the node's machine completes.
    fn env_text(&mut self, tree: &Tree, path: &str) -> Option<EnvText> {
        match &tree.kind {
            Kind::String(text) => {
                let text = self.filler.env_text(text);
                self.note_size(tree.at, path);
                Some(text)
            }
            Kind::Number(text) => Some(EnvText::literal(text)),
            Kind::Bool(value) => Some(EnvText::literal(value.to_string())),
            _ => {
                self.wrong_kind(tree, path, "a text");
                None
            }
        }
    }
}
