//! The journal of a run: one JSON object a line, appended and never changed. Its first line pins
//! what runs (template, parameters, folder); every other is an event.
//!
//! A record is handed to the system before its decision is carried out, so a kill of apscli, at
//! any moment, loses nothing. It is not forced to the disk for each record (that would cost more
//! than starting a process): a crash of the whole machine may lose the last moments.
//!
//! A last line without its line feed was cut by a kill: it is dropped, and what it recorded was
//! not begun. Anything else that cannot be read is an error: the journal is never guessed at. (Nor is
//! one that is empty: a crash of the machine may leave that of a run that had begun.)
//!
//! Two locks keep runs apart. That of the journal itself says that an apscli is at it; that of
//! `guard.lock` stays with the guard process until everything that a killed apscli had started is
//! gone. So a resume knows whom it meets: it refuses the first, and waits for the second.
//!
//! Must not decide anything.

use std::borrow::Cow;
use std::fs::{File, TryLockError};
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::engine::event::{CancelCause, Event, KillCause, Outcome, Reason};
use crate::engine::graph::{Graph, NodeIx};
use crate::engine::name::{Attempt, NodeName};
use crate::engine::state::RunState;
use crate::executor::fence::Mode;
use crate::template::Params;

use super::own;

/// The journal's format; a reader refuses others.
const FORMAT: u32 = 1;

/// What a run was started with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// The format that its writer used.
    pub journal_format: u32,
    /// The template's name in errors.
    pub source: String,
    /// The template's text.
    pub template: String,
    /// The folder that the template's relative paths are relative to.
    pub folder: PathBuf,
    /// The folder that nodes run in; none: that of whoever resumes (earlier journals).
    #[serde(default)]
    pub work_folder: Option<PathBuf>,
    /// The parameters.
    pub params: Params,
    /// How it was asked to run; a resume keeps to it where it is not asked otherwise.
    #[serde(default)]
    pub flags: Flags,
}

/// How a run was asked to run. None and empty: not asked, the default holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Flags {
    /// Most nodes at once.
    pub parallel: Option<NonZeroUsize>,
    /// Longest time from the run's start.
    pub timeout: Option<Duration>,
    /// How long a process has between TERM and KILL.
    pub grace: Option<Duration>,
    /// The python3 for api nodes.
    pub python: Option<PathBuf>,
    /// Modules that the interpreter imports once.
    pub preload: Vec<String>,
    /// The fence around nodes; a resume must not do without it.
    pub sandbox: Option<Sandbox>,
}

/// The fence around the nodes of a run on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// What happens where the kernel cannot do all of it.
    pub mode: Mode,
    /// Whether nodes have a network.
    pub network: bool,
    /// What nodes may read and execute beside the system's and the template's folder.
    pub readable: Vec<PathBuf>,
}

impl Flags {
    /// These, and where they say nothing, what `earlier` says.
    #[must_use]
    pub fn or(self, earlier: Self) -> Self {
        Self {
            parallel: self.parallel.or(earlier.parallel),
            timeout: self.timeout.or(earlier.timeout),
            grace: self.grace.or(earlier.grace),
            python: self.python.or(earlier.python),
            preload: if self.preload.is_empty() {
                earlier.preload
            } else {
                self.preload
            },
            sandbox: self.sandbox.or(earlier.sandbox),
        }
    }
}

impl Header {
    /// A header in today's format.
    #[must_use]
    pub fn new(
        source: String,
        template: String,
        folder: PathBuf,
        work_folder: PathBuf,
        params: Params,
        flags: Flags,
    ) -> Self {
        Self {
            journal_format: FORMAT,
            source,
            template,
            folder,
            work_folder: Some(work_folder),
            params,
            flags,
        }
    }
}

/// An event as it is written: nodes by name.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Record<'a> {
    RunStarted {
        at: Timestamp,
    },
    Cancelled {
        cause: CancelCause,
        at: Timestamp,
    },
    Suspended(bool),
    Started {
        node: Cow<'a, NodeName>,
        attempt: Attempt,
        at: Timestamp,
    },
    Killing {
        node: Cow<'a, NodeName>,
        attempt: Attempt,
        cause: KillCause,
    },
    Ended {
        node: Cow<'a, NodeName>,
        attempt: Attempt,
        outcome: Cow<'a, Outcome>,
        at: Timestamp,
    },
    GivenUp {
        node: Cow<'a, NodeName>,
        at: Timestamp,
    },
    Skipped {
        node: Cow<'a, NodeName>,
        reason: Cow<'a, Reason>,
        at: Timestamp,
    },
}

impl<'a> Record<'a> {
    fn new(graph: &'a Graph, event: &'a Event) -> Self {
        let name = |node: NodeIx| Cow::Borrowed(graph.name(node));
        match *event {
            Event::RunStarted { at } => Self::RunStarted { at },
            Event::Cancelled { cause, at } => Self::Cancelled { cause, at },
            Event::Suspended(suspended) => Self::Suspended(suspended),
            Event::Started { node, attempt, at } => Self::Started {
                node: name(node),
                attempt,
                at,
            },
            Event::Killing {
                node,
                attempt,
                cause,
            } => Self::Killing {
                node: name(node),
                attempt,
                cause,
            },
            Event::Ended {
                node,
                attempt,
                ref outcome,
                at,
            } => Self::Ended {
                node: name(node),
                attempt,
                outcome: Cow::Borrowed(outcome),
                at,
            },
            Event::GivenUp { node, at } => Self::GivenUp {
                node: name(node),
                at,
            },
            Event::Skipped {
                node,
                ref reason,
                at,
            } => Self::Skipped {
                node: name(node),
                reason: Cow::Borrowed(reason),
                at,
            },
        }
    }

    fn event(self, graph: &Graph) -> Result<Event, String> {
        let find = |name: Cow<'_, NodeName>| {
            graph
                .find(name.as_str())
                .ok_or_else(|| format!("there is no node `{name}`"))
        };
        Ok(match self {
            Self::RunStarted { at } => Event::RunStarted { at },
            Self::Cancelled { cause, at } => Event::Cancelled { cause, at },
            Self::Suspended(suspended) => Event::Suspended(suspended),
            Self::Started { node, attempt, at } => Event::Started {
                node: find(node)?,
                attempt,
                at,
            },
            Self::Killing {
                node,
                attempt,
                cause,
            } => Event::Killing {
                node: find(node)?,
                attempt,
                cause,
            },
            Self::Ended {
                node,
                attempt,
                outcome,
                at,
            } => Event::Ended {
                node: find(node)?,
                attempt,
                outcome: outcome.into_owned(),
                at,
            },
            Self::GivenUp { node, at } => Event::GivenUp {
                node: find(node)?,
                at,
            },
            Self::Skipped { node, reason, at } => Event::Skipped {
                node: find(node)?,
                reason: reason.into_owned(),
                at,
            },
        })
    }
}

/// What is wrong with a journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The system refuses.
    #[error("{}: {what}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// Another apscli has it.
    #[error("{}: another apscli is still running this; expected a run that was killed", .0.display())]
    InUse(PathBuf),
    /// What a killed apscli had started there does not come to its end.
    #[error("{}: what a killed apscli has started there is still ending; expected it to be gone", .0.display())]
    NotGone(PathBuf),
    /// A run was recorded here already.
    #[error("{}: a run is recorded here already; use --resume to go on with it, or another folder", .0.display())]
    Exists(PathBuf),
    /// It, or the directory that it is in, is not the user's own.
    #[error(transparent)]
    NotOwn(#[from] own::NotOwn),
    /// It has no whole record.
    #[error("{}: nothing is recorded here: apscli was killed before the run had begun, and nothing was done, unless the machine went down with it; start it again in another folder", .0.display())]
    NotBegun(PathBuf),
    /// It cannot be read.
    #[error("{}:{line}: {message}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong and what was expected.
        message: String,
    },
}

/// An open journal, locked against other runs as long as it is open.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    /// The lock that the guard process keeps until all is gone that was started.
    guard_lock: File,
    buffer: Vec<u8>,
    /// What went wrong with an event that was taken.
    failed: Option<JournalError>,
}

impl Drop for Journal {
    fn drop(&mut self) {
        // The guard process holds the lock too, a moment longer: a run that has ended by itself
        // leaves nothing that it would have to wait for.
        let _ = self.guard_lock.unlock();
        let _ = self.file.unlock();
    }
}

/// The journal's file in a run's folder.
#[must_use]
pub fn path(dir: &Path) -> PathBuf {
    dir.join("journal.jsonl")
}

/// How long a lock is waited for that an apscli holds: it may have been killed just now, and be
/// about to vanish.
const VANISHES_WITHIN: Duration = Duration::from_secs(3);
/// How long what a killed apscli has started is waited for. The guard itself gives up much
/// earlier; this is for a machine so busy that the guard hardly runs.
const GONE_WITHIN: Duration = Duration::from_secs(300);

impl Journal {
    /// What the guard process is to hold open.
    #[must_use]
    pub fn guard_lock(&self) -> BorrowedFd<'_> {
        self.guard_lock.as_fd()
    }

    /// Begins the journal of a new run. Only its owner can read it: parameters may be secret.
    pub fn create(dir: &Path, header: &Header) -> Result<Self, JournalError> {
        let path = path(dir);
        own::directory(dir)?;
        let opened = File::options()
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        let file = match opened {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(JournalError::Exists(path));
            }
            opened => opened.map_err(|source| JournalError::Io {
                path: path.clone(),
                what: "cannot create the journal",
                source,
            })?,
        };
        let begun = Self::locked(dir, path.clone(), file).and_then(|mut journal| {
            journal.line(header)?;
            journal.flush()?;
            Ok(journal)
        });
        if begun.is_err() {
            // Nothing has started. An empty journal would stand in the way of the next try.
            let _ = std::fs::remove_file(&path);
        }
        begun
    }

    /// Opens the journal of a killed run: its header, and its lines to be folded by
    /// [`Recorded::fold`]. What it says is executed, so it has to be the user's own.
    pub fn open(dir: &Path) -> Result<(Self, Header, Recorded), JournalError> {
        let path = path(dir);
        own::directory(dir)?;
        let io_error = |what, source| JournalError::Io {
            path: path.clone(),
            what,
            source,
        };
        let mut file = File::options()
            .read(true)
            .append(true)
            .custom_flags(own::NO_LINK)
            .open(&path)
            .map_err(|source| io_error("cannot open the journal", source))?;
        own::file(&path, &file)?;
        let own = file
            .try_clone()
            .map_err(|source| io_error("cannot open the journal", source))?;
        let journal = Self::locked(dir, path.clone(), own)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)
            .map_err(|source| io_error("cannot read the journal", source))?;
        if is_cut_header(&bytes) {
            return Err(JournalError::NotBegun(path));
        }
        let whole = memchr::memrchr(b'\n', &bytes).map_or(0, |end| end + 1);
        let cut = whole < bytes.len();
        bytes.truncate(whole);
        let mut lines = bytes.split(|byte| *byte == b'\n');
        let header: Header = lines
            .next()
            .and_then(|line| serde_json::from_slice(line).ok())
            .filter(|header: &Header| header.journal_format == FORMAT)
            .ok_or_else(|| JournalError::Unreadable {
                path: path.clone(),
                line: 1,
                message: format!("this is no journal of format {FORMAT}"),
            })?;
        // Only now: a file that is no journal of ours is left as it is.
        if cut {
            file.set_len(whole as u64).map_err(|source| {
                io_error("cannot cut off the half-written last record", source)
            })?;
        }
        let recorded = Recorded { path, bytes };
        Ok((journal, header, recorded))
    }

    /// Takes both locks, each when whoever has it is gone.
    fn locked(dir: &Path, path: PathBuf, file: File) -> Result<Self, JournalError> {
        lock(&file, &path, VANISHES_WITHIN, JournalError::InUse)?;
        let guard_path = dir.join("guard.lock");
        let guard_lock = File::options()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(own::NO_LINK)
            .open(&guard_path)
            .map_err(|source| JournalError::Io {
                path: guard_path.clone(),
                what: "cannot open the guard's lock",
                source,
            })?;
        own::file(&guard_path, &guard_lock)?;
        lock(&guard_lock, &guard_path, GONE_WITHIN, JournalError::NotGone)?;
        Ok(Self {
            path,
            file,
            guard_lock,
            buffer: Vec::new(),
            failed: None,
        })
    }

    fn line(&mut self, value: &impl Serialize) -> Result<(), JournalError> {
        serde_json::to_writer(&mut self.buffer, value).map_err(|error| JournalError::Io {
            path: self.path.clone(),
            what: "cannot write the journal",
            source: error.into(),
        })?;
        self.buffer.push(b'\n');
        Ok(())
    }

    /// Takes an event, to be written by the next [`Journal::flush`].
    pub fn push(&mut self, graph: &Graph, event: &Event) {
        if let Err(error) = self.line(&Record::new(graph, event)) {
            self.failed.get_or_insert(error);
        }
    }

    /// Appends the events that were taken, with one write.
    pub fn flush(&mut self) -> Result<(), JournalError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        if self.buffer.is_empty() {
            return Ok(());
        }
        let written = self.file.write_all(&self.buffer);
        self.buffer.clear();
        written.map_err(|source| JournalError::Io {
            path: self.path.clone(),
            what: "cannot write the journal",
            source,
        })
    }

    /// Forces what is written to the disk; at the end of a run.
    pub fn sync(&self) {
        // The result has been computed and is about to be shown; a disk that cannot sync does
        // not change it.
        let _ = self.file.sync_data();
    }
}

/// How the first line begins.
const FIRST: &[u8] = br#"{"journal_format":"#;

/// Whether this is nothing, or a part of a header.
fn is_cut_header(bytes: &[u8]) -> bool {
    (bytes.starts_with(FIRST) || FIRST.starts_with(bytes)) && !bytes.contains(&b'\n')
}

/// Locks a file, waiting so long for whoever has it; `held` makes the error when that is too long.
fn lock(
    file: &File,
    path: &Path,
    patience: Duration,
    held: impl FnOnce(PathBuf) -> JournalError,
) -> Result<(), JournalError> {
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if start.elapsed() < patience => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(TryLockError::WouldBlock) => return Err(held(path.to_path_buf())),
            Err(TryLockError::Error(source)) => {
                return Err(JournalError::Io {
                    path: path.to_path_buf(),
                    what: "cannot be locked",
                    source,
                });
            }
        }
    }
}

/// The events of a journal, not folded yet.
#[derive(Debug)]
pub struct Recorded {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Recorded {
    /// The state that the recorded events lead to.
    pub fn fold(&self, graph: &Graph) -> Result<RunState, JournalError> {
        let mut state = RunState::new(graph);
        for (index, line) in self.bytes.split(|byte| *byte == b'\n').enumerate().skip(1) {
            if line.is_empty() {
                continue;
            }
            let unreadable = |message: String| JournalError::Unreadable {
                path: self.path.clone(),
                line: index + 1,
                message,
            };
            let record: Record<'_> = serde_json::from_slice(line)
                .map_err(|error| unreadable(format!("this record cannot be read: {error}")))?;
            let event = record.event(graph).map_err(unreadable)?;
            if state.started_at().is_none() && !matches!(event, Event::RunStarted { .. }) {
                let message =
                    "this record cannot follow those before it: none says that the run has begun";
                return Err(unreadable(message.to_owned()));
            }
            state.fold(graph, &event).map_err(|error| {
                unreadable(format!(
                    "this record cannot follow those before it: {error}"
                ))
            })?;
        }
        Ok(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::event::{Captured, Ending, ReasonWord};
    use crate::template::{Filling, Template};
    use crate::value::Value;

    const TEMPLATE: &str = r#"{
        "a": {"action": {"type": "cmd", "cmd": "true"}, "timeout": 5},
        "b ü": {"action": {"type": "cmd", "cmd": "true"}},
        "c": {"prev_nodes": ["a", "b ü"], "action": {"type": "cmd", "cmd": "true"}},
        "d": {"prev_nodes": ["c"], "action": {"type": "cmd", "cmd": "true"}}
    }"#;

    fn graph() -> Graph {
        let template = Template::read("t", TEMPLATE).unwrap();
        template.graph(Filling::With(&Params::new())).unwrap()
    }

    fn header() -> Header {
        let params = Params::from([("p".to_owned(), Value::from("é"))]);
        let flags = Flags {
            parallel: NonZeroUsize::new(3),
            timeout: Some(Duration::from_millis(1500)),
            grace: Some(Duration::from_secs(2)),
            python: Some("/bin/python3".into()),
            preload: vec!["m".to_owned()],
            sandbox: Some(Sandbox {
                mode: Mode::BestEffort,
                network: true,
                readable: vec!["/data".into()],
            }),
        };
        let (folder, work) = ("/folder".into(), "/work".into());
        Header::new(
            "t".to_owned(),
            TEMPLATE.to_owned(),
            folder,
            work,
            params,
            flags,
        )
    }

    /// A run in which everything happens that can.
    fn events(graph: &Graph) -> Vec<Event> {
        let node = |name| graph.find(name).unwrap();
        let at =
            |second: i64| Timestamp::from_millisecond(1_800_000_000_123 + second * 1000).unwrap();
        let (first, second) = (Attempt::FIRST, Attempt::FIRST.next());
        let started = |name, attempt, second| Event::Started {
            node: node(name),
            attempt,
            at: at(second),
        };
        let ended = |name, attempt, outcome, second| Event::Ended {
            node: node(name),
            attempt,
            outcome,
            at: at(second),
        };
        let said = Outcome {
            ending: Ending::Exited(3),
            captured: Captured {
                output: Some(Value::from("two\nlines")),
                truncated: [("output".to_owned(), 7)].into(),
                ..Captured::default()
            },
        };
        let lost = || Outcome::silent(Ending::Lost("gone".to_owned()));
        vec![
            Event::RunStarted { at: at(0) },
            started("a", first, 1),
            started("b ü", first, 1),
            Event::Suspended(true),
            Event::Suspended(false),
            ended("a", first, lost(), 2),
            started("a", second, 3),
            ended("b ü", first, said, 4),
            Event::Killing {
                node: node("a"),
                attempt: second,
                cause: KillCause::NodeTimeout,
            },
            Event::Cancelled {
                cause: CancelCause::Asked,
                at: at(8),
            },
            ended(
                "a",
                second,
                Outcome::silent(Ending::Killed(KillCause::NodeTimeout)),
                9,
            ),
            Event::Skipped {
                node: node("c"),
                reason: Reason::new(ReasonWord::Cancelled, "the run was cancelled"),
                at: at(9),
            },
            started("d", first, 9),
            ended("d", first, lost(), 10),
            Event::GivenUp {
                node: node("d"),
                at: at(11),
            },
        ]
    }

    fn folded(graph: &Graph, events: &[Event]) -> RunState {
        let mut state = RunState::new(graph);
        for event in events {
            state.fold(graph, event).unwrap();
        }
        state
    }

    /// Writes a journal and gives its bytes, and where its records end.
    fn written(dir: &Path, graph: &Graph) -> (Vec<u8>, Vec<usize>) {
        let mut journal = Journal::create(dir, &header()).unwrap();
        let size = || usize::try_from(path(dir).metadata().unwrap().len()).unwrap();
        let mut ends = vec![size()];
        for event in events(graph) {
            journal.push(graph, &event);
            assert_eq!(Some(&size()), ends.last(), "written before it is flushed");
            journal.flush().unwrap();
            ends.push(size());
        }
        (std::fs::read(path(dir)).unwrap(), ends)
    }

    #[test]
    fn what_is_written_is_read() {
        let (dir, graph) = (tempfile::tempdir().unwrap(), graph());
        let (bytes, _) = written(dir.path(), &graph);
        let (_journal, read, recorded) = Journal::open(dir.path()).unwrap();
        assert_eq!(read, header());
        assert_eq!(
            recorded.fold(&graph).unwrap(),
            folded(&graph, &events(&graph))
        );
        assert_eq!(std::fs::read(path(dir.path())).unwrap(), bytes);
    }

    /// As a kill in the middle of a write would: the whole records before the cut count, what is
    /// left of the last goes, and the journal goes on from there.
    #[test]
    fn a_journal_that_is_cut_anywhere_is_read_up_to_its_last_whole_record() {
        let (dir, graph) = (tempfile::tempdir().unwrap(), graph());
        let (bytes, ends) = written(dir.path(), &graph);
        let events = events(&graph);
        for cut in ends[0]..=bytes.len() {
            std::fs::write(path(dir.path()), &bytes[..cut]).unwrap();
            let whole = ends.iter().rposition(|end| *end <= cut).unwrap();
            let (mut journal, _, recorded) = Journal::open(dir.path()).unwrap();
            let state = recorded.fold(&graph).unwrap();
            assert_eq!(state, folded(&graph, &events[..whole]), "cut at {cut}");
            for event in &events[whole..] {
                journal.push(&graph, event);
            }
            journal.flush().unwrap();
            assert_eq!(std::fs::read(path(dir.path())).unwrap(), bytes);
        }
        for cut in 0..ends[0] {
            std::fs::write(path(dir.path()), &bytes[..cut]).unwrap();
            let opened = Journal::open(dir.path());
            assert!(matches!(opened, Err(JournalError::NotBegun(_))), "{cut}");
            assert_eq!(std::fs::read(path(dir.path())).unwrap(), bytes[..cut]);
        }
        for other in ["some words", "{\"journal\":", "\n"] {
            std::fs::write(path(dir.path()), other).unwrap();
            let error = Journal::open(dir.path()).unwrap_err().to_string();
            assert!(error.contains(":1: this is no journal"), "{error}");
        }
    }

    /// It waited for ever, as a run that has not begun has nothing to do.
    #[test]
    fn a_journal_without_its_runs_beginning_is_no_run() {
        let (dir, graph) = (tempfile::tempdir().unwrap(), graph());
        let (bytes, ends) = written(dir.path(), &graph);
        let without = [&bytes[..ends[0]], &bytes[ends[1]..]].concat();
        std::fs::write(path(dir.path()), without).unwrap();
        let (_journal, _, recorded) = Journal::open(dir.path()).unwrap();
        let error = recorded.fold(&graph).unwrap_err().to_string();
        let wanted =
            ":2: this record cannot follow those before it: none says that the run has begun";
        assert!(error.ends_with(wanted), "{error}");
    }

    #[test]
    fn one_run_a_folder_and_one_journal_a_run() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::create(dir.path(), &header()).unwrap();
        assert!(matches!(
            Journal::create(dir.path(), &header()),
            Err(JournalError::Exists(_))
        ));
        assert!(matches!(
            Journal::open(dir.path()),
            Err(JournalError::InUse(_))
        ));
        // What the guard holds is let go with the journal, though the guard has it open still.
        let guard = journal.guard_lock().try_clone_to_owned().unwrap();
        drop(journal);
        assert!(Journal::open(dir.path()).is_ok());
        drop(guard);
    }

    #[test]
    fn what_is_asked_for_stands_above_what_was() {
        let was = header().flags;
        assert_eq!(Flags::default().or(was.clone()), was);
        let asked = Flags {
            parallel: NonZeroUsize::new(1),
            timeout: Some(Duration::ZERO),
            grace: Some(Duration::ZERO),
            python: Some("p".into()),
            preload: vec!["x".to_owned(), "y".to_owned()],
            sandbox: Some(Sandbox::default()),
        };
        assert_eq!(asked.clone().or(was), asked);
    }
}
