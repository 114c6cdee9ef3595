//! What is closed to a program in the fence, from the inside: applied by the process that is about
//! to become that program; and whom its launcher can signal.
//!
//! Layers, because none is enough. Landlock says which files can be opened, and hides everything
//! outside from signals and from being looked into; but it knows nothing of UDP, not all ways of
//! TCP, and neither modes nor times of files. Seccomp (`calls.rs`) closes whole kinds of system
//! calls, but cannot look at paths; the launcher (`broker.rs`) decides those that need it. Limits
//! bound what is left. Root is another user there (`identity.rs`).
//!
//! Must not open anything that the policy does not name.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus,
    PathBeneath, PathFd, RestrictionStatus, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope,
};
use rustix::process::{Pid, Resource, Rlimit, setrlimit};

use super::identity::Identity;
use super::{Mode, Policy, broker, calls, identity};

/// The oldest Landlock that closes what has to be closed: with it, signals go no further than the
/// fence (Linux 6.12).
const LEAST: ABI = ABI::V6;
/// What that is in words.
const LEAST_WORDS: &str = "Landlock 6 (Linux 6.12)";

/// What every program needs: the system's programs and libraries.
const SYSTEM: [&str; 9] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/nix/store",
    "/apscli/bin",
];
/// Of `/etc` what names things for everybody, and nothing that could be a secret; of `/proc` and
/// `/sys` what tells of the machine and of no process.
const FACTS: [&str; 31] = [
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/debian_version",
    "/etc/gai.conf",
    "/etc/group",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/inputrc",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/locale.alias",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/nsswitch.conf",
    "/etc/os-release",
    "/etc/passwd",
    "/etc/pki/ca-trust",
    "/etc/pki/tls/certs",
    "/etc/pki/tls/openssl.cnf",
    "/etc/protocols",
    "/etc/resolv.conf",
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/timezone",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/uptime",
    "/sys/devices/system/cpu",
];
/// Devices that hold nothing.
const DEVICES: [&str; 5] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
];

/// What was applied to a process.
pub(super) struct Applied {
    /// What is enforced, in words.
    pub(super) enforced: String,
    /// Whether Landlock is.
    pub(super) landlocked: bool,
    /// Where the launcher is asked.
    pub(super) listener: Option<OwnedFd>,
}

/// Applies all of it to this process, which must have one thread. An error says why the program must
/// not start. `identity`: the user that it becomes.
pub(super) fn apply(policy: &Policy, identity: Option<&Identity>) -> Result<Applied, String> {
    let mut enforced = Vec::new();
    drop_capabilities(identity.is_some())?;
    rustix::thread::set_no_new_privs(true)
        .map_err(|error| format!("cannot give up new privileges: {error}"))?;
    enforced.push("no new privileges".to_owned());
    limits(policy)?;
    enforced.push("limits".to_owned());
    let landlock = landlock(policy);
    let landlocked = landlock.is_ok();
    match landlock {
        Ok(words) => enforced.push(words),
        Err(why) if policy.mode == Mode::Required => {
            return Err(format!(
                "the sandbox is required, and cannot be had: {why}; expected {LEAST_WORDS}"
            ));
        }
        Err(why) => enforced.push(format!("no landlock ({why})")),
    }
    // Only now: what may be opened was opened by root.
    if let Some(identity) = identity {
        identity.assume(landlocked)?;
        enforced.push("a user of its own".to_owned());
    }
    let mut listener = None;
    match seccomp(policy) {
        Ok(made) => {
            let asked = if made.is_some() {
                "seccomp"
            } else {
                "seccomp (chmod, utime and other processes' numbers refused, as the kernel has no listener)"
            };
            enforced.extend([asked.to_owned(), network(policy.network).to_owned()]);
            listener = made;
        }
        Err(why) if policy.mode == Mode::Required => {
            return Err(format!("the sandbox is required, and cannot be had: {why}"));
        }
        Err(why) => enforced.push(format!("no seccomp ({why})")),
    }
    Ok(Applied {
        enforced: enforced.join(", "),
        landlocked,
        listener,
    })
}

/// Lets this process, which must have one thread, signal nobody any more but itself and what it
/// starts. False: the kernel cannot do that, or it is not seen to hold against this process's own
/// parent.
pub(super) fn confine_signals() -> bool {
    let reaches = |pid: Pid| rustix::process::test_kill_process(pid);
    let (Some(parent), Ok(root)) = (rustix::process::getppid(), PathFd::new("/")) else {
        return false;
    };
    let before = reaches(parent);
    let scope = || {
        let ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            // What is not allowed by name is refused by every Landlock: moving files between
            // folders.
            .handle_access(AccessFs::Refer)?
            .scope(Scope::Signal)?
            .create()?
            .add_rule(PathBeneath::new(root, AccessFs::Refer))?;
        // A signal to all is refused for all others: nobody wants to read of each of them.
        let quiet = ruleset.set_compatibility(CompatLevel::BestEffort);
        quiet.log_same_exec(false)?.restrict_self()
    };
    let is_enforced = |status: RestrictionStatus| status.ruleset != RulesetStatus::NotEnforced;
    let enforced = scope().is_ok_and(is_enforced);
    enforced && before.is_ok() && reaches(parent) == Err(rustix::io::Errno::PERM)
}

fn network(open: bool) -> &'static str {
    if open {
        "network: TCP and UDP"
    } else {
        "no network"
    }
}

/// Drops all capabilities. Of root's, those are kept until it has become another user that this
/// needs; none comes back by exec.
fn drop_capabilities(becomes_another: bool) -> Result<(), String> {
    use rustix::thread::{
        CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities,
    };
    if becomes_another {
        // What is inherited must be there.
        let others = CapabilitySet::all() & !identity::KEPT;
        for capability in others.iter() {
            // Those that the kernel does not know are none.
            let _ = remove_capability_from_bounding_set(capability);
        }
        return Ok(());
    }
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).map_err(|error| format!("cannot give up capabilities: {error}"))
}

fn limits(policy: &Policy) -> Result<(), String> {
    let limits = &policy.limits;
    for (resource, most) in [
        (Resource::As, limits.memory),
        (Resource::Cpu, limits.cpu),
        (Resource::Nofile, limits.open_files),
        (Resource::Fsize, limits.file),
        (Resource::Core, NO_CORE),
        (Resource::Memlock, 64 * 1024),
        (Resource::Msgqueue, 0),
    ] {
        let before = rustix::process::getrlimit(resource).maximum;
        let most = before.map_or(most, |before| before.min(most));
        limit(resource, most, most)?;
    }
    Ok(())
}

/// The limit of a core that keeps the kernel from handing one to a handler (core(5)): of 0 it does.
const NO_CORE: u64 = 1;

/// There is no core of this process, also where the kernel has a handler for them. Where the limit is
/// 0 already and cannot be raised, that is left.
pub(super) fn forbid_core() -> Result<(), String> {
    let before = rustix::process::getrlimit(Resource::Core).maximum;
    let most = before.map_or(NO_CORE, |before| before.min(NO_CORE));
    limit(Resource::Core, most, most)
}

pub(super) fn limit(resource: Resource, current: u64, maximum: u64) -> Result<(), String> {
    let limit = Rlimit {
        current: Some(current),
        maximum: Some(maximum),
    };
    setrlimit(resource, limit)
        .map_err(|error| format!("cannot set a limit ({resource:?}): {error}"))
}

/// What is opened for `path` to be readable, but for what is hidden below it. Landlock can take
/// nothing out of a directory that it opens; so where something below is hidden, the directory
/// shows its names only, and its entries are opened one by one.
fn openings(path: &Path, hidden: &[PathBuf]) -> Vec<(PathBuf, BitFlags<AccessFs>)> {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if hidden.contains(&path) {
        return Vec::new();
    }
    if !hidden.iter().any(|it| it.starts_with(&path)) {
        return vec![(path, AccessFs::from_read(LEAST))];
    }
    let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
    // What a link leads to is opened where it is, if it is to be.
    let entries = entries.filter(|it| it.file_type().is_ok_and(|it| !it.is_symlink()));
    let mut all: Vec<_> = entries
        .flat_map(|entry| openings(&entry.path(), hidden))
        .collect();
    all.push((path, AccessFs::ReadDir.into()));
    all
}

/// The files that there are. All else, and everybody outside, is out of reach.
fn landlock(policy: &Policy) -> Result<String, String> {
    let words = |error: &dyn std::fmt::Display| error.to_string();
    let (level, soft) = match policy.mode {
        Mode::Required => (CompatLevel::HardRequirement, CompatLevel::BestEffort),
        Mode::BestEffort => (CompatLevel::BestEffort, CompatLevel::BestEffort),
    };
    let mut ruleset = Ruleset::default()
        .set_compatibility(level)
        .handle_access(AccessFs::from_all(LEAST))
        .map_err(|error| words(&error))?
        .scope(Scope::from_all(LEAST))
        .map_err(|error| words(&error))?;
    if !policy.network {
        ruleset = ruleset
            .handle_access(AccessNet::from_all(LEAST))
            .map_err(|error| words(&error))?;
    }
    let mut ruleset = ruleset
        .set_compatibility(soft)
        .create()
        .map_err(|error| words(&error))?;
    let read: BitFlags<AccessFs> = AccessFs::from_read(LEAST);
    let facts = AccessFs::ReadFile | AccessFs::ReadDir;
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate;
    let all = AccessFs::from_all(LEAST) & !(AccessFs::MakeChar | AccessFs::MakeBlock);
    let system = SYSTEM.iter().map(|path| (Path::new(path), read));
    let facts = FACTS.iter().map(|path| (Path::new(path), facts));
    let devices = DEVICES.iter().map(|path| (Path::new(path), device));
    let own: Vec<_> = (policy.readable.iter())
        .flat_map(|path| openings(path, &policy.hidden))
        .collect();
    let own = own.iter().map(|(path, access)| (path.as_path(), *access));
    let folder = std::iter::once((policy.folder.as_path(), all));
    for (path, access) in system.chain(facts).chain(devices).chain(own).chain(folder) {
        // What is not there needs no rule.
        let (Ok(opened), Ok(data)) = (PathFd::new(path), path.metadata()) else {
            continue;
        };
        let access = if data.is_dir() {
            access
        } else {
            access & AccessFs::from_file(LEAST)
        };
        ruleset = ruleset
            .add_rule(PathBeneath::new(opened, access))
            .map_err(|error| words(&error))?;
    }
    // The log, which scripts open once more as /dev/stderr.
    let log = rustix::stdio::stderr();
    let is_file = |stat: rustix::fs::Stat| {
        rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile
    };
    if rustix::fs::fstat(log).is_ok_and(is_file) {
        let write = AccessFs::WriteFile | AccessFs::Truncate;
        ruleset = ruleset
            .add_rule(PathBeneath::new(log, write))
            .map_err(|error| words(&error))?;
    }
    let status = ruleset.restrict_self().map_err(|error| words(&error))?;
    match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, _) => Err("the kernel has no Landlock".to_owned()),
        (RulesetStatus::PartiallyEnforced, LandlockStatus::Available { effective_abi, .. }) => {
            Ok(format!("landlock {} (in part)", effective_abi as i32))
        }
        (_, LandlockStatus::Available { effective_abi, .. }) => {
            Ok(format!("landlock {}", effective_abi as i32))
        }
        _ => Ok("landlock".to_owned()),
    }
}

/// Installs the filter. With it comes the listener for what the launcher decides; none: the kernel
/// gives none, and such calls fail.
fn seccomp(policy: &Policy) -> Result<Option<OwnedFd>, String> {
    let words = |error: &dyn std::fmt::Display| format!("seccomp: {error}");
    let listening = calls::filter(policy.network, true)?;
    match broker::install(&listening, true) {
        Ok(listener) => return Ok(listener),
        Err(error) if policy.mode == Mode::Required => {
            return Err(format!(
                "seccomp: {error}; expected a kernel with user notification (Linux 5.9), and no filter with a listener around this process"
            ));
        }
        Err(_) => {}
    }
    let silent = calls::filter(policy.network, false)?;
    broker::install(&silent, false).map_err(|error| words(&error))
}
