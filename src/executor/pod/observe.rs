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
