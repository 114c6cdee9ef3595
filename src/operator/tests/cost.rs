//! What runs cost, in counts that hang on no machine and no clock: a gate. What it takes of time is
//! measured by `tests/bench/cluster`.

use super::*;

/// What one run takes. Limits are a tenth above what was counted when they were set.
#[derive(Clone, Copy, Debug)]
struct Cost {
    /// Writes for each node.
    writes: f64,
    /// Other calls, but for watches, which come and go with time, for each node.
    reads: f64,
    /// Bytes of bodies that were sent, for each node.
    bytes: f64,
    /// Turns of the run's loop.
    turns: f64,
}

impl Cost {
    fn read(metrics: &Metrics) -> Self {
        let text = metrics.text();
        let sum = |name: &str, wanted: &dyn Fn(&str) -> bool| -> f64 {
            let lines = text.lines().filter(|it| it.starts_with(name) && wanted(it));
            let values = lines.filter_map(|it| it.rsplit_once(' '));
            values.map(|(_, value)| value.parse::<f64>().unwrap()).sum()
        };
        let is_read = |line: &str| line.contains("verb=\"get\"") || line.contains("verb=\"list\"");
        let watches = |line: &str| line.contains("verb=\"watch\"");
        Self {
            writes: sum("apscli_api_calls_total{", &|it| {
                !is_read(it) && !watches(it)
            }),
            reads: sum("apscli_api_calls_total{", &is_read),
            bytes: sum("apscli_api_sent_bytes_total{", &|_| true),
            turns: sum("apscli_reconcile_seconds_count{", &|it| {
                it.contains("resource=\"workflowruns\"")
            }),
        }
    }

    fn numbers(self) -> [f64; 4] {
        [self.writes, self.reads, self.bytes, self.turns]
    }
}

/// What a run takes, from its creation to its end and to the silence after it.
async fn cost(run: Value, nodes: f64, seconds: u64) -> Cost {
    let fake = Fake::new();
    let metrics = Arc::new(Metrics::default());
    operate_by(fake.counted_client(&metrics), options(), &metrics);
    fake.put("services", service(&diamond()));
    passes(1).await;
    fake.kubelet(well);
    let before = Cost::read(&metrics);
    fake.put("workflowruns", run);
    passes(seconds).await;
    assert_eq!(phase(&fake), "Succeeded");
    fake.calls();
    silence(&fake).await;
    let after = Cost::read(&metrics);
    Cost {
        writes: (after.writes - before.writes) / nodes,
        reads: (after.reads - before.reads) / nodes,
        bytes: (after.bytes - before.bytes) / nodes,
        turns: after.turns - before.turns,
    }
}

fn service(template: &Value) -> Value {
    let versions = json!([{"version": "1", "template": template}]);
    json!({"metadata": {"name": "s"}, "spec": {"fqsn": "tests.s", "versions": versions}})
}

fn chain(nodes: usize) -> Value {
    let name = |at: usize| format!("n{at}");
    let all = (0..nodes).map(|at| {
        let prev: Vec<String> = at.checked_sub(1).map(name).into_iter().collect();
        let prev: Vec<&str> = prev.iter().map(String::as_str).collect();
        (name(at), node(&prev))
    });
    Value::Object(all.collect())
}

#[tokio::test(start_paused = true)]
async fn a_run_costs_no_more_than_it_did() {
    let limit = |writes, reads, bytes, turns| Cost {
        writes,
        reads,
        bytes,
        turns,
    };
    let by_fqsn = run(&json!({"fqsn": "tests.s"}));

    let mut wrong = Vec::new();
    for (name, run, nodes, most) in [
        (
            "diamond",
            run_of(&diamond()),
            4.0,
            limit(2.2, 0.0, 3020.0, 22.0),
        ),
        (
            "diamond by FQSN, its snapshot included",
            by_fqsn,
            4.0,
            limit(2.75, 0.28, 3350.0, 25.0),
        ),
        (
            "chain of 10",
            run_of(&chain(10)),
            10.0,
            limit(2.0, 0.0, 3400.0, 67.0),
        ),
        (
            "1,000 nodes in layers",
            run_of(&layers()),
            1000.0,
            limit(1.12, 0.0, 2210.0, 103.0),
        ),
    ] {
        let found = cost(run, nodes, 60).await;
        println!("{name}: {found:?}");
        let over = found.numbers().into_iter().zip(most.numbers());
        if over.into_iter().any(|(found, most)| found > most) {
            wrong.push(format!("{name}: {found:?}, expected at most {most:?}"));
        }
    }
    assert_eq!(wrong, [""; 0]);
}

/// How many pods twenty chains have after two seconds, where few writes may be in flight and each
/// status takes so long.
async fn pods_of_chains(status: Duration) -> usize {
    let fake = Fake::new();
    let few = Options {
        max_writes: NonZeroUsize::new(4).unwrap(),
        ..options()
    };
    operate(&fake, few);
    passes(1).await;
    fake.kubelet(well);
    fake.rule("status", 10_000, fake::Act::Late(status));
    for nth in 0..20 {
        let mut run = run_of(&chain(100));
        run["metadata"]["name"] = json!(format!("r{nth}"));
        fake.put("workflowruns", run);
    }
    passes(2).await;
    fake.created().values().sum()
}

#[tokio::test(start_paused = true)]
async fn creates_do_not_stand_behind_statuses() {
    let quick = pods_of_chains(Duration::ZERO).await;
    let slow = pods_of_chains(Duration::from_secs(2)).await;
    assert!(quick < 20 * 100, "they are over before anything is told");
    assert!(
        slow * 10 > quick * 9,
        "{slow} pods, {quick} where statuses are quick"
    );
}

/// However many runs are to go at once, and however slowly they do.
#[tokio::test(start_paused = true)]
async fn creates_do_not_stand_behind_runs_that_expire() {
    let pods = async |expired: usize| {
        let fake = Fake::new();
        let run = |name: String, ttl: u32, nodes: usize| {
            let mut run = run_of(&chain(nodes));
            run["metadata"]["name"] = json!(name);
            run["spec"]["ttlSecondsAfterFinished"] = json!(ttl);
            run
        };
        fake.kubelet(well);
        let few = Options {
            max_writes: NonZeroUsize::new(4).unwrap(),
            ..options()
        };
        operate(&fake, few);
        for nth in 0..expired {
            fake.put("workflowruns", run(format!("old{nth}"), 3, 1));
        }
        passes(2).await;
        let before: usize = fake.created().values().sum();
        let slow = fake::Act::Late(Duration::from_secs(5));
        fake.rule("delete workflowruns", 10_000, slow);
        for nth in 0..10 {
            fake.put("workflowruns", run(format!("new{nth}"), 600, 100));
        }
        passes(3).await;
        fake.created().values().sum::<usize>() - before
    };
    let (alone, beside) = (pods(0).await, pods(40).await);
    assert!(alone < 10 * 100, "they are over before anything expires");
    assert!(
        beside * 10 > alone * 7,
        "{beside} pods, {alone} where none expires"
    );
    println!("{beside} pods, {alone} where none expires");
}

/// A run tells of itself for a tenth of the time; of its end at once.
#[tokio::test(start_paused = true)]
async fn after_a_slow_status_the_next_waits_and_the_last_does_not() {
    let fake = started().await;
    fake.rule("status", 1, fake::Act::Late(Duration::from_secs(1)));
    fake.put(
        "workflowruns",
        run_of(&json!({"a": node(&[]), "b": node(&[])})),
    );
    passes(2).await;
    fake.calls();
    fake.pod_ends("a/1", ok());
    passes(8).await;
    assert_eq!(fake.calls(), [""; 0]);
    passes(3).await;
    assert_eq!(fake.calls(), ["status Running 1/2"]);
    fake.pod_ends("b/1", ok());
    rest().await;
    assert_eq!(fake.calls(), ["status Succeeded 2/2", "event Succeeded"]);
    silence(&fake).await;
}

/// However many runs there are, and however much they have to tell; what is over does not wait.
#[tokio::test(start_paused = true)]
async fn many_runs_tell_some_ten_times_a_second() {
    let fake = started().await;
    fake.rule("status", 10_000, fake::Act::Late(Duration::from_millis(50)));
    for nth in 0..300 {
        let mut run = run_of(&json!({"a": node(&[]), "b": node(&[])}));
        run["metadata"]["name"] = json!(format!("r{nth}"));
        fake.put("workflowruns", run);
    }
    passes(5).await;
    // Each of them has had news for a while, and has more.
    let (first, second): (Vec<_>, Vec<_>) =
        fake.pods().into_iter().partition(|(_, namespace, name)| {
            let pod = fake.get_in(namespace, "pods", name).unwrap();
            pod["metadata"]["annotations"]["apscli.dev/node"] == "a"
        });
    for pod in &first {
        fake.ends_well(pod);
    }
    passes(15).await;
    let told = fake.calls();
    let told = told.iter().filter(|it| it.starts_with("status"));
    // All have lined up for the first one before it could be told how long a write takes, which is
    // 50 ms; of those that come for the second, ten a second.
    let told = told.count();
    assert!((350..450).contains(&told), "{told} statuses in 20 s");

    // Others still wait, and not for what somebody asks for.
    let suspend = json!({"spec": {"suspend": true}});
    fake.merge("workflowruns", "r7", &suspend);
    passes(1).await;
    assert!(fake.calls().contains(&"status Suspended 1/2".to_owned()));

    fake.no_rules();
    fake.ends_well(second.last().unwrap());
    rest().await;
    // Another run may come to tell at that moment.
    assert!(fake.calls().contains(&"status Succeeded 2/2".to_owned()));
}
