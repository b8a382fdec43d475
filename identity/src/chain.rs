//! How large a chain may be. Called before anything in it is read.

use rustls_pki_types::CertificateDer;

/// Most certificates in a chain: leaf, two intermediates, and a root that some senders add.
pub const MAX_CHAIN_CERTIFICATES: usize = 4;

/// Most bytes in a chain, all certificates together.
pub const MAX_CHAIN_BYTES: usize = 64 * 1024;

/// Why a chain is not even looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// No certificate at all.
    #[error("no certificate")]
    Empty,
    /// More than [`MAX_CHAIN_CERTIFICATES`].
    #[error("a chain of {0} certificates; at most {MAX_CHAIN_CERTIFICATES} are allowed")]
    TooMany(usize),
    /// More than [`MAX_CHAIN_BYTES`].
    #[error("a chain of {0} bytes; at most {MAX_CHAIN_BYTES} are allowed")]
    TooLarge(usize),
}

pub(crate) fn check_size(chain: &[CertificateDer<'_>]) -> Result<(), ChainError> {
    if chain.is_empty() {
        return Err(ChainError::Empty);
    }
    if chain.len() > MAX_CHAIN_CERTIFICATES {
        return Err(ChainError::TooMany(chain.len()));
    }
    let bytes = chain.iter().map(|der| der.len()).sum();
    if bytes > MAX_CHAIN_BYTES {
        return Err(ChainError::TooLarge(bytes));
    }
    Ok(())
}
