use std::collections::HashSet;
use std::time::Duration;

use rcgen::{BasicConstraints, IsCa, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::*;
use crate::attest::Caller;
use crate::clock::seconds;
use crate::csr;
use crate::grant::{self, Granter, Terms, Wish};
use crate::state::pem;
use crate::testing::{DAY, HOUR, START, authority, csr_of, domain, file, now, openssl, own_id, p256};

fn grant(authority: &Authority, ttl_seconds: u32) -> Grant {
    let granter = Granter {
        trust_domain: &domain(),
        issuer_end: authority.issuer().not_after(),
        own_id: &own_id(),
        terms: Terms { default: Duration::from_secs(HOUR), max: Duration::from_secs(DAY) },
    };
    let wish = Wish { ttl_seconds, client_time_ms: START as i64 * 1000 };
    grant::decide(&Caller::for_test("shop", "frontend"), wish, granter, START * 1000).unwrap()
}

/// A CSR that asks for everything it must not get.
fn greedy(key: &KeyPair) -> Vec<u8> {
    let mut params = CertificateParams::new(["evil.example".to_owned(), "10.0.0.1".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning, ExtendedKeyUsagePurpose::Any];
    params.subject_alt_names.push(SanType::URI("spiffe://mesh.test/ns/bank/sa/admin".try_into().unwrap()));
    csr_of(params, key)
}

fn signed(authority: &Authority, key: &KeyPair, ttl: u32) -> Signed {
    let proven = csr::verify(&greedy(key)).unwrap();
    leaf(authority, &grant(authority, ttl), proven.public(), now()).unwrap()
}

#[test]
fn a_csr_asking_for_ca_and_100_years_gets_neither() {
    let authority = authority();
    let signed = signed(&authority, &p256(), u32::MAX);
    let (rest, leaf) = X509Certificate::from_der(&signed.chain()[0]).unwrap();
    assert!(rest.is_empty());
    let constraints = leaf.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && !constraints.value.ca);
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature());
    assert_eq!(usage.value.flags, 1, "digitalSignature and nothing else");
    let purposes = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(purposes.server_auth && purposes.client_auth && !purposes.any && !purposes.code_signing);
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical, "the subject is empty");
    let names: Vec<_> = names.value.general_names.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["URI(spiffe://mesh.test/ns/shop/sa/frontend)"]);
    assert!(leaf.subject().iter().next().is_none());
    assert_eq!(leaf.validity().not_after.timestamp(), (START + DAY) as i64);
    assert_eq!(leaf.validity().not_before.timestamp(), START as i64 - 60);
}

#[test]
fn each_kind_of_key_is_signed_and_accepted_by_our_verifier() {
    let authority = authority();
    for key in
        [p256(), KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap(), KeyPair::generate_for(&PKCS_ED25519).unwrap()]
    {
        let signed = signed(&authority, &key, 0);
        assert_eq!(signed.verified().id().as_str(), "spiffe://mesh.test/ns/shop/sa/frontend");
        assert_eq!(*signed.verified().spki_sha256(), sha256(&key.subject_public_key_info()));
        assert_eq!(signed.chain().len(), 2, "leaf and issuer, no root");
    }
}

#[test]
fn serials_are_random_positive_and_long_even_for_one_key() {
    let (authority, key) = (authority(), p256());
    let mut seen = HashSet::new();
    for _ in 0..50 {
        let signed = signed(&authority, &key, 0);
        let (_, leaf) = X509Certificate::from_der(&signed.chain()[0]).unwrap();
        let raw = leaf.raw_serial();
        assert_eq!(raw.len(), 16);
        assert!(raw[0] < 0x80, "positive");
        assert_eq!(hex(raw), signed.serial());
        assert!(seen.insert(signed.serial().to_owned()));
    }
}

#[test]
fn leaf_and_issuer_name_their_signers_keys() {
    let authority = authority();
    let signed = signed(&authority, &p256(), 0);
    let ids = |der: &CertificateDer<'_>| {
        let (_, certificate) = X509Certificate::from_der(der).unwrap();
        let mut ids = (None, None);
        for extension in certificate.extensions() {
            match extension.parsed_extension() {
                x509_parser::extensions::ParsedExtension::SubjectKeyIdentifier(id) => ids.0 = Some(id.0.to_vec()),
                x509_parser::extensions::ParsedExtension::AuthorityKeyIdentifier(id) => {
                    ids.1 = id.key_identifier.as_ref().map(|id| id.0.to_vec());
                }
                _ => {}
            }
        }
        ids
    };
    let (leaf, issuer) = (ids(&signed.chain()[0]), ids(&signed.chain()[1]));
    let root = ids(authority.root().certificate());
    assert!(leaf.0.is_some() && issuer.0.is_some() && root.0.is_some());
    assert_eq!(leaf.1, issuer.0);
    assert_eq!(issuer.1, root.0);
}

#[test]
fn a_product_that_our_verifier_refuses_is_not_released() {
    let authority = authority();
    let good = grant(&authority, 0);
    // Signed now, judged when the leaf has ended: the check at the end of signing must bite.
    let late = seconds(START + 2 * HOUR);
    assert!(matches!(leaf(&authority, &good, &p256(), late), Err(SignError::Refused(_))));
}

#[test]
fn openssl_accepts_the_chain_and_sees_the_profile() {
    let authority = authority();
    let dir = tempfile::tempdir().unwrap();
    let signed = signed(&authority, &p256(), 0);
    let paths = [
        file(dir.path(), "root.pem", authority.root().pem()),
        file(dir.path(), "issuer.pem", pem(&signed.chain()[1])),
        file(dir.path(), "leaf.pem", pem(&signed.chain()[0])),
    ];
    let [root, issuer, leaf] = paths.each_ref().map(|path| path.to_str().unwrap());
    let at = START.to_string();
    for purpose in ["sslserver", "sslclient"] {
        let verify = ["verify", "-x509_strict", "-attime", &at, "-purpose", purpose, "-CAfile", root];
        let Some(said) = openssl(&[&verify[..], &["-untrusted", issuer, leaf]].concat()) else { return };
        assert!(said.contains("leaf.pem: OK"), "{said}");
    }
    let said = openssl(&["x509", "-in", leaf, "-noout", "-text"]).unwrap();
    for line in [
        "X509v3 Subject Alternative Name: critical",
        "URI:spiffe://mesh.test/ns/shop/sa/frontend",
        "X509v3 Basic Constraints: critical",
        "CA:FALSE",
        "X509v3 Key Usage: critical",
        "TLS Web Server Authentication, TLS Web Client Authentication",
    ] {
        assert!(said.contains(line), "{line} is missing in {said}");
    }
    assert!(!said.contains("evil.example") && !said.contains("admin"), "{said}");
    let said = openssl(&["x509", "-in", issuer, "-noout", "-text"]).unwrap();
    for line in ["CA:TRUE, pathlen:0", "URI:spiffe://mesh.test", "Certificate Sign"] {
        assert!(said.contains(line), "{line} is missing in {said}");
    }
    assert!(!said.contains("CRL Sign") && !said.contains("Digital Signature"), "{said}");
    let said = openssl(&["x509", "-in", root, "-noout", "-text"]).unwrap();
    assert!(said.contains("CA:TRUE, pathlen:1"), "{said}");
}
