//! Places for what strangers and members may hold at once: so many in all, so many for one source, so that one neighbour's
//! idle connections cannot keep the others out.
//!
//! Called by `incoming` (connections, handshakes), by the proxy (handshakes) and by the controller (connections of one pod).
//! It must never queue anybody, and never keep a source that holds nothing.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The places.
#[derive(Debug)]
pub struct Places {
    all: usize,
    each: usize,
    network: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
    /// IPv6 only, by /64.
    by_network: HashMap<Ipv6Addr, usize>,
}

/// One place; given back on drop.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    source: IpAddr,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// All are taken.
    All,
    /// This source has its share, or its network has.
    Source,
}

impl Places {
    /// So many in all, at most a quarter of them (at least one) for one address, and at most half for one /64 of IPv6: an
    /// address there costs nothing, yet all pods of a node may share one, and none of them may keep the others out alone.
    #[must_use]
    pub fn in_quarters(all: usize) -> Arc<Self> {
        Self::new(all, (all / 4).max(1), (all / 2).max(1))
    }

    /// So many for each address, and no bound in all: for sources that were proven, or are bounded elsewhere.
    #[must_use]
    pub fn for_each_address(each: usize) -> Arc<Self> {
        Self::new(usize::MAX, each, usize::MAX)
    }

    fn new(all: usize, each: usize, network: usize) -> Arc<Self> {
        Arc::new(Self { all, each, network, taken: Mutex::default() })
    }

    /// A place for `source`.
    ///
    /// # Errors
    /// There is none.
    pub fn take(self: &Arc<Self>, source: IpAddr) -> Result<Place, Full> {
        let source = source.to_canonical();
        let mut taken = self.lock();
        if taken.all >= self.all {
            return Err(Full::All);
        }
        let network = network(source);
        let of_network = network.and_then(|network| taken.by_network.get(&network)).copied();
        if taken.by_address.get(&source).is_some_and(|count| *count >= self.each)
            || of_network.is_some_and(|count| count >= self.network)
        {
            return Err(Full::Source);
        }
        *taken.by_address.entry(source).or_insert(0) += 1;
        if let Some(network) = network {
            *taken.by_network.entry(network).or_insert(0) += 1;
        }
        taken.all += 1;
        Ok(Place { places: Arc::clone(self), source })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn network(source: IpAddr) -> Option<Ipv6Addr> {
    match source {
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) => Some(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.all -= 1;
        give_back(&mut taken.by_address, &self.source);
        if let Some(network) = network(self.source) {
            give_back(&mut taken.by_network, &network);
        }
    }
}

fn give_back<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_source_gets_at_most_a_quarter() {
        let places = Places::in_quarters(8);
        let held: Vec<_> = (0..2).map(|_| places.take(at("10.0.0.1")).unwrap()).collect();
        assert_eq!(places.take(at("10.0.0.1")).unwrap_err(), Full::Source);
        let _other = places.take(at("10.0.0.2")).unwrap();
        drop(held);
        assert!(places.take(at("10.0.0.1")).is_ok());
    }

    #[test]
    fn all_places_together_are_bounded_and_given_back() {
        let places = Places::in_quarters(4);
        let held: Vec<_> = (1..=4).map(|n| places.take(IpAddr::from([10, 0, 0, n])).unwrap()).collect();
        assert_eq!(places.take(at("10.0.0.9")).unwrap_err(), Full::All);
        drop(held);
        assert!(places.lock().by_address.is_empty(), "sources are forgotten");
        assert_eq!(places.lock().all, 0);
    }

    #[test]
    fn an_ipv6_neighbour_cannot_multiply_itself() {
        let places = Places::in_quarters(4);
        let held = ["fd00::1", "fd00::2"].map(|address| places.take(at(address)).unwrap());
        assert_eq!(places.take(at("fd00::3")).unwrap_err(), Full::Source, "half are its network's");
        assert!(places.take(at("fd00:0:0:1::1")).is_ok());
        drop(held);
        assert!(places.take(at("fd00::3")).is_ok());
        assert!(places.lock().by_network.is_empty(), "networks are forgotten");
    }

    #[test]
    fn an_ipv6_neighbour_alone_cannot_keep_out_the_pods_beside_it() {
        let places = Places::in_quarters(8);
        let _held: Vec<_> = (0..2).map(|_| places.take(at("fd00::1")).unwrap()).collect();
        assert_eq!(places.take(at("fd00::1")).unwrap_err(), Full::Source);
        assert!(places.take(at("fd00::2")).is_ok());
    }

    #[test]
    fn an_ipv4_source_in_ipv6_clothes_is_the_same_source() {
        for places in [Places::in_quarters(4), Places::for_each_address(1)] {
            let _held = places.take(at("10.0.0.1")).unwrap();
            assert_eq!(places.take(at("::ffff:10.0.0.1")).unwrap_err(), Full::Source);
        }
    }

    #[test]
    fn however_few_there_are_a_source_gets_one() {
        let places = Places::in_quarters(1);
        let _one = places.take(at("10.0.0.1")).unwrap();
        assert_eq!(places.take(at("10.0.0.1")).unwrap_err(), Full::All);
    }

    #[test]
    fn pods_of_one_node_have_their_places_each_for_itself() {
        let places = Places::for_each_address(8);
        let held: Vec<_> = (0..8).map(|_| places.take(at("fd00::1")).unwrap()).collect();
        assert_eq!(places.take(at("fd00::1")).unwrap_err(), Full::Source);
        assert!(places.take(at("fd00::2")).is_ok());
        drop(held);
        assert!(places.take(at("fd00::1")).is_ok());
        assert!(places.lock().by_address.is_empty(), "nothing is kept of who has gone");
    }
}
