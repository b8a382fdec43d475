use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512, PKCS_ED25519, SanType,
};

use super::*;
use crate::testing::{csr, csr_of, openssl, p256, rsa};

#[test]
fn the_three_allowed_kinds_of_key_pass() {
    let keys = [
        (p256(), KeyKind::P256),
        (KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap(), KeyKind::P384),
        (KeyPair::generate_for(&PKCS_ED25519).unwrap(), KeyKind::Ed25519),
    ];
    for (key, kind) in keys {
        let proven = verify(&csr(&key)).unwrap();
        assert_eq!(proven.kind(), kind);
        assert_eq!(proven.public().der_bytes(), key.public_key_raw());
        assert_eq!(proven.public().subject_public_key_info(), key.subject_public_key_info());
        assert_eq!(*proven.sha256(), sha256(&key.subject_public_key_info()));
    }
}

#[test]
fn an_rsa_key_gets_a_refusal_that_says_what_is_allowed() {
    let text = verify(&csr(rsa())).unwrap_err().to_string();
    assert_eq!(text, "the CSR's key is RSA with 2048 bits; allowed are ECDSA P-256, ECDSA P-384 and Ed25519");
}

#[test]
fn other_kinds_of_key_are_refused_by_name() {
    let p521 = KeyPair::generate_for(&PKCS_ECDSA_P521_SHA512).unwrap();
    assert_eq!(verify(&csr(&p521)).unwrap_err(), CsrError::KeyType("ECDSA P-521".to_owned()));
    let dir = tempfile::tempdir().unwrap();
    for (options, named) in [
        (&["-algorithm", "ED448"][..], "Ed448"),
        (&["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:secp256k1"], "ECDSA on the curve 1.3.132.0.10"),
        (
            &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-pkeyopt", "ec_param_enc:explicit"],
            "ECDSA with explicit curve parameters",
        ),
    ] {
        let Some(der) = openssl_csr(dir.path(), options, &[]) else { return };
        assert_eq!(verify(&der).unwrap_err(), CsrError::KeyType(named.to_owned()));
    }
}

/// A CSR that openssl made.
fn openssl_csr(dir: &std::path::Path, key_options: &[&str], req_options: &[&str]) -> Option<Vec<u8>> {
    let (key, csr) = (dir.join("key.pem"), dir.join("csr.der"));
    let (key, csr) = (key.to_str().unwrap(), csr.to_str().unwrap());
    openssl(&[&["genpkey", "-out", key], key_options].concat())?;
    let req = ["req", "-new", "-key", key, "-subj", "/CN=x", "-outform", "DER", "-out", csr];
    openssl(&[&req[..], req_options].concat())?;
    Some(std::fs::read(csr).unwrap())
}

#[test]
fn requests_made_by_openssl_pass_whatever_hash_they_chose() {
    let dir = tempfile::tempdir().unwrap();
    for (curve, hash, kind) in [
        ("P-256", "-sha256", KeyKind::P256),
        // rcgen's own CSR type takes the key for P-384 here, since it looks at the signature's algorithm.
        ("P-256", "-sha384", KeyKind::P256),
        ("P-384", "-sha384", KeyKind::P384),
        ("P-384", "-sha256", KeyKind::P384),
    ] {
        let curve = format!("ec_paramgen_curve:{curve}");
        let Some(der) = openssl_csr(dir.path(), &["-algorithm", "EC", "-pkeyopt", &curve], &[hash]) else { return };
        assert_eq!(verify(&der).unwrap().kind(), kind, "{curve} {hash}");
    }
    let Some(der) = openssl_csr(dir.path(), &["-algorithm", "ED25519"], &[]) else { return };
    assert_eq!(verify(&der).unwrap().kind(), KeyKind::Ed25519);
}

#[test]
fn a_request_without_proof_of_possession_is_refused() {
    // Another's public key in our request: our signature does not fit it.
    let (ours, victim) = (p256(), p256());
    let mut der = csr(&ours);
    let at = der.windows(65).position(|window| window == ours.public_key_raw()).unwrap();
    der[at..at + 65].copy_from_slice(victim.public_key_raw());
    assert_eq!(verify(&der).unwrap_err(), CsrError::NoPossession);

    let mut torn = csr(&ours);
    *torn.last_mut().unwrap() ^= 1;
    assert_eq!(verify(&torn).unwrap_err(), CsrError::NoPossession);
}

#[test]
fn size_form_and_trailing_bytes_are_bounded() {
    assert_eq!(verify(&vec![0x30; MAX_CSR + 1]).unwrap_err(), CsrError::TooLarge { bytes: MAX_CSR + 1 });
    let key = p256();
    for bad in [&b""[..], b"\x30", b"-----BEGIN CERTIFICATE REQUEST-----", &[&csr(&key)[..], &[0]].concat()] {
        assert_eq!(verify(bad).unwrap_err(), CsrError::Malformed);
    }
    let certificate = CertificateParams::default().self_signed(&key).unwrap();
    assert_eq!(verify(certificate.der()).unwrap_err(), CsrError::Malformed, "a certificate is no request");
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(format!("x:{}", "y".repeat(MAX_CSR)).try_into().unwrap())];
    assert!(matches!(verify(&csr_of(params, &key)), Err(CsrError::TooLarge { .. })));
}

#[test]
fn what_a_request_asks_for_does_not_matter() {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    params.subject_alt_names = vec![SanType::URI("spiffe://mesh.test/ns/bank/sa/admin".try_into().unwrap())];
    let key = p256();
    assert_eq!(verify(&csr_of(params, &key)).unwrap().sha256(), verify(&csr(&key)).unwrap().sha256());
}

#[test]
fn a_compressed_point_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let options = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
    let Some(_) = openssl_csr(dir.path(), &options, &[]) else { return };
    let (key, compressed, csr) = (dir.path().join("key.pem"), dir.path().join("c.pem"), dir.path().join("c.der"));
    let (key, compressed, csr) = (key.to_str().unwrap(), compressed.to_str().unwrap(), csr.to_str().unwrap());
    openssl(&["ec", "-in", key, "-conv_form", "compressed", "-out", compressed]);
    openssl(&["req", "-new", "-key", compressed, "-subj", "/CN=x", "-outform", "DER", "-out", csr]);
    assert_eq!(verify(&std::fs::read(csr).unwrap()).unwrap_err(), CsrError::KeyEncoding(KeyKind::P256));
}

proptest! {
    #[test]
    fn one_changed_byte_is_never_accepted_with_another_key(at in any::<proptest::sample::Index>(), flip in 1u8..) {
        let key = p256();
        let mut der = csr(&key);
        let at = at.index(der.len());
        der[at] ^= flip;
        if let Ok(proven) = verify(&der) {
            prop_assert_eq!(proven.public().der_bytes(), key.public_key_raw());
        }
    }

    #[test]
    fn any_bytes_are_judged_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(verify(&bytes).is_err());
    }
}
