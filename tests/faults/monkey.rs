//! Third parties who delete, evict, relabel, edit, forge and forbid while a run goes on. It ends as
//! it should, with one pod for each attempt, and nothing is left of it.
//!
//! In all of them but that of the pages the run is a, b, c in a chain, and b runs until it is told to
//! end.

use std::collections::BTreeSet;
use std::time::Duration;

use apscli::engine::name::Attempt;
use apscli::executor::pod::build::pod_name;
use kube::api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::play::{Place, Play};
use super::scenario::{Scenario, Step, chain, plain_scenario, run};
use super::witness::{api, pods, runs};
use crate::cluster;

fn abc(spec: Value) -> Scenario {
    let mut spec = spec;
    spec["template"] = chain(&["a", "b", "c"]);
    plain_scenario("", run(spec, &[("seconds.b", "forever")]), "")
}

async fn place() -> Place {
    cluster::definitions();
    let client = cluster::client(cluster::FAKE).await;
    Place::new(&client, &std::env::temp_dir()).await
}

async fn open<'a>(place: &'a Place, scenario: &'a Scenario, test: &str) -> Play<'a> {
    let log = std::env::temp_dir().join(format!("apscli-monkey-{test}-{}.log", std::process::id()));
    Play::open(place, scenario, None, false, &log).await
}

/// The run goes on to its end: its nodes end so, each attempt has had one pod, nothing is left.
async fn ends(mut play: Play<'_>, expected: &[&str]) {
    play.until_final().await;
    let end = play.end_state().await;
    let nodes = end["runs"][0]["status"]["nodes"].as_array().cloned();
    let nodes: Vec<String> = nodes
        .unwrap_or_default()
        .iter()
        .map(|node| {
            let text = |name: &str| node[name].as_str().unwrap_or_default();
            let words = format!("{} {} {}", text("name"), text("phase"), text("reason"));
            words.trim().to_owned()
        })
        .collect();
    let ledger = play.ledger();
    play.pods(&ledger).await;
    let differences = play.close().await;
    assert!(differences.is_empty(), "{differences:#?}");
    assert_eq!(nodes, expected, "{end:#}");
}

const WELL: [&str; 3] = ["a Succeeded", "b Succeeded", "c Succeeded"];
const B_LOST: [&str; 3] = ["a Succeeded", "b Error Lost", "c Skipped ConditionFalse"];

async fn patch_pod(play: &Play<'_>, title: &str, subresource: &str, patch: Value) {
    let name = play.pod_name(&play.uids[0], title);
    let pods = pods(&play.place.client, &play.place.namespace);
    let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
    let patched = match subresource {
        "" => pods.patch(&name, &params, &patch).await,
        _ => pods.patch_status(&name, &params, &patch).await,
    };
    patched.unwrap();
}

#[tokio::test]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
async fn a_deleted_pod_is_lost() {
    let (place, scenario) = (place().await, abc(json!({})));
    let mut play = open(&place, &scenario, "deleted").await;
    play.begin().await;
    play.step(&Step::UntilRuns("b/1")).await;
    play.step(&Step::DeletePod("b/1")).await;
    ends(play, &B_LOST).await;
    place.end().await;
}

#[tokio::test]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
async fn a_pod_deleted_by_force_with_its_finalizer_is_lost() {
    let (place, scenario) = (place().await, abc(json!({})));
    let mut play = open(&place, &scenario, "forced").await;
    play.begin().await;
    play.step(&Step::UntilRuns("b/1")).await;
    patch_pod(&play, "b/1", "", json!({"metadata": {"finalizers": null}})).await;
    let name = play.pod_name(&play.uids[0], "b/1");
    let pods = pods(&place.client, &place.namespace);
    let at_once = DeleteParams::default().grace_period(0);
    pods.delete(&name, &at_once).await.unwrap();
    ends(play, &B_LOST).await;
    place.end().await;
}

#[tokio::test]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
async fn an_evicted_pod_is_lost() {
    let (place, scenario) = (place().await, abc(json!({})));
    let mut play = open(&place, &scenario, "evicted").await;
    play.begin().await;
    play.step(&Step::UntilRuns("b/1")).await;
    let name = play.pod_name(&play.uids[0], "b/1");
    let pods: kube::Api<k8s_openapi::api::core::v1::Pod> =
        kube::Api::namespaced(place.client.clone(), &place.namespace);
    pods.evict(&name, &EvictParams::default()).await.unwrap();
    ends(play, &B_LOST).await;
    place.end().await;
}

#[tokio::test]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
async fn a_pod_on_a_node_that_shuts_down_is_lost() {
    let (place, scenario) = (place().await, abc(json!({})));
    let mut play = open(&place, &scenario, "shutdown").await;
    play.begin().await;
    play.step(&Step::UntilRuns("b/1")).await;
    let status = json!({"status": {"phase": "Failed", "reason": "NodeShutdown",
        "message": "Pod was terminated in response to imminent node shutdown."}});
    patch_pod(&play, "b/1", "status", status).await;
    ends(play, &B_LOST).await;
    place.end().await;
}

#[tokio::test]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
async fn a_pod_without_its_labels_or_with_those_of_another_still_tells_its_end() {
    let none = json!({"apscli.dev/run-uid": null, "app.kubernetes.io/managed-by": null});
    let another = json!({"apscli.dev/run-uid": "another"});
    for (number, labels) in [none, another].into_iter().enumerate() {
        let (place, scenario) = (place().await, abc(json!({})));
        let mut play = open(&place, &scenario, &format!("relabelled-{number}")).await;
        play.begin().await;
        play.step(&Step::UntilRuns("b/1")).await;
        patch_pod(&play, "b/1", "", json!({"metadata": {"labels": labels}})).await;
        play.step(&Step::End("b/1", 0)).await;
        ends(play, &WELL).await;
        place.end().await;
    }
}

#[tokio::test]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
async fn a_pod_that_says_it_is_another_nodes_still_tells_its_end() {
    let (place, scenario) = (place().await, abc(json!({})));
    let mut play = open(&place, &scenario, "annotated").await;
    play.begin().await;
    play.step(&Step::UntilRuns("b/1")).await;
    let forged = json!({"metadata": {"annotations": {"apscli.dev/node": "c"}}});
    patch_pod(&play, "b/1", "", forged).await;
    play.step(&Step::End("b/1", 0)).await;
    ends(play, &WELL).await;
    place.end().await;
}

/// Somebody makes a pod where the run's next one is to be.
#[tokio::test]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
async fn a_squatted_name_ends_the_node_and_the_squatter_is_left_alone() {
    let (place, scenario) = (place().await, abc(json!({})));
    let mut play = open(&place, &scenario, "squatted").await;
    play.begin().await;
    play.step(&Step::UntilRuns("b/1")).await;
    let uid = play.uids[0].clone();
    let name = pod_name(&uid, &"c".parse().unwrap(), Attempt::FIRST);
    let squatter = cluster::pod(&name, "fake", "", &[("fake.apscli.dev/seconds", "forever")]);
    let squatter = serde_json::from_value(serde_json::to_value(squatter).unwrap()).unwrap();
    let all = pods(&place.client, &place.namespace);
    let made = all.create(&PostParams::default(), &squatter).await.unwrap();
    play.step(&Step::End("b/1", 0)).await;
    play.until_final().await;
    let still = all.get(&name).await.unwrap();
    assert_eq!(still.metadata.uid, made.metadata.uid);
    assert_eq!(still.metadata.deletion_timestamp, None);
    all.delete(&name, &DeleteParams::default()).await.unwrap();
    let nodes = ["a Succeeded", "b Succeeded", "c Error NotStarted"];
    ends(play, &nodes).await;
    place.end().await;
}

#[tokio::test]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
async fn pages_that_somebody_edits_or_deletes_come_right() {
    let place = place().await;
    let scenarios = super::scenario::all();
    let scenario = scenarios.iter().find(|it| it.name == "300 nodes").unwrap();
    let mut play = open(&place, scenario, "pages").await;
    play.begin().await;
    let pages = api(
        &place.client,
        &place.namespace,
        "apscli.dev",
        "v1alpha1",
        "WorkflowRunPage",
    );
    let (mut edited, mut deleted) = (0, 0);
    while edited < 2 || deleted < 2 {
        let list = pages.list(&ListParams::default()).await.unwrap();
        for page in list.items {
            let name = page.metadata.name.unwrap();
            let patch =
                Patch::Merge(json!({"spec": {"nodes": []}, "metadata": {"ownerReferences": null}}));
            if edited <= deleted {
                let done = pages.patch(&name, &PatchParams::default(), &patch).await;
                edited += usize::from(done.is_ok());
            } else {
                let done = pages.delete(&name, &DeleteParams::default()).await;
                deleted += usize::from(done.is_ok());
            }
        }
        let phase = place.witness.view().phase("r").map(str::to_owned);
        if phase.as_deref() == Some("Succeeded") {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    play.until_final().await;
    assert!(
        edited > 0 && deleted > 0,
        "{edited} edited, {deleted} deleted"
    );
    let end = play.end_state().await;
    let pages = end["pages"].as_array().unwrap().iter();
    let lists = pages.map(|page| &page["spec"]["nodes"]);
    let lists = lists.chain([&end["runs"][0]["status"]["nodes"]]);
    let all = lists.filter_map(Value::as_array).flatten();
    let names: BTreeSet<&str> = (all.filter(|node| node["phase"] == "Succeeded"))
        .map(|node| node["name"].as_str().unwrap())
        .collect();
    assert_eq!(names.len(), 300, "{end:#}");
    let ledger = play.ledger();
    let made = play.pods(&ledger).await;
    assert_eq!(made[0].len(), 300);
    let differences = play.close().await;
    assert!(differences.is_empty(), "{differences:#?}");
    place.end().await;
}

#[tokio::test]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
async fn a_quota_of_no_pods_is_waited_for() {
    let (place, scenario) = (place().await, abc(json!({})));
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"},
        "spec": {"hard": {"pods": "0"}}});
    let mut play = open(&place, &scenario, "quota").await;
    play.begin().await;
    play.step(&Step::UntilRuns("b/1")).await;
    play.create(&quota).await;
    let quotas = api(&place.client, &place.namespace, "", "v1", "ResourceQuota");
    // It holds once it is counted.
    let deadline = Instant::now() + place.patience;
    while quotas.get("none").await.unwrap().data["status"]["hard"]["pods"] != "0" {
        assert!(Instant::now() < deadline, "the quota is not counted");
        sleep(Duration::from_millis(50)).await;
    }
    play.step(&Step::End("b/1", 0)).await;
    play.until("the quota is not told of", |view| {
        let message = view.runs["r"]["status"]["message"]
            .as_str()
            .unwrap_or_default();
        message.contains("exceeded quota")
    })
    .await;
    let back = Patch::Merge(json!({"spec": {"hard": {"pods": "100"}}}));
    let params = PatchParams::default();
    quotas.patch("none", &params, &back).await.unwrap();
    ends(play, &WELL).await;
    place.end().await;
}

/// The operator as a service account whose rights are taken away in mid-run and given back.
#[tokio::test]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
async fn rights_that_are_taken_away_and_given_back_end_nothing() {
    let mut place = place().await;
    let path = std::env::var_os(cluster::FAKE).unwrap();
    let kubeconfig = Kubeconfig::read_from(path).unwrap();
    let whole = KubeConfigOptions::default();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &whole)
        .await
        .unwrap();
    config.default_retry = false;
    config.auth_info.impersonate =
        Some(format!("system:serviceaccount:{}:default", place.namespace));
    place.upstream = Client::try_from(config).unwrap();
    let scenario = abc(json!({}));
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "operator"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": place.namespace}],
    });
    let mut play = open(&place, &scenario, "rights").await;
    play.create(&binding).await;
    play.begin().await;
    play.step(&Step::UntilRuns("b/1")).await;
    play.step(&Step::UntilPhase("Running")).await;
    let bindings = api(
        &place.client,
        &place.namespace,
        "rbac.authorization.k8s.io",
        "v1",
        "RoleBinding",
    );
    bindings
        .delete("operator", &DeleteParams::default())
        .await
        .unwrap();
    play.step(&Step::End("b/1", 0)).await;
    let refused = play.operators[0].1.clone();
    let before = refused.ledger().writes.len();
    let deadline = Instant::now() + place.patience;
    while refused.ledger().writes.len() < before + 3 {
        assert!(Instant::now() < deadline, "it does not try again");
        sleep(Duration::from_millis(100)).await;
    }
    let runs = runs(&place.client, &place.namespace);
    let status = runs.get("r").await.unwrap().data["status"].clone();
    assert_eq!(status["phase"], "Running");
    play.create(&binding).await;
    ends(play, &WELL).await;
    place.end().await;
}
