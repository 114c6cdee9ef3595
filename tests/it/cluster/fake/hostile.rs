//! Objects of one tenant that are made to stop the operator for all others, on a real API server:
//! it is the one that says what can be stored. Must not need the definitions to refuse anything.

use serde_json::{Value, json};

use super::kubectl::{Cluster, run};
use super::life::until;
use super::operator::Operator;

/// How long anything may take on a busy machine, in seconds.
const PATIENCE: u32 = 120;

/// Lists in each other, as `serde_json` itself would not read them.
fn lists(levels: usize) -> String {
    format!("{}{}", "[".repeat(levels), "]".repeat(levels))
}

/// Creates an object as it is written; `kubectl` does not read it.
fn create_raw(cluster: &Cluster, plural: &str, name: &str, kind: &str, spec: &str) {
    let path = format!(
        "/apis/apscli.dev/v1alpha1/namespaces/{}/{plural}",
        cluster.namespace
    );
    let object = format!(
        r#"{{"apiVersion":"apscli.dev/v1alpha1","kind":"{kind}","metadata":{{"name":"{name}"}},"spec":{spec}}}"#
    );
    cluster
        .kubectl(&["create", "--raw", &path, "-f", "-"], &object)
        .ok();
}

/// What `kubectl` says of one field, without reading the rest of the object.
fn field(cluster: &Cluster, what: &str, path: &str) -> String {
    let path = format!("jsonpath={{{path}}}");
    cluster.kubectl(&["get", what, "-o", &path], "").ok()
}

/// A pod with our finalizer whose owner has this name.
fn owned(name: &str, owner: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "finalizers": ["apscli.dev/result"],
            "labels": {
                "app.kubernetes.io/managed-by": "apscli",
                "apscli.dev/run-uid": "00000000-0000-0000-0000-000000000000",
            },
            "ownerReferences": [{
                "apiVersion": "apscli.dev/v1alpha1",
                "kind": "WorkflowRun",
                "name": owner,
                "uid": "00000000-0000-0000-0000-000000000000",
                "controller": true,
            }],
        },
        "spec": {
            "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "c",
                "image": "none",
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    })
}

#[test]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
fn hostile_objects_stop_no_other_namespace() {
    let innocent = Cluster::new("innocent");
    let evil = innocent.beside("evil");
    let namespaces = [
        format!("--namespace={}", innocent.namespace),
        format!("--namespace={}", evil.namespace),
        format!("--shared-namespace={}", innocent.namespace),
    ];
    let [innocents, evils, shared] = &namespaces;
    let words = [innocents, evils, shared, "--leader-election=false"];
    let start = || Operator::start(&super::kubectl::kubeconfig(), &[], &words);
    let honest = |name: &str| {
        let template = json!({"a": {"action": {"type": "cmd", "cmd": "true"}}});
        innocent.create(&run(name, &json!({"template": template})));
    };
    let hostile = |levels: usize, when: &str| {
        let name = format!("deep-{levels}-{when}");
        let deep = lists(levels);
        create_raw(
            &evil,
            "workflowruns",
            &name,
            "WorkflowRun",
            &format!(r#"{{"template":{{}},"params":{{"p":{deep}}}}}"#),
        );
        let version = format!(
            r#"{{"version":"1","templateText":"{{}}","params":[{{"name":"p","default":{deep}}}]}}"#
        );
        create_raw(
            &evil,
            "services",
            &name,
            "Service",
            &format!(r#"{{"fqsn":"a.b{levels}{when}","versions":[{version}]}}"#),
        );
        name
    };
    let mut names = vec![hostile(150, "before"), hostile(9000, "before")];
    honest("before");
    let operator = start().ready();
    innocent.wait("workflowrun/before", "condition=Complete", PATIENCE);

    names.extend([hostile(150, "meanwhile"), hostile(9000, "meanwhile")]);
    for (at, owner) in [
        "?watch=true&timeoutSeconds=100000",
        "..",
        "../../x",
        "bad name",
    ]
    .iter()
    .enumerate()
    {
        let name = format!("owned-{at}");
        evil.create(&owned(&name, owner));
        // Unless the garbage collector, which finds no such owner, was quicker.
        let _ = evil.kubectl(&["delete", "pod", &name, "--wait=false"], "");
    }
    honest("meanwhile");
    innocent.wait("workflowrun/meanwhile", "condition=Complete", PATIENCE);

    // The one that finds all of it in its first list.
    operator.ends();
    let operator = start().ready();
    honest("after");
    innocent.wait("workflowrun/after", "condition=Complete", PATIENCE);
    for name in &names {
        for kind in ["workflowrun", "services.apscli.dev"] {
            let what = format!("{kind}/{name}");
            let reason = ".status.conditions[0].reason";
            until(&what, || field(&evil, &what, reason) == "Unreadable");
            let message = field(&evil, &what, ".status.conditions[0].message");
            assert!(message.contains("expected at most 127 levels"), "{message}");
        }
    }
    until("the pods are let go", || {
        evil.get(&["pods"])["items"].as_array().unwrap().is_empty()
    });
    drop(operator);
}
