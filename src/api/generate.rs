//! The definitions of the custom resources, from their types to YAML.
//!
//! What the derive gives is tidied for the API server: no defaults (a field that is not given
//! stays so), no `nullable` (a null is a field that is not given), and only the formats that
//! Kubernetes knows.
//!
//! Must not write files.

use std::fmt::Write;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value as Json;

use super::page::WorkflowRunPage;
use super::service::Service;
use super::workflow_run::WorkflowRun;

/// Formats that the API server knows and this crate uses.
const FORMATS: [&str; 3] = ["int32", "int64", "date-time"];

/// A definition as a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    /// The name of the resource, such as `workflowruns.apscli.dev`.
    pub name: &'static str,
    /// The definition in YAML.
    pub yaml: String,
}

impl Definition {
    /// The name of its file in `crds/`.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("{}.yaml", self.name)
    }
}

/// All definitions, in the order of their names.
#[must_use]
pub fn definitions() -> Vec<Definition> {
    let head = "# Written by `apscli crd --write crds` from the types in src/api.\n";
    let definition = |name, crd| Definition {
        name,
        yaml: format!("{head}{}", yaml(&tidied(&crd))),
    };
    vec![
        definition(Service::crd_name(), Service::crd()),
        definition(WorkflowRunPage::crd_name(), WorkflowRunPage::crd()),
        definition(WorkflowRun::crd_name(), WorkflowRun::crd()),
    ]
}

fn tidied(crd: &CustomResourceDefinition) -> Json {
    // A definition is a plain tree of texts and numbers: nothing in it can refuse to be JSON.
    let mut crd = serde_json::to_value(crd).unwrap_or_default();
    let versions = crd
        .pointer_mut("/spec/versions")
        .and_then(Json::as_array_mut);
    for version in versions.into_iter().flatten() {
        if let Some(schema) = version.pointer_mut("/schema/openAPIV3Schema") {
            tidy(schema);
        }
    }
    crd
}

/// Tidies a schema and all in it.
fn tidy(schema: &mut Json) {
    let Json::Object(schema) = schema else {
        return;
    };
    for keyword in ["default", "nullable", "title"] {
        schema.remove(keyword);
    }
    let known = |format: &Json| format.as_str().is_some_and(|it| FORMATS.contains(&it));
    if schema.get("format").is_some_and(|format| !known(format)) {
        schema.remove("format");
    }
    if let Some(Json::String(description)) = schema.get_mut("description") {
        *description = unwrapped(description);
    }
    if let Some(Json::Object(properties)) = schema.get_mut("properties") {
        properties.values_mut().for_each(tidy);
    }
    for keyword in ["items", "additionalProperties", "not"] {
        if let Some(inner) = schema.get_mut(keyword) {
            tidy(inner);
        }
    }
    for keyword in ["allOf", "anyOf", "oneOf"] {
        if let Some(Json::Array(inner)) = schema.get_mut(keyword) {
            inner.iter_mut().for_each(tidy);
        }
    }
}

/// A comment without the line breaks of its source; an empty line stays between paragraphs.
fn unwrapped(comment: &str) -> String {
    let paragraphs = comment
        .split("\n\n")
        .map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "));
    paragraphs.collect::<Vec<_>>().join("\n\n")
}

/// JSON as YAML in block style, keys sorted.
fn yaml(json: &Json) -> String {
    let mut text = String::new();
    write_block(&mut text, json, 0);
    text
}

/// Writes lists and objects in lines of their own, everything else into the line that stands.
fn write_block(text: &mut String, json: &Json, indent: usize) {
    match json {
        Json::Object(members) if !members.is_empty() => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by_key(|(name, _)| *name);
            for (index, (name, value)) in members.into_iter().enumerate() {
                if index > 0 || !at_item(text) {
                    new_line(text, indent);
                }
                text.push_str(&scalar_text(name));
                text.push(':');
                match value {
                    Json::Object(inner) if !inner.is_empty() => {
                        write_block(text, value, indent + 2);
                    }
                    // A list stands under its key at the same depth, as kubectl writes it.
                    Json::Array(items) if !items.is_empty() => write_block(text, value, indent),
                    _ => {
                        text.push(' ');
                        write_scalar(text, value);
                        text.push('\n');
                    }
                }
            }
        }
        Json::Array(items) if !items.is_empty() => {
            for item in items {
                new_line(text, indent);
                text.push_str("- ");
                write_block(text, item, indent + 2);
            }
        }
        scalar => {
            write_scalar(text, scalar);
            text.push('\n');
        }
    }
}

/// Whether `- ` was just written, so that the first key stands beside it.
fn at_item(text: &str) -> bool {
    text.ends_with("- ")
}

fn new_line(text: &mut String, indent: usize) {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    let _ = write!(text, "{:indent$}", "");
}

fn write_scalar(text: &mut String, json: &Json) {
    match json {
        Json::String(it) => text.push_str(&scalar_text(it)),
        // A bound of a schema is a float in the derive's types, and mostly whole.
        Json::Number(it) => match it.as_f64() {
            Some(number) if number.fract() == 0.0 => {
                let _ = write!(text, "{number:.0}");
            }
            _ => text.push_str(&it.to_string()),
        },
        // True, false, null and what is empty look the same in both.
        other => text.push_str(&other.to_string()),
    }
}

/// A text, bare where YAML 1.1 and 1.2 both read it as a text, else quoted as in JSON.
fn scalar_text(text: &str) -> String {
    let words = ["null", "true", "false", "yes", "no", "on", "off", "y", "n"];
    let bare = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric() || ".)".contains(c))
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || " _-./,;()".contains(c))
        && !words.contains(&text.to_ascii_lowercase().as_str());
    if bare {
        text.to_owned()
    } else {
        Json::from(text).to_string()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::to_value;
    use crate::value::json::Dialect;
    use crate::value::{Format, read};

    #[test]
    fn what_is_written_is_read_again() {
        let whole = json!({
            "empty": {}, "none": [], "null": null, "yes": true, "on": "on", "word": "two words",
            "texts": [
                "", " ", "a ", " a", "a: b", "a #b", "- a", "- ", "null", "True", "1.10", "0x1", "~",
                "'", "\"", "\\", "a\nb", "é", "{a}", "[a]", "&a", "*a", "!a", "%a", "@a", "`a`", "a:",
                "x,", "?", "|", ">", "=", "2026-01-01", "a, b; (c).",
            ],
            "lists": [[1, [2, []]], [{"a": [{"b": 1, "c": {"d": "e"}}]}, {}]],
            "numbers": [0, -1, 0.5, 100_000],
            "a: key": {"": 1, "- ": {"y": "n"}},
        });
        let text = yaml(&whole);
        let tree = read(&text, Format::Yaml, Dialect::Strict);
        let tree = tree.map(crate::value::Tree::into_value);
        assert_eq!(tree.as_ref(), Ok(&to_value(&whole)), "{text}");
    }

    #[test]
    fn it_looks_as_people_write_it() {
        let list = json!([{"name": "a", "of": ["b", {"c": 1.0}]}]);
        assert_eq!(
            yaml(&json!({"spec": {"list": list, "text": "words: too"}})),
            "spec:\n  list:\n  - name: a\n    of:\n    - b\n    - c: 1\n  text: \"words: too\"\n"
        );
    }

    #[test]
    fn a_schema_is_tidied_but_its_fields_stay() {
        let mut schema = json!({
            "description": "One\n line.\n\nTwo.", "title": "T", "default": {},
            "properties": {
                "default": {"type": "integer", "format": "uint64", "default": 1, "nullable": true},
                "title": {"type": "array", "items": {"format": "int32", "title": "x"}},
            },
            "additionalProperties": {"format": "double"},
        });
        tidy(&mut schema);
        let expected = json!({
            "description": "One line.\n\nTwo.",
            "properties": {
                "default": {"type": "integer"},
                "title": {"type": "array", "items": {"format": "int32"}},
            },
            "additionalProperties": {},
        });
        assert_eq!(schema, expected);
    }
}
