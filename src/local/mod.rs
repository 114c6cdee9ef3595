//! The driver without a cluster: events → fold → step → record → act, until the run is over.
//!
//! Must not compute what the engine computes, nor print; who watches gets every event.

pub mod journal;
pub mod logs;
pub mod own;
pub mod report;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::process::Signal as Stop;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::{Interval, interval};

use crate::engine::event::{CancelCause, Ending, Event, KillCause, Outcome};
use crate::engine::graph::{Graph, NodeIx};
use crate::engine::name::Attempt;
use crate::engine::spec::Action;
use crate::engine::state::{Illegal, NodeState, Phase, RunState};
use crate::engine::step::{Decision, Limits, Verdict, step};
use crate::executor::control::Control;
use crate::executor::process::{self, Surroundings};
use crate::executor::python::Python;
use crate::executor::spawn;

use journal::{Journal, JournalError};

/// How long after the first signal that asks for the run's end further ones mean the same stop.
const ONE_STOP: Duration = Duration::from_secs(1);

/// How long a node's end by a stop signal waits for the same signal to reach this program.
const STOP_ARRIVES: Duration = Duration::from_millis(50);

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
    /// A clock that shows no time before this one. A resumed run continues from its last event,
    /// also where the machine's clock was set back meanwhile: else nodes would end before they
    /// start, and a timeout would come late by what the clock was set back.
    #[must_use]
    pub fn not_before(earliest: Option<Timestamp>) -> Self {
        let now = Self::default();
        let wall = earliest.map_or(now.wall, |earliest| earliest.max(now.wall));
        Self { wall, ..now }
    }

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

/// Why a run ended before its time. Every process that it had started is ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The journal could not be written, so nothing more may be started.
    #[error("the run was stopped, because its journal cannot be written")]
    Journal(#[from] JournalError),
    /// A bug: the engine refused an event of its own making.
    #[error("the run was stopped by a bug of apscli")]
    Illegal(#[from] Illegal),
}

/// How a run came to its end.
pub struct End {
    /// What became of every node.
    pub state: RunState,
    /// The run's own end. One that was stopped by an error is cancelled.
    pub verdict: Verdict,
    /// What stopped it, if something did.
    pub error: Option<RunError>,
}

/// A run on this machine.
pub struct Driver {
    run: Arc<Run>,
    interrupts: Interrupts,
}

/// What the threads of a run share.
///
/// The thread that has carried out a node takes the run a step further itself, and goes on with
/// the next node: a node that follows another costs no wake-up of a second thread.
struct Run {
    graph: Arc<Graph>,
    surroundings: Surroundings,
    dir: PathBuf,
    python: Python,
    /// Where the threads come from.
    runtime: Handle,
    core: Mutex<Core>,
    /// Wakes the waiting [`Driver`].
    news: Notify,
}

impl Driver {
    /// A driver for a run whose recorded events are folded into `state`. It is made and run in
    /// a tokio runtime, whose blocking threads carry out the nodes.
    pub fn new(
        graph: Arc<Graph>,
        state: RunState,
        journal: Journal,
        options: Options,
        watch: Box<dyn Watch + Send>,
    ) -> std::io::Result<Self> {
        let core = Core {
            graph: Arc::clone(&graph),
            limits: options.limits,
            clock: Clock::not_before(state.latest()),
            state,
            journal,
            watch,
            stopped: None,
            controls: BTreeMap::new(),
            wake_at: None,
            verdict: None,
            error: None,
        };
        let run = Run {
            graph,
            surroundings: options.surroundings,
            dir: options.dir,
            python: options.python,
            runtime: Handle::current(),
            core: Mutex::new(core),
            news: Notify::new(),
        };
        Ok(Self {
            run: Arc::new(run),
            interrupts: Interrupts::new()?,
        })
    }

    /// Runs to the end.
    pub async fn run(mut self) -> End {
        let begun = self.run.core().begin();
        self.run.carry_out(begun);
        let mut tick = self.run.core().watch.tick_every().map(interval);
        loop {
            let wake_at = {
                let mut core = self.run.core();
                if let Some(end) = core.end() {
                    return end;
                }
                core.wake_at
            };
            tokio::select! {
                () = self.run.news.notified() => {}
                () = self.interrupts.next() => self.run.go_on(|core| core.interrupted(Instant::now())),
                () = self.run.at(wake_at) => self.run.go_on(|core| core.take(Vec::new())),
                () = next(&mut tick) => self.run.core().tick(),
            }
        }
    }
}

/// The next tick; never, where none are wanted.
async fn next(tick: &mut Option<Interval>) {
    match tick {
        Some(tick) => {
            tick.tick().await;
        }
        None => std::future::pending().await,
    }
}

impl Run {
    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a time; for ever, where none is given.
    async fn at(&self, time: Option<Timestamp>) {
        let Some(time) = time else {
            return std::future::pending().await;
        };
        let left = time.duration_since(self.core().clock.now());
        tokio::time::sleep(Duration::try_from(left).unwrap_or_default()).await;
    }

    /// Takes the run further and carries out what it says.
    fn go_on(self: &Arc<Self>, further: impl FnOnce(&mut Core) -> Vec<Act>) {
        let acts = further(&mut self.core());
        self.carry_out(acts);
    }

    fn carry_out(self: &Arc<Self>, acts: Vec<Act>) {
        for act in acts {
            match act {
                Act::Start(start) => {
                    let run = Arc::clone(self);
                    self.runtime.spawn_blocking(move || run.work(start));
                }
                Act::Kill(control) => {
                    let grace = self.surroundings.grace;
                    self.runtime.spawn(async move {
                        tokio::time::sleep(grace).await;
                        control.kill();
                    });
                }
            }
        }
    }

    /// Carries out an attempt, and then others as long as there are any for this thread.
    fn work(self: Arc<Self>, first: Start) {
        let mut next = Some(first);
        while let Some(start) = next.take() {
            let outcome = self.attempt(&start);
            // A stop of a whole process group or service may reach the node first. Nothing must
            // start because of that.
            if is_stopped(&outcome) && self.core().state.cancelled().is_none() {
                std::thread::sleep(STOP_ARRIVES);
            }
            let mut core = self.core();
            let slept_until = core.wake_at;
            let mut acts = core.ended(&start, outcome);
            let is_news = core.is_over() || core.wake_at != slept_until;
            drop(core);
            if is_news {
                self.news.notify_one();
            }
            let mine = acts.iter().position(|act| matches!(act, Act::Start(_)));
            if let Some(Act::Start(start)) = mine.map(|index| acts.swap_remove(index)) {
                next = Some(start);
            }
            self.carry_out(acts);
        }
    }

    fn attempt(&self, start: &Start) -> Outcome {
        let (node, control) = (self.graph.node(start.node), &start.control);
        let log = logs::path(&self.dir, &node.name, start.attempt);
        let work = || match &node.action {
            Action::Cmd(cmd) => process::run(cmd, &node.param, &self.surroundings, &log, control),
            Action::Api(api) => {
                self.python
                    .run(api, &node.param, &self.surroundings, &log, control)
            }
        };
        // A hand that panics must not leave the run waiting for ever.
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
            control.kill();
            let message = "the executor broke down; this is a bug of apscli".to_owned();
            Outcome::silent(Ending::Lost(message))
        })
    }
}

/// Whether a signal by which users end programs has ended the node.
fn is_stopped(outcome: &Outcome) -> bool {
    let stops = [Stop::INT, Stop::TERM, Stop::HUP].map(Stop::as_raw);
    matches!(outcome.ending, Ending::Signalled(signal) if stops.contains(&signal))
}

/// An attempt to be carried out.
struct Start {
    node: NodeIx,
    attempt: Attempt,
    control: Arc<Control>,
}

/// What is left to be done once a decision is on record.
enum Act {
    Start(Start),
    /// It was told to end, and is to be killed when it has had its grace.
    Kill(Arc<Control>),
}

/// The run itself: what has happened, and what is to happen next. Whoever has news brings it
/// here, one after the other.
struct Core {
    graph: Arc<Graph>,
    limits: Limits,
    state: RunState,
    journal: Journal,
    watch: Box<dyn Watch + Send>,
    clock: Clock,
    /// When a user asked for the run's end for the first time.
    stopped: Option<Instant>,
    controls: BTreeMap<NodeIx, Arc<Control>>,
    /// When there is something to do without any news.
    wake_at: Option<Timestamp>,
    verdict: Option<Verdict>,
    /// What stopped the run. From then on nothing is recorded.
    error: Option<RunError>,
}

impl Core {
    fn begin(&mut self) -> Vec<Act> {
        let at = self.clock.now();
        let first = if self.state.started_at().is_some() {
            self.orphans(at)
        } else {
            vec![Event::RunStarted { at }]
        };
        self.take(first)
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

    fn ended(&mut self, start: &Start, mut outcome: Outcome) -> Vec<Act> {
        self.controls.remove(&start.node);
        // The signal that asked for the run's end has ended the node too.
        if is_stopped(&outcome) && self.state.cancelled() == Some(CancelCause::Asked) {
            outcome.ending = Ending::Killed(KillCause::Cancel(CancelCause::Asked));
        }
        let at = self.clock.now();
        self.take(vec![Event::Ended {
            node: start.node,
            attempt: start.attempt,
            outcome,
            at,
        }])
    }

    /// A user wants the run to end: first by its rules, then at once. One stop can arrive as several
    /// signals: `timeout` signals its child and then the group of both, a terminal that is
    /// closed sends HUP twice. So what comes within [`ONE_STOP`] of the first is the same stop.
    fn interrupted(&mut self, now: Instant) -> Vec<Act> {
        match self.stopped {
            Some(first) if now.duration_since(first) < ONE_STOP => return Vec::new(),
            Some(_) => {}
            None => self.stopped = Some(now),
        }
        if self.state.cancelled().is_none() {
            return self.cancel();
        }
        for control in self.controls.values() {
            control.kill();
        }
        Vec::new()
    }

    fn cancel(&mut self) -> Vec<Act> {
        let at = self.clock.now();
        let cause = CancelCause::Asked;
        self.take(vec![Event::Cancelled { cause, at }])
    }

    /// Takes news in, decides, records all of it with one write, and gives what is to be done.
    /// Nothing is done that is not on record: when the journal cannot be written, the run goes
    /// on in memory, as a cancelled one.
    fn take(&mut self, news: Vec<Event>) -> Vec<Act> {
        let decided = self.decide(news);
        let recorded = match &self.error {
            None => self.journal.flush(),
            Some(_) => Ok(()),
        };
        let mut acts = match decided {
            Ok(decisions) => self.act(&decisions),
            Err(error) => {
                self.error = Some(error.into());
                self.kill_all()
            }
        };
        if let Err(error) = recorded {
            self.error.get_or_insert(error.into());
            // Also ends what was decided above before it has begun.
            acts.extend(self.cancel());
        }
        acts
    }

    /// Folds events, and then every decision that follows from them.
    fn decide(&mut self, news: Vec<Event>) -> Result<Vec<Decision>, Illegal> {
        let mut decisions = Vec::new();
        if matches!(self.error, Some(RunError::Illegal(_))) {
            return Ok(decisions);
        }
        for event in news {
            self.fold(&event)?;
        }
        loop {
            let now = self.clock.now();
            let step = step(&self.graph, &self.state, &self.limits, now);
            if step.decisions.is_empty() {
                self.wake_at = step.wake_at;
                self.verdict = step.verdict;
                return Ok(decisions);
            }
            for decision in &step.decisions {
                self.fold(&decision.event(now))?;
            }
            decisions.extend(step.decisions);
        }
    }

    fn fold(&mut self, event: &Event) -> Result<(), Illegal> {
        self.state.fold(&self.graph, event)?;
        if self.error.is_none() {
            self.journal.push(&self.graph, event);
        }
        self.watch.event(&self.graph, &self.state, event);
        Ok(())
    }

    fn act(&mut self, decisions: &[Decision]) -> Vec<Act> {
        let mut acts = Vec::new();
        for decision in decisions {
            match decision {
                Decision::Start { node, attempt } => {
                    let control = Arc::new(Control::default());
                    self.controls.insert(*node, Arc::clone(&control));
                    acts.push(Act::Start(Start {
                        node: *node,
                        attempt: *attempt,
                        control,
                    }));
                }
                Decision::Kill { node, cause, .. } => {
                    if let Some(control) = self.controls.get(node) {
                        control.terminate(*cause);
                        acts.push(Act::Kill(Arc::clone(control)));
                    }
                }
                // Nothing to do beyond the record.
                Decision::Skip { .. } | Decision::GiveUp { .. } | Decision::Cancel { .. } => {}
            }
        }
        acts
    }

    /// Ends everything without the engine, which is not to be asked any more.
    fn kill_all(&mut self) -> Vec<Act> {
        self.wake_at = None;
        let cause = KillCause::Cancel(CancelCause::Asked);
        let controls = self.controls.values();
        controls
            .map(|control| {
                control.terminate(cause);
                Act::Kill(Arc::clone(control))
            })
            .collect()
    }

    fn tick(&mut self) {
        self.watch.tick(&self.graph, &self.state);
    }

    fn is_over(&self) -> bool {
        match self.error {
            Some(RunError::Illegal(_)) => self.controls.is_empty(),
            _ => self.verdict.is_some(),
        }
    }

    fn end(&mut self) -> Option<End> {
        if !self.is_over() {
            return None;
        }
        if self.error.is_none() {
            self.journal.sync();
        }
        let stopped = Verdict {
            phase: Phase::Cancelled,
            return_code: 0,
        };
        Some(End {
            state: std::mem::replace(&mut self.state, RunState::new(&self.graph)),
            verdict: self
                .verdict
                .filter(|_| self.error.is_none())
                .unwrap_or(stopped),
            error: self.error.take(),
        })
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
