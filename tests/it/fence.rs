//! The fence around processes, against programs that want out: on the real kernel, as a user
//! without any rights.
//!
//! Each probe is made twice, with and without the fence: one that nothing stops anyway would prove
//! nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
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

use crate::hostile::{
    APART, End, PROBE, Probe, SWARM, Targets, WITHOUT, all_ended, all_said, node, nodes_of,
    nodes_of_wastes, probes, reason, said, wastes,
};
use crate::program::{Done, PYTHON, Place, finish, lives, signal, until};

/// Who has no rights.
const NOBODY: u32 = 65534;
/// The extension module, beside the program.
const EXTENSION: &str = "libapscli_python.so";

/// The kernel counts the processes of a user: who uses them up is alone.
static PROCESSES: RwLock<()> = RwLock::new(());

/// Keeps that off while a test has processes in a fence.
pub fn in_peace() -> RwLockReadGuard<'static, ()> {
    PROCESSES.read().unwrap_or_else(PoisonError::into_inner)
}

/// A folder that an unprivileged user works in, with the program.
pub struct Yard {
    pub place: Place,
    pub program: PathBuf,
    /// Whether programs run as root, where the test does.
    root: bool,
}

/// Makes a program as the user without rights, where the test itself is root.
pub fn demote(command: &mut Command) -> &mut Command {
    if geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// Gives a path to the user without rights.
pub fn own(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    if geteuid().is_root() {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

impl Yard {
    pub fn new() -> Self {
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
        fs::set_permissions(place.path("probe.py"), fs::Permissions::from_mode(0o755)).unwrap();
        place.write("without.py", WITHOUT);
        place.write("apart.py", APART);
        let yard = Self {
            place,
            program,
            root: false,
        };
        own(yard.place.dir.path());
        yard
    }

    /// One in which root runs the program; none: the test is not root.
    fn of_root() -> Option<Self> {
        if !geteuid().is_root() {
            let _ = writeln!(std::io::stderr(), "SKIPPED: not root");
            return None;
        }
        let mut yard = Self::new();
        yard.root = true;
        // As root's own directories are.
        let dir = yard.place.dir.path();
        chown(dir, Some(0), Some(0)).unwrap();
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
        Some(yard)
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
            .env("HOME", self.place.path("home"))
            .env("CANARY", "a secret of whoever runs it")
            .stdin(Stdio::null());
        // This one gives up its rights itself, once it has made a network of its own.
        if !self.root && !before.contains(&"apart.py") {
            demote(&mut command);
        }
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

/// A template of nodes that try these, each with its argument, named as they are.
fn nodes(form: &str, all: &[(&str, Option<&str>)]) -> BTreeMap<String, Value> {
    let named =
        |(name, argument): &(&str, Option<&str>)| ((*name).to_owned(), node(form, name, *argument));
    all.iter().map(named).collect()
}

/// Somebody else of the same user, with a secret in the environment.
struct Victim(Child);

impl Victim {
    fn new(root: bool) -> Self {
        let mut command = Command::new("sleep");
        command.arg("1000").env("TOKEN", "secret");
        if !root {
            demote(&mut command);
        }
        Self(command.spawn().unwrap())
    }

    /// Its limits, policy and priorities.
    fn settings(&self) -> String {
        let read = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", self.pid())).unwrap();
        let stat = read("stat");
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let fields: Vec<&str> = fields.split_whitespace().collect();
        // priority, nice; rt_priority, policy.
        let own = [15, 16, 37, 38].map(|at| fields[at]);
        let status = read("status");
        let cpus = status.lines().find(|it| it.starts_with("Cpus_allowed:"));
        format!("{own:?} {cpus:?} {}", read("limits"))
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

/// Whom and what the probes are tried on.
struct Prey {
    targets: Targets,
    victim: Victim,
    tcp: TcpListener,
    udp: UdpSocket,
    _unix: [UnixListener; 2],
    _elsewhere: Place,
}

/// Mode, owner and times of a file.
fn marks(path: &str) -> (u32, u32, u32, i64, i64) {
    use std::os::unix::fs::MetadataExt;
    let it = fs::metadata(path).unwrap();
    (it.mode(), it.uid(), it.gid(), it.mtime(), it.mtime_nsec())
}

impl Prey {
    fn new(yard: &Yard) -> Self {
        let root = yard.root;
        let own = |path: &Path| {
            if !root {
                own(path);
            }
        };
        let victim = Victim::new(root);
        // Beside the template's folder, which may be read.
        let elsewhere = Place::new();
        own(elsewhere.dir.path());
        let secret = elsewhere.write("outside/token", "secret");
        own(&secret);
        own(secret.parent().unwrap());
        let changed = elsewhere.write("marks/file", "");
        own(&changed);
        own(changed.parent().unwrap());
        let readable = yard.place.write("readable", "");
        own(&readable);
        let secret = secret.display().to_string();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let path = elsewhere.path("socket");
        let unix = UnixListener::bind(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        let no_file = format!("apscli-test-{}", victim.pid());
        let address = SocketAddr::from_abstract_name(&no_file).unwrap();
        let unnamed = UnixListener::bind_addr(&address).unwrap();
        let targets = Targets {
            no_file,
            pid: victim.pid(),
            written: secret.replace("token", "written"),
            moved: secret.replace("token", "moved"),
            changed: changed.display().to_string(),
            readable: readable.display().to_string(),
            secret,
            tcp: tcp.local_addr().unwrap().to_string(),
            udp: udp.local_addr().unwrap().to_string(),
            unix: path.display().to_string(),
        };
        Self {
            targets,
            victim,
            tcp,
            udp,
            _unix: [unix, unnamed],
            _elsewhere: elsewhere,
        }
    }

    /// What a node must not change of it.
    fn state(&self) -> impl PartialEq + std::fmt::Debug + use<> {
        let Targets {
            changed, readable, ..
        } = &self.targets;
        let parent = Path::new(changed).parent().unwrap();
        let files = [changed, readable, parent.to_str().unwrap()].map(marks);
        (files, self.victim.settings())
    }

    /// Nothing has come to it.
    fn is_untouched(&mut self) {
        self.tcp.set_nonblocking(true).unwrap();
        self.udp.set_nonblocking(true).unwrap();
        assert!(self.tcp.accept().is_err(), "somebody has connected");
        assert!(
            self.udp.recv(&mut [0; 16]).is_err(),
            "somebody has sent something"
        );
        for path in [&self.targets.written, &self.targets.moved] {
            assert!(!Path::new(path).exists(), "{path} has been made");
        }
        assert_eq!(fs::read_to_string(&self.targets.secret).unwrap(), "secret");
        assert!(self.victim.0.try_wait().unwrap().is_none());
    }

    /// Takes away what came through where there was no fence.
    fn tidy(&self, yard: &Yard) {
        for left in [
            "link", "inside", "script", "device", "followed", "hard", "mine", "owned", "out", "s",
            "new", "node",
        ] {
            let _ = fs::remove_file(yard.place.path(left));
        }
        for left in ["here", "there", "own", "wide"] {
            let _ = fs::remove_dir_all(yard.place.path(left));
        }
        for left in [&self.targets.written, &self.targets.moved] {
            let _ = fs::remove_file(left);
        }
    }
}

/// Before a command: it inherits an open file that is a secret, under number 9.
fn with_a_file_open(secret: &str) -> [&str; 4] {
    ["sh", "-c", "exec 9< \"$0\"; exec \"$@\"", secret]
}

/// The probes that no kernel stops by itself, with what stops them in the fence.
#[test]
fn every_way_out_is_closed() {
    let _peace = in_peace();
    let yard = Yard::new();
    let mut prey = Prey::new(&yard);
    let secret = prey.targets.secret.clone();
    let before = with_a_file_open(&secret);
    let probes = probes(&prey.targets);
    for form in ["cmd", "api"] {
        let all = nodes_of(form, &probes);
        let state = prey.state();
        let fenced = yard.run(&before, &all, &["--sandbox"]);
        all_said(&fenced, form, &probes, |it| it.fenced_as(form));
        prey.is_untouched();
        assert_eq!(prey.state(), state, "{form}");
        // Without a sandbox these harm whoever runs them.
        let harmless = |it: &&Probe| !["limit_parent", "users_priority"].contains(&it.name);
        let harmless: Vec<Probe> = probes.iter().filter(harmless).cloned().collect();
        let free = yard.run(&before, &nodes_of(form, &harmless), &[]);
        let open = |it: &Probe| if it.free { "open" } else { "*" };
        all_said(&free, form, &harmless, open);
        assert!(Path::new(&prey.targets.written).exists());
        prey.tidy(&yard);
        // What has come meanwhile.
        while prey.tcp.accept().is_ok() {}
        while prey.udp.recv(&mut [0; 16]).is_ok() {}
    }
}

/// Nobody is reached by the network: neither where an API server would be nor at the address at
/// which clouds tell machines their secrets. In a network of its own, where these are loopback.
#[test]
fn no_address_is_reached() {
    let _peace = in_peace();
    let yard = Yard::new();
    let nobody = NOBODY.to_string();
    for address in ["127.0.0.1:6443", "169.254.169.254:80"] {
        let before = ["python3", "apart.py", &nobody, address];
        let ways = ["tcp", "mptcp", "fastopen", "udp"].map(|name| (name, Some(address)));
        let more = ["raw", "icmp", "netlink"].map(|name| (name, None));
        let all: Vec<_> = ways.into_iter().chain(more).collect();
        for form in ["cmd", "api"] {
            let nodes = nodes(form, &all);
            let free = yard.run(&before, &nodes, &[]);
            for name in ["tcp", "fastopen", "udp", "netlink"] {
                assert_eq!(said(&free, name), "open", "{form} {name} {address}");
            }
            let fenced = yard.run(&before, &nodes, &["--sandbox"]);
            for (name, _) in &all {
                assert_eq!(said(&fenced, name), "EPERM", "{form} {name} {address}");
            }
            let network = ["--sandbox", "--sandbox-network"];
            let connected = yard.run(&before, &nodes, &network);
            for (name, _) in &all {
                let open = ["tcp", "fastopen", "udp"].contains(name);
                let expected = if open { "open" } else { "EPERM" };
                assert_eq!(said(&connected, name), expected, "{form} {name} {address}");
            }
        }
    }
}

/// Whether a process of this yard is left: they have its folder in their command line, or had it
/// as their folder.
pub fn left(yard: &Yard) -> Vec<String> {
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

/// What uses up a machine is ended, or is refused more, and nothing of it is left.
fn waste_is_bounded_with(before: &[&str], sandbox: &str) {
    let _alone = PROCESSES.write().unwrap_or_else(PoisonError::into_inner);
    let yard = Yard::new();
    // One that breeds is alone: the kernel counts the processes of a user, and so those of its
    // neighbours.
    let all = wastes("1024 MiB of memory").into_iter();
    let (breed, others): (Vec<_>, Vec<_>) = all.partition(|(name, _)| *name == "breed");
    for form in ["cmd", "api"] {
        for (all, parallel) in [
            (others.clone(), "4"),
            (breed.clone(), "1"),
            (vec![SWARM], "1"),
        ] {
            let output = yard.run(
                before,
                &nodes_of_wastes(form, &all),
                &[sandbox, "--parallel", parallel],
            );
            nothing_is_left(&yard);
            all_ended(&output, form, &all);
        }
    }
    let logs: Vec<PathBuf> = fs::read_dir(yard.place.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path().join("logs"))
        .filter(|path| path.exists())
        .collect();
    for log in logs.iter().flat_map(|folder| fs::read_dir(folder).unwrap()) {
        let log = log.unwrap();
        let most = 16 * 1024 * 1024;
        assert!(
            log.metadata().unwrap().len() <= most,
            "{}",
            log.path().display()
        );
    }
}

#[test]
fn waste_is_bounded() {
    waste_is_bounded_with(&[], "--sandbox");
}

#[test]
fn waste_is_bounded_without_landlock_too() {
    waste_is_bounded_with(&WITHOUT_LANDLOCK, "--sandbox=best-effort");
}

/// One of many may start more processes than can be ended one after the other while they all run.
#[test]
fn a_flood_is_ended_at_once() {
    let _alone = PROCESSES.write().unwrap_or_else(PoisonError::into_inner);
    let yard = Yard::new();
    let mut run = yard.start(
        &nodes("cmd", &[("flood", None)]),
        &["--sandbox", "--parallel", "16"],
    );
    // Far less than it goes on for by itself.
    until("its end", || run.try_wait().unwrap().is_some());
    let output = finish(run).json()["output"].clone();
    all_ended(&output, "cmd", &[("flood", End::Over("128 processes"))]);
    nothing_is_left(&yard);
}

/// The kernel counts the processes of a user. Those that come after a node has begun do not keep it
/// from starting as many as it may.
#[test]
fn neighbours_take_no_processes_away() {
    // More than there is room for where a launcher could not end as many at once (unless this user
    // has hundreds of processes already).
    const CROWDS: usize = 25;
    const THREADS: usize = 40;
    let _alone = PROCESSES.write().unwrap_or_else(PoisonError::into_inner);
    let yard = Yard::new();
    let file = |name: &str| yard.place.path(name).display().to_string();
    let (begun, full, over) = (file("begun"), file("full"), file("over"));
    let mut all = nodes(
        "cmd",
        &[("fork_after", Some(&full)), ("wait_for", Some(&begun))],
    );
    for number in 0..CROWDS {
        let mut crowd = node("cmd", "crowd_until", Some(&over));
        crowd["prev_nodes"] = json!(["wait_for"]);
        all.insert(format!("crowd{number}"), crowd);
    }
    // Their launchers have the same words.
    let threads = |name: &str| -> usize {
        let words = format!("probe.py {name} ");
        let is_one = |it: &&String| it.contains(&words) && !it.contains("__fence");
        let of = |it: &String| {
            let pid = it.split(' ').next().unwrap_or_default();
            fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
        };
        left(&yard).iter().filter(is_one).map(of).sum()
    };
    let run = yard.start(&all, &["--sandbox"]);
    until("the first", || threads("fork_after") > 0);
    fs::write(&begun, "").unwrap();
    until("all others", || threads("crowd_until") == CROWDS * THREADS);
    fs::write(&full, "").unwrap();
    until("its end", || threads("fork_after") == 0);
    fs::write(&over, "").unwrap();
    let output = finish(run).json()["output"].clone();
    assert_eq!(said(&output, "fork_after"), "open");
    nothing_is_left(&yard);
}

/// The process that a node's program has sent away.
fn daemon(work: &Path) -> Option<String> {
    let mut folders = fs::read_dir(work).ok()?.flatten();
    let mut pid = folders.find_map(|it| fs::read_to_string(it.path().join("daemon")).ok())?;
    pid.retain(|it| it.is_ascii_digit());
    (!pid.is_empty()).then_some(pid)
}

/// Whoever started it can die of anything: nothing is left.
#[test]
fn nothing_outlives_a_killed_run() {
    let _peace = in_peace();
    let yard = Yard::new();
    for form in ["cmd", "api"] {
        let _ = fs::remove_dir_all(yard.place.path("run"));
        let all = nodes(form, &[("daemon_and_stay", None)]);
        let mut run = yard.start(&all, &["--sandbox"]);
        let work = yard.place.path("run/work");
        until("the daemon", || daemon(&work).is_some());
        let pid = daemon(&work).unwrap();
        assert!(lives(&pid));
        signal(&run, Signal::KILL);
        run.wait().unwrap();
        until("its end", || !lives(&pid) && left(&yard).is_empty());
        until("the folder's end", || {
            fs::read_dir(&work).unwrap().next().is_none()
        });
    }
}

/// Before a command: it meets a kernel without that.
const WITHOUT_LANDLOCK: [&str; 3] = ["python3", "without.py", "landlock"];
const WITHOUT_SECCOMP: [&str; 3] = ["python3", "without.py", "seccomp"];

/// All probes and all that is waste, as one template.
fn everything(form: &str, probes: &[Probe]) -> BTreeMap<String, Value> {
    let mut all = nodes_of(form, probes);
    all.append(&mut nodes_of_wastes(form, &wastes("")));
    all.append(&mut nodes_of_wastes(form, &[SWARM]));
    // None gets so far that its time counts.
    for node in all.values_mut() {
        node["timeout"] = json!("20s");
    }
    all
}

/// Root's own Python may stand where nothing is read.
fn with_python() -> [String; 3] {
    let python = PYTHON.parent().unwrap().parent().unwrap();
    ["--sandbox", "--sandbox-read", python.to_str().unwrap()].map(str::to_owned)
}

/// A node that root starts is another user, to whom nothing of root's is open.
#[test]
fn root_node_every_way_out_is_closed() {
    let _peace = in_peace();
    let Some(yard) = Yard::of_root() else { return };
    let mut prey = Prey::new(&yard);
    let secret = prey.targets.secret.clone();
    let before = with_a_file_open(&secret);
    let probes = probes(&prey.targets);
    let sandbox = with_python();
    let sandbox = sandbox.each_ref().map(String::as_str);
    for form in ["cmd", "api"] {
        let state = prey.state();
        let fenced = yard.run(&before, &nodes_of(form, &probes), &sandbox);
        all_said(&fenced, form, &probes, |it| it.fenced_as(form));
        prey.is_untouched();
        assert_eq!(prey.state(), state, "{form}");
        nothing_is_left(&yard);
    }
}

/// Each attempt has a user of its own, whose number no other has.
#[test]
fn root_nodes_have_users_of_their_own() {
    let _peace = in_peace();
    let Some(yard) = Yard::of_root() else { return };
    let shell = |text: &str| json!({"action": {"type": "cmd", "cmd": ["sh", "-c", text]}});
    let text =
        "echo \"[OUTPUT]$$(id -u) $$(id -g) $$(id -G) $$(stat -c %u .)\"; touch x && chmod 700 x";
    let all: BTreeMap<String, Value> = (0..8).map(|it| (format!("n{it}"), shell(text))).collect();
    let output = yard.run(&[], &all, &["--sandbox"]);
    let mut users = BTreeSet::new();
    for name in all.keys() {
        assert_eq!(output[name]["status"], "success", "{}", output[name]);
        let said = said(&output, name);
        let numbers: Vec<u32> = said.split(' ').map(|it| it.parse().unwrap()).collect();
        assert!(numbers.len() == 4 && numbers.iter().all(|it| *it == numbers[0]));
        assert!(numbers[0] >= 50_000 && numbers[0] != NOBODY, "{said}");
        users.insert(numbers[0]);
    }
    assert_eq!(users.len(), all.len());
}

/// What uses up a machine is ended too where root starts it.
#[test]
fn root_node_waste_is_bounded() {
    let _alone = PROCESSES.write().unwrap_or_else(PoisonError::into_inner);
    let Some(yard) = Yard::of_root() else { return };
    let mut all = wastes("1024 MiB of memory");
    // Root can count what such a program has open, where it may look into other users' processes.
    all.retain(|(name, _)| *name != "fill_hidden");
    let nodes = nodes_of_wastes("cmd", &all);
    let python = with_python();
    let mut more: Vec<&str> = python.iter().map(String::as_str).collect();
    more.extend(["--parallel", "4"]);
    let output = yard.run(&[], &nodes, &more);
    nothing_is_left(&yard);
    all_ended(&output, "cmd", &all);
}

/// Root that cannot become another user starts nothing, whatever the mode.
#[test]
fn root_without_setuid_starts_nothing() {
    let _peace = in_peace();
    let Some(yard) = Yard::of_root() else { return };
    let all = nodes("cmd", &[("canary", None)]);
    for sandbox in ["--sandbox", "--sandbox=best-effort"] {
        let output = yard.run(&["python3", "without.py", "setuid"], &all, &[sandbox]);
        let why = reason(&output, "canary");
        let expected = ["CAP_SETUID is missing", "as a user other than root"];
        assert!(expected.iter().all(|it| why.contains(it)), "{why}");
    }
}

/// Links, directories and paths that change while the launcher looks or decides: nothing outside
/// changes.
#[test]
fn swapped_paths_change_nothing_outside() {
    let _peace = in_peace();
    for root in [false, true] {
        let yard = if root {
            Yard::of_root()
        } else {
            Some(Yard::new())
        };
        let Some(yard) = yard else { return };
        let prey = Prey::new(&yard);
        let changed = prey.targets.changed.clone();
        let state = prey.state();
        let sandbox = with_python();
        let sandbox = sandbox.each_ref().map(String::as_str);
        let all = nodes("cmd", &[("race", Some(&changed))]);
        let output = yard.run(&[], &all, &sandbox);
        assert_eq!(said(&output, "race"), "open");
        assert_eq!(prey.state(), state, "root: {root}");
    }
}

/// What scripts do with their own files, and what libraries do with their own processes.
#[test]
fn common_tools_work() {
    const TOOLS: [&str; 16] = [
        "chmod +x f && ./f",
        "chmod 755 $PWD/f && touch f && touch -d 2001-01-01 f && test $(stat -c %Y f) = 978307200",
        "cp -p f g && cp -a d e && test e/x -ot f",
        "ln -s f l && touch -h l && ls -l",
        "chmod 700 f && tar cf t.tar f d && mkdir o && tar xpf t.tar -C o && test -x o/f",
        "install -m 700 f i && sed -i s/true/false/ i",
        "mktemp && mktemp -d",
        "nice -n 3 true && { ulimit -c 0; ulimit -n 99; }",
        "echo x > /dev/stderr && echo x > /dev/stdout",
        "! command -v git || { git init -q r && test -d r/.git; }",
        "python3 -c 'import threading as t; x = t.Thread(target=print); x.start(); x.join()'",
        "python3 -c 'import tempfile, os; f = tempfile.TemporaryFile(); os.fchmod(f.fileno(), 384)'",
        "python3 -c 'import shutil; shutil.copytree(\"d\", \"dd\"); shutil.copy2(\"f\", \"h\")'",
        "python3 -c 'import os; os.sched_setaffinity(0, os.sched_getaffinity(os.getpid()))'",
        "python3 -c 'import resource as r; r.setrlimit(r.RLIMIT_CORE, (0, 0))'",
        "umask 022 && mkdir -p q/r && cp -r q s && mv s u && rm -r u",
    ];
    let script = "export GIT_CONFIG_NOSYSTEM=1; printf '#!/bin/sh\ntrue\n' > f; chmod 600 f; mkdir d; touch -d 2000-01-01 d/x\n";
    let _peace = in_peace();
    for root in [false, true] {
        let yard = if root {
            Yard::of_root()
        } else {
            Some(Yard::new())
        };
        let Some(yard) = yard else { return };
        let of = |(at, tool): (usize, &&str)| {
            let text = format!("set -e; {script}{tool}").replace('$', "$$");
            let action = json!({"type": "cmd", "cmd": ["sh", "-c", text]});
            (
                format!("n{at}"),
                json!({"action": action, "timeout": "60s"}),
            )
        };
        let all: BTreeMap<String, Value> = TOOLS.iter().enumerate().map(of).collect();
        let sandbox = with_python();
        let sandbox = sandbox.each_ref().map(String::as_str);
        let output = yard.run(&[], &all, &sandbox);
        for (at, tool) in TOOLS.iter().enumerate() {
            let node = &output[format!("n{at}")];
            assert_eq!(node["status"], "success", "root: {root}; {tool}: {node}");
        }
    }
}

/// Where the launcher cannot be asked, nothing starts, or what it would be asked is refused.
#[test]
fn without_listener_nothing_starts() {
    let _peace = in_peace();
    let before = ["python3", "without.py", "listener"];
    an_old_kernel_is_refused(&before, "expected a kernel with user notification");
}

#[test]
fn without_listener_best_effort_refuses() {
    let _peace = in_peace();
    let yard = Yard::new();
    let prey = Prey::new(&yard);
    let mut probes = probes(&prey.targets);
    probes.retain(|it| !["own_process", "modes_inside", "script"].contains(&it.name));
    let before = ["python3", "without.py", "listener"];
    let state = prey.state();
    for form in ["cmd", "api"] {
        let mut all = nodes_of(form, &probes);
        all.append(&mut nodes(form, &[("modes_inside", None)]));
        let output = yard.run(&before, &all, &["--sandbox=best-effort"]);
        all_said(&output, form, &probes, |it| match it.name {
            // Also about its own interpreter.
            "limit_parent" | "session" => "EPERM",
            _ => it.fenced_as(form),
        });
        assert_eq!(said(&output, "modes_inside"), "EPERM", "{form}");
    }
    assert_eq!(prey.state(), state);
}

/// Every system call that there is a number for, made in the sandbox: what the golden file says is
/// refused is refused, by the number that it says; and nothing outside changes.
#[cfg(target_arch = "x86_64")]
#[test]
fn every_system_call_answers_as_listed() {
    const CALLS: &str = include_str!("../data/hostile/calls.py");
    const GOLDEN: &str = include_str!("../data/syscalls.golden");
    let _peace = in_peace();
    let yard = Yard::new();
    let prey = Prey::new(&yard);
    let state = prey.state();
    let script = yard.place.write("calls.py", CALLS);
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let lines = || GOLDEN.lines().filter(|it| !it.starts_with('#'));
    let mut wrong = Vec::new();
    for (argument, column) in [("0", 2), ("-1", 3)] {
        let numbers = lines().map(|it| it.split_whitespace().next().unwrap());
        let mut words = vec!["./calls.py", argument];
        words.extend(numbers);
        let node = json!({"action": {"type": "cmd", "cmd": words}, "timeout": "300s"});
        let all = BTreeMap::from([("a".to_owned(), node)]);
        let output = yard.run(&[], &all, &["--sandbox"]);
        let said = said(&output, "a");
        let said: Vec<&str> = said.split(' ').collect();
        assert_eq!(said.len(), lines().count(), "{said:?}");
        for (line, said) in lines().zip(said) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let right = match words[column] {
                "made" => said != "unknown",
                // -1 is no process, and 0 is no path.
                "asked" => ["EPERM", "EFAULT", "EBADF", "EINVAL"].contains(&said),
                "nothing" => said == "0",
                expected => said == expected,
            };
            if !right {
                wrong.push(format!("{} with {argument}: {said}, but {line}", words[1]));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(prey.state(), state);
}

/// Nobody of the same user looks into a launcher; and if the machine ends it, what it has started
/// ends with it.
#[test]
fn a_launcher_hides_and_does_not_die_alone() {
    use std::os::unix::fs::MetadataExt;
    let _peace = in_peace();
    let yard = Yard::new();
    for form in ["cmd", "api"] {
        let _ = fs::remove_dir_all(yard.place.path("run"));
        let all = nodes(form, &[("daemon_and_stay", None), ("spin", None)]);
        let run = yard.start(&all, &["--sandbox"]);
        // The run and its guard.
        let own = || {
            let all = left(&yard).into_iter();
            all.filter(|it| it.contains("/apscli run ")).count()
        };
        let work = yard.place.path("run/work");
        let field = |pid: &str, nth: usize| -> String {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            let (_, rest) = stat.rsplit_once(") ").unwrap();
            rest.split(' ').nth(nth).unwrap().to_owned()
        };
        until("the daemon", || daemon(&work).is_some());
        let daemon = daemon(&work).unwrap();
        // Whatever loses its parent comes to the launcher.
        until("its parents' end", || {
            let words = fs::read_to_string(format!("/proc/{}/cmdline", field(&daemon, 1)));
            words.is_ok_and(|words| words.contains("\0__fence\0"))
        });
        let launcher = field(&daemon, 1);
        let programs = || -> Vec<String> {
            let children = format!("/proc/{launcher}/task/{launcher}/children");
            let children = fs::read_to_string(children).unwrap();
            children.split_whitespace().map(str::to_owned).collect()
        };
        // Those between the program and its daemon end by themselves.
        until("the others' end", || programs().len() == 2);
        let programs = programs();
        assert!(programs.contains(&daemon), "{programs:?}");
        let environ = format!("/proc/{launcher}/environ");
        let data = fs::metadata(&environ).unwrap();
        assert_eq!((data.uid(), data.gid()), (0, 0), "{form}");
        let blame = |pid: &String| -> i32 {
            let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
            text.trim().parse().unwrap()
        };
        for program in &programs {
            assert_eq!(blame(program), (blame(&launcher) + 100).min(1000));
        }
        let pid = Pid::from_raw(launcher.parse().unwrap()).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
        until("its end", || !programs.iter().any(|it| lives(it)));
        until("the folder's end", || {
            fs::read_dir(&work).unwrap().count() == 1
        });
        assert_eq!(own(), 2, "{form}: the others go on");
        signal(&run, Signal::TERM);
        let output = finish(run).json()["output"].clone();
        let status = |name: &str| output[name]["status"].clone();
        // Of a function it is the interpreter that is gone.
        let gone = if form == "cmd" {
            "failure"
        } else {
            "exception"
        };
        assert_eq!(status("daemon_and_stay"), gone, "{form}: {output}");
        assert_eq!(status("spin"), "cancelled", "{form}: {output}");
        assert_eq!(fs::read_dir(&work).unwrap().count(), 0, "{form}");
        until("the guard's end", || left(&yard).is_empty());
    }
}

/// What the kernel cannot do is not passed over: nothing starts, neither program nor function, and
/// nothing comes of any.
fn an_old_kernel_is_refused(before: &[&str], what: &str) {
    let yard = Yard::new();
    let mut prey = Prey::new(&yard);
    let probes = probes(&prey.targets);
    for form in ["cmd", "api"] {
        let all = everything(form, &probes);
        let output = yard.run(before, &all, &["--sandbox"]);
        for name in all.keys() {
            let why = reason(&output, name);
            assert!(
                why.starts_with("NotStarted: the sandbox is required, and cannot be had: ")
                    && why.contains(what),
                "{form} {name}: {}",
                output[name]
            );
            assert!(output[name]["result"]["output"].is_null(), "{form} {name}");
        }
        nothing_is_left(&yard);
        prey.is_untouched();
    }
}

#[test]
fn without_landlock_nothing_starts() {
    let _peace = in_peace();
    an_old_kernel_is_refused(&WITHOUT_LANDLOCK, "expected Landlock 6 (Linux 6.12)");
}

#[test]
fn without_seccomp_nothing_starts() {
    let _peace = in_peace();
    an_old_kernel_is_refused(&WITHOUT_SECCOMP, ": seccomp: ");
}

/// Unless that was said to be good enough: then all is closed that the rest closes by itself.
#[test]
fn without_landlock_all_else_is_still_closed() {
    let _peace = in_peace();
    let yard = Yard::new();
    let prey = Prey::new(&yard);
    let probes = probes(&prey.targets);
    for form in ["cmd", "api"] {
        let all = nodes_of(form, &probes);
        let output = yard.run(&WITHOUT_LANDLOCK, &all, &["--sandbox=best-effort"]);
        all_said(&output, form, &probes, |it| it.without_landlock_as(form));
        prey.tidy(&yard);
    }
}

/// The other half by itself: files, signals, connections by TCP and to names without a file.
#[test]
fn without_seccomp_landlock_still_closes() {
    let _peace = in_peace();
    let yard = Yard::new();
    let prey = Prey::new(&yard);
    let by_landlock = |it: &Probe| {
        let closed_by_both = ["tcp", "unix_without_file"].contains(&it.name);
        closed_by_both || it.fenced != it.without_landlock && it.without_landlock == "open"
    };
    let mut probes = probes(&prey.targets);
    probes.retain(by_landlock);
    for form in ["cmd", "api"] {
        let all = nodes_of(form, &probes);
        let output = yard.run(&WITHOUT_SECCOMP, &all, &["--sandbox=best-effort"]);
        all_said(&output, form, &probes, |it| match it.name {
            "tcp" => "EACCES",
            _ => it.fenced_as(form),
        });
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

    let address = Some(&*address);
    all = nodes(
        "cmd",
        &[
            ("tcp", address),
            ("udp", address),
            ("mptcp", address),
            ("raw", None),
            ("icmp", None),
            ("seqpacket", None),
            ("netlink", None),
            ("unix", Some("x")),
            ("packet", None),
        ],
    );
    let output = yard.run(&[], &all, &["--sandbox", "--sandbox-network"]);
    for (name, expected) in [
        ("tcp", "open"),
        ("udp", "open"),
        ("mptcp", "EPERM"),
        ("raw", "EPERM"),
        ("icmp", "EPERM"),
        ("seqpacket", "EPERM"),
        ("netlink", "EPERM"),
        ("unix", "EPERM"),
        ("packet", "EPERM"),
    ] {
        assert_eq!(said(&output, name), expected, "{name}");
    }
}

/// What a node sets for its program is nothing to who starts it, outside of the fence.
#[test]
fn the_launcher_has_nothing_of_a_nodes_environment() {
    let _peace = in_peace();
    let yard = Yard::new();
    let elsewhere = Place::new();
    own(elsewhere.dir.path());
    let traces = || fs::read_dir(elsewhere.dir.path()).unwrap().count();
    let env = json!({"LD_DEBUG": "libs", "LD_DEBUG_OUTPUT": elsewhere.path("trace")});
    let shell = ["sh", "-c", "echo \"[OUTPUT]$$LD_DEBUG\""];
    let node = json!({"action": {"type": "cmd", "cmd": shell, "env": env}});
    let all = BTreeMap::from([("a".to_owned(), node)]);
    let output = yard.run(&[], &all, &["--sandbox"]);
    assert_eq!(said(&output, "a"), "libs", "the program has it");
    assert_eq!(traces(), 0);
    yard.run(&[], &all, &[]);
    assert!(traces() > 0, "without a fence it is written");
}

/// A run that is taken up again stays in its sandbox.
/// A run's records are closed to its nodes also where they are below the template's directory, which
/// is open otherwise.
#[test]
fn records_below_the_template_are_closed() {
    for root in [false, true] {
        let Some(yard) = (if root {
            Yard::of_root()
        } else {
            Some(Yard::new())
        }) else {
            continue;
        };
        let dir = yard.place.dir.path().display().to_string();
        yard.place.write("beside/open.txt", "open");
        own(&yard.place.path("beside"));
        let look = format!(
            "for f in {dir}/run-*/journal.jsonl {dir}/run-*/guard.lock {dir}/run-*/work/*/secret {dir}/run-*/logs/*.log; do \
             cat $$f >/dev/null 2>&1 && echo \"[INFO]$$f\"; done; \
             echo \"[OUTPUT]$$(cat {dir}/beside/open.txt)\"; ls {dir} >/dev/null"
        );
        let other = "echo x >secret; echo logged; sleep 2";
        let node = |script: &str| json!({"action": {"type": "cmd", "cmd": ["sh", "-c", script]}});
        let nodes = BTreeMap::from([
            ("other".to_owned(), node(other)),
            ("look".to_owned(), node(&format!("sleep 1; {look}"))),
        ]);
        let output = yard.run(&[], &nodes, &["--sandbox"]);
        let result = &output["look"]["result"];
        assert_eq!(
            (&result["output"], &result["info"]),
            (&json!("open"), &Value::Null),
            "{output}"
        );
    }
}

#[test]
fn template_among_other_things_is_refused() {
    let yard = Yard::new();
    yard.place
        .write("home/t.yaml", "a: {action: {type: cmd, cmd: \"true\"}}");
    own(&yard.place.path("home"));
    for template in ["home/t.yaml", "/dev/stdin"] {
        let args = [
            "run",
            "--sandbox",
            "--template",
            template,
            "--log-dir",
            "elsewhere",
        ];
        let mut run = yard.command(&[], &args);
        let input = fs::File::open(yard.place.path("home/t.yaml")).unwrap();
        let done = Done::new(&run.stdin(input).output().unwrap());
        assert_eq!(done.status, 2, "{template}: {}", done.stdout);
        let wanted = "expected a template in a directory of its own";
        assert!(done.stderr.contains(wanted), "{template}: {}", done.stderr);
    }
}

/// A socket of a pair is given no name in the machine's own list, and told of no listener.
#[test]
fn sockets_of_a_pair_get_no_name() {
    let yard = Yard::new();
    let script = "import socket
a, b = socket.socketpair()
for attempt in (lambda: a.bind('\\0apscli-name'), lambda: b.bind(''), lambda: a.connect('/run/x'), lambda: a.listen()):
    try:
        attempt()
        print('[OUTPUT]done')
    except PermissionError:
        pass";
    yard.place.write("pair.py", script);
    own(&yard.place.path("pair.py"));
    let path = yard.place.path("pair.py").display().to_string();
    let node = json!({"action": {"type": "cmd", "cmd": ["python3", path]}});
    let output = yard.run(
        &[],
        &BTreeMap::from([("a".to_owned(), node)]),
        &["--sandbox"],
    );
    let result = &output["a"]["result"];
    assert_eq!(
        (&result["return_code"], &result["output"]),
        (&json!(1), &Value::Null),
        "{output}"
    );
}

#[test]
fn a_resumed_run_keeps_its_sandbox() {
    let _peace = in_peace();
    let yard = Yard::new();
    let mut all = nodes("cmd", &[("daemon_and_stay", None), ("unshare_user", None)]);
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
