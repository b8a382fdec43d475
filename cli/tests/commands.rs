//! The command as people and scripts use it: what it prints and its exit codes (0 it is so, 1 it is not, 2 could not tell).
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::Value;

const ID: &str = "spiffe://cluster.local/ns/shop/sa/frontend";

fn countersign(args: &[&str], stdin: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_countersign"));
    command.args(args).env("NO_COLOR", "1").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A command that reads no input may be gone already.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A folder that goes away with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("countersign-cli-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, content: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Ca {
    root: String,
    issuer: Issuer<'static, KeyPair>,
}

fn ca() -> Ca {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    (params.not_before, params.not_after) = (rcgen::date_time_ymd(2026, 1, 1), rcgen::date_time_ymd(2099, 1, 1));
    let key = KeyPair::generate().unwrap();
    let root = params.self_signed(&key).unwrap().pem();
    Ca { root, issuer: Issuer::new(params, key) }
}

impl Ca {
    fn leaf(&self, uris: &[&str]) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(2026, 1, 1), rcgen::date_time_ymd(2098, 1, 1));
        params.signed_by(&KeyPair::generate().unwrap(), &self.issuer).unwrap().pem()
    }
}

#[test]
fn a_good_svid_is_shown_without_problems() {
    let ca = ca();
    let chain = ca.leaf(&[ID]) + &ca.root;
    let shown = countersign(&["identity", "show", "-"], &chain);
    assert_eq!(code(&shown), 0, "{}{}", text(&shown), said(&shown));
    assert!(text(&shown).contains(&format!("SPIFFE id  {ID}")), "{}", text(&shown));
    assert!(text(&shown).contains("certificate 2 of 2: CA"), "{}", text(&shown));
    assert!(!text(&shown).contains('\u{1b}'));
    let shown = json(&countersign(&["identity", "show", "-", "-o", "json"], &chain));
    assert_eq!((&shown[0]["spiffe_id"], &shown[0]["key"]), (&ID.into(), &"ECDSA P-256".into()));
    assert_eq!(shown[0]["key_sha256"].as_str().unwrap().len(), 64);
}

#[test]
fn what_the_profile_forbids_is_named_and_is_exit_code_1() {
    let two = countersign(&["identity", "show", "-"], &ca().leaf(&[ID, "spiffe://cluster.local/other"]));
    assert_eq!(code(&two), 1);
    assert!(text(&two).contains("has 2 URI names; exactly one is allowed"), "{}", text(&two));
    let none = countersign(&["identity", "show", "-"], &ca().leaf(&["https://example.com/"]));
    assert_eq!(code(&none), 1);
    assert!(text(&none).contains("is no SPIFFE id"), "{}", text(&none));
}

#[test]
fn what_is_no_certificate_is_exit_code_2() {
    let bad = countersign(&["identity", "show", "-"], "hello");
    assert_eq!((code(&bad), text(&bad).as_str()), (2, ""));
    assert!(said(&bad).contains("neither PEM nor the DER"), "{}", said(&bad));
    assert_eq!(code(&countersign(&["identity", "show", "/no/such/file"], "")), 2);
    assert_eq!(code(&countersign(&["identity", "tell"], "")), 2);
}

#[test]
fn a_chain_is_verified_by_its_own_bundle_and_refused_by_another() {
    let (folder, ours, other) = (Folder::new(), ca(), ca());
    let bundle = folder.file("ours.pem", &ours.root);
    let verify = |leaf: &str, more: &[&str]| {
        let args = ["identity", "verify", "-", "--trust-domain", "cluster.local", "--bundle", &bundle];
        countersign(&[&args[..], more].concat(), leaf)
    };
    let good = verify(&ours.leaf(&[ID]), &[]);
    assert_eq!(code(&good), 0, "{}{}", text(&good), said(&good));
    assert_eq!(text(&good).matches(&format!(": {ID}, until 2098-01-01")).count(), 2, "{}", text(&good));
    let refused = verify(&other.leaf(&[ID]), &["--purpose", "client", "-o", "json"]);
    assert_eq!(code(&refused), 1);
    assert_eq!(json(&refused)[0]["verified"], false);
    assert!(!json(&refused)[0]["reason"].as_str().unwrap().is_empty());
    assert_eq!(code(&verify(&ours.leaf(&[ID]), &["--at", "2098-06-01T00:00:00Z"])), 1, "expired by then");
    assert_eq!(code(&verify(&ours.leaf(&[ID]), &["--at", "yesterday"])), 2);
}

const GOOD: &str = "\
apiVersion: policy.countersign.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: frontend-to-backend, namespace: shop}
spec:
  selector: {matchLabels: {app: backend}}
  action: Allow
  rules:
  - from: [{serviceAccounts: [{namespace: shop, name: frontend}]}]
    to: [{ports: [8080]}]
";

#[test]
fn good_rules_are_exit_code_0() {
    let folder = Folder::new();
    folder.file("a.yaml", GOOD);
    let checked = countersign(&["policy", "check", folder.0.to_str().unwrap()], "");
    assert_eq!(code(&checked), 0, "{}{}", text(&checked), said(&checked));
    assert!(text(&checked).contains("shop/frontend-to-backend (Allow)"), "{}", text(&checked));
}

#[test]
fn a_bad_rule_is_told_with_file_line_column_and_field() {
    let folder = Folder::new();
    let file = folder.file("bad.yaml", &GOOD.replace("8080", "70000"));
    let checked = countersign(&["policy", "check", &file], "");
    assert_eq!(code(&checked), 1);
    assert!(text(&checked).contains(&format!("{file}:9:")), "{}", text(&checked));
    let error = &json(&countersign(&["policy", "check", "-o", "json", &file], ""))["files"][0]["errors"][0];
    assert_eq!((&error["line"], &error["field"]), (&9.into(), &"spec.rules[0].to[0].ports[0]".into()));
}

#[test]
fn one_name_in_two_files_is_a_problem() {
    let folder = Folder::new();
    let (a, b) = (folder.file("a.yaml", GOOD), folder.file("b.yaml", GOOD));
    let checked = countersign(&["policy", "check", &a, &b], "");
    assert_eq!(code(&checked), 1);
    assert!(text(&checked).contains("is already in"), "{}", text(&checked));
}

#[test]
fn each_bad_rule_of_a_file_is_told_and_what_is_no_rule_is_named_as_not_judged() {
    let folder = Folder::new();
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";
    let mixed = folder.file("mixed.yaml", &format!("{namespace}---\n{GOOD}"));
    let checked = countersign(&["policy", "check", &mixed], "");
    assert_eq!(code(&checked), 0, "{}{}", text(&checked), said(&checked));
    assert!(text(&checked).contains("not judged, as they are no rules: line 1: Namespace"), "{}", text(&checked));

    let (port, action) = (GOOD.replace("8080", "70000"), GOOD.replace("Allow", "Maybe").replace("-backend", "-b"));
    let two = folder.file("two.yaml", &format!("{port}---\n{namespace}---\n{action}"));
    let checked = countersign(&["policy", "check", &two], "");
    assert_eq!(code(&checked), 1);
    for told in ["spec.rules[0].to[0].ports[0]", "spec.action"] {
        assert!(text(&checked).contains(told), "{told}: {}", text(&checked));
    }
}

#[test]
fn a_rule_whose_kind_or_version_is_mistyped_is_not_passed_over() {
    let folder = Folder::new();
    let inside: String = GOOD.lines().map(|line| format!("  {line}\n")).collect();
    let list = format!("{GOOD}---\napiVersion: v1\nkind: List\nitems:\n- {}", inside.trim_start());
    let file = folder.file("list.yaml", &list);
    let checked = countersign(&["policy", "check", &file], "");
    assert_eq!(code(&checked), 1, "{}", text(&checked));
    assert!(text(&checked).contains("items: unknown field"), "{}", text(&checked));
    for (from, to) in
        [("v1alpha1", "v1beta1"), ("policy.countersign.dev", "policies.countersign.dev"), ("kind: A", "kind: B")]
    {
        let file = folder.file("typo.yaml", &GOOD.replace(from, to));
        let checked = countersign(&["policy", "check", &file], "");
        assert_eq!(code(&checked), 1, "{to}: {}", text(&checked));
    }
}

#[test]
fn no_rules_to_check_is_not_success() {
    let folder = Folder::new();
    for nothing in ["", "# nothing\n", "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"] {
        let file = folder.file("nothing.txt", nothing);
        let checked = countersign(&["policy", "check", &file], "");
        assert_eq!(code(&checked), 1, "{nothing}");
        assert!(text(&checked).contains("holds no AuthorizationPolicy"), "{}", text(&checked));
    }
    assert_eq!(code(&countersign(&["policy", "check", folder.0.to_str().unwrap()], "")), 2);
    assert_eq!(code(&countersign(&["policy", "check"], "")), 2);
}

#[test]
fn status_without_a_socket_is_exit_code_2_and_a_dead_one_1() {
    let folder = Folder::new();
    assert_eq!(code(&countersign(&["status", "--dir", folder.0.to_str().unwrap()], "")), 2);
    let path = folder.0.join("proxy.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let dead = countersign(&["status", "--dir", folder.0.to_str().unwrap()], "");
    assert_eq!(code(&dead), 1);
    assert!(text(&dead).contains("no answer"), "{}", text(&dead));
}

#[test]
fn every_shell_has_its_completion() {
    for (shell, registers) in [
        ("bash", "complete -F _countersign "),
        ("elvish", "set edit:completion:arg-completer[countersign] = "),
        ("fish", "complete -c countersign "),
        ("powershell", "Register-ArgumentCompleter -Native -CommandName 'countersign' "),
        ("zsh", "#compdef countersign\n"),
    ] {
        let script = countersign(&["completion", shell], "");
        assert_eq!(code(&script), 0);
        assert!(text(&script).contains(registers), "{shell}: {}", text(&script));
        assert!(text(&script).contains("uninject"), "{shell} knows no command: {}", text(&script));
    }
}

/// Rather than to print what no program can read as JSON.
#[test]
fn json_is_refused_where_there_is_nothing_to_tell_in_it() {
    for args in [&["completion", "bash", "-o", "json"][..], &["demo", "exec", "-o", "json", "frontend", "true"]] {
        let refused = countersign(args, "");
        assert_eq!((code(&refused), text(&refused)), (2, String::new()), "{args:?}");
        assert!(said(&refused).contains("-o json means nothing here"), "{}", said(&refused));
    }
    // Behind the pod it is the command's own.
    let own = countersign(&["demo", "exec", "frontend", "true", "-o", "json"], "");
    assert!(!said(&own).contains("-o json"), "{}", said(&own));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_countersign"))
        .args(["completion", "bash"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn the_version_names_the_wire() {
    let version = countersign(&["version", "-o", "json"], "");
    assert_eq!(json(&version)["wire"], "countersign/1");
    assert_eq!(json(&version)["version"], env!("CARGO_PKG_VERSION"));
}
