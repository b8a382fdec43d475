//! The judge `openssl verify`, and certificates that only openssl makes (SHA-1, short RSA keys).
//!
//! openssl knows nothing of SPIFFE, so it accepts much that we refuse. Each difference is listed with its reason; one that is
//! not listed fails the test.

use crate::corpus::CORPUS;
use crate::support::*;
use base64::Engine;
use countersign_identity::{BundleError, BundleSet, Purpose, SignerError, TrustBundle, VerifyError, verify_svid};
use rcgen::{KeyPair, RsaKeySize};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Refused by us, accepted by openssl 3.0 (a later one may be stricter), and why we go further.
const LAXER: &[(&str, &[&str])] = &[
    (
        "SPIFFE identities and trust domains mean nothing to it",
        &[
            "unknown_trust_domain",
            "no_uri",
            "no_names",
            "two_uris",
            "same_uri_twice",
            "second_uri_not_text",
            "only_uri_not_text",
            "web_uri",
            "no_path",
            "dots_in_path",
            "issuer_of_another_domain",
            "issuer_with_workload_id",
            "issuer_with_two_uris",
            "issuer_with_web_uri",
        ],
    ),
    (
        "RFC 5280 lets a leaf be a CA or say nothing; X509-SVID does not",
        &[
            "leaf_is_ca",
            "leaf_without_basic_constraints",
            "leaf_without_key_usage",
            "leaf_without_digital_signature",
            "leaf_with_cert_sign",
            "leaf_with_crl_sign",
        ],
    ),
    (
        "it reads loosely: bytes after a certificate, extensions that are not DER, names that it skips, version 1 with \
         extensions",
        &[
            "trailing_byte",
            "two_in_one",
            "issuer_trailing_byte",
            "leaf_with_padded_key_usage",
            "leaf_with_key_usage_and_more",
            "unreadable_other_name",
            "constructed_uri",
            "unknown_extension_twice",
            "version_1",
        ],
    ),
    ("our bounds are our own", &["five_certificates", "huge_chain"]),
    ("we do not take P-521 signatures", &["signed_by_p521"]),
    ("it can process URI constraints; webpki refuses them all", &["issuer_with_uri_constraint"]),
];

/// Accepted by us, refused by openssl, and why that is no weakness of ours.
const STRICTER: &[(&str, &[&str])] = &[
    ("it ends a certificate one second early; RFC 5280 4.1.2.5 includes notAfter", &["last_second"]),
    ("it tries one root of a name and key only; we try all", &["one_of_two_roots_of_same_name_and_key_allows"]),
];

fn listed(list: &[(&str, &[&str])], name: &str) -> bool {
    list.iter().any(|(_, names)| names.contains(&name))
}

/// A directory of its own, gone when dropped.
pub struct Dir(PathBuf);

impl Dir {
    pub fn new(name: &str) -> Self {
        let name = format!("countersign-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        std::fs::write(self.0.join(name), text).unwrap();
    }

    pub fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new("openssl");
        command.args(arguments.split_whitespace()).current_dir(&self.0);
        command
    }

    fn openssl(&self, arguments: &str) -> std::process::Output {
        self.command(arguments).output().unwrap()
    }

    #[track_caller]
    fn must(&self, arguments: &str) {
        let output = self.openssl(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {arguments}: {said}");
    }

    fn read(&self, name: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.0.join(name)).unwrap()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Whether the program is there. Where it must be (`CI=true`), its absence is a failure.
pub fn have_openssl() -> bool {
    let found = Command::new("openssl").arg("version").output();
    if found.is_ok_and(|output| output.status.success()) {
        return true;
    }
    let reason = "the program `openssl` is not installed: apt-get install openssl";
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{reason}");
    // `cargo xtask test` reads this line from the captured output, and counts the test as skipped.
    eprintln!("SKIPPED, not judged by openssl: {reason}");
    false
}

pub fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

pub fn pems(certificates: &[CertificateDer<'_>]) -> String {
    certificates.iter().map(|der| pem("CERTIFICATE", der)).collect()
}

/// openssl's word on a chain, with the roots that we would pick.
pub fn judge(dir: &Dir, case: &Case) -> Result<(), String> {
    let Some((leaf, above)) = case.chain.split_first() else {
        return Err("no certificate".to_owned());
    };
    let (_, roots) = &case.trusted[0];
    dir.write("leaf.pem", pem("CERTIFICATE", leaf));
    dir.write("above.pem", pems(above));
    dir.write("roots.pem", pems(roots));
    let trusted = if roots.is_empty() { "-no-CAfile" } else { "-CAfile roots.pem" };
    let untrusted = if above.is_empty() { "" } else { "-untrusted above.pem" };
    let purpose = match case.purpose {
        Purpose::Server => "sslserver",
        Purpose::Client => "sslclient",
    };
    let output = dir.openssl(&format!(
        "verify -no-CApath -no-CAstore {trusted} {untrusted} -purpose {purpose} -attime {} leaf.pem",
        case.now
    ));
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

#[test]
fn openssl_agrees_and_where_it_does_not_the_reason_is_known() {
    if !have_openssl() {
        return;
    }
    let dir = Dir::new("judge");
    let mut surprises = Vec::new();
    for entry in CORPUS {
        let theirs = judge(&dir, &(entry.make)());
        let known = match entry.ours {
            "" => theirs.is_ok() || listed(STRICTER, entry.name),
            _ => theirs.is_err() || listed(LAXER, entry.name),
        };
        if !known {
            surprises.push(format!("{}: ours {:?}, openssl {theirs:?}", entry.name, entry.ours));
        }
    }
    assert!(surprises.is_empty(), "{}", surprises.join("\n"));
}

/// A root of ours whose key openssl signs with.
fn rsa_root(dir: &Dir) -> Ca {
    let key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    dir.write("root.key", key.serialize_pem());
    let root = Ca::self_signed(root_params(), key);
    dir.write("root.pem", root.0.pem());
    root
}

/// A leaf made by openssl from first to last; `digest` is `sha1`, `sha256`, with options after it.
fn issue(dir: &Dir, digest: &str) -> CertificateDer<'static> {
    dir.write(
        "leaf.ext",
        format!(
            "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n\
             extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=critical,URI:{ID}\n"
        ),
    );
    dir.must("ecparam -name prime256v1 -genkey -noout -out leaf.key");
    dir.must("req -new -key leaf.key -subj /O=shop -out leaf.csr");
    dir.must(&format!(
        "x509 -req -in leaf.csr -CA root.pem -CAkey root.key -set_serial 7 -days 1 \
         -extfile leaf.ext -{digest} -out leaf.pem"
    ));
    dir.read("leaf.pem")
}

/// At the leaf's own first second: openssl 3.0 dates by the clock, which these tests do not read.
fn verify(leaf: CertificateDer<'_>, root: &Ca) -> Result<(), VerifyError> {
    let (_, read) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    let then = at(read.validity().not_before.timestamp());
    let bundle = TrustBundle::new(td("cluster.local"), 1, vec![root.der()], now()).unwrap();
    let bundles = BundleSet::new(vec![bundle]).unwrap();
    verify_svid(&[leaf], &bundles, Purpose::Client, then).map(drop)
}

#[test]
fn an_svid_issued_by_openssl_is_accepted_and_one_signed_with_sha1_is_refused() {
    if !have_openssl() {
        return;
    }
    let dir = Dir::new("sha1");
    let root = rsa_root(&dir);
    let pss = "sha256 -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:digest";
    verify(issue(&dir, "sha256"), &root).unwrap();
    verify(issue(&dir, pss), &root).unwrap();
    let sha1 = issue(&dir, "sha1");
    assert_eq!(verify(sha1, &root), Err(VerifyError::SignatureAlgorithm));
}

#[test]
fn an_rsa_root_of_less_than_2048_bits_is_refused() {
    if !have_openssl() {
        return;
    }
    let dir = Dir::new("short-rsa");
    let load = |bits: u32| {
        dir.must(&format!(
            "req -x509 -newkey rsa:{bits} -nodes -keyout short.key -out short.pem -subj /CN=short -days 3650 \
             -addext keyUsage=critical,keyCertSign"
        ));
        let root = dir.read("short.pem");
        TrustBundle::new(td("cluster.local"), 1, vec![root], at(0))
    };
    load(2048).unwrap();
    let error = load(1024).unwrap_err();
    assert!(matches!(error, BundleError::Root { reason: SignerError::UnsupportedKey, .. }), "{error:?}");
}

#[test]
fn the_judge_itself_can_refuse() {
    if !have_openssl() {
        return;
    }
    let dir = Dir::new("sanity");
    assert!(Path::new(&dir.0).exists());
    judge(&dir, &with_leaf(|_| {})).unwrap();
    let told = judge(&dir, &with_leaf(|_| {}).at(NOW + 2 * HOUR)).unwrap_err();
    assert!(told.contains("expired"), "{told}");
}
