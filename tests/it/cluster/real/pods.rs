//! Pods without the operator: what a node of this cluster does.

use kube::Api;
use kube::api::LogParams;

use super::{BUSYBOX, KUBECONFIG, client, ended, load_busybox, namespace, pod};

#[tokio::test]
#[ignore = "needs a cluster with real nodes and root: tests/cluster/with --nodes real"]
async fn a_restricted_pod_runs_and_its_log_can_be_read() {
    let client = client(KUBECONFIG).await;
    load_busybox();
    let pods = Api::namespaced(client.clone(), &namespace(&client).await);
    let script = "echo to the log; echo a message >/dev/termination-log; exit 3";
    let terminated = ended(&pods, &pod("scripted", BUSYBOX, script, &[])).await;
    assert_eq!(terminated.exit_code, 3);
    assert_eq!(terminated.message.as_deref(), Some("a message\n"));
    let log = pods.logs("scripted", &LogParams::default()).await.unwrap();
    assert_eq!(log, "to the log\n");
}
