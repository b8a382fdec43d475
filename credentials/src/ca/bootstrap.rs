//! The mounted PEM file that vouches for the CA until the first bundle came by stream.
//!
//! Read anew at each use: its mount may be updated. It must never replace a running bundle while our SVID is good: an old
//! mount would bring back a root that a rotation has retired.

use std::io::Read as _;
use std::path::Path;

use countersign_identity::{TrustBundle, TrustDomain};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, UnixTime};

use super::error::CaError;

const MAX_BYTES: u64 = 1024 * 1024;

/// The bundle in the file, as generation 0: whatever the CA sends is newer.
pub(super) async fn read(path: &Path, trust_domain: TrustDomain, now: UnixTime) -> Result<TrustBundle, CaError> {
    let file = path.to_owned();
    let failed = |why: String| CaError::Bootstrap { path: path.to_owned(), why };
    let read = tokio::task::spawn_blocking(move || {
        let mut pem = Vec::new();
        std::fs::File::open(file)?.take(MAX_BYTES + 1).read_to_end(&mut pem)?;
        std::io::Result::Ok(pem)
    });
    let pem = match read.await {
        Ok(pem) => pem.map_err(|error| failed(error.to_string()))?,
        Err(_) => return Err(failed("reading was cancelled".into())),
    };
    if pem.len() as u64 > MAX_BYTES {
        return Err(failed("larger than 1 MiB".into()));
    }
    let roots = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| failed(error.to_string()))?;
    if roots.is_empty() {
        return Err(failed("no certificate in it".into()));
    }
    TrustBundle::new(trust_domain, 0, roots, now).map_err(|error| failed(error.to_string()))
}
