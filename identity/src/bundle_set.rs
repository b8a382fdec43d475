//! The bundles of all trust domains that we accept, and what changed between two such sets.
//!
//! Held by credentials, and handed to every call of `verify_svid`. A set never merges: each trust domain keeps its own
//! bundle, and a set is replaced as a whole. Who holds connections asks [`BundleSet::compare`] when a new set arrives: after
//! [`BundleChange::Lost`] every stored chain must pass `verify_svid` again.

use crate::bundle::{BundleError, TrustBundle};
use crate::certificate::sha256;
use crate::spiffe_id::TrustDomain;
use std::sync::Arc;

/// Bundles of several trust domains, at most one for each. Immutable; cloning copies a pointer.
///
/// Equal sets hold equal bundles, generations included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleSet(Arc<Inner>);

#[derive(Debug, PartialEq, Eq)]
struct Inner {
    /// Sorted by trust domain.
    bundles: Vec<TrustBundle>,
    fingerprint: [u8; 32],
}

/// How a set differs from an older one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BundleChange {
    /// The same roots for the same trust domains (generations may differ).
    Same,
    /// Roots came, none went: what was verified under the older set holds.
    Gained,
    /// At least one root (or a whole trust domain) is gone: verify stored chains again.
    Lost,
}

impl BundleSet {
    /// Puts bundles together, each for its own trust domain only. An empty set trusts nobody.
    ///
    /// # Errors
    /// Two bundles of the same trust domain.
    pub fn new(mut bundles: Vec<TrustBundle>) -> Result<Self, BundleError> {
        bundles.sort_by(|a, b| a.trust_domain().cmp(b.trust_domain()));
        let twice = bundles.windows(2).find(|pair| pair[0].trust_domain() == pair[1].trust_domain());
        if let Some(pair) = twice {
            return Err(BundleError::TwoBundles(pair[0].trust_domain().clone()));
        }
        let fingerprint = fingerprint(&bundles);
        Ok(Self(Arc::new(Inner { bundles, fingerprint })))
    }

    /// The bundle of exactly this trust domain.
    #[must_use]
    pub fn get(&self, trust_domain: &TrustDomain) -> Option<&TrustBundle> {
        let bundles = &self.0.bundles;
        let place = bundles.binary_search_by(|b| b.trust_domain().cmp(trust_domain));
        place.ok().and_then(|place| bundles.get(place))
    }

    /// All bundles, in the order of their trust domains' names.
    pub fn iter(&self) -> impl Iterator<Item = &TrustBundle> {
        self.0.bundles.iter()
    }

    /// A name for what is trusted: SHA-256 over every trust domain and its roots, without generations and regardless of
    /// order. Two sets with one fingerprint accept exactly the same chains, so it serves as the key of anything that
    /// rests on them (a pool, a cache), and in reports.
    #[must_use]
    pub fn fingerprint(&self) -> &[u8; 32] {
        &self.0.fingerprint
    }

    /// What this set, the newer, changes against `older`.
    #[must_use]
    pub fn compare(&self, older: &Self) -> BundleChange {
        if self.fingerprint() == older.fingerprint() {
            BundleChange::Same
        } else if older.lost_in(self).next().is_some() {
            BundleChange::Lost
        } else {
            BundleChange::Gained
        }
    }

    /// The roots of this set, the older, that `newer` holds no more: trust domain and SHA-256 of the root. They name what
    /// a rotation retired.
    pub fn lost_in<'a>(&'a self, newer: &'a Self) -> impl Iterator<Item = (&'a TrustDomain, &'a [u8; 32])> {
        self.iter().flat_map(move |old| {
            let new = newer.get(old.trust_domain());
            let gone = move |root: &&[u8; 32]| !new.is_some_and(|new| new.contains_root(root));
            old.root_sha256s().filter(gone).map(move |root| (old.trust_domain(), root))
        })
    }
}

/// Each trust domain's name with its length before it, then the number of roots and their hashes in sorted order.
fn fingerprint(sorted: &[TrustBundle]) -> [u8; 32] {
    let mut text = Vec::new();
    for bundle in sorted {
        let name = bundle.trust_domain().as_str();
        let mut roots: Vec<_> = bundle.root_sha256s().collect();
        roots.sort_unstable();
        text.extend((name.len() as u64).to_be_bytes());
        text.extend(name.as_bytes());
        text.extend((roots.len() as u64).to_be_bytes());
        text.extend(roots.into_iter().flatten());
    }
    sha256(&text)
}
