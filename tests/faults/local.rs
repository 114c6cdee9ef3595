//! The local driver, killed at every write of its journal and in the middle of each, then resumed.
//!
//! The kernel does the killing: a file may not grow beyond a limit, and the write that would grow it
//! is cut there and its process ended, as by a kill at that very byte. Nodes count what they did in
//! a file of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::program::{PYTHON, Place};

/// a, then b and c, then d; each appends its name to `did`. One of them is a Python function.
const TEMPLATE: &str = r#"{
  "a": {"action": {"type": "cmd", "cmd": "./did.sh"}, "param": {"n": "a"}},
  "b": {"prev_nodes": ["a"], "action": {"type": "cmd", "cmd": "./did.sh"}, "param": {"n": "b"}},
  "c": {"prev_nodes": ["a"], "action": {"type": "api", "module": "m", "function": "did", "path": ["."]}, "param": {"n": "c"}},
  "d": {"prev_nodes": ["b", "c"], "action": {"type": "cmd", "cmd": "./did.sh"}, "param": {"n": "d"}}
}"#;

/// Limits its files and becomes apscli. (Python ignores the signal of the limit, which would be
/// inherited.)
const LIMITED: &str = "import os, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
os.execv(sys.argv[2], sys.argv[2:])";

const NODES: [&str; 4] = ["a", "b", "c", "d"];

fn place() -> Place {
    let place = Place::new();
    place.script("did.sh", "echo \"$2\" >> did");
    place.write(
        "m.py",
        "def did(n):\n    with open('did', 'a') as did:\n        did.write(n + '\\n')\n    return 0\n",
    );
    place.write("t.template", TEMPLATE);
    place
}

const RUN: [&str; 5] = ["run", "--template", "t.template", "--log-dir", "run"];

/// How often each node did its work.
fn did(place: &Place) -> BTreeMap<String, usize> {
    let mut did = BTreeMap::new();
    for name in place.read("did").lines() {
        *did.entry(name.to_owned()).or_default() += 1;
    }
    did
}

/// The nodes of which the journal has a record that begins so.
fn recorded(place: &Place, kind: &str) -> BTreeSet<String> {
    let journal = place.read("run/journal.jsonl");
    let whole = journal
        .split_inclusive('\n')
        .filter(|it| it.ends_with('\n'));
    let records = whole.filter(|line| line.starts_with(&format!("{{\"{kind}\"")));
    records
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()[kind]["node"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect()
}

/// Resumes a run that was killed, and compares what it says with what was done.
fn resume(place: &Place, what: &str, retry: bool) {
    let (started, ended) = (recorded(place, "started"), recorded(place, "ended"));
    let lost: Vec<&String> = started.difference(&ended).collect();
    let mut args = vec!["run", "--resume", "run", "-o", "json"];
    if retry {
        args.extend(["--on-lost", "retry"]);
    }
    let done = place.apscli(&args);
    let json = done.json();
    let counts = did(place);
    for node in NODES {
        let result = &json["output"][node];
        let count = counts.get(node).copied().unwrap_or_default();
        let is_lost = |node: &str| lost.iter().any(|it| *it == node);
        let comes_after_lost = match node {
            "a" => false,
            "d" => ["a", "b", "c"].into_iter().any(is_lost),
            _ => is_lost("a"),
        };
        let (status, expected) = match (is_lost(node), retry) {
            // Nobody knows whether it did its work: not a second time unless that was asked for.
            (true, false) => ("exception", 0..=1),
            (true, true) => ("success", 1..=2),
            (false, false) if comes_after_lost => ("", 0..=0),
            (false, _) => ("success", 1..=1),
        };
        let said = result["status"].as_str().unwrap_or("");
        assert_eq!(said, status, "{what}: {node} of {json:#}");
        assert!(
            expected.contains(&count),
            "{what}: {node} {count} times, {json:#}"
        );
    }
    let again = place.apscli(&["run", "--resume", "run", "-o", "json"]);
    assert_eq!((again.json(), again.status), (json, done.status), "{what}");
    assert_eq!(
        did(place),
        counts,
        "{what}: the second resume did something"
    );
}

/// A run that was killed before its journal had a header has done nothing, says so, and can be started
/// again in another folder.
fn starts_again(place: &Place, what: &str) {
    assert!(recorded(place, "started").is_empty(), "{what}");
    assert_eq!(did(place), BTreeMap::new(), "{what}");
    let resumed = place.apscli(&["run", "--resume", "run"]);
    assert_eq!(resumed.status, 2, "{what}");
    let says = "nothing is recorded here: apscli was killed before the run had begun";
    assert!(resumed.stderr.contains(says), "{what}: {}", resumed.stderr);
    let again = place.apscli(&["run", "--template", "t.template", "--log-dir", "again"]);
    assert_eq!(again.status, 0, "{what}: {}", again.stderr);
    let once = NODES.map(|node| (node.to_owned(), 1)).into();
    assert_eq!(did(place), once, "{what}");
}

/// Where the records of a whole run's journal end, in bytes; the header's end is the first.
fn ends() -> Vec<usize> {
    let place = place();
    let whole = place.apscli(&RUN);
    assert_eq!(whole.status, 0, "{}", whole.stderr);
    let journal = fs::read(place.path("run/journal.jsonl")).unwrap();
    let ends = journal
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b'\n');
    ends.map(|(at, _)| at + 1).collect()
}

#[test]
#[ignore = "takes minutes: tests/run --all"]
fn a_run_killed_at_any_write_of_its_journal_resumes() {
    let ends = ends();
    // A start, and a start and an end of each node.
    assert_eq!(ends.len(), 1 + 1 + 2 * NODES.len());
    let mut kills = 0;
    let mut places = Vec::new();
    // The header first: nothing of it, its middle, and all of it but the line feed.
    for limit in [0, ends[0] / 2, ends[0] - 1] {
        places.push((limit, false));
    }
    for pair in ends.windows(2) {
        // Before the record, in its middle, and all of it but the line feed.
        for limit in [pair[0], usize::midpoint(pair[0], pair[1]), pair[1] - 1] {
            for retry in [false, true] {
                places.push((limit, retry));
            }
        }
    }
    for (limit, retry) in places {
        let place = place();
        let status = Command::new(&*PYTHON)
            .args([
                "-c",
                LIMITED,
                &limit.to_string(),
                env!("CARGO_BIN_EXE_apscli"),
            ])
            .args(RUN)
            .current_dir(place.dir.path())
            .env("XDG_STATE_HOME", place.path("state"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        let what = format!("killed at byte {limit}, retry {retry}");
        // Records differ in length from run to run, so the last limit may be beyond the end.
        if status.signal() != Some(Signal::XFSZ.as_raw()) {
            assert_eq!(status.code(), Some(0), "{what}: {status}");
            continue;
        }
        let length = fs::metadata(place.path("run/journal.jsonl")).unwrap().len();
        assert_eq!(usize::try_from(length).unwrap(), limit, "{what}");
        if limit < ends[0] {
            starts_again(&place, &what);
        } else {
            resume(&place, &what, retry);
        }
        kills += 1;
    }
    assert!(kills >= 50, "{kills}");
}

#[test]
#[ignore = "takes minutes: tests/run --all"]
fn a_run_killed_when_its_journal_has_grown_resumes() {
    let mut kills = 0;
    for end in ends() {
        for retry in [false, true] {
            let place = place();
            let mut run = place.start(&RUN);
            let journal = place.path("run/journal.jsonl");
            let grown = || fs::metadata(&journal).is_ok_and(|it| it.len() >= end as u64);
            while !grown() && run.try_wait().unwrap().is_none() {
                thread::sleep(Duration::from_micros(200));
            }
            run.kill().unwrap();
            let status = run.wait().unwrap();
            resume(
                &place,
                &format!("killed when it had {end} bytes, retry {retry}"),
                retry,
            );
            kills += usize::from(status.signal() == Some(Signal::KILL.as_raw()));
        }
    }
    assert!(kills >= 10, "{kills}");
}
