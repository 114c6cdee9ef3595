//! Golden states: what an operator of each released version left in a cluster when it was stopped
//! in mid-run, and how the run has to end under today's operator.
//!
//! They stand in `tests/data/golden/VERSION`, written once by that version and never changed. A new
//! version writes its own: `APSCLI_GOLDEN=write cargo test --lib golden`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::fake::{Act, Gone};
use super::process::{all_well, begun, operate_with};
use super::*;

/// A run that stands still in the middle, with the phase that it is to end in.
type State = (&'static str, &'static str, Fake);

/// The states that every version leaves.
#[allow(clippy::too_many_lines, reason = "a list")]
async fn states() -> Vec<State> {
    let mut states = Vec::new();
    let template = json!({"template": diamond()});

    let fake = started().await;
    fake.put("workflowruns", run(&template));
    passes(1).await;
    fake.pod_runs("a/1");
    passes(1).await;
    states.push(("first-node-runs", "Succeeded", fake));

    let fake = started().await;
    fake.put("workflowruns", run(&template));
    passes(1).await;
    fake.pod_ends("a/1", ok());
    passes(1).await;
    fake.pod_runs("b/1");
    passes(1).await;
    states.push(("branches-run", "Succeeded", fake));

    // Its pod is there, and nothing of it is on record.
    let fake = started().await;
    fake.rule("status", 1000, Act::Refuse(500, "InternalError", "no"));
    fake.put("workflowruns", run(&template));
    passes(1).await;
    states.push(("pod-without-record", "Succeeded", fake));

    let fake = started().await;
    let spec = json!({"template": {"a": node(&[]), "b": node(&["a"])}, "onLost": "Retry"});
    fake.put("workflowruns", run(&spec));
    passes(1).await;
    fake.rule(
        "create pod a/2",
        1000,
        Act::Refuse(429, "TooManyRequests", "later"),
    );
    fake.pod_runs("a/1");
    fake.pod_vanishes("a/1");
    passes(2).await;
    states.push(("second-attempt-on-record", "Succeeded", fake));

    let fake = started().await;
    fake.put(
        "configmaps",
        json!({"metadata": {"name": "p"}, "data": {"x": "1"}}),
    );
    let spec = json!({"template": diamond(), "paramsFrom": [{"configMap": {"name": "p"}}]});
    fake.put("workflowruns", run(&spec));
    passes(1).await;
    fake.pod_ends("a/1", ok());
    passes(1).await;
    states.push(("copied-parameters", "Succeeded", fake));

    let fake = started().await;
    let mut nodes: serde_json::Map<String, Value> = (0..101)
        .map(|it| (format!("n{it:03}"), node(&[])))
        .collect();
    nodes.insert("last".to_owned(), node(&["n000", "n100"]));
    fake.put("workflowruns", run_of(&Value::Object(nodes)));
    passes(2).await;
    for index in 0..60 {
        fake.pod_ends(&format!("n{index:03}/1"), ok());
    }
    passes(3).await;
    states.push(("pages", "Succeeded", fake));

    let fake = started().await;
    let spec = json!({"template": diamond(), "suspend": true});
    fake.put("workflowruns", run(&spec));
    passes(1).await;
    fake.merge("workflowruns", "r", &json!({"spec": {"suspend": false}}));
    fake.hold_watch("workflowruns");
    passes(1).await;
    states.push(("resumed-unheard", "Succeeded", fake));

    let fake = started().await;
    fake.put("workflowruns", run(&template));
    passes(1).await;
    fake.pod_runs("a/1");
    passes(1).await;
    fake.merge("workflowruns", "r", &json!({"spec": {"cancel": true}}));
    passes(1).await;
    states.push(("being-cancelled", "Cancelled", fake));

    let fake = started().await;
    let mut skips = diamond();
    skips["b"]["decision_expr"] = json!("a == 0");
    skips["d"]["decision_expr"] = json!("c && b == 'N/A'");
    let spec = json!({"template": {"param": skips, "decision_expr": "d"}});
    fake.put("workflowruns", run(&spec));
    passes(1).await;
    fake.pod_ends("a/1", ok());
    passes(1).await;
    states.push(("a-branch-skipped", "Succeeded", fake));

    // Deleted by somebody, its result is held by the finalizer and not on record yet.
    let fake = started().await;
    fake.put("workflowruns", run(&json!({"template": {"a": node(&[])}})));
    passes(1).await;
    fake.pod_runs("a/1");
    passes(1).await;
    fake.forget_watch("pods", Gone::Event);
    fake.hold_watch("pods");
    fake.pod_ends("a/1", ok());
    let name = fake.pod_name("a/1");
    fake.delete("pods", &name);
    states.push(("result-held-by-the-finalizer", "Succeeded", fake));

    let fake = started().await;
    fake.put("workflowruns", run(&json!({"template": {"a": node(&[])}})));
    passes(1).await;
    fake.pod_ends("a/1", Ending::Exited(1));
    passes(2).await;
    states.push(("over", "Failed", fake));

    // From a copy of a service's template, which its owner has changed since.
    let fake = started().await;
    let service = |template: &Value| {
        json!({"metadata": {"name": "s"}, "spec": {"fqsn": "some.service",
            "versions": [{"version": "1", "template": template}]}})
    };
    fake.put("services", service(&diamond()));
    passes(1).await;
    fake.put("workflowruns", run(&json!({"fqsn": "some.service"})));
    passes(1).await;
    fake.pod_ends("a/1", ok());
    passes(1).await;
    fake.merge("services", "s", &service(&json!({"z": node(&[])})));
    passes(1).await;
    states.push(("by-fqsn", "Succeeded", fake));

    let fake = started().await;
    let spec = json!({"template": diamond(), "podRetention": "Never"});
    fake.put("workflowruns", run(&spec));
    passes(1).await;
    fake.pod_ends("a/1", ok());
    passes(3).await;
    fake.pod_runs("b/1");
    passes(1).await;
    states.push(("first-pod-gone", "Succeeded", fake));

    // Its time is over when the next operator comes.
    let fake = started().await;
    let spec = json!({"template": diamond(), "timeout": "5s"});
    fake.put("workflowruns", run(&spec));
    passes(1).await;
    fake.pod_runs("a/1");
    passes(1).await;
    states.push(("timeout-of-the-run", "Failed", fake));

    // Two processes that nobody can tell of once their operator is gone.
    for (name, ends, on_lost) in [
        ("processes-lost", "Failed", "Fail"),
        ("processes-lost-and-retried", "Succeeded", "Retry"),
    ] {
        let only_first = |node: &str| (node == "a").then(ok);
        let (fake, _, _process) = begun(only_first).await;
        let spec = json!({"template": diamond(), "executor": "process", "onLost": on_lost});
        fake.put("workflowruns", run(&spec));
        passes(1).await;
        states.push((name, ends, fake));
    }
    states
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden")
}

fn versions() -> Vec<PathBuf> {
    let mut versions: Vec<PathBuf> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    versions.sort();
    versions
}

/// The attempts that a run has on record as processes that have begun.
fn processes_begun(run: &Value) -> BTreeSet<String> {
    let nodes = run["status"]["nodes"].as_array();
    let begun = nodes.into_iter().flatten().filter(|node| {
        let waits = node["phase"] == "Pending" || node["reason"] == "Queued";
        node["executor"] == "process" && !waits
    });
    begun
        .map(|node| format!("{}/{}", node["name"].as_str().unwrap(), node["attempt"]))
        .collect()
}

/// Every state of every version goes on to its end: no pod is made twice, no process and
/// nothing that is over is begun again.
#[tokio::test(start_paused = true)]
async fn what_any_released_version_left_goes_on() {
    if std::env::var_os("APSCLI_GOLDEN").is_some_and(|it| it == "write") {
        let folder = folder().join(env!("CARGO_PKG_VERSION"));
        fs::create_dir_all(&folder).unwrap();
        for (name, ends, fake) in states().await {
            let state = json!({"ends": ends, "objects": fake.objects()});
            let text = serde_json::to_string_pretty(&state).unwrap();
            // What a version has left is never changed.
            let file = folder.join(format!("{name}.json"));
            if !file.exists() {
                fs::write(file, text + "\n").unwrap();
            }
        }
    }
    let mut replayed = 0;
    for file in versions()
        .iter()
        .flat_map(|version| fs::read_dir(version).unwrap())
    {
        let file = file.unwrap().path();
        if file.extension().is_none_or(|ending| ending != "json") {
            continue;
        }
        let state: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let fake = Fake::new();
        fake.load(&state["objects"]);
        let before: BTreeSet<String> = fake.attempts().into_iter().collect();
        let processes_before = processes_begun(&fake.run());
        fake.kubelet(well);
        let seen = Arc::default();
        operate_with(&fake, &seen, all_well);
        passes(1).await;
        // What ran when it was left ends now; what is being deleted is stopped.
        fake.kubelet_begins();
        passes(60).await;
        assert_eq!(
            phase(&fake),
            state["ends"],
            "{}: {:#}",
            file.display(),
            fake.run()
        );
        for (attempt, made) in fake.created() {
            assert_eq!(made, 1, "{}: {attempt}", file.display());
            assert!(
                !before.contains(&attempt),
                "{}: {attempt} is made anew",
                file.display()
            );
        }
        let started = seen.lock().unwrap().started.clone();
        let once: BTreeSet<String> = started.iter().cloned().collect();
        assert_eq!(once.len(), started.len(), "{}: {started:?}", file.display());
        assert!(
            once.is_disjoint(&processes_before),
            "{}: {started:?} after {processes_before:?}",
            file.display()
        );
        let finished = fake.run()["status"]["progress"].clone();
        let (done, all) = finished.as_str().unwrap().split_once('/').unwrap();
        assert_eq!(done, all, "{}", file.display());
        fake.calls();
        silence(&fake).await;
        replayed += 1;
    }
    assert!(replayed >= 16, "{replayed}");
}

/// Whoever changes the version, or adds a state, has to leave it.
#[tokio::test(start_paused = true)]
async fn this_version_has_left_its_states() {
    let left = folder().join(env!("CARGO_PKG_VERSION"));
    for (name, _, _) in states().await {
        assert!(
            left.join(format!("{name}.json")).exists(),
            "{name}: run APSCLI_GOLDEN=write cargo test --lib golden, and commit what it writes"
        );
    }
}
