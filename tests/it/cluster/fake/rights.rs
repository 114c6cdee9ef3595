//! The rights that the chart gives the operator are those that it uses: it works under them, as the
//! account and with the arguments of the chart, and what it did is compared with what it may do.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::kubectl::{Cluster, kubeconfig, run};
use super::operator::{Metrics, Operator};

/// How long anything may take on a busy machine, in seconds.
const PATIENCE: u32 = 120;

/// Verb, group and resource with its subresource.
type Right = (String, String, String);

/// Used where a real API server cannot be brought to it: it keeps no object that cannot be read.
/// (`operator::tests::holes` has the conversation in which it is.)
const ELSEWHERE: [(&str, &str, &str); 1] = [("get", "apscli.dev", "services")];

/// All objects that the chart gives for these values.
fn rendered(cluster: &Cluster, values: &[String]) -> Vec<Value> {
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/apscli");
    let mut helm = Command::new("helm");
    helm.args(["template", "apscli", chart, "--no-hooks"]);
    helm.args(["--namespace", &cluster.namespace]);
    helm.args([
        "--set",
        "crds.install=false,podDisruptionBudget.enabled=false",
    ]);
    for value in values {
        helm.args(["--set", value]);
    }
    let done = helm
        .output()
        .expect("tests/cluster/with puts helm into the PATH");
    let manifests = String::from_utf8(done.stdout).unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    // kubectl reads YAML.
    let args = ["create", "--dry-run=client", "-o", "json", "-f", "-"];
    let list = cluster.anywhere(&args, &manifests).ok();
    let list = serde_json::Deserializer::from_str(&list).into_iter::<Value>();
    list.flat_map(|it| {
        let it = it.unwrap();
        it["items"].as_array().cloned().unwrap_or_else(|| vec![it])
    })
    .collect()
}

fn of_kind<'a>(objects: &'a [Value], kinds: &[&str]) -> Vec<&'a Value> {
    let is = |it: &&Value| kinds.contains(&it["kind"].as_str().unwrap());
    objects.iter().filter(is).collect()
}

/// What these roles allow the operator; those for people are not its own.
fn allowed(objects: &[Value]) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for role in of_kind(objects, &["Role", "ClusterRole"]) {
        if role["metadata"]["labels"]
            .to_string()
            .contains("aggregate-to-")
        {
            continue;
        }
        for rule in role["rules"].as_array().unwrap() {
            let words = |field: &str| -> Vec<String> {
                let words = rule[field].as_array().unwrap();
                words
                    .iter()
                    .map(|it| it.as_str().unwrap().to_owned())
                    .collect()
            };
            for verb in words("verbs") {
                for group in words("apiGroups") {
                    for resource in words("resources") {
                        rights.insert((verb.clone(), group.clone(), resource));
                    }
                }
            }
        }
    }
    rights
}

/// What an operator asked for. Nothing may have been refused.
fn used(metrics: &Metrics) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for sample in &metrics.samples {
        if sample.name != "apscli_api_calls_total" {
            continue;
        }
        let label = |name: &str| sample.labels[name].clone();
        assert_ne!(label("code"), "403", "{}", metrics.calls());
        // Which kinds there are, everybody may ask.
        if !label("resource").is_empty() {
            rights.insert((label("verb"), label("group"), label("resource")));
        }
    }
    rights
}

/// A kubeconfig of the account that the chart made.
fn kubeconfig_of(cluster: &Cluster, dir: &TempDir) -> std::path::PathBuf {
    let file = dir.path().join("kubeconfig");
    fs::copy(kubeconfig(), &file).unwrap();
    let token = cluster.kubectl(&["create", "token", "apscli"], "").ok();
    let token = format!("--token={}", token.trim());
    for words in [
        &["config", "set-credentials", "operator", &token][..],
        &["config", "set-context", "--current", "--user=operator"],
    ] {
        let done = Command::new("kubectl")
            .args(words)
            .env("KUBECONFIG", &file)
            .output()
            .unwrap();
        assert!(done.status.success());
    }
    file
}

/// The chart's operator as a process here.
fn operator(cluster: &Cluster, objects: &[Value], dir: &TempDir) -> Operator {
    let deployment = of_kind(objects, &["Deployment"])[0];
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    let words = container["args"].as_array().unwrap();
    let words = words.iter().map(|word| word.as_str().unwrap());
    // The command itself, and what the test sets.
    let here = |word: &&str| {
        *word != "operator"
            && !word.starts_with("--listen=")
            && !word.starts_with("--log-format=")
            && !word.starts_with("--identity=")
    };
    let words: Vec<&str> = words.filter(here).collect();
    let variables = [("POD_NAMESPACE", cluster.namespace.as_str())];
    Operator::start(kubeconfig_of(cluster, dir).as_os_str(), &variables, &words)
}

fn node(prev: &[&str]) -> Value {
    json!({"prev_nodes": prev, "action": {"type": "cmd", "cmd": "true"}})
}

/// A pod as one of ours looks, of a run with this name and UID.
fn lookalike(name: &str, run: &str, uid: &str) -> Value {
    let mut pod = serde_json::to_value(super::super::pod(name, "none", "true", &[])).unwrap();
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"] = json!({
        "name": name,
        "labels": {"app.kubernetes.io/managed-by": "apscli", "apscli.dev/run-uid": uid},
        "annotations": {"fake.apscli.dev/seconds": "forever"},
        "finalizers": ["apscli.dev/result"],
        "ownerReferences": [{"apiVersion": "apscli.dev/v1alpha1", "kind": "WorkflowRun",
            "name": run, "uid": uid, "controller": true}],
    });
    pod
}

/// Leaves things behind for the next process to go on with.
fn use_while_the_first_works(cluster: &Cluster, shared: &Cluster) {
    // A service of the shared namespace with scripts, run twice: copies are made, then shared.
    let shared_map = |name: &str, data: Value, label: bool| {
        let labels = if label {
            json!({"apscli.dev/catalog": "true"})
        } else {
            json!({})
        };
        shared.create(&json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "labels": labels}, "data": data}));
    };
    shared_map("scripts", json!({"x.sh": "#!/bin/sh\n"}), false);
    // What is wrong with a catalogue there is said there.
    shared_map("wrong", json!({"wrong.json": "{"}), true);
    shared.create(
        &json!({"apiVersion": "apscli.dev/v1alpha1", "kind": "Service",
        "metadata": {"name": "s"}, "spec": {"fqsn": "some.service",
            "versions": [{"version": "1", "template": {"a": node(&[])}}],
            "scripts": [{"configMap": "scripts"}]}}),
    );
    shared.wait("apsvc/s", "condition=Ready", PATIENCE);
    for name in ["one", "two"] {
        cluster.create(&run(name, &json!({"fqsn": "some.service"})));
        cluster.wait(&format!("wfr/{name}"), "condition=Complete", PATIENCE);
    }
    let wrong = [
        "get",
        "events",
        "--field-selector=reason=InvalidCatalog",
        "-o",
        "name",
    ];
    let said = |cluster: &Cluster| cluster.kubectl(&wrong, "").ok();
    super::life::until("an Event on the catalogue", || !said(shared).is_empty());

    // Pages; what still runs is left to the next process.
    let mut large: serde_json::Map<String, Value> =
        (0..101).map(|at| (format!("n{at}"), node(&[]))).collect();
    large.insert("last".to_owned(), node(&["n0"]));
    cluster.create(&run(
        "large",
        &json!({"template": large, "pod": {"annotations": {"fake.apscli.dev/seconds": "8"}}}),
    ));
    cluster.create(&run(
        "stopped",
        &json!({"fqsn": "some.service", "pod": {"annotations": {"fake.apscli.dev/seconds": "forever"}}}),
    ));
    cluster.wait("wfr/large", "jsonpath={.status.pages}=2", PATIENCE);
    cluster.wait(
        "wfr/stopped",
        "jsonpath={.status.counts.running}=1",
        PATIENCE,
    );
}

fn use_while_the_second_works(cluster: &Cluster) {
    cluster.merge("wfr/stopped", &json!({"spec": {"cancel": true}}));
    cluster.wait("wfr/stopped", "condition=Failed", PATIENCE);
    cluster.wait("wfr/large", "condition=Complete", PATIENCE);
    cluster.create(&run(
        "gone",
        &json!({"template": {"a": node(&[])}, "ttlSecondsAfterFinished": 0}),
    ));
    cluster.wait("wfr/gone", "delete", PATIENCE);
    // A pod of a run that is over is looked at and deleted; one of a run that nobody knows is let
    // go once that was asked for.
    let uid = cluster.run("one")["metadata"]["uid"]
        .as_str()
        .unwrap()
        .to_owned();
    cluster.create(&lookalike("late", "one", &uid));
    cluster.wait("pod/late", "delete", PATIENCE);
    cluster.create(&lookalike(
        "stray",
        "nobody",
        "00000000-0000-4000-8000-000000000000",
    ));
    cluster
        .kubectl(
            &[
                "delete",
                "pod",
                "stray",
                "--ignore-not-found",
                "--wait=false",
            ],
            "",
        )
        .ok();
    cluster.wait("pod/stray", "delete", PATIENCE);
}

#[test]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
fn the_operator_has_the_rights_that_it_uses_and_no_others() {
    let cluster = Cluster::new("rights");
    let shared = cluster.beside("rights-shared");
    let dir = TempDir::new().unwrap();
    let objects = rendered(
        &cluster,
        &[
            "scope=namespaced".to_owned(),
            format!("namespaces={{{}}}", cluster.namespace),
            format!("sharedNamespace={}", shared.namespace),
            // Nobody starts it anew should the busy machine keep it from its Lease.
            "leaseDurationSeconds=60".to_owned(),
        ],
    );
    for object in of_kind(&objects, &["ServiceAccount", "Role", "RoleBinding"]) {
        cluster
            .anywhere(&["apply", "-f", "-"], &object.to_string())
            .ok();
    }
    // A grant takes a moment to count; before that the operator would be refused something.
    let account = format!("system:serviceaccount:{}:apscli", cluster.namespace);
    for namespace in [&cluster, &shared] {
        super::life::until("the rights", || {
            let ask = [
                "auth",
                "can-i",
                "create",
                "events.events.k8s.io",
                "--as",
                &account,
            ];
            namespace.kubectl(&ask, "").success
        });
    }
    let first = operator(&cluster, &objects, &dir).ready();

    use_while_the_first_works(&cluster, &shared);
    let before = first.metrics();
    first.ends();
    let second = operator(&cluster, &objects, &dir).ready();
    use_while_the_second_works(&cluster);
    let mut all = used(&before);
    all.extend(used(&second.metrics()));
    let named = |(verb, group, resource): &(&str, &str, &str)| {
        (
            (*verb).to_owned(),
            (*group).to_owned(),
            (*resource).to_owned(),
        )
    };
    all.extend(ELSEWHERE.iter().map(named));
    let in_all = rendered(&cluster, &["scope=cluster".to_owned()]);
    for (scope, objects) in [("namespaced", &objects), ("cluster", &in_all)] {
        let allowed = allowed(objects);
        let unused: BTreeMap<_, _> = allowed.difference(&all).map(|it| (it, "unused")).collect();
        let missing: BTreeMap<_, _> = all.difference(&allowed).map(|it| (it, "missing")).collect();
        assert!(
            unused.is_empty() && missing.is_empty(),
            "{scope}: {unused:?} {missing:?}"
        );
    }
    second.ends();
}

/// Where the chart's rights do not reach, readiness says which are missing and of whom.
#[test]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
fn a_namespace_that_may_not_be_read_is_named() {
    let cluster = Cluster::new("refused");
    let dir = TempDir::new().unwrap();
    let objects = rendered(&cluster, &["scope=namespaced".to_owned()]);
    for object in of_kind(&objects, &["ServiceAccount", "Role", "RoleBinding"]) {
        cluster
            .kubectl(&["apply", "-f", "-"], &object.to_string())
            .ok();
    }
    let namespace = format!("--namespace={}", cluster.namespace);
    let operator = Operator::start(
        kubeconfig_of(&cluster, &dir).as_os_str(),
        &[],
        &[
            &namespace,
            "--shared-namespace=kube-public",
            "--leader-election=false",
        ],
    );
    super::life::until("words on what is refused", || {
        let told = operator.readiness();
        told.starts_with("HTTP/1.1 503 ")
            && told.contains("the cache of Services: ")
            && told.contains("cannot list resource \"services\"")
            && told.contains("in the namespace \"kube-public\"")
    });
    operator.ends();
}
