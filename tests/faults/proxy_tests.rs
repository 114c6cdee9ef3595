//! Each rule of the proxy does what it says, before an API server that is a function.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use kube::client::Body;
use kube::{Api, Client, Config};
use rstest::rstest;
use serde_json::{Value, json};

use tower::BoxError;

use super::proxy::{Fault, Key, Proxy, Refusal, Rule, Said, WatchFault};

/// What an API server has heard, and how many pods it has listed.
#[derive(Clone, Default)]
struct Server {
    heard: Arc<Mutex<Vec<String>>>,
    lists: Arc<AtomicUsize>,
}

/// Pods `one/1` and `two/1`, each of which comes, ends and goes.
fn events() -> Vec<Value> {
    let mut events = Vec::new();
    for (kind, phase) in [
        ("ADDED", "Pending"),
        ("MODIFIED", "Succeeded"),
        ("DELETED", "Succeeded"),
    ] {
        for name in ["one", "two"] {
            events.push(json!({"type": kind, "object": pod(name, phase)}));
        }
    }
    events
}

fn pod(name: &str, phase: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "status": {"phase": phase},
        "metadata": {
            "name": format!("pod-{name}"), "resourceVersion": "1", "labels": {"apscli.dev/run-uid": "u"},
            "annotations": {"apscli.dev/node": name, "apscli.dev/attempt": "1"},
        },
    })
}

impl Server {
    fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, BoxError>(server.answer(request).await) }
        });
        Client::new(service, "n")
    }

    async fn answer(&self, request: Request<Body>) -> Response<UnsyncBoxBody<Bytes, BoxError>> {
        let path = request.uri().path_and_query().unwrap().to_string();
        let method = request.method().clone();
        let line = format!("{method} {}", path.trim_end_matches(['?', '&']));
        self.heard.lock().unwrap().push(line);
        let body = request.into_body().collect_bytes().await.unwrap();
        let text = match method.as_str() {
            "GET" if path.contains("watch=true") => {
                let lines = events().into_iter().map(|event| {
                    Ok::<_, std::io::Error>(http_body::Frame::data(Bytes::from(format!(
                        "{event}\n"
                    ))))
                });
                // A watch goes on.
                let open = futures::stream::iter(lines).chain(futures::stream::pending());
                let body = BodyExt::map_err(StreamBody::new(open), Into::into);
                return Response::new(body.boxed_unsync());
            }
            "GET" => {
                let count = self.lists.fetch_add(1, SeqCst) + 1;
                json!({"kind": "PodList", "apiVersion": "v1", "items": [],
                    "metadata": {"resourceVersion": count.to_string()}})
            }
            "POST" => serde_json::from_slice(&body).unwrap(),
            _ => json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}),
        };
        let body = Full::from(text.to_string()).map_err(|never| match never {});
        Response::new(body.boxed_unsync())
    }

    fn heard(&self) -> Vec<String> {
        std::mem::take(&mut *self.heard.lock().unwrap())
    }
}

/// The API through a proxy with this rule.
async fn through(server: &Server, rules: Vec<Rule>) -> (Proxy, Client) {
    let proxy = Proxy::start(server.client(), rules).await;
    let mut config = Config::new(format!("http://{}", proxy.address).parse().unwrap());
    config.default_retry = false;
    (proxy, Client::try_from(config).unwrap())
}

fn call(verb: &str, resource: &str, name: &str, nth: usize, fault: Fault) -> Rule {
    Rule::Call {
        key: Key::new(verb, resource, name),
        nth,
        fault,
    }
}

fn event(name: &str, said: Said, nth: usize, fault: WatchFault) -> Rule {
    Rule::Event {
        resource: "pods".to_owned(),
        name: name.to_owned(),
        said,
        nth,
        fault,
    }
}

fn typed(name: &str) -> Pod {
    serde_json::from_value(pod(name, "Pending")).unwrap()
}

fn code(answer: kube::Result<impl Sized>) -> Result<(), u16> {
    match answer {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) => Err(status.code),
        Err(_) => Err(0),
    }
}

#[rstest]
#[case::too_many(Refusal::Status(429, "TooManyRequests"), 429)]
#[case::internal(Refusal::Status(500, "InternalError"), 500)]
#[case::unavailable(Refusal::Status(503, "ServiceUnavailable"), 503)]
#[case::timeout(Refusal::Status(504, "Timeout"), 504)]
#[case::forbidden(Refusal::Status(403, "Forbidden"), 403)]
#[case::conflict(Refusal::Status(409, "Conflict"), 409)]
#[case::reset(Refusal::Reset, 0)]
#[tokio::test]
async fn the_nth_call_is_refused_or_its_answer_lost(
    #[case] refusal: Refusal,
    #[case] expected: u16,
) {
    for (fault, arrives) in [(Fault::Refuse(refusal), 2), (Fault::Lose(refusal), 3)] {
        let server = Server::default();
        let (proxy, client) =
            through(&server, vec![call("create", "pods", "one/1", 2, fault)]).await;
        let pods: Api<Pod> = Api::namespaced(client, "n");
        let params = PostParams::default();
        let mut codes = Vec::new();
        for name in ["one", "two", "one", "one"] {
            codes.push(code(pods.create(&params, &typed(name)).await));
        }
        assert_eq!(codes, [Ok(()), Ok(()), Err(expected), Ok(())]);
        let ledger = proxy.ledger();
        let made = ledger.made[&("u".to_owned(), "one/1".to_owned())];
        assert_eq!((made, ledger.fired), (arrives, 1));
        let writes: Vec<String> = ledger
            .writes
            .iter()
            .map(|(key, nth)| format!("{key} #{nth}"))
            .collect();
        assert_eq!(
            writes,
            [
                "create pods one/1 #1",
                "create pods two/1 #1",
                "create pods one/1 #2",
                "create pods one/1 #3"
            ]
        );
        assert_eq!(server.heard().len(), arrives + 1);
    }
}

#[tokio::test]
async fn a_429_says_when_to_try_again() {
    let server = Server::default();
    let refuse = Fault::Refuse(Refusal::Status(429, "TooManyRequests"));
    let (proxy, _) = through(&server, vec![call("list", "pods", "", 1, refuse)]).await;
    let answer = raw(&proxy, "GET /api/v1/pods").await;
    assert!(answer.starts_with("HTTP/1.1 429"), "{answer}");
    assert!(answer.contains("retry-after: 1"), "{answer}");
}

async fn raw(proxy: &Proxy, line: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(proxy.address).await.unwrap();
    let request = format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[rstest]
#[case::before(Fault::KillBefore, 0, false)]
#[case::unanswered(Fault::KillUnanswered, 1, false)]
#[case::after(Fault::KillAfter, 1, true)]
#[tokio::test]
async fn a_kill_comes_where_it_shall_and_nothing_of_that_process_comes_after_it(
    #[case] fault: Fault,
    #[case] arrives: usize,
    #[case] answered: bool,
) {
    let server = Server::default();
    let (proxy, client) = through(&server, vec![call("delete", "pods", "x", 1, fault)]).await;
    let killed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&killed);
    let heard = server.clone();
    proxy.hook(move |_| {
        // The kill sees what has arrived before it.
        count.store(1 + heard.heard.lock().unwrap().len(), SeqCst);
        async {}
    });
    let pods: Api<Pod> = Api::namespaced(client, "n");
    let answer = pods.delete("x", &DeleteParams::default()).await;
    assert_eq!(answer.is_ok(), answered);
    // Its connections are cut, new ones too as long as no other process is there.
    assert!(pods.delete("y", &DeleteParams::default()).await.is_err());
    while killed.load(SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(killed.load(SeqCst), 1 + arrives);
    assert!(pods.delete("y", &DeleteParams::default()).await.is_err());
    proxy.open();
    let deleted = pods.delete("y", &DeleteParams::default()).await;
    assert!(deleted.is_ok());
    assert_eq!(server.heard().len(), arrives + 1);
}

#[rstest]
#[case::before(Fault::HoldBefore, 0)]
#[case::unanswered(Fault::HoldUnanswered, 1)]
#[tokio::test]
async fn what_is_held_goes_on_when_it_is_released(#[case] fault: Fault, #[case] arrives: usize) {
    let server = Server::default();
    let (proxy, client) = through(&server, vec![call("delete", "pods", "x", 1, fault)]).await;
    let pods: Api<Pod> = Api::namespaced(client, "n");
    let held = tokio::spawn(async move { pods.delete("x", &DeleteParams::default()).await });
    while proxy.ledger().fired == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!held.is_finished());
    assert_eq!(server.heard().len(), arrives);
    proxy.release();
    assert!(held.await.unwrap().is_ok());
    assert_eq!(server.heard().len(), 1 - arrives);
}

#[tokio::test]
async fn a_delayed_call_comes_later_and_others_pass_it() {
    let server = Server::default();
    let delay = Fault::Delay(Duration::from_millis(300));
    let (_proxy, client) = through(&server, vec![call("delete", "pods", "x", 1, delay)]).await;
    let pods: Api<Pod> = Api::namespaced(client, "n");
    let params = DeleteParams::default();
    let late = pods.delete("x", &params);
    let soon = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        pods.delete("y", &params).await
    };
    let (late, soon) = tokio::join!(late, soon);
    assert!(late.is_ok() && soon.is_ok());
    assert!(server.heard()[0].ends_with("/y"));
}

/// What a watch tells within a moment, and whether it has ended by then.
async fn told(client: &Client) -> (Vec<String>, bool) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), "n");
    let watch = match pods.watch(&WatchParams::default(), "0").await {
        Ok(watch) => watch,
        Err(kube::Error::Api(status)) => return (vec![status.code.to_string()], true),
        Err(error) => panic!("{error}"),
    };
    let mut watch = watch.boxed();
    let mut told = Vec::new();
    let until = tokio::time::sleep(Duration::from_millis(300));
    tokio::pin!(until);
    loop {
        let event = tokio::select! {
            event = watch.try_next() => event.unwrap(),
            () = &mut until => return (told, false),
        };
        told.push(match event {
            None => return (told, true),
            Some(WatchEvent::Added(pod)) => format!("+{}", pod.metadata.name.unwrap()),
            Some(WatchEvent::Modified(pod)) => format!("={}", pod.metadata.name.unwrap()),
            Some(WatchEvent::Deleted(pod)) => format!("-{}", pod.metadata.name.unwrap()),
            Some(WatchEvent::Error(status)) => status.code.to_string(),
            Some(WatchEvent::Bookmark(_)) => "bookmark".to_owned(),
        });
    }
}

const ALL: [&str; 6] = [
    "+pod-one", "+pod-two", "=pod-one", "=pod-two", "-pod-one", "-pod-two",
];

#[rstest]
#[case::in_stream(WatchFault::GoneInStream, &["+pod-one", "+pod-two", "410"], true)]
#[case::half_open(WatchFault::HalfOpen, &["+pod-one", "+pod-two"], false)]
#[case::swallow_one(WatchFault::SwallowOne, &["+pod-one", "+pod-two", "=pod-two", "-pod-one", "-pod-two"], false)]
#[case::swallow_all(WatchFault::Swallow, &["+pod-one", "+pod-two", "=pod-two", "-pod-two"], false)]
#[case::as_status(WatchFault::GoneAsStatus, &["+pod-one", "+pod-two"], true)]
#[tokio::test]
async fn a_watch_is_harmed_at_its_nth_event(
    #[case] fault: WatchFault,
    #[case] expected: &[&str],
    #[case] ends: bool,
) {
    let server = Server::default();
    let rule = event("one/1", Said::Ended, 1, fault);
    let (proxy, client) = through(&server, vec![rule]).await;
    let (seen, over) = told(&client).await;
    assert_eq!(
        (seen, over),
        (expected.iter().map(|it| (*it).to_owned()).collect(), ends)
    );
    assert_eq!(proxy.ledger().fired, 1);
    let (seen, _) = told(&client).await;
    let after: Vec<&str> = match fault {
        WatchFault::GoneAsStatus => vec!["410"],
        WatchFault::Swallow => vec!["+pod-two", "=pod-two", "-pod-two"],
        _ => ALL.to_vec(),
    };
    assert_eq!(seen, after);
}

#[tokio::test]
async fn a_frozen_watch_tells_all_of_it_later_while_writes_pass() {
    let server = Server::default();
    let time = Duration::from_millis(1500);
    let rule = event("", Said::Anything, 3, WatchFault::Freeze(time));
    let (_proxy, client) = through(&server, vec![rule]).await;
    let began = Instant::now();
    let (seen, _) = told(&client).await;
    assert_eq!(seen, ALL[..2]);
    let pods: Api<Pod> = Api::namespaced(client.clone(), "n");
    pods.create(&PostParams::default(), &typed("one"))
        .await
        .unwrap();
    // Another watch of the kind is frozen too.
    let (seen, _) = told(&client).await;
    if began.elapsed() < time {
        assert_eq!(seen.len(), 0);
    }
    tokio::time::sleep(time).await;
    assert_eq!(told(&client).await.0, ALL);
}

#[tokio::test]
async fn a_stale_list_is_the_first_one_once_more() {
    let server = Server::default();
    let rule = event("", Said::Deleted, 1, WatchFault::Stale);
    let (_proxy, client) = through(&server, vec![rule]).await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "n");
    let version = async || {
        pods.list(&ListParams::default())
            .await
            .unwrap()
            .metadata
            .resource_version
    };
    assert_eq!(version().await.as_deref(), Some("1"));
    assert_eq!(version().await.as_deref(), Some("2"));
    assert_eq!(told(&client).await.0[4], "410");
    assert_eq!(version().await.as_deref(), Some("1"));
    assert_eq!(version().await.as_deref(), Some("3"));
}

#[tokio::test]
async fn an_older_list_is_the_first_one_with_the_first_event() {
    let server = Server::default();
    let rule = event("", Said::Deleted, 1, WatchFault::Older);
    let (_proxy, client) = through(&server, vec![rule]).await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "n");
    let names = async || {
        let list = pods.list(&ListParams::default()).await.unwrap();
        let names = list.items.into_iter().map(|it| it.metadata.name.unwrap());
        names.collect::<Vec<_>>()
    };
    assert_eq!(names().await, [""; 0]);
    assert_eq!(told(&client).await.0[4], "410");
    assert_eq!(names().await, ["pod-one"]);
    assert_eq!(names().await, [""; 0]);
}

#[tokio::test]
async fn nobody_can_read_an_object_that_is_garbled_and_all_others_can_be_read() {
    let server = Server::default();
    let (proxy, client) = through(&server, Vec::new()).await;
    proxy.garble("pods", "pod-two");
    let pods: Api<Pod> = Api::namespaced(client, "n");
    let watch = pods.watch(&WatchParams::default(), "0").await.unwrap();
    let first: Vec<_> = watch.take(2).collect().await;
    assert!(matches!(&first[..], [Ok(_), Err(_)]), "{first:?}");
}

#[tokio::test]
async fn a_write_that_is_held_is_on_its_way() {
    let server = Server::default();
    let (proxy, client) = through(
        &server,
        vec![call("create", "pods", "", 1, Fault::HoldBefore)],
    )
    .await;
    let pods: Api<Pod> = Api::namespaced(client, "n");
    let held = tokio::spawn(async move {
        let pod = typed("one");
        pods.create(&PostParams::default(), &pod).await
    });
    while !proxy.is_busy() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    proxy.release();
    held.await.unwrap().unwrap();
    assert!(!proxy.is_busy());
}

/// Pages and copies of a service are named by hashes that no other run has.
#[tokio::test]
async fn a_rule_knows_an_object_whatever_hash_is_in_its_name() {
    let server = Server::default();
    let lose = Fault::Refuse(Refusal::Reset);
    let rule = call("create", "configmaps", "apscli-service-…-0", 1, lose);
    let (proxy, client) = through(&server, vec![rule]).await;
    let maps: Api<ConfigMap> = Api::namespaced(client, "n");
    let name = "apscli-service-5e87c41a2e3a3bfecd73c4f4ab3ee4ee-0";
    let map = json!({"metadata": {"name": name}});
    let map: ConfigMap = serde_json::from_value(map).unwrap();
    assert!(maps.create(&PostParams::default(), &map).await.is_err());
    assert_eq!(proxy.ledger().fired, 1);
}

/// The proxy speaks HTTP/1.1 alone. Nothing of HTTP/2 is linked into the operator, so its client
/// cannot ask for it; where that changes the proxy has to learn it too.
#[test]
fn the_operators_client_knows_no_http_2() {
    let locked = include_str!("../../Cargo.lock");
    let packages: Vec<&str> = locked
        .lines()
        .filter(|it| it.starts_with("name = "))
        .collect();
    assert!(packages.contains(&"name = \"hyper\""));
    assert!(!packages.contains(&"name = \"h2\""));
}

#[tokio::test]
async fn what_no_rule_is_about_passes_as_it_is() {
    let server = Server::default();
    let refuse = Fault::Refuse(Refusal::Status(500, "InternalError"));
    let (proxy, client) = through(&server, vec![call("create", "pods", "one/1", 1, refuse)]).await;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "n");
    let map: ConfigMap =
        serde_json::from_value(json!({"metadata": {"name": "one/1"}, "data": {"a": "b"}})).unwrap();
    let made = maps.create(&PostParams::default(), &map).await.unwrap();
    assert_eq!(made, map);
    assert_eq!(told(&client).await.0, ALL);
    assert_eq!(proxy.ledger().fired, 0);
    assert_eq!(proxy.ledger().told["pods"], 6);
}
