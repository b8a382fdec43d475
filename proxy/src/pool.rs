//! Connections that wait to be used again: one application connection after another, never two at once.
//!
//! `outbound` takes and puts. A link enters only after both `FIN`s passed and all is flushed (ours may be owed: it leaves with the next `OPEN`, or
//! after [`FIN_WAITS`]); it leaves for another use only
//! if nothing came in meanwhile, its credentials are still the current ones, and they do not end soon. While a root is being replaced none is used
//! for long that stands on the old one at either end: short connections, one after the other, would keep it open for as long as its certificates
//! live, and the old root with it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use countersign_credentials::Credentials;
use countersign_identity::SpiffeId;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::reauth;
use crate::tls::{Generation, Peer};
use crate::wire::link::Link;

/// A link is not used again when its credentials end within this time.
const MARGIN: Duration = Duration::from_secs(1);

/// Longest wait of a `FIN` for the next connection, which takes it along.
pub const FIN_WAITS: Duration = Duration::from_millis(1);

/// What must be the same for a link to be used again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The endpoint's own address.
    pub address: SocketAddr,
    /// The identity that was expected, and proven.
    pub id: SpiffeId,
    /// Our own leaf and bundle at the time of the handshake.
    pub credentials: Generation,
}

/// A link and whom it leads to.
#[derive(Debug)]
pub struct Kept {
    /// The connection.
    pub link: Box<Link>,
    /// The proven other end.
    pub peer: Arc<Peer>,
    since: Instant,
    /// What the link says of its `FIN`, beside it: all that are kept are asked each millisecond while one waits.
    owes: bool,
}

impl Kept {
    /// Stands, at either end, on another root than the one that vouches for us; and is not new: until the other end has renewed, too, the next
    /// one would stand there again, and each connection would wait for a handshake.
    fn outlived(&self, credentials: &Credentials, now: Instant) -> bool {
        now.saturating_duration_since(self.peer.since()) >= reauth::BEHIND && self.peer.behind(credentials)
    }

    fn fresh(&self, idle: Duration, now: Instant) -> bool {
        now.saturating_duration_since(self.since) < idle && self.peer.ends() > now + MARGIN
    }
}

/// Bounds of the pool.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most links kept in all.
    pub total: usize,
    /// Most links kept to one endpoint.
    pub each: usize,
    /// Longest wait. Shorter than the server side's, so that it is mostly we who close.
    pub idle: Duration,
}

/// The pool.
#[derive(Debug)]
pub struct Pool {
    limits: Limits,
    kept: Mutex<Shelves>,
    /// Some link owes its `FIN`.
    owing: Notify,
    /// How many are kept, as it changes.
    shown: Gauge,
}

#[derive(Debug, Default)]
struct Shelves {
    by_key: HashMap<Key, Vec<Kept>>,
    total: usize,
}

impl Pool {
    /// An empty pool; `shown` follows how many links it keeps.
    #[must_use]
    pub fn new(limits: Limits, shown: Gauge) -> Self {
        Self { limits, kept: Mutex::default(), owing: Notify::new(), shown }
    }

    /// The most recently used link that is still good; `credentials` are our own.
    pub fn take(&self, key: &Key, credentials: &Credentials, now: Instant) -> Option<Kept> {
        loop {
            // Tried outside the lock: the check reads the socket.
            let mut kept = {
                let mut shelves = self.lock();
                let shelf = shelves.by_key.get_mut(key)?;
                let kept = shelf.pop();
                if shelf.is_empty() {
                    shelves.by_key.remove(key);
                }
                let kept = kept?;
                shelves.total -= 1;
                self.shown.dec();
                kept
            };
            let good = kept.fresh(self.limits.idle, now) && !kept.peer.expired() && !kept.outlived(credentials, now);
            if good && kept.link.is_quiet() {
                return Some(kept);
            }
        }
    }

    /// Keeps a link that is between two application connections, if there is room; else it is closed.
    pub fn put(&self, key: Key, link: Box<Link>, peer: Arc<Peer>, now: Instant) {
        if !link.is_between_frames() || link.wants_flush() {
            return;
        }
        let mut shelves = self.lock();
        let room = shelves.total < self.limits.total;
        let shelf = shelves.by_key.entry(key).or_default();
        if room && shelf.len() < self.limits.each {
            let owes = link.owes_fin();
            shelf.push(Kept { link, peer, since: now, owes });
            shelves.total += 1;
            self.shown.inc();
            if owes {
                self.owing.notify_one();
            }
        }
    }

    /// Sees to it that no `FIN` waits long, for ever.
    pub async fn settle_in_time(&self) {
        loop {
            self.owing.notified().await;
            while self.settle(Instant::now()) > 0 {
                sleep(FIN_WAITS).await;
            }
        }
    }

    /// Sends each `FIN` that has waited long enough. How many wait still.
    pub fn settle(&self, now: Instant) -> usize {
        let (mut shelves, mut waiting) = (self.lock(), 0);
        shelves.by_key.retain(|_, shelf| {
            shelf.retain_mut(|kept| {
                let due = kept.owes && now.saturating_duration_since(kept.since) >= FIN_WAITS;
                kept.owes &= !due;
                waiting += usize::from(kept.owes);
                !due || kept.link.pay_fin()
            });
            !shelf.is_empty()
        });
        self.recount(&mut shelves);
        waiting
    }

    /// Drops what waited too long, whose credentials end, what was made with other credentials than the current, or stands on another root.
    pub fn sweep(&self, credentials: Option<&Credentials>, now: Instant) {
        let mut shelves = self.lock();
        let current = credentials.map(|credentials| (credentials, Generation::of(credentials)));
        shelves.by_key.retain(|key, shelf| {
            let current = current.filter(|(_, generation)| *generation == key.credentials);
            shelf.retain(|kept| {
                kept.fresh(self.limits.idle, now) && current.is_some_and(|(ours, _)| !kept.outlived(ours, now))
            });
            !shelf.is_empty()
        });
        self.recount(&mut shelves);
    }

    fn recount(&self, shelves: &mut Shelves) {
        shelves.total = shelves.by_key.values().map(Vec::len).sum();
        self.shown.set(i64::try_from(shelves.total).unwrap_or(i64::MAX));
    }

    /// Number of links kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().total
    }

    /// Whether none is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Shelves> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
