//! A killed run: its processes end with it, and `--resume` repeats nothing.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

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
    place.script("b.sh", "echo b >> did; echo b\n[ -e go ] && exit 0\nsleep 1000 &\necho $! > grandchild.new\necho $$ > child\nmv grandchild.new grandchild\nwait");
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

/// As if the machine's clock had been years ahead until the run was killed.
#[test]
fn clock_set_back_before_resume_is_harmless() {
    let place = place();
    killed(&place);
    let journal = place.read("run/journal.jsonl");
    let year = jiff::Timestamp::now().strftime("%Y").to_string();
    // Four, as not every year has a 29 February.
    let next = (year.parse::<u32>().unwrap() + 4).to_string();
    let ahead = journal.replace(&format!("\"{year}-"), &format!("\"{next}-"));
    assert_ne!(ahead, journal);
    fs::write(place.path("run/journal.jsonl"), ahead).unwrap();
    let done = place.apscli(&["run", "--resume", "run", "-o", "json"]);
    for node in ["a", "b", "c"] {
        let of = done.json()["output"][node].clone();
        let (start, end) = (of["start_time"].as_str(), of["end_time"].as_str());
        assert!(
            start.unwrap() <= end.unwrap() && end.unwrap().starts_with(&next),
            "{of}"
        );
    }
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

/// What a run was asked for at its start holds when it is resumed; what is asked then counts
/// more.
#[test]
fn a_resumed_run_keeps_its_flags() {
    let place = place();
    place.script("python3", "echo started >> interpreters\nexit 1");
    place.write(
        "t.template",
        TEMPLATE.replacen(
            '{',
            r#"{"p": {"prev_nodes": ["c"], "action": {"type": "api", "module": "m", "function": "f"}},"#,
            1,
        ),
    );
    let args = ["run", "--template", "t.template", "--log-dir", "run"];
    let flags = ["--parallel", "3", "--timeout", "1h", "--grace", "5s"];
    let python = ["--python", "./python3", "--preload", "m"];
    let mut run = place.start(&[&args[..], &flags, &python].concat());
    until("b's start", || place.path("grandchild").exists());
    run.kill().unwrap();
    run.wait().unwrap();
    let header = place.read("run/journal.jsonl");
    let header: serde_json::Value = serde_json::from_str(header.lines().next().unwrap()).unwrap();
    let kept = &header["flags"];
    assert_eq!(
        (&kept["parallel"], &kept["preload"][0]),
        (&serde_json::json!(3), &serde_json::json!("m"))
    );
    let folder = place.path("run").display().to_string();
    let copy = |to: &str| {
        let copied = std::process::Command::new("cp")
            .args(["-r", &folder, to])
            .status();
        assert!(copied.unwrap().success());
        to.to_owned()
    };
    let (timed_out, asked) = (
        copy(&place.path("short").display().to_string()),
        copy(&place.path("asked").display().to_string()),
    );
    // The interpreter of the start is asked, and refuses.
    let done = place.apscli(&["run", "--resume", "run", "-o", "json"]);
    assert_eq!(done.json()["output"]["p"]["status"], "exception");
    assert_eq!(place.read("interpreters"), "started\n");
    // Another one, where another is asked for.
    let python = ["--python", "/no/python3"];
    let done = place.apscli(&[&["run", "--resume", &asked, "-o", "json"], &python[..]].concat());
    let message = &done.json()["output"]["p"]["result"]["err_msg"];
    assert!(
        message.as_str().unwrap().contains("/no/python3"),
        "{message}"
    );
    // The time of a timeout goes on while nobody runs it.
    let timeout = ["--timeout", "1ms"];
    let done =
        place.apscli(&[&["run", "--resume", &timed_out, "-o", "json"], &timeout[..]].concat());
    assert_eq!(
        done.json()["output"]["c"]["status"],
        serde_json::Value::Null
    );
    assert_eq!(
        done.json()["output"]["c"]["reason"],
        "Cancelled: the run took longer than its timeout"
    );
}

/// A journal of before these flags were kept.
#[test]
fn a_journal_without_flags_is_read() {
    let place = place();
    killed(&place);
    let journal = place.read("run/journal.jsonl");
    let (header, rest) = journal.split_once('\n').unwrap();
    let mut header: serde_json::Value = serde_json::from_str(header).unwrap();
    header.as_object_mut().unwrap().remove("flags").unwrap();
    fs::write(place.path("run/journal.jsonl"), format!("{header}\n{rest}")).unwrap();
    let done = place.apscli(&["run", "--resume", "run", "-o", "json"]);
    assert_eq!((done.status, place.read("did").as_str()), (1, "a\nb\nc\n"));
}

/// The lock is free only when all that the killed run had started is gone.
#[test]
fn a_resume_waits_for_the_end_of_what_was_left() {
    let place = place();
    killed(&place);
    assert_eq!(place.apscli(&["run", "--resume", "run"]).status, 1);
    for name in ["child", "grandchild"] {
        assert!(!lives(&place.read(name)), "{name}");
    }
}

/// However long its guard takes: on a busy machine that is no sign of another apscli.
#[test]
fn a_resume_waits_for_the_guard_longer_than_for_an_apscli() {
    let place = place();
    killed(&place);
    let guard = fs::File::open(place.path("run/guard.lock")).unwrap();
    guard.lock().unwrap();
    let mut resume = place.start(&["run", "--resume", "run"]);
    std::thread::sleep(Duration::from_secs(4));
    assert!(resume.try_wait().unwrap().is_none());
    guard.unlock().unwrap();
    assert_eq!(finish(resume).status, 1);
}

/// Nodes run where the run was started, wherever it is resumed.
#[test]
fn a_resumed_run_keeps_its_folder() {
    let place = Place::new();
    place.write(
        "t.template",
        r#"{"a": {"action": {"type": "cmd", "cmd": ["sh", "-c", "pwd > began; [ -e go ] || sleep 1000"]}},
            "b": {"prev_nodes": ["a"], "action": {"type": "cmd", "cmd": ["sh", "-c", "echo [OUTPUT]$$(pwd)"]}},
            "p": {"prev_nodes": ["b"], "action": {"type": "api", "module": "m", "function": "f"}}}"#,
    );
    place.script("work/python3", "echo here > interpreter; exit 1");
    let args = ["run", "--template", "../t.template", "--log-dir", "../run"];
    let mut run = place
        .command(&[&args[..], &["--python", "./python3"]].concat())
        .current_dir(place.path("work"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    place.until_written("work/began");
    run.kill().unwrap();
    run.wait().unwrap();
    place.write("work/go", "");
    let done = place.apscli(&["run", "--resume", "run", "-o", "json", "--on-lost", "retry"]);
    let work = fs::canonicalize(place.path("work")).unwrap();
    assert_eq!(
        done.json()["output"]["b"]["result"]["output"],
        work.display().to_string()
    );
    assert_eq!(place.read("work/interpreter"), "here\n");
    assert!(place.path("run/logs/b.log").exists());
}

/// A full disk under the journal: what runs is asked to end, has its grace, and what finished is
/// told.
#[test]
fn a_journal_that_cannot_be_written_ends_the_run_gently() {
    let place = Place::new();
    place.script(
        "slow.sh",
        "trap 'echo [OUTPUT]asked; exit 3' TERM\necho $$ > pid\nwhile :; do sleep 0.05; done",
    );
    place.script("after.sh", "while ! [ -e go ]; do sleep 0.05; done");
    place.write(
        "t.template",
        r#"{"quick": {"action": {"type": "cmd", "cmd": "true"}},
            "slow": {"prev_nodes": ["quick"], "action": {"type": "cmd", "cmd": "./slow.sh"}},
            "after": {"action": {"type": "cmd", "cmd": "./after.sh"}},
            "never": {"prev_nodes": ["after"], "action": {"type": "cmd", "cmd": "touch never"}}}"#,
    );
    // The kernel tells of a file that may not grow by a signal, unless that is ignored.
    let run = std::process::Command::new("sh")
        .args([
            "-c",
            "trap '' XFSZ; exec \"$0\" \"$@\"",
            env!("CARGO_BIN_EXE_apscli"),
        ])
        .args([
            "run",
            "--template",
            "t.template",
            "-o",
            "json",
            "--log-dir",
            "run",
        ])
        .current_dir(place.dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    place.until_written("pid");
    let pid = rustix::process::Pid::from_child(&run);
    let size = fs::metadata(place.path("run/journal.jsonl")).unwrap().len();
    let limit = rustix::process::Rlimit {
        current: Some(size),
        maximum: None,
    };
    rustix::process::prlimit(Some(pid), rustix::process::Resource::Fsize, limit).unwrap();
    place.write("go", "");
    let done = finish(run);
    let json = done.json();
    let status = |name: &str| json["output"][name]["status"].clone();
    assert_eq!(
        (status("quick"), status("after"), status("slow")),
        ("success".into(), "success".into(), "cancelled".into())
    );
    assert_eq!(json["output"]["slow"]["result"]["output"], "asked");
    assert!(!place.path("never").exists() && !lives(&place.read("pid")));
    assert_eq!(
        (&json["return_code"], done.status),
        (&serde_json::json!(0), 1)
    );
    assert!(
        done.stderr
            .contains("error: the run was stopped, because its journal cannot be written"),
        "{}",
        done.stderr
    );
    // What is on record goes on: `after` is not, so it was lost.
    let done = place.apscli(&["run", "--resume", "run", "-o", "json"]);
    assert_eq!(done.json()["output"]["quick"]["status"], "success");
    assert_eq!(
        done.json()["output"]["slow"]["reason"],
        "Lost: apscli ended while this attempt was running"
    );
}

/// A file that is no journal of ours is left as it is.
#[test]
fn a_stranger_is_not_cut() {
    let place = place();
    place.write("run/journal.jsonl", "mine\nhalf a line");
    assert_eq!(place.apscli(&["run", "--resume", "run"]).status, 2);
    assert_eq!(place.read("run/journal.jsonl"), "mine\nhalf a line");
}

fn chmod(path: std::path::PathBuf, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// What a journal says is executed, and logs are written by name.
#[test]
fn folder_or_journal_that_others_may_write_is_refused() {
    use std::os::unix::fs::symlink;
    const TEMPLATE: &str = r#"{"a": {"action": {"type": "cmd", "cmd": "touch ran"}}}"#;
    let place = Place::new();
    place.write("t.template", TEMPLATE);
    let refused = |args: &[&str], why: &str| {
        let done = place.apscli(args);
        assert_eq!(done.status, 2, "{args:?}: {}", done.stderr);
        assert!(done.stderr.contains(why), "{args:?}: {}", done.stderr);
        assert!(!place.path("ran").exists(), "{args:?}");
    };
    let run = ["run", "--template", "t.template", "--log-dir", "shared"];
    fs::create_dir(place.path("shared")).unwrap();
    for mode in [0o777, 0o1777, 0o775] {
        chmod(place.path("shared"), mode);
        refused(&run, "can be written by others");
    }
    fs::create_dir(place.path("mine")).unwrap();
    symlink("mine", place.path("link")).unwrap();
    for link in ["link", "link/", "link/."] {
        refused(
            &["run", "--template", "t.template", "--log-dir", link],
            "is a link",
        );
    }
    assert_eq!(fs::read_dir(place.path("mine")).unwrap().count(), 0);
    // Logs of somebody else's, below one of one's own.
    fs::create_dir(place.path("mine/logs")).unwrap();
    chmod(place.path("mine/logs"), 0o777);
    let mine = ["run", "--template", "t.template", "--log-dir", "mine"];
    refused(&mine, "mine/logs can be written by others");
    fs::remove_dir(place.path("mine/logs")).unwrap();

    assert_eq!(place.apscli(&mine).status, 0);
    fs::remove_file(place.path("ran")).unwrap();
    let resume = ["run", "--resume", "mine"];
    chmod(place.path("mine"), 0o777);
    refused(&resume, "can be written by others");
    refused(&["run", "--resume", "link"], "is a link");
    chmod(place.path("mine"), 0o700);
    chmod(place.path("mine/journal.jsonl"), 0o666);
    refused(&resume, "journal.jsonl can be written by others");
    chmod(place.path("mine/journal.jsonl"), 0o600);
    fs::rename(place.path("mine/journal.jsonl"), place.path("elsewhere")).unwrap();
    symlink("../elsewhere", place.path("mine/journal.jsonl")).unwrap();
    refused(&resume, "cannot open the journal");
    fs::rename(place.path("elsewhere"), place.path("mine/journal.jsonl")).unwrap();
    assert_eq!(place.apscli(&resume).status, 0);
}

/// Root too: the owner of a directory can put anything into it at any time.
#[test]
fn folder_of_another_user_is_refused() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED folder_of_another_user_is_refused: only root can give a folder away");
        return;
    }
    let place = Place::new();
    place.write(
        "t.template",
        r#"{"a": {"action": {"type": "cmd", "cmd": "true"}}}"#,
    );
    assert_eq!(
        place
            .apscli(&["run", "--template", "t.template", "--log-dir", "run"])
            .status,
        0
    );
    fs::create_dir(place.path("theirs")).unwrap();
    for theirs in ["run", "theirs"] {
        std::os::unix::fs::chown(place.path(theirs), Some(4242), None).unwrap();
    }
    for args in [
        &["run", "--template", "t.template", "--log-dir", "theirs"][..],
        &["run", "--resume", "run"],
    ] {
        let done = place.apscli(args);
        assert_eq!(done.status, 2);
        assert!(
            done.stderr
                .contains("belongs to the user 4242, and you are 0"),
            "{}",
            done.stderr
        );
    }
}

#[test]
fn no_link_in_a_runs_folder_is_followed() {
    use std::os::unix::fs::symlink;
    let place = Place::new();
    place.write(
        "t.template",
        r#"{"a": {"action": {"type": "cmd", "cmd": "echo said"}}}"#,
    );
    place.write("victim", "");
    let log = |name: &str| format!("run/{name}");
    for name in ["logs/a.log", "guard.lock", "journal.jsonl"] {
        let _ = fs::remove_dir_all(place.path("run"));
        fs::create_dir_all(place.path("run/logs")).unwrap();
        symlink(place.path("victim"), place.path(&log(name))).unwrap();
        let done = place.apscli(&["run", "--template", "t.template", "--log-dir", "run"]);
        // Of a log nothing else hangs on it.
        let expected = if name.starts_with("logs") { 0 } else { 2 };
        assert_eq!(done.status, expected, "{name}: {}", done.stderr);
        assert_eq!(place.read("victim"), "", "{name}");
    }
}

/// Only its owner may read parameters, and what nodes say, whatever the umask is.
#[test]
fn the_runs_folder_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    place.write(
        "t.template",
        r#"{"a": {"action": {"type": "cmd", "cmd": "sh -c umask"}}}"#,
    );
    let program = env!("CARGO_BIN_EXE_apscli");
    let line = format!("umask 000; {program} run --template t.template");
    let done = std::process::Command::new("sh")
        .args(["-c", &line])
        .current_dir(place.dir.path())
        .env("XDG_STATE_HOME", place.path("state"))
        .output()
        .unwrap();
    assert!(done.status.success());
    let runs = fs::read_dir(place.path("state/apscli/runs")).unwrap();
    let run = runs.last().unwrap().unwrap().path();
    let mode = |name: &str| {
        let data = fs::metadata(run.join(name)).unwrap();
        data.permissions().mode() & 0o777
    };
    assert_eq!((mode(""), mode("logs")), (0o700, 0o700));
    assert_eq!((mode("journal.jsonl"), mode("logs/a.log")), (0o600, 0o600));
    // The nodes keep the umask that they were given.
    assert_eq!(
        fs::read_to_string(run.join("logs/a.log")).unwrap(),
        "0000\n"
    );
}
