//! Our own SVID: only a proper leaf with its own key, and the key stays hidden.

use crate::support::*;
use countersign_identity::{CertificateError, ChainError, LeafError, SpiffeId, Svid, SvidError};
use rcgen::{KeyPair, RsaKeySize, SerialNumber};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};

fn svid(case: &Case) -> Result<Svid, SvidError> {
    Svid::new(case.chain.clone(), PrivatePkcs8KeyDer::from(case.key.clone()).into())
}

#[test]
fn an_svid_tells_what_its_leaf_says() {
    let case = with_leaf(|p| p.serial_number = Some(SerialNumber::from_slice(&[0x0a, 0xbc])));
    let svid = svid(&case).unwrap();
    assert_eq!(*svid.id(), SpiffeId::parse(ID).unwrap());
    assert_eq!((svid.not_before(), svid.not_after()), (at(NOW - 60), at(NOW + HOUR)));
    assert_eq!(svid.serial(), "0abc");
    assert_eq!(svid.chain(), case.chain);
    assert_eq!(svid.key().secret_der(), case.key);
    assert_eq!(svid.spki_sha256(), *case.accepted().spki_sha256());
}

#[test]
fn debug_output_never_shows_the_key() {
    let case = with_leaf(|_| {});
    let text = format!("{:?}", svid(&case).unwrap());
    assert!(text.contains(ID), "{text}");
    let hex: String = case.key.iter().map(|b| format!("{b:02x}")).collect();
    let list = format!("{:?}", &case.key[36..40]);
    assert!(!text.contains(&hex[72..88]) && !text.contains(list.trim_matches(['[', ']'])), "{text}");
    assert!(!text.to_lowercase().contains("key"), "{text}");
}

#[test]
fn every_kind_of_key_that_we_issue_for_makes_an_svid() {
    let root = Ca::root();
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let leaf = root.sign_leaf_with(&leaf_params(), &key);
        Svid::new(vec![leaf.der.clone()], leaf.private_key()).unwrap();
    }
}

#[test]
fn sec1_and_pkcs1_keys_are_read_too() {
    let root = Ca::root();
    let held = root.sign_leaf(&leaf_params());
    let sec1 = inner_octets(&held.key);
    Svid::new(vec![held.der], PrivateSec1KeyDer::from(sec1).into()).unwrap();

    let key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    let held = root.sign_leaf_with(&leaf_params(), &key);
    Svid::new(vec![held.der.clone()], held.private_key()).unwrap();
    let pkcs1 = inner_octets(&held.key);
    Svid::new(vec![held.der], PrivatePkcs1KeyDer::from(pkcs1).into()).unwrap();
}

/// What PKCS#8 wraps: the OCTET STRING after version and algorithm.
fn inner_octets(pkcs8: &[u8]) -> Vec<u8> {
    use x509_parser::asn1_rs::{Any, FromDer};
    let (_, outer) = Any::from_der(pkcs8).unwrap();
    let (rest, _version) = Any::from_der(outer.data).unwrap();
    let (rest, _algorithm) = Any::from_der(rest).unwrap();
    let (_, key) = Any::from_der(rest).unwrap();
    key.data.to_vec()
}

#[test]
fn a_key_of_another_leaf_is_refused() {
    let mut case = with_leaf(|_| {});
    case.key = key().serialize_der();
    assert_eq!(svid(&case).unwrap_err(), SvidError::KeyMismatch);
    case.key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap().serialize_der();
    assert_eq!(svid(&case).unwrap_err(), SvidError::KeyMismatch);
}

#[test]
fn a_key_that_cannot_be_used_is_refused() {
    let mut case = with_leaf(|_| {});
    case.key = b"no key".to_vec();
    assert_eq!(svid(&case).unwrap_err(), SvidError::Key);
    let p521 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
    case.key = p521.serialize_der();
    assert_eq!(svid(&case).unwrap_err(), SvidError::Key);
}

#[test]
fn an_svid_without_certificate_or_with_too_many_is_refused() {
    let mut case = with_leaf(|_| {});
    case.chain.extend([Ca::root().der(), Ca::root().der(), Ca::root().der()]);
    assert_eq!(svid(&case).unwrap_err(), SvidError::Chain(ChainError::TooMany(5)));
    case.chain.clear();
    assert_eq!(svid(&case).unwrap_err(), SvidError::Chain(ChainError::Empty));
}

#[test]
fn an_svid_is_held_to_the_rules_for_leaves() {
    let two_uris = with_leaf(|p| p.subject_alt_names.push(uri(ID)));
    let expected = SvidError::Leaf(LeafError::SeveralUris(2));
    assert_eq!(svid(&two_uris).unwrap_err(), expected);
    let ca = with_leaf(|p| p.is_ca = crate::corpus::ca(0));
    assert_eq!(svid(&ca).unwrap_err(), SvidError::Leaf(LeafError::Ca));
}

#[test]
fn a_broken_certificate_above_the_leaf_is_named_by_its_place() {
    let mut case = with_leaf(|_| {});
    case.chain[1] = b"x".to_vec().into();
    let reason = CertificateError::NotDer;
    assert_eq!(svid(&case).unwrap_err(), SvidError::Certificate { index: 1, reason });
    case.chain[0] = b"x".to_vec().into();
    let expected = SvidError::Leaf(LeafError::Certificate(reason));
    assert_eq!(svid(&case).unwrap_err(), expected);
}

#[test]
fn a_private_key_is_not_taken_for_what_it_is_not() {
    let case = with_leaf(|_| {});
    let wrong = PrivateKeyDer::from(PrivatePkcs1KeyDer::from(case.key.clone()));
    assert_eq!(Svid::new(case.chain, wrong).unwrap_err(), SvidError::Key);
}
