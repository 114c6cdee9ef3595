//! What has to come of a diamond whose work may have been lost while its operator was down, from
//! what was there then.
//!
//! Must not know how it came to be down.

use std::collections::BTreeMap;

use serde_json::Value;

use super::scenario::Scenario;

/// How a pod that was deleted has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself.
    Well,
    /// It was stopped.
    Stopped,
    /// By itself, just when it was to be stopped: a busy fake kubelet may say both, one after the
    /// other, and whoever looks sees either.
    Either,
}

/// What was there when the operator was killed.
#[derive(Clone, Debug)]
pub struct AtKill {
    /// The run as it was on record.
    pub record: Value,
    /// The pods that somebody deleted before it was there again, by `NODE/ATTEMPT`.
    pub pods: BTreeMap<String, Ended>,
}

/// What has to come of a diamond.
pub struct Judged {
    processes: bool,
    /// Whether what was lost is tried once more.
    retried: bool,
    /// None: not known.
    at_kill: Option<AtKill>,
}

/// What came of a node.
struct Node<'a> {
    entry: &'a Value,
    /// How often it was begun.
    count: usize,
    /// Whether all went well before it.
    may_begin: bool,
}

fn find<'a>(run: &'a Value, node: &str) -> &'a Value {
    let mut nodes = run["status"]["nodes"].as_array().into_iter().flatten();
    nodes.find(|it| it["name"] == node).unwrap_or(&Value::Null)
}

impl Node<'_> {
    fn phase(&self) -> &str {
        self.entry["phase"].as_str().unwrap_or_default()
    }

    fn attempt(&self) -> Option<u64> {
        self.entry["attempt"].as_u64()
    }

    fn is_lost(&self) -> bool {
        self.phase() == "Error" && self.entry["reason"] == "Lost" && self.attempt() == Some(1)
    }

    /// Its so many-th attempt went well.
    fn went_well(&self, attempt: u64) -> bool {
        self.phase() == "Succeeded" && self.attempt() == Some(attempt)
    }

    /// As a node has to end that nothing went wrong with.
    fn is_as_ever(&self) -> bool {
        if self.may_begin {
            self.went_well(1) && self.count == 1
        } else {
            self.phase() == "Skipped" && self.count == 0
        }
    }
}

impl Judged {
    pub fn new(scenario: &Scenario, at_kill: Option<AtKill>) -> Self {
        Self {
            processes: scenario.processes,
            retried: scenario.run["spec"]["onLost"] == "Retry",
            at_kill,
        }
    }

    /// Whoever is over stays so; whoever was lost, or may have begun and nobody knows, ends so, or
    /// is tried again where that is asked for; all others begin once, where those before them went
    /// well. `did` says how often each node was begun.
    pub fn wrong(&self, end: &Value, did: &BTreeMap<String, usize>) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut all_well = true;
        let run = &end["runs"][0];
        for (name, prev) in [
            ("a", &[][..]),
            ("b", &["a"][..]),
            ("c", &["a"][..]),
            ("d", &["b", "c"][..]),
        ] {
            let mut before = prev.iter().map(|node| find(run, node));
            let node = Node {
                entry: find(run, name),
                count: did.get(name).copied().unwrap_or_default(),
                may_begin: before.all(|it| it["phase"] == "Succeeded"),
            };
            let right = match &self.at_kill {
                Some(at_kill) => self.is_right(&node, name, at_kill),
                None => self.may_be_right(&node),
            };
            if !right {
                let Node { entry, count, .. } = node;
                let was = self.at_kill.as_ref();
                let was = was.map(|it| (find(&it.record, name), &it.pods));
                wrong.push(format!("{name} was begun {count} times and ended as {entry}; when the operator was killed it was {was:?}"));
            }
            all_well &= node.phase() == "Succeeded";
        }
        let phase = if all_well { "Succeeded" } else { "Failed" };
        if run["status"]["phase"] != phase {
            wrong.push(format!(
                "the run is {}, expected {phase}",
                run["status"]["phase"]
            ));
        }
        wrong
    }

    fn is_right(&self, node: &Node, name: &str, at_kill: &AtKill) -> bool {
        let was = find(&at_kill.record, name);
        let over = !["Running", "Pending"].contains(&was["phase"].as_str().unwrap_or("Pending"));
        if over {
            let same = |name: &str| was[name] == node.entry[name];
            let once = node.count == usize::from(node.phase() == "Succeeded");
            return same("phase") && same("attempt") && same("reason") && once;
        }
        if self.processes {
            let begun = was["phase"] == "Running" && was["reason"] != "Queued";
            return match begun {
                true if self.retried => node.went_well(2) && (1..=2).contains(&node.count),
                true => node.is_lost() && node.count <= 1,
                false => node.is_as_ever(),
            };
        }
        match at_kill.pods.get(&format!("{name}/1")) {
            Some(Ended::Stopped) => self.is_lost(node),
            Some(Ended::Either) => self.is_lost(node) || node.is_as_ever(),
            // What a pod has ended with stays readable until it is on record.
            Some(Ended::Well) | None => node.is_as_ever(),
        }
    }

    /// As a node has to end whose pod was stopped.
    fn is_lost(&self, node: &Node) -> bool {
        if self.retried {
            node.went_well(2) && node.count == 2
        } else {
            node.is_lost() && node.count == 1
        }
    }

    /// As far as can be said without knowing what was there.
    fn may_be_right(&self, node: &Node) -> bool {
        if !node.may_begin {
            return node.is_as_ever();
        }
        let times = usize::try_from(node.attempt().unwrap_or_default()).unwrap();
        let well = node.phase() == "Succeeded" && (1..=times).contains(&node.count);
        let lost = node.is_lost() && !self.retried && node.count <= 1;
        (well && (self.retried || times == 1)) || lost
    }
}
