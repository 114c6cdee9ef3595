//! What objects may mean: a small object that means much ends with an error, and what tenants have
//! in the operator's memory has a bound, beside which others go on.

use k8s_openapi::ByteString;

use super::*;
use crate::catalog::gzip;

const MIB: usize = 1024 * 1024;

fn named(name: &str, spec: &Value) -> Value {
    let mut run = run(spec);
    run["metadata"]["name"] = json!(name);
    run
}

fn phase_of(fake: &Fake, name: &str) -> String {
    let run = fake.get("workflowruns", name).unwrap();
    run["status"]["phase"].as_str().unwrap_or("-").to_owned()
}

/// The reason of the condition `Failed` of the run `r`.
fn failed(fake: &Fake) -> String {
    let run = fake.run();
    let conditions = run["status"]["conditions"].as_array().unwrap();
    let failed = conditions.iter().find(|it| it["type"] == "Failed").unwrap();
    failed["reason"].as_str().unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn amplified_parameter_ends_run_as_too_large() {
    let fake = started().await;
    let mut node = node(&[]);
    node["param"] = json!({"p": "$big"});
    let nodes: serde_json::Map<String, Value> = (0..2_000)
        .map(|at| (format!("n{at}"), node.clone()))
        .collect();
    let big = "x".repeat(700_000);
    let spec = json!({"template": nodes, "params": {"big": big}});
    assert!(spec.to_string().len() < 900_000);
    fake.put("workflowruns", run(&spec));
    passes(3).await;
    assert_eq!([phase(&fake), failed(&fake)], ["Error", "TooLarge"]);
    let said = message(&fake);
    assert!(
        said.contains(".param: with the parameter `big` (700002 bytes) here, the nodes of the run"),
        "{said}"
    );
    assert!(said.len() < 1_000, "{said}");
    assert_eq!(fake.count("pods"), 0);
}

#[tokio::test(start_paused = true)]
async fn template_of_too_many_values_is_too_large() {
    let many = format!("{{\"a\": [{}1]}}", "1,".repeat(MIB));
    for text in [many.clone().into_bytes(), gzip::compress(many.as_bytes())] {
        let fake = started().await;
        let text = serde_json::to_value(ByteString(text)).unwrap();
        fake.put(
            "configmaps",
            json!({"metadata": {"name": "m"}, "binaryData": {"x": text}}),
        );
        let from = json!([{"configMap": "m", "key": "x"}]);
        fake.put("workflowruns", run(&json!({"templateFrom": from})));
        passes(3).await;
        assert_eq!([phase(&fake), failed(&fake)], ["Error", "TooLarge"]);
        let said = message(&fake);
        assert!(said.contains("more than 500000 values"), "{said}");
    }
}

#[tokio::test(start_paused = true)]
async fn parameters_beyond_their_bytes_are_too_large() {
    let fake = started().await;
    let names = ["a", "b", "c"];
    for name in names {
        let data = json!({name: "x".repeat(900_000)});
        fake.put(
            "configmaps",
            json!({"metadata": {"name": name}, "data": data}),
        );
    }
    let from: Vec<Value> = names
        .iter()
        .map(|it| json!({"configMap": {"name": it}}))
        .collect();
    fake.put(
        "workflowruns",
        run(&json!({"template": {"a": node(&[])}, "paramsFrom": from})),
    );
    passes(3).await;
    assert_eq!([phase(&fake), failed(&fake)], ["Error", "TooLarge"]);
    assert!(message(&fake).contains("ConfigMap default/c of spec.paramsFrom[2]"));
}

/// With the least cache that there is, a namespace alone has 5.3 MiB for runs.
fn small() -> Options {
    Options {
        cache: 48 * MIB,
        ..options()
    }
}

#[tokio::test(start_paused = true)]
async fn runs_beyond_their_share_wait_until_others_end() {
    let fake = Fake::new();
    let metrics = Arc::new(Metrics::default());
    operate_counted(&fake, small(), &metrics);
    passes(1).await;
    // None can be resolved, so each keeps what it has to run.
    let spec = json!({"fqsn": "some.service", "params": {"p": "x".repeat(MIB)}});
    for at in 0..8 {
        fake.put("workflowruns", named(&format!("large-{at}"), &spec));
    }
    passes(3).await;
    let waiting = || -> usize {
        let runs = (0..8).map(|at| phase_of(&fake, &format!("large-{at}")));
        runs.filter(|it| it == "-").count()
    };
    assert_eq!(waiting(), 3, "five are in its share");
    let calls = fake.calls();
    let told = calls.iter().filter(|it| *it == "event TooLarge").count();
    assert_eq!(told, 3, "{calls:#?}");
    let text = metrics.text();
    let held = text
        .lines()
        .find_map(|it| it.strip_prefix("apscli_cache_bytes{cache=\"runs\"} "));
    let held: usize = held.unwrap().parse().unwrap();
    assert!((5 * MIB..6 * MIB).contains(&held), "{held}");
    // Another namespace's is not touched by that.
    let other = named("small", &json!({"template": {"a": node(&[])}}));
    fake.put_in("other", "workflowruns", other);
    passes(1).await;
    assert_eq!(fake.count("pods"), 1);
    // What they wait for comes, and all are done.
    fake.kubelet(well);
    let version = json!([{"version": "1", "template": {"a": node(&[])}}]);
    fake.put(
        "services",
        json!({"metadata": {"name": "s"}, "spec": {"fqsn": "some.service", "versions": version}}),
    );
    passes(120).await;
    let ended: Vec<String> = (0..8)
        .map(|at| phase_of(&fake, &format!("large-{at}")))
        .collect();
    assert_eq!(ended, ["Succeeded"; 8]);
}

#[tokio::test(start_paused = true)]
async fn waiting_run_can_be_cancelled_and_deleted() {
    let fake = Fake::new();
    operate(&fake, small());
    passes(1).await;
    let spec = json!({"fqsn": "some.service", "params": {"p": "x".repeat(MIB)}});
    for at in 0..7 {
        fake.put("workflowruns", named(&format!("large-{at}"), &spec));
    }
    passes(3).await;
    let waits = |name: &str| phase_of(&fake, name) == "-";
    assert!(waits("large-5") && waits("large-6") && !waits("large-4"));
    fake.merge(
        "workflowruns",
        "large-5",
        &json!({"spec": {"cancel": true}}),
    );
    fake.delete("workflowruns", "large-6");
    passes(1).await;
    assert!(fake.get("workflowruns", "large-6").is_none());
    // One that was there first gives its memory back.
    fake.merge(
        "workflowruns",
        "large-0",
        &json!({"spec": {"cancel": true}}),
    );
    passes(20).await;
    assert_eq!(phase_of(&fake, "large-0"), "Cancelled");
    assert_eq!(phase_of(&fake, "large-5"), "Cancelled");
}

/// Services of a namespace that has more than its share are not taken in, and say so; none of another
/// namespace is run in their place.
#[tokio::test(start_paused = true)]
async fn service_beyond_its_share_is_refused_and_not_replaced() {
    let fake = Fake::new();
    operate(&fake, small());
    passes(1).await;
    let template = json!({"a": node(&[])}).to_string();
    let service = |fqsn: String, text: String| {
        json!({"metadata": {"name": fqsn.replace('.', "-")},
               "spec": {"fqsn": fqsn, "versions": [{"version": "1", "templateText": text}]}})
    };
    for at in 0..6 {
        let text = format!("{template}{}", " ".repeat(MIB));
        fake.put("services", service(format!("some.large-{at}"), text));
        passes(1).await;
    }
    fake.put_in(
        "shared",
        "services",
        service("some.large-5".to_owned(), template.clone()),
    );
    passes(10).await;
    let ready = |at: usize| {
        let service = fake.get("services", &format!("some-large-{at}")).unwrap();
        service["status"]["conditions"][0]["reason"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    assert_eq!(ready(0), "Valid");
    fake.put("workflowruns", run(&json!({"fqsn": "some.large-5"})));
    passes(3).await;
    assert_eq!(phase(&fake), "Pending");
    let said = message(&fake);
    assert!(
        said.contains("Service default/some-large-5") && said.contains("of the operator's memory"),
        "{said}"
    );
}

#[tokio::test(start_paused = true)]
async fn config_map_beyond_its_share_is_told_by_event() {
    let fake = Fake::new();
    operate(&fake, small());
    passes(1).await;
    for at in 0..6 {
        let files = json!({"some.json": "{}", "file": "x".repeat(MIB)});
        fake.put(
            "configmaps",
            json!({"metadata": {"name": format!("m{at}"), "labels": {"apscli.dev/catalog": "x"},
                                "annotations": {"apscli.dev/folder": format!("f{at}"),
                                                "apscli.dev/refused": "not by us"}},
                   "data": files}),
        );
    }
    passes(10).await;
    let calls = fake.calls();
    let told = |reason: &str| calls.iter().filter(|it| *it == reason).count();
    assert_eq!(
        [told("event TooLarge"), told("event InvalidCatalog")],
        [1, 0],
        "{calls:#?}"
    );
    fake.put("workflowruns", run(&json!({"fqsn": "f5.some.service"})));
    passes(3).await;
    assert!(
        message(&fake).contains("of the operator's memory"),
        "{}",
        message(&fake)
    );
}
