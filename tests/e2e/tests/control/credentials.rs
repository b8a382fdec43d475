//! Certificates that live for ten seconds: they end, and they are renewed.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use countersign_api::ports;
use countersign_kit::mesh::{MeshPod, MeshPodSpec};
use countersign_kit::{Inside, wait_until};
use serde_json::Value;

use crate::explain::because;
use crate::stage::{RULES, SOON, Stage, http, status_until, text};
use crate::talk::{End, Talk, account, exchange, refused};

/// The shortest that the CA grants.
const SHORT: &[&str] = &["--svid-ttl", "10s"];
/// Renewals of each side that traffic is to survive.
const RENEWALS: u64 = 3;
/// Between two connections.
const PACE: Duration = Duration::from_millis(20);
/// How a sidecar explains that it lets nobody in or out.
const NO_SVID: &str = "this proxy has no SVID of its own that is good";

fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// When a sidecar's own SVID ends, in Unix seconds.
fn end_of_svid(pod: &MeshPod) -> Result<f64> {
    pod.admin("/status")?["credentials"]["not_after"].as_f64().context("no SVID")
}

pub fn ca_away(inside: &Inside) -> Result<()> {
    let stage = Stage::with_args(inside, SHORT)?;
    let steady = stage.mesh.pod(MeshPodSpec::new("steady", "client", 33))?;
    let mut open = Talk::open(&stage.client, stage.address())?;
    stage.mesh.stop_ca();
    let made_with = end_of_svid(&stage.client)?.min(end_of_svid(&stage.server)?);

    // Traffic goes on, also over new connections.
    exchange(&stage.client, stage.address())?;
    open.say("still here\n")?;

    // The connection ends with the earlier certificate of the two that it was made with.
    let local = open.local;
    ensure!(open.end(SOON)? == End::Reset);
    let late = unix_now() - made_with;
    ensure!((-0.1..2.5).contains(&late), "it ended {late} s after the certificate");
    // Both sides know when; whoever is a moment earlier ends it, and says why.
    let expired = |line: &Value| line["result"] == "credentials_expired" && line["blame"] == "control_plane";
    let line = account(&stage.client, local)?;
    if !expired(&line) {
        ensure!(line["result"] == "peer_reset", "{line}");
        stage.server.access_line(expired)?;
    }

    // Renewals that came before the CA went may have left either side some seconds.
    for pod in [&stage.client, &stage.server] {
        let status = status_until(pod, |status| status["credentials"]["expired"] == true)?;
        ensure!(status["ready"] == false, "ready without an SVID: {status}");
        ensure!(status["ca"]["failures_in_a_row"].as_u64() > Some(0), "{status}");
        text(&status, "/ca/last_error/text")?;
    }
    let line = refused(&stage.client, stage.address())?;
    ensure!(line["result"] == "svid_expired" && line["blame"] == "control_plane", "{line}");
    because(&stage, &line, NO_SVID)?;
    // One whose own certificate is good meets the server's.
    let line = refused(&steady, stage.address())?;
    ensure!(line["result"] == "handshake_failed", "{line}");
    because(&stage, &line, "the handshake of mutual TLS failed, and a meshed workload is never spoken to without")?;
    let line = stage.server.access_line(|line| line["result"] == "svid_expired")?;
    ensure!(line["direction"] == "inbound" && line["blame"] == "control_plane", "{line}");
    because(&stage, &line, NO_SVID)?;

    stage.mesh.start_ca()?;
    wait_until(SOON, || exchange(&stage.client, stage.address()))?;
    exchange(&steady, stage.address())?;
    status_until(&stage.client, |status| status["ready"] == true)?;
    Ok(())
}

/// Which of its SVIDs a sidecar has in force, and how many it had.
fn svid(pod: &MeshPod) -> Result<(String, u64)> {
    let status = pod.admin("/status")?;
    Ok((text(&status, "/credentials/serial")?, status["ca"]["renewals"].as_u64().context("no count of renewals")?))
}

pub fn renewals(inside: &Inside) -> Result<()> {
    let stage = Stage::with_args(inside, SHORT)?;
    let began = Instant::now();
    let firsts = [svid(&stage.client)?.1, svid(&stage.server)?.1];
    let mut serial = svid(&stage.client)?.0;
    // Each connection, and whether the own SVID was seen to be another than before the last one.
    let mut used: Vec<(SocketAddr, bool)> = Vec::new();
    // Open throughout: it began with the first certificates of both sides.
    let mut open = Talk::open(&stage.client, stage.address())?;
    loop {
        let (now, renewals) = svid(&stage.client)?;
        let renewed = now != std::mem::replace(&mut serial, now.clone());
        let local = exchange(&stage.client, stage.address())
            .with_context(|| format!("connection {} after {renewals} renewals", used.len()))?;
        used.push((local, renewed));
        ensure!(open.outlives(PACE)?, "the long connection ended: {}", account(&stage.client, open.local)?);
        open.say("ping\n")?;
        let counts = [renewals, svid(&stage.server)?.1];
        if counts.iter().zip(firsts).all(|(count, first)| *count >= first + RENEWALS) {
            break;
        }
        ensure!(began.elapsed() < Duration::from_secs(60), "renewals in a minute: {counts:?}");
    }
    account(&stage.client, used.last().context("no connection")?.0)?;
    let log = accounts(&stage.client)?;
    ensure!(proven_anew(&stage, &stage.client, "outbound")? > 0 && proven_anew(&stage, &stage.server, "inbound")? > 0);
    stage.server.access_line(|line| line["result"] == "reauthenticated" && line["blame"] == "none")?;
    // It is as mortal as any other: a change of rules ends it.
    stage.mesh.remove_object(RULES)?;
    ensure!(open.end(SOON)? == End::Reset);
    let line = account(&stage.client, open.local)?;
    ensure!(line["result"] == "peer_reset", "{line}");
    stage.server.access_line(|line| line["result"] == "no_policy" && line["duration_ms"].as_f64() > Some(5000.0))?;
    let mut before_was_fresh = true;
    let mut reused = 0;
    for (local, renewed) in &used {
        let line = log.get(local).with_context(|| format!("no account of {local}"))?;
        ensure!(line["result"] == "ok", "{line}");
        let fresh = line["reused"] == false;
        // The renewal may have come between our look at it and the connection before.
        ensure!(!renewed || fresh || before_was_fresh, "a link of the old certificate was used again: {line}");
        before_was_fresh = fresh;
        reused += usize::from(!fresh);
    }
    ensure!(reused * 2 > used.len(), "of {} connections only {reused} used a link again", used.len());
    Ok(())
}

/// How often an open connection was proven anew.
fn proven_anew(stage: &Stage, pod: &MeshPod, direction: &str) -> Result<u64> {
    let metrics = http(stage.mesh.system(), pod.v4().into(), ports::PROXY_HEALTH, "GET", "/metrics")?.body;
    let name = format!("countersign_reauthentications_total{{direction=\"{direction}\",result=\"ok\"}} ");
    let count = metrics.lines().find_map(|line| line.strip_prefix(&name));
    Ok(count.and_then(|count| count.parse().ok()).unwrap_or(0))
}

/// One side's token is spoilt, so that the CA gives it nothing new; the other side renews as ever.
pub fn one_side_cannot(inside: &Inside) -> Result<()> {
    for spoilt_is_client in [true, false] {
        let stage = Stage::with_args(inside, SHORT)?;
        let (spoilt, sound) =
            if spoilt_is_client { (&stage.client, &stage.server) } else { (&stage.server, &stage.client) };
        std::fs::write(stage.mesh.folder().join("pods").join(spoilt.name()).join("token"), "spoilt")?;
        let mut open = Talk::open(&stage.client, stage.address())?;
        let until = end_of_svid(spoilt)?;
        let first = svid(sound)?;
        ensure!(open.end(SOON)? == End::Reset);
        // It may have been renewed just before its token was spoilt, and a connection proven anew by that.
        let late = unix_now() - until.max(end_of_svid(spoilt)?);
        ensure!((-6.0..2.5).contains(&late), "it ended {late} s after the certificate of {}", spoilt.name());
        let expired = |line: &Value| line["result"] == "credentials_expired";
        if !expired(&account(&stage.client, open.local)?) {
            stage.server.access_line(expired)?;
        }
        ensure!(svid(sound)?.1 > first.1, "{} was not renewed meanwhile", sound.name());
    }
    Ok(())
}

/// The access log so far, by the app's end of each connection.
fn accounts(pod: &MeshPod) -> Result<HashMap<SocketAddr, Value>> {
    let lines = pod.access_log().into_iter().filter(|line| line["direction"] == "outbound");
    lines.map(|line| Ok((text(&line, "/source_address")?.parse()?, line))).collect()
}
