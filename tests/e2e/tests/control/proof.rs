//! Interception proves itself: at start, and when rules are lost while it runs. The test plays the kubelet, from outside the pod.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use countersign_api::ports;
use countersign_kit::mesh::{MeshPod, MeshPodSpec, admin_get};
use countersign_kit::{Inside, wait_until};
use serde_json::Value;

use crate::stage::{Answer, SOON, Stage, http, status_until};
use crate::talk::exchange;

/// Promised is "within seconds"; this machine may be busy.
const SECONDS: Duration = Duration::from_secs(15);

/// What the kubelet asks, at this address of the pod.
fn probe(stage: &Stage, ip: IpAddr, path: &str) -> Result<Answer> {
    http(stage.mesh.system(), ip, ports::SELF_PROOF, "GET", path)
}

fn readyz(stage: &Stage, pod: &MeshPod) -> Result<Answer> {
    http(stage.mesh.system(), pod.v4().into(), ports::PROXY_HEALTH, "GET", "/readyz")
}

fn metric(stage: &Stage, pod: &MeshPod, line: &str) -> Result<bool> {
    let answer = http(stage.mesh.system(), pod.v4().into(), ports::PROXY_HEALTH, "GET", "/metrics")?;
    Ok(answer.body.lines().any(|each| each == line))
}

fn flush(pod: &MeshPod, chain: &str) -> Result<()> {
    pod.nft(&format!("flush chain inet countersign {chain}")).map(drop)
}

pub fn answered(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    for ip in stage.server.addresses() {
        let answer = probe(&stage, ip, "/readyz")?;
        ensure!(answer.code == 200 && answer.body == "ready\n", "{answer:?}");
        for path in ["/", "/livez", "/metrics", "/status", "/app/web/liveness"] {
            let answer = probe(&stage, ip, path)?;
            ensure!(answer.code == 404 && answer.body == "here is /readyz\n", "{path}: {answer:?}");
        }
        let answer = http(stage.mesh.system(), ip, ports::SELF_PROOF, "POST", "/readyz")?;
        ensure!(answer.code == 405, "{answer:?}");
        // From inside the pod it is one of the proxy's own ports, like the others.
        ensure!(http(&stage.server, ip, ports::SELF_PROOF, "GET", "/readyz").is_err(), "{ip} answers the pod itself");
    }
    // Neither the witness nor the proxy's own proof is a connection of the app.
    let line = |line: &Value| line["destination_address"].as_str().is_some_and(|at| at.ends_with(":15021"));
    let told: Vec<_> = stage.server.access_log().into_iter().filter(line).collect();
    ensure!(told.iter().all(|line| line["direction"] == "outbound" && line["result"] == "bad_destination"), "{told:?}");
    flush(&stage.server, "prerouting")?;
    for ip in stage.server.addresses() {
        ensure!(probe(&stage, ip, "/readyz").is_err(), "answered without the redirect");
    }
    Ok(())
}

pub fn held_back(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let pod = stage.known(MeshPodSpec::new("bare", "bare", 40).without_sidecar())?;
    let sidecar = stage.mesh.sidecar_command(&pod)?.spawn()?;
    let status = || admin_get(&pod.admin_socket(), "/status").map_err(|error| format!("{error:#}"));
    let missing = |status: &Value| -> Vec<String> {
        let checks = status["checks"].as_array().cloned().unwrap_or_default();
        checks.iter().filter(|check| check["ok"] == false).map(|check| check["name"].to_string()).collect()
    };
    let only_that = wait_until(SOON, || {
        let status = status()?;
        if missing(&status) == ["\"redirect\""] { Ok(status) } else { Err(status.to_string()) }
    })?;
    ensure!(only_that["interception"]["outbound"]["state"] == "unproven", "{only_that}");
    let answer = readyz(&stage, &pod)?;
    ensure!(
        answer.code == 503 && answer.body.contains("redirect: the outbound redirect is not proven yet"),
        "{answer:?}"
    );
    ensure!(probe(&stage, pod.v4().into(), "/readyz").is_err(), "15021 answers with no rules at all");
    sidecar.wait_for_line(SOON, |line| line.contains("the outbound redirect is not in force yet"))?;
    ensure!(
        !metric(&stage, &pod, "countersign_interception_lost{direction=\"outbound\"} 1")?,
        "never there is not lost"
    );

    stage.mesh.intercept(&pod, "install")?;
    wait_until(SOON, || match probe(&stage, pod.v4().into(), "/readyz") {
        Ok(answer) if answer.code == 200 => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    ensure!(readyz(&stage, &pod)?.code == 200);
    Ok(())
}

pub fn lost_outbound(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let server = &stage.server;
    exchange(&stage.client, stage.address())?;
    let state = |state: &'static str| move |status: &Value| status["interception"]["outbound"]["state"] == state;
    status_until(server, state("proven"))?;
    flush(server, "output")?;
    let began = Instant::now();
    let status = status_until(server, state("lost"))?;
    ensure!(began.elapsed() < SECONDS, "{:?}", began.elapsed());
    let problem = status["interception"]["outbound"]["problem"].as_str().unwrap_or_default();
    ensure!(problem.contains(":15021 was not redirected"), "{status}");
    ensure!(status["ready"] == false, "{status}");
    let answer = readyz(&stage, server)?;
    ensure!(answer.code == 503 && answer.body.contains("the outbound redirect is lost"), "{answer:?}");
    ensure!(probe(&stage, server.v4().into(), "/readyz")?.code == 503);
    ensure!(metric(&stage, server, "countersign_interception_lost{direction=\"outbound\"} 1")?);
    server.with_sidecar(|sidecar| {
        sidecar.wait_for_line(SOON, |line| line.contains("the redirect is lost") && line.contains("outbound"))
    })?;
    // An app that listens on the port does not stand in for the rule.
    let _impostor = server.inside(|| std::net::TcpListener::bind(("0.0.0.0", ports::SELF_PROOF)))?;
    stage.mesh.intercept(server, "install")?;
    status_until(server, state("proven"))?;
    ensure!(readyz(&stage, server)?.code == 200);
    ensure!(metric(&stage, server, "countersign_interception_lost{direction=\"outbound\"} 0")?);
    flush(server, "output")?;
    status_until(server, state("lost"))?;
    Ok(())
}

pub fn lost_inbound(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let server = &stage.server;
    let view = |status: &Value| status["interception"]["inbound"].clone();
    let status = server.admin("/status")?;
    ensure!(view(&status)["problem"].as_str().unwrap_or_default().contains("nobody probes"), "{status}");
    for _ in 0..6 {
        ensure!(probe(&stage, server.v4().into(), "/readyz")?.code == 200);
    }
    let status = server.admin("/status")?;
    ensure!(view(&status)["state"] == "proven" && view(&status)["problem"].is_null(), "{status}");
    flush(server, "prerouting")?;
    let began = Instant::now();
    status_until(server, |status| view(status)["state"] == "lost")?;
    ensure!(began.elapsed() < SECONDS, "{:?}", began.elapsed());
    ensure!(metric(&stage, server, "countersign_interception_lost{direction=\"inbound\"} 1")?);
    // The outbound half is whole, and readiness is asked at the very port that is closed.
    ensure!(readyz(&stage, server)?.code == 200);
    ensure!(probe(&stage, server.v4().into(), "/readyz").is_err());
    stage.mesh.intercept(server, "install")?;
    ensure!(probe(&stage, server.v4().into(), "/readyz")?.code == 200);
    status_until(server, |status| view(status)["state"] == "proven")?;
    Ok(())
}
