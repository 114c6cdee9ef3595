//! Probes and metrics, asked for over plain TCP as a stranger would.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use apscli::operator::health::Health;
use apscli::operator::metrics::Metrics;
use apscli::server::{self, Probes, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
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

/// What a hostile client does with its connection.
#[derive(Clone, Copy, Debug)]
enum Hostile {
    Idle,
    HalfHead,
    Drip,
    /// Asks, and never reads the answer.
    Deaf,
}

/// Connects from this address of loopback, and again when it is cut off, until it is ended.
async fn harass(to: SocketAddr, from: [u8; 4], how: Hostile) {
    loop {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind((from, 0).into()).unwrap();
        let Ok(mut stream) = socket.connect(to).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let first: &[u8] = match how {
            Hostile::Idle | Hostile::Drip => b"",
            Hostile::HalfHead => b"GET /healthz HTTP/1.1\r\n",
            Hostile::Deaf => b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n",
        };
        let mut over = stream.write_all(first).await.is_err();
        if matches!(how, Hostile::Deaf) {
            tokio::time::sleep(Duration::from_secs(1)).await;
            continue;
        }
        while !over {
            tokio::time::sleep(Duration::from_millis(200)).await;
            over = match how {
                Hostile::Drip => stream.write_all(b"G").await.is_err(),
                _ => stream.try_read(&mut [0; 1]).is_ok_and(|read| read == 0),
            };
        }
    }
}

/// A GET from an address of its own, within the five seconds that the kubelet and Prometheus have.
async fn get_in_time(to: SocketAddr, from: [u8; 4], path: &str) -> Option<String> {
    let asked = async {
        let socket = TcpSocket::new_v4().ok()?;
        socket.bind((from, 0).into()).ok()?;
        let mut stream = socket.connect(to).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    };
    timeout(Duration::from_secs(5), asked).await.ok().flatten()
}

/// Four hundred hostile connections, from one address and from many, keep nobody from an answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn hostile_connections_starve_no_probe() {
    let place = place().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("probes");
    let probes = Probes::bind(&path).unwrap();
    tokio::spawn(probes.serve(place.health.clone()));
    place.health.needs("the cache of pods").met();
    let ways = [
        Hostile::Idle,
        Hostile::HalfHead,
        Hostile::Drip,
        Hostile::Deaf,
    ];
    for spread in [false, true] {
        let mut hostile = tokio::task::JoinSet::new();
        for nth in 0..400_u16 {
            let last = if spread {
                u8::try_from(nth % 100).unwrap() + 100
            } else {
                2
            };
            let how = ways[usize::from(nth) % ways.len()];
            hostile.spawn(harass(place.address, [127, 0, 0, last], how));
        }
        // They are there.
        tokio::time::sleep(Duration::from_secs(2)).await;
        for nth in 0..20 {
            for what in ["/healthz", "/readyz"] {
                let path = path.clone();
                let ask = move || server::ask(&path, what, Duration::from_secs(4));
                let asked = tokio::task::spawn_blocking(ask).await.unwrap();
                assert!(asked.is_ok(), "{spread} {nth} {what}: {asked:?}");
            }
            let answer = get_in_time(place.address, [127, 0, 0, 3], "/metrics").await;
            let answer = answer.unwrap_or_else(|| panic!("{spread} {nth}: no metrics"));
            assert!(answer.ends_with("# EOF\n"), "{spread} {nth}: {answer}");
        }
        // The port's own probes too: nothing of the chart uses them.
        let answer = get_in_time(place.address, [127, 0, 0, 3], "/healthz").await;
        assert!(answer.is_some_and(|it| it.starts_with("HTTP/1.1 200 ")));
        hostile.shutdown().await;
    }
}

#[tokio::test]
async fn probe_tells_what_is_wrong_and_is_private() {
    let place = place().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("probes");
    // An earlier process has left its own there.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let ask = |what: &'static str| {
        let path = path.clone();
        let ask = move || server::ask(&path, what, Duration::from_secs(4));
        async { tokio::task::spawn_blocking(ask).await.unwrap() }
    };
    let nobody = ask("/healthz").await.unwrap_err().to_string();
    assert!(
        nobody.starts_with("cannot ask the operator on "),
        "{nobody}"
    );
    let probes = Probes::bind(&path).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    tokio::spawn(probes.serve(place.health.clone()));
    assert!(ask("/healthz").await.is_ok());
    let pods = place.health.needs("the cache of pods");
    let why = ask("/readyz").await.unwrap_err().to_string();
    assert_eq!(why, "the cache of pods: not there yet");
    pods.met();
    assert!(ask("/readyz").await.is_ok());
    // The metrics are the port's.
    let why = ask("/metrics").await.unwrap_err().to_string();
    assert!(why.contains("404"), "{why}");
}
