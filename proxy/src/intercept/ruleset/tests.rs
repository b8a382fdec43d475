use super::*;

/// What most pods have: nothing skipped, the proxy known by its user.
pub fn rules() -> Rules {
    Rules {
        family: Family::Both,
        inbound_port: 15006,
        outbound_port: 15001,
        health_port: 15020,
        exempt_uid: Some(1337),
        exempt_mark: None,
        skip_inbound_ports: Vec::new(),
        skip_outbound_ports: Vec::new(),
        skip_outbound_cidrs: Vec::new(),
    }
}

#[test]
fn rules_that_would_turn_the_proxy_on_itself_are_refused() {
    assert_eq!(rules().judge(), Ok(()));
    assert_eq!(Rules { exempt_uid: None, ..rules() }.judge(), Err(BadRules::NoExemption));
    assert_eq!(Rules { exempt_uid: None, exempt_mark: Some(1337), ..rules() }.judge(), Ok(()));
    assert_eq!(Rules { exempt_uid: Some(0), ..rules() }.judge(), Err(BadRules::Everybody("user")));
    assert_eq!(Rules { exempt_mark: Some(0), ..rules() }.judge(), Err(BadRules::Everybody("mark")));
    for ports in [[0, 1, 2], [1, 1, 2], [1, 2, 2], [1, 2, 1]] {
        let [inbound_port, outbound_port, health_port] = ports;
        let bad = Rules { inbound_port, outbound_port, health_port, ..rules() };
        assert_eq!(bad.judge(), Err(BadRules::Ports), "{ports:?}");
    }
}

#[test]
fn skip_lists_are_bounded() {
    let full = Rules { skip_outbound_ports: (1..=128).collect(), ..rules() };
    assert_eq!(full.judge(), Ok(()));
    let over = Rules { skip_outbound_ports: (1..=129).collect(), ..rules() };
    assert_eq!(over.judge(), Err(BadRules::TooMany("outbound ports")));
}

#[test]
fn the_port_of_the_self_proof_cannot_be_skipped() {
    let skipped = Rules { skip_inbound_ports: vec![22, 15021], ..rules() };
    assert_eq!(skipped.judge(), Err(BadRules::SelfProof));
}

#[test]
fn without_ipv6_no_rule_speaks_of_it() {
    let v4 = Rules {
        family: Family::V4,
        skip_outbound_cidrs: vec!["fd00::/8".parse().unwrap(), "10.0.0.0/8".parse().unwrap()],
        ..rules()
    };
    let rules: Vec<_> = v4.chains().into_iter().flat_map(|chain| chain.rules).collect();
    assert!(
        rules
            .iter()
            .all(|rule| !rule.text.contains("ip6") && !rule.expressions.contains(&Expression::Meta(Meta::Family)))
    );
    assert!(rules.iter().any(|rule| rule.text == "ip daddr 10.0.0.0/8 return"));
}

#[test]
fn each_skipped_thing_is_a_rule_of_its_own_before_the_redirect() {
    let rules = Rules {
        skip_inbound_ports: vec![22],
        skip_outbound_ports: vec![25],
        skip_outbound_cidrs: vec![
            "10.1.2.3/15".parse().unwrap(),
            "fd00::/13".parse().unwrap(),
            "0.0.0.0/0".parse().unwrap(),
        ],
        exempt_mark: Some(7),
        ..rules()
    };
    let texts: Vec<Vec<String>> =
        rules.chains().into_iter().map(|chain| chain.rules.into_iter().map(|rule| rule.text).collect()).collect();
    assert_eq!(texts[0][3..], ["tcp dport 15020 return", "tcp dport 22 return", "meta l4proto tcp redirect to :15006"]);
    assert_eq!(
        texts[1],
        [
            "meta l4proto != tcp return",
            "tcp dport 15021 fib daddr type local redirect to :15001",
            "meta skuid 1337 return",
            "meta mark 7 return",
            "tcp dport 25 return",
            "ip daddr 127.0.0.0/8 return",
            "ip6 daddr ::1/128 return",
            "ip daddr 10.0.0.0/15 return",
            "ip6 daddr fd00::/13 return",
            "ip daddr 0.0.0.0/0 return",
            "meta l4proto tcp redirect to :15001",
        ]
    );
    assert_eq!(
        texts[2],
        [
            "tcp flags != syn / fin,syn,rst,ack return",
            "meta l4proto != tcp return",
            "ct status ! confirmed return",
            "tcp dport 15021 fib daddr type local return",
            "meta skuid 1337 ct status dnat meta l4proto tcp ct reply proto-src 15001 reject with tcp reset",
            "meta skuid 1337 return",
            "meta mark 7 ct status dnat meta l4proto tcp ct reply proto-src 15001 reject with tcp reset",
            "meta mark 7 return",
            "ct status dnat meta l4proto tcp ct reply proto-src 15001 return",
            "tcp dport 25 return",
            "ip daddr 127.0.0.0/8 return",
            "ip6 daddr ::1/128 return",
            "ip daddr 10.0.0.0/15 return",
            "ip6 daddr fd00::/13 return",
            "ip daddr 0.0.0.0/0 return",
            "drop",
        ]
    );
}
