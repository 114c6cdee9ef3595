//! How soon a run may tell of itself where nothing waits for that: the longer, the more runs wait
//! beside it.
//!
//! What is told must not slow the work down, however many runs have something to tell. So a run waits
//! twice as long as a write takes for each that waits already: about half a write of that kind is in
//! flight, whatever the number of runs, and less is told the slower the API server answers.
//!
//! Must not make anybody wait: it says when, and who has more urgent news writes without a ticket.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A run waits this many times as long as a write takes, for each that waits beside it.
const SPARE: u32 = 2;
/// However slow writes are, it waits no longer for each: with a thousand runs not two minutes.
const LONGEST: Duration = Duration::from_millis(100);
/// What a write is taken to last before one was seen.
const UNSEEN: Duration = Duration::from_millis(10);
/// The weight of what was known of how long a write takes, against one that is new.
const MEMORY: u32 = 15;

/// Gives out tickets to all runs.
#[derive(Debug)]
pub(super) struct Pacer {
    /// Tickets that are out.
    waiting: Arc<AtomicU32>,
    /// How long a write takes: a moving average.
    takes: Mutex<Duration>,
}

/// A run's leave to write. It is to be kept until that write is answered: as long as it exists,
/// others wait for it.
#[derive(Debug)]
pub(super) struct Ticket {
    /// Not before.
    pub(super) at: Instant,
    waiting: Arc<AtomicU32>,
}

impl Default for Pacer {
    fn default() -> Self {
        Self {
            waiting: Arc::default(),
            takes: Mutex::new(UNSEEN),
        }
    }
}

impl Pacer {
    pub(super) fn ticket(&self, now: Instant) -> Ticket {
        let takes = *self.takes.lock().unwrap_or_else(PoisonError::into_inner);
        let for_each = takes.saturating_mul(SPARE).min(LONGEST);
        let before = self.waiting.fetch_add(1, Relaxed);
        Ticket {
            at: now + for_each.saturating_mul(before),
            waiting: Arc::clone(&self.waiting),
        }
    }

    /// A write took so long, with its wait for a place among those in flight.
    pub(super) fn took(&self, time: Duration) {
        let mut takes = self.takes.lock().unwrap_or_else(PoisonError::into_inner);
        *takes = takes.saturating_mul(MEMORY).saturating_add(time) / (MEMORY + 1);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.waiting.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{LONGEST, Pacer, UNSEEN};

    /// For how long a run waits behind one other.
    fn behind_one(pacer: &Pacer, now: Instant) -> Duration {
        let _first = pacer.ticket(now);
        pacer.ticket(now).at - now
    }

    #[test]
    fn a_run_waits_for_those_that_wait_and_for_nobody_else() {
        let (pacer, now) = (Pacer::default(), Instant::now());
        let mut tickets: Vec<_> = (0..100).map(|_| pacer.ticket(now)).collect();
        for (before, ticket) in (0..).zip(&tickets) {
            assert_eq!(ticket.at, now + UNSEEN * 2 * before);
        }
        // Most of them are over, or had something urgent to tell.
        tickets.truncate(3);
        assert_eq!(pacer.ticket(now).at, now + UNSEEN * 2 * 3);
        tickets.clear();
        assert_eq!(pacer.ticket(now).at, now);
    }

    #[test]
    fn the_wait_follows_how_long_a_write_takes_within_bounds() {
        let (pacer, now) = (Pacer::default(), Instant::now());
        for _ in 0..200 {
            pacer.took(Duration::from_millis(3));
        }
        let quick = behind_one(&pacer, now);
        assert!(quick.abs_diff(Duration::from_millis(6)) < Duration::from_millis(1));
        for _ in 0..200 {
            pacer.took(Duration::from_secs(30));
        }
        assert_eq!(behind_one(&pacer, now), LONGEST);
        pacer.took(Duration::MAX);
        assert_eq!(behind_one(&pacer, now), LONGEST);
    }
}
