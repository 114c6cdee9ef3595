//! Text or object plus parameters → [`Spec`] → [`Graph`], or everything that is wrong with it.
//!
//! Two forms, both the original's: a flat map of nodes, and
//! `{"param": {nodes}, "decision_expr": "…"}` with a condition of the run's own. JSON (in which a
//! parameter may stand bare) and YAML are read into one tree, objects from an API are given as
//! one, and from there on there is one parser and one rule.
//!
//! Must not read files: it is given texts and the names to call them by.

mod fill;
mod parse;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::engine::graph::{EdgeError, Graph, GraphError};
use crate::engine::spec::Spec;
use crate::value::json::Dialect;
use crate::value::{
    Budget, Format, Kind, MAX_VALUES, Problem, Problems, Tree, Value, read, read_within,
};

use parse::Parsed;

/// Parameters by name.
pub type Params = BTreeMap<String, Value>;

/// How much a template may mean, wherever it is read and filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most values in its text: lists, maps and what is in them.
    pub values: usize,
    /// Most JSON of parameters in one node, in bytes.
    pub node: usize,
    /// Most memory of all nodes when they are filled in, in bytes; approximate.
    pub run: usize,
}

impl Limits {
    /// In a cluster, where one operator holds the runs of all namespaces. 25 values a node in a
    /// template of 20,000 nodes; a node as large as the runner's largest message (a pod takes
    /// 96 KiB, which is checked when it is made).
    pub const CLUSTER: Self = Self {
        values: 500_000,
        node: 8 * 1024 * 1024,
        run: 64 * 1024 * 1024,
    };
    /// On a person's own machine. Values are 40 a node in a template of 100,000 nodes; Linux takes
    /// no more than some megabytes of arguments.
    pub const LOCAL: Self = Self {
        values: MAX_VALUES,
        node: 64 * 1024 * 1024,
        run: 1024 * 1024 * 1024,
    };
}

/// A template that was read and whose parameters are not filled in.
#[derive(Clone, Debug)]
pub struct Template {
    source: String,
    tree: Tree,
    limits: Limits,
}

/// What stands for the parameters.
#[derive(Clone, Copy, Debug)]
pub enum Filling<'a> {
    /// These, and no others exist.
    With(&'a Params),
    /// They come later: a parameter stands for any value, and what hangs on one is not checked.
    Later,
    /// Some are known, some come later, and no others exist.
    Partly {
        /// Those with a value.
        known: &'a Params,
        /// The names of those that come later.
        later: &'a BTreeSet<String>,
    },
}

/// What a name stands for.
#[derive(Clone, Copy, Debug)]
enum Named<'a> {
    /// A parameter with this name and value.
    Value(&'a str, &'a Value),
    /// A parameter whose value comes later.
    Later,
    /// No parameter.
    Nothing,
}

impl<'a> Filling<'a> {
    fn find(self, name: &str) -> Named<'a> {
        let (known, is_later) = match self {
            Self::With(known) => (known, false),
            Self::Later => return Named::Later,
            Self::Partly { known, later } => (known, later.contains(name)),
        };
        match known.get_key_value(name) {
            Some((name, value)) => Named::Value(name, value),
            None if is_later => Named::Later,
            None => Named::Nothing,
        }
    }

    /// The names of all parameters that there are, sorted; none where any may come.
    fn names(self) -> Vec<&'a str> {
        let (known, later): (_, Option<&BTreeSet<String>>) = match self {
            Self::With(known) => (known, None),
            Self::Later => return Vec::new(),
            Self::Partly { known, later } => (known, Some(later)),
        };
        let names: BTreeSet<&str> = known
            .keys()
            .chain(later.into_iter().flatten())
            .map(String::as_str)
            .collect();
        names.into_iter().collect()
    }
}

impl Template {
    /// Reads a template within [`Limits::LOCAL`]; `source` names it in errors and tells JSON from
    /// YAML by its ending.
    pub fn read(source: &str, text: &str) -> Result<Self, Problems> {
        Self::read_within(source, text, Limits::LOCAL)
    }

    /// Reads a template that may not mean more than `limits`, neither now nor filled in.
    pub fn read_within(source: &str, text: &str, limits: Limits) -> Result<Self, Problems> {
        let mut values = Budget::of(limits.values);
        let format = Format::of(source, text);
        let tree = read_within(text, format, Dialect::Template, &mut values)
            .map_err(|list| Problems::new(source, list))?;
        Ok(Self {
            source: source.to_owned(),
            tree,
            limits,
        })
    }

    /// Takes a template that came as an object and not as a text; `source` names it in errors.
    #[must_use]
    pub fn from_value(source: &str, value: &Value) -> Self {
        Self {
            source: source.to_owned(),
            tree: Tree::from(value),
            limits: Limits::LOCAL,
        }
    }

    /// The same template, which may not mean more than `limits` when it is filled in.
    #[must_use]
    pub fn within(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// The SHA-256 of the content, in hexadecimal: of the template as compact JSON, keys in the
    /// order in which they stand. Spaces, comments, and whether it was JSON or YAML make no
    /// difference; the order of a command's options does.
    #[must_use]
    pub fn hash(&self) -> String {
        let mut hash = Hashing(Sha256::new());
        // Neither writing into a hash nor the tree can fail.
        let _ = serde_json::to_writer(&mut hash, &self.tree);
        let mut text = String::with_capacity(64);
        for byte in hash.0.finalize() {
            let _ = write!(text, "{byte:02x}");
        }
        text
    }

    /// Fills in the parameters and parses every field.
    pub fn spec(&self, filling: Filling<'_>) -> Result<Spec, Problems> {
        let parsed = parse::spec(&self.tree, filling, self.limits);
        if parsed.problems.is_empty() {
            Ok(parsed.spec)
        } else {
            Err(Problems::new(&self.source, parsed.problems))
        }
    }

    /// Fills, parses and proves runnable. All that is wrong is reported at once: fields and
    /// edges together.
    pub fn graph(&self, filling: Filling<'_>) -> Result<Graph, Problems> {
        let Parsed {
            spec,
            mut problems,
            left_out,
        } = parse::spec(&self.tree, filling, self.limits);
        if problems.iter().any(|problem| problem.too_large) {
            // The rest was not read.
            return Err(Problems::new(&self.source, problems));
        }
        match Graph::build(spec) {
            Ok(graph) if problems.is_empty() => return Ok(graph),
            Ok(_) => {}
            // A node with a mistake of its own is missed by others: only the mistake is told.
            Err(errors) => problems.extend(
                errors
                    .iter()
                    .filter(|error| match error {
                        GraphError::NoNodes => problems.is_empty(),
                        GraphError::Edge {
                            prev,
                            kind: EdgeError::Unknown { .. },
                            ..
                        } => !left_out.contains(prev.as_str()),
                        GraphError::ExpressionName {
                            name, known: false, ..
                        } => !left_out.contains(name),
                        _ => true,
                    })
                    .map(Problem::from)
                    .collect::<Vec<_>>(),
            ),
        }
        Err(Problems::new(&self.source, problems))
    }
}

/// A hash that is written to.
struct Hashing(Sha256);

impl std::io::Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A name for an error message: it may be of any length.
fn shown(name: &str) -> String {
    const LONGEST: usize = 63;
    match name.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", name.get(..end).unwrap_or_default()),
        None => name.to_owned(),
    }
}

/// Reads a parameter file: a JSON or YAML object.
pub fn read_params(source: &str, text: &str) -> Result<Params, Problems> {
    let tree = read(text, Format::of(source, text), Dialect::Strict)
        .map_err(|list| Problems::new(source, list))?;
    let found = tree.kind_name();
    let at = tree.at;
    if let Kind::Map(members) = tree.kind {
        Ok(members
            .into_iter()
            .map(|(key, value)| (key.name, value.into_value()))
            .collect())
    } else {
        let message = format!("found {found}; expected an object of parameters");
        Err(Problems::new(source, vec![Problem::in_text(at, message)]))
    }
}

/// A length of time as people write it: `90`, `1.5` (seconds), `30s`, `5m`, `1h 30m`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let expected =
        || format!("`{text}` is no length of time; expected seconds, or as 30s, 5m, 1h30m");
    let text = text.trim();
    let length = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|_| expected())?,
        Err(_) => text
            .parse::<jiff::SignedDuration>()
            .ok()
            .and_then(|length| Duration::try_from(length).ok())
            .ok_or_else(expected)?,
    };
    if length.is_zero() {
        return Err(format!("`{text}` is no time at all; expected more than 0"));
    }
    Ok(length)
}
