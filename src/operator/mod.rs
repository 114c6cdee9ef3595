//! The driver in the cluster: observe → fold → step → apply → publish.
//!
//! Must not compute what the engine computes.

pub mod client;
pub mod health;
pub mod lease;
pub mod metrics;
pub mod options;
pub mod presence;
pub mod spans;

use std::sync::Arc;

use kube::Config;

use health::Health;
use lease::{Leadership, Lease, Timing};
use metrics::Metrics;
use options::Options;

/// Why the operator ended without being asked to.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// Neither a kubeconfig nor a pod's service account.
    #[error("found no way to a cluster")]
    Config(#[from] kube::config::InferConfigError),
    /// The configuration is of no use.
    #[error("cannot make a client for the cluster")]
    Client(#[source] kube::Error),
    /// Another replica may lead now. This process has to end, and may start anew.
    #[error("the lease {0} is lost")]
    Lost(String),
}

/// Works until `stop` comes back, in a cluster that is found as kubectl finds it or from inside a
/// pod. Then it takes on nothing new, waits for what is in flight, and gives the Lease back.
pub async fn run(
    options: Options,
    metrics: Arc<Metrics>,
    health: Health,
    stop: impl Future<Output = ()>,
) -> Result<(), OperatorError> {
    tokio::pin!(stop);
    let config = Config::infer().await?;
    let connect = |leadership: &Leadership| {
        client::client(config.clone(), Arc::clone(&metrics), leadership.clone())
            .map_err(OperatorError::Client)
    };
    let (leadership, lease) = match &options.election {
        None => (Leadership::alone(), None),
        Some(election) => {
            let lease = Lease::new(
                connect(&Leadership::alone())?,
                &election.namespace,
                &election.lease,
                &election.identity,
                Timing::default(),
            );
            (lease.leadership(), Some((lease, &election.lease)))
        }
    };
    let client = connect(&leadership)?;
    tokio::select! {
        () = presence::kinds(&client, &health, "apscli.dev/v1alpha1", &["services", "workflowruns"]) => {}
        () = &mut stop => return Ok(()),
    }
    let mut name = String::new();
    if let Some((lease, called)) = lease {
        name.clone_from(called);
        tokio::select! {
            _ = lease.acquire() => {}
            () = &mut stop => return Ok(()),
        }
    }
    metrics.set_leads(true);
    let ended = tokio::select! {
        () = leadership.lost() => Err(OperatorError::Lost(name)),
        () = &mut stop => {
            leadership.release().await;
            Ok(())
        }
    };
    metrics.set_leads(false);
    ended
}
