//! Operators that share the runs of one control plane.

use std::collections::BTreeMap;

use serde_json::json;

use super::kubectl::{Cluster, kubeconfig, run};
use super::operator::Operator;

/// More than fall to one shard but for one time in a million.
const RUNS: u32 = 24;

#[test]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
fn two_shards_share_the_runs() {
    let cluster = Cluster::new("shards");
    let namespace = format!("--namespace={}", cluster.namespace);
    let shared = format!("--shared-namespace={}", cluster.namespace);
    let shards = ["0/2", "1/2"].map(|shard| {
        let home = [("POD_NAMESPACE", cluster.namespace.as_str())];
        let shard = format!("--shard={shard}");
        Operator::start(&kubeconfig(), &home, &[&namespace, &shared, &shard]).ready()
    });
    let node =
        |prev: &[&str]| json!({"prev_nodes": prev, "action": {"type": "cmd", "cmd": "true"}});
    let two = json!({"a": node(&[]), "b": node(&["a"])});
    for nth in 0..RUNS {
        cluster.create(&run(&format!("r{nth}"), &json!({"template": two})));
    }
    for nth in 0..RUNS {
        cluster.wait(&format!("wfr/r{nth}"), "condition=Complete", 120);
    }
    // Each pod was asked for once: by the shard that a run's bucket is of.
    let mut due = [0_u32; 2];
    let mut buckets: BTreeMap<String, String> = BTreeMap::new();
    let pods = cluster.get(&["pods"]);
    for pod in pods["items"].as_array().unwrap() {
        let label = |name: &str| pod["metadata"]["labels"][name].as_str().unwrap().to_owned();
        let bucket = label("apscli.dev/bucket");
        due[bucket.parse::<usize>().unwrap() % 2] += 1;
        let of_run = buckets.entry(label("apscli.dev/run-uid"));
        assert_eq!(*of_run.or_insert_with(|| bucket.clone()), bucket);
    }
    assert_eq!(due[0] + due[1], 2 * RUNS);
    for (operator, due) in shards.into_iter().zip(due) {
        let asked = operator.metrics().sum("apscli_api_calls_total", |labels| {
            labels["verb"] == "create" && labels["resource"] == "pods"
        });
        let calls = operator.metrics().calls();
        assert!(
            (asked - f64::from(due)).abs() < 0.5,
            "{due} were due: {calls}"
        );
        assert!(due > 0);
        operator.ends();
    }
    for lease in ["apscli-0-of-2", "apscli-1-of-2"] {
        cluster.get(&["lease", lease]);
    }
}
