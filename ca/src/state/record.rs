//! What is stored, as JSON inside the seal. Called by `state` only; private keys pass through buffers that are wiped.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_identity::TrustDomain;
use rustls_pki_types::UnixTime;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use super::StateError;
use super::authority::{Authority, Beside, Pair};
use super::rotation::Rotation;

/// The state, version 1.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    trust_domain: String,
    generation: u64,
    root: Stored,
    issuer: Stored,
    /// The root that does not sign, while a rotation is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    second: Option<Stored>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rotation: Option<Rotation>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    longest_leaf_s: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    certificate: Bytes,
    key: Bytes,
}

/// Bytes as base64 text; wiped when dropped.
struct Bytes(Zeroizing<Vec<u8>>);

/// Room for the whole record at once, so that no half-grown copy with keys in it stays behind in freed memory.
const ROOM: usize = 16 * 1024;

pub fn encode(authority: &Authority) -> Result<Zeroizing<Vec<u8>>, StateError> {
    let record = Record {
        trust_domain: authority.trust_domain().as_str().to_owned(),
        generation: authority.generation(),
        root: stored(authority.root()),
        issuer: stored(authority.issuer()),
        second: authority.second_root().map(stored),
        rotation: authority.rotation().cloned(),
        longest_leaf_s: authority.longest_leaf(),
    };
    let mut out = Zeroizing::new(Vec::with_capacity(ROOM));
    serde_json::to_writer(&mut *out, &record).map_err(|error| StateError::Record(error.to_string()))?;
    Ok(out)
}

pub fn decode(bytes: &[u8], trust_domain: &TrustDomain, now: UnixTime) -> Result<Authority, StateError> {
    // A serde error would quote what it read: keep only where it was.
    let record: Record = serde_json::from_slice(bytes)
        .map_err(|error| StateError::Record(format!("line {} column {}", error.line(), error.column())))?;
    if record.trust_domain != trust_domain.as_str() {
        return Err(StateError::TrustDomain { stored: record.trust_domain, configured: trust_domain.to_string() });
    }
    let Record { generation, root, issuer, second, rotation, longest_leaf_s, .. } = record;
    let second = second.as_ref().map(Stored::parts);
    let beside = Beside { second, rotation, longest_leaf: longest_leaf_s };
    Ok(Authority::restore(trust_domain, generation, root.parts(), issuer.parts(), beside, now)?)
}

impl Stored {
    /// Certificate and key.
    fn parts(&self) -> (&[u8], &[u8]) {
        (self.certificate.0.as_slice(), self.key.0.as_slice())
    }
}

fn stored(pair: &Pair) -> Stored {
    let bytes = |slice: &[u8]| Bytes(Zeroizing::new(slice.to_vec()));
    Stored { certificate: bytes(pair.certificate()), key: bytes(pair.key_der()) }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = Zeroizing::new(STANDARD.encode(self.0.as_slice()));
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        let bytes = STANDARD.decode(text.as_str()).map_err(|_| serde::de::Error::custom("not base64"))?;
        Ok(Self(Zeroizing::new(bytes)))
    }
}
