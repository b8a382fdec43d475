//! Netlink messages and attributes as bytes (linux/netlink.h, linux/netfilter/nfnetlink.h). Pure.
//!
//! Called by `expression`, `batch` and `dump`. It must never read past a length that the other side gave.

/// `nlmsg_flags`: every message to the kernel has it.
pub(super) const REQUEST: u16 = 0x1;
/// Answer also when all is well.
pub(super) const ACK: u16 = 0x4;
/// All objects, not one.
pub(super) const DUMP: u16 = 0x300;
/// Make it where it is not there.
pub(super) const CREATE: u16 = 0x400;
/// At the end of the list.
pub(super) const APPEND: u16 = 0x800;
/// In an answer: the objects changed while they were listed.
pub(super) const DUMP_INTERRUPTED: u16 = 0x10;

/// `nlmsg_type` of an answer with an error number, 0 = all is well.
pub(super) const ERROR: u16 = 2;
/// `nlmsg_type` of the end of a dump.
pub(super) const DONE: u16 = 3;

const HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;
const ATTRIBUTE_HEADER: usize = 4;
const NESTED: u16 = 0x8000;
/// The upper two bits of an attribute's type are flags.
const TYPE_MASK: u16 = 0x3fff;

/// Writes messages one after the other.
#[derive(Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// One message with its `nfgenmsg`; `body` writes the attributes.
    pub(super) fn message(
        &mut self,
        kind: u16,
        flags: u16,
        sequence: u32,
        (family, resource): (u8, u16),
        body: impl FnOnce(&mut Self),
    ) {
        let start = self.bytes.len();
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(sequence.to_ne_bytes());
        self.bytes.extend([0; 4]); // port id: the kernel
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        body(self);
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// An attribute of raw bytes, at most 65,531 of them.
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.attribute(kind, |writer| writer.bytes.extend(value));
    }

    /// An attribute of text, with its ending zero.
    pub(super) fn text(&mut self, kind: u16, value: &str) {
        self.attribute(kind, |writer| {
            writer.bytes.extend(value.as_bytes());
            writer.bytes.push(0);
        });
    }

    /// A number in network byte order, as nf_tables wants all of its own.
    pub(super) fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// An attribute that holds attributes.
    pub(super) fn nested(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        self.attribute(kind | NESTED, body);
    }

    fn attribute(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend(kind.to_ne_bytes());
        body(self);
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// What was written.
    pub(super) fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// One message from the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message<'a> {
    /// `nlmsg_type`.
    pub(super) kind: u16,
    /// `nlmsg_flags`.
    pub(super) flags: u16,
    /// That of the request.
    pub(super) sequence: u32,
    body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The error number of an `ERROR` or `DONE`; 0 = all is well.
    pub(super) fn error(&self) -> i32 {
        let number = self.body.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
        number.saturating_neg()
    }

    /// The address family of its `nfgenmsg`.
    pub(super) fn family(&self) -> Option<u8> {
        self.body.first().copied()
    }

    /// The attributes behind its `nfgenmsg`.
    pub(super) fn attributes(&self) -> Attributes<'a> {
        Attributes(self.body.get(GENERIC_HEADER..).unwrap_or_default())
    }
}

/// The messages of one datagram; ends at the first that is cut short.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
        let (message, body) = bytes.get(..length)?.split_at_checked(HEADER)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([message[4], message[5]]),
            flags: u16::from_ne_bytes([message[6], message[7]]),
            sequence: u32::from_ne_bytes([message[8], message[9], message[10], message[11]]),
            body,
        })
    })
}

/// Attributes, one after the other; ends at the first that is cut short.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Those in the value of an attribute.
    pub(super) fn of(value: &'a [u8]) -> Self {
        Self(value)
    }

    /// The first of this type.
    pub(super) fn find(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find_map(|(found, value)| (found == kind).then_some(value))
    }

    /// A text, without its ending zero.
    pub(super) fn text(self, kind: u16) -> Option<&'a str> {
        let bytes = self.find(kind)?;
        std::str::from_utf8(bytes.strip_suffix(&[0]).unwrap_or(bytes)).ok()
    }

    /// A number in network byte order.
    pub(super) fn number(self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.find(kind)?.try_into().ok()?))
    }

    /// The attributes in it; none where it is not there.
    pub(super) fn nested(self, kind: u16) -> Self {
        Self(self.find(kind).unwrap_or_default())
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (length, rest) = self.0.split_first_chunk()?;
        let length = usize::from(u16::from_ne_bytes(*length));
        let kind = u16::from_ne_bytes(*rest.first_chunk()?) & TYPE_MASK;
        let value = self.0.get(ATTRIBUTE_HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_padding_are_those_of_the_kernel() {
        let mut writer = Writer::default();
        writer.message(0x0a00, REQUEST | CREATE, 7, (1, 10), |w| {
            w.text(1, "countersign");
            w.nested(2, |w| w.number(1, 0x0102_0304));
        });
        let bytes = writer.finish();
        #[rustfmt::skip]
        let expected = [
            48, 0, 0, 0, 0x00, 0x0a, 0x01, 0x04, 7, 0, 0, 0, 0, 0, 0, 0, // nlmsghdr (little-endian machine)
            1, 0, 0, 10, // nfgenmsg: inet, version 0, resource in network byte order
            16, 0, 1, 0, b'c', b'o', b'u', b'n', b't', b'e', b'r', b's', b'i', b'g', b'n', 0,
            12, 0, 2, 0x80, 8, 0, 1, 0, 1, 2, 3, 4,
        ];
        if cfg!(target_endian = "little") {
            assert_eq!(bytes, expected);
        }
        let message = messages(&bytes).next().unwrap();
        assert_eq!((message.kind, message.sequence, message.family()), (0x0a00, 7, Some(1)));
        assert_eq!(message.attributes().text(1), Some("countersign"));
        assert_eq!(message.attributes().nested(2).number(1), Some(0x0102_0304));
        assert_eq!(message.attributes().find(3), None);
    }

    #[test]
    fn lengths_that_lie_end_the_reading() {
        for bytes in [&[][..], &[1], &[255, 255, 255, 255, 0, 0], &[3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]]
        {
            assert_eq!(messages(bytes).count(), 0, "{bytes:?}");
        }
        for bytes in [&[][..], &[4], &[4, 0, 1], &[3, 0, 1, 0], &[0, 0, 1, 0], &[9, 0, 1, 0, 1, 2, 3, 4]] {
            assert_eq!(Attributes(bytes).count(), 0, "{bytes:?}");
        }
        assert_eq!(Attributes(&[5, 0, 1, 0, 9]).next(), Some((1, &[9][..])), "the last one may lack its padding");
    }
}
