//! A neighbour on the link that forges destinations: frames to the pod's hardware address that name loopback, or another host.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};

use anyhow::{Result, ensure};
use countersign_kit::Forger;
use countersign_kit::mesh::MeshPodSpec;
use serde_json::Value;

use crate::line;
use crate::world::World;

/// What the victim's kernel or its sidecar does with a forged destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The redirect takes it before routing could call it martian; the sidecar's guard refuses it.
    Refused,
    /// The kernel drops it: nobody answers.
    Dropped,
}

pub fn destinations(world: &World) -> Result<()> {
    // A pod of its own, as its kernel is kept quiet.
    let forger = world.mesh.pod(MeshPodSpec::new("forger", "stranger", 17).unmeshed())?;
    let victim = &world.backend1;
    let port = world.port();
    // What believes that only its own pod can reach it, and an app on all addresses.
    let apps: Vec<TcpListener> = ["127.0.0.1", "127.0.0.77", "[::1]"]
        .into_iter()
        .map(|ip| victim.inside(|| TcpListener::bind(format!("{ip}:{port}"))))
        .collect::<Result<_, _>>()?;
    let everywhere = victim.inside(|| TcpListener::bind(("::", world.port())))?;
    let open = everywhere.local_addr()?.port();
    let mut forger = Forger::new(&forger, victim)?;
    let fence = SocketAddr::new(victim.v4().into(), open);

    let forged = [
        (format!("127.0.0.1:{port}"), Fate::Refused),
        (format!("127.0.0.77:{port}"), Fate::Refused),
        (format!("127.255.0.1:{open}"), Fate::Refused),
        (format!("[::1]:{port}"), Fate::Dropped),
        (format!("[::ffff:127.0.0.1]:{port}"), Fate::Dropped),
        (format!("{}:{open}", world.backend2.v4()), Fate::Dropped),
        (format!("[{}]:{open}", world.backend2.v6()), Fate::Dropped),
        (format!("169.254.169.254:{open}"), Fate::Dropped),
        (format!("[2001:db8::7]:{open}"), Fate::Dropped),
        (format!("10.77.0.255:{open}"), Fate::Dropped),
    ];
    for (named, fate) in &forged {
        let named: SocketAddr = named.parse()?;
        let answered = forger.handshake(named, fence)?.is_some();
        ensure!(answered == (*fate == Fate::Refused), "{named} was answered: {answered}");
        if answered {
            let line = line(victim, named)?;
            ensure!(line["result"] == "bad_destination" && line["blame"] == "peer", "{line}");
        }
    }
    // Another whole handshake, so that whatever the last did is done.
    forger.handshake(fence, fence)?;
    for (named, fate) in &forged {
        let about = |line: &Value| line["destination_address"].as_str() == Some(named.as_str());
        let told = victim.access_log().iter().any(about);
        ensure!(told == (*fate == Fate::Refused), "{named} reached the sidecar: {told}");
    }
    for app in apps.iter().chain([&everywhere]) {
        app.set_nonblocking(true)?;
        let met = app.accept().map(|(_, from)| from);
        let nobody = met.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        ensure!(nobody, "{} was reached: {met:?}", app.local_addr()?);
    }
    Ok(())
}
