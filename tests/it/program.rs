//! Runs the real program in a folder of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{LazyLock, Once};
use std::time::{Duration, Instant};

use apscli::executor::spawn::is_ignored;
use rustix::process::{Pid, Signal};
use serde_json::Value;
use tempfile::TempDir;
use tokio::signal::unix::SignalKind;

/// The interpreter itself, without shims in front of it.
pub static PYTHON: LazyLock<PathBuf> = LazyLock::new(|| {
    let output = Command::new("python3")
        .args(["-c", "import sys; print(sys.executable)"])
        .output()
        .expect("the tests need a python3 in the PATH");
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
});

/// A folder with files, and the program.
pub struct Place {
    pub dir: TempDir,
}

/// What came of a run.
pub struct Done {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Done {
    pub fn new(output: &Output) -> Self {
        Self {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {} {}", self.stdout, self.stderr))
    }
}

/// What a shell starts in the background, and `nohup`, ignores signals, and so would every program
/// that we start. A handler, unlike an ignored signal, is not inherited: programs under test have
/// the default, whoever runs the tests.
fn inherit_no_ignored_signals() {
    static ONCE: Once = Once::new();
    // In a thread of its own, since a test that calls this may be in a runtime already.
    ONCE.call_once(|| std::thread::spawn(handle_ignored_signals).join().unwrap());
}

fn handle_ignored_signals() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let _inside = runtime.enter();
    for kind in [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ] {
        // Where it is not ignored, it ends the tests themselves, as it should.
        if is_ignored(kind.as_raw_value()) {
            // The handler stays for good.
            drop(tokio::signal::unix::signal(kind).unwrap());
        }
    }
}

impl Place {
    pub fn new() -> Self {
        inherit_no_ignored_signals();
        Self {
            dir: TempDir::new().unwrap(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// A shell script.
    pub fn script(&self, name: &str, body: &str) -> PathBuf {
        let path = self.write(name, format!("#!/bin/sh\n{body}\n"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_apscli"));
        let path = std::env::var("PATH").unwrap();
        command
            .args(args)
            .current_dir(self.dir.path())
            .env(
                "PATH",
                format!("{}:{path}", PYTHON.parent().unwrap().display()),
            )
            .env("XDG_STATE_HOME", self.path("state"))
            .env_remove("VIRTUAL_ENV")
            .env_remove("APSCLI_METADATA")
            .stdin(Stdio::null());
        command
    }

    pub fn apscli(&self, args: &[&str]) -> Done {
        Done::new(&self.command(args).output().unwrap())
    }

    /// Runs a template with `--output json` and the run's folder `run`.
    pub fn run(&self, template: &str, more: &[&str]) -> Done {
        self.write("t.template", template);
        let mut args = vec![
            "run",
            "--template",
            "t.template",
            "--output",
            "json",
            "--log-dir",
            "run",
        ];
        args.extend(more);
        self.apscli(&args)
    }

    pub fn start(&self, args: &[&str]) -> Child {
        self.command(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Waits until a whole line stands in a file: a node has begun, and written it.
    pub fn until_written(&self, name: &str) -> String {
        until(name, || self.read(name).ends_with('\n'));
        self.read(name)
    }

    pub fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.path(name)).unwrap_or_default()).into_owned()
    }
}

pub fn finish(child: Child) -> Done {
    Done::new(&child.wait_with_output().unwrap())
}

/// Sends a signal to a started program.
pub fn signal(run: &Child, signal: Signal) {
    rustix::process::kill_process(Pid::from_child(run), signal).unwrap();
}

/// Waits for something that must come, and fails when it does not.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "it never came: {what}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a process lives (a zombie does not).
pub fn lives(pid: &str) -> bool {
    let pid = pid.trim();
    assert!(!pid.is_empty(), "no process was named");
    let stat = fs::read_to_string(Path::new("/proc").join(pid).join("stat")).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .and_then(|rest| rest.trim().chars().next())
        .is_some_and(|state| state != 'Z')
}
