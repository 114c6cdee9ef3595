//! The result of a run, in the original's words: 1 success, 0 failure, `"N/A"` never started.
//!
//! Must not print; it gives values that serialise.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::engine::event::{Captured, ReasonWord};
use crate::engine::graph::{Graph, NodeIx};
use crate::engine::name::Attempt;
use crate::engine::spec::Action;
use crate::engine::state::{Finished, NodeState, Phase, RunState};
use crate::value::Value;

/// The whole result: `{"output": {node: {…}}, "return_code": 0|1}`.
#[derive(Clone, Copy)]
pub struct Report<'a> {
    /// The graph that ran.
    pub graph: &'a Graph,
    /// Its state.
    pub state: &'a RunState,
    /// How the run ended: 1 success, 0 failure; none: it goes on.
    pub return_code: Option<i64>,
    /// Where times are shown.
    pub zone: &'a TimeZone,
}

impl Serialize for Report<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("output", &Nodes(*self))?;
        map.serialize_entry("return_code", &self.return_code)?;
        map.end()
    }
}

struct Nodes<'a>(Report<'a>);

impl Serialize for Nodes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.graph.len()))?;
        for (node, state) in self.0.state.iter() {
            map.serialize_entry(self.0.graph.name(node).as_str(), &self.0.node(node, state))?;
        }
        map.end()
    }
}

#[derive(Serialize)]
struct Node<'a> {
    action: &'a Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<Attempt>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decision_expr: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a Value>,
    name: &'a str,
    prev_nodes: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    result: NodeResult<'a>,
    #[serde(rename = "should_I_start")]
    should_start: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
}

#[derive(Serialize)]
struct NodeResult<'a> {
    return_code: Code,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
    #[serde(flatten)]
    captured: std::borrow::Cow<'a, Captured>,
}

enum Code {
    Number(i64),
    NotApplicable,
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Number(code) => serializer.serialize_i64(*code),
            Self::NotApplicable => serializer.serialize_str("N/A"),
        }
    }
}

impl<'a> Report<'a> {
    fn node(&self, index: NodeIx, state: &'a NodeState) -> Node<'a> {
        let node = self.graph.node(index);
        let finished = match state {
            NodeState::Finished(finished) => Some(finished.as_ref()),
            _ => None,
        };
        let ran = finished.and_then(|finished| finished.ran);
        Node {
            action: &node.action_shown,
            attempt: ran
                .map(|(attempt, _)| attempt)
                .filter(|attempt| *attempt > Attempt::FIRST),
            decision_expr: node.decision_expr.as_ref().map(|expr| expr.it.text()),
            end_time: ran.and(finished).map(|finished| self.time(finished.ended)),
            id: node.id.as_ref().map(|id| &id.it),
            name: node.name.as_str(),
            prev_nodes: node
                .prev_nodes
                .iter()
                .map(|prev| prev.it.as_str())
                .collect(),
            reason: finished
                .and_then(|finished| finished.reason.as_ref())
                .map(ToString::to_string),
            result: result(&node.action, state, finished),
            should_start: ran.is_some(),
            start_time: ran.map(|(_, start)| self.time(start)),
            status: status(state.phase()),
        }
    }

    fn time(&self, at: Timestamp) -> String {
        at.to_zoned(self.zone.clone())
            .strftime("%Y-%m-%d %H:%M:%S")
            .to_string()
    }
}

/// The original's word for a phase; none where the node never started.
fn status(phase: Phase) -> Option<&'static str> {
    match phase {
        Phase::Succeeded => Some("success"),
        Phase::Failed => Some("failure"),
        Phase::Error => Some("exception"),
        Phase::Cancelled => Some("cancelled"),
        Phase::Pending | Phase::Running | Phase::Skipped => None,
    }
}

fn result<'a>(
    action: &Action,
    state: &NodeState,
    finished: Option<&'a Finished>,
) -> NodeResult<'a> {
    let mut captured = std::borrow::Cow::Owned(Captured::default());
    if let Some(finished) = finished {
        captured = std::borrow::Cow::Borrowed(finished.captured());
        if let (Phase::Error, Some(reason)) = (finished.phase, &finished.reason) {
            let captured = captured.to_mut();
            captured
                .err_msg
                .get_or_insert_with(|| Value::from(reason.message.as_str()));
            // The original's codes for what is no failure of the job's own.
            let code = match (reason.word, action) {
                (ReasonWord::Timeout | ReasonWord::Lost, _) => None,
                (_, Action::Cmd(_)) => Some("apscli_run_cmd_exception"),
                (_, Action::Api(_)) => Some("apscli_run_py_func_exception"),
            };
            if let Some(code) = code {
                captured.err_code.get_or_insert_with(|| Value::from(code));
            }
        }
    }
    NodeResult {
        return_code: state.code().map_or(Code::NotApplicable, Code::Number),
        exit_code: finished
            .and_then(|finished| finished.exit_code)
            .filter(|code| *code != 0),
        signal: finished.and_then(|finished| finished.signal),
        captured,
    }
}
