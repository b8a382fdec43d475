//! Endpoints that are down, gone, not ready, or somebody else.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use countersign_kit::mesh::{MeshPod, MeshPodSpec};
use countersign_kit::{Inside, wait_until};

use crate::stage::{PORT, SOON, Stage, at};
use crate::talk::{Echo, Talk, account, exchange, refused};

/// The service of all pods labelled `app: server`.
pub const SERVICE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 10)), 80);

/// The server, and a second endpoint of the same service, with nothing listening there.
fn two_endpoints(stage: &Stage) -> Result<MeshPod> {
    let second = stage.mesh.pod(MeshPodSpec::new("server-2", "server", 36))?;
    stage.mesh.service("shop", "server", 10, &[(SERVICE.port(), PORT)])?;
    stage.mesh.settle(&[&stage.server, &second])?;
    Ok(second)
}

/// With one connection open to the only good endpoint, the next is drawn to the bad one first: it has fewer.
fn drawn_to_the_bad_one(stage: &Stage) -> Result<()> {
    let mut held = Talk::open(&stage.client, SERVICE)?;
    let local = exchange(&stage.client, SERVICE)?;
    let line = account(&stage.client, local)?;
    ensure!(line["result"] == "ok" && line["upstream_address"] == stage.address().to_string(), "{line}");
    ensure!(line["destination_address"] == SERVICE.to_string(), "{line}");
    held.finish()?;
    Ok(())
}

pub fn app_down(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let second = two_endpoints(&stage)?;
    drawn_to_the_bad_one(&stage)?;
    let line = second.access_line(|line| line["result"] == "app_unreachable")?;
    ensure!(line["blame"] == "app", "{line}");
    // Named alone, it gives way to nobody.
    let line = refused(&stage.client, at(&second, PORT))?;
    ensure!(line["result"] == "app_unreachable", "{line}");

    // Its app comes up: within ten seconds it is tried again, and takes its share from then on.
    let app = Echo::start(&second, PORT)?;
    let mut held = Talk::open(&stage.client, SERVICE)?;
    wait_until(SOON, || {
        exchange(&stage.client, SERVICE)?;
        ensure!(app.greeted() > 0, "nobody came to the second");
        Ok(())
    })?;
    let before = app.greeted();
    exchange(&stage.client, SERVICE)?;
    ensure!(app.greeted() == before + 1, "the one with fewer connections was not taken");
    held.finish()?;
    Ok(())
}

pub fn gone(inside: &Inside) -> Result<()> {
    let stage = Stage::with_args(inside, &["--connect-timeout", "500ms"])?;
    let second = two_endpoints(&stage)?;
    let apps = Echo::start(&second, PORT)?;
    // A link to it is kept.
    exchange(&stage.client, at(&second, PORT))?;
    drop((apps, second));
    drawn_to_the_bad_one(&stage)?;
    drawn_to_the_bad_one(&stage)?;
    ensure!(stage.echo.greeted() == 4);
    Ok(())
}

pub fn none_ready(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    stage.mesh.service("shop", "server", 10, &[(SERVICE.port(), PORT)])?;
    wait_until(SOON, || exchange(&stage.client, SERVICE))?;

    let file = stage.mesh.folder().join("objects/pod-server.yaml");
    let ready = std::fs::read_to_string(&file)?;
    let unready = ready.replace("ready: true", "ready: false");
    ensure!(unready != ready, "{ready}");
    stage.mesh.object("pod-server.yaml", &unready)?;
    let line = wait_until(SOON, || refused(&stage.client, SERVICE).map_err(|e| e.to_string()))?;
    ensure!(line["result"] == "no_ready_endpoint" && line["blame"] == "control_plane", "{line}");
    ensure!(line["detail"].as_str().is_some_and(|detail| detail.contains("shop/server")), "{line}");
    // By its own address it is reached all the same.
    exchange(&stage.client, stage.address())?;

    stage.mesh.object("pod-server.yaml", &ready)?;
    wait_until(SOON, || exchange(&stage.client, SERVICE))?;
    Ok(())
}

pub fn somebody_else(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    exchange(&stage.client, stage.address())?;
    let file = stage.mesh.folder().join("objects/pod-server.yaml");
    let right = std::fs::read_to_string(&file)?;
    let wrong = right.replace("serviceAccount: server", "serviceAccount: treasurer");
    ensure!(wrong != right, "{right}");
    stage.mesh.object("pod-server.yaml", &wrong)?;
    let line = wait_until(SOON, || refused(&stage.client, stage.address()).map_err(|e| e.to_string()))?;
    ensure!(line["result"] == "identity_mismatch" && line["blame"] == "peer", "{line}");
    let detail = line["detail"].as_str().context("no detail")?;
    ensure!(detail.contains("sa/treasurer") && detail.contains("sa/server"), "{detail}");

    // Not a byte in the clear, and nothing for the app.
    let before = stage.echo.greeted();
    let seen = stage.server.access_log().len();
    let line = refused(&stage.client, stage.address())?;
    ensure!(line["result"] == "identity_mismatch" && line["security"] == "none" && line["bytes_sent"] == 0, "{line}");
    ensure!(stage.echo.greeted() == before, "the app was reached");
    wait_until(SOON, || if stage.server.access_log().len() > seen { Ok(()) } else { Err("no account of it") })?;
    for line in stage.server.access_log().split_off(seen) {
        ensure!(line["bytes_sent"] == 0 && line["result"] != "plaintext_refused", "{line}");
    }

    stage.mesh.object("pod-server.yaml", &right)?;
    wait_until(SOON, || exchange(&stage.client, stage.address()))?;
    Ok(())
}
