//! The few nf_tables expressions that our rules are made of, as bytes and back (linux/netfilter/nf_tables.h). Pure.
//!
//! Called by `ruleset` and `dump`. All of them load into, change or compare register 1. What was read and is not exactly
//! one of ours becomes `Other`: it must never be taken for ours.

use std::fmt;

use super::netlink::{Attributes, Writer};

const REGISTER: u32 = 1;
const VERDICT_REGISTER: u32 = 0;

// NFTA_LIST_*, NFTA_EXPR_*, NFTA_DATA_*, NFTA_VERDICT_*
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;

const VERDICT_DROP: u32 = 0; // NF_DROP
const VERDICT_RETURN: u32 = (-5_i32).cast_unsigned(); // NFT_RETURN

/// NFT_FIB_RESULT_ADDRTYPE of NFTA_FIB_F_DADDR.
const FIB_TYPE_OF_DESTINATION: [u32; 2] = [3, 2];
/// NF_NAT_RANGE_PROTO_SPECIFIED.
const RANGE_PORT: u32 = 2;

/// One step of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expression {
    /// Loads a property of the packet.
    Meta(Meta),
    /// Loads the state that connection tracking gave the packet, as bits.
    ConntrackState,
    /// Loads what connection tracking did with the packet's connection, as bits.
    ConntrackStatus,
    /// Loads the port that answers come from: where the connection really went.
    ConntrackReplySource,
    /// Loads the routing table's type of the destination address.
    FibDestinationType,
    /// Loads bytes of a header.
    Payload {
        /// Which.
        header: Header,
        /// From where.
        offset: u32,
        /// How many.
        length: u32,
    },
    /// Keeps only these bits.
    Mask(Vec<u8>),
    /// Goes on only where equal.
    Equal(Vec<u8>),
    /// Goes on only where different.
    Different(Vec<u8>),
    /// Leaves the chain: the packet goes on untouched.
    Return,
    /// Ends the packet.
    Drop,
    /// Ends the packet, and answers it with a reset.
    Reset,
    /// Loads a port, for `Redirect`.
    Port(u16),
    /// To the port in the register, at an address of our own.
    Redirect,
    /// None of ours: its name, and its attributes for display.
    Other(String),
}

/// NFT_META_*
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meta {
    /// The mark of the packet, which it has from its socket.
    Mark = 3,
    /// Name of the interface it came in by.
    InterfaceIn = 6,
    /// UID of its socket.
    SocketUid = 10,
    /// IPv4 or IPv6.
    Family = 15,
    /// TCP, UDP...
    Transport = 16,
}

/// NFT_PAYLOAD_*_HEADER
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Header {
    /// IP.
    Network = 1,
    /// TCP.
    Transport = 2,
}

const METAS: [Meta; 5] = [Meta::Mark, Meta::InterfaceIn, Meta::SocketUid, Meta::Family, Meta::Transport];
const HEADERS: [Header; 2] = [Header::Network, Header::Transport];

impl Expression {
    /// Writes it as one element of NFTA_RULE_EXPRESSIONS.
    pub(super) fn write(&self, writer: &mut Writer) {
        writer.nested(LIST_ELEMENT, |writer| {
            writer.text(EXPRESSION_NAME, self.name());
            writer.nested(EXPRESSION_DATA, |writer| self.write_data(writer));
        });
    }

    /// nf_tables' own name for it; kernel modules are named after it.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Meta(_) => "meta",
            Self::ConntrackState | Self::ConntrackStatus | Self::ConntrackReplySource => "ct",
            Self::FibDestinationType => "fib",
            Self::Payload { .. } => "payload",
            Self::Mask(_) => "bitwise",
            Self::Equal(_) | Self::Different(_) => "cmp",
            Self::Return | Self::Drop | Self::Port(_) => "immediate",
            Self::Reset => "reject",
            Self::Redirect => "redir",
            Self::Other(name) => name,
        }
    }

    fn write_data(&self, w: &mut Writer) {
        match self {
            // NFTA_META_DREG, _KEY
            Self::Meta(key) => numbers(w, &[REGISTER, *key as u32]),
            // NFTA_CT_DREG, _KEY = NFT_CT_STATE
            Self::ConntrackState => numbers(w, &[REGISTER, 0]),
            // NFT_CT_STATUS
            Self::ConntrackStatus => numbers(w, &[REGISTER, 2]),
            // NFT_CT_PROTO_SRC, NFTA_CT_DIRECTION = IP_CT_DIR_REPLY
            Self::ConntrackReplySource => {
                w.number(2, 11);
                w.number(1, REGISTER);
                w.bytes(3, &[1]);
            }
            // NFTA_FIB_DREG, _RESULT, _FLAGS
            Self::FibDestinationType => numbers(w, &[REGISTER, FIB_TYPE_OF_DESTINATION[0], FIB_TYPE_OF_DESTINATION[1]]),
            // NFTA_PAYLOAD_DREG, _BASE, _OFFSET, _LEN
            Self::Payload { header, offset, length } => numbers(w, &[REGISTER, *header as u32, *offset, *length]),
            // NFTA_BITWISE_SREG, _DREG, _LEN, _MASK, _XOR
            Self::Mask(mask) => {
                numbers(w, &[REGISTER, REGISTER, u32::try_from(mask.len()).unwrap_or(u32::MAX)]);
                w.nested(4, |w| w.bytes(DATA_VALUE, mask));
                w.nested(5, |w| w.bytes(DATA_VALUE, &vec![0; mask.len()]));
            }
            Self::Equal(value) => compare(w, 0, value),
            Self::Different(value) => compare(w, 1, value),
            Self::Return => verdict(w, VERDICT_RETURN),
            Self::Drop => verdict(w, VERDICT_DROP),
            // NFTA_REJECT_TYPE = NFT_REJECT_TCP_RST, _ICMP_CODE
            Self::Reset => {
                w.number(1, 1);
                w.bytes(2, &[0]);
            }
            // NFTA_IMMEDIATE_DREG, _DATA
            Self::Port(port) => {
                w.number(1, REGISTER);
                w.nested(2, |w| w.bytes(DATA_VALUE, &port.to_be_bytes()));
            }
            // NFTA_REDIR_REG_PROTO_MIN, _FLAGS
            Self::Redirect => {
                w.number(1, REGISTER);
                w.number(3, RANGE_PORT);
            }
            Self::Other(_) => {}
        }
    }

    /// Reads the elements of NFTA_RULE_EXPRESSIONS.
    pub(super) fn read_all(list: Attributes<'_>) -> Vec<Self> {
        list.map(|(_, element)| Self::read(Attributes::of(element))).collect()
    }

    fn read(element: Attributes<'_>) -> Self {
        let name = element.text(EXPRESSION_NAME).unwrap_or("?");
        let data = element.nested(EXPRESSION_DATA);
        Self::read_data(name, data).unwrap_or_else(|| Self::Other(name.to_owned()))
    }

    fn read_data(name: &str, data: Attributes<'_>) -> Option<Self> {
        let first = data.number(1)?;
        if name == "immediate" && first == VERDICT_REGISTER {
            return match data.nested(2).nested(DATA_VERDICT).number(VERDICT_CODE)? {
                VERDICT_RETURN => Some(Self::Return),
                VERDICT_DROP => Some(Self::Drop),
                _ => None,
            };
        }
        if name == "reject" {
            return (first == 1).then_some(Self::Reset);
        }
        if first != REGISTER {
            return None;
        }
        match name {
            "meta" => METAS.into_iter().find(|key| data.number(2) == Some(*key as u32)).map(Self::Meta),
            "ct" => match (data.number(2)?, data.find(3)) {
                (0, None) => Some(Self::ConntrackState),
                (2, None) => Some(Self::ConntrackStatus),
                (11, Some([1])) => Some(Self::ConntrackReplySource),
                _ => None,
            },
            "fib" => {
                ([data.number(2)?, data.number(3)?] == FIB_TYPE_OF_DESTINATION).then_some(Self::FibDestinationType)
            }
            "payload" => {
                let header = HEADERS.into_iter().find(|header| data.number(2) == Some(*header as u32))?;
                Some(Self::Payload { header, offset: data.number(3)?, length: data.number(4)? })
            }
            "bitwise" => {
                let (mask, flips) = (data.nested(4).find(DATA_VALUE)?, data.nested(5).find(DATA_VALUE)?);
                // NFTA_BITWISE_OP: 0, or not said by old kernels.
                let plain = data.number(6).unwrap_or(0) == 0 && flips.iter().all(|byte| *byte == 0);
                (plain && data.number(2)? == REGISTER).then(|| Self::Mask(mask.to_vec()))
            }
            "cmp" => {
                let value = data.nested(3).find(DATA_VALUE)?.to_vec();
                match data.number(2)? {
                    0 => Some(Self::Equal(value)),
                    1 => Some(Self::Different(value)),
                    _ => None,
                }
            }
            "immediate" => Some(Self::Port(u16::from_be_bytes(data.nested(2).find(DATA_VALUE)?.try_into().ok()?))),
            "redir" => {
                // The kernel tells the end of the range too: the same register.
                let one_port = data.number(2).is_none_or(|last| last == REGISTER);
                (one_port && data.number(3).is_none_or(|flags| flags == RANGE_PORT)).then_some(Self::Redirect)
            }
            _ => None,
        }
    }
}

/// The attributes 1, 2, 3... as numbers.
fn numbers(writer: &mut Writer, values: &[u32]) {
    for (kind, value) in (1..).zip(values) {
        writer.number(kind, *value);
    }
}

/// NFTA_CMP_SREG, _OP, _DATA
fn compare(writer: &mut Writer, operator: u32, value: &[u8]) {
    numbers(writer, &[REGISTER, operator]);
    writer.nested(3, |writer| writer.bytes(DATA_VALUE, value));
}

/// NFTA_IMMEDIATE_DREG, _DATA
fn verdict(writer: &mut Writer, code: u32) {
    writer.number(1, VERDICT_REGISTER);
    writer.nested(2, |writer| writer.nested(DATA_VERDICT, |writer| writer.number(VERDICT_CODE, code)));
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Meta(key) => write!(f, "meta {key:?}"),
            Self::ConntrackState => f.write_str("ct state"),
            Self::ConntrackStatus => f.write_str("ct status"),
            Self::ConntrackReplySource => f.write_str("ct reply proto-src"),
            Self::FibDestinationType => f.write_str("fib daddr type"),
            Self::Payload { header, offset, length } => write!(f, "{header:?} header @{offset},{length}"),
            Self::Mask(mask) => write!(f, "& {}", hex(mask)),
            Self::Equal(value) => write!(f, "== {}", hex(value)),
            Self::Different(value) => write!(f, "!= {}", hex(value)),
            Self::Return => f.write_str("return"),
            Self::Drop => f.write_str("drop"),
            Self::Reset => f.write_str("reject with tcp reset"),
            Self::Port(port) => write!(f, "port {port}"),
            Self::Redirect => f.write_str("redirect"),
            Self::Other(name) => write!(f, "[{name}: not one of ours]"),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(expression: &Expression) -> Vec<u8> {
        let mut writer = Writer::default();
        expression.write(&mut writer);
        writer.finish()
    }

    fn all() -> Vec<Expression> {
        let mut all: Vec<_> = METAS.into_iter().map(Expression::Meta).collect();
        all.extend(HEADERS.map(|header| Expression::Payload { header, offset: 16, length: 4 }));
        all.extend([
            Expression::ConntrackState,
            Expression::ConntrackStatus,
            Expression::ConntrackReplySource,
            Expression::FibDestinationType,
            Expression::Mask(vec![255, 254, 0, 0]),
            Expression::Equal(vec![6]),
            Expression::Different(vec![2, 0, 0, 0]),
            Expression::Return,
            Expression::Drop,
            Expression::Reset,
            Expression::Port(15006),
            Expression::Redirect,
        ]);
        all
    }

    #[test]
    fn what_is_written_is_read_back() {
        for expression in all() {
            let bytes = bytes_of(&expression);
            assert_eq!(Expression::read_all(Attributes::of(&bytes)), [expression]);
        }
    }

    #[test]
    fn bytes_are_those_that_nft_sends() {
        // `nft --debug=mnl` for `meta load l4proto => reg 1`.
        #[rustfmt::skip]
        let expected = [
            36, 0, 1, 0x80,
            9, 0, 1, 0, b'm', b'e', b't', b'a', 0, 0, 0, 0,
            20, 0, 2, 0x80, 8, 0, 1, 0, 0, 0, 0, 1, 8, 0, 2, 0, 0, 0, 0, 16,
        ];
        if cfg!(target_endian = "little") {
            assert_eq!(bytes_of(&Expression::Meta(Meta::Transport)), expected);
        }
        // `ct load proto_src => reg 1 , dir reply`
        #[rustfmt::skip]
        let source = [
            40, 0, 1, 0x80,
            7, 0, 1, 0, b'c', b't', 0, 0,
            28, 0, 2, 0x80, 8, 0, 2, 0, 0, 0, 0, 11, 8, 0, 1, 0, 0, 0, 0, 1, 5, 0, 3, 0, 1, 0, 0, 0,
        ];
        // `reject type 1 code 0`
        #[rustfmt::skip]
        let reset = [
            36, 0, 1, 0x80,
            11, 0, 1, 0, b'r', b'e', b'j', b'e', b'c', b't', 0, 0,
            20, 0, 2, 0x80, 8, 0, 1, 0, 0, 0, 0, 1, 5, 0, 2, 0, 0, 0, 0, 0,
        ];
        if cfg!(target_endian = "little") {
            assert_eq!(bytes_of(&Expression::ConntrackReplySource), source);
            assert_eq!(bytes_of(&Expression::Reset), reset);
        }
    }

    #[test]
    fn what_is_not_exactly_ours_is_not_taken_for_it() {
        type Write = dyn Fn(&mut Writer);
        let foreign: [(&str, &Write); 12] = [
            ("meta", &|w| numbers(w, &[2, 16])),      // another register
            ("meta", &|w| numbers(w, &[1, 11])),      // the socket's group
            ("fib", &|w| numbers(w, &[1, 3, 2 | 8])), // of the interface it came in by
            ("ct", &|w| numbers(w, &[1, 3])),         // its mark
            ("ct", &|w| numbers(w, &[1, 11])),        // a port, of neither direction
            ("reject", &|w| numbers(w, &[0, 3])),     // by ICMP
            ("ct", &|w| {
                numbers(w, &[1, 11]);
                w.bytes(3, &[0]); // the port that it comes from itself
            }),
            ("payload", &|w| numbers(w, &[1, 0, 0, 6])), // the link's header
            ("cmp", &|w| compare(w, 4, &[6])),           // greater
            ("immediate", &|w| verdict(w, 1)),           // accept
            ("redir", &|w| numbers(w, &[1, 2, 2])),      // a range of ports
            ("masq", &|_| {}),
        ];
        for (name, data) in foreign {
            let mut writer = Writer::default();
            writer.nested(LIST_ELEMENT, |w| {
                w.text(EXPRESSION_NAME, name);
                w.nested(EXPRESSION_DATA, data);
            });
            let read = Expression::read_all(Attributes::of(&writer.finish()));
            assert_eq!(read, [Expression::Other(name.into())]);
        }
        let mut flips = Writer::default();
        numbers(&mut flips, &[1, 1, 4]);
        for kind in [4, 5] {
            flips.nested(kind, |w| w.bytes(DATA_VALUE, &[255; 4]));
        }
        assert_eq!(Expression::read_data("bitwise", Attributes::of(&flips.finish())), None);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(0_u8.., 0..200)) {
            let _ = Expression::read_all(Attributes::of(&bytes));
        }
    }
}
