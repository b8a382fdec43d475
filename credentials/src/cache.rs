//! Chains that our verifier accepted, so that a peer that connects again costs one hash instead of two signature checks
//! (measured: some 106 of the 300 us that a handshake costs a side).
//!
//! Called by `verify` alone. One cache belongs to one bundle set and dies with it. It holds successes only, and each use asks
//! the clock again: a hit outside the time for which the whole path is known to be valid is a miss. It proves nothing about
//! who holds the key: CertificateVerify is checked on every connection.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::digest;
use countersign_identity::{Purpose, VerifiedId, VerifyError};
use rustls_pki_types::{CertificateDer, UnixTime};

/// Chains kept in each half; two halves exist. A VerifiedId is some 200 bytes, so a full cache stays under half a MiB.
const HALF: usize = 1024;

type Key = [u8; 32];

#[derive(Clone)]
struct Entry {
    id: VerifiedId,
    from: UnixTime,
    until: UnixTime,
}

/// Two maps: entries go into `young`; when that is full it becomes `old` and what was old is dropped. A hit in `old` moves
/// to `young`. So the bound holds, what is used stays, and no list is kept.
#[derive(Default)]
struct Halves {
    young: HashMap<Key, Entry>,
    old: HashMap<Key, Entry>,
}

#[derive(Default)]
pub(crate) struct VerifiedCache {
    halves: Mutex<Halves>,
}

impl VerifiedCache {
    /// The remembered finding for this chain, or what `verify` finds now.
    pub(crate) fn verified(
        &self,
        chain: &[CertificateDer<'_>],
        purpose: Purpose,
        now: UnixTime,
        verify: impl FnOnce() -> Result<VerifiedId, VerifyError>,
    ) -> Result<VerifiedId, VerifyError> {
        let key = key(chain, purpose);
        if let Some(id) = self.find(&key, now) {
            return Ok(id);
        }
        let id = verify()?;
        // `from` is now and not the certificate's: a clock that went back makes a miss, and the verifier decides.
        let entry = Entry { until: id.path_not_after(), from: now, id: id.clone() };
        self.lock().insert(key, entry);
        Ok(id)
    }

    fn find(&self, key: &Key, now: UnixTime) -> Option<VerifiedId> {
        let mut halves = self.lock();
        let entry = match halves.young.get(key) {
            Some(entry) => entry.clone(),
            None => {
                let entry = halves.old.remove(key)?;
                halves.insert(*key, entry.clone());
                entry
            }
        };
        (entry.from <= now && now <= entry.until).then_some(entry.id)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Halves> {
        self.halves.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Halves {
    fn insert(&mut self, key: Key, entry: Entry) {
        if self.young.len() >= HALF {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, entry);
    }
}

/// Lengths go in too: no two chains may run together into the same bytes.
fn key(chain: &[CertificateDer<'_>], purpose: Purpose) -> Key {
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(match purpose {
        Purpose::Server => b"server",
        Purpose::Client => b"client",
    });
    for der in chain {
        hash.update(&(der.len() as u64).to_be_bytes());
        hash.update(der);
    }
    let mut key = [0; 32];
    key.copy_from_slice(hash.finish().as_ref());
    key
}

#[cfg(test)]
mod tests;
