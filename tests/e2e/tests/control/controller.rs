//! The controller comes and goes.
//!
//! That an un-meshed answer ends after 30 s even while nobody can be asked is not waited for here, but proven with time of its own in
//! `proxy/src/discovery/cache_tests.rs` (`an_unmeshed_answer_ends_with_its_life_even_while_nobody_can_be_asked`).

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use countersign_kit::{Inside, wait_until};
use serde_json::{Value, json};

use crate::explain::because;
use crate::stage::{SOON, Stage, controller_until, status_until};
use crate::talk::{Talk, account, exchange, refused};

fn is_connected(status: &Value) -> bool {
    status["controller"]["connected"] == true
}

/// Stops the controller; both sidecars have noticed when this returns.
fn stop_controller(stage: &Stage) -> Result<()> {
    stage.mesh.stop_controller();
    for pod in [&stage.client, &stage.server] {
        status_until(pod, |status| !is_connected(status))?;
    }
    Ok(())
}

pub fn known_goes_on(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let intruder = stage.pod("intruder", 32)?;
    let mut open = Talk::open(&stage.client, stage.address())?;
    ensure!(refused(&intruder, stage.address())?["result"] == "denied_by_peer");
    stop_controller(&stage)?;

    open.say("still here\n")?;
    // While that one is open, a new one needs a link of its own.
    let line = account(&stage.client, exchange(&stage.client, stage.address())?)?;
    ensure!(line["reused"] == false && line["result"] == "ok", "{line}");
    ensure!(line["security"] == "mutual_tls", "{line}");
    let line = refused(&intruder, stage.address())?;
    ensure!(line["result"] == "denied_by_peer", "{line}");
    open.finish()?;
    Ok(())
}

pub fn cold_is_refused(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    exchange(&stage.client, stage.address())?;
    stop_controller(&stage)?;

    // Nobody asked for the IPv6 address yet.
    let began = Instant::now();
    let line = refused(&stage.client, stage.address_v6())?;
    let took = began.elapsed();
    ensure!(line["result"] == "no_answer" && line["blame"] == "control_plane", "{line}");
    ensure!((Duration::from_millis(900)..Duration::from_secs(3)).contains(&took), "{took:?}");
    ensure!(stage.echo.greeted() == 1, "the app was reached");
    because(&stage, &line, "nobody is dialled whom the controller has not named")?;

    stage.mesh.start_controller()?;
    wait_until(SOON, || exchange(&stage.client, stage.address_v6()))?;
    Ok(())
}

pub fn restarted(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let revision = |pod| -> Result<Value> {
        let status = status_until(pod, |status| is_connected(status) && status["policy"]["revision"].is_string())?;
        Ok(status["policy"]["revision"].clone())
    };
    let pods = [&stage.client, &stage.server];
    let before = [revision(pods[0])?, revision(pods[1])?];
    let mut open = Talk::open(&stage.client, stage.address())?;
    stop_controller(&stage)?;
    stage.mesh.start_controller()?;

    let both_know = |status: &Value| {
        let proxies = status["proxies"].as_array().cloned().unwrap_or_default();
        proxies.len() == 2 && proxies.iter().all(|p| p["acked_revision"].is_string())
    };
    let status = controller_until(&stage.mesh, both_know)?;
    for (proxy, revision) in status["proxies"].as_array().into_iter().flatten().zip(&before) {
        ensure!(proxy["acked_revision"] == *revision, "{proxy} had {revision}");
    }
    ensure!([revision(pods[0])?, revision(pods[1])?] == before, "another revision after the restart");
    open.say("still here\n")?;
    let local = open.local;
    open.finish()?;
    ensure!(account(&stage.client, local)?["result"] == json!("ok"));
    exchange(&stage.client, stage.address())?;
    Ok(())
}
