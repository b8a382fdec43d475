//! Every chain that a promise speaks of, by name, with our verdict: `""` for accepted, else the error's label.
//!
//! The promises (`leaf`, `path`) look at single chains closely; the foreign judges go through all of them.

use crate::support::*;
use countersign_identity::MAX_CHAIN_BYTES;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyPair, KeyUsagePurpose,
    NameConstraints,
};

pub struct Entry {
    pub name: &'static str,
    /// `""`: accepted; else the label of the error.
    pub ours: &'static str,
    pub make: fn() -> Case,
}

const fn yes(name: &'static str, make: fn() -> Case) -> Entry {
    Entry { name, ours: "", make }
}

const fn no(name: &'static str, ours: &'static str, make: fn() -> Case) -> Entry {
    Entry { name, ours, make }
}

pub const CORPUS: &[Entry] = &[
    // Right.
    yes("issuer_and_leaf", || with_leaf(|_| {})),
    yes("as_server", || with_leaf(|_| {}).of_server()),
    yes("directly_under_root", directly_under_root),
    yes("two_intermediates", two_intermediates),
    yes("root_in_chain", root_in_chain),
    yes("leaf_without_eku", || with_leaf(|p| p.extended_key_usages.clear())),
    yes("leaf_with_dns_name", || with_leaf(|p| p.subject_alt_names.push(dns("a.svc")))),
    yes("leaf_with_empty_basic_constraints", || {
        with_leaf(|p| {
            p.is_ca = IsCa::NoCa;
            p.custom_extensions.push(extension(19, true, vec![0x30, 0]));
        })
    }),
    yes("last_second", || with_leaf(|_| {}).at(NOW + HOUR)),
    yes("first_second", || with_leaf(|_| {}).at(NOW - 60)),
    yes("issuer_without_key_usage", || with_issuer(|p| p.key_usages.clear())),
    yes("issuer_with_own_id", || with_issuer(|p| p.subject_alt_names = vec![uri("spiffe://cluster.local")])),
    yes("issuer_with_own_id_and_slash", || with_issuer(|p| p.subject_alt_names = vec![uri("spiffe://cluster.local/")])),
    yes("root_path_len_met", || with_root(|p| p.is_ca = ca(1))),
    yes("issuer_path_len_met", || with_issuer(|p| p.is_ca = ca(0))),
    yes("issuer_with_both_ekus", || with_issuer(both_ekus)),
    yes("issuer_with_dns_constraint", dns_constraint),
    yes("p384", || with_keys(&rcgen::PKCS_ECDSA_P384_SHA384)),
    yes("ed25519", || with_keys(&rcgen::PKCS_ED25519)),
    yes("one_of_two_roots_of_same_name_and_key_allows", two_roots_one_allows),
    yes("unrelated_extra_certificate", unrelated_extra),
    // 1: form of the bytes.
    no("no_certificate", "no_certificate", || {
        let mut case = with_leaf(|_| {});
        case.chain.clear();
        case
    }),
    no("trailing_byte", "malformed_certificate", || with_leaf(|_| {}).leaf_bytes(|b| b.push(0))),
    no("two_in_one", "malformed_certificate", || with_leaf(|_| {}).leaf_bytes(|b| b.extend(b.clone()))),
    no("cut_short", "malformed_certificate", || with_leaf(|_| {}).leaf_bytes(|b| b.truncate(b.len() - 1))),
    no("not_der", "malformed_certificate", || with_leaf(|_| {}).leaf_bytes(|b| *b = b"no certificate".to_vec())),
    no("issuer_trailing_byte", "malformed_certificate", || {
        let mut case = with_leaf(|_| {});
        let mut bytes = case.chain[1].to_vec();
        bytes.push(0);
        case.chain[1] = bytes.into();
        case
    }),
    no("five_certificates", "chain_too_long", five_certificates),
    no("huge_chain", "chain_too_long", huge_chain),
    // 2: the path to a root of the right trust domain.
    no("stranger", "unknown_issuer", || {
        let mut case = with_leaf(|_| {});
        case.trusted[0].1 = vec![Ca::root().der()];
        case
    }),
    no("stranger_of_same_name", "bad_signature", stranger_of_same_name),
    no("issuer_left_out", "unknown_issuer", || {
        let mut case = with_leaf(|_| {});
        case.chain.truncate(1);
        case
    }),
    no("unknown_trust_domain", "unknown_trust_domain", || {
        with_leaf(|p| p.subject_alt_names = vec![uri("spiffe://other.example/ns/a/sa/b")])
    }),
    no("root_of_another_trust_domain", "unknown_issuer", other_domains_root),
    no("empty_bundle", "no_roots", || {
        let mut case = with_leaf(|_| {});
        case.trusted[0].1.clear();
        case
    }),
    // 3: time.
    no("leaf_expired", "expired", || with_leaf(|_| {}).at(NOW + HOUR + 1)),
    no("leaf_not_yet_valid", "not_yet_valid", || with_leaf(|_| {}).at(NOW - 61)),
    no("issuer_expired", "expired", || with_issuer(|p| validity(p, -HOUR, -1))),
    no("issuer_not_yet_valid", "not_yet_valid", || with_issuer(|p| validity(p, 1, HOUR))),
    no("root_expired", "root_expired", || with_root(|p| validity(p, -HOUR, 5)).at(NOW + 6)),
    // 4, 5: the leaf is a leaf.
    no("leaf_is_ca", "leaf_basic_constraints", || with_leaf(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))),
    no("leaf_without_basic_constraints", "leaf_basic_constraints", || with_leaf(|p| p.is_ca = IsCa::NoCa)),
    no("leaf_without_key_usage", "leaf_key_usage", || with_leaf(|p| p.key_usages.clear())),
    no("leaf_without_digital_signature", "leaf_key_usage", || {
        with_leaf(|p| p.key_usages = vec![KeyUsagePurpose::KeyAgreement])
    }),
    no("leaf_with_cert_sign", "leaf_key_usage", || with_leaf(|p| p.key_usages.push(KeyUsagePurpose::KeyCertSign))),
    no("leaf_with_crl_sign", "leaf_key_usage", || with_leaf(|p| p.key_usages.push(KeyUsagePurpose::CrlSign))),
    no("leaf_with_padded_key_usage", "malformed_certificate", || {
        with_leaf(|p| raw_key_usage(p, &[0x03, 0x03, 0x00, 0x80, 0x00]))
    }),
    no("leaf_with_key_usage_and_more", "malformed_certificate", || {
        with_leaf(|p| raw_key_usage(p, &[0x03, 0x02, 0x07, 0x80, 0x05, 0x00]))
    }),
    // 8, 9: one URI, a SPIFFE id.
    no("no_uri", "leaf_uri", || with_leaf(|p| p.subject_alt_names = vec![dns("backend")])),
    no("no_names", "leaf_uri", || with_leaf(|p| p.subject_alt_names.clear())),
    no("two_uris", "leaf_uri", || {
        with_leaf(|p| p.subject_alt_names.push(uri("spiffe://cluster.local/ns/shop/sa/admin")))
    }),
    no("same_uri_twice", "leaf_uri", || with_leaf(|p| p.subject_alt_names.push(uri(ID)))),
    no("second_uri_not_text", "leaf_uri", || with_leaf(|p| san(p, &[(0x86, ID.as_bytes()), (0x86, b"spiffe://\xff")]))),
    no("only_uri_not_text", "leaf_uri", || with_leaf(|p| san(p, &[(0x86, b"spiffe://cluster.local/\xff")]))),
    no("unreadable_other_name", "malformed_certificate", || {
        with_leaf(|p| san(p, &[(0x86, ID.as_bytes()), (0x82, b"\xff")]))
    }),
    no("constructed_uri", "malformed_certificate", || {
        with_leaf(|p| san(p, &[(0x86, ID.as_bytes()), (0xa6, b"\x86\x00")]))
    }),
    no("name_of_unknown_kind", "malformed_certificate", || {
        with_leaf(|p| san(p, &[(0x86, ID.as_bytes()), (0x89, b"x")]))
    }),
    no("web_uri", "leaf_spiffe_id", || {
        with_leaf(|p| p.subject_alt_names = vec![uri("https://cluster.local/ns/shop/sa/b")])
    }),
    no("no_path", "leaf_spiffe_id", || with_leaf(|p| p.subject_alt_names = vec![uri("spiffe://cluster.local")])),
    no("dots_in_path", "leaf_spiffe_id", || {
        with_leaf(|p| p.subject_alt_names = vec![uri("spiffe://cluster.local/ns/../sa/b")])
    }),
    // 6, 7, 10: intermediates, path lengths.
    no("issuer_is_leaf", "intermediate", || with_issuer(|p| p.is_ca = IsCa::ExplicitNoCa)),
    no("issuer_without_basic_constraints", "intermediate", || with_issuer(|p| p.is_ca = IsCa::NoCa)),
    no("issuer_without_cert_sign", "intermediate", || with_issuer(|p| p.key_usages = vec![KeyUsagePurpose::CrlSign])),
    no("issuer_hiding_its_key_usage", "malformed_certificate", hidden_key_usage),
    no("issuer_path_len_exceeded", "path_too_long", issuer_path_len),
    no("root_path_len_exceeded", "path_too_long", || with_root(|p| p.is_ca = ca(0))),
    no("issuer_of_another_domain", "intermediate", || {
        with_issuer(|p| p.subject_alt_names = vec![uri("spiffe://other.example")])
    }),
    no("issuer_with_workload_id", "intermediate", || with_issuer(|p| p.subject_alt_names = vec![uri(ID)])),
    no("issuer_with_two_uris", "intermediate", || {
        with_issuer(|p| p.subject_alt_names = vec![uri("spiffe://cluster.local"), uri("spiffe://cluster.local/")])
    }),
    no("issuer_with_web_uri", "intermediate", || {
        with_issuer(|p| p.subject_alt_names = vec![uri("https://cluster.local")])
    }),
    // 11: extended key usage.
    no("server_only_leaf_as_client", "extended_key_usage", || {
        with_leaf(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth])
    }),
    no("client_only_leaf_as_server", "extended_key_usage", || {
        with_leaf(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]).of_server()
    }),
    no("server_only_issuer", "extended_key_usage", || {
        with_issuer(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth])
    }),
    // 12: RFC 5280.
    no("unknown_critical_extension", "malformed_certificate", || {
        with_leaf(|p| p.custom_extensions.push(extension(99, true, vec![0x05, 0])))
    }),
    no("extension_twice", "malformed_certificate", || {
        with_leaf(|p| p.custom_extensions.push(extension(15, true, vec![3, 2, 7, 0x80])))
    }),
    no("unknown_extension_twice", "malformed_certificate", || {
        with_leaf(|p| {
            p.custom_extensions.push(extension(99, false, vec![0x05, 0]));
            p.custom_extensions.push(extension(99, false, vec![0x05, 0]));
        })
    }),
    no("version_1", "malformed_certificate", version_1),
    no("other_algorithm_outside", "malformed_certificate", || {
        with_leaf(|_| {}).leaf_bytes(|b| {
            let last = b.windows(8).rposition(|w| w == ECDSA_SHA256).unwrap();
            b[last + 7] = 3;
        })
    }),
    no("spoilt_signature", "bad_signature", || with_leaf(|_| {}).leaf_bytes(|b| *b.last_mut().unwrap() ^= 1)),
    no("signed_by_p521", "signature_algorithm", signed_by_p521),
    // Name constraints.
    no("issuer_with_uri_constraint", "name_constraints", || {
        with_issuer(|p| p.custom_extensions.push(uri_constraint()))
    }),
    no("outside_dns_constraint", "name_constraints", || {
        let mut case = dns_constraint();
        let root = Ca::root();
        let mut params = issuer_params();
        params.name_constraints = permitted_dns();
        let issuer = root.sign_ca(params);
        let mut leaf = leaf_params();
        leaf.subject_alt_names.push(dns("www.example.org"));
        let leaf = issuer.sign_leaf(&leaf);
        case.chain = vec![leaf.der, issuer.der()];
        case.key = leaf.key;
        case.trusted[0].1 = vec![root.der()];
        case
    }),
];

pub fn ca(path_len: u8) -> IsCa {
    IsCa::Ca(BasicConstraints::Constrained(path_len))
}

fn both_ekus(params: &mut CertificateParams) {
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
}

fn raw_key_usage(params: &mut CertificateParams, value: &[u8]) {
    params.key_usages.clear();
    params.custom_extensions.push(extension(15, true, value.to_vec()));
}

/// `permittedSubtrees: [URI "cluster.local"]`.
pub fn uri_constraint() -> rcgen::CustomExtension {
    let subtree = der(0x30, &[&der(0x86, &[b"cluster.local"])]);
    extension(30, true, der(0x30, &[&der(0xa0, &[&subtree])]))
}

pub fn permitted_dns() -> Option<NameConstraints> {
    Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName("cluster.local".to_owned())],
        excluded_subtrees: vec![],
    })
}

fn directly_under_root() -> Case {
    let root = Ca::root();
    Case::new(root.sign_leaf(&leaf_params()), &[], &root)
}

fn two_intermediates() -> Case {
    let root = Ca::root();
    let upper = root.sign_ca(issuer_params());
    let lower = upper.sign_ca(issuer_params());
    Case::new(lower.sign_leaf(&leaf_params()), &[&lower, &upper], &root)
}

fn root_in_chain() -> Case {
    let root = Ca::root();
    let issuer = root.sign_ca(issuer_params());
    Case::new(issuer.sign_leaf(&leaf_params()), &[&issuer, &root], &root)
}

fn dns_constraint() -> Case {
    with_issuer(|p| p.name_constraints = permitted_dns())
}

pub fn with_keys(algorithm: &'static rcgen::SignatureAlgorithm) -> Case {
    let key = || KeyPair::generate_for(algorithm).unwrap();
    let root = Ca::self_signed(root_params(), key());
    let issuer = root.sign_ca_with(issuer_params(), key());
    Case::new(issuer.sign_leaf_with(&leaf_params(), &key()), &[&issuer], &root)
}

/// One root renewed with the same key: the older copy allows no intermediate, the newer allows one.
fn two_roots_one_allows() -> Case {
    let key = key();
    let mut params = root_params();
    let newer = Ca::self_signed(params.clone(), KeyPair::try_from(key.serialized_der()).unwrap());
    params.is_ca = ca(0);
    let older = Ca::self_signed(params, key);
    let issuer = newer.sign_ca(issuer_params());
    let mut case = Case::new(issuer.sign_leaf(&leaf_params()), &[&issuer], &older);
    case.trusted[0].1.push(newer.der());
    case
}

fn unrelated_extra() -> Case {
    let mut case = with_leaf(|_| {});
    case.chain.insert(1, Ca::root().der());
    case
}

fn five_certificates() -> Case {
    let mut case = root_in_chain();
    case.chain.extend([Ca::root().der(), Ca::root().der()]);
    case
}

fn huge_chain() -> Case {
    with_leaf(|p| {
        let filler = der(0x04, &[&vec![0; MAX_CHAIN_BYTES - 1500]]);
        p.custom_extensions.push(extension(98, false, filler));
    })
    .leaf_bytes(|b| b.extend([0; 1500]))
}

/// Another CA that calls itself the same.
fn stranger_of_same_name() -> Case {
    let params = root_params();
    let (ours, theirs) = (Ca::self_signed(params.clone(), key()), Ca::self_signed(params, key()));
    let issuer = theirs.sign_ca(issuer_params());
    Case::new(issuer.sign_leaf(&leaf_params()), &[&issuer], &ours)
}

/// A CA that we trust for `other.example` issues an id of `cluster.local`.
pub fn other_domains_root() -> Case {
    let other = Ca::root();
    let mut case = Case::new(other.sign_leaf(&leaf_params()), &[], &Ca::root());
    case.trusted.push(("other.example", vec![other.der()]));
    case
}

fn issuer_path_len() -> Case {
    let root = Ca::root();
    let mut params = issuer_params();
    params.is_ca = ca(0);
    let upper = root.sign_ca(params);
    let lower = upper.sign_ca(issuer_params());
    Case::new(lower.sign_leaf(&leaf_params()), &[&lower, &upper], &root)
}

/// A KeyUsage without keyCertSign under a second spelling of its OID (a leading zero group): absent to who compares bytes.
fn hidden_key_usage() -> Case {
    let root = Ca::root();
    let mut params = issuer_params();
    params.key_usages.clear();
    // 2.5.29.1.15 in four bytes, made into 55 1d 80 0f below.
    let value = vec![0x03, 0x02, 0x01, 0x02];
    let hidden = rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 1, 15], value);
    params.custom_extensions.push(hidden);
    let issuer = root.sign_ca(params);
    let mut case = Case::new(issuer.sign_leaf(&leaf_params()), &[&issuer], &root);
    case.chain[1] = root.resign(&case.chain[1], |tbs| {
        replace(tbs, &[0x06, 4, 0x55, 0x1d, 1, 15], &[0x06, 4, 0x55, 0x1d, 0x80, 15]);
    });
    case
}

/// Signed again with the version number of version 1 in it.
fn version_1() -> Case {
    let root = Ca::root();
    let mut case = Case::new(root.sign_leaf(&leaf_params()), &[], &root);
    case.chain[0] = root.resign(&case.chain[0], |tbs| {
        let version = tbs.windows(5).position(|w| w == [0xa0, 3, 2, 1, 2]).unwrap();
        tbs[version + 4] = 0;
    });
    case
}

fn signed_by_p521() -> Case {
    let root = Ca::root();
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
    let issuer = root.sign_ca_with(issuer_params(), key);
    Case::new(issuer.sign_leaf(&leaf_params()), &[&issuer], &root)
}

#[test]
fn every_chain_of_the_corpus_gets_the_verdict_that_is_written_beside_it() {
    for entry in CORPUS {
        let verdict = (entry.make)().verify();
        let label = verdict.as_ref().map_or_else(|error| error.label(), |_| "");
        assert_eq!(label, entry.ours, "{}: {verdict:?}", entry.name);
    }
}

#[test]
fn the_names_in_the_corpus_are_unique() {
    let mut names: Vec<_> = CORPUS.iter().map(|entry| entry.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), CORPUS.len());
}

/// The chain of that name.
pub fn case(name: &str) -> Case {
    let entry = CORPUS.iter().find(|entry| entry.name == name);
    (entry.unwrap_or_else(|| panic!("no {name} in the corpus")).make)()
}
