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

/// What a node writes and what a catalog says is shown, but not executed by the terminal.
#[test]
fn text_of_others_is_not_executed() {
    const HOSTILE: &str = "x\u{1b}]0;t\u{7}\u{1b}[2J\r\u{9b}A\u{202e}y";
    let place = Place::new();
    let said = format!("[OUTPUT]{HOSTILE}");
    let template = serde_json::json!({
        "a": {"action": {"type": "cmd", "cmd": ["printf", "%s\n", said]}},
        "b": {"action": {"type": "cmd", "cmd": [format!("./{HOSTILE}")]}},
    });
    place.write("t.json", template.to_string());
    let run = |more: &[&str]| {
        let output = std::process::Command::new(PYTHON.as_path())
            .args([
                "-c",
                TERMINAL,
                env!("CARGO_BIN_EXE_apscli"),
                "run",
                "--template",
                "t.json",
            ])
            .args(more)
            .current_dir(place.dir.path())
            .env("TERM", "xterm")
            .env("XDG_STATE_HOME", place.path("state"))
            .output()
            .unwrap();
        Done::new(&output)
    };
    let harmless = |text: &str| {
        // The progress bars' own sequences are on stderr.
        for bad in [
            "\u{1b}]",
            "\u{7}",
            "\u{1b}[2Jx",
            "\u{9b}",
            "\u{202e}",
            "\u{1b}[2J\u{fffd}",
        ] {
            assert!(!text.contains(bad), "{bad:?}: {text:?}");
        }
        assert!(
            text.contains("x\u{fffd}]0;t\u{fffd}\u{fffd}[2J"),
            "{text:?}"
        );
    };
    let done = run(&[]);
    harmless(&done.stdout);
    harmless(&done.stderr);
    assert!(
        !done.stdout.contains('\u{1b}') && !done.stdout.contains('\r'),
        "{:?}",
        done.stdout
    );
    let lines = place.apscli(&["run", "--template", "t.json"]);
    harmless(&lines.stderr);
    // Escapes mean the same.
    let done = run(&["-o", "json"]);
    assert!(
        !done.stdout.contains(['\u{1b}', '\u{9b}', '\u{202e}']),
        "{:?}",
        done.stdout
    );
    assert_eq!(done.json()["output"]["a"]["result"]["output"], HOSTILE);

    let entry = serde_json::json!({"s": {"workflow_template_path": "t.json", "desc": format!("{HOSTILE}\nforged.row  1.0")}});
    place.write("meta/c.json", entry.to_string());
    let listed = place.apscli(&["--metadata", "meta", "list"]);
    harmless(&listed.stdout);
    assert_eq!(listed.stdout.lines().count(), 2, "{}", listed.stdout);
    // A word of a file in an error.
    place.write(
        "bad.json",
        serde_json::json!({"a": {HOSTILE: 1}}).to_string(),
    );
    let bad = place.apscli(&["validate", "bad.json"]);
    assert_eq!(bad.status, 2);
    assert!(
        !bad.stderr.contains(['\u{1b}', '\u{9b}', '\u{202e}', '\r']),
        "{:?}",
        bad.stderr
    );
}
