//! The token issuer's key set (RFC 7517) in a file, and the verification of a token with it. `issue` attests through it;
//! `upkeep` has it read again. A bad file keeps the last good keys. A token never chooses its own key or algorithm.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{DecodingKey, DecodingKeyKind};
use rustls_pki_types::UnixTime;
use serde::Deserialize;

use super::token::{self, Claims, TokenRules, excerpt};
use super::{AttestError, Caller};
use crate::state::sha256;

/// Why a file is not a usable key set.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct JwksError {
    path: PathBuf,
    problem: String,
}

const MAX_FILE: u64 = 1024 * 1024;
const MAX_KEYS: usize = 100;
const MIN_RSA_BYTES: usize = 256;

/// Key set and rules of tokens.
pub struct Jwks {
    path: PathBuf,
    rules: TokenRules,
    keys: ArcSwap<Keys>,
    problem: Mutex<Option<JwksError>>,
}

struct Keys {
    file_sha256: [u8; 32],
    by_id: HashMap<String, Key>,
}

struct Key {
    decoding: DecodingKey,
    /// What the set says the key is for; `None` = whatever fits its type.
    algorithm: Option<KeyAlgorithm>,
}

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<serde_json::Value>,
}

impl Jwks {
    /// Reads the key set; an unusable one is an error here, at the start.
    pub fn open(path: &Path, rules: TokenRules) -> Result<Self, JwksError> {
        let keys = ArcSwap::from_pointee(read(path)?);
        Ok(Self { path: path.to_owned(), rules, keys, problem: Mutex::new(None) })
    }

    /// Reads the file again. `Ok(true)`: new keys are in force. On an error the last good keys stay, and
    /// [`Jwks::problem`] tells it until the file is good again.
    pub fn refresh(&self) -> Result<bool, JwksError> {
        let read = read(&self.path);
        *self.problem.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = read.as_ref().err().cloned();
        let keys = read?;
        let changed = keys.file_sha256 != self.keys.load().file_sha256;
        if changed {
            self.keys.store(keys.into());
        }
        Ok(changed)
    }

    /// Why the file as it is now is not in force.
    pub fn problem(&self) -> Option<JwksError> {
        self.problem.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// Ids of the keys in force, sorted.
    pub fn key_ids(&self) -> Vec<String> {
        let mut ids: Vec<_> = self.keys.load().by_id.keys().cloned().collect();
        ids.sort();
        ids
    }

    /// Verifies the signature, then judges the claims.
    pub fn attest(&self, token: &str, now: UnixTime) -> Result<Caller, AttestError> {
        token::judge(self.verified(token)?, &self.rules, now)
    }

    fn verified(&self, token: &str) -> Result<Claims, AttestError> {
        // "none" and whatever else the library does not know fails to parse here.
        let header = jsonwebtoken::decode_header(token).map_err(|error| AttestError::Malformed(reason(&error)))?;
        if header.crit.is_some() {
            return Err(AttestError::Malformed("critical header fields are not understood".to_owned()));
        }
        if !self.rules.algorithms.contains(&header.alg) {
            return Err(AttestError::Algorithm { allowed: format!("{:?}", self.rules.algorithms) });
        }
        let id = header.kid.ok_or(AttestError::NoKeyId)?;
        let keys = self.keys.load();
        let key = keys.by_id.get(&id).ok_or_else(|| AttestError::UnknownKey(excerpt(&id)))?;
        if key.algorithm.is_some_and(|of_key| of_key != KeyAlgorithm::from(header.alg)) {
            return Err(AttestError::Signature);
        }
        let parts = token.rsplit_once('.').and_then(|(signed, made)| Some((signed, signed.rsplit_once('.')?.1, made)));
        let (signed, claims, made) = parts.ok_or_else(|| AttestError::Malformed("not three parts".to_owned()))?;
        // The library verifies the signature and no more: its claims are judged by `token::judge`, with our clock.
        match jsonwebtoken::crypto::verify(made, signed.as_bytes(), &key.decoding, header.alg) {
            Ok(true) => {}
            Err(error) if matches!(error.kind(), ErrorKind::Base64(_)) => {
                return Err(AttestError::Malformed(reason(&error)));
            }
            Ok(false) | Err(_) => return Err(AttestError::Signature),
        }
        let claims =
            URL_SAFE_NO_PAD.decode(claims).map_err(|error| AttestError::Malformed(excerpt(&error.to_string())))?;
        serde_json::from_slice(&claims).map_err(|error| AttestError::Claims(excerpt(&error.to_string())))
    }
}

fn reason(error: &jsonwebtoken::errors::Error) -> String {
    excerpt(&error.to_string())
}

fn read(path: &Path) -> Result<Keys, JwksError> {
    let bad = |problem: String| JwksError { path: path.to_owned(), problem };
    let file = std::fs::File::open(path).map_err(|error| bad(error.to_string()))?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|error| bad(error.to_string()))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(bad(format!("larger than {MAX_FILE} bytes")));
    }
    let set: KeySet = serde_json::from_slice(&bytes).map_err(|error| bad(format!("not a JWKS: {error}")))?;
    if set.keys.len() > MAX_KEYS {
        return Err(bad(format!("{} keys, more than {MAX_KEYS}", set.keys.len())));
    }
    let mut by_id = HashMap::new();
    for (index, value) in set.keys.into_iter().enumerate() {
        let Some((id, key)) = parse(value).map_err(|problem| bad(format!("keys[{index}]: {problem}")))? else {
            continue;
        };
        if by_id.insert(id, key).is_some() {
            return Err(bad(format!("keys[{index}]: the kid occurs twice")));
        }
    }
    if by_id.is_empty() {
        return Err(bad("holds no key that can verify a token (RSA, EC or OKP, with a kid)".to_owned()));
    }
    Ok(Keys { file_sha256: sha256(&bytes), by_id })
}

/// `None`: a key of another kind or use, which RFC 7517 section 5 says to ignore.
fn parse(value: serde_json::Value) -> Result<Option<(String, Key)>, String> {
    if !matches!(value.get("kty").and_then(|kty| kty.as_str()), Some("RSA" | "EC" | "OKP")) {
        return Ok(None);
    }
    if value.get("d").is_some() {
        return Err("holds a private key; give the public key only".to_owned());
    }
    let jwk: Jwk = serde_json::from_value(value).map_err(|error| error.to_string())?;
    if !matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature)) {
        return Ok(None);
    }
    let id = jwk.common.key_id.clone().filter(|id| !id.is_empty()).ok_or("has no kid")?;
    let decoding = DecodingKey::from_jwk(&jwk).map_err(|error| error.to_string())?;
    if let DecodingKeyKind::RsaModulusExponent { n, .. } = decoding.kind()
        && n.iter().skip_while(|byte| **byte == 0).count() < MIN_RSA_BYTES
    {
        return Err("is an RSA key of less than 2048 bits".to_owned());
    }
    Ok(Some((id, Key { decoding, algorithm: jwk.common.key_algorithm })))
}
