//! Where the operator looks, and what it does not begin.

use serde_json::json;

use super::*;

fn two_namespaces() -> Options {
    Options {
        scope: Scope::Namespaces(vec!["default".to_owned(), "other".to_owned()]),
        ..options()
    }
}

fn phase_in(fake: &Fake, namespace: &str) -> String {
    let run = fake.get_in(namespace, "workflowruns", "r").unwrap();
    run["status"]["phase"].as_str().unwrap_or("-").to_owned()
}

#[tokio::test(start_paused = true)]
async fn a_new_list_of_one_namespace_stops_no_run_of_another() {
    let fake = Fake::new();
    operate(&fake, two_namespaces());
    passes(1).await;
    let run = run_of(&json!({"a": node(&[]), "b": node(&["a"])}));
    fake.put_in("default", "workflowruns", run.clone());
    fake.put_in("other", "workflowruns", run);
    passes(1).await;
    fake.forget_watch("workflowruns", fake::Gone::Event);
    passes(20).await;
    fake.kubelet(well);
    for pod in fake.pods() {
        fake.ends_well(&pod);
    }
    passes(10).await;
    assert_eq!(phase_in(&fake, "default"), "Succeeded");
    assert_eq!(phase_in(&fake, "other"), "Succeeded");
    fake.calls();
    silence(&fake).await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_finds_the_pods_of_all_namespaces() {
    let fake = Fake::new();
    let first = operate(&fake, two_namespaces());
    passes(1).await;
    let run = run_of(&json!({"a": node(&[]), "b": node(&["a"])}));
    fake.put_in("default", "workflowruns", run.clone());
    fake.put_in("other", "workflowruns", run);
    passes(1).await;
    first.dies();
    for pod in fake.pods() {
        fake.ends_well(&pod);
    }
    fake.kubelet(well);
    operate(&fake, two_namespaces());
    passes(10).await;
    assert_eq!(phase_in(&fake, "default"), "Succeeded");
    assert_eq!(phase_in(&fake, "other"), "Succeeded");
    assert_eq!(fake.created()["a/1"], 2, "one for each run");
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_with_a_run_is_said_once() {
    for (spec, phase_, reason, words) in [
        (
            json!({"fqsn": "no.such"}),
            "Pending",
            "ServiceNotFound",
            "no.such",
        ),
        (
            json!({"template": {"a": {"prev_nodes": ["z"], "action": {"type": "cmd", "cmd": "true"}}}}),
            "Error",
            "InvalidTemplate",
            "z",
        ),
        (
            json!({"template": diamond(), "serviceAccountName": "admin"}),
            "Error",
            "ServiceAccountNotAllowed",
            "admin",
        ),
        (
            json!({"template": {"a": node(&[])}, "paramsFrom": [{"configMap": {"name": "p"}}]}),
            "Pending",
            "ParamsNotFound",
            "ConfigMap default/p",
        ),
    ] {
        let fake = started().await;
        fake.put("workflowruns", run(&spec));
        passes(60).await;
        let calls = fake.calls();
        let writes: Vec<&String> = calls.iter().filter(|it| !it.starts_with("get")).collect();
        assert_eq!(writes.len(), 2, "{calls:#?}");
        assert_eq!(phase(&fake), phase_);
        assert!(message(&fake).contains(words), "{}", message(&fake));
        assert_eq!(fake.run()["status"]["conditions"][0]["reason"], reason);
    }
}

#[tokio::test(start_paused = true)]
async fn a_shard_has_nothing_to_do_with_the_runs_of_another() {
    let fake = Fake::new();
    let shard = "1/2".parse().unwrap();
    operate(&fake, Options { shard, ..options() });
    passes(1).await;
    fake.calls();
    fake.put(
        "services",
        json!({"metadata": {"name": "s"}, "spec": {"fqsn": "some.service", "versions": [
        {"version": "1.0", "template": {"a": node(&[])}}]}}),
    );
    silence(&fake).await;
    let mut own = 0;
    for nth in 0..20 {
        let mut wanted = run_of(&json!({"a": node(&[])}));
        wanted["metadata"]["name"] = json!(format!("r{nth}"));
        let made = fake.put("workflowruns", wanted);
        passes(1).await;
        let uid = made["metadata"]["uid"].as_str().unwrap();
        if shard.has(uid) {
            own += 1;
            let calls = fake.calls();
            assert!(calls.contains(&"create pod a/1".to_owned()), "{calls:#?}");
            continue;
        }
        let bucket = crate::executor::pod::build::bucket(uid).to_string();
        fake.put(
            "pods",
            json!({"metadata": {
                "name": format!("p{nth}"),
                "finalizers": ["apscli.dev/result"],
                "deletionTimestamp": "2026-01-01T00:00:00Z",
                "labels": {
                    "app.kubernetes.io/managed-by": "apscli",
                    "apscli.dev/run-uid": uid,
                    "apscli.dev/bucket": bucket,
                },
            }}),
        );
        passes(1).await;
        assert_eq!(fake.calls(), [""; 0], "for a run of another shard");
    }
    assert!((1..20).contains(&own), "{own}");
}

#[tokio::test(start_paused = true)]
async fn what_was_missing_is_found_when_it_comes() {
    let fake = started().await;
    fake.put("workflowruns", run(&json!({"fqsn": "some.service"})));
    passes(3).await;
    assert_eq!(phase(&fake), "Pending");
    fake.put(
        "services",
        json!({"metadata": {"name": "s"}, "spec": {"fqsn": "some.service", "versions": [
        {"version": "1.0", "template": {"a": node(&[])}}]}}),
    );
    passes(6).await;
    assert_eq!(phase(&fake), "Running");
    let kinds: Vec<Value> = fake.run()["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["type"].clone())
        .collect();
    assert_eq!(kinds, ["Reconciling"]);
}

#[tokio::test(start_paused = true)]
async fn a_run_cancelled_before_it_begins_never_does() {
    let fake = started().await;
    fake.put(
        "workflowruns",
        run(&json!({"template": diamond(), "cancel": true})),
    );
    passes(1).await;
    assert_eq!(fake.calls(), ["status Cancelled -", "event Cancelled"]);
    silence(&fake).await;
}

#[tokio::test(start_paused = true)]
async fn runs_are_counted_by_phase_also_after_a_restart() {
    let fake = Fake::new();
    let first = operate(&fake, options());
    passes(1).await;
    fake.put("workflowruns", run_of(&json!({"a": node(&[])})));
    passes(1).await;
    first.dies();
    let metrics = Arc::new(Metrics::default());
    operate_counted(&fake, options(), &metrics);
    passes(1).await;
    let has = |line: &str| metrics.text().lines().any(|it| it == line);
    assert!(
        has("apscli_runs{phase=\"Running\"} 1"),
        "{}",
        metrics.text()
    );
    fake.pod_ends("a/1", ok());
    passes(1).await;
    assert!(
        has("apscli_runs{phase=\"Running\"} 0"),
        "{}",
        metrics.text()
    );
    assert!(
        has("apscli_runs{phase=\"Succeeded\"} 1"),
        "{}",
        metrics.text()
    );
    fake.delete("workflowruns", "r");
    passes(1).await;
    assert!(
        has("apscli_runs{phase=\"Succeeded\"} 0"),
        "{}",
        metrics.text()
    );
}

#[tokio::test(start_paused = true)]
async fn a_large_run_does_not_make_a_small_one_wait() {
    let fake = started().await;
    fake.rule(
        "create pod",
        100_000,
        fake::Act::Late(Duration::from_millis(100)),
    );
    let nodes: serde_json::Map<String, Value> = (0..2000)
        .map(|it| (format!("n{it:04}"), node(&[])))
        .collect();
    let mut large = run_of(&Value::Object(nodes));
    large["metadata"]["name"] = json!("large");
    fake.put("workflowruns", large);
    rest().await;
    fake.put("workflowruns", run_of(&json!({"small": node(&[])})));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(
        fake.created().contains_key("small/1"),
        "{} before it",
        fake.created().len()
    );
}

/// A kubelet tells of the container's end before it tells of the pod's: the pod, and with it its
/// log, must not go because its run is over by then.
#[tokio::test(start_paused = true)]
async fn a_pod_whose_phase_lags_behind_its_container_stays() {
    let fake = started().await;
    fake.put("workflowruns", run_of(&json!({"a": node(&[])})));
    passes(1).await;
    fake.pod_runs("a/1");
    fake.container_ends("a/1");
    passes(1).await;
    assert_eq!(phase(&fake), "Succeeded");
    // Somebody else's change brings the pod up again, as it is.
    let name = fake.pod_name("a/1");
    fake.merge(
        "pods",
        &name,
        &json!({"metadata": {"labels": {"more": "news"}}}),
    );
    passes(1).await;
    fake.pod_ends("a/1", ok());
    passes(1).await;
    let calls = fake.calls();
    assert!(
        !calls.iter().any(|it| it.contains("delete pod")),
        "{calls:?}"
    );
    assert!(fake.pod("a/1").is_some());
    silence(&fake).await;
}

fn auto() -> Options {
    Options {
        delivery: Some(crate::operator::options::Delivery::Auto),
        ..options()
    }
}

fn a_node(name: &str, runtime: &str) -> Value {
    let info = json!({"kubeletVersion": "v1.37.2", "containerRuntimeVersion": runtime,
        "architecture": "", "bootID": "", "kernelVersion": "", "kubeProxyVersion": "",
        "machineID": "", "operatingSystem": "", "osImage": "", "systemUUID": ""});
    json!({"metadata": {"name": name}, "status": {"nodeInfo": info}})
}

/// How apscli-node comes into the pod of a run in the image `other`, and what was asked for it.
async fn delivered(fake: &Fake, run_name: &str) -> (&'static str, usize) {
    fake.calls();
    let mut run = run(&json!({"template": {"a": node(&[])}, "image": "other"}));
    run["metadata"]["name"] = json!(run_name);
    fake.put("workflowruns", run);
    rest().await;
    let asked = fake.calls().iter().filter(|it| *it == "list nodes").count();
    let pods = fake.pods();
    let pods = pods.iter().map(|key| fake.get("pods", &key.2).unwrap());
    let pod = pods
        .filter(|pod| pod["metadata"]["ownerReferences"][0]["name"] == run_name)
        .collect::<Vec<_>>();
    let [pod] = pod.as_slice() else {
        panic!("{pod:?}")
    };
    let bin = pod["spec"]["volumes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|it| it["name"] == "bin");
    let how = match (
        bin.and_then(|it| it["image"]["reference"].as_str()),
        pod["spec"]["initContainers"][0]["image"].as_str(),
    ) {
        (Some("tools"), None) => "volume",
        (None, Some("tools")) => "copy",
        other => panic!("{other:?}"),
    };
    (how, asked)
}

#[tokio::test(start_paused = true)]
async fn images_are_mounted_where_all_nodes_can() {
    let fake = Fake::new();
    fake.put_in("", "nodes", a_node("one", "containerd://2.4.2"));
    operate(&fake, auto());
    passes(1).await;
    assert_eq!(delivered(&fake, "first").await, ("volume", 1));
    // What was found counts for a while.
    fake.put_in("", "nodes", a_node("two", "containerd://1.7.3"));
    assert_eq!(delivered(&fake, "second").await, ("volume", 0));
    passes(61).await;
    assert_eq!(delivered(&fake, "third").await, ("copy", 1));
}

#[tokio::test(start_paused = true)]
async fn apscli_node_is_copied_where_nodes_cannot_be_read_and_the_own_image_needs_neither() {
    let fake = Fake::new();
    operate(&fake, auto());
    fake.rule("list nodes", 1, fake::Act::Refuse(403, "Forbidden", "no"));
    passes(1).await;
    fake.put("workflowruns", run_of(&json!({"a": node(&[])})));
    rest().await;
    let calls = fake.calls();
    assert!(!calls.contains(&"list nodes".to_owned()), "{calls:?}");
    assert_eq!(delivered(&fake, "other").await, ("copy", 0));
    passes(61).await;
    assert_eq!(delivered(&fake, "none").await, ("copy", 1));
}

/// Credentials of clouds hang on an account's name, whoever made the account.
#[tokio::test(start_paused = true)]
async fn account_of_another_namespace_is_refused() {
    let fake = Fake::new();
    let options = Options {
        service_accounts: vec![
            "default/robot".parse().unwrap(),
            "*/anywhere".parse().unwrap(),
        ],
        ..two_namespaces()
    };
    operate(&fake, options);
    passes(1).await;
    let of =
        |account: &str| run(&json!({"template": {"a": node(&[])}, "serviceAccountName": account}));
    fake.put_in("default", "workflowruns", of("robot"));
    fake.put_in("other", "workflowruns", of("robot"));
    passes(1).await;
    assert_eq!(phase_in(&fake, "default"), "Running");
    assert_eq!(phase_in(&fake, "other"), "Error");
    let refused = fake.get_in("other", "workflowruns", "r").unwrap();
    let why = refused["status"]["message"].as_str().unwrap();
    let expected = "`robot` is not on the operator's list for namespace other; expected one of \
                    anywhere (the cluster's administrator can add it: --allow-service-account \
                    other/robot)";
    assert!(why.contains(expected), "{why}");
}
