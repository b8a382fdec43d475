//! The binary itself: start, readiness, a review over TLS by the root of the `caBundle`, signals. Its API server is in memory.

#![allow(clippy::unwrap_used)]

mod apiserver;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::Arc;

use apiserver::{ApiServer, MUTATING, SECRET};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::{Pid, Signal, kill_process};
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};

/// An API server, with a runtime of its own.
struct Api {
    server: ApiServer,
    _runtime: tokio::runtime::Runtime,
    dir: tempfile::TempDir,
}

fn api() -> Api {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    Api { server: runtime.block_on(ApiServer::start()), _runtime: runtime, dir: tempfile::tempdir().unwrap() }
}

/// A running injector and its log lines; killed when dropped.
struct Injector {
    child: Child,
    log: BufReader<ChildStderr>,
    ready: Value,
}

impl Api {
    fn ready_file(&self) -> PathBuf {
        self.dir.path().join("ready.json")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_countersign-injector"));
        command.env_clear().stdout(Stdio::null()).stderr(Stdio::piped());
        command.arg("--kubeconfig").arg(self.server.kubeconfig()).arg("--ready-file").arg(self.ready_file());
        command.arg("--admin-socket").arg(self.dir.path().join("admin.sock"));
        command.args(["--listen", "127.0.0.1:0", "--health-listen", "127.0.0.1:0", "--withdraw", "0s"]);
        command
    }

    fn start(&self) -> Injector {
        let mut child = self.command().spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut injector = Injector { child, log, ready: Value::Null };
        injector.wait_for("started");
        injector.wait_for("the webhooks' caBundle was brought in step");
        injector.ready = serde_json::from_slice(&std::fs::read(self.ready_file()).unwrap()).unwrap();
        injector
    }

    fn bundle(&self) -> String {
        let object = self.server.object(MUTATING).unwrap();
        let bundle = object["webhooks"][0]["clientConfig"]["caBundle"].as_str().unwrap().to_owned();
        String::from_utf8(STANDARD.decode(bundle).unwrap()).unwrap()
    }
}

impl Injector {
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

    fn health(&self, path: &str) -> String {
        let mut tcp = TcpStream::connect(self.ready["health"].as_str().unwrap()).unwrap();
        write!(tcp, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).unwrap();
        answer
    }

    /// As the API server asks: for the service's name, trusting the `caBundle`.
    fn review(&self, bundle: &str, body: &Value) -> Value {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(rustls::pki_types::CertificateDer::from_pem_slice(bundle.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config =
            rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
        let name = "countersign-injector.countersign-system.svc".try_into().unwrap();
        let mut client = rustls::ClientConnection::new(config, name).unwrap();
        let mut tcp = TcpStream::connect(self.ready["listen"].as_str().unwrap()).unwrap();
        let mut tls = rustls::Stream::new(&mut client, &mut tcp);
        let body = body.to_string();
        let head =
            "POST /mutate?timeout=10s HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n";
        write!(tls, "{head}content-length: {}\r\n\r\n{body}", body.len()).unwrap();
        let mut answer = String::new();
        tls.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
        serde_json::from_str::<Value>(body).unwrap()["response"].clone()
    }

    fn ended(&mut self, signal: Signal) -> Option<i32> {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        let mut rest = Vec::new();
        self.log.read_to_end(&mut rest).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pod(spec: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u-1", "operation": "CREATE", "namespace": "shop",
            "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "object": { "metadata": { "name": "web" }, "spec": spec },
        },
    })
}

#[test]
fn it_makes_its_certificate_tells_the_api_server_and_patches_a_pod() {
    let api = api();
    let mut injector = api.start();
    assert!(injector.health("/readyz").starts_with("HTTP/1.1 200"), "{}", injector.health("/readyz?verbose"));
    let response = injector.review(&api.bundle(), &pod(&json!({ "containers": [{ "name": "a" }] })));
    assert_eq!((&response["uid"], &response["allowed"]), (&json!("u-1"), &json!(true)));
    let patch = String::from_utf8(STANDARD.decode(response["patch"].as_str().unwrap()).unwrap()).unwrap();
    assert!(patch.contains("countersign-intercept") && patch.contains("NET_ADMIN"), "{patch}");
    let refused = injector.review(&api.bundle(), &pod(&json!({ "securityContext": { "runAsUser": 1337 } })));
    assert_eq!(refused["allowed"], false);
    let metrics = injector.health("/metrics");
    assert!(
        metrics.contains("countersign_injector_requests_total{webhook=\"mutate\",outcome=\"refused\"} 1"),
        "{metrics}"
    );
    assert!(metrics.contains("countersign_injector_certificate_published 1"), "{metrics}");
    assert_eq!(injector.ended(Signal::TERM), Some(0));
    assert!(!api.dir.path().join("admin.sock").exists());
}

#[test]
fn a_restarted_one_goes_on_with_the_certificate_that_the_api_server_knows() {
    let api = api();
    let first = api.start();
    let (bundle, secret) = (api.bundle(), api.server.object(SECRET).unwrap());
    drop(first);
    std::fs::remove_file(api.ready_file()).unwrap();
    let mut child = api.command().spawn().unwrap();
    let log = BufReader::new(child.stderr.take().unwrap());
    let mut second = Injector { child, log, ready: Value::Null };
    second.wait_for("another serving certificate is in force");
    second.ready = serde_json::from_slice(&std::fs::read(api.ready_file()).unwrap()).unwrap();
    assert_eq!(second.review(&bundle, &pod(&json!({ "containers": [{ "name": "a" }] })))["allowed"], true);
    assert_eq!(api.server.object(SECRET).unwrap(), secret);
}

#[test]
fn a_bad_flag_is_named_and_help_needs_nothing() {
    let api = api();
    for (flags, said) in [
        (&["--cpu-request", "fast"][..], "--cpu-request"),
        (&["--no-such-flag"], "--no-such-flag"),
        (&["--certificate-life", "1s"], "--certificate-life"),
    ] {
        let output = api.command().args(flags).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{flags:?}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(said), "{text}");
    }
    assert!(Command::new(env!("CARGO_BIN_EXE_countersign-injector")).arg("--help").output().unwrap().status.success());
}

#[test]
fn the_charts_way_to_say_that_no_namespace_is_exempt_is_understood() {
    let api = api();
    for (value, code) in [("false", true), ("true", true)] {
        let output = api
            .command()
            .env("COUNTERSIGN_POD_SECURITY_EXEMPT", value)
            .arg("--cpu-request")
            .arg("fast")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(text.contains("--cpu-request"), code, "{value}: {text}");
    }
}
