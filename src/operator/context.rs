//! What all runs share: the client, the limits on writes, the catalogue, clock and counters.
//!
//! Must not know any run.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::core::error_boundary::InvalidObject;
use kube::{Client, Resource, ResourceExt};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::api::outside::Bare;
use crate::api::workflow_run::{RunPhase, WorkflowRun};
use crate::catalog::cluster::{Found, NotFound};

use super::client::is_final;
use super::memory::{LargeTurns, Pool};
use super::metrics::Metrics;
use super::object;
use super::options::Options;
use super::pacer::Pacer;
use super::service::Shelves;

/// The time, as the runtime's own clock has it: it never runs backwards, and is whole microseconds
/// because a status can hold no finer ones.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
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
    pub(super) fn now(&self) -> Timestamp {
        let now = self
            .wall
            .checked_add(self.start.elapsed())
            .unwrap_or(Timestamp::MAX);
        Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
    }
}

/// How often what is wrong with a run that cannot be read is tried to be said.
const TRIES: u32 = 20;

/// Who reports events.
const REPORTER: &str = "apscli.dev/operator";

/// Whose a write is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// That of a run that goes on, and something waits for it.
    Run,
    /// What a run tells of itself, and nothing waits for.
    Tell,
    /// What is to be tidied up, and nothing waits for.
    House,
}

/// What is being done once at a time, by what it is and the UID of the object. Each event of an
/// object asks for it, and a tenant can make as many events as he likes.
#[derive(Clone, Debug, Default)]
pub(super) struct Turns(Arc<Mutex<BTreeSet<(&'static str, String)>>>);

impl Turns {
    /// A turn to do it; none where another has it.
    pub(super) fn begin(&self, what: &'static str, uid: String) -> Option<Turn> {
        let mut begun = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let what = (what, uid);
        begun.insert(what.clone()).then(|| Turn {
            all: self.clone(),
            what,
        })
    }
}

/// The turn to do something, while it lives.
#[derive(Debug)]
pub(super) struct Turn {
    all: Turns,
    what: (&'static str, String),
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut begun = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        begun.remove(&self.what);
    }
}

/// What all runs share.
pub(super) struct Context {
    pub(super) client: Client,
    pub(super) options: Options,
    /// How many writes may be in flight.
    pub(super) writes: Arc<Semaphore>,
    /// When a run may tell of what goes on, and nothing waits for it.
    pub(super) pacer: Pacer,
    /// How many writes in flight may be such: where the API server is slow from one moment to the
    /// next, those that were let go do not stand before the next pods.
    pub(super) tells: Semaphore,
    /// How many writes in flight may be the house's: thousands may be due at once, after a restart or
    /// where many runs go together.
    pub(super) chores: Semaphore,
    /// How many Events may be in flight, apart from all else: nothing waits for one.
    pub(super) events: Arc<Semaphore>,
    /// How many may be in flight or wait for that.
    pub(super) events_due: Arc<Semaphore>,
    pub(super) shelves: Shelves,
    pub(super) snapshots: super::snapshot::Snapshots,
    pub(super) image_volumes: super::delivery::ImageVolumes,
    pub(super) metrics: Arc<Metrics>,
    pub(super) clock: Clock,
    /// When names of pods may be free again, see [`Context::name_free`].
    pub(super) names_free: Instant,
    /// The pods that our finalizer is being taken off from.
    pub(super) stripping: Turns,
    /// What else is done by a task of its own, one for each object.
    pub(super) tasks: Turns,
    /// What runs that are not over take before it is known what they run.
    pub(super) runs: Pool,
    /// What takes the graphs of runs that are not over.
    pub(super) programs: Pool,
    /// Large templates are read one at a time.
    pub(super) large: LargeTurns,
    /// How many objects of unknown size are read at once for runs to begin.
    pub(super) reads: Semaphore,
    /// Where processes are carried out.
    pub(super) runner: Option<super::runner::Runner>,
    /// This process's name in events.
    pub(super) instance: String,
}

impl Context {
    /// A place among the writes in flight.
    pub(super) async fn write_slot(&self) -> Option<tokio::sync::SemaphorePermit<'_>> {
        let since = Instant::now();
        // The semaphore is never closed.
        let slot = self.writes.acquire().await.ok();
        self.metrics.queued(since.elapsed());
        slot
    }

    /// When the name of this pod may be free again. Until then our finalizer keeps it, whoever deleted
    /// the pod: a create of a leader that is none any more may still be on its way, and would make that
    /// pod once more. Nobody sends one for a pod that he can see, so the name of an old one is free at
    /// once, however often leaders change.
    pub(super) fn name_free(&self, pod: &Pod) -> Instant {
        let Some(made) = pod.creation_timestamp() else {
            return self.names_free;
        };
        let age = Duration::try_from(self.clock.now().duration_since(made.0)).unwrap_or_default();
        // Twice, as clocks differ, and a view may be a little old.
        let left = (2 * super::NAMES_KEPT).saturating_sub(age);
        self.names_free.min(Instant::now() + left)
    }

    /// A place among the writes in flight, behind others where nothing waits for it.
    pub(super) async fn slots(
        &self,
        whose: Whose,
    ) -> [Option<tokio::sync::SemaphorePermit<'_>>; 2] {
        let turn = match whose {
            Whose::Run => None,
            Whose::Tell => self.tells.acquire().await.ok(),
            Whose::House => self.chores.acquire().await.ok(),
        };
        [turn, self.write_slot().await]
    }

    /// A service of the catalogue; an error where what has to be read of it unfolds to more than `most`
    /// bytes.
    pub(super) fn find(
        &self,
        fqsn: &str,
        version: Option<&str>,
        namespace: &str,
        most: usize,
    ) -> Result<Found, NotFound> {
        self.shelves
            .find((fqsn, version), namespace, &self.options, most)
    }

    /// Asks until there is an answer: only for reads without which a run cannot go on.
    ///
    /// # Errors
    /// Where the same call can never succeed, see [`is_final`]: it is not repeated.
    pub(super) async fn insist<T, F>(&self, what: &str, ask: impl Fn() -> F) -> kube::Result<T>
    where
        F: Future<Output = kube::Result<T>>,
    {
        let mut pause = Duration::from_millis(100);
        loop {
            match ask().await {
                Ok(answer) => return Ok(answer),
                Err(error) if is_final(&error) => {
                    tracing::warn!(%error, "cannot {what}");
                    return Err(error);
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot {what} yet");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(15));
                }
            }
        }
    }

    /// Whether the run of a pod still goes on, asked of the API server itself. A run that can have no
    /// such name does not, and one that cannot be read has an Error for its end.
    pub(super) async fn run_is_live(&self, namespace: &str, pod: &Pod, run_uid: &str) -> bool {
        let owners = pod.owner_references();
        let Some(owner) = owners.iter().find(|owner| owner.uid == run_uid) else {
            return false;
        };
        let runs: Api<WorkflowRun> = Api::namespaced(self.client.clone(), namespace);
        let found = self.insist("look for a pod's run", || object::get(&runs, &owner.name));
        match found.await {
            Ok(Some(run)) if run.metadata.uid.as_deref() == Some(run_uid) => {
                let phase = run
                    .status
                    .and_then(|status| status.phase)
                    .unwrap_or_default();
                run.metadata.deletion_timestamp.is_none() && !phase.is_final()
            }
            _ => false,
        }
    }

    /// Tells the world of a run's move from one phase to another: logged, and, unless it has only
    /// begun, one Event.
    pub(super) fn announce(&self, before: &WorkflowRun, after: &WorkflowRun) {
        let phase = |run: &WorkflowRun| run.status.as_ref().and_then(|status| status.phase);
        let (from, to) = (phase(before), phase(after));
        if from == to {
            return;
        }
        let Some(to) = to else { return };
        let status = after.status.as_ref();
        let said = status.and_then(|status| status.message.clone());
        let message = match (to, from) {
            (RunPhase::Running, Some(RunPhase::Suspended)) => "the run goes on".to_owned(),
            (RunPhase::Running, _) => "the run has begun".to_owned(),
            (RunPhase::Succeeded, _) => "all went well".to_owned(),
            _ => said.unwrap_or_default(),
        };
        tracing::info!(phase = to.as_str(), message, "the run moved");
        if to == RunPhase::Running && from != Some(RunPhase::Suspended) {
            // No news to whoever made it, and a write of its own for each small run.
            return;
        }
        let bad = matches!(to, RunPhase::Failed | RunPhase::Error);
        self.tell(after, to.as_str(), &message, bad);
    }

    /// Makes an Event on an object. A lost one is not made again: the status says the same.
    pub(super) fn tell<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        reason: &str,
        note: &str,
        bad: bool,
    ) {
        const LONGEST: usize = 1000;
        let namespace = object.namespace().unwrap_or_default();
        let end = note.floor_char_boundary(LONGEST);
        let event = Event {
            action: Some(reason.to_owned()),
            reason: Some(reason.to_owned()),
            note: Some(note.get(..end).unwrap_or_default().to_owned()),
            event_time: Some(MicroTime(self.clock.now())),
            regarding: Some(ObjectReference {
                resource_version: None,
                ..object.object_ref(&())
            }),
            reporting_controller: Some(REPORTER.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            type_: Some(if bad { "Warning" } else { "Normal" }.to_owned()),
            metadata: ObjectMeta {
                generate_name: Some("apscli-".to_owned()),
                namespace: Some(namespace.clone()),
                ..ObjectMeta::default()
            },
            ..Event::default()
        };
        let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let turns = Arc::clone(&self.events);
        let Ok(due) = Arc::clone(&self.events_due).try_acquire_owned() else {
            tracing::debug!(reason, "too many events are due; this one is dropped");
            return;
        };
        tokio::spawn(async move {
            let _due = due;
            let _turn = turns.acquire().await;
            if let Err(error) = events.create(&PostParams::default(), &event).await {
                tracing::debug!(%error, "an event could not be made");
            }
        });
    }

    /// A run that cannot be read: it says so, and nobody else is stopped.
    pub(super) fn refuse_unreadable(self: &Arc<Self>, invalid: &InvalidObject) {
        let name = invalid.metadata.name.clone().unwrap_or_default();
        let namespace = invalid.metadata.namespace.clone().unwrap_or_default();
        tracing::error!(namespace, name, error = %invalid.error, "a WorkflowRun cannot be read");
        let message = format!("the run cannot be read: {}", invalid.error);
        // Neither the run nor the answer to a write can be read as a whole.
        let runs: Api<Bare<WorkflowRun>> = Api::namespaced(self.client.clone(), &namespace);
        let context = Arc::clone(self);
        let (uid, generation) = (invalid.metadata.uid.clone(), invalid.metadata.generation);
        let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.clock.now());
        let status = serde_json::json!({
            "phase": RunPhase::Error.as_str(),
            "message": &message,
            "completionTime": &now,
            "conditions": [{
                "type": crate::api::condition::FAILED,
                "status": "True",
                "reason": "Unreadable",
                "message": &message,
                "lastTransitionTime": &now,
            }],
        });
        tokio::spawn(async move {
            let params = kube::api::PatchParams::default();
            for tries in 0..TRIES {
                // There may be thousands of them, and nothing waits for this.
                let slots = context.slots(Whose::House).await;
                let said = match object::look::<_, Bare<WorkflowRun>>(&runs, &name).await {
                    Ok(Some(now))
                        if now.metadata.uid == uid && now.metadata.generation == generation =>
                    {
                        let said = now.status.as_ref().and_then(|it| it.get("message"));
                        if said.and_then(serde_json::Value::as_str) == Some(&*message) {
                            // By an earlier operator, or by us, and the answer was lost.
                            return;
                        }
                        let patch = kube::api::Patch::Merge(serde_json::json!({
                            "metadata": {"resourceVersion": now.metadata.resource_version},
                            "status": &status,
                        }));
                        runs.patch_status(&name, &params, &patch).await.map(drop)
                    }
                    // It is gone, or another by now, and will be looked at as such.
                    Ok(_) => return,
                    Err(error) => Err(error),
                };
                drop(slots);
                let Err(error) = said else { return };
                tracing::warn!(name, %error, "cannot say of a run that it cannot be read");
                if is_final(&error) {
                    return;
                }
                tokio::time::sleep(super::apply::pause(tries)).await;
            }
        });
    }
}
