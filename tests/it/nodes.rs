//! What became of a node: every row of the table, end to end; and what a command is given.

use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

use crate::program::{Place, finish, lives, signal};

fn cmd(words: &str) -> String {
    format!(r#"{{"action": {{"type": "cmd", "cmd": {words}}}}}"#)
}

/// Runs one node `a` and gives its part of the result.
fn node(place: &Place, template: &str) -> Value {
    let done = place.run(template, &[]);
    let json = done.json();
    assert_eq!(done.status, i32::from(json["return_code"] != 1));
    json["output"]["a"].clone()
}

fn one(words: &str) -> Value {
    node(&Place::new(), &format!(r#"{{"a": {}}}"#, cmd(words)))
}

#[test]
fn exit_codes_and_signals() {
    let a = one(r#"["sh", "-c", "exit 0"]"#);
    assert_eq!(
        (&a["status"], &a["result"]["return_code"]),
        (&json!("success"), &json!(1))
    );
    let a = one(r#"["sh", "-c", "exit 2"]"#);
    assert_eq!(
        (
            &a["status"],
            &a["result"]["return_code"],
            &a["result"]["exit_code"]
        ),
        (&json!("failure"), &json!(0), &json!(2))
    );
    let a = one(r#"["sh", "-c", "kill -SEGV $$$$"]"#);
    assert_eq!(
        (
            &a["status"],
            &a["result"]["return_code"],
            &a["result"]["signal"]
        ),
        (&json!("failure"), &json!(0), &json!(11))
    );
}

#[test]
fn what_cannot_start_is_an_exception_and_says_why() {
    let place = Place::new();
    place.write("plain.sh", "#!/bin/sh\n");
    let script = place.script("gone.sh", "");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    let text = place.script("text.sh", "");
    std::fs::write(&text, "just words\n").unwrap();
    for (words, says) in [
        (
            "\"no-such-program\"",
            "there is no executable `no-such-program` in the node's PATH",
        ),
        ("\"./missing.sh\"", "there is no file "),
        ("\"./plain.sh\"", "it is not executable; try chmod +x"),
        (
            "\"./gone.sh\"",
            "the interpreter in its first line does not exist",
        ),
        (
            "\"./text.sh\"",
            "no script with an interpreter in its first line",
        ),
        ("\"/\"", "it is a folder"),
        (
            "\"$NO_SUCH_VARIABLE/x\"",
            "the environment variable NO_SUCH_VARIABLE is not set",
        ),
    ] {
        let place_run = Place {
            dir: tempfile::TempDir::new_in(place.dir.path()).unwrap(),
        };
        place_run.write("x", "");
        for file in ["plain.sh", "gone.sh", "text.sh"] {
            std::fs::copy(place.path(file), place_run.path(file)).unwrap();
        }
        let a = node(&place_run, &format!(r#"{{"a": {}}}"#, cmd(words)));
        assert_eq!(
            (&a["status"], &a["result"]["return_code"]),
            (&json!("exception"), &json!(0)),
            "{words}"
        );
        let message = a["result"]["err_msg"].as_str().unwrap();
        assert!(message.contains(says), "{words}: {message}");
    }
}

#[test]
fn a_node_timeout_ends_the_whole_process_group() {
    let place = Place::new();
    place.script(
        "slow.sh",
        "sleep 1000 & echo $! > child\necho [OUTPUT]begun\nwait",
    );
    let template = r#"{"a": {"action": {"type": "cmd", "cmd": "./slow.sh"}, "timeout": 0.5},
                       "b": {"prev_nodes": ["a"], "action": {"type": "cmd", "cmd": "true"}, "decision_expr": "a==0"}}"#;
    let done = place.run(template, &[]);
    let output = &done.json()["output"];
    assert_eq!(output["a"]["status"], "exception");
    assert_eq!(
        output["a"]["reason"],
        "Timeout: ran longer than its timeout"
    );
    assert_eq!(output["a"]["result"]["output"], "begun");
    assert_eq!(output["b"]["status"], "success");
    assert!(!lives(&place.read("child")));
}

#[test]
fn one_that_ignores_term_is_killed_after_the_grace() {
    let place = Place::new();
    place.script("deaf.sh", "trap '' TERM\nwhile :; do sleep 0.1; done");
    let template = r#"{"a": {"action": {"type": "cmd", "cmd": "./deaf.sh"}, "timeout": "300ms"}}"#;
    let done = place.run(template, &["--grace", "500ms"]);
    assert_eq!(
        done.json()["output"]["a"]["reason"],
        "Timeout: ran longer than its timeout"
    );
}

#[test]
fn the_runs_timeout_cancels() {
    let template = format!(
        r#"{{"a": {}, "b": {{"prev_nodes": ["a"], "action": {{"type": "cmd", "cmd": "true"}}}}}}"#,
        cmd(r#""sleep 1000""#)
    );
    let done = Place::new().run(&template, &["--timeout", "500ms"]);
    let json = done.json();
    let a = &json["output"]["a"];
    assert_eq!(
        (&a["status"], &a["result"]["return_code"]),
        (&json!("cancelled"), &json!("N/A"))
    );
    assert_eq!(json["output"]["b"]["result"]["return_code"], "N/A");
    assert_eq!((done.status, &json["return_code"]), (1, &json!(0)));
}

#[test]
fn ctrl_c_ends_the_nodes_and_the_result_still_comes() {
    let place = Place::new();
    place.script("slow.sh", "echo $$ > pid\nsleep 1000");
    place.write(
        "t.template",
        r#"{"quick": {"action": {"type": "cmd", "cmd": "true"}},
            "slow": {"prev_nodes": ["quick"], "action": {"type": "cmd", "cmd": "./slow.sh"}},
            "never": {"prev_nodes": ["slow"], "action": {"type": "cmd", "cmd": "true"}, "decision_expr": "slow=='N/A'"}}"#,
    );
    let run = place.start(&["run", "--template", "t.template", "-o", "json"]);
    place.until_written("pid");
    signal(&run, Signal::INT);
    let done = finish(run);
    let json = done.json();
    let status = |name: &str| json["output"][name]["status"].clone();
    assert_eq!(
        (status("quick"), status("slow"), status("never")),
        (json!("success"), json!("cancelled"), Value::Null)
    );
    assert_eq!(done.status, 1);
    assert!(!lives(&place.read("pid")));
}

#[test]
fn a_second_ctrl_c_kills_at_once() {
    let place = Place::new();
    place.script(
        "deaf.sh",
        "trap '' TERM INT\necho $$ > pid\nwhile :; do sleep 0.1; done",
    );
    place.write(
        "t.template",
        format!(r#"{{"a": {}}}"#, cmd("\"./deaf.sh\"")),
    );
    let run = place.start(&[
        "run",
        "--template",
        "t.template",
        "-o",
        "json",
        "--grace",
        "1h",
    ]);
    place.until_written("pid");
    signal(&run, Signal::INT);
    // What comes within a second of the first is the same stop.
    std::thread::sleep(std::time::Duration::from_millis(1200));
    signal(&run, Signal::INT);
    assert_eq!(finish(run).json()["output"]["a"]["status"], "cancelled");
    assert!(!lives(&place.read("pid")));
}

#[test]
fn skipped_nodes_say_why() {
    let template = r#"{"a": {"action": {"type": "cmd", "cmd": "false"}},
        "b": {"prev_nodes": ["a"], "action": {"type": "cmd", "cmd": "true"}},
        "c": {"prev_nodes": ["b"], "action": {"type": "cmd", "cmd": "true"}, "decision_expr": "b==0"},
        "d": {"prev_nodes": ["b"], "action": {"type": "cmd", "cmd": "true"}, "decision_expr": "b=='N/A'"}}"#;
    let output = Place::new().run(template, &[]).json()["output"].clone();
    assert_eq!(output["b"]["should_I_start"], false);
    assert_eq!(output["b"]["status"], Value::Null);
    assert_eq!(
        output["b"]["reason"],
        "ConditionFalse: needs 1 of all its prev_nodes, but a=0"
    );
    assert_eq!(
        output["c"]["reason"],
        "ConditionUnknown: `b==0` is unknown with b='N/A'"
    );
    assert_eq!(output["d"]["status"], "success");
}

#[test]
fn arguments_are_words_and_never_a_shell() {
    let place = Place::new();
    place.script(
        "show.sh",
        "for word in \"$@\"; do echo \"[OUTPUT]<$word>\"; done",
    );
    let template = r#"{"a": {"action": {"type": "cmd", "cmd": "./show.sh 'one word' $p $$HOME"},
        "param": {"k": "-v", "name": "; rm -rf /", "n": 1.10, "l": [1, {"x": "y"}], "$p": true}}}"#;
    let done = place.run(template, &["--param", "p=a b \"c"]);
    assert_eq!(
        done.json()["output"]["a"]["result"]["output"],
        "<one word>\n<a b \"c>\n<$HOME>\n<-k>\n<-v>\n<--name>\n<; rm -rf />\n<-n>\n<1.10>\n<-l>\n<[1,{\"x\":\"y\"}]>\n<--$p>\n<true>"
    );
}

#[test]
fn environment_overlays_and_expands() {
    let place = Place::new();
    place.script("bin/tool", "echo \"[OUTPUT]$X|$Y\"");
    let template = r#"{"a": {"action": {"type": "cmd", "cmd": "tool", "env": {"PATH": "$dir:$PATH", "X": "${HOME}/x", "Y": 100}}}}"#;
    place.write("t.template", template);
    let dir = format!("dir={}", place.path("bin").display());
    let args = [
        "run",
        "--template",
        "t.template",
        "-o",
        "json",
        "--param",
        &dir,
    ];
    let output = place.command(&args).env("HOME", "/h").output().unwrap();
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["output"]["a"]["result"]["output"], "/h/x|100");
    assert_eq!(json["output"]["a"]["action"]["env"]["X"], "${HOME}/x");
}

#[test]
fn a_child_that_leaves_its_pipe_open_does_not_hang_the_run() {
    let place = Place::new();
    place.script(
        "daemon.sh",
        "sleep 1000 & echo $! > child\necho [OUTPUT]done",
    );
    let a = node(&place, &format!(r#"{{"a": {}}}"#, cmd("\"./daemon.sh\"")));
    assert_eq!(a["result"]["output"], "done");
    let child = place.read("child");
    assert!(lives(&child), "what a node leaves behind on purpose stays");
    let pid = Pid::from_raw(child.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
}

#[test]
fn everything_is_in_the_log_and_invalid_utf8_survives() {
    let place = Place::new();
    place.script(
        "talk.sh",
        "printf 'plain\\n[OUTPUT]a\\377b\\n'; echo oops >&2",
    );
    let a = node(&place, &format!(r#"{{"a": {}}}"#, cmd("\"./talk.sh\"")));
    assert_eq!(a["result"]["output"], "a\u{fffd}b");
    let log = std::fs::read(place.path("run/logs/a.log")).unwrap();
    let has = |part: &[u8]| log.windows(part.len()).any(|window| window == part);
    assert!(has(b"plain\n[OUTPUT]a\xffb\n") && has(b"oops\n"));
}

#[test]
fn a_log_is_made_by_what_is_said() {
    let place = Place::new();
    place.write(
        "m.py",
        "import sys\ndef quiet(): return 0\ndef loud():\n    sys.stderr.write('oops\\n')\n    return 0\n",
    );
    let api = |name: &str| {
        format!(
            r#"{{"action": {{"type": "api", "module": "m", "function": "{name}", "path": ["."]}}}}"#
        )
    };
    let template = format!(
        r#"{{"quiet": {}, "loud": {}, "api-quiet": {}, "api-loud": {}}}"#,
        cmd("\"true\""),
        cmd(r#"["sh", "-c", "echo oops >&2"]"#),
        api("quiet"),
        api("loud"),
    );
    assert_eq!(place.run(&template, &[]).status, 0);
    for name in ["loud", "api-loud"] {
        assert_eq!(place.read(&format!("run/logs/{name}.log")), "oops\n");
    }
    for name in ["quiet", "api-quiet"] {
        assert!(!place.path(&format!("run/logs/{name}.log")).exists());
    }
}

#[test]
fn a_huge_output_grows_no_memory_and_is_capped() {
    let place = Place::new();
    place.script(
        "flood.sh",
        "printf '[OUTPUT]'; head -c 3000000 /dev/zero | tr '\\0' x; echo; head -c 1073741824 /dev/zero | tr '\\0' y",
    );
    place.write(
        "t.template",
        format!(r#"{{"a": {}}}"#, cmd("\"./flood.sh\"")),
    );
    let run = place.start(&[
        "run",
        "--template",
        "t.template",
        "-o",
        "json",
        "--log-dir",
        "run",
    ]);
    let id = run.id();
    let peak = std::thread::spawn(move || {
        let mut peak = 0;
        while let Ok(status) = std::fs::read_to_string(format!("/proc/{id}/status")) {
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let Some(line) = line else { break };
            peak = line.trim().trim_end_matches(" kB").parse().unwrap_or(peak);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        peak
    });
    let result = finish(run).json()["output"]["a"]["result"].clone();
    let peak: u64 = peak.join().unwrap();
    assert_eq!(result["output"].as_str().unwrap().len(), 1024 * 1024);
    assert_eq!(result["truncated"]["output"], 3_000_000 - 1024 * 1024);
    assert_eq!(
        std::fs::metadata(place.path("run/logs/a.log"))
            .unwrap()
            .len(),
        1_073_741_824 + 3_000_009
    );
    assert!(peak > 0 && peak < 100_000, "{peak} kB");
}

#[test]
fn only_so_many_run_at_once_as_may() {
    let place = Place::new();
    place.script(
        "count.sh",
        "mkdir busy 2>/dev/null || echo [OUTPUT]crowded\nsleep 0.05\nrmdir busy 2>/dev/null",
    );
    let nodes: Vec<String> = (0..6)
        .map(|i| format!("\"n{i}\": {}", cmd("\"./count.sh\"")))
        .collect();
    let done = place.run(&format!("{{{}}}", nodes.join(",")), &["--parallel", "1"]);
    assert!(!done.stdout.contains("crowded"));
    assert_eq!(done.status, 0);
}

/// Who starts apscli may ignore the end of children; the kernel then reaped ours, and every
/// node was lost.
#[test]
fn ignored_signals_are_inherited_and_harm_nothing() {
    let place = Place::new();
    place.script("slow.sh", "echo $$ > pid\nsleep 1");
    place.write(
        "t.template",
        format!(r#"{{"a": {}}}"#, cmd("\"./slow.sh\"")),
    );
    let start = "import os, signal, sys\n\
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n\
        signal.signal(signal.SIGHUP, signal.SIG_IGN)\n\
        os.execv(sys.argv[1], sys.argv[1:])";
    let run = std::process::Command::new(crate::program::PYTHON.as_path())
        .args([
            "-c",
            start,
            env!("CARGO_BIN_EXE_apscli"),
            "run",
            "--template",
            "t.template",
            "-o",
            "json",
            "--log-dir",
            "run",
        ])
        .current_dir(place.dir.path())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    place.until_written("pid");
    signal(&run, Signal::HUP);
    assert_eq!(finish(run).json()["output"]["a"]["status"], "success");
}
