//! The kubelet's part: ServiceAccount tokens for virtual pods, and the JWKS by which the CA verifies them.
//!
//! Called by `mesh`, and by tests that need a token with something wrong in it. It signs whatever it is asked to.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use countersign_api::names;
use jsonwebtoken::jwk::{Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PKCS_RSA_SHA256, RsaKeySize};
use serde_json::{Value, json};

/// The `iss` of all tokens made here.
pub const ISSUER: &str = "https://kubelet.test";

/// What tokens are signed with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TokenKey {
    /// ES256: quick to make.
    #[default]
    P256,
    /// RS256 with 2048 bits: what kubeadm gives an API server, and what clusters sign with unless they were told otherwise.
    Rsa2048,
}

/// A signer of tokens.
pub struct Kubelet {
    algorithm: Algorithm,
    key: EncodingKey,
    jwks: String,
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
    /// With a new key.
    ///
    /// # Errors
    /// If no key can be made.
    pub fn new(key: TokenKey) -> Result<Self> {
        let (algorithm, key) = match key {
            TokenKey::P256 => (Algorithm::ES256, EncodingKey::from_ec_der(&KeyPair::generate()?.serialize_der())),
            TokenKey::Rsa2048 => {
                let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?;
                (Algorithm::RS256, EncodingKey::from_rsa_pem(key.serialize_pem().as_bytes())?)
            }
        };
        let mut jwk = Jwk::from_encoding_key(&key, algorithm).context("making the key set")?;
        jwk.common.key_id = Some("kit".into());
        jwk.common.public_key_use = Some(PublicKeyUse::Signature);
        Ok(Self { algorithm, key, jwks: json!({"keys": [jwk]}).to_string() })
    }

    /// The public key, as a JWKS.
    #[must_use]
    pub fn jwks(&self) -> &str {
        &self.jwks
    }

    /// Signs claims.
    ///
    /// # Errors
    /// If the key cannot sign.
    pub fn token(&self, claims: &Value) -> Result<String> {
        let mut header = Header::new(self.algorithm);
        header.kid = Some("kit".into());
        Ok(jsonwebtoken::encode(&header, claims, &self.key)?)
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
