//! The kubelet's part: ServiceAccount tokens for virtual pods, and the JWKS by which the CA verifies them.
//!
//! Called by `mesh`, and by tests that need a token with something wrong in it. It signs whatever it is asked to.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use countersign_api::names;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PublicKeyData as _};
use serde_json::{Value, json};

/// The `iss` of all tokens made here.
pub const ISSUER: &str = "https://kubelet.test";

/// A signer of tokens.
pub struct Kubelet {
    key: KeyPair,
}

/// What a token says. Start from [`TokenClaims::of`] and spoil what the test is about.
#[derive(Clone, Debug)]
pub struct TokenClaims {
    /// Namespace of pod and account.
    pub namespace: String,
    /// Service account.
    pub account: String,
    /// Name of the pod.
    pub pod_name: String,
    /// UID of the pod.
    pub pod_uid: String,
    /// Who may accept it.
    pub audience: String,
    /// Who issued it.
    pub issuer: String,
    /// From now until its end.
    pub life: Duration,
}

impl TokenClaims {
    /// A good token's claims.
    #[must_use]
    pub fn of(namespace: &str, account: &str, pod_name: &str, pod_uid: &str) -> Self {
        Self {
            namespace: namespace.into(),
            account: account.into(),
            pod_name: pod_name.into(),
            pod_uid: pod_uid.into(),
            audience: names::CA_AUDIENCE.into(),
            issuer: ISSUER.into(),
            life: Duration::from_secs(3600),
        }
    }

    /// As the API server writes them.
    #[must_use]
    pub fn json(&self) -> Value {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        json!({
            "iss": self.issuer,
            "aud": [self.audience],
            "iat": now,
            "nbf": now,
            "exp": now + self.life.as_secs(),
            "sub": format!("system:serviceaccount:{}:{}", self.namespace, self.account),
            "kubernetes.io": {
                "namespace": self.namespace,
                "serviceaccount": {"name": self.account, "uid": format!("account-{}", self.account)},
                "pod": {"name": self.pod_name, "uid": self.pod_uid},
            },
        })
    }
}

impl Kubelet {
    /// With a new P-256 key.
    ///
    /// # Errors
    /// If no key can be made.
    pub fn new() -> Result<Self> {
        Ok(Self { key: KeyPair::generate().context("making the token key")? })
    }

    /// The public key, as a JWKS.
    #[must_use]
    pub fn jwks(&self) -> String {
        // An uncompressed point: 4, x, y (SEC 1, section 2.3.3).
        let point = self.key.der_bytes();
        let [x, y] = [&point[1..33], &point[33..65]].map(|half| URL_SAFE_NO_PAD.encode(half));
        json!({"keys": [{
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "kit", "x": x, "y": y,
        }]})
        .to_string()
    }

    /// Signs claims.
    ///
    /// # Errors
    /// If the key cannot sign.
    pub fn token(&self, claims: &Value) -> Result<String> {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some("kit".into());
        let key = EncodingKey::from_ec_der(&self.key.serialize_der());
        Ok(jsonwebtoken::encode(&header, claims, &key)?)
    }
}

/// Replaces a file at once, as the kubelet does: a reader sees the old text or the new, never a part.
///
/// # Errors
/// If the folder cannot be written.
pub fn replace_file(path: &Path, text: &str) -> Result<()> {
    let name = path.file_name().context("a file has a name")?.to_string_lossy();
    let new = path.with_file_name(format!(".{name}.new"));
    std::fs::write(&new, text).with_context(|| new.display().to_string())?;
    std::fs::rename(&new, path).with_context(|| path.display().to_string())
}
