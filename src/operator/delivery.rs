//! How `apscli-node` comes into a run's image, and whether the cluster's nodes can mount images.
//!
//! The nodes are asked only where the admin left it to them (`auto`) and a run needs it. Where they
//! cannot be read, or one of them cannot do it, the program is copied, which works everywhere.
//!
//! Must not know a run.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::api::outside::Outside;
use crate::executor::pod::build::Delivery;

use super::object::Pages;
use super::options::{self, Options};

/// How long an answer counts: nodes come and go.
const FRESH: Duration = Duration::from_secs(60);
/// Nodes of one answer of the API server. One says up to 20 kB of itself.
const PAGE: u32 = 100;
/// The oldest kubelet that mounts images unless told not to.
const KUBELET: (u32, u32) = (1, 36);
/// The oldest runtimes that mount a folder of an image. An older one may mount the whole image in
/// its place, and say nothing.
const RUNTIMES: [(&str, (u32, u32)); 2] = [("containerd", (2, 2)), ("cri-o", (1, 33))];

/// Whether this cluster's nodes can mount images, as they were last asked.
#[derive(Debug, Default)]
pub(super) struct ImageVolumes(Mutex<Option<(Instant, bool)>>);

impl ImageVolumes {
    /// How `apscli-node` comes into this image.
    pub(super) async fn delivery(
        &self,
        client: &Client,
        options: &Options,
        image: &str,
    ) -> Delivery {
        let is_default = image == options.node_image;
        let image = options.tools_image.clone();
        match options.delivery {
            Some(options::Delivery::InImage) => Delivery::InImage,
            None | Some(options::Delivery::Auto) if is_default => Delivery::InImage,
            Some(options::Delivery::ImageVolume) => Delivery::ImageVolume { image },
            Some(options::Delivery::Auto) if self.work(client).await => {
                Delivery::ImageVolume { image }
            }
            None | Some(options::Delivery::InitCopy | options::Delivery::Auto) => {
                Delivery::InitCopy { image }
            }
        }
    }

    async fn work(&self, client: &Client) -> bool {
        // Held while the nodes are asked: a hundred runs that begin at once ask once.
        let mut known = self.0.lock().await;
        if let Some((since, can)) = *known
            && since.elapsed() < FRESH
        {
            return can;
        }
        let can = match lacking(client).await {
            Ok(None) => true,
            Ok(Some(why)) => {
                tracing::info!("apscli-node is copied into images: {why}");
                false
            }
            Err(error) => {
                tracing::warn!(%error, "cannot read the cluster's nodes, so apscli-node is copied into images");
                false
            }
        };
        *known = Some((Instant::now(), can));
        can
    }
}

/// Why not every node can mount images, in words; none: each can.
async fn lacking(client: &Client) -> kube::Result<Option<String>> {
    let nodes: Api<Node> = Api::all(client.clone());
    let mut pages = Pages::new(ListParams::default()).at_most(PAGE);
    let mut seen = false;
    while let Some(page) = pages.next::<_, Outside<Node>>(&nodes).await? {
        seen |= !page.is_empty();
        let why = page.iter().find_map(|node| match &node.0 {
            Ok(node) => cannot(node),
            Err(invalid) => Some(format!(
                "the node {} cannot be read: {}",
                node.name_any(),
                invalid.error
            )),
        });
        if why.is_some() {
            return Ok(why);
        }
    }
    Ok((!seen).then(|| "the cluster has no nodes".to_owned()))
}

/// Why this node cannot mount images, in words; none: it can.
fn cannot(node: &Node) -> Option<String> {
    let status = node.status.as_ref();
    let info = status.and_then(|status| status.node_info.as_ref());
    let kubelet = info.map_or("", |info| info.kubelet_version.as_str());
    let runtime = info.map_or("", |info| info.container_runtime_version.as_str());
    let can = release(kubelet) >= Some(KUBELET)
        && runtime.split_once("://").is_some_and(|(name, version)| {
            let oldest = RUNTIMES.iter().find(|(known, _)| *known == name);
            oldest.is_some_and(|(_, oldest)| release(version) >= Some(*oldest))
        });
    (!can).then(|| {
        format!(
            "the node {} has kubelet `{kubelet}` and runtime `{runtime}`, which do not surely mount images",
            node.name_any()
        )
    })
}

/// The first two numbers of a version such as `v1.36.2-gke.100`.
fn release(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.strip_prefix('v').unwrap_or(version).split('.');
    let mut number = || {
        let digits = numbers.next()?;
        let end = digits.find(|c: char| !c.is_ascii_digit());
        digits.get(..end.unwrap_or(digits.len()))?.parse().ok()
    };
    Some((number()?, number()?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(kubelet: &str, runtime: &str) -> Node {
        let info = json!({"kubeletVersion": kubelet, "containerRuntimeVersion": runtime,
            "architecture": "", "bootID": "", "kernelVersion": "", "kubeProxyVersion": "",
            "machineID": "", "operatingSystem": "", "osImage": "", "systemUUID": ""});
        let node = json!({"metadata": {"name": "n"}, "status": {"nodeInfo": info}});
        serde_json::from_value(node).unwrap()
    }

    #[test]
    fn a_node_mounts_images_where_kubelet_and_runtime_surely_do() {
        for (kubelet, runtime, can) in [
            ("v1.36.0", "containerd://2.2.0", true),
            ("v1.37.2", "containerd://v2.4.2", true),
            ("v1.36.1-gke.100", "cri-o://1.33.0", true),
            ("v2.0.0", "containerd://3.0.0", true),
            ("v1.100.0+k3s1", "containerd://2.10.1-k3s1", true),
            ("v1.35.9", "containerd://2.2.0", false),
            ("v1.36.0", "containerd://2.1.9", false),
            ("v1.36.0", "containerd://1.7.30", false),
            ("v1.36.0", "cri-o://1.32.4", false),
            ("v1.36.0", "docker://99.0.0", false),
            ("v1.36.0", "containerd", false),
            ("v1.36.0", "", false),
            ("", "containerd://2.2.0", false),
            ("v1", "containerd://2.2.0", false),
            ("v1.x", "containerd://2.2.0", false),
        ] {
            assert_eq!(
                cannot(&node(kubelet, runtime)).is_none(),
                can,
                "{kubelet} {runtime}"
            );
        }
    }

    #[test]
    fn a_node_that_says_nothing_of_itself_cannot() {
        for silent in [json!({"metadata": {"name": "n"}}), json!({"status": {}})] {
            let silent: Node = serde_json::from_value(silent).unwrap();
            assert!(cannot(&silent).is_some());
        }
    }
}
