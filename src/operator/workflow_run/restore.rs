//! Takes up what an earlier operator has done: folds what is on record, and adopts the pods that are there.
//!
//! Must not take a pod for the run's by its name or labels alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::stream::{self, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::Api;

use crate::api::page::WorkflowRunPage;
use crate::api::workflow_run::NodeStatus;
use crate::engine::event::{Ending, Event};
use crate::engine::graph::NodeIx;
use crate::engine::name::Attempt;
use crate::engine::state::NodeState;
use crate::executor::pod::build::{decision_hash, pod_name};
use crate::executor::pod::slim::SlimPod;
use crate::executor::pod::{ANNOTATION_ATTEMPT, ANNOTATION_DECISION, NODE};
use crate::operator::apply::{of_run, pause};
use crate::operator::client::is_final;
use crate::operator::context::Context;
use crate::operator::{broken, object, status};

use super::{Actor, Made, QUEUED};

/// Pods that are asked for at once.
const AT_ONCE: usize = 16;

/// An attempt that is lost.
struct Loss {
    node: NodeIx,
    attempt: Attempt,
    why: &'static str,
    /// The UID of the pod that it was.
    pod: Option<String>,
}

impl Actor {
    /// Takes up what an earlier operator, or nobody, has done. None: the run is gone.
    pub(super) async fn restore(&mut self, context: &Context, old: bool) -> Option<()> {
        let now = context.clock.now();
        let recorded = self.run.status.clone().unwrap_or_default();
        let begun = recorded.start_time.as_ref().map(|time| time.0);
        let pages = match recorded.pages {
            Some(pages) if pages > 0 => self.pages(pages).await,
            _ => Vec::new(),
        };
        let lists = pages
            .iter()
            .flat_map(|page| &page.spec.nodes)
            .chain(&recorded.nodes);
        let entries = status::merged(lists);
        let graph = self.graph();
        let mut events = vec![Event::RunStarted {
            at: begun.unwrap_or(now),
        }];
        // First, because nothing cancels a run of which all nodes are over.
        if let Some(cause) = status::cancelled(recorded.cancel_cause, entries.values()) {
            events.push(Event::Cancelled { cause, at: now });
        }
        for (ix, node) in graph.iter() {
            if let Some(entry) = entries.get(node.name.as_str()) {
                let mut on_record = status::events(ix, entry);
                if broken::rule("6") {
                    // That it began, and not that it has ended.
                    on_record.truncate(1);
                }
                events.extend(on_record);
            }
        }
        self.fold(&events);
        self.wishes(now);
        let entries = entries
            .into_iter()
            .map(|(name, entry)| (name.to_owned(), entry.clone()))
            .collect::<BTreeMap<String, NodeStatus>>();
        for (ix, node) in graph.iter() {
            // What is over keeps its pod's name on record, wherever that pod is, or what was
            // enforced on its process.
            if let (NodeState::Finished(finished), Some(entry)) =
                (self.state.node(ix), entries.get(node.name.as_str()))
                && let Some((attempt, _)) = finished.ran
                && (entry.pod.is_some() || self.is_process(ix))
            {
                let mut record = self.record(ix, attempt, Made::There);
                record.uid = entry.pod.as_ref().and_then(|pod| pod.uid.clone());
                record.sandbox.clone_from(&entry.sandbox);
                self.records.insert(ix, record);
            }
        }
        let found = if old && !broken::rule("4-list") {
            let mut found = self.adopt_all(&entries).await;
            found.extend(self.adopt_unlisted(&entries).await);
            found
        } else {
            Vec::new()
        };
        let lost = self.take_up_running(&entries);
        let cancelled = self.state.cancelled().is_some();
        if !cancelled {
            self.lose(&lost, now);
            // What ended by itself while nobody looked ended then, and not at a deadline that
            // has passed since. (What was deleted may have been so by us, for that deadline.)
            for pod in found
                .iter()
                .filter(|pod| pod.metadata.deletion_timestamp.is_none())
            {
                self.observe_pod(pod);
            }
        }
        self.step();
        if cancelled {
            // After that: they end by the cancel.
            self.lose(&lost, now);
        }
        for pod in found {
            self.observe_pod(&pod);
        }
        Some(())
    }

    fn lose(&mut self, lost: &[Loss], now: Timestamp) {
        for loss in lost {
            // What it was stays on record.
            let mut record = self.record(loss.node, loss.attempt, Made::There);
            record.uid.clone_from(&loss.pod);
            self.records.insert(loss.node, record);
            let lost = Ending::Lost(loss.why.to_owned());
            self.end_silent(loss.node, loss.attempt, lost, now);
        }
    }

    /// Takes up the nodes that were begun, as far as the record goes, and whose pod is not there.
    /// Gives back those that are lost, and why.
    fn take_up_running(&mut self, entries: &BTreeMap<String, NodeStatus>) -> Vec<Loss> {
        let graph = self.graph();
        let mut lost = Vec::new();
        let running: Vec<NodeIx> = self.state.running().collect();
        for ix in running {
            if self.records.contains_key(&ix) {
                continue;
            }
            let NodeState::Running(running) = self.state.node(ix) else {
                continue;
            };
            let attempt = running.attempt;
            let recorded = entries.get(graph.name(ix).as_str());
            let pod = recorded.and_then(|entry| entry.pod.as_ref()?.uid.clone());
            let mut lose = |why, pod| {
                lost.push(Loss {
                    node: ix,
                    attempt,
                    why,
                    pod,
                });
            };
            if self.is_process(ix) {
                let queued = recorded.is_some_and(|it| it.reason.as_deref() == Some(QUEUED));
                if queued || broken::rule("9") {
                    self.queue(ix, attempt);
                } else {
                    lose("the operator ended, and with it the process", None);
                }
                continue;
            }
            if pod.is_some() {
                // It was there, and its finalizer should have kept it: somebody took it away.
                let why = "its pod is gone; somebody removed it with its finalizer";
                lose(why, pod);
            } else {
                // Absent means never created; see the finalizer.
                self.create(ix, attempt, Made::Making);
            }
        }
        lost
    }

    async fn pages(&self, pages: u32) -> Vec<WorkflowRunPage> {
        let namespace = self.run.namespace().unwrap_or_default();
        let api: Api<WorkflowRunPage> = Api::namespaced(self.context.client.clone(), &namespace);
        let mut read = Vec::new();
        for index in 0..pages {
            let name = crate::operator::publish::page_name(&self.program.pods.uid, index);
            let page = self
                .context
                .insist("read a page", || object::get(&api, &name))
                .await;
            let page = page.ok().flatten();
            let owner = self.run.metadata.uid.as_ref();
            let page = page.filter(|page| {
                page.owner_references()
                    .iter()
                    .any(|it| Some(&it.uid) == owner)
            });
            if let Some(page) = page {
                let version = page.metadata.resource_version.clone();
                self.publisher.page_is(index, version);
                read.push(page);
            }
        }
        read
    }

    /// Takes over the pods that are there already; gives back those that have something to tell.
    async fn adopt_all(&mut self, entries: &BTreeMap<String, NodeStatus>) -> Vec<Pod> {
        let context = Arc::clone(&self.context);
        let namespace = self.run.namespace().unwrap_or_default();
        let api: Api<SlimPod> = Api::namespaced(context.client.clone(), &namespace);
        let mut pages = of_run(&self.program.pods.uid);
        let mut found = Vec::new();
        let mut tries = 0;
        loop {
            match pages.next::<_, SlimPod>(&api).await {
                Ok(Some(page)) => {
                    tries = 0;
                    let pods = page.into_iter().map(|pod| pod.0).collect();
                    found.extend(self.adopt(pods, entries));
                }
                Ok(None) => return found,
                // Nothing names this list but ourselves, and a pod that it lacks would count as lost:
                // it is asked for until there is an answer.
                Err(error) => {
                    // The rest of the list may be too old to be told.
                    if matches!(&error, kube::Error::Api(status) if status.code == 410)
                        || is_final(&error)
                    {
                        pages.restart();
                    }
                    tracing::warn!(%error, "cannot list the run's pods yet");
                    tokio::time::sleep(pause(tries)).await;
                    tries += 1;
                }
            }
        }
    }

    /// Takes over pods that run as far as the record goes, and that the list did not have, or not so
    /// that they could be told: somebody may have changed their labels and annotations.
    async fn adopt_unlisted(&mut self, entries: &BTreeMap<String, NodeStatus>) -> Vec<Pod> {
        let graph = self.graph();
        let running = self.state.running();
        let absent = running.filter(|ix| !self.records.contains_key(ix));
        let recorded = absent.filter_map(|ix| {
            let pod = entries.get(graph.name(ix).as_str())?.pod.as_ref()?;
            Some((ix, pod.name.clone(), pod.uid.clone()?))
        });
        let recorded: Vec<(NodeIx, String, String)> = recorded.collect();
        let context = Arc::clone(&self.context);
        let namespace = self.run.namespace().unwrap_or_default();
        let api: &Api<SlimPod> = &Api::namespaced(context.client.clone(), &namespace);
        let asked = stream::iter(recorded).map(|(ix, name, uid)| {
            let context = Arc::clone(&context);
            async move {
                let found = context.insist("look for a pod that a list did not have", || {
                    object::get(api, &name)
                });
                let found = found.await.ok().flatten().map(|found| found.0);
                let found = found.filter(|pod| pod.metadata.uid.as_ref() == Some(&uid));
                found.map(|pod| (ix, pod))
            }
        });
        let found = asked.buffered(AT_ONCE).collect::<Vec<_>>().await;
        let mut taken_over = Vec::new();
        for (ix, pod) in found.into_iter().flatten() {
            let NodeState::Running(running) = self.state.node(ix) else {
                continue;
            };
            let mut record = self.record(ix, running.attempt, Made::There);
            record.uid.clone_from(&pod.metadata.uid);
            self.records.insert(ix, record);
            self.hand.relabel(&pod, &self.program.pods.uid);
            taken_over.push(pod);
        }
        taken_over
    }

    fn adopt(&mut self, pods: Vec<Pod>, entries: &BTreeMap<String, NodeStatus>) -> Vec<Pod> {
        let graph = self.graph();
        let mut found = Vec::new();
        for pod in pods {
            let Some((ix, attempt)) = self.whose(&pod) else {
                continue;
            };
            let uid = pod.metadata.uid.clone();
            let entry = entries.get(graph.name(ix).as_str());
            let recorded = entry
                .filter(|entry| entry.attempt == Some(attempt.get()))
                .and_then(|entry| entry.pod.as_ref()?.uid.clone());
            let ours = match recorded {
                Some(recorded) => Some(recorded) == uid,
                None => self.is_as_decided(&pod, ix),
            };
            if !ours {
                continue;
            }
            self.hand.relabel(&pod, &self.program.pods.uid);
            if *self.state.node(ix) == NodeState::Pending && attempt == Attempt::FIRST {
                let created = pod.metadata.creation_timestamp.as_ref();
                let at = created.map_or_else(|| self.context.clock.now(), |time| time.0);
                self.fold(&[Event::Started {
                    node: ix,
                    attempt,
                    at,
                }]);
            }
            let (current, over) = match self.state.node(ix) {
                NodeState::Running(running) => (running.attempt == attempt, false),
                NodeState::Finished(finished) => {
                    (finished.ran.is_some_and(|(ran, _)| ran == attempt), true)
                }
                NodeState::Pending | NodeState::Lost { .. } => (false, false),
            };
            if current && !self.records.contains_key(&ix) {
                let mut record = self.record(ix, attempt, Made::There);
                record.uid = uid;
                self.records.insert(ix, record);
            }
            if current && over {
                // Its end is on record; whoever wrote that may not have come to the next step.
                self.unwant(ix, 0);
            }
            if !over || pod.metadata.deletion_timestamp.is_some() {
                found.push(pod);
            }
        }
        found
    }

    pub(super) fn is_as_decided(&self, pod: &Pod, ix: NodeIx) -> bool {
        let owners = pod.owner_references();
        let owned = owners
            .iter()
            .any(|owner| owner.controller == Some(true) && owner.uid == self.program.pods.uid);
        let said = pod.annotations().get(ANNOTATION_DECISION);
        let decided = decision_hash(&self.program.pods, self.program.graph.node(ix));
        owned && decided.is_ok_and(|decided| said == Some(&decided))
    }

    /// The node and attempt that a pod is of: as it says, if its name agrees, or as its UID is on
    /// record, whatever somebody has made it say since.
    pub(super) fn whose(&self, pod: &Pod) -> Option<(NodeIx, Attempt)> {
        self.says_whose(pod).or_else(|| {
            let uid = pod.metadata.uid.as_ref()?;
            let mut records = self.records.iter();
            let found = records.find(|(_, record)| record.uid.as_ref() == Some(uid));
            found.map(|(ix, record)| (*ix, record.attempt))
        })
    }

    fn says_whose(&self, pod: &Pod) -> Option<(NodeIx, Attempt)> {
        let annotations = pod.annotations();
        let ix = self.program.graph.find(annotations.get(NODE)?)?;
        let number: u32 = annotations.get(ANNOTATION_ATTEMPT)?.parse().ok()?;
        let attempt = Attempt::new(number)?;
        let name = pod_name(&self.program.pods.uid, self.program.graph.name(ix), attempt);
        (pod.metadata.name.as_deref() == Some(&*name)).then_some((ix, attempt))
    }
}
