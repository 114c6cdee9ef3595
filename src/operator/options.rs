//! What the operator is told when it starts.
//!
//! Must not read the environment or arguments; the command line does.

use std::num::NonZeroUsize;
use std::path::PathBuf;
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
    /// Whose nodes may be processes beside the operator.
    pub processes: Processes,
    /// Where those are carried out; none: nowhere.
    pub runner: Option<RunnerPlace>,
}

/// Whose nodes may be processes beside the operator. They are code of theirs on the operator's
/// machine, so by default nobody's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Processes {
    /// Namespaces all of whose runs may.
    pub namespaces: Vec<String>,
    /// Services of the shared namespace that may wherever they run: FQSNs in which `*` stands for
    /// anything. (A service that a namespace makes for itself is that namespace's.)
    pub services: Vec<String>,
}

impl Processes {
    /// Whether a run in this namespace may, of this service where it is one of the shared
    /// namespace's.
    #[must_use]
    pub fn allow(&self, namespace: &str, shared_service: Option<&str>) -> bool {
        let named = |fqsn| self.services.iter().any(|pattern| matches(pattern, fqsn));
        self.namespaces.iter().any(|it| it == namespace) || shared_service.is_some_and(named)
    }
}

/// Whether a pattern is this name, with anything for each `*`.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// Where the runner is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunnerPlace {
    /// It serves on this socket: another container of the pod.
    Socket(PathBuf),
    /// It is started as a child, with these arguments.
    Child(Vec<String>),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_the_whole_name() {
        for (pattern, name, expected) in [
            ("a.b", "a.b", true),
            ("a.b", "a.bc", false),
            ("a.b", "xa.b", false),
            ("a.*", "a.b.c", true),
            ("a.*", "ab.c", false),
            ("*.c", "a.b.c", true),
            ("*.c", "a.b.cc", false),
            ("a.*.c", "a.b.c", true),
            ("a.*.c", "a.c", false),
            ("a*b*c", "a.x.b.y.c", true),
            ("a*ab", "ab", false),
            ("*", "a.b", true),
            ("", "a.b", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn nobody_may_by_default() {
        assert!(!Processes::default().allow("n", Some("a.b")));
        let some = Processes {
            namespaces: vec!["n".to_owned()],
            services: vec!["a.*".to_owned()],
        };
        assert!(some.allow("n", None) && some.allow("m", Some("a.b")));
        assert!(!some.allow("m", None) && !some.allow("m", Some("b.a")));
    }
}
