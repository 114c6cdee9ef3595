//! The fence around the processes of a node: a folder of its own, and a launcher that closes
//! everything else before the node's program begins.
//!
//! ```text
//! hand ─spawn→ launcher (this program, `launch.rs`) ─fork→ rules (`rules.rs`) ─exec→ the program
//!   └──────── one socket: what is enforced, why it did not start, what it used up ───┘
//!              launcher (`broker.rs`) ←─ calls that no filter can decide ─ the program
//! ```
//! The launcher is a program of its own, so that nothing unsafe happens between fork and exec in
//! a process with many threads; it stays, because somebody must end *all* that a node started,
//! also what left its group and its session. Whoever started it holds the other end of the
//! socket: when that is closed, which the kernel does for the dead too, all of it is ended.
//!
//! Not fenced: what programs may learn by `stat`, locks on files that they can read, and how much CPU
//! they take among others.
//! Must not start anything without what was asked for: it closes or it refuses.

#[cfg(feature = "program")]
mod broker;
#[cfg(feature = "program")]
mod calls;
#[cfg(feature = "program")]
mod identity;
#[cfg(feature = "program")]
pub mod launch;
#[cfg(feature = "program")]
mod rules;
#[cfg(feature = "program")]
pub(super) mod sweep;
#[cfg(feature = "program")]
mod usage;

use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair};
use serde::{Deserialize, Serialize};

use crate::engine::event::{Ending, Outcome};
use crate::executor::process::Surroundings;
use crate::executor::spawn::{Command, Texts};

/// The first argument by which this program becomes the launcher; the policy and the command
/// follow.
pub const LAUNCH: &str = "__fence";
/// Where the program finds itself, whatever has become of its file.
const ITSELF: &CStr = c"/proc/self/exe";
/// Most bytes that a launcher says.
const SAID: u64 = 64 * 1024;
/// What stands before each variable of the program in the launcher's environment, so that none of
/// them is one to the launcher, nor to its loader: both are outside of the fence.
const ASIDE: &[u8] = b".";
/// Variables that processes in the fence inherit, beside the `LC_` ones; all others could be
/// somebody's secrets.
const INHERITED: [&str; 6] = [
    "PATH",
    "LANG",
    "LANGUAGE",
    "TZ",
    "VIRTUAL_ENV",
    "APSCLI_PYTHON_EXTENSION",
];

/// What happens where the kernel cannot do all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Nothing starts.
    #[default]
    Required,
    /// What can be enforced is.
    BestEffort,
}

/// What the processes of one attempt may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Bytes of address space of each process, and of resident memory of all together.
    pub memory: u64,
    /// Seconds of CPU time of each process.
    pub cpu: u64,
    /// Files that each process has open.
    pub open_files: u64,
    /// Processes and threads.
    pub processes: u64,
    /// Bytes of one file.
    pub file: u64,
    /// Bytes of all files in the folder.
    pub folder: u64,
    /// Bytes of the log.
    pub log: u64,
}

impl Default for Limits {
    fn default() -> Self {
        const MIB: u64 = 1024 * 1024;
        Self {
            memory: 1024 * MIB,
            cpu: 3600,
            open_files: 1024,
            processes: 128,
            file: 64 * MIB,
            folder: 64 * MIB,
            log: 16 * MIB,
        }
    }
}

/// What the launcher is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Policy {
    mode: Mode,
    network: bool,
    limits: Limits,
    at_once: usize,
    /// The only folder that can be written to, and where the program starts.
    folder: PathBuf,
    /// What can be read and executed, beside what every system has.
    readable: Vec<PathBuf>,
    /// What of that cannot be read, whatever it is below. Without links.
    hidden: Vec<PathBuf>,
    /// The launcher's end of the socket.
    socket: RawFd,
    /// One more descriptor that the program gets.
    inherit: Option<RawFd>,
}

/// What a launcher says, a line each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Said {
    /// The program is about to begin, and this is enforced.
    Enforced(String),
    /// It did not begin.
    Refused(String),
    /// The launcher itself could not work: a failure of this machine and not of the node.
    Broken(String),
    /// Its file could not be executed; the error's number.
    NotExecuted(i32),
    /// It was ended, because it used more than it may.
    Over(String),
    #[default]
    #[serde(other)]
    Unknown,
}

/// A fence to put processes into.
#[derive(Clone, Debug)]
pub struct Fence {
    /// What happens where the kernel cannot do all of it.
    pub mode: Mode,
    /// Whether there is a network: TCP and UDP, nothing else.
    pub network: bool,
    /// What an attempt may use.
    pub limits: Limits,
    /// How many attempts whoever makes this may have in such fences at once: the kernel counts the
    /// processes of all of them together, and each may have as many as its own limit says.
    pub at_once: NonZeroUsize,
    /// Where the folders of attempts are made.
    pub folder: PathBuf,
    /// What can be read and executed, beside what every system has and the template's folder.
    pub readable: Vec<PathBuf>,
    /// What of that and of the template's directory cannot be read (but for its names): what
    /// belongs to runs. Paths without links.
    pub hidden: Vec<PathBuf>,
    /// What was enforced last, in words.
    enforced: Arc<Mutex<Option<String>>>,
}

impl Fence {
    /// A fence without a network, with the usual limits, for one of `at_once` attempts.
    #[must_use]
    pub fn new(mode: Mode, folder: PathBuf, at_once: NonZeroUsize) -> Self {
        Self {
            mode,
            network: false,
            limits: Limits::default(),
            at_once,
            folder,
            readable: Vec::new(),
            hidden: Vec::new(),
            enforced: Arc::default(),
        }
    }

    /// What was enforced on the last attempt in this fence, in words; none: none began.
    #[must_use]
    pub fn enforced(&self) -> Option<String> {
        lock(&self.enforced).clone()
    }

    /// What of an environment goes into the fence.
    pub fn environment(
        all: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> BTreeMap<OsString, OsString> {
        let passes = |name: &OsStr| {
            let name = name.as_bytes();
            name.starts_with(b"LC_") || INHERITED.iter().any(|known| known.as_bytes() == name)
        };
        all.into_iter().filter(|(name, _)| passes(name)).collect()
    }

    /// Makes the place for one attempt, and what surrounds it there.
    pub(super) fn enter(&self, around: &Surroundings) -> Result<(Inside, Surroundings), String> {
        #[cfg(feature = "program")]
        sweep::adopt()?;
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|error| format!("cannot make a socket for the fence: {error}"))?;
        let inside = Inside {
            fence: self.clone(),
            folder: self.make_folder()?,
            template: around.folder.clone(),
            ours,
            theirs: Mutex::new(Some(theirs)),
        };
        let mut env = around.env.clone();
        for name in ["HOME", "TMPDIR", "PWD"] {
            env.insert(name.into(), inside.folder.clone().into_os_string());
        }
        let surroundings = Surroundings {
            env,
            folder: around.folder.clone(),
            grace: around.grace,
            fence: Some(self.clone()),
        };
        Ok((inside, surroundings))
    }

    fn make_folder(&self) -> Result<PathBuf, String> {
        let words = |error: &dyn std::fmt::Display| {
            format!("cannot make a folder in {}: {error}", self.folder.display())
        };
        let mut random = [0_u8; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| words(&error))?;
        let name = format!("node-{:016x}", u64::from_ne_bytes(random));
        let folder = self.folder.join(name);
        let mut builder = std::fs::DirBuilder::new();
        builder.mode(0o700);
        builder.create(&folder).map_err(|error| words(&error))?;
        // A directory inherits set-group-ID, which a node could not give to its own again.
        let own = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(&folder, own).map_err(|error| words(&error))?;
        Ok(folder)
    }
}

/// The place of one attempt. Dropping it ends what still runs there.
#[derive(Debug)]
pub(super) struct Inside {
    fence: Fence,
    folder: PathBuf,
    template: PathBuf,
    ours: OwnedFd,
    theirs: Mutex<Option<OwnedFd>>,
}

/// What starts a program inside.
#[derive(Debug)]
pub(super) struct Launcher {
    words: Texts,
    theirs: OwnedFd,
}

impl Launcher {
    /// The command that starts `command` inside.
    pub(super) fn wrap<'a>(&'a self, command: &Command<'a>) -> Command<'a> {
        let mut args = Texts::default();
        args.append(&self.words);
        args.append(&command.args);
        Command {
            program: ITSELF.to_owned(),
            args,
            env: command.env.prefixed(ASIDE),
            inherit: [command.inherit[0], Some(self.theirs.as_fd())],
            leashed: true,
            ..*command
        }
    }
}

impl Inside {
    /// Lets the node open a pipe by a name such as `/dev/stderr`, though root made it and the node is
    /// another user. Only who may look into a process that has the pipe finds it.
    pub(super) fn share(pipe: impl AsFd) {
        if rustix::process::geteuid().is_root() {
            let all = rustix::fs::Mode::from_raw_mode(0o666);
            let _ = rustix::fs::fchmod(pipe, all);
        }
    }

    /// Most bytes of the attempt's log.
    pub(super) fn log_limit(&self) -> u64 {
        self.fence.limits.log
    }

    /// What ends all of it when it is shut.
    pub(super) fn leash(&self) -> Result<OwnedFd, String> {
        self.ours
            .try_clone()
            .map_err(|error| format!("cannot hold the fence: {error}"))
    }

    /// Ends all that still runs there; returns at once.
    pub(super) fn let_go(&self) {
        let _ = shutdown(&self.ours, Shutdown::Write);
    }

    /// The launcher of the attempt's one program. `inherit`: a descriptor that the program gets.
    pub(super) fn launcher(
        &self,
        program: &CStr,
        inherit: Option<RawFd>,
        readable: &[PathBuf],
    ) -> Result<Launcher, String> {
        let theirs = lock(&self.theirs).take();
        let theirs = theirs.ok_or("one fence is for one program")?;
        let mut all = vec![self.template.clone()];
        all.extend(self.fence.readable.iter().chain(readable).cloned());
        let policy = Policy {
            mode: self.fence.mode,
            network: self.fence.network,
            limits: self.fence.limits,
            at_once: self.fence.at_once.get(),
            folder: self.folder.clone(),
            readable: all,
            hidden: self.fence.hidden.clone(),
            socket: theirs.as_raw_fd(),
            inherit,
        };
        let policy = serde_json::to_vec(&policy)
            .map_err(|error| format!("the fence cannot be described: {error}"))?;
        let mut words = Texts::default();
        let first: [&[u8]; 4] = [b"apscli", LAUNCH.as_bytes(), &policy, program.to_bytes()];
        if !first.iter().all(|word| words.push(&[word])) {
            return Err("a path holds a zero byte".to_owned());
        }
        Ok(Launcher { words, theirs })
    }

    /// What came of the attempt, once its launcher has ended. `program` is what was to be run.
    pub(super) fn leave(self, mut outcome: Outcome, program: Option<&Path>) -> Outcome {
        #[cfg(feature = "program")]
        if !matches!(outcome.ending, Ending::Exited(_)) {
            // It may be the launcher that was ended.
            sweep::end_strangers();
        }
        let mut began = false;
        for said in self.said() {
            match said {
                Said::Enforced(words) => {
                    began = true;
                    *lock(&self.fence.enforced) = Some(words);
                }
                Said::Refused(why) => return Outcome::silent(Ending::NotStarted(why)),
                Said::Broken(why) => return Outcome::silent(Ending::Lost(why)),
                Said::NotExecuted(number) => {
                    let why = not_executed(program, number);
                    return Outcome::silent(Ending::NotStarted(why));
                }
                Said::Over(why) => {
                    if !matches!(outcome.ending, Ending::Killed(_)) {
                        outcome.ending = Ending::NoResult(why);
                    }
                }
                Said::Unknown => {}
            }
        }
        let by_itself = matches!(outcome.ending, Ending::Exited(_) | Ending::Signalled(_));
        if !began && by_itself {
            let why = "the launcher of the sandbox ended before the program started".to_owned();
            return Outcome::silent(Ending::Lost(why));
        }
        outcome
    }

    fn said(&self) -> Vec<Said> {
        // Nobody else may hold the launcher's end, or reading would wait for them.
        drop(lock(&self.theirs).take());
        let Ok(ours) = self.ours.try_clone() else {
            return Vec::new();
        };
        let _ = rustix::io::ioctl_fionbio(&ours, true);
        let mut text = Vec::new();
        let _ = File::from(ours).take(SAID).read_to_end(&mut text);
        let lines = text.split(|byte| *byte == b'\n');
        lines
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect()
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        // The launcher does both. This is for one that never began, or was ended itself.
        if self.folder.exists() {
            #[cfg(feature = "program")]
            {
                sweep::end_strangers();
                sweep::remove(&self.folder);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why exec failed inside the fence.
fn not_executed(program: Option<&Path>, number: i32) -> String {
    let error = std::io::Error::from_raw_os_error(number);
    let Some(program) = program else {
        return format!("cannot run python in the fence: {error}");
    };
    let executable = || rustix::fs::access(program, rustix::fs::Access::EXEC_OK).is_ok();
    if error.kind() == std::io::ErrorKind::PermissionDenied && program.is_file() && executable() {
        return format!(
            "cannot run {}: it, or the interpreter in its first line, is outside of what the sandbox lets be read",
            program.display()
        );
    }
    super::process::not_executed(program, &error)
}
