//! The fence around processes, against programs that want out: on the real kernel, as a user
//! without any rights.
//!
//! Each probe is made twice, with and without the fence: one that nothing stops anyway would prove
//! nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::{Value, json};

use crate::program::{Done, PYTHON, Place, finish, lives, signal, until};

/// Who has no rights.
const NOBODY: u32 = 65534;
/// The extension module, beside the program.
const EXTENSION: &str = "libapscli_python.so";

const PROBE: &str = include_str!("../data/hostile/probe.py");
const WITHOUT: &str = include_str!("../data/hostile/without.py");

/// The kernel counts the processes of a user: who uses them up is alone.
static PROCESSES: RwLock<()> = RwLock::new(());

/// Keeps that off while a test has processes in a fence.
pub fn in_peace() -> RwLockReadGuard<'static, ()> {
    PROCESSES.read().unwrap_or_else(PoisonError::into_inner)
}

/// A folder that an unprivileged user works in, with the program.
struct Yard {
    place: Place,
    program: PathBuf,
}

/// Makes a program as the user without rights, where the test itself is root.
fn demote(command: &mut Command) -> &mut Command {
    if geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// Gives a path to the user without rights.
fn own(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    if geteuid().is_root() {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

impl Yard {
    fn new() -> Self {
        let place = Place::new();
        let built = Path::new(env!("CARGO_BIN_EXE_apscli"));
        let program = place.path("bin/apscli");
        fs::create_dir(place.path("bin")).unwrap();
        for name in ["apscli", EXTENSION] {
            // The checkout may be in a folder that the user cannot enter.
            let (from, to) = (built.with_file_name(name), place.path("bin").join(name));
            if fs::hard_link(&from, &to).is_err() {
                fs::copy(&from, &to).unwrap();
            }
        }
        place.write("probe.py", PROBE);
        place.write("without.py", WITHOUT);
        let yard = Self { place, program };
        own(yard.place.dir.path());
        yard
    }

    fn command(&self, before: &[&str], args: &[&str]) -> Command {
        let mut words: Vec<String> = before.iter().map(|it| (*it).to_owned()).collect();
        words.push(self.program.display().to_string());
        words.extend(args.iter().map(|it| (*it).to_owned()));
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .current_dir(self.place.dir.path())
            .env_clear()
            .env(
                "PATH",
                format!("{}:/usr/bin:/bin", PYTHON.parent().unwrap().display()),
            )
            .env("HOME", self.place.dir.path())
            .env("CANARY", "a secret of whoever runs it")
            .stdin(Stdio::null());
        demote(&mut command);
        command
    }

    fn template(&self, nodes: &BTreeMap<String, Value>) {
        self.place
            .write("t.json", serde_json::to_string(nodes).unwrap());
    }

    /// Runs the nodes of a template, and gives what became of each.
    fn run(&self, before: &[&str], nodes: &BTreeMap<String, Value>, more: &[&str]) -> Value {
        self.template(nodes);
        let log = format!(
            "run-{}",
            fs::read_dir(self.place.dir.path()).unwrap().count()
        );
        let mut args = vec![
            "run",
            "--template",
            "t.json",
            "--output",
            "json",
            "--log-dir",
            &log,
            "--grace",
            "1s",
        ];
        args.extend(more);
        let done = Done::new(&self.command(before, &args).output().unwrap());
        assert!(done.status != 2, "{} {}", done.stdout, done.stderr);
        let left = self.place.path(&log).join("work");
        if left.exists() {
            let left: Vec<_> = fs::read_dir(&left).unwrap().collect();
            assert!(left.is_empty(), "folders are left: {left:?}");
        }
        done.json()["output"].clone()
    }

    fn start(&self, nodes: &BTreeMap<String, Value>, more: &[&str]) -> Child {
        self.template(nodes);
        let mut args = vec![
            "run",
            "--template",
            "t.json",
            "--output",
            "json",
            "--log-dir",
            "run",
        ];
        args.extend(more);
        let mut command = self.command(&[], &args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }
}

/// Whatever the fence let through, no test leaves it behind: all of it is stopped first, so that it
/// cannot make more while it is ended.
impl Drop for Yard {
    fn drop(&mut self) {
        let pids = |yard: &Self| -> BTreeSet<i32> {
            let all = left(yard).into_iter();
            all.filter_map(|it| it.split(' ').next()?.parse().ok())
                .collect()
        };
        let mut stopped = BTreeSet::new();
        for _ in 0..50 {
            let fresh: Vec<i32> = pids(self).difference(&stopped).copied().collect();
            if fresh.is_empty() {
                break;
            }
            for pid in &fresh {
                let _ = kill_process(Pid::from_raw(*pid).unwrap(), Signal::STOP);
            }
            stopped.extend(fresh);
        }
        for pid in pids(self) {
            let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
        }
    }
}

fn node(form: &str, words: &[&str]) -> Value {
    if form == "cmd" {
        let mut all = vec!["python3", "${PROBES}/probe.py"];
        all.extend(words);
        return json!({"action": {"type": "cmd", "cmd": all}});
    }
    let mut param = json!({"name": words[0]});
    if let Some(argument) = words.get(1) {
        param["argument"] = json!(argument);
    }
    let action = json!({"type": "api", "module": "probe", "function": "probe", "path": ["."]});
    json!({"action": action, "param": param})
}

/// The template with the folder of the probes put in.
fn nodes(yard: &Yard, form: &str, all: &[&[&str]]) -> BTreeMap<String, Value> {
    let folder = yard.place.dir.path().display().to_string();
    let pairs = all.iter().map(|words| {
        let text = node(form, words).to_string().replace("${PROBES}", &folder);
        (words[0].to_owned(), serde_json::from_str(&text).unwrap())
    });
    pairs.collect()
}

/// What each probe said.
fn said(output: &Value, name: &str) -> String {
    let it = &output[name];
    match it["result"]["output"].as_str() {
        Some(text) => text.to_owned(),
        None => panic!("{name} said nothing: {it}"),
    }
}

/// Somebody else of the same user, with a secret in the environment.
struct Victim(Child);

impl Victim {
    fn new() -> Self {
        let mut command = Command::new("sleep");
        command.arg("1000").env("TOKEN", "secret");
        Self(demote(&mut command).spawn().unwrap())
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The probes that no kernel stops by itself, with what stops them in the fence.
#[test]
#[allow(clippy::too_many_lines, reason = "most of it is a table")]
fn every_way_out_is_closed() {
    let _peace = in_peace();
    let yard = Yard::new();
    let victim = Victim::new();
    let pid = victim.pid();
    // Beside the template's folder, which may be read.
    let elsewhere = Place::new();
    own(elsewhere.dir.path());
    let secret = elsewhere.write("outside/token", "secret");
    own(&secret);
    own(secret.parent().unwrap());
    let secret = secret.display().to_string();
    let outside = secret.replace("token", "written");
    let moved = secret.replace("token", "moved");
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (tcp, udp) = (
        &tcp.local_addr().unwrap().to_string(),
        &udp.local_addr().unwrap().to_string(),
    );
    let path = elsewhere.path("socket");
    let _unix = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    let unix = path.display().to_string();
    let abstract_name = format!("apscli-test-{pid}");
    let address = SocketAddr::from_abstract_name(&abstract_name).unwrap();
    let _abstract = UnixListener::bind_addr(&address).unwrap();

    // The name and argument of each, what it says in the fence, and whether it must get through
    // without: elsewhere that is up to kernel, settings and rights.
    let eperm = "EPERM";
    let probes: &[(&[&str], &str, bool)] = &[
        (&["read", &secret], "EACCES", true),
        (&["list", "/"], "EACCES", true),
        (&["environ", &pid], "EACCES", true),
        (&["cmdline", &pid], "EACCES", true),
        (&["fds", &pid], "EACCES", true),
        (&["mem", &pid], "EACCES", false),
        (&["vm", &pid], eperm, false),
        (&["ptrace", &pid], eperm, false),
        (&["kill", &pid], eperm, true),
        (&["kill_parent"], eperm, true),
        (&["kill_above"], eperm, false),
        (&["pidfd", &pid], eperm, true),
        (&["tcp", tcp], eperm, true),
        (&["mptcp", tcp], eperm, false),
        (&["fastopen", tcp], eperm, false),
        (&["udp", udp], eperm, true),
        (&["tcp6"], eperm, false),
        (&["raw"], eperm, false),
        (&["icmp"], eperm, false),
        (&["netlink"], eperm, true),
        (&["packet"], eperm, false),
        (&["alg"], eperm, false),
        (&["vsock"], eperm, false),
        (&["unix", &unix], eperm, true),
        (&["unshare_user"], eperm, false),
        (&["unshare_net"], eperm, false),
        (&["setns"], eperm, true),
        (&["clone_user"], eperm, false),
        (&["clone3"], "ENOSYS", true),
        (&["chroot"], eperm, false),
        (&["mount"], eperm, false),
        (&["bpf"], eperm, false),
        (&["io_uring"], "ENOSYS", false),
        (&["keyctl"], eperm, false),
        (&["add_key"], eperm, false),
        (&["perf"], eperm, false),
        (&["userfaultfd"], eperm, false),
        (&["memfd"], eperm, true),
        (&["shm"], eperm, true),
        (&["x32"], "ENOSYS", false),
        (&["write", &outside], "EACCES", true),
        (&["link_out", &outside], "EACCES", true),
        (&["move_out", &moved], "EXDEV|EACCES", true),
        (&["device"], "EACCES|EPERM", false),
        // What a program must be able to do all the same.
        (&["pair"], "open", true),
        (&["clone"], "open", true),
        (&["write_inside"], "open", true),
        (&["script"], "open", true),
    ];
    let names: Vec<&[&str]> = probes.iter().map(|(words, ..)| *words).collect();
    for form in ["cmd", "api"] {
        let all = nodes(&yard, form, &names);
        let fenced = yard.run(&[], &all, &["--sandbox"]);
        let mut wrong = Vec::new();
        for (words, expected, _) in probes {
            let said = said(&fenced, words[0]);
            // A call's parent is its own interpreter, which nobody else uses: the same fence is
            // around both.
            let own = form == "api" && words[0] == "kill_parent";
            let expected = if own { "open" } else { expected };
            if !expected.split('|').any(|it| it == said) {
                wrong.push(format!("{}: {said}, expected {expected}", words[0]));
            }
        }
        assert!(wrong.is_empty(), "{form}: {}", wrong.join("; "));
        assert!(!Path::new(&outside).exists() && !Path::new(&moved).exists());
        let free = yard.run(&[], &all, &[]);
        for (words, _, must) in probes {
            let said = said(&free, words[0]);
            assert!(
                said == "open" || !must,
                "{form}, without the fence: {}: {said}",
                words[0]
            );
        }
        for left in ["link", "inside", "script", "device"] {
            let _ = fs::remove_file(yard.place.path(left));
        }
        for left in [&outside, &moved] {
            fs::remove_file(left).unwrap();
        }
    }
}

/// Whether a process of this yard is left: they have its folder in their command line, or had it
/// as their folder.
fn left(yard: &Yard) -> Vec<String> {
    let folder = yard.place.dir.path().display().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry.file_name().into_string().unwrap();
        if pid.parse::<u32>().is_err() || !lives(&pid) {
            continue;
        }
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let at = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        if line.contains(&folder) || at.starts_with(&folder) {
            found.push(format!("{pid} {line}"));
        }
    }
    found
}

/// Nothing at once but apscli's own guard, which sees that the run is over, and goes.
fn nothing_is_left(yard: &Yard) {
    let mut still = left(yard);
    still.retain(|it| !it.contains("/apscli run "));
    assert_eq!(still, Vec::<String>::new());
    until("the guard's end", || left(yard).is_empty());
}

fn reason(output: &Value, name: &str) -> String {
    output[name]["reason"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// What uses up a machine is ended, or is refused more, and nothing of it is left.
#[test]
fn waste_is_bounded() {
    let _alone = PROCESSES.write().unwrap_or_else(PoisonError::into_inner);
    let yard = Yard::new();
    for form in ["cmd", "api"] {
        let names: &[&[&str]] = &[
            &["fill"],
            &["fill_unnamed"],
            &["fill_one"],
            &["say"],
            &["take"],
            &["spin"],
            &["stop"],
            &["daemon"],
            &["daemon_and_stay"],
        ];
        let mut all = nodes(&yard, form, names);
        for name in ["spin", "stop", "daemon_and_stay"] {
            all.get_mut(name).unwrap()["timeout"] = json!("2s");
        }
        let output = yard.run(&[], &all, &["--sandbox", "--parallel", "4"]);
        nothing_is_left(&yard);
        // Alone: the kernel counts the processes of a user, and so those of its neighbours.
        let mut all = nodes(&yard, form, &[&["swarm"]]);
        all.get_mut("swarm").unwrap()["timeout"] = json!("2s");
        let swarm = yard.run(&[], &all, &["--sandbox"]);
        nothing_is_left(&yard);
        let why = "Timeout: ran longer than its timeout";
        assert_eq!(reason(&swarm, "swarm"), why, "{form}: {}", swarm["swarm"]);
        for (name, why) in [
            (
                "fill",
                "NoResult: it used more than 64 MiB in files, and was ended",
            ),
            (
                "fill_unnamed",
                "NoResult: it used more than 64 MiB in files, and was ended",
            ),
            (
                "take",
                "NoResult: it used more than 1024 MiB of memory, and was ended",
            ),
            ("spin", "Timeout: ran longer than its timeout"),
            ("stop", "Timeout: ran longer than its timeout"),
            ("daemon_and_stay", "Timeout: ran longer than its timeout"),
        ] {
            assert_eq!(
                reason(&output, name),
                why,
                "{form} {name}: {}",
                output[name]
            );
        }
        // Python turns a file that is too large into an exception.
        let why = reason(&output, "fill_one");
        assert!(
            why.starts_with("ExitCode") || why.contains("Errno 27"),
            "{form}: {why}"
        );
        assert_eq!(output["daemon"]["status"], "success", "{form}");
        assert_eq!(
            output["say"]["status"], "success",
            "{form}: it may say as much as it likes"
        );
    }
    let logs: Vec<PathBuf> = fs::read_dir(yard.place.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path().join("logs"))
        .filter(|path| path.exists())
        .collect();
    for log in logs.iter().flat_map(|folder| fs::read_dir(folder).unwrap()) {
        let log = log.unwrap();
        let most = 16 * 1024 * 1024;
        assert!(log.metadata().unwrap().len() <= most, "{:?}", log.path());
    }
}

/// Whoever started it can die of anything: nothing is left.
#[test]
fn nothing_outlives_a_killed_run() {
    let _peace = in_peace();
    let yard = Yard::new();
    for form in ["cmd", "api"] {
        let _ = fs::remove_dir_all(yard.place.path("run"));
        let all = nodes(&yard, form, &[&["daemon_and_stay"]]);
        let mut run = yard.start(&all, &["--sandbox"]);
        let work = yard.place.path("run/work");
        let daemon = || {
            let folder = fs::read_dir(&work).ok()?.next()?.ok()?.path();
            let pid = fs::read_to_string(folder.join("daemon")).ok()?;
            (!pid.is_empty()).then_some(pid)
        };
        until("the daemon", || daemon().is_some());
        let pid = daemon().unwrap();
        assert!(lives(&pid));
        signal(&run, Signal::KILL);
        run.wait().unwrap();
        until("its end", || !lives(&pid) && left(&yard).is_empty());
        until("the folder's end", || {
            fs::read_dir(&work).unwrap().next().is_none()
        });
    }
}

/// What the kernel cannot do is not passed over: without Landlock nothing starts, unless that was
/// said to be good enough; then all else is still closed.
#[test]
fn an_old_kernel_is_refused() {
    let _peace = in_peace();
    let yard = Yard::new();
    let before = ["python3", "without.py"];
    let all = nodes(
        &yard,
        "cmd",
        &[
            &["udp", "127.0.0.1:9"],
            &["unshare_user"],
            &["environ", "1"],
        ],
    );
    let output = yard.run(&before, &all, &["--sandbox"]);
    for name in ["udp", "unshare_user", "environ"] {
        let why = reason(&output, name);
        assert!(
            why.starts_with("NotStarted: the sandbox is required, and cannot be had: ")
                && why.ends_with("expected Landlock 6 (Linux 6.12)"),
            "{why}"
        );
    }
    let output = yard.run(&before, &all, &["--sandbox=best-effort"]);
    for name in ["udp", "unshare_user"] {
        assert_eq!(said(&output, name), "EPERM");
    }
}

/// The environment of whoever starts a run is not the nodes'; a network is for those who ask.
#[test]
fn what_is_handed_on_is_named() {
    let _peace = in_peace();
    let yard = Yard::new();
    let folder = yard.place.dir.path().display();
    let shell = |text: &str| json!({"action": {"type": "cmd", "cmd": ["sh", "-c", text]}});
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap().to_string();
    let mut all = BTreeMap::from([
        (
            "env".to_owned(),
            shell("echo \"[OUTPUT]$$(env | cut -d= -f1 | sort | tr '\\n' ' ')\""),
        ),
        (
            "at".to_owned(),
            shell("test \"$$PWD\" = \"$$HOME\" && echo \"[OUTPUT]$$PWD\""),
        ),
    ]);
    let output = yard.run(&[], &all, &["--sandbox"]);
    let env = said(&output, "env");
    assert!(!env.contains("CANARY"), "{env}");
    // The shell may add some.
    let own = ["_", "SHLVL", "OLDPWD"];
    let names: Vec<&str> = env
        .split_whitespace()
        .filter(|it| !own.contains(it))
        .collect();
    assert_eq!(names, ["HOME", "PATH", "PWD", "TMPDIR"]);
    let at = said(&output, "at");
    assert!(
        at.starts_with(&format!("{folder}/run-")) && at.contains("/work/node-"),
        "{at}"
    );

    all = nodes(
        &yard,
        "cmd",
        &[
            &["tcp", &address],
            &["udp", &address],
            &["mptcp", &address],
            &["raw"],
            &["icmp"],
            &["netlink"],
            &["unix", "x"],
            &["packet"],
        ],
    );
    let output = yard.run(&[], &all, &["--sandbox", "--sandbox-network"]);
    for (name, expected) in [
        ("tcp", "open"),
        ("udp", "open"),
        ("mptcp", "EPERM"),
        ("raw", "EPERM"),
        ("icmp", "EPERM"),
        ("netlink", "EPERM"),
        ("unix", "EPERM"),
        ("packet", "EPERM"),
    ] {
        assert_eq!(said(&output, name), expected, "{name}");
    }
}

/// A run that is taken up again stays in its sandbox.
#[test]
fn a_resumed_run_keeps_its_sandbox() {
    let _peace = in_peace();
    let yard = Yard::new();
    let mut all = nodes(&yard, "cmd", &[&["daemon_and_stay"], &["unshare_user"]]);
    all.get_mut("unshare_user").unwrap()["prev_nodes"] = json!(["daemon_and_stay"]);
    all.get_mut("unshare_user").unwrap()["decision_expr"] = json!("daemon_and_stay == 0");
    let mut run = yard.start(&all, &["--sandbox"]);
    let work = yard.place.path("run/work");
    until("a node", || {
        fs::read_dir(&work).is_ok_and(|mut it| it.next().is_some())
    });
    signal(&run, Signal::KILL);
    run.wait().unwrap();
    // Until then it is still somebody's.
    until("the end of what it started", || left(&yard).is_empty());
    let mut command = yard.command(&[], &["run", "--resume", "run", "--output", "json"]);
    let resumed = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = finish(resumed).json()["output"].clone();
    assert_eq!(said(&output, "unshare_user"), "EPERM");
}

/// Nobody of the same user looks into the runner, nor into the operator.
#[test]
fn runner_and_operator_hide() {
    use std::os::unix::fs::MetadataExt;
    let _peace = in_peace();
    let yard = Yard::new();
    let (_ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut runner = yard.command(&[], &["runner", "--folder", "r"]);
    runner.stdin(std::os::fd::OwnedFd::from(theirs));
    // Without a cluster it waits for one.
    let kubeconfig = "apiVersion: v1\nkind: Config\ncurrent-context: x\nclusters: [{name: x, cluster: {server: 'http://127.0.0.1:1'}}]\ncontexts: [{name: x, context: {cluster: x, user: x}}]\nusers: [{name: x, user: {}}]\n";
    let kubeconfig = yard.place.write("kubeconfig", kubeconfig);
    let mut operator = yard.command(&[], &["operator", "--listen", "127.0.0.1:0"]);
    operator.env("KUBECONFIG", kubeconfig);
    for mut command in [runner, operator] {
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        let environ = format!("/proc/{}/environ", child.id());
        // What cannot be dumped belongs to root there.
        until("it hides", || {
            fs::metadata(&environ).is_ok_and(|data| data.uid() == 0 && data.gid() == 0)
        });
        assert!(lives(&child.id().to_string()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
