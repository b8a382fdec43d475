//! Which packets are redirected: what the operator chose, made into the chains of table `inet countersign`. Pure.
//!
//! Called by `install` and `check`. The order of the rules matters: the first that matches decides.
//! It must never leave a way past the sidecar that is not spelled in `Rules`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use countersign_api::ports;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, socket};

use super::expression::{Expression, Header, Meta};

/// Name of our table; it is ours alone, and replaced as a whole.
pub(super) const TABLE: &str = "countersign";

/// Longest skip list: a batch must fit in one netlink message.
pub const MAX_SKIPPED: usize = 128;

/// Never redirected: what a pod says to itself there crosses no network.
const LOOPBACKS: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
];
const LOOPBACK_NAME: &[u8; 16] = b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
const TCP: u8 = 6;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
/// RTN_LOCAL
const LOCAL: u32 = 2;
/// NF_CT_STATE_INVALID_BIT
const INVALID: u32 = 1;
/// IPS_CONFIRMED: the entry was there before this packet.
const CONFIRMED: u32 = 1 << 3;
/// IPS_DST_NAT: its destination is another than the packets say.
const TRANSLATED: u32 = 1 << 5;
/// FIN, SYN, RST and ACK, and of them SYN alone.
const OPENING: [u8; 2] = [0x17, 0x02];

/// For which versions of IP there are rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4 and IPv6, in one table.
    Both,
    /// IPv4 alone, where the kernel knows no other: a kernel that was built without IPv6 has no tables for both.
    V4,
}

impl Family {
    /// Asked of the kernel by opening a socket: where none of IPv6 can be had, nothing of IPv6 can pass by.
    #[must_use]
    pub fn of_this_kernel() -> Self {
        match socket(AddressFamily::INET6, SocketType::STREAM, None) {
            Err(Errno::AFNOSUPPORT) => Self::V4,
            _ => Self::Both,
        }
    }

    /// NFPROTO_INET, NFPROTO_IPV4
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Both => 1,
            Self::V4 => NFPROTO_IPV4,
        }
    }

    /// As `nft` calls it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Both => "inet",
            Self::V4 => "ip",
        }
    }
}

/// What is redirected, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// For which versions of IP.
    pub family: Family,
    /// Port of the inbound listener.
    pub inbound_port: u16,
    /// Port of the outbound listener.
    pub outbound_port: u16,
    /// Port of `/livez /readyz /metrics`, reached from outside without redirect.
    pub health_port: u16,
    /// The proxy's own traffic, by the user it runs as.
    pub exempt_uid: Option<u32>,
    /// The proxy's own traffic, by the mark that it sets on its sockets.
    pub exempt_mark: Option<u32>,
    /// Ports of the pod that are reached from outside past the sidecar: without mTLS, without rules.
    pub skip_inbound_ports: Vec<u16>,
    /// Ports elsewhere that the app reaches past the sidecar.
    pub skip_outbound_ports: Vec<u16>,
    /// Addresses that the app reaches past the sidecar.
    pub skip_outbound_cidrs: Vec<IpNet>,
}

/// Why rules cannot be set as asked. Ours to say before anything is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadRules {
    /// Without one the proxy would be redirected to itself for ever.
    #[error("neither a user nor a mark exempts the proxy's own traffic: it would be redirected to itself")]
    NoExemption,
    /// User 0 or mark 0 would exempt what others send too.
    #[error("{0} 0 is everybody's: it would exempt more than the proxy")]
    Everybody(&'static str),
    /// Ports of the proxy that are zero or not different.
    #[error("the ports for inbound, outbound and health must be three different ones, and none of them 0")]
    Ports,
    /// The inbound self-proof would prove nothing.
    #[error(
        "port {} cannot be skipped: readiness is asked there, and only the inbound redirect may answer",
        ports::SELF_PROOF
    )]
    SelfProof,
    /// More than [`MAX_SKIPPED`].
    #[error("more than {MAX_SKIPPED} {0} to skip")]
    TooMany(&'static str),
}

/// A chain with its hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: String,
    /// `nat` or `filter`.
    pub(super) kind: String,
    /// NF_INET_*
    pub(super) hook: u32,
    pub(super) priority: i32,
    /// What becomes of a packet that no rule decided: accepted, or else dropped.
    pub(super) accepts: bool,
    pub(super) rules: Vec<Rule>,
}

/// A rule: every expression must match for the last one to act.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    /// As `nft` would print it; of what was read from the kernel, the expressions.
    pub(super) text: String,
    pub(super) expressions: Vec<Expression>,
}

/// Two rules are the same if they do the same, whatever they are called.
impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        self.expressions == other.expressions
    }
}

impl Eq for Rule {}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Rules {
    /// Refuses what cannot work.
    pub(super) fn judge(&self) -> Result<(), BadRules> {
        let ports = [self.inbound_port, self.outbound_port, self.health_port];
        if ports.contains(&0) || ports[0] == ports[1] || ports[1] == ports[2] || ports[0] == ports[2] {
            return Err(BadRules::Ports);
        }
        match (self.exempt_uid, self.exempt_mark) {
            (None, None) => return Err(BadRules::NoExemption),
            (Some(0), _) => return Err(BadRules::Everybody("user")),
            (_, Some(0)) => return Err(BadRules::Everybody("mark")),
            _ => {}
        }
        if self.skip_inbound_ports.contains(&ports::SELF_PROOF) {
            return Err(BadRules::SelfProof);
        }
        let lists = [
            ("inbound ports", self.skip_inbound_ports.len()),
            ("outbound ports", self.skip_outbound_ports.len()),
            ("outbound networks", self.skip_outbound_cidrs.len()),
        ];
        match lists.into_iter().find(|(_, length)| *length > MAX_SKIPPED) {
            Some((list, _)) => Err(BadRules::TooMany(list)),
            None => Ok(()),
        }
    }

    /// The chains, as they must be in the kernel.
    pub(super) fn chains(&self) -> Vec<Chain> {
        vec![self.prerouting(), self.output(), self.apart(), strays()]
    }

    /// What comes in from outside the pod, to whatever address of the pod: to the inbound listener. An address of another
    /// interface or of loopback too: the kernel would deliver it to the app, so the proxy must see it, and refuse.
    fn prerouting(&self) -> Chain {
        let mut rules = vec![
            only_tcp(),
            not_loopback(),
            Rule::new(
                "fib daddr type != local return",
                [Expression::FibDestinationType, Expression::Different(LOCAL.to_ne_bytes().to_vec())],
            )
            .returns(),
        ];
        rules.extend([self.health_port].iter().chain(&self.skip_inbound_ports).map(|port| skip_port(*port)));
        rules.push(redirect(self.inbound_port));
        Chain::new("prerouting", "nat", 0, -100, rules)
    }

    /// What the app sends, but for loopback: to the outbound listener. The pod's own address too, although that is
    /// routed over loopback: the proxy decides it with the pod's own identity. The self-proof's destination stands first: there
    /// the proxy's own traffic is redirected, too, and it must find itself.
    fn output(&self) -> Chain {
        let mut rules = vec![only_tcp(), self_proof(self.outbound_port)];
        if let Some(uid) = self.exempt_uid {
            rules.push(exempt("skuid", Meta::SocketUid, uid));
        }
        if let Some(mark) = self.exempt_mark {
            rules.push(exempt("mark", Meta::Mark, mark));
        }
        rules.extend(self.skipped());
        rules.push(redirect(self.outbound_port));
        Chain::new("output", "nat", 3, -100, rules)
    }

    /// The redirect is decided once for an entry of connection tracking, and entries outlive their connections: a SYN of the same
    /// addresses and ports meets what was decided for another sender. The proxy's own must not be translated to our listener, where it
    /// would meet itself: it is answered with a reset, and dialled anew from another port. The app's must not pass by: it is dropped
    /// until the entry is gone. Only SYNs are asked who sends them: a socket that was closed tells no user any more, though it
    /// still sends what is left, so connections cannot be told apart by zones (docs/decisions/0002). Behind connection
    /// tracking (-200), before the translation.
    fn apart(&self) -> Chain {
        let mut rules = vec![not_opening(), only_tcp(), fresh(), self_proof_passes()];
        let kinds = [("skuid", Meta::SocketUid, self.exempt_uid), ("mark", Meta::Mark, self.exempt_mark)];
        for (word, key, value) in kinds {
            let Some(value) = value else { continue };
            let mut expressions = sent_by(key, value);
            expressions.extend(redirected(self.outbound_port));
            let text = format!("meta {word} {value} {} reject with tcp reset", redirected_text(self.outbound_port));
            rules.push(Rule::new(text, expressions).and(Expression::Reset));
            rules.push(exempt(word, key, value));
        }
        let text = format!("{} return", redirected_text(self.outbound_port));
        rules.push(Rule::new(text, redirected(self.outbound_port)).returns());
        rules.extend(self.skipped());
        rules.push(Rule::new("drop", [Expression::Drop]));
        Chain::new("apart", "filter", 3, -150, rules)
    }

    /// What the app may reach past the sidecar.
    fn skipped(&self) -> Vec<Rule> {
        let ports = self.skip_outbound_ports.iter().map(|port| skip_port(*port));
        let networks = LOOPBACKS.iter().chain(&self.skip_outbound_cidrs);
        let networks = networks.filter(|network| self.family == Family::Both || network.addr().is_ipv4());
        ports.chain(networks.map(|network| skip_network(*network, self.family))).collect()
    }
}

/// Packets that connection tracking cannot place pass by the redirect, and would meet the app's own listening port, whose
/// reset ends the peer's connection (docs/decisions/0002). Nobody misses them: what matters is sent again.
fn strays() -> Chain {
    // Nearly every packet ends at the first.
    let placed = Rule::new("ct state ! invalid return", bit(Expression::ConntrackState, INVALID, Expression::Equal));
    let rules = vec![placed.returns(), only_tcp(), not_loopback(), Rule::new("drop", [Expression::Drop])];
    Chain::new("strays", "filter", 1, 0, rules)
}

impl Chain {
    fn new(name: &str, kind: &str, hook: u32, priority: i32, rules: Vec<Rule>) -> Self {
        Self { name: name.into(), kind: kind.into(), hook, priority, accepts: true, rules }
    }
}

impl Rule {
    fn new(text: impl Into<String>, expressions: impl Into<Vec<Expression>>) -> Self {
        Self { text: text.into(), expressions: expressions.into() }
    }

    fn and(mut self, last: Expression) -> Self {
        self.expressions.push(last);
        self
    }

    fn returns(self) -> Self {
        self.and(Expression::Return)
    }
}

/// UDP and all else passes by.
fn only_tcp() -> Rule {
    Rule::new("meta l4proto != tcp return", [Expression::Meta(Meta::Transport), Expression::Different(vec![TCP])])
        .returns()
}

/// What did not come from outside the pod is no concern of this chain.
fn not_loopback() -> Rule {
    let expressions = [Expression::Meta(Meta::InterfaceIn), Expression::Equal(LOOPBACK_NAME.to_vec())];
    Rule::new("iifname \"lo\" return", expressions).returns()
}

fn exempt(word: &str, key: Meta, value: u32) -> Rule {
    Rule::new(format!("meta {word} {value} return"), sent_by(key, value)).returns()
}

fn sent_by(key: Meta, value: u32) -> Vec<Expression> {
    vec![Expression::Meta(key), Expression::Equal(value.to_ne_bytes().to_vec())]
}

fn skip_port(port: u16) -> Rule {
    Rule::new(format!("tcp dport {port} return"), to_port(port)).returns()
}

fn to_port(port: u16) -> Vec<Expression> {
    let mut expressions = tcp().to_vec();
    expressions.push(Expression::Payload { header: Header::Transport, offset: 2, length: 2 });
    expressions.push(Expression::Equal(port.to_be_bytes().to_vec()));
    expressions
}

fn skip_network(network: IpNet, of: Family) -> Rule {
    let network = network.trunc();
    let (word, family, offset) = match network {
        IpNet::V4(_) => ("ip", NFPROTO_IPV4, 16),
        IpNet::V6(_) => ("ip6", NFPROTO_IPV6, 24),
    };
    let (address, mask) = (octets(network.network()), octets(network.netmask()));
    let length = u32::try_from(address.len()).unwrap_or_default();
    let mut expressions = Vec::new();
    if of == Family::Both {
        expressions.extend([Expression::Meta(Meta::Family), Expression::Equal(vec![family])]);
    }
    expressions.push(Expression::Payload { header: Header::Network, offset, length });
    if network.prefix_len() < network.max_prefix_len() {
        expressions.push(Expression::Mask(mask));
    }
    expressions.push(Expression::Equal(address));
    Rule::new(format!("{word} daddr {network} return"), expressions).returns()
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The port on which nobody listens, at whatever address of the pod: it needs no route, never leaves the pod, and no real
/// destination is lost by it (docs/decisions/0009).
fn self_proof(port: u16) -> Rule {
    let text = format!("tcp dport {} fib daddr type local redirect to :{port}", ports::SELF_PROOF);
    Rule::new(text, to_self_proof()).and(Expression::Port(port)).and(Expression::Redirect)
}

/// There all are redirected: whoever it was decided for.
fn self_proof_passes() -> Rule {
    Rule::new(format!("tcp dport {} fib daddr type local return", ports::SELF_PROOF), to_self_proof()).returns()
}

fn to_self_proof() -> Vec<Expression> {
    let mut expressions = to_port(ports::SELF_PROOF);
    expressions.extend([Expression::FibDestinationType, Expression::Equal(LOCAL.to_ne_bytes().to_vec())]);
    expressions
}

/// Nearly every packet ends here.
fn not_opening() -> Rule {
    let [among, opening] = OPENING;
    let mut expressions = tcp().to_vec();
    expressions.extend([
        Expression::Payload { header: Header::Transport, offset: 13, length: 1 },
        Expression::Mask(vec![among]),
        Expression::Different(vec![opening]),
    ]);
    Rule::new("tcp flags != syn / fin,syn,rst,ack return", expressions).returns()
}

/// Nothing was decided yet: the chain `output` will.
fn fresh() -> Rule {
    let expressions = bit(Expression::ConntrackStatus, CONFIRMED, Expression::Equal);
    Rule::new("ct status ! confirmed return", expressions).returns()
}

/// One bit of what is loaded, beside zero.
fn bit(of: Expression, bit: u32, beside: fn(Vec<u8>) -> Expression) -> Vec<Expression> {
    vec![of, Expression::Mask(bit.to_ne_bytes().to_vec()), beside(vec![0; 4])]
}

/// Its entry leads to our listener: a translation by somebody else, such as that of a service's address, is none of ours.
fn redirected(port: u16) -> Vec<Expression> {
    let mut expressions = bit(Expression::ConntrackStatus, TRANSLATED, Expression::Different);
    expressions.extend(tcp());
    expressions.extend([Expression::ConntrackReplySource, Expression::Equal(port.to_be_bytes().to_vec())]);
    expressions
}

fn redirected_text(port: u16) -> String {
    format!("ct status dnat meta l4proto tcp ct reply proto-src {port}")
}

/// The kernel takes a port to redirect to only from a register, and only behind a match on the protocol.
fn redirect(port: u16) -> Rule {
    let mut expressions = tcp().to_vec();
    expressions.push(Expression::Port(port));
    Rule::new(format!("meta l4proto tcp redirect to :{port}"), expressions).and(Expression::Redirect)
}

fn tcp() -> [Expression; 2] {
    [Expression::Meta(Meta::Transport), Expression::Equal(vec![TCP])]
}

#[cfg(test)]
pub(super) mod tests;
