//! The command line: one file a command, all words through the [`printer`].
//!
//! Must not decide what the engine decides.

mod catalogue;
mod definitions;
mod inspect;
mod legacy;
mod logging;
mod operator;
mod package;
pub mod printer;
mod remote;
mod run;
mod runner;
mod shown;
mod strip;
mod watch;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::api::name::{self, BadName};
use crate::catalog::files::Catalogue;
use crate::executor::{fence, spawn};

use printer::Printer;

/// Exit status for input that could not be run at all.
const CANNOT_RUN: u8 = 2;

/// Runs workflows: graphs of small jobs.
#[derive(Debug, Parser)]
#[command(name = "apscli", version, about, max_term_width = 100)]
struct Cli {
    /// The catalogue's folder [default: `$APSCLI_METADATA`, else ./metadata]
    #[arg(long, global = true, value_name = "DIR")]
    metadata: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a template or a service; exit status 0 success, 1 failure, 2 could not be run
    Run(Box<run::Args>),
    /// Check a template and say all that is wrong with it
    Validate(inspect::ValidateArgs),
    /// Draw a template's graph
    Graph(inspect::GraphArgs),
    /// List the services of the catalogue
    List(catalogue::ListArgs),
    /// Put a version of a service into the catalogue
    Register(catalogue::RegisterArgs),
    /// Take a service, or one version of it, out of the catalogue
    Unregister(catalogue::UnregisterArgs),
    /// Print, write or check the definitions of the cluster's resources
    Crd(definitions::CrdArgs),
    /// Run workflows in a Kubernetes cluster, for as long as it is not stopped
    Operator(Box<operator::OperatorArgs>),
    /// Carry out nodes for an operator, beside it and in a sandbox
    Runner(Box<runner::RunnerArgs>),
    /// Run a template or a service in a Kubernetes cluster
    Submit(Box<remote::SubmitArgs>),
    /// Show the runs of a cluster, or the nodes of one
    Get(remote::GetArgs),
    /// Show a run's moves until it is over; exit status 0 success, 1 failure
    Watch(remote::NamedArgs),
    /// Show what a run's nodes wrote
    Logs(remote::LogsArgs),
    /// End a run of a cluster
    Cancel(remote::NamedArgs),
    /// Let a run of a cluster start nothing new
    Suspend(remote::NamedArgs),
    /// Let a suspended run of a cluster go on
    Resume(remote::NamedArgs),
    /// Make a Helm chart of a catalogue: its services, templates and scripts
    Package(package::PackageArgs),
    /// Take the finalizer off the pods of runs, once no operator is left to do it
    StripFinalizers(strip::StripArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// What every command gets.
struct Context {
    printer: Printer,
    metadata: Option<PathBuf>,
}

impl Context {
    fn catalogue(&self) -> Catalogue {
        let named = self.metadata.clone();
        let root = named.or_else(|| std::env::var_os("APSCLI_METADATA").map(PathBuf::from));
        Catalogue::new(root.unwrap_or_else(|| PathBuf::from("metadata")))
    }
}

/// Something that is wrong with what the user gave; all its causes are shown.
type Failure = Box<dyn std::error::Error>;

/// An argument that names a namespace.
fn namespace(text: &str) -> Result<String, BadName> {
    name::check_namespace(text).map(ToOwned::to_owned)
}

/// An argument that names another object of a cluster.
fn object_name(text: &str) -> Result<String, BadName> {
    name::check(text).map(ToOwned::to_owned)
}

/// Runs the program.
#[must_use]
pub fn main(args: Vec<OsString>) -> ExitCode {
    if let Some(status) = fence::launch::taken(&args) {
        return status;
    }
    spawn::set_up();
    let printer = Printer;
    let status = command(printer, args);
    // Whoever reads the exit status must learn that the data did not arrive.
    if printer.has_failed() {
        return ExitCode::FAILURE;
    }
    status
}

fn command(printer: Printer, args: Vec<OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(legacy::translate(args)) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            let _ = error.print();
            return ExitCode::from(CANNOT_RUN);
        }
        Err(help) => {
            let help = help.render();
            printer.exactly(&if std::io::stdout().is_terminal() {
                help.ansi().to_string()
            } else {
                help.to_string()
            });
            return ExitCode::SUCCESS;
        }
    };
    let context = Context {
        printer,
        metadata: cli.metadata,
    };
    let done = match cli.command {
        Command::Run(args) => run::run(&context, &args),
        Command::Validate(args) => inspect::validate(&context, &args),
        Command::Graph(args) => inspect::graph(&context, &args),
        Command::List(args) => catalogue::list(&context, &args),
        Command::Register(args) => catalogue::register(&context, &args),
        Command::Unregister(args) => catalogue::unregister(&context, &args),
        Command::Crd(args) => definitions::crd(&context, &args),
        Command::Operator(args) => operator::operator(&context, &args),
        Command::Runner(args) => runner::runner(&context, &args),
        Command::Submit(args) => remote::submit(&context, &args),
        Command::Get(args) => remote::get(&context, &args),
        Command::Watch(args) => remote::watch(&context, &args),
        Command::Logs(args) => remote::logs(&context, &args),
        Command::Cancel(args) => remote::wish(&context, &args, remote::Wish::Cancel),
        Command::Suspend(args) => remote::wish(&context, &args, remote::Wish::Suspend),
        Command::Resume(args) => remote::wish(&context, &args, remote::Wish::Resume),
        Command::Package(args) => package::package(&context, &args),
        Command::StripFinalizers(args) => strip::strip_finalizers(&context, &args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "apscli", &mut script);
            context.printer.exactly(&String::from_utf8_lossy(&script));
            Ok(ExitCode::SUCCESS)
        }
    };
    done.unwrap_or_else(|error| {
        context.printer.error(error.as_ref());
        ExitCode::from(CANNOT_RUN)
    })
}
