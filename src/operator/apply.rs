//! Carrying decisions out: pods are created and deleted, finalizers taken off, lost ones looked
//! for. Each call is a task of its own whose answer comes back as news, so a run never waits for
//! the API server.
//!
//! A create is repeated until its answer is known: the pod's name is fixed by run, node and
//! attempt, so a repeat cannot make a second one. Must not decide what to start or end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{
    Api, DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions,
};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use crate::api::workflow_run::WorkflowRun;
use crate::engine::event::Outcome;
use crate::engine::graph::NodeIx;
use crate::engine::name::Attempt;
use crate::executor::pod::build::{build, watched_labels};
use crate::executor::pod::slim::SlimPod;
use crate::executor::pod::{ANNOTATION_DECISION, FINALIZER, LABEL_RUN_UID};

use super::broken;
use super::client::{is_conflict, is_final, is_gone};
use super::context::{Context, Whose};
use super::hub::has_finalizer;
use super::object::{self, Pages};
use super::resolve::Program;

/// How long a pod stays without its labels.
const BEFORE_RELABEL: Duration = Duration::from_secs(1);
/// How often a patch that was refused for what it is is made again, from the pod as it is by then.
const FINAL_TRIES: u32 = 5;
/// Longest wait between two tries of one call.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// An attempt, and the pod that carries it out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Work {
    pub(super) node: NodeIx,
    pub(super) attempt: Attempt,
}

/// What pods are made from.
#[derive(Clone)]
pub(super) struct Order {
    pub(super) program: Arc<Program>,
    /// When the run is over its time.
    pub(super) ends: Option<Timestamp>,
}

/// What came of a call.
#[derive(Debug)]
pub(super) enum Answer {
    /// The pod is there, and ours.
    Created(Work, Box<Pod>),
    /// The pod cannot be created yet; it is tried again. In words.
    NotYet(Work, String),
    /// The pod will never be created, in words.
    Refused(Work, String),
    /// The create was called off before a pod was made.
    CalledOff(Work),
    /// What stands under a pod's name and has its UID; none: it is gone.
    Looked(Work, Option<Box<Pod>>),
    /// The finalizer of the pod with this UID is off, or the pod is gone, or another is at it.
    Stripped(String),
    /// What the runner says of an attempt.
    Process(Work, Moved),
    /// The run and all of its pods as they are; no run: it is gone.
    Surveyed(Option<Box<WorkflowRun>>, Vec<Pod>),
}

/// How far an attempt of the runner has come.
#[derive(Debug)]
pub(super) enum Moved {
    /// It has not begun. In words, what it waits for.
    Waits(String),
    /// It has begun.
    Began,
    /// It is over; with what was enforced on it, in words.
    Ended(Box<Outcome>, Option<String>),
}

/// Asks a create that has not succeeded yet to stop trying.
#[derive(Clone, Debug, Default)]
pub(super) struct CallOff(Arc<(AtomicBool, tokio::sync::Notify)>);

impl CallOff {
    pub(super) fn call_off(&self) {
        self.0.0.store(true, Ordering::Release);
        self.0.1.notify_one();
    }

    fn is_called_off(&self) -> bool {
        self.0.0.load(Ordering::Acquire)
    }

    async fn called_off(&self) {
        self.0.1.notified().await;
    }
}

/// The hand that talks to the API server for one run.
#[derive(Clone)]
pub(super) struct Hand {
    context: Arc<Context>,
    pods: Api<SlimPod>,
    answers: UnboundedSender<Answer>,
    /// How many creates of this run are in flight: as many as of all runs may be, so that no more
    /// of them stand in line before another run's.
    creates: Arc<Semaphore>,
}

impl Hand {
    pub(super) fn new(
        context: Arc<Context>,
        namespace: &str,
        answers: UnboundedSender<Answer>,
    ) -> Self {
        let pods = Api::namespaced(context.client.clone(), namespace);
        let creates = Arc::new(Semaphore::new(context.options.max_writes.get()));
        Self {
            context,
            pods,
            answers,
            creates,
        }
    }

    /// Where answers go.
    pub(super) fn answers(&self) -> UnboundedSender<Answer> {
        self.answers.clone()
    }

    fn answer(&self, answer: Answer) {
        // Nobody listens once the run is over.
        let _ = self.answers.send(answer);
    }

    /// Creates a pod; answers with `Created`, `Refused` or `CalledOff`, and with `NotYet` before.
    /// Once nobody listens the run is gone, and nothing more is tried.
    /// `since`: when the news came that this attempt was waiting for.
    pub(super) fn create(
        &self,
        work: Work,
        order: Order,
        call_off: CallOff,
        mut since: Option<Instant>,
    ) {
        let hand = self.clone();
        tokio::spawn(async move {
            // Whether a create was sent whose answer is not known: then a pod may exist.
            let mut in_doubt = false;
            for tries in 0.. {
                let tried = hand
                    .try_to_create(&work, &order, &call_off, &mut in_doubt, &mut since)
                    .await;
                match tried {
                    Ok(answer) => return hand.answer(answer),
                    Err(why) => hand.answer(Answer::NotYet(work.clone(), why)),
                }
                tokio::select! {
                    () = tokio::time::sleep(pause(tries)) => {}
                    () = call_off.called_off() => {}
                    () = hand.answers.closed() => return,
                }
            }
        });
    }

    /// Tries once. On error, in words, it is to be tried again.
    async fn try_to_create(
        &self,
        work: &Work,
        order: &Order,
        call_off: &CallOff,
        in_doubt: &mut bool,
        since: &mut Option<Instant>,
    ) -> Result<Answer, String> {
        if *in_doubt {
            // Asked for first: where a quota is full, a create does not say that it was done.
            let pod = match self.pod(work, order) {
                Ok(pod) => pod,
                Err(refused) => return Ok(refused),
            };
            if let Some(found) = self.find(&pod).await? {
                return Ok(known(work, &pod, found));
            }
        }
        if call_off.is_called_off() {
            return Ok(Answer::CalledOff(work.clone()));
        }
        let _turn = self.creates.acquire().await;
        let slot = self.context.write_slot().await;
        if call_off.is_called_off() || self.answers.is_closed() {
            return Ok(Answer::CalledOff(work.clone()));
        }
        // Not before: a large run has many that wait for their turn.
        let pod = match self.pod(work, order) {
            Ok(pod) => pod,
            Err(refused) => return Ok(refused),
        };
        if let Some(since) = since.take() {
            self.context.metrics.handed_off(since.elapsed());
        }
        let wanted = SlimPod(pod);
        let answer = self.pods.create(&PostParams::default(), &wanted).await;
        drop(slot);
        let error = match answer {
            Ok(made) => return Ok(Answer::Created(work.clone(), Box::new(made.0))),
            Err(error) => error,
        };
        match Refusal::of(&error) {
            Refusal::Never(why) => Ok(Answer::Refused(work.clone(), why)),
            Refusal::NotYet(why) => Err(why),
            Refusal::InDoubt(why) => {
                *in_doubt = true;
                Err(why)
            }
            Refusal::Exists => match self.find(&wanted.0).await? {
                Some(found) => Ok(known(work, &wanted.0, found)),
                // Deleted in between.
                None => Err("its name is still taken".to_owned()),
            },
        }
    }

    fn pod(&self, work: &Work, order: &Order) -> Result<Pod, Answer> {
        let now = self.context.clock.now();
        let remaining = order
            .ends
            .map(|ends| Duration::try_from(ends.duration_since(now)).unwrap_or_default());
        let Program { graph, pods, .. } = &*order.program;
        let mut pod = build(pods, graph.node(work.node), work.attempt, remaining)
            .map_err(|error| Answer::Refused(work.clone(), error.to_string()))?;
        if broken::rule("1") {
            let name = format!("{}-{:x}", pod.name_any(), now.as_nanosecond());
            pod.metadata.name = Some(name);
        }
        if broken::rule("2") {
            pod.metadata.finalizers = None;
        }
        Ok(pod)
    }

    /// What stands under the pod's name, asked of the API server itself and not of a cache.
    async fn find(&self, pod: &Pod) -> Result<Option<Box<Pod>>, String> {
        let found = object::get(&self.pods, &pod.name_any()).await;
        let found = found.map_err(|error| error.to_string())?;
        Ok(found.map(|found| Box::new(found.0)))
    }

    /// Deletes the pod with this UID; answers with nothing: its end comes by the watch.
    pub(super) fn delete(&self, name: String, uid: String) {
        let hand = self.clone();
        tokio::spawn(
            async move { delete(&hand.context, Whose::Run, &hand.pods, &name, uid).await },
        );
    }

    /// Likewise of a pod that is over and not to be kept. Many may be due at once.
    pub(super) fn delete_unwanted(&self, name: String, uid: String) {
        let hand = self.clone();
        tokio::spawn(
            async move { delete(&hand.context, Whose::House, &hand.pods, &name, uid).await },
        );
    }

    /// Puts the labels of this run's pod back, if it lacks one; answers with nothing.
    pub(super) fn relabel(&self, pod: &Pod, run_uid: &str) {
        if lacks_labels(pod, run_uid) {
            relabel_later(&self.context, self.pods.clone(), &pod.metadata, run_uid);
        }
    }

    /// Looks whether the pod with this UID is still there; answers with `Looked`.
    pub(super) fn look(&self, work: Work, name: String, uid: String) {
        let hand = self.clone();
        tokio::spawn(async move {
            for tries in 0.. {
                let found = match object::get(&hand.pods, &name).await {
                    // There can be no such pod.
                    Err(error) if is_final(&error) => Ok(None),
                    found => found,
                };
                match found {
                    Ok(found) => {
                        let found = found.map(|found| found.0);
                        let same = found.filter(|pod| pod.metadata.uid.as_ref() == Some(&uid));
                        return hand.answer(Answer::Looked(work, same.map(Box::new)));
                    }
                    Err(_) => tokio::time::sleep(pause(tries)).await,
                }
            }
        });
    }

    /// Asks for a run and its pods; answers with `Surveyed`, or not at all: it is asked again.
    pub(super) fn survey(&self, run: String, run_uid: String) {
        let hand = self.clone();
        tokio::spawn(async move {
            let client = hand.context.client.clone();
            let runs: Api<WorkflowRun> = match &hand.pods.namespace() {
                Some(namespace) => Api::namespaced(client, namespace),
                None => return,
            };
            let Ok(found) = object::get(&runs, &run).await else {
                return;
            };
            let found = found.filter(|it| it.metadata.uid.as_ref() == Some(&run_uid));
            let mut pages = of_run(&run_uid);
            let mut pods = Vec::new();
            loop {
                match pages.next::<_, SlimPod>(&hand.pods).await {
                    Ok(Some(page)) => pods.extend(page.into_iter().map(|pod| pod.0)),
                    Ok(None) => break,
                    Err(_) => return,
                }
            }
            hand.answer(Answer::Surveyed(found.map(Box::new), pods));
        });
    }

    /// Takes our finalizer off the pod with this UID; answers with `Stripped`.
    pub(super) fn strip(&self, pod: &Pod) {
        let (hand, pod) = (self.clone(), pod.clone());
        tokio::spawn(async move {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            strip(&hand.pods, pod, Some((&hand.context, Whose::Run))).await;
            hand.answer(Answer::Stripped(uid));
        });
    }
}

/// A list of a run's pods.
pub(super) fn of_run(run_uid: &str) -> Pages {
    Pages::new(ListParams::default().labels(&format!("{LABEL_RUN_UID}={run_uid}")))
}

/// Deletes the pod with this UID, with its own grace, however long it takes.
pub(super) async fn delete(
    context: &Context,
    whose: Whose,
    pods: &Api<SlimPod>,
    name: &str,
    uid: String,
) {
    let params = DeleteParams {
        preconditions: (!broken::rule("4-uid")).then_some(Preconditions {
            uid: Some(uid),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    for tries in 0.. {
        let answer = {
            let _slots = context.slots(whose).await;
            pods.delete(name, &params).await
        };
        match answer {
            Ok(_) => return,
            Err(error) if is_gone(&error) => return,
            Err(error) if is_final(&error) => {
                tracing::error!(pod = name, %error, "cannot delete a pod");
                return;
            }
            Err(error) => {
                tracing::warn!(pod = name, %error, "cannot delete a pod yet");
                if is_of_another(pods, name, params_uid(&params).as_deref(), &error).await {
                    return;
                }
                tokio::time::sleep(pause(tries)).await;
            }
        }
    }
}

/// Whether a call for the pod with this UID has met that the name is another's, or nobody's: a
/// conflict may be that of the precondition, or any other.
async fn is_of_another(
    pods: &Api<SlimPod>,
    name: &str,
    uid: Option<&str>,
    error: &kube::Error,
) -> bool {
    if !is_conflict(error) {
        return false;
    }
    let found = object::get(pods, name).await;
    found.is_ok_and(|now| now.is_none_or(|now| now.0.metadata.uid.as_deref() != uid))
}

/// The UID that a deletion is for.
fn params_uid(params: &DeleteParams) -> Option<String> {
    params.preconditions.as_ref()?.uid.clone()
}

/// Puts the labels back by which a pod is watched and listed, by a task of its own, one for each pod.
pub(super) fn relabel_later(
    context: &Arc<Context>,
    pods: Api<SlimPod>,
    pod: &ObjectMeta,
    run_uid: &str,
) {
    let uid = pod.uid.clone().unwrap_or_default();
    let Some(turn) = context.tasks.begin("relabel", uid) else {
        return;
    };
    let (context, pod, run_uid) = (Arc::clone(context), pod.clone(), run_uid.to_owned());
    tokio::spawn(async move {
        let _turn = turn;
        relabel(context, pods, pod, run_uid).await;
    });
}

/// Puts the labels back, should the pod still be there.
async fn relabel(context: Arc<Context>, pods: Api<SlimPod>, pod: ObjectMeta, run_uid: String) {
    let (name, uid) = (pod.name.unwrap_or_default(), pod.uid);
    let patch = json!({"metadata": {"uid": uid, "labels": watched_labels(&run_uid)}});
    // Whoever takes them off at once again is not to keep us busy.
    tokio::time::sleep(BEFORE_RELABEL).await;
    for tries in 0.. {
        let answer = {
            let _slots = context.slots(Whose::House).await;
            pods.patch_metadata(&name, &PatchParams::default(), &Patch::Merge(&patch))
                .await
        };
        match answer {
            Ok(_) => {
                tracing::warn!(pod = name, "the labels of a pod were put back");
                return;
            }
            // What it says of its run can be no label, or it is gone.
            Err(error) if is_final(&error) => return,
            Err(error) => {
                tracing::warn!(pod = name, %error, "cannot put the labels of a pod back yet");
                if is_of_another(&pods, &name, uid.as_deref(), &error).await {
                    return;
                }
                tokio::time::sleep(pause(tries)).await;
            }
        }
    }
}

/// Whether a pod lacks a label by which it is watched and listed.
fn lacks_labels(pod: &Pod, run_uid: &str) -> bool {
    let wanted = watched_labels(run_uid);
    wanted
        .iter()
        .any(|(name, value)| pod.labels().get(name) != Some(value))
}

/// Takes our finalizer off a pod, however long it takes; among the writes in flight of a context,
/// where there is one, and not before its name may be free. Not if another is at it.
pub(super) async fn strip(
    pods: &Api<SlimPod>,
    mut pod: Pod,
    mut context: Option<(&Context, Whose)>,
) {
    let name = pod.name_any();
    let mut is_old = false;
    let _turn = match &mut context {
        Some((of, whose)) => {
            let Some(turn) = of
                .stripping
                .begin("finalizer", pod.uid().unwrap_or_default())
            else {
                return;
            };
            let free = of.name_free(&pod);
            if Instant::now() < free {
                tokio::time::sleep_until(free).await;
                // Many may have waited for that.
                *whose = Whose::House;
                is_old = true;
            }
            Some(turn)
        }
        None => None,
    };
    for tries in 0.. {
        let answer = {
            let _slots = match context {
                Some((context, whose)) => Some(context.slots(whose).await),
                None => None,
            };
            if is_old {
                match object::get(pods, &name).await {
                    Ok(Some(SlimPod(now))) if now.metadata.uid == pod.metadata.uid => pod = now,
                    Ok(_) => return,
                    Err(_) => {}
                }
                if !has_finalizer(&pod) {
                    return;
                }
            }
            let finalizers: Vec<&String> = pod
                .finalizers()
                .iter()
                .filter(|finalizer| *finalizer != FINALIZER)
                .collect();
            // The version that the list was derived from: somebody else's finalizer is not lost.
            let patch = json!({
                "metadata": {
                    "uid": pod.metadata.uid,
                    "resourceVersion": pod.metadata.resource_version,
                    "finalizers": finalizers,
                }
            });
            pods.patch_metadata(&name, &PatchParams::default(), &Patch::Merge(patch))
                .await
        };
        match answer {
            Ok(_) => return,
            Err(error) if is_gone(&error) => return,
            // The pod was read again, and the answer is the same: its next event asks once more.
            Err(error) if is_final(&error) && tries >= FINAL_TRIES => {
                tracing::error!(pod = name, %error, "cannot take the finalizer off");
                return;
            }
            Err(error) => {
                if !matches!(&error, kube::Error::Api(status) if status.code == 409) {
                    tracing::warn!(pod = name, %error, "cannot take the finalizer off yet");
                }
            }
        }
        tokio::time::sleep(pause(tries)).await;
        is_old = true;
    }
}

/// What it means that this pod was found where the wanted one is to be.
fn known(work: &Work, wanted: &Pod, found: Box<Pod>) -> Answer {
    if is_ours(&found, wanted) || broken::rule("3") {
        return Answer::Created(work.clone(), found);
    }
    let why = format!(
        "a pod named {} is there already and was not made by this run; its result is not taken",
        wanted.name_any()
    );
    Answer::Refused(work.clone(), why)
}

/// Whether a pod found under the name is the one that this run would have created: made for
/// this very run by its UID, for this very decision. (Who may create pods in the namespace can
/// forge both; that cannot be told from here.)
fn is_ours(found: &Pod, wanted: &Pod) -> bool {
    let controller = |pod: &Pod| {
        let mut owners = pod.owner_references().iter();
        owners
            .find(|owner| owner.controller == Some(true))
            .map(|owner| owner.uid.clone())
    };
    let decision = |pod: &Pod| pod.annotations().get(ANNOTATION_DECISION).cloned();
    controller(found).is_some()
        && controller(found) == controller(wanted)
        && decision(found) == decision(wanted)
}

/// How long to wait after so many tries.
pub(super) fn pause(tries: u32) -> Duration {
    let first = Duration::from_millis(100);
    first.saturating_mul(1 << tries.min(10)).min(LONGEST_PAUSE)
}

/// Why a create was not answered with a pod.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    /// Something of this name is there.
    Exists,
    /// It was not done, and may be later.
    NotYet(String),
    /// It may have been done.
    InDoubt(String),
    /// It will never be done.
    Never(String),
}

impl Refusal {
    fn of(error: &kube::Error) -> Self {
        let kube::Error::Api(status) = error else {
            if is_final(error) {
                return Self::Never(error.to_string());
            }
            return Self::InDoubt(format!("the API server does not answer: {error}"));
        };
        let message = status.message.clone();
        let namespace_ends = || {
            let causes = status.details.iter().flat_map(|details| &details.causes);
            causes
                .into_iter()
                .any(|cause| cause.reason == "NamespaceTerminating")
        };
        match (status.code, status.reason.as_str()) {
            (409, "AlreadyExists") => Self::Exists,
            (403, _) if message.contains("exceeded quota") => Self::NotYet(message),
            // Admission says no to what the pod is, and will say it again.
            (403, _) if message.contains("violates PodSecurity") => Self::Never(message),
            (403, _) if message.contains("denied the request") => Self::Never(message),
            (403, _) if namespace_ends() => Self::Never(message),
            (400 | 413 | 422, _) => Self::Never(message),
            // A right that is missing can be given.
            (401 | 403 | 404 | 409 | 429, _) => Self::NotYet(message),
            _ => Self::InDoubt(message),
        }
    }
}
