//! What a tenant writes into objects of his own to stop the operator for others: JSON that is nested
//! too deeply, names that are parts of a URL, and more events than there is work.

use super::fake::Act;
use super::*;

/// A run of this name, in this namespace.
fn put_run(fake: &Fake, namespace: &str, name: &str, mut run: Value) {
    run["metadata"]["name"] = json!(name);
    fake.put_in(namespace, "workflowruns", run);
}

fn phase_in(fake: &Fake, namespace: &str, name: &str) -> String {
    let run = fake.get_in(namespace, "workflowruns", name).unwrap();
    run["status"]["phase"].as_str().unwrap_or("-").to_owned()
}

/// An operator whose calls are bounded as in the program.
fn operate_bounded(fake: &Fake) -> (Process, Health) {
    let metrics = Arc::default();
    let health = Health::default();
    let (client, dead) = fake.bounded_client(&metrics);
    let told = health.clone();
    tokio::spawn(async move {
        crate::operator::work(client, options(), metrics, &told, "operator-1".to_owned()).await;
    });
    (Process(dead), health)
}

/// Every place where a tenant may write any JSON.
fn deep(levels: usize) -> Vec<(&'static str, Value)> {
    let deep = format!("@deep {levels}@");
    let service = |version: Value| json!({"spec": {"fqsn": "a.b", "versions": [version]}});
    vec![
        ("workflowruns", run(&json!({"params": {"p": deep}}))),
        ("workflowruns", run(&json!({"template": {"a": deep}}))),
        (
            "services",
            service(json!({"version": "1", "template": {"a": deep}})),
        ),
        (
            "services",
            service(json!({"version": "1", "templateText": "{}",
                           "params": [{"name": "p", "default": deep}]})),
        ),
        (
            "services",
            service(json!({"version": "1", "templateText": "{}",
                           "params": [{"name": "p", "enum": [deep]}]})),
        ),
    ]
}

#[tokio::test(start_paused = true)]
async fn deep_json_of_one_tenant_stops_no_other() {
    for levels in [150, 9000] {
        let fake = Fake::new();
        let mut names = Vec::new();
        for (at, (resource, mut object)) in deep(levels).into_iter().enumerate() {
            let name = format!("deep-{at}");
            object["metadata"] = json!({"name": name});
            fake.put_in("evil", resource, object);
            names.push((resource, name));
        }
        // Before any operator looks, beside a watch, and before the next one looks.
        put_run(
            &fake,
            "innocent",
            "before",
            run_of(&json!({"before": node(&[])})),
        );
        let (first, health) = operate_bounded(&fake);
        passes(20).await;
        assert_eq!(health.ready(), Ok(()), "{levels} levels");
        fake.pod_ends("before/1", ok());
        put_run(
            &fake,
            "evil",
            "meanwhile",
            run(&json!({"params": {"p": format!("@deep {levels}@")}})),
        );
        put_run(
            &fake,
            "innocent",
            "after",
            run_of(&json!({"after": node(&[])})),
        );
        passes(20).await;
        first.dies();
        let (_second, health) = operate_bounded(&fake);
        passes(20).await;
        assert_eq!(health.ready(), Ok(()), "{levels} levels");
        fake.pod_ends("after/1", ok());
        passes(20).await;
        assert_eq!(phase_in(&fake, "innocent", "before"), "Succeeded");
        assert_eq!(phase_in(&fake, "innocent", "after"), "Succeeded");
        assert_eq!(phase_in(&fake, "evil", "meanwhile"), "Error");
        for (resource, name) in names {
            let status = &fake.get_in("evil", resource, &name).unwrap()["status"];
            let condition = &status["conditions"][0];
            let message = condition["message"].as_str().unwrap_or_default();
            assert_eq!(
                condition["reason"], "Unreadable",
                "{resource} {name}: {status}"
            );
            assert!(message.contains("expected at most 127 levels"), "{message}");
        }
        fake.calls();
        silence(&fake).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_deep_run_that_is_deleted_lets_its_pods_go() {
    let fake = started().await;
    fake.put("workflowruns", run(&json!({"params": {"p": "@deep 150@"}})));
    passes(5).await;
    assert_eq!(phase(&fake), "Error");
    let uid = fake.run()["metadata"]["uid"].clone();
    // Made by a version that could read it.
    fake.put("pods", pod_of("p", &uid, "r"));
    passes(1).await;
    fake.delete("pods", "p");
    passes(1).await;
    assert_eq!(fake.count("pods"), 0, "{:?}", fake.calls());
}

/// A pod with our finalizer and label, and this owner.
fn pod_of(name: &str, uid: &Value, owner: &str) -> Value {
    json!({
        "metadata": {
            "name": name,
            "finalizers": ["apscli.dev/result"],
            "labels": {"app.kubernetes.io/managed-by": "apscli", "apscli.dev/run-uid": uid},
            "ownerReferences": [{
                "apiVersion": "apscli.dev/v1alpha1",
                "kind": "WorkflowRun",
                "name": owner,
                "uid": uid,
                "controller": true,
            }],
        },
        "spec": {"containers": []},
    })
}

const NAMES: [&str; 9] = [
    "?watch=true&timeoutSeconds=100000",
    "x?watch=true",
    "?limit=0",
    "../../kube-system/configmaps/x",
    "..",
    "a/b",
    "a%2fb",
    "bad name",
    "x#y",
];

/// The definitions refuse such names; this is what holds where they are of an older version.
#[tokio::test(start_paused = true)]
async fn names_of_a_run_that_are_none_are_not_asked_for() {
    for name in NAMES {
        for spec in [
            json!({"templateFrom": [{"configMap": name, "key": "k"}]}),
            json!({"template": {"a": node(&[])}, "paramsFrom": [{"configMap": {"name": name}}]}),
            json!({"template": {"a": node(&[])},
                   "paramsFrom": [{"configMap": {"name": name, "optional": true}}]}),
        ] {
            let fake = started().await;
            fake.put("workflowruns", run(&spec));
            passes(60).await;
            assert_eq!(phase(&fake), "Error", "{spec}");
            assert!(
                message(&fake).contains("names no object"),
                "{}",
                message(&fake)
            );
            assert_eq!(fake.calls(), ["status Error -", "event Error"], "{spec}");
            silence(&fake).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn names_of_scripts_that_are_none_are_not_asked_for() {
    for name in NAMES {
        let fake = started().await;
        let service = json!({
            "metadata": {"name": "s"},
            "spec": {
                "fqsn": "a.b",
                "versions": [{"version": "1", "templateText": json!({"a": node(&[])}).to_string()}],
                "scripts": [{"configMap": name}],
            },
        });
        fake.put("services", service);
        passes(5).await;
        fake.calls();
        fake.put("workflowruns", run(&json!({"fqsn": "a.b"})));
        passes(60).await;
        assert!(
            message(&fake).contains("names no object"),
            "{}",
            message(&fake)
        );
        assert_eq!(fake.calls(), ["status Error -", "event Error"], "{name}");
        silence(&fake).await;
    }
}

/// The API server does not check the names of owners.
#[tokio::test(start_paused = true)]
async fn owners_whose_name_is_none_are_not_asked_for() {
    for name in NAMES {
        let fake = started().await;
        fake.put("pods", pod_of("p", &json!("0000-no-run"), name));
        fake.put("pods", pod_of("q", &json!("0000-no-run"), name));
        fake.delete("pods", "p");
        passes(5).await;
        assert_eq!(fake.calls(), ["strip pod ?/?"], "{name}");
        // The other is nobody's to delete.
        assert_eq!(fake.count("pods"), 1);
        silence(&fake).await;
    }
}

/// Each event of such a pod asks for it.
#[tokio::test(start_paused = true)]
async fn events_of_one_pod_make_one_look() {
    let fake = started().await;
    fake.put("pods", pod_of("p", &json!("0000-no-run"), "no-run"));
    fake.rule(
        "get workflowruns no-run",
        3,
        Act::Refuse(503, "ServiceUnavailable", "later"),
    );
    fake.delete("pods", "p");
    for at in 0..100 {
        fake.merge(
            "pods",
            "p",
            &json!({"metadata": {"annotations": {"a": at.to_string()}}}),
        );
        rest().await;
    }
    passes(20).await;
    let calls = fake.calls();
    let looks = calls.iter().filter(|it| it.starts_with("get workflowruns"));
    assert_eq!(looks.count(), 4, "{calls:?}");
    assert_eq!(fake.count("pods"), 0);
    silence(&fake).await;
}

/// A read that can never succeed is not repeated: what is asked of stands for nothing.
#[tokio::test(start_paused = true)]
async fn a_read_that_is_refused_for_good_stops() {
    for (code, reason) in [
        (400, "BadRequest"),
        (405, "MethodNotAllowed"),
        (422, "Invalid"),
    ] {
        let fake = started().await;
        fake.put("pods", pod_of("p", &json!("0000-no-run"), "no-run"));
        fake.rule(
            "get workflowruns no-run",
            1000,
            Act::Refuse(code, reason, "never"),
        );
        fake.delete("pods", "p");
        passes(60).await;
        let looked = format!("get workflowruns no-run -> {code}");
        assert_eq!(fake.calls(), [looked.as_str(), "strip pod ?/?"]);
        silence(&fake).await;
    }
}

/// Neither is a patch: its next event asks for it.
#[tokio::test(start_paused = true)]
async fn a_patch_that_is_refused_for_good_stops() {
    let fake = started().await;
    fake.put("pods", pod_of("p", &json!("0000-no-run"), "no-run"));
    fake.rule("strip pod", 1000, Act::Refuse(422, "Invalid", "never"));
    fake.delete("pods", "p");
    passes(60).await;
    let calls = fake.calls();
    let patches = calls.iter().filter(|it| it.starts_with("strip")).count();
    assert!((2..10).contains(&patches), "{calls:?}");
    passes(600).await;
    assert_eq!(fake.calls(), [""; 0]);
    fake.no_rules();
    fake.merge(
        "pods",
        "p",
        &json!({"metadata": {"annotations": {"a": "b"}}}),
    );
    passes(60).await;
    assert_eq!(fake.count("pods"), 0);
}

/// An unreadable pod of a run that goes on is treated by its metadata and phase.
#[tokio::test(start_paused = true)]
async fn a_pod_whose_status_cannot_be_read_ends_its_node() {
    let fake = started().await;
    fake.put("workflowruns", run_of(&json!({"a": node(&[])})));
    passes(1).await;
    fake.pod_runs("a/1");
    passes(1).await;
    let name = fake.pod_name("a/1");
    fake.change_status(
        "pods",
        &name,
        &json!({"phase": "Failed", "containerStatuses": "@deep 9000@"}),
    );
    passes(60).await;
    assert_eq!(phase(&fake), "Failed", "{:?}", fake.calls());
    fake.calls();
    silence(&fake).await;
}

/// JSON that only a broken server or proxy writes.
#[tokio::test(start_paused = true)]
async fn odd_numbers_and_strings_of_one_run_stop_no_other() {
    let fake = Fake::new();
    for (at, odd) in [
        "@raw 1e999@",
        "@raw \"\\ud800\"@",
        "@raw {\"a\":1,\"a\":2}@",
    ]
    .iter()
    .enumerate()
    {
        let mut odd = run(&json!({"params": {"p": odd}}));
        odd["metadata"]["name"] = json!(format!("odd-{at}"));
        fake.put("workflowruns", odd);
    }
    let (_process, health) = operate_bounded(&fake);
    passes(20).await;
    assert_eq!(health.ready(), Ok(()));
    fake.put("workflowruns", run_of(&json!({"a": node(&[])})));
    passes(5).await;
    fake.pod_ends("a/1", ok());
    passes(5).await;
    assert_eq!(phase(&fake), "Succeeded");
}
