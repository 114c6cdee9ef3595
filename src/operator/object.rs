//! Objects from outside: the only ways in which the operator asks for one by its name, or for many in
//! pages.
//!
//! A name may be what a tenant has written, so it is checked before a URL is built, and the request is
//! marked as one for a single object. Each object is read by itself: see [`crate::api::outside`].
//!
//! Must not retry.

use kube::Resource;
use kube::api::{Api, GetParams, ListParams, ObjectMeta};
use kube::core::ObjectList;
use kube::core::request::{Error, Request};
use serde::de::DeserializeOwned;

use crate::api::name;
use crate::api::outside::{Bare, Outside};

use super::client::{OneObject, another, is_too_large, unreadable};

/// Most objects of one page.
pub const PAGE: u32 = 500;

/// The name, if it can name an object.
///
/// # Errors
/// One that [`super::client::is_final`] knows.
pub fn named(name: &str) -> kube::Result<&str> {
    name::check(name)
        .map_err(|error| kube::Error::BuildRequest(Error::Validation(error.to_string())))
}

/// The object with this name, which may be one that cannot be read; none: it is not there.
///
/// # Errors
/// Where the name can be none, or there is no answer, or the answer is another object.
pub async fn look<K, T>(api: &Api<K>, name: &str) -> kube::Result<Option<T>>
where
    K: Resource + Clone,
    T: Resource + DeserializeOwned,
{
    let request = Request::new(api.resource_url()).get(named(name)?, &GetParams::default());
    let mut request = request.map_err(kube::Error::BuildRequest)?;
    request.extensions_mut().insert(OneObject);
    let found: T = match api.clone().into_client().request(request).await {
        Ok(found) => found,
        Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(None),
        Err(error) => return Err(error),
    };
    match found.meta().name.as_deref() {
        Some(it) if it == name => Ok(Some(found)),
        it => Err(another(format!(
            "it names itself {:?}; expected {name:?}",
            it.unwrap_or_default()
        ))),
    }
}

/// The object with this name; none: it is not there.
///
/// # Errors
/// Likewise, and where it cannot be read: then one that [`super::client::is_final`] knows.
pub async fn get<K>(api: &Api<K>, name: &str) -> kube::Result<Option<K>>
where
    K: Resource + Clone + DeserializeOwned,
{
    match look::<K, Outside<K>>(api, name).await? {
        None => Ok(None),
        Some(Outside(Ok(found))) => Ok(Some(found)),
        Some(Outside(Err(invalid))) => Err(unreadable(invalid.error)),
    }
}

/// The metadata of the object with this name, whatever else it holds; none: it is not there.
pub async fn metadata<K>(api: &Api<K>, name: &str) -> kube::Result<Option<ObjectMeta>>
where
    K: Resource + Clone,
{
    let found = look::<K, Bare<K>>(api, name).await?;
    Ok(found.map(|found| found.metadata))
}

/// Where a list in pages stands.
#[derive(Clone, Debug)]
pub struct Pages {
    all: ListParams,
    next: Option<String>,
    size: u32,
    metadata_only: bool,
    is_over: bool,
}

impl Pages {
    /// A list of these objects, [`PAGE`] at a time, and fewer where they are large.
    #[must_use]
    pub fn new(all: ListParams) -> Self {
        Self {
            all,
            next: None,
            size: PAGE,
            metadata_only: false,
            is_over: false,
        }
    }

    /// The same, with so many on a page at the most.
    #[must_use]
    pub fn at_most(self, size: u32) -> Self {
        Self { size, ..self }
    }

    /// Likewise, of each object the metadata only.
    #[must_use]
    pub fn of_metadata(all: ListParams) -> Self {
        Self {
            metadata_only: true,
            ..Self::new(all)
        }
    }

    /// The next page; none after the last.
    ///
    /// # Errors
    /// Where there is no answer. The same page may be asked for again. Where the server has forgotten
    /// the rest of the list, that is asked for from its beginning by [`Pages::restart`] only.
    pub async fn next<K, T>(&mut self, api: &Api<K>) -> kube::Result<Option<Vec<T>>>
    where
        K: Resource + Clone,
        T: Clone + DeserializeOwned,
    {
        while !self.is_over {
            let mut params = self.all.clone();
            // A list from the server's memory, which has no pages, is asked for in one piece first.
            let is_whole =
                params.resource_version.is_some() && self.size == PAGE && self.next.is_none();
            if !is_whole {
                params = params.limit(self.size);
                params.resource_version = None;
                params.version_match = None;
                params.continue_token = self.next.clone();
            }
            let request = Request::new(api.resource_url());
            let request = if self.metadata_only {
                request.list_metadata(&params)
            } else {
                request.list(&params)
            };
            let request = request.map_err(kube::Error::BuildRequest)?;
            let client = api.clone().into_client();
            let page = match client.request::<ObjectList<T>>(request).await {
                Ok(page) => page,
                Err(error) if is_too_large(&error) && self.size > 1 => {
                    self.size = smaller(self.size);
                    continue;
                }
                Err(error) => return Err(error),
            };
            self.next = page.metadata.continue_.filter(|token| !token.is_empty());
            self.is_over = self.next.is_none();
            return Ok(Some(page.items));
        }
        Ok(None)
    }

    /// The list is asked for from its beginning.
    pub fn restart(&mut self) {
        self.next = None;
        self.is_over = false;
    }
}

/// A size for the pages of a list whose pages of this size are too large.
#[must_use]
pub fn smaller(size: u32) -> u32 {
    (size / 4).max(1)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use bytes::Bytes;
    use futures::{Stream, StreamExt, stream};
    use http::{Request, Response};
    use http_body::Frame;
    use http_body_util::StreamBody;
    use k8s_openapi::api::coordination::v1::Lease;
    use k8s_openapi::api::core::v1::{ConfigMap, Node};
    use kube::Client;
    use kube::client::Body;
    use kube::runtime::watcher::Event;
    use tower::{BoxError, Layer};

    use super::*;
    use crate::api::page::WorkflowRunPage;
    use crate::api::service::Service;
    use crate::api::workflow_run::WorkflowRun;
    use crate::executor::pod::slim::SlimPod;
    use crate::operator::client::{Calls, is_final};
    use crate::operator::health::Health;
    use crate::operator::hub::watch;
    use crate::operator::lease::Leadership;
    use crate::operator::metrics::Metrics;

    type Frames = std::pin::Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, BoxError>> + Send>>;
    type Asked = Arc<Mutex<Vec<String>>>;
    type Line = fn() -> Frames;

    #[allow(clippy::unnecessary_wraps, reason = "as the stream of a body has them")]
    fn frame(bytes: impl Into<Bytes>) -> Result<Frame<Bytes>, BoxError> {
        Ok(Frame::data(bytes.into()))
    }

    /// An answer in one piece.
    fn whole(bytes: impl Into<Bytes>) -> Frames {
        stream::iter([frame(bytes)]).boxed()
    }

    /// A client, with its calls bounded as in the program, of a server that answers so, and what was
    /// asked of it.
    fn client(answer: impl Fn(&str) -> Frames + Clone + Send + Sync + 'static) -> (Client, Asked) {
        let asked = Asked::default();
        let heard = Arc::clone(&asked);
        let service = tower::service_fn(move |request: Request<Body>| {
            let uri = request.uri().to_string();
            heard.lock().unwrap().push(uri.clone());
            let body = answer(&uri);
            async move { Ok::<_, BoxError>(Response::new(StreamBody::new(body))) }
        });
        let calls = Calls {
            metrics: Arc::new(Metrics::default()),
            leadership: Leadership::alone(),
        };
        (Client::new(calls.layer(service), "n"), asked)
    }

    fn list(items: &[Vec<u8>]) -> Vec<u8> {
        let head =
            br#"{"kind":"List","apiVersion":"v1","metadata":{"resourceVersion":"9"},"items":["#;
        [head, &items.join(&b","[..])[..], b"]}"].concat()
    }

    /// Values that others may write where JSON of any kind is taken, or that no server should write at
    /// all.
    fn hostile() -> Vec<Vec<u8>> {
        let deep = |levels| [vec![b'['; levels], vec![b']'; levels]].concat();
        let objects = |levels| {
            [
                br#"{"a":"#.repeat(levels),
                b"1".to_vec(),
                vec![b'}'; levels],
            ]
            .concat()
        };
        let mut all = vec![deep(150), deep(9000), objects(150), objects(9000)];
        for text in [
            "1e999",
            "-1e999",
            r#""\ud800""#,
            r#"{"\udfff":1}"#,
            r#"{"a":1,"a":2}"#,
            r#"{"phase":"Odd"}"#,
            r#"{"startTime":"yesterday"}"#,
            "7",
            "\"x\"",
            "[null]",
        ] {
            all.push(text.as_bytes().to_vec());
        }
        all.push(b"\"\xff\xfe\"".to_vec());
        all
    }

    fn object(name: &str, member: &str, value: &[u8]) -> Vec<u8> {
        let metadata = format!(
            r#"{{"metadata":{{"name":"{name}","namespace":"n","uid":"uid-{name}","resourceVersion":"10",
            "finalizers":["apscli.dev/result"],"labels":{{"l":"v"}}}},"{member}":"#
        );
        [metadata.as_bytes(), value, b"}"].concat()
    }

    /// What a list, a watch and a GET give of each of these objects, of which all but the last are
    /// hostile: each is there with its metadata, and the last can be read.
    async fn each_is_read_for_itself<K, T>(members: &[&str], good: &str, is_read: fn(&T) -> bool)
    where
        K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send + 'static,
        K: Resource<Scope = kube::core::NamespaceResourceScope>,
        T: Resource<DynamicType = ()> + DeserializeOwned + Clone + std::fmt::Debug + Send + 'static,
        T: Resource<Scope = kube::core::NamespaceResourceScope>,
    {
        let mut items = Vec::new();
        for member in members {
            for value in hostile() {
                let name = format!("bad-{}", items.len());
                items.push(object(&name, member, &value));
            }
        }
        let (member, value) = good.split_once(':').unwrap();
        items.push(object("good", member, value.as_bytes()));
        let all = items.clone();
        let (client, _) = client(move |uri| {
            if uri.contains("watch=true") {
                let lines = all.iter().map(|item| {
                    let kind = br#"{"type":"MODIFIED","object":"#;
                    frame([&kind[..], &in_one_line(item), b"}\n"].concat())
                });
                let lines: Vec<_> = lines.collect();
                return stream::iter(lines).chain(stream::pending()).boxed();
            }
            let path = uri.split('?').next().unwrap();
            match path.rsplit('/').next().unwrap().split_once('-') {
                _ if path.ends_with("/good") => whole(all.last().unwrap().clone()),
                Some((_, number)) => whole(all[number.parse::<usize>().unwrap()].clone()),
                None => whole(list(&all)),
            }
        });
        let events = watch(
            Api::<T>::namespaced(client.clone(), "n"),
            None,
            &Health::default(),
            "x",
            None,
        );
        let mut events = std::pin::pin!(events);
        assert!(matches!(events.next().await, Some(Event::Init)));
        let check = |at: usize, found: &T| {
            let is_last = at + 1 == items.len();
            let name = if is_last {
                "good".to_owned()
            } else {
                format!("bad-{at}")
            };
            let meta = found.meta();
            let place = format!("{} {name}", T::kind(&()));
            assert_eq!(meta.name.as_deref(), Some(name.as_str()), "{place}");
            assert_eq!(meta.uid, Some(format!("uid-{name}")), "{place}");
            assert_eq!(
                meta.finalizers.as_ref().unwrap(),
                &["apscli.dev/result"],
                "{place}"
            );
            assert_eq!(meta.labels.as_ref().unwrap()["l"], "v", "{place}");
            assert!(!is_last || is_read(found), "{place}: {found:?}");
        };
        for at in 0..items.len() {
            let Some(Event::InitApply(found)) = events.next().await else {
                panic!("item {at} was not listed")
            };
            check(at, &found);
        }
        assert!(matches!(events.next().await, Some(Event::InitDone)));
        for at in 0..items.len() {
            let Some(Event::Apply(found)) = events.next().await else {
                panic!("event {at} was not told")
            };
            check(at, &found);
        }
        let api: Api<K> = Api::namespaced(client, "n");
        for at in 0..items.len() {
            let is_last = at + 1 == items.len();
            let name = if is_last {
                "good".to_owned()
            } else {
                format!("bad-{at}")
            };
            let found: T = look(&api, &name).await.unwrap().unwrap();
            check(at, &found);
        }
        let mut pages = Pages::of_metadata(ListParams::default());
        let page: Vec<Bare<K>> = pages.next(&api).await.unwrap().unwrap();
        assert_eq!(page.len(), items.len());
        assert!(pages.next::<K, Bare<K>>(&api).await.unwrap().is_none());
    }

    fn in_one_line(text: &[u8]) -> Vec<u8> {
        let bytes = text.iter().map(|it| if *it == b'\n' { b' ' } else { *it });
        bytes.collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_hostile_run_is_its_own_trouble() {
        let members = ["spec", "status"];
        let is_read = |it: &Outside<WorkflowRun>| it.0.is_ok();
        each_is_read_for_itself::<WorkflowRun, _>(&members, "spec:{}", is_read).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_hostile_service_is_its_own_trouble() {
        let good = r#"spec:{"fqsn":"a.b","versions":[]}"#;
        let is_read = |it: &Outside<Service>| it.0.is_ok();
        each_is_read_for_itself::<Service, _>(&["spec", "status"], good, is_read).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_hostile_page_is_its_own_trouble() {
        let good = r#"spec:{"index":0,"nodes":[]}"#;
        let is_read = |it: &Outside<WorkflowRunPage>| it.0.is_ok();
        each_is_read_for_itself::<WorkflowRunPage, _>(&["spec"], good, is_read).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_hostile_config_map_is_its_own_trouble() {
        let good = r#"data:{"a":"b"}"#;
        let is_read = |it: &Outside<ConfigMap>| it.0.is_ok();
        each_is_read_for_itself::<ConfigMap, _>(&["data", "binaryData"], good, is_read).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_hostile_pod_is_treated_by_its_metadata() {
        let good = r#"status:{"phase":"Running"}"#;
        let is_read = |it: &SlimPod| it.0.status.is_some();
        each_is_read_for_itself::<SlimPod, _>(&["spec", "status"], good, is_read).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_hostile_lease_is_its_own_trouble() {
        let is_read = |it: &Outside<Lease>| it.0.is_ok();
        each_is_read_for_itself::<Lease, _>(&["spec"], "spec:{}", is_read).await;
    }

    #[test]
    fn a_hostile_node_is_its_own_trouble() {
        let items: Vec<Vec<u8>> = hostile()
            .iter()
            .map(|it| object("a", "status", it))
            .collect();
        let text = list(&items);
        let text = String::from_utf8_lossy(&text);
        let nodes: ObjectList<Outside<Node>> = serde_json::from_str(&text).unwrap();
        assert_eq!(nodes.items.len(), items.len());
    }

    #[test]
    fn a_pods_phase_is_read_though_its_status_is_not() {
        let text = r#"{"metadata":{"name":"a"},"spec":{"nodeName":"n"},"status":
            {"phase":"Failed","containerStatuses":[[[]]]}}"#;
        let SlimPod(pod) = serde_json::from_str(text).unwrap();
        assert_eq!(pod.status.unwrap().phase.as_deref(), Some("Failed"));
        assert_eq!(pod.spec.unwrap().node_name.as_deref(), Some("n"));
    }

    #[test]
    fn each_field_of_metadata_is_read_for_itself() {
        for (broken, has_name) in [
            (r#""labels":{"a":7,"b":"c"}"#, true),
            (r#""labels":[]"#, true),
            (r#""annotations":{"\ud800":"x"}"#, true),
            (r#""generation":1e999"#, true),
            (r#""generation":"seven""#, true),
            (r#""creationTimestamp":"yesterday""#, true),
            (r#""finalizers":[7,"f"]"#, true),
            (
                r#""ownerReferences":[7,{"apiVersion":"v","kind":"k","name":"n","uid":"u"}]"#,
                true,
            ),
            (r#""managedFields":[{"time":"never"}]"#, true),
            (r#""uid":"u","uid":"u""#, true),
            (r#""name":7"#, false),
        ] {
            let name = if has_name { r#""name":"x","# } else { "" };
            let text = format!(r#"{{"metadata":{{{name}"namespace":"n",{broken}}},"spec":{{}}}}"#);
            let Outside(run): Outside<WorkflowRun> = serde_json::from_str(&text).unwrap();
            let metadata = run.map_or_else(|it| it.metadata, |it| it.metadata);
            assert_eq!(metadata.name.is_some(), has_name, "{text}");
            assert_eq!(metadata.namespace.as_deref(), Some("n"), "{text}");
            if broken.contains("finalizers") {
                assert_eq!(metadata.finalizers.unwrap(), ["f"]);
            }
            if broken.contains("ownerReferences") {
                assert_eq!(metadata.owner_references.unwrap()[0].uid, "u");
            }
        }
        for nothing in [
            "7",
            "null",
            "[]",
            r#"{"metadata":7}"#,
            r#"{"metadata":null}"#,
            "{}",
        ] {
            let Outside(run): Outside<WorkflowRun> = serde_json::from_str(nothing).unwrap();
            assert_eq!(
                run.unwrap_err().metadata,
                ObjectMeta::default(),
                "{nothing}"
            );
            let bare: Bare<WorkflowRun> = serde_json::from_str(nothing).unwrap();
            assert_eq!(bare.metadata, ObjectMeta::default(), "{nothing}");
        }
    }

    /// Else nothing would take its finalizer off.
    #[test]
    fn a_deletion_at_no_known_time_is_a_deletion() {
        let text = r#"{"metadata":{"name":"x","deletionTimestamp":"soon"}}"#;
        let SlimPod(pod) = serde_json::from_str(text).unwrap();
        assert!(pod.metadata.deletion_timestamp.is_some());
    }

    #[test]
    fn an_object_that_is_too_large_has_its_metadata() {
        let large = "x".repeat(crate::api::outside::LARGEST);
        let text = format!(r#"{{"metadata":{{"name":"x"}},"data":{{"a":"{large}"}}}}"#);
        let Outside(map): Outside<ConfigMap> = serde_json::from_str(&text).unwrap();
        let invalid = map.unwrap_err();
        assert_eq!(invalid.metadata.name.as_deref(), Some("x"));
        assert!(
            invalid.error.contains("expected at most 12582912"),
            "{invalid}"
        );
    }

    /// It may quote what the object says.
    #[test]
    fn a_reason_is_short_and_does_not_move_with_the_text() {
        let text = |indent: &str, word: &str| {
            format!(r#"{indent}{{"metadata":{{"name":"x"}},"spec":{{"onLost":"{word}"}}}}"#)
        };
        let reason = |text: String| {
            let Outside(run): Outside<WorkflowRun> = serde_json::from_str(&text).unwrap();
            run.unwrap_err().error
        };
        let long = reason(text("", &"x\\n".repeat(100_000)));
        assert!(long.len() < 600, "{} bytes", long.len());
        assert!(!long.chars().any(char::is_control));
        assert_eq!(reason(text("", "Odd")), reason(text("     ", "Odd")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_is_none_is_not_asked_for() {
        let (client, asked) = client(|_| whole("{}"));
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "n");
        for name in [
            "",
            "?watch=true&timeoutSeconds=100000",
            "x?watch=true",
            "?limit=0",
            "../../kube-system/configmaps/x",
            "..",
            "a/b",
            "bad name",
        ] {
            for error in [
                get(&maps, name).await.unwrap_err(),
                metadata(&maps, name).await.unwrap_err(),
            ] {
                assert!(is_final(&error), "{name}: {error}");
                assert!(
                    error.to_string().contains("expected a DNS subdomain"),
                    "{error}"
                );
            }
        }
        // The second net: the client library itself would send these.
        for name in [
            "?watch=true",
            "x?watch=true",
            "x?limit=0",
            "../x",
            "a/b/c/..",
            "x/",
        ] {
            let error = maps.get(name).await.unwrap_err();
            assert!(is_final(&error), "{name}: {error}");
        }
        for namespace in ["", "..", "a/../b", "a?watch=true"] {
            let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
            assert!(is_final(&get(&maps, "x").await.unwrap_err()), "{namespace}");
        }
        assert_eq!(*asked.lock().unwrap(), [""; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_another_object_is_none() {
        let (client, _) = client(|_| whole(r#"{"metadata":{"name":"y"}}"#));
        let maps: Api<ConfigMap> = Api::namespaced(client, "n");
        let error = get(&maps, "x").await.unwrap_err();
        assert!(error.to_string().contains("expected \"x\""), "{error}");
        assert!(!is_final(&error), "it may be asked again");
    }

    /// 600 objects of 100 KB; pages are made as the server of a test is asked for.
    fn large(uri: &str) -> Frames {
        let part = |name: &str| {
            let mut pairs = uri.split(['?', '&']).filter_map(|it| it.split_once('='));
            pairs
                .find(|(it, _)| *it == name)
                .map(|(_, value)| value.parse::<usize>().unwrap())
        };
        if uri.contains("watch=true") {
            return stream::pending().boxed();
        }
        let (from, limit) = (part("continue").unwrap_or(0), part("limit").unwrap());
        let to = (from + limit).min(600);
        let items = (from..to).map(|at| {
            let text = format!(r#"{{"a":"{}"}}"#, "x".repeat(100_000));
            object(&format!("o-{at}"), "data", text.as_bytes())
        });
        let items = items.collect::<Vec<_>>().join(&b","[..]);
        let next = if to < 600 {
            to.to_string()
        } else {
            String::new()
        };
        let head = format!(
            r#"{{"kind":"List","apiVersion":"v1","metadata":{{"resourceVersion":"9","continue":"{next}"}},"items":["#
        );
        whole([head.as_bytes(), &items, b"]}"].concat())
    }

    #[tokio::test(start_paused = true)]
    async fn large_objects_are_listed_in_smaller_pages() {
        let (client, asked) = client(large);
        let maps: Api<ConfigMap> = Api::namespaced(client, "n");
        let mut pages = Pages::new(ListParams::default());
        let mut found = 0;
        while let Some(page) = pages.next::<_, Outside<ConfigMap>>(&maps).await.unwrap() {
            found += page.len();
        }
        assert_eq!(found, 600);
        let lists = asked.lock().unwrap().clone();
        assert!(
            lists[0].contains("limit=500") && lists[1].contains("limit=125"),
            "{lists:?}"
        );
        assert_eq!(lists.len(), 1 + 5, "{lists:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_lists_large_objects_in_smaller_pages() {
        let (client, asked) = client(large);
        let maps: Api<Outside<ConfigMap>> = Api::namespaced(client, "n");
        let events = watch(maps, None, &Health::default(), "x", None);
        let mut events = std::pin::pin!(events);
        let mut found = 0;
        loop {
            match events.next().await.unwrap() {
                Event::Init => found = 0,
                Event::InitApply(_) => found += 1,
                Event::InitDone => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(found, 600);
        assert_eq!(asked.lock().unwrap().len(), 1 + 5);
    }

    /// Not lost, and not asked for again and again: everything is listed again, after pauses.
    #[tokio::test(start_paused = true)]
    async fn an_event_that_cannot_be_read_has_all_listed_again() {
        let lines: [(&str, Line); 5] = [
            ("without end", || {
                let line = stream::repeat_with(|| frame(vec![b'['; 1 << 20]));
                line.boxed()
            }),
            ("no event", || whole("{\"type\":\"ODD\",\"object\":{}}\n")),
            ("no JSON", || whole("nonsense\n")),
            ("a bookmark of nothing", || {
                whole("{\"type\":\"BOOKMARK\",\"object\":7}\n")
            }),
            ("an object of nothing", || {
                whole("{\"type\":\"ADDED\",\"object\":7}\n")
            }),
        ];
        for (what, line) in lines {
            let (client, asked) = client(move |uri| {
                if uri.contains("watch=true") {
                    return line().chain(stream::pending()).boxed();
                }
                whole(list(&[object("good", "data", b"{}")]))
            });
            let maps: Api<Outside<ConfigMap>> = Api::namespaced(client, "n");
            let events = watch(maps, None, &Health::default(), "x", None);
            let mut events = std::pin::pin!(events);
            let mut lists = 0;
            let all = async {
                while let Some(event) = events.next().await {
                    lists += usize::from(matches!(event, Event::InitDone));
                }
            };
            let _ = tokio::time::timeout(Duration::from_mins(2), all).await;
            let asked = asked.lock().unwrap().len();
            assert!(lists > 1, "{what}: {lists} lists");
            assert!(asked < 40, "{what}: {asked} calls in two minutes");
        }
    }
}
