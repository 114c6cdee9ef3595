//! An operator beside objects that are made to use up its memory: it stays below the limit of the
//! chart, and runs of another namespace succeed. The peak of its memory is a count, as the kernel
//! keeps it; times are printed for people.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use apscli::catalog::gzip::compress;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::kubectl::{Cluster, kubeconfig, run};
use super::operator::Operator;

/// The memory limit of the chart, in kB as the kernel counts.
const LIMIT: u64 = 512 * 1024;
/// Namespaces of tenants who mean no good.
const NAMESPACES: usize = 10;
/// How long all honest runs may take on a busy machine.
const PATIENCE: Duration = Duration::from_mins(20);

fn node(prev: &[&str]) -> Value {
    json!({"prev_nodes": prev, "action": {"type": "cmd", "cmd": "true"}})
}

fn diamond() -> Value {
    json!({"template": {
        "a": node(&[]), "b": node(&["a"]), "c": node(&["a"]), "d": node(&["b", "c"]),
    }})
}

fn config_map(name: &str, labelled: bool, data: &Value, binary: &[(&str, &[u8])]) -> Value {
    let binary: serde_json::Map<String, Value> = binary
        .iter()
        .map(|(key, bytes)| ((*key).to_owned(), STANDARD.encode(bytes).into()))
        .collect();
    let labels = if labelled {
        json!({"apscli.dev/catalog": "true"})
    } else {
        json!({})
    };
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "labels": labels, "annotations": {"apscli.dev/folder": name}},
        "data": data, "binaryData": binary,
    })
}

/// Text that compresses badly.
fn noise(bytes: usize, seed: u64) -> String {
    let mut state = seed;
    let mut text = String::with_capacity(bytes + 16);
    while text.len() < bytes {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        write!(text, "{:016x}", state ^ (state >> 29)).unwrap();
    }
    text
}

/// What small texts there are that mean much.
struct Bombs {
    /// 32 MiB of nothing.
    blanks: Vec<u8>,
    /// 7.9 MiB that are as many values as may be.
    values: Vec<u8>,
    /// 7.9 MiB that are a valid template of large texts.
    template: Vec<u8>,
}

impl Bombs {
    fn new() -> Self {
        let values = format!("{{\"a\": [{}0]}}", "0,".repeat(4_100_000));
        let node = format!(
            "{}, \"param\": {{\"p\": \"{}\"}}}}",
            &node(&[]).to_string().strip_suffix('}').unwrap(),
            "x".repeat(4_000)
        );
        let nodes: Vec<String> = (0..1_900).map(|at| format!("\"n{at}\": {node}")).collect();
        Self {
            blanks: compress(&vec![b' '; 32 << 20]),
            values: compress(values.as_bytes()),
            template: compress(format!("{{{}}}", nodes.join(",")).as_bytes()),
        }
    }
}

/// The objects of one tenant: three of each kind.
fn hostile(bombs: &Bombs, seed: u64) -> Vec<Value> {
    let mut all = Vec::new();
    let from = |map: &str| json!({"templateFrom": [{"configMap": map, "key": "t"}]});
    for nth in 0..3_u64 {
        let name = |kind: &str| format!("{kind}-{nth}");
        // A parameter in 2,000 places.
        let mut place = node(&[]);
        place["param"] = json!({"p": "$big"});
        let nodes: serde_json::Map<String, Value> = (0..2_000)
            .map(|at| (format!("n{at}"), place.clone()))
            .collect();
        let spec = json!({"template": nodes, "params": {"big": "x".repeat(700_000)}});
        all.push(run(&name("amplified"), &spec));
        // Small values.
        let zeros = vec![0; 400_000];
        let spec = json!({"template": {"a": {
            "action": {"type": "cmd", "cmd": "true"}, "param": {"p": "$p"},
        }}, "params": {"p": zeros}});
        all.push(run(&name("wide"), &spec));
        // What unfolds.
        for (kind, bomb) in [
            ("blanks", &bombs.blanks),
            ("values", &bombs.values),
            ("template", &bombs.template),
        ] {
            all.push(config_map(&name(kind), false, &json!({}), &[("t", bomb)]));
            all.push(run(&name(kind), &from(&name(kind))));
        }
        // An alias to a large text.
        let text = format!(
            "a: &x \"{}\"\nb: [{}]\n",
            "x".repeat(700_000),
            "*x,".repeat(80_000)
        );
        all.push(config_map(&name("alias"), false, &json!({"t": text}), &[]));
        all.push(run(&name("alias"), &from(&name("alias"))));
        // A catalog of 1,000 services with one template.
        let entries: serde_json::Map<String, Value> = (0..1_000)
            .map(|at| (format!("s{at}"), json!({"workflow_template_path": "t"})))
            .collect();
        let data = json!({"many.json": Value::Object(entries).to_string()});
        all.push(config_map(
            &name("catalog"),
            true,
            &data,
            &[("t", &bombs.template)],
        ));
        let fqsn = json!({"fqsn": format!("catalog-{nth}.many.s7")});
        all.push(run(&name("catalog"), &fqsn));
        // What a cache would hold.
        let data = json!({"x.json": "{}", "file": noise(900_000, seed * 10 + nth)});
        all.push(config_map(&name("large"), true, &data, &[]));
        let mut service =
            super::kubectl::service(&json!({"fqsn": format!("large.s{nth}"), "versions": [
                {"version": "1", "templateText": noise(900_000, seed * 10 + nth + 5)},
            ]}));
        service["metadata"]["name"] = name("large").into();
        all.push(service);
        // Annotations as large as they may be.
        let mut annotated = run(
            &name("annotated"),
            &json!({"fqsn": format!("large.s{nth}")}),
        );
        annotated["metadata"]["annotations"] = json!({"x": "y".repeat(250_000)});
        all.push(annotated);
        // JSON of 9,000 levels: the API server takes it.
        let deep = format!("{}1{}", "[".repeat(9_000), "]".repeat(9_000));
        let text = run(
            &name("deep"),
            &json!({"template": {"a": node(&[])}, "params": {"p": "@"}}),
        );
        // No tree of that depth can be made here.
        all.push(json!({"text": text.to_string().replace("\"@\"", &deep)}));
    }
    all
}

/// Creates objects that the API server may refuse.
fn create(cluster: &Cluster, objects: &[Value]) {
    for some in objects.chunks(8) {
        let texts = some.iter().map(|it| match it["text"].as_str() {
            Some(text) => text.to_owned(),
            None => it.to_string(),
        });
        let texts: Vec<String> = texts.collect();
        cluster.kubectl(&["create", "-f", "-"], &texts.join("\n---\n"));
    }
}

/// The most memory that a process ever had, in kB.
fn peak(operator: &Operator) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", operator.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap()
}

/// Waits until so many of the runs have succeeded.
fn succeeded(cluster: &Cluster, wanted: usize, operator: &Operator) {
    let since = Instant::now();
    loop {
        let phases = "jsonpath={.items[*].status.phase}";
        let said = cluster
            .kubectl(&["get", "workflowruns", "-o", phases], "")
            .ok();
        let done = said.split(' ').filter(|it| *it == "Succeeded").count();
        if done >= wanted {
            println!("  {done} runs had succeeded after {:?}", since.elapsed());
            return;
        }
        assert!(
            since.elapsed() < PATIENCE,
            "{done} of {wanted} runs have succeeded; the operator's peak is {} kB\n{}",
            peak(operator),
            operator.metrics().text,
        );
        std::thread::sleep(Duration::from_secs(1));
    }
}

#[test]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
fn operator_beside_hostile_objects_stays_below_its_limit() {
    let honest = Cluster::alone("honest");
    let tenants: Vec<Cluster> = (0..NAMESPACES)
        .map(|nth| honest.beside(&format!("hostile-{nth}")))
        .collect();
    let bombs = Bombs::new();
    let mut objects = 0;
    for (seed, tenant) in (1..).zip(&tenants) {
        let all = hostile(&bombs, seed);
        objects += all.len();
        create(tenant, &all);
    }
    println!("{objects} hostile objects in {NAMESPACES} namespaces");
    assert!(objects >= 300);
    let mut words = vec![
        format!("--shared-namespace={}", honest.namespace),
        "--leader-election=false".to_owned(),
    ];
    let all = tenants.iter().chain([&honest]);
    words.extend(all.map(|it| format!("--namespace={}", it.namespace)));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let start = || {
        let since = Instant::now();
        let operator = Operator::start(&kubeconfig(), &[], &words).ready();
        println!("  ready after {:?}", since.elapsed());
        operator
    };
    let diamonds = |from: usize| {
        let runs = (from..from + 100).map(|at| run(&format!("d{at}"), &diamond()).to_string());
        let runs: Vec<String> = runs.collect();
        let args = ["create", "-f", "-"];
        honest.kubectl(&args, &runs.join("\n---\n")).ok();
    };
    let operator = start();
    diamonds(0);
    succeeded(&honest, 30, &operator);
    let first = peak(&operator);
    operator.ends();
    let operator = start();
    diamonds(100);
    succeeded(&honest, 200, &operator);
    // The others are looked at to their end.
    std::thread::sleep(Duration::from_secs(30));
    let second = peak(&operator);
    let caches = operator.metrics();
    let caches = caches
        .text
        .lines()
        .filter(|it| it.starts_with("apscli_cache_bytes"));
    let caches: Vec<&str> = caches.collect();
    println!("  peaks of {first} and {second} kB\n{}", caches.join("\n"));
    assert!(first < LIMIT && second < LIMIT, "{first} and {second} kB");
    operator.ends();
}
