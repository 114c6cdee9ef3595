//! What the operator says about its own state: whether its loops still turn, and what it waits for.
//!
//! Must not find out anything by itself; who knows tells it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// State that the loops write and the server reads; clones are of the same.
///
/// Alive and ready are two questions: one whose caches are not filled yet needs time and no
/// restart, and one whose loop stands still needs a restart though its caches are full.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    loops: BTreeMap<String, Turning>,
    waits: BTreeMap<String, String>,
    /// That anything was ever asked for; before that, nothing is known.
    told: bool,
}

#[derive(Debug)]
struct Turning {
    last: Instant,
    limit: Duration,
}

/// One loop's sign of life. A loop whose pulse is dropped has ended as it should, unless it was
/// dropped by a panic.
#[derive(Debug)]
pub struct Pulse {
    health: Health,
    name: String,
}

/// Something without which the operator is not ready. One that is dropped is needed no more.
#[derive(Debug)]
pub struct Need {
    health: Health,
    what: String,
}

impl Health {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A loop that turns at least once within `limit`, and says so by [`Pulse::beat`]; it has just
    /// done so. Names must differ.
    #[must_use = "a pulse that is dropped is a loop that has ended"]
    pub fn pulse(&self, name: &str, limit: Duration) -> Pulse {
        let last = Instant::now();
        let turning = Turning { last, limit };
        self.inner().loops.insert(name.to_owned(), turning);
        Pulse {
            health: self.clone(),
            name: name.to_owned(),
        }
    }

    /// Something that is needed and not there yet, such as `the cache of pods`. Names must differ.
    #[must_use = "a need that is dropped is needed no more"]
    pub fn needs(&self, what: &str) -> Need {
        let mut inner = self.inner();
        inner.told = true;
        inner
            .waits
            .insert(what.to_owned(), "not there yet".to_owned());
        drop(inner);
        Need {
            health: self.clone(),
            what: what.to_owned(),
        }
    }

    /// Why something that is needed is not there yet. It is let pass where that is not needed, or
    /// no longer.
    pub fn because(&self, what: &str, why: &str) {
        if let Some(known) = self.inner().waits.get_mut(what) {
            why.clone_into(known);
        }
    }

    /// The loops that have not turned within their limit, one a line of words.
    ///
    /// # Errors
    /// If there is any such loop.
    pub fn alive(&self) -> Result<(), Vec<String>> {
        let now = Instant::now();
        let inner = self.inner();
        let late: Vec<String> = inner
            .loops
            .iter()
            .map(|(name, turning)| (name, now - turning.last, turning.limit))
            .filter(|(_, silent, limit)| silent > limit)
            .map(|(name, silent, limit)| {
                format!(
                    "{name}: has not turned for {} s, expected every {} s",
                    silent.as_secs(),
                    limit.as_secs()
                )
            })
            .collect();
        if late.is_empty() { Ok(()) } else { Err(late) }
    }

    /// What the operator waits for, one a line of words.
    ///
    /// # Errors
    /// If there is anything, or it has not got as far as to know.
    pub fn ready(&self) -> Result<(), Vec<String>> {
        let inner = self.inner();
        if !inner.told {
            return Err(vec!["the operator: has not begun".to_owned()]);
        }
        if inner.waits.is_empty() {
            return Ok(());
        }
        let waits = inner.waits.iter();
        Err(waits.map(|(what, why)| format!("{what}: {why}")).collect())
    }
}

impl Pulse {
    /// The loop has turned.
    pub fn beat(&self) {
        if let Some(turning) = self.health.inner().loops.get_mut(&self.name) {
            turning.last = Instant::now();
        }
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        self.health.inner().loops.remove(&self.name);
    }
}

impl Need {
    /// It is there.
    pub fn met(&self) {
        self.health.inner().waits.remove(&self.what);
    }

    /// It is not there, or no longer, and why.
    pub fn missing(&self, why: &str) {
        let mut inner = self.health.inner();
        inner.waits.insert(self.what.clone(), why.to_owned());
    }
}

impl Drop for Need {
    fn drop(&mut self) {
        self.health.inner().waits.remove(&self.what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_stands_still_is_told_by_name() {
        let health = Health::default();
        assert_eq!(health.alive(), Ok(()));
        let runs = health.pulse("runs", Duration::from_secs(30));
        let pods = health.pulse("pods", Duration::from_secs(60));
        tokio::time::advance(Duration::from_secs(31)).await;
        pods.beat();
        assert_eq!(
            health.alive(),
            Err(vec![
                "runs: has not turned for 31 s, expected every 30 s".to_owned()
            ])
        );
        runs.beat();
        assert_eq!(health.alive(), Ok(()));
        tokio::time::advance(Duration::from_secs(31)).await;
        drop(runs);
        assert_eq!(health.alive(), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_panicked_has_not_ended_as_it_should() {
        let health = Health::default();
        let pulse = health.pulse("runs", Duration::from_secs(30));
        let task = tokio::spawn(async move {
            pulse.beat();
            panic!("for the test");
        });
        assert!(task.await.is_err());
        tokio::time::advance(Duration::from_secs(31)).await;
        assert!(health.alive().is_err());
    }

    #[test]
    fn ready_when_all_that_is_needed_is_there() {
        let health = Health::default();
        assert_eq!(
            health.ready(),
            Err(vec!["the operator: has not begun".to_owned()])
        );
        let kinds = health.needs("the resource workflowruns.apscli.dev");
        let pods = health.needs("the cache of pods");
        pods.met();
        kinds.missing("the server does not know it");
        assert_eq!(
            health.ready(),
            Err(vec![
                "the resource workflowruns.apscli.dev: the server does not know it".to_owned()
            ])
        );
        kinds.met();
        assert_eq!(health.ready(), Ok(()));
        pods.missing("the watch was refused");
        assert_eq!(
            health.ready(),
            Err(vec!["the cache of pods: the watch was refused".to_owned()])
        );
        drop(pods);
        assert_eq!(health.ready(), Ok(()));
    }

    #[test]
    fn a_reason_is_told_only_of_what_is_needed() {
        let health = Health::default();
        let pods = health.needs("the cache of pods");
        health.because("the cache of pods", "it is refused");
        health.because("the cache of dogs", "nobody asked");
        let told = health.ready().unwrap_err();
        assert_eq!(told, ["the cache of pods: it is refused"]);
        pods.met();
        health.because("the cache of pods", "it is refused again");
        assert_eq!(health.ready(), Ok(()));
    }
}
