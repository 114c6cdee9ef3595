//! Takes news in, each as an event that the state folds: of the run, its pods, processes and calls.
//!
//! Must not await, nor decide what is to be done next: that is `step`.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use tokio::time::Instant;

use crate::api::workflow_run::WorkflowRun;
use crate::engine::event::{CancelCause, Ending, Event};
use crate::engine::graph::NodeIx;
use crate::engine::name::Attempt;
use crate::engine::state::NodeState;
use crate::executor::pod::observe::{Known, PATIENCE, Seen, observe};
use crate::operator::apply::{Answer, Moved, Work};
use crate::operator::hub::{News, has_ended, has_finalizer};
use crate::operator::publish::Published;
use crate::operator::{broken, resolve};

use super::{Actor, Made, Record, is_going, touch_wait};

impl Actor {
    /// None: the run is gone, nothing more is to be done for it.
    pub(super) fn observe(&mut self, news: News) -> Option<()> {
        match news {
            News::Run(run) => {
                if is_going(&run) {
                    return None;
                }
                if self.publisher.admit(&run) {
                    self.know(run);
                }
            }
            News::Gone => return None,
            News::Pod(pod) => self.observe_pod(&pod),
            News::PodGone(pod) => self.observe_pod_gone(pod),
            News::Listed(uids) => {
                let missing: Vec<NodeIx> = self
                    .records
                    .iter()
                    .filter(|(ix, record)| {
                        matches!(self.state.node(**ix), NodeState::Running(_))
                            && record.uid.as_ref().is_some_and(|uid| !uids.contains(uid))
                    })
                    .map(|(ix, _)| *ix)
                    .collect();
                for ix in missing {
                    self.look(ix);
                }
            }
        }
        Some(())
    }

    /// Takes in the run as it is now.
    fn know(&mut self, run: Arc<WorkflowRun>) {
        let changed = run.metadata.generation != self.run.metadata.generation;
        self.run = run;
        if changed {
            self.wishes(self.context.clock.now());
            self.publisher.soon();
        }
    }

    /// What the run's author asks for now.
    pub(super) fn wishes(&mut self, now: Timestamp) {
        self.limits = resolve::limits(&self.run);
        let suspend = self.run.spec.suspend == Some(true);
        let mut events = Vec::new();
        if suspend != self.state.is_suspended() {
            events.push(Event::Suspended(suspend));
        }
        if self.run.spec.cancel == Some(true) && self.state.cancelled().is_none() {
            events.push(Event::Cancelled {
                cause: CancelCause::Asked,
                at: now,
            });
        }
        self.fold(&events);
        // The status says of which version of the spec it is.
        self.publisher.touch();
    }

    pub(super) fn observe_pod(&mut self, pod: &Pod) {
        let Some((ix, attempt)) = self.whose(pod) else {
            return;
        };
        let Some(record) = self
            .records
            .get_mut(&ix)
            .filter(|record| record.attempt == attempt)
        else {
            // Of an attempt that is over and on record: the next was recorded before it began.
            if has_ended(pod) || pod.metadata.deletion_timestamp.is_some() {
                self.hold(pod, self.recorded);
            } else if self.is_past(ix, attempt) {
                self.observe_ghost(pod, ix);
            }
            return;
        };
        let Some(uid) = &record.uid else {
            if matches!(self.state.node(ix), NodeState::Running(_)) {
                record.early = Some(News::Pod(Box::new(pod.clone())));
            } else {
                self.observe_ghost(pod, ix);
            }
            return;
        };
        if pod.metadata.uid.as_ref() != Some(uid) {
            let is_over = matches!(self.state.node(ix), NodeState::Finished(_));
            if is_over && (!has_ended(pod) || pod.metadata.deletion_timestamp.is_some()) {
                self.observe_ghost(pod, ix);
            }
            return;
        }
        if !record.floor.admit(pod.metadata.resource_version.as_deref()) {
            return;
        }
        record.heard = Instant::now();
        let now = self.context.clock.now();
        if let NodeState::Running(running) = self.state.node(ix)
            && running.attempt == attempt
        {
            let known = Known {
                killing: running.killing,
                now,
                patience: PATIENCE,
            };
            let before = record.waits.take();
            self.waiting.remove(&ix);
            match observe(pod, &known) {
                Seen::Ended { outcome, at } => {
                    self.heard.get_or_insert(self.came);
                    // The cluster's times are whole seconds, rounded down.
                    let at = at.max(running.since);
                    self.end(ix, attempt, outcome, at);
                }
                Seen::Running { .. } => {
                    if let Some((reason, _)) = before {
                        touch_wait(&mut self.publisher, ix, &[reason.as_str()]);
                    }
                }
                Seen::Waiting {
                    reason,
                    message,
                    until,
                } => {
                    let waits = Some((reason, message));
                    let until = until.map(|until| (ix, (until, Box::new(pod.clone()))));
                    self.waiting.extend(until);
                    if waits != before {
                        let both = waits.iter().chain(&before);
                        let both: Vec<&str> = both.map(|(reason, _)| reason.as_str()).collect();
                        touch_wait(&mut self.publisher, ix, &both);
                    }
                    record.waits = waits;
                }
            }
        }
        self.hold(pod, self.version);
    }

    /// Whether a later attempt than this has been recorded, or begun.
    fn is_past(&self, ix: NodeIx, attempt: Attempt) -> bool {
        let record = self.records.get(&ix);
        record.is_some_and(|record| attempt < record.attempt)
    }

    /// A pod whose creation was called off in doubt, or was asked for by a leader that is none any
    /// more, and came to pass all the same.
    fn observe_ghost(&mut self, pod: &Pod, ix: NodeIx) {
        if !self.is_as_decided(pod, ix) {
            return;
        }
        match (&pod.metadata.deletion_timestamp, &pod.metadata.uid) {
            (None, Some(uid)) => self.hand.delete(pod.name_any(), uid.clone()),
            _ => self.hold(pod, self.version),
        }
    }

    fn observe_pod_gone(&mut self, pod: Box<Pod>) {
        if let Some(uid) = &pod.metadata.uid {
            self.held.remove(uid);
        }
        let Some((ix, attempt)) = self.whose(&pod) else {
            return;
        };
        let Some(record) = self
            .records
            .get_mut(&ix)
            .filter(|record| record.attempt == attempt)
        else {
            return;
        };
        match &record.uid {
            None => record.early = Some(News::PodGone(pod)),
            Some(uid) if pod.metadata.uid.as_ref() == Some(uid) => {
                self.observe_pod(&pod);
                if matches!(self.state.node(ix), NodeState::Running(_)) {
                    self.look(ix);
                }
            }
            Some(_) => {}
        }
    }

    /// Asks the API server itself whether a node's pod is still there.
    fn look(&mut self, ix: NodeIx) {
        if broken::rule("8")
            && let NodeState::Running(running) = self.state.node(ix)
        {
            let lost = Ending::Lost("its pod is gone".to_owned());
            self.end_silent(ix, running.attempt, lost, self.context.clock.now());
            return;
        }
        if let Some(Record {
            attempt,
            name,
            uid: Some(uid),
            ..
        }) = self.records.get(&ix)
        {
            let work = Work {
                node: ix,
                attempt: *attempt,
            };
            self.hand.look(work, name.clone(), uid.clone());
        }
    }

    /// A pod that is being deleted is let go once `version` is on record.
    fn hold(&mut self, pod: &Pod, version: u64) {
        let held = has_finalizer(pod);
        if let (true, Some(_), Some(uid)) =
            (held, &pod.metadata.deletion_timestamp, &pod.metadata.uid)
        {
            let over = self
                .whose(pod)
                .is_none_or(|(ix, attempt)| match self.state.node(ix) {
                    NodeState::Running(running) => running.attempt != attempt,
                    _ => true,
                });
            if over {
                let version = self.held.get(uid).map_or(version, |(first, _)| *first);
                self.held.insert(uid.clone(), (version, pod.clone()));
                if version > self.recorded {
                    // Whoever deletes it, or drains its machine, waits for that.
                    self.publisher.soon();
                }
                self.let_go();
            }
        }
    }

    pub(super) fn let_go(&mut self) {
        let recorded = self.recorded;
        let free: Vec<String> = (self.held.iter())
            .filter(|(_, (version, _))| *version <= recorded)
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in free {
            if let Some((_, pod)) = self.held.remove(&uid) {
                self.hand.strip(&pod);
            }
        }
        let (due, later) = std::mem::take(&mut self.unwanted)
            .into_iter()
            .partition(|(version, ..)| *version <= recorded);
        self.unwanted = later;
        let due: Vec<(u64, String, String)> = due;
        for (_, name, uid) in due {
            self.hand.delete_unwanted(name, uid);
        }
    }

    /// None: the run is gone.
    pub(super) fn observe_answer(&mut self, answer: Answer) -> Option<()> {
        let now = self.context.clock.now();
        match answer {
            Answer::Created(work, pod) => {
                let Some(record) = self.current(&work) else {
                    return Some(());
                };
                record.made = Made::There;
                record.uid.clone_from(&pod.metadata.uid);
                record.floor.admit(pod.metadata.resource_version.as_deref());
                record.waits = None;
                let early = record.early.take();
                if self.killing(work.node).is_some() {
                    self.delete(work.node);
                }
                self.publisher.touch_node(work.node);
                self.observe_pod(&pod);
                match early {
                    Some(News::Pod(pod)) => self.observe_pod(&pod),
                    Some(News::PodGone(pod)) => self.observe_pod_gone(pod),
                    _ => {}
                }
            }
            Answer::NotYet(work, why) => {
                let Some(record) = self.current(&work) else {
                    return Some(());
                };
                let waits = Some(("NotCreated".to_owned(), why));
                if record.waits != waits {
                    record.waits = waits;
                    self.publisher.touch_node(work.node);
                }
            }
            Answer::Refused(work, why) => {
                if self.current(&work).is_some() {
                    self.end_silent(work.node, work.attempt, Ending::NotStarted(why), now);
                }
            }
            Answer::CalledOff(work) => {
                let cause = self.killing(work.node);
                if let (Some(cause), true) = (cause, self.current(&work).is_some()) {
                    self.end_silent(work.node, work.attempt, Ending::Killed(cause), now);
                }
            }
            Answer::Looked(work, Some(pod)) => {
                if self.current(&work).is_some() {
                    self.hand.relabel(&pod, &self.program.pods.uid);
                    self.observe_pod(&pod);
                }
            }
            Answer::Looked(work, None) => {
                if self.current(&work).is_some()
                    && matches!(self.state.node(work.node), NodeState::Running(_))
                {
                    let message = "its pod is gone; somebody deleted it".to_owned();
                    self.end_silent(work.node, work.attempt, Ending::Lost(message), now);
                }
            }
            Answer::Stripped(uid) => {
                self.held.remove(&uid);
            }
            Answer::Process(work, moved) => self.observe_process(&work, moved, now),
            Answer::Surveyed(run, pods) => {
                let all = pods.iter().filter_map(|pod| pod.metadata.uid.clone());
                let listed = News::Listed(Arc::new(all.collect()));
                self.observe(match run {
                    Some(run) => News::Run(Arc::from(run)),
                    None => News::Gone,
                })?;
                for pod in pods {
                    self.observe_pod(&pod);
                }
                self.observe(listed)?;
            }
        }
        Some(())
    }

    fn observe_process(&mut self, work: &Work, moved: Moved, now: Timestamp) {
        let Some(record) = self.current(work) else {
            return;
        };
        match moved {
            Moved::Waits(why) => {
                let waits = Some(("Waiting".to_owned(), why));
                if record.waits != waits {
                    record.waits = waits;
                    self.publisher.touch_node(work.node);
                }
            }
            Moved::Began => {
                record.made = Made::There;
                if record.waits.take().is_some() {
                    self.publisher.touch_node(work.node);
                }
                self.backlog.remove(&work.node);
            }
            Moved::Ended(outcome, enforced) => {
                record.sandbox = enforced;
                self.backlog.remove(&work.node);
                self.heard.get_or_insert(self.came);
                self.end(work.node, work.attempt, *outcome, now);
                // No pod keeps it until it is on record.
                self.publisher.soon();
            }
        }
    }

    /// Asks for the run and its pods where nothing was heard of one that runs, or of a run that is
    /// held back, for long: a watch that misses an event is not told of it again.
    fn look_around(&mut self) {
        let now = Instant::now();
        if self.survey > now {
            return;
        }
        let resync = self.context.options.resync;
        self.survey = now + resync;
        let silent = self.state.running().any(|ix| {
            let record = self.records.get(&ix).filter(|_| !self.is_process(ix));
            record.is_some_and(|it| it.made == Made::There && it.heard + resync <= now)
        });
        if silent || self.state.is_suspended() {
            let uid = self.program.pods.uid.clone();
            self.hand.survey(self.run.name_any(), uid);
        }
    }

    fn current(&mut self, work: &Work) -> Option<&mut Record> {
        let record = self.records.get_mut(&work.node)?;
        (record.attempt == work.attempt).then_some(record)
    }

    pub(super) fn observe_publication(&mut self, published: Published) -> Option<()> {
        self.publisher.settle(&published);
        match published {
            Published::Done { version, run } => {
                self.recorded = version;
                // Not from what a watch has shown meanwhile: that may be this very write.
                self.context.announce(&self.told, &run);
                self.told = run;
                // A watch may have shown a newer one already.
                let newest = Arc::clone(self.publisher.run());
                if is_going(&newest) {
                    return None;
                }
                self.know(newest);
                self.let_go();
                let due: Vec<(NodeIx, Attempt)> = (self.records.iter())
                    .filter(|(_, record)| {
                        matches!(record.made, Made::AfterRecord(needed) if needed <= version)
                    })
                    .map(|(ix, record)| (*ix, record.attempt))
                    .collect();
                for (ix, attempt) in due {
                    if self.is_process(ix) {
                        self.hand_over(ix, attempt);
                    } else {
                        self.create(ix, attempt, Made::Making);
                    }
                }
            }
            Published::Conflict { run } => {
                if is_going(&run) {
                    return None;
                }
                self.know(run);
            }
            Published::Gone => return None,
            Published::Failed { .. } => {}
        }
        Some(())
    }

    /// Waits that have come to their end.
    pub(super) fn observe_time(&mut self) {
        self.came = Instant::now();
        let now = self.context.clock.now();
        let due = self.waiting.extract_if(.., |_, (until, _)| *until <= now);
        let due: Vec<Box<Pod>> = due.map(|(_, (_, pod))| pod).collect();
        for pod in due {
            self.observe_pod(&pod);
        }
        self.look_around();
    }
}
