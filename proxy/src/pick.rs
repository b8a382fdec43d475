//! Which endpoint of a service takes the next connection. Called by `outbound`; pure but for the counts it keeps.
//!
//! Two ready endpoints are drawn at random, and the one with fewer of our own connections, open or being opened, is taken. One that
//! failed lately is left alone while others are there: it has few connections because it takes none. It must never name an
//! endpoint that was tried already, nor fall back to one that is not ready.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

use crate::discovery::{Endpoint, Service};

/// Most client-affinity memories; the oldest goes first.
const MOST_AFFINITIES: usize = 1024;
/// Most failed endpoints remembered; the one that failed first goes first.
const MOST_AILING: usize = 1024;
/// How long one that failed is left alone. Then one connection tries it, and the others wait for what comes of that.
const AILING: Duration = Duration::from_secs(10);

/// Connections by endpoint, where a client stuck, and who failed lately.
#[derive(Debug, Default)]
pub struct Picks {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    open: HashMap<SocketAddr, usize>,
    affinity: HashMap<SocketAddr, (SocketAddr, Instant)>,
    /// Until when each is left alone; remembered beyond, until it worked.
    ailing: HashMap<SocketAddr, Instant>,
}

/// Counts one connection to an endpoint, from choosing it on, until dropped.
#[derive(Debug)]
pub struct Load {
    picks: Arc<Picks>,
    address: SocketAddr,
}

impl Picks {
    /// The endpoint for the next connection to `service` (asked for as `asked`), but none in `tried`.
    pub fn pick(
        &self,
        service: &Service,
        asked: SocketAddr,
        own_node: &str,
        tried: &[SocketAddr],
        now: Instant,
        random: &mut impl Rng,
    ) -> Option<Arc<Endpoint>> {
        let fits = |e: &&Arc<Endpoint>| {
            e.ready
                && !tried.contains(&e.address)
                && (!service.local_only || (&*e.node == own_node && !own_node.is_empty()))
        };
        let mut inner = self.lock();
        if let Some(window) = service.affinity
            && let Some(&(stuck, since)) = inner.affinity.get(&asked)
            && now.saturating_duration_since(since) < window
            && let Some(endpoint) = service.endpoints.iter().filter(fits).find(|e| e.address == stuck)
        {
            inner.affinity.insert(asked, (stuck, now));
            return Some(Arc::clone(endpoint));
        }
        let all = || service.endpoints.iter().filter(fits);
        let chosen = inner.one_of(|| all().filter(|e| !inner.ails(e.address, now)), random);
        let chosen = Arc::clone(chosen.or_else(|| inner.one_of(all, random))?);
        // It may have failed before and be due for a try: ours, and no other's meanwhile.
        if let Some(until) = inner.ailing.get_mut(&chosen.address) {
            *until = now + AILING;
        }
        if service.affinity.is_some() {
            inner.remember(asked, chosen.address, now);
        }
        Some(chosen)
    }

    /// Counts a connection to `address` from now on.
    #[must_use]
    pub fn load(self: &Arc<Self>, address: SocketAddr) -> Load {
        *self.lock().open.entry(address).or_insert(0) += 1;
        Load { picks: Arc::clone(self), address }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Of two drawn at random, the one with fewer connections.
    fn one_of<'a, I>(&self, endpoints: impl Fn() -> I, random: &mut impl Rng) -> Option<&'a Arc<Endpoint>>
    where
        I: Iterator<Item = &'a Arc<Endpoint>>,
    {
        let fitting = endpoints().count();
        if fitting == 0 {
            return None;
        }
        let first = random.random_range(0..fitting);
        let second = if fitting == 1 { first } else { (first + random.random_range(1..fitting)) % fitting };
        let (a, b) = (endpoints().nth(first)?, endpoints().nth(second)?);
        let open = |e: &Endpoint| self.open.get(&e.address).copied().unwrap_or(0);
        Some(if open(b) < open(a) { b } else { a })
    }

    fn ails(&self, address: SocketAddr, now: Instant) -> bool {
        self.ailing.get(&address).is_some_and(|until| now < *until)
    }

    fn failed(&mut self, address: SocketAddr, now: Instant) {
        if self.ailing.len() >= MOST_AILING
            && let Some(oldest) = self.ailing.iter().min_by_key(|(_, until)| **until).map(|(address, _)| *address)
        {
            self.ailing.remove(&oldest);
        }
        self.ailing.insert(address, now + AILING);
    }

    fn remember(&mut self, asked: SocketAddr, endpoint: SocketAddr, now: Instant) {
        if self.affinity.len() >= MOST_AFFINITIES
            && let Some(oldest) = self.affinity.iter().min_by_key(|(_, (_, at))| *at).map(|(k, _)| *k)
        {
            self.affinity.remove(&oldest);
        }
        self.affinity.insert(asked, (endpoint, now));
    }
}

impl Load {
    /// The endpoint could not be reached, or did not take the connection.
    pub fn failed(self, now: Instant) {
        self.picks.lock().failed(self.address, now);
    }

    /// The endpoint proved to be there.
    pub fn worked(&self) {
        self.picks.lock().ailing.remove(&self.address);
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let mut inner = self.picks.lock();
        if let Some(count) = inner.open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                inner.open.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests;
