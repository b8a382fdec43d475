//! Places for what strangers and members may hold at once: so many in all, so many for one source, so that one neighbour's
//! idle connections cannot keep the others out.
//!
//! Called by `incoming` (connections, handshakes), by the proxy (handshakes) and by the controller (connections of one pod).
//! It must never queue anybody, and never keep a source that holds nothing.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The places.
#[derive(Debug)]
pub struct Places {
    all: usize,
    each: usize,
    whose: fn(IpAddr) -> IpAddr,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_source: HashMap<IpAddr, usize>,
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
    /// This source has its share.
    Source,
}

impl Places {
    /// So many in all, at most a quarter of them (at least one) for one source. IPv6 sources count by /64: an address there
    /// costs nothing.
    #[must_use]
    pub fn in_quarters(all: usize) -> Arc<Self> {
        Self::new(all, (all / 4).max(1), network)
    }

    /// So many for each address, and no bound in all: for sources that were proven, or are bounded elsewhere.
    #[must_use]
    pub fn for_each_address(each: usize) -> Arc<Self> {
        Self::new(usize::MAX, each, |source| source.to_canonical())
    }

    fn new(all: usize, each: usize, whose: fn(IpAddr) -> IpAddr) -> Arc<Self> {
        Arc::new(Self { all, each, whose, taken: Mutex::default() })
    }

    /// A place for `source`.
    ///
    /// # Errors
    /// There is none.
    pub fn take(self: &Arc<Self>, source: IpAddr) -> Result<Place, Full> {
        let source = (self.whose)(source);
        let mut taken = self.lock();
        if taken.all >= self.all {
            return Err(Full::All);
        }
        let of_source = taken.by_source.entry(source).or_insert(0);
        if *of_source >= self.each {
            return Err(Full::Source);
        }
        *of_source += 1;
        taken.all += 1;
        Ok(Place { places: Arc::clone(self), source })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.all -= 1;
        if let Some(count) = taken.by_source.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                taken.by_source.remove(&self.source);
            }
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
        assert!(places.lock().by_source.is_empty(), "sources are forgotten");
        assert_eq!(places.lock().all, 0);
    }

    #[test]
    fn an_ipv6_neighbour_cannot_multiply_itself() {
        let places = Places::in_quarters(4);
        let _one = places.take(at("fd00::1")).unwrap();
        assert_eq!(places.take(at("fd00::2")).unwrap_err(), Full::Source);
        assert!(places.take(at("fd00:0:0:1::1")).is_ok());
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
        assert!(places.lock().by_source.is_empty(), "nothing is kept of who has gone");
    }
}
