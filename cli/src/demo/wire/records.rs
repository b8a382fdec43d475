//! TCP streams to TLS: is every byte part of a TLS record, and what did the server choose?
//!
//! Called by the claims with what `frames` put together. It must never take a stream for TLS because it begins like it.

use super::Stream;

const HEAD: usize = 5;
const HANDSHAKE: u8 = 22;
const APPLICATION: u8 = 23;
/// RFC 8446, 5.2: plaintext of at most 2^14 bytes, expanded by at most 256.
const MAX_RECORD: usize = 16_384 + 256;
const SERVER_HELLO: u8 = 2;
const SUPPORTED_VERSIONS: u16 = 43;
const KEY_SHARE: u16 = 51;
/// Legacy version, random, and the rest of what stands before the session id (RFC 8446, 4.1.3).
const SESSION_ID: usize = 4 + 2 + 32;

/// What a server chose, as anybody on the link can read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// 0x0304 is TLS 1.3.
    pub version: u16,
    /// The key exchange group; 0x11ec is X25519MLKEM768.
    pub group: u16,
}

impl Hello {
    /// The group's name.
    pub fn group_name(self) -> String {
        match self.group {
            0x11ec => "X25519MLKEM768".to_owned(),
            0x001d => "X25519".to_owned(),
            0x0017 => "secp256r1".to_owned(),
            other => format!("group 0x{other:04x}"),
        }
    }
}

/// What can be said of some streams together.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Connections, by their openers.
    pub connections: usize,
    /// Bytes of payload, both ways.
    pub bytes: usize,
    /// Records with application data (in TLS 1.3 also what of the handshake is encrypted).
    pub encrypted_records: usize,
    /// What each server chose.
    pub hellos: Vec<Hello>,
    /// Why this is not all TLS, or not all was seen; empty when it is.
    pub problems: Vec<String>,
}

/// Looks at every byte of every stream.
pub fn summary(streams: &[Stream]) -> Summary {
    let mut summary = Summary::default();
    for stream in streams {
        summary.connections += usize::from(stream.opener);
        summary.bytes += stream.bytes.len();
        let who = format!("{} to {}", stream.from, stream.to);
        if stream.gap {
            summary.problems.push(format!("{who}: the capture has a gap"));
        }
        match records(&stream.bytes) {
            Ok(records) => {
                summary.encrypted_records += records.iter().filter(|(kind, _)| *kind == APPLICATION).count();
                let hello =
                    records.iter().find(|(kind, _)| *kind == HANDSHAKE).and_then(|(_, body)| server_hello(body));
                if !stream.opener && !stream.bytes.is_empty() && hello.is_none() {
                    summary.problems.push(format!("{who}: does not begin with a ServerHello"));
                }
                summary.hellos.extend(hello);
            }
            Err(at) => summary.problems.push(format!("{who}: byte {at} is not part of a TLS record")),
        }
    }
    summary
}

/// Kind and body of each record; the last may be cut by the end of the capture. Else where TLS ends.
fn records(mut bytes: &[u8]) -> Result<Vec<(u8, &[u8])>, usize> {
    let (whole, mut records) = (bytes.len(), Vec::new());
    while !bytes.is_empty() {
        let at = whole - bytes.len();
        let (known, version) = (matches!(bytes[0], 20..=23), matches!(bytes.get(1..3), None | Some([3, 1 | 3])));
        if !known || !version {
            return Err(at);
        }
        let Some(head) = bytes.get(..HEAD) else { return Ok(records) };
        let length = usize::from(u16::from_be_bytes([head[3], head[4]]));
        if length == 0 || length > MAX_RECORD {
            return Err(at);
        }
        let end = bytes.len().min(HEAD + length);
        records.push((bytes[0], &bytes[HEAD..end]));
        bytes = &bytes[end..];
    }
    Ok(records)
}

/// Reads a ServerHello (RFC 8446, 4.1.3) for its version and group.
fn server_hello(body: &[u8]) -> Option<Hello> {
    (body.first() == Some(&SERVER_HELLO)).then_some(())?;
    let session = usize::from(*body.get(SESSION_ID)?);
    // Cipher suite and compression stand between the session id and the extensions' length.
    let mut left = body.get(SESSION_ID + 1 + session + 3 + 2..)?;
    let (mut version, mut group) = (None, None);
    while let Some((kind, rest)) = u16_at(left).zip(left.get(4..)) {
        let length = usize::from(u16_at(left.get(2..)?)?);
        match kind {
            SUPPORTED_VERSIONS => version = u16_at(rest),
            KEY_SHARE => group = u16_at(rest),
            _ => {}
        }
        left = rest.get(length..)?;
    }
    Some(Hello { version: version?, group: group? })
}

fn u16_at(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut record = vec![kind, 3, 3];
        record.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        record.extend(body);
        record
    }

    fn hello(version: u16) -> Vec<u8> {
        let mut body = vec![SERVER_HELLO, 0, 0, 90, 3, 3];
        body.extend([9; 32]);
        body.extend([4, 1, 2, 3, 4, 0x13, 0x01, 0]);
        body.extend([0, 14, 0, 51, 0, 4, 0x11, 0xec, 0, 0, 0, 43, 0, 2]);
        body.extend(version.to_be_bytes());
        body
    }

    fn stream(opener: bool, bytes: Vec<u8>) -> Stream {
        let (a, b) = ("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
        Stream { from: a, to: b, opener, bytes, gap: false }
    }

    #[test]
    fn what_the_server_chose_is_read() {
        let server = [record(HANDSHAKE, &hello(0x0304)), record(APPLICATION, &[1; 50])].concat();
        let summary = summary(&[stream(true, record(HANDSHAKE, &[1, 0, 0, 0])), stream(false, server)]);
        assert_eq!(summary.problems, Vec::<String>::new());
        assert_eq!((summary.connections, summary.encrypted_records), (1, 1));
        assert_eq!(summary.hellos, [Hello { version: 0x0304, group: 0x11ec }]);
        assert_eq!(summary.hellos[0].group_name(), "X25519MLKEM768");
    }

    #[test]
    fn plaintext_is_told_wherever_it_begins() {
        assert_eq!(summary(&[stream(true, b"GET / HTTP/1.1\r\n\r\n".to_vec())]).problems.len(), 1);
        let mixed = [record(HANDSHAKE, &[1; 30]), b"GET / HTTP/1.1\r\n".to_vec()].concat();
        assert_eq!(
            summary(&[stream(true, mixed)]).problems,
            ["10.0.0.1:1 to 10.0.0.2:2: byte 35 is not part of a TLS record"]
        );
    }

    #[test]
    fn a_server_that_says_no_hello_is_told() {
        assert_eq!(summary(&[stream(false, record(APPLICATION, &[1; 30]))]).problems.len(), 1);
    }

    #[test]
    fn a_cut_record_is_no_problem_and_a_gap_is() {
        let cut = record(APPLICATION, &[1; 30])[..20].to_vec();
        assert!(summary(&[stream(true, cut.clone())]).problems.is_empty());
        assert_eq!(summary(&[Stream { gap: true, ..stream(true, cut) }]).problems.len(), 1);
    }

    #[test]
    fn a_hello_cut_anywhere_is_no_panic() {
        let whole = hello(0x0304);
        for end in 0..whole.len() {
            let _ = server_hello(&whole[..end]);
        }
    }
}
