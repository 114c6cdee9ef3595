//! The rights that the chart gives the operator are those that it uses: it works under them, as the
//! account and with the arguments of the chart, and what it did is compared with what it may do.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::kubectl::{Cluster, Said, kubeconfig, run};
use super::operator::{Metrics, Operator};

/// How long anything may take on a busy machine, in seconds.
const PATIENCE: u32 = 120;

/// Verb, group and resource with its subresource.
type Right = (String, String, String);

/// Used where a real API server cannot be brought to it: it keeps no object that cannot be read.
/// (`operator::tests::holes` has the conversation in which it is.)
const ELSEWHERE: [(&str, &str, &str); 1] = [("get", "apscli.dev", "services")];

/// All objects that the chart gives for these values, but for those at uninstall.
fn rendered(cluster: &Cluster, values: &[String]) -> Vec<Value> {
    let mut objects = rendered_with_hooks(cluster, values);
    objects.retain(|it| it["metadata"]["annotations"]["helm.sh/hook"].is_null());
    objects
}

fn rendered_with_hooks(cluster: &Cluster, values: &[String]) -> Vec<Value> {
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/apscli");
    let mut helm = Command::new("helm");
    helm.args(["template", "apscli", chart]);
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

    // Each kind of pod: with scripts is above; with another image, an account and a Secret.
    cluster.create(
        &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"},
        "stringData": {"k": "v"}}),
    );
    cluster.create(&run(
        "dressed",
        &json!({
            "template": {"a": {"action": {"type": "cmd", "cmd": "true"}, "param": {"x": "$p"}}},
            "image": "r.example/other:1", "serviceAccountName": "robot", "timeout": "60s",
            "paramsFrom": [{"secret": {"name": "s", "key": "k", "param": "p"}}],
            "pod": {"labels": {"team": "a"}, "tolerations": [{"operator": "Exists"}],
                "resources": {"requests": {"cpu": "1m"}}},
        }),
    ));
    cluster.wait("wfr/dressed", "condition=Complete", PATIENCE);
    // A label that was taken off is put back.
    let pods = "--selector=apscli.dev/run=dressed";
    let pod = cluster
        .kubectl(&["get", "pods", pods, "-o", "name"], "")
        .ok();
    let pod = pod.trim();
    cluster
        .kubectl(&["label", pod, "app.kubernetes.io/managed-by-"], "")
        .ok();
    super::life::until("the label again", || {
        let label = "jsonpath={.metadata.labels.app\\.kubernetes\\.io/managed-by}";
        cluster.kubectl(&["get", pod, "-o", label], "").stdout == "apscli"
    });

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
            "admissionPolicy.enabled=true".to_owned(),
            format!("nodes.allowServiceAccounts={{{}/robot}}", cluster.namespace),
            // Nobody starts it anew should the busy machine keep it from its Lease.
            "leaseDurationSeconds=60".to_owned(),
        ],
    );
    grant(&cluster, &objects);
    // A policy too takes a moment to count.
    let account = account_of(&cluster, "apscli");
    super::life::until("the policy", || {
        let foreign = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}});
        let said = as_account(&cluster, &account, &["create", "-f", "-"], &foreign);
        said.stderr.contains("ValidatingAdmissionPolicy")
    });
    cluster.create(&json!({"apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "robot"}}));
    // A grant takes a moment to count; before that the operator would be refused something.
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

/// Puts what gives and bounds rights into the cluster.
fn grant(cluster: &Cluster, objects: &[Value]) {
    let kinds = [
        "ServiceAccount",
        "Role",
        "RoleBinding",
        "ClusterRole",
        "ClusterRoleBinding",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    ];
    for object in of_kind(objects, &kinds) {
        let labels = object["metadata"]["labels"].to_string();
        if !labels.contains("aggregate-to-") {
            let apply = ["apply", "-f", "-"];
            cluster.anywhere(&apply, &object.to_string()).ok();
        }
    }
}

fn account_of(cluster: &Cluster, name: &str) -> String {
    format!("system:serviceaccount:{}:{name}", cluster.namespace)
}

/// What the API server says to an account.
fn as_account(cluster: &Cluster, account: &str, words: &[&str], object: &Value) -> Said {
    let mut words = words.to_vec();
    words.extend(["--as", account]);
    let told = if object.is_null() {
        String::new()
    } else {
        object.to_string()
    };
    cluster.kubectl(&words, &told)
}

/// A pod as the operator makes it, with this changed.
fn pod_but(name: &str, uid: &str, change: &Value) -> Value {
    let mut pod = lookalike(name, "some-run", uid);
    pod["spec"]["automountServiceAccountToken"] = json!(false);
    pod["spec"]["volumes"] = json!([{"name": "w", "emptyDir": {}}]);
    if !change.is_null() {
        merge(&mut pod, change);
    }
    pod
}

/// RFC 7386, and for what is no object: in its place.
fn merge(into: &mut Value, change: &Value) {
    match (into.as_object_mut(), change.as_object()) {
        (Some(fields), Some(changes)) => {
            for (name, change) in changes {
                merge(fields.entry(name).or_insert(Value::Null), change);
            }
        }
        _ => *into = change.clone(),
    }
}

fn snapshot_but(name: &str, uid: &str, change: &Value) -> Value {
    let mut map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "immutable": true, "data": {"a": "b"},
        "metadata": {"name": name,
            "labels": {"app.kubernetes.io/managed-by": "apscli", "apscli.dev/snapshot": "true"},
            "ownerReferences": [{"apiVersion": "apscli.dev/v1alpha1", "kind": "WorkflowRun",
                "name": "some-run", "uid": uid}]},
    });
    if !change.is_null() {
        merge(&mut map, change);
    }
    map
}

/// A run that no operator sees. What has no owner is collected.
fn some_run(cluster: &Cluster) -> String {
    cluster.create(&run("some-run", &json!({"template": {"a": node(&[])}})));
    let run = cluster.run("some-run");
    run["metadata"]["uid"].as_str().unwrap().to_owned()
}

/// Containers are merged by name; any other list is replaced.
fn kind_of(patch: &str) -> &'static str {
    if patch.contains("containers") {
        "--type=strategic"
    } else {
        "--type=merge"
    }
}

/// Pods that the operator never makes.
fn bad_pods(uid: &str) -> Vec<Value> {
    let restricted = &pod_but("x", uid, &Value::Null)["spec"]["containers"][0];
    let mut changes = vec![
        json!({"spec": {"serviceAccountName": "other"}}),
        json!({"spec": {"automountServiceAccountToken": true}}),
        json!({"spec": {"automountServiceAccountToken": null}}),
        json!({"metadata": {"ownerReferences": []}}),
        json!({"metadata": {"ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job",
            "name": "j", "uid": "u", "controller": true}]}}),
        json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "x"}}}),
        json!({"metadata": {"name": "other"}}),
        json!({"spec": {"hostNetwork": true}}),
        json!({"spec": {"hostPID": true}}),
        json!({"spec": {"hostIPC": true}}),
        json!({"spec": {"nodeName": "fake-0"}}),
        json!({"spec": {"securityContext": {"runAsUser": 0}}}),
        json!({"spec": {"securityContext": {"runAsNonRoot": false}}}),
        json!({"spec": {"securityContext": {"seccompProfile": {"type": "Unconfined"}}}}),
    ];
    for volume in [
        json!({"hostPath": {"path": "/"}}),
        json!({"secret": {"secretName": "s"}}),
        json!({"persistentVolumeClaim": {"claimName": "c"}}),
        json!({"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}),
        json!({"nfs": {"server": "s", "path": "/"}}),
    ] {
        let mut named = json!({"name": "v"});
        merge(&mut named, &volume);
        changes.push(json!({"spec": {"volumes": [named]}}));
    }
    for context in [
        json!({"privileged": true, "allowPrivilegeEscalation": true}),
        json!({"allowPrivilegeEscalation": true}),
        json!({"runAsUser": 0}),
        json!({"capabilities": {"drop": []}}),
        json!({"capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}}),
    ] {
        let mut container = restricted.clone();
        container["name"] = json!("bad");
        merge(&mut container, &json!({"securityContext": context}));
        changes.push(json!({"spec": {"containers": [container]}}));
        changes.push(json!({"spec": {"initContainers": [container]}}));
    }
    let mut port = restricted.clone();
    port["ports"] = json!([{"containerPort": 1, "hostPort": 1}]);
    changes.push(json!({"spec": {"containers": [port]}}));
    changes
        .iter()
        .map(|it| pod_but("apscli-bad", uid, it))
        .collect()
}

/// Whoever has the operator's token can do what the operator does, and nothing else that its roles
/// would allow. The namespace enforces no standard, so it is the policy that refuses.
#[test]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
#[allow(clippy::too_many_lines, reason = "a table")]
fn operators_account_is_held_to_what_it_does() {
    let cluster = Cluster::new("misuse");
    let label = "pod-security.kubernetes.io/enforce=privileged";
    let namespace = cluster.namespace.clone();
    let relabel = ["label", "--overwrite", "namespace", &namespace, label];
    cluster.anywhere(&relabel, "").ok();
    let objects = rendered(
        &cluster,
        &[
            "scope=cluster".to_owned(),
            format!("nodes.allowServiceAccounts={{{namespace}/robot}}"),
        ],
    );
    grant(&cluster, &objects);
    let uid = some_run(&cluster);
    let account = account_of(&cluster, "apscli");
    for name in ["robot", "other"] {
        cluster.create(&json!({"apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": name}}));
    }
    let foreign = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "coredns"}, "data": {"Corefile": "."}});
    cluster.create(&foreign);
    let mut pod = pod_but(
        "foreign",
        &uid,
        &json!({"metadata": {"labels": null, "ownerReferences": [],
        "finalizers": []}}),
    );
    pod["metadata"]["labels"] = json!({"app": "theirs"});
    cluster.create(&pod);
    let says = |words: &[&str], object: &Value| as_account(&cluster, &account, words, object);
    let create = ["create", "-f", "-"];
    let mut last = None;
    for _ in 0..PATIENCE {
        let said = says(&create, &snapshot_but("not-ours", &uid, &Value::Null));
        if said.stderr.contains("ValidatingAdmissionPolicy") {
            last = None;
            break;
        }
        last = Some(said);
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
    assert!(last.is_none(), "roles and policy do not count: {last:?}");
    let refused = |what: &str, words: &[&str], object: &Value| {
        let said = says(words, object);
        assert!(
            !said.success && said.stderr.contains("ValidatingAdmissionPolicy 'apscli."),
            "{what}: {words:?} {object}: {said:?}"
        );
    };
    let done = |words: &[&str], object: &Value| {
        let said = says(words, object);
        assert!(said.success, "{words:?} {object}: {said:?}");
    };

    // What the operator does.
    done(&create, &pod_but("apscli-good", &uid, &Value::Null));
    let robot = json!({"spec": {"serviceAccountName": "robot"}});
    done(&create, &pod_but("apscli-robot", &uid, &robot));
    done(
        &create,
        &snapshot_but("apscli-params-1-0", &uid, &Value::Null),
    );
    let lease = |name: &str| {
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": name}, "spec": {"holderIdentity": "me"}})
    };
    done(&create, &lease("apscli"));
    let patch = |what: &'static str, patch: &str| -> Vec<String> {
        let kind = kind_of(patch);
        let patch = format!("--patch={patch}");
        ["patch", what, kind, &patch].map(str::to_owned).to_vec()
    };
    let owner = json!({"apiVersion": "apscli.dev/v1alpha1", "kind": "WorkflowRun",
        "name": "some-run", "uid": uid, "controller": false});
    let owners = json!({"metadata": {"ownerReferences": [owner]}}).to_string();
    for (what, change) in [
        (
            "pod/apscli-good",
            r#"{"metadata":{"labels":{"apscli.dev/run":"x"}}}"#,
        ),
        ("configmap/apscli-params-1-0", &owners),
    ] {
        let words = patch(what, change);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        done(&words, &Value::Null);
    }

    // What it does not.
    for pod in bad_pods(&uid) {
        refused("a pod that is not the operator's", &create, &pod);
    }
    for map in [
        snapshot_but("aws-auth", &uid, &Value::Null),
        snapshot_but(
            "apscli-x",
            &uid,
            &json!({"metadata": {"labels": {"apscli.dev/snapshot": "no"}}}),
        ),
        snapshot_but("apscli-x", &uid, &json!({"immutable": null})),
        snapshot_but(
            "apscli-x",
            &uid,
            &json!({"metadata": {"ownerReferences": [
            {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}]}}),
        ),
    ] {
        refused("a ConfigMap that is not the operator's", &create, &map);
    }
    refused("a Lease of another", &create, &lease("kube-scheduler"));
    let container = r#"{"spec":{"containers":[{"name":"main","image":"evil:1"}]}}"#;
    let ours = r#"{"metadata":{"labels":{"app.kubernetes.io/managed-by":"apscli",
        "apscli.dev/snapshot":"true"}}}"#;
    let made_ours = r#"{"metadata":{"ownerReferences":[{"apiVersion":"apscli.dev/v1alpha1",
        "kind":"WorkflowRun","name":"q","uid":"u","controller":true}]}}"#;
    for (what, change) in [
        ("configmap/coredns", r#"{"data":{"Corefile":"evil"}}"#),
        ("configmap/coredns", ours),
        (
            "configmap/apscli-params-1-0",
            r#"{"metadata":{"labels":{"apscli.dev/catalog":"true"}}}"#,
        ),
        ("pod/foreign", container),
        ("pod/foreign", ours),
        ("pod/foreign", made_ours),
        (
            "pod/foreign",
            r#"{"metadata":{"finalizers":["apscli.dev/result"]}}"#,
        ),
        ("pod/apscli-good", container),
        (
            "pod/apscli-good",
            r#"{"metadata":{"annotations":{"apscli.dev/decision":"x"}}}"#,
        ),
        ("pod/apscli-good", made_ours),
        ("pod/apscli-good", r#"{"spec":{"activeDeadlineSeconds":1}}"#),
    ] {
        let words = patch(what, change);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        refused("a change that is not the operator's", &words, &Value::Null);
    }
    refused(
        "a foreign pod",
        &["delete", "pod", "foreign", "--wait=false"],
        &Value::Null,
    );
    let bare = r#"{"metadata":{"finalizers":null}}"#;
    let words = patch("pod/apscli-good", bare);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    done(&words, &Value::Null);
    done(
        &["delete", "pod", "apscli-good", "--wait=false"],
        &Value::Null,
    );
    // Nobody else is looked at.
    let said = cluster.kubectl(&["delete", "pod", "foreign", "--wait=false"], "");
    assert!(said.success, "{said:?}");
}

/// The account of the uninstall job takes one finalizer off, and nothing else.
#[test]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
fn cleanup_account_changes_finalizers_only() {
    let cluster = Cluster::new("cleaner");
    let objects = rendered_with_hooks(&cluster, &["scope=cluster".to_owned()]);
    let cleaners: Vec<Value> = objects
        .into_iter()
        .filter(|it| !it["metadata"]["annotations"]["helm.sh/hook"].is_null())
        .collect();
    grant(&cluster, &cleaners);
    let uid = some_run(&cluster);
    let account = account_of(&cluster, "apscli-cleanup");
    let change = json!({"metadata": {"finalizers": ["x.example/y", "apscli.dev/result"]}});
    cluster.create(&pod_but("held", &uid, &change));
    let patch = |change: &str| {
        let kind = kind_of(change);
        let change = format!("--patch={change}");
        let words = ["patch", "pod", "held", kind, &change];
        as_account(&cluster, &account, &words, &Value::Null)
    };
    let label = r#"{"metadata":{"labels":{"a":"b"}}}"#;
    super::life::until("roles and policy", || {
        patch(label).stderr.contains("ValidatingAdmissionPolicy")
    });
    for bad in [
        label,
        r#"{"metadata":{"annotations":{"a":"b"}}}"#,
        r#"{"metadata":{"ownerReferences":null}}"#,
        r#"{"metadata":{"finalizers":null}}"#,
        r#"{"metadata":{"finalizers":["apscli.dev/result"]}}"#,
        r#"{"metadata":{"finalizers":["x.example/y","apscli.dev/result","z.example/z"]}}"#,
        r#"{"spec":{"activeDeadlineSeconds":1}}"#,
        r#"{"spec":{"containers":[{"name":"main","image":"evil:1"}]}}"#,
    ] {
        let said = patch(bad);
        assert!(
            !said.success
                && said
                    .stderr
                    .contains("takes the finalizer apscli.dev/result off"),
            "{bad}: {said:?}"
        );
    }
    let good = patch(r#"{"metadata":{"finalizers":["x.example/y"]}}"#);
    assert!(good.success, "{good:?}");
    let bare = r#"--patch={"metadata":{"finalizers":null}}"#;
    cluster
        .kubectl(&["patch", "pod", "held", "--type=merge", bare], "")
        .ok();
}

/// Where the chart's rights do not reach, readiness says which are missing and of whom.
#[test]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
fn a_namespace_that_may_not_be_read_is_named() {
    let cluster = Cluster::new("refused");
    let dir = TempDir::new().unwrap();
    let objects = rendered(
        &cluster,
        &[
            "scope=namespaced".to_owned(),
            format!("sharedNamespace={}", cluster.namespace),
            "allowSharedInReleaseNamespace=true".to_owned(),
        ],
    );
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
