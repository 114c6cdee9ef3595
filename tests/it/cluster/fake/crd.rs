//! The definitions on a real API server: what it takes, what it refuses and in which words, what
//! it keeps, and what `kubectl` shows of it. Must not need a node.

use apscli::api::workflow_run::{NodePhase, NodeStatus, WorkflowRun, WorkflowRunStatus};
use serde_json::{Value, json};

use super::kubectl::{Cluster, run, service};

fn whole_run() -> Value {
    json!({
        "fqsn": "oracle.peo.cloud.vm_allocation",
        "version": "1.10",
        "params": {"ip": null, "list": [1, {"deep": null}], "n": 1.5},
        "paramsFrom": [
            {"configMap": {"name": "more", "optional": true}},
            {"secret": {"name": "s", "key": "k", "param": "password"}},
        ],
        "executor": "pod",
        "parallelism": 3,
        "timeout": "1h30m",
        "suspend": true,
        "cancel": false,
        "onLost": "Retry",
        "ttlSecondsAfterFinished": 0,
        "podRetention": "OnFailure",
        "serviceAccountName": "jobs",
        "image": "registry.example/jobs:1",
        "pod": {
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "resources": {"limits": {"cpu": 1, "memory": "256Mi"}, "requests": {"cpu": "500m"}},
            "imagePullPolicy": "Never",
            "imagePullSecrets": [{"name": "pull"}],
            "priorityClassName": "low",
            "labels": {"team": "a"},
            "annotations": {"example.com/why": "because"},
        },
    })
}

/// `with` over `spec`; null takes a field away.
fn over(mut spec: Value, with: &Value) -> Value {
    for (name, value) in with.as_object().unwrap() {
        match value {
            Value::Null => spec.as_object_mut().unwrap().remove(name),
            value => spec
                .as_object_mut()
                .unwrap()
                .insert(name.clone(), value.clone()),
        };
    }
    spec
}

#[test]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
fn a_good_object_is_kept_as_it_is() {
    let cluster = Cluster::new("good-objects");
    let spec = whole_run();
    cluster.create(&run("whole", &spec));
    let kept = cluster.run("whole");
    assert_eq!(kept["spec"], spec);
    let typed: WorkflowRun = serde_json::from_value(kept.clone()).unwrap();
    let cpu = &typed
        .spec
        .pod
        .as_ref()
        .unwrap()
        .resources
        .as_ref()
        .unwrap()
        .limits["cpu"];
    assert_eq!(cpu.0, "1");

    for spec in [
        json!({"fqsn": "a.b"}),
        json!({"template": {"a": {"action": {"type": "cmd", "cmd": "true"}}}}),
        json!({"templateFrom": [{"configMap": "c", "key": "k"}], "timeout": "0.5s"}),
        // A null is a field that is not given.
        json!({"fqsn": "a.b", "template": null, "timeout": null, "pod": null}),
    ] {
        cluster.try_out(&run("good", &spec));
    }
    for versions in [
        json!([{"version": "1.0", "template": {}}, {"version": "1.10", "templateText": "a: {}"}]),
        json!([{"version": "1.10", "templateText": "a", "release": "then", "params": [
            {"name": "ip", "type": "string", "default": "10.0.0.1", "enum": ["10.0.0.1", "10.0.0.2"]},
            {"name": "any", "required": true, "description": "Anything."},
            {"name": "list", "type": "list", "default": [1, "a", null]},
        ]}]),
    ] {
        let spec = json!({
            "fqsn": "oracle.peo.cloud.vm_allocation",
            "defaultVersion": "1.10",
            "versions": versions,
            "scripts": [{"configMap": "files", "path": "lib/tools", "mode": 0o555}, {"configMap": "more"}],
        });
        assert_eq!(cluster.try_out(&service(&spec))["spec"], spec);
    }
}

#[test]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
fn a_bad_object_is_refused_in_words() {
    let cluster = Cluster::new("bad-objects");
    let one = "expected exactly one of fqsn, template and templateFrom";
    for (spec, words) in [
        (json!({}), one),
        (json!({"fqsn": "a.b", "template": {}}), one),
        (
            json!({"template": {}, "templateFrom": [{"configMap": "c", "key": "k"}]}),
            one,
        ),
        (
            json!({"template": {}, "version": "1.0"}),
            "version belongs to fqsn",
        ),
        (json!({"fqsn": "../etc"}), "spec.fqsn"),
        (json!({"fqsn": "a"}), "spec.fqsn"),
        (json!({"fqsn": "a.b", "parallelism": 0}), "spec.parallelism"),
        (json!({"fqsn": "a.b", "timeout": "soon"}), "spec.timeout"),
        (json!({"fqsn": "a.b", "timeout": ""}), "spec.timeout"),
        (json!({"fqsn": "a.b", "executor": "vm"}), "spec.executor"),
        (json!({"fqsn": "a.b", "onLost": "retry"}), "spec.onLost"),
        (
            json!({"fqsn": "a.b", "ttlSecondsAfterFinished": -1}),
            "spec.ttlSecondsAfterFinished",
        ),
        (
            json!({"fqsn": "a.b", "paramsFrom": [{}]}),
            "expected exactly one of configMap and secret",
        ),
        (
            json!({"fqsn": "a.b", "paramsFrom": [{"configMap": {"name": "c"}, "secret": {"name": "s", "key": "k", "param": "p"}}]}),
            "expected exactly one of configMap and secret",
        ),
        (json!({"templateFrom": []}), "spec.templateFrom"),
        (
            json!({"fqsn": "a.b", "pod": {"resources": {"limits": {"cpu": "lots"}}}}),
            "spec.pod.resources.limits.cpu",
        ),
        (
            json!({"fqsn": "a.b", "pod": {"hostNetwork": true}}),
            "unknown field \"spec.pod.hostNetwork\"",
        ),
        (json!({"fqsn": "a.b", "params": [1]}), "spec.params"),
    ] {
        cluster.refuses(&run("bad", &spec), words);
    }
    let good = json!({"fqsn": "a.b", "versions": [{"version": "1", "template": {}}]});
    let version = |version: Value| json!({"versions": [version]});
    for (with, words) in [
        (
            json!({"defaultVersion": "2"}),
            "defaultVersion is none of the versions",
        ),
        (json!({"versions": []}), "spec.versions"),
        (
            version(json!({"version": "1"})),
            "expected exactly one of template and templateText",
        ),
        (
            version(json!({"version": "1", "template": {}, "templateText": "a"})),
            "expected exactly one of template and templateText",
        ),
        (
            json!({"versions": [{"version": "1", "template": {}}, {"version": "1", "template": {}}]}),
            "Duplicate value",
        ),
        (
            version(json!({"version": 1.1, "template": {}})),
            "spec.versions[0].version",
        ),
        (
            version(json!({"version": "1", "template": {}, "params": [{"name": "a b"}]})),
            "spec.versions[0].params[0].name",
        ),
        (
            version(
                json!({"version": "1", "template": {}, "params": [{"name": "a", "type": "int"}]}),
            ),
            "spec.versions[0].params[0].type",
        ),
        (
            json!({"scripts": [{"configMap": "c", "path": "a/../../b"}]}),
            "path may not leave the folder of the template",
        ),
        (
            json!({"scripts": [{"configMap": "c", "path": "/etc"}]}),
            "spec.scripts[0].path",
        ),
        (
            json!({"scripts": [{"configMap": "c", "mode": 0o1777}]}),
            "spec.scripts[0].mode",
        ),
    ] {
        cluster.refuses(&service(&over(good.clone(), &with)), words);
    }
}

/// A field that holds a name, and a spec with it.
type Field<'a> = (&'a str, &'a dyn Fn(&str) -> Value);

/// Names go into URLs, and the library that puts them there does not look at them.
#[test]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
fn a_name_of_no_object_is_refused() {
    let cluster = Cluster::new("bad-names");
    let secret = |name: &str| json!({"fqsn": "a.b", "paramsFrom": [{"secret": {"name": name, "key": "k", "param": "p"}}]});
    let fields: [Field<'_>; 6] = [
        (
            "spec.templateFrom[0].configMap",
            &|name| json!({"templateFrom": [{"configMap": name, "key": "k"}]}),
        ),
        (
            "spec.paramsFrom[0].configMap.name",
            &|name| json!({"fqsn": "a.b", "paramsFrom": [{"configMap": {"name": name}}]}),
        ),
        ("spec.paramsFrom[0].secret.name", &secret),
        (
            "spec.serviceAccountName",
            &|name| json!({"fqsn": "a.b", "serviceAccountName": name}),
        ),
        (
            "spec.pod.priorityClassName",
            &|name| json!({"fqsn": "a.b", "pod": {"priorityClassName": name}}),
        ),
        (
            "spec.pod.imagePullSecrets[0].name",
            &|name| json!({"fqsn": "a.b", "pod": {"imagePullSecrets": [{"name": name}]}}),
        ),
    ];
    let scripts = |name: &str| {
        service(
            &json!({"fqsn": "a.b", "versions": [{"version": "1", "template": {}}], "scripts": [{"configMap": name}]}),
        )
    };
    for name in [
        "?watch=true&timeoutSeconds=100000",
        "../../kube-system/configmaps/x",
        "..",
        "a%2Fb",
        "A",
        "x\n",
        &"a".repeat(254),
    ] {
        for (field, spec) in fields {
            cluster.refuses(&run("bad", &spec(name)), field);
        }
        cluster.refuses(&scripts(name), "spec.scripts[0].configMap");
    }
    for name in ["a", "0", "kube-root-ca.crt", "a--b.c-d.1", &"a".repeat(253)] {
        for (_, spec) in fields {
            cluster.try_out(&run("good", &spec(name)));
        }
        cluster.try_out(&scripts(name));
    }
    // As in a pod's spec.
    let nothing = json!({"fqsn": "a.b", "pod": {"imagePullSecrets": [{"name": ""}]}});
    cluster.try_out(&run("good", &nothing));
}

#[test]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
fn a_run_is_fixed_but_for_four_fields() {
    let cluster = Cluster::new("fixed-runs");
    let inline = json!({
        "template": {"a": {"action": {"type": "cmd", "cmd": "true"}}},
        "params": {"x": {"y": 1}},
        "suspend": true,
    });
    let from = json!({"templateFrom": [{"configMap": "c", "key": "k"}]});
    for (name, spec) in [
        ("whole", &whole_run()),
        ("inline", &inline),
        ("from", &from),
    ] {
        cluster.create(&run(name, spec));
    }
    let patch = |name: &str, spec: &Value| {
        let patch = json!({"spec": spec}).to_string();
        let args = ["patch", "workflowrun", name, "--type=merge", "-p", &patch];
        cluster.kubectl(&args, "")
    };
    for (field, value) in [
        ("fqsn", json!("a.c")),
        ("version", json!("2")),
        ("version", Value::Null),
        ("params", json!({"n": 2})),
        ("params", Value::Null),
        ("paramsFrom", json!([])),
        ("executor", json!("process")),
        ("timeout", json!("1h")),
        ("onLost", Value::Null),
        ("podRetention", json!("Never")),
        ("serviceAccountName", json!("admin")),
        ("image", json!("other")),
        ("pod", json!({"labels": {"team": "b"}})),
        ("pod", Value::Null),
    ] {
        let said = patch("whole", &json!({field: value}));
        let words = format!("{field} is fixed when the run is made");
        assert!(
            !said.success && said.stderr.contains(&words),
            "{field} = {value}: {}{}",
            said.stdout,
            said.stderr
        );
    }
    for (name, with, words) in [
        (
            "inline",
            json!({"template": {"a": {"id": 1}}}),
            "template is fixed",
        ),
        (
            "inline",
            json!({"params": {"x": {"z": 1}}}),
            "params is fixed",
        ),
        ("inline", json!({"image": "new"}), "image is fixed"),
        (
            "from",
            json!({"templateFrom": [{"configMap": "c", "key": "l"}]}),
            "templateFrom is fixed",
        ),
        (
            "from",
            json!({"templateFrom": null, "fqsn": "a.b"}),
            "fqsn is fixed",
        ),
    ] {
        let said = patch(name, &with);
        assert!(
            !said.success && said.stderr.contains(words),
            "{name} {with}: {}{}",
            said.stdout,
            said.stderr
        );
    }

    let free = json!({"suspend": false, "parallelism": 9, "ttlSecondsAfterFinished": 60});
    patch("whole", &free).ok();
    let gone = json!({"suspend": null, "parallelism": null, "ttlSecondsAfterFinished": null});
    patch("whole", &gone).ok();
    patch("whole", &json!({"cancel": true, "parallelism": 1})).ok();
    for cancel in [json!(false), Value::Null] {
        let said = patch("whole", &json!({"cancel": cancel}));
        assert!(
            !said.success && said.stderr.contains("a cancelled run stays cancelled"),
            "{}",
            said.stderr
        );
    }
    // A label is no part of the spec, and a cancelled run can still be held back.
    cluster
        .kubectl(&["label", "workflowrun", "whole", "a=b"], "")
        .ok();
    patch("whole", &json!({"suspend": true})).ok();
}

/// A status with every field and as many nodes as may stand in it.
fn whole_status() -> WorkflowRunStatus {
    let node = |index: usize| {
        json!({
            "name": format!("node {index}"),
            "phase": "Failed",
            "returnCode": 0,
            "attempt": 2,
            "startTime": "2026-01-02T03:04:05.000006Z",
            "endTime": "2026-01-02T03:04:06.123456Z",
            "executor": "pod",
            "pod": {"name": "apscli-0", "uid": "1-2"},
            "exitCode": 3,
            "signal": 9,
            "output": {"ip": [1, null, "a"]},
            "errMsg": "no",
            "errCode": 17,
            "info": ["i"],
            "truncated": {"output": 9_007_199_254_740_991_u64},
            "reason": "ExitCode",
            "message": "exit code 3",
        })
    };
    let condition = json!({
        "type": "Failed", "status": "True", "reason": "NodeFailed", "message": "b failed",
        "lastTransitionTime": "2026-01-02T03:04:06Z", "observedGeneration": 1,
    });
    serde_json::from_value(json!({
        "phase": "Failed",
        "observedGeneration": 1,
        "progress": "100/100",
        "message": "node 1 failed",
        "returnCode": 0,
        "resolved": {"fqsn": "a.b", "version": "1.10", "hash": "ab", "source": "Service ns/s", "snapshot": ["x"]},
        "conditions": [condition],
        "startTime": "2026-01-02T03:04:05Z",
        "completionTime": "2026-01-02T03:04:17Z",
        "duration": "12s",
        "counts": {"total": 100, "pending": 0, "running": 0, "succeeded": 0, "failed": 100, "error": 0, "cancelled": 0, "skipped": 0},
        "cancelCause": "Timeout",
        "pages": 2,
        "nodes": (0..100).map(node).collect::<Vec<_>>(),
    }))
    .unwrap()
}

#[test]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
fn a_status_comes_back_whole_and_is_shown() {
    let cluster = Cluster::new("statuses");
    let spec = json!({"fqsn": "a.b", "version": "1.10"});
    let with_status = over(run("r", &spec), &json!({"status": {"phase": "Succeeded"}}));
    cluster.create(&with_status);
    assert_eq!(
        cluster.run("r").get("status"),
        None,
        "the status is a resource of its own"
    );
    let status = whole_status();
    let bare = NodeStatus {
        name: "c".to_owned(),
        phase: NodePhase::Pending,
        ..NodeStatus::default()
    };
    assert_eq!(
        serde_json::to_value(&bare).unwrap(),
        json!({"name": "c", "phase": "Pending"})
    );
    let applied = over(
        run("r", &json!({})),
        &json!({"spec": null, "status": status}),
    );
    let apply = [
        "apply",
        "--server-side",
        "--subresource=status",
        "--field-manager=apscli",
        "-f",
        "-",
    ];
    cluster.kubectl(&apply, &applied.to_string()).ok();
    let kept = cluster.run("r");
    let typed: WorkflowRun = serde_json::from_value(kept.clone()).unwrap();
    assert_eq!(typed.status.as_ref(), Some(&status));
    // Atomic: a hundred nodes are one entry.
    let owned = kept["metadata"]["managedFields"].to_string();
    assert!(owned.contains(r#""f:nodes":{}"#), "{owned}");
    assert!(owned.len() < 3000, "{} bytes: {owned}", owned.len());

    let table = cluster.kubectl(&["get", "wfr"], "").ok();
    let lines: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        lines[0],
        [
            "NAME", "SERVICE", "VERSION", "PHASE", "PROGRESS", "AGE", "DURATION", "MESSAGE"
        ]
    );
    assert_eq!(lines[1][..5], ["r", "a.b", "1.10", "Failed", "100/100"]);
    assert_eq!(lines[1][6..], ["12s", "node", "1", "failed"]);
    cluster
        .kubectl(
            &["wait", "--for=condition=Failed", "wfr/r", "--timeout=5s"],
            "",
        )
        .ok();
    // `kubectl get services` stays the core kind; the category has all of ours.
    let plain = cluster.kubectl(&["get", "services"], "");
    assert!(!plain.stdout.contains("FQSN"), "{}", plain.stdout);
    cluster.create(&service(&json!({
        "fqsn": "a.b", "defaultVersion": "1", "versions": [{"version": "1", "template": {}}],
    })));
    let table = cluster.kubectl(&["get", "apsvc"], "").ok();
    let head: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(
        head,
        ["NAME", "FQSN", "DEFAULT", "VERSION", "READY", "AGE"],
        "{table}"
    );
    let all = cluster.kubectl(&["get", "apscli", "-o", "name"], "").ok();
    let mut all: Vec<&str> = all.lines().collect();
    all.sort_unstable();
    assert_eq!(all, ["service.apscli.dev/s", "workflowrun.apscli.dev/r"]);
}

#[test]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
fn explain_has_words_for_everything() {
    let cluster = Cluster::new("explain");
    for path in [
        "workflowruns",
        "workflowruns.spec",
        "workflowruns.spec.paramsFrom.secret",
        "workflowruns.spec.pod.tolerations",
        "workflowruns.spec.pod.resources",
        "workflowruns.status",
        "workflowruns.status.conditions",
        "workflowruns.status.counts",
        "workflowruns.status.nodes",
        "services.apscli.dev",
        "services.apscli.dev.spec.versions",
        "services.apscli.dev.spec.versions.params",
        "services.apscli.dev.spec.scripts",
        "services.apscli.dev.status.versions",
        "workflowrunpages.spec.nodes",
    ] {
        let mut args = vec!["explain", path];
        let plain = path.replace("services.apscli.dev", "services");
        if plain != path {
            args = vec!["explain", &plain, "--api-version=apscli.dev/v1alpha1"];
        }
        let text = cluster.kubectl(&args, "").ok();
        assert!(text.contains("DESCRIPTION:"), "{text}");
        assert!(!text.contains("<no description>"), "{text}");
    }
    let spec = cluster
        .kubectl(&["explain", "workflowruns.spec.timeout"], "")
        .ok();
    assert!(spec.contains("such as 30s, 5m or 1h30m"), "{spec}");
}

/// Of several `Services` of one name the oldest counts, so an old one must not take another's name.
#[test]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
fn fqsn_of_a_service_is_fixed() {
    let cluster = Cluster::new("fixed-names");
    let version = json!({"version": "1", "templateText": "a: {}"});
    let of = |fqsn: &str| service(&json!({"fqsn": fqsn, "versions": [version]}));
    cluster.create(&of("a.b"));
    let name = of("a.b")["metadata"]["name"].as_str().unwrap().to_owned();
    let patch = |spec: Value| {
        let patch = json!({"spec": spec}).to_string();
        cluster.kubectl(
            &["patch", "apsvc", &name, "--type=merge", "--patch", &patch],
            "",
        )
    };
    let said = patch(json!({"fqsn": "a.c"}));
    assert!(
        !said.success
            && said
                .stderr
                .contains("fqsn is fixed when the Service is made"),
        "{}{}",
        said.stdout,
        said.stderr
    );
    patch(json!({"fqsn": "a.b", "image": "other"})).ok();
}
