//! Which proxies are connected, and what each of them said: one seat for each pod UID, the newer stream takes it.
//!
//! `server::session` sits down and leaves; `inside` shows it. Texts that a proxy wrote are cut to a bound before they are kept.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use countersign_api::controller::{Ack, Hello};
use tokio_util::sync::CancellationToken;

use crate::model::ObjectName;
use crate::server::budget::Budgets;
use crate::server::hello::Claim;

/// Characters of a proxy's text that are kept.
const MAX_TEXT: usize = 256;
/// Names of unknown rules that are kept.
const MAX_UNKNOWN: usize = 32;
/// Streams of one pod a second and at once: each brings all of its rules, some MiB at most, and a proxy needs one in an hour.
const STREAMS: (u32, u32) = (1, 16);

/// All that are connected.
#[derive(Debug)]
pub struct Registry {
    seats: Mutex<HashMap<String, Taken>>,
    comings: Mutex<Budgets>,
}

impl Default for Registry {
    fn default() -> Self {
        Registry { seats: Mutex::default(), comings: Mutex::new(Budgets::new(STREAMS.0, STREAMS.1)) }
    }
}

#[derive(Debug)]
struct Taken {
    record: Arc<Record>,
    replaced: CancellationToken,
}

/// One stream's place. Dropping it leaves.
#[derive(Debug)]
pub struct Seat {
    registry: Arc<Registry>,
    /// What is shown of the stream.
    pub record: Arc<Record>,
    /// Cancelled when a newer stream of the same pod sat down.
    pub replaced: CancellationToken,
}

/// What is shown of one connected proxy.
#[derive(Debug)]
pub struct Record {
    /// Who it is.
    pub claim: Claim,
    /// Of its workload.
    pub name: ObjectName,
    /// Where it comes from.
    pub address: SocketAddr,
    /// As it says.
    pub proxy_version: String,
    /// The newest rule feature that it understands.
    pub feature_level: u32,
    /// When its stream began.
    pub since: Instant,
    told: Mutex<Told>,
}

/// What was said between the proxy and us.
#[derive(Debug, Clone, Default)]
pub struct Told {
    /// The revision sent last, and when.
    pub sent: Option<(String, Instant)>,
    /// When the change that it carries was published; `None` for the first of a stream.
    pub published: Option<Instant>,
    /// The revision that it has in force, as it says.
    pub acked: Option<String>,
    /// Why it refused a revision.
    pub problem: Option<String>,
    /// Rules of a feature that it does not know, as it says.
    pub unknown_rules: Vec<String>,
    /// Rules of a feature beyond its level, as we see it.
    pub beyond_level: Vec<String>,
    /// Addresses followed for it.
    pub followed: usize,
}

impl Told {
    /// How long the proxy has not confirmed what was sent last.
    pub fn lag(&self, now: Instant) -> Option<std::time::Duration> {
        let (revision, at) = self.sent.as_ref()?;
        (self.acked.as_ref() != Some(revision)).then(|| now.saturating_duration_since(*at))
    }
}

impl Record {
    /// Of a stream that begins.
    pub fn new(claim: Claim, name: ObjectName, address: SocketAddr, hello: &Hello) -> Self {
        Record {
            claim,
            name,
            address,
            proxy_version: cut(&hello.proxy_version),
            feature_level: hello.feature_level,
            since: Instant::now(),
            told: Mutex::default(),
        }
    }

    /// What was said so far.
    pub fn told(&self) -> Told {
        self.lock().clone()
    }

    /// Rules are about to be sent.
    pub fn sent(&self, revision: &str, published: Option<Instant>, beyond_level: Vec<String>) {
        let mut told = self.lock();
        told.sent = Some((revision.to_owned(), Instant::now()));
        told.published = published;
        told.beyond_level = beyond_level;
        told.beyond_level.truncate(MAX_UNKNOWN);
    }

    /// The proxy answered. Some: it confirmed what was sent last, so long after the change was published.
    pub fn acked(&self, ack: &Ack) -> Option<std::time::Duration> {
        let mut told = self.lock();
        told.unknown_rules = ack.unknown_rules.iter().take(MAX_UNKNOWN).map(|rule| cut(rule)).collect();
        if !ack.problem.is_empty() {
            told.problem = Some(cut(&ack.problem));
            return None;
        }
        told.problem = None;
        told.acked = Some(cut(&ack.revision));
        let (revision, _) = told.sent.as_ref()?;
        if *revision != ack.revision {
            return None;
        }
        told.published.take().map(|published| published.elapsed())
    }

    /// How many addresses are followed.
    pub fn follows(&self, followed: usize) {
        self.lock().followed = followed;
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    /// Whether the pod may sit down once more, or comes too often.
    pub fn may_sit(&self, pod_uid: &str) -> bool {
        let mut comings = self.comings.lock().unwrap_or_else(PoisonError::into_inner);
        comings.try_spend(pod_uid, tokio::time::Instant::now())
    }

    /// Sits down; whoever sat there for the same pod is told to go.
    pub fn sit(self: &Arc<Self>, record: Record) -> Seat {
        let (record, replaced) = (Arc::new(record), CancellationToken::new());
        let taken = Taken { record: Arc::clone(&record), replaced: replaced.clone() };
        if let Some(older) = self.lock().insert(record.claim.pod_uid.clone(), taken) {
            older.replaced.cancel();
        }
        Seat { registry: Arc::clone(self), record, replaced }
    }

    /// Everyone connected, in order of name.
    pub fn records(&self) -> Vec<Arc<Record>> {
        let mut records: Vec<_> = self.lock().values().map(|taken| Arc::clone(&taken.record)).collect();
        records.sort_by(|a, b| a.name.cmp(&b.name));
        records
    }

    /// How many are connected.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether nobody is connected.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Taken>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.registry.lock();
        let uid = &self.record.claim.pod_uid;
        if seats.get(uid).is_some_and(|taken| Arc::ptr_eq(&taken.record, &self.record)) {
            seats.remove(uid);
        }
    }
}

fn cut(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(uid: &str) -> Record {
        let id = countersign_identity::SpiffeId::parse("spiffe://cluster.local/ns/a/sa/b").unwrap();
        let claim = Claim { pod_uid: uid.into(), id, from: [10, 0, 0, 1].into() };
        let name = ObjectName { namespace: "a".into(), name: uid.into() };
        Record::new(claim, name, ([10, 0, 0, 1], 1).into(), &Hello::default())
    }

    #[test]
    fn the_newer_stream_takes_the_seat_and_the_older_does_not_clear_it() {
        let registry = Arc::new(Registry::default());
        let older = registry.sit(record("x"));
        let other = registry.sit(record("y"));
        let newer = registry.sit(record("x"));
        assert!(older.replaced.is_cancelled() && !newer.replaced.is_cancelled() && !other.replaced.is_cancelled());
        drop(older);
        assert_eq!(registry.len(), 2);
        drop(newer);
        drop(other);
        assert!(registry.is_empty());
    }

    #[test]
    fn a_proxy_lags_until_it_confirms_what_was_sent_last() {
        let record = record("x");
        assert!(record.told().lag(Instant::now()).is_none(), "nothing was sent");
        record.sent("one", None, Vec::new());
        assert!(record.told().lag(Instant::now()).is_some());
        assert!(record.acked(&Ack { revision: "one".into(), ..Ack::default() }).is_none(), "the first is no change");
        assert!(record.told().lag(Instant::now()).is_none());
        record.sent("two", Some(Instant::now()), Vec::new());
        assert!(record.acked(&Ack { revision: "one".into(), ..Ack::default() }).is_none());
        let refused = Ack { revision: "two".into(), problem: "cannot".into(), unknown_rules: vec!["a/b".into()] };
        assert!(record.acked(&refused).is_none());
        let told = record.told();
        assert_eq!((told.acked.as_deref(), told.problem.as_deref()), (Some("one"), Some("cannot")));
        assert_eq!(told.unknown_rules, ["a/b"]);
        assert!(told.lag(Instant::now()).is_some());
        assert!(record.acked(&Ack { revision: "two".into(), ..Ack::default() }).is_some());
        let told = record.told();
        assert!(told.lag(Instant::now()).is_none() && told.problem.is_none());
    }

    #[test]
    fn what_a_proxy_writes_is_kept_short() {
        let record = record("x");
        record.acked(&Ack {
            revision: "r".repeat(9999),
            problem: "p".repeat(9999),
            unknown_rules: vec!["u".repeat(999); 999],
        });
        let told = record.told();
        assert_eq!(told.problem.unwrap().len(), MAX_TEXT);
        assert_eq!((told.unknown_rules.len(), told.unknown_rules[0].len()), (MAX_UNKNOWN, MAX_TEXT));
    }
}
