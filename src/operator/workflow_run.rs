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

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::Api;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use crate::api::page::WorkflowRunPage;
use crate::api::workflow_run::{NodeStatus, PodReference, PodRetention, RunPhase, WorkflowRun};
use crate::engine::event::{CancelCause, Ending, Event, KillCause, Outcome};
use crate::engine::graph::{Graph, NodeIx};
use crate::engine::name::Attempt;
use crate::engine::state::{NodeState, RunState};
use crate::engine::step::{Decision, Limits, Verdict, step};
use crate::executor::pod::build::{decision_hash, pod_name};
use crate::executor::pod::observe::{Known, PATIENCE, Seen, observe};
use crate::executor::pod::{ANNOTATION_ATTEMPT, ANNOTATION_DECISION, FINALIZER, NODE};

use super::apply::{Answer, CallOff, Hand, Moved, Order, Work, of_run};
use super::context::Context;
use super::floor::Floor;
use super::hub::News;
use super::publish::{Draft, Published, Publisher, View};
use super::resolve::{self, Program, Unresolved};
use super::runner;
use super::status::{self, PodFacts};

/// How soon, and how often at the end, a run that cannot be resolved looks again, should nothing
/// else happen. Soon at first: what is applied together arrives one after the other.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

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
    inbox: &mut UnboundedReceiver<News>,
) -> Option<Arc<WorkflowRun>> {
    let (answers, answered) = unbounded_channel();
    let (published, publications) = unbounded_channel();
    let mut publisher = Publisher::new(&context, &run, published);
    let mut publications = publications;
    let (run, program) = begin(&context, run, inbox, &mut publisher, &mut publications).await?;
    let program = match program {
        Ok(program) => program,
        Err(over) => return Some(over),
    };
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
    inbox: &mut UnboundedReceiver<News>,
    publisher: &mut Publisher,
    publications: &mut UnboundedReceiver<Published>,
) -> Option<(Arc<WorkflowRun>, Result<Program, Arc<WorkflowRun>>)> {
    let mut pause = LOOK_AGAIN.0;
    loop {
        if run.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let resolved = if run.spec.cancel == Some(true) && !has_begun(&run) {
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
                    run = now;
                }
                Published::Conflict { run: now } => {
                    run = now;
                    continue;
                }
                Published::Gone => return None,
                Published::Failed { .. } => {}
            }
            if phase_of(&run).is_final() {
                return Some((Arc::clone(&run), Err(run)));
            }
        }
        let wait = tokio::time::timeout(pause, inbox.recv()).await;
        pause = (pause * 2).min(LOOK_AGAIN.1);
        match wait {
            Ok(None | Some(News::Gone)) => return None,
            Ok(Some(News::Run(now))) => {
                if publisher.admit(&now) {
                    run = now;
                }
            }
            Ok(Some(_)) | Err(_) => {}
        }
    }
}

fn phase_of(run: &WorkflowRun) -> RunPhase {
    run.status
        .as_ref()
        .and_then(|status| status.phase)
        .unwrap_or_default()
}

fn has_begun(run: &WorkflowRun) -> bool {
    run.status
        .as_ref()
        .is_some_and(|status| status.start_time.is_some())
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
    /// When the last news came that made a node final, for the latency of hand-offs.
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

    /// Takes up what an earlier operator, or nobody, has done. None: the run is gone.
    async fn restore(&mut self, context: &Context, old: bool) -> Option<()> {
        let now = context.clock.now();
        let recorded = self.run.status.clone().unwrap_or_default();
        let begun = recorded.start_time.as_ref().map(|time| time.0);
        let pages = match recorded.pages {
            Some(pages) if pages > 0 => self.pages(pages).await,
            _ => Vec::new(),
        };
        let lists = pages
            .iter()
            .flat_map(|page| &page.spec.nodes)
            .chain(&recorded.nodes);
        let entries = status::merged(lists);
        let graph = self.graph();
        let mut events = vec![Event::RunStarted {
            at: begun.unwrap_or(now),
        }];
        // First, because nothing cancels a run of which all nodes are over.
        if let Some(cause) = status::cancelled(recorded.cancel_cause, entries.values()) {
            events.push(Event::Cancelled { cause, at: now });
        }
        for (ix, node) in graph.iter() {
            if let Some(entry) = entries.get(node.name.as_str()) {
                events.extend(status::events(ix, entry));
            }
        }
        self.fold(&events);
        self.wishes(now);
        let entries = entries
            .into_iter()
            .map(|(name, entry)| (name.to_owned(), entry.clone()))
            .collect::<BTreeMap<String, NodeStatus>>();
        for (ix, node) in graph.iter() {
            // What is over keeps its pod's name on record, wherever that pod is.
            if let (NodeState::Finished(finished), Some(entry)) =
                (self.state.node(ix), entries.get(node.name.as_str()))
                && let (Some((attempt, _)), Some(pod)) = (finished.ran, &entry.pod)
            {
                let mut record = self.record(ix, attempt, Made::There);
                record.uid.clone_from(&pod.uid);
                self.records.insert(ix, record);
            }
            if let (NodeState::Finished(finished), Some(entry)) =
                (self.state.node(ix), entries.get(node.name.as_str()))
                && let (Some((attempt, _)), true) = (finished.ran, self.is_process(ix))
            {
                let mut record = self.record(ix, attempt, Made::There);
                record.sandbox.clone_from(&entry.sandbox);
                self.records.insert(ix, record);
            }
        }
        let found = if old {
            self.adopt_all(&entries).await
        } else {
            Vec::new()
        };
        // Nodes that were begun, as far as the record goes, and whose pod is not there.
        let running: Vec<NodeIx> = self.state.running().collect();
        for ix in running {
            if self.records.contains_key(&ix) {
                continue;
            }
            let NodeState::Running(running) = self.state.node(ix) else {
                continue;
            };
            let attempt = running.attempt;
            let recorded = entries.get(graph.name(ix).as_str());
            let pod = recorded.and_then(|entry| entry.pod.as_ref());
            if self.is_process(ix) {
                let queued = recorded.is_some_and(|it| it.reason.as_deref() == Some(QUEUED));
                if queued {
                    self.queue(ix, attempt);
                } else {
                    let record = self.record(ix, attempt, Made::There);
                    self.records.insert(ix, record);
                    let message = "the operator ended, and with it the process".to_owned();
                    self.end(ix, attempt, Outcome::silent(Ending::Lost(message)), now);
                }
                continue;
            }
            if pod.is_some_and(|pod| pod.uid.is_some()) {
                // It was there, and its finalizer should have kept it: somebody took it away.
                let message = "its pod is gone; somebody removed it with its finalizer".to_owned();
                self.end(ix, attempt, Outcome::silent(Ending::Lost(message)), now);
            } else {
                // Absent means never created; see the finalizer.
                self.create(ix, attempt, Made::Making);
            }
        }
        if self.state.cancelled().is_none() {
            // What ended by itself while nobody looked ended then, and not at a deadline that
            // has passed since. (What was deleted may have been so by us, for that deadline.)
            for pod in found
                .iter()
                .filter(|pod| pod.metadata.deletion_timestamp.is_none())
            {
                self.observe_pod(pod);
            }
        }
        self.step();
        for pod in found {
            self.observe_pod(&pod);
        }
        Some(())
    }

    async fn pages(&self, pages: u32) -> Vec<WorkflowRunPage> {
        let namespace = self.run.namespace().unwrap_or_default();
        let api: Api<WorkflowRunPage> = Api::namespaced(self.context.client.clone(), &namespace);
        let mut read = Vec::new();
        for index in 0..pages {
            let name = super::publish::page_name(&self.program.pods.uid, index);
            let page = self
                .context
                .insist("read a page", || api.get_opt(&name))
                .await;
            let owner = self.run.metadata.uid.as_ref();
            let page = page.filter(|page| {
                page.owner_references()
                    .iter()
                    .any(|it| Some(&it.uid) == owner)
            });
            if let Some(page) = page {
                let version = page.metadata.resource_version.clone();
                self.publisher.page_is(index, version);
                read.push(page);
            }
        }
        read
    }

    /// Takes over the pods that are there already; gives back those that have something to tell.
    async fn adopt_all(&mut self, entries: &BTreeMap<String, NodeStatus>) -> Vec<Pod> {
        let context = Arc::clone(&self.context);
        let namespace = self.run.namespace().unwrap_or_default();
        let api: Api<Pod> = Api::namespaced(context.client.clone(), &namespace);
        let all = of_run(&self.program.pods.uid);
        let mut found = Vec::new();
        let mut params = all.clone();
        loop {
            let page = context.insist("list the run's pods", || async {
                match api.list(&params).await {
                    // The rest of the list is too old to be told: from the beginning.
                    Err(kube::Error::Api(status)) if status.code == 410 => Ok(None),
                    page => page.map(Some),
                }
            });
            let Some(page) = page.await else {
                params = all.clone();
                continue;
            };
            found.extend(self.adopt(page.items, entries));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = all.clone().continue_token(&token),
                None => return found,
            }
        }
    }

    fn adopt(&mut self, pods: Vec<Pod>, entries: &BTreeMap<String, NodeStatus>) -> Vec<Pod> {
        let graph = self.graph();
        let mut found = Vec::new();
        for pod in pods {
            let Some((ix, attempt)) = self.whose(&pod) else {
                continue;
            };
            let uid = pod.metadata.uid.clone();
            let entry = entries.get(graph.name(ix).as_str());
            let recorded = entry
                .filter(|entry| entry.attempt == Some(attempt.get()))
                .and_then(|entry| entry.pod.as_ref()?.uid.clone());
            let ours = match recorded {
                Some(recorded) => Some(recorded) == uid,
                None => self.is_as_decided(&pod, ix),
            };
            if !ours {
                continue;
            }
            if *self.state.node(ix) == NodeState::Pending && attempt == Attempt::FIRST {
                let created = pod.metadata.creation_timestamp.as_ref();
                let at = created.map_or_else(|| self.context.clock.now(), |time| time.0);
                self.fold(&[Event::Started {
                    node: ix,
                    attempt,
                    at,
                }]);
            }
            let (current, over) = match self.state.node(ix) {
                NodeState::Running(running) => (running.attempt == attempt, false),
                NodeState::Finished(finished) => {
                    (finished.ran.is_some_and(|(ran, _)| ran == attempt), true)
                }
                NodeState::Pending | NodeState::Lost { .. } => (false, false),
            };
            if current && !self.records.contains_key(&ix) {
                let mut record = self.record(ix, attempt, Made::There);
                record.uid = uid;
                self.records.insert(ix, record);
            }
            if current && over {
                // Its end is on record; whoever wrote that may not have come to the next step.
                self.unwant(ix, 0);
            }
            if !over || pod.metadata.deletion_timestamp.is_some() {
                found.push(pod);
            }
        }
        found
    }

    fn is_as_decided(&self, pod: &Pod, ix: NodeIx) -> bool {
        let owners = pod.owner_references();
        let owned = owners
            .iter()
            .any(|owner| owner.controller == Some(true) && owner.uid == self.program.pods.uid);
        let said = pod.annotations().get(ANNOTATION_DECISION);
        let decided = decision_hash(&self.program.pods, self.program.graph.node(ix));
        owned && decided.is_ok_and(|decided| said == Some(&decided))
    }

    /// The node and attempt that a pod is of: as it says, if its name agrees, or as its UID is on
    /// record, whatever somebody has made it say since.
    fn whose(&self, pod: &Pod) -> Option<(NodeIx, Attempt)> {
        self.says_whose(pod).or_else(|| {
            let uid = pod.metadata.uid.as_ref()?;
            let mut records = self.records.iter();
            let found = records.find(|(_, record)| record.uid.as_ref() == Some(uid));
            found.map(|(ix, record)| (*ix, record.attempt))
        })
    }

    fn says_whose(&self, pod: &Pod) -> Option<(NodeIx, Attempt)> {
        let annotations = pod.annotations();
        let ix = self.program.graph.find(annotations.get(NODE)?)?;
        let number: u32 = annotations.get(ANNOTATION_ATTEMPT)?.parse().ok()?;
        let attempt = Attempt::new(number)?;
        let name = pod_name(&self.program.pods.uid, self.program.graph.name(ix), attempt);
        (pod.metadata.name.as_deref() == Some(&*name)).then_some((ix, attempt))
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
        inbox: &mut UnboundedReceiver<News>,
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
                        self.observe(it)?;
                        news = inbox.try_recv().ok();
                    }
                }
                Some(answer) = answers.recv() => {
                    let mut answer = Some(answer);
                    while let Some(it) = answer {
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

    // observe: no client

    /// None: the run is gone, nothing more is to be done for it.
    fn observe(&mut self, news: News) -> Option<()> {
        match news {
            News::Run(run) => {
                if run.metadata.deletion_timestamp.is_some() {
                    return None;
                }
                if self.publisher.admit(&run) {
                    self.know(run);
                }
            }
            News::Gone => return None,
            News::Pod(pod) => self.observe_pod(&pod),
            News::PodGone(pod) => self.observe_pod_gone(pod),
            News::Listed(uids) => {
                let missing: Vec<NodeIx> = self
                    .records
                    .iter()
                    .filter(|(ix, record)| {
                        matches!(self.state.node(**ix), NodeState::Running(_))
                            && record.uid.as_ref().is_some_and(|uid| !uids.contains(uid))
                    })
                    .map(|(ix, _)| *ix)
                    .collect();
                for ix in missing {
                    self.look(ix);
                }
            }
        }
        Some(())
    }

    /// Takes in the run as it is now.
    fn know(&mut self, run: Arc<WorkflowRun>) {
        let changed = run.metadata.generation != self.run.metadata.generation;
        self.run = run;
        if changed {
            self.wishes(self.context.clock.now());
        }
    }

    /// What the run's author asks for now.
    fn wishes(&mut self, now: Timestamp) {
        self.limits = resolve::limits(&self.run);
        let suspend = self.run.spec.suspend == Some(true);
        let mut events = Vec::new();
        if suspend != self.state.is_suspended() {
            events.push(Event::Suspended(suspend));
        }
        if self.run.spec.cancel == Some(true) && self.state.cancelled().is_none() {
            events.push(Event::Cancelled {
                cause: CancelCause::Asked,
                at: now,
            });
        }
        self.fold(&events);
        // The status says of which version of the spec it is.
        self.publisher.touch();
    }

    fn observe_pod(&mut self, pod: &Pod) {
        let Some((ix, attempt)) = self.whose(pod) else {
            return;
        };
        let Some(record) = self
            .records
            .get_mut(&ix)
            .filter(|record| record.attempt == attempt)
        else {
            // Of an attempt that is over and on record: the next was recorded before it began.
            self.hold(pod, self.recorded);
            return;
        };
        let Some(uid) = &record.uid else {
            if matches!(self.state.node(ix), NodeState::Running(_)) {
                record.early = Some(News::Pod(Box::new(pod.clone())));
            } else {
                self.observe_ghost(pod, ix);
            }
            return;
        };
        if pod.metadata.uid.as_ref() != Some(uid)
            || !record.floor.admit(pod.metadata.resource_version.as_deref())
        {
            return;
        }
        record.heard = Instant::now();
        let now = self.context.clock.now();
        if let NodeState::Running(running) = self.state.node(ix)
            && running.attempt == attempt
        {
            let known = Known {
                killing: running.killing,
                now,
                patience: PATIENCE,
            };
            let before = record.waits.take();
            self.waiting.remove(&ix);
            match observe(pod, &known) {
                Seen::Ended { outcome, at } => {
                    self.heard = Some(Instant::now());
                    // The cluster's times are whole seconds, rounded down.
                    let at = at.max(running.since);
                    self.end(ix, attempt, outcome, at);
                }
                Seen::Running { .. } => {
                    if let Some((reason, _)) = before {
                        touch_wait(&mut self.publisher, ix, &[reason.as_str()]);
                    }
                }
                Seen::Waiting {
                    reason,
                    message,
                    until,
                } => {
                    let waits = Some((reason, message));
                    let until = until.map(|until| (ix, (until, Box::new(pod.clone()))));
                    self.waiting.extend(until);
                    if waits != before {
                        let both = waits.iter().chain(&before);
                        let both: Vec<&str> = both.map(|(reason, _)| reason.as_str()).collect();
                        touch_wait(&mut self.publisher, ix, &both);
                    }
                    record.waits = waits;
                }
            }
        }
        self.hold(pod, self.version);
    }

    /// A pod whose creation was called off in doubt, and came to pass all the same.
    fn observe_ghost(&mut self, pod: &Pod, ix: NodeIx) {
        if !self.is_as_decided(pod, ix) {
            return;
        }
        match (&pod.metadata.deletion_timestamp, &pod.metadata.uid) {
            (None, Some(uid)) => self.hand.delete(pod.name_any(), uid.clone()),
            _ => self.hold(pod, self.version),
        }
    }

    fn observe_pod_gone(&mut self, pod: Box<Pod>) {
        if let Some(uid) = &pod.metadata.uid {
            self.held.remove(uid);
        }
        let Some((ix, attempt)) = self.whose(&pod) else {
            return;
        };
        let Some(record) = self
            .records
            .get_mut(&ix)
            .filter(|record| record.attempt == attempt)
        else {
            return;
        };
        match &record.uid {
            None => record.early = Some(News::PodGone(pod)),
            Some(uid) if pod.metadata.uid.as_ref() == Some(uid) => {
                self.observe_pod(&pod);
                if matches!(self.state.node(ix), NodeState::Running(_)) {
                    self.look(ix);
                }
            }
            Some(_) => {}
        }
    }

    /// Asks the API server itself whether a node's pod is still there.
    fn look(&self, ix: NodeIx) {
        if let Some(Record {
            attempt,
            name,
            uid: Some(uid),
            ..
        }) = self.records.get(&ix)
        {
            let work = Work {
                node: ix,
                attempt: *attempt,
            };
            self.hand.look(work, name.clone(), uid.clone());
        }
    }

    /// A pod that is being deleted is let go once `version` is on record.
    fn hold(&mut self, pod: &Pod, version: u64) {
        let held = pod.finalizers().iter().any(|it| it == FINALIZER);
        if let (true, Some(_), Some(uid)) =
            (held, &pod.metadata.deletion_timestamp, &pod.metadata.uid)
        {
            let over = self
                .whose(pod)
                .is_none_or(|(ix, attempt)| match self.state.node(ix) {
                    NodeState::Running(running) => running.attempt != attempt,
                    _ => true,
                });
            if over {
                let version = self.held.get(uid).map_or(version, |(first, _)| *first);
                self.held.insert(uid.clone(), (version, pod.clone()));
                self.let_go();
            }
        }
    }

    fn let_go(&mut self) {
        let recorded = self.recorded;
        let free: Vec<String> = (self.held.iter())
            .filter(|(_, (version, _))| *version <= recorded)
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in free {
            if let Some((_, pod)) = self.held.remove(&uid) {
                self.hand.strip(&pod);
            }
        }
        let (due, later) = std::mem::take(&mut self.unwanted)
            .into_iter()
            .partition(|(version, ..)| *version <= recorded);
        self.unwanted = later;
        let due: Vec<(u64, String, String)> = due;
        for (_, name, uid) in due {
            self.hand.delete(name, uid);
        }
    }

    /// None: the run is gone.
    fn observe_answer(&mut self, answer: Answer) -> Option<()> {
        let now = self.context.clock.now();
        match answer {
            Answer::Created(work, pod) => {
                let Some(record) = self.current(&work) else {
                    return Some(());
                };
                record.made = Made::There;
                record.uid.clone_from(&pod.metadata.uid);
                record.floor.admit(pod.metadata.resource_version.as_deref());
                record.waits = None;
                let early = record.early.take();
                let killing = match self.state.node(work.node) {
                    NodeState::Running(running) => running.killing.is_some(),
                    _ => false,
                };
                if killing {
                    self.delete(work.node);
                }
                self.publisher.touch_node(work.node);
                self.observe_pod(&pod);
                match early {
                    Some(News::Pod(pod)) => self.observe_pod(&pod),
                    Some(News::PodGone(pod)) => self.observe_pod_gone(pod),
                    _ => {}
                }
            }
            Answer::NotYet(work, why) => {
                let Some(record) = self.current(&work) else {
                    return Some(());
                };
                let waits = Some(("NotCreated".to_owned(), why));
                if record.waits != waits {
                    record.waits = waits;
                    self.publisher.touch_node(work.node);
                }
            }
            Answer::Refused(work, why) => {
                if self.current(&work).is_some() {
                    self.end(
                        work.node,
                        work.attempt,
                        Outcome::silent(Ending::NotStarted(why)),
                        now,
                    );
                }
            }
            Answer::CalledOff(work) => {
                let cause = match self.state.node(work.node) {
                    NodeState::Running(running) => running.killing,
                    _ => None,
                };
                if let (Some(cause), true) = (cause, self.current(&work).is_some()) {
                    self.end(
                        work.node,
                        work.attempt,
                        Outcome::silent(Ending::Killed(cause)),
                        now,
                    );
                }
            }
            Answer::Looked(work, Some(pod)) => {
                if self.current(&work).is_some() {
                    self.observe_pod(&pod);
                }
            }
            Answer::Looked(work, None) => {
                if self.current(&work).is_some()
                    && matches!(self.state.node(work.node), NodeState::Running(_))
                {
                    let message = "its pod is gone; somebody deleted it".to_owned();
                    self.end(
                        work.node,
                        work.attempt,
                        Outcome::silent(Ending::Lost(message)),
                        now,
                    );
                }
            }
            Answer::Stripped(uid) => {
                self.held.remove(&uid);
            }
            Answer::Process(work, moved) => self.observe_process(&work, moved, now),
            Answer::Surveyed(run, pods) => {
                let all = pods.iter().filter_map(|pod| pod.metadata.uid.clone());
                let listed = News::Listed(Arc::new(all.collect()));
                self.observe(match run {
                    Some(run) => News::Run(Arc::from(run)),
                    None => News::Gone,
                })?;
                for pod in pods {
                    self.observe_pod(&pod);
                }
                self.observe(listed)?;
            }
        }
        Some(())
    }

    fn observe_process(&mut self, work: &Work, moved: Moved, now: Timestamp) {
        let Some(record) = self.current(work) else {
            return;
        };
        match moved {
            Moved::Waits(why) => {
                let waits = Some(("Waiting".to_owned(), why));
                if record.waits != waits {
                    record.waits = waits;
                    self.publisher.touch_node(work.node);
                }
            }
            Moved::Began => {
                record.made = Made::There;
                if record.waits.take().is_some() {
                    self.publisher.touch_node(work.node);
                }
                self.backlog.remove(&work.node);
            }
            Moved::Ended(outcome, enforced) => {
                record.sandbox = enforced;
                self.backlog.remove(&work.node);
                self.heard = Some(Instant::now());
                self.end(work.node, work.attempt, *outcome, now);
            }
        }
    }

    /// Asks for the run and its pods where nothing was heard of one that runs, or of a run that is
    /// held back, for long: a watch that misses an event is not told of it again.
    fn look_around(&mut self) {
        let now = Instant::now();
        if self.survey > now {
            return;
        }
        let resync = self.context.options.resync;
        self.survey = now + resync;
        let silent = self.state.running().any(|ix| {
            let record = self.records.get(&ix).filter(|_| !self.is_process(ix));
            record.is_some_and(|it| it.made == Made::There && it.heard + resync <= now)
        });
        if silent || self.state.is_suspended() {
            let uid = self.program.pods.uid.clone();
            self.hand.survey(self.run.name_any(), uid);
        }
    }

    fn current(&mut self, work: &Work) -> Option<&mut Record> {
        let record = self.records.get_mut(&work.node)?;
        (record.attempt == work.attempt).then_some(record)
    }

    fn observe_publication(&mut self, published: Published) -> Option<()> {
        self.publisher.settle(&published);
        match published {
            Published::Done { version, run } => {
                self.recorded = version;
                // Not from what a watch has shown meanwhile: that may be this very write.
                self.context.announce(&self.told, &run);
                self.told = run;
                // A watch may have shown a newer one already.
                let newest = Arc::clone(self.publisher.run());
                if newest.metadata.deletion_timestamp.is_some() {
                    return None;
                }
                self.know(newest);
                self.let_go();
                let due: Vec<(NodeIx, Attempt)> = (self.records.iter())
                    .filter(|(_, record)| {
                        matches!(record.made, Made::AfterRecord(needed) if needed <= version)
                    })
                    .map(|(ix, record)| (*ix, record.attempt))
                    .collect();
                for (ix, attempt) in due {
                    if self.is_process(ix) {
                        self.hand_over(ix, attempt);
                    } else {
                        self.create(ix, attempt, Made::Making);
                    }
                }
            }
            Published::Conflict { run } => {
                if run.metadata.deletion_timestamp.is_some() {
                    return None;
                }
                self.know(run);
            }
            Published::Gone => return None,
            Published::Failed { .. } => {}
        }
        Some(())
    }

    /// Waits that have come to their end.
    fn observe_time(&mut self) {
        let now = self.context.clock.now();
        let due = self.waiting.extract_if(.., |_, (until, _)| *until <= now);
        let due: Vec<Box<Pod>> = due.map(|(_, (_, pod))| pod).collect();
        for pod in due {
            self.observe_pod(&pod);
        }
        self.look_around();
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
        let wanted = match self.run.spec.pod_retention.unwrap_or_default() {
            PodRetention::Always => true,
            PodRetention::OnFailure => finished.phase != crate::engine::state::Phase::Succeeded,
            PodRetention::Never => false,
        };
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

    // apply: spawns calls

    fn apply(&mut self, decision: &Decision) {
        match decision {
            Decision::Start { node, attempt } if self.is_process(*node) => {
                self.queue(*node, *attempt);
            }
            Decision::Start { node, attempt } => {
                let free = *attempt == Attempt::FIRST
                    && !(self.program.record_first && self.recorded == 0);
                let made = if free {
                    Made::Making
                } else {
                    Made::AfterRecord(self.version)
                };
                self.create(*node, *attempt, made);
            }
            Decision::Kill { node, .. } => self.kill(*node),
            // Nothing to do beyond the record.
            Decision::Skip { .. } | Decision::GiveUp { .. } | Decision::Cancel { .. } => {}
        }
    }

    fn is_process(&self, ix: NodeIx) -> bool {
        self.program.processes.contains(&ix)
    }

    fn queue(&mut self, ix: NodeIx, attempt: Attempt) {
        let mut record = self.record(ix, attempt, Made::Queued);
        record.waits = Some((QUEUED.to_owned(), "waits for its turn".to_owned()));
        self.records.insert(ix, record);
        self.queued.insert(ix);
        self.publisher.touch_node(ix);
    }

    /// Puts process nodes on record as begun, many with one write; once it stands they are handed
    /// to the runner. A pod's name tells whether it was made; of a process nothing does, so a
    /// record without it would let a restarted operator begin it again.
    fn intend(&mut self) {
        let (few, most) = BACKLOG;
        let held = self.state.is_suspended() && self.state.cancelled().is_none();
        if self.queued.is_empty() || self.backlog.len() > few || held {
            return;
        }
        self.version += 1;
        for _ in self.backlog.len()..most {
            let Some(ix) = self.queued.pop_first() else {
                break;
            };
            if let Some(record) = self.records.get_mut(&ix) {
                record.made = Made::AfterRecord(self.version);
                record.waits = None;
                self.backlog.insert(ix);
                self.publisher.touch_node(ix);
            }
        }
        self.publisher.hurry();
    }

    fn hand_over(&mut self, ix: NodeIx, attempt: Attempt) {
        let graph = self.graph();
        let (Some(runner), Some(record)) = (&self.context.runner, self.records.get_mut(&ix)) else {
            return;
        };
        record.made = Made::Making;
        runner.start(runner::Start {
            piece: self.program.piece(ix, attempt),
            work: Work { node: ix, attempt },
            decision: Box::new(resolve::decision(graph.node(ix))),
            network: self.program.network,
            files: Arc::clone(&self.program.files),
            answers: self.hand.answers(),
        });
        if let Some(since) = self.heard {
            self.context.metrics.handed_off(since.elapsed());
        }
    }

    fn create(&mut self, ix: NodeIx, attempt: Attempt, made: Made) {
        let record = self.record(ix, attempt, made);
        self.waiting.remove(&ix);
        let call_off = record.call_off.clone();
        self.records.insert(ix, record);
        if made != Made::Making {
            self.publisher.hurry();
            return;
        }
        let started = self.state.started_at();
        let ends = self
            .limits
            .timeout
            .zip(started)
            .map(|(timeout, started)| started.checked_add(timeout).unwrap_or(Timestamp::MAX));
        let order = Order {
            program: Arc::clone(&self.program),
            ends,
        };
        let work = Work { node: ix, attempt };
        self.hand.create(work, order, call_off, self.heard);
    }

    fn kill(&mut self, ix: NodeIx) {
        let Some(record) = self.records.get_mut(&ix) else {
            return;
        };
        let cause = match self.state.node(ix) {
            NodeState::Running(running) => running.killing,
            _ => None,
        };
        let cause = cause.unwrap_or(KillCause::Cancel(CancelCause::Asked));
        match record.made {
            Made::AfterRecord(_) | Made::Queued => {
                record.made = Made::Never;
                let attempt = record.attempt;
                self.queued.remove(&ix);
                self.backlog.remove(&ix);
                let now = self.context.clock.now();
                self.end(ix, attempt, Outcome::silent(Ending::Killed(cause)), now);
            }
            Made::Making | Made::There if self.program.processes.contains(&ix) => {
                let piece = self.program.piece(ix, record.attempt);
                if let Some(runner) = &self.context.runner {
                    runner.kill(piece, cause);
                }
            }
            Made::Making => record.call_off.call_off(),
            Made::There => self.delete(ix),
            Made::Never => {}
        }
    }

    fn delete(&self, ix: NodeIx) {
        if let Some(Record {
            name,
            uid: Some(uid),
            ..
        }) = self.records.get(&ix)
        {
            self.hand.delete(name.clone(), uid.clone());
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
