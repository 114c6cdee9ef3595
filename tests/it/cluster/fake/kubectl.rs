//! A namespace of one's own on the lent cluster, and `kubectl` in it. Must not know what is tested.

use std::env;
use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Once, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use serde_json::{Value, json};

use super::KUBECONFIG;

/// The definitions are the cluster's, and all tests share them.
static DEFINITIONS: Once = Once::new();

/// Who counts what the whole cluster does has to be alone with it.
static COMPANY: RwLock<()> = RwLock::new(());

/// Held as long as a test uses the cluster.
#[allow(dead_code, reason = "they are held, not looked at")]
enum Turn {
    WithOthers(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
}

/// A namespace of its own, for `kubectl`.
pub struct Cluster {
    pub namespace: String,
    _turn: Option<Turn>,
}

/// What a command said.
#[derive(Debug)]
pub struct Said {
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Said {
    /// What it printed; it must have succeeded.
    pub fn ok(self) -> String {
        assert!(self.success, "{}{}", self.stdout, self.stderr);
        self.stdout
    }
}

/// The lent cluster's kubeconfig.
pub fn kubeconfig() -> OsString {
    env::var_os(KUBECONFIG)
        .unwrap_or_else(|| panic!("{KUBECONFIG} is not set: run this by tests/cluster/with"))
}

impl Cluster {
    pub fn new(test: &str) -> Self {
        let turn = COMPANY.read().unwrap_or_else(PoisonError::into_inner);
        Self::make(test, Some(Turn::WithOthers(turn)))
    }

    /// No other test of this process works on the cluster meanwhile.
    pub fn alone(test: &str) -> Self {
        let turn = COMPANY.write().unwrap_or_else(PoisonError::into_inner);
        Self::make(test, Some(Turn::Alone(turn)))
    }

    /// A further namespace for who has one.
    #[allow(clippy::unused_self, reason = "only who has the cluster may")]
    pub fn beside(&self, test: &str) -> Self {
        Self::make(test, None)
    }

    fn make(test: &str, turn: Option<Turn>) -> Self {
        let cluster = Self {
            namespace: format!("{test}-{}", std::process::id()),
            _turn: turn,
        };
        DEFINITIONS.call_once(|| {
            let crds = Path::new(env!("CARGO_MANIFEST_DIR")).join("crds");
            let crds = crds.to_str().unwrap();
            cluster.kubectl(&["apply", "-f", crds], "").ok();
            let established = "--for=condition=Established";
            let args = ["wait", established, "--timeout=60s", "-f", crds];
            cluster.kubectl(&args, "").ok();
        });
        // Held to the `restricted` standard, so that every pod of a test is.
        cluster.create(
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {
                "name": cluster.namespace,
                "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
            }}),
        );
        // A controller makes it a moment later; before that pods are refused.
        let account = [
            "wait",
            "--for=create",
            "serviceaccount/default",
            "--timeout=60s",
        ];
        cluster.kubectl(&account, "").ok();
        cluster
    }

    /// Runs `kubectl` in the namespace.
    pub fn kubectl(&self, args: &[&str], stdin: &str) -> Said {
        let mut command = Command::new("kubectl");
        command.arg("--namespace").arg(&self.namespace).args(args);
        run_with(command, stdin)
    }

    /// Runs `kubectl` on objects that say themselves where they belong.
    #[allow(clippy::unused_self, reason = "only who has the cluster may")]
    pub fn anywhere(&self, args: &[&str], stdin: &str) -> Said {
        let mut command = Command::new("kubectl");
        command.args(args);
        run_with(command, stdin)
    }

    /// Runs the program that was just built, in the namespace.
    pub fn apscli(&self, args: &[&str]) -> Said {
        let mut command = Command::new(env!("CARGO_BIN_EXE_apscli"));
        command.args(args).arg("--namespace").arg(&self.namespace);
        run_with(command, "")
    }

    pub fn create(&self, object: &Value) {
        let args = ["create", "-f", "-"];
        self.kubectl(&args, &object.to_string()).ok();
    }

    /// What the API server would keep of an object.
    pub fn try_out(&self, object: &Value) -> Value {
        let args = ["create", "--dry-run=server", "-o", "json", "-f", "-"];
        let kept = self.kubectl(&args, &object.to_string()).ok();
        serde_json::from_str(&kept).unwrap()
    }

    pub fn refuses(&self, object: &Value, words: &str) {
        let args = ["create", "--dry-run=server", "-f", "-"];
        let said = self.kubectl(&args, &object.to_string());
        assert!(
            !said.success && said.stderr.contains(words),
            "{object}\nexpected `{words}`, but kubectl said\n{}{}",
            said.stdout,
            said.stderr
        );
    }

    /// Objects as JSON; `what` are kubectl's words for them.
    pub fn get(&self, what: &[&str]) -> Value {
        let mut args = vec!["get", "-o", "json"];
        args.extend(what);
        serde_json::from_str(&self.kubectl(&args, "").ok()).unwrap()
    }

    /// A run as JSON, with the fields and who wrote them.
    pub fn run(&self, name: &str) -> Value {
        self.get(&["workflowrun", name, "--show-managed-fields"])
    }

    /// Waits as people do; `seconds` is for a machine that is busy.
    pub fn wait(&self, what: &str, wanted: &str, seconds: u32) {
        let timeout = format!("--timeout={seconds}s");
        let wanted = format!("--for={wanted}");
        let said = self.kubectl(&["wait", &wanted, &timeout, what], "");
        if !said.success {
            let now = self.kubectl(&["get", what, "-o", "yaml"], "").stdout;
            panic!("{what} is not {wanted}: {}\n{now}", said.stderr);
        }
    }

    pub fn merge(&self, what: &str, patch: &Value) {
        let patch = patch.to_string();
        let args = ["patch", what, "--type=merge", "-p", &patch];
        self.kubectl(&args, "").ok();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Half of a failed test may be gone already; who sees the failure must not miss it.
        if env::var_os(KUBECONFIG).is_none() {
            return;
        }
        let args = ["delete", "namespace", &self.namespace, "--wait=false"];
        let _ = self.kubectl(&args, "");
    }
}

fn run_with(mut command: Command, stdin: &str) -> Said {
    let mut child = command
        .env("KUBECONFIG", kubeconfig())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("tests/cluster/with puts kubectl into the PATH");
    let mut pipe = child.stdin.take().unwrap();
    // Who does not read it may have ended.
    let _ = pipe.write_all(stdin.as_bytes());
    drop(pipe);
    let output = child.wait_with_output().unwrap();
    Said {
        success: output.status.success(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

pub fn run(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "apscli.dev/v1alpha1",
        "kind": "WorkflowRun",
        "metadata": {"name": name},
        "spec": spec,
    })
}

pub fn service(spec: &Value) -> Value {
    json!({
        "apiVersion": "apscli.dev/v1alpha1",
        "kind": "Service",
        "metadata": {"name": "s"},
        "spec": spec,
    })
}
