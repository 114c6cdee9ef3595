//! A template after its parameters are filled in, every field parsed into its own type.
//!
//! Nothing is left to check later but the edges between nodes, which is the graph's part.
//! Must not read the environment: texts that name environment variables keep them by name
//! ([`EnvText`]), because they are expanded on the machine that runs the node.

use std::ffi::{OsStr, OsString};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::expr::Expr;
use crate::engine::name::NodeName;
use crate::value::{Place, Value};

/// A whole workflow, ready to be made a graph.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The nodes in written order.
    pub nodes: Vec<Node>,
    /// When the run counts as a success; absent: when all nodes have return code 1.
    pub decision_expr: Option<Placed<Expr>>,
}

/// Something with the place where it stands in the template.
#[derive(Clone, Debug)]
pub struct Placed<T> {
    /// The place.
    pub at: Place,
    /// The thing.
    pub it: T,
}

/// One node.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name, unique in the workflow.
    pub name: NodeName,
    /// Where it stands in the template.
    pub at: Place,
    /// The author's own number or text for it, unique where given.
    pub id: Option<Placed<Value>>,
    /// The nodes that must be final before this one is looked at.
    pub prev_nodes: Vec<Placed<NodeName>>,
    /// What it does.
    pub action: Action,
    /// The action as the template has it, parameters filled in; for results.
    pub action_shown: Value,
    /// Its arguments in written order.
    pub param: Vec<(String, Value)>,
    /// When it starts; absent: when all `prev_nodes` have return code 1.
    pub decision_expr: Option<Placed<Expr>>,
    /// Longest time that an attempt may run.
    pub timeout: Option<Duration>,
}

/// What a node does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Runs a program.
    Cmd(Cmd),
    /// Calls a Python function.
    Api(Api),
}

/// A program to run, without a shell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cmd {
    /// The program: a path (with a slash) or a name that is looked up in the node's `PATH`.
    pub program: EnvText,
    /// Arguments that stand in front of the node's parameters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<EnvText>,
    /// Environment on top of the inherited one, in written order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<(String, EnvText)>,
}

/// A Python function to call with the node's parameters as keyword arguments.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Api {
    /// Dotted name of the module.
    pub module: String,
    /// Name of the function in it.
    pub function: String,
    /// Folders that are searched for the module first, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub path: Vec<EnvText>,
    /// Environment on top of the inherited one, in written order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<(String, EnvText)>,
}

/// A text with environment variables and the home folder still unexpanded.
///
/// Kept in parts and not as text, so that a `$` or a space in a parameter's value stays what it
/// is: it can neither name a variable nor begin a new word.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EnvText {
    /// The parts in order.
    pub parts: Vec<EnvPart>,
}

/// A part of an [`EnvText`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EnvPart {
    /// Stands as it is.
    Literal(String),
    /// An environment variable by name.
    Variable(String),
    /// `~` at the beginning: the value of `HOME`.
    Home,
}

/// An environment variable that an [`EnvText`] names and that is not set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the environment variable {0} is not set")]
pub struct NotSet(pub String);

impl Node {
    /// Memory that it takes in a graph, in bytes; approximate.
    #[must_use]
    pub fn memory(&self) -> usize {
        // The node, its state and its place in the graph.
        const NODE: usize = 1024;
        const EDGE: usize = 96;
        // Two operations for a name of one letter, and the expression is there twice.
        const EXPR: usize = 100;
        let env = |env: &[(String, EnvText)]| -> usize {
            let each = env.iter().map(|(name, text)| name.len() + text.memory());
            each.sum()
        };
        let texts = |texts: &[EnvText]| texts.iter().map(EnvText::memory).sum::<usize>();
        let action = match &self.action {
            Action::Cmd(cmd) => cmd.program.memory() + texts(&cmd.args) + env(&cmd.env),
            Action::Api(api) => {
                api.module.len() + api.function.len() + texts(&api.path) + env(&api.env)
            }
        };
        let params = self.param.iter();
        let params = params.map(|(name, value)| name.len() + value.memory());
        let prev_nodes = self.prev_nodes.iter();
        let prev_nodes = prev_nodes.map(|prev| EDGE + prev.it.as_str().len());
        let expr = self.decision_expr.as_ref();
        NODE + self.name.as_str().len()
            + action
            + self.action_shown.memory()
            + params.sum::<usize>()
            + prev_nodes.sum::<usize>()
            + expr.map_or(0, |expr| EXPR + 2 * Expr::MEMORY * expr.it.text().len())
    }
}

impl EnvText {
    /// Memory that it takes, in bytes; approximate.
    #[must_use]
    pub fn memory(&self) -> usize {
        const PART: usize = 64;
        let parts = self.parts.iter().map(|part| match part {
            EnvPart::Literal(text) | EnvPart::Variable(text) => PART + text.len(),
            EnvPart::Home => PART,
        });
        PART + parts.sum::<usize>()
    }

    /// A text without variables.
    #[must_use]
    pub fn literal(text: impl Into<String>) -> Self {
        Self {
            parts: vec![EnvPart::Literal(text.into())],
        }
    }

    /// Fills in the variables; `lookup` gives a variable's value.
    pub fn expand(&self, lookup: impl Fn(&str) -> Option<OsString>) -> Result<OsString, NotSet> {
        let mut text = OsString::new();
        for part in &self.parts {
            match part {
                EnvPart::Literal(literal) => text.push(OsStr::new(literal)),
                EnvPart::Variable(name) => {
                    text.push(lookup(name).ok_or_else(|| NotSet(name.clone()))?);
                }
                EnvPart::Home => {
                    text.push(lookup("HOME").ok_or_else(|| NotSet("HOME".to_owned()))?);
                }
            }
        }
        Ok(text)
    }
}
