//! Plans: each scenario is run clean, and then once for each write (or event) and each fault. What
//! comes of it must be the same.
//!
//! Compared are the end state (without what differs from run to run: UIDs, times), the pods that
//! were made and that ran, one for each attempt, and that nothing is left once the run is deleted.
//! Must not know how a fault is made.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams, PropagationPolicy};
use kube::{Client, ResourceExt};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::process::{Launch, Operator};
use super::proxy::{Fault, Key, Ledger, Proxy, Refusal, Rule, Said, WatchFault};
use super::scenario::{PODS_GO, Scenario, Step, said};
use super::witness::{self, View, Witness, api, pods, runs};

/// How long anything may take before it counts as stuck.
const STUCK: Duration = Duration::from_secs(150);
/// How long nothing may happen before all is thought to be said.
const QUIET: Duration = Duration::from_millis(400);
/// How long a fault may keep from coming once the run is over.
const LATE: Duration = Duration::from_millis(1500);

/// What goes wrong in one run of a scenario.
#[derive(Clone, Debug)]
pub struct Plan {
    pub scenario: usize,
    /// What goes wrong, in words; one column of the table.
    pub fault: String,
    /// Where.
    pub at: String,
    pub rule: Option<Rule>,
    /// Somebody deletes every pod that has ended while the operator is down.
    pub pods_deleted: bool,
    /// Two operators stand for election.
    pub two: bool,
}

/// What came of a plan.
#[derive(Debug, Default)]
pub struct Came {
    /// Whether the fault came about.
    pub fired: bool,
    pub differences: Vec<String>,
    ledger: Ledger,
    end: Value,
    pods: Vec<BTreeMap<String, Pods>>,
}

/// The pods of one attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pods {
    /// As the proxy counts what was created.
    made: usize,
    /// As the witness counts UIDs.
    seen: usize,
    ran: usize,
}

/// Where plans are carried out, one after the other.
pub struct Place {
    pub client: Client,
    pub namespace: String,
    pub witness: Witness,
    /// What proxies forward to.
    pub upstream: Client,
    logs: PathBuf,
}

impl Place {
    pub async fn new(client: &Client, logs: &Path) -> Self {
        let namespace = crate::cluster::namespace(client).await;
        let witness = Witness::start(client, &namespace);
        Self {
            client: client.clone(),
            namespace,
            witness,
            upstream: client.clone(),
            logs: logs.to_owned(),
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
    differences: Vec<String>,
}

/// Carries out one plan.
pub async fn play(place: &Place, scenario: &Scenario, plan: &Plan, number: usize) -> Came {
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
    let fired = play.operators[0].1.ledger().fired > 0 || plan.rule.is_none();
    let ledger = play.ledger();
    let pods = play.pods(&ledger);
    let differences = play.close().await;
    Came {
        fired,
        differences,
        ledger,
        end,
        pods,
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
        for which in 0..=usize::from(two) {
            let rules = if which == 0 { rule.clone() } else { None };
            let rules = rules.into_iter().collect();
            let proxy = Proxy::start(place.upstream.clone(), rules).await;
            let operator = Operator::new(Launch {
                namespace: place.namespace.clone(),
                api: proxy.address,
                elects: two,
                log: log.to_owned(),
                more: Vec::new(),
            });
            operators.push((operator, proxy));
        }
        Self {
            place,
            scenario,
            operators,
            uids: Vec::new(),
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
            self.differences
                .push("the operator does not begin".to_owned());
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
        if self.operators.len() == 1 {
            self.differences.extend(self.operators[0].0.accidents());
        }
        for (operator, proxy) in &self.operators {
            operator.kill();
            proxy.close();
        }
        self.differences
    }

    /// Who acts when the rule comes to hold.
    fn set_hook(&self, plan: &Plan) {
        let (operator, proxy) = self.operators[0].clone();
        let second = self.operators.get(1).cloned();
        let pods_deleted = plan.pods_deleted;
        let (client, namespace) = (self.place.client.clone(), self.place.namespace.clone());
        let weak = proxy.downgrade();
        proxy.hook(move |fault| {
            let (operator, second, weak) = (operator.clone(), second.clone(), weak.clone());
            let (client, namespace) = (client.clone(), namespace.clone());
            async move {
                let Some(proxy) = weak.upgrade() else { return };
                match fault {
                    Fault::KillBefore | Fault::KillUnanswered | Fault::KillAfter => {
                        operator.kill();
                        if pods_deleted {
                            delete_ended(&client, &namespace).await;
                        }
                        proxy.open();
                        operator.start();
                    }
                    // The other takes over; then the first goes on, and what it has sent arrives.
                    Fault::HoldBefore | Fault::HoldUnanswered => {
                        operator.signal(Signal::STOP);
                        let Some((_, other)) = second else { return };
                        tokio::spawn(async move {
                            let deadline = Instant::now() + STUCK;
                            while !other.watches(&["pods", "workflowruns"])
                                && Instant::now() < deadline
                            {
                                sleep(Duration::from_millis(50)).await;
                            }
                            sleep(Duration::from_secs(1)).await;
                            proxy.release();
                            sleep(Duration::from_millis(200)).await;
                            operator.signal(Signal::CONT);
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
        let deadline = Instant::now() + STUCK;
        while !proxy.watches(&["pods", "workflowruns"]) {
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
        let object = serde_json::from_value(object.clone()).unwrap();
        let object: DynamicObject = object;
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
        let seen = self.place.witness.until(STUCK, wanted).await;
        if !seen {
            let view = self.place.witness.view();
            let run = view.runs.get("r").map(|run| run["status"].to_string());
            let pods: Vec<String> = view
                .pods_of("r")
                .map(|pod| format!("{} {}", pod.title, pod.phase))
                .collect();
            let run = run.unwrap_or_default();
            self.differences
                .push(format!("stuck: {what}; pods {pods:?}; status {run}"));
        }
        seen
    }

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
        }
    }

    pub fn pod_name(&self, uid: &str, title: &str) -> String {
        let view = self.place.witness.view();
        let mut pods = view.pods.into_values();
        let found = pods.find(|pod| pod.run == uid && pod.title == title && !pod.gone);
        found.unwrap().name
    }

    async fn delete_run(&self) {
        let runs = runs(&self.place.client, &self.place.namespace);
        let mut params = DeleteParams::background();
        params.propagation_policy = Some(PropagationPolicy::Background);
        let _ = insist(|| runs.delete("r", &params)).await;
        let deadline = Instant::now() + STUCK;
        while !matches!(runs.get_opt("r").await, Ok(None)) && Instant::now() < deadline {
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn until_final(&mut self) -> bool {
        let uid = self.uids.last().cloned().unwrap_or_default();
        self.until("the run is not over", |view| {
            let phase = view.phase("r").unwrap_or_default();
            let over = ["Succeeded", "Failed", "Cancelled", "Error"].contains(&phase);
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
        let over = Instant::now();
        let mut last = (self.said(), Instant::now());
        loop {
            sleep(Duration::from_millis(25)).await;
            let said = self.said();
            if said != last.0 {
                last = (said, Instant::now());
            }
            let fired = plan.rule.is_none() || self.operators[0].1.ledger().fired > 0;
            let quiet = last.1.elapsed() > QUIET;
            if quiet && (fired || over.elapsed() > LATE) {
                break;
            }
        }
        // Whoever was started last must have looked around.
        let last = usize::from(plan.two);
        if !self.watches(last).await && !plan.two {
            let why = "the operator is not there at the end".to_owned();
            self.differences.push(why);
        }
        sleep(QUIET).await;
        self.end_state().await
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

    pub async fn end_state(&self) -> Value {
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
        });
        let mut words = self.uids.clone();
        words.push(namespace.clone());
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
    pub fn pods(&mut self, ledger: &Ledger) -> Vec<BTreeMap<String, Pods>> {
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

    /// Deletes the run, and waits until nothing is left of it.
    async fn clean_up(&mut self) {
        self.delete_run().await;
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
        let deadline = Instant::now() + STUCK;
        loop {
            let left = witness::left(client, namespace).await;
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
            sleep(Duration::from_millis(200)).await;
        }
    }
}

/// The test's own calls are none of what is tested: they are made until there is an answer.
async fn insist<T, F>(ask: impl Fn() -> F) -> kube::Result<T>
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

/// Deletes every pod of a namespace that ends within a moment.
async fn delete_ended(client: &Client, namespace: &str) {
    let pods = pods(client, namespace);
    sleep(Duration::from_millis(700)).await;
    let Ok(all) = pods.list(&kube::api::ListParams::default()).await else {
        return;
    };
    for pod in all.items {
        let phase = pod.data["status"]["phase"].as_str().unwrap_or_default();
        if matches!(phase, "Succeeded" | "Failed") {
            let name = pod.metadata.name.unwrap_or_default();
            let _ = pods.delete(&name, &DeleteParams::default()).await;
        }
    }
}

/// Takes away what differs from run to run.
fn mask(value: &mut Value, words: &[String]) {
    const FIELDS: [&str; 12] = [
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "managedFields",
        "ownerReferences",
        "startTime",
        "endTime",
        "completionTime",
        "duration",
        "lastTransitionTime",
        "pod",
        "snapshot",
    ];
    match value {
        Value::Object(members) => {
            members.retain(|name, _| !FIELDS.contains(&name.as_str()));
            for (name, member) in members.iter_mut() {
                if name == "name" && member.as_str().is_some_and(|it| it.starts_with("apscli-")) {
                    *member = json!("…");
                }
                mask(member, words);
            }
        }
        Value::Array(items) => {
            for item in items {
                mask(item, words);
            }
        }
        Value::String(text) => {
            for word in words {
                *text = text.replace(word, "…");
            }
        }
        _ => {}
    }
}

/// Where two values differ, as far as the first few places.
fn differences(path: &str, one: &Value, other: &Value, found: &mut Vec<String>) {
    if found.len() > 5 || one == other {
        return;
    }
    match (one, other) {
        (Value::Object(a), Value::Object(b)) => {
            let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for name in names {
                let path = format!("{path}.{name}");
                let none = Value::Null;
                let of = |map: &serde_json::Map<String, Value>| {
                    map.get(name).cloned().unwrap_or(none.clone())
                };
                differences(&path, &of(a), &of(b), found);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (place, (a, b)) in a.iter().zip(b).enumerate() {
                differences(&format!("{path}[{place}]"), a, b, found);
            }
        }
        _ => found.push(format!("{path}: {one} became {other}")),
    }
}

impl Came {
    /// Compares with a clean run.
    fn compare(&mut self, clean: &Came) {
        differences("end", &clean.end, &self.end, &mut self.differences);
        if clean.pods != self.pods {
            self.differences
                .push(format!("pods: {:?} became {:?}", clean.pods, self.pods));
        }
    }
}

/// Every refusal, with what it is called.
const REFUSALS: [(&str, Refusal); 8] = [
    ("429", Refusal::Status(429, "TooManyRequests")),
    ("500", Refusal::Status(500, "InternalError")),
    ("503", Refusal::Status(503, "ServiceUnavailable")),
    ("504", Refusal::Status(504, "Timeout")),
    ("403", Refusal::Status(403, "Forbidden")),
    ("409", Refusal::Status(409, "Conflict")),
    ("reset", Refusal::Reset),
    ("401", Refusal::Status(401, "Unauthorized")),
];

/// All plans for a scenario of which this is a clean run.
#[allow(clippy::too_many_lines, reason = "a list")]
fn plans(index: usize, scenario: &Scenario, clean: &[Came]) -> Vec<Plan> {
    let mut points: Vec<(Key, usize)> = Vec::new();
    for came in clean {
        for point in &came.ledger.writes {
            if !points.contains(point) && point.0.resource != "leases" {
                points.push(point.clone());
            }
        }
    }
    if let Some(most) = scenario.sample {
        let creates = points.iter().filter(|it| it.0.resource == "pods").count();
        let step = (creates / most).max(1);
        let mut number = 0;
        points.retain(|(key, _)| {
            number += usize::from(key.resource == "pods");
            key.resource != "pods" || number % step == 0
        });
    }
    let mut all = Vec::new();
    for (key, nth) in &points {
        // A create that is held until the pod of its name has come and gone makes it once more; a
        // name can only fence as long as it is taken.
        let unfenced = scenario.name == PODS_GO && key.verb == "create" && key.resource == "pods";
        let mut plan = |fault: String, what: Fault, pods_deleted: bool, two: bool| {
            all.push(Plan {
                scenario: index,
                fault,
                at: format!("{key} #{nth}"),
                rule: Some(Rule::Call {
                    key: key.clone(),
                    nth: *nth,
                    fault: what,
                }),
                pods_deleted,
                two,
            });
        };
        for (name, what) in [
            ("killed before", Fault::KillBefore),
            ("killed unanswered", Fault::KillUnanswered),
            ("killed after", Fault::KillAfter),
        ] {
            plan(name.to_owned(), what, false, false);
            plan(format!("{name}, pods deleted"), what, true, false);
        }
        for (name, what) in [
            ("reset", Refusal::Reset),
            ("504", Refusal::Status(504, "Timeout")),
        ] {
            plan(
                format!("answer lost, {name}"),
                Fault::Lose(what),
                false,
                false,
            );
        }
        for (name, refusal) in REFUSALS {
            plan(
                format!("refused, {name}"),
                Fault::Refuse(refusal),
                false,
                false,
            );
        }
        let late = Duration::from_secs(2);
        plan("delayed 2 s".to_owned(), Fault::Delay(late), false, false);
        if !unfenced {
            plan(
                "held before, two".to_owned(),
                Fault::HoldBefore,
                false,
                true,
            );
        }
        plan(
            "held unanswered, two".to_owned(),
            Fault::HoldUnanswered,
            false,
            true,
        );
        plan("upgraded, two".to_owned(), Fault::Tell, false, true);
    }
    let told = |resource: &str| {
        let counts = clean
            .iter()
            .map(|came| came.ledger.told.get(resource).copied());
        counts.flatten().max().unwrap_or_default()
    };
    for resource in ["pods", "workflowruns"] {
        let events = told(resource);
        let step = scenario.sample.map_or(1, |most| (events / most).max(1));
        for nth in (1..=events).step_by(step) {
            for (name, fault) in [
                (
                    "watch frozen 3 s",
                    WatchFault::Freeze(Duration::from_secs(3)),
                ),
                ("watch 410 in stream", WatchFault::GoneInStream),
                ("watch 410 as status", WatchFault::GoneAsStatus),
                ("watch half open", WatchFault::HalfOpen),
                ("list stale", WatchFault::Stale),
                ("event swallowed", WatchFault::SwallowOne),
            ] {
                all.push(Plan {
                    scenario: index,
                    fault: name.to_owned(),
                    at: format!("event {nth} of {resource}"),
                    rule: Some(Rule::Event {
                        resource: resource.to_owned(),
                        name: String::new(),
                        said: Said::Anything,
                        nth,
                        fault,
                    }),
                    pods_deleted: false,
                    two: false,
                });
            }
        }
    }
    let titles: Vec<String> = clean
        .iter()
        .flat_map(|came| &came.pods)
        .flat_map(|pods| pods.keys().cloned())
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect();
    let step = scenario
        .sample
        .map_or(1, |most| (titles.len() / most).max(1));
    for title in titles.iter().step_by(step) {
        for (name, said, fault) in [
            ("its end swallowed", Said::Ended, WatchFault::SwallowOne),
            ("all of it swallowed", Said::Anything, WatchFault::Swallow),
        ] {
            all.push(Plan {
                scenario: index,
                fault: name.to_owned(),
                at: format!("pod {title}"),
                rule: Some(Rule::Event {
                    resource: "pods".to_owned(),
                    name: title.clone(),
                    said,
                    nth: 1,
                    fault,
                }),
                pods_deleted: false,
                two: false,
            });
        }
    }
    all
}

/// A row of the table.
#[derive(Default)]
struct Row {
    runs: usize,
    ok: usize,
    not_reached: usize,
}

#[derive(Default)]
struct Report {
    rows: BTreeMap<(usize, String), Row>,
    failures: Vec<String>,
    next: usize,
}

fn setting(name: &str) -> Option<String> {
    std::env::var(format!("APSCLI_FAULTS{name}")).ok()
}

/// Which plans of a list are carried out: all, or a part of them that is the same every time.
fn chosen(plans: Vec<Plan>, scenarios: &[Scenario]) -> Vec<Plan> {
    let whole = setting("").as_deref() == Some("full");
    let only = setting("_ONLY").unwrap_or_default();
    let every = setting("_EVERY").and_then(|text| text.parse().ok());
    let every: usize = every.unwrap_or(if whole { 1 } else { 25 });
    let mut chosen = plans;
    chosen.retain(|plan| {
        let words = format!(
            "{} / {} / {}",
            scenarios[plan.scenario].name, plan.fault, plan.at
        );
        if !only.split(',').all(|word| words.contains(word)) {
            return false;
        }
        // Not by counting: faults come round, and a step would meet some of them only.
        let hash = words.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        // One run of hundreds of pods costs as much as dozens of small ones.
        let large = scenarios[plan.scenario].sample.is_some() && only.is_empty();
        let every = if large { every * 8 } else { every };
        usize::try_from(hash >> 33).unwrap() % every == 0
    });
    chosen
}

/// Runs every scenario clean, then the plans, several at once, and prints the table.
pub async fn matrix(client: Client) {
    let began = Instant::now();
    let dir = setting("_OUT").map_or_else(std::env::temp_dir, PathBuf::from);
    let logs = dir.join(format!("apscli-faults-{}", std::process::id()));
    std::fs::create_dir_all(&logs).unwrap();
    let workers = setting("_WORKERS").and_then(|text| text.parse().ok());
    let workers: usize = workers.unwrap_or(8);
    let scenarios = Arc::new(super::scenario::all());
    let only = setting("_ONLY").unwrap_or_default();
    // Words that are of a scenario spare the others.
    let named = |scenario: &Scenario| only.split(',').any(|word| scenario.name.contains(word));
    let some = scenarios.iter().any(named);
    let clean_plan = |index: usize| Plan {
        scenario: index,
        fault: "none".to_owned(),
        at: String::new(),
        rule: None,
        pods_deleted: false,
        two: false,
    };
    let mut queue = VecDeque::new();
    for (index, scenario) in scenarios.iter().enumerate() {
        if !some || named(scenario) {
            queue.extend([clean_plan(index), clean_plan(index)]);
        }
    }
    let cleans: BTreeMap<usize, Vec<Came>> = BTreeMap::new();
    let (cleans, report) = (
        Arc::new(Mutex::new(cleans)),
        Arc::new(Mutex::new(Report::default())),
    );
    work(&client, &logs, workers, &scenarios, queue, {
        let (cleans, report) = (Arc::clone(&cleans), Arc::clone(&report));
        move |plan, came| {
            let mut cleans = cleans.lock().unwrap();
            let before = cleans.entry(plan.scenario).or_default();
            before.push(came);
            if let [first, second] = before.as_mut_slice() {
                second.compare(first);
            }
            drop(report.lock());
        }
    })
    .await;
    let cleans = Arc::into_inner(cleans).unwrap().into_inner().unwrap();
    let mut all = Vec::new();
    for (index, clean) in &cleans {
        let scenario = &scenarios[*index];
        for came in clean {
            assert!(
                came.differences.is_empty(),
                "{} without any fault: {:#?}",
                scenario.name,
                came.differences
            );
            let phase = came.end["runs"][0]["status"]["phase"].as_str();
            assert_eq!(phase, scenario.ends, "{}: {:#}", scenario.name, came.end);
        }
        all.extend(plans(*index, scenario, clean));
    }
    let whole = all.len();
    let chosen = chosen(all, &scenarios);
    println!(
        "{} of {whole} plans for {} scenarios",
        chosen.len(),
        cleans.len()
    );
    let cleans = Arc::new(cleans);
    let names = Arc::clone(&scenarios);
    work(&client, &logs, workers, &scenarios, chosen.into(), {
        let (cleans, report) = (Arc::clone(&cleans), Arc::clone(&report));
        move |plan, mut came| {
            came.compare(&cleans[&plan.scenario][0]);
            report.lock().unwrap().take(&names, &plan, &came);
        }
    })
    .await;
    let report = report.lock().unwrap();
    report.print(&scenarios, began.elapsed());
    assert!(report.failures.is_empty(), "logs are in {}", logs.display());
    let _ = std::fs::remove_dir_all(&logs);
}

/// Carries out a queue of plans with so many workers.
async fn work(
    client: &Client,
    logs: &Path,
    workers: usize,
    scenarios: &Arc<Vec<Scenario>>,
    queue: VecDeque<Plan>,
    done: impl Fn(Plan, Came) + Clone + Send + Sync + 'static,
) {
    static NUMBER: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(1);
    let workers = workers.min(queue.len());
    let queue = Arc::new(Mutex::new(queue));
    let mut tasks = Vec::new();
    for _ in 0..workers {
        let (queue, scenarios, done) = (Arc::clone(&queue), Arc::clone(scenarios), done.clone());
        let (client, logs) = (client.clone(), logs.to_owned());
        tasks.push(tokio::spawn(async move {
            let mut place = Place::new(&client, &logs).await;
            loop {
                let Some(plan) = queue.lock().unwrap().pop_front() else {
                    break;
                };
                let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                let came = play(&place, &scenarios[plan.scenario], &plan, number).await;
                let log = logs.join(format!("{number}.log"));
                let wrong = !came.differences.is_empty();
                if wrong {
                    let place_anew = Place::new(&client, &logs).await;
                    std::mem::replace(&mut place, place_anew).end().await;
                    println!(
                        "log {}: {} / {} / {}",
                        log.display(),
                        scenarios[plan.scenario].name,
                        plan.fault,
                        plan.at
                    );
                }
                done(plan, came);
            }
            place.end().await;
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

impl Report {
    fn take(&mut self, scenarios: &[Scenario], plan: &Plan, came: &Came) {
        self.next += 1;
        if self.next.is_multiple_of(50) {
            println!("{} plans, {} differ", self.next, self.failures.len());
        }
        let row = self
            .rows
            .entry((plan.scenario, plan.fault.clone()))
            .or_default();
        if came.fired {
            row.runs += 1;
            row.ok += usize::from(came.differences.is_empty());
        } else {
            row.not_reached += 1;
        }
        if !came.differences.is_empty() {
            let name = scenarios[plan.scenario].name;
            let mut text = format!("{name} / {} / {}", plan.fault, plan.at);
            for difference in &came.differences {
                let _ = write!(text, "\n    {difference}");
            }
            println!("DIFFERENT {text}");
            self.failures.push(text);
        }
    }

    fn print(&self, scenarios: &[Scenario], took: Duration) {
        println!(
            "\n{:28} {:32} {:>5} {:>5} {:>6} {:>11}",
            "scenario", "fault", "runs", "ok", "differ", "not reached"
        );
        let mut sum = Row::default();
        for ((scenario, fault), row) in &self.rows {
            let name = scenarios[*scenario].name;
            let differ = row.runs - row.ok;
            println!(
                "{name:28} {fault:32} {:>5} {:>5} {differ:>6} {:>11}",
                row.runs, row.ok, row.not_reached
            );
            sum.runs += row.runs;
            sum.ok += row.ok;
            sum.not_reached += row.not_reached;
        }
        println!(
            "{} plans in {} s: {} differ, {} were not reached",
            sum.runs,
            took.as_secs(),
            self.failures.len(),
            sum.not_reached
        );
    }
}
