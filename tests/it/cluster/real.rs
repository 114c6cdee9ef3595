//! What needs containers. Nothing is pulled: a test builds its images from `tests/cluster/images`
//! and loads them itself. Must not need more than one node.

use std::process::Command;

use apscli::api::service::Service;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ListParams, LogParams, PostParams};

use super::{client, ended, namespace, pod};

const KUBECONFIG: &str = "APSCLI_TEST_REAL_KUBECONFIG";
const CLUSTER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster");

/// Runs a program of `tests/cluster`; `cluster` speaks of the one that is lent.
fn run(program: &str, arguments: &[&str]) {
    let done = Command::new(format!("{CLUSTER}/{program}"))
        .args(arguments)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{program} {arguments:?}: {told}");
}

#[tokio::test]
#[ignore = "needs a cluster with real nodes and root: tests/cluster/with --nodes real"]
async fn a_restricted_pod_runs_and_its_log_can_be_read() {
    let client = client(KUBECONFIG).await;
    let folder = tempfile::tempdir().unwrap();
    let tar = folder.path().join("busybox.tar");
    let tar = tar.to_str().unwrap();
    run("image", &[&format!("{CLUSTER}/images/busybox.toml"), tar]);
    run("cluster", &["load-image", tar]);

    let pods = Api::namespaced(client.clone(), &namespace(&client).await);
    let script = "echo to the log; echo a message >/dev/termination-log; exit 3";
    let terminated = ended(
        &pods,
        &pod("scripted", "docker.io/apscli/busybox:1", script, &[]),
    )
    .await;
    assert_eq!(terminated.exit_code, 3);
    assert_eq!(terminated.message.as_deref(), Some("a message\n"));
    let log = pods.logs("scripted", &LogParams::default()).await.unwrap();
    assert_eq!(log, "to the log\n");
}

/// Builds, loads and installs everything as a newcomer would, and uninstalls the operator: then its
/// finalizer is off, and what is no pod of its own stays.
#[tokio::test]
#[ignore = "needs a cluster with real nodes and root: tests/cluster/with --nodes real"]
async fn the_readmes_cluster_section() {
    let client = client(KUBECONFIG).await;
    crate::readme::run_on_a_cluster();

    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace(&client).await);
    let mut held = pod("held", "docker.io/apscli/none:1", "true", &[]);
    held.metadata.labels = Some(
        [(
            "app.kubernetes.io/managed-by".to_owned(),
            "apscli".to_owned(),
        )]
        .into(),
    );
    held.metadata.finalizers = Some(vec!["apscli.dev/result".to_owned()]);
    pods.create(&PostParams::default(), &held).await.unwrap();
    let uninstalled = Command::new("helm")
        .args(["uninstall", "apscli", "--namespace", "apscli", "--wait"])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&uninstalled.stderr);
    assert!(uninstalled.status.success(), "{told}");
    let held = pods.get("held").await.unwrap();
    assert_eq!(held.metadata.finalizers, None);
    let services: Api<Service> = Api::namespaced(client, "apscli");
    let services = services.list(&ListParams::default()).await.unwrap();
    assert_eq!(services.items.len(), 1, "services went with the operator");
}
