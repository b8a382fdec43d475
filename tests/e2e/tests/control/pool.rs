//! Links that wait for another use, and what may happen to them meanwhile.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, SocketAddrV4, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Error, Result, ensure};
use countersign_api::names::ALPN;
use countersign_kit::mesh::{MeshPod, MeshPodSpec};
use countersign_kit::testca::{LeafSpec, TestCa, careless_client};
use countersign_kit::{Inside, wait_for};
use nix::sys::signal::Signal;
use rustls::version::TLS13;
use serde_json::Value;
use socket2::SockRef;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::endpoints::SERVICE;
use crate::stage::{CLIENT_ID, PORT, SERVER_ID, SOON, Stage, at, listeners_closed, metric, signal};
use crate::talk::{Echo, End, Talk, account, exchange, refused};

pub fn reused(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let lines: Vec<Value> =
        (0..2).map(|_| account(&stage.client, exchange(&stage.client, stage.address())?)).collect::<Result<_>>()?;
    stage.server.access_line(|line| line["reused"] == true)?;
    let theirs = stage.server.access_log();
    ensure!(theirs.len() == 2, "{theirs:?}");
    for (line, expected) in lines.iter().zip([false, true]).chain(theirs.iter().zip([false, true])) {
        ensure!(line["reused"] == expected && line["result"] == "ok", "{line}");
        ensure!(line["source_id"] == CLIENT_ID && line["destination_id"] == SERVER_ID, "{line}");
    }
    // Both came over one TCP connection.
    ensure!(theirs[0]["source_address"] == theirs[1]["source_address"], "{theirs:?}");
    // Two at once are never on one link.
    let mut one = Talk::open(&stage.client, stage.address())?;
    let mut another = Talk::open(&stage.client, stage.address())?;
    let (one_local, another_local) = (one.local, another.local);
    one.finish()?;
    another.finish()?;
    let kept = [account(&stage.client, one_local)?, account(&stage.client, another_local)?];
    ensure!(kept[0]["reused"] == true && kept[1]["reused"] == false, "{kept:?}");
    Ok(())
}

const RUDE: &str = "go away\n";

/// Denied, nobody there, reset by the server, reset by the client: twice each, and the pool never has anything to give.
pub fn never_again(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let stranger = stage.pod("other", 32)?;
    let nobody = at(&stage.server, PORT + 1);
    let rude = at(&stage.server, PORT + 2);
    let listener = stage.server.inside(|| TcpListener::bind(("::", rude.port())))?;
    // Says a word, then resets; as often as it is asked here.
    std::thread::spawn(move || -> std::io::Result<()> {
        for stream in listener.incoming().take(2) {
            let mut stream = stream?;
            stream.write_all(RUDE.as_bytes())?;
            // Read: else the word could be lost to the reset.
            stream.read_exact(&mut [0; RUDE.len()])?;
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        }
        Ok(())
    });
    let denied = || refused(&stranger, stage.address());
    let unreachable = || refused(&stage.client, nobody);
    let reset_there = || {
        let mut talk = Talk::dial(&stage.client, rude)?;
        talk.hear(RUDE)?;
        talk.tell(RUDE)?;
        ensure!(talk.end(SOON)? == End::Reset);
        account(&stage.client, talk.local)
    };
    let reset_here = || {
        let talk = Talk::open(&stage.client, stage.address())?;
        let local = talk.local;
        talk.abort()?;
        account(&stage.client, local)
    };
    let ends: [(&str, &dyn Fn() -> Result<Value>); 4] = [
        ("denied_by_peer", &denied),
        ("app_unreachable", &unreachable),
        ("peer_reset", &reset_there),
        ("app_reset", &reset_here),
    ];
    for (result, end) in ends {
        for round in 0..2 {
            let line = end().with_context(|| format!("{result}, round {round}"))?;
            ensure!(line["result"] == result && line["reused"] == false, "{line}");
            // Up to a handshake, and a word of the other side: there was something to keep.
            ensure!(line["destination_id"] == SERVER_ID, "{line}");
        }
    }
    for pod in [&stranger, &stage.client] {
        let taken = metric(&stage, pod, "countersign_pool_takes_total", ("result", "reused"))?;
        ensure!(taken == 0.0, "{taken} taken from the pool");
    }
    // What ended well before it is used again all the same.
    exchange(&stage.client, stage.address())?;
    let line = account(&stage.client, exchange(&stage.client, stage.address())?)?;
    ensure!(line["reused"] == true, "{line}");
    Ok(())
}

pub fn killed(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    for round in 0..5 {
        exchange(&stage.client, stage.address())?;
        stage.server.stop_sidecar();
        stage.mesh.start_sidecar(&stage.server)?;
        let local = exchange(&stage.client, stage.address()).with_context(|| format!("round {round}"))?;
        let line = account(&stage.client, local)?;
        ensure!(line["reused"] == false && line["result"] == "ok", "{line}");
    }
    Ok(())
}

/// The app dials while its own sidecar is held still, so that all the server side did meanwhile lies before it when it takes the
/// kept link.
pub fn drained(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    exchange(&stage.client, stage.address())?;
    signal(&stage.client, Signal::SIGSTOP)?;
    let mut waiting = Talk::dial(&stage.client, stage.address())?;
    waiting.tell("over\n")?;
    signal(&stage.server, Signal::SIGTERM)?;
    let status = stage.server.with_sidecar(|sidecar| sidecar.wait(SOON))?;
    ensure!(status.code() == Some(0), "an idle link held the drain up: {status}");
    stage.mesh.start_sidecar(&stage.server)?;
    signal(&stage.client, Signal::SIGCONT)?;
    waiting.greeted()?;
    waiting.hear("over\n")?;
    let local = waiting.local;
    waiting.finish()?;
    let line = account(&stage.client, local)?;
    ensure!(line["reused"] == false && line["result"] == "ok", "{line}");
    Ok(())
}

/// The server side says `CLOSING` while `OPEN` is under way to it: what it says is held back on the client's doorstep, so that the
/// two cross for certain.
pub fn crossed(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let second = stage.mesh.pod(MeshPodSpec::new("server-2", "server", 36))?;
    let second_app = Echo::start(&second, PORT)?;
    stage.mesh.service("shop", "server", 10, &[(SERVICE.port(), PORT)])?;
    stage.mesh.settle(&[&stage.server, &second])?;
    // With one connection open to the second, the next is drawn to the first, to which a link is kept.
    let _held = Talk::open(&stage.client, at(&second, PORT))?;
    exchange(&stage.client, SERVICE)?;
    let reused = || metric(&stage, &stage.client, "countersign_pool_takes_total", ("result", "reused"));
    ensure!(stage.echo.greeted() == 1 && reused()? == 0.0);

    stage.client.nft(&format!(
        "table inet doorstep {{\n chain c {{\n type filter hook prerouting priority -300\n ip saddr {} tcp sport {PORT} drop\n }}\n}}\n",
        stage.server.v4()
    ))?;
    signal(&stage.server, Signal::SIGTERM)?;
    listeners_closed(&stage, &stage.server)?;
    let mut talk = Talk::dial(&stage.client, SERVICE)?;
    talk.tell("over\n")?;
    wait_for(SOON, "the kept link is used", || reused().is_ok_and(|count| count == 1.0))?;
    stage.client.nft("delete table inet doorstep")?;

    talk.greeted()?;
    talk.hear("over\n")?;
    talk.finish()?;
    let line = account(&stage.client, talk.local)?;
    ensure!(line["result"] == "ok" && line["upstream_address"] == at(&second, PORT).to_string(), "{line}");
    ensure!((stage.echo.greeted(), second_app.greeted()) == (1, 2), "not once, and at the second");
    Ok(())
}

/// `--link-idle-timeout` of the server side; the client's own patience is a minute.
const IDLE: Duration = Duration::from_secs(2);
const CLOSING: [u8; 4] = [6, 0, 0, 0];

/// As the client, mutual TLS and then not a word: what the server side says by itself until it ends, and when that was.
fn silent(stage: &Stage, to: SocketAddr) -> Result<(Vec<u8>, Duration)> {
    let ca = stage.mesh.folder().join("ca");
    let ca = TestCa::stolen(&ca.join("state"), &ca.join("state.key"))?;
    let config = careless_client(Some(ca.leaf(&LeafSpec::of(CLIENT_ID))?), &[&TLS13], &[ALPN])?;
    stage.mesh.system().run(|| async move {
        let began = Instant::now();
        let io = TcpStream::connect(to).await?;
        let name = IpAddr::from([0, 0, 0, 0]).into();
        let mut tls = timeout(SOON, TlsConnector::from(config).connect(name, io)).await??;
        let mut said = Vec::new();
        timeout(SOON, tls.read_to_end(&mut said)).await.context("it was not ended")??;
        Ok::<_, Error>((said, began.elapsed()))
    })
}

/// Whether the pod holds a connection that the other end, `to`, has ended (`CLOSE_WAIT`).
fn ended_by(to: SocketAddrV4, pod: &MeshPod) -> Result<bool> {
    let pid = pod.with_sidecar(|sidecar| Ok(sidecar.pid()))?;
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp"))?;
    let remote = format!("{:08X}:{:04X}", u32::from_ne_bytes(to.ip().octets()), to.port());
    Ok(table.lines().any(|row| row.split_whitespace().skip(2).take(2).eq([remote.as_str(), "08"])))
}

/// A link that never carried anything has an account of its own end; a kept one has none, its last use is in the log. One in use
/// is not idle.
pub fn idle_at_the_server(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let idle = format!("{}s", IDLE.as_secs());
    let proxy_args = ["--link-idle-timeout", &idle, "--pool-idle-timeout", "1s"].map(str::to_owned).to_vec();
    let second = stage.mesh.pod(MeshPodSpec { proxy_args, ..MeshPodSpec::new("server-2", "server", 36) })?;
    let app = Echo::start(&second, PORT)?;
    stage.mesh.settle(&[&second])?;
    let to = at(&second, PORT);
    let mut used = Talk::open(&stage.client, to)?;
    exchange(&stage.client, to)?;

    let (said, after) = silent(&stage, to)?;
    ensure!(said == CLOSING && after >= IDLE, "{said:?} after {after:?}");
    let line = second.access_line(|line| line["result"] == "closed_idle")?;
    ensure!(line["direction"] == "inbound" && line["blame"] == "none", "{line}");
    let kept = SocketAddrV4::new(second.v4(), PORT);
    wait_for(SOON, "the kept link is ended", || ended_by(kept, &stage.client).unwrap_or(false))?;

    used.say("still here\n").context("in use meanwhile")?;
    let line = account(&stage.client, exchange(&stage.client, to)?)?;
    ensure!(line["result"] == "ok" && line["reused"] == false, "{line}");
    // The ended one was not even tried: the app met each connection once.
    let taken = metric(&stage, &stage.client, "countersign_pool_takes_total", ("result", "reused"))?;
    ensure!(taken == 0.0 && app.greeted() == 3, "{taken} taken from the pool, {} met", app.greeted());
    Ok(())
}
