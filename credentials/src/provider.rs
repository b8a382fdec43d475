//! The one set of TLS algorithms. Called by `config` and `verify`; nothing else in the workspace chooses algorithms, and
//! nothing here reads the process-wide default provider, which a dependency could have set.

use std::sync::{Arc, OnceLock};

use rustls::SignatureScheme;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};

/// Signature schemes that a peer may prove possession with (RFC 8446, 4.4.3). No PKCS#1 v1.5, no SHA-1, no P-521.
pub(crate) const SCHEMES: [SignatureScheme; 6] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
];

/// TLS 1.3 suites and the groups X25519MLKEM768, X25519, P-256, in this order.
///
/// AES-128-GCM stands first: 128 bits are enough beside X25519 and P-256, and it is the fastest of the three.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let made = PROVIDER.get_or_init(|| {
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                cipher_suite::TLS13_AES_128_GCM_SHA256,
                cipher_suite::TLS13_AES_256_GCM_SHA384,
                cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ],
            kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
            ..default_provider()
        })
    });
    Arc::clone(made)
}
