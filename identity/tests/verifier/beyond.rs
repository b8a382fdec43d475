//! Checks 13 to 16 before the foreign judges: possession of the key, the expected identity, a bundle that lost a root, bad roots.
//!
//! openssl judges possession in a handshake with its `s_server`; of SPIFFE ids it knows nothing, so that of the expected identity only
//! `spiffe-rustls` can judge.

use crate::openssl::{Dir, have_openssl, judge, pem, pems};
use crate::spiffe_rustls_judge::{Anybody, shown, verdict, verdict_expecting};
use crate::support::*;
use countersign_identity::{SpiffeId, Svid, SvidError, TrustBundle};
use rcgen::{IsCa, KeyUsagePurpose};
use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

/// Ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// openssl's word on a client that shows this chain and signs with this key. A line there and back: in TLS 1.3 the server's refusal
/// comes after the client has ended its handshake.
fn shake_hands(dir: &Dir, case: &Case) -> Result<(), String> {
    let own = Ca::root().sign_leaf(&leaf_params());
    dir.write("own.pem", pem("CERTIFICATE", &own.der));
    dir.write("own.key", pem("PRIVATE KEY", &own.key));
    dir.write("roots.pem", pems(&case.trusted[0].1));
    let mut server = dir.command(&format!(
        "s_server -accept 127.0.0.1:0 -naccept 1 -rev -cert own.pem -key own.key -CAfile roots.pem -Verify 4 \
         -verify_return_error -attime {}",
        case.now
    ));
    let mut server = Server(server.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let said = BufReader::new(server.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    let accepts = said.filter_map(|line| line.strip_prefix("ACCEPT ").map(str::to_owned)).next().unwrap();

    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let config = ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(shown(case))));
    let name = ServerName::try_from("judge.example").unwrap();
    let tcp = TcpStream::connect(accepts).unwrap();
    tcp.set_read_timeout(Some(LIMIT)).unwrap();
    let mut tls = StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), tcp);
    let mut back = [0; 4];
    let done = tls.write_all(b"abc\n").and_then(|()| tls.read_exact(&mut back));
    done.map_err(|error| error.to_string())?;
    assert_eq!(&back, b"cba\n");
    Ok(())
}

/// 13.
#[test]
fn a_chain_without_its_key_is_refused_by_us_and_by_both_judges() {
    let good = with_leaf(|_| {});
    let lie = || {
        let mut case = with_leaf(|_| {});
        case.key = key().serialize_der();
        case
    };
    let own = |case: &Case| Svid::new(case.chain.clone(), PrivatePkcs8KeyDer::from(case.key.clone()).into()).map(drop);
    own(&good).unwrap();
    assert_eq!(own(&lie()), Err(SvidError::KeyMismatch));
    for of_server in [false, true] {
        let turned = |case: Case| if of_server { case.of_server() } else { case };
        verdict(&turned(with_leaf(|_| {}))).unwrap();
        let told = verdict(&turned(lie())).unwrap_err();
        assert!(told.contains("BadSignature"), "{told}");
    }
    if !have_openssl() {
        return;
    }
    let dir = Dir::new("possession");
    shake_hands(&dir, &good).unwrap();
    let told = shake_hands(&dir, &lie()).unwrap_err();
    assert!(told.contains("DecryptError"), "{told}");
}

/// 14.
#[test]
fn another_identity_than_the_expected_one_is_refused_by_us_and_by_spiffe_rustls() {
    let other = "spiffe://cluster.local/ns/shop/sa/backend-2";
    for case in [with_leaf(|_| {}), with_leaf(|_| {}).of_server()] {
        let ours = |expected: &str| *case.accepted().id() == SpiffeId::parse(expected).unwrap();
        assert!(ours(ID) && !ours(other));
        verdict_expecting(&case, ID).unwrap();
        let told = verdict_expecting(&case, other).unwrap_err();
        assert!(told.contains(ID), "{told}");
    }
}

/// 15.
#[test]
fn a_chain_whose_root_left_the_bundle_is_refused_by_us_and_by_both_judges() {
    let mut case = with_leaf(|_| {});
    case.trusted[0].1.push(Ca::root().der());
    let dir = have_openssl().then(|| Dir::new("left"));
    let ask = |case: &Case| {
        let openssl = dir.as_ref().map(|dir| judge(dir, case).is_ok());
        (case.verify().is_ok(), verdict(case).is_ok(), openssl.unwrap_or(case.verify().is_ok()))
    };
    assert_eq!(ask(&case), (true, true, true));
    case.trusted[0].1.remove(0);
    assert_eq!(ask(&case), (false, false, false));
}

/// A root that must not be loaded, with a leaf under it that would be good; who else would take it, and why.
struct BadRoot {
    name: &'static str,
    make: fn() -> Case,
    spiffe_rustls: Option<&'static str>,
    openssl: Option<&'static str>,
}

/// Of spiffe-rustls 0.11 over spiffe 0.19.
const OF_A_ROOT: &str = "of a root it keeps name and key: no end, no usage, not whether it is a CA";

/// 16.
const BAD_ROOTS: &[BadRoot] = &[
    BadRoot {
        name: "a_leaf",
        make: || {
            let leaf = Ca::root().sign_leaf(&leaf_params());
            let root = leaf.der.clone();
            let mut case = Case::new(leaf, &[], &Ca::root());
            case.trusted[0].1 = vec![root];
            case
        },
        spiffe_rustls: None,
        openssl: None,
    },
    BadRoot {
        name: "no_ca",
        make: || under(|p| p.is_ca = IsCa::ExplicitNoCa),
        spiffe_rustls: Some(OF_A_ROOT),
        openssl: None,
    },
    BadRoot {
        name: "without_cert_sign",
        make: || under(|p| p.key_usages = vec![KeyUsagePurpose::CrlSign]),
        spiffe_rustls: Some(OF_A_ROOT),
        openssl: None,
    },
    BadRoot {
        name: "expired",
        make: || under(|p| validity(p, -HOUR, -1)),
        spiffe_rustls: Some(OF_A_ROOT),
        openssl: None,
    },
];

fn under(edit: impl FnOnce(&mut rcgen::CertificateParams)) -> Case {
    let mut params = root_params();
    edit(&mut params);
    let root = Ca::self_signed(params, key());
    Case::new(root.sign_leaf(&leaf_params()), &[], &root)
}

#[test]
fn a_bad_root_vouches_for_nobody_and_where_a_judge_would_take_it_the_reason_is_known() {
    let dir = have_openssl().then(|| Dir::new("roots"));
    let good = under(|_| {});
    good.accepted();
    verdict(&good).unwrap();
    let mut surprises = Vec::new();
    for bad in BAD_ROOTS {
        let case = (bad.make)();
        TrustBundle::new(td("cluster.local"), 1, case.trusted[0].1.clone(), at(case.now)).unwrap_err();
        let theirs = verdict(&case);
        if theirs.is_ok() != bad.spiffe_rustls.is_some() {
            surprises.push(format!("{}: spiffe-rustls {theirs:?}, known: {:?}", bad.name, bad.spiffe_rustls));
        }
        let Some(dir) = &dir else { continue };
        let theirs = judge(dir, &case);
        if theirs.is_ok() != bad.openssl.is_some() {
            surprises.push(format!("{}: openssl {theirs:?}, known: {:?}", bad.name, bad.openssl));
        }
    }
    assert!(surprises.is_empty(), "{}", surprises.join("\n"));
}
