//! Probes and metrics, asked for over plain TCP as a stranger would.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use apscli::operator::health::Health;
use apscli::operator::metrics::Metrics;
use apscli::server::Server;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

struct Place {
    address: SocketAddr,
    health: Health,
    metrics: Arc<Metrics>,
}

async fn place() -> Place {
    let server = Server::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let address = server.address().unwrap();
    let health = Health::default();
    let metrics = Arc::new(Metrics::default());
    tokio::spawn(server.serve(health.clone(), Arc::clone(&metrics)));
    Place {
        address,
        health,
        metrics,
    }
}

/// What comes back for these bytes, until the other side closes.
async fn answer(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // A server that has heard enough may close before all is sent.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let read = timeout(Duration::from_secs(30), stream.read_to_end(&mut answer)).await;
    let _ = read.expect("the server neither answers nor closes");
    String::from_utf8(answer).unwrap()
}

/// Status and body of a GET.
async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
    let answer = answer(address, request.as_bytes()).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap();
    (status.parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn alive_and_ready_are_two_answers() {
    let place = place().await;
    let ok = (200, "ok\n".to_owned());
    assert_eq!(get(place.address, "/healthz").await, ok);
    let (status, body) = get(place.address, "/readyz").await;
    assert_eq!(
        (status, body.as_str()),
        (503, "the operator: has not begun\n")
    );
    let pods = place.health.needs("the cache of pods");
    let kinds = place.health.needs("the resources");
    kinds.missing("not served by the API: workflowruns");
    let (status, body) = get(place.address, "/readyz").await;
    assert_eq!(status, 503);
    assert_eq!(
        body,
        "the cache of pods: not there yet\nthe resources: not served by the API: workflowruns\n"
    );
    pods.met();
    kinds.met();
    assert_eq!(get(place.address, "/readyz").await, ok);
    let _pulse = place.health.pulse("runs", Duration::ZERO);
    tokio::time::sleep(Duration::from_millis(5)).await;
    let (status, body) = get(place.address, "/healthz").await;
    assert_eq!(status, 503);
    assert!(body.starts_with("runs: has not turned for"), "{body}");
    assert_eq!(get(place.address, "/readyz").await, ok);
}

#[tokio::test]
async fn metrics_are_text_that_names_its_format() {
    let place = place().await;
    place.metrics.set_leads(true);
    let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n";
    let answer = answer(place.address, request).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let format = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n";
    assert!(answer.contains(format), "{answer}");
    assert!(answer.contains("\napscli_leads 1\n"), "{answer}");
    assert!(answer.ends_with("# EOF\n"), "{answer}");
}

#[tokio::test]
async fn anything_else_is_not_there() {
    let place = place().await;
    for path in [
        "/",
        "/healthz/",
        "/metrics/../etc/passwd",
        "/debug/pprof",
        "/readyz%00",
    ] {
        assert_eq!(get(place.address, path).await.0, 404, "{path}");
    }
    let post = b"POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhi";
    let answer = answer(place.address, post).await;
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
}

#[tokio::test]
async fn what_is_too_large_is_refused_and_the_next_is_served() {
    let place = place().await;
    let long = "x".repeat(64 * 1024);
    let request = format!("GET /healthz HTTP/1.1\r\nlong: {long}\r\n\r\n");
    let told = answer(place.address, request.as_bytes()).await;
    assert!(!told.starts_with("HTTP/1.1 200"), "{told}");
    let fields: String = (0..200).map(|n| format!("f{n}: x\r\n")).collect();
    let request = format!("GET /healthz HTTP/1.1\r\n{fields}\r\n");
    let told = answer(place.address, request.as_bytes()).await;
    assert!(told.starts_with("HTTP/1.1 431 "), "{told}");
    let told = answer(place.address, b"\x16\x03\x01 not HTTP at all\r\n\r\n").await;
    assert!(
        told.is_empty() || told.starts_with("HTTP/1.1 400 "),
        "{told}"
    );
    // A body that is announced is not waited for.
    let request = b"GET /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n";
    let told = answer(place.address, request).await;
    assert!(told.starts_with("HTTP/1.1 200 "), "{told}");
    assert_eq!(get(place.address, "/healthz").await.0, 200);
}

#[tokio::test]
async fn whoever_holds_connections_open_does_not_keep_others_out_for_long() {
    let place = place().await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(place.address).await.unwrap();
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\n")
            .await
            .unwrap();
        silent.push(stream);
    }
    // 64 are served at a time, five seconds each.
    assert_eq!(get(place.address, "/healthz").await.0, 200);
}
