//! The built operator as a process outside the cluster, and what it counts.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::kubectl::{Cluster, kubeconfig};
use crate::operator_command::get;

/// How long the operator may take to begin on a busy machine.
const PATIENCE: Duration = Duration::from_mins(3);

/// How much of the log a failed test shows.
const LAST_LINES: usize = 60;

pub struct Operator {
    child: Child,
    address: String,
    dir: TempDir,
}

impl Operator {
    /// One that looks after this namespace only, so that tests do not meet.
    pub fn of(cluster: &Cluster) -> Self {
        let namespace = format!("--namespace={}", cluster.namespace);
        let shared = format!("--shared-namespace={}", cluster.namespace);
        Self::start(
            &kubeconfig(),
            &[],
            &[&namespace, &shared, "--leader-election=false"],
        )
    }

    /// With these words and variables, as whom the kubeconfig says.
    pub fn start(kubeconfig: &OsStr, variables: &[(&str, &str)], words: &[&str]) -> Self {
        let program = Command::new(env!("CARGO_BIN_EXE_apscli"));
        Self::start_by(program, kubeconfig, variables, words)
    }

    /// The same by a command that is the program.
    pub fn start_by(
        mut program: Command,
        kubeconfig: &OsStr,
        variables: &[(&str, &str)],
        words: &[&str],
    ) -> Self {
        let dir = TempDir::new().unwrap();
        let log = dir.path().join("log");
        let child = program
            .args(["operator", "--listen=127.0.0.1:0", "--log-format=json"])
            .args(words)
            .env_clear()
            .env("KUBECONFIG", kubeconfig)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut operator = Self {
            child,
            address: String::new(),
            dir,
        };
        operator.until("its address", |operator| {
            let log = operator.log();
            let first = log.lines().next().unwrap_or_default();
            let begins: Value = serde_json::from_str(first).unwrap_or_default();
            let address = begins["address"].as_str().unwrap_or_default();
            address.clone_into(&mut operator.address);
            !operator.address.is_empty()
        });
        operator
    }

    /// Waits until it has looked around.
    pub fn ready(mut self) -> Self {
        self.until("ready", |operator| {
            get(&operator.address, "/readyz").starts_with("HTTP/1.1 200 ")
        });
        self
    }

    fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        let begun = Instant::now();
        while !holds(self) {
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && begun.elapsed() < PATIENCE,
                "the operator is not {what} ({ended:?}): {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// The body of `/readyz`.
    pub fn readiness(&self) -> String {
        get(&self.address, "/readyz")
    }

    pub fn metrics(&self) -> Metrics {
        let answer = get(&self.address, "/metrics");
        Metrics::read(answer.split_once("\r\n\r\n").unwrap().1)
    }

    /// Asks it to end and waits for that.
    pub fn ends(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.log());
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        // A test that fails waits for something that it did not do: why, its log may say.
        if std::thread::panicking() {
            let state = self.child.try_wait();
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
            eprintln!("the operator ({state:?}) said last\n{}", last.join("\n"));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One line of metrics.
#[derive(Debug)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// Metrics in the Prometheus text format.
#[derive(Debug)]
pub struct Metrics {
    pub samples: Vec<Sample>,
    pub text: String,
}

impl Metrics {
    pub fn read(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let samples = samples.filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            // No value of a label that is asked for here holds a comma.
            let labels = labels.trim_end_matches('}').split(',');
            let labels = labels.filter_map(|label| {
                let (name, value) = label.split_once('=')?;
                Some((name.to_owned(), value.trim_matches('"').to_owned()))
            });
            Some(Sample {
                name: name.to_owned(),
                labels: labels.collect(),
                value: value.parse().ok()?,
            })
        });
        Self {
            samples: samples.collect(),
            text: text.to_owned(),
        }
    }

    /// The sum of all series of this name whose labels are as wanted.
    pub fn sum(&self, name: &str, wanted: impl Fn(&BTreeMap<String, String>) -> bool) -> f64 {
        let of = |it: &&Sample| it.name == name && wanted(&it.labels);
        self.samples.iter().filter(of).map(|it| it.value).sum()
    }

    /// Calls of the operator that change something.
    pub fn writes(&self) -> f64 {
        self.sum("apscli_api_calls_total", |labels| {
            !["get", "list", "watch"].contains(&labels["verb"].as_str())
        })
    }

    /// Turns of the operator's loop for runs.
    pub fn turns(&self) -> f64 {
        self.sum("apscli_reconcile_seconds_count", |labels| {
            labels["resource"] == "workflowruns"
        })
    }

    /// The time in a histogram of seconds that so large a part of what came after `before` kept to:
    /// its bucket's upper end. None: nothing came.
    pub fn quantile(&self, before: &Self, histogram: &str, part: f64) -> Option<f64> {
        let name = format!("{histogram}_bucket");
        let up_to = |metrics: &Self, le: &str| metrics.sum(&name, |labels| labels["le"] == le);
        let ends = self.samples.iter().filter(|it| it.name == name);
        let ends = ends.map(|it| it.labels["le"].as_str());
        let ends: Vec<(&str, f64)> = ends
            .map(|le| (le, up_to(self, le) - up_to(before, le)))
            .collect();
        let all = ends.last().map_or(0.0, |(_, count)| *count);
        let found = ends.iter().find(|(_, count)| *count >= part * all);
        let (le, _) = found.filter(|_| all > 0.0)?;
        Some(le.parse().unwrap_or(f64::INFINITY))
    }

    /// Bytes of bodies that were sent.
    pub fn sent(&self) -> f64 {
        self.sum("apscli_api_sent_bytes_total", |_| true)
    }

    /// Calls by verb and resource, for people.
    pub fn calls(&self) -> String {
        let calls = self.samples.iter();
        let calls = calls.filter(|it| it.name == "apscli_api_calls_total");
        let line = |it: &Sample| {
            let [verb, resource, code] = ["verb", "resource", "code"].map(|name| &it.labels[name]);
            format!("  {} × {verb} {resource}: {code}\n", it.value)
        };
        calls.map(line).collect()
    }
}
