//! What a neighbour on the link learns of a TLS connection: records, versions, groups. Pure.
//!
//! Called by tests and the demo on captured bytes (RFC 8446). It must never call something TLS 1.3 that is not so to the last
//! byte.

/// TLS 1.3, as `supported_versions` names it.
pub const TLS13: u16 = 0x0304;

const CHANGE_CIPHER_SPEC: u8 = 20;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;
/// RFC 8446 section 5.2.
const LONGEST_RECORD: usize = (1 << 14) + 256;
/// RFC 8446 section 4.1.3: the random of a HelloRetryRequest begins so.
const RETRY: [u8; 4] = [0xcf, 0x21, 0xad, 0x74];

// RFC 8446 section 4.2, RFC 7301.
const SERVER_NAME: u16 = 0;
const GROUPS: u16 = 10;
const ALPN: u16 = 16;
const VERSIONS: u16 = 43;
const KEY_SHARE: u16 = 51;

/// One record, as seen from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// 20 change cipher spec, 21 alert, 22 handshake, 23 application data.
    pub kind: u8,
    /// What it holds; encrypted but for the hellos.
    pub body: &'a [u8],
}

/// What a client offers in the clear.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// In order of preference.
    pub versions: Vec<u16>,
    /// Key exchange groups, in order of preference; 0x11ec is X25519MLKEM768.
    pub groups: Vec<u16>,
    /// Protocols.
    pub alpn: Vec<Vec<u8>>,
    /// It names a server.
    pub server_name: bool,
    /// Length of its record's body.
    pub length: usize,
}

/// What a server chose in the clear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerHello {
    /// [`TLS13`], or what an older one says.
    pub version: u16,
    /// Key exchange group.
    pub group: Option<u16>,
    /// It is a HelloRetryRequest.
    pub retry: bool,
}

/// Reads records; `None` where what follows is no record, or not a whole one.
pub fn records(mut bytes: &[u8]) -> impl Iterator<Item = Option<Record<'_>>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let record = record(bytes);
        bytes = record.map_or(&[], |record| &bytes[5 + record.body.len()..]);
        Some(record)
    })
}

fn record(bytes: &[u8]) -> Option<Record<'_>> {
    let (header, rest) = bytes.split_first_chunk::<5>()?;
    let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
    let good =
        (CHANGE_CIPHER_SPEC..=APPLICATION_DATA).contains(&header[0]) && header[1] == 3 && length <= LONGEST_RECORD;
    good.then(|| rest.get(..length)).flatten().map(|body| Record { kind: header[0], body })
}

/// The hello with which a client's bytes begin.
#[must_use]
pub fn client_hello(bytes: &[u8]) -> Option<ClientHello> {
    let record = record(bytes)?;
    let mut hello = Reader(handshake(record, CLIENT_HELLO)?);
    let _version_and_random = hello.take(2 + 32)?;
    let (_session, _ciphers, _compression) = (hello.vector(1)?, hello.vector(2)?, hello.vector(1)?);
    let mut told = ClientHello { length: record.body.len(), ..ClientHello::default() };
    for (kind, value) in extensions(hello.vector(2)?)? {
        let mut value = Reader(value);
        match kind {
            VERSIONS => told.versions = numbers(value.vector(1)?),
            GROUPS => told.groups = numbers(value.vector(2)?),
            ALPN => {
                let mut names = Reader(value.vector(2)?);
                while !names.0.is_empty() {
                    told.alpn.push(names.vector(1)?.to_vec());
                }
            }
            SERVER_NAME => told.server_name = true,
            _ => {}
        }
    }
    Some(told)
}

/// The hello with which a server's bytes begin.
#[must_use]
pub fn server_hello(bytes: &[u8]) -> Option<ServerHello> {
    let mut hello = Reader(handshake(record(bytes)?, SERVER_HELLO)?);
    let legacy = hello.number()?;
    let retry = hello.take(32)?.starts_with(&RETRY);
    let (_session, _cipher, _compression) = (hello.vector(1)?, hello.take(2)?, hello.take(1)?);
    let mut told = ServerHello { version: legacy, group: None, retry };
    let list = if hello.0.is_empty() { &[] } else { hello.vector(2)? };
    for (kind, value) in extensions(list)? {
        match kind {
            VERSIONS => told.version = Reader(value).number()?,
            KEY_SHARE => told.group = Some(Reader(value).number()?),
            _ => {}
        }
    }
    Some(told)
}

/// Checks that a connection is TLS 1.3 from the first byte to the last of both directions, with nothing in the clear
/// after the hellos.
///
/// # Errors
/// What else was seen.
pub fn only_tls13(to_server: &[u8], to_client: &[u8]) -> Result<(ClientHello, ServerHello), String> {
    let client = client_hello(to_server).ok_or("it does not begin with a ClientHello")?;
    let server = server_hello(to_client).ok_or("the answer does not begin with a ServerHello")?;
    if server.version != TLS13 {
        return Err(format!("the server chose version {:#06x}", server.version));
    }
    let hellos = if server.retry { 2 } else { 1 };
    for (side, bytes) in [("client", to_server), ("server", to_client)] {
        for (number, record) in records(bytes).enumerate() {
            let record =
                record.ok_or_else(|| format!("{side}: what follows record {number} is no whole TLS record"))?;
            match record.kind {
                HANDSHAKE if number < hellos * 2 => {}
                CHANGE_CIPHER_SPEC if record.body == [1] => {}
                APPLICATION_DATA => {}
                kind => return Err(format!("{side}: record {number} of type {kind} is in the clear")),
            }
        }
    }
    Ok((client, server))
}

fn handshake(record: Record<'_>, kind: u8) -> Option<&[u8]> {
    let (header, body) = record.body.split_first_chunk::<4>()?;
    let length = u32::from_be_bytes([0, header[1], header[2], header[3]]) as usize;
    (record.kind == HANDSHAKE && header[0] == kind).then(|| body.get(..length)).flatten()
}

fn extensions(bytes: &[u8]) -> Option<Vec<(u16, &[u8])>> {
    let mut reader = Reader(bytes);
    let mut found = Vec::new();
    while !reader.0.is_empty() {
        found.push((reader.number()?, reader.vector(2)?));
    }
    Some(found)
}

fn numbers(bytes: &[u8]) -> Vec<u16> {
    bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect()
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        self.take(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
    }

    /// Bytes behind their length, which is itself of 1 or 2 bytes.
    fn vector(&mut self, width: usize) -> Option<&'a [u8]> {
        let length = self.take(width)?.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        self.take(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handshake_record(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut message = vec![kind, 0];
        message.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        message.extend(body);
        let mut record = vec![HANDSHAKE, 3, 1];
        record.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
        record.extend(message);
        record
    }

    fn server(version: u16) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0x13, 1, 0]);
        body.extend([0, 14, 0, 43, 0, 2]);
        body.extend(version.to_be_bytes());
        body.extend([0, 51, 0, 4, 0x11, 0xec, 0, 0]);
        handshake_record(SERVER_HELLO, &body)
    }

    fn client() -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 1, 1, 0]);
        let extensions =
            [&[0, 43, 0, 3, 2, 3, 4][..], &[0, 10, 0, 4, 0, 2, 0x11, 0xec], &[0, 16, 0, 5, 0, 3, 2, b'h', b'2']]
                .concat();
        body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
        body.extend(extensions);
        handshake_record(CLIENT_HELLO, &body)
    }

    #[test]
    fn tls13_is_told_from_all_else() {
        let sealed = [&[23, 3, 3, 0, 2, 9, 9][..]].concat();
        let (up, down) = ([client(), sealed.clone()].concat(), [server(TLS13), sealed].concat());
        let (hello, chosen) = only_tls13(&up, &down).unwrap();
        assert_eq!((hello.versions, hello.groups, hello.alpn), (vec![TLS13], vec![0x11ec], vec![b"h2".to_vec()]));
        assert_eq!((chosen.version, chosen.group, chosen.retry), (TLS13, Some(0x11ec), false));
        assert!(only_tls13(&up, &server(0x0303)).unwrap_err().contains("0x0303"));
        assert!(only_tls13(b"GET / HTTP/1.1", &down).is_err());
        assert!(only_tls13(&up, &[&down[..], b"GET /"].concat()).unwrap_err().contains("no whole TLS record"));
        assert!(only_tls13(&[&up[..], &[21, 3, 3, 0, 2, 1, 0]].concat(), &down).unwrap_err().contains("type 21"));
        assert!(only_tls13(&[&up[..], &client(), &client()].concat(), &down).is_err());
    }

    #[test]
    fn a_hello_cut_short_is_none() {
        for length in 0..client().len() {
            assert_eq!(client_hello(&client()[..length]), None);
        }
        for length in 0..server(TLS13).len() {
            assert_eq!(server_hello(&server(TLS13)[..length]), None);
        }
    }
}
