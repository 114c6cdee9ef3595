//! What really comes to pass in a namespace, seen past the proxy: every pod that ever was, and each
//! run as it is.
//!
//! Must not change anything.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::watcher;
use kube::runtime::{WatchStreamExt, watcher::Event};
use kube::{Client, ResourceExt};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

/// A pod of a run.
#[derive(Clone, Debug)]
pub struct PodSeen {
    pub run: String,
    /// `NODE/ATTEMPT`.
    pub title: String,
    pub name: String,
    /// As it was last seen.
    pub phase: String,
    /// Whether its container has begun.
    pub ran: bool,
    pub gone: bool,
    /// Whether it is being deleted.
    pub going: bool,
}

#[derive(Clone, Debug, Default)]
pub struct View {
    /// By UID.
    pub pods: BTreeMap<String, PodSeen>,
    /// By name, as they are.
    pub runs: BTreeMap<String, Value>,
}

impl View {
    /// The UID of the run of this name.
    pub fn uid(&self, run: &str) -> Option<String> {
        let uid = self.runs.get(run)?["metadata"]["uid"].as_str()?;
        Some(uid.to_owned())
    }

    pub fn phase(&self, run: &str) -> Option<&str> {
        self.runs.get(run)?["status"]["phase"].as_str()
    }

    /// The phase of a node, as the run has it on record.
    pub fn node_phase(&self, run: &str, node: &str) -> Option<&str> {
        let nodes = self.runs.get(run)?["status"]["nodes"].as_array()?;
        let entry = nodes.iter().find(|entry| entry["name"] == node)?;
        entry["phase"].as_str()
    }

    /// The pods of the run that has this name now.
    pub fn pods_of<'a>(&'a self, run: &str) -> impl Iterator<Item = &'a PodSeen> + 'a {
        let uid = self.uid(run);
        self.pods
            .values()
            .filter(move |pod| Some(&pod.run) == uid.as_ref())
    }
}

/// Somebody who watches a namespace.
pub struct Witness {
    view: Arc<Mutex<View>>,
    changes: tokio::sync::watch::Receiver<u64>,
    tasks: [tokio::task::JoinHandle<()>; 2],
}

impl Drop for Witness {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// A kind as an API of free objects.
pub fn api(
    client: &Client,
    namespace: &str,
    group: &str,
    version: &str,
    kind: &str,
) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk(group, version, kind);
    let resource = ApiResource::from_gvk(&kind);
    Api::namespaced_with(client.clone(), namespace, &resource)
}

pub fn pods(client: &Client, namespace: &str) -> Api<DynamicObject> {
    api(client, namespace, "", "v1", "Pod")
}

pub fn runs(client: &Client, namespace: &str) -> Api<DynamicObject> {
    api(client, namespace, "apscli.dev", "v1alpha1", "WorkflowRun")
}

impl Witness {
    pub fn start(client: &Client, namespace: &str) -> Self {
        let view = Arc::new(Mutex::new(View::default()));
        let (tell, changes) = tokio::sync::watch::channel(0);
        let tell = Arc::new(tell);
        let see = |api: Api<DynamicObject>, take: fn(&mut View, &Value, bool)| {
            let (view, tell) = (Arc::clone(&view), Arc::clone(&tell));
            tokio::spawn(async move {
                let events = watcher(api, watcher::Config::default()).default_backoff();
                let mut events = events.boxed();
                while let Some(event) = events.next().await {
                    let (object, gone) = match event {
                        Ok(Event::Apply(object) | Event::InitApply(object)) => (object, false),
                        Ok(Event::Delete(object)) => (object, true),
                        Ok(Event::Init | Event::InitDone) | Err(_) => continue,
                    };
                    let object = serde_json::to_value(object).unwrap();
                    take(&mut view.lock().unwrap(), &object, gone);
                    tell.send_modify(|count| *count += 1);
                }
            })
        };
        let tasks = [
            see(pods(client, namespace), take_pod),
            see(runs(client, namespace), take_run),
        ];
        Self {
            view,
            changes,
            tasks,
        }
    }

    pub fn view(&self) -> View {
        self.view.lock().unwrap().clone()
    }

    /// Waits until the view is as wanted. False: it is not so in time.
    pub async fn until(&self, within: Duration, wanted: impl Fn(&View) -> bool) -> bool {
        let mut changes = self.changes.clone();
        let deadline = Instant::now() + within;
        loop {
            changes.borrow_and_update();
            if wanted(&self.view.lock().unwrap()) {
                return true;
            }
            match timeout_at(deadline, changes.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return wanted(&self.view.lock().unwrap()),
            }
        }
    }
}

/// The `NODE/ATTEMPT` that a pod says it is for.
pub fn title(pod: &Value) -> Option<String> {
    let annotations = &pod["metadata"]["annotations"];
    let node = annotations["apscli.dev/node"].as_str()?;
    let attempt = annotations["apscli.dev/attempt"].as_str();
    Some(format!("{node}/{}", attempt.unwrap_or_default()))
}

fn take_pod(view: &mut View, pod: &Value, gone: bool) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &pod["metadata"];
    let (Some(title), uid) = (title(pod), text(&metadata["uid"])) else {
        return;
    };
    let phase = text(&pod["status"]["phase"]);
    let before = view.pods.get(&uid);
    // As it was made: somebody may change what it says.
    let (run, title) = match before {
        Some(before) => (before.run.clone(), before.title.clone()),
        None => (text(&metadata["labels"]["apscli.dev/run-uid"]), title),
    };
    let before = before.is_some_and(|pod| pod.ran);
    let seen = PodSeen {
        run,
        title,
        name: text(&metadata["name"]),
        ran: before || matches!(phase.as_str(), "Running" | "Succeeded" | "Failed"),
        phase,
        gone,
        going: !metadata["deletionTimestamp"].is_null(),
    };
    view.pods.insert(uid, seen);
}

fn take_run(view: &mut View, run: &Value, gone: bool) {
    let name = run["metadata"]["name"].as_str().unwrap_or_default();
    if gone {
        // Another may have its name by now.
        if view.uid(name).as_deref() == run["metadata"]["uid"].as_str() {
            view.runs.remove(name);
        }
    } else {
        view.runs.insert(name.to_owned(), run.clone());
    }
}

/// Everything of ours that stands in a namespace, as `KIND NAME`.
pub async fn left(client: &Client, namespace: &str) -> Vec<String> {
    let mut left = Vec::new();
    let kinds = [
        ("", "v1", "Pod"),
        ("apscli.dev", "v1alpha1", "WorkflowRun"),
        ("apscli.dev", "v1alpha1", "WorkflowRunPage"),
        ("", "v1", "ConfigMap"),
    ];
    for (group, version, kind) in kinds {
        let api = api(client, namespace, group, version, kind);
        let found = api.list(&kube::api::ListParams::default()).await;
        let Ok(found) = found else {
            left.push(format!("{kind}: cannot be listed"));
            continue;
        };
        let names = found.items.iter().map(ResourceExt::name_any);
        let names = names.filter(|name| name != "kube-root-ca.crt");
        left.extend(names.map(|name| format!("{kind} {name}")));
    }
    left
}
