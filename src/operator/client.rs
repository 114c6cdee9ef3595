//! The way to the API: every call is counted, has a deadline, names what it is meant to name, has an
//! answer of bounded size, and as a write is sent only by the leader.
//!
//! Must not retry: whoever made the call knows whether it still wants the answer. (The client's own
//! retries are off for that reason.)

mod body;

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Body as _;
use http_body_util::{Either, Full};
use kube::client::{Body, ClientBuilder};
use kube::{Client, Config};
use tokio::time::{Instant, timeout_at};
use tower::{BoxError, Layer, Service};

use crate::api::name;

use super::lease::Leadership;
use super::metrics::{Answer, Kind, Metrics};
use body::Lines;
pub use body::{LARGEST, TooLarge};

/// How long a call for one object may take. Longer than an admission webhook's usual ten seconds,
/// which a create has to wait for.
pub const CALL: Duration = Duration::from_secs(15);

/// How long a call for many objects may take, and how long a watch may take to begin. Once begun,
/// a watch has no deadline here; whoever watches asks for an end in time.
pub const LIST: Duration = Duration::from_secs(40);

/// Why a call has no answer; found again by [`refused`] and [`deadline`].
#[derive(Debug, thiserror::Error)]
enum Unanswered {
    #[error("not sent, because this process does not lead: {verb} {resource}")]
    Refused {
        verb: &'static str,
        resource: String,
    },
    #[error("not sent, because it names no object or collection: {verb} {resource}: {why}")]
    Malformed {
        verb: &'static str,
        resource: String,
        why: &'static str,
    },
    #[error("the object cannot be read: {0}")]
    Unreadable(String),
    #[error("the answer is not the object that was asked for: {0}")]
    Another(String),
    #[error("no answer within {} s: {verb} {resource}", within.as_secs())]
    Deadline {
        verb: &'static str,
        resource: String,
        within: Duration,
    },
}

fn unanswered(error: &kube::Error) -> Option<&Unanswered> {
    match error {
        kube::Error::Service(cause) => cause.downcast_ref(),
        _ => None,
    }
}

/// Whether a write was not sent, because this process does not lead.
#[must_use]
pub fn refused(error: &kube::Error) -> bool {
    matches!(unanswered(error), Some(Unanswered::Refused { .. }))
}

/// The error of an object that is there, and cannot be read.
#[must_use]
pub fn unreadable(why: String) -> kube::Error {
    kube::Error::Service(Unanswered::Unreadable(why).into())
}

/// The error of an answer that is another object than was asked for: no API server gives it, but what
/// stands between may. So it may be asked again.
#[must_use]
pub fn another(what: String) -> kube::Error {
    kube::Error::Service(Unanswered::Another(what).into())
}

/// Whether the same call can never succeed, however often it is repeated: its request cannot be
/// built or was not sent because of what it names, the API server says that it can do nothing with
/// it, or what stands under the name cannot be read.
#[must_use]
pub fn is_final(error: &kube::Error) -> bool {
    match error {
        kube::Error::BuildRequest(_) | kube::Error::HttpError(_) => true,
        kube::Error::Api(status) => matches!(status.code, 400 | 405 | 422) || is_gone(error),
        _ => {
            is_too_large(error)
                || matches!(
                    unanswered(error),
                    Some(Unanswered::Malformed { .. } | Unanswered::Unreadable(_))
                )
        }
    }
}

/// Whether an answer was larger than any is read.
#[must_use]
pub fn is_too_large(error: &kube::Error) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<TooLarge>() {
            return true;
        }
        // An I/O error hides the error that it was made from: it names the source of that one.
        let inner = error.downcast_ref::<std::io::Error>();
        let inner = inner.and_then(std::io::Error::get_ref);
        cause = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

/// Whether no answer came in time. A write may have arrived all the same.
#[must_use]
pub fn deadline(error: &kube::Error) -> bool {
    matches!(unanswered(error), Some(Unanswered::Deadline { .. }))
}

/// A client whose calls are counted in `metrics`, and whose writes are sent while `leadership`
/// holds.
///
/// # Errors
/// Where the configuration has no usable credentials or certificates.
pub fn client(
    mut config: Config,
    metrics: Arc<Metrics>,
    leadership: Leadership,
) -> kube::Result<Client> {
    config.default_retry = false;
    let calls = Calls {
        metrics,
        leadership,
    };
    Ok(ClientBuilder::try_from(config)?.with_layer(&calls).build())
}

/// The layer that [`client`] lays around the client's stack.
#[derive(Clone)]
pub struct Calls {
    /// Where calls are counted.
    pub metrics: Arc<Metrics>,
    /// Who may write.
    pub leadership: Leadership,
}

impl<S> Layer<S> for Calls {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted {
            inner,
            calls: self.clone(),
        }
    }
}

/// Marks a request that asks for one object, and for nothing else whatever its URL has become.
#[derive(Clone, Copy, Debug)]
pub struct OneObject;

/// A service whose calls are counted, bounded and fenced.
#[derive(Clone)]
pub struct Counted<S> {
    inner: S,
    calls: Calls,
}

impl<S, B> Service<Request<Body>> for Counted<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Response = Response<Either<Full<Bytes>, Lines<B>>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let kind = kind(
            request.method(),
            request.uri().path(),
            request.uri().query(),
        );
        let sent = request.body().size_hint().exact().unwrap_or(0);
        let metrics = Arc::clone(&self.calls.metrics);
        if !request.method().is_safe() && !self.calls.leadership.holds() {
            metrics.called(&kind, Answer::Refused, sent);
            let error = Unanswered::Refused {
                verb: kind.verb,
                resource: kind.resource,
            };
            return Box::pin(async move { Err(error.into()) });
        }
        let is_one = request.extensions().get::<OneObject>().is_some();
        if let Err(why) = check(&kind, request.uri(), is_one) {
            metrics.called(&kind, Answer::Refused, sent);
            let error = Unanswered::Malformed {
                verb: kind.verb,
                resource: kind.resource,
                why,
            };
            return Box::pin(async move { Err(error.into()) });
        }
        let answer = self.inner.call(request);
        Box::pin(async move {
            let within = match kind.verb {
                "list" | "watch" | "deletecollection" => LIST,
                _ => CALL,
            };
            let deadline = Instant::now() + within;
            let result = timeout_at(deadline, whole(answer, kind.verb == "watch")).await;
            let (answer, result) = match result {
                Ok(Ok(response)) => (Answer::Status(response.status().as_u16()), Ok(response)),
                Ok(Err(error)) => (Answer::Broken, Err(error)),
                Err(_) => {
                    let error = Unanswered::Deadline {
                        verb: kind.verb,
                        resource: kind.resource.clone(),
                        within,
                    };
                    (Answer::Deadline, Err(error.into()))
                }
            };
            metrics.called(&kind, answer, sent);
            result
        })
    }
}

/// The answer with all of its body, so that the deadline holds for that too; of a stream, its
/// beginning.
async fn whole<B, E>(
    answer: impl Future<Output = Result<Response<B>, E>>,
    stream: bool,
) -> Result<Response<Either<Full<Bytes>, Lines<B>>>, BoxError>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
    E: Into<BoxError>,
{
    let (head, body) = answer.await.map_err(Into::into)?.into_parts();
    let is_error = head.status.is_client_error() || head.status.is_server_error();
    let body = match (stream, is_error) {
        (_, true) => Either::Left(Full::new(body::of_error(body).await?)),
        (true, false) => Either::Right(Lines::new(body)),
        (false, false) => Either::Left(Full::new(body::whole(body).await?)),
    };
    Ok(Response::from_parts(head, body))
}

/// What queries may hold: of a GET of one object, and of a write. None of it changes what is meant.
const OF_GET: &[&str] = &["resourceVersion"];
const OF_WRITE: &[&str] = &["fieldManager", "fieldValidation", "force"];

/// Whether a request names what its caller meant. The client library puts names into URLs as they
/// are: this is the second net, behind [`name::check`].
fn check(kind: &Kind, uri: &http::Uri, is_one: bool) -> Result<(), &'static str> {
    let Some(path) = uri.path().strip_prefix('/') else {
        return Err("expected a path that begins with `/`");
    };
    for segment in path.split('/') {
        if segment.is_empty() {
            return Err("a segment of its path is empty; expected the name of an object");
        }
        if name::check(segment).is_err() {
            return Err(
                "a segment of its path is none; expected lower case letters, digits, `-` and `.`",
            );
        }
    }
    let mut names = uri.query().unwrap_or_default().split('&');
    let mut has_only = |allowed: &[&str]| {
        names.all(|pair| {
            let name = pair.split_once('=').map_or(pair, |it| it.0);
            name.is_empty() || allowed.contains(&name)
        })
    };
    let is_fine = match kind.verb {
        "get" if is_one => !kind.resource.is_empty() && has_only(&[]),
        _ if is_one => false,
        "get" => has_only(OF_GET),
        "list" | "watch" => true,
        _ => has_only(OF_WRITE),
    };
    if is_fine {
        Ok(())
    } else if is_one {
        Err(
            "its query or path is none of one object; expected the path of one object, without a query",
        )
    } else {
        Err("its query is none of one object; expected none")
    }
}

/// Whether the API server says that an object is not there. A 404 without its reason is nobody's
/// word for that: a proxy says it, and the server itself where it does not know the kind.
#[must_use]
pub fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404 && status.reason == "NotFound")
}

/// Whether an object is another, or of another version, than was meant.
#[must_use]
pub fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// What a request asks for, in RBAC's words. Paths are read as the apiserver reads them
/// (`/api/v1/…` is the core group, `/apis/GROUP/VERSION/…` the others).
#[must_use]
pub fn kind(method: &Method, path: &str, query: Option<&str>) -> Kind {
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    let group = match parts.next() {
        Some("api") => Some(""),
        Some("apis") => parts.next(),
        _ => None,
    };
    let group = group.unwrap_or_default();
    // The version.
    let resource = parts.next().and_then(|_| parts.next());
    let (resource, name, subresource) = match resource {
        Some("namespaces") => {
            let namespace = parts.next();
            match parts.next() {
                Some(sub @ ("status" | "finalize")) => (Some("namespaces"), namespace, Some(sub)),
                None => (Some("namespaces"), namespace, None),
                resource => (resource, parts.next(), parts.next()),
            }
        }
        resource => (resource, parts.next(), parts.next()),
    };
    let watches = query.is_some_and(|query| {
        let mut pairs = query.split('&');
        pairs.any(|pair| matches!(pair, "watch=true" | "watch=1"))
    });
    let verb = match (method.as_str(), name) {
        ("GET" | "HEAD", Some(_)) => "get",
        ("GET" | "HEAD", None) if resource.is_none() => "get",
        ("GET" | "HEAD", None) if watches => "watch",
        ("GET" | "HEAD", None) => "list",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", Some(_)) => "delete",
        ("DELETE", None) => "deletecollection",
        _ => "other",
    };
    Kind {
        verb,
        group: resource.map_or("", |_| group).to_owned(),
        resource: match (resource, subresource) {
            (Some(resource), Some(subresource)) => format!("{resource}/{subresource}"),
            (Some(resource), None) => resource.to_owned(),
            (None, _) => String::new(),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Mutex;

    use k8s_openapi::api::core::v1::{ConfigMap, Pod};
    use kube::Api;
    use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchParams};
    use tokio::time::sleep;

    use super::*;

    #[test]
    fn what_is_asked_for_is_read_from_method_and_path() {
        for (method, path, query, expected) in [
            ("GET", "/api/v1/pods", "", ("list", "", "pods")),
            (
                "GET",
                "/api/v1/pods",
                "limit=500&watch=true",
                ("watch", "", "pods"),
            ),
            ("GET", "/api/v1/pods", "watch=1", ("watch", "", "pods")),
            ("GET", "/api/v1/pods", "watch=false", ("list", "", "pods")),
            (
                "GET",
                "/api/v1/pods",
                "labelSelector=watch%3Dtrue",
                ("list", "", "pods"),
            ),
            (
                "POST",
                "/api/v1/namespaces/n/pods",
                "",
                ("create", "", "pods"),
            ),
            (
                "GET",
                "/api/v1/namespaces/n/pods/p",
                "",
                ("get", "", "pods"),
            ),
            (
                "DELETE",
                "/api/v1/namespaces/n/pods/p",
                "",
                ("delete", "", "pods"),
            ),
            (
                "DELETE",
                "/api/v1/namespaces/n/pods",
                "",
                ("deletecollection", "", "pods"),
            ),
            (
                "GET",
                "/api/v1/namespaces/n/pods/p/log",
                "follow=true",
                ("get", "", "pods/log"),
            ),
            (
                "PATCH",
                "/api/v1/namespaces/n/pods/status",
                "",
                ("patch", "", "pods"),
            ),
            ("GET", "/api/v1/namespaces", "", ("list", "", "namespaces")),
            ("GET", "/api/v1/namespaces/n", "", ("get", "", "namespaces")),
            (
                "PUT",
                "/api/v1/namespaces/n/finalize",
                "",
                ("update", "", "namespaces/finalize"),
            ),
            (
                "PATCH",
                "/api/v1/namespaces/n/status",
                "",
                ("patch", "", "namespaces/status"),
            ),
            ("GET", "/api/v1/nodes/n", "", ("get", "", "nodes")),
            (
                "PATCH",
                "/apis/apscli.dev/v1alpha1/namespaces/n/workflowruns/status/status",
                "",
                ("patch", "apscli.dev", "workflowruns/status"),
            ),
            (
                "PUT",
                "/apis/coordination.k8s.io/v1/namespaces/namespaces/leases/l",
                "",
                ("update", "coordination.k8s.io", "leases"),
            ),
            (
                "GET",
                "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/x",
                "",
                ("get", "apiextensions.k8s.io", "customresourcedefinitions"),
            ),
            ("GET", "/apis/apscli.dev/v1alpha1", "", ("get", "", "")),
            ("GET", "/apis/apscli.dev", "", ("get", "", "")),
            ("GET", "/apis", "", ("get", "", "")),
            ("GET", "/version", "", ("get", "", "")),
            ("GET", "", "watch=true", ("get", "", "")),
            ("TRACE", "/api/v1/pods", "", ("other", "", "pods")),
        ] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let kind = kind(&method, path, Some(query));
            let found = (kind.verb, kind.group.as_str(), kind.resource.as_str());
            assert_eq!(found, expected, "{method} {path} {query}");
        }
    }

    /// How the server of a test behaves.
    #[derive(Clone, Copy)]
    enum Server {
        Answers(u16),
        Breaks,
        /// It takes so long to begin its answer.
        Thinks(Duration),
        /// It begins its answer at once, and takes so long to end it.
        Dawdles(Duration),
    }

    type Sent = Arc<Mutex<Vec<String>>>;

    /// A client of such a server, and the requests that arrived there.
    fn client(server: Server, leadership: Leadership) -> (Client, Arc<Metrics>, Sent) {
        let metrics = Arc::new(Metrics::default());
        let sent = Sent::default();
        let arrived = Arc::clone(&sent);
        let service = tower::service_fn(move |request: Request<Body>| {
            let line = format!("{} {}", request.method(), request.uri().path());
            arrived.lock().unwrap().push(line);
            async move {
                let code = match server {
                    Server::Answers(code) => code,
                    Server::Breaks => return Err(BoxError::from("broken pipe")),
                    Server::Thinks(time) => {
                        sleep(time).await;
                        200
                    }
                    Server::Dawdles(_) => 200,
                };
                let text = r#"{"metadata":{"name":"x"},"items":[],"code":0,"message":"no"}"#;
                let slow = async move {
                    if let Server::Dawdles(time) = server {
                        sleep(time).await;
                    }
                    Ok::<_, Infallible>(http_body::Frame::data(Bytes::from(text)))
                };
                let body = http_body_util::StreamBody::new(Once(Some(Box::pin(slow))));
                Ok(Response::builder().status(code).body(body).unwrap())
            }
        });
        let calls = Calls {
            metrics: Arc::clone(&metrics),
            leadership,
        };
        let client = ClientBuilder::new(service, "n").with_layer(&calls).build();
        (client, metrics, sent)
    }

    type Frame = Result<http_body::Frame<Bytes>, Infallible>;

    /// A stream of one frame.
    struct Once(Option<Pin<Box<dyn Future<Output = Frame> + Send>>>);

    impl futures::Stream for Once {
        type Item = Frame;

        fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Frame>> {
            match &mut self.0 {
                None => Poll::Ready(None),
                Some(frame) => frame.as_mut().poll(context).map(|frame| {
                    self.0 = None;
                    Some(frame)
                }),
            }
        }
    }

    fn kind_of(verb: &'static str, resource: &str) -> Kind {
        Kind {
            verb,
            group: String::new(),
            resource: resource.to_owned(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn calls_are_counted_by_what_came_of_them() {
        let (client, metrics, _) = client(Server::Answers(409), Leadership::alone());
        let pods: Api<Pod> = Api::namespaced(client, "n");
        for _ in 0..2 {
            let made = pods.create(&PostParams::default(), &Pod::default()).await;
            assert!(matches!(made, Err(kube::Error::Api(_))));
        }
        let create = kind_of("create", "pods");
        assert_eq!(metrics.calls(&create, Answer::Status(409)), 2);
        let length = serde_json::to_vec(&Pod::default()).unwrap().len();
        let line = format!(
            "apscli_api_sent_bytes_total{{verb=\"create\",group=\"\",resource=\"pods\"}} {}",
            2 * length
        );
        assert!(metrics.text().contains(&line), "{}", metrics.text());
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_connection_is_counted_and_not_tried_again() {
        let (client, metrics, sent) = client(Server::Breaks, Leadership::alone());
        let pods: Api<Pod> = Api::namespaced(client, "n");
        let error = pods.get("p").await.unwrap_err();
        assert!(!deadline(&error) && !refused(&error));
        assert_eq!(metrics.calls(&kind_of("get", "pods"), Answer::Broken), 1);
        assert_eq!(*sent.lock().unwrap(), ["GET /api/v1/namespaces/n/pods/p"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_without_an_answer_ends_at_its_deadline() {
        let hour = Duration::from_hours(1);
        for server in [Server::Thinks(hour), Server::Dawdles(hour)] {
            let (client, metrics, _) = client(server, Leadership::alone());
            let pods: Api<Pod> = Api::namespaced(client, "n");
            let begun = Instant::now();
            let error = pods.create(&PostParams::default(), &Pod::default()).await;
            let error = error.unwrap_err();
            assert!(deadline(&error), "{error}");
            assert_eq!(begun.elapsed(), CALL);
            assert_eq!(
                metrics.calls(&kind_of("create", "pods"), Answer::Deadline),
                1
            );
            let begun = Instant::now();
            assert!(deadline(
                &pods.list(&ListParams::default()).await.unwrap_err()
            ));
            assert_eq!(begun.elapsed(), LIST);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_must_begin_in_time_and_may_last() {
        let day = Duration::from_hours(24);
        let (client_, metrics, _) = client(Server::Dawdles(day), Leadership::alone());
        let pods: Api<Pod> = Api::namespaced(client_, "n");
        let begun = Instant::now();
        assert!(pods.watch(&WatchParams::default(), "0").await.is_ok());
        assert_eq!(begun.elapsed(), Duration::ZERO);
        let watch = kind_of("watch", "pods");
        assert_eq!(metrics.calls(&watch, Answer::Status(200)), 1);

        let (client_, metrics, _) = client(Server::Thinks(day), Leadership::alone());
        let pods: Api<Pod> = Api::namespaced(client_, "n");
        assert!(pods.watch(&WatchParams::default(), "0").await.is_err());
        assert_eq!(begun.elapsed(), LIST);
        assert_eq!(metrics.calls(&watch, Answer::Deadline), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_lead_reads_and_writes_nothing() {
        let leadership = Leadership::alone();
        let (client, metrics, sent) = client(Server::Answers(200), leadership.clone());
        let maps: Api<ConfigMap> = Api::namespaced(client, "n");
        let params = PostParams::default();
        let map = ConfigMap::default();
        assert!(maps.create(&params, &map).await.is_ok());
        leadership.release().await;
        sent.lock().unwrap().clear();

        assert!(maps.get("x").await.is_ok());
        let patch = Patch::Merge(&map);
        for error in [
            maps.create(&params, &map).await.unwrap_err(),
            maps.replace("x", &params, &map).await.unwrap_err(),
            maps.patch("x", &PatchParams::default(), &patch)
                .await
                .unwrap_err(),
            maps.delete("x", &DeleteParams::default())
                .await
                .map(drop)
                .unwrap_err(),
        ] {
            assert!(refused(&error), "{error}");
        }
        assert_eq!(
            *sent.lock().unwrap(),
            ["GET /api/v1/namespaces/n/configmaps/x"]
        );
        for verb in ["create", "update", "patch", "delete"] {
            let kind = kind_of(verb, "configmaps");
            assert_eq!(metrics.calls(&kind, Answer::Refused), 1, "{verb}");
        }
    }
}
