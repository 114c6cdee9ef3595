//! One set of scenarios through both drivers: `apscli run` on this machine, and the operator with
//! pods that are really carried out. What became of each node must be the same.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::super::client;
use super::KUBECONFIG;
use super::kubectl::{Cluster, kubeconfig, run};
use super::kubelet::{self, Kubelet};
use super::operator::Operator;
use crate::program::{Place, finish, signal};

/// How long a run may take on a busy machine, in seconds.
const PATIENCE: u32 = 120;

/// What is done to a run while it goes on, once node `a` says by the file `begun` that it runs.
#[derive(Clone, Copy, PartialEq)]
enum Meanwhile {
    Nothing,
    /// Somebody cancels it.
    Cancel,
    /// What carries out `a` is taken away.
    Lose,
}

struct Scenario {
    name: &'static str,
    template: &'static str,
    params: &'static str,
    /// What is asked for beside: of `apscli run`, and in the spec of a run in the cluster.
    words: &'static [&'static str],
    spec: &'static str,
    meanwhile: Meanwhile,
}

const JOBS: &str = r#"
def ok(**kw): return 0
def fails(**kw): return 1
def code(**kw): return {"return_code": 7, "err_msg": "seven", "err_code": 77}
def raises(ip): raise ValueError("bad ip %s" % ip)
def truth(): return True
def echo(**kw):
    print("[INFO]said")
    return {"return_code": 0, "output": kw}
def leave():
    import os
    os._exit(0)
"#;

const fn scenario(name: &'static str, template: &'static str) -> Scenario {
    Scenario {
        name,
        template,
        params: "{}",
        words: &[],
        spec: "{}",
        meanwhile: Meanwhile::Nothing,
    }
}

#[allow(clippy::too_many_lines, reason = "a list")]
fn scenarios() -> Vec<Scenario> {
    vec![
        scenario(
            "every-ending",
            r#"
well: {action: {type: cmd, cmd: [sh, -c, 'echo "[OUTPUT]fine"']}}
fails: {action: {type: cmd, cmd: [sh, -c, 'echo "[ERR_MSG]no"; echo "[ERR_CODE]E3"; exit 3']}}
killed: {action: {type: cmd, cmd: [sh, -c, 'kill -9 $$$$']}}
missing: {action: {type: cmd, cmd: no-such-program, env: {PATH: /usr/bin}}}
unset: {action: {type: cmd, cmd: 'echo ${APSCLI_TEST_IS_NOT_SET}'}}
slow: {timeout: 500ms, action: {type: cmd, cmd: sleep 60}}
returns: {action: {type: api, module: jobs, function: fails, path: ["."]}}
code: {action: {type: api, module: jobs, function: code, path: ["."]}}
raises: {action: {type: api, module: jobs, function: raises, path: ["."]}, param: {ip: 1.1}}
nothing: {action: {type: api, module: jobs, function: truth, path: ["."]}}
leaves: {action: {type: api, module: jobs, function: leave, path: ["."]}}
no-module: {action: {type: api, module: not_there, function: f}}
"#,
        ),
        scenario(
            "diamond",
            r#"
a: {action: {type: cmd, cmd: "true"}}
b: {prev_nodes: [a], action: {type: cmd, cmd: "true"}}
c: {prev_nodes: [a], action: {type: cmd, cmd: "false"}}
d: {prev_nodes: [b, c], decision_expr: b || c, action: {type: cmd, cmd: "true"}}
"#,
        ),
        scenario(
            "after-a-failure",
            r#"
a: {action: {type: cmd, cmd: "false"}}
b: {prev_nodes: [a], action: {type: cmd, cmd: "true"}}
c: {prev_nodes: [b], action: {type: cmd, cmd: "true"}}
d: {prev_nodes: [a], decision_expr: a == 0, action: {type: cmd, cmd: "true"}}
"#,
        ),
        scenario(
            "unknown",
            r#"
ok: {action: {type: cmd, cmd: "true"}}
never: {prev_nodes: [ok], decision_expr: ok == 0, action: {type: cmd, cmd: "true"}}
unknown: {prev_nodes: [never], decision_expr: never == 1, action: {type: cmd, cmd: "true"}}
absorbed: {prev_nodes: [never, ok], decision_expr: never == 1 || ok, action: {type: cmd, cmd: "true"}}
denied: {prev_nodes: [never, ok], decision_expr: never == 1 && ok == 0, action: {type: cmd, cmd: "true"}}
told: {prev_nodes: [never], decision_expr: "never == 'N/A'", action: {type: cmd, cmd: "true"}}
untold: {prev_nodes: [ok], decision_expr: "ok != 'N/A'", action: {type: cmd, cmd: "true"}}
sum: {prev_nodes: [ok, told], decision_expr: ok + told >= 2, action: {type: cmd, cmd: "true"}}
"#,
        ),
        scenario(
            "run-condition-true",
            r#"{"param": {"a": {"id": 1, "action": {"type": "cmd", "cmd": "false"}},
                "b": {"id": "two", "prev_nodes": ["a"], "decision_expr": "a == 0", "action": {"type": "cmd", "cmd": "true"}}},
                "decision_expr": "b"}"#,
        ),
        scenario(
            "run-condition-false",
            r#"{"param": {"a": {"action": {"type": "cmd", "cmd": "true"}}}, "decision_expr": "a == 0"}"#,
        ),
        scenario(
            "run-condition-unknown",
            r#"{"param": {"a": {"action": {"type": "cmd", "cmd": "false"}},
                "b": {"prev_nodes": ["a"], "action": {"type": "cmd", "cmd": "true"}}},
                "decision_expr": "b == 1"}"#,
        ),
        scenario(
            "names",
            r#"
align-1.bam: {action: {type: cmd, cmd: "true"}}
"日本 語": {prev_nodes: [align-1.bam], decision_expr: "`align-1.bam` == 1", action: {type: cmd, cmd: "false"}}
"..": {prev_nodes: ["日本 語"], decision_expr: "`日本 語` == 0", action: {type: cmd, cmd: "true"}}
"#,
        ),
        // `1.0` in an object of a cluster is `1`, and a null in a node's output goes: that is
        // Kubernetes', not ours, so neither stands here.
        Scenario {
            params: r#"{"n": 7, "f": 1.5, "t": "a \"b\" $x ${HOME} %s\n'c'", "yes": true, "none": null,
                "list": [1, "two", null], "map": {"k": [1.25]}, "dash": "-rf", "empty": ""}"#,
            ..scenario(
                "params",
                r#"
cmd:
  action: {type: cmd, cmd: [sh, -c, 'for it; do echo "[OUTPUT]<$$it>"; done', sh]}
  param: {n: $n, f: $f, text: $t, y: $yes, nothing: $none, list: $list, map: $map, dash: $dash, e: $empty,
          spliced: "n=${n} in $$5", plain: --help, large: 1180591620717411303424}
api:
  action: {type: api, module: jobs, function: echo, path: ["."]}
  param: {n: $n, f: $f, text: $t, y: $yes, list: $list, map: $map, dash: $dash, e: $empty}
"#,
            )
        },
        scenario(
            "words",
            r#"
a:
  action: {type: cmd, cmd: [sh, -c, 'printf "[OUTPUT]one\n[INFO]i\nplain\n[OUTPUT]  two \n[ERR_MSG]\n[ERR_CODE]7\n[output]no\n é[OUTPUT]no\n[OUTPUT]last"']}
b: {action: {type: cmd, cmd: [sh, -c, 'echo "[OUTPUT]to stderr" >&2'], env: {X: "a ${n} b"}}}
"#,
        ),
        Scenario {
            words: &["--parallel", "1"],
            spec: r#"{"parallelism": 1}"#,
            ..scenario(
                "one-at-a-time",
                r"
a: {action: {type: cmd, cmd: ./alone.sh}}
b: {action: {type: cmd, cmd: ./alone.sh}}
c: {action: {type: cmd, cmd: ./alone.sh}}
",
            )
        },
        Scenario {
            words: &["--timeout", "2s"],
            spec: r#"{"timeout": "2s"}"#,
            ..scenario(
                "over-its-time",
                r#"
a: {action: {type: cmd, cmd: sleep 60}}
quick: {action: {type: cmd, cmd: "true"}}
b: {prev_nodes: [a], decision_expr: a == 0, action: {type: cmd, cmd: "true"}}
"#,
            )
        },
        Scenario {
            meanwhile: Meanwhile::Cancel,
            ..scenario("cancelled", LONG)
        },
        Scenario {
            meanwhile: Meanwhile::Lose,
            ..scenario("lost", LONG)
        },
        Scenario {
            words: &["--on-lost", "retry"],
            spec: r#"{"onLost": "Retry"}"#,
            meanwhile: Meanwhile::Lose,
            ..scenario("lost-and-tried-again", LONG)
        },
    ]
}

/// Its first node goes on for long the first time it is tried.
const LONG: &str = r#"
a: {action: {type: cmd, cmd: ./long.sh}}
b: {prev_nodes: [a], action: {type: cmd, cmd: "true"}}
c: {prev_nodes: [a], decision_expr: a == 0, action: {type: cmd, cmd: "true"}}
"#;

impl Scenario {
    /// The folder of the template, the same for both drivers.
    fn place(&self) -> Place {
        let place = Place::new();
        place.write("t.yaml", self.template);
        place.write("p.json", self.params);
        place.write("jobs.py", JOBS);
        let long = "[ -e \"${0%/*}/begun\" ] || { echo 1 >\"${0%/*}/begun\"; exec sleep 60; }";
        place.script("long.sh", long);
        let alone = "mkdir \"${0%/*}/lock\" && sleep 0.3 && rmdir \"${0%/*}/lock\"";
        place.script("alone.sh", alone);
        place
    }

    fn on_this_machine(&self) -> Value {
        let place = self.place();
        let files = ["run", "--template", "t.yaml", "--params", "p.json"];
        let more = ["--output", "json", "--log-dir", "run"];
        let mut words = [&files[..], &more].concat();
        // Where it is taken up again is where that is said.
        if self.meanwhile != Meanwhile::Lose {
            words.extend(self.words);
        }
        let child = place.start(&words);
        if self.meanwhile != Meanwhile::Nothing {
            place.until_written("begun");
        }
        match self.meanwhile {
            Meanwhile::Nothing => {}
            Meanwhile::Cancel => signal(&child, Signal::INT),
            Meanwhile::Lose => {
                signal(&child, Signal::KILL);
                finish(child);
                let resume = ["run", "--resume", "run", "--output", "json"];
                return place.apscli(&[&resume[..], self.words].concat()).json();
            }
        }
        finish(child).json()
    }

    fn in_the_cluster(&self, cluster: &Cluster, place: &Place) -> Value {
        let template = format!("--from-file=template={}", place.path("t.yaml").display());
        cluster
            .kubectl(&["create", "configmap", self.name, &template], "")
            .ok();
        let mut spec: Value = serde_json::from_str(self.spec).unwrap();
        spec["params"] = serde_json::from_str(self.params).unwrap();
        spec["templateFrom"] = json!([{"configMap": self.name, "key": "template"}]);
        spec["pod"] = json!({"annotations": kubelet::annotations()});
        cluster.create(&run(self.name, &spec));
        if self.meanwhile != Meanwhile::Nothing {
            place.until_written("begun");
        }
        match self.meanwhile {
            Meanwhile::Nothing => {}
            Meanwhile::Cancel => drop(cluster.apscli(&["cancel", self.name]).ok()),
            Meanwhile::Lose => {
                let of_run = format!("--selector=apscli.dev/run={}", self.name);
                cluster
                    .kubectl(&["delete", "pods", &of_run, "--wait=false"], "")
                    .ok();
            }
        }
        let what = format!("wfr/{}", self.name);
        cluster.wait(&what, "jsonpath={.status.completionTime}", PATIENCE);
        let said = cluster.apscli(&["get", self.name, "--output", "json"]);
        serde_json::from_str(&said.ok()).unwrap()
    }
}

/// The transcript of a result: what both drivers must say alike, a line a node.
fn transcript(result: &Value) -> String {
    let nodes: BTreeMap<&String, &Value> = result["output"].as_object().unwrap().iter().collect();
    let mut lines: Vec<String> = nodes
        .iter()
        .map(|(name, node)| {
            let mut said = node["result"].clone();
            let mut reason = node["reason"].as_str().unwrap_or("-").to_owned();
            // The cluster's result does not tell a cmd from an api, so it has no code for either.
            let code = said["err_code"].as_str().unwrap_or_default().to_owned();
            if code.starts_with("apscli_run_") {
                said.as_object_mut().unwrap().remove("err_code");
            }
            // What is lost is lost in different ways.
            if reason.starts_with("Lost") {
                "Lost".clone_into(&mut reason);
                said.as_object_mut().unwrap().remove("err_msg");
            }
            format!(
                "{name}: {} started={} attempt={} reason={reason} {said}",
                node["status"],
                node["should_I_start"],
                node.get("attempt").unwrap_or(&json!(1)),
            )
        })
        .collect();
    lines.push(format!("run: {}", result["return_code"]));
    lines.join("\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
async fn both_drivers_say_the_same() {
    let cluster = Cluster::new("parity");
    let client = client(KUBECONFIG).await;
    let operator = Operator::of(&cluster).ready();
    let scenarios = scenarios();
    assert!(scenarios.len() >= 12);
    let places: Vec<Place> = scenarios.iter().map(Scenario::place).collect();
    let folders = scenarios.iter().zip(&places);
    let folders = folders.map(|(it, place)| (it.name.to_owned(), place.dir.path().to_owned()));
    let kubelet = Kubelet::start(&client, &cluster.namespace, folders.collect(), None);
    let mut words = Vec::new();
    for (scenario, place) in scenarios.iter().zip(&places) {
        let (here, there) = tokio::task::block_in_place(|| {
            (
                scenario.on_this_machine(),
                scenario.in_the_cluster(&cluster, place),
            )
        });
        let (here, there) = (transcript(&here), transcript(&there));
        if here != there {
            words.push(format!(
                "{}: on this machine\n{here}\nin the cluster\n{there}\n",
                scenario.name
            ));
        }
    }
    assert!(words.is_empty(), "{}", words.join("\n"));
    kubelet.abort();
    operator.ends();
}

/// What nodes print, raise and fail with holds a secret's value; nobody else may.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
async fn a_secret_is_found_nowhere() {
    const CANARY: &str = "canary-Zm9vYmFy-7391";
    let cluster = Cluster::new("canary");
    let client = client(KUBECONFIG).await;
    let shared = format!("--shared-namespace={}", cluster.namespace);
    let namespace = format!("--namespace={}", cluster.namespace);
    let words = [
        namespace.as_str(),
        &shared,
        "--leader-election=false",
        "--log-level=debug",
    ];
    let operator = Operator::start(&kubeconfig(), &[], &words).ready();
    let place = Place::new();
    let secret = place.write("secret", CANARY);
    let raises = "def f(word): raise ValueError('no ' + word)\n";
    place.write("jobs.py", raises);
    // Enough nodes for pages.
    let mut template = String::from(
        r#"
prints: {action: {type: cmd, cmd: [sh, -c, 'echo "$$0"; echo "[OUTPUT]$$0"; echo "[INFO]x$$0"; exit 3', $word]}}
env: {action: {type: cmd, cmd: [sh, -c, 'echo "[ERR_MSG]$$W"; exit 1'], env: {W: $word}}}
raises: {action: {type: api, module: jobs, function: f, path: ["."]}, param: {word: $word}}
missing: {action: {type: cmd, cmd: ["/no/such/${word}", "${word}"]}}
unset: {action: {type: cmd, cmd: "echo ${APSCLI_TEST_IS_NOT_SET}${word}"}}
"#,
    );
    for at in 0..100 {
        let _ = writeln!(template, "n{at}: {{action: {{type: cmd, cmd: 'true'}}}}");
    }
    let file = place.write("t.yaml", template);
    let from = format!("--from-file=template={}", file.display());
    cluster
        .kubectl(&["create", "configmap", "t", &from], "")
        .ok();
    let literal = format!("--from-literal=key={CANARY}");
    cluster
        .kubectl(&["create", "secret", "generic", "s", &literal], "")
        .ok();
    let folders = BTreeMap::from([("c".to_owned(), place.dir.path().to_owned())]);
    let kubelet = Kubelet::start(&client, &cluster.namespace, folders, Some(secret));
    cluster.create(&run(
        "c",
        &json!({
            "templateFrom": [{"configMap": "t", "key": "template"}],
            "paramsFrom": [{"secret": {"name": "s", "key": "key", "param": "word"}}],
            "pod": {"annotations": kubelet::annotations()},
        }),
    ));
    cluster.wait("wfr/c", "condition=Failed", PATIENCE);
    let result = cluster.apscli(&["get", "c", "--output", "json"]).ok();
    // It was really there: it is masked where it was said.
    let said: Value = serde_json::from_str(&result).unwrap();
    assert_eq!(said["output"]["prints"]["result"]["output"], "***");
    assert_eq!(said["output"]["env"]["result"]["err_msg"], "***");
    let exception = &said["output"]["raises"]["result"]["err_msg"];
    assert_eq!(*exception, "ValueError: no ***");
    let mut texts = vec![
        ("the result", result),
        ("the operator's log", operator.log()),
        ("the metrics", operator.metrics().text),
    ];
    for kind in ["wfr", "workflowrunpages", "configmaps", "events", "pods"] {
        let objects = cluster.get(&[kind]);
        assert!(!objects["items"].as_array().unwrap().is_empty(), "{kind}");
        texts.push((kind, objects.to_string()));
    }
    let table = cluster.kubectl(&["get", "wfr,pods"], "").ok();
    let described = cluster.kubectl(&["describe", "wfr", "c"], "").ok();
    texts.extend([("the table", table), ("the description", described)]);
    let base64 = "Y2FuYXJ5LVptOXZZbUZ5LTczOTE";
    for (what, text) in texts {
        assert!(!text.contains(CANARY), "{what} has the secret");
        assert!(!text.contains(base64), "{what} has the secret in base64");
    }
    assert!(operator.log().contains("the run moved"));
    kubelet.abort();
    operator.ends();
}
