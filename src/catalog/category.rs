//! Category files: `{service: {version, workflow_template_path, desc, release,
//! default_version}}`, where `workflow_template_path` is a path or `{version: path}`, relative to
//! the category file. The same in a folder and in a `ConfigMap`.
//!
//! Must not look for files: it is given texts and the names to call them by.

use std::collections::BTreeMap;

use crate::value::json::Dialect;
use crate::value::{Budget, Format, Problem, Problems, Value, read_within};

/// The endings of category files.
pub(super) const ENDINGS: [&str; 3] = ["json", "yaml", "yml"];

/// Most values of a category file: those of 20,000 services and more. It is read for each run
/// that asks for one of its services.
const MAX_VALUES: usize = 200_000;

/// The entries of a category file in written order: services by name.
pub(super) type Entries = Vec<(String, Value)>;

/// A service as its category file has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its versions as they are written, each with the path of its template.
    pub(super) templates: BTreeMap<String, String>,
    /// The version that runs when none is asked for.
    pub(super) default_version: Option<String>,
    /// What it is for.
    pub(super) desc: Option<String>,
    /// When it was released.
    pub(super) release: Option<String>,
}

/// Reads a category file.
pub(super) fn parse(source: &str, text: &str) -> Result<Entries, Problems> {
    let mut values = Budget::of(MAX_VALUES);
    let tree = read_within(text, Format::of(source, text), Dialect::Strict, &mut values)
        .map_err(|list| Problems::new(source, list))?;
    match tree.into_value() {
        Value::Map(entries) => Ok(entries),
        other => {
            let message = format!("found {}; expected an object of services", other.kind());
            Err(problem(source, "", message))
        }
    }
}

fn problem(source: &str, path: &str, message: String) -> Problems {
    let problem = Problem {
        at: crate::value::Place::NONE,
        path: path.to_owned(),
        message,
        too_large: false,
    };
    Problems::new(source, vec![problem])
}

/// Reads one entry of a category file.
pub(super) fn entry(source: &str, name: &str, entry: &Value) -> Result<Entry, Problems> {
    let wrong = |field: &str, message: String| problem(source, &format!("{name}{field}"), message);
    if !matches!(entry, Value::Map(_)) {
        return Err(wrong(
            "",
            format!(
                "found {}; expected an object with workflow_template_path",
                entry.kind()
            ),
        ));
    }
    let text = |field: &str| match entry.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(value @ (Value::String(_) | Value::Number(_))) => Ok(Some(value.to_plain_text())),
        Some(other) => Err(wrong(
            &format!(".{field}"),
            format!("found {}; expected a text", other.kind()),
        )),
    };
    let version = text("version")?;
    let mut templates = BTreeMap::new();
    match entry.get("workflow_template_path") {
        Some(Value::String(path)) => {
            let version = version.clone().unwrap_or_else(|| "1.0".to_owned());
            templates.insert(version, path.clone());
        }
        Some(Value::Map(paths)) => {
            for (version, path) in paths {
                let Value::String(path) = path else {
                    let field = format!(".workflow_template_path.{version}");
                    return Err(wrong(
                        &field,
                        format!("found {}; expected a path", path.kind()),
                    ));
                };
                templates.insert(version.clone(), path.clone());
            }
        }
        _ => {
            let message = "missing; expected a path or an object of versions and paths".to_owned();
            return Err(wrong(".workflow_template_path", message));
        }
    }
    let only = || {
        if templates.len() == 1 {
            templates.keys().next().cloned()
        } else {
            None
        }
    };
    let default_version = text("default_version")?
        .or_else(|| version.filter(|version| templates.contains_key(version)))
        .or_else(only);
    Ok(Entry {
        default_version,
        desc: text("desc")?,
        release: text("release")?,
        templates,
    })
}

/// The version that is meant: the one asked for, else the default. In words where there is none.
pub(super) fn choose<'a, T>(
    versions: &'a BTreeMap<String, T>,
    default: Option<&str>,
    asked: Option<&str>,
) -> Result<(&'a str, &'a T), String> {
    let list = || {
        let versions: Vec<&str> = versions.keys().map(String::as_str).collect();
        format!("its versions are {}", versions.join(", "))
    };
    let Some(wanted) = asked.or(default) else {
        return Err(format!("it has no default version; {}", list()));
    };
    versions
        .get_key_value(wanted)
        .map(|(version, it)| (version.as_str(), it))
        .ok_or_else(|| format!("it has no version {wanted}; {}", list()))
}
