//! TLS configurations: one a connection, because each carries its own verifier, made cheaply from parts that
//! [`Credentials`] built once.
//!
//! Called by `handshake` and by the proxy. Must never enable TLS 1.2, session resumption, tickets, early or half-RTT data, a
//! key log that leaves the connection, or certificate compression: a resumed session would skip our verifier.

use std::fmt;
use std::sync::Arc;

use countersign_identity::{BundleSet, SpiffeId};
use rustls::client::Resumption;
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ConfigBuilder, ServerConfig, WantsVerifier};

use crate::clock::{RustlsTime, SharedClock};
use crate::credentials::Credentials;
use crate::peer::PeerSlot;
use crate::provider::provider;
use crate::secrets::SecretsSlot;
use crate::verify::{Trust, Verifier};

/// Whether a client must show an SVID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// No certificate, no connection. Between proxies and at the controller, in every mode.
    Required,
    /// A client may come without one (the CA attests it by its token); one that it shows must be good.
    Optional,
}

/// What all connections of one [`Credentials`] share.
pub(crate) struct Bases {
    key: Arc<SingleCertAndKey>,
    server: ConfigBuilder<ServerConfig, WantsVerifier>,
    client: ClientConfig,
}

impl Bases {
    pub(crate) fn new(key: Arc<SingleCertAndKey>, clock: &SharedClock) -> Result<Self, rustls::Error> {
        let time = Arc::new(RustlsTime(Arc::clone(clock)));
        let server =
            ServerConfig::builder_with_details(provider(), time).with_protocol_versions(&[&rustls::version::TLS13])?;
        let mut client = client_base(clock)?;
        client.client_auth_cert_resolver = Arc::clone(&key) as _;
        Ok(Self { key, server, client })
    }
}

impl fmt::Debug for Bases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bases").finish_non_exhaustive()
    }
}

/// For one connection that we accept: TLS 1.3, our SVID, the client's judged by our bundles. `alpn` in order of preference.
///
/// rustls lets a client pass that offers no ALPN at all: check with [`crate::negotiated_alpn_ok`], or use [`crate::accept`].
pub fn accept_config(credentials: &Credentials, alpn: &[&[u8]], auth: ClientAuth) -> (Arc<ServerConfig>, PeerSlot) {
    accept_config_with(credentials, alpn, auth, None)
}

/// The same; the traffic secrets arrive in `kept`.
pub(crate) fn accept_config_with(
    credentials: &Credentials,
    alpn: &[&[u8]],
    auth: ClientAuth,
    kept: Option<&SecretsSlot>,
) -> (Arc<ServerConfig>, PeerSlot) {
    let slot = PeerSlot::default();
    let trust = Arc::clone(&credentials.trust);
    let verifier = Verifier::of_clients(trust, auth == ClientAuth::Required, slot.clone());
    let mut config = credentials
        .bases
        .server
        .clone()
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::clone(&credentials.bases.key) as _);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.send_half_rtt_data = false;
    config.cert_compressors = Vec::new();
    config.cert_decompressors = Vec::new();
    config.alpn_protocols = owned(alpn);
    if let Some(kept) = kept {
        config.key_log = Arc::new(kept.clone());
    }
    (Arc::new(config), slot)
}

/// For one connection that we open with our SVID, to exactly `expected`.
pub fn connect_config(credentials: &Credentials, alpn: &[&[u8]], expected: &SpiffeId) -> (Arc<ClientConfig>, PeerSlot) {
    connect_config_with(credentials, alpn, expected, None)
}

/// The same; the traffic secrets arrive in `kept`.
pub(crate) fn connect_config_with(
    credentials: &Credentials,
    alpn: &[&[u8]],
    expected: &SpiffeId,
    kept: Option<&SecretsSlot>,
) -> (Arc<ClientConfig>, PeerSlot) {
    let mut config = credentials.bases.client.clone();
    if let Some(kept) = kept {
        config.key_log = Arc::new(kept.clone());
    }
    expecting(config, Arc::clone(&credentials.trust), alpn, expected)
}

/// For one connection that we open without an SVID, to exactly `expected`: how the first SVID is asked for.
pub fn connect_config_anonymous(
    bundles: &BundleSet,
    alpn: &[&[u8]],
    expected: &SpiffeId,
    clock: &SharedClock,
) -> Result<(Arc<ClientConfig>, PeerSlot), rustls::Error> {
    let trust = Arc::new(Trust::new(bundles.clone()));
    Ok(expecting(client_base(clock)?, trust, alpn, expected))
}

fn expecting(
    mut config: ClientConfig,
    trust: Arc<Trust>,
    alpn: &[&[u8]],
    expected: &SpiffeId,
) -> (Arc<ClientConfig>, PeerSlot) {
    let slot = PeerSlot::default();
    let verifier = Verifier::of_server(trust, expected.clone(), slot.clone());
    config.dangerous().set_certificate_verifier(Arc::new(verifier));
    config.alpn_protocols = owned(alpn);
    (Arc::new(config), slot)
}

/// A client configuration that trusts nobody and shows nothing until `expecting` and `Bases::new` complete it.
fn client_base(clock: &SharedClock) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(RustlsTime(Arc::clone(clock))))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    // SNI is not identity, and a name on the wire would tell who is called.
    config.enable_sni = false;
    config.cert_compressors = Vec::new();
    config.cert_decompressors = Vec::new();
    Ok(config)
}

fn owned(alpn: &[&[u8]]) -> Vec<Vec<u8>> {
    alpn.iter().map(|protocol| protocol.to_vec()).collect()
}

#[cfg(test)]
mod tests;
