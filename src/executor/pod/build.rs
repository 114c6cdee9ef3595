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
    INIT_CONTAINER, LABEL_RUN, LABEL_RUN_UID, NODE,
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

/// The pod of an attempt. `remaining` is what is left of the run's own time.
pub fn build(
    run: &RunPods,
    node: &Node,
    attempt: Attempt,
    remaining: Option<Duration>,
) -> Result<Pod, BuildError> {
    let secrets = secrets(run, node)?;
    let json = json(&work(run, node, &secrets), node)?;
    let (deadline, keeper) = deadline(run, node, remaining);
    let Mounts {
        volumes,
        mounts,
        init,
    } = mounts(run, &secrets)?;
    let overrides = &run.overrides;
    let own = |map: &BTreeMap<String, String>| -> BTreeMap<String, String> {
        let is_ours = |name: &str| {
            name == MANAGER_LABEL
                || name.split_once('/').is_some_and(|(prefix, _)| {
                    prefix == GROUP
                })
        };
        (map.iter())
            .filter(|(name, _)| !is_ours(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    };
    let mut labels = own(&overrides.labels);
    labels.insert(MANAGER_LABEL.to_owned(), MANAGER.to_owned());
    labels.insert(LABEL_RUN_UID.to_owned(), run.uid.clone());
    labels.insert(LABEL_RUN.to_owned(), shortened(&run.name));
    if is_label_value(node.name.as_str()) {
        labels.insert(NODE.to_owned(), node.name.to_string());
    }
    let mut annotations = own(&overrides.annotations);
    annotations.insert(NODE.to_owned(), node.name.to_string());
    annotations.insert(ANNOTATION_ATTEMPT.to_owned(), attempt.to_string());
    annotations.insert(ANNOTATION_DECISION.to_owned(), decision::hash(&json));
    if let Some(keeper) = keeper {
        annotations.insert(ANNOTATION_DEADLINE.to_owned(), keeper.to_owned());
    }
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

/// The hash of an attempt's decision, as its pod's annotation `apscli.dev/decision` has it.
pub fn decision_hash(run: &RunPods, node: &Node) -> Result<String, BuildError> {
    let secrets = secrets(run, node)?;
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
    let node = || node.name.to_string();
    let json = work.to_json().map_err(|error| BuildError::Unwritable {
        node: node(),
        error: error.to_string(),
    })?;
    if json.len() > MAX_DECISION {
        return Err(BuildError::TooLarge {
            node: node(),
            bytes: json.len(),
        });
    }
    Ok(json)
}

/// A secret parameter that a node uses.
struct Mounted<'a> {
    it: &'a SecretParam,
    token: String,
    file: String,
}

/// The secret parameters that a node uses; no other is mounted into its pod.
fn secrets<'a>(run: &'a RunPods, node: &Node) -> Result<Vec<Mounted<'a>>, BuildError> {
    if run.secrets.is_empty() {
        return Ok(Vec::new());
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
    Ok(used)
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

struct Mounts {
    volumes: Vec<Volume>,
    mounts: Vec<VolumeMount>,
    init: Option<Container>,
}

fn mounts(run: &RunPods, secrets: &[Mounted<'_>]) -> Result<Mounts, BuildError> {
    let mut all = Mounts {
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
