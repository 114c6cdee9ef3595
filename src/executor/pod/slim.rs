//! A pod as the operator reads it: what is asked of one, and no more.
//!
//! A watch tells of each pod some five times, each time whole. Two thirds of that, which take four
//! fifths of the allocations, are its spec and who manages which of its fields. They are skipped as
//! they are read, not built and thrown away. What is needed of a pod in addition has to be named
//! here. Must not be sent in place of a pod that stands in the cluster.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use k8s_openapi::{Metadata, NamespaceResourceScope, Resource};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::api::outside;

/// A pod that was read without its spec, but for the machine that it is on, and of whose metadata
/// only that was read which the operator asks for. Of one that cannot be read so, what can be read
/// counts: its metadata, its machine and its phase, each by itself.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct SlimPod(pub Pod);

#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    metadata: Meta,
    spec: Option<Spec>,
    status: Option<PodStatus>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Meta {
    annotations: Option<BTreeMap<String, String>>,
    creation_timestamp: Option<Time>,
    deletion_grace_period_seconds: Option<i64>,
    deletion_timestamp: Option<Time>,
    finalizers: Option<Vec<String>>,
    labels: Option<BTreeMap<String, String>>,
    name: Option<String>,
    namespace: Option<String>,
    owner_references: Option<Vec<OwnerReference>>,
    resource_version: Option<String>,
    uid: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    node_name: Option<String>,
}

impl<'de> Deserialize<'de> for SlimPod {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?;
        let Parts {
            metadata,
            spec,
            status,
        } = match outside::read(raw.get()) {
            Ok(parts) => parts,
            Err(error) => {
                let pod = partly(raw.get());
                tracing::warn!(
                    namespace = pod.metadata.namespace,
                    pod = pod.metadata.name,
                    error,
                    "a pod cannot be read; expected a v1 Pod: it is treated by its metadata and phase"
                );
                return Ok(Self(pod));
            }
        };
        let metadata = ObjectMeta {
            annotations: metadata.annotations,
            creation_timestamp: metadata.creation_timestamp,
            deletion_grace_period_seconds: metadata.deletion_grace_period_seconds,
            deletion_timestamp: metadata.deletion_timestamp,
            finalizers: metadata.finalizers,
            labels: metadata.labels,
            name: metadata.name,
            namespace: metadata.namespace,
            owner_references: metadata.owner_references,
            resource_version: metadata.resource_version,
            uid: metadata.uid,
            ..ObjectMeta::default()
        };
        let spec = spec.map(|spec| PodSpec {
            node_name: spec.node_name,
            ..PodSpec::default()
        });
        Ok(Self(Pod {
            metadata,
            spec,
            status,
        }))
    }
}

/// What can be read of a pod that cannot be read whole.
fn partly(json: &str) -> Pod {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Phase {
        phase: Option<String>,
    }
    let part = |name: &str| outside::member(json, name);
    let spec = part("spec").and_then(|spec| outside::read::<Spec>(spec).ok());
    let status = part("status");
    let whole = status.and_then(|status| outside::read::<PodStatus>(status).ok());
    let status = whole.or_else(|| {
        let Phase { phase } = outside::read(status?).ok()?;
        Some(PodStatus {
            phase,
            ..PodStatus::default()
        })
    });
    Pod {
        metadata: outside::metadata(json),
        spec: spec.map(|spec| PodSpec {
            node_name: spec.node_name,
            ..PodSpec::default()
        }),
        status,
    }
}

impl Resource for SlimPod {
    const API_VERSION: &'static str = Pod::API_VERSION;
    const GROUP: &'static str = Pod::GROUP;
    const KIND: &'static str = Pod::KIND;
    const VERSION: &'static str = Pod::VERSION;
    const URL_PATH_SEGMENT: &'static str = Pod::URL_PATH_SEGMENT;
    type Scope = NamespaceResourceScope;
}

impl Metadata for SlimPod {
    type Ty = ObjectMeta;

    fn metadata(&self) -> &ObjectMeta {
        &self.0.metadata
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.0.metadata
    }
}

#[cfg(test)]
mod tests {
    use kube::core::WatchEvent;

    use super::*;

    const EVENT: &str = include_str!("../../../tests/data/pod-event.json");

    #[test]
    fn all_is_read_but_the_spec_the_generation_and_who_manages_the_fields() {
        let (WatchEvent::Modified(slim), WatchEvent::Modified(mut whole)) = (
            serde_json::from_str::<WatchEvent<SlimPod>>(EVENT).unwrap(),
            serde_json::from_str::<WatchEvent<Pod>>(EVENT).unwrap(),
        ) else {
            panic!("another event");
        };
        whole.metadata.managed_fields.take().unwrap();
        whole.metadata.generation.take().unwrap();
        let node_name = Some(whole.spec.take().unwrap().node_name.unwrap());
        whole.spec = Some(PodSpec {
            node_name,
            ..PodSpec::default()
        });
        assert_eq!(slim.0, whole);
    }

    #[test]
    fn a_pod_that_is_being_deleted_says_since_when_and_how_soon() {
        let told = serde_json::json!({"metadata": {
            "name": "a", "deletionTimestamp": "2026-11-29T14:00:01Z", "deletionGracePeriodSeconds": 30,
        }});
        let slim: SlimPod = serde_json::from_str(&told.to_string()).unwrap();
        let whole: Pod = serde_json::from_value(told).unwrap();
        assert_eq!(slim.0, whole);
    }
}
