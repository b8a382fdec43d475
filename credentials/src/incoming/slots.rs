//! Handshakes under way, bounded in all and for each source: a handshake costs us more than it costs a stranger to begin.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Handshakes under way: so many in all, a quarter for one source.
#[derive(Clone)]
pub(super) struct Slots {
    all: usize,
    each: usize,
    pub(super) used: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One handshake's place, until dropped.
pub(super) struct Slot {
    slots: Slots,
    source: IpAddr,
}

impl Slots {
    pub(super) fn new(all: usize) -> Self {
        Self { all, each: (all / 4).max(1), used: Arc::default() }
    }

    pub(super) fn take(&self, source: IpAddr) -> Option<Slot> {
        let source = source.to_canonical();
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = used.get(&source).copied().unwrap_or(0);
        if mine >= self.each || used.values().sum::<usize>() >= self.all {
            return None;
        }
        used.insert(source, mine + 1);
        Some(Slot { slots: self.clone(), source })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut used = self.slots.used.lock().unwrap_or_else(PoisonError::into_inner);
        match used.get_mut(&self.source) {
            Some(mine) if *mine > 1 => *mine -= 1,
            _ => drop(used.remove(&self.source)),
        }
    }
}
