//! The hand for `api`: a call of a Python function in a process of its own.
//!
//! One warm interpreter, the user's own `python3`, serves all calls of a run: it loads our
//! extension module and forks a child for each call. The interpreter never sees what a call is
//! about; request and result go between here and the child, through pipes.
//!
//! The child is not ours to reap, so its number is kept from becoming another's by a word: the
//! interpreter leaves an ended child unreaped until it hears that the call is over, and that is
//! said when nothing will signal it any more. (Where the interpreter itself is gone, `init` reaps;
//! the number would have to come round in the moment until we have heard of that and killed what
//! is left of the group. A pidfd would not help: before Linux 6.9 it signals no group.)
//!
//! Must not import user code into the interpreter, but for modules that the user named
//! (`preload`); must not trust what comes back.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType, recv, sendmsg, socketpair,
};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use serde::{Deserialize, Serialize};

use crate::engine::event::{Captured, Ending, Outcome};
use crate::engine::spec::Api;
use crate::executor::control::{Bell, Control};
use crate::executor::fence::{Fence, Inside, Launcher};
use crate::executor::lines::LineParser;
use crate::executor::process::{
    Log, NotStarted, Source, Stderr, Surroundings, log_room, no_input, open_log, read_until_end,
    sweep,
};
use crate::executor::spawn::{self, Command, Texts};
use crate::value::Value;
use crate::value::json::{self, Dialect};

const BOOTSTRAP: &str = include_str!("../python/bootstrap.py");
const PROTOCOL: u32 = 2;
const INTERPRETER_GONE: &str = "the Python interpreter ended";
/// How often a wait for the interpreter looks whether the call is to end.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
const LOOK_AGAIN_POLL: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};
/// Most bytes of a result; the extension module's limit is a little lower.
const RESULT_LIMIT: usize = 17 * 1024 * 1024;
const EXTENSION: &str = "libapscli_python.so";

/// Which Python serves api nodes, and the interpreter once a call has needed it.
#[derive(Clone, Debug)]
pub struct Python(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    chosen: Option<PathBuf>,
    preload: Vec<String>,
    log: PathBuf,
    interpreter: Mutex<Option<Arc<Interpreter>>>,
    /// The place of the only call that this one serves; none: it serves all calls of a run.
    inside: Option<Inside>,
    /// The thread that started the interpreter inside.
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Python {
    /// `chosen` is the user's word; none: the active virtual environment's, else `python3` on
    /// the PATH. `log` takes what the interpreter itself has to say.
    #[must_use]
    pub fn new(chosen: Option<PathBuf>, preload: Vec<String>, log: PathBuf) -> Self {
        Self::within(chosen, preload, log, None)
    }

    fn within(
        chosen: Option<PathBuf>,
        preload: Vec<String>,
        log: PathBuf,
        inside: Option<Inside>,
    ) -> Self {
        Self(Arc::new(Inner {
            chosen,
            preload,
            log,
            interpreter: Mutex::new(None),
            inside,
            thread: Mutex::new(None),
        }))
    }

    /// Calls a function and says what came of it. Blocks.
    #[must_use]
    pub fn run(
        &self,
        api: &Api,
        param: &[(String, Value)],
        surroundings: &Surroundings,
        log: &Path,
        control: &Control,
    ) -> Outcome {
        self.try_run(api, param, surroundings, log, control)
            .unwrap_or_else(NotStarted::outcome)
    }

    /// As [`Self::run`], with the reason for which nothing was started.
    pub(super) fn try_run(
        &self,
        api: &Api,
        param: &[(String, Value)],
        surroundings: &Surroundings,
        log: &Path,
        control: &Control,
    ) -> Result<Outcome, NotStarted> {
        match &surroundings.fence {
            None => self.call(api, param, surroundings, log, control),
            Some(fence) => self.fenced(fence, api, param, surroundings, log, control),
        }
    }

    /// In the fence each call has an interpreter of its own: what is forked from one could reach
    /// all others that are.
    fn fenced(
        &self,
        fence: &Fence,
        api: &Api,
        param: &[(String, Value)],
        surroundings: &Surroundings,
        log: &Path,
        control: &Control,
    ) -> Result<Outcome, NotStarted> {
        let (inside, surroundings) = fence.enter(surroundings).map_err(NotStarted::Machine)?;
        let (chosen, preload) = (self.0.chosen.clone(), self.0.preload.clone());
        // The interpreter's words are the call's: there is no other.
        let own = Self::within(chosen, preload, log.to_path_buf(), Some(inside));
        let called = own.call(api, param, &surroundings, log, control);
        let machine = matches!(called, Err(NotStarted::Machine(_)));
        let outcome = called.unwrap_or_else(NotStarted::outcome);
        drop(lock(&own.0.interpreter).take());
        if let Some(inside) = &own.0.inside {
            inside.let_go();
        }
        if let Some(thread) = lock(&own.0.thread).take() {
            let _ = thread.join();
        }
        let inside = Arc::into_inner(own.0).and_then(|own| own.inside);
        let outcome = match inside {
            Some(inside) => inside.leave(outcome, None),
            None => outcome,
        };
        match outcome.ending {
            Ending::NotStarted(why) if machine => Err(NotStarted::Machine(why)),
            _ => Ok(outcome),
        }
    }

    fn call(
        &self,
        api: &Api,
        param: &[(String, Value)],
        surroundings: &Surroundings,
        log: &Path,
        control: &Control,
    ) -> Result<Outcome, NotStarted> {
        let request = request(api, param, surroundings)?;
        let interpreter = match self.interpreter(surroundings, control) {
            Ok(interpreter) => interpreter,
            Err(message) => {
                return control.cause().map_or(Err(message), |cause| {
                    Ok(Outcome::silent(Ending::Killed(cause)))
                });
            }
        };
        let inside = self.0.inside.as_ref();
        interpreter.call(&request, surroundings, log, inside, control)
    }

    /// The interpreter, started by the first call, and again after it was lost.
    fn interpreter(
        &self,
        surroundings: &Surroundings,
        control: &Control,
    ) -> Result<Arc<Interpreter>, NotStarted> {
        let mut slot = lock(&self.0.interpreter);
        if control.cause().is_some() {
            return Err("the call was ended before it began".to_owned().into());
        }
        if let Some(interpreter) = slot.as_ref().filter(|interpreter| interpreter.is_alive()) {
            return Ok(Arc::clone(interpreter));
        }
        let program = self.program(surroundings)?;
        let (interpreter, thread) = Interpreter::start(&program, &self.0, surroundings, control)?;
        *lock(&self.0.thread) = Some(thread);
        *slot = Some(Arc::clone(&interpreter));
        Ok(interpreter)
    }

    fn program(&self, surroundings: &Surroundings) -> Result<PathBuf, String> {
        if let Some(chosen) = &self.0.chosen {
            return Ok(chosen.clone());
        }
        if let Some(venv) = surroundings
            .lookup("VIRTUAL_ENV")
            .filter(|venv| !venv.is_empty())
        {
            return Ok(Path::new(&venv).join("bin/python3"));
        }
        let path = surroundings.lookup("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .map(|entry| entry.join("python3"))
            .find(|candidate| candidate.is_file())
            .ok_or_else(|| "there is no python3 in the PATH; api nodes need one".to_owned())
    }
}

/// The extension module: where the user says, beside the program, or where packages put it.
fn extension(surroundings: &Surroundings) -> Result<PathBuf, String> {
    if let Some(path) = surroundings.lookup("APSCLI_PYTHON_EXTENSION") {
        return Ok(path.into());
    }
    let program =
        std::env::current_exe().map_err(|error| format!("cannot tell where apscli is: {error}"))?;
    let folder = program.parent().unwrap_or(Path::new("/"));
    let places = [
        folder.join(EXTENSION),
        folder.join("../lib/apscli").join(EXTENSION),
    ];
    let found = places.iter().find(|place| place.is_file()).cloned();
    found.ok_or_else(|| {
        let [beside, library] = places.map(|place| place.display().to_string());
        format!("the extension module for api nodes is missing: neither {beside} nor {library} exists (cargo build --workspace makes it)")
    })
}

/// What a call's child is told.
#[derive(Serialize)]
struct Request<'a> {
    module: &'a str,
    function: &'a str,
    path: Vec<String>,
    env: BTreeMap<String, String>,
    param: Value,
    cwd: Option<String>,
}

fn request(
    api: &Api,
    param: &[(String, Value)],
    surroundings: &Surroundings,
) -> Result<Vec<u8>, String> {
    let text = |text: OsString| {
        text.into_string()
            .map_err(|text| format!("{} is not UTF-8, which a Python call needs", text.display()))
    };
    let mut path = Vec::new();
    for entry in &api.path {
        let folder = surroundings
            .path(entry)
            .map_err(|error| format!("{error} (in action.path)"))?;
        path.push(text(folder.into_os_string())?);
    }
    let mut env = BTreeMap::new();
    for (name, value) in surroundings.own_env(&api.env)? {
        env.insert(text(name)?, text(value)?);
    }
    let request = Request {
        module: &api.module,
        function: &api.function,
        path,
        env,
        param: Value::Map(param.to_vec()),
        cwd: None,
    };
    serde_json::to_vec(&request)
        .map_err(|error| format!("the call cannot be written as JSON: {error}"))
}

/// What the interpreter says.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    Ready {
        protocol: u32,
    },
    Forked {
        call: u64,
        pid: i32,
    },
    Refused {
        call: u64,
        error: String,
    },
    Ended {
        call: u64,
        exit_code: Option<i32>,
        signal: Option<i32>,
    },
}

/// A call that the interpreter has not reported as ended. Dropping it tells the caller.
#[derive(Debug)]
struct Pending {
    replies: Sender<Message>,
    ended: Arc<Bell>,
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.ended.ring();
    }
}

/// A warm interpreter.
#[derive(Debug)]
struct Interpreter {
    socket: OwnedFd,
    next_call: AtomicU64,
    /// None: the interpreter is gone.
    calls: Mutex<Option<BTreeMap<u64, Pending>>>,
}

impl Drop for Interpreter {
    fn drop(&mut self) {
        // The reader holds the socket too; this ends both its wait and the interpreter.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }
}

impl Interpreter {
    fn start(
        program: &Path,
        of: &Inner,
        surroundings: &Surroundings,
        control: &Control,
    ) -> Result<(Arc<Self>, JoinHandle<()>), NotStarted> {
        let (preload, log) = (&of.preload, of.log.as_path());
        let extension = extension(surroundings)?;
        let machine = NotStarted::Machine;
        let system = |error: rustix::io::Errno| {
            machine(format!("cannot start {}: {error}", program.display()))
        };
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(system)?;
        let reader = ours
            .try_clone()
            .map_err(|error| machine(format!("cannot start {}: {error}", program.display())))?;
        let interpreter = Arc::new(Self {
            socket: ours,
            next_call: AtomicU64::new(0),
            calls: Mutex::new(Some(BTreeMap::new())),
        });
        let args = command_line(program, &extension, theirs.as_raw_fd(), preload)?;
        let mut start = Start {
            program: CString::new(program.as_os_str().as_bytes())
                .map_err(|_| "python's path holds a zero byte".to_owned())?,
            args,
            env: surroundings.env_texts(&BTreeMap::new())?,
            no_input: no_input().map_err(machine)?,
            socket: theirs,
            log: open_log(log).map_err(machine)?,
            launcher: None,
        };
        if let Some(inside) = &of.inside {
            let mut readable = around(program);
            readable.push(extension);
            let inherit = start.socket.as_raw_fd();
            start.launcher = Some(inside.launcher(&start.program, Some(inherit), &readable)?);
        }
        let (ready, is_ready) = channel();
        let started = Arc::new(OnceLock::new());
        let starts = Arc::clone(&started);
        // The thread that starts the interpreter reads from it until its end, so it outlives it
        // (see the room's head). It must not keep the interpreter's handle alive.
        let weak = Arc::downgrade(&interpreter);
        let thread = std::thread::Builder::new()
            .name("python".to_owned())
            .spawn(move || {
                let child = match start.spawn() {
                    Ok(child) => child,
                    Err(error) => return drop(ready.send(Err(error.to_string()))),
                };
                let _ = starts.set(child.pid);
                while let Some(message) = receive(&reader) {
                    if let Message::Ready { protocol } = message {
                        let _ = ready.send(if protocol == PROTOCOL {
                            Ok(())
                        } else {
                            Err(format!("the extension module speaks protocol {protocol}, expected {PROTOCOL}"))
                        });
                    } else if let Some(interpreter) = weak.upgrade() {
                        interpreter.take(message);
                    }
                }
                if let Some(interpreter) = weak.upgrade() {
                    lock(&interpreter.calls).take();
                }
                drop(reader);
                let _ = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED);
                spawn::forget(child.pid);
            })
            .map_err(|error| machine(format!("cannot start a thread: {error}")))?;
        match until_ready(&is_ready, &started, control)? {
            Some(Ok(())) => Ok((interpreter, thread)),
            // In the sandbox it is the launcher that could not be started.
            Some(Err(error)) if of.inside.is_some() => Err(machine(format!(
                "cannot start {}: {error}",
                program.display()
            ))),
            Some(Err(error)) => Err(format!("cannot start {}: {error}", program.display()).into()),
            None => Err(std::fs::read_to_string(log)
                .ok()
                .and_then(|text| text.lines().last().map(str::to_owned))
                .unwrap_or_else(|| {
                    format!(
                        "{} ended before it could serve api nodes",
                        program.display()
                    )
                })
                .into()),
        }
    }

    fn is_alive(&self) -> bool {
        lock(&self.calls).is_some()
    }

    fn take(&self, message: Message) {
        let mut calls = lock(&self.calls);
        let Some(calls) = calls.as_mut() else { return };
        let call = match &message {
            Message::Ready { .. } => return,
            Message::Forked { call, .. }
            | Message::Refused { call, .. }
            | Message::Ended { call, .. } => *call,
        };
        if let Message::Forked { .. } = message {
            if let Some(pending) = calls.get(&call) {
                let _ = pending.replies.send(message);
            } else if let Message::Forked { pid, .. } = message
                && let Some(pid) = Pid::from_raw(pid)
            {
                // Its caller has given up waiting.
                let _ = kill_process_group(pid, Signal::KILL);
                let _ = self.try_send(&over(call), &[]);
            }
        } else if let Some(pending) = calls.remove(&call) {
            let _ = pending.replies.send(message);
        }
    }

    fn call(
        &self,
        request: &[u8],
        surroundings: &Surroundings,
        log: &Path,
        inside: Option<&Inside>,
        control: &Control,
    ) -> Result<Outcome, NotStarted> {
        let system =
            |error: rustix::io::Errno| NotStarted::Machine(format!("cannot make a pipe: {error}"));
        let (request_read, request_write) = pipe_with(PipeFlags::CLOEXEC).map_err(system)?;
        let (result, result_write) = pipe_with(PipeFlags::CLOEXEC).map_err(system)?;
        let (stdout, stdout_write) = pipe_with(PipeFlags::CLOEXEC).map_err(system)?;
        // What fits into any pipe is there before the child is, which then need not wait for it.
        let mut request_write = Some(File::from(request_write));
        let mut feed = || {
            if let Some(mut pipe) = request_write.take() {
                // The child reads all of it first; if it cannot, it has ended, and that is told
                // below.
                let _ = pipe.write_all(request);
            }
        };
        if request.len() <= rustix::pipe::PIPE_BUF {
            feed();
        }
        let ended = Arc::new(Bell::new().map_err(system)?);
        let (log, stderr) = (Log::new(log, log_room(inside)), Stderr::new(log)?);
        if inside.is_some() {
            Inside::share(&stdout_write);
            Inside::share(&stderr.given);
        }
        let (replies, reply) = channel();
        let call = self.next_call.fetch_add(1, Ordering::Relaxed);
        match lock(&self.calls).as_mut() {
            Some(calls) => calls.insert(
                call,
                Pending {
                    replies,
                    ended: Arc::clone(&ended),
                },
            ),
            None => return Ok(lost()),
        };
        let fds = [
            request_read.as_fd(),
            result_write.as_fd(),
            stdout_write.as_fd(),
            stderr.given.as_fd(),
        ];
        let started = control.start(|| {
            self.send(&format!("{{\"call\":{call}}}"), &fds, control)
                .map_err(|error| format!("cannot ask python for a process: {error}"))?;
            forked(&reply, control)
        });
        drop((request_read, result_write, stdout_write));
        let stderr = stderr.kept();
        let group = match started {
            Ok(Ok(group)) => group,
            Ok(Err(error)) => {
                self.forget(call);
                return match control.cause() {
                    Some(cause) => Ok(Outcome::silent(Ending::Killed(cause))),
                    // It was asked already: nobody can tell whether the call ran.
                    None if error == INTERPRETER_GONE => Ok(lost()),
                    None => Err(error.into()),
                };
            }
            Err(cause) => {
                self.forget(call);
                return Ok(Outcome::silent(Ending::Killed(cause)));
            }
        };
        // An interpreter that is stopped tells of no end.
        control.ring_on_kill(&ended);
        feed();
        let streams = [&stdout, &result];
        let (lines, document) = hear(ended.as_fd(), streams, stderr.as_ref(), &log);
        let (how, killed) = control.reap(|| reply.try_recv().ok());
        if how.is_none() {
            self.forget(call);
        }
        // First, so that the interpreter reaps the call: a zombie would keep its group alive, and
        // the sweep would wait for all of the grace. Should the socket be full while the call is
        // to end, one more process is unreaped until then.
        let _ = self.send(&over(call), &[], control);
        if killed.is_some() {
            sweep(group, surroundings.grace, control);
        } else if how.is_none() {
            // The interpreter is gone, and with it the call; what the call had started is not.
            let _ = kill_process_group(group, Signal::KILL);
        }
        spawn::forget(group);
        let mut captured = lines.finish();
        let ending = match (killed, how) {
            (Some(cause), _) => Ending::Killed(cause),
            (
                None,
                Some(Message::Ended {
                    exit_code, signal, ..
                }),
            ) => read_result(&document, &mut captured).unwrap_or_else(|| {
                let how = match (exit_code, signal) {
                    (_, Some(signal)) => format!("was ended by signal {signal}"),
                    (code, None) => format!("ended with exit code {}", code.unwrap_or(0)),
                };
                Ending::NoResult(format!("the Python process {how} before it gave a result"))
            }),
            (None, _) => return Ok(lost()),
        };
        Ok(Outcome { ending, captured })
    }

    fn forget(&self, call: u64) {
        if let Some(calls) = lock(&self.calls).as_mut() {
            calls.remove(&call);
        }
    }

    /// Says something to the interpreter. One that does not read (it may be stopped) is waited for
    /// as long as nobody wants the call to end.
    fn send(&self, packet: &str, fds: &[BorrowedFd<'_>], control: &Control) -> io::Result<()> {
        loop {
            match self.try_send(packet, fds) {
                Err(rustix::io::Errno::AGAIN) if control.cause().is_none() => {
                    let mut room = [PollFd::new(&self.socket, PollFlags::OUT)];
                    let _ = poll(&mut room, Some(&LOOK_AGAIN_POLL));
                }
                sent => return Ok(sent?),
            }
        }
    }

    fn try_send(&self, packet: &str, fds: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        loop {
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() {
                ancillary.push(SendAncillaryMessage::ScmRights(fds));
            }
            let sent = sendmsg(
                &self.socket,
                &[IoSlice::new(packet.as_bytes())],
                &mut ancillary,
                SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
            );
            match sent {
                Err(rustix::io::Errno::INTR) => {}
                sent => return sent.map(|_| ()),
            }
        }
    }
}

/// Takes what a call's process writes (stdout, result, and stderr where it comes to us) until the
/// call has ended.
fn hear(
    ended: BorrowedFd<'_>,
    [stdout, result]: [&OwnedFd; 2],
    stderr: Option<&OwnedFd>,
    log: &Log<'_>,
) -> (LineParser, Vec<u8>) {
    let mut lines = LineParser::default();
    let mut document = Vec::new();
    let mut said = |bytes: &[u8]| {
        lines.push(bytes);
        log.write(bytes);
    };
    let mut complained = |bytes: &[u8]| log.write(bytes);
    let mut returned = |bytes: &[u8]| {
        // The child keeps the limit, but what it runs could write here too.
        if document.len() <= RESULT_LIMIT {
            document.extend_from_slice(bytes);
        }
    };
    let mut sources = vec![
        Source::new(stdout, &mut said),
        Source::new(result, &mut returned),
    ];
    sources.extend(stderr.map(|stderr| Source::new(stderr, &mut complained)));
    read_until_end(ended, &mut sources);
    drop(sources);
    (lines, document)
}

/// Says that nothing signals a call's process any more.
fn over(call: u64) -> String {
    format!("{{\"over\":{call}}}")
}

/// Waits for what an interpreter says of its start; none: it ended without a word. A call that
/// is to end does not wait on, and takes the interpreter that nobody could use with it.
fn until_ready(
    is_ready: &Receiver<Result<(), String>>,
    started: &OnceLock<Pid>,
    control: &Control,
) -> Result<Option<Result<(), String>>, String> {
    loop {
        match is_ready.recv_timeout(LOOK_AGAIN) {
            Ok(said) => return Ok(Some(said)),
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
            Err(RecvTimeoutError::Timeout) if control.cause().is_some() => {
                // It may never have looked at its socket, so closing that ends nothing.
                if let Some(pid) = started.get() {
                    let _ = kill_process_group(*pid, Signal::KILL);
                }
                return Err("the call was ended before python could serve it".to_owned());
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// The interpreter's words: how it becomes a server of calls, on the socket with this number.
fn command_line(
    program: &Path,
    extension: &Path,
    socket: RawFd,
    preload: &[String],
) -> Result<Texts, NotStarted> {
    let socket = socket.to_string();
    let words = [
        program.as_os_str().as_bytes(),
        b"-c",
        BOOTSTRAP.as_bytes(),
        extension.as_os_str().as_bytes(),
        socket.as_bytes(),
    ];
    let preload = preload.iter().map(String::as_bytes);
    let mut args = Texts::default();
    if words
        .into_iter()
        .chain(preload)
        .all(|word| args.push(&[word]))
    {
        Ok(args)
    } else {
        let why = "python's command line would hold a zero byte".to_owned();
        Err(why.into())
    }
}

/// What the interpreter's process is made of.
struct Start {
    program: CString,
    args: Texts,
    env: Texts,
    no_input: BorrowedFd<'static>,
    socket: OwnedFd,
    log: File,
    launcher: Option<Launcher>,
}

impl Start {
    fn spawn(self) -> io::Result<spawn::Child> {
        let command = Command {
            program: self.program,
            args: self.args,
            env: self.env,
            stdin: self.no_input,
            stdout: self.log.as_fd(),
            stderr: self.log.as_fd(),
            inherit: [Some(self.socket.as_fd()), None],
            leashed: false,
        };
        spawn::spawn(&match &self.launcher {
            Some(launcher) => launcher.wrap(&command),
            None => command,
        })
    }
}

/// The folders that an interpreter reads its own modules from: those around it, and around what it
/// is a link to, as in a virtual environment.
fn around(program: &Path) -> Vec<PathBuf> {
    let folder = |path: &Path| {
        let folder = path.parent()?.parent()?;
        (folder != Path::new("/")).then(|| folder.to_path_buf())
    };
    let target = program.canonicalize().ok();
    let all = [folder(program), target.as_deref().and_then(folder)];
    all.into_iter().flatten().collect()
}

/// The process of a call. A call that is to end is given up when no answer comes.
fn forked(reply: &Receiver<Message>, control: &Control) -> Result<(Pid, Pid), String> {
    loop {
        return match reply.recv_timeout(LOOK_AGAIN) {
            Err(RecvTimeoutError::Timeout) if control.cause().is_none() => continue,
            Err(RecvTimeoutError::Timeout) => Err("python gave no process in time".to_owned()),
            Ok(Message::Forked { pid, .. }) => {
                let group = Pid::from_raw(pid).ok_or("python named no process")?;
                spawn::remember(group);
                Ok((group, group))
            }
            Ok(Message::Refused { error, .. }) => Err(format!("python cannot fork: {error}")),
            _ => Err(INTERPRETER_GONE.to_owned()),
        };
    }
}

fn lost() -> Outcome {
    let message = "the Python interpreter ended while it served this call".to_owned();
    Outcome::silent(Ending::Lost(message))
}

fn receive(socket: &OwnedFd) -> Option<Message> {
    let mut packet = vec![0; 64 * 1024];
    loop {
        match recv(socket, packet.as_mut_slice(), RecvFlags::empty()) {
            Err(rustix::io::Errno::INTR) => {}
            Ok((length, _)) if length > 0 => {
                // What cannot be understood is the end: no call may wait for an answer that
                // was thrown away.
                return serde_json::from_slice(packet.get(..length)?).ok();
            }
            _ => return None,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads the child's result; none: it gave none that is whole.
fn read_result(document: &[u8], captured: &mut Captured) -> Option<Ending> {
    let text = std::str::from_utf8(document).ok()?;
    let value = json::read(text, Dialect::Strict).ok()?.into_value();
    if let Some(returned) = value.get("returned") {
        let Some(Value::Number(code)) = returned.get("return_code") else {
            return None;
        };
        let code = code.parse().ok()?;
        // What the function returns stands before what it printed.
        for (name, field) in [
            ("output", &mut captured.output),
            ("err_msg", &mut captured.err_msg),
            ("err_code", &mut captured.err_code),
            ("info", &mut captured.info),
        ] {
            if let Some(value) = returned.get(name) {
                *field = Some(value.clone());
                captured.truncated.remove(name);
            }
        }
        return Some(Ending::Returned(code));
    }
    let exception = value.get("exception")?;
    let message = exception
        .get("err_msg")
        .map(Value::to_plain_text)
        .unwrap_or_default();
    captured.err_msg = Some(Value::from(message.as_str()));
    let raised = |kind: &Value| {
        matches!(
            kind.to_plain_text().as_str(),
            "raised" | "bad_return" | "too_large"
        )
    };
    Some(if exception.get("kind").is_none_or(raised) {
        Ending::Exception(message)
    } else {
        Ending::NotStarted(message)
    })
}
