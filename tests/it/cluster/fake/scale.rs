//! Graphs of all shapes and sizes, and what they cost: writes, turns and bytes are counted against
//! the design's budgets, never timed.

use std::fmt::Write as _;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use tempfile::TempDir;

use super::super::client;
use super::KUBECONFIG;
use super::kubectl::{Cluster, run};
use super::operator::{Metrics, Operator};
use super::witness::Witness;

/// Nothing but a template may be larger.
const LARGEST: usize = 256 * 1024;
/// A part of a template, as JSON.
const LARGEST_TEMPLATE: usize = 1280 * 1024;
/// How long all of a test's runs may take on a busy machine, in seconds.
const PATIENCE: u32 = 1500;

/// A graph: the predecessors of each node, by number.
struct Shape {
    name: &'static str,
    prev: Vec<Vec<usize>>,
}

fn chain(length: usize) -> Vec<Vec<usize>> {
    let prev = |it: usize| it.checked_sub(1).into_iter().collect();
    (0..length).map(prev).collect()
}

/// Layers of so many nodes, each with so many parents in the layer before.
fn layers(layers: usize, width: usize, parents: usize) -> Vec<Vec<usize>> {
    let prev = |it: usize| match it.checked_sub(width) {
        None => Vec::new(),
        Some(above) => {
            let begin = above / width * width;
            let parent = |step| begin + (above + step) % width;
            let mut all: Vec<usize> = (0..parents).map(parent).collect();
            all.sort_unstable();
            all
        }
    };
    (0..layers * width).map(prev).collect()
}

/// Diamonds in a row: the foot of one is the head of the next.
fn diamonds(count: usize) -> Vec<Vec<usize>> {
    let mut prev = vec![Vec::new()];
    for _ in 0..count {
        let head = prev.len() - 1;
        prev.extend([vec![head], vec![head], vec![head + 1, head + 2]]);
    }
    prev
}

/// Every node has two children, this many generations.
fn tree(generations: u32) -> Vec<Vec<usize>> {
    let prev = |it: usize| (it > 0).then(|| (it - 1) / 2).into_iter().collect();
    (0..2_usize.pow(generations) - 1).map(prev).collect()
}

/// The other way round: all that had successors has them as predecessors.
fn turned(prev: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let last = prev.len() - 1;
    let mut turned = vec![Vec::new(); prev.len()];
    for (node, prev) in prev.iter().enumerate() {
        for before in prev {
            turned[last - before].push(last - node);
        }
    }
    for prev in &mut turned {
        prev.sort_unstable();
    }
    turned
}

/// Any graph, always the same.
fn tangle(nodes: usize) -> Vec<Vec<usize>> {
    let mut state = 12345_u64;
    let mut random = move |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from(state >> 33).unwrap() % below
    };
    let mut prev = Vec::new();
    for node in 0..nodes {
        let mut all: Vec<usize> = match node {
            0 => Vec::new(),
            _ => (0..random(4)).map(|_| random(node)).collect(),
        };
        all.sort_unstable();
        all.dedup();
        prev.push(all);
    }
    prev
}

fn shapes() -> Vec<Shape> {
    let shape = |name, prev| Shape { name, prev };
    let mut fan = vec![Vec::new()];
    fan.resize(201, vec![0]);
    vec![
        shape("one", chain(1)),
        shape("chain", chain(40)),
        shape("fan-out", fan.clone()),
        shape("fan-in", turned(&fan)),
        shape("diamond", diamonds(1)),
        shape("diamonds", diamonds(15)),
        shape("tree", tree(7)),
        shape("tree-in", turned(&tree(7))),
        shape("every-edge", layers(3, 30, 30)),
        shape("tangle", tangle(150)),
        shape("no-edge", vec![Vec::new(); 101]),
        shape("layers", layers(40, 50, 3)),
    ]
}

impl Shape {
    fn node(at: usize) -> String {
        format!("n{at}")
    }

    /// As an author would write it; each node has `note`, made from its number, as a parameter.
    fn template(&self, note: impl Fn(usize) -> String) -> String {
        let mut text = String::from("{");
        for (at, prev) in self.prev.iter().enumerate() {
            let prev: Vec<String> = prev.iter().map(|it| Self::node(*it)).collect();
            let node = serde_json::json!({
                "prev_nodes": prev,
                "action": {"type": "cmd", "cmd": "true"},
                "param": {"note": note(at)},
            });
            let comma = if at == 0 { "" } else { ",\n" };
            write!(text, "{comma}\"{}\": {node}", Self::node(at)).unwrap();
        }
        text + "}\n"
    }

    /// Submits it as people do.
    fn submit(&self, cluster: &Cluster, note: impl Fn(usize) -> String) {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("t.json");
        std::fs::write(&file, self.template(note)).unwrap();
        let file = file.to_str().unwrap();
        let said = cluster.apscli(&["submit", "--template", file, "--name", self.name]);
        assert_eq!(said.ok(), format!("workflowrun.apscli.dev/{}\n", self.name));
    }

    /// Each node had one pod, and that came after all its predecessors' had ended.
    async fn went_well(&self, cluster: &Cluster, witness: &Witness) {
        let what = format!("workflowrun/{}", self.name);
        cluster.wait(&what, "condition=Complete", PATIENCE);
        let all = self.prev.len();
        let run = cluster.get(&[&what]);
        assert_eq!(run["status"]["progress"], format!("{all}/{all}"));
        assert_eq!(run["status"]["returnCode"], 1);
        let name = self.name;
        let seen_all = |seen: &super::witness::Seen| {
            let mut of_run = seen.pods.iter().filter(|((of, ..), _)| of == name);
            seen.count(name) >= all
                && of_run.all(|(_, pods)| pods.values().all(|pod| pod.ended.is_some()))
        };
        witness.until("the ends of all pods", seen_all).await;
        let seen = witness.seen();
        assert_eq!(seen.count(name), all, "pods of {name}");
        for (at, prev) in self.prev.iter().enumerate() {
            let pod = seen.only(name, &Self::node(at));
            for before in prev {
                let ended = seen.only(name, &Self::node(*before)).ended;
                assert!(
                    ended.is_some_and(|ended| ended < pod.came),
                    "{name}: node {at} was begun before {before} had ended: {pod:?} {ended:?}"
                );
            }
        }
    }
}

/// No object is larger than it may be, ever. What was the largest, for people.
async fn largest(witness: &Witness, cluster: &Cluster) -> String {
    let client = client(KUBECONFIG).await;
    let pods: Api<Pod> = Api::namespaced(client, &cluster.namespace);
    // They are all alike, so that some tell for all.
    let some = pods.list(&ListParams::default().limit(200)).await.unwrap();
    let pod = some
        .iter()
        .map(|pod| serde_json::to_vec(pod).unwrap().len());
    let pod = pod.max().unwrap();
    let seen = witness.seen();
    assert_eq!(seen.lists, 4, "the watches have seen everything");
    let mut said = String::new();
    for (kind, (bytes, name)) in &seen.largest {
        let most = match *kind {
            "ConfigMap of a template" => LARGEST_TEMPLATE,
            _ => LARGEST,
        };
        assert!(*bytes <= most, "{kind} {name}: {bytes} bytes");
        writeln!(said, "  largest {kind}: {bytes} bytes ({name})").unwrap();
    }
    assert!(pod <= LARGEST);
    writeln!(said, "  largest Pod: {pod} bytes").unwrap();
    said
}

/// What the operator did from one time to another.
struct Cost {
    writes: f64,
    turns: f64,
    sent: f64,
}

impl Cost {
    fn of(operator: &Operator, before: &Metrics) -> Self {
        let after = operator.metrics();
        Self {
            writes: after.writes() - before.writes(),
            turns: after.turns() - before.turns(),
            sent: after.sent() - before.sent(),
        }
    }

    /// `writes` and `turns` are the most a node may take.
    fn holds(&self, what: &str, nodes: usize, writes: f64, turns: f64, operator: &Operator) {
        let nodes = f64::from(u32::try_from(nodes).unwrap());
        let Self {
            writes: written,
            turns: turned,
            sent,
        } = self;
        println!(
            "{what}: {nodes} nodes, {:.2} writes and {:.2} turns a node, {sent} bytes written",
            written / nodes,
            turned / nodes
        );
        assert!(
            written / nodes <= writes && turned / nodes <= turns,
            "{what}: {written} writes and {turned} turns for {nodes} nodes\n{}",
            operator.metrics().calls()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
async fn twelve_shapes() {
    let cluster = Cluster::new("shapes");
    let client = client(KUBECONFIG).await;
    let witness = Witness::of(&client, &cluster.namespace).await;
    let operator = Operator::of(&cluster).ready();
    let before = operator.metrics();
    let shapes = shapes();
    assert_eq!(shapes.len(), 12);
    for shape in &shapes {
        shape.submit(&cluster, |_| String::new());
    }
    let mut nodes = 0;
    for shape in &shapes {
        shape.went_well(&cluster, &witness).await;
        nodes += shape.prev.len();
    }
    println!("{}", largest(&witness, &cluster).await);
    // Long chains among them have a record of their own for each link.
    let cost = Cost::of(&operator, &before);
    cost.holds("twelve shapes", nodes, 1.6, 8.0, &operator);
    operator.ends();
}

/// By `templateFrom`, in parts and compressed: nodes have parameters that compress badly.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
async fn ten_thousand_nodes() {
    let cluster = Cluster::new("large");
    let client = client(KUBECONFIG).await;
    let witness = Witness::of(&client, &cluster.namespace).await;
    let operator = Operator::of(&cluster).ready();
    let before = operator.metrics();
    let shape = Shape {
        name: "large",
        prev: layers(100, 100, 3),
    };
    let mut state = 1_u64;
    let mut notes = Vec::new();
    for _ in 0..shape.prev.len() {
        let mut note = String::new();
        for _ in 0..14 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            write!(note, "{:016x}", state ^ (state >> 29)).unwrap();
        }
        notes.push(note);
    }
    shape.submit(&cluster, |at| notes[at].clone());
    let run = cluster.get(&["workflowrun/large"]);
    let parts = run["spec"]["templateFrom"].as_array().unwrap().len();
    assert!(parts >= 2, "the template has one part");
    shape.went_well(&cluster, &witness).await;
    let run = cluster.get(&["workflowrun/large"]);
    assert_eq!(run["status"]["pages"], 100);
    println!("10,000 nodes from a template in {parts} parts");
    println!("{}", largest(&witness, &cluster).await);
    let cost = Cost::of(&operator, &before);
    cost.holds("10,000 nodes", 10_000, 1.3, 6.0, &operator);
    operator.ends();
}

/// Calls that change something, as the API server itself counts them: of all who work on runs.
fn cluster_wide(cluster: &Cluster) -> f64 {
    let metrics = cluster.kubectl(&["get", "--raw", "/metrics"], "").ok();
    Metrics::read(&metrics).sum("apiserver_request_total", |labels| {
        let ours = [
            "pods",
            "events",
            "configmaps",
            "workflowruns",
            "workflowrunpages",
        ];
        ours.contains(&labels["resource"].as_str())
            && ["POST", "PUT", "PATCH", "APPLY", "DELETE"].contains(&labels["verb"].as_str())
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
async fn forty_diamonds_at_once() {
    let cluster = Cluster::alone("forty");
    let client = client(KUBECONFIG).await;
    let witness = Witness::of(&client, &cluster.namespace).await;
    let operator = Operator::of(&cluster).ready();
    let node = |prev: &[&str]| serde_json::json!({"prev_nodes": prev, "action": {"type": "cmd", "cmd": "true"}});
    let template = serde_json::json!({
        "a": node(&[]), "b": node(&["a"]), "c": node(&["a"]), "d": node(&["b", "c"]),
    });
    let runs: Vec<String> = (0..40).map(|at| format!("d{at}")).collect();
    let of = |name: &String| run(name, &serde_json::json!({"template": template}));
    let all: Vec<String> = runs.iter().map(|name| of(name).to_string()).collect();
    let before = operator.metrics();
    let wide = cluster_wide(&cluster);
    let args = ["create", "-f", "-"];
    cluster.kubectl(&args, &all.join("\n---\n")).ok();
    for name in &runs {
        cluster.wait(&format!("workflowrun/{name}"), "condition=Complete", 120);
        assert_eq!(witness.seen().count(name), 4);
    }
    let cost = Cost::of(&operator, &before);
    // The design's budget; on a slow machine a run tells less of what goes on in between.
    cost.holds("40 diamonds", 160, 3.0, 18.0, &operator);
    let wide = cluster_wide(&cluster) - wide;
    println!(
        "40 diamonds: {:.2} writes a node in the whole cluster",
        wide / 160.0
    );
    assert!(wide / 160.0 <= 8.0, "{wide} writes in the whole cluster");
    operator.ends();
}
