//! A stop of a run: one stop is one stop, however many signals it comes as, and it starts nothing.

use rustix::process::Signal;

use crate::program::{Place, finish, signal, until};

const RUN: [&str; 5] = ["run", "--template", "t.template", "--log-dir", "run"];

/// A node that cleans up when it gets TERM.
fn cleaning() -> Place {
    let place = Place::new();
    place.script(
        "n.sh",
        "trap 'sleep 0.3; echo >> cleaned; exit' TERM\necho > began\nsleep 1000 & wait",
    );
    place.write(
        "t.template",
        r#"{"a": {"action": {"type": "cmd", "cmd": "./n.sh"}}}"#,
    );
    place
}

#[test]
fn two_signals_of_one_stop_leave_the_grace() {
    for second in [Signal::TERM, Signal::HUP, Signal::INT] {
        let place = cleaning();
        let run = place.start(&[&RUN[..], &["--grace", "10m"]].concat());
        until("the node's start", || place.path("began").exists());
        signal(&run, Signal::TERM);
        signal(&run, second);
        let done = finish(run);
        assert!(
            place.path("cleaned").exists(),
            "{second:?}: {}",
            done.stdout
        );
        assert!(done.stdout.contains("run: Cancelled"), "{}", done.stdout);
    }
}

#[test]
fn an_api_node_ends_without_its_grace() {
    let place = Place::new();
    place.write(
        "m.py",
        "import time\ndef f():\n    open('began', 'w').close()\n    time.sleep(1000)\n",
    );
    place.write(
        "t.template",
        r#"{"a": {"timeout": "1s", "action": {"type": "api", "module": "m", "function": "f", "path": ["."]}}}"#,
    );
    // An hour is longer than any test runs: it must not be waited for.
    let done = place.apscli(&[&RUN[..], &["--grace", "1h"]].concat());
    assert!(
        done.stdout.contains("ran longer than its timeout"),
        "{}",
        done.stdout
    );
}

#[test]
fn a_stop_that_reaches_nodes_first_starts_nothing() {
    for _ in 0..5 {
        let place = Place::new();
        place.script("a.sh", "echo $$ > pid.new\nmv pid.new pid\nexec sleep 1000");
        place.script("clean.sh", "echo > cleaned");
        place.write(
            "t.template",
            r#"{"a": {"action": {"type": "cmd", "cmd": "./a.sh"}},
                "clean": {"prev_nodes": ["a"], "decision_expr": "a == 0", "action": {"type": "cmd", "cmd": "./clean.sh"}}}"#,
        );
        let run = place.start(&[&RUN[..], &["-o", "json"]].concat());
        until("the node's start", || place.path("pid").exists());
        let pid = place.read("pid").trim().parse().ok();
        let pid = pid.and_then(rustix::process::Pid::from_raw).unwrap();
        rustix::process::kill_process(pid, Signal::TERM).unwrap();
        signal(&run, Signal::TERM);
        let done = finish(run);
        let json = done.json();
        assert_eq!(
            json["output"]["a"]["status"], "cancelled",
            "{}",
            done.stdout
        );
        assert!(!place.path("cleaned").exists());
    }
}

#[test]
fn a_signal_of_others_alone_is_a_failure() {
    let place = Place::new();
    place.script("a.sh", "kill -TERM $$");
    place.script("clean.sh", "echo > cleaned");
    place.write(
        "t.template",
        r#"{"a": {"action": {"type": "cmd", "cmd": "./a.sh"}},
            "clean": {"prev_nodes": ["a"], "decision_expr": "a == 0", "action": {"type": "cmd", "cmd": "./clean.sh"}}}"#,
    );
    let done = place.apscli(&RUN);
    assert!(place.path("cleaned").exists(), "{}", done.stdout);
}
