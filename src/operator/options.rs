//! What the operator is told when it starts.
//!
//! Must not read the environment or arguments; the command line does.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::catalog::cluster::LabelledMaps;
use crate::executor::pod::LABEL_BUCKET;
use crate::executor::pod::build::{BUCKETS, bucket};

/// Everything that an admin chooses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Where runs and services are looked for.
    pub scope: Scope,
    /// Where the catalogue that all namespaces share is.
    pub shared_namespace: String,
    /// Which labelled `ConfigMaps` count as catalogs.
    pub catalog_config_maps: LabelledMaps,
    /// The Lease by which replicas agree on one that works; none where there is one replica only.
    pub election: Option<Election>,
    /// Which part of the runs is this operator's.
    pub shard: Shard,
    /// The image of nodes that name none.
    pub node_image: String,
    /// The image that carries `apscli-node` into others, where [`Delivery`] copies or mounts it.
    pub tools_image: String,
    /// How `apscli-node` comes into a pod; none: it is in `node_image`, and into other images it is
    /// copied.
    pub delivery: Option<Delivery>,
    /// The service accounts that a run may name, beside the one it gets when it names none.
    pub service_accounts: Vec<AllowedAccount>,
    /// How long a finished run stays that says nothing about it; none: until it is deleted.
    pub default_ttl: Option<Duration>,
    /// How many creations and deletions of pods are in flight at once.
    pub max_writes: NonZeroUsize,
    /// How long a run may hear nothing of a pod that runs before it asks: a watch can miss an end.
    /// As often it is asked for runs that are not known, and the catalogue is listed anew.
    pub resync: Duration,
    /// Most memory for what is held of runs and of the catalogue, in bytes; approximate. The process
    /// needs about 250 MiB beside it.
    pub cache: usize,
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
    /// Whether a service may give its processes a network: TCP and UDP from the operator's machine,
    /// where clouds have their metadata services and loopback is the operator's.
    pub network: bool,
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

/// A service account that runs may name. Credentials of clouds are often bound to an account's
/// name, whether or not its token is mounted; so a name alone does not say enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedAccount {
    /// The namespace in which they may; none: in every one.
    pub namespace: Option<String>,
    /// The account's name.
    pub name: String,
}

impl AllowedAccount {
    /// Whether a run of this namespace may name this account.
    #[must_use]
    pub fn allows(&self, namespace: &str, account: &str) -> bool {
        self.name == account && self.namespace.as_deref().is_none_or(|it| it == namespace)
    }
}

impl fmt::Display for AllowedAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}",
            self.namespace.as_deref().unwrap_or("*"),
            self.name
        )
    }
}

/// No name of a service account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected NAMESPACE/NAME, such as builds/robot, or */NAME for the account of that name in every namespace"
)]
pub struct NoAccount;

impl FromStr for AllowedAccount {
    type Err = NoAccount;

    fn from_str(text: &str) -> Result<Self, NoAccount> {
        let (namespace, name) = text.split_once('/').ok_or(NoAccount)?;
        if namespace.is_empty() || name.is_empty() || name.contains(['/', '*']) {
            return Err(NoAccount);
        }
        let everywhere = namespace == "*";
        if !everywhere && namespace.contains('*') {
            return Err(NoAccount);
        }
        Ok(Self {
            namespace: (!everywhere).then(|| namespace.to_owned()),
            name: name.to_owned(),
        })
    }
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

/// One of several operators that share the runs of a cluster, each with a Lease of its own. Runs
/// fall into [`BUCKETS`] by their UID, and buckets to shards in turn, so nobody has to hand them
/// out. Each knows the whole catalogue; what is wrong with it is said by the first alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    index: u8,
    count: u8,
}

impl Shard {
    /// The only one: all runs are its own.
    pub const WHOLE: Self = Self { index: 0, count: 1 };

    /// Whether it is the one that writes the statuses of services, and events on catalogues.
    #[must_use]
    pub fn is_first(self) -> bool {
        self.index == 0
    }

    /// Whether a run is its own.
    #[must_use]
    pub fn has(self, run_uid: &str) -> bool {
        self.has_bucket(bucket(run_uid))
    }

    fn has_bucket(self, bucket: u8) -> bool {
        bucket % self.count == self.index
    }

    /// What pods of its runs bear, as a label selector; none: every pod is such.
    #[must_use]
    pub fn selector(self) -> Option<String> {
        let buckets: Vec<String> = (0..BUCKETS)
            .filter(|bucket| self.has_bucket(*bucket))
            .map(|bucket| bucket.to_string())
            .collect();
        (self.count > 1).then(|| format!("{LABEL_BUCKET} in ({})", buckets.join(",")))
    }

    /// Its Lease, where that of the whole has this name.
    #[must_use]
    pub fn lease(self, whole: &str) -> String {
        if self.count == 1 {
            whole.to_owned()
        } else {
            format!("{whole}-{self}").replace('/', "-of-")
        }
    }
}

impl Default for Shard {
    fn default() -> Self {
        Self::WHOLE
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

/// No shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected I/N: the shard's number, from 0, of at most {BUCKETS}, such as 0/2 and 1/2 for two shards"
)]
pub struct NoShard;

impl FromStr for Shard {
    type Err = NoShard;

    fn from_str(text: &str) -> Result<Self, NoShard> {
        let (index, count) = text.split_once('/').ok_or(NoShard)?;
        let index = index.parse().map_err(|_| NoShard)?;
        let count = count.parse().map_err(|_| NoShard)?;
        if index < count && count <= BUCKETS {
            Ok(Self { index, count })
        } else {
            Err(NoShard)
        }
    }
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
    /// How long the others wait for a silent holder.
    pub duration: Duration,
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
    fn each_run_is_one_shards() {
        for count in [1, 2, 3, 64] {
            let shard = |index: u8| format!("{index}/{count}").parse::<Shard>().unwrap();
            for run in 0..200 {
                let uid = format!("uid-{run}");
                let owners = (0..count).filter(|index| shard(*index).has(&uid));
                assert_eq!(owners.count(), 1, "{uid} of {count}");
            }
        }
        assert_eq!(Shard::WHOLE.selector(), None);
        assert_eq!(Shard::WHOLE.lease("l"), "l");
        let third: Shard = "3/21".parse().unwrap();
        let selector = "apscli.dev/bucket in (3,24,45)";
        assert_eq!(third.selector().as_deref(), Some(selector));
        assert_eq!(third.lease("l"), "l-3-of-21");
        for bad in ["", "1", "/", "1/1", "0/0", "0/65", "-1/2", "0/2/3", "a/b"] {
            assert_eq!(bad.parse::<Shard>(), Err(NoShard), "{bad}");
        }
    }

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
    fn account_is_allowed_by_namespace_and_name() {
        let of = |text: &str| text.parse::<AllowedAccount>();
        let one = of("builds/robot").unwrap();
        assert!(one.allows("builds", "robot"));
        assert!(!one.allows("other", "robot") && !one.allows("builds", "root"));
        let everywhere = of("*/robot").unwrap();
        assert!(everywhere.allows("builds", "robot") && everywhere.allows("other", "robot"));
        assert!(!everywhere.allows("builds", "*"));
        for text in ["builds/robot", "*/robot", "a/b.c"] {
            assert_eq!(of(text).unwrap().to_string(), text);
        }
        for wrong in ["robot", "", "/", "a/", "/b", "a/b/c", "*/*", "a*/b", "a/b*"] {
            assert_eq!(of(wrong), Err(NoAccount), "{wrong}");
        }
    }

    #[test]
    fn nobody_may_by_default() {
        assert!(!Processes::default().allow("n", Some("a.b")));
        let some = Processes {
            namespaces: vec!["n".to_owned()],
            services: vec!["a.*".to_owned()],
            network: false,
        };
        assert!(some.allow("n", None) && some.allow("m", Some("a.b")));
        assert!(!some.allow("m", None) && !some.allow("m", Some("b.a")));
    }
}
