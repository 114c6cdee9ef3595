//! A kubelet of the test's own: it gives each pod's decision to `apscli-node`, run on this machine,
//! and its frame back. The fake nodes begin the pods; that they do not end them too is asked for by
//! [`annotations`]. Must not look at anything in a pod but what a real kubelet would.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use apscli::executor::decision::{ENV, Work};

use crate::program::PYTHON;

/// What pods must have so that only this kubelet ends them.
pub fn annotations() -> Value {
    json!({"fake.apscli.dev/seconds": "forever", "fake.apscli.dev/stop-seconds": "60"})
}

/// Carries out the pods of a namespace.
pub struct Kubelet {
    pods: Api<Pod>,
    /// The template's folder of each run: where the scripts would be mounted.
    folders: BTreeMap<String, PathBuf>,
    /// What every secret's file holds.
    secret: Option<PathBuf>,
    /// What runs, by the pod's UID.
    running: Mutex<BTreeMap<String, Pid>>,
}

impl Kubelet {
    /// Works until the task is aborted.
    pub fn start(
        client: &Client,
        namespace: &str,
        folders: BTreeMap<String, PathBuf>,
        secret: Option<PathBuf>,
    ) -> tokio::task::JoinHandle<()> {
        let kubelet = Self {
            pods: Api::namespaced(client.clone(), namespace),
            folders,
            secret,
            running: Mutex::default(),
        };
        tokio::spawn(Arc::new(kubelet).work())
    }

    async fn work(self: Arc<Self>) {
        let mut begun = BTreeSet::new();
        let mut events = watcher(self.pods.clone(), watcher::Config::default()).boxed();
        while let Some(event) = events.next().await {
            let Ok(Event::Apply(pod) | Event::InitApply(pod)) = event else {
                continue;
            };
            let uid = pod.uid().unwrap();
            if pod.metadata.deletion_timestamp.is_some() {
                if let Some(pid) = self.running.lock().unwrap().get(&uid) {
                    let _ = kill_process(*pid, Signal::TERM);
                }
                continue;
            }
            let phase = pod.status.as_ref().and_then(|it| it.phase.as_deref());
            if phase == Some("Running") && begun.insert(uid) {
                tokio::spawn(Arc::clone(&self).carry_out(pod));
            }
        }
    }

    async fn carry_out(self: Arc<Self>, pod: Pod) {
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let decision = container.env.as_ref().unwrap()[0].value.clone().unwrap();
        let folder = &self.folders[&pod.labels()["apscli.dev/run"]];
        let mut decision = Work::from_json(&decision).unwrap();
        decision.folder = folder.to_str().unwrap().to_owned();
        for file in decision.secrets.values_mut() {
            let secret = self.secret.as_ref().unwrap();
            secret.to_str().unwrap().clone_into(file);
        }
        let work = tempfile::tempdir().unwrap();
        let message = work.path().join("message");
        let mut command = Command::new(crate::node::program());
        command
            .arg("--termination-log")
            .arg(&message)
            .current_dir(work.path())
            .env("PATH", path())
            .env(ENV, decision.to_json().unwrap())
            .env_remove("VIRTUAL_ENV")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let uid = pod.uid().unwrap();
        let pid = Pid::from_child(&child);
        self.running.lock().unwrap().insert(uid.clone(), pid);
        let status = tokio::task::spawn_blocking(move || child.wait().unwrap());
        let code = status.await.unwrap().code().unwrap_or(137);
        self.running.lock().unwrap().remove(&uid);
        let message = std::fs::read_to_string(&message).unwrap_or_default();
        let now = jiff::Timestamp::now()
            .strftime("%Y-%m-%dT%H:%M:%SZ")
            .to_string();
        let terminated = json!({"exitCode": code, "message": message, "startedAt": now,
            "finishedAt": now, "reason": if code == 0 { "Completed" } else { "Error" }});
        let status = json!({"status": {
            "phase": if code == 0 { "Succeeded" } else { "Failed" },
            "containerStatuses": [{"name": "node", "image": "i", "imageID": "", "ready": false,
                "restartCount": 0, "state": {"terminated": terminated}}],
        }});
        let (name, params) = (pod.name_any(), PatchParams::default());
        // One that was taken away has nobody left to tell.
        let _ = self
            .pods
            .patch_status(&name, &params, &Patch::Merge(status))
            .await;
    }
}

/// The PATH that nodes of a local run have in tests, too.
fn path() -> String {
    let path = std::env::var("PATH").unwrap();
    format!("{}:{path}", PYTHON.parent().unwrap().display())
}
