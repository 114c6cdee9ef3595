//! Leadership: conversations with an API of one Lease, on a clock that is wound by hand; and two
//! holders on a real one.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use apscli::operator::lease::{Leadership, Lease, Timing};
use http::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use rstest::rstest;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tower::BoxError;

/// How the line between one client and the API is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    Good,
    /// Requests do not arrive.
    Cut,
    /// Requests arrive, answers do not.
    Mute,
    /// Writes arrive, and their answers do not.
    MuteToWrites,
    /// Requests take so long to arrive.
    Late(Duration),
    /// Answers take so long to arrive.
    Slow(Duration),
    /// The server answers with 500 and does nothing.
    Failing,
}

/// An API that holds one Lease, with a log of all that it was asked.
struct Shelf {
    start: Instant,
    lease: Mutex<Option<Value>>,
    version: Mutex<u64>,
    log: Mutex<Vec<String>>,
}

impl Shelf {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            lease: Mutex::new(None),
            version: Mutex::new(10),
            log: Mutex::default(),
        })
    }

    /// What was asked since this was last called, each with its second: the whole conversation, so
    /// that one call too many is seen.
    fn log(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock().unwrap())
    }

    /// The log's lines but for reads.
    fn writes(&self) -> Vec<String> {
        let mut log = self.log();
        log.retain(|line| !line.contains(" GET "));
        log
    }

    fn stamp(&self, lease: &mut Value) {
        let mut version = self.version.lock().unwrap();
        *version += 1;
        lease["metadata"]["resourceVersion"] = json!(version.to_string());
        lease["metadata"]["uid"] = json!("u-1");
    }

    /// Puts a record there from outside.
    fn set(&self, spec: Value) {
        let mut lease = json!({"metadata": {"name": "apscli", "namespace": "ns"}, "spec": spec});
        self.stamp(&mut lease);
        *self.lease.lock().unwrap() = Some(lease);
    }

    /// Touches the object without changing what it says.
    fn touch(&self) {
        let mut lease = self.lease.lock().unwrap();
        self.stamp(lease.as_mut().unwrap());
    }

    fn delete(&self) {
        *self.lease.lock().unwrap() = None;
    }

    fn spec(&self) -> Value {
        self.lease.lock().unwrap().as_ref().unwrap()["spec"].clone()
    }

    fn holder(&self) -> Option<String> {
        let lease = self.lease.lock().unwrap();
        let holder = lease.as_ref()?["spec"]["holderIdentity"].as_str();
        holder.map(str::to_owned)
    }

    fn answer(&self, who: &str, method: &Method, path: &str, body: &[u8]) -> (u16, Value) {
        const ALL: &str = "/apis/coordination.k8s.io/v1/namespaces/ns/leases";
        let mut lease = self.lease.lock().unwrap();
        let mut line = format!("{:.1} {who} {method}", self.start.elapsed().as_secs_f64());
        let (code, value) = match (method.as_str(), path.strip_prefix(ALL)) {
            ("GET", Some("/apscli")) => match &*lease {
                Some(lease) => (200, lease.clone()),
                None => (404, json!({})),
            },
            ("POST" | "PUT", Some(name)) => {
                let mut wanted: Value = serde_json::from_slice(body).unwrap();
                let spec = &wanted["spec"];
                let holder = spec["holderIdentity"].as_str().unwrap_or("nobody");
                let transitions = &spec["leaseTransitions"];
                write!(line, " {holder} {transitions}").unwrap();
                assert_eq!(name.is_empty(), method == Method::POST, "{path}");
                let version = wanted["metadata"]["resourceVersion"].clone();
                let code = match &*lease {
                    None if method == Method::POST => 201,
                    // What the real one says to a precondition on an object that is gone.
                    None => 409,
                    Some(_) if method == Method::POST => 409,
                    Some(lease) if lease["metadata"]["resourceVersion"] == version => 200,
                    Some(_) => 409,
                };
                if code == 409 {
                    (code, json!({}))
                } else {
                    self.stamp(&mut wanted);
                    *lease = Some(wanted.clone());
                    (code, wanted)
                }
            }
            _ => panic!("{method} {path} is not about the Lease"),
        };
        write!(line, " → {code}").unwrap();
        self.log.lock().unwrap().push(line);
        if code < 400 {
            (code, value)
        } else {
            // The client asks for the reason, and for the code only where it knows none.
            let reason = if code == 404 { "NotFound" } else { "Conflict" };
            (
                code,
                json!({"kind": "Status", "code": code, "reason": reason, "message": "as scripted"}),
            )
        }
    }

    fn client(self: &Arc<Self>, who: &str, line: &Arc<Mutex<Line>>) -> Client {
        let shelf = Arc::clone(self);
        let who = who.to_owned();
        let line = Arc::clone(line);
        let service = tower::service_fn(move |request: Request<Body>| {
            let shelf = Arc::clone(&shelf);
            let who = who.clone();
            let line = *line.lock().unwrap();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect_bytes().await?;
                match line {
                    Line::Cut => std::future::pending().await,
                    Line::Late(time) => sleep(time).await,
                    _ => {}
                }
                let (code, value) = if line == Line::Failing {
                    (
                        500,
                        json!({"kind": "Status", "code": 500, "message": "not now"}),
                    )
                } else {
                    shelf.answer(&who, &head.method, head.uri.path(), &body)
                };
                match line {
                    Line::Mute => std::future::pending().await,
                    Line::MuteToWrites if head.method != Method::GET => {
                        std::future::pending::<()>().await;
                    }
                    Line::Slow(time) => sleep(time).await,
                    _ => {}
                }
                let body = Body::from(serde_json::to_vec(&value).unwrap());
                let response = Response::builder().status(code).body(body).unwrap();
                Ok::<_, BoxError>(response)
            }
        });
        Client::new(service, "ns")
    }

    /// One who would like to hold the Lease, and its line.
    fn candidate(self: &Arc<Self>, who: &str) -> (Lease, Arc<Mutex<Line>>) {
        let line = Arc::new(Mutex::new(Line::Good));
        let client = self.client(who, &line);
        let lease = Lease::new(client, "ns", "apscli", who, Timing::default());
        (lease, line)
    }

    /// One who holds the Lease since now, and its line; the log is empty.
    async fn leader(self: &Arc<Self>, who: &str) -> (Leadership, Arc<Mutex<Line>>) {
        let (lease, line) = self.candidate(who);
        let leadership = lease.acquire().await;
        self.log();
        (leadership, line)
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// How many seconds it takes until it is lost, and that it is then.
async fn lost_after(leadership: &Leadership) -> f64 {
    assert!(leadership.holds());
    let begun = Instant::now();
    leadership.lost().await;
    assert!(!leadership.holds());
    begun.elapsed().as_secs_f64()
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_nobody_made_is_made_and_renewed() {
    let shelf = Shelf::new();
    let (lease, _) = shelf.candidate("a");
    let before = lease.leadership();
    assert!(!before.holds());
    let leadership = lease.acquire().await;
    assert!(leadership.holds() && before.holds());
    let spec = shelf.spec();
    assert_eq!(spec["holderIdentity"], "a");
    assert_eq!(spec["leaseDurationSeconds"], 15);
    assert_eq!(spec["acquireTime"], spec["renewTime"]);
    sleep(seconds(10.5)).await;
    assert_eq!(
        shelf.log(),
        [
            "0.0 a GET → 404",
            "0.0 a POST a 0 → 201",
            "5.0 a PUT a 0 → 200",
            "10.0 a PUT a 0 → 200",
        ]
    );
    assert_ne!(shelf.spec()["renewTime"], spec["renewTime"]);
    assert_eq!(shelf.spec()["acquireTime"], spec["acquireTime"]);
    assert!(leadership.holds());
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_was_given_back_is_taken_at_once() {
    let shelf = Shelf::new();
    shelf.set(json!({"leaseTransitions": 4, "renewTime": "2026-01-01T00:00:00.000000Z"}));
    shelf.leader("a").await;
    shelf.set(json!({"holderIdentity": "", "leaseTransitions": 6}));
    let (lease, _) = shelf.candidate("b");
    assert!(lease.acquire().await.holds());
    assert_eq!(shelf.log(), ["0.0 b GET → 200", "0.0 b PUT b 7 → 200"]);
}

/// The holder's clock may say what it likes: only our own seconds count.
#[rstest]
#[case::right("now")]
#[case::an_hour_ahead("ahead")]
#[case::an_hour_behind("behind")]
#[case::from_another_age("1970-01-01T00:00:00.000000Z")]
#[case::without_a_time("none")]
#[tokio::test(start_paused = true)]
async fn a_silent_holder_is_replaced_after_its_duration_and_not_before(#[case] clock: &str) {
    let hour = jiff::SignedDuration::from_hours(1);
    let now = jiff::Timestamp::now();
    let renewed = match clock {
        "now" => json!(format!("{now:.6}")),
        "ahead" => json!(format!("{:.6}", now + hour)),
        "behind" => json!(format!("{:.6}", now - hour)),
        "none" => Value::Null,
        text => json!(text),
    };
    let shelf = Shelf::new();
    shelf.set(json!({
        "holderIdentity": "b",
        "leaseDurationSeconds": 15,
        "renewTime": renewed,
        "leaseTransitions": 2,
    }));
    let (lease, _) = shelf.candidate("a");
    let leadership = lease.acquire().await;
    assert!(leadership.holds());
    let log = shelf.log();
    let (last, looks) = log.split_last().unwrap();
    assert_eq!(last, "15.0 a PUT a 3 → 200");
    let expected: Vec<String> = (0..=15).map(|at| format!("{at}.0 a GET → 200")).collect();
    assert_eq!(looks, expected);
}

#[rstest]
#[case::longer_than_ours(json!(40), 40)]
#[case::shorter_than_ours(json!(1), 15)]
#[case::absurd(json!(-5), 15)]
#[case::missing(Value::Null, 15)]
#[tokio::test(start_paused = true)]
async fn a_holder_has_what_it_promised_and_at_least_what_we_would(
    #[case] promised: Value,
    #[case] expected: u64,
) {
    let shelf = Shelf::new();
    shelf.set(json!({"holderIdentity": "b", "leaseDurationSeconds": promised}));
    let (lease, _) = shelf.candidate("a");
    lease.acquire().await;
    assert_eq!(shelf.writes(), [format!("{expected}.0 a PUT a 0 → 200")]);
}

#[tokio::test(start_paused = true)]
async fn every_sign_of_life_begins_the_wait_anew() {
    let shelf = Shelf::new();
    shelf.set(json!({"holderIdentity": "b", "leaseDurationSeconds": 15}));
    let (lease, _) = shelf.candidate("a");
    let taking = tokio::spawn(lease.acquire());
    sleep(seconds(14.5)).await;
    shelf.touch();
    sleep(seconds(14.0)).await;
    shelf.set(json!({"holderIdentity": "c", "leaseDurationSeconds": 15}));
    sleep(seconds(15.0)).await;
    assert_eq!(shelf.writes(), [""; 0]);
    assert!(taking.await.unwrap().holds());
    assert_eq!(shelf.writes(), ["44.0 a PUT a 0 → 200"]);
}

#[tokio::test(start_paused = true)]
async fn of_two_takers_one_leads() {
    let shelf = Shelf::new();
    shelf.set(json!({"holderIdentity": "c", "leaseDurationSeconds": 15, "leaseTransitions": 0}));
    let (a, _) = shelf.candidate("a");
    let (b, line) = shelf.candidate("b");
    // The second one's write is on its way while the first one's arrives.
    *line.lock().unwrap() = Line::Late(seconds(0.25));
    let waiting = b.leadership();
    let second = tokio::spawn(b.acquire());
    let first = a.acquire().await;
    sleep(seconds(5.0)).await;
    assert!(first.holds() && !waiting.holds());
    assert_eq!(shelf.holder().as_deref(), Some("a"));
    let log = shelf.log();
    assert!(
        log.iter()
            .filter(|line| line.contains("PUT b 1 → 409"))
            .count()
            <= 1,
        "{log:#?}"
    );
    first.release().await;
    assert!(second.await.unwrap().holds());
    assert_eq!(shelf.holder().as_deref(), Some("b"));
}

#[tokio::test(start_paused = true)]
async fn who_meets_a_conflict_does_not_lead() {
    let shelf = Shelf::new();
    shelf.set(json!({"leaseTransitions": 0}));
    let (lease, line) = shelf.candidate("a");
    *line.lock().unwrap() = Line::Late(seconds(0.5));
    let leadership = lease.leadership();
    tokio::spawn(lease.acquire());
    sleep(seconds(0.75)).await;
    shelf.set(json!({"holderIdentity": "b", "leaseDurationSeconds": 15, "leaseTransitions": 1}));
    sleep(seconds(13.0)).await;
    assert!(!leadership.holds());
    assert_eq!(shelf.writes(), ["1.0 a PUT a 1 → 409"]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_was_lost_is_found_by_looking() {
    let shelf = Shelf::new();
    let (lease, line) = shelf.candidate("a");
    let leadership = lease.leadership();
    // The read is answered, the write arrives and its answer does not.
    *line.lock().unwrap() = Line::MuteToWrites;
    tokio::spawn(lease.acquire());
    sleep(seconds(1.0)).await;
    assert!(!leadership.holds());
    *line.lock().unwrap() = Line::Good;
    sleep(seconds(3.0)).await;
    assert!(leadership.holds());
    assert_eq!(
        shelf.log(),
        ["0.0 a GET → 404", "0.0 a POST a 0 → 201", "2.5 a GET → 200"]
    );
    // The time counts from the write, not from when we learnt of it: renewed at 5 s.
    *line.lock().unwrap() = Line::Cut;
    leadership.lost().await;
    assert!((shelf.start.elapsed().as_secs_f64() - 10.0).abs() < 0.01);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_whose_answer_was_lost_is_a_renewal() {
    let shelf = Shelf::new();
    let (leadership, line) = shelf.leader("a").await;
    sleep(seconds(4.9)).await;
    *line.lock().unwrap() = Line::Mute;
    sleep(seconds(0.2)).await;
    *line.lock().unwrap() = Line::Good;
    sleep(seconds(10.0)).await;
    assert!(leadership.holds());
    assert_eq!(
        shelf.log(),
        [
            "5.0 a PUT a 0 → 200",
            "7.5 a PUT a 0 → 409",
            "7.5 a GET → 200",
            // Five seconds after the renewal was sent, which is long ago.
            "10.0 a PUT a 0 → 200",
            "15.0 a PUT a 0 → 200",
        ]
    );
}

#[rstest]
#[case::requests_do_not_arrive(Line::Cut)]
#[case::answers_do_not_arrive(Line::Mute)]
#[case::the_server_fails(Line::Failing)]
#[case::answers_arrive_too_late(Line::Slow(Duration::from_secs(4)))]
#[tokio::test(start_paused = true)]
async fn who_cannot_renew_stops_ten_seconds_after_the_last_that_was_sent(#[case] bad: Line) {
    let shelf = Shelf::new();
    let (lease, line) = shelf.candidate("a");
    // The answer takes a second, and that second does not count for us.
    *line.lock().unwrap() = Line::Slow(seconds(1.0));
    let leadership = lease.acquire().await;
    assert!((shelf.start.elapsed().as_secs_f64() - 2.0).abs() < 0.01);
    *line.lock().unwrap() = bad;
    let after = lost_after(&leadership).await;
    assert!((after - 9.0).abs() < 0.01, "lost after {after} s");
    shelf.log();
    *line.lock().unwrap() = Line::Good;
    sleep(seconds(60.0)).await;
    // Nothing more is written, and what was lost does not come back.
    assert_eq!(shelf.log(), [""; 0]);
    assert!(!leadership.holds());
}

#[tokio::test(start_paused = true)]
async fn a_moment_of_trouble_costs_nothing() {
    let shelf = Shelf::new();
    let (leadership, line) = shelf.leader("a").await;
    sleep(seconds(4.5)).await;
    *line.lock().unwrap() = Line::Failing;
    sleep(seconds(2.0)).await;
    *line.lock().unwrap() = Line::Cut;
    sleep(seconds(1.0)).await;
    *line.lock().unwrap() = Line::Good;
    sleep(seconds(30.0)).await;
    assert!(leadership.holds());
}

#[tokio::test(start_paused = true)]
async fn whose_lease_another_took_stops_at_once() {
    let shelf = Shelf::new();
    let (leadership, _) = shelf.leader("a").await;
    shelf.set(json!({"holderIdentity": "b", "leaseDurationSeconds": 15}));
    let after = lost_after(&leadership).await;
    assert!((after - 5.0).abs() < 0.01, "lost after {after} s");
    sleep(seconds(60.0)).await;
    assert_eq!(shelf.log(), ["5.0 a PUT a 0 → 409", "5.0 a GET → 200"]);
}

#[tokio::test(start_paused = true)]
async fn whose_lease_was_only_touched_goes_on() {
    let shelf = Shelf::new();
    let (leadership, _) = shelf.leader("a").await;
    shelf.touch();
    sleep(seconds(6.0)).await;
    assert!(leadership.holds());
    assert_eq!(
        shelf.log(),
        [
            "5.0 a PUT a 0 → 409",
            "5.0 a GET → 200",
            "5.0 a PUT a 0 → 200"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn another_of_the_same_name_is_another() {
    let shelf = Shelf::new();
    let (first, _) = shelf.leader("a").await;
    let (lease, _) = shelf.candidate("a");
    let second = lease.leadership();
    tokio::spawn(lease.acquire());
    sleep(seconds(40.0)).await;
    assert!(first.holds() && !second.holds());
    let spec = shelf.spec();
    shelf.set(json!({
        "holderIdentity": "a",
        "renewTime": "2026-01-01T00:00:00.000000Z",
        "leaseDurationSeconds": spec["leaseDurationSeconds"],
    }));
    sleep(seconds(6.0)).await;
    assert!(!first.holds() && !second.holds());
}

#[tokio::test(start_paused = true)]
async fn a_deleted_lease_ends_its_leader_before_another_takes_it() {
    let shelf = Shelf::new();
    let (leader, line) = shelf.leader("a").await;
    let (lease, _) = shelf.candidate("b");
    let waiting = lease.leadership();
    tokio::spawn(lease.acquire());
    sleep(seconds(6.0)).await;
    // Even if the leader does not learn of it.
    *line.lock().unwrap() = Line::Cut;
    shelf.delete();
    let after = lost_after(&leader).await;
    assert!((after - 9.0).abs() < 0.01, "lost after {after} s");
    assert!(!waiting.holds());
    sleep(seconds(20.0)).await;
    assert!(waiting.holds());

    shelf.delete();
    let after = lost_after(&waiting).await;
    assert!(after < 5.01, "lost after {after} s");
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_given_back_once_and_then_there_is_silence() {
    let shelf = Shelf::new();
    let (leadership, _) = shelf.leader("a").await;
    let other = leadership.clone();
    sleep(seconds(1.0)).await;
    leadership.release().await;
    assert!(!other.holds());
    other.lost().await;
    other.release().await;
    sleep(seconds(60.0)).await;
    assert_eq!(shelf.log(), ["1.0 a PUT nobody 0 → 200"]);
    assert_eq!(shelf.holder(), None);
}

#[tokio::test(start_paused = true)]
async fn giving_back_waits_for_a_renewal_and_finds_one_whose_answer_was_lost() {
    let shelf = Shelf::new();
    let (leadership, line) = shelf.leader("a").await;
    sleep(seconds(4.9)).await;
    *line.lock().unwrap() = Line::Mute;
    sleep(seconds(0.2)).await;
    *line.lock().unwrap() = Line::Good;
    leadership.release().await;
    sleep(seconds(60.0)).await;
    assert_eq!(
        shelf.log(),
        [
            "5.0 a PUT a 0 → 200",
            "7.5 a PUT nobody 0 → 409",
            "7.5 a GET → 200",
            "7.5 a PUT nobody 0 → 200",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn giving_back_does_not_wait_for_ever_nor_take_from_another() {
    let shelf = Shelf::new();
    let (leadership, line) = shelf.leader("a").await;
    *line.lock().unwrap() = Line::Cut;
    let begun = Instant::now();
    leadership.release().await;
    assert!(begun.elapsed() <= seconds(2.6));

    let (leadership, _) = shelf.leader("b").await;
    shelf.set(json!({"holderIdentity": "c", "leaseDurationSeconds": 15}));
    leadership.release().await;
    assert_eq!(shelf.holder().as_deref(), Some("c"));
    // One who never led has nothing to give.
    let (lease, _) = shelf.candidate("d");
    let waiting = lease.leadership();
    let taking = tokio::spawn(lease.acquire());
    waiting.release().await;
    shelf.set(json!({}));
    shelf.log();
    assert!(!taking.await.unwrap().holds());
    assert_eq!(shelf.log(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn nobody_renews_for_nobody() {
    let shelf = Shelf::new();
    let (leadership, _) = shelf.leader("a").await;
    drop(leadership);
    sleep(seconds(60.0)).await;
    assert_eq!(shelf.log(), [""; 0]);
}

/// A small generator; a failure names its seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Three processes that start anew when they have lost, each on a line that goes bad and well again,
/// while somebody touches the Lease: never do two lead at once, and when all is well
/// again, one does.
#[tokio::test(start_paused = true)]
async fn at_most_one_leads_whatever_happens_to_their_lines() {
    for seed in 1..=60 {
        let mut dice = Dice(u64::wrapping_mul(seed, 0x9E37_79B9_7F4A_7C15));
        let shelf = Shelf::new();
        let mut born = 0;
        let mut birth = |shelf: &Arc<Shelf>| {
            born += 1;
            let (lease, line) = shelf.candidate(&format!("p{born}"));
            let leadership = lease.leadership();
            (leadership, line, tokio::spawn(lease.acquire()), false)
        };
        let mut processes: Vec<_> = (0..3).map(|_| birth(&shelf)).collect();
        let mut led = 0;
        for step in 0..3000 {
            sleep(seconds(0.1)).await;
            let leaders = processes.iter().filter(|(it, ..)| it.holds()).count();
            assert!(
                leaders <= 1,
                "seed {seed}, step {step}: {leaders} lead\n{:#?}",
                shelf.log()
            );
            for process in &mut processes {
                let holds = process.0.holds();
                led += usize::from(holds && !process.3);
                if process.3 && !holds {
                    process.2.abort();
                    *process = birth(&shelf);
                } else {
                    process.3 = holds;
                }
            }
            if dice.below(20) == 0 {
                let whose = usize::try_from(dice.below(3)).unwrap();
                *processes[whose].1.lock().unwrap() = match dice.below(8) {
                    0 => Line::Cut,
                    1 => Line::Mute,
                    2 => Line::Failing,
                    3 => Line::Late(seconds(2.4)),
                    4 => Line::Slow(seconds(2.4)),
                    _ => Line::Good,
                };
            }
            match dice.below(400) {
                0 if shelf.holder().is_some() => shelf.touch(),
                1 => {
                    let whose = usize::try_from(dice.below(3)).unwrap();
                    processes[whose].0.clone().release().await;
                    processes[whose] = birth(&shelf);
                }
                _ => {}
            }
        }
        for (_, line, ..) in &processes {
            *line.lock().unwrap() = Line::Good;
        }
        sleep(seconds(40.0)).await;
        let leaders = processes.iter().filter(|(it, ..)| it.holds()).count();
        assert!(leaders <= 1, "seed {seed}: {leaders} lead at the end");
        // One that had lost within the last moment is not begun anew here.
        let waiting = processes.iter().any(|(_, _, task, _)| !task.is_finished());
        assert!(
            leaders == 1 || !waiting,
            "seed {seed}: nobody leads at the end"
        );
        assert!(led > 1, "seed {seed}: leadership never moved");
    }
}

/// On a real API, in seconds that pass by themselves.
mod real {
    use std::sync::mpsc;
    use std::{env, thread};

    use k8s_openapi::api::coordination::v1 as coordination;
    use kube::api::{DeleteParams, PostParams};
    use kube::config::{KubeConfigOptions, Kubeconfig};
    use kube::{Api, Config};
    use tokio::time::timeout;

    use super::*;

    const TIMING: Timing = Timing {
        duration: Duration::from_secs(3),
        renew_every: Duration::from_secs(1),
        give_up: Duration::from_secs(2),
        look_every: Duration::from_millis(200),
        call: Duration::from_millis(500),
    };

    async fn client() -> Client {
        let path = env::var_os("APSCLI_TEST_KUBECONFIG")
            .expect("APSCLI_TEST_KUBECONFIG is not set: run this by tests/cluster/with");
        let kubeconfig = Kubeconfig::read_from(path).unwrap();
        let whole = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &whole).await;
        Client::try_from(config.unwrap()).unwrap()
    }

    fn lease(client: &Client, name: &str, who: &str) -> Lease {
        Lease::new(client.clone(), "default", name, who, TIMING)
    }

    /// A process that can be stopped as SIGSTOP stops one: nothing in it runs meanwhile.
    struct Stoppable {
        leadership: Leadership,
        stop: mpsc::Sender<Duration>,
    }

    impl Stoppable {
        /// One that leads.
        fn new(name: &'static str, who: &'static str) -> Self {
            let (told, leads) = mpsc::channel();
            let (stop, stops) = mpsc::channel();
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    let leadership = lease(&client().await, name, who).acquire().await;
                    told.send(leadership).unwrap();
                    loop {
                        match stops.try_recv() {
                            Ok(time) => thread::sleep(time),
                            Err(mpsc::TryRecvError::Empty) => sleep(seconds(0.01)).await,
                            Err(mpsc::TryRecvError::Disconnected) => return,
                        }
                    }
                });
            });
            let leadership = leads.recv_timeout(seconds(20.0)).unwrap();
            Self { leadership, stop }
        }
    }

    #[tokio::test]
    #[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
    async fn one_that_was_stopped_has_lost_before_another_leads() {
        let name = "stopped";
        let client = client().await;
        let leases: Api<coordination::Lease> = Api::namespaced(client.clone(), "default");
        let _ = leases.delete(name, &DeleteParams::default()).await;
        let first = tokio::task::spawn_blocking(|| Stoppable::new(name, "first"));
        let first = first.await.unwrap();
        let second = lease(&client, name, "second");
        let leads = second.leadership();
        tokio::spawn(second.acquire());
        // Longer than any of the waits: it is renewed.
        sleep(seconds(5.0)).await;
        assert!(first.leadership.holds() && !leads.holds());

        first.stop.send(seconds(6.0)).unwrap();
        let begun = Instant::now();
        while !leads.holds() {
            assert!(begun.elapsed() < seconds(6.0), "nobody took over");
            sleep(seconds(0.002)).await;
        }
        let took = begun.elapsed();
        assert!(!first.leadership.holds(), "two lead");
        assert!(took > seconds(1.9), "taken over after {took:?}");
        // It goes on, thinks for a moment that nothing has happened, and must write nothing.
        sleep(seconds(6.0)).await;
        assert!(leads.holds() && !first.leadership.holds());
        timeout(seconds(1.0), first.leadership.lost())
            .await
            .unwrap();
        let spec = leases.get(name).await.unwrap().spec.unwrap();
        assert_eq!(spec.holder_identity.as_deref(), Some("second"));
        assert_eq!(spec.lease_transitions, Some(1));
        assert_eq!(spec.lease_duration_seconds, Some(3));
        leads.release().await;
        let spec = leases.get(name).await.unwrap().spec.unwrap();
        assert_eq!(spec.holder_identity, None);
    }

    #[tokio::test]
    #[ignore = "needs a cluster: tests/cluster/with --nodes fake"]
    async fn it_is_handed_over_at_once_and_its_deletion_is_noticed() {
        let name = "handed-over";
        let client = client().await;
        let leases: Api<coordination::Lease> = Api::namespaced(client.clone(), "default");
        let _ = leases.delete(name, &DeleteParams::default()).await;
        let first = lease(&client, name, "first").acquire().await;
        let second = lease(&client, name, "second");
        let leads = second.leadership();
        let taking = tokio::spawn(second.acquire());
        sleep(seconds(1.5)).await;
        assert!(first.holds() && !leads.holds());
        first.release().await;
        let second = timeout(seconds(1.0), taking).await.unwrap().unwrap();
        assert!(second.holds());

        let old = leases.get(name).await.unwrap();
        leases.delete(name, &DeleteParams::default()).await.unwrap();
        timeout(seconds(2.5), second.lost()).await.unwrap();
        // What makes that safe: a write derived from the old object does not make a new one.
        let again = leases.replace(name, &PostParams::default(), &old).await;
        let Err(kube::Error::Api(status)) = again else {
            panic!("{again:?}");
        };
        assert!(matches!(status.code, 404 | 409), "{status:?}");
    }
}
