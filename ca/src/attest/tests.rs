use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::token::LEEWAY;
use super::*;
use crate::clock::seconds;
use crate::testing::{DAY, HOUR, START, TokenIssuer, claims, now, rsa, rules, write_jwks};

struct Desk {
    dir: TempDir,
    issuer: TokenIssuer,
    jwks: Jwks,
}

fn desk() -> Desk {
    desk_of(TokenIssuer::es256("k1"))
}

fn desk_of(issuer: TokenIssuer) -> Desk {
    let dir = tempfile::tempdir().unwrap();
    write_jwks(&dir.path().join("jwks"), &[issuer.jwk()]);
    let jwks = Jwks::open(&dir.path().join("jwks"), rules()).unwrap();
    Desk { dir, issuer, jwks }
}

impl Desk {
    fn attest(&self, token: &str) -> Result<Caller, AttestError> {
        sized(token).and_then(|()| self.jwks.attest(token, now()))
    }

    /// What becomes of a good token after `change`.
    fn changed(&self, change: impl FnOnce(&mut Value)) -> Result<Caller, AttestError> {
        let mut claims = good();
        change(&mut claims);
        self.attest(&self.issuer.sign(&claims))
    }

    fn rewrite(&self, keys: &[Value]) {
        write_jwks(&self.dir.path().join("jwks"), keys);
    }
}

fn good() -> Value {
    claims("shop", "frontend", "frontend-1", START - 60)
}

fn remove(claims: &mut Value, path: &[&str]) {
    let (last, parents) = path.split_last().unwrap();
    let parent = parents.iter().fold(claims, |value, key| &mut value[*key]);
    parent.as_object_mut().unwrap().remove(*last).unwrap();
}

#[test]
fn a_good_token_attests_its_pod_and_account() {
    for desk in [desk(), desk_of(TokenIssuer::rs256("rsa-1"))] {
        let caller = desk.attest(&desk.issuer.sign(&good())).unwrap();
        assert_eq!((caller.namespace(), caller.service_account()), ("shop", "frontend"));
        assert_eq!((caller.pod_name(), caller.pod_uid()), ("frontend-1", "uid-of-frontend-1"));
        assert_eq!(caller.token_id(), Some("token-1"));
    }
}

#[test]
fn the_audience_may_be_one_word_instead_of_a_list() {
    assert!(desk().changed(|claims| claims["aud"] = json!("countersign-ca")).is_ok());
}

#[test]
fn a_token_for_another_audience_is_refused() {
    let desk = desk();
    for audience in [
        json!(["https://kubernetes.default.svc"]),
        json!("vault"),
        json!([]),
        json!(["countersign-ca", "https://kubernetes.default.svc"]),
        json!(["countersign-ca", "countersign-ca"]),
        json!("Countersign-CA"),
    ] {
        let refused = desk.changed(|claims| claims["aud"] = audience.clone());
        assert!(matches!(refused, Err(AttestError::Audience { .. })), "{audience}: {refused:?}");
    }
    assert!(matches!(desk.changed(|claims| remove(claims, &["aud"])), Err(AttestError::Claims(_))));
}

#[test]
fn a_token_of_another_issuer_is_refused() {
    let desk = desk();
    let refused = desk.changed(|claims| claims["iss"] = json!("https://kubernetes.default.svc.evil"));
    assert!(matches!(refused, Err(AttestError::Issuer { .. })));
    assert!(matches!(desk.changed(|claims| remove(claims, &["iss"])), Err(AttestError::Claims(_))));
}

#[test]
fn an_expired_token_is_refused_and_one_without_end_too() {
    let desk = desk();
    let end = START - LEEWAY;
    assert!(desk.changed(|claims| claims["exp"] = json!(end + 1)).is_ok(), "the leeway");
    let refused = desk.changed(|claims| claims["exp"] = json!(end)).unwrap_err();
    assert_eq!(refused, AttestError::Expired { exp: end, now: START });
    assert!(matches!(desk.changed(|claims| remove(claims, &["exp"])), Err(AttestError::Claims(_))));
    assert!(matches!(desk.changed(|claims| claims["exp"] = json!("tomorrow")), Err(AttestError::Claims(_))));
    assert!(matches!(desk.changed(|claims| claims["exp"] = json!(-1)), Err(AttestError::Claims(_))));
    assert!(desk.changed(|claims| claims["exp"] = json!(u64::MAX)).is_ok(), "no overflow");
}

#[test]
fn a_token_of_the_future_is_refused() {
    let desk = desk();
    for claim in ["nbf", "iat"] {
        assert!(desk.changed(|claims| claims[claim] = json!(START + LEEWAY)).is_ok(), "the leeway");
        let refused = desk.changed(|claims| claims[claim] = json!(START + LEEWAY + 1));
        assert!(matches!(refused, Err(AttestError::NotYetValid { .. })), "{claim}: {refused:?}");
    }
}

#[test]
fn an_old_token_is_refused_whatever_its_end() {
    let desk = desk();
    let with_age = |age: u64| {
        desk.changed(|claims| {
            claims["iat"] = json!(START - age);
            claims["nbf"] = json!(START - age);
            claims["exp"] = json!(START + 365 * DAY);
        })
    };
    assert!(with_age(DAY).is_ok());
    assert!(matches!(with_age(DAY + LEEWAY + 1), Err(AttestError::TooOld { .. })));
    assert!(matches!(desk.changed(|claims| remove(claims, &["iat"])), Err(AttestError::Claims(_))));
}

#[test]
fn a_token_without_pod_name_or_uid_is_refused() {
    let desk = desk();
    for (path, named) in [
        (&["kubernetes.io"][..], "pod"),
        (&["kubernetes.io", "pod"], "pod"),
        (&["kubernetes.io", "pod", "name"], "pod/name"),
        (&["kubernetes.io", "pod", "uid"], "pod/uid"),
    ] {
        assert_eq!(desk.changed(|claims| remove(claims, path)).unwrap_err(), AttestError::Unbound(named));
    }
    let refused = desk.changed(|claims| claims["kubernetes.io"]["pod"]["uid"] = json!(""));
    assert_eq!(refused.unwrap_err(), AttestError::Name("pod uid"));
}

#[test]
fn the_subject_must_be_an_account_and_agree_with_the_claim() {
    let desk = desk();
    for subject in [
        "shop:frontend",
        "system:serviceaccount:shop",
        "system:serviceaccount:shop:frontend:x",
        "system:node:a",
        "",
        "System:serviceaccount:shop:frontend",
    ] {
        let refused = desk.changed(|claims| claims["sub"] = json!(subject));
        assert!(matches!(refused, Err(AttestError::Subject(_))), "{subject}: {refused:?}");
    }
    let other = desk.changed(|claims| claims["sub"] = json!("system:serviceaccount:bank:frontend"));
    assert_eq!(other.unwrap_err(), AttestError::Disagrees("namespace"));
    let other = desk.changed(|claims| claims["sub"] = json!("system:serviceaccount:shop:backend"));
    assert_eq!(other.unwrap_err(), AttestError::Disagrees("serviceaccount/name"));
    let missing = desk.changed(|claims| remove(claims, &["kubernetes.io", "serviceaccount"]));
    assert_eq!(missing.unwrap_err(), AttestError::Disagrees("serviceaccount/name"));
}

#[test]
fn names_that_kubernetes_does_not_allow_are_refused() {
    let desk = desk();
    let long = "a".repeat(64);
    for namespace in ["", "shop/../bank", "Shop", "shop\n", "-shop", "shöp", &long] {
        let refused = desk.attest(&desk.issuer.sign(&claims(namespace, "frontend", "p", START)));
        assert!(matches!(refused, Err(AttestError::Name(_))), "{namespace:?}: {refused:?}");
    }
}

#[test]
fn alg_none_is_refused() {
    let desk = desk();
    let token = desk.issuer.sign(&good());
    let payload = token.split('.').nth(1).unwrap();
    for header in [r#"{"alg":"none","kid":"k1"}"#, r#"{"alg":"None","kid":"k1"}"#, r#"{"kid":"k1"}"#] {
        for signature in ["", token.split('.').nth(2).unwrap()] {
            let forged = format!("{}.{payload}.{signature}", URL_SAFE_NO_PAD.encode(header));
            assert!(matches!(desk.attest(&forged), Err(AttestError::Malformed(_))), "{header}");
        }
    }
}

#[test]
fn hs256_with_the_public_key_as_secret_is_refused() {
    // The classic confusion: the verifier's public key, known to all, taken as a shared secret.
    let desk = desk_of(TokenIssuer::rs256("rsa-1"));
    let header = Header { kid: Some("rsa-1".to_owned()), ..Header::new(Algorithm::HS256) };
    for secret in [rsa().public_key_pem().into_bytes(), rsa().public_key_raw().to_vec()] {
        let forged = jsonwebtoken::encode(&header, &good(), &EncodingKey::from_secret(&secret)).unwrap();
        assert!(matches!(desk.attest(&forged), Err(AttestError::Algorithm { .. })));
    }
}

#[test]
fn an_algorithm_that_the_key_is_not_for_is_refused() {
    let desk = desk_of(TokenIssuer::rs256("rsa-1"));
    // Same key, other algorithm: allowed by configuration, but the key set says RS256.
    let mut wide = rules();
    wide.algorithms.push(Algorithm::RS512);
    let jwks = Jwks::open(&desk.dir.path().join("jwks"), wide).unwrap();
    let header = Header { kid: Some("rsa-1".to_owned()), ..Header::new(Algorithm::RS512) };
    let token = desk.issuer.sign_with(header, &good());
    assert_eq!(jwks.attest(&token, now()).unwrap_err(), AttestError::Signature);
    assert!(matches!(desk.attest(&token), Err(AttestError::Algorithm { .. })), "not allowed at all");
}

#[test]
fn a_forged_or_changed_signature_is_refused() {
    let desk = desk();
    let forger = TokenIssuer::es256("k1");
    assert_eq!(desk.attest(&forger.sign(&good())).unwrap_err(), AttestError::Signature);
    let token = desk.issuer.sign(&good());
    let (head, signature) = token.rsplit_once('.').unwrap();
    let other = desk.issuer.sign(&claims("shop", "admin", "admin-1", START));
    let (other_head, _) = other.rsplit_once('.').unwrap();
    assert_eq!(desk.attest(&format!("{other_head}.{signature}")).unwrap_err(), AttestError::Signature);
    assert!(desk.attest(&format!("{head}.")).is_err());
}

#[test]
fn a_token_cannot_bring_its_own_key() {
    let desk = desk();
    let forger = TokenIssuer::es256("forger");
    let jwk = serde_json::from_value(forger.jwk()).unwrap();
    let header = Header { jwk: Some(jwk), kid: Some("k1".to_owned()), ..forger.header() };
    assert_eq!(desk.attest(&forger.sign_with(header, &good())).unwrap_err(), AttestError::Signature);
    let unknown = desk.attest(&forger.sign(&good())).unwrap_err();
    assert_eq!(unknown, AttestError::UnknownKey("forger".to_owned()));
    let nameless = Header { kid: None, ..desk.issuer.header() };
    assert_eq!(desk.attest(&desk.issuer.sign_with(nameless, &good())).unwrap_err(), AttestError::NoKeyId);
}

#[test]
fn critical_header_fields_are_refused() {
    let desk = desk();
    let header = Header { crit: Some(vec!["b64".to_owned()]), ..desk.issuer.header() };
    assert!(matches!(desk.attest(&desk.issuer.sign_with(header, &good())), Err(AttestError::Malformed(_))));
}

#[test]
fn size_and_form_are_bounded() {
    let desk = desk();
    assert_eq!(desk.attest("").unwrap_err(), AttestError::Missing);
    let huge = "a".repeat(MAX_TOKEN + 1);
    assert!(matches!(desk.attest(&huge), Err(AttestError::TooLarge { .. })));
    for garbage in ["a", "a.b", "a.b.c", "....", "é.é.é", "eyJhbGciOiJFUzI1NiJ9..", "\0.\0.\0"] {
        assert!(desk.attest(garbage).is_err(), "{garbage}");
    }
    let long = desk.changed(|claims| claims["iss"] = json!("x".repeat(5000))).unwrap_err();
    assert!(long.to_string().len() < 400, "what a caller wrote is cut in messages");
    let escaped = desk.changed(|claims| claims["iss"] = json!("a\u{1b}[31m\nb")).unwrap_err().to_string();
    assert!(!escaped.contains('\u{1b}') && !escaped.contains('\n'), "{escaped}");
}

#[test]
fn new_keys_are_taken_and_old_ones_end() {
    let desk = desk();
    let next = TokenIssuer::es256("k2");
    let token = next.sign(&good());
    assert!(desk.attest(&token).is_err());
    assert!(!desk.jwks.refresh().unwrap(), "nothing has changed");
    desk.rewrite(&[next.jwk()]);
    assert!(desk.jwks.refresh().unwrap());
    assert!(desk.attest(&token).is_ok());
    assert!(matches!(desk.attest(&desk.issuer.sign(&good())), Err(AttestError::UnknownKey(_))));
}

#[test]
fn a_bad_key_file_keeps_the_last_good_keys_and_is_told_until_it_is_good() {
    let desk = desk();
    let path = desk.dir.path().join("jwks");
    let token = desk.issuer.sign(&good());
    let mut private = desk.issuer.jwk();
    private["d"] = json!("c2VjcmV0");
    let mut nameless = desk.issuer.jwk();
    remove(&mut nameless, &["kid"]);
    let set = |keys: Value| json!({ "keys": keys }).to_string();
    let twice = set(json!([desk.issuer.jwk(), desk.issuer.jwk()]));
    let secret = set(json!([{"kty": "oct", "k": "c2VjcmV0", "kid": "s", "alg": "HS256"}]));
    let many = set(Value::Array(vec![json!({"kty": "x"}); 101]));
    let huge = " ".repeat(1024 * 1024 + 1);
    for bad in [
        "",
        "{",
        "{}",
        r#"{"keys":[]}"#,
        &set(json!([private])),
        &set(json!([nameless])),
        &twice,
        &secret,
        &many,
        &huge,
    ] {
        std::fs::write(&path, bad).unwrap();
        assert!(desk.jwks.refresh().is_err(), "{:.60}", bad);
        assert!(desk.jwks.problem().is_some());
        assert!(desk.attest(&token).is_ok(), "the last good keys stay");
    }
    std::fs::remove_file(&path).unwrap();
    assert!(desk.jwks.refresh().is_err());
    assert!(desk.attest(&token).is_ok());
    desk.rewrite(&[desk.issuer.jwk(), json!({"kty": "oct", "k": "eA", "kid": "ignored"})]);
    desk.jwks.refresh().unwrap();
    assert!(desk.jwks.problem().is_none());
    assert_eq!(desk.jwks.key_ids(), ["k1"]);
}

#[test]
fn a_short_rsa_key_is_refused() {
    let desk = desk();
    let n = URL_SAFE_NO_PAD.encode([0xC1; 128]);
    desk.rewrite(&[json!({"kty": "RSA", "kid": "short", "n": n, "e": "AQAB"})]);
    assert!(desk.jwks.refresh().unwrap_err().to_string().contains("2048"));
}

#[test]
fn the_claim_hour_of_the_fixture_is_what_kubelets_get() {
    // Guards the fixture: all refusals above must come from the one change that each makes.
    let desk = desk();
    assert!(desk.jwks.attest(&desk.issuer.sign(&good()), seconds(START + HOUR - 70)).is_ok());
    assert!(desk.jwks.attest(&desk.issuer.sign(&good()), seconds(START + HOUR)).is_err());
}
