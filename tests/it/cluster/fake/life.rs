//! What a run's author may ask for, and `kubectl wait`, on a real API server. Everything goes on at
//! once, in one namespace: waiting is what most of it does.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::kubectl::{Cluster, run};
use super::operator::Operator;

/// How long anything may take on a busy machine, in seconds.
const PATIENCE: u32 = 120;

fn node(prev: &[&str]) -> Value {
    json!({"prev_nodes": prev, "action": {"type": "cmd", "cmd": "true"}})
}

/// A run whose pods are scripted by these annotations.
fn scripted(name: &str, template: Value, script: &[(&str, &str)], more: &Value) -> Value {
    let annotations: serde_json::Map<String, Value> = script
        .iter()
        .map(|(what, value)| (format!("fake.apscli.dev/{what}"), json!(value)))
        .collect();
    let mut spec = json!({"template": template, "pod": {"annotations": annotations}});
    for (field, value) in more.as_object().unwrap() {
        spec[field] = value.clone();
    }
    run(name, &spec)
}

fn pods(cluster: &Cluster, run: &str) -> usize {
    let of_run = format!("--selector=apscli.dev/run={run}");
    let pods = cluster.get(&["pods", &of_run]);
    pods["items"].as_array().unwrap().len()
}

fn status(cluster: &Cluster, run: &str) -> Value {
    cluster.run(run)["status"].clone()
}

/// Phase and reason of each node.
fn nodes(cluster: &Cluster, run: &str) -> Vec<String> {
    let status = status(cluster, run);
    let shown = |node: &Value| {
        let text = |field: &str| node[field].as_str().unwrap_or_default().to_owned();
        let words = format!("{} {} {}", text("name"), text("phase"), text("reason"));
        words.trim_end().to_owned()
    };
    let nodes = status["nodes"].as_array().unwrap();
    nodes.iter().map(shown).collect()
}

/// Waits for what kubectl has no words for.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        let patience = Duration::from_secs(PATIENCE.into());
        assert!(begun.elapsed() < patience, "it never came: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

const FOREVER: &[(&str, &str)] = &[("seconds", "forever")];

#[test]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
fn everything_an_author_may_ask_for() {
    let cluster = Cluster::new("life");
    let operator = Operator::of(&cluster).ready();
    let two = || json!({"a": node(&[]), "b": node(&["a"])});
    let three = || json!({"a": node(&[]), "b": node(&[]), "c": node(&[])});
    for object in [
        scripted("good", two(), &[], &json!({})),
        scripted("bad", two(), &[("exit-code.a", "3")], &json!({})),
        scripted("held", two(), &[], &json!({"suspend": true})),
        scripted("stopped", two(), FOREVER, &json!({})),
        scripted("late", two(), FOREVER, &json!({"timeout": "2s"})),
        scripted(
            "slow",
            json!({"a": {"timeout": "1s", "action": {"type": "cmd", "cmd": "true"}}}),
            FOREVER,
            &json!({}),
        ),
        scripted("gone", two(), &[], &json!({"ttlSecondsAfterFinished": 1})),
        scripted("tidy", two(), &[], &json!({"podRetention": "Never"})),
        scripted(
            "tidier",
            json!({"a": node(&[]), "b": node(&[])}),
            &[("exit-code.b", "1")],
            &json!({"podRetention": "OnFailure"}),
        ),
        scripted("narrow", three(), FOREVER, &json!({"parallelism": 1})),
    ] {
        cluster.create(&object);
    }

    cluster.wait("wfr/good", "condition=Complete", PATIENCE);
    let table = cluster.kubectl(&["get", "wfr", "good"], "").ok();
    let row: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[..3], ["good", "Succeeded", "2/2"], "{table}");
    assert_eq!(pods(&cluster, "good"), 2);

    cluster.wait("wfr/bad", "condition=Failed", PATIENCE);
    let of_bad = status(&cluster, "bad");
    assert_eq!(of_bad["phase"], "Failed");
    assert_eq!(of_bad["conditions"][0]["reason"], "NodesFailed");

    cluster.wait("wfr/held", "jsonpath={.status.phase}=Suspended", PATIENCE);
    assert_eq!(pods(&cluster, "held"), 0);
    cluster.apscli(&["resume", "held"]).ok();
    cluster.wait("wfr/held", "condition=Complete", PATIENCE);

    until("a pod of `stopped`", || pods(&cluster, "stopped") == 1);
    cluster.merge("wfr/stopped", &json!({"spec": {"cancel": true}}));
    cluster.wait("wfr/stopped", "condition=Failed", PATIENCE);
    let of_stopped = status(&cluster, "stopped");
    assert_eq!(of_stopped["phase"], "Cancelled");
    assert_eq!(of_stopped["cancelCause"], "Asked");
    assert_eq!(
        nodes(&cluster, "stopped"),
        ["a Cancelled Cancelled", "b Skipped Cancelled"]
    );
    until("no pod of `stopped`", || pods(&cluster, "stopped") == 0);

    cluster.wait("wfr/late", "condition=Failed", PATIENCE);
    let of_late = status(&cluster, "late");
    assert_eq!(of_late["phase"], "Failed");
    assert_eq!(of_late["conditions"][0]["reason"], "Timeout");
    assert_eq!(of_late["cancelCause"], "Timeout");

    cluster.wait("wfr/slow", "condition=Failed", PATIENCE);
    assert_eq!(nodes(&cluster, "slow"), ["a Error Timeout"]);

    cluster.wait("wfr/gone", "delete", PATIENCE);
    until("no pod of `gone`", || pods(&cluster, "gone") == 0);

    cluster.wait("wfr/tidy", "condition=Complete", PATIENCE);
    until("no pod of `tidy`", || pods(&cluster, "tidy") == 0);
    cluster.wait("wfr/tidier", "condition=Failed", PATIENCE);
    until("one pod of `tidier`", || pods(&cluster, "tidier") == 1);

    // By now all that there is to do is done.
    assert_eq!(pods(&cluster, "narrow"), 1);
    let counts = &status(&cluster, "narrow")["counts"];
    assert_eq!([&counts["running"], &counts["pending"]], [1, 2]);
    cluster.merge("wfr/narrow", &json!({"spec": {"parallelism": 2}}));
    until("two pods of `narrow`", || pods(&cluster, "narrow") == 2);
    cluster.merge("wfr/narrow", &json!({"spec": {"suspend": true}}));
    cluster.wait("wfr/narrow", "jsonpath={.status.phase}=Suspended", PATIENCE);
    cluster.apscli(&["cancel", "narrow"]).ok();
    cluster.wait("wfr/narrow", "condition=Failed", PATIENCE);

    // One Event for each move of a run.
    let events = cluster.get(&["events", "--field-selector=involvedObject.name=held"]);
    let events = events["items"].as_array().unwrap();
    let mut reasons: Vec<&str> = events
        .iter()
        .map(|event| event["reason"].as_str().unwrap())
        .collect();
    reasons.sort_unstable();
    assert_eq!(reasons, ["Running", "Succeeded", "Suspended"]);
    operator.ends();
}

/// Names that real graphs have, and worse, as an API server and its checks see them.
#[test]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
fn names_of_any_shape_have_pods() {
    let cluster = Cluster::new("names");
    let operator = Operator::of(&cluster).ready();
    let long = "Xé.".repeat(100);
    let names = [
        "a",
        "0",
        "-",
        "_",
        ".",
        "..",
        "../../etc/passwd",
        "A.b-C_d",
        "align-1.bam",
        "x ",
        " ",
        "ß",
        "日本語",
        "\u{1f600}",
        "!@#$%^&*()",
        "a/b",
        "{{x}}",
        "$(HOME)",
        "--name=v",
        &long,
        &"a".repeat(63),
        &"a".repeat(64),
        &"a".repeat(300),
        &"-".repeat(300),
        "Node",
        "node",
    ];
    let mut template: serde_json::Map<String, Value> = names
        .iter()
        .map(|name| ((*name).to_owned(), node(&[])))
        .collect();
    template.insert("last".to_owned(), node(&names));
    // A run's own name is longer than a label's value may be, and has dots.
    let name = format!("{}.x", "r".repeat(80));
    // What its author may say of pods is said by the author; what is ours is not theirs to say.
    cluster.create(&run(
        &name,
        &json!({"template": template, "pod": {
            "labels": {"team": "a", "app.kubernetes.io/managed-by": "me", "apscli.dev/run-uid": "x"},
            "annotations": {"example.org/why": "ä\n\u{1f600}", "apscli.dev/attempt": "NoSlash"},
        }}),
    ));
    cluster.create(&run(
        "labels",
        &json!({"template": {"a": node(&[])}, "pod": {"labels": {"no label/at/all": "!"}}}),
    ));
    let what = format!("wfr/{name}");
    cluster.wait(&what, "condition=Complete", PATIENCE);
    let uid = cluster.get(&[&what])["metadata"]["uid"].clone();
    let of_run = format!("--selector=apscli.dev/run-uid={}", uid.as_str().unwrap());
    let pods = cluster.get(&["pods", &of_run, "--selector=team=a"]);
    let pods = pods["items"].as_array().unwrap();
    assert_eq!(pods.len(), names.len() + 1);
    // A wrong label is a node's error, in the API server's words.
    cluster.wait("wfr/labels", "condition=Failed", PATIENCE);
    assert_eq!(nodes(&cluster, "labels"), ["a Error NotStarted"]);
    operator.ends();
}
