//! Tests against a real Kubernetes: `fake` on nodes that only play pods, `real` on nodes that run them.
//!
//! All are ignored unless asked for, since they need a cluster that `tests/cluster/with` lends:
//! `tests/cluster/with --nodes fake cargo test --test it -- --ignored cluster::fake::`. `tests/run`
//! runs every other ignored test with fake nodes, wherever it stands, and with `--all` `real` with real ones.
//! Tests run at once and share the cluster: each takes a namespace of its own, and must not harm
//! the cluster or depend on what else is in it.

use std::collections::BTreeMap;
use std::env;
use std::path::Path;
use std::process::Command;
use std::sync::Once;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStateTerminated, Namespace, Pod, ServiceAccount};
use kube::api::{ObjectMeta, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::wait::{Condition, await_condition};
use kube::{Api, Client, Config};

mod fake;
mod real;

/// How long a pod may take on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// A client of the cluster whose kubeconfig the variable names. Without it the test fails: who
/// asks for a test of this kind has to lend a cluster.
pub async fn client(variable: &str) -> Client {
    Client::try_from(config(variable).await).unwrap()
}

/// Likewise, one that does what it is asked for once, or says that it failed.
pub async fn client_without_retries(variable: &str) -> Client {
    let mut config = config(variable).await;
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

async fn config(variable: &str) -> Config {
    let path = env::var_os(variable)
        .unwrap_or_else(|| panic!("{variable} is not set: run this by tests/cluster/with"));
    let kubeconfig = Kubeconfig::read_from(path).unwrap();
    let whole = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &whole).await;
    config.unwrap()
}

/// The cluster with fake nodes.
pub const FAKE: &str = "APSCLI_TEST_KUBECONFIG";

/// Makes the kinds of apscli known to the cluster.
pub fn definitions() {
    static DEFINITIONS: Once = Once::new();
    let kubectl = |words: &[&str]| {
        let crds = Path::new(env!("CARGO_MANIFEST_DIR")).join("crds");
        let kubeconfig = env::var_os(FAKE).expect("run this by tests/cluster/with");
        let output = Command::new("kubectl")
            .args(words)
            .arg("--filename")
            .arg(crds)
            .env("KUBECONFIG", kubeconfig)
            .output()
            .expect("tests/cluster/with puts kubectl into the PATH");
        output.status.success()
    };
    DEFINITIONS.call_once(|| {
        // Two tests may do this at once, and one of them meets what the other has just made.
        let apply = ["apply", "--server-side", "--force-conflicts"];
        assert!((0..5).any(|_| kubectl(&apply)));
        let established = "--for=condition=Established";
        assert!(kubectl(&["wait", established, "--timeout=60s"]));
    });
}

/// A new namespace, held to the `restricted` standard, in which pods can be created.
pub async fn namespace(client: &Client) -> String {
    let wanted = Namespace {
        metadata: ObjectMeta {
            generate_name: Some("it-".to_owned()),
            labels: Some(BTreeMap::from([(
                "pod-security.kubernetes.io/enforce".to_owned(),
                "restricted".to_owned(),
            )])),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    };
    let made = Api::all(client.clone())
        .create(&PostParams::default(), &wanted)
        .await
        .unwrap();
    let name = made.metadata.name.unwrap();
    // A controller makes it a moment later; before that pods are refused.
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &name);
    until(accounts, "default", |account: Option<&ServiceAccount>| {
        account.is_some()
    })
    .await;
    name
}

/// Waits until the object is as wanted.
async fn until<K>(api: Api<K>, name: &str, wanted: impl Condition<K>) -> Option<K>
where
    K: Clone + std::fmt::Debug + Send + serde::de::DeserializeOwned + kube::Resource + 'static,
    K::DynamicType: Default,
{
    tokio::time::timeout(PATIENCE, await_condition(api, name, wanted))
        .await
        .unwrap_or_else(|_| panic!("{name} is not as wanted after {PATIENCE:?}"))
        .unwrap()
}

/// A pod of one container, as `restricted` wants it.
pub fn pod(name: &str, image: &str, script: &str, annotations: &[(&str, &str)]) -> Pod {
    let annotations: BTreeMap<_, _> = annotations.iter().copied().collect();
    serde_json::from_value(serde_json::json!({
        "metadata": {"name": name, "annotations": annotations},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": 65534,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "main",
                "image": image,
                "imagePullPolicy": "Never",
                "command": ["sh", "-c", script],
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "capabilities": {"drop": ["ALL"]},
                },
            }],
        },
    }))
    .unwrap()
}

/// Creates the pod and waits until its one container has ended.
async fn ended(pods: &Api<Pod>, pod: &Pod) -> ContainerStateTerminated {
    let made = pods.create(&PostParams::default(), pod).await.unwrap();
    let name = made.metadata.name.unwrap();
    let over = until(pods.clone(), &name, |pod: Option<&Pod>| {
        pod.and_then(terminated).is_some()
    });
    over.await.as_ref().and_then(terminated).unwrap()
}

fn terminated(pod: &Pod) -> Option<ContainerStateTerminated> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses.first()?.state.as_ref()?.terminated.clone()
}
