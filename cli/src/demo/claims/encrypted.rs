//! Claim 1: an unmodified client and server talk over mutual TLS, by service address, to both endpoints.
//!
//! Called by `demo`. What the link carries is told by our own capture, which must also find the marker where it is in the
//! clear: a capture that sees nothing proves nothing.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use super::{text, wait_for_lines};
use crate::demo::apps::{self, HTTP};
use crate::demo::say::Say;
use crate::demo::stage::Stage;
use crate::demo::wire::{Capture, Captured, contains, summary};

const REQUESTS: usize = 20;
const TLS_1_3: u16 = 0x0304;

/// Shows and checks it.
pub fn check(stage: &Stage, say: &mut Say) -> Result<()> {
    let capture = stage.mesh.net().link().inside(Capture::start)?;
    let marker = stage.marker();
    let by = requests(stage, say, &marker)?;
    let control = stage.pod_url(&stage.plain.server, "/");
    let plain = apps::curl(&stage.plain.client, &control, &marker)?;
    ensure!(
        contains(&plain.stdout, marker.as_bytes()),
        "curl between the pods without sidecars: {}",
        plain.errors().trim()
    );
    let captured = capture.stop();
    if let Some(path) = &stage.capture_file {
        captured.write(path)?;
    }
    say.fact(format!(
        "the answers came from {}",
        by.iter().map(|(who, n)| format!("{who} ({n})")).collect::<Vec<_>>().join(" and ")
    ));
    ensure!(by.len() == stage.backends.len(), "not every endpoint of the service answered in {REQUESTS} requests");
    identities(stage, say)?;
    link(stage, say, &captured, marker.as_bytes())
}

/// The requests; who answered how often.
fn requests(stage: &Stage, say: &Say, marker: &str) -> Result<BTreeMap<String, usize>> {
    let url = stage.service_url("/");
    say.command("frontend", &format!("curl {}    # {REQUESTS} times", apps::curl_args(&url, marker).join(" ")));
    let mut by = BTreeMap::new();
    for _ in 0..REQUESTS {
        let done = apps::curl(&stage.frontend, &url, marker)?;
        let body = done.text();
        let who = body.trim().strip_suffix(marker).and_then(|rest| rest.strip_suffix(" got "));
        let who =
            who.with_context(|| format!("curl was not served ({}): {body}{}", done.status, done.errors().trim()))?;
        *by.entry(who.to_owned()).or_default() += 1;
    }
    Ok(by)
}

/// Whom the server side saw, by its own log.
fn identities(stage: &Stage, say: &mut Say) -> Result<()> {
    let backends: Vec<_> = stage.backends.iter().collect();
    let of_http = |line: &serde_json::Value| {
        text(line, "direction") == "inbound" && text(line, "destination_address").ends_with(&format!(":{HTTP}"))
    };
    let lines = wait_for_lines(&backends, REQUESTS, "inbound connections at the backends", of_http)?;
    for line in &lines {
        ensure!(
            text(line, "security") == "mutual_tls",
            "the server side logged a connection without mutual TLS: {line}"
        );
        ensure!(text(line, "source_id") == stage.frontend_id, "the server side saw somebody else: {line}");
    }
    say.fact(format!("the server side saw {} on {} of {} connections", stage.frontend_id, lines.len(), lines.len()));
    Ok(())
}

/// What was on the link.
fn link(stage: &Stage, say: &mut Say, captured: &Captured, marker: &[u8]) -> Result<()> {
    let backends: Vec<_> = stage.backends.iter().flat_map(|pod| pod.addresses()).collect();
    let streams = captured.streams(&stage.frontend.addresses(), &backends);
    let found = summary(&streams);
    ensure!(found.problems.is_empty(), "between the pods: {}", found.problems.join("; "));
    ensure!(!found.hellos.is_empty() && found.encrypted_records > 0, "the capture holds no TLS between the pods");
    ensure!(found.hellos.iter().all(|hello| hello.version == TLS_1_3), "a server chose a TLS version that is not 1.3");
    ensure!(
        !streams.iter().any(|stream| contains(&stream.bytes, marker)),
        "the marker was on the link between the pods"
    );
    let (client, server) = (stage.plain.client.addresses(), stage.plain.server.addresses());
    let control = captured.streams(&client, &server);
    let clear = control.iter().filter(|stream| contains(&stream.bytes, marker)).count();
    ensure!(clear == 2, "the capture did not find the marker where it was in the clear: it proves nothing");
    let frames = captured.frames_with(&stage.frontend.addresses(), &backends, marker);
    ensure!(frames == 0, "the marker was in {frames} frames between the pods");
    say.fact(format!(
        "capture of the link ({} frames): {} connections between these pods, TLS 1.3 with {}, {} bytes, all in TLS records",
        captured.len(),
        found.connections,
        found.hellos[0].group_name(),
        found.bytes
    ));
    say.fact("the marker that each request and answer carried is not in it");
    say.fact("(between two pods without sidecars the same capture found it in request and answer)");
    say.figure("connections", found.connections);
    say.figure("bytes", found.bytes);
    Ok(())
}
