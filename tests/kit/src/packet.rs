//! Ethernet frames that carry TCP, read and made. Pure.
//!
//! Called by the capture (reads) and by tests that send what no honest stack sends (makes). Only what is
//! needed: no VLANs, no IP options, no IPv6 extension headers.

use std::net::{IpAddr, SocketAddr};

const ETHERNET: usize = 14;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const TCP: u8 = 6;

/// TCP flags.
pub mod flag {
    /// No more data from this side.
    pub const FIN: u8 = 0x01;
    /// Begins a connection.
    pub const SYN: u8 = 0x02;
    /// Ends it at once.
    pub const RST: u8 = 0x04;
    /// To be handed on without delay.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
}

/// One TCP segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Who sent it, by its own word.
    pub source: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
    /// Number of its first byte.
    pub sequence: u32,
    /// The next byte expected from the other side.
    pub acknowledged: u32,
    /// See [`flag`].
    pub flags: u8,
    /// Data.
    pub payload: Vec<u8>,
}

impl Segment {
    /// Reads a frame; `None` where it carries no whole TCP segment.
    #[must_use]
    pub fn read(frame: &[u8]) -> Option<Self> {
        let (source, destination, tcp) = match u16::from_be_bytes(frame.get(12..ETHERNET)?.try_into().ok()?) {
            IPV4 => ipv4(frame.get(ETHERNET..)?)?,
            IPV6 => ipv6(frame.get(ETHERNET..)?)?,
            _ => return None,
        };
        let word = |at: usize| Some(u32::from_be_bytes(tcp.get(at..at + 4)?.try_into().ok()?));
        let header = usize::from(tcp.get(12)? >> 4) * 4;
        Some(Self {
            source: SocketAddr::new(source, (word(0)? >> 16) as u16),
            destination: SocketAddr::new(destination, (word(0)? & 0xffff) as u16),
            sequence: word(4)?,
            acknowledged: word(8)?,
            flags: *tcp.get(13)?,
            payload: tcp.get(header..)?.to_vec(),
        })
    }

    /// Has it all of these flags?
    #[must_use]
    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// Makes the frame, with right checksums. Both addresses must be of one family.
    #[must_use]
    pub fn frame(&self, from: [u8; 6], to: [u8; 6]) -> Vec<u8> {
        let mut tcp = Vec::with_capacity(20 + self.payload.len());
        tcp.extend(self.source.port().to_be_bytes());
        tcp.extend(self.destination.port().to_be_bytes());
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend(self.acknowledged.to_be_bytes());
        tcp.extend([5 << 4, self.flags, 0xff, 0xff, 0, 0, 0, 0]); // no options, a full window, checksum to come
        tcp.extend(&self.payload);
        let length = u16::try_from(tcp.len()).unwrap_or(u16::MAX);
        let (mut pseudo, kind, header) = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = vec![0x45, 0];
                header.extend((length + 20).to_be_bytes());
                header.extend([0, 0, 0x40, 0, 64, TCP, 0, 0]);
                header.extend(source.octets());
                header.extend(destination.octets());
                let checksum = checksum(&header);
                header[10..12].copy_from_slice(&checksum.to_be_bytes());
                (header[12..20].to_vec(), IPV4, header)
            }
            (source, destination) => {
                let mut header = vec![0x60, 0, 0, 0];
                header.extend(length.to_be_bytes());
                header.extend([TCP, 64]);
                for address in [source, destination] {
                    if let IpAddr::V6(address) = address {
                        header.extend(address.octets());
                    }
                }
                (header[8..].to_vec(), IPV6, header)
            }
        };
        pseudo.extend([0, TCP]);
        pseudo.extend(length.to_be_bytes());
        pseudo.extend(&tcp);
        let checksum = checksum(&pseudo);
        tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
        [&to[..], &from, &kind.to_be_bytes(), &header, &tcp].concat()
    }
}

/// Source, destination and what follows the header, without the link's padding.
fn ipv4(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let length = usize::from(u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?));
    let address = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
    let fragment = u16::from_be_bytes(packet.get(6..8)?.try_into().ok()?) & 0x3fff;
    (*packet.get(9)? == TCP && fragment == 0).then_some(())?;
    Some((address(12)?, address(16)?, packet.get(header..length)?))
}

fn ipv6(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    let length = usize::from(u16::from_be_bytes(packet.get(4..6)?.try_into().ok()?));
    let address = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?));
    (*packet.get(6)? == TCP).then_some(())?;
    Some((address(8)?, address(24)?, packet.get(40..40 + length)?))
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u64 =
        bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u64::from(*low))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_read_and_sums_to_zero() {
        for (source, destination) in [("10.0.0.1:5", "10.0.0.2:80"), ("[fd00::1]:5", "[fd00::2]:80")] {
            let segment = Segment {
                source: source.parse().unwrap(),
                destination: destination.parse().unwrap(),
                sequence: u32::MAX,
                acknowledged: 7,
                flags: flag::PSH | flag::ACK,
                payload: b"odd".to_vec(),
            };
            let mut frame = segment.frame([2; 6], [4; 6]);
            if segment.source.is_ipv4() {
                assert_eq!(checksum(&frame[14..34]), 0);
            }
            frame.extend([0; 3]); // padding of the link is not payload
            assert_eq!(Segment::read(&frame), Some(segment));
            for length in 0..frame.len() - 3 {
                assert_eq!(Segment::read(&frame[..length]), None, "{length}");
            }
        }
    }
}
