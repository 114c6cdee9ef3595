//! The laws of the engine, over random graphs and random orders of what happens.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::time::Duration;

use apscli::engine::event::{CancelCause, Ending, Event, Outcome, Reason, ReasonWord};
use apscli::engine::graph::{Graph, GraphError, NodeIx};
use apscli::engine::name::Attempt;
use apscli::engine::state::{NodeState, Phase, RunState};
use apscli::engine::step::{Decision, Limits, OnLost, Verdict, step, waiting};
use apscli::template::{Filling, Params, Template};
use jiff::Timestamp;
use proptest::prelude::*;

/// A node: its predecessors by number, and which of the conditions it has.
#[derive(Clone, Debug)]
struct NodePlan {
    prev: Vec<usize>,
    condition: u8,
    /// How each attempt ends.
    ending: u8,
}

/// Acyclic by construction: edges lead from lower to higher numbers only.
fn dag() -> impl Strategy<Value = Vec<NodePlan>> {
    (1_usize..12).prop_flat_map(|n| {
        let nodes: Vec<_> = (0..n)
            .map(|i| {
                (
                    prop::collection::btree_set(0..i.max(1), 0..=i.min(4)),
                    0_u8..8,
                    0_u8..8,
                )
                    .prop_map(move |(prev, condition, ending)| NodePlan {
                        prev: prev.into_iter().filter(|p| *p < i).collect(),
                        condition,
                        ending,
                    })
            })
            .collect();
        nodes
    })
}

fn template(plan: &[NodePlan]) -> String {
    let nodes: Vec<String> = plan
        .iter()
        .enumerate()
        .map(|(i, node)| {
            let names: Vec<String> = node.prev.iter().map(|p| format!("n{p}")).collect();
            let condition = match (node.condition, names.as_slice()) {
                (0, [_, ..]) => Some(names.join(" || ")),
                (1, [first, ..]) => Some(format!("{first} == 'N/A' || {first} == 0")),
                (2, [first, ..]) => Some(format!("{} >= 1", [first.as_str(); 2].join(" + "))),
                _ => None,
            };
            let condition = condition.map_or(String::new(), |text| format!(", \"decision_expr\": \"{text}\""));
            let prev: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
            format!(
                "\"n{i}\": {{\"prev_nodes\": [{}], \"action\": {{\"type\": \"cmd\", \"cmd\": \"true\"}}{condition}}}",
                prev.join(",")
            )
        })
        .collect();
    format!("{{{}}}", nodes.join(",\n"))
}

fn graph(text: &str) -> Graph {
    let params = Params::new();
    Template::read("plan", text)
        .unwrap()
        .graph(Filling::With(&params))
        .unwrap()
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn ending(plan: &[NodePlan], node: NodeIx, attempt: Attempt, graph: &Graph) -> Ending {
    let index: usize = graph.name(node).as_str()[1..].parse().unwrap();
    match plan[index].ending {
        0 => Ending::Exited(1),
        1 => Ending::Exception("boom".to_owned()),
        2 if attempt == Attempt::FIRST => Ending::Lost("gone".to_owned()),
        3 => Ending::Lost("gone".to_owned()),
        _ => Ending::Exited(0),
    }
}

struct Simulation {
    events: Vec<Event>,
    state: RunState,
    verdict: Option<Verdict>,
}

/// Drives a run from `state`: `choices` picks which running attempt ends next. Checks on the way
/// what must hold at every moment.
fn simulate(
    plan: &[NodePlan],
    graph: &Graph,
    limits: &Limits,
    mut state: RunState,
    choices: &[usize],
    mut seen: BTreeSet<(NodeIx, Attempt)>,
) -> Simulation {
    let mut events = Vec::new();
    let mut take = |state: &mut RunState, event: Event| {
        if let Event::Started { node, attempt, .. } = &event {
            assert!(seen.insert((*node, *attempt)), "started twice: {event:?}");
            for prev in graph.prev(*node) {
                assert!(
                    matches!(state.node(prev), NodeState::Finished(_)),
                    "started before its predecessors"
                );
            }
        }
        state.fold(graph, &event).unwrap();
        let running = state.running().count();
        assert!(limits.parallelism.is_none_or(|most| running <= most.get()));
        events.push(event);
    };
    if state.started_at().is_none() {
        take(&mut state, Event::RunStarted { at: at(0) });
    }
    let mut choices = choices.iter().copied().cycle();
    for turn in 0..10_000 {
        let now = at(turn);
        let next = step(graph, &state, limits, now);
        assert_eq!(next, step(graph, &state, limits, now), "step is pure");
        if let Some(verdict) = next.verdict {
            assert!(next.decisions.is_empty());
            return Simulation {
                events,
                state,
                verdict: Some(verdict),
            };
        }
        if !next.decisions.is_empty() {
            for decision in &next.decisions {
                take(&mut state, decision.event(now));
            }
            continue;
        }
        // Nothing to do without news, and every idle node says why.
        assert!(step(graph, &state, limits, now).decisions.is_empty());
        let idle = state
            .iter()
            .filter(|(_, node)| matches!(node, NodeState::Pending | NodeState::Lost { .. }));
        assert_eq!(idle.count(), waiting(graph, &state, limits).count());
        let running: Vec<NodeIx> = state.running().collect();
        assert!(!running.is_empty(), "stuck: {state:?}");
        let node = running[choices.next().unwrap_or(0) % running.len()];
        let NodeState::Running(run) = state.node(node).clone() else {
            panic!("not running")
        };
        let ending = match run.killing {
            Some(cause) => Ending::Killed(cause),
            None => ending(plan, node, run.attempt, graph),
        };
        take(
            &mut state,
            Event::Ended {
                node,
                attempt: run.attempt,
                outcome: Outcome::silent(ending),
                at: now,
            },
        );
    }
    Simulation {
        events,
        state,
        verdict: None,
    }
}

fn whole(plan: &[NodePlan], graph: &Graph, limits: &Limits, choices: &[usize]) -> Simulation {
    simulate(
        plan,
        graph,
        limits,
        RunState::new(graph),
        choices,
        BTreeSet::new(),
    )
}

fn phases(graph: &Graph, state: &RunState) -> BTreeMap<String, (Phase, Option<i64>)> {
    state
        .iter()
        .map(|(node, state)| (graph.name(node).to_string(), (state.phase(), state.code())))
        .collect()
}

fn limits(parallel: usize, retry: bool) -> Limits {
    Limits {
        parallelism: NonZeroUsize::new(parallel),
        timeout: None,
        on_lost: if retry { OnLost::Retry } else { OnLost::Fail },
    }
}

/// The codes a run must end with, by ten lines that know no events: nodes in order, each by its
/// condition over the codes of those before it.
fn reference(plan: &[NodePlan], retry: bool) -> BTreeMap<String, Option<i64>> {
    let mut codes: Vec<Option<i64>> = Vec::new();
    for node in plan {
        let prev: Vec<Option<i64>> = node.prev.iter().map(|p| codes[*p]).collect();
        let starts = match (node.condition, prev.as_slice()) {
            (0, [_, ..]) => prev.contains(&Some(1)),
            (1, [first, ..]) => *first != Some(1),
            (2, [first, ..]) => *first == Some(1),
            _ => prev.iter().all(|code| *code == Some(1)),
        };
        let succeeds = node.ending >= 4 || (node.ending == 2 && retry);
        codes.push(starts.then_some(i64::from(succeeds)));
    }
    codes
        .into_iter()
        .enumerate()
        .map(|(i, code)| (format!("n{i}"), code))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_run_ends_as_the_reference_says_in_any_order(
        plan in dag(), choices in prop::collection::vec(0_usize..8, 1..20), parallel in 1_usize..5, retry: bool,
    ) {
        let graph = graph(&template(&plan));
        let limits = limits(parallel, retry);
        let run = whole(&plan, &graph, &limits, &choices);
        prop_assert!(run.verdict.is_some());
        let codes: BTreeMap<String, Option<i64>> =
            phases(&graph, &run.state).into_iter().map(|(name, (_, code))| (name, code)).collect();
        prop_assert_eq!(&codes, &reference(&plan, retry));
        let success = codes.values().all(|code| *code == Some(1));
        prop_assert_eq!(run.verdict.unwrap().return_code, i64::from(success));

        let other: Vec<usize> = choices.iter().rev().map(|choice| choice + 1).collect();
        let wider = Limits { parallelism: None, ..limits };
        let again = whole(&plan, &graph, &wider, &other);
        prop_assert_eq!(phases(&graph, &again.state), phases(&graph, &run.state));
    }

    #[test]
    fn every_prefix_goes_on_to_the_same_end(
        plan in dag(), choices in prop::collection::vec(0_usize..8, 1..20), parallel in 1_usize..5,
    ) {
        let graph = graph(&template(&plan));
        let limits = limits(parallel, true);
        let run = whole(&plan, &graph, &limits, &choices);
        for cut in 0..=run.events.len() {
            let mut state = RunState::new(&graph);
            let mut seen = BTreeSet::new();
            for event in &run.events[..cut] {
                state.fold(&graph, event).unwrap();
                if let Event::Started { node, attempt, .. } = event {
                    seen.insert((*node, *attempt));
                }
            }
            let rest = simulate(&plan, &graph, &limits, state, &choices, seen);
            prop_assert_eq!(phases(&graph, &rest.state), phases(&graph, &run.state), "cut at {}", cut);
        }
    }

    #[test]
    fn final_is_final(
        plan in dag(), choices in prop::collection::vec(0_usize..8, 1..20), replay in prop::collection::vec(0_usize..500, 1..40),
    ) {
        let graph = graph(&template(&plan));
        let run = whole(&plan, &graph, &limits(3, true), &choices);
        let mut state = run.state.clone();
        for pick in replay {
            let event = &run.events[pick % run.events.len()];
            prop_assert!(state.fold(&graph, event).is_err(), "{:?}", event);
            prop_assert_eq!(&state, &run.state);
        }
    }

    #[test]
    fn a_cancelled_run_starts_nothing_and_ends(
        plan in dag(), choices in prop::collection::vec(0_usize..8, 1..20), cut in 0_usize..60,
    ) {
        let graph = graph(&template(&plan));
        let limits = limits(3, true);
        let run = whole(&plan, &graph, &limits, &choices);
        let mut state = RunState::new(&graph);
        for event in run.events.iter().take(cut.max(1)) {
            state.fold(&graph, event).unwrap();
        }
        let over = state.finished() == graph.len();
        state.fold(&graph, &Event::Cancelled { cause: CancelCause::Asked, at: at(1) }).unwrap();
        let rest = simulate(&plan, &graph, &limits, state, &choices, BTreeSet::new());
        let started = rest.events.iter().any(|event| matches!(event, Event::Started { .. }));
        prop_assert!(!started);
        let verdict = rest.verdict.unwrap();
        if over {
            prop_assert_eq!(Some(verdict), run.verdict, "a run that is over stays as it ended");
        } else {
            prop_assert_eq!((verdict.phase, verdict.return_code), (Phase::Cancelled, 0));
        }
    }

    /// Edges in any direction: refused exactly when there is a cycle, and the named one is real.
    #[test]
    fn cycles_are_refused_and_named(edges in prop::collection::btree_set((0_usize..8, 0_usize..8), 0..20)) {
        let edges: BTreeSet<(usize, usize)> = edges.into_iter().filter(|(from, to)| from != to).collect();
        let nodes: Vec<String> = (0..8).map(|to| {
            let prev: Vec<String> = edges.iter().filter(|(_, t)| *t == to).map(|(from, _)| format!("\"n{from}\"")).collect();
            format!("\"n{to}\": {{\"prev_nodes\": [{}], \"action\": {{\"type\": \"cmd\", \"cmd\": \"true\"}}}}", prev.join(","))
        }).collect();
        let text = format!("{{{}}}", nodes.join(","));
        let params = Params::new();
        let spec = Template::read("plan", &text).unwrap().spec(Filling::With(&params)).unwrap();

        let mut left: BTreeSet<usize> = (0..8).collect();
        while let Some(free) = left.iter().copied().find(|node| !edges.iter().any(|(from, to)| to == node && left.contains(from))) {
            left.remove(&free);
        }
        match Graph::build(spec) {
            Ok(_) => prop_assert!(left.is_empty()),
            Err(errors) => {
                prop_assert!(!left.is_empty());
                for error in errors {
                    let GraphError::Cycle { nodes, .. } = error else { panic!("{error}") };
                    let numbers: Vec<usize> = nodes.iter().map(|name| name.as_str()[1..].parse().unwrap()).collect();
                    let unique: BTreeSet<_> = numbers.iter().collect();
                    prop_assert_eq!(unique.len(), numbers.len());
                    for (index, from) in numbers.iter().enumerate() {
                        let to = numbers[(index + 1) % numbers.len()];
                        prop_assert!(edges.contains(&(*from, to)), "{} -> {} is no edge", from, to);
                    }
                }
            }
        }
    }
}

#[test]
fn timeouts_wake_and_kill_once() {
    let text = r#"{"a": {"action": {"type": "cmd", "cmd": "true"}, "timeout": 5}, "b": {"prev_nodes": ["a"], "action": {"type": "cmd", "cmd": "true"}}}"#;
    let graph = graph(text);
    let limits = Limits {
        timeout: Some(Duration::from_mins(1)),
        ..Limits::default()
    };
    let a = graph.find("a").unwrap();
    let mut state = RunState::new(&graph);
    state
        .fold(&graph, &Event::RunStarted { at: at(0) })
        .unwrap();
    state
        .fold(
            &graph,
            &Event::Started {
                node: a,
                attempt: Attempt::FIRST,
                at: at(0),
            },
        )
        .unwrap();
    let next = step(&graph, &state, &limits, at(4));
    assert_eq!((next.decisions.len(), next.wake_at), (0, Some(at(5))));
    let next = step(&graph, &state, &limits, at(5));
    assert!(
        matches!(next.decisions.as_slice(), [Decision::Kill { .. }]),
        "{next:?}"
    );
    state.fold(&graph, &next.decisions[0].event(at(5))).unwrap();
    let next = step(&graph, &state, &limits, at(6));
    assert_eq!((next.decisions.len(), next.wake_at), (0, Some(at(60))));
    let reason = Reason::new(ReasonWord::Lost, "");
    assert!(
        state
            .fold(
                &graph,
                &Event::Skipped {
                    node: a,
                    reason,
                    at: at(6)
                }
            )
            .is_err()
    );
    // The kill took effect after apscli itself was gone: it is the timeout that is known.
    let outcome = Outcome::silent(Ending::Lost("gone".to_owned()));
    state
        .fold(
            &graph,
            &Event::Ended {
                node: a,
                attempt: Attempt::FIRST,
                outcome,
                at: at(7),
            },
        )
        .unwrap();
    let NodeState::Finished(finished) = state.node(a) else {
        panic!("{state:?}")
    };
    assert_eq!(
        finished.reason.as_ref().map(|reason| reason.word),
        Some(ReasonWord::Timeout)
    );
}
