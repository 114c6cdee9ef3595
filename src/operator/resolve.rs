//! What a run runs: its template from wherever it stands, parameters filled in, proven runnable.
//!
//! What is not fixed by the run itself (a service, texts and parameters in `ConfigMaps`) is copied
//! to snapshots first, and after a restart only those are read: a service that is changed while a
//! run goes on does not touch it.
//!
//! Must not start anything.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ResourceRequirements;
use kube::ResourceExt;

use crate::api::workflow_run::{ExecutorKind, OnLost, PodOverrides, Resolved, WorkflowRun};
use crate::api::{object_to_value, to_value};
use crate::catalog::cluster::{Found, Written};
use crate::engine::graph::{Graph, NodeIx};
use crate::engine::name::Attempt;
use crate::engine::spec::Node;
use crate::engine::step::{self, Limits};
use crate::executor::decision::{Work, millis, secret_token};
use crate::executor::pod::build::{self, RunPods, Scripts, SecretParam};
use crate::executor::runner::{Piece, Script};
use crate::template::{Filling, Params, Template};
use crate::value::Value;

use super::context::Context;
use super::snapshot::{self, Pinned};

/// How long a node that is ended has between TERM and KILL.
const GRACE: Duration = Duration::from_secs(10);

/// What a run runs.
pub(super) struct Program {
    pub(super) graph: Arc<Graph>,
    pub(super) pods: RunPods,
    pub(super) resolved: Resolved,
    /// The nodes that are processes beside the operator.
    pub(super) processes: BTreeSet<NodeIx>,
    /// Whether those have a network.
    pub(super) network: bool,
    /// The scripts for those, by the copy that has them.
    pub(super) files: Arc<Vec<Vec<Script>>>,
    /// Whether `resolved` must be on record before anything starts.
    pub(super) record_first: bool,
}

impl Program {
    /// An attempt, as the runner knows it.
    pub(super) fn piece(&self, ix: NodeIx, attempt: Attempt) -> Piece {
        Piece {
            run: self.pods.uid.clone(),
            node: self.graph.name(ix).to_string(),
            attempt: attempt.get(),
        }
    }
}

/// Why there is nothing to run.
#[derive(Debug)]
pub(super) enum Unresolved {
    /// It may come: a service that is not published yet.
    Wait { reason: String, message: String },
    /// It will not come: what is there can never run.
    Never { reason: String, message: String },
    /// The run was cancelled before it began.
    Cancelled,
}

impl Unresolved {
    pub(super) fn wait(reason: &str, message: impl Into<String>) -> Self {
        Self::Wait {
            reason: reason.to_owned(),
            message: message.into(),
        }
    }

    pub(super) fn never(reason: &str, message: impl Into<String>) -> Self {
        Self::Never {
            reason: reason.to_owned(),
            message: message.into(),
        }
    }
}

/// Finds what a run runs.
pub(super) async fn resolve(context: &Context, run: &WorkflowRun) -> Result<Program, Unresolved> {
    check(context, run)?;
    let recorded = run
        .status
        .as_ref()
        .and_then(|status| status.resolved.as_ref());
    let recorded = recorded.filter(|resolved| !resolved.snapshot.is_empty());
    let (pinned, snapshot) = match recorded {
        Some(resolved) => {
            let pinned = snapshot::read(context, run, &resolved.snapshot).await?;
            (pinned, resolved.snapshot.clone())
        }
        None => pin(context, run).await?,
    };
    let (template, graph) = graph(run, &pinned)?;
    let resolved = Resolved {
        fqsn: pinned.fqsn.clone(),
        version: pinned.version.clone(),
        hash: Some(template.hash()),
        source: Some(
            pinned
                .source
                .clone()
                .unwrap_or_else(|| "the run's own template".to_owned()),
        ),
        snapshot,
    };
    let processes = processes(run, &pinned, &graph);
    let mut files = Vec::new();
    if !processes.is_empty() {
        check_processes(context, run, &pinned, &resolved, &graph, &processes)?;
        files = snapshot::scripts(context, run, &pinned).await?;
    }
    Ok(Program {
        processes,
        network: pinned.network == Some(true),
        files: Arc::new(files),
        graph: Arc::new(graph),
        pods: pods(context, run, &pinned).await,
        record_first: recorded.is_none() && !resolved.snapshot.is_empty(),
        resolved,
    })
}

/// The nodes that are to be processes: by their own word, else by the run's, else by the
/// service's.
fn processes(run: &WorkflowRun, pinned: &Pinned, graph: &Graph) -> BTreeSet<NodeIx> {
    let all = run.spec.executor.or(pinned.executor) == Some(ExecutorKind::Process);
    let nodes = graph.iter().filter(|(_, node)| {
        let own = node.action_shown.get("executor").map(Value::to_plain_text);
        own.map_or(all, |own| own == "process")
    });
    nodes.map(|(ix, _)| ix).collect()
}

/// Whether the run's processes may be, and can be.
fn check_processes(
    context: &Context,
    run: &WorkflowRun,
    pinned: &Pinned,
    resolved: &Resolved,
    graph: &Graph,
    processes: &BTreeSet<NodeIx>,
) -> Result<(), Unresolved> {
    let namespace = run.namespace().unwrap_or_default();
    let options = &context.options;
    // Where a service was found is on record with the content that has its hash for a name.
    let source = pinned.source.as_deref().unwrap_or_default();
    let place = source.split(' ').nth(1).and_then(|it| it.split_once('/'));
    let is_shared = place.is_some_and(|(of, _)| of == options.shared_namespace);
    let shared = pinned.fqsn.as_deref().filter(|_| is_shared);
    if context.runner.is_none() || !options.processes.allow(&namespace, shared) {
        let message = format!(
            "executor: `process` is not allowed here; expected `pod` (the cluster's administrator \
             can allow it for namespace {namespace}: --process-namespace, or for a service of \
             namespace {}: --process-service)",
            options.shared_namespace
        );
        return Err(Unresolved::never("ProcessNotAllowed", message));
    }
    // The place that a document names is believed because the document's name holds its hash. Half
    // a hash does not prove that: who publishes a service could have made two of one name.
    if !options.processes.allow(&namespace, None) && !snapshot::are_whole(&resolved.snapshot) {
        let message = "executor: `process` is allowed here for the service alone, and the copy of \
                       it was made by an operator up to 0.1.0, in whose names is half of a hash \
                       only; expected a copy with the whole hash: make the run again";
        return Err(Unresolved::never("ProcessNotAllowed", message));
    }
    let uid = run.metadata.uid.clone().unwrap_or_default();
    let secrets = run
        .spec
        .params_from
        .iter()
        .filter_map(|it| it.secret.as_ref());
    for secret in secrets {
        let token = secret_token(&uid, &secret.param);
        let named = processes
            .iter()
            .find(|ix| decision(graph.node(**ix)).names(&token));
        if let Some(ix) = named {
            let message = format!(
                "node {}: the parameter `{}` comes from a Secret, which only a pod can be given: \
                 the operator has no right to read Secrets; expected executor `pod`",
                graph.name(*ix),
                secret.param
            );
            return Err(Unresolved::never("SecretOutOfReach", message));
        }
    }
    Ok(())
}

/// What the runner is told of a node.
pub(super) fn decision(node: &Node) -> Work {
    let mut work = Work::new(node.action.clone(), node.param.clone(), GRACE);
    work.timeout_ms = node.timeout.map(millis);
    work
}

/// What the operator does not do for this run, whatever it runs.
fn check(context: &Context, run: &WorkflowRun) -> Result<(), Unresolved> {
    if let Some(account) = &run.spec.service_account_name
        && !context.options.service_accounts.contains(account)
    {
        let message = format!(
            "spec.serviceAccountName: `{account}` is not on the operator's list; expected {} \
             (the cluster's administrator can add it: --allow-service-account)",
            listed(&context.options.service_accounts)
        );
        return Err(Unresolved::never("ServiceAccountNotAllowed", message));
    }
    if let Some(timeout) = &run.spec.timeout {
        timeout.length().map_err(|message| {
            Unresolved::never("InvalidTimeout", format!("spec.timeout: {message}"))
        })?;
    }
    Ok(())
}

fn listed(names: &[String]) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        format!("one of {}", names.join(", "))
    }
}

/// Looks up what the run names, and copies it to snapshots.
async fn pin(context: &Context, run: &WorkflowRun) -> Result<(Pinned, Vec<String>), Unresolved> {
    let params = snapshot::params_from(context, run).await?;
    let service = match &run.spec.fqsn {
        Some(fqsn) => Some(found(context, run, fqsn)?),
        None => None,
    };
    let text = if run.spec.template_from.is_empty() {
        None
    } else {
        Some(snapshot::template_from(context, run).await?)
    };
    if service.is_none() && text.is_none() && params.is_none() {
        // The run's own spec is fixed already.
        return Ok((Pinned::default(), Vec::new()));
    }
    snapshot::pin(context, run, service, text, params).await
}

fn found(context: &Context, run: &WorkflowRun, fqsn: &str) -> Result<Found, Unresolved> {
    let namespace = run.namespace().unwrap_or_default();
    context
        .find(fqsn, run.spec.version.as_deref(), &namespace)
        .map_err(|error| Unresolved::wait("ServiceNotFound", error.to_string()))
}

/// The template, and the graph that it is with the run's parameters.
pub(super) fn graph(run: &WorkflowRun, pinned: &Pinned) -> Result<(Template, Graph), Unresolved> {
    let template = template(run, pinned)?;
    let params = params(run, pinned)?;
    let graph = template
        .graph(Filling::With(&params))
        .map_err(|problems| Unresolved::never("InvalidTemplate", problems.to_string()))?;
    Ok((template, graph))
}

/// The template, from where it is fixed.
fn template(run: &WorkflowRun, pinned: &Pinned) -> Result<Template, Unresolved> {
    match (&pinned.template, &run.spec.template) {
        (Some(Written::Text { name, text }), _) => {
            let template = Template::read(name, text)
                .map_err(|problems| Unresolved::never("InvalidTemplate", problems.to_string()))?;
            Ok(template)
        }
        (Some(Written::Object(object)), _) => {
            let value = object_to_value(object);
            Ok(Template::from_value("the service's template", &value))
        }
        (None, Some(object)) => Ok(Template::from_value(
            "spec.template",
            &object_to_value(object),
        )),
        (None, None) => Err(Unresolved::never(
            "InvalidSpec",
            "there is nothing to run; expected exactly one of fqsn, template and templateFrom",
        )),
    }
}

/// The run's parameters: those from elsewhere, the run's own on top, checked against what the
/// service declares.
fn params(run: &WorkflowRun, pinned: &Pinned) -> Result<Params, Unresolved> {
    let mut params = pinned.params.clone().unwrap_or_default();
    for (name, value) in run.spec.params.iter().flatten() {
        params.insert(name.clone(), to_value(value));
    }
    crate::api::service::declared(&pinned.declared, &params)
        .map_err(|problems| Unresolved::never("InvalidParameters", problems.join("; ")))
}

async fn pods(context: &Context, run: &WorkflowRun, pinned: &Pinned) -> RunPods {
    let options = &context.options;
    let chosen = run.spec.image.clone().or_else(|| pinned.image.clone());
    let image = chosen.unwrap_or_else(|| options.node_image.clone());
    let volumes = &context.image_volumes;
    let delivery = volumes.delivery(&context.client, options, &image).await;
    let secrets = run.spec.params_from.iter().filter_map(|source| {
        let secret = source.secret.as_ref()?;
        Some(SecretParam {
            param: secret.param.clone(),
            secret: secret.name.clone(),
            key: secret.key.clone(),
        })
    });
    RunPods {
        name: run.name_any(),
        uid: run.metadata.uid.clone().unwrap_or_default(),
        namespace: run.namespace().unwrap_or_default(),
        image,
        delivery,
        scripts: pinned
            .scripts
            .iter()
            .map(|scripts| Scripts {
                config_map: scripts.config_map.clone(),
                path: scripts.path.clone(),
                mode: scripts.mode,
                keys: scripts.keys.clone(),
            })
            .collect(),
        scripts_hash: pinned.scripts_hash(),
        secrets: secrets.collect(),
        overrides: overrides(pinned.pod.as_ref(), run.spec.pod.as_ref()),
        service_account: run.spec.service_account_name.clone(),
        token: false,
        grace: GRACE,
    }
}

/// The service's pod properties with the run's on top. Every field is named here: one that is new
/// must be thought about.
fn overrides(service: Option<&PodOverrides>, run: Option<&PodOverrides>) -> build::PodOverrides {
    let mut merged = build::PodOverrides::default();
    for part in service.into_iter().chain(run) {
        let PodOverrides {
            node_selector,
            tolerations,
            resources,
            image_pull_policy,
            image_pull_secrets,
            priority_class_name,
            labels,
            annotations,
        } = part.clone();
        merged.node_selector.extend(node_selector);
        merged.tolerations.extend(tolerations);
        merged.resources = resources
            .map(|resources| ResourceRequirements {
                limits: Some(resources.limits).filter(|it| !it.is_empty()),
                requests: Some(resources.requests).filter(|it| !it.is_empty()),
                ..ResourceRequirements::default()
            })
            .or(merged.resources);
        merged.image_pull_policy = image_pull_policy
            .map(|policy| policy.as_str().to_owned())
            .or(merged.image_pull_policy);
        merged
            .image_pull_secrets
            .extend(image_pull_secrets.into_iter().map(|it| it.name));
        merged.priority_class_name = priority_class_name.or(merged.priority_class_name);
        merged.labels.extend(labels);
        merged.annotations.extend(annotations);
    }
    merged
}

/// The limits that a run's author sets; parallelism may change while it goes on.
pub(super) fn limits(run: &WorkflowRun) -> Limits {
    let parallelism = run
        .spec
        .parallelism
        .and_then(|most| usize::try_from(most).ok());
    Limits {
        parallelism: parallelism.and_then(std::num::NonZeroUsize::new),
        timeout: run
            .spec
            .timeout
            .as_ref()
            .and_then(|timeout| timeout.length().ok()),
        on_lost: match run.spec.on_lost {
            Some(OnLost::Retry) => step::OnLost::Retry,
            Some(OnLost::Fail) | None => step::OnLost::Fail,
        },
    }
}
