//! `apscli submit|get|watch|logs|cancel|suspend|resume`: runs in a cluster, for people.
//!
//! Everything here can be done with kubectl too. The cluster is the one that kubectl would use;
//! as `kubectl-apscli` in the PATH the program is a plugin: `kubectl apscli get`.
//!
//! Must not decide what the operator decides; what is shown stands on the resources.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args as ClapArgs, ValueEnum};
use futures::StreamExt;
use jiff::tz::TimeZone;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{
    Api, DeleteParams, ListParams, LogParams, ObjectMeta, Patch, PatchParams, PostParams,
    Preconditions,
};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Config, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::api::outside::Outside;
use crate::api::page::WorkflowRunPage;
use crate::api::workflow_run::{
    NodeStatus, OnLost, RunPhase, TemplateSource, WorkflowRun, WorkflowRunSpec,
};
use crate::api::{self, Object};
use crate::catalog::gzip;
use crate::engine::name::Fqsn;
use crate::local::report::Report;
use crate::operator::object::{self, Pages};
use crate::operator::past;
use crate::template::{Filling, Params, Template, duration};

use super::inspect::read_text;
use super::printer::Printer;
use super::run::{Lost, params};
use super::shown::{Stream, one_line};
use super::{Context, Failure};

/// Bytes of one part of a template. A `ConfigMap` may hold 1 MiB in all.
const PART: usize = 900 * 1024;
/// Bytes of a template that is kept as it is; above, it is compressed.
const PLAIN: usize = 64 * 1024;

/// Where runs are.
#[derive(Debug, ClapArgs)]
pub(super) struct Place {
    /// The namespace [default: that of the kubeconfig's context]
    #[arg(long, short, value_name = "NAMESPACE", value_parser = super::namespace)]
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
        let namespace = namespace.unwrap_or_else(|| config.default_namespace.clone());
        api::name::check_namespace(&namespace)?;
        Ok(Self {
            namespace,
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
        let found = object::get(&self.api::<WorkflowRun>(), name).await;
        let found = found.map_err(said)?;
        found.ok_or_else(|| {
            format!(
                "there is no run `{name}` in the namespace `{}`",
                self.namespace
            )
            .into()
        })
    }

    /// All objects of a kind, each read by itself.
    async fn list<K>(&self) -> Result<Vec<Outside<K>>, Failure>
    where
        K: Resource<Scope = kube::core::NamespaceResourceScope> + Clone + DeserializeOwned,
        K::DynamicType: Default,
    {
        let mut pages = Pages::new(ListParams::default());
        let mut all = Vec::new();
        while let Some(page) = pages.next(&self.api::<K>()).await.map_err(said)? {
            all.extend(page);
        }
        Ok(all)
    }

    /// All nodes of a run, from its status and its pages, in template order as far as known.
    async fn nodes(&self, run: &WorkflowRun) -> Result<Vec<NodeStatus>, Failure> {
        let status = run.status.clone().unwrap_or_default();
        if status.pages.is_none() {
            return Ok(status.nodes);
        }
        let mut list = self.list::<WorkflowRunPage>().await?;
        list.retain(|page| {
            let owners = page.owner_references();
            owners
                .iter()
                .any(|owner| Some(&owner.uid) == run.metadata.uid.as_ref())
        });
        let mut pages = Vec::new();
        for Outside(page) in list {
            pages.push(page.map_err(|it| format!("a page of the run cannot be read: {it}"))?);
        }
        pages.sort_by_key(|page| page.spec.index);
        Ok(pages.into_iter().flat_map(|page| page.spec.nodes).collect())
    }
}

/// The API server's words, without the rest of its answer.
fn said(error: kube::Error) -> Failure {
    match error {
        kube::Error::Api(status) => format!("the cluster says: {}", status.message).into(),
        kube::Error::BuildRequest(kube::core::request::Error::Validation(why)) => why.into(),
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
        let run = create(&cluster, &context.printer, args, spec, template).await?;
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
/// lose the order of keys and the text of numbers.
///
/// They are created before the run, so that nobody who sees the run can put others in their place
/// before they are there. Their names hold the hash of the template; one that is there already is
/// taken only where it holds the same for ever. Afterwards the run is made their owner.
async fn create(
    cluster: &Cluster,
    printer: &Printer,
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
    let wanted = template.map(|text| template_maps(&name, &text));
    let wanted = wanted.unwrap_or_default();
    spec.template_from = wanted
        .iter()
        .map(|map| TemplateSource {
            config_map: map.name_any(),
            key: KEY.to_owned(),
        })
        .collect();
    let maps: Api<ConfigMap> = cluster.api();
    let mut made = Vec::new();
    for map in &wanted {
        match keep(&maps, map).await {
            Ok(new) => made.extend(new),
            Err(error) => return Err(undo(cluster, made, error).await),
        }
    }
    let run = WorkflowRun {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            ..ObjectMeta::default()
        },
        spec,
        status: None,
    };
    let runs: Api<WorkflowRun> = cluster.api();
    let created = match runs.create(&PostParams::default(), &run).await {
        Ok(created) => created,
        Err(error) if is_refusal(&error) => return Err(undo(cluster, made, said(error)).await),
        // It may have been created all the same, and then needs its template.
        Err(error) => match object::get(&runs, &name).await {
            Ok(Some(found)) if found.spec.template_from == run.spec.template_from => found,
            Ok(None) => return Err(undo(cluster, made, said(error)).await),
            _ => return Err(left(cluster, &made, said(error))),
        },
    };
    if let Some(owner) = created.controller_owner_ref(&()) {
        // It is no controller of theirs: an object that another run uses too has two owners.
        let owner = OwnerReference {
            controller: None,
            block_owner_deletion: None,
            ..owner
        };
        for map in &wanted {
            if let Err(error) = own(&maps, map, &owner).await {
                let what = format!(
                    "note: the ConfigMap {} does not go with the run {name}; delete it after the \
                     run: {error}",
                    map.name_any()
                );
                printer.say(&what);
            }
        }
    }
    Ok(created)
}

/// The key of a template, or of a part of it.
const KEY: &str = "template";

/// The objects that hold a template.
fn template_maps(run: &str, text: &str) -> Vec<ConfigMap> {
    /// Bytes of the run's name in theirs, which may have 253 with the hash.
    const LONGEST: usize = 150;
    let parts = parts(text);
    let hash = Sha256::digest(parts.concat());
    let hash = hash.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    });
    let run = run.get(..run.floor_char_boundary(LONGEST)).unwrap_or(run);
    let run = run.trim_end_matches(['-', '.']);
    let map = |(index, part)| ConfigMap {
        metadata: ObjectMeta {
            name: Some(format!("{run}-template-{hash}-{index}")),
            ..ObjectMeta::default()
        },
        immutable: Some(true),
        binary_data: Some(BTreeMap::from([(KEY.to_owned(), ByteString(part))])),
        ..ConfigMap::default()
    };
    parts.into_iter().enumerate().map(map).collect()
}

/// In words, why what was found is not what was to be there; none: it is, for as long as it lives.
fn differs(found: &ConfigMap, wanted: &ConfigMap) -> Option<&'static str> {
    let is_empty = found.data.as_ref().is_none_or(BTreeMap::is_empty);
    if found.binary_data != wanted.binary_data || !is_empty {
        Some("it holds something else")
    } else if found.immutable != Some(true) {
        Some("it can be changed at any time")
    } else if found.metadata.deletion_timestamp.is_some() {
        Some("it is being deleted")
    } else {
        None
    }
}

/// Creates an object, and gives it back where it was not there before.
async fn keep(maps: &Api<ConfigMap>, map: &ConfigMap) -> Result<Option<ConfigMap>, Failure> {
    let error = match maps.create(&PostParams::default(), map).await {
        Ok(made) => return Ok(Some(made)),
        Err(error) => error,
    };
    if !matches!(&error, kube::Error::Api(status) if status.reason == "AlreadyExists") {
        return Err(said(error));
    }
    let name = map.name_any();
    let found = maps.get(&name).await.map_err(said)?;
    match differs(&found, map) {
        None => Ok(None),
        Some(why) => Err(format!(
            "the ConfigMap {name}, which is to hold the template, is there already, and {why}; \
             expected none, or the same and immutable: delete it, or give the run another --name"
        )
        .into()),
    }
}

/// How often an owner is put in again, when another client wrote in between.
const TRIES: u32 = 5;

/// Makes the run an owner of an object, so that it goes with the run.
async fn own(
    maps: &Api<ConfigMap>,
    map: &ConfigMap,
    owner: &OwnerReference,
) -> Result<(), Failure> {
    let name = map.name_any();
    for _ in 0..TRIES {
        let Some(found) = object::get(maps, &name).await.map_err(said)? else {
            // It went with another run that was its owner.
            let mut map = map.clone();
            map.metadata.owner_references = Some(vec![owner.clone()]);
            keep(maps, &map).await?;
            continue;
        };
        if let Some(why) = differs(&found, map) {
            return Err(format!("{why} by now").into());
        }
        let mut owners = found.owner_references().to_vec();
        if owners.iter().any(|it| it.uid == owner.uid) {
            return Ok(());
        }
        owners.push(owner.clone());
        let patch = Patch::Merge(json!({"metadata": {
            "uid": found.metadata.uid,
            "resourceVersion": found.metadata.resource_version,
            "ownerReferences": owners,
        }}));
        let params = PatchParams::default();
        match maps.patch_metadata(&name, &params, &patch).await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => {}
            Err(error) => return Err(said(error)),
        }
    }
    Err("it is being changed by another client all the time".into())
}

/// Whether the API server has surely not done what it was asked for.
fn is_refusal(error: &kube::Error) -> bool {
    // 408 and 429 may come from something on the way to it.
    matches!(error, kube::Error::Api(status)
        if (400..500).contains(&status.code) && ![408, 429].contains(&status.code))
}

/// Deletes what was made for a run that was not.
async fn undo(cluster: &Cluster, made: Vec<ConfigMap>, error: Failure) -> Failure {
    let maps: Api<ConfigMap> = cluster.api();
    let mut still = Vec::new();
    for map in made {
        let params = DeleteParams::default().preconditions(Preconditions {
            uid: map.metadata.uid.clone(),
            resource_version: None,
        });
        match maps.delete(&map.name_any(), &params).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => {}
            Err(_) => still.push(map),
        }
    }
    left(cluster, &still, error)
}

/// The error, with the names of what was made and is still there.
fn left(cluster: &Cluster, made: &[ConfigMap], error: Failure) -> Failure {
    if made.is_empty() {
        return error;
    }
    let names: Vec<String> = made.iter().map(ResourceExt::name_any).collect();
    format!(
        "{error}; if there is no such run, delete what was made for it in namespace {}: ConfigMap {}",
        cluster.namespace,
        names.join(", ")
    )
    .into()
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
            let runs = cluster.list::<WorkflowRun>().await?;
            let mut rows = vec![columns([
                "NAME", "SERVICE", "PHASE", "PROGRESS", "DURATION", "MESSAGE",
            ])];
            rows.extend(runs.iter().map(row));
            context.printer.data(&aligned(&rows));
            return Ok(ExitCode::SUCCESS);
        };
        let run = cluster.run(name).await?;
        let nodes = cluster.nodes(&run).await?;
        match args.output {
            Output::Json => context.printer.json(&result(&cluster, &run, &nodes).await?),
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

fn row(run: &Outside<WorkflowRun>) -> Vec<String> {
    let run = match &run.0 {
        Ok(run) => run,
        Err(invalid) => {
            let name = one_line(&run.name_any());
            let why = format!("the run cannot be read: {}", one_line(&invalid.error));
            let none = String::new;
            return vec![name, none(), "Error".to_owned(), none(), none(), why];
        }
    };
    let status = run.status.clone().unwrap_or_default();
    let row = [
        run.name_any(),
        run.spec.fqsn.clone().unwrap_or_default(),
        status.phase.unwrap_or_default().to_string(),
        status.progress.unwrap_or_default(),
        status.duration.unwrap_or_default(),
        status.message.unwrap_or_default(),
    ];
    row.iter().map(|cell| one_line(cell)).collect()
}

fn node_table(nodes: &[NodeStatus]) -> String {
    let mut rows = vec![columns(["NODE", "PHASE", "CODE", "POD", "MESSAGE"])];
    rows.extend(nodes.iter().map(|node| {
        let code = node
            .return_code
            .map_or_else(|| "N/A".to_owned(), |code| code.to_string());
        let pod = node.pod.as_ref().map(|pod| pod.name.clone());
        let row = [
            node.name.clone(),
            format!("{:?}", node.phase),
            code,
            pod.unwrap_or_default(),
            node.message.clone().unwrap_or_default(),
        ];
        row.iter().map(|cell| one_line(cell)).collect()
    }));
    aligned(&rows)
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
    let runs = watcher::watch_object(cluster.api::<Outside<WorkflowRun>>(), name).default_backoff();
    let mut runs = std::pin::pin!(runs);
    let mut last = String::new();
    while let Some(run) = runs.next().await {
        let Ok(run) = run else { continue };
        let Some(run) = run else {
            return Err(format!("the run `{name}` was deleted").into());
        };
        let run = run
            .0
            .map_err(|why| format!("the run `{name}` cannot be read: {why}"))?;
        let status = run.status.clone().unwrap_or_default();
        let phase = status.phase.unwrap_or_default();
        let progress = status.progress.clone().unwrap_or_default();
        let message = status.message.as_deref().unwrap_or_default();
        let line = one_line(&format!("{phase:<9} {progress:<7} {message}"));
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
                context
                    .printer
                    .say(&one_line(&format!("==> {} <==", node.name)));
            }
            log(context, &cluster, &pod.name, args.follow).await?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Writes what a pod wrote: the very bytes, as kubectl does, where they do not go to a terminal; there
/// without what a terminal executes.
async fn log(context: &Context, cluster: &Cluster, pod: &str, follow: bool) -> Result<(), Failure> {
    use futures::AsyncReadExt;
    let params = LogParams {
        follow,
        container: Some(crate::executor::pod::CONTAINER.to_owned()),
        ..LogParams::default()
    };
    let pod = object::named(pod).map_err(said)?;
    let stream = cluster
        .api::<Pod>()
        .log_stream(pod, &params)
        .await
        .map_err(said)?;
    let mut stream = std::pin::pin!(stream);
    let mut at_terminal = std::io::stdout().is_terminal().then(Stream::default);
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let read = stream.read(&mut buffer).await?;
        let bytes = buffer.get(..read).unwrap_or_default();
        match &mut at_terminal {
            _ if read == 0 => return Ok(()),
            Some(shown) => context.printer.bytes(shown.push(bytes).as_bytes()),
            None => context.printer.bytes(bytes),
        }
    }
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http::{Request, Response};
    use http_body_util::BodyExt;
    use kube::client::Body;
    use serde_json::Value;

    use super::*;

    /// An API server of one namespace: objects by path, and what was asked, in order. `hook` may
    /// answer in its place.
    #[derive(Default)]
    struct Server {
        objects: BTreeMap<String, Value>,
        asked: Vec<String>,
        count: u64,
    }

    type Hook = fn(&str, &mut Server) -> Option<u16>;

    fn failure(code: u16, reason: &str) -> (u16, Value) {
        let status = json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason,
            "message": format!("{reason} here"), "metadata": {}});
        (code, status)
    }

    impl Server {
        fn answer(&mut self, method: &str, path: &str, body: &Value) -> (u16, Value) {
            let name = |object: &Value| object["metadata"]["name"].as_str().unwrap().to_owned();
            match method {
                "POST" => {
                    let path = format!("{path}/{}", name(body));
                    if self.objects.contains_key(&path) {
                        return failure(409, "AlreadyExists");
                    }
                    self.count += 1;
                    let mut object = body.clone();
                    object["metadata"]["uid"] = json!(format!("uid-{}", self.count));
                    object["metadata"]["resourceVersion"] = json!("1");
                    self.objects.insert(path, object.clone());
                    (201, object)
                }
                "GET" => match self.objects.get(path) {
                    Some(object) => (200, object.clone()),
                    None => failure(404, "NotFound"),
                },
                "PATCH" => {
                    let object = self.objects.get_mut(path).unwrap();
                    assert_eq!(body["metadata"]["uid"], object["metadata"]["uid"]);
                    object["metadata"]["ownerReferences"] =
                        body["metadata"]["ownerReferences"].clone();
                    (200, object.clone())
                }
                "DELETE" => {
                    let object = self.objects.remove(path).unwrap();
                    assert_eq!(body["preconditions"]["uid"], object["metadata"]["uid"]);
                    (200, object)
                }
                other => panic!("{other}"),
            }
        }
    }

    fn cluster(server: &Arc<Mutex<Server>>, hook: Hook) -> Cluster {
        let server = Arc::clone(server);
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = Arc::clone(&server);
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let body: Value = serde_json::from_slice(&body).unwrap_or_default();
                let (method, path) = (parts.method.as_str(), parts.uri.path().to_owned());
                let mut server = server.lock().unwrap();
                let kind = if path.contains("/configmaps") {
                    "map"
                } else {
                    "run"
                };
                let asked = format!("{method} {kind}");
                server.asked.push(asked.clone());
                let (code, answer) = match hook(&asked, &mut server) {
                    Some(code) => failure(code, "Refused"),
                    None => server.answer(method, &path, &body),
                };
                let answer = Body::from(serde_json::to_vec(&answer).unwrap());
                let answer = Response::builder().status(code).body(answer).unwrap();
                Ok::<_, std::convert::Infallible>(answer)
            }
        });
        Cluster {
            client: Client::new(service, "n"),
            namespace: "n".to_owned(),
        }
    }

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: SubmitArgs,
    }

    const TEMPLATE: &str = r#"{"a": {"action": {"type": "cmd", "cmd": "true"}}}"#;
    const MAPS: &str = "/api/v1/namespaces/n/configmaps";

    async fn submit(server: &Arc<Mutex<Server>>, hook: Hook) -> Result<WorkflowRun, String> {
        use clap::Parser;
        let args = Line::parse_from(["submit", "--template", "t.json", "--name", "r"]).args;
        let spec = WorkflowRunSpec::default();
        let text = Some(TEMPLATE.to_owned());
        create(&cluster(server, hook), &Printer, &args, spec, text)
            .await
            .map_err(|error| error.to_string())
    }

    fn map_path() -> String {
        format!("{MAPS}/{}", template_maps("r", TEMPLATE)[0].name_any())
    }

    #[tokio::test]
    async fn template_is_there_before_its_run() {
        let server = Arc::default();
        let run = submit(&server, |_, _| None).await.unwrap();
        let server = server.lock().unwrap();
        assert_eq!(
            server.asked,
            ["POST map", "POST run", "GET map", "PATCH map"]
        );
        let map = &server.objects[&map_path()];
        assert_eq!(map["immutable"], true);
        let owner = &map["metadata"]["ownerReferences"][0];
        assert_eq!(
            (&owner["kind"], &owner["name"]),
            (&json!("WorkflowRun"), &json!("r"))
        );
        let name = map["metadata"]["name"].as_str().unwrap();
        assert_eq!(run.spec.template_from[0].config_map, name);
        let hash = name
            .strip_prefix("r-template-")
            .unwrap()
            .strip_suffix("-0")
            .unwrap();
        assert_eq!(hash.len(), 64);
    }

    /// One that is there already is somebody else's, unless it is the same for ever.
    #[tokio::test]
    async fn another_object_of_the_name_is_not_taken() {
        let mut wanted = serde_json::to_value(&template_maps("r", TEMPLATE)[0]).unwrap();
        wanted["metadata"]["uid"] = json!("theirs");
        let put = |change: &dyn Fn(&mut Value)| {
            let mut map = wanted.clone();
            change(&mut map);
            let server = Server {
                objects: [(map_path(), map)].into(),
                ..Server::default()
            };
            Arc::new(Mutex::new(server))
        };
        for (change, why) in [
            (
                &(|map: &mut Value| map["binaryData"]["template"] = json!("e30="))
                    as &dyn Fn(&mut Value),
                "holds something else",
            ),
            (
                &|map| map["data"] = json!({"more": ""}),
                "holds something else",
            ),
            (&|map| map["immutable"] = json!(false), "can be changed"),
            (
                &|map| map["metadata"]["deletionTimestamp"] = json!("2026-01-31T12:00:00Z"),
                "is being deleted",
            ),
        ] {
            let server = put(change);
            let error = submit(&server, |_, _| None).await.unwrap_err();
            assert!(
                error.contains(why) && error.contains("r-template-"),
                "{error}"
            );
            let server = server.lock().unwrap();
            assert_eq!(server.asked, ["POST map", "GET map"], "{why}");
            assert_eq!(server.objects.len(), 1);
        }
        let server = put(&|_| {});
        submit(&server, |_, _| None).await.unwrap();
        assert_eq!(server.lock().unwrap().objects.len(), 2);
    }

    #[tokio::test]
    async fn what_a_refused_run_left_is_deleted_or_named() {
        let server = Arc::default();
        let error = submit(&server, |asked, _| (asked == "POST run").then_some(403)).await;
        assert_eq!(error.unwrap_err(), "the cluster says: Refused here");
        let asked = server.lock().unwrap().asked.clone();
        assert_eq!(asked, ["POST map", "POST run", "DELETE map"]);
        assert!(server.lock().unwrap().objects.is_empty());

        let server = Arc::default();
        let refuse: Hook = |asked, _| ["POST run", "DELETE map"].contains(&asked).then_some(403);
        let error = submit(&server, refuse).await.unwrap_err();
        let name = template_maps("r", TEMPLATE)[0].name_any();
        assert!(
            error.contains(&format!("in namespace n: ConfigMap {name}")),
            "{error}"
        );

        // Nobody knows whether it was created.
        let server = Arc::default();
        let lost: Hook = |asked, _| ["POST run", "GET run"].contains(&asked).then_some(504);
        let error = submit(&server, lost).await.unwrap_err();
        assert!(error.contains(&name), "{error}");
        assert_eq!(server.lock().unwrap().objects.len(), 1);

        // It was, but the answer was lost.
        let server = Arc::default();
        let lost: Hook = |asked, server| {
            (asked == "POST run").then(|| {
                let from = json!([{"configMap": template_maps("r", TEMPLATE)[0].name_any(), "key": "template"}]);
                let run = json!({"apiVersion": "apscli.dev/v1alpha1", "kind": "WorkflowRun",
                    "metadata": {"name": "r", "uid": "run"}, "spec": {"templateFrom": from}});
                let path = "/apis/apscli.dev/v1alpha1/namespaces/n/workflowruns/r";
                server.objects.insert(path.to_owned(), run);
                504
            })
        };
        submit(&server, lost).await.unwrap();
        let server = server.lock().unwrap();
        let owners = &server.objects[&map_path()]["metadata"]["ownerReferences"];
        assert_eq!(owners[0]["uid"], "run");
    }

    #[test]
    fn template_objects_have_names_that_fit() {
        let run = format!("{}-{}", "r".repeat(149), "x".repeat(103));
        let name = template_maps(&run, TEMPLATE)[0].name_any();
        assert!(name.len() <= 253 && name.starts_with(&format!("{}-template-", "r".repeat(149))));
        let mut noise = String::new();
        for at in 0..400_000_u32 {
            let _ = write!(noise, "{:x}", at.wrapping_mul(2_654_435_761));
        }
        let maps = template_maps("r", &noise);
        assert!(maps.len() > 1 && maps[1].name_any().ends_with("-1"));
    }

    #[test]
    fn rows_have_one_line_whatever_is_said() {
        let hostile = "a\u{1b}[2J\nb\r\u{202e}c";
        let run: WorkflowRun = serde_json::from_value(json!({
            "apiVersion": "apscli.dev/v1alpha1", "kind": "WorkflowRun", "metadata": {"name": hostile},
            "spec": {"fqsn": hostile},
            "status": {"message": hostile, "progress": hostile, "duration": hostile},
        }))
        .unwrap();
        let node = NodeStatus {
            name: hostile.to_owned(),
            message: Some(hostile.to_owned()),
            ..NodeStatus::default()
        };
        let run = Outside(Ok(run));
        for text in [aligned(&[row(&run)]), node_table(&[node])] {
            assert!(!text.contains(super::super::shown::is_unsafe), "{text:?}");
            assert_eq!(
                text.matches("a\u{fffd}[2J b").count(),
                text.matches('a').count(),
                "{text:?}"
            );
        }
    }
}
