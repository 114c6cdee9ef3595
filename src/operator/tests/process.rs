//! Nodes that are processes beside the operator: what is written, what is begun, and never twice.

use std::collections::VecDeque;
use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc::unbounded_channel;

use super::*;
use crate::engine::event::Outcome;
use crate::executor::fence::Limits;
use crate::executor::runner::{PROTOCOL, Piece, Reply, Request, frame, length};
use crate::operator::runner::{Runner, Stream};

/// What a runner was asked for.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) started: Vec<String>,
    killed: Vec<String>,
    over: usize,
    files: Vec<String>,
    /// Those that were not on record as begun when they were to begin.
    unrecorded: Vec<String>,
    connections: usize,
    /// Breaks connections off.
    broken: bool,
}

/// How each attempt ends, or that it does not.
pub(super) type Ends = fn(&str) -> Option<Ending>;

/// Places of the runner, and how long an attempt takes.
const PLACES: usize = 2;
const TAKES: Duration = Duration::from_millis(2);
/// How often it looks around while nothing is asked of it.
const IDLE: Duration = Duration::from_secs(1);

/// A runner that carries nothing out but says so. It breaks off with the operator's process.
fn runner(fake: &Fake, dead: &Arc<AtomicBool>, seen: &Arc<Mutex<Seen>>, ends: Ends) -> Runner {
    let (fake, dead, seen) = (fake.clone(), Arc::clone(dead), Arc::clone(seen));
    Runner::with(move || {
        let (ours, theirs) = tokio::io::duplex(1 << 22);
        let (fake, dead, seen) = (fake.clone(), Arc::clone(&dead), Arc::clone(&seen));
        async move {
            if seen.lock().unwrap().broken {
                return Err(std::io::Error::other("nobody is there"));
            }
            seen.lock().unwrap().connections += 1;
            tokio::spawn(serve(theirs, fake, dead, seen, ends));
            Ok(Stream::new(ours))
        }
    })
}

async fn say(stream: &mut (impl AsyncWriteExt + Unpin), reply: &Reply) {
    let _ = stream.write_all(&frame(reply).unwrap()).await;
}

/// Holds its half of the stream no longer than this.
struct Reading(tokio::task::JoinHandle<()>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn serve(
    stream: DuplexStream,
    fake: Fake,
    dead: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    ends: Ends,
) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (requests, mut requested) = unbounded_channel();
    let reading = tokio::spawn(async move {
        loop {
            let mut head = [0; 4];
            if reader.read_exact(&mut head).await.is_err() {
                return;
            }
            let mut body = vec![0; length(head).unwrap()];
            reader.read_exact(&mut body).await.unwrap();
            let request: Request = serde_json::from_slice(&body).unwrap();
            let _ = requests.send(request);
        }
    });
    let _reading = Reading(reading);
    let hello = Reply::Hello {
        protocol: PROTOCOL,
        slots: PLACES,
        limits: Limits::default(),
    };
    say(&mut writer, &hello).await;
    let mut waiting: VecDeque<Piece> = VecDeque::new();
    let mut running: Vec<Piece> = Vec::new();
    loop {
        let idle = running.is_empty() && waiting.is_empty();
        tokio::select! {
            request = requested.recv() => match request {
                Some(Request::Start { piece, .. }) => {
                    let name = format!("{}/{}", piece.node, piece.attempt);
                    let on_record = recorded(&fake, &piece.node);
                    let mut seen = seen.lock().unwrap();
                    if !on_record {
                        seen.unrecorded.push(name.clone());
                    }
                    seen.started.push(name);
                    waiting.push_back(piece);
                }
                Some(Request::Kill { piece, cause }) => {
                    seen.lock().unwrap().killed.push(piece.node.clone());
                    waiting.retain(|it| *it != piece);
                    running.retain(|it| *it != piece);
                    let outcome = Box::new(Outcome::silent(Ending::Killed(cause)));
                    say(&mut writer, &Reply::Ended { piece, outcome, enforced: None }).await;
                }
                Some(Request::Files { files, .. }) => {
                    let paths = files.into_iter().map(|it| it.path);
                    seen.lock().unwrap().files.extend(paths);
                }
                Some(Request::Over { .. }) => seen.lock().unwrap().over += 1,
                None => return,
            },
            () = sleep(if idle { IDLE } else { TAKES }) => {
                if dead.load(SeqCst) || seen.lock().unwrap().broken {
                    return;
                }
                for piece in std::mem::take(&mut running) {
                    match ends(&piece.node) {
                        Some(ending) => {
                            let outcome = Box::new(Outcome::silent(ending));
                            let enforced = Some("all of it".to_owned());
                            say(&mut writer, &Reply::Ended { piece, outcome, enforced }).await;
                        }
                        None => running.push(piece),
                    }
                }
                while running.len() < PLACES && let Some(piece) = waiting.pop_front() {
                    say(&mut writer, &Reply::Began { piece: piece.clone() }).await;
                    running.push(piece);
                }
            }
        }
    }
}

/// Whether a node stands on record as begun, in the status or in a page.
fn recorded(fake: &Fake, name: &str) -> bool {
    let mut lists = vec![fake.run()["status"]["nodes"].clone()];
    let Some(uid) = fake.run()["metadata"]["uid"].as_str().map(str::to_owned) else {
        // Another run than `r`.
        return true;
    };
    if fake.run()["status"]["counts"]["total"].as_u64() > Some(300) {
        // Looking through all of it each time would take too long.
        return true;
    }
    for page in 0..10 {
        let name = crate::operator::publish::page_name(&uid, page);
        if let Some(page) = fake.get("workflowrunpages", &name) {
            lists.push(page["spec"]["nodes"].clone());
        }
    }
    let entries = lists
        .iter()
        .flat_map(|it| it.as_array().into_iter().flatten());
    entries
        .filter(|it| it["name"] == name)
        .any(|it| it["phase"] == "Running" && it["reason"] != "Queued")
}

fn allowed() -> Options {
    Options {
        processes: Processes {
            network: false,
            namespaces: vec!["default".to_owned()],
            services: vec!["shared.*".to_owned()],
        },
        ..options()
    }
}

/// An operator with such a runner.
pub(super) fn operate_with(fake: &Fake, seen: &Arc<Mutex<Seen>>, ends: Ends) -> Process {
    let (client, dead) = fake.client();
    let runner = runner(fake, &dead, seen, ends);
    tokio::spawn(async move {
        let (health, metrics) = (Health::default(), Arc::default());
        let name = "operator-1".to_owned();
        super::super::work_with(client, allowed(), metrics, &health, name, Some(runner)).await;
    });
    Process(dead)
}

pub(super) async fn begun(ends: Ends) -> (Fake, Arc<Mutex<Seen>>, Process) {
    let (fake, seen) = (Fake::new(), Arc::default());
    let process = operate_with(&fake, &seen, ends);
    passes(1).await;
    fake.calls();
    (fake, seen, process)
}

#[allow(clippy::unnecessary_wraps, reason = "others do not end")]
pub(super) fn all_well(_: &str) -> Option<Ending> {
    Some(Ending::Exited(0))
}

fn never(_: &str) -> Option<Ending> {
    None
}

fn fan(nodes: usize) -> Value {
    let all = (0..nodes).map(|at| (format!("n{at}"), node(&[])));
    json!(all.collect::<serde_json::Map<String, Value>>())
}

fn processes(template: &Value) -> Value {
    run(&json!({"template": template, "executor": "process"}))
}

#[tokio::test(start_paused = true)]
async fn two_hundred_processes_take_a_handful_of_writes() {
    let (fake, seen, _process) = begun(all_well).await;
    fake.put("workflowruns", processes(&fan(200)));
    passes(30).await;
    let calls = fake.calls();
    assert_eq!(phase(&fake), "Succeeded", "{calls:#?}");
    assert_eq!(seen.lock().unwrap().started.len(), 200);
    assert_eq!(seen.lock().unwrap().unrecorded, [""; 0]);
    assert_eq!(seen.lock().unwrap().over, 0, "it had no files");
    let statuses = calls.iter().filter(|it| it.starts_with("status ")).count();
    assert!(statuses <= 8, "{statuses} writes of the status: {calls:#?}");
    assert!(!calls.iter().any(|it| it.contains(" pod ")), "{calls:#?}");
    silence(&fake).await;
}

#[tokio::test(start_paused = true)]
async fn a_thousand_in_layers_take_a_few_writes_a_layer() {
    let (fake, seen, _process) = begun(all_well).await;
    fake.put("workflowruns", processes(&layers()));
    passes(60).await;
    let calls = fake.calls();
    assert_eq!(phase(&fake), "Succeeded");
    let mut started = seen.lock().unwrap().started.clone();
    started.sort();
    started.dedup();
    assert_eq!(started.len(), 1000);
    let statuses = calls.iter().filter(|it| it.starts_with("status ")).count();
    assert!(statuses <= 60, "{statuses} writes of the status");
}

#[tokio::test(start_paused = true)]
async fn a_process_says_what_it_is() {
    let (fake, seen, _process) = begun(all_well).await;
    let mut template = json!({"a": node(&[]), "b": node(&["a"])});
    template["b"]["action"]["executor"] = json!("pod");
    fake.put("workflowruns", processes(&template));
    passes(1).await;
    let a = entry(&fake, "a");
    assert_eq!(
        (&a["executor"], &a["sandbox"]),
        (&json!("process"), &json!("all of it"))
    );
    assert_eq!(a["pod"], Value::Null);
    assert_eq!(a["phase"], "Succeeded");
    fake.pod_ends("b/1", ok());
    passes(1).await;
    assert_eq!(entry(&fake, "b")["executor"], "pod");
    assert_eq!(phase(&fake), "Succeeded");
    assert_eq!(seen.lock().unwrap().started, ["a/1"]);
}

#[tokio::test(start_paused = true)]
async fn what_ran_is_lost_with_the_operator_and_what_waited_is_not() {
    for retry in [false, true] {
        let (fake, seen, process) = begun(never).await;
        let spec = json!({"template": fan(100), "executor": "process", "onLost": if retry { "Retry" } else { "Fail" }});
        fake.put("workflowruns", run(&spec));
        passes(5).await;
        assert_eq!(seen.lock().unwrap().started.len(), 64);
        assert_eq!(entry(&fake, "n99")["reason"], "Queued");
        process.dies();
        passes(1).await;
        let later = Arc::default();
        operate_with(&fake, &later, all_well);
        passes(30).await;
        let before = seen.lock().unwrap().started.clone();
        let after = later.lock().unwrap().started.clone();
        assert_eq!(
            phases(&fake)
                .iter()
                .filter(|it| it.ends_with("Error Lost"))
                .count(),
            if retry { 0 } else { 64 }
        );
        assert_eq!(after.len(), if retry { 100 } else { 36 });
        assert!(
            after.iter().all(|it| !before.contains(it)),
            "begun twice: {after:?}"
        );
        assert_eq!(later.lock().unwrap().unrecorded, [""; 0]);
        assert_eq!(phase(&fake), if retry { "Succeeded" } else { "Failed" });
    }
}

/// After each write of the operator it ends, and another goes on: no attempt is begun twice.
#[tokio::test(start_paused = true)]
async fn no_attempt_is_begun_twice_whenever_the_operator_ends() {
    for after in 0.. {
        let fake = Fake::new();
        let (first, second) = (Arc::default(), Arc::default());
        operate_with(&fake, &first, all_well);
        passes(1).await;
        fake.dies_after(Some(after));
        let spec = json!({"template": diamond(), "executor": "process", "onLost": "Retry"});
        fake.put("workflowruns", run(&spec));
        let died = tokio::time::timeout(Duration::from_secs(60), fake.died()).await;
        if died.is_err() {
            assert!(after >= 4, "only {after} writes");
            break;
        }
        passes(1).await;
        operate_with(&fake, &second, all_well);
        passes(60).await;
        assert_eq!(phase(&fake), "Succeeded", "after {after} writes");
        let mut all = first.lock().unwrap().started.clone();
        all.extend(second.lock().unwrap().started.clone());
        let begun = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), begun, "after {after} writes: {all:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_runner_that_goes_takes_its_nodes_along_and_comes_back() {
    let (fake, seen, _process) = begun(never).await;
    fake.put("workflowruns", processes(&fan(1)));
    passes(1).await;
    assert_eq!(seen.lock().unwrap().started, ["n0/1"]);
    seen.lock().unwrap().broken = true;
    passes(1).await;
    assert_eq!(phases(&fake), ["n0 Error Lost"]);
    let message = entry(&fake, "n0")["message"].as_str().unwrap().to_owned();
    assert!(
        message.starts_with("the runner that carried it out is gone: "),
        "{message}"
    );
    let again = json!({"apiVersion": "apscli.dev/v1alpha1", "kind": "WorkflowRun",
        "metadata": {"name": "again"}, "spec": {"template": fan(1), "executor": "process"}});
    fake.put("workflowruns", again);
    passes(1).await;
    let waits = fake.get("workflowruns", "again").unwrap()["status"]["nodes"][0].clone();
    assert_eq!(
        (&waits["phase"], &waits["reason"]),
        (&json!("Running"), &json!("Waiting"))
    );
    seen.lock().unwrap().broken = false;
    passes(10).await;
    assert_eq!(seen.lock().unwrap().started, ["n0/1", "n0/1"]);
    assert_eq!(seen.lock().unwrap().connections, 2);
}

/// The others keep the connection, and what they do over it.
#[tokio::test(start_paused = true)]
async fn what_is_too_large_to_be_asked_for_is_not_started() {
    let (fake, seen, _process) = begun(never).await;
    fake.put("workflowruns", processes(&fan(1)));
    passes(1).await;
    let long = json!({"a": {"action": {"type": "cmd", "cmd": ["true", "x".repeat(9 << 20)]}}});
    let large = json!({"apiVersion": "apscli.dev/v1alpha1", "kind": "WorkflowRun",
        "metadata": {"name": "large"}, "spec": {"template": long, "executor": "process"}});
    fake.put("workflowruns", large);
    passes(5).await;
    let status = fake.get("workflowruns", "large").unwrap()["status"].clone();
    assert_eq!(
        (&status["phase"], &status["nodes"][0]["message"]),
        (
            &json!("Failed"),
            &json!("what it is to do takes more than 8 MiB, parameters included")
        ),
        "{status:#}"
    );
    assert_eq!(phases(&fake), ["n0 Running"]);
    let seen = seen.lock().unwrap();
    assert_eq!((seen.connections, seen.started.len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_cancel_ends_what_runs_and_what_waits() {
    let (fake, seen, _process) = begun(never).await;
    fake.put("workflowruns", processes(&fan(80)));
    passes(2).await;
    fake.merge("workflowruns", "r", &json!({"spec": {"cancel": true}}));
    passes(5).await;
    assert_eq!(phase(&fake), "Cancelled");
    assert_eq!(seen.lock().unwrap().killed.len(), 64);
    assert!(
        phases(&fake)
            .iter()
            .all(|it| it.ends_with("Cancelled Cancelled"))
    );
}

#[tokio::test(start_paused = true)]
async fn nobody_may_who_was_not_named() {
    let action = json!({"type": "cmd", "cmd": "true", "executor": "process"});
    let of_a_node = run_of(&json!({"a": {"action": action}, "b": node(&[])}));
    for run in [processes(&fan(1)), of_a_node] {
        let fake = started().await;
        fake.put("workflowruns", run);
        passes(1).await;
        assert_eq!(phase(&fake), "Error");
        assert_eq!(
            fake.run()["status"]["conditions"][0]["reason"],
            "ProcessNotAllowed"
        );
        let said = message(&fake);
        let why = "executor: `process` is not allowed here; expected `pod` (the cluster's \
                   administrator can allow it for namespace default: --process-namespace, or for a \
                   service of namespace shared: --process-service)";
        assert!(said.ends_with(why), "{said}");
        assert_eq!(fake.created().len(), 0);
    }
}

/// A service that a namespace makes under an allowed name is still that namespace's.
#[tokio::test(start_paused = true)]
async fn an_allowed_service_is_the_shared_one() {
    for (home, expected) in [("shared", "Succeeded"), ("m", "Error")] {
        let (fake, seen, _process) = begun(all_well).await;
        let service = json!({"apiVersion": "apscli.dev/v1alpha1", "kind": "Service",
            "metadata": {"name": "s"},
            "spec": {"fqsn": "shared.s", "executor": "process", "versions": [{"version": "1", "template": fan(1)}]}});
        fake.put_in(home, "services", service);
        passes(1).await;
        let run = json!({"apiVersion": "apscli.dev/v1alpha1", "kind": "WorkflowRun",
            "metadata": {"name": "r"}, "spec": {"fqsn": "shared.s"}});
        fake.put_in("m", "workflowruns", run);
        passes(5).await;
        let run = fake.get_in("m", "workflowruns", "r").unwrap();
        assert_eq!(run["status"]["phase"], expected, "{run:#}");
        assert_eq!(
            seen.lock().unwrap().started.len(),
            usize::from(home == "shared")
        );
    }
}

/// Of a copy that an operator up to 0.1.0 made, only half of the hash is in its name: nobody has proven
/// that its content is what was copied from the shared namespace.
#[tokio::test(start_paused = true)]
async fn half_a_hash_proves_no_shared_service() {
    for (namespace, refused) in [("m", true), ("default", false)] {
        let (fake, seen, process) = begun(never).await;
        let service = json!({"apiVersion": "apscli.dev/v1alpha1", "kind": "Service",
            "metadata": {"name": "s"},
            "spec": {"fqsn": "shared.s", "executor": "process", "versions": [{"version": "1", "template": fan(1)}]}});
        fake.put_in("shared", "services", service);
        passes(1).await;
        let run = json!({"apiVersion": "apscli.dev/v1alpha1", "kind": "WorkflowRun",
            "metadata": {"name": "r"}, "spec": {"fqsn": "shared.s", "onLost": "Retry"}});
        fake.put_in(namespace, "workflowruns", run);
        passes(5).await;
        assert_eq!(seen.lock().unwrap().started.len(), 1);
        process.dies();
        let run = fake.get_in(namespace, "workflowruns", "r").unwrap();
        let name = run["status"]["resolved"]["snapshot"][0].as_str().unwrap();
        let hash = name
            .strip_prefix("apscli-service-")
            .unwrap()
            .strip_suffix("-0")
            .unwrap();
        assert_eq!(hash.len(), 64);
        let objects = fake.objects().to_string().replace(hash, &hash[..32]);
        let fake = Fake::new();
        fake.load(&serde_json::from_str(&objects).unwrap());
        let seen = Arc::default();
        let _process = operate_with(&fake, &seen, all_well);
        passes(60).await;
        let run = fake.get_in(namespace, "workflowruns", "r").unwrap();
        let status = &run["status"];
        if refused {
            assert_eq!(status["phase"], "Error", "{status:#}");
            let said = status["message"].as_str().unwrap();
            assert!(said.contains("half of a hash"), "{said}");
        } else {
            assert_eq!(status["phase"], "Succeeded", "{status:#}");
        }
        assert_eq!(seen.lock().unwrap().started.len(), usize::from(!refused));
    }
}

#[tokio::test(start_paused = true)]
async fn a_secret_is_for_pods() {
    let (fake, seen, _process) = begun(all_well).await;
    let mut template = fan(2);
    template["n0"]["param"] = json!({"password": "$password"});
    let secret = json!([{"secret": {"name": "s", "key": "k", "param": "password"}}]);
    let spec = json!({"template": template, "executor": "process", "paramsFrom": secret});
    fake.put("workflowruns", run(&spec));
    passes(1).await;
    assert_eq!(phase(&fake), "Error");
    assert!(message(&fake).starts_with("node n0: the parameter `password` comes from a Secret"));
    assert!(seen.lock().unwrap().started.is_empty());
}

/// A runner that ends because it is broken: `onLost` decides, and the next one is asked again.
#[tokio::test(start_paused = true)]
async fn broken_runner_with_retry_starts_again() {
    let (fake, seen, _process) = begun(never).await;
    let spec = json!({"template": fan(2), "executor": "process", "onLost": "Retry"});
    fake.put("workflowruns", run(&spec));
    passes(1).await;
    seen.lock().unwrap().broken = true;
    passes(2).await;
    seen.lock().unwrap().broken = false;
    passes(10).await;
    let mut started = seen.lock().unwrap().started.clone();
    started.sort();
    assert_eq!(started, ["n0/1", "n0/2", "n1/1", "n1/2"]);
    assert_eq!(seen.lock().unwrap().connections, 2);
}

#[allow(
    clippy::unnecessary_wraps,
    reason = "as all endings of a fake runner are given"
)]
fn lost(_: &str) -> Option<Ending> {
    Some(Ending::Lost("the runner could not start it".to_owned()))
}

/// What the runner could not start is lost and not failed for good, and it is given the files again,
/// as it may be these that it could not keep.
#[tokio::test(start_paused = true)]
async fn lost_start_is_retried_with_its_files() {
    let (fake, seen, _process) = begun(lost).await;
    let scripts = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "scripts"}, "data": {"a.sh": "#!/bin/sh\n"}});
    fake.put("configmaps", scripts);
    let service = json!({"apiVersion": "apscli.dev/v1alpha1", "kind": "Service",
        "metadata": {"name": "s"}, "spec": {"fqsn": "own.s", "executor": "process",
            "versions": [{"version": "1", "template": fan(1)}],
            "scripts": [{"configMap": "scripts"}]}});
    fake.put("services", service);
    passes(1).await;
    fake.put(
        "workflowruns",
        run(&json!({"fqsn": "own.s", "onLost": "Retry"})),
    );
    passes(10).await;
    assert_eq!(phases(&fake), ["n0 Error Lost"]);
    let seen = seen.lock().unwrap();
    assert_eq!(seen.started, ["n0/1", "n0/2", "n0/3"]);
    assert_eq!(seen.files, ["a.sh", "a.sh", "a.sh"]);
    assert_eq!(seen.connections, 1);
}

#[tokio::test(start_paused = true)]
async fn network_needs_the_administrator() {
    let (fake, seen, _process) = begun(all_well).await;
    let service = json!({"apiVersion": "apscli.dev/v1alpha1", "kind": "Service",
        "metadata": {"name": "s"}, "spec": {"fqsn": "own.s", "executor": "process",
            "network": true, "versions": [{"version": "1", "template": fan(1)}]}});
    fake.put("services", service);
    passes(1).await;
    fake.put("workflowruns", run(&json!({"fqsn": "own.s"})));
    passes(2).await;
    assert_eq!(phase(&fake), "Error");
    let reason = &fake.run()["status"]["conditions"][0]["reason"];
    assert_eq!(reason, "NetworkNotAllowed");
    assert!(
        message(&fake).contains("--process-network"),
        "{}",
        message(&fake)
    );
    assert!(seen.lock().unwrap().started.is_empty());
}
