//! Runs whose nodes are over at once, played by the engine alone: what is left is its own cost.
//!
//! Shared by the benchmark, which times them, and the tests, which count what they allocate. Must
//! not time or count.

use std::collections::VecDeque;
use std::error::Error;
use std::num::NonZeroUsize;

use apscli::engine::event::{Ending, Event, Outcome};
use apscli::engine::graph::Graph;
use apscli::engine::name::NodeName;
use apscli::engine::spec::{Action, Cmd, EnvText, Node, Placed, Spec};
use apscli::engine::state::RunState;
use apscli::engine::step::{Decision, Limits, step};
use apscli::value::{Place, Value};
use jiff::Timestamp;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The predecessors of each node.
#[derive(Clone, Copy)]
pub enum Shape {
    Fan,
    Chain,
    /// Layers of 100, each node with three predecessors in the layer before.
    Layers,
}

impl Shape {
    pub const ALL: [Self; 3] = [Self::Fan, Self::Chain, Self::Layers];

    pub fn name(self) -> &'static str {
        match self {
            Self::Fan => "fan",
            Self::Chain => "chain",
            Self::Layers => "layers of 100, 3 predecessors each",
        }
    }

    fn prev(self, node: usize) -> Vec<usize> {
        const WIDTH: usize = 100;
        match self {
            Self::Fan => Vec::new(),
            Self::Chain => node.checked_sub(1).into_iter().collect(),
            Self::Layers => match (node / WIDTH).checked_sub(1) {
                Some(layer) => [0, 1, 7]
                    .map(|step| layer * WIDTH + (node + step) % WIDTH)
                    .to_vec(),
                None => Vec::new(),
            },
        }
    }

    pub fn spec(self, n: usize) -> Result<Spec> {
        let name = |node: usize| -> Result<NodeName> { Ok(format!("n{node}").parse()?) };
        let mut nodes = Vec::with_capacity(n);
        for node in 0..n {
            let mut prev_nodes = Vec::new();
            for prev in self.prev(node) {
                prev_nodes.push(Placed {
                    at: Place::NONE,
                    it: name(prev)?,
                });
            }
            nodes.push(Node {
                name: name(node)?,
                at: Place::NONE,
                id: None,
                prev_nodes,
                action: Action::Cmd(Cmd {
                    program: EnvText::literal("true"),
                    args: Vec::new(),
                    env: Vec::new(),
                }),
                action_shown: Value::Null,
                param: Vec::new(),
                decision_expr: None,
                timeout: None,
            });
        }
        Ok(Spec {
            nodes,
            decision_expr: None,
        })
    }
}

/// Proves the spec and runs it, every node over at once. The ends come in one by one and each is
/// answered before the next, which is the most that a driver can ask of the engine.
pub fn play(spec: Spec) -> Result<()> {
    const SLOTS: Option<NonZeroUsize> = NonZeroUsize::new(64);
    let at = Timestamp::UNIX_EPOCH;
    let limits = Limits {
        parallelism: SLOTS,
        ..Limits::default()
    };
    let graph = Graph::build(spec).map_err(|errors| format!("{errors:?}"))?;
    let mut state = RunState::new(&graph);
    state.fold(&graph, &Event::RunStarted { at })?;
    let mut running = VecDeque::new();
    let verdict = loop {
        let next = step(&graph, &state, &limits, at);
        if let Some(verdict) = next.verdict {
            break verdict;
        }
        for decision in next.decisions {
            state.fold(&graph, &decision.event(at))?;
            if let Decision::Start { node, attempt } = decision {
                running.push_back((node, attempt));
            }
        }
        let (node, attempt) = running.pop_front().ok_or("the run came to a stop")?;
        let outcome = Outcome::silent(Ending::Exited(0));
        state.fold(
            &graph,
            &Event::Ended {
                node,
                attempt,
                outcome,
                at,
            },
        )?;
    };
    if verdict.return_code == 1 {
        Ok(())
    } else {
        Err("a run of instant nodes failed".into())
    }
}
