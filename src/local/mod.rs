//! The driver without a cluster: events → fold → step → record → act, until the run is over.
//!
//! Must not compute what the engine computes, nor print; who watches gets every event.

pub mod journal;
pub mod logs;
pub mod report;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::engine::event::{CancelCause, Ending, Event, Outcome};
use crate::engine::graph::{Graph, NodeIx};
use crate::engine::name::Attempt;
use crate::engine::spec::Action;
use crate::engine::state::{Illegal, NodeState, RunState};
use crate::engine::step::{Decision, Limits, Verdict, step};
use crate::executor::control::Control;
use crate::executor::process::{self, Surroundings};
use crate::executor::python::Python;
use crate::executor::spawn;

use journal::{Journal, JournalError};

/// Wall-clock times that run on by the monotonic clock: a clock that is set while a run goes on
/// ends no node.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    wall: Timestamp,
    start: Instant,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            wall: Timestamp::now(),
            start: Instant::now(),
        }
    }
}

impl Clock {
    /// Now.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.wall
            .checked_add(self.start.elapsed())
            .unwrap_or(Timestamp::MAX)
    }
}

/// Who watches a run.
pub trait Watch {
    /// An event, after it was folded.
    fn event(&mut self, graph: &Graph, state: &RunState, event: &Event);
    /// Time has passed (about ten times a second while the run waits).
    fn tick(&mut self, graph: &Graph, state: &RunState);
    /// How often [`Watch::tick`] is wanted.
    fn tick_every(&self) -> Option<Duration> {
        None
    }
}

/// What a driver needs besides graph and state.
pub struct Options {
    /// The engine's limits.
    pub limits: Limits,
    /// What surrounds nodes.
    pub surroundings: Surroundings,
    /// The run's own folder.
    pub dir: PathBuf,
    /// The Python for api nodes.
    pub python: Python,
}

/// Why a run could not go on. Every process that it had started is ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The journal could not be written, so nothing more may be started.
    #[error("the run was stopped, because its journal cannot be written")]
    Journal(#[from] JournalError),
    /// The system refuses what every run needs.
    #[error("cannot start the run")]
    System(#[from] std::io::Error),
    /// A bug: the engine refused an event of its own making.
    #[error("the run was stopped by a bug of apscli")]
    Illegal(#[from] Illegal),
}

struct Ended {
    node: NodeIx,
    attempt: Attempt,
    outcome: Outcome,
}

/// A run on this machine.
pub struct Driver<'a> {
    graph: Arc<Graph>,
    state: RunState,
    journal: Journal,
    options: Options,
    surroundings: Arc<Surroundings>,
    python: Arc<Python>,
    clock: Clock,
    controls: BTreeMap<NodeIx, Arc<Control>>,
    ended: UnboundedSender<Ended>,
    news: UnboundedReceiver<Ended>,
    watch: &'a mut dyn Watch,
}

impl<'a> Driver<'a> {
    /// A driver for a run whose recorded events are folded into `state`.
    pub fn new(
        graph: Arc<Graph>,
        state: RunState,
        journal: Journal,
        options: Options,
        watch: &'a mut dyn Watch,
    ) -> Self {
        let (ended, news) = unbounded_channel();
        Self {
            graph,
            state,
            journal,
            surroundings: Arc::new(options.surroundings.clone()),
            python: Arc::new(options.python.clone()),
            options,
            clock: Clock::default(),
            controls: BTreeMap::new(),
            ended,
            news,
            watch,
        }
    }

    /// Runs to the end. The state that comes back is that of the journal, also on error.
    pub async fn run(mut self) -> (RunState, Result<Verdict, RunError>) {
        let verdict = self.drive().await;
        if verdict.is_err() {
            self.end_everything().await;
        }
        (self.state, verdict)
    }

    async fn drive(&mut self) -> Result<Verdict, RunError> {
        let mut interrupts = Interrupts::new()?;
        let begun = self.state.started_at().is_some();
        let at = self.clock.now();
        let first = if begun {
            self.orphans(at)
        } else {
            vec![Event::RunStarted { at }]
        };
        self.record(&first)?;
        loop {
            let wake_at = loop {
                let now = self.clock.now();
                let step = step(&self.graph, &self.state, &self.options.limits, now);
                if let Some(verdict) = step.verdict {
                    self.journal.sync();
                    return Ok(verdict);
                }
                if step.decisions.is_empty() {
                    break step.wake_at;
                }
                let events: Vec<Event> = step
                    .decisions
                    .iter()
                    .map(|decision| decision.event(now))
                    .collect();
                self.record(&events)?;
                for decision in &step.decisions {
                    self.act(decision);
                }
            };
            let events = self.wait(wake_at, &mut interrupts).await;
            self.record(&events)?;
        }
    }

    /// Attempts that a journal leaves running are lost: their processes ended with the run that
    /// started them.
    fn orphans(&self, at: Timestamp) -> Vec<Event> {
        let running = self
            .state
            .running()
            .filter_map(|node| match self.state.node(node) {
                NodeState::Running(running) => Some((node, running.attempt)),
                _ => None,
            });
        running
            .map(|(node, attempt)| {
                let message = "apscli ended while this attempt was running".to_owned();
                let outcome = Outcome::silent(Ending::Lost(message));
                Event::Ended {
                    node,
                    attempt,
                    outcome,
                    at,
                }
            })
            .collect()
    }

    /// Writes events down, then folds them: what is folded is on record.
    fn record(&mut self, events: &[Event]) -> Result<(), RunError> {
        self.journal.append(&self.graph, events)?;
        for event in events {
            self.state.fold(&self.graph, event)?;
            self.watch.event(&self.graph, &self.state, event);
        }
        Ok(())
    }

    fn act(&mut self, decision: &Decision) {
        match decision {
            Decision::Start { node, attempt } => self.start(*node, *attempt),
            Decision::Kill { node, cause, .. } => {
                let Some(control) = self.controls.get(node) else {
                    return;
                };
                control.terminate(*cause);
                let (control, grace) = (Arc::clone(control), self.options.surroundings.grace);
                tokio::spawn(async move {
                    tokio::time::sleep(grace).await;
                    control.kill();
                });
            }
            // Nothing to do beyond the record.
            Decision::Skip { .. } | Decision::GiveUp { .. } | Decision::Cancel { .. } => {}
        }
    }

    fn start(&mut self, node: NodeIx, attempt: Attempt) {
        let control = Arc::new(Control::default());
        self.controls.insert(node, Arc::clone(&control));
        let (graph, surroundings) = (Arc::clone(&self.graph), Arc::clone(&self.surroundings));
        let (python, ended) = (Arc::clone(&self.python), self.ended.clone());
        let log = logs::path(&self.options.dir, graph.name(node), attempt);
        tokio::task::spawn_blocking(move || {
            let work = || {
                let node = graph.node(node);
                match &node.action {
                    Action::Cmd(cmd) => {
                        process::run(cmd, &node.param, &surroundings, &log, &control)
                    }
                    Action::Api(api) => python.run(api, &node.param, &surroundings, &log, &control),
                }
            };
            // A hand that panics must not leave the run waiting for ever.
            let outcome = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
                control.kill();
                let message = "the executor broke down; this is a bug of apscli".to_owned();
                Outcome::silent(Ending::Lost(message))
            });
            let _ = ended.send(Ended {
                node,
                attempt,
                outcome,
            });
        });
    }

    async fn wait(
        &mut self,
        wake_at: Option<Timestamp>,
        interrupts: &mut Interrupts,
    ) -> Vec<Event> {
        let mut tick = self.watch.tick_every().map(tokio::time::interval);
        let sleep = wake_at.map(|at| {
            let left = at.duration_since(self.clock.now());
            tokio::time::sleep(Duration::try_from(left).unwrap_or_default())
        });
        tokio::pin!(sleep);
        loop {
            tokio::select! {
                Some(ended) = self.news.recv() => {
                    let mut events = vec![self.event(ended)];
                    while let Ok(more) = self.news.try_recv() {
                        events.push(self.event(more));
                    }
                    return events;
                }
                () = interrupts.next() => {
                    if self.state.cancelled().is_none() {
                        return vec![Event::Cancelled { cause: CancelCause::Asked, at: self.clock.now() }];
                    }
                    for control in self.controls.values() {
                        control.kill();
                    }
                }
                () = async {
                    match sleep.as_mut().as_pin_mut() {
                        Some(sleep) => sleep.await,
                        None => std::future::pending().await,
                    }
                } => return Vec::new(),
                () = async {
                    match &mut tick {
                        Some(tick) => { tick.tick().await; }
                        None => std::future::pending().await,
                    }
                } => self.watch.tick(&self.graph, &self.state),
            }
        }
    }

    fn event(&mut self, ended: Ended) -> Event {
        self.controls.remove(&ended.node);
        Event::Ended {
            node: ended.node,
            attempt: ended.attempt,
            outcome: ended.outcome,
            at: self.clock.now(),
        }
    }

    async fn end_everything(&mut self) {
        for control in self.controls.values() {
            let cause = crate::engine::event::KillCause::Cancel(CancelCause::Asked);
            control.terminate(cause);
            control.kill();
        }
        while !self.controls.is_empty() {
            let Some(ended) = self.news.recv().await else {
                return;
            };
            self.controls.remove(&ended.node);
        }
    }
}

/// The signals by which people end a program; those that were ignored when it started (`nohup`,
/// a shell's background job) stay ignored.
struct Interrupts([Option<Signal>; 3]);

impl Interrupts {
    fn new() -> std::io::Result<Self> {
        let listen = |kind: SignalKind| {
            let ignored = spawn::is_ignored(kind.as_raw_value());
            (!ignored).then(|| signal(kind)).transpose()
        };
        Ok(Self([
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
        ]))
    }

    async fn next(&mut self) {
        async fn one(signal: &mut Option<Signal>) {
            match signal {
                Some(signal) => {
                    signal.recv().await;
                }
                None => std::future::pending().await,
            }
        }
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            () = one(interrupt) => {}
            () = one(terminate) => {}
            () = one(hangup) => {}
        }
    }
}
