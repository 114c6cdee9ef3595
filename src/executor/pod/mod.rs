//! The hand for pods: an attempt as a pod, and a pod as what came of the attempt.
//!
//! All is pure; who creates pods and watches them is the operator. Must not hold a client, read
//! a clock, or use the custom resources' types: what a run asks for comes in as [`build::RunPods`].

pub mod build;
pub mod observe;
pub mod slim;

/// The group of the project's own kinds, labels and annotations.
pub const GROUP: &str = "apscli.dev";
/// Label: the run's UID.
pub const LABEL_RUN_UID: &str = "apscli.dev/run-uid";
/// Label: which of [`build::BUCKETS`] the run falls into, so that shards watch only pods of theirs.
pub const LABEL_BUCKET: &str = "apscli.dev/bucket";
/// Label: the run's name, as much of it as a label may hold.
pub const LABEL_RUN: &str = "apscli.dev/run";
/// Label where the name is one that a label may hold, and always annotation: the node's name.
pub const NODE: &str = "apscli.dev/node";
/// Annotation: which try, from 1.
pub const ANNOTATION_ATTEMPT: &str = "apscli.dev/attempt";
/// Annotation: the hash of the decision.
pub const ANNOTATION_DECISION: &str = "apscli.dev/decision";
/// Annotation: whose time `activeDeadlineSeconds` keeps, `node` or `run`.
pub const ANNOTATION_DEADLINE: &str = "apscli.dev/deadline";
/// Keeps a pod that is being deleted until its result is on record.
pub const FINALIZER: &str = "apscli.dev/result";
/// The one container whose end is the result.
pub const CONTAINER: &str = "node";
/// The init container that brings `apscli-node` into other images.
pub const INIT_CONTAINER: &str = "apscli";
