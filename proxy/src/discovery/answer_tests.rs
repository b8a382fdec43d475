//! What an answer may make us believe.

use super::*;

const ASKED: &str = "10.77.0.11:8080";

fn wire(text: &str) -> api::Address {
    write_address(text.parse().unwrap())
}

fn meshed(address: &str, id: &str) -> api::Endpoint {
    api::Endpoint {
        address: Some(wire(address)),
        identity: Some(api::endpoint::Identity::SpiffeId(id.to_owned())),
        ready: true,
        node: "node-a".to_owned(),
    }
}

fn plain(address: &str, ttl_seconds: u32) -> api::Endpoint {
    let identity = Some(api::endpoint::Identity::NotMeshed(api::NotMeshed { ttl_seconds }));
    api::Endpoint { identity, ..meshed(address, "") }
}

fn service(endpoints: Vec<api::Endpoint>) -> api::answer::Who {
    api::answer::Who::Service(api::Service {
        namespace: "shop".to_owned(),
        name: "backend".to_owned(),
        endpoints,
        local_only: true,
        affinity_seconds: 90,
    })
}

fn answer(who: Option<api::answer::Who>) -> Read {
    read(api::Answer { address: Some(wire(ASKED)), who }).unwrap()
}

const BACKEND: &str = "spiffe://cluster.local/ns/shop/sa/backend";

#[test]
fn a_pod_is_its_own_address_with_its_identity() {
    let read = answer(Some(api::answer::Who::Endpoint(meshed("10.77.0.11:0", BACKEND))));
    let Who::Endpoint(endpoint) = &read.who else { panic!("{read:?}") };
    assert_eq!(endpoint.address.to_string(), ASKED);
    assert_eq!(endpoint.identity, Identity::Meshed(SpiffeId::parse(BACKEND).unwrap()));
    assert_eq!((read.ttl, read.problems.len()), (None, 0));
}

#[test]
fn a_service_keeps_its_endpoints_and_settings() {
    let read = answer(Some(service(vec![meshed("10.77.0.11:8080", BACKEND), meshed("[fd77::11]:8080", BACKEND)])));
    let Who::Service(service) = &read.who else { panic!("{read:?}") };
    assert_eq!(service.endpoints.len(), 2);
    assert_eq!(service.affinity, Some(Duration::from_secs(90)));
    assert!(service.local_only && read.ttl.is_none());
}

#[test]
fn an_answer_of_a_kind_that_is_not_known_refuses() {
    let read = answer(None);
    assert_eq!((read.who, read.problems), (Who::Unknown, vec![Problem::Kind]));
}

#[test]
fn a_pod_without_an_identity_that_is_understood_is_nobody() {
    let mut none = meshed("10.77.0.11:8080", "");
    none.identity = None;
    for bad in [none, meshed("10.77.0.11:8080", "https://cluster.local/ns/shop/sa/backend")] {
        let read = answer(Some(api::answer::Who::Endpoint(bad)));
        assert_eq!(read.who, Who::Unknown);
        assert!(matches!(read.problems[..], [Problem::Identity(_)]));
    }
}

#[test]
fn an_answer_about_a_pod_cannot_lead_to_another_address() {
    let read = answer(Some(api::answer::Who::Endpoint(meshed("192.0.2.7:8080", BACKEND))));
    assert_eq!(read.who, Who::Unknown);
    assert!(matches!(read.problems[..], [Problem::OtherAddress { .. }]));
}

#[test]
fn an_endpoint_that_is_not_understood_is_left_out_and_the_others_stay() {
    let mut no_port = meshed("10.77.0.12:1", BACKEND);
    no_port.address.as_mut().unwrap().port = 0;
    let mut big_port = meshed("10.77.0.12:1", BACKEND);
    big_port.address.as_mut().unwrap().port = 65_536;
    let mut short_ip = meshed("10.77.0.12:1", BACKEND);
    short_ip.address.as_mut().unwrap().ip.pop();
    let good = meshed("10.77.0.11:8080", BACKEND);
    let read = answer(Some(service(vec![no_port, big_port, short_ip, good])));
    let Who::Service(service) = &read.who else { panic!("{read:?}") };
    assert_eq!(service.endpoints.len(), 1);
    assert_eq!(read.problems, [Problem::Port(0), Problem::Port(65_536), Problem::Address(3)]);
}

#[test]
fn an_endpoint_of_another_namespace_than_its_services_is_left_out() {
    let stranger = meshed("10.77.0.12:8080", "spiffe://cluster.local/ns/other/sa/backend");
    let read = answer(Some(service(vec![stranger])));
    let Who::Service(service) = &read.who else { panic!("{read:?}") };
    assert!(service.endpoints.is_empty());
    assert!(matches!(read.problems[..], [Problem::OtherNamespace { .. }]));
}

#[test]
fn unmeshed_answers_live_at_most_30_seconds_whatever_is_said() {
    for (said, lives) in [(5, 5), (30, 30), (3600, 30), (0, 30)] {
        let read = answer(Some(api::answer::Who::NotMeshed(api::NotMeshed { ttl_seconds: said })));
        assert_eq!((read.who, read.ttl), (Who::NotMeshed, Some(Duration::from_secs(lives))));
        let read = answer(Some(api::answer::Who::Endpoint(plain(ASKED, said))));
        assert_eq!(read.ttl, Some(Duration::from_secs(lives)));
    }
}

#[test]
fn a_service_lives_as_long_as_its_shortest_unmeshed_endpoint() {
    let mixed = vec![meshed("10.77.0.11:8080", BACKEND), plain("10.77.0.12:8080", 20), plain("10.77.0.13:8080", 10)];
    assert_eq!(answer(Some(service(mixed))).ttl, Some(Duration::from_secs(10)));
}

#[test]
fn addresses_have_one_spelling() {
    let mapped =
        api::Address { ip: "::ffff:10.77.0.11".parse::<std::net::Ipv6Addr>().unwrap().octets().to_vec(), port: 8080 };
    let read = read(api::Answer { address: Some(mapped), who: None }).unwrap();
    assert_eq!(read.address.to_string(), ASKED);
}

#[test]
fn an_answer_to_no_question_is_an_error() {
    assert_eq!(read(api::Answer::default()), Err(Problem::Address(0)));
    let five_bytes = api::Address { ip: vec![1; 5], port: 1 };
    assert_eq!(read(api::Answer { address: Some(five_bytes), who: None }), Err(Problem::Address(5)));
    let big_port = api::Address { ip: vec![1; 4], port: 1 << 16 };
    assert_eq!(read(api::Answer { address: Some(big_port), who: None }), Err(Problem::Port(1 << 16)));
}
