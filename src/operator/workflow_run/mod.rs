//! The life of one run: an actor that turns news into decisions.
//!
//! Each turn is the same page of verbs:
//! ```text
//! observe (no client) → fold (no client) → step (no client) → apply (spawns calls) → publish (spawns calls)
//! ```
//! Nothing is awaited between news and decision: calls are tasks of their own whose answers come
//! back as news. What is in memory decides; what stands on the resource is written from it, and
//! after a restart read back by the same folds.
//!
//! Must not compute what the engine computes.

mod decisions;
mod observe;
mod restore;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::Api;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use crate::api::workflow_run::{PodReference, RunPhase, WorkflowRun};
use crate::engine::event::{Ending, Event, KillCause, Outcome};
use crate::engine::graph::{Graph, NodeIx};
use crate::engine::name::Attempt;
use crate::engine::state::{NodeState, RunState};
use crate::engine::step::{Limits, Verdict, step};
use crate::executor::pod::build::pod_name;
use crate::executor::pod::slim::SlimPod;
use crate::operator::apply::{Answer, CallOff, Hand, of_run, pause};
use crate::operator::broken;
use crate::operator::context::Context;
use crate::operator::floor::Floor;
use crate::operator::hub::{News, Told, is_of};
use crate::operator::memory::Charge;
use crate::operator::publish::{Draft, Published, Publisher, View};
use crate::operator::resolve::{self, NO_MEMORY, Program, Unresolved};
use crate::operator::status::{self, PodFacts};

/// How soon, and how often at the end, a run that cannot be resolved looks again, should nothing
/// else happen. Soon at first: what is applied together arrives one after the other.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// How soon a run for whose graph there is no memory looks again.
const NO_MEMORY_AGAIN: Duration = Duration::from_secs(30);

/// Attempts of a run that are on record as begun, and have not: no more are recorded at once, and
/// the next only when few are left. All of these are lost with the operator, and each record is a
/// write.
const BACKLOG: (usize, usize) = (16, 64);
/// The reason of a process node that is not on record as begun; after a restart it begins.
const QUEUED: &str = "Queued";

/// Drives a run to its end. Gives the run back as it is then; none where it is gone, or is not
/// ours any more.
pub(super) async fn drive(
    context: Arc<Context>,
    run: Arc<WorkflowRun>,
    old: bool,
    inbox: &mut UnboundedReceiver<Told>,
    charge: &mut Charge,
) -> Option<Arc<WorkflowRun>> {
    let (answers, answered) = unbounded_channel();
    let (published, publications) = unbounded_channel();
    let mut publisher = Publisher::new(&context, &run, published);
    let mut publications = publications;
    let begun = has_begun(&context, &run, old).await;
    let (run, program) = begin(
        &context,
        run,
        begun,
        inbox,
        &mut publisher,
        &mut publications,
    )
    .await?;
    let program = match program {
        Ok(program) => program,
        Err(over) => return Some(over),
    };
    // What it is to run is in the graph now.
    let run = Arc::new(resolve::without_content(Arc::unwrap_or_clone(run)));
    charge.resize(resolve::size(&run));
    let mut actor = Actor::new(&context, run, program, publisher, answers);
    actor.restore(&context, old).await?;
    let over = actor.live(inbox, answered, publications).await;
    if over.is_none() {
        actor.forsake();
    }
    over.map(|()| Arc::clone(&actor.run))
}

/// Finds what the run runs. While that cannot be found the run says so and waits; where it can
/// never run it is over.
async fn begin(
    context: &Arc<Context>,
    mut run: Arc<WorkflowRun>,
    begun: bool,
    inbox: &mut UnboundedReceiver<Told>,
    publisher: &mut Publisher,
    publications: &mut UnboundedReceiver<Published>,
) -> Option<(Arc<WorkflowRun>, Result<Program, Arc<WorkflowRun>>)> {
    let mut pause = LOOK_AGAIN.0;
    loop {
        if is_going(&run) {
            return None;
        }
        let resolved = if run.spec.cancel == Some(true) && !begun {
            Err(Unresolved::Cancelled)
        } else {
            resolve::resolve(context, &run).await
        };
        let unresolved = match resolved {
            Ok(program) => return Some((run, Ok(program))),
            Err(unresolved) => unresolved,
        };
        let draft = Draft::unresolved(&run, &unresolved, context.clock.now());
        if let Some(draft) = draft {
            publisher.write(draft);
            let published = publications.recv().await?;
            publisher.settle(&published);
            match published {
                Published::Done { run: now, .. } => {
                    context.announce(&run, &now);
                    run = Arc::new(resolve::with_content(&now, &run));
                }
                Published::Conflict { run: now } => {
                    run = Arc::new(resolve::with_content(&now, &run));
                    continue;
                }
                Published::Gone => return None,
                Published::Failed { .. } => {}
            }
            if phase_of(&run).is_final() {
                return Some((Arc::clone(&run), Err(run)));
            }
        }
        // Reading it again costs much where it is large.
        let is_full = matches!(&unresolved, Unresolved::Wait { reason, .. } if reason == NO_MEMORY);
        let length = if is_full { NO_MEMORY_AGAIN } else { pause };
        let wait = tokio::time::timeout(length, inbox.recv()).await;
        let wait = wait.map(|told| told.map(|told| told.news));
        pause = (pause * 2).min(LOOK_AGAIN.1);
        match wait {
            Ok(None | Some(News::Gone)) => return None,
            Ok(Some(News::Run(now))) => {
                if publisher.admit(&now) {
                    run = Arc::new(resolve::with_content(&now, &run));
                }
            }
            Ok(Some(_)) | Err(_) => {}
        }
    }
}

/// Whether somebody has deleted the run. Nothing more is begun for it.
fn is_going(run: &WorkflowRun) -> bool {
    run.metadata.deletion_timestamp.is_some() && !broken::rule("4-deletion")
}

fn phase_of(run: &WorkflowRun) -> RunPhase {
    run.status
        .as_ref()
        .and_then(|status| status.phase)
        .unwrap_or_default()
}

/// Whether something of the run was begun by an earlier operator. The first pods do not wait for
/// the first record, so where there is none they are asked for.
async fn has_begun(context: &Context, run: &WorkflowRun, old: bool) -> bool {
    let recorded = run.status.as_ref();
    if recorded.is_some_and(|status| status.start_time.is_some()) {
        return true;
    }
    // Every other run looks for its pods when it is taken up. A cancel that comes later meets none
    // from before the first record either: only a run that needs no copies begins without one, and
    // such a run is resolved at once.
    if !old || run.spec.cancel != Some(true) {
        return false;
    }
    let namespace = run.namespace().unwrap_or_default();
    let pods: Api<SlimPod> = Api::namespaced(context.client.clone(), &namespace);
    let uid = run.uid().unwrap_or_default();
    let mut tries = 0;
    let mut pages = of_run(&uid);
    loop {
        match pages.next::<_, SlimPod>(&pods).await {
            // Labels only filter.
            Ok(Some(page)) if page.iter().any(|pod| is_of(&pod.0, &uid)) => return true,
            Ok(Some(_)) => {}
            Ok(None) => return false,
            Err(error) => {
                tracing::warn!(%error, "cannot look for pods of a cancelled run yet");
                pages.restart();
                tokio::time::sleep(pause(tries)).await;
                tries += 1;
            }
        }
    }
}

/// What is known of a node's current attempt.
struct Record {
    attempt: Attempt,
    name: String,
    uid: Option<String>,
    floor: Floor,
    call_off: CallOff,
    made: Made,
    waits: Option<(String, String)>,
    /// Of a process, what was enforced on it.
    sandbox: Option<String>,
    /// News that came before the answer to our own create.
    early: Option<News>,
    /// When its pod was last heard of.
    heard: Instant,
}

/// How far a pod, or a process, has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Made {
    /// Of a process: it waits to be put on record as begun. Where it is, it is not begun again.
    Queued,
    /// It may only be made once this version of the state is on record: a new attempt is
    /// persisted before its pod exists.
    AfterRecord(u64),
    /// It is being made.
    Making,
    /// It is there.
    There,
    /// It was called off before it was made.
    Never,
}

struct Actor {
    context: Arc<Context>,
    run: Arc<WorkflowRun>,
    program: Arc<Program>,
    limits: Limits,
    state: RunState,
    hand: Hand,
    publisher: Publisher,
    records: BTreeMap<NodeIx, Record>,
    /// Process nodes that are [`Made::Queued`], and those that are to begin, or may have.
    queued: BTreeSet<NodeIx>,
    backlog: BTreeSet<NodeIx>,
    /// Pods, as last seen, that are waited for only until some time.
    waiting: BTreeMap<NodeIx, (Timestamp, Box<Pod>)>,
    /// Pods that are being deleted, with the version of the state that has to be on record before
    /// they may go.
    held: BTreeMap<String, (u64, Pod)>,
    /// Finished pods that are not kept, likewise.
    unwanted: Vec<(u64, String, String)>,
    /// Counts folds; what is on record is a version of this.
    version: u64,
    recorded: u64,
    /// When what is being observed came.
    came: Instant,
    /// When the first news came that made a node final and that nothing has followed from yet, for
    /// the latency of hand-offs.
    heard: Option<Instant>,
    verdict: Option<Verdict>,
    /// When the API is asked whether the watches have missed something.
    survey: Instant,
    /// The run as it was when it was last told of.
    told: Arc<WorkflowRun>,
}

impl Actor {
    fn new(
        context: &Arc<Context>,
        run: Arc<WorkflowRun>,
        program: Program,
        publisher: Publisher,
        answers: UnboundedSender<Answer>,
    ) -> Self {
        let namespace = run.namespace().unwrap_or_default();
        let hand = Hand::new(Arc::clone(context), &namespace, answers);
        let state = RunState::new(&program.graph).with_timeouts_kept();
        let mut actor = Self {
            context: Arc::clone(context),
            limits: Limits::default(),
            told: Arc::clone(&run),
            run,
            program: Arc::new(program),
            state,
            hand,
            publisher,
            records: BTreeMap::new(),
            queued: BTreeSet::new(),
            backlog: BTreeSet::new(),
            waiting: BTreeMap::new(),
            held: BTreeMap::new(),
            unwanted: Vec::new(),
            version: 1,
            recorded: 0,
            came: Instant::now(),
            heard: None,
            verdict: None,
            survey: Instant::now() + context.options.resync,
        };
        actor.limits = resolve::limits(&actor.run);
        actor
    }

    fn graph(&self) -> Arc<Graph> {
        Arc::clone(&self.program.graph)
    }

    fn is_process(&self, ix: NodeIx) -> bool {
        self.program.processes.contains(&ix)
    }

    fn record(&self, ix: NodeIx, attempt: Attempt, made: Made) -> Record {
        Record {
            attempt,
            name: pod_name(&self.program.pods.uid, self.program.graph.name(ix), attempt),
            uid: None,
            floor: Floor::default(),
            call_off: CallOff::default(),
            made,
            waits: None,
            sandbox: None,
            early: None,
            heard: Instant::now(),
        }
    }

    /// Goes on until the run is over and on record. None: it is gone.
    async fn live(
        &mut self,
        inbox: &mut UnboundedReceiver<Told>,
        mut answers: UnboundedReceiver<Answer>,
        mut publications: UnboundedReceiver<Published>,
    ) -> Option<()> {
        loop {
            let turn = Instant::now();
            let wake = self.step();
            self.intend();
            self.publish();
            self.context.metrics.turned("workflowruns", turn.elapsed());
            if self.verdict.is_some() && self.recorded == self.version {
                self.let_go();
                return Some(());
            }
            let alarm = self.alarm(wake);
            tokio::select! {
                news = inbox.recv() => {
                    let mut news = Some(news?);
                    // All that is there already is one turn.
                    while let Some(it) = news {
                        self.came = it.at;
                        self.observe(it.news)?;
                        news = inbox.try_recv().ok();
                    }
                }
                Some(answer) = answers.recv() => {
                    let mut answer = Some(answer);
                    while let Some(it) = answer {
                        self.came = Instant::now();
                        self.observe_answer(it)?;
                        answer = answers.try_recv().ok();
                    }
                }
                Some(published) = publications.recv() => self.observe_publication(published)?,
                () = async {
                    match alarm {
                        Some(at) => tokio::time::sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                } => self.observe_time(),
            }
        }
    }

    /// The run is gone: nobody will ask for what its pods have to tell.
    fn forsake(&mut self) {
        for (_, pod) in std::mem::take(&mut self.held).into_values() {
            self.hand.strip(&pod);
        }
    }

    /// When to look again should nothing be heard.
    fn alarm(&self, wake: Option<Timestamp>) -> Option<Instant> {
        let now = self.context.clock.now();
        let waiting = self.waiting.values().map(|(until, _)| *until);
        let first = waiting.chain(wake).min();
        let first = first.map(|at| {
            let left = Duration::try_from(at.duration_since(now)).unwrap_or_default();
            // Never busy, whatever the times say.
            Instant::now() + left.max(Duration::from_millis(10))
        });
        let all = [first, self.publisher.due(), Some(self.survey)];
        all.into_iter().flatten().min()
    }

    // fold: no client

    fn end(&mut self, node: NodeIx, attempt: Attempt, outcome: Outcome, at: Timestamp) {
        let outcome = status::kept(&self.program.graph, node, outcome);
        self.fold(&[Event::Ended {
            node,
            attempt,
            outcome,
            at,
        }]);
    }

    /// Ends an attempt that has told nothing.
    fn end_silent(&mut self, node: NodeIx, attempt: Attempt, ending: Ending, at: Timestamp) {
        self.end(node, attempt, Outcome::silent(ending), at);
    }

    /// Why a node that runs is to be killed, if it is.
    fn killing(&self, ix: NodeIx) -> Option<KillCause> {
        match self.state.node(ix) {
            NodeState::Running(running) => running.killing,
            _ => None,
        }
    }

    /// Takes events in; gives back how many had their effect.
    fn fold(&mut self, events: &[Event]) -> usize {
        let graph = self.graph();
        let mut taken = 0;
        for event in events {
            if let Err(illegal) = self.state.fold(&graph, event) {
                // Nothing is changed by it; what is final stays final.
                tracing::error!(%illegal, "an event was refused; this is a bug of apscli");
                continue;
            }
            self.version += 1;
            taken += 1;
            let Some(ix) = event.node() else {
                self.publisher.touch();
                continue;
            };
            self.publisher.touch_node(ix);
            if let (NodeState::Finished(finished), Some(record)) =
                (self.state.node(ix), self.records.get_mut(&ix))
            {
                record.waits = None;
                self.waiting.remove(&ix);
                if let Some((_, since)) = finished.ran {
                    let took = Duration::try_from(finished.ended.duration_since(since));
                    self.context
                        .metrics
                        .node_ended(phase_word(finished.phase), took.unwrap_or_default());
                }
                self.unwant(ix, self.version);
            }
        }
        taken
    }

    /// The pod of a node that is over goes once this version is on record, unless it is to stay.
    fn unwant(&mut self, ix: NodeIx, version: u64) {
        let (NodeState::Finished(finished), Some(record)) =
            (self.state.node(ix), self.records.get(&ix))
        else {
            return;
        };
        let retention = self.run.spec.pod_retention.unwrap_or_default();
        let wanted = retention.keeps(finished.phase == crate::engine::state::Phase::Succeeded);
        if let (false, Some(uid)) = (wanted, &record.uid) {
            self.unwanted
                .push((version, record.name.clone(), uid.clone()));
        }
    }

    // step: no client

    /// Decides until there is nothing more to decide; gives back when to look again.
    fn step(&mut self) -> Option<Timestamp> {
        let graph = self.graph();
        loop {
            let now = self.context.clock.now();
            let next = step(&graph, &self.state, &self.limits, now);
            if let Some(verdict) = next.verdict {
                if self.verdict.is_none() {
                    self.publisher.touch();
                }
                self.verdict = Some(verdict);
                return None;
            }
            if next.decisions.is_empty() {
                self.heard = None;
                return next.wake_at;
            }
            let events: Vec<Event> = next
                .decisions
                .iter()
                .map(|decision| decision.event(now))
                .collect();
            if self.fold(&events) == 0 {
                // Only a bug leads here. Deciding the same again and again would stop all runs.
                return Some(now.checked_add(LOOK_AGAIN.1).unwrap_or(now));
            }
            for decision in &next.decisions {
                self.apply(decision);
            }
        }
    }

    // publish: spawns calls

    fn publish(&mut self) {
        if !self.publisher.is_ready(self.verdict.is_some()) {
            return;
        }
        let graph = self.graph();
        let facts = |ix: NodeIx| {
            self.records
                .get(&ix)
                .map_or_else(PodFacts::default, |record| {
                    if self.is_process(ix) {
                        return PodFacts {
                            process: true,
                            waits: record.waits.clone(),
                            sandbox: record.sandbox.clone(),
                            pod: None,
                        };
                    }
                    // Of what is over, only a pod that there was.
                    let runs = matches!(self.state.node(ix), NodeState::Running(_));
                    let pod = (runs || record.uid.is_some()).then(|| PodReference {
                        name: record.name.clone(),
                        uid: record.uid.clone(),
                    });
                    PodFacts {
                        pod,
                        waits: record.waits.clone(),
                        ..PodFacts::default()
                    }
                })
        };
        let view = View {
            graph: &graph,
            state: &self.state,
            run: &self.run,
            resolved: &self.program.resolved,
            verdict: self.verdict,
            facts: &facts,
            now: self.context.clock.now(),
            version: self.version,
        };
        let draft = Draft::new(&view, &self.publisher.touched(graph.len()));
        self.publisher.write(draft);
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        if let (Some(runner), false) = (&self.context.runner, self.program.processes.is_empty()) {
            runner.over(&self.program.pods.uid);
        }
    }
}

/// What a pod waits for has changed between these. Every pod goes through some of them in a moment,
/// which is no news yet.
fn touch_wait(publisher: &mut Publisher, ix: NodeIx, reasons: &[&str]) {
    const SOON_OVER: [&str; 3] = ["Pending", "ContainerCreating", "PodInitializing"];
    if reasons.iter().all(|reason| SOON_OVER.contains(reason)) {
        publisher.touch_node_later(ix);
    } else {
        publisher.touch_node(ix);
    }
}

fn phase_word(phase: crate::engine::state::Phase) -> &'static str {
    use crate::engine::state::Phase;
    match phase {
        Phase::Pending => "Pending",
        Phase::Running => "Running",
        Phase::Succeeded => "Succeeded",
        Phase::Failed => "Failed",
        Phase::Error => "Error",
        Phase::Cancelled => "Cancelled",
        Phase::Skipped => "Skipped",
    }
}
