//! `apscli runner`: the process that carries out nodes for an operator, in the fence.
//!
//! Beside the operator's socket it has a second one, `PATH.check`: who connects there has the
//! runner check itself, and reads the answer. `apscli runner --check`, a liveness probe, does.
//!
//! Must not know what it carries out.

use std::fs;
use std::io::{Read, Write};
use std::num::NonZeroUsize;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::fs::Mode as FileMode;
use rustix::process::{DumpableBehavior, set_dumpable_behavior, umask};
use tokio::signal::unix::{SignalKind, signal};

use crate::executor::fence::{Limits, Mode};
use crate::executor::runner::check::{self, SelfCheck};
use crate::executor::runner::serve::{self, Options, slots};
use crate::executor::spawn;
use crate::template::duration;

use super::run::SandboxMode;
use super::{Context, Failure};

const MIB: u64 = 1024 * 1024;
/// How long `--check` waits for an answer. The check repeats what failed, and may have to wait for
/// another one.
const ANSWER: Duration = Duration::from_secs(20);
/// Most bytes of an answer.
const ANSWER_BYTES: u64 = 4096;
/// What a runner that works answers.
const WELL: &str = "ok\n";
/// Where a container sees how much memory it has, in the new and in the old way.
const MEMORY: [&str; 2] = [
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
];

#[derive(Debug, Args)]
pub struct RunnerArgs {
    /// The socket on which the operator is served [default: the connection is standard input]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// A folder of its own, in which `scripts`, `logs` and `nodes` come and go; best a tmpfs of limited size
    #[arg(long, value_name = "DIR", required_unless_present = "check")]
    folder: Option<PathBuf>,
    /// Ask the runner that serves on this socket to run a program through its sandbox; exit status 0 where it
    /// can, within 20 s: a liveness probe
    #[arg(long, requires = "socket")]
    check: bool,
    /// Most processes of nodes at once; fewer where their memory has no room [default: cores]
    #[arg(long, value_name = "N")]
    slots: Option<NonZeroUsize>,
    /// Whether nodes run where the kernel cannot do all of the sandbox
    #[arg(long, value_enum, value_name = "MODE", default_value = "required")]
    sandbox: SandboxMode,
    /// Memory of each node
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    memory: u64,
    /// Files of each node
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    files: u64,
    /// Processes and threads of each node
    #[arg(long, value_name = "N", default_value_t = 128)]
    processes: u64,
    /// CPU time of each process of a node
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    cpu: u64,
    /// Longest time of any node
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "1h")]
    longest: Duration,
}

/// Serves until it is ended; of standard input, one connection, after which its folder is cleared.
/// A runner that finds that it cannot work any more ends with the status [`check::BROKEN`].
pub(super) fn runner(_: &Context, args: &RunnerArgs) -> Result<ExitCode, Failure> {
    if let (true, Some(path)) = (args.check, &args.socket) {
        return ask(path);
    }
    // What runs in the fence is of the same user.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| format!("cannot hide from other processes: {error}"))?;
    spawn::raise_open_files();
    let options = options(args)?;
    end_on_signals()?;
    let Some(path) = &args.socket else {
        let stream = rustix::stdio::stdin().try_clone_to_owned()?;
        serve::prepare(&options.folder)?;
        let check = watched(&options, &[])?;
        let served = serve::serve(UnixStream::from(stream), &options, &check);
        check.finish();
        // Whoever started this may be gone without a word.
        serve::clear(&options.folder);
        served?;
        return Ok(ExitCode::SUCCESS);
    };
    serve::prepare(&options.folder)?;
    let listener = listen(path)?;
    let check_path = check_path(path);
    let checks = listen(&check_path)?;
    let check = watched(&options, &[path, &check_path])?;
    let checking = Arc::clone(&check);
    thread::Builder::new()
        .name("checks".to_owned())
        .spawn(move || answer(&checks, &checking))?;
    eprintln!(
        "apscli runner: serves on {}, {} at once",
        path.display(),
        options.slots
    );
    loop {
        // One after the other: what an operator started is over before the next is heard.
        let (stream, _) = listener.accept()?;
        if let Err(error) = serve::serve(stream, &options, &check) {
            eprintln!("apscli runner: a connection ended: {error}");
        }
    }
}

/// The socket on which checks are asked for, beside the operator's.
fn check_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".check");
    PathBuf::from(name)
}

/// A check of this runner, which is made regularly from now on.
fn watched(options: &Options, sockets: &[&Path]) -> Result<Arc<SelfCheck>, Failure> {
    let check = Arc::new(SelfCheck::new(options, sockets)?);
    if let Err(why) = check.first() {
        check::end(&why);
    }
    let watch = Arc::clone(&check);
    thread::Builder::new()
        .name("watch".to_owned())
        .spawn(move || {
            let mut next = Instant::now() + check::PROGRAM_EVERY;
            loop {
                thread::sleep(check::EVERY);
                let checked = if Instant::now() < next {
                    watch.quick()
                } else {
                    next = Instant::now() + check::PROGRAM_EVERY;
                    watch.whole()
                };
                if let Err(why) = checked {
                    check::end(&why);
                }
            }
        })?;
    Ok(check)
}

/// Answers who asks, one after the other: the check is the same for all.
fn answer(listener: &UnixListener, check: &SelfCheck) {
    loop {
        let mut stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => check::end(&format!("it cannot be asked: {error}")),
        };
        let checked = check.whole();
        let text = match &checked {
            Ok(()) => WELL.to_owned(),
            Err(why) => format!("{why}\n"),
        };
        // An answer of one line fits into the socket, so nobody keeps this waiting. Who asked may
        // be gone.
        let _ = stream.set_write_timeout(Some(check::EVERY));
        let _ = stream.write_all(text.as_bytes());
        if let Err(why) = checked {
            check::end(&why);
        }
    }
}

/// Asks the runner on this socket, and waits no longer than [`ANSWER`] whatever it does.
fn ask(path: &Path) -> Result<ExitCode, Failure> {
    let (answered, answer) = channel();
    let path = check_path(path);
    let at = path.clone();
    thread::Builder::new()
        .name("ask".to_owned())
        .spawn(move || {
            let asked = UnixStream::connect(&path).and_then(|stream| {
                let mut text = String::new();
                stream.take(ANSWER_BYTES).read_to_string(&mut text)?;
                Ok(text)
            });
            let _ = answered.send(asked);
        })?;
    let shown = at.display();
    let Ok(asked) = answer.recv_timeout(ANSWER) else {
        let seconds = ANSWER.as_secs();
        return Err(format!("the runner on {shown} has not answered within {seconds} s").into());
    };
    let text = asked.map_err(|error| format!("cannot ask the runner on {shown}: {error}"))?;
    if text == WELL {
        return Ok(ExitCode::SUCCESS);
    }
    let why = if text.is_empty() {
        "it ended"
    } else {
        text.trim_end()
    };
    Err(format!("the runner on {shown} cannot work: {why}").into())
}

fn options(args: &RunnerArgs) -> Result<Options, Failure> {
    let folder = args
        .folder
        .as_ref()
        .ok_or("--folder: expected a directory")?;
    let limits = Limits {
        memory: args.memory.saturating_mul(MIB),
        cpu: args.cpu,
        processes: args.processes,
        file: args.files.saturating_mul(MIB),
        folder: args.files.saturating_mul(MIB),
        ..Limits::default()
    };
    let cores = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    // What is in a tmpfs is this container's memory too.
    let memory = memory().map(|all| all.saturating_sub(in_memory(folder)));
    let slots = slots(args.slots.unwrap_or(cores), &limits, memory).ok_or_else(|| {
        format!(
            "--memory {}: not one node has room in the {} MiB of memory that there are",
            args.memory,
            memory.unwrap_or_default() / MIB
        )
    })?;
    Ok(Options {
        folder: std::path::absolute(folder)?,
        slots,
        mode: Mode::from(args.sandbox),
        limits,
        longest: args.longest,
        env: std::env::vars_os().collect(),
    })
}

/// How many bytes of memory this container has; none: it is none, or has no limit.
fn memory() -> Option<u64> {
    let texts = MEMORY
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok());
    let mut limits = texts.filter_map(|text| text.trim().parse::<u64>().ok());
    // The old way's word for no limit is a number that no machine has.
    limits.next().filter(|limit| *limit < 1 << 50)
}

/// How many bytes a folder may take of the memory: those of its tmpfs, if it is in one.
fn in_memory(folder: &Path) -> u64 {
    const TMPFS: i64 = 0x0102_1994;
    match rustix::fs::statfs(folder) {
        Ok(stat) if stat.f_type == TMPFS => stat
            .f_blocks
            .saturating_mul(u64::try_from(stat.f_bsize).unwrap_or(0)),
        _ => 0,
    }
}

/// Only the user that this is itself can connect: the socket is made so, and who asked for the
/// peer's user instead would hear of its process too, which another container's has no number for.
fn listen(path: &Path) -> Result<UnixListener, Failure> {
    let _ = fs::remove_file(path);
    let before = umask(FileMode::XUSR | FileMode::RWXG | FileMode::RWXO);
    let listener = UnixListener::bind(path);
    umask(before);
    let listener =
        listener.map_err(|error| format!("cannot listen on {}: {error}", path.display()))?;
    Ok(listener)
}

/// The first process of a container ignores signals that it does not handle.
fn end_on_signals() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut term, mut interrupt) = {
        let _guard = runtime.enter();
        (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        )
    };
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = term.recv() => {}
                    _ = interrupt.recv() => {}
                }
            });
            // All leashes are let go of by that.
            std::process::exit(0);
        })?;
    Ok(())
}
