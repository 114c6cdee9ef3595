//! Conditions: the part of a status that `kubectl wait` and other programs read.
//!
//! `Complete` and `Failed` mean what they mean for a Job. `Reconciling` and `Stalled` follow
//! kstatus: each is there only while it is True, and with neither an object is settled.
//! <https://github.com/kubernetes-sigs/cli-utils/blob/master/pkg/kstatus/README.md>
//!
//! Must not read a clock: the time of a change is given.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The run ended well.
pub const COMPLETE: &str = "Complete";
/// The run ended, and not well; or it was cancelled, or could not be run.
pub const FAILED: &str = "Failed";
/// The operator is at work on the object as it stands now.
pub const RECONCILING: &str = "Reconciling";
/// The operator cannot go on without somebody's help.
pub const STALLED: &str = "Stalled";
/// All versions of the service can be run.
pub const READY: &str = "Ready";

/// Longest reason, in characters, as the API has it.
const MAX_REASON: usize = 1024;
/// Longest message, in bytes, as the API has it.
const MAX_MESSAGE: usize = 32_768;

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// It does.
    Yes,
    /// It does not.
    No,
    /// Nobody can tell.
    Unknown,
}

impl Holds {
    /// The word of the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Yes => "True",
            Self::No => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Holds {
    fn from(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }
}

/// What is to be said by a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// Its type, such as [`COMPLETE`].
    pub kind: &'static str,
    /// Whether it holds.
    pub holds: Holds,
    /// Why, in one `CamelCase` word for programs.
    pub reason: String,
    /// Why, in words.
    pub message: String,
}

impl News {
    /// Any condition.
    #[must_use]
    pub fn new(
        kind: &'static str,
        holds: impl Into<Holds>,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            holds: holds.into(),
            reason: reason.into(),
            message: message.into(),
        }
    }
}

/// Puts a condition among the others, in place of the one of its type. The time of its last
/// change stays where its status does; where nothing changed at all, nothing is touched.
/// Returns whether anything did.
pub fn set(
    conditions: &mut Vec<Condition>,
    news: News,
    generation: Option<i64>,
    now: Timestamp,
) -> bool {
    let new = Condition {
        type_: news.kind.to_owned(),
        status: news.holds.as_str().to_owned(),
        reason: reason(&news.reason),
        message: cut(news.message, MAX_MESSAGE),
        observed_generation: generation,
        last_transition_time: Time(now),
    };
    let Some(old) = conditions.iter_mut().find(|old| old.type_ == new.type_) else {
        conditions.push(new);
        return true;
    };
    let last_transition_time = if old.status == new.status {
        old.last_transition_time.clone()
    } else {
        new.last_transition_time
    };
    let new = Condition {
        last_transition_time,
        ..new
    };
    let changed = *old != new;
    *old = new;
    changed
}

/// Takes a condition away. Returns whether it was there.
pub fn clear(conditions: &mut Vec<Condition>, kind: &str) -> bool {
    let before = conditions.len();
    conditions.retain(|condition| condition.type_ != kind);
    conditions.len() < before
}

/// Whether a condition is there and True.
#[must_use]
pub fn is_true(conditions: &[Condition], kind: &str) -> bool {
    conditions
        .iter()
        .any(|condition| condition.type_ == kind && condition.status == Holds::Yes.as_str())
}

/// A reason that the API takes: a letter, then letters, digits, `_`, `,` and `:`, ending in a
/// letter, digit or `_`. What it does not take is left out.
fn reason(word: &str) -> String {
    let kept: String = word
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ',' | ':'))
        .skip_while(|c| !c.is_ascii_alphabetic())
        .take(MAX_REASON)
        .collect();
    match kept.trim_end_matches([',', ':']) {
        "" => "Unknown".to_owned(),
        kept => kept.to_owned(),
    }
}

/// Cuts a text to so many bytes, at a character.
pub(super) fn cut(mut text: String, most: usize) -> String {
    if text.len() > most {
        let end = text.floor_char_boundary(most.saturating_sub('…'.len_utf8()));
        text.truncate(end);
        text.push('…');
    }
    text
}
