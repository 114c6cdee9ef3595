//! `apscli submit|get|watch|logs|cancel|suspend|resume`: runs in a cluster, for people.
//!
//! Everything here can be done with kubectl too. The cluster is the one that kubectl would use;
//! as `kubectl-apscli` in the PATH the program is a plugin: `kubectl apscli get`.
//!
//! Must not decide what the operator decides; what is shown stands on the resources.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args as ClapArgs, ValueEnum};
use futures::StreamExt;
use jiff::tz::TimeZone;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, ListParams, LogParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Config, Resource, ResourceExt};
use serde_json::json;

use crate::api::page::WorkflowRunPage;
use crate::api::workflow_run::{
    NodeStatus, OnLost, RunPhase, TemplateSource, WorkflowRun, WorkflowRunSpec,
};
use crate::api::{self, Object};
use crate::catalog::gzip;
use crate::engine::name::Fqsn;
use crate::local::report::Report;
use crate::operator::past;
use crate::template::{Filling, Params, Template, duration};

use super::inspect::read_text;
use super::run::{Lost, params};
use super::{Context, Failure};

/// Bytes of one part of a template. A `ConfigMap` may hold 1 MiB in all.
const PART: usize = 900 * 1024;
/// Bytes of a template that is kept as it is; above, it is compressed.
const PLAIN: usize = 64 * 1024;

/// Where runs are.
#[derive(Debug, ClapArgs)]
pub(super) struct Place {
    /// The namespace [default: that of the kubeconfig's context]
    #[arg(long, short, value_name = "NAMESPACE")]
    namespace: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(super) struct SubmitArgs {
    #[command(flatten)]
    place: Place,
    /// The template to run
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "fqsn",
        required_unless_present = "fqsn"
    )]
    template: Option<PathBuf>,
    /// The service to run, as `oracle.peo.cloud.vm_allocation`
    #[arg(long)]
    fqsn: Option<Fqsn>,
    /// The service's version [default: the service's own default]
    #[arg(long, requires = "fqsn", conflicts_with = "template")]
    version: Option<String>,
    /// A file of parameters, JSON or YAML
    #[arg(long, value_name = "FILE")]
    params: Option<PathBuf>,
    /// One parameter, over those of the file; the value is JSON, or else a text
    #[arg(long = "param", value_name = "NAME=VALUE")]
    param: Vec<String>,
    /// The run's name [default: one that begins like the service's or template's]
    #[arg(long)]
    name: Option<String>,
    /// Most nodes at once
    #[arg(long, value_name = "N")]
    parallel: Option<u32>,
    /// Longest time of the whole run, as 30s, 5m, 1h30m
    #[arg(long, value_name = "TIME")]
    timeout: Option<String>,
    /// What becomes of nodes whose pod was lost
    #[arg(long, value_enum)]
    on_lost: Option<Lost>,
    /// Wait for the end and show what goes on; exit status 0 success, 1 failure
    #[arg(long, short)]
    watch: bool,
}

#[derive(Debug, ClapArgs)]
pub(super) struct GetArgs {
    #[command(flatten)]
    place: Place,
    /// The run [default: a list of all]
    name: Option<String>,
    /// What to print
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Output {
    /// The run's result as JSON
    Json,
    /// A line a node
    #[default]
    Table,
}

#[derive(Debug, ClapArgs)]
pub(super) struct NamedArgs {
    #[command(flatten)]
    place: Place,
    /// The run
    name: String,
}

#[derive(Debug, ClapArgs)]
pub(super) struct LogsArgs {
    #[command(flatten)]
    place: Place,
    /// The run
    run: String,
    /// The nodes [default: all that have a pod]
    nodes: Vec<String>,
    /// Go on as more is written
    #[arg(long, short)]
    follow: bool,
}

/// A way to the cluster, and the namespace that is meant.
struct Cluster {
    client: Client,
    namespace: String,
}

impl Cluster {
    async fn find(place: &Place) -> Result<Self, Failure> {
        let config = Config::infer()
            .await
            .map_err(|error| format!("found no cluster: {error}; expected a kubeconfig"))?;
        let namespace = place.namespace.clone();
        Ok(Self {
            namespace: namespace.unwrap_or_else(|| config.default_namespace.clone()),
            client: Client::try_from(config)?,
        })
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = kube::core::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn run(&self, name: &str) -> Result<WorkflowRun, Failure> {
        let found = self
            .api::<WorkflowRun>()
            .get_opt(name)
            .await
            .map_err(said)?;
        found.ok_or_else(|| {
            format!(
                "there is no run `{name}` in the namespace `{}`",
                self.namespace
            )
            .into()
        })
    }

    /// All nodes of a run, from its status and its pages, in template order as far as known.
    async fn nodes(&self, run: &WorkflowRun) -> Result<Vec<NodeStatus>, Failure> {
        let status = run.status.clone().unwrap_or_default();
        if status.pages.is_none() {
            return Ok(status.nodes);
        }
        let api = self.api::<WorkflowRunPage>();
        let list = api.list(&ListParams::default()).await.map_err(said)?;
        let mut pages: Vec<WorkflowRunPage> = list
            .into_iter()
            .filter(|page| {
                let owners = page.owner_references();
                owners
                    .iter()
                    .any(|owner| Some(&owner.uid) == run.metadata.uid.as_ref())
            })
            .collect();
        pages.sort_by_key(|page| page.spec.index);
        Ok(pages.into_iter().flat_map(|page| page.spec.nodes).collect())
    }
}

/// The API server's words, without the rest of its answer.
fn said(error: kube::Error) -> Failure {
    match error {
        kube::Error::Api(status) => format!("the cluster says: {}", status.message).into(),
        error => error.into(),
    }
}

fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}

pub(super) fn submit(context: &Context, args: &SubmitArgs) -> Result<ExitCode, Failure> {
    let params = params(args.params.as_deref(), &args.param)?;
    if let Some(timeout) = &args.timeout {
        duration(timeout).map_err(|message| format!("--timeout: {message}"))?;
    }
    let template = match &args.template {
        Some(path) => Some(read_template(path, &params)?),
        None => None,
    };
    let spec = WorkflowRunSpec {
        fqsn: args.fqsn.as_ref().map(ToString::to_string),
        version: args.version.clone(),
        params: object(&params),
        parallelism: args.parallel,
        timeout: args.timeout.clone().map(api::Duration),
        on_lost: args.on_lost.map(|lost| match lost {
            Lost::Fail => OnLost::Fail,
            Lost::Retry => OnLost::Retry,
        }),
        ..WorkflowRunSpec::default()
    };
    block_on(async {
        let cluster = Cluster::find(&args.place).await?;
        let run = create(&cluster, args, spec, template).await?;
        let name = run.name_any();
        context
            .printer
            .data(&format!("workflowrun.apscli.dev/{name}"));
        if args.watch {
            follow(context, &cluster, &name).await
        } else {
            Ok(ExitCode::SUCCESS)
        }
    })
}

/// Reads a template and checks it, so that what is wrong is told here and not in a cluster.
fn read_template(path: &std::path::Path, params: &Params) -> Result<String, Failure> {
    let text = read_text(path)?;
    let template = Template::read(&path.display().to_string(), &text)?;
    template.graph(Filling::With(params))?;
    Ok(text)
}

fn object(params: &Params) -> Option<Object> {
    let members = params
        .iter()
        .map(|(name, value)| (name.clone(), api::from_value(value)));
    let members: serde_json::Map<String, serde_json::Value> = members.collect();
    (!params.is_empty()).then(|| Object::from(&members))
}

/// Creates the run. A template goes into `ConfigMaps` as it is written, because an object would
/// lose the order of keys and the text of numbers; the run waits until they are there, and owns
/// them.
async fn create(
    cluster: &Cluster,
    args: &SubmitArgs,
    mut spec: WorkflowRunSpec,
    template: Option<String>,
) -> Result<WorkflowRun, Failure> {
    let stem = args.template.as_ref().and_then(|path| path.file_stem());
    let stem = stem.map(|stem| stem.to_string_lossy().into_owned());
    let stem = stem.or_else(|| Some(spec.fqsn.as_deref()?.rsplit('.').next()?.to_owned()));
    let name = match &args.name {
        Some(name) => name.clone(),
        None => format!("{}-{}", object_name(&stem.unwrap_or_default()), suffix()?),
    };
    let parts = template.map(|text| parts(&text)).unwrap_or_default();
    let key = |index: usize| format!("{name}-template-{index}");
    spec.template_from = (0..parts.len())
        .map(|index| TemplateSource {
            config_map: key(index),
            key: "template".to_owned(),
        })
        .collect();
    let run = WorkflowRun {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            ..ObjectMeta::default()
        },
        spec,
        status: None,
    };
    let run = cluster
        .api()
        .create(&PostParams::default(), &run)
        .await
        .map_err(said)?;
    let owner = run.controller_owner_ref(&());
    for (index, part) in parts.into_iter().enumerate() {
        let map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(key(index)),
                owner_references: owner.clone().map(|owner| vec![owner]),
                ..ObjectMeta::default()
            },
            immutable: Some(true),
            binary_data: Some(BTreeMap::from([("template".to_owned(), ByteString(part))])),
            ..ConfigMap::default()
        };
        cluster
            .api()
            .create(&PostParams::default(), &map)
            .await
            .map_err(said)?;
    }
    Ok(run)
}

/// A template's text in parts that fit.
fn parts(text: &str) -> Vec<Vec<u8>> {
    let bytes = if text.len() > PLAIN {
        gzip::compress(text.as_bytes())
    } else {
        text.as_bytes().to_vec()
    };
    bytes.chunks(PART).map(<[u8]>::to_vec).collect()
}

/// The beginning of an object's name that a text can be.
fn object_name(text: &str) -> String {
    let kept: String = text
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .take(40)
        .collect();
    match kept.trim_matches('-') {
        "" => "run".to_owned(),
        kept => kept.to_owned(),
    }
}

/// Five letters and digits that two runs hardly share.
fn suffix() -> Result<String, Failure> {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut bytes = [0_u8; 5];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    let letter = |byte: u8| {
        LETTERS
            .get(usize::from(byte) % LETTERS.len())
            .copied()
            .unwrap_or(b'x')
    };
    Ok(bytes
        .into_iter()
        .map(|byte| char::from(letter(byte)))
        .collect())
}

pub(super) fn get(context: &Context, args: &GetArgs) -> Result<ExitCode, Failure> {
    block_on(async {
        let cluster = Cluster::find(&args.place).await?;
        let Some(name) = &args.name else {
            let runs = cluster
                .api::<WorkflowRun>()
                .list(&ListParams::default())
                .await;
            let mut rows = vec![columns([
                "NAME", "SERVICE", "PHASE", "PROGRESS", "DURATION", "MESSAGE",
            ])];
            rows.extend(runs.map_err(said)?.iter().map(row));
            context.printer.data(&aligned(&rows));
            return Ok(ExitCode::SUCCESS);
        };
        let run = cluster.run(name).await?;
        let nodes = cluster.nodes(&run).await?;
        match args.output {
            Output::Json => context.printer.data(&result(&cluster, &run, &nodes).await?),
            Output::Table => context.printer.data(&node_table(&nodes)),
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// A run's result, printed as a local run's is.
async fn result(
    cluster: &Cluster,
    run: &WorkflowRun,
    nodes: &[NodeStatus],
) -> Result<String, Failure> {
    let phase = run.status.as_ref().and_then(|status| status.phase);
    let return_code = match phase.unwrap_or_default() {
        RunPhase::Succeeded => Some(1),
        phase => phase.is_final().then_some(0),
    };
    let text = match past::read(&cluster.client, run, nodes).await? {
        Some((graph, state)) => serde_json::to_string_pretty(&Report {
            graph: &graph,
            state: &state,
            return_code,
            zone: &TimeZone::system(),
        }),
        None => serde_json::to_string_pretty(&json!({"output": {}, "return_code": return_code})),
    };
    Ok(text?)
}

fn columns<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn row(run: &WorkflowRun) -> Vec<String> {
    let status = run.status.clone().unwrap_or_default();
    vec![
        run.name_any(),
        run.spec.fqsn.clone().unwrap_or_default(),
        status.phase.unwrap_or_default().to_string(),
        status.progress.unwrap_or_default(),
        status.duration.unwrap_or_default(),
        one_line(&status.message.unwrap_or_default()),
    ]
}

fn node_table(nodes: &[NodeStatus]) -> String {
    let mut rows = vec![columns(["NODE", "PHASE", "CODE", "POD", "MESSAGE"])];
    rows.extend(nodes.iter().map(|node| {
        let code = node
            .return_code
            .map_or_else(|| "N/A".to_owned(), |code| code.to_string());
        let pod = node.pod.as_ref().map(|pod| pod.name.clone());
        vec![
            node.name.clone(),
            format!("{:?}", node.phase),
            code,
            pod.unwrap_or_default(),
            one_line(node.message.as_deref().unwrap_or_default()),
        ]
    }));
    aligned(&rows)
}

/// Words that somebody else wrote, without what a terminal would obey.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(cells.join("   ").trim_end());
        text.push('\n');
    }
    text
}

pub(super) fn watch(context: &Context, args: &NamedArgs) -> Result<ExitCode, Failure> {
    block_on(async {
        let cluster = Cluster::find(&args.place).await?;
        follow(context, &cluster, &args.name).await
    })
}

/// Shows a run's moves until it is over.
async fn follow(context: &Context, cluster: &Cluster, name: &str) -> Result<ExitCode, Failure> {
    cluster.run(name).await?;
    let runs = watcher::watch_object(cluster.api::<WorkflowRun>(), name).default_backoff();
    let mut runs = std::pin::pin!(runs);
    let mut last = String::new();
    while let Some(run) = runs.next().await {
        let Ok(run) = run else { continue };
        let Some(run) = run else {
            return Err(format!("the run `{name}` was deleted").into());
        };
        let status = run.status.clone().unwrap_or_default();
        let phase = status.phase.unwrap_or_default();
        let progress = status.progress.clone().unwrap_or_default();
        let message = one_line(status.message.as_deref().unwrap_or_default());
        let line = format!("{phase:<9} {progress:<7} {message}");
        if line != last {
            context.printer.say(line.trim_end());
            last = line;
        }
        if phase.is_final() {
            context
                .printer
                .data(&node_table(&cluster.nodes(&run).await?));
            let success = phase == RunPhase::Succeeded;
            return Ok(if success {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
    }
    Err("the watch of the run ended".into())
}

pub(super) fn logs(context: &Context, args: &LogsArgs) -> Result<ExitCode, Failure> {
    block_on(async {
        let cluster = Cluster::find(&args.place).await?;
        let run = cluster.run(&args.run).await?;
        let nodes = cluster.nodes(&run).await?;
        for wanted in &args.nodes {
            if !nodes.iter().any(|node| node.name == *wanted) {
                return Err(format!("the run has no node `{wanted}` that has begun").into());
            }
        }
        let chosen = |node: &&NodeStatus| args.nodes.is_empty() || args.nodes.contains(&node.name);
        let several = nodes.iter().filter(chosen).count() > 1;
        for node in nodes.iter().filter(chosen) {
            let Some(pod) = &node.pod else { continue };
            if several && std::io::stdout().is_terminal() {
                context.printer.say(&format!("==> {} <==", node.name));
            }
            log(context, &cluster, &pod.name, args.follow).await?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn log(context: &Context, cluster: &Cluster, pod: &str, follow: bool) -> Result<(), Failure> {
    use futures::{AsyncBufReadExt, TryStreamExt};
    let params = LogParams {
        follow,
        container: Some(crate::executor::pod::CONTAINER.to_owned()),
        ..LogParams::default()
    };
    let stream = cluster
        .api::<Pod>()
        .log_stream(pod, &params)
        .await
        .map_err(said)?;
    let mut lines = stream.lines();
    while let Some(line) = lines.try_next().await? {
        context.printer.data(&line);
    }
    Ok(())
}

/// What a person may change of a run that goes on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wish {
    /// End it.
    Cancel,
    /// Start nothing new.
    Suspend,
    /// Start new nodes again.
    Resume,
}

pub(super) fn wish(context: &Context, args: &NamedArgs, wish: Wish) -> Result<ExitCode, Failure> {
    let (spec, word) = match wish {
        Wish::Cancel => (json!({"cancel": true}), "is being cancelled"),
        Wish::Suspend => (json!({"suspend": true}), "is suspended"),
        Wish::Resume => (json!({"suspend": false}), "goes on"),
    };
    block_on(async {
        let cluster = Cluster::find(&args.place).await?;
        let run = cluster.run(&args.name).await?;
        let phase = run
            .status
            .and_then(|status| status.phase)
            .unwrap_or_default();
        if phase.is_final() {
            return Err(format!("the run `{}` is over already: {phase}", args.name).into());
        }
        let patch = Patch::Merge(json!({"spec": spec}));
        let runs = cluster.api::<WorkflowRun>();
        runs.patch(&args.name, &PatchParams::default(), &patch)
            .await
            .map_err(said)?;
        context
            .printer
            .say(&format!("the run {} {word}", args.name));
        Ok(ExitCode::SUCCESS)
    })
}
