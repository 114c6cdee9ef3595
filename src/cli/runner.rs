//! `apscli runner`: the process that carries out nodes for an operator, in the fence.
//!
//! Must not know what it carries out.

use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Args;
use rustix::fs::Mode as FileMode;
use rustix::process::{DumpableBehavior, set_dumpable_behavior, umask};
use tokio::signal::unix::{SignalKind, signal};

use crate::executor::fence::{Limits, Mode};
use crate::executor::runner::serve::{self, Options, slots};
use crate::executor::spawn;
use crate::template::duration;

use super::run::SandboxMode;
use super::{Context, Failure};

const MIB: u64 = 1024 * 1024;
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
    #[arg(long, value_name = "DIR")]
    folder: PathBuf,
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
pub(super) fn runner(_: &Context, args: &RunnerArgs) -> Result<ExitCode, Failure> {
    // What runs in the fence is of the same user.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| format!("cannot hide from other processes: {error}"))?;
    spawn::raise_open_files();
    spawn::keep_ended_children();
    let options = options(args)?;
    end_on_signals()?;
    let Some(path) = &args.socket else {
        let stream = rustix::stdio::stdin().try_clone_to_owned()?;
        let served = serve::serve(UnixStream::from(stream), &options);
        // Whoever started this may be gone without a word.
        serve::clear(&options.folder);
        served?;
        return Ok(ExitCode::SUCCESS);
    };
    let listener = listen(path)?;
    eprintln!(
        "apscli runner: serves on {}, {} at once",
        path.display(),
        options.slots
    );
    loop {
        // One after the other: what an operator started is over before the next is heard.
        let (stream, _) = listener.accept()?;
        if let Err(error) = serve::serve(stream, &options) {
            eprintln!("apscli runner: a connection ended: {error}");
        }
    }
}

fn options(args: &RunnerArgs) -> Result<Options, Failure> {
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
        .create(&args.folder)?;
    // What is in a tmpfs is this container's memory too.
    let memory = memory().map(|all| all.saturating_sub(in_memory(&args.folder)));
    let slots = slots(args.slots.unwrap_or(cores), &limits, memory).ok_or_else(|| {
        format!(
            "--memory {}: not one node has room in the {} MiB of memory that there are",
            args.memory,
            memory.unwrap_or_default() / MIB
        )
    })?;
    Ok(Options {
        folder: std::path::absolute(&args.folder)?,
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
