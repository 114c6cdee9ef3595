//! The driver in the cluster.
//!
//! ```text
//! watches → hub → a task for each run: observe → fold → step → apply → publish
//! ```
//! One task a run, fed by shared watches, because a decision must not wait for a write of the one
//! before; a controller that serialises each object would make it. Services have such a
//! controller: nothing of theirs is in a hurry.
//!
//! Must not compute what the engine computes.

mod apply;
mod broken;
pub mod client;
mod context;
mod delivery;
mod floor;
pub mod health;
mod hub;
pub mod lease;
mod memory;
pub mod metrics;
pub mod object;
pub mod options;
mod pacer;
pub mod past;
pub mod presence;
mod publish;
mod resolve;
mod runner;
mod service;
mod snapshot;
pub mod spans;
pub mod status;
pub mod strip;
#[cfg(test)]
mod tests;
mod workflow_run;

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{SelectAll, StreamExt};
use kube::api::Api;
use kube::runtime::watcher::Event;
use kube::{Client, Config, Resource};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::api::outside::Outside;
use crate::api::{LABEL_MANAGED_BY, MANAGED_BY};
use crate::executor::pod::slim::SlimPod;

use context::{Clock, Context};
use health::Health;
use hub::{Hub, Incoming, watch};
use lease::{Leadership, Lease, Timing};
use metrics::Metrics;
use options::{Options, Scope, Shard};

/// How many Events may be in flight.
const EVENTS: usize = 16;

/// How many objects of unknown size are read at once for runs to begin: each may take some MiB until
/// it is known how large it is.
const READS: usize = 16;
/// How many Events may wait for that. More are dropped: the status says the same.
const EVENTS_DUE: usize = 1000;

/// How long a new leader keeps the names of pods taken. A request that an API server has read is
/// over after a minute, unless that server is told otherwise (`--request-timeout`).
const NAMES_KEPT: Duration = Duration::from_mins(1);

/// Why the operator ended without being asked to.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// Neither a kubeconfig nor a pod's service account.
    #[error("found no way to a cluster")]
    Config(#[from] kube::config::InferConfigError),
    /// The configuration is of no use.
    #[error("cannot make a client for the cluster")]
    Client(#[source] kube::Error),
    /// Another replica may lead now. This process has to end, and may start anew.
    #[error("the lease {0} is lost")]
    Lost(String),
}

/// Works until `stop` comes back, in a cluster that is found as kubectl finds it or from inside a
/// pod. Then it takes on nothing new, waits for what is in flight, and gives the Lease back.
pub async fn run(
    options: Options,
    metrics: Arc<Metrics>,
    health: Health,
    stop: impl Future<Output = ()>,
) -> Result<(), OperatorError> {
    tokio::pin!(stop);
    let config = Config::infer().await?;
    let connect = |leadership: &Leadership| {
        client::client(config.clone(), Arc::clone(&metrics), leadership.clone())
            .map_err(OperatorError::Client)
    };
    let (leadership, lease) = match &options.election {
        None => (Leadership::alone(), None),
        Some(election) => {
            let lease = Lease::new(
                connect(&Leadership::alone())?,
                &election.namespace,
                &election.lease,
                &election.identity,
                Timing::of(election.duration),
            );
            (lease.leadership(), Some((lease, election.lease.clone())))
        }
    };
    // Who breaks this rule asks for the Lease as everybody does, and then never again whether it
    // still holds it.
    let client = if broken::rule("10") {
        connect(&Leadership::alone())?
    } else {
        connect(&leadership)?
    };
    tokio::select! {
        () = presence::kinds(&client, &health, "apscli.dev/v1alpha1", &["services", "workflowruns", "workflowrunpages"]) => {}
        () = &mut stop => return Ok(()),
    }
    let mut name = String::new();
    if let Some((lease, called)) = lease {
        name = called;
        tokio::select! {
            _ = lease.acquire() => {}
            () = &mut stop => return Ok(()),
        }
    }
    metrics.set_leads(true);
    let instance = options
        .election
        .as_ref()
        .map_or_else(|| "apscli".to_owned(), |it| it.identity.clone());
    let ended = tokio::select! {
        () = work(client, options, Arc::clone(&metrics), &health, instance) => Ok(()),
        () = leadership.lost(), if !broken::rule("10") => Err(OperatorError::Lost(name)),
        () = &mut stop => {
            leadership.release().await;
            Ok(())
        }
    };
    metrics.set_leads(false);
    ended
}

/// The leader's work; goes on until it is dropped.
async fn work(
    client: Client,
    options: Options,
    metrics: Arc<Metrics>,
    health: &Health,
    instance: String,
) {
    let runner = options.runner.clone().map(runner::Runner::new);
    work_with(client, options, metrics, health, instance, runner).await;
}

/// The same, with this runner.
async fn work_with(
    client: Client,
    options: Options,
    metrics: Arc<Metrics>,
    health: &Health,
    instance: String,
    runner: Option<runner::Runner>,
) {
    let (shelves, services) = service::start(&client, &options, health, &metrics);
    // The rest is the catalogue's.
    let pool = |cache, twelfths| {
        memory::Pool::new(cache, options.cache / 12 * twelfths, Arc::clone(&metrics))
    };
    let context = Arc::new(Context {
        runs: pool("runs", 2),
        programs: pool("programs", 5),
        large: memory::LargeTurns::default(),
        reads: Semaphore::new(READS),
        client: client.clone(),
        writes: Arc::new(Semaphore::new(options.max_writes.get())),
        pacer: pacer::Pacer::default(),
        tells: Semaphore::new(options.max_writes.get().div_ceil(4)),
        chores: Semaphore::new(options.max_writes.get().div_ceil(4)),
        events: Arc::new(Semaphore::new(EVENTS)),
        events_due: Arc::new(Semaphore::new(EVENTS_DUE)),
        shelves,
        snapshots: snapshot::Snapshots::default(),
        image_volumes: delivery::ImageVolumes::default(),
        metrics,
        clock: Clock::default(),
        // Who breaks this rule would not be noticed for as long.
        names_free: match &options.election {
            Some(_) if !broken::rule("10") => Instant::now() + NAMES_KEPT,
            _ => Instant::now(),
        },
        stripping: context::Turns::default(),
        tasks: context::Turns::default(),
        runner,
        instance,
        options,
    });
    let services = services(Arc::clone(&context));
    let runs = async {
        // A run by FQSN that is looked at before the catalogue is known would only say so.
        context.shelves.ready().await;
        let shard = context.options.shard;
        let labels = pod_labels(&context.options);
        let mut incoming = SelectAll::new();
        let runs = apis(&client, &context.options.scope);
        let places = runs.len();
        for (place, api) in runs.into_iter().enumerate() {
            let runs = watch(api, None, health, hub::RUNS, None);
            let runs = runs.take_while(|event| {
                std::future::ready(!(broken::rule("11") && is_unreadable(event)))
            });
            // Runs bear no bucket: whoever makes one would have to give it.
            let runs = runs.filter(move |event| std::future::ready(is_ours(shard, event)));
            let runs = runs.map(move |event| Incoming::Run(place, event));
            incoming.push(runs.boxed());
        }
        for (place, api) in apis::<SlimPod>(&client, &context.options.scope)
            .into_iter()
            .enumerate()
        {
            let pods = watch(api, Some(&labels), health, hub::PODS, None);
            let pods = pods.map(move |event| Incoming::Pod(place, event));
            incoming.push(pods.boxed());
        }
        let (hub, finished) = Hub::new(Arc::clone(&context), health, places);
        hub.run(incoming, finished).await;
    };
    tokio::join!(services, runs);
}

/// Whether what an event is of cannot be read.
fn is_unreadable<K>(event: &Event<Outside<K>>) -> bool {
    match event {
        Event::Apply(it) | Event::InitApply(it) | Event::Delete(it) => it.0.is_err(),
        Event::Init | Event::InitDone => false,
    }
}

/// Whether an event is of a run that this operator has to do with.
fn is_ours<K: Resource>(shard: Shard, event: &Event<K>) -> bool {
    match event {
        Event::Apply(run) | Event::InitApply(run) | Event::Delete(run) => {
            let uid = run.meta().uid.as_ref();
            uid.is_some_and(|uid| shard.has(uid))
        }
        Event::Init | Event::InitDone => true,
    }
}

/// What the pods of this operator's runs bear, as a label selector.
fn pod_labels(options: &Options) -> String {
    let ours = format!("{LABEL_MANAGED_BY}={MANAGED_BY}");
    match options.shard.selector() {
        Some(buckets) => format!("{ours},{buckets}"),
        None => ours,
    }
}

/// The places of a kind that the operator looks at.
fn apis<K>(client: &Client, scope: &Scope) -> Vec<Api<K>>
where
    K: Resource<Scope = kube::core::NamespaceResourceScope>,
    K::DynamicType: Default,
{
    match scope {
        Scope::Cluster => vec![Api::all(client.clone())],
        Scope::Namespaces(namespaces) => namespaces
            .iter()
            .map(|namespace| Api::namespaced(client.clone(), namespace))
            .collect(),
    }
}
