//! The secrets of one finished handshake, for a record layer that is not rustls's.
//!
//! Filled by rustls by way of its key log, of this one connection alone and in memory alone; taken by `handshake::driven`. It must never
//! be shown, written or kept beside the keys made of it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::{CipherSuite, KeyLog, SupportedCipherSuite};
use zeroize::Zeroizing;

/// Names of RFC 8446 section 7.1 as a key log (draft-ietf-tls-keylogfile) has them.
const CLIENT: &str = "CLIENT_TRAFFIC_SECRET_0";
const SERVER: &str = "SERVER_TRAFFIC_SECRET_0";

/// The TLS 1.3 cipher suites that we speak (RFC 8446 appendix B.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// `TLS_AES_128_GCM_SHA256`
    Aes128GcmSha256,
    /// `TLS_AES_256_GCM_SHA384`
    Aes256GcmSha384,
    /// `TLS_CHACHA20_POLY1305_SHA256`
    ChaCha20Poly1305Sha256,
}

impl Suite {
    fn of(suite: SupportedCipherSuite) -> Option<Self> {
        match suite.suite() {
            CipherSuite::TLS13_AES_128_GCM_SHA256 => Some(Self::Aes128GcmSha256),
            CipherSuite::TLS13_AES_256_GCM_SHA384 => Some(Self::Aes256GcmSha384),
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => Some(Self::ChaCha20Poly1305Sha256),
            _ => None,
        }
    }
}

/// As many bytes as the suite's hash gives.
type Secret = Zeroizing<Vec<u8>>;

/// Both directions' first application traffic secrets (RFC 8446 section 7.1). Wiped when dropped.
pub struct TrafficSecrets {
    /// What they are for.
    pub suite: Suite,
    /// The client's writing.
    pub client: Secret,
    /// The server's writing.
    pub server: Secret,
}

impl fmt::Debug for TrafficSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrafficSecrets").field("suite", &self.suite).finish_non_exhaustive()
    }
}

/// Where they arrive during one handshake. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct SecretsSlot(Arc<Mutex<[Option<Secret>; 2]>>);

impl fmt::Debug for SecretsSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretsSlot")
    }
}

impl SecretsSlot {
    /// What arrived; `None` before the handshake is over, and the second time.
    pub(crate) fn take(&self, suite: Option<SupportedCipherSuite>) -> Option<TrafficSecrets> {
        let mut both = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let [client, server] = [both[0].take(), both[1].take()];
        Some(TrafficSecrets { suite: Suite::of(suite?)?, client: client?, server: server? })
    }
}

impl KeyLog for SecretsSlot {
    fn will_log(&self, label: &str) -> bool {
        label == CLIENT || label == SERVER
    }

    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        let place = match label {
            CLIENT => 0,
            SERVER => 1,
            _ => return,
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner)[place] = Some(Zeroizing::new(secret.to_vec()));
    }
}
