//! What a person sees at a terminal while a run goes on.

use crate::program::{Done, PYTHON, Place};

/// Runs a program with a terminal for its stderr, and hands on what is shown there.
const TERMINAL: &str = r"
import fcntl, os, pty, struct, subprocess, sys, termios
ours, theirs = pty.openpty()
fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('HHHH', 30, 100, 0, 0))
child = subprocess.Popen(sys.argv[1:], stderr=theirs)
os.close(theirs)
while True:
    try:
        shown = os.read(ours, 65536)
    except OSError: # the other end is closed
        break
    os.write(2, shown)
sys.exit(child.wait())
";

#[test]
fn each_node_has_a_line_while_it_runs_and_one_that_stays() {
    let place = Place::new();
    place.write(
        "t.template",
        r#"{"first": {"action": {"type": "cmd", "cmd": "sleep 1"}},
            "second": {"prev_nodes": ["first"], "action": {"type": "cmd", "cmd": "false"}},
            "third": {"prev_nodes": ["second"], "action": {"type": "cmd", "cmd": "true"}}}"#,
    );
    let output = std::process::Command::new(PYTHON.as_path())
        .args(["-c", TERMINAL, env!("CARGO_BIN_EXE_apscli")])
        .args(["run", "--template", "t.template", "--log-dir", "run"])
        .current_dir(place.dir.path())
        .env("TERM", "xterm")
        .env_remove("NO_COLOR")
        .output()
        .unwrap();
    let done = Done::new(&output);
    let shown = &done.stderr;
    let running = shown.find(" first  0s").expect(shown);
    let over = shown.find("first: Succeeded in 1.").expect(shown);
    assert!(running < over, "{shown}");
    for line in [
        "0/3 nodes",
        "second: Failed in 0.",
        "(exit code 1)",
        "third: Skipped (needs 1 of all its prev_nodes, but second=0)",
    ] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    let rows: Vec<Vec<&str>> = done
        .stdout
        .lines()
        .map(|line| line.split_whitespace().take(2).collect())
        .collect();
    assert_eq!(
        rows,
        [
            ["NODE", "PHASE"],
            ["first", "Succeeded"],
            ["second", "Failed"],
            ["third", "Skipped"],
            ["run:", "Failed"],
        ]
    );
    assert_eq!(done.status, 1);
}
