//! What the program inherits from whoever starts it: signals, limits, directories, files.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;

use crate::program::{Done, PYTHON, Place, finish, signal, until};

/// Starts a program after a line of Python has changed what it inherits.
fn started_by(place: &Place, line: &str, args: &[&str]) -> Done {
    let script =
        format!("import os, resource, signal, sys\n{line}\nos.execv(sys.argv[1], sys.argv[1:])");
    let output = std::process::Command::new(PYTHON.as_path())
        .args(["-c", &script, env!("CARGO_BIN_EXE_apscli")])
        .args(args)
        .current_dir(place.dir.path())
        .output()
        .unwrap();
    Done::new(&output)
}

const RUN: [&str; 5] = ["run", "--template", "t.template", "--log-dir", "run"];

#[test]
fn blocked_signals_do_not_reach_nodes() {
    let place = Place::new();
    place.script(
        "look.sh",
        "echo \"[OUTPUT]$(grep -e SigBlk -e SigIgn /proc/self/status | cut -f2 | tr '\\n' ' ')\"",
    );
    place.write(
        "t.template",
        r#"{"a": {"action": {"type": "cmd", "cmd": "./look.sh"}}}"#,
    );
    let line = "signal.pthread_sigmask(signal.SIG_BLOCK, {1, 2, 15, 17})
for number in (1, 2, 3, 10, 12, 13, 15, 17, 20, 25, 34):
    signal.signal(number, signal.SIG_IGN)";
    let json = started_by(&place, line, &[&RUN[..], &["-o", "json"]].concat()).json();
    let sets = json["output"]["a"]["result"]["output"].as_str().unwrap();
    let sets: Vec<u64> = sets
        .split_whitespace()
        .map(|set| u64::from_str_radix(set, 16).unwrap())
        // Signals 32 and 33 belong to the C library, which lets no program set them.
        .map(|set| set & !(0b11 << 31))
        .collect();
    assert_eq!(sets, [0, 0]);
}

#[test]
fn blocked_term_still_cancels_a_run() {
    let place = Place::new();
    place.script("wait.sh", "echo > began\nsleep 1000");
    place.write(
        "t.template",
        r#"{"a": {"action": {"type": "cmd", "cmd": "./wait.sh"}}}"#,
    );
    let script = "import os, signal, sys\nsignal.pthread_sigmask(signal.SIG_BLOCK, {2, 15})\nos.execv(sys.argv[1], sys.argv[1:])";
    let run = std::process::Command::new(PYTHON.as_path())
        .args(["-c", script, env!("CARGO_BIN_EXE_apscli")])
        .args(RUN)
        .current_dir(place.dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until("the node's start", || place.path("began").exists());
    signal(&run, Signal::TERM);
    let done = finish(run);
    assert!(done.stdout.contains("run: Cancelled"), "{}", done.stdout);
}

#[test]
fn file_size_limit_is_an_error_of_the_journal() {
    let place = Place::new();
    place.write("t.template", r#"{"a": {"action": {"type": "cmd", "cmd": ["sh", "-c", "echo [OUTPUT]$(head -c 3000 /dev/zero | tr '\\0' x)"]}}}"#.replace("$(", "$$("));
    let line = "resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))";
    let done = started_by(&place, line, &RUN);
    assert_eq!(done.status, 1, "{} {}", done.stdout, done.stderr);
    assert!(
        done.stderr
            .contains("the run was stopped, because its journal cannot be written"),
        "{}",
        done.stderr
    );
    assert!(done.stdout.contains("run: Cancelled"), "{}", done.stdout);
}

#[test]
fn full_stdout_is_an_error_of_every_command() {
    let place = Place::new();
    place.write(
        "t.template",
        r#"{"a": {"action": {"type": "cmd", "cmd": "true"}}}"#,
    );
    place.write("metadata/empty.json", "{}");
    for args in [
        &["run", "--template", "t.template"][..],
        &["run", "--template", "t.template", "-o", "json"],
        &["graph", "t.template"],
        &["crd"],
        &["completions", "bash"],
        &["--help"],
        &["run", "--help"],
        &["--version"],
    ] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = place.command(args).stdout(full).output().unwrap();
        let done = Done::new(&output);
        assert_eq!(done.status, 1, "{args:?}: {}", done.stderr);
        let wanted = "error: cannot write to standard output: No space left on device";
        assert!(done.stderr.contains(wanted), "{args:?}: {}", done.stderr);
    }
}

#[test]
fn closed_pipe_is_no_error() {
    let place = Place::new();
    let (read, write) = rustix::pipe::pipe().unwrap();
    drop(read);
    let output = place.command(&["crd"]).stdout(write).output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
}

#[test]
fn nonblocking_stdout_gets_all_of_it() {
    let place = Place::new();
    let whole = place.apscli(&["crd"]).stdout;
    let (read, write): (OwnedFd, OwnedFd) = rustix::pipe::pipe().unwrap();
    rustix::io::ioctl_fionbio(&write, true).unwrap();
    // As small as a pipe can be, so that it is full long before the end.
    rustix::pipe::fcntl_setpipe_size(&write, 4096).unwrap();
    let mut run = place.command(&["crd"]).stdout(write).spawn().unwrap();
    let mut text = String::new();
    let mut reader = File::from(read);
    let mut buffer = [0; 1024];
    loop {
        let length = reader.read(&mut buffer).unwrap();
        if length == 0 {
            break;
        }
        text.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
        std::thread::sleep(Duration::from_micros(200));
    }
    assert_eq!(run.wait().unwrap().code(), Some(0));
    assert!(text == whole, "{} of {} bytes", text.len(), whole.len());
}

#[test]
fn nodes_cannot_open_the_terminal() {
    let place = Place::new();
    place.write(
        "t.template",
        r#"{"a": {"action": {"type": "cmd", "cmd": ["sh", "-c", "read x </dev/tty; echo [OUTPUT]$$?"]}},
            "b": {"action": {"type": "api", "module": "m", "function": "f", "path": ["."]}}}"#,
    );
    place.write("m.py", "def f():\n    try:\n        open('/dev/tty')\n    except OSError as e:\n        return {'return_code': 0, 'output': e.errno}\n    return {'return_code': 1}\n");
    // `script` of util-linux is not on every machine; Python's pty is.
    let terminal = "import pty, sys\nsys.exit(pty.spawn(sys.argv[1:]) >> 8)";
    let output = place
        .command(&[])
        .get_envs()
        .fold(
            std::process::Command::new(PYTHON.as_path()),
            |mut command, (name, value)| {
                if let Some(value) = value {
                    command.env(name, value);
                }
                command
            },
        )
        .args(["-c", terminal, env!("CARGO_BIN_EXE_apscli")])
        .args(RUN)
        .args(["-o", "json"])
        .current_dir(place.dir.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let json = &text[text.find('{').expect(&text)..];
    let json: serde_json::Value = serde_json::from_str(json).unwrap();
    let enxio = 6;
    assert_eq!(json["output"]["b"]["result"]["output"], enxio, "{text}");
    assert_ne!(json["output"]["a"]["result"]["output"], 0, "{text}");
}

#[test]
fn removed_current_directory_is_named() {
    let place = Place::new();
    let template = place.write(
        "t.template",
        r#"{"a": {"action": {"type": "cmd", "cmd": "true"}}}"#,
    );
    fs::create_dir(place.path("gone")).unwrap();
    let line = format!("os.chdir('gone'); os.rmdir({:?})", place.path("gone"));
    let run = [
        "run",
        "--template",
        template.to_str().unwrap(),
        "--log-dir",
        "/nowhere",
    ];
    let done = started_by(&place, &line, &run);
    assert_eq!(done.status, 2);
    assert!(done.stderr.contains("current directory"), "{}", done.stderr);
}

#[test]
fn non_utf8_directory_is_refused_before_anything() {
    let place = Place::new();
    let odd = place
        .dir
        .path()
        .join(std::ffi::OsStr::from_bytes(b"caf\xe9"));
    fs::create_dir(&odd).unwrap();
    let template = place.write(
        "t.template",
        r#"{"a": {"action": {"type": "cmd", "cmd": "true"}}}"#,
    );
    let log = place.path("run");
    let mut run = place.command(&[
        "run",
        "--template",
        template.to_str().unwrap(),
        "--log-dir",
        log.to_str().unwrap(),
    ]);
    let done = Done::new(&run.current_dir(&odd).output().unwrap());
    assert_eq!(done.status, 2);
    assert!(
        done.stderr.contains("caf\u{fffd} is not UTF-8"),
        "{}",
        done.stderr
    );
    assert!(!log.exists());
    // From elsewhere the same directory for the log is free.
    let done = place.apscli(&["run", "--template", "t.template", "--log-dir", "run"]);
    assert_eq!(done.status, 0, "{}", done.stderr);
}

#[test]
fn a_journal_that_cannot_start_leaves_none() {
    let place = Place::new();
    let params = format!("x: {}", "y".repeat(5000));
    place.write("p.yaml", params);
    place.write(
        "t.template",
        r#"{"a": {"action": {"type": "cmd", "cmd": "true"}}}"#,
    );
    let line = "resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))";
    let args = [&RUN[..], &["--params", "p.yaml"]].concat();
    let done = started_by(&place, line, &args);
    assert_eq!(done.status, 2, "{}", done.stderr);
    assert!(!Path::new(&place.path("run/journal.jsonl")).exists());
    let done = place.apscli(&args);
    assert_eq!(done.status, 0, "{}", done.stderr);
}
