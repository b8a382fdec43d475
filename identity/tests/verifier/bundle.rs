//! Check 16 and what a set of bundles promises: only roots that may vouch are loaded, and what changed can be told.

use crate::corpus::{ca, permitted_dns, uri_constraint};
use crate::support::*;
use countersign_identity::{
    BundleChange, BundleError, BundleSet, CertificateError, MAX_ROOTS, SignerError, TrustBundle,
};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose};
use rustls_pki_types::CertificateDer;

fn load(roots: Vec<CertificateDer<'static>>) -> Result<TrustBundle, BundleError> {
    TrustBundle::new(td("cluster.local"), 7, roots, now())
}

fn root_with(edit: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
    let mut params = root_params();
    edit(&mut params);
    Ca::self_signed(params, key()).der()
}

#[track_caller]
fn reason(root: CertificateDer<'static>) -> SignerError {
    match load(vec![Ca::root().der(), root]).unwrap_err() {
        BundleError::Root { index: 1, reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_bundle_holds_the_roots_it_was_given() {
    let roots = vec![Ca::root().der(), Ca::root().der()];
    let bundle = load(roots.clone()).unwrap();
    assert_eq!(bundle.roots(), roots);
    assert_eq!(bundle.generation(), 7);
    assert_eq!(*bundle.trust_domain(), td("cluster.local"));
    assert!(!bundle.is_empty());
}

#[test]
fn a_repeated_root_is_kept_once() {
    let (one, two) = (Ca::root().der(), Ca::root().der());
    let bundle = load(vec![one.clone(), two.clone(), one.clone()]).unwrap();
    assert_eq!(bundle.roots(), [one, two]);
}

#[test]
fn a_bundle_may_be_empty_and_is_then_told_apart() {
    assert!(load(vec![]).unwrap().is_empty());
}

#[test]
fn a_leaf_is_refused_as_root() {
    let leaf = Ca::root().sign_leaf(&leaf_params());
    assert_eq!(reason(leaf.der), SignerError::NotCa);
    assert_eq!(reason(root_with(|p| p.is_ca = IsCa::NoCa)), SignerError::NotCa);
}

#[test]
fn a_root_must_be_allowed_to_sign_certificates() {
    let silent = root_with(|p| p.key_usages.clear());
    assert_eq!(reason(silent), SignerError::NoKeyUsage);
    let crl_only = root_with(|p| p.key_usages = vec![KeyUsagePurpose::CrlSign]);
    assert_eq!(reason(crl_only), SignerError::NoKeyCertSign);
    load(vec![root_with(|p| p.key_usages = vec![KeyUsagePurpose::KeyCertSign])]).unwrap();
}

#[test]
fn an_expired_root_is_refused_and_one_in_its_last_second_or_of_tomorrow_is_not() {
    load(vec![root_with(|p| validity(p, -HOUR, 0))]).unwrap();
    load(vec![root_with(|p| validity(p, HOUR, 2 * HOUR))]).unwrap();
    let error = load(vec![root_with(|p| validity(p, -HOUR, -1))]).unwrap_err();
    let expected = BundleError::Expired { trust_domain: td("cluster.local"), index: 0, not_after: at(NOW - 1) };
    assert_eq!(error, expected);
}

#[test]
fn a_root_that_names_another_trust_domain_or_a_workload_is_refused() {
    let named = |text: &'static str| root_with(|p| p.subject_alt_names = vec![uri(text)]);
    load(vec![named("spiffe://cluster.local"), named("spiffe://cluster.local/")]).unwrap();
    assert_eq!(reason(named("spiffe://other.example")), SignerError::ForeignId);
    assert_eq!(reason(named(ID)), SignerError::BadId);
    assert_eq!(reason(named("https://cluster.local")), SignerError::BadId);
}

#[test]
fn uri_name_constraints_on_a_root_are_refused_with_the_way_out() {
    let error = load(vec![root_with(|p| p.custom_extensions.push(uri_constraint()))]).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("cluster.local, root 0"), "{text}");
    assert!(text.contains("URI name constraints"), "{text}");
    assert!(text.contains("Issue the CA certificate without them"), "{text}");
    load(vec![root_with(|p| p.name_constraints = permitted_dns())]).unwrap();
}

#[test]
fn excluded_uris_and_directory_names_are_refused_too() {
    let constraint = |tag: u8, name: &[u8]| {
        let subtree = der(0x30, &[&der(tag, &[name])]);
        let value = der(0x30, &[&der(0xa1, &[&subtree])]);
        root_with(|p| p.custom_extensions.push(extension(30, true, value)))
    };
    assert_eq!(reason(constraint(0x86, b"evil.example")), SignerError::UriNameConstraints);
    let directory = reason(constraint(0xa4, &der(0x30, &[])));
    assert_eq!(directory, SignerError::DirectoryNameConstraints);
}

#[test]
fn a_root_for_one_direction_only_is_refused() {
    let with = |usages: &[ExtendedKeyUsagePurpose]| root_with(|p| p.extended_key_usages = usages.to_vec());
    let (server, client) = (ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth);
    load(vec![with(&[server.clone(), client])]).unwrap();
    assert_eq!(reason(with(&[server])), SignerError::ExtendedKeyUsage);
}

#[test]
fn a_root_whose_key_verifies_nothing_here_is_refused() {
    let root = |algorithm| {
        let key = KeyPair::generate_for(algorithm).unwrap();
        Ca::self_signed(root_params(), key).der()
    };
    let good =
        [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519, &rcgen::PKCS_RSA_SHA256];
    load(good.map(root).to_vec()).unwrap();
    assert_eq!(reason(root(&rcgen::PKCS_ECDSA_P521_SHA512)), SignerError::UnsupportedKey);
}

#[test]
fn bytes_that_are_no_root_certificate_are_refused() {
    let malformed = |bytes: Vec<u8>| match reason(bytes.into()) {
        SignerError::Certificate(error) => error,
        other => panic!("{other:?}"),
    };
    let good = Ca::root().der().to_vec();
    assert_eq!(malformed([&good[..], b"\0"].concat()), CertificateError::TrailingBytes);
    assert_eq!(malformed(b"-----BEGIN".to_vec()), CertificateError::NotDer);
    let critical = root_with(|p| p.custom_extensions.push(extension(99, true, vec![5, 0])));
    let expected = CertificateError::UnknownCriticalExtension;
    assert_eq!(malformed(critical.to_vec()), expected);
}

#[test]
fn an_intermediate_may_serve_as_root() {
    let root = Ca::root();
    let mut params = issuer_params();
    params.is_ca = ca(0);
    let issuer = root.sign_ca(params);
    Case::new(issuer.sign_leaf(&leaf_params()), &[], &issuer).accepted();
}

#[test]
fn too_many_roots_are_refused() {
    let one = Ca::root().der();
    let error = load(vec![one.clone(); MAX_ROOTS + 1]).unwrap_err();
    assert!(matches!(error, BundleError::TooManyRoots { count, .. } if count == MAX_ROOTS + 1));
    load(vec![one; MAX_ROOTS]).unwrap();
}

fn bundle(name: &str, generation: u64, roots: &[&Ca]) -> TrustBundle {
    let roots = roots.iter().map(|ca| ca.der()).collect();
    TrustBundle::new(td(name), generation, roots, now()).unwrap()
}

fn set(bundles: &[TrustBundle]) -> BundleSet {
    BundleSet::new(bundles.to_vec()).unwrap()
}

#[test]
fn two_bundles_of_one_trust_domain_are_refused_and_never_merged() {
    let (a, b) = (Ca::root(), Ca::root());
    let twice = vec![bundle("td", 1, &[&a]), bundle("x", 1, &[]), bundle("TD", 2, &[&b])];
    assert_eq!(BundleSet::new(twice).unwrap_err(), BundleError::TwoBundles(td("td")));
}

#[test]
fn a_bundle_is_found_by_its_own_name_only() {
    let (a, b) = (Ca::root(), Ca::root());
    let set = set(&[bundle("b.example", 1, &[&b]), bundle("a.example", 1, &[&a])]);
    assert_eq!(set.get(&td("a.example")).unwrap().roots(), [a.der()]);
    assert_eq!(set.get(&td("b.example")).unwrap().roots(), [b.der()]);
    assert!(set.get(&td("example")).is_none());
    let names: Vec<_> = set.iter().map(|b| b.trust_domain().as_str()).collect();
    assert_eq!(names, ["a.example", "b.example"]);
}

#[test]
fn bundles_with_the_same_content_are_equal() {
    let a = Ca::root();
    assert_eq!(bundle("td", 1, &[&a]), bundle("td", 1, &[&a]));
    assert_ne!(bundle("td", 1, &[&a]), bundle("td", 2, &[&a]));
    assert_ne!(bundle("td", 1, &[&a]), bundle("td", 1, &[]));
    assert_eq!(set(&[bundle("td", 1, &[&a])]), set(&[bundle("td", 1, &[&a])]));
}

#[test]
fn a_new_generation_with_the_same_roots_in_another_order_changes_nothing() {
    let (a, b) = (Ca::root(), Ca::root());
    let (older, newer) = (set(&[bundle("td", 1, &[&a, &b])]), set(&[bundle("td", 2, &[&b, &a])]));
    assert_eq!(newer.compare(&older), BundleChange::Same);
    assert_eq!(newer.fingerprint(), older.fingerprint());
}

#[test]
fn an_added_root_is_a_gain_and_a_missing_one_a_loss() {
    let (a, b) = (Ca::root(), Ca::root());
    let one = set(&[bundle("td", 1, &[&a])]);
    let both = set(&[bundle("td", 2, &[&a, &b])]);
    let other = set(&[bundle("td", 3, &[&b])]);
    assert_eq!(both.compare(&one), BundleChange::Gained);
    assert_eq!(one.compare(&both), BundleChange::Lost);
    assert_eq!(other.compare(&one), BundleChange::Lost, "one came, one went");
    assert_ne!(one.fingerprint(), both.fingerprint());
}

#[test]
fn a_root_that_moves_to_another_trust_domain_is_lost_to_the_first() {
    let a = Ca::root();
    let (older, newer) = (set(&[bundle("td", 1, &[&a])]), set(&[bundle("dt", 1, &[&a])]));
    assert_eq!(newer.compare(&older), BundleChange::Lost);
    assert_ne!(newer.fingerprint(), older.fingerprint());
    let lost: Vec<_> = older.lost_in(&newer).collect();
    let own = older.iter().next().unwrap();
    assert_eq!(lost, [(&td("td"), own.root_sha256s().next().unwrap())]);
}

#[test]
fn a_set_without_a_bundle_and_one_with_an_empty_bundle_are_not_the_same() {
    let (none, empty) = (set(&[]), set(&[bundle("td", 1, &[])]));
    assert_ne!(none.fingerprint(), empty.fingerprint());
    assert_eq!(none.compare(&empty), BundleChange::Gained, "no root went");
}
