//! The forked process of one call, from its first moment to its last.
//!
//! May not return into the parent's loop, and leaves nothing of the parent's open. It writes one result
//! document before anything that can take long (threads, exit functions) and before it ends; a process
//! that dies earlier leaves the pipe empty, which the host can tell from a result.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Mutex;

use pyo3::prelude::*;
use rustix::process::{
    Pid, Signal, getpid, getppid, kill_process, set_parent_process_death_signal, setpgid,
};

use crate::interpreter::Interpreter;
use crate::outcome::{self, Failure, Kind};
use crate::wire::Call;
use crate::{call, request};

/// The pipe for this call's result; none in the parent.
static RESULT: Mutex<Option<OwnedFd>> = Mutex::new(None);

/// Runs after every fork of a process of ours. A process that the user's function forks must not hold the
/// pipe open after the call has ended, nor write a second result when it returns from the function.
pub fn forget_result() {
    if let Ok(mut result) = RESULT.try_lock() {
        result.take();
    }
}

/// First thing after the fork: a group of its own, and death together with the parent.
pub fn leave_parent(parent: Pid) {
    let _ = setpgid(None, None);
    let asked = set_parent_process_death_signal(Some(Signal::KILL));
    // The parent may have died before it was asked for.
    if asked.is_err() || getppid() != Some(parent) {
        let _ = kill_process(getpid(), Signal::KILL);
    }
}

/// Carries out the call and ends the process.
pub fn run(interpreter: &Interpreter<'_>, call: Call) -> ! {
    let Call {
        request,
        result,
        stdout,
        stderr,
        ..
    } = call;
    if let Ok(mut slot) = RESULT.lock() {
        *slot = Some(result);
    }
    let streams =
        rustix::stdio::dup2_stdout(&stdout).and_then(|()| rustix::stdio::dup2_stderr(&stderr));
    drop((stdout, stderr));
    let document = streams
        .map_err(|e| {
            Failure::said(
                Kind::Request,
                format!("cannot take the call's streams: {e}"),
            )
        })
        .and_then(|()| answer(interpreter, request))
        .unwrap_or_else(|failure| outcome::exception(interpreter, &failure));
    write_result(interpreter.py, &document);
    interpreter.exit(0)
}

fn answer(interpreter: &Interpreter<'_>, pipe: OwnedFd) -> Result<Vec<u8>, Failure> {
    interpreter
        .be_a_child()
        .map_err(|e| Failure::raised(Kind::Raised, e))?;
    let request = request::read(interpreter, pipe)?;
    let returned = call::call(interpreter, &request)?;
    outcome::returned(interpreter, &request.target(), &returned)
}

fn write_result(py: Python<'_>, document: &[u8]) {
    let Some(pipe) = RESULT.lock().ok().and_then(|mut result| result.take()) else {
        return;
    };
    // A host that no longer reads does not want it. The GIL is free: the host may be slow, and the
    // function's threads go on.
    let _ = py.detach(|| File::from(pipe).write_all(document));
}
