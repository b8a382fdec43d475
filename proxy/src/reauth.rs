//! Long connections live through renewals: an open one is proven anew before its certificates end (docs/decisions/0014).
//!
//! Both journeys register what is open, by guards. The dialling side acts: [`keep`], started by `run`, opens a second connection to the
//! same endpoint when half of an open connection's time is over, or while a root is being replaced. The accepting side answers in
//! [`serve`], called by the inbound journey. Only connections that carry an application are proven anew; kept ones are simply not used
//! again (`pool`). Nothing here ends a connection: whoever is not proven anew ends with the certificates it has.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use countersign_credentials::Credentials;
use rand::Rng as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::outcome::Direction;
use crate::permit::{Asking, Permits};
use crate::proxy::Proxy;
use crate::tls::Peer;
use crate::tls::reauth::{Asked, Name, ReauthError, ask};

/// How often the open connections are looked through.
const LOOK: Duration = Duration::from_secs(1);
/// Second connections that are under way at once.
const AT_ONCE: usize = 16;
/// Longest and shortest pause after a failure. It doubles between them, and is never more than a quarter of what is left.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Pause between attempts while a root is being replaced.
pub const BEHIND: Duration = Duration::from_secs(5);

/// All connections of this proxy that may be proven anew.
#[derive(Debug)]
pub struct Reauth {
    /// Those that we accepted, by their name. Bounded by the bound on inbound connections.
    accepted: Mutex<HashMap<Name, Accepted>>,
    /// Those that we dialled and that carry an application now. Bounded by the bound on outbound connections.
    dialled: Mutex<Dialled>,
    at_once: Arc<Semaphore>,
    /// How many stood on another root than the one that vouches for us, when that was last looked at.
    behind: AtomicU64,
}

#[derive(Debug)]
struct Accepted {
    peer: Arc<Peer>,
    /// What the rules are asked.
    asking: Asking,
}

#[derive(Debug, Default)]
struct Dialled {
    next: u64,
    entries: HashMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    peer: Arc<Peer>,
    address: SocketAddr,
    due: Instant,
    /// When it was tried last.
    tried: Instant,
    failures: u32,
    under_way: bool,
}

/// An open connection, registered until this is dropped.
#[derive(Debug)]
pub struct Registered {
    reauth: Arc<Reauth>,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Accepted(Name),
    Dialled(u64),
}

impl Drop for Registered {
    fn drop(&mut self) {
        match &self.place {
            Place::Accepted(name) => drop(lock(&self.reauth.accepted).remove(name)),
            Place::Dialled(key) => drop(lock(&self.reauth.dialled).entries.remove(key)),
        }
    }
}

impl Reauth {
    /// Nothing open yet.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            accepted: Mutex::default(),
            dialled: Mutex::default(),
            at_once: Arc::new(Semaphore::new(AT_ONCE)),
            behind: AtomicU64::new(0),
        })
    }

    /// Open connections that stand, at either end, on another root than the one that vouches for us: they would end if that root went now. Those that
    /// we dialled count while they carry an application, those that we accepted always: whether another one comes is not for us to say. Counted each
    /// second.
    #[must_use]
    pub fn behind(&self) -> u64 {
        self.behind.load(Ordering::Relaxed)
    }

    /// A link was accepted; `asking` is what its application connections ask of the rules.
    pub fn accepted(self: &Arc<Self>, peer: &Arc<Peer>, asking: Asking) -> Registered {
        let name = peer.bond().name();
        lock(&self.accepted).insert(name, Accepted { peer: Arc::clone(peer), asking });
        Registered { reauth: Arc::clone(self), place: Place::Accepted(name) }
    }

    /// A link that we dialled carries an application from now on.
    pub fn dialled(self: &Arc<Self>, peer: &Arc<Peer>, address: SocketAddr) -> Registered {
        let now = Instant::now();
        let due = half_way(now, peer.ends());
        let entry = Entry { peer: Arc::clone(peer), address, due, tried: now, failures: 0, under_way: false };
        let mut dialled = lock(&self.dialled);
        dialled.next += 1;
        let key = dialled.next;
        dialled.entries.insert(key, entry);
        drop(dialled);
        Registered { reauth: Arc::clone(self), place: Place::Dialled(key) }
    }

    /// Those whose time has come; who was not tried for longest comes first, so that peers which do not answer keep nobody waiting.
    fn due(&self, credentials: &Credentials) -> Vec<u64> {
        let (now, mut behind, mut due) = (Instant::now(), 0, Vec::new());
        for (key, entry) in &lock(&self.dialled).entries {
            let is_behind = entry.peer.behind(credentials);
            behind += u64::from(is_behind);
            // Our own old leaf again would win nothing.
            let newer = credentials.expires_at() > entry.peer.not_after();
            if !entry.under_way && (is_behind && now >= entry.tried + BEHIND || newer && now >= entry.due) {
                due.push((entry.tried, *key));
            }
        }
        behind += lock(&self.accepted).values().filter(|accepted| accepted.peer.behind(credentials)).count() as u64;
        self.behind.store(behind, Ordering::Relaxed);
        due.sort_unstable();
        due.into_iter().map(|(_, key)| key).collect()
    }

    /// Who is to be proven anew, and where; `None` if it ended meanwhile.
    fn begin(&self, key: u64) -> Option<(Arc<Peer>, SocketAddr)> {
        let mut dialled = lock(&self.dialled);
        let entry = dialled.entries.get_mut(&key).filter(|entry| !entry.under_way)?;
        entry.under_way = true;
        Some((Arc::clone(&entry.peer), entry.address))
    }

    /// What came of an attempt.
    fn done(&self, key: u64, good: bool) {
        let mut dialled = lock(&self.dialled);
        let Some(entry) = dialled.entries.get_mut(&key) else {
            return; // it ended meanwhile
        };
        let now = Instant::now();
        (entry.tried, entry.under_way) = (now, false);
        if good {
            entry.failures = 0;
            entry.due = half_way(now, entry.peer.ends());
        } else {
            let left = entry.peer.ends().saturating_duration_since(now);
            let pause = (PAUSES.0 * 2_u32.saturating_pow(entry.failures.min(10))).min(PAUSES.1).min(left / 4);
            entry.failures = entry.failures.saturating_add(1);
            entry.due = now + pause.mul_f64(rand::rng().random_range(0.5..1.0));
        }
    }
}

/// Half of what is left, somewhat earlier, so that many that were opened together do not come together.
fn half_way(now: Instant, ends: Instant) -> Instant {
    now + ends.saturating_duration_since(now).mul_f64(rand::rng().random_range(0.4..0.5))
}

/// The dialling side: proves open connections anew in good time, until draining forces the end. One after the other as fast as they go, a few at
/// once: when a root is replaced it is the turn of all.
pub async fn keep(proxy: Arc<Proxy>) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let all = async {
        loop {
            ticks.tick().await;
            let looked = Instant::now();
            let due = proxy.credentials().map(|credentials| proxy.reauth.due(&credentials)).unwrap_or_default();
            for key in due {
                let place = Arc::clone(&proxy.reauth.at_once).acquire_owned().await;
                let Some(((peer, address), place)) = proxy.reauth.begin(key).zip(place.ok()) else { continue };
                tokio::spawn(prove(Arc::clone(&proxy), key, peer, address, place));
                // Others may have become due that wait for longer.
                if looked.elapsed() >= LOOK {
                    break;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = proxy.drain.forced() => {}
        () = all => {}
    }
}

async fn prove(proxy: Arc<Proxy>, key: u64, peer: Arc<Peer>, address: SocketAddr, _place: OwnedSemaphorePermit) {
    let outcome = attempt(&proxy, &peer, address).await;
    tell(&proxy, Direction::Outbound, peer.id.id().as_str(), &outcome);
    proxy.reauth.done(key, outcome.is_ok());
}

async fn attempt(proxy: &Proxy, peer: &Peer, address: SocketAddr) -> Result<(), ReauthError> {
    let refused = |refusal: crate::proxy::Refusal| ReauthError::Ended(std::io::Error::other(refusal.detail));
    let limit = proxy.config.limits.handshake;
    let credentials = proxy.credentials().map_err(refused)?;
    let turn = proxy.turns.wait(address.ip(), limit).await;
    let _turn = turn.ok_or(ReauthError::Late(limit))?;
    let io = proxy.dial_peer(address).await.map_err(refused)?;
    ask(io, &credentials, peer, limit).await
}

/// The accepting side: judges who asks by a second connection. The caller holds its place among the handshakes.
///
/// # Errors
/// It proves nothing; the old connection stands as it did.
pub async fn serve(proxy: &Proxy, asked: Asked) -> Result<(), ReauthError> {
    let who = asked.who().to_owned();
    let outcome = judge(&proxy.reauth, &proxy.permits, asked).await;
    tell(proxy, Direction::Inbound, &who, &outcome);
    outcome
}

async fn judge(reauth: &Reauth, permits: &Permits, asked: Asked) -> Result<(), ReauthError> {
    let claim = asked.claim().await?;
    let (peer, asking) = {
        let accepted = lock(&reauth.accepted);
        let old = accepted.get(&claim.name()).ok_or(ReauthError::UnknownName)?;
        (Arc::clone(&old.peer), old.asking.clone())
    };
    let allowed = || permits.would_admit(&asking).map_err(|denial| ReauthError::Denied(denial.reason));
    claim.settle(&peer, allowed).await
}

fn tell(proxy: &Proxy, direction: Direction, peer: &str, outcome: &Result<(), ReauthError>) {
    let result = outcome.as_ref().map_or_else(ReauthError::label, |()| "ok");
    proxy.metrics.reauthentication(direction, result);
    let end = direction.label();
    match outcome {
        Ok(()) => tracing::debug!(end, peer, "an open connection was proven anew"),
        Err(why) => tracing::info!(end, peer, %why, "an open connection was not proven anew"),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
