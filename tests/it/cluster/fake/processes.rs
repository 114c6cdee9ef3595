//! A hostile service beside an operator that carries out its nodes as processes, while other runs
//! go on: the same as `fence.rs` tries on one machine, here against the very operator.

use std::collections::BTreeMap;
use std::fs;
use std::net::UdpSocket;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::kubectl::{Cluster, kubeconfig, run, service};
use super::operator::Operator;
use crate::fence::{Yard, demote, in_peace, left, own};
use crate::hostile::{
    PROBE, Probe, SWARM, Targets, all_ended, all_said, node, nodes_of, nodes_of_wastes, probes,
    said, wastes,
};
use crate::program::{PYTHON, Place, lives, until};

/// How long anything may take on a busy machine, in seconds.
const PATIENCE: u32 = 240;
/// Where clouds tell machines their secrets.
const LINK_LOCAL: &str = "169.254.169.254:80";
const HANDOFF: &str = "apscli_handoff_seconds";

/// A run of these nodes as processes, and what came of it, as `apscli get` tells it.
fn carry_out(cluster: &Cluster, name: &str, nodes: &BTreeMap<String, Value>) -> Value {
    let fqsn = format!("hostile.{name}");
    let versions = json!([{"version": "1", "template": nodes}]);
    let mut of = service(&json!({
        "fqsn": fqsn, "versions": versions, "scripts": [{"configMap": "probes"}],
    }));
    of["metadata"]["name"] = json!(name);
    cluster.create(&of);
    // The operator may hear of the run before it hears of the service.
    cluster.wait(&format!("apsvc/{name}"), "condition=Ready", PATIENCE);
    cluster.create(&run(name, &json!({"fqsn": fqsn, "executor": "process"})));
    let over = "jsonpath={.status.returnCode}";
    cluster.wait(&format!("wfr/{name}"), over, PATIENCE);
    let told = cluster.apscli(&["get", name, "--output", "json"]);
    let told: Value = serde_json::from_str(&told.stdout).unwrap_or_else(|_| panic!("{told:?}"));
    told["output"].clone()
}

/// Each was in the fence, whole, and had no pod.
fn was_fenced(cluster: &Cluster, name: &str, count: usize) {
    let status = cluster.run(name)["status"].clone();
    let nodes = status["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), count, "{name}");
    for node in nodes {
        let sandbox = node["sandbox"].as_str().unwrap_or_default();
        assert!(
            sandbox.contains("landlock") && sandbox.contains("seccomp, no network"),
            "{name}: {node}"
        );
        assert_eq!(
            (&node["executor"], &node["pod"]),
            (&json!("process"), &Value::Null)
        );
    }
}

/// Runs of pods, one after the other, until it is said that it is enough: a chain and a diamond at
/// a time. Gives how many there were; all must succeed.
fn others(cluster: &Cluster, who: usize, enough: &AtomicBool) -> usize {
    let node =
        |prev: &[&str]| json!({"prev_nodes": prev, "action": {"type": "cmd", "cmd": "true"}});
    let chain = json!({
        "a": node(&[]), "b": node(&["a"]), "c": node(&["b"]), "d": node(&["c"]), "e": node(&["d"]),
    });
    let diamond = json!({
        "a": node(&[]), "b": node(&["a"]), "c": node(&["a"]), "d": node(&["b", "c"]),
    });
    let mut count = 0;
    while !enough.load(Ordering::Relaxed) {
        let names = ["chain", "diamond"].map(|shape| format!("{shape}-{who}-{count}"));
        for (name, template) in names.iter().zip([&chain, &diamond]) {
            cluster.create(&run(name, &json!({"template": template})));
        }
        for name in &names {
            cluster.wait(&format!("wfr/{name}"), "condition=Complete", PATIENCE);
        }
        count += 1;
    }
    count
}

/// Processes of the yard that are neither the operator nor its runner.
fn strangers(yard: &Yard) -> Vec<String> {
    let mut all = left(yard);
    all.retain(|it| !it.contains("/apscli operator ") && !it.contains(" runner --folder "));
    all
}

/// What is in the folders of attempts.
fn remains(yard: &Yard) -> Vec<PathBuf> {
    let entries = |path: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let runners = entries(yard.place.dir.path()).into_iter();
    let runners = runners.filter(|it| it.to_string_lossy().contains("/apscli-runner-"));
    let of = |runner: PathBuf| ["nodes", "logs", "scripts"].map(|it| entries(&runner.join(it)));
    runners.flat_map(of).flatten().collect()
}

/// All that is tried to get out.
fn try_probes(cluster: &Cluster, probes: &[Probe]) {
    for form in ["cmd", "api"] {
        // Of a run with more than 100 nodes the status lists those that run only.
        for (nth, some) in probes.chunks(100).enumerate() {
            let name = format!("probes-{form}-{nth}");
            let output = carry_out(cluster, &name, &nodes_of(form, some));
            all_said(&output, form, some, |it| it.fenced_as(form));
            was_fenced(cluster, &name, some.len());
        }
        // Nothing of it leaves the machine: sockets are refused before there is an address.
        let ways = ["tcp", "mptcp", "fastopen", "udp"];
        let away = ways.map(|it| (it.to_owned(), node(form, it, Some(LINK_LOCAL))));
        let output = carry_out(cluster, &format!("away-{form}"), &away.into());
        for way in ways {
            assert_eq!(said(&output, way), "EPERM", "{form} {way} {LINK_LOCAL}");
        }
    }
}

/// All that uses up a machine.
fn waste(cluster: &Cluster) {
    let all = wastes("512 MiB of memory").into_iter();
    let (breed, wastes): (Vec<_>, Vec<_>) = all.partition(|(name, _)| *name == "breed");
    for form in ["cmd", "api"] {
        for (name, all) in [
            ("waste", &wastes),
            ("breed", &breed),
            ("swarm", &vec![SWARM]),
        ] {
            let name = format!("{name}-{form}");
            let output = carry_out(cluster, &name, &nodes_of_wastes(form, all));
            all_ended(&output, form, all);
            was_fenced(cluster, &name, all.len());
        }
    }
}

/// What the operator has to hide: its credentials, here in a file of the same user; and where that is.
fn credentials() -> (Place, PathBuf) {
    let safe = Place::new();
    own(safe.dir.path());
    let token = safe.path("token");
    fs::copy(kubeconfig(), &token).unwrap();
    own(&token);
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    (safe, token)
}

/// An operator as an unprivileged user, whose runs may have processes.
fn beside(cluster: &Cluster, yard: &Yard, kubeconfig: &Path) -> Operator {
    let namespace = format!("--namespace={}", cluster.namespace);
    let shared = format!("--shared-namespace={}", cluster.namespace);
    let allowed = format!("--process-namespace={}", cluster.namespace);
    let mut program = Command::new(&yard.program);
    demote(program.current_dir(yard.place.dir.path()));
    let folder = yard.place.dir.path().to_str().unwrap();
    let path = format!("{}:/usr/bin:/bin", PYTHON.parent().unwrap().display());
    Operator::start_by(
        program,
        kubeconfig.as_os_str(),
        &[("PATH", &path), ("TMPDIR", folder), ("CANARY", "a secret")],
        &[&namespace, &shared, "--leader-election=false", &allowed],
    )
    .ready()
}

#[test]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
fn a_hostile_service_harms_nobody() {
    let cluster = Cluster::new("hostile");
    let _peace = in_peace();
    let yard = Yard::new();
    let (safe, token) = credentials();
    let operator = beside(&cluster, &yard, &token);
    cluster.create(&json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "probes"},
        "data": {"probe.py": PROBE},
    }));

    let server = cluster.kubectl(
        &["config", "view", "--minify", "--output=jsonpath={..server}"],
        "",
    );
    let server = server.ok().replace("https://", "");
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.set_nonblocking(true).unwrap();
    let socket = safe.path("socket");
    let _unix = UnixListener::bind(&socket).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o777)).unwrap();
    let no_file = format!("apscli-test-{}", operator.pid());
    let address = SocketAddr::from_abstract_name(&no_file).unwrap();
    let _unnamed = UnixListener::bind_addr(&address).unwrap();
    let targets = Targets {
        no_file,
        pid: operator.pid().to_string(),
        secret: token.display().to_string(),
        written: safe.path("written").display().to_string(),
        moved: safe.path("moved").display().to_string(),
        changed: safe.write("changed", "").display().to_string(),
        readable: "/usr/bin/env".to_owned(),
        tcp: server.trim().to_owned(),
        udp: udp.local_addr().unwrap().to_string(),
        unix: socket.display().to_string(),
    };
    let probes = probes(&targets);
    let enough = AtomicBool::new(false);
    let before = operator.metrics();
    let (peaceful, at_attack) = thread::scope(|scope| {
        let others: Vec<_> = (0..3)
            .map(|who| {
                scope.spawn({
                    let (cluster, enough) = (&cluster, &enough);
                    move || others(cluster, who, enough)
                })
            })
            .collect();
        // Whatever fails here, the others must hear that it is over.
        let _over = Over(&enough);
        try_probes(&cluster, &probes);
        let at_attack = operator.metrics();
        waste(&cluster);
        enough.store(true, Ordering::Relaxed);
        let all: usize = others.into_iter().map(|it| it.join().unwrap()).sum();
        (all, at_attack)
    });
    let after = operator.metrics();
    for (what, from, to) in [
        ("probes", &before, &at_attack),
        ("waste", &at_attack, &after),
    ] {
        let of = |part| to.quantile(from, HANDOFF, part);
        let (Some(half), Some(nearly_all)) = (of(0.5), of(0.99)) else {
            panic!("nothing was handed on beside the {what}")
        };
        println!("beside the {what}: hand-off p50 <= {half} s, p99 <= {nearly_all} s");
    }
    println!("{} other runs, all well", 2 * peaceful);

    // Nothing was taken, nobody was reached, and nothing is left.
    assert!(
        udp.recv(&mut [0; 16]).is_err(),
        "somebody has sent something"
    );
    assert!(!safe.path("written").exists() && !safe.path("moved").exists());
    assert_eq!(fs::read(&token).unwrap(), fs::read(kubeconfig()).unwrap());
    until("the end of all that was started", || {
        strangers(&yard).is_empty()
    });
    until("no folder", || remains(&yard).is_empty());
    assert!(lives(&operator.pid().to_string()));
    let log = operator.log();
    assert_eq!(log.matches("the runner is there").count(), 1, "{log}");
    let readiness = operator.readiness();
    assert!(readiness.starts_with("HTTP/1.1 200 "), "{readiness}");
    operator.ends();
    until("the runner's end", || left(&yard).is_empty());
}

/// Says at its end that it is enough.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A runner that is killed takes all along that it carried out, which is on record as lost; another
/// comes, and what is asked for then is carried out.
#[test]
#[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
fn a_killed_runner_loses_its_nodes_and_another_comes() {
    let cluster = Cluster::new("killed-runner");
    let _peace = in_peace();
    let yard = Yard::new();
    let (_safe, token) = credentials();
    let operator = beside(&cluster, &yard, &token);
    let template = |seconds: &str| {
        let script = format!("setsid sleep {seconds} & sleep {seconds}");
        let node = json!({"action": {"type": "cmd", "cmd": ["sh", "-c", script]}});
        json!({"template": {"a": node}, "executor": "process"})
    };
    // More than there are places: some wait, and say for what.
    until("the runner", || {
        operator.log().contains("the runner is there")
    });
    let log = operator.log();
    let (_, places) = log.split_once("slots").unwrap();
    let places = places.trim_start_matches(|it: char| !it.is_ascii_digit());
    let places: String = places.chars().take_while(char::is_ascii_digit).collect();
    let most: usize = places.parse().unwrap();
    let node = json!({"action": {"type": "cmd", "cmd": "sleep 1000"}});
    let names = (0..=most).map(|nth| (format!("n{nth}"), node.clone()));
    let many: BTreeMap<String, Value> = names.collect();
    let many = json!({"template": many, "executor": "process"});
    cluster.create(&run("many", &many));
    let why = format!("all {places} places of the runner are taken");
    let waits = |node: &Value| node["message"].as_str() == Some(&why);
    until("a node that waits", || {
        let status = cluster.run("many")["status"].clone();
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        nodes.iter().any(waits)
    });
    cluster.apscli(&["cancel", "many"]);
    cluster.wait("wfr/many", "jsonpath={.status.returnCode}", PATIENCE);
    cluster.create(&run("long", &template("1000")));
    let sleeps = || {
        let mut all = left(&yard);
        all.retain(|it| it.contains("sleep 1000") && !it.contains("__fence"));
        all.len()
    };
    until("both sleep", || sleeps() >= 2);
    let runners: Vec<String> = left(&yard)
        .into_iter()
        .filter(|it| it.contains(" runner --folder "))
        .collect();
    assert_eq!(runners.len(), 1, "{runners:?}");
    let pid = runners[0].split(' ').next().unwrap().parse().unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    let over = "jsonpath={.status.returnCode}";
    cluster.wait("wfr/long", over, PATIENCE);
    let node = cluster.run("long")["status"]["nodes"][0].clone();
    assert_eq!(
        (&node["phase"], &node["reason"]),
        (&json!("Error"), &json!("Lost")),
        "{node}"
    );
    until("the end of what it had started", || sleeps() == 0);
    cluster.create(&run("short", &template("0.1")));
    cluster.wait("wfr/short", "condition=Complete", PATIENCE);
    let log = operator.log();
    assert_eq!(log.matches("the runner is there").count(), 2, "{log}");
    operator.ends();
    until("the runner's end", || left(&yard).is_empty());
}
