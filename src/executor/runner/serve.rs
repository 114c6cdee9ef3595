//! The runner's side: a connection, its queue, and the attempts that go on.
//!
//! No more at once than there is room for, and of all runs in turn: a run of a thousand nodes
//! does not stand before one of three. Each attempt has two threads: one is the hand, the other
//! keeps its time.
//!
//! Must not start anything for a connection that is over.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Component, Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::engine::event::{CancelCause, Ending, KillCause, Outcome};
use crate::engine::spec::Action;
use crate::executor::control::Control;
use crate::executor::decision::Work;
use crate::executor::fence::sweep;
use crate::executor::fence::{Fence, Limits, Mode};
use crate::executor::process::{self, NotStarted, Surroundings};
use crate::executor::python::Python;

use super::check::{self, SelfCheck};
use super::{MOST, PROTOCOL, Piece, Reply, Request, Script, frame, receive};

/// Most bytes of the files of one run.
const FILES: usize = 16 * 1024 * 1024;
/// How long a killed attempt has until it is said to be lost.
const GONE_WITHIN: Duration = Duration::from_secs(15);

/// How a runner works.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its own folder. All that was in it goes.
    pub folder: PathBuf,
    /// How many attempts at once.
    pub slots: NonZeroUsize,
    /// What happens where the kernel cannot do all of the fence.
    pub mode: Mode,
    /// What each attempt may use.
    pub limits: Limits,
    /// Longest time of any attempt.
    pub longest: Duration,
    /// The environment of which the fence lets a part through.
    pub env: Vec<(OsString, OsString)>,
}

/// How many attempts there may be at once: as many as asked for, and no more than their memory
/// has room for in `memory` bytes, of which the runner itself takes a share. None: not even one.
#[must_use]
pub fn slots(asked: NonZeroUsize, limits: &Limits, memory: Option<u64>) -> Option<NonZeroUsize> {
    const OWN: u64 = 64 * 1024 * 1024;
    let Some(memory) = memory else {
        return Some(asked);
    };
    let fits = memory.saturating_sub(OWN) / limits.memory.max(1);
    let fits = usize::try_from(fits).unwrap_or(usize::MAX);
    NonZeroUsize::new(fits.min(asked.get()))
}

/// What a runner keeps in its folder.
pub(super) const KEPT: [&str; 3] = ["nodes", "scripts", "logs"];

/// Takes away what serving has left in the folder; and the folder too, unless it has something
/// else in it, as somebody's folder would.
pub fn clear(folder: &Path) {
    reopen(folder);
    for name in KEPT {
        remove(&folder.join(name));
    }
    let _ = fs::remove_dir(folder);
}

/// Removes what is there, also what is closed to its owner. Links are not followed.
fn remove(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => sweep::remove(path),
        Ok(_) => drop(fs::remove_file(path)),
        Err(_) => {}
    }
}

/// Makes the directories that a runner keeps, empty, whatever an earlier one has left there.
///
/// # Errors
/// Where one cannot be made; the message names it.
pub fn prepare(folder: &Path) -> io::Result<()> {
    reopen(folder);
    for name in KEPT {
        let path = folder.join(name);
        remove(&path);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|error| {
                io::Error::other(format!(
                    "cannot make the directory {}: {error}",
                    path.display()
                ))
            })?;
    }
    Ok(())
}

/// Gives the owner's rights back where they were taken off the runner's directory. That of a
/// container belongs to another user, and has them.
fn reopen(folder: &Path) {
    if let Ok(found) = fs::symlink_metadata(folder)
        && found.is_dir()
        && found.mode() & 0o700 != 0o700
    {
        let mode = fs::Permissions::from_mode(found.mode() & 0o7777 | 0o700);
        let _ = fs::set_permissions(folder, mode);
    }
}

/// Serves one connection to its end. Everything that was started over it is over then. A runner
/// that finds itself broken ends this process.
///
/// # Errors
/// Where the directories cannot be made, or what was read is no request.
pub fn serve(stream: UnixStream, options: &Options, check: &Arc<SelfCheck>) -> io::Result<()> {
    check.replacing(|| prepare(&options.folder))?;
    let mut reader = stream.try_clone()?;
    let server = Arc::new(Server {
        options: options.clone(),
        check: Arc::clone(check),
        writer: Mutex::new(stream),
        state: Mutex::default(),
        idle: Condvar::new(),
    });
    server.say(&Reply::Hello {
        protocol: PROTOCOL,
        slots: options.slots.get(),
        limits: options.limits,
    });
    let ended = loop {
        match receive(&mut reader) {
            Ok(request) => server.take(request),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    server.end();
    ended
}

struct Server {
    options: Options,
    check: Arc<SelfCheck>,
    writer: Mutex<UnixStream>,
    state: Mutex<State>,
    /// Told when an attempt is over.
    idle: Condvar,
}

#[derive(Default)]
struct State {
    /// What waits, by run.
    waiting: BTreeMap<String, VecDeque<Job>>,
    /// The run that was served last.
    last: String,
    running: BTreeMap<Piece, Sender<Ask>>,
    /// Bytes of the files of each run.
    files: BTreeMap<String, usize>,
    /// Runs whose files this machine could not keep, and why.
    unkept: BTreeMap<String, String>,
    over: bool,
}

struct Job {
    piece: Piece,
    work: Box<Work>,
    network: bool,
    /// Whether it was said that it waits.
    told: bool,
}

/// What a running attempt is told.
enum Ask {
    /// It is to end.
    Kill(KillCause),
    /// It is to end at once.
    Now,
    /// It is over.
    Ended(Box<Outcome>, Option<String>),
}

impl State {
    /// The next job, of the run after the one that was served last.
    fn next(&mut self) -> Option<Job> {
        let after = (
            std::ops::Bound::Excluded(self.last.clone()),
            std::ops::Bound::Unbounded,
        );
        let run = (self.waiting.range(after).next())
            .or_else(|| self.waiting.iter().next())
            .map(|(run, _)| run.clone())?;
        let queue = self.waiting.get_mut(&run)?;
        let job = queue.pop_front();
        if queue.is_empty() {
            self.waiting.remove(&run);
        }
        self.last = run;
        job
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    fn say(&self, reply: &Reply) {
        let frame = frame(reply).or_else(|_| frame(&short_of(reply)));
        let Ok(frame) = frame else { return };
        // Who is gone is told nothing; the reader will see it.
        let _ = lock(&self.writer).write_all(&frame);
    }

    fn take(self: &Arc<Self>, request: Request) {
        match request {
            Request::Files { run, files } => {
                let Err(error) = self.unpack(&run, &files) else {
                    return;
                };
                eprintln!("apscli runner: cannot keep the files of a run: {error}");
                // What is wrong with the files themselves is missed by the node that needs them,
                // with its name. A failure of this machine is none of the node's.
                if error.kind() != io::ErrorKind::InvalidInput {
                    lock(&self.state).unkept.insert(run, error.to_string());
                }
            }
            Request::Start {
                piece,
                work,
                network,
            } => {
                let job = Job {
                    piece,
                    work,
                    network,
                    told: false,
                };
                let mut state = lock(&self.state);
                let queue = state.waiting.entry(job.piece.run.clone()).or_default();
                queue.push_back(job);
                drop(state);
                self.fill();
            }
            Request::Kill { piece, cause } => self.kill(&piece, cause),
            Request::Over { run } => {
                let mut state = lock(&self.state);
                state.files.remove(&run);
                state.unkept.remove(&run);
                drop(state);
                if let Some(folder) = self.scripts(&run) {
                    let _ = fs::remove_dir_all(folder);
                }
            }
        }
    }

    fn kill(&self, piece: &Piece, cause: KillCause) {
        let mut state = lock(&self.state);
        if let Some(running) = state.running.get(piece) {
            let _ = running.send(Ask::Kill(cause));
            return;
        }
        let Some(queue) = state.waiting.get_mut(&piece.run) else {
            return;
        };
        let before = queue.len();
        queue.retain(|job| job.piece != *piece);
        let was_there = queue.len() < before;
        if queue.is_empty() {
            state.waiting.remove(&piece.run);
        }
        drop(state);
        if was_there {
            self.ended(piece.clone(), Outcome::silent(Ending::Killed(cause)), None);
        }
    }

    fn ended(&self, piece: Piece, outcome: Outcome, enforced: Option<String>) {
        self.say(&Reply::Ended {
            piece,
            outcome: Box::new(outcome),
            enforced,
        });
    }

    /// Starts as much as there is room for, and tells the others that they wait.
    fn fill(self: &Arc<Self>) {
        let mut state = lock(&self.state);
        let mut said = Vec::new();
        while !state.over && state.running.len() < self.options.slots.get() {
            let Some(job) = state.next() else { break };
            let (asks, asked) = channel();
            state.running.insert(job.piece.clone(), asks.clone());
            let (server, piece) = (Arc::clone(self), job.piece.clone());
            let started = std::thread::Builder::new()
                .name("attempt".to_owned())
                .spawn(move || server.carry_out(&job, &asks, &asked));
            match started {
                Ok(_) => said.push(Reply::Began { piece }),
                Err(error) => {
                    state.running.remove(&piece);
                    said.push(Reply::Ended {
                        piece,
                        outcome: Box::new(machine_failed(&format!(
                            "cannot start a thread: {error}"
                        ))),
                        enforced: None,
                    });
                }
            }
        }
        let slots = self.options.slots;
        for job in state.waiting.values_mut().flatten() {
            if !std::mem::replace(&mut job.told, true) {
                said.push(Reply::Waits {
                    piece: job.piece.clone(),
                    why: format!("all {slots} places of the runner are taken"),
                });
            }
        }
        // Before anybody else can say that one of these has ended.
        for reply in &said {
            self.say(reply);
        }
    }

    fn carry_out(self: &Arc<Self>, job: &Job, asks: &Sender<Ask>, asked: &Receiver<Ask>) {
        let control = Arc::new(Control::default());
        let (server, hand) = (Arc::clone(self), Arc::clone(&control));
        let (work, network, run) = (job.work.clone(), job.network, job.piece.run.clone());
        let told = asks.clone();
        let started = std::thread::Builder::new()
            .name("hand".to_owned())
            .spawn(move || {
                let work = || server.by_hand(&work, network, &run, &hand);
                let (outcome, enforced) =
                    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
                        hand.kill();
                        let message = "the executor broke down; this is a bug of apscli";
                        let lost = Ending::Lost(message.to_owned());
                        (Outcome::silent(lost), None)
                    });
                let _ = told.send(Ask::Ended(Box::new(outcome), enforced));
            });
        let (outcome, enforced) = match started {
            Ok(_) => self.watch(&job.work, &control, asked),
            Err(error) => {
                let failed = machine_failed(&format!("cannot start a thread: {error}"));
                (failed, None)
            }
        };
        self.doubt(&outcome.ending);
        lock(&self.state).running.remove(&job.piece);
        self.ended(job.piece.clone(), outcome, enforced);
        self.fill();
        self.idle.notify_all();
    }

    /// Whether this end was the node's own. A runner that is broken must not report it: it ends, and
    /// the operator counts all that ran here as lost.
    fn doubt(&self, ending: &Ending) {
        let checked = match ending {
            Ending::Exited(0) | Ending::Killed(_) => return,
            Ending::NotStarted(_) | Ending::Lost(_) => self.check.whole(),
            _ => self.check.quick(),
        };
        if let Err(why) = checked {
            check::end(&why);
        }
    }

    /// Keeps an attempt's time: TERM when it is over or asked to end, KILL after the grace.
    fn watch(
        &self,
        work: &Work,
        control: &Control,
        asked: &Receiver<Ask>,
    ) -> (Outcome, Option<String>) {
        let timeout = work
            .timeout()
            .unwrap_or(Duration::MAX)
            .min(self.options.longest);
        let mut next = Instant::now().checked_add(timeout);
        // How far its end has come.
        let (mut termed, mut killed) = (false, false);
        loop {
            let ask = match next {
                Some(at) => asked.recv_timeout(at.saturating_duration_since(Instant::now())),
                None => asked.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match ask {
                Ok(Ask::Ended(outcome, enforced)) => return (*outcome, enforced),
                Ok(Ask::Kill(cause)) if !termed => {
                    control.terminate(cause);
                    termed = true;
                    next = Instant::now().checked_add(work.grace());
                }
                Err(RecvTimeoutError::Timeout) if !termed => {
                    control.terminate(KillCause::NodeTimeout);
                    termed = true;
                    next = Instant::now().checked_add(work.grace());
                }
                Ok(Ask::Now) | Err(RecvTimeoutError::Timeout) if !killed => {
                    control.terminate(KillCause::Cancel(CancelCause::Asked));
                    control.kill();
                    (termed, killed) = (true, true);
                    next = Instant::now().checked_add(GONE_WITHIN);
                }
                Ok(Ask::Kill(_) | Ask::Now) => {}
                Err(_) => {
                    let message = "it could not be ended".to_owned();
                    return (Outcome::silent(Ending::Lost(message)), None);
                }
            }
        }
    }

    fn by_hand(
        &self,
        work: &Work,
        network: bool,
        run: &str,
        control: &Control,
    ) -> (Outcome, Option<String>) {
        let Some(scripts) = self.scripts(run) else {
            let why = "the run's name is no name of a folder".to_owned();
            return (Outcome::silent(Ending::NotStarted(why)), None);
        };
        let folder = self.options.folder.join("nodes");
        if let Some(why) = lock(&self.state).unkept.get(run) {
            let why = format!("cannot keep the files of the run: {why}");
            return (machine_failed(&why), None);
        }
        let mut fence = Fence::new(self.options.mode, folder, self.options.slots);
        fence.network = network;
        fence.limits = self.options.limits;
        let surroundings = Surroundings {
            env: Fence::environment(self.options.env.iter().cloned()),
            folder: scripts,
            grace: work.grace(),
            fence: Some(fence.clone()),
        };
        let log = tempfile_name(&self.options.folder.join("logs"));
        let outcome = match &work.action {
            Action::Cmd(cmd) => process::try_run(cmd, &work.param, &surroundings, &log, control),
            Action::Api(api) => {
                let python = Python::new(None, Vec::new(), log.clone());
                python.try_run(api, &work.param, &surroundings, &log, control)
            }
        };
        let outcome = outcome.unwrap_or_else(|failed| match failed {
            NotStarted::Node(_) => failed.outcome(),
            NotStarted::Machine(why) => machine_failed(&why),
        });
        let _ = fs::remove_file(&log);
        (outcome, fence.enforced())
    }

    /// The folder of a run's files.
    fn scripts(&self, run: &str) -> Option<PathBuf> {
        let is_name = !run.is_empty()
            && run.len() <= 64
            && run
                .bytes()
                .all(|it| it.is_ascii_alphanumeric() || it == b'-');
        is_name.then(|| self.options.folder.join("scripts").join(run))
    }

    fn unpack(&self, run: &str, files: &[Script]) -> io::Result<()> {
        let folder = self.scripts(run);
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
        let folder = folder.ok_or_else(|| invalid("the run's name is no folder's"))?;
        let mut state = lock(&self.state);
        if state.unkept.remove(run).is_some() {
            // They are sent once more, from the first.
            state.files.remove(run);
        }
        let mut taken = state.files.get(run).copied().unwrap_or(0);
        drop(state);
        for file in files {
            let inner = Path::new(&file.path);
            let plain = |part: Component<'_>| matches!(part, Component::Normal(_));
            if !inner.components().all(plain) {
                return Err(invalid("a file's path leads out of the folder"));
            }
            let path = folder.join(inner);
            let content = STANDARD
                .decode(&file.content)
                .map_err(|error| invalid(&error.to_string()))?;
            taken = taken.saturating_add(content.len());
            if taken > FILES {
                return Err(invalid("the files are more than 16 MiB"));
            }
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            let _ = fs::remove_file(&path);
            let mut made = fs::File::options()
                .write(true)
                .create_new(true)
                .mode(file.mode & 0o555 | 0o400)
                .open(&path)?;
            made.write_all(&content)?;
            lock(&self.state).files.insert(run.to_owned(), taken);
        }
        Ok(())
    }

    /// Ends all that was started, and waits for it.
    fn end(&self) {
        let mut state = lock(&self.state);
        state.over = true;
        state.waiting.clear();
        for running in state.running.values() {
            let _ = running.send(Ask::Now);
        }
        let until = Instant::now() + GONE_WITHIN * 2;
        while !state.running.is_empty() && Instant::now() < until {
            let wait = self.idle.wait_timeout(state, Duration::from_millis(100));
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The outcome of an attempt that this machine could not start. It is lost, so `onLost` decides
/// whether there is another; a node that could never start ends otherwise.
fn machine_failed(why: &str) -> Outcome {
    Outcome::silent(Ending::Lost(format!(
        "the runner could not start it: {why}"
    )))
}

/// What is said instead of what is longer than a frame: that an attempt is over must arrive.
fn short_of(reply: &Reply) -> Reply {
    let mut short = reply.clone();
    if let Reply::Ended { outcome, .. } = &mut short {
        let why = format!("it gave back more than {} MiB", MOST / 1024 / 1024);
        **outcome = Outcome::silent(Ending::NoResult(why));
    }
    short
}

/// A name that no file there has.
fn tempfile_name(folder: &Path) -> PathBuf {
    let mut random = [0_u8; 8];
    let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    folder.join(format!("{:016x}", u64::from_ne_bytes(random)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(run: &str, node: &str) -> Job {
        let cmd = crate::engine::spec::Cmd {
            program: crate::engine::spec::EnvText::literal("true"),
            args: Vec::new(),
            env: Vec::new(),
        };
        Job {
            piece: Piece {
                run: run.to_owned(),
                node: node.to_owned(),
                attempt: 1,
            },
            work: Box::new(Work::new(Action::Cmd(cmd), Vec::new(), Duration::ZERO)),
            network: false,
            told: false,
        }
    }

    #[test]
    fn runs_take_turns() {
        let mut state = State::default();
        for (run, node) in [
            ("a", "1"),
            ("a", "2"),
            ("a", "3"),
            ("b", "1"),
            ("c", "1"),
            ("b", "2"),
        ] {
            let queue = state.waiting.entry(run.to_owned()).or_default();
            queue.push_back(job(run, node));
        }
        let order: Vec<String> = std::iter::from_fn(|| state.next())
            .map(|job| job.piece.run + &job.piece.node)
            .collect();
        assert_eq!(order, ["a1", "b1", "c1", "a2", "b2", "a3"]);
    }

    #[test]
    fn memory_bounds_how_many_there_are() {
        let limits = Limits {
            memory: 1 << 30,
            ..Limits::default()
        };
        let four = NonZeroUsize::new(4).unwrap();
        let of = |memory| slots(four, &limits, memory).map(NonZeroUsize::get);
        assert_eq!(of(None), Some(4));
        assert_eq!(of(Some(16 << 30)), Some(4));
        assert_eq!(of(Some(3 << 30)), Some(2));
        assert_eq!(
            of(Some(1 << 30)),
            None,
            "its own share has no room beside it"
        );
    }
}
