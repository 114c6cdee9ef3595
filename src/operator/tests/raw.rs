//! The pod that `tests/bench/raw` measures the bare control plane with is the pod that the operator
//! creates; else its figures would be no limit to hold the operator's against.

use serde_json::json;

use super::*;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench/raw/pod.json");
/// Set, the file is written instead of compared.
const WRITE: &str = "APSCLI_WRITE";

#[tokio::test(start_paused = true)]
async fn the_bare_control_plane_is_measured_with_the_operators_pod() {
    let fake = Fake::new();
    let node_image = "docker.io/apscli/apscli-node:0.1.0".to_owned();
    operate(
        &fake,
        Options {
            node_image,
            ..options()
        },
    );
    passes(1).await;
    let mut run = run_of(&json!({"bench": node(&[])}));
    run["metadata"]["name"] = json!("bench");
    let uid = fake.put("workflowruns", run)["metadata"]["uid"].clone();
    rest().await;
    let keys = fake.pods();
    let mut pod = fake.get("pods", &keys[0].2).unwrap();
    // What the server adds, and what differs from pod to pod.
    pod.as_object_mut().unwrap().remove("status");
    for added in [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "generation",
    ] {
        pod["metadata"].as_object_mut().unwrap().remove(added);
    }
    let pod = serde_json::to_string_pretty(&pod).unwrap() + "\n";
    let pod = pod.replace(
        uid.as_str().unwrap(),
        "00000000-0000-0000-0000-000000000000",
    );
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(FILE, pod).unwrap();
    } else {
        let had = std::fs::read_to_string(FILE).unwrap();
        assert!(
            had == pod,
            "{FILE} is not the operator's pod; with {WRITE}=1 this test writes it:\n{pod}"
        );
    }
}
