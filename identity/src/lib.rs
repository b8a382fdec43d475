//! Who: SPIFFE ids, SVIDs, trust bundles and the one verifier.

pub mod spiffe_id;

mod bundle;
mod bundle_set;
mod certificate;
mod chain;
mod leaf;
mod signer;
mod svid;
mod verify;
mod verify_error;

pub use bundle::{BundleError, MAX_ROOTS, TrustBundle};
pub use bundle_set::{BundleChange, BundleSet};
pub use certificate::CertificateError;
pub use chain::{ChainError, MAX_CHAIN_BYTES, MAX_CHAIN_CERTIFICATES};
pub use leaf::LeafError;
pub use signer::SignerError;
pub use spiffe_id::{SpiffeId, SpiffeIdError, TrustDomain};
pub use svid::{Svid, SvidError};
pub use verify::{Purpose, VerifiedId, verify_svid};
pub use verify_error::{Blame, VerifyError};
