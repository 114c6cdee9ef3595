//! What the operator counts and times, in the Prometheus text format.
//!
//! No label value comes from a user: every one is a word of this program, a part of a path that
//! this program wrote, or a status code, so that the number of series has a bound.
//!
//! Must not hold a socket; the server serves it.

use std::fmt;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// The media type of [`Metrics::text`].
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What kind of call to the API a count is of.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Kind {
    /// The verb as RBAC knows it: `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`,
    /// `deletecollection`.
    pub verb: &'static str,
    /// The API group; empty for the core group.
    pub group: String,
    /// The resource in the plural, with its subresource as RBAC writes it: `pods`,
    /// `workflowruns/status`. Empty for a path that is no resource's, such as `/version`.
    pub resource: String,
}

/// A kind of call with what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    verb: &'static str,
    group: String,
    resource: String,
    code: String,
}

/// What came of a call to the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// An HTTP status.
    Status(u16),
    /// No answer before the deadline of the call.
    Deadline,
    /// No connection, or it broke.
    Broken,
    /// It was not sent, because this process does not lead.
    Refused,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "{status}"),
            Self::Deadline => f.write_str("deadline"),
            Self::Broken => f.write_str("broken"),
            Self::Refused => f.write_str("refused"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Phase {
    phase: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Cache {
    cache: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Resource {
    resource: &'static str,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// Counts and times; one for the whole process, shared by reference.
pub struct Metrics {
    registry: Registry,
    leads: Gauge,
    runs: Family<Phase, Gauge>,
    nodes: Histograms<Phase>,
    turns: Histograms<Resource>,
    calls: Family<Answered, Counter>,
    sent: Family<Kind, Counter>,
    queue: Histogram,
    handoff: Histogram,
    caches: Family<Cache, Gauge>,
}

/// From 1 ms, doubled up to 33 s: what a person or a chain of nodes waits for.
fn waits() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 16))
}

/// From 63 µs, doubled up to 33 s: an operator that keeps pace takes less than 1 ms.
fn handoffs() -> Histogram {
    Histogram::new(exponential_buckets(0.001 / 16.0, 2.0, 20))
}

/// From 10 µs up to 2.6 s: work of one turn, which awaits nothing.
fn turns() -> Histogram {
    Histogram::new(exponential_buckets(0.00001, 4.0, 10))
}

/// From 0.25 s up to 18 h: what a node does.
fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.25, 4.0, 10))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("apscli");
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "What is running", build);
        let metrics = Self {
            leads: Gauge::default(),
            runs: Family::default(),
            nodes: Family::new_with_constructor(durations),
            turns: Family::new_with_constructor(turns),
            calls: Family::default(),
            sent: Family::default(),
            queue: waits(),
            handoff: handoffs(),
            caches: Family::default(),
            registry: Registry::default(),
        };
        registry.register(
            "leads",
            "1 on the replica that leads, 0 on the others",
            metrics.leads.clone(),
        );
        registry.register(
            "runs",
            "WorkflowRuns that the operator knows, by phase",
            metrics.runs.clone(),
        );
        registry.register_with_unit(
            "node_duration",
            "Times from a node's start to its end, by the phase it ended in",
            Unit::Seconds,
            metrics.nodes.clone(),
        );
        registry.register_with_unit(
            "reconcile",
            "Times of one turn of the loop, without what it sets off",
            Unit::Seconds,
            metrics.turns.clone(),
        );
        registry.register(
            "api_calls",
            "Calls to the Kubernetes API, by verb, resource and status",
            metrics.calls.clone(),
        );
        registry.register_with_unit(
            "api_sent",
            "Bodies sent to the Kubernetes API, by verb and resource",
            Unit::Bytes,
            metrics.sent.clone(),
        );
        registry.register_with_unit(
            "write_queue",
            "Times that writes waited until fewer than the allowed number were in flight",
            Unit::Seconds,
            metrics.queue.clone(),
        );
        registry.register_with_unit(
            "handoff",
            "Times from the news that a node's pod has ended to sending the next pod's creation",
            Unit::Seconds,
            metrics.handoff.clone(),
        );
        registry.register_with_unit(
            "cache",
            "Memory that what is held takes, approximately, by cache",
            Unit::Bytes,
            metrics.caches.clone(),
        );
        Self {
            registry,
            ..metrics
        }
    }
}

impl Metrics {
    /// All of it, as `OpenMetrics` text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a String does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    /// Whether this process leads.
    pub fn set_leads(&self, leads: bool) {
        self.leads.set(i64::from(leads));
    }

    /// A run has come (`from` is none), has gone (`to` is none), or has another phase.
    pub fn run_moved(&self, from: Option<&'static str>, to: Option<&'static str>) {
        if from == to {
            return;
        }
        if let Some(phase) = from {
            self.runs.get_or_create(&Phase { phase }).dec();
        }
        if let Some(phase) = to {
            self.runs.get_or_create(&Phase { phase }).inc();
        }
    }

    /// A node has ended in a phase, so long after its start.
    pub fn node_ended(&self, phase: &'static str, took: Duration) {
        self.nodes
            .get_or_create(&Phase { phase })
            .observe(took.as_secs_f64());
    }

    /// One turn of the loop for an object of this resource (`workflowruns`, `services`).
    pub fn turned(&self, resource: &'static str, took: Duration) {
        self.turns
            .get_or_create(&Resource { resource })
            .observe(took.as_secs_f64());
    }

    /// A call to the API was answered, or not. `sent` is the length of its body in bytes.
    pub fn called(&self, kind: &Kind, answer: Answer, sent: u64) {
        let Kind {
            verb,
            group,
            resource,
        } = kind.clone();
        let answered = Answered {
            verb,
            group,
            resource,
            code: answer.to_string(),
        };
        self.calls.get_or_create(&answered).inc();
        if sent > 0 && answer != Answer::Refused {
            self.sent.get_or_create(kind).inc_by(sent);
        }
    }

    /// How often a kind of call had this answer.
    #[must_use]
    pub fn calls(&self, kind: &Kind, answer: Answer) -> u64 {
        let Kind {
            verb,
            group,
            resource,
        } = kind.clone();
        let answered = Answered {
            verb,
            group,
            resource,
            code: answer.to_string(),
        };
        self.calls.get(&answered).map_or(0, |count| count.get())
    }

    /// A write has waited so long for a slot.
    pub fn queued(&self, waited: Duration) {
        self.queue.observe(waited.as_secs_f64());
    }

    /// A cache (`runs`, `programs`, `catalog`, `shared_catalog`) holds so many bytes.
    pub fn cache_holds(&self, cache: &'static str, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.caches.get_or_create(&Cache { cache }).set(bytes);
    }

    /// So long after the news that a pod has ended, the creation of a dependant's was sent.
    pub fn handed_off(&self, took: Duration) {
        self.handoff.observe(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_tells_what_happened() {
        let metrics = Metrics::default();
        metrics.set_leads(true);
        metrics.run_moved(None, Some("Pending"));
        metrics.run_moved(Some("Pending"), Some("Running"));
        metrics.run_moved(Some("Running"), Some("Running"));
        metrics.node_ended("Succeeded", Duration::from_millis(300));
        metrics.turned("workflowruns", Duration::from_micros(50));
        metrics.queued(Duration::from_millis(3));
        metrics.handed_off(Duration::from_millis(7));
        metrics.cache_holds("runs", 4096);
        let kind = Kind {
            verb: "create",
            group: String::new(),
            resource: "pods".to_owned(),
        };
        metrics.called(&kind, Answer::Status(201), 1200);
        metrics.called(&kind, Answer::Status(201), 1300);
        metrics.called(&kind, Answer::Refused, 1300);
        assert_eq!(metrics.calls(&kind, Answer::Status(201)), 2);
        assert_eq!(metrics.calls(&kind, Answer::Status(409)), 0);
        let text = metrics.text();
        for line in [
            "apscli_leads 1",
            "apscli_runs{phase=\"Pending\"} 0",
            "apscli_runs{phase=\"Running\"} 1",
            "apscli_node_duration_seconds_bucket{le=\"1.0\",phase=\"Succeeded\"} 1",
            "apscli_node_duration_seconds_sum{phase=\"Succeeded\"} 0.3",
            "apscli_reconcile_seconds_count{resource=\"workflowruns\"} 1",
            "apscli_cache_bytes{cache=\"runs\"} 4096",
            "apscli_write_queue_seconds_sum 0.003",
            "apscli_handoff_seconds_bucket{le=\"0.008\"} 1",
            "apscli_handoff_seconds_bucket{le=\"0.004\"} 0",
            "apscli_api_calls_total{verb=\"create\",group=\"\",resource=\"pods\",code=\"201\"} 2",
            "apscli_api_calls_total{verb=\"create\",group=\"\",resource=\"pods\",code=\"refused\"} 1",
            "apscli_api_sent_bytes_total{verb=\"create\",group=\"\",resource=\"pods\"} 2500",
        ] {
            assert!(text.lines().any(|had| had == line), "{line}\nin\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
