//! What a neighbour on the link sees.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::{Result, anyhow, ensure};
use countersign_api::names::ALPN;
use countersign_kit::tls::only_tls13;
use countersign_kit::{Capture, Captured};

use super::{only_the_frontend, place};
use crate::programs::curl;
use crate::world::World;

/// Far more than all that passes meanwhile.
const BOUND: usize = 512 * 1024 * 1024;

/// Request and response carry a marker; so does a connection to a pod without a sidecar, and that one is found.
pub fn marker(world: &World) -> Result<()> {
    let place = place(world)?;
    let _nginx = place.nginx("", "    location / { return 200 \"$http_x_marker\\n\"; }")?;
    let (secret, plain) = (format!("secret marker {}", place.port), format!("plain marker {}", place.port));
    let capture = Capture::start(world.mesh.net(), BOUND)?;
    for address in place.addresses() {
        let header = format!("X-Marker: {secret}");
        let said = curl(&world.frontend, &format!("http://{address}/"))?.args(["-H", &header]).succeed()?;
        ensure!(said.trim() == secret, "{said:?}");
        only_the_frontend(&world.backend1, address)?;
    }
    say_plainly(world, SocketAddr::from((world.stranger.v4(), place.port)), &plain)?;
    let captured = capture.finish()?;
    ensure!(captured.contains(plain.as_bytes()), "the capture does not even hold what went in the clear");
    only_ours(&captured, &place.addresses(), &[secret.as_bytes()])
}

/// To a pod without a sidecar bytes pass as they are.
fn say_plainly(world: &World, server: SocketAddr, word: &str) -> Result<()> {
    let listener = world.stranger.inside(|| TcpListener::bind(server))?;
    let mut client = world.frontend.inside(|| TcpStream::connect(server))?;
    client.write_all(word.as_bytes())?;
    let mut heard = vec![0; word.len()];
    listener.accept()?.0.read_exact(&mut heard)?;
    ensure!(heard == word.as_bytes());
    Ok(())
}

/// All that the capture holds of connections to these addresses is our own TLS 1.3, and none of these words is anywhere in it.
pub fn only_ours(captured: &Captured, servers: &[SocketAddr], words: &[&[u8]]) -> Result<()> {
    ensure!(captured.whole(), "the capture lost frames");
    for server in servers {
        let flows = captured.flows_to(*server);
        ensure!(!flows.is_empty(), "nothing went to {server}");
        for flow in flows {
            let (hello, answer) = only_tls13(&flow.to_server.bytes, &flow.to_client.bytes)
                .map_err(|why| anyhow!("to {server}: {why}"))?;
            ensure!(flow.to_server.whole && flow.to_client.whole, "to {server}: a gap");
            ensure!(hello.alpn == [ALPN] && !hello.server_name, "to {server}: {hello:?}");
            ensure!(answer.group.is_some(), "to {server}: {answer:?}");
        }
    }
    for word in words {
        ensure!(!captured.contains(word), "{:?} is on the link", String::from_utf8_lossy(word));
    }
    Ok(())
}
