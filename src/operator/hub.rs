//! Where news of the cluster comes in and goes to the run that it concerns.
//!
//! One task owns the table of live runs. It knows nothing of what a run does with its news. What
//! no live run claims, it tends to itself: pods that are being deleted and whose run is over or
//! gone get their finalizer taken off, pods that still run after their run is over are deleted, those
//! of runs that keep none and that an earlier operator did not come to likewise, and so are runs that
//! are past their time to live. A watch can miss that a pod is being deleted, and
//! then nobody would let it go; so some time after runs have ended or gone, pods are looked through.
//! It can miss a run as well; so from time to time it is asked which runs are not over.
//!
//! Must not decide anything about a run, nor wait for the API server.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, ListParams, Preconditions, PropagationPolicy};
use kube::runtime::watcher;
use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use crate::api::outside::{Bare, Outside};
use crate::api::workflow_run::{PodRetention, RunPhase, WorkflowRun};
use crate::executor::pod::slim::SlimPod;
use crate::executor::pod::{CONTAINER, FINALIZER, LABEL_RUN_UID};

use super::client::{is_conflict, is_final, is_gone, is_too_large};
use super::context::{Context, Whose};
use super::health::{Health, Need, Pulse};
use super::memory::Charge;
use super::object::{self, Pages};
use super::{apply, resolve, workflow_run};

/// How long a watch may be silent before it is begun anew: a connection that is half open is
/// noticed within this time and the five seconds that the client adds.
const WATCH_SECONDS: u32 = 30;

/// The first pause before a watch is begun anew is as long as after so many tries of another call:
/// 0.8 s.
const FIRST_PAUSE: u32 = 3;

/// How long the hub may stand still before it counts as dead.
const SILENCE: Duration = Duration::from_mins(1);

/// What the hub needs to know before it works, as readiness names it.
pub(super) const RUNS: &str = "the list of runs";
pub(super) const PODS: &str = "the list of pods";

/// How often pods are looked through after runs have ended or gone: whoever deletes their pods may
/// come to it late.
const LOOKS: u32 = 3;

/// Runs that are not over, as a field selector.
const UNFINISHED: &str =
    "status.phase!=Succeeded,status.phase!=Failed,status.phase!=Cancelled,status.phase!=Error";

/// How many runs that are no more are remembered.
const REMEMBERED: usize = 1000;

/// What a run is told.
#[derive(Debug)]
pub(super) enum News {
    /// The run as it is now.
    Run(Arc<WorkflowRun>),
    /// The run is no more.
    Gone,
    /// A pod of the run as it is now.
    Pod(Box<Pod>),
    /// A pod of the run as it was last; it is no more.
    PodGone(Box<Pod>),
    /// All pods were listed anew, and these are all that there are, by UID.
    Listed(Arc<BTreeSet<String>>),
}

/// News, and when they came.
pub(super) struct Told {
    pub(super) at: Instant,
    pub(super) news: News,
}

impl From<News> for Told {
    fn from(news: News) -> Self {
        let at = Instant::now();
        Self { at, news }
    }
}

/// Which of the places that are watched: a list of one says nothing of another.
pub(super) type Place = usize;

/// What the watches say, and what was asked for. One at a time is on its way, so its size is of no
/// weight.
#[allow(clippy::large_enum_variant)]
pub(super) enum Incoming {
    Run(Place, Event<Outside<WorkflowRun>>),
    Pod(Place, Event<SlimPod>),
    /// A run's task has come to its end, with the run as it is then where it is over, and with
    /// the news that it has not read.
    Over(String, Option<Arc<WorkflowRun>>, UnboundedReceiver<Told>),
    /// A run that a list did not have is gone indeed.
    Vanished(String),
    /// Pods that are being deleted and have the finalizer.
    Held(Vec<Pod>),
    /// Runs that are not over.
    Unfinished(Place, Vec<ObjectMeta>),
    /// All of these were told.
    Surveyed,
    /// A run that no watch had told of.
    Untold(Place, Outside<WorkflowRun>),
    /// A run that waits for room, as it is now; none: it could not be read, or is gone.
    Waited(String, Option<Outside<WorkflowRun>>),
}

/// A run that exists.
struct Known {
    place: Place,
    namespace: String,
    name: String,
    /// As its status has it, for the count of runs.
    phase: RunPhase,
    /// Of a run that cannot be read, the version of its spec for which that was said.
    #[allow(clippy::option_option, reason = "a spec may have no version")]
    unreadable: Option<Option<i64>>,
    /// Whether it is being deleted, or is no more: whatever an older event says, nothing is begun.
    going: bool,
}

/// A live run.
struct Live {
    place: Place,
    inbox: UnboundedSender<Told>,
}

/// What is known of one place.
#[derive(Default)]
struct Lists {
    /// Pods that were listed since a list began.
    pods: Option<BTreeSet<String>>,
    /// Runs, likewise.
    runs: Option<BTreeSet<String>>,
    pods_listed: bool,
    runs_listed: bool,
    /// Pods that came before the runs were known, and whether a list told of them.
    early: Vec<(News, bool)>,
}

/// A run for which there was no room in its namespace's share of the memory.
struct Parked {
    place: Place,
    namespace: String,
    name: String,
    bytes: usize,
    /// Whether it is being read.
    asked: bool,
}

/// How many runs that wait for room are read at once.
const UNPARKED: usize = 8;

/// A run that is over and will be deleted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Expiring {
    at: Instant,
    uid: String,
    namespace: String,
    name: String,
}

/// A run that exists and is over.
struct Over {
    /// When it is to be deleted.
    expiring: Option<Expiring>,
    retention: PodRetention,
}

pub(super) struct Hub {
    context: Arc<Context>,
    known: BTreeMap<String, Known>,
    live: BTreeMap<String, Live>,
    /// Runs that wait for room, by UID.
    parked: BTreeMap<String, Parked>,
    /// Runs that exist and are over.
    over: BTreeMap<String, Over>,
    expiring: BTreeSet<Expiring>,
    /// The last runs that are no more: their pods may still be there, and an old list may tell of
    /// them once more.
    gone: VecDeque<String>,
    /// When pods are looked through.
    look_through: Option<Instant>,
    /// How often they still are, unless more runs end or go.
    looks: u32,
    /// When it is asked which runs are not over; none while it is.
    survey: Option<Instant>,
    lists: BTreeMap<Place, Lists>,
    done: UnboundedSender<Incoming>,
    pulse: Pulse,
    runs_needed: Need,
    pods_needed: Need,
}

/// A watch that goes on for ever; errors are told and tried again. Where it is the first list of
/// `what` that fails, whoever asks for readiness hears why. With `anew`, everything is listed again
/// when so long has passed since it was: an event that no watch told is made good by that.
pub(super) fn watch<K>(
    api: Api<K>,
    labels: Option<&str>,
    health: &Health,
    what: &'static str,
    anew: Option<Duration>,
) -> impl Stream<Item = Event<K>> + use<K>
where
    K: Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
    K::DynamicType: Default + Clone + Eq + std::hash::Hash,
{
    let mut config = watcher::Config::default().timeout(WATCH_SECONDS);
    if let Some(labels) = labels {
        config = config.labels(labels);
    }
    let begin = move |page| watcher(api.clone(), config.clone().page_size(page)).boxed();
    let state = (0, object::PAGE, Losses::default());
    let begun = (begin(object::PAGE), None, health.clone(), state);
    futures::stream::unfold((begin, begun), move |(begin, begun)| async move {
        let (mut events, mut again, health, (mut failures, mut page, mut losses)) = begun;
        loop {
            let event = tokio::select! {
                event = events.next() => event?,
                () = at(again) => {
                    (events, again) = (begin(page), None);
                    continue;
                }
            };
            // However long a list takes, it is not cut off.
            match &event {
                Ok(Event::Init) => again = None,
                Ok(Event::InitDone) => again = anew.map(|anew| Instant::now() + anew),
                _ => {}
            }
            match event {
                Ok(event) => {
                    // That a list begins does not say that it is answered. (The library's own
                    // backoff takes it for a success, and so would ask each second for ever.)
                    if !matches!(event, Event::Init) {
                        failures = 0;
                    }
                    return Some((
                        event,
                        (begin, (events, again, health, (failures, page, losses))),
                    ));
                }
                Err(watcher::Error::InitialListFailed(error))
                    if is_too_large(&error) && page > 1 =>
                {
                    page = object::smaller(page);
                    tracing::warn!(
                        page,
                        "{what}: a page of the list was too large; it is listed again in smaller ones"
                    );
                    events = begin(page);
                }
                Err(error) => {
                    tracing::warn!(%error, "{what}: a watch was broken off; it is begun anew");
                    health.because(what, &error.to_string());
                    let is_lost = is_lost(&error);
                    let tries = if is_lost {
                        failures.max(losses.next())
                    } else {
                        failures
                    };
                    tokio::time::sleep(apply::pause(tries + FIRST_PAUSE)).await;
                    failures += 1;
                    if is_lost {
                        events = begin(page);
                    }
                }
            }
        }
    })
}

/// How often a watch was lost of late. The list that comes after each is no sign that the next watch
/// goes well.
#[derive(Clone, Copy, Debug, Default)]
struct Losses {
    last: Option<Instant>,
    count: u32,
}

impl Losses {
    /// A watch that was well for so long begins from nothing.
    const FORGOTTEN: Duration = Duration::from_mins(5);

    /// Counts one; gives how many there were before.
    fn next(&mut self) -> u32 {
        let now = Instant::now();
        let before = match self.last {
            Some(last) if now - last < Self::FORGOTTEN => self.count,
            _ => 0,
        };
        self.last = Some(now);
        self.count = before.saturating_add(1);
        before
    }
}

/// Whether a watch cannot go on from where it was, so that everything has to be listed again. Its
/// version may be forgotten: a watcher lists again where an event says so; where the answer itself
/// does, it would ask for the same version for ever. Or an event cannot be read: what it told of would
/// never be known, or, where it is larger than any that is read, be told of again for ever.
fn is_lost(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 410,
        // What is JSON and no event is taken for an error of the server.
        watcher::Error::WatchFailed(
            kube::Error::SerdeError(_)
            | kube::Error::Api(_)
            | kube::Error::LinesCodecMaxLineLengthExceeded,
        )
        // An event of an object without metadata. The watcher itself lists again, and at once.
        | watcher::Error::NoResourceVersion => true,
        watcher::Error::WatchFailed(error) => is_too_large(error),
        _ => false,
    }
}

/// Waits until then, or for ever.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Drives a run to its end. Should its task break down, it is taken up from its record, as after a
/// restart: that must neither stop the others nor leave it for dead.
async fn unbroken(
    context: &Arc<Context>,
    mut run: Arc<WorkflowRun>,
    mut old: bool,
    news: &mut UnboundedReceiver<Told>,
    mut charge: Charge,
) -> Option<Arc<WorkflowRun>> {
    let namespace = run.namespace().unwrap_or_default();
    let (name, uid) = (run.name_any(), run.metadata.uid.clone());
    for tries in 0.. {
        // It is not kept here: what it is to run is large.
        let work = workflow_run::drive(Arc::clone(context), run, old, news, &mut charge);
        let work = std::panic::AssertUnwindSafe(work);
        if let Ok(over) = futures::FutureExt::catch_unwind(work).await {
            return over;
        }
        tracing::error!("the run's task broke down; this is a bug of apscli");
        tokio::time::sleep(apply::pause(tries + 3)).await;
        let runs: Api<WorkflowRun> = Api::namespaced(context.client.clone(), &namespace);
        let now = context.insist("read a run again", || object::get(&runs, &name));
        let now = now.await.ok()??;
        if now.metadata.uid != uid {
            return None;
        }
        run = Arc::new(now);
        old = true;
    }
    None
}

/// Lists objects, of each the metadata only, and gives each page away.
async fn look_through<K>(
    api: &Api<K>,
    all: &ListParams,
    mut see: impl FnMut(Vec<ObjectMeta>),
) -> kube::Result<()>
where
    K: Resource + Clone,
{
    let mut pages = Pages::of_metadata(all.clone());
    while let Some(page) = pages.next::<K, Bare<K>>(api).await? {
        see(page.into_iter().map(|it| it.metadata).collect());
    }
    Ok(())
}

/// Whether a pod was made for this run, as far as that can be told.
pub(super) fn is_of(pod: &Pod, run_uid: &str) -> bool {
    let mut owners = pod.owner_references().iter();
    owners.any(|owner| owner.controller == Some(true) && owner.uid == run_uid) && has_finalizer(pod)
}

/// Whether a pod has our finalizer.
pub(super) fn has_finalizer(pod: &impl ResourceExt) -> bool {
    pod.finalizers().iter().any(|it| it == FINALIZER)
}

/// The UID of the run that owns a pod.
fn owner_of(pod: &impl ResourceExt) -> Option<&String> {
    let mut owners = pod.owner_references().iter();
    let owner = owners.find(|owner| {
        owner.controller == Some(true)
            && owner.kind == WorkflowRun::kind(&())
            && owner.api_version == WorkflowRun::api_version(&())
    });
    owner.map(|owner| &owner.uid)
}

/// Whether a pod is being deleted and waits for our finalizer to come off.
fn is_held(pod: &impl ResourceExt) -> bool {
    pod.meta().deletion_timestamp.is_some() && has_finalizer(pod)
}

/// Whether the action of a pod is over. A kubelet says so of the container first, and of the pod's
/// phase some time later.
pub(super) fn has_ended(pod: &Pod) -> bool {
    let Some(status) = &pod.status else {
        return false;
    };
    let mut containers = status.container_statuses.iter().flatten();
    let container = containers.find(|container| container.name == CONTAINER);
    let state = container.and_then(|container| container.state.as_ref());
    state.is_some_and(|state| state.terminated.is_some())
        || matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

impl Hub {
    pub(super) fn new(
        context: Arc<Context>,
        health: &Health,
        places: usize,
    ) -> (Self, UnboundedReceiver<Incoming>) {
        let (done, finished) = unbounded_channel();
        let resync = context.options.resync;
        let hub = Self {
            context,
            known: BTreeMap::new(),
            live: BTreeMap::new(),
            parked: BTreeMap::new(),
            over: BTreeMap::new(),
            expiring: BTreeSet::new(),
            gone: VecDeque::new(),
            // What went while nobody worked is of no run that is known.
            look_through: Some(Instant::now() + resync),
            looks: 1,
            survey: Some(Instant::now() + resync),
            lists: (0..places).map(|place| (place, Lists::default())).collect(),
            done,
            pulse: health.pulse("the hub", SILENCE),
            runs_needed: health.needs(RUNS),
            pods_needed: health.needs(PODS),
        };
        (hub, finished)
    }

    /// Goes on until `incoming` ends.
    pub(super) async fn run(
        mut self,
        mut incoming: impl Stream<Item = Incoming> + Unpin,
        mut finished: UnboundedReceiver<Incoming>,
    ) {
        let mut beat = tokio::time::interval(SILENCE / 6);
        let context = Arc::clone(&self.context);
        loop {
            let expires = self.expiring.first().map(|it| it.at);
            let (look_through, survey) = (self.look_through, self.survey);
            let news = tokio::select! {
                news = incoming.next() => match news {
                    Some(news) => news,
                    None => return,
                },
                Some(news) = finished.recv() => news,
                _ = beat.tick() => {
                    self.pulse.beat();
                    self.unpark();
                    continue;
                }
                () = context.runs.freed(), if !self.parked.is_empty() => {
                    self.unpark();
                    continue;
                }
                () = at(expires) => {
                    self.expire();
                    continue;
                }
                () = at(look_through) => {
                    self.look_for_held();
                    self.looks = self.looks.saturating_sub(1);
                    self.look_through = (self.looks > 0).then(|| self.next_look());
                    continue;
                }
                () = at(survey) => {
                    self.look_for_unfinished();
                    self.survey = None;
                    continue;
                }
            };
            match news {
                Incoming::Run(place, event) => self.on_run(place, event),
                Incoming::Pod(place, event) => self.on_pod(place, event),
                Incoming::Vanished(uid) => self.run_gone(&uid),
                Incoming::Held(pods) => {
                    for pod in pods {
                        let uid = self.run_of(&pod);
                        // A live run asks for its pods itself.
                        if uid.is_some_and(|uid| !self.live.contains_key(uid)) {
                            self.strip_unclaimed(&pod);
                        }
                    }
                }
                Incoming::Unfinished(place, runs) => self.take_up_untold(place, runs),
                Incoming::Surveyed => {
                    self.survey = Some(self.next_look());
                }
                // A watch may have told of it meanwhile, and knows better.
                Incoming::Untold(place, run) => {
                    let uid = run.meta().uid.as_ref();
                    if uid.is_some_and(|uid| !self.known.contains_key(uid)) {
                        self.run_applied(place, run, true);
                    }
                }
                Incoming::Waited(uid, run) => {
                    if let Some(parked) = self.parked.get_mut(&uid) {
                        parked.asked = false;
                        let place = parked.place;
                        if let Some(run) = run {
                            self.run_applied(place, run, true);
                        }
                    }
                }
                Incoming::Over(uid, run, mut unread) => {
                    self.live.remove(&uid);
                    match (run, self.known.get_mut(&uid)) {
                        (Some(run), Some(_)) => self.is_over(uid, &run),
                        (None, Some(known)) => known.going = true,
                        (_, None) => {}
                    }
                    while let Ok(told) = unread.try_recv() {
                        if let News::Pod(pod) = told.news {
                            self.tend(&pod, false);
                        }
                    }
                }
            }
        }
    }

    fn on_run(&mut self, place: Place, event: Event<Outside<WorkflowRun>>) {
        match event {
            Event::Init => self.lists.entry(place).or_default().runs = Some(BTreeSet::new()),
            Event::InitApply(run) => {
                let lists = self.lists.entry(place).or_default();
                if let (Some(listing), Some(uid)) = (&mut lists.runs, &run.meta().uid) {
                    listing.insert(uid.clone());
                }
                self.run_applied(place, run, true);
            }
            Event::InitDone => {
                let lists = self.lists.entry(place).or_default();
                let listed = lists.runs.take().unwrap_or_default();
                lists.runs_listed = true;
                let early = std::mem::take(&mut lists.early);
                let known = self.known.iter().filter(|(_, known)| known.place == place);
                let gone: Vec<String> = known
                    .map(|(uid, _)| uid)
                    .filter(|uid| !listed.contains(*uid))
                    .cloned()
                    .collect();
                for uid in gone {
                    self.missing(uid);
                }
                if self.lists.values().all(|lists| lists.runs_listed) {
                    self.runs_needed.met();
                }
                for (news, listed) in early {
                    self.pod_news(place, news, listed);
                }
            }
            Event::Apply(run) => self.run_applied(place, run, false),
            Event::Delete(run) => {
                if let Some(uid) = run.meta().uid.clone() {
                    self.run_gone(&uid);
                }
            }
        }
    }

    /// `listed`: the run may have been there before this operator looked, and somebody may have
    /// begun it.
    fn run_applied(&mut self, place: Place, run: Outside<WorkflowRun>, listed: bool) {
        let Some(uid) = run.meta().uid.clone() else {
            return;
        };
        // Told by a list that is older than what was told before. A UID is nobody else's: begun
        // anew, the run would have its pods once more.
        if !self.known.contains_key(&uid) && self.gone.contains(&uid) {
            return;
        }
        let known = self.known.entry(uid.clone()).or_insert_with(|| {
            self.context
                .metrics
                .run_moved(None, Some(RunPhase::Pending.as_str()));
            Known {
                place,
                namespace: run.meta().namespace.clone().unwrap_or_default(),
                name: run.meta().name.clone().unwrap_or_default(),
                phase: RunPhase::Pending,
                unreadable: None,
                going: false,
            }
        });
        known.going |= run.meta().deletion_timestamp.is_some();
        let going = known.going;
        let run = match run.0 {
            Ok(run) => run,
            Err(invalid) => {
                // Said once: the saying itself makes news. Of a run that was begun, its own task
                // knows better.
                let generation = invalid.metadata.generation;
                let is_new = known.unreadable.replace(generation) != Some(generation);
                let begun = self.live.contains_key(&uid) || self.over.contains_key(&uid);
                if is_new && !begun && invalid.metadata.deletion_timestamp.is_none() {
                    self.context.refuse_unreadable(&invalid);
                }
                return;
            }
        };
        let status = run.status.as_ref();
        let phase = status.and_then(|status| status.phase).unwrap_or_default();
        let before = std::mem::replace(&mut known.phase, phase);
        self.context
            .metrics
            .run_moved(Some(before.as_str()), Some(phase.as_str()));
        if let Some(live) = self.live.get(&uid) {
            // It has its content, which cannot change.
            let run = Arc::new(resolve::without_content(run));
            let _ = live.inbox.send(News::Run(run).into());
            return;
        }
        if phase.is_final() {
            self.parked.remove(&uid);
            self.is_over(uid, &run);
            return;
        }
        // What is over stays over: a watch may still show an earlier state.
        if self.over.contains_key(&uid) || going {
            return;
        }
        let begun = status.is_some_and(|status| status.start_time.is_some());
        let old = listed || begun;
        self.begin_or_park(place, uid, run, old);
    }

    /// Begins a run where its namespace's share of the memory has room for it.
    fn begin_or_park(&mut self, place: Place, uid: String, run: WorkflowRun, old: bool) {
        let pool = &self.context.runs;
        let namespace = run.namespace().unwrap_or_default();
        let bytes = resolve::size(&run);
        if let Some(charge) = pool.take(&namespace, bytes) {
            self.parked.remove(&uid);
            self.begin(place, uid, Arc::new(run), old, charge);
            return;
        }
        let is_new = !self.parked.contains_key(&uid);
        let name = run.name_any();
        let parked = Parked {
            place,
            namespace,
            name,
            bytes,
            asked: false,
        };
        if is_new {
            let why = pool.refusal(&parked.namespace, bytes);
            tracing::warn!(
                namespace = parked.namespace,
                run = parked.name,
                why,
                "a run waits for room"
            );
            let note = format!("the run waits: {why}");
            self.context.tell(&run, "TooLarge", &note, true);
        }
        self.parked.insert(uid, parked);
    }

    /// Reads runs for which there is room by now.
    fn unpark(&mut self) {
        let context = Arc::clone(&self.context);
        let asked = self.parked.values().filter(|parked| parked.asked).count();
        let waiting = self.parked.iter_mut().filter(|(_, parked)| {
            !parked.asked && context.runs.has_room(&parked.namespace, parked.bytes)
        });
        for (uid, parked) in waiting.take(UNPARKED.saturating_sub(asked)) {
            parked.asked = true;
            let (context, done) = (Arc::clone(&context), self.done.clone());
            let (uid, name) = (uid.clone(), parked.name.clone());
            let runs: Api<WorkflowRun> = Api::namespaced(context.client.clone(), &parked.namespace);
            tokio::spawn(async move {
                let found = object::look::<_, Outside<WorkflowRun>>(&runs, &name).await;
                let found = found.ok().flatten();
                let found = found.filter(|found| found.meta().uid.as_ref() == Some(&uid));
                let _ = done.send(Incoming::Waited(uid, found));
            });
        }
    }

    fn begin(
        &mut self,
        place: Place,
        uid: String,
        run: Arc<WorkflowRun>,
        old: bool,
        charge: Charge,
    ) {
        let (inbox, mut news) = unbounded_channel();
        let (context, done) = (Arc::clone(&self.context), self.done.clone());
        let span = tracing::info_span!("run", namespace = run.namespace(), name = run.name_any());
        let task = uid.clone();
        tokio::spawn(tracing::Instrument::instrument(
            async move {
                let over = unbroken(&context, run, old, &mut news, charge).await;
                let _ = done.send(Incoming::Over(task, over, news));
            },
            span,
        ));
        self.live.insert(uid, Live { place, inbox });
    }

    /// A list does not have this run. It may be an old one, and a run that is taken for gone is
    /// begun anew when it is seen again: so it is asked for first.
    fn missing(&self, uid: String) {
        let Some(known) = self.known.get(&uid) else {
            return;
        };
        let (context, done) = (Arc::clone(&self.context), self.done.clone());
        let runs: Api<WorkflowRun> = Api::namespaced(context.client.clone(), &known.namespace);
        let name = known.name.clone();
        let Some(turn) = context.tasks.begin("missing run", uid.clone()) else {
            return;
        };
        tokio::spawn(async move {
            let _turn = turn;
            let found = context
                .insist("look for a run that a list did not have", || {
                    object::metadata(&runs, &name)
                })
                .await;
            if found.ok().flatten().and_then(|found| found.uid) != Some(uid.clone()) {
                let _ = done.send(Incoming::Vanished(uid));
            }
        });
    }

    fn run_gone(&mut self, uid: &str) {
        if let Some(known) = self.known.remove(uid) {
            self.context
                .metrics
                .run_moved(Some(known.phase.as_str()), None);
        }
        if let Some(live) = self.live.remove(uid) {
            let _ = live.inbox.send(News::Gone.into());
        }
        self.parked.remove(uid);
        if let Some(expiring) = self.over.remove(uid).and_then(|over| over.expiring) {
            self.expiring.remove(&expiring);
        }
        self.stir();
        if !self.gone.iter().any(|it| it == uid) {
            self.gone.push_back(uid.to_owned());
        }
        if self.gone.len() > REMEMBERED {
            self.gone.pop_front();
        }
    }

    fn on_pod(&mut self, place: Place, event: Event<SlimPod>) {
        match event {
            Event::Init => self.lists.entry(place).or_default().pods = Some(BTreeSet::new()),
            Event::InitApply(SlimPod(pod)) => {
                let lists = self.lists.entry(place).or_default();
                if let (Some(listing), Some(uid)) = (&mut lists.pods, &pod.metadata.uid) {
                    listing.insert(uid.clone());
                }
                self.pod_news(place, News::Pod(Box::new(pod)), true);
            }
            Event::InitDone => {
                let lists = self.lists.entry(place).or_default();
                let listed = Arc::new(lists.pods.take().unwrap_or_default());
                if std::mem::replace(&mut lists.pods_listed, true) {
                    for live in self.live.values().filter(|live| live.place == place) {
                        let _ = live.inbox.send(News::Listed(Arc::clone(&listed)).into());
                    }
                }
                if self.lists.values().all(|lists| lists.pods_listed) {
                    self.pods_needed.met();
                }
            }
            Event::Apply(pod) => self.pod_news(place, News::Pod(Box::new(pod.0)), false),
            Event::Delete(pod) => self.pod_news(place, News::PodGone(Box::new(pod.0)), false),
        }
    }

    fn pod_news(&mut self, place: Place, news: News, listed: bool) {
        let (News::Pod(pod) | News::PodGone(pod)) = &news else {
            return;
        };
        let Some(uid) = self.run_of(&**pod) else {
            return;
        };
        // Its finalizer would have kept it, and told that it is being deleted: somebody took the
        // labels off by which it is watched. Or they name another run.
        let is_unwatched =
            matches!(&news, News::PodGone(_)) && pod.metadata.deletion_timestamp.is_none();
        if (is_unwatched || pod.labels().get(LABEL_RUN_UID) != Some(uid))
            && has_finalizer(&**pod)
            && self.known.contains_key(uid)
        {
            let pods = Api::namespaced(
                self.context.client.clone(),
                &pod.namespace().unwrap_or_default(),
            );
            apply::relabel_later(&self.context, pods, &pod.metadata, uid);
        }
        let lists = self.lists.entry(place).or_default();
        if let Some(live) = self.live.get(uid) {
            let _ = live.inbox.send(news.into());
        } else if !lists.runs_listed {
            // Whether its run lives is not known yet.
            lists.early.push((news, listed));
        } else if let News::Pod(pod) = news {
            self.tend(&pod, listed);
        }
    }

    /// The run that a pod was made for: its owner, whatever its labels say, where that is a run that
    /// is known.
    fn run_of<'a>(&self, pod: &'a impl ResourceExt) -> Option<&'a String> {
        let owner = owner_of(pod);
        let known = owner.filter(|uid| self.known.contains_key(*uid));
        known.or_else(|| pod.labels().get(LABEL_RUN_UID)).or(owner)
    }

    /// A pod that no live run claims.
    fn tend(&self, pod: &Pod, listed: bool) {
        if pod.metadata.deletion_timestamp.is_some() {
            self.strip_unclaimed(pod);
        } else {
            self.reap(pod, listed);
        }
    }

    /// A pod of a run that is over, and that has not ended: its creation was in doubt when the
    /// run was called off, and came to pass all the same; or its run could not go on. Or one of a
    /// run that keeps none: an operator that ended may not have come to it. (What ends under this
    /// one its run deletes, so only lists count.)
    fn reap(&self, pod: &Pod, listed: bool) {
        let uid = self.run_of(pod).cloned().unwrap_or_default();
        let Some(over) = self.over.get(&uid).filter(|_| is_of(pod, &uid)) else {
            return;
        };
        let context = Arc::clone(&self.context);
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let pod_uid = pod.uid();
        if has_ended(pod) {
            if let (true, PodRetention::Never, Some(uid)) = (listed, over.retention, pod_uid)
                && let Some(turn) = self.turn("reap", pod)
            {
                let pods = Api::namespaced(context.client.clone(), &namespace);
                tokio::spawn(async move {
                    let _turn = turn;
                    apply::delete(&context, Whose::House, &pods, &name, uid).await;
                });
            }
            return;
        }
        let Some(turn) = self.turn("reap", pod) else {
            return;
        };
        tokio::spawn(async move {
            let _turn = turn;
            // The watch of pods may lag behind: what has ended stays, for its log.
            let pods: Api<SlimPod> = Api::namespaced(context.client.clone(), &namespace);
            let now = context.insist("look at a pod", || object::get(&pods, &name));
            if let Ok(Some(SlimPod(now))) = now.await
                && now.uid() == pod_uid
                && is_of(&now, &uid)
                && !has_ended(&now)
                && let Some(pod_uid) = pod_uid
            {
                tracing::warn!(pod = name, "deleted: its run is over");
                apply::delete(&context, Whose::House, &pods, &name, pod_uid).await;
            }
        });
    }

    /// A pod that is being deleted and that no live run claims: the run's end is on record, or
    /// the run is gone.
    fn strip_unclaimed(&self, pod: &Pod) {
        if !is_held(pod) {
            return;
        }
        let uid = self.run_of(pod).cloned().unwrap_or_default();
        let known_over = self.over.contains_key(&uid) || self.gone.contains(&uid);
        let Some(turn) = self.turn("strip", pod) else {
            return;
        };
        let (context, pod) = (Arc::clone(&self.context), pod.clone());
        tokio::spawn(async move {
            let _turn = turn;
            let namespace = pod.namespace().unwrap_or_default();
            // The watch of runs may lag behind that of pods: a run that is not known is asked for.
            if !known_over && context.run_is_live(&namespace, &pod, &uid).await {
                return;
            }
            let pods = Api::namespaced(context.client.clone(), &namespace);
            apply::strip(&pods, pod, Some((&context, Whose::House))).await;
        });
    }

    /// The turn to do this to a pod; none while it is being done: each event of the pod asks for it.
    fn turn(&self, what: &'static str, pod: &Pod) -> Option<super::context::Turn> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        self.context.tasks.begin(what, uid)
    }

    /// When to ask again for what no watch may have told.
    fn next_look(&self) -> Instant {
        Instant::now() + self.context.options.resync
    }

    /// Pods may be deleted that no live run asks for.
    fn stir(&mut self) {
        let next = self.next_look();
        self.look_through.get_or_insert(next);
        self.looks = LOOKS;
    }

    /// Asks for all pods of this operator's runs, in pages.
    fn look_for_held(&self) {
        let (context, done) = (Arc::clone(&self.context), self.done.clone());
        // One that does not come to an end is not joined by others.
        let Some(turn) = context.tasks.begin("look through pods", String::new()) else {
            return;
        };
        tokio::spawn(async move {
            let _turn = turn;
            let options = &context.options;
            let ours = ListParams::default().labels(&super::pod_labels(options));
            let see = |page: Vec<ObjectMeta>| {
                let pods = page.into_iter().map(|metadata| Pod {
                    metadata,
                    ..Pod::default()
                });
                let _ = done.send(Incoming::Held(pods.filter(is_held).collect()));
            };
            for pods in super::apis::<Pod>(&context.client, &options.scope) {
                let mut tries = 0;
                // From the beginning: the rest of a list is kept for some minutes only.
                while let Err(error) = look_through(&pods, &ours, see).await {
                    tracing::warn!(%error, "cannot look through the pods yet");
                    tokio::time::sleep(apply::pause(tries)).await;
                    tries += 1;
                }
            }
        });
    }

    /// Asks for all runs that are not over. What fails is asked for again the next time.
    fn look_for_unfinished(&self) {
        let (context, done) = (Arc::clone(&self.context), self.done.clone());
        tokio::spawn(async move {
            // From the API server's memory, and so in one piece: in pages it would read them from
            // the store, with all that are over.
            let unfinished = ListParams::default().fields(UNFINISHED).match_any();
            let all = super::apis::<WorkflowRun>(&context.client, &context.options.scope);
            for (place, runs) in all.into_iter().enumerate() {
                let see = |page| {
                    let _ = done.send(Incoming::Unfinished(place, page));
                };
                let mut answer = look_through(&runs, &unfinished, see).await;
                if matches!(&answer, Err(kube::Error::Api(status)) if status.code == 400) {
                    // An API server before 1.31 knows no such field.
                    let every = ListParams::default();
                    answer = look_through(&runs, &every, see).await;
                }
                if let Err(error) = answer {
                    tracing::warn!(%error, "cannot look through the runs");
                }
            }
            let _ = done.send(Incoming::Surveyed);
        });
    }

    /// Reads those of these runs that are not known. What fails is tried again the next time.
    fn take_up_untold(&self, place: Place, mut runs: Vec<ObjectMeta>) {
        let shard = self.context.options.shard;
        runs.retain(|run| {
            let uid = run.uid.as_ref();
            uid.is_some_and(|uid| {
                shard.has(uid) && !self.known.contains_key(uid) && !self.gone.contains(uid)
            })
        });
        if runs.is_empty() {
            return;
        }
        let (context, done) = (Arc::clone(&self.context), self.done.clone());
        tokio::spawn(async move {
            for run in runs {
                let namespace = run.namespace.unwrap_or_default();
                let api: Api<WorkflowRun> = Api::namespaced(context.client.clone(), &namespace);
                let name = run.name.unwrap_or_default();
                let found = object::look::<_, Outside<WorkflowRun>>(&api, &name).await;
                if let Ok(Some(found)) = found
                    && found.meta().uid == run.uid
                {
                    let _ = done.send(Incoming::Untold(place, found));
                }
            }
        });
    }

    fn is_over(&mut self, uid: String, run: &WorkflowRun) {
        let ttl = run.spec.ttl_seconds_after_finished;
        let ttl = ttl.map(|seconds| Duration::from_secs(u64::from(seconds)));
        let ttl = ttl.or(self.context.options.default_ttl);
        let completed = run
            .status
            .as_ref()
            .and_then(|status| status.completion_time.as_ref());
        let expiring = ttl.zip(completed).map(|(ttl, completed)| {
            let age = self.context.clock.now().duration_since(completed.0);
            let age = Duration::try_from(age).unwrap_or_default();
            Expiring {
                at: Instant::now() + ttl.saturating_sub(age),
                uid: uid.clone(),
                namespace: run.namespace().unwrap_or_default(),
                name: run.name_any(),
            }
        });
        self.stir();
        let over = Over {
            expiring: expiring.clone(),
            retention: run.spec.pod_retention.unwrap_or_default(),
        };
        let before = self.over.insert(uid, over);
        if let Some(old) = before.and_then(|before| before.expiring) {
            self.expiring.remove(&old);
        }
        if run.metadata.deletion_timestamp.is_none() {
            self.expiring.extend(expiring);
        }
    }

    fn expire(&mut self) {
        while let Some(first) = self.expiring.first() {
            if first.at > Instant::now() {
                return;
            }
            let Some(expired) = self.expiring.pop_first() else {
                return;
            };
            let context = Arc::clone(&self.context);
            let Some(turn) = context.tasks.begin("expire", expired.uid.clone()) else {
                continue;
            };
            tokio::spawn(async move {
                let _turn = turn;
                let runs: Api<WorkflowRun> =
                    Api::namespaced(context.client.clone(), &expired.namespace);
                let params = DeleteParams {
                    propagation_policy: Some(PropagationPolicy::Background),
                    preconditions: Some(Preconditions {
                        uid: Some(expired.uid.clone()),
                        resource_version: None,
                    }),
                    ..DeleteParams::default()
                };
                for tries in 0.. {
                    let answer = {
                        let _slots = context.slots(Whose::House).await;
                        runs.delete(&expired.name, &params).await
                    };
                    match answer {
                        Ok(_) => {
                            tracing::info!(run = expired.name, "deleted: its time to live is over");
                            return;
                        }
                        Err(error) if is_gone(&error) => return,
                        Err(error) if is_final(&error) => {
                            tracing::error!(run = expired.name, %error, "cannot delete an expired run");
                            return;
                        }
                        Err(error) => {
                            // A conflict may be that of the precondition, or any other.
                            if is_conflict(&error)
                                && let Ok(now) = object::metadata(&runs, &expired.name).await
                                && now.is_none_or(|now| now.uid.as_ref() != Some(&expired.uid))
                            {
                                return;
                            }
                            tracing::warn!(run = expired.name, %error, "cannot delete an expired run yet");
                            tokio::time::sleep(apply::pause(tries)).await;
                        }
                    }
                }
            });
        }
    }
}
