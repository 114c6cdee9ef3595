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
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::DeserializeGuard;
use kube::core::error_boundary::InvalidObject;
use kube::runtime::controller::{self, Action};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::Event;
use kube::{Client, Resource, ResourceExt};
use serde_json::json;
use tokio::time::Instant;

use crate::api::condition::{self, News, READY};
use crate::api::service::{Service, ServiceStatus, check};
use crate::catalog::cluster::{self, Found, LabelledMaps, NotFound, seniority};

use super::context::Context;
use super::health::Health;
use super::hub::watch;
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

/// A `Service` that may be one that cannot be read.
type Guarded = DeserializeGuard<Service>;

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
    config_maps: Shelf<ConfigMap>,
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
        fqsn: &str,
        version: Option<&str>,
        namespace: &str,
        options: &Options,
    ) -> Result<Found, NotFound> {
        let services = self.services.state();
        let config_maps = self.config_maps.state();
        cluster::find(
            fqsn,
            version,
            (namespace, &options.shared_namespace),
            options.catalog_config_maps,
            services
                .iter()
                .filter_map(|service| service.0.as_ref().ok()),
            config_maps.iter().map(AsRef::as_ref),
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

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The shelves, and what keeps them up to date and checks what stands there.
pub(super) fn start(
    client: &Client,
    options: &Options,
    health: &Health,
) -> (Shelves, impl FnOnce(Arc<Context>) -> Work + use<>) {
    let scope = with_shared(options);
    let anew = Some(options.resync);
    let mut services = Vec::new();
    let mut watched_services = Vec::new();
    for api in super::apis::<Guarded>(client, &scope) {
        let (store, writer) = reflector::store();
        services.push(store.clone());
        let changes = watch(api, None, health, SERVICES, anew).map(slim).map(Ok);
        watched_services.push((store, reflector::reflector(writer, changes).boxed()));
    }
    let mut config_maps = Vec::new();
    let mut changed_folders = SelectAll::new();
    for api in super::apis::<ConfigMap>(client, &of_config_maps(options, scope)) {
        let (store, writer) = reflector::store();
        config_maps.push(store);
        let changes = watch(api, Some(cluster::LABEL), health, CONFIG_MAPS, anew);
        let changes = changes.map(slim).map(Ok);
        let changes = reflector::reflector(writer, changes);
        changed_folders.push(names_of(changes, cluster::folder_of, |_| Vec::new()).boxed());
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

/// Objects without what nobody here reads and what is the larger part of many.
fn slim<K: Resource>(event: Event<K>) -> Event<K> {
    event.modify(|object| object.meta_mut().managed_fields = None)
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
    let spec = service.spec.clone();
    // A large template keeps a processor busy for long; runs must not wait for that.
    let Ok(checked) = tokio::task::spawn_blocking(move || check(&spec)).await else {
        // It said so itself.
        return Ok(());
    };
    let generation = service.metadata.generation;
    let old = service.status.clone().unwrap_or_default();
    let mut new = ServiceStatus {
        observed_generation: generation,
        conditions: old.conditions.clone(),
        versions: checked.versions.clone(),
    };
    shorten(&mut new);
    let now = context.clock.now();
    let elder = context.shelves.elder(service);
    let news = match &elder {
        Some(elder) => conflict(elder),
        None => checked.ready(),
    };
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
    let ready = checked.is_ready() && elder.is_none();
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
    let services: Api<DynamicObject> = Api::namespaced_with(
        context.client.clone(),
        &namespace,
        &ApiResource::erase::<Service>(&()),
    );
    let found = services.get(&name).await?;
    if found.metadata.resource_version != invalid.metadata.resource_version {
        return Ok(());
    }
    let conditions = found.data.pointer("/status/conditions").cloned();
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

/// A catalogue: its namespace and folder.
type Folder = (String, String);

/// Looks after the catalogues in `ConfigMaps`, each a short while after it was changed.
async fn look_after(
    context: &Context,
    shelf: &Shelf<ConfigMap>,
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
                    for (map, problems) in told.news(&folder, &maps).await {
                        complain(context, &map, &problems);
                    }
                }
            }
        }
    }
}

fn complain(context: &Context, map: &ConfigMap, problems: &[String]) {
    let namespace = map.namespace().unwrap_or_default();
    let name = map.name_any();
    for problem in problems {
        tracing::warn!(namespace, name, problem, "a catalogue has a problem");
    }
    context.tell(map, "InvalidCatalog", &problems.join("\n"), true);
}

/// What was said of the `ConfigMaps` of catalogues, by UID: it is said once.
#[derive(Debug, Default)]
struct Told(BTreeMap<Folder, BTreeMap<String, Vec<String>>>);

impl Told {
    /// The problems of a folder that were not told before, by `ConfigMap`.
    async fn news(
        &mut self,
        folder: &Folder,
        maps: &[Arc<ConfigMap>],
    ) -> Vec<(Arc<ConfigMap>, Vec<String>)> {
        let maps: Vec<Arc<ConfigMap>> = (maps.iter())
            .filter(|map| cluster::folder_of(map).as_ref() == Some(folder))
            .cloned()
            .collect();
        let (_, path) = folder.clone();
        let check = move || {
            let mut found: Vec<(Arc<ConfigMap>, Vec<String>)> =
                maps.into_iter().map(|map| (map, Vec::new())).collect();
            let all: Vec<Arc<ConfigMap>> = found.iter().map(|(map, _)| Arc::clone(map)).collect();
            let all: Vec<&ConfigMap> = all.iter().map(AsRef::as_ref).collect();
            for (of, problem) in cluster::problems(&path, &all) {
                let uid = &of.metadata.uid;
                let of = found.iter_mut().find(|(map, _)| map.metadata.uid == *uid);
                if let Some((_, problems)) = of {
                    problems.push(problem);
                }
            }
            found.retain(|(_, problems)| !problems.is_empty());
            found
        };
        let found = tokio::task::spawn_blocking(check).await.unwrap_or_default();
        let uid = |map: &ConfigMap| map.metadata.uid.clone().unwrap_or_default();
        let now: BTreeMap<String, Vec<String>> = (found.iter())
            .map(|(map, problems)| (uid(map), problems.clone()))
            .collect();
        let before = if now.is_empty() {
            self.0.remove(folder)
        } else {
            self.0.insert(folder.clone(), now)
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
