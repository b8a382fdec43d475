//! Where the app may go.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Result, ensure};
use countersign_kit::Inside;

use crate::openmetrics;
use crate::stage::{PORT, SOON, Stage, at, http, metric};
use crate::talk::{Echo, End, Talk, account, exchange, refused};

/// On the link's own interface, outside the mesh's ranges.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

struct Elsewhere {
    outside: Echo,
    stranger: Echo,
    stranger_address: SocketAddr,
    _stranger_pod: countersign_kit::mesh::MeshPod,
}

/// Somebody without a sidecar inside the ranges, and somebody outside.
fn elsewhere(stage: &Stage) -> Result<Elsewhere> {
    let link = stage.mesh.net().link();
    link.ip(&format!("address add {OUTSIDE}/32 dev lo\n"))?;
    let pod = stage.stranger(34)?;
    Ok(Elsewhere {
        outside: Echo::start(link, PORT)?,
        stranger: Echo::start(&pod, PORT)?,
        stranger_address: at(&pod, PORT),
        _stranger_pod: pod,
    })
}

pub fn mesh_only(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let elsewhere = elsewhere(&stage)?;
    let mut to_the_stranger = Talk::open(&stage.client, elsewhere.stranger_address)?;
    let mut to_the_mesh = Talk::open(&stage.client, stage.address())?;
    stage.modes("countersign.dev/egress: MeshOnly", ["Strict", "Enforce", "MeshOnly"])?;
    ensure!(to_the_stranger.end(SOON)? == End::Reset);
    let line = account(&stage.client, to_the_stranger.local)?;
    ensure!(line["result"] == "egress_mesh_only" && line["denial_id"].is_string(), "{line}");
    to_the_mesh.say("still here\n")?;
    for to in [elsewhere.stranger_address, SocketAddr::new(OUTSIDE.into(), PORT)] {
        let line = refused(&stage.client, to)?;
        ensure!(line["result"] == "egress_mesh_only" && line["blame"] == "policy", "{line}");
        ensure!(line["denial_id"].is_string() && line["policy_revision"].is_string(), "{line}");
    }
    ensure!((elsewhere.stranger.greeted(), elsewhere.outside.greeted()) == (1, 0), "reached again");
    exchange(&stage.client, stage.address())?;
    Ok(())
}

pub fn any(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let elsewhere = elsewhere(&stage)?;
    for to in [elsewhere.stranger_address, SocketAddr::new(OUTSIDE.into(), PORT), stage.address()] {
        let local = exchange(&stage.client, to)?;
        account(&stage.client, local)?; // it is counted by now
    }
    // Inside and outside alike: a connection each, "over\n" there, and "hello\nover\n" back.
    for (what, both) in [("connections_closed", 2.0), ("sent_bytes", 2.0 * 5.0), ("received_bytes", 2.0 * 11.0)] {
        let name = format!("countersign_tcp_{what}_total");
        let counted = metric(&stage, &stage.client, &name, ("connection_security_policy", "none"))?;
        ensure!(counted == both, "{name}: {counted}");
    }
    let metrics =
        http(stage.mesh.system(), stage.client.v4().into(), countersign_api::ports::PROXY_HEALTH, "GET", "/metrics")?;
    let metrics = openmetrics::parse(&metrics.body)?;
    let counted: Vec<_> = metrics.samples("countersign_plaintext_inside_mesh_total").collect();
    ensure!(counted.len() == 1, "{counted:?}");
    ensure!(counted[0].labels["destination"] == elsewhere.stranger_address.ip().to_string(), "{counted:?}");
    ensure!(counted[0].value == 1.0, "{counted:?}");
    let status = stage.client.admin("/status")?;
    ensure!(status["plaintext_inside_mesh"][0] == elsewhere.stranger_address.ip().to_string(), "{status}");
    Ok(())
}
