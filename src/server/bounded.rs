//! Connections of which there are never too many: a new one closes an older one.
//!
//! Of those of the address that has the most, first one whose request has not come, then the
//! oldest. So an address that asks once and at once is answered, whatever others hold open.
//!
//! Must not keep a new connection waiting.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::AbortHandle;

/// Whether the request of a connection has come; clones are of the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked(Arc<AtomicBool>);

impl Asked {
    /// It has.
    pub(super) fn mark(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_marked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The connections that are open, oldest first.
#[derive(Debug)]
pub(super) struct Bounded {
    most: usize,
    of_one_address: usize,
    open: Vec<Connection>,
}

#[derive(Debug)]
struct Connection {
    address: IpAddr,
    asked: Asked,
    task: AbortHandle,
}

impl Bounded {
    /// At most `most` connections, and `of_one_address` of each.
    pub(super) fn new(most: usize, of_one_address: usize) -> Self {
        Self {
            most,
            of_one_address,
            open: Vec::new(),
        }
    }

    /// Serves a connection of this address as a task, closing another where there is no room.
    pub(super) fn start<F>(&mut self, address: IpAddr, serve: impl FnOnce(Asked) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.open.retain(|it| !it.task.is_finished());
        let own = |it: &&Connection| it.address == address;
        if self.open.iter().filter(own).count() >= self.of_one_address {
            self.close_one(Some(address));
        } else if self.open.len() >= self.most {
            self.close_one(None);
        }
        let asked = Asked::default();
        let task = tokio::spawn(serve(asked.clone())).abort_handle();
        self.open.push(Connection {
            address,
            asked,
            task,
        });
    }

    /// Closes one of this address, or of the one that has the most.
    fn close_one(&mut self, of: Option<IpAddr>) {
        let mut counts: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for it in &self.open {
            *counts.entry(it.address).or_default() += 1;
        }
        let candidates = self.open.iter().enumerate();
        let candidates = candidates.filter(|(_, it)| of.is_none_or(|of| it.address == of));
        // The first of those with the largest key is the oldest.
        let key = |it: &Connection| (counts.get(&it.address).copied(), !it.asked.is_marked());
        let found = candidates.rev().max_by_key(|(_, it)| key(it));
        if let Some(at) = found.map(|(at, _)| at) {
            self.open.remove(at).task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [127, 0, 0, last].into()
    }

    fn of(open: &Bounded) -> Vec<u8> {
        let last = |it: &Connection| match it.address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(_) => 0,
        };
        open.open.iter().map(last).collect()
    }

    async fn for_ever(_: Asked) {
        std::future::pending::<()>().await;
    }

    #[tokio::test]
    async fn full_address_loses_its_own_oldest() {
        let mut open = Bounded::new(10, 2);
        for last in [1, 1, 2, 1] {
            open.start(address(last), for_ever);
        }
        assert_eq!(of(&open), [1, 2, 1]);
    }

    #[tokio::test]
    async fn full_server_spares_addresses_with_few() {
        let mut open = Bounded::new(4, 3);
        for last in [9, 1, 1, 1, 2, 3] {
            open.start(address(last), for_ever);
        }
        assert_eq!(of(&open), [9, 1, 2, 3], "each has one");
        open.start(address(4), for_ever);
        assert_eq!(of(&open), [1, 2, 3, 4], "then it is the oldest");
    }

    #[tokio::test]
    async fn connection_that_asked_outlives_idle_ones() {
        let mut open = Bounded::new(10, 2);
        open.start(address(1), |asked| {
            asked.mark();
            for_ever(asked)
        });
        let first = open.open[0].task.clone();
        for _ in 0..5 {
            open.start(address(1), for_ever);
        }
        tokio::task::yield_now().await;
        assert!(!first.is_finished());
        assert_eq!(open.open.len(), 2);
    }

    #[tokio::test]
    async fn ended_connections_make_room() {
        let mut open = Bounded::new(1, 1);
        open.start(address(1), |_| std::future::ready(()));
        let first = open.open[0].task.clone();
        while !first.is_finished() {
            tokio::task::yield_now().await;
        }
        open.start(address(2), for_ever);
        assert_eq!(of(&open), [2]);
    }
}
