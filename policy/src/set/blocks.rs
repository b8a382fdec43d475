//! IP blocks that answer in the logarithm of their number. Called by `clause`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// First and last address of each block, merged, sorted, disjoint.
#[derive(Debug, Clone)]
pub(super) struct Blocks {
    v4: Vec<(Ipv4Addr, Ipv4Addr)>,
    v6: Vec<(Ipv6Addr, Ipv6Addr)>,
}

impl Blocks {
    pub(super) fn new(blocks: &[IpNet]) -> Self {
        let mut v4 = Vec::new();
        let mut v6 = Vec::new();
        for block in blocks {
            match block {
                IpNet::V4(net) => v4.push(*net),
                IpNet::V6(net) => v6.push(*net),
            }
        }
        let mut v4: Vec<_> = Ipv4Net::aggregate(&v4).iter().map(|net| (net.network(), net.broadcast())).collect();
        let mut v6: Vec<_> = Ipv6Net::aggregate(&v6).iter().map(|net| (net.network(), net.broadcast())).collect();
        v4.sort_unstable();
        v6.sort_unstable();
        Self { v4, v6 }
    }

    /// An IPv4 address is only ever in IPv4 blocks: `::/0` does not mean it.
    pub(super) fn contain(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => within(&self.v4, ip),
            IpAddr::V6(ip) => within(&self.v6, ip),
        }
    }
}

fn within<T: Ord + Copy>(ranges: &[(T, T)], ip: T) -> bool {
    let after = ranges.partition_point(|(first, _)| *first <= ip);
    after.checked_sub(1).and_then(|at| ranges.get(at)).is_some_and(|(_, last)| ip <= *last)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Small worlds, so that blocks meet, nest and touch; asked are their first and last addresses and those beside.
    fn v4() -> impl Strategy<Value = Ipv4Addr> {
        (0u32..64).prop_map(|n| Ipv4Addr::from(0x0a00_0000 | n))
    }

    fn v6() -> impl Strategy<Value = Ipv6Addr> {
        (0u128..64).prop_map(|n| Ipv6Addr::from((0xfd << 120) | n))
    }

    proptest! {
        #[test]
        fn blocks_contain_exactly_what_their_networks_contain(
            nets in proptest::collection::vec((v4(), 25u8..=32), 0..6),
            others in proptest::collection::vec((v6(), 121u8..=128), 0..6),
            ip in v4(),
            other in v6(),
        ) {
            let nets = nets.into_iter().map(|(ip, len)| IpNet::new(ip.into(), len).unwrap().trunc());
            let others = others.into_iter().map(|(ip, len)| IpNet::new(ip.into(), len).unwrap().trunc());
            let nets: Vec<IpNet> = nets.chain(others).collect();
            let blocks = Blocks::new(&nets);
            for ip in [IpAddr::from(ip), IpAddr::from(other)] {
                prop_assert_eq!(blocks.contain(ip), nets.iter().any(|net| net.contains(&ip)), "{}", ip);
            }
            for net in &nets {
                prop_assert!(blocks.contain(net.network()) && blocks.contain(net.broadcast()));
            }
        }
    }

    #[test]
    fn the_two_families_do_not_mix() {
        let all_v6 = Blocks::new(&["::/0".parse().unwrap()]);
        assert!(!all_v6.contain("10.0.0.1".parse().unwrap()));
        assert!(all_v6.contain("fd00::1".parse().unwrap()));
        let all_v4 = Blocks::new(&["0.0.0.0/0".parse().unwrap()]);
        assert!(all_v4.contain("255.255.255.255".parse().unwrap()));
        assert!(!all_v4.contain("::1".parse().unwrap()));
    }
}
