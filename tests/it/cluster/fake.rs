//! What needs a control plane but no containers: pods end as their annotations say. Must not name
//! an image that has to exist.

mod catalogue;
mod crd;
mod hostile;
mod kubectl;
mod kubelet;
mod life;
mod memory;
mod operator;
mod parity;
mod processes;
mod rights;
mod scale;
mod shards;
mod witness;

use kube::Api;

use super::{client, ended, namespace, pod};

const KUBECONFIG: &str = "APSCLI_TEST_KUBECONFIG";

#[tokio::test]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
async fn a_pod_ends_as_its_annotations_say() {
    let client = client(KUBECONFIG).await;
    let pods = Api::namespaced(client.clone(), &namespace(&client).await);
    let script = [
        ("fake.apscli.dev/exit-code", "3"),
        ("fake.apscli.dev/termination-message", "as scripted"),
    ];
    let terminated = ended(&pods, &pod("scripted", "none", "", &script)).await;
    assert_eq!(terminated.exit_code, 3);
    assert_eq!(terminated.message.as_deref(), Some("as scripted"));
}
