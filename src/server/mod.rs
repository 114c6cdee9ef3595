//! The operator's own small HTTP server: `/healthz`, `/readyz`, `/metrics`.
//!
//! Every connection is for one request and for a short time, and there is a bound on how many are
//! open: whoever reaches the port can wait for an answer, and no more.
//!
//! Must not decide what healthy means; it tells what the loops have told.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
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
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::operator::health::Health;
use crate::operator::metrics::{MEDIA_TYPE, Metrics};

/// How many connections are open at once; more wait to be accepted.
const CONNECTIONS: usize = 64;

/// How long a client may take to send the head of its request.
const HEAD: Duration = Duration::from_secs(5);

/// How long a connection lives at most.
const CONNECTION: Duration = Duration::from_secs(20);

/// The longest head of a request, in bytes, and the most header fields in it.
const HEAD_BYTES: usize = 16 * 1024;
const HEAD_FIELDS: usize = 64;

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
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
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
                    // One connection that broke, or no descriptors left: either way later ones may
                    // be served.
                    warn!("cannot accept a connection: {error}");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn answer(stream: TcpStream, router: Router) {
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
