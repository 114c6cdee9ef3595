//! The catalogue as the operator knows it, and the controller of `Service` objects: each is
//! checked, and its status says what is wrong with it. `ConfigMaps` of a catalogue belong to their
//! authors and have no status; what is wrong with them is said by an Event.
//!
//! Of several `Services` of a namespace that have the same FQSN the oldest counts. The others have
//! the condition `Ready` = `False` with the reason [`CONFLICT`], and there is an Event on both.
//!
//! Must not know runs.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use futures::stream::{SelectAll, select_all};
use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, Patch, PatchParams};
use kube::core::error_boundary::InvalidObject;
use kube::runtime::controller::{self, Action};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::Event;
use kube::{Client, Resource, ResourceExt};
use serde_json::json;
use tokio::time::Instant;

use crate::api::condition::{self, News, READY};
use crate::api::outside::{Bare, Outside};
use crate::api::service::{Service, ServiceSpec, ServiceStatus, ServiceVersion, check};
use crate::catalog::cluster::{self, Checks, Found, LabelledMaps, NotFound, seniority};

use super::context::Context;
use super::health::Health;
use super::hub::watch;
use super::memory::{Charge, Pool};
use super::metrics::Metrics;
use super::object;
use super::options::{Options, Scope};

/// How long after a change of a catalogue's `ConfigMaps` it is looked at: what is applied together
/// comes one by one.
const SETTLE: Duration = Duration::from_secs(2);
/// How long until a status that could not be written is written again.
const LATER: Duration = Duration::from_secs(10);
/// What the catalogue needs to know first, as readiness names it.
const SERVICES: &str = "the cache of Services";
const CONFIG_MAPS: &str = "the cache of catalogue ConfigMaps";
/// The reason of a condition or Event: another object has the same name in the catalog.
const CONFLICT: &str = "Conflict";
/// Most bytes of messages in a status; the object must stay far below 1 MiB.
const MESSAGES: usize = 64 * 1024;

/// Why a service's content was not taken in.
const TOO_LARGE: &str = "TooLarge";
/// Above so many bytes a service or a folder is checked when nothing else as large is read.
const LARGE: usize = 256 * 1024;

/// A `Service` that may be one that cannot be read.
type Guarded = Outside<Service>;

/// What is known of a kind: a store for each namespace that is watched, or one for all.
#[derive(Clone)]
pub(super) struct Shelf<K>(Vec<Store<K>>)
where
    K: reflector::Lookup<DynamicType = ()> + Clone + 'static;

impl<K> Shelf<K>
where
    K: reflector::Lookup<DynamicType = ()> + Clone + 'static,
{
    /// All objects as they were last seen.
    pub(super) fn state(&self) -> Vec<Arc<K>> {
        self.0.iter().flat_map(Store::state).collect()
    }

    /// Comes back when everything was listed once.
    async fn ready(&self) {
        // The writers live as long as the operator works.
        join_all(self.0.iter().map(Store::wait_until_ready)).await;
    }
}

/// What is known of the catalogue.
#[derive(Clone)]
pub(super) struct Shelves {
    services: Shelf<Guarded>,
    config_maps: Shelf<Outside<ConfigMap>>,
}

impl Shelves {
    /// Comes back when everything was listed once.
    pub(super) async fn ready(&self) {
        self.services.ready().await;
        self.config_maps.ready().await;
    }

    /// A service of the catalogue.
    pub(super) fn find(
        &self,
        asked: (&str, Option<&str>),
        namespace: &str,
        options: &Options,
        most: usize,
    ) -> Result<Found, NotFound> {
        let services = self.services.state();
        let config_maps = self.config_maps.state();
        cluster::find_within(
            asked,
            (namespace, &options.shared_namespace),
            options.catalog_config_maps,
            services
                .iter()
                .filter_map(|service| service.0.as_ref().ok()),
            config_maps.iter().filter_map(|map| map.0.as_ref().ok()),
            most,
        )
    }

    /// The `Service` that counts in the place of this one, as it is older and has the same FQSN in
    /// the same namespace.
    fn elder(&self, service: &Service) -> Option<Service> {
        let services = self.services.state();
        let services = services.iter().filter_map(|it| it.0.as_ref().ok());
        let own = seniority(service);
        (services.filter(|it| is_rival(it, service)))
            .filter(|it| seniority(*it) < own)
            .min_by_key(|it| seniority(*it))
            .cloned()
    }
}

/// Whether two `Services` have the same name in the catalog.
fn is_rival(one: &Service, other: &Service) -> bool {
    one.spec.fqsn == other.spec.fqsn
        && one.metadata.namespace == other.metadata.namespace
        && one.metadata.uid != other.metadata.uid
}

/// The other `Services` of one store with the name of this one.
fn rivals(store: &Store<Guarded>, service: &Guarded) -> Vec<ObjectRef<Guarded>> {
    let Ok(service) = &service.0 else {
        return Vec::new();
    };
    let others = store.state().into_iter();
    let others = others.filter(|it| it.0.as_ref().is_ok_and(|it| is_rival(it, service)));
    others.map(|it| ObjectRef::from_obj(&*it)).collect()
}

/// An object of a cache: what is kept of it, and what that takes.
trait Kept: Resource<DynamicType = ()> {
    /// Takes out what nobody here reads: that can be the larger part of an object.
    fn slim(&mut self);

    /// What it takes, in bytes; approximate.
    fn weight(&self) -> usize;

    /// Takes out all but what it is called; `why` stays in the place of the content.
    fn refuse(&mut self, why: String);
}

/// What an object takes beside its texts, in bytes.
const OBJECT: usize = 2 * 1024;
/// What an entry of a map takes beside its texts, in bytes.
const ENTRY: usize = 112;

fn slim_metadata(metadata: &mut ObjectMeta, annotations: &[&str], labels: &[&str]) {
    metadata.managed_fields = None;
    metadata.owner_references = None;
    metadata.finalizers = None;
    let keep = |map: &mut Option<BTreeMap<String, String>>, kept: &[&str]| {
        if let Some(map) = map {
            map.retain(|name, _| kept.contains(&name.as_str()));
        }
    };
    keep(&mut metadata.annotations, annotations);
    keep(&mut metadata.labels, labels);
}

fn note_refusal(metadata: &mut ObjectMeta, why: String) {
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.insert(cluster::REFUSED.to_owned(), why);
}

impl Kept for Service {
    fn slim(&mut self) {
        slim_metadata(&mut self.metadata, &[], &[]);
        self.spec.description = None;
        for version in &mut self.spec.versions {
            version.description = None;
        }
    }

    fn weight(&self) -> usize {
        let versions = self.spec.versions.iter().map(ServiceVersion::memory);
        let status = self.status.iter().flat_map(|status| &status.versions);
        let messages = status.map(|it| 200 + it.message.as_ref().map_or(0, String::len));
        OBJECT + versions.sum::<usize>() + messages.sum::<usize>() + self.spec.scripts.len() * 400
    }

    fn refuse(&mut self, why: String) {
        note_refusal(&mut self.metadata, why);
        self.spec = ServiceSpec {
            fqsn: std::mem::take(&mut self.spec.fqsn),
            ..ServiceSpec::default()
        };
        if let Some(status) = &mut self.status {
            status.versions = Vec::new();
        }
    }
}

impl Kept for ConfigMap {
    fn slim(&mut self) {
        slim_metadata(&mut self.metadata, &[cluster::FOLDER], &[cluster::LABEL]);
    }

    fn weight(&self) -> usize {
        let texts = self.data.iter().flatten();
        let texts = texts.map(|(name, text)| ENTRY + name.len() + text.len());
        let others = self.binary_data.iter().flatten();
        let others = others.map(|(name, bytes)| ENTRY + name.len() + bytes.0.len());
        OBJECT + texts.chain(others).sum::<usize>()
    }

    fn refuse(&mut self, why: String) {
        note_refusal(&mut self.metadata, why);
        self.data = None;
        self.binary_data = None;
    }
}

impl<K: Kept> Kept for Outside<K> {
    fn slim(&mut self) {
        match &mut self.0 {
            Ok(object) => object.slim(),
            Err(invalid) => {
                slim_metadata(&mut invalid.metadata, &[cluster::FOLDER], &[cluster::LABEL]);
            }
        }
    }

    fn weight(&self) -> usize {
        match &self.0 {
            Ok(object) => object.weight(),
            Err(invalid) => OBJECT + invalid.error.len(),
        }
    }

    fn refuse(&mut self, why: String) {
        if let Ok(object) = &mut self.0 {
            object.refuse(why);
        }
    }
}

/// Who keeps a cache within the shares of the namespaces.
struct Door {
    own: Pool,
    /// Of the namespace that all share: who may write there is trusted by all.
    shared: Pool,
    shared_namespace: String,
    /// By UID.
    charges: BTreeMap<String, Charge>,
    listed: Option<BTreeSet<String>>,
}

impl Door {
    /// What of an event's object may be kept. What is refused is asked for again when everything is
    /// listed the next time.
    fn pass<K: Kept>(&mut self, event: Event<K>) -> Event<K> {
        match &event {
            Event::Init => self.listed = Some(BTreeSet::new()),
            Event::InitDone => {
                if let Some(listed) = self.listed.take() {
                    self.charges.retain(|uid, _| listed.contains(uid));
                }
            }
            Event::Delete(object) => {
                self.charges.remove(&uid_of(object));
            }
            Event::InitApply(object) => {
                if let Some(listed) = &mut self.listed {
                    listed.insert(uid_of(object));
                }
            }
            Event::Apply(_) => {}
        }
        match event {
            Event::Apply(object) => Event::Apply(self.admit(object)),
            Event::InitApply(object) => Event::InitApply(self.admit(object)),
            Event::Delete(mut object) => {
                object.slim();
                Event::Delete(object)
            }
            other => other,
        }
    }

    fn admit<K: Kept>(&mut self, mut object: K) -> K {
        object.slim();
        let namespace = object.meta().namespace.clone().unwrap_or_default();
        let uid = uid_of(&object);
        let pool = if namespace == self.shared_namespace {
            &self.shared
        } else {
            &self.own
        };
        let bytes = object.weight();
        let fits = match self.charges.get_mut(&uid) {
            Some(charge) => charge.resize(bytes),
            None => match pool.take(&namespace, bytes) {
                Some(charge) => {
                    self.charges.insert(uid.clone(), charge);
                    true
                }
                None => false,
            },
        };
        if !fits {
            let why = pool.refusal(&namespace, bytes);
            object.refuse(why);
            let rest = pool.take_always(&namespace, object.weight());
            self.charges.insert(uid, rest);
        }
        object
    }
}

fn uid_of(object: &impl Resource) -> String {
    object.meta().uid.clone().unwrap_or_default()
}

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The shelves, and what keeps them up to date and checks what stands there.
pub(super) fn start(
    client: &Client,
    options: &Options,
    health: &Health,
    metrics: &Arc<Metrics>,
) -> (Shelves, impl FnOnce(Arc<Context>) -> Work + use<>) {
    let scope = with_shared(options);
    let anew = Some(options.resync);
    let part = options.cache / 12;
    let own = Pool::new("catalog", 2 * part, Arc::clone(metrics));
    let shared = Pool::of_one("shared_catalog", 3 * part, Arc::clone(metrics));
    let door = || Door {
        own: own.clone(),
        shared: shared.clone(),
        shared_namespace: options.shared_namespace.clone(),
        charges: BTreeMap::new(),
        listed: None,
    };
    let mut services = Vec::new();
    let mut watched_services = Vec::new();
    for api in super::apis::<Guarded>(client, &scope) {
        let (store, writer) = reflector::store();
        services.push(store.clone());
        let mut door = door();
        let changes = watch(api, None, health, SERVICES, anew);
        let changes = changes.map(move |event| Ok(door.pass(event)));
        watched_services.push((store, reflector::reflector(writer, changes).boxed()));
    }
    let mut config_maps = Vec::new();
    let mut changed_folders = SelectAll::new();
    for api in super::apis::<Outside<ConfigMap>>(client, &of_config_maps(options, scope)) {
        let (store, writer) = reflector::store();
        config_maps.push(store);
        let changes = watch(api, Some(cluster::LABEL), health, CONFIG_MAPS, anew);
        let mut door = door();
        let changes = changes.map(move |event| Ok(door.pass(event)));
        let changes = reflector::reflector(writer, changes);
        changed_folders.push(names_of(changes, folder_of, |_| Vec::new()).boxed());
    }
    let shelves = Shelves {
        services: Shelf(services),
        config_maps: Shelf(config_maps),
    };
    let needs = (health.needs(SERVICES), health.needs(CONFIG_MAPS));
    let known = shelves.clone();
    let work = move |context: Arc<Context>| -> Work {
        Box::pin(async move {
            let (services_needed, maps_needed) = needs;
            let listed = async {
                known.services.ready().await;
                services_needed.met();
                known.config_maps.ready().await;
                maps_needed.met();
            };
            if !context.options.shard.is_first() {
                // It only reads; what is wrong is said by the first.
                let services = watched_services.into_iter().map(|(_, changes)| changes);
                let services = select_all(services).for_each(|_| std::future::ready(()));
                let maps = changed_folders.for_each(|_| std::future::ready(()));
                tokio::join!(listed, services, maps);
                return;
            }
            let controllers = watched_services
                .into_iter()
                .map(|(store, changes)| control(Arc::clone(&context), store, changes));
            let maps = &known.config_maps;
            tokio::join!(
                listed,
                join_all(controllers),
                look_after(&context, maps, changed_folders)
            );
        })
    };
    (shelves, work)
}

/// The namespaces that the operator looks at, and the one that they share.
fn with_shared(options: &Options) -> Scope {
    match &options.scope {
        Scope::Cluster => Scope::Cluster,
        Scope::Namespaces(namespaces) => {
            let mut namespaces = namespaces.clone();
            if !namespaces.contains(&options.shared_namespace) {
                namespaces.push(options.shared_namespace.clone());
            }
            Scope::Namespaces(namespaces)
        }
    }
}

/// The namespaces whose labelled `ConfigMaps` count; others are not even read.
fn of_config_maps(options: &Options, scope: Scope) -> Scope {
    match options.catalog_config_maps {
        LabelledMaps::All => scope,
        LabelledMaps::Shared => Scope::Namespaces(vec![options.shared_namespace.clone()]),
        LabelledMaps::None => Scope::Namespaces(Vec::new()),
    }
}

type Change<K> = Result<Event<K>, kube::runtime::watcher::Error>;

/// What `name` says of each object that changes tell of; of those of a list when it has come to its
/// end, as the shelf has none of them before. With each change of one object also what `others`
/// says of it; a list has them all.
fn names_of<K, T>(
    changes: impl Stream<Item = Change<K>>,
    name: impl Fn(&K) -> Option<T>,
    others: impl Fn(&K) -> Vec<T>,
) -> impl Stream<Item = T> {
    let mut listed = Vec::new();
    changes.flat_map(move |change| {
        let told = match change {
            Ok(Event::Init) => {
                listed.clear();
                Vec::new()
            }
            Ok(Event::InitApply(object)) => {
                listed.extend(name(&object));
                Vec::new()
            }
            Ok(Event::InitDone) => std::mem::take(&mut listed),
            Ok(Event::Apply(object) | Event::Delete(object)) => {
                name(&object).into_iter().chain(others(&object)).collect()
            }
            Err(_) => Vec::new(),
        };
        futures::stream::iter(told)
    })
}

// Services

/// The controller of the services in one store.
async fn control(
    context: Arc<Context>,
    store: Store<Guarded>,
    changes: impl Stream<Item = Change<Guarded>> + Send + 'static,
) {
    // Who has the same name counts or does not, as this one comes, changes or goes. (One that had
    // it before this one was given another name hears of it with the next list.)
    let known = store.clone();
    let name = |service: &Guarded| Some(ObjectRef::from_obj(service));
    let queue = names_of(changes, name, move |service| rivals(&known, service))
        .map(Ok::<_, kube::runtime::watcher::Error>);
    let later = |_: Arc<Guarded>, error: &kube::Error, _: Arc<Context>| {
        tracing::warn!(%error, "cannot write the status of a Service yet");
        Action::requeue(LATER)
    };
    controller::applier(
        |service, context| Box::pin(reconcile(service, context)),
        later,
        context,
        store,
        queue,
        controller::Config::default(),
    )
    .for_each(|_| std::future::ready(()))
    .await;
}

/// Brings the status of a service up to date.
async fn reconcile(service: Arc<Guarded>, context: Arc<Context>) -> kube::Result<Action> {
    let begun = Instant::now();
    let done = match &service.0 {
        Ok(service) => judge(service, &context).await,
        Err(invalid) => refuse_unreadable(invalid, &context).await,
    };
    context.metrics.turned("services", begun.elapsed());
    match done {
        Ok(()) => Ok(Action::await_change()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Action::await_change()),
        // Changed meanwhile, and then news of it is on the way. Or it is any other conflict.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(Action::requeue(LATER)),
        // Said again, it is refused again.
        Err(kube::Error::Api(status)) if [400, 413, 422].contains(&status.code) => {
            let name = service.name_any();
            tracing::error!(
                name,
                error = status.message,
                "a Service's status is refused"
            );
            Ok(Action::await_change())
        }
        Err(error) => Err(error),
    }
}

async fn judge(service: &Service, context: &Context) -> kube::Result<()> {
    let (news, versions) = match cluster::refused(service) {
        // Which numbers it says changes with each look; it is said once for each generation.
        Some(_) if is_refused_already(service) => return Ok(()),
        Some(why) => (
            News::new(READY, false, TOO_LARGE, why.to_owned()),
            Vec::new(),
        ),
        None => {
            let spec = service.spec.clone();
            let large = spec
                .versions
                .iter()
                .map(ServiceVersion::memory)
                .sum::<usize>()
                > LARGE;
            let _turn = if large {
                let namespace = service.namespace().unwrap_or_default();
                Some(context.large.wait(&namespace).await)
            } else {
                None
            };
            // A large template keeps a processor busy for long; runs must not wait for that.
            let Ok(checked) = tokio::task::spawn_blocking(move || check(&spec)).await else {
                // It said so itself.
                return Ok(());
            };
            (checked.ready(), checked.versions)
        }
    };
    let generation = service.metadata.generation;
    let old = service.status.clone().unwrap_or_default();
    let mut new = ServiceStatus {
        observed_generation: generation,
        conditions: old.conditions.clone(),
        versions,
    };
    shorten(&mut new);
    let now = context.clock.now();
    let elder = context.shelves.elder(service);
    let news = elder.as_ref().map_or(news, conflict);
    let ready = news.holds == true.into();
    let conflicts = |status: &ServiceStatus| {
        let mut conditions = status.conditions.iter();
        conditions.any(|it| it.type_ == READY && it.reason == CONFLICT)
    };
    condition::set(&mut new.conditions, news, generation, now);
    if new == old {
        return Ok(());
    }
    let namespace = service.namespace().unwrap_or_default();
    let name = service.name_any();
    let services: Api<Service> = Api::namespaced(context.client.clone(), &namespace);
    let patch = json!({
        "metadata": {"resourceVersion": service.metadata.resource_version},
        "status": new,
    });
    services
        .patch_status(&name, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    tracing::info!(namespace, name, ready, "a Service was checked");
    if let Some(elder) = elder.filter(|_| !conflicts(&old)) {
        let note = conflict(&elder).message;
        context.tell(service, CONFLICT, &note, true);
        let note = format!(
            "{} has the FQSN {} too, and was created later: it does not count",
            cluster::service_source(service),
            service.spec.fqsn
        );
        context.tell(&elder, CONFLICT, &note, true);
    }
    Ok(())
}

/// That a `Service` does not count, because this one does.
fn conflict(elder: &Service) -> News {
    let message = format!(
        "{} has the FQSN {} too, and was created earlier: that one counts, and this one does not; \
         give one of them another FQSN, or delete it",
        cluster::service_source(elder),
        elder.spec.fqsn
    );
    News::new(READY, false, CONFLICT, message)
}

/// Whether its status says already that its content was not taken in.
fn is_refused_already(service: &Service) -> bool {
    let conditions = service.status.iter().flat_map(|status| &status.conditions);
    let mut ready = conditions.filter(|it| it.type_ == READY);
    ready.any(|it| it.reason == TOO_LARGE && it.observed_generation == service.metadata.generation)
}

/// Cuts messages so that all of them together fit into an object.
fn shorten(status: &mut ServiceStatus) {
    let most = MESSAGES / status.versions.len().max(1);
    for version in &mut status.versions {
        if let Some(message) = &mut version.message
            && message.len() > most
        {
            message.truncate(message.floor_char_boundary(most));
            message.push('…');
        }
    }
}

/// A service that cannot be read says so, and nobody else is stopped.
async fn refuse_unreadable(invalid: &InvalidObject, context: &Context) -> kube::Result<()> {
    let namespace = invalid.metadata.namespace.clone().unwrap_or_default();
    let name = invalid.metadata.name.clone().unwrap_or_default();
    // Neither the service nor the answer to a write can be read as a whole.
    let services: Api<Bare<Service>> = Api::namespaced(context.client.clone(), &namespace);
    let Some(found) = object::look::<_, Bare<Service>>(&services, &name).await? else {
        return Ok(());
    };
    if found.metadata.resource_version != invalid.metadata.resource_version {
        return Ok(());
    }
    let status = found.status.unwrap_or_default();
    let conditions = status.get("conditions").cloned();
    // One that cannot be read either is replaced.
    let mut conditions = conditions
        .and_then(|conditions| serde_json::from_value(conditions).ok())
        .unwrap_or_default();
    let message = format!("the Service cannot be read: {}", invalid.error);
    let news = News::new(READY, false, "Unreadable", message.clone());
    let generation = invalid.metadata.generation;
    if !condition::set(&mut conditions, news, generation, context.clock.now()) {
        return Ok(());
    }
    tracing::error!(namespace, name, message, "a Service cannot be read");
    let patch = json!({
        "metadata": {"resourceVersion": invalid.metadata.resource_version},
        "status": {
            "observedGeneration": generation,
            "conditions": conditions,
            "versions": [],
        },
    });
    services
        .patch_status(&name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .map(drop)
}

// ConfigMaps

/// The folder of a `ConfigMap`, also of one that cannot be read: its label says it.
fn folder_of(map: &Outside<ConfigMap>) -> Option<Folder> {
    match &map.0 {
        Ok(map) => cluster::folder_of(map),
        Err(invalid) => cluster::folder_of(&ConfigMap {
            metadata: invalid.metadata.clone(),
            ..ConfigMap::default()
        }),
    }
}

/// A catalogue: its namespace and folder.
type Folder = (String, String);

/// Looks after the catalogues in `ConfigMaps`, each a short while after it was changed.
async fn look_after(
    context: &Context,
    shelf: &Shelf<Outside<ConfigMap>>,
    mut changes: impl Stream<Item = Folder> + Unpin,
) {
    let mut changed: BTreeSet<Folder> = BTreeSet::new();
    let mut due = None;
    let mut told = Told::default();
    let all_listed = shelf.ready();
    tokio::pin!(all_listed);
    let mut listed = false;
    loop {
        let settled = async {
            match due {
                Some(due) if listed => tokio::time::sleep_until(due).await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            change = changes.next() => match change {
                Some(folder) => {
                    changed.insert(folder);
                    due = due.or_else(|| Some(Instant::now() + SETTLE));
                }
                None => return,
            },
            () = &mut all_listed, if !listed => listed = true,
            () = settled => {
                due = None;
                let maps = shelf.state();
                for folder in std::mem::take(&mut changed) {
                    for (map, problems) in told.news(context, &folder, &maps).await {
                        complain(context, &map, &problems);
                    }
                }
            }
        }
    }
}

fn complain(context: &Context, map: &Outside<ConfigMap>, problems: &[String]) {
    let namespace = map.namespace().unwrap_or_default();
    let name = map.name_any();
    for problem in problems {
        tracing::warn!(namespace, name, problem, "a catalogue has a problem");
    }
    let reason = match cluster::refused(map) {
        Some(_) => TOO_LARGE,
        None => "InvalidCatalog",
    };
    context.tell(map, reason, &problems.join("\n"), true);
}

/// What was said of the `ConfigMaps` of catalogues, by UID: it is said once.
#[derive(Debug, Default)]
struct Told {
    said: BTreeMap<Folder, BTreeMap<String, Vec<String>>>,
    /// What was found of the templates, by folder.
    checks: BTreeMap<Folder, Checks>,
}

impl Told {
    /// The problems of a folder that were not told before, by `ConfigMap`.
    async fn news(
        &mut self,
        context: &Context,
        folder: &Folder,
        maps: &[Arc<Outside<ConfigMap>>],
    ) -> Vec<(Arc<Outside<ConfigMap>>, Vec<String>)> {
        let maps: Vec<Arc<Outside<ConfigMap>>> = (maps.iter())
            .filter(|map| folder_of(map).as_ref() == Some(folder))
            .cloned()
            .collect();
        let (namespace, path) = folder.clone();
        let mut checks = self.checks.remove(folder).unwrap_or_default();
        let large = maps.iter().map(|map| map.weight()).sum::<usize>() > LARGE;
        let _turn = if large {
            Some(context.large.wait(&namespace).await)
        } else {
            None
        };
        let check = move || {
            let unread = |map: &Outside<ConfigMap>| {
                let invalid = map.0.as_ref().err()?;
                Some(format!("the ConfigMap cannot be read: {}", invalid.error))
            };
            let found = maps.into_iter().map(|map| {
                let problems = Vec::from_iter(unread(&map));
                (map, problems)
            });
            let mut found: Vec<(Arc<Outside<ConfigMap>>, Vec<String>)> = found.collect();
            let all: Vec<Arc<Outside<ConfigMap>>> =
                found.iter().map(|(map, _)| Arc::clone(map)).collect();
            let all: Vec<&ConfigMap> = all.iter().filter_map(|map| map.0.as_ref().ok()).collect();
            checks.retain(&all);
            for (of, problem) in cluster::problems(&path, &all, &mut checks) {
                let uid = &of.metadata.uid;
                let of = found.iter_mut().find(|(map, _)| map.meta().uid == *uid);
                if let Some((_, problems)) = of {
                    problems.push(problem);
                }
            }
            found.retain(|(_, problems)| !problems.is_empty());
            (found, checks)
        };
        let (found, checks) = tokio::task::spawn_blocking(check).await.unwrap_or_default();
        if !checks.is_empty() {
            self.checks.insert(folder.clone(), checks);
        }
        let uid = |map: &Outside<ConfigMap>| map.meta().uid.clone().unwrap_or_default();
        let now: BTreeMap<String, Vec<String>> = (found.iter())
            .map(|(map, problems)| (uid(map), problems.clone()))
            .collect();
        let before = if now.is_empty() {
            self.said.remove(folder)
        } else {
            self.said.insert(folder.clone(), now)
        };
        let before = before.unwrap_or_default();
        found
            .into_iter()
            .filter(|(map, problems)| before.get(&uid(map)) != Some(problems))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shelf has what a list tells when the list has come to its end; who is told before looks
    /// at what was there before.
    #[tokio::test]
    async fn what_a_list_tells_is_told_at_its_end() {
        let (sender, changes) = futures::channel::mpsc::unbounded();
        let name = |map: &ConfigMap| map.metadata.name.clone();
        let others = |map: &ConfigMap| match map.metadata.name.as_deref() {
            Some("e") => vec!["like e".to_owned()],
            _ => Vec::new(),
        };
        let mut told = std::pin::pin!(names_of(changes, name, others));
        let map = |name: &str| {
            let mut map = ConfigMap::default();
            map.metadata.name = Some(name.to_owned());
            map
        };
        let mut next = || futures::FutureExt::now_or_never(told.next()).flatten();
        let tell = |event| sender.unbounded_send(Ok(event)).unwrap();
        tell(Event::Init);
        tell(Event::InitApply(map("a")));
        assert_eq!(next(), None);
        // It is begun anew.
        tell(Event::Init);
        tell(Event::InitApply(map("b")));
        tell(Event::InitApply(map("c")));
        assert_eq!(next(), None);
        tell(Event::InitDone);
        assert_eq!(
            [next(), next(), next()].map(Option::unwrap_or_default),
            ["b", "c", ""]
        );
        tell(Event::Apply(map("d")));
        tell(Event::Delete(map("e")));
        assert_eq!(
            [next(), next(), next()].map(Option::unwrap_or_default),
            ["d", "e", "like e"]
        );
        assert_eq!(next(), None);
    }
}
