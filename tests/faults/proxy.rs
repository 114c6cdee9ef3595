//! A proxy between the operator and an API server, with rules that say what goes wrong and when.
//!
//! It speaks HTTP/1.1, as the operator's client does. A rule waits for the nth call (or event of a
//! watch) of a kind and then refuses it, loses its answer, delays it, kills the operator around it, or
//! harms the watch. Everything is counted: which writes were asked for, and which pods were really
//! made. Must not know runs or scenarios.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use apscli::operator::client::kind;
use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tower::BoxError;

/// What is asked for. A name is that of the object; that of a pod is `NODE/ATTEMPT`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub verb: String,
    /// With its subresource: `workflowruns/status`.
    pub resource: String,
    /// Empty where it is not known: lists, and what gets its name from the server.
    pub name: String,
}

impl Key {
    pub fn new(verb: &str, resource: &str, name: &str) -> Self {
        Self {
            verb: verb.to_owned(),
            resource: resource.to_owned(),
            name: name.to_owned(),
        }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            verb,
            resource,
            name,
        } = self;
        write!(f, "{verb} {resource} {name}")
    }
}

/// How a call is refused before it is forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// An answer of this code, with this reason.
    Status(u16, &'static str),
    /// The connection ends.
    Reset,
}

/// What goes wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not forwarded.
    Refuse(Refusal),
    /// It is carried out, and the answer is this instead.
    Lose(Refusal),
    /// It is forwarded later.
    Delay(Duration),
    /// The operator is killed, and the call is not forwarded.
    KillBefore,
    /// It is carried out, the operator is killed, and gets no answer.
    KillUnanswered,
    /// It is answered; nothing that comes after it is forwarded, and the operator is killed.
    KillAfter,
    /// The operator is held up before it is forwarded, and both go on when the proxy is released.
    HoldBefore,
    /// Likewise, but the proxy is released when the run is final.
    HoldUntilFinal,
    /// It is carried out, and then the operator is held up; the answer comes after the release.
    HoldUnanswered,
    /// The hook is called, and the call goes on meanwhile.
    Tell,
}

/// What an event of a watch says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    Anything,
    /// That a pod has ended.
    Ended,
    Deleted,
}

/// What goes wrong with a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchFault {
    /// Nothing of this kind is told for so long, by any watch; then all of it.
    Freeze(Duration),
    /// The watch tells that its version is too old, and ends.
    GoneInStream,
    /// The watch ends, and the next one is answered with the status 410.
    GoneAsStatus,
    /// The watch falls silent and stays open.
    HalfOpen,
    /// As `GoneInStream`, and the next list is answered as the first one was.
    Stale,
    /// Likewise, as it was when the first event had come: an object is told of as it was, or
    /// though it is gone.
    Older,
    /// Of this object, nothing is told from here on.
    Swallow,
    /// The event that was waited for is left out.
    SwallowOne,
}

/// When a rule holds. `nth` counts from 1.
#[derive(Clone, Debug)]
pub enum Rule {
    Call {
        key: Key,
        nth: usize,
        fault: Fault,
    },
    Event {
        resource: String,
        /// Any where it is empty.
        name: String,
        said: Said,
        nth: usize,
        fault: WatchFault,
    },
}

type Hook = Arc<dyn Fn(Fault) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// What has passed.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// The operator's writes in order, each with which of its kind it was.
    pub writes: Vec<(Key, usize)>,
    /// The operator's reads likewise, but for watches.
    pub reads: Vec<(Key, usize)>,
    /// Pods that were really made: by the UID of the run, node and attempt.
    pub made: BTreeMap<(String, String), usize>,
    /// Events told by watches, by resource.
    pub told: BTreeMap<String, usize>,
    /// How often a watch of a resource was begun.
    pub watched: BTreeMap<String, usize>,
    /// How many rules have come to hold.
    pub fired: usize,
}

#[derive(Default)]
struct Inner {
    ledger: Ledger,
    counts: BTreeMap<Key, usize>,
    rules: Vec<(Rule, usize)>,
    /// Names of pods, as `NODE/ATTEMPT`.
    pods: BTreeMap<String, String>,
    /// Calls of processes up to this one are not forwarded any more.
    closed: u64,
    generation: u64,
    /// Watches begun by the process that speaks now.
    begun: Vec<String>,
    frozen: BTreeMap<String, Instant>,
    swallowed: Vec<(String, String)>,
    gone: BTreeMap<String, usize>,
    /// What the next list is answered with.
    stale: BTreeMap<String, Bytes>,
    /// The first answer to each list.
    lists: BTreeMap<String, Bytes>,
    /// The same with the first event of a watch.
    older: BTreeMap<String, Bytes>,
    /// Objects, by resource and name, that are told so that nobody can read them.
    garbled: Vec<(String, String)>,
    /// Writes that have arrived and have not gone their way.
    in_flight: usize,
}

impl Inner {
    /// A process is not heard any more, nor does it watch.
    fn silence(&mut self, generation: u64) {
        self.closed = generation;
        self.begun.clear();
    }
}

struct Shared {
    /// Takes connections, as long as somebody holds the proxy.
    accepts: Mutex<Option<tokio::task::AbortHandle>>,
    upstream: Client,
    inner: Mutex<Inner>,
    hook: Mutex<Option<Hook>>,
    released: tokio::sync::watch::Sender<bool>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(accepts) = self.accepts.lock().unwrap().take() {
            accepts.abort();
        }
    }
}

/// A proxy that listens on loopback.
#[derive(Clone)]
pub struct Proxy {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

/// A proxy that is not kept alive by this.
#[derive(Clone)]
pub struct WeakProxy(SocketAddr, std::sync::Weak<Shared>);

impl WeakProxy {
    pub fn upgrade(&self) -> Option<Proxy> {
        let shared = self.1.upgrade()?;
        Some(Proxy {
            address: self.0,
            shared,
        })
    }
}

type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;

impl Proxy {
    pub async fn start(upstream: Client, rules: Vec<Rule>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Inner {
            rules: rules.into_iter().map(|rule| (rule, 0)).collect(),
            generation: 1,
            ..Inner::default()
        };
        let shared = Arc::new(Shared {
            accepts: Mutex::default(),
            upstream,
            inner: Mutex::new(inner),
            hook: Mutex::new(None),
            released: tokio::sync::watch::Sender::new(false),
        });
        let weak = Arc::downgrade(&shared);
        let accepts = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Some(shared) = weak.upgrade() else { return };
                let generation = shared.inner.lock().unwrap().generation;
                tokio::spawn(connection(shared, stream, generation));
            }
        });
        *shared.accepts.lock().unwrap() = Some(accepts.abort_handle());
        Self { address, shared }
    }

    /// Who kills or holds the operator.
    pub fn hook<F>(&self, hook: impl Fn(Fault) -> F + Send + Sync + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        *self.shared.hook.lock().unwrap() = Some(Arc::new(move |fault| Box::pin(hook(fault))));
    }

    /// The next process may speak.
    pub fn open(&self) {
        let mut inner = self.shared.inner.lock().unwrap();
        inner.generation += 1;
        inner.begun.clear();
    }

    /// The process that speaks now is not heard any more.
    pub fn close(&self) {
        let mut inner = self.shared.inner.lock().unwrap();
        inner.closed = inner.generation;
    }

    /// The proxy, as long as somebody else holds it.
    pub fn downgrade(&self) -> WeakProxy {
        WeakProxy(self.address, Arc::downgrade(&self.shared))
    }

    /// Whether the process that speaks now watches all of these.
    pub fn watches(&self, resources: &[&str]) -> bool {
        let inner = self.shared.inner.lock().unwrap();
        let begun = |resource: &&str| inner.begun.iter().any(|it| it == resource);
        resources.iter().all(begun)
    }

    /// From now on, lists and watches tell of this object so that nobody can read it.
    pub fn garble(&self, resource: &str, name: &str) {
        let object = (resource.to_owned(), name.to_owned());
        self.shared.inner.lock().unwrap().garbled.push(object);
    }

    /// Whether writes have arrived that have not gone their way (but for those of Leases), or events
    /// that are not told yet.
    pub fn is_busy(&self) -> bool {
        let inner = self.shared.inner.lock().unwrap();
        let is_frozen = (inner.frozen.values()).any(|until| *until > Instant::now());
        inner.in_flight > 0 || is_frozen
    }

    /// Lets what is held go on.
    pub fn release(&self) {
        self.shared.released.send_replace(true);
    }

    pub fn ledger(&self) -> Ledger {
        self.shared.inner.lock().unwrap().ledger.clone()
    }
}

async fn connection(shared: Arc<Shared>, stream: TcpStream, generation: u64) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request: Request<Incoming>| {
        let shared = Arc::clone(&shared);
        async move {
            // A call that has arrived goes its way, also where nobody waits for its answer.
            let writes = !request.method().is_safe() && !request.uri().path().contains("/leases");
            let underway = writes.then(|| Underway::new(&shared));
            let call = tokio::spawn(async move {
                let answer = call(shared, request, generation).await;
                drop(underway);
                answer
            });
            match call.await {
                Ok(Some(answer)) => Ok(answer),
                Ok(None) | Err(_) => Err("the connection is cut by a rule"),
            }
        }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// A write on its way.
struct Underway(Arc<Shared>);

impl Underway {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.inner.lock().unwrap().in_flight += 1;
        Self(Arc::clone(shared))
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.0.inner.lock().unwrap().in_flight -= 1;
    }
}

/// None: the connection is cut.
#[allow(
    clippy::too_many_lines,
    reason = "one call from its beginning to its end"
)]
async fn call(shared: Arc<Shared>, request: Request<Incoming>, generation: u64) -> Option<Answer> {
    let (mut head, body) = request.into_parts();
    let body = body.collect().await.ok()?.to_bytes();
    let path = head.uri.path().to_owned();
    let kind = kind(&head.method, &path, head.uri.query());
    let mut key = Key::new(kind.verb, &kind.resource, &name_in(&path, &kind.resource));
    let fault = {
        let mut inner = shared.inner.lock().unwrap();
        if generation <= inner.closed {
            return None;
        }
        inner.rename(&mut key, &body);
        inner.count(&head.method, &key);
        inner.fault(&key)
    };
    let hook = shared.hook.lock().unwrap().clone();
    let tell = async |fault| {
        if let Some(hook) = &hook {
            hook(fault).await;
        }
    };
    match fault {
        Some(Fault::Refuse(refusal)) => return refusal.answer(),
        Some(Fault::Delay(time)) => sleep(time).await,
        Some(fault @ Fault::KillBefore) => {
            shared.inner.lock().unwrap().silence(generation);
            tell(fault).await;
            return None;
        }
        Some(fault @ (Fault::HoldBefore | Fault::HoldUntilFinal)) => {
            tell(fault).await;
            shared.released().await;
        }
        Some(fault @ Fault::Tell) => {
            if let Some(hook) = hook.clone() {
                tokio::spawn(async move { hook(fault).await });
            }
        }
        _ => {}
    }
    if key.verb == "watch" {
        let mut inner = shared.inner.lock().unwrap();
        *inner
            .ledger
            .watched
            .entry(key.resource.clone())
            .or_default() += 1;
        inner.begun.push(key.resource.clone());
        if inner.take_gone(&key.resource) {
            return Refusal::Status(410, "Expired").answer();
        }
    }
    let accepts = head.headers.get(ACCEPT).and_then(|it| it.to_str().ok());
    let metadata_only = accepts.is_some_and(|it| it.contains("PartialObjectMetadata"));
    if key.verb == "list" && !metadata_only {
        let stale = shared.inner.lock().unwrap().stale.remove(&key.resource);
        if let Some(stale) = stale {
            // Not before: an operator may end first, or ask for nothing more.
            shared.inner.lock().unwrap().ledger.fired += 1;
            return Some(whole(StatusCode::OK, stale));
        }
    }
    if let Some(Fault::KillUnanswered | Fault::KillAfter) = fault {
        // Whatever else this process asks for comes after the kill.
        shared.inner.lock().unwrap().silence(generation);
    }
    for name in [HOST, CONNECTION, TRANSFER_ENCODING, CONTENT_LENGTH] {
        head.headers.remove(name);
    }
    // The client puts its own server before it.
    head.uri = head
        .uri
        .path_and_query()
        .and_then(|path| path.as_str().parse().ok())
        .unwrap_or_default();
    let forwarded = Request::from_parts(head, Body::from(body));
    let Ok(answer) = shared.upstream.send(forwarded).await else {
        // The server itself does not answer.
        return None;
    };
    let (mut head, body) = answer.into_parts();
    for name in [CONNECTION, TRANSFER_ENCODING, CONTENT_LENGTH] {
        head.headers.remove(name);
    }
    if key.verb == "watch" && head.status == StatusCode::OK {
        return Some(Response::from_parts(
            head,
            watch(shared, key.resource, body),
        ));
    }
    let mut body = body.collect().await.ok()?.to_bytes();
    {
        let mut inner = shared.inner.lock().unwrap();
        if key.verb == "list" {
            body = inner.garble_list(&key.resource, body);
        }
        inner.carried_out(&key, head.status, &body);
    }
    match fault {
        Some(Fault::Lose(refusal)) => return refusal.answer(),
        Some(fault @ Fault::KillUnanswered) => {
            tell(fault).await;
            return None;
        }
        Some(fault @ Fault::HoldUnanswered) => {
            tell(fault).await;
            shared.released().await;
        }
        Some(fault @ Fault::KillAfter) => {
            if let Some(hook) = hook.clone() {
                tokio::spawn(async move {
                    // The answer is on its way, and nothing that it leads to is heard.
                    sleep(Duration::from_millis(30)).await;
                    hook(fault).await;
                });
            }
        }
        _ => {}
    }
    Some(Response::from_parts(head, boxed(body)))
}

/// The name that a path ends in, if it names an object.
fn name_in(path: &str, resource: &str) -> String {
    let resource = resource.split('/').next().unwrap_or_default();
    let mut parts = path.split('/').skip_while(|part| *part != resource);
    parts.nth(1).unwrap_or_default().to_owned()
}

/// A name without what differs from run to run: the hash of a content, or of a UID.
fn unhashed(name: &str) -> String {
    let is_hash = |part: &&str| part.len() >= 20 && part.bytes().all(|it| it.is_ascii_hexdigit());
    let parts = name
        .split('-')
        .map(|part| Some(part).filter(|it| !is_hash(it)).unwrap_or("…"));
    parts.collect::<Vec<_>>().join("-")
}

fn boxed(body: Bytes) -> UnsyncBoxBody<Bytes, BoxError> {
    Full::new(body)
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

fn whole(status: StatusCode, body: Bytes) -> Answer {
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(boxed(body))
        .unwrap()
}

impl Refusal {
    fn answer(self) -> Option<Answer> {
        let Self::Status(code, reason) = self else {
            return None;
        };
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": format!("refused by the test: {reason}"), "reason": reason, "code": code,
        });
        let status = Bytes::from(status.to_string());
        let mut answer = whole(StatusCode::from_u16(code).unwrap(), status);
        if code == 429 {
            answer
                .headers_mut()
                .insert("retry-after", http::HeaderValue::from_static("1"));
        }
        Some(answer)
    }
}

impl Shared {
    async fn released(&self) {
        let mut released = self.released.subscribe();
        let _ = released.wait_for(|released| *released).await;
    }
}

/// What a pod is called here, where it is one of a run.
fn title(object: &Value) -> Option<String> {
    let annotations = &object["metadata"]["annotations"];
    let node = annotations["apscli.dev/node"].as_str()?;
    let attempt = annotations["apscli.dev/attempt"].as_str()?;
    Some(format!("{node}/{attempt}"))
}

impl Inner {
    /// Gives a pod its title, and what is created the name that stands in it.
    fn rename(&mut self, key: &mut Key, body: &Bytes) {
        if key.verb == "create" {
            let object: Value = serde_json::from_slice(body).unwrap_or_default();
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            name.clone_into(&mut key.name);
            if let Some(title) = title(&object) {
                self.pods.insert(name.to_owned(), title);
            }
        }
        if key.resource == "pods"
            && let Some(title) = self.pods.get(&key.name)
        {
            key.name.clone_from(title);
        } else {
            key.name = unhashed(&key.name);
        }
    }

    fn count(&mut self, method: &Method, key: &Key) {
        if key.verb == "watch" {
            return;
        }
        let count = self.counts.entry(key.clone()).or_default();
        *count += 1;
        let entry = (key.clone(), *count);
        if method.is_safe() {
            self.ledger.reads.push(entry);
        } else {
            self.ledger.writes.push(entry);
        }
    }

    /// What goes wrong with this call.
    fn fault(&mut self, asked: &Key) -> Option<Fault> {
        let mut found = None;
        for (rule, seen) in &mut self.rules {
            if let Rule::Call { key, nth, fault } = rule {
                let fits = key.verb == asked.verb
                    && key.resource == asked.resource
                    && (key.name.is_empty() || key.name == asked.name);
                if fits {
                    *seen += 1;
                    if *seen == *nth {
                        found = Some(*fault);
                        self.ledger.fired += 1;
                    }
                }
            }
        }
        found
    }

    fn take_gone(&mut self, resource: &str) -> bool {
        match self.gone.get_mut(resource) {
            Some(left) if *left > 0 => {
                *left -= 1;
                true
            }
            _ => false,
        }
    }

    /// Makes an object one that nobody can read, where it is to be such; returns whether it is.
    fn garble(&self, resource: &str, object: &mut Value) -> bool {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let told_so = |(of, called): &(String, String)| of == resource && called == name;
        let garbled = self.garbled.iter().any(told_so);
        if garbled {
            object["spec"] = json!("garbled by the test");
        }
        garbled
    }

    fn garble_list(&self, resource: &str, body: Bytes) -> Bytes {
        if !self.garbled.iter().any(|(of, _)| of == resource) {
            return body;
        }
        let mut list: Value = serde_json::from_slice(&body).unwrap_or_default();
        for object in list["items"].as_array_mut().into_iter().flatten() {
            self.garble(resource, object);
        }
        Bytes::from(list.to_string())
    }

    /// The first list with the first event.
    fn remember(&mut self, resource: &str, event: &Value) {
        if self.older.contains_key(resource) || event["type"] == "DELETED" {
            return;
        }
        let Some(first) = self.lists.get(resource) else {
            return;
        };
        let mut list: Value = serde_json::from_slice(first).unwrap_or_default();
        let object = &event["object"];
        list["metadata"]["resourceVersion"] = object["metadata"]["resourceVersion"].clone();
        if let Some(items) = list["items"].as_array_mut() {
            items.retain(|item| item["metadata"]["uid"] != object["metadata"]["uid"]);
            items.push(object.clone());
            let list = Bytes::from(list.to_string());
            self.older.insert(resource.to_owned(), list);
        }
    }

    fn carried_out(&mut self, key: &Key, status: StatusCode, body: &Bytes) {
        if !status.is_success() {
            return;
        }
        if key.verb == "list" {
            let first = self.lists.entry(key.resource.clone());
            first.or_insert_with(|| body.clone());
        }
        if key.verb == "create" && key.resource == "pods" {
            let pod: Value = serde_json::from_slice(body).unwrap_or_default();
            let run = pod["metadata"]["labels"]["apscli.dev/run-uid"].as_str();
            let of = (run.unwrap_or_default().to_owned(), key.name.clone());
            *self.ledger.made.entry(of).or_default() += 1;
        }
    }

    /// What becomes of an event.
    fn event(&mut self, resource: &str, event: &Value) -> Fate {
        let object = &event["object"];
        let plain = object["metadata"]["name"].as_str().unwrap_or_default();
        let name = title(object).unwrap_or_else(|| plain.to_owned());
        let deleted = event["type"] == "DELETED";
        let phase = object["status"]["phase"].as_str();
        let ended = resource == "pods" && matches!(phase, Some("Succeeded" | "Failed"));
        if event["type"] == "BOOKMARK" || event["type"] == "ERROR" {
            return Fate::Told;
        }
        *self.ledger.told.entry(resource.to_owned()).or_default() += 1;
        self.remember(resource, event);
        let mut fate = Fate::Told;
        for (rule, seen) in &mut self.rules {
            let Rule::Event {
                resource: of,
                name: called,
                said,
                nth,
                fault,
            } = rule
            else {
                continue;
            };
            let fits = of == resource
                && (called.is_empty() || *called == name)
                && match said {
                    Said::Anything => true,
                    Said::Ended => ended,
                    Said::Deleted => deleted,
                };
            if !fits {
                continue;
            }
            *seen += 1;
            if *seen != *nth {
                continue;
            }
            let is_told_later = matches!(fault, WatchFault::Stale | WatchFault::Older);
            self.ledger.fired += usize::from(!is_told_later);
            fate = match *fault {
                WatchFault::Freeze(time) => {
                    let until = Instant::now() + time;
                    self.frozen.insert(resource.to_owned(), until);
                    Fate::Told
                }
                WatchFault::GoneInStream => Fate::Gone,
                WatchFault::GoneAsStatus => {
                    self.gone.insert(resource.to_owned(), 1);
                    Fate::Cut
                }
                WatchFault::HalfOpen => Fate::Silence,
                WatchFault::Stale | WatchFault::Older => {
                    let lists = match *fault {
                        WatchFault::Stale => &self.lists,
                        _ => &self.older,
                    };
                    if let Some(list) = lists.get(resource) {
                        self.stale.insert(resource.to_owned(), list.clone());
                    }
                    Fate::Gone
                }
                WatchFault::Swallow => {
                    let object = (resource.to_owned(), name.clone());
                    self.swallowed.push(object);
                    Fate::Told
                }
                WatchFault::SwallowOne => Fate::Dropped,
            };
        }
        let swallowed = self
            .swallowed
            .iter()
            .any(|(of, object)| of == resource && *object == name);
        if swallowed {
            return Fate::Dropped;
        }
        fate
    }
}

/// What becomes of an event of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Told,
    Dropped,
    /// The watch ends without it.
    Cut,
    /// The watch ends without it, with the error that its version is too old.
    Gone,
    /// Neither it nor anything after it is told.
    Silence,
}

/// The body of a watch, event by event.
fn watch(shared: Arc<Shared>, resource: String, mut body: Body) -> UnsyncBoxBody<Bytes, BoxError> {
    let (lines, told) = mpsc::channel::<Bytes>(16);
    tokio::spawn(async move {
        let mut rest: Vec<u8> = Vec::new();
        loop {
            let frame = tokio::select! {
                frame = body.frame() => frame,
                () = lines.closed() => return,
            };
            let Some(Ok(frame)) = frame else { return };
            let Ok(data) = frame.into_data() else { return };
            rest.extend_from_slice(&data);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = rest.drain(..=end).collect();
                let mut event: Value = serde_json::from_slice(&line).unwrap_or_default();
                let (fate, frozen) = {
                    let mut inner = shared.inner.lock().unwrap();
                    if inner.garble(&resource, &mut event["object"]) {
                        line = format!("{event}\n").into_bytes();
                    }
                    let fate = inner.event(&resource, &event);
                    (fate, inner.frozen.get(&resource).copied())
                };
                if let Some(until) = frozen {
                    sleep_until(until).await;
                }
                let line = match fate {
                    Fate::Told => line,
                    Fate::Dropped => continue,
                    Fate::Cut => return,
                    Fate::Gone => {
                        let line = json!({"type": "ERROR", "object": {
                            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                            "message": "too old resource version", "reason": "Expired", "code": 410,
                        }});
                        let _ = lines.send(Bytes::from(format!("{line}\n"))).await;
                        return;
                    }
                    Fate::Silence => {
                        lines.closed().await;
                        return;
                    }
                };
                if lines.send(Bytes::from(line)).await.is_err() {
                    return;
                }
            }
        }
    });
    let frames = futures::stream::unfold(told, |mut told| async move {
        let line = told.recv().await?;
        Some((Ok::<_, BoxError>(Frame::data(line)), told))
    });
    StreamBody::new(frames).boxed_unsync()
}
