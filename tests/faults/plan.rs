//! Plans: each scenario is run clean, and then once for each write (or event) and each fault. What
//! comes of it must be the same.
//!
//! Must not know how a fault is made, nor carry anything out.

use std::time::Duration;

use super::came::Came;
use super::proxy::{Fault, Key, Refusal, Rule, Said, WatchFault};
use super::scenario::Scenario;

/// What goes wrong in one run of a scenario.
#[derive(Clone, Debug)]
pub struct Plan {
    pub scenario: usize,
    /// What goes wrong, in words; one column of the table.
    pub fault: String,
    /// Where.
    pub at: String,
    pub rule: Option<Rule>,
    /// Which pods somebody deletes while the operator is down.
    pub deleted: Deleted,
    /// Two operators stand for election.
    pub two: bool,
}

/// Pods that somebody deletes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deleted {
    None,
    /// Those that have ended, or do so in a moment: no work is lost.
    Ended,
    All,
}
impl Plan {
    /// A plan in which nothing goes wrong.
    pub fn clean(index: usize, scenario: &Scenario) -> Self {
        Self {
            scenario: index,
            fault: "none".to_owned(),
            at: String::new(),
            rule: None,
            deleted: Deleted::None,
            two: scenario.elected,
        }
    }

    /// Whether a leader is held up by it until another leads.
    pub fn holds(&self) -> bool {
        let holds = |fault: &Fault| {
            matches!(
                fault,
                Fault::HoldBefore | Fault::HoldUntilFinal | Fault::HoldUnanswered
            )
        };
        matches!(&self.rule, Some(Rule::Call { fault, .. }) if holds(fault))
    }

    /// Whether processes end by it that would have gone on.
    pub fn ends_processes(&self) -> bool {
        let is_kill = |fault: &Fault| KILLS.iter().any(|(_, kill)| kill == fault);
        let kills = matches!(&self.rule, Some(Rule::Call { fault, .. }) if is_kill(fault));
        kills || self.two
    }
}
const KILLS: [(&str, Fault); 3] = [
    ("killed before", Fault::KillBefore),
    ("killed unanswered", Fault::KillUnanswered),
    ("killed after", Fault::KillAfter),
];

/// Every refusal, with what it is called.
const REFUSALS: [(&str, Refusal); 8] = [
    ("429", Refusal::Status(429, "TooManyRequests")),
    ("500", Refusal::Status(500, "InternalError")),
    ("503", Refusal::Status(503, "ServiceUnavailable")),
    ("504", Refusal::Status(504, "Timeout")),
    ("403", Refusal::Status(403, "Forbidden")),
    ("409", Refusal::Status(409, "Conflict")),
    ("reset", Refusal::Reset),
    ("401", Refusal::Status(401, "Unauthorized")),
];

/// All plans for a scenario of which this is a clean run.
#[allow(clippy::too_many_lines, reason = "a list")]
pub fn plans(index: usize, scenario: &Scenario, clean: &[Came]) -> Vec<Plan> {
    // What each clean run comes by: how often a status is written is also a matter of pace.
    let Some((first, others)) = clean.split_first() else {
        return Vec::new();
    };
    let mut points: Vec<(Key, usize)> = first.ledger.writes.clone();
    points.retain(|point| {
        let everywhere = others.iter().all(|it| it.ledger.writes.contains(point));
        everywhere && scenario.elected == (point.0.resource == "leases")
    });
    if let Some(most) = scenario.sample {
        let creates = points.iter().filter(|it| it.0.resource == "pods").count();
        let step = (creates / most).max(1);
        let mut number = 0;
        points.retain(|(key, _)| {
            number += usize::from(key.resource == "pods");
            key.resource != "pods" || number % step == 0
        });
    }
    let mut all = Vec::new();
    for (key, nth) in &points {
        let mut plan = |fault: String, what: Fault, deleted: Deleted, two: bool| {
            all.push(Plan {
                scenario: index,
                fault,
                at: format!("{key} #{nth}"),
                rule: Some(Rule::Call {
                    key: key.clone(),
                    nth: *nth,
                    fault: what,
                }),
                deleted,
                two,
            });
        };
        for (name, what) in KILLS {
            if scenario.pods_taken {
                let name = format!("{name}, all pods deleted");
                plan(name, what, Deleted::All, false);
                continue;
            }
            plan(name.to_owned(), what, Deleted::None, false);
            if !scenario.processes && !scenario.elected {
                let name = format!("{name}, pods deleted");
                plan(name, what, Deleted::Ended, false);
            }
        }
        if scenario.pods_taken {
            continue;
        }
        for (name, what) in [
            ("reset", Refusal::Reset),
            ("504", Refusal::Status(504, "Timeout")),
        ] {
            plan(
                format!("answer lost, {name}"),
                Fault::Lose(what),
                Deleted::None,
                false,
            );
        }
        for (name, refusal) in REFUSALS {
            plan(
                format!("refused, {name}"),
                Fault::Refuse(refusal),
                Deleted::None,
                false,
            );
        }
        // A delete that arrives when somebody else's pod has the name, however busy the machine is.
        let seconds = if key.verb == "delete" { 8 } else { 2 };
        plan(
            format!("delayed {seconds} s"),
            Fault::Delay(Duration::from_secs(seconds)),
            Deleted::None,
            false,
        );
        plan(
            "held before, two".to_owned(),
            Fault::HoldBefore,
            Deleted::None,
            true,
        );
        // An old status that arrives over the final one, however fast or slow the run is.
        if key.resource == "workflowruns/status" && scenario.ends.is_some() {
            plan(
                "held until final, two".to_owned(),
                Fault::HoldUntilFinal,
                Deleted::None,
                true,
            );
        }
        plan(
            "held unanswered, two".to_owned(),
            Fault::HoldUnanswered,
            Deleted::None,
            true,
        );
        plan("upgraded, two".to_owned(), Fault::Tell, Deleted::None, true);
        plan(
            "leader gone, two".to_owned(),
            Fault::KillUnanswered,
            Deleted::None,
            true,
        );
    }
    if scenario.elected {
        for plan in &mut all {
            plan.two = true;
        }
    }
    if scenario.pods_taken || scenario.elected {
        return all;
    }
    let told = |resource: &str| {
        let counts = clean
            .iter()
            .map(|came| came.ledger.told.get(resource).copied());
        counts.flatten().min().unwrap_or_default()
    };
    for resource in ["pods", "workflowruns", "services", "configmaps"] {
        let events = told(resource);
        let step = scenario.sample.map_or(1, |most| (events / most).max(1));
        for nth in (1..=events).step_by(step) {
            for (name, fault) in [
                (
                    "watch frozen 3 s",
                    WatchFault::Freeze(Duration::from_secs(3)),
                ),
                ("watch 410 in stream", WatchFault::GoneInStream),
                ("watch 410 as status", WatchFault::GoneAsStatus),
                ("watch half open", WatchFault::HalfOpen),
                ("list stale", WatchFault::Stale),
                ("list older", WatchFault::Older),
                ("event swallowed", WatchFault::SwallowOne),
            ] {
                all.push(Plan {
                    scenario: index,
                    fault: name.to_owned(),
                    at: format!("event {nth} of {resource}"),
                    rule: Some(Rule::Event {
                        resource: resource.to_owned(),
                        name: String::new(),
                        said: Said::Anything,
                        nth,
                        fault,
                    }),
                    deleted: Deleted::None,
                    two: false,
                });
            }
        }
    }
    all.push(Plan {
        scenario: index,
        fault: "all of it swallowed".to_owned(),
        at: "run r".to_owned(),
        rule: Some(Rule::Event {
            resource: "workflowruns".to_owned(),
            name: "r".to_owned(),
            said: Said::Anything,
            nth: 1,
            fault: WatchFault::Swallow,
        }),
        deleted: Deleted::None,
        two: false,
    });
    let titles: Vec<String> = clean
        .iter()
        .flat_map(|came| &came.pods)
        .flat_map(|pods| pods.keys().cloned())
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect();
    let step = scenario
        .sample
        .map_or(1, |most| (titles.len() / most).max(1));
    for title in titles.iter().step_by(step) {
        for (name, said, fault) in [
            ("its end swallowed", Said::Ended, WatchFault::SwallowOne),
            ("all of it swallowed", Said::Anything, WatchFault::Swallow),
        ] {
            all.push(Plan {
                scenario: index,
                fault: name.to_owned(),
                at: format!("pod {title}"),
                rule: Some(Rule::Event {
                    resource: "pods".to_owned(),
                    name: title.clone(),
                    said,
                    nth: 1,
                    fault,
                }),
                deleted: Deleted::None,
                two: false,
            });
        }
    }
    all
}
