//! What the engine, and reading what a watch tells, allocates, counted: a gate that hangs on no
//! machine and no clock. What it takes of time is measured by `tests/bench`.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use apscli::executor::pod::slim::SlimPod;
use apscli::template::{Filling, Limits, Params, Template};
use apscli::value::Value;
use kube::core::WatchEvent;

use crate::instant::{Shape, play};

/// Counts what the thread that asks has allocated.
struct Counting;

thread_local! {
    /// Allocations, and their bytes.
    static TAKEN: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
}

fn count(bytes: usize) {
    // A thread that ends frees and allocates without its variables.
    let _ = TAKEN.try_with(|taken| {
        let (times, sum) = taken.get();
        taken.set((times + 1, sum + bytes as u64));
    });
}

// SAFETY: everything is handed on to the system's allocator as it came; counting touches nothing of it.
#[allow(unsafe_code, reason = "an allocator cannot be had without")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as promised by who calls.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: likewise.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: likewise.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations and bytes for each node of a run of instant nodes, from its spec to its verdict.
fn taken(shape: Shape, nodes: u32) -> (f64, f64) {
    let spec = shape.spec(nodes as usize).unwrap();
    let before = TAKEN.get();
    play(spec).unwrap();
    let after = TAKEN.get();
    let per_node = |before: u64, after: u64| {
        f64::from(u32::try_from(after - before).unwrap()) / f64::from(nodes)
    };
    (per_node(before.0, after.0), per_node(before.1, after.1))
}

/// Limits are a tenth above what was counted when they were set.
#[test]
fn a_node_takes_few_allocations_however_large_the_run() {
    let mut wrong = Vec::new();
    // Of a fan, a chain, layers.
    let limits = [(2.2, 450.0), (2.2, 455.0), (2.2, 490.0)];
    for (shape, (most, most_bytes)) in Shape::ALL.into_iter().zip(limits) {
        let (few, _) = taken(shape, 1_000);
        let (times, bytes) = taken(shape, 10_000);
        let name = shape.name();
        println!("{name}: {times:.2} allocations and {bytes:.0} bytes a node; {few:.2} of 1,000");
        if times > most || bytes > most_bytes || times > 1.05 * few {
            wrong.push(format!(
                "{name}: {times:.2} allocations [{most}], {bytes:.0} bytes [{most_bytes}] a node; {few:.2} in a run of 1,000"
            ));
        }
    }
    assert_eq!(wrong, [""; 0]);
}

/// What a watch tells of a pod that has ended, 5.6 kB. Read whole it takes 261 allocations of 45 kB.
#[test]
fn an_event_of_a_pod_takes_few_allocations() {
    let told = include_str!("../data/pod-event.json");
    let before = TAKEN.get();
    let event: WatchEvent<SlimPod> = serde_json::from_str(told).unwrap();
    let after = TAKEN.get();
    drop(event);
    let (times, bytes) = (after.0 - before.0, after.1 - before.1);
    println!("{times} allocations, {bytes} bytes");
    assert!(
        times <= 54 && bytes <= 6_500,
        "{times} allocations [54], {bytes} bytes [6,500]"
    );
}

/// What it takes to read and to fill a template in a cluster, in bytes; or the error.
fn read(text: &str, params: &Params) -> (u64, Result<usize, String>) {
    let before = TAKEN.get().1;
    let graph = Template::read_within("t.json", text, Limits::CLUSTER)
        .and_then(|template| template.graph(Filling::With(params)));
    let result = match graph {
        Ok(graph) => Ok(graph.len()),
        Err(problems) => {
            assert!(problems.is_too_large(), "{problems}");
            Err(problems.to_string())
        }
    };
    (TAKEN.get().1 - before, result)
}

/// 830 KB of a run that meant 1.4 GB.
#[test]
fn amplified_parameter_allocates_little_before_it_is_refused() {
    let node = r#"{"param": {"p": "$big"}, "action": {"type": "cmd", "cmd": "true"}}"#;
    let nodes: Vec<String> = (0..2_000).map(|at| format!("\"n{at}\": {node}")).collect();
    let text = format!("{{{}}}", nodes.join(","));
    for big in [
        Value::from("x".repeat(700_000)),
        Value::List(vec![Value::Number("1".to_owned()); 200_000]),
    ] {
        let (bytes, result) = read(&text, &Params::from([("big".to_owned(), big)]));
        let error = result.unwrap_err();
        assert!(error.contains("the parameter `big`"), "{error}");
        println!("{bytes} bytes, {error}");
        assert!(bytes < 150_000_000, "{bytes} bytes");
    }
}

/// The smallest values are the worst of their size. What is allocated is more than what is held, as a
/// list grows by being copied.
#[test]
fn template_of_small_values_allocates_no_more_than_its_budget() {
    let list = |item: &str, times: usize| format!("{{\"a\": [{}1]}}", item.repeat(times));
    let map = |times: usize| {
        let members: Vec<String> = (0..times).map(|at| format!("\"{at:x}\":0")).collect();
        format!("{{\"a\": {{{}}}}}", members.join(","))
    };
    for text in [
        list("1,", 4_000_000),
        list("[],", 2_500_000),
        list("{},", 2_500_000),
        map(600_000),
    ] {
        let (bytes, result) = read(&text, &Params::new());
        let error = result.unwrap_err();
        assert!(error.contains("more than 500000 values"), "{error}");
        println!("{bytes} bytes for {} bytes of text", text.len());
        assert!(bytes < 200_000_000, "{bytes} bytes");
    }
}

/// The largest templates that people have, written richly, are far from the limits.
#[test]
fn template_of_20_000_nodes_is_read_within_the_limits_of_a_cluster() {
    let node = |at: usize| {
        let prev: Vec<String> = match at.checked_sub(100) {
            Some(before) => (0..3)
                .map(|step| format!("\"n{}\"", before + step))
                .collect(),
            None => Vec::new(),
        };
        let expr: Vec<String> = match at.checked_sub(100) {
            Some(before) => (0..3)
                .map(|step| format!("n{}==1", before + step))
                .collect(),
            None => vec!["1==1".to_owned()],
        };
        format!(
            "\"n{at}\": {{\"id\": {at}, \"prev_nodes\": [{}], \"timeout\": \"5m\",
              \"decision_expr\": \"{}\",
              \"action\": {{\"type\": \"cmd\", \"cmd\": \"python3 tools/step.py --region $region --quiet\",
                            \"env\": {{\"REGION\": \"$region\", \"STEP\": \"{at}\"}}}},
              \"param\": {{\"host\": \"host-{at}.example\", \"tries\": 3, \"tags\": [\"a\", \"b\"]}}}}",
            prev.join(","),
            expr.join("&&")
        )
    };
    let nodes: Vec<String> = (0..20_000).map(node).collect();
    let text = format!("{{{}}}", nodes.join(","));
    let params = Params::from([("region".to_owned(), Value::from("eu-central-1"))]);
    let (bytes, result) = read(&text, &params);
    println!("{bytes} bytes for {} bytes of text", text.len());
    assert_eq!(result, Ok(20_000));
    assert!(bytes < 500_000_000, "{bytes} bytes");
}
