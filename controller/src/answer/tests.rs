use super::*;
use crate::testing::{MESH, SERVICES, index, small_mesh, workload, workloads};

fn ask(index: &Index, address: &str) -> api::Answer {
    let (ip, port) = address.rsplit_once('@').unwrap();
    who(index, Asked { ip: ip.parse().unwrap(), port: port.parse().unwrap() })
}

/// An answer as one line: what a golden test compares.
fn line(answer: &api::Answer) -> String {
    let at = |address: &Option<api::Address>| {
        let asked = Asked::from_wire(address.as_ref().unwrap()).unwrap();
        format!("{}@{}", asked.ip, asked.port)
    };
    let endpoint = |endpoint: &api::Endpoint| {
        let identity = match endpoint.identity.as_ref().unwrap() {
            Identity::SpiffeId(id) => id.clone(),
            Identity::NotMeshed(not_meshed) => format!("not-meshed({})", not_meshed.ttl_seconds),
        };
        let ready = if endpoint.ready { "ready" } else { "unready" };
        format!("{} {identity} {ready} {}", at(&endpoint.address), endpoint.node)
    };
    let who = match answer.who.as_ref().unwrap() {
        Who::Unknown(_) => "unknown".to_owned(),
        Who::NotMeshed(not_meshed) => format!("not-meshed({})", not_meshed.ttl_seconds),
        Who::Endpoint(one) => endpoint(one),
        Who::Service(service) => {
            let endpoints: Vec<String> = service.endpoints.iter().map(endpoint).collect();
            let name = format!("{}/{}", service.namespace, service.name);
            format!(
                "{name} local={} affinity={} [{}]",
                service.local_only,
                service.affinity_seconds,
                endpoints.join("; ")
            )
        }
    };
    format!("{} = {who}", at(&answer.address))
}

#[test]
fn every_kind_of_address_has_its_answer() {
    let index = small_mesh(&[]);
    let golden = [
        "10.77.0.11@8080 = 10.77.0.11@8080 spiffe://cluster.local/ns/shop/sa/backend ready node-a",
        "fd77::11@8080 = fd77::11@8080 spiffe://cluster.local/ns/shop/sa/backend ready node-a",
        // Alone, and not ready: the answer by the pod's own address waits for nothing.
        "10.77.0.12@0 = 10.77.0.12@0 spiffe://cluster.local/ns/shop/sa/backend unready node-a",
        "10.77.0.13@5432 = not-meshed(30)",
        "10.77.0.99@80 = unknown",
        "10.96.0.10@80 = shop/backend local=false affinity=0 [10.77.0.11@8080 spiffe://cluster.local/ns/shop/sa/backend \
         ready node-a; 10.77.0.12@8080 spiffe://cluster.local/ns/shop/sa/backend unready node-a]",
        "fd96::10@9090 = shop/backend local=false affinity=0 [fd77::11@9090 spiffe://cluster.local/ns/shop/sa/backend \
         ready node-a; fd77::12@9090 spiffe://cluster.local/ns/shop/sa/backend unready node-a]",
        "10.96.0.11@5432 = shop/database local=true affinity=10800 [10.77.0.13@5432 not-meshed(30) ready node-a]",
        "10.96.0.12@80 = shop/elsewhere local=false affinity=0 []",
        "10.96.0.10@81 = unknown",
        "10.96.0.10@0 = unknown",
        "10.96.9.9@80 = unknown",
        "192.0.2.1@443 = not-meshed(30)",
        "2001:db8::1@0 = not-meshed(30)",
    ];
    for expected in golden {
        let (address, _) = expected.split_once(" = ").unwrap();
        assert_eq!(line(&ask(&index, address)), expected);
    }
}

#[test]
fn a_service_never_reaches_into_another_namespace() {
    let index = small_mesh(&[]);
    let stranger = index.members().iter().find(|member| &*member.name.name == "stranger").unwrap();
    assert_eq!(stranger.workload.labels.get("app").unwrap(), "backend", "the stranger wears the label");
    let answer = line(&ask(&index, "10.96.0.10@80"));
    assert!(!answer.contains("10.77.0.20"), "{answer}");
}

#[test]
fn an_ipv4_address_in_ipv6_clothes_is_the_ipv4_address() {
    let answer = ask(&small_mesh(&[]), "::ffff:10.77.0.11@80");
    let Some(Who::Endpoint(endpoint)) = &answer.who else { panic!("{answer:?}") };
    assert_eq!(endpoint.identity, Some(Identity::SpiffeId("spiffe://cluster.local/ns/shop/sa/backend".into())));
    let asked = Asked::from_wire(answer.address.as_ref().unwrap()).unwrap();
    assert_eq!(asked.ip.to_string(), "::ffff:10.77.0.11", "the answer names the address as asked");
}

#[test]
fn an_unmeshed_workload_outside_the_ranges_is_an_endpoint_without_identity() {
    let host =
        workload("shop", "host", "database", "192.0.2.7", "2001:db8::7", "").replace("meshed: true", "meshed: false");
    let index = small_mesh(&[&host]);
    let answer = line(&ask(&index, "10.96.0.11@5432"));
    assert!(
        answer.ends_with("[10.77.0.13@5432 not-meshed(30) ready node-a; 192.0.2.7@5432 not-meshed(30) ready node-a]"),
        "{answer}"
    );
}

#[test]
fn what_is_no_address_is_refused() {
    let wire = |ip: &[u8], port| Asked::from_wire(&api::Address { ip: ip.to_vec(), port });
    assert_eq!(wire(&[], 1), Err(AddressError::Length(0)));
    assert_eq!(wire(&[1, 2, 3], 1), Err(AddressError::Length(3)));
    assert_eq!(wire(&[0; 17], 1), Err(AddressError::Length(17)));
    assert_eq!(wire(&[10, 0, 0, 1], 65_536), Err(AddressError::Port(65_536)));
    assert!(wire(&[10, 0, 0, 1], 65_535).is_ok());
}

#[test]
fn an_equal_stamp_means_an_equal_answer_and_a_change_shows() {
    let before = small_mesh(&[]);
    // backend-2 becomes ready; nothing else changes.
    let after = index(&[MESH, &workloads().replace(", ready: false", ""), SERVICES]);
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    for changed in ["10.77.0.12", "10.96.0.10", "fd96::10"] {
        assert_ne!(before.stamp(ip(changed)), after.stamp(ip(changed)), "{changed}");
    }
    for same in ["10.77.0.11", "10.77.0.99", "10.96.0.11", "192.0.2.1"] {
        assert_eq!(before.stamp(ip(same)), after.stamp(ip(same)), "{same}");
    }
}
