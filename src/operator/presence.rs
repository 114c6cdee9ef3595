//! Waits until the API serves our kinds: the operator may well be there before they are.
//!
//! Must not create them; the chart does, or an admin.

use std::collections::BTreeSet;
use std::time::Duration;

use kube::Client;
use tokio::time::sleep;
use tracing::info;

use super::health::Health;

/// Waits until every one of `plurals` is served in `group_version` (such as
/// `apscli.dev/v1alpha1`), and tells `health` what is missing until then.
pub async fn kinds(client: &Client, health: &Health, group_version: &str, plurals: &[&str]) {
    let need = health.needs(&format!("the resources of {group_version}"));
    let mut said = String::new();
    loop {
        let why = match client.list_api_group_resources(group_version).await {
            Ok(list) => {
                let served: BTreeSet<&str> = list
                    .resources
                    .iter()
                    .map(|known| known.name.as_str())
                    .collect();
                let missing = plurals.iter().filter(|name| !served.contains(*name));
                let missing: Vec<&str> = missing.copied().collect();
                if missing.is_empty() {
                    return;
                }
                format!("not served by the API: {}", missing.join(", "))
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {
                format!("not served by the API: {}", plurals.join(", "))
            }
            Err(error) => format!("cannot ask the API: {error}"),
        };
        // First for who asks: whoever has read the line may.
        need.missing(&why);
        if why != said {
            info!("waits for its resources: {why}");
            said.clone_from(&why);
        }
        sleep(Duration::from_secs(2)).await;
    }
}
