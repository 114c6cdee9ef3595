//! What a run ran and what became of it, for somebody who only looks: the graph from what was
//! pinned, the state from what is on record, by the folds that the operator itself restarts by.
//!
//! Must not write, and must not decide what becomes of a run.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::Api;
use kube::{Client, ResourceExt};

use crate::api::workflow_run::{NodeStatus, WorkflowRun};
use crate::engine::event::Event;
use crate::engine::graph::Graph;
use crate::engine::state::RunState;

use super::object;
use super::resolve::{self, Unresolved};
use super::snapshot::{self, Pinned};
use super::status;

/// Why what a run ran cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum PastError {
    /// The API server does not give what was pinned.
    #[error("cannot read what the run runs")]
    Api(#[from] kube::Error),
    /// What was pinned is gone or broken, in words.
    #[error("{0}")]
    Broken(String),
}

/// The graph of a run and its state. `entries` are its nodes, from its status and its pages; no
/// graph: nothing was found to run yet, or ever.
pub async fn read(
    client: &Client,
    run: &WorkflowRun,
    entries: &[NodeStatus],
) -> Result<Option<(Graph, RunState)>, PastError> {
    let Some(resolved) = run.status.as_ref().and_then(|it| it.resolved.as_ref()) else {
        return Ok(None);
    };
    let pinned = if resolved.snapshot.is_empty() {
        Pinned::default()
    } else {
        let maps: Api<ConfigMap> =
            Api::namespaced(client.clone(), &run.namespace().unwrap_or_default());
        let mut found = Vec::new();
        for name in &resolved.snapshot {
            found.push((name.as_str(), object::get(&maps, name).await?));
        }
        snapshot::unpack(run, found).map_err(broken)?
    };
    let (_, graph) = resolve::graph(run, &pinned).map_err(broken)?;
    let mut state = RunState::new(&graph).with_timeouts_kept();
    let entries = status::merged(entries);
    for event in events(run, &graph, &entries) {
        // What makes no sense, as somebody wrote it by hand, is passed over as the operator does.
        let _ = state.fold(&graph, &event);
    }
    Ok(Some((graph, state)))
}

fn events(
    run: &WorkflowRun,
    graph: &Graph,
    entries: &std::collections::BTreeMap<&str, &NodeStatus>,
) -> Vec<Event> {
    let recorded = run.status.as_ref();
    let begun = recorded.and_then(|status| status.start_time.as_ref());
    let at = begun.map(|time| time.0).unwrap_or_default();
    let cause = recorded.and_then(|status| status.cancel_cause);
    let cancelled = status::cancelled(cause, entries.values());
    let cancelled = cancelled.map(|cause| Event::Cancelled { cause, at });
    let of_nodes = graph.iter().flat_map(|(ix, node)| {
        let entry = entries.get(node.name.as_str());
        entry.map_or_else(Vec::new, |entry| status::events(ix, entry))
    });
    std::iter::once(Event::RunStarted { at })
        .chain(cancelled)
        .chain(of_nodes)
        .collect()
}

fn broken(error: Unresolved) -> PastError {
    PastError::Broken(match error {
        Unresolved::Wait { message, .. } | Unresolved::Never { message, .. } => message,
        // Only an operator asks for less than all.
        Unresolved::Large => "it is larger than may be read".to_owned(),
        Unresolved::Cancelled => "the run was cancelled before it began".to_owned(),
    })
}
