//! The frames inside our TLS: a pure codec. `link` feeds it plaintext and writes what it encodes.
//!
//! A frame is 1 byte kind and flags, 3 bytes length (big endian), then so many bytes. It must never buffer
//! `DATA`: payload is handed on as it arrives, so a peer cannot make us hold a frame.

use std::fmt;

/// Bytes of a frame header.
pub const HEADER: usize = 4;
/// Most bytes of one `DATA` frame.
pub const MAX_DATA: usize = 64 * 1024;
/// Most bytes of all extensions of one `OPEN`.
pub const MAX_OPEN: usize = 1024;
/// Most bytes of a `STATUS`.
pub const MAX_STATUS: usize = 64;
/// Most frames that carry no data, per buffer parsed: an endless row of empty `DATA` frames is an attack.
const MAX_EMPTY_IN_A_ROW: u16 = 32;

const KIND_OPEN: u8 = 1;
const KIND_DATA: u8 = 2;
const KIND_FIN: u8 = 3;
const KIND_RST: u8 = 4;
const KIND_STATUS: u8 = 5;
const KIND_CLOSING: u8 = 6;

/// What the server side says to an `OPEN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The app's connect succeeded: bytes flow.
    Accepted,
    /// A rule, or the lack of one, said no. Both sides log the id.
    Denied(u64),
    /// The app did not take the connection. No byte reached it.
    Unreachable,
    /// This proxy is going away. No byte reached the app.
    Draining,
    /// This proxy is at a bound. No byte reached the app.
    Overloaded,
}

impl Status {
    /// Metric label and log word.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Denied(_) => "denied",
            Self::Unreachable => "app_unreachable",
            Self::Draining => "draining",
            Self::Overloaded => "overloaded",
        }
    }

    fn parse(payload: &[u8]) -> Result<Self, ProtocolError> {
        let (&code, rest) = payload.split_first().ok_or(ProtocolError::BadStatus)?;
        match (code, rest.len()) {
            (0, 0) => Ok(Self::Accepted),
            (1, 8) => {
                let mut id = [0; 8];
                id.copy_from_slice(rest);
                Ok(Self::Denied(u64::from_be_bytes(id)))
            }
            (2, 0) => Ok(Self::Unreachable),
            (3, 0) => Ok(Self::Draining),
            (4, 0) => Ok(Self::Overloaded),
            _ => Err(ProtocolError::BadStatus),
        }
    }
}

/// One step of what the peer said.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A new application connection begins.
    Open,
    /// Its bytes, or a part of them.
    Data(&'a [u8]),
    /// Half-close: no more bytes from the peer for this application connection.
    Fin,
    /// The peer's application connection was reset.
    Rst,
    /// The server side's answer to `OPEN`.
    Status(Status),
    /// The server side takes no more `OPEN`.
    Closing,
}

/// Why a peer's frames were refused. The connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A kind or a flag that this version does not know.
    #[error("unknown frame kind or flags {0:#04x}")]
    UnknownKind(u8),
    /// A length that the kind does not allow.
    #[error("a frame of kind {kind} may not have {length} bytes")]
    BadLength {
        /// Frame kind.
        kind: u8,
        /// Announced length in bytes.
        length: usize,
    },
    /// `STATUS` with an unknown code or shape.
    #[error("malformed STATUS")]
    BadStatus,
    /// `OPEN` with malformed extensions.
    #[error("malformed OPEN extensions")]
    BadExtensions,
    /// `OPEN` demands an extension that this version does not know.
    #[error("unknown critical OPEN extension {0}")]
    CriticalExtension(u16),
    /// A frame where it may not stand.
    #[error("{0} out of turn")]
    OutOfTurn(&'static str),
    /// Empty `DATA` frames without end.
    #[error("too many empty frames")]
    TooManyEmpty,
}

impl Event<'_> {
    /// Name for errors.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Open => "OPEN",
            Self::Data(_) => "DATA",
            Self::Fin => "FIN",
            Self::Rst => "RST",
            Self::Status(_) => "STATUS",
            Self::Closing => "CLOSING",
        }
    }
}

/// What the sink made of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Took {
    /// All of it: go on.
    All,
    /// All of it, and parse no further: what follows belongs to the next step.
    Stop,
    /// So many bytes of `Data`: the rest must be given again.
    Some(usize),
}

/// Frame parser. Holds at most a header and one control frame.
pub struct Parser {
    state: State,
    empty: u16,
}

enum State {
    Header { have: u8, bytes: [u8; HEADER] },
    Data { left: usize },
    Control { kind: u8, length: usize, have: Vec<u8> },
}

impl fmt::Debug for Parser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Parser")
    }
}

impl Default for Parser {
    fn default() -> Self {
        Self { state: State::Header { have: 0, bytes: [0; HEADER] }, empty: 0 }
    }
}

impl Parser {
    /// Whether the parser stands between two frames.
    #[must_use]
    pub fn is_between_frames(&self) -> bool {
        matches!(self.state, State::Header { have: 0, .. })
    }

    /// Parses `input` into events for `sink`; returns how many bytes were used. Fewer than given: the sink
    /// stopped, and the rest must be given again.
    ///
    /// # Errors
    /// [`ProtocolError`] from the bytes, or from the sink.
    pub fn parse(
        &mut self,
        input: &[u8],
        mut sink: impl FnMut(Event<'_>) -> Result<Took, ProtocolError>,
    ) -> Result<usize, ProtocolError> {
        let mut used = 0;
        while used < input.len() {
            let rest = &input[used..];
            match &mut self.state {
                State::Header { have, bytes } => {
                    let at = usize::from(*have);
                    let take = (HEADER - at).min(rest.len());
                    bytes[at..at + take].copy_from_slice(&rest[..take]);
                    used += take;
                    if at + take < HEADER {
                        *have = u8::try_from(at + take).unwrap_or(0);
                        break;
                    }
                    let header = *bytes;
                    if self.begin(header, &mut sink)? {
                        break;
                    }
                }
                State::Data { left } => {
                    let offered = rest.len().min(*left);
                    let (taken, stop) = match sink(Event::Data(&rest[..offered]))? {
                        Took::All => (offered, false),
                        Took::Stop => (offered, true),
                        Took::Some(n) => (n.min(offered), true),
                    };
                    used += taken;
                    *left -= taken;
                    if *left == 0 {
                        self.state = State::Header { have: 0, bytes: [0; HEADER] };
                    }
                    if stop {
                        break;
                    }
                }
                State::Control { kind, length, have } => {
                    let take = (*length - have.len()).min(rest.len());
                    have.extend_from_slice(&rest[..take]);
                    used += take;
                    if have.len() < *length {
                        break;
                    }
                    let (kind, payload) = (*kind, std::mem::take(have));
                    self.state = State::Header { have: 0, bytes: [0; HEADER] };
                    let event = if kind == KIND_OPEN {
                        check_extensions(&payload)?;
                        Event::Open
                    } else {
                        Event::Status(Status::parse(&payload)?)
                    };
                    if sink(event)? == Took::Stop {
                        break;
                    }
                }
            }
        }
        Ok(used)
    }

    /// Acts on a whole header; true = the sink stopped.
    fn begin(
        &mut self,
        header: [u8; HEADER],
        sink: &mut impl FnMut(Event<'_>) -> Result<Took, ProtocolError>,
    ) -> Result<bool, ProtocolError> {
        let kind = header[0];
        let length = usize::from(header[1]) << 16 | usize::from(header[2]) << 8 | usize::from(header[3]);
        let most = match kind {
            KIND_OPEN => MAX_OPEN,
            KIND_DATA => MAX_DATA,
            KIND_STATUS => MAX_STATUS,
            KIND_FIN | KIND_RST | KIND_CLOSING => 0,
            other => return Err(ProtocolError::UnknownKind(other)),
        };
        if length > most || (kind == KIND_STATUS && length == 0) {
            return Err(ProtocolError::BadLength { kind, length });
        }
        self.state = match (kind, length) {
            (KIND_DATA, 0) => {
                self.empty += 1;
                if self.empty > MAX_EMPTY_IN_A_ROW {
                    return Err(ProtocolError::TooManyEmpty);
                }
                State::Header { have: 0, bytes: [0; HEADER] }
            }
            (KIND_DATA, left) => {
                self.empty = 0;
                State::Data { left }
            }
            (KIND_OPEN | KIND_STATUS, 1..) => State::Control { kind, length, have: Vec::with_capacity(length) },
            _ => State::Header { have: 0, bytes: [0; HEADER] },
        };
        let event = match (kind, length) {
            (KIND_OPEN, 0) => Event::Open,
            (KIND_FIN, _) => Event::Fin,
            (KIND_RST, _) => Event::Rst,
            (KIND_CLOSING, _) => Event::Closing,
            _ => return Ok(false),
        };
        Ok(sink(event)? == Took::Stop)
    }
}

/// Extensions of an `OPEN`: 2 bytes type (top bit: critical), 2 bytes length, value. None is defined yet, so
/// any critical one is refused and others are passed over.
fn check_extensions(mut bytes: &[u8]) -> Result<(), ProtocolError> {
    while !bytes.is_empty() {
        let Some((head, rest)) = bytes.split_at_checked(4) else {
            return Err(ProtocolError::BadExtensions);
        };
        let kind = u16::from_be_bytes([head[0], head[1]]);
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        if kind & 0x8000 != 0 {
            return Err(ProtocolError::CriticalExtension(kind & 0x7fff));
        }
        bytes = rest.get(length..).ok_or(ProtocolError::BadExtensions)?;
    }
    Ok(())
}

/// An `OPEN` without extensions.
pub const OPEN: [u8; HEADER] = [KIND_OPEN, 0, 0, 0];
/// A half-close.
pub const FIN: [u8; HEADER] = [KIND_FIN, 0, 0, 0];
/// A reset.
pub const RST: [u8; HEADER] = [KIND_RST, 0, 0, 0];
/// The server side's last frame.
pub const CLOSING: [u8; HEADER] = [KIND_CLOSING, 0, 0, 0];

/// Header of a `DATA` frame. `length` is at most [`MAX_DATA`].
#[must_use]
pub fn data_header(length: usize) -> [u8; HEADER] {
    debug_assert!(length <= MAX_DATA);
    let [.., a, b, c] = length.to_be_bytes();
    [KIND_DATA, a, b, c]
}

/// A whole `STATUS` frame.
#[must_use]
pub fn status(status: Status) -> Vec<u8> {
    let mut payload = match status {
        Status::Accepted => vec![0],
        Status::Denied(_) => vec![1],
        Status::Unreachable => vec![2],
        Status::Draining => vec![3],
        Status::Overloaded => vec![4],
    };
    if let Status::Denied(id) = status {
        payload.extend_from_slice(&id.to_be_bytes());
    }
    let mut frame = vec![KIND_STATUS, 0, 0, u8::try_from(payload.len()).unwrap_or(u8::MAX)];
    frame.append(&mut payload);
    frame
}

#[cfg(test)]
mod tests;
