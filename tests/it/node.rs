//! `apscli-node` as a pod would run it: a decision in, a log on stdout, a frame in a file.
//!
//! The program is what `cargo build --workspace` has put beside `apscli`.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use apscli::engine::event::{Ending, KillCause, Outcome};
use apscli::engine::spec::{Action, Api, Cmd, EnvPart, EnvText};
use apscli::executor::decision::{self, ENV, Work, secret_token};
use apscli::executor::frame;
use apscli::executor::scripts::manifest;
use apscli::value::Value;
use rustix::process::{Pid, Signal, kill_process};

use crate::program::{PYTHON, Place, lives, until};

/// What a pod's end looks like from outside.
struct Pod {
    status: i32,
    log: String,
    errors: String,
    /// The termination message.
    frame: String,
}

impl Pod {
    fn outcome(&self) -> Outcome {
        frame::decode(&self.frame)
            .unwrap_or_else(|error| panic!("{error}: {:?} {}", self.frame, self.errors))
    }

    fn output(&self) -> String {
        let output = self.outcome().captured.output;
        output
            .map(|value| value.to_plain_text())
            .unwrap_or_default()
    }
}

/// The program, wherever it was built.
pub fn program() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_apscli")).with_file_name("apscli-node");
    assert!(
        program.is_file(),
        "{} is missing: cargo build --workspace makes it",
        program.display()
    );
    program
}

fn command(place: &Place) -> Command {
    let mut command = Command::new(program());
    let path = std::env::var("PATH").unwrap();
    command
        .arg("--termination-log")
        .arg(place.path("frame"))
        .current_dir(place.dir.path())
        .env(
            "PATH",
            format!("{}:{path}", PYTHON.parent().unwrap().display()),
        )
        .env_remove("VIRTUAL_ENV")
        .env_remove("TMPDIR")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn start(place: &Place, work: &Work) -> Child {
    let json = work.to_json().unwrap();
    command(place).env(ENV, json).spawn().unwrap()
}

fn end(place: &Place, child: Child) -> Pod {
    let output = child.wait_with_output().unwrap();
    Pod {
        status: output.status.code().unwrap_or(-1),
        log: String::from_utf8_lossy(&output.stdout).into_owned(),
        errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        frame: place.read("frame"),
    }
}

fn run(place: &Place, work: &Work) -> Pod {
    end(place, start(place, work))
}

fn work(place: &Place, action: Action) -> Work {
    let mut work = Work::new(action, Vec::new(), Duration::from_secs(5));
    work.folder = place.dir.path().display().to_string();
    work
}

fn shell(place: &Place, script: &str) -> Work {
    let cmd = Cmd {
        program: EnvText::literal("sh"),
        args: vec![EnvText::literal("-c"), EnvText::literal(script)],
        env: Vec::new(),
    };
    work(place, Action::Cmd(cmd))
}

fn api(place: &Place, function: &str) -> Work {
    let api = Api {
        module: "jobs".to_owned(),
        function: function.to_owned(),
        path: vec![EnvText::literal(".")],
        env: Vec::new(),
    };
    work(place, Action::Api(api))
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

#[test]
fn a_success_says_so_everywhere() {
    let place = Place::new();
    let script =
        r#"echo words; echo more >&2; echo "[OUTPUT]$PWD"; echo "[INFO]${APSCLI_DECISION-gone}""#;
    let pod = run(&place, &shell(&place, script));
    assert_eq!(pod.status, 0, "{}", pod.errors);
    assert_eq!(pod.outcome().ending, Ending::Exited(0));
    assert_eq!(Path::new(&pod.output()), place.dir.path());
    assert_eq!(pod.outcome().captured.info, Some(Value::from("gone")));
    for line in ["words\n", "more\n", "[OUTPUT]/"] {
        assert!(pod.log.contains(line), "{line} in {}", pod.log);
    }
    assert_eq!(pod.errors, "", "stdout is the node's log, all of it");
}

#[test]
fn failures_and_signals_are_the_actions_own() {
    let place = Place::new();
    let pod = run(&place, &shell(&place, "echo '[ERR_MSG]no'; exit 7"));
    assert_eq!(
        (pod.status, pod.outcome().ending.clone()),
        (1, Ending::Exited(7))
    );
    assert_eq!(pod.outcome().captured.err_msg, Some(Value::from("no")));
    let pod = run(&place, &shell(&place, "kill -SEGV $$"));
    assert_eq!(
        (pod.status, pod.outcome().ending.clone()),
        (1, Ending::Signalled(11))
    );
    let mut absent = shell(&place, "");
    if let Action::Cmd(cmd) = &mut absent.action {
        cmd.program = EnvText::literal("./no-such");
    }
    let pod = run(&place, &absent);
    let Ending::NotStarted(message) = pod.outcome().ending else {
        panic!("it started")
    };
    assert_eq!(pod.status, 1);
    assert!(message.contains("there is no file"), "{message}");
    // The result of before is not there any more: a frame is written over what stood there.
    place.write("frame", "x".repeat(5000));
    assert_eq!(
        run(&place, &shell(&place, "exit 3")).outcome().ending,
        Ending::Exited(3)
    );
}

#[test]
fn a_node_over_its_timeout_is_ended_by_term_and_then_kill() {
    let place = Place::new();
    let mut work = shell(
        &place,
        "trap 'echo [OUTPUT]asked' TERM; echo $$ > pid; while :; do sleep 0.05; done",
    );
    work.timeout_ms = Some(300);
    work.grace_ms = 300;
    let started = Instant::now();
    let pod = run(&place, &work);
    assert_eq!(pod.status, 1);
    assert_eq!(pod.outcome().ending, Ending::Killed(KillCause::NodeTimeout));
    assert_eq!(pod.output(), "asked");
    assert!(!lives(&place.read("pid")));
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(600), "{took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn a_pod_that_is_ended_hands_term_on_and_tells_that_it_was_not_the_action() {
    let place = Place::new();
    let work = shell(
        &place,
        "trap 'echo \"[OUTPUT]saved\"; exit 0' TERM; sleep 100 & echo $! > child; while :; do sleep 0.05; done",
    );
    let child = start(&place, &work);
    until("the action", || !place.read("child").is_empty());
    signal(&child, Signal::TERM);
    let pod = end(&place, child);
    assert_eq!(pod.status, 1);
    assert!(
        matches!(pod.outcome().ending, Ending::Lost(_)),
        "{:?}",
        pod.outcome()
    );
    assert_eq!(pod.output(), "saved");
    until("the end of its child", || !lives(&place.read("child")));
}

#[test]
fn a_stubborn_action_is_killed_after_the_grace() {
    let place = Place::new();
    let mut work = shell(
        &place,
        "trap '' TERM; echo $$ > pid; while :; do sleep 0.05; done",
    );
    work.grace_ms = 200;
    let child = start(&place, &work);
    until("the action", || !place.read("pid").is_empty());
    signal(&child, Signal::TERM);
    let pod = end(&place, child);
    assert!(matches!(pod.outcome().ending, Ending::Lost(_)));
    assert!(!lives(&place.read("pid")));
}

#[test]
fn what_is_too_large_for_the_frame_stays_whole_in_the_log() {
    let place = Place::new();
    let script =
        "head -c 300000 /dev/urandom | base64 -w 100 | sed 's/^/[OUTPUT]/'; echo '[ERR_CODE]5'";
    let pod = run(&place, &shell(&place, script));
    assert_eq!(pod.status, 0);
    assert!(
        pod.frame.len() <= 4096 && pod.frame.len() > 3900,
        "{}",
        pod.frame.len()
    );
    let (output, captured) = (pod.output(), pod.outcome().captured);
    assert_eq!(captured.err_code, Some(Value::from("5")));
    let whole = pod.log.matches("[OUTPUT]").count();
    assert_eq!(whole, 4000);
    let lines: Vec<&str> = (pod.log.lines())
        .filter_map(|line| line.strip_prefix("[OUTPUT]"))
        .collect();
    assert!(lines.join("\n").starts_with(&output) && output.len() > 1000);
    let cut = captured.truncated["output"];
    assert_eq!(cut + output.len() as u64, lines.join("\n").len() as u64);
}

#[test]
fn functions_are_called() {
    let place = Place::new();
    place.write(
        "jobs.py",
        "import time, os
def add(a, b): print('adding'); return {'return_code': 0, 'output': a + b}
def fails(): return 1
def raises(): raise ValueError('bad')
def waits():
    open('pid', 'w').write(str(os.getpid()))
    time.sleep(1000)
",
    );
    let mut sum = api(&place, "add");
    sum.param = vec![
        (
            "a".to_owned(),
            Value::Number("20000000000000000001".to_owned()),
        ),
        ("b".to_owned(), Value::Number("2".to_owned())),
    ];
    let pod = run(&place, &sum);
    assert_eq!(pod.status, 0, "{:?} {}", pod.outcome(), pod.errors);
    assert_eq!(pod.outcome().ending, Ending::Returned(0));
    assert_eq!(pod.output(), "20000000000000000003");
    assert!(pod.log.contains("adding\n"), "{}", pod.log);
    let pod = run(&place, &api(&place, "fails"));
    assert_eq!(
        (pod.status, pod.outcome().ending.clone()),
        (1, Ending::Returned(1))
    );
    let pod = run(&place, &api(&place, "raises"));
    assert_eq!(
        pod.outcome().ending,
        Ending::Exception("ValueError: bad".to_owned())
    );
    assert!(pod.log.contains("Traceback"), "{}", pod.log);
    let child = start(&place, &api(&place, "waits"));
    until("the call", || !place.read("pid").is_empty());
    signal(&child, Signal::TERM);
    let pod = end(&place, child);
    assert!(
        matches!(pod.outcome().ending, Ending::Lost(_)),
        "{:?}",
        pod.outcome()
    );
    assert!(!lives(&place.read("pid")));
}

#[test]
fn an_image_without_python_runs_commands_and_says_what_functions_lack() {
    let place = Place::new();
    let bin = place.path("bin");
    std::fs::create_dir(&bin).unwrap();
    let run = |work: &Work| {
        let json = work.to_json().unwrap();
        let child = command(&place).env(ENV, json).env("PATH", &bin).spawn();
        end(&place, child.unwrap())
    };
    let mut direct = shell(&place, "");
    if let Action::Cmd(cmd) = &mut direct.action {
        (cmd.program, cmd.args) = (EnvText::literal("/bin/sh"), Vec::new());
    }
    assert_eq!(run(&direct).outcome().ending, Ending::Exited(0));
    let says = |outcome: Outcome| match outcome.ending {
        Ending::NotStarted(message) => message,
        other => panic!("{other:?}"),
    };
    let message = says(run(&api(&place, "f")).outcome());
    assert!(message.contains("no python3 in the PATH"), "{message}");
    // A Python on musl says so of itself.
    place.script(
        "bin/python3",
        &format!(
            "code=$2; shift 2; exec {} -c \"import sys; sys.implementation._multiarch = 'x86_64-linux-musl'\n$code\" \"$@\"",
            PYTHON.display()
        ),
    );
    let message = says(run(&api(&place, "f")).outcome());
    assert!(
        message.contains("musl") && message.contains("glibc"),
        "{message}"
    );
}

#[test]
fn secrets_reach_the_action_and_no_log_or_result_of_ours() {
    const CANARY: &str = "canary-$HOME-5f8c";
    let place = Place::new();
    let file = place.write("mounted", CANARY);
    let token = secret_token("uid", "password");
    let mut work = shell(&place, "");
    work.secrets = [(token.clone(), file.to_str().unwrap().to_owned())].into();
    work.param = vec![(
        "p".to_owned(),
        Value::List(vec![Value::from(format!("<{token}>"))]),
    )];
    if let Action::Cmd(cmd) = &mut work.action {
        let script = r#"printf '%s' "$1 $S $3" > seen; echo "[OUTPUT]it is $1""#;
        cmd.args = [script, "sh"].map(EnvText::literal).to_vec();
        cmd.args.insert(0, EnvText::literal("-c"));
        cmd.args.push(EnvText::literal(format!("{token}!")));
        let part = EnvPart::Literal(token.clone());
        cmd.env = vec![("S".to_owned(), EnvText { parts: vec![part] })];
    }
    let pod = run(&place, &work);
    assert_eq!(
        place.read("seen"),
        format!("{CANARY}! {CANARY} [\"<{CANARY}>\"]")
    );
    assert_eq!(pod.output(), "it is ***!");
    // What cannot be run is named in the result, but not by its secret.
    if let Action::Cmd(cmd) = &mut work.action {
        cmd.program = EnvText::literal(format!("./{token}"));
    }
    let pod = run(&place, &work);
    let outcome = format!("{:?}", pod.outcome());
    assert!(outcome.contains("***"), "{outcome}");
    assert!(!format!("{outcome}{}{}", pod.log, pod.errors).contains(CANARY));
    std::fs::remove_file(file).unwrap();
    let pod = run(&place, &work);
    assert_eq!(pod.status, 70);
    assert!(matches!(pod.outcome().ending, Ending::NotStarted(_)));
    assert!(
        pod.errors.contains("cannot read the secret"),
        "{}",
        pod.errors
    );
}

/// Whoever may delete and create `ConfigMaps` can put others in the place of a run's scripts.
#[test]
fn scripts_other_than_the_decisions_are_not_run() {
    let place = Place::new();
    let scripts = place.path("scripts");
    std::fs::create_dir_all(scripts.join("lib")).unwrap();
    place.script("scripts/run.sh", "echo ran >> ran");
    place.write("scripts/lib/jobs.py", "def f(): return 0\n");
    let sum = |name: &str| {
        let bytes = std::fs::read(scripts.join(name)).unwrap();
        (
            name.to_owned(),
            decision::hash(&String::from_utf8(bytes).unwrap()),
        )
    };
    let mut work = shell(&place, "");
    work.folder = scripts.display().to_string();
    work.scripts = Some(manifest(&["run.sh", "lib/jobs.py"].map(sum).into()));
    // Not even a secret is read.
    work.secrets = [("⟦t⟧".to_owned(), place.path("none").display().to_string())].into();
    if let Action::Cmd(cmd) = &mut work.action {
        cmd.program = EnvText::literal("./run.sh");
        cmd.args.clear();
    }
    place.script("scripts/run.sh", "echo other >> ran");
    let pod = run(&place, &work);
    let Ending::NotStarted(message) = pod.outcome().ending else {
        panic!("{:?}", pod.outcome())
    };
    assert!(
        message.contains("not those that the run was started with")
            && message.contains(&work.folder),
        "{message}"
    );
    assert_eq!((pod.status, place.path("ran").exists()), (70, false));

    place.script("scripts/run.sh", "echo ran >> ran");
    work.secrets.clear();
    assert_eq!(run(&place, &work).outcome().ending, Ending::Exited(0));
    place.write("scripts/lib/json.py", "");
    assert!(matches!(
        run(&place, &work).outcome().ending,
        Ending::NotStarted(_)
    ));
    // A decision of an operator that knew of no such hash.
    work.scripts = None;
    assert_eq!(run(&place, &work).outcome().ending, Ending::Exited(0));
    assert_eq!(place.read("ran"), "ran\nran\n");
}

#[test]
fn without_a_decision_it_says_what_it_expected() {
    let place = Place::new();
    let without = |command: &mut Command| end(&place, command.env_remove(ENV).spawn().unwrap());
    let pod = without(&mut command(&place));
    assert_eq!(pod.status, 70);
    assert!(pod.errors.contains(ENV), "{}", pod.errors);
    assert!(matches!(pod.outcome().ending, Ending::NotStarted(message) if message.contains(ENV)));
    let file = place.write("decision", shell(&place, "exit 4").to_json().unwrap());
    let pod = without(command(&place).arg("--decision").arg(file));
    assert_eq!(pod.outcome().ending, Ending::Exited(4));
    let pod = without(command(&place).env(ENV, "{}").arg("--decision").arg("no"));
    assert_eq!(pod.status, 70);
    let pod = without(command(&place).arg("--what"));
    assert_eq!(pod.status, 64);
    assert!(pod.errors.contains("--what"), "{}", pod.errors);
    let pod = without(
        command(&place)
            .arg("--termination-log")
            .arg("/no/such/folder/x"),
    );
    assert_eq!(
        pod.status, 70,
        "a result that cannot be left is our trouble"
    );
}

#[test]
fn it_copies_itself_to_where_another_container_finds_it() {
    let place = Place::new();
    let target = place.path("a/b");
    let done = Command::new(program()).arg("install").arg(&target).status();
    assert!(done.unwrap().success());
    let copied = std::fs::read_dir(&target).unwrap();
    let mut names: Vec<_> = copied.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["apscli-node", "libapscli_python.so"]);
    let again = Command::new(target.join("apscli-node"))
        .arg("install")
        .arg(&target)
        .status();
    assert!(again.unwrap().success(), "a second time does no harm");
    place.write("jobs.py", "def f(): return 0");
    let json = api(&place, "f").to_json().unwrap();
    let mut command = Command::new(target.join("apscli-node"));
    let status = (command.arg("--termination-log").arg(place.path("frame")))
        .current_dir(place.dir.path())
        .env("PATH", PYTHON.parent().unwrap())
        .env(ENV, json)
        .status();
    assert!(
        status.unwrap().success(),
        "{:?}",
        frame::decode(&place.read("frame"))
    );
}

/// A container's first process: in a process namespace of its own, as a runtime starts it.
#[test]
fn the_first_process_of_a_container_reaps_and_hands_signals_on() {
    let place = Place::new();
    // 40 orphans, and a count of the zombies that are left of them.
    let script = "for i in $(seq 40); do (sleep 0.01 &); done; sleep 0.5
        zombies=0
        for stat in /proc/[0-9]*/stat; do
            read -r _ _ state _ < $stat 2>/dev/null && [ \"$state\" = Z ] && zombies=$((zombies+1))
        done
        echo \"[OUTPUT]$(cat /proc/1/comm) $zombies\"; echo ready; while :; do sleep 0.05; done";
    let work = shell(&place, script);
    let inner = command(&place);
    let mut command = Command::new("unshare");
    command
        .args([
            "--user",
            "--map-root-user",
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child",
        ])
        .arg(inner.get_program())
        .args(inner.get_args())
        .current_dir(place.dir.path())
        .env(ENV, work.to_json().unwrap())
        .env_remove("TMPDIR")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "SKIPPED: no unshare: {error}");
            return;
        }
    };
    let mut log = String::new();
    let mut stdout = child.stdout.take().unwrap();
    let mut byte = [0];
    while !log.contains("ready") && stdout.read(&mut byte).unwrap() == 1 {
        log.push(char::from(byte[0]));
    }
    if log.is_empty() {
        let pod = end(&place, child);
        assert!(pod.errors.contains("unshare"), "{}", pod.errors);
        let _ = writeln!(std::io::stderr(), "SKIPPED: {}", pod.errors);
        return;
    }
    // `unshare` does not hand signals on; its one child is the first process inside.
    let children = format!("/proc/{0}/task/{0}/children", child.id());
    let first = std::fs::read_to_string(children).unwrap();
    let first = Pid::from_raw(first.trim().parse().unwrap()).unwrap();
    kill_process(first, Signal::TERM).unwrap();
    let pod = end(&place, child);
    assert!(
        matches!(pod.outcome().ending, Ending::Lost(_)),
        "{:?}",
        pod.outcome()
    );
    assert_eq!(pod.output(), "apscli-node 0");
    assert_eq!(pod.status, 1);
}
