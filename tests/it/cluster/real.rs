//! What needs containers. Nothing is pulled: a test builds its images from `tests/cluster/images`
//! and loads them itself. Must not need more than one node, and must make few pods: a node starts
//! three a second.
//!
//! One operator, installed by `cluster install`, serves all tests; `house` says who may change it.

mod changes;
mod house;
mod pods;
mod runs;

use std::collections::BTreeMap;
use std::process::{Command, Output};
use std::sync::Once;
use std::time::{Duration, Instant};

use apscli::api::workflow_run::{NodeStatus, RunPhase, WorkflowRun, WorkflowRunStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client};
use serde_json::{Value, json};

use super::{client, ended, namespace, pod, until};

const KUBECONFIG: &str = "APSCLI_TEST_REAL_KUBECONFIG";
const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const CLUSTER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster");
const APSCLI: &str = env!("CARGO_BIN_EXE_apscli");
const BUSYBOX: &str = "docker.io/apscli/busybox:1";
const EXAMPLE: &str = "oracle.peo.cloud.vm_allocation";

/// How long a run of a few nodes may take on a busy machine.
const PATIENCE: Duration = Duration::from_mins(3);

/// What a program answers. On this cluster, whatever else the environment says.
fn answer(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .env("KUBECONFIG", std::env::var_os(KUBECONFIG).unwrap())
        .env_remove("APSCLI_METADATA")
        .current_dir(ROOT)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// What a program prints; it has to succeed.
fn run(program: &str, arguments: &[&str]) -> String {
    let done = answer(program, arguments);
    let told = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{program} {arguments:?}: {told}");
    String::from_utf8(done.stdout).unwrap()
}

/// Runs a program of `tests/cluster`; `cluster` speaks of the one that is lent.
fn tool(program: &str, arguments: &[&str]) {
    run(&format!("{CLUSTER}/{program}"), arguments);
}

/// Has the nodes hold the image `BUSYBOX`, in which there is a shell and neither Python nor
/// apscli-node.
fn load_busybox() {
    static LOADED: Once = Once::new();
    LOADED.call_once(|| {
        let folder = tempfile::tempdir().unwrap();
        let tar = folder.path().join("busybox.tar");
        let tar = tar.to_str().unwrap();
        tool("image", &[&format!("{CLUSTER}/images/busybox.toml"), tar]);
        tool("cluster", &["load-image", tar]);
    });
}

/// Creates the run `name` as `kubectl apply` does.
fn apply(namespace: &str, name: &str, spec: &Value) {
    let run_object = json!({"apiVersion": "apscli.dev/v1alpha1", "kind": "WorkflowRun",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec});
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.json");
    std::fs::write(&file, run_object.to_string()).unwrap();
    let told = run("kubectl", &["apply", "--filename", file.to_str().unwrap()]);
    assert_eq!(told, format!("workflowrun.apscli.dev/{name} created\n"));
}

/// The status of the run once it is over.
async fn over(client: &Client, namespace: &str, name: &str) -> WorkflowRunStatus {
    status_when(client, namespace, name, |status| {
        status.phase.is_some_and(RunPhase::is_final)
    })
    .await
}

/// The status of the run once it is as wanted.
async fn status_when(
    client: &Client,
    namespace: &str,
    name: &str,
    wanted: impl Fn(&WorkflowRunStatus) -> bool,
) -> WorkflowRunStatus {
    let runs: Api<WorkflowRun> = Api::namespaced(client.clone(), namespace);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = runs.get(name).await.unwrap().status.unwrap_or_default();
        if wanted(&status) {
            return status;
        }
        assert!(
            Instant::now() < deadline,
            "{name} is not as wanted: {status:#?}"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The node's entry.
fn entry<'a>(status: &'a WorkflowRunStatus, node: &str) -> &'a NodeStatus {
    let found = status.nodes.iter().find(|entry| entry.name == node);
    found.unwrap_or_else(|| panic!("no {node} in {status:#?}"))
}

/// The pods of the run, by the name of their node.
async fn pods_of(client: &Client, namespace: &str, run: &str) -> BTreeMap<String, Vec<Pod>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let of_run = ListParams::default().labels(&format!("apscli.dev/run={run}"));
    let mut found: BTreeMap<String, Vec<Pod>> = BTreeMap::new();
    for pod in pods.list(&of_run).await.unwrap() {
        let annotations = pod.metadata.annotations.clone().unwrap_or_default();
        found
            .entry(annotations["apscli.dev/node"].clone())
            .or_default()
            .push(pod);
    }
    found
}
