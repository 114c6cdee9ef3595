//! The command `apscli operator`: how it begins and ends, against an API that knows nothing.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// An API on loopback that answers everything with 404; the address.
fn empty_api() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || nothing_found(stream.unwrap()));
        }
    });
    address
}

fn nothing_found(mut stream: TcpStream) {
    let body = r#"{"kind":"Status","code":404,"message":"not found","reason":"NotFound"}"#;
    let length = body.len();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    while let Some(Ok(line)) = lines.next() {
        if line.is_empty() {
            let head = "HTTP/1.1 404 Not Found\r\ncontent-type: application/json";
            write!(stream, "{head}\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
        }
    }
}

/// The command on a kubeconfig for this API, in an environment of its own.
fn command(dir: &TempDir, api: SocketAddr, words: &[&str]) -> Command {
    let kubeconfig = dir.path().join("kubeconfig");
    let text = format!(
        "{{apiVersion: v1, kind: Config, current-context: c, \
         clusters: [{{name: c, cluster: {{server: 'http://{api}'}}}}], \
         users: [{{name: c, user: {{}}}}], \
         contexts: [{{name: c, context: {{cluster: c, user: c}}}}]}}"
    );
    fs::write(&kubeconfig, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_apscli"));
    command
        .arg("operator")
        .args(words)
        .env_clear()
        .env("KUBECONFIG", kubeconfig)
        .stderr(Stdio::piped());
    command
}

/// A child that does not outlive its test.
struct Guarded(Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The whole answer to a GET.
pub fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn it_waits_for_its_resources_and_ends_when_asked_to() {
    let dir = TempDir::new().unwrap();
    let socket = format!("--probe-socket={}", dir.path().join("probes").display());
    let words = ["--listen=127.0.0.1:0", "--log-format=json", &socket];
    let mut child = Guarded(command(&dir, empty_api(), &words).spawn().unwrap());
    let stderr = child.0.stderr.take().unwrap();
    let mut lines = BufReader::new(stderr).lines().map(|line| {
        let line = line.unwrap();
        let value: serde_json::Value =
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        value
    });
    let begins = lines.next().unwrap();
    assert_eq!(begins["message"], "begins");
    let address = begins["address"].as_str().unwrap();
    let waits = lines.next().unwrap();
    assert!(
        waits["message"]
            .as_str()
            .unwrap()
            .starts_with("waits for its resources: not served"),
        "{waits}"
    );
    assert!(get(address, "/healthz").starts_with("HTTP/1.1 200 "));
    let ready = get(address, "/readyz");
    assert!(ready.starts_with("HTTP/1.1 503 "), "{ready}");
    assert!(
        ready.contains("the resources of apscli.dev/v1alpha1: not served by the API"),
        "{ready}"
    );
    let probe = |what: &str| {
        let words = ["operator", &socket, what];
        let program = env!("CARGO_BIN_EXE_apscli");
        Command::new(program).args(words).output().unwrap()
    };
    assert_eq!(probe("--check=live").status.code(), Some(0));
    let ready = probe("--check=ready");
    assert_eq!(ready.status.code(), Some(1));
    let why = String::from_utf8(ready.stderr).unwrap();
    assert!(
        why.contains("apscli.dev/v1alpha1: not served by the API"),
        "{why}"
    );
    let metrics = get(address, "/metrics");
    assert!(metrics.contains("\napscli_leads 0\n"), "{metrics}");
    assert!(
        metrics.contains(
            "\napscli_api_calls_total{verb=\"get\",group=\"\",resource=\"\",code=\"404\"}"
        ),
        "{metrics}"
    );

    let asked = Instant::now();
    kill_process(Pid::from_child(&child.0), Signal::TERM).unwrap();
    let status = child.0.wait().unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(5));
    let rest: Vec<_> = lines.collect();
    assert!(
        rest.iter()
            .any(|line| line["message"] == "ends, asked to by the signal TERM"),
        "{rest:?}"
    );
}

#[test]
fn what_cannot_work_is_told_and_ends_with_2() {
    let dir = TempDir::new().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("--listen={}", taken.local_addr().unwrap());
    for (words, variable, expected) in [
        (vec![listen.as_str()], "info", "cannot serve on 127.0.0.1:"),
        (
            vec!["--log-level=apscli=loud"],
            "info",
            "expected a level such as `info`",
        ),
        (vec![], "apscli=loud", "APSCLI_LOG: "),
        (vec!["--max-writes=0"], "info", "--max-writes"),
        (
            vec!["--leader-election=perhaps"],
            "info",
            "--leader-election",
        ),
        (vec!["--delivery=by-pigeon"], "info", "in-image"),
    ] {
        let output = command(&dir, empty_api(), &words)
            .env("APSCLI_LOG", variable)
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{words:?}: {stderr}");
        assert!(stderr.contains(expected), "{words:?}: {stderr}");
    }
}
