//! An API server in memory, as far as the operator talks to one: objects with versions, UIDs,
//! finalizers and a status of their own, and watches. It writes down every call that it gets,
//! and can be told to refuse one, to lose the answer, or to be late.
//!
//! Where it stands for a kubelet it does what it is told, or by itself once [`Fake::kubelet`] is
//! set.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::channel::mpsc;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use jiff::Timestamp;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::time::Instant;
use tower::{BoxError, Layer};

use crate::engine::event::{Captured, Ending, Outcome};
use crate::executor::frame;
use crate::operator::client::Calls;
use crate::operator::lease::Leadership;
use crate::operator::metrics::Metrics;

/// What becomes of a call.
#[derive(Clone, Debug)]
pub enum Act {
    /// It is refused.
    Refuse(u16, &'static str, &'static str),
    /// It is done, but nobody hears of it.
    Lose,
    /// It is done at once and answered later.
    Late(Duration),
    /// It is done later.
    Stall(Duration),
    /// It fails as far as anybody hears, and is done later all the same.
    Haunt(Duration),
    /// A list is answered as it was before there was anything.
    Early,
}

/// How a watch is told that its version is too old.
#[derive(Clone, Copy, Debug)]
pub enum Gone {
    /// By an event.
    Event,
    /// By the answer's status.
    Answer,
}

/// A call that something becomes of.
struct Rule {
    line: String,
    times: usize,
    act: Act,
}

/// The line of a look through all pods.
const LOOK: &str = "look through pods";
const SURVEY: &str = "look through runs";
const CATALOGUE: [&str; 2] = ["list configmaps", "list services"];

struct Watcher {
    resource: String,
    namespace: Option<String>,
    selector: String,
    seen: usize,
    stream: mpsc::UnboundedSender<Value>,
}

/// One thing that happened to an object.
struct Change {
    version: u64,
    resource: String,
    namespace: String,
    kind: &'static str,
    object: Value,
    /// As it was, of what was changed.
    before: Option<Value>,
}

impl Change {
    /// What a watch with this label selector tells of it: what it does not select any more is gone
    /// for it, as it was last.
    fn told(&self, selector: &str) -> Option<Value> {
        let was = self.before.as_ref();
        let was = was.filter(|was| selects(selector, was));
        let (kind, object) = match (was, selects(selector, &self.object)) {
            (None, true) if self.before.is_some() => ("ADDED", self.object.clone()),
            (_, true) => (self.kind, self.object.clone()),
            (Some(was), false) => {
                let mut was = was.clone();
                was["metadata"]["resourceVersion"] =
                    self.object["metadata"]["resourceVersion"].clone();
                ("DELETED", was)
            }
            (None, false) => return None,
        };
        Some(json!({"type": kind, "object": object}))
    }
}

/// Resource, namespace and name.
pub type Key = (String, String, String);

#[derive(Default)]
struct State {
    version: u64,
    uids: u64,
    objects: BTreeMap<Key, Value>,
    changes: Vec<Change>,
    watchers: Vec<Watcher>,
    /// Resources whose watches say nothing for now.
    held: BTreeSet<String>,
    /// Watches of these resources from before this version are refused, in this form.
    oldest: BTreeMap<String, (u64, Gone)>,
    calls: Vec<String>,
    rules: Vec<Rule>,
    /// Accepted creates of pods, by attempt.
    created: BTreeMap<String, usize>,
    /// Accepted writes of the operator.
    writes: usize,
    /// After so many writes the operator's process ends.
    fatal: Option<usize>,
    kubelet: Option<fn(&str) -> Ending>,
}

/// The server; clones are of the same.
#[derive(Clone)]
pub struct Fake {
    state: Arc<Mutex<State>>,
    base: (Timestamp, Instant),
    died: Arc<tokio::sync::Notify>,
}

type Reply = Response<Pin<Box<dyn http_body::Body<Data = Bytes, Error = BoxError> + Send>>>;
type Answer = Result<Reply, BoxError>;

impl Fake {
    pub fn new() -> Self {
        let base = Timestamp::now();
        let state = State {
            version: 1000,
            ..State::default()
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            base: (base, Instant::now()),
            died: Arc::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn now(&self) -> Timestamp {
        self.base.0.checked_add(self.base.1.elapsed()).unwrap()
    }

    fn second(&self) -> String {
        self.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }

    /// A client of one process, and what ends that process: nothing of it comes through then.
    pub fn client(&self) -> (Client, Arc<AtomicBool>) {
        let fake = self.clone();
        let dead = Arc::new(AtomicBool::new(false));
        let process = Arc::clone(&dead);
        let service = tower::service_fn(move |request: Request<Body>| {
            let (fake, dead) = (fake.clone(), Arc::clone(&dead));
            async move { fake.call(request, &dead).await }
        });
        (Client::new(service, "default"), process)
    }

    /// Likewise, with its calls bounded as in the program.
    pub fn bounded_client(&self, metrics: &Arc<Metrics>) -> (Client, Arc<AtomicBool>) {
        let calls = Calls {
            metrics: Arc::clone(metrics),
            leadership: Leadership::alone(),
        };
        let (fake, dead) = (self.clone(), Arc::new(AtomicBool::new(false)));
        let process = Arc::clone(&dead);
        let service = tower::service_fn(move |request: Request<Body>| {
            let (fake, dead) = (fake.clone(), Arc::clone(&dead));
            async move { fake.call(request, &dead).await }
        });
        (Client::new(calls.layer(service), "default"), process)
    }

    /// Somebody other than the operator changes the status of an object.
    pub fn change_status(&self, resource: &str, name: &str, status: &Value) {
        let key = (resource.to_owned(), "default".to_owned(), name.to_owned());
        let patch = json!({"status": status});
        let mut state = self.state();
        state.patch(&key, Some("status"), &patch).unwrap();
    }

    /// Likewise, with its calls counted as in the program.
    pub fn counted_client(&self, metrics: &Arc<Metrics>) -> Client {
        let calls = Calls {
            metrics: Arc::clone(metrics),
            leadership: Leadership::alone(),
        };
        let (fake, living) = (self.clone(), Arc::new(AtomicBool::new(false)));
        let service = tower::service_fn(move |request: Request<Body>| {
            let (fake, living) = (fake.clone(), Arc::clone(&living));
            async move { fake.call(request, &living).await }
        });
        Client::new(calls.layer(service), "default")
    }

    /// What was called since the last time, watches left out, and what comes in its own time and for
    /// nothing: looks through all pods and runs, and new lists of the catalogue.
    pub fn calls(&self) -> Vec<String> {
        let mut calls = std::mem::take(&mut self.state().calls);
        let starts = calls.iter().any(|call| call == "list workflowruns");
        let is_timely =
            |call: &str| [LOOK, SURVEY].contains(&call) || CATALOGUE.contains(&call) && !starts;
        calls.retain(|call| !is_timely(call));
        calls
    }

    /// How often the catalogue was listed since `calls` was asked for the last time.
    pub fn catalogues(&self) -> usize {
        let state = self.state();
        let calls = state.calls.iter();
        let lists = calls.filter(|call| CATALOGUE.contains(&call.as_str()));
        lists.count() / CATALOGUE.len()
    }

    /// How often all pods were looked through since anything was called for the last time.
    pub fn looks(&self) -> usize {
        let mut state = self.state();
        let before = state.calls.len();
        state.calls.retain(|call| call != LOOK);
        before - state.calls.len()
    }

    /// How often runs were, likewise.
    pub fn surveys(&self) -> usize {
        let mut state = self.state();
        let before = state.calls.len();
        state.calls.retain(|call| call != SURVEY);
        before - state.calls.len()
    }

    /// The next `times` calls whose line begins so are treated so.
    pub fn rule(&self, line: &str, times: usize, act: Act) {
        let line = line.to_owned();
        self.state().rules.push(Rule { line, times, act });
    }

    /// Takes all rules back.
    pub fn no_rules(&self) {
        self.state().rules.clear();
    }

    /// From now on pods run and end by themselves, as the function says for their node.
    pub fn kubelet(&self, ending: fn(&str) -> Ending) {
        self.state().kubelet = Some(ending);
    }

    /// The process that writes ends after so many more writes.
    pub fn dies_after(&self, writes: Option<usize>) {
        let mut state = self.state();
        state.fatal = writes.map(|writes| state.writes + writes);
    }

    /// Comes back when a process has ended that way.
    pub async fn died(&self) {
        self.died.notified().await;
    }

    /// How many pods were created for each attempt.
    pub fn created(&self) -> BTreeMap<String, usize> {
        self.state().created.clone()
    }

    pub fn hold_watch(&self, resource: &str) {
        self.state().held.insert(resource.to_owned());
    }

    pub fn release_watch(&self, resource: &str) {
        let mut state = self.state();
        state.held.remove(resource);
        state.pump();
    }

    /// Breaks off the watches of a resource; what they have not said is forgotten, so that the
    /// objects have to be listed anew.
    pub fn forget_watch(&self, resource: &str, form: Gone) {
        let mut state = self.state();
        state.held.remove(resource);
        let version = state.version;
        state.oldest.insert(resource.to_owned(), (version, form));
        state
            .watchers
            .retain(|watcher| watcher.resource != resource);
    }

    /// Says to all watches that something happened.
    pub fn say(&self, resource: &str, kind: &str, object: &Value) {
        let event = json!({"type": kind, "object": object});
        for watcher in &self.state().watchers {
            if watcher.resource == resource {
                let _ = watcher.stream.unbounded_send(event.clone());
            }
        }
    }

    /// All objects but events, each with its resource.
    pub fn objects(&self) -> Value {
        let state = self.state();
        let kept = state.objects.iter().filter(|(key, _)| key.0 != "events");
        let kept = kept.map(|((resource, namespace, _), object)| {
            json!({"resource": resource, "namespace": namespace, "object": object})
        });
        kept.collect()
    }

    /// Puts objects in as they are.
    pub fn load(&self, objects: &Value) {
        let mut state = self.state();
        for entry in objects.as_array().unwrap() {
            let part = |name: &str| entry[name].as_str().unwrap().to_owned();
            let object = entry["object"].clone();
            let version: u64 = text(&object, "resourceVersion").parse().unwrap();
            state.version = state.version.max(version);
            let name = text(&object, "name").to_owned();
            let key = (part("resource"), part("namespace"), name);
            state.objects.insert(key, object);
        }
        // What is made from now on gets UIDs of its own.
        state.uids = 1_000_000;
    }

    /// The attempts that there are pods of.
    pub fn attempts(&self) -> Vec<String> {
        let state = self.state();
        let pods = state.objects.iter().filter(|(key, _)| key.0 == "pods");
        pods.map(|(_, pod)| of(pod)).collect()
    }

    /// A kubelet that works by itself takes up the pods that are there already.
    pub fn kubelet_begins(&self) {
        for key in self.pods() {
            let pod = self.state().objects.get(&key).cloned().unwrap_or_default();
            if !text(&pod, "deletionTimestamp").is_empty() {
                self.stop_later(&key);
            } else if !matches!(
                pod["status"]["phase"].as_str(),
                Some("Succeeded" | "Failed")
            ) {
                self.begin_later(&key);
            }
        }
    }

    pub fn get(&self, resource: &str, name: &str) -> Option<Value> {
        self.get_in("default", resource, name)
    }

    pub fn get_in(&self, namespace: &str, resource: &str, name: &str) -> Option<Value> {
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        self.state().objects.get(&key).cloned()
    }

    /// The run `r`.
    pub fn run(&self) -> Value {
        self.get("workflowruns", "r").unwrap_or_default()
    }

    pub fn count(&self, resource: &str) -> usize {
        self.state()
            .objects
            .keys()
            .filter(|key| key.0 == resource)
            .count()
    }

    /// Somebody other than the operator makes an object.
    pub fn put(&self, resource: &str, object: Value) -> Value {
        let now = self.second();
        self.state()
            .create(resource, "default", object, &now)
            .unwrap()
    }

    pub fn put_in(&self, namespace: &str, resource: &str, object: Value) -> Value {
        let now = self.second();
        self.state()
            .create(resource, namespace, object, &now)
            .unwrap()
    }

    /// Somebody other than the operator changes an object.
    pub fn merge(&self, resource: &str, name: &str, patch: &Value) {
        let key = (resource.to_owned(), "default".to_owned(), name.to_owned());
        self.state().patch(&key, None, patch).unwrap();
    }

    /// Somebody other than the operator deletes an object.
    pub fn delete(&self, resource: &str, name: &str) {
        let key = (resource.to_owned(), "default".to_owned(), name.to_owned());
        let now = self.second();
        self.state().delete(&key, &Value::Null, &now).unwrap();
        self.stop_later(&key);
    }

    /// What the garbage collector does: deletes what is owned by nobody.
    pub fn collect_garbage(&self) {
        let now = self.second();
        let orphans: Vec<Key> = {
            let state = self.state();
            let uids: BTreeSet<&str> = state
                .objects
                .values()
                .filter_map(|it| it["metadata"]["uid"].as_str())
                .collect();
            let gone = |object: &&Value| {
                let owners = object["metadata"]["ownerReferences"].as_array();
                owners.is_some_and(|owners| {
                    !owners.is_empty()
                        && owners
                            .iter()
                            .all(|it| !uids.contains(it["uid"].as_str().unwrap()))
                })
            };
            let orphans = state.objects.iter().filter(|(_, object)| gone(object));
            orphans.map(|(key, _)| key.clone()).collect()
        };
        for key in orphans {
            let _ = self.state().delete(&key, &Value::Null, &now);
            self.stop_later(&key);
        }
    }

    /// The key of the pod of an attempt such as `a/1`.
    fn pod_key(&self, attempt: &str) -> Key {
        let state = self.state();
        let found = state
            .objects
            .iter()
            .find(|(key, it)| key.0 == "pods" && of(it) == attempt);
        found
            .map(|(key, _)| key.clone())
            .unwrap_or_else(|| panic!("there is no pod of {attempt}"))
    }

    pub fn pod(&self, attempt: &str) -> Option<Value> {
        let state = self.state();
        let found = state
            .objects
            .iter()
            .find(|(key, it)| key.0 == "pods" && of(it) == attempt);
        found.map(|(_, pod)| pod.clone())
    }

    pub fn pod_name(&self, attempt: &str) -> String {
        self.pod_key(attempt).2
    }

    /// A pod was made at another time; its next event says so.
    pub fn pod_was_made_at(&self, attempt: &str, time: &str) {
        let key = self.pod_key(attempt);
        if let Some(pod) = self.state().objects.get_mut(&key) {
            pod["metadata"]["creationTimestamp"] = json!(time);
        }
    }

    /// A pod gets a node and runs.
    pub fn pod_runs(&self, attempt: &str) {
        let key = self.pod_key(attempt);
        self.runs(&key);
    }

    fn runs(&self, key: &Key) {
        let now = self.second();
        let _ = self
            .state()
            .patch(key, None, &json!({"spec": {"nodeName": "n1"}}));
        let status = json!({"phase": "Running", "startTime": now, "containerStatuses": [
            {"name": "node", "image": "i", "imageID": "i", "ready": true, "restartCount": 0,
             "state": {"running": {"startedAt": now}}},
        ]});
        let _ = self
            .state()
            .patch(key, Some("status"), &json!({"status": status}));
    }

    /// A pod's action ends by itself.
    pub fn pod_ends(&self, attempt: &str, ending: Ending) {
        let key = self.pod_key(attempt);
        let code = i32::from(ending != Ending::Exited(0));
        let outcome = Outcome {
            ending,
            captured: Captured::default(),
        };
        self.ends(&key, code, &frame::encode(&outcome, 4096), "Completed");
    }

    /// A pod's container has ended well, and its pod's phase does not say so yet.
    pub fn container_ends(&self, attempt: &str) {
        let key = self.pod_key(attempt);
        let outcome = Outcome {
            ending: Ending::Exited(0),
            captured: Captured::default(),
        };
        self.container(
            &key,
            "Running",
            0,
            &frame::encode(&outcome, 4096),
            "Completed",
        );
    }

    /// A pod's container ends with this termination message.
    pub fn pod_says(&self, attempt: &str, code: i32, message: &str, reason: &str) {
        let key = self.pod_key(attempt);
        self.ends(&key, code, message, reason);
    }

    fn ends(&self, key: &Key, code: i32, message: &str, reason: &str) {
        let phase = if code == 0 { "Succeeded" } else { "Failed" };
        self.container(key, phase, code, message, reason);
    }

    fn container(&self, key: &Key, phase: &str, code: i32, message: &str, reason: &str) {
        let status = self.status_of_end(phase, code, message, reason);
        let _ = self
            .state()
            .patch(key, Some("status"), &json!({"status": status}));
    }

    fn status_of_end(&self, phase: &str, code: i32, message: &str, reason: &str) -> Value {
        let now = self.second();
        json!({"phase": phase, "containerStatuses": [
            {"name": "node", "image": "i", "imageID": "i", "ready": false, "restartCount": 0,
             "state": {"terminated": {"exitCode": code, "message": message, "reason": reason,
                                      "startedAt": now, "finishedAt": now}}},
        ]})
    }

    /// The kubelet has ended a pod whose `activeDeadlineSeconds` are over.
    pub fn pod_is_over_its_deadline(&self, attempt: &str) {
        let key = self.pod_key(attempt);
        let mut status = self.status_of_end("Failed", 137, "", "Error");
        status["reason"] = json!("DeadlineExceeded");
        let _ = self
            .state()
            .patch(&key, Some("status"), &json!({"status": status}));
    }

    /// The kubelet has stopped a pod that is being deleted: nothing but finalizers keeps it.
    pub fn pod_stopped(&self, attempt: &str) {
        let key = self.pod_key(attempt);
        self.stopped(&key);
    }

    fn stopped(&self, key: &Key) {
        let ended =
            |pod: &Value| !pod["status"]["containerStatuses"][0]["state"]["terminated"].is_null();
        let pod = self.state().objects.get(key).cloned();
        if pod.is_some_and(|pod| !ended(&pod)) {
            self.ends(key, 143, "", "Error");
        }
        self.state().confirm(key);
    }

    /// The keys of all pods.
    pub fn pods(&self) -> Vec<Key> {
        self.state()
            .objects
            .keys()
            .filter(|key| key.0 == "pods")
            .cloned()
            .collect()
    }

    /// The action of this pod ends well.
    pub fn ends_well(&self, key: &Key) {
        let outcome = Outcome::silent(Ending::Exited(0));
        self.ends(key, 0, &frame::encode(&outcome, 4096), "Completed");
    }

    /// Somebody takes a pod away, and before that its finalizer, as one has to.
    pub fn pod_vanishes(&self, attempt: &str) {
        let key = self.pod_key(attempt);
        let free = json!({"metadata": {"finalizers": null}});
        let mut state = self.state();
        state.patch(&key, None, &free).unwrap();
        state.remove(&key);
    }

    /// A kubelet that works by itself stops pods that are being deleted.
    fn stop_later(&self, key: &Key) {
        if key.0 == "pods" && self.state().kubelet.is_some() {
            let (fake, key) = (self.clone(), key.clone());
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(70)).await;
                fake.stopped(&key);
            });
        }
    }

    fn begin_later(&self, key: &Key) {
        let Some(ending) = self.state().kubelet else {
            return;
        };
        let (fake, key) = (self.clone(), key.clone());
        tokio::spawn(async move {
            let being_deleted = |fake: &Self| {
                let state = fake.state();
                let pod = state.objects.get(&key);
                pod.is_none_or(|pod| !pod["metadata"]["deletionTimestamp"].is_null())
            };
            tokio::time::sleep(Duration::from_millis(50)).await;
            if being_deleted(&fake) {
                return;
            }
            fake.runs(&key);
            tokio::time::sleep(Duration::from_millis(150)).await;
            if being_deleted(&fake) {
                return;
            }
            let name = {
                let state = fake.state();
                state.objects.get(&key).map(of).unwrap_or_default()
            };
            let ending = ending(&name);
            let code = i32::from(ending != Ending::Exited(0));
            let captured = Captured::default();
            let message = frame::encode(&Outcome { ending, captured }, 4096);
            fake.ends(&key, code, &message, "Completed");
        });
    }

    async fn call(&self, request: Request<Body>, dead: &AtomicBool) -> Answer {
        if dead.load(SeqCst) {
            return std::future::pending().await;
        }
        let call = Call::read(request).await;
        if call.watch {
            return Ok(self.watch(&call));
        }
        let line = self.state().line(&call);
        let act = self.state().act(&line);
        if let Some(Act::Refuse(code, reason, message)) = act {
            self.state().calls.push(format!("{line} -> {code}"));
            return Ok(failure(code, reason, message));
        }
        if let Some(Act::Early) = act {
            self.state().calls.push(format!("{line}, early"));
            let list = json!({"kind": "List", "apiVersion": "v1", "items": [],
                "metadata": {"resourceVersion": "1000"}});
            return Ok(respond(200, &list));
        }
        if let Some(Act::Haunt(time)) = act {
            self.state().calls.push(format!("{line} -> 504"));
            let (fake, call) = (self.clone(), call);
            tokio::spawn(async move {
                tokio::time::sleep(time).await;
                let line = format!("{line}, late");
                let _ = fake.carry_out(&call, line);
            });
            return Ok(failure(504, "Timeout", "the server did not answer in time"));
        }
        if let Some(Act::Stall(time)) = act {
            tokio::time::sleep(time).await;
            if dead.load(SeqCst) {
                return std::future::pending().await;
            }
        }
        let answer = self.carry_out(&call, line);
        let is_write = call.method != Method::GET && answer.is_ok();
        if is_write && !["events", "services"].contains(&call.resource.as_str()) {
            let fatal = {
                let mut state = self.state();
                state.writes += 1;
                let fatal = state.fatal.is_some_and(|fatal| state.writes >= fatal);
                if fatal {
                    state.fatal = None;
                }
                fatal
            };
            if fatal {
                dead.store(true, SeqCst);
                self.died.notify_one();
                return std::future::pending().await;
            }
        }
        match act {
            Some(Act::Lose) => return Err("the connection was reset".into()),
            Some(Act::Late(time)) => tokio::time::sleep(time).await,
            _ => {}
        }
        if dead.load(SeqCst) {
            return std::future::pending().await;
        }
        Ok(match answer {
            Ok((code, object)) => respond(code, &object),
            Err((code, reason, message)) => failure(code, reason, &message),
        })
    }

    fn carry_out(&self, call: &Call, line: String) -> Result<(u16, Value), Refused> {
        let now = self.second();
        let mut state = self.state();
        let key = (
            call.resource.clone(),
            call.namespace.clone().unwrap_or_default(),
            call.name.clone(),
        );
        let answer = match call.method {
            Method::GET if call.name.is_empty() => Ok((200, state.list(call))),
            Method::GET => state.read(&key).map(|it| (200, it)),
            Method::POST => {
                let made = state.create(&key.0, &key.1, call.body.clone(), &now);
                made.map(|it| (201, it))
            }
            Method::PATCH => {
                let subresource = call.subresource.as_deref();
                state
                    .patch(&key, subresource, &call.body)
                    .map(|it| (200, it))
            }
            Method::DELETE => state.delete(&key, &call.body, &now).map(|it| (200, it)),
            _ => Err((405, "MethodNotAllowed", "not for this server".to_owned())),
        };
        // A status says what it is now.
        let line = match (&answer, line.as_str()) {
            (Ok((_, run)), "status") => {
                let status = &run["status"];
                let text = |name: &str| status[name].as_str().unwrap_or("-").to_owned();
                format!("status {} {}", text("phase"), text("progress"))
            }
            _ => line,
        };
        let line = match &answer {
            Ok(_) => line,
            Err((code, ..)) => format!("{line} -> {code}"),
        };
        // What the catalogue's own loop says of services is no part of a run's conversation.
        if call.method == Method::GET || call.resource != "services" {
            state.calls.push(line);
        }
        drop(state);
        if let Ok((_, object)) = &answer
            && call.resource == "pods"
        {
            let name = object["metadata"]["name"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            let key = (key.0, key.1, name);
            match call.method {
                Method::POST => {
                    *self.state().created.entry(of(object)).or_default() += 1;
                    self.begin_later(&key);
                }
                Method::DELETE => self.stop_later(&key),
                _ => {}
            }
        }
        answer
    }

    fn watch(&self, call: &Call) -> Reply {
        let mut state = self.state();
        let from = call.query("resourceVersion").and_then(|it| it.parse().ok());
        let from: u64 = from.unwrap_or(0);
        let oldest = state.oldest.get(&call.resource).copied();
        let too_old = oldest.filter(|(oldest, _)| from < *oldest);
        if let Some((_, Gone::Answer)) = too_old {
            return failure(410, "Expired", "too old resource version");
        }
        let seen = state.changes.iter().position(|it| it.version > from);
        let (stream, events) = mpsc::unbounded();
        let seen = seen.unwrap_or(state.changes.len());
        state.watchers.push(Watcher {
            resource: call.resource.clone(),
            namespace: call.namespace.clone(),
            selector: call.query("labelSelector").unwrap_or_default().to_owned(),
            seen,
            stream,
        });
        if too_old.is_some() {
            let gone = json!({"kind": "Status", "status": "Failure", "code": 410,
                              "reason": "Expired", "message": "too old resource version"});
            let watcher = state.watchers.pop();
            let _ = watcher.map(|it| {
                it.stream
                    .unbounded_send(json!({"type": "ERROR", "object": gone}))
            });
        }
        state.pump();
        let seconds = call
            .query("timeoutSeconds")
            .and_then(|it| it.parse().ok())
            .unwrap_or(300);
        let end = tokio::time::sleep(Duration::from_secs(seconds));
        let lines = events.map(|event: Value| {
            // In the order of the API server: what reads it depends on that.
            let (kind, object) = (written(&event["type"]), written(&event["object"]));
            let line = format!("{{\"type\":{kind},\"object\":{object}}}\n");
            Ok::<_, BoxError>(Frame::data(Bytes::from(line)))
        });
        let body = StreamBody::new(lines.take_until(end));
        Response::builder()
            .status(200)
            .body(Box::pin(body) as _)
            .unwrap()
    }
}

type Refused = (u16, &'static str, String);

/// Whether a field selector takes an object, of the form `PATH!=TEXT,…`.
fn has_not(fields: &str, object: &Value) -> bool {
    fields.split(',').filter(|it| !it.is_empty()).all(|field| {
        let (path, text) = field.split_once("!=").expect("a field that is not");
        let found = object.pointer(&format!("/{}", path.replace('.', "/")));
        found.and_then(Value::as_str).unwrap_or_default() != text
    })
}

/// Whether a label selector is true of an object: `name`, `name=value` and `name in (…)`.
fn selects(selector: &str, object: &Value) -> bool {
    let labels = &object["metadata"]["labels"];
    let mut rest = selector;
    while !rest.is_empty() {
        let (term, after) = match rest.find(['(', ',']) {
            Some(at) if rest[at..].starts_with('(') => rest.split_once(')').unwrap(),
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        rest = after.trim_start_matches(',');
        let holds = if let Some((name, values)) = term.split_once(" in (") {
            let value = labels[name].as_str();
            values.split(',').any(|one| value == Some(one))
        } else if let Some((name, value)) = term.split_once('=') {
            labels[name].as_str() == Some(value)
        } else {
            labels.get(term).is_some()
        };
        if !holds {
            return false;
        }
    }
    true
}

/// The attempt that a pod is of, such as `a/1`.
fn of(pod: &Value) -> String {
    let said = |name: &str| {
        pod["metadata"]["annotations"][name]
            .as_str()
            .unwrap_or("?")
            .to_owned()
    };
    format!("{}/{}", said("apscli.dev/node"), said("apscli.dev/attempt"))
}

fn text<'a>(object: &'a Value, name: &str) -> &'a str {
    object["metadata"][name].as_str().unwrap_or_default()
}

impl State {
    /// What a call is, in a few words.
    fn line(&self, call: &Call) -> String {
        let key = (
            call.resource.clone(),
            call.namespace.clone().unwrap_or_default(),
            call.name.clone(),
        );
        let pod = || self.objects.get(&key).map_or_else(|| "?".to_owned(), of);
        let body = &call.body;
        let resource = call.resource.as_str();
        match (call.method.as_str(), resource, call.subresource.as_deref()) {
            ("POST", "events", _) => format!("event {}", body["reason"].as_str().unwrap_or("?")),
            ("POST", "pods", _) => format!("create pod {}", of(body)),
            ("DELETE", "pods", _) => {
                let uid = body["preconditions"]["uid"].as_str();
                format!(
                    "delete pod {}{}",
                    pod(),
                    if uid.is_some() {
                        ""
                    } else {
                        " whatever its UID"
                    }
                )
            }
            ("PATCH", "pods", None) if body["metadata"]["labels"].is_object() => {
                format!("label pod {}", pod())
            }
            ("PATCH", "pods", None) => format!("strip pod {}", pod()),
            ("GET", "pods", _) if !call.name.is_empty() => format!("get pod {}", pod()),
            ("PATCH", "workflowruns", Some("status")) => "status".to_owned(),
            ("POST", "workflowrunpages", _) => format!("create page {}", body["spec"]["index"]),
            ("PATCH", "workflowrunpages", _) => {
                format!(
                    "write page {}",
                    call.name.rsplit('-').next().unwrap_or_default()
                )
            }
            ("POST", ..) => format!("create {resource}"),
            ("GET", "pods", _) if call.name.is_empty() && call.metadata_only => LOOK.to_owned(),
            ("GET", "workflowruns", _) if call.name.is_empty() && call.metadata_only => {
                SURVEY.to_owned()
            }
            ("GET", ..) if call.name.is_empty() => format!("list {resource}"),
            (method, ..) => format!("{} {resource} {}", method.to_lowercase(), call.name),
        }
    }

    fn act(&mut self, line: &str) -> Option<Act> {
        let rule = self
            .rules
            .iter_mut()
            .find(|rule| rule.times > 0 && line.starts_with(&rule.line))?;
        rule.times -= 1;
        Some(rule.act.clone())
    }

    fn happened(&mut self, kind: &'static str, key: &Key, object: Value) {
        self.happened_to(None, kind, key, object);
    }

    fn happened_to(&mut self, before: Option<Value>, kind: &'static str, key: &Key, object: Value) {
        self.changes.push(Change {
            version: self.version,
            resource: key.0.clone(),
            namespace: key.1.clone(),
            kind,
            object,
            before,
        });
        self.pump();
    }

    /// Tells the watches what they have not been told.
    fn pump(&mut self) {
        let (changes, held) = (&self.changes, &self.held);
        for watcher in &mut self.watchers {
            if held.contains(&watcher.resource) {
                continue;
            }
            for change in changes.get(watcher.seen..).unwrap_or_default() {
                let concerns = change.resource == watcher.resource
                    && watcher
                        .namespace
                        .as_ref()
                        .is_none_or(|it| *it == change.namespace);
                if concerns && let Some(event) = change.told(&watcher.selector) {
                    let _ = watcher.stream.unbounded_send(event);
                }
            }
            watcher.seen = changes.len();
        }
        self.watchers.retain(|watcher| !watcher.stream.is_closed());
    }

    fn read(&self, key: &Key) -> Result<Value, Refused> {
        let message = || format!("{} \"{}\" not found", key.0, key.2);
        self.objects
            .get(key)
            .cloned()
            .ok_or_else(|| (404, "NotFound", message()))
    }

    fn list(&self, call: &Call) -> Value {
        let selector = call.query("labelSelector").unwrap_or_default();
        let fields = call.query("fieldSelector").unwrap_or_default();
        let wanted = |object: &&Value| selects(selector, object) && has_not(fields, object);
        let objects = self.objects.iter().filter(|(key, _)| {
            key.0 == call.resource && call.namespace.as_ref().is_none_or(|it| *it == key.1)
        });
        let items: Vec<&Value> = objects.map(|(_, object)| object).filter(wanted).collect();
        let metadata = json!({"resourceVersion": self.version.to_string()});
        json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items})
    }

    fn create(
        &mut self,
        resource: &str,
        namespace: &str,
        mut object: Value,
        now: &str,
    ) -> Result<Value, Refused> {
        self.uids += 1;
        let uid = format!("00000000-0000-0000-0000-{:012}", self.uids);
        let mut name = text(&object, "name").to_owned();
        if name.is_empty() {
            name = format!("{}{}", text(&object, "generateName"), self.uids);
        }
        let key = (resource.to_owned(), namespace.to_owned(), name.clone());
        if self.objects.contains_key(&key) {
            return Err((
                409,
                "AlreadyExists",
                format!("{resource} \"{name}\" already exists"),
            ));
        }
        self.version += 1;
        let metadata = object["metadata"].as_object_mut().unwrap();
        metadata.insert("name".to_owned(), json!(name));
        metadata.insert("namespace".to_owned(), json!(namespace));
        metadata.insert("uid".to_owned(), json!(uid));
        metadata.insert(
            "resourceVersion".to_owned(),
            json!(self.version.to_string()),
        );
        metadata.insert("creationTimestamp".to_owned(), json!(now));
        metadata.insert("generation".to_owned(), json!(1));
        if resource == "pods" {
            object["status"] = json!({"phase": "Pending"});
        }
        self.objects.insert(key.clone(), object.clone());
        self.happened("ADDED", &key, object.clone());
        Ok(object)
    }

    fn patch(
        &mut self,
        key: &Key,
        subresource: Option<&str>,
        patch: &Value,
    ) -> Result<Value, Refused> {
        let old = self.read(key)?;
        let wanted = |name: &str| patch["metadata"][name].as_str();
        let conflict =
            wanted("resourceVersion").is_some_and(|it| it != text(&old, "resourceVersion"));
        if conflict || wanted("uid").is_some_and(|it| it != text(&old, "uid")) {
            let message = format!("Operation cannot be fulfilled on {} \"{}\"", key.0, key.2);
            return Err((409, "Conflict", message));
        }
        let mut new = old.clone();
        merge(&mut new, patch);
        let has_status = matches!(key.0.as_str(), "workflowruns" | "pods" | "services");
        if subresource == Some("status") {
            let status = new["status"].clone();
            new = old.clone();
            new["status"] = status;
        } else if has_status {
            new["status"] = old["status"].clone();
        }
        for name in [
            "uid",
            "resourceVersion",
            "creationTimestamp",
            "generation",
            "deletionTimestamp",
        ] {
            new["metadata"][name] = old["metadata"][name].clone();
        }
        drop_nulls(&mut new["metadata"]);
        drop_nulls(&mut new);
        if new == old {
            return Ok(old);
        }
        if new["spec"] != old["spec"] {
            let generation = old["metadata"]["generation"].as_u64().unwrap_or(0);
            new["metadata"]["generation"] = json!(generation + 1);
        }
        self.version += 1;
        new["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(key.clone(), new.clone());
        self.happened_to(Some(old), "MODIFIED", key, new.clone());
        self.sweep(key);
        Ok(new)
    }

    fn delete(&mut self, key: &Key, params: &Value, now: &str) -> Result<Value, Refused> {
        let old = self.read(key)?;
        let uid = params["preconditions"]["uid"].as_str();
        if uid.is_some_and(|uid| uid != text(&old, "uid")) {
            return Err((
                409,
                "Conflict",
                "the UID in the precondition does not match".to_owned(),
            ));
        }
        if !text(&old, "deletionTimestamp").is_empty() {
            return Ok(old);
        }
        let mut new = old;
        self.version += 1;
        new["metadata"]["resourceVersion"] = json!(self.version.to_string());
        new["metadata"]["deletionTimestamp"] = json!(now);
        // A pod that has a node and runs there gets its grace; all else is done at once.
        let runs = key.0 == "pods" && new["status"]["phase"] == "Running";
        let grace = if runs {
            new["spec"]["terminationGracePeriodSeconds"].clone()
        } else {
            json!(0)
        };
        new["metadata"]["deletionGracePeriodSeconds"] = grace;
        self.objects.insert(key.clone(), new.clone());
        let held = new["metadata"]["finalizers"]
            .as_array()
            .is_some_and(|it| !it.is_empty());
        if held || runs {
            self.happened("MODIFIED", key, new.clone());
        } else {
            self.remove(key);
        }
        Ok(new)
    }

    /// The kubelet says that nothing of a pod that is being deleted runs any more.
    fn confirm(&mut self, key: &Key) {
        let Some(pod) = self.objects.get(key).cloned() else {
            return;
        };
        if text(&pod, "deletionTimestamp").is_empty() {
            return;
        }
        let mut new = pod.clone();
        new["metadata"]["deletionGracePeriodSeconds"] = json!(0);
        if new != pod {
            self.version += 1;
            new["metadata"]["resourceVersion"] = json!(self.version.to_string());
            self.objects.insert(key.clone(), new.clone());
            self.happened("MODIFIED", key, new);
        }
        self.sweep(key);
    }

    /// What is being deleted and held by nothing goes.
    fn sweep(&mut self, key: &Key) {
        let Some(object) = self.objects.get(key) else {
            return;
        };
        let metadata = &object["metadata"];
        let held = metadata["finalizers"]
            .as_array()
            .is_some_and(|it| !it.is_empty());
        if !metadata["deletionTimestamp"].is_null()
            && metadata["deletionGracePeriodSeconds"] == 0
            && !held
        {
            self.remove(key);
        }
    }

    fn remove(&mut self, key: &Key) {
        if let Some(mut object) = self.objects.remove(key) {
            self.version += 1;
            object["metadata"]["resourceVersion"] = json!(self.version.to_string());
            self.happened("DELETED", key, object);
        }
    }
}

/// A merge patch, RFC 7386.
fn merge(object: &mut Value, patch: &Value) {
    let Value::Object(members) = patch else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    for (name, value) in members {
        if value.is_null() {
            object.as_object_mut().unwrap().remove(name);
        } else {
            merge(&mut object[name.as_str()], value);
        }
    }
}

fn drop_nulls(object: &mut Value) {
    if let Some(members) = object.as_object_mut() {
        members.retain(|_, value| !value.is_null());
    }
}

/// JSON that `serde_json` itself neither makes nor reads. The string `@deep 150@` stands for so many
/// lists in each other, `@raw …@` for these characters as they are.
fn written(object: &Value) -> String {
    let mut rest = serde_json::to_string(object).unwrap();
    let mut text = String::new();
    while let Some((before, marked)) = rest.split_once("\"@") {
        let (mark, after) = marked.split_once("@\"").expect("a mark without an end");
        text.push_str(before);
        let mark: String = serde_json::from_str(&format!("\"{mark}\"")).unwrap();
        match mark.split_once(' ') {
            Some(("deep", levels)) => {
                let levels = levels.parse().unwrap();
                text.push_str(&"[".repeat(levels));
                text.push_str(&"]".repeat(levels));
            }
            Some(("raw", raw)) => text.push_str(raw),
            _ => panic!("an unknown mark: {mark}"),
        }
        rest = after.to_owned();
    }
    text + &rest
}

fn respond(code: u16, object: &Value) -> Reply {
    let body = http_body_util::Full::new(Bytes::from(written(object)));
    let body =
        body.map_err(|never: std::convert::Infallible| -> tower::BoxError { match never {} });
    let code = StatusCode::from_u16(code).unwrap();
    Response::builder()
        .status(code)
        .body(Box::pin(body) as _)
        .unwrap()
}

fn failure(code: u16, reason: &str, message: &str) -> Reply {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                        "code": code, "reason": reason, "message": message});
    respond(code, &status)
}

/// A call, taken apart.
struct Call {
    method: Method,
    resource: String,
    namespace: Option<String>,
    name: String,
    subresource: Option<String>,
    query: Vec<(String, String)>,
    watch: bool,
    /// Only the metadata of objects are asked for.
    metadata_only: bool,
    body: Value,
}

impl Call {
    async fn read(request: Request<Body>) -> Self {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let mut parts: Vec<&str> = head
            .uri
            .path()
            .split('/')
            .filter(|it| !it.is_empty())
            .collect();
        parts.drain(..if parts[0] == "api" { 2 } else { 3 });
        let mut namespace = None;
        if parts.len() > 2 && parts[0] == "namespaces" {
            namespace = Some(parts[1].to_owned());
            parts.drain(..2);
        }
        let part = |index: usize| parts.get(index).map(|it| (*it).to_owned());
        let query: Vec<(String, String)> = (head.uri.query().unwrap_or_default().split('&'))
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| {
                let value = value
                    .replace('+', " ")
                    .replace("%28", "(")
                    .replace("%29", ")")
                    .replace("%21", "!")
                    .replace("%2F", "/")
                    .replace("%3D", "=")
                    .replace("%2C", ",");
                (name.to_owned(), value)
            })
            .collect();
        let accepted = head.headers.get("accept").and_then(|it| it.to_str().ok());
        Self {
            metadata_only: accepted.is_some_and(|it| it.contains("PartialObjectMetadata")),
            method: head.method,
            resource: part(0).unwrap(),
            namespace,
            name: part(1).unwrap_or_default(),
            subresource: part(2),
            watch: query
                .iter()
                .any(|(name, value)| name == "watch" && value != "false"),
            query,
            body: serde_json::from_slice(&body).unwrap_or_default(),
        }
    }

    fn query(&self, name: &str) -> Option<&str> {
        self.query
            .iter()
            .find(|(it, _)| it == name)
            .map(|(_, value)| value.as_str())
    }
}
