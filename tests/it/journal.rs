//! A killed run: its processes end with it, and `--resume` repeats nothing.

use std::fs;

use crate::program::{Place, finish, lives, until};

/// a appends to a file; b waits until it may go on; c appends.
const TEMPLATE: &str = r#"{
  "a": {"action": {"type": "cmd", "cmd": "./a.sh"}},
  "b": {"prev_nodes": ["a"], "action": {"type": "cmd", "cmd": "./b.sh"}},
  "c": {"prev_nodes": ["b"], "action": {"type": "cmd", "cmd": "./c.sh"}, "decision_expr": "b==1 || b==0"}
}"#;

fn place() -> Place {
    let place = Place::new();
    place.script("a.sh", "echo a >> did");
    place.script("b.sh", "echo b >> did\n[ -e go ] && exit 0\nsleep 1000 &\necho $! > grandchild.new\necho $$ > child\nmv grandchild.new grandchild\nwait");
    place.script("c.sh", "echo c >> did");
    place.write("t.template", TEMPLATE);
    place
}

/// Starts a run and kills it in the middle of b.
fn killed(place: &Place) {
    let mut run = place.start(&["run", "--template", "t.template", "--log-dir", "run"]);
    until("b's start", || place.path("grandchild").exists());
    run.kill().unwrap();
    run.wait().unwrap();
}

#[test]
fn children_and_theirs_do_not_outlive_a_kill() {
    let place = place();
    killed(&place);
    for name in ["child", "grandchild"] {
        until(name, || !lives(&place.read(name)));
    }
}

#[test]
fn a_resumed_run_repeats_no_finished_node_and_its_running_one_is_lost() {
    let place = place();
    killed(&place);
    // What runs is pinned: neither the template nor what it says now counts.
    place.write("t.template", "{}");
    let done = place.apscli(&["run", "--resume", "run", "-o", "json"]);
    let json = done.json();
    assert_eq!(json["output"]["a"]["status"], "success");
    assert_eq!(
        json["output"]["b"]["reason"],
        "Lost: apscli ended while this attempt was running"
    );
    assert_eq!(json["output"]["b"]["status"], "exception");
    assert_eq!((place.read("did").as_str(), done.status), ("a\nb\nc\n", 1));

    let again = place.apscli(&["run", "--resume", "run", "-o", "json"]);
    assert_eq!((again.json(), again.status), (json, 1));
    assert_eq!(place.read("did"), "a\nb\nc\n");
}

#[test]
fn a_lost_node_is_tried_again_where_asked_for() {
    let place = place();
    killed(&place);
    place.write("go", "");
    let done = place.apscli(&["run", "--resume", "run", "-o", "json", "--on-lost", "retry"]);
    let json = done.json();
    assert_eq!(
        (json["output"]["b"]["attempt"].as_u64(), done.status),
        (Some(2), 0)
    );
    assert_eq!(place.read("did"), "a\nb\nb\nc\n");
    assert!(place.path("run/logs/b~2.log").exists());
}

#[test]
fn a_folder_holds_one_run_and_one_apscli_at_a_time() {
    let place = place();
    let mut run = place.start(&["run", "--template", "t.template", "--log-dir", "run"]);
    until("b's start", || place.path("grandchild").exists());
    let other = place.apscli(&["run", "--resume", "run"]);
    assert_eq!(other.status, 2);
    assert!(
        other
            .stderr
            .contains("another apscli is still running this"),
        "{}",
        other.stderr
    );
    let second = place.apscli(&["run", "--template", "t.template", "--log-dir", "run"]);
    assert!(
        second.stderr.contains("a run is recorded here already"),
        "{}",
        second.stderr
    );
    run.kill().unwrap();
    finish(run);
}

/// Cut after every byte, as a kill in the middle of a write would: the whole records before the
/// cut count, and the run goes on to its end.
#[test]
fn any_cut_of_the_journal_resumes() {
    let place = Place::new();
    place.script("a.sh", "echo \"$2\" >> did");
    let node = |name: &str, prev: &str| {
        format!(
            r#""{name}": {{"prev_nodes": [{prev}], "action": {{"type": "cmd", "cmd": "./a.sh"}}, "param": {{"n": "{name}"}}}}"#
        )
    };
    let template = format!(
        "{{{},{},{}}}",
        node("a", ""),
        node("b", "\"a\""),
        node("c", "\"b\"")
    );
    assert_eq!(place.run(&template, &[]).status, 0);
    let whole = fs::read(place.path("run/journal.jsonl")).unwrap();
    let header = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    let mut cuts = 0;
    for cut in (header..=whole.len()).step_by(7) {
        let _ = fs::remove_file(place.path("did"));
        fs::write(place.path("run/journal.jsonl"), &whole[..cut]).unwrap();
        let text = String::from_utf8_lossy(&whole[..cut]).into_owned();
        let records: Vec<&str> = text
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
            .collect();
        let ended = |name: &str| {
            records.iter().any(|line| {
                line.starts_with("{\"ended\"") && line.contains(&format!("\"node\":\"{name}\""))
            })
        };
        let done = place.apscli(&["run", "--resume", "run", "-o", "json", "--on-lost", "retry"]);
        assert_eq!(done.status, 0, "cut at {cut}: {}", done.stderr);
        let mut expected = vec!["a", "b", "c"];
        expected.retain(|name| !ended(name));
        let did = place.read("did");
        assert_eq!(did.lines().collect::<Vec<_>>(), expected, "cut at {cut}");
        cuts += 1;
    }
    assert!(cuts > 50, "{cuts}");
}

#[test]
fn what_cannot_be_read_is_never_guessed_at() {
    let place = place();
    killed(&place);
    let journal = place.read("run/journal.jsonl");
    for (from, to, says) in [
        (
            "journal_format\":1",
            "journal_format\":2",
            "journal.jsonl:1: this is no journal of format 1",
        ),
        ("\"node\":\"a\"", "\"node\":\"z\"", "there is no node `z`"),
        ("{\"ended\"", "{\"ended\",", "this record cannot be read"),
        (
            "\"attempt\":1",
            "\"attempt\":2",
            "this record cannot follow those before it",
        ),
    ] {
        assert!(journal.contains(from), "{journal}");
        fs::write(
            place.path("run/journal.jsonl"),
            journal.replacen(from, to, 1),
        )
        .unwrap();
        let done = place.apscli(&["run", "--resume", "run"]);
        assert_eq!(done.status, 2);
        assert!(done.stderr.contains(says), "{}", done.stderr);
    }
    assert_eq!(place.read("did"), "a\nb\n");
}

/// A file that is no journal of ours is left as it is.
#[test]
fn a_stranger_is_not_cut() {
    let place = place();
    place.write("run/journal.jsonl", "mine\nhalf a line");
    assert_eq!(place.apscli(&["run", "--resume", "run"]).status, 2);
    assert_eq!(place.read("run/journal.jsonl"), "mine\nhalf a line");
}

/// Only its owner may read parameters.
#[test]
fn the_journal_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    place.run(r#"{"a": {"action": {"type": "cmd", "cmd": "true"}}}"#, &[]);
    let mode = fs::metadata(place.path("run/journal.jsonl"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o077, 0);
}
