use super::*;

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn an_address_is_found_exactly_where_a_range_holds_it() {
    let cover = Cover::of(nets(&["fd77::/64", "10.0.2.0/24", "10.0.0.0/23", "192.0.2.9/32", "10.0.1.0/24"]));
    assert_eq!(cover.0, nets(&["10.0.0.0/23", "10.0.2.0/24", "192.0.2.9/32", "fd77::/64"]));
    let table = [
        ("9.255.255.255", false),
        ("10.0.0.0", true),
        ("10.0.2.255", true),
        ("10.0.3.0", false),
        ("192.0.2.8", false),
        ("192.0.2.9", true),
        ("255.255.255.255", false),
        ("::", false),
        ("fd77::ffff", true),
        ("fd77:0:0:1::", false),
    ];
    for (address, want) in table {
        assert_eq!(cover.contains(address.parse().unwrap()), want, "{address}");
    }
    assert!(!Cover::default().contains("10.0.0.1".parse().unwrap()));
}

#[test]
fn the_nearest_are_put_together_and_the_others_stay_as_they_are() {
    let of = |texts: &[&str], most| Cover::of(nets(texts)).within(most).0;
    let all = ["10.0.0.1/32", "10.0.0.3/32", "10.0.9.0/24", "192.0.2.1/32", "fd77::1/128", "fd88::1/128"];
    assert_eq!(of(&all, 6), nets(&all));
    assert_eq!(of(&all, 4), nets(&["10.0.0.0/20", "192.0.2.1/32", "fd77::1/128", "fd88::1/128"]));
    assert_eq!(of(&all[..4], 3), nets(&["10.0.0.0/30", "10.0.9.0/24", "192.0.2.1/32"]));
    assert_eq!(of(&all, 2), nets(&["0.0.0.0/0", "fd00::/8"]));
    // Never more than so many, and nothing is lost.
    let many: Vec<IpNet> = (0..700u32)
        .map(|i| IpNet::from(IpAddr::V4(i.wrapping_mul(2_654_435_761).into())))
        .chain((0..700u128).map(|i| IpNet::from(IpAddr::V6((i * 0x1234_5678_9abc_def0_1234_5678_9abc).into()))))
        .collect();
    for most in [2, 3, 64, 701, 1024, 1399] {
        let few = Cover::of(many.clone()).within(most);
        assert!(few.0.len() <= most && few.0.is_sorted(), "{most}: {}", few.0.len());
        assert!(many.iter().all(|range| few.contains(range.network())), "{most}");
    }
}

#[test]
fn a_services_address_is_not_told_twice_and_too_many_services_leave_room_for_pods() {
    let meshed = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>().into_iter();
    let now = InForce::of(nets(&["10.0.0.0/24"]), &nets(&["10.96.0.0/16"]), meshed(&["10.96.0.7", "10.0.0.7"]));
    assert_eq!((now.pods, now.pods_widened), (nets(&["10.0.0.0/24"]), false));
    let services: Vec<IpNet> = (0..2000u32).map(|i| IpNet::from(IpAddr::V4((0x0a60_0000 + 2 * i).into()))).collect();
    let now = InForce::of(nets(&["10.0.0.0/24"]), &services, meshed(&["10.9.0.1"]));
    assert!(now.services_widened && now.services.len() <= MAX_SERVICE_RANGES);
    assert!(services.iter().all(|range| now.all.contains(range.network())));
    assert_eq!(now.pods, nets(&["10.0.0.0/24", "10.9.0.1/32"]));
    assert!(InForce::of(Vec::new(), &[], meshed(&["10.9.0.1"])).pods.is_empty(), "no ranges are known yet");
}
