//! The table of system calls, and the seccomp filter that is generated from it.
//!
//! The criterion: whatever takes a path, a process number or a global name, and is not decided by
//! Landlock, is refused here or decided by the launcher ([`Answer::Ask`], see `broker.rs`). Each
//! entry names its reason. All calls up to [`NEWEST`] were read; those without an entry act on the
//! caller's own memory, descriptors and children, or are decided by Landlock. Calls that are newer
//! than this table are unknown to it and answered with ENOSYS: a filter must not let them through.
//!
//! The filter is a binary search over ranges of numbers: the kernel runs a filter once for each
//! number when it is installed, and again for each call, so a list that is read from the start
//! would cost more than all else here.

use std::collections::BTreeMap;

use libc::{c_long, sock_filter};

/// The newest system call that this table knows. All architectures count alike from 424 on.
pub(super) const NEWEST: u32 = 466;

#[cfg(target_arch = "x86_64")]
pub(super) const ARCHITECTURE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
pub(super) const ARCHITECTURE: u32 = 0xC000_00B7;

/// Calls that libc does not name on all architectures.
pub(super) const FCHMODAT2: c_long = 452;
const STATMOUNT: c_long = 457;
const LISTMOUNT: c_long = 458;
const LSM_SET_SELF_ATTR: c_long = 460;
const SETXATTRAT: c_long = 463;
const GETXATTRAT: c_long = 464;
const LISTXATTRAT: c_long = 465;
const REMOVEXATTRAT: c_long = 466;
const QUOTACTL_FD: c_long = 443;
const MEMFD_SECRET: c_long = 447;
#[cfg(target_arch = "x86_64")]
const SETRLIMIT: c_long = libc::SYS_setrlimit;
#[cfg(target_arch = "aarch64")]
const SETRLIMIT: c_long = 164;

/// What the kernel answers to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The call is made.
    Allow,
    /// The call fails with this number. Of 0 the caller believes that it was made.
    Errno(i32),
    /// The launcher decides. Without a listener it fails with EPERM.
    Ask,
}

const PERM: Answer = Answer::Errno(libc::EPERM);
const NOSYS: Answer = Answer::Errno(libc::ENOSYS);
/// What a file system without extended attributes answers: `cp -p`, `ls -l` and `tar` accept it.
const NO_XATTRS: Answer = Answer::Errno(libc::EOPNOTSUPP);
/// What a file without that request answers.
const NO_REQUEST: Answer = Answer::Errno(libc::ENOTTY);

/// Answers that do not depend on arguments, with their reasons.
const FLAT: &[(&str, Answer, &[c_long])] = &[
    (
        "another view of the system: namespaces and mounts",
        PERM,
        &[
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
        ],
    ),
    (
        "names the mounts of the machine",
        NOSYS,
        &[STATMOUNT, LISTMOUNT],
    ),
    (
        "memory, descriptors and state of other processes",
        PERM,
        &[
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_process_madvise,
            libc::SYS_process_mrelease,
            libc::SYS_pidfd_getfd,
            libc::SYS_kcmp,
            libc::SYS_move_pages,
            libc::SYS_migrate_pages,
        ],
    ),
    (
        "a large part of the kernel that few need, and that has had many holes",
        PERM,
        &[
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_lookup_dcookie,
            libc::SYS_nfsservctl,
            libc::SYS_syslog,
            libc::SYS_vhangup,
            libc::SYS_acct,
            libc::SYS_quotactl,
            QUOTACTL_FD,
            LSM_SET_SELF_ATTR,
        ],
    ),
    (
        "opens files by numbers, past all directories",
        PERM,
        &[libc::SYS_name_to_handle_at, libc::SYS_open_by_handle_at],
    ),
    (
        "reports what others do in directories that cannot be read",
        PERM,
        &[
            libc::SYS_inotify_add_watch,
            libc::SYS_fanotify_init,
            libc::SYS_fanotify_mark,
        ],
    ),
    (
        "an inotify that can watch nothing; libraries poll instead",
        NOSYS,
        &[
            libc::SYS_inotify_init1,
            #[cfg(target_arch = "x86_64")]
            libc::SYS_inotify_init,
        ],
    ),
    (
        "the owner of a file; Landlock has no right for it",
        PERM,
        &[
            libc::SYS_fchown,
            libc::SYS_fchownat,
            #[cfg(target_arch = "x86_64")]
            libc::SYS_chown,
            #[cfg(target_arch = "x86_64")]
            libc::SYS_lchown,
        ],
    ),
    (
        "extended attributes; Landlock has no right for them",
        NO_XATTRS,
        &[
            libc::SYS_setxattr,
            libc::SYS_lsetxattr,
            libc::SYS_fsetxattr,
            libc::SYS_getxattr,
            libc::SYS_lgetxattr,
            libc::SYS_fgetxattr,
            libc::SYS_listxattr,
            libc::SYS_llistxattr,
            libc::SYS_flistxattr,
            libc::SYS_removexattr,
            libc::SYS_lremovexattr,
            libc::SYS_fremovexattr,
            SETXATTRAT,
            GETXATTRAT,
            LISTXATTRAT,
            REMOVEXATTRAT,
        ],
    ),
    (
        "the machine itself",
        PERM,
        &[
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_delete_module,
            libc::SYS_kexec_load,
            libc::SYS_kexec_file_load,
            libc::SYS_reboot,
            libc::SYS_settimeofday,
            libc::SYS_clock_settime,
            libc::SYS_clock_adjtime,
            libc::SYS_adjtimex,
            libc::SYS_sethostname,
            libc::SYS_setdomainname,
            #[cfg(target_arch = "x86_64")]
            libc::SYS_iopl,
            #[cfg(target_arch = "x86_64")]
            libc::SYS_ioperm,
            #[cfg(target_arch = "x86_64")]
            libc::SYS_modify_ldt,
            #[cfg(target_arch = "x86_64")]
            libc::SYS_uselib,
            #[cfg(target_arch = "x86_64")]
            libc::SYS_ustat,
            #[cfg(target_arch = "x86_64")]
            libc::SYS_sysfs,
            #[cfg(target_arch = "x86_64")]
            libc::SYS__sysctl,
        ],
    ),
    (
        "memory that no directory holds and no process owns, found by others by a number or a name",
        PERM,
        &[
            libc::SYS_memfd_create,
            MEMFD_SECRET,
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
        ],
    ),
    (
        "has flags or a mode in memory, which no filter sees; libraries use the older call",
        NOSYS,
        &[libc::SYS_clone3, libc::SYS_openat2],
    ),
    (
        "makes system calls that no filter sees",
        NOSYS,
        &[
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_io_uring_register,
        ],
    ),
    (
        "the kernel counts these for the whole machine, and one process could take all",
        NOSYS,
        &[libc::SYS_io_setup],
    ),
    (
        "times of a file; Landlock has no right for them",
        Answer::Ask,
        &[
            libc::SYS_utimensat,
            #[cfg(target_arch = "x86_64")]
            libc::SYS_utime,
            #[cfg(target_arch = "x86_64")]
            libc::SYS_utimes,
            #[cfg(target_arch = "x86_64")]
            libc::SYS_futimesat,
        ],
    ),
];

/// A test of one half of one argument: `(half & mask) == value`, or its opposite.
#[derive(Clone, Copy, Debug)]
struct Condition {
    argument: u8,
    high: bool,
    mask: u32,
    value: u32,
    equal: bool,
}

/// The lower half of an argument, of which the kernel reads no more.
const fn is(argument: u8, value: i32) -> Condition {
    masked(argument, u32::MAX, value.cast_unsigned())
}

const fn not(condition: Condition) -> Condition {
    Condition {
        equal: !condition.equal,
        ..condition
    }
}

const fn masked(argument: u8, mask: u32, value: u32) -> Condition {
    Condition {
        argument,
        high: false,
        mask,
        value,
        equal: true,
    }
}

/// All of these bits are set.
const fn all_of(argument: u8, bits: u32) -> Condition {
    masked(argument, bits, bits)
}

/// One of these bits is set.
const fn one_of(argument: u8, bits: u32) -> Condition {
    not(masked(argument, bits, 0))
}

/// The upper half is zero.
const fn high_is_zero(argument: u8) -> Condition {
    Condition {
        high: true,
        ..is(argument, 0)
    }
}

type Rule = (Vec<Condition>, Answer);

/// Answers that depend on arguments: the first rule whose conditions all hold, else `otherwise`.
#[derive(Clone, Debug)]
struct Entry {
    /// For who reads the table, and for the golden file.
    #[cfg_attr(not(test), expect(dead_code))]
    reason: &'static str,
    rules: Vec<Rule>,
    otherwise: Answer,
}

/// Set-user-ID and set-group-ID.
pub(super) const SET_ID: u32 = 0o6000;

fn modes(table: &mut BTreeMap<c_long, Entry>) {
    // Of mkdir the kernel takes neither bit.
    let of_new = |flags: Option<u8>, mode: u8| -> Vec<Rule> {
        let set_id = one_of(mode, SET_ID);
        let Some(flags) = flags else {
            return vec![(vec![set_id], PERM)];
        };
        // Without these the argument is not read, and may be anything.
        let makes = [libc::O_CREAT, libc::O_TMPFILE & !libc::O_DIRECTORY];
        let makes = makes.map(|flag| one_of(flags, flag.cast_unsigned()));
        makes.map(|makes| (vec![makes, set_id], PERM)).to_vec()
    };
    let mut makes = vec![(libc::SYS_openat, Some(2), 3), (libc::SYS_mknodat, None, 2)];
    #[cfg(target_arch = "x86_64")]
    makes.extend([
        (libc::SYS_open, Some(1), 2),
        (libc::SYS_creat, None, 1),
        (libc::SYS_mknod, None, 1),
    ]);
    for (call, flags, mode) in makes {
        let entry = Entry {
            reason: "set-user-ID and set-group-ID: another user's rights for whoever runs the file",
            rules: of_new(flags, mode),
            otherwise: Answer::Allow,
        };
        table.insert(call, entry);
    }
    let mut changes = vec![
        (libc::SYS_fchmod, 1),
        (libc::SYS_fchmodat, 2),
        (FCHMODAT2, 2),
    ];
    #[cfg(target_arch = "x86_64")]
    changes.push((libc::SYS_chmod, 1));
    for (call, mode) in changes {
        let entry = Entry {
            reason: "mode of a file; Landlock has no right for it",
            rules: of_new(None, mode),
            otherwise: Answer::Ask,
        };
        table.insert(call, entry);
    }
}

fn processes(table: &mut BTreeMap<c_long, Entry>) {
    let own = |argument: u8| (vec![is(argument, 0)], Answer::Allow);
    for call in [
        libc::SYS_sched_getaffinity,
        libc::SYS_sched_getscheduler,
        libc::SYS_sched_getparam,
        libc::SYS_sched_getattr,
        libc::SYS_sched_rr_get_interval,
        libc::SYS_getpgid,
        libc::SYS_getsid,
    ] {
        let entry = Entry {
            reason: "asks about a process by its number",
            rules: vec![own(0)],
            otherwise: Answer::Ask,
        };
        table.insert(call, entry);
    }
    for call in [
        libc::SYS_sched_setaffinity,
        libc::SYS_sched_setscheduler,
        libc::SYS_sched_setparam,
        libc::SYS_sched_setattr,
    ] {
        let entry = Entry {
            reason: "changes a process by its number",
            rules: vec![own(0)],
            otherwise: Answer::Ask,
        };
        table.insert(call, entry);
    }
    // PRIO_PROCESS and IOPRIO_WHO_PROCESS; the next number is a process group. The session is the
    // node's own, so its groups are too.
    for (call, process) in [
        (libc::SYS_getpriority, 0),
        (libc::SYS_setpriority, 0),
        (libc::SYS_ioprio_get, 1),
        (libc::SYS_ioprio_set, 1),
    ] {
        let entry = Entry {
            reason: "priority of a process by its number, of groups and of users",
            rules: vec![
                (vec![is(0, process), is(1, 0)], Answer::Allow),
                (vec![is(0, process + 1), is(1, 0)], Answer::Allow),
                (vec![is(0, process)], Answer::Ask),
            ],
            otherwise: PERM,
        };
        table.insert(call, entry);
    }
    // A limit of 1 keeps the kernel from handing a core to a handler that runs as root; a limit of
    // 0 does not (core(5)). There is no core either way, so scripts that set 0 have what they want.
    let core = is(1, libc::RLIMIT_CORE.cast_signed());
    let changes = [not(is(2, 0)), not(high_is_zero(2))];
    let mut limits: Vec<Rule> = Vec::new();
    for change in changes {
        let quiet = vec![core, change, is(3, 0), high_is_zero(3)];
        limits.push((quiet, Answer::Errno(0)));
        limits.push((vec![core, change], PERM));
    }
    limits.push(own(0));
    let limits = Entry {
        reason: "limits of a process by its number; the limit that keeps cores from their handler",
        rules: limits,
        otherwise: Answer::Ask,
    };
    table.insert(libc::SYS_prlimit64, limits);
    let core = Entry {
        reason: "the limit that keeps cores from their handler",
        rules: vec![(
            vec![is(0, libc::RLIMIT_CORE.cast_signed())],
            Answer::Errno(0),
        )],
        otherwise: Answer::Allow,
    };
    table.insert(SETRLIMIT, core);
    let robust = Entry {
        reason: "asks about a process by its number, and few need it",
        rules: vec![own(0)],
        otherwise: PERM,
    };
    table.insert(libc::SYS_get_robust_list, robust);
    // A clock below zero is a process's (its number's complement times eight), but for those whose
    // lowest bits are 3, which are a descriptor's. Number 0 is the caller.
    for call in [
        libc::SYS_clock_gettime,
        libc::SYS_clock_getres,
        libc::SYS_clock_nanosleep,
        libc::SYS_timer_create,
    ] {
        let entry = Entry {
            reason: "the processor time of a process by its number",
            rules: vec![
                (vec![masked(0, 1 << 31, 0)], Answer::Allow),
                (vec![masked(0, 7, 3)], Answer::Allow),
                (vec![masked(0, !7, !7)], Answer::Allow),
            ],
            otherwise: Answer::Ask,
        };
        table.insert(call, entry);
    }
}

fn own_process(table: &mut BTreeMap<c_long, Entry>) {
    let namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET;
    let thread = libc::CLONE_THREAD.cast_unsigned();
    let with_files = thread | libc::CLONE_FILES.cast_unsigned();
    let clone = Entry {
        reason: "namespaces; a thread with descriptors of its own, which could not be counted",
        rules: vec![
            (vec![one_of(0, namespaces.cast_unsigned())], PERM),
            (vec![masked(0, with_files, thread)], PERM),
        ],
        otherwise: Answer::Allow,
    };
    table.insert(libc::SYS_clone, clone);
    let close_range = Entry {
        reason: "descriptors of its own for a thread, which could not be counted",
        rules: vec![(vec![all_of(2, libc::CLOSE_RANGE_UNSHARE)], PERM)],
        otherwise: Answer::Allow,
    };
    table.insert(libc::SYS_close_range, close_range);
    let prctl = Entry {
        reason: "memory that is closed to others, whose files could not be counted",
        rules: vec![(vec![is(0, libc::PR_SET_DUMPABLE), is(1, 0)], PERM)],
        otherwise: Answer::Allow,
    };
    table.insert(libc::SYS_prctl, prctl);
}

/// Requests that are let through: those that only ask, or that need what is open for writing.
const REQUESTS: [u32; 10] = [
    0x0000_0002, // FIGETBSZ
    0x4004_9409, // FICLONE
    0x4020_940D, // FICLONERANGE
    0x8008_6601, // FS_IOC_GETFLAGS
    0x8004_6601, // FS_IOC32_GETFLAGS
    0x8008_7601, // FS_IOC_GETVERSION
    0x801C_581F, // FS_IOC_FSGETXATTR
    0xC020_660B, // FS_IOC_FIEMAP
    0x8008_6602, // FS_IOC_GETVERSION of ext
    0x8004_7601, // FS_IOC32_GETVERSION
];

fn descriptors(table: &mut BTreeMap<c_long, Entry>, network: bool) {
    // TIOCSTI, TIOCLINUX, TIOCCONS, TIOCSETD.
    let terminal = [0x5412, 0x541C, 0x541D, 0x5423].map(|it| (vec![is(1, it)], PERM));
    let mut requests = terminal.to_vec();
    // Terminals, and what every descriptor has (FIONREAD, FIONBIO, FIOCLEX); sockets.
    for kind in [0x5400, 0x8900] {
        requests.push((vec![masked(1, 0xFFFF_FF00, kind)], Answer::Allow));
    }
    let known = REQUESTS.map(|it| (vec![is(1, it.cast_signed())], Answer::Allow));
    requests.extend(known);
    let ioctl = Entry {
        reason: "words into a terminal; changes of a file through a descriptor that only reads",
        rules: requests,
        otherwise: NO_REQUEST,
    };
    table.insert(libc::SYS_ioctl, ioctl);
    // F_SETLEASE, F_NOTIFY, F_SET_RW_HINT, F_SET_FILE_RW_HINT, F_GETDELEG, F_SETDELEG.
    let fcntl = Entry {
        reason: "leases on, notices of and hints for files that can only be read",
        rules: [1024, 1026, 1036, 1038, 1039, 1040]
            .map(|command| (vec![is(1, command)], PERM))
            .to_vec(),
        otherwise: Answer::Allow,
    };
    table.insert(libc::SYS_fcntl, fcntl);
    // Pairs are for talking among themselves. A socket of the same kind could be connected to
    // whoever listens on a path (a container engine, our own), which Landlock sees from Linux 7.1
    // on only; so there are none. One of datagrams is not bound to its other end: it could send to
    // such a path too.
    let kind = |kind: i32| masked(1, 0xF, kind.cast_unsigned());
    let pair = Entry {
        reason: "sockets that reach others; connected pairs do not",
        rules: [libc::SOCK_STREAM, libc::SOCK_SEQPACKET]
            .map(|it| (vec![is(0, libc::AF_UNIX), kind(it)], Answer::Allow))
            .to_vec(),
        otherwise: PERM,
    };
    table.insert(libc::SYS_socketpair, pair);
    if !network {
        // Also a socket of a pair can be given a name, which others could then not take, and asked
        // for another end, which tells what listens where.
        for call in [
            libc::SYS_bind,
            libc::SYS_connect,
            libc::SYS_listen,
            libc::SYS_accept,
            libc::SYS_accept4,
        ] {
            let entry = Entry {
                reason: "names and other ends of sockets; a connected pair needs neither",
                rules: Vec::new(),
                otherwise: PERM,
            };
            table.insert(call, entry);
        }
    }
    let mut socket = Entry {
        reason: "sockets that reach others; with a network TCP and UDP do not count",
        rules: Vec::new(),
        otherwise: PERM,
    };
    if network {
        let families = vec![not(is(0, libc::AF_INET)), not(is(0, libc::AF_INET6))];
        let protocols = [0, libc::IPPROTO_TCP, libc::IPPROTO_UDP];
        let protocols = protocols.map(|it| not(is(2, it))).to_vec();
        socket.rules = vec![(families, PERM), (protocols, PERM)];
        let kinds = [libc::SOCK_STREAM, libc::SOCK_DGRAM];
        let kinds = kinds.map(|it| (vec![kind(it)], Answer::Allow));
        socket.rules.extend(kinds);
    }
    table.insert(libc::SYS_socket, socket);
}

fn table(network: bool) -> BTreeMap<c_long, Entry> {
    let mut table = BTreeMap::new();
    for (reason, answer, calls) in FLAT {
        for call in *calls {
            let entry = Entry {
                reason,
                rules: Vec::new(),
                otherwise: *answer,
            };
            table.insert(*call, entry);
        }
    }
    modes(&mut table);
    processes(&mut table);
    own_process(&mut table);
    descriptors(&mut table, network);
    table
}

const fn step(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter {
        // All codes are below 256.
        code: (code & 0xFFFF) as u16,
        jt,
        jf,
        k,
    }
}

/// What a filter does where the launcher is to decide.
fn returns(answer: Answer, listener: bool) -> sock_filter {
    let value = match answer {
        Answer::Allow => libc::SECCOMP_RET_ALLOW,
        Answer::Ask if listener => libc::SECCOMP_RET_USER_NOTIF,
        Answer::Ask => libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned(),
        Answer::Errno(number) => libc::SECCOMP_RET_ERRNO | number.cast_unsigned(),
    };
    step(libc::BPF_RET | libc::BPF_K, 0, 0, value)
}

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const fn jump(how: u32) -> u32 {
    libc::BPF_JMP | how | libc::BPF_K
}

/// The instructions of an entry; all ways through them end in an answer.
fn entry(of: &Entry, listener: bool) -> Result<Vec<sock_filter>, String> {
    let mut program = Vec::new();
    for (conditions, answer) in &of.rules {
        let mut rule = vec![returns(*answer, listener)];
        for condition in conditions.iter().rev() {
            let over = u8::try_from(rule.len()).map_err(|_| "a rule is too long".to_owned())?;
            let (jt, jf) = if condition.equal {
                (0, over)
            } else {
                (over, 0)
            };
            // `struct seccomp_data`: the arguments follow 16 bytes, each of 8; the lower half first.
            let place = 16 + 8 * u32::from(condition.argument) + 4 * u32::from(condition.high);
            let mut test = vec![step(LOAD, 0, 0, place)];
            if condition.mask != u32::MAX {
                let and = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
                test.push(step(and, 0, 0, condition.mask));
            }
            test.push(step(jump(libc::BPF_JEQ), jt, jf, condition.value));
            test.extend(rule);
            rule = test;
        }
        program.extend(rule);
    }
    program.push(returns(of.otherwise, listener));
    Ok(program)
}

/// A search for the last range that starts at or below the number.
fn search(ranges: &[(u32, Vec<sock_filter>)]) -> Vec<sock_filter> {
    let (low, high) = match ranges {
        [] => return vec![returns(NOSYS, false)],
        [(_, program)] => return program.clone(),
        _ => ranges.split_at(ranges.len() / 2),
    };
    let first = high.first().map_or(0, |(first, _)| *first);
    let (low, high) = (search(low), search(high));
    let mut program = Vec::new();
    if let Ok(over) = u8::try_from(low.len()) {
        program.push(step(jump(libc::BPF_JGE), over, 0, first));
    } else {
        // A conditional jump goes no further than 255.
        program.push(step(jump(libc::BPF_JGE), 0, 1, first));
        let over = u32::try_from(low.len()).unwrap_or(u32::MAX);
        program.push(step(libc::BPF_JMP | libc::BPF_JA, 0, 0, over));
    }
    program.extend(low);
    program.extend(high);
    program
}

/// The filter. Of another architecture's calls each ends the process. One filter and not several:
/// the kernel translates each of them for each process.
pub(super) fn filter(network: bool, listener: bool) -> Result<Vec<sock_filter>, String> {
    let mut ranges: Vec<(u32, Vec<sock_filter>)> = Vec::new();
    let same = |one: &[sock_filter], other: &[sock_filter]| {
        let key = |it: &sock_filter| (it.code, it.jt, it.jf, it.k);
        one.iter().map(key).eq(other.iter().map(key))
    };
    let mut add = |number: u32, program: Vec<sock_filter>| match ranges.last() {
        Some((_, last)) if same(last, &program) => {}
        _ => ranges.push((number, program)),
    };
    let table = table(network);
    for number in 0..=NEWEST {
        let program = match table.get(&c_long::from(number)) {
            Some(of) => entry(of, listener)?,
            None => vec![returns(Answer::Allow, listener)],
        };
        add(number, program);
    }
    // Also the second set of numbers that x86 has for its x32 programs: they are above.
    add(NEWEST + 1, vec![returns(NOSYS, listener)]);
    let kill = libc::SECCOMP_RET_KILL_PROCESS;
    let mut program = vec![
        step(LOAD, 0, 0, 4),
        step(jump(libc::BPF_JEQ), 1, 0, ARCHITECTURE),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, kill),
        step(LOAD, 0, 0, 0),
    ];
    program.extend(search(&ranges));
    Ok(program)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    const ALLOWED: u32 = libc::SECCOMP_RET_ALLOW;
    const ASKED: u32 = libc::SECCOMP_RET_USER_NOTIF;
    const REFUSED: u32 = error(libc::EPERM);
    const UNKNOWN: u32 = error(libc::ENOSYS);

    const fn error(number: i32) -> u32 {
        libc::SECCOMP_RET_ERRNO | number.cast_unsigned()
    }

    fn number(call: c_long) -> u32 {
        u32::try_from(call).unwrap()
    }

    /// What the kernel would answer to a call with these arguments: it knows calls that this machine's
    /// own kernel does not.
    fn answer(program: &[sock_filter], call: u32, arguments: &[i64]) -> u32 {
        answer_on(program, ARCHITECTURE, call, arguments)
    }

    fn answer_on(program: &[sock_filter], architecture: u32, call: u32, arguments: &[i64]) -> u32 {
        // `struct seccomp_data`: the number, the architecture, where it was called, the arguments.
        let mut data = vec![call, architecture, 0, 0];
        for argument in arguments {
            let argument = argument.cast_unsigned();
            data.extend(
                [argument & 0xFFFF_FFFF, argument >> 32].map(|half| u32::try_from(half).unwrap()),
            );
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
    fn call_newer_than_table_is_unknown() {
        let filter = filter(true, true).unwrap();
        for call in [
            NEWEST + 1,
            NEWEST + 100,
            0x4000_0000,
            0x4000_0000 + 1,
            u32::MAX,
        ] {
            assert_eq!(answer(&filter, call, &[]), UNKNOWN, "{call:#x}");
        }
    }

    #[test]
    fn call_of_another_architecture_ends_process() {
        let filter = filter(true, true).unwrap();
        assert_eq!(
            answer_on(&filter, 0x4000_0003, 20, &[]),
            libc::SECCOMP_RET_KILL_PROCESS
        );
    }

    /// Each entry holds for its number alone, and no way through a filter leaves it: the search is
    /// compared with the table.
    #[test]
    fn search_agrees_with_table_for_every_call() {
        for (network, listener) in [(true, true), (true, false), (false, true), (false, false)] {
            let filter = filter(network, listener).unwrap();
            let table = table(network);
            for call in 0..=NEWEST {
                for argument in [0_i64, 1, -1, 0o6755, 1 << 31] {
                    let all = [argument; 6];
                    let expected = table.get(&c_long::from(call)).map_or(Answer::Allow, |it| {
                        let holds = |condition: &Condition| {
                            let half = if condition.high {
                                argument >> 32
                            } else {
                                argument
                            };
                            let half = half.cast_unsigned() & 0xFFFF_FFFF;
                            let half = u32::try_from(half).unwrap() & condition.mask;
                            (half == condition.value) == condition.equal
                        };
                        let mut rules = it.rules.iter();
                        let rule = rules.find(|(all, _)| all.iter().all(holds));
                        rule.map_or(it.otherwise, |(_, answer)| *answer)
                    });
                    let expected = returns(expected, listener).k;
                    let found = answer(&filter, call, &all);
                    assert_eq!(found, expected, "{call} with {argument}");
                }
            }
        }
    }

    /// Without a listener nothing is let through that the launcher would have decided.
    #[test]
    fn asked_calls_without_listener_are_refused() {
        let (with, without) = (filter(true, true).unwrap(), filter(true, false).unwrap());
        let mut asked = 0;
        for call in 0..=NEWEST {
            for argument in [0, 1, 7, -1] {
                let arguments = [argument; 6];
                let found = answer(&without, call, &arguments);
                if answer(&with, call, &arguments) == ASKED {
                    asked += 1;
                    assert_eq!(found, REFUSED, "{call}");
                } else {
                    assert_eq!(found, answer(&with, call, &arguments), "{call}");
                }
            }
        }
        assert!(asked > 40, "{asked}");
    }

    #[test]
    fn arguments_decide_what_names_outsiders() {
        let filter = filter(false, true).unwrap();
        let core = i64::from(libc::RLIMIT_CORE);
        let creates = i64::from(libc::O_CREAT);
        let unnamed = i64::from(libc::O_TMPFILE);
        let pid_clock = |pid: i64| !pid << 3 | 2;
        let nothing_done = error(0);
        let cases: &[(c_long, &[i64], u32)] = &[
            (libc::SYS_fchmod, &[3, 0o755], ASKED),
            (libc::SYS_fchmod, &[3, 0o4755], REFUSED),
            (libc::SYS_fchmodat, &[-100, 1, 0o644], ASKED),
            (libc::SYS_fchmodat, &[-100, 1, 0o2644], REFUSED),
            (FCHMODAT2, &[-100, 1, 0o644, 0x100], ASKED),
            (FCHMODAT2, &[-100, 1, 0o6000, 0x100], REFUSED),
            (libc::SYS_utimensat, &[-100, 1, 0, 0], ASKED),
            (libc::SYS_openat, &[-100, 1, 0, 0o4000], ALLOWED),
            (libc::SYS_openat, &[-100, 1, creates, 0o644], ALLOWED),
            (libc::SYS_openat, &[-100, 1, creates, 0o4755], REFUSED),
            (libc::SYS_openat, &[-100, 1, unnamed, 0o2755], REFUSED),
            (libc::SYS_openat, &[-100, 1, 0o200_000, 0o2755], ALLOWED),
            (libc::SYS_mknodat, &[-100, 1, 0o100_644], ALLOWED),
            (libc::SYS_mknodat, &[-100, 1, 0o104_755], REFUSED),
            (libc::SYS_prlimit64, &[0, 7, 1 << 40], ALLOWED),
            (libc::SYS_prlimit64, &[77, 7, 0], ASKED),
            (libc::SYS_prlimit64, &[77, 7, 1 << 40], ASKED),
            (libc::SYS_prlimit64, &[0, core, 0, 1], ALLOWED),
            (libc::SYS_prlimit64, &[0, core, 1 << 40, 0], nothing_done),
            (libc::SYS_prlimit64, &[0, core, 1, 0], nothing_done),
            (libc::SYS_prlimit64, &[77, core, 1, 1 << 40], REFUSED),
            (SETRLIMIT, &[core, 1], nothing_done),
            (SETRLIMIT, &[7, 1], ALLOWED),
            (libc::SYS_sched_setaffinity, &[0, 8, 1], ALLOWED),
            (libc::SYS_sched_setaffinity, &[1 << 32, 8, 1], ALLOWED),
            (libc::SYS_sched_setaffinity, &[77, 8, 1], ASKED),
            (libc::SYS_sched_setscheduler, &[77], ASKED),
            (libc::SYS_sched_setparam, &[77], ASKED),
            (libc::SYS_sched_setattr, &[77], ASKED),
            (libc::SYS_sched_getattr, &[77], ASKED),
            (libc::SYS_setpriority, &[0, 0, 19], ALLOWED),
            (libc::SYS_setpriority, &[1, 0, 19], ALLOWED),
            (libc::SYS_setpriority, &[1, 77, 19], REFUSED),
            (libc::SYS_setpriority, &[2, 0, 19], REFUSED),
            (libc::SYS_setpriority, &[0, 77, 19], ASKED),
            (libc::SYS_ioprio_set, &[1, 0, 3], ALLOWED),
            (libc::SYS_ioprio_set, &[1, 77, 3], ASKED),
            (libc::SYS_ioprio_set, &[2, 77, 3], REFUSED),
            (libc::SYS_ioprio_set, &[3, 0, 3], REFUSED),
            (libc::SYS_get_robust_list, &[77], REFUSED),
            (libc::SYS_clock_gettime, &[1], ALLOWED),
            (libc::SYS_clock_gettime, &[pid_clock(0)], ALLOWED),
            (libc::SYS_clock_gettime, &[pid_clock(77)], ASKED),
            (libc::SYS_clock_gettime, &[!5 << 3 | 3], ALLOWED),
            (libc::SYS_ioctl, &[1, 0x5401], ALLOWED),
            (libc::SYS_ioctl, &[1, 0x541B], ALLOWED),
            (libc::SYS_ioctl, &[1, 0x4008_6602], error(libc::ENOTTY)),
            (libc::SYS_ioctl, &[1, 0x401C_5820], error(libc::ENOTTY)),
            (libc::SYS_ioctl, &[1, 0xC018_9436], error(libc::ENOTTY)),
            (libc::SYS_ioctl, &[1, 0x5412 | 1 << 32], REFUSED),
            (libc::SYS_fcntl, &[1, 3], ALLOWED),
            (libc::SYS_fcntl, &[1, 1024], REFUSED),
            (libc::SYS_fcntl, &[1, 1026], REFUSED),
            (libc::SYS_getxattr, &[], error(libc::EOPNOTSUPP)),
            (GETXATTRAT, &[], error(libc::EOPNOTSUPP)),
            (libc::SYS_openat2, &[], UNKNOWN),
            (libc::SYS_fchownat, &[], REFUSED),
            (libc::SYS_inotify_add_watch, &[], REFUSED),
        ];
        for (call, arguments, wanted) in cases {
            let found = answer(&filter, number(*call), arguments);
            assert_eq!(found, *wanted, "call {call} with {arguments:?}");
        }
    }

    /// The whole table, call by call, as it is read by people: what is answered where all arguments are
    /// 0, and where all are -1.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn table_is_the_golden_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/syscalls.golden");
        let golden = std::fs::read_to_string(path).unwrap();
        let (filter, table) = (filter(false, true).unwrap(), table(false));
        let errors = BTreeMap::from([
            (libc::EPERM, "EPERM"),
            (libc::ENOSYS, "ENOSYS"),
            (libc::EOPNOTSUPP, "EOPNOTSUPP"),
            (libc::ENOTTY, "ENOTTY"),
            (0, "nothing"),
        ]);
        let said = |call: u32, argument: i64| match answer(&filter, call, &[argument; 6]) {
            ALLOWED => "made",
            ASKED => "asked",
            other => errors[&(other & 0xFFFF).cast_signed()],
        };
        let mut last = None;
        let mut made = String::new();
        for line in golden.lines() {
            if line.starts_with('#') {
                writeln!(made, "{line}").unwrap();
                continue;
            }
            let mut words = line.split_whitespace();
            let (call, name) = (words.next().unwrap(), words.next().unwrap());
            let call: u32 = call.parse().unwrap();
            // Numbers from 335 to 423 are not used, but for two.
            let follows = last.map_or(call == 0, |last| {
                last + 1 == call || (334..424).contains(&last)
            });
            assert!(follows, "a call is missing before {call}");
            last = Some(call);
            let reason = match table.get(&c_long::from(call)) {
                Some(entry) => entry.reason,
                None if call > NEWEST => "newer than the table",
                None => "",
            };
            let (zero, ones) = (said(call, 0), said(call, -1));
            let line = format!("{call:3} {name:24} {zero:10} {ones:10} {reason}");
            writeln!(made, "{}", line.trim_end()).unwrap();
        }
        assert!(last >= Some(NEWEST));
        if std::env::var_os("APSCLI_GOLDEN").is_some_and(|it| it == "write") {
            return std::fs::write(path, &made).unwrap();
        }
        for (made, golden) in made.lines().zip(golden.lines()) {
            assert_eq!(made, golden, "APSCLI_GOLDEN=write writes it");
        }
    }

    /// One by one, as each of them is closed by another layer too, on some kernels.
    #[test]
    fn what_reaches_out_is_refused_and_what_programs_need_is_not() {
        let (open, closed) = (filter(true, true).unwrap(), filter(false, true).unwrap());
        let (inet, local) = (libc::AF_INET, libc::AF_UNIX);
        let (stream, raw) = (libc::SOCK_STREAM, libc::SOCK_RAW);
        let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let threads = libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_THREAD;
        for (call, arguments, wanted) in [
            (libc::SYS_read, &[0][..], [ALLOWED; 2]),
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
            let arguments: Vec<i64> = arguments.iter().map(|it: &i32| i64::from(*it)).collect();
            let found = [&open, &closed].map(|filter| answer(filter, number(call), &arguments));
            assert_eq!(found, wanted, "call {call} with {arguments:?}");
        }
    }
}
