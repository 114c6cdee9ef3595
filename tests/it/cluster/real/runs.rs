//! Runs on real nodes, with the operator as it is installed. All namespaces are held to the
//! `restricted` standard.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use apscli::api::workflow_run::{NodePhase, RunPhase};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};

use super::house::operator;
use super::{
    APSCLI, BUSYBOX, EXAMPLE, KUBECONFIG, ROOT, answer, apply, client, entry, load_busybox,
    namespace, over, pod, pods_of, run, status_when,
};
use crate::program::until;

/// What a local run of the same gives, as JSON.
fn local(arguments: &[&str]) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let mut all = vec!["run", "--output", "json", "--log-dir"];
    all.push(log.to_str().unwrap());
    all.extend(arguments);
    let done = answer(APSCLI, &all);
    let told = String::from_utf8_lossy(&done.stderr);
    serde_json::from_slice(&done.stdout).unwrap_or_else(|error| panic!("{error}: {told}"))
}

/// What `apscli get` tells of a run, as JSON.
fn got(namespace: &str, name: &str) -> Value {
    let told = run(
        APSCLI,
        &["get", "--namespace", namespace, name, "--output", "json"],
    );
    serde_json::from_str(&told).unwrap()
}

/// A result with its times masked, where they are times.
fn without_times(mut result: Value) -> Value {
    for node in result["output"].as_object_mut().unwrap().values_mut() {
        for name in ["start_time", "end_time"] {
            if let Some(time) = node.get_mut(name) {
                let shape: String = (time.as_str().unwrap().chars())
                    .map(|c| if c.is_ascii_digit() { '0' } else { c })
                    .collect();
                *time = shape.into();
            }
        }
    }
    result
}

/// The names of both results' nodes, and each node's own result, are the same.
fn same(here: Value, there: Value) {
    let (here, there) = (without_times(here), without_times(there));
    for (name, node) in here["output"].as_object().unwrap() {
        assert_eq!(*node, there["output"][name], "{name}");
    }
    assert_eq!(here, there);
}

/// `kubectl get workflowruns --watch`, and what it has printed.
struct Watch(Child, Arc<Mutex<Vec<String>>>);

impl Watch {
    fn begin(namespace: &str) -> Self {
        let mut child = Command::new("kubectl")
            .args(["get", "workflowruns", "--watch", "--namespace", namespace])
            .env("KUBECONFIG", std::env::var_os(KUBECONFIG).unwrap())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let printed = BufReader::new(child.stdout.take().unwrap());
        let heard = Arc::clone(&lines);
        thread::spawn(move || {
            for line in printed.lines().map_while(Result::ok) {
                heard.lock().unwrap().push(line);
            }
        });
        Self(child, lines)
    }

    fn printed(&self) -> Vec<String> {
        self.1.lock().unwrap().clone()
    }

    /// Waits for a line with these words.
    fn until_printed(&self, words: &[&str]) {
        let has_all = |line: &String| words.iter().all(|word| line.contains(word));
        until(&words.join(" "), || self.printed().iter().any(has_all));
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn example(version: &str) -> Value {
    let params = format!("{ROOT}/metadata/oracle/peo/vm_allocation/vm_allocation.param.json");
    let params: Value = serde_json::from_str(&std::fs::read_to_string(params).unwrap()).unwrap();
    json!({"fqsn": EXAMPLE, "version": version, "params": params})
}

fn local_example(version: &str) -> Value {
    let metadata = format!("{ROOT}/metadata");
    let params = format!("{metadata}/oracle/peo/vm_allocation/vm_allocation.param.json");
    local(&[
        "--metadata",
        &metadata,
        "--fqsn",
        EXAMPLE,
        "--version",
        version,
        "--params",
        &params,
    ])
}

#[tokio::test]
#[ignore = "needs a cluster with real nodes and root: tests/cluster/with --nodes real"]
async fn the_example_goes_as_it_does_here() {
    let client = client(KUBECONFIG).await;
    let _shared = operator().await;
    let namespace = namespace(&client).await;
    let watch = Watch::begin(&namespace);
    // Another run, which never begins, tells that the watch is there, so that it misses nothing.
    let mut never = example("1.0");
    never["suspend"] = json!(true);
    apply(&namespace, "never", &never);
    watch.until_printed(&["never"]);
    for (version, phase) in [("1.0", RunPhase::Failed), ("1.1", RunPhase::Succeeded)] {
        let name = format!("vm-{}", version.replace('.', "-"));
        apply(&namespace, &name, &example(version));
        let here = local_example(version);
        let status = over(&client, &namespace, &name).await;
        assert_eq!(status.phase, Some(phase), "{status:#?}");
        let phases: Vec<(&str, NodePhase)> = (status.nodes.iter())
            .map(|node| (node.name.as_str(), node.phase))
            .collect();
        let (well, failed) = (NodePhase::Succeeded, NodePhase::Failed);
        assert_eq!(
            phases,
            [("a", well), ("b", well), ("c", failed), ("d", well)]
        );
        let ended = |node: &str| entry(&status, node).end_time.clone().unwrap();
        let began = |node: &str| entry(&status, node).start_time.clone().unwrap();
        assert!(began("d").0 >= ended("b").0 && began("b").0 >= ended("a").0);
        same(here, got(&namespace, &name));
        let pods = pods_of(&client, &namespace, &name).await;
        assert!(pods.values().all(|pods| pods.len() == 1), "{pods:#?}");
        assert_eq!(pods.len(), 4);
    }
    watch.until_printed(&["vm-1-1", "Succeeded"]);
    assert_eq!(recorded(&watch.printed()), RECORDED.trim_start());
}

/// What `kubectl get workflowruns --watch` prints meanwhile: of each progress the last line that is
/// not about a pod that comes.
const RECORDED: &str = "
NAME SERVICE VERSION PHASE PROGRESS AGE DURATION MESSAGE
vm-1-0 oracle.peo.cloud.vm_allocation 0s
vm-1-0 oracle.peo.cloud.vm_allocation 1.0 Running 0/4 0s running a
vm-1-0 oracle.peo.cloud.vm_allocation 1.0 Running 1/4 0s …
vm-1-0 oracle.peo.cloud.vm_allocation 1.0 Running 2/4 0s running b
vm-1-0 oracle.peo.cloud.vm_allocation 1.0 Running 3/4 0s running d
vm-1-0 oracle.peo.cloud.vm_allocation 1.0 Failed 4/4 0s 0s c: exit code 1
vm-1-1 oracle.peo.cloud.vm_allocation 0s
vm-1-1 oracle.peo.cloud.vm_allocation 1.1 Running 0/4 0s running a
vm-1-1 oracle.peo.cloud.vm_allocation 1.1 Running 1/4 0s …
vm-1-1 oracle.peo.cloud.vm_allocation 1.1 Running 2/4 0s running b
vm-1-1 oracle.peo.cloud.vm_allocation 1.1 Running 3/4 0s running d
vm-1-1 oracle.peo.cloud.vm_allocation 1.1 Succeeded 4/4 0s 0s c: exit code 1
";

/// The lines as [`RECORDED`] has them, without the run that never begins: times are `0s`, columns a
/// space apart. What is said at 1/4 hangs on how long c is seen, which ends at once.
fn recorded(lines: &[String]) -> String {
    let is_time = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_digit())
            && word.ends_with(['s', 'm'])
            && word.chars().all(|c| c.is_ascii_digit() || "sm".contains(c))
    };
    let mut kept: Vec<(Vec<String>, String)> = Vec::new();
    for line in lines.iter().filter(|line| !line.starts_with("never ")) {
        let words = line.split_whitespace();
        let mut words: Vec<String> = words
            .map(|word| if is_time(word) { "0s" } else { word }.to_owned())
            .collect();
        let progress = words.iter().position(|word| word.contains('/'));
        let key = words[..progress.map_or(words.len(), |at| at + 1)].to_vec();
        if key.last().is_some_and(|progress| progress == "1/4") {
            words.truncate(key.len() + 1);
            words.push("…".to_owned());
        } else if line.contains(" waits: ") || line.contains(" wait: ") {
            continue;
        }
        let line = words.join(" ");
        match kept.last_mut() {
            Some((last, shown)) if *last == key => *shown = line,
            _ => kept.push((key, line)),
        }
    }
    kept.into_iter().map(|(_, line)| line + "\n").collect()
}

/// One template through both drivers: whatever can become of a node. (What a node says is cut at
/// other lengths in a pod; that is another test.)
const ALL_ENDINGS: &str = r#"
said:
  id: 7
  action: {type: cmd, cmd: [sh, -c, 'echo "[OUTPUT]one"; echo plain; echo "[OUTPUT]two"; echo "[INFO]$0 $#"']}
  param: {dash: -x, list: [1, {a: null}]}
quiet:
  action: {type: cmd, cmd: "true", env: {OWN: "${HOME}"}}
three:
  action: {type: cmd, cmd: [sh, -c, 'echo "[ERR_MSG]bad"; echo "[ERR_CODE]E3"; exit 3']}
ended:
  prev_nodes: [three]
  decision_expr: three == 0
  action: {type: cmd, cmd: [sh, -c, "kill -9 $$$$"]}
late:
  timeout: 1s
  action: {type: cmd, cmd: sleep 60}
missing:
  action: {type: cmd, cmd: no-such-program --here, env: {PATH: "/usr/bin:/bin"}}
function:
  action: {type: api, module: json, function: loads}
  param: {s: '{"return_code": 0, "output": {"a": [1, 2.5, null]}, "info": "i"}'}
refuses:
  action: {type: api, module: json, function: loads}
  param: {s: "1"}
raises:
  prev_nodes: [function]
  action: {type: api, module: json, function: loads}
  param: {s: nonsense}
never:
  prev_nodes: [three]
  action: {type: cmd, cmd: "true"}
unknown:
  prev_nodes: [never]
  decision_expr: never == 0
  action: {type: cmd, cmd: "true"}
"#;

#[tokio::test]
#[ignore = "needs a cluster with real nodes and root: tests/cluster/with --nodes real"]
async fn whatever_becomes_of_a_node_is_told_as_it_is_here() {
    let client = client(KUBECONFIG).await;
    let _shared = operator().await;
    let namespace = namespace(&client).await;
    let folder = tempfile::tempdir().unwrap();
    let template = folder.path().join("endings.yaml");
    std::fs::write(&template, ALL_ENDINGS).unwrap();
    let template = template.to_str().unwrap();
    run(
        APSCLI,
        &[
            "submit",
            "--namespace",
            &namespace,
            "--template",
            template,
            "--name",
            "endings",
        ],
    );
    let here = local(&["--template", template]);
    let status = over(&client, &namespace, "endings").await;
    assert_eq!(status.phase, Some(RunPhase::Failed));
    same(here, got(&namespace, "endings"));
}

/// What is larger than a termination message is cut there, told of, and whole in the log.
#[tokio::test]
#[ignore = "needs a cluster with real nodes and root: tests/cluster/with --nodes real"]
async fn a_full_termination_message_arrives_and_the_log_has_the_rest() {
    const BYTES: usize = 20_000;
    let client = client(KUBECONFIG).await;
    let _shared = operator().await;
    let namespace = namespace(&client).await;
    // Nothing that could be compressed much.
    let script = "import random, string\n\
        random.seed(1)\n\
        print('before')\n\
        print('[OUTPUT]' + ''.join(random.choices(string.ascii_letters + string.digits, k=20000)))";
    let template = json!({"large": {"action": {"type": "cmd", "cmd": ["python3", "-c", script]}}});
    apply(&namespace, "large", &json!({"template": template}));
    let status = over(&client, &namespace, "large").await;
    assert_eq!(status.phase, Some(RunPhase::Succeeded), "{status:#?}");
    let node = entry(&status, "large");
    let output = node.output.as_ref().and_then(Value::as_str).unwrap();
    let missing = usize::try_from(node.truncated["output"]).unwrap();
    assert_eq!(output.len() + missing, BYTES);

    let pods = pods_of(&client, &namespace, "large").await;
    let pod = &pods["large"][0];
    let container = &pod
        .status
        .as_ref()
        .unwrap()
        .container_statuses
        .as_ref()
        .unwrap()[0];
    let terminated = container.state.as_ref().unwrap().terminated.clone();
    let message = terminated.unwrap().message.unwrap();
    // As full as it can be: a few bytes more of the output would have been too many.
    assert!(
        message.len() <= 4096 && message.len() > 3800,
        "{}",
        message.len()
    );
    assert!(output.len() > 2500, "{}", output.len());

    let name = pod.metadata.name.as_deref().unwrap();
    let log = run("kubectl", &["logs", name, "--namespace", &namespace]);
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[0], "before");
    let whole = lines[1].strip_prefix("[OUTPUT]").unwrap();
    assert_eq!((whole.len(), lines.len()), (BYTES, 2));
    assert!(whole.starts_with(output));
    let by_us = run(
        APSCLI,
        &["logs", "--namespace", &namespace, "large", "large"],
    );
    assert_eq!(by_us, log);
}

#[tokio::test]
#[ignore = "needs a cluster with real nodes and root: tests/cluster/with --nodes real"]
async fn another_image_gets_apscli_node_by_copy_and_without_python_says_so() {
    let client = client(KUBECONFIG).await;
    let _shared = operator().await;
    load_busybox();
    let namespace = namespace(&client).await;
    let template = json!({
        "cmd": {"action": {"type": "cmd", "cmd": "sh -c 'echo [OUTPUT]$(id -u)'"}},
        "api": {"action": {"type": "api", "module": "json", "function": "loads"},
                "param": {"s": "0"}},
    });
    apply(
        &namespace,
        "other",
        &json!({"template": template, "image": BUSYBOX}),
    );
    let status = over(&client, &namespace, "other").await;
    let cmd = entry(&status, "cmd");
    assert_eq!(
        (cmd.phase, cmd.output.clone()),
        (NodePhase::Succeeded, Some(json!("65532")))
    );
    let api = entry(&status, "api");
    assert_eq!(api.phase, NodePhase::Error, "{api:#?}");
    let message = api.message.as_deref().unwrap();
    assert!(message.contains("python3"), "{message}");
    let pods = pods_of(&client, &namespace, "other").await;
    for pods in pods.values() {
        let spec = pods[0].spec.as_ref().unwrap();
        assert_eq!(spec.init_containers.as_ref().unwrap().len(), 1);
    }
}

/// A Secret's value gets to the node, and is told of nowhere.
#[tokio::test]
#[ignore = "needs a cluster with real nodes and root: tests/cluster/with --nodes real"]
async fn a_secret_gets_to_its_node_and_nowhere_else() {
    const CANARY: &str = "canary-7c1f0e52";
    let client = client(KUBECONFIG).await;
    let _shared = operator().await;
    let namespace = namespace(&client).await;
    let literal = format!("--from-literal=word={CANARY}");
    run(
        "kubectl",
        &[
            "create",
            "secret",
            "generic",
            "s",
            &literal,
            "--namespace",
            &namespace,
        ],
    );
    // `$$` is a `$` that the shell sees.
    let script = "echo \"[OUTPUT]$${#WORD} $$WORD\"; [ \"$$1\" = \"$$WORD\" ]";
    let template = json!({"a": {
        "action": {"type": "cmd", "cmd": ["sh", "-c", script, "sh", "$password"],
                   "env": {"WORD": "$password"}}}});
    let from = json!([{"secret": {"param": "password", "name": "s", "key": "word"}}]);
    apply(
        &namespace,
        "secret",
        &json!({"template": template, "paramsFrom": from}),
    );
    let status = over(&client, &namespace, "secret").await;
    let node = entry(&status, "a");
    assert_eq!(
        (node.phase, node.output.clone()),
        (
            NodePhase::Succeeded,
            Some(json!(format!("{} ***", CANARY.len())))
        )
    );
    let everything = run(
        "kubectl",
        &[
            "get",
            "workflowruns,pods,configmaps,events,events.events.k8s.io",
            "--namespace",
            &namespace,
            "--output=yaml",
        ],
    );
    assert!(everything.contains("name: secret"), "{everything}");
    assert!(!everything.contains(CANARY), "{everything}");
    for replica in operators() {
        let log = run("kubectl", &["logs", &replica, "--namespace=apscli"]);
        assert!(!log.contains(CANARY), "{log}");
    }
}

fn operators() -> Vec<String> {
    let names = run(
        "kubectl",
        &[
            "get",
            "pods",
            "--namespace=apscli",
            "--selector=app.kubernetes.io/component=operator",
            "--output=name",
        ],
    );
    let names: Vec<String> = names.lines().map(str::to_owned).collect();
    assert!(!names.is_empty());
    names
}

#[tokio::test]
#[ignore = "needs a cluster with real nodes and root: tests/cluster/with --nodes real"]
async fn an_image_that_cannot_be_had_is_told_of() {
    let client = client(KUBECONFIG).await;
    let _shared = operator().await;
    let namespace = namespace(&client).await;
    let template = json!({"a": {"action": {"type": "cmd", "cmd": "true"}}});
    for (name, image, word) in [
        ("no-such", "docker.io/apscli/no-such-image:1", "ImagePull"),
        ("no-name", "No/Such:Name:1", "InvalidImageName"),
    ] {
        apply(
            &namespace,
            name,
            &json!({"template": template, "image": image}),
        );
        // ErrImagePull and ImagePullBackOff in turn; a name that is none is not waited for.
        let told = |text: &Option<String>| text.as_ref().is_some_and(|it| it.contains(word));
        let status = status_when(&client, &namespace, name, |status| {
            let node = status.nodes.first();
            node.is_some_and(|node| told(&node.reason) || told(&node.message))
                && told(&status.message)
        })
        .await;
        assert_eq!(entry(&status, "a").return_code.is_none(), name == "no-such");
    }
    let invalid = over(&client, &namespace, "no-name").await;
    assert_eq!(invalid.phase, Some(RunPhase::Failed));
    assert_eq!(entry(&invalid, "a").phase, NodePhase::Error);

    // What waits for its image can be ended.
    run(APSCLI, &["cancel", "--namespace", &namespace, "no-such"]);
    let cancelled = over(&client, &namespace, "no-such").await;
    assert_eq!(cancelled.phase, Some(RunPhase::Cancelled));
}

/// Before the runs of this module count for anything: their namespaces really are restricted.
#[tokio::test]
#[ignore = "needs a cluster with real nodes and root: tests/cluster/with --nodes real"]
async fn what_is_not_restricted_is_refused() {
    let client = client(KUBECONFIG).await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace(&client).await);
    let mut wrong = pod("wrong", BUSYBOX, "true", &[]);
    wrong.spec.as_mut().unwrap().security_context = None;
    let refused = pods.create(&PostParams::default(), &wrong).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("violates PodSecurity"), "{refused}");
}
