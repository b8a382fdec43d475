//! Checks 1, 4, 5, 8, 9 and 12 of the validation list: what a leaf must be before any signature is looked at.

use crate::corpus::case;
use crate::support::*;
use countersign_identity::{
    CertificateError, ChainError, LeafError, MAX_CHAIN_BYTES, SpiffeId, SpiffeIdError, VerifyError,
};

#[track_caller]
fn leaf_error(name: &str) -> LeafError {
    match case(name).refused() {
        VerifyError::Leaf(reason) => reason,
        other => panic!("{name}: {other:?}"),
    }
}

#[track_caller]
fn certificate_error(name: &str) -> (usize, CertificateError) {
    match case(name).refused() {
        VerifyError::Certificate { index, reason } => (index, reason),
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn a_proper_chain_proves_the_id_of_its_leaf() {
    let case = case("issuer_and_leaf");
    let verified = case.accepted();
    assert_eq!(*verified.id(), SpiffeId::parse(ID).unwrap());
    assert_eq!(verified.not_after(), at(NOW + HOUR));
    let bundles = case.bundles();
    let bundle = bundles.get(&td("cluster.local")).unwrap();
    assert!(bundle.contains_root(verified.anchor_sha256()));
}

#[test]
fn the_key_hash_is_that_of_the_leafs_key() {
    let case = case("issuer_and_leaf");
    let key = rcgen::KeyPair::try_from(case.key.as_slice()).unwrap();
    let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &spki);
    assert_eq!(case.accepted().spki_sha256(), digest.as_ref());
}

#[test]
fn only_one_certificate_may_stand_in_one_place() {
    assert_eq!(certificate_error("trailing_byte"), (0, CertificateError::TrailingBytes));
    assert_eq!(certificate_error("two_in_one"), (0, CertificateError::TrailingBytes));
    assert_eq!(certificate_error("issuer_trailing_byte"), (1, CertificateError::TrailingBytes));
}

#[test]
fn bytes_that_are_no_certificate_are_refused() {
    assert_eq!(certificate_error("not_der"), (0, CertificateError::NotDer));
    assert_eq!(certificate_error("cut_short"), (0, CertificateError::NotDer));
}

#[test]
fn no_cut_and_no_flipped_byte_makes_the_verifier_panic_or_accept() {
    let case = case("directly_under_root");
    let (bundles, leaf) = (case.bundles(), case.chain[0].to_vec());
    let verify = |bytes: &[u8]| {
        let chain = [rustls_pki_types::CertificateDer::from(bytes)];
        countersign_identity::verify_svid(&chain, &bundles, case.purpose, now())
    };
    assert!(verify(&leaf).is_ok());
    for end in 0..leaf.len() {
        assert!(verify(&leaf[..end]).is_err(), "cut at {end}");
    }
    for place in 0..leaf.len() {
        let mut spoilt = leaf.clone();
        spoilt[place] ^= 0x41;
        assert!(verify(&spoilt).is_err(), "flipped at {place}");
    }
}

#[test]
fn an_empty_chain_is_refused() {
    let error = case("no_certificate").refused();
    assert_eq!(error, VerifyError::Chain(ChainError::Empty));
}

#[test]
fn a_long_or_huge_chain_is_not_looked_into() {
    let error = case("five_certificates").refused();
    assert_eq!(error, VerifyError::Chain(ChainError::TooMany(5)));
    let error = case("huge_chain").refused();
    assert!(matches!(error, VerifyError::Chain(ChainError::TooLarge(n)) if n > MAX_CHAIN_BYTES), "{error:?}");
}

#[test]
fn a_ca_certificate_is_no_leaf() {
    assert_eq!(leaf_error("leaf_is_ca"), LeafError::Ca);
}

#[test]
fn a_leaf_must_say_that_it_is_no_ca() {
    case("leaf_with_empty_basic_constraints").accepted();
    let missing = leaf_error("leaf_without_basic_constraints");
    assert_eq!(missing, LeafError::NoBasicConstraints);
}

#[test]
fn a_leaf_with_malformed_basic_constraints_is_refused() {
    for value in [&[0x30, 0x03, 0x01, 0x01, 0x01][..], &[0x30, 0x03, 0x02, 0x01, 0x00], &[0x30, 0x00, 0x05, 0x00], &[]]
    {
        let refused = with_leaf(|p| {
            p.is_ca = rcgen::IsCa::NoCa;
            p.custom_extensions.push(extension(19, true, value.to_vec()));
        });
        let reason = CertificateError::BadExtension("basic constraints");
        let expected = VerifyError::Certificate { index: 0, reason };
        assert_eq!(refused.refused(), expected, "{value:02x?}");
    }
}

#[test]
fn a_leaf_must_be_for_digital_signatures() {
    assert_eq!(leaf_error("leaf_without_key_usage"), LeafError::NoKeyUsage);
    let missing = leaf_error("leaf_without_digital_signature");
    assert_eq!(missing, LeafError::NoDigitalSignature);
    with_leaf(|p| p.key_usages.push(rcgen::KeyUsagePurpose::KeyEncipherment)).accepted();
}

#[test]
fn a_leaf_that_may_sign_certificates_or_crls_is_refused() {
    assert_eq!(leaf_error("leaf_with_cert_sign"), LeafError::MaySign);
    assert_eq!(leaf_error("leaf_with_crl_sign"), LeafError::MaySign);
}

#[test]
fn a_key_usage_with_the_ninth_bit_is_read_right() {
    let raw = |bytes: [u8; 5]| {
        with_leaf(move |p| {
            p.key_usages.clear();
            p.custom_extensions.push(extension(15, true, bytes.to_vec()));
        })
    };
    raw([3, 3, 7, 0x88, 0x80]).accepted();
    let error = raw([3, 3, 7, 0x8c, 0x80]).refused();
    assert_eq!(error, VerifyError::Leaf(LeafError::MaySign));
}

#[test]
fn a_key_usage_that_is_not_der_is_refused() {
    let malformed = (0, CertificateError::BadExtension("key usage"));
    assert_eq!(certificate_error("leaf_with_padded_key_usage"), malformed);
    assert_eq!(certificate_error("leaf_with_key_usage_and_more"), malformed);
    for value in [&[3, 2, 0, 0x80][..], &[3, 2, 8, 0x80], &[3, 1, 0], &[0x23, 2, 7, 0x80], &[3, 0x81, 2, 7, 0x80], &[]]
    {
        let refused = with_leaf(|p| {
            p.key_usages.clear();
            p.custom_extensions.push(extension(15, true, value.to_vec()));
        });
        let (index, reason) = malformed;
        assert_eq!(refused.refused(), VerifyError::Certificate { index, reason }, "{value:02x?}");
    }
}

#[test]
fn two_uri_sans_are_refused() {
    assert_eq!(leaf_error("two_uris"), LeafError::SeveralUris(2));
    assert_eq!(leaf_error("same_uri_twice"), LeafError::SeveralUris(2));
}

#[test]
fn a_second_uri_that_is_not_text_counts() {
    assert_eq!(leaf_error("second_uri_not_text"), LeafError::SeveralUris(2));
    assert_eq!(leaf_error("only_uri_not_text"), LeafError::UriNotText);
}

#[test]
fn a_leaf_without_uri_is_refused() {
    assert_eq!(leaf_error("no_uri"), LeafError::NoUri);
    assert_eq!(leaf_error("no_names"), LeafError::NoUri);
}

#[test]
fn a_name_that_cannot_be_read_is_refused_since_it_could_hide_a_uri() {
    let malformed = (0, CertificateError::BadExtension("subject alternative name"));
    assert_eq!(certificate_error("unreadable_other_name"), malformed);
    assert_eq!(certificate_error("constructed_uri"), malformed);
    assert_eq!(certificate_error("name_of_unknown_kind"), malformed);
}

#[test]
fn names_of_other_kinds_are_allowed_and_ignored() {
    case("leaf_with_dns_name").accepted();
    let ip = [10, 0, 0, 1];
    let directory = der(0x30, &[]);
    with_leaf(|p| {
        san(p, &[(0x87, &ip), (0x86, ID.as_bytes()), (0x81, b"a@b"), (0xa4, &directory)]);
    })
    .accepted();
}

#[test]
fn a_uri_that_is_no_spiffe_id_of_a_workload_is_refused() {
    let error = leaf_error("web_uri");
    assert_eq!(error, LeafError::NoSpiffeId(SpiffeIdError::Scheme));
    let error = leaf_error("dots_in_path");
    assert_eq!(error, LeafError::NoSpiffeId(SpiffeIdError::DotSegment));
    assert_eq!(leaf_error("no_path"), LeafError::NoPath);
}

#[test]
fn an_id_in_capitals_is_the_same_id() {
    let capitals = with_leaf(|p| {
        p.subject_alt_names = vec![uri("SPIFFE://Cluster.LOCAL/ns/shop/sa/backend")];
    });
    assert_eq!(capitals.accepted().id().as_str(), ID);
}

#[test]
fn an_unknown_critical_extension_is_refused_and_an_uncritical_one_is_not() {
    let refused = certificate_error("unknown_critical_extension");
    assert_eq!(refused, (0, CertificateError::UnknownCriticalExtension));
    with_leaf(|p| p.custom_extensions.push(extension(99, false, vec![5, 0]))).accepted();
}

#[test]
fn an_extension_that_occurs_twice_is_refused() {
    let twice = (0, CertificateError::DuplicateExtension);
    assert_eq!(certificate_error("extension_twice"), twice);
    assert_eq!(certificate_error("unknown_extension_twice"), twice);
}

#[test]
fn a_flood_of_extensions_is_refused() {
    let flood = with_leaf(|p| {
        p.custom_extensions.extend((100..200).map(|n| extension(n, false, vec![5, 0])));
    });
    let reason = CertificateError::TooManyExtensions;
    assert_eq!(flood.refused(), VerifyError::Certificate { index: 0, reason });
}

#[test]
fn only_version_3_is_read() {
    assert_eq!(certificate_error("version_1"), (0, CertificateError::NotVersion3));
}

#[test]
fn the_algorithm_outside_must_be_the_signed_one() {
    let refused = certificate_error("other_algorithm_outside");
    assert_eq!(refused, (0, CertificateError::SignatureAlgorithmMismatch));
}
