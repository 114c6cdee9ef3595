//! Carries out the decision and leaves the frame.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use apscli::engine::event::{CancelCause, Ending, KillCause, Outcome};
use apscli::engine::spec::Action;
use apscli::executor::control::Control;
use apscli::executor::decision::{self, BUDGET, Work, for_each_text, replace_all};
use apscli::executor::process::{self, OWN_STDOUT, Surroundings};
use apscli::executor::python::Python;
use apscli::executor::{frame, scripts, spawn};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::{Places, trouble};

/// Shortest text that is taken for a secret when results are masked: what is shorter stands in
/// too many places by chance.
const SHORTEST_SECRET: usize = 4;

/// Carries out the decision and leaves the result.
pub fn run(places: &Places) -> ExitCode {
    let (outcome, budget, ours) = match prepare(places) {
        Ok((work, secrets)) => {
            let budget = work.budget;
            match carry_out(work) {
                Ok(mut outcome) => {
                    mask(&mut outcome, &secrets);
                    (outcome, budget, None)
                }
                Err(error) => (not_started(&error), budget, Some(error)),
            }
        }
        Err(error) => (not_started(&error), BUDGET, Some(error)),
    };
    if let Err(error) = leave(places, &outcome, budget) {
        return trouble(&error);
    }
    match (ours, &outcome.ending) {
        (Some(error), _) => trouble(&error),
        (None, Ending::Exited(0) | Ending::Returned(0)) => ExitCode::SUCCESS,
        (None, _) => ExitCode::FAILURE,
    }
}

fn not_started(error: &str) -> Outcome {
    Outcome::silent(Ending::NotStarted(error.to_owned()))
}

/// Writes the result to where the kubelet reads it.
pub fn leave(places: &Places, outcome: &Outcome, budget: usize) -> Result<(), String> {
    let path = &places.termination_log;
    std::fs::write(path, frame::encode(outcome, budget))
        .map_err(|error| format!("cannot write the result to {}: {error}", path.display()))
}

/// Reads the decision, checks the scripts that it was made for, and puts secrets in place, whose
/// values come back.
fn prepare(places: &Places) -> Result<(Work, BTreeMap<String, String>), String> {
    let text = match &places.decision {
        Some(file) => std::fs::read_to_string(file)
            .map_err(|error| format!("cannot read the decision in {}: {error}", file.display()))?,
        None => std::env::var(decision::ENV).map_err(|_| {
            format!(
                "there is no decision: expected the environment variable {} or --decision FILE",
                decision::ENV
            )
        })?,
    };
    let mut work = Work::from_json(&text).map_err(|error| error.to_string())?;
    if let Some(expected) = &work.scripts {
        // Before a secret is read: what was put in the scripts' place must not get at it.
        scripts::check(Path::new(&work.folder), expected)?;
    }
    let mut secrets = BTreeMap::new();
    for (token, file) in &work.secrets {
        // Neither the token nor the value is said, only where it should be.
        let value = std::fs::read_to_string(file)
            .map_err(|error| format!("cannot read the secret in {file}: {error}"))?;
        secrets.insert(token.clone(), value);
    }
    work.reveal(&secrets);
    Ok((work, secrets))
}

/// The environment that the action inherits.
fn environment() -> BTreeMap<OsString, OsString> {
    let mut env: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
    env.remove(OsStr::new(decision::ENV));
    // In a pod all but the folder that we are in may be read-only, and the user has no home.
    if let Ok(here) = std::env::current_dir() {
        let home = env.entry("HOME".into()).or_default();
        if home.is_empty() || home == "/" {
            here.as_os_str().clone_into(home);
        }
        env.entry("TMPDIR".into()).or_insert_with(|| here.into());
    }
    env
}

enum News {
    Ended(Outcome),
    /// Somebody wants the pod to end.
    Asked,
}

/// Runs the action to its end, its timeout or the pod's.
fn carry_out(work: Work) -> Result<Outcome, String> {
    spawn::set_up();
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])
        .map_err(|error| format!("cannot listen to signals: {error}"))?;
    let (news, inbox) = channel();
    let asked = news.clone();
    thread::spawn(move || {
        for _ in &mut signals {
            let _ = asked.send(News::Asked);
        }
    });
    let (grace, timeout) = (work.grace(), work.timeout());
    let control = Arc::new(Control::default());
    let hand = Arc::clone(&control);
    thread::Builder::new()
        .name("hand".to_owned())
        .spawn(move || {
            let work = || by_hand(&work, &hand);
            let outcome = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
                hand.kill();
                let message = "the executor broke down; this is a bug of apscli".to_owned();
                Outcome::silent(Ending::NoResult(message))
            });
            let _ = news.send(News::Ended(outcome));
        })
        .map_err(|error| format!("cannot start a thread: {error}"))?;
    let timeout = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let outcome = watch(&inbox, &control, timeout, grace);
    Ok(match outcome.ending {
        // Not ours to say why; what the operator knows of the pod tells a cancel from a loss.
        Ending::Killed(KillCause::Cancel(_)) => Outcome {
            ending: Ending::Lost("the pod was asked to end before its action did".to_owned()),
            ..outcome
        },
        _ => outcome,
    })
}

fn by_hand(work: &Work, control: &Control) -> Outcome {
    let surroundings = Surroundings {
        env: environment(),
        folder: PathBuf::from(&work.folder),
        grace: work.grace(),
        fence: None,
    };
    let log = Path::new(OWN_STDOUT);
    match &work.action {
        Action::Cmd(cmd) => process::run(cmd, &work.param, &surroundings, log, control),
        Action::Api(api) => {
            let folder = surroundings
                .lookup("TMPDIR")
                .unwrap_or_else(|| "/tmp".into());
            let words = Path::new(&folder).join(".apscli-python.log");
            let python = Python::new(None, Vec::new(), words);
            python.run(api, &work.param, &surroundings, log, control)
        }
    }
}

/// Waits for the outcome; ends the action by TERM, and after the grace by KILL, when its time is
/// over or the pod is to end.
fn watch(
    inbox: &Receiver<News>,
    control: &Control,
    mut timeout: Option<Instant>,
    grace: Duration,
) -> Outcome {
    let mut kill: Option<Instant> = None;
    loop {
        let news = match kill.or(timeout) {
            Some(at) => inbox.recv_timeout(at.saturating_duration_since(Instant::now())),
            None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let cause = match news {
            Ok(News::Ended(outcome)) => return outcome,
            Ok(News::Asked) => KillCause::Cancel(CancelCause::Asked),
            Err(RecvTimeoutError::Timeout) if kill.is_some() => {
                control.kill();
                kill = Instant::now().checked_add(grace.max(Duration::from_secs(1)));
                continue;
            }
            Err(RecvTimeoutError::Timeout) => KillCause::NodeTimeout,
            Err(RecvTimeoutError::Disconnected) => {
                return Outcome::silent(Ending::NoResult("apscli-node broke down".to_owned()));
            }
        };
        timeout = None;
        if kill.is_none() {
            control.terminate(cause);
            kill = Instant::now().checked_add(grace);
        }
    }
}

/// Takes the values of secrets out of a result: what a node prints by mistake must not come to
/// stand in the run's status.
fn mask(outcome: &mut Outcome, secrets: &BTreeMap<String, String>) {
    const MASK: &str = "***";
    let parts = secrets
        .values()
        .flat_map(|value| std::iter::once(value.trim()).chain(value.lines().map(str::trim)))
        .filter(|part| part.len() >= SHORTEST_SECRET)
        .map(|part| (part.to_owned(), MASK.to_owned()));
    let parts: BTreeMap<String, String> = parts.collect();
    if parts.is_empty() {
        return;
    }
    let captured = &mut outcome.captured;
    let fields = [
        &mut captured.output,
        &mut captured.err_msg,
        &mut captured.err_code,
        &mut captured.info,
    ];
    for value in fields.into_iter().flatten() {
        for_each_text(value, &mut |text| replace_all(text, &parts));
    }
    if let Ending::NotStarted(message)
    | Ending::Exception(message)
    | Ending::NoResult(message)
    | Ending::Lost(message) = &mut outcome.ending
    {
        replace_all(message, &parts);
    }
}
