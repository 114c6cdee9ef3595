//! The catalogue through a real API server: what the README shows of it, and the words of a
//! `Service` that cannot be run.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::kubectl::{Cluster, kubeconfig, run};
use super::operator::Operator;

/// How long anything may take on a busy machine, in seconds.
const PATIENCE: u32 = 60;

/// A kubeconfig of which this namespace is the one that is meant.
fn kubeconfig_in(cluster: &Cluster, dir: &TempDir) -> std::path::PathBuf {
    let file = dir.path().join("kubeconfig");
    fs::copy(kubeconfig(), &file).unwrap();
    let namespace = format!("--namespace={}", cluster.namespace);
    let done = Command::new("kubectl")
        .args(["config", "set-context", "--current", &namespace])
        .env("KUBECONFIG", &file)
        .output()
        .unwrap();
    assert!(done.status.success());
    file
}

#[test]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
fn the_readmes_section_of_the_catalogue() {
    let cluster = Cluster::new("readme");
    let operator = Operator::of(&cluster).ready();
    let dir = TempDir::new().unwrap();
    crate::readme::run_on_fake_nodes(&kubeconfig_in(&cluster, &dir));

    // The Service stands before the ConfigMaps, and both can be run.
    let fqsn = "oracle.peo.cloud.vm_allocation";
    let of_service = json!({"vm_name": "x"});
    cluster.create(&run("first", &json!({"fqsn": fqsn, "params": of_service})));
    cluster.wait("wfr/first", "condition=Complete", PATIENCE);
    let source = |name: &str| cluster.run(name)["status"]["resolved"]["source"].clone();
    assert_eq!(
        source("first"),
        format!("Service {}/vm-allocation", cluster.namespace)
    );
    cluster.kubectl(&["delete", "apsvc/vm-allocation"], "").ok();
    let params = json!({"vm_id": 1, "vm_name": "x", "ip": "10.0.0.1", "s_name": "s"});
    // The operator may hear of the deletion after the next run: then it runs the Service once more.
    let mut found = Value::Null;
    for attempt in 0..20 {
        let name = format!("second-{attempt}");
        let spec = json!({"fqsn": fqsn, "version": "1.1", "params": params});
        cluster.create(&run(&name, &spec));
        let what = format!("wfr/{name}");
        cluster.wait(&what, "jsonpath={.status.returnCode}", PATIENCE);
        found = source(&name);
        if found != source("first") {
            cluster.wait(&what, "condition=Complete", PATIENCE);
            break;
        }
    }
    assert_eq!(
        found,
        format!("ConfigMap {}/peo-cloud key cloud.json", cluster.namespace)
    );
    operator.ends();
}

#[test]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
fn a_service_says_what_validate_says() {
    let cluster = Cluster::new("words");
    let operator = Operator::of(&cluster).ready();
    let dir = TempDir::new().unwrap();
    for (at, text) in [
        "a:\n  action: {type: cmd, cmd: 'true'}\n  prev_nodes: [b, a]\n",
        "a:\n  action: {type: cmd}\n  tiemout: 1s\nb: 1\n",
        "{\"a\": {\"action\": {\"type\": \"cmd\", \"cmd\": \"true\"}, \"decision_expr\": \"(\"}}",
        "{\"a\": ",
    ]
    .iter()
    .enumerate()
    {
        let ending = if text.starts_with('{') {
            "json"
        } else {
            "yaml"
        };
        let file = dir.path().join(format!("t{at}.{ending}"));
        fs::write(&file, text).unwrap();
        let file = file.to_str().unwrap().to_owned();
        let validated = Command::new(env!("CARGO_BIN_EXE_apscli"))
            .args(["validate", &file])
            .output()
            .unwrap();
        assert_eq!(validated.status.code(), Some(2));
        let name = format!("s{at}");
        let fqsn = format!("words.s.{name}");
        let versions = json!([{"version": "1", "templateText": text}]);
        cluster.create(&json!({
            "apiVersion": "apscli.dev/v1alpha1", "kind": "Service", "metadata": {"name": name},
            "spec": {"fqsn": fqsn, "versions": versions},
        }));
        cluster.wait(&format!("apsvc/{name}"), "condition=Ready=False", PATIENCE);
        let status = cluster.get(&[&format!("apsvc/{name}")])["status"].clone();
        let message = status["versions"][0]["message"].as_str().unwrap();
        // Each names the text as it knows it; all other words are the same.
        let here = message.replace(&format!("{fqsn} version 1:"), &format!("{file}:"));
        let validated = String::from_utf8(validated.stderr).unwrap();
        assert_eq!(here, validated.trim_end().replace("error: ", ""));
    }
    operator.ends();
}

/// Both hear of it, and the first goes on to count.
#[test]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
fn second_service_of_a_name_does_not_count() {
    let cluster = Cluster::new("twice");
    let operator = Operator::of(&cluster).ready();
    let service = |name: &str| {
        let template = json!({name: {"action": {"type": "cmd", "cmd": "true"}}});
        cluster.create(&json!({
            "apiVersion": "apscli.dev/v1alpha1", "kind": "Service", "metadata": {"name": name},
            "spec": {"fqsn": "some.name", "versions": [{"version": "1", "template": template}]},
        }));
    };
    // In this order also where both are made within one second.
    service("a");
    cluster.wait("apsvc/a", "condition=Ready", PATIENCE);
    service("b");
    cluster.wait("apsvc/b", "condition=Ready=False", PATIENCE);
    let ready =
        |name: &str| cluster.get(&[&format!("apsvc/{name}")])["status"]["conditions"][0].clone();
    assert_eq!(ready("b")["reason"], "Conflict");
    assert_eq!(ready("a")["status"], "True");
    let told = || {
        let events = cluster.get(&["events", "--field-selector=reason=Conflict"]);
        let events = events["items"].as_array().cloned().unwrap_or_default();
        let names = events
            .iter()
            .map(|it| it["involvedObject"]["name"].to_string());
        names.collect::<std::collections::BTreeSet<String>>()
    };
    super::life::until("an Event on both", || told().len() == 2);
    cluster.create(&run("r", &json!({"fqsn": "some.name"})));
    cluster.wait("wfr/r", "condition=Complete", PATIENCE);
    let source = cluster.run("r")["status"]["resolved"]["source"].clone();
    assert_eq!(source, format!("Service {}/a", cluster.namespace));
    cluster.kubectl(&["delete", "apsvc/a"], "").ok();
    cluster.wait("apsvc/b", "condition=Ready", PATIENCE);
    operator.ends();
}
