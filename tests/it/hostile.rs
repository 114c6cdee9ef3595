//! What a hostile node tries, and what has to come of it: in the fence, in what is left of the
//! fence where the kernel has no Landlock, and without any.
//!
//! Must not run anything: the same is tried on one machine and through the operator.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// What is tried: `probe.py NAME [ARGUMENT]`, or its function `probe`.
pub const PROBE: &str = include_str!("../data/hostile/probe.py");
/// Runs a command for which the kernel lacks something.
pub const WITHOUT: &str = include_str!("../data/hostile/without.py");
/// Runs a command in a network of its own.
pub const APART: &str = include_str!("../data/hostile/apart.py");

/// One try to get out, and what it says where.
#[derive(Clone)]
pub struct Probe {
    pub name: &'static str,
    pub argument: Option<String>,
    /// In the fence; `A|B` is one of them.
    pub fenced: &'static str,
    /// Where the kernel has no Landlock and that was said to be good enough; `*`: up to the machine.
    pub without_landlock: &'static str,
    /// Whether it must get through without the fence: elsewhere that is up to kernel, settings and
    /// rights.
    pub free: bool,
}

/// Whom and what it is tried on.
pub struct Targets {
    /// A process of the same user.
    pub pid: String,
    /// A file that only this user may read.
    pub secret: String,
    /// Beside it, a file to be made, and another.
    pub written: String,
    pub moved: String,
    /// A file outside, and one that can be read (the template's).
    pub changed: String,
    pub readable: String,
    /// Where somebody listens.
    pub tcp: String,
    pub udp: String,
    pub unix: String,
    /// The same with a name that is no file's.
    pub no_file: String,
}

const PERM: &str = "EPERM";
const ACCES: &str = "EACCES";
const NOSYS: &str = "ENOSYS";
const NO_XATTRS: &str = "ENOTSUP|EOPNOTSUPP";
const OPEN: &str = "open";
const ANY: &str = "*";

impl Probe {
    /// Whether it said what it should.
    pub fn is(expected: &str, said: &str) -> bool {
        expected == ANY || expected.split('|').any(|it| it == said)
    }

    /// In the fence, as a program or as a function.
    pub fn fenced_as(&self, form: &str) -> &'static str {
        self.as_form(form, self.fenced)
    }

    /// The same where the kernel has no Landlock.
    pub fn without_landlock_as(&self, form: &str) -> &'static str {
        self.as_form(form, self.without_landlock)
    }

    fn as_form(&self, form: &str, expected: &'static str) -> &'static str {
        // A call's parent is its own interpreter, which nobody else uses: one fence is around both.
        let of_parent = ["kill_parent", "session"].contains(&self.name);
        if form == "api" && of_parent {
            OPEN
        } else {
            expected
        }
    }

    pub fn node(&self, form: &str) -> Value {
        node(form, self.name, self.argument.as_deref())
    }
}

/// All probes but those of a network.
#[allow(clippy::too_many_lines, reason = "a table")]
pub fn probes(targets: &Targets) -> Vec<Probe> {
    let Targets {
        pid,
        secret,
        written,
        moved,
        changed,
        readable,
        tcp,
        udp,
        unix,
        no_file,
    } = targets;
    let (changed, readable) = (Some(&**changed), Some(&**readable));
    let (pid, secret, unix) = (Some(&**pid), Some(&**secret), Some(&**unix));
    let (tcp, udp) = (Some(&**tcp), Some(&**udp));
    let rows: &[(&'static str, Option<&str>, &'static str, &'static str, bool)] = &[
        // files
        ("read", secret, ACCES, OPEN, true),
        ("list", Some("/"), ACCES, OPEN, true),
        ("follow", secret, ACCES, OPEN, true),
        ("hard_link", secret, "EXDEV|EACCES|EPERM", OPEN, true),
        ("write", Some(written), ACCES, OPEN, true),
        ("link_out", Some(written), ACCES, OPEN, true),
        ("move_out", Some(moved), "EXDEV|EACCES", OPEN, true),
        ("device", None, "EACCES|EPERM", PERM, false),
        // other processes
        ("environ", pid, ACCES, OPEN, true),
        ("cmdline", pid, ACCES, OPEN, true),
        ("fds", pid, ACCES, OPEN, true),
        ("mem", pid, ACCES, ANY, false),
        ("vm", pid, PERM, PERM, false),
        ("ptrace", pid, PERM, PERM, false),
        ("steal_fd", pid, PERM, PERM, false),
        ("kill", pid, PERM, OPEN, true),
        ("kill_parent", None, PERM, OPEN, true),
        ("kill_above", None, PERM, OPEN, false),
        ("pidfd", pid, PERM, OPEN, true),
        // sockets
        ("tcp", tcp, PERM, PERM, true),
        ("mptcp", tcp, PERM, PERM, false),
        ("fastopen", tcp, PERM, PERM, false),
        ("udp", udp, PERM, PERM, true),
        ("tcp6", None, PERM, PERM, false),
        ("raw", None, PERM, PERM, false),
        ("icmp", None, PERM, PERM, false),
        ("seqpacket", None, PERM, PERM, false),
        ("netlink", None, PERM, PERM, true),
        ("packet", None, PERM, PERM, false),
        ("alg", None, PERM, PERM, false),
        ("vsock", None, PERM, PERM, false),
        ("unix", unix, PERM, PERM, true),
        ("unix_without_file", Some(no_file), PERM, PERM, true),
        ("datagram_pair", None, PERM, PERM, true),
        ("foreign_pair", None, PERM, PERM, false),
        // other views of the system
        ("unshare_user", None, PERM, PERM, false),
        ("unshare_net", None, PERM, PERM, false),
        ("setns", None, PERM, PERM, true),
        ("clone_user", None, PERM, PERM, false),
        ("clone3", None, NOSYS, NOSYS, true),
        ("chroot", None, PERM, PERM, false),
        ("mount", None, PERM, PERM, false),
        // parts of the kernel that few need
        ("bpf", None, PERM, PERM, false),
        ("io_uring", None, NOSYS, NOSYS, false),
        ("keyctl", None, PERM, PERM, false),
        ("add_key", None, PERM, PERM, false),
        ("perf", None, PERM, PERM, false),
        ("userfaultfd", None, PERM, PERM, false),
        ("memfd", None, PERM, PERM, true),
        ("shm", None, PERM, PERM, true),
        ("x32", None, NOSYS, NOSYS, false),
        ("newest", None, NOSYS, NOSYS, false),
        // what a process has
        ("terminal", None, PERM, PERM, false),
        ("chown", None, PERM, PERM, false),
        ("session", None, PERM, PERM, true),
        ("hide", None, PERM, PERM, true),
        ("files_apart", None, PERM, PERM, true),
        ("canary", None, "unset", "unset", true),
        ("files_for_others", None, ACCES, ACCES, false),
        ("new_privileges", None, PERM, PERM, false),
        ("limits", None, "bounded", "bounded", false),
        ("inherited", None, "EBADF", "EBADF", false),
        // mode, times, owner and attributes of what is outside, by each call that has them
        ("chmod_out", changed, PERM, PERM, true),
        ("chmod_same", changed, PERM, PERM, true),
        ("chmod2_out", changed, PERM, PERM, false),
        ("chmod2_nofollow", changed, PERM, PERM, false),
        ("chmod_directory", changed, PERM, PERM, true),
        ("chmod_link", changed, PERM, PERM, true),
        ("chmod_up", changed, PERM, PERM, true),
        ("chmod_at", changed, "EACCES", PERM, true),
        ("chmod_read_only", readable, PERM, PERM, true),
        ("chmod_by_number", readable, PERM, PERM, true),
        ("chmod_empty_path", readable, PERM, PERM, false),
        (
            "chmod_parent_link",
            changed,
            "EPERM|ELOOP",
            "EPERM|ELOOP",
            false,
        ),
        ("times_out", changed, PERM, PERM, true),
        ("times_now", changed, PERM, PERM, true),
        ("times_link", changed, PERM, PERM, true),
        ("times_read_only", readable, PERM, PERM, true),
        #[cfg(target_arch = "x86_64")]
        ("times_utime", changed, PERM, PERM, true),
        #[cfg(target_arch = "x86_64")]
        ("times_utimes", changed, PERM, PERM, true),
        #[cfg(target_arch = "x86_64")]
        ("times_futimesat", changed, PERM, PERM, true),
        ("chown_out", changed, PERM, PERM, true),
        ("chown_link", changed, PERM, PERM, true),
        ("chown_read_only", readable, PERM, PERM, true),
        ("set_attribute", changed, NO_XATTRS, NO_XATTRS, false),
        ("get_attribute", changed, NO_XATTRS, NO_XATTRS, false),
        ("list_attributes", changed, NO_XATTRS, NO_XATTRS, false),
        ("remove_attribute", changed, NO_XATTRS, NO_XATTRS, false),
        (
            "set_attribute_read_only",
            readable,
            NO_XATTRS,
            NO_XATTRS,
            false,
        ),
        ("set_user_id", None, PERM, PERM, true),
        ("set_group_id", None, PERM, PERM, true),
        ("set_user_id_open", None, PERM, PERM, true),
        ("set_group_id_open", None, PERM, PERM, true),
        ("set_user_id_mknod", None, PERM, PERM, true),
        ("openat2", None, NOSYS, NOSYS, true),
        ("watch", None, NOSYS, NOSYS, true),
        ("watch_add", None, PERM, PERM, true),
        ("notice", None, PERM, PERM, false),
        ("lease", readable, PERM, PERM, false),
        ("flags_read_only", readable, "ENOTTY", "ENOTTY", false),
        ("mounts", None, NOSYS, NOSYS, false),
        // processes by their numbers
        ("get_affinity", pid, PERM, PERM, true),
        ("get_scheduler", pid, PERM, PERM, true),
        ("get_param", pid, PERM, PERM, true),
        ("get_attr", pid, PERM, PERM, true),
        ("get_interval", pid, PERM, PERM, true),
        ("get_priority", pid, PERM, PERM, true),
        ("get_io_priority", pid, PERM, PERM, true),
        ("get_limit", pid, PERM, PERM, true),
        ("get_clock", pid, PERM, PERM, true),
        ("get_group", pid, PERM, PERM, true),
        ("get_session", pid, PERM, PERM, true),
        ("set_affinity", pid, PERM, PERM, true),
        ("set_scheduler", pid, PERM, PERM, true),
        ("set_param", pid, PERM, PERM, true),
        ("set_attr", pid, PERM, PERM, true),
        ("set_priority", pid, PERM, PERM, true),
        ("set_io_priority", pid, PERM, PERM, true),
        ("set_limit", pid, PERM, PERM, true),
        ("users_priority", None, PERM, PERM, false),
        ("groups_priority", pid, PERM, PERM, false),
        ("limit_parent", None, PERM, PERM, false),
        // what a program must be able to do all the same
        ("own_process", None, OPEN, OPEN, true),
        ("modes_inside", None, OPEN, OPEN, false),
        ("pair", None, OPEN, OPEN, true),
        ("clone", None, OPEN, OPEN, true),
        ("write_inside", None, OPEN, OPEN, true),
        ("script", None, OPEN, OPEN, true),
        ("move_inside", None, OPEN, OPEN, true),
    ];
    let rows = rows.iter().copied();
    rows.map(|(name, argument, fenced, without_landlock, free)| Probe {
        name,
        argument: argument.map(str::to_owned),
        fenced,
        without_landlock,
        free,
    })
    .collect()
}

/// How something ends that uses up a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, and well.
    Well,
    /// By itself, as its own failure or exception: it was refused more.
    Refused,
    /// It was ended, because it used more than this.
    Over(&'static str),
    /// It was ended when its time was over.
    Timeout,
    /// It was ended by either: by whichever notices it first.
    Ended(&'static str),
}

/// Of a program that lets nobody see which files it has open.
const HIDDEN: &str = "can be counted in files, as a program of it hides or cannot be read";

/// How long has time what would never end.
pub const TIME: &str = "2s";

/// What uses up a machine, and how it has to end where a node has so many MiB of memory.
pub fn wastes(memory: &'static str) -> Vec<(&'static str, End)> {
    vec![
        ("fill", End::Over("64 MiB in files")),
        ("blind", End::Over("64 MiB in files")),
        ("ask", End::Over("64 MiB in files")),
        ("shuffle", End::Over("64 MiB in files")),
        ("fill_unnamed", End::Over("64 MiB in files")),
        ("fill_hidden", End::Over(HIDDEN)),
        ("fill_headless", End::Over("64 MiB in files")),
        ("take_headless", End::Over(memory)),
        ("fill_one", End::Refused),
        ("say", End::Well),
        ("take", End::Over(memory)),
        ("breed", End::Over("128 processes")),
        ("spin", End::Timeout),
        ("stop", End::Timeout),
        ("daemon", End::Well),
        ("daemon_and_stay", End::Timeout),
    ]
}

/// Alone, since it keeps its neighbours from starting anything.
pub const SWARM: (&str, End) = ("swarm", End::Ended("128 processes"));

fn waste(form: &str, name: &str, end: End) -> Value {
    let mut node = node(form, name, None);
    // What is not ended as it should be must not go on for ever either.
    node["timeout"] = json!(match end {
        End::Timeout | End::Ended(_) => TIME,
        End::Well | End::Refused | End::Over(_) => "120s",
    });
    node
}

/// A node that tries one of them, with the program beside the template.
pub fn node(form: &str, name: &str, argument: Option<&str>) -> Value {
    if form == "cmd" {
        let mut words = vec!["./probe.py", name];
        words.extend(argument);
        return json!({"action": {"type": "cmd", "cmd": words}});
    }
    let mut param = json!({"name": name});
    if let Some(argument) = argument {
        param["argument"] = json!(argument);
    }
    let action = json!({"type": "api", "module": "probe", "function": "probe", "path": ["."]});
    json!({"action": action, "param": param})
}

/// A template of these.
pub fn nodes_of_wastes(form: &str, all: &[(&str, End)]) -> BTreeMap<String, Value> {
    let named = |(name, end): &(&str, End)| ((*name).to_owned(), waste(form, name, *end));
    all.iter().map(named).collect()
}

/// A template of these probes.
pub fn nodes_of(form: &str, probes: &[Probe]) -> BTreeMap<String, Value> {
    let named = |it: &Probe| (it.name.to_owned(), it.node(form));
    probes.iter().map(named).collect()
}

/// What each probe said.
pub fn said(output: &Value, name: &str) -> String {
    let it = &output[name];
    match it["result"]["output"].as_str() {
        Some(text) => text.to_owned(),
        None => panic!("{name} said nothing: {it}"),
    }
}

/// Why a node is in its phase.
pub fn reason(output: &Value, name: &str) -> String {
    output[name]["reason"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// Each probe said what is expected of it.
pub fn all_said(
    output: &Value,
    form: &str,
    probes: &[Probe],
    expected: impl Fn(&Probe) -> &'static str,
) {
    let wrong: Vec<String> = probes
        .iter()
        .filter_map(|probe| {
            let (expected, said) = (expected(probe), said(output, probe.name));
            let right = Probe::is(expected, &said);
            (!right).then(|| format!("{}: {said}, expected {expected}", probe.name))
        })
        .collect();
    assert!(wrong.is_empty(), "{form}: {}", wrong.join("; "));
}

/// Each has ended as it has to.
pub fn all_ended(output: &Value, form: &str, all: &[(&str, End)]) {
    for (name, end) in all {
        let why = reason(output, name);
        let over = |what: &str| why == format!("NoResult: it used more than {what}, and was ended");
        let timeout = why == "Timeout: ran longer than its timeout";
        let right = match end {
            End::Well => output[name]["status"] == "success",
            // EFBIG: the file is too large.
            End::Refused => why.contains("Errno 27") || why.contains("exit code 27"),
            End::Over(what) => over(what),
            End::Timeout => timeout,
            End::Ended(what) => timeout || over(what),
        };
        assert!(right, "{form} {name}: {end:?}, but {}", output[name]);
    }
}
