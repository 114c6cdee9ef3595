//! From a pod to what came of its attempt.
//!
//! The end of the one container is the result; the pod's phase is asked only where no container
//! could end. Whatever stands in a status may be absent, odd or forged: all of it has an answer.
//! Must not read a clock (the time comes in) or change anything.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, Pod,
    PodCondition, PodStatus,
};

use super::{ANNOTATION_DEADLINE, CONTAINER, INIT_CONTAINER};
use crate::engine::event::{CancelCause, Ending, KillCause, Outcome};
use crate::executor::frame;

/// How long an image or a container's configuration may be missing before the node fails, where
/// nobody says otherwise.
pub const PATIENCE: Duration = Duration::from_mins(5);

/// What the driver knows beside the pod.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// Why we have asked for the pod's end, if we have.
    pub killing: Option<KillCause>,
    /// The time now.
    pub now: Timestamp,
    /// How long an image or a container's configuration may be missing; see [`PATIENCE`].
    pub patience: Duration,
}

/// What a pod shows of its attempt.
#[derive(Clone, Debug, PartialEq)]
pub enum Seen {
    /// The action has not begun.
    Waiting {
        /// One word, as Kubernetes has it: `Unschedulable`, `ImagePullBackOff`.
        reason: String,
        /// A sentence for people.
        message: String,
        /// When this is no longer waited for, should nothing change until then.
        until: Option<Timestamp>,
    },
    /// The action goes on.
    Running {
        /// When its container began.
        since: Option<Timestamp>,
    },
    /// The attempt is over.
    Ended {
        /// What came of it.
        outcome: Outcome,
        /// When, never later than now.
        at: Timestamp,
    },
}

/// Looks at a pod.
#[must_use]
pub fn observe(pod: &Pod, known: &Known) -> Seen {
    let look = Look {
        pod,
        known,
        status: pod.status.as_ref(),
    };
    look.at_container()
}

struct Look<'a> {
    pod: &'a Pod,
    known: &'a Known,
    status: Option<&'a PodStatus>,
}

impl Look<'_> {
    fn at_container(&self) -> Seen {
        let state = self.container(CONTAINER).and_then(|it| it.state.as_ref());
        if let Some(terminated) = state.and_then(|state| state.terminated.as_ref()) {
            return self.ended(self.terminated(terminated), finished(terminated));
        }
        if let Some(ending) = self.never_ends_by_itself() {
            return self.ended(Outcome::silent(ending), None);
        }
        match state {
            Some(ContainerState {
                running: Some(running),
                ..
            }) => Seen::Running {
                since: running.started_at.as_ref().map(|time| time.0),
            },
            Some(ContainerState {
                waiting: Some(waiting),
                ..
            }) => self.waiting(waiting),
            _ => self.not_there_yet(),
        }
    }

    fn container(&self, name: &str) -> Option<&ContainerStatus> {
        let status = self.status?;
        let main = status.container_statuses.iter().flatten();
        let init = status.init_container_statuses.iter().flatten();
        main.chain(init).find(|container| container.name == name)
    }

    fn ended(&self, outcome: Outcome, at: Option<Timestamp>) -> Seen {
        let now = self.known.now;
        let created = self.pod.metadata.creation_timestamp.as_ref();
        // A node's clock is not ours: no end lies before its pod or in the future.
        let at = at.unwrap_or(now).min(now);
        let at = created.map_or(at, |created| at.max(created.0.min(now)));
        Seen::Ended { outcome, at }
    }

    /// The outcome of a container that has ended.
    fn terminated(&self, it: &ContainerStateTerminated) -> Outcome {
        let message = it.message.as_deref().unwrap_or_default();
        match frame::decode(message) {
            Ok(outcome) => self.framed(outcome),
            Err(error) => Outcome::silent(self.frameless(it, message, &error)),
        }
    }

    /// What a frame says counts, but for what only we can know.
    fn framed(&self, outcome: Outcome) -> Outcome {
        let Outcome { ending, captured } = outcome;
        let ending = match ending {
            Ending::Lost(message) => self.asked().map_or_else(
                || Ending::Lost(format!("{message}{}", self.told())),
                Ending::Killed,
            ),
            // No pod is told of a cancel: this frame is not of apscli-node's making.
            Ending::Killed(KillCause::Cancel(_)) => {
                Ending::NoResult("the pod claims that its run was cancelled".to_owned())
            }
            ending => ending,
        };
        Outcome { ending, captured }
    }

    fn frameless(
        &self,
        it: &ContainerStateTerminated,
        message: &str,
        error: &frame::FrameError,
    ) -> Ending {
        let reason = it.reason.as_deref().unwrap_or_default();
        if let Some(cause) = self.asked() {
            return Ending::Killed(cause);
        }
        let how = format!("exit code {}", it.exit_code);
        if reason == "OOMKilled" {
            return Ending::NoResult(format!(
                "the container used more memory than its limit and was ended (OOMKilled, {how})"
            ));
        }
        let from_outside = matches!(it.exit_code, 137 | 143) || reason == "ContainerStatusUnknown";
        if from_outside && self.is_disrupted() {
            return Ending::Lost(format!(
                "the pod was ended before its action{}",
                self.told()
            ));
        }
        if matches!(reason, "StartError" | "ContainerCannotRun") {
            return Ending::NotStarted(format!(
                "the container could not start ({reason}): {}",
                brief(message)
            ));
        }
        if reason == "ContainerStatusUnknown" {
            return Ending::Lost(format!(
                "the node lost sight of the container: {}",
                brief(message)
            ));
        }
        let reason = if reason.is_empty() {
            "no reason"
        } else {
            reason
        };
        Ending::NoResult(format!(
            "the container ended ({reason}, {how}), but {error}"
        ))
    }

    /// Why no container of this pod will come to an end of its own, if none will.
    fn never_ends_by_itself(&self) -> Option<Ending> {
        let lost = |what: &str| match self.asked() {
            Some(cause) => Ending::Killed(cause),
            None => Ending::Lost(format!("{what}{}", self.told())),
        };
        if let Some(phase @ ("Failed" | "Succeeded")) = self.phase() {
            let init = self.container(INIT_CONTAINER);
            let init = init.and_then(|it| it.state.as_ref()?.terminated.as_ref());
            let init = init.filter(|it| it.exit_code != 0);
            return Some(match init {
                Some(it) if !self.is_disrupted() && self.asked().is_none() => {
                    Ending::NotStarted(format!(
                        "apscli-node could not be copied into the pod ({}, exit code {}): {}",
                        it.reason.as_deref().unwrap_or("no reason"),
                        it.exit_code,
                        brief(it.message.as_deref().unwrap_or_default()),
                    ))
                }
                _ => lost(&format!("the pod is {phase} and its container never ended")),
            });
        }
        self.pod.metadata.deletion_timestamp.as_ref()?;
        if self.pod.metadata.deletion_grace_period_seconds == Some(0) {
            // Without our finalizer it would be gone, so this is the API saying that it is.
            return Some(lost("the pod was deleted by force"));
        }
        let spec = self.pod.spec.as_ref();
        let placed =
            spec.is_some_and(|spec| spec.node_name.as_deref().is_some_and(|n| !n.is_empty()));
        (!placed).then(|| lost("the pod was deleted before it had a node"))
    }

    fn waiting(&self, waiting: &ContainerStateWaiting) -> Seen {
        let word = |waiting: &ContainerStateWaiting| {
            waiting.reason.clone().filter(|reason| !reason.is_empty())
        };
        let mut reason = word(waiting).unwrap_or_else(|| "ContainerCreating".to_owned());
        let mut message = waiting.message.clone().unwrap_or_default();
        // The container waits for the init container, so what that waits for is the reason.
        let init = self.container(INIT_CONTAINER);
        let init = init.and_then(|it| it.state.as_ref()?.waiting.as_ref());
        if let Some(init) = init
            && let Some(word) = word(init)
        {
            reason = word;
            message = init.message.clone().unwrap_or_default();
        }
        let patience = match reason.as_str() {
            "InvalidImageName" => Some(Duration::ZERO),
            "ErrImagePull"
            | "ImagePullBackOff"
            | "ErrImageNeverPull"
            | "ImageInspectError"
            | "RegistryUnavailable"
            | "SignatureValidationFailed"
            | "CreateContainerConfigError"
            | "CreateContainerError"
            | "RunContainerError" => Some(self.known.patience),
            _ => None,
        };
        let message = match (reason.as_str(), message.is_empty()) {
            ("ContainerCreating" | "PodInitializing", true) => {
                "the node prepares the container (volumes, image)".to_owned()
            }
            (_, true) => "the container cannot start yet".to_owned(),
            _ => brief(&message),
        };
        let began = self.began();
        let until = patience.map(|patience| began.checked_add(patience).unwrap_or(Timestamp::MAX));
        match (until, patience) {
            (Some(until), Some(patience)) if until <= self.known.now => {
                let waited = if patience.is_zero() {
                    String::new()
                } else {
                    format!(" for {} s", patience.as_secs())
                };
                let ending = Ending::NotStarted(format!("{reason}{waited}: {message}"));
                self.ended(Outcome::silent(ending), None)
            }
            _ => Seen::Waiting {
                reason,
                message,
                until,
            },
        }
    }

    /// Since when a node has been at it.
    fn began(&self) -> Timestamp {
        let scheduled = self
            .condition("PodScheduled")
            .filter(|condition| condition.status == "True")
            .and_then(|condition| condition.last_transition_time.as_ref());
        let started = self.status.and_then(|status| status.start_time.as_ref());
        let created = self.pod.metadata.creation_timestamp.as_ref();
        [started, scheduled, created]
            .into_iter()
            .flatten()
            .next()
            .map_or(self.known.now, |time| time.0)
    }

    /// A pod of whose container nothing is known.
    fn not_there_yet(&self) -> Seen {
        let waiting = |reason: &str, message: String| Seen::Waiting {
            reason: reason.to_owned(),
            message,
            until: None,
        };
        match self.condition("PodScheduled") {
            Some(condition) if condition.status == "False" => {
                let reason = condition.reason.as_deref().unwrap_or("Unschedulable");
                let message = condition.message.as_deref().unwrap_or_default();
                waiting(reason, brief(message))
            }
            Some(_) => waiting(
                "ContainerCreating",
                "the pod has a node, which has not said anything yet".to_owned(),
            ),
            None => waiting(
                "Pending",
                "the scheduler has not looked at the pod yet".to_owned(),
            ),
        }
    }

    fn phase(&self) -> Option<&str> {
        self.status?.phase.as_deref()
    }

    fn condition(&self, kind: &str) -> Option<&PodCondition> {
        let conditions = self.status?.conditions.as_ref()?;
        conditions.iter().find(|condition| condition.type_ == kind)
    }

    /// Why we asked for the end: by a delete, or beforehand by a deadline that has come.
    fn asked(&self) -> Option<KillCause> {
        if self.known.killing.is_some() {
            return self.known.killing;
        }
        let status = self.status?;
        if status.reason.as_deref() != Some("DeadlineExceeded") {
            return None;
        }
        let annotations = self.pod.metadata.annotations.as_ref();
        let keeper = annotations.and_then(|all| all.get(ANNOTATION_DEADLINE));
        Some(match keeper.map(String::as_str) {
            Some("run") => KillCause::Cancel(CancelCause::Timeout),
            _ => KillCause::NodeTimeout,
        })
    }

    /// Whether something other than the action may have ended the pod.
    fn is_disrupted(&self) -> bool {
        let reason = self.status.and_then(|status| status.reason.as_deref());
        self.pod.metadata.deletion_timestamp.is_some()
            || reason.is_some_and(|reason| !reason.is_empty())
            || (self.condition("DisruptionTarget"))
                .is_some_and(|condition| condition.status == "True")
    }

    /// What the pod tells of its disruption, to stand behind a sentence.
    fn told(&self) -> String {
        let of = |reason: Option<&String>, message: Option<&String>| {
            let reason = reason.filter(|reason| !reason.is_empty())?;
            Some(match message.filter(|message| !message.is_empty()) {
                Some(message) => format!(": {reason}: {}", brief(message)),
                None => format!(": {reason}"),
            })
        };
        let condition = self
            .condition("DisruptionTarget")
            .filter(|condition| condition.status == "True");
        condition
            .and_then(|it| of(it.reason.as_ref(), it.message.as_ref()))
            .or_else(|| {
                let status = self.status?;
                of(status.reason.as_ref(), status.message.as_ref())
            })
            .or_else(|| {
                let deleted = self.pod.metadata.deletion_timestamp.is_some();
                deleted.then(|| ": it is being deleted".to_owned())
            })
            .unwrap_or_default()
    }
}

fn finished(it: &ContainerStateTerminated) -> Option<Timestamp> {
    it.finished_at.as_ref().map(|time| time.0)
}

/// As much of somebody else's words as a reason may hold, on one line.
fn brief(message: &str) -> String {
    const LONGEST: usize = 400;
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let kept = line.floor_char_boundary(LONGEST);
    match line.get(..kept) {
        Some(kept) if kept.len() < line.len() => format!("{kept} …"),
        _ => line,
    }
}

#[cfg(test)]
#[allow(clippy::needless_pass_by_value, reason = "`json!` gives values")]
mod tests {
    use super::*;
    use crate::value::Value;
    use proptest::prelude::*;
    use serde_json::json;

    const NOW: &str = "2026-08-01T12:00:00Z";

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn known(killing: Option<KillCause>) -> Known {
        Known {
            killing,
            now: at(NOW),
            patience: PATIENCE,
        }
    }

    /// A pod that was created a minute ago, with a part of a status.
    fn pod(status: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "creationTimestamp": "2026-08-01T11:59:00Z"},
            "spec": {"nodeName": "n1", "containers": [{"name": "node"}]},
            "status": status,
        }))
        .unwrap()
    }

    fn deleted(mut pod: Pod, grace: i64) -> Pod {
        let time: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time =
            serde_json::from_value(json!("2026-08-01T11:59:50Z")).unwrap();
        pod.metadata.deletion_timestamp = Some(time);
        pod.metadata.deletion_grace_period_seconds = Some(grace);
        pod
    }

    fn container(state: serde_json::Value) -> serde_json::Value {
        json!([{"name": "sidecar", "state": {"terminated": {"exitCode": 9}}, "ready": false,
                "restartCount": 0, "image": "", "imageID": ""},
               {"name": "node", "state": state, "ready": false, "restartCount": 0, "image": "",
                "imageID": ""}])
    }

    fn terminated(exit_code: i32, reason: &str, message: &str) -> serde_json::Value {
        container(
            json!({"terminated": {"exitCode": exit_code, "reason": reason,
            "message": message, "finishedAt": "2026-08-01T11:59:30Z"}}),
        )
    }

    fn framed(ending: Ending) -> serde_json::Value {
        let mut outcome = Outcome::silent(ending);
        outcome.captured.output = Some(Value::from("said"));
        terminated(1, "Error", &frame::encode(&outcome, 4096))
    }

    fn waiting(reason: &str, message: &str) -> serde_json::Value {
        container(json!({"waiting": {"reason": reason, "message": message}}))
    }

    fn ending(pod: &Pod, killing: Option<KillCause>) -> Ending {
        match observe(pod, &known(killing)) {
            Seen::Ended { outcome, .. } => outcome.ending,
            other => panic!("{other:?}"),
        }
    }

    fn words(ending: &Ending) -> &str {
        match ending {
            Ending::NotStarted(words) | Ending::NoResult(words) | Ending::Lost(words) => words,
            other => panic!("{other:?}"),
        }
    }

    const CANCEL: KillCause = KillCause::Cancel(CancelCause::Asked);

    #[test]
    fn a_frame_counts_whatever_else_happens_to_the_pod() {
        let status = json!({"phase": "Running", "containerStatuses": framed(Ending::Exited(3))});
        let disrupted = json!({"phase": "Failed", "reason": "DeadlineExceeded",
            "conditions": [{"type": "DisruptionTarget", "status": "True"}],
            "containerStatuses": framed(Ending::Exited(3))});
        for pod in [
            pod(status.clone()),
            deleted(pod(status), 0),
            deleted(pod(disrupted), 30),
        ] {
            for killing in [None, Some(CANCEL)] {
                let Seen::Ended { outcome, at: ended } = observe(&pod, &known(killing)) else {
                    panic!("not ended")
                };
                assert_eq!(outcome.ending, Ending::Exited(3));
                assert_eq!(outcome.captured.output, Some(Value::from("said")));
                assert_eq!(ended, at("2026-08-01T11:59:30Z"));
            }
        }
        let own = framed(Ending::Killed(KillCause::NodeTimeout));
        let pod = pod(json!({"containerStatuses": own}));
        assert_eq!(ending(&pod, None), Ending::Killed(KillCause::NodeTimeout));
    }

    #[test]
    fn a_pod_ended_from_outside_is_lost_unless_we_asked_for_it() {
        let lost = framed(Ending::Lost("asked to end".to_owned()));
        let evicted = pod(json!({"phase": "Failed", "containerStatuses": lost,
            "conditions": [{"type": "DisruptionTarget", "status": "True",
                "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting"}]}));
        assert_eq!(
            words(&ending(&evicted, None)),
            "asked to end: EvictionByEvictionAPI: Eviction API: evicting"
        );
        let removed = deleted(pod(json!({"containerStatuses": lost})), 30);
        assert_eq!(
            words(&ending(&removed, None)),
            "asked to end: it is being deleted"
        );
        assert_eq!(ending(&removed, Some(CANCEL)), Ending::Killed(CANCEL));
        let Seen::Ended { outcome, .. } = observe(&removed, &known(Some(CANCEL))) else {
            panic!("not ended")
        };
        assert_eq!(outcome.captured.output, Some(Value::from("said")));
        // The kubelet ended it, for whoever keeps the deadline.
        let mut late = pod(json!({"phase": "Failed", "reason": "DeadlineExceeded",
            "containerStatuses": lost}));
        assert_eq!(ending(&late, None), Ending::Killed(KillCause::NodeTimeout));
        late.metadata.annotations =
            Some([(ANNOTATION_DEADLINE.to_owned(), "run".to_owned())].into());
        let run = KillCause::Cancel(CancelCause::Timeout);
        assert_eq!(ending(&late, None), Ending::Killed(run));
    }

    #[test]
    fn no_pod_can_say_that_its_run_was_cancelled() {
        let pod = pod(json!({"containerStatuses": framed(Ending::Killed(CANCEL))}));
        assert!(matches!(ending(&pod, None), Ending::NoResult(_)));
    }

    #[test]
    fn an_end_without_a_frame_says_what_is_known() {
        for (exit_code, reason, message, says) in [
            (137, "OOMKilled", "", "more memory than its limit"),
            (
                0,
                "Completed",
                "",
                "(Completed, exit code 0), but there is no result",
            ),
            (
                70,
                "Error",
                "some words",
                "(Error, exit code 70), but there is no result",
            ),
            (
                1,
                "",
                "apscli/1 50 00",
                "(no reason, exit code 1), but the result in the termination message was cut",
            ),
            (137, "Error", "", "exit code 137"),
        ] {
            let pod = pod(
                json!({"phase": "Failed", "containerStatuses": terminated(exit_code, reason, message)}),
            );
            let ending = ending(&pod, None);
            assert!(matches!(ending, Ending::NoResult(_)), "{ending:?}");
            assert!(words(&ending).contains(says), "{ending:?}");
        }
        let failed = pod(json!({"phase": "Failed", "containerStatuses":
            terminated(128, "StartError", "exec: \"/apscli/bin/apscli-node\":\nno such file")}));
        assert_eq!(
            ending(&failed, None),
            Ending::NotStarted("the container could not start (StartError): exec: \"/apscli/bin/apscli-node\": no such file".to_owned())
        );
    }

    #[test]
    fn a_container_killed_with_its_pod_is_lost_and_one_that_ended_before_is_not() {
        let status = |code, reason| json!({"containerStatuses": terminated(code, reason, "")});
        let gone = deleted(pod(status(137, "Error")), 0);
        assert!(matches!(ending(&gone, None), Ending::Lost(_)));
        assert_eq!(ending(&gone, Some(CANCEL)), Ending::Killed(CANCEL));
        let before = deleted(pod(status(1, "Error")), 0);
        assert!(matches!(ending(&before, None), Ending::NoResult(_)));
        let oom = deleted(pod(status(137, "OOMKilled")), 0);
        assert!(matches!(ending(&oom, None), Ending::NoResult(_)));
        let unknown = pod(status(137, "ContainerStatusUnknown"));
        assert!(matches!(ending(&unknown, None), Ending::Lost(_)));
        for reason in ["Evicted", "NodeShutdown", "Preempting", "NodeLost"] {
            let mut evicted = status(137, "Error");
            evicted["reason"] = reason.into();
            evicted["message"] = "because".into();
            let ending = ending(&pod(evicted), None);
            assert!(
                words(&ending).ends_with(&format!(": {reason}: because")),
                "{ending:?}"
            );
            assert!(matches!(ending, Ending::Lost(_)));
        }
    }

    #[test]
    fn pods_whose_container_never_ends_end_all_the_same() {
        // Refused by its node, evicted before it began, collected because its node is gone.
        for status in [
            json!({"phase": "Failed", "reason": "OutOfcpu", "message": "no room"}),
            json!({"phase": "Failed", "reason": "Evicted", "message": "disk", "containerStatuses": waiting("PodInitializing", "")}),
            json!({"phase": "Failed", "containerStatuses": container(json!({"running": {}})),
                "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC"}]}),
            json!({"phase": "Succeeded"}),
        ] {
            let pod = pod(status);
            assert!(matches!(ending(&pod, None), Ending::Lost(_)), "{pod:?}");
            assert_eq!(ending(&pod, Some(CANCEL)), Ending::Killed(CANCEL));
        }
        let late = pod(json!({"phase": "Failed", "reason": "DeadlineExceeded"}));
        assert_eq!(ending(&late, None), Ending::Killed(KillCause::NodeTimeout));
        // Deleted by force, and deleted before any node had it.
        let running =
            json!({"phase": "Running", "containerStatuses": container(json!({"running": {}}))});
        let forced = deleted(pod(running.clone()), 0);
        assert_eq!(
            words(&ending(&forced, None)),
            "the pod was deleted by force: it is being deleted"
        );
        let mut unplaced = deleted(pod(json!({"phase": "Pending"})), 30);
        unplaced.spec.as_mut().unwrap().node_name = None;
        assert!(matches!(ending(&unplaced, None), Ending::Lost(_)));
        // With a grace it goes on until it is over.
        let going = deleted(pod(running), 30);
        assert_eq!(observe(&going, &known(None)), Seen::Running { since: None });
    }

    #[test]
    fn an_init_copy_that_failed_is_no_start() {
        let status = |init: serde_json::Value, more: serde_json::Value| {
            let mut status = json!({"phase": "Failed", "containerStatuses": waiting("PodInitializing", ""),
                "initContainerStatuses": [{"name": "apscli", "state": init, "ready": false,
                    "restartCount": 0, "image": "", "imageID": ""}]});
            if let Some(reason) = more.as_str() {
                status["reason"] = reason.into();
            }
            pod(status)
        };
        let failed =
            json!({"terminated": {"exitCode": 70, "reason": "Error", "message": "disk full"}});
        let ended = ending(&status(failed.clone(), json!(null)), None);
        assert!(
            matches!(&ended, Ending::NotStarted(words) if words.contains("disk full")),
            "{ended:?}"
        );
        let ended = ending(&status(failed, json!("Evicted")), None);
        assert!(matches!(ended, Ending::Lost(_)));
        let mut pulling = status(
            json!({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}),
            json!(null),
        );
        pulling.status.as_mut().unwrap().phase = Some("Pending".to_owned());
        let Seen::Waiting {
            reason, message, ..
        } = observe(&pulling, &known(None))
        else {
            panic!("not waiting")
        };
        assert_eq!((&*reason, &*message), ("ImagePullBackOff", "no such image"));
    }

    #[test]
    fn a_missing_image_is_waited_for_and_then_not() {
        let pulling = |created: &str, reason: &str| {
            let mut pod = pod(
                json!({"phase": "Pending", "containerStatuses": waiting(reason, "Back-off\npulling \"x\"")}),
            );
            pod.metadata.creation_timestamp = serde_json::from_value(json!(created)).unwrap();
            observe(&pod, &known(None))
        };
        for reason in [
            "ErrImagePull",
            "ImagePullBackOff",
            "CreateContainerConfigError",
        ] {
            assert_eq!(
                pulling("2026-08-01T11:55:01Z", reason),
                Seen::Waiting {
                    reason: reason.to_owned(),
                    message: "Back-off pulling \"x\"".to_owned(),
                    until: Some(at("2026-08-01T12:00:01Z")),
                }
            );
            let outcome = Outcome::silent(Ending::NotStarted(format!(
                "{reason} for 300 s: Back-off pulling \"x\""
            )));
            assert_eq!(
                pulling("2026-08-01T11:55:00Z", reason),
                Seen::Ended {
                    outcome,
                    at: at(NOW)
                }
            );
        }
        assert!(matches!(
            pulling(NOW, "InvalidImageName"),
            Seen::Ended {
                outcome: Outcome {
                    ending: Ending::NotStarted(_),
                    ..
                },
                ..
            }
        ));
        assert!(matches!(
            pulling("2020-01-01T00:00:00Z", "ContainerCreating"),
            Seen::Waiting { until: None, .. }
        ));
        // Time in the scheduler's queue is no time without an image.
        let late = pod(
            json!({"phase": "Pending", "startTime": "2026-08-01T11:59:59Z",
            "containerStatuses": waiting("ErrImagePull", "")}),
        );
        assert!(matches!(observe(&late, &known(None)), Seen::Waiting { .. }));
    }

    #[test]
    fn what_a_pod_waits_for_comes_as_words() {
        let says = |status: serde_json::Value| match observe(&pod(status), &known(None)) {
            Seen::Waiting {
                reason, message, ..
            } => (reason, message),
            other => panic!("{other:?}"),
        };
        let (reason, message) = says(
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled",
            "status": "False", "reason": "Unschedulable", "message": "0/2 nodes are available: 2 Insufficient cpu."}]}),
        );
        assert_eq!(
            (&*reason, &*message),
            (
                "Unschedulable",
                "0/2 nodes are available: 2 Insufficient cpu."
            )
        );
        assert_eq!(says(json!({})).0, "Pending");
        assert_eq!(
            says(json!({"conditions": [{"type": "PodScheduled", "status": "True"}]})).0,
            "ContainerCreating"
        );
        assert_eq!(
            says(json!({"containerStatuses": container(json!({}))})).0,
            "Pending"
        );
        let (_, message) =
            says(json!({"containerStatuses": waiting("ImagePullBackOff", &"wörd ".repeat(500))}));
        assert!(message.len() < 420 && message.ends_with('…'), "{message}");
    }

    #[test]
    fn an_end_lies_between_the_pods_creation_and_now() {
        for (finished, ended) in [
            ("1970-01-01T00:00:00Z", "2026-08-01T11:59:00Z"),
            ("2030-01-01T00:00:00Z", NOW),
        ] {
            let pod = pod(json!({"containerStatuses": container(json!({"terminated":
                {"exitCode": 0, "finishedAt": finished}}))}));
            assert!(
                matches!(observe(&pod, &known(None)), Seen::Ended { at: time, .. } if time == at(ended))
            );
        }
    }

    fn any_json() -> impl Strategy<Value = serde_json::Value> {
        let text = prop_oneof![
            Just(""),
            Just("node"),
            Just("apscli"),
            Just("Failed"),
            Just("Pending"),
            Just("True"),
            Just("DisruptionTarget"),
            Just("PodScheduled"),
            Just("ImagePullBackOff"),
            Just("apscli/1 4 00000000 AAAA /apscli"),
        ];
        let time = prop_oneof![
            Just(json!("0001-01-01T00:00:00Z")),
            Just(json!("9999-12-30T00:00:00Z")),
            Just(json!(NOW)),
        ];
        let text = move || text.clone().prop_map(|text| json!(text));
        let state = prop_oneof![
            Just(json!({})),
            (any::<i32>(), text(), text(), time.clone()).prop_map(|(code, reason, message, at)| {
                json!({"terminated": {"exitCode": code, "reason": reason, "message": message, "finishedAt": at}})
            }),
            time.clone().prop_map(|at| json!({"running": {"startedAt": at}})),
            (text(), text()).prop_map(|(reason, message)| json!({"waiting": {"reason": reason, "message": message}})),
        ];
        let status = (text(), state).prop_map(|(name, state)| {
            json!({"name": name, "state": state, "ready": true, "restartCount": -1, "image": "", "imageID": ""})
        });
        let condition = (text(), text(), text(), time.clone()).prop_map(|(kind, status, message, at)| {
            json!({"type": kind, "status": status, "message": message, "lastTransitionTime": at})
        });
        let list = |of| proptest::collection::vec(of, 0..3);
        let metadata = (time.clone(), proptest::option::of(time.clone()), any::<i64>())
            .prop_map(|(created, deleted, grace)| {
                json!({"creationTimestamp": created, "deletionTimestamp": deleted, "deletionGracePeriodSeconds": grace % 2})
            });
        (metadata, text(), text(), time, list(status.clone().boxed()), list(status.boxed()), list(condition.boxed()))
            .prop_map(|(metadata, phase, reason, start, main, init, conditions)| {
                json!({"metadata": metadata, "status": {"phase": phase, "reason": reason, "startTime": start,
                    "containerStatuses": main, "initContainerStatuses": init, "conditions": conditions}})
            })
    }

    proptest! {
        #[test]
        fn any_status_has_an_answer(json in any_json(), now in -1_000_000_000_000_i64..1_000_000_000_000, killing in any::<bool>()) {
            let pod: Pod = serde_json::from_value(json).unwrap();
            let now = Timestamp::from_second(now % 200_000_000_000).unwrap();
            let known = Known { killing: killing.then_some(CANCEL), now, patience: Duration::MAX };
            let seen = observe(&pod, &known);
            if let Seen::Ended { outcome, at } = seen {
                prop_assert!(at <= now);
                let cancelled = matches!(outcome.ending, Ending::Killed(KillCause::Cancel(CancelCause::Asked)));
                prop_assert!(!cancelled || killing);
            }
        }
    }
}
