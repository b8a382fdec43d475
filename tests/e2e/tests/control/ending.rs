//! A sidecar ends: told to withdraw, told to end, forced.

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use countersign_api::ports;
use countersign_kit::Inside;
use countersign_kit::mesh::{MeshPod, binary};
use nix::sys::signal::Signal;

use crate::stage::{PORT, SOON, Stage, admin, at, http, listeners_closed, signal};
use crate::talk::{Echo, End, Talk, account, exchange, refused};

/// Exit code of a drain that cut connections.
const FORCED: i32 = 3;

fn exit(pod: &MeshPod) -> Result<ExitStatus> {
    pod.with_sidecar(|sidecar| sidecar.wait(SOON))
}

fn is_ready(stage: &Stage) -> Result<bool> {
    // From outside the mesh, as a kubelet asks.
    let answer = http(stage.mesh.system(), stage.server.v4().into(), ports::PROXY_HEALTH, "GET", "/readyz")?;
    ensure!(matches!(answer.code, 200 | 503), "{answer:?}");
    Ok(answer.code == 200)
}

pub fn drained(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let server = &stage.server;
    let mut open = Talk::open(&stage.client, stage.address())?;
    ensure!(is_ready(&stage)?);

    let answer = admin(&server.admin_socket(), "POST", "/drain", "")?;
    ensure!(answer.code == 200 && answer.body.contains("withdrawn"), "{answer:?}");
    ensure!(!is_ready(&stage)?, "ready after it was told to withdraw");
    open.say("still here\n").context("open, withdrawn")?;
    exchange(&stage.client, stage.address()).context("new, withdrawn")?;

    signal(server, Signal::SIGTERM)?;
    listeners_closed(&stage, server)?;
    ensure!(!is_ready(&stage)?, "ready while it drains");
    open.say("still here\n").context("open, draining")?;
    let line = refused(&stage.client, stage.address())?;
    ensure!(line["result"] == "connect_failed" || line["result"] == "draining", "{line}");
    ensure!(!server.with_sidecar(|sidecar| Ok(sidecar.ended()))?, "it ended under an open connection");
    let local = open.local;
    open.finish().context("its end")?;
    let status = exit(server)?;
    ensure!(status.code() == Some(0), "{status}");
    ensure!(account(&stage.client, local)?["result"] == "ok");
    let line = server.access_line(|line| line["bytes_sent"] == 22)?;
    ensure!(line["result"] == "ok", "{line}");
    Ok(())
}

pub fn deadline(inside: &Inside) -> Result<()> {
    let stage = Stage::with_args(inside, &["--drain-deadline", "1s"])?;
    let stranger = stage.stranger(34)?;
    let _strangers = Echo::start(&stranger, PORT)?;
    let mut open = Talk::open(&stage.client, stage.address())?;
    let mut plain = Talk::open(&stage.server, at(&stranger, PORT))?;
    let began = Instant::now();
    signal(&stage.server, Signal::SIGTERM)?;
    ensure!(open.end(SOON)? == End::Reset);
    let took = began.elapsed();
    ensure!((Duration::from_millis(900)..Duration::from_secs(5)).contains(&took), "{took:?}");
    let status = exit(&stage.server)?;
    ensure!(status.code() == Some(FORCED), "{status}");
    ensure!(plain.end(SOON)? == End::Reset);
    let server = &stage.server;
    let inbound = server.access_line(|line| line["direction"] == "inbound" && line["security"] == "mutual_tls")?;
    // What has no identity as well.
    let outbound = account(server, plain.local)?;
    for line in [inbound, outbound] {
        ensure!(line["result"] == "drain_forced" && line["blame"] == "proxy", "{line}");
    }
    Ok(())
}

pub fn second_signal(inside: &Inside) -> Result<()> {
    let stage = Stage::with_args(inside, &["--drain-deadline", "1h"])?;
    // This time the app's own side ends.
    let mut open = Talk::open(&stage.client, stage.address())?;
    signal(&stage.client, Signal::SIGTERM)?;
    listeners_closed(&stage, &stage.client)?;
    open.say("still here\n")?;
    signal(&stage.client, Signal::SIGTERM)?;
    ensure!(open.end(SOON)? == End::Reset);
    let status = exit(&stage.client)?;
    ensure!(status.code() == Some(FORCED), "{status}");
    let line = account(&stage.client, open.local)?;
    ensure!(line["result"] == "drain_forced", "{line}");
    Ok(())
}

/// As a preStop hook runs it, in an image that holds nothing else.
pub fn drain_command(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let server = &stage.server;
    let socket = server.admin_socket().display().to_string();
    let run = |more: &[&str]| -> Result<(Option<i32>, String)> {
        let command = server.command(binary("countersign-proxy")?).args(["drain", "--admin-socket", &socket]);
        let done = command.args(more.iter().copied()).finish()?;
        Ok((done.status.code(), done.errors()))
    };
    let mut open = Talk::open(&stage.client, stage.address())?;
    ensure!(run(&["--wait", "soon"])?.0 == Some(2));
    ensure!(is_ready(&stage)?, "a bad setting told the proxy");
    let began = Instant::now();
    ensure!(run(&[])? == (Some(0), String::new()));
    ensure!(began.elapsed() < SOON && !is_ready(&stage)?);
    open.say("still here\n")?;
    exchange(&stage.client, stage.address()).context("new, withdrawn")?;
    let (code, said) = run(&["--wait", "300ms"])?;
    ensure!(code == Some(3) && said.contains("still open"), "{code:?} {said}");
    open.finish()?;
    let (code, said) = run(&["--wait", "1m"])?;
    ensure!(code == Some(0), "{code:?} {said}");
    signal(server, Signal::SIGTERM)?;
    ensure!(exit(server)?.code() == Some(0));
    let (code, said) = run(&[])?;
    ensure!(code == Some(1) && said.contains(&socket), "{code:?} {said}");
    Ok(())
}
