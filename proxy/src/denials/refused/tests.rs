//! How each refusal without a rule is explained, and that a scan of them evicts nobody's evidence.

use std::sync::Arc;

use countersign_policy::{Modes, PolicySet, Received, parse};
use tokio::sync::watch;

use super::*;
use crate::denials::{APP, Denials, EACH, NAMED, NAMELESS, network};
use crate::permit::{Asking, DenialId, Permits};
use crate::testing::rules;

const FRONTEND: &str = "apiVersion: policy.countersign.dev/v1alpha1\nkind: AuthorizationPolicy\n\
     metadata: {name: frontend, namespace: shop}\nspec: {action: Allow, rules: [{from: [{serviceAccounts: \
     [{namespace: shop, name: frontend}]}], to: [{ports: [80]}]}]}\n";

fn refused(denials: &Denials, from: &str, port: u16, what: Refused, rules: &Option<Arc<PolicySet>>) -> DenialId {
    DenialId(denials.refused(&plain(from, port), what, rules).id)
}

fn plain(from: &str, port: u16) -> Asking {
    Asking::In { who: None, source_ip: from.parse().unwrap(), port }
}

fn out(to: &str) -> Asking {
    Asking::Out { meshed: false, address: to.parse().unwrap() }
}

fn explained(from: &str, what: Refused, rules: &Option<Arc<PolicySet>>) -> (DenialId, serde_json::Value) {
    explained_of(&plain(from, 80), what, rules)
}

fn explained_of(asking: &Asking, what: Refused, rules: &Option<Arc<PolicySet>>) -> (DenialId, serde_json::Value) {
    let denials = Denials::default();
    let id = DenialId(denials.refused(asking, what, rules).id);
    (id, serde_json::to_value(denials.explain(id, None).unwrap()).unwrap())
}

fn denied(permits: &Arc<Permits>, account: usize, port: u16) -> u64 {
    let id = format!("spiffe://cluster.local/ns/shop/sa/account-{account}");
    let who = Some(Arc::new(countersign_policy::Principal::parse(&id).unwrap()));
    permits.admit(Asking::In { who, source_ip: [10, 0, 0, 9].into(), port }).unwrap_err().id
}

/// As full of denied identities as it gets, each with its whole quota; and the denials' ids.
fn full_of_identities() -> (Arc<Permits>, Vec<u64>) {
    let (_, watch) = watch::channel(Some(rules(FRONTEND)));
    let permits = Permits::new(watch);
    let all = (0..NAMED / EACH).flat_map(|account| (1..=16).map(move |port| (account, port)));
    let ids = all.map(|(account, port)| denied(&permits, account, port)).collect();
    (permits, ids)
}

/// All grounds, one after the other: a new one does not compile before it has its place here, and is then missed below.
fn after(ground: Ground) -> Option<Ground> {
    Some(match ground {
        Ground::NoRules => Ground::Strict,
        Ground::Strict => Ground::MeshedSource,
        Ground::MeshedSource => Ground::UnknownSource,
        Ground::UnknownSource => Ground::Handshake,
        Ground::Handshake => Ground::OwnSvid,
        Ground::OwnSvid => Ground::UnknownDestination,
        Ground::UnknownDestination => Ground::NobodyReady,
        Ground::NobodyReady => Ground::NoAnswer,
        Ground::NoAnswer => Ground::TooManyAddresses,
        Ground::TooManyAddresses => Ground::SomebodyElse,
        Ground::SomebodyElse => Ground::HandshakeOut,
        Ground::HandshakeOut => return None,
    })
}

fn with_modes(labels: [(&str, &str); 2]) -> Option<Arc<PolicySet>> {
    let labels = labels.map(|(key, word)| (format!("countersign.dev/{key}"), word.to_owned())).into();
    let received = parse("test.yaml", FRONTEND).unwrap().into_iter().map(Received::Known).collect();
    Some(Arc::new(PolicySet::compile("cluster.local", Modes::from_labels(&labels).0, "r1", received)))
}

/// Every way to be refused before a rule is asked: exactly one word, its ground, and what to do.
#[test]
fn every_refusal_without_a_rule_gives_exactly_one_reason_and_one_change() {
    let strict = Some(rules(FRONTEND));
    let permissive = with_modes([("mtls", "Permissive"), ("posture", "Enforce")]);
    let (inbound, outbound) = (plain("192.0.2.7", 80), out("10.0.0.7:80"));
    let sidecar = "give the source a sidecar; or an Allow with the rule";
    let cases = [
        (&inbound, "plaintext_refused", Ground::Strict, &strict, sidecar),
        (&inbound, "foreign_tls_refused", Ground::Strict, &strict, sidecar),
        (&inbound, "silent", Ground::Strict, &strict, sidecar),
        (&inbound, "plaintext_refused", Ground::NoRules, &None, "let this proxy reach its controller"),
        (&inbound, "plaintext_refused", Ground::MeshedSource, &permissive, "let the source come through its sidecar"),
        (&inbound, "plaintext_refused", Ground::UnknownSource, &strict, "countersign.dev/mtls: Permissive"),
        (&inbound, "handshake_failed", Ground::Handshake, &strict, "show a certificate that is good here"),
        (&inbound, "no_svid", Ground::OwnSvid, &strict, "let this proxy reach its CA"),
        (&inbound, "svid_expired", Ground::OwnSvid, &strict, "let this proxy reach its CA"),
        (&outbound, "no_svid", Ground::OwnSvid, &None, "let this proxy reach its CA"),
        (&outbound, "svid_expired", Ground::OwnSvid, &strict, "let this proxy reach its CA"),
        (&outbound, "unknown_destination", Ground::UnknownDestination, &strict, "let the controller know the workload"),
        (&outbound, "no_ready_endpoint", Ground::NobodyReady, &strict, "be ready, with a sidecar"),
        (&outbound, "no_answer", Ground::NoAnswer, &None, "let this proxy reach its controller"),
        (&outbound, "lookups_exceeded", Ground::TooManyAddresses, &strict, "dial fewer new addresses"),
        (&outbound, "identity_mismatch", Ground::SomebodyElse, &permissive, "who is at that address"),
        (&outbound, "handshake_failed", Ground::HandshakeOut, &strict, "take each other's certificate"),
    ];
    for ground in std::iter::successors(Some(Ground::NoRules), |ground| after(*ground)) {
        assert!(cases.iter().any(|case| case.2 == ground), "{ground:?} is not shown here");
    }
    for (asking, result, ground, rules, change) in cases {
        let (id, explained) = explained_of(asking, Refused::new(result, ground, "what was seen"), rules);
        assert_eq!(
            (&explained["denial"]["reason"], &explained["denial"]["seen"]),
            (&result.into(), &"what was seen".into())
        );
        let text = explained["text"].as_str().unwrap();
        assert!(
            text.starts_with(&format!("{id}: refused: {result}\n  seen      what was seen\n  because   ")),
            "{text}"
        );
        assert!(!text.contains("denied: "), "one verdict: {text}");
        let mode = rules.as_ref().map_or("revision  none".to_owned(), |rules| format!("(mtls {},", rules.modes().mtls));
        let ends = match asking {
            Asking::In { .. } => ["no identity at 192.0.2.7", "port      80"],
            Asking::Out { .. } => ["source    the pod's own app", "to        10.0.0.7:80"],
        };
        for part in ends.into_iter().chain([mode.as_str()]) {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        assert!(text.matches("change    ").count() == 1 && text.contains(change), "{text}");
        assert_eq!(
            explained["trace"].is_object(),
            ground == Ground::Strict,
            "rules are shown where they are the ground"
        );
    }
}

#[test]
fn a_refused_plaintext_reads_as_this() {
    let seen = "plaintext where only mutual TLS is accepted";
    let (id, explained) =
        explained("2001:db8::7", Refused::new("plaintext_refused", Ground::Strict, seen), &Some(rules(FRONTEND)));
    let expected = format!(
        "{id}: refused: plaintext_refused
  seen      plaintext where only mutual TLS is accepted
  because   mtls is Strict, and no Allow opens the port to sources without identity
  source    no identity at 2001:db8::7
  port      80
  revision  r1 (mtls Strict, posture Enforce, egress Any)
  nearest   Allow shop/frontend#0: from[0] asks an identity; saw no identity
  1 rule tried:
    Allow shop/frontend#0: from[0] asks an identity; saw no identity
  change    give the source a sidecar; or an Allow with the rule {{from: [{{unauthenticated: true, ipBlocks: \
[\"2001:db8::7/128\"]}}], to: [{{ports: [80]}}]}}
"
    );
    assert_eq!(explained["text"], expected);
}

#[test]
fn a_destination_that_nobody_knows_reads_as_this() {
    let seen = "the address is inside the mesh's ranges, and the controller knows nobody there";
    let what = Refused::new("unknown_destination", Ground::UnknownDestination, seen);
    let (id, explained) = explained_of(&out("10.0.0.7:8080"), what, &Some(rules(FRONTEND)));
    let expected = format!(
        "{id}: refused: unknown_destination
  seen      the address is inside the mesh's ranges, and the controller knows nobody there
  because   inside the mesh's ranges nobody is dialled but those whom the controller knows: it would be plaintext to a stranger
  source    the pod's own app
  to        10.0.0.7:8080
  revision  r1 (mtls Strict, posture Enforce, egress Any)
  change    let the controller know the workload, or the service's port, if that address is meant: does it hold back a file \
(`countersign status`)?
"
    );
    assert_eq!(explained["text"], expected);
    assert_eq!(explained["denial"]["direction"], "outbound");
}

#[test]
fn an_app_that_scans_evicts_what_is_remembered_of_itself_alone() {
    let denials = Denials::default();
    let unknown = || Refused::new("unknown_destination", Ground::UnknownDestination, "nobody");
    // All places of the others are taken.
    let (permits, mut evidence) = full_of_identities();
    for net in 0..NAMELESS {
        let what = Refused::new("plaintext_refused", Ground::Strict, "plaintext");
        evidence.push(permits.denials().refused(&plain(&format!("10.1.{net}.1"), 80), what, &None).id);
    }
    let scanned: Vec<u64> = (1..=2000)
        .map(|port| permits.denials().refused(&out(&format!("10.0.{}.7:{port}", port % 250)), unknown(), &None).id)
        .collect();
    let held = |id: &u64| permits.explain(DenialId(*id)).is_some();
    assert!(evidence.iter().all(held) && evidence.len() == NAMED + NAMELESS);
    assert_eq!(scanned.iter().filter(|id| held(id)).count(), APP);
    assert!(scanned[scanned.len() - APP..].iter().all(held), "its latest stay");
    // Nor do those who come in take anything from the app.
    for port in 1..=500 {
        denied(&permits, 900, 1000 + port);
    }
    assert!(scanned[scanned.len() - APP..].iter().all(held));
    // Repeats carry one id: same destination, same word.
    let again = |result| denials.refused(&out("10.0.0.7:80"), Refused::new(result, Ground::NoAnswer, "x"), &None).id;
    assert_eq!(again("no_answer"), again("no_answer"));
    assert_ne!(again("no_answer"), again("unknown_destination"));
}

#[test]
fn a_deny_that_stands_in_the_way_as_well_is_named() {
    let deny = FRONTEND
        .replace("name: frontend, namespace: shop}\nspec", "name: nobody, namespace: shop}\nspec")
        .replace("Allow", "Deny")
        .replace(
            "serviceAccounts: [{namespace: shop, name: frontend}]",
            "unauthenticated: true, ipBlocks: [192.0.2.0/24]",
        );
    let both = Some(rules(&format!("{FRONTEND}---\n{deny}")));
    let (_, explained) = explained("192.0.2.7", Refused::new("plaintext_refused", Ground::Strict, "plaintext"), &both);
    let change = explained["change"].as_str().unwrap();
    assert!(change.contains("the Deny shop/nobody#0") && change.contains("an Allow with the rule"), "{change}");
}

#[test]
fn under_a_posture_that_only_watches_no_rule_is_blamed_and_the_way_in_is_told() {
    let audit = with_modes([("mtls", "Strict"), ("posture", "Audit")]);
    let (_, explained) = explained("192.0.2.7", Refused::new("plaintext_refused", Ground::Strict, "plaintext"), &audit);
    let text = explained["text"].as_str().unwrap();
    assert!(text.contains("posture Audit") && text.contains("ipBlocks: [\"192.0.2.7/32\"]"), "{text}");
    assert!(!text.contains("allowed"), "{text}");
}

#[test]
fn sources_of_one_24_or_one_64_are_one() {
    let of = |ip: &str| network(ip.parse().unwrap()).to_string();
    assert_eq!(
        ["192.0.2.7", "::ffff:192.0.2.9", "2001:db8:1:2:3::1"].map(of),
        ["192.0.2.0/24", "192.0.2.0/24", "2001:db8:1:2::/64"]
    );
}

#[test]
fn repeats_within_a_network_carry_one_id_and_the_last_is_shown() {
    let (denials, strict) = (Denials::default(), Some(rules(FRONTEND)));
    let what = |seen| Refused::new("plaintext_refused", Ground::Strict, seen);
    let first = refused(&denials, "2001:db8::1", 80, what("one"), &strict);
    let again = refused(&denials, "2001:db8::2", 80, what("two"), &strict);
    assert_eq!(first.0, again.0);
    let others = [
        refused(&denials, "2001:db8:0:1::1", 80, what("another network"), &strict),
        refused(&denials, "2001:db8::1", 81, what("another port"), &strict),
        refused(&denials, "2001:db8::1", 80, Refused::new("silent", Ground::Strict, "another word"), &strict),
    ];
    assert!(others.iter().all(|id| id.0 != first.0));
    let text = denials.explain(first, None).unwrap().text;
    assert!(text.contains(", 2 times: ") && text.contains("seen      two") && text.contains("2001:db8::2"), "{text}");
    // Who asked for it under the same id may be somebody else than whom one would let in.
    assert!(text.contains("  several   addresses of 2001:db8::/64 came under this id"), "{text}");
    let alone = denials.explain(others[0], None).unwrap().text;
    assert!(!alone.contains("several"), "{alone}");
}

#[test]
fn a_scan_of_plaintext_from_many_networks_evicts_no_identitys_entry() {
    let (permits, evidence) = full_of_identities();
    assert_eq!(evidence.len(), NAMED);
    for net in 0..=255_u16 {
        for port in 1..=20 {
            let what = Refused::new("plaintext_refused", Ground::Strict, "plaintext");
            let _ = permits.denials().refused(&plain(&format!("10.1.{net}.1"), port), what, &None);
        }
    }
    assert!(evidence.iter().all(|id| permits.explain(DenialId(*id)).is_some()));
    assert_eq!(permits.denials().list().len(), NAMED + NAMELESS);
    // Nor does an identity that scans take anything from those without one.
    for port in 1..=500 {
        denied(&permits, 900, 1000 + port);
    }
    let left = serde_json::to_value(permits.denials().list()).unwrap();
    let nameless = left.as_array().unwrap().iter().filter(|one| one["identity"].is_null()).count();
    assert_eq!(nameless, NAMELESS);
}

#[test]
fn no_more_than_a_sentence_is_kept_of_what_a_peer_says() {
    assert_eq!(Refused::new("handshake_failed", Ground::Handshake, &"ä".repeat(5000)).seen.chars().count(), MAX_SEEN);
}
