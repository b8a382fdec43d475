//! The app's own probes under Strict: the sidecar asks in the kubelet's place, whom this test plays, from outside the pod.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Result, ensure};
use countersign_api::ports;
use countersign_api::probes::{Ask, Kind, Probe, Probes, path};
use countersign_kit::{Inside, Pod, wait_until};

use crate::stage::{Answer, PORT, SOON, Stage, http};
use crate::talk::Talk;

/// Where the app speaks HTTP.
const HTTP: u16 = 8080;
/// Where nobody listens at first.
const CLOSED: u16 = 8081;

/// An app whose health can be turned: 0 = it hangs.
fn app(pod: &Pod) -> Result<Arc<AtomicU16>> {
    let listener = pod.inside(|| TcpListener::bind(("0.0.0.0", HTTP)))?;
    let status = Arc::new(AtomicU16::new(200));
    let now = Arc::clone(&status);
    std::thread::spawn(move || {
        let mut hanging = Vec::new();
        while let Ok((mut stream, source)) = listener.accept() {
            let code = now.load(Ordering::SeqCst);
            if code == 0 {
                hanging.push(stream);
                continue;
            }
            let mut head = [0; 1024];
            let length = stream.read(&mut head).unwrap_or(0);
            let ours = head[..length].starts_with(b"GET /healthz HTTP/1.1\r\n")
                && !head.windows(8).any(|w| w == b"test\r\n\r\n");
            let code = if ours { code } else { 418 };
            let _ = write!(stream, "HTTP/1.1 {code} x\r\nX-From: {source}\r\nContent-Length: 6\r\n\r\nsecret");
        }
    });
    Ok(status)
}

fn declared() -> Result<String> {
    let of = |ask| Probe { timeout_seconds: 1, ask, token: None };
    let get =
        Ask::Http { port: HTTP, path: "/healthz".into(), https: false, headers: vec![("X-A".into(), "1".into())] };
    let web = [
        (Kind::Liveness, of(get)),
        (Kind::Readiness, of(Ask::Tcp { port: CLOSED })),
        (Kind::Startup, of(Ask::Grpc { port: PORT, service: String::new() })),
    ];
    Ok(serde_json::to_string(&Probes::from([("web".to_owned(), web.into())]))?)
}

fn ask(stage: &Stage, kind: Kind) -> Result<Answer> {
    http(stage.mesh.system(), stage.server.v4().into(), ports::PROXY_HEALTH, "GET", &path("web", kind, None))
}

fn until(stage: &Stage, kind: Kind, code: u16, said: &str) -> Result<()> {
    wait_until(SOON, || match ask(stage, kind) {
        Ok(answer) if answer.code == code && answer.body.contains(said) => Ok(()),
        other => Err(format!("{other:?} instead of {code} {said}")),
    })
}

pub fn apps_health(inside: &Inside) -> Result<()> {
    let probes = declared()?;
    let stage = Stage::with_args(inside, &["--probes", &probes])?;
    let health = app(&stage.server)?;
    until(&stage, Kind::Liveness, 200, "HTTP status 200")?;
    ensure!(!ask(&stage, Kind::Liveness)?.body.contains("secret"), "the app's body is told");
    // The same from outside, with no identity, gets nothing: the sidecar is the only way.
    let mut direct = Talk::dial(stage.mesh.system(), SocketAddr::new(stage.server.v4().into(), HTTP))?;
    direct.tell("GET /healthz HTTP/1.1\r\n\r\n")?;
    ensure!(direct.hear("HTTP").is_err(), "plaintext was answered");

    health.store(500, Ordering::SeqCst);
    until(&stage, Kind::Liveness, 503, "HTTP status 500")?;
    health.store(0, Ordering::SeqCst);
    until(&stage, Kind::Liveness, 503, "within 1 s")?;
    health.store(204, Ordering::SeqCst);
    until(&stage, Kind::Liveness, 200, "HTTP status 204")?;

    until(&stage, Kind::Readiness, 503, "does not accept connections")?;
    let listener = stage.server.inside(|| TcpListener::bind(("0.0.0.0", CLOSED)))?;
    until(&stage, Kind::Readiness, 200, "it accepts")?;
    drop(listener);
    until(&stage, Kind::Readiness, 503, "does not accept connections")?;

    // What listens there is no gRPC.
    until(&stage, Kind::Startup, 503, "")?;
    let answer = http(stage.mesh.system(), stage.server.v4().into(), ports::PROXY_HEALTH, "GET", "/app/web/preStop")?;
    ensure!(answer.code == 404, "{answer:?}");
    // The turns are in the log, once each.
    let turns = stage.server.with_sidecar(|sidecar| {
        sidecar.wait_for_line(SOON, |line| {
            line.contains("the app's probe fails") && line.contains("grpc") | line.contains("gRPC")
        })?;
        let log = sidecar.log();
        Ok(log.iter().filter(|line| line.contains("the app's probe") && line.contains("\"liveness\"")).count())
    })?;
    ensure!((3..=5).contains(&turns), "{turns} lines for 3 turns");
    Ok(())
}
