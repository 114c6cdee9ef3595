//! That all this notices anything: an operator that breaks one of the rules of doing things exactly
//! once (`src/operator/broken.rs`) ends otherwise than it should under a plan that is part of the
//! whole set, and one that keeps them all does not.
//!
//! Must not look for how a rule is broken, only at what comes of it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::sync::Semaphore;

use super::came::Came;
use super::plan::{Plan, plans};
use super::play::{IDLE, Place, play};
use super::scenario::{self, A_IS_GONE, PODS_GO, Scenario};
use crate::cluster;

/// An operator that was built with the feature `broken-rules`.
const OPERATOR: &str = "APSCLI_BROKEN_OPERATOR";
/// How long a broken operator may stand still before that is what is wrong with it: longer than a new
/// leader keeps the names of pods.
const PATIENCE: Duration = Duration::from_secs(75);
/// How many rules are tried at once.
const AT_ONCE: usize = 5;

/// A rule, how it is broken, and the plans that have to notice.
struct Breach {
    rule: &'static str,
    how: &'static str,
    scenario: &'static str,
    fault: &'static str,
    /// What stands in the place of the fault.
    at: &'static str,
}

const fn breach(
    rule: &'static str,
    how: &'static str,
    [scenario, fault, at]: [&'static str; 3],
) -> Breach {
    Breach {
        rule,
        how,
        scenario,
        fault,
        at,
    }
}

const STATUS: &str = "patch workflowruns/status r";

const BREACHES: [Breach; 13] = [
    breach(
        "1",
        "each time that a pod is built its name has another tail",
        ["chain of 5", "answer lost, 504", "create pods b/1"],
    ),
    breach(
        "2",
        "pods have no finalizer",
        [
            "chain of 5",
            "killed unanswered, pods deleted",
            "create pods b/1",
        ],
    ),
    breach(
        "3",
        "whatever has the pod's name is taken for ours",
        ["squatted name", "none", ""],
    ),
    breach(
        "4-list",
        "after a start the run's pods are not listed",
        ["suspend, resume", "killed after", STATUS],
    ),
    breach(
        "4-uid",
        "a pod's deletion names no UID",
        ["pod replaced", "delayed 8 s", "delete pods b/1"],
    ),
    breach(
        "4-deletion",
        "a run that is being deleted goes on",
        ["run deleted and held", "none", ""],
    ),
    breach(
        "5",
        "what is older than our own writes is news",
        ["suspend, resume", "list older", "of workflowruns"],
    ),
    breach(
        "6",
        "after a start, a finished node is looked at once more",
        [A_IS_GONE, "killed after", "create pods c/1"],
    ),
    breach(
        "7",
        "status writes carry no resourceVersion",
        // Its first status is never its last: its user waits for one before it goes on.
        ["suspend, resume", "held until final, two", STATUS],
    ),
    breach(
        "8",
        "a pod that a list does not have is lost, and nobody asks for it",
        ["suspend, resume", "list stale", "of pods"],
    ),
    breach(
        "9",
        "after a start, a process that may have begun is begun again",
        ["processes", "killed after", STATUS],
    ),
    breach(
        "10",
        "who has led writes on, whatever becomes of its Lease, and names are given back at once",
        [PODS_GO, "held unanswered, two", "create pods a/1"],
    ),
    breach(
        "11",
        "the watch of runs ends at one that cannot be read",
        ["poisoned objects beside", "none", ""],
    ),
];

/// A line of the table.
struct Seen {
    rule: String,
    how: &'static str,
    /// The plan that noticed, and what.
    noticed: Option<(String, String)>,
    /// What was wrong with an operator that keeps the rules.
    wrong: Vec<String>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs an operator that breaks rules: tests/faults/run --broken"]
async fn each_rule_that_is_broken_is_noticed() {
    cluster::definitions();
    let program = std::env::var_os(OPERATOR).map(PathBuf::from);
    let program = program.expect("run this by tests/faults/run --broken");
    let client = cluster::client(cluster::FAKE).await;
    let logs = std::env::temp_dir().join(format!("apscli-broken-{}", std::process::id()));
    std::fs::create_dir_all(&logs).unwrap();
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let only = std::env::var("APSCLI_FAULTS_ONLY").unwrap_or_default();
    let chosen = BREACHES
        .iter()
        .filter(|it| only.is_empty() || only.split(',').any(|rule| rule == it.rule));
    let mut tasks = Vec::new();
    for (number, breach) in chosen.enumerate() {
        let (turns, client) = (Arc::clone(&turns), client.clone());
        let (program, logs) = (program.clone(), logs.clone());
        tasks.push(tokio::spawn(async move {
            let _turn = turns.acquire().await;
            // Each writes logs of its own.
            try_to(breach, &client, &program, &logs, number * 100).await
        }));
    }
    let mut table =
        String::from("\n| rule | broken so | noticed by | which saw |\n|---|---|---|---|\n");
    let mut failures = Vec::new();
    for task in tasks {
        let Seen {
            rule,
            how,
            noticed,
            wrong,
        } = task.await.unwrap();
        failures.extend(wrong);
        if noticed.is_none() {
            failures.push(format!("{rule}: {how}, and nobody notices"));
        }
        let (plan, saw) = noticed.unwrap_or_default();
        let saw = saw.replace('|', "\\|");
        writeln!(table, "| {rule} | {how} | {plan} | {saw} |").unwrap();
    }
    println!("{table}");
    assert!(
        failures.is_empty(),
        "logs are in {}: {failures:#?}",
        logs.display()
    );
    let _ = std::fs::remove_dir_all(&logs);
}

/// Carries the plans out with the rule broken until one notices, and that one with the rule kept.
/// Where a rule is kept for the sake of a fault, all is well without the fault.
async fn try_to(
    breach: &'static Breach,
    client: &Client,
    program: &Path,
    logs: &Path,
    mut number: usize,
) -> Seen {
    let scenarios = scenario::all();
    let named = |it: &Scenario| it.name == breach.scenario;
    let index = scenarios.iter().position(named).unwrap();
    let scenario = &scenarios[index];
    let kept = Place::new(client, logs).await;
    let mut cleans: Vec<Came> = Vec::new();
    let mut wrong = Vec::new();
    let mut next = || {
        number += 1;
        number
    };
    for _ in 0..2 {
        let came = play(&kept, scenario, &Plan::clean(index, scenario), next()).await;
        cleans.push(came);
    }
    let [first, second] = cleans.as_mut_slice() else {
        unreachable!("two were played")
    };
    second.compare(first);
    wrong.extend(first.differences.iter().chain(&second.differences).cloned());
    let mut chosen = plans(index, scenario, &cleans);
    chosen.push(Plan::clean(index, scenario));
    chosen.retain(|plan| plan.fault == breach.fault && plan.at.contains(breach.at));
    if breach.fault != "none" {
        // First without the fault, which alone brings it out.
        chosen.insert(0, Plan::clean(index, scenario));
    }
    let mut noticed = None;
    for plan in &chosen {
        let mut place = Place::new(client, logs).await;
        place.program = program.to_owned();
        place.broken = Some(breach.rule);
        place.patience = PATIENCE;
        let mut came = play(&place, scenario, plan, next()).await;
        place.end().await;
        came.compare(&cleans[0]);
        let Some(first) = came.differences.first() else {
            continue;
        };
        let first: String = first.chars().take(160).collect();
        // One that does not even begin, or to which the fault never comes, says nothing of the rule.
        if !came.fired || breach.rule != "11" && came.differences.iter().any(|it| it == IDLE) {
            wrong.push(format!("{}: {first}, but not for the rule", breach.rule));
            continue;
        }
        let at = [scenario.name, &plan.fault, &plan.at].map(str::trim);
        let at = at.join(" / ").trim_end_matches([' ', '/']).to_owned();
        if plan.fault != breach.fault {
            wrong.push(format!("{}: without any fault, {first}", breach.rule));
            continue;
        }
        noticed = Some((at, first));
        if plan.rule.is_some() {
            let mut came = play(&kept, scenario, plan, next()).await;
            came.compare(&cleans[0]);
            if !came.fired {
                wrong.push(format!("{}: its fault never comes", breach.rule));
            }
            wrong.extend(came.differences);
        }
        break;
    }
    kept.end().await;
    Seen {
        rule: breach.rule.replace('-', ", "),
        how: breach.how,
        noticed,
        wrong,
    }
}
