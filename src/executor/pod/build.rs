//! From an attempt to its pod.
//!
//! The same arguments give the same pod. Must not read anything else, and must not put anything
//! into a pod that an attempt does not need: each of its bytes is written once a node.

use std::collections::BTreeMap;
use std::path::{Component, Path};
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapProjection, Container, EmptyDirVolumeSource, EnvVar, ImageVolumeSource,
    KeyToPath, LocalObjectReference, Pod, PodSecurityContext, PodSpec, ProjectedVolumeSource,
    ResourceRequirements, SeccompProfile, SecretProjection, SecurityContext, Toleration, Volume,
    VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use sha2::{Digest, Sha256};

use super::{
    ANNOTATION_ATTEMPT, ANNOTATION_DEADLINE, ANNOTATION_DECISION, CONTAINER, FINALIZER, GROUP,
    INIT_CONTAINER, LABEL_BUCKET, LABEL_RUN, LABEL_RUN_UID, NODE,
};
use crate::engine::name::{Attempt, NodeName};
use crate::engine::spec::Node;
use crate::executor::decision::{
    self, BIN, SCRIPTS, SECRETS, WORK, Work, hex, millis, secret_token,
};

/// Longest decision, in bytes. It goes into an environment variable, of which Linux takes
/// 128 KiB with its name.
pub const MAX_DECISION: usize = 96 * 1024;
/// The user and group of a pod: nobody's in any image that we know, and not root.
pub const USER: i64 = 65532;
/// What is left of a pod's grace after the node's own: to kill what is left and to write the
/// result.
pub const RESERVE: Duration = Duration::from_secs(2);
/// How much later than the operator would the kubelet ends a pod that is over its time. It is
/// there for when the operator is not.
pub const DEADLINE_SLACK: Duration = Duration::from_secs(5);
/// Mode of scripts where nothing else is said: to be read and executed by everybody.
pub const SCRIPT_MODE: i32 = 0o555;

/// How large the pod's own folders may become, each.
const SCRATCH: &str = "1Gi";
const MANAGER_LABEL: &str = "app.kubernetes.io/managed-by";
const MANAGER: &str = "apscli";
const INSTALL: &str = "/apscli/install";

/// What all pods of a run have in common.
#[derive(Clone, Debug)]
pub struct RunPods {
    /// The run's name.
    pub name: String,
    /// The run's UID.
    pub uid: String,
    /// The run's namespace.
    pub namespace: String,
    /// The image in which nodes run.
    pub image: String,
    /// How `apscli-node` comes into it.
    pub delivery: Delivery,
    /// What is mounted under `/apscli/scripts`.
    pub scripts: Vec<Scripts>,
    /// What `apscli-node` has to find there, see [`Work::scripts`].
    pub scripts_hash: Option<String>,
    /// Parameters whose values stand in Secrets.
    pub secrets: Vec<SecretParam>,
    /// What the author may say about pods.
    pub overrides: PodOverrides,
    /// The account under which nodes run; none: the namespace's default one.
    pub service_account: Option<String>,
    /// Whether nodes get that account's token.
    pub token: bool,
    /// Time between TERM and KILL for a node that is ended.
    pub grace: Duration,
}

/// How `apscli-node` comes into an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It is there.
    InImage,
    /// An init container of this image copies it.
    InitCopy {
        /// The image.
        image: String,
    },
    /// This image is mounted as a volume.
    ImageVolume {
        /// The image.
        image: String,
    },
}

/// Scripts in a `ConfigMap`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scripts {
    /// The `ConfigMap`.
    pub config_map: String,
    /// The folder below `/apscli/scripts`; empty: that folder itself.
    pub path: String,
    /// The files' mode; see [`SCRIPT_MODE`].
    pub mode: i32,
    /// The keys. They are only used where folder or mode are not the usual ones.
    pub keys: Vec<String>,
}

/// A parameter whose value stands in a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretParam {
    /// The parameter.
    pub param: String,
    /// The Secret's name.
    pub secret: String,
    /// The key in it.
    pub key: String,
}

/// The parts of a pod that an author may set; there are no others.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodOverrides {
    /// Labels of nodes that may take the pod.
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pod bears.
    pub tolerations: Vec<Toleration>,
    /// What the container asks for, in the place of the default.
    pub resources: Option<ResourceRequirements>,
    /// When its image is pulled.
    pub image_pull_policy: Option<String>,
    /// Names of Secrets for pulling it.
    pub image_pull_secrets: Vec<String>,
    /// The pod's priority class.
    pub priority_class_name: Option<String>,
    /// More labels; ours stay ours.
    pub labels: BTreeMap<String, String>,
    /// More annotations; ours stay ours.
    pub annotations: BTreeMap<String, String>,
}

/// Why there is no pod for an attempt. Nothing that waiting would mend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// Action and parameters are too much for an environment variable.
    #[error(
        "action and parameters of node `{node}` are {bytes} bytes of JSON; a pod can be given {MAX_DECISION}. Put large values into a ConfigMap of scripts"
    )]
    TooLarge {
        /// The node.
        node: String,
        /// The decision's bytes.
        bytes: usize,
    },
    /// The decision cannot be written.
    #[error("the decision for node `{node}` cannot be written as JSON: {error}")]
    Unwritable {
        /// The node.
        node: String,
        /// What is wrong with it.
        error: String,
    },
    /// A script's place is outside its folder.
    #[error(
        "`{path}` of the scripts in ConfigMap `{config_map}` is no path below the scripts' folder; expected a relative path without `..`"
    )]
    ScriptPath {
        /// The `ConfigMap`.
        config_map: String,
        /// The path.
        path: String,
    },
}

/// The name of an attempt's pod. It depends on nothing that an upgrade of the operator could
/// change.
#[must_use]
pub fn pod_name(run_uid: &str, node: &NodeName, attempt: Attempt) -> String {
    let mut hash = Sha256::new();
    hash.update(run_uid);
    hash.update([0]);
    hash.update(node.as_str());
    hash.update([0]);
    hash.update(attempt.to_string());
    let hash = hash.finalize();
    format!("apscli-{}", hex(hash.get(..16).unwrap_or_default()))
}

/// Into how many buckets runs fall: the most shards that there can be.
pub const BUCKETS: u8 = 64;

/// The bucket of a run, from 0. For ever the same: pods that are there bear it.
#[must_use]
pub fn bucket(run_uid: &str) -> u8 {
    let hash = Sha256::digest(run_uid);
    hash.first().copied().unwrap_or_default() % BUCKETS
}

/// The pod of an attempt. `remaining` is what is left of the run's own time.
pub fn build(
    run: &RunPods,
    node: &Node,
    attempt: Attempt,
    remaining: Option<Duration>,
) -> Result<Pod, BuildError> {
    let secrets = secrets(run, node);
    let mut work = work(run, node, &secrets);
    let mut json = json(&work, node)?;
    // Without the scripts: it is the same for whichever version of the operator makes the pod.
    let hash = decision::hash(&json);
    if run.scripts_hash.is_some() {
        work.scripts.clone_from(&run.scripts_hash);
        json = work.to_json().map_err(|error| unwritable(node, &error))?;
    }
    let (deadline, keeper) = deadline(run, node, remaining);
    let Parts {
        volumes,
        mounts,
        init,
    } = mounts(run, &secrets)?;
    let overrides = &run.overrides;
    let (labels, annotations) = marks(run, node, attempt, hash, keeper);
    let container = Container {
        name: CONTAINER.to_owned(),
        image: Some(run.image.clone()),
        image_pull_policy: overrides.image_pull_policy.clone(),
        command: Some(vec![format!("{BIN}/apscli-node")]),
        working_dir: Some(WORK.to_owned()),
        env: Some(vec![EnvVar {
            name: decision::ENV.to_owned(),
            value: Some(json),
            value_from: None,
        }]),
        volume_mounts: Some(mounts),
        resources: Some(overrides.resources.clone().unwrap_or_else(resources)),
        security_context: Some(restricted()),
        ..Container::default()
    };
    Ok(Pod {
        metadata: ObjectMeta {
            name: Some(pod_name(&run.uid, &node.name, attempt)),
            namespace: Some(run.namespace.clone()),
            labels: Some(labels),
            annotations: Some(annotations),
            finalizers: Some(vec![FINALIZER.to_owned()]),
            owner_references: Some(vec![OwnerReference {
                api_version: format!("{GROUP}/v1alpha1"),
                kind: "WorkflowRun".to_owned(),
                name: run.name.clone(),
                uid: run.uid.clone(),
                controller: Some(true),
                block_owner_deletion: None,
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            restart_policy: Some("Never".to_owned()),
            active_deadline_seconds: deadline,
            termination_grace_period_seconds: Some(seconds(run.grace + RESERVE)),
            automount_service_account_token: Some(run.token && run.service_account.is_some()),
            service_account_name: run.service_account.clone(),
            enable_service_links: Some(false),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(USER),
                run_as_group: Some(USER),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    localhost_profile: None,
                }),
                ..PodSecurityContext::default()
            }),
            node_selector: some(overrides.node_selector.clone()),
            tolerations: some(overrides.tolerations.clone()),
            priority_class_name: overrides.priority_class_name.clone(),
            image_pull_secrets: some(
                (overrides.image_pull_secrets.iter())
                    .map(|name| LocalObjectReference { name: name.clone() })
                    .collect(),
            ),
            init_containers: init.map(|init| vec![init]),
            containers: vec![container],
            volumes: Some(volumes),
            ..PodSpec::default()
        }),
        status: None,
    })
}

/// The labels by which a run's pods are watched and listed.
#[must_use]
pub fn watched_labels(run_uid: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        (MANAGER_LABEL.to_owned(), MANAGER.to_owned()),
        (LABEL_RUN_UID.to_owned(), run_uid.to_owned()),
        (LABEL_BUCKET.to_owned(), bucket(run_uid).to_string()),
    ])
}

/// Labels and annotations: ours, and what the run's author wants besides.
fn marks(
    run: &RunPods,
    node: &Node,
    attempt: Attempt,
    decision: String,
    keeper: Option<&'static str>,
) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
    let own = |map: &BTreeMap<String, String>| -> BTreeMap<String, String> {
        let is_ours = |name: &str| {
            name == MANAGER_LABEL
                || name
                    .split_once('/')
                    .is_some_and(|(prefix, _)| prefix == GROUP)
        };
        (map.iter())
            .filter(|(name, _)| !is_ours(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    };
    let mut labels = own(&run.overrides.labels);
    labels.extend(watched_labels(&run.uid));
    labels.insert(LABEL_RUN.to_owned(), shortened(&run.name));
    if is_label_value(node.name.as_str()) {
        labels.insert(NODE.to_owned(), node.name.to_string());
    }
    let mut annotations = own(&run.overrides.annotations);
    annotations.insert(NODE.to_owned(), node.name.to_string());
    annotations.insert(ANNOTATION_ATTEMPT.to_owned(), attempt.to_string());
    annotations.insert(ANNOTATION_DECISION.to_owned(), decision);
    if let Some(keeper) = keeper {
        annotations.insert(ANNOTATION_DEADLINE.to_owned(), keeper.to_owned());
    }
    (labels, annotations)
}

/// The hash of an attempt's decision, as its pod's annotation `apscli.dev/decision` has it.
pub fn decision_hash(run: &RunPods, node: &Node) -> Result<String, BuildError> {
    let secrets = secrets(run, node);
    Ok(decision::hash(&json(&work(run, node, &secrets), node)?))
}

fn work(run: &RunPods, node: &Node, secrets: &[Mounted<'_>]) -> Work {
    let mut work = Work::new(node.action.clone(), node.param.clone(), run.grace);
    work.timeout_ms = node.timeout.map(millis);
    work.secrets = (secrets.iter())
        .map(|it| (it.token.clone(), format!("{SECRETS}/{}", it.file)))
        .collect();
    work
}

fn json(work: &Work, node: &Node) -> Result<String, BuildError> {
    let json = work.to_json().map_err(|error| unwritable(node, &error))?;
    if json.len() > MAX_DECISION {
        return Err(BuildError::TooLarge {
            node: node.name.to_string(),
            bytes: json.len(),
        });
    }
    Ok(json)
}

fn unwritable(node: &Node, error: &serde_json::Error) -> BuildError {
    BuildError::Unwritable {
        node: node.name.to_string(),
        error: error.to_string(),
    }
}

/// A secret parameter that a node uses.
struct Mounted<'a> {
    it: &'a SecretParam,
    token: String,
    file: String,
}

/// The secret parameters that a node uses; no other is mounted into its pod.
fn secrets<'a>(run: &'a RunPods, node: &Node) -> Vec<Mounted<'a>> {
    if run.secrets.is_empty() {
        return Vec::new();
    }
    let said = Work::new(node.action.clone(), node.param.clone(), run.grace);
    let mut used = Vec::new();
    for it in &run.secrets {
        let token = secret_token(&run.uid, &it.param);
        if said.names(&token) {
            let file = if is_plain(&it.param) {
                it.param.clone()
            } else {
                format!("_{}", decision::hash(&it.param))
            };
            used.push(Mounted { it, token, file });
        }
    }
    used
}

/// When the kubelet ends the pod though nobody asks it to, in seconds, and whose time that is.
fn deadline(
    run: &RunPods,
    node: &Node,
    remaining: Option<Duration>,
) -> (Option<i64>, Option<&'static str>) {
    let node = node.timeout.map(|timeout| timeout + run.grace);
    let (time, keeper) = match (node, remaining) {
        (Some(node), Some(run)) if run < node => (run, "run"),
        (Some(node), _) => (node, "node"),
        (None, Some(run)) => (run, "run"),
        (None, None) => return (None, None),
    };
    (
        Some(seconds(time.saturating_add(DEADLINE_SLACK))),
        Some(keeper),
    )
}

/// Whole seconds, rounded up; the API takes at most 2^31-1 of them as a deadline.
fn seconds(time: Duration) -> i64 {
    let whole = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    i64::from(i32::try_from(whole).unwrap_or(i32::MAX))
}

fn restricted() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities {
            drop: Some(vec!["ALL".to_owned()]),
            add: None,
        }),
        ..SecurityContext::default()
    }
}

/// What a node asks for where nobody says: enough for a script; no limit of processor time, which
/// would only slow it down.
fn resources() -> ResourceRequirements {
    let quantities = |list: &[(&str, &str)]| {
        let quantity = |(name, quantity): &(&str, &str)| {
            ((*name).to_owned(), Quantity((*quantity).to_owned()))
        };
        Some(list.iter().map(quantity).collect())
    };
    ResourceRequirements {
        requests: quantities(&[("cpu", "50m"), ("memory", "64Mi")]),
        limits: quantities(&[("memory", "512Mi")]),
        claims: None,
    }
}

/// The parts of a pod's spec that hang on what is mounted.
struct Parts {
    volumes: Vec<Volume>,
    mounts: Vec<VolumeMount>,
    init: Option<Container>,
}

fn mounts(run: &RunPods, secrets: &[Mounted<'_>]) -> Result<Parts, BuildError> {
    let mut all = Parts {
        volumes: Vec::new(),
        mounts: Vec::new(),
        init: None,
    };
    for (name, at) in [("work", WORK), ("tmp", "/tmp")] {
        all.volumes.push(scratch(name));
        all.mounts.push(mount(name, at, None));
    }
    match &run.delivery {
        Delivery::InImage => {}
        Delivery::InitCopy { image } => {
            all.volumes.push(scratch("bin"));
            all.mounts.push(mount("bin", BIN, Some(true)));
            all.init = Some(Container {
                name: INIT_CONTAINER.to_owned(),
                image: Some(image.clone()),
                command: Some(vec![
                    format!("{BIN}/apscli-node"),
                    "install".to_owned(),
                    INSTALL.to_owned(),
                ]),
                volume_mounts: Some(vec![mount("bin", INSTALL, None)]),
                resources: Some(run.overrides.resources.clone().unwrap_or_else(resources)),
                security_context: Some(restricted()),
                ..Container::default()
            });
        }
        Delivery::ImageVolume { image } => {
            all.volumes.push(Volume {
                name: "bin".to_owned(),
                image: Some(ImageVolumeSource {
                    reference: Some(image.clone()),
                    pull_policy: None,
                }),
                ..Volume::default()
            });
            let sub_path = Some(BIN.trim_start_matches('/').to_owned());
            all.mounts.push(VolumeMount {
                sub_path,
                ..mount("bin", BIN, Some(true))
            });
        }
    }
    if !run.scripts.is_empty() {
        let sources = run.scripts.iter().map(script_source);
        let sources = sources.collect::<Result<_, _>>()?;
        all.volumes.push(projected("scripts", SCRIPT_MODE, sources));
        all.mounts.push(mount("scripts", SCRIPTS, Some(true)));
    }
    if !secrets.is_empty() {
        let sources = secrets.iter().map(|mounted| VolumeProjection {
            secret: Some(SecretProjection {
                name: mounted.it.secret.clone(),
                items: Some(vec![KeyToPath {
                    key: mounted.it.key.clone(),
                    path: mounted.file.clone(),
                    mode: None,
                }]),
                optional: None,
            }),
            ..VolumeProjection::default()
        });
        all.volumes
            .push(projected("secrets", 0o444, sources.collect()));
        all.mounts.push(mount("secrets", SECRETS, Some(true)));
    }
    Ok(all)
}

/// All scripts are one volume: a mount within a mount that is read-only cannot be made.
fn script_source(scripts: &Scripts) -> Result<VolumeProjection, BuildError> {
    let items = (!scripts.path.is_empty() || scripts.mode != SCRIPT_MODE)
        .then(|| {
            (scripts.keys.iter())
                .map(|key| {
                    let path = Path::new(&scripts.path).join(key);
                    let inside =
                        (path.components()).all(|part| matches!(part, Component::Normal(_)));
                    let path = path.to_string_lossy().into_owned();
                    if !inside || path.contains("..") {
                        let config_map = scripts.config_map.clone();
                        return Err(BuildError::ScriptPath { config_map, path });
                    }
                    Ok(KeyToPath {
                        key: key.clone(),
                        path,
                        mode: (scripts.mode != SCRIPT_MODE).then_some(scripts.mode),
                    })
                })
                .collect()
        })
        .transpose()?;
    Ok(VolumeProjection {
        config_map: Some(ConfigMapProjection {
            name: scripts.config_map.clone(),
            items,
            optional: None,
        }),
        ..VolumeProjection::default()
    })
}

fn scratch(name: &str) -> Volume {
    Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            size_limit: Some(Quantity(SCRATCH.to_owned())),
            medium: None,
        }),
        ..Volume::default()
    }
}

fn projected(name: &str, mode: i32, sources: Vec<VolumeProjection>) -> Volume {
    Volume {
        name: name.to_owned(),
        projected: Some(ProjectedVolumeSource {
            default_mode: Some(mode),
            sources: Some(sources),
        }),
        ..Volume::default()
    }
}

fn mount(name: &str, at: &str, read_only: Option<bool>) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: at.to_owned(),
        read_only,
        ..VolumeMount::default()
    }
}

/// A collection where there is something in it.
fn some<T: Default + PartialEq>(collection: T) -> Option<T> {
    (collection != T::default()).then_some(collection)
}

/// Whether a text may be the value of a label: at most 63 of `A-Z a-z 0-9 - _ .`, a letter or
/// digit at both ends.
fn is_label_value(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 63 && is_plain(text) && edge(text.chars().next()) && edge(text.chars().last())
}

/// Whether a text is a plain name: one that can be a file's wherever it comes from.
fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 200
        && !text.starts_with('.')
        && !text.contains("..")
        && (text.chars()).all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// The beginning of an object's name, as a label may hold it.
fn shortened(name: &str) -> String {
    let mut short: String = name.chars().take(63).collect();
    while !short.is_empty() && !is_label_value(&short) {
        short.pop();
    }
    short
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::spec::{Action, Cmd, EnvText};
    use crate::value::{Place, Value};

    fn node(name: &str) -> Node {
        let cmd = Cmd {
            program: EnvText::literal("./vm_allocation/b.sh"),
            args: Vec::new(),
            env: Vec::new(),
        };
        Node {
            name: name.parse().unwrap(),
            at: Place::NONE,
            id: None,
            prev_nodes: Vec::new(),
            action: Action::Cmd(cmd),
            action_shown: Value::Null,
            param: vec![("ip".to_owned(), Value::from("10.6.1.110"))],
            decision_expr: None,
            timeout: None,
        }
    }

    fn run() -> RunPods {
        RunPods {
            name: "vm-allocation-x7k2p".to_owned(),
            uid: "0f7b1f0e-6a5c-4c3e-9d0a-2b8a4b8f6c11".to_owned(),
            namespace: "default".to_owned(),
            image: "ghcr.io/apscli/base:0.1.0".to_owned(),
            delivery: Delivery::InImage,
            scripts: Vec::new(),
            scripts_hash: None,
            secrets: Vec::new(),
            overrides: PodOverrides::default(),
            service_account: None,
            token: false,
            grace: Duration::from_secs(30),
        }
    }

    fn pod(run: &RunPods, node: &Node) -> Pod {
        build(run, node, Attempt::FIRST, None).unwrap()
    }

    fn work(pod: &Pod) -> Work {
        let env = pod.spec.as_ref().unwrap().containers[0].env.as_ref();
        Work::from_json(env.unwrap()[0].value.as_ref().unwrap()).unwrap()
    }

    #[test]
    fn a_bucket_is_for_ever() {
        assert_eq!(bucket("00000000-0000-0000-0000-000000000000"), 18);
        assert_eq!(bucket(""), 0xe3 % BUCKETS);
    }

    /// An operator that finds the pod of one that knew of no such hash takes it for its own.
    #[test]
    fn scripts_hash_is_in_decision_but_not_in_its_hash() {
        let (mut run, node) = (run(), node("b"));
        let before = pod(&run, &node);
        assert_eq!(work(&before).scripts, None);
        run.scripts_hash = Some("0123".to_owned());
        let after = pod(&run, &node);
        assert_eq!(work(&after).scripts.as_deref(), Some("0123"));
        let hash =
            |pod: &Pod| pod.metadata.annotations.as_ref().unwrap()[ANNOTATION_DECISION].clone();
        assert_eq!(hash(&before), hash(&after));
        assert_eq!(decision_hash(&run, &node), Ok(hash(&after)));
    }

    #[test]
    fn a_simple_pod_is_small_and_always_the_same() {
        let mut run = run();
        run.scripts = vec![Scripts {
            config_map: "apscli-0123456789abcdef".to_owned(),
            path: String::new(),
            mode: SCRIPT_MODE,
            keys: vec!["b.sh".to_owned()],
        }];
        let json = serde_json::to_string(&pod(&run, &node("b"))).unwrap();
        println!("a simple pod: {} bytes", json.len());
        assert!(json.len() < 2500, "{} bytes: {json}", json.len());
        assert_eq!(serde_json::to_string(&pod(&run, &node("b"))).unwrap(), json);
        run.delivery = Delivery::InitCopy {
            image: run.image.clone(),
        };
        let json = serde_json::to_string(&pod(&run, &node("b"))).unwrap();
        println!("a pod with an init copy: {} bytes", json.len());
        assert!(json.len() < 3500, "{} bytes: {json}", json.len());
    }

    #[test]
    fn names_are_of_run_node_and_attempt_and_nothing_else() {
        let name = |uid: &str, node: &str, attempt| pod_name(uid, &node.parse().unwrap(), attempt);
        let first = name("u", "a", Attempt::FIRST);
        // Known for ever: an upgraded operator must find the pods of the old one.
        assert_eq!(first, "apscli-e4d890a65bb29e74cae62f4d05fb048b");
        let second = Attempt::FIRST.next();
        let others = [
            name("u", "a", second),
            name("u", "b", Attempt::FIRST),
            name("ua", "a", Attempt::FIRST),
            name("u", &"Ünï.x".repeat(60), Attempt::FIRST),
        ];
        for other in others {
            assert_ne!(other, first);
            assert_eq!(other.len(), 39);
            let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            assert!(other.chars().all(valid), "{other}");
        }
        let long = node(&"A node/of: any name. ".repeat(10));
        let mut run = run();
        run.name = format!("{}.{}", "x".repeat(62), "y".repeat(100));
        let metadata = pod(&run, &long).metadata;
        let labels = metadata.labels.unwrap();
        assert!(!labels.contains_key(NODE), "no label can hold that name");
        assert_eq!(labels[LABEL_RUN], "x".repeat(62));
        assert_eq!(metadata.annotations.unwrap()[NODE], long.name.as_str());
    }

    #[test]
    fn a_pod_is_restricted_and_belongs_to_its_run() {
        let pod = pod(&run(), &node("b"));
        let owner = &pod.metadata.owner_references.as_ref().unwrap()[0];
        assert_eq!(
            (owner.controller, owner.block_owner_deletion),
            (Some(true), None)
        );
        assert_eq!(owner.uid, run().uid);
        assert_eq!(
            pod.metadata.finalizers.as_deref(),
            Some(&[FINALIZER.to_owned()][..])
        );
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!(spec.automount_service_account_token, Some(false));
        let json = serde_json::to_value(spec).unwrap();
        assert_eq!(
            json["securityContext"],
            serde_json::json!({"runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"}})
        );
        assert_eq!(
            json["containers"][0]["securityContext"],
            serde_json::json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"]}})
        );
        assert_eq!(json["restartPolicy"], "Never");
        assert_eq!(json["enableServiceLinks"], false);
        assert_eq!(json["terminationGracePeriodSeconds"], 32);
    }

    #[test]
    fn a_token_comes_only_with_an_account_and_only_where_asked_for() {
        let mut run = run();
        run.token = true;
        let token = |run: &RunPods| {
            let spec = pod(run, &node("b")).spec.unwrap();
            spec.automount_service_account_token
        };
        assert_eq!(token(&run), Some(false), "not that of the default account");
        run.service_account = Some("deployer".to_owned());
        assert_eq!(token(&run), Some(true));
        run.token = false;
        assert_eq!(token(&run), Some(false));
    }

    #[test]
    fn secrets_come_only_into_pods_of_nodes_that_use_them() {
        let mut run = run();
        let param = |param: &str, secret: &str| SecretParam {
            param: param.to_owned(),
            secret: secret.to_owned(),
            key: "k".to_owned(),
        };
        run.secrets = vec![
            param("pass\"word", "s1"),
            param("other", "s2"),
            param("unused", "s3"),
        ];
        let mut node = node("b");
        let token = secret_token(&run.uid, "pass\"word");
        let cmd = Cmd {
            program: EnvText::literal("x"),
            args: vec![EnvText::literal(secret_token(&run.uid, "other"))],
            env: Vec::new(),
        };
        node.action = Action::Cmd(cmd);
        node.param = vec![("p".to_owned(), Value::from(format!("a {token}")))];
        let pod = pod(&run, &node);
        let work = work(&pod);
        let file = format!("{SECRETS}/_{}", decision::hash("pass\"word"));
        assert_eq!(work.secrets[&token], file);
        assert_eq!(work.secrets.len(), 2);
        let json = serde_json::to_value(&pod.spec).unwrap();
        let volumes = json["volumes"].as_array().unwrap();
        let volume = volumes.iter().find(|volume| volume["name"] == "secrets");
        let sources = &volume.unwrap()["projected"]["sources"];
        assert_eq!(sources[0]["secret"]["name"], "s1");
        assert_eq!(
            sources[1]["secret"],
            serde_json::json!({"name": "s2", "items": [{"key": "k", "path": "other"}]})
        );
        assert_eq!(sources.as_array().unwrap().len(), 2);
    }

    #[test]
    fn scripts_stand_in_one_read_only_folder() {
        let mut run = run();
        let scripts = |path: &str, mode| Scripts {
            config_map: "c".to_owned(),
            path: path.to_owned(),
            mode,
            keys: vec!["a.sh".to_owned()],
        };
        run.scripts = vec![
            scripts("", SCRIPT_MODE),
            scripts("lib/x", SCRIPT_MODE),
            scripts("", 0o444),
        ];
        let spec = pod(&run, &node("b")).spec.unwrap();
        let json = serde_json::to_value(&spec).unwrap();
        let sources = &json["volumes"][2]["projected"]["sources"];
        assert_eq!(sources[0], serde_json::json!({"configMap": {"name": "c"}}));
        assert_eq!(
            sources[1]["configMap"]["items"],
            serde_json::json!([{"key": "a.sh", "path": "lib/x/a.sh"}])
        );
        assert_eq!(
            sources[2]["configMap"]["items"],
            serde_json::json!([{"key": "a.sh", "path": "a.sh", "mode": 0o444}])
        );
        let mount = &json["containers"][0]["volumeMounts"][2];
        assert_eq!(
            (&mount["mountPath"], &mount["readOnly"]),
            (&SCRIPTS.into(), &true.into())
        );
        for wrong in ["/etc", "../x", "a/../b", "./a", "a/..b"] {
            run.scripts = vec![scripts(wrong, SCRIPT_MODE)];
            let error = build(&run, &node("b"), Attempt::FIRST, None).unwrap_err();
            assert!(matches!(error, BuildError::ScriptPath { .. }), "{wrong}");
        }
    }

    #[test]
    fn the_kubelet_keeps_the_earlier_deadline_and_the_pod_says_whose_it_is() {
        let deadline = |timeout: Option<u64>, remaining: Option<u64>| {
            let mut node = node("b");
            node.timeout = timeout.map(Duration::from_millis);
            let remaining = remaining.map(Duration::from_millis);
            let pod = build(&run(), &node, Attempt::FIRST, remaining).unwrap();
            let whose = pod.metadata.annotations.as_ref().unwrap();
            let whose = whose.get(ANNOTATION_DEADLINE).cloned();
            (pod.spec.unwrap().active_deadline_seconds, whose)
        };
        let is = |seconds, whose: &str| (Some(seconds), Some(whose.to_owned()));
        assert_eq!(deadline(None, None), (None, None));
        assert_eq!(deadline(Some(1500), None), is(37, "node"));
        assert_eq!(deadline(Some(1500), Some(10_000)), is(15, "run"));
        assert_eq!(deadline(Some(1500), Some(100_000)), is(37, "node"));
        assert_eq!(deadline(None, Some(0)), is(5, "run"));
        assert_eq!(
            deadline(None, Some(u64::MAX)),
            is(i64::from(i32::MAX), "run")
        );
    }

    #[test]
    fn what_is_left_of_the_runs_time_is_no_part_of_the_decision() {
        let mut node = node("b");
        node.timeout = Some(Duration::from_secs(60));
        let hash = |remaining| {
            let pod = build(&run(), &node, Attempt::FIRST, remaining).unwrap();
            pod.metadata.annotations.unwrap()[ANNOTATION_DECISION].clone()
        };
        assert_eq!(hash(None), hash(Some(Duration::from_secs(1))));
        assert_eq!(hash(None), decision_hash(&run(), &node).unwrap());
        let pod = pod(&run(), &node);
        assert_eq!(work(&pod).timeout_ms, Some(60_000));
    }

    #[test]
    fn an_author_can_say_more_but_not_in_our_name() {
        let mut run = run();
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            let pairs = pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            pairs.collect()
        };
        run.overrides.labels = map(&[
            ("team", "red"),
            (LABEL_RUN_UID, "other"),
            (MANAGER_LABEL, "me"),
        ]);
        run.overrides.annotations = map(&[(ANNOTATION_ATTEMPT, "9"), ("note", "n")]);
        run.overrides.image_pull_secrets = vec!["pull".to_owned()];
        let pod = pod(&run, &node("b"));
        let labels = pod.metadata.labels.unwrap();
        assert_eq!(
            (labels["team"].as_str(), &labels[LABEL_RUN_UID]),
            ("red", &run.uid)
        );
        assert_eq!(labels[MANAGER_LABEL], MANAGER);
        let annotations = pod.metadata.annotations.unwrap();
        assert_eq!(
            (&*annotations[ANNOTATION_ATTEMPT], &*annotations["note"]),
            ("1", "n")
        );
    }

    fn any_name() -> impl Strategy<Value = String> {
        prop_oneof![
            "\\PC{1,300}",
            "[a-zA-Z0-9._-]{1,300}",
            "[-._]{1,300}",
            "[!-/:-@\\[-`{-~ ]{1,300}",
            "[\u{e9}\u{65e5}\u{1f600}]{1,75}",
        ]
    }

    proptest! {
        /// As an API server checks them: a pod that it refuses would be a node that cannot run.
        #[test]
        fn any_names_make_a_pod_that_is_taken(
            name in any_name(),
            other in any_name(),
            run_name in "[a-z0-9]([a-z0-9.-]{0,250}[a-z0-9])?",
        ) {
            let (Ok(name), Ok(other)) = (name.parse::<NodeName>(), other.parse::<NodeName>()) else {
                return Ok(());
            };
            let run = RunPods { name: run_name, ..run() };
            let named = |name: &NodeName| pod(&run, &node(name.as_str()));
            let metadata = named(&name).metadata;
            let pod_name = metadata.name.unwrap();
            prop_assert!(pod_name.len() <= 63);
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            prop_assert!(pod_name.chars().all(plain) && pod_name.starts_with("apscli-"));
            prop_assert_eq!(named(&other).metadata.name.unwrap() == pod_name, name == other);
            for value in metadata.labels.unwrap().into_values() {
                let edge = |c: char| c.is_ascii_alphanumeric();
                let inner = |c: char| edge(c) || matches!(c, '-' | '_' | '.');
                prop_assert!(value.len() <= 63 && value.chars().all(inner), "{}", value);
                prop_assert!(value.starts_with(edge) && value.ends_with(edge), "{}", value);
            }
            let annotations = metadata.annotations.unwrap();
            prop_assert_eq!(annotations[NODE].as_str(), name.as_str());
        }
    }

    #[test]
    fn a_decision_too_large_for_an_environment_is_an_error_in_words() {
        let mut node = node("big one");
        node.param = vec![("p".to_owned(), Value::from("x".repeat(MAX_DECISION)))];
        let error = build(&run(), &node, Attempt::FIRST, None).unwrap_err();
        let words = error.to_string();
        assert!(
            words.contains("`big one`") && words.contains("98304"),
            "{words}"
        );
        assert!(matches!(error, BuildError::TooLarge { bytes, .. } if bytes > MAX_DECISION));
    }

    #[test]
    fn the_program_comes_by_copy_or_by_volume() {
        let mut run = run();
        run.delivery = Delivery::InitCopy {
            image: "i".to_owned(),
        };
        let json = serde_json::to_value(pod(&run, &node("b")).spec).unwrap();
        let init = &json["initContainers"][0];
        assert_eq!(init["command"][2], init["volumeMounts"][0]["mountPath"]);
        assert_eq!(
            init["securityContext"],
            json["containers"][0]["securityContext"]
        );
        let mount = &json["containers"][0]["volumeMounts"][2];
        assert_eq!(
            (&mount["mountPath"], &mount["readOnly"]),
            (&BIN.into(), &true.into())
        );
        run.delivery = Delivery::ImageVolume {
            image: "i".to_owned(),
        };
        let json = serde_json::to_value(pod(&run, &node("b")).spec).unwrap();
        assert_eq!(json["volumes"][2]["image"]["reference"], "i");
        let mount = &json["containers"][0]["volumeMounts"][2];
        assert_eq!(mount["subPath"], "apscli/bin");
    }
}
