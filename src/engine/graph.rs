//! A spec proven runnable: names unique, edges known, no cycle, expressions only over
//! predecessors. All that is wrong is reported at once.
//!
//! Must not run anything. Outside this file a node is a [`NodeIx`] or a name; petgraph's own
//! indices do not leave it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::{Index, IndexMut};
use std::time::Duration;

use petgraph::Direction;
use petgraph::algo::kosaraju_scc;
use petgraph::graph::{DiGraph, NodeIndex};

use crate::engine::expr::{Expr, Truth};
use crate::engine::name::NodeName;
use crate::engine::spec::{Node, Placed, Spec};
use crate::value::{MAX_PROBLEMS, Place, Problem};

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

/// A set of nodes of one graph, in template order. A bit a node, because most sets of a large run
/// are looked at, and changed, after every event.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeSet {
    bits: Vec<u64>,
    /// A bit for each of `bits` that is not zero, so that the first node of a few is near.
    used: Vec<u64>,
    len: usize,
}

const WORD: usize = u64::BITS as usize;

impl NodeSet {
    /// Whether the node was not in it.
    pub fn insert(&mut self, node: NodeIx) -> bool {
        let index = node.index();
        let is_new = set(&mut self.bits, index, true);
        if is_new {
            set(&mut self.used, index / WORD, true);
            self.len += 1;
        }
        is_new
    }

    /// Whether the node was in it.
    pub fn remove(&mut self, node: NodeIx) -> bool {
        let index = node.index();
        let was_in = set(&mut self.bits, index, false);
        if was_in {
            if self.bits.get(index / WORD) == Some(&0) {
                set(&mut self.used, index / WORD, false);
            }
            self.len -= 1;
        }
        was_in
    }

    /// Whether the node is in it.
    #[must_use]
    pub fn contains(&self, node: NodeIx) -> bool {
        let word = self.bits.get(node.index() / WORD);
        word.is_some_and(|word| word & (1 << (node.index() % WORD)) != 0)
    }

    /// How many nodes are in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no node is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The nodes in template order.
    pub fn iter(&self) -> impl Iterator<Item = NodeIx> {
        let words = (0..).zip(&self.used);
        let words = words.flat_map(|(nth, word)| ones(nth, *word));
        let nodes = words.flat_map(|nth| {
            let word = self.bits.get(nth as usize);
            ones(nth, word.copied().unwrap_or(0))
        });
        nodes.map(NodeIx)
    }
}

/// Whether the bit changes.
fn set(words: &mut [u64], index: usize, to: bool) -> bool {
    let Some(word) = words.get_mut(index / WORD) else {
        return false;
    };
    let bit = 1 << (index % WORD);
    let changes = (*word & bit != 0) != to;
    if changes {
        *word ^= bit;
    }
    changes
}

/// The places of the ones in the nth word.
fn ones(nth: u32, mut word: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let bit = (word != 0).then(|| word.trailing_zeros())?;
        word &= word - 1;
        Some(nth * u64::BITS + bit)
    })
}

/// Nodes by name: a table of the names' hashes, each at the first free slot from the one that it
/// names. So a large graph's is one small piece of memory, in which a search looks at one place;
/// the names themselves stand in the nodes.
#[derive(Clone, Debug)]
struct Names(Vec<Slot>);

/// Part of a hash, and the node whose name has it.
type Slot = (u32, NodeIx);

/// No graph has as many nodes.
const FREE: Slot = (0, NodeIx(u32::MAX));

impl Names {
    /// The names, and the nodes whose name an earlier one has.
    fn new(nodes: &[Node]) -> (Self, Vec<&Node>) {
        // Half of it stays free, so that searches are short and end.
        let mut names = Self(vec![FREE; (2 * nodes.len() + 1).next_power_of_two()]);
        let mut again = Vec::new();
        for (index, node) in (0..).map(NodeIx).zip(nodes) {
            let name = node.name.as_str();
            let hash = hash(name);
            match names.search(hash, name, nodes) {
                Ok(_) => again.push(node),
                Err(free) => {
                    if let Some(slot) = names.0.get_mut(free) {
                        *slot = (part(hash), index);
                    }
                }
            }
        }
        (names, again)
    }

    /// The first node of a name; `nodes` are those that this was made of.
    fn get(&self, name: &str, nodes: &[Node]) -> Option<NodeIx> {
        self.search(hash(name), name, nodes).ok()
    }

    /// The node, or the slot where it would stand.
    fn search(&self, hash: u64, name: &str, nodes: &[Node]) -> Result<NodeIx, usize> {
        let last = self.0.len() - 1;
        let mut at = usize::try_from(hash & last as u64).unwrap_or(0);
        loop {
            let (known, node) = self.0.get(at).copied().unwrap_or(FREE);
            if node == FREE.1 {
                return Err(at);
            }
            let found = nodes.get(node.index()).filter(|_| known == part(hash));
            if found.is_some_and(|node| node.name.as_str() == name) {
                return Ok(node);
            }
            at = (at + 1) & last;
        }
    }
}

/// The part of a hash that does not say where it stands.
fn part(hash: u64) -> u32 {
    u32::try_from(hash >> 32).unwrap_or(0)
}

/// The same for a name always, unlike that of a `HashMap`.
fn hash(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
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

    /// How many each node has.
    fn lens(&self) -> impl Iterator<Item = usize> {
        let starts = std::iter::once(&0).chain(&self.ends);
        self.ends.iter().zip(starts).map(|(end, start)| end - start)
    }

    /// The nodes that have each one among theirs, in template order.
    fn turned(&self) -> Self {
        let nothing = NodeIx(u32::MAX);
        let mut turned = Self {
            nodes: vec![nothing; self.nodes.len()],
            ends: vec![0; self.ends.len()],
        };
        for node in &self.nodes {
            if let Some(len) = turned.ends.get_mut(node.index()) {
                *len += 1;
            }
        }
        // From lengths to starts; filling moves each start to its end.
        let mut start = 0;
        for end in &mut turned.ends {
            start += std::mem::replace(end, start);
        }
        for node in (0..).map(NodeIx).take(self.ends.len()) {
            for other in self.of(node) {
                if let Some(end) = turned.ends.get_mut(other.index()) {
                    if let Some(place) = turned.nodes.get_mut(*end) {
                        *place = node;
                    }
                    *end += 1;
                }
            }
        }
        turned
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
    /// Apart from the nodes, because they are asked for at every start and end.
    timeouts: BTreeMap<NodeIx, Duration>,
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

        let mut prev_nodes = Neighbours::with_capacity(spec.nodes.len());
        let mut conditions = Vec::with_capacity(spec.nodes.len());
        let mut timeouts = BTreeMap::new();
        let mut ids = BTreeMap::new();
        // The last node that listed each one: it lists it twice if it is that one again.
        let mut listed_by = NodeMap(vec![None; spec.nodes.len()]);
        // One walk for all that is asked of a node: the nodes of a large graph fit no cache.
        for (index, node) in (0..).map(NodeIx).zip(&spec.nodes) {
            if errors.len() > MAX_PROBLEMS {
                // No more are shown, and there may be one for each edge.
                errors.sort_by_key(GraphError::at);
                return Err(errors);
            }
            errors.extend(duplicate_id(node, &mut ids));
            if let Some(timeout) = node.timeout {
                timeouts.insert(index, timeout);
            }
            let mut unknown = BTreeSet::new();
            for prev in &node.prev_nodes {
                let error = |kind: EdgeError| GraphError::Edge {
                    node: node.name.clone(),
                    prev: prev.it.clone(),
                    at: prev.at,
                    kind,
                };
                let found = by_name.get(prev.it.as_str(), &spec.nodes);
                let twice = match found {
                    Some(ix) => listed_by[ix].replace(index) == Some(index),
                    None => !unknown.insert(&prev.it),
                };
                match found {
                    _ if twice => errors.push(error(EdgeError::Twice)),
                    Some(ix) if ix == index => errors.push(error(EdgeError::Itself)),
                    Some(ix) => prev_nodes.nodes.push(ix),
                    None if errors.len() > MAX_PROBLEMS => break,
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
            let condition = node.decision_expr.as_ref().map(|expr| {
                let prev_nodes = node.prev_nodes.iter().map(|prev| prev.it.as_str());
                let allowed: BTreeSet<&str> = prev_nodes.collect();
                bind(
                    expr,
                    |name| by_name.get(name, &spec.nodes),
                    |name| allowed.contains(name),
                    Some(&node.name),
                    &mut errors,
                )
            });
            conditions.push(condition.map(Box::new));
        }
        let next_nodes = prev_nodes.turned();
        // The cheap question first: a graph mostly has no cycle.
        if !is_acyclic(&prev_nodes, &next_nodes) {
            find_cycles(&prev_nodes, &spec.nodes, &mut errors);
        }

        let decision = spec.decision_expr.as_ref().map(|expr| {
            bind(
                expr,
                |name| by_name.get(name, &spec.nodes),
                |_| true,
                None,
                &mut errors,
            )
        });

        if errors.is_empty() {
            Ok(Self {
                timeouts,
                nodes: NodeMap(spec.nodes),
                by_name,
                prev: prev_nodes,
                next: next_nodes,
                conditions: NodeMap(conditions),
                decision,
            })
        } else {
            errors.sort_by_key(GraphError::at);
            Err(errors)
        }
    }

    /// Memory that it takes with the state of a run, in bytes; approximate.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.nodes.0.iter().map(Node::memory).sum()
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
        self.by_name.get(name, &self.nodes.0)
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

    /// Longest time that an attempt of a node may run.
    #[must_use]
    pub fn timeout(&self, node: NodeIx) -> Option<Duration> {
        self.timeouts.get(&node).copied()
    }

    /// The run's own condition.
    #[must_use]
    pub fn decision(&self) -> Option<&Condition> {
        self.decision.as_ref()
    }

    /// A set of its nodes that is empty.
    #[must_use]
    pub fn no_nodes(&self) -> NodeSet {
        let words = self.len().div_ceil(WORD);
        NodeSet {
            bits: vec![0; words],
            used: vec![0; words.div_ceil(WORD)],
            len: 0,
        }
    }

    /// One value for each node.
    pub fn map<T>(&self, value: impl Fn(NodeIx) -> T) -> NodeMap<T> {
        NodeMap(self.nodes.iter().map(|(node, _)| value(node)).collect())
    }
}

/// Mistakes up to which names that look alike are looked for.
const HINTS: usize = 20;

/// Notes whose id it is, or says that it is an earlier node's.
fn duplicate_id<'a>(
    node: &'a Node,
    owners: &mut BTreeMap<String, &'a NodeName>,
) -> Option<GraphError> {
    let id = node.id.as_ref()?;
    match owners.entry(id.it.to_string()) {
        Entry::Vacant(entry) => {
            entry.insert(&node.name);
            None
        }
        Entry::Occupied(entry) => Some(GraphError::DuplicateId {
            node: node.name.clone(),
            other: (*entry.get()).clone(),
            id: entry.key().clone(),
            at: id.at,
        }),
    }
}

/// Whether walking from the nodes without predecessors, each after all of its own, reaches all.
fn is_acyclic(prev_nodes: &Neighbours, next_nodes: &Neighbours) -> bool {
    let mut open_prev = NodeMap(prev_nodes.lens().collect::<Vec<_>>());
    let free = open_prev.iter().filter(|(_, open)| **open == 0);
    let mut reached: Vec<NodeIx> = free.map(|(node, _)| node).collect();
    let mut walked = 0;
    while let Some(&node) = reached.get(walked) {
        walked += 1;
        for &next in next_nodes.of(node) {
            open_prev[next] -= 1;
            if open_prev[next] == 0 {
                reached.push(next);
            }
        }
    }
    walked == prev_nodes.ends.len()
}

/// Names a cycle of each tangle. Petgraph's node indices are the same numbers as ours.
fn find_cycles(prev_nodes: &Neighbours, nodes: &[Node], errors: &mut Vec<GraphError>) {
    let mut edges = DiGraph::<(), ()>::with_capacity(nodes.len(), prev_nodes.nodes.len());
    for _ in nodes {
        edges.add_node(());
    }
    let index_of = |node: NodeIx| NodeIndex::new(node.index());
    for node in (0..).map(NodeIx).take(nodes.len()) {
        for prev in prev_nodes.of(node) {
            edges.add_edge(index_of(*prev), index_of(node), ());
        }
    }
    for component in kosaraju_scc(&edges) {
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
    find: impl Fn(&str) -> Option<NodeIx>,
    allowed: impl Fn(&str) -> bool,
    node: Option<&NodeName>,
    errors: &mut Vec<GraphError>,
) -> Condition {
    let mut nodes = Vec::new();
    for name in expr.it.names() {
        if errors.len() > MAX_PROBLEMS {
            break;
        }
        match find(name.name.as_str()) {
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
            too_large: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::spec::{Action, Cmd, EnvText};
    use crate::value::Value;

    proptest::proptest! {
        /// A set of nodes is a set, also where it is nearly empty and its nodes are far apart.
        #[test]
        fn a_node_set_is_a_set(
            changes in proptest::collection::vec((proptest::bool::ANY, 0_u32..40), 0..200),
            stride in 1_u32..200,
        ) {
            let nodes = 40 * 200;
            let words = nodes / WORD;
            let mut ours = NodeSet { bits: vec![0; words], used: vec![0; words.div_ceil(WORD)], len: 0 };
            let mut theirs = BTreeSet::new();
            for (is_in, nth) in changes {
                let node = NodeIx(nth * stride);
                if is_in {
                    proptest::prop_assert_eq!(ours.insert(node), theirs.insert(node));
                } else {
                    proptest::prop_assert_eq!(ours.remove(node), theirs.remove(&node));
                }
                proptest::prop_assert!(ours.iter().eq(theirs.iter().copied()));
                proptest::prop_assert_eq!(ours.len(), theirs.len());
                proptest::prop_assert_eq!(ours.contains(node), is_in);
            }
            // Equal sets are equal, whatever has been in them.
            let mut anew = NodeSet { bits: vec![0; words], used: vec![0; words.div_ceil(WORD)], len: 0 };
            for node in theirs {
                anew.insert(node);
            }
            proptest::prop_assert_eq!(anew, ours);
        }
    }

    /// Names with one hash are told apart, and the first of one name is found.
    #[test]
    fn names_are_found_by_themselves_and_not_by_their_hash() {
        let node = |name: &str| Node {
            name: name.parse().unwrap(),
            at: Place::NONE,
            id: None,
            prev_nodes: Vec::new(),
            action: Action::Cmd(Cmd {
                program: EnvText::literal("true"),
                args: Vec::new(),
                env: Vec::new(),
            }),
            action_shown: Value::Null,
            param: Vec::new(),
            decision_expr: None,
            timeout: None,
        };
        let nodes = ["a", "b", "c", "b"].map(node);
        let (names, again) = Names::new(&nodes);
        assert_eq!(names.get("b", &nodes), Some(NodeIx(1)));
        assert_eq!(names.get("d", &nodes), None);
        assert_eq!(again.len(), 1);
        assert!(std::ptr::eq(again[0], &raw const nodes[3]));
        // Two of one hash: the second stands behind the first, and is found there.
        let free = names.search(hash("a"), "e", &nodes).unwrap_err();
        let mut alike = names.clone();
        alike.0[free] = (part(hash("a")), NodeIx(2));
        assert_eq!(alike.search(hash("a"), "c", &nodes), Ok(NodeIx(2)));
        assert_eq!(alike.search(hash("a"), "a", &nodes), Ok(NodeIx(0)));
    }
}
