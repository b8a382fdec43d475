//! Which endpoint of a service takes the next connection. Called by `outbound`; pure but for the counts it keeps.
//!
//! Two ready endpoints are drawn at random, and the one with fewer of our own open connections is taken. It must never name an
//! endpoint that was tried already, nor fall back to one that is not ready.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::Rng;
use tokio::time::Instant;

use crate::discovery::{Endpoint, Service};

/// Most client-affinity memories; the oldest goes first.
const MOST_AFFINITIES: usize = 1024;

/// Open connections by endpoint, and where a client stuck.
#[derive(Debug, Default)]
pub struct Picks {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    open: HashMap<SocketAddr, usize>,
    affinity: HashMap<SocketAddr, (SocketAddr, Instant)>,
}

/// Counts one open connection to an endpoint until dropped.
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
        let fitting = service.endpoints.iter().filter(fits).count();
        if fitting == 0 {
            return None;
        }
        let first = random.random_range(0..fitting);
        let second = if fitting == 1 { first } else { (first + random.random_range(1..fitting)) % fitting };
        let nth = |n| service.endpoints.iter().filter(fits).nth(n);
        let (a, b) = (nth(first)?, nth(second)?);
        let open = |e: &Endpoint| inner.open.get(&e.address).copied().unwrap_or(0);
        let chosen = Arc::clone(if open(b) < open(a) { b } else { a });
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
    fn remember(&mut self, asked: SocketAddr, endpoint: SocketAddr, now: Instant) {
        if self.affinity.len() >= MOST_AFFINITIES
            && let Some(oldest) = self.affinity.iter().min_by_key(|(_, (_, at))| *at).map(|(k, _)| *k)
        {
            self.affinity.remove(&oldest);
        }
        self.affinity.insert(asked, (endpoint, now));
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
