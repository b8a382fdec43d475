//! The link that the virtual pods share, and the pods on it.
//!
//! Made by tests, the demo and the benches once they are inside (see [`crate::enter`]). It must never reach a network
//! outside: packets to addresses that no pod has come back as "unreachable" at once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result, ensure};

use crate::enter::Inside;
use crate::lacks::Here as _;
use crate::namespace::Namespace;

/// The link's own IPv4 address; pods are in the same /24.
pub const LINK_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The link's own IPv6 address; pods are in the same /64.
pub const LINK_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
/// Name of the bridge in the link's namespace.
pub(crate) const BRIDGE: &str = "br0";

/// Nets of one process may live at the same time, with the same addresses: their namespaces differ by this number.
static NETS: AtomicUsize = AtomicUsize::new(0);

/// A link of its own, with nothing beyond. Pods hold no reference to it but end with it: drop it last.
pub struct Net {
    link: Namespace,
    number: usize,
    pods: AtomicUsize,
    inside: Inside,
}

/// What a pod is to be called and to be reached by.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// Name: `[a-z0-9-]`, at most 40 bytes, unique in its net.
    pub name: String,
    /// In 10.77.0.0/24.
    pub v4: Ipv4Addr,
    /// In fd77::/64.
    pub v6: Ipv6Addr,
}

impl PodSpec {
    /// The pod with 10.77.0.N and fd77::N (N in hexadecimal there).
    #[must_use]
    pub fn numbered(name: &str, number: u8) -> Self {
        let [.., last] = LINK_V6.segments();
        debug_assert_eq!(last, 1);
        Self {
            name: name.into(),
            v4: Ipv4Addr::new(10, 77, 0, number),
            v6: Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, u16::from(number)),
        }
    }
}

/// A pod: a network namespace with `lo` and `eth0`, whose every packet to the outside goes to the link.
pub struct Pod {
    namespace: Namespace,
    spec: PodSpec,
}

impl Net {
    /// Makes the link.
    ///
    /// # Errors
    /// If the kernel lacks bridges or veth, or `ip` is not there ([`crate::Lacks`]).
    pub fn new(inside: Inside) -> Result<Self> {
        Self::make(inside).context("the link between the pods").here()
    }

    fn make(inside: Inside) -> Result<Self> {
        let number = NETS.fetch_add(1, Ordering::Relaxed);
        let link = Namespace::create(&format!("n{number}"), inside.rootless())?;
        quiet_ipv6(&link)?;
        // Forwarding only so that the unreachable routes answer: a silent drop would cost each test seconds.
        link.sysctl("ipv4/ip_forward", "1")?;
        link.sysctl("ipv6/conf/all/forwarding", "1")?;
        link.sysctl("ipv4/conf/all/send_redirects", "0")?;
        link.sysctl("ipv4/conf/default/send_redirects", "0")?;
        link.ip(&format!(
            "link set lo up\n\
             link add {BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
             address add {LINK_V4}/24 dev {BRIDGE}\n\
             address add {LINK_V6}/64 dev {BRIDGE} nodad\n\
             link set {BRIDGE} up\n\
             route add unreachable default\n\
             route add unreachable ::/0 metric 2048\n"
        ))?;
        Ok(Self { link, number, pods: AtomicUsize::new(0), inside })
    }

    /// The link's own namespace: what runs here is on the network, with no pod around it. Captures read here.
    #[must_use]
    pub fn link(&self) -> &Namespace {
        &self.link
    }

    /// The proof with which it was made.
    #[must_use]
    pub fn inside(&self) -> Inside {
        self.inside
    }

    /// Adds a pod, reachable when this returns (no duplicate address detection).
    ///
    /// # Errors
    /// On a bad name or address; [`crate::Lacks`] if it cannot be made, or is there already.
    pub fn pod(&self, spec: PodSpec) -> Result<Pod> {
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        ensure!(
            !spec.name.is_empty() && spec.name.len() <= 40 && spec.name.bytes().all(good),
            "pod name {:?}",
            spec.name
        );
        ensure!(spec.v4.octets()[..3] == LINK_V4.octets()[..3], "{} is not in {LINK_V4}/24", spec.v4);
        ensure!(spec.v6.segments()[..4] == LINK_V6.segments()[..4], "{} is not in {LINK_V6}/64", spec.v6);
        let name = spec.name.clone();
        self.make_pod(spec).with_context(|| format!("pod {name}")).here()
    }

    fn make_pod(&self, spec: PodSpec) -> Result<Pod> {
        let namespace = Namespace::create(&format!("n{}-{}", self.number, spec.name), self.inside.rootless())?;
        quiet_ipv6(&namespace)?;
        namespace.sysctl("ipv4/ip_forward", "0")?;
        namespace.sysctl("ipv4/ip_unprivileged_port_start", "0")?;
        let port = format!("p{}", self.pods.fetch_add(1, Ordering::Relaxed));
        self.link.ip(&format!(
            "link add {port} type veth peer name eth0 netns {}\n\
             link set {port} master {BRIDGE} up\n",
            namespace.netns()
        ))?;
        namespace.ip(&format!(
            "link set lo up\n\
             link set eth0 up\n\
             address add {}/24 dev eth0\n\
             address add {}/64 dev eth0 nodad\n\
             route add default via {LINK_V4}\n\
             route add ::/0 via {LINK_V6}\n",
            spec.v4, spec.v6
        ))?;
        Ok(Pod { namespace, spec })
    }
}

impl Pod {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Its IPv4 address.
    #[must_use]
    pub fn v4(&self) -> Ipv4Addr {
        self.spec.v4
    }

    /// Its IPv6 address.
    #[must_use]
    pub fn v6(&self) -> Ipv6Addr {
        self.spec.v6
    }

    /// Both its addresses.
    #[must_use]
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.spec.v4.into(), self.spec.v6.into()]
    }
}

impl Deref for Pod {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}

/// Addresses are usable at once, and nobody asks for routers: the wire holds what the test sends.
fn quiet_ipv6(namespace: &Namespace) -> Result<()> {
    for (setting, value) in [("accept_dad", "0"), ("accept_ra", "0"), ("router_solicitations", "0")] {
        namespace.sysctl(&format!("ipv6/conf/all/{setting}"), value)?;
        namespace.sysctl(&format!("ipv6/conf/default/{setting}"), value)?;
    }
    Ok(())
}
