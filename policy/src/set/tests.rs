//! What compiling keeps, and that looking up stays small.

use super::*;
use crate::parse;

fn policy(name: &str, action: &str, rules: &str) -> Received {
    let text = format!(
        "apiVersion: policy.countersign.dev/v1alpha1\nkind: AuthorizationPolicy\n\
         metadata: {{name: {name}, namespace: n}}\nspec: {{action: {action}, rules: {rules}}}\n"
    );
    Received::Known(parse("t", &text).unwrap().remove(0))
}

fn set(received: Vec<Received>) -> PolicySet {
    PolicySet::compile("td", Modes::default(), "r", received)
}

/// How many clauses are looked at for one attempt.
fn looked_at(set: &PolicySet, id: &str, port: u16) -> usize {
    let principal = Principal::parse(id).unwrap();
    let asked = Asked::new(&Attempt {
        source: Source::Authenticated(&principal),
        source_ip: "10.0.0.1".parse().unwrap(),
        port,
    });
    let mut count = 0;
    set.index.candidates(&asked, |_| count += 1);
    count
}

#[test]
fn rules_that_do_not_concern_port_or_source_are_not_looked_at() {
    let concerning = |n: u32| {
        (0..n).map(|i| policy(&format!("x{i}"), "Allow", "[{from: [{namespaces: [shop]}], to: [{ports: [80]}]}]"))
    };
    let foreign = |n: u32| {
        (0..n).map(|i| {
            let (ns, port) = (i % 1000, 1000 + i % 5000);
            let rules = match i % 5 {
                0 => format!("[{{from: [{{namespaces: [ns{ns}]}}], to: [{{ports: [80]}}]}}]"),
                1 => format!("[{{from: [{{spiffeIds: [\"spiffe://td/ns/shop/sa/a{ns}\"]}}]}}]"),
                2 => format!("[{{from: [{{serviceAccounts: [{{namespace: shop, name: a{ns}}}]}}]}}]"),
                3 => format!("[{{from: [{{trustDomains: [td{ns}]}}]}}]"),
                _ => format!("[{{to: [{{ports: [{port}]}}]}}]"),
            };
            policy(&format!("y{i}"), if i % 2 == 0 { "Allow" } else { "Deny" }, &rules)
        })
    };
    let small = set(concerning(20).collect());
    let large = set(concerning(20).chain(foreign(9_980)).collect());
    assert_eq!(large.len(), 10_000);
    for set in [&small, &large] {
        assert_eq!(looked_at(set, "spiffe://td/ns/shop/sa/frontend", 80), 20);
        assert_eq!(looked_at(set, "spiffe://td/ns/other/sa/frontend", 80), 0);
        assert_eq!(looked_at(set, "spiffe://td/machine", 80), 0);
    }
}

#[test]
fn a_rule_of_many_ports_and_many_sources_takes_room_for_their_sum_not_their_product() {
    let ports: Vec<_> = (1..=4096).collect();
    let ids = |n: u32| (0..n).map(|i| format!("\"spiffe://td/{i}\"")).collect::<Vec<_>>().join(", ");
    let one_entry = format!("[{{from: [{{spiffeIds: [{}]}}], to: [{{ports: {ports:?}}}]}}]", ids(4096));
    let entries = (0..2000).map(|i| format!("{{spiffeIds: [\"spiffe://td/{i}\"]}}")).collect::<Vec<_>>().join(", ");
    let many_entries = format!("[{{from: [{entries}], to: [{{ports: {ports:?}}}]}}]");
    for rules in [one_entry, many_entries] {
        let set = set(vec![policy("a", "Allow", &rules)]);
        assert!(set.index.size() <= 4 * (4096 + 4096), "{} candidates", set.index.size());
        let matches = |id, port| {
            let principal = Principal::parse(id).unwrap();
            let source = Source::Authenticated(&principal);
            crate::decide(&set, &Attempt { source, source_ip: "10.0.0.1".parse().unwrap(), port }).allowed()
        };
        assert!(matches("spiffe://td/0", 1) && matches("spiffe://td/1999", 4096));
        assert!(!matches("spiffe://td/0", 4097), "the port is asked all the same");
        assert!(!matches("spiffe://td/x", 1));
        assert!(set.speaks_of(4096) && !set.speaks_of(4097));
    }
}

#[test]
fn a_wide_rule_opens_exactly_its_ports_to_the_unauthenticated() {
    let ports: Vec<_> = (1..=100).collect();
    let entry = "{unauthenticated: true, ipBlocks: [10.0.0.0/8]}";
    let entries = [entry; 100].join(", ");
    let rules = format!("[{{from: [{entries}], to: [{{ports: {ports:?}}}]}}]");
    let wide = set(vec![policy("a", "Allow", &rules)]);
    assert!(wide.index.size() <= 4 * 200);
    assert_eq!([1, 100, 101].map(|port| wide.opens_unauthenticated(port)), [true, true, false]);
    assert!(!set(vec![policy("a", "Deny", &rules)]).opens_unauthenticated(1));
}

#[test]
fn a_port_is_spoken_of_by_rules_of_either_action_and_mode() {
    let set = set(vec![
        policy("a", "Deny", "[{to: [{ports: [80]}]}]"),
        policy("b", "Allow", "[{from: [], to: [{ports: [81]}]}]"),
    ]);
    assert_eq!([80, 81, 82].map(|port| set.speaks_of(port)), [true, true, false]);
    let any = super::tests::set(vec![policy("a", "Allow", "[{from: []}]")]);
    assert!(any.speaks_of(1));
    assert!(!super::tests::set(vec![]).speaks_of(1));
}

#[test]
fn only_an_enforced_allow_opens_to_the_unauthenticated() {
    let rules = "[{from: [{unauthenticated: true, ipBlocks: [10.0.0.0/8]}], to: [{ports: [80]}]}]";
    let opens = |received| set(vec![received]).opens_unauthenticated(80);
    assert!(opens(policy("a", "Allow", rules)));
    assert!(!opens(policy("a", "Deny", rules)));
    assert!(!opens(policy("a", "Allow, mode: Audit", rules)));
    assert!(!opens(policy("a", "Allow", "[{from: [{ipBlocks: [10.0.0.0/8]}]}]")));
    assert!(!opens(policy("a", "Allow", "[{}]")));
    assert!(!set(vec![policy("a", "Allow", rules)]).opens_unauthenticated(81));
    let any_port = "[{from: [{unauthenticated: true, ipBlocks: [10.0.0.0/8]}]}]";
    assert!(opens(policy("a", "Allow", any_port)));
}

#[test]
fn what_the_stream_announces_must_be_what_it_carries() {
    let Received::Known(known) = policy("a", "Deny", "[{}]") else { panic!() };
    let json = known.to_json();
    let wire = |ns, name, deny, feature, json: &str| {
        let (received, error) = Received::from_wire(ns, name, deny, feature, json);
        (matches!(received, Received::Known(_)), error.map(|e| e.to_string()))
    };
    assert_eq!(wire("n", "a", true, 1, &json), (true, None));
    assert_eq!(wire("n", "a", true, 0, &json), (true, None));
    assert_eq!(wire("n", "a", true, 2, &json), (false, None));
    assert_eq!(wire("n", "a", true, u32::MAX, "what nobody can read yet"), (false, None));
    let announced = "json: announced as n/b, but is n/a, or of the other action";
    assert_eq!(wire("n", "b", true, 1, &json), (false, Some(announced.into())));
    for (ns, name, deny) in [("m", "a", true), ("n", "a", false)] {
        let (known, error) = wire(ns, name, deny, 1, &json);
        assert!(!known && error.is_some());
    }
    // Whichever of envelope and text says Deny is believed.
    let (received, _) = Received::from_wire("n", "a", false, 1, &json);
    assert!(matches!(received, Received::Unknown { deny: true, .. }));
    let (known, error) = wire("n", "a", true, 1, &json.replace("rules", "rulez"));
    assert!(!known && error.unwrap().contains("spec.rulez: unknown field"));
}

#[test]
fn policies_of_unknown_features_are_reported_by_name() {
    let unknown = |name: &str, deny| Received::Unknown { namespace: "n".into(), name: name.into(), deny, feature: 7 };
    let set = set(vec![unknown("z", false), policy("b", "Allow", "[{}]"), unknown("a", true)]);
    assert_eq!(set.unknown().collect::<Vec<_>>(), ["n/a", "n/z"]);
    assert_eq!((set.len(), set.is_empty(), set.revision()), (3, false, "r"));
    assert!(super::tests::set(vec![]).is_empty());
}
