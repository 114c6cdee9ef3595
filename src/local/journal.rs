//! The journal of a run: one JSON object a line, appended and never changed. Its first line pins
//! what runs (template, parameters, folder); every other is an event.
//!
//! A record is handed to the system before its decision is carried out, so a kill of apscli, at
//! any moment, loses nothing. It is not forced to the disk for each record (that would cost more
//! than starting a process): a crash of the whole machine may lose the last moments.
//!
//! A last line without its line feed was cut by a kill: it is dropped, and what it recorded was
//! not begun. Anything else that cannot be read is an error: the journal is never guessed at.
//!
//! Must not decide anything.

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
use crate::engine::graph::Graph;
use crate::engine::name::{Attempt, NodeName};
use crate::engine::state::RunState;
use crate::executor::fence::Mode;
use crate::template::Params;

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
        params: Params,
        flags: Flags,
    ) -> Self {
        Self {
            journal_format: FORMAT,
            source,
            template,
            folder,
            params,
            flags,
        }
    }
}

/// An event as it is written: nodes by name.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Record {
    RunStarted {
        at: Timestamp,
    },
    Cancelled {
        cause: CancelCause,
        at: Timestamp,
    },
    Suspended(bool),
    Started {
        node: NodeName,
        attempt: Attempt,
        at: Timestamp,
    },
    Killing {
        node: NodeName,
        attempt: Attempt,
        cause: KillCause,
    },
    Ended {
        node: NodeName,
        attempt: Attempt,
        outcome: Outcome,
        at: Timestamp,
    },
    GivenUp {
        node: NodeName,
        at: Timestamp,
    },
    Skipped {
        node: NodeName,
        reason: Reason,
        at: Timestamp,
    },
}

impl Record {
    fn new(graph: &Graph, event: &Event) -> Self {
        let name = |node| graph.name(node).clone();
        match event.clone() {
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
                outcome,
                at,
            } => Self::Ended {
                node: name(node),
                attempt,
                outcome,
                at,
            },
            Event::GivenUp { node, at } => Self::GivenUp {
                node: name(node),
                at,
            },
            Event::Skipped { node, reason, at } => Self::Skipped {
                node: name(node),
                reason,
                at,
            },
        }
    }

    fn event(self, graph: &Graph) -> Result<Event, String> {
        let find = |name: NodeName| {
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
                outcome,
                at,
            },
            Self::GivenUp { node, at } => Event::GivenUp {
                node: find(node)?,
                at,
            },
            Self::Skipped { node, reason, at } => Event::Skipped {
                node: find(node)?,
                reason,
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
    #[error("{}: another apscli is still running this, or what it started is; expected a run that was killed", .0.display())]
    InUse(PathBuf),
    /// A run was recorded here already.
    #[error("{}: a run is recorded here already; use --resume to go on with it, or another folder", .0.display())]
    Exists(PathBuf),
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
    buffer: Vec<u8>,
    /// What went wrong with an event that was taken.
    failed: Option<JournalError>,
}

impl Drop for Journal {
    fn drop(&mut self) {
        // The guard process holds the lock too, a moment longer: a run that has ended by itself
        // leaves nothing that it would have to wait for.
        let _ = self.file.unlock();
    }
}

impl AsFd for Journal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The journal's file in a run's folder.
#[must_use]
pub fn path(dir: &Path) -> PathBuf {
    dir.join("journal.jsonl")
}

impl Journal {
    /// Begins the journal of a new run. Only its owner can read it: parameters may be secret.
    pub fn create(dir: &Path, header: &Header) -> Result<Self, JournalError> {
        let path = path(dir);
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
        let mut journal = Self {
            path,
            file,
            buffer: Vec::new(),
            failed: None,
        };
        journal.lock()?;
        journal.line(header)?;
        journal.flush()?;
        Ok(journal)
    }

    /// Opens the journal of a killed run: its header, and its lines to be folded by
    /// [`Recorded::fold`].
    pub fn open(dir: &Path) -> Result<(Self, Header, Recorded), JournalError> {
        let path = path(dir);
        let io_error = |what, source| JournalError::Io {
            path: path.clone(),
            what,
            source,
        };
        let mut file = File::options()
            .read(true)
            .append(true)
            .open(&path)
            .map_err(|source| io_error("cannot open the journal", source))?;
        let lock = Self {
            path: path.clone(),
            file: file
                .try_clone()
                .map_err(|source| io_error("cannot open the journal", source))?,
            buffer: Vec::new(),
            failed: None,
        };
        lock.lock()?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)
            .map_err(|source| io_error("cannot read the journal", source))?;
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
        Ok((lock, header, recorded))
    }

    /// Locks it, waiting a moment: what is left of a run that was killed just now may still be
    /// ending.
    fn lock(&self) -> Result<(), JournalError> {
        const MOMENT: Duration = Duration::from_secs(3);
        let start = Instant::now();
        loop {
            match self.file.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) if start.elapsed() < MOMENT => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(JournalError::InUse(self.path.clone()));
                }
                Err(TryLockError::Error(source)) => {
                    return Err(JournalError::Io {
                        path: self.path.clone(),
                        what: "cannot lock the journal",
                        source,
                    });
                }
            }
        }
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
            let record: Record = serde_json::from_slice(line)
                .map_err(|error| unreadable(format!("this record cannot be read: {error}")))?;
            let event = record.event(graph).map_err(unreadable)?;
            state.fold(graph, &event).map_err(|error| {
                unreadable(format!(
                    "this record cannot follow those before it: {error}"
                ))
            })?;
        }
        Ok(state)
    }
}
