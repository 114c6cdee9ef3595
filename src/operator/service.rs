//! The catalogue as the operator knows it: `Service` objects and catalogue `ConfigMaps`.
//!
//! Must not know runs.

use std::pin::Pin;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::SelectAll;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};

use crate::api::service::Service;

use super::context::Context;
use super::health::Health;
use super::options::Options;

/// Label of the `ConfigMaps` that hold catalogues.
const CATALOG: &str = "apscli.dev/catalog";

/// What is known of the catalogue.
pub(super) struct Shelves {
    pub(super) services: Store<Service>,
    pub(super) config_maps: Store<ConfigMap>,
}

impl Shelves {
    /// Comes back when everything was listed once.
    pub(super) async fn ready(&self) {
        // The writers live as long as the operator works.
        let _ = self.services.wait_until_ready().await;
        let _ = self.config_maps.wait_until_ready().await;
    }
}

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The shelves, and what keeps them up to date.
pub(super) fn start(
    client: &Client,
    options: &Options,
    _health: &Health,
) -> (Shelves, impl FnOnce(Arc<Context>) -> Work + use<>) {
    let (services, services_writer) = reflector::store();
    let (config_maps, maps_writer) = reflector::store();
    let config = watcher::Config::default().timeout(30);
    let mut changes = SelectAll::new();
    let mut map_changes = SelectAll::new();
    for api in super::apis::<Service>(client, &options.scope) {
        changes.push(watcher(api, config.clone()).default_backoff().boxed());
    }
    for api in super::apis::<ConfigMap>(client, &options.scope) {
        map_changes.push(
            watcher(api, config.clone().labels(CATALOG))
                .default_backoff()
                .boxed(),
        );
    }
    let shelves = Shelves {
        services,
        config_maps,
    };
    let work = move |_| -> Work {
        Box::pin(async move {
            let services = reflector::reflector(services_writer, changes).for_each(|_| async {});
            let maps = reflector::reflector(maps_writer, map_changes).for_each(|_| async {});
            tokio::join!(services, maps);
        })
    };
    (shelves, work)
}
