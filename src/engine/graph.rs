//! A spec proven runnable: names unique, edges known, no cycle, expressions only over
//! predecessors. All that is wrong is reported at once.
//!
//! Must not run anything. Outside this file a node is a [`NodeIx`] or a name; petgraph's own
//! indices do not leave it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::{Index, IndexMut};

use petgraph::Direction;
use petgraph::algo::{kosaraju_scc, toposort};
use petgraph::graph::{DiGraph, NodeIndex};

use crate::engine::expr::{Expr, Truth};
use crate::engine::name::NodeName;
use crate::engine::spec::{Node, Placed, Spec};
use crate::value::{Place, Problem};

/// A node of one graph, by its place in the template from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeIx(u32);

impl NodeIx {
    /// The node's place in the template, from 0.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// One value for each node of a graph.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeMap<T>(Vec<T>);

impl<T> NodeMap<T> {
    /// Nodes with their values, in template order.
    pub fn iter(&self) -> impl Iterator<Item = (NodeIx, &T)> {
        (0..).map(NodeIx).zip(&self.0)
    }
}

// A NodeIx is made by a graph only, for each of its nodes, and a NodeMap by the same graph.
#[allow(clippy::indexing_slicing)]
impl<T> Index<NodeIx> for NodeMap<T> {
    type Output = T;

    fn index(&self, node: NodeIx) -> &T {
        &self.0[node.0 as usize]
    }
}

#[allow(clippy::indexing_slicing)]
impl<T> IndexMut<NodeIx> for NodeMap<T> {
    fn index_mut(&mut self, node: NodeIx) -> &mut T {
        &mut self.0[node.0 as usize]
    }
}

/// A condition with its names bound to nodes.
#[derive(Clone, Debug)]
pub struct Condition {
    expr: Expr,
    nodes: Vec<NodeIx>,
}

impl Condition {
    /// Evaluates over the nodes' return codes, `None` for a node that never ran.
    pub fn eval(&self, code_of: impl Fn(NodeIx) -> Option<i64>) -> Truth {
        self.expr
            .eval(|name| self.nodes.get(name).and_then(|node| code_of(*node)))
    }

    /// The expression as it was written.
    #[must_use]
    pub fn text(&self) -> &str {
        self.expr.text()
    }

    /// The nodes that it names.
    #[must_use]
    pub fn nodes(&self) -> &[NodeIx] {
        &self.nodes
    }
}

/// Nodes by name: sorted, so that a large graph is one piece of memory and not many.
#[derive(Clone, Debug)]
struct Names(Vec<(NodeName, NodeIx)>);

impl Names {
    /// The names, and the nodes whose name an earlier one has.
    fn new(nodes: &[Node]) -> (Self, Vec<&Node>) {
        let named = (0..).map(NodeIx).zip(nodes);
        let mut names: Vec<_> = named
            .map(|(index, node)| (node.name.clone(), index))
            .collect();
        names.sort_unstable();
        let mut again = Vec::new();
        names.dedup_by(|(name, index), (earlier, _)| {
            let is_again = name == earlier;
            again.extend(nodes.get(index.0 as usize).filter(|_| is_again));
            is_again
        });
        (Self(names), again)
    }

    fn get(&self, name: &str) -> Option<NodeIx> {
        let found = self
            .0
            .binary_search_by(|(known, _)| known.as_str().cmp(name));
        found
            .ok()
            .and_then(|at| self.0.get(at))
            .map(|(_, node)| *node)
    }
}

/// Some nodes for each node, all in one piece of memory.
#[derive(Clone, Debug)]
struct Neighbours {
    nodes: Vec<NodeIx>,
    /// Where each node's own end.
    ends: Vec<usize>,
}

impl Neighbours {
    fn with_capacity(nodes: usize) -> Self {
        Self {
            nodes: Vec::with_capacity(nodes),
            ends: Vec::with_capacity(nodes),
        }
    }

    /// Ends the list of one node; what is pushed next is the next node's.
    fn end(&mut self) {
        self.ends.push(self.nodes.len());
    }

    fn of(&self, node: NodeIx) -> &[NodeIx] {
        let index = node.0 as usize;
        let start = index
            .checked_sub(1)
            .and_then(|before| self.ends.get(before));
        let end = self.ends.get(index).copied().unwrap_or(0);
        self.nodes
            .get(start.copied().unwrap_or(0)..end)
            .unwrap_or_default()
    }
}

/// A workflow that can run.
#[derive(Clone, Debug)]
pub struct Graph {
    nodes: NodeMap<Node>,
    by_name: Names,
    prev: Neighbours,
    next: Neighbours,
    /// Boxed: most nodes have none.
    conditions: NodeMap<Option<Box<Condition>>>,
    decision: Option<Condition>,
}

impl Graph {
    /// Proves a spec runnable, or says all that is in the way.
    pub fn build(spec: Spec) -> Result<Self, Vec<GraphError>> {
        let mut errors = Vec::new();
        if spec.nodes.is_empty() {
            errors.push(GraphError::NoNodes);
        }
        let (by_name, again) = Names::new(&spec.nodes);
        errors.extend(again.into_iter().map(|node| GraphError::DuplicateName {
            node: node.name.clone(),
            at: node.at,
        }));
        check_ids(&spec.nodes, &mut errors);

        // Petgraph's node indices are the same numbers as ours.
        let mut edges = DiGraph::<(), ()>::with_capacity(spec.nodes.len(), spec.nodes.len());
        for _ in &spec.nodes {
            edges.add_node(());
        }
        let mut prev_nodes = Neighbours::with_capacity(spec.nodes.len());
        // The last node that listed each one: it lists it twice if it is that one again.
        let mut listed_by = NodeMap(vec![None; spec.nodes.len()]);
        for (index, node) in (0..).map(NodeIx).zip(&spec.nodes) {
            let mut unknown = BTreeSet::new();
            for prev in &node.prev_nodes {
                let error = |kind: EdgeError| GraphError::Edge {
                    node: node.name.clone(),
                    prev: prev.it.clone(),
                    at: prev.at,
                    kind,
                };
                let found = by_name.get(prev.it.as_str());
                let twice = match found {
                    Some(ix) => listed_by[ix].replace(index) == Some(index),
                    None => !unknown.insert(&prev.it),
                };
                match found {
                    _ if twice => errors.push(error(EdgeError::Twice)),
                    Some(ix) if ix == index => errors.push(error(EdgeError::Itself)),
                    Some(ix) => {
                        edges.add_edge(index_of(ix), index_of(index), ());
                        prev_nodes.nodes.push(ix);
                    }
                    None => {
                        // A hint costs a look at many names: the first few mistakes get one.
                        let hint = errors.len() < HINTS;
                        let near = hint
                            .then(|| nearest(prev.it.as_str(), &spec.nodes))
                            .flatten();
                        errors.push(error(EdgeError::Unknown { near }));
                    }
                }
            }
            prev_nodes.end();
        }
        find_cycles(&edges, &spec.nodes, &mut errors);

        let mut conditions = Vec::with_capacity(spec.nodes.len());
        for node in &spec.nodes {
            let condition = node.decision_expr.as_ref().map(|expr| {
                let prev_nodes = node.prev_nodes.iter().map(|prev| prev.it.as_str());
                let allowed: BTreeSet<&str> = prev_nodes.collect();
                bind(
                    expr,
                    &by_name,
                    |name| allowed.contains(name),
                    Some(&node.name),
                    &mut errors,
                )
            });
            conditions.push(condition.map(Box::new));
        }
        let decision = spec
            .decision_expr
            .as_ref()
            .map(|expr| bind(expr, &by_name, |_| true, None, &mut errors));

        if errors.is_empty() {
            Ok(Self {
                nodes: NodeMap(spec.nodes),
                by_name,
                prev: prev_nodes,
                next: successors(&edges),
                conditions: NodeMap(conditions),
                decision,
            })
        } else {
            errors.sort_by_key(GraphError::at);
            Err(errors)
        }
    }

    /// How many nodes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.0.len()
    }

    /// Whether there are none; never so for a graph that was built.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.0.is_empty()
    }

    /// The nodes in template order.
    pub fn iter(&self) -> impl Iterator<Item = (NodeIx, &Node)> {
        self.nodes.iter()
    }

    /// A node.
    #[must_use]
    pub fn node(&self, node: NodeIx) -> &Node {
        &self.nodes[node]
    }

    /// A node's name.
    #[must_use]
    pub fn name(&self, node: NodeIx) -> &NodeName {
        &self.nodes[node].name
    }

    /// The node with a name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<NodeIx> {
        self.by_name.get(name)
    }

    /// The predecessors of a node, in the order of its `prev_nodes`.
    #[must_use]
    pub fn prev(&self, node: NodeIx) -> impl ExactSizeIterator<Item = NodeIx> {
        self.prev.of(node).iter().copied()
    }

    /// The nodes that have this one among their `prev_nodes`.
    pub fn next(&self, node: NodeIx) -> impl Iterator<Item = NodeIx> {
        self.next.of(node).iter().copied()
    }

    /// A node's own condition.
    #[must_use]
    pub fn condition(&self, node: NodeIx) -> Option<&Condition> {
        self.conditions[node].as_deref()
    }

    /// The run's own condition.
    #[must_use]
    pub fn decision(&self) -> Option<&Condition> {
        self.decision.as_ref()
    }

    /// One value for each node.
    pub fn map<T>(&self, value: impl Fn(NodeIx) -> T) -> NodeMap<T> {
        NodeMap(self.nodes.iter().map(|(node, _)| value(node)).collect())
    }
}

/// Mistakes up to which names that look alike are looked for.
const HINTS: usize = 20;

fn successors(edges: &DiGraph<(), ()>) -> Neighbours {
    let mut next = Neighbours::with_capacity(edges.node_count());
    for node in edges.node_indices() {
        let outgoing = edges.neighbors_directed(node, Direction::Outgoing);
        let ours = outgoing.filter_map(|index| u32::try_from(index.index()).ok());
        next.nodes.extend(ours.map(NodeIx));
        next.end();
    }
    next
}

fn index_of(node: NodeIx) -> NodeIndex {
    NodeIndex::new(node.0 as usize)
}

fn check_ids(nodes: &[Node], errors: &mut Vec<GraphError>) {
    let mut owners: BTreeMap<String, &NodeName> = BTreeMap::new();
    for node in nodes {
        let Some(id) = &node.id else { continue };
        let text = id.it.to_string();
        if let Some(other) = owners.get(&text) {
            errors.push(GraphError::DuplicateId {
                node: node.name.clone(),
                other: (*other).clone(),
                id: text,
                at: id.at,
            });
        } else {
            owners.insert(text, &node.name);
        }
    }
}

fn find_cycles(edges: &DiGraph<(), ()>, nodes: &[Node], errors: &mut Vec<GraphError>) {
    // The cheap question first: a graph mostly has no cycle.
    if toposort(edges, None).is_ok() {
        return;
    }
    for component in kosaraju_scc(edges) {
        // An edge to itself is an error of its own and not among the edges.
        if component.len() < 2 {
            continue;
        }
        let inside: BTreeSet<NodeIndex> = component.iter().copied().collect();
        let Some(&start) = inside.first() else {
            continue;
        };
        // Every node of a component has a successor in it, so the walk comes back to a node
        // that it has seen; from there on it is a cycle.
        let mut walk = vec![start];
        let mut seen = BTreeMap::from([(start, 0)]);
        let mut here = start;
        let cycle = loop {
            let next = edges
                .neighbors_directed(here, Direction::Outgoing)
                .filter(|next| inside.contains(next))
                .min();
            let Some(next) = next else { break Vec::new() };
            if let Some(first) = seen.get(&next) {
                break walk.split_off(*first);
            }
            seen.insert(next, walk.len());
            walk.push(next);
            here = next;
        };
        let members: Vec<&Node> = cycle
            .iter()
            .filter_map(|index| nodes.get(index.index()))
            .collect();
        errors.push(GraphError::Cycle {
            at: members.first().map_or(Place::NONE, |node| node.at),
            nodes: members.iter().map(|node| node.name.clone()).collect(),
        });
    }
}

fn bind(
    expr: &Placed<Expr>,
    by_name: &Names,
    allowed: impl Fn(&str) -> bool,
    node: Option<&NodeName>,
    errors: &mut Vec<GraphError>,
) -> Condition {
    let mut nodes = Vec::new();
    for name in expr.it.names() {
        match by_name.get(name.name.as_str()) {
            Some(index) if allowed(&name.name) => nodes.push(index),
            known => errors.push(GraphError::ExpressionName {
                node: node.cloned(),
                name: name.name.clone(),
                character: name.span.start + 1,
                known: known.is_some(),
                at: expr.at,
            }),
        }
    }
    Condition {
        expr: expr.it.clone(),
        nodes,
    }
}

/// The known name that differs least, if it differs little.
fn nearest(name: &str, nodes: &[Node]) -> Option<NodeName> {
    // Only a hint: on large graphs not worth a distance to every name.
    nodes
        .iter()
        .map(|node| &node.name)
        .take(1_000)
        .map(|known| (distance(name, known.as_str()), known))
        .filter(|(distance, known)| *distance <= 1 + known.as_str().chars().count() / 4)
        .min()
        .map(|(_, known)| known.clone())
}

/// Levenshtein distance, in characters.
fn distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.chars().count()).collect();
    for (i, l) in left.chars().enumerate() {
        let mut diagonal = i;
        let mut before = i + 1;
        for (cell, r) in row.iter_mut().skip(1).zip(right.chars()) {
            let cost = (diagonal + usize::from(l != r))
                .min(before + 1)
                .min(*cell + 1);
            diagonal = *cell;
            *cell = cost;
            before = cost;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

/// What is wrong with an edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EdgeError {
    /// It leads from the node to itself.
    Itself,
    /// It is listed twice.
    Twice,
    /// No node has that name.
    Unknown {
        /// A name that looks alike.
        near: Option<NodeName>,
    },
}

/// Why a spec is not runnable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GraphError {
    /// There is nothing to run.
    NoNodes,
    /// Two nodes have one name.
    DuplicateName {
        /// The name.
        node: NodeName,
        /// Where the second stands.
        at: Place,
    },
    /// Two nodes have one id.
    DuplicateId {
        /// The second node.
        node: NodeName,
        /// The first.
        other: NodeName,
        /// The id, as JSON.
        id: String,
        /// Where the second id stands.
        at: Place,
    },
    /// An entry of `prev_nodes` that cannot be.
    Edge {
        /// The node whose `prev_nodes` it is.
        node: NodeName,
        /// The entry.
        prev: NodeName,
        /// Where the entry stands.
        at: Place,
        /// What is wrong with it.
        kind: EdgeError,
    },
    /// Nodes that wait for each other.
    Cycle {
        /// Each waits for the one before it, and the first for the last.
        nodes: Vec<NodeName>,
        /// Where the first stands.
        at: Place,
    },
    /// An expression names a node that it may not see.
    ExpressionName {
        /// The node whose expression it is; none: the run's own.
        node: Option<NodeName>,
        /// The name.
        name: String,
        /// Where it stands in the expression, in characters from 1.
        character: usize,
        /// Whether there is such a node at all.
        known: bool,
        /// Where the expression stands.
        at: Place,
    },
}

impl GraphError {
    /// Where in the template it is.
    #[must_use]
    pub fn at(&self) -> Place {
        match self {
            Self::NoNodes => Place { line: 1, column: 1 },
            Self::DuplicateName { at, .. }
            | Self::DuplicateId { at, .. }
            | Self::Edge { at, .. }
            | Self::Cycle { at, .. }
            | Self::ExpressionName { at, .. } => *at,
        }
    }

    fn path(&self) -> String {
        match self {
            Self::NoNodes => String::new(),
            Self::DuplicateName { node, .. } => node.to_string(),
            Self::DuplicateId { node, .. } => format!("{node}.id"),
            Self::Edge { node, .. } => format!("{node}.prev_nodes"),
            Self::Cycle { nodes, .. } => {
                nodes.first().map_or_else(String::new, ToString::to_string)
            }
            Self::ExpressionName {
                node: Some(node), ..
            } => format!("{node}.decision_expr"),
            Self::ExpressionName { node: None, .. } => "decision_expr".to_owned(),
        }
    }
}

impl fmt::Display for GraphError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNodes => f.write_str("there are no nodes; expected at least one"),
            Self::DuplicateName { node, .. } => write!(f, "two nodes are named `{node}`"),
            Self::DuplicateId { other, id, .. } => {
                write!(
                    f,
                    "the id {id} is that of node `{other}` already; expected ids that differ"
                )
            }
            Self::Edge { prev, kind, .. } => match kind {
                EdgeError::Itself => {
                    write!(f, "`{prev}` waits for itself; expected other nodes only")
                }
                EdgeError::Twice => write!(f, "`{prev}` is listed twice"),
                EdgeError::Unknown { near: Some(near) } => {
                    write!(f, "there is no node `{prev}`; did you mean `{near}`?")
                }
                EdgeError::Unknown { near: None } => write!(f, "there is no node `{prev}`"),
            },
            Self::Cycle { nodes, .. } => {
                let names: Vec<_> = nodes.iter().map(NodeName::as_str).collect();
                let first = names.first().copied().unwrap_or_default();
                write!(
                    f,
                    "these nodes wait for each other: {} -> {first}; expected no cycle",
                    names.join(" -> ")
                )
            }
            Self::ExpressionName {
                node,
                name,
                character,
                known,
                ..
            } => {
                write!(f, "at character {character}: ")?;
                match (node, known) {
                    (_, false) => write!(f, "there is no node `{name}`"),
                    (Some(node), true) => {
                        write!(
                            f,
                            "`{name}` is not among the prev_nodes of `{node}`; an expression may name those only"
                        )
                    }
                    (None, true) => write!(f, "`{name}` cannot be named here"),
                }
            }
        }
    }
}

impl std::error::Error for GraphError {}

impl From<&GraphError> for Problem {
    fn from(error: &GraphError) -> Self {
        Self {
            at: error.at(),
            path: error.path(),
            message: error.to_string(),
        }
    }
}
