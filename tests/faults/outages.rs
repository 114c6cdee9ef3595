//! The cluster itself fails: its API server hangs, its etcd is restarted, its history is forgotten,
//! and the operator's clock jumps.
//!
//! These harm a whole cluster, so they run one at a time on one of their own: `tests/faults/run`.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::play::{Place, Play};
use super::proxy::Key;
use super::scenario::{Scenario, Step, chain, plain_scenario, run};
use crate::cluster;

fn cluster(words: &[&str]) {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster/cluster");
    let status = Command::new(program).args(words).status().unwrap();
    assert!(status.success(), "{words:?}");
}

async fn place() -> Place {
    cluster::definitions();
    let client = cluster::client(cluster::FAKE).await;
    Place::new(&client, &std::env::temp_dir()).await
}

fn abc(spec: Value) -> Scenario {
    let mut spec = spec;
    spec["template"] = chain(&["a", "b", "c"]);
    plain_scenario("", run(spec, &[("seconds.b", "forever")]), "")
}

async fn open<'a>(place: &'a Place, scenario: &'a Scenario, test: &str, two: bool) -> Play<'a> {
    let log = std::env::temp_dir().join(format!("apscli-outage-{test}-{}.log", std::process::id()));
    Play::open(place, scenario, None, two, &log).await
}

/// An operator that has lost its Lease ends, and is started again as a kubelet does.
fn keep(play: &Play<'_>) -> tokio::task::JoinHandle<()> {
    let operators = play.operators.clone();
    tokio::spawn(async move {
        loop {
            for (operator, proxy) in &operators {
                if !operator.lives() {
                    proxy.open();
                    operator.start();
                }
            }
            sleep(Duration::from_millis(200)).await;
        }
    })
}

async fn ends_well(mut play: Play<'_>, keeper: Option<tokio::task::JoinHandle<()>>) {
    play.until_final().await;
    let end = play.end_state().await;
    let status = end["runs"][0]["status"].clone();
    let ledger = play.ledger();
    play.pods(&ledger).await;
    let starts = play.operators[0].0.starts();
    if keeper.is_none() {
        assert_eq!(starts, 1, "it needs no restart");
    }
    let differences = play.close_with(keeper).await;
    assert!(differences.is_empty(), "{differences:#?}");
    assert_eq!(status["phase"], "Succeeded", "{end:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "harms its cluster: tests/faults/run"]
async fn an_api_server_that_hangs_for_a_minute() {
    for two in [false, true] {
        let (place, scenario) = (place().await, abc(json!({})));
        let mut play = open(&place, &scenario, "hangs", two).await;
        play.begin().await;
        let keeper = two.then(|| keep(&play));
        play.step(&Step::UntilRuns("b/1")).await;
        cluster(&["pause", "apiserver"]);
        sleep(Duration::from_secs(60)).await;
        cluster(&["resume", "apiserver"]);
        play.step(&Step::End("b/1", 0)).await;
        ends_well(play, keeper).await;
        place.end().await;
    }
}

/// A run of 300 nodes of which some have begun and most have not.
async fn in_the_middle_of_300_creates(play: &mut Play<'_>) {
    play.begin().await;
    while play.ledger().made.len() < 50 {
        sleep(Duration::from_millis(10)).await;
    }
    let made = play.ledger().made.len();
    assert!(made < 300, "{made} are made");
}

fn three_hundred_nodes() -> Scenario {
    let mut scenarios = super::scenario::all().into_iter();
    scenarios.find(|it| it.name == "300 nodes").unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "harms its cluster: tests/faults/run"]
async fn an_api_server_that_hangs_in_the_middle_of_300_creates() {
    let (place, scenario) = (place().await, three_hundred_nodes());
    let mut play = open(&place, &scenario, "hangs-in-creates", false).await;
    in_the_middle_of_300_creates(&mut play).await;
    cluster(&["pause", "apiserver"]);
    sleep(Duration::from_secs(60)).await;
    cluster(&["resume", "apiserver"]);
    play.until_final().await;
    let end = play.end_state().await;
    // What the server does when it goes on, nobody waits for any more: the proxy cannot count it.
    let view = place.witness.view();
    let pods: Vec<&str> = view.pods_of("r").map(|pod| &*pod.title).collect();
    let attempts: BTreeSet<&str> = pods.iter().copied().collect();
    assert_eq!((pods.len(), attempts.len()), (300, 300));
    assert_eq!(play.operators[0].0.starts(), 1, "it needs no restart");
    let differences = play.close().await;
    assert!(differences.is_empty(), "{differences:#?}");
    assert_eq!(end["runs"][0]["status"]["phase"], "Succeeded", "{end:#}");
    place.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "harms its cluster: tests/faults/run"]
async fn an_etcd_that_is_restarted_in_the_middle_of_300_creates() {
    let (place, scenario) = (place().await, three_hundred_nodes());
    let mut play = open(&place, &scenario, "etcd", false).await;
    in_the_middle_of_300_creates(&mut play).await;
    cluster(&["restart", "etcd"]);
    ends_well(play, None).await;
    place.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "harms its cluster: tests/faults/run"]
async fn a_history_that_is_forgotten_while_the_operator_stands_still() {
    let (place, scenario) = (place().await, abc(json!({})));
    let mut play = open(&place, &scenario, "compacted", false).await;
    play.begin().await;
    play.step(&Step::UntilRuns("b/1")).await;
    play.operators[0].0.signal(Signal::STOP);
    play.step(&Step::End("b/1", 0)).await;
    let lists = |play: &Play<'_>| {
        let reads = play.ledger().reads;
        let of_all = |key: &Key| key.verb == "list" && key.resource == "pods";
        reads.iter().filter(|(key, _)| of_all(key)).count()
    };
    let before = lists(&play);
    // The pod's end is still told, from what is on its way; where nothing was written since, a watch
    // may go on from there.
    let later =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "later"}});
    play.create(&later).await;
    cluster(&["compact"]);
    play.operators[0].0.signal(Signal::CONT);
    play.until_final().await;
    assert!(lists(&play) > before, "its watch went on");
    ends_well(play, None).await;
    place.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "harms its cluster: tests/faults/run"]
async fn kubelets_that_fall_silent_for_a_while() {
    let (place, scenario) = (place().await, abc(json!({})));
    let mut play = open(&place, &scenario, "silent", false).await;
    play.begin().await;
    play.step(&Step::UntilRuns("b/1")).await;
    cluster(&["pause", "kwok"]);
    play.step(&Step::End("b/1", 0)).await;
    sleep(Duration::from_secs(20)).await;
    cluster(&["resume", "kwok"]);
    ends_well(play, None).await;
    place.end().await;
}

/// The wall clock of the operator that leads jumps an hour, forth or back; its monotonic clock does
/// not. It goes on leading, the other goes on waiting, and no timeout is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "harms its cluster: tests/faults/run"]
async fn a_wall_clock_that_jumps_an_hour() {
    const LIBRARY: &str = "faketime/libfaketime.so.1";
    let folders = [
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib",
    ];
    let library = folders
        .iter()
        .map(|it| Path::new(it).join(LIBRARY))
        .find(|it| it.exists());
    let library = library.expect("tests/cluster/install-deps installs faketime");
    for jump in ["+3600", "-3600"] {
        let place = place().await;
        let scenario = abc(json!({"timeout": "10m"}));
        let mut play = open(&place, &scenario, "clock", true).await;
        let file = std::env::temp_dir().join(format!("apscli-clock-{}", std::process::id()));
        std::fs::write(&file, "+0").unwrap();
        play.operators[0].0.environment(&[
            ("LD_PRELOAD", library.to_str().unwrap()),
            ("FAKETIME_TIMESTAMP_FILE", file.to_str().unwrap()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("DONT_FAKE_MONOTONIC", "1"),
        ]);
        play.begin().await;
        play.step(&Step::UntilRuns("b/1")).await;
        std::fs::write(&file, jump).unwrap();
        // Longer than a Lease holds.
        sleep(Duration::from_secs(20)).await;
        assert!(
            play.operators[0].0.lives(),
            "{:?}",
            play.operators[0].0.accidents()
        );
        assert!(
            !play.operators[1].1.watches(&["pods"]),
            "the other leads too"
        );
        let renewed = lease_time(&place).await;
        let jumped = renewed.as_second() - jiff::Timestamp::now().as_second();
        let wanted: i64 = jump.parse().unwrap();
        assert!(
            (jumped - wanted).abs() < 600,
            "its clock did not jump: {jumped}"
        );
        play.step(&Step::End("b/1", 0)).await;
        ends_well(play, None).await;
        place.end().await;
    }
}

async fn lease_time(place: &Place) -> jiff::Timestamp {
    let leases = super::witness::api(
        &place.client,
        &place.namespace,
        "coordination.k8s.io",
        "v1",
        "Lease",
    );
    let lease = leases.get("apscli").await.unwrap();
    lease.data["spec"]["renewTime"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap()
}
