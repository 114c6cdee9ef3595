//! What is closed to a program in the fence, from the inside: applied by the process that is about
//! to become that program; and whom its launcher can signal.
//!
//! Three layers, because none is enough. Landlock says which files there are, and hides everything
//! outside from signals and from being looked into; but it knows nothing of UDP, and not all ways
//! of TCP. Seccomp closes whole kinds of system calls, but cannot look at paths. Limits bound what
//! is left.
//!
//! The list of system calls is of what is refused, not of what is allowed: a program that cannot
//! be run in the fence is of no use to anybody, and all calls that are newer than this list are
//! unknown to it and refused. Must not open anything that the policy does not name.

use std::collections::BTreeMap;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus,
    PathBeneath, PathFd, RestrictionStatus, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope,
};
use rustix::process::{Pid, Resource, Rlimit, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter, sock_filter,
};

use super::{Mode, Policy};

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

/// Applies all of it to this process, which must have one thread. Gives back what is enforced, or
/// why the program must not begin, in words.
pub(super) fn apply(policy: &Policy) -> Result<String, String> {
    let mut enforced = Vec::new();
    drop_capabilities()?;
    rustix::thread::set_no_new_privs(true)
        .map_err(|error| format!("cannot give up new privileges: {error}"))?;
    enforced.push("no new privileges".to_owned());
    limits(policy)?;
    enforced.push("limits".to_owned());
    match landlock(policy) {
        Ok(words) => enforced.push(words),
        Err(why) if policy.mode == Mode::Required => {
            return Err(format!(
                "the sandbox is required, and cannot be had: {why}; expected {LEAST_WORDS}"
            ));
        }
        Err(why) => enforced.push(format!("no landlock ({why})")),
    }
    match seccomp(policy.network) {
        Ok(()) => enforced.extend(["seccomp".to_owned(), network(policy.network).to_owned()]),
        Err(why) if policy.mode == Mode::Required => {
            return Err(format!("the sandbox is required, and cannot be had: {why}"));
        }
        Err(why) => enforced.push(format!("no seccomp ({why})")),
    }
    Ok(enforced.join(", "))
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

/// Who is root is so without any of its powers.
fn drop_capabilities() -> Result<(), String> {
    use rustix::thread::{
        CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities,
    };
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    for capability in CapabilitySet::all().iter() {
        // Those that the kernel does not know are none.
        let _ = remove_capability_from_bounding_set(capability);
    }
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).map_err(|error| format!("cannot give up root's powers: {error}"))
}

fn limits(policy: &Policy) -> Result<(), String> {
    let limits = &policy.limits;
    for (resource, most) in [
        (Resource::As, limits.memory),
        (Resource::Cpu, limits.cpu),
        (Resource::Nofile, limits.open_files),
        (Resource::Fsize, limits.file),
        (Resource::Core, 0),
        (Resource::Memlock, 64 * 1024),
        (Resource::Msgqueue, 0),
    ] {
        let before = rustix::process::getrlimit(resource).maximum;
        let most = before.map_or(most, |before| before.min(most));
        limit(resource, most, most)?;
    }
    Ok(())
}

pub(super) fn limit(resource: Resource, current: u64, maximum: u64) -> Result<(), String> {
    let limit = Rlimit {
        current: Some(current),
        maximum: Some(maximum),
    };
    setrlimit(resource, limit)
        .map_err(|error| format!("cannot set a limit ({resource:?}): {error}"))
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
    let own = policy.readable.iter().map(|path| (path.as_path(), read));
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

/// The newest system call that this list knows. All architectures count alike from 424 on.
const NEWEST: u32 = 466;

/// Refused whatever the arguments are.
fn refused() -> Vec<libc::c_long> {
    let mut calls = vec![
        // namespaces, and whatever else makes another view of the system
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_chroot,
        libc::SYS_pivot_root,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_open_tree,
        libc::SYS_move_mount,
        libc::SYS_fsopen,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_fspick,
        libc::SYS_mount_setattr,
        libc::SYS_swapon,
        libc::SYS_swapoff,
        // other processes
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_process_madvise,
        libc::SYS_process_mrelease,
        libc::SYS_pidfd_getfd,
        libc::SYS_kcmp,
        libc::SYS_move_pages,
        libc::SYS_migrate_pages,
        // large parts of the kernel that few need, and that have been broken into often
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_fanotify_init,
        libc::SYS_fanotify_mark,
        libc::SYS_name_to_handle_at,
        libc::SYS_open_by_handle_at,
        libc::SYS_quotactl,
        libc::SYS_lookup_dcookie,
        libc::SYS_nfsservctl,
        libc::SYS_syslog,
        libc::SYS_vhangup,
        libc::SYS_acct,
        // the kernel itself
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_kexec_load,
        libc::SYS_reboot,
        libc::SYS_settimeofday,
        libc::SYS_clock_settime,
        libc::SYS_clock_adjtime,
        libc::SYS_adjtimex,
        libc::SYS_sethostname,
        libc::SYS_setdomainname,
        // memory that no folder holds and no process owns, and that others can find by a number
        libc::SYS_memfd_create,
        libc::SYS_shmget,
        libc::SYS_shmat,
        libc::SYS_shmctl,
        libc::SYS_semget,
        libc::SYS_semctl,
        libc::SYS_semop,
        libc::SYS_semtimedop,
        libc::SYS_msgget,
        libc::SYS_msgctl,
        libc::SYS_msgrcv,
        libc::SYS_msgsnd,
        libc::SYS_mq_open,
        libc::SYS_mq_unlink,
    ];
    // Numbers that libc does not name everywhere: quotactl_fd, memfd_secret.
    calls.extend([443, 447]);
    #[cfg(target_arch = "x86_64")]
    calls.extend([
        libc::SYS_iopl,
        libc::SYS_ioperm,
        libc::SYS_modify_ldt,
        libc::SYS_uselib,
        libc::SYS_ustat,
        libc::SYS_sysfs,
        libc::SYS__sysctl,
        libc::SYS_kexec_file_load,
    ]);
    #[cfg(target_arch = "aarch64")]
    calls.extend([libc::SYS_kexec_file_load]);
    calls
}

/// Said to be unknown, so that libraries go another way: clone3 has its flags in memory, where a
/// filter cannot see them.
fn unknown() -> [libc::c_long; 4] {
    [
        libc::SYS_clone3,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
    ]
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn is(
    argument: u8,
    operator: SeccompCmpOp,
    value: i32,
) -> Result<SeccompCondition, seccompiler::Error> {
    let value = u64::from(value.unsigned_abs());
    Ok(SeccompCondition::new(
        argument,
        SeccompCmpArgLen::Dword,
        operator,
        value,
    )?)
}

/// Refuses sockets of all kinds but these.
fn kinds_but(allowed: &[i32]) -> Result<Vec<SeccompRule>, seccompiler::Error> {
    // Its lowest four bits; above them are flags.
    let others = (0..16).filter(|kind| !allowed.contains(kind));
    others
        .map(|kind| {
            Ok(SeccompRule::new(vec![is(
                1,
                SeccompCmpOp::MaskedEq(0xf),
                kind,
            )?])?)
        })
        .collect()
}

/// Refuses by the arguments.
fn conditions(network: bool) -> Result<Rules, seccompiler::Error> {
    let mut rules = Rules::new();
    let namespaces = [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWCGROUP,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
    ];
    let mut clone = Vec::new();
    for flag in namespaces {
        let mask = SeccompCmpOp::MaskedEq(u64::from(flag.unsigned_abs()));
        clone.push(SeccompRule::new(vec![is(0, mask, flag)?])?);
    }
    // All threads of a process have the files that one of them has: whoever counts looks at one.
    let apart = SeccompCmpOp::MaskedEq(u64::from(
        (libc::CLONE_THREAD | libc::CLONE_FILES).unsigned_abs(),
    ));
    let apart = is(0, apart, libc::CLONE_THREAD)?;
    clone.push(SeccompRule::new(vec![apart])?);
    rules.insert(libc::SYS_clone, clone);
    let unshare = libc::CLOSE_RANGE_UNSHARE.cast_signed();
    let unshare = is(
        2,
        SeccompCmpOp::MaskedEq(u64::from(unshare.unsigned_abs())),
        unshare,
    )?;
    rules.insert(
        libc::SYS_close_range,
        vec![SeccompRule::new(vec![unshare])?],
    );
    // Words into somebody's terminal.
    let mut terminal = Vec::new();
    for request in [0x5412, 0x541C] {
        terminal.push(SeccompRule::new(vec![is(1, SeccompCmpOp::Eq, request)?])?);
    }
    rules.insert(libc::SYS_ioctl, terminal);
    // Pairs are for talking among themselves. A socket of the same kind could be connected to
    // whoever listens on a path (a container engine, our own), which Landlock sees from Linux
    // 7.1 on only; so there are none.
    // One of datagrams is not bound to its other end: it could send to such a path too.
    let family = vec![is(0, SeccompCmpOp::Ne, libc::AF_UNIX)?];
    let mut pair = vec![SeccompRule::new(family)?];
    pair.extend(kinds_but(&[libc::SOCK_STREAM, libc::SOCK_SEQPACKET])?);
    rules.insert(libc::SYS_socketpair, pair);
    // Whose memory is closed to others, so are its files, and they could not be counted.
    let hide = vec![
        is(0, SeccompCmpOp::Eq, libc::PR_SET_DUMPABLE)?,
        is(1, SeccompCmpOp::Eq, 0)?,
    ];
    rules.insert(libc::SYS_prctl, vec![SeccompRule::new(hide)?]);
    if !network {
        rules.insert(libc::SYS_socket, Vec::new());
        return Ok(rules);
    }
    let mut socket = vec![SeccompRule::new(vec![
        is(0, SeccompCmpOp::Ne, libc::AF_INET)?,
        is(0, SeccompCmpOp::Ne, libc::AF_INET6)?,
    ])?];
    socket.extend(kinds_but(&[libc::SOCK_STREAM, libc::SOCK_DGRAM])?);
    socket.push(SeccompRule::new(vec![
        is(2, SeccompCmpOp::Ne, 0)?,
        is(2, SeccompCmpOp::Ne, libc::IPPROTO_TCP)?,
        is(2, SeccompCmpOp::Ne, libc::IPPROTO_UDP)?,
    ])?);
    rules.insert(libc::SYS_socket, socket);
    Ok(rules)
}

fn seccomp(network: bool) -> Result<(), String> {
    apply_filter(&filter(network)?).map_err(words)
}

fn words(error: impl std::fmt::Display) -> String {
    format!("seccomp: {error}")
}

fn filter(network: bool) -> Result<BpfProgram, String> {
    let calls = refused().into_iter().map(|call| (call, Vec::new()));
    let mut rules: Rules = calls.collect();
    rules.extend(conditions(network).map_err(words)?);
    program(rules)
}

/// What is on the list is refused.
fn refusing(rules: Rules) -> Result<BpfProgram, seccompiler::Error> {
    let arch = std::env::consts::ARCH.try_into()?;
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch)?;
    Ok(filter.try_into()?)
}

/// The filter: what is newer than the list, or is said to be unknown, is so; what is on the list is
/// refused. One filter and not two: the kernel translates each anew for each process.
fn program(rules: Rules) -> Result<BpfProgram, String> {
    let rest = refusing(rules).map_err(words)?;
    let step = |code: u32, jt: u8, jf: u8, k: u32| sock_filter {
        code: u16::try_from(code).unwrap_or_default(),
        jt,
        jf,
        k,
    };
    let mut program = vec![step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0)];
    // Also the second set of numbers that x86 has for its x32 programs: they are above.
    let mut checks = vec![(libc::BPF_JGT, NEWEST)];
    for call in unknown() {
        // Whatever has no room fails: a jump of nothing would be a hole.
        checks.push((libc::BPF_JEQ, u32::try_from(call).map_err(words)?));
    }
    let mut left = checks.len();
    for (how, number) in checks {
        left -= 1;
        // Over those that are left to the answer behind them; from the last one, over that.
        let found = u8::try_from(left).map_err(words)?;
        let code = libc::BPF_JMP | how | libc::BPF_K;
        program.push(step(code, found, u8::from(left == 0), number));
    }
    let answer = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
    program.push(step(libc::BPF_RET | libc::BPF_K, 0, 0, answer));
    program.extend(rest);
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_arch = "x86_64")]
    const ARCHITECTURE: u32 = 0xC000_003E;
    #[cfg(target_arch = "aarch64")]
    const ARCHITECTURE: u32 = 0xC000_00B7;

    const ALLOWED: u32 = libc::SECCOMP_RET_ALLOW;
    const REFUSED: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs();
    const UNKNOWN: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();

    /// What the kernel would answer to a call with these arguments: it knows calls that this machine's
    /// own kernel does not.
    fn answer(program: &[sock_filter], call: u32, arguments: &[i32]) -> u32 {
        // `struct seccomp_data`: the number, the architecture, where it was called, the arguments.
        let mut data = vec![call, ARCHITECTURE, 0, 0];
        for argument in arguments {
            data.extend([argument.cast_unsigned(), 0]);
        }
        data.resize(16, 0);
        let (mut at, mut value) = (0, 0);
        for _ in 0..=program.len() {
            let step = &program[at];
            at += 1;
            let code = u32::from(step.code);
            match code & 0x07 {
                libc::BPF_LD => value = data[step.k as usize / 4],
                libc::BPF_ALU if code & 0xf0 == libc::BPF_AND => value &= step.k,
                libc::BPF_RET => return step.k,
                libc::BPF_JMP => {
                    let holds = match code & 0xf0 {
                        libc::BPF_JA => {
                            at += step.k as usize;
                            continue;
                        }
                        libc::BPF_JEQ => value == step.k,
                        libc::BPF_JGT => value > step.k,
                        libc::BPF_JGE => value >= step.k,
                        libc::BPF_JSET => value & step.k != 0,
                        other => panic!("jump {other:#x}"),
                    };
                    at += usize::from(if holds { step.jt } else { step.jf });
                }
                other => panic!("instruction {other:#x}"),
            }
        }
        panic!("a filter without an end");
    }

    #[test]
    fn what_is_newer_than_the_list_is_unknown() {
        let filter = filter(true).unwrap();
        for call in [
            NEWEST + 1,
            NEWEST + 100,
            0x4000_0000,
            0x4000_0000 + 1,
            u32::MAX,
        ] {
            assert_eq!(answer(&filter, call, &[]), UNKNOWN, "{call:#x}");
        }
        for call in unknown() {
            let call = u32::try_from(call).unwrap();
            assert_eq!(answer(&filter, call, &[]), UNKNOWN, "{call}");
        }
        let newest = answer(&filter, NEWEST, &[]);
        assert_eq!(newest, ALLOWED);
    }

    /// One by one, as each of them is closed by another layer too, on some kernels.
    #[test]
    fn what_reaches_out_is_refused_and_what_programs_need_is_not() {
        let (open, closed) = (filter(true).unwrap(), filter(false).unwrap());
        let (inet, local) = (libc::AF_INET, libc::AF_UNIX);
        let (stream, raw) = (libc::SOCK_STREAM, libc::SOCK_RAW);
        let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let threads = libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_THREAD;
        for (call, arguments, wanted) in [
            (libc::SYS_read, &[0][..], [ALLOWED; 2]),
            (libc::SYS_openat, &[0], [ALLOWED; 2]),
            (libc::SYS_execve, &[0], [ALLOWED; 2]),
            (libc::SYS_kill, &[0], [ALLOWED; 2]),
            (libc::SYS_ptrace, &[16], [REFUSED; 2]),
            (libc::SYS_process_vm_readv, &[], [REFUSED; 2]),
            (libc::SYS_process_vm_writev, &[], [REFUSED; 2]),
            (libc::SYS_pidfd_getfd, &[], [REFUSED; 2]),
            (libc::SYS_kcmp, &[], [REFUSED; 2]),
            (libc::SYS_unshare, &[libc::CLONE_NEWUSER], [REFUSED; 2]),
            (libc::SYS_setns, &[], [REFUSED; 2]),
            (libc::SYS_mount, &[], [REFUSED; 2]),
            (libc::SYS_bpf, &[], [REFUSED; 2]),
            (libc::SYS_keyctl, &[], [REFUSED; 2]),
            (libc::SYS_memfd_create, &[], [REFUSED; 2]),
            (libc::SYS_shmget, &[], [REFUSED; 2]),
            (libc::SYS_mq_open, &[], [REFUSED; 2]),
            (libc::SYS_clone, &[threads], [ALLOWED; 2]),
            (libc::SYS_clone, &[libc::SIGCHLD], [ALLOWED; 2]),
            (libc::SYS_clone, &[libc::CLONE_NEWUSER], [REFUSED; 2]),
            (
                libc::SYS_clone,
                &[threads | libc::CLONE_NEWPID],
                [REFUSED; 2],
            ),
            (
                libc::SYS_clone,
                &[threads & !libc::CLONE_FILES],
                [REFUSED; 2],
            ),
            (libc::SYS_close_range, &[3, -1, 4], [ALLOWED; 2]),
            (libc::SYS_close_range, &[3, -1, 6], [REFUSED; 2]),
            (libc::SYS_prctl, &[libc::PR_SET_DUMPABLE, 1], [ALLOWED; 2]),
            (libc::SYS_prctl, &[libc::PR_SET_DUMPABLE, 0], [REFUSED; 2]),
            (libc::SYS_prctl, &[libc::PR_SET_NAME, 0], [ALLOWED; 2]),
            (libc::SYS_ioctl, &[0, 0x5413], [ALLOWED; 2]),
            (libc::SYS_ioctl, &[0, 0x5412], [REFUSED; 2]),
            (libc::SYS_socketpair, &[local, stream], [ALLOWED; 2]),
            (
                libc::SYS_socketpair,
                &[local, libc::SOCK_SEQPACKET | flags],
                [ALLOWED; 2],
            ),
            (
                libc::SYS_socketpair,
                &[local, libc::SOCK_DGRAM | flags],
                [REFUSED; 2],
            ),
            (libc::SYS_socketpair, &[inet, stream], [REFUSED; 2]),
            (
                libc::SYS_socket,
                &[inet, stream | flags, 0],
                [ALLOWED, REFUSED],
            ),
            (
                libc::SYS_socket,
                &[libc::AF_INET6, libc::SOCK_DGRAM, 17],
                [ALLOWED, REFUSED],
            ),
            (libc::SYS_socket, &[inet, stream, 132], [REFUSED; 2]),
            (libc::SYS_socket, &[inet, raw | flags, 0], [REFUSED; 2]),
            (libc::SYS_socket, &[local, stream, 0], [REFUSED; 2]),
            (libc::SYS_socket, &[libc::AF_NETLINK, raw, 0], [REFUSED; 2]),
        ] {
            let call = u32::try_from(call).unwrap();
            let found = [&open, &closed].map(|filter| answer(filter, call, arguments));
            assert_eq!(found, wanted, "call {call} with {arguments:?}");
        }
    }
}
