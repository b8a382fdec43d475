//! The binary itself: start, signals, two on one directory, a wrong key. What it says on stderr is the event that is waited for.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use serde_json::Value;

/// A public key as any issuer of tokens publishes it.
const JWKS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","use":"sig","alg":"ES256","kid":"k1",
 "x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#;

struct Place {
    dir: tempfile::TempDir,
}

/// A running CA and its log lines; killed when dropped.
struct Ca {
    child: Child,
    log: BufReader<ChildStderr>,
}

fn place() -> Place {
    let place = Place { dir: tempfile::tempdir().unwrap() };
    std::fs::write(place.dir.path().join("jwks"), JWKS).unwrap();
    place.key(7);
    place
}

impl Place {
    fn key(&self, byte: u8) {
        let path = self.dir.path().join("key");
        std::fs::write(&path, [byte; 32]).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn state(&self) -> std::path::PathBuf {
        self.dir.path().join("state")
    }

    fn command(&self) -> Command {
        let mut command = self.without_key();
        command.arg("--state-key-file").arg(self.dir.path().join("key"));
        command
    }

    fn without_key(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_countersign-ca"));
        let path = |name: &str| self.dir.path().join(name);
        command.env_clear().stdout(Stdio::null()).stderr(Stdio::piped());
        command
            .arg("--state-dir")
            .arg(path("state"))
            .arg("--jwks-file")
            .arg(path("jwks"))
            .arg("--ready-file")
            .arg(path("ready.json"));
        command.args(["--token-issuer", "https://issuer", "--trust-domain", "mesh.test"]);
        command.args(["--listen", "127.0.0.1:0", "--health-listen", "127.0.0.1:0"]);
        command
    }

    fn start(&self) -> Ca {
        let mut child = self.command().spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut ca = Ca { child, log };
        ca.wait_for("ready");
        ca
    }

    fn ready(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.dir.path().join("ready.json")).unwrap()).unwrap()
    }
}

impl Ca {
    fn wait_for(&mut self, message: &str) {
        let mut seen = String::new();
        loop {
            let mut line = String::new();
            assert!(self.log.read_line(&mut line).unwrap() > 0, "ended before {message:?}: {seen}");
            let json: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}"));
            if json["message"] == message {
                return;
            }
            seen.push_str(&line);
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
    }

    fn exit_code(&mut self) -> Option<i32> {
        // Read on, so that it never waits for us.
        let mut rest = Vec::new();
        self.log.read_to_end(&mut rest).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Ca {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn files(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(path)
        .unwrap()
        .map(Result::unwrap)
        .filter(|entry| entry.file_type().unwrap().is_file())
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn sigterm_ends_it_in_order() {
    let place = place();
    let mut ca = place.start();
    let ready = place.ready();
    assert_ne!(ready["listen"], "127.0.0.1:0", "the port that was bound");
    assert_eq!(ready["pid"], ca.child.id());
    ca.signal(Signal::TERM);
    assert_eq!(ca.exit_code(), Some(0));
    assert!(!place.state().join("admin.sock").exists());
    let mut again = place.command();
    place.key(9);
    assert_eq!(again.output().unwrap().status.code(), Some(2));
    assert!(!place.dir.path().join("ready.json").exists(), "a ready file of a former run names ports that are gone");
}

#[test]
fn a_second_one_on_the_same_directory_does_not_start() {
    let place = place();
    let _first = place.start();
    let second = place.command().output().unwrap();
    assert_eq!(second.status.code(), Some(2));
    assert!(said(&second).contains("in use by another countersign-ca"), "{}", said(&second));
}

#[test]
fn a_killed_one_comes_back_with_its_root_and_its_log() {
    let place = place();
    let first = place.start();
    let bundle = std::fs::read(place.state().join("bundle.pem")).unwrap();
    let log = std::fs::read(place.state().join("audit.jsonl")).unwrap();
    drop(first);
    let _second = place.start();
    assert_eq!(std::fs::read(place.state().join("bundle.pem")).unwrap(), bundle);
    let grown = std::fs::read(place.state().join("audit.jsonl")).unwrap();
    assert!(grown.starts_with(&log) && grown.len() > log.len());
}

#[test]
fn audit_records_go_to_standard_output_too_where_that_is_asked_for() {
    let place = place();
    let mut child = place.command().arg("--audit-stdout").stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let log = BufReader::new(child.stderr.take().unwrap());
    let mut ca = Ca { child, log };
    ca.wait_for("ready");
    ca.signal(Signal::TERM);
    let mut copy = Vec::new();
    out.read_to_end(&mut copy).unwrap();
    assert_eq!(ca.exit_code(), Some(0));
    let written = std::fs::read(place.state().join("audit.jsonl")).unwrap();
    assert_eq!(String::from_utf8(copy).unwrap(), String::from_utf8(written).unwrap());
}

#[test]
fn a_file_size_limit_is_an_error_that_is_told_and_no_death() {
    let place = place();
    let mut command = Command::new("sh");
    // In blocks of 512 bytes: not room for the first records.
    command.args(["-c", "ulimit -f 1; exec \"$0\" \"$@\""]).arg(env!("CARGO_BIN_EXE_countersign-ca"));
    command.args(place.command().get_args()).env_clear().stdout(Stdio::null()).stderr(Stdio::piped());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("File too large"), "{}", said(&output));
    let _whole = place.start();
}

#[test]
fn a_wrong_key_ends_the_start_and_touches_nothing() {
    let place = place();
    let mut ca = place.start();
    ca.signal(Signal::TERM);
    ca.exit_code();
    let before = files(&place.state());
    place.key(8);
    let output = place.command().output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("wrong state key"), "{}", said(&output));
    assert_eq!(files(&place.state()), before);
}

/// The same key in base64, in the one place where a secret may stand in the environment.
#[test]
fn a_state_key_from_the_environment_opens_what_the_same_key_from_a_file_sealed() {
    const NAME: &str = "COUNTERSIGN_CA_STATE_KEY";
    let place = place();
    let mut ca = place.start();
    ca.signal(Signal::TERM);
    ca.exit_code();
    let bundle = std::fs::read(place.state().join("bundle.pem")).unwrap();
    let before = files(&place.state());
    let (same, other) = ("BwcH".repeat(10) + "Bwc=", "CAgI".repeat(10) + "CAg=");
    for (mut command, key, why) in [
        (place.without_key(), "", "must hold 32 bytes"),
        (place.without_key(), &same[1..], "must hold 32 bytes"),
        (place.without_key(), &other, "wrong state key"),
        (place.command(), &same, "given twice"),
    ] {
        let output = command.env(NAME, key).output().unwrap();
        let said = said(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(why) && (key.is_empty() || !said.contains(key)), "{why}: {said}");
        assert_eq!(files(&place.state()), before, "{why}");
    }
    let mut child = place.without_key().env(NAME, same).spawn().unwrap();
    let log = BufReader::new(child.stderr.take().unwrap());
    let mut ca = Ca { child, log };
    ca.wait_for("ready");
    assert_eq!(std::fs::read(place.state().join("bundle.pem")).unwrap(), bundle);
    ca.signal(Signal::TERM);
    assert_eq!(ca.exit_code(), Some(0));
}

#[test]
fn a_crash_leaves_no_core_file_with_keys() {
    // The one that is started inherits it.
    let hard = getrlimit(Resource::Core).maximum;
    setrlimit(Resource::Core, Rlimit { current: hard, maximum: hard }).unwrap();
    let place = place();
    let mut ca = place.start();
    ca.signal(Signal::ABORT);
    let status = ca.child.wait().unwrap();
    assert_eq!((status.signal(), status.core_dumped()), (Some(Signal::ABORT.as_raw()), false));
}

#[test]
fn a_key_file_open_to_others_ends_the_start() {
    let place = place();
    std::fs::set_permissions(place.dir.path().join("key"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let output = place.command().output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("mode 0644"), "{}", said(&output));
    assert!(!place.state().exists());
}

#[test]
fn an_unknown_flag_is_named_and_help_needs_nothing() {
    let place = place();
    let output = place.command().arg("--tokn-issuer").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("--tokn-issuer"), "{}", said(&output));
    let help = Command::new(env!("CARGO_BIN_EXE_countersign-ca")).arg("--help").output().unwrap();
    assert!(help.status.success());
}

#[cfg(feature = "jemalloc")]
#[test]
fn the_cas_allocator_has_the_settings_that_it_was_built_with() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_countersign-ca"));
    countersign_kit::allocator_has_its_settings(command.arg("--help")).unwrap();
}

#[test]
fn the_log_filter_changes_at_run_time() {
    use std::io::Write as _;
    let place = place();
    let _ca = place.start();
    let ask = |request: &str| {
        let mut socket = std::os::unix::net::UnixStream::connect(place.state().join("admin.sock")).unwrap();
        socket.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(ask("GET /log HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").contains(r#""filter": "info""#));
    let put = |filter: &str| {
        ask(&format!(
            "PUT /log HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{filter}",
            filter.len()
        ))
    };
    assert!(put("countersign_ca=debug").contains(r#""filter": "countersign_ca=debug""#));
    assert!(put("a=b=c").starts_with("HTTP/1.1 400"));
    assert!(
        ask("GET /log HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .contains(r#""filter": "countersign_ca=debug""#),
        "a bad one changes nothing"
    );
}
