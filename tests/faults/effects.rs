//! What processes of nodes really do: each tells its node's name over a connection that is there as
//! long as the process is.
//!
//! Must not change anything.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use kube::Client;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::witness::runs;

/// What stands in scripts where the address is to stand, in the form of bash: `HOST/PORT`.
pub const PLACE: &str = "@EFFECTS@";

#[derive(Default)]
struct Inner {
    did: BTreeMap<String, usize>,
    /// Attempts that did their work, as they are on record.
    attempts: BTreeSet<(String, u64)>,
    open: usize,
    wrong: Vec<String>,
}

/// Who hears of it, for the run `r` of a namespace.
pub struct Effects {
    address: SocketAddr,
    inner: Arc<Mutex<Inner>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Effects {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Effects {
    pub async fn start(client: &Client, namespace: &str) -> Self {
        // Not where proxies are: a port may have been that of one just before, and its operator,
        // which is about to be ended, still ask there.
        let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Arc::<Mutex<Inner>>::default();
        let (client, namespace) = (client.clone(), namespace.to_owned());
        let heard = Arc::clone(&inner);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let hears = hear(
                    stream,
                    Arc::clone(&heard),
                    client.clone(),
                    namespace.clone(),
                );
                tokio::spawn(hears);
            }
        });
        Self {
            address,
            inner,
            task,
        }
    }

    /// A text with the address where it is to stand.
    pub fn fill(&self, text: &str) -> String {
        let address = format!("{}/{}", self.address.ip(), self.address.port());
        text.replace(PLACE, &address)
    }

    /// How many processes there are.
    pub fn open(&self) -> usize {
        self.inner.lock().unwrap().open
    }

    /// How often each node did its work since this was last asked, and what was wrong with that.
    pub fn take(&self) -> (BTreeMap<String, usize>, Vec<String>) {
        let mut inner = self.inner.lock().unwrap();
        inner.attempts.clear();
        (
            std::mem::take(&mut inner.did),
            std::mem::take(&mut inner.wrong),
        )
    }
}

async fn hear(stream: TcpStream, inner: Arc<Mutex<Inner>>, client: Client, namespace: String) {
    inner.lock().unwrap().open += 1;
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    if matches!(stream.read_line(&mut line).await, Ok(length) if length > 0) {
        let node = line.trim().to_owned();
        *inner.lock().unwrap().did.entry(node.clone()).or_default() += 1;
        // It must have been on record before it began.
        let runs = runs(&client, &namespace);
        if let Ok(run) = super::play::insist(|| runs.get("r")).await {
            let nodes = run.data["status"]["nodes"].as_array().cloned();
            let entry = nodes.into_iter().flatten().find(|it| it["name"] == *node);
            let entry = entry.unwrap_or_default();
            let attempt = entry["attempt"].as_u64();
            let attempt = attempt.filter(|_| entry["reason"] != "Queued");
            let mut inner = inner.lock().unwrap();
            let wrong = match attempt {
                None => Some(format!("{node} did its work and is on record as {entry}")),
                Some(attempt) if inner.attempts.insert((node.clone(), attempt)) => None,
                Some(attempt) => Some(format!("{node}/{attempt} did its work twice")),
            };
            inner.wrong.extend(wrong);
        }
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    }
    inner.lock().unwrap().open -= 1;
}
