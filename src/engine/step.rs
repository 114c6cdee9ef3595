//! What is to be done next, from what is.
//!
//! A decision is complete: the hand that carries it out has no choice left. The same state and
//! time give the same decisions; a driver folds each decision's event ([`Decision::event`])
//! before it acts on it, and then `step` has nothing more to say until there is news.
//!
//! Must not change the state, read a clock, or explain idle nodes unasked: reasons cost a look
//! at every node, so [`waiting`] is a function of its own.

use std::fmt;
use std::num::NonZeroUsize;
use std::time::Duration;

use jiff::Timestamp;

use crate::engine::event::{CancelCause, Event, KillCause, Reason};
use crate::engine::expr::Truth;
use crate::engine::graph::{Graph, NodeIx};
use crate::engine::name::Attempt;
use crate::engine::state::{NodeState, Phase, RunState, cancelled};

/// What a run may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Most attempts at once; none: no limit.
    pub parallelism: Option<NonZeroUsize>,
    /// Longest time from the run's start; then it is cancelled.
    pub timeout: Option<Duration>,
    /// What becomes of a lost attempt.
    pub on_lost: OnLost,
}

/// What becomes of a node whose attempt was lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnLost {
    /// The node ends in Error. The default, because the lost attempt may have done its work.
    #[default]
    Fail,
    /// A new attempt, [`MAX_ATTEMPTS`] in all.
    Retry,
}

/// Most attempts of one node under [`OnLost::Retry`].
pub const MAX_ATTEMPTS: u32 = 3;

/// One thing to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Carry out an attempt of a node.
    Start {
        /// The node.
        node: NodeIx,
        /// Which try.
        attempt: Attempt,
    },
    /// End a running attempt.
    Kill {
        /// The node.
        node: NodeIx,
        /// Which try.
        attempt: Attempt,
        /// Why.
        cause: KillCause,
    },
    /// Record that a node never starts.
    Skip {
        /// The node.
        node: NodeIx,
        /// Why.
        reason: Reason,
    },
    /// Record that a lost attempt gets no other.
    GiveUp {
        /// The node.
        node: NodeIx,
    },
    /// Record that the run is to end early.
    Cancel {
        /// Why.
        cause: CancelCause,
    },
}

impl Decision {
    /// The event that records the decision, to be folded before it is carried out.
    #[must_use]
    pub fn event(&self, at: Timestamp) -> Event {
        match self {
            Self::Start { node, attempt } => Event::Started {
                node: *node,
                attempt: *attempt,
                at,
            },
            Self::Kill {
                node,
                attempt,
                cause,
            } => Event::Killing {
                node: *node,
                attempt: *attempt,
                cause: *cause,
            },
            Self::Skip { node, reason } => Event::Skipped {
                node: *node,
                reason: reason.clone(),
                at,
            },
            Self::GiveUp { node } => Event::GivenUp { node: *node, at },
            Self::Cancel { cause } => Event::Cancelled { cause: *cause, at },
        }
    }
}

/// What `step` says.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// To be recorded and done, in this order.
    pub decisions: Vec<Decision>,
    /// When `step` would say something new without any news: the next timeout.
    pub wake_at: Option<Timestamp>,
    /// The run's end, once every node is final.
    pub verdict: Option<Verdict>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Succeeded, Failed or Cancelled.
    pub phase: Phase,
    /// 1 success, 0 failure.
    pub return_code: i64,
}

/// What is next.
#[must_use]
pub fn step(graph: &Graph, state: &RunState, limits: &Limits, now: Timestamp) -> Step {
    let mut decisions = Vec::new();
    let run_deadline = match (state.cancelled, state.started_at, limits.timeout) {
        (None, Some(start), Some(timeout)) if state.finished() < graph.len() => {
            Some(start.checked_add(timeout).unwrap_or(Timestamp::MAX))
        }
        _ => None,
    };
    if let Some(cause) = state.cancelled {
        wind_down(graph, state, cause, &mut decisions);
    } else if run_deadline.is_some_and(|deadline| deadline <= now) {
        let cause = CancelCause::Timeout;
        decisions.push(Decision::Cancel { cause });
    } else if state.started_at.is_some() {
        go_on(state, limits, now, &mut decisions);
    }
    let node_deadline = state.deadlines.first().map(|(at, _)| *at);
    let wake_at = match (run_deadline, node_deadline) {
        (Some(run), Some(node)) => Some(run.min(node)),
        (run, node) => run.or(node),
    };
    let over = state.finished() == graph.len() && decisions.is_empty();
    Step {
        decisions,
        wake_at,
        verdict: over.then(|| verdict(graph, state)),
    }
}

fn wind_down(graph: &Graph, state: &RunState, cause: CancelCause, decisions: &mut Vec<Decision>) {
    for node in state.running() {
        if let NodeState::Running(running) = state.node(node)
            && running.killing.is_none()
        {
            decisions.push(Decision::Kill {
                node,
                attempt: running.attempt,
                cause: KillCause::Cancel(cause),
            });
        }
    }
    for node in state.lost.iter() {
        decisions.push(Decision::GiveUp { node });
    }
    // All at once, so that the next step finds none left.
    if state.finished() + state.running.len() + state.lost.len() < graph.len() {
        for (node, node_state) in state.iter() {
            if *node_state == NodeState::Pending {
                let reason = cancelled(cause);
                decisions.push(Decision::Skip { node, reason });
            }
        }
    }
}

fn go_on(state: &RunState, limits: &Limits, now: Timestamp, decisions: &mut Vec<Decision>) {
    for (deadline, node) in &state.deadlines {
        if *deadline > now {
            break;
        }
        if let NodeState::Running(running) = state.node(*node) {
            decisions.push(Decision::Kill {
                node: *node,
                attempt: running.attempt,
                cause: KillCause::NodeTimeout,
            });
        }
    }
    for (node, reason) in &state.refused {
        decisions.push(Decision::Skip {
            node: *node,
            reason: reason.clone(),
        });
    }
    let slots = limits.parallelism.map_or(usize::MAX, NonZeroUsize::get);
    let mut free = slots.saturating_sub(state.running.len());
    for node in state.lost.iter() {
        if let NodeState::Lost { was, .. } = state.node(node) {
            if limits.on_lost == OnLost::Fail || was.attempt.get() >= MAX_ATTEMPTS {
                decisions.push(Decision::GiveUp { node });
            } else if free > 0 && !state.suspended {
                free -= 1;
                let attempt = was.attempt.next();
                decisions.push(Decision::Start { node, attempt });
            }
        }
    }
    if !state.suspended {
        for node in state.runnable.iter().take(free) {
            decisions.push(Decision::Start {
                node,
                attempt: Attempt::FIRST,
            });
        }
    }
}

fn verdict(graph: &Graph, state: &RunState) -> Verdict {
    let code = |node: NodeIx| state.node(node).code();
    let success = state.cancelled.is_none()
        && match graph.decision() {
            Some(decision) => decision.eval(code) == Truth::True,
            None => graph.iter().all(|(node, _)| code(node) == Some(1)),
        };
    let phase = match (success, state.cancelled) {
        (true, _) => Phase::Succeeded,
        (false, Some(CancelCause::Asked)) => Phase::Cancelled,
        (false, _) => Phase::Failed,
    };
    Verdict {
        phase,
        return_code: i64::from(success),
    }
}

/// Why a node that could still run does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// The run has not begun.
    RunNotStarted,
    /// Predecessors are not final yet.
    For {
        /// How many.
        open: usize,
        /// The first few, each with what it is doing.
        first: Vec<(String, Phase)>,
    },
    /// Nothing: the next step starts it.
    Nothing,
    /// As many attempts run as may.
    Slot {
        /// The limit.
        limit: usize,
    },
    /// The run is suspended.
    Suspended,
    /// Its last attempt was lost; another is due.
    Retry {
        /// The lost attempt.
        lost: Attempt,
    },
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RunNotStarted => f.write_str("the run has not begun"),
            Self::For { open, first } => {
                f.write_str("waits for ")?;
                for (index, (name, phase)) in first.iter().enumerate() {
                    let comma = if index > 0 { ", " } else { "" };
                    write!(f, "{comma}{name} ({phase})")?;
                }
                match open.saturating_sub(first.len()) {
                    0 => Ok(()),
                    more => write!(f, " and {more} more"),
                }
            }
            Self::Nothing => f.write_str("is about to start"),
            Self::Slot { limit } => write!(f, "waits for a free slot: {limit} of {limit} running"),
            Self::Suspended => f.write_str("the run is suspended"),
            Self::Retry { lost } => {
                write!(
                    f,
                    "attempt {lost} was lost; whether there is another is decided next"
                )
            }
        }
    }
}

/// Every idle node's reason: nodes that have not started and may still.
pub fn waiting<'a>(
    graph: &'a Graph,
    state: &'a RunState,
    limits: &'a Limits,
) -> impl Iterator<Item = (NodeIx, Waiting)> + 'a {
    const SHOWN: usize = 3;
    state.iter().filter_map(move |(node, node_state)| {
        let why = match node_state {
            NodeState::Running(_) | NodeState::Finished(_) => return None,
            NodeState::Lost { was, .. } => Waiting::Retry { lost: was.attempt },
            NodeState::Pending if state.started_at.is_none() => Waiting::RunNotStarted,
            NodeState::Pending if state.refused.contains_key(&node) => return None,
            NodeState::Pending if !state.runnable.contains(node) => {
                let open = |prev: &NodeIx| !matches!(state.node(*prev), NodeState::Finished(_));
                let first = graph
                    .prev(node)
                    .filter(open)
                    .take(SHOWN)
                    .map(|prev| (graph.name(prev).to_string(), state.node(prev).phase()));
                Waiting::For {
                    first: first.collect(),
                    open: graph.prev(node).filter(open).count(),
                }
            }
            NodeState::Pending if state.suspended => Waiting::Suspended,
            NodeState::Pending => match limits.parallelism.map(NonZeroUsize::get) {
                Some(limit) if state.running.len() >= limit => Waiting::Slot { limit },
                _ => Waiting::Nothing,
            },
        };
        Some((node, why))
    })
}
