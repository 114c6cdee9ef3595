//! The custom resources of the operator, as types: `Service`, `WorkflowRun`, `WorkflowRunPage`.
//!
//! The definitions in `crds/` are generated from these types, so a comment on a field is what
//! `kubectl explain` says of it. Fields hold what is on the wire: texts stay texts until somebody
//! uses them, because an object that is stored must also be readable when its content is wrong.
//!
//! Must not hold a client, read a clock, or decide what the engine decides.

#![allow(
    clippy::doc_markdown,
    reason = "`kubectl explain` prints the comments on fields as they are"
)]
#![allow(
    clippy::duplicated_attributes,
    reason = "columns of one type are no mistake"
)]

pub mod any;
pub mod condition;
pub mod generate;
pub mod name;
pub mod outside;
pub mod page;
pub mod service;
pub mod workflow_run;

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::template;
use crate::value::Value;

/// The API group of all kinds.
pub const GROUP: &str = "apscli.dev";
/// The version of the API group.
pub const VERSION: &str = "v1alpha1";

/// Most entries that stand in `status.nodes`, or in one page.
pub const MAX_NODES: u32 = 100;

/// Label of everything that belongs to a run: the run's UID.
pub const LABEL_RUN_UID: &str = "apscli.dev/run-uid";
/// Label of everything that belongs to a run: the run's name, cut to what a label can hold.
pub const LABEL_RUN: &str = "apscli.dev/run";
/// Label of a pod: the name of its node, where that is a valid value of a label.
pub const LABEL_NODE: &str = "apscli.dev/node";
/// Label of all that the operator makes, with [`MANAGED_BY`] as its value.
pub const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The value of [`LABEL_MANAGED_BY`].
pub const MANAGED_BY: &str = "apscli";
/// Annotation of a pod: the whole name of its node.
pub const ANNOTATION_NODE: &str = "apscli.dev/node";
/// Annotation of a pod: which try of its node it is, from 1.
pub const ANNOTATION_ATTEMPT: &str = "apscli.dev/attempt";
/// Annotation of a pod: the SHA-256 of the decision that it carries out, in hexadecimal.
pub const ANNOTATION_DECISION: &str = "apscli.dev/decision";
/// Finalizer of a pod whose result is not yet recorded.
pub const FINALIZER_RESULT: &str = "apscli.dev/result";

pub use any::{Any, List, Object};

/// A length of time as a text: `90s`, `5m`, `1h30m`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Duration(pub String);

impl Duration {
    /// What the API server takes. All of it is read by [`Duration::length`], zero excepted.
    pub const PATTERN: &str = r"^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}(\.[0-9]{1,3})?s)?$";

    /// The length, or in words why the text is none. Zero is none.
    pub fn length(&self) -> Result<std::time::Duration, String> {
        template::duration(&self.0)
    }
}

impl JsonSchema for Duration {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": Self::PATTERN, "minLength": 1, "maxLength": 32})
    }
}

/// A length of time for people, in whole seconds: `0s`, `12s`, `3m5s`, `1h0m2s`.
#[must_use]
pub fn elapsed(length: std::time::Duration) -> String {
    let seconds = length.as_secs();
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}

/// A value of the wire as a value of the house.
#[must_use]
pub fn to_value(wire: &serde_json::Value) -> Value {
    match wire {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(it) => Value::Bool(*it),
        serde_json::Value::Number(number) => Value::Number(number.to_string()),
        serde_json::Value::String(text) => Value::String(text.clone()),
        serde_json::Value::Array(items) => Value::List(items.iter().map(to_value).collect()),
        serde_json::Value::Object(members) => Value::Map(
            members
                .iter()
                .map(|(name, value)| (name.clone(), to_value(value)))
                .collect(),
        ),
    }
}

/// A value of the house for the wire. A number that the API server would round stands there as
/// a text, with all its digits.
#[must_use]
pub fn from_value(value: &Value) -> serde_json::Value {
    match value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(it) => serde_json::Value::Bool(*it),
        Value::Number(text) => match serde_json::from_str::<serde_json::Number>(text) {
            Ok(number) if number.to_string() == *text => serde_json::Value::Number(number),
            _ => serde_json::Value::String(text.clone()),
        },
        Value::String(text) => serde_json::Value::String(text.clone()),
        Value::List(items) => serde_json::Value::Array(items.iter().map(from_value).collect()),
        Value::Map(members) => {
            let members = members
                .iter()
                .map(|(name, value)| (name.clone(), from_value(value)));
            serde_json::Value::Object(members.collect())
        }
    }
}

/// An object of any content that is replaced whole.
fn any_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": true,
        "x-kubernetes-map-type": "atomic",
    })
}

/// A value of any kind.
fn any_value(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"x-kubernetes-preserve-unknown-fields": true})
}

/// A list of values of any kind.
fn any_values(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": {
            "description": "A value of any kind.",
            "x-kubernetes-preserve-unknown-fields": true,
        },
        "maxItems": 256,
        "x-kubernetes-list-type": "atomic",
    })
}
