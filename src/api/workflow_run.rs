//! `WorkflowRun`: one execution of a workflow in the cluster, what is asked for and what became
//! of it.
//!
//! Must not hold what the engine knows better: phases and reasons are copies of the engine's.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{LocalObjectReference, Toleration};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::IntoDeserializer;
use serde::de::value::{Error as NotRead, StrDeserializer};
use serde::{Deserialize, Serialize};

use crate::engine::event::{self, ReasonWord};
use crate::engine::state::Phase;

use super::{Duration, Object, any_object, any_value, name};

/// What is to be run, with which parameters, and how. All of it is fixed when the run is made,
/// except suspend, cancel, parallelism and ttlSecondsAfterFinished.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "apscli.dev",
    version = "v1alpha1",
    kind = "WorkflowRun",
    plural = "workflowruns",
    shortname = "wfr",
    category = "apscli",
    namespaced,
    status = "WorkflowRunStatus",
    selectable = ".status.phase",
    derive = "PartialEq",
    doc = "One execution of a workflow: a graph of small jobs, its nodes. The operator starts a pod for each node when the nodes before it allow that, and records in the status what became of each.",
    printcolumn(
        name = "Service",
        type_ = "string",
        json_path = ".spec.fqsn",
        description = "The service that runs; empty where the run brings its own template."
    ),
    printcolumn(
        name = "Version",
        type_ = "string",
        json_path = ".status.resolved.version",
        description = "The version of the service that runs."
    ),
    printcolumn(
        name = "Phase",
        type_ = "string",
        json_path = ".status.phase",
        description = "Pending, Running, Suspended, Succeeded, Failed, Cancelled or Error."
    ),
    printcolumn(
        name = "Progress",
        type_ = "string",
        json_path = ".status.progress",
        description = "Finished nodes and all nodes."
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Since when the run exists."
    ),
    printcolumn(
        name = "Duration",
        type_ = "string",
        json_path = ".status.duration",
        description = "How long a finished run took."
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.message",
        description = "What the run waits for, or how it ended."
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.fqsn) ? 1 : 0) + (has(self.template) ? 1 : 0) + (has(self.templateFrom) ? 1 : 0) == 1").message("expected exactly one of fqsn, template and templateFrom"),
    validation = Rule::new("!has(self.version) || has(self.fqsn)").message("version belongs to fqsn: a template has no versions").field_path(".version"),
    validation = Rule::new("!(has(oldSelf.cancel) && oldSelf.cancel) || (has(self.cancel) && self.cancel)").message("a cancelled run stays cancelled").field_path(".cancel"),
    validation = immutable("fqsn"),
    validation = immutable("version"),
    validation = immutable("template"),
    validation = immutable("templateFrom"),
    validation = immutable("params"),
    validation = immutable("paramsFrom"),
    validation = immutable("executor"),
    validation = immutable("timeout"),
    validation = immutable("onLost"),
    validation = immutable("podRetention"),
    validation = immutable("serviceAccountName"),
    validation = immutable("image"),
    validation = immutable("pod"),
)]
pub struct WorkflowRunSpec {
    /// The fully qualified name of the service to run, such as oracle.peo.cloud.vm_allocation.
    /// It is looked for among the Service objects and catalogue ConfigMaps of the run's
    /// namespace, then in those of the operator's shared namespace. Give exactly one of fqsn,
    /// template and templateFrom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 253),
        regex(pattern = r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+$")
    )]
    pub fqsn: Option<String>,

    /// The version of the service, as it is written there: 1.10 is not 1.1. Without it, the
    /// service's default version runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub version: Option<String>,

    /// The template to run: an object of nodes, or {"param": {nodes}, "decision_expr": "…"}. The
    /// API server sorts the keys of an object; where the order of a command's options matters,
    /// use templateFrom, or a Service with templateText.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_object")]
    pub template: Option<Object>,

    /// Parts of a template's text, JSON or YAML, in ConfigMaps of the run's namespace. They are
    /// joined in the order given here. A part, or the joined whole, may be compressed with
    /// gzip. A template above 1 MiB needs several parts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub template_from: Vec<TemplateSource>,

    /// Parameters by name, each of any kind. They stand above those of paramsFrom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_object")]
    pub params: Option<Object>,

    /// Parameters from ConfigMaps and Secrets of the run's namespace. Of two that give the same
    /// parameter, the later counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub params_from: Vec<ParamsSource>,

    /// What carries out the nodes: pod (a pod for each attempt of a node) or process (a process
    /// beside the operator, where the operator allows it). Without it: the service's, else pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "ExecutorKind")]
    pub executor: Option<ExecutorKind>,

    /// The most nodes that run at once. Without it, the operator's own limit counts alone. It may
    /// be changed while the run goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub parallelism: Option<u32>,

    /// The longest time of the whole run from its start, such as 30s, 5m or 1h30m. When it is
    /// over, running nodes are ended and the run is Cancelled. Without it there is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,

    /// While true, nothing new starts; nodes that run go on to their end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,

    /// Set to true to end the run: running pods are deleted with their grace, nothing more
    /// starts, and the run is Cancelled. It cannot be taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel: Option<bool>,

    /// What happens to a node whose pod was lost before its action ended: Fail (the node ends in
    /// Error) or Retry (another attempt, 3 in all; the lost one may have done its work). Without
    /// it: Fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "OnLost")]
    pub on_lost: Option<OnLost>,

    /// Seconds after its end when the run is deleted with all that belongs to it. Without it, the
    /// operator's own setting counts; where there is none, the run stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub ttl_seconds_after_finished: Option<u32>,

    /// Which finished pods stay, with their logs, until the run is deleted: Always (all),
    /// OnFailure (those whose node did not succeed) or Never (none). Without it: Always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "PodRetention")]
    pub pod_retention: Option<PodRetention>,

    /// The service account of the pods; it must be on the operator's list of allowed ones.
    /// Without it: the namespace's default account. No token is mounted either way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = name::PATTERN))]
    pub service_account_name: Option<String>,

    /// The container image that the nodes run in. Without it: the service's, else the operator's
    /// default image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,

    /// Further properties of the pods, over those of the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodOverrides>,
}

/// The rule that a field of the spec is as it was. Objects of unknown content are compared whole,
/// which the API server's expressions can do only from the spec above them.
fn immutable(field: &str) -> kube::core::Rule {
    kube::core::Rule::new(format!(
        "has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})"
    ))
    .message(kube::core::Message::Message(format!(
        "{field} is fixed when the run is made; make another run"
    )))
    .field_path(format!(".{field}"))
}

/// A part of a template's text in a ConfigMap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TemplateSource {
    /// The name of the ConfigMap, in the run's namespace.
    #[schemars(length(min = 1, max = 253), regex(pattern = name::PATTERN))]
    pub config_map: String,
    /// The key in its data or binaryData.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// Where parameters come from: exactly one of configMap and secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.configMap) != has(self.secret)").message("expected exactly one of configMap and secret"),
)]
pub struct ParamsSource {
    /// All keys of a ConfigMap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<ConfigMapParams>,
    /// One key of a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretParam>,
}

/// Parameters from a ConfigMap: each key of its data is a parameter. A value that is JSON is read
/// as JSON, any other is a text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapParams {
    /// The name of the ConfigMap, in the run's namespace.
    #[schemars(length(min = 1, max = 253), regex(pattern = name::PATTERN))]
    pub name: String,
    /// Whether the run may start without the ConfigMap. Without it: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optional: Option<bool>,
}

/// A parameter from a Secret. Its value is put in place inside the pod; it does not appear in the
/// status, in events or in the operator's log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretParam {
    /// The name of the Secret, in the run's namespace.
    #[schemars(length(min = 1, max = 253), regex(pattern = name::PATTERN))]
    pub name: String,
    /// The key in its data; the value is a text.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
    /// The name of the parameter that gets the value.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[A-Za-z_][A-Za-z0-9_]*$")
    )]
    pub param: String,
}

/// Properties of the pods that a run or a service may set. All others belong to the operator.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodOverrides {
    /// Labels that a machine must have for the pods to run there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "few_texts")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints of machines that the pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub tolerations: Vec<Toleration>,
    /// The computing resources of the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// When the image is pulled: Always, IfNotPresent or Never. Without it: the cluster's rule
    /// (Always for the tag latest, else IfNotPresent).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "PullPolicy")]
    pub image_pull_policy: Option<PullPolicy>,
    /// Secrets of the run's namespace that hold credentials for pulling the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "secret_names")]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// The name of the pods' priority class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = name::PATTERN))]
    pub priority_class_name: Option<String>,
    /// Labels to put on the pods. Those of the operator itself, and all of apscli.dev, cannot be
    /// set.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "few_texts")]
    pub labels: BTreeMap<String, String>,
    /// Annotations to put on the pods. Those of apscli.dev cannot be set.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "few_texts")]
    pub annotations: BTreeMap<String, String>,
}

/// The computing resources of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// The most that the container may use, by resource: cpu in cores (500m is half a core),
    /// memory in bytes (256Mi).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities")]
    pub limits: BTreeMap<String, Quantity>,
    /// What is set aside for the container, by resource, in the same units.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities")]
    pub requests: BTreeMap<String, Quantity>,
}

fn few_texts(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "additionalProperties": {"type": "string", "maxLength": 4096},
        "maxProperties": 32,
        "x-kubernetes-map-type": "atomic",
    })
}

/// As Kubernetes' own definitions of quantities have it.
fn quantities(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "additionalProperties": {
            "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$",
            "x-kubernetes-int-or-string": true,
            "maxLength": 64,
        },
        "maxProperties": 16,
        "x-kubernetes-map-type": "atomic",
    })
}

/// What carries out the nodes of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExecutorKind {
    /// A pod for each attempt.
    Pod,
    /// A process beside the operator.
    Process,
}

/// What happens to a node that was lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnLost {
    /// It ends in Error.
    #[default]
    Fail,
    /// It is tried again, 3 attempts in all.
    Retry,
}

/// Which finished pods stay until their run is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PodRetention {
    /// All.
    #[default]
    Always,
    /// Those whose node did not succeed.
    OnFailure,
    /// None.
    Never,
}

impl PodRetention {
    /// Whether a finished pod stays whose node succeeded, or did not.
    #[must_use]
    pub fn keeps(self, succeeded: bool) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => !succeeded,
            Self::Never => false,
        }
    }
}

/// When an image is pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PullPolicy {
    /// Before each start.
    Always,
    /// Where the machine does not have it.
    IfNotPresent,
    /// Not at all.
    Never,
}

impl PullPolicy {
    /// The word of the pod API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// What became of the run so far. Only the operator writes it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkflowRunStatus {
    /// Where the run is in its life: Pending (not begun), Running, Suspended, Succeeded, Failed,
    /// Cancelled (by cancel or timeout) or Error (it could not be run as it is).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "RunPhase")]
    pub phase: Option<RunPhase>,
    /// The metadata.generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Finished nodes and all nodes, such as 2/4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// What the run waits for, or how it ended, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The result of a finished run: 1 success, 0 failure. Absent before the end, and where the
    /// run was cancelled or could not be run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub return_code: Option<i32>,
    /// What was found to run, and where it is kept for as long as the run exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved: Option<Resolved>,
    /// Complete and Failed say how the run ended, as those of a Job do (Failed also for Cancelled
    /// and Error). Reconciling is True while the run goes on, Stalled where it cannot go on
    /// without somebody's help.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// When the run began, to the second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When the run was over, to the second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// How long a finished run took, such as 12s or 1h0m5s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
    /// How many nodes are in each phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counts: Option<Counts>,
    /// Why the run ends early, if it does: Asked (somebody set cancel) or Timeout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "CancelCause")]
    pub cancel_cause: Option<CancelCause>,
    /// How many WorkflowRunPage objects hold the nodes of this run. Absent or 0: all nodes stand
    /// in nodes below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pages: Option<u32>,
    /// What became of each node, in the order of the template. Of a run with more than 100 nodes,
    /// only those that run or did not succeed, 50 at most; all of them stand in its pages.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub nodes: Vec<NodeStatus>,
}

/// Where a run is in its life.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
)]
pub enum RunPhase {
    /// Not begun.
    #[default]
    Pending,
    /// Begun and not over.
    Running,
    /// Held back by `suspend`.
    Suspended,
    /// Over with return code 1.
    Succeeded,
    /// Over with return code 0.
    Failed,
    /// Ended by `cancel` or its timeout.
    Cancelled,
    /// It could not be run as it is.
    Error,
}

impl RunPhase {
    /// All phases.
    pub const ALL: [Self; 7] = [
        Self::Pending,
        Self::Running,
        Self::Suspended,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
        Self::Error,
    ];

    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Suspended => "Suspended",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Cancelled => "Cancelled",
            Self::Error => "Error",
        }
    }

    /// Whether the run is over.
    #[must_use]
    pub fn is_final(self) -> bool {
        match self {
            Self::Pending | Self::Running | Self::Suspended => false,
            Self::Succeeded | Self::Failed | Self::Cancelled | Self::Error => true,
        }
    }
}

impl std::fmt::Display for RunPhase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a run ends early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CancelCause {
    /// Somebody set `cancel`.
    Asked,
    /// The run's own timeout.
    Timeout,
}

impl From<event::CancelCause> for CancelCause {
    fn from(cause: event::CancelCause) -> Self {
        match cause {
            event::CancelCause::Asked => Self::Asked,
            event::CancelCause::Timeout => Self::Timeout,
        }
    }
}

impl From<CancelCause> for event::CancelCause {
    fn from(cause: CancelCause) -> Self {
        match cause {
            CancelCause::Asked => Self::Asked,
            CancelCause::Timeout => Self::Timeout,
        }
    }
}

/// What was found to run. It is kept, so that a later change of the service does not touch the
/// run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resolved {
    /// The service. Absent where the run brings its own template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fqsn: Option<String>,
    /// The version of the service. Absent where the run brings its own template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The SHA-256 of the template, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<String>,
    /// Where it was found, such as Service shared/vm-allocation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The immutable ConfigMaps of the run's namespace that hold the template, the parameters and
    /// the scripts as they were at the start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub snapshot: Vec<String>,
}

/// How many nodes are in each phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Counts {
    /// All nodes.
    pub total: u32,
    /// Not started, and they may still.
    pub pending: u32,
    /// Running.
    pub running: u32,
    /// Ended well.
    pub succeeded: u32,
    /// Ended by themselves, and not well.
    pub failed: u32,
    /// Could not start, raised an exception, ran out of time or were lost.
    pub error: u32,
    /// Ended because the run was.
    pub cancelled: u32,
    /// Never started, and never will.
    pub skipped: u32,
}

impl Counts {
    /// Counts a node in.
    pub fn add(&mut self, phase: NodePhase) {
        self.total = self.total.saturating_add(1);
        let of_phase = match phase {
            NodePhase::Pending => &mut self.pending,
            NodePhase::Running => &mut self.running,
            NodePhase::Succeeded => &mut self.succeeded,
            NodePhase::Failed => &mut self.failed,
            NodePhase::Error => &mut self.error,
            NodePhase::Cancelled => &mut self.cancelled,
            NodePhase::Skipped => &mut self.skipped,
        };
        *of_phase = of_phase.saturating_add(1);
    }

    /// The nodes that are over.
    #[must_use]
    pub fn finished(&self) -> u32 {
        self.total
            .saturating_sub(self.pending)
            .saturating_sub(self.running)
    }
}

/// What became of a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// The name of the node, as the template has it.
    pub name: String,
    /// Where the node is in its life: Pending, Running, Succeeded, Failed (ended by itself, and
    /// not well), Error (could not start, raised an exception, ran out of time or was lost),
    /// Cancelled (ended because the run was) or Skipped (never started, and never will).
    pub phase: NodePhase,
    /// What expressions see: 1 success, 0 failure. Absent where the node never ran or is not over;
    /// expressions then see 'N/A'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub return_code: Option<i32>,
    /// Which try this is, from 1. Absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub attempt: Option<u32>,
    /// When this try began, to the microsecond.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<MicroTime>,
    /// When the node was over, to the microsecond.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_time: Option<MicroTime>,
    /// What carries it out: pod or process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "ExecutorKind")]
    pub executor: Option<ExecutorKind>,
    /// What was enforced on the process of this try: the sandbox in words. Absent of pods, and
    /// until the process is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 150))]
    pub sandbox: Option<String>,
    /// The pod of this try. Its log is all that the node wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodReference>,
    /// The program's exit code, or the code that the function returned; 0 is success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    /// The number of the signal that ended the program, where one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// What the node gave as its output, cut where it is long; a text, or what the function
    /// returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_value")]
    pub output: Option<serde_json::Value>,
    /// What the node gave as its error message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_value")]
    pub err_msg: Option<serde_json::Value>,
    /// What the node gave as its error code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_value")]
    pub err_code: Option<serde_json::Value>,
    /// What else the node had to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_value")]
    pub info: Option<serde_json::Value>,
    /// For each of output, errMsg, errCode and info that was cut: how many bytes are missing. The
    /// pod's log has them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub truncated: BTreeMap<String, u64>,
    /// Why the node is in its phase, in one word for programs, such as ExitCode, Timeout, Lost,
    /// ConditionFalse or ImagePullBackOff.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The same for people, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl NodeStatus {
    /// The reason as the engine's word, where it is one of the engine's.
    #[must_use]
    pub fn reason_word(&self) -> Option<ReasonWord> {
        let text: StrDeserializer<'_, NotRead> = self.reason.as_deref()?.into_deserializer();
        ReasonWord::deserialize(text).ok()
    }
}

/// Where a node is in its life: the engine's phases.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
)]
pub enum NodePhase {
    /// Not started, and it may still.
    #[default]
    Pending,
    /// Being carried out.
    Running,
    /// Ended well.
    Succeeded,
    /// Ended by itself, and not well.
    Failed,
    /// Could not start, raised, ran out of time or was lost.
    Error,
    /// Ended because the run was.
    Cancelled,
    /// Never started, and never will.
    Skipped,
}

impl From<Phase> for NodePhase {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Pending => Self::Pending,
            Phase::Running => Self::Running,
            Phase::Succeeded => Self::Succeeded,
            Phase::Failed => Self::Failed,
            Phase::Error => Self::Error,
            Phase::Cancelled => Self::Cancelled,
            Phase::Skipped => Self::Skipped,
        }
    }
}

impl From<NodePhase> for Phase {
    fn from(phase: NodePhase) -> Self {
        match phase {
            NodePhase::Pending => Self::Pending,
            NodePhase::Running => Self::Running,
            NodePhase::Succeeded => Self::Succeeded,
            NodePhase::Failed => Self::Failed,
            NodePhase::Error => Self::Error,
            NodePhase::Cancelled => Self::Cancelled,
            NodePhase::Skipped => Self::Skipped,
        }
    }
}

/// References to Secrets. As in a pod's spec a name may be empty; then it refers to none.
fn secret_names(_: &mut SchemaGenerator) -> Schema {
    let pattern = format!("^({})?$", name::PATTERN.trim_matches(['^', '$']));
    json_schema!({
        "type": "array",
        "items": {
            "type": "object",
            "description": "A reference to a Secret of the run's namespace.",
            "properties": {
                "name": {
                    "type": "string",
                    "description": "The name of the Secret.",
                    "pattern": pattern,
                    "maxLength": name::LONGEST,
                },
            },
            "required": ["name"],
        },
        "maxItems": 16,
        "x-kubernetes-list-type": "atomic",
    })
}

/// A pod, by name and identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodReference {
    /// The name of the pod, in the run's namespace.
    pub name: String,
    /// The UID of the pod. Absent until the API server has confirmed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}
