//! How connections end: by halves, or by a reset.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use countersign_kit::mesh::MeshPod;
use countersign_kit::{Pod, uninterrupted, wait_until};
use serde_json::json;
use socket2::SockRef;

use super::{listen, only_the_frontend, place};
use crate::world::World;

const LIMIT: Duration = Duration::from_secs(20);
/// Fits into what the systems' own buffers hold, so that one thread can play both sides.
const PART: usize = 48 * 1024;

/// Either side ends its own half first; the other goes on, and both hear all.
pub fn half_close(world: &World) -> Result<()> {
    let place = place(world)?;
    for (listener, address) in listen(&place)?.iter().zip(place.addresses()) {
        let (mut client, mut server) = pair(&world.frontend, listener, address)?;
        ends_first(&mut client, &mut server)?;
        drop((client, server));
        let (mut client, mut server) = pair(&world.frontend, listener, address)?;
        // A word from the client first: what follows needs no more than an open connection.
        client.write_all(b"?")?;
        server.read_exact(&mut [0])?;
        ends_first(&mut server, &mut client)?;
        drop((client, server));
        only_the_frontend(&world.backend1, address)?;
        ended(&world.backend1, address, &[&["ok"], &["ok"]])?;
    }
    Ok(())
}

/// `first` says something and ends its half; `second` hears the end, and only then answers.
fn ends_first(first: &mut TcpStream, second: &mut TcpStream) -> Result<()> {
    let (question, answer) = (vec![b'q'; PART], vec![b'a'; PART]);
    first.write_all(&question)?;
    first.shutdown(Shutdown::Write)?;
    ensure!(rest(second)? == question, "the question was cut");
    for _ in 0..3 {
        second.write_all(&answer)?;
        let mut heard = vec![0; PART];
        first.read_exact(&mut heard)?;
        ensure!(heard == answer, "another answer");
    }
    second.shutdown(Shutdown::Write)?;
    ensure!(rest(first)?.is_empty(), "more than the answer");
    Ok(())
}

/// In the middle of a transfer one side resets: the other side's system says so, and never that all was said.
pub fn reset(world: &World) -> Result<()> {
    let place = place(world)?;
    for (listener, address) in listen(&place)?.iter().zip(place.addresses()) {
        let (client, server) = pair(&world.frontend, listener, address)?;
        reset_heard(client, server)?;
        let (client, server) = pair(&world.frontend, listener, address)?;
        reset_heard(server, client)?;
        let (client, server) = pair(&world.frontend, listener, address)?;
        reset_while_sending(client, server)?;
        let (client, server) = pair(&world.frontend, listener, address)?;
        reset_while_sending(server, client)?;
        ended(
            &world.backend1,
            address,
            &[&["app_reset"], &["app_reset"], &["peer_gone", "peer_reset"], &["peer_reset"]],
        )?;
    }
    Ok(())
}

/// `listening` waits for the rest of what `resetting` has begun to say.
fn reset_heard(mut resetting: TcpStream, mut listening: TcpStream) -> Result<()> {
    resetting.write_all(&[b'x'; PART])?;
    listening.read_exact(&mut [0; PART])?;
    SockRef::from(&resetting).set_linger(Some(Duration::ZERO))?;
    drop(resetting);
    match uninterrupted(|| listening.read(&mut [0; PART])) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
        other => bail!("instead of a reset: {other:?}"),
    }
}

/// `sending` is in the middle of saying more than anybody's buffers hold.
fn reset_while_sending(mut resetting: TcpStream, mut sending: TcpStream) -> Result<()> {
    resetting.write_all(b"?")?;
    sending.read_exact(&mut [0])?;
    let sender = std::thread::spawn(move || {
        loop {
            if let Err(error) = sending.write_all(&[b'x'; PART]) {
                return error;
            }
        }
    });
    for _ in 0..100 {
        resetting.read_exact(&mut [0; PART])?;
    }
    SockRef::from(&resetting).set_linger(Some(Duration::ZERO))?;
    drop(resetting);
    match sender.join() {
        Ok(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
        other => bail!("instead of a reset: {other:?}"),
    }
}

/// A connection from `client` to the listener, seen from both ends.
fn pair(client: &Pod, listener: &TcpListener, address: SocketAddr) -> Result<(TcpStream, TcpStream)> {
    let client = client.inside(|| TcpStream::connect_timeout(&address, LIMIT))?;
    let (server, _) = wait_until(LIMIT, || listener.accept())?;
    server.set_nonblocking(false)?;
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
    }
    Ok((client, server))
}

fn rest(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The server's sidecar tells of these ends of connections to this address, one of each set, in the order of the words. (The
/// word `RST` may be lost where more is on its way than is read to its end: the link itself is then reset, and the app too.)
fn ended(pod: &MeshPod, address: SocketAddr, expected: &[&[&str]]) -> Result<()> {
    let to = json!(address.to_string());
    wait_until(LIMIT, || {
        let lines = pod.access_log();
        let about = lines.iter().filter(|line| line["direction"] == "inbound" && line["destination_address"] == to);
        let mut results: Vec<String> = about.map(|line| line["result"].as_str().unwrap_or("?").to_owned()).collect();
        results.sort_unstable();
        let fits = results.len() == expected.len()
            && results.iter().zip(expected).all(|(result, words)| words.contains(&result.as_str()));
        if fits { Ok(()) } else { Err(results) }
    })
}
