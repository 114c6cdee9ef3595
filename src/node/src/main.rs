//! `apscli-node`: what runs inside a pod. It carries out one decision and leaves one frame.
//!
//! ```text
//! APSCLI_DECISION ─→ scripts checked ─→ secrets put in place ─→ the hand for cmd or api ─→ frame in the termination message
//! ```
//! The action's own words go to standard output, where `kubectl logs` finds them. Must not link
//! Python or a Kubernetes client, must not decide anything, and must not write a secret's value
//! anywhere.

mod act;
mod init;
mod install;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// Exit status where the fault is not the action's.
const TROUBLE: u8 = 70;
/// Exit status for a command line that makes no sense.
const USAGE: u8 = 64;

const HELP: &str = "\
apscli-node carries out one node of a workflow inside a pod.

usage: apscli-node [--decision FILE] [--termination-log FILE]
       apscli-node install FOLDER
       apscli-node --version

--decision FILE         the decision; without it, the environment variable APSCLI_DECISION
--termination-log FILE  where the result is written; without it, /dev/termination-log
install FOLDER          copies this program and the extension module beside it into a folder

It ends with 0 if the node succeeded, with 1 if it did not, and with 70 if apscli-node could not
do its own part.
";

/// Where the decision comes from and the result goes to.
struct Places {
    decision: Option<PathBuf>,
    termination_log: PathBuf,
}

enum Request {
    Act(Places),
    Install(PathBuf),
    Help,
    Version,
}

fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Request, String> {
    let mut places = Places {
        decision: None,
        termination_log: PathBuf::from("/dev/termination-log"),
    };
    while let Some(arg) = args.next() {
        let mut value = |what: &str| {
            args.next()
                .map(PathBuf::from)
                .ok_or_else(|| format!("{what} is missing after `{}`", arg.display()))
        };
        match arg.to_str() {
            Some("--decision") => places.decision = Some(value("a file")?),
            Some("--termination-log") => places.termination_log = value("a file")?,
            Some("install") => return Ok(Request::Install(value("a folder")?)),
            Some("--help" | "-h") => return Ok(Request::Help),
            Some("--version" | "-V") => return Ok(Request::Version),
            _ => return Err(format!("`{}` is not understood", arg.display())),
        }
    }
    Ok(Request::Act(places))
}

fn main() -> ExitCode {
    match parse(std::env::args_os().skip(1)) {
        Ok(Request::Act(places)) if rustix::process::getpid().is_init() => init::run(&places),
        Ok(Request::Act(places)) => act::run(&places),
        Ok(Request::Install(folder)) => match install::install(&folder) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => trouble(&error),
        },
        Ok(Request::Help) => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Ok(Request::Version) => {
            println!("apscli-node {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprint!("apscli-node: {error}\n\n{HELP}");
            ExitCode::from(USAGE)
        }
    }
}

fn trouble(error: &str) -> ExitCode {
    eprintln!("apscli-node: {error}");
    ExitCode::from(TROUBLE)
}
