//! The verifier as rustls wants it: one object a connection, which asks `identity::verify_svid` and writes what it found into
//! that connection's [`PeerSlot`].
//!
//! Made by `config`. It must never decide anything itself: the rules of an X.509-SVID live in `identity`, and the only thing
//! added here is that the peer is the one who was dialled. Nothing is remembered between connections but verified chains
//! (`cache`), and those are held against the clock again at each use.

use std::fmt;
use std::sync::{Arc, OnceLock};

use countersign_identity::{BundleSet, Purpose, SpiffeId, VerifiedId, VerifyError, verify_svid};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerMisbehaved, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::cache::VerifiedCache;
use crate::peer::{PeerError, PeerSlot};
use crate::provider::{SCHEMES, provider};

/// Whom we believe: an immutable bundle set, and the chains that it was seen to vouch for.
///
/// A changed bundle makes a new `Trust` and with it an empty cache: nothing learned under the old roots survives.
pub(crate) struct Trust {
    pub(crate) bundles: BundleSet,
    cache: VerifiedCache,
}

impl Trust {
    pub(crate) fn new(bundles: BundleSet) -> Self {
        Self { bundles, cache: VerifiedCache::default() }
    }

    /// `verify_svid`, with the signatures of a chain checked once only.
    pub(crate) fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        purpose: Purpose,
        now: UnixTime,
    ) -> Result<VerifiedId, VerifyError> {
        self.cache.verified(chain, purpose, now, || verify_svid(chain, &self.bundles, purpose, now))
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").finish_non_exhaustive()
    }
}

/// Verifies the peer of one connection.
#[derive(Debug)]
pub(crate) struct Verifier {
    trust: Arc<Trust>,
    purpose: Purpose,
    expected: Option<SpiffeId>,
    mandatory: bool,
    /// Verified, but possession of the key is not proved yet.
    claimed: OnceLock<VerifiedId>,
    slot: PeerSlot,
}

impl Verifier {
    /// For a server: who comes is learned, whether it may is decided later. `mandatory`: no certificate, no connection.
    pub(crate) fn of_clients(trust: Arc<Trust>, mandatory: bool, slot: PeerSlot) -> Self {
        Self { trust, purpose: Purpose::Client, expected: None, mandatory, claimed: OnceLock::new(), slot }
    }

    /// For a client: exactly this server.
    pub(crate) fn of_server(trust: Arc<Trust>, expected: SpiffeId, slot: PeerSlot) -> Self {
        let expected = Some(expected);
        Self { trust, purpose: Purpose::Server, expected, mandatory: true, claimed: OnceLock::new(), slot }
    }

    fn check_chain(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let chain: Vec<CertificateDer<'_>> =
            std::iter::once(leaf).chain(intermediates).map(|der| CertificateDer::from(der.as_ref())).collect();
        let seen = self.trust.verify(&chain, self.purpose, now).map_err(PeerError::Refused);
        match seen.and_then(|seen| self.check_expected(seen)) {
            Ok(seen) => {
                let _ = self.claimed.set(seen);
                Ok(())
            }
            Err(error) => {
                let error = Arc::new(error);
                self.slot.fill(Err(Arc::clone(&error)));
                Err(Error::InvalidCertificate(CertificateError::Other(OtherError(error))))
            }
        }
    }

    fn check_expected(&self, seen: VerifiedId) -> Result<VerifiedId, PeerError> {
        match &self.expected {
            Some(expected) if expected != seen.id() => {
                Err(PeerError::Unexpected { expected: expected.clone(), seen: seen.id().clone() })
            }
            _ => Ok(seen),
        }
    }

    /// Proof of possession (RFC 8446, 4.4.3). Only now is the peer's identity told.
    fn check_possession(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if !SCHEMES.contains(&signature.scheme) {
            return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
        }
        let algorithms = provider().signature_verification_algorithms;
        let valid = rustls::crypto::verify_tls13_signature(message, leaf, signature, &algorithms)?;
        match self.claimed.get() {
            Some(claimed) => self.slot.fill(Ok(claimed.clone())),
            // rustls asks for the chain first; a signature without a verified chain proves nothing.
            None => return Err(Error::General("signature before certificate".into())),
        }
        Ok(valid)
    }
}

fn no_tls12() -> Error {
    Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOfferedOrEnabled)
}

impl ClientCertVerifier for Verifier {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check_chain(end_entity, intermediates, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_possession(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check_chain(end_entity, intermediates, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_possession(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}
