//! Carries out a plan: starts the operator behind its proxy, does what the scenario says, waits until
//! all is over, and looks at what has come of it and what is left once the run is deleted.
//!
//! Must not know how a fault is made.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use apscli::engine::name::Attempt;
use apscli::executor::pod::build::pod_name;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams, PropagationPolicy};
use kube::{Client, ResourceExt};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::came::{Came, Pods, mask};
use super::effects::Effects;
use super::judge::{AtKill, Ended, Judged};
use super::plan::{Deleted, Plan};
use super::process::{Launch, Operator};
use super::proxy::{Fault, Ledger, Proxy, Rule, WatchFault};
use super::scenario::{Scenario, Step, said};
use super::witness::{self, PodSeen, View, Witness, api, pods, runs};

/// How long anything may take before it counts as stuck.
const STUCK: Duration = Duration::from_secs(150);
/// How long a watch may be half open before it is begun anew, and more.
const HALF_OPEN: Duration = Duration::from_secs(40);
/// How long nothing may happen before all is thought to be said.
const QUIET: Duration = Duration::from_millis(400);
/// How long a fault may keep from coming once the run is over.
const LATE: Duration = Duration::from_millis(1500);

/// Likewise where the run is gone, and the garbage collector deletes its pods.
const GARBAGE: Duration = Duration::from_secs(8);

/// How long a witness may take to hear of a pod.
const SEEN: Duration = Duration::from_secs(40);

/// How often the operator asks for what no watch has told: never while a plan lasts, so that nothing
/// else is mended by it.
const RESYNC: Duration = Duration::from_secs(900);
/// Likewise where an event never comes, and only asking can help.
const RESYNC_SOON: Duration = Duration::from_secs(10);

/// How long a leader that was held up goes on, when another leads.
const GOES_ON: Duration = Duration::from_secs(3);

/// The phases that a run does not leave.
const FINAL: [&str; 4] = ["Succeeded", "Failed", "Cancelled", "Error"];

/// Said of an operator that was started and does not watch.
pub const IDLE: &str = "the operator does not begin";

/// Where plans are carried out, one after the other.
pub struct Place {
    pub client: Client,
    pub namespace: String,
    pub witness: Witness,
    /// What proxies forward to.
    pub upstream: Client,
    effects: Effects,
    logs: PathBuf,
    /// The operator.
    pub program: PathBuf,
    /// Which rule it breaks.
    pub broken: Option<&'static str>,
    /// How long anything may take before it counts as stuck.
    pub patience: Duration,
}

impl Place {
    pub async fn new(client: &Client, logs: &Path) -> Self {
        let namespace = crate::cluster::namespace(client).await;
        let witness = Witness::start(client, &namespace);
        let effects = Effects::start(client, &namespace).await;
        Self {
            client: client.clone(),
            namespace,
            witness,
            upstream: crate::cluster::client_without_retries(crate::cluster::FAKE).await,
            effects,
            logs: logs.to_owned(),
            program: PathBuf::from(env!("CARGO_BIN_EXE_apscli")),
            broken: None,
            patience: STUCK,
        }
    }

    pub async fn end(self) {
        let namespaces: kube::Api<k8s_openapi::api::core::v1::Namespace> =
            kube::Api::all(self.client.clone());
        let _ = namespaces
            .delete(&self.namespace, &DeleteParams::background())
            .await;
    }
}

/// A run in progress.
pub struct Play<'a> {
    pub place: &'a Place,
    scenario: &'a Scenario,
    /// Each with its proxy.
    pub operators: Vec<(Operator, Proxy)>,
    /// The UIDs of the runs that were made.
    pub uids: Vec<String>,
    /// Names and UIDs of pods that somebody made in the place of ours.
    squatters: Vec<(String, String)>,
    /// The pods that were made until all was over.
    made: Option<BTreeMap<(String, String), usize>>,
    at_kill: Arc<Mutex<Option<AtKill>>>,
    /// Since when a leader that was held up goes on.
    goes_on: Arc<Mutex<Option<Instant>>>,
    /// What the operators have said.
    log: PathBuf,
    pub differences: Vec<String>,
}

/// Whether a run has a phase that it does not leave.
fn is_final(run: &Value) -> bool {
    run["status"]["phase"]
        .as_str()
        .is_some_and(|phase| FINAL.contains(&phase))
}

/// Carries out one plan.
pub async fn play(place: &Place, scenario: &Scenario, plan: &Plan, number: usize) -> Came {
    let began = Instant::now();
    let log = place.logs.join(format!("{number}.log"));
    let mut play = Play::open(place, scenario, plan.rule.clone(), plan.two, &log).await;
    play.set_hook(plan);
    play.begin().await;
    for step in &scenario.steps {
        if !play.step(step).await {
            break;
        }
    }
    let end = play.until_over(plan).await;
    let mut fired = play.operators[0].1.ledger().fired > 0 || plan.rule.is_none();
    if plan.deleted != Deleted::None {
        // Where there was none, nobody deleted any; and where all had ended, nothing was taken.
        let at_kill = play.at_kill.lock().unwrap();
        let mut ends = at_kill.iter().flat_map(|it| it.pods.values());
        fired &= ends.any(|ended| plan.deleted == Deleted::Ended || *ended != Ended::Well);
    }
    let ledger = play.ledger();
    let pods = play.pods(&ledger).await;
    play.made = Some(ledger.made.clone());
    play.pods_are_let_go().await;
    play.squatters_stand().await;
    let (did, wrong) = place.effects.take();
    play.differences.extend(wrong);
    let judged =
        fired && (plan.deleted == Deleted::All || scenario.processes && plan.ends_processes());
    if judged {
        let at_kill = play.at_kill.lock().unwrap().clone();
        let mut did = did.clone();
        // A node is tried once with each of its pods.
        for title in pods.iter().flat_map(BTreeMap::keys) {
            let (node, _) = title.split_once('/').unwrap();
            *did.entry(node.to_owned()).or_default() += 1;
        }
        let judge = Judged::new(scenario, at_kill.filter(|_| !plan.two));
        let wrong = judge.wrong(&end, &did);
        play.differences.extend(wrong);
    }
    let differences = play.close().await;
    Came {
        fired,
        differences,
        ledger,
        end,
        pods,
        did,
        took: began.elapsed(),
        judged,
    }
}
impl<'a> Play<'a> {
    pub async fn open(
        place: &'a Place,
        scenario: &'a Scenario,
        rule: Option<Rule>,
        two: bool,
        log: &Path,
    ) -> Self {
        let mut operators = Vec::new();
        let swallows = |rule: &Rule| {
            matches!(
                rule,
                Rule::Event {
                    fault: WatchFault::Swallow | WatchFault::SwallowOne,
                    ..
                }
            )
        };
        let resync = match &rule {
            Some(rule) if swallows(rule) => RESYNC_SOON,
            _ => RESYNC,
        };
        for which in 0..=usize::from(two) {
            let rules = if which == 0 { rule.clone() } else { None };
            let rules = rules.into_iter().collect();
            let proxy = Proxy::start(place.upstream.clone(), rules).await;
            for (resource, name) in &scenario.garbled {
                proxy.garble(resource, name);
            }
            let processes = [
                format!("--process-namespace={}", place.namespace),
                "--process-network".to_owned(),
            ];
            let broken = |rule: &str| ("APSCLI_BROKEN_RULE".to_owned(), rule.to_owned());
            let operator = Operator::new(Launch {
                program: place.program.clone(),
                namespace: place.namespace.clone(),
                api: proxy.address,
                elects: two,
                log: log.to_owned(),
                resync,
                more: scenario
                    .processes
                    .then_some(processes)
                    .into_iter()
                    .flatten()
                    .collect(),
                variables: place.broken.map(broken).into_iter().collect(),
            });
            operators.push((operator, proxy));
        }
        Self {
            place,
            scenario,
            operators,
            uids: Vec::new(),
            squatters: Vec::new(),
            made: None,
            at_kill: Arc::default(),
            goes_on: Arc::default(),
            log: log.to_owned(),
            differences: Vec::new(),
        }
    }

    /// Starts the operator, and then the run.
    pub async fn begin(&mut self) {
        for object in &self.scenario.before {
            self.create(object).await;
        }
        self.operators[0].0.start();
        if !self.watches(0).await {
            self.differences.push(IDLE.to_owned());
        }
        if let Some((second, _)) = self.operators.get(1) {
            second.start();
        }
        self.create_run().await;
    }

    /// Takes everything away; what was wrong comes back.
    pub async fn close(self) -> Vec<String> {
        self.close_with(None).await
    }

    /// Likewise, where somebody has restarted operators that had ended.
    pub async fn close_with(mut self, keeper: Option<tokio::task::JoinHandle<()>>) -> Vec<String> {
        self.clean_up().await;
        if let Some(keeper) = keeper {
            keeper.abort();
            let _ = keeper.await;
        }
        let made = self.ledger().made;
        if self.made.as_ref().is_some_and(|before| *before != made) {
            let why = format!("pods made after all was over: {made:?}");
            self.differences.push(why);
        }
        if let [(operator, _)] = self.operators.as_slice() {
            operator.lives();
            self.differences.extend(operator.accidents());
        }
        // Of two, one that has lost its Lease ends as it should; neither may panic.
        let said = std::fs::read_to_string(&self.log).unwrap_or_default();
        let panics = said.lines().filter(|line| line.contains("panicked at"));
        self.differences.extend(panics.map(str::to_owned));
        for (operator, proxy) in &self.operators {
            operator.retire();
            proxy.close();
        }
        if self.operators.len() > 1 {
            self.forget_leader().await;
        }
        // Runners see that the operator is gone, and end by themselves.
        let deadline = Instant::now() + self.place.patience;
        let left = || self.operators.iter().any(|(it, _)| it.leaves_folders());
        while left() && Instant::now() < deadline {
            sleep(Duration::from_millis(20)).await;
        }
        if left() {
            let why = "a runner's folder is left behind".to_owned();
            self.differences.push(why);
        }
        self.differences
    }

    /// The next two stand for election as if nobody had led before.
    async fn forget_leader(&self) {
        let leases: kube::Api<k8s_openapi::api::coordination::v1::Lease> =
            kube::Api::namespaced(self.place.client.clone(), &self.place.namespace);
        let (params, every) = (DeleteParams::default(), kube::api::ListParams::default());
        let deleted = insist(|| leases.delete_collection(&params, &every)).await;
        deleted.unwrap();
    }

    /// Who acts when the rule comes to hold.
    fn set_hook(&self, plan: &Plan) {
        let (operator, proxy) = self.operators[0].clone();
        let second = self.operators.get(1).cloned();
        let deleted = plan.deleted;
        let (client, namespace) = (self.place.client.clone(), self.place.namespace.clone());
        let (at_kill, goes_on) = (Arc::clone(&self.at_kill), Arc::clone(&self.goes_on));
        let weak = proxy.downgrade();
        proxy.hook(move |fault| {
            let (at_kill, goes_on) = (Arc::clone(&at_kill), Arc::clone(&goes_on));
            let (operator, second, weak) = (operator.clone(), second.clone(), weak.clone());
            let (client, namespace) = (client.clone(), namespace.clone());
            async move {
                let Some(proxy) = weak.upgrade() else { return };
                match fault {
                    Fault::KillBefore | Fault::KillUnanswered | Fault::KillAfter => {
                        operator.kill();
                        // What is on its way arrives, and pods go on.
                        sleep(match deleted {
                            Deleted::None => Duration::ZERO,
                            Deleted::Ended => Duration::from_millis(700),
                            Deleted::All => Duration::from_millis(300),
                        })
                        .await;
                        let runs = runs(&client, &namespace);
                        let run = insist(|| runs.get("r")).await.ok();
                        let pods = delete_pods(&client, &namespace, deleted).await;
                        *at_kill.lock().unwrap() = run.map(|run| AtKill {
                            record: serde_json::to_value(run).unwrap(),
                            pods,
                        });
                        proxy.open();
                        operator.start();
                    }
                    // The other takes over; then the first goes on, and what it has sent arrives.
                    Fault::HoldBefore | Fault::HoldUntilFinal | Fault::HoldUnanswered => {
                        operator.signal(Signal::STOP);
                        let Some((_, other)) = second else { return };
                        tokio::spawn(async move {
                            let deadline = Instant::now() + STUCK;
                            while !other.watches(&["pods", "workflowruns"]) {
                                if Instant::now() > deadline {
                                    return;
                                }
                                sleep(Duration::from_millis(50)).await;
                            }
                            if fault == Fault::HoldUntilFinal {
                                let runs = runs(&client, &namespace);
                                while !insist(|| runs.get("r"))
                                    .await
                                    .is_ok_and(|it| is_final(&it.data))
                                {
                                    if Instant::now() > deadline {
                                        return;
                                    }
                                    sleep(Duration::from_millis(50)).await;
                                }
                            }
                            sleep(Duration::from_secs(1)).await;
                            proxy.release();
                            sleep(Duration::from_millis(200)).await;
                            operator.signal(Signal::CONT);
                            *goes_on.lock().unwrap() = Some(Instant::now());
                        });
                    }
                    // A new one is there before the old one goes, as in a rolling update.
                    Fault::Tell => operator.end().await,
                    _ => {}
                }
            }
        });
    }

    async fn watches(&self, which: usize) -> bool {
        let (operator, proxy) = &self.operators[which];
        let deadline = Instant::now() + self.place.patience;
        while !proxy.watches(&["pods", "workflowruns"]) {
            // One of two that a rule holds up before it watches goes on only when the other has
            // begun.
            if self.operators.len() > 1 && proxy.ledger().fired > 0 {
                return true;
            }
            // One that a rule has killed comes again. One of two that could not renew its Lease in
            // time, on a busy machine, ends as it should and is started again.
            let ended = !operator.lives() && !operator.accidents().is_empty();
            if ended && self.operators.len() > 1 {
                proxy.open();
                operator.start();
            } else if ended || Instant::now() > deadline {
                return false;
            }
            sleep(Duration::from_millis(10)).await;
        }
        true
    }

    pub async fn create(&self, object: &Value) -> Value {
        let text = |name: &str| object[name].as_str().unwrap();
        let (group, version) = text("apiVersion").split_once('/').unwrap_or(("", "v1"));
        let api = api(
            &self.place.client,
            &self.place.namespace,
            group,
            version,
            text("kind"),
        );
        let text = self.place.effects.fill(&object.to_string());
        let object: DynamicObject = serde_json::from_str(&text).unwrap();
        let params = PostParams::default();
        let made = insist(|| async {
            match api.create(&params, &object).await {
                // The answer to the try before was lost.
                Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
                    api.get(&object.name_any()).await
                }
                answer => answer,
            }
        });
        serde_json::to_value(made.await.unwrap()).unwrap()
    }

    async fn create_run(&mut self) {
        let made = self.create(&self.scenario.run).await;
        let uid = made["metadata"]["uid"].as_str().unwrap().to_owned();
        self.uids.push(uid);
    }

    /// Waits for a view; not to see it is a difference.
    pub async fn until(&mut self, what: &str, wanted: impl Fn(&View) -> bool) -> bool {
        let seen = self.place.witness.until(self.place.patience, wanted).await;
        if !seen {
            let view = self.place.witness.view();
            let run = view.runs.get("r").map(|run| run["status"].to_string());
            let pods: Vec<String> = view
                .pods_of("r")
                .map(|pod| {
                    let is = match (pod.gone, pod.going) {
                        (true, _) => " gone",
                        (false, true) => " going",
                        (false, false) => "",
                    };
                    format!("{} {}{is}", pod.title, pod.phase)
                })
                .collect();
            let run = run.unwrap_or_default();
            self.differences
                .push(format!("stuck: {what}; pods {pods:?}; status {run}"));
        }
        seen
    }

    #[allow(clippy::too_many_lines, reason = "a list")]
    pub async fn step(&mut self, step: &Step) -> bool {
        let (client, namespace) = (&self.place.client.clone(), &self.place.namespace.clone());
        let uid = self.uids.last().cloned().unwrap_or_default();
        let is_of = |view: &View| view.uid("r").as_deref() == Some(&*uid);
        match step {
            Step::UntilRuns(title) => {
                let what = format!("{title} does not run");
                self.until(&what, |view| {
                    let mut pods = view.pods.values();
                    pods.any(|pod| pod.run == uid && pod.title == *title && pod.phase == "Running")
                })
                .await
            }
            Step::UntilGone(title) => {
                let what = format!("{title} is still there");
                self.until(&what, |view| {
                    let mut pods = view.pods.values();
                    pods.any(|pod| pod.run == uid && pod.title == *title && pod.gone)
                })
                .await
            }
            Step::UntilNode(node, phase) => {
                let what = format!("{node} is not {phase}");
                self.until(&what, |view| {
                    is_of(view) && view.node_phase("r", node) == Some(phase)
                })
                .await
            }
            Step::UntilPhase(phase) => {
                let what = format!("the run is not {phase}");
                self.until(&what, |view| is_of(view) && view.phase("r") == Some(phase))
                    .await
            }
            Step::UntilCancelled => {
                self.until("the run is not cancelled", |view| {
                    let run = view.runs.get("r").filter(|_| is_of(view));
                    run.is_some_and(|run| !run["status"]["cancelCause"].is_null())
                })
                .await
            }
            Step::UntilKnown => {
                sleep(HALF_OPEN).await;
                true
            }
            Step::Patch(spec) => {
                let patch = Patch::Merge(json!({"spec": spec}));
                let runs = runs(client, namespace);
                let params = PatchParams::default();
                let patched = insist(|| runs.patch("r", &params, &patch)).await;
                patched.is_ok()
            }
            Step::PatchService(patch) => {
                let services = api(client, namespace, "apscli.dev", "v1alpha1", "Service");
                let patch = Patch::Merge(patch);
                let params = PatchParams::default();
                let patched = insist(|| services.patch("s", &params, &patch)).await;
                patched.unwrap();
                // The operator has to have seen it, or it could not have gone wrong by it.
                sleep(Duration::from_millis(300)).await;
                true
            }
            Step::End(title, code) => {
                let name = self.pod_name(&uid, title);
                end_pod(client, namespace, &name, *code).await;
                true
            }
            Step::DeletePod(title) => {
                let name = self.pod_name(&uid, title);
                let pods = pods(client, namespace);
                let params = DeleteParams::default();
                let deleted = insist(|| pods.delete(&name, &params)).await;
                deleted.unwrap();
                true
            }
            Step::DeleteRun => {
                self.delete_run().await;
                true
            }
            Step::Recreate => {
                self.create_run().await;
                true
            }
            Step::AskToDeleteRun => {
                self.ask_to_delete_run().await;
                true
            }
            Step::LetRunGo => {
                let patch = Patch::Merge(json!({"metadata": {"finalizers": null}}));
                let (runs, params) = (runs(client, namespace), PatchParams::default());
                let _ = insist(|| runs.patch("r", &params, &patch)).await;
                self.delete_run().await;
                true
            }
            Step::NotBegun(node) => {
                sleep(Duration::from_secs(1)).await;
                let view = self.place.witness.view();
                let mut pods = view.pods.values();
                let title = format!("{node}/");
                if pods.any(|pod| pod.run == uid && pod.title.starts_with(&title)) {
                    self.differences
                        .push(format!("{node} has begun, and must not have"));
                }
                true
            }
            Step::Squat(title) => {
                self.squat(&uid, title).await;
                true
            }
            Step::Replace(title) => {
                let name = name_of(&uid, title);
                let pods = pods(client, namespace);
                let patch = Patch::Merge(json!({"metadata": {"finalizers": null}}));
                let params = PatchParams::default();
                let _ = insist(|| pods.patch(&name, &params, &patch)).await;
                let at_once = DeleteParams::default().grace_period(0);
                let _ = insist(|| pods.delete(&name, &at_once)).await;
                let deadline = Instant::now() + self.place.patience;
                while !matches!(pods.get_opt(&name).await, Ok(None)) {
                    if Instant::now() > deadline {
                        let why = format!("{title} cannot be taken away");
                        self.differences.push(why);
                        return false;
                    }
                    sleep(Duration::from_millis(10)).await;
                }
                self.squat(&uid, title).await;
                true
            }
        }
    }

    pub fn pod_name(&self, uid: &str, title: &str) -> String {
        let view = self.place.witness.view();
        let mut pods = view.pods.into_values();
        let found = pods.find(|pod| pod.run == uid && pod.title == title && !pod.gone);
        found.unwrap().name
    }

    /// Makes a pod of nobody's where one of ours is, or is to be.
    async fn squat(&mut self, uid: &str, title: &str) {
        let name = name_of(uid, title);
        let squatter =
            crate::cluster::pod(&name, "fake", "", &[("fake.apscli.dev/seconds", "forever")]);
        let mut squatter = serde_json::to_value(squatter).unwrap();
        squatter["apiVersion"] = json!("v1");
        squatter["kind"] = json!("Pod");
        let made = self.create(&squatter).await;
        let uid = made["metadata"]["uid"].as_str().unwrap().to_owned();
        self.squatters.push((name, uid));
    }

    /// What others made is left alone; that it is not is a difference.
    async fn squatters_stand(&mut self) {
        let pods = pods(&self.place.client, &self.place.namespace);
        for (name, uid) in &self.squatters {
            let found = insist(|| pods.get_opt(name)).await.ok().flatten();
            let stands = found.is_some_and(|it| {
                it.metadata.uid.as_ref() == Some(uid) && it.metadata.deletion_timestamp.is_none()
            });
            if !stands {
                self.differences
                    .push("a pod that somebody else made was deleted".to_owned());
            }
        }
    }

    /// What is over has nothing left that runs, or that is deleted and held by our finalizer; where
    /// pods are not kept there is none, nor where their run is gone.
    async fn pods_are_let_go(&mut self) {
        let keeps = self.scenario.run["spec"]["podRetention"] != "Never";
        let uids = self.uids.clone();
        let let_go = move |view: &View| {
            let ours = |pod: &&PodSeen| uids.contains(&pod.run) && !pod.gone;
            view.pods.values().filter(ours).all(|pod| {
                let ended = matches!(&*pod.phase, "Succeeded" | "Failed");
                let kept = keeps && view.uid("r").as_deref() == Some(&*pod.run);
                kept && ended && !pod.going
            })
        };
        self.until("not all pods are let go", let_go).await;
    }

    async fn ask_to_delete_run(&self) {
        let runs = runs(&self.place.client, &self.place.namespace);
        let mut params = DeleteParams::background();
        params.propagation_policy = Some(PropagationPolicy::Background);
        let _ = insist(|| runs.delete("r", &params)).await;
    }

    async fn delete_run(&self) {
        self.ask_to_delete_run().await;
        let runs = runs(&self.place.client, &self.place.namespace);
        let deadline = Instant::now() + self.place.patience;
        while !matches!(runs.get_opt("r").await, Ok(None)) && Instant::now() < deadline {
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn until_final(&mut self) -> bool {
        let uid = self.uids.last().cloned().unwrap_or_default();
        self.until("the run is not over", |view| {
            let over = FINAL.contains(&view.phase("r").unwrap_or_default());
            over && view.uid("r").as_deref() == Some(&*uid)
        })
        .await
    }

    /// The end state, once nothing more is done.
    async fn until_over(&mut self, plan: &Plan) -> Value {
        if self.scenario.ends.is_some() {
            self.until_final().await;
        }
        // What is still to be said: the fault may come late.
        let deletes = |step: &Step| matches!(step, Step::DeleteRun | Step::LetRunGo);
        let late = if self.scenario.steps.iter().any(deletes) {
            GARBAGE
        } else {
            LATE
        };
        let over = Instant::now();
        let deadline = over + self.place.patience;
        let mut last = (self.said(), Instant::now());
        loop {
            sleep(Duration::from_millis(25)).await;
            let said = self.said();
            if said != last.0 {
                last = (said, Instant::now());
            }
            // A clean run waits as well: what comes late is to be among its writes.
            let fired = match plan.rule {
                Some(_) => self.operators[0].1.ledger().fired > 0,
                None => late == LATE,
            };
            let quiet = last.1.elapsed() > QUIET;
            // A write that is late, or held, still does what it does.
            let busy = self.operators.iter().any(|(_, proxy)| proxy.is_busy());
            let has_gone_on =
                (self.goes_on.lock().unwrap()).is_some_and(|since| since.elapsed() > GOES_ON);
            let held = fired && plan.holds() && !has_gone_on;
            let over = quiet && !busy && !held && (fired || over.elapsed() > late);
            if over {
                break;
            }
            if Instant::now() > deadline {
                let what = if held {
                    "no other takes over from the one that is held up"
                } else {
                    "it does not come to rest"
                };
                self.differences.push(what.to_owned());
                break;
            }
        }
        // One that was started anew must have looked around. (Of two, one may stand by for ever.)
        if !plan.two && !self.watches(0).await {
            let why = "the operator is not there at the end".to_owned();
            self.differences.push(why);
        }
        self.services_are_checked().await;
        sleep(QUIET).await;
        self.end_state().await
    }

    /// Each service that the scenario has made says what its last change has come to.
    async fn services_are_checked(&mut self) {
        let services = api(
            &self.place.client,
            &self.place.namespace,
            "apscli.dev",
            "v1alpha1",
            "Service",
        );
        let every = kube::api::ListParams::default();
        let deadline = Instant::now() + self.place.patience;
        loop {
            let found = insist(|| services.list(&every)).await.unwrap().items;
            let is_checked = |service: &DynamicObject| {
                let seen = service.data["status"]["observedGeneration"].as_i64();
                seen.is_some() && seen == service.metadata.generation
            };
            if found.iter().all(is_checked) {
                return;
            }
            if Instant::now() > deadline {
                let why = "not all services are checked".to_owned();
                self.differences.push(why);
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn said(&self) -> usize {
        let proxies = self.operators.iter();
        proxies
            .map(|(_, proxy)| {
                proxy
                    .ledger()
                    .writes
                    .iter()
                    .filter(|it| it.0.resource != "leases")
                    .count()
            })
            .sum()
    }

    /// The pods that are on record are those that there were.
    async fn recorded_are_there(&mut self, end: &Value) {
        for (run, title, uid) in recorded(end) {
            let is_its = |view: &View| {
                let pod = view.pods.get(&uid);
                pod.is_some_and(|pod| pod.title == title && pod.run == run)
            };
            // The witness may not have heard of it yet.
            if !self.place.witness.until(SEEN, is_its).await {
                let why = format!("on record for {title} is the pod {uid}, which is not its");
                self.differences.push(why);
            }
        }
    }

    pub async fn end_state(&mut self) -> Value {
        let (client, namespace) = (&self.place.client, &self.place.namespace);
        let list = async |kind: &str| {
            let api = api(client, namespace, "apscli.dev", "v1alpha1", kind);
            let params = kube::api::ListParams::default();
            let found = insist(|| api.list(&params)).await.unwrap();
            let mut found = serde_json::to_value(found.items).unwrap();
            // A page has no status of its own: its generation counts its writes, and how many
            // changes one takes along is a matter of pace.
            if kind == "WorkflowRunPage" {
                for page in found.as_array_mut().unwrap() {
                    page["metadata"]["generation"].take();
                }
            }
            found
        };
        let mut end = json!({
            "runs": list("WorkflowRun").await,
            "pages": list("WorkflowRunPage").await,
            "services": list("Service").await,
        });
        self.recorded_are_there(&end).await;
        let mut words = self.uids.clone();
        words.push(namespace.clone());
        words.extend(self.squatters.iter().map(|(name, _)| name.clone()));
        mask(&mut end, &words);
        end
    }

    pub fn ledger(&self) -> Ledger {
        let mut all = self.operators[0].1.ledger();
        for (_, proxy) in self.operators.iter().skip(1) {
            for (of, made) in proxy.ledger().made {
                *all.made.entry(of).or_default() += made;
            }
        }
        all
    }

    /// For each run, the pods of each attempt.
    pub async fn pods(&mut self, ledger: &Ledger) -> Vec<BTreeMap<String, Pods>> {
        // The witness may hear of the run's end before it hears of the last pod.
        let heard = |view: &View| {
            let heard_of = |of: &(String, String)| {
                let mut pods = view.pods.values();
                pods.any(|pod| pod.run == of.0 && pod.title == of.1)
            };
            ledger.made.keys().all(heard_of)
        };
        self.place.witness.until(self.place.patience, heard).await;
        let view = self.place.witness.view();
        let mut all = Vec::new();
        for uid in &self.uids {
            let mut pods: BTreeMap<String, Pods> = BTreeMap::new();
            for ((run, title), made) in &ledger.made {
                if run == uid {
                    pods.entry(title.clone()).or_default().made += made;
                }
            }
            for pod in view.pods.values().filter(|pod| pod.run == *uid) {
                let entry = pods.entry(pod.title.clone()).or_default();
                entry.seen += 1;
                entry.ran += usize::from(pod.ran);
            }
            for (title, pods) in &pods {
                if (pods.made, pods.seen) != (1, 1) {
                    self.differences
                        .push(format!("{title}: {pods:?}, expected one pod"));
                }
            }
            all.push(pods);
        }
        all
    }

    /// Of two, one that could not renew its Lease in time, on a busy machine, ends as it should. Where
    /// both have, somebody has to be there.
    fn start_what_has_ended(&self) {
        if self.operators.len() < 2 || self.operators.iter().any(|(it, _)| it.lives()) {
            return;
        }
        for (operator, proxy) in &self.operators {
            if !operator.accidents().is_empty() {
                proxy.open();
                operator.start();
            }
        }
    }

    /// Deletes the run, and waits until nothing is left of it.
    async fn clean_up(&mut self) {
        self.delete_run().await;
        let at_once = DeleteParams::default().grace_period(0);
        for (name, _) in &self.squatters {
            let pods = pods(&self.place.client, &self.place.namespace);
            let _ = insist(|| pods.delete(name, &at_once)).await;
        }
        let (client, namespace) = (&self.place.client, &self.place.namespace);
        for object in &self.scenario.before {
            let (group, version) = object["apiVersion"]
                .as_str()
                .unwrap()
                .split_once('/')
                .unwrap_or(("", "v1"));
            let api = api(
                client,
                namespace,
                group,
                version,
                object["kind"].as_str().unwrap(),
            );
            let name = object["metadata"]["name"].as_str().unwrap();
            let params = DeleteParams::default();
            let _ = insist(|| api.delete(name, &params)).await;
        }
        let deadline = Instant::now() + self.place.patience;
        let mut pause = Duration::from_millis(100);
        loop {
            let mut left = witness::left(client, namespace).await;
            let processes = self.place.effects.open();
            left.extend((processes > 0).then(|| format!("{processes} processes")));
            if left.is_empty() {
                return;
            }
            if Instant::now() > deadline {
                self.differences.push(format!("left behind: {left:?}"));
                let _ = pods(client, namespace)
                    .delete_collection(&DeleteParams::default(), &kube::api::ListParams::default())
                    .await;
                return;
            }
            self.start_what_has_ended();
            // A new leader keeps names for a minute: nobody asks all the time.
            sleep(pause).await;
            pause = (pause * 3 / 2).min(Duration::from_secs(3));
        }
    }
}
/// The test's own calls are none of what is tested: they are made until there is an answer.
pub async fn insist<T, F>(ask: impl Fn() -> F) -> kube::Result<T>
where
    F: Future<Output = kube::Result<T>>,
{
    for _ in 0..60 {
        match ask().await {
            Err(kube::Error::Api(status)) if status.code < 500 && status.code != 429 => {
                return Err(kube::Error::Api(status));
            }
            Err(_) => sleep(Duration::from_millis(500)).await,
            answer => return answer,
        }
    }
    ask().await
}

/// The name of a run's pod that is called so.
fn name_of(uid: &str, title: &str) -> String {
    let (node, attempt) = title.split_once('/').unwrap();
    let attempt = Attempt::new(attempt.parse().unwrap()).unwrap();
    pod_name(uid, &node.parse().unwrap(), attempt)
}

/// A pod's only container ends.
async fn end_pod(client: &Client, namespace: &str, name: &str, code: i32) {
    let pods = pods(client, namespace);
    let pod = insist(|| pods.get(name)).await.unwrap();
    let pod = serde_json::to_value(pod).unwrap();
    let mut statuses = pod["status"]["containerStatuses"].clone();
    let begun = statuses[0]["state"]["running"]["startedAt"].clone();
    statuses[0]["state"] = json!({"running": null, "terminated": {
        "exitCode": code, "reason": "Completed", "message": said(code),
        "startedAt": begun, "finishedAt": begun,
    }});
    statuses[0]["ready"] = json!(false);
    let phase = if code == 0 { "Succeeded" } else { "Failed" };
    let patch = Patch::Merge(json!({"status": {"phase": phase, "containerStatuses": statuses}}));
    let params = PatchParams::default();
    let ended = insist(|| pods.patch_status(name, &params, &patch));
    ended.await.unwrap();
}

/// Deletes pods of a namespace. Gives back how those that were deleted have ended, which their
/// finalizer keeps readable, by `NODE/ATTEMPT`.
async fn delete_pods(client: &Client, namespace: &str, which: Deleted) -> BTreeMap<String, Ended> {
    let pods = pods(client, namespace);
    let every = kube::api::ListParams::default();
    let mut ends = BTreeMap::new();
    // Those that had not ended when they were deleted.
    let mut stopped = BTreeSet::new();
    // What has not ended yet is looked at again.
    let mut again = which != Deleted::None;
    let deadline = Instant::now() + STUCK;
    while std::mem::take(&mut again) && Instant::now() < deadline {
        let Ok(all) = insist(|| pods.list(&every)).await else {
            break;
        };
        for pod in all.items {
            let value = serde_json::to_value(&pod).unwrap();
            let phase = value["status"]["phase"].as_str().unwrap_or_default();
            let ended = matches!(phase, "Succeeded" | "Failed");
            if which == Deleted::Ended && !ended {
                continue;
            }
            if pod.metadata.deletion_timestamp.is_none() && is_about_to_end(&value) {
                again = true;
                sleep(Duration::from_millis(20)).await;
            } else if pod.metadata.deletion_timestamp.is_none() {
                stopped.extend(pod.uid().filter(|_| !ended));
                // One without a finalizer is gone at once.
                let how = if ended { Ended::Well } else { Ended::Stopped };
                ends.extend(witness::title(&value).map(|title| (title, how)));
                let _ = pods.delete(&pod.name_any(), &DeleteParams::default()).await;
                again = true;
            } else if ended || value["spec"]["nodeName"].is_null() {
                let was_stopped = pod.uid().is_some_and(|uid| stopped.contains(&uid));
                let how = match (phase, was_stopped) {
                    ("Succeeded", false) => Ended::Well,
                    ("Succeeded", true) => Ended::Either,
                    _ => Ended::Stopped,
                };
                ends.extend(witness::title(&value).map(|title| (title, how)));
            } else {
                again = true;
                sleep(Duration::from_millis(20)).await;
            }
        }
    }
    ends
}

/// A fake kubelet that stops a pod just as it ends says both, one after the other.
fn is_about_to_end(pod: &Value) -> bool {
    let running = &pod["status"]["containerStatuses"][0]["state"]["running"];
    let since: Option<jiff::Timestamp> =
        (running["startedAt"].as_str()).and_then(|text| text.parse().ok());
    // It tells whole seconds, and may be late.
    since.is_some_and(|since| jiff::Timestamp::now().duration_since(since).as_millis() > 1200)
}

/// The pods that are on record: the UID of the run, the attempt, and the pod's own UID.
fn recorded(end: &Value) -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    let objects = ["runs", "pages"].map(|kind| end[kind].as_array().cloned());
    for object in objects.into_iter().flatten().flatten() {
        // A page belongs to its run.
        let owner = object.pointer("/metadata/ownerReferences/0/uid");
        let run = owner.or_else(|| object.pointer("/metadata/uid"));
        let run = run.and_then(Value::as_str).unwrap_or_default();
        let lists = ["/status/nodes", "/spec/nodes"].map(|list| object.pointer(list));
        let lists = lists.into_iter().flatten().filter_map(Value::as_array);
        for node in lists.flatten() {
            if let Some(uid) = node["pod"]["uid"].as_str() {
                let title = format!("{}/{}", node["name"].as_str().unwrap(), node["attempt"]);
                found.push((run.to_owned(), title, uid.to_owned()));
            }
        }
    }
    found
}
