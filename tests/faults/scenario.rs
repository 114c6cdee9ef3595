//! What is run, and what its user and others do meanwhile.
//!
//! Must not know faults: a scenario ends the same with them and without.

use apscli::engine::event::{Ending, Outcome};
use apscli::executor::frame;
use serde_json::{Map, Value, json};

/// What is done from outside, in order; each waits for the one before.
#[derive(Clone, Debug)]
pub enum Step {
    /// Waits until this pod (`NODE/ATTEMPT`) runs.
    UntilRuns(&'static str),
    /// Waits until a node is in this phase, on record.
    UntilNode(&'static str, &'static str),
    /// Waits until the run is in this phase.
    UntilPhase(&'static str),
    /// Changes the run's spec.
    Patch(Value),
    /// Changes the `Service` named `s`.
    PatchService(Value),
    /// The pod's container ends with this exit code.
    End(&'static str, i32),
    /// Somebody deletes the pod.
    DeletePod(&'static str),
    /// The user deletes the run; waits until it is no more.
    DeleteRun,
    /// Creates the run again, under the same name.
    Recreate,
}

/// Something that is run.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub name: &'static str,
    /// Objects that are there before the operator starts.
    pub before: Vec<Value>,
    /// The run, named `r`.
    pub run: Value,
    pub steps: Vec<Step>,
    /// How the run ends; none: it is gone.
    pub ends: Option<&'static str>,
    /// Of the pods that are created, all but so many are too alike to be tried one by one.
    pub sample: Option<usize>,
}

pub fn node(prev: &[&str], more: Value) -> Value {
    let mut node = json!({"action": {"type": "cmd", "cmd": "true"}});
    let fields = node.as_object_mut().unwrap();
    if !prev.is_empty() {
        fields.insert("prev_nodes".to_owned(), json!(prev));
    }
    if let Value::Object(more) = more {
        fields.extend(more);
    }
    node
}

pub fn plain(prev: &[&str]) -> Value {
    node(prev, Value::Null)
}

/// A run of a template; `script` holds annotations for the fake nodes, without their prefix.
pub fn run(spec: Value, script: &[(&str, &str)]) -> Value {
    let annotations: Map<String, Value> = script
        .iter()
        .map(|(name, value)| (format!("fake.apscli.dev/{name}"), json!(value)))
        .collect();
    let mut spec = spec;
    spec["pod"] = json!({"annotations": annotations});
    json!({
        "apiVersion": "apscli.dev/v1alpha1",
        "kind": "WorkflowRun",
        "metadata": {"name": "r"},
        "spec": spec,
    })
}

/// What a container says that has ended with this exit code.
pub fn said(code: i32) -> String {
    frame::encode(&Outcome::silent(Ending::Exited(code)), 4096)
}

/// The scenario whose pods are deleted once their result is on record.
pub const PODS_GO: &str = "pods not kept";

const FOREVER_B: (&str, &str) = ("seconds.b", "forever");

fn diamond() -> Value {
    json!({"a": plain(&[]), "b": plain(&["a"]), "c": plain(&["a"]), "d": plain(&["b", "c"])})
}

pub fn chain(names: &[&str]) -> Value {
    let mut template = Map::new();
    for (place, name) in names.iter().enumerate() {
        let prev = place.checked_sub(1).map(|before| names[before]);
        template.insert((*name).to_owned(), plain(prev.as_slice()));
    }
    Value::Object(template)
}

fn service(template: Value) -> Value {
    json!({
        "apiVersion": "apscli.dev/v1alpha1",
        "kind": "Service",
        "metadata": {"name": "s"},
        "spec": {"fqsn": "tests.s", "defaultVersion": "1", "versions": [{"version": "1", "template": template}]},
    })
}

fn scripts() -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "scripts"}, "data": {"x.sh": "#!/bin/sh\n"}})
}

pub fn plain_scenario(name: &'static str, run: Value, ends: &'static str) -> Scenario {
    Scenario {
        name,
        before: Vec::new(),
        run,
        steps: Vec::new(),
        ends: Some(ends),
        sample: None,
    }
}

/// All that is run.
#[allow(clippy::too_many_lines, reason = "a list")]
pub fn all() -> Vec<Scenario> {
    let b_forever = |template: Value| run(json!({"template": template}), &[FOREVER_B]);
    let abc = || chain(&["a", "b", "c"]);
    let failed = said(1);
    let fails = [
        ("exit-code.b", "1"),
        ("termination-message.b", failed.as_str()),
    ];
    let skipped = json!({"param": {
        "a": plain(&[]),
        "b": node(&["a"], json!({"decision_expr": "a == 0"})),
        "c": node(&["b"], json!({"decision_expr": "b == 1"})),
        "d": node(&["a", "b"], json!({"decision_expr": "a == 1 && b == 'N/A'"})),
    }, "decision_expr": "d"});
    let failing = json!({"param": {
        "a": plain(&[]),
        "b": plain(&["a"]),
        "c": plain(&["a"]),
        "d": node(&["b", "c"], json!({"decision_expr": "b || c"})),
    }, "decision_expr": "d"});
    let mut fan = Map::new();
    fan.insert("first".to_owned(), plain(&[]));
    for number in 1..300 {
        fan.insert(format!("n{number}"), plain(&["first"]));
    }
    let mut by_fqsn = service(diamond());
    by_fqsn["spec"]["scripts"] = json!([{"configMap": "scripts"}]);
    vec![
        plain_scenario(
            "diamond",
            run(json!({"template": diamond()}), &[]),
            "Succeeded",
        ),
        plain_scenario(
            "chain of 5",
            run(json!({"template": chain(&["a", "b", "c", "d", "e"])}), &[]),
            "Succeeded",
        ),
        plain_scenario(
            "skipped branch",
            run(json!({"template": skipped}), &[]),
            "Succeeded",
        ),
        plain_scenario(
            "failing branch, b || c",
            run(json!({"template": failing}), &fails),
            "Succeeded",
        ),
        plain_scenario(
            PODS_GO,
            run(json!({"template": abc(), "podRetention": "Never"}), &[]),
            "Succeeded",
        ),
        Scenario {
            steps: vec![
                Step::UntilRuns("b/1"),
                Step::DeletePod("b/1"),
                Step::UntilRuns("b/2"),
                Step::End("b/2", 0),
            ],
            ..plain_scenario(
                "onLost: Retry",
                run(json!({"template": abc(), "onLost": "Retry"}), &[FOREVER_B]),
                "Succeeded",
            )
        },
        Scenario {
            steps: vec![
                Step::UntilRuns("b/1"),
                Step::UntilNode("c", "Succeeded"),
                Step::Patch(json!({"cancel": true})),
            ],
            ..plain_scenario("cancel in the middle", b_forever(diamond()), "Cancelled")
        },
        Scenario {
            steps: vec![
                Step::UntilRuns("b/1"),
                Step::Patch(json!({"suspend": true})),
                Step::UntilPhase("Suspended"),
                Step::End("b/1", 0),
                Step::UntilNode("b", "Succeeded"),
                Step::Patch(json!({"suspend": false})),
            ],
            ..plain_scenario("suspend, resume", b_forever(abc()), "Succeeded")
        },
        plain_scenario(
            "timeout of a node",
            b_forever(json!({
                "a": plain(&[]),
                "b": node(&["a"], json!({"timeout": "2s"})),
                "c": node(&["b"], json!({"decision_expr": "b == 0"})),
            })),
            "Failed",
        ),
        plain_scenario(
            "timeout of the run",
            run(json!({"template": abc(), "timeout": "10s"}), &[FOREVER_B]),
            "Failed",
        ),
        Scenario {
            sample: Some(5),
            ..plain_scenario("300 nodes", run(json!({"template": fan}), &[]), "Succeeded")
        },
        Scenario {
            before: vec![scripts(), by_fqsn],
            ..plain_scenario("by FQSN", run(json!({"fqsn": "tests.s"}), &[]), "Succeeded")
        },
        Scenario {
            before: vec![service(abc())],
            steps: vec![
                Step::UntilRuns("b/1"),
                Step::PatchService(
                    json!({"spec": {"versions": [{"version": "1", "template": {"z": plain(&[])}}]}}),
                ),
                Step::End("b/1", 0),
            ],
            ..plain_scenario(
                "service changed in flight",
                run(json!({"fqsn": "tests.s"}), &[FOREVER_B]),
                "Succeeded",
            )
        },
        Scenario {
            steps: vec![Step::UntilRuns("b/1"), Step::DeleteRun],
            ends: None,
            ..plain_scenario("run deleted", b_forever(abc()), "")
        },
        Scenario {
            steps: vec![
                Step::UntilRuns("b/1"),
                Step::DeleteRun,
                Step::Recreate,
                Step::UntilRuns("b/1"),
                Step::End("b/1", 0),
            ],
            ..plain_scenario("run deleted and made again", b_forever(abc()), "Succeeded")
        },
    ]
}
