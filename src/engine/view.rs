//! Pictures of a graph: text for a terminal, Graphviz, Mermaid, JSON.
//!
//! Must not write them anywhere.

use std::fmt::Write;

use serde::Serialize;

use crate::engine::graph::{Graph, NodeIx, NodeMap};
use crate::engine::spec::Action;

/// The level of each node: 0 without predecessors, else one more than its deepest predecessor.
#[must_use]
pub fn levels(graph: &Graph) -> NodeMap<usize> {
    let mut levels = graph.map(|_| 0);
    let mut open = graph.map(|node| graph.prev(node).count());
    let mut due: Vec<NodeIx> = graph
        .iter()
        .map(|(node, _)| node)
        .filter(|node| open[*node] == 0)
        .collect();
    while let Some(node) = due.pop() {
        for next in graph.next(node) {
            levels[next] = levels[next].max(levels[node] + 1);
            open[next] -= 1;
            if open[next] == 0 {
                due.push(next);
            }
        }
    }
    levels
}

/// A line a node, by level: `2  d <- b c  when b || c`.
#[must_use]
pub fn ascii(graph: &Graph) -> String {
    let levels = levels(graph);
    let mut order: Vec<NodeIx> = graph.iter().map(|(node, _)| node).collect();
    order.sort_by_key(|node| levels[*node]);
    let width = order
        .iter()
        .map(|node| graph.name(*node).as_str().chars().count())
        .max()
        .unwrap_or(0)
        .min(40);
    let mut text = String::new();
    let mut last = None;
    for node in order {
        let level = levels[node];
        let label = if last == Some(level) {
            String::new()
        } else {
            level.to_string()
        };
        last = Some(level);
        let mut line = format!("{label:>3}  {:width$}", graph.name(node).as_str());
        let prev: Vec<&str> = graph
            .prev(node)
            .map(|prev| graph.name(prev).as_str())
            .collect();
        if !prev.is_empty() {
            let _ = write!(line, "  <- {}", prev.join(" "));
        }
        if let Some(condition) = graph.condition(node) {
            let _ = write!(line, "  when {}", condition.text());
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    if let Some(decision) = graph.decision() {
        let _ = writeln!(text, "run  succeeds when {}", decision.text());
    }
    text
}

/// Graphviz.
#[must_use]
pub fn dot(graph: &Graph) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let mut text = String::from("digraph workflow {\n");
    for (node, _) in graph.iter() {
        let name = graph.name(node).as_str();
        let label = match graph.condition(node) {
            Some(condition) => format!("{name}\nwhen {}", condition.text()),
            None => name.to_owned(),
        };
        let label = quoted(&label).replace('\n', "\\n");
        let _ = writeln!(text, "  {} [label={label}];", quoted(name));
    }
    for (node, _) in graph.iter() {
        for prev in graph.prev(node) {
            let (from, to) = (graph.name(prev).as_str(), graph.name(node).as_str());
            let _ = writeln!(text, "  {} -> {};", quoted(from), quoted(to));
        }
    }
    text.push_str("}\n");
    text
}

/// A Mermaid flowchart.
#[must_use]
pub fn mermaid(graph: &Graph) -> String {
    // Mermaid's own ids are positions: a node's name may hold any character, and in labels the
    // ones with a meaning stand as entities.
    let label = |text: &str| {
        let mut label = String::new();
        for c in text.chars() {
            match c {
                '"' | '#' | '&' | '<' | '>' | '`' => {
                    let _ = write!(label, "#{};", u32::from(c));
                }
                c => label.push(c),
            }
        }
        label
    };
    let mut ids = graph.map(|_| 0_usize);
    for (id, (node, _)) in graph.iter().enumerate() {
        ids[node] = id;
    }
    let mut text = String::from("flowchart TD\n");
    for (node, _) in graph.iter() {
        let mut shown = label(graph.name(node).as_str());
        if let Some(condition) = graph.condition(node) {
            let _ = write!(shown, "<br/>when {}", label(condition.text()));
        }
        let _ = writeln!(text, "  n{}[\"{shown}\"]", ids[node]);
    }
    for (node, _) in graph.iter() {
        for prev in graph.prev(node) {
            let _ = writeln!(text, "  n{} --> n{}", ids[prev], ids[node]);
        }
    }
    text
}

/// JSON: `{"nodes": [{name, type, level, prev_nodes, decision_expr?}], "decision_expr"?}`.
#[must_use]
pub fn json(graph: &Graph) -> String {
    #[derive(Serialize)]
    struct NodeView<'a> {
        name: &'a str,
        r#type: &'static str,
        level: usize,
        prev_nodes: Vec<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        decision_expr: Option<&'a str>,
    }
    #[derive(Serialize)]
    struct GraphView<'a> {
        nodes: Vec<NodeView<'a>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        decision_expr: Option<&'a str>,
    }
    let levels = levels(graph);
    let nodes = graph.iter().map(|(index, node)| NodeView {
        name: node.name.as_str(),
        r#type: match node.action {
            Action::Cmd(_) => "cmd",
            Action::Api(_) => "api",
        },
        level: levels[index],
        prev_nodes: graph
            .prev(index)
            .map(|prev| graph.name(prev).as_str())
            .collect(),
        decision_expr: graph.condition(index).map(super::graph::Condition::text),
    });
    let view = GraphView {
        nodes: nodes.collect(),
        decision_expr: graph.decision().map(super::graph::Condition::text),
    };
    serde_json::to_string_pretty(&view).unwrap_or_default()
}
