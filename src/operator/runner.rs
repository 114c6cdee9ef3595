//! The operator's end of the runner: one connection, over which all runs have their process nodes
//! carried out.
//!
//! While there is no connection, what is to start waits and says so. When one ends, all that was
//! given over it is lost: the runner has ended it, or is gone, and nobody can tell what was done.
//!
//! Must not start anything twice, nor decide what starts.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc::{Sender, UnboundedReceiver, UnboundedSender, channel, unbounded_channel};
use tokio::time::{sleep, timeout};

use crate::engine::event::{CancelCause, Ending, KillCause, Outcome};
use crate::executor::decision;
use crate::executor::fence::Fence;
use crate::executor::runner::serve;
use crate::executor::runner::{MOST, PROTOCOL, Piece, Reply, Request, Script, frame, length};

use super::apply::{Answer, Moved, Work};
use super::options::RunnerPlace;

/// How long a runner has for its first word.
const GREETING: Duration = Duration::from_secs(10);
/// How long to wait until the next try to reach it, at first and at most.
const AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Replies that are read ahead.
const AHEAD: usize = 64;

/// An attempt to be carried out.
pub(super) struct Start {
    pub(super) piece: Piece,
    /// The attempt, as its run knows it.
    pub(super) work: Work,
    pub(super) decision: Box<decision::Work>,
    pub(super) network: bool,
    /// The files of its run.
    pub(super) files: Arc<Vec<Vec<Script>>>,
    pub(super) answers: UnboundedSender<Answer>,
}

enum Ask {
    Start(Box<Start>),
    Kill(Piece, KillCause),
    Over(String),
}

/// The runner, for all runs.
#[derive(Clone)]
pub(super) struct Runner {
    asks: UnboundedSender<Ask>,
}

impl Runner {
    /// A runner that is there, or is started, as long as this or a clone of it lives.
    pub(super) fn new(place: RunnerPlace) -> Self {
        Self::with(move || {
            let place = place.clone();
            async move { connect(&place).await }
        })
    }

    /// A runner that is reached in this way.
    pub(super) fn with<F>(connect: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<Stream>> + Send + 'static,
    {
        let (asks, asked) = unbounded_channel();
        tokio::spawn(async move { Client::default().work(connect, asked).await });
        Self { asks }
    }

    /// Has an attempt carried out; answers with [`Answer::Process`].
    pub(super) fn start(&self, start: Start) {
        let _ = self.asks.send(Ask::Start(Box::new(start)));
    }

    /// Ends an attempt.
    pub(super) fn kill(&self, piece: Piece, cause: KillCause) {
        let _ = self.asks.send(Ask::Kill(piece, cause));
    }

    /// Nothing of this run is wanted any more.
    pub(super) fn over(&self, run: &str) {
        let _ = self.asks.send(Ask::Over(run.to_owned()));
    }
}

/// An attempt that has not ended.
struct Pending {
    work: Work,
    answers: UnboundedSender<Answer>,
    /// What is to be sent; none: it was.
    start: Option<Box<Start>>,
}

impl Pending {
    fn answer(&self, moved: Moved) {
        let _ = self.answers.send(Answer::Process(self.work.clone(), moved));
    }
}

#[derive(Default)]
struct Client {
    pending: BTreeMap<Piece, Pending>,
    /// Runs whose files were sent over this connection.
    filed: BTreeSet<String>,
}

impl Client {
    async fn work<F>(mut self, connect: impl Fn() -> F, mut asked: UnboundedReceiver<Ask>)
    where
        F: Future<Output = io::Result<Stream>>,
    {
        let mut pause = AGAIN.0;
        loop {
            let connection = connect();
            let connecting = async move { greeted(connection.await?).await };
            tokio::pin!(connecting);
            let connected = loop {
                tokio::select! {
                    connected = &mut connecting => break connected,
                    ask = asked.recv() => match ask {
                        Some(ask) => drop(self.take(ask, false)),
                        None => return,
                    },
                }
            };
            let why = match connected {
                Ok((stream, slots)) => {
                    pause = AGAIN.0;
                    tracing::info!(slots, "the runner is there");
                    match self.serve(stream, &mut asked).await {
                        Some(error) => error.to_string(),
                        None => return,
                    }
                }
                Err(error) => error.to_string(),
            };
            tracing::warn!(why, "the runner is not there");
            self.lose(&why);
            let again = sleep(pause);
            tokio::pin!(again);
            pause = (pause * 2).min(AGAIN.1);
            loop {
                tokio::select! {
                    () = &mut again => break,
                    ask = asked.recv() => match ask {
                        Some(ask) => drop(self.take(ask, false)),
                        None => return,
                    },
                }
            }
        }
    }

    /// What was given is lost, and what was not waits.
    fn lose(&mut self, why: &str) {
        self.filed.clear();
        let given = self.pending.extract_if(.., |_, it| it.start.is_none());
        for (_, pending) in given {
            let message = format!("the runner that carried it out is gone: {why}");
            let lost = Outcome::silent(Ending::Lost(message));
            pending.answer(Moved::Ended(Box::new(lost), None));
        }
        for pending in self.pending.values() {
            pending.answer(Moved::Waits(format!("there is no runner yet: {why}")));
        }
    }

    /// None: nobody asks any more. Else why the connection is over.
    async fn serve(
        &mut self,
        stream: Stream,
        asked: &mut UnboundedReceiver<Ask>,
    ) -> Option<io::Error> {
        let Stream { reader, mut writer } = stream;
        let (replies, mut replied) = channel(AHEAD);
        // Reads while a write waits, so that neither side waits for the other.
        let reading = tokio::spawn(read(reader, replies));
        let waiting: Vec<Piece> = self.pending.keys().cloned().collect();
        let mut requests: Vec<Request> = waiting.iter().flat_map(|it| self.give(it)).collect();
        let ended = loop {
            for request in requests.drain(..) {
                let Ok(bytes) = frame(&request) else {
                    self.is_too_large(&request);
                    continue;
                };
                if let Err(error) = writer.write_all(&bytes).await {
                    reading.abort();
                    return Some(error);
                }
            }
            tokio::select! {
                ask = asked.recv() => match ask {
                    Some(ask) => requests = self.take(ask, true),
                    None => break None,
                },
                reply = replied.recv() => match reply {
                    Some(Ok(reply)) => self.heard(reply),
                    Some(Err(error)) => break Some(error),
                    None => break Some(io::Error::other("the connection is closed")),
                },
            }
        };
        reading.abort();
        ended
    }

    fn take(&mut self, ask: Ask, connected: bool) -> Vec<Request> {
        match ask {
            Ask::Start(start) => {
                let piece = start.piece.clone();
                let pending = Pending {
                    work: start.work.clone(),
                    answers: start.answers.clone(),
                    start: Some(start),
                };
                if !connected {
                    pending.answer(Moved::Waits("there is no runner yet".to_owned()));
                }
                self.pending.insert(piece.clone(), pending);
                if connected {
                    self.give(&piece)
                } else {
                    Vec::new()
                }
            }
            Ask::Kill(piece, cause) => {
                let given = self.pending.get(&piece).map(|it| it.start.is_none());
                match given {
                    Some(true) => vec![Request::Kill { piece, cause }],
                    Some(false) => {
                        if let Some(pending) = self.pending.remove(&piece) {
                            let killed = Outcome::silent(Ending::Killed(cause));
                            pending.answer(Moved::Ended(Box::new(killed), None));
                        }
                        Vec::new()
                    }
                    None => Vec::new(),
                }
            }
            Ask::Over(run) => {
                let gone = self.pending.extract_if(.., |piece, _| piece.run == run);
                let given = gone.filter(|(_, pending)| pending.start.is_none());
                let mut requests: Vec<Request> = given
                    .map(|(piece, _)| Request::Kill {
                        piece,
                        cause: KillCause::Cancel(CancelCause::Asked),
                    })
                    .collect();
                if self.filed.remove(&run) {
                    requests.push(Request::Over { run });
                }
                requests
            }
        }
    }

    /// Hands an attempt over; from then on it may have been begun.
    fn give(&mut self, piece: &Piece) -> Vec<Request> {
        let Some(start) = self.pending.get_mut(piece).and_then(|it| it.start.take()) else {
            return Vec::new();
        };
        let mut requests = Vec::new();
        if !start.files.is_empty() && self.filed.insert(piece.run.clone()) {
            for files in start.files.iter() {
                requests.push(Request::Files {
                    run: piece.run.clone(),
                    files: files.clone(),
                });
            }
        }
        requests.push(Request::Start {
            piece: start.piece,
            work: start.decision,
            network: start.network,
        });
        requests
    }

    /// What is longer than a frame cannot be sent, and must not cost the others their connection.
    fn is_too_large(&mut self, request: &Request) {
        let Request::Start { piece, .. } = request else {
            // A node that misses a file says so, with its name.
            tracing::error!("the files of a run are more than the runner takes at once");
            return;
        };
        if let Some(pending) = self.pending.remove(piece) {
            let most = MOST / 1024 / 1024;
            let why = format!("what it is to do takes more than {most} MiB, parameters included");
            let not_started = Outcome::silent(Ending::NotStarted(why));
            pending.answer(Moved::Ended(Box::new(not_started), None));
        }
    }

    fn heard(&mut self, reply: Reply) {
        match reply {
            Reply::Hello { .. } => {}
            Reply::Waits { piece, why } => {
                if let Some(pending) = self.pending.get(&piece) {
                    pending.answer(Moved::Waits(why));
                }
            }
            Reply::Began { piece } => {
                if let Some(pending) = self.pending.get(&piece) {
                    pending.answer(Moved::Began);
                }
            }
            Reply::Ended {
                piece,
                outcome,
                enforced,
            } => {
                if let Some(pending) = self.pending.remove(&piece) {
                    if matches!(outcome.ending, Ending::Lost(_)) {
                        // It may be the files of the run that the runner could not keep: they are
                        // sent again with the next attempt.
                        self.filed.remove(&piece.run);
                    }
                    pending.answer(Moved::Ended(outcome, enforced));
                }
            }
        }
    }
}

type Reader = Box<dyn AsyncRead + Send + Unpin>;

/// A connection.
pub(super) struct Stream {
    reader: Reader,
    writer: Box<dyn AsyncWrite + Send + Unpin>,
}

impl Stream {
    pub(super) fn new<T: AsyncRead + AsyncWrite + Send + 'static>(stream: T) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self {
            reader: Box::new(reader),
            writer: Box::new(writer),
        }
    }
}

async fn connect(place: &RunnerPlace) -> io::Result<Stream> {
    Ok(Stream::new(match place {
        RunnerPlace::Socket(path) => UnixStream::connect(path).await?,
        RunnerPlace::Child(args) => child(args)?,
    }))
}

/// A connection that has been greeted, and how many attempts there may be at once.
async fn greeted(mut stream: Stream) -> io::Result<(Stream, usize)> {
    let greeting = timeout(GREETING, receive(&mut stream.reader)).await;
    let greeting = greeting.map_err(|_| io::Error::other("it does not say a word"))?;
    match greeting? {
        Reply::Hello {
            protocol: PROTOCOL,
            slots,
            ..
        } => Ok((stream, slots)),
        _ => Err(io::Error::other(
            "it speaks another protocol: operator and runner do not belong together",
        )),
    }
}

/// Starts a runner of our own: outside of a pod. It ends with the connection, so with us.
fn child(args: &[String]) -> io::Result<UnixStream> {
    let folder = folder(&std::env::temp_dir())?;
    let (ours, theirs) = StdStream::pair()?;
    ours.set_nonblocking(true)?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("runner")
        .arg("--folder")
        .arg(&folder)
        .args(args)
        .env_clear()
        .envs(Fence::environment(std::env::vars_os()))
        .stdin(Stdio::from(OwnedFd::from(theirs)));
    let mut child = command.spawn()?;
    drop(command);
    std::thread::Builder::new()
        .name("runner".to_owned())
        .spawn(move || {
            let _ = child.wait();
            // One that was broken may have left directories that are closed to all.
            serve::clear(&folder);
        })?;
    UnixStream::from_std(ours)
}

fn folder(parent: &Path) -> io::Result<PathBuf> {
    let mut random = [0_u8; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    let name = format!("apscli-runner-{:016x}", u64::from_ne_bytes(random));
    let folder = parent.join(name);
    let mut builder = std::fs::DirBuilder::new();
    builder.mode(0o700);
    builder.create(&folder)?;
    Ok(folder)
}

async fn read(mut reader: Reader, replies: Sender<io::Result<Reply>>) {
    loop {
        let reply = receive(&mut reader).await;
        let over = reply.is_err();
        if replies.send(reply).await.is_err() || over {
            return;
        }
    }
}

async fn receive<T: DeserializeOwned>(reader: &mut Reader) -> io::Result<T> {
    let mut head = [0; 4];
    reader.read_exact(&mut head).await?;
    let mut body = vec![0; length(head)?];
    reader.read_exact(&mut body).await?;
    Ok(serde_json::from_slice(&body)?)
}
