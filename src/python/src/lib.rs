//! `apscli_python`: serves api nodes (calls of Python functions) inside the user's own python3.
//!
//! One warm interpreter per distinct python imports nothing of the user's (but for modules named to be
//! preloaded), takes calls from its host over a socket, and forks a process for each. So a call costs a
//! fork and not the start of an interpreter, no call sees the state of another, and a crash costs one call.
//!
//! ```text
//! host ──{"call":ID} + 4 fds──▶ serve ──fork──▶ child ──▶ request ──▶ call ──▶ outcome ──JSON──▶ host
//!      ◀──forked, ended──────── (parent)        (one process a call)
//! ```
//!
//! May not: decide anything about a run (retry, time out, stop: the host does), link libpython (the file
//! must load into any `CPython` from 3.9 on), or start a thread (a fork copies only the thread that forks).

mod call;
mod child;
mod interpreter;
mod os;
mod outcome;
mod request;
mod serve;
mod wire;

/// The functions that the interpreter sees. Called from `bootstrap.py` only.
// `gil_used`: a process that forks out of one thread has nothing to gain from running without the GIL.
#[pyo3::pymodule(gil_used = true)]
mod apscli_python {
    use pyo3::prelude::*;

    use crate::interpreter::Interpreter;
    use crate::serve::{Served, run};
    use crate::{child, os, wire::Host};

    /// Serves calls that come over the socket `fd` until its other end is closed.
    #[pyfunction]
    #[allow(clippy::needless_pass_by_value)] // the macro extracts arguments by value
    fn serve(py: Python<'_>, fd: i32, preload: Vec<String>) -> PyResult<()> {
        let host = Host::new(os::adopt(fd)?);
        let interpreter = Interpreter::prepare(py, &preload)?;
        match run(&interpreter, host)? {
            Served::HostGone => Ok(()),
            // In the child, everything of the parent's loop (the socket, the other children's
            // descriptors) was dropped when `run` returned.
            Served::Child(call) => child::run(&interpreter, call),
        }
    }
}
