//! `WorkflowRunPage`: a part of the node table of a run that is too large for its own status.
//!
//! Must not hold anything else: what a run is stands in its `WorkflowRun`.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::workflow_run::NodeStatus;

/// Up to 100 nodes of a run, in the order of the template.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "apscli.dev",
    version = "v1alpha1",
    kind = "WorkflowRunPage",
    plural = "workflowrunpages",
    shortname = "wfrp",
    category = "apscli",
    namespaced,
    derive = "PartialEq",
    doc = "A page of the node table of a WorkflowRun with more than 100 nodes. The operator writes it, the run owns it, and it goes when the run goes.",
    printcolumn(
        name = "Run",
        type_ = "string",
        json_path = ".spec.run",
        description = "The run that the page belongs to."
    ),
    printcolumn(
        name = "Page",
        type_ = "integer",
        json_path = ".spec.index",
        description = "Which page of the run it is, from 0."
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Since when the page exists."
    )
)]
#[serde(rename_all = "camelCase")]
pub struct WorkflowRunPageSpec {
    /// The name of the run, in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// Which page of the run this is, from 0. Page n begins with node 100 × n of the template.
    #[serde(default)]
    pub index: u32,
    /// What became of the nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub nodes: Vec<NodeStatus>,
}
