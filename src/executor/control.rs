//! The handle by which a driver ends an attempt that a hand is carrying out.
//!
//! A process id is only as good as the knowledge that it has not been reaped, so signalling and
//! reaping exclude each other here. Must not reap or decide when to signal.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::engine::event::KillCause;

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
        self.signal(&mut inner, Signal::TERM);
    }

    /// Ends the attempt at once (KILL to its process group).
    pub fn kill(&self) {
        let mut inner = self.inner();
        inner.hard = true;
        self.signal(&mut inner, Signal::KILL);
    }

    #[allow(clippy::unused_self)]
    fn signal(&self, inner: &mut Inner, signal: Signal) {
        if let Some(group) = inner.group
            && kill_process_group(group, signal).is_ok()
        {
            inner.reached = true;
        }
    }

    /// Starts a process under this handle. `start` is not called once the attempt was asked to
    /// end; then the cause comes back.
    pub(super) fn start<T, E>(
        &self,
        start: impl FnOnce() -> Result<(Pid, T), E>,
    ) -> Result<Result<T, E>, KillCause> {
        let mut inner = self.inner();
        if let Some(cause) = inner.cause {
            return Err(cause);
        }
        Ok(start().map(|(pid, it)| {
            inner.group = Some(pid);
            it
        }))
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
