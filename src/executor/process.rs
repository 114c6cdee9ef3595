//! The hand for `cmd`: a program in a process group of its own, argv without a shell, its
//! stdout to the node's log and through the line parser, its stderr to the log.
//!
//! The log is made by the first byte that goes there: to make a file can cost half of what it costs
//! to start a process (ext4 passes by, one by one, all that were deleted there lately), and most
//! programs of a large run say nothing. So stderr passes through here as well, though nothing of it
//! is captured; only in a pod, whose log is there already, it is given that itself.
//!
//! Must not decide what an exit code means.

use std::cell::{Cell, OnceCell};
use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, kill_process_group, waitid,
};

use crate::engine::event::{Ending, Outcome};
use crate::engine::spec::{Cmd, EnvText, NotSet};
use crate::executor::control::Control;
use crate::executor::fence::{Fence, Inside};
use crate::executor::lines::LineParser;
use crate::executor::spawn::{self, Child, Command, Texts};
use crate::value::Value;

/// What surrounds an attempt on this machine.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The environment that nodes inherit.
    pub env: BTreeMap<OsString, OsString>,
    /// The template's own folder, for relative paths.
    pub folder: PathBuf,
    /// How long a process has between TERM and KILL.
    pub grace: Duration,
    /// The fence around processes; none: there is none.
    pub fence: Option<Fence>,
}

impl Surroundings {
    /// A node's own variables. Every text is expanded by the inherited environment, so their
    /// order makes no difference.
    pub fn own_env(
        &self,
        own: &[(String, EnvText)],
    ) -> Result<BTreeMap<OsString, OsString>, String> {
        own.iter()
            .map(|(name, text)| {
                text.expand(|name| self.lookup(name))
                    .map(|value| (OsString::from(name), value))
                    .map_err(|error| format!("{error} (in action.env.{name})"))
            })
            .collect()
    }

    /// The environment of a process: the inherited one with a node's own variables on top, as
    /// `NAME=value`.
    pub(super) fn env_texts(&self, own: &BTreeMap<OsString, OsString>) -> Result<Texts, String> {
        let mut texts = Texts::default();
        let inherited = self.env.iter().filter(|(name, _)| !own.contains_key(*name));
        for (name, value) in inherited.chain(own) {
            if !texts.push(&[name.as_bytes(), b"=", value.as_bytes()]) {
                let shown = name.to_string_lossy();
                return Err(format!(
                    "the environment variable {shown} holds a zero byte"
                ));
            }
        }
        Ok(texts)
    }

    /// An inherited environment variable.
    #[must_use]
    pub fn lookup(&self, name: &str) -> Option<OsString> {
        self.env.get(OsStr::new(name)).cloned()
    }

    /// A path of the template: relative ones are relative to its folder.
    pub fn path(&self, text: &EnvText) -> Result<PathBuf, NotSet> {
        Ok(self.folder.join(text.expand(|name| self.lookup(name))?))
    }
}

/// Arguments by the original's rule: one letter is `-k value`, more are `--name value`. The
/// value is always a word of its own, so one that starts with `-` is handed over as it is.
#[must_use]
pub fn options(param: &[(String, Value)]) -> Vec<String> {
    let mut words = Vec::new();
    for (name, value) in param {
        let dashes = if name.chars().count() == 1 { "-" } else { "--" };
        words.push(format!("{dashes}{name}"));
        words.push(value.to_plain_text());
    }
    words
}

/// Why an attempt was not started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NotStarted {
    /// A property of the node: every other attempt would fail as well.
    Node(String),
    /// A property of this machine at this moment: no descriptors, no processes, no memory, no
    /// directory for the attempt.
    Machine(String),
}

impl NotStarted {
    /// The outcome where the difference does not matter.
    pub(super) fn outcome(self) -> Outcome {
        let (Self::Node(why) | Self::Machine(why)) = self;
        Outcome::silent(Ending::NotStarted(why))
    }
}

impl From<String> for NotStarted {
    fn from(why: String) -> Self {
        Self::Node(why)
    }
}

/// Runs a program to its end and says what came of it. Blocks.
#[must_use]
pub fn run(
    cmd: &Cmd,
    param: &[(String, Value)],
    surroundings: &Surroundings,
    log: &Path,
    control: &Control,
) -> Outcome {
    try_run(cmd, param, surroundings, log, control).unwrap_or_else(NotStarted::outcome)
}

/// As [`run`], with the reason for which nothing was started.
pub(super) fn try_run(
    cmd: &Cmd,
    param: &[(String, Value)],
    surroundings: &Surroundings,
    log: &Path,
    control: &Control,
) -> Result<Outcome, NotStarted> {
    let Some(fence) = &surroundings.fence else {
        let prepared = Prepared::new(cmd, param, surroundings)?;
        return prepared.run(surroundings.grace, log, control, None);
    };
    let (inside, surroundings) = fence.enter(surroundings).map_err(NotStarted::Machine)?;
    let prepared = Prepared::new(cmd, param, &surroundings)?;
    let program = prepared.program.clone();
    let outcome = prepared.run(surroundings.grace, log, control, Some(&inside))?;
    Ok(inside.leave(outcome, Some(&program)))
}

struct Prepared {
    program: PathBuf,
    args: Texts,
    env: Texts,
}

impl Prepared {
    fn new(
        cmd: &Cmd,
        param: &[(String, Value)],
        surroundings: &Surroundings,
    ) -> Result<Self, String> {
        let own = surroundings.own_env(&cmd.env)?;
        let expand = |text: &EnvText| {
            text.expand(|name| surroundings.lookup(name))
                .map_err(|error| format!("{error} (in action.cmd)"))
        };
        let word = expand(&cmd.program)?;
        let name = OsStr::new("PATH");
        let path = own.get(name).or_else(|| surroundings.env.get(name));
        let program = find(&word, &surroundings.folder, path)?;
        let mut words = vec![word];
        for arg in &cmd.args {
            words.push(expand(arg)?);
        }
        words.extend(options(param).into_iter().map(OsString::from));
        let mut args = Texts::default();
        for word in &words {
            if !args.push(&[word.as_bytes()]) {
                let shown = word.to_string_lossy();
                return Err(format!(
                    "the argument {shown:?} holds a zero byte, which no program can be given"
                ));
            }
        }
        let env = surroundings.env_texts(&own)?;
        Ok(Self { program, args, env })
    }

    fn run(
        self,
        grace: Duration,
        log: &Path,
        control: &Control,
        inside: Option<&Inside>,
    ) -> Result<Outcome, NotStarted> {
        let machine = NotStarted::Machine;
        let (stdout, child_stdout) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|error| machine(format!("cannot make a pipe: {error}")))?;
        let stderr = Stderr::new(log).map_err(machine)?;
        let log = Log::new(log, log_room(inside));
        let program = CString::new(self.program.as_os_str().as_bytes())
            .map_err(|_| "the program's path holds a zero byte".to_owned())?;
        let launcher = match inside {
            Some(inside) => {
                Inside::share(&child_stdout);
                Inside::share(&stderr.given);
                Some(inside.launcher(&program, None, &[])?)
            }
            None => None,
        };
        let mut command = Command {
            program,
            args: self.args,
            env: self.env,
            stdin: no_input().map_err(machine)?,
            stdout: child_stdout.as_fd(),
            stderr: stderr.given.as_fd(),
            inherit: [None, None],
            leashed: false,
        };
        if let (Some(inside), Some(launcher)) = (inside, &launcher) {
            command = launcher.wrap(&command);
            control.leash(inside.leash().map_err(machine)?);
        }
        let started = control.start(|| spawn::spawn(&command).map(|child| (child.pid, child)));
        drop((child_stdout, launcher));
        let stderr = stderr.kept();
        let child = match started {
            Ok(Ok(child)) => child,
            Ok(Err(error)) => {
                let why = not_executed(&self.program, &error);
                // In the sandbox it is the launcher that could not be started. Only the length of
                // the arguments, which it is given too, is the node's.
                let too_long =
                    error.raw_os_error() == Some(rustix::io::Errno::TOOBIG.raw_os_error());
                return Err(if inside.is_some() && !too_long {
                    machine(format!("cannot start the launcher of the sandbox: {error}"))
                } else {
                    NotStarted::Node(why)
                });
            }
            Err(cause) => return Ok(Outcome::silent(Ending::Killed(cause))),
        };
        let mut lines = LineParser::default();
        let mut said = |bytes: &[u8]| {
            lines.push(bytes);
            log.write(bytes);
        };
        let mut complained = |bytes: &[u8]| log.write(bytes);
        let mut sources = vec![Source::new(&stdout, &mut said)];
        sources.extend(
            stderr
                .as_ref()
                .map(|stderr| Source::new(stderr, &mut complained)),
        );
        read_until_end(child.pidfd.as_fd(), &mut sources);
        drop(sources);
        let ending = end(&child, grace, control);
        Ok(Outcome {
            ending,
            captured: lines.finish(),
        })
    }
}

/// How many bytes a log takes.
pub(super) fn log_room(inside: Option<&Inside>) -> u64 {
    inside.map_or(u64::MAX, Inside::log_limit)
}

/// The log that is this program's own standard output, as in a pod.
pub const OWN_STDOUT: &str = "/dev/stdout";

/// What programs have for standard input: nothing. Opened once.
pub(super) fn no_input() -> Result<BorrowedFd<'static>, String> {
    static NULL: OnceLock<File> = OnceLock::new();
    if let Some(null) = NULL.get() {
        return Ok(null.as_fd());
    }
    let null =
        File::open("/dev/null").map_err(|error| format!("cannot open /dev/null: {error}"))?;
    Ok(NULL.get_or_init(|| null).as_fd())
}

/// A node's log, made when there is something to write.
pub(super) struct Log<'a> {
    path: &'a Path,
    file: OnceCell<Option<File>>,
    /// How many bytes more it takes.
    room: Cell<u64>,
}

impl<'a> Log<'a> {
    pub(super) fn new(path: &'a Path, room: u64) -> Self {
        Self {
            path,
            file: OnceCell::new(),
            room: Cell::new(room),
        }
    }

    /// Appends as much as there is room for. A full disk must not end the node: what is captured
    /// still counts.
    pub(super) fn write(&self, bytes: &[u8]) {
        let room = self.room.get();
        let most = usize::try_from(room).unwrap_or(usize::MAX);
        let bytes = bytes.get(..most).unwrap_or(bytes);
        self.room.set(room.saturating_sub(bytes.len() as u64));
        if bytes.is_empty() {
            return;
        }
        if let Some(mut file) = self.file.get_or_init(|| open_log(self.path).ok()).as_ref() {
            let _ = file.write_all(bytes);
        }
    }
}

/// Where a process's stderr goes: a pipe to us, or the log that is there already.
pub(super) struct Stderr {
    /// What the process is given.
    pub(super) given: OwnedFd,
    read: Option<OwnedFd>,
}

impl Stderr {
    pub(super) fn new(log: &Path) -> Result<Self, String> {
        if log == Path::new(OWN_STDOUT) {
            let (given, read) = (open_log(log)?.into(), None);
            return Ok(Self { given, read });
        }
        let (read, given) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|error| format!("cannot make a pipe: {error}"))?;
        let read = Some(read);
        Ok(Self { given, read })
    }

    /// What is to be read of it, once it has been given away.
    pub(super) fn kept(self) -> Option<OwnedFd> {
        self.read
    }
}

/// Opens a node's log so that what several processes write stands in the order of writing.
pub fn open_log(path: &Path) -> Result<File, String> {
    if path == Path::new(OWN_STDOUT) {
        // Not by its name: it may be a pipe of somebody else's, which we may use but not open.
        return (rustix::stdio::stdout().try_clone_to_owned())
            .map(File::from)
            .map_err(|error| format!("cannot write to standard output: {error}"));
    }
    File::options()
        .append(true)
        .create(true)
        .mode(0o600)
        // A link there was put by somebody else, or by mistake: nobody's log is elsewhere.
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)
        .map_err(|error| format!("cannot open the log {}: {error}", path.display()))
}

/// The file of a program: paths are relative to the template's folder, bare names are looked up
/// in the node's `PATH`.
fn find(word: &OsStr, folder: &Path, path: Option<&OsString>) -> Result<PathBuf, String> {
    if word.is_empty() {
        return Err("the program's name is empty".to_owned());
    }
    if word.as_bytes().contains(&b'/') {
        return Ok(folder.join(word));
    }
    let executable = |candidate: &PathBuf| {
        candidate.is_file() && rustix::fs::access(candidate, rustix::fs::Access::EXEC_OK).is_ok()
    };
    let path = path.map(OsString::as_os_str).unwrap_or_default();
    std::env::split_paths(path)
        .filter(|entry| entry.is_absolute())
        .map(|entry| entry.join(word))
        .find(executable)
        .ok_or_else(|| {
            let (word, path) = (word.to_string_lossy(), path.to_string_lossy());
            format!("there is no executable `{word}` in the node's PATH ({path})")
        })
}

/// Why exec failed, in words that name the thing to mend.
pub(super) fn not_executed(program: &Path, error: &std::io::Error) -> String {
    let shown = program.display();
    match (error.kind(), program.metadata()) {
        (std::io::ErrorKind::NotFound, Ok(_)) => {
            format!("cannot run {shown}: the interpreter in its first line does not exist")
        }
        (std::io::ErrorKind::NotFound, Err(_)) => format!("there is no file {shown}"),
        (std::io::ErrorKind::PermissionDenied, Ok(data)) if data.is_dir() => {
            format!("cannot run {shown}: it is a folder")
        }
        (std::io::ErrorKind::PermissionDenied, Ok(_)) => {
            format!("cannot run {shown}: it is not executable; try chmod +x")
        }
        _ if error.raw_os_error() == Some(rustix::io::Errno::NOEXEC.raw_os_error()) => {
            format!(
                "cannot run {shown}: it is no program, and no script with an interpreter in its first line (#!/bin/sh)"
            )
        }
        _ => format!("cannot run {shown}: {error}"),
    }
}

/// A stream to be read, and what takes its bytes.
pub(super) struct Source<'a> {
    stream: &'a OwnedFd,
    take: &'a mut dyn FnMut(&[u8]),
    open: bool,
}

impl<'a> Source<'a> {
    pub(super) fn new(stream: &'a OwnedFd, take: &'a mut dyn FnMut(&[u8])) -> Self {
        Self {
            stream,
            take,
            open: true,
        }
    }

    /// Takes what one read gives; none: nothing is there (and the stream does not block), or
    /// it is over. `buffer` is empty before and after.
    fn read(&mut self, buffer: &mut Vec<u8>) -> Option<usize> {
        let length = loop {
            match rustix::io::read(self.stream, rustix::buffer::spare_capacity(buffer)) {
                Err(rustix::io::Errno::INTR) => {}
                read => break read.ok()?,
            }
        };
        if length == 0 {
            self.open = false;
            return None;
        }
        (self.take)(buffer);
        buffer.clear();
        Some(length)
    }

    /// Takes what is there now, about `budget` bytes at the most.
    fn drain(&mut self, buffer: &mut Vec<u8>, mut budget: usize) {
        // Others may still hold the writing end, and never write.
        let _ = rustix::io::ioctl_fionbio(self.stream, true);
        while self.open
            && budget > 0
            && let Some(length) = self.read(buffer)
        {
            budget = budget.saturating_sub(length);
        }
    }
}

/// How long the end of a process is waited for once it has closed a stream.
const A_MOMENT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 1_000_000,
};

/// Reads streams until `ended` is readable. What was written by then is read to the last byte;
/// what left-over children write later is not waited for.
pub(super) fn read_until_end(ended: BorrowedFd<'_>, sources: &mut [Source<'_>]) {
    // The largest pipe that the system makes for anybody.
    const PIPE: usize = 1024 * 1024;
    let mut buffer = Vec::with_capacity(64 * 1024);
    let mut fds = Vec::with_capacity(1 + sources.len());
    let mut has_closed = false;
    loop {
        fds.clear();
        fds.push(PollFd::from_borrowed_fd(ended, PollFlags::IN));
        // A process that closes a stream mostly ends, and closes the others on its way: that is
        // waited for first, so that all of it costs one wake-up.
        let patience = std::mem::take(&mut has_closed).then_some(&A_MOMENT);
        if patience.is_none() {
            let open = sources.iter().filter(|source| source.open);
            fds.extend(open.map(|source| PollFd::new(source.stream, PollFlags::IN)));
        }
        match poll(&mut fds, patience) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => {
                // The system is short of memory; the process goes on, so do we.
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
        }
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let over = ready.next().unwrap_or(true);
        for source in sources.iter_mut().filter(|source| source.open) {
            let is_ready = ready.next().unwrap_or(false);
            if over {
                source.drain(&mut buffer, PIPE);
            } else if is_ready {
                source.read(&mut buffer);
                has_closed |= !source.open;
            }
        }
        if over {
            return;
        }
    }
}

/// Reaps an ended child and says how it ended.
fn end(child: &Child, grace: Duration, control: &Control) -> Ending {
    let (status, killed) = control.reap(|| wait(child));
    if let Some(cause) = killed {
        sweep(child.pid, grace, control);
        spawn::forget(child.pid);
        return Ending::Killed(cause);
    }
    spawn::forget(child.pid);
    match status {
        Some(status) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Ending::Exited(code),
            (None, Some(signal)) => Ending::Signalled(signal),
            (None, None) => {
                Ending::Lost("the process ended in a way that cannot be read".to_owned())
            }
        },
        None => Ending::Lost("somebody else has reaped the process".to_owned()),
    }
}

fn wait(child: &Child) -> Option<WaitIdStatus> {
    loop {
        match waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED) {
            Err(rustix::io::Errno::INTR) => {}
            status => return status.ok().flatten(),
        }
    }
}

/// Ends what an ended leader has left in its group: they have been asked already, and get the
/// rest of the grace. While any of them lives, the kernel gives the group's id to nobody else.
pub(super) fn sweep(group: Pid, grace: Duration, control: &Control) {
    let started = Instant::now();
    while rustix::process::test_kill_process_group(group).is_ok() {
        if control.is_hard() || started.elapsed() >= grace {
            let _ = kill_process_group(group, Signal::KILL);
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
