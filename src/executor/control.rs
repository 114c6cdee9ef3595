//! The handle by which a driver ends an attempt that a hand is carrying out.
//!
//! A process id is only as good as the knowledge that it has not been reaped, so signalling and
//! reaping exclude each other here. Must not reap or decide when to signal.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{Shutdown, shutdown};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::engine::event::KillCause;

/// Something to wait for along with streams: a file that is readable once it was rung.
#[derive(Debug)]
pub(super) struct Bell(OwnedFd);

impl Bell {
    pub(super) fn new() -> rustix::io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC)?))
    }

    pub(super) fn ring(&self) {
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// One attempt's handle, shared by driver and hand.
#[derive(Debug, Default)]
pub struct Control(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// The process group, from its start until it is reaped.
    group: Option<Pid>,
    cause: Option<KillCause>,
    /// Whether a signal reached a process that still ran.
    reached: bool,
    hard: bool,
    /// Rung when the end is to be at once.
    bell: Option<Arc<Bell>>,
    /// Of an attempt in the fence, what ends all of it when it is shut.
    leash: Option<OwnedFd>,
}

impl Inner {
    fn signal(&mut self, signal: Signal) {
        let Some(group) = self.group else { return };
        let leash = self.leash.as_ref().filter(|_| signal == Signal::KILL);
        // A leader that has ended by itself can still be signalled until it is reaped; then its
        // own end is what counts. (Not our child: it cannot be told, and counts as running.)
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let ended = matches!(waitid(WaitId::Pid(group), look), Ok(Some(_)));
        let sent = match leash {
            // Its launcher must live to end the others.
            Some(leash) => shutdown(leash, Shutdown::Write),
            None => kill_process_group(group, signal),
        };
        if sent.is_ok() && !ended {
            self.reached = true;
        }
    }
}

impl Control {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the attempt to end (TERM to its process group). An attempt that has not begun will
    /// not begin.
    pub fn terminate(&self, cause: KillCause) {
        let mut inner = self.inner();
        inner.cause.get_or_insert(cause);
        inner.signal(Signal::TERM);
    }

    /// Ends the attempt at once (KILL to its process group).
    pub fn kill(&self) {
        let mut inner = self.inner();
        inner.hard = true;
        inner.signal(Signal::KILL);
        if let Some(bell) = &inner.bell {
            bell.ring();
        }
    }

    /// Has the end, when it is to be at once, done by shutting this.
    pub(super) fn leash(&self, leash: OwnedFd) {
        self.inner().leash = Some(leash);
    }

    /// Has a bell rung when the end is to be at once, for a hand that hears of the end by
    /// somebody else who may never tell it.
    pub(super) fn ring_on_kill(&self, bell: &Arc<Bell>) {
        let mut inner = self.inner();
        inner.bell = Some(Arc::clone(bell));
        if inner.hard {
            bell.ring();
        }
    }

    /// Starts a process under this handle. `start` is not called once the attempt was asked to
    /// end; then the cause comes back. What is asked for while it starts is delivered after.
    ///
    /// Nothing is locked meanwhile: a start can hang (a dead network disk, a stopped
    /// interpreter), and whoever asks for the end must not hang with it.
    pub(super) fn start<T, E>(
        &self,
        start: impl FnOnce() -> Result<(Pid, T), E>,
    ) -> Result<Result<T, E>, KillCause> {
        if let Some(cause) = self.cause() {
            return Err(cause);
        }
        let started = start();
        Ok(started.map(|(pid, it)| {
            let mut inner = self.inner();
            inner.group = Some(pid);
            if inner.cause.is_some() {
                inner.signal(Signal::TERM);
            }
            if inner.hard {
                inner.signal(Signal::KILL);
            }
            it
        }))
    }

    /// Why the attempt was asked to end, if it was.
    pub(super) fn cause(&self) -> Option<KillCause> {
        self.inner().cause
    }

    /// Reaps the process, after which no signal is sent to it. Returns what `reap` says and,
    /// where a signal of ours reached it while it ran, why.
    pub(super) fn reap<T>(&self, reap: impl FnOnce() -> T) -> (T, Option<KillCause>) {
        let mut inner = self.inner();
        inner.group = None;
        let reaped = reap();
        (reaped, inner.cause.filter(|_| inner.reached))
    }

    /// Whether the end is to be at once.
    pub(super) fn is_hard(&self) -> bool {
        self.inner().hard
    }
}
