//! The operator's own small HTTP servers.
//!
//! - [`Probes`]: `/healthz` and `/readyz` on a Unix socket in the pod's own file system. The kubelet
//!   asks there, by `apscli operator --check`; nothing outside the container can connect, so nothing
//!   can keep the kubelet from its answer.
//! - [`Server`]: these and `/metrics` on a TCP port that every pod of the cluster may reach. Each
//!   connection is for one request and for a short time. A new one never waits: where there are too
//!   many, of one address or in all, an older one is closed.
//!
//! Must not decide what healthy means; it tells what the loops have told.

mod bounded;

use std::convert::Infallible;
use std::fs;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::operator::health::Health;
use crate::operator::metrics::{MEDIA_TYPE, Metrics};

use bounded::Bounded;

/// How many connections to the port are open at once, and how many of them of one address.
const CONNECTIONS: usize = 64;
const OF_ONE_ADDRESS: usize = 8;

/// How many connections to the port are accepted at once, and the pause after them: who connects
/// without end must not take the operator's processor time.
const ACCEPTED: u32 = 32;
const AFTER_ACCEPTED: Duration = Duration::from_millis(20);

/// How many probes are answered at once.
const PROBES: usize = 16;

/// How long a client may take to send the head of its request.
const HEAD: Duration = Duration::from_secs(2);

/// How long a connection lives at most.
const CONNECTION: Duration = Duration::from_secs(10);

/// The longest head of a request, in bytes, and the most header fields in it.
const HEAD_BYTES: usize = 16 * 1024;
const HEAD_FIELDS: usize = 64;

/// Most bytes of an answer to a probe that [`ask`] reads.
const ANSWER_BYTES: u64 = 64 * 1024;

/// What the answers are made of.
#[derive(Clone)]
struct Sources {
    health: Health,
    metrics: Arc<Metrics>,
}

/// A server that is bound and not serving yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
}

impl Server {
    /// Binds the address.
    ///
    /// # Errors
    /// Where the system refuses it, such as for a port that is taken.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        Ok(Self { listener })
    }

    /// Where it listens; tells the port where port 0 was asked for.
    ///
    /// # Errors
    /// Where the system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the future is dropped.
    pub async fn serve(self, health: Health, metrics: Arc<Metrics>) -> Infallible {
        let router = Router::new()
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .route("/metrics", get(text))
            .with_state(Sources { health, metrics });
        let mut open = Bounded::new(CONNECTIONS, OF_ONE_ADDRESS);
        let mut accepted = 0_u32;
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let router = router.clone();
                    open.start(peer.ip(), move |asked| async move {
                        let router = router.layer(axum::middleware::map_request(
                            move |request: axum::extract::Request| {
                                asked.mark();
                                std::future::ready(request)
                            },
                        ));
                        answer(stream, router).await;
                    });
                    accepted += 1;
                    if accepted.is_multiple_of(ACCEPTED) {
                        sleep(AFTER_ACCEPTED).await;
                    }
                }
                Err(error) => {
                    // One connection that broke, or no descriptors left: either way later ones may
                    // be served.
                    warn!("cannot accept a connection: {error}");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// The socket for probes, bound and not serving yet. Only processes of the operator's own user can
/// connect.
#[derive(Debug)]
pub struct Probes {
    listener: UnixListener,
}

impl Probes {
    /// Binds the socket, in the place of one that an earlier process has left.
    ///
    /// # Errors
    /// Where the system refuses it; the directory must be there, and writable.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let _ = fs::remove_file(path);
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener })
    }

    /// Serves until the future is dropped.
    pub async fn serve(self, health: Health) -> Infallible {
        let router = Router::new()
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .with_state(Sources {
                health,
                metrics: Arc::default(),
            });
        let slots = Arc::new(Semaphore::new(PROBES));
        loop {
            // Nobody closes the semaphore.
            let slot = Arc::clone(&slots).acquire_owned().await;
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let router = router.clone();
                    tokio::spawn(async move {
                        answer(stream, router).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    warn!("cannot accept a probe: {error}");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// Why a probe failed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The operator could not be asked.
    #[error("cannot ask the operator on {}", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The operator answered, and what is wrong.
    #[error("{0}")]
    Failed(String),
}

/// Asks the operator on this socket for a path such as `/healthz`, as the kubelet's probe does.
/// Blocks, at most for `within` a read.
///
/// # Errors
/// Where the operator cannot be asked, or answers anything but 200.
pub fn ask(path: &Path, what: &str, within: Duration) -> Result<(), ProbeError> {
    let asked = || {
        let mut stream = std::os::unix::net::UnixStream::connect(path)?;
        stream.set_read_timeout(Some(within))?;
        stream.set_write_timeout(Some(within))?;
        write!(stream, "GET {what} HTTP/1.1\r\nhost: operator\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(ANSWER_BYTES).read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer: String = asked().map_err(|source| ProbeError::Unreachable {
        path: path.to_path_buf(),
        source,
    })?;
    if answer.starts_with("HTTP/1.1 200 ") {
        return Ok(());
    }
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Err(ProbeError::Failed(if body.trim().is_empty() {
        let status = answer.lines().next().unwrap_or("nothing");
        format!("the operator answered {status}, expected HTTP/1.1 200")
    } else {
        body.trim_end().to_owned()
    }))
}

async fn answer<T>(stream: T, router: Router)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .keep_alive(false)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEAD_FIELDS)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match timeout(CONNECTION, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!("a connection ended: {error}"),
        Err(_) => debug!("a connection was cut off"),
    }
}

async fn healthz(State(sources): State<Sources>) -> Response {
    told(sources.health.alive())
}

async fn readyz(State(sources): State<Sources>) -> Response {
    told(sources.health.ready())
}

async fn text(State(sources): State<Sources>) -> Response {
    ([(header::CONTENT_TYPE, MEDIA_TYPE)], sources.metrics.text()).into_response()
}

/// `ok`, or 503 and what is wrong, one thing a line.
fn told(state: Result<(), Vec<String>>) -> Response {
    match state {
        Ok(()) => "ok\n".into_response(),
        Err(wrong) => {
            let lines = wrong.join("\n") + "\n";
            (StatusCode::SERVICE_UNAVAILABLE, lines).into_response()
        }
    }
}
