//! The launcher: starts one program in the fence, waits for it, and ends all that it has started.
//!
//! It is outside of the fence itself, but can be reached by nothing that is in it: not by signals,
//! and its memory not at all. Where the kernel can do that, its own signals reach nobody but what it
//! has started, so that it can end all of it at once. It is the subreaper of all that it starts, so
//! whatever leaves its group, its session or its parent comes back here.
//!
//! Must not outlive whoever started it: the other end of its socket is the leash.
//!
//! Unsafe code: `fork`, because nothing else gives a process that can restrict itself before it
//! becomes the program; signals, which only libc can wait for in a file and send to all; and marking
//! descriptors as closed on exec. The launcher has one thread, so a forked copy of it is whole.
#![allow(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::ptr;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::{
    DumpableBehavior, Pid, Resource, Signal, WaitOptions, WaitStatus, getpid, getppid,
    kill_process_group, set_child_subreaper, set_dumpable_behavior,
    set_parent_process_death_signal, setsid, wait,
};

use super::broker::Broker;
use super::identity::Identity;
use super::rules::Applied;
use super::{ASIDE, LAUNCH, Policy, Said, rules, sweep, usage::Usage};

/// How often it is looked at what is used.
const LOOK: Duration = Duration::from_millis(50);
/// Part of the time that may go into that: one of so many.
const SHARE: u32 = 20;
/// Processes and threads that every attempt has: its launcher, what waits for it in the program that
/// began it, an interpreter and its call.
const BASE: u64 = 8;
/// How far a program in the fence stands behind all others for the processor.
const NICE: i32 = 5;
/// How much sooner than the launcher a program is taken by the kernel where memory runs out, in
/// thousandths of it all.
const BLAME: i32 = 100;
/// Exit status of a launcher that could not do its part; what it says counts.
const TROUBLE: u8 = 70;

/// Becomes the launcher, if these are its arguments.
#[must_use]
pub fn taken(args: &[OsString]) -> Option<ExitCode> {
    let mut args = args.iter();
    let (_, word) = (args.next()?, args.next()?);
    (word.as_os_str() == LAUNCH).then(|| {
        let words: Vec<OsString> = args.cloned().collect();
        launch(&words).unwrap_or(ExitCode::from(TROUBLE))
    })
}

/// None: it was called by somebody who does not know how.
fn launch(words: &[OsString]) -> Option<ExitCode> {
    let [policy, program, command @ ..] = words else {
        return None;
    };
    let policy: Policy = serde_json::from_str(policy.to_str()?).ok()?;
    // SAFETY: the number is that of the socket which was opened for this; nothing else here
    // knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(policy.socket) };
    let mut launcher = Launcher { policy, socket };
    Some(match launcher.run(Path::new(program), command) {
        Ok(status) => status,
        Err(why) => {
            launcher.say(&Said::Broken(why));
            Identity::rest();
            sweep::remove(&launcher.policy.folder);
            ExitCode::from(TROUBLE)
        }
    })
}

struct Launcher {
    policy: Policy,
    socket: OwnedFd,
}

/// Why the program is over.
enum End {
    ByItself(Option<WaitStatus>),
    /// Whoever started it wants it gone, or is gone.
    LetGo,
    Over(String),
}

impl Launcher {
    fn say(&mut self, said: &Said) {
        let Ok(mut line) = serde_json::to_vec(said) else {
            return;
        };
        line.push(b'\n');
        // Who does not listen any more is told nothing.
        let _ = rustix::net::send(&self.socket, &line, rustix::net::SendFlags::NOSIGNAL);
    }

    fn run(&mut self, program: &Path, command: &[OsString]) -> Result<ExitCode, String> {
        let words = |what: &str| {
            let what = what.to_owned();
            move |error: rustix::io::Errno| format!("cannot {what}: {error}")
        };
        // Before it hides: what is hidden belongs to root.
        let blame = Blame::take();
        set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(words("hide"))?;
        set_child_subreaper(Some(getpid())).map_err(words("become a subreaper"))?;
        rules::forbid_core()?;
        // A folder may have many folders, all of which are looked into.
        if let Some(most) = rustix::process::getrlimit(Resource::Nofile).maximum {
            rules::limit(Resource::Nofile, most, most)?;
        }
        let signals = Signals::new()?;
        let confined = rules::confine_signals();
        // From here on the socket is the leash: the thread that started this must not matter.
        set_parent_process_death_signal(None).map_err(words("stay"))?;
        let directory = open(
            &self.policy.folder,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(words("open the node's directory"))?;
        let identity = Identity::take(&directory)?;
        let (told, tells) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(words("make a socket"))?;
        let own = getpid();
        // SAFETY: this process has one thread.
        let forked = unsafe { libc::fork() };
        let first = match Pid::from_raw(forked) {
            None => {
                drop(told);
                signals.undo();
                let start = Start {
                    policy: &self.policy,
                    launcher: own,
                    confined,
                    identity: identity.as_ref(),
                };
                become_program(&start, &tells, program, command)
            }
            Some(_) if forked < 0 => {
                let error = std::io::Error::last_os_error();
                return Err(format!("cannot start a process in the fence: {error}"));
            }
            Some(pid) => pid,
        };
        drop(blame);
        drop(tells);
        let_go_of_streams();
        let heard = Heard::until_exec(&told);
        drop(told);
        let _ = rustix::net::send(&self.socket, &heard.said, SendFlags::NOSIGNAL);
        let acts = identity.as_ref().map(|it| it.act(heard.landlocked));
        let end = if let Some(Err(why)) = acts {
            self.say(&Said::Refused(why));
            End::LetGo
        } else {
            let listener = heard.listener;
            let broker = listener.map(|it| Broker::new(it, directory.as_fd(), identity.is_some()));
            self.watch(first, &signals, &directory, broker)
        };
        if let End::Over(what) = &end {
            self.say(&Said::Over(format!("it used {what}, and was ended")));
        }
        // Nobody may start anything from the folder while that is taken away.
        if confined {
            end_at_once();
        }
        if !sweep::end_all() {
            self.say(&Said::Over("a process of it cannot be ended".to_owned()));
        }
        Identity::rest();
        sweep::remove(&self.policy.folder);
        Ok(match end {
            End::ByItself(Some(status)) => as_it_ended(status),
            _ => ExitCode::from(TROUBLE),
        })
    }

    fn watch(
        &self,
        first: Pid,
        signals: &Signals,
        directory: &OwnedFd,
        mut broker: Option<Broker<'_>>,
    ) -> End {
        let mut usage = Usage::default();
        let mut pause = LOOK;
        let mut next = Instant::now() + pause;
        loop {
            let left = next.saturating_duration_since(Instant::now());
            let timeout = Timespec {
                tv_sec: 0,
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            let mut fds = vec![
                PollFd::new(&signals.file, PollFlags::IN),
                PollFd::new(&self.socket, PollFlags::IN),
            ];
            let listener = broker.as_ref().map(Broker::listener);
            fds.extend(listener.map(|it| PollFd::from_borrowed_fd(it, PollFlags::IN)));
            let _ = poll(&mut fds, Some(&timeout));
            let mut ready = fds.iter().map(PollFd::revents);
            let mut next_ready = || ready.next().unwrap_or(PollFlags::empty());
            let [signalled, leash, asked] = [next_ready(), next_ready(), next_ready()];
            drop(fds);
            // One for each look at all else: whoever asks without end keeps none of it waiting.
            if asked.contains(PollFlags::IN) {
                broker.iter().for_each(Broker::answer);
            } else if !asked.is_empty() {
                // Nobody is left who could ask.
                broker = None;
            }
            if !signalled.is_empty() && signals.take_terms() {
                let _ = kill_process_group(first, Signal::TERM);
            }
            loop {
                match wait(WaitOptions::NOHANG) {
                    Ok(Some((pid, status))) if pid == first => return End::ByItself(Some(status)),
                    Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
                    Ok(None) => break,
                    Err(_) => return End::ByItself(None),
                }
            }
            if !leash.is_empty() {
                return End::LetGo;
            }
            if left.is_zero() {
                let began = Instant::now();
                if let Some(what) = usage.over(getpid(), directory, &self.policy.limits) {
                    return End::Over(what);
                }
                pause = LOOK
                    .max(began.elapsed() * SHARE)
                    .min(Duration::from_millis(900));
                next = Instant::now() + pause;
            }
        }
    }
}

/// What a process has said until it became the program.
#[derive(Default)]
struct Heard {
    said: Vec<u8>,
    /// Whether a listener for its calls came along.
    listener: Option<OwnedFd>,
    landlocked: bool,
}

/// A word from the process to the launcher, before all else: whether Landlock is enforced.
const LANDLOCKED: u8 = b'L';
const NOT_LANDLOCKED: u8 = b'-';

impl Heard {
    fn until_exec(socket: &OwnedFd) -> Self {
        let mut heard = Self::default();
        let mut buffer = [0; 4096];
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut slices = [IoSliceMut::new(&mut buffer)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let length = match recvmsg(socket, &mut slices, &mut control, flags) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => break,
                Ok(message) => message.bytes,
            };
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    heard.listener = fds.last().or(heard.listener);
                }
            }
            if length == 0 {
                break;
            }
            heard.said.extend(buffer.iter().take(length));
        }
        let word = heard.said.first().copied();
        if let Some(LANDLOCKED | NOT_LANDLOCKED) = word {
            heard.said.remove(0);
            heard.landlocked = word == Some(LANDLOCKED);
        }
        heard
    }
}

/// Ends all that this process may signal, but itself. Only where that is nobody but those that it
/// has started: then none of them escapes, however fast they start others.
fn end_at_once() {
    // SAFETY: sends a signal.
    unsafe {
        libc::kill(-1, libc::SIGKILL);
    }
}

/// What a process knows that is to become the program.
struct Start<'a> {
    policy: &'a Policy,
    launcher: Pid,
    confined: bool,
    identity: Option<&'a Identity>,
}

/// Restricts this process and makes it the program. Says why, where that does not work.
fn become_program(start: &Start<'_>, tells: &OwnedFd, program: &Path, command: &[OsString]) -> ! {
    let refused = match prepare(start) {
        Ok(Applied {
            enforced,
            landlocked,
            listener,
        }) => {
            let word = if landlocked {
                LANDLOCKED
            } else {
                NOT_LANDLOCKED
            };
            hand_over(tells, word, listener.as_ref());
            drop(listener);
            tell(tells, &Said::Enforced(enforced));
            let (name, args) = match command {
                [name, args @ ..] => (name.clone(), args),
                [] => (program.as_os_str().to_owned(), command),
            };
            let mut program_itself = Command::new(program);
            program_itself.arg0(name).args(args).env_clear();
            let error = program_itself.envs(set_aside()).exec();
            match error.raw_os_error() {
                Some(number) => Said::NotExecuted(number),
                None => Said::Refused(format!("cannot run {}: {error}", program.display())),
            }
        }
        Err(why) => Said::Refused(why),
    };
    tell(tells, &refused);
    // SAFETY: ends this process without running what belongs to the launcher.
    unsafe { libc::_exit(127) }
}

/// Gives the launcher the listener, with a word that comes before all others.
fn hand_over(tells: &OwnedFd, word: u8, listener: Option<&OwnedFd>) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = listener.iter().map(|it| it.as_fd()).collect();
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    // A launcher that does not get it has closed its end, and this process ends with it.
    let _ = sendmsg(
        tells,
        &[IoSlice::new(&[word])],
        &mut control,
        SendFlags::NOSIGNAL,
    );
}

/// The program's own environment.
fn set_aside() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os().filter_map(|(name, value)| {
        let name = name.as_bytes().strip_prefix(ASIDE)?;
        Some((OsStr::from_bytes(name).to_owned(), value))
    })
}

/// While this is held, what is begun is taken sooner than this process where memory runs out: who
/// ends the others must not be the first to go. Where the kernel's file is not to be had, that is
/// left to its own judgement.
struct Blame {
    file: File,
    before: i32,
}

impl Blame {
    fn take() -> Option<Self> {
        let mut options = File::options();
        let mut file = (options
            .read(true)
            .write(true)
            .open("/proc/self/oom_score_adj"))
        .ok()?;
        let mut text = String::new();
        file.read_to_string(&mut text).ok()?;
        let before: i32 = text.trim().parse().ok()?;
        let more = before.saturating_add(BLAME).min(1000);
        // At once: a sign by itself is no number.
        file.write_all(more.to_string().as_bytes()).ok()?;
        Some(Self { file, before })
    }
}

impl Drop for Blame {
    fn drop(&mut self) {
        let _ = self.file.write_all(self.before.to_string().as_bytes());
    }
}

fn tell(tells: &OwnedFd, said: &Said) {
    let mut line = serde_json::to_vec(said).unwrap_or_default();
    line.push(b'\n');
    let _ = rustix::net::send(tells, &line, SendFlags::NOSIGNAL);
}

fn prepare(start: &Start<'_>) -> Result<Applied, String> {
    let Start {
        policy, confined, ..
    } = *start;
    // A session of its own: no terminal.
    setsid().map_err(|error| format!("cannot begin a session: {error}"))?;
    close_on_exec(policy.inherit)?;
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    rustix::process::chdir(&policy.folder)
        .map_err(|error| format!("cannot go to {}: {error}", policy.folder.display()))?;
    // Whoever watches over it must get a turn.
    rustix::process::nice(NICE).map_err(|error| format!("cannot give way to others: {error}"))?;
    limit_processes(policy, confined, start.identity.is_some())?;
    let applied = rules::apply(policy, start.identity)?;
    // Last: the kernel forgets it where a process becomes another user.
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| format!("cannot be bound to the launcher: {error}"))?;
    if getppid() != Some(start.launcher) {
        return Err("the launcher is gone".to_owned());
    }
    Ok(applied)
}

/// Marks every descriptor but the standard ones, and the one that is to be inherited.
fn close_on_exec(inherit: Option<RawFd>) -> Result<(), String> {
    // SAFETY: only sets a flag of descriptors.
    let marked = unsafe { libc::close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed()) };
    if marked != 0 {
        let error = std::io::Error::last_os_error();
        return Err(format!(
            "cannot close what the program must not have: {error}"
        ));
    }
    if let Some(kept) = inherit {
        // SAFETY: the caller's descriptor, open in this process.
        let kept = unsafe { BorrowedFd::borrow_raw(kept) };
        rustix::io::fcntl_setfd(kept, rustix::io::FdFlags::empty())
            .map_err(|error| format!("cannot hand on a descriptor: {error}"))?;
    }
    Ok(())
}

/// Limits how many processes there can be. The kernel counts all of this user's, also those that
/// cannot be seen from here (other pods on the machine), so the count is felt for first; and also
/// those of the attempts that begin after this one, which must not use up what this one may have.
/// Where very many could not be ended at once, there is room for the least that those need; and all
/// together are at most a part of what the machine can have, unless there are as many already. A user
/// that is the node's alone has no others.
fn limit_processes(policy: &Policy, confined: bool, alone: bool) -> Result<(), String> {
    let before = rustix::process::getrlimit(Resource::Nproc).maximum;
    let cap = before.unwrap_or(u64::MAX);
    let mut there = 16_u64;
    while there < cap && !alone {
        rules::limit(Resource::Nproc, there, cap)?;
        // SAFETY: this process has one thread; the copy ends at once.
        match unsafe { libc::fork() } {
            // SAFETY: ends the copy without running anything.
            0 => unsafe { libc::_exit(0) },
            pid if pid > 0 => {
                let _ = rustix::process::waitpid(Pid::from_raw(pid), WaitOptions::empty());
                break;
            }
            _ => there = there.saturating_mul(2),
        }
    }
    // Others of this user may come.
    let at_once = if alone { 1 } else { policy.at_once };
    let at_once = u64::try_from(at_once).unwrap_or(u64::MAX);
    let own = policy.limits.processes;
    let each = BASE.saturating_add(if confined { own } else { 0 });
    let most = (there.saturating_mul(2).saturating_add(own))
        .saturating_add(at_once.saturating_mul(each))
        .min(there.saturating_add(own).max(numbers() / 4))
        .min(cap);
    rules::limit(Resource::Nproc, most, most)
}

/// How many processes and threads the machine can have.
fn numbers() -> u64 {
    let of = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok()?;
        text.trim().parse().ok()
    };
    let known = [of("pid_max"), of("threads-max")].into_iter().flatten();
    // What the first is where nobody has set it, on a machine of up to 32 processors.
    known.min().unwrap_or(32_768)
}

/// The launcher must not hold the program's output open, nor say anything there.
fn let_go_of_streams() {
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
}

/// Ends as the program has ended.
fn as_it_ended(status: WaitStatus) -> ExitCode {
    if let Some(signal) = status.terminating_signal() {
        // SAFETY: restores the default of one signal, lets it in, and sends it.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
            libc::kill(libc::getpid(), signal);
        }
    }
    let code = status
        .exit_status()
        .and_then(|code| u8::try_from(code).ok());
    ExitCode::from(code.unwrap_or(TROUBLE))
}

/// The signals that are waited for along with the socket.
struct Signals {
    file: OwnedFd,
    before: libc::sigset_t,
}

impl Signals {
    fn new() -> Result<Self, String> {
        // SAFETY: the sets are filled before they are read; the descriptor is new and ours.
        unsafe {
            let mut wanted: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut wanted);
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGCHLD] {
                libc::sigaddset(&raw mut wanted, signal);
            }
            libc::sigprocmask(libc::SIG_BLOCK, &raw const wanted, &raw mut before);
            let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
            let file = libc::signalfd(-1, &raw const wanted, flags);
            if file < 0 {
                let error = std::io::Error::last_os_error();
                return Err(format!("cannot wait for signals: {error}"));
            }
            Ok(Self {
                file: OwnedFd::from_raw_fd(file),
                before,
            })
        }
    }

    /// Takes what has come; whether one was to end the program.
    fn take_terms(&self) -> bool {
        let mut asked = false;
        let mut buffer = [0_u8; size_of::<libc::signalfd_siginfo>()];
        while let Ok(length) = rustix::io::read(&self.file, &mut buffer)
            && length == buffer.len()
        {
            // The number of the signal is the first field.
            let number = buffer.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
            asked |= number != Some(libc::SIGCHLD.unsigned_abs());
        }
        asked
    }

    /// In the child: signals are as they were.
    fn undo(&self) {
        // SAFETY: restores the mask that was saved.
        unsafe {
            libc::sigprocmask(libc::SIG_SETMASK, &raw const self.before, ptr::null_mut());
        }
    }
}
