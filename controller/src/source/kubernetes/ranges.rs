//! Which addresses are the mesh's pods': as the operator or the nodes say, and never less than what is known to be meshed. Pure.
//!
//! Called by `world`. It must never take an address away that a known meshed pod has, nor say more ranges than a proxy takes:
//! outside the ranges proxies ask nobody and send plaintext, and of too many they take none.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

/// What a proxy takes in all (`proxy/src/discovery/workload.rs`); of more it takes none.
pub const MAX_RANGES: usize = 1024;

/// The services' part of [`MAX_RANGES`].
pub const MAX_SERVICE_RANGES: usize = 256;

/// CIDRs of which no two overlap, in order: an address is found in a few steps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cover(Vec<IpNet>);

impl Cover {
    /// As few as hold exactly these.
    pub fn of(ranges: impl IntoIterator<Item = IpNet>) -> Self {
        let ranges: Vec<IpNet> = ranges.into_iter().collect();
        let mut ranges = IpNet::aggregate(&ranges);
        ranges.sort_unstable();
        Cover(ranges)
    }

    /// Whether one of them holds the address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let after = self.0.partition_point(|range| range.network() <= address);
        after.checked_sub(1).and_then(|i| self.0.get(i)).is_some_and(|range| range.contains(&address))
    }

    /// At most so many that hold all of these. Those that lie nearest to each other are put into one; the others stay as they are.
    pub fn within(self, most: usize) -> Self {
        if self.0.len() <= most {
            return self;
        }
        let first_six = self.0.partition_point(|range| range.network().is_ipv4());
        let (four, six) = self.0.split_at(first_six);
        // A family that needs less than half leaves the rest to the other.
        let half = most / 2;
        let mut all = widened(four, most - six.len().min(half));
        all.extend(widened(six, most - four.len().min(most - half)));
        Cover(all)
    }

    /// In order.
    pub fn into_vec(self) -> Vec<IpNet> {
        self.0
    }
}

/// Of one family.
fn widened(ranges: &[IpNet], most: usize) -> Vec<IpNet> {
    let mut apart: Vec<u32> = ranges.windows(2).map(|pair| distance(pair[0], pair[1])).collect();
    apart.sort_unstable();
    let too_many = ranges.len().saturating_sub(most.max(1));
    let Some(&near) = too_many.checked_sub(1).and_then(|last| apart.get(last)) else { return ranges.to_vec() };
    let groups = ranges.chunk_by(|one, next| distance(*one, *next) <= near);
    groups.filter_map(|group| group.first().zip(group.last())).map(|(first, last)| around(*first, *last)).collect()
}

/// Bits of host of the smallest CIDR that holds both.
fn distance(one: IpNet, other: IpNet) -> u32 {
    match (one.network(), other.network()) {
        (IpAddr::V4(one), IpAddr::V4(other)) => 32 - (one.to_bits() ^ other.to_bits()).leading_zeros(),
        (IpAddr::V6(one), IpAddr::V6(other)) => 128 - (one.to_bits() ^ other.to_bits()).leading_zeros(),
        _ => u32::MAX,
    }
}

/// The smallest CIDR that holds both, of one family.
fn around(first: IpNet, last: IpNet) -> IpNet {
    let mut wider = std::iter::successors(Some(first), IpNet::supernet);
    wider.find(|range| range.contains(&last.network())).unwrap_or(first)
}

/// The pods' ranges as they are said, and what is remembered of them.
#[derive(Debug)]
pub struct PodRanges {
    /// By the operator: then nodes are not asked.
    set: Vec<IpNet>,
    /// By the nodes that there are.
    told: BTreeSet<IpNet>,
    /// By nodes that are gone; pods may still run there.
    left: BTreeSet<IpNet>,
}

impl PodRanges {
    /// As the operator set them; empty: as the nodes will say.
    pub fn new(set: Vec<IpNet>) -> Self {
        PodRanges { set, told: BTreeSet::new(), left: BTreeSet::new() }
    }

    /// What all nodes say now.
    pub fn tell(&mut self, ranges: impl Iterator<Item = IpNet>) {
        if self.set.is_empty() {
            let before = std::mem::replace(&mut self.told, ranges.collect());
            self.left.extend(before);
            self.left.retain(|range| !self.told.contains(range));
        }
    }

    /// Forgets ranges of nodes that are gone and where no pod has an address. Without any node that says a range nothing is
    /// forgotten: an API without ranges is a mistake, and no reason to call nobody meshed.
    pub fn forget(&mut self, pods: impl Iterator<Item = IpAddr>) {
        if self.told.is_empty() || self.left.is_empty() {
            return;
        }
        let left = Cover::of(self.left.iter().copied());
        let there: BTreeSet<IpAddr> = pods.filter(|address| left.contains(*address)).collect();
        self.left.retain(|range| there.range(range.network()..=range.broadcast()).next().is_some());
    }

    /// Of nodes that are gone.
    pub fn left(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.left.iter().copied()
    }

    /// All that are said; those of the operator as he wrote them.
    pub fn said(&self) -> Vec<IpNet> {
        match self.set.is_empty() {
            false => self.set.clone(),
            true => Cover::of(self.told.union(&self.left).copied()).into_vec(),
        }
    }
}

/// The ranges that are in force.
#[derive(Debug)]
pub struct InForce {
    /// Of pods, as said: without what is added below.
    pub said: Cover,
    /// Of pods: as said, and each meshed address outside.
    pub pods: Vec<IpNet>,
    /// Of services.
    pub services: Vec<IpNet>,
    /// All of both.
    pub all: Cover,
    /// Pods' ranges hold more than they should, or there would be too many.
    pub pods_widened: bool,
    /// The same of services'.
    pub services_widened: bool,
}

impl InForce {
    /// Puts together what is said and what is known to be meshed.
    pub fn of(said: Vec<IpNet>, services: &[IpNet], meshed: impl Iterator<Item = IpAddr>) -> Self {
        let services_widened = services.len() > MAX_SERVICE_RANGES;
        let services = match services_widened {
            true => Cover::of(services.iter().copied()).within(MAX_SERVICE_RANGES).into_vec(),
            false => services.to_vec(),
        };
        let cover = Cover::of(said.iter().copied());
        let covered = Cover::of(said.iter().chain(&services).copied());
        // With none said there is no mesh yet.
        let strays: Vec<IpNet> =
            meshed.filter(|address| !said.is_empty() && !covered.contains(*address)).map(IpNet::from).collect();
        let most = MAX_RANGES - services.len();
        let mut pods = said;
        if !strays.is_empty() || pods.len() > most {
            pods = Cover::of(pods.into_iter().chain(strays)).into_vec();
        }
        let pods_widened = pods.len() > most;
        if pods_widened {
            pods = Cover::of(pods).within(most).into_vec();
        }
        let all = Cover::of(pods.iter().chain(&services).copied());
        InForce { said: cover, pods, services, all, pods_widened, services_widened }
    }
}

#[cfg(test)]
#[path = "ranges/tests.rs"]
mod tests;
