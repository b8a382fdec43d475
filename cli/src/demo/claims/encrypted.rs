//! Claim 1: an unmodified client and server talk over mutual TLS, by service address, to both endpoints.
//!
//! Called by `demo`. What the link carries is told by our own capture, which must also find the marker where it is in the
//! clear: a capture that sees nothing proves nothing.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, ensure};

use countersign_kit::tls::only_tls13;
use countersign_kit::{Capture, Captured, Flow, Here as _};
use serde_json::Value;

use super::{text, wait_for_lines};
use crate::demo::apps::{self, HTTP};
use crate::demo::say::Say;
use crate::demo::stage::Stage;

/// Over each of IPv4 and IPv6.
const REQUESTS: usize = 20;
/// Far more than these requests make.
const CAPTURE_BOUND: usize = 64 * 1024 * 1024;

/// Shows and checks it.
pub fn check(stage: &Stage, say: &mut Say) -> Result<()> {
    let marker = stage.marker();
    let (captured, by) = capture(stage, || requests(stage, say, &marker))?;
    let answers: Vec<_> = by.iter().map(|(who, times)| format!("{who} ({times})")).collect();
    say.fact(format!("the answers came from {}", answers.join(" and ")));
    ensure!(by.len() == stage.backends.len(), "not every endpoint of the service answered in 2 x {REQUESTS} requests");
    identities(stage, say)?;
    link(stage, say, &captured, &marker)?;
    control(stage, say, &marker)
}

fn capture<T>(stage: &Stage, work: impl FnOnce() -> Result<T>) -> Result<(Captured, T)> {
    let capture = Capture::start(stage.mesh.net(), CAPTURE_BOUND)?;
    let done = work();
    let captured = capture.finish()?;
    let done = done?;
    proves(captured.whole(), "the capture did not see everything")?;
    Ok((captured, done))
}

/// A capture that did not see what must be there proves nothing: neither that the claim holds nor that it does not.
fn proves(sees: bool, why_not: &str) -> Result<()> {
    if sees { Ok(()) } else { Err(anyhow!("{why_not}: it proves nothing")).here() }
}

/// The requests; who answered how often.
fn requests(stage: &Stage, say: &Say, marker: &str) -> Result<BTreeMap<String, usize>> {
    let urls = [stage.service_url("/"), stage.service_url_v6("/")];
    for url in &urls {
        say.command("frontend", &format!("{}    # {REQUESTS} times", apps::curl_line(url, marker)));
    }
    let mut by = BTreeMap::new();
    for url in urls.iter().cycle().take(urls.len() * REQUESTS) {
        let done = apps::curl(&stage.frontend, url, marker)?;
        let body = done.text();
        let who = body.trim().strip_suffix(marker).and_then(|rest| rest.strip_suffix(" got "));
        let said = || format!("curl was not served ({}): {body}{}", done.status, done.errors().trim());
        *by.entry(who.with_context(said)?.to_owned()).or_default() += 1;
    }
    Ok(by)
}

/// Whom the server side saw, by its own log.
fn identities(stage: &Stage, say: &mut Say) -> Result<()> {
    let backends: Vec<_> = stage.backends.iter().collect();
    let port = format!(":{HTTP}");
    let of_http =
        |line: &Value| text(line, "direction") == "inbound" && text(line, "destination_address").ends_with(&port);
    let lines = wait_for_lines(&backends, 2 * REQUESTS, "inbound connections at the backends", of_http)?;
    for line in &lines {
        ensure!(text(line, "security") == "mutual_tls", "the server side logged one without mutual TLS: {line}");
        ensure!(text(line, "source_id") == stage.frontend_id, "the server side saw somebody else: {line}");
    }
    say.fact(format!("the server side saw {} on each of {} connections", stage.frontend_id, lines.len()));
    Ok(())
}

/// What was on the link.
fn link(stage: &Stage, say: &mut Say, captured: &Captured, marker: &str) -> Result<()> {
    let from_frontend = |flow: &Flow| stage.frontend.addresses().contains(&flow.client.ip());
    let to_backend = |flow: &Flow| stage.backends.iter().any(|pod| pod.addresses().contains(&flow.server.ip()));
    let flows: Vec<Flow> =
        captured.flows().into_iter().filter(|flow| from_frontend(flow) && to_backend(flow)).collect();
    for (family, v4) in [("IPv4", true), ("IPv6", false)] {
        let some = flows.iter().any(|flow| flow.server.is_ipv4() == v4);
        proves(some, &format!("the capture holds no {family} connection between the pods"))?;
    }
    let (mut bytes, mut groups) = (0, Vec::new());
    for flow in &flows {
        proves(flow.to_server.whole && flow.to_client.whole, "the capture has a gap")?;
        let chosen = only_tls13(&flow.to_server.bytes, &flow.to_client.bytes);
        let (_, hello) = chosen.map_err(|why| anyhow::anyhow!("{} to {}: {why}", flow.client, flow.server))?;
        bytes += flow.to_server.bytes.len() + flow.to_client.bytes.len();
        groups.push(hello.group.map_or_else(|| "no key exchange".to_owned(), group_name));
    }
    groups.sort();
    groups.dedup();
    ensure!(!captured.contains(marker.as_bytes()), "the marker was on the link");
    say.fact(format!(
        "capture of the link, {} frames: {} TCP connections between these pods over IPv4 and IPv6, TLS 1.3 ({}) to the last of {bytes} bytes",
        captured.frames().len(),
        flows.len(),
        groups.join(", ")
    ));
    say.fact("the marker that each request and each answer carried is nowhere in it");
    say.figure("frames", captured.frames().len());
    say.figure("connections", flows.len());
    say.figure("bytes", bytes);
    Ok(())
}

/// The same capture where there are no sidecars: if it finds nothing there, it proved nothing.
fn control(stage: &Stage, say: &mut Say, marker: &str) -> Result<()> {
    let url = stage.pod_url(&stage.plain.server, "/");
    let (captured, done) = capture(stage, || apps::curl(&stage.plain.client, &url, marker))?;
    let said = format!("curl between two pods without sidecars: {}", done.errors().trim());
    proves(done.status.success(), &said)?;
    proves(captured.contains(marker.as_bytes()), "the capture does not find the marker in the clear")?;
    say.fact("(the same capture between two pods without sidecars finds it at once)");
    Ok(())
}

fn group_name(group: u16) -> String {
    match group {
        0x11ec => "X25519MLKEM768".to_owned(),
        0x001d => "X25519".to_owned(),
        0x0017 => "secp256r1".to_owned(),
        other => format!("group {other:#06x}"),
    }
}
