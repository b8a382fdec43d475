//! Tells our mutual TLS from an application's own TLS and from plaintext: a pure, bounded look at a ClientHello
//! (RFC 8446 section 4.1.2, ALPN: RFC 7301). It must never be trusted for more than which road to take: rustls
//! parses the same bytes again.

use countersign_api::names::{ALPN, ALPN_REAUTH};

/// Most bytes looked at: one TLS record, header and body (RFC 8446 section 5.1).
pub const MAX_RECORD: usize = HEADER + (1 << 14);
const HEADER: usize = 5;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const EXTENSION_ALPN: u16 = 16;

/// What a look at the first bytes says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// So far it may be a ClientHello; at least so many bytes are missing.
    More {
        /// Bytes.
        missing: usize,
    },
    /// A TLS record with a ClientHello. One that is cut over several records, or malformed, is not ours.
    ClientHello {
        /// Whether it offers our ALPN.
        ours: bool,
    },
    /// Not TLS.
    NotTls,
}

/// Looks at all bytes that came so far.
#[must_use]
pub fn look(bytes: &[u8]) -> Seen {
    let known = [Some(HANDSHAKE), Some(3), None, None, None, Some(CLIENT_HELLO)];
    if bytes.iter().zip(known).any(|(have, want)| want.is_some_and(|w| w != *have)) {
        return Seen::NotTls;
    }
    if bytes.len() > 2 && bytes[2] > 4 {
        return Seen::NotTls;
    }
    let Some(header) = bytes.get(..HEADER) else {
        return Seen::More { missing: HEADER - bytes.len() };
    };
    let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
    if length < 4 || HEADER + length > MAX_RECORD {
        return Seen::NotTls;
    }
    match bytes.get(HEADER..HEADER + length) {
        None => Seen::More { missing: HEADER + length - bytes.len() },
        Some(record) => Seen::ClientHello { ours: offers_ours(record).unwrap_or(false) },
    }
}

/// `None`: malformed, or cut over several records.
fn offers_ours(record: &[u8]) -> Option<bool> {
    let mut hello = Reader(record.get(1..)?);
    let body = hello.vector(3)?;
    let mut body = Reader(body);
    body.take(2 + 32)?; // legacy_version, random
    body.vector(1)?; // legacy_session_id
    body.vector(2)?; // cipher_suites
    body.vector(1)?; // legacy_compression_methods
    let mut extensions = Reader(body.vector(2)?);
    while !extensions.0.is_empty() {
        let kind = extensions.number(2)?;
        let data = extensions.vector(2)?;
        if kind != usize::from(EXTENSION_ALPN) {
            continue;
        }
        let mut data = Reader(data);
        let mut names = Reader(data.vector(2)?);
        while !names.0.is_empty() {
            if [ALPN, ALPN_REAUTH].contains(&names.vector(1)?) {
                return Some(true);
            }
        }
        return Some(false);
    }
    Some(false)
}

/// Takes bytes from the front, or says that there are too few.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    fn number(&mut self, bytes: usize) -> Option<usize> {
        Some(self.take(bytes)?.iter().fold(0, |n, b| n << 8 | usize::from(*b)))
    }

    /// A vector with a length of so many bytes before it.
    fn vector(&mut self, length_bytes: usize) -> Option<&'a [u8]> {
        let n = self.number(length_bytes)?;
        self.take(n)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    /// A real ClientHello, as rustls writes it.
    fn client_hello(alpn: &[&[u8]]) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|a| a.to_vec()).collect();
        let mut tls = rustls::ClientConnection::new(Arc::new(config), "backend".try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        tls.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn our_hello_is_told_from_an_applications_own() {
        assert_eq!(look(&client_hello(&[ALPN])), Seen::ClientHello { ours: true });
        assert_eq!(look(&client_hello(&[b"h2", ALPN])), Seen::ClientHello { ours: true });
        assert_eq!(look(&client_hello(&[b"h2", b"http/1.1"])), Seen::ClientHello { ours: false });
        assert_eq!(look(&client_hello(&[b"countersign/11"])), Seen::ClientHello { ours: false });
        assert_eq!(look(&client_hello(&[])), Seen::ClientHello { ours: false });
    }

    #[test]
    fn a_hello_in_one_byte_writes_asks_for_more_until_it_is_whole() {
        let hello = client_hello(&[ALPN]);
        assert!(hello.len() > 1024, "a hybrid key share is over 1 KiB");
        for cut in 0..hello.len() {
            assert!(matches!(look(&hello[..cut]), Seen::More { missing } if missing <= hello.len() - cut), "at {cut}");
        }
        assert_eq!(look(&hello), Seen::ClientHello { ours: true });
    }

    #[test]
    fn plaintext_is_told_at_its_first_byte() {
        for text in ["GET / HTTP/1.1\r\n", "PRI * HTTP/2.0", "S", "\0\0\0"] {
            assert_eq!(look(text.as_bytes()), Seen::NotTls, "{text}");
        }
        assert_eq!(look(b"\x16\x03\x01\x02\x00\x02"), Seen::NotTls, "a ServerHello does not begin a connection");
    }

    #[test]
    fn a_huge_record_is_refused_by_its_header() {
        assert_eq!(look(&[22, 3, 1, 0x40, 0x01]), Seen::NotTls);
        assert!(matches!(look(&[22, 3, 1, 0x40, 0x00]), Seen::More { missing: 16384 }));
    }

    #[test]
    fn a_hello_cut_over_two_records_is_not_ours() {
        let hello = client_hello(&[ALPN]);
        let body = &hello[5..];
        let cut = [&[22, 3, 1, 0, 100], &body[..100]].concat();
        assert_eq!(look(&cut), Seen::ClientHello { ours: false });
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = look(&bytes);
        }

        #[test]
        fn a_damaged_hello_never_panics(at in 0usize..1700, value: u8) {
            let mut hello = client_hello(&[ALPN]);
            if at < hello.len() { hello[at] = value; }
            let _ = look(&hello);
        }
    }
}
