//! Attacks by who has no identity: a neighbour on the link, and the app on its own sidecar.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use countersign_api::names::ALPN;
use countersign_api::ports;
use countersign_kit::mesh::{MeshPod, MeshPodSpec};
use countersign_kit::testca::careless_client;
use countersign_kit::wait_for;
use rustls::version::TLS13;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::sidecar::{LIMIT, OPEN, Rude, address, nothing_is_left_of, stolen};
use crate::world::World;

/// An app on this pod that says back what it hears, until the world ends.
fn echo(pod: &MeshPod, port: u16) -> Result<[SocketAddr; 2]> {
    let places = pod.addresses().map(|ip| SocketAddr::new(ip, port));
    for at in places {
        let listener = pod.run(|| async { TcpListener::bind(at).await?.into_std() })?;
        let _task = pod.start(move || async move {
            let listener = TcpListener::from_std(listener)?;
            loop {
                let (mut io, _) = listener.accept().await?;
                tokio::spawn(async move {
                    let (mut reading, mut writing) = io.split();
                    tokio::io::copy(&mut reading, &mut writing).await?;
                    writing.shutdown().await
                });
            }
            #[allow(unreachable_code)]
            anyhow::Ok(())
        })?;
    }
    Ok(places)
}

/// The frontend's app asks, and is answered.
fn is_answered(world: &World, to: SocketAddr) -> Result<()> {
    world.frontend.run(|| async {
        let mut io = TcpStream::connect(to).await?;
        io.write_all(b"hello").await?;
        let mut answer = [0; 5];
        timeout(LIMIT, io.read_exact(&mut answer)).await.context("no answer")??;
        ensure!(&answer == b"hello");
        Ok(())
    })
}

/// Where connections come from, as the other end sees it.
fn ends(held: &[std::net::TcpStream]) -> Vec<SocketAddr> {
    held.iter().filter_map(|io| io.local_addr().ok()).collect()
}

pub fn silent_neighbours(world: &World) -> Result<()> {
    let places = echo(&world.backend2, world.port())?;
    for to in places {
        is_answered(world, to)?;
    }
    for to in places {
        let held = world.stranger.run(|| async {
            let mut dialling = JoinSet::new();
            for n in 0..600 {
                dialling.spawn(async move {
                    let mut io = TcpStream::connect(to).await?;
                    if n % 2 == 0 {
                        io.write_all(b"\x16\x03\x01\x10\x00\x01").await?; // the beginning of a hello
                    }
                    io.into_std()
                });
            }
            let mut held = Vec::new();
            while let Some(dialled) = dialling.join_next().await {
                held.extend(dialled.ok().and_then(Result::ok));
            }
            held
        });
        // A fresh link, too: the kept one would need no handshake.
        let fresh = SocketAddr::new(to.ip(), echo(&world.backend2, world.port())?[0].port());
        is_answered(world, to)?;
        is_answered(world, fresh).context("a fresh link")?;
        let gone = ends(&held);
        drop(held);
        nothing_is_left_of(&world.backend2, &gone)?;
    }
    Ok(())
}

pub fn half_a_handshake(world: &World) -> Result<()> {
    let to = address(&world.backend2, world.port());
    let gone = world.stranger.run(|| async {
        let config = careless_client(None, &[&TLS13], &[ALPN])?;
        let mut held = Vec::new();
        for _ in 0..100 {
            let name = std::net::IpAddr::from([0, 0, 0, 0]).into();
            let mut tls = rustls::ClientConnection::new(config.clone(), name)?;
            let mut hello = Vec::new();
            tls.write_tls(&mut hello)?;
            let mut io = TcpStream::connect(to).await?;
            io.write_all(&hello).await?;
            held.push(io);
        }
        for io in &mut held {
            // The server's side of the handshake, and then an end, though we never say a word more.
            let ended = async { while io.read(&mut [0; 4096]).await.is_ok_and(|n| n > 0) {} };
            timeout(LIMIT, ended).await.context("the handshake has no end")?;
        }
        // They are still open on our side: what is gone went by the server's own will.
        let gone: Vec<SocketAddr> = held.iter().filter_map(|io| io.local_addr().ok()).collect();
        anyhow::Ok(gone)
    })?;
    nothing_is_left_of(&world.backend2, &gone)
}

pub fn app_at_the_listener(world: &World) -> Result<()> {
    let places = echo(&world.backend2, world.port())?;
    let at = SocketAddr::from(([127, 0, 0, 1], ports::OUTBOUND));
    let held = world.frontend.run(|| async {
        let mut held = Vec::new();
        for _ in 0..1000 {
            held.extend(TcpStream::connect(at).await.and_then(TcpStream::into_std));
        }
        held
    });
    is_answered(world, places[0])?;
    let gone = ends(&held);
    drop(held);
    nothing_is_left_of(&world.frontend, &gone)
}

pub fn no_credentials_yet(world: &World) -> Result<()> {
    let ca = stolen(world)?;
    world.mesh.stop_ca();
    let result = before_the_first_svid(world, &ca);
    world.mesh.start_ca()?;
    result
}

fn before_the_first_svid(world: &World, ca: &countersign_kit::testca::TestCa) -> Result<()> {
    let pod = world.mesh.pod(MeshPodSpec::new("early", "early", 25).without_sidecar())?;
    world.mesh.intercept(&pod, "install")?;
    let sidecar = world.mesh.sidecar_command(&pod)?.spawn()?;
    let listening = |line: &str| line.contains("listening");
    sidecar.wait_for_line(LIMIT, listening)?;
    let to = address(&pod, world.port());
    let app = pod.run(|| async { TcpListener::bind(to).await?.into_std() })?;
    // In: as a good peer, and in plaintext. Out: to a good destination.
    world.stranger.run(|| async {
        let mut said = 0;
        if let Ok(mut rude) = Rude::dial(to, ca, "frontend", 3600).await {
            said = usize::from(rude.say(&OPEN).await.is_ok() && rude.hear().await.is_ok());
        }
        ensure!(said == 0, "a peer was heard");
        let mut io = TcpStream::connect(to).await?;
        let _ = io.write_all(b"GET / HTTP/1.0\r\n\r\n").await;
        ensure!(!timeout(LIMIT, io.read(&mut [0; 64])).await?.is_ok_and(|n| n > 0), "plaintext was answered");
        Ok(())
    })?;
    let backend = echo(&world.backend2, world.port())?[0];
    let began = std::time::Instant::now();
    pod.run(|| async {
        let mut io = TcpStream::connect(backend).await?;
        let _ = io.write_all(b"?").await;
        ensure!(!timeout(LIMIT, io.read(&mut [0; 64])).await?.is_ok_and(|n| n > 0), "it went out");
        Ok(())
    })?;
    ensure!(began.elapsed() < LIMIT / 2, "held for {:?}", began.elapsed());
    let accepted = pod.run(|| async {
        timeout(Duration::from_millis(300), TcpListener::from_std(app)?.accept())
            .await
            .map_err(anyhow::Error::from)
            .map(drop)
    });
    ensure!(accepted.is_err(), "the app was dialled");
    let words = ["no_svid", "plaintext_refused", "no_answer"];
    wait_for(LIMIT, "each refusal is logged", || {
        let log = sidecar.log().join("\n");
        words.iter().all(|word| log.contains(word))
    })
}
