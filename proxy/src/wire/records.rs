//! TLS 1.3 records after the handshake (RFC 8446 sections 4.6.3, 5, 6.1, 7.2, 7.3): seal and open, without a buffer of their own.
//!
//! `link` and the second connection of `tls::reauth` use it, over the secrets of a handshake that rustls made. It knows no socket. It must
//! never use a nonce twice, hand out a byte before its record is authenticated, or go on after an error. Why it is our own:
//! docs/decisions/0018.

use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{self, Prk};
use countersign_credentials::{Suite, TrafficSecrets};
use rustls::AlertDescription;
use zeroize::Zeroizing;

use super::out::Out;

/// Most plaintext of a record (RFC 8446 section 5.1).
pub const MOST_PLAIN: usize = 1 << 14;
/// Most bytes of a record that is not refused: header, plaintext with its type and padding (section 5.4), tag.
pub const MOST_SEALED: usize = HEADER + MOST_PLAIN + 1 + TAG;

const HEADER: usize = 5;
const TAG: usize = 16;
/// What a record of ours is longer than what it carries: header, type, tag.
const OVERHEAD: usize = HEADER + 1 + TAG;
/// Records that one key seals, far below the 2^24.5 that AES-GCM bears (RFC 8446 section 5.5). A fuzzer would never come so far.
const RECORDS_A_KEY: u64 = if cfg!(fuzzing) { 16 } else { 1 << 23 };
/// Records in a row that carry nothing for the application, new keys among them, beyond which the peer only wastes our time.
const MOST_EMPTY: u8 = 32;

const ALERT: u8 = 21;
const USER_CANCELED: u8 = 90;
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;
/// Tickets that a server may send, and we ignore; ours send none.
const MOST_TICKETS: u8 = 16;

/// Why a connection can carry nothing more. Each names the alert that tells the peer ([`RecordError::alert`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The header is of no protected record.
    #[error("a record of type {0} where only protected ones may come")]
    Unprotected(u8),
    /// More than a record may hold.
    #[error("a record is too long")]
    Overflow,
    /// It was not sealed by the peer, or not in this place.
    #[error("a record does not decrypt")]
    Decrypt,
    /// It holds no type, or one that has no place here.
    #[error("a record of an unexpected kind")]
    Unexpected,
    /// An alert or a handshake message that breaks its form.
    #[error("a record's content breaks its form")]
    Form,
    /// A word that the protocol does not have.
    #[error("a handshake message says what does not exist")]
    Illegal,
    /// Record after record that carries nothing.
    #[error("too many records that carry nothing")]
    Empty,
    /// The peer says why it ends.
    #[error("the peer ended the connection: {0:?}")]
    Alert(AlertDescription),
    /// A key or a nonce is used up, or the cipher failed. Cannot happen in the life of a connection.
    #[error("the cipher failed")]
    Cipher,
}

impl RecordError {
    /// What the peer is told, if it is told anything.
    fn alert(self) -> Option<AlertDescription> {
        Some(match self {
            Self::Unprotected(_) | Self::Unexpected | Self::Empty => AlertDescription::UnexpectedMessage,
            Self::Overflow => AlertDescription::RecordOverflow,
            Self::Decrypt => AlertDescription::BadRecordMac,
            Self::Form => AlertDescription::DecodeError,
            Self::Illegal => AlertDescription::IllegalParameter,
            Self::Cipher => AlertDescription::InternalError,
            Self::Alert(_) => return None,
        })
    }
}

/// What one record was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// So many bytes of plaintext.
    Data(usize),
    /// Nothing for the application: new keys.
    Nothing,
    /// The peer says nothing more (`close_notify`).
    Closed,
}

/// Which end of the handshake we were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We dialled.
    Client,
    /// We accepted.
    Server,
}

/// Both directions of one connection.
pub struct Records {
    opens: Half,
    seals: Half,
    /// The peer asked for new keys of ours; they come before the next record.
    asked: bool,
    empty: u8,
    /// So many tickets may still come: none to a server.
    tickets: u8,
    /// After a fault nothing more is opened.
    broken: bool,
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Records")
    }
}

impl Records {
    /// From the secrets of a finished handshake.
    ///
    /// # Errors
    /// [`RecordError::Cipher`] where they are not of the suite's length.
    pub fn new(secrets: &TrafficSecrets, role: Role) -> Result<Self, RecordError> {
        let client = Half::new(secrets.suite, &secrets.client)?;
        let server = Half::new(secrets.suite, &secrets.server)?;
        let (opens, seals, tickets) = match role {
            Role::Client => (server, client, MOST_TICKETS),
            Role::Server => (client, server, 0),
        };
        Ok(Self { opens, seals, asked: false, empty: 0, tickets, broken: false })
    }

    /// Opens the first record of `sealed` into `plain`, which must have room for [`MOST_SEALED`] bytes or for all of `sealed`. Returns
    /// how many bytes of `sealed` it was; `None`: it is not whole yet.
    ///
    /// # Errors
    /// Any: nothing is opened after it.
    pub fn open(&mut self, sealed: &[u8], plain: &mut [u8]) -> Result<Option<(usize, Opened)>, RecordError> {
        if self.broken {
            return Err(RecordError::Cipher);
        }
        let opened = self.open_next(sealed, plain);
        self.broken = opened.is_err();
        opened
    }

    fn open_next(&mut self, sealed: &[u8], plain: &mut [u8]) -> Result<Option<(usize, Opened)>, RecordError> {
        let Some((header, rest)) = sealed.split_first_chunk::<HEADER>() else {
            return sealed.first().map_or(Ok(None), |kind| protected(*kind).map(|()| None));
        };
        protected(header[0])?;
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if length > MOST_SEALED - HEADER {
            return Err(RecordError::Overflow);
        }
        let Some(inner) = length.checked_sub(TAG) else { return Err(RecordError::Decrypt) };
        if rest.len() < length {
            return Ok(None);
        }
        let plain = plain.get_mut(..inner).ok_or(RecordError::Cipher)?;
        self.opens.open(header, &rest[..inner], &rest[inner..length], plain)?;
        // Padding is zeros behind the type (section 5.4).
        let end = plain.iter().rposition(|byte| *byte != 0).ok_or(RecordError::Unexpected)?;
        let opened = match plain[end] {
            DATA if end == 0 => self.nothing()?,
            DATA => {
                self.empty = 0;
                Opened::Data(end)
            }
            // That a user cancelled tells nothing: `close_notify` follows (section 6.1).
            ALERT if matches!(plain[..end], [_, USER_CANCELED]) => self.nothing()?,
            ALERT => alert(&plain[..end])?,
            HANDSHAKE => self.handshake(&plain[..end])?,
            _ => return Err(RecordError::Unexpected),
        };
        Ok(Some((HEADER + length, opened)))
    }

    fn nothing(&mut self) -> Result<Opened, RecordError> {
        self.empty += 1;
        if self.empty > MOST_EMPTY { Err(RecordError::Empty) } else { Ok(Opened::Nothing) }
    }

    /// Messages of the handshake protocol after the handshake, each whole in its record (which RFC 8446 leaves to the sender, and every
    /// sender does with messages this short). We resume nothing, so that a ticket is passed over. A `KeyUpdate` ends its record, as
    /// what follows it is sealed by another key.
    fn handshake(&mut self, mut messages: &[u8]) -> Result<Opened, RecordError> {
        if messages.is_empty() {
            return Err(RecordError::Unexpected);
        }
        while let Some(([kind, length @ ..], rest)) = messages.split_first_chunk::<4>() {
            let length = usize::from(length[0]) << 16 | usize::from(length[1]) << 8 | usize::from(length[2]);
            match *kind {
                NEW_SESSION_TICKET if self.tickets > 0 => self.tickets -= 1,
                KEY_UPDATE => {
                    let ([asks], 1) = (rest, length) else { return Err(RecordError::Form) };
                    if *asks > 1 {
                        return Err(RecordError::Illegal);
                    }
                    self.nothing()?;
                    self.opens.renew()?;
                    self.asked |= *asks == 1;
                }
                _ => return Err(RecordError::Unexpected),
            }
            messages = rest.get(length..).ok_or(RecordError::Form)?;
        }
        if messages.is_empty() { Ok(Opened::Nothing) } else { Err(RecordError::Form) }
    }

    /// Seals bytes that leave together, in as few records as they need.
    ///
    /// # Errors
    /// [`RecordError::Cipher`].
    pub fn seal(&mut self, parts: &[&[u8]], out: &mut Out) -> Result<(), RecordError> {
        self.renew_in_time(out)?;
        let (mut part, mut at) = (0, 0);
        let mut left: usize = parts.iter().map(|part| part.len()).sum();
        while left > 0 {
            let length = left.min(MOST_PLAIN);
            while parts[part].len() == at {
                (part, at) = (part + 1, 0);
            }
            if let Some(piece) = parts[part].get(at..at + length) {
                self.seals.seal(DATA, piece, out)?;
                at += length;
            } else {
                // Of several parts: rare and short, so that they may be copied.
                let mut gathered = Vec::with_capacity(length);
                while gathered.len() < length {
                    let piece = &parts[part][at..];
                    let piece = &piece[..piece.len().min(length - gathered.len())];
                    gathered.extend_from_slice(piece);
                    at += piece.len();
                    if at == parts[part].len() && gathered.len() < length {
                        (part, at) = (part + 1, 0);
                    }
                }
                self.seals.seal(DATA, &gathered, out)?;
            }
            left -= length;
        }
        Ok(())
    }

    /// Says that we say nothing more.
    ///
    /// # Errors
    /// [`RecordError::Cipher`].
    pub fn seal_end(&mut self, out: &mut Out) -> Result<(), RecordError> {
        self.seals.seal(ALERT, &[1, AlertDescription::CloseNotify.into()], out)
    }

    /// Tells the peer what it did wrong, where that is told.
    pub fn seal_alert(&mut self, error: RecordError, out: &mut Out) {
        if let Some(alert) = error.alert() {
            // The connection ends in any case.
            let _ = self.seals.seal(ALERT, &[2, alert.into()], out);
        }
    }

    /// New keys for what we seal; `ask`: the peer shall do the same.
    ///
    /// # Errors
    /// [`RecordError::Cipher`].
    pub fn renew_keys(&mut self, ask: bool, out: &mut Out) -> Result<(), RecordError> {
        self.seals.seal(HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, u8::from(ask)], out)?;
        self.seals.renew()
    }

    /// Where the peer asked for it, or one key has sealed enough. However often asked meanwhile, we answer once.
    fn renew_in_time(&mut self, out: &mut Out) -> Result<(), RecordError> {
        if self.asked || self.seals.number >= RECORDS_A_KEY {
            self.asked = false;
            self.renew_keys(false, out)?;
        }
        Ok(())
    }
}

/// The other end as nothing of ours ever is, for tests and `fuzz/`.
#[cfg(any(test, fuzzing))]
impl Records {
    /// Seals a record of any kind and content, as only who has the keys can make it.
    ///
    /// # Errors
    /// [`RecordError::Cipher`].
    pub fn seal_any(&mut self, kind: u8, content: &[u8], out: &mut Out) -> Result<(), RecordError> {
        self.seals.seal(kind, content, out)
    }

    /// New keys for what is sealed, of which a record of [`Self::seal_any`] told.
    ///
    /// # Errors
    /// [`RecordError::Cipher`].
    pub fn renew_untold(&mut self) -> Result<(), RecordError> {
        self.seals.renew()
    }
}

fn protected(kind: u8) -> Result<(), RecordError> {
    if kind == DATA { Ok(()) } else { Err(RecordError::Unprotected(kind)) }
}

fn alert(message: &[u8]) -> Result<Opened, RecordError> {
    if message.is_empty() {
        return Err(RecordError::Unexpected); // section 5.4
    }
    let [_level, alert] = message else { return Err(RecordError::Form) };
    match AlertDescription::from(*alert) {
        AlertDescription::CloseNotify => Ok(Opened::Closed),
        alert => Err(RecordError::Alert(alert)),
    }
}

/// One direction: a key, how many records it served, and what the next key is made of.
struct Half {
    suite: Suite,
    key: LessSafeKey,
    iv: [u8; aead::NONCE_LEN],
    number: u64,
    secret: Zeroizing<Vec<u8>>,
}

impl Half {
    fn new(suite: Suite, secret: &[u8]) -> Result<Self, RecordError> {
        let (algorithm, hash) = algorithms(suite);
        if secret.len() != hash.hmac_algorithm().digest_algorithm().output_len() {
            return Err(RecordError::Cipher);
        }
        let mut key = Zeroizing::new([0; 32]);
        let key = &mut key[..algorithm.key_len()];
        expand(hash, secret, b"key", key)?;
        let mut iv = [0; aead::NONCE_LEN];
        expand(hash, secret, b"iv", &mut iv)?;
        let key = LessSafeKey::new(UnboundKey::new(algorithm, key).map_err(|_| RecordError::Cipher)?);
        Ok(Self { suite, key, iv, number: 0, secret: Zeroizing::new(secret.to_vec()) })
    }

    /// The next generation of keys (section 7.2).
    fn renew(&mut self) -> Result<(), RecordError> {
        let mut next = Zeroizing::new(vec![0; self.secret.len()]);
        expand(algorithms(self.suite).1, &self.secret, b"traffic upd", &mut next)?;
        *self = Self::new(self.suite, &next)?;
        Ok(())
    }

    /// The nonce of the next record (section 5.3).
    fn nonce(&mut self) -> Result<Nonce, RecordError> {
        let mut nonce = self.iv;
        for (byte, of_number) in nonce[4..].iter_mut().zip(self.number.to_be_bytes()) {
            *byte ^= of_number;
        }
        self.number = self.number.checked_add(1).ok_or(RecordError::Cipher)?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }

    fn open(&mut self, header: &[u8], sealed: &[u8], tag: &[u8], plain: &mut [u8]) -> Result<(), RecordError> {
        let nonce = self.nonce()?;
        self.key.open_separate_gather(nonce, Aad::from(header), sealed, tag, plain).map_err(|_| RecordError::Decrypt)
    }

    fn seal(&mut self, kind: u8, plain: &[u8], out: &mut Out) -> Result<(), RecordError> {
        let nonce = self.nonce()?;
        let room = out.room(plain.len() + OVERHEAD);
        let (header, rest) = room.split_at_mut(HEADER);
        let length = u16::try_from(rest.len()).map_err(|_| RecordError::Cipher)?;
        header[..3].copy_from_slice(&[DATA, 3, 3]);
        header[3..].copy_from_slice(&length.to_be_bytes());
        let (sealed, kind_and_tag) = rest.split_at_mut(plain.len());
        self.key
            .seal_out_of_place_scatter(nonce, Aad::from(&*header), plain, sealed, &[kind], kind_and_tag)
            .map_err(|_| RecordError::Cipher)?;
        out.filled(plain.len() + OVERHEAD);
        Ok(())
    }
}

fn algorithms(suite: Suite) -> (&'static aead::Algorithm, hkdf::Algorithm) {
    match suite {
        Suite::Aes128GcmSha256 => (&aead::AES_128_GCM, hkdf::HKDF_SHA256),
        Suite::Aes256GcmSha384 => (&aead::AES_256_GCM, hkdf::HKDF_SHA384),
        Suite::ChaCha20Poly1305Sha256 => (&aead::CHACHA20_POLY1305, hkdf::HKDF_SHA256),
    }
}

/// `HKDF-Expand-Label` with an empty context (section 7.1).
fn expand(hash: hkdf::Algorithm, secret: &[u8], label: &[u8], out: &mut [u8]) -> Result<(), RecordError> {
    struct Length(usize);
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    const PREFIX: &[u8] = b"tls13 ";
    let length = u16::try_from(out.len()).map_err(|_| RecordError::Cipher)?.to_be_bytes();
    let labelled = [u8::try_from(PREFIX.len() + label.len()).map_err(|_| RecordError::Cipher)?];
    let info: [&[u8]; 5] = [&length, &labelled, PREFIX, label, &[0]];
    let okm = Prk::new_less_safe(hash, secret);
    let okm = okm.expand(&info, Length(out.len())).map_err(|_| RecordError::Cipher)?;
    okm.fill(out).map_err(|_| RecordError::Cipher)
}

#[cfg(test)]
mod tests;
