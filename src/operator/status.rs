//! From the state of a run to what stands on the resource, and back.
//!
//! Both directions are pure and stand side by side, because a restart is nothing but reading back
//! what was written: `read(write(state))` leads to the same state (a property test says so).
//!
//! Must not call the API, read a clock, or decide what the engine decides.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use crate::api::workflow_run::{Counts, ExecutorKind, NodePhase, NodeStatus, PodReference};
use crate::api::{from_value, to_value};
use crate::engine::event::{
    CancelCause, Captured, Ending, Event, KillCause, Outcome, Reason, ReasonWord,
};
use crate::engine::graph::{Graph, NodeIx};
use crate::engine::name::Attempt;
use crate::engine::state::{NodeState, Phase, RunState};
use crate::value::Value;

/// Most nodes in one list: a run with more has its table in pages.
pub const PAGE: usize = 100;
/// Most nodes in the status of a run that has pages.
const SHOWN: usize = 50;
/// Bytes that one list of nodes may take as JSON. With all else that stands in an object this
/// keeps it below 256 KiB.
const LIST: usize = 236 * 1024;
/// Bytes of an entry beside its name, its message and what the node said: all numbers, times and
/// names of members at their longest.
const FRAME: usize = 765 + SANDBOX;
/// Bytes of what was enforced on a process, as JSON.
const SANDBOX: usize = 150;
/// Bytes that a node said, as JSON.
const SAID: usize = 16 * 1024;
/// Characters of a message, and its bytes as JSON.
const MESSAGE: usize = 400;
const MESSAGE_BYTES: usize = 800;
/// What can be cut, as `truncated` names it. (Whatever runs in a pod may claim other names.)
const CUT: [&str; 5] = ["output", "err_msg", "err_code", "info", "message"];

/// What the operator knows of a node's pod or process, beyond the engine's state.
#[derive(Clone, Debug, Default)]
pub struct PodFacts {
    /// The pod.
    pub pod: Option<PodReference>,
    /// What the attempt waits for before its action begins: a word and a sentence.
    pub waits: Option<(String, String)>,
    /// Whether it is a process beside the operator, and no pod.
    pub process: bool,
    /// What was enforced on that process, in words.
    pub sandbox: Option<String>,
}

/// A node's entry.
#[must_use]
pub fn node(graph: &Graph, state: &RunState, ix: NodeIx, facts: &PodFacts) -> NodeStatus {
    let mut entry = NodeStatus {
        name: graph.name(ix).to_string(),
        ..NodeStatus::default()
    };
    let node_state = state.node(ix);
    entry.phase = node_state.phase().into();
    entry.return_code = node_state.code().and_then(|code| i32::try_from(code).ok());
    match node_state {
        NodeState::Pending => {}
        NodeState::Running(running) => {
            ran(&mut entry, running.attempt, running.since, facts);
            if let Some((word, message)) = &facts.waits {
                entry.reason = Some(cut(word, 64).to_owned());
                entry.message = Some(short(message));
            }
        }
        NodeState::Lost { was, message } => {
            ran(&mut entry, was.attempt, was.since, facts);
            entry.reason = Some(word(ReasonWord::Lost));
            entry.message = Some(short(message));
        }
        NodeState::Finished(finished) => {
            if let Some((attempt, since)) = finished.ran {
                ran(&mut entry, attempt, since, facts);
            }
            entry.end_time = Some(MicroTime(finished.ended));
            entry.exit_code = finished.exit_code;
            entry.signal = finished.signal;
            if let Some(reason) = &finished.reason {
                entry.reason = Some(word(reason.word));
                entry.message = Some(short(&reason.message));
            }
            let message = entry.message.as_ref().map_or(0, |message| encoded(message));
            let captured = fitting(finished.captured(), room(graph, ix, message));
            let wire = |value: Option<Value>| value.as_ref().map(from_value);
            entry.output = wire(captured.output);
            entry.err_msg = wire(captured.err_msg);
            entry.err_code = wire(captured.err_code);
            entry.info = wire(captured.info);
            entry.truncated = captured.truncated;
        }
    }
    entry
}

fn ran(entry: &mut NodeStatus, attempt: Attempt, since: Timestamp, facts: &PodFacts) {
    entry.attempt = Some(attempt.get());
    entry.start_time = Some(MicroTime(since));
    entry.executor = Some(if facts.process {
        ExecutorKind::Process
    } else {
        ExecutorKind::Pod
    });
    entry.pod.clone_from(&facts.pod);
    entry.sandbox = facts
        .sandbox
        .as_deref()
        .map(|it| cut(it, SANDBOX).to_owned());
}

fn word(word: ReasonWord) -> String {
    format!("{word:?}")
}

/// What of an outcome is kept: as much as its entry has room for. All else stands in the pod's
/// log, and is not held in memory either.
#[must_use]
pub fn kept(graph: &Graph, ix: NodeIx, outcome: Outcome) -> Outcome {
    let Outcome { ending, captured } = outcome;
    let ending = match ending {
        Ending::NotStarted(message) => Ending::NotStarted(short(&message)),
        Ending::Exception(message) => Ending::Exception(short(&message)),
        Ending::NoResult(message) => Ending::NoResult(short(&message)),
        Ending::Lost(message) => Ending::Lost(short(&message)),
        ending => ending,
    };
    let message = match &ending {
        Ending::NotStarted(message)
        | Ending::Exception(message)
        | Ending::NoResult(message)
        | Ending::Lost(message) => encoded(message),
        // Words of our own.
        _ => 80,
    };
    let captured = fitting(&captured, room(graph, ix, message));
    Outcome { ending, captured }
}

/// How many bytes of JSON an entry has for what its node said.
fn room(graph: &Graph, ix: NodeIx, message: usize) -> usize {
    let entry = LIST / graph.len().clamp(1, PAGE);
    let taken = encoded(graph.name(ix).as_str()) + message + FRAME;
    entry.saturating_sub(taken).min(SAID)
}

/// As much of what a node said as fits.
fn fitting(captured: &Captured, room: usize) -> Captured {
    let mut left = room;
    let mut kept = Captured::default();
    let known = captured
        .truncated
        .iter()
        .filter(|(name, _)| CUT.contains(&name.as_str()));
    kept.truncated
        .extend(known.map(|(name, bytes)| (name.clone(), *bytes)));
    let truncated = &mut kept.truncated;
    let mut put = |name: &str, value: &Option<Value>| {
        // A null member and none are the same on the wire.
        let value = value.as_ref().filter(|value| **value != Value::Null)?;
        let wire = from_value(value);
        let bytes = match &wire {
            serde_json::Value::String(text) => encoded(text),
            other => other.to_string().len(),
        };
        if bytes <= left {
            left -= bytes;
            return Some(to_value(&wire));
        }
        let text = value.to_plain_text();
        let kept = cut(&text, left);
        left -= encoded(kept);
        let missing = u64::try_from(text.len() - kept.len()).unwrap_or(u64::MAX);
        let before = truncated.entry(name.to_owned()).or_default();
        *before = before.saturating_add(missing);
        Some(Value::String(kept.to_owned()))
    };
    // What explains a failure comes first.
    kept.err_code = put("err_code", &captured.err_code);
    kept.err_msg = put("err_msg", &captured.err_msg);
    kept.output = put("output", &captured.output);
    kept.info = put("info", &captured.info);
    kept
}

/// The bytes of a character inside a JSON text.
fn width(c: char) -> usize {
    match c {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\0'..='\u{1f}' => 6,
        c => c.len_utf8(),
    }
}

/// The bytes of a text as JSON, without its quotes.
fn encoded(text: &str) -> usize {
    text.chars().map(width).sum()
}

/// As much of a text's beginning as takes so many bytes as JSON.
fn cut(text: &str, most: usize) -> &str {
    let mut taken = 0;
    let end = text.char_indices().find(|(_, c)| {
        taken += width(*c);
        taken > most
    });
    end.and_then(|(end, _)| text.get(..end)).unwrap_or(text)
}

fn short(message: &str) -> String {
    let end = message
        .char_indices()
        .nth(MESSAGE)
        .map_or(message.len(), |(end, _)| end);
    let kept = cut(message.get(..end).unwrap_or_default(), MESSAGE_BYTES);
    // A text that was cut once stays as it is.
    if message.strip_suffix('…').unwrap_or(message).len() <= kept.len() {
        return message.to_owned();
    }
    format!("{kept}…")
}

/// Somebody else's words for the status of a run as a whole.
#[must_use]
pub fn brief(message: &str) -> String {
    const LONGEST: usize = 4096;
    let kept = cut(message, LONGEST);
    if kept.len() < message.len() {
        format!("{kept}…")
    } else {
        message.to_owned()
    }
}

/// How many nodes are in each phase.
#[must_use]
pub fn counts(state: &RunState) -> Counts {
    let mut counts = Counts::default();
    for (_, node) in state.iter() {
        counts.add(node.phase().into());
    }
    counts
}

/// The nodes that stand in the status of a run with pages: those that run or went wrong, as many
/// as fit, in template order.
pub fn shown(state: &RunState) -> impl Iterator<Item = NodeIx> + '_ {
    let worth = |phase| matches!(phase, Phase::Running | Phase::Failed | Phase::Error);
    let nodes = state.iter().filter(move |(_, node)| worth(node.phase()));
    nodes.map(|(ix, _)| ix).take(SHOWN)
}

/// What a run waits for, in one line.
#[must_use]
pub fn message(
    graph: &Graph,
    state: &RunState,
    facts: &dyn Fn(NodeIx) -> Option<String>,
) -> String {
    const NAMED: usize = 3;
    let running: Vec<NodeIx> = state.running().collect();
    let list = |nodes: &[NodeIx]| {
        let mut text = nodes
            .iter()
            .take(NAMED)
            .map(|ix| graph.name(*ix).to_string())
            .collect::<Vec<_>>()
            .join(", ");
        if nodes.len() > NAMED {
            let _ = write!(text, " and {} more", nodes.len() - NAMED);
        }
        text
    };
    let (waiting, going): (Vec<NodeIx>, Vec<NodeIx>) =
        running.iter().partition(|ix| facts(**ix).is_some());
    let mut parts = Vec::new();
    match state.cancelled() {
        Some(CancelCause::Asked) => parts.push("is being cancelled".to_owned()),
        Some(CancelCause::Timeout) => parts.push("is being ended: over its timeout".to_owned()),
        None if state.is_suspended() => parts.push("suspended".to_owned()),
        None => {}
    }
    if let Some(first) = waiting.first() {
        let why = facts(*first).unwrap_or_default();
        let verb = if waiting.len() == 1 { "waits" } else { "wait" };
        parts.push(format!("{} {verb}: {why}", list(&waiting)));
    }
    if !going.is_empty() {
        parts.push(format!("running {}", list(&going)));
    }
    short(&parts.join("; "))
}

/// How a finished run ended, in one line; empty where all went well.
#[must_use]
pub fn last_message(graph: &Graph, state: &RunState) -> String {
    match state.cancelled() {
        Some(CancelCause::Asked) => return "cancelled".to_owned(),
        Some(CancelCause::Timeout) => return "took longer than its timeout".to_owned(),
        None => {}
    }
    let wrong = state
        .iter()
        .filter(|(_, node)| matches!(node.phase(), Phase::Failed | Phase::Error));
    let mut text = String::new();
    let mut more = 0_usize;
    for (ix, node) in wrong {
        if !text.is_empty() {
            more += 1;
            continue;
        }
        let why = match node {
            NodeState::Finished(finished) => finished.reason.as_ref().map(|it| it.message.clone()),
            _ => None,
        };
        text = format!("{}: {}", graph.name(ix), why.unwrap_or_default());
    }
    if more > 0 {
        let _ = write!(text, " (and {more} more)");
    }
    short(&text)
}

/// Why a run is to end early, as far as its record goes: where the pages are newer than the status
/// itself, their nodes tell.
#[must_use]
pub fn cancelled<'a>(
    recorded: Option<crate::api::workflow_run::CancelCause>,
    mut entries: impl Iterator<Item = &'a &'a NodeStatus>,
) -> Option<CancelCause> {
    let told = || {
        let of_cancel = |entry: &&&NodeStatus| entry.reason_word() == Some(ReasonWord::Cancelled);
        entries.find(of_cancel).map(|entry| cause(entry))
    };
    recorded.map(CancelCause::from).or_else(told)
}

/// The cause that a cancelled node's message tells of.
fn cause(entry: &NodeStatus) -> CancelCause {
    let timeout = crate::engine::state::cancelled(CancelCause::Timeout).message;
    match entry.message.as_deref() {
        Some(text) if text == timeout => CancelCause::Timeout,
        _ => CancelCause::Asked,
    }
}

/// The events that a node's entry stands for, so that folding them leads to what it says.
///
/// An entry that makes no sense (somebody wrote it by hand) gives what sense it makes: nothing is
/// ever turned back from final, and a node that was begun is not begun again.
#[must_use]
pub fn events(ix: NodeIx, entry: &NodeStatus) -> Vec<Event> {
    let phase = Phase::from(entry.phase);
    let ended = entry.end_time.as_ref().map(|time| time.0);
    let since = entry.start_time.as_ref().map(|time| time.0);
    let Some(attempt) = entry.attempt.filter(|attempt| *attempt >= 1) else {
        return match phase {
            Phase::Pending | Phase::Running => Vec::new(),
            _ => vec![Event::Skipped {
                node: ix,
                reason: Reason::new(
                    entry.reason_word().unwrap_or(ReasonWord::ConditionFalse),
                    entry.message.clone().unwrap_or_default(),
                ),
                at: ended.unwrap_or_default(),
            }],
        };
    };
    let since = since.or(ended).unwrap_or_default();
    let mut events = Vec::new();
    let mut this = Attempt::FIRST;
    loop {
        events.push(Event::Started {
            node: ix,
            attempt: this,
            at: since,
        });
        // Far more than there can be; what is written by hand must not make us loop for long.
        if this.get() >= attempt.min(100) {
            break;
        }
        events.push(end(
            ix,
            this,
            Ending::Lost("an earlier attempt was lost".to_owned()),
            Captured::default(),
            since,
        ));
        this = this.next();
    }
    let message = || entry.message.clone().unwrap_or_default();
    let code = entry.exit_code;
    let ending = match (phase, entry.reason_word()) {
        (Phase::Pending | Phase::Running | Phase::Error, Some(ReasonWord::Lost)) => {
            Ending::Lost(message())
        }
        (Phase::Pending | Phase::Running, _) => return events,
        (Phase::Succeeded, _) => Ending::Exited(0),
        (Phase::Failed, Some(ReasonWord::Signal)) => Ending::Signalled(entry.signal.unwrap_or(0)),
        (Phase::Failed, Some(ReasonWord::ReturnCode)) => {
            Ending::Returned(code.filter(|code| *code != 0).unwrap_or(1))
        }
        (Phase::Failed, _) => {
            let code = code.and_then(|code| i32::try_from(code).ok());
            Ending::Exited(code.filter(|code| *code != 0).unwrap_or(1))
        }
        (Phase::Cancelled | Phase::Skipped, _) => Ending::Killed(KillCause::Cancel(cause(entry))),
        (Phase::Error, Some(ReasonWord::NotStarted)) => Ending::NotStarted(message()),
        (Phase::Error, Some(ReasonWord::Exception)) => Ending::Exception(message()),
        (Phase::Error, Some(ReasonWord::Timeout)) => Ending::Killed(KillCause::NodeTimeout),
        (Phase::Error, _) => Ending::NoResult(message()),
    };
    let at = ended.unwrap_or(since);
    let given_up = phase == Phase::Error && matches!(ending, Ending::Lost(_));
    events.push(end(ix, this, ending, captured(entry), at));
    if given_up {
        events.push(Event::GivenUp { node: ix, at });
    }
    events
}

fn end(node: NodeIx, attempt: Attempt, ending: Ending, captured: Captured, at: Timestamp) -> Event {
    Event::Ended {
        node,
        attempt,
        outcome: Outcome { ending, captured },
        at,
    }
}

fn captured(entry: &NodeStatus) -> Captured {
    let read = |value: &Option<serde_json::Value>| value.as_ref().map(to_value);
    Captured {
        output: read(&entry.output),
        err_msg: read(&entry.err_msg),
        err_code: read(&entry.err_code),
        info: read(&entry.info),
        truncated: entry.truncated.clone(),
    }
}

/// The entries of a run, by node name, from its status and its pages. Of two for one node (it
/// stands in both) the one that knows more counts: a later attempt, then a final phase.
#[must_use]
pub fn merged<'a>(
    lists: impl IntoIterator<Item = &'a NodeStatus>,
) -> BTreeMap<&'a str, &'a NodeStatus> {
    let rank = |entry: &NodeStatus| {
        let over = !matches!(entry.phase, NodePhase::Pending | NodePhase::Running);
        (entry.attempt, over)
    };
    let mut all: BTreeMap<&str, &NodeStatus> = BTreeMap::new();
    for entry in lists {
        let slot = all.entry(&entry.name).or_insert(entry);
        if rank(entry) > rank(slot) {
            *slot = entry;
        }
    }
    all
}
