//! Conversations of the operator with an API server, word for word. Each ends with the proof that
//! nothing more is said.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::items_after_statements,
    clippy::default_trait_access,
    clippy::map_unwrap_or,
    clippy::needless_pass_by_value,
    reason = "tests"
)]

mod cost;
mod edges;
mod fake;
mod faults;
mod golden;
mod holes;
mod hostile;
mod memory;
mod process;
mod raw;
mod record;
mod restart;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use super::health::Health;
use super::metrics::Metrics;
use super::options::{Options, Processes, Scope, Shard};
use crate::catalog::cluster::LabelledMaps;
use crate::engine::event::Ending;
use fake::Fake;

fn options() -> Options {
    Options {
        scope: Scope::Cluster,
        shared_namespace: "shared".to_owned(),
        catalog_config_maps: LabelledMaps::All,
        election: None,
        shard: Shard::WHOLE,
        node_image: "nodes".to_owned(),
        tools_image: "tools".to_owned(),
        delivery: None,
        service_accounts: Vec::new(),
        default_ttl: None,
        max_writes: NonZeroUsize::new(64).unwrap(),
        processes: Processes::default(),
        runner: None,
        resync: Duration::from_secs(900),
        cache: 192 * 1024 * 1024,
    }
}

/// A process of the operator.
struct Process(Arc<AtomicBool>);

impl Process {
    /// Ends it at once: nothing that it has in memory or in flight gets anywhere.
    fn dies(self) {
        self.0.store(true, SeqCst);
    }
}

/// Starts a process of the operator.
fn operate(fake: &Fake, options: Options) -> Process {
    operate_counted(fake, options, &Arc::default())
}

fn operate_counted(fake: &Fake, options: Options, metrics: &Arc<Metrics>) -> Process {
    let (client, dead) = fake.client();
    operate_by(client, options, metrics);
    Process(dead)
}

fn operate_by(client: kube::Client, options: Options, metrics: &Arc<Metrics>) {
    let metrics = Arc::clone(metrics);
    tokio::spawn(async move {
        let health = Health::default();
        super::work(client, options, metrics, &health, "operator-1".to_owned()).await;
    });
}

/// A server with an operator that has looked around.
async fn started() -> Fake {
    let fake = Fake::new();
    operate(&fake, options());
    passes(1).await;
    fake.calls();
    fake
}

/// Lets so many seconds pass.
async fn passes(seconds: u64) {
    sleep(Duration::from_secs(seconds)).await;
}

/// Lets everything that is going on come to rest, without letting much time pass.
async fn rest() {
    sleep(Duration::from_millis(5)).await;
}

/// Nothing more is said, however long one listens.
async fn silence(fake: &Fake) {
    assert_eq!(fake.calls(), [""; 0]);
    passes(600).await;
    assert_eq!(fake.calls(), [""; 0], "after a long time");
}

fn node(prev: &[&str]) -> Value {
    json!({"prev_nodes": prev, "action": {"type": "cmd", "cmd": "true"}})
}

fn diamond() -> Value {
    json!({"a": node(&[]), "b": node(&["a"]), "c": node(&["a"]), "d": node(&["b", "c"])})
}

/// 20 layers of 50, each node with three predecessors in the layer before.
fn layers() -> Value {
    let mut template = serde_json::Map::new();
    for layer in 0..20 {
        for at in 0..50_usize {
            let prev: Vec<String> = match layer {
                0 => Vec::new(),
                _ => (0..3)
                    .map(|it| format!("n{}x{}", layer - 1, (at + it) % 50))
                    .collect(),
            };
            let prev: Vec<&str> = prev.iter().map(String::as_str).collect();
            template.insert(format!("n{layer}x{at}"), node(&prev));
        }
    }
    Value::Object(template)
}

/// The run `r` with these members in its spec.
fn run(spec: &Value) -> Value {
    json!({"apiVersion": "apscli.dev/v1alpha1", "kind": "WorkflowRun",
           "metadata": {"name": "r"}, "spec": spec})
}

fn run_of(template: &Value) -> Value {
    run(&json!({"template": template}))
}

fn ok() -> Ending {
    Ending::Exited(0)
}

fn well(_: &str) -> Ending {
    Ending::Exited(0)
}

/// A node's entry in the status of the run `r`.
fn entry(fake: &Fake, name: &str) -> Value {
    let run = fake.run();
    let nodes = run["status"]["nodes"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    nodes
        .into_iter()
        .find(|it| it["name"] == name)
        .unwrap_or_default()
}

/// The phases of a run's nodes, in template order.
fn phases(fake: &Fake) -> Vec<String> {
    let run = fake.run();
    let nodes = run["status"]["nodes"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let shown = |it: &Value| {
        let reason = it["reason"]
            .as_str()
            .map_or_else(String::new, |word| format!(" {word}"));
        format!(
            "{} {}{reason}",
            it["name"].as_str().unwrap(),
            it["phase"].as_str().unwrap()
        )
    };
    nodes.iter().map(shown).collect()
}

fn phase(fake: &Fake) -> String {
    fake.run()["status"]["phase"]
        .as_str()
        .unwrap_or("-")
        .to_owned()
}

fn message(fake: &Fake) -> String {
    fake.run()["status"]["message"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[tokio::test(start_paused = true)]
async fn a_start_lists_everything_once_and_then_is_silent() {
    let fake = Fake::new();
    operate(&fake, options());
    rest().await;
    let mut calls = fake.calls();
    calls.sort();
    assert_eq!(
        calls,
        [
            "list configmaps",
            "list pods",
            "list services",
            "list workflowruns"
        ]
    );
    silence(&fake).await;
}

#[tokio::test(start_paused = true)]
async fn a_diamond_word_for_word() {
    let fake = Fake::new();
    let metrics = Arc::new(Metrics::default());
    operate_counted(&fake, options(), &metrics);
    passes(1).await;
    fake.calls();
    fake.put("workflowruns", run_of(&diamond()));
    rest().await;
    assert_eq!(fake.calls(), ["create pod a/1"]);
    passes(1).await;
    assert_eq!(fake.calls(), ["status Running 0/4"]);
    fake.pod_runs("a/1");
    rest().await;
    fake.pod_ends("a/1", ok());
    rest().await;
    assert_eq!(
        fake.calls(),
        ["create pod b/1", "create pod c/1", "status Running 1/4"]
    );
    // With what their creates were answered.
    passes(1).await;
    assert_eq!(fake.calls(), ["status Running 1/4"]);
    fake.pod_ends("c/1", ok());
    fake.pod_ends("b/1", ok());
    rest().await;
    assert_eq!(fake.calls(), ["create pod d/1", "status Running 3/4"]);
    fake.pod_runs("d/1");
    fake.pod_ends("d/1", ok());
    rest().await;
    assert_eq!(fake.calls(), ["status Succeeded 4/4", "event Succeeded"]);
    silence(&fake).await;

    let status = fake.run()["status"].clone();
    assert_eq!(status["returnCode"], 1);
    assert_eq!(status["observedGeneration"], 1);
    assert_eq!(status["message"], Value::Null);
    assert_eq!(status["conditions"].as_array().unwrap().len(), 1);
    assert_eq!(status["conditions"][0]["type"], "Complete");
    assert_eq!(
        phases(&fake),
        ["a Succeeded", "b Succeeded", "c Succeeded", "d Succeeded"]
    );
    let pod = fake.pod("a/1").unwrap();
    assert_eq!(
        entry(&fake, "a")["pod"],
        json!({"name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]})
    );
    let text = metrics.text();
    let turns = text.lines().find_map(|it| {
        it.strip_prefix("apscli_reconcile_seconds_count{resource=\"workflowruns\"} ")
    });
    let turns: u32 = turns.unwrap().parse().unwrap();
    assert!(turns < 30, "{turns} turns");
}

#[tokio::test(start_paused = true)]
async fn a_quick_diamond_takes_three_writes_a_node_at_most() {
    let fake = started().await;
    fake.kubelet(well);
    fake.put("workflowruns", run_of(&diamond()));
    passes(10).await;
    assert_eq!(phase(&fake), "Succeeded");
    let calls = fake.calls();
    assert!(calls.len() <= 3 * 4, "{calls:#?}");
    silence(&fake).await;
}

#[tokio::test(start_paused = true)]
async fn a_large_run_takes_little_more_than_one_write_a_node() {
    let fake = started().await;
    fake.kubelet(well);
    fake.put("workflowruns", run_of(&layers()));
    passes(60).await;
    assert_eq!(phase(&fake), "Succeeded");
    assert_eq!(fake.run()["status"]["progress"], "1000/1000");
    let calls = fake.calls();
    let others: Vec<&String> = calls
        .iter()
        .filter(|it| !it.starts_with("create pod"))
        .collect();
    assert!(calls.len() <= 1300, "{} calls; {others:#?}", calls.len());
    assert!(fake.created().values().all(|times| *times == 1));
    silence(&fake).await;
}

#[tokio::test(start_paused = true)]
async fn what_fails_ends_the_run_and_says_why() {
    let fake = started().await;
    fake.put(
        "workflowruns",
        run_of(&json!({"a": node(&[]), "b": node(&["a"])})),
    );
    rest().await;
    fake.pod_ends("a/1", Ending::Exited(3));
    rest().await;
    fake.calls();
    silence(&fake).await;
    assert_eq!(phase(&fake), "Failed");
    assert_eq!(message(&fake), "a: exit code 3");
    assert_eq!(
        phases(&fake),
        ["a Failed ExitCode", "b Skipped ConditionFalse"]
    );
    assert_eq!(
        entry(&fake, "b")["message"],
        "needs 1 of all its prev_nodes, but a=0"
    );
    assert_eq!(
        fake.run()["status"]["conditions"][0]["reason"],
        "NodesFailed"
    );
}

#[tokio::test(start_paused = true)]
async fn parallelism_holds_and_may_be_raised() {
    let fake = started().await;
    let template = json!({"a": node(&[]), "b": node(&[]), "c": node(&[])});
    fake.put(
        "workflowruns",
        run(&json!({"template": template, "parallelism": 1})),
    );
    passes(1).await;
    assert_eq!(fake.created().len(), 1);
    fake.merge("workflowruns", "r", &json!({"spec": {"parallelism": 2}}));
    passes(1).await;
    assert_eq!(fake.created().len(), 2);
    for attempt in ["a/1", "b/1"] {
        fake.pod_ends(attempt, ok());
    }
    passes(1).await;
    fake.pod_ends("c/1", ok());
    passes(1).await;
    fake.calls();
    silence(&fake).await;
    assert_eq!(phase(&fake), "Succeeded");
    assert_eq!(fake.run()["status"]["observedGeneration"], 2);
}

#[tokio::test(start_paused = true)]
async fn a_suspended_run_starts_nothing_until_it_is_resumed() {
    let fake = started().await;
    fake.put(
        "workflowruns",
        run_of(&json!({"a": node(&[]), "b": node(&["a"])})),
    );
    rest().await;
    fake.calls();
    fake.merge("workflowruns", "r", &json!({"spec": {"suspend": true}}));
    passes(1).await;
    assert_eq!(fake.calls(), ["status Suspended 0/2", "event Suspended"]);
    fake.pod_ends("a/1", ok());
    passes(1).await;
    assert_eq!(fake.calls(), ["status Suspended 1/2"]);
    silence(&fake).await;
    assert_eq!(message(&fake), "suspended");
    fake.merge("workflowruns", "r", &json!({"spec": {"suspend": false}}));
    rest().await;
    assert_eq!(
        fake.calls(),
        ["create pod b/1", "status Running 1/2", "event Running"]
    );
    fake.pod_ends("b/1", ok());
    passes(1).await;
    assert_eq!(phase(&fake), "Succeeded");
    fake.calls();
    silence(&fake).await;
}

#[tokio::test(start_paused = true)]
async fn a_cancel_deletes_what_runs_with_its_grace() {
    let fake = started().await;
    fake.put(
        "workflowruns",
        run_of(&json!({"a": node(&[]), "b": node(&["a"])})),
    );
    rest().await;
    fake.pod_runs("a/1");
    passes(1).await;
    fake.calls();
    fake.merge("workflowruns", "r", &json!({"spec": {"cancel": true}}));
    rest().await;
    assert_eq!(fake.calls(), ["delete pod a/1", "status Running 1/2"]);
    assert_eq!(message(&fake), "is being cancelled; running a");
    passes(3).await;
    assert_eq!(fake.calls(), [""; 0]);
    fake.pod_stopped("a/1");
    rest().await;
    assert_eq!(
        fake.calls(),
        ["status Cancelled 2/2", "event Cancelled", "strip pod a/1"]
    );
    silence(&fake).await;
    assert_eq!(fake.count("pods"), 0);
    assert_eq!(
        phases(&fake),
        ["a Cancelled Cancelled", "b Skipped Cancelled"]
    );
    assert_eq!(fake.run()["status"]["cancelCause"], "Asked");
}

#[tokio::test(start_paused = true)]
async fn a_run_over_its_timeout_is_ended() {
    let fake = started().await;
    fake.kubelet(well);
    let template = json!({"a": node(&[]), "b": node(&["a"])});
    fake.put(
        "workflowruns",
        run(&json!({"template": template, "timeout": "30s", "suspend": true})),
    );
    passes(29).await;
    assert_eq!(phase(&fake), "Suspended");
    passes(2).await;
    assert_eq!(phase(&fake), "Failed");
    assert_eq!(message(&fake), "took longer than its timeout");
    assert_eq!(fake.run()["status"]["conditions"][0]["reason"], "Timeout");
    fake.calls();
    silence(&fake).await;
}

#[tokio::test(start_paused = true)]
async fn pods_that_are_not_wanted_go_once_the_result_is_on_record() {
    for (retention, left) in [("Always", 2), ("OnFailure", 1), ("Never", 0)] {
        let fake = started().await;
        fn ending(attempt: &str) -> Ending {
            Ending::Exited(i32::from(attempt == "b/1"))
        }
        fake.kubelet(ending);
        let template = json!({"a": node(&[]), "b": node(&[])});
        fake.put(
            "workflowruns",
            run(&json!({"template": template, "podRetention": retention})),
        );
        passes(5).await;
        assert_eq!(phase(&fake), "Failed");
        assert_eq!(fake.count("pods"), left, "{retention}");
        let calls = fake.calls();
        let last_status = calls
            .iter()
            .rposition(|it| it.starts_with("status"))
            .unwrap();
        let first_delete = calls.iter().position(|it| it.starts_with("delete"));
        assert!(first_delete.is_none_or(|it| it > last_status), "{calls:#?}");
        silence(&fake).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_past_its_time_to_live_is_deleted() {
    let fake = started().await;
    fake.kubelet(well);
    let template = json!({"a": node(&[])});
    fake.put(
        "workflowruns",
        run(&json!({"template": template, "ttlSecondsAfterFinished": 100})),
    );
    passes(90).await;
    assert_eq!(phase(&fake), "Succeeded");
    fake.calls();
    passes(20).await;
    assert_eq!(fake.calls(), ["delete workflowruns r"]);
    fake.collect_garbage();
    passes(1).await;
    assert_eq!(fake.count("pods"), 0);
    fake.calls();
    silence(&fake).await;
}

#[tokio::test(start_paused = true)]
async fn a_deletion_that_fails_is_tried_again() {
    let fake = started().await;
    fake.kubelet(well);
    fake.rule(
        "delete workflowruns",
        2,
        fake::Act::Refuse(500, "InternalError", "no"),
    );
    let template = json!({"a": node(&[])});
    fake.put(
        "workflowruns",
        run(&json!({"template": template, "ttlSecondsAfterFinished": 1})),
    );
    passes(120).await;
    assert_eq!(fake.count("workflowruns"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_run_with_101_nodes_has_two_pages() {
    let fake = started().await;
    fake.kubelet(well);
    let nodes: serde_json::Map<String, Value> = (0..101)
        .map(|it| (format!("n{it:03}"), node(&[])))
        .collect();
    fake.put("workflowruns", run_of(&Value::Object(nodes)));
    passes(10).await;
    let status = fake.run()["status"].clone();
    assert_eq!(status["phase"], "Succeeded");
    assert_eq!(status["pages"], 2);
    assert_eq!(status["nodes"], Value::Null);
    assert_eq!(fake.count("workflowrunpages"), 2);
    let calls = fake.calls();
    let pages: Vec<&str> = calls
        .iter()
        .map(String::as_str)
        .filter(|it| it.contains("page"))
        .collect();
    assert_eq!(pages, ["create page 0", "create page 1"]);
    silence(&fake).await;
}

#[tokio::test(start_paused = true)]
async fn a_page_that_somebody_deleted_is_made_again() {
    let fake = started().await;
    let nodes: serde_json::Map<String, Value> = (0..101)
        .map(|it| (format!("n{it:03}"), node(&[])))
        .collect();
    fake.put("workflowruns", run_of(&Value::Object(nodes)));
    passes(3).await;
    let page =
        crate::operator::publish::page_name(fake.run()["metadata"]["uid"].as_str().unwrap(), 0);
    fake.delete("workflowrunpages", &page);
    for index in 0..101 {
        fake.pod_ends(&format!("n{index:03}/1"), ok());
    }
    passes(60).await;
    assert_eq!(phase(&fake), "Succeeded");
    assert_eq!(fake.count("workflowrunpages"), 2);
}
