//! What came of a plan, compared with a clean run.
//!
//! Compared are the end state (without what differs from run to run: UIDs, times), the pods that
//! were made and that ran, one for each attempt, and how often processes did their work.
//! Must not know what the plan was.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::proxy::Ledger;

/// What came of a plan.
#[derive(Debug, Default)]
pub struct Came {
    /// Whether the fault came about.
    pub fired: bool,
    pub differences: Vec<String>,
    pub ledger: Ledger,
    pub end: Value,
    pub pods: Vec<BTreeMap<String, Pods>>,
    /// How often each process did its work.
    pub did: BTreeMap<String, usize>,
    pub took: Duration,
    /// Whether its end follows from what was on record when it was killed, and need not be that of
    /// a clean run.
    pub judged: bool,
}

/// The pods of one attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pods {
    /// As the proxy counts what was created.
    pub made: usize,
    /// As the witness counts UIDs.
    pub seen: usize,
    pub ran: usize,
}
/// Masks what differs from run to run; that it is there is compared.
pub fn mask(value: &mut Value, words: &[String]) {
    const FIELDS: [&str; 12] = [
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "managedFields",
        "ownerReferences",
        "startTime",
        "endTime",
        "completionTime",
        "duration",
        "lastTransitionTime",
        "pod",
        "snapshot",
    ];
    match value {
        Value::Object(members) => {
            for (name, member) in members.iter_mut() {
                let differs = FIELDS.contains(&name.as_str()) && !member.is_null();
                let is_pods_name =
                    name == "name" && member.as_str().is_some_and(|it| it.starts_with("apscli-"));
                if differs || is_pods_name {
                    *member = json!("…");
                }
                mask(member, words);
            }
        }
        Value::Array(items) => {
            for item in items {
                mask(item, words);
            }
        }
        Value::String(text) => {
            for word in words {
                *text = text.replace(word, "…");
            }
        }
        _ => {}
    }
}

/// Where two values differ, as far as the first few places.
fn differences(path: &str, one: &Value, other: &Value, found: &mut Vec<String>) {
    if found.len() > 5 || one == other {
        return;
    }
    match (one, other) {
        (Value::Object(a), Value::Object(b)) => {
            let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for name in names {
                let path = format!("{path}.{name}");
                let none = Value::Null;
                let of = |map: &serde_json::Map<String, Value>| {
                    map.get(name).cloned().unwrap_or(none.clone())
                };
                differences(&path, &of(a), &of(b), found);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (place, (a, b)) in a.iter().zip(b).enumerate() {
                differences(&format!("{path}[{place}]"), a, b, found);
            }
        }
        _ => found.push(format!("{path}: {one} became {other}")),
    }
}

impl Came {
    /// Compares with a clean run.
    pub fn compare(&mut self, clean: &Came) {
        if self.judged {
            return;
        }
        if clean.did != self.did {
            let (clean, did) = (&clean.did, &self.did);
            self.differences
                .push(format!("processes: {clean:?} became {did:?}"));
        }
        differences("end", &clean.end, &self.end, &mut self.differences);
        if clean.pods != self.pods {
            self.differences
                .push(format!("pods: {:?} became {:?}", clean.pods, self.pods));
        }
    }
}
