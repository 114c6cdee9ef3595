//! Conversations in which something goes wrong: answers that are lost or late, refusals, objects
//! that are somebody else's, watches that lie.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::options::Election;
use super::fake::{Act, Gone};
use super::*;
use crate::engine::name::Attempt;
use crate::executor::pod::build::pod_name;

const QUOTA: Act = Act::Refuse(
    403,
    "Forbidden",
    "pods \"x\" is forbidden: exceeded quota: small",
);

fn one() -> Value {
    run_of(&json!({"a": node(&[])}))
}

/// A run that copies something before it begins.
fn pinned(fake: &Fake) -> Value {
    fake.put(
        "configmaps",
        json!({"metadata": {"name": "p"}, "data": {"x": "1"}}),
    );
    run(&json!({"template": {"a": node(&[])}, "paramsFrom": [{"configMap": {"name": "p"}}]}))
}

#[tokio::test(start_paused = true)]
async fn a_create_whose_answer_is_lost_makes_no_second_pod() {
    let fake = started().await;
    fake.rule("create pod a/1", 1, Act::Lose);
    fake.put("workflowruns", one());
    passes(1).await;
    assert_eq!(
        fake.calls(),
        ["create pod a/1", "get pod a/1", "status Running 0/1"]
    );
    fake.pod_ends("a/1", ok());
    passes(1).await;
    assert_eq!(fake.calls(), ["status Succeeded 1/1", "event Succeeded"]);
    silence(&fake).await;
    assert_eq!(fake.created()["a/1"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_found_though_a_full_quota_hides_it() {
    let fake = started().await;
    fake.rule("create pod a/1", 1, Act::Lose);
    fake.rule("create pod a/1", 1000, QUOTA);
    fake.put("workflowruns", one());
    passes(1).await;
    fake.pod_ends("a/1", ok());
    passes(1).await;
    assert_eq!(phase(&fake), "Succeeded");
    fake.calls();
    silence(&fake).await;
}

/// What somebody else puts where a run's pod is to be.
pub(super) fn squatter(fake: &Fake, owner: Option<&str>, decision: Option<&str>) -> Value {
    let uid = fake.run()["metadata"]["uid"].as_str().unwrap().to_owned();
    let name = pod_name(&uid, &"a".parse().unwrap(), Attempt::FIRST);
    let owners = owner.map(|uid| {
        json!([{"apiVersion": "apscli.dev/v1alpha1", "kind": "WorkflowRun", "name": "r", "uid": uid, "controller": true}])
    });
    json!({"metadata": {
        "name": name,
        "labels": {"app.kubernetes.io/managed-by": "apscli", "apscli.dev/run-uid": uid},
        "annotations": {"apscli.dev/node": "a", "apscli.dev/attempt": "1", "apscli.dev/decision": decision.unwrap_or("")},
        "ownerReferences": owners.unwrap_or(json!([])),
    }, "spec": {"containers": []}})
}

#[tokio::test(start_paused = true)]
async fn a_pod_under_our_name_that_is_not_ours_is_left_alone() {
    for (owner, decision) in [(false, None), (true, Some("another")), (true, None)] {
        let fake = started().await;
        fake.rule(
            "create pod a/1",
            1,
            Act::Refuse(429, "TooManyRequests", "later"),
        );
        fake.put("workflowruns", one());
        rest().await;
        let uid = fake.run()["metadata"]["uid"].as_str().unwrap().to_owned();
        let squatter = fake.put(
            "pods",
            squatter(&fake, owner.then_some(uid.as_str()), decision),
        );
        rest().await;
        fake.calls();
        passes(1).await;
        let calls = fake.calls();
        assert_eq!(
            calls[..2],
            ["create pod a/1 -> 409", "get pod a/1"],
            "{calls:#?}"
        );
        assert_eq!(phases(&fake), ["a Error NotStarted"]);
        assert!(
            message(&fake).contains("was not made by this run"),
            "{}",
            message(&fake)
        );
        // Whatever becomes of it.
        fake.pod_ends("a/1", ok());
        silence(&fake).await;
        assert_eq!(phase(&fake), "Failed");
        assert_eq!(
            fake.pod("a/1").unwrap()["metadata"]["uid"],
            squatter["metadata"]["uid"]
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancel_in_doubt_deletes_only_what_is_ours() {
    let fake = started().await;
    fake.rule(
        "create pod a/1",
        1,
        Act::Refuse(500, "InternalError", "etcd"),
    );
    fake.put("workflowruns", one());
    rest().await;
    fake.put("pods", squatter(&fake, None, None));
    fake.calls();
    fake.merge("workflowruns", "r", &json!({"spec": {"cancel": true}}));
    passes(1).await;
    let calls = fake.calls();
    assert!(
        !calls.iter().any(|it| it.starts_with("delete")),
        "{calls:#?}"
    );
    assert_eq!(phase(&fake), "Cancelled");
    silence(&fake).await;
}

#[tokio::test(start_paused = true)]
async fn a_cancel_in_doubt_deletes_what_was_made() {
    let fake = started().await;
    fake.rule("create pod a/1", 1, Act::Lose);
    fake.put("workflowruns", one());
    rest().await;
    fake.merge("workflowruns", "r", &json!({"spec": {"cancel": true}}));
    passes(1).await;
    let calls = fake.calls();
    assert!(calls.iter().any(|it| it == "delete pod a/1"), "{calls:#?}");
    assert_eq!(phase(&fake), "Cancelled");
    assert_eq!(fake.count("pods"), 0);
    silence(&fake).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_comes_after_all_is_deleted_again() {
    for run_is_over in [true, false] {
        let fake = started().await;
        fake.rule("create pod a/1", 1, Act::Haunt(Duration::from_secs(5)));
        let template = if run_is_over {
            json!({"a": node(&[])})
        } else {
            json!({"a": node(&[]), "z": node(&[])})
        };
        fake.put("workflowruns", run_of(&template));
        rest().await;
        if !run_is_over {
            fake.pod_runs("z/1");
        }
        fake.merge("workflowruns", "r", &json!({"spec": {"cancel": true}}));
        passes(4).await;
        assert_eq!(phase(&fake) == "Cancelled", run_is_over);
        fake.calls();
        passes(2).await;
        let calls = fake.calls();
        assert_eq!(calls[0], "create pod a/1, late");
        assert!(calls.contains(&"delete pod a/1".to_owned()), "{calls:#?}");
        assert!(calls.contains(&"strip pod a/1".to_owned()), "{calls:#?}");
        assert!(fake.pod("a/1").is_none());
        if !run_is_over {
            fake.pod_stopped("z/1");
            passes(2).await;
        }
        assert_eq!(phase(&fake), "Cancelled");
        fake.calls();
        silence(&fake).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_create_that_is_tried_again_is_called_off_by_a_cancel() {
    let fake = started().await;
    fake.rule("create pod", 1000, QUOTA);
    fake.put("workflowruns", one());
    passes(2).await;
    fake.calls();
    fake.merge("workflowruns", "r", &json!({"spec": {"cancel": true}}));
    rest().await;
    assert_eq!(
        fake.calls(),
        [
            "status Running 0/1",
            "status Cancelled 1/1",
            "event Cancelled"
        ]
    );
    fake.no_rules();
    silence(&fake).await;
    assert_eq!(fake.count("pods"), 0);
    assert_eq!(phases(&fake), ["a Cancelled Cancelled"]);
}

#[tokio::test(start_paused = true)]
async fn a_quota_is_waited_for() {
    let fake = started().await;
    fake.rule("create pod a/1", 4, QUOTA);
    fake.put("workflowruns", one());
    passes(1).await;
    assert_eq!(phases(&fake), ["a Running NotCreated"]);
    assert_eq!(
        message(&fake),
        "a waits: NotCreated: pods \"x\" is forbidden: exceeded quota: small"
    );
    passes(5).await;
    assert_eq!(fake.created()["a/1"], 1);
    fake.pod_ends("a/1", ok());
    passes(1).await;
    assert_eq!(phase(&fake), "Succeeded");
    assert_eq!(entry(&fake, "a")["reason"], Value::Null);
    fake.calls();
    silence(&fake).await;
}

#[tokio::test(start_paused = true)]
async fn a_right_that_is_missing_can_be_given() {
    let fake = started().await;
    let no = "pods is forbidden: User \"apscli\" cannot create resource \"pods\"";
    fake.rule("create pod a/1", 1000, Act::Refuse(403, "Forbidden", no));
    fake.put("workflowruns", one());
    passes(120).await;
    let calls = fake.calls();
    assert!(
        calls.len() < 25,
        "{} calls in two minutes: {calls:#?}",
        calls.len()
    );
    assert!(
        message(&fake).contains("cannot create resource"),
        "{}",
        message(&fake)
    );
    fake.no_rules();
    passes(20).await;
    fake.pod_ends("a/1", ok());
    passes(1).await;
    assert_eq!(phase(&fake), "Succeeded");
    fake.calls();
    silence(&fake).await;
}

#[tokio::test(start_paused = true)]
async fn what_admission_will_never_take_ends_the_node() {
    for (code, reason, text) in [
        (
            403,
            "Forbidden",
            "pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\": runAsNonRoot",
        ),
        (
            422,
            "Invalid",
            "Pod \"x\" is invalid: spec.containers[0].image: Required value",
        ),
        (
            400,
            "BadRequest",
            "admission webhook \"policy\" denied the request",
        ),
        (
            403,
            "Forbidden",
            "admission webhook \"policy\" denied the request: no such image here",
        ),
        (413, "RequestEntityTooLarge", "limit is 3145728"),
    ] {
        let fake = started().await;
        fake.rule("create pod a/1", 1, Act::Refuse(code, reason, text));
        fake.put("workflowruns", one());
        passes(1).await;
        assert_eq!(phases(&fake), ["a Error NotStarted"]);
        assert_eq!(message(&fake), format!("a: {text}"));
        assert_eq!(phase(&fake), "Failed");
        fake.calls();
        silence(&fake).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_status_on_an_old_version_is_derived_again() {
    let fake = started().await;
    fake.rule("status", 1, Act::Stall(Duration::from_millis(50)));
    fake.put(
        "workflowruns",
        run_of(&json!({"a": node(&[]), "b": node(&["a"])})),
    );
    rest().await;
    fake.hold_watch("workflowruns");
    fake.merge("workflowruns", "r", &json!({"spec": {"suspend": true}}));
    passes(1).await;
    let calls = fake.calls();
    assert_eq!(
        calls,
        [
            "create pod a/1",
            "status -> 409",
            "get workflowruns r",
            "status Suspended 0/2",
            "event Suspended"
        ]
    );
    fake.release_watch("workflowruns");
    fake.pod_ends("a/1", ok());
    passes(1).await;
    assert_eq!(fake.calls(), ["status Suspended 1/2"]);
    silence(&fake).await;
    assert_eq!(fake.run()["status"]["observedGeneration"], 2);
}

#[tokio::test(start_paused = true)]
async fn a_status_whose_answer_is_lost_is_told_of_once() {
    let fake = started().await;
    fake.rule("status", 1, Act::Lose);
    fake.put("workflowruns", one());
    passes(2).await;
    let calls = fake.calls();
    assert_eq!(calls, ["create pod a/1", "status Running 0/1"]);
    fake.pod_ends("a/1", ok());
    passes(2).await;
    assert_eq!(fake.calls(), ["status Succeeded 1/1", "event Succeeded"]);
    silence(&fake).await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_faster_than_the_answer_hides_nothing() {
    let fake = started().await;
    fake.rule("status", 1, Act::Late(Duration::from_millis(50)));
    fake.put("workflowruns", one());
    passes(1).await;
    assert_eq!(fake.calls(), ["create pod a/1", "status Running 0/1"]);
    // The spec changes between our own write and its answer.
    fake.rule("status", 1, Act::Late(Duration::from_millis(50)));
    fake.pod_runs("a/1");
    rest().await;
    fake.merge("workflowruns", "r", &json!({"spec": {"suspend": true}}));
    passes(1).await;
    assert_eq!(fake.run()["status"]["observedGeneration"], 2);
    assert_eq!(phase(&fake), "Suspended");
    fake.pod_ends("a/1", ok());
    passes(1).await;
    assert_eq!(fake.run()["status"]["observedGeneration"], 2);
    fake.calls();
    silence(&fake).await;
}

#[tokio::test(start_paused = true)]
async fn a_run_that_cannot_be_read_says_so_and_stops_nobody() {
    let fake = started().await;
    let mut bad = run(&json!({"template": {}, "parallelism": "many"}));
    bad["metadata"]["name"] = json!("bad");
    fake.put("workflowruns", bad);
    fake.put("workflowruns", one());
    passes(10).await;
    let calls = fake.calls();
    assert_eq!(
        calls.iter().filter(|it| *it == "status Error -").count(),
        1,
        "{calls:#?}"
    );
    let bad = fake.get("workflowruns", "bad").unwrap();
    assert!(
        bad["status"]["message"]
            .as_str()
            .unwrap()
            .starts_with("the run cannot be read: ")
    );
    fake.pod_ends("a/1", ok());
    passes(1).await;
    assert_eq!(phase(&fake), "Succeeded");
    fake.calls();
    silence(&fake).await;
    // Not even after a restart is it said again.
    operate(&fake, options());
    passes(10).await;
    let calls = fake.calls();
    assert!(
        !calls.iter().any(|it| it.starts_with("status")),
        "{calls:#?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_deleted_starts_nothing_more() {
    let fake = started().await;
    let template = json!({"a": node(&[]), "b": node(&["a"]), "c": node(&[])});
    fake.rule("create pod c/1", 1000, QUOTA);
    fake.put("workflowruns", run_of(&template));
    passes(1).await;
    fake.pod_runs("a/1");
    passes(1).await;
    fake.calls();
    fake.delete("workflowruns", "r");
    rest().await;
    fake.no_rules();
    fake.pod_ends("a/1", ok());
    silence(&fake).await;
    // The finalizers of its pods come off when the collector gets to them.
    fake.collect_garbage();
    passes(1).await;
    assert_eq!(fake.count("pods"), 0);
    let calls = fake.calls();
    assert_eq!(calls.last().unwrap(), "strip pod a/1");
    silence(&fake).await;
    assert_eq!(fake.created().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_being_deleted_starts_nothing_more() {
    let fake = started().await;
    let mut held = run_of(&json!({"a": node(&[]), "b": node(&["a"])}));
    held["metadata"]["finalizers"] = json!(["example.org/mine"]);
    fake.put("workflowruns", held);
    passes(1).await;
    fake.pod_runs("a/1");
    passes(1).await;
    fake.calls();
    fake.delete("workflowruns", "r");
    fake.pod_ends("a/1", ok());
    silence(&fake).await;
}

#[tokio::test(start_paused = true)]
async fn pods_that_waited_for_the_record_of_a_deleted_run_are_let_go() {
    let fake = started().await;
    fake.put(
        "workflowruns",
        run_of(&json!({"a": node(&[]), "b": node(&["a"])})),
    );
    passes(1).await;
    fake.pod_runs("a/1");
    passes(1).await;
    fake.rule("status", 1000, Act::Refuse(500, "InternalError", "etcd"));
    let name = fake.pod_name("a/1");
    fake.delete("pods", &name);
    fake.pod_stopped("a/1");
    passes(1).await;
    assert_eq!(fake.count("pods"), 1, "its end is not on record");
    fake.delete("workflowruns", "r");
    passes(1).await;
    fake.no_rules();
    passes(60).await;
    assert_eq!(fake.count("pods"), 0);
    fake.calls();
    silence(&fake).await;
}

#[tokio::test(start_paused = true)]
async fn a_run_made_again_under_its_name_has_pods_of_its_own() {
    let fake = started().await;
    fake.put("workflowruns", one());
    passes(1).await;
    let first = fake.pod_name("a/1");
    fake.pod_runs("a/1");
    passes(1).await;
    fake.calls();
    fake.delete("workflowruns", "r");
    fake.put("workflowruns", one());
    rest().await;
    assert_eq!(fake.calls(), ["create pod a/1"]);
    fake.collect_garbage();
    passes(1).await;
    fake.merge("pods", &first, &json!({"metadata": {"labels": {"x": "y"}}}));
    passes(1).await;
    // Its kubelet stops the first one; nobody takes that for the second one's end.
    let uid = fake.run()["metadata"]["uid"].clone();
    assert_eq!(phase(&fake), "Running");
    assert_eq!(fake.run()["metadata"]["uid"], uid);
    assert_eq!(fake.created()["a/1"], 2, "one for each run");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_vanished_is_asked_for_before_it_is_lost() {
    let fake = started().await;
    fake.put("workflowruns", one());
    passes(1).await;
    fake.pod_runs("a/1");
    passes(1).await;
    fake.calls();
    fake.pod_vanishes("a/1");
    rest().await;
    assert_eq!(
        fake.calls(),
        ["get pod ? -> 404", "status Failed 1/1", "event Failed"]
    );
    assert_eq!(phases(&fake), ["a Error Lost"]);
    silence(&fake).await;
}

#[tokio::test(start_paused = true)]
async fn another_attempt_is_on_record_before_its_pod_is_made() {
    let fake = started().await;
    fake.put(
        "workflowruns",
        run(&json!({"template": {"a": node(&[])}, "onLost": "Retry"})),
    );
    for attempt in 1..=3 {
        passes(1).await;
        let name = format!("a/{attempt}");
        fake.pod_runs(&name);
        passes(1).await;
        fake.calls();
        fake.pod_vanishes(&name);
        rest().await;
        let calls = fake.calls();
        if attempt < 3 {
            assert_eq!(
                calls,
                [
                    "get pod ? -> 404".to_owned(),
                    "status Running 0/1".to_owned(),
                    format!("create pod a/{}", attempt + 1)
                ]
            );
        } else {
            assert_eq!(
                calls,
                ["get pod ? -> 404", "status Failed 1/1", "event Failed"]
            );
        }
    }
    silence(&fake).await;
    assert_eq!(entry(&fake, "a")["attempt"], 3);
    assert_eq!(phases(&fake), ["a Error Lost"]);
}

#[tokio::test(start_paused = true)]
async fn a_deletion_that_never_was_is_not_believed() {
    let fake = started().await;
    fake.put("workflowruns", one());
    passes(1).await;
    fake.pod_runs("a/1");
    passes(1).await;
    fake.calls();
    fake.say("pods", "DELETED", &fake.pod("a/1").unwrap());
    rest().await;
    assert_eq!(fake.calls(), ["get pod a/1"]);
    passes(2).await;
    // They may have been taken off.
    assert_eq!(fake.calls(), ["label pod a/1", "status Running 0/1"]);
    fake.pod_ends("a/1", ok());
    passes(1).await;
    assert_eq!(phase(&fake), "Succeeded");
    fake.calls();
    silence(&fake).await;
}

#[tokio::test(start_paused = true)]
async fn news_older_than_what_is_known_are_dropped() {
    let fake = started().await;
    fake.put("workflowruns", one());
    passes(1).await;
    let mut old = fake.pod("a/1").unwrap();
    fake.pod_runs("a/1");
    passes(3).await;
    fake.calls();
    old["status"] = json!({"phase": "Failed", "reason": "Evicted"});
    old["metadata"]["resourceVersion"] = json!("1");
    fake.say("pods", "MODIFIED", &old);
    // Of another pod under this name, as well.
    let mut other = fake.pod("a/1").unwrap();
    other["metadata"]["uid"] = json!("another");
    other["status"] = json!({"phase": "Failed", "reason": "Evicted"});
    fake.say("pods", "MODIFIED", &other);
    let mut run = fake.run();
    run["metadata"]["resourceVersion"] = json!("1");
    run["spec"]["cancel"] = json!(true);
    run["metadata"]["generation"] = json!(0);
    fake.say("workflowruns", "MODIFIED", &run);
    silence(&fake).await;
    fake.pod_ends("a/1", ok());
    passes(1).await;
    assert_eq!(phase(&fake), "Succeeded");
}

#[tokio::test(start_paused = true)]
async fn pods_that_are_missing_from_a_new_list_are_asked_for() {
    for form in [Gone::Event, Gone::Answer] {
        missing_from_a_new_list(form).await;
    }
}

async fn missing_from_a_new_list(form: Gone) {
    let fake = started().await;
    let template = json!({"a": node(&[]), "b": node(&[])});
    fake.put("workflowruns", run_of(&template));
    passes(1).await;
    fake.pod_runs("a/1");
    fake.pod_runs("b/1");
    passes(3).await;
    fake.calls();
    fake.hold_watch("pods");
    fake.pod_vanishes("a/1");
    fake.forget_watch("pods", form);
    passes(20).await;
    let calls = fake.calls();
    assert_eq!(
        calls,
        ["list pods", "get pod ? -> 404", "status Running 1/2"]
    );
    assert_eq!(phases(&fake), ["a Error Lost", "b Running"]);
    fake.pod_ends("b/1", ok());
    passes(1).await;
    assert_eq!(phase(&fake), "Failed");
    fake.calls();
    silence(&fake).await;
}

#[tokio::test(start_paused = true)]
async fn an_end_that_the_watch_never_told_is_found_in_a_new_list() {
    let fake = started().await;
    fake.put("workflowruns", one());
    passes(1).await;
    fake.calls();
    fake.hold_watch("pods");
    fake.pod_runs("a/1");
    fake.pod_ends("a/1", ok());
    fake.forget_watch("pods", Gone::Event);
    passes(20).await;
    assert_eq!(
        fake.calls(),
        ["list pods", "status Succeeded 1/1", "event Succeeded"]
    );
    silence(&fake).await;
}

/// Its run is gone, so nobody asks for it either: it stayed for ever.
#[tokio::test(start_paused = true)]
async fn a_deletion_that_the_watch_never_told_is_found_in_time() {
    // The collector of garbage comes at once, or late.
    for late in [0, 2000] {
        let fake = started().await;
        fake.kubelet(|_| ok());
        fake.put("workflowruns", one());
        passes(1).await;
        assert_eq!(phase(&fake), "Succeeded");
        fake.calls();
        fake.hold_watch("pods");
        fake.delete("workflowruns", "r");
        passes(late).await;
        fake.collect_garbage();
        passes(1).await;
        assert_eq!(fake.count("pods"), 1);
        passes(1000).await;
        assert_eq!(fake.calls(), ["strip pod a/1"]);
        assert_eq!(fake.count("pods"), 0);
        // A few times more; then there is no need.
        passes(2000).await;
        fake.looks();
        passes(5000).await;
        assert_eq!(fake.looks(), 0);
        assert_eq!(fake.calls(), [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_without_a_whole_result_is_an_error() {
    let whole = crate::executor::frame::encode(&crate::engine::event::Outcome::silent(ok()), 4096);
    for (text, code, reason) in [
        ("", 0, "Completed"),
        (&whole[..whole.len() / 2], 0, "Completed"),
        ("", 137, "OOMKilled"),
        ("no such file", 128, "StartError"),
    ] {
        let fake = started().await;
        fake.put("workflowruns", one());
        passes(1).await;
        fake.pod_says("a/1", code, text, reason);
        passes(1).await;
        assert_eq!(phase(&fake), "Failed", "{text:?}");
        let word = if reason == "StartError" {
            "NotStarted"
        } else {
            "NoResult"
        };
        assert_eq!(phases(&fake), [format!("a Error {word}")]);
        assert_eq!(entry(&fake, "a")["returnCode"], 0);
        fake.calls();
        silence(&fake).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_cancelled_before_its_record_makes_no_pod() {
    let fake = started().await;
    let pinned = pinned(&fake);
    fake.rule("status", 1, Act::Stall(Duration::from_millis(200)));
    fake.put("workflowruns", pinned);
    rest().await;
    fake.merge("workflowruns", "r", &json!({"spec": {"cancel": true}}));
    passes(5).await;
    assert_eq!(phase(&fake), "Cancelled");
    assert_eq!(fake.created().len(), 0);
    fake.calls();
    silence(&fake).await;
}

#[tokio::test(start_paused = true)]
async fn a_status_that_cannot_be_written_does_not_make_anybody_busy() {
    let fake = started().await;
    fake.rule("status", 1000, Act::Refuse(500, "InternalError", "etcd"));
    fake.put("workflowruns", one());
    passes(1).await;
    fake.pod_ends("a/1", ok());
    passes(120).await;
    let calls = fake.calls();
    assert!(calls.len() < 30, "{} calls in two minutes", calls.len());
    fake.no_rules();
    passes(20).await;
    assert_eq!(phase(&fake), "Succeeded");
    fake.calls();
    silence(&fake).await;
}

#[tokio::test(start_paused = true)]
async fn an_image_that_never_comes_ends_the_node() {
    let fake = started().await;
    fake.put("workflowruns", one());
    passes(1).await;
    let name = fake.pod_name("a/1");
    let now = fake.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let status = json!({"phase": "Pending", "startTime": now, "containerStatuses": [
        {"name": "node", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
         "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}]});
    let mut pod = fake.pod("a/1").unwrap();
    pod["status"] = status;
    pod["metadata"]["resourceVersion"] = json!("9999");
    fake.say("pods", "MODIFIED", &pod);
    passes(10).await;
    assert_eq!(message(&fake), "a waits: ImagePullBackOff: no such image");
    passes(310).await;
    assert_eq!(phases(&fake), ["a Error NotStarted"]);
    assert_eq!(phase(&fake), "Failed");
    fake.calls();
    silence(&fake).await;
    assert!(fake.get("pods", &name).is_some());
}

/// A conflict that is none of the deletion's own condition: the pod is still there.
#[tokio::test(start_paused = true)]
async fn a_delete_that_meets_a_conflict_is_tried_again() {
    let fake = started().await;
    let conflict = Act::Refuse(409, "Conflict", "the object has been modified");
    fake.rule("delete pod a/1", 1, conflict);
    fake.put("workflowruns", one());
    passes(1).await;
    fake.pod_runs("a/1");
    passes(1).await;
    fake.calls();
    fake.merge("workflowruns", "r", &json!({"spec": {"cancel": true}}));
    passes(1).await;
    let calls = fake.calls();
    let pods: Vec<&str> = (calls.iter().map(String::as_str))
        .filter(|call| call.contains("pod"))
        .collect();
    assert_eq!(
        pods,
        ["delete pod a/1 -> 409", "get pod a/1", "delete pod a/1"]
    );
    fake.pod_stopped("a/1");
    passes(1).await;
    assert_eq!(phase(&fake), "Cancelled");
}

#[tokio::test(start_paused = true)]
async fn an_expired_run_whose_deletion_meets_a_conflict_goes_all_the_same() {
    let fake = started().await;
    fake.kubelet(well);
    let conflict = Act::Refuse(409, "Conflict", "the object has been modified");
    fake.rule("delete workflowruns", 1, conflict);
    let template = json!({"a": node(&[])});
    fake.put(
        "workflowruns",
        run(&json!({"template": template, "ttlSecondsAfterFinished": 1})),
    );
    passes(60).await;
    assert_eq!(fake.count("workflowruns"), 0);
}

/// As one of a leader that was, or one that was long on its way.
#[tokio::test(start_paused = true)]
async fn an_old_write_of_a_page_does_not_turn_it_back() {
    let fake = started().await;
    let nodes: serde_json::Map<String, Value> = (0..101)
        .map(|it| (format!("n{it:03}"), node(&[])))
        .collect();
    fake.put("workflowruns", run_of(&Value::Object(nodes)));
    passes(3).await;
    fake.rule("write page 0", 1, Act::Haunt(Duration::from_secs(30)));
    fake.pod_ends("n000/1", ok());
    passes(2).await;
    for index in 1..101 {
        fake.pod_ends(&format!("n{index:03}/1"), ok());
    }
    passes(60).await;
    assert_eq!(phase(&fake), "Succeeded");
    let uid = fake.run()["metadata"]["uid"].clone();
    let page = crate::operator::publish::page_name(uid.as_str().unwrap(), 0);
    let page = fake.get("workflowrunpages", &page).unwrap();
    let mut nodes = page["spec"]["nodes"].as_array().unwrap().iter();
    assert!(nodes.all(|node| node["phase"] == "Succeeded"), "{page:#}");
    let calls = fake.calls();
    assert!(
        calls.iter().any(|call| call == "write page 0, late -> 409"),
        "{calls:#?}"
    );
}

/// A list that is older than what is known: nothing is begun anew, and nothing is given up.
#[tokio::test(start_paused = true)]
async fn a_run_that_an_old_list_does_not_have_goes_on() {
    for over in [false, true] {
        let fake = started().await;
        let spec = json!({"template": {"a": node(&[])}, "podRetention": "Never"});
        fake.put("workflowruns", run(&spec));
        passes(1).await;
        fake.pod_runs("a/1");
        if over {
            fake.kubelet(well);
            fake.pod_ends("a/1", ok());
        }
        passes(5).await;
        // Something else has happened since, so that the watch's version can be too old.
        let other = json!({"metadata": {"name": "other"}, "data": {}});
        fake.put("configmaps", other);
        rest().await;
        fake.calls();
        fake.rule("list workflowruns", 1, Act::Early);
        fake.forget_watch("workflowruns", Gone::Event);
        passes(30).await;
        assert_eq!(
            fake.calls(),
            // The version of the early list is too old to be watched from, so there is another.
            [
                "list workflowruns, early",
                "get workflowruns r",
                "list workflowruns"
            ],
            "{over}"
        );
        if !over {
            fake.pod_ends("a/1", ok());
        }
        passes(5).await;
        assert_eq!(phase(&fake), "Succeeded");
        assert_eq!(fake.created()["a/1"], 1);
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_that_no_watch_ever_tells_is_asked_for() {
    let fake = started().await;
    fake.put("workflowruns", one());
    passes(1).await;
    fake.pod_runs("a/1");
    passes(5).await;
    fake.calls();
    fake.hold_watch("pods");
    fake.pod_ends("a/1", ok());
    passes(1800).await;
    assert_eq!(
        fake.calls(),
        [
            "get workflowruns r",
            "list pods",
            "status Succeeded 1/1",
            "event Succeeded"
        ]
    );
    silence(&fake).await;
}

/// By the start that a former leader reckoned with, and could not put on record.
#[tokio::test(start_paused = true)]
async fn a_pod_that_the_runs_deadline_ended_ends_the_run() {
    let fake = started().await;
    let mut b = node(&["a"]);
    b["decision_expr"] = json!("a == 'N/A'");
    let template = json!({"a": node(&[]), "b": b});
    fake.put(
        "workflowruns",
        run(&json!({"template": template, "timeout": "60s"})),
    );
    passes(1).await;
    fake.pod_runs("a/1");
    passes(50).await;
    fake.pod_is_over_its_deadline("a/1");
    passes(1).await;
    assert_eq!(
        phases(&fake),
        ["a Cancelled Cancelled", "b Skipped Cancelled"]
    );
    assert_eq!(message(&fake), "took longer than its timeout");
    assert_eq!(fake.run()["status"]["cancelCause"], "Timeout");
    fake.calls();
    silence(&fake).await;
}

#[tokio::test(start_paused = true)]
async fn a_wish_that_no_watch_ever_tells_is_asked_for() {
    for suspended in [false, true] {
        let fake = started().await;
        let spec = json!({"template": {"a": node(&[])}, "suspend": suspended});
        fake.put("workflowruns", run(&spec));
        passes(1).await;
        if !suspended {
            fake.pod_runs("a/1");
            passes(1).await;
        }
        fake.hold_watch("workflowruns");
        fake.merge("workflowruns", "r", &json!({"spec": {"cancel": true}}));
        passes(1800).await;
        if !suspended {
            fake.pod_stopped("a/1");
            passes(5).await;
        }
        assert_eq!(phase(&fake), "Cancelled", "{suspended}");
    }
}

/// A run that it leaves out waits until it is asked which runs are not over.
#[tokio::test(start_paused = true)]
async fn a_run_that_no_watch_ever_tells_is_found_in_time() {
    let fake = started().await;
    fake.kubelet(|_| ok());
    fake.hold_watch("workflowruns");
    fake.put("workflowruns", one());
    silence(&fake).await;
    passes(1000).await;
    assert_eq!(phase(&fake), "Succeeded");
    assert_eq!(fake.created()["a/1"], 1);
    // It is known now, and it is over.
    fake.calls();
    passes(3600).await;
    assert_eq!((fake.surveys(), fake.catalogues()), (4, 4));
    assert_eq!(fake.calls(), [""; 0]);
}

/// The catalogue is listed anew from time to time.
#[tokio::test(start_paused = true)]
async fn a_change_of_a_service_that_no_watch_ever_tells_is_found_in_time() {
    let fake = started().await;
    let service = |node_name: &str| {
        json!({"metadata": {"name": "s"}, "spec": {"fqsn": "some.service", "versions": [
            {"version": "1.0", "template": {node_name: node(&[])}}]}})
    };
    fake.put("services", service("a"));
    passes(1).await;
    fake.hold_watch("services");
    fake.merge("services", "s", &service("z"));
    silence(&fake).await;
    passes(1000).await;
    fake.put("workflowruns", run(&json!({"fqsn": "some.service"})));
    passes(1).await;
    assert!(fake.created().contains_key("z/1"));
}

/// Any conflict is tried again: that the object was changed, and is told of, is but one.
#[tokio::test(start_paused = true)]
async fn a_status_of_a_service_that_meets_a_conflict_is_written_later() {
    let fake = started().await;
    for versions in [
        json!([{"version": "1", "template": {"a": node(&[])}}]),
        json!("many"),
    ] {
        let name = format!("s{}", versions.is_string());
        let conflict = Act::Refuse(409, "Conflict", "try again");
        fake.rule("patch services", 1, conflict);
        fake.put(
            "services",
            json!({"metadata": {"name": name}, "spec": {"fqsn": "some.service", "versions": versions}}),
        );
        passes(1).await;
        let status = |fake: &Fake| fake.get("services", &name).unwrap()["status"].clone();
        assert!(status(&fake).is_null());
        passes(60).await;
        assert!(status(&fake)["conditions"].is_array());
    }
    fake.calls();
    silence(&fake).await;
}

/// API servers before 1.31 refuse to select by a field; a survey that fails is made again in time.
#[tokio::test(start_paused = true)]
async fn runs_are_surveyed_where_fields_cannot_be_selected() {
    for (refused, code, reason) in [(1, 400, "BadRequest"), (2, 503, "ServiceUnavailable")] {
        let fake = started().await;
        fake.kubelet(|_| ok());
        fake.hold_watch("workflowruns");
        fake.put("workflowruns", one());
        fake.rule(
            "look through runs",
            refused,
            Act::Refuse(code, reason, "no"),
        );
        passes(3000).await;
        assert_eq!(phase(&fake), "Succeeded", "{code}");
        assert_eq!(fake.created()["a/1"], 1);
    }
}

/// That an object cannot be read is said until it is heard.
#[tokio::test(start_paused = true)]
async fn that_a_run_cannot_be_read_is_said_until_it_is_on_record() {
    let fake = started().await;
    fake.rule("status", 2, Act::Refuse(500, "InternalError", "etcd"));
    fake.put("workflowruns", run(&json!({"template": 7})));
    passes(30).await;
    assert_eq!(phase(&fake), "Error");
}

/// Whatever touches the object in between is no news of its spec: nobody would be told of it again.
#[tokio::test(start_paused = true)]
async fn that_a_run_cannot_be_read_is_said_though_it_is_touched_meanwhile() {
    let fake = started().await;
    fake.rule("status", 1, Act::Refuse(409, "Conflict", "it was modified"));
    fake.put("workflowruns", run(&json!({"template": 7})));
    passes(30).await;
    assert_eq!(phase(&fake), "Error");
}

/// Labels and annotations are anybody's to change; the UID is not.
#[tokio::test(start_paused = true)]
async fn a_pod_that_somebody_renamed_in_its_annotations_still_tells_its_end() {
    let fake = started().await;
    fake.put("workflowruns", one());
    passes(1).await;
    fake.pod_runs("a/1");
    passes(1).await;
    let name = fake.pod_name("a/1");
    let forged =
        json!({"metadata": {"annotations": {"apscli.dev/node": "b", "apscli.dev/attempt": "7"}}});
    fake.merge("pods", &name, &forged);
    passes(1).await;
    fake.pod_ends("b/7", ok());
    passes(1).await;
    assert_eq!(phase(&fake), "Succeeded");
    fake.calls();
    silence(&fake).await;
}

/// The watch of pods goes by these labels: they are put back, or neither its end would be told nor
/// that it is deleted.
#[tokio::test(start_paused = true)]
async fn a_pod_whose_labels_somebody_took_off_still_tells_its_end() {
    for uid in [Value::Null, json!("another")] {
        for over in [false, true] {
            let fake = started().await;
            fake.put("workflowruns", one());
            passes(1).await;
            fake.pod_runs("a/1");
            if over {
                fake.pod_ends("a/1", ok());
            }
            passes(5).await;
            fake.calls();
            let name = fake.pod_name("a/1");
            let labels = fake.pod("a/1").unwrap()["metadata"]["labels"].clone();
            let mut bare = json!({"apscli.dev/run-uid": uid});
            if uid.is_null() {
                bare["app.kubernetes.io/managed-by"] = Value::Null;
            }
            fake.merge("pods", &name, &json!({"metadata": {"labels": bare}}));
            passes(5).await;
            let mut calls = fake.calls();
            calls.dedup();
            let looked = (uid.is_null() && !over).then_some("get pod a/1");
            let expected: Vec<&str> = looked.into_iter().chain(["label pod a/1"]).collect();
            assert_eq!(calls, expected, "{uid} {over}");
            assert_eq!(fake.pod("a/1").unwrap()["metadata"]["labels"], labels);
            if !over {
                fake.pod_ends("a/1", ok());
                passes(5).await;
                let calls = fake.calls();
                assert_eq!(calls, ["status Succeeded 1/1", "event Succeeded"]);
            }
            fake.delete("pods", &name);
            passes(1).await;
            assert_eq!(fake.calls(), ["strip pod a/1"], "{uid} {over}");
            assert_eq!(fake.count("pods"), 0);
            silence(&fake).await;
        }
    }
}

/// A create that a former leader had sent arrives when the pod of its name has come and gone.
#[tokio::test(start_paused = true)]
async fn a_pod_that_is_made_once_more_is_deleted() {
    let fake = started().await;
    let template = json!({"a": node(&[]), "b": node(&["a"])});
    let spec = json!({"template": template, "podRetention": "Never"});
    fake.put("workflowruns", run(&spec));
    passes(1).await;
    let pod = fake.pod("a/1").unwrap();
    fake.pod_ends("a/1", ok());
    passes(1).await;
    fake.pod_runs("b/1");
    passes(5).await;
    assert!(fake.pod("a/1").is_none());
    fake.calls();
    fake.put("pods", pod);
    passes(1).await;
    assert_eq!(fake.calls(), ["delete pod a/1", "strip pod a/1"]);
    silence(&fake).await;
}

/// Likewise of an attempt that was lost, while the next one goes on.
#[tokio::test(start_paused = true)]
async fn an_attempt_that_is_made_once_more_is_deleted() {
    let fake = started().await;
    let spec = json!({"template": {"a": node(&[])}, "onLost": "Retry"});
    fake.put("workflowruns", run(&spec));
    passes(1).await;
    let pod = fake.pod("a/1").unwrap();
    fake.pod_runs("a/1");
    fake.pod_vanishes("a/1");
    passes(1).await;
    fake.pod_runs("a/2");
    passes(5).await;
    fake.calls();
    fake.put("pods", pod);
    passes(1).await;
    assert_eq!(fake.calls(), ["delete pod a/1", "strip pod a/1"]);
    fake.pod_ends("a/2", ok());
    passes(1).await;
    assert_eq!(phase(&fake), "Succeeded");
    fake.calls();
    silence(&fake).await;
}

/// Options of an operator of several.
fn one_of_several() -> Options {
    Options {
        election: Some(Election {
            namespace: "default".to_owned(),
            lease: "apscli".to_owned(),
            identity: "operator-1".to_owned(),
            duration: Duration::from_secs(15),
        }),
        ..options()
    }
}

/// Who leads does not know what a former leader has sent, so for a minute no name is given back.
#[tokio::test(start_paused = true)]
async fn a_new_leader_keeps_the_names_of_pods_for_a_while() {
    let fake = Fake::new();
    fake.kubelet(well);
    let first = operate(&fake, one_of_several());
    passes(1).await;
    let spec = json!({"template": {"a": node(&[])}, "podRetention": "Never"});
    fake.put("workflowruns", run(&spec));
    passes(55).await;
    assert_eq!(
        (phase(&fake), fake.count("pods")),
        ("Succeeded".to_owned(), 1)
    );
    first.dies();
    operate(&fake, one_of_several());
    passes(55).await;
    assert_eq!(fake.count("pods"), 1);
    passes(10).await;
    assert_eq!(fake.count("pods"), 0);
    fake.calls();
    silence(&fake).await;
}

/// Nor those of pods that were deleted, by a cancel, with their run, or by somebody: all else goes on.
#[tokio::test(start_paused = true)]
async fn a_new_leader_keeps_the_names_of_deleted_pods_for_a_while() {
    for by in ["cancel", "run", "somebody"] {
        let fake = Fake::new();
        operate(&fake, one_of_several());
        passes(1).await;
        let spec = json!({"template": {"a": node(&[])}, "onLost": "Retry"});
        fake.put("workflowruns", run(&spec));
        passes(1).await;
        fake.pod_runs("a/1");
        let name = fake.pod_name("a/1");
        passes(1).await;
        match by {
            "cancel" => fake.merge("workflowruns", "r", &json!({"spec": {"cancel": true}})),
            "run" => {
                fake.delete("workflowruns", "r");
                fake.collect_garbage();
            }
            _ => fake.delete("pods", &name),
        }
        passes(1).await;
        fake.pod_stopped("a/1");
        passes(50).await;
        assert!(fake.pod("a/1").is_some(), "{by}");
        match by {
            "cancel" => assert_eq!(phase(&fake), "Cancelled"),
            "run" => {}
            _ => assert_eq!(phases(&fake), ["a Running Pending"]),
        }
        fake.calls();
        passes(10).await;
        let strips = fake.calls();
        let strips = strips.iter().filter(|it| it.starts_with("strip"));
        assert_eq!(strips.collect::<Vec<_>>(), ["strip pod a/1"], "{by}");
        assert!(fake.pod("a/1").is_none(), "{by}");
        silence(&fake).await;
    }
}

/// However often leaders change: what all of them could see, none has sent a create for.
#[tokio::test(start_paused = true)]
async fn a_new_leader_gives_back_the_name_of_an_old_pod() {
    for (made, is_free) in [
        ("2020-01-01T00:00:00Z", true),
        ("2999-01-01T00:00:00Z", false),
    ] {
        let fake = Fake::new();
        operate(&fake, one_of_several());
        passes(1).await;
        fake.put("workflowruns", one());
        passes(1).await;
        fake.pod_was_made_at("a/1", made);
        fake.pod_runs("a/1");
        fake.merge("workflowruns", "r", &json!({"spec": {"cancel": true}}));
        passes(1).await;
        fake.pod_stopped("a/1");
        passes(1).await;
        assert_eq!(phase(&fake), "Cancelled");
        assert_eq!(fake.pod("a/1").is_none(), is_free);
        passes(60).await;
        assert!(fake.pod("a/1").is_none(), "for a minute at most");
        fake.calls();
        silence(&fake).await;
    }
}

/// A list that is older than what was told already has runs that are no more: they would be begun
/// anew, and their pods made once more.
#[tokio::test(start_paused = true)]
async fn a_run_that_is_gone_and_told_of_again_is_not_begun_again() {
    let fake = started().await;
    let old = fake.put("workflowruns", one());
    passes(1).await;
    fake.pod_runs("a/1");
    passes(1).await;
    fake.delete("workflowruns", "r");
    passes(1).await;
    fake.collect_garbage();
    passes(1).await;
    fake.calls();
    fake.say("workflowruns", "ADDED", &old);
    passes(1).await;
    fake.say("workflowruns", "DELETED", &old);
    silence(&fake).await;
    assert_eq!(fake.created()["a/1"], 1);
}

/// The same where somebody else's finalizer keeps a run that is being deleted.
#[tokio::test(start_paused = true)]
async fn a_run_that_is_going_and_told_of_as_it_was_is_not_begun_again() {
    let fake = started().await;
    let mut kept = one();
    kept["metadata"]["finalizers"] = json!(["example.com/keep"]);
    let old = fake.put("workflowruns", kept);
    passes(1).await;
    fake.pod_runs("a/1");
    passes(1).await;
    fake.delete("workflowruns", "r");
    passes(1).await;
    fake.calls();
    fake.say("workflowruns", "MODIFIED", &old);
    passes(30).await;
    assert_eq!(fake.calls(), [""; 0]);
    assert_eq!(fake.created()["a/1"], 1);
}
