//! What other engines have been broken by: objects made by somebody who means no good, or who has
//! no idea. Nobody else is stopped, nothing is believed that cannot be, and each is told of once.

use k8s_openapi::ByteString;

use super::fake::Act;
use super::faults::squatter;
use super::*;
use crate::catalog::gzip;

/// A run and its answer, beside which everything else happens.
async fn another_run_goes_well(fake: &Fake) {
    let mut run = run_of(&json!({"other": node(&[])}));
    run["metadata"]["name"] = json!("other");
    fake.put("workflowruns", run);
    passes(1).await;
    fake.pod_ends("other/1", ok());
    passes(1).await;
    let other = fake.get("workflowruns", "other").unwrap();
    assert_eq!(other["status"]["phase"], "Succeeded");
}

/// The annotation that a pod of node `a` has from us.
async fn decision() -> String {
    let fake = started().await;
    fake.put("workflowruns", run_of(&json!({"a": node(&[])})));
    passes(1).await;
    let pod = fake.pod("a/1").unwrap();
    let said = pod["metadata"]["annotations"]["apscli.dev/decision"].as_str();
    said.unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn a_pod_under_our_name_that_is_ours_is_taken_over() {
    let decision = decision().await;
    let fake = started().await;
    fake.rule(
        "create pod a/1",
        1,
        Act::Refuse(429, "TooManyRequests", "later"),
    );
    fake.put("workflowruns", run_of(&json!({"a": node(&[])})));
    rest().await;
    let uid = fake.run()["metadata"]["uid"].as_str().unwrap().to_owned();
    let pod = fake.put("pods", squatter(&fake, Some(&uid), Some(&decision)));
    rest().await;
    fake.calls();
    passes(1).await;
    assert_eq!(
        fake.calls(),
        ["create pod a/1 -> 409", "get pod a/1", "status Running 0/1"]
    );
    assert_eq!(entry(&fake, "a")["pod"]["uid"], pod["metadata"]["uid"]);
    fake.pod_ends("a/1", ok());
    passes(1).await;
    assert_eq!(fake.calls(), ["status Succeeded 1/1", "event Succeeded"]);
    silence(&fake).await;
}

/// It has everything of ours but the UID that is on record.
#[tokio::test(start_paused = true)]
async fn a_pod_put_in_the_place_of_ours_meanwhile_is_not_believed() {
    let fake = Fake::new();
    let first = operate(&fake, options());
    passes(1).await;
    fake.put(
        "workflowruns",
        run_of(&json!({"a": node(&[]), "b": node(&["a"])})),
    );
    passes(1).await;
    fake.pod_runs("a/1");
    passes(1).await;
    first.dies();
    let ours = fake.pod("a/1").unwrap();
    fake.pod_vanishes("a/1");
    let mut forged = ours.clone();
    for name in ["uid", "resourceVersion", "creationTimestamp", "generation"] {
        forged["metadata"].as_object_mut().unwrap().remove(name);
    }
    let forged = fake.put("pods", forged);
    fake.pod_ends("a/1", ok());
    fake.calls();
    operate(&fake, options());
    passes(2).await;
    assert_eq!(phases(&fake), ["a Error Lost", "b Skipped ConditionFalse"]);
    assert_eq!(phase(&fake), "Failed");
    assert_eq!(
        fake.pod("a/1").unwrap()["metadata"]["uid"],
        forged["metadata"]["uid"],
        "it is somebody else's"
    );
    assert_eq!(fake.created().len(), 1, "{:?}", fake.created());
    fake.calls();
    silence(&fake).await;
}

#[tokio::test(start_paused = true)]
async fn pods_that_say_nonsense_of_themselves_stop_nobody() {
    let fake = started().await;
    fake.put("workflowruns", run_of(&json!({"a": node(&[])})));
    passes(1).await;
    let uid = fake.run()["metadata"]["uid"].clone();
    fake.calls();
    let long = "x".repeat(100_000);
    for (at, (node, attempt, run)) in [
        ("a", "NoSlash", uid.clone()),
        ("a", "0", uid.clone()),
        ("a", "-1", uid.clone()),
        ("a", "4294967296", uid.clone()),
        ("a", "2", uid.clone()),
        ("", "1", uid.clone()),
        ("\u{1f600}/../..", "1", uid.clone()),
        (&long, "1", uid.clone()),
        ("a", "1", json!("")),
        ("a", "1", json!("../../x")),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("poison-{at}");
        let pod = json!({"metadata": {
            "name": name,
            "labels": {"app.kubernetes.io/managed-by": "apscli", "apscli.dev/run-uid": run},
            "annotations": {"apscli.dev/node": node, "apscli.dev/attempt": attempt},
        }, "spec": {"containers": []}});
        fake.put("pods", pod);
        // With nothing at all that can be read, too.
        let bare = json!({"metadata": {"name": format!("bare-{at}"),
            "labels": {"app.kubernetes.io/managed-by": "apscli", "apscli.dev/run-uid": run},
            "finalizers": ["somebody.example/else"]}});
        fake.put("pods", bare);
        fake.delete("pods", &name);
    }
    passes(1).await;
    assert_eq!(fake.calls(), [""; 0], "none of them is ours to touch");
    fake.pod_ends("a/1", ok());
    passes(1).await;
    assert_eq!(phase(&fake), "Succeeded");
    another_run_goes_well(&fake).await;
    fake.calls();
    silence(&fake).await;
}

/// A run of the service that a catalogue with these files has.
async fn run_from(fake: &Fake, files: &[(&str, Vec<u8>)]) {
    let data: serde_json::Map<String, Value> = files
        .iter()
        .map(|(key, bytes)| {
            let bytes = serde_json::to_value(ByteString(bytes.clone())).unwrap();
            ((*key).to_owned(), bytes)
        })
        .collect();
    fake.put(
        "configmaps",
        json!({"metadata": {"name": "m", "labels": {"apscli.dev/catalog": "x"}}, "binaryData": data}),
    );
    passes(5).await;
    fake.put("workflowruns", run(&json!({"fqsn": "some.service"})));
    passes(3).await;
}

fn category(path: &str) -> Vec<u8> {
    json!({"service": {"workflow_template_path": path}})
        .to_string()
        .into_bytes()
}

#[tokio::test(start_paused = true)]
async fn a_template_path_that_leaves_its_folder_reads_nothing() {
    for path in [
        "../secret",
        "/etc/passwd",
        "/var/run/secrets/kubernetes.io/serviceaccount/token",
        "/proc/self/environ",
        "x/../../../proc/self/environ",
        "./../x",
        "~/x",
        "$HOME/x",
        "file:///etc/passwd",
        "x\u{0}y",
    ] {
        let fake = started().await;
        let root = b"root:x:0:0".to_vec();
        run_from(&fake, &[("some.json", category(path)), ("secret", root)]).await;
        assert_eq!(phase(&fake), "Pending", "{path}");
        let said = message(&fake);
        assert!(
            said.contains("leaves the catalogue's folder") || said.contains("cannot be a key"),
            "{path}: {said}"
        );
        assert!(!said.contains("root:"), "{said}");
        assert_eq!(fake.count("pods"), 0);
        another_run_goes_well(&fake).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_unfolds_without_end_is_put_aside() {
    let bomb = gzip::compress(&vec![b' '; gzip::LARGEST + 1]);
    assert!(bomb.len() < 64 * 1024);
    let fake = started().await;
    let files = [("some.json", category("t.json")), ("t.json", bomb)];
    run_from(&fake, &files).await;
    assert_eq!(phase(&fake), "Pending");
    let said = message(&fake);
    assert!(said.contains("unfolds to more than 8 MiB"), "{said}");
    another_run_goes_well(&fake).await;
    let calls = fake.calls();
    let told = calls.iter().filter(|it| *it == "event InvalidCatalog");
    assert_eq!(told.count(), 1, "{calls:#?}");
    // As a run's own template, in parts that are harmless alone.
    let fake = started().await;
    let half = gzip::compress(&vec![b' '; gzip::LARGEST / 2 + 1]);
    let half = serde_json::to_value(ByteString(half)).unwrap();
    fake.put(
        "configmaps",
        json!({"metadata": {"name": "m"}, "binaryData": {"x": half}}),
    );
    let part = json!({"configMap": "m", "key": "x"});
    fake.put("workflowruns", run(&json!({"templateFrom": [part, part]})));
    passes(1).await;
    assert_eq!(phase(&fake), "Error");
    let said = message(&fake);
    assert!(said.contains("unfolds to more than 8 MiB"), "{said}");
    another_run_goes_well(&fake).await;
    fake.calls();
    silence(&fake).await;
}

/// A proxy says so, or the server where it does not know the kind for a moment.
#[tokio::test(start_paused = true)]
async fn a_404_that_names_no_reason_is_no_word_of_a_deletion() {
    for reason in ["", "Failed to parse error data"] {
        let fake = started().await;
        let page = || Act::Refuse(404, reason, "404 page not found");
        fake.rule("status", 1, page());
        fake.put("workflowruns", run_of(&json!({"a": node(&[])})));
        passes(1).await;
        fake.pod_runs("a/1");
        passes(1).await;
        fake.rule("get pod", 2, page());
        fake.say("pods", "DELETED", &fake.pod("a/1").unwrap());
        passes(2).await;
        assert_eq!(phases(&fake), ["a Running"], "nobody said that it is gone");
        fake.rule("delete pod", 1, page());
        fake.merge("workflowruns", "r", &json!({"spec": {"cancel": true}}));
        passes(2).await;
        fake.pod_stopped("a/1");
        fake.rule("strip pod", 1, page());
        passes(5).await;
        assert_eq!(phase(&fake), "Cancelled");
        assert_eq!(fake.count("pods"), 0);
        fake.calls();
        silence(&fake).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_cannot_be_read_says_so_once() {
    let fake = started().await;
    let service = |name: &str, versions: Value| json!({"metadata": {"name": name}, "spec": {"fqsn": format!("some.{name}"), "versions": versions}});
    fake.put("services", service("bad", json!("many")));
    fake.put(
        "services",
        service(
            "good",
            json!([{"version": "1", "template": {"a": node(&[])}}]),
        ),
    );
    passes(3).await;
    // The news of what is said then leads to one more look.
    assert_eq!(fake.calls(), ["get services bad", "get services bad"]);
    let ready = |name: &str| fake.get("services", name).unwrap()["status"]["conditions"][0].clone();
    assert_eq!(ready("good")["status"], "True");
    let bad = ready("bad");
    assert_eq!(
        [&bad["status"], &bad["reason"]],
        [&json!("False"), &json!("Unreadable")]
    );
    silence(&fake).await;
    fake.put("workflowruns", run(&json!({"fqsn": "some.good"})));
    passes(1).await;
    assert_eq!(phase(&fake), "Running");
}

/// Who comes second neither takes a name nor makes it useless.
#[tokio::test(start_paused = true)]
async fn second_service_of_a_name_does_not_count() {
    let fake = started().await;
    let service = |name: &str, template: Value| {
        json!({"metadata": {"name": name},
        "spec": {"fqsn": "some.name", "versions": [{"version": "1", "template": template}]}})
    };
    let ready = |name: &str| {
        let condition = fake.get("services", name).unwrap()["status"]["conditions"][0].clone();
        let part = |of: &str| condition[of].as_str().unwrap().to_owned();
        (part("status"), part("reason"), part("message"))
    };
    fake.put("services", service("z", json!({"mine": node(&[])})));
    passes(3).await;
    fake.put("services", service("a", json!({"theirs": node(&[])})));
    passes(3).await;
    let (status, reason, message) = ready("a");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "Conflict"));
    assert!(
        message.contains("Service default/z has the FQSN some.name too"),
        "{message}"
    );
    assert_eq!(ready("z").0, "True");
    // One on each.
    assert_eq!(fake.calls(), ["event Conflict", "event Conflict"]);
    fake.put("workflowruns", run(&json!({"fqsn": "some.name"})));
    passes(2).await;
    assert_eq!(
        fake.run()["status"]["resolved"]["source"],
        "Service default/z"
    );
    assert_eq!(entry(&fake, "mine")["phase"], "Running");
    // When the first goes, the second is told at once that it counts now.
    fake.delete("services", "z");
    passes(3).await;
    assert_eq!(ready("a").0, "True");
}

/// What a namespace's `ConfigMaps` say is not even asked for.
#[tokio::test(start_paused = true)]
async fn labelled_maps_of_a_runs_namespace_do_not_count() {
    for (labelled, home, expected) in [
        (LabelledMaps::All, "default", "Running"),
        (LabelledMaps::Shared, "default", "Pending"),
        (LabelledMaps::Shared, "shared", "Running"),
        (LabelledMaps::None, "shared", "Pending"),
    ] {
        let fake = Fake::new();
        let catalog_config_maps = labelled;
        operate(
            &fake,
            Options {
                catalog_config_maps,
                ..options()
            },
        );
        let data = json!({"some.json": String::from_utf8(category("t.json")).unwrap(),
            "t.json": json!({"a": node(&[])}).to_string()});
        let map =
            json!({"metadata": {"name": "m", "labels": {"apscli.dev/catalog": "x"}}, "data": data});
        fake.put_in(home, "configmaps", map);
        passes(3).await;
        fake.put("workflowruns", run(&json!({"fqsn": "some.service"})));
        passes(3).await;
        assert_eq!(
            phase(&fake),
            expected,
            "{labelled:?} {home}: {}",
            message(&fake)
        );
        if expected == "Pending" {
            let said = message(&fake);
            assert!(said.contains("do not count as catalogs"), "{said}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_may_not_be_read_is_told_by_readiness() {
    let fake = Fake::new();
    let no = "services.apscli.dev is forbidden: User \"apscli\" cannot list resource \"services\" \
              in API group \"apscli.dev\" in the namespace \"shared\"";
    fake.rule("list services", 1000, Act::Refuse(403, "Forbidden", no));
    let health = Health::default();
    let (client, _) = fake.client();
    let told = health.clone();
    tokio::spawn(async move {
        let metrics = Arc::default();
        super::super::work(client, options(), metrics, &told, "operator-1".to_owned()).await;
    });
    fake.put("workflowruns", run_of(&json!({"a": node(&[])})));
    passes(5).await;
    let why = health.ready().unwrap_err().join("\n");
    assert!(why.contains("the cache of Services: "), "{why}");
    assert!(why.contains(no), "{why}");
    let asked = fake.calls().len();
    assert!(asked < 30, "{asked} calls in five seconds");
    passes(120).await;
    let asked = fake.calls().len();
    assert!(asked < 30, "{asked} calls in two minutes");
    // The right is given.
    fake.no_rules();
    passes(60).await;
    assert_eq!(health.ready(), Ok(()));
    assert_eq!(phase(&fake), "Running");
}
