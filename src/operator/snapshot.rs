//! Pinning: what a run runs is copied when it begins, and from then on only the copies are read.
//!
//! The copies are immutable `ConfigMaps` of the run's namespace, named by their content. Runs of
//! the same content share them: each is an owner of what it uses, so the garbage collector takes
//! a copy away with the last of its runs.
//!
//! What stands in the run's own spec is not copied, because it cannot change. Secrets are never
//! read: a text stands for each, which the pod replaces.
//!
//! Must not decide what a run runs, and must not change or take over an object that is not what
//! its name says.

mod parcel;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::api::service::{ParamDecl, ScriptSource};
use crate::api::workflow_run::{ExecutorKind, PodOverrides, WorkflowRun};
use crate::api::{GROUP, VERSION};
use crate::catalog::cluster::{self, Found, Written};
use crate::catalog::gzip::{self, GzipError};
use crate::executor::decision::secret_token;
use crate::executor::runner::Script;
use crate::executor::scripts;
use crate::template::{Limits, Params};
use crate::value::json::{self, Dialect};
use crate::value::{Budget, Value};

use super::client::{is_conflict, is_gone};
use super::context::Context;
use super::object;
use super::resolve::Unresolved;
use parcel::{Content, Name, Parcel};

/// Most owners of one object; for more runs, an equal one is made beside it. Each owner takes up
/// to 400 bytes, and all must fit beside 1 MiB of content.
const MOST_OWNERS: usize = 500;
/// How often a write is tried again at once, when somebody else wrote in between.
const TRIES: u32 = 8;
/// Most bytes of a document: of a text of the largest size, as JSON.
const DOCUMENT: usize = 2 * gzip::LARGEST;
/// Most bytes of all parameters from `ConfigMaps` of one run.
const PARAMS: usize = 2 * 1024 * 1024;
/// Most bytes of all scripts that one run has beside its processes; the runner takes no more.
const FILES: usize = 16 * 1024 * 1024;
/// The only form of the documents so far.
const FORM: u32 = 1;

/// What a run runs, as it was when it began. Empty but for `params` where all stands in the run's
/// own spec.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Pinned {
    /// The service; none: a template without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fqsn: Option<String>,
    /// Its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) version: Option<String>,
    /// Where it was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<String>,
    /// The template; none: it stands in the run's spec.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) template: Option<Written>,
    /// The service's image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) image: Option<String>,
    /// What carries out the service's nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) executor: Option<ExecutorKind>,
    /// Whether the service's processes have a network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) network: Option<bool>,
    /// Further properties of the service's pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pod: Option<PodOverrides>,
    /// The service's scripts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) scripts: Vec<PinnedScripts>,
    /// The parameters that the service declares.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) declared: Vec<ParamDecl>,
    /// The parameters of `paramsFrom`; they have a document of their own, so that runs with
    /// others share the service's.
    #[serde(skip)]
    pub(super) params: Option<Params>,
}

/// A copy of a `ConfigMap` of scripts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PinnedScripts {
    /// The copy, in the run's namespace.
    pub(super) config_map: String,
    /// The folder for the files, relative to that of the template; empty: that folder itself.
    pub(super) path: String,
    /// The permission bits of the files.
    pub(super) mode: i32,
    /// The files.
    pub(super) keys: Vec<String>,
    /// The SHA-256 of each file, in hexadecimal. Empty in copies of operators up to 0.1.0.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) hashes: BTreeMap<String, String>,
}

impl Pinned {
    /// What the files of all scripts together are, for the check that `apscli-node` makes before
    /// it starts anything: see [`scripts::manifest`]. None: there are no scripts, or an operator
    /// up to 0.1.0 made the copy, or the node could not read them to check them.
    pub(super) fn scripts_hash(&self) -> Option<String> {
        const READ_BY_ALL: i32 = 0o004;
        let mut files = BTreeMap::new();
        for scripts in &self.scripts {
            if scripts.mode & READ_BY_ALL == 0 {
                return None;
            }
            for key in &scripts.keys {
                let path = match scripts.path.as_str() {
                    "" => key.clone(),
                    folder => format!("{folder}/{key}"),
                };
                // Of two of one path the kubelet keeps the last, too.
                files.insert(path, scripts.hashes.get(key)?.clone());
            }
        }
        (!self.scripts.is_empty()).then(|| scripts::manifest(&files))
    }
}

/// Whether the names of all these copies hold the whole hash of what is inside, so that nobody can
/// have made another content of the same name.
pub(super) fn are_whole(names: &[String]) -> bool {
    let mut names = names.iter().map(|name| Name::of(name));
    names.all(|name| name.is_some_and(|name| name.is_whole()))
}

/// A document, and the form that it has.
#[derive(Serialize, Deserialize)]
struct Document<T> {
    form: u32,
    content: T,
}

/// The document of parameters.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct PinnedParams {
    values: BTreeMap<String, Value>,
    /// Names of those whose values stand in Secrets. The texts that stand for them differ from
    /// run to run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    secrets: Vec<String>,
}

impl PinnedParams {
    fn of(run_uid: &str, params: &Params) -> Self {
        let mut pinned = Self::default();
        for (name, value) in params {
            if *value == Value::String(secret_token(run_uid, name)) {
                pinned.secrets.push(name.clone());
            } else {
                pinned.values.insert(name.clone(), value.clone());
            }
        }
        pinned
    }

    fn into_params(self, run_uid: &str) -> Params {
        let mut params = self.values;
        for name in self.secrets {
            let token = secret_token(run_uid, &name);
            params.insert(name, Value::String(token));
        }
        params
    }
}

fn to_document<T: Serialize>(content: &T) -> Result<Vec<u8>, Unresolved> {
    let document = Document {
        form: FORM,
        content,
    };
    serde_json::to_vec(&document).map_err(|error| {
        Unresolved::never(
            "NotPinned",
            format!("what is to be run cannot be written as JSON: {error}"),
        )
    })
}

fn from_document<T: for<'de> Deserialize<'de>>(document: &[u8]) -> Result<T, String> {
    #[derive(Deserialize)]
    struct Form {
        form: u32,
    }
    let Form { form } = serde_json::from_slice(document).map_err(|error| error.to_string())?;
    if form != FORM {
        return Err(format!(
            "it is of form {form}, expected {FORM}: a newer operator made it"
        ));
    }
    let document: Document<T> =
        serde_json::from_slice(document).map_err(|error| error.to_string())?;
    Ok(document.content)
}

/// Copies what a run runs. Gives it back as it will be read from the copies, and their names.
pub(super) async fn pin(
    context: &Context,
    run: &WorkflowRun,
    service: Option<Found>,
    text: Option<(String, String)>,
    params: Option<Params>,
) -> Result<(Pinned, Vec<String>), Unresolved> {
    let keeper = Keeper::new(&context.client, &context.snapshots, run);
    keeper.pin(run, service, text, params).await
}

/// Reads what a run runs from the copies with these names. A copy that is gone, or is not what
/// its name says, cannot be made again: what it was made from may have changed.
pub(super) async fn read(
    context: &Context,
    run: &WorkflowRun,
    names: &[String],
    most: usize,
) -> Result<Pinned, Unresolved> {
    let namespace = run.namespace().unwrap_or_default();
    let maps: Api<ConfigMap> = Api::namespaced(context.client.clone(), &namespace);
    let mut found = Vec::new();
    let mut bytes = 0;
    for name in names {
        // One that can have no such name, or cannot be read, is none of ours.
        let map = context
            .insist("read a snapshot", || async {
                let _turn = context.reads.acquire().await;
                object::get(&maps, name).await
            })
            .await;
        let map = map.ok().flatten();
        bytes += map.as_ref().map_or(0, content_bytes);
        is_within(bytes, most, || "what it runs, as it was copied".to_owned())?;
        found.push((name.as_str(), map));
    }
    unpack_within(run, found, most)
}

/// What a `ConfigMap` holds, in bytes.
fn content_bytes(map: &ConfigMap) -> usize {
    let texts = map.data.iter().flatten();
    let texts = texts.map(|(name, text)| name.len() + text.len());
    let others = map.binary_data.iter().flatten();
    let others = others.map(|(name, bytes)| name.len() + bytes.0.len());
    texts.chain(others).sum()
}

/// Whether so many bytes may be read; where not, a large run has to wait for its turn, and one that is
/// larger than any may be is none.
fn is_within(bytes: usize, most: usize, what: impl Fn() -> String) -> Result<(), Unresolved> {
    if bytes <= most {
        return Ok(());
    }
    if most < gzip::LARGEST {
        return Err(Unresolved::Large);
    }
    let message = format!("{} is more than {most} bytes; expected less", what());
    Err(Unresolved::never("TooLarge", message))
}

/// The service's scripts as files, by the copy that has them.
pub(super) async fn scripts(
    context: &Context,
    run: &WorkflowRun,
    pinned: &Pinned,
) -> Result<Vec<Vec<Script>>, Unresolved> {
    let namespace = run.namespace().unwrap_or_default();
    let maps: Api<ConfigMap> = Api::namespaced(context.client.clone(), &namespace);
    let mut all = Vec::new();
    let mut bytes = 0;
    for scripts in &pinned.scripts {
        let name = &scripts.config_map;
        let map = context
            .insist("read a snapshot", || async {
                let _turn = context.reads.acquire().await;
                object::get(&maps, name).await
            })
            .await;
        let map = map.ok().flatten();
        let broken = |why: String| {
            let message = format!("the scripts of this run cannot be read any more: {why}");
            Unresolved::never("SnapshotBroken", message)
        };
        let Some(map) = map else {
            return Err(broken(format!("{name} is gone")));
        };
        let checked = Name::of(name).ok_or_else(|| format!("{name} is no name of a copy"));
        checked
            .and_then(|name| parcel::check_scripts(&name, &map))
            .map_err(broken)?;
        bytes += content_bytes(&map);
        if bytes > FILES {
            let message = format!("its scripts are more than {FILES} bytes; expected less");
            return Err(Unresolved::never("TooLarge", message));
        }
        let files = scripts.keys.iter().filter_map(|key| {
            let content = cluster::bytes(&map, key)?;
            let path = match scripts.path.as_str() {
                "" => key.clone(),
                folder => format!("{folder}/{key}"),
            };
            Some(Script {
                path,
                mode: u32::try_from(scripts.mode).unwrap_or(0o555),
                content: STANDARD.encode(content),
            })
        });
        all.push(files.collect());
    }
    Ok(all)
}

/// What a run runs, from its copies as they were found.
pub(super) fn unpack(
    run: &WorkflowRun,
    found: Vec<(&str, Option<ConfigMap>)>,
) -> Result<Pinned, Unresolved> {
    unpack_within(run, found, DOCUMENT)
}

/// The same, where a document is at most so many bytes.
fn unpack_within(
    run: &WorkflowRun,
    found: Vec<(&str, Option<ConfigMap>)>,
    most: usize,
) -> Result<Pinned, Unresolved> {
    // As JSON a text takes more.
    let most = if most < gzip::LARGEST { most } else { DOCUMENT };
    let namespace = run.namespace().unwrap_or_default();
    let lost = |reason: &str, why: String| {
        let message = format!(
            "what this run runs was copied to ConfigMaps of namespace {namespace} when it began, \
             and cannot be read from them any more: {why}"
        );
        Err(Unresolved::never(reason, message))
    };
    let (mut program, mut params) = (Vec::new(), Vec::new());
    for (text, map) in found {
        let Some(name) = Name::of(text) else {
            return lost(
                "SnapshotBroken",
                format!("{text} is no name of such a copy"),
            );
        };
        let Some(map) = map else {
            return lost("SnapshotGone", format!("{text} is gone"));
        };
        match name.content {
            Content::Service | Content::Template => program.push((name, map)),
            Content::Params => params.push((name, map)),
            Content::Scripts => {
                if let Err(why) = parcel::check_scripts(&name, &map) {
                    return lost("SnapshotBroken", why);
                }
            }
        }
    }
    let mut pinned = Pinned::default();
    if !program.is_empty() {
        let document = match parcel::unpack(&program, most) {
            Err(parcel::Broken::TooLarge) if most < DOCUMENT => return Err(Unresolved::Large),
            document => document.map_err(|why| why.to_string()),
        };
        match document.and_then(|document| from_document(&document)) {
            Ok(read) => pinned = read,
            Err(why) => return lost("SnapshotBroken", why),
        }
    }
    let run_uid = run.metadata.uid.as_deref().unwrap_or_default();
    if params.is_empty() {
        pinned.params = secrets_only(run);
    } else {
        let document = match parcel::unpack(&params, most) {
            Err(parcel::Broken::TooLarge) if most < DOCUMENT => return Err(Unresolved::Large),
            document => document.map_err(|why| why.to_string()),
        };
        match document.and_then(|document| from_document::<PinnedParams>(&document)) {
            Ok(read) => pinned.params = Some(read.into_params(run_uid)),
            Err(why) => return lost("SnapshotBroken", why),
        }
    }
    Ok(pinned)
}

/// Whether some parameters come from what may change.
fn has_config_maps(run: &WorkflowRun) -> bool {
    let sources = &run.spec.params_from;
    sources.iter().any(|source| source.config_map.is_some())
}

/// The texts that stand for the run's secrets; none: it has no `paramsFrom`.
fn secrets_only(run: &WorkflowRun) -> Option<Params> {
    let sources = &run.spec.params_from;
    let secrets = sources.iter().filter_map(|source| source.secret.as_ref());
    (!sources.is_empty()).then(|| secrets.map(|it| token(run, &it.param)).collect())
}

fn token(run: &WorkflowRun, param: &str) -> (String, Value) {
    let uid = run.metadata.uid.as_deref().unwrap_or_default();
    let token = secret_token(uid, param);
    (param.to_owned(), Value::String(token))
}

/// The parameters of a run's `paramsFrom`; none: it has no such.
pub(super) async fn params_from(
    context: &Context,
    run: &WorkflowRun,
    most: usize,
) -> Result<Option<Params>, Unresolved> {
    let namespace = run.namespace().unwrap_or_default();
    let maps: Api<ConfigMap> = Api::namespaced(context.client.clone(), &namespace);
    let mut params = Params::new();
    let mut bytes = 0;
    let mut values = Budget::of(Limits::CLUSTER.values);
    for (place, source) in run.spec.params_from.iter().enumerate() {
        if let Some(secret) = &source.secret {
            params.extend([token(run, &secret.param)]);
        }
        let Some(wanted) = &source.config_map else {
            continue;
        };
        let what = format!(
            "ConfigMap {namespace}/{} of spec.paramsFrom[{place}]",
            wanted.name
        );
        let _turn = context.reads.acquire().await;
        let map = object::get(&maps, &wanted.name).await;
        match map.map_err(|error| refused(&format!("cannot read the {what}"), &error))? {
            Some(map) => {
                bytes += content_bytes(&map);
                is_within(bytes.min(PARAMS), most.min(PARAMS), || what.clone())?;
                if bytes > PARAMS {
                    let message = format!(
                        "with the {what} the run has more than {PARAMS} bytes of parameters; \
                         expected less"
                    );
                    return Err(Unresolved::never("TooLarge", message));
                }
                for (name, text) in map.data.into_iter().flatten() {
                    params.insert(name, param(text, &mut values));
                }
            }
            None if wanted.optional == Some(true) => {}
            None => {
                let message = format!("there is no {what}");
                return Err(Unresolved::wait("ParamsNotFound", message));
            }
        }
    }
    Ok((!run.spec.params_from.is_empty()).then_some(params))
}

/// A value that is JSON is read as JSON, any other is a text; so is one of more values than are left.
fn param(text: String, values: &mut Budget) -> Value {
    match json::read_within(&text, Dialect::Strict, values) {
        Ok(tree) => tree.into_value(),
        Err(_) => Value::String(text),
    }
}

/// The template of a run's `templateFrom`: what to call it, and its text.
pub(super) async fn template_from(
    context: &Context,
    run: &WorkflowRun,
    most: usize,
) -> Result<(String, String), Unresolved> {
    let namespace = run.namespace().unwrap_or_default();
    let maps: Api<ConfigMap> = Api::namespaced(context.client.clone(), &namespace);
    let sources = &run.spec.template_from;
    // The last one only: 64 of them may be named.
    let mut read: Option<(&str, ConfigMap)> = None;
    let mut bytes = 0;
    let mut parts = Vec::new();
    for (place, source) in sources.iter().enumerate() {
        let what = format!(
            "ConfigMap {namespace}/{} of spec.templateFrom[{place}]",
            source.config_map
        );
        if read
            .as_ref()
            .is_none_or(|(name, _)| *name != source.config_map)
        {
            let _turn = context.reads.acquire().await;
            let map = object::get(&maps, &source.config_map).await;
            let map = map
                .map_err(|error| refused(&format!("cannot read the {what}"), &error))?
                .ok_or_else(|| {
                    Unresolved::wait("TemplateNotFound", format!("there is no {what}"))
                })?;
            read = Some((&source.config_map, map));
        }
        let map = read.as_ref().map(|(_, map)| map);
        let part = map.and_then(|map| cluster::bytes(map, &source.key));
        let part = part.ok_or_else(|| {
            Unresolved::wait(
                "TemplateNotFound",
                format!("there is no key {} in the {what}", source.key),
            )
        })?;
        bytes += part.len();
        is_within(bytes, most, || format!("the template with the {what}"))?;
        parts.push(part.to_vec());
    }
    drop(read);
    let name = match (sources.as_slice(), sources.len()) {
        ([], _) => String::new(),
        ([only], _) => format!("ConfigMap {namespace}/{} key {}", only.config_map, only.key),
        ([first, ..], parts) => format!(
            "ConfigMap {namespace}/{} and others ({parts} parts), from key {}",
            first.config_map, first.key
        ),
    };
    match join(&parts, most) {
        Ok(text) => Ok((name, text)),
        Err(NoText::TooLarge) if most < gzip::LARGEST => Err(Unresolved::Large),
        Err(why) => {
            let reason = match why {
                NoText::TooLarge => "TooLarge",
                NoText::Invalid(_) => "InvalidTemplate",
            };
            Err(Unresolved::never(reason, format!("{name}: {why}")))
        }
    }
}

/// Why parts are no text.
#[derive(Debug, thiserror::Error)]
enum NoText {
    #[error("{}", GzipError::TooLarge)]
    TooLarge,
    #[error("{0}")]
    Invalid(String),
}

impl From<GzipError> for NoText {
    fn from(error: GzipError) -> Self {
        match error {
            GzipError::TooLarge => Self::TooLarge,
            other => Self::Invalid(other.to_string()),
        }
    }
}

/// Joins the parts of a text: each of them, or the joined whole, may be compressed.
fn join(parts: &[Vec<u8>], most: usize) -> Result<String, NoText> {
    let whole = parts.concat();
    let is_packed = gzip::is_gzip(&whole);
    // Compressed parts in a row are a compressed whole too.
    let joined = unfold(whole, most).and_then(text);
    match joined {
        Err(NoText::Invalid(_)) if parts.len() > 1 => match unfold_each(parts, most) {
            Ok(all) => text(all),
            // What is wrong with the whole says more where the whole was meant.
            Err(_) if is_packed => joined,
            Err(why) => Err(why),
        },
        joined => joined,
    }
}

fn unfold(bytes: Vec<u8>, most: usize) -> Result<Vec<u8>, NoText> {
    if gzip::is_gzip(&bytes) {
        Ok(gzip::decompress_within(&bytes, most)?)
    } else {
        Ok(bytes)
    }
}

fn text(bytes: Vec<u8>) -> Result<String, NoText> {
    cluster::utf8(bytes).map_err(NoText::Invalid)
}

/// Joins the parts of a text that are compressed each for itself. All together they may not unfold
/// to more than one.
fn unfold_each(parts: &[Vec<u8>], most: usize) -> Result<Vec<u8>, NoText> {
    let mut all = Vec::new();
    for (place, part) in parts.iter().enumerate() {
        let left = most.saturating_sub(all.len());
        let part = unfold(part.clone(), left).map_err(|why| match why {
            NoText::TooLarge => NoText::TooLarge,
            NoText::Invalid(why) => NoText::Invalid(format!("part {place}: {why}")),
        })?;
        all.extend(part);
        if all.len() > most {
            return Err(NoText::TooLarge);
        }
    }
    Ok(all)
}

/// What an answer of the API server means for a run.
fn refused(what: &str, error: &kube::Error) -> Unresolved {
    let message = format!("{what}: {error}");
    match error {
        kube::Error::Api(status) if [400, 413, 422].contains(&status.code) => {
            Unresolved::never("NotPinned", message)
        }
        // Said of its name, which is fixed with the run or pinned with its service.
        kube::Error::BuildRequest(_) => Unresolved::never("InvalidName", message),
        _ => Unresolved::wait("NotPinned", message),
    }
}

/// Makes copies for one run.
struct Keeper<'a> {
    client: &'a Client,
    snapshots: &'a Snapshots,
    namespace: String,
    owner: OwnerReference,
}

impl<'a> Keeper<'a> {
    fn new(client: &'a Client, snapshots: &'a Snapshots, run: &WorkflowRun) -> Self {
        Self {
            client,
            snapshots,
            namespace: run.namespace().unwrap_or_default(),
            owner: OwnerReference {
                api_version: format!("{GROUP}/{VERSION}"),
                kind: "WorkflowRun".to_owned(),
                name: run.name_any(),
                uid: run.metadata.uid.clone().unwrap_or_default(),
                // There may be many, and a run is deleted without waiting for it.
                controller: None,
                block_owner_deletion: None,
            },
        }
    }

    async fn pin(
        &self,
        run: &WorkflowRun,
        service: Option<Found>,
        text: Option<(String, String)>,
        params: Option<Params>,
    ) -> Result<(Pinned, Vec<String>), Unresolved> {
        let mut names = Vec::new();
        let (mut pinned, content) = match (service, text) {
            (Some(found), _) => {
                let pinned = self.service(found, &mut names).await?;
                (pinned, Some(Content::Service))
            }
            (None, Some((name, text))) => {
                let pinned = Pinned {
                    source: Some(name.clone()),
                    template: Some(Written::Text { name, text }),
                    ..Pinned::default()
                };
                (pinned, Some(Content::Template))
            }
            (None, None) => (Pinned::default(), None),
        };
        if let Some(content) = content {
            let document = to_document(&pinned)?;
            self.keep_all(
                &parcel::pack(content, &self.namespace, &document),
                &mut names,
            )
            .await?;
            // After a restart it is read from there: it must be the same now.
            pinned = from_document(&document).map_err(|why| Unresolved::never("NotPinned", why))?;
        }
        pinned.params = params;
        if let (Some(params), true) = (&pinned.params, has_config_maps(run)) {
            let document = to_document(&PinnedParams::of(&self.owner.uid, params))?;
            self.keep_all(
                &parcel::pack(Content::Params, &self.namespace, &document),
                &mut names,
            )
            .await?;
        }
        Ok((pinned, names))
    }

    async fn service(&self, found: Found, names: &mut Vec<String>) -> Result<Pinned, Unresolved> {
        let authors: Api<ConfigMap> = Api::namespaced(self.client.clone(), &found.namespace);
        let mut scripts = Vec::new();
        for source in &found.scripts {
            let what = format!(
                "ConfigMap {}/{} with scripts of {}",
                found.namespace, source.config_map, found.source
            );
            let author = object::get(&authors, &source.config_map).await;
            let author = author
                .map_err(|error| refused(&format!("cannot read the {what}"), &error))?
                .ok_or_else(|| {
                    Unresolved::wait("ScriptsNotFound", format!("there is no {what}"))
                })?;
            let path = source.path.clone().unwrap_or_default();
            let mode = source.mode.unwrap_or(ScriptSource::DEFAULT_MODE);
            scripts.push(self.scripts(&author, path, mode, names).await?);
        }
        for files in &found.files {
            for portion in parcel::portions(files) {
                let (path, mode) = (files.path.clone(), ScriptSource::DEFAULT_MODE);
                scripts.push(self.scripts(&portion, path, mode, names).await?);
            }
        }
        Ok(Pinned {
            fqsn: Some(found.fqsn),
            version: Some(found.version),
            source: Some(found.source),
            template: Some(found.template),
            image: found.image,
            executor: found.executor,
            network: found.network,
            pod: found.pod,
            scripts,
            declared: found.params,
            params: None,
        })
    }

    async fn scripts(
        &self,
        author: &ConfigMap,
        path: String,
        mode: i32,
        names: &mut Vec<String>,
    ) -> Result<PinnedScripts, Unresolved> {
        let parcel = parcel::pack_scripts(&self.namespace, author);
        let config_map = self.keep(&parcel).await?;
        if !names.contains(&config_map) {
            names.push(config_map.clone());
        }
        Ok(PinnedScripts {
            config_map,
            path,
            mode,
            keys: parcel::keys(author),
            hashes: parcel::hashes(author),
        })
    }

    async fn keep_all(
        &self,
        parcels: &[Parcel],
        names: &mut Vec<String>,
    ) -> Result<(), Unresolved> {
        for parcel in parcels {
            names.push(self.keep(parcel).await?);
        }
        Ok(())
    }

    /// Sees to it that a parcel is there and that this run is one of its owners. Gives the name
    /// of the one that it is an owner of.
    async fn keep(&self, parcel: &Parcel) -> Result<String, Unresolved> {
        let slot = self.snapshots.slot(&self.namespace, &parcel.name);
        lock(&slot.waiting).push(self.owner.clone());
        let mut done = slot.turn.lock().await;
        if let Some(name) = done.remove(&self.owner.uid) {
            return Ok(name);
        }
        let mut batch = vec![self.owner.clone()];
        {
            let mut waiting = lock(&slot.waiting);
            waiting.retain(|owner| owner.uid != self.owner.uid);
            while batch.len() < MOST_OWNERS {
                let Some(owner) = waiting.pop() else { break };
                batch.push(owner);
            }
        }
        let kept = self.keep_for(parcel, &batch).await;
        let others = batch.into_iter().skip(1);
        match &kept {
            Ok(name) => done.extend(others.map(|owner| (owner.uid, name.clone()))),
            // Each tries again for itself, and so learns why.
            Err(_) => lock(&slot.waiting).extend(others),
        }
        kept
    }

    async fn keep_for(
        &self,
        parcel: &Parcel,
        owners: &[OwnerReference],
    ) -> Result<String, Unresolved> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        for copy in 0.. {
            let parcel = parcel.copy(copy);
            match keep_copy(&maps, &parcel, owners).await? {
                Room::Kept => return Ok(parcel.name.to_string()),
                Room::Full => {}
            }
        }
        Err(Unresolved::wait(
            "NotPinned",
            "there is no room for the snapshot",
        ))
    }
}

/// Whether an object had room for more owners.
enum Room {
    Kept,
    Full,
}

/// Sees to it that this object is there, with these owners among its own.
async fn keep_copy(
    maps: &Api<ConfigMap>,
    parcel: &Parcel,
    owners: &[OwnerReference],
) -> Result<Room, Unresolved> {
    let name = parcel.name.to_string();
    let namespace = parcel.map.namespace().unwrap_or_default();
    let what = format!("ConfigMap {namespace}/{name}, which is to hold what the run runs");
    let failed = |error: &kube::Error| refused(&format!("cannot write the {what}"), error);
    // Parameters are seldom those of another run; all else mostly is.
    let mut look = parcel.name.content != Content::Params;
    for tries in 0..TRIES {
        if tries > 1 {
            tokio::time::sleep(Duration::from_millis(20 << tries)).await;
        }
        let found = if look {
            let found = object::get(maps, &name).await;
            found.map_err(|error| refused(&format!("cannot read the {what}"), &error))?
        } else {
            None
        };
        look = true;
        let Some(found) = found else {
            let mut map = parcel.map.clone();
            map.metadata.owner_references = Some(owners.to_vec());
            match maps.create(&PostParams::default(), &map).await {
                Ok(_) => return Ok(Room::Kept),
                Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => continue,
                Err(error) => return Err(failed(&error)),
            }
        };
        if let Some(why) = parcel.differs(&found) {
            let message = format!(
                "the {what}, is there already and was not made by apscli: {why}. Delete it and \
                 make the run anew"
            );
            return Err(Unresolved::never("SnapshotSquatted", message));
        }
        if found.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let known = found.owner_references();
        let is_known = |owner: &&OwnerReference| known.iter().any(|it| it.uid == owner.uid);
        let new: Vec<&OwnerReference> = owners.iter().filter(|owner| !is_known(owner)).collect();
        if new.is_empty() {
            return Ok(Room::Kept);
        }
        if !known.is_empty() && known.len() + new.len() > MOST_OWNERS {
            return Ok(Room::Full);
        }
        let all: Vec<&OwnerReference> = known.iter().chain(new).collect();
        // The version that the list was derived from: no other owner is lost, and an object that
        // was deleted meanwhile is not taken for this one.
        let patch = json!({
            "metadata": {
                "uid": found.metadata.uid,
                "resourceVersion": found.metadata.resource_version,
                "ownerReferences": all,
            }
        });
        let answer = maps
            .patch_metadata(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        match answer {
            Ok(_) => return Ok(Room::Kept),
            Err(error) if is_gone(&error) || is_conflict(&error) => {}
            Err(error) => return Err(failed(&error)),
        }
    }
    let message = format!("the {what}, is being changed by somebody else all the time");
    Err(Unresolved::wait("NotPinned", message))
}

/// The copies that are being written: who wants to be an owner of the same waits for who writes
/// already, and then is put in by one write with all others that waited.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
    slots: Mutex<BTreeMap<(String, Name), std::sync::Weak<Slot>>>,
}

#[derive(Debug, Default)]
struct Slot {
    /// Who writes holds it: the runs, by UID, for which it was done by another.
    turn: tokio::sync::Mutex<BTreeMap<String, String>>,
    waiting: Mutex<Vec<OwnerReference>>,
}

impl Snapshots {
    fn slot(&self, namespace: &str, name: &Name) -> Arc<Slot> {
        let mut slots = lock(&self.slots);
        let key = (namespace.to_owned(), name.clone());
        if let Some(slot) = slots.get(&key).and_then(std::sync::Weak::upgrade) {
            return slot;
        }
        slots.retain(|_, slot| slot.strong_count() > 0);
        let slot = Arc::new(Slot::default());
        slots.insert(key, Arc::downgrade(&slot));
        slot
    }
}

/// The data are whole whenever the lock is free, also after a panic elsewhere.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
