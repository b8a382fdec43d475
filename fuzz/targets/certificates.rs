//! `certificates`: any bytes as chains, roots and ids, and a good chain with something done to one of its certificates.
//!
//! Run by `cargo xtask fuzz`. No bytes make the verifier fail; nothing that is done to a chain makes it stand for somebody else; a chain
//! serves both ends where it serves each, with remembered signatures and without; what is said of a bad one is bounded.

#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use countersign_fuzz::{Input, edited};
use countersign_identity::{
    BundleSet, CheckedSignature, Purpose, SpiffeId, Svid, TrustBundle, TrustDomain, VerifiedId, VerifyError,
    verify_svid, verify_svid_at_both_ends,
};
use countersign_policy::Principal;
use libfuzzer_sys::fuzz_target;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};

const ID: &str = "spiffe://mesh.test/ns/shop/sa/frontend";
/// Within 2027.
const NOW: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
/// Longer than any text on a chain: it may quote an id.
const MOST_SAID: usize = 8 * 1024;

/// Leaf, issuer and root, and the leaf's key.
struct Good {
    certificates: [Vec<u8>; 3],
    key: Vec<u8>,
    bundles: BundleSet,
    issuer_signature: CheckedSignature,
}

/// Always the same bytes: the keys are fixed, and Ed25519 signs without chance.
static GOOD: LazyLock<Good> = LazyLock::new(|| {
    let root = CertifiedIssuer::self_signed(ca("root"), key(1)).expect("a root");
    let issuer = CertifiedIssuer::signed_by(ca("issuer"), key(2), &root).expect("an issuer");
    let mut params = params("leaf");
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = vec![SanType::URI(ID.try_into().expect("text"))];
    let leaf = params.signed_by(&key(3), &issuer).expect("a leaf");
    let bundle = bundle(vec![root.der().clone()]).expect("a good root");
    let good = Good {
        certificates: [leaf.der(), issuer.der(), root.der()].map(|der| der.to_vec()),
        key: key(3).serialize_der(),
        issuer_signature: CheckedSignature::of(issuer.der(), &bundle).expect("the root's signature"),
        bundles: BundleSet::new(vec![bundle]).expect("one bundle"),
    };
    let chain = [leaf.der().clone(), issuer.der().clone()];
    verify_svid(&chain, &good.bundles, Purpose::Server, NOW).expect("it is good");
    good
});

/// PKCS#8 of an Ed25519 key (RFC 8410 section 7).
fn key(seed: u8) -> KeyPair {
    let mut pkcs8 = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    pkcs8.extend([seed; 32]);
    KeyPair::try_from(pkcs8).expect("a key")
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    (params.not_before, params.not_after) = (date_time_ymd(2027, 1, 1), date_time_ymd(2028, 1, 1));
    params
}

fn ca(name: &str) -> CertificateParams {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn bundle(roots: Vec<CertificateDer<'static>>) -> Option<TrustBundle> {
    let bundle = TrustBundle::new(TrustDomain::parse("mesh.test").ok()?, 1, roots, NOW);
    bundle.inspect_err(|error| bounded(&error.to_string())).ok()
}

fn bounded(said: &str) {
    assert!(said.len() <= MOST_SAID);
}

/// The verdict for each purpose and for both, which must agree.
fn verdict(chain: &[CertificateDer<'_>], bundles: &BundleSet, known: &[CheckedSignature]) -> Option<VerifiedId> {
    let told = |verdict: Result<VerifiedId, VerifyError>| {
        verdict.inspect_err(|error| {
            bounded(&error.to_string());
            assert!(!error.label().is_empty() && !error.blame().as_str().is_empty());
        })
    };
    let one = [Purpose::Server, Purpose::Client].map(|purpose| told(verify_svid(chain, bundles, purpose, NOW)).ok());
    let both = told(verify_svid_at_both_ends(chain, bundles, &[], NOW)).ok();
    let spared = told(verify_svid_at_both_ends(chain, bundles, known, NOW)).ok();
    let [server, client] = one;
    assert_eq!(both.is_some(), server.is_some() && client.is_some());
    assert_eq!(both, spared, "a remembered signature changed the verdict");
    server.or(client)
}

/// A name that is read is read again from its own text, and both rooms read the same.
fn name(text: &str) {
    let (id, principal) = (SpiffeId::parse(text), Principal::parse(text));
    assert_eq!(id.as_ref().ok().map(SpiffeId::as_str), principal.as_ref().ok().map(Principal::as_str));
    if let (Ok(id), Ok(principal)) = (id, principal) {
        assert_eq!(SpiffeId::parse(id.as_str()).as_ref(), Ok(&id));
        assert_eq!(id.service_account(), principal.service_account());
        assert_eq!((id.path(), id.trust_domain().as_str()), (principal.path(), principal.trust_domain()));
    }
}

fuzz_target!(|input: &[u8]| {
    let good = &*GOOD;
    let mut input = Input(input);
    let Some(how) = input.byte() else { return };
    let (mut certificates, mut ours) = (good.certificates.to_vec(), true);
    match usize::from(how % 5) {
        3 => {
            certificates.clear();
            while let Some(length) = input.number() {
                certificates.push(input.bytes(length).to_vec());
            }
            ours = false;
        }
        4 => return name(&String::from_utf8_lossy(input.0)),
        which => certificates[which] = edited(&good.certificates[which], &[ID], input),
    }
    let mut chain: Vec<CertificateDer<'static>> = certificates.into_iter().map(CertificateDer::from).collect();
    let roots: Vec<_> = chain.pop().into_iter().collect();
    let bundles = bundle(roots).and_then(|bundle| BundleSet::new(vec![bundle]).ok());
    let bundles = bundles.as_ref().unwrap_or(&good.bundles);
    if let Some(verified) = verdict(&chain, bundles, std::slice::from_ref(&good.issuer_signature)) {
        assert!(!ours || verified.id().as_str() == ID, "it stands for {}", verified.id());
        assert!(verified.path_not_after() <= verified.not_after() && verified.not_after() >= NOW);
    }
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(good.key.clone()));
    match Svid::new(chain, key) {
        Ok(svid) => bounded(&format!("{svid:?} {} {}", svid.serial(), svid.id())),
        Err(error) => bounded(&error.to_string()),
    }
});
