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
    /// Waits until this pod is no more.
    UntilGone(&'static str),
    /// Waits until the run is in this phase.
    UntilPhase(&'static str),
    /// Waits until it is on record that the run is cancelled: whoever leads knows.
    UntilCancelled,
    /// Waits as long as a watch may be half open, so that whoever leads knows what was done before.
    UntilKnown,
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
    /// The user deletes the run, which a finalizer of somebody keeps.
    AskToDeleteRun,
    /// Takes that finalizer off; waits until the run is no more.
    LetRunGo,
    /// Waits a while, in which this node must not begin.
    NotBegun(&'static str),
    /// Somebody makes a pod where this one is to be.
    Squat(&'static str),
    /// Somebody takes the pod away by force, and makes one of the same name.
    Replace(&'static str),
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
    /// Objects, by resource and name, that the operator is told of so that it cannot read them.
    pub garbled: Vec<(&'static str, &'static str)>,
    /// Whether its nodes are processes beside the operator.
    pub processes: bool,
    /// Whether all that goes wrong is that the operator is killed, and all pods are deleted before
    /// it is there again.
    pub pods_taken: bool,
    /// Whether two operators stand for election all the time, and what goes wrong does so at their
    /// Lease.
    pub elected: bool,
}

fn node_of(prev: &[&str], cmd: &str) -> Value {
    let mut node = json!({"action": {"type": "cmd", "cmd": cmd}});
    if !prev.is_empty() {
        node["prev_nodes"] = json!(prev);
    }
    node
}

pub fn node(prev: &[&str], more: Value) -> Value {
    let mut node = node_of(prev, "true");
    let fields = node.as_object_mut().unwrap();
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

/// How scenarios are called whose pods are deleted once their result is on record.
pub const PODS_GO: &str = "pods not kept";
/// One in which that has come to pass of a before c begins.
pub const A_IS_GONE: &str = "pods not kept, one gone";

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
        garbled: Vec::new(),
        processes: false,
        pods_taken: false,
        elected: false,
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
    let mut kept = b_forever(abc());
    kept["metadata"]["finalizers"] = json!(["example.com/kept"]);
    // A fake kubelet deletes by the name alone, and would delete what somebody makes in its place.
    let never_stops = [FOREVER_B, ("stop-seconds", "600")];
    let never_stops = run(json!({"template": abc()}), &never_stops);
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
                Step::UntilGone("a/1"),
                Step::End("b/1", 0),
            ],
            ..plain_scenario(
                A_IS_GONE,
                run(
                    json!({"template": abc(), "podRetention": "Never"}),
                    &[FOREVER_B],
                ),
                "Succeeded",
            )
        },
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
                Step::NotBegun("c"),
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
            run(json!({"template": abc(), "timeout": "60s"}), &[FOREVER_B]),
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
        Scenario {
            steps: vec![
                Step::UntilRuns("b/1"),
                Step::AskToDeleteRun,
                Step::UntilKnown,
                Step::End("b/1", 0),
                Step::NotBegun("c"),
                Step::LetRunGo,
            ],
            ends: None,
            ..plain_scenario("run deleted and held", kept, "")
        },
        Scenario {
            steps: vec![
                Step::UntilRuns("b/1"),
                Step::Squat("c/1"),
                Step::End("b/1", 0),
            ],
            ..plain_scenario("squatted name", b_forever(abc()), "Failed")
        },
        Scenario {
            steps: vec![
                Step::UntilRuns("b/1"),
                // What takes a pod with its finalizer, before it is on record, leaves no trace of it.
                Step::UntilNode("b", "Running"),
                Step::Patch(json!({"cancel": true})),
                Step::UntilCancelled,
                Step::Replace("b/1"),
            ],
            ..plain_scenario("pod replaced", never_stops, "Cancelled")
        },
        Scenario {
            before: poisoned(),
            garbled: vec![("workflowruns", "z-garbled"), ("services", "z-garbled")],
            ..plain_scenario(
                "poisoned objects beside",
                run(json!({"template": abc()}), &[]),
                "Succeeded",
            )
        },
        pods_taken("pods taken", json!({})),
        pods_taken("pods taken, onLost: Retry", json!({"onLost": "Retry"})),
        processes("processes", json!({})),
        processes("processes, onLost: Retry", json!({"onLost": "Retry"})),
        Scenario {
            elected: true,
            // It lasts until the Lease was renewed.
            ..plain_scenario(
                "the Lease",
                run(json!({"template": abc()}), &[("seconds", "4")]),
                "Succeeded",
            )
        },
    ]
}

/// Objects that harm whoever believes in them.
fn poisoned() -> Vec<Value> {
    let named = |name: &str, template: Value| {
        let mut run = run(json!({"template": template}), &[]);
        run["metadata"]["name"] = json!(name);
        run
    };
    let mut garbled = service(diamond());
    garbled["metadata"]["name"] = json!("z-garbled");
    garbled["spec"]["fqsn"] = json!("tests.garbled");
    let long = format!("z{}", "-1".repeat(126));
    let odd = format!("a/../b\u{0} {}", "x".repeat(300));
    vec![
        named("z-garbled", diamond()),
        named("z-cycle", json!({"a": plain(&["b"]), "b": plain(&["a"])})),
        named("z-itself", json!({"a": plain(&["a"])})),
        named("z-nothing", json!({})),
        named(&long, json!({odd: plain(&[])})),
        garbled,
    ]
}

/// A diamond of pods that run long enough to be deleted while they do.
fn pods_taken(name: &'static str, spec: Value) -> Scenario {
    let mut spec = spec;
    spec["template"] = diamond();
    Scenario {
        pods_taken: true,
        ..plain_scenario(name, run(spec, &[("seconds", "3")]), "Succeeded")
    }
}

/// A diamond of processes, of which b takes a while. Each tells `effects.rs` that it has begun.
fn processes(name: &'static str, spec: Value) -> Scenario {
    let did = |node: &str, prev: &[&str], seconds: &str| {
        let mut template = node_of(prev, "./did.sh");
        template["param"] = json!({"n": node, "s": seconds});
        template
    };
    let template = json!({
        "a": did("a", &[], "0"), "b": did("b", &["a"], "0.4"),
        "c": did("c", &["a"], "0"), "d": did("d", &["b", "c"], "0"),
    });
    // The connection is there as long as the process is.
    let script = format!(
        "#!/bin/bash\nset -e\nexec 3<>/dev/tcp/{}\necho \"$2\" >&3\nsleep \"$4\"\n",
        super::effects::PLACE
    );
    let mut service = service(template);
    service["spec"]["scripts"] = json!([{"configMap": "scripts"}]);
    service["spec"]["network"] = json!(true);
    let mut scripts = scripts();
    scripts["data"] = json!({"did.sh": script});
    let mut spec = spec;
    spec["fqsn"] = json!("tests.s");
    spec["executor"] = json!("process");
    let mut run = run(spec, &[]);
    run["spec"].as_object_mut().unwrap().remove("pod");
    Scenario {
        before: vec![scripts, service],
        processes: true,
        ..plain_scenario(name, run, "Succeeded")
    }
}
