//! Who looks on while runs go on: in which order pods came and ended, and how large objects were.
//!
//! One watch of pods is one order, the API server's own. Must not ask the operator.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::core::{NotUsed, Object};
use kube::runtime::watcher::{self, Event, watcher};
use serde::{Deserialize, Serialize};

use apscli::api::page::WorkflowRunPage;
use apscli::api::workflow_run::WorkflowRun;
use apscli::executor::pod::{ANNOTATION_ATTEMPT, LABEL_RUN, NODE};

/// As much of a pod's status as counts here; all else is not even read.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct Phase {
    #[serde(default)]
    phase: String,
}

type SlimPod = Object<NotUsed, Phase>;

/// What became of a pod, in places of the one order.
#[derive(Clone, Copy, Debug)]
pub struct Story {
    pub came: usize,
    pub ended: Option<usize>,
}

/// Run, node and attempt.
pub type Try = (String, String, String);

#[derive(Default)]
pub struct Seen {
    place: usize,
    /// By UID, those of one attempt beside each other: more than one is one too many.
    pub pods: BTreeMap<Try, BTreeMap<String, Story>>,
    /// The largest object of a kind: its bytes as JSON, and its name.
    pub largest: BTreeMap<&'static str, (usize, String)>,
    /// How often something was listed: once each, or the order has a gap.
    pub lists: usize,
}

/// Looks on until it is dropped.
pub struct Witness {
    seen: Arc<Mutex<Seen>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Witness {
    /// Begins; comes back once it sees everything that happens from now on.
    pub async fn of(client: &Client, namespace: &str) -> Self {
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let mut tasks = Vec::new();
        let pods = ApiResource::erase::<Pod>(&());
        let pods: Api<SlimPod> = Api::namespaced_with(client.clone(), namespace, &pods);
        let slow = watcher::Config::default();
        let events = watcher(pods, slow.clone()).boxed();
        tasks.push(tokio::spawn(look(Arc::clone(&seen), events, Seen::pod)));
        for (kind, resource) in [
            ("WorkflowRun", ApiResource::erase::<WorkflowRun>(&())),
            (
                "WorkflowRunPage",
                ApiResource::erase::<WorkflowRunPage>(&()),
            ),
            ("ConfigMap", ApiResource::erase::<ConfigMap>(&())),
        ] {
            let api: Api<DynamicObject> =
                Api::namespaced_with(client.clone(), namespace, &resource);
            let events = watcher(api, slow.clone()).boxed();
            let measure = move |seen: &mut Seen, object: &DynamicObject| {
                let bytes = serde_json::to_vec(object).unwrap().len();
                seen.measure(kind, object.metadata.name.as_deref().unwrap(), bytes);
            };
            tasks.push(tokio::spawn(look(Arc::clone(&seen), events, measure)));
        }
        let witness = Self { seen, tasks };
        let all = witness.tasks.len();
        witness.until("four lists", |seen| seen.lists == all).await;
        witness
    }

    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    /// A watch may lag behind what others say.
    pub async fn until(&self, what: &str, holds: impl Fn(&Seen) -> bool) {
        let begun = Instant::now();
        while !holds(&self.seen()) {
            assert!(
                begun.elapsed() < Duration::from_mins(1),
                "never seen: {what}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn look<K>(
    seen: Arc<Mutex<Seen>>,
    mut events: impl Stream<Item = watcher::Result<Event<K>>> + Unpin,
    take: impl Fn(&mut Seen, &K),
) {
    while let Some(event) = events.next().await {
        let mut seen = seen.lock().unwrap();
        match event {
            Ok(Event::InitDone) => seen.lists += 1,
            Ok(Event::Apply(object) | Event::InitApply(object) | Event::Delete(object)) => {
                take(&mut seen, &object);
            }
            Ok(Event::Init) | Err(_) => {}
        }
    }
}

impl Seen {
    fn pod(&mut self, pod: &SlimPod) {
        let metadata = &pod.metadata;
        let said = |of: &Option<BTreeMap<String, String>>, name: &str| {
            let text = of.as_ref().and_then(|all| all.get(name));
            text.cloned().unwrap_or_default()
        };
        let attempt = (
            said(&metadata.labels, LABEL_RUN),
            said(&metadata.annotations, NODE),
            said(&metadata.annotations, ANNOTATION_ATTEMPT),
        );
        self.place += 1;
        let new = Story {
            came: self.place,
            ended: None,
        };
        let uid = metadata.uid.clone().unwrap();
        let of_attempt = self.pods.entry(attempt).or_default();
        let story = of_attempt.entry(uid).or_insert(new);
        let phase = pod.status.as_ref().map(|status| status.phase.as_str());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            story.ended = story.ended.or(Some(self.place));
        }
    }

    fn measure(&mut self, kind: &'static str, name: &str, bytes: usize) {
        // A template that was submitted, and the copy of it, may have a ConfigMap's whole size.
        let kind = match name {
            _ if kind == "ConfigMap" && name.contains("-template-") => "ConfigMap of a template",
            _ => kind,
        };
        let largest = self.largest.entry(kind).or_default();
        if bytes > largest.0 {
            *largest = (bytes, name.to_owned());
        }
    }

    /// How many pods of a run there were.
    pub fn count(&self, run: &str) -> usize {
        let of_run = self.pods.iter().filter(|((of, ..), _)| of == run);
        of_run.map(|(_, pods)| pods.len()).sum()
    }

    /// The one pod of a node that is tried once.
    pub fn only(&self, run: &str, node: &str) -> Story {
        let key = (run.to_owned(), node.to_owned(), "1".to_owned());
        let pods = self.pods.get(&key);
        let pods: Vec<&Story> = pods.iter().flat_map(|pods| pods.values()).collect();
        assert_eq!(pods.len(), 1, "pods of {node} in {run}");
        *pods[0]
    }
}
