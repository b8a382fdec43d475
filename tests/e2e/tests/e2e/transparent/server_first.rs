//! Protocols in which the server speaks first: whoever waits for the client's first bytes stalls them.

use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use countersign_kit::{Pod, uninterrupted};

use super::{only_the_frontend, place};
use crate::programs::{Place, curl};
use crate::world::World;

/// Connections measured each way; all stay open, so that each needs a handshake of its own in the mesh.
const TRIES: usize = 5;
/// What the mesh may add. The sidecars' own patience for first bytes is 2 s: a stall would show as that.
const STALL: Duration = Duration::from_millis(500);
const LIMIT: Duration = Duration::from_secs(20);

/// A message goes through an SMTP session, over each family.
pub fn smtp(world: &World) -> Result<()> {
    let place = place(world)?;
    let servers = place.smtp()?;
    for (address, server) in place.addresses().into_iter().zip(&servers) {
        let said = curl(&world.frontend, &format!("smtp://{address}"))?
            .args(["--mail-from", "frontend@shop.example", "--mail-rcpt", "backend@shop.example", "--upload-file", "-"])
            .stdin(format!("Subject: countersign\r\n\r\nthe word is {address}\r\n"))
            .succeed()?;
        ensure!(said.is_empty(), "{said}");
        server.wait_for_line(LIMIT, |line| line == format!("the word is {address}"))?;
        only_the_frontend(&world.backend1, address)?;
    }
    no_stall(&world.frontend, &place, b"220 ")
}

/// The server's first bytes come through the mesh nearly as soon as they come directly; `greeting` is in them.
pub fn no_stall(client: &Pod, place: &Place, greeting: &[u8]) -> Result<()> {
    for (meshed, direct) in place.addresses().into_iter().zip(place.direct()) {
        let direct = median(first_bytes(place.pod, direct, greeting)?);
        let meshed = median(first_bytes(client, meshed, greeting)?);
        ensure!(meshed < direct + STALL, "first byte after {meshed:?}, directly after {direct:?}");
    }
    Ok(())
}

fn first_bytes(pod: &Pod, server: SocketAddr, greeting: &[u8]) -> Result<Vec<Duration>> {
    let mut open = Vec::new();
    let mut times = Vec::new();
    for _ in 0..TRIES {
        let began = Instant::now();
        let mut stream = pod.inside(|| TcpStream::connect_timeout(&server, LIMIT))?;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut said = [0; 64];
        let length = uninterrupted(|| stream.read(&mut said));
        let length = length.with_context(|| format!("waiting for {server} to speak"))?;
        times.push(began.elapsed());
        ensure!(said[..length].windows(greeting.len()).any(|part| part == greeting), "{:?}", &said[..length]);
        open.push(stream);
    }
    Ok(times)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
