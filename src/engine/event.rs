//! What can happen in a run. The events of a run in their order *are* the run: everything else
//! is folded from them.
//!
//! Must not hold what can be computed from other events and the graph.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::engine::graph::NodeIx;
use crate::engine::name::Attempt;
use crate::value::Value;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The run began.
    RunStarted {
        /// When.
        at: Timestamp,
    },
    /// The run is to end early. One-way.
    Cancelled {
        /// Why.
        cause: CancelCause,
        /// When.
        at: Timestamp,
    },
    /// Whether new nodes are held back.
    Suspended(bool),
    /// An attempt of a node is about to be carried out. Recorded before the doing, so that
    /// whatever happens then, this attempt is never begun again.
    Started {
        /// The node.
        node: NodeIx,
        /// Which try.
        attempt: Attempt,
        /// When.
        at: Timestamp,
    },
    /// A running attempt is about to be ended from outside.
    Killing {
        /// The node.
        node: NodeIx,
        /// Which try.
        attempt: Attempt,
        /// Why.
        cause: KillCause,
    },
    /// An attempt came to its end.
    Ended {
        /// The node.
        node: NodeIx,
        /// Which try.
        attempt: Attempt,
        /// What came of it.
        outcome: Outcome,
        /// When.
        at: Timestamp,
    },
    /// A lost attempt gets no other try.
    GivenUp {
        /// The node.
        node: NodeIx,
        /// When.
        at: Timestamp,
    },
    /// A node will never start.
    Skipped {
        /// The node.
        node: NodeIx,
        /// Why.
        reason: Reason,
        /// When.
        at: Timestamp,
    },
}

impl Event {
    /// The node that the event is about.
    #[must_use]
    pub fn node(&self) -> Option<NodeIx> {
        match self {
            Self::RunStarted { .. } | Self::Cancelled { .. } | Self::Suspended(_) => None,
            Self::Started { node, .. }
            | Self::Killing { node, .. }
            | Self::Ended { node, .. }
            | Self::GivenUp { node, .. }
            | Self::Skipped { node, .. } => Some(*node),
        }
    }
}

/// Why a run ends early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CancelCause {
    /// Somebody asked for it (Ctrl-C, `cancel`).
    Asked,
    /// The run's own timeout.
    Timeout,
}

/// Why a running attempt is ended from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KillCause {
    /// The node's own timeout.
    NodeTimeout,
    /// The run was cancelled.
    Cancel(CancelCause),
}

/// What came back from the doing of an attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// How it ended.
    pub ending: Ending,
    /// What it said.
    #[serde(default)]
    pub captured: Captured,
}

impl Outcome {
    /// An outcome that said nothing.
    #[must_use]
    pub fn silent(ending: Ending) -> Self {
        Self {
            ending,
            captured: Captured::default(),
        }
    }
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// A program ended by itself with this exit code; 0 is success.
    Exited(i32),
    /// A program was ended by this signal, and not by us.
    Signalled(i32),
    /// A function returned this code; 0 is success.
    Returned(i64),
    /// It never began: no such program, no such module, no memory.
    NotStarted(String),
    /// A Python function raised; the message is the last line of its traceback.
    Exception(String),
    /// It ended without a result that could be read.
    NoResult(String),
    /// We ended it.
    Killed(KillCause),
    /// It vanished: nobody can tell whether it did its work.
    Lost(String),
}

/// What an attempt said, by the lines it printed or the value it returned.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Captured {
    /// `[OUTPUT]` lines, or the function's `output`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Value>,
    /// `[ERR_MSG]` lines, or the function's `err_msg`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub err_msg: Option<Value>,
    /// `[ERR_CODE]` lines, or the function's `err_code`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub err_code: Option<Value>,
    /// `[INFO]` lines, or the function's `info`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub info: Option<Value>,
    /// Bytes that were cut off a field because it was over its limit.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub truncated: BTreeMap<String, u64>,
}

/// Why a node is in the phase it is in, where the phase alone does not say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// One word, stable, for programs.
    pub word: ReasonWord,
    /// A sentence for people.
    pub message: String,
}

impl Reason {
    /// A reason.
    #[must_use]
    pub fn new(word: ReasonWord, message: impl Into<String>) -> Self {
        Self {
            word,
            message: message.into(),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.word, self.message)
    }
}

/// The words of [`Reason`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ReasonWord {
    /// The program ended with an exit code other than 0.
    ExitCode,
    /// The program was ended by a signal that was not ours.
    Signal,
    /// The function returned a code other than 0.
    ReturnCode,
    /// The action could not begin.
    NotStarted,
    /// A Python exception.
    Exception,
    /// The action ended without a readable result.
    NoResult,
    /// Over its own timeout.
    Timeout,
    /// Vanished before it ended by itself.
    Lost,
    /// The run was cancelled or over its timeout.
    Cancelled,
    /// The node's condition is false.
    ConditionFalse,
    /// The node's condition hangs on a node that never ran.
    ConditionUnknown,
}
