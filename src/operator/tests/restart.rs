//! Processes that end at any moment, and others that go on from what they find.

use std::time::Duration;

use rstest::rstest;
use serde_json::{Value, json};

use super::fake::Act;
use super::*;

/// What a run came to, without what differs from one time to the next.
fn outcome(fake: &Fake) -> Value {
    let mut run = fake.run();
    let status = &mut run["status"];
    for name in ["startTime", "completionTime", "duration", "resolved"] {
        status.as_object_mut().unwrap().remove(name);
    }
    for condition in status["conditions"].as_array_mut().unwrap() {
        condition
            .as_object_mut()
            .unwrap()
            .remove("lastTransitionTime");
    }
    for node in status["nodes"].as_array_mut().into_iter().flatten() {
        let node = node.as_object_mut().unwrap();
        let has_pod =
            node["name"].is_string() && node.get("pod").is_some_and(|pod| pod["uid"].is_string());
        node.insert("pod".to_owned(), json!(has_pod));
        node.remove("startTime");
        node.remove("endTime");
    }
    status.take()
}

/// Does all of it once without and then once with the end of a process after each of its writes.
async fn whatever_happens(prepare: impl Fn(&Fake), ending: fn(&str) -> Ending) {
    let mut expected = None;
    let mut after = None;
    loop {
        let fake = Fake::new();
        fake.kubelet(ending);
        operate(&fake, options());
        passes(1).await;
        fake.dies_after(after);
        prepare(&fake);
        let died = tokio::time::timeout(Duration::from_secs(60), fake.died())
            .await
            .is_ok();
        if after.is_some() && !died {
            // It came to its end with fewer writes.
            break;
        }
        if died {
            // Long enough for everything that is begun to end meanwhile, every other time.
            let writes = after.unwrap_or(0);
            tokio::time::sleep(Duration::from_millis(if writes % 2 == 0 {
                5
            } else {
                5000
            }))
            .await;
            operate(&fake, options());
            passes(60).await;
        }
        let outcome = outcome(&fake);
        let (created, left) = (fake.created(), fake.attempts());
        match &expected {
            None => expected = Some((outcome, created.clone(), left)),
            Some((as_ever, attempts, pods)) => {
                assert_eq!(left, *pods, "after {after:?} writes");
                assert_eq!(
                    outcome,
                    *as_ever,
                    "after {after:?} writes: {:#?}",
                    fake.calls()
                );
                assert_eq!(created, *attempts, "after {after:?} writes");
            }
        }
        assert!(
            created.values().all(|times| *times == 1),
            "after {after:?} writes: {created:?}"
        );
        fake.calls();
        silence(&fake).await;
        after = Some(after.unwrap_or(0) + 1);
        assert!(after < Some(200), "it never comes to its end");
    }
}

#[tokio::test(start_paused = true)]
async fn a_diamond() {
    whatever_happens(
        |fake| drop(fake.put("workflowruns", run_of(&diamond()))),
        well,
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_diamond_of_which_a_branch_fails() {
    fn ending(attempt: &str) -> Ending {
        if attempt == "b/1" {
            Ending::Exited(2)
        } else {
            Ending::Exited(0)
        }
    }
    let mut template = diamond();
    template["d"]["decision_expr"] = json!("b || c");
    whatever_happens(
        |fake| drop(fake.put("workflowruns", run_of(&template))),
        ending,
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_chain_whose_pods_are_not_kept() {
    let template = json!({"a": node(&[]), "b": node(&["a"]), "c": node(&["b"])});
    let spec = json!({"template": template, "podRetention": "Never"});
    whatever_happens(|fake| drop(fake.put("workflowruns", run(&spec))), well).await;
}

#[tokio::test(start_paused = true)]
async fn a_run_whose_parameters_are_copied() {
    let spec = json!({"template": diamond(), "paramsFrom": [{"configMap": {"name": "p"}}]});
    whatever_happens(
        |fake| {
            fake.put(
                "configmaps",
                json!({"metadata": {"name": "p"}, "data": {"x": "1"}}),
            );
            fake.put("workflowruns", run(&spec));
        },
        well,
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_lost_and_tried_again() {
    fn ending(attempt: &str) -> Ending {
        match attempt {
            "a/1" => Ending::Lost("gone".to_owned()),
            _ => Ending::Exited(0),
        }
    }
    let template = json!({"a": node(&[]), "b": node(&["a"])});
    let spec = json!({"template": template, "onLost": "Retry"});
    whatever_happens(|fake| drop(fake.put("workflowruns", run(&spec))), ending).await;
}

#[tokio::test(start_paused = true)]
async fn a_run_with_pages() {
    let nodes: serde_json::Map<String, Value> = (0..101)
        .map(|it| {
            (
                format!("n{it:03}"),
                if it == 100 {
                    node(&["n000"])
                } else {
                    node(&[])
                },
            )
        })
        .collect();
    // Only its small run of dependent nodes is of interest: the others are created at once.
    let spec = json!({"template": nodes});
    let mut ends = Vec::new();
    for after in [1, 50, 100, 101, 102, 103, 104, 105, 106, 107, 108] {
        let fake = Fake::new();
        fake.kubelet(well);
        operate(&fake, options());
        passes(1).await;
        fake.dies_after(Some(after));
        fake.put("workflowruns", run(&spec));
        let died = tokio::time::timeout(Duration::from_secs(60), fake.died())
            .await
            .is_ok();
        if died {
            operate(&fake, options());
            passes(60).await;
        }
        ends.push(died);
        assert_eq!(phase(&fake), "Succeeded", "after {after} writes");
        assert_eq!(fake.created().len(), 101);
        assert!(fake.created().values().all(|times| *times == 1));
        fake.calls();
        silence(&fake).await;
    }
    assert!(ends[..6].iter().all(|it| *it), "{ends:?}");
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_run() {
    for after in 1..8 {
        let fake = Fake::new();
        fn forever(_: &str) -> Ending {
            Ending::Exited(0)
        }
        fake.kubelet(forever);
        operate(&fake, options());
        passes(1).await;
        fake.put(
            "workflowruns",
            run_of(&json!({"a": node(&[]), "b": node(&[]), "c": node(&["a"])})),
        );
        tokio::time::sleep(Duration::from_millis(60)).await;
        fake.dies_after(Some(after));
        fake.merge("workflowruns", "r", &json!({"spec": {"cancel": true}}));
        let died = tokio::time::timeout(Duration::from_secs(30), fake.died())
            .await
            .is_ok();
        if died {
            operate(&fake, options());
            passes(60).await;
        }
        assert_eq!(phase(&fake), "Cancelled", "after {after} writes");
        assert_eq!(
            phases(&fake),
            [
                "a Cancelled Cancelled",
                "b Cancelled Cancelled",
                "c Skipped Cancelled"
            ],
            "after {after} writes"
        );
        assert_eq!(fake.count("pods"), 0, "after {after} writes");
        fake.calls();
        silence(&fake).await;
    }
}

/// The first record comes after the first pods: that there is none does not say that there are none.
#[tokio::test(start_paused = true)]
async fn a_run_that_is_cancelled_before_its_first_record_has_its_pods_ended() {
    for begun in [true, false] {
        let fake = Fake::new();
        fake.put("workflowruns", run_of(&json!({"a": node(&[])})));
        if begun {
            let first = operate(&fake, options());
            tokio::time::sleep(Duration::from_millis(60)).await;
            first.dies();
            fake.pod_runs("a/1");
            assert_eq!(phase(&fake), "-");
        }
        fake.calls();
        fake.merge("workflowruns", "r", &json!({"spec": {"cancel": true}}));
        operate(&fake, options());
        passes(1).await;
        if begun {
            fake.pod_stopped("a/1");
            passes(1).await;
        }
        assert_eq!(phase(&fake), "Cancelled");
        let pods = fake.calls();
        let deleted = pods.iter().any(|it| it.starts_with("delete pod"));
        assert_eq!(deleted, begun, "{pods:#?}");
        let before = "cancelled before it began";
        assert_eq!(message(&fake) == before, !begun, "{}", message(&fake));
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_word_for_word() {
    let fake = Fake::new();
    let first = operate(&fake, options());
    passes(1).await;
    fake.put("workflowruns", run_of(&diamond()));
    passes(1).await;
    fake.pod_runs("a/1");
    passes(1).await;
    first.dies();
    fake.pod_ends("a/1", ok());
    fake.calls();
    operate(&fake, options());
    passes(1).await;
    let mut calls = fake.calls();
    let begun = calls.split_off(4);
    calls.sort();
    assert_eq!(
        calls,
        [
            "list configmaps",
            "list pods",
            "list services",
            "list workflowruns"
        ]
    );
    assert_eq!(
        begun,
        [
            "list pods",
            "create pod b/1",
            "create pod c/1",
            "status Running 1/4"
        ]
    );
    for attempt in ["b/1", "c/1"] {
        fake.pod_ends(attempt, ok());
    }
    passes(1).await;
    fake.pod_ends("d/1", ok());
    passes(1).await;
    assert_eq!(phase(&fake), "Succeeded");
    fake.calls();
    silence(&fake).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_deleted_meanwhile_still_tells_its_result() {
    for recorded in [true, false] {
        let fake = Fake::new();
        let first = operate(&fake, options());
        passes(1).await;
        if !recorded {
            fake.rule("status", 1000, Act::Refuse(500, "InternalError", "etcd"));
        }
        fake.put(
            "workflowruns",
            run_of(&json!({"a": node(&[]), "b": node(&["a"])})),
        );
        passes(1).await;
        first.dies();
        fake.no_rules();
        fake.pod_runs("a/1");
        fake.pod_ends("a/1", ok());
        let name = fake.pod_name("a/1");
        fake.delete("pods", &name);
        fake.pod_stopped("a/1");
        fake.calls();
        operate(&fake, options());
        passes(2).await;
        assert_eq!(phases(&fake), ["a Succeeded", "b Running Pending"]);
        assert!(
            fake.pod("a/1").is_none(),
            "it is let go once that is on record"
        );
        let calls = fake.calls();
        let status = calls
            .iter()
            .position(|it| it.starts_with("status"))
            .unwrap();
        let strip = calls.iter().position(|it| it == "strip pod a/1").unwrap();
        assert!(status < strip, "{calls:#?}");
        fake.pod_ends("b/1", ok());
        passes(1).await;
        assert_eq!(phase(&fake), "Succeeded");
        assert_eq!(fake.created()["a/1"], 1);
        fake.calls();
        silence(&fake).await;
    }
}

/// A cluster in which a run's pod of `a` runs, and its operator has died.
async fn dead_while_a_runs(run: Value) -> Fake {
    let fake = Fake::new();
    let first = operate(&fake, options());
    passes(1).await;
    fake.put("workflowruns", run);
    passes(1).await;
    fake.pod_runs("a/1");
    passes(1).await;
    first.dies();
    fake
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_was_taken_away_meanwhile_is_lost() {
    let fake = dead_while_a_runs(run_of(&json!({"a": node(&[])}))).await;
    fake.pod_vanishes("a/1");
    operate(&fake, options());
    passes(1).await;
    assert_eq!(phases(&fake), ["a Error Lost"]);
    assert_eq!(fake.created()["a/1"], 1);
    fake.calls();
    silence(&fake).await;
}

/// The user asked for its end, so it is not a failure: with an operator there it would be none.
#[tokio::test(start_paused = true)]
async fn a_pod_that_was_taken_away_after_a_cancel_is_cancelled() {
    let fake = dead_while_a_runs(run_of(&json!({"a": node(&[])}))).await;
    let pod = fake.pod("a/1").unwrap()["metadata"]["uid"].clone();
    fake.merge("workflowruns", "r", &json!({"spec": {"cancel": true}}));
    fake.pod_vanishes("a/1");
    operate(&fake, options());
    passes(1).await;
    assert_eq!(phases(&fake), ["a Cancelled Cancelled"]);
    assert_eq!(phase(&fake), "Cancelled");
    assert_eq!(entry(&fake, "a")["pod"]["uid"], pod, "its pod is on record");
    assert_eq!(fake.created()["a/1"], 1);
    fake.calls();
    silence(&fake).await;
}

/// A list or a watch by labels does not have it, or nobody can tell from it whose it is. It may do
/// its work still, and must not be begun once more.
#[rstest]
#[case(json!({"labels": {"apscli.dev/run-uid": null, "app.kubernetes.io/managed-by": null}}), "a/1")]
#[case(json!({"labels": {"app.kubernetes.io/managed-by": null}}), "a/1")]
#[case(json!({"labels": {"apscli.dev/run-uid": "another"}}), "a/1")]
#[case(json!({"annotations": {"apscli.dev/node": "x"}}), "x/1")]
#[tokio::test(start_paused = true)]
async fn a_pod_that_somebody_changed_meanwhile_is_not_lost(#[case] bare: Value, #[case] of: &str) {
    let spec = json!({"template": {"a": node(&[])}, "onLost": "Retry"});
    let fake = dead_while_a_runs(super::run(&spec)).await;
    let name = fake.pod_name("a/1");
    let labels = fake.pod("a/1").unwrap()["metadata"]["labels"].clone();
    fake.merge("pods", &name, &json!({"metadata": bare}));
    operate(&fake, options());
    passes(5).await;
    assert_eq!(phases(&fake), ["a Running"]);
    let pod = fake.pod(of).unwrap();
    assert_eq!(pod["metadata"]["labels"], labels);
    fake.pod_ends(of, ok());
    passes(5).await;
    assert_eq!(phase(&fake), "Succeeded");
    assert_eq!(fake.created().values().sum::<usize>(), 1);
    fake.delete("pods", &name);
    passes(1).await;
    assert_eq!(fake.count("pods"), 0);
    fake.calls();
    silence(&fake).await;
}

/// A deadline that has passed since is another matter: it was lost before that.
#[tokio::test(start_paused = true)]
async fn a_pod_that_was_taken_away_before_the_deadline_is_lost() {
    let spec = json!({"template": {"a": node(&[])}, "timeout": "60s"});
    let fake = dead_while_a_runs(super::run(&spec)).await;
    fake.pod_vanishes("a/1");
    passes(100).await;
    operate(&fake, options());
    passes(1).await;
    assert_eq!(phases(&fake), ["a Error Lost"]);
}

#[tokio::test(start_paused = true)]
async fn a_finished_run_is_left_alone_and_its_pods_are_let_go() {
    let fake = Fake::new();
    fake.kubelet(well);
    let first = operate(&fake, options());
    passes(1).await;
    fake.put("workflowruns", run_of(&diamond()));
    passes(10).await;
    first.dies();
    fake.calls();
    operate(&fake, options());
    passes(1).await;
    assert_eq!(fake.calls().len(), 4, "the first lists");
    silence(&fake).await;
    let name = fake.pod_name("a/1");
    fake.delete("pods", &name);
    passes(1).await;
    assert_eq!(fake.calls(), ["strip pod a/1"]);
    silence(&fake).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_run_said_of_its_pods_stays_after_a_restart() {
    let fake = Fake::new();
    let first = operate(&fake, options());
    passes(1).await;
    fake.put(
        "workflowruns",
        run_of(&json!({"a": node(&[]), "b": node(&["a"])})),
    );
    passes(1).await;
    fake.pod_runs("a/1");
    fake.pod_ends("a/1", ok());
    passes(1).await;
    let before = entry(&fake, "a");
    assert!(before["pod"]["uid"].is_string());
    // Somebody tidies up: the result is on record, so the pod is let go.
    let name = fake.pod_name("a/1");
    fake.delete("pods", &name);
    passes(1).await;
    assert!(fake.pod("a/1").is_none());
    first.dies();
    operate(&fake, options());
    passes(1).await;
    fake.pod_ends("b/1", ok());
    passes(1).await;
    assert_eq!(phase(&fake), "Succeeded");
    assert_eq!(entry(&fake, "a"), before);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_ended_in_time_is_not_over_its_timeout() {
    let fake = Fake::new();
    let first = operate(&fake, options());
    passes(1).await;
    fake.put(
        "workflowruns",
        run(&json!({"template": {"a": node(&[])}, "timeout": "60s"})),
    );
    passes(1).await;
    fake.pod_runs("a/1");
    passes(10).await;
    first.dies();
    fake.pod_ends("a/1", ok());
    passes(600).await;
    operate(&fake, options());
    passes(5).await;
    assert_eq!(phase(&fake), "Succeeded");
}

#[tokio::test(start_paused = true)]
async fn a_service_changed_meanwhile_does_not_touch_the_run() {
    let fake = Fake::new();
    let first = operate(&fake, options());
    passes(1).await;
    let service = |template: &Value| {
        json!({"metadata": {"name": "s"}, "spec": {"fqsn": "some.service", "versions": [
            {"version": "1.0", "template": template}]}})
    };
    fake.put(
        "services",
        service(&json!({"a": node(&[]), "b": node(&["a"])})),
    );
    passes(1).await;
    fake.put("workflowruns", run(&json!({"fqsn": "some.service"})));
    passes(1).await;
    assert_eq!(fake.created().into_keys().collect::<Vec<_>>(), ["a/1"]);
    let calls = fake.calls();
    let recorded = calls
        .iter()
        .position(|it| it.starts_with("status"))
        .unwrap();
    let created = calls.iter().position(|it| it == "create pod a/1").unwrap();
    assert!(
        recorded < created,
        "what it runs is on record first: {calls:#?}"
    );
    first.dies();
    fake.delete("services", "s");
    fake.put("services", service(&json!({"x": node(&[])})));
    operate(&fake, options());
    passes(1).await;
    fake.pod_ends("a/1", ok());
    passes(1).await;
    fake.pod_ends("b/1", ok());
    passes(1).await;
    assert_eq!(phases(&fake), ["a Succeeded", "b Succeeded"]);
    assert_eq!(phase(&fake), "Succeeded");
    fake.calls();
    silence(&fake).await;
}

#[tokio::test(start_paused = true)]
async fn a_run_whose_copy_is_gone_cannot_go_on_and_leaves_nothing_running() {
    let fake = Fake::new();
    let first = operate(&fake, options());
    passes(1).await;
    fake.put(
        "configmaps",
        json!({"metadata": {"name": "p"}, "data": {"x": "1"}}),
    );
    let spec = json!({"template": {"a": node(&[])}, "paramsFrom": [{"configMap": {"name": "p"}}]});
    fake.put("workflowruns", run(&spec));
    passes(1).await;
    fake.pod_runs("a/1");
    passes(1).await;
    first.dies();
    let copy = fake.run()["status"]["resolved"]["snapshot"][0]
        .as_str()
        .unwrap()
        .to_owned();
    fake.delete("configmaps", &copy);
    operate(&fake, options());
    passes(2).await;
    assert_eq!(phase(&fake), "Error");
    assert!(message(&fake).contains(&copy), "{}", message(&fake));
    let calls = fake.calls();
    assert!(calls.contains(&"delete pod a/1".to_owned()), "{calls:#?}");
    fake.pod_stopped("a/1");
    passes(1).await;
    assert_eq!(fake.count("pods"), 0);
    fake.calls();
    silence(&fake).await;
}
