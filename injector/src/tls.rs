//! TLS toward the API server: one configuration for each serving certificate, put in force for new connections without touching
//! those that are open.
//!
//! Called by `upkeep` (to put one in force) and `server` (to accept). Only here is rustls named. It must never put a certificate in
//! force that the API server would refuse: each is verified first, by its own root, for the name that is asked for.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::certificate::Pair;

/// Longest handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Why a pair cannot be served.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum TlsError {
    #[error("{0} is no PEM of what it should be")]
    Pem(&'static str),
    #[error("the name {0:?} is no DNS name")]
    Name(String),
    #[error("the certificate would be refused: {0}")]
    Refused(String),
    #[error("the certificate cannot be served: {0}")]
    Rustls(#[from] rustls::Error),
}

/// What new connections are served with; nothing at first.
#[derive(Clone)]
pub struct Serving(Arc<watch::Sender<InForce>>);

/// A pair, and what is served with it.
type InForce = Option<(Pair, Arc<ServerConfig>)>;

impl Default for Serving {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl Serving {
    /// Puts a pair in force. True if it was not yet.
    ///
    /// # Errors
    /// It is no good; what was in force stays.
    pub fn put(&self, pair: &Pair, name: &str, now: u64) -> Result<bool, TlsError> {
        if self.0.borrow().as_ref().is_some_and(|(current, _)| current == pair) {
            return Ok(false);
        }
        let config = Arc::new(config(pair, name, now)?);
        self.0.send_replace(Some((pair.clone(), config)));
        Ok(true)
    }

    /// End of what is in force, seconds since 1970.
    #[must_use]
    pub fn ends(&self) -> Option<u64> {
        self.0.borrow().as_ref().map(|(pair, _)| pair.ends)
    }

    /// Shakes hands, in bounded time.
    ///
    /// # Errors
    /// No TLS came of it, or there is nothing to serve with yet.
    pub async fn accept<IO>(&self, io: IO) -> io::Result<impl AsyncRead + AsyncWrite + Unpin + Send + use<IO>>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let config = self.0.borrow().as_ref().map(|(_, config)| Arc::clone(config));
        let config = config.ok_or_else(|| io::Error::other("no certificate yet"))?;
        match tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(config).accept(io)).await {
            Ok(accepted) => accepted,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

fn config(pair: &Pair, name: &str, now: u64) -> Result<ServerConfig, TlsError> {
    let leaf = CertificateDer::from_pem_slice(pair.leaf.as_bytes()).map_err(|_| TlsError::Pem("leaf"))?;
    let root = CertificateDer::from_pem_slice(pair.root.as_bytes()).map_err(|_| TlsError::Pem("root"))?;
    let key = PrivateKeyDer::from_pem_slice(pair.key.pem().as_bytes()).map_err(|_| TlsError::Pem("key"))?;
    let provider = Arc::new(default_provider());

    let mut roots = RootCertStore::empty();
    roots.add(root)?;
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let verifier = verifier.build().map_err(|error| TlsError::Refused(error.to_string()))?;
    let asked = ServerName::try_from(name.to_owned()).map_err(|_| TlsError::Name(name.to_owned()))?;
    let time = UnixTime::since_unix_epoch(Duration::from_secs(now));
    let verified = verifier.verify_server_cert(&leaf, &[], &asked, &[], time);
    verified.map_err(|error| TlsError::Refused(error.to_string()))?;

    let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13])?;
    let mut config = builder.with_no_client_auth().with_single_cert(vec![leaf], key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Random bytes, from where the handshakes have theirs; `None`: the system gives none.
pub fn fill_random(bytes: &mut [u8]) -> Option<()> {
    rustls::crypto::aws_lc_rs::default_provider().secure_random.fill(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn pair() -> Pair {
        Pair::make(&["i.s.svc".to_owned()], NOW, Duration::from_secs(3600)).unwrap()
    }

    #[test]
    fn what_we_make_is_accepted_once_and_what_is_wrong_never() {
        let serving = Serving::default();
        let good = pair();
        assert!(serving.put(&good, "i.s.svc", NOW).unwrap());
        assert!(!serving.put(&good, "i.s.svc", NOW).unwrap(), "already in force");
        let other = pair();
        for (what, bad) in [
            ("another root", Pair { root: other.root.clone(), ..good.clone() }),
            ("another key", Pair { key: other.key.clone(), ..good.clone() }),
            ("no leaf", Pair { leaf: "x".to_owned(), ..good.clone() }),
        ] {
            assert!(serving.put(&bad, "i.s.svc", NOW).is_err(), "{what}");
        }
        assert!(serving.put(&other, "other.s.svc", NOW).is_err(), "another name");
        assert!(serving.put(&other, "i.s.svc", NOW + 3601).is_err(), "ended");
        assert_eq!(serving.ends(), Some(good.ends), "what was in force stays");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_cut_and_without_a_certificate_nobody_is_served() {
        let serving = Serving::default();
        let (_far, near) = tokio::io::duplex(64);
        assert!(serving.accept(near).await.is_err());
        serving.put(&pair(), "i.s.svc", NOW).unwrap();
        let (_far, near) = tokio::io::duplex(64);
        assert_eq!(serving.accept(near).await.err().unwrap().kind(), io::ErrorKind::TimedOut);
    }
}
