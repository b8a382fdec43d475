//! What is in force is what was asked for, as `nft` reads it.

use countersign_kit::{Inside, Namespace, Net};
use countersign_proxy::intercept::{Difference, Family, MAX_SKIPPED, Rules, check, install, remove};
use serde_json::Value;

use crate::Promise;
use crate::support::by_mark;

pub const PROMISES: &[Promise] = &[
    ("nft_lists_exactly_the_rules_asked_for", nft_lists_exactly_the_rules_asked_for),
    ("skip_lists_are_rules_that_nft_understands", skip_lists_are_rules_that_nft_understands),
    ("install_replaces_ours_whole_and_leaves_others_alone", install_replaces_ours_whole_and_leaves_others_alone),
    ("remove_takes_ours_only_and_may_be_repeated", remove_takes_ours_only_and_may_be_repeated),
    ("check_tells_every_difference", check_tells_every_difference),
    ("where_there_is_no_ipv6_a_table_of_ipv4_does_the_same", where_there_is_no_ipv6_a_table_of_ipv4_does_the_same),
    ("the_longest_lists_fit_in_one_batch", the_longest_lists_fit_in_one_batch),
    ("the_command_tells_by_its_exit_code", the_command_tells_by_its_exit_code),
    ("without_net_admin_it_says_what_is_missing_and_changes_nothing", without_net_admin_it_says_what_is_missing),
    ("net_admin_alone_is_enough_on_a_read_only_disk_and_again_after_a_restart", net_admin_alone_is_enough),
];

fn listing(place: &Namespace) -> Vec<String> {
    let text = place.command("nft").args(["list", "ruleset"]).succeed().unwrap();
    text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty() && line != "}").collect()
}

fn nft_lists_exactly_the_rules_asked_for(inside: Inside) {
    let net = Net::new(inside).unwrap();
    let rules = Rules { exempt_uid: Some(1337), exempt_mark: Some(0x539), ..by_mark() };
    net.link().inside(|| install(&rules)).unwrap();
    assert_eq!(
        listing(net.link()),
        [
            "table inet countersign {",
            "chain prerouting {",
            "type nat hook prerouting priority dstnat; policy accept;",
            "meta l4proto != tcp return",
            "iifname \"lo\" return",
            "fib daddr type != local return",
            "tcp dport 15020 return",
            "meta l4proto tcp redirect to :15006",
            "chain output {",
            "type nat hook output priority -100; policy accept;",
            "meta l4proto != tcp return",
            "tcp dport 15021 fib daddr type local redirect to :15001",
            "meta skuid 1337 return",
            "meta mark 0x00000539 return",
            "ip daddr 127.0.0.0/8 return",
            "ip6 daddr ::1 return",
            "meta l4proto tcp redirect to :15001",
            "chain apart {",
            "type filter hook output priority mangle; policy accept;",
            "tcp flags != syn / fin,syn,rst,ack return",
            "meta l4proto != tcp return",
            "ct status ! confirmed return",
            "tcp dport 15021 fib daddr type local return",
            "meta skuid 1337 ct status dnat meta l4proto tcp ct reply proto-src 15001 reject with tcp reset",
            "meta skuid 1337 return",
            "meta mark 0x00000539 ct status dnat meta l4proto tcp ct reply proto-src 15001 reject with tcp reset",
            "meta mark 0x00000539 return",
            "ct status dnat meta l4proto tcp ct reply proto-src 15001 return",
            "ip daddr 127.0.0.0/8 return",
            "ip6 daddr ::1 return",
            "drop",
            "chain strays {",
            "type filter hook input priority filter; policy accept;",
            "ct state ! invalid return",
            "meta l4proto != tcp return",
            "iifname \"lo\" return",
            "drop",
        ]
    );
    let json = net.link().command("nft").args(["-j", "list", "ruleset"]).succeed().unwrap();
    let json: Value = serde_json::from_str(&json).unwrap();
    let hooks: Vec<_> = json["nftables"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| &item["chain"])
        .filter(|chain| chain.is_object())
        .collect();
    let hooks: Vec<_> = hooks
        .iter()
        .map(|c| (c["hook"].as_str().unwrap(), c["type"].as_str().unwrap(), c["prio"].as_i64().unwrap()))
        .collect();
    assert_eq!(
        hooks,
        [("prerouting", "nat", -100), ("output", "nat", -100), ("output", "filter", -150), ("input", "filter", 0)]
    );
}

fn skip_lists_are_rules_that_nft_understands(inside: Inside) {
    let net = Net::new(inside).unwrap();
    let rules = Rules {
        skip_inbound_ports: vec![22],
        skip_outbound_ports: vec![25, 65535],
        skip_outbound_cidrs: ["10.1.2.3/15", "192.0.2.1/32", "fd00::/13", "2001:db8::/64", "0.0.0.0/0", "::/0"]
            .map(|cidr| cidr.parse().unwrap())
            .to_vec(),
        ..by_mark()
    };
    net.link().inside(|| install(&rules)).unwrap();
    let lines = listing(net.link());
    for expected in [
        "tcp dport 22 return",
        "tcp dport 25 return",
        "tcp dport 65535 return",
        "ip daddr 10.0.0.0/15 return",
        "ip daddr 192.0.2.1 return",
        "ip6 daddr fd00::/13 return",
        "ip6 daddr 2001:db8::/64 return",
        "ip daddr 0.0.0.0/0 return",
        "ip6 daddr ::/0 return",
    ] {
        assert!(lines.iter().any(|line| line == expected), "{expected} in {lines:#?}");
    }
    assert_eq!(net.link().inside(|| check(&rules)).unwrap(), []);
}

fn install_replaces_ours_whole_and_leaves_others_alone(inside: Inside) {
    let net = Net::new(inside).unwrap();
    let other = "table inet other {\nchain prerouting {\ntype nat hook prerouting priority -90; policy accept;\ntcp dport 9 redirect to :10\n}\n}\n";
    net.link().nft(other).unwrap();
    let before = listing(net.link());
    // As an older version, with another layout, might have left it.
    net.link().nft("table inet countersign {\nset s {\ntype inet_service\nelements = { 1 }\n}\nchain old {\ntcp dport @s drop\n}\n}\n").unwrap();
    net.link().inside(|| install(&Rules { outbound_port: 1, ..by_mark() })).unwrap();
    for _ in 0..3 {
        net.link().inside(|| install(&by_mark())).unwrap();
    }
    let after = listing(net.link());
    assert_eq!(after[..before.len()], before);
    assert_eq!(after.iter().filter(|line| line.starts_with("chain ")).count(), 1 + 4, "{after:#?}");
    assert_eq!(net.link().inside(|| check(&by_mark())).unwrap(), []);
}

fn remove_takes_ours_only_and_may_be_repeated(inside: Inside) {
    let net = Net::new(inside).unwrap();
    net.link().nft("table inet other {\n}\n").unwrap();
    net.link().inside(|| install(&by_mark())).unwrap();
    for _ in 0..2 {
        net.link().inside(remove).unwrap();
        assert_eq!(listing(net.link()), ["table inet other {"]);
    }
    assert_eq!(net.link().inside(|| check(&by_mark())).unwrap(), [Difference::NoTable(Family::Both)]);
}

fn check_tells_every_difference(inside: Inside) {
    let net = Net::new(inside).unwrap();
    let differences = |tampering: &str| -> Vec<String> {
        net.link().inside(|| install(&by_mark())).unwrap();
        net.link().nft(tampering).unwrap();
        net.link().inside(|| check(&by_mark())).unwrap().iter().map(ToString::to_string).collect()
    };
    assert_eq!(differences(""), [""; 0]);
    assert_eq!(differences("delete table inet countersign"), ["table inet countersign is not there"]);
    assert_eq!(
        differences("add table inet countersign { flags dormant; }"),
        ["table inet countersign is switched off (dormant)"]
    );
    assert_eq!(differences("add chain inet countersign more"), ["chain more is not ours"]);
    let lost = differences("flush chain inet countersign output");
    assert_eq!(lost.len(), 6, "{lost:#?}");
    assert_eq!(lost[5], "chain output, rule 6: wanted `meta l4proto tcp redirect to :15001`, found none");
    assert_eq!(
        differences("flush chain inet countersign output; delete chain inet countersign output"),
        ["chain output is not there"]
    );
    assert_eq!(
        differences("add rule inet countersign prerouting accept"),
        ["chain prerouting, rule 6: wanted none, found `[immediate: not one of ours]`"]
    );
    assert!(
        differences("insert rule inet countersign prerouting tcp dport 22 return").len() >= 5,
        "all behind it moved"
    );
    assert_eq!(differences("add chain inet countersign output { policy drop; }").len(), 1);
    // A rule that looks like ours but lets more through.
    assert_eq!(
        differences("flush chain inet countersign strays; add rule inet countersign strays ct state ! invalid return; add rule inet countersign strays meta l4proto != tcp return; add rule inet countersign strays iifname \"lo*\" return; add rule inet countersign strays drop").len(),
        1
    );
}

fn where_there_is_no_ipv6_a_table_of_ipv4_does_the_same(inside: Inside) {
    let net = Net::new(inside).unwrap();
    let networks = ["10.1.0.0/16", "fd00::/8"].map(|cidr| cidr.parse().unwrap()).to_vec();
    let rules = Rules { family: Family::V4, skip_outbound_cidrs: networks, ..by_mark() };
    for _ in 0..2 {
        net.link().inside(|| install(&rules)).unwrap();
    }
    assert_eq!(net.link().inside(|| check(&rules)).unwrap(), []);
    let lines = listing(net.link());
    assert_eq!(lines[0], "table ip countersign {");
    for expected in ["fib daddr type != local return", "ip daddr 10.1.0.0/16 return", "ct state ! invalid return"] {
        assert!(lines.iter().any(|line| line == expected), "{expected} in {lines:#?}");
    }
    assert!(!lines.iter().any(|line| line.contains("ip6")), "{lines:#?}");
    let wanted = net.link().inside(|| check(&by_mark())).unwrap();
    assert_eq!(wanted, [Difference::NoTable(Family::Both)], "one table is not taken for the other");
}

/// As the injected init container runs: root, one capability, nothing to write to; and again when the pod's containers start anew.
fn net_admin_alone_is_enough(inside: Inside) {
    let net = Net::new(inside).unwrap();
    let script = format!(
        "mount -o remount,ro,bind / && ! touch /countersign-written 2>/dev/null && \
         exec setpriv --bounding-set=-all,+net_admin --inh-caps=-all --no-new-privs {PROGRAM} intercept install"
    );
    let mut once = Vec::new();
    for _ in 0..2 {
        let unshared = ["--mount", "--propagation", "private", "sh", "-c", &script];
        net.link().command("unshare").args(unshared).succeed().unwrap();
        let now = listing(net.link());
        assert!(now.contains(&"meta l4proto tcp redirect to :15006".to_owned()), "{now:#?}");
        assert!(once.is_empty() || once == now, "{now:#?}");
        once = now;
    }
}

fn the_longest_lists_fit_in_one_batch(inside: Inside) {
    let net = Net::new(inside).unwrap();
    let count = u16::try_from(MAX_SKIPPED).unwrap();
    let rules = Rules {
        skip_inbound_ports: (1..=count).collect(),
        skip_outbound_ports: (1..=count).collect(),
        skip_outbound_cidrs: (0..count).map(|n| format!("fd00:{n:x}::/32").parse().unwrap()).collect(),
        ..by_mark()
    };
    net.link().inside(|| install(&rules)).unwrap();
    assert_eq!(net.link().inside(|| check(&rules)).unwrap(), []);
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_countersign-proxy");

fn the_command_tells_by_its_exit_code(inside: Inside) {
    let net = Net::new(inside).unwrap();
    let run = |args: &[&str]| {
        let done = net.link().command(PROGRAM).arg("intercept").args(args).finish().unwrap();
        (done.status.code(), done.errors())
    };
    let (code, said) = run(&["check"]);
    assert_eq!((code, said.as_str()), (Some(1), "table inet countersign is not there\n"));
    assert_eq!(run(&["install"]), (Some(0), String::new()));
    assert!(
        listing(net.link()).contains(&"meta skuid 1337 return".to_owned()),
        "the proxy's user where nothing else is said"
    );
    assert_eq!(run(&["check"]), (Some(0), String::new()));
    let (code, said) = run(&["check", "--exempt-mark", "7"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("wanted `meta mark 7 return`"), "{said}");
    let (code, said) = run(&["install", "--inbound-port", "15001"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("three different ones"), "{said}");
    assert_eq!(run(&["remove"]), (Some(0), String::new()));
    assert_eq!(listing(net.link()), [""; 0]);
}

fn without_net_admin_it_says_what_is_missing(inside: Inside) {
    let net = Net::new(inside).unwrap();
    for action in ["install", "remove", "check"] {
        let done = net
            .link()
            .command("setpriv")
            .args(["--bounding-set", "-net_admin", "--", PROGRAM, "intercept", action])
            .finish()
            .unwrap();
        assert_eq!(done.status.code(), Some(2));
        assert!(done.errors().contains("NET_ADMIN"), "{}", done.errors());
    }
    assert_eq!(listing(net.link()), [""; 0]);
}
