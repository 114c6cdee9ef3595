//! The operator upgraded, ended and taken away while runs go on: none is lost, and no node is
//! carried out twice. That is counted where nodes act: each calls a counter.

use std::collections::BTreeMap;

use apscli::api::service::Service;
use apscli::api::workflow_run::{RunPhase, WorkflowRun};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, LogParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::house::{anything, argument, operator_alone};
use super::{
    KUBECONFIG, ROOT, apply, client, entry, namespace, over, pod, pods_of, run, status_when, until,
};

/// Prints the path of each call; whoever calls gets an answer only once it is printed.
const COUNTER: &str = r#"
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print(self.path, flush=True)
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
"#;

/// Calls the counter, then takes its time.
const CALLER: &str = "import sys, time, urllib.request; \
    urllib.request.urlopen(sys.argv[1], timeout=20).read(); time.sleep(float(sys.argv[2]))";

/// A pod that counts what nodes do.
struct Counter {
    pods: Api<Pod>,
    address: String,
}

impl Counter {
    async fn begin(client: &Client, namespace: &str) -> Self {
        let mut counter = pod("counter", &argument("node-image"), "", &[]);
        let container = &mut counter.spec.as_mut().unwrap().containers[0];
        container.command = Some(["python3", "-c", COUNTER].map(str::to_owned).to_vec());
        let listens = json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1});
        container.readiness_probe = Some(serde_json::from_value(listens).unwrap());
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        pods.create(&PostParams::default(), &counter).await.unwrap();
        let ready = |pod: Option<&Pod>| {
            let status = pod.and_then(|pod| pod.status.as_ref());
            let mut conditions = status.iter().flat_map(|it| it.conditions.iter().flatten());
            conditions.any(|it| it.type_ == "Ready" && it.status == "True")
        };
        let counter = until(pods.clone(), "counter", ready).await.unwrap();
        let address = counter.status.unwrap().pod_ip.unwrap();
        Self { pods, address }
    }

    /// A node that calls the counter as `RUN/NODE` and takes so many seconds.
    fn node(&self, run: &str, node: &str, prev: &[&str], seconds: &str) -> Value {
        let url = format!("http://{}:8080/{run}/{node}", self.address);
        let cmd = ["python3", "-c", CALLER, &url, seconds];
        json!({"prev_nodes": prev, "action": {"type": "cmd", "cmd": cmd}})
    }

    /// A run of so many nodes, one after the other, a second each.
    fn chain(&self, run: &str, length: usize) -> Value {
        let mut template = serde_json::Map::new();
        let mut before: Option<String> = None;
        for number in 0..length {
            let name = format!("n{number}");
            let prev: Vec<&str> = before.as_deref().into_iter().collect();
            template.insert(name.clone(), self.node(run, &name, &prev, "1"));
            before = Some(name);
        }
        json!({"template": template})
    }

    /// How often each call came.
    async fn calls(&self) -> BTreeMap<String, usize> {
        let log = self.pods.logs("counter", &LogParams::default()).await;
        let mut calls = BTreeMap::new();
        for line in log.unwrap().lines() {
            *calls.entry(line.to_owned()).or_default() += 1;
        }
        calls
    }
}

/// The run is over, went well, and each of its nodes was carried out once, in one pod.
async fn once(client: &Client, namespace: &str, counter: &Counter, run: &str, nodes: usize) {
    let status = over(client, namespace, run).await;
    assert_eq!(status.phase, Some(RunPhase::Succeeded), "{status:#?}");
    assert_eq!(status.nodes.len(), nodes);
    let calls = counter.calls().await;
    for node in &status.nodes {
        assert_eq!(node.attempt, Some(1), "{node:#?}");
        let path = format!("/{run}/{}", node.name);
        assert_eq!(calls.get(&path), Some(&1), "{path} in {calls:#?}");
    }
    let pods = pods_of(client, namespace, run).await;
    assert!(pods.values().all(|pods| pods.len() == 1), "{pods:#?}");
    assert_eq!(pods.len(), nodes);
}

async fn lease(client: &Client) -> (String, i32) {
    let leases: Api<Lease> = Api::namespaced(client.clone(), "apscli");
    let spec = leases.get("apscli").await.unwrap().spec.unwrap();
    let holder = spec.holder_identity.unwrap_or_default();
    (holder, spec.lease_transitions.unwrap_or_default())
}

/// As a newcomer would, and again where all of it is there already.
#[tokio::test]
#[ignore = "needs a cluster with real nodes and root: tests/cluster/with --nodes real"]
async fn the_readmes_cluster_section() {
    let alone = anything().await;
    crate::readme::run_on_a_cluster();
    crate::readme::run_on_a_cluster();
    alone.unchanged();
}

#[tokio::test]
#[ignore = "needs a cluster with real nodes and root: tests/cluster/with --nodes real"]
async fn a_leader_that_is_asked_to_end_hands_over() {
    let client = client(KUBECONFIG).await;
    let alone = operator_alone().await;
    let namespace = namespace(&client).await;
    let counter = Counter::begin(&client, &namespace).await;
    for run in ["one", "two"] {
        apply(&namespace, run, &counter.chain(run, 5));
    }
    status_when(&client, &namespace, "one", |status| {
        status.nodes.len() > 1 && status.nodes[1].attempt.is_some()
    })
    .await;

    let (before, transitions) = lease(&client).await;
    let operators: Api<Pod> = Api::namespaced(client.clone(), "apscli");
    let replicas = ListParams::default().labels("app.kubernetes.io/component=operator");
    let replicas = operators.list(&replicas).await.unwrap();
    let leader = (replicas.iter())
        .filter_map(|pod| pod.metadata.name.clone())
        .find(|name| before.starts_with(name.as_str()))
        .unwrap_or_else(|| panic!("{before} is none of the pods"));
    assert_eq!(replicas.items.len(), 2);
    // It returns once the pod is gone.
    run(
        "kubectl",
        &["delete", "pod", &leader, "--namespace", "apscli"],
    );

    for run in ["one", "two"] {
        once(&client, &namespace, &counter, run, 5).await;
    }
    let (after, now) = lease(&client).await;
    assert!(!after.is_empty() && !after.starts_with(&leader), "{after}");
    assert_eq!(now, transitions + 1);
    run(
        "kubectl",
        &[
            "rollout",
            "status",
            "deployment/apscli",
            "--namespace=apscli",
            "--timeout=2m",
        ],
    );
    alone.unchanged();
}

#[tokio::test]
#[ignore = "needs a cluster with real nodes and root: tests/cluster/with --nodes real"]
async fn an_upgrade_loses_no_run_and_doubles_none() {
    let client = client(KUBECONFIG).await;
    let _alone = operator_alone().await;
    super::load_busybox();
    let namespace = namespace(&client).await;
    let counter = Counter::begin(&client, &namespace).await;
    let runs = ["one", "two", "three"];
    for run in runs {
        apply(&namespace, run, &counter.chain(run, 5));
    }
    status_when(&client, &namespace, "three", |status| {
        status.nodes.len() > 1 && status.nodes[1].attempt.is_some()
    })
    .await;
    let chart = format!("{ROOT}/charts/apscli");
    run(
        "helm",
        &[
            "upgrade",
            "apscli",
            &chart,
            "--namespace=apscli",
            "--reuse-values",
            "--set=nodes.delivery=auto",
            "--wait",
            "--timeout=3m",
        ],
    );
    for run in runs {
        once(&client, &namespace, &counter, run, 5).await;
    }

    // What was upgraded: these nodes mount images, so nothing is copied any more.
    let in_another = json!({
        "image": super::BUSYBOX,
        "template": {"a": {"action": {"type": "cmd", "cmd": "echo [OUTPUT]hello"}}},
    });
    apply(&namespace, "volume", &in_another);
    let status = over(&client, &namespace, "volume").await;
    assert_eq!(status.phase, Some(RunPhase::Succeeded), "{status:#?}");
    assert_eq!(entry(&status, "a").output, Some(json!("hello")));
    let pods = pods_of(&client, &namespace, "volume").await;
    let spec = pods["a"][0].spec.as_ref().unwrap();
    assert!(spec.init_containers.is_none());
    let volumes = spec.volumes.as_ref().unwrap();
    let tools = volumes.iter().find_map(|volume| volume.image.as_ref());
    assert_eq!(
        tools.and_then(|image| image.reference.clone()),
        Some(argument("tools-image"))
    );
}

#[tokio::test]
#[ignore = "needs a cluster with real nodes and root: tests/cluster/with --nodes real"]
async fn what_is_uninstalled_leaves_runs_and_holds_no_pod() {
    let client = client(KUBECONFIG).await;
    let alone = operator_alone().await;
    let namespace = namespace(&client).await;
    let counter = Counter::begin(&client, &namespace).await;
    let template = json!({
        "first": counter.node("run", "first", &[], "2"),
        "second": counter.node("run", "second", &["first"], "0"),
    });
    apply(&namespace, "run", &json!({"template": template}));
    let begun = |status: &apscli::api::workflow_run::WorkflowRunStatus| {
        let first = status.nodes.first();
        first.is_some_and(|entry| entry.pod.as_ref().is_some_and(|pod| pod.uid.is_some()))
    };
    status_when(&client, &namespace, "run", begun).await;
    let pods = pods_of(&client, &namespace, "run").await;
    let finalizers = |pod: &Pod| pod.metadata.finalizers.clone().unwrap_or_default();
    assert_eq!(finalizers(&pods["first"][0]), ["apscli.dev/result"]);

    run(
        "helm",
        &["uninstall", "apscli", "--namespace=apscli", "--wait"],
    );
    let pods = pods_of(&client, &namespace, "run").await;
    assert_eq!(pods.keys().collect::<Vec<_>>(), ["first"]);
    assert_eq!(finalizers(&pods["first"][0]), [""; 0]);
    let runs: Api<WorkflowRun> = Api::namespaced(client.clone(), &namespace);
    let left = runs.get("run").await.unwrap().status.unwrap();
    assert_eq!(left.phase, Some(RunPhase::Running));
    let services: Api<Service> = Api::namespaced(client.clone(), "apscli-services");
    let services = services.list(&ListParams::default()).await.unwrap();
    assert_eq!(services.items.len(), 1, "services went with the operator");

    // Who installs it again goes on where it ended.
    drop(alone);
    let alone = operator_alone().await;
    once(&client, &namespace, &counter, "run", 2).await;
    alone.unchanged();
}

/// What a process tries that must not work, and what it is; one line of JSON.
const PROBE: &str = r#"
import ctypes, json, os, socket
def tried(act):
    try:
        act()
        return "done"
    except OSError as error:
        return type(error).__name__
libc = ctypes.CDLL(None, use_errno=True)
def unshare():
    if libc.unshare(0x10000000) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
token = "/var/run/secrets/kubernetes.io/serviceaccount/token"
inet = lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM)
print("[OUTPUT]" + json.dumps({
    "uid": os.getuid(),
    "token": tried(lambda: open(token)),
    "inet": tried(inet),
    "beside": tried(lambda: open("/run/apscli/x", "w")),
    "own": tried(lambda: open("x", "w")),
    "unshare": tried(unshare),
}))
"#;

/// The operator's namespace is held to the standard `restricted`.
#[tokio::test]
#[ignore = "needs a cluster with real nodes and root: tests/cluster/with --nodes real"]
async fn processes_are_carried_out_beside_the_operator() {
    let client = client(KUBECONFIG).await;
    let _alone = operator_alone().await;
    let namespace = namespace(&client).await;
    let chart = format!("{ROOT}/charts/apscli");
    run(
        "helm",
        &[
            "upgrade",
            "apscli",
            &chart,
            "--namespace=apscli",
            "--reuse-values",
            &format!("--set=processes.namespaces={{{namespace}}}"),
            "--wait",
            "--timeout=3m",
        ],
    );
    let probe = json!({"action": {"type": "cmd", "cmd": ["python3", "-c", PROBE]}});
    let after =
        json!({"prev_nodes": ["probe"], "action": {"type": "cmd", "cmd": "echo [OUTPUT]after"}});
    // The operator's image has the interpreter, and what is called in it.
    let dict = json!({"type": "api", "module": "builtins", "function": "dict"});
    let call = json!({"action": dict, "param": {"return_code": 0, "output": "called"}});
    let template = json!({"probe": probe, "after": after, "call": call});
    let spec = json!({"executor": "process", "template": template});
    apply(&namespace, "processes", &spec);
    let status = over(&client, &namespace, "processes").await;
    assert_eq!(status.phase, Some(RunPhase::Succeeded), "{status:#?}");
    assert!(
        pods_of(&client, &namespace, "processes").await.is_empty(),
        "a process has a pod"
    );
    let probe = entry(&status, "probe");
    assert!(probe.sandbox.is_some() && probe.pod.is_none(), "{probe:#?}");
    let said = probe
        .output
        .as_ref()
        .and_then(Value::as_str)
        .unwrap_or_default();
    let said: Value = serde_json::from_str(said).unwrap_or_default();
    let expected = json!({
        "uid": 65534,
        "token": "FileNotFoundError",
        "inet": "PermissionError",
        "beside": "PermissionError",
        "own": "done",
        "unshare": "PermissionError",
    });
    assert_eq!(said, expected, "{probe:#?}");
    assert_eq!(entry(&status, "after").output, Some(json!("after")));
    assert_eq!(entry(&status, "call").output, Some(json!("called")));
}
