//! The operator as a process: started, killed, held up and started again.
//!
//! Must not know why.

use std::fs::{File, OpenOptions};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How an operator is started.
pub struct Launch {
    pub program: PathBuf,
    pub namespace: String,
    pub api: SocketAddr,
    /// Whether it stands for election; without, there must be only one.
    pub elects: bool,
    pub log: PathBuf,
    /// How often it asks for what no watch has told.
    pub resync: Duration,
    /// More words for the command line.
    pub more: Vec<String>,
    /// More variables.
    pub variables: Vec<(String, String)>,
}

struct Inner {
    child: Option<Child>,
    environment: Vec<(String, String)>,
    starts: usize,
    /// It is not started any more.
    retired: bool,
    /// How it ended when nobody had killed it.
    accidents: Vec<String>,
}

/// One operator, of which there is one process at a time. It ends when this is dropped.
#[derive(Clone)]
pub struct Operator {
    launch: Arc<Launch>,
    inner: Arc<Mutex<Inner>>,
    /// Holds the kubeconfig.
    dir: Arc<TempDir>,
}

impl Operator {
    pub fn new(launch: Launch) -> Self {
        let dir = TempDir::new().unwrap();
        let api = launch.api;
        let text = format!(
            "{{apiVersion: v1, kind: Config, current-context: c, \
             clusters: [{{name: c, cluster: {{server: 'http://{api}'}}}}], \
             users: [{{name: c, user: {{}}}}], \
             contexts: [{{name: c, context: {{cluster: c, user: c}}}}]}}"
        );
        std::fs::write(dir.path().join("kubeconfig"), text).unwrap();
        let inner = Inner {
            child: None,
            environment: launch.variables.clone(),
            starts: 0,
            retired: false,
            accidents: Vec::new(),
        };
        Self {
            launch: Arc::new(launch),
            inner: Arc::new(Mutex::new(inner)),
            dir: Arc::new(dir),
        }
    }

    /// More variables for its next start.
    pub fn environment(&self, variables: &[(&str, &str)]) {
        let owned = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        self.inner.lock().unwrap().environment.extend(owned);
    }

    pub fn start(&self) {
        let mut inner = self.inner.lock().unwrap();
        if inner.retired {
            return;
        }
        assert!(inner.child.is_none(), "it runs already");
        let Launch {
            program,
            namespace,
            elects,
            log,
            resync,
            more,
            ..
        } = &*self.launch;
        let child = Command::new(program)
            .args(["operator", "--listen=127.0.0.1:0", "--node-image=fake"])
            .args(["--namespace", namespace, "--shared-namespace", namespace])
            .arg(format!("--leader-election={elects}"))
            .arg(format!("--resync={}", resync.as_secs()))
            .args(more)
            .env_clear()
            .envs(inner.environment.iter().cloned())
            .env("KUBECONFIG", self.dir.path().join("kubeconfig"))
            // A runner has its folder there.
            .env("TMPDIR", self.dir.path())
            .env("POD_NAMESPACE", namespace)
            .env("APSCLI_LOG", "info,apscli=debug")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(to(log))
            .spawn()
            .unwrap();
        inner.child = Some(child);
        inner.starts += 1;
    }

    /// Ends it at once; it is gone when this returns.
    pub fn kill(&self) {
        let child = self.inner.lock().unwrap().child.take();
        if let Some(mut child) = child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Ends it for good: whoever has killed it and means to start it again comes too late.
    pub fn retire(&self) {
        self.inner.lock().unwrap().retired = true;
        self.kill();
    }

    pub fn signal(&self, signal: Signal) {
        if let Some(child) = &self.inner.lock().unwrap().child {
            kill_process(Pid::from_child(child), signal).unwrap();
        }
    }

    /// Asks it to end and waits until it has.
    pub async fn end(&self) {
        self.signal(Signal::TERM);
        let child = self.inner.lock().unwrap().child.take();
        if let Some(mut child) = child {
            while child.try_wait().unwrap().is_none() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// Whether there is a process. One that ended by itself is taken note of.
    pub fn lives(&self) -> bool {
        let mut inner = self.inner.lock().unwrap();
        let Some(child) = &mut inner.child else {
            return false;
        };
        let Some(status) = child.try_wait().unwrap() else {
            return true;
        };
        inner.child = None;
        inner.accidents.push(status.to_string());
        false
    }

    /// Whether a runner of this operator, or of one that was killed, has left its folder.
    pub fn leaves_folders(&self) -> bool {
        let mut entries = std::fs::read_dir(self.dir.path()).unwrap();
        entries.any(|it| it.unwrap().file_name() != "kubeconfig")
    }

    pub fn starts(&self) -> usize {
        self.inner.lock().unwrap().starts
    }

    /// How it ended when nobody had killed it.
    pub fn accidents(&self) -> Vec<String> {
        self.inner.lock().unwrap().accidents.clone()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn to(log: &Path) -> File {
    let mut options = OpenOptions::new();
    options.create(true).append(true).open(log).unwrap()
}
