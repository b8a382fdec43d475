//! Encryption at rest: a text line that names format and key, then nonce, ciphertext and tag (AES-256-GCM-SIV, the line as
//! associated data). Called by `state` only. GCM-SIV, because a nonce drawn twice must not cost the keys of a mesh.

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use zeroize::Zeroizing;

use super::key::StateKey;

/// Why a sealed state cannot be opened.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Not one of our files, or its first line is damaged.
    #[error("not a state file of countersign-ca (its first line is wrong)")]
    NotOurs,
    /// Written by a newer version.
    #[error("state format v{0}, but this version reads only v{VERSION}")]
    Version(u32),
    /// Another key sealed it.
    #[error("wrong state key: the state was sealed with key {sealed_with}, the key given is {given}")]
    WrongKey {
        /// Name of the key that sealed it.
        sealed_with: String,
        /// Name of the key we were given.
        given: String,
    },
    /// The key is right, the content is not what was sealed.
    #[error("damaged: the content fails authentication under the right key; restore it from a backup")]
    Damaged,
    /// The cipher refused to work.
    #[error("encryption failed")]
    Cipher,
}

const VERSION: u32 = 1;
const TITLE: &str = "countersign-ca state v";
/// The first line is never longer.
const MAX_LINE: usize = 80;

/// Seals `plain` under a fresh random nonce.
pub fn seal(key: &StateKey, plain: &[u8]) -> Result<Vec<u8>, SealError> {
    let line = format!("{TITLE}{VERSION} key={}\n", key.id());
    // Encrypted in place: the buffer holds plaintext until then, so it is wiped if encryption fails.
    let mut body = Zeroizing::new(plain.to_vec());
    let nonce =
        cipher(key)?.seal_in_place_append_tag(Aad::from(line.as_bytes()), &mut *body).map_err(|_| SealError::Cipher)?;
    Ok([line.as_bytes(), nonce.as_ref().as_slice(), body.as_slice()].concat())
}

/// Opens what [`seal`] made.
pub fn open(key: &StateKey, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let end = sealed.iter().take(MAX_LINE).position(|byte| *byte == b'\n').ok_or(SealError::NotOurs)? + 1;
    let (line, rest) = sealed.split_at(end);
    check_line(key, line)?;
    let (nonce, body) = rest.split_at_checked(NONCE_LEN).ok_or(SealError::Damaged)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError::Damaged)?;
    let mut body = Zeroizing::new(body.to_vec());
    let len = cipher(key)?.open_in_place(nonce, Aad::from(line), &mut body).map_err(|_| SealError::Damaged)?.len();
    body.truncate(len);
    Ok(body)
}

fn check_line(key: &StateKey, line: &[u8]) -> Result<(), SealError> {
    let text = std::str::from_utf8(line).map_err(|_| SealError::NotOurs)?;
    let text = text.strip_prefix(TITLE).and_then(|text| text.strip_suffix('\n')).ok_or(SealError::NotOurs)?;
    let (version, id) = text.split_once(" key=").ok_or(SealError::NotOurs)?;
    let version = version.parse().map_err(|_| SealError::NotOurs)?;
    if version != VERSION {
        return Err(SealError::Version(version));
    }
    if id != key.id() {
        return Err(SealError::WrongKey { sealed_with: id.to_owned(), given: key.id() });
    }
    Ok(())
}

fn cipher(key: &StateKey) -> Result<RandomizedNonceKey, SealError> {
    RandomizedNonceKey::new(&AES_256_GCM_SIV, key.bytes()).map_err(|_| SealError::Cipher)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use proptest::prelude::*;

    use super::*;

    fn key(byte: u8) -> StateKey {
        StateKey::from_text("test", &base64::engine::general_purpose::STANDARD.encode([byte; 32])).unwrap()
    }

    #[test]
    fn what_was_sealed_opens_again_and_no_two_seals_are_alike() {
        let (one, two) = (seal(&key(1), b"secret").unwrap(), seal(&key(1), b"secret").unwrap());
        assert_ne!(one, two);
        assert_eq!(open(&key(1), &one).unwrap().as_slice(), b"secret");
        assert!(!one.windows(6).any(|window| window == b"secret"));
    }

    #[test]
    fn a_wrong_key_is_told_from_damage() {
        let mut sealed = seal(&key(1), b"secret").unwrap();
        assert!(matches!(open(&key(2), &sealed), Err(SealError::WrongKey { .. })));
        *sealed.last_mut().unwrap() ^= 1;
        assert_eq!(open(&key(1), &sealed).unwrap_err(), SealError::Damaged);
    }

    #[test]
    fn a_state_of_a_newer_version_is_named() {
        let sealed = seal(&key(1), b"secret").unwrap();
        let newer = [b"countersign-ca state v2", &sealed[TITLE.len() + 1..]].concat();
        assert_eq!(open(&key(1), &newer).unwrap_err(), SealError::Version(2));
    }

    proptest! {
        #[test]
        fn one_flipped_bit_anywhere_never_opens(plain in proptest::collection::vec(any::<u8>(), 0..64), at in any::<proptest::sample::Index>(), bit in 0u8..8) {
            let mut sealed = seal(&key(3), &plain).unwrap();
            let at = at.index(sealed.len());
            sealed[at] ^= 1 << bit;
            prop_assert!(open(&key(3), &sealed).is_err());
        }

        #[test]
        fn any_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(open(&key(3), &bytes).is_err());
        }
    }
}
