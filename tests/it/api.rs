//! The types of the custom resources: what comes in goes out again, what is poisoned is set
//! apart, and a service is checked as a template is.

use apscli::api::condition::{self, News};
use apscli::api::service::{ParamDecl, Service, ServiceSpec, ServiceVersion, check, declared};
use apscli::api::workflow_run::{
    Counts, NodePhase, NodeStatus, WorkflowRun, WorkflowRunSpec, WorkflowRunStatus,
};
use apscli::api::{Duration, elapsed, from_value, to_value};
use apscli::engine::event::ReasonWord;
use apscli::engine::state::Phase;
use apscli::template::Params;
use apscli::value::Value as Ours;
use jiff::Timestamp;
use kube::core::{DeserializeGuard, ObjectList};
use kube::{Resource, ResourceExt};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::program::Place;

fn spec(value: Value) -> ServiceSpec {
    serde_json::from_value(value).unwrap()
}

fn decls(value: Value) -> Vec<ParamDecl> {
    serde_json::from_value(value).unwrap()
}

fn params(value: Value) -> Params {
    serde_json::from_value(value).unwrap()
}

#[test]
fn every_version_of_a_service_is_checked() {
    let good = json!({"a": {"action": {"type": "cmd", "cmd": "true"}, "param": {"n": "$n"}}});
    let cyclic = "a:\n  prev_nodes: [b]\n  action: {type: cmd, cmd: x}\nb:\n  prev_nodes: [a]\n  action: {type: cmd, cmd: x}\n";
    let checked = check(&spec(json!({
        "fqsn": "x.y",
        "defaultVersion": "1",
        "versions": [
            {"version": "1", "template": good},
            {"version": "2", "templateText": good.to_string()},
            {"version": "3", "templateText": cyclic},
            {"version": "4", "templateText": "{\"a\": "},
            {"version": "5", "template": good, "params": [{"name": "m"}, {"name": "k", "default": 1}]},
            {"version": "6", "template": {}},
        ],
    })));
    assert_eq!(checked.problems, Vec::<String>::new());
    let [one, two, three, four, five, six] = checked.versions.as_slice() else {
        panic!("{checked:?}");
    };
    assert_eq!((one.ready, one.nodes, &one.message), (true, Some(1), &None));
    // Text or object: the same template has the same hash.
    assert_eq!(one.hash.as_ref().unwrap().len(), 64);
    assert_eq!(one.hash, two.hash);
    assert!(!three.ready && three.nodes.is_none() && three.hash.is_some());
    let cycle = three.message.as_deref().unwrap();
    assert!(cycle.starts_with("x.y version 3:1:1: "), "{cycle}");
    assert_eq!(
        four.message.as_deref(),
        Some(
            "x.y version 4:1:7: the text ends here; expected a value (object, list, \"text\", number, true, false, null, $parameter)"
        )
    );
    assert_eq!(four.hash, None);
    assert_eq!(
        five.message.as_deref(),
        Some("x.y version 5: a.param: there is no parameter `n`; the parameters are k, m")
    );
    assert_eq!(
        six.message.as_deref(),
        Some("x.y version 6: there are no nodes; expected at least one")
    );
    let ready = checked.ready();
    assert_eq!((ready.kind, ready.holds.as_str()), ("Ready", "False"));
    assert_eq!(ready.reason, "Invalid");
    assert!(
        ready.message.starts_with(cycle.lines().next().unwrap())
            && ready.message.ends_with(" more problems)"),
        "{}",
        ready.message
    );
}

#[test]
fn the_words_are_those_of_validate() {
    let text = "a:\n  action: {type: cmd, cmd: 'x'}\n  when: b\nb: {prev_nodes: [c], action: {type: api}}\n";
    let place = Place::new();
    place.write("t.yaml", text);
    let said = place.apscli(&["validate", "t.yaml"]);
    let checked = check(&spec(json!({
        "fqsn": "x.y", "versions": [{"version": "1", "templateText": text}],
    })));
    let message = checked.versions[0].message.clone().unwrap();
    assert_eq!(
        message.replace("x.y version 1:", "t.yaml:"),
        said.stderr.trim_end().replace("error: ", "")
    );
    assert!(message.lines().count() >= 3, "{message}");
}

#[test]
fn a_service_is_checked_as_a_whole_too() {
    let one = json!({"a": {"action": {"type": "cmd", "cmd": "true"}}});
    let version = |name: &str| json!({"version": name, "template": one});
    let checked = |fqsn: &str, default: Option<&str>, versions: Value| {
        check(&spec(
            json!({"fqsn": fqsn, "defaultVersion": default, "versions": versions}),
        ))
    };
    let good = checked("a.b", None, json!([version("1")]));
    assert!(good.is_ready());
    let ready = good.ready();
    assert_eq!(
        (
            ready.holds.as_str(),
            ready.reason.as_str(),
            ready.message.as_str()
        ),
        ("True", "Valid", "version 1 can be run")
    );
    let bad = checked("../b", Some("3"), json!([version("1"), version("1")]));
    assert_eq!(
        bad.problems,
        [
            "`../b` is no fully qualified service name: a segment is empty; expected category.service, as oracle.peo.cloud.vm_allocation",
            "defaultVersion is none of the versions: it has no version 3; its versions are 1, 1",
            "version 1 stands twice",
        ]
    );
    assert!(!bad.is_ready() && bad.versions.iter().all(|version| version.ready));
    assert!(bad.ready().message.ends_with("(and 2 more problems)"));
    let none = checked("a.b", None, json!([]));
    assert_eq!(
        none.problems,
        ["there are no versions; expected at least one"]
    );
    // Both, or neither: the API server refuses that, and an older object may have it.
    let both = checked(
        "a.b",
        None,
        json!([{"version": "1", "template": one, "templateText": "a"}, {"version": "2"}]),
    );
    for version in &both.versions {
        let message = version.message.as_deref().unwrap();
        assert!(
            message.ends_with("expected exactly one of template and templateText"),
            "{message}"
        );
    }
    let long = "x".repeat(100_000);
    let long = checked(
        "a.b",
        None,
        json!([{"version": "1", "template": {long: 1}}]),
    );
    assert!(long.versions[0].message.as_ref().unwrap().len() <= 2048);
}

#[test]
fn versions_are_found() {
    let versions = |default: Option<&str>, names: &[&str]| ServiceSpec {
        fqsn: "a.b".to_owned(),
        default_version: default.map(str::to_owned),
        versions: names
            .iter()
            .map(|name| ServiceVersion {
                version: (*name).to_owned(),
                ..ServiceVersion::default()
            })
            .collect(),
        ..ServiceSpec::default()
    };
    let found = |spec: &ServiceSpec, asked: Option<&str>| {
        spec.version(asked).map(|found| found.version.clone())
    };
    let two = versions(Some("1.10"), &["1.1", "1.10"]);
    assert_eq!(found(&two, None).as_deref(), Ok("1.10"));
    assert_eq!(found(&two, Some("1.1")).as_deref(), Ok("1.1"));
    assert_eq!(
        found(&two, Some("1")),
        Err("it has no version 1; its versions are 1.1, 1.10".to_owned())
    );
    assert_eq!(found(&versions(None, &["7"]), None).as_deref(), Ok("7"));
    assert_eq!(
        found(&versions(None, &["1", "2"]), None),
        Err("it has no defaultVersion; its versions are 1, 2".to_owned())
    );
}

#[test]
fn parameters_are_checked_against_their_declarations() {
    let decls = decls(json!([
        {"name": "ip", "type": "string", "enum": ["a", "b"], "default": "a"},
        {"name": "n", "type": "integer"},
        {"name": "x", "type": "number", "default": 0.5, "enum": [0.5, 1]},
        {"name": "on", "type": "boolean", "default": true},
        {"name": "l", "type": "list", "default": []},
        {"name": "o", "type": "object", "default": {"k": 1}},
        {"name": "any"},
    ]));
    assert_eq!(
        declared(&decls, &params(json!({"n": 3, "any": null}))),
        Ok(params(
            json!({"ip": "a", "n": 3, "x": 0.5, "on": true, "l": [], "o": {"k": 1}, "any": null})
        ))
    );
    let given = json!({"ip": "b", "n": -3, "x": 1.0, "any": [1]});
    assert!(declared(&decls, &params(given)).is_ok());
    let given = json!({
        "ip": "secret", "n": "3", "x": 2, "on": "yes", "l": {}, "o": [], "more": 1, "less": 2,
    });
    assert_eq!(
        declared(&decls, &params(given)),
        Err(vec![
            "parameter `ip`: found a text that is none of its enum; expected one of \"a\", \"b\""
                .to_owned(),
            "parameter `n`: found a text; expected a number without a fraction".to_owned(),
            "parameter `x`: found a number that is none of its enum; expected one of 0.5, 1"
                .to_owned(),
            "parameter `on`: found a text; expected true or false".to_owned(),
            "parameter `l`: found an object; expected a list".to_owned(),
            "parameter `o`: found a list; expected an object".to_owned(),
            "parameter `any` is not given and has no default; expected a value".to_owned(),
            "there is no parameter `less`; the parameters are any, ip, l, n, o, on, x".to_owned(),
            "there is no parameter `more`; the parameters are any, ip, l, n, o, on, x".to_owned(),
        ])
    );
    let fraction = declared(&decls, &params(json!({"n": 1.5, "any": 1})));
    assert_eq!(
        fraction,
        Err(vec![
            "parameter `n`: found a number; expected a number without a fraction".to_owned()
        ])
    );
    // Nothing declared: anything goes.
    let given = params(json!({"what": ["ever"]}));
    assert_eq!(declared(&[], &given), Ok(given));
}

#[test]
fn declarations_are_checked_too() {
    let checked = check(&spec(json!({
        "fqsn": "a.b",
        "versions": [{
            "version": "1",
            "template": {"a": {"action": {"type": "cmd", "cmd": "$p"}}},
            "params": [
                {"name": "p", "type": "integer", "default": "x"},
                {"name": "p", "required": true, "default": 1},
                {"name": "q", "required": false},
                {"name": "r", "type": "string", "enum": ["a", 1]},
                {"name": "s", "default": 3, "enum": [1, 2]},
                {"name": "t", "required": true},
                {"name": "u", "required": false, "default": 1},
            ],
        }],
    })));
    let message = checked.versions[0].message.as_deref().unwrap();
    assert_eq!(
        message.lines().collect::<Vec<_>>(),
        [
            "a.b version 1: parameter `p` has a wrong default: found a text; expected a number without a fraction",
            "a.b version 1: parameter `p` is declared twice",
            "a.b version 1: parameter `p` is required and has a default; expected one of the two",
            "a.b version 1: parameter `q` is not required and has no default; expected a default",
            "a.b version 1: parameter `r` has a number in its enum; expected a text only",
            "a.b version 1: parameter `s` has a wrong default: found a number that is none of its enum; expected one of 1, 2",
        ]
    );
}

/// What a default makes of the template is checked now, what a run must give is not.
#[test]
fn defaults_are_filled_in_when_a_service_is_checked() {
    let message = |template: Value, params: Value| {
        let checked = check(&spec(json!({
            "fqsn": "a.b", "versions": [{"version": "1", "template": template, "params": params}],
        })));
        checked.versions[0].message.clone()
    };
    let template = json!({
        "a": {"action": {"type": "cmd", "cmd": "true"}, "timeout": "$limit"},
        "b": {"prev_nodes": "$before", "action": {"type": "cmd", "cmd": "$HOME/x $limit"},
              "decision_expr": "a == $code && a == $other"},
    });
    let decl = |name: &str, default: Value| json!({"name": name, "default": default});
    let all = |limit: &str, before: &str, code: Value| {
        json!([
            decl("limit", json!(limit)),
            decl("before", json!([before])),
            decl("code", code),
            {"name": "other"},
        ])
    };
    assert_eq!(message(template.clone(), all("5m", "a", json!(1))), None);
    assert_eq!(
        message(template.clone(), all("soon", "a", json!(1))).as_deref(),
        Some(
            "a.b version 1: a.timeout: `soon` is no length of time; expected seconds, or as 30s, 5m, 1h30m"
        )
    );
    let wrong = message(template.clone(), all("5m", "z", json!(1))).unwrap();
    assert!(wrong.contains("`z`"), "{wrong}");
    // Without a default, all of it waits for the run.
    let open = json!([{"name": "limit"}, {"name": "before"}, {"name": "code"}, {"name": "other"}]);
    assert_eq!(message(template.clone(), open), None);
    let missing = message(template, json!([{"name": "limit"}, {"name": "code"}])).unwrap();
    assert_eq!(
        missing.lines().collect::<Vec<_>>(),
        [
            "a.b version 1: b.prev_nodes: there is no parameter `before`; the parameters are code, limit",
            "a.b version 1: b.prev_nodes: found a text; expected a list of node names",
        ]
    );
}

#[test]
fn a_condition_keeps_the_time_of_its_last_change() {
    let at = |second: i64| Timestamp::from_second(second).unwrap();
    let mut all = Vec::new();
    let news =
        |holds: bool, message: &str| News::new(condition::RECONCILING, holds, "Running", message);
    assert!(condition::set(&mut all, news(true, "1/4"), Some(1), at(10)));
    assert!(condition::set(&mut all, news(true, "2/4"), Some(1), at(20)));
    assert!(!condition::set(
        &mut all,
        news(true, "2/4"),
        Some(1),
        at(30)
    ));
    assert_eq!(all[0].last_transition_time.0, at(10));
    assert_eq!(all[0].message, "2/4");
    assert!(condition::set(&mut all, news(true, "2/4"), Some(2), at(40)));
    assert_eq!(all[0].last_transition_time.0, at(10));
    assert!(condition::is_true(&all, condition::RECONCILING));
    assert!(condition::set(
        &mut all,
        news(false, "2/4"),
        Some(2),
        at(50)
    ));
    assert_eq!(all[0].last_transition_time.0, at(50));
    assert!(!condition::is_true(&all, condition::RECONCILING));
    let failed = News::new(
        condition::FAILED,
        true,
        "9 lives, b::c!,",
        "é".repeat(40_000),
    );
    assert!(condition::set(&mut all, failed, None, at(60)));
    assert_eq!(all.len(), 2);
    // As the API takes them: ^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$ and 32768 bytes.
    assert_eq!(all[1].reason, "lives,b::c");
    assert!(all[1].message.len() <= 32_768 && all[1].message.ends_with('…'));
    let nameless = News::new(condition::FAILED, true, "…", "");
    assert!(condition::set(&mut all, nameless, None, at(70)));
    assert_eq!(all[1].reason, "Unknown");
    assert!(condition::clear(&mut all, condition::FAILED));
    assert!(!condition::clear(&mut all, condition::FAILED));
    assert_eq!(all.len(), 1);
}

#[test]
fn a_poisoned_object_is_set_apart() {
    let run = |name: &str, spec: Value| json!({"metadata": {"name": name}, "spec": spec});
    let list = json!({
        "apiVersion": "apscli.dev/v1alpha1",
        "kind": "WorkflowRunList",
        "metadata": {"resourceVersion": "7"},
        "items": [
            run("good", json!({"fqsn": "a.b"})),
            run("word", json!({"fqsn": "a.b", "onLost": "Perhaps"})),
            run("kind", json!({"template": [1]})),
            run("newer", json!({"fqsn": "a.b", "fieldOfLater": {"x": 1}})),
            run("wild", json!({"fqsn": "..", "timeout": "never", "parallelism": 0})),
        ],
    });
    let list: ObjectList<DeserializeGuard<WorkflowRun>> =
        serde_json::from_str(&list.to_string()).unwrap();
    let found: Vec<(String, Result<(), String>)> = list
        .items
        .iter()
        .map(|item| {
            let read = item.0.as_ref().map(|_| ()).map_err(ToString::to_string);
            (item.meta().name.clone().unwrap(), read)
        })
        .collect();
    let told = |name: &str, why: &str| (name.to_owned(), Err(why.to_owned()));
    let fine = |name: &str| (name.to_owned(), Ok(()));
    assert_eq!(
        found,
        [
            fine("good"),
            told(
                "word",
                "Unknown variant Perhaps. Expected one of Fail, Retry"
            ),
            told("kind", "found `[1]`; expected an object"),
            fine("newer"),
            fine("wild"),
        ]
    );
    let wild = list.items[4].0.as_ref().unwrap();
    let timeout = wild.spec.timeout.as_ref().unwrap().length();
    assert!(
        timeout
            .unwrap_err()
            .contains("`never` is no length of time")
    );
}

#[test]
fn phases_and_counts() {
    let mut counts = Counts::default();
    for phase in Phase::ALL {
        let there = NodePhase::from(phase);
        assert_eq!(Phase::from(there), phase);
        assert_eq!(json!(there), json!(phase.to_string()));
        counts.add(there);
    }
    assert_eq!((counts.total, counts.finished()), (7, 5));
    assert_eq!(
        serde_json::to_value(counts).unwrap(),
        json!({"total": 7, "pending": 1, "running": 1, "succeeded": 1, "failed": 1, "error": 1, "cancelled": 1, "skipped": 1})
    );
    let reason = |word: &str| NodeStatus {
        reason: Some(word.to_owned()),
        ..NodeStatus::default()
    };
    assert_eq!(
        reason("ConditionFalse").reason_word(),
        Some(ReasonWord::ConditionFalse)
    );
    assert_eq!(reason("ImagePullBackOff").reason_word(), None);
    assert_eq!(NodeStatus::default().reason_word(), None);
}

#[test]
fn lengths_of_time_for_people() {
    let shown = |millis| elapsed(std::time::Duration::from_millis(millis));
    assert_eq!(shown(999), "0s");
    assert_eq!(shown(12_000), "12s");
    assert_eq!(shown(185_500), "3m5s");
    assert_eq!(shown(3_602_000), "1h0m2s");
}

#[test]
fn numbers_keep_their_digits() {
    let ours: Ours =
        serde_json::from_str("[1.10, 123456789012345678901234567890, -3, 1.5]").unwrap();
    assert_eq!(
        from_value(&ours),
        json!(["1.10", "123456789012345678901234567890", -3, 1.5])
    );
    assert_eq!(
        to_value(&json!({"b": [null, 1], "a": true})).to_string(),
        r#"{"a":true,"b":[null,1]}"#
    );
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        // Such as have few digits: the last bit of others may change on the way through text.
        any::<i32>().prop_map(|eighths| json!(f64::from(eighths) / 8.0)),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(".{0,4}", inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// An object of these fields, each there or not.
fn some_of(fields: Vec<(&'static str, BoxedStrategy<Value>)>) -> BoxedStrategy<Value> {
    let fields: Vec<_> = fields
        .into_iter()
        .map(|(name, value)| {
            prop::option::of(value)
                .prop_map(move |value| value.map(|value| (name.to_owned(), value)))
        })
        .collect();
    fields
        .prop_map(|fields| Value::Object(fields.into_iter().flatten().collect()))
        .boxed()
}

fn with(object: BoxedStrategy<Value>, more: Value) -> BoxedStrategy<Value> {
    object
        .prop_map(move |mut object| {
            let members = object.as_object_mut().unwrap();
            members.extend(more.as_object().unwrap().clone());
            object
        })
        .boxed()
}

fn text() -> BoxedStrategy<Value> {
    ".{0,12}".prop_map(Value::from).boxed()
}

fn whole(most: u32) -> BoxedStrategy<Value> {
    (0..=most).prop_map(Value::from).boxed()
}

fn yes_or_no() -> BoxedStrategy<Value> {
    any::<bool>().prop_map(Value::from).boxed()
}

fn one_of(words: &'static [&'static str]) -> BoxedStrategy<Value> {
    prop::sample::select(words).prop_map(Value::from).boxed()
}

/// A list that is not empty: an empty one and none are the same.
fn list(item: BoxedStrategy<Value>) -> BoxedStrategy<Value> {
    prop::collection::vec(item, 1..4)
        .prop_map(Value::from)
        .boxed()
}

fn map(value: BoxedStrategy<Value>) -> BoxedStrategy<Value> {
    prop::collection::btree_map(".{0,6}", value, 1..4)
        .prop_map(|members| Value::Object(members.into_iter().collect()))
        .boxed()
}

fn object() -> BoxedStrategy<Value> {
    prop::collection::btree_map(".{0,6}", any_json(), 0..4)
        .prop_map(|members| Value::Object(members.into_iter().collect()))
        .boxed()
}

fn time() -> BoxedStrategy<Value> {
    (0_i64..4_000_000_000)
        .prop_map(|second| json!(Timestamp::from_second(second).unwrap().to_string()))
        .boxed()
}

fn micro_time() -> BoxedStrategy<Value> {
    (0_i64..4_000_000_000, 0_i64..1_000_000)
        .prop_map(|(second, micro)| {
            let at = Timestamp::from_microsecond(second * 1_000_000 + micro).unwrap();
            json!(format!("{at:.6}"))
        })
        .boxed()
}

fn any_node() -> BoxedStrategy<Value> {
    let node = some_of(vec![
        ("returnCode", whole(1)),
        ("attempt", whole(u32::MAX)),
        ("startTime", micro_time()),
        ("endTime", micro_time()),
        ("executor", one_of(&["pod", "process"])),
        (
            "pod",
            with(some_of(vec![("uid", text())]), json!({"name": "p"})),
        ),
        ("exitCode", any::<i64>().prop_map(Value::from).boxed()),
        ("signal", whole(64)),
        // Null is what an absent field is.
        (
            "output",
            any_json().prop_filter("null", |it| !it.is_null()).boxed(),
        ),
        ("errMsg", text()),
        ("errCode", whole(9)),
        ("info", object()),
        ("truncated", map(any::<u64>().prop_map(Value::from).boxed())),
        ("reason", text()),
        ("message", text()),
    ]);
    with(node, json!({"name": "a", "phase": "Running"}))
}

fn any_status() -> BoxedStrategy<Value> {
    some_of(vec![
        ("phase", one_of(&["Pending", "Suspended", "Error"])),
        ("observedGeneration", whole(9)),
        ("progress", text()),
        ("message", text()),
        ("returnCode", whole(1)),
        (
            "resolved",
            some_of(vec![
                ("fqsn", text()),
                ("version", text()),
                ("hash", text()),
                ("source", text()),
                ("snapshot", list(text())),
            ]),
        ),
        (
            "conditions",
            list(Just(json!({
                "type": "Failed", "status": "True", "reason": "R", "message": "",
                "lastTransitionTime": "2026-01-02T03:04:05Z", "observedGeneration": 3,
            })).boxed()),
        ),
        ("startTime", time()),
        ("completionTime", time()),
        ("duration", text()),
        (
            "counts",
            whole(u32::MAX)
                .prop_map(|n| json!({"total": n, "pending": 1, "running": 2, "succeeded": 3, "failed": 4, "error": 5, "cancelled": 6, "skipped": 7}))
                .boxed(),
        ),
        ("cancelCause", one_of(&["Asked", "Timeout"])),
        ("pages", whole(100)),
        ("nodes", list(any_node())),
    ])
}

fn any_spec() -> BoxedStrategy<Value> {
    let pod = some_of(vec![
        ("nodeSelector", map(text())),
        (
            "tolerations",
            list(some_of(vec![
                ("key", text()),
                ("tolerationSeconds", whole(9)),
            ])),
        ),
        (
            "resources",
            some_of(vec![("limits", map(text())), ("requests", map(text()))]),
        ),
        (
            "imagePullPolicy",
            one_of(&["Always", "IfNotPresent", "Never"]),
        ),
        ("imagePullSecrets", list(Just(json!({"name": "s"})).boxed())),
        ("priorityClassName", text()),
        ("labels", map(text())),
        ("annotations", map(text())),
    ]);
    let config_map = with(
        some_of(vec![("optional", yes_or_no())]),
        json!({"name": "c"}),
    );
    some_of(vec![
        ("fqsn", text()),
        ("version", text()),
        ("template", object()),
        (
            "templateFrom",
            list(Just(json!({"configMap": "c", "key": "k"})).boxed()),
        ),
        ("params", object()),
        (
            "paramsFrom",
            list(some_of(vec![
                ("configMap", config_map),
                (
                    "secret",
                    Just(json!({"name": "s", "key": "k", "param": "p"})).boxed(),
                ),
            ])),
        ),
        ("executor", one_of(&["pod", "process"])),
        ("parallelism", whole(u32::MAX)),
        ("timeout", text()),
        ("suspend", yes_or_no()),
        ("cancel", yes_or_no()),
        ("onLost", one_of(&["Fail", "Retry"])),
        ("ttlSecondsAfterFinished", whole(u32::MAX)),
        ("podRetention", one_of(&["Always", "OnFailure", "Never"])),
        ("serviceAccountName", text()),
        ("image", text()),
        ("pod", pod),
    ])
}

/// Whether an object goes through its type unchanged, read as the client reads it: from text,
/// and by way of the guard, which buffers.
fn through<K>(object: &Value) -> Result<(), TestCaseError>
where
    K: Resource + Clone + serde::de::DeserializeOwned + serde::Serialize,
{
    let text = object.to_string();
    let plain: K = serde_json::from_str(&text).unwrap();
    let guarded: DeserializeGuard<K> = serde_json::from_str(&text).unwrap();
    for read in [plain, guarded.0.unwrap()] {
        prop_assert_eq!(&serde_json::to_value(&read).unwrap(), object);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_run_goes_through_its_type_unchanged(spec in any_spec(), status in any_status()) {
        through::<WorkflowRun>(&json!({
            "apiVersion": "apscli.dev/v1alpha1",
            "kind": "WorkflowRun",
            "metadata": {"name": "r", "generation": 1},
            "spec": spec,
            "status": status,
        }))?;
        let typed: WorkflowRunSpec = serde_json::from_value(spec.clone()).unwrap();
        prop_assert_eq!(serde_json::to_value(&typed).unwrap(), spec);
        let typed: WorkflowRunStatus = serde_json::from_value(status.clone()).unwrap();
        prop_assert_eq!(serde_json::to_value(&typed).unwrap(), status);
    }

    #[test]
    fn a_service_goes_through_its_type_unchanged(
        template in object(),
        default in any_json().prop_filter("null", |it| !it.is_null()),
        allowed in list(any_json().boxed()),
    ) {
        let spec = json!({
            "fqsn": "a.b",
            "description": "d",
            "defaultVersion": "1",
            "versions": [
                {"version": "1", "description": "d", "release": "r", "template": template, "params": [
                    {"name": "p", "type": "list", "required": false, "default": default, "description": "d", "enum": allowed},
                ]},
                {"version": "2", "templateText": "t"},
            ],
            "scripts": [{"configMap": "c", "path": "p", "mode": 292}],
            "image": "i",
            "executor": "process",
            "pod": {"labels": {"a": "b"}},
        });
        let status = json!({
            "observedGeneration": 1,
            "versions": [{"version": "1", "hash": "h", "nodes": 3, "ready": true, "message": "m"}],
        });
        through::<Service>(&json!({
            "apiVersion": "apscli.dev/v1alpha1",
            "kind": "Service",
            "metadata": {"name": "s"},
            "spec": spec,
            "status": status,
        }))?;
        // Whatever stands in a template, the check comes back.
        let service: Service = serde_json::from_value(json!({
            "apiVersion": "apscli.dev/v1alpha1", "kind": "Service", "metadata": {"name": "s"}, "spec": spec,
        })).unwrap();
        prop_assert_eq!(service.name_any(), "s");
        prop_assert_eq!(check(&service.spec).versions.len(), 2);
    }

    /// What the API server takes as a length of time is one, unless it is zero.
    #[test]
    fn lengths_that_are_taken_are_read(text in "([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}(\\.[0-9]{1,3})?s)?") {
        // The generator knows no anchors, and no text of its own.
        prop_assert_eq!(
            Duration::PATTERN,
            r"^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}(\.[0-9]{1,3})?s)?$"
        );
        let is_zero = !text.contains(|c: char| ('1'..='9').contains(&c));
        prop_assert_eq!(Duration(text.clone()).length().is_err(), is_zero, "{}", text);
    }
}
