//! Names and labels as documented, and what peers cannot make grow.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::*;
use crate::outcome::Blame;

fn id(account: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://cluster.local/ns/shop/sa/{account}")).unwrap()
}

fn outcome(source: &str) -> Outcome {
    Outcome {
        connection: 1,
        direction: Direction::Inbound,
        started: SystemTime::now(),
        duration: Duration::ZERO,
        source: ([10, 77, 0, 9], 1).into(),
        destination: None,
        upstream: None,
        source_id: Some(id(source)),
        destination_id: Some(id("backend")),
        security: Security::MutualTls,
        tls_group: Some("X25519MLKEM768"),
        reused: false,
        rule: Some("shop/frontend-to-backend[0]".into()),
        revision: Some("r1".into()),
        sent: 100,
        received: 2000,
        result: "ok",
        blame: Blame::Nobody,
        detail: String::new(),
        denial_id: None,
        would_deny: None,
    }
}

fn has(metrics: &Metrics, line: &str) {
    let text = metrics.encode();
    assert!(text.lines().any(|each| each == line), "{line}\nis not in\n{text}");
}

const FRONTEND: &str = "direction=\"inbound\",source_principal=\"spiffe://cluster.local/ns/shop/sa/frontend\",\
     destination_principal=\"spiffe://cluster.local/ns/shop/sa/backend\",connection_security_policy=\"mutual_tls\"";

#[test]
fn a_connection_is_counted_once_with_both_identities() {
    let metrics = Metrics::new();
    metrics.record(&outcome("frontend"));
    metrics.record(&outcome("frontend"));
    has(&metrics, &format!("countersign_tcp_connections_closed_total{{{FRONTEND}}} 2"));
    has(&metrics, &format!("countersign_tcp_sent_bytes_total{{{FRONTEND}}} 200"));
    has(&metrics, &format!("countersign_tcp_received_bytes_total{{{FRONTEND}}} 4000"));
    has(&metrics, "countersign_tcp_connection_ends_total{direction=\"inbound\",result=\"ok\",blame=\"none\"} 2");
}

#[test]
fn what_has_not_happened_yet_is_there_at_zero() {
    let metrics = Metrics::new();
    for line in [
        "connections_shed_total{reason=\"handshake_slots\"} 0",
        "tcp_connection_ends_total{direction=\"inbound\",result=\"ok\",blame=\"none\"} 0",
        "tls_handshakes_total{direction=\"outbound\",result=\"ok\",reason=\"\",group=\"X25519MLKEM768\"} 0",
        "tls_handshake_duration_seconds_count{direction=\"inbound\"} 0",
        "discovery_lookups_total{result=\"no_answer\"} 0",
        "pool_takes_total{result=\"reused\"} 0",
        "identity_cert_refresh_total{result=\"failed\"} 0",
        "controller_connections_total{result=\"ok\"} 0",
        "policy_updates_total{result=\"refused\"} 0",
        "authz_decisions_total{direction=\"inbound\",decision=\"deny\",policy=\"none\"} 0",
    ] {
        has(&metrics, &format!("countersign_{line}"));
    }
}

#[test]
fn open_connections_are_counted_while_their_guard_lives() {
    let metrics = Metrics::new();
    let guard = metrics.connection_opened(Direction::Outbound);
    has(&metrics, "countersign_tcp_connections_open{direction=\"outbound\"} 1");
    drop(guard);
    has(&metrics, "countersign_tcp_connections_open{direction=\"outbound\"} 0");
    has(&metrics, "countersign_tcp_connections_opened_total{direction=\"outbound\"} 1");
    has(&metrics, "countersign_tcp_connections_opened_total{direction=\"inbound\"} 0");
}

#[test]
fn decisions_are_counted_by_rule_and_only_where_they_were_made() {
    let metrics = Metrics::new();
    metrics.record(&outcome("frontend"));
    let audited = Outcome { would_deny: Some("shop/strict[1]".into()), ..outcome("frontend") };
    metrics.record(&audited);
    let denied = Outcome { denial_id: Some(7), rule: None, blame: Blame::Policy, ..outcome("intruder") };
    metrics.record(&denied);
    let denied_without_rules = Outcome { revision: None, ..denied.clone() };
    metrics.record(&denied_without_rules);
    let told_by_the_peer = Outcome { direction: Direction::Outbound, ..denied_without_rules };
    metrics.record(&told_by_the_peer);
    // Remembered under an id, but no rule was asked.
    metrics.record(&Outcome { blame: Blame::Peer, result: "plaintext_refused", ..denied });
    let count = |decision: &str, policy: &str, n: u64| {
        let labels = format!("direction=\"inbound\",decision=\"{decision}\",policy=\"{policy}\"");
        has(&metrics, &format!("countersign_authz_decisions_total{{{labels}}} {n}"));
    };
    count("allow", "shop/frontend-to-backend[0]", 2);
    count("would_deny", "shop/strict[1]", 1);
    count("deny", "none", 2);
    assert!(!metrics.encode().contains("countersign_authz_decisions_total{direction=\"outbound\""));
}

/// Words that count as failed connections in the CA's report of a rotation.
const FAILED: &[&str] = &[
    "handshake_failed",
    "identity_mismatch",
    "no_svid",
    "svid_expired",
    "credentials_expired",
    "peer_distrusted",
    "no_answer",
    "no_rules_known",
    "peer_gone",
    "tls_broken",
    "protocol_error",
    "closing",
    "cut",
];
/// Words that do so where the own app dials.
const FAILED_OUTBOUND: &[&str] = &["overloaded"];
/// Words that do not: what rules, apps and strangers do, and what is the same with any root.
const NOT_FAILED: &[&str] = &[
    "ok",
    "closed_idle",
    "no_rule_matched",
    "no_policy",
    "denied_by_rule",
    "denied_by_unknown_rule",
    "plaintext_under_strict",
    "egress_mesh_only",
    "denied_by_peer",
    "bad_destination",
    "plaintext_refused",
    "foreign_tls_refused",
    "silent",
    "closed_early",
    "unknown_destination",
    "no_ready_endpoint",
    "lookups_exceeded",
    "connect_failed",
    "app_unreachable",
    "draining",
    "peer_reset",
    "app_reset",
    "drain_forced",
];
/// Of second connections, which carry nothing of the app's: not counted.
const SECOND: &[&str] = &["reauthenticated", "reauth_refused"];
/// They stand in the same tables of docs/errors.md, and no connection ends so.
const NO_END: &[&str] = &["allowed", "not_evaluated", "accepted", "denied"];

#[test]
fn the_ca_is_told_of_failed_connections_by_their_words_whoever_is_to_blame() {
    let told = |result: &'static str, direction: Direction| {
        let metrics = Metrics::new();
        for blame in [Blame::Nobody, Blame::App, Blame::Peer, Blame::Policy, Blame::Us, Blame::ControlPlane] {
            metrics.record(&Outcome { result, blame, direction, ..outcome("frontend") });
        }
        let ConnectionCounts { good, failed, .. } = metrics.tally();
        (good, failed)
    };
    for direction in [Direction::Inbound, Direction::Outbound] {
        for (words, expected) in [(FAILED, (0, 6)), (NOT_FAILED, (6, 0)), (SECOND, (0, 0))] {
            words.iter().for_each(|word| assert_eq!(told(word, direction), expected, "{word}"));
        }
    }
    for word in FAILED_OUTBOUND {
        assert_eq!(told(word, Direction::Inbound), (6, 0), "a scan takes slots");
        assert_eq!(told(word, Direction::Outbound), (0, 6));
    }
}

#[test]
fn of_every_word_that_a_connection_can_end_with_it_is_settled_how_the_ca_counts_it() {
    let page = include_str!("../../docs/errors.md");
    let section = page.split("\n## ").find(|section| section.starts_with("Connections: `result`")).unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `") && !line.starts_with("| `result` |"));
    let cells = rows.filter_map(|row| row.split(" | ").next());
    let words: Vec<&str> = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    assert!(words.len() > 40, "{words:?}");
    for word in &words {
        let lists = [FAILED, FAILED_OUTBOUND, NOT_FAILED, SECOND, NO_END];
        assert_eq!(lists.iter().filter(|list| list.contains(word)).count(), 1, "{word}");
    }
    // What operators are told of it is the same.
    let told = section.split("\n\n").find(|text| text.contains("`connections_failed`")).unwrap();
    for word in FAILED.iter().chain(FAILED_OUTBOUND) {
        assert!(told.contains(&format!("`{word}`")), "{word} is not named");
    }
}

#[test]
fn strangers_cannot_make_it_grow() {
    let metrics = Metrics::new();
    for i in 0..2000 {
        let rule = Some(format!("shop/rule-{i}[0]").into());
        metrics.record(&Outcome { rule, ..outcome(&format!("account-{i}")) });
        metrics.plaintext_inside_mesh(Ipv4Addr::from(0x0a4d_0000 + i).into());
    }
    let text = metrics.encode();
    let series = |name: &str| text.lines().filter(|line| line.starts_with(&format!("{name}{{"))).count();
    for name in ["tcp_connections_closed_total", "tcp_sent_bytes_total", "tcp_received_bytes_total"] {
        assert_eq!(series(&format!("countersign_{name}")), MAX_PEERS + 1);
    }
    assert_eq!(series("countersign_authz_decisions_total"), MAX_RULES + 2, "with the one that began at zero");
    assert_eq!(series("countersign_plaintext_inside_mesh_total"), MAX_PLAINTEXT + 1);
    let rest = 2000 - MAX_PEERS;
    let other = FRONTEND.replace("spiffe://cluster.local/ns/shop/sa/frontend", OTHER);
    let other = other.replace("spiffe://cluster.local/ns/shop/sa/backend", OTHER);
    has(&metrics, &format!("countersign_tcp_connections_closed_total{{{other}}} {rest}"));
    // Those who were there first are still counted apart.
    metrics.record(&outcome("account-0"));
    let first = FRONTEND.replace("frontend", "account-0");
    has(&metrics, &format!("countersign_tcp_connections_closed_total{{{first}}} 2"));
}

#[test]
fn handshakes_are_counted_by_result_reason_and_group_and_timed() {
    let metrics = Metrics::new();
    metrics.handshake(Direction::Inbound, "ok", Some("X25519MLKEM768"), Duration::from_millis(2));
    metrics.handshake(Direction::Inbound, "expired", None, Duration::from_millis(3));
    let name = "countersign_tls_handshakes_total";
    has(&metrics, &format!("{name}{{direction=\"inbound\",result=\"ok\",reason=\"\",group=\"X25519MLKEM768\"}} 1"));
    has(&metrics, &format!("{name}{{direction=\"inbound\",result=\"failed\",reason=\"expired\",group=\"\"}} 1"));
    has(&metrics, "countersign_tls_handshake_duration_seconds_count{direction=\"inbound\"} 2");
    has(&metrics, "countersign_tls_handshake_duration_seconds_bucket{le=\"0.0025\",direction=\"inbound\"} 1");
}

#[test]
fn the_own_certificate_and_bundles_are_shown() {
    let metrics = Metrics::new();
    metrics.credentials(1_800_000_000, [("cluster.local", 7)].into_iter());
    metrics.renewals(1, 2);
    has(&metrics, "countersign_identity_cert_expiration_timestamp_seconds 1800000000");
    has(&metrics, "countersign_trust_bundle_generation{trust_domain=\"cluster.local\"} 7");
    has(&metrics, "countersign_identity_cert_refresh_total{result=\"ok\"} 1");
    has(&metrics, "countersign_identity_cert_refresh_total{result=\"failed\"} 2");
}

#[test]
fn plaintext_inside_the_mesh_is_counted_by_address() {
    let metrics = Metrics::new();
    metrics.plaintext_inside_mesh("10.77.0.5".parse().unwrap());
    metrics.plaintext_inside_mesh("::ffff:10.77.0.5".parse().unwrap());
    has(&metrics, "countersign_plaintext_inside_mesh_total{destination=\"10.77.0.5\"} 2");
    assert_eq!(metrics.plaintext_destinations(), [Arc::from("10.77.0.5")]);
}

#[test]
fn the_text_ends_as_openmetrics_ends_and_tells_of_the_process() {
    let text = Metrics::new().encode();
    assert!(text.ends_with("# EOF\n") && text.matches("# EOF").count() == 1);
    for name in ["process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds", "process_max_fds"] {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
        assert!(value.is_some_and(|value| value >= 0.0), "{name}\n{text}");
    }
    assert!(text.contains(&format!("countersign_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"))));
}
