//! Leadership: one Lease object, of whose holder there is one.
//!
//! Every write carries the resourceVersion that it was derived from, so of two takers one gets a
//! conflict. Time is measured by this process's own monotonic clock alone. A holder that is not us
//! is gone when its record has stood unchanged *before our eyes* for as long as it promised to
//! hold; what its wall clock wrote is compared for being the same, and never read as a time. We
//! lead until some seconds after our last successful renewal was *sent*, less than what the others
//! wait for.
//!
//! The monotonic clock stands still while a machine is suspended, and no clock stops a write that
//! is on its way already. What is left of two leaders meets the preconditions of every write and
//! the names of the pods, which both would give alike.
//!
//! Must not know what is done with leadership, nor write anything but its Lease.

use std::sync::{Arc, Weak};
use std::time::Duration;

use jiff::{Timestamp, Unit};
use k8s_openapi::api::coordination::v1 as coordination;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, ResourceExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{error, info, warn};

use super::object;

/// How long things take. Whoever shares a Lease should share these too.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How long the others wait for a silent holder before one of them takes over; written into
    /// the Lease in whole seconds, rounded up.
    pub duration: Duration,
    /// How long after a renewal was sent the next one is.
    pub renew_every: Duration,
    /// How long after its last successful renewal was sent a holder stops leading. What it sent
    /// before that has the rest of `duration` to arrive.
    pub give_up: Duration,
    /// How often one who waits looks at the Lease.
    pub look_every: Duration,
    /// How long a call may take, so that one that hangs leaves time for another.
    pub call: Duration,
}

impl Default for Timing {
    /// Duration and deadline are those of Kubernetes' own controllers.
    fn default() -> Self {
        Self::of(Duration::from_secs(15))
    }
}

impl Timing {
    /// The times that go with a Lease of this duration: one renewal may hang, and the last third is for what was
    /// sent before leadership ended.
    #[must_use]
    pub fn of(duration: Duration) -> Self {
        Self {
            duration,
            renew_every: duration / 3,
            give_up: duration * 2 / 3,
            // However long the Lease: what was given back is taken up at once.
            look_every: (duration / 15).min(Duration::from_secs(1)),
            call: duration / 6,
        }
    }

    fn seconds(&self) -> i32 {
        let begun = u64::from(self.duration.subsec_nanos() > 0);
        let whole = self.duration.as_secs().saturating_add(begun);
        i32::try_from(whole).unwrap_or(i32::MAX)
    }
}

/// Where a process stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Term {
    /// It does not lead yet.
    Waiting,
    /// It leads until then, if no renewal moves that.
    Until(Instant),
    /// There is no other: it leads without a Lease.
    Alone,
    /// It has stopped leading and is giving the Lease back.
    Leaving,
    /// It does not lead any more, and never will again.
    Over,
}

/// A handle that tells whether this process leads; clones tell the same.
///
/// A process leads at most once: who has lost it ends and starts anew, so that nothing which it
/// believed as a leader survives.
#[derive(Clone, Debug)]
pub struct Leadership(Arc<watch::Sender<Term>>);

impl Leadership {
    fn new(term: Term) -> Self {
        Self(Arc::new(watch::Sender::new(term)))
    }

    /// Leadership where nobody else could have it: no Lease is asked for.
    #[must_use]
    pub fn alone() -> Self {
        Self::new(Term::Alone)
    }

    /// Whether this process leads now; to be asked before every write.
    #[must_use]
    pub fn holds(&self) -> bool {
        match self.term() {
            Term::Until(deadline) => Instant::now() < deadline,
            Term::Alone => true,
            Term::Waiting | Term::Leaving | Term::Over => false,
        }
    }

    /// Comes back when leadership is lost or was given back, at once if it is. One who waits for
    /// it has not lost it.
    pub async fn lost(&self) {
        let mut changes = self.0.subscribe();
        loop {
            let term = *changes.borrow_and_update();
            match term {
                Term::Leaving | Term::Over => return,
                Term::Until(deadline) => {
                    if Instant::now() >= deadline {
                        return;
                    }
                    // Whatever comes first is looked at by the next turn.
                    let _ = timeout_at(deadline, changes.changed()).await;
                }
                // The sender is in `self`: there is no error to see.
                Term::Waiting | Term::Alone => {
                    let _ = changes.changed().await;
                }
            }
        }
    }

    /// Stops leading and gives the Lease back, so that another can take it at once. Comes back when
    /// that is done, or after it was tried. To be called when no write is in flight any more.
    pub async fn release(self) {
        let mut changes = self.0.subscribe();
        self.0.send_if_modified(|term| {
            *term = match *term {
                Term::Until(_) => Term::Leaving,
                Term::Leaving => return false,
                Term::Waiting | Term::Alone | Term::Over => Term::Over,
            };
            true
        });
        // The keeper ends with `Over`, whatever it meets.
        let _ = changes.wait_for(|term| *term == Term::Over).await;
    }

    /// Moves the deadline, unless leadership is over: a renewal that is answered too late does not
    /// bring back what was lost.
    fn extend(&self, deadline: Instant) -> bool {
        let now = Instant::now();
        self.0.send_if_modified(|term| {
            let holds = match *term {
                Term::Waiting => now < deadline,
                Term::Until(old) => now < old && now < deadline,
                Term::Alone | Term::Leaving | Term::Over => false,
            };
            if holds {
                *term = Term::Until(deadline);
            }
            holds
        })
    }

    fn term(&self) -> Term {
        *self.0.borrow()
    }
}

/// What a Lease says, as far as it is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    holder: Option<String>,
    renewed: Option<Timestamp>,
    transitions: Option<i32>,
    version: Option<String>,
    /// How long the holder promised to hold.
    duration: Duration,
}

impl Record {
    fn of(lease: &coordination::Lease) -> Self {
        let spec = lease.spec.clone().unwrap_or_default();
        Self {
            holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
            renewed: spec.renew_time.map(|time| time.0),
            transitions: spec.lease_transitions,
            version: lease.resource_version(),
            duration: spec
                .lease_duration_seconds
                .and_then(|seconds| u64::try_from(seconds).ok())
                .map_or(Duration::ZERO, Duration::from_secs),
        }
    }
}

/// Whether a Lease may be taken.
#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    /// It may be taken.
    Free,
    /// It is held; if nothing changes, until then.
    Held(Instant),
}

/// What was seen of others' holding, and since when.
#[derive(Debug, Default)]
struct Sight {
    seen: Option<Seen>,
}

#[derive(Debug)]
struct Seen {
    /// None: the object was gone.
    record: Option<Record>,
    since: Instant,
    /// How long the last holder seen promised to hold.
    promise: Duration,
}

impl Sight {
    /// Judges what was found at `now`; `ours` is the least that is waited for a holder.
    fn judge(&mut self, found: Option<&Record>, ours: Duration, now: Instant) -> Judgement {
        let before = self.seen.take();
        let promise = match found {
            // Given back by who held it.
            Some(record) if record.holder.is_none() => return Judgement::Free,
            Some(record) => record.duration.max(ours),
            // A Lease that was deleted under a holder is no sign that the holder is gone.
            None => before.as_ref().map_or(Duration::ZERO, |seen| seen.promise),
        };
        let seen = match before {
            Some(seen) if seen.record.as_ref() == found => seen,
            _ => Seen {
                record: found.cloned(),
                since: now,
                promise,
            },
        };
        let until = seen.since + seen.promise;
        self.seen = Some(seen);
        if now >= until {
            Judgement::Free
        } else {
            Judgement::Held(until)
        }
    }
}

/// A Lease that this process would like to hold.
pub struct Lease {
    leadership: Leadership,
    holder: Holder,
}

/// Who writes the Lease, and all that it knows about it.
struct Holder {
    api: Api<coordination::Lease>,
    name: String,
    identity: String,
    timing: Timing,
    sight: Sight,
    /// Our last write that succeeded and every later one that may have, each with when it was
    /// sent: an answer that was lost does not make us take our own record for another's.
    tried: Vec<(Timestamp, Instant)>,
    /// The Lease as the last successful write left it.
    current: coordination::Lease,
}

/// What came of a try to take the Lease.
enum Taking {
    /// It is ours by a write that was sent then.
    Taken(Instant),
    /// It is another's; if nothing changes, until then.
    Held(Instant, String),
    /// Another was quicker.
    Raced,
    /// Nothing is known.
    Failed(String),
}

/// What came of a try to renew the Lease.
enum Renewal {
    /// Renewed by a write that was sent then.
    Renewed(Instant),
    /// The record is still ours, but it was touched: derive the next write from it.
    Touched,
    /// Nothing is known.
    Failed(String),
    /// It is ours no longer; why.
    Lost(String),
}

impl Lease {
    /// The Lease `name` in `namespace`. `identity` must differ from every other process's, one of
    /// the same name that ran before included. The client must not refuse writes of one who does
    /// not lead.
    #[must_use]
    pub fn new(
        client: Client,
        namespace: &str,
        name: &str,
        identity: &str,
        timing: Timing,
    ) -> Self {
        Self {
            leadership: Leadership::new(Term::Waiting),
            holder: Holder {
                api: Api::namespaced(client, namespace),
                name: name.to_owned(),
                identity: identity.to_owned(),
                timing,
                sight: Sight::default(),
                tried: Vec::new(),
                current: coordination::Lease::default(),
            },
        }
    }

    /// The handle that will tell whether this process leads; until [`Lease::acquire`] comes back it
    /// does not.
    #[must_use]
    pub fn leadership(&self) -> Leadership {
        self.leadership.clone()
    }

    /// Waits until the Lease is ours, for ever if need be. From then on a task of its own renews it
    /// as long as a handle exists.
    pub async fn acquire(self) -> Leadership {
        let Self {
            leadership,
            mut holder,
        } = self;
        let mut said = String::new();
        let sent = loop {
            // Given back before it was there.
            if leadership.term() == Term::Over {
                return leadership;
            }
            let look = Instant::now() + holder.timing.look_every;
            let (until, news) = match holder.take().await {
                Taking::Taken(sent) => {
                    if leadership.extend(sent + holder.timing.give_up) {
                        break sent;
                    }
                    // It was ours, and this process was held up until it was too late to begin.
                    continue;
                }
                Taking::Held(until, by) => (until, format!("the lease is held by {by}")),
                Taking::Raced => (look, "another was quicker".to_owned()),
                Taking::Failed(why) => (look, why),
            };
            if news != said {
                info!(lease = holder.name, "waits to lead: {news}");
                said = news;
            }
            sleep_until(until.min(look)).await;
        };
        info!(lease = holder.name, identity = holder.identity, "leads");
        let keeper = Arc::downgrade(&leadership.0);
        let changes = leadership.0.subscribe();
        tokio::spawn(holder.keep(keeper, changes, sent));
        leadership
    }
}

impl Holder {
    /// Looks, and writes if the Lease may be taken.
    async fn take(&mut self) -> Taking {
        let found = match self.look().await {
            Ok(found) => found,
            Err(why) => return Taking::Failed(why),
        };
        let record = found.as_ref().map(Record::of);
        if let Some(sent) = record.as_ref().and_then(|record| self.ours(record)) {
            // A write of ours whose answer was lost.
            self.settle(sent);
            self.current = found.unwrap_or_default();
            if Instant::now() < sent + self.timing.give_up {
                return Taking::Taken(sent);
            }
        } else {
            let judgement = self
                .sight
                .judge(record.as_ref(), self.timing.duration, Instant::now());
            if let Judgement::Held(until) = judgement {
                let by = record.and_then(|record| record.holder);
                return Taking::Held(until, by.unwrap_or_else(|| "one that deleted it".into()));
            }
            self.current = found.unwrap_or_default();
        }
        let now = wall();
        let mut next = self.current.clone();
        let spec = next.spec.get_or_insert_default();
        spec.acquire_time = Some(MicroTime(now));
        spec.lease_transitions = Some(
            spec.lease_transitions
                .unwrap_or(-1)
                .max(-1)
                .saturating_add(1),
        );
        match self.write(next, now).await {
            Ok(sent) => Taking::Taken(sent),
            Err(Trouble::Precondition) => Taking::Raced,
            Err(Trouble::Gone(why) | Trouble::Other(why)) => Taking::Failed(why),
        }
    }

    /// Renews the Lease until it is lost, given back, or nobody is left who asks.
    async fn keep(
        mut self,
        leadership: Weak<watch::Sender<Term>>,
        mut changes: watch::Receiver<Term>,
        sent: Instant,
    ) {
        let _ending = Ending(leadership.clone());
        let mut deadline = sent + self.timing.give_up;
        let mut next = sent + self.timing.renew_every;
        let why = loop {
            let asked = async {
                let asked = changes.wait_for(|term| matches!(term, Term::Leaving | Term::Over));
                asked.await.map(|term| *term)
            };
            tokio::select! {
                biased;
                asked = asked => {
                    // An error: every handle is gone, and with them all that would write.
                    if asked.is_ok_and(|term| term == Term::Leaving) {
                        self.give_back().await;
                    }
                    break None;
                }
                () = sleep_until(next.min(deadline)) => {}
            }
            if Instant::now() >= deadline {
                break Some("it could not be renewed in time".to_owned());
            }
            let Some(leadership) = leadership.upgrade().map(Leadership) else {
                break None;
            };
            let begun = Instant::now();
            match self.renew(deadline).await {
                Renewal::Renewed(sent) => {
                    deadline = sent + self.timing.give_up;
                    next = sent + self.timing.renew_every;
                    // One who was asked to leave meanwhile is told so by the next turn.
                    if !leadership.extend(deadline) && matches!(leadership.term(), Term::Until(_)) {
                        break Some("it was renewed too late".to_owned());
                    }
                }
                Renewal::Touched => next = Instant::now(),
                Renewal::Failed(why) => {
                    warn!(lease = self.name, "the lease was not renewed: {why}");
                    // At once where the call itself took long.
                    next = begun + self.timing.call / 5;
                }
                Renewal::Lost(why) => break Some(why),
            }
        };
        if let Some(why) = why {
            error!(lease = self.name, "the lease is lost: {why}");
        }
    }

    async fn renew(&mut self, deadline: Instant) -> Renewal {
        let next = self.current.clone();
        match timeout_at(deadline, self.write(next, wall())).await {
            Ok(Ok(sent)) => return Renewal::Renewed(sent),
            Ok(Err(Trouble::Other(why))) => return Renewal::Failed(why),
            Ok(Err(Trouble::Precondition | Trouble::Gone(_))) => {}
            Err(_) => return Renewal::Failed("no answer before the deadline".to_owned()),
        }
        let lease = match timeout_at(deadline, self.look()).await {
            Ok(Ok(Some(lease))) => lease,
            Ok(Ok(None)) => return Renewal::Lost("it was deleted".to_owned()),
            Ok(Err(why)) => return Renewal::Failed(why),
            Err(_) => return Renewal::Failed("no answer before the deadline".to_owned()),
        };
        let record = Record::of(&lease);
        let Some(sent) = self.ours(&record) else {
            return Renewal::Lost(match record.holder {
                Some(holder) if holder == self.identity => {
                    format!("another process goes by the same identity, {holder}")
                }
                Some(holder) => format!("{holder} holds it"),
                None => "somebody removed its holder".to_owned(),
            });
        };
        self.current = lease;
        let last = self.tried.first().map(|(_, sent)| *sent);
        if last.is_some_and(|last| sent > last) {
            self.settle(sent);
            Renewal::Renewed(sent)
        } else {
            Renewal::Touched
        }
    }

    /// Writes a Lease without a holder. Tried twice, since a renewal whose answer was lost changes
    /// the resourceVersion.
    async fn give_back(&mut self) {
        for _ in 0..2 {
            let mut next = self.current.clone();
            if let Some(spec) = &mut next.spec {
                spec.holder_identity = None;
                spec.renew_time = Some(MicroTime(wall()));
            }
            let params = PostParams::default();
            let call = self.api.replace(&self.name, &params, &next);
            match self.call(call).await {
                Ok(_) => {
                    info!(lease = self.name, "the lease is given back");
                    return;
                }
                Err(Trouble::Precondition) => {}
                Err(Trouble::Gone(why) | Trouble::Other(why)) => {
                    warn!(lease = self.name, "the lease is not given back: {why}");
                    return;
                }
            }
            match self.look().await {
                Ok(Some(lease)) if self.ours(&Record::of(&lease)).is_some() => self.current = lease,
                _ => return,
            }
        }
    }

    /// When our write that left this record was sent; none if it is not ours.
    fn ours(&self, record: &Record) -> Option<Instant> {
        if record.holder.as_deref() != Some(&self.identity) {
            return None;
        }
        let mut tried = self.tried.iter();
        let found = tried.find(|(time, _)| record.renewed == Some(*time));
        found.map(|(_, sent)| *sent)
    }

    /// Forgets the tries before the one that was sent then, which has succeeded.
    fn settle(&mut self, sent: Instant) {
        self.tried.retain(|(_, when)| *when >= sent);
    }

    async fn look(&self) -> Result<Option<coordination::Lease>, String> {
        match self.call(object::get(&self.api, &self.name)).await {
            Ok(found) => Ok(found),
            Err(Trouble::Precondition) => Err("a read met a conflict".to_owned()),
            Err(Trouble::Gone(why) | Trouble::Other(why)) => Err(why),
        }
    }

    /// Writes the Lease with us as holder, on condition that it is as `next` was derived from.
    async fn write(
        &mut self,
        mut next: coordination::Lease,
        now: Timestamp,
    ) -> Result<Instant, Trouble> {
        let spec = next.spec.get_or_insert_default();
        spec.holder_identity = Some(self.identity.clone());
        spec.lease_duration_seconds = Some(self.timing.seconds());
        spec.renew_time = Some(MicroTime(now));
        let sent = Instant::now();
        self.tried.push((now, sent));
        let params = PostParams::default();
        let written = if next.metadata.resource_version.is_some() {
            self.call(self.api.replace(&self.name, &params, &next))
                .await?
        } else {
            next.metadata = ObjectMeta {
                name: Some(self.name.clone()),
                ..ObjectMeta::default()
            };
            self.call(self.api.create(&params, &next)).await?
        };
        self.current = written;
        self.settle(sent);
        Ok(sent)
    }

    async fn call<T>(&self, call: impl Future<Output = kube::Result<T>>) -> Result<T, Trouble> {
        match timeout_at(Instant::now() + self.timing.call, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => Err(Trouble::Precondition),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
                Err(Trouble::Gone(status.to_string()))
            }
            Ok(Err(error)) => Err(Trouble::Other(error.to_string())),
            Err(_) => Err(Trouble::Other(format!(
                "no answer within {} ms",
                self.timing.call.as_millis()
            ))),
        }
    }
}

/// Tells that leadership is over when its keeper ends, however that comes about.
struct Ending(Weak<watch::Sender<Term>>);

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(leadership) = self.0.upgrade() {
            leadership.send_replace(Term::Over);
        }
    }
}

/// Why a call failed.
enum Trouble {
    /// The object is not what the write was derived from.
    Precondition,
    /// The object is not there, or its namespace.
    Gone(String),
    /// Anything else: it may have arrived or not.
    Other(String),
}

/// The wall clock's time as a Lease can hold it. Nobody reads it but people.
fn wall() -> Timestamp {
    let now = Timestamp::now();
    now.round(Unit::Microsecond).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Duration = Duration::from_secs(15);

    fn record(holder: Option<&str>, version: &str) -> Record {
        Record {
            holder: holder.map(str::to_owned),
            renewed: None,
            transitions: None,
            version: Some(version.to_owned()),
            duration: Duration::from_secs(20),
        }
    }

    #[test]
    fn a_record_is_judged_by_how_long_it_stood_before_our_eyes() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut sight = Sight::default();
        let b = record(Some("b"), "1");
        assert_eq!(sight.judge(Some(&b), OURS, at(0)), Judgement::Held(at(20)));
        assert_eq!(sight.judge(Some(&b), OURS, at(19)), Judgement::Held(at(20)));
        let touched = record(Some("b"), "2");
        assert_eq!(
            sight.judge(Some(&touched), OURS, at(19)),
            Judgement::Held(at(39))
        );
        assert_eq!(sight.judge(Some(&touched), OURS, at(39)), Judgement::Free);
        // Back to what it was before: that is news too.
        assert_eq!(sight.judge(Some(&b), OURS, at(40)), Judgement::Held(at(60)));
    }

    #[test]
    fn what_nobody_holds_is_free_and_what_was_deleted_under_a_holder_is_not() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut sight = Sight::default();
        assert_eq!(sight.judge(None, OURS, at(0)), Judgement::Free);
        let b = record(Some("b"), "1");
        sight.judge(Some(&b), OURS, at(1));
        assert_eq!(sight.judge(None, OURS, at(10)), Judgement::Held(at(30)));
        assert_eq!(sight.judge(None, OURS, at(30)), Judgement::Free);
        sight.judge(Some(&b), OURS, at(31));
        let free = record(None, "2");
        assert_eq!(sight.judge(Some(&free), OURS, at(32)), Judgement::Free);
    }

    #[test]
    fn whole_seconds_are_never_fewer_than_meant() {
        let timing = |duration| Timing {
            duration,
            ..Timing::default()
        };
        assert_eq!(timing(Duration::from_millis(2001)).seconds(), 3);
        assert_eq!(timing(Duration::from_secs(15)).seconds(), 15);
        assert_eq!(timing(Duration::MAX).seconds(), i32::MAX);
    }
}
