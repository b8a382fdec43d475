//! TCP connections put together from captured segments. Pure.
//!
//! Called by [`crate::Captured`]. It must never hide a gap.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::packet::{Segment, flag};

/// One TCP connection whose first segment was seen.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Who began it.
    pub client: SocketAddr,
    /// With whom.
    pub server: SocketAddr,
    /// What the client sent.
    pub to_server: Stream,
    /// What the server sent.
    pub to_client: Stream,
}

/// What one side sent.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    /// From the first byte up to the first gap, if there is one.
    pub bytes: Vec<u8>,
    /// No gap was found.
    pub whole: bool,
    /// It ended with a FIN.
    pub finished: bool,
    /// It was reset by this side.
    pub reset: bool,
}

/// Puts connections together, in order of their first segments.
pub(crate) fn flows(segments: impl Iterator<Item = Segment>) -> Vec<Flow> {
    let mut open: Vec<Pair> = Vec::new();
    for segment in segments {
        let begins = segment.has(flag::SYN) && !segment.has(flag::ACK);
        let known = open.iter_mut().rev().find(|pair| pair.is_of(&segment));
        match known {
            // The same first segment again is a retransmission; another number is a new connection of the same ports.
            Some(pair) if !begins || pair.sides[0].first == Some(segment.sequence) => pair.take(segment),
            _ if begins => {
                let mut pair = Pair { client: segment.source, server: segment.destination, sides: Default::default() };
                pair.take(segment);
                open.push(pair);
            }
            _ => {}
        }
    }
    open.into_iter()
        .map(|Pair { client, server, sides: [up, down] }| Flow {
            client,
            server,
            to_server: up.join(),
            to_client: down.join(),
        })
        .collect()
}

struct Pair {
    client: SocketAddr,
    server: SocketAddr,
    sides: [Side; 2],
}

#[derive(Default)]
struct Side {
    /// Number of its SYN.
    first: Option<u32>,
    /// By distance from the first byte of data.
    parts: BTreeMap<u32, Vec<u8>>,
    finished: bool,
    reset: bool,
}

impl Pair {
    fn is_of(&self, segment: &Segment) -> bool {
        let ends = (segment.source, segment.destination);
        ends == (self.client, self.server) || ends == (self.server, self.client)
    }

    fn take(&mut self, segment: Segment) {
        let side = &mut self.sides[usize::from(segment.source != self.client)];
        if segment.has(flag::SYN) {
            side.first = Some(segment.sequence);
        }
        side.finished |= segment.has(flag::FIN);
        side.reset |= segment.has(flag::RST);
        let Some(first) = side.first else { return };
        let at = segment.sequence.wrapping_sub(first).wrapping_sub(1);
        // A keep-alive probe repeats the byte before: far beyond, once the subtraction wrapped.
        if segment.payload.is_empty() || at > u32::MAX / 2 {
            return;
        }
        let known = side.parts.get(&at).map_or(0, Vec::len);
        if segment.payload.len() > known {
            side.parts.insert(at, segment.payload);
        }
    }
}

impl Side {
    fn join(self) -> Stream {
        let mut bytes = Vec::new();
        let mut whole = true;
        for (at, part) in self.parts {
            match bytes.len().checked_sub(at as usize) {
                Some(overlap) => bytes.extend(part.get(overlap..).unwrap_or_default()),
                None => {
                    whole = false;
                    break;
                }
            }
        }
        Stream { bytes, whole, finished: self.finished, reset: self.reset }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(from: u16, to: u16, sequence: u32, flags: u8, payload: &[u8]) -> Segment {
        let at = |port| SocketAddr::from(([10, 0, 0, 1], port));
        Segment { source: at(from), destination: at(to), sequence, acknowledged: 0, flags, payload: payload.to_vec() }
    }

    #[test]
    fn disorder_repetition_and_wrapping_numbers_do_not_matter() {
        let start = u32::MAX - 2;
        let flows = flows(
            [
                segment(5, 80, start, flag::SYN, b""),
                segment(5, 80, start, flag::SYN, b""),
                segment(80, 5, 9, flag::SYN | flag::ACK, b""),
                segment(5, 80, start.wrapping_add(4), flag::ACK, b"lo"),
                segment(5, 80, start.wrapping_add(1), flag::ACK, b"hel"),
                segment(5, 80, start.wrapping_add(1), flag::ACK, b"hello!"),
                segment(80, 5, 10, flag::ACK, b"good"),
                segment(80, 5, 12, flag::ACK | flag::FIN, b"odbye"),
            ]
            .into_iter(),
        );
        assert_eq!(flows.len(), 1);
        assert_eq!((flows[0].client.port(), flows[0].server.port()), (5, 80));
        assert_eq!((&flows[0].to_server.bytes[..], flows[0].to_server.finished), (&b"hello!"[..], false));
        assert_eq!((&flows[0].to_client.bytes[..], flows[0].to_client.finished), (&b"goodbye"[..], true));
    }

    #[test]
    fn a_gap_is_told() {
        let flows = flows(
            [segment(5, 80, 0, flag::SYN, b""), segment(5, 80, 1, flag::ACK, b"a"), segment(5, 80, 3, flag::RST, b"c")]
                .into_iter(),
        );
        assert_eq!(flows[0].to_server.bytes, b"a");
        assert!(!flows[0].to_server.whole && flows[0].to_server.reset && flows[0].to_client.whole);
    }

    #[test]
    fn the_same_ports_used_again_are_another_connection() {
        let flows = flows(
            [
                segment(5, 80, 0, flag::SYN, b""),
                segment(5, 80, 70, flag::SYN, b""),
                segment(5, 80, 71, flag::ACK, b"x"),
            ]
            .into_iter(),
        );
        assert_eq!(flows.iter().map(|flow| flow.to_server.bytes.len()).collect::<Vec<_>>(), [0, 1]);
    }
}
