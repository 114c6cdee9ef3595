//! Decides, in the launcher, system calls that neither Landlock nor a filter can decide: mode and
//! times of files, and everything that names a process by its number.
//!
//! The filter answers such a call with a notification (`seccomp_unotify(2)`): the caller sleeps, the
//! launcher reads what was asked for and answers. The kernel lets the launcher either answer in the
//! caller's place or let the call continue. Memory of the caller can change meanwhile, so a call with
//! a path or a structure never continues: the launcher makes the change itself, on an object that it
//! has pinned. Only calls whose arguments are plain numbers continue.
//!
//! Must not change what is outside of the node's directory, must not wait for the node, and must not
//! answer differently for what is outside depending on what that is.
//!
//! Unsafe code: three ioctls of the listener, the system call that makes it, and a thread's processors.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::mem::zeroed;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_long, sock_filter};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, fstat, open, openat2,
    readlink, utimensat,
};
use rustix::io::Errno;
use rustix::process::{Pid, getpid};

use super::calls::{self, SET_ID};
use super::sweep;

/// Most bytes of a path, with its end.
const PATH: usize = 4096;
/// Most bytes of a set of processors; the kernel is built for at most 8192 of them.
const MASK: usize = 1024;
/// No process is as far below the launcher: the kernel has no more numbers.
const DEPTH: usize = 4 * 1024 * 1024;

/// Installs a filter on this process, which must have no new privileges. `listen`: the launcher is to
/// decide, and the listener for it is returned.
pub(super) fn install(program: &[sock_filter], listen: bool) -> Result<Option<OwnedFd>, Errno> {
    let Ok(len) = u16::try_from(program.len()) else {
        return Err(Errno::TOOBIG);
    };
    let program = libc::sock_fprog {
        len,
        filter: program.as_ptr().cast_mut(),
    };
    let set = |flags: libc::c_ulong| {
        // SAFETY: the kernel reads the program, which lives until the call is over.
        let result = unsafe {
            let mode = libc::SECCOMP_SET_MODE_FILTER;
            libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program)
        };
        // The number that the call has set.
        let error = std::io::Error::last_os_error();
        let failed = Errno::from_io_error(&error).unwrap_or(Errno::INVAL);
        RawFd::try_from(result)
            .ok()
            .filter(|it| *it >= 0)
            .ok_or(failed)
    };
    if !listen {
        return set(0).map(|_| None);
    }
    let listener = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // Signals would have a call asked for again and again: runtimes that interrupt their threads
    // often would never finish one. From Linux 5.19 on.
    let patient = listener | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    let made = match set(patient) {
        Err(Errno::INVAL) => set(listener)?,
        made => made?,
    };
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(made) }))
}

/// What the launcher answers.
enum Verdict {
    /// The call is made by the caller.
    Continue,
    /// The call was made by the launcher.
    Done,
    Failed(Errno),
}

/// Decides for one node.
pub(super) struct Broker<'a> {
    listener: OwnedFd,
    /// The node's own directory.
    directory: BorrowedFd<'a>,
    launcher: Pid,
    /// Whether the node's user has no other processes.
    alone: bool,
}

/// A caller, who sleeps until it is answered. What was opened of it is checked by [`Caller::is_there`]
/// before it is used: its number may have become another's.
struct Caller<'a> {
    listener: &'a OwnedFd,
    /// The node's own directory.
    directory: BorrowedFd<'a>,
    id: u64,
    thread: u32,
}

impl<'a> Broker<'a> {
    pub(super) fn new(listener: OwnedFd, directory: BorrowedFd<'a>, alone: bool) -> Self {
        Self {
            listener,
            directory,
            alone,
            launcher: getpid(),
        }
    }

    /// What is readable when somebody has asked.
    pub(super) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Answers one call. Does not wait, if the listener was readable: the kernel counts the calls
    /// that were asked, and does not subtract those whose callers are gone.
    pub(super) fn answer(&self) {
        // SAFETY: all-zero is a valid value, and what the kernel expects.
        let mut asked: libc::seccomp_notif = unsafe { zeroed() };
        if !self.ioctl(libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut asked) {
            return;
        }
        let caller = Caller {
            listener: &self.listener,
            directory: self.directory,
            id: asked.id,
            thread: asked.pid,
        };
        let verdict = self.decide(&caller, c_long::from(asked.data.nr), &asked.data.args);
        let (error, flags) = match verdict {
            Ok(Verdict::Done) => (0, 0),
            Ok(Verdict::Continue) => (0, 1),
            Ok(Verdict::Failed(errno)) | Err(errno) => (-errno.raw_os_error(), 0),
        };
        let mut answer = libc::seccomp_notif_resp {
            id: asked.id,
            val: 0,
            error,
            flags,
        };
        // Who is gone needs no answer.
        let _ = self.ioctl(libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer);
    }

    fn ioctl<T>(&self, request: libc::Ioctl, value: *mut T) -> bool {
        // SAFETY: each request is given the structure that it reads and writes.
        unsafe { libc::ioctl(self.listener.as_raw_fd(), request, value) == 0 }
    }

    fn decide(&self, caller: &Caller<'_>, call: c_long, of: &[u64; 6]) -> Result<Verdict, Errno> {
        let [first, second, third, fourth, ..] = *of;
        match call {
            #[cfg(target_arch = "x86_64")]
            libc::SYS_chmod => {
                let object = caller.object(libc::AT_FDCWD, first, 0)?;
                self.chmod(&object, second)
            }
            libc::SYS_fchmod => self.chmod(&caller.descriptor(int(first))?, second),
            libc::SYS_fchmodat => {
                let object = caller.object(int(first), second, 0)?;
                self.chmod(&object, third)
            }
            calls::FCHMODAT2 => {
                let object = caller.object(int(first), second, int(fourth))?;
                self.chmod(&object, third)
            }
            #[cfg(target_arch = "x86_64")]
            libc::SYS_utime => {
                let times = caller.times(second, Clock::Seconds)?;
                let object = caller.object(libc::AT_FDCWD, first, 0)?;
                self.touch(&object, &times)
            }
            #[cfg(target_arch = "x86_64")]
            libc::SYS_utimes => {
                let times = caller.times(second, Clock::Microseconds)?;
                let object = caller.object(libc::AT_FDCWD, first, 0)?;
                self.touch(&object, &times)
            }
            #[cfg(target_arch = "x86_64")]
            libc::SYS_futimesat => {
                let times = caller.times(third, Clock::Microseconds)?;
                let object = caller.object_or_descriptor(int(first), second, 0)?;
                self.touch(&object, &times)
            }
            libc::SYS_utimensat => {
                let times = caller.times(third, Clock::Nanoseconds)?;
                let object = caller.object_or_descriptor(int(first), second, int(fourth))?;
                self.touch(&object, &times)
            }
            libc::SYS_sched_getaffinity
            | libc::SYS_sched_getscheduler
            | libc::SYS_sched_getparam
            | libc::SYS_sched_getattr
            | libc::SYS_sched_rr_get_interval
            | libc::SYS_getpgid
            | libc::SYS_getsid => self.question(int(first)),
            libc::SYS_getpriority | libc::SYS_ioprio_get => self.question(int(second)),
            libc::SYS_clock_gettime
            | libc::SYS_clock_getres
            | libc::SYS_clock_nanosleep
            | libc::SYS_timer_create => self.question(!(int(first) >> 3)),
            libc::SYS_prlimit64 if third == 0 => self.question(int(first)),
            libc::SYS_sched_setaffinity => self.pin(caller, int(first), second, third),
            libc::SYS_prlimit64
            | libc::SYS_sched_setscheduler
            | libc::SYS_sched_setparam
            | libc::SYS_sched_setattr => caller.change(int(first)),
            libc::SYS_setpriority | libc::SYS_ioprio_set => caller.change(int(second)),
            _ => Err(Errno::PERM),
        }
    }

    /// A question about a process continues where it is of this node. Its number can become another's
    /// meanwhile; then one answer is about another process.
    fn question(&self, process: i32) -> Result<Verdict, Errno> {
        // The wrapper takes no number below zero.
        let mut at = Pid::from_raw(process.max(0));
        for _ in 0..DEPTH {
            let parent = at.and_then(|at| sweep::stat(at, 1)).and_then(Pid::from_raw);
            match parent {
                Some(parent) if parent == self.launcher => return Ok(Verdict::Continue),
                None | Some(Pid::INIT) => break,
                parent => at = parent,
            }
        }
        Err(Errno::PERM)
    }

    /// Whether an object is in the node's directory: by its path, of which the kernel says where the
    /// object is now. That is sound, because Landlock lets nothing be moved or linked in from outside,
    /// and the directory itself cannot be moved: what has a path below it was made there.
    /// Where there is no Landlock, the node can do anything to the files of its user anyway.
    fn is_inside(&self, object: &OwnedFd) -> bool {
        let path = |fd: BorrowedFd<'_>| readlink(by_number(fd.as_raw_fd()), Vec::new());
        let (Ok(directory), Ok(object)) = (path(self.directory), path(object.as_fd())) else {
            return false;
        };
        let (directory, object) = (directory.as_bytes(), object.as_bytes());
        let below = object.strip_prefix(directory);
        below.is_some_and(|below| below.is_empty() || below.starts_with(b"/"))
    }

    /// Sets on which processors a thread of the caller's own process runs: runtimes do that to threads
    /// that they have just started. Such a thread can end and its number become another's while the
    /// caller waits for its turn, so the launcher makes the change, at once. Where no other process is
    /// of this user, that matters to nobody else.
    fn pin(
        &self,
        caller: &Caller<'_>,
        thread: i32,
        size: u64,
        mask: u64,
    ) -> Result<Verdict, Errno> {
        if let Ok(verdict) = caller.change(thread) {
            return Ok(verdict);
        }
        let own = caller.process(caller.thread)?;
        let of = |thread: i32| caller.process(u32::try_from(thread).map_err(|_| Errno::PERM)?);
        if self.alone {
            return (of(thread)? == own)
                .then_some(Verdict::Continue)
                .ok_or(Errno::PERM);
        }
        let mut bytes = [0; MASK];
        let size = usize::try_from(size).unwrap_or(usize::MAX).min(MASK);
        let wanted = bytes.get_mut(..size).unwrap_or_default();
        if caller.read(mask, wanted)? != size {
            return Err(Errno::FAULT);
        }
        if of(thread)? != own {
            return Err(Errno::PERM);
        }
        // SAFETY: the kernel reads the bytes, which live until the call is over.
        let set =
            unsafe { libc::syscall(libc::SYS_sched_setaffinity, thread, size, bytes.as_ptr()) };
        if set < 0 {
            let error = std::io::Error::last_os_error();
            return Err(Errno::from_io_error(&error).unwrap_or(Errno::PERM));
        }
        Ok(Verdict::Done)
    }

    fn chmod(&self, object: &OwnedFd, mode: u64) -> Result<Verdict, Errno> {
        // The kernel reads 16 bits, and of these 12.
        let mode = u32::try_from(mode & 0o7777).unwrap_or_default();
        if mode & SET_ID != 0 || !self.is_inside(object) {
            return Err(Errno::PERM);
        }
        if FileType::from_raw_mode(fstat(object)?.st_mode) == FileType::Symlink {
            return Ok(Verdict::Failed(Errno::OPNOTSUPP));
        }
        rustix::fs::chmod(by_number(object.as_raw_fd()), Mode::from_raw_mode(mode))?;
        Ok(Verdict::Done)
    }

    fn touch(&self, object: &OwnedFd, times: &Timestamps) -> Result<Verdict, Errno> {
        if !self.is_inside(object) {
            return Err(Errno::PERM);
        }
        utimensat(object, c"", times, AtFlags::EMPTY_PATH)?;
        Ok(Verdict::Done)
    }
}

/// How times are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Clock {
    #[cfg(target_arch = "x86_64")]
    Seconds,
    #[cfg(target_arch = "x86_64")]
    Microseconds,
    Nanoseconds,
}

impl Caller<'_> {
    /// Whether it still waits: then what was opened by its number is its own.
    fn is_there(&self) -> Result<(), Errno> {
        let mut id = self.id;
        let request = libc::SECCOMP_IOCTL_NOTIF_ID_VALID;
        // SAFETY: the request reads a number.
        let valid = unsafe { libc::ioctl(self.listener.as_raw_fd(), request, &raw mut id) == 0 };
        valid.then_some(()).ok_or(Errno::PERM)
    }

    /// The object that a call with a path is about.
    fn object(&self, base: i32, path: u64, flags: i32) -> Result<OwnedFd, Errno> {
        let known = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH;
        if flags & !known != 0 {
            return Err(Errno::INVAL);
        }
        let path = self.string(path)?;
        if path.is_empty() && flags & libc::AT_EMPTY_PATH != 0 {
            return self.base(base);
        }
        let follow = flags & libc::AT_SYMLINK_NOFOLLOW == 0;
        if follow && let Some(number) = own_descriptor(&path) {
            return self.descriptor(number);
        }
        let nofollow = if follow {
            OFlags::empty()
        } else {
            OFlags::NOFOLLOW
        };
        let oflags = OFlags::PATH | OFlags::CLOEXEC | nofollow;
        let (base, path) = if path.to_bytes().starts_with(b"/") {
            self.below(&path)?
        } else {
            (self.base(base)?, path)
        };
        // A link of /proc would be followed with the launcher's rights.
        let find = |how: ResolveFlags| {
            let resolve = ResolveFlags::NO_MAGICLINKS | how;
            openat2(&base, &*path, oflags, Mode::empty(), resolve)
        };
        // The launcher must not wait for a file system that does not answer: what the kernel does not
        // know already is looked for in the file system of the directory alone.
        let found = match find(ResolveFlags::CACHED) {
            Err(Errno::AGAIN | Errno::INVAL) => find(ResolveFlags::NO_XDEV),
            found => found,
        };
        found.map_err(|error| match error {
            Errno::XDEV => Errno::PERM,
            error => error,
        })
    }

    /// An absolute path: if it starts with the node's directory, what is left of it from there.
    fn below(&self, path: &CStr) -> Result<(OwnedFd, CString), Errno> {
        let directory = readlink(by_number(self.directory.as_raw_fd()), Vec::new())?;
        let left = path.to_bytes().strip_prefix(directory.as_bytes());
        let left = left.filter(|left| left.is_empty() || left.starts_with(b"/"));
        let Some(left) = left else {
            let root = open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            return Ok((root, path.to_owned()));
        };
        let own = self.directory.try_clone_to_owned();
        let own = own.map_err(|_| Errno::MFILE)?;
        let start = left.iter().position(|byte| *byte != b'/');
        let left = start.and_then(|start| left.get(start..)).unwrap_or(b".");
        Ok((own, CString::new(left).map_err(|_| Errno::INVAL)?))
    }

    /// Likewise, of a call that means the descriptor where there is no path.
    fn object_or_descriptor(&self, base: i32, path: u64, flags: i32) -> Result<OwnedFd, Errno> {
        match path {
            0 if base == libc::AT_FDCWD => Err(Errno::FAULT),
            0 => self.descriptor(base),
            _ => self.object(base, path, flags),
        }
    }

    /// Opens something of its `/proc`, which only whom the kernel lets look into it can.
    fn open(&self, name: std::fmt::Arguments<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = format!("/proc/{}/{name}", self.thread);
        let opened = open(path, flags | OFlags::CLOEXEC, Mode::empty());
        self.is_there()?;
        opened
    }

    /// One of its open files.
    fn descriptor(&self, number: i32) -> Result<OwnedFd, Errno> {
        if number < 0 {
            return Err(Errno::BADF);
        }
        let opened = self.open(format_args!("fd/{number}"), OFlags::PATH);
        opened.map_err(|error| match error {
            Errno::NOENT => Errno::BADF,
            _ => Errno::PERM,
        })
    }

    /// Where its relative paths start.
    fn base(&self, number: i32) -> Result<OwnedFd, Errno> {
        if number != libc::AT_FDCWD {
            return self.descriptor(number);
        }
        self.open(format_args!("cwd"), OFlags::PATH | OFlags::DIRECTORY)
            .map_err(|_| Errno::PERM)
    }

    /// Bytes of its memory, as many as there are.
    fn read(&self, address: u64, into: &mut [u8]) -> Result<usize, Errno> {
        let memory = self.open(format_args!("mem"), OFlags::RDONLY);
        let memory = memory.map_err(|_| Errno::PERM)?;
        let read = rustix::io::pread(&memory, into, address).map_err(|_| Errno::FAULT)?;
        // What was read may be of what its number has become.
        self.is_there()?;
        Ok(read)
    }

    fn string(&self, address: u64) -> Result<CString, Errno> {
        let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
        let mut bytes = Vec::new();
        let mut at = address;
        while bytes.len() < PATH {
            // The next page may not be there.
            let left = usize::try_from(page - at % page).unwrap_or(1);
            let mut part = vec![0; left.min(PATH - bytes.len())];
            let read = self.read(at, &mut part)?;
            let part = part.get(..read).unwrap_or_default();
            if part.is_empty() {
                return Err(Errno::FAULT);
            }
            let end = part.iter().position(|byte| *byte == 0);
            bytes.extend_from_slice(part.get(..end.unwrap_or(read)).unwrap_or_default());
            if end.is_some() {
                return CString::new(bytes).map_err(|_| Errno::INVAL);
            }
            at = at.checked_add(read as u64).ok_or(Errno::FAULT)?;
        }
        Err(Errno::NAMETOOLONG)
    }

    /// Two times; of none both are now.
    fn times(&self, address: u64, clock: Clock) -> Result<Timestamps, Errno> {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: libc::UTIME_NOW,
        };
        if address == 0 {
            return Ok(Timestamps {
                last_access: now,
                last_modification: now,
            });
        }
        let mut bytes = [0; 32];
        #[cfg(target_arch = "x86_64")]
        let length = if clock == Clock::Seconds { 16 } else { 32 };
        #[cfg(not(target_arch = "x86_64"))]
        let length = 32;
        let wanted = bytes.get_mut(..length).unwrap_or_default();
        if self.read(address, wanted)? != length {
            return Err(Errno::FAULT);
        }
        let mut numbers = bytes.chunks_exact(8).map(|it| {
            let bytes = it.first_chunk().copied().unwrap_or_default();
            i64::from_ne_bytes(bytes)
        });
        let mut next = || numbers.next().unwrap_or(0);
        let mut time = || match clock {
            #[cfg(target_arch = "x86_64")]
            Clock::Seconds => Ok(Timespec {
                tv_sec: next(),
                tv_nsec: 0,
            }),
            #[cfg(target_arch = "x86_64")]
            Clock::Microseconds => {
                let (tv_sec, micros) = (next(), next());
                let known = (0..1_000_000).contains(&micros);
                let tv_nsec = known.then_some(micros * 1000).ok_or(Errno::INVAL)?;
                Ok(Timespec { tv_sec, tv_nsec })
            }
            Clock::Nanoseconds => Ok(Timespec {
                tv_sec: next(),
                tv_nsec: next(),
            }),
        };
        Ok(Timestamps {
            last_access: time()?,
            last_modification: time()?,
        })
    }

    /// A change of a process continues where that is the caller itself, or its own process: it sleeps,
    /// so its number cannot become another's.
    fn change(&self, process: i32) -> Result<Verdict, Errno> {
        let Ok(process) = u32::try_from(process) else {
            return Err(Errno::PERM);
        };
        let is_own = process == self.thread || self.process(self.thread)? == process;
        is_own.then_some(Verdict::Continue).ok_or(Errno::PERM)
    }

    /// The process that a thread belongs to.
    fn process(&self, thread: u32) -> Result<u32, Errno> {
        let status = std::fs::read_to_string(format!("/proc/{thread}/status"));
        let status = status.map_err(|_| Errno::PERM)?;
        self.is_there()?;
        let mut lines = status.lines();
        let process = lines.find_map(|line| line.strip_prefix("Tgid:"));
        process
            .and_then(|it| it.trim().parse().ok())
            .ok_or(Errno::PERM)
    }
}

/// The number in a path that means one of the caller's own open files.
fn own_descriptor(path: &CStr) -> Option<i32> {
    let path = path.to_str().ok()?;
    let own = ["/proc/self/fd/", "/proc/thread-self/fd/", "/dev/fd/"];
    let number = own.iter().find_map(|prefix| path.strip_prefix(prefix))?;
    let is_number = number.bytes().all(|byte| byte.is_ascii_digit());
    number.parse().ok().filter(|_| is_number)
}

/// An argument of which the kernel reads the lower half.
fn int(argument: u64) -> i32 {
    let half = u32::try_from(argument & u64::from(u32::MAX));
    half.unwrap_or_default().cast_signed()
}

/// The path of an open file, whatever it is and wherever it has gone.
fn by_number(fd: RawFd) -> String {
    format!("/proc/self/fd/{fd}")
}
