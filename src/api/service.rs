//! `Service`: a named workflow in several versions, and the check of it: every version is read,
//! filled, parsed and graphed before anybody runs it.
//!
//! Must not look anything up: which service a name means is the catalogue's part.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::workflow_run::{ExecutorKind, PodOverrides};
use super::{Object, any_object, any_value, any_values};

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
)]
pub struct ServiceSpec {
    /// The fully qualified name of the service, such as oracle.peo.cloud.vm_allocation: two or
    /// more segments of letters, digits, _ and -. The object's own name may be any other.
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
    /// Whether a run must give it. Without it: true where there is no default, else false. One
    /// that is not required and has no default may be left out; then the template may name it
    /// only where the environment may answer (cmd, path, env).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required: Option<bool>,
    /// Its value where a run does not give it, of the declared type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_value")]
    pub default: Option<serde_json::Value>,
    /// What it means, with its unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub description: Option<String>,
    /// The values that it may have. Without it: all of its type.
    #[serde(default, rename = "enum", skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "any_values")]
    pub allowed: Vec<serde_json::Value>,
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

/// Files from a ConfigMap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.path) || !self.path.split('/').exists(s, s == '..' || s == '.')").message("path may not leave the folder of the template").field_path(".path"),
)]
pub struct ScriptSource {
    /// The name of the ConfigMap, in the namespace of the service. Each key of its data and
    /// binaryData is a file.
    #[schemars(length(min = 1, max = 253))]
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
    /// Ready is True when all versions can be run, else False with the reason Invalid.
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
