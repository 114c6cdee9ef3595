//! `Service`: a named workflow in several versions, and the check of it: every version is read,
//! filled, parsed and graphed before anybody runs it.
//!
//! Must not look anything up: which service a name means is the catalogue's part.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::engine::name::Fqsn;
use crate::template::{Filling, Limits, Params, Template};
use crate::value::{Budget, Place, Problem, Problems, Value};

use super::condition::{News, READY, cut};
use super::workflow_run::{ExecutorKind, PodOverrides};
use super::{Any, List, Object, any_object, any_value, any_values, name};

/// Longest message on a version in the status, in bytes. With the most versions that there may
/// be, a status stays far below what an object may hold.
const MAX_MESSAGE: usize = 2048;

/// A workflow under a name, in one or more versions.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "apscli.dev",
    version = "v1alpha1",
    kind = "Service",
    plural = "services",
    shortname = "apsvc",
    category = "apscli",
    namespaced,
    status = "ServiceStatus",
    derive = "PartialEq",
    doc = "A workflow under a name, in one or more versions, that WorkflowRuns can run. The operator checks every version and says in the status what is wrong with it.",
    printcolumn(
        name = "FQSN",
        type_ = "string",
        json_path = ".spec.fqsn",
        description = "The name that a WorkflowRun asks for."
    ),
    printcolumn(
        name = "Default Version",
        type_ = "string",
        json_path = ".spec.defaultVersion",
        description = "The version that runs when none is asked for."
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#,
        description = "Whether all versions can be run."
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Since when the service exists."
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.defaultVersion) || self.versions.exists(v, v.version == self.defaultVersion)").message("defaultVersion is none of the versions").field_path(".defaultVersion"),
    validation = Rule::new("self.fqsn == oldSelf.fqsn").message("fqsn is fixed when the Service is made, as the oldest object of a name counts; make another Service").field_path(".fqsn"),
)]
pub struct ServiceSpec {
    /// The fully qualified name of the service, such as oracle.peo.cloud.vm_allocation: two or
    /// more segments of letters, digits, _ and -. The object's own name may be any other. It cannot
    /// be changed: of several Services of a namespace with one fqsn the oldest counts.
    #[schemars(
        length(max = 253),
        regex(pattern = r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+$")
    )]
    pub fqsn: String,

    /// What the service is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub description: Option<String>,

    /// The version that runs when none is asked for. It may be left out where there is only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub default_version: Option<String>,

    /// The versions, each with its template.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["version".into()]))]
    pub versions: Vec<ServiceVersion>,

    /// Files for the nodes: the keys of these ConfigMaps, mounted read-only beside the template.
    /// Relative programs and Python paths of the template are looked for there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub scripts: Vec<ScriptSource>,

    /// The container image that the nodes run in. Without it: the operator's default image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,

    /// What carries out the nodes: pod (a pod for each attempt of a node) or process (a process
    /// beside the operator, where the operator allows it). Without it: pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "ExecutorKind")]
    pub executor: Option<ExecutorKind>,

    /// Whether nodes that are processes may use the network, TCP and UDP. Without it: false. Pods
    /// have the network that their cluster gives them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<bool>,

    /// Further properties of the pods. A run may set its own over them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodOverrides>,
}

/// A version of a service: exactly one of template and templateText, and its parameters.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.template) != has(self.templateText)").message("expected exactly one of template and templateText"),
)]
pub struct ServiceVersion {
    /// The version, as it is to be asked for: 1.10 is not 1.1. Put it in quotes in YAML.
    #[schemars(length(min = 1, max = 63))]
    pub version: String,
    /// What is new in this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub description: Option<String>,
    /// When the version was released, in any form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub release: Option<String>,
    /// The template as an object of nodes, or {"param": {nodes}, "decision_expr": "…"}. The API
    /// server sorts the keys of an object; where the order of a command's options matters, use
    /// templateText.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_object")]
    pub template: Option<Object>,
    /// The template as its author wrote it, JSON or YAML.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1_048_576))]
    pub template_text: Option<String>,
    /// The parameters that a run may give. Where some are declared, no others may be given;
    /// where none are, any may.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub params: Vec<ParamDecl>,
}

/// The declaration of a parameter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ParamDecl {
    /// The name of the parameter; the template names it as $name.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[A-Za-z_][A-Za-z0-9_]*$")
    )]
    pub name: String,
    /// The kind of its value: string, integer, number, boolean, list or object. Without it: any.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "ParamType")]
    pub kind: Option<ParamType>,
    /// Whether a run must give it. It follows from default, and may be left out: a parameter
    /// without a default is required, one with a default is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required: Option<bool>,
    /// Its value where a run does not give it, of the declared type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_value")]
    pub default: Option<Any>,
    /// What it means, with its unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub description: Option<String>,
    /// The values that it may have. Without it: all of its type.
    #[serde(default, rename = "enum", skip_serializing_if = "List::is_empty")]
    #[schemars(schema_with = "any_values")]
    pub allowed: List,
}

impl ParamDecl {
    /// What is wrong with the declaration itself, a sentence each.
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut wrong = |what: String| problems.push(format!("parameter `{}` {what}", self.name));
        match (self.required, &self.default) {
            (Some(true), Some(_)) => {
                wrong("is required and has a default; expected one of the two".to_owned());
            }
            (Some(false), None) => {
                wrong("is not required and has no default; expected a default".to_owned());
            }
            _ => {}
        }
        if let Some(kind) = self.kind {
            match self.allowed() {
                Ok(values) => {
                    if let Some(value) = values.iter().find(|value| !kind.takes(value)) {
                        let (found, expected) = (value.kind(), kind.words());
                        wrong(format!("has {found} in its enum; expected {expected} only"));
                    }
                }
                Err(why) => wrong(format!("has an enum that cannot be read: {why}")),
            }
        }
        let default = self.default.as_ref().map(read_any);
        if let Some(Err(why)) = default.map(|it| it.and_then(|it| self.takes(&it))) {
            wrong(format!("has a wrong default: {why}"));
        }
        problems
    }

    fn allowed(&self) -> Result<Vec<Value>, String> {
        let values = self.allowed.read(&mut Budget::of(Limits::CLUSTER.values));
        values.map_err(|problem| problem.message)
    }

    /// Memory that it takes, in bytes; approximate.
    #[must_use]
    pub fn memory(&self) -> usize {
        let default = self.default.as_ref().map_or(0, Any::bytes);
        let description = self.description.as_ref().map_or(0, String::len);
        256 + self.name.len() + default + description + self.allowed.bytes()
    }

    /// Whether it may have this value, or in words why not. The value itself is not in the words:
    /// it may be secret.
    fn takes(&self, value: &Value) -> Result<(), String> {
        if let Some(kind) = self.kind
            && !kind.takes(value)
        {
            return Err(format!("found {}; expected {}", value.kind(), kind.words()));
        }
        if self.allowed.is_empty() {
            return Ok(());
        }
        let allowed = self.allowed()?;
        if allowed.iter().any(|it| same(it, value)) {
            return Ok(());
        }
        let shown: Vec<String> = allowed.iter().map(ToString::to_string).collect();
        Err(format!(
            "found {} that is none of its enum; expected one of {}",
            value.kind(),
            shown.join(", ")
        ))
    }
}

/// A value of a declaration. It is a part of one object, so it has a bound already.
fn read_any(value: &Any) -> Result<Value, String> {
    value
        .read(&mut Budget::of(Limits::CLUSTER.values))
        .map_err(|problem| problem.message)
}

/// Whether two values mean the same: 1 and 1.0 do.
fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) if left != right => {
            let number = |text: &str| text.parse::<f64>().ok();
            // Long integers are told apart by their digits, which a float does not have.
            let is_integer = |text: &str| !text.contains(['.', 'e', 'E']);
            !(is_integer(left) && is_integer(right)) && number(left) == number(right)
        }
        (left, right) => left == right,
    }
}

/// The kind of a parameter's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ParamType {
    /// A text.
    String,
    /// A number without a fraction.
    Integer,
    /// A number.
    Number,
    /// true or false.
    Boolean,
    /// A list.
    List,
    /// An object.
    Object,
}

impl ParamType {
    /// Whether a value is of this kind.
    #[must_use]
    pub fn takes(self, value: &Value) -> bool {
        match (self, value) {
            (Self::Integer, Value::Number(text)) => !text.contains(['.', 'e', 'E']),
            (Self::String, Value::String(_))
            | (Self::Number, Value::Number(_))
            | (Self::Boolean, Value::Bool(_))
            | (Self::List, Value::List(_))
            | (Self::Object, Value::Map(_)) => true,
            _ => false,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::String => "a text",
            Self::Integer => "a number without a fraction",
            Self::Number => "a number",
            Self::Boolean => "true or false",
            Self::List => "a list",
            Self::Object => "an object",
        }
    }
}

/// Files from a ConfigMap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.path) || !self.path.split('/').exists(s, s == '..' || s == '.')").message("path may not leave the folder of the template").field_path(".path"),
)]
pub struct ScriptSource {
    /// The name of the ConfigMap, in the namespace of the service. Each key of its data and
    /// binaryData is a file.
    #[schemars(length(min = 1, max = 253), regex(pattern = name::PATTERN))]
    pub config_map: String,
    /// The folder for the files, relative to that of the template, such as lib/tools. Without it:
    /// the folder of the template itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 253),
        regex(pattern = r"^([A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*)?$")
    )]
    pub path: Option<String>,
    /// The permission bits of the files, as a number: 365 is octal 0555 (read and execute) and
    /// the default, 292 is octal 0444. YAML also takes the octal form 0o555.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 511))]
    pub mode: Option<i32>,
}

impl ScriptSource {
    /// The permission bits of files for which nothing is said: all may read and execute them.
    pub const DEFAULT_MODE: i32 = 0o555;
}

/// What the operator says of the service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// The metadata.generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready is True when all versions can be run. Else it is False with the reason Invalid, or
    /// Conflict where an older Service of the namespace has the same fqsn and counts in its place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Each version, in the order of the spec.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub versions: Vec<VersionStatus>,
}

/// What the operator says of a version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VersionStatus {
    /// The version.
    pub version: String,
    /// The SHA-256 of the template, in hexadecimal. Absent where it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<String>,
    /// How many nodes it has. Absent where it cannot be run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<u32>,
    /// Whether it can be run.
    #[serde(default)]
    pub ready: bool,
    /// What is wrong with it, a line a problem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl ServiceSpec {
    /// The version that is asked for, or else the default, or else the only one; or in words
    /// why there is none.
    pub fn version(&self, asked: Option<&str>) -> Result<&ServiceVersion, String> {
        let versions = || {
            let versions: Vec<&str> = self.versions.iter().map(|it| it.version.as_str()).collect();
            format!("its versions are {}", versions.join(", "))
        };
        let wanted = match (
            asked.or(self.default_version.as_deref()),
            self.versions.as_slice(),
        ) {
            (Some(wanted), _) => wanted,
            (None, [only]) => return Ok(only),
            (None, _) => return Err(format!("it has no defaultVersion; {}", versions())),
        };
        self.versions
            .iter()
            .find(|it| it.version == wanted)
            .ok_or_else(|| format!("it has no version {wanted}; {}", versions()))
    }
}

impl ServiceVersion {
    /// Memory that it takes, in bytes; approximate.
    #[must_use]
    pub fn memory(&self) -> usize {
        let template = self.template.as_ref().map_or(0, Object::bytes);
        let text = self.template_text.as_ref().map_or(0, String::len);
        let params: usize = self.params.iter().map(ParamDecl::memory).sum();
        256 + self.version.len() + template + text + params
    }

    /// Reads the template; `source` names it in errors.
    pub fn read(&self, source: &str) -> Result<Template, Problems> {
        match (&self.template, &self.template_text) {
            (Some(object), None) => {
                let mut values = Budget::of(Limits::CLUSTER.values);
                let value = object.read(&mut values);
                let value = value.map_err(|problem| Problems::new(source, vec![problem]))?;
                Ok(Template::from_value(source, &value).within(Limits::CLUSTER))
            }
            (None, Some(text)) => Template::read_within(source, text, Limits::CLUSTER),
            (None, None) | (Some(_), Some(_)) => {
                let message = "expected exactly one of template and templateText";
                let problem = Problem::in_text(Place::NONE, message);
                Err(Problems::new(source, vec![problem]))
            }
        }
    }
}

/// The parameters of a run: what is given, checked against what is declared, and the defaults
/// for the rest. Where nothing is declared, anything may be given. The error names every problem.
///
/// A value that came from a Secret is a text here, whatever it holds.
pub fn declared(decls: &[ParamDecl], given: &Params) -> Result<Params, Vec<String>> {
    if decls.is_empty() {
        return Ok(given.clone());
    }
    let mut params = Params::new();
    let mut problems = Vec::new();
    for decl in decls {
        let name = &decl.name;
        let value = match (given.get(name), &decl.default) {
            (Some(value), _) => value.clone(),
            (None, Some(default)) => match read_any(default) {
                Ok(value) => value,
                Err(why) => {
                    problems.push(format!("parameter `{name}` has a wrong default: {why}"));
                    continue;
                }
            },
            (None, None) => {
                let expected = decl.kind.map_or("a value", ParamType::words);
                problems.push(format!(
                    "parameter `{name}` is not given and has no default; expected {expected}"
                ));
                continue;
            }
        };
        match decl.takes(&value) {
            Ok(()) => {
                params.insert(name.clone(), value);
            }
            Err(why) => problems.push(format!("parameter `{name}`: {why}")),
        }
    }
    let names: BTreeSet<&str> = decls.iter().map(|decl| decl.name.as_str()).collect();
    for name in given.keys().filter(|name| !names.contains(name.as_str())) {
        let names: Vec<&str> = names.iter().copied().collect();
        problems.push(format!(
            "there is no parameter `{name}`; the parameters are {}",
            names.join(", ")
        ));
    }
    if problems.is_empty() {
        Ok(params)
    } else {
        Err(problems)
    }
}

/// What a check of a service found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// What is wrong with the service itself, a sentence each.
    pub problems: Vec<String>,
    /// Each version, in the order of the spec.
    pub versions: Vec<VersionStatus>,
}

impl Checked {
    /// Whether all of it can be run.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.problems.is_empty() && self.versions.iter().all(|version| version.ready)
    }

    /// The condition `Ready`: True with the reason `Valid`, or False with the reason `Invalid`
    /// and what is wrong first.
    #[must_use]
    pub fn ready(&self) -> News {
        let of_versions = self.versions.iter().filter_map(|it| it.message.as_deref());
        let mut lines = self
            .problems
            .iter()
            .map(String::as_str)
            .chain(of_versions.flat_map(str::lines));
        let Some(first) = lines.next() else {
            let message = match self.versions.as_slice() {
                [only] => format!("version {} can be run", only.version),
                versions => format!("all {} versions can be run", versions.len()),
            };
            return News::new(READY, true, "Valid", message);
        };
        let message = match lines.count() {
            0 => first.to_owned(),
            1 => format!("{first} (and 1 more problem)"),
            more => format!("{first} (and {more} more problems)"),
        };
        News::new(READY, false, "Invalid", cut(message, MAX_MESSAGE))
    }
}

/// Checks a service: its name, its default version, and every version, whose template is read,
/// filled with the defaults of its parameters, parsed and graphed. What hangs on a parameter
/// without a default is checked when a run gives it.
#[must_use]
pub fn check(spec: &ServiceSpec) -> Checked {
    let mut problems = Vec::new();
    if let Err(error) = spec.fqsn.parse::<Fqsn>() {
        problems.push(error.to_string());
    }
    if spec.versions.is_empty() {
        problems.push("there are no versions; expected at least one".to_owned());
    } else if let (Some(_), Err(why)) = (&spec.default_version, spec.version(None)) {
        problems.push(format!("defaultVersion is none of the versions: {why}"));
    }
    let mut seen = BTreeSet::new();
    for version in &spec.versions {
        if !seen.insert(version.version.as_str()) {
            problems.push(format!("version {} stands twice", version.version));
        }
    }
    let versions = spec
        .versions
        .iter()
        .map(|version| check_version(&spec.fqsn, version));
    Checked {
        problems,
        versions: versions.collect(),
    }
}

fn check_version(fqsn: &str, version: &ServiceVersion) -> VersionStatus {
    let source = format!("{fqsn} version {}", version.version);
    let mut problems = Vec::new();
    let mut known = Params::new();
    let mut later = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for decl in &version.params {
        if !seen.insert(decl.name.as_str()) {
            problems.push(format!("parameter `{}` is declared twice", decl.name));
        }
        problems.extend(decl.problems());
        match &decl.default {
            Some(default) => {
                // What is wrong with it was said.
                let value = read_any(default).unwrap_or(Value::Null);
                known.insert(decl.name.clone(), value);
            }
            None => {
                later.insert(decl.name.clone());
            }
        }
    }
    let mut lines: Vec<String> = problems
        .into_iter()
        .map(|problem| format!("{source}: {problem}"))
        .collect();
    let mut status = VersionStatus {
        version: version.version.clone(),
        ..VersionStatus::default()
    };
    let filling = if version.params.is_empty() {
        Filling::Later
    } else {
        Filling::Partly {
            known: &known,
            later: &later,
        }
    };
    let graph = version.read(&source).and_then(|template| {
        status.hash = Some(template.hash());
        template.graph(filling)
    });
    match graph {
        Ok(graph) => status.nodes = Some(u32::try_from(graph.len()).unwrap_or(u32::MAX)),
        Err(problems) => lines.push(problems.to_string()),
    }
    if lines.is_empty() {
        status.ready = true;
    } else {
        status.nodes = None;
        status.message = Some(cut(lines.join("\n"), MAX_MESSAGE));
    }
    status
}
