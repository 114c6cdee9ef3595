//! What a person sees while a run goes on: a live line a node at a terminal, plain lines
//! elsewhere, nothing where nothing was asked for.
//!
//! Must not influence the run.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::engine::event::Event;
use crate::engine::graph::{Graph, NodeIx};
use crate::engine::state::{NodeState, Phase, RunState, cancelled};
use crate::local::Watch;

use super::printer::Printer;
use super::shown::one_line;

/// Says nothing.
pub(super) struct Silent;

impl Watch for Silent {
    fn event(&mut self, _: &Graph, _: &RunState, _: &Event) {}
    fn tick(&mut self, _: &Graph, _: &RunState) {}
}

/// One line for each start and end.
pub(super) struct Lines(pub(super) Printer);

impl Watch for Lines {
    fn event(&mut self, graph: &Graph, state: &RunState, event: &Event) {
        match event {
            Event::Cancelled { cause, .. } => self.0.say(&cancelled(*cause).message),
            Event::Started { node, .. } => self.0.say(&format!("{}: started", graph.name(*node))),
            Event::Ended { node, .. }
            | Event::Skipped { node, .. }
            | Event::GivenUp { node, .. } => {
                self.0.say(&line(graph, *node, state));
            }
            Event::RunStarted { .. } | Event::Suspended(_) | Event::Killing { .. } => {}
        }
    }

    fn tick(&mut self, _: &Graph, _: &RunState) {}
}

/// A line on a node that has come to an end, whatever the node said.
fn line(graph: &Graph, node: NodeIx, state: &RunState) -> String {
    one_line(&format!("{}: {}", graph.name(node), told(state.node(node))))
}

/// A node's state in words.
pub(super) fn told(state: &NodeState) -> String {
    match state {
        NodeState::Finished(finished) => {
            let took = finished.ran.map(|(_, start)| {
                let seconds = finished.ended.duration_since(start).as_secs_f64();
                format!(" in {seconds:.1} s")
            });
            let why = finished
                .reason
                .as_ref()
                .map(|reason| format!(" ({})", reason.message));
            format!(
                "{}{}{}",
                finished.phase,
                took.unwrap_or_default(),
                why.unwrap_or_default()
            )
        }
        NodeState::Lost { message, .. } => format!("lost ({message})"),
        other => other.phase().to_string(),
    }
}

/// A line for each node that runs or has just ended, and a line for the whole.
pub(super) struct Live {
    bars: MultiProgress,
    total: ProgressBar,
    nodes: BTreeMap<NodeIx, ProgressBar>,
}

impl Live {
    pub(super) fn new(nodes: usize) -> Self {
        let bars = MultiProgress::new();
        let total = bars.add(ProgressBar::new(nodes as u64));
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} nodes  {elapsed}");
        total.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self {
            bars,
            total,
            nodes: BTreeMap::new(),
        }
    }
}

impl Watch for Live {
    fn event(&mut self, graph: &Graph, state: &RunState, event: &Event) {
        let Some(node) = event.node() else { return };
        match event {
            Event::Started { .. } => {
                let bar = self
                    .bars
                    .insert_before(&self.total, ProgressBar::new_spinner());
                let style = ProgressStyle::with_template("{spinner} {prefix}  {elapsed}");
                bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
                bar.set_prefix(one_line(graph.name(node).as_str()));
                self.nodes.insert(node, bar);
            }
            Event::Ended { .. } | Event::Skipped { .. } | Event::GivenUp { .. } => {
                if let Some(bar) = self.nodes.remove(&node) {
                    bar.finish_and_clear();
                    self.bars.remove(&bar);
                }
                let _ = self.bars.println(line(graph, node, state));
            }
            _ => {}
        }
        self.total.set_position(state.finished() as u64);
        if state.finished() == graph.len() {
            self.total.finish_and_clear();
        }
    }

    fn tick(&mut self, _: &Graph, _: &RunState) {
        for bar in self.nodes.values() {
            bar.tick();
        }
        self.total.tick();
    }

    fn tick_every(&self) -> Option<Duration> {
        Some(Duration::from_millis(100))
    }
}

/// The result as a table.
pub(super) fn table(graph: &Graph, state: &RunState, phase: Phase) -> String {
    use std::fmt::Write;
    let width = graph
        .iter()
        .map(|(_, node)| node.name.as_str().chars().count())
        .max()
        .unwrap_or(0)
        .clamp(4, 60);
    let mut text = format!(
        "{:width$}  {:9}  {:>8}  DETAIL\n",
        "NODE", "PHASE", "SECONDS"
    );
    for (node, node_state) in state.iter() {
        let (mut seconds, mut detail) = (String::new(), String::new());
        if let NodeState::Finished(finished) = node_state {
            if let Some((_, start)) = finished.ran {
                seconds = format!("{:.1}", finished.ended.duration_since(start).as_secs_f64());
            }
            let said = [
                &finished.captured().err_msg,
                &finished.captured().output,
                &finished.captured().info,
            ];
            let said = said
                .into_iter()
                .flatten()
                .next()
                .map(crate::value::Value::to_plain_text);
            let why = finished
                .reason
                .as_ref()
                .map(|reason| reason.message.clone());
            let mut parts: Vec<String> = [why, said].into_iter().flatten().collect();
            parts.dedup();
            detail = parts
                .join("; ")
                .lines()
                .next()
                .unwrap_or_default()
                .chars()
                .take(100)
                .collect();
        }
        let row = format!(
            "{:width$}  {:9}  {seconds:>8}  {detail}",
            graph.name(node).as_str(),
            node_state.phase().to_string()
        );
        let _ = writeln!(text, "{}", row.trim_end());
    }
    let _ = writeln!(text, "run: {phase}");
    text
}
