//! What a sidecar does at its bounds.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use countersign_kit::mesh::{MeshPod, MeshPodSpec};
use countersign_kit::{Inside, hostile, uninterrupted, wait_until};
use socket2::{Domain, Socket, Type};

use crate::stage::{PORT, SOON, Stage, at, metric};
use crate::talk::{Talk, exchange};

/// `--max-connections` of both sidecars.
const MOST: usize = 4;
/// Far less than any time limit of a sidecar: what is queued would wait for longer.
const AT_ONCE: Duration = Duration::from_secs(2);

fn shed(stage: &Stage, pod: &MeshPod) -> Result<f64> {
    metric(stage, pod, "countersign_connections_shed_total", ("reason", "connections"))
}

/// As many as may be.
fn fill(stage: &Stage, from: &MeshPod) -> Result<Vec<Talk>> {
    // A sidecar that proves its own redirect takes a place of its outbound ones for a moment; what ended just now may still have one.
    (0..MOST).map(|_| wait_until(SOON, || Talk::open(from, stage.address()))).collect()
}

/// One more than may be; its own end.
fn beyond(stage: &Stage, from: &MeshPod) -> Result<std::net::SocketAddr> {
    let began = Instant::now();
    let mut talk = Talk::dial(from, stage.address())?;
    let error = talk.greeted().err().context("one more than may be was served")?;
    ensure!(error.kind() == ErrorKind::ConnectionReset, "{error} instead of a reset");
    ensure!(began.elapsed() < AT_ONCE, "refused after {:?}", began.elapsed());
    Ok(talk.local)
}

/// The bound is each direction's own. The server side is filled by a client whose sidecar has none of that kind.
pub fn connections(inside: &Inside) -> Result<()> {
    let stage = Stage::with_args(inside, &["--max-connections", &MOST.to_string()])?;
    let many = stage.mesh.pod(MeshPodSpec::new("client-2", "client", 32))?;
    for (from, full) in [(&many, &stage.server), (&stage.client, &stage.client)] {
        let mut held = fill(&stage, from)?;
        let (before, greeted) = (shed(&stage, full)?, stage.echo.greeted());
        let local = beyond(&stage, from)?;
        let now = shed(&stage, full)?;
        ensure!(now - before == 1.0, "{before} were shed, then {now}");
        ensure!(stage.echo.greeted() == greeted, "the app was reached");
        let of_it = |line: &serde_json::Value| line["source_address"] == local.to_string();
        ensure!(!full.access_log().iter().any(of_it), "a line for one that was shed");
        for talk in &mut held {
            talk.say("still here\n").context("held, while another was shed")?;
        }
        held.swap_remove(0).abort()?;
        wait_until(SOON, || exchange(from, stage.address())).context("a place was given back")?;
        // With it go the links that it keeps: each has a place at the server, though no app uses it.
        from.stop_sidecar();
    }
    Ok(())
}

/// Far more than all the kernel's buffers on the way hold.
const BLOCKS: usize = 64;
const BLOCK: usize = 1 << 20;
/// A write that did not go on for as long is stalled.
const STALLED: Duration = Duration::from_secs(1);
/// The most that a sidecar may grow meanwhile, in KiB.
const GROWTH: u64 = 1024;

/// What a process holds in memory of its own, in KiB.
fn memory(pod: &MeshPod) -> Result<u64> {
    let pid = pod.with_sidecar(|sidecar| Ok(sidecar.pid()))?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Sends all blocks; tells how much had gone when it first stalled.
fn send(mut stream: TcpStream, block: &[u8], stalled: &Sender<usize>) -> io::Result<()> {
    stream.set_write_timeout(Some(STALLED))?;
    let (mut sent, mut told) = (0, false);
    while sent < BLOCKS * BLOCK {
        match stream.write(&block[sent % BLOCK..]) {
            Ok(written) => sent += written,
            Err(error) if !told && error.kind() == ErrorKind::WouldBlock => {
                told = true;
                let _ = stalled.send(sent);
                stream.set_write_timeout(Some(SOON))?;
            }
            Err(error) => return Err(error),
        }
    }
    stream.shutdown(Shutdown::Write)
}

/// Nobody reads, until the sender has stalled; then everything arrives as it was sent.
fn stall(stage: &Stage, sender: TcpStream, mut receiver: TcpStream) -> Result<()> {
    let block = hostile::garbage(7, BLOCK);
    let pods = [&stage.client, &stage.server];
    let before = [memory(pods[0])?, memory(pods[1])?];
    let (tell, told) = channel();
    let bounded = |when: &str| -> Result<()> {
        for (pod, before) in pods.iter().zip(before) {
            let now = memory(pod)?;
            ensure!(now <= before + GROWTH, "{} {when}: {now} KiB, {before} before", pod.spec().name);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| send(sender, &block, &tell));
        let sent = told.recv_timeout(SOON * 3).context("the sender never stalled")?;
        ensure!(sent < BLOCKS * BLOCK, "all of it went, and nobody read");
        bounded("while nobody reads")?;
        receiver.set_read_timeout(Some(SOON))?;
        let mut received = vec![0; BLOCK];
        for number in 0..BLOCKS {
            receiver.read_exact(&mut received).with_context(|| format!("block {number}"))?;
            ensure!(received == block, "block {number} is not what was sent");
        }
        ensure!(uninterrupted(|| receiver.read(&mut received))? == 0, "more than was sent");
        sending.join().ok().context("the sender panicked")??;
        bounded("after all of it")
    })
}

/// Either way: the server does not read, then the client does not.
pub fn unread(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    exchange(&stage.client, stage.address())?; // the first connection costs more than the next
    let to = at(&stage.server, PORT + 1);
    let listener: TcpListener = stage.server.inside(|| -> io::Result<_> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_recv_buffer_size(4096)?; // inherited by what it accepts
        socket.bind(&to.into())?;
        socket.listen(8)?;
        Ok(socket.into())
    })?;
    for to_server in [true, false] {
        let client = stage.client.run(|| async { hostile::unreading(to).await?.into_std() })?;
        client.set_nonblocking(false)?;
        // A word, so that the connection stands from end to end.
        (&client).write_all(b"x")?;
        let (server, _) = listener.accept()?;
        (&server).read_exact(&mut [0])?;
        let (sender, receiver) = if to_server { (client, server) } else { (server, client) };
        stall(&stage, sender, receiver).with_context(|| format!("to the server: {to_server}"))?;
    }
    Ok(())
}
