//! Who: SPIFFE ids, SVIDs, trust bundles and the one verifier.
//!
//! Every room of Countersign that asks "who is this?" gets its answer from here, and from nowhere else:
//!
//! ```
//! use countersign_identity::{BundleSet, Purpose, SpiffeId, VerifyError, verify_svid};
//! use rustls_pki_types::{CertificateDer, UnixTime};
//!
//! /// The peer showed `chain` and accepted our connection; is it the service account that we meant to reach?
//! fn reached(
//!     chain: &[CertificateDer<'_>],
//!     bundles: &BundleSet,
//!     expected: &SpiffeId,
//!     now: UnixTime,
//! ) -> Result<bool, VerifyError> {
//!     let peer = verify_svid(chain, bundles, Purpose::Server, now)?;
//!     Ok(peer.id() == expected)
//! }
//!
//! let backend = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/backend")?;
//! assert_eq!(backend.service_account(), Some(("shop", "backend")));
//! let nobody = BundleSet::new(vec![])?;
//! let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_795_262_400));
//! assert_eq!(reached(&[], &nobody, &backend, now).unwrap_err().label(), "no_certificate");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is where
//!
//! | value | made by | says |
//! | --- | --- | --- |
//! | [`SpiffeId`], [`TrustDomain`] | parsing | a name, well formed; nothing about who bears it |
//! | [`Svid`] | a chain and a key | our own identity: a proper leaf, with the key that belongs to it |
//! | [`TrustBundle`], [`BundleSet`] | roots, named by trust domain | who may vouch for whom; never pooled over trust domains |
//! | [`VerifiedId`] | [`verify_svid`] alone (or [`verify_svid_at_both_ends`], which is two of it) | this chain stands for this identity now: the proof that later steps demand |
//!
//! The room is pure: no clock (the time is a parameter), no network, no environment, no TLS library. What is true of a chain
//! depends on the arguments alone, so a stored chain is verified again by calling [`verify_svid`] again: after
//! [`BundleSet::compare`] said [`BundleChange::Lost`], for one.
//!
//! # What [`verify_svid`] checks
//!
//! In this order, cheap things first; numbers are those of the validation list that the tests follow.
//!
//! 1. The chain is bounded ([`MAX_CHAIN_CERTIFICATES`], [`MAX_CHAIN_BYTES`]).
//! 2. Every certificate is exactly one DER value (1), version 3, with no extension twice and none critical that is
//!    unknown, and the algorithm inside is the one outside (12). Malformed is never taken for absent.
//! 3. The leaf says that it is no CA (4), is for digital signatures and signs nothing else (5), and has exactly one URI,
//!    malformed ones counted, beside no name that cannot be read (8), which is a SPIFFE id with a path (9).
//! 4. The leaf is valid at `now` (3).
//! 5. There is a bundle for exactly the leaf's trust domain, and it is not empty (2).
//! 6. rustls-webpki finds a path to one of *that* bundle's roots: signatures of an allowed algorithm, validity, cA and path
//!    lengths of intermediates, extended key usages for the peer's side (11), name constraints.
//! 7. Of that path: the root has not ended (3) and its own path length is kept (7); intermediates may sign certificates (6)
//!    and claim no identity but the trust domain's own (10).
//!
//! Roots are checked as they are loaded (16): CA, may sign certificates, not expired, own trust domain, a key that can
//! verify, and no name constraints that path validation cannot process. **URI and directory name constraints on CA
//! certificates are not supported**: such a root is refused at load with a text that says so, such an intermediate makes
//! every chain through it fail with [`VerifyError::NameConstraints`].
//!
//! Not here: proof that the peer holds the leaf's key (13, the TLS handshake's), whether it is the peer that was meant (14,
//! the caller's comparison with [`VerifiedId::id`]), and what it may do (the rules).
//!
//! # Errors
//!
//! One enum for each thing that can be refused: [`SpiffeIdError`], [`CertificateError`], [`LeafError`], [`SignerError`],
//! [`SvidError`], [`BundleError`], [`VerifyError`]. Texts are bounded whatever a peer sends. [`VerifyError::label`] is a
//! word for metrics from a fixed list, [`VerifyError::blame`] says whom to look at first.

pub mod spiffe_id;

mod certificate;
mod chain;

mod leaf;
mod signer;

mod bundle;
mod bundle_set;

mod checked;
mod verify;
mod verify_error;

mod svid;

pub use bundle::{BundleError, MAX_ROOTS, TrustBundle};
pub use bundle_set::{BundleChange, BundleSet};
pub use certificate::CertificateError;
pub use chain::{ChainError, MAX_CHAIN_BYTES, MAX_CHAIN_CERTIFICATES};
pub use checked::CheckedSignature;
pub use leaf::LeafError;
pub use signer::SignerError;
pub use spiffe_id::{SpiffeId, SpiffeIdError, TrustDomain};
pub use svid::{Svid, SvidError};
pub use verify::{Purpose, VerifiedId, verify_svid, verify_svid_at_both_ends};
pub use verify_error::{Blame, VerifyError, utc};
