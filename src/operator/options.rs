//! What the operator is told when it starts.
//!
//! Must not read the environment or arguments; the command line does.

use std::num::NonZeroUsize;
use std::time::Duration;

/// Everything that an admin chooses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Where runs and services are looked for.
    pub scope: Scope,
    /// Where the catalogue that all namespaces share is.
    pub shared_namespace: String,
    /// The Lease by which replicas agree on one that works; none where there is one replica only.
    pub election: Option<Election>,
    /// The image of nodes that name none.
    pub node_image: String,
    /// The image that carries `apscli-node` into others, where [`Delivery`] copies or mounts it.
    pub tools_image: String,
    /// How `apscli-node` comes into a pod; none: it is in `node_image`, and into other images it is
    /// copied.
    pub delivery: Option<Delivery>,
    /// The service accounts that a run may name, beside the one it gets when it names none.
    pub service_accounts: Vec<String>,
    /// How long a finished run stays that says nothing about it; none: until it is deleted.
    pub default_ttl: Option<Duration>,
    /// How many creations and deletions of pods are in flight at once.
    pub max_writes: NonZeroUsize,
    /// How long a run may hear nothing of a pod that runs before it asks: a watch can miss an end.
    pub resync: Duration,
}

/// Which namespaces the operator looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All, by one watch a kind; needs a `ClusterRole`.
    Cluster,
    /// These, by one watch a kind and namespace.
    Namespaces(Vec<String>),
}

/// Who stands for election where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Election {
    /// The Lease's namespace.
    pub namespace: String,
    /// The Lease's name.
    pub lease: String,
    /// This process's name in it; no other process may have the same.
    pub identity: String,
}

/// How `apscli-node` comes into the container of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The image has it.
    InImage,
    /// An init container copies it.
    InitCopy,
    /// The tools image is mounted as a volume; needs kubelets that can (1.36 or newer).
    ImageVolume,
    /// [`Delivery::ImageVolume`] where every node can, else [`Delivery::InitCopy`].
    Auto,
}
