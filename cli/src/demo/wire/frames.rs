//! Frames to TCP streams: Ethernet, IPv4, IPv6 and TCP, as far as a capture on one link needs it.
//!
//! Called by `wire`. It must never pass over a lost segment: a gap is told, so that "nothing was found" means that all
//! was seen.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const TCP: u8 = 6;
const SYN: u8 = 0x02;

/// What one side of a TCP connection sent.
#[derive(Debug, PartialEq, Eq)]
pub struct Stream {
    /// Who sent it.
    pub from: SocketAddr,
    /// To whom.
    pub to: SocketAddr,
    /// Whether it is the side that opened the connection.
    pub opener: bool,
    /// All its bytes in order, up to the first gap.
    pub bytes: Vec<u8>,
    /// Whether its beginning, or anything before its last byte, is missing in the capture.
    pub gap: bool,
}

struct Segment<'a> {
    from: SocketAddr,
    to: SocketAddr,
    sequence: u32,
    flags: u8,
    payload: &'a [u8],
}

/// One direction while it is put together.
#[derive(Default)]
struct Half<'a> {
    /// Sequence number of the first byte, and whether it came with the opener's SYN.
    start: Option<(u32, bool)>,
    segments: Vec<(u32, &'a [u8])>,
}

/// The streams between `from` and `to`, both directions, in no particular order.
pub fn streams<'a>(frames: impl Iterator<Item = &'a [u8]>, from: &[IpAddr], to: &[IpAddr]) -> Vec<Stream> {
    let mut halves: BTreeMap<(SocketAddr, SocketAddr), Half<'a>> = BTreeMap::new();
    for segment in frames.filter_map(tcp) {
        if !segment.is_between(from, to) {
            continue;
        }
        let half = halves.entry((segment.from, segment.to)).or_default();
        if segment.flags & SYN != 0 {
            half.start = Some((segment.sequence.wrapping_add(1), segment.flags & 0x10 == 0));
        }
        if !segment.payload.is_empty() {
            half.segments.push((segment.sequence, segment.payload));
        }
    }
    halves.into_iter().map(|((from, to), half)| half.join(from, to)).collect()
}

/// Whether a frame carries TCP between one of `from` and one of `to`, in either direction.
pub fn is_between(frame: &[u8], from: &[IpAddr], to: &[IpAddr]) -> bool {
    tcp(frame).is_some_and(|segment| segment.is_between(from, to))
}

impl Segment<'_> {
    fn is_between(&self, from: &[IpAddr], to: &[IpAddr]) -> bool {
        let (a, b) = (self.from.ip(), self.to.ip());
        from.contains(&a) && to.contains(&b) || from.contains(&b) && to.contains(&a)
    }
}

impl Half<'_> {
    /// Each frame is seen at every device that it crosses, and lost ones are sent again: bytes already there are passed over.
    fn join(self, from: SocketAddr, to: SocketAddr) -> Stream {
        let Some((start, opener)) = self.start else {
            return Stream { from, to, opener: false, bytes: Vec::new(), gap: true };
        };
        let mut segments: Vec<_> =
            self.segments.into_iter().map(|(sequence, payload)| (sequence.wrapping_sub(start), payload)).collect();
        // A byte before the first one (a keep-alive probe) is 4 GiB away: not part of the stream.
        segments.retain(|(offset, _)| *offset < u32::MAX / 2);
        segments.sort_by_key(|(offset, _)| *offset);
        let (mut bytes, mut gap) = (Vec::new(), false);
        for (offset, payload) in segments {
            let offset = offset as usize;
            if offset > bytes.len() {
                gap = true;
                break;
            }
            bytes.extend(payload.get(bytes.len() - offset..).unwrap_or_default());
        }
        Stream { from, to, opener, bytes, gap }
    }
}

fn tcp(frame: &[u8]) -> Option<Segment<'_>> {
    let (kind, packet) = (frame.get(12..14)?, frame.get(14..)?);
    let (source, destination, segment) = match <[u8; 2]>::try_from(kind).ok()? {
        IPV4 => ipv4(packet)?,
        IPV6 => ipv6(packet)?,
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes(segment.get(at..at + 2)?.try_into().ok()?));
    let head = usize::from(*segment.get(12)? >> 4) * 4;
    Some(Segment {
        from: SocketAddr::new(source, port(0)?),
        to: SocketAddr::new(destination, port(2)?),
        sequence: u32::from_be_bytes(segment.get(4..8)?.try_into().ok()?),
        flags: *segment.get(13)?,
        payload: segment.get(head..)?,
    })
}

fn ipv4(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    let head = usize::from(packet.first()? & 0x0f) * 4;
    let length = usize::from(u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?));
    let address = |at: usize| Some(IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?)));
    (packet.get(9) == Some(&TCP)).then_some(())?;
    // A short frame is padded behind the packet's end; a length of 0 stands for more than 64 KiB.
    let end = if length == 0 { packet.len() } else { length };
    Some((address(12)?, address(16)?, packet.get(head..end)?))
}

fn ipv6(packet: &[u8]) -> Option<(IpAddr, IpAddr, &[u8])> {
    let length = usize::from(u16::from_be_bytes(packet.get(4..6)?.try_into().ok()?));
    let address = |at: usize| Some(IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?)));
    (packet.get(6) == Some(&TCP)).then_some(())?;
    let end = if length == 0 { packet.len() } else { 40 + length };
    Some((address(8)?, address(24)?, packet.get(40..end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
    const B: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 21);

    fn frame(from: Ipv4Addr, to: Ipv4Addr, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend(IPV4);
        let length = u16::try_from(40 + payload.len()).unwrap();
        frame.extend([0x45, 0]);
        frame.extend(length.to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, TCP, 0, 0]);
        frame.extend(from.octets());
        frame.extend(to.octets());
        frame.extend([0x10, 0, 0x20, 0]);
        frame.extend(sequence.to_be_bytes());
        frame.extend([0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        frame.extend(payload);
        frame.extend([0; 6]); // padding of a short frame
        frame
    }

    fn joined(frames: &[Vec<u8>]) -> Vec<Stream> {
        streams(frames.iter().map(Vec::as_slice), &[A.into()], &[B.into()])
    }

    #[test]
    fn segments_are_put_in_order_and_repeats_passed_over() {
        let frames = [
            frame(A, B, u32::MAX, SYN, b""),
            frame(A, B, 4, 0x10, b"56"),
            frame(A, B, 0, 0x10, b"1234"),
            frame(A, B, 0, 0x10, b"1234"),
            frame(A, B, 2, 0x10, b"3456789"),
            frame(B, A, 100, SYN | 0x10, b""),
        ];
        let streams = joined(&frames);
        assert_eq!(streams.len(), 2);
        assert_eq!((streams[0].bytes.as_slice(), streams[0].opener, streams[0].gap), (&b"123456789"[..], true, false));
        assert_eq!((streams[1].bytes.as_slice(), streams[1].opener, streams[1].gap), (&b""[..], false, false));
    }

    #[test]
    fn a_lost_segment_is_a_gap() {
        let lost = [frame(A, B, 9, SYN, b""), frame(A, B, 10, 0x10, b"12"), frame(A, B, 13, 0x10, b"45")];
        assert!(joined(&lost)[0].gap);
        assert!(joined(&lost[1..])[0].gap, "without the beginning");
    }

    #[test]
    fn other_peoples_frames_are_not_in_it() {
        let other = Ipv4Addr::new(10, 77, 0, 99);
        assert!(joined(&[frame(A, other, 9, SYN, b""), frame(other, B, 9, SYN, b"")]).is_empty());
        assert!(is_between(&frame(B, A, 9, SYN, b""), &[A.into()], &[B.into()]));
        assert!(!is_between(&frame(B, other, 9, SYN, b""), &[A.into()], &[B.into()]));
    }

    #[test]
    fn cut_and_foreign_frames_are_passed_over() {
        let whole = frame(A, B, 9, SYN, b"x");
        for end in 0..whole.len() {
            let _ = joined(&[whole[..end].to_vec()]);
        }
        assert!(joined(&[vec![0xff; 200]]).is_empty());
    }
}
