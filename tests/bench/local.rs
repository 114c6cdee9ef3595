//! What a run on one machine costs, against the least that the same work can cost here.
//!
//! ```text
//! cargo build --release --workspace && cargo bench --bench local [-- PART…]
//! ```
//! Parts: fan, chain, engine, api, original; none named: all. The last one runs the Python tool
//! that this program continues beside it, if `APSCLI_ORIGINAL` names a `python3` in whose virtual
//! environment it is installed (`pip install apscli==0.1.9.18`); it registers templates there. Prints one JSON object a line: seconds as
//! median, least and most over the repeats; `ratio` is the median of the ratios of each repeat,
//! against what stands in `against`, and `limit` what it should keep to.
//!
//! Contestants take turns within a repeat, so that a machine that is busy for a while is busy
//! for all of them. A program and no timed test: on a shared machine only ratios say anything,
//! and a slow one is no fault to stop for.

use std::error::Error;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::{Value as Json, json};

#[path = "instant.rs"]
mod instant;

use instant::{Shape, play};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const REPEATS: usize = 5;
/// No further repeats of a part after this; three there are in any case.
const PART: Duration = Duration::from_mins(2);
const LEAST_REPEATS: usize = 3;
/// Processes at once, the same for everybody.
const PARALLEL: usize = 4;
const PROGRAM: &str = "/bin/true";

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [word, shape, n] = words.as_slice()
        && word == INSTANT
    {
        println!("{}", instant(shape, n.parse()?)?.as_secs_f64());
        return Ok(());
    }
    // Without this word it is `cargo test --all-targets` that calls: it wants no minutes of load.
    if !words.iter().any(|word| word == "--bench") {
        return Ok(());
    }
    let parts: Vec<&str> = words
        .iter()
        .map(String::as_str)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let wanted = |part: &str| parts.is_empty() || parts.contains(&part);
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    if wanted("fan") {
        fan(folder.path(), 5_000)?;
    }
    if wanted("chain") {
        chain(folder.path(), 1_000)?;
    }
    if wanted("engine") {
        engine()?;
    }
    if wanted("api") {
        api(folder.path(), 1_000, 200)?;
    }
    if wanted("original") {
        original(folder.path(), 3_000, 1_000, 200)?;
    }
    Ok(())
}

// ── Measuring ───────────────────────────────────────────────────────────────────────────────

/// One thing to be measured; it gives its own time, so that making ready does not count.
struct Contestant<'a> {
    what: &'a str,
    go: Box<dyn FnMut() -> Result<Duration> + 'a>,
    seconds: Vec<f64>,
    cpu: Vec<f64>,
}

impl<'a> Contestant<'a> {
    fn new(what: &'a str, go: impl FnMut() -> Result<Duration> + 'a) -> Self {
        Self {
            what,
            go: Box::new(go),
            seconds: Vec::new(),
            cpu: Vec::new(),
        }
    }
}

/// Lets them take turns; each repeat begins with another one.
fn take_turns(contestants: &mut [Contestant<'_>]) -> Result<()> {
    let start = Instant::now();
    for repeat in 0..REPEATS {
        if repeat >= LEAST_REPEATS && start.elapsed() > PART {
            break;
        }
        contestants.rotate_left(1);
        for contestant in &mut *contestants {
            let before = cpu()?;
            let seconds = (contestant.go)()?.as_secs_f64();
            contestant.seconds.push(seconds);
            contestant.cpu.push(cpu()? - before);
        }
    }
    Ok(())
}

/// CPU seconds of this process and of all that it has reaped. Work, where the wall also counts
/// how long others kept the machine.
fn cpu() -> Result<f64> {
    // Linux tells it in hundredths, whatever the kernel's own clock is.
    const TICKS: f64 = 100.0;
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace();
    let mut sum = 0.0;
    for field in fields.skip(11).take(4) {
        sum += field.parse::<f64>()?;
    }
    Ok(sum / TICKS)
}

/// How the CPU seconds of one compare with those of another, for fan and chain.
fn cpu_line(bench: &str, contestants: &[Contestant<'_>], n: usize, parallel: usize, against: &str) {
    let of = |what: &str| {
        contestants
            .iter()
            .find(|contestant| contestant.what == what)
    };
    if let (Some(ours), Some(theirs)) = (of("apscli"), of(against)) {
        let against = format!("CPU seconds: this / {against}");
        let ratio = Ratio::new(&against, &ours.cpu, &theirs.cpu, "none");
        line(
            bench,
            "apscli, CPU seconds",
            n,
            parallel,
            &ours.cpu,
            Some(&ratio),
        );
    }
}

fn seconds_of<'a>(contestants: &'a [Contestant<'_>], what: &str) -> &'a [f64] {
    let found = contestants
        .iter()
        .find(|contestant| contestant.what == what);
    found.map_or(&[], |contestant| &contestant.seconds)
}

/// Median, least, most.
fn spread(values: &[f64]) -> Json {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
    let round = |value: f64| (value * 10_000.0).round() / 10_000.0;
    let last = sorted.len().saturating_sub(1);
    json!({
        "median": round(f64::midpoint(at(last / 2), at(sorted.len() / 2))),
        "min": round(at(0)),
        "max": round(at(last)),
    })
}

/// A ratio over repeats and what it should keep to.
struct Ratio<'a> {
    against: &'a str,
    values: Vec<f64>,
    limit: &'a str,
}

impl<'a> Ratio<'a> {
    /// `over / under`, repeat by repeat.
    fn new(against: &'a str, over: &[f64], under: &[f64], limit: &'a str) -> Self {
        let values = over
            .iter()
            .zip(under)
            .map(|(over, under)| over / under)
            .collect();
        Self {
            against,
            values,
            limit,
        }
    }
}

fn line(
    bench: &str,
    what: &str,
    n: usize,
    parallel: usize,
    seconds: &[f64],
    ratio: Option<&Ratio<'_>>,
) {
    let mut line = json!({
        "bench": bench,
        "what": what,
        "n": n,
        "parallel": parallel,
        "seconds": spread(seconds),
        "repeats": seconds.len(),
        "ratio": null,
        "limit": null,
    });
    if let (Some(ratio), Some(line)) = (ratio, line.as_object_mut()) {
        let spread = spread(&ratio.values);
        line.insert("against".to_owned(), json!(ratio.against));
        line.insert("ratio".to_owned(), json!(spread.get("median")));
        line.insert(
            "ratio_spread".to_owned(),
            json!([spread.get("min"), spread.get("max")]),
        );
        line.insert("limit".to_owned(), json!(ratio.limit));
    }
    println!("{line}");
}

fn skipped(bench: &str, what: &str, why: &str) {
    println!("{}", json!({"bench": bench, "what": what, "skipped": why}));
}

fn is_there(program: &str) -> bool {
    let mut command = Command::new(program);
    command
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Runs a command to its good end.
fn timed(command: &mut Command) -> Result<Duration> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let start = Instant::now();
    let status = command.status()?;
    let took = start.elapsed();
    if status.success() {
        Ok(took)
    } else {
        Err(format!("{command:?}: {status}").into())
    }
}

// ── Processes ───────────────────────────────────────────────────────────────────────────────

/// Whether the bare process has a pipe for its stdout that is read to its end, as a node has.
#[derive(Clone, Copy)]
enum Stdout {
    Inherited,
    Piped,
}

/// Starts and reaps one process. The standard library does this with `posix_spawn`, as long as
/// nothing is asked for that it cannot do; nothing is here.
fn bare(stdout: Stdout) -> Result<()> {
    let mut command = Command::new(PROGRAM);
    if let Stdout::Piped = stdout {
        command.stdout(Stdio::piped());
    }
    let mut child = command.spawn()?;
    if let Some(mut pipe) = child.stdout.take() {
        pipe.read_to_end(&mut Vec::new())?;
    }
    let status = child.wait()?;
    if status.success() {
        Ok(())
    } else {
        Err(status.to_string().into())
    }
}

/// As many bare processes by as many threads.
fn bare_many(n: usize, threads: usize, stdout: Stdout) -> Result<Duration> {
    let begun = AtomicUsize::new(0);
    let failed = AtomicUsize::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while begun.fetch_add(1, Ordering::Relaxed) < n {
                    if bare(stdout).is_err() {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let took = start.elapsed();
    match failed.into_inner() {
        0 => Ok(took),
        failed => Err(format!("{failed} of {n} bare processes failed").into()),
    }
}

fn apscli(template: &Path, runs: &Path, parallel: usize, python: Option<&str>) -> Result<Duration> {
    // A new folder for each run, all removed at the very end: for some seconds after thousands of
    // files are deleted, ext4 makes new ones several times slower.
    let dir = tempfile::Builder::new()
        .prefix("run")
        .tempdir_in(runs)?
        .keep();
    let mut command = Command::new(env!("CARGO_BIN_EXE_apscli"));
    command
        .arg("run")
        .arg("--template")
        .arg(template)
        .arg("--log-dir")
        .arg(&dir);
    command.args(["--output", "json", "--parallel", &parallel.to_string()]);
    command.args(python.map(|python| format!("--python={python}")));
    // Compiled modules are kept, as a python3 does that nobody has told otherwise.
    command.env_remove("PYTHONDONTWRITEBYTECODE");
    timed(&mut command)
}

/// A template of nodes `n0`, `n1`, …: all at once, or one after the other.
fn template(folder: &Path, name: &str, n: usize, in_a_row: bool, action: &Json) -> Result<PathBuf> {
    let mut nodes = serde_json::Map::new();
    for index in 0..n {
        let prev = index
            .checked_sub(1)
            .filter(|_| in_a_row)
            .map(|prev| format!("n{prev}"));
        let prev_nodes: Vec<String> = prev.into_iter().collect();
        nodes.insert(
            format!("n{index}"),
            json!({"prev_nodes": prev_nodes, "action": action}),
        );
    }
    let path = folder.join(name);
    fs::write(&path, serde_json::to_vec(&nodes)?)?;
    Ok(path)
}

fn fan(folder: &Path, n: usize) -> Result<()> {
    let template = template(
        folder,
        "fan.json",
        n,
        false,
        &json!({"type": "cmd", "cmd": PROGRAM}),
    )?;
    let targets: Vec<String> = (0..n).map(|index| format!("t{index}")).collect();
    let targets = targets.join(" ");
    let makefile = folder.join("Makefile");
    fs::write(
        &makefile,
        format!("all: {targets}\n.PHONY: all {targets}\n{targets}:\n\t@{PROGRAM}\n"),
    )?;
    let ninja_folder = folder.join("ninja");
    let mut ninja_file = format!("rule run\n command = {PROGRAM}\n");
    for index in 0..n {
        writeln!(ninja_file, "build t{index}: run")?;
    }

    let jobs = format!("-j{PARALLEL}");

    let mut contestants = vec![
        Contestant::new("bare", || bare_many(n, PARALLEL, Stdout::Inherited)),
        Contestant::new("bare with pipe", || bare_many(n, PARALLEL, Stdout::Piped)),
        Contestant::new("apscli", || apscli(&template, folder, PARALLEL, None)),
    ];
    if is_there("make") {
        contestants.push(Contestant::new("make", || {
            timed(
                Command::new("make")
                    .arg(&jobs)
                    .arg("-f")
                    .arg(&makefile)
                    .arg("-C")
                    .arg(folder),
            )
        }));
    } else {
        skipped("fan", "make", "there is no make in the PATH");
    }
    if is_there("ninja") {
        contestants.push(Contestant::new("ninja", || {
            // A new folder each time: ninja keeps a log of what it has built.
            if ninja_folder.exists() {
                fs::remove_dir_all(&ninja_folder)?;
            }
            fs::create_dir(&ninja_folder)?;
            fs::write(ninja_folder.join("build.ninja"), &ninja_file)?;
            timed(
                Command::new("ninja")
                    .arg(&jobs)
                    .arg("-C")
                    .arg(&ninja_folder),
            )
        }));
    } else {
        skipped("fan", "ninja", "there is no ninja in the PATH");
    }
    take_turns(&mut contestants)?;

    let ours = seconds_of(&contestants, "apscli");
    line("fan", "apscli", n, PARALLEL, ours, None);
    for against in ["bare with pipe", "make", "ninja"] {
        cpu_line("fan", &contestants, n, PARALLEL, against);
    }
    for (what, limit) in [
        ("bare with pipe", ">= 0.9"),
        ("bare", "none"),
        ("make", "> 1"),
        ("ninja", "> 1"),
    ] {
        let theirs = seconds_of(&contestants, what);
        if !theirs.is_empty() {
            line(
                "fan",
                what,
                n,
                PARALLEL,
                theirs,
                Some(&Ratio::new("this / apscli", theirs, ours, limit)),
            );
        }
    }
    Ok(())
}

fn chain(folder: &Path, n: usize) -> Result<()> {
    let template = template(
        folder,
        "chain.json",
        n,
        true,
        &json!({"type": "cmd", "cmd": PROGRAM}),
    )?;
    let mut contestants = vec![
        Contestant::new("bare", || bare_many(n, 1, Stdout::Inherited)),
        Contestant::new("bare with pipe", || bare_many(n, 1, Stdout::Piped)),
        Contestant::new("apscli", || apscli(&template, folder, PARALLEL, None)),
    ];
    take_turns(&mut contestants)?;
    let ours = seconds_of(&contestants, "apscli");
    line("chain", "apscli", n, 1, ours, None);
    cpu_line("chain", &contestants, n, 1, "bare with pipe");
    for (what, limit) in [("bare with pipe", "<= 1.2"), ("bare", "none")] {
        let theirs = seconds_of(&contestants, what);
        line(
            "chain",
            what,
            n,
            1,
            theirs,
            Some(&Ratio::new("apscli / this", ours, theirs, limit)),
        );
    }
    Ok(())
}

// ── The engine alone ────────────────────────────────────────────────────────────────────────

/// With this word the bench runs itself to play one run.
const INSTANT: &str = "instant";

/// Plays a run in a process of its own, as runs are: what an earlier one left of the heap makes the
/// next one quicker or slower, and a small one much more than a large one.
fn instant_apart(shape: Shape, n: usize) -> Result<Duration> {
    let mut command = Command::new(std::env::current_exe()?);
    let output = command
        .args([INSTANT, shape.name(), &n.to_string()])
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    let seconds: f64 = String::from_utf8(output.stdout)?.trim().parse()?;
    Ok(Duration::try_from_secs_f64(seconds)?)
}

/// The seconds that the engine takes for a run of this shape.
fn instant(shape: &str, n: usize) -> Result<Duration> {
    let mut shapes = Shape::ALL.into_iter();
    let shape = shapes.find(|known| known.name() == shape);
    let spec = shape.ok_or("there is no such shape")?.spec(n)?;
    let start = Instant::now();
    play(spec)?;
    Ok(start.elapsed())
}

fn engine() -> Result<()> {
    const SMALL: usize = 10_000;
    const LARGE: usize = 100_000;
    for shape in Shape::ALL {
        let mut contestants = vec![
            Contestant::new("small", || instant_apart(shape, SMALL)),
            Contestant::new("large", || instant_apart(shape, LARGE)),
        ];
        take_turns(&mut contestants)?;
        let small = seconds_of(&contestants, "small");
        let large = seconds_of(&contestants, "large");
        line("engine", shape.name(), SMALL, 64, small, None);
        let ratio = Ratio::new(
            "this / 10000 nodes",
            large,
            small,
            "<= 12, and seconds <= 1",
        );
        line("engine", shape.name(), LARGE, 64, large, Some(&ratio));
    }
    Ok(())
}

// ── Python functions ────────────────────────────────────────────────────────────────────────

/// Forks as often as the second word says, all at once or in a row, and prints the seconds. It
/// has what the interpreter that serves api nodes has in memory, because a fork copies its map.
const FORKS: &str = r"
import importlib.machinery, inspect, json, os, sys, threading, time, traceback
n, in_a_row = int(sys.argv[1]), sys.argv[2] == 'row'
start = time.perf_counter()
pids = []
for _ in range(n):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    if in_a_row:
        os.waitpid(pid, 0)
    else:
        pids.append(pid)
for pid in pids:
    os.waitpid(pid, 0)
print(time.perf_counter() - start)
";

fn forks(python: &str, n: usize, how: &str) -> Result<Duration> {
    let mut command = Command::new(python);
    let output = command.args(["-c", FORKS, &n.to_string(), how]).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    let seconds: f64 = String::from_utf8(output.stdout)?.trim().parse()?;
    Ok(Duration::try_from_secs_f64(seconds)?)
}

fn api(folder: &Path, at_once: usize, in_a_row: usize) -> Result<()> {
    // What is called python3 may be a script that looks for the real one, each time.
    let asked = Command::new("python3")
        .args(["-c", "import sys; print(sys.executable)"])
        .output();
    let Some(python) = asked.ok().filter(|output| output.status.success()) else {
        skipped("api", "all", "there is no python3 in the PATH");
        return Ok(());
    };
    let python = String::from_utf8(python.stdout)?.trim().to_owned();
    let extension = Path::new(env!("CARGO_BIN_EXE_apscli")).with_file_name("libapscli_python.so");
    if !extension.exists() {
        skipped(
            "api",
            "all",
            "there is no extension module: cargo build --release --workspace makes it",
        );
        return Ok(());
    }
    fs::write(
        folder.join("trivial.py"),
        "def work():\n    return {'return_code': 0}\n",
    )?;
    let action = json!({"type": "api", "module": "trivial", "function": "work", "path": ["."]});
    let one = template(folder, "api-one.json", 1, false, &action)?;
    for (bench, n, parallel, how) in [
        ("api at once", at_once, at_once, "all"),
        ("api in a row", in_a_row, 1, "row"),
    ] {
        let many = template(folder, "api.json", n, how == "row", &action)?;
        let mut contestants = vec![
            Contestant::new("bare fork", || forks(&python, n, how)),
            Contestant::new("one", || apscli(&one, folder, parallel, Some(&python))),
            Contestant::new("apscli", || apscli(&many, folder, parallel, Some(&python))),
        ];
        take_turns(&mut contestants)?;
        let theirs = seconds_of(&contestants, "bare fork");
        let one = seconds_of(&contestants, "one");
        let ours = seconds_of(&contestants, "apscli");
        // The interpreter starts once a run; what a node costs is the rest.
        let nodes: Vec<f64> = ours.iter().zip(one).map(|(ours, one)| ours - one).collect();
        line(bench, "bare fork", n, parallel, theirs, None);
        line(bench, "apscli with one node", 1, parallel, one, None);
        let whole = Ratio::new("this / bare fork", ours, theirs, "none");
        line(bench, "apscli", n, parallel, ours, Some(&whole));
        let rest = Ratio::new("this / bare fork", &nodes, theirs, "<= 3");
        line(
            bench,
            "apscli without its start",
            n,
            parallel,
            &nodes,
            Some(&rest),
        );
    }
    Ok(())
}

// ── The original ────────────────────────────────────────────────────────────────────────────

/// Runs the original's module. It was written for a Python in which `collections` still had this
/// name.
const ORIGINAL: &str = r"
import collections, collections.abc, runpy
collections.Hashable = collections.abc.Hashable
runpy.run_module('apscli.apscli', run_name='__main__', alter_sys=True)
";

/// The original as it is installed for a python3.
struct Original {
    python: OsString,
    folder: PathBuf,
    params: PathBuf,
}

impl Original {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.python);
        command.args(["-c", ORIGINAL]).current_dir(&self.folder);
        command
    }

    /// Makes a template known to it, under a name that is new each time: it refuses one that it
    /// knows.
    fn register(&self, template: &Path, name: &str) -> Result<String> {
        // It wants ids and parameters.
        let mut nodes: serde_json::Map<String, Json> =
            serde_json::from_slice(&fs::read(template)?)?;
        for (id, node) in (1..).zip(nodes.values_mut()) {
            if let Some(node) = node.as_object_mut() {
                node.insert("id".to_owned(), json!(id));
                node.insert("param".to_owned(), json!({}));
            }
        }
        fs::write(template, serde_json::to_vec(&nodes)?)?;
        let run = self.folder.file_name().unwrap_or_default();
        let run = run.to_string_lossy();
        let letters: String = run.chars().filter(char::is_ascii_alphanumeric).collect();
        let fqsn = format!("bench.local.b{letters}.{name}");
        let mut register = self.command();
        register.args(["register", "--fqsn", &fqsn, "--version", "1.0"]);
        timed(register.arg("--wf_template").arg(template))?;
        Ok(fqsn)
    }

    fn run(&self, fqsn: &str) -> Command {
        let mut command = self.command();
        command
            .args(["run", "--fqsn", fqsn, "--wp"])
            .arg(&self.params);
        command
    }
}

/// Runs a command to its good end, if that comes in time; else it and all that it started are
/// ended.
fn timed_within(command: &mut Command, limit: Duration) -> Result<Option<Duration>> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    let start = Instant::now();
    let mut child = command.spawn()?;
    while start.elapsed() < limit {
        if let Some(status) = child.try_wait()? {
            let took = start.elapsed();
            return if status.success() {
                Ok(Some(took))
            } else {
                Err(format!("{command:?}: {status}").into())
            };
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    rustix::process::kill_process_group(Pid::from_child(&child), Signal::KILL)?;
    child.wait()?;
    Ok(None)
}

fn original(folder: &Path, fan: usize, chain: usize, functions: usize) -> Result<()> {
    let Some(python) = std::env::var_os("APSCLI_ORIGINAL") else {
        skipped("original", "all", "APSCLI_ORIGINAL names no python3");
        return Ok(());
    };
    let params = folder.join("original-params.json");
    fs::write(&params, "{}")?;
    let original = Original {
        python,
        folder: folder.to_path_buf(),
        params,
    };
    let action = json!({"type": "cmd", "cmd": PROGRAM, "env": {}});
    for (name, n, in_a_row) in [("fan", fan, false), ("chain", chain, true)] {
        let file = format!("original-{name}.json");
        let template = template(folder, &file, n, in_a_row, &action)?;
        let fqsn = original.register(&template, name)?;
        let mut contestants = vec![
            Contestant::new("original 0.1.9", || timed(&mut original.run(&fqsn))),
            Contestant::new("apscli", || apscli(&template, folder, PARALLEL, None)),
        ];
        take_turns(&mut contestants)?;
        let bench = format!("original, {name}");
        let ours = seconds_of(&contestants, "apscli");
        let theirs = seconds_of(&contestants, "original 0.1.9");
        line(&bench, "apscli", n, PARALLEL, ours, None);
        let ratio = Ratio::new("this / apscli", theirs, ours, "> 1");
        line(&bench, "original 0.1.9", n, 0, theirs, Some(&ratio));
    }
    original_functions(&original, functions)
}

/// Python functions, all at once: the original is known to hang on so many, so it gets as much
/// time as it could need and no more.
fn original_functions(original: &Original, n: usize) -> Result<()> {
    const BENCH: &str = "original, api at once";
    const LONGEST: Duration = Duration::from_mins(1);
    let folder = &original.folder;
    fs::write(
        folder.join("returns_zero.py"),
        "def work():\n    return {'return_code': 0}\n",
    )?;
    let action =
        json!({"type": "api", "module": "returns_zero", "function": "work", "path": [folder]});
    let template = template(folder, "original-api.json", n, false, &action)?;
    let fqsn = original.register(&template, "api")?;
    let ours = apscli(&template, folder, n, None)?.as_secs_f64();
    line(BENCH, "apscli", n, n, &[ours], None);
    match timed_within(&mut original.run(&fqsn), LONGEST)? {
        Some(took) => {
            let took = [took.as_secs_f64()];
            let ratio = Ratio::new("this / apscli", &took, &[ours], "> 1");
            line(BENCH, "original 0.1.9", n, 0, &took, Some(&ratio));
        }
        None => println!(
            "{}",
            json!({"bench": BENCH, "what": "original 0.1.9", "n": n, "not_over_after_seconds": LONGEST.as_secs()})
        ),
    }
    Ok(())
}
