//! Endpoints that are down, gone, not ready, or somebody else.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use countersign_kit::mesh::{MeshPod, MeshPodSpec};
use countersign_kit::{Inside, wait_until};

use crate::explain::{because, countersign};
use crate::stage::{CLIENT, PORT, RULES, SERVER_ID, SOON, Stage, at, policy, status_until, text};
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
    because(&stage, &line, "a service is reached at its ready endpoints alone")?;
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
    let id = text(&line, "/denial_id")?;
    let (code, said) = countersign(&stage, &["explain", &id])?;
    ensure!(code == Some(0), "{code:?} {said}");
    let to = format!("to        {}", stage.address());
    let words = [
        "refused: identity_mismatch",
        "sa/treasurer",
        "source    the pod's own app",
        &to,
        "change    let the controller",
    ];
    for words in words {
        ensure!(said.contains(words), "{words:?} is not in {said}");
    }

    // Not a byte in the clear, and nothing for the app.
    let before = stage.echo.greeted();
    let seen = stage.server.access_log().len();
    let line = refused(&stage.client, stage.address())?;
    ensure!(line["result"] == "identity_mismatch" && line["security"] == "none" && line["bytes_sent"] == 0, "{line}");
    ensure!(line["denial_id"] == id.as_str(), "another id for a repeat: {line}");
    ensure!(stage.echo.greeted() == before, "the app was reached");
    wait_until(SOON, || if stage.server.access_log().len() > seen { Ok(()) } else { Err("no account of it") })?;
    for line in stage.server.access_log().split_off(seen) {
        ensure!(line["bytes_sent"] == 0 && line["result"] != "plaintext_refused", "{line}");
    }

    stage.mesh.object("pod-server.yaml", &right)?;
    wait_until(SOON, || exchange(&stage.client, stage.address()))?;
    Ok(())
}

/// Nothing comes to the client's pod from the controller any more, and what goes there comes to this.
fn cut_off(stage: &Stage, end: &str) -> Result<()> {
    let system = stage.mesh.system();
    let (v4, v6) = (system.v4(), system.v6());
    let chain = |hook: &str, side: &str, end: &str| {
        let all = format!("ip {side} {v4} meta l4proto tcp {end}; ip6 {side} {v6} meta l4proto tcp {end};");
        format!("chain {hook} {{ type filter hook {hook} priority -300; {all} }}\n")
    };
    // The reset that answers for the controller comes over the loopback.
    let chains = chain("prerouting", "saddr", "iifname != lo drop") + &chain("output", "daddr", end);
    stage.client.nft(&format!("table inet cut {{\n{chains}}}\n"))
}

fn joined(stage: &Stage) -> Result<()> {
    stage.client.nft("delete table inet cut")
}

/// What an address that was reused comes to while the client is not told that it was, and afterwards. `away` is how the controller goes, for
/// the client alone: a pod without rules would not serve.
fn reused(inside: &Inside, away: fn(&Stage) -> Result<()>) -> Result<()> {
    let stage = Stage::with_args(inside, &["--connect-timeout", "500ms"])?;
    exchange(&stage.client, stage.address())?;
    away(&stage)?;
    // The server's pod goes, and one of another account gets its address, its label and rules.
    let Stage { echo, client, server, mesh } = stage;
    drop((echo, server));
    mesh.remove_object("pod-server.yaml")?;
    let server = mesh.pod(MeshPodSpec { account: "usurper".into(), ..MeshPodSpec::new("server-2", "server", 31) })?;
    let echo = Echo::start(&server, PORT)?;
    mesh.settle(&[&server])?;
    let stage = Stage { echo, client, server, mesh };
    // As a network tells who moves an address.
    stage.client.ip("neigh flush dev eth0\n")?;

    // The client knows of the server that was; whoever is there now proves to be another, and gets not a byte.
    let seen = stage.client.access_log().len();
    let line = wait_until(SOON * 2, || {
        let line = refused(&stage.client, stage.address())?;
        ensure!(line["result"] != "connect_failed", "not there yet: {line}");
        Ok::<_, anyhow::Error>(line)
    })?;
    ensure!(line["result"] == "identity_mismatch" && line["blame"] == "peer", "{line}");
    let detail = line["detail"].as_str().context("no detail")?;
    ensure!(detail.contains(SERVER_ID) && detail.contains("sa/usurper"), "{detail}");
    for line in stage.client.access_log().split_off(seen) {
        ensure!(line["result"] != "ok" && line["bytes_sent"] == 0, "{line}");
    }
    ensure!(stage.echo.greeted() == 0, "the app of another account was reached");

    // The controller tells who is there; rules for the server's label let the client in at whoever bears it.
    joined(&stage)?;
    wait_until(SOON * 2, || exchange(&stage.client, stage.address()))?;
    ensure!(stage.echo.greeted() > 0);
    // And they are what decides.
    stage.mesh.object(RULES, &policy("client-to-server", "Deny", CLIENT))?;
    wait_until(SOON, || {
        // One that is open just as the rule comes is cut, and says so.
        let line = refused(&stage.client, stage.address())?;
        ensure!(line["result"] == "denied_by_peer", "{line}");
        Ok(())
    })
}

/// The stream stays up, and nothing comes over it.
pub fn reused_while_the_controller_hangs(inside: &Inside) -> Result<()> {
    reused(inside, |stage| cut_off(stage, "drop"))
}

/// The stream has ended, and the client knows that.
pub fn reused_while_the_controller_is_away(inside: &Inside) -> Result<()> {
    reused(inside, |stage| {
        cut_off(stage, "reject with tcp reset")?;
        // Its next word to the controller finds out.
        ensure!(refused(&stage.client, stage.address_v6())?["result"] == "no_answer");
        status_until(&stage.client, |status| status["controller"]["connected"] == false).map(drop)
    })
}
