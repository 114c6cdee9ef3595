//! Starting a process, and a guard that ends what a killed apscli leaves behind.
//!
//! Why our own and not `std::process`: the parent-death signal must be set between fork and
//! exec, and std then forks the whole address space, which costs a fifth more per process than
//! sharing it until exec (`CLONE_VFORK | CLONE_VM`, as `posix_spawn` does).
//!
//! The only unsafe code of the crate. Between clone and exec the child shares our memory: it
//! must only make system calls on values that were prepared before, never allocate, lock or
//! panic.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_int, c_void};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// Texts as exec takes them: one behind the other, each with a zero byte at its end. An
/// environment has a hundred entries, and so one allocation where it could have a hundred.
#[derive(Debug, Default)]
pub struct Texts {
    bytes: Vec<u8>,
    starts: Vec<usize>,
}

impl Texts {
    /// Adds one text, given in parts. False: it holds a zero byte, which no program can be
    /// given, and was not added.
    #[must_use]
    pub fn push(&mut self, parts: &[&[u8]]) -> bool {
        if parts.iter().any(|part| part.contains(&0)) {
            return false;
        }
        self.starts.push(self.bytes.len());
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
        self.bytes.push(0);
        true
    }

    /// Adds all of another's, behind these.
    pub fn append(&mut self, other: &Self) {
        let before = self.bytes.len();
        self.starts
            .extend(other.starts.iter().map(|at| before + at));
        self.bytes.extend_from_slice(&other.bytes);
    }

    /// All of them, each behind a prefix.
    #[must_use]
    pub fn prefixed(&self, prefix: &[u8]) -> Self {
        let mut all = Self::default();
        for (place, start) in self.starts.iter().enumerate() {
            let end = self.starts.get(place + 1).copied();
            let text = self.bytes.get(*start..end.unwrap_or(self.bytes.len()));
            all.starts.push(all.bytes.len());
            all.bytes.extend_from_slice(prefix);
            all.bytes.extend_from_slice(text.unwrap_or_default());
        }
        all
    }

    /// Pointers into the texts, with the null behind them that exec looks for.
    fn pointers(&self) -> Vec<*const c_char> {
        let texts = self.starts.iter().filter_map(|at| self.bytes.get(*at..));
        let end = std::iter::once(ptr::null());
        texts.map(|text| text.as_ptr().cast()).chain(end).collect()
    }
}

/// Everything a process starts with.
pub struct Command<'a> {
    /// The file to execute; no search.
    pub program: CString,
    /// All arguments, the program's own name first.
    pub args: Texts,
    /// The whole environment, as `NAME=value`.
    pub env: Texts,
    /// Standard input.
    pub stdin: BorrowedFd<'a>,
    /// Standard output.
    pub stdout: BorrowedFd<'a>,
    /// Standard error.
    pub stderr: BorrowedFd<'a>,
    /// More files that the process inherits, each under the same number.
    pub inherit: [Option<BorrowedFd<'a>>; 2],
    /// Whether the process ends all that it started by itself when this one is gone, and must be
    /// given the time for it.
    pub leashed: bool,
}

/// A started process, leader of a process group of its own.
#[derive(Debug)]
pub struct Child {
    /// Its id, valid until it is reaped.
    pub pid: Pid,
    /// Readable once it has ended.
    pub pidfd: OwnedFd,
}

/// What the child needs between clone and exec; raw, because it may not allocate.
struct Plan {
    program: *const c_char,
    args: *const *const c_char,
    env: *const *const c_char,
    fds: [RawFd; 3],
    inherit: [RawFd; 2],
    groups: Option<&'static Groups>,
    parent: libc::pid_t,
    mask: libc::sigset_t,
    open_files: Option<libc::rlimit>,
    inherited: &'static Inherited,
    /// The errno of what failed, written by the child into our memory.
    failed: c_int,
}

/// Bytes of stack that the child has until exec; it makes some twenty system calls.
const STACK: usize = 64 * 1024;

/// Starts a process. It dies with the calling *thread*, which must therefore outlive it.
pub fn spawn(command: &Command<'_>) -> io::Result<Child> {
    let (args, env) = (command.args.pointers(), command.env.pointers());
    let mut plan = Plan {
        program: command.program.as_ptr(),
        args: args.as_ptr(),
        env: env.as_ptr(),
        fds: [
            command.stdin.as_raw_fd(),
            command.stdout.as_raw_fd(),
            command.stderr.as_raw_fd(),
        ],
        inherit: command.inherit.map(|fd| fd.map_or(-1, |fd| fd.as_raw_fd())),
        groups: GUARD.get().map(|guard| {
            if command.leashed {
                guard.leashed
            } else {
                guard.groups
            }
        }),
        parent: rustix::process::getpid().as_raw_nonzero().get(),
        // SAFETY: an all-zero signal set is a valid value; it is filled below.
        mask: unsafe { std::mem::zeroed() },
        open_files: OPEN_FILES.get().copied(),
        inherited: INHERITED.get_or_init(Inherited::default),
        failed: 0,
    };
    // Not zeroed: nearly all of it is never touched.
    let mut stack = Box::<[u128]>::new_uninit_slice(STACK / size_of::<u128>());
    let mut pidfd: c_int = -1;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    // SAFETY: all signals are blocked, so no handler runs in the child on our memory. The child
    // runs `child` on a stack of its own, whose top (aligned to 16) is given; `plan` and what it
    // points to live until clone returns, which with CLONE_VFORK is after the child's exec or
    // end. The mask is restored in both.
    let pid = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, &raw mut plan.mask);
        let top = stack.as_mut_ptr_range().end.cast::<c_void>();
        let argument = (&raw mut plan).cast::<c_void>();
        let pid = libc::clone(child, top, flags, argument, &raw mut pidfd);
        let error = io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const plan.mask, ptr::null_mut());
        if pid < 0 {
            return Err(error);
        }
        pid
    };
    // SAFETY: clone has just made this descriptor for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let Some(pid) = Pid::from_raw(pid) else {
        return Err(io::Error::other("clone gave no process id"));
    };
    // SAFETY: plain read of a value that the child may have written before it ended.
    let failed = unsafe { ptr::read_volatile(&raw const plan.failed) };
    if failed != 0 {
        let options = rustix::process::WaitIdOptions::EXITED;
        let _ = rustix::process::waitid(rustix::process::WaitId::Pid(pid), options);
        forget(pid);
        return Err(io::Error::from_raw_os_error(failed));
    }
    Ok(Child { pid, pidfd })
}

/// The child until exec. System calls only; see the module's head.
extern "C" fn child(argument: *mut c_void) -> c_int {
    // SAFETY: `argument` is the parent's `plan`, which lives while the parent is suspended. All
    // calls are async-signal-safe and take values that were prepared before the clone.
    unsafe {
        let plan = argument.cast::<Plan>();
        let fail = |plan: *mut Plan| -> ! {
            (*plan).failed = *libc::__errno_location();
            libc::_exit(127)
        };
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if libc::getppid() != (*plan).parent {
            libc::_exit(127);
        }
        if libc::setpgid(0, 0) != 0 {
            fail(plan);
        }
        if let Some(groups) = (*plan).groups {
            groups.set(libc::getpid(), true);
        }
        for (target, source) in [
            (0, (*plan).fds[0]),
            (1, (*plan).fds[1]),
            (2, (*plan).fds[2]),
        ] {
            if libc::dup2(source, target) < 0 {
                fail(plan);
            }
        }
        for inherited in (*plan).inherit {
            if inherited >= 0 && libc::fcntl(inherited, libc::F_SETFD, 0) < 0 {
                fail(plan);
            }
        }
        if let Some(limit) = &(*plan).open_files {
            libc::setrlimit(libc::RLIMIT_NOFILE, limit);
        }
        let inherited = (*plan).inherited;
        if inherited.terminal {
            // Without this a program that asks for a password would stop as a background job of
            // the user's terminal; now it cannot open /dev/tty.
            let terminal = libc::open(c"/dev/tty".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
            if terminal >= 0 {
                libc::ioctl(terminal, libc::TIOCNOTTY);
                libc::close(terminal);
            }
        }
        // Handlers of ours must not run here once the mask is lifted, and a program does not
        // expect signals to be ignored.
        for signal in OWN_SIGNALS {
            libc::signal(signal, libc::SIG_DFL);
        }
        for signal in 1..=LAST_SIGNAL {
            if inherited.ignored & (1 << signal) != 0 {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
        libc::sigprocmask(libc::SIG_SETMASK, &raw const (*plan).mask, ptr::null_mut());
        libc::execve((*plan).program, (*plan).args, (*plan).env);
        fail(plan)
    }
}

/// Signals that this program handles or ignores, whatever it inherited: Rust ignores SIGPIPE, and
/// [`set_up`] SIGXFSZ.
const OWN_SIGNALS: [c_int; 7] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGPIPE,
    libc::SIGCHLD,
    libc::SIGWINCH,
    libc::SIGXFSZ,
];
/// The largest signal number of Linux (`_NSIG`).
const LAST_SIGNAL: c_int = 64;

/// What this program inherited and its children must not.
#[derive(Debug, Default)]
struct Inherited {
    /// Signals that were ignored at the start, one bit each.
    ignored: u128,
    /// Whether there is a controlling terminal.
    terminal: bool,
}

static INHERITED: OnceLock<Inherited> = OnceLock::new();

/// Makes this process independent of what its parent left it: no signal is blocked, a file that
/// reaches the limit of its size is an error of that write (SIGXFSZ ends the process by default),
/// and ended children wait to be reaped. Children get defaults.
///
/// Call it first of all, while the program has one thread: threads inherit the mask.
pub fn set_up() {
    INHERITED.get_or_init(|| {
        let mut inherited = Inherited::default();
        // SAFETY: reads and sets dispositions and the mask by structs of ours; no handler is
        // involved, and the descriptor is closed where it was opened.
        unsafe {
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
            for signal in 1..=LAST_SIGNAL {
                if is_ignored(signal) {
                    inherited.ignored |= 1 << signal;
                }
            }
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            // With an inherited SIG_IGN the kernel would reap children before we ask how they ended.
            libc::signal(libc::SIGCHLD, libc::SIG_DFL);
            let terminal = libc::open(c"/dev/tty".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
            if terminal >= 0 {
                inherited.terminal = true;
                libc::close(terminal);
            }
        }
        inherited
    });
}

static OPEN_FILES: OnceLock<libc::rlimit> = OnceLock::new();

/// Lets this process open as many files as it may. Children get the old limit back: programs
/// that use `select` break above 1024.
pub fn raise_open_files() {
    // SAFETY: the calls only read and write the given struct.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            let _ = OPEN_FILES.set(limit);
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// Whether a signal was set to be ignored by who started us, as `nohup` does.
#[must_use]
pub fn is_ignored(signal: i32) -> bool {
    // SAFETY: only reads the disposition into a struct of ours.
    unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, ptr::null(), &raw mut old) == 0 && old.sa_sigaction == libc::SIG_IGN
    }
}

/// Which process groups are alive, by the id of their leader: memory that is shared with the
/// guard, so that a word to it costs neither a system call nor a wake-up. One bit a number.
struct Groups([AtomicU32; Groups::MOST / 32]);

impl Groups {
    /// No process id of Linux is as large (`PID_MAX_LIMIT`).
    const MOST: usize = 4 * 1024 * 1024;

    /// Memory that forked processes share. Pages that nobody has written to take no room.
    fn shared() -> io::Result<&'static Self> {
        // SAFETY: a new mapping of zero bytes, which are valid and false, of just the size of
        // the table; it is never unmapped, and only touched by atomic accesses.
        unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let kind = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
            let memory = libc::mmap(ptr::null_mut(), size_of::<Self>(), access, kind, -1, 0);
            if memory == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            Ok(&*memory.cast::<Self>())
        }
    }

    fn set(&self, pid: libc::pid_t, alive: bool) {
        let Ok(number) = usize::try_from(pid) else {
            return;
        };
        if let Some(word) = self.0.get(number / 32) {
            let bit = 1 << (number % 32);
            if alive {
                word.fetch_or(bit, Ordering::Relaxed);
            } else {
                word.fetch_and(!bit, Ordering::Relaxed);
            }
        }
    }

    fn alive(&self) -> impl Iterator<Item = Pid> {
        let words = (0..).step_by(32).zip(&self.0);
        words.flat_map(|(first, word)| {
            let word = word.load(Ordering::Relaxed);
            let set = (0..32).filter(move |bit| word & (1 << bit) != 0);
            set.filter_map(move |bit| Pid::from_raw(first + bit))
        })
    }
}

struct Guard {
    groups: &'static Groups,
    /// Groups that end by themselves when we do; see [`Command::leashed`].
    leashed: &'static Groups,
    /// Nothing is written to it: its end, which only our own end brings, is the guard's signal.
    _alive: OwnedFd,
}

static GUARD: OnceLock<Guard> = OnceLock::new();

/// How long the guard waits for killed groups to be gone. What is not gone then hangs in the
/// kernel, or is dead and has no parent that reaps it.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// Starts the guard: a process that ends, when this one is gone however it went, the process
/// groups that were started and not reaped. The parent-death signal alone ends a script but not
/// the programs that it runs.
///
/// `held` stays open in the guard until those groups are gone: a lock on it says so to others.
///
/// Call it first of all, while the program has one thread.
pub fn start_guard(held: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let (groups, leashed) = (Groups::shared()?, Groups::shared()?);
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // SAFETY: the caller promises a single thread, so the child's copy of the memory is whole
    // and no lock in it is held.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(write);
            guard([groups, leashed], read, held)
        }
        _ => {
            let _ = GUARD.set(Guard {
                groups,
                leashed,
                _alive: write,
            });
            Ok(())
        }
    }
}

/// Tells the guard of a process group that another process has started for us.
pub fn remember(pid: Pid) {
    if let Some(guard) = GUARD.get() {
        guard.groups.set(pid.as_raw_nonzero().get(), true);
    }
}

/// Tells the guard that a process group is over.
pub fn forget(pid: Pid) {
    if let Some(guard) = GUARD.get() {
        guard.groups.set(pid.as_raw_nonzero().get(), false);
        guard.leashed.set(pid.as_raw_nonzero().get(), false);
    }
}

/// The guard's life: it holds nothing but its pipe and what it was told to hold, so that nobody
/// waits for an end of file because of it, and it is in a session of its own, so that no Ctrl-C
/// reaches it.
fn guard([groups, leashed]: [&Groups; 2], pipe: OwnedFd, held: Option<BorrowedFd<'_>>) -> ! {
    let mut kept = [
        pipe.as_raw_fd().unsigned_abs(),
        held.map_or(pipe.as_raw_fd(), |held| held.as_raw_fd())
            .unsigned_abs(),
    ];
    kept.sort_unstable();
    // SAFETY: this process has one thread and uses no descriptor but these from here on.
    unsafe {
        libc::setsid();
        // Whoever ends a whole service by TERM means the run; the guard ends after it.
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            libc::signal(signal, libc::SIG_IGN);
        }
        libc::prctl(libc::PR_SET_NAME, c"apscli-guard".as_ptr());
        let mut first = 0;
        for kept in kept {
            if first < kept {
                libc::close_range(first, kept - 1, 0);
            }
            first = kept + 1;
        }
        libc::close_range(first, u32::MAX, 0);
    }
    let mut pipe = std::fs::File::from(pipe);
    // Ends when the last holder of the other end is gone, and by nothing else.
    let _ = pipe.read_to_end(&mut Vec::new());
    for group in groups.alive() {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let start = Instant::now();
    let is_left = |group| rustix::process::test_kill_process_group(group).is_ok();
    let all = || groups.alive().chain(leashed.alive());
    while all().any(is_left) && start.elapsed() < GONE_WITHIN {
        std::thread::sleep(Duration::from_millis(5));
    }
    for group in leashed.alive() {
        let _ = kill_process_group(group, Signal::KILL);
    }
    // SAFETY: ends this process without running what belongs to the parent.
    unsafe { libc::_exit(0) }
}
