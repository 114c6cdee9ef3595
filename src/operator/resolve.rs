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
use crate::catalog::cluster::{Found, NotFound, Written};
use crate::catalog::gzip;
use crate::engine::graph::{Graph, NodeIx};
use crate::engine::name::Attempt;
use crate::engine::spec::Node;
use crate::engine::step::{self, Limits};
use crate::executor::decision::{Work, millis, secret_token};
use crate::executor::pod::build::{self, RunPods, Scripts, SecretParam};
use crate::executor::runner::{Piece, Script};
use crate::template::{Filling, Limits as Size, Params, Template};
use crate::value::{Budget, Problem, Problems, Value};

use super::context::Context;
use super::memory::Charge;
use super::snapshot::{self, Pinned};

/// How long a node that is ended has between TERM and KILL.
const GRACE: Duration = Duration::from_secs(10);

/// Above so many bytes of text, template and parameters are read when nothing else as large is.
const LARGE: usize = 256 * 1024;
/// How long what is large may take to be found, read and copied, while no other of its size is.
const LONGEST_TURN: Duration = Duration::from_mins(2);
/// Memory of a graph for each byte of its template's text, as long as it is not known better.
const ESTIMATE: usize = 2;

/// The reason of a run that waits until others give memory back.
pub(super) const NO_MEMORY: &str = "NoMemory";

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
    /// The memory that it takes.
    _charge: Charge,
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
    /// It has to wait for its turn: it is larger than was asked for.
    Large,
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

/// The run without what it says is to be run. That is large, does not change, and is not needed once
/// the graph is there.
pub(super) fn without_content(mut run: WorkflowRun) -> WorkflowRun {
    run.spec.template = None;
    run.spec.params = None;
    run.metadata.managed_fields = None;
    run.metadata.annotations = None;
    run
}

/// The same with what it says is to be run, from an earlier state of it.
pub(super) fn with_content(run: &WorkflowRun, earlier: &WorkflowRun) -> WorkflowRun {
    let mut run = run.clone();
    run.spec.template.clone_from(&earlier.spec.template);
    run.spec.params.clone_from(&earlier.spec.params);
    run
}

/// What a run takes until it is known what it runs, in bytes.
pub(super) fn size(run: &WorkflowRun) -> usize {
    // Beside its content: its task, its status, its names.
    const REST: usize = 8 * 1024;
    let spec = &run.spec;
    let content = spec.template.iter().chain(&spec.params);
    content.map(crate::api::Object::bytes).sum::<usize>() + REST
}

/// Finds what a run runs. What is small is read at once; what is large when it is its turn.
pub(super) async fn resolve(
    context: &Context,
    run: &Arc<WorkflowRun>,
) -> Result<Program, Unresolved> {
    match resolve_within(context, run, LARGE).await {
        Err(Unresolved::Large) => {}
        resolved => return resolved,
    }
    let namespace = run.namespace().unwrap_or_default();
    let _turn = context.large.wait(&namespace).await;
    // Others wait behind it, whatever the API server does.
    let resolved = resolve_within(context, run, gzip::LARGEST);
    let resolved = tokio::time::timeout(LONGEST_TURN, resolved).await;
    resolved.unwrap_or_else(|_| {
        let message = "the API server does not give what the run runs in time; it is asked again";
        Err(Unresolved::wait("NotPinned", message))
    })
}

/// Finds what a run runs, where its texts are at most so many bytes.
async fn resolve_within(
    context: &Context,
    run: &Arc<WorkflowRun>,
    most: usize,
) -> Result<Program, Unresolved> {
    check(context, run)?;
    let recorded = run
        .status
        .as_ref()
        .and_then(|status| status.resolved.as_ref());
    let recorded = recorded.filter(|resolved| !resolved.snapshot.is_empty());
    let (pinned, snapshot) = match recorded {
        Some(resolved) => {
            let pinned = snapshot::read(context, run, &resolved.snapshot, most).await?;
            (pinned, resolved.snapshot.clone())
        }
        None => pin(context, run, most).await?,
    };
    let (pinned, hash, graph, mut charge) = compile(context, run, pinned, most).await?;
    let resolved = Resolved {
        fqsn: pinned.fqsn.clone(),
        version: pinned.version.clone(),
        hash: Some(hash),
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
        let bytes: usize = files.iter().flatten().map(|file| file.content.len()).sum();
        let bytes = bytes + graph.memory();
        if !charge.resize(bytes) {
            return Err(no_room(context, run, bytes));
        }
    }
    Ok(Program {
        processes,
        network: pinned.network == Some(true),
        files: Arc::new(files),
        graph: Arc::new(graph),
        pods: pods(context, run, &pinned).await,
        record_first: recorded.is_none() && !resolved.snapshot.is_empty(),
        resolved,
        _charge: charge,
    })
}

/// Reads and fills the template, when there is room for it, without keeping others waiting.
async fn compile(
    context: &Context,
    run: &Arc<WorkflowRun>,
    pinned: Pinned,
    most: usize,
) -> Result<(Pinned, String, Graph, Charge), Unresolved> {
    let bytes = text_bytes(run, &pinned);
    if bytes > most && most < gzip::LARGEST {
        return Err(Unresolved::Large);
    }
    let namespace = run.namespace().unwrap_or_default();
    let pool = &context.programs;
    // No more than there can be: what it will be is not known.
    let estimate = bytes.saturating_mul(ESTIMATE).min(pool.largest());
    let Some(mut charge) = pool.take(&namespace, estimate) else {
        return Err(no_room(context, run, estimate));
    };
    let (pinned, compiled) = if bytes > LARGE {
        let run = Arc::clone(run);
        let work = move || {
            let compiled = graph(&run, &pinned);
            (pinned, compiled)
        };
        // It keeps a processor busy for long; other runs must not wait for that.
        let Ok(done) = tokio::task::spawn_blocking(work).await else {
            // It said so itself.
            let message = "reading the template broke down; this is a bug of apscli";
            return Err(Unresolved::never("InvalidTemplate", message));
        };
        done
    } else {
        let compiled = graph(run, &pinned);
        (pinned, compiled)
    };
    let (hash, graph) = compiled?;
    let memory = graph.memory();
    if !charge.resize(memory) {
        return Err(no_room(context, run, memory));
    }
    Ok((pinned, hash, graph, charge))
}

/// Why a run cannot have so much memory: for ever, or now.
fn no_room(context: &Context, run: &WorkflowRun, bytes: usize) -> Unresolved {
    let pool = &context.programs;
    if bytes > pool.largest() {
        let most = pool.largest();
        let message = format!(
            "the run's graph takes {bytes} bytes of memory; expected at most {most}. Split it \
             into several runs, or put large values into files"
        );
        return Unresolved::never("TooLarge", message);
    }
    let namespace = run.namespace().unwrap_or_default();
    // Always the same, as what changes is written, and what is written is looked at again.
    let message = format!(
        "the operator has no memory for the run's graph now: namespace {namespace} has its share of \
         the cache `programs`; the run waits until others end"
    );
    Unresolved::wait(NO_MEMORY, message)
}

/// How much there is to read of template and parameters, in bytes.
fn text_bytes(run: &WorkflowRun, pinned: &Pinned) -> usize {
    let template = match (&pinned.template, &run.spec.template) {
        (Some(Written::Text { text, .. }), _) => text.len(),
        (Some(Written::Object(object)), _) | (None, Some(object)) => object.bytes(),
        (None, None) => 0,
    };
    let own = run
        .spec
        .params
        .as_ref()
        .map_or(0, crate::api::Object::bytes);
    let others = pinned.params.iter().flatten();
    let others = others.map(|(name, value)| name.len() + value.text_bytes());
    template + own + others.sum::<usize>()
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
    if pinned.network == Some(true) && !options.processes.network {
        let message = "network: the service's processes may have none here; expected `false`, or \
                       executor `pod` (the cluster's administrator can allow it: --process-network)";
        return Err(Unresolved::never("NetworkNotAllowed", message));
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
    let namespace = run.namespace().unwrap_or_default();
    let allowed = &context.options.service_accounts;
    if let Some(account) = &run.spec.service_account_name
        && !allowed.iter().any(|it| it.allows(&namespace, account))
    {
        // Those of other namespaces are not this author's to know.
        let here = allowed.iter().filter(|it| it.allows(&namespace, &it.name));
        let here: Vec<&str> = here.map(|it| it.name.as_str()).collect();
        let message = format!(
            "spec.serviceAccountName: `{account}` is not on the operator's list for namespace \
             {namespace}; expected {} (the cluster's administrator can add it: \
             --allow-service-account {namespace}/{account})",
            listed(&here)
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

fn listed(names: &[&str]) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        format!("one of {}", names.join(", "))
    }
}

/// Looks up what the run names, and copies it to snapshots.
async fn pin(
    context: &Context,
    run: &WorkflowRun,
    most: usize,
) -> Result<(Pinned, Vec<String>), Unresolved> {
    let params = snapshot::params_from(context, run, most).await?;
    let service = match &run.spec.fqsn {
        Some(fqsn) => Some(found(context, run, fqsn, most).await?),
        None => None,
    };
    let text = if run.spec.template_from.is_empty() {
        None
    } else {
        Some(snapshot::template_from(context, run, most).await?)
    };
    if service.is_none() && text.is_none() && params.is_none() {
        // The run's own spec is fixed already.
        return Ok((Pinned::default(), Vec::new()));
    }
    snapshot::pin(context, run, service, text, params).await
}

async fn found(
    context: &Context,
    run: &WorkflowRun,
    fqsn: &str,
    most: usize,
) -> Result<Found, Unresolved> {
    let namespace = run.namespace().unwrap_or_default();
    let version = run.spec.version.clone();
    let found = if most > LARGE {
        let (shelves, fqsn) = (context.shelves.clone(), fqsn.to_owned());
        let options = context.options.clone();
        let find = move || shelves.find((&fqsn, version.as_deref()), &namespace, &options, most);
        // As when it is compiled.
        tokio::task::spawn_blocking(find).await.map_err(|_| {
            Unresolved::wait("ServiceNotFound", "looking for the service broke down")
        })?
    } else {
        context.find(fqsn, version.as_deref(), &namespace, most)
    };
    found.map_err(|error| match error {
        NotFound::Larger { .. } => Unresolved::Large,
        error => Unresolved::wait("ServiceNotFound", error.to_string()),
    })
}

/// The template's hash, and the graph that it is with the run's parameters.
pub(super) fn graph(run: &WorkflowRun, pinned: &Pinned) -> Result<(String, Graph), Unresolved> {
    let template = template(run, pinned)?;
    let params = params(run, pinned)?;
    let graph = template
        .graph(Filling::With(&params))
        .map_err(|problems| wrong("InvalidTemplate", &problems))?;
    Ok((template.hash(), graph))
}

fn wrong(reason: &str, problems: &Problems) -> Unresolved {
    let reason = if problems.is_too_large() {
        "TooLarge"
    } else {
        reason
    };
    Unresolved::never(reason, problems.to_string())
}

/// A template that is an object.
fn object(source: &str, object: &crate::api::Object) -> Result<Template, Unresolved> {
    let value = object.read(&mut Budget::of(Size::CLUSTER.values));
    let value = value.map_err(|problem| in_object(source, "InvalidTemplate", problem))?;
    Ok(Template::from_value(source, &value).within(Size::CLUSTER))
}

/// Places in the text of an object say nothing to its author.
fn in_object(source: &str, reason: &str, problem: Problem) -> Unresolved {
    let at = crate::value::Place::NONE;
    wrong(
        reason,
        &Problems::new(source, vec![Problem { at, ..problem }]),
    )
}

/// The template, from where it is fixed.
fn template(run: &WorkflowRun, pinned: &Pinned) -> Result<Template, Unresolved> {
    match (&pinned.template, &run.spec.template) {
        (Some(Written::Text { name, text }), _) => Template::read_within(name, text, Size::CLUSTER)
            .map_err(|problems| wrong("InvalidTemplate", &problems)),
        (Some(Written::Object(it)), _) => object("the service's template", it),
        (None, Some(it)) => object("spec.template", it),
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
    if let Some(own) = &run.spec.params {
        let own = own.read(&mut Budget::of(Size::CLUSTER.values));
        let own = own.map_err(|problem| in_object("spec.params", "InvalidParameters", problem))?;
        if let Value::Map(own) = own {
            params.extend(own);
        }
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
