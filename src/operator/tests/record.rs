//! What stands on record, and what is read back from it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use proptest::prelude::*;

use crate::api::workflow_run::{NodeStatus, PodReference, Resolved, WorkflowRun};
use crate::engine::event::{CancelCause, Captured, Ending, Event, Outcome};
use crate::engine::graph::{Graph, NodeIx};
use crate::engine::state::{NodeState, RunState};
use crate::engine::step::{Limits, OnLost, Verdict, step};
use crate::operator::publish::{Draft, View};
use crate::operator::status::{self, PodFacts};
use crate::template::{Filling, Params, Template};
use crate::value::Value;

fn graph(prev: &[Vec<usize>], name: impl Fn(usize) -> String) -> Graph {
    let nodes: serde_json::Map<String, serde_json::Value> = prev
        .iter()
        .enumerate()
        .map(|(at, prev)| {
            let prev: Vec<String> = prev
                .iter()
                .filter(|it| **it < at)
                .collect::<std::collections::BTreeSet<_>>()
                .into_iter()
                .map(|it| name(*it))
                .collect();
            let node =
                serde_json::json!({"prev_nodes": prev, "action": {"type": "cmd", "cmd": "true"}});
            (name(at), node)
        })
        .collect();
    let template = Template::from_value("plan", &crate::api::to_value(&nodes.into()));
    template.graph(Filling::With(&Params::new())).unwrap()
}

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(1_800_000_000_000 + millis).unwrap()
}

fn value() -> impl Strategy<Value = Option<Value>> {
    let text = "[a-z\\n\"\\\\\u{1}\u{e9}]{0,40}".prop_map(Value::String);
    let leaf = prop_oneof![
        text,
        Just(Value::Null),
        Just(Value::Bool(true)),
        "-?[1-9][0-9]{0,25}(\\.[0-9]{1,3})?".prop_map(Value::Number),
    ];
    let list = prop::collection::vec(leaf.clone(), 0..4).prop_map(Value::List);
    let long = (1_usize..3000).prop_map(|length| Value::String("\u{1}x".repeat(length)));
    prop::option::of(prop_oneof![4 => leaf, 1 => list, 1 => long])
}

fn outcome() -> impl Strategy<Value = Outcome> {
    let ending = prop_oneof![
        4 => Just(Ending::Exited(0)),
        1 => (1_i32..300).prop_map(Ending::Exited),
        1 => (1_i32..64).prop_map(Ending::Signalled),
        1 => (-3_i64..3).prop_map(Ending::Returned),
        1 => "\\PC{0,600}".prop_map(Ending::NotStarted),
        1 => "\\PC{0,600}".prop_map(Ending::Exception),
        1 => "\\PC{0,600}".prop_map(Ending::NoResult),
        1 => "\\PC{0,600}".prop_map(Ending::Lost),
    ];
    let truncated = prop::collection::btree_map("output|info|message|other", 1_u64..9, 0..3);
    (ending, value(), value(), value(), value(), truncated).prop_map(
        |(ending, output, err_msg, err_code, info, truncated)| {
            let captured = Captured {
                output,
                err_msg,
                err_code,
                info,
                truncated,
            };
            Outcome { ending, captured }
        },
    )
}

/// What happens next: which of the running attempts ends, and how; or a cancel.
type Move = (usize, Outcome, u8);

/// Lets a run go on by these moves.
fn play(graph: &Graph, limits: &Limits, moves: &[Move]) -> RunState {
    let mut state = RunState::new(graph).with_timeouts_kept();
    state.fold(graph, &Event::RunStarted { at: at(0) }).unwrap();
    let mut now = 0;
    for (which, outcome, kind) in moves {
        now += 7;
        let decisions = step(graph, &state, limits, at(now)).decisions;
        for decision in &decisions {
            state.fold(graph, &decision.event(at(now))).unwrap();
        }
        let running: Vec<NodeIx> = state.running().collect();
        if *kind == 0 {
            state
                .fold(
                    graph,
                    &Event::Cancelled {
                        cause: CancelCause::Timeout,
                        at: at(now),
                    },
                )
                .unwrap();
        } else if let Some(node) = running.get(which % running.len().max(1)) {
            let NodeState::Running(running) = state.node(*node) else {
                unreachable!()
            };
            let outcome = status::kept(graph, *node, outcome.clone());
            let ended = Event::Ended {
                node: *node,
                attempt: running.attempt,
                outcome,
                at: at(now + 3),
            };
            state.fold(graph, &ended).unwrap();
        }
    }
    state
}

fn entries(graph: &Graph, state: &RunState) -> Vec<NodeStatus> {
    let entry = |(ix, _)| status::node(graph, state, ix, &PodFacts::default());
    let entries: Vec<NodeStatus> = graph.iter().map(entry).collect();
    // As it comes back from the server.
    serde_json::from_str(&serde_json::to_string(&entries).unwrap()).unwrap()
}

fn read_back(graph: &Graph, entries: &[NodeStatus], cancelled: Option<CancelCause>) -> RunState {
    let mut state = RunState::new(graph).with_timeouts_kept();
    let mut events = vec![Event::RunStarted { at: at(0) }];
    let told = status::cancelled(
        cancelled.map(Into::into),
        entries.iter().collect::<Vec<_>>().iter(),
    );
    events.extend(told.map(|cause| Event::Cancelled { cause, at: at(0) }));
    let by_name = status::merged(entries);
    for (ix, node) in graph.iter() {
        if let Some(entry) = by_name.get(node.name.as_str()) {
            events.extend(status::events(ix, entry));
        }
    }
    for event in &events {
        state
            .fold(graph, event)
            .unwrap_or_else(|illegal| panic!("{illegal}: {event:?}"));
    }
    state
}

/// Without what no record tells: that an attempt is being ended is decided again.
fn plain(state: &NodeState) -> NodeState {
    match state.clone() {
        NodeState::Running(mut running) => {
            running.killing = None;
            NodeState::Running(running)
        }
        NodeState::Lost { mut was, message } => {
            was.killing = None;
            NodeState::Lost { was, message }
        }
        other => other,
    }
}

proptest! {
    #[test]
    fn what_is_read_back_is_what_was_written(
        prev in prop::collection::vec(prop::collection::vec(0_usize..6, 0..3), 1..7),
        moves in prop::collection::vec((0_usize..5, outcome(), 0_u8..30), 0..20),
        retry in any::<bool>(),
    ) {
        let graph = graph(&prev, |at| format!("n{at}"));
        let on_lost = if retry { OnLost::Retry } else { OnLost::Fail };
        let limits = Limits { on_lost, ..Limits::default() };
        let state = play(&graph, &limits, &moves);
        let written = entries(&graph, &state);
        let again = read_back(&graph, &written, state.cancelled());
        for (ix, node) in state.iter() {
            prop_assert_eq!(plain(again.node(ix)), plain(node));
        }
        prop_assert_eq!(again.cancelled(), state.cancelled());
        prop_assert_eq!(entries(&graph, &again), written);
        // And it goes on in the same way, kills aside, which are decided again.
        if state.cancelled().is_none() {
            let next = |state: &RunState| step(&graph, state, &limits, at(1000));
            prop_assert_eq!(next(&again), next(&state));
        }
    }

    #[test]
    fn entries_that_somebody_wrote_by_hand_do_no_harm(
        phase in 0_usize..7,
        attempt in prop::option::of(0_u32..2_000_000_000),
        reason in prop::option::of("Lost|Timeout|ReturnCode|Signal|Nonsense|"),
        code in prop::option::of(any::<i64>()),
        times in (any::<bool>(), any::<bool>()),
    ) {
        let graph = graph(&[vec![], vec![0]], |at| format!("n{at}"));
        let time = |given: bool| given.then(|| k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(at(5)));
        let entry = NodeStatus {
            name: "n0".to_owned(),
            phase: crate::engine::state::Phase::ALL[phase].into(),
            attempt,
            reason,
            exit_code: code,
            start_time: time(times.0),
            end_time: time(times.1),
            ..NodeStatus::default()
        };
        let mut state = RunState::new(&graph);
        state.fold(&graph, &Event::RunStarted { at: at(0) }).unwrap();
        for event in status::events(graph.iter().next().unwrap().0, &entry) {
            state.fold(&graph, &event).unwrap();
        }
    }
}

/// A run whose nodes say as much as ever they can.
fn worst(
    nodes: usize,
    name: impl Fn(usize) -> String,
    message: &str,
    said: &str,
) -> (Graph, RunState) {
    let graph = graph(&vec![vec![]; nodes], name);
    let mut state = RunState::new(&graph);
    state
        .fold(&graph, &Event::RunStarted { at: at(0) })
        .unwrap();
    for decision in step(&graph, &state, &Limits::default(), at(0)).decisions {
        state.fold(&graph, &decision.event(at(0))).unwrap();
    }
    let text = || Some(Value::String(said.to_owned()));
    let list = Value::List(vec![Value::String(said.to_owned()); 3]);
    let truncated: BTreeMap<String, u64> = (0..500)
        .map(|it| (format!("{it}{message}"), u64::MAX))
        .chain([("output".to_owned(), u64::MAX)])
        .collect();
    let captured = Captured {
        output: Some(list),
        err_msg: text(),
        err_code: text(),
        info: text(),
        truncated,
    };
    for (ix, _) in graph.iter() {
        let NodeState::Running(running) = state.node(ix) else {
            unreachable!()
        };
        let outcome = Outcome {
            ending: Ending::Exception(message.to_owned()),
            captured: captured.clone(),
        };
        let event = Event::Ended {
            node: ix,
            attempt: running.attempt,
            outcome,
            at: at(1),
        };
        state.fold(&graph, &event).unwrap();
    }
    (graph, state)
}

#[test]
fn no_object_is_larger_than_256_kib() {
    let long = |c: &str| c.repeat(300 / c.chars().count() - 8);
    for nodes in [1, 17, 100, 101] {
        for (letter, message, said) in [
            ("x", "no", "y"),
            ("\u{1f600}", "\u{1f600}", "\u{1f600}"),
            ("\"", "\u{1}", "\u{1}"),
            ("\\", "\"", "\n"),
        ] {
            let name = |at: usize| format!("{}{at}", long(letter));
            let (graph, state) = worst(nodes, name, &message.repeat(2_000), &said.repeat(20_000));
            let run = WorkflowRun::new("r", Default::default());
            let pod = PodReference {
                name: "p".repeat(50),
                uid: Some("u".repeat(36)),
            };
            let facts = move |_| PodFacts {
                pod: Some(pod.clone()),
                sandbox: Some("s".repeat(200)),
                ..PodFacts::default()
            };
            let verdict = Verdict {
                phase: crate::engine::state::Phase::Failed,
                return_code: 0,
            };
            let view = View {
                graph: &graph,
                state: &state,
                run: &run,
                resolved: &Resolved::default(),
                verdict: Some(verdict),
                facts: &facts,
                now: at(2),
                version: 1,
            };
            let pages: std::collections::BTreeSet<u32> = if nodes > 100 {
                (0..nodes.div_ceil(100) as u32).collect()
            } else {
                Default::default()
            };
            let draft = Draft::new(&view, &pages);
            for (what, size) in draft.sizes() {
                assert!(
                    size < 256 * 1024,
                    "{what} of {nodes} nodes with {letter:?}: {size} bytes"
                );
            }
            let kept: usize = graph
                .iter()
                .map(|(ix, _)| {
                    let NodeState::Finished(finished) = state.node(ix) else {
                        unreachable!()
                    };
                    let ending = Ending::Exited(0);
                    let captured = finished.captured().clone();
                    let kept = status::kept(&graph, ix, Outcome { ending, captured }).captured;
                    serde_json::to_string(&kept).unwrap().len()
                })
                .sum();
            assert!(
                kept < nodes.div_ceil(100) * 256 * 1024,
                "{kept} bytes are held of {nodes} nodes"
            );
        }
    }
}

#[test]
fn a_short_text_stands_there_whole() {
    let graph = graph(&vec![vec![]; 100], |at| format!("n{at}"));
    let ix = graph.iter().next().unwrap().0;
    let said = "a line of a hundred letters or so, which is what most nodes say at most, and seldom more\n".repeat(7);
    let captured = Captured {
        output: Some(Value::String(said.clone())),
        ..Captured::default()
    };
    let kept = status::kept(
        &graph,
        ix,
        Outcome {
            ending: Ending::Exited(0),
            captured,
        },
    );
    assert_eq!(kept.captured.output, Some(Value::String(said)));
    assert!(kept.captured.truncated.is_empty());
}
