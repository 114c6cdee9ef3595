//! The runner's check of itself.
//!
//! What a node does to the runner must not end other nodes for good. A runner that cannot work any
//! more ends as a whole: its supervisor (the kubelet, or the operator whose child it is) starts
//! another, and the operator counts what ran over the lost connection as lost. So this looks for
//! what nodes of the same user could do to a runner from outside: directories that are gone or
//! closed, lowered limits, no descriptors, a removed socket, a launcher that cannot be started.
//!
//! Must not mend anything while nodes run: what was changed once can be changed again.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit};

use crate::engine::event::{Ending, KillCause};
use crate::engine::spec::{Cmd, EnvText};
use crate::executor::control::Control;
use crate::executor::fence::{Fence, Limits};
use crate::executor::process::{self, NotStarted, Surroundings};

use super::serve::{KEPT, Options};

/// How often the directories, sockets and limits are looked at.
pub const EVERY: Duration = Duration::from_secs(1);
/// How often a program is run through the sandbox though no attempt gave reason to doubt.
pub const PROGRAM_EVERY: Duration = Duration::from_secs(60);
/// How long that program may take on a busy machine. It does nothing.
const WITHIN: Duration = Duration::from_secs(10);
/// Pauses before a failed check is repeated. A machine can lack processes or memory for a moment;
/// what fails each time will not work for nodes either.
const AGAIN: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(1)];
/// Exit status of a runner that ends because it is broken.
pub const BROKEN: i32 = 3;
/// This program, whatever has become of its file. The launcher is this program too, so the name
/// means the same there.
const ITSELF: &str = "/proc/self/exe";
/// Limits that every process of the same user may lower for this one.
const LIMITS: [Resource; 8] = [
    Resource::As,
    Resource::Core,
    Resource::Cpu,
    Resource::Data,
    Resource::Fsize,
    Resource::Nofile,
    Resource::Nproc,
    Resource::Stack,
];

/// Checks a runner that works by these options.
#[derive(Debug)]
pub struct SelfCheck {
    options: Options,
    /// The sockets on which it listens: path, device and inode.
    sockets: Vec<(PathBuf, u64, u64)>,
    limits: Vec<(Resource, Rlimit)>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When the last program began that ended as it should.
    well: Option<Instant>,
    /// Why the sandbox cannot be had on this machine at all: each node says so by itself.
    unable: Option<String>,
    /// Whether the directories are gone because the runner is at its end.
    over: bool,
}

impl SelfCheck {
    /// A check of a runner that serves on these sockets. Its limits are right as they are now.
    ///
    /// # Errors
    /// Where a socket is not there.
    pub fn new(options: &Options, sockets: &[&Path]) -> io::Result<Self> {
        let sockets = sockets.iter().map(|path| {
            let found = fs::symlink_metadata(path)?;
            Ok((path.to_path_buf(), found.dev(), found.ino()))
        });
        Ok(Self {
            options: options.clone(),
            sockets: sockets.collect::<io::Result<_>>()?,
            limits: LIMITS.map(|it| (it, getrlimit(it))).to_vec(),
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first check, before any node: whether the runner can work here. Where the kernel lacks
    /// what the sandbox needs, it can serve nevertheless: nodes are refused, with the reason.
    ///
    /// # Errors
    /// What does not work, and what was expected.
    pub fn first(&self) -> Result<(), String> {
        repeated(|| {
            let mut state = self.state();
            self.look(&state)?;
            match self.run_program() {
                Ok(()) => {}
                Err(Unwell::Refused(why)) => {
                    eprintln!("apscli runner: no node can start here: {why}");
                    state.unable = Some(why);
                }
                Err(Unwell::Broken(why)) => return Err(why),
            }
            Ok(())
        })
    }

    /// Replaces the directories. No check runs meanwhile.
    pub fn replacing<T>(&self, replace: impl FnOnce() -> T) -> T {
        let _held = self.state();
        replace()
    }

    /// The runner ends in order; from now on nothing is expected of its directories.
    pub fn finish(&self) {
        self.state().over = true;
    }

    /// Looks at directories, sockets, limits and descriptors: some microseconds.
    ///
    /// # Errors
    /// What is wrong, and what was expected, after it was so several times.
    pub fn quick(&self) -> Result<(), String> {
        repeated(|| self.look(&self.state()))
    }

    /// As [`Self::quick`], and runs a program through the very sandbox. Callers that wait for each
    /// other share what was begun after they asked.
    ///
    /// # Errors
    /// What is wrong, and what was expected, after it was so several times.
    pub fn whole(&self) -> Result<(), String> {
        let asked = Instant::now();
        repeated(|| {
            let mut state = self.state();
            self.look(&state)?;
            if state.unable.is_some() || state.over || state.well.is_some_and(|it| it >= asked) {
                return Ok(());
            }
            let began = Instant::now();
            self.run_program().map_err(|it| match it {
                Unwell::Refused(why) | Unwell::Broken(why) => why,
            })?;
            state.well = Some(began);
            Ok(())
        })
    }

    fn look(&self, state: &State) -> Result<(), String> {
        if state.over {
            return Ok(());
        }
        for (resource, first) in &self.limits {
            let now = getrlimit(*resource);
            // None is no limit.
            let lower = |now: Option<u64>, first: Option<u64>| {
                now.is_some_and(|now| first.is_none_or(|first| now < first))
            };
            if lower(now.current, first.current) {
                return Err(format!(
                    "the limit {resource:?} of the runner was lowered to {:?}, expected {:?}",
                    now.current, first.current
                ));
            }
        }
        for (path, device, inode) in &self.sockets {
            let found = fs::symlink_metadata(path).map_err(|error| {
                format!("the socket {}: {error}, expected it there", path.display())
            })?;
            if (found.dev(), found.ino()) != (*device, *inode) {
                return Err(format!(
                    "the socket {} is another one, expected the runner's own",
                    path.display()
                ));
            }
        }
        for name in KEPT {
            directory(&self.options.folder.join(name))?;
        }
        Ok(())
    }

    fn run_program(&self) -> Result<(), Unwell> {
        let options = &self.options;
        let nodes = options.folder.join("nodes");
        let mut fence = Fence::new(options.mode, nodes, options.slots);
        // Space for this program, however little a node has.
        fence.limits = Limits {
            processes: options.limits.processes,
            ..Limits::default()
        };
        fence.readable.push(PathBuf::from(ITSELF));
        let surroundings = Surroundings {
            env: Fence::environment(options.env.iter().cloned()),
            folder: options.folder.join("scripts"),
            grace: Duration::ZERO,
            fence: Some(fence),
        };
        let cmd = Cmd {
            program: EnvText::literal(ITSELF),
            args: vec![EnvText::literal("--version")],
            env: Vec::new(),
        };
        let log = options.folder.join("logs").join("check");
        let control = Control::default();
        let ran = std::thread::scope(|scope| {
            let (done, is_done) = channel::<()>();
            let control = &control;
            let watch = std::thread::Builder::new()
                .name("check".to_owned())
                .spawn_scoped(scope, move || {
                    if is_done.recv_timeout(WITHIN).is_err() {
                        control.terminate(KillCause::NodeTimeout);
                        control.kill();
                    }
                });
            watch
                .map_err(|error| NotStarted::Machine(format!("cannot start a thread: {error}")))?;
            let ran = process::try_run(&cmd, &[], &surroundings, &log, control);
            let _ = done.send(());
            ran
        });
        let _ = fs::remove_file(&log);
        let what = "a program that does nothing";
        match ran.map(|outcome| outcome.ending) {
            Ok(Ending::Exited(0)) => Ok(()),
            Ok(Ending::NotStarted(why)) => Err(Unwell::Refused(why)),
            Ok(Ending::Lost(why)) | Err(NotStarted::Node(why) | NotStarted::Machine(why)) => {
                Err(Unwell::Broken(format!("{what} cannot be started: {why}")))
            }
            Ok(Ending::Killed(_)) => Err(Unwell::Broken(format!(
                "{what} has not ended within {} s in the sandbox",
                WITHIN.as_secs()
            ))),
            Ok(other) => Err(Unwell::Broken(format!(
                "{what} ended in the sandbox with {other:?}, expected status 0"
            ))),
        }
    }
}

/// Why a program did not run through the sandbox.
enum Unwell {
    /// The launcher refused it: on a fresh runner, a property of the machine.
    Refused(String),
    /// The runner cannot work.
    Broken(String),
}

fn repeated(mut check: impl FnMut() -> Result<(), String>) -> Result<(), String> {
    let mut checked = check();
    for pause in AGAIN {
        if checked.is_ok() {
            break;
        }
        std::thread::sleep(pause);
        checked = check();
    }
    checked
}

/// Whether files can be made in a directory, also by a process without capabilities.
fn directory(path: &Path) -> Result<(), String> {
    const OWNER: u32 = 0o700;
    let shown = path.display();
    let words = |error: io::Error| format!("the directory {shown}: {error}");
    let found = fs::symlink_metadata(path).map_err(words)?;
    if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
        return Err(format!(
            "{shown} is not the runner's own directory any more"
        ));
    }
    if found.mode() & OWNER != OWNER {
        return Err(format!(
            "the directory {shown} has the mode {:o}, expected {OWNER:o} for its owner",
            found.mode() & 0o7777
        ));
    }
    let probe = path.join(".check");
    let made = fs::File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(libc::O_NOFOLLOW)
        .mode(0o600)
        .open(&probe);
    match made {
        Ok(_) => fs::remove_file(&probe).map_err(words),
        // Nodes fill it for as long as they run; nothing is broken by that.
        Err(error) if error.kind() == io::ErrorKind::StorageFull => Ok(()),
        Err(error) => Err(words(error)),
    }
}

/// Ends this process, and with it all that it runs: their launchers lose their leash.
pub fn end(why: &str) -> ! {
    eprintln!("apscli runner: ends, because it cannot work any more: {why}");
    std::process::exit(BROKEN);
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::executor::fence::Mode;

    fn check(folder: &Path, sockets: &[&Path]) -> SelfCheck {
        for name in KEPT {
            fs::create_dir(folder.join(name)).unwrap();
        }
        let options = Options {
            folder: folder.to_path_buf(),
            slots: NonZeroUsize::MIN,
            mode: Mode::Required,
            limits: Limits::default(),
            longest: Duration::from_secs(1),
            env: Vec::new(),
        };
        SelfCheck::new(&options, sockets).unwrap()
    }

    /// Each way of breaking a directory or the socket is seen, and named.
    #[test]
    fn quick_check_names_what_is_broken() {
        type Break = fn(&Path);
        let ways: [(Break, &str); 5] = [
            (
                |at| {
                    fs::set_permissions(at.join("nodes"), fs::Permissions::from_mode(0o000))
                        .unwrap();
                },
                "has the mode 0, expected 700",
            ),
            (
                |at| fs::remove_dir(at.join("scripts")).unwrap(),
                "/scripts: No such file",
            ),
            (
                |at| {
                    fs::remove_dir(at.join("logs")).unwrap();
                    symlink("/tmp", at.join("logs")).unwrap();
                },
                "/logs is not the runner's own directory",
            ),
            (
                |at| fs::remove_file(at.join("socket")).unwrap(),
                "/socket: No such file",
            ),
            (
                |at| {
                    fs::write(at.join("other"), "").unwrap();
                    fs::rename(at.join("other"), at.join("socket")).unwrap();
                },
                "/socket is another one",
            ),
        ];
        for (harm, expected) in ways {
            let folder = tempfile::tempdir().unwrap();
            let socket = folder.path().join("socket");
            fs::write(&socket, "").unwrap();
            let check = check(folder.path(), &[&socket]);
            assert_eq!(check.look(&check.state()), Ok(()));
            harm(folder.path());
            let why = check.look(&check.state()).unwrap_err();
            assert!(why.contains(expected), "{why}");
            check.finish();
            assert_eq!(check.look(&check.state()), Ok(()), "at its end");
        }
    }

    #[test]
    fn failure_that_passes_is_no_failure() {
        let mut left = 2;
        let passes = || {
            left -= 1;
            if left > 0 {
                Err("not yet".to_owned())
            } else {
                Ok(())
            }
        };
        assert_eq!(repeated(passes), Ok(()));
        assert_eq!(repeated(|| Err("no".to_owned())), Err("no".to_owned()));
    }
}
