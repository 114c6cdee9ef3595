//! Nodes that call Python functions.

use std::process::Command;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::program::{PYTHON, Place, finish, lives, signal, until};

const JOBS: &str = r#"
import os, sys, json, ctypes, signal
state = []

def ok(**kw): return 0
def fails(**kw): return 1
def full(x): print("[OUTPUT]printed"); print("[INFO]said"); return {"return_code": 0, "output": {"x": x, "big": 2**70}}
def code(**kw): return {"return_code": 7, "err_msg": "seven", "err_code": 77}
def raises(ip): raise ValueError("bad ip %s" % ip)
def truth(): return True
def nothing(): pass
def large(): return {"return_code": 0, "output": "x" * 10_000_000}
def crash(): ctypes.string_at(0)
def leave(): os._exit(0)
def leak(): state.append(1); return {"return_code": 0, "output": len(state)}
def pid(): return {"return_code": 0, "output": [os.getpid(), os.getpgrp()]}
def wait():
    open("child", "w").write("%d\n" % os.getpid())
    import time; time.sleep(1000)
"#;

fn place() -> Place {
    let place = Place::new();
    place.write("jobs.py", JOBS);
    place
}

fn api(function: &str, param: &str) -> String {
    format!(
        r#"{{"action": {{"type": "api", "module": "jobs", "function": "{function}", "path": ["."]}}, "param": {param}}}"#
    )
}

fn run(place: &Place, nodes: &[(&str, &str, &str)]) -> Value {
    let nodes: Vec<String> = nodes
        .iter()
        .map(|(name, function, param)| format!("\"{name}\": {}", api(function, param)))
        .collect();
    place.run(&format!("{{{}}}", nodes.join(",")), &[]).json()["output"].clone()
}

#[test]
fn results_and_exceptions() {
    let place = place();
    let output = run(
        &place,
        &[
            ("ok", "ok", r#"{"any": 1}"#),
            ("fails", "fails", "{}"),
            ("full", "full", r#"{"x": [1.50, null, "é"]}"#),
            ("code", "code", "{}"),
            ("raises", "raises", r#"{"ip": "1.1"}"#),
            ("truth", "truth", "{}"),
            ("nothing", "nothing", "{}"),
            ("missing", "no_such", "{}"),
            ("signature", "raises", r#"{"ipp": 1}"#),
            ("crash", "crash", "{}"),
            ("leave", "leave", "{}"),
        ],
    );
    let brief = |name: &str| {
        json!([
            output[name]["status"],
            output[name]["result"]["return_code"]
        ])
    };
    assert_eq!(brief("ok"), json!(["success", 1]));
    assert_eq!(brief("fails"), json!(["failure", 0]));
    assert_eq!(brief("full"), json!(["success", 1]));
    let text = output["full"]["result"].to_string();
    assert!(text.contains("said") && !text.contains("printed"), "{text}");
    assert_eq!(brief("code"), json!(["failure", 0]));
    assert_eq!(output["code"]["result"]["exit_code"], 7);
    assert_eq!(output["code"]["result"]["err_msg"], "seven");
    for name in [
        "raises",
        "truth",
        "nothing",
        "missing",
        "signature",
        "crash",
        "leave",
    ] {
        assert_eq!(brief(name), json!(["exception", 0]), "{name}");
    }
    let message = |name: &str| {
        output[name]["result"]["err_msg"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(message("raises"), "ValueError: bad ip 1.1");
    assert_eq!(
        output["raises"]["result"]["err_code"],
        "apscli_run_py_func_exception"
    );
    assert!(place.read("run/logs/raises.log").contains("Traceback"));
    assert!(
        message("missing").contains("no_such"),
        "{}",
        message("missing")
    );
    assert!(
        message("signature").contains("ipp"),
        "{}",
        message("signature")
    );
    assert_eq!(
        message("crash"),
        "the Python process was ended by signal 11 before it gave a result"
    );
    assert_eq!(
        message("leave"),
        "the Python process ended with exit code 0 before it gave a result"
    );
    assert!(place.run("{}", &[]).status == 2);
}

#[test]
fn numbers_come_back_as_python_wrote_them() {
    let place = place();
    let nodes = format!(r#"{{"a": {}}}"#, api("full", r#"{"x": 1.50}"#));
    let done = place.run(&nodes, &[]);
    assert!(
        done.stdout.contains("1180591620717411303424"),
        "{}",
        done.stdout
    );
}

#[test]
fn ten_megabytes_do_not_block() {
    let output = run(&place(), &[("a", "large", "{}")]);
    assert_eq!(
        output["a"]["result"]["output"].as_str().unwrap().len(),
        10_000_000
    );
}

#[test]
fn nothing_leaks_from_call_to_call_and_each_has_its_own_process_group() {
    let place = place();
    let output = run(
        &place,
        &[("a", "leak", "{}"), ("b", "leak", "{}"), ("p", "pid", "{}")],
    );
    assert_eq!(
        (
            &output["a"]["result"]["output"],
            &output["b"]["result"]["output"]
        ),
        (&json!(1), &json!(1))
    );
    let ids = &output["p"]["result"]["output"];
    assert_eq!(ids[0], ids[1]);
}

#[test]
fn a_thousand_at_once_finish() {
    let place = place();
    let nodes: Vec<String> = (0..1000)
        .map(|i| format!("\"n{i}\": {}", api("ok", "{}")))
        .collect();
    let done = place.run(&format!("{{{}}}", nodes.join(",")), &["--parallel", "1000"]);
    assert_eq!(done.status, 0, "{}", done.stderr);
}

#[test]
fn a_timeout_ends_a_call() {
    let place = place();
    let node = api("wait", "{}").replacen('{', "{\"timeout\": \"3s\", ", 1);
    let done = place.run(
        &format!(r#"{{"a": {node}, "b": {}}}"#, api("ok", "{}")),
        &["--grace", "500ms"],
    );
    let output = &done.json()["output"];
    assert_eq!(
        output["a"]["reason"],
        "Timeout: ran longer than its timeout"
    );
    assert_eq!(output["b"]["status"], "success");
    assert!(!lives(&place.read("child")));
}

#[test]
fn a_killed_run_leaves_no_call_and_no_interpreter() {
    let place = place();
    place.write("t.template", format!(r#"{{"a": {}}}"#, api("wait", "{}")));
    let mut run = place.start(&["run", "--template", "t.template"]);
    let call = place.until_written("child");
    let status = std::fs::read_to_string(format!("/proc/{}/status", call.trim())).unwrap();
    let parent = status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:"))
        .unwrap()
        .to_owned();
    assert!(lives(&call) && lives(&parent));
    run.kill().unwrap();
    finish(run);
    until("the call's end", || !lives(&call));
    until("the interpreter's end", || !lives(&parent));
}

#[test]
fn pythons_that_do_not_serve_say_why() {
    let place = place();
    place.write("t.template", format!(r#"{{"a": {}}}"#, api("ok", "{}")));
    let message = |args: &[&str]| {
        let mut all = vec!["run", "--template", "t.template", "-o", "json"];
        all.extend(args);
        let result = place.apscli(&all).json()["output"]["a"].clone();
        assert_eq!(result["status"], "exception");
        result["result"]["err_msg"].as_str().unwrap().to_owned()
    };
    assert!(message(&["--python", "/no/python3"]).contains("/no/python3"));
    assert!(message(&["--python", "/bin/true"]).contains("ended before it could serve"));
    assert!(message(&["--preload", "no_such_module"]).contains("no_such_module"));
}

/// An interpreter that never serves (a dead network disk, a preloaded module that hangs) must
/// not hold the run: it did once, through timeout and Ctrl-C.
#[test]
fn an_interpreter_that_hangs_holds_nobody() {
    let place = place();
    place.script("python3", "echo $$ > interpreter\nsleep 1000");
    let node = api("ok", "{}").replacen('{', "{\"timeout\": \"1s\", ", 1);
    place.write(
        "t.template",
        format!(r#"{{"a": {node}, "b": {}}}"#, api("ok", "{}")),
    );
    let run = place.start(&[
        "run",
        "--template",
        "t.template",
        "-o",
        "json",
        "--python",
        "./python3",
    ]);
    place.until_written("interpreter");
    std::thread::sleep(std::time::Duration::from_millis(1500));
    signal(&run, Signal::INT);
    let output = finish(run).json()["output"].clone();
    assert_eq!(
        (&output["a"]["status"], &output["b"]["status"]),
        (&json!("exception"), &json!("cancelled"))
    );
    until("the interpreter's end", || {
        !lives(&place.read("interpreter"))
    });
}

/// One that is stopped reads nothing: its socket fills up, and whoever writes to it must not
/// hang with it.
#[test]
fn a_stopped_interpreter_holds_nobody() {
    let place = place();
    place.write(
        "stop.py",
        "import os, signal\ndef stop():\n    os.kill(os.getppid(), signal.SIGSTOP)\n    open('stopped', 'w').write(str(os.getppid()) + '\\n')\n    return 0\n",
    );
    let mut nodes = vec![
        r#""s": {"action": {"type": "api", "module": "stop", "function": "stop", "path": ["."]}}"#
            .to_owned(),
    ];
    // More than the socket takes unread.
    nodes.extend((0..600).map(|i| {
        let node = api("ok", "{}").replacen('{', "{\"prev_nodes\": [\"w\"], ", 1);
        format!("\"n{i}\": {node}")
    }));
    place.script("wait.sh", "while ! [ -e stopped ]; do sleep 0.05; done");
    nodes.push(r#""w": {"action": {"type": "cmd", "cmd": "./wait.sh"}}"#.to_owned());
    place.write("t.template", format!("{{{}}}", nodes.join(",")));
    let run = place.start(&[
        "run",
        "--template",
        "t.template",
        "-o",
        "json",
        "--parallel",
        "700",
        "--grace",
        "500ms",
    ]);
    let interpreter = place.until_written("stopped");
    std::thread::sleep(std::time::Duration::from_secs(2));
    signal(&run, Signal::INT);
    let done = finish(run);
    assert_eq!(done.status, 1);
    assert_eq!(done.json()["output"]["n599"]["status"], "cancelled");
    until("the interpreter's end", || !lives(&interpreter));
}

#[test]
fn the_active_virtual_environments_python_is_taken() {
    let place = place();
    let made = Command::new(PYTHON.as_path())
        .args(["-m", "venv", "--without-pip", "venv"])
        .current_dir(place.dir.path())
        .status()
        .unwrap();
    assert!(
        made.success(),
        "python3 -m venv is needed (Debian: python3-venv)"
    );
    place.write(
        "where.py",
        "import sys\ndef prefix(): return {'return_code': 0, 'output': sys.prefix}\n",
    );
    place.write("t.template", r#"{"a": {"action": {"type": "api", "module": "where", "function": "prefix", "path": ["."]}}}"#);
    let output = place
        .command(&["run", "--template", "t.template", "-o", "json"])
        .env("VIRTUAL_ENV", place.path("venv"))
        .output()
        .unwrap();
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let prefix = json["output"]["a"]["result"]["output"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        std::fs::canonicalize(prefix).unwrap(),
        std::fs::canonicalize(place.path("venv")).unwrap()
    );
}

/// The extension's own tests: every promise of its protocol, with a host played by Python.
#[test]
fn the_extension_module_keeps_its_protocol() {
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_apscli"));
    let extension = program.with_file_name("libapscli_python.so");
    assert!(
        extension.is_file(),
        "{} is missing: cargo build --workspace",
        extension.display()
    );
    let output = Command::new(PYTHON.as_path())
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/src/python/tests/drive.py"
        ))
        .env("APSCLI_PYTHON_EXTENSION", extension)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    println!("{said}");
    assert!(
        output.status.success() && said.contains("\nOK") && !said.contains("Ran 0 tests"),
        "{said}"
    );
}
