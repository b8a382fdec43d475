//! Attacks on the client side, by a server that proves the right identity and lies all the same.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use countersign_api::names::ALPN;
use countersign_kit::mesh::{MeshPod, MeshPodSpec};
use countersign_kit::testca::{LeafSpec, careless_server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::sidecar::{ACCEPTED, CLOSING, FIN, LIMIT, OPEN, RST, Rude, Torn, UNREACHABLE, address, data, id, stolen};
use crate::world::World;

/// Every link that comes to a lying server at any of `pods`, which are of one account, is answered with `answer`, after its `OPEN` and
/// `DATA`, and then torn, or left to the other side; gives what was heard, by link, until nobody came for two seconds.
fn liar(
    world: &World,
    pods: &[&MeshPod],
    port: u16,
    answer: Vec<u8>,
    torn: Option<Torn>,
) -> Result<countersign_kit::Task<Result<Vec<Vec<u8>>>>> {
    let (ca, account) = (stolen(world)?, pods[0].spec().account.clone());
    let bound = |pod: &&MeshPod| {
        let at = address(pod, port);
        pod.run(|| async { TcpListener::bind(at).await?.into_std() })
    };
    let listeners = pods.iter().map(bound).collect::<io::Result<Vec<_>>>()?;
    world.unguarded.start(move || async move {
        let listeners = listeners.into_iter().map(TcpListener::from_std).collect::<io::Result<Vec<_>>>()?;
        let (mut heard, mut patience) = (Vec::new(), LIMIT);
        while let Ok(accepted) = timeout(patience, whoever_comes(&listeners)).await {
            let mut rude = Rude::accept(accepted?, &ca, &account).await?;
            ensure!(rude.hears(1).await?.is_empty(), "OPEN");
            heard.push(rude.hears(2).await?);
            rude.say(&answer).await?;
            match torn {
                Some(torn) => rude.tear(torn).await?,
                None => drop(rude.is_cut(LIMIT).await),
            }
            patience = Duration::from_secs(2);
        }
        Ok(heard)
    })
}

/// The next connection, to any of them.
async fn whoever_comes(listeners: &[TcpListener]) -> io::Result<TcpStream> {
    let next = poll_fn(|cx| {
        let mut polled = listeners.iter().map(|listener| listener.poll_accept(cx));
        polled.find(Poll::is_ready).unwrap_or(Poll::Pending)
    });
    Ok(next.await?.0)
}

/// Serves until nobody comes for so many seconds; says how many came.
fn count(
    pod: &MeshPod,
    port: u16,
    seconds: u64,
    serve: fn(TcpStream),
) -> Result<(Arc<AtomicUsize>, countersign_kit::Task<Result<()>>)> {
    let counter = Arc::new(AtomicUsize::new(0));
    let (counting, at) = (Arc::clone(&counter), address(pod, port));
    let listener = pod.run(|| async { TcpListener::bind(at).await?.into_std() })?;
    let task = pod.start(move || async move {
        let listener = TcpListener::from_std(listener)?;
        while let Ok(accepted) = timeout(Duration::from_secs(seconds), listener.accept()).await {
            counting.fetch_add(1, Ordering::Relaxed);
            serve(accepted?.0);
        }
        Ok(())
    })?;
    Ok((counter, task))
}

/// Says back what it hears until the end.
fn echo(mut io: TcpStream) {
    tokio::spawn(async move {
        let (mut reading, mut writing) = io.split();
        tokio::io::copy(&mut reading, &mut writing).await?;
        writing.shutdown().await
    });
}

pub fn never_downgraded(world: &World) -> Result<()> {
    // Of one service: a meshed endpoint whose handshakes are broken by whoever can, and one without a sidecar.
    let meshed = world.mesh.pod(MeshPodSpec::new("mixed-1", "mixed", 20).without_sidecar())?;
    let unmeshed = world.mesh.pod(MeshPodSpec::new("mixed-2", "mixed", 21).unmeshed())?;
    let port = world.port();
    world.mesh.service("shop", "mixed", 20, &[(port, port)])?;
    world.mesh.settle(&[&world.frontend])?;
    let (broken, first) = count(&meshed, port, 3, drop)?;
    let (plain, second) = count(&unmeshed, port, 3, echo)?;
    let to = std::net::SocketAddr::from(([10, 96, 0, 20], port));
    let connections = 40;
    for _ in 0..connections {
        let _ = world.frontend.run(|| async {
            let mut io = TcpStream::connect(to).await?;
            io.write_all(b"?").await?;
            io.shutdown().await?;
            anyhow::Ok(timeout(LIMIT, io.read_to_end(&mut Vec::new())).await??)
        });
    }
    first.join()?;
    second.join()?;
    let (broken, plain) = (broken.load(Ordering::Relaxed), plain.load(Ordering::Relaxed));
    ensure!(broken > 0 && plain > 0, "{broken} {plain}");
    ensure!(
        broken + plain == connections,
        "{broken} handshakes were broken, and {plain} connections went in plaintext"
    );
    Ok(())
}

pub fn swallowed(world: &World) -> Result<()> {
    // Of one service: an endpoint that takes every connection and never says a word, and a good one.
    let deaf = world.mesh.pod(MeshPodSpec::new("deaf-1", "deaf", 23).without_sidecar())?;
    let good = world.mesh.pod(MeshPodSpec::new("deaf-2", "deaf", 24))?;
    let port = world.port();
    world.mesh.service("shop", "deaf", 23, &[(port, port)])?;
    world.mesh.object(
        "deaf.yaml",
        "apiVersion: policy.countersign.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: deaf, namespace: shop}\n\
         spec:\n  selector: {matchLabels: {app: deaf}}\n  action: Allow\n  rules: [{from: [{namespaces: [shop]}]}]\n",
    )?;
    world.mesh.settle(&[&world.frontend, &good])?;
    let hold = |io: TcpStream| {
        tokio::spawn(async move {
            let _io = io;
            std::future::pending::<()>().await;
        });
    };
    let (swallowed, _deaf) = count(&deaf, port, 600, hold)?;
    let (_, _good) = count(&good, port, 600, echo)?;
    let to = std::net::SocketAddr::from(([10, 96, 0, 23], port));
    let began = std::time::Instant::now();
    world.frontend.run(|| async {
        // All stay open: the good endpoint has ever more of them, and the other none.
        let mut open = Vec::new();
        for n in 0..30 {
            let mut io = TcpStream::connect(to).await?;
            io.write_all(b"?").await?;
            timeout(LIMIT, io.read_exact(&mut [0])).await.with_context(|| format!("no answer to {n}"))??;
            open.push(io);
        }
        anyhow::Ok(())
    })?;
    // The first to go there finds out, and one in ten seconds tries again.
    let (tries, fair) = (swallowed.load(Ordering::Relaxed), 2 + began.elapsed().as_secs() / 10);
    ensure!(tries as u64 <= fair, "{tries} connections went there, in {:?}", began.elapsed());
    good.stop_sidecar();
    Ok(())
}

pub fn outdated(world: &World) -> Result<()> {
    // Of one service: an endpoint whose certificate has ended, and a good one.
    let stale = world.mesh.pod(MeshPodSpec::new("stale-1", "stale", 26).without_sidecar())?;
    let good = world.mesh.pod(MeshPodSpec::new("stale-2", "stale", 27))?;
    let port = world.port();
    world.mesh.service("shop", "stale", 26, &[(port, port)])?;
    world.mesh.object(
        "stale.yaml",
        "apiVersion: policy.countersign.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: stale, namespace: shop}\n\
         spec:\n  selector: {matchLabels: {app: stale}}\n  action: Allow\n  rules: [{from: [{namespaces: [shop]}]}]\n",
    )?;
    world.mesh.settle(&[&world.frontend, &good])?;
    let spec = LeafSpec { begins: -7200, ends: -3600, ..LeafSpec::of(&id("stale")) };
    let config = careless_server(stolen(world)?.leaf(&spec)?, &[ALPN])?;
    let at = address(&stale, port);
    let listener = stale.run(|| async { TcpListener::bind(at).await?.into_std() })?;
    let _stale = stale.start(move || async move {
        let listener = TcpListener::from_std(listener)?;
        while let Ok((io, _)) = listener.accept().await {
            let accepting = TlsAcceptor::from(Arc::clone(&config)).accept(io);
            tokio::spawn(async move {
                if let Ok(mut tls) = accepting.await {
                    let _ = tls.read_to_end(&mut Vec::new()).await;
                }
            });
        }
        anyhow::Ok(())
    })?;
    let (_, _good) = count(&good, port, 600, echo)?;
    let to = std::net::SocketAddr::from(([10, 96, 0, 26], port));
    let began = std::time::Instant::now();
    let refused = world.frontend.run(|| async {
        let (mut open, mut refused) = (Vec::new(), 0);
        for _ in 0..30 {
            let mut io = TcpStream::connect(to).await?;
            let _ = io.write_all(b"?").await;
            match timeout(LIMIT, io.read_exact(&mut [0])).await.context("neither answered nor refused")? {
                Ok(_) => open.push(io),
                Err(_) => refused += 1,
            }
        }
        anyhow::Ok(refused)
    })?;
    let fair = 2 + began.elapsed().as_secs() / 10;
    ensure!(refused <= fair, "{refused} of 30 connections were refused, in {:?}", began.elapsed());
    good.stop_sidecar();
    Ok(())
}

pub fn refused_elsewhere(world: &World) -> Result<()> {
    // Of one service: a liar who takes no connection, and the pod itself.
    let liar = world.mesh.pod(MeshPodSpec::new("frontend-2", "frontend", 22).without_sidecar())?;
    let port = world.port();
    world.mesh.service("shop", "frontend", 22, &[(port, port)])?;
    world.mesh.object(
        "own.yaml",
        "apiVersion: policy.countersign.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: own, namespace: shop}\n\
         spec:\n  selector: {matchLabels: {app: frontend}}\n  action: Allow\n  rules: [{from: [{namespaces: [shop]}]}]\n",
    )?;
    world.mesh.settle(&[&world.frontend])?;
    let ca = stolen(world)?;
    let at = address(&liar, port);
    let listener = liar.run(|| async { TcpListener::bind(at).await?.into_std() })?;
    let lying = liar.start(move || async move {
        let listener = TcpListener::from_std(listener)?;
        let mut asked = 0;
        while let Ok(accepted) = timeout(Duration::from_secs(3), listener.accept()).await {
            let mut rude = Rude::accept(accepted?.0, &ca, "frontend").await?;
            rude.hears(1).await?;
            rude.hears(2).await?;
            rude.say(&UNREACHABLE).await?;
            rude.leave().await;
            asked += 1;
        }
        anyhow::Ok(asked)
    })?;
    let (_, app) = count(&world.frontend, port, 3, echo)?;
    let to = std::net::SocketAddr::from(([10, 96, 0, 22], port));
    for _ in 0..20 {
        let answer = world.frontend.run(|| async {
            let mut io = TcpStream::connect(to).await?;
            io.write_all(b"order: one").await?;
            io.shutdown().await?;
            let mut answer = Vec::new();
            timeout(LIMIT, io.read_to_end(&mut answer)).await.context("no answer")??;
            anyhow::Ok(answer)
        })?;
        ensure!(answer == b"order: one", "{:?}", String::from_utf8_lossy(&answer));
    }
    app.join()?;
    ensure!(lying.join()? > 0, "the liar was never asked");
    Ok(())
}

/// The app's view: what came back, and whether it ended by a reset.
async fn ask(port: u16, to: std::net::SocketAddr) -> Result<(Vec<u8>, bool)> {
    let mut io = TcpStream::connect(to).await.with_context(|| port.to_string())?;
    io.write_all(b"order: one").await?;
    let mut answer = Vec::new();
    let ended = timeout(LIMIT, io.read_to_end(&mut answer)).await.context("no end")?;
    Ok((answer, ended.is_err()))
}

/// A server that refuses or resets, and holds the link open for the next: it is given up, and the next connection has one of its own.
pub fn not_kept(world: &World) -> Result<()> {
    let denied = [&[5, 0, 0, 9, 1][..], &[7; 8]].concat();
    for answer in [denied, UNREACHABLE.to_vec(), [&ACCEPTED[..], &RST].concat()] {
        let (port, ca) = (world.port(), stolen(world)?);
        let to = address(&world.unguarded, port);
        let listener = world.unguarded.run(|| async { TcpListener::bind(to).await?.into_std() })?;
        let words = answer.clone();
        let refusing = world.unguarded.start(move || async move {
            let listener = TcpListener::from_std(listener)?;
            for number in 1..=2 {
                let accepted = timeout(LIMIT, listener.accept()).await.with_context(|| format!("no link {number}"))?;
                let mut rude = Rude::accept(accepted?.0, &ca, "unguarded").await?;
                rude.hears(1).await?;
                rude.hears(2).await?;
                rude.say(&words).await?;
                rude.is_cut(LIMIT).await.with_context(|| format!("link {number}"))?;
            }
            anyhow::Ok(())
        })?;
        for _ in 0..2 {
            let (said, reset) = world.frontend.run(|| ask(port, to))?;
            ensure!(said.is_empty() && reset, "{answer:x?}: {said:?}, reset: {reset}");
        }
        refusing.join().with_context(|| format!("{answer:x?}"))?;
    }
    Ok(())
}

pub fn never_twice(world: &World) -> Result<()> {
    for (answer, torn, tries) in [
        (Vec::new(), Some(Torn::Tls), 1),
        (Vec::new(), Some(Torn::Tcp), 1),
        (Vec::new(), Some(Torn::Reset), 1),
        (ACCEPTED.to_vec(), Some(Torn::Tls), 1),
        (RST.to_vec(), None, 1),
        ([&ACCEPTED[..], &RST].concat(), None, 1),
        ([&ACCEPTED[..], &CLOSING].concat(), None, 1),
        ([&ACCEPTED[..], &data(b"half"), &CLOSING].concat(), None, 1),
        ([&ACCEPTED[..], &ACCEPTED].concat(), None, 1),
        (vec![5, 0, 0, 1, 9], None, 1),
        (UNREACHABLE.to_vec(), None, 1),
        (CLOSING.to_vec(), None, 3),
    ] {
        let port = world.port();
        let liar = liar(world, &[&world.unguarded], port, answer.clone(), torn)?;
        let to = address(&world.unguarded, port);
        let (got, by_reset) = world.frontend.run(|| ask(port, to))?;
        ensure!(by_reset && (got.is_empty() || got == b"half"), "{answer:x?} {torn:?}: {got:x?}");
        let heard = liar.join()?;
        ensure!(heard == vec![b"order: one".to_vec(); tries], "{answer:x?} {torn:?}: {heard:?}");
    }
    Ok(())
}

pub fn never_elsewhere(world: &World) -> Result<()> {
    // Of one service, so that there is another to try: two that take the bytes and go without a word.
    let pod = |name, number| world.mesh.pod(MeshPodSpec::new(name, "torn", number).without_sidecar());
    let (first, second) = (pod("torn-1", 28)?, pod("torn-2", 29)?);
    let ends = Torn::ALL.map(|torn| (world.port(), torn));
    world.mesh.service("shop", "torn", 28, &ends.map(|(port, _)| (port, port)))?;
    world.mesh.settle(&[&world.frontend])?;
    for (port, torn) in ends {
        let liar = liar(world, &[&first, &second], port, Vec::new(), Some(torn))?;
        let to = std::net::SocketAddr::from(([10, 96, 0, 28], port));
        let (got, by_reset) = world.frontend.run(|| ask(port, to))?;
        ensure!(by_reset && got.is_empty(), "{torn:?}: {got:x?}");
        let heard = liar.join()?;
        ensure!(heard == [b"order: one".to_vec()], "{torn:?}: {heard:?}");
    }
    Ok(())
}

pub fn speaks_too_early(world: &World) -> Result<()> {
    for answer in [[&data(b"early")[..], &ACCEPTED].concat(), FIN.to_vec(), OPEN.to_vec()] {
        let port = world.port();
        let liar = liar(world, &[&world.unguarded], port, answer.clone(), None)?;
        let to = address(&world.unguarded, port);
        let (got, by_reset) = world.frontend.run(|| ask(port, to))?;
        ensure!(by_reset && got.is_empty(), "{answer:x?}: {got:x?}");
        ensure!(liar.join()?.len() == 1, "{answer:x?}");
        let line = world.frontend.access_line(|l| l["destination_address"] == to.to_string())?;
        ensure!(line["result"] == "protocol_error", "{line}");
    }
    Ok(())
}

pub fn answer_beforehand(world: &World) -> Result<()> {
    let (port, ca) = (world.port(), stolen(world)?);
    let to = address(&world.unguarded, port);
    let listener = world.unguarded.run(|| async { TcpListener::bind(to).await?.into_std() })?;
    let server = world.unguarded.start(move || async move {
        let listener = TcpListener::from_std(listener)?;
        let mut served = 0;
        while let Ok(accepted) = timeout(Duration::from_secs(2), listener.accept()).await {
            let mut rude = Rude::accept(accepted?.0, &ca, "unguarded").await?;
            // Takes one connection, and with its end an answer to the next, which nobody asked yet.
            let Ok(_) = rude.hears(1).await else { continue };
            while rude.hear().await?.kind != 3 {}
            let one = [&ACCEPTED[..], &data(b"for you"), &FIN].concat();
            let two = [&ACCEPTED[..], &data(b"for nobody"), &FIN].concat();
            rude.say(&[one, two].concat()).await?;
            served += 1;
            let _ = rude.is_cut(LIMIT).await;
        }
        anyhow::Ok(served)
    })?;
    for _ in 0..3 {
        let answer = world.frontend.run(|| async {
            let mut io = TcpStream::connect(to).await?;
            io.write_all(b"?").await?;
            io.shutdown().await?;
            let mut answer = Vec::new();
            timeout(LIMIT, io.read_to_end(&mut answer)).await??;
            anyhow::Ok(answer)
        })?;
        ensure!(answer == b"for you", "{:?}", String::from_utf8_lossy(&answer));
    }
    ensure!(server.join()? == 3, "a link was used again with an answer waiting in it");
    Ok(())
}
