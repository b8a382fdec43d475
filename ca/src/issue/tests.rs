use std::fs::OpenOptions;
use std::net::Ipv4Addr;

use serde_json::Value;
use tempfile::TempDir;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::*;
use crate::attest::Jwks;
use crate::state::{Opened, Race, StateKey};
use crate::testing::{
    HOUR, Hand, LIVES, START, TokenIssuer, claims, csr, domain, first_state, open_state, own_id, p256, private_dir,
    rsa, rules, write_jwks,
};

const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 11));
const WIDE: CallLimits = CallLimits {
    concurrent: 10,
    per_source: Rate { per_second: 1000.0, burst: 1000 },
    per_caller: Rate { per_second: 1000.0, burst: 1000 },
};

struct Desk {
    dir: TempDir,
    tokens: TokenIssuer,
    issuance: Issuance,
}

fn desk(limits: CallLimits) -> Desk {
    let dir = private_dir();
    let audit = Audit::at(&dir.path().join("audit.jsonl")).unwrap();
    desk_with(dir, limits, audit)
}

fn desk_with(dir: TempDir, limits: CallLimits, audit: Audit) -> Desk {
    let tokens = TokenIssuer::es256("k1");
    write_jwks(&dir.path().join("jwks"), &[tokens.jwk()]);
    let jwks = Jwks::open(&dir.path().join("jwks"), rules()).unwrap();
    let clock = Hand::at(START).clock();
    let parts = Parts {
        attestor: Attestor::Jwks(Arc::new(jwks)),
        state: Arc::new(state(&dir)),
        audit,
        clock,
        own_id: own_id(),
        terms: Terms { default: Duration::from_secs(3600), max: Duration::from_secs(86_400) },
        holders: Arc::new(Holders::new(0)),
        metrics: Arc::new(Metrics::new()),
    };
    Desk { dir, tokens, issuance: Issuance::new(parts, limits) }
}

fn state(dir: &TempDir) -> State {
    let key = StateKey::from_text("x", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").unwrap();
    let now = seconds(START);
    match open_state(&dir.path().join("state"), key, &domain(), now).unwrap() {
        Opened::Vacant(vacant) => first_state(vacant, now),
        Opened::Found(_) => panic!("a state is there"),
    }
}

impl Desk {
    fn request(&self, pod: &str) -> IssueSvidRequest {
        IssueSvidRequest {
            csr: csr(&p256()),
            token: self.tokens.sign(&claims("shop", "frontend", pod, START)),
            client_time_ms: START as i64 * 1000 - 500,
            ttl_seconds: 0,
            bundle_generation: 7,
        }
    }

    async fn ask(&self, request: IssueSvidRequest) -> Result<IssueSvidResponse, Refusal> {
        self.issuance.issue(request, SOURCE).await
    }

    fn records(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.dir.path().join("audit.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

#[tokio::test]
async fn a_caller_gets_its_own_identity_with_chain_and_bundle() {
    let desk = desk(WIDE);
    let answer = desk.ask(desk.request("pod-1")).await.unwrap();
    let (_, leaf) = X509Certificate::from_der(&answer.chain[0]).unwrap();
    assert!(format!("{:?}", leaf.subject_alternative_name()).contains("spiffe://mesh.test/ns/shop/sa/frontend"));
    assert_eq!(answer.chain.len(), 2);
    assert_eq!(answer.ca_time_ms, START as i64 * 1000);
    let bundle = answer.bundle.unwrap();
    assert_eq!((bundle.trust_domain.as_str(), bundle.generation, bundle.roots.len()), ("mesh.test", 1, 1));

    let record = &desk.records()[0];
    assert_eq!(record["outcome"], "granted");
    assert_eq!(record["spiffe_id"], "spiffe://mesh.test/ns/shop/sa/frontend");
    assert_eq!(record["caller"]["pod_uid"], "uid-of-pod-1");
    assert_eq!(record["serial"].as_str().unwrap(), hex(leaf.raw_serial()));
    assert_eq!(record["key_sha256"].as_str().unwrap(), hex(&crate::state::sha256(leaf.public_key().raw)));
    assert_eq!((&record["skew_ms"], &record["bundle_generation"]), (&Value::from(-500), &Value::from(7)));
    assert_eq!(record["source"], "10.77.0.11");
}

#[tokio::test]
async fn each_refusal_is_recorded_with_what_was_known_and_never_with_the_token() {
    let desk = desk(WIDE);
    let good = desk.request("pod-1");
    let token = |change: fn(&mut Value)| {
        let mut claims = claims("shop", "frontend", "pod-1", START);
        change(&mut claims);
        IssueSvidRequest { token: desk.tokens.sign(&claims), ..good.clone() }
    };
    let cases = [
        ("token_missing", IssueSvidRequest { token: String::new(), ..good.clone() }),
        ("token_audience", token(|claims| claims["aud"] = "other".into())),
        ("token_expired", token(|claims| claims["exp"] = (START - 3600).into())),
        ("token_unbound", token(|claims| claims["kubernetes.io"]["pod"]["uid"] = Value::Null)),
        ("csr_malformed", IssueSvidRequest { csr: vec![1, 2, 3], ..good.clone() }),
        ("csr_key_type", IssueSvidRequest { csr: csr(rsa()), ..good.clone() }),
        ("csr_too_large", IssueSvidRequest { csr: vec![0x30; csr::MAX_CSR + 1], ..good.clone() }),
        ("ttl_too_short", IssueSvidRequest { ttl_seconds: 9, ..good.clone() }),
        ("clock_skew", IssueSvidRequest { client_time_ms: START as i64 * 1000 - 400_000, ..good.clone() }),
    ];
    for (label, request) in cases {
        let secret = request.token.clone();
        assert_eq!(desk.ask(request).await.unwrap_err().label(), label);
        let records = desk.records();
        let record = records.last().unwrap();
        assert_eq!(record["outcome"], label);
        assert!(!record["detail"].as_str().unwrap().is_empty());
        assert_eq!(record["caller"].is_object(), !label.starts_with("token"), "{record}");
        assert!(record["serial"].is_null());
        assert!(secret.is_empty() || !record.to_string().contains(&secret));
    }
    assert_eq!(desk.records().len(), 9);
}

#[tokio::test]
async fn no_audit_record_no_certificate() {
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let desk = desk_with(private_dir(), WIDE, Audit::on(full));
    let refused = desk.ask(desk.request("pod-1")).await.unwrap_err();
    assert!(matches!(refused, Refusal::Audit(AuditError::Write(_))), "{refused}");
}

#[tokio::test]
async fn one_pod_that_asks_too_often_is_shed_and_others_are_served() {
    let rate = Rate { per_second: 0.001, burst: 3 };
    let desk = desk(CallLimits { per_caller: rate, ..WIDE });
    for _ in 0..3 {
        desk.ask(desk.request("pod-1")).await.unwrap();
    }
    for _ in 0..5 {
        let refused = desk.ask(desk.request("pod-1")).await.unwrap_err();
        assert!(matches!(refused, Refusal::Rate { whose: "pod", .. }), "{refused}");
    }
    desk.ask(desk.request("pod-2")).await.unwrap();
    assert_eq!(desk.records().len(), 4, "a flood fills no disk");
}

#[tokio::test]
async fn an_address_that_asks_too_often_is_shed_before_its_token_is_looked_at() {
    let rate = Rate { per_second: 0.001, burst: 2 };
    let desk = desk(CallLimits { per_source: rate, ..WIDE });
    let garbage = IssueSvidRequest { token: "x".to_owned(), ..desk.request("pod-1") };
    for _ in 0..2 {
        assert!(matches!(desk.ask(garbage.clone()).await, Err(Refusal::Attest(_))));
    }
    assert!(matches!(desk.ask(garbage).await, Err(Refusal::Rate { whose: "address", .. })));
    assert_eq!(desk.records().len(), 2);
    let other = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 12));
    desk.issuance.issue(desk.request("pod-1"), other).await.unwrap();
}

#[tokio::test]
async fn strangers_cannot_fill_the_audit_log() {
    let desk = desk(WIDE);
    let garbage = IssueSvidRequest { token: "x".to_owned(), ..desk.request("pod-1") };
    for _ in 0..60 {
        assert!(matches!(desk.ask(garbage.clone()).await, Err(Refusal::Attest(_))));
    }
    let records = desk.records().len();
    assert!((20..30).contains(&records), "{records}");
    desk.ask(desk.request("pod-1")).await.unwrap();
    assert_eq!(desk.records().len(), records + 1, "what is granted is always recorded");
    let other = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 12));
    assert!(desk.issuance.issue(garbage, other).await.is_err());
    assert_eq!(desk.records().len(), records + 2, "another address has its own measure");
}

#[tokio::test]
async fn calls_beyond_the_slots_are_shed_at_once_and_not_queued() {
    let (audit, _waiting) = Audit::stuck();
    let desk = desk_with(private_dir(), CallLimits { concurrent: 2, ..WIDE }, audit);
    let mut first = std::pin::pin!(desk.ask(desk.request("pod-1")));
    let mut second = std::pin::pin!(desk.ask(desk.request("pod-2")));
    for stuck in [&mut first, &mut second] {
        tokio::select! {
            biased;
            _ = stuck => panic!("nothing is answered before its record is written"),
            () = std::future::ready(()) => {}
        }
    }
    assert!(matches!(desk.ask(desk.request("pod-3")).await, Err(Refusal::Busy)));
}

#[tokio::test]
async fn every_outcome_is_counted() {
    let desk = desk(WIDE);
    desk.ask(desk.request("pod-1")).await.unwrap();
    let _ = desk.ask(IssueSvidRequest { csr: csr(rsa()), ..desk.request("pod-1") }).await;
    let facts = crate::metrics::Facts {
        root_end: 1,
        issuer_end: 2,
        own_end: 3,
        generation: 4,
        watchers: 5,
        state_in_step: true,
        audit: desk.issuance.parts.audit.facts(),
        token_keys: Some((6, true)),
    };
    let text = desk.issuance.parts.metrics.render(facts).unwrap();
    for line in [
        "countersign_ca_svid_requests_total{outcome=\"granted\"} 1",
        "countersign_ca_svid_requests_total{outcome=\"csr_key_type\"} 1",
        "countersign_ca_svid_request_duration_seconds_count 2",
        "countersign_ca_certificate_expiration_timestamp_seconds{certificate=\"issuer\"} 2.0",
        "countersign_ca_bundle_generation 4",
        "# EOF",
    ] {
        assert!(text.contains(line), "{line} is missing in {text}");
    }
}

/// A rotation that was prepared `ago` seconds before now.
async fn prepare(desk: &Desk, ago: u64) {
    let (state, at) = (&desk.issuance.parts.state, seconds(START - ago));
    let draft = state.draft(|held| held.prepared(LIVES, HOUR, at)).unwrap();
    assert_eq!(state.commit(draft, at).await.unwrap(), Race::Won);
}

#[tokio::test]
async fn while_a_root_is_replaced_no_leaf_is_renewed_for_who_does_not_follow() {
    for (ago, followed) in [(GRACE - 1, true), (GRACE, false)] {
        let desk = desk(WIDE);
        let ask = |generation| IssueSvidRequest { bundle_generation: generation, ..desk.request("frontend-1") };
        desk.ask(ask(1)).await.unwrap();
        prepare(&desk, ago).await;
        // Bundle and leaf come in one answer to who holds nothing; and who follows is served.
        for generation in [0, 2] {
            let answer = desk.ask(ask(generation)).await.unwrap();
            assert_eq!(answer.bundle.unwrap().roots.len(), 2);
        }
        match desk.ask(ask(1)).await {
            Ok(_) => assert!(followed),
            Err(refusal) => {
                assert!(!followed);
                assert_eq!(refusal.label(), "bundle_behind");
                assert_eq!(desk.records().last().unwrap()["outcome"], "bundle_behind");
            }
        }
    }
}

#[tokio::test]
async fn a_life_longer_than_any_before_is_stored_before_it_is_granted() {
    let desk = desk(WIDE);
    let state = &desk.issuance.parts.state;
    assert_eq!(state.authority().longest_leaf(), Some(HOUR));
    desk.ask(IssueSvidRequest { ttl_seconds: 2 * 3600, ..desk.request("frontend-1") }).await.unwrap();
    assert_eq!(state.authority().longest_leaf(), Some(2 * HOUR));
    desk.ask(desk.request("frontend-1")).await.unwrap();
    assert_eq!(state.authority().longest_leaf(), Some(2 * HOUR), "it never shrinks");
    // It cannot be stored: it is not granted.
    std::fs::create_dir(desk.dir.path().join("state/ca.state.tmp")).unwrap();
    let refusal = desk.ask(IssueSvidRequest { ttl_seconds: 3 * 3600, ..desk.request("frontend-1") }).await;
    assert_eq!(refusal.unwrap_err().label(), "state_unavailable");
}

#[tokio::test]
async fn whoever_gets_a_leaf_is_known_with_it() {
    let desk = desk(WIDE);
    desk.ask(desk.request("frontend-1")).await.unwrap();
    let living = desk.issuance.parts.holders.living(START);
    assert_eq!((living.len(), living[0].namespace.as_str(), living[0].pod.as_str()), (1, "shop", "frontend-1"));
    let leaf = living[0].newest().unwrap();
    assert_eq!(leaf.serial, desk.records().last().unwrap()["serial"]);
    assert_eq!((leaf.not_after, leaf.asked_with), (START + HOUR, 7));
}
