//! One request for an SVID: a new key, a CSR that names nobody, the token, and the answer held against our clock.
//!
//! Called by `renew`. The connection shows no client certificate: the token attests. The key leaves this file only inside the
//! [`Svid`].

use std::time::Duration;

use countersign_api::ca as wire;
use countersign_api::ca::certificate_authority_client::CertificateAuthorityClient;
use countersign_identity::{BundleSet, Svid};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::{Zeroize as _, Zeroizing};

use super::CaClient;
use super::error::CaError;
use crate::channel::{ChannelError, ChannelSettings, TlsAs, channel, reason};
use crate::clock::SharedClock;

/// For the whole call, connecting included.
const LIMIT: Duration = Duration::from_secs(10);
/// The largest answer read: a chain and a bundle are a few KiB.
pub(super) const MAX_ANSWER: usize = 256 * 1024;
/// Clocks are compared no finer than this.
const SKEW_FLOOR: Duration = Duration::from_secs(2);

/// What the CA gave, not yet verified against the bundle.
pub(super) struct Issued {
    pub(super) svid: Svid,
    pub(super) bundle: wire::TrustBundle,
}

/// Asks the CA, which must be `config.ca_id` as `bundles` vouch for it.
pub(super) async fn ask(
    config: &CaClient,
    bundles: BundleSet,
    token: Zeroizing<String>,
    generation: u64,
    clock: &SharedClock,
) -> Result<Issued, CaError> {
    let (key, csr) = key_and_csr().map_err(CaError::Csr)?;
    let channel = channel(ChannelSettings {
        address: config.ca_address.clone(),
        expected: config.ca_id.clone(),
        tls: TlsAs::Nobody(bundles, SharedClock::clone(clock)),
        mark: config.mark,
    });
    let mut client = CertificateAuthorityClient::new(channel).max_decoding_message_size(MAX_ANSWER);
    let asked = clock.now_ms();
    let mut request = tonic::Request::new(wire::IssueSvidRequest {
        csr,
        token: token.to_string(),
        client_time_ms: asked,
        ttl_seconds: config.ttl.map_or(0, |ttl| u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX)),
        bundle_generation: generation,
    });
    request.set_timeout(LIMIT);
    let answer = match tokio::time::timeout(LIMIT, client.issue_svid(request)).await {
        Ok(answer) => answer.map_err(|status| failed(&status))?.into_inner(),
        Err(_) => return Err(CaError::Timeout(LIMIT.as_secs())),
    };
    let chain = answer.chain.into_iter().map(CertificateDer::from).collect();
    let svid = Svid::new(chain, key)?;
    check_clocks(asked, clock.now_ms(), answer.ca_time_ms, &svid)?;
    Ok(Issued { svid, bundle: answer.bundle.ok_or(CaError::NoBundle)? })
}

/// A new P-256 key, and a CSR that holds nothing but its public half: the CA knows from the token who we are.
fn key_and_csr() -> Result<(PrivateKeyDer<'static>, Vec<u8>), rcgen::Error> {
    let mut pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let csr = params.serialize_request(&pair);
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der()));
    pair.zeroize();
    Ok((key, csr?.der().to_vec()))
}

/// Refuses an SVID when the clocks differ by more than a tenth of its life, beyond what the round trip may explain: one of
/// both would call it expired, or not yet valid, while the other does not.
fn check_clocks(asked_ms: i64, answered_ms: i64, theirs_ms: i64, svid: &Svid) -> Result<(), CaError> {
    let round_trip = answered_ms.saturating_sub(asked_ms).max(0);
    let ours_ms = asked_ms.saturating_add(round_trip / 2);
    let skew_ms = ours_ms.abs_diff(theirs_ms);
    let life = svid.not_after().as_secs().saturating_sub(svid.not_before().as_secs());
    let floor = u64::try_from(SKEW_FLOOR.as_millis()).unwrap_or(u64::MAX);
    let bound_ms = (life.saturating_mul(1000) / 10).max(floor);
    if skew_ms > bound_ms.saturating_add(round_trip.unsigned_abs() / 2) {
        return Err(CaError::Skew { ours_ms, theirs_ms, skew_ms, bound_ms });
    }
    Ok(())
}

/// A failed call as an error of ours.
pub(super) fn failed(status: &tonic::Status) -> CaError {
    let label = ChannelError::behind(status).map_or_else(|| code_label(status.code()), ChannelError::label);
    CaError::Call { label, reason: reason(status) }
}

fn code_label(code: tonic::Code) -> &'static str {
    match code {
        tonic::Code::InvalidArgument => "ca_invalid_argument",
        tonic::Code::Unauthenticated => "ca_unauthenticated",
        tonic::Code::PermissionDenied => "ca_permission_denied",
        tonic::Code::ResourceExhausted => "ca_resource_exhausted",
        tonic::Code::FailedPrecondition => "ca_failed_precondition",
        tonic::Code::Unavailable => "ca_unavailable",
        tonic::Code::DeadlineExceeded | tonic::Code::Cancelled => "timeout",
        _ => "ca_error",
    }
}
