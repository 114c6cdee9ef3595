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
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, getpid, kill_process_group,
    pidfd_open, setpgid, waitid,
};

use crate::child;
use crate::interpreter::Interpreter;
use crate::wire::{Call, End, Host, Message, PROTOCOL, Received};

/// The host's number among the watched; no call may have it.
const HOST: u64 = u64::MAX;
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
    pid: Pid,
    /// None when the system had no descriptor left to give (then it is asked for instead), and once it has ended.
    pidfd: Option<OwnedFd>,
    /// It has ended, and the host was told.
    ended: bool,
    /// The host signals it no more.
    over: bool,
}

struct Parent {
    host: Host,
    watch: OwnedFd,
    wants_to_send: bool,
    /// By their calls; until they are reaped.
    children: HashMap<u64, Child>,
    /// Those among them that cannot be watched and have not ended.
    unwatched: Vec<u64>,
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
        unwatched: Vec::new(),
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
                    self.look_at(who)?;
                } else if flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
                    return Ok(Served::HostGone);
                } else {
                    host_calls |= flags.contains(epoll::EventFlags::IN);
                }
            }
            for call in self.unwatched.clone() {
                self.look_at(call)?;
            }
            if host_calls && let Some(served) = self.take_calls(interpreter)? {
                return Ok(served);
            }
        }
    }

    /// Waits until something happens. The GIL is free meanwhile, for threads of preloaded modules.
    fn wait(&self, interpreter: &Interpreter<'_>) -> Result<Vec<(epoll::EventFlags, u64)>, String> {
        let timeout = (!self.unwatched.is_empty()).then_some(&ASK_EVERY);
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
                Received::Over(call) => self.over(call),
                Received::Call(call) if call.id == HOST || self.children.contains_key(&call.id) => {
                    self.host.say(&Message::Refused {
                        call: call.id,
                        error: "the call's number is taken",
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
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok().filter(|pidfd| {
            let data = epoll::EventData::new_u64(id);
            epoll::add(&self.watch, pidfd, data, epoll::EventFlags::IN).is_ok()
        });
        if pidfd.is_none() {
            self.unwatched.push(id);
        }
        let child = Child {
            pid,
            pidfd,
            ended: false,
            over: false,
        };
        self.children.insert(id, child);
        self.host.say(&Message::Forked {
            call: id,
            pid: pid.as_raw_nonzero().get(),
        })?;
        Ok(None)
    }

    /// Tells the host if the call's process has ended. It is left unreaped, so that its number cannot become
    /// another's while the host may still signal it.
    fn look_at(&mut self, call: u64) -> Result<(), String> {
        let Some(child) = self.children.get_mut(&call).filter(|child| !child.ended) else {
            return Ok(());
        };
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = loop {
            match waitid(WaitId::Pid(child.pid), look) {
                Ok(Some(status)) => break Some(status),
                Ok(None) => return Ok(()),
                Err(Errno::INTR) => {}
                // Code that was preloaded has taken it away from us.
                Err(_) => break None,
            }
        };
        child.ended = true;
        match child.pidfd.take() {
            // Closing alone would not do: a child forked since holds the same description for a moment.
            Some(pidfd) => {
                let _ = epoll::delete(&self.watch, &pidfd);
            }
            None => self.unwatched.retain(|other| *other != call),
        }
        let how = ended(status.as_ref());
        self.host.say(&Message::Ended { call, how })?;
        self.reap(call);
        Ok(())
    }

    /// The host signals the call's process no more.
    fn over(&mut self, call: u64) {
        if let Some(child) = self.children.get_mut(&call) {
            child.over = true;
        }
        self.reap(call);
    }

    /// Reaps a process that has ended and that the host is done with.
    fn reap(&mut self, call: u64) {
        let Some(child) = self.children.get(&call) else {
            return;
        };
        if child.ended && child.over {
            let _ = waitid(
                WaitId::Pid(child.pid),
                WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
            );
            self.children.remove(&call);
        }
    }

    /// Without a host nobody waits for the calls, and nobody could stop them.
    fn kill_all(&self) {
        // What a call that has ended left behind on purpose stays.
        for child in self.children.values().filter(|child| !child.ended) {
            // Not reaped, so the number is still theirs.
            let _ = kill_process_group(child.pid, Signal::KILL);
        }
    }
}

fn ended(status: Option<&WaitIdStatus>) -> End {
    let Some(status) = status else {
        return End::ExitCode(255);
    };
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => End::ExitCode(code),
        (None, Some(signal)) => End::Signal(signal),
        (None, None) => End::ExitCode(255),
    }
}
