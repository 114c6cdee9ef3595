//! The first process of a container: it starts the one that acts, hands signals on to it, and
//! reaps whatever is left to it.
//!
//! A process of its own, because a first process gets everybody's orphans, and reaping those must
//! not reap what the hand waits for. Must not look at the decision.

use std::process::{Command, ExitCode};
use std::thread;

use apscli::engine::event::{Ending, Outcome};
use apscli::executor::frame;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::{Places, act, trouble};

/// Lives as long as the process that acts.
pub fn run(places: &Places) -> ExitCode {
    // Before the start: a first process has no default action for signals, they would be lost.
    let mut signals = match Signals::new([SIGHUP, SIGINT, SIGTERM]) {
        Ok(signals) => signals,
        Err(error) => return trouble(&format!("cannot listen to signals: {error}")),
    };
    let started = Command::new("/proc/self/exe")
        .args(std::env::args_os().skip(1))
        .spawn();
    let worker = match started {
        Ok(child) => i32::try_from(child.id()).ok().and_then(Pid::from_raw),
        Err(error) => return trouble(&format!("cannot start myself: {error}")),
    };
    let Some(worker) = worker else {
        return trouble("the system gave no process id");
    };
    thread::spawn(move || {
        for signal in &mut signals {
            if let Some(signal) = Signal::from_named_raw(signal) {
                let _ = kill_process(worker, signal);
            }
        }
    });
    let status = reap_until(worker);
    match status.and_then(WaitStatus::exit_status) {
        Some(code) => ExitCode::from(u8::try_from(code).unwrap_or(crate::TROUBLE)),
        None => killed(places, status.and_then(WaitStatus::terminating_signal)),
    }
}

fn reap_until(worker: Pid) -> Option<WaitStatus> {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == worker => return Some(status),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

/// Leaves a result for a worker that could not.
fn killed(places: &Places, signal: Option<i32>) -> ExitCode {
    let written = std::fs::read_to_string(&places.termination_log).unwrap_or_default();
    let by = signal.map_or_else(String::new, |signal| format!(" by signal {signal}"));
    let message = format!("apscli-node was ended{by} while the action ran");
    if frame::decode(&written).is_err() {
        let outcome = Outcome::silent(Ending::NoResult(message.clone()));
        if let Err(error) = act::leave(places, &outcome, frame::MIN_BUDGET) {
            return trouble(&error);
        }
    }
    trouble(&message)
}
