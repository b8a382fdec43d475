//! Checks 2, 3, 6, 7, 10, 11 and 15: the path from the leaf to a root of its own trust domain, now.

use crate::corpus::{CORPUS, case, other_domains_root, with_keys};
use crate::support::*;
use countersign_identity::{
    Blame, BundleSet, CheckedSignature, Purpose, SignerError, TrustBundle, VerifyError, verify_svid,
    verify_svid_at_both_ends,
};
use rcgen::{KeyPair, RsaKeySize};

#[track_caller]
fn intermediate_error(name: &str) -> SignerError {
    match case(name).refused() {
        VerifyError::Intermediate(reason) => reason,
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn chains_of_every_allowed_length_are_accepted() {
    for name in ["directly_under_root", "issuer_and_leaf", "two_intermediates", "root_in_chain"] {
        case(name).accepted();
    }
}

#[test]
fn a_strangers_ca_is_refused() {
    assert_eq!(case("stranger").refused(), VerifyError::UnknownIssuer);
}

#[test]
fn a_stranger_with_our_roots_name_is_refused() {
    assert_eq!(case("stranger_of_same_name").refused(), VerifyError::BadSignature);
}

#[test]
fn a_bundle_of_another_trust_domain_does_not_verify_ours() {
    assert_eq!(other_domains_root().refused(), VerifyError::UnknownIssuer);
}

#[test]
fn each_trust_domain_is_verified_by_its_own_bundle() {
    let (ours, theirs) = (Ca::root(), Ca::root());
    let mut params = leaf_params();
    params.subject_alt_names = vec![uri("spiffe://other.example/ns/a/sa/b")];
    let mut case = Case::new(theirs.sign_leaf(&params), &[], &ours);
    case.trusted.push(("other.example", vec![theirs.der()]));
    let verified = case.accepted();
    assert_eq!(verified.id().trust_domain(), td("other.example"));
    let bundles = case.bundles();
    let theirs = bundles.get(&td("other.example")).unwrap();
    assert!(theirs.contains_root(verified.anchor_sha256()));
}

#[test]
fn an_unknown_trust_domain_is_refused_before_any_signature() {
    let mut case = case("unknown_trust_domain");
    let expected = VerifyError::UnknownTrustDomain(td("other.example"));
    assert_eq!(case.refused(), expected);
    case.chain[1] = Ca::root().der();
    assert_eq!(case.refused(), expected);
    assert_eq!(expected.blame(), Blame::Us);
}

#[test]
fn a_trust_domain_is_not_trusted_for_what_is_below_or_above_it() {
    for name in ["a.cluster.local", "local", "cluster.local.evil.example", "xcluster.local"] {
        let id = format!("spiffe://{name}/ns/shop/sa/backend");
        let case = with_leaf(|p| p.subject_alt_names = vec![uri(&id)]);
        assert_eq!(case.refused(), VerifyError::UnknownTrustDomain(td(name)));
    }
}

#[test]
fn an_empty_bundle_trusts_nobody() {
    let expected = VerifyError::NoRoots(td("cluster.local"));
    assert_eq!(case("empty_bundle").refused(), expected);
}

#[test]
fn a_missing_issuer_is_not_looked_up_elsewhere() {
    assert_eq!(case("issuer_left_out").refused(), VerifyError::UnknownIssuer);
}

#[test]
fn expired_is_refused_from_the_first_second_after() {
    case("last_second").accepted();
    let (not_after, now) = (at(NOW + HOUR), at(NOW + HOUR + 1));
    let expected = VerifyError::Expired { not_after, now };
    assert_eq!(case("leaf_expired").refused(), expected);
    let stranger = case("unknown_trust_domain").at(NOW + HOUR + 1);
    assert_eq!(stranger.refused(), expected, "time is asked first, it costs nothing");
}

#[test]
fn not_yet_valid_is_refused_until_the_first_second() {
    case("first_second").accepted();
    let (not_before, now) = (at(NOW - 60), at(NOW - 61));
    let expected = VerifyError::NotYetValid { not_before, now };
    assert_eq!(case("leaf_not_yet_valid").refused(), expected);
}

#[test]
fn an_intermediate_outside_its_time_is_refused() {
    let (not_after, now) = (at(NOW - 1), at(NOW));
    let expected = VerifyError::Expired { not_after, now };
    assert_eq!(case("issuer_expired").refused(), expected);
    let not_before = at(NOW + 1);
    let expected = VerifyError::NotYetValid { not_before, now };
    assert_eq!(case("issuer_not_yet_valid").refused(), expected);
}

#[test]
fn a_root_that_expired_since_it_was_loaded_vouches_no_more() {
    let until = |now| with_root(|p| validity(p, -HOUR, 5)).at(now);
    until(NOW + 5).accepted();
    let (not_after, now) = (at(NOW + 5), at(NOW + 6));
    let expected = VerifyError::RootExpired { not_after, now };
    assert_eq!(until(NOW + 6).refused(), expected);
    assert_eq!(expected.blame(), Blame::Ca);
}

#[test]
fn a_leaf_cannot_issue_certificates() {
    assert_eq!(intermediate_error("issuer_is_leaf"), SignerError::NotCa);
    let reason = intermediate_error("issuer_without_basic_constraints");
    assert_eq!(reason, SignerError::NotCa);
}

#[test]
fn an_intermediate_whose_key_usage_lacks_cert_sign_is_refused() {
    let reason = intermediate_error("issuer_without_cert_sign");
    assert_eq!(reason, SignerError::NoKeyCertSign);
    case("issuer_without_key_usage").accepted();
}

#[test]
fn an_intermediate_cannot_hide_its_key_usage_behind_a_second_spelling() {
    assert_eq!(case("issuer_hiding_its_key_usage").refused().label(), "malformed_certificate");
}

#[test]
fn path_lengths_of_root_and_intermediates_are_kept() {
    case("root_path_len_met").accepted();
    case("issuer_path_len_met").accepted();
    assert_eq!(case("root_path_len_exceeded").refused(), VerifyError::PathTooLong);
    assert_eq!(case("issuer_path_len_exceeded").refused(), VerifyError::PathTooLong);
}

#[test]
fn of_two_roots_of_one_name_and_key_the_one_that_allows_vouches() {
    let case = case("one_of_two_roots_of_same_name_and_key_allows");
    let bundles = case.bundles();
    let bundle = bundles.get(&td("cluster.local")).unwrap();
    let newer = bundle.root_sha256s().nth(1).unwrap();
    assert_eq!(case.accepted().anchor_sha256(), newer);
}

#[test]
fn an_intermediates_id_is_its_trust_domains_or_none() {
    case("issuer_with_own_id").accepted();
    case("issuer_with_own_id_and_slash").accepted();
    let reason = intermediate_error("issuer_of_another_domain");
    assert_eq!(reason, SignerError::ForeignId);
    for name in ["issuer_with_workload_id", "issuer_with_two_uris", "issuer_with_web_uri"] {
        assert_eq!(intermediate_error(name), SignerError::BadId, "{name}");
    }
}

#[test]
fn an_extended_key_usage_must_hold_the_peers_side() {
    case("leaf_without_eku").accepted();
    case("issuer_with_both_ekus").accepted();
    for name in ["server_only_leaf_as_client", "client_only_leaf_as_server", "server_only_issuer"] {
        assert_eq!(case(name).refused(), VerifyError::ExtendedKeyUsage, "{name}");
    }
    let mut other_side = case("server_only_leaf_as_client");
    other_side = other_side.of_server();
    other_side.accepted();
}

#[test]
fn good_at_both_ends_is_good_at_each() {
    for entry in CORPUS {
        let case = (entry.make)();
        let asked = |purpose| verify_svid(&case.chain, &case.bundles(), purpose, at(case.now));
        let both = verify_svid_at_both_ends(&case.chain, &case.bundles(), &[], at(case.now));
        match (both, asked(Purpose::Server), asked(Purpose::Client)) {
            (Ok(both), Ok(server), Ok(client)) => assert!(both == server && both == client, "{}", entry.name),
            (Err(both), Err(server), _) => assert_eq!(both, server, "{}", entry.name),
            (Err(both), Ok(_), Err(client)) => assert_eq!(both, client, "{}", entry.name),
            (both, server, client) => panic!("{}: {both:?}, {server:?}, {client:?}", entry.name),
        }
    }
}

#[test]
fn a_signature_that_is_known_changes_no_verdict() {
    for entry in CORPUS {
        let case = (entry.make)();
        let roots: Vec<_> = case.bundles().iter().cloned().collect();
        let known = roots.iter().flat_map(|bundle| case.chain.iter().map(move |one| CheckedSignature::of(one, bundle)));
        let known: Vec<_> = known.flatten().collect();
        let asked = |known| verify_svid_at_both_ends(&case.chain, &case.bundles(), known, at(case.now));
        assert_eq!(asked(&known), asked(&[]), "{}", entry.name);
    }
}

#[test]
fn a_known_signature_vouches_for_no_other() {
    let (good, stranger) = (case("issuer_and_leaf"), case("stranger_of_same_name"));
    let bundle = good.bundles().iter().next().unwrap().clone();
    let known = [CheckedSignature::of(&good.chain[1], &bundle).unwrap()];
    assert!(verify_svid_at_both_ends(&good.chain, &good.bundles(), &known, at(good.now)).is_ok());
    // One bit of the issuer, wherever it is: in what was signed, or in the signature.
    for place in [100, good.chain[1].len() - 1] {
        let mut spoilt = good.chain.clone();
        let mut bytes = spoilt[1].to_vec();
        bytes[place] ^= 1;
        spoilt[1] = bytes.into();
        assert!(verify_svid_at_both_ends(&spoilt, &good.bundles(), &known, at(good.now)).is_err(), "{place}");
    }
    assert!(CheckedSignature::of(&stranger.chain[1], &stranger.bundles().iter().next().unwrap().clone()).is_err());
    let refused = verify_svid_at_both_ends(&good.chain, &stranger.bundles(), &known, at(good.now)).unwrap_err();
    assert!(matches!(refused, VerifyError::UnknownIssuer | VerifyError::BadSignature), "{refused:?}");
}

#[test]
fn ecdsa_ed25519_and_rsa_signatures_are_accepted_and_p521_is_not() {
    case("p384").accepted();
    case("ed25519").accepted();
    for algorithm in [&rcgen::PKCS_RSA_SHA256, &rcgen::PKCS_RSA_SHA384, &rcgen::PKCS_RSA_SHA512] {
        let key = KeyPair::generate_rsa_for(algorithm, RsaKeySize::_2048).unwrap();
        let root = Ca::self_signed(root_params(), key);
        Case::new(root.sign_leaf(&leaf_params()), &[], &root).accepted();
    }
    with_keys(&rcgen::PKCS_ECDSA_P256_SHA256).accepted();
    let error = case("signed_by_p521").refused();
    assert_eq!(error, VerifyError::SignatureAlgorithm);
}

#[test]
fn a_spoilt_signature_is_refused() {
    assert_eq!(case("spoilt_signature").refused(), VerifyError::BadSignature);
}

#[test]
fn certificates_beside_the_path_do_no_harm() {
    case("unrelated_extra_certificate").accepted();
}

#[test]
fn dns_constraints_hold_and_uri_constraints_are_named_in_the_refusal() {
    case("issuer_with_dns_constraint").accepted();
    assert_eq!(case("outside_dns_constraint").refused(), VerifyError::NameConstraints);
    let refused = case("issuer_with_uri_constraint").refused();
    assert_eq!(refused, VerifyError::NameConstraints);
    assert!(refused.to_string().contains("URI"), "{refused}");
}

#[test]
fn a_chain_verified_before_is_refused_again_once_its_root_is_gone() {
    let case = case("issuer_and_leaf");
    let verified = case.accepted();
    let older = case.bundles();
    let next = TrustBundle::new(td("cluster.local"), 2, vec![Ca::root().der()], now()).unwrap();
    assert!(!next.contains_root(verified.anchor_sha256()));
    let newer = BundleSet::new(vec![next]).unwrap();
    let again = verify_svid(&case.chain, &newer, case.purpose, now());
    assert_eq!(again.unwrap_err(), VerifyError::UnknownIssuer);
    let unchanged = verify_svid(&case.chain, &older, case.purpose, now());
    assert_eq!(unchanged.unwrap(), verified);
}

#[test]
fn every_refusal_has_a_short_text_and_a_short_label() {
    for entry in CORPUS.iter().filter(|entry| !entry.ours.is_empty()) {
        let error = (entry.make)().refused();
        assert!(error.label().len() <= 24, "{error:?}");
        assert!(error.to_string().len() <= 200, "{error}");
    }
}
