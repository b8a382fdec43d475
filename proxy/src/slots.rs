//! Handshake slots: how many inbound connections may be unproven at once, at most a quarter of them from one source, so
//! that one neighbour's silent connections cannot keep the others out. Called by `inbound`.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The slots.
#[derive(Debug)]
pub struct Slots {
    most: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_source: HashMap<IpAddr, usize>,
}

/// One slot; given back on drop.
#[derive(Debug)]
pub struct Slot {
    slots: Arc<Slots>,
    source: IpAddr,
}

impl Slots {
    /// So many in all; at least four.
    #[must_use]
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most: most.max(4), taken: Mutex::default() })
    }

    /// A slot for a connection from `source`, or `None` when all, or a quarter by this source, are taken.
    /// IPv6 sources count by /64: an address there costs nothing.
    #[must_use]
    pub fn take(self: &Arc<Self>, source: IpAddr) -> Option<Slot> {
        let source = whose(source);
        let mut taken = self.lock();
        if taken.all >= self.most {
            return None;
        }
        let of_source = taken.by_source.entry(source).or_insert(0);
        if *of_source >= self.most / 4 {
            return None;
        }
        *of_source += 1;
        taken.all += 1;
        Some(Slot { slots: Arc::clone(self), source })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn whose(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.lock();
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
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_source_gets_at_most_a_quarter() {
        let slots = Slots::new(8);
        let (a, b) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let held: Vec<_> = (0..2).map(|_| slots.take(a).unwrap()).collect();
        assert!(slots.take(a).is_none());
        assert!(slots.take(b).is_some());
        drop(held);
        assert!(slots.take(a).is_some());
    }

    #[test]
    fn all_slots_together_are_bounded_and_given_back() {
        let slots = Slots::new(4);
        let held: Vec<_> = (1..=4).map(|n| slots.take(IpAddr::from([10, 0, 0, n])).unwrap()).collect();
        assert!(slots.take(IpAddr::from([10, 0, 0, 9])).is_none());
        drop(held);
        assert!(slots.lock().by_source.is_empty());
        assert_eq!(slots.lock().all, 0);
    }

    #[test]
    fn an_ipv6_neighbour_cannot_multiply_itself() {
        let slots = Slots::new(4);
        let _one = slots.take("fd00::1".parse().unwrap()).unwrap();
        assert!(slots.take("fd00::2".parse().unwrap()).is_none());
        assert!(slots.take("fd00:0:0:1::1".parse().unwrap()).is_some());
    }
}
