//! `apscli run`: a template or a service, on this machine.
//!
//! Must not read a template but once: what was read is pinned in the journal, and a resumed run
//! goes on with that.

use std::io::IsTerminal;
use std::num::NonZeroUsize;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args as ClapArgs, ValueEnum};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::engine::name::Fqsn;
use crate::engine::state::RunState;
use crate::engine::step::{Limits, OnLost};
use crate::executor::fence::{Fence, Mode};
use crate::executor::process::Surroundings;
use crate::executor::python::Python;
use crate::executor::spawn;
use crate::local::journal::{Flags, Header, Journal, Sandbox};
use crate::local::report::Report;
use crate::local::{Driver, Options, Watch, logs, own};
use crate::template::{Filling, Params, Template, duration, read_params};
use crate::value::Value;
use crate::value::json::{self, Dialect};

use super::inspect::read_text;
use super::watch::{Lines, Live, Silent, table};
use super::{Context, Failure};

/// Attempts at once without `--parallel`. Jobs in data centres mostly wait for other machines,
/// so this is far above the cores of one.
const PARALLEL: NonZeroUsize = match NonZeroUsize::new(64) {
    Some(parallel) => parallel,
    None => NonZeroUsize::MIN,
};

/// Time between TERM and KILL without `--grace`.
const GRACE: Duration = Duration::from_secs(10);

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// The template to run
    #[arg(long, value_name = "FILE", alias = "wf_template", conflicts_with = "fqsn", required_unless_present_any = ["fqsn", "resume"])]
    template: Option<PathBuf>,
    /// The service to run, as `oracle.peo.cloud.vm_allocation`
    #[arg(long)]
    fqsn: Option<Fqsn>,
    /// The service's version [default: the service's own default]
    // A requirement that something present conflicts with is not asked for; so both are said.
    #[arg(long, requires = "fqsn", conflicts_with_all = ["template", "resume"])]
    version: Option<String>,
    /// A file of parameters, JSON or YAML
    #[arg(long, value_name = "FILE", alias = "wp")]
    params: Option<PathBuf>,
    /// One parameter, over those of the file; the value is JSON, or else a text
    #[arg(long = "param", value_name = "NAME=VALUE")]
    param: Vec<String>,
    /// What to print at the end
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
    /// Most nodes at once [default: 64]
    #[arg(long, value_name = "N")]
    parallel: Option<NonZeroUsize>,
    /// Longest time of the whole run, as 90, 30s, 5m, 1h30m
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
    /// Time that a node has to end by itself when it is told to [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    grace: Option<Duration>,
    /// The run's own folder, for logs and journal; new, or without a run in it [default: one in the user's state folder]
    #[arg(long, value_name = "DIR")]
    log_dir: Option<PathBuf>,
    /// The python3 for api nodes [default: the active virtual environment's, else the PATH's]
    #[arg(long, value_name = "FILE")]
    python: Option<PathBuf>,
    /// A module that the Python interpreter imports once, before all calls
    #[arg(long, value_name = "MODULE")]
    preload: Vec<String>,
    /// Put each node into a sandbox: a folder of its own, no network, no other processes or files. `best-effort`: also where the kernel cannot do all of it
    #[arg(long, value_name = "MODE", value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "required")]
    sandbox: Option<SandboxMode>,
    /// Let nodes in the sandbox use the network: TCP and UDP
    #[arg(long, requires = "sandbox")]
    sandbox_network: bool,
    /// A file or folder that nodes in the sandbox may read, beside the template's folder and the system's programs
    #[arg(long, value_name = "PATH", requires = "sandbox")]
    sandbox_read: Vec<PathBuf>,
    /// Go on with a killed run, by its folder
    #[arg(long, value_name = "DIR", conflicts_with_all = ["template", "fqsn", "params", "param", "log_dir"])]
    resume: Option<PathBuf>,
    /// What becomes of nodes that ran when a run was killed
    #[arg(long, value_enum, default_value_t, conflicts_with_all = ["template", "fqsn"])]
    on_lost: Lost,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum SandboxMode {
    /// Nothing starts where the kernel cannot do all of it
    Required,
    /// What can be enforced is
    BestEffort,
}

impl SandboxMode {
    /// The word for it on a command line.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Required => "required",
            Self::BestEffort => "best-effort",
        }
    }
}

impl From<SandboxMode> for Mode {
    fn from(mode: SandboxMode) -> Self {
        match mode {
            SandboxMode::Required => Self::Required,
            SandboxMode::BestEffort => Self::BestEffort,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Output {
    /// The whole result as JSON
    Json,
    /// A line a node
    #[default]
    Table,
    /// Nothing
    None,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(super) enum Lost {
    /// They end in Error: they may have done their work
    #[default]
    Fail,
    /// They are tried again, up to 3 attempts
    Retry,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<ExitCode, Failure> {
    let (dir, header, journal, recorded) = match &args.resume {
        Some(dir) => {
            let (journal, header, recorded) = Journal::open(dir)?;
            (dir.clone(), header, Some(journal), Some(recorded))
        }
        None => (run_folder(args)?, header(context, args)?, None, None),
    };
    let template = Template::read(&header.source, &header.template)?;
    let graph = Arc::new(template.graph(Filling::With(&header.params))?);
    let state = match recorded {
        Some(recorded) => recorded.fold(&graph)?,
        None => RunState::new(&graph),
    };
    if args.sandbox.is_some() || header.flags.sandbox.is_some() {
        is_own_directory(&header.folder)?;
    }
    make_folders(&dir)?;
    let journal = match journal {
        Some(journal) => journal,
        None => Journal::create(&dir, &header)?,
    };
    // Before anything has a second thread.
    spawn::start_guard(Some(journal.guard_lock()))
        .map_err(|error| format!("cannot start the guard process: {error}"))?;
    spawn::raise_open_files();
    let flags = flags(args)?.or(header.flags);
    // Absolute, because the folder may be left below.
    let own_folder = std::path::absolute(&dir)?;
    if let Some(folder) = &header.work_folder {
        std::env::set_current_dir(folder)
            .map_err(|error| format!("cannot run in {}: {error}", folder.display()))?;
    }
    let (parallel, timeout) = (flags.parallel.unwrap_or(PARALLEL), flags.timeout);
    let (surroundings, python) = surroundings(flags, header.folder, &own_folder, parallel)?;
    let options = Options {
        limits: Limits {
            parallelism: Some(parallel),
            timeout,
            on_lost: match args.on_lost {
                Lost::Fail => OnLost::Fail,
                Lost::Retry => OnLost::Retry,
            },
        },
        surroundings,
        python,
        dir: own_folder,
    };
    let watch: Box<dyn Watch + Send> = match args.output {
        Output::None => Box::new(Silent),
        _ if std::io::stderr().is_terminal() => Box::new(Live::new(graph.len())),
        _ => Box::new(Lines(context.printer)),
    };
    if !matches!(args.output, Output::None) {
        context.printer.say(&format!("log: {}", dir.display()));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(parallel.get().saturating_add(8))
        .thread_stack_size(1024 * 1024)
        .build()
        .map_err(|error| format!("cannot start the run: {error}"))?;
    let end = runtime.block_on(async {
        let driver = Driver::new(Arc::clone(&graph), state, journal, options, watch)
            .map_err(|error| format!("cannot start the run: {error}"))?;
        Ok::<_, Failure>(driver.run().await)
    })?;
    let verdict = end.verdict;
    match args.output {
        Output::None => {}
        Output::Table => {
            let table = table(&graph, &end.state, verdict.phase);
            context.printer.data(&table);
        }
        Output::Json => {
            let zone = TimeZone::system();
            let report = Report {
                graph: &graph,
                state: &end.state,
                return_code: Some(verdict.return_code),
                zone: &zone,
            };
            context
                .printer
                .json(&serde_json::to_string_pretty(&report)?);
        }
    }
    if let Some(error) = &end.error {
        context.printer.error(error);
    }
    Ok(if verdict.return_code == 1 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What surrounds nodes, and their Python: in the sandbox less of the environment.
fn surroundings(
    flags: Flags,
    folder: PathBuf,
    dir: &Path,
    parallel: NonZeroUsize,
) -> Result<(Surroundings, Python), Failure> {
    let fence = match &flags.sandbox {
        Some(sandbox) => Some(fence(sandbox, dir, parallel)?),
        None => None,
    };
    let env = std::env::vars_os();
    let env = match fence {
        Some(_) => Fence::environment(env),
        None => env.collect(),
    };
    let python = Python::new(flags.python, flags.preload, dir.join("python.log"));
    let surroundings = Surroundings {
        env,
        folder,
        grace: flags.grace.unwrap_or(GRACE),
        fence,
    };
    Ok((surroundings, python))
}

/// What the command line says. Paths are absolute, because a resume may come from elsewhere.
fn flags(args: &Args) -> Result<Flags, Failure> {
    let sandbox = match args.sandbox {
        Some(mode) => Some(Sandbox {
            mode: mode.into(),
            network: args.sandbox_network,
            readable: (args.sandbox_read.iter())
                .map(std::path::absolute)
                .collect::<Result<_, _>>()?,
        }),
        None => None,
    };
    Ok(Flags {
        parallel: args.parallel,
        timeout: args.timeout,
        grace: args.grace,
        python: args.python.as_ref().map(std::path::absolute).transpose()?,
        preload: args.preload.clone(),
        sandbox,
    })
}

/// The fence around the run's nodes. Their folders are below the run's own, and are removed one by
/// one.
fn fence(sandbox: &Sandbox, dir: &Path, parallel: NonZeroUsize) -> Result<Fence, Failure> {
    let folder = dir.join("work");
    make_folder(&folder)?;
    let mut fence = Fence::new(sandbox.mode, folder, parallel);
    fence.network = sandbox.network;
    fence.readable.clone_from(&sandbox.readable);
    // What this run and others record, wherever that is.
    let own = ["journal.jsonl", "guard.lock", "python.log", "logs", "work"].map(|it| dir.join(it));
    let hidden = own.into_iter().chain(runs_directory());
    fence.hidden = hidden.filter_map(|it| it.canonicalize().ok()).collect();
    Ok(fence)
}

/// Makes the run's folder, for its owner only: what nodes say may be secret. A folder that is
/// there already stays as readable as its owner made it, but nobody else may write it: see [`own`].
fn make_folders(dir: &Path) -> Result<(), Failure> {
    make_folder(dir)?;
    make_folder(&logs::folder(dir))
}

fn make_folder(folder: &Path) -> Result<(), Failure> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
    Ok(own::directory(folder)?)
}

/// What is to run, read once.
fn header(context: &Context, args: &Args) -> Result<Header, Failure> {
    let path = match (&args.template, &args.fqsn) {
        (Some(template), _) => template.clone(),
        (None, Some(fqsn)) => {
            let service = context.catalogue().find(fqsn)?;
            service
                .version(fqsn, args.version.as_deref())?
                .1
                .to_path_buf()
        }
        (None, None) => return Err("expected --template, --fqsn or --resume".into()),
    };
    let text = read_text(&path)?;
    let work_folder = std::env::current_dir()
        .map_err(|error| format!("cannot tell the current directory ({error}): it may have been removed; expected to be started in one that exists"))?;
    let absolute = std::path::absolute(&path)?;
    let folder = absolute.parent().unwrap_or(Path::new("/")).to_path_buf();
    let params = params(args.params.as_deref(), &args.param)?;
    let flags = flags(args)?;
    let sandbox = flags.sandbox.iter().flat_map(|sandbox| &sandbox.readable);
    for recorded in [&folder, &work_folder]
        .into_iter()
        .chain(&flags.python)
        .chain(sandbox)
    {
        if recorded.to_str().is_none() {
            let shown = recorded.display();
            return Err(format!(
                "the path {shown} is not UTF-8, so the journal cannot hold it; expected one that is"
            )
            .into());
        }
    }
    Ok(Header::new(
        path.display().to_string(),
        text,
        folder,
        work_folder,
        params,
        flags,
    ))
}

/// Parameters from a file and from the command line, which stand above the file's.
pub(super) fn params(file: Option<&Path>, given: &[String]) -> Result<Params, Failure> {
    let mut params = match file {
        Some(path) => read_params(&path.display().to_string(), &read_text(path)?)?,
        None => Params::new(),
    };
    for param in given {
        let (name, value) = param
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| format!("--param {param}: expected NAME=VALUE"))?;
        let value = match json::read(value, Dialect::Strict) {
            Ok(tree) => tree.into_value(),
            Err(_) => Value::from(value),
        };
        params.insert(name.to_owned(), value);
    }
    Ok(params)
}

fn run_folder(args: &Args) -> Result<PathBuf, Failure> {
    if let Some(dir) = &args.log_dir {
        return Ok(dir.clone());
    }
    let runs = runs_directory();
    let runs = runs.ok_or("there is no home folder for the run's log; expected --log-dir")?;
    let time = Timestamp::now().strftime("%Y%m%dT%H%M%S");
    // In containers that share a home, process ids are alike.
    let mut random = [0_u8; 4];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| format!("cannot name the run's directory: {error}"))?;
    let random = u32::from_ne_bytes(random);
    Ok(runs.join(format!("{time}-{random:08x}")))
}

/// Where runs' directories are made by default; none: there is no home directory.
fn runs_directory() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| std::env::home_dir().map(|home| home.join(".local/state")))?;
    Some(state.join("apscli/runs"))
}

/// Refuses a template whose directory holds what is not the template's: a sandboxed node may read the
/// template's directory, with all that is below it.
fn is_own_directory(folder: &Path) -> Result<(), Failure> {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let shared = ["/", "/etc", "/home", "/root", "/tmp", "/var", "/var/tmp"].map(PathBuf::from);
    let devices = ["/dev", "/proc", "/sys", "/run"];
    let home = std::env::home_dir().and_then(|home| home.canonicalize().ok());
    let is_shared = shared.contains(&folder)
        || home.as_ref() == Some(&folder)
        || devices.iter().any(|it| folder.starts_with(it));
    if !is_shared {
        return Ok(());
    }
    let shown = folder.display();
    Err(format!(
        "--sandbox: nodes may read the template's directory with all that is below it, and {shown} \
         holds other things too; expected a template in a directory of its own"
    )
    .into())
}
