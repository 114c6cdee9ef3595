//! The state of a run: a fold over its events.
//!
//! The life of a node is one table, [`NodeState::on`]; a pair of state and event that is not in
//! it is an error, and the state stays as it was. So final is final: no event, in any order,
//! repeated or missing, turns a finished node back.
//!
//! [`RunState`] also keeps what `step` asks for (who is runnable, which deadline is next), so
//! that nobody has to look at all nodes after each event.
//!
//! Must not decide what to do next (that is `step`), nor know how anything is carried out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;

use crate::engine::event::{
    CancelCause, Captured, Ending, Event, KillCause, Outcome, Reason, ReasonWord,
};
use crate::engine::expr::Truth;
use crate::engine::graph::{Graph, NodeIx, NodeMap, NodeSet};
use crate::engine::name::Attempt;

/// Where a node is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Not started, and it may still.
    Pending,
    /// Being carried out.
    Running,
    /// Ended well.
    Succeeded,
    /// Ended by itself, and not well.
    Failed,
    /// Could not start, raised, ran out of time or was lost.
    Error,
    /// Ended because the run was.
    Cancelled,
    /// Never started, and never will.
    Skipped,
}

impl Phase {
    /// All phases, in the order of a life.
    pub const ALL: [Self; 7] = [
        Self::Pending,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Error,
        Self::Cancelled,
        Self::Skipped,
    ];
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A node's state.
#[derive(Clone, Debug, PartialEq)]
pub enum NodeState {
    /// Not started.
    Pending,
    /// An attempt is being carried out.
    Running(Running),
    /// The newest attempt was lost; `step` decides whether there is another.
    Lost {
        /// The lost attempt.
        was: Running,
        /// What is known of the loss.
        message: String,
    },
    /// Over, for ever. Boxed: most of a large run is pending.
    Finished(Box<Finished>),
}

/// A running attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// Which try.
    pub attempt: Attempt,
    /// When this try began.
    pub since: Timestamp,
    /// Why it is being ended from outside, if it is.
    pub killing: Option<KillCause>,
}

/// A finished node.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// One of the final phases.
    pub phase: Phase,
    /// Why, where the phase alone does not say.
    pub reason: Option<Reason>,
    /// The last try and its start; none: never started.
    pub ran: Option<(Attempt, Timestamp)>,
    /// When it was over.
    pub ended: Timestamp,
    /// The program's exit code or the function's code, where there was one.
    pub exit_code: Option<i64>,
    /// The signal that ended the program, where one did.
    pub signal: Option<i32>,
    /// What it said. Boxed: most nodes of a large run say nothing.
    captured: Option<Box<Captured>>,
}

impl Finished {
    /// What it said.
    #[must_use]
    pub fn captured(&self) -> &Captured {
        static NOTHING: Captured = Captured {
            output: None,
            err_msg: None,
            err_code: None,
            info: None,
            truncated: BTreeMap::new(),
        };
        self.captured.as_deref().unwrap_or(&NOTHING)
    }
}

/// An event that cannot happen to a state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{event} cannot happen to a node that is {state}")]
pub struct Illegal {
    state: String,
    event: String,
}

impl NodeState {
    /// The node's phase.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self {
            Self::Pending => Phase::Pending,
            Self::Running(_) | Self::Lost { .. } => Phase::Running,
            Self::Finished(finished) => finished.phase,
        }
    }

    /// The return code that expressions see: 1 success, 0 failure, none where the node never
    /// ran or has not ended.
    #[must_use]
    pub fn code(&self) -> Option<i64> {
        match self.phase() {
            Phase::Succeeded => Some(1),
            Phase::Failed | Phase::Error => Some(0),
            Phase::Pending | Phase::Running | Phase::Cancelled | Phase::Skipped => None,
        }
    }

    /// The one transition table.
    pub fn on(&self, event: &Event) -> Result<Self, Illegal> {
        match (self, event) {
            (Self::Pending, Event::Started { attempt, at, .. }) if *attempt == Attempt::FIRST => {
                Ok(Self::running(*attempt, *at))
            }
            (Self::Lost { was, .. }, Event::Started { attempt, at, .. })
                if *attempt == was.attempt.next() =>
            {
                Ok(Self::running(*attempt, *at))
            }
            (Self::Running(running), Event::Killing { attempt, cause, .. })
                if *attempt == running.attempt && running.killing.is_none() =>
            {
                let killing = Some(*cause);
                Ok(Self::Running(Running {
                    killing,
                    ..*running
                }))
            }
            (
                Self::Running(running),
                Event::Ended {
                    attempt,
                    outcome,
                    at,
                    ..
                },
            ) if *attempt == running.attempt => Ok(running.end(outcome, *at)),
            (Self::Lost { was, message }, Event::GivenUp { at, .. }) => {
                let reason = Reason::new(ReasonWord::Lost, message.clone());
                Ok(was.finish(Phase::Error, Some(reason), *at))
            }
            (Self::Pending, Event::Skipped { reason, at, .. }) => {
                Ok(Self::Finished(Box::new(Finished {
                    phase: Phase::Skipped,
                    reason: Some(reason.clone()),
                    ran: None,
                    ended: *at,
                    exit_code: None,
                    signal: None,
                    captured: None,
                })))
            }
            (state, event) => Err(Illegal {
                state: state.shown(),
                event: shown(event),
            }),
        }
    }

    fn running(attempt: Attempt, since: Timestamp) -> Self {
        Self::Running(Running {
            attempt,
            since,
            killing: None,
        })
    }

    fn shown(&self) -> String {
        match self {
            Self::Pending => "pending".to_owned(),
            Self::Running(running) => format!("running attempt {}", running.attempt),
            Self::Lost { was, .. } => format!("without its lost attempt {}", was.attempt),
            Self::Finished(finished) => format!("finished as {}", finished.phase),
        }
    }
}

impl Running {
    fn end(self, outcome: &Outcome, at: Timestamp) -> NodeState {
        let words = |word, message: String| Some(Reason::new(word, message));
        let mut exit_code = None;
        let mut ended_by = None;
        let (phase, reason) = match (&outcome.ending, self.killing) {
            // We had begun to end it when it vanished: what we did is what we know.
            (Ending::Killed(cause), _) => killed(*cause),
            (Ending::Lost(_), Some(cause)) => killed(cause),
            (Ending::Lost(message), None) => {
                return NodeState::Lost {
                    was: self,
                    message: message.clone(),
                };
            }
            (Ending::Exited(0) | Ending::Returned(0), _) => {
                exit_code = Some(0);
                (Phase::Succeeded, None)
            }
            (Ending::Exited(code), _) => {
                exit_code = Some(i64::from(*code));
                (
                    Phase::Failed,
                    words(ReasonWord::ExitCode, format!("exit code {code}")),
                )
            }
            (Ending::Signalled(signal), _) => {
                ended_by = Some(*signal);
                (
                    Phase::Failed,
                    words(ReasonWord::Signal, format!("ended by signal {signal}")),
                )
            }
            (Ending::Returned(code), _) => {
                exit_code = Some(*code);
                (
                    Phase::Failed,
                    words(ReasonWord::ReturnCode, format!("return code {code}")),
                )
            }
            (Ending::NotStarted(message), _) => {
                (Phase::Error, words(ReasonWord::NotStarted, message.clone()))
            }
            (Ending::Exception(message), _) => {
                (Phase::Error, words(ReasonWord::Exception, message.clone()))
            }
            (Ending::NoResult(message), _) => {
                (Phase::Error, words(ReasonWord::NoResult, message.clone()))
            }
        };
        let NodeState::Finished(mut finished) = self.finish(phase, reason, at) else {
            return NodeState::Pending;
        };
        finished.exit_code = exit_code;
        finished.signal = ended_by;
        let said = (outcome.captured != Captured::default()).then(|| outcome.captured.clone());
        finished.captured = said.map(Box::new);
        NodeState::Finished(finished)
    }

    fn finish(self, phase: Phase, reason: Option<Reason>, at: Timestamp) -> NodeState {
        NodeState::Finished(Box::new(Finished {
            phase,
            reason,
            ran: Some((self.attempt, self.since)),
            ended: at,
            exit_code: None,
            signal: None,
            captured: None,
        }))
    }
}

fn killed(cause: KillCause) -> (Phase, Option<Reason>) {
    match cause {
        KillCause::NodeTimeout => {
            let reason = Reason::new(ReasonWord::Timeout, "ran longer than its timeout");
            (Phase::Error, Some(reason))
        }
        KillCause::Cancel(cause) => (Phase::Cancelled, Some(cancelled(cause))),
    }
}

/// The reason of nodes that a cancelled run ends or never reaches.
#[must_use]
pub fn cancelled(cause: CancelCause) -> Reason {
    let message = match cause {
        CancelCause::Asked => "the run was cancelled",
        CancelCause::Timeout => "the run took longer than its timeout",
    };
    Reason::new(ReasonWord::Cancelled, message)
}

fn shown(event: &Event) -> String {
    match event {
        Event::RunStarted { .. } => "the run's start".to_owned(),
        Event::Cancelled { .. } => "a cancel".to_owned(),
        Event::Suspended(_) => "a suspension".to_owned(),
        Event::Started { attempt, .. } => format!("the start of attempt {attempt}"),
        Event::Killing { attempt, .. } => format!("the killing of attempt {attempt}"),
        Event::Ended { attempt, .. } => format!("the end of attempt {attempt}"),
        Event::GivenUp { .. } => "giving up".to_owned(),
        Event::Skipped { .. } => "skipping".to_owned(),
    }
}

/// The state of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct RunState {
    nodes: NodeMap<NodeState>,
    pub(super) started_at: Option<Timestamp>,
    pub(super) cancelled: Option<CancelCause>,
    pub(super) suspended: bool,
    /// Predecessors that are not final yet.
    open_prev: NodeMap<u32>,
    /// Nodes whose condition holds and that have not started.
    pub(super) runnable: NodeSet,
    /// Nodes whose condition does not hold and that are not yet recorded as skipped.
    pub(super) refused: BTreeMap<NodeIx, Reason>,
    pub(super) running: NodeSet,
    pub(super) lost: NodeSet,
    /// Whether node timeouts are kept by whoever carries attempts out, and not by `step`.
    timeouts_kept: bool,
    /// Running attempts with a timeout that nobody has begun to end.
    pub(super) deadlines: BTreeSet<(Timestamp, NodeIx)>,
    finished: usize,
    last_end: Option<Timestamp>,
}

impl RunState {
    /// A run in which nothing has happened.
    #[must_use]
    pub fn new(graph: &Graph) -> Self {
        Self {
            nodes: graph.map(|_| NodeState::Pending),
            started_at: None,
            cancelled: None,
            suspended: false,
            open_prev: graph
                .map(|node| u32::try_from(graph.prev(node).count()).unwrap_or(u32::MAX)),
            runnable: graph.no_nodes(),
            refused: BTreeMap::new(),
            running: graph.no_nodes(),
            lost: graph.no_nodes(),
            timeouts_kept: false,
            deadlines: BTreeSet::new(),
            finished: 0,
            last_end: None,
        }
    }

    /// The same, where whoever carries attempts out keeps the nodes' timeouts: in a cluster an
    /// attempt may wait long for a machine before its time begins to count, and only its pod
    /// knows when that was.
    #[must_use]
    pub fn with_timeouts_kept(mut self) -> Self {
        self.timeouts_kept = true;
        self
    }

    /// Whether new nodes are held back.
    #[must_use]
    pub fn is_suspended(&self) -> bool {
        self.suspended
    }

    /// A node's state.
    #[must_use]
    pub fn node(&self, node: NodeIx) -> &NodeState {
        &self.nodes[node]
    }

    /// All nodes' states in template order.
    pub fn iter(&self) -> impl Iterator<Item = (NodeIx, &NodeState)> {
        self.nodes.iter()
    }

    /// When the run began.
    #[must_use]
    pub fn started_at(&self) -> Option<Timestamp> {
        self.started_at
    }

    /// When the last of the finished nodes ended.
    #[must_use]
    pub fn last_end(&self) -> Option<Timestamp> {
        self.last_end
    }

    /// The latest time that anything in this state has; none: the run has not started.
    #[must_use]
    pub fn latest(&self) -> Option<Timestamp> {
        let nodes = self.nodes.iter().filter_map(|(_, state)| match state {
            NodeState::Pending => None,
            NodeState::Running(running) | NodeState::Lost { was: running, .. } => {
                Some(running.since)
            }
            NodeState::Finished(finished) => Some(finished.ended),
        });
        nodes.chain(self.started_at).max()
    }

    /// Why the run is to end early, if it is.
    #[must_use]
    pub fn cancelled(&self) -> Option<CancelCause> {
        self.cancelled
    }

    /// Attempts that are being carried out.
    pub fn running(&self) -> impl Iterator<Item = NodeIx> {
        self.running.iter()
    }

    /// How many nodes are final.
    #[must_use]
    pub fn finished(&self) -> usize {
        self.finished
    }

    /// Takes an event in. On error the state is as it was.
    pub fn fold(&mut self, graph: &Graph, event: &Event) -> Result<(), Illegal> {
        match event {
            Event::RunStarted { at } => {
                if self.started_at.is_some() {
                    return Err(Illegal {
                        state: "in a run that has begun".to_owned(),
                        event: shown(event),
                    });
                }
                self.started_at = Some(*at);
                for (node, _) in graph.iter() {
                    if self.open_prev[node] == 0 {
                        self.look_at(graph, node);
                    }
                }
            }
            Event::Cancelled { cause, .. } => {
                // One-way: the first cause stays. A run that is over stays as it ended.
                if self.finished < graph.len() {
                    self.cancelled.get_or_insert(*cause);
                }
            }
            Event::Suspended(suspended) => self.suspended = *suspended,
            Event::Started { node, .. }
            | Event::Killing { node, .. }
            | Event::Ended { node, .. }
            | Event::GivenUp { node, .. }
            | Event::Skipped { node, .. } => self.fold_node(graph, *node, event)?,
        }
        // The kubelet keeps the run's time too, and may be the first to say that it is over: by
        // the start that an earlier operator reckoned with, and could not put on record.
        if let Event::Ended { outcome, .. } = event
            && let Ending::Killed(KillCause::Cancel(CancelCause::Timeout)) = outcome.ending
        {
            self.cancelled.get_or_insert(CancelCause::Timeout);
        }
        Ok(())
    }

    fn fold_node(&mut self, graph: &Graph, node: NodeIx, event: &Event) -> Result<(), Illegal> {
        let old = &self.nodes[node];
        let new = old.on(event)?;
        if let NodeState::Running(running) = old {
            self.running.remove(node);
            if let Some(deadline) = deadline(graph, node, running) {
                self.deadlines.remove(&(deadline, node));
            }
        }
        self.lost.remove(node);
        self.runnable.remove(node);
        self.refused.remove(&node);
        match &new {
            NodeState::Running(running) => {
                self.running.insert(node);
                if let (false, None, Some(deadline)) = (
                    self.timeouts_kept,
                    running.killing,
                    deadline(graph, node, running),
                ) {
                    self.deadlines.insert((deadline, node));
                }
            }
            NodeState::Lost { .. } => {
                self.lost.insert(node);
            }
            NodeState::Pending | NodeState::Finished(_) => {}
        }
        let finished = match &new {
            NodeState::Finished(finished) => Some(finished.ended),
            _ => None,
        };
        self.nodes[node] = new;
        if let Some(ended) = finished {
            self.finished += 1;
            self.last_end = self.last_end.max(Some(ended));
            for next in graph.next(node) {
                let open = &mut self.open_prev[next];
                *open = open.saturating_sub(1);
                if *open == 0 {
                    self.look_at(graph, next);
                }
            }
        }
        Ok(())
    }

    /// Evaluates the condition of a node whose predecessors are all final.
    fn look_at(&mut self, graph: &Graph, node: NodeIx) {
        if self.nodes[node] != NodeState::Pending {
            return;
        }
        match condition(graph, self, node) {
            Ok(()) => {
                self.runnable.insert(node);
            }
            Err(reason) => {
                self.refused.insert(node, reason);
            }
        }
    }
}

fn deadline(graph: &Graph, node: NodeIx, running: &Running) -> Option<Timestamp> {
    let timeout = graph.timeout(node)?;
    Some(running.since.checked_add(timeout).unwrap_or(Timestamp::MAX))
}

/// Whether a node starts, now that all its predecessors are final; else why not.
fn condition(graph: &Graph, state: &RunState, node: NodeIx) -> Result<(), Reason> {
    let code = |node: NodeIx| state.node(node).code();
    let shown = |node: NodeIx| {
        let code = code(node).map_or_else(|| "'N/A'".to_owned(), |code| code.to_string());
        format!("{}={code}", graph.name(node))
    };
    let list = |nodes: &mut dyn Iterator<Item = NodeIx>| {
        const SHOWN: usize = 5;
        let mut names: Vec<String> = nodes.take(SHOWN + 1).map(shown).collect();
        if names.len() > SHOWN {
            names.truncate(SHOWN);
            names.push("…".to_owned());
        }
        names.join(", ")
    };
    if let Some(condition) = graph.condition(node) {
        let (word, is) = match condition.eval(code) {
            Truth::True => return Ok(()),
            Truth::False => (ReasonWord::ConditionFalse, "is false"),
            Truth::Unknown => (ReasonWord::ConditionUnknown, "is unknown"),
        };
        let mut nodes = condition.nodes().iter().copied();
        let text = condition.text();
        let with = list(&mut nodes);
        return Err(Reason::new(word, format!("`{text}` {is} with {with}")));
    }
    if graph.prev(node).all(|prev| code(prev) == Some(1)) {
        return Ok(());
    }
    let mut missing = graph.prev(node).filter(|prev| code(*prev) != Some(1));
    let message = format!("needs 1 of all its prev_nodes, but {}", list(&mut missing));
    Err(Reason::new(ReasonWord::ConditionFalse, message))
}
