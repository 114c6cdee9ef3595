//! The parent's loop: a process for each call, and word to the host of what became of it.
//!
//! May not look into a call, import anything, or block anywhere but in the one wait. Children are watched
//! through pidfds rather than SIGCHLD, so that one wait covers them and the host; and through epoll rather
//! than poll, so that with a thousand children alive an event does not cost a thousand looks.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, getpid, kill_process_group, pidfd_open,
    setpgid, waitpid,
};

use crate::child;
use crate::interpreter::Interpreter;
use crate::wire::{Call, End, Host, Message, PROTOCOL, Received};

/// The host's number among the watched; no child has it.
const HOST: u64 = 0;
/// Calls taken in one turn, so that in a flood of calls the ended ones are told between.
const CALLS_A_TURN: usize = 32;
const EVENTS_A_TURN: usize = 128;
/// How often a child is asked for that could not be watched.
const ASK_EVERY: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 20_000_000,
};

pub enum Served {
    HostGone,
    /// This is the forked child.
    Child(Call),
}

struct Child {
    call: u64,
    pid: Pid,
    /// None when the system had no descriptor left to give: then it is asked for instead.
    pidfd: Option<OwnedFd>,
}

struct Parent {
    host: Host,
    watch: OwnedFd,
    wants_to_send: bool,
    children: HashMap<u64, Child>,
    pid: Pid,
}

/// Serves until the host is gone; also returns in each forked child.
pub fn run(interpreter: &Interpreter<'_>, host: Host) -> PyResult<Served> {
    // Better told now than at the first call: without pidfds nothing here works.
    pidfd_open(getpid(), PidfdFlags::empty()).map_err(|e| {
        fatal(format!(
            "the system gives no pidfd (Linux 5.3 or newer is needed): {e}"
        ))
    })?;
    let watch = epoll::create(epoll::CreateFlags::CLOEXEC)
        .map_err(|e| fatal(format!("cannot watch anything: {e}")))?;
    epoll::add(
        &watch,
        host.as_fd(),
        epoll::EventData::new_u64(HOST),
        epoll::EventFlags::IN,
    )
    .map_err(|e| fatal(format!("cannot watch the host's socket: {e}")))?;
    let mut parent = Parent {
        host,
        watch,
        wants_to_send: false,
        children: HashMap::new(),
        pid: getpid(),
    };
    let end = parent.serve(interpreter);
    if !matches!(end, Ok(Served::Child(_))) {
        parent.kill_all();
    }
    end.map_err(fatal)
}

fn fatal(text: String) -> PyErr {
    PyRuntimeError::new_err(text)
}

impl Parent {
    fn serve(&mut self, interpreter: &Interpreter<'_>) -> Result<Served, String> {
        self.host.say(&Message::Ready {
            version: &interpreter.version,
            executable: &interpreter.executable,
            protocol: PROTOCOL,
        })?;
        loop {
            if !self.send()? {
                return Ok(Served::HostGone);
            }
            let mut host_calls = false;
            for (flags, who) in self.wait(interpreter)? {
                if who != HOST {
                    self.reap(who)?;
                } else if flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
                    return Ok(Served::HostGone);
                } else {
                    host_calls |= flags.contains(epoll::EventFlags::IN);
                }
            }
            self.ask_the_unwatched()?;
            if host_calls && let Some(served) = self.take_calls(interpreter)? {
                return Ok(served);
            }
        }
    }

    /// Waits until something happens. The GIL is free meanwhile, for threads of preloaded modules.
    fn wait(&self, interpreter: &Interpreter<'_>) -> Result<Vec<(epoll::EventFlags, u64)>, String> {
        let unwatched = self.children.values().any(|child| child.pidfd.is_none());
        let timeout = unwatched.then_some(&ASK_EVERY);
        let watch = self.watch.as_fd();
        interpreter.py.detach(|| {
            let mut events = Vec::with_capacity(EVENTS_A_TURN);
            match epoll::wait(watch, spare_capacity(&mut events), timeout) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(format!("cannot wait: {e}")),
            }
            Ok(events
                .into_iter()
                .map(|event: epoll::Event| (event.flags, event.data.u64()))
                .collect())
        })
    }

    /// Sends what can be sent, and asks to be woken for the rest. False: the host is gone.
    fn send(&mut self) -> Result<bool, String> {
        if !self.host.flush()? {
            return Ok(false);
        }
        let more = self.host.has_unsent();
        if more != self.wants_to_send {
            let mut flags = epoll::EventFlags::IN;
            flags.set(epoll::EventFlags::OUT, more);
            epoll::modify(
                &self.watch,
                self.host.as_fd(),
                epoll::EventData::new_u64(HOST),
                flags,
            )
            .map_err(|e| format!("cannot watch the host's socket: {e}"))?;
            self.wants_to_send = more;
        }
        Ok(true)
    }

    fn take_calls(&mut self, interpreter: &Interpreter<'_>) -> Result<Option<Served>, String> {
        for _ in 0..CALLS_A_TURN {
            match self.host.receive()? {
                Received::Nothing => break,
                Received::HostGone => return Ok(Some(Served::HostGone)),
                Received::Unusable { call, error } => {
                    self.host.say(&Message::Refused {
                        call,
                        error: &error,
                    })?;
                }
                Received::Call(call) => {
                    if let Some(call) = self.fork(interpreter, call)? {
                        return Ok(Some(Served::Child(call)));
                    }
                    // The host may act on a call as soon as it knows its process.
                    if !self.host.flush()? {
                        return Ok(Some(Served::HostGone));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Gives the call back in the child.
    fn fork(&mut self, interpreter: &Interpreter<'_>, call: Call) -> Result<Option<Call>, String> {
        let pid = match interpreter.fork() {
            Ok(0) => {
                child::leave_parent(self.pid);
                return Ok(Some(call));
            }
            Ok(pid) => Pid::from_raw(pid).ok_or("fork gave no pid")?,
            Err(error) => {
                let error = error.to_string();
                self.host.say(&Message::Refused {
                    call: call.id,
                    error: &error,
                })?;
                return Ok(None);
            }
        };
        // In both parent and child: whoever comes second finds it done.
        let _ = setpgid(Some(pid), Some(pid));
        let id = call.id;
        // Before a new descriptor is asked for: these four make room for it.
        drop(call);
        let key = key(pid);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok().filter(|pidfd| {
            let data = epoll::EventData::new_u64(key);
            epoll::add(&self.watch, pidfd, data, epoll::EventFlags::IN).is_ok()
        });
        let child = Child {
            call: id,
            pid,
            pidfd,
        };
        self.children.insert(key, child);
        self.host.say(&Message::Forked {
            call: id,
            pid: pid.as_raw_nonzero().get(),
        })?;
        Ok(None)
    }

    fn ask_the_unwatched(&mut self) -> Result<(), String> {
        let unwatched = self
            .children
            .iter()
            .filter(|(_, child)| child.pidfd.is_none());
        let keys: Vec<u64> = unwatched.map(|(key, _)| *key).collect();
        keys.into_iter().try_for_each(|key| self.reap(key))
    }

    fn reap(&mut self, key: u64) -> Result<(), String> {
        let Some(child) = self.children.get(&key) else {
            return Ok(());
        };
        let status = loop {
            match waitpid(Some(child.pid), WaitOptions::NOHANG) {
                Ok(Some((_, status))) => break Some(status),
                Ok(None) => return Ok(()),
                Err(Errno::INTR) => {}
                // Code that was preloaded has taken it away from us.
                Err(_) => break None,
            }
        };
        if let Some(pidfd) = &child.pidfd {
            // Closing alone would not do: a child forked since holds the same description for a moment.
            let _ = epoll::delete(&self.watch, pidfd);
        }
        let (call, how) = (child.call, ended(status));
        self.children.remove(&key);
        self.host.say(&Message::Ended { call, how })
    }

    /// Without a host nobody waits for the calls, and nobody could stop them.
    fn kill_all(&self) {
        for child in self.children.values() {
            // Not reaped, so the number is still theirs.
            let _ = kill_process_group(child.pid, Signal::KILL);
        }
    }
}

fn key(pid: Pid) -> u64 {
    u64::from(pid.as_raw_nonzero().get().unsigned_abs())
}

fn ended(status: Option<WaitStatus>) -> End {
    let Some(status) = status else {
        return End::ExitCode(255);
    };
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => End::ExitCode(code),
        (None, Some(signal)) => End::Signal(signal),
        (None, None) => End::ExitCode(255),
    }
}
