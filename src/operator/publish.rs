//! Writing a run's state onto its resource: one write in flight, the next when it returns.
//!
//! Many changes become one write: before the first one, and after each, the next waits a moment,
//! unless the run is over or something waits to be on record. The busier the API server, the longer
//! that moment, and so it is the more runs there are (`pacer`): what is told of the work must not slow
//! the work down. Writes carry the version of the resource that they were derived from; on a conflict they are
//! derived again.
//!
//! Must not decide what stands in the status (that is `status`), nor what the run does next.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Resource, ResourceExt};
use serde_json::{Map, json};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use crate::api::condition::{self, COMPLETE, FAILED, News, RECONCILING, STALLED};
use crate::api::elapsed;
use crate::api::page::{WorkflowRunPage, WorkflowRunPageSpec};
use crate::api::workflow_run::{Resolved, RunPhase, WorkflowRun, WorkflowRunStatus};
use crate::engine::event::CancelCause;
use crate::engine::graph::{Graph, NodeIx};
use crate::engine::state::{Phase, RunState};
use crate::engine::step::Verdict;

use super::broken;
use super::client::{is_conflict, is_gone};
use super::context::{Context, Whose};
use super::floor::Floor;
use super::object;
use super::pacer::Ticket;
use super::resolve::{Unresolved, without_content};
use super::status::{self, PAGE, PodFacts};

/// Shortest time from one write to the next, for runs without pages and for runs with; the former
/// also before the first, so that a run which is over by then is written once.
const PAUSE: Duration = Duration::from_millis(300);
const PAUSE_PAGED: Duration = Duration::from_secs(1);
/// A run waits this many times as long as its last write took, with its wait for a place among
/// the writes in flight, before it tells again of what nothing waits for.
const SHARE: u32 = 10;
/// How long what is seldom news waits for a write that is made anyhow.
const LATER: Duration = Duration::from_secs(2);
/// How often a page is written again that was changed by somebody else.
const CONFLICTS: usize = 3;
/// Longest such wait, and longest pause after writes that failed.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// The name of a page. It holds the run's UID, so that a run that was deleted and made again
/// under its old name has pages of its own.
#[must_use]
pub(super) fn page_name(run_uid: &str, index: u32) -> String {
    let hash = Sha256::digest(run_uid);
    let hash = hash.get(..10).unwrap_or_default();
    let mut hex = String::with_capacity(20);
    for byte in hash {
        let _ = write!(hex, "{byte:02x}");
    }
    format!("apscli-{hex}-{index}")
}

/// What is to be written.
#[derive(Debug)]
pub(super) struct Draft {
    version: u64,
    status: WorkflowRunStatus,
    pages: Vec<WorkflowRunPageSpec>,
}

/// Everything that a running run's status is made of.
pub(super) struct View<'a> {
    pub(super) graph: &'a Graph,
    pub(super) state: &'a RunState,
    pub(super) run: &'a WorkflowRun,
    pub(super) resolved: &'a Resolved,
    pub(super) verdict: Option<Verdict>,
    pub(super) facts: &'a dyn Fn(NodeIx) -> PodFacts,
    pub(super) now: Timestamp,
    pub(super) version: u64,
}

impl Draft {
    /// The status of a run that was begun. `touched`: the pages to be written, where there are
    /// pages.
    pub(super) fn new(view: &View<'_>, touched: &BTreeSet<u32>) -> Self {
        let View {
            graph,
            state,
            run,
            now,
            ..
        } = *view;
        let mut status = run.status.clone().unwrap_or_default();
        let phase = match view.verdict {
            Some(verdict) => match verdict.phase {
                Phase::Succeeded => RunPhase::Succeeded,
                Phase::Cancelled => RunPhase::Cancelled,
                _ => RunPhase::Failed,
            },
            None if state.is_suspended() && state.cancelled().is_none() => RunPhase::Suspended,
            None => RunPhase::Running,
        };
        let counts = status::counts(state);
        status.phase = Some(phase);
        status.observed_generation = run.metadata.generation;
        status.progress = Some(format!("{}/{}", counts.finished(), counts.total));
        status.counts = Some(counts);
        status.resolved = Some(view.resolved.clone());
        status.cancel_cause = state.cancelled().map(Into::into);
        status.start_time = state.started_at().map(Time);
        let waits = |ix: NodeIx| {
            let (word, message) = (view.facts)(ix).waits?;
            Some(if message.is_empty() {
                word
            } else {
                format!("{word}: {message}")
            })
        };
        let message = match view.verdict {
            Some(_) => status::last_message(graph, state),
            None => status::message(graph, state, &waits),
        };
        status.message = Some(message).filter(|message| !message.is_empty());
        let entry = |ix: NodeIx| status::node(graph, state, ix, &(view.facts)(ix));
        let paged = graph.len() > PAGE;
        let mut pages = Vec::new();
        if paged {
            status.nodes = status::shown(state).map(entry).collect();
            let all = u32::try_from(graph.len().div_ceil(PAGE)).unwrap_or(u32::MAX);
            status.pages = Some(all);
            for index in touched {
                let first = *index as usize * PAGE;
                let nodes = graph.iter().map(|(ix, _)| ix).skip(first).take(PAGE);
                pages.push(WorkflowRunPageSpec {
                    run: Some(run.name_any()),
                    index: *index,
                    nodes: nodes.map(entry).collect(),
                });
            }
        } else {
            status.nodes = graph.iter().map(|(ix, _)| entry(ix)).collect();
        }
        if let Some(verdict) = view.verdict {
            status.return_code = i32::try_from(verdict.return_code).ok();
            let ended = state.last_end().unwrap_or(now);
            finish(&mut status, None, (ended, now), run.metadata.generation);
        } else {
            let word = phase.as_str();
            let news = News::new(RECONCILING, true, word, "the run goes on");
            condition::set(&mut status.conditions, news, run.metadata.generation, now);
            condition::clear(&mut status.conditions, STALLED);
        }
        Self {
            version: view.version,
            status,
            pages,
        }
    }

    /// What each of the objects to be written takes as JSON, in bytes.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> Vec<(String, usize)> {
        let status = serde_json::to_string(&self.status)
            .unwrap_or_default()
            .len();
        let page = |page: &WorkflowRunPageSpec| {
            let size = serde_json::to_string(page).unwrap_or_default().len();
            (format!("page {}", page.index), size)
        };
        self.pages
            .iter()
            .map(page)
            .chain([("the status".to_owned(), status)])
            .collect()
    }

    /// The status of a run for which nothing was found to run. None: it says so already.
    pub(super) fn unresolved(
        run: &WorkflowRun,
        unresolved: &Unresolved,
        now: Timestamp,
    ) -> Option<Self> {
        let before = run.status.clone().unwrap_or_default();
        let mut status = before.clone();
        let generation = run.metadata.generation;
        status.observed_generation = generation;
        match unresolved {
            // It is looked at again, and nothing else is known.
            Unresolved::Large => return None,
            Unresolved::Wait { reason, message } => {
                let message = status::brief(message);
                status.phase = Some(RunPhase::Pending);
                status.message = Some(message.clone());
                let news = News::new(STALLED, true, reason.clone(), message);
                condition::set(&mut status.conditions, news, generation, now);
                condition::clear(&mut status.conditions, RECONCILING);
            }
            Unresolved::Never { reason, message } => {
                status.phase = Some(RunPhase::Error);
                status.return_code = Some(0);
                status.message = Some(status::brief(message));
                finish(&mut status, Some(reason), (now, now), generation);
            }
            Unresolved::Cancelled => {
                status.phase = Some(RunPhase::Cancelled);
                status.cancel_cause = Some(CancelCause::Asked.into());
                status.return_code = Some(0);
                status.message = Some("cancelled before it began".to_owned());
                finish(&mut status, None, (now, now), generation);
            }
        }
        (status != before).then_some(Self {
            version: 0,
            status,
            pages: Vec::new(),
        })
    }
}

/// What every run says once it is over.
fn finish(
    status: &mut WorkflowRunStatus,
    reason: Option<&str>,
    (ended, now): (Timestamp, Timestamp),
    generation: Option<i64>,
) {
    let start = status.start_time.as_ref().map_or(ended, |time| time.0);
    let took = Duration::try_from(ended.duration_since(start)).unwrap_or_default();
    status.completion_time = Some(Time(ended));
    status.duration = Some(elapsed(took));
    let message = status.message.clone().unwrap_or_default();
    let phase = status.phase.unwrap_or_default();
    let news = match phase {
        RunPhase::Succeeded => News::new(COMPLETE, true, "Succeeded", message),
        RunPhase::Cancelled => News::new(FAILED, true, "Cancelled", message),
        RunPhase::Error => News::new(FAILED, true, reason.unwrap_or("Error"), message),
        _ if status.cancel_cause.is_some() => News::new(FAILED, true, "Timeout", message),
        _ => News::new(FAILED, true, "NodesFailed", message),
    };
    condition::set(&mut status.conditions, news, generation, now);
    condition::clear(&mut status.conditions, RECONCILING);
    condition::clear(&mut status.conditions, STALLED);
}

/// What came of a write.
#[derive(Debug)]
pub(super) enum Published {
    /// It stands.
    Done {
        /// The version of the state that it was.
        version: u64,
        /// The run as it is now.
        run: Arc<WorkflowRun>,
    },
    /// The run was changed by somebody else; this is what it is now.
    Conflict { run: Arc<WorkflowRun> },
    /// The run is gone, or another one has its name.
    Gone,
    /// It could not be written, and may be later.
    Failed { pages: BTreeSet<u32> },
}

/// What of a run has still to be written, and how.
pub(super) struct Publisher {
    context: Arc<Context>,
    run: Arc<WorkflowRun>,
    floor: Floor,
    /// The pages that exist, with their versions.
    made: Arc<Made>,
    /// Nodes whose entries have changed since the last write.
    nodes: BTreeSet<NodeIx>,
    dirty: bool,
    urgency: Urgency,
    /// When there is something to write though nothing else comes.
    later: Option<Instant>,
    writing: Option<Writing>,
    /// Pages of a write that failed.
    again: BTreeSet<u32>,
    next: Instant,
    ticket: Option<Ticket>,
    failures: u32,
    paged: bool,
    answers: UnboundedSender<Published>,
}

/// What the next write waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    /// For its time, and behind other runs.
    #[default]
    None,
    /// For its time.
    Soon,
    /// For nothing.
    Now,
}

/// The write in flight.
#[derive(Default)]
struct Writing {
    pages: BTreeSet<u32>,
    since: Option<Instant>,
    urgency: Urgency,
    /// Kept so that others wait for it until it is answered.
    _ticket: Option<Ticket>,
}

/// A run without what it is to run, which no status says.
fn slim(run: &Arc<WorkflowRun>) -> Arc<WorkflowRun> {
    if run.spec.template.is_none() && run.spec.params.is_none() {
        return Arc::clone(run);
    }
    Arc::new(without_content(WorkflowRun::clone(run)))
}

impl Publisher {
    pub(super) fn new(
        context: &Arc<Context>,
        run: &Arc<WorkflowRun>,
        answers: UnboundedSender<Published>,
    ) -> Self {
        let mut publisher = Self {
            context: Arc::clone(context),
            run: slim(run),
            floor: Floor::default(),
            made: Arc::default(),
            nodes: BTreeSet::new(),
            dirty: true,
            urgency: Urgency::default(),
            later: None,
            writing: None,
            again: BTreeSet::new(),
            next: Instant::now() + PAUSE,
            ticket: None,
            failures: 0,
            paged: false,
            answers,
        };
        publisher.admit(run);
        publisher
    }

    /// A page exists already, and this is its version.
    pub(super) fn page_is(&self, index: u32, version: Option<String>) {
        self.made.set(index, version);
    }

    /// Takes in the run as a watch shows it. Returns whether that is news.
    pub(super) fn admit(&mut self, run: &Arc<WorkflowRun>) -> bool {
        let news = self.floor.admit(run.metadata.resource_version.as_deref());
        if news {
            self.run = slim(run);
        }
        news
    }

    /// The newest version of the run that is known.
    pub(super) fn run(&self) -> &Arc<WorkflowRun> {
        &self.run
    }

    /// Something that is not a node's has changed.
    pub(super) fn touch(&mut self) {
        self.dirty = true;
    }

    /// A node has changed.
    pub(super) fn touch_node(&mut self, ix: NodeIx) {
        self.nodes.insert(ix);
        self.dirty = true;
    }

    /// A node has changed in what soon changes again. It is written with whatever comes next, or
    /// should nothing come, a while later.
    pub(super) fn touch_node_later(&mut self, ix: NodeIx) {
        self.nodes.insert(ix);
        self.later = self.later.or_else(|| Some(Instant::now() + LATER));
    }

    /// Somebody waits for the next write, or something is lost should this operator end before it:
    /// it waits for no other run.
    pub(super) fn soon(&mut self) {
        self.urgency = self.urgency.max(Urgency::Soon);
        self.dirty = true;
    }

    /// The next write shall not wait.
    pub(super) fn hurry(&mut self) {
        self.urgency = Urgency::Now;
        self.dirty = true;
    }

    /// Whether to write now. Where it is only a ticket that is missing, one is taken.
    pub(super) fn is_ready(&mut self, over: bool) -> bool {
        let now = Instant::now();
        let late = self.later.is_some_and(|later| later <= now);
        if self.writing.is_some() || !(self.dirty || late) {
            return false;
        }
        if self.next > now {
            let urgent = over || self.urgency == Urgency::Now;
            return urgent && self.failures == 0;
        }
        if over || self.urgency > Urgency::None {
            return true;
        }
        let pacer = &self.context.pacer;
        self.ticket.get_or_insert_with(|| pacer.ticket(now)).at <= now
    }

    /// When to write next, if there is something to write and nothing in flight.
    pub(super) fn due(&self) -> Option<Instant> {
        let ticket = self
            .ticket
            .as_ref()
            .filter(|_| self.urgency == Urgency::None);
        let next = ticket.map_or(self.next, |ticket| ticket.at);
        let due = if self.dirty {
            Some(next)
        } else {
            self.later.map(|later| later.max(next))
        };
        due.filter(|_| self.writing.is_none())
    }

    /// The pages whose nodes have changed.
    pub(super) fn touched(&self, nodes: usize) -> BTreeSet<u32> {
        if nodes <= PAGE {
            return BTreeSet::new();
        }
        let page = |ix: &NodeIx| u32::try_from(ix.index() / PAGE).unwrap_or(u32::MAX);
        self.nodes
            .iter()
            .map(page)
            .chain(self.again.iter().copied())
            .collect()
    }

    /// Starts a write; its answer comes as [`Published`] and must be given to [`Self::settle`].
    pub(super) fn write(&mut self, draft: Draft) {
        let phase = draft.status.phase.unwrap_or_default();
        let urgent = self.urgency == Urgency::Now || phase.is_final();
        self.nodes.clear();
        self.again.clear();
        self.dirty = false;
        self.later = None;
        self.paged = draft.status.pages.is_some();
        self.writing = Some(Writing {
            pages: draft.pages.iter().map(|page| page.index).collect(),
            since: Some(Instant::now()),
            urgency: std::mem::take(&mut self.urgency),
            _ticket: self.ticket.take(),
        });
        let task = Write {
            context: Arc::clone(&self.context),
            run: Arc::clone(&self.run),
            made: Arc::clone(&self.made),
            urgent,
        };
        let answers = self.answers.clone();
        tokio::spawn(async move {
            let published = task.write(draft).await;
            // Nobody listens where the run is gone.
            let _ = answers.send(published);
        });
    }

    /// Takes in what came of a write.
    pub(super) fn settle(&mut self, published: &Published) {
        let now = Instant::now();
        let writing = self.writing.take().unwrap_or_default();
        let took = now - writing.since.unwrap_or(now);
        self.context.pacer.took(took);
        let pause = if self.paged { PAUSE_PAGED } else { PAUSE };
        match published {
            Published::Done { run, .. } => {
                self.failures = 0;
                let share = took.saturating_mul(SHARE);
                self.next = now + pause.max(share.min(LONGEST_PAUSE));
                self.admit(run);
            }
            Published::Conflict { run } => {
                // Pages are written before the status, so these stand.
                self.hurry();
                self.floor = Floor::default();
                self.admit(run);
            }
            Published::Gone => {}
            Published::Failed { pages } => {
                self.again.extend(writing.pages.difference(pages));
                self.dirty = true;
                self.urgency = self.urgency.max(writing.urgency);
                let pause = pause.saturating_mul(1 << self.failures.min(10));
                self.failures += 1;
                self.next = now + pause.min(LONGEST_PAUSE);
            }
        }
    }
}

/// The pages that exist, with their versions as our last write left them. A page is written on
/// condition that it is as we know it: a write of a former leader that was long on its way must
/// not turn it back.
#[derive(Default)]
struct Made(Mutex<BTreeMap<u32, String>>);

impl Made {
    fn get(&self, index: u32) -> Option<String> {
        let made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        made.get(&index).cloned()
    }

    fn set(&self, index: u32, version: Option<String>) {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match version {
            Some(version) => made.insert(index, version),
            None => made.remove(&index),
        };
    }
}

/// One write.
struct Write {
    context: Arc<Context>,
    run: Arc<WorkflowRun>,
    made: Arc<Made>,
    /// Whether something waits for it.
    urgent: bool,
}

impl Write {
    async fn write(&self, draft: Draft) -> Published {
        let whose = if self.urgent { Whose::Run } else { Whose::Tell };
        let _slots = self.context.slots(whose).await;
        let namespace = self.run.namespace().unwrap_or_default();
        let client = self.context.client.clone();
        let pages: Api<WorkflowRunPage> = Api::namespaced(client.clone(), &namespace);
        let mut written = BTreeSet::new();
        for page in draft.pages {
            let index = page.index;
            if let Err(error) = self.page(&pages, page).await {
                tracing::warn!(page = index, %error, "cannot write a page yet");
                return Published::Failed { pages: written };
            }
            written.insert(index);
        }
        let runs: Api<WorkflowRun> = Api::namespaced(client, &namespace);
        let name = self.run.name_any();
        let Some(patch) = self.patch(&draft.status) else {
            return Published::Done {
                version: draft.version,
                run: Arc::clone(&self.run),
            };
        };
        let params = PatchParams::default();
        match runs
            .patch_status(&name, &params, &Patch::Merge(patch))
            .await
        {
            Ok(run) => Published::Done {
                version: draft.version,
                run: Arc::new(without_content(run)),
            },
            Err(error) if is_gone(&error) => Published::Gone,
            Err(kube::Error::Api(status)) if status.code == 409 => {
                match object::get(&runs, &name).await {
                    Ok(Some(run)) if run.metadata.uid == self.run.metadata.uid => {
                        let run = Arc::new(without_content(run));
                        Published::Conflict { run }
                    }
                    Ok(_) => Published::Gone,
                    Err(error) => {
                        tracing::warn!(%error, "cannot read the run after a conflict yet");
                        Published::Failed { pages: written }
                    }
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot write the status yet");
                Published::Failed { pages: written }
            }
        }
    }

    /// The members of the status that are new, with the version that they were derived from. None:
    /// nothing is new.
    fn patch(&self, status: &WorkflowRunStatus) -> Option<serde_json::Value> {
        let members = |status: &WorkflowRunStatus| -> Map<String, serde_json::Value> {
            match serde_json::to_value(status) {
                Ok(serde_json::Value::Object(members)) => members,
                _ => Map::new(),
            }
        };
        let old = self.run.status.as_ref().map(members).unwrap_or_default();
        let mut new = members(status);
        let gone: Vec<String> = old
            .keys()
            .filter(|key| !new.contains_key(*key))
            .cloned()
            .collect();
        new.retain(|key, value| old.get(key) != Some(value));
        new.extend(gone.into_iter().map(|key| (key, serde_json::Value::Null)));
        (!new.is_empty()).then(|| {
            if broken::rule("7") {
                return json!({"metadata": {"uid": self.run.metadata.uid}, "status": new});
            }
            json!({
                "metadata": {
                    "uid": self.run.metadata.uid,
                    "resourceVersion": self.run.metadata.resource_version,
                },
                "status": new,
            })
        })
    }

    async fn page(
        &self,
        pages: &Api<WorkflowRunPage>,
        spec: WorkflowRunPageSpec,
    ) -> kube::Result<()> {
        let index = spec.index;
        let uid = self.run.metadata.uid.clone().unwrap_or_default();
        let name = page_name(&uid, index);
        let params = PatchParams::default();
        let owner = OwnerReference {
            api_version: WorkflowRun::api_version(&()).into_owned(),
            kind: WorkflowRun::kind(&()).into_owned(),
            name: self.run.name_any(),
            uid,
            controller: Some(true),
            block_owner_deletion: None,
        };
        let page = WorkflowRunPage {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            },
            spec,
        };
        let mut tries = 0;
        loop {
            tries += 1;
            let answer = if let Some(version) = self.made.get(index) {
                // Without its owner it would not be read back.
                let owners = page.metadata.owner_references.as_ref();
                let metadata = match owners.filter(|_| tries > 1) {
                    Some(owners) => json!({"resourceVersion": version, "ownerReferences": owners}),
                    None => json!({"resourceVersion": version}),
                };
                let patch = json!({"metadata": metadata, "spec": {"nodes": page.spec.nodes}});
                let patch = Patch::Merge(patch);
                let written = pages.patch_metadata(&name, &params, &patch).await;
                written.map(|page| page.metadata)
            } else {
                let made = pages.create(&PostParams::default(), &page).await;
                made.map(|made| made.metadata)
            };
            match answer {
                Ok(metadata) => {
                    self.made.set(index, metadata.resource_version);
                    return Ok(());
                }
                // Somebody deleted it. All of its nodes are in hand, so it is made again.
                Err(error) if is_gone(&error) && tries < CONFLICTS => {
                    self.made.set(index, None);
                }
                // It was made before a restart, the answer was lost, or somebody changed it. What
                // we know is the truth: whoever else has written it does not lead any more.
                Err(error) if is_conflict(&error) && tries < CONFLICTS => {
                    let now = object::metadata(pages, &name).await?;
                    let version = now.and_then(|now| now.resource_version);
                    self.made.set(index, version);
                }
                Err(error) => return Err(error),
            }
        }
    }
}
