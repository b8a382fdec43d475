//! TLS whose certificate is not looked at, for the app's own https probes: as the kubelet does it, which asks the very same pod.
//!
//! Called by `probes` only. It must never carry anything but a probe of the pod's own spec.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Asks anybody.
#[derive(Clone, Default)]
pub struct Unverified(std::sync::OnceLock<Arc<ClientConfig>>);

impl fmt::Debug for Unverified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Unverified")
    }
}

impl Unverified {
    /// One handshake; the caller bounds its time.
    ///
    /// # Errors
    /// The other end speaks no TLS that we speak: 1.3, or 1.2.
    pub async fn connect(&self, io: TcpStream, ip: IpAddr) -> io::Result<TlsStream<TcpStream>> {
        let config = match self.0.get() {
            Some(config) => Arc::clone(config),
            None => {
                let made = config().map_err(io::Error::other)?;
                Arc::clone(self.0.get_or_init(|| made))
            }
        };
        TlsConnector::from(config).connect(ServerName::IpAddress(ip.into()), io).await
    }
}

fn config() -> Result<Arc<ClientConfig>, Error> {
    let provider = Arc::new(default_provider());
    let schemes = provider.signature_verification_algorithms.supported_schemes();
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(rustls::ALL_VERSIONS)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(schemes)))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Whoever answers at the pod's own address is the app.
#[derive(Debug)]
struct Anybody(Vec<SignatureScheme>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}
