//! Taking the operator's finalizer off every pod, for when no operator is left to do it: at
//! uninstall, or after one.
//!
//! While an operator works, it goes on making pods with the finalizer. So its own pods are waited
//! for first, and what is stripped then stays so.
//!
//! Ours are pods with the operator's label, and those whose controlling owner is a `WorkflowRun`: the
//! label is what everybody who may edit pods can take off.
//!
//! Must not touch anything else of a pod, or pods that say they are somebody else's.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, ListParams};
use kube::{Client, Config, ResourceExt};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{info, warn};

use crate::api::outside::Bare;
use crate::api::{GROUP, LABEL_MANAGED_BY, MANAGED_BY};
use crate::executor::pod::FINALIZER;

use super::OperatorError;
use super::apply;
use super::client::client;
use super::lease::Leadership;
use super::metrics::Metrics;
use super::object::Pages;
use super::options::Scope;

/// Patches in flight at once.
const AT_ONCE: usize = 16;

/// How long to wait before what did not come out well is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Order {
    /// Where pods are looked for.
    pub scope: Scope,
    /// The pods of the operator itself, which have to be gone first.
    pub after: Option<Operators>,
    /// How long all of it may take.
    pub within: Duration,
}

/// The pods of the operator itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operators {
    /// Their namespace.
    pub namespace: String,
    /// A label selector, as `app.kubernetes.io/name=apscli`.
    pub selector: String,
}

/// Why finalizers are left.
#[derive(Debug, thiserror::Error)]
pub enum StripError {
    /// There is no way to the cluster.
    #[error(transparent)]
    Cluster(#[from] OperatorError),
    /// The time is over, and the last call failed.
    #[error("not done within {} s; {stripped} pods were done", within.as_secs())]
    Failed {
        /// The time that there was.
        within: Duration,
        /// How many pods have lost the finalizer.
        stripped: usize,
        /// What the API answered last.
        source: kube::Error,
    },
    /// The time is over.
    #[error("not done within {} s: {why}; {stripped} pods were done", within.as_secs())]
    Late {
        /// The time that there was.
        within: Duration,
        /// How many pods have lost the finalizer.
        stripped: usize,
        /// What there is still to do.
        why: String,
    },
}

/// Strips all pods, and says how many there were. May be repeated.
pub async fn strip(order: &Order) -> Result<usize, StripError> {
    let config = Config::infer().await.map_err(OperatorError::Config)?;
    // Not by leadership: it stays possible though a Lease was left behind.
    let client = client(config, Arc::new(Metrics::default()), Leadership::alone())
        .map_err(OperatorError::Client)?;
    strip_with(&client, order).await
}

async fn strip_with(client: &Client, order: &Order) -> Result<usize, StripError> {
    let deadline = Instant::now() + order.within;
    let mut stripped = 0;
    let mut last = None;
    loop {
        let turn = timeout_at(deadline, turn(client, order, &mut stripped)).await;
        match turn {
            Ok(Ok(None)) => return Ok(stripped),
            Ok(Ok(Some(why))) => {
                info!("{why}");
                last = Some(Ok(why));
            }
            // Rights given a moment ago may not be there yet, so no answer is the last word.
            Ok(Err(error)) => {
                warn!(%error, "cannot do it yet");
                last = Some(Err(error));
            }
            Err(_) => {}
        }
        if Instant::now() + PAUSE >= deadline {
            let within = order.within;
            return Err(match last {
                Some(Err(source)) => StripError::Failed {
                    within,
                    stripped,
                    source,
                },
                why => StripError::Late {
                    within,
                    stripped,
                    why: why
                        .and_then(Result::ok)
                        .unwrap_or_else(|| "the first pass did not end".to_owned()),
                },
            });
        }
        sleep(PAUSE).await;
    }
}

/// One pass. Gives what there is to wait for, and nothing once no pod is left with the finalizer.
async fn turn(
    client: &Client,
    order: &Order,
    stripped: &mut usize,
) -> Result<Option<String>, kube::Error> {
    if let Some(operators) = &order.after {
        let api: Api<Pod> = Api::namespaced(client.clone(), &operators.namespace);
        let params = ListParams::default().labels(&operators.selector);
        let mut pages = Pages::of_metadata(params);
        let mut there = 0;
        while let Some(page) = pages.next::<_, Bare<Pod>>(&api).await? {
            there += page.len();
        }
        if there > 0 {
            return Ok(Some(format!(
                "{there} pods of the operator are still there"
            )));
        }
    }
    let labels = format!("{LABEL_MANAGED_BY}={MANAGED_BY}");
    let mut found = held(client, order, &ListParams::default().labels(&labels)).await?;
    if found.is_empty() {
        // Every pod there is, a page at a time: only once those are done that a label finds.
        found = held(client, order, &ListParams::default()).await?;
    }
    if found.is_empty() {
        return Ok(None);
    }
    let why = format!("{} pods had the finalizer", found.len());
    let mut done = stream::iter(found)
        .map(|pod| async {
            let namespace = pod.namespace().unwrap_or_default();
            let pods = Api::namespaced(client.clone(), &namespace);
            apply::strip(&pods, pod, None).await;
        })
        .buffer_unordered(AT_ONCE);
    while done.next().await.is_some() {
        *stripped += 1;
    }
    // The next pass says whether that was all.
    Ok(Some(why))
}

/// The pods that these parameters find, are ours and have the finalizer.
async fn held(
    client: &Client,
    order: &Order,
    params: &ListParams,
) -> Result<Vec<Pod>, kube::Error> {
    let mut found = Vec::new();
    for api in super::apis::<Pod>(client, &order.scope) {
        let mut pages = Pages::of_metadata(params.clone());
        while let Some(page) = pages.next::<_, Bare<Pod>>(&api).await? {
            let held = page.into_iter().map(|pod| pod.metadata);
            let held = held.filter(is_held);
            found.extend(held.map(|metadata| Pod {
                metadata,
                ..Pod::default()
            }));
        }
    }
    Ok(found)
}

/// Whether a pod has the finalizer, and bears the operator's label or belongs to a run.
fn is_held(pod: &ObjectMeta) -> bool {
    let labels = pod.labels.iter().flatten();
    let labelled = || {
        labels
            .clone()
            .any(|(name, value)| name == LABEL_MANAGED_BY && value == MANAGED_BY)
    };
    let owned = || {
        pod.owner_references.iter().flatten().any(|owner| {
            let group = owner.api_version.split_once('/').map(|(group, _)| group);
            owner.controller == Some(true) && owner.kind == "WorkflowRun" && group == Some(GROUP)
        })
    };
    let finalizers = pod.finalizers.iter().flatten();
    finalizers.clone().any(|it| it == FINALIZER) && (labelled() || owned())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn pod_is_held_by_label_or_by_owner() {
        let held = |labels: Value, owner: Value, finalizer: &str| {
            is_held(
                &serde_json::from_value(json!({
                    "labels": labels, "ownerReferences": [owner], "finalizers": ["x/y", finalizer],
                }))
                .unwrap(),
            )
        };
        let owner = |kind: &str, version: &str, controller: bool| {
            json!({"kind": kind, "apiVersion": version, "name": "n", "uid": "u",
                "controller": controller})
        };
        let run = owner("WorkflowRun", "apscli.dev/v1alpha1", true);
        let other = owner("Job", "batch/v1", true);
        let ours = json!({"app.kubernetes.io/managed-by": "apscli"});
        assert!(held(ours.clone(), other.clone(), FINALIZER));
        assert!(held(json!({}), run.clone(), FINALIZER));
        assert!(!held(ours, run, "another.dev/result"));
        let foreign = json!({"app.kubernetes.io/managed-by": "Helm"});
        for owner in [
            other,
            owner("WorkflowRun", "argoproj.io/v1alpha1", true),
            owner("WorkflowRun", "apscli.dev/v1alpha1", false),
        ] {
            assert!(!held(foreign.clone(), owner.clone(), FINALIZER), "{owner}");
        }
    }
}
