//! Every scenario, clean and then with every plan chosen, several at once.
//!
//! Must not know what a plan is about.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kube::Client;
use tokio::time::Instant;

use super::came::Came;
use super::plan::{Plan, plans};
use super::play::{Place, play};
use super::report::Report;
use super::scenario::Scenario;

/// How often a plan is played whose fault does not come about.
const TRIES: usize = 3;

fn setting(name: &str) -> Option<String> {
    std::env::var(format!("APSCLI_FAULTS{name}")).ok()
}

/// Which plans of a list are carried out: all, or a part of them that is the same every time.
fn chosen(plans: Vec<Plan>, scenarios: &[Scenario]) -> Vec<Plan> {
    let whole = setting("").as_deref() == Some("full");
    let only = setting("_ONLY").unwrap_or_default();
    let every = setting("_EVERY").and_then(|text| text.parse().ok());
    let every: usize = every.unwrap_or(if whole { 1 } else { 25 });
    // Which of so many parts.
    let part = setting("_PART").and_then(|text| text.parse().ok());
    let part: usize = part.unwrap_or_default();
    let words = |plan: &Plan| {
        let name = scenarios[plan.scenario].name;
        format!("{name} / {} / {}", plan.fault, plan.at)
    };
    // Not by counting: faults come round, and a step would meet some of them only.
    let hash = |plan: &Plan| {
        let words = words(plan);
        let hash = words.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        usize::try_from(hash >> 33).unwrap()
    };
    let mut left_out = Vec::new();
    let mut chosen = plans;
    chosen.retain(|plan| {
        if !only.split(',').all(|word| words(plan).contains(word)) {
            return false;
        }
        // One run of hundreds of pods costs as much as dozens of small ones.
        let large = scenarios[plan.scenario].sample.is_some() && only.is_empty();
        let every = if large { every * 8 } else { every };
        let is_chosen = hash(plan) % every == part % every;
        if !is_chosen {
            left_out.push(plan.clone());
        }
        is_chosen
    });
    // Of each scenario and of each fault there is one at least.
    left_out.sort_by_cached_key(hash);
    for plan in left_out {
        let lacks = |is: fn(&Plan, &Plan) -> bool| !chosen.iter().any(|it| is(it, &plan));
        if lacks(|one, other| one.scenario == other.scenario)
            || lacks(|one, other| one.fault == other.fault)
        {
            chosen.push(plan);
        }
    }
    // As many of each kind as may be, wherever it has to stop; and those that wait long beside
    // those that do not.
    chosen.sort_by_cached_key(|plan| hash(plan).reverse_bits());
    chosen
}

/// How often each scenario is run clean: its plans are of what comes about each time.
const CLEAN_RUNS: usize = 4;

/// The clean runs of each scenario that a plan may be of.
fn clean_runs(scenarios: &[Scenario]) -> VecDeque<Plan> {
    let only = setting("_ONLY").unwrap_or_default();
    // Words that are of a scenario spare the others.
    let named = |scenario: &Scenario| only.split(',').any(|word| scenario.name.contains(word));
    let some = scenarios.iter().any(named);
    let of = scenarios.iter().enumerate();
    let of: Vec<usize> = of
        .filter(|(_, scenario)| !some || named(scenario))
        .map(|(index, _)| index)
        .collect();
    // How often a status is written depends on how fast all else is, and at first that is slow.
    let rounds = (0..CLEAN_RUNS).flat_map(|_| of.iter().copied());
    rounds
        .map(|index| Plan::clean(index, &scenarios[index]))
        .collect()
}

/// Runs every scenario clean, then the plans, several at once, and prints the table.
pub async fn run(client: Client) {
    let began = Instant::now();
    let dir = setting("_OUT").map_or_else(std::env::temp_dir, PathBuf::from);
    let logs = dir.join(format!("apscli-faults-{}", std::process::id()));
    std::fs::create_dir_all(&logs).unwrap();
    let workers = setting("_WORKERS").and_then(|text| text.parse().ok());
    let workers: usize = workers.unwrap_or(16);
    let scenarios = Arc::new(super::scenario::all());
    let queue = clean_runs(&scenarios);
    let results = setting("_RESULTS").map(PathBuf::from);
    let cleans: BTreeMap<usize, Vec<Came>> = BTreeMap::new();
    let (cleans, report) = (
        Arc::new(Mutex::new(cleans)),
        Arc::new(Mutex::new(Report::new(results, &scenarios))),
    );
    let unchecked = |_: &Plan, _: &mut Came| {};
    work(
        &client,
        &logs,
        workers,
        &scenarios,
        queue,
        None,
        unchecked,
        {
            let cleans = Arc::clone(&cleans);
            move |plan, mut came: Came| {
                let mut cleans = cleans.lock().unwrap();
                let before = cleans.entry(plan.scenario).or_default();
                if let Some(first) = before.first() {
                    came.compare(first);
                }
                before.push(came);
            }
        },
    )
    .await;
    let cleans = Arc::into_inner(cleans).unwrap().into_inner().unwrap();
    let mut all = Vec::new();
    for (index, clean) in &cleans {
        let scenario = &scenarios[*index];
        for came in clean {
            assert!(
                came.differences.is_empty(),
                "{} without any fault: {:#?}",
                scenario.name,
                came.differences
            );
            let phase = came.end["runs"][0]["status"]["phase"].as_str();
            assert_eq!(phase, scenario.ends, "{}: {:#}", scenario.name, came.end);
        }
        let plans = plans(*index, scenario, clean);
        assert!(!plans.is_empty(), "no plans for {}", scenario.name);
        all.extend(plans);
    }
    let whole = all.len();
    let mut chosen = chosen(all, &scenarios);
    assert!(!chosen.is_empty(), "no plan has all these words");
    chosen.retain(|plan| !report.lock().unwrap().has(plan));
    let minutes = setting("_MINUTES").and_then(|text| text.parse().ok());
    let until = minutes.map(|minutes: u64| began + Duration::from_secs(60 * minutes));
    println!(
        "{} of {whole} plans for {} scenarios",
        chosen.len(),
        cleans.len()
    );
    let cleans = Arc::new(cleans);
    let names = Arc::clone(&scenarios);
    let compare = {
        let cleans = Arc::clone(&cleans);
        move |plan: &Plan, came: &mut Came| came.compare(&cleans[&plan.scenario][0])
    };
    work(
        &client,
        &logs,
        workers,
        &scenarios,
        chosen.into(),
        until,
        compare,
        {
            let report = Arc::clone(&report);
            move |plan, came| {
                report.lock().unwrap().take(&names, &plan, &came);
            }
        },
    )
    .await;
    let report = report.lock().unwrap();
    let runs = report.print(&scenarios, began.elapsed());
    assert!(runs > 0, "no fault came about");
    let parts = ["_ONLY", "_EVERY", "_MINUTES"];
    let is_part = parts.iter().any(|name| setting(name).is_some());
    if setting("").as_deref() == Some("full") && !is_part {
        // What never comes about tells nothing.
        let unreached = report.unreached(&scenarios);
        assert!(unreached.is_empty(), "no plan came about of {unreached:?}");
    }
    assert!(report.failures.is_empty(), "logs are in {}", logs.display());
    let _ = std::fs::remove_dir_all(&logs);
}

/// Carries out a queue of plans with so many workers; `check` adds what is wrong with one that was.
#[allow(
    clippy::too_many_arguments,
    reason = "two lists of plans, and what is done with each"
)]
async fn work(
    client: &Client,
    logs: &Path,
    workers: usize,
    scenarios: &Arc<Vec<Scenario>>,
    queue: VecDeque<Plan>,
    until: Option<Instant>,
    check: impl Fn(&Plan, &mut Came) + Clone + Send + Sync + 'static,
    done: impl Fn(Plan, Came) + Clone + Send + Sync + 'static,
) {
    static NUMBER: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(1);
    let workers = workers.min(queue.len());
    let queue = Arc::new(Mutex::new(queue));
    let mut tasks = Vec::new();
    for _ in 0..workers {
        let (queue, scenarios) = (Arc::clone(&queue), Arc::clone(scenarios));
        let (check, done) = (check.clone(), done.clone());
        let (client, logs) = (client.clone(), logs.to_owned());
        tasks.push(tokio::spawn(async move {
            let mut place = Place::new(&client, &logs).await;
            loop {
                if until.is_some_and(|until| Instant::now() > until) {
                    break;
                }
                let Some(plan) = queue.lock().unwrap().pop_front() else {
                    break;
                };
                let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                let mut came = play(&place, &scenarios[plan.scenario], &plan, number).await;
                // Where its moment did not come, it may the next time.
                check(&plan, &mut came);
                for _ in 1..TRIES {
                    if came.fired || !came.differences.is_empty() {
                        break;
                    }
                    came = play(&place, &scenarios[plan.scenario], &plan, number).await;
                    check(&plan, &mut came);
                }
                let log = logs.join(format!("{number}.log"));
                let wrong = !came.differences.is_empty();
                if wrong {
                    let place_anew = Place::new(&client, &logs).await;
                    std::mem::replace(&mut place, place_anew).end().await;
                    println!(
                        "log {}: {} / {} / {}",
                        log.display(),
                        scenarios[plan.scenario].name,
                        plan.fault,
                        plan.at
                    );
                }
                done(plan, came);
            }
            place.end().await;
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}
