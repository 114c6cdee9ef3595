//! How much the operator holds for whom: what its caches take, in bytes, and a bound on it.
//!
//! Tenants share one operator, and each can make any number of objects. So each kind of thing that is
//! held has a pool, and a namespace may take no more of a pool than twice what is left for all others
//! (the "dynamic threshold" of shared packet buffers: Choudhury and Hahne, 1998). Alone it gets
//! two thirds; beside ten greedy namespaces each gets a tenth, and half of that is left for the next.
//!
//! Large templates are read one at a time, and each namespace waits with one of them at the most, so
//! that a thousand of one namespace do not stand before one of another.
//!
//! Must not know what is held.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::metrics::Metrics;

/// A share of the memory, for one kind of thing.
#[derive(Clone)]
pub(super) struct Pool(Arc<Shared>);

struct Shared {
    cache: &'static str,
    most: usize,
    /// Whether a namespace has only its share.
    is_shared_out: bool,
    held: Mutex<Held>,
    metrics: Arc<Metrics>,
    /// Something was given back.
    freed: Notify,
}

#[derive(Default)]
struct Held {
    all: usize,
    by_namespace: BTreeMap<String, usize>,
}

impl Held {
    fn of(&self, namespace: &str) -> usize {
        self.by_namespace
            .get(namespace)
            .copied()
            .unwrap_or_default()
    }

    /// Whether so many bytes more are in this namespace's share.
    fn fits(&self, pool: &Shared, namespace: &str, more: usize) -> bool {
        let left = pool.most.saturating_sub(self.all);
        if !pool.is_shared_out {
            return more <= left;
        }
        let after = left.checked_sub(more);
        after.is_some_and(|after| self.of(namespace).saturating_add(more) <= 2 * after)
    }
}

/// Something that is held, while it is.
pub(super) struct Charge {
    pool: Pool,
    namespace: String,
    bytes: usize,
}

impl Pool {
    /// A pool of so many bytes; `cache` is its name in the metrics.
    pub(super) fn new(cache: &'static str, most: usize, metrics: Arc<Metrics>) -> Self {
        Self::make(cache, most, metrics, true)
    }

    /// One for a single namespace, which may take all of it.
    pub(super) fn of_one(cache: &'static str, most: usize, metrics: Arc<Metrics>) -> Self {
        Self::make(cache, most, metrics, false)
    }

    fn make(cache: &'static str, most: usize, metrics: Arc<Metrics>, is_shared_out: bool) -> Self {
        metrics.cache_holds(cache, 0);
        Self(Arc::new(Shared {
            cache,
            most,
            is_shared_out,
            held: Mutex::default(),
            metrics,
            freed: Notify::new(),
        }))
    }

    /// Takes so many bytes for this namespace; none where that is more than its share.
    pub(super) fn take(&self, namespace: &str, bytes: usize) -> Option<Charge> {
        let mut held = self.held();
        held.fits(&self.0, namespace, bytes).then(|| {
            self.add(&mut held, namespace, bytes);
            self.charge(namespace, bytes)
        })
    }

    /// Takes so many bytes, whatever is left. Only for what has a bound of its own.
    pub(super) fn take_always(&self, namespace: &str, bytes: usize) -> Charge {
        self.add(&mut self.held(), namespace, bytes);
        self.charge(namespace, bytes)
    }

    /// Whether so many bytes would be given to this namespace now.
    pub(super) fn has_room(&self, namespace: &str, bytes: usize) -> bool {
        self.held().fits(&self.0, namespace, bytes)
    }

    /// The most that one thing may be: what a namespace gets that is alone.
    pub(super) fn largest(&self) -> usize {
        self.0.most / 3 * 2
    }

    /// Comes back when something was given back since the last time.
    pub(super) async fn freed(&self) {
        self.0.freed.notified().await;
    }

    /// Why something of this size is not held, for its author. It does not say what others hold: the
    /// same is said as long as it is so.
    pub(super) fn refusal(&self, namespace: &str, bytes: usize) -> String {
        format!(
            "it takes {bytes} bytes of the operator's memory, and namespace {namespace} has its share \
             of the cache `{}` ({} bytes for all namespaces) already: expected no more of one \
             namespace than twice what is left for the others. Make it smaller, or delete others",
            self.0.cache, self.0.most,
        )
    }

    fn charge(&self, namespace: &str, bytes: usize) -> Charge {
        Charge {
            pool: self.clone(),
            namespace: namespace.to_owned(),
            bytes,
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Counts are whole whenever the lock is free, also after a panic elsewhere.
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, held: &mut Held, namespace: &str, bytes: usize) {
        held.all += bytes;
        *held.by_namespace.entry(namespace.to_owned()).or_default() += bytes;
        self.0.metrics.cache_holds(self.0.cache, held.all);
    }

    fn give_back(&self, namespace: &str, bytes: usize) {
        let mut held = self.held();
        held.all = held.all.saturating_sub(bytes);
        if let Some(its) = held.by_namespace.get_mut(namespace) {
            *its = its.saturating_sub(bytes);
            if *its == 0 {
                held.by_namespace.remove(namespace);
            }
        }
        self.0.metrics.cache_holds(self.0.cache, held.all);
        drop(held);
        self.0.freed.notify_one();
    }
}

impl Charge {
    /// It takes so many bytes now. Returns whether they are in its namespace's share; where not, it
    /// keeps what it has.
    pub(super) fn resize(&mut self, bytes: usize) -> bool {
        if let Some(less) = self.bytes.checked_sub(bytes) {
            self.bytes = bytes;
            if less > 0 {
                self.pool.give_back(&self.namespace, less);
            }
            return true;
        }
        let more = bytes - self.bytes;
        let mut held = self.pool.held();
        let fits = held.fits(&self.pool.0, &self.namespace, more);
        if fits {
            self.pool.add(&mut held, &self.namespace, more);
            self.bytes = bytes;
        }
        fits
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.pool.give_back(&self.namespace, self.bytes);
    }
}

/// The turns of large templates.
#[derive(Default)]
pub(super) struct LargeTurns {
    by_namespace: Mutex<BTreeMap<String, Weak<Semaphore>>>,
    all: Turn,
}

struct Turn(Arc<Semaphore>);

impl Default for Turn {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

/// The turn to read a large template, while it lives.
pub(super) struct LargeTurn {
    // Dropped in this order: the next of the same namespace queues behind those of others.
    _all: Option<OwnedSemaphorePermit>,
    _own: Option<OwnedSemaphorePermit>,
}

impl LargeTurns {
    /// Waits for the turn.
    pub(super) async fn wait(&self, namespace: &str) -> LargeTurn {
        let own = self.of(namespace);
        // Neither is ever closed.
        let own = own.acquire_owned().await.ok();
        let all = Arc::clone(&self.all.0).acquire_owned().await.ok();
        LargeTurn {
            _all: all,
            _own: own,
        }
    }

    fn of(&self, namespace: &str) -> Arc<Semaphore> {
        let mut all = self
            .by_namespace
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = all.get(namespace).and_then(Weak::upgrade) {
            return own;
        }
        all.retain(|_, own| own.strong_count() > 0);
        let own = Arc::new(Semaphore::new(1));
        all.insert(namespace.to_owned(), Arc::downgrade(&own));
        own
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use proptest::prelude::*;

    use super::*;

    fn pool(most: usize) -> Pool {
        Pool::new("runs", most, Arc::new(Metrics::default()))
    }

    #[test]
    fn pool_beside_ten_greedy_has_room_for_another() {
        let pool = pool(1_000_000);
        let mut all = Vec::new();
        for _ in 0..2_000 {
            for greedy in 0..10 {
                all.extend(pool.take(&format!("greedy-{greedy}"), 1_000));
            }
        }
        // As if it had been there from the first.
        let honest: Vec<Charge> = (0..30).filter_map(|_| pool.take("honest", 1_000)).collect();
        assert_eq!(honest.len(), 30);
        for greedy in 0..10 {
            let its = pool.held().of(&format!("greedy-{greedy}"));
            assert!((80_000..100_000).contains(&its), "{its}");
        }
        drop((all, honest));
        assert_eq!(pool.held().all, 0);
        assert!(pool.held().by_namespace.is_empty());
    }

    #[test]
    fn pool_alone_gives_two_thirds_and_says_why_no_more() {
        let pool = pool(100);
        let mut first = pool.take("a", 40).unwrap();
        assert!(pool.take("a", 27).is_none());
        let why = pool.refusal("a", 27);
        assert!(
            why.contains("takes 27 bytes") && why.contains("namespace a has its share"),
            "{why}"
        );
        assert!(first.resize(66) && !first.resize(67) && first.resize(1));
        assert!(pool.take("a", 60).is_some());
    }

    proptest! {
        #[test]
        fn pool_never_holds_more_than_its_most(
            steps in proptest::collection::vec((0_u8..5, 0_usize..60, proptest::bool::ANY), 0..200),
        ) {
            let pool = pool(100);
            let mut held: Vec<Charge> = Vec::new();
            for (namespace, bytes, takes) in steps {
                let namespace = namespace.to_string();
                if takes {
                    held.extend(pool.take(&namespace, bytes));
                } else if let Some(charge) = held.last_mut() {
                    charge.resize(bytes);
                    if bytes < 20 {
                        held.pop();
                    }
                }
                let sum: usize = held.iter().map(|it| it.bytes).sum();
                prop_assert_eq!(pool.held().all, sum);
                prop_assert!(sum <= 100);
            }
        }
    }

    #[tokio::test]
    async fn large_turns_of_one_namespace_let_another_in() {
        let turns = LargeTurns::default();
        let first = turns.wait("greedy").await;
        let mut second = Box::pin(turns.wait("greedy"));
        let mut third = Box::pin(turns.wait("greedy"));
        assert!((&mut second).now_or_never().is_none() && (&mut third).now_or_never().is_none());
        let mut other = Box::pin(turns.wait("honest"));
        assert!((&mut other).now_or_never().is_none());
        drop(first);
        assert!((&mut second).now_or_never().is_none(), "behind the other");
        let other = (&mut other).now_or_never().expect("it is next");
        drop(other);
        let second = (&mut second).now_or_never().expect("now it is");
        assert!((&mut third).now_or_never().is_none());
        drop(second);
        assert!(third.now_or_never().is_some());
    }
}
