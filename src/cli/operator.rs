//! `apscli operator`: arguments and environment become options, and the signals an end.
//!
//! Must not know how the operator works.

use std::env;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{ArgAction, Args, ValueEnum};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;
use tracing_subscriber::filter::Targets;

use crate::catalog::cluster::LabelledMaps;
use crate::operator::health::Health;
use crate::operator::metrics::Metrics;
use crate::operator::options::{
    AllowedAccount, Delivery, Election, Options, Processes, RunnerPlace, Scope, Shard,
};
use crate::operator::{self, OperatorError};
use crate::server::{self, Probes, Server};

use super::logging::{self, Format};
use super::run::SandboxMode;
use super::{Context, Failure};

/// The default image for nodes of this version: it holds apscli-node, python3 and a shell.
const NODE_IMAGE: &str = concat!("docker.io/apscli/apscli-node:", env!("CARGO_PKG_VERSION"));

/// The operator's own image, which holds apscli-node too.
const TOOLS_IMAGE: &str = concat!("docker.io/apscli/apscli:", env!("CARGO_PKG_VERSION"));

/// Where the operator is at home if nobody says so.
const HOME: &str = "apscli";

/// What decides how the operator works.
#[derive(Debug, Args)]
pub struct OperatorArgs {
    /// A namespace to work in; may be repeated [default: all namespaces]
    #[arg(long = "namespace", value_name = "NAMESPACE", value_parser = super::namespace)]
    namespaces: Vec<String>,
    /// The namespace of the catalogue that all namespaces share [default: `$POD_NAMESPACE`, else apscli]
    #[arg(long, value_name = "NAMESPACE", value_parser = super::namespace)]
    shared_namespace: Option<String>,
    /// Whose `ConfigMaps` with the label apscli.dev/catalog are catalogues
    #[arg(long, value_enum, value_name = "MODE", default_value = "shared")]
    catalog_config_maps: CatalogConfigMaps,
    /// Whether replicas elect one that works; `false` only where there never are two
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    leader_election: bool,
    /// The Lease's name; it is in `$POD_NAMESPACE`, else in apscli
    #[arg(long, value_name = "NAME", default_value = "apscli", value_parser = super::object_name)]
    lease_name: String,
    /// How many seconds the others wait for a leader that renews its Lease no more; the leader itself ends after
    /// two thirds of them. More where the API server may be silent for long
    #[arg(long, value_name = "SECONDS", default_value = "15", value_parser = clap::value_parser!(u64).range(3..=3600))]
    lease_duration: u64,
    /// Which part of the runs this operator takes, where several share them: its number, from 0, of how many.
    /// Never change how many there are while any of the old ones works: nodes could be carried out twice
    #[arg(long, value_name = "I/N", default_value_t = Shard::WHOLE)]
    shard: Shard,
    /// This process's name in the Lease, to which a random suffix is added [default: the host's name]
    #[arg(long, value_name = "NAME")]
    identity: Option<String>,
    /// A Unix socket for probes, which nothing outside the container can reach; only this user can connect
    #[arg(long, value_name = "PATH")]
    probe_socket: Option<PathBuf>,
    /// Ask the operator that serves on this probe socket how it is, instead of being one; exit status 0 where it is
    /// well, within 4 s: a probe
    #[arg(long, value_enum, value_name = "WHAT", requires = "probe_socket")]
    check: Option<Check>,
    /// Where /healthz, /readyz and /metrics are served
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// The image of nodes that name none
    #[arg(long, value_name = "IMAGE", default_value = NODE_IMAGE)]
    node_image: String,
    /// The image from which other images get apscli-node
    #[arg(long, value_name = "IMAGE", default_value = TOOLS_IMAGE)]
    tools_image: String,
    /// How apscli-node comes into pods [default: in-image for the default image, init-copy for others]
    #[arg(long, value_name = "HOW")]
    delivery: Option<DeliveryArg>,
    /// A service account that runs of its namespace may name; `*/NAME` is that name in every namespace; may be repeated
    #[arg(long = "allow-service-account", value_name = "NAMESPACE/NAME")]
    service_accounts: Vec<AllowedAccount>,
    /// How many seconds finished runs stay that say nothing about it [default: until deleted]
    #[arg(long, value_name = "SECONDS")]
    default_ttl: Option<u64>,
    /// How many creations and deletions of pods are in flight at once
    #[arg(long, value_name = "COUNT", default_value = "64")]
    max_writes: NonZeroUsize,
    /// A namespace whose runs may have processes beside the operator, and not only pods; may be repeated
    #[arg(long = "process-namespace", value_name = "NAMESPACE")]
    process_namespaces: Vec<String>,
    /// A service of the shared namespace that may, wherever it runs: an FQSN in which `*` stands for anything; may be repeated
    #[arg(long = "process-service", value_name = "PATTERN")]
    process_services: Vec<String>,
    /// Let services give those processes a network (`network: true`): TCP and UDP from this machine, its loopback
    /// and what clouds tell machines included
    #[arg(long)]
    process_network: bool,
    /// The socket of the runner that carries out those processes [default: one is started as a child]
    #[arg(long, value_name = "PATH")]
    runner_socket: Option<PathBuf>,
    /// What a runner that is started as a child does where the kernel cannot do all of the sandbox
    #[arg(long, value_enum, value_name = "MODE", default_value = "required")]
    process_sandbox: SandboxMode,
    /// After how many seconds without news of a running pod the API is asked for it, and how often for new runs and the catalogue
    #[arg(long, value_name = "SECONDS", default_value = "900", value_parser = clap::value_parser!(u64).range(1..))]
    resync: u64,
    /// How many MiB of memory runs and catalogue may take; the process needs about 250 MiB beside them
    #[arg(long, value_name = "MIB", default_value = "192", value_parser = clap::value_parser!(u64).range(48..=1_048_576))]
    cache: u64,
    /// How log lines are written
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: Format,
    /// A level, or directives such as `info,kube_runtime=debug` [default: `$APSCLI_LOG`, else info]
    #[arg(long, value_name = "FILTER", value_parser = logging::filter)]
    log_level: Option<Targets>,
}

/// How long `--check` waits: less than the five seconds of the chart's probes.
const ANSWER: Duration = Duration::from_secs(4);

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Check {
    /// Whether its loops turn; else it is to be restarted
    Live,
    /// Whether it has all that it needs
    Ready,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum CatalogConfigMaps {
    /// Those of the shared namespace
    Shared,
    /// Also those of each run's own namespace: who may create `ConfigMaps` there decides what its runs execute
    All,
    /// Nobody's: only Service objects count
    None,
}

impl From<CatalogConfigMaps> for LabelledMaps {
    fn from(arg: CatalogConfigMaps) -> Self {
        match arg {
            CatalogConfigMaps::Shared => Self::Shared,
            CatalogConfigMaps::All => Self::All,
            CatalogConfigMaps::None => Self::None,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DeliveryArg {
    /// The image has it
    InImage,
    /// An init container copies it
    InitCopy,
    /// The tools image is mounted as a volume (kubelets 1.36 or newer)
    ImageVolume,
    /// By image volume where all nodes can, else by copy
    Auto,
}

impl From<DeliveryArg> for Delivery {
    fn from(arg: DeliveryArg) -> Self {
        match arg {
            DeliveryArg::InImage => Self::InImage,
            DeliveryArg::InitCopy => Self::InitCopy,
            DeliveryArg::ImageVolume => Self::ImageVolume,
            DeliveryArg::Auto => Self::Auto,
        }
    }
}

impl OperatorArgs {
    /// The options; `home` is the namespace that the operator itself runs in, if it is known.
    ///
    /// The name in the Lease gets the suffix though it was chosen: a container that is restarted in
    /// its pod keeps host and arguments, and must not take its former self for itself.
    fn options(&self, home: Option<String>, host: &str, suffix: &str) -> Options {
        let home = home.unwrap_or_else(|| HOME.to_owned());
        Options {
            scope: if self.namespaces.is_empty() {
                Scope::Cluster
            } else {
                let mut namespaces = self.namespaces.clone();
                namespaces.sort_unstable();
                namespaces.dedup();
                Scope::Namespaces(namespaces)
            },
            shared_namespace: self
                .shared_namespace
                .clone()
                .unwrap_or_else(|| home.clone()),
            catalog_config_maps: self.catalog_config_maps.into(),
            election: self.leader_election.then(|| Election {
                namespace: home,
                lease: self.shard.lease(&self.lease_name),
                identity: format!("{}-{suffix}", self.identity.as_deref().unwrap_or(host)),
                duration: Duration::from_secs(self.lease_duration),
            }),
            shard: self.shard,
            node_image: self.node_image.clone(),
            tools_image: self.tools_image.clone(),
            delivery: self.delivery.map(Delivery::from),
            service_accounts: self.service_accounts.clone(),
            default_ttl: self.default_ttl.map(Duration::from_secs),
            max_writes: self.max_writes,
            runner: self.runner(),
            processes: Processes {
                namespaces: self.process_namespaces.clone(),
                services: self.process_services.clone(),
                network: self.process_network,
            },
            resync: Duration::from_secs(self.resync),
            cache: usize::try_from(self.cache * 1024 * 1024).unwrap_or(usize::MAX),
        }
    }

    /// None: nobody may use it.
    fn runner(&self) -> Option<RunnerPlace> {
        if self.process_namespaces.is_empty() && self.process_services.is_empty() {
            return None;
        }
        Some(match &self.runner_socket {
            Some(path) => RunnerPlace::Socket(path.clone()),
            None => RunnerPlace::Child(vec![
                "--sandbox".to_owned(),
                self.process_sandbox.word().to_owned(),
            ]),
        })
    }
}

/// Runs the operator until it is asked to end by TERM or INT (exit status 0), or has lost its
/// Lease (1).
pub fn operator(context: &Context, args: &OperatorArgs) -> Result<ExitCode, Failure> {
    if let (Some(check), Some(path)) = (args.check, &args.probe_socket) {
        let what = match check {
            Check::Live => "/healthz",
            Check::Ready => "/readyz",
        };
        return match server::ask(path, what, ANSWER) {
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(failed) => {
                context.printer.error(&failed);
                Ok(ExitCode::FAILURE)
            }
        };
    }
    let filter = match &args.log_level {
        Some(filter) => filter.clone(),
        None => match env::var("APSCLI_LOG") {
            Ok(text) => logging::filter(&text).map_err(|error| format!("APSCLI_LOG: {error}"))?,
            Err(env::VarError::NotPresent) => logging::filter("info")?,
            Err(error) => return Err(format!("APSCLI_LOG: {error}").into()),
        },
    };
    // Its token is not for other processes of the same user.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let home = env::var("POD_NAMESPACE")
        .ok()
        .filter(|name| !name.is_empty());
    let suffix = random()?;
    let host = rustix::system::uname();
    let host = host.nodename().to_string_lossy();
    let options = args.options(home, &host, &suffix);
    logging::start(filter, args.log_format)?;
    // Two workers: while one folds a run of ten thousand nodes, the other reads the watches, renews
    // the Lease and answers the probes. More would be memory and no gain, as the API is what is
    // waited for.
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    // As a task of a worker: on this thread each event of a watch would have to wake it first.
    let served = runtime.spawn(serve(options, args.listen, args.probe_socket.clone()));
    let ended = match runtime.block_on(served) {
        Ok(ended) => ended,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    };
    // What is still there is watches and connections; none of it is worth waiting for.
    runtime.shutdown_background();
    match ended {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(Ended::Operator(error @ OperatorError::Lost(_))) => {
            context.printer.error(&error);
            Ok(ExitCode::FAILURE)
        }
        Err(error) => Err(error.into()),
    }
}

/// Why it did not work.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("cannot serve on {address}")]
    Bind {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("cannot serve probes on {}", path.display())]
    Probes {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("cannot hear signals")]
    Signals(#[source] std::io::Error),
    #[error(transparent)]
    Operator(#[from] OperatorError),
}

async fn serve(
    options: Options,
    listen: SocketAddr,
    probe_socket: Option<PathBuf>,
) -> Result<(), Ended> {
    let mut term = signal(SignalKind::terminate()).map_err(Ended::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Ended::Signals)?;
    let stop = async move {
        let name = tokio::select! {
            _ = term.recv() => "TERM",
            _ = interrupt.recv() => "INT",
        };
        info!("ends, asked to by the signal {name}");
    };
    let bind = |source| Ended::Bind {
        address: listen,
        source,
    };
    let server = Server::bind(listen).await.map_err(bind)?;
    let probes = probe_socket
        .map(|path| Probes::bind(&path).map_err(|source| Ended::Probes { path, source }));
    let probes = probes.transpose()?;
    let address = server.address().map_err(bind)?;
    info!(version = env!("CARGO_PKG_VERSION"), %address, ?options, "begins");
    let health = Health::default();
    let metrics = Arc::new(Metrics::default());
    let serving = tokio::spawn(server.serve(health.clone(), Arc::clone(&metrics)));
    let probing = probes.map(|probes| tokio::spawn(probes.serve(health.clone())));
    let ended = operator::run(options, metrics, health, stop).await;
    serving.abort();
    if let Some(probing) = probing {
        probing.abort();
    }
    Ok(ended?)
}

/// Eight hexadecimal digits that no other process has.
fn random() -> Result<String, std::io::Error> {
    let mut bytes = [0_u8; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(format!("{:08x}", u32::from_ne_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: OperatorArgs,
    }

    fn options(home: Option<&str>, words: &[&str]) -> Options {
        let line = ["operator"].iter().chain(words);
        let line = Line::try_parse_from(line).unwrap_or_else(|error| panic!("{error}"));
        line.args.options(home.map(str::to_owned), "host", "1")
    }

    #[test]
    fn without_arguments_it_works_everywhere_and_elects() {
        let had = options(Some("tools"), &[]);
        assert_eq!(had.scope, Scope::Cluster);
        assert_eq!(had.shared_namespace, "tools");
        assert_eq!(had.catalog_config_maps, LabelledMaps::Shared);
        assert_eq!(
            had.election,
            Some(Election {
                namespace: "tools".to_owned(),
                lease: "apscli".to_owned(),
                identity: "host-1".to_owned(),
                duration: Duration::from_secs(15),
            })
        );
        assert_eq!(had.max_writes.get(), 64);
        assert_eq!((had.delivery, had.default_ttl), (None, None));
        assert_eq!(options(None, &[]).shared_namespace, "apscli");
        assert_eq!(had.runner, None, "nobody may use one");
        let child = options(None, &["--process-namespace=p"]).runner;
        let words = ["--sandbox", "required"].map(str::to_owned).to_vec();
        assert_eq!(child, Some(RunnerPlace::Child(words)));
    }

    #[test]
    fn every_choice_arrives() {
        let had = options(
            Some("tools"),
            &[
                "--namespace=b",
                "--namespace=a",
                "--namespace=b",
                "--shared-namespace=shelf",
                "--catalog-config-maps=all",
                "--leader-election=false",
                "--shard=1/2",
                "--node-image=n:1",
                "--tools-image=t:1",
                "--delivery=image-volume",
                "--allow-service-account=tools/robot",
                "--process-network",
                "--default-ttl=60",
                "--max-writes=8",
                "--process-namespace=p",
                "--process-service=a.*",
                "--runner-socket=/s",
                "--resync=30",
                "--cache=64",
            ],
        );
        assert_eq!(
            had,
            Options {
                scope: Scope::Namespaces(vec!["a".to_owned(), "b".to_owned()]),
                shared_namespace: "shelf".to_owned(),
                catalog_config_maps: LabelledMaps::All,
                election: None,
                shard: "1/2".parse().unwrap(),
                node_image: "n:1".to_owned(),
                tools_image: "t:1".to_owned(),
                delivery: Some(Delivery::ImageVolume),
                service_accounts: vec!["tools/robot".parse().unwrap()],
                default_ttl: Some(Duration::from_secs(60)),
                max_writes: NonZeroUsize::new(8).unwrap(),
                processes: Processes {
                    namespaces: vec!["p".to_owned()],
                    services: vec!["a.*".to_owned()],
                    network: true,
                },
                runner: Some(RunnerPlace::Socket("/s".into())),
                resync: Duration::from_secs(30),
                cache: 64 * 1024 * 1024,
            }
        );
        let had = options(None, &["--lease-name=l", "--identity=me"])
            .election
            .unwrap();
        assert_eq!((had.lease.as_str(), had.identity.as_str()), ("l", "me-1"));
        let slow = options(None, &["--lease-duration=60"]).election;
        assert_eq!(slow.unwrap().duration, Duration::from_mins(1));
        let shard = options(None, &["--lease-name=l", "--shard=1/2"]).election;
        assert_eq!(shard.unwrap().lease, "l-1-of-2");
    }

    #[test]
    fn catalog_config_maps_are_one_of_three() {
        for (word, expected) in [
            ("shared", LabelledMaps::Shared),
            ("all", LabelledMaps::All),
            ("none", LabelledMaps::None),
        ] {
            let had = options(None, &[&format!("--catalog-config-maps={word}")]);
            assert_eq!(had.catalog_config_maps, expected);
        }
    }

    #[test]
    fn two_names_differ() {
        assert_ne!(random().unwrap(), random().unwrap());
    }
}
