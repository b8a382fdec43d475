//! What two objects cannot both have: a name, a UID, an address; and what must lie inside the mesh's ranges.
//!
//! Called by `Index::build` before anything is built. It must never pick a winner: it names both sides, and the source
//! decides whose change is held back.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;

use countersign_identity::TrustDomain;
use ipnet::IpNet;

use crate::model::{At, Kind, Mesh, Object, ObjectName, Place, Problem};

/// Enough to act upon; the rest shows when these are gone.
const MAX_CONFLICTS: usize = 64;

/// Something that cannot be put in force. Each side says it from its own place; the last is the likelier culprit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// One or two: the objects at odds.
    pub sides: Vec<Problem>,
}

/// What only one may have.
#[derive(PartialEq, Eq, Hash)]
enum Key<'a> {
    Mesh,
    Object(&'static str, &'a ObjectName),
    Uid(&'a str),
    Address(IpAddr),
}

impl std::fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Key::Mesh => f.write_str("the one Mesh of a source"),
            Key::Object(kind, name) => write!(f, "{kind} {name}"),
            Key::Uid(uid) => write!(f, "UID {uid}"),
            Key::Address(address) => write!(f, "{address}"),
        }
    }
}

struct Claim<'a> {
    object: &'a Object,
    place: &'a Place,
    field: Field,
}

#[derive(Clone, Copy)]
enum Field {
    Name,
    Uid,
    Address(usize),
}

impl std::fmt::Display for Field {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Field::Name => f.write_str("metadata.name"),
            Field::Uid => f.write_str("spec.uid"),
            Field::Address(i) => write!(f, "spec.addresses[{i}]"),
        }
    }
}

#[derive(Default)]
struct Claims<'a> {
    taken: HashMap<Key<'a>, Claim<'a>>,
    conflicts: Vec<Conflict>,
}

/// Looks for conflicts among all objects.
pub fn conflicts(objects: &[&Object], mesh: Option<&Object>, trust_domain: &TrustDomain) -> Vec<Conflict> {
    let mut claims = Claims::default();
    for &object in objects {
        claims.take(object);
    }
    if let Some(at) = mesh
        && let Kind::Mesh(mesh) = &at.kind
    {
        if mesh.trust_domain != *trust_domain {
            let message = format!("is {}; this controller was started for {trust_domain}", mesh.trust_domain);
            claims.conflict(vec![Problem::at(&at.place, "spec.trustDomain", message)]);
        }
        for &object in objects {
            claims.inside(object, at, mesh);
        }
    }
    claims.conflicts
}

impl<'a> Claims<'a> {
    fn take(&mut self, object: &'a Object) {
        let key = match object.kind {
            Kind::Mesh(_) => Key::Mesh,
            _ => Key::Object(object.kind.as_str(), &object.name),
        };
        self.claim(key, object, &object.place, Field::Name);
        match &object.kind {
            Kind::Workload(workload) => {
                self.claim(Key::Uid(&workload.uid.value), object, &workload.uid.place, Field::Uid);
                self.addresses(object, &workload.addresses);
            }
            Kind::Service(service) => self.addresses(object, &service.addresses),
            Kind::Mesh(_) | Kind::Namespace(_) | Kind::Policy(_) => {}
        }
    }

    fn addresses(&mut self, object: &'a Object, addresses: &'a [At<IpAddr>]) {
        for (i, address) in addresses.iter().enumerate() {
            self.claim(Key::Address(address.value), object, &address.place, Field::Address(i));
        }
    }

    fn claim(&mut self, key: Key<'a>, object: &'a Object, place: &'a Place, field: Field) {
        let claim = Claim { object, place, field };
        match self.taken.entry(key) {
            Entry::Vacant(free) => {
                free.insert(claim);
            }
            Entry::Occupied(taken) => {
                let (subject, first) = (taken.key(), taken.get());
                let side = |mine: &Claim<'_>, other: &Claim<'_>| {
                    let message = format!(
                        "{subject} is claimed by {} here and by {} at {}",
                        mine.object, other.object, other.place
                    );
                    Problem::at(mine.place, mine.field.to_string(), message)
                };
                let sides = vec![side(first, &claim), side(&claim, first)];
                self.conflict(sides);
            }
        }
    }

    /// A meshed workload outside the ranges would never be asked for: its traffic would pass in plaintext.
    fn inside(&mut self, object: &'a Object, at: &Object, mesh: &Mesh) {
        let (addresses, ranges, field) = match &object.kind {
            Kind::Workload(workload) if workload.meshed => (&workload.addresses, &mesh.pod_ranges, "spec.podRanges"),
            Kind::Workload(workload) => {
                // Without a sidecar it may stand on a node's address, but never where a service may.
                self.apart(object, &workload.addresses, at, &mesh.service_ranges);
                return;
            }
            Kind::Service(service) => (&service.addresses, &mesh.service_ranges, "spec.serviceRanges"),
            _ => return,
        };
        for (i, address) in addresses.iter().enumerate().filter(|(_, a)| !contains(ranges, a.value)) {
            let (ip, name) = (address.value, field.trim_start_matches("spec."));
            let sides = vec![
                Problem::at(&at.place, field, format!("leaves out {ip} of {object} at {}", address.place)),
                Problem::at(
                    &address.place,
                    Field::Address(i).to_string(),
                    format!("{ip} of {object} is outside the mesh's {name} ({})", at.place),
                ),
            ];
            self.conflict(sides);
        }
    }

    fn apart(&mut self, object: &Object, addresses: &[At<IpAddr>], at: &Object, ranges: &[IpNet]) {
        for (i, address) in addresses.iter().enumerate().filter(|(_, a)| contains(ranges, a.value)) {
            let ip = address.value;
            let sides = vec![
                Problem::at(&at.place, "spec.serviceRanges", format!("hold {ip} of {object} at {}", address.place)),
                Problem::at(
                    &address.place,
                    Field::Address(i).to_string(),
                    format!("{ip} of {object} lies in the mesh's serviceRanges ({})", at.place),
                ),
            ];
            self.conflict(sides);
        }
    }

    fn conflict(&mut self, sides: Vec<Problem>) {
        if self.conflicts.len() < MAX_CONFLICTS {
            self.conflicts.push(Conflict { sides });
        }
    }
}

/// Whether any of the ranges holds the address.
pub fn contains(ranges: &[IpNet], address: IpAddr) -> bool {
    ranges.iter().any(|range| range.contains(&address))
}
