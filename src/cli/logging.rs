//! The log of a program that runs for long: lines to stderr, for people or for machines.
//!
//! Secrets are kept out at the source: nothing here or in the operator writes the body of a request
//! or an answer. One library does, and is silenced.
//!
//! Must not be used by commands that a person waits for; those use the [`printer`](super::printer).

use std::io::{self, IsTerminal};

use clap::ValueEnum;
use tracing::level_filters::LevelFilter;
use tracing::{Subscriber, subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;

use super::Failure;
use super::shown::LogLines;

/// How a line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Begins to log.
///
/// # Errors
/// If a log was begun before.
pub fn start(filter: Targets, format: Format) -> Result<(), Failure> {
    let colours = io::stderr().is_terminal();
    subscriber::set_global_default(log(filter, format, colours, io::stderr))?;
    Ok(())
}

/// Reads a filter: a level for this program (`error`, `warn`, `info`, `debug`, `trace`, `off`), or
/// directives such as `info,kube_runtime=debug`, where a word alone is for everything.
///
/// # Errors
/// In words, for a text that is neither.
pub fn filter(text: &str) -> Result<Targets, String> {
    let filter = if let Ok(level) = text.parse::<LevelFilter>() {
        Targets::new()
            .with_default(level.min(LevelFilter::WARN))
            .with_target("apscli", level)
    } else {
        text.parse::<Targets>().map_err(|error| {
            format!("{error}; expected a level such as `info`, or `info,kube_runtime=debug`")
        })?
    };
    // It writes answers that it cannot read, whole, and those may be anything.
    Ok(filter.with_target("kube_client::client", LevelFilter::OFF))
}

fn log<W>(
    filter: Targets,
    format: Format,
    colours: bool,
    writer: W,
) -> impl Subscriber + Send + Sync + 'static
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = match format {
        Format::Text => (fmt::layer().with_ansi(colours))
            .with_writer(LogLines::new(writer, colours))
            .boxed(),
        // It has no line feeds but at the ends of lines.
        Format::Json => (fmt::layer().with_writer(writer))
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(filter))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use serde_json::{Value, json};
    use tracing::{info, warn};

    use super::*;
    use crate::operator::spans;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(level: &str, format: Format, say: impl FnOnce()) -> String {
        let page = Page::default();
        let writer = page.clone();
        let log = log(filter(level).unwrap(), format, false, move || {
            writer.clone()
        });
        subscriber::with_default(log, say);
        let bytes = page.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn about_a_node() {
        let run = spans::run("shop", "two\nlines", "0b7f").entered();
        let node = spans::node("d-1", 2).entered();
        info!("is heard at info");
        warn!(reason = "Lost", "is gone");
        drop(node);
        drop(run);
    }

    #[test]
    fn run_and_node_are_on_every_line() {
        let text = logged("warn", Format::Json, about_a_node);
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["message"], "is gone");
        assert_eq!(line["reason"], "Lost");
        assert_eq!(
            line["spans"],
            json!([
                {"name": "run", "namespace": "shop", "run": "two\nlines", "uid": "0b7f"},
                {"name": "node", "node": "d-1", "attempt": 2},
            ])
        );
        let text = logged("info", Format::Text, about_a_node);
        assert_eq!(text.lines().count(), 2, "{text}");
        for line in text.lines() {
            assert!(
                line.contains(r#"run{namespace="shop" run="two\nlines" uid="0b7f"}:node{node="d-1" attempt=2}"#),
                "{line}"
            );
        }
    }

    #[test]
    fn error_of_several_lines_is_one_line() {
        for format in [Format::Text, Format::Json] {
            let text = logged("info", format, || {
                let error = io::Error::other("a\n2026 ERROR forged: b\u{1b}[2J\r");
                warn!(%error, "cannot do it: {error}");
            });
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(!text.trim_end().contains(char::is_control), "{text:?}");
        }
    }

    #[test]
    fn what_libraries_say_of_bodies_is_not_written() {
        let say = || {
            warn!(target: "kube_client::client", "the whole answer");
            warn!(target: "kube_runtime::watcher", "a watch ended");
            info!(target: "kube_runtime::watcher", "of no interest");
        };
        let text = logged("trace", Format::Text, say);
        assert!(text.contains("a watch ended"), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        let text = logged("trace,kube_client=trace", Format::Text, say);
        assert!(!text.contains("the whole answer"), "{text}");
        assert_eq!(text.lines().count(), 2, "{text}");
    }

    #[test]
    fn a_filter_that_is_none_is_told() {
        let error = filter("apscli=loud").unwrap_err();
        assert!(error.contains("expected a level such as `info`"), "{error}");
    }
}
