//! Where news of the cluster comes in and goes to the run that it concerns.
//!
//! One task owns the table of live runs. It knows nothing of what a run does with its news. What
//! no live run claims, it tends to itself: pods that are being deleted and whose run is over or
//! gone get their finalizer taken off, and runs that are past their time to live are deleted.
//!
//! Must not decide anything about a run, nor wait for the API server.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Preconditions, PropagationPolicy};
use kube::core::DeserializeGuard;
use kube::runtime::watcher;
use kube::runtime::{WatchStreamExt, watcher::Event};
use kube::{Resource, ResourceExt};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use crate::api::workflow_run::WorkflowRun;
use crate::executor::pod::{FINALIZER, LABEL_RUN_UID};

use super::context::Context;
use super::health::{Health, Need, Pulse};
use super::{apply, workflow_run};

/// How long a watch may be silent before it is begun anew: a connection that is half open is
/// noticed within this time and the five seconds that the client adds.
const WATCH_SECONDS: u32 = 30;

/// How long the hub may stand still before it counts as dead.
const SILENCE: Duration = Duration::from_secs(60);

/// What a run is told.
#[derive(Debug)]
pub(super) enum News {
    /// The run as it is now.
    Run(Arc<WorkflowRun>),
    /// The run is no more.
    Gone,
    /// A pod of the run as it is now.
    Pod(Box<Pod>),
    /// A pod of the run as it was last; it is no more.
    PodGone(Box<Pod>),
    /// All pods were listed anew, and these are all that there are, by UID.
    Listed(Arc<BTreeSet<String>>),
}

/// What the watches say.
pub(super) enum Incoming {
    Run(Event<DeserializeGuard<WorkflowRun>>),
    Pod(Event<Pod>),
    /// A run's task has come to its end, with the run as it is then where it is over.
    Over(String, Option<Arc<WorkflowRun>>),
}

/// A live run.
struct Live {
    inbox: UnboundedSender<News>,
}

/// A run that is over and will be deleted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Expiring {
    at: Instant,
    uid: String,
    namespace: String,
    name: String,
}

pub(super) struct Hub {
    context: Arc<Context>,
    live: BTreeMap<String, Live>,
    /// Runs that exist and are over, with when they expire.
    over: BTreeMap<String, Option<Expiring>>,
    expiring: BTreeSet<Expiring>,
    /// Pods that were listed since a list began.
    listing: Option<BTreeSet<String>>,
    listing_runs: Option<BTreeSet<String>>,
    runs_listed: bool,
    pods_listed: bool,
    /// Pods that came before the runs were known.
    early: Vec<News>,
    done: UnboundedSender<Incoming>,
    pulse: Pulse,
    runs_needed: Need,
    pods_needed: Need,
}

/// A watch that goes on for ever; errors are told and tried again.
pub(super) fn watch<K>(api: Api<K>, labels: Option<&str>) -> impl Stream<Item = Event<K>> + use<K>
where
    K: Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
    K::DynamicType: Default + Clone + Eq + std::hash::Hash,
{
    let mut config = watcher::Config::default().timeout(WATCH_SECONDS);
    if let Some(labels) = labels {
        config = config.labels(labels);
    }
    watcher(api, config)
        .default_backoff()
        .filter_map(|event| async move {
            event
                .inspect_err(
                    |error| tracing::warn!(%error, "a watch was broken off; it is begun anew"),
                )
                .ok()
        })
}

impl Hub {
    pub(super) fn new(
        context: Arc<Context>,
        health: &Health,
    ) -> (Self, UnboundedReceiver<Incoming>) {
        let (done, finished) = unbounded_channel();
        let hub = Self {
            context,
            live: BTreeMap::new(),
            over: BTreeMap::new(),
            expiring: BTreeSet::new(),
            listing: None,
            listing_runs: None,
            runs_listed: false,
            pods_listed: false,
            early: Vec::new(),
            done,
            pulse: health.pulse("the hub", SILENCE),
            runs_needed: health.needs("the list of runs"),
            pods_needed: health.needs("the list of pods"),
        };
        (hub, finished)
    }

    /// Goes on until `incoming` ends.
    pub(super) async fn run(
        mut self,
        mut incoming: impl Stream<Item = Incoming> + Unpin,
        mut finished: UnboundedReceiver<Incoming>,
    ) {
        let mut beat = tokio::time::interval(SILENCE / 6);
        loop {
            let expires = self.expiring.first().map(|it| it.at);
            let news = tokio::select! {
                news = incoming.next() => match news {
                    Some(news) => news,
                    None => return,
                },
                Some(news) = finished.recv() => news,
                _ = beat.tick() => {
                    self.pulse.beat();
                    continue;
                }
                () = async {
                    match expires {
                        Some(at) => tokio::time::sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                } => {
                    self.expire();
                    continue;
                }
            };
            match news {
                Incoming::Run(event) => self.on_run(event),
                Incoming::Pod(event) => self.on_pod(event),
                Incoming::Over(uid, run) => {
                    self.live.remove(&uid);
                    if let Some(run) = run {
                        self.is_over(uid, &run);
                    }
                }
            }
        }
    }

    fn on_run(&mut self, event: Event<DeserializeGuard<WorkflowRun>>) {
        match event {
            Event::Init => self.listing_runs = Some(BTreeSet::new()),
            Event::InitApply(run) => {
                if let (Some(listing), Some(uid)) = (&mut self.listing_runs, &run.meta().uid) {
                    listing.insert(uid.clone());
                }
                self.run_applied(run, !self.runs_listed);
            }
            Event::InitDone => {
                let listed = self.listing_runs.take().unwrap_or_default();
                let known = self.live.keys().chain(self.over.keys());
                let gone: Vec<String> = known
                    .filter(|uid| !listed.contains(*uid))
                    .cloned()
                    .collect();
                for uid in gone {
                    self.run_gone(&uid);
                }
                self.runs_listed = true;
                self.runs_needed.met();
                for news in std::mem::take(&mut self.early) {
                    self.pod_news(news);
                }
            }
            Event::Apply(run) => self.run_applied(run, false),
            Event::Delete(run) => {
                if let Some(uid) = run.meta().uid.clone() {
                    self.run_gone(&uid);
                }
            }
        }
    }

    /// `old`: the run was there before this operator looked, so somebody may have begun it.
    fn run_applied(&mut self, run: DeserializeGuard<WorkflowRun>, old: bool) {
        let run = match run.0 {
            Ok(run) => Arc::new(run),
            Err(invalid) => {
                self.context.refuse_unreadable(&invalid);
                return;
            }
        };
        let Some(uid) = run.metadata.uid.clone() else {
            return;
        };
        if let Some(live) = self.live.get(&uid) {
            let _ = live.inbox.send(News::Run(run));
            return;
        }
        let status = run.status.as_ref();
        let over = self.over.contains_key(&uid);
        if status.is_some_and(|status| status.phase.is_some_and(|phase| phase.is_final())) {
            self.is_over(uid, &run);
            return;
        }
        // What is over stays over: a watch may still show an earlier state.
        if over || run.metadata.deletion_timestamp.is_some() {
            return;
        }
        let (inbox, news) = unbounded_channel();
        let (context, done) = (Arc::clone(&self.context), self.done.clone());
        let span = tracing::info_span!("run", namespace = run.namespace(), name = run.name_any());
        let task = uid.clone();
        tokio::spawn(tracing::Instrument::instrument(
            async move {
                // A run that breaks down must not stop the others, nor be left for dead.
                let work =
                    std::panic::AssertUnwindSafe(workflow_run::drive(context, run, old, news));
                let over = futures::FutureExt::catch_unwind(work)
                    .await
                    .unwrap_or_else(|_| {
                        tracing::error!("the run's task broke down; this is a bug of apscli");
                        None
                    });
                let _ = done.send(Incoming::Over(task, over));
            },
            span,
        ));
        self.live.insert(uid, Live { inbox });
    }

    fn run_gone(&mut self, uid: &str) {
        if let Some(live) = self.live.remove(uid) {
            let _ = live.inbox.send(News::Gone);
        }
        if let Some(Some(expiring)) = self.over.remove(uid) {
            self.expiring.remove(&expiring);
        }
    }

    fn on_pod(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => self.listing = Some(BTreeSet::new()),
            Event::InitApply(pod) => {
                if let (Some(listing), Some(uid)) = (&mut self.listing, &pod.metadata.uid) {
                    listing.insert(uid.clone());
                }
                self.pod_news(News::Pod(Box::new(pod)));
            }
            Event::InitDone => {
                let listed = Arc::new(self.listing.take().unwrap_or_default());
                if self.pods_listed {
                    for live in self.live.values() {
                        let _ = live.inbox.send(News::Listed(Arc::clone(&listed)));
                    }
                }
                self.pods_listed = true;
                self.pods_needed.met();
            }
            Event::Apply(pod) => self.pod_news(News::Pod(Box::new(pod))),
            Event::Delete(pod) => self.pod_news(News::PodGone(Box::new(pod))),
        }
    }

    fn pod_news(&mut self, news: News) {
        let (News::Pod(pod) | News::PodGone(pod)) = &news else {
            return;
        };
        let Some(uid) = pod.labels().get(LABEL_RUN_UID) else {
            return;
        };
        if let Some(live) = self.live.get(uid) {
            let _ = live.inbox.send(news);
        } else if !self.runs_listed {
            // Whether its run lives is not known yet.
            self.early.push(news);
        } else if let News::Pod(pod) = news {
            self.strip_unclaimed(&pod);
        }
    }

    /// A pod that is being deleted and that no live run claims: the run's end is on record, or
    /// the run is gone.
    fn strip_unclaimed(&self, pod: &Pod) {
        let held = pod.finalizers().iter().any(|it| it == FINALIZER);
        if !held || pod.metadata.deletion_timestamp.is_none() {
            return;
        }
        let uid = pod.labels().get(LABEL_RUN_UID).cloned().unwrap_or_default();
        let known_over = self.over.contains_key(&uid);
        let (context, pod) = (Arc::clone(&self.context), pod.clone());
        tokio::spawn(async move {
            let namespace = pod.namespace().unwrap_or_default();
            // The watch of runs may lag behind that of pods: a run that is not known is asked for.
            if !known_over && context.run_is_live(&namespace, &pod, &uid).await {
                return;
            }
            apply::strip(&Api::namespaced(context.client.clone(), &namespace), pod).await;
        });
    }

    fn is_over(&mut self, uid: String, run: &WorkflowRun) {
        let ttl = run.spec.ttl_seconds_after_finished;
        let ttl = ttl.map(|seconds| Duration::from_secs(u64::from(seconds)));
        let ttl = ttl.or(self.context.options.default_ttl);
        let completed = run
            .status
            .as_ref()
            .and_then(|status| status.completion_time.as_ref());
        let expiring = ttl.zip(completed).map(|(ttl, completed)| {
            let age = self.context.clock.now().duration_since(completed.0);
            let age = Duration::try_from(age).unwrap_or_default();
            Expiring {
                at: Instant::now() + ttl.saturating_sub(age),
                uid: uid.clone(),
                namespace: run.namespace().unwrap_or_default(),
                name: run.name_any(),
            }
        });
        if let Some(Some(old)) = self.over.insert(uid, expiring.clone()) {
            self.expiring.remove(&old);
        }
        if run.metadata.deletion_timestamp.is_none() {
            self.expiring.extend(expiring);
        }
    }

    fn expire(&mut self) {
        while let Some(first) = self.expiring.first() {
            if first.at > Instant::now() {
                return;
            }
            let Some(expired) = self.expiring.pop_first() else {
                return;
            };
            let runs: Api<WorkflowRun> =
                Api::namespaced(self.context.client.clone(), &expired.namespace);
            tokio::spawn(async move {
                let params = DeleteParams {
                    propagation_policy: Some(PropagationPolicy::Background),
                    preconditions: Some(Preconditions {
                        uid: Some(expired.uid),
                        resource_version: None,
                    }),
                    ..DeleteParams::default()
                };
                match runs.delete(&expired.name, &params).await {
                    Ok(_) => {
                        tracing::info!(run = expired.name, "deleted: its time to live is over")
                    }
                    Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => {}
                    Err(error) => {
                        // The next look at the run, when the watch is begun anew, tries again.
                        tracing::warn!(run = expired.name, %error, "cannot delete an expired run");
                    }
                }
            });
        }
    }
}
