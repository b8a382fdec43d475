//! Attacks on the server side, by a peer with a proven identity.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use countersign_kit::hostile::{garbage, reset};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};

use crate::sidecar::{FIN, LIMIT, OPEN, Rude, Torn, address, data, nothing_is_left_of, stolen};
use crate::world::World;

/// An app on `backend1` that takes everything from one connection.
fn sink(world: &World, port: u16) -> Result<countersign_kit::Task<Result<u64>>> {
    let at = address(&world.backend1, port);
    let listener = world.backend1.run(|| async { TcpListener::bind(at).await?.into_std() })?;
    world.backend1.start(move || async move {
        let (mut io, _) = timeout(LIMIT, TcpListener::from_std(listener)?.accept()).await??;
        let (mut taken, mut buffer) = (0, vec![0; 1 << 16]);
        while let Ok(n @ 1..) = timeout(LIMIT, io.read(&mut buffer)).await.context("it was never ended")? {
            taken += n as u64;
        }
        Ok(taken)
    })
}

/// `DATA` of a byte each: more of them in one read of the socket than a task may move at a time.
fn small_frames() -> Vec<u8> {
    data(b"x").repeat(3000)
}

pub fn flood_ends_with_the_certificate(world: &World) -> Result<()> {
    let (port, ca) = (world.port(), stolen(world)?);
    let sink = sink(world, port)?;
    let to = address(&world.backend1, port);
    world.stranger.run(|| async {
        let mut rude = Rude::dial(to, &ca, "frontend", 3).await?;
        rude.say(&OPEN).await?;
        rude.hears(5).await?;
        rude.flood(&small_frames(), Duration::from_secs(8)).await
    })?;
    ensure!(sink.join()? > 0);
    let line = world.backend1.access_line(|l| l["destination_address"] == to.to_string())?;
    ensure!(line["result"] == "credentials_expired", "{line}");
    Ok(())
}

pub fn flood_ends_with_the_rule(world: &World) -> Result<()> {
    let (port, ca) = (world.port(), stolen(world)?);
    let sink = sink(world, port)?;
    let to = address(&world.backend1, port);
    let flood = world.stranger.start(move || async move {
        let mut rude = Rude::dial(to, &ca, "frontend", 3600).await?;
        rude.say(&OPEN).await?;
        rude.hears(5).await?;
        rude.flood(&small_frames(), Duration::from_secs(8)).await
    })?;
    world.mesh.object(
        "deny.yaml",
        &format!(
            "apiVersion: policy.countersign.dev/v1alpha1\nkind: AuthorizationPolicy\n\
             metadata: {{name: no-more, namespace: shop}}\nspec:\n  selector: {{matchLabels: {{app: backend}}}}\n  \
             action: Deny\n  rules: [{{to: [{{ports: [{port}]}}]}}]\n"
        ),
    )?;
    let flooded = flood.join();
    world.mesh.remove_object("deny.yaml")?;
    world.mesh.settle(&[&world.backend1])?;
    flooded?;
    sink.join()?;
    let line = world.backend1.access_line(|l| l["destination_address"] == to.to_string())?;
    ensure!(line["result"] == "denied_by_rule", "{line}");
    Ok(())
}

pub fn status_comes_first(world: &World) -> Result<()> {
    let (port, ca) = (world.port(), stolen(world)?);
    let to = address(&world.backend1, port);
    let listener = world.backend1.run(|| async { TcpListener::bind(to).await?.into_std() })?;
    let rounds = 30;
    let app = world.backend1.start(move || async move {
        let listener = TcpListener::from_std(listener)?;
        for _ in 0..rounds {
            reset(timeout(LIMIT, listener.accept()).await??.0)?;
        }
        anyhow::Ok(())
    })?;
    world.stranger.run(|| async {
        for _ in 0..rounds {
            let mut rude = Rude::dial(to, &ca, "frontend", 3600).await?;
            // Enough bytes to meet the reset as early as can be.
            let mut said = OPEN.to_vec();
            said.extend(data(&[7; 8000]));
            rude.say(&said).await?;
            let first = rude.hear().await?;
            ensure!(first.kind == 5, "the first frame is {first:?}");
        }
        Ok(())
    })?;
    app.join()
}

pub fn smuggled_behind_fin(world: &World) -> Result<()> {
    let (port, ca) = (world.port(), stolen(world)?);
    let to = address(&world.backend1, port);
    let listener = world.backend1.run(|| async { TcpListener::bind(to).await?.into_std() })?;
    let app = world.backend1.start(move || async move {
        let listener = TcpListener::from_std(listener)?;
        let mut heard = Vec::new();
        while let Ok(accepted) = timeout(Duration::from_secs(2), listener.accept()).await {
            let (mut io, mut all) = (accepted?.0, Vec::new());
            let _ = timeout(LIMIT, io.read_to_end(&mut all)).await?;
            heard.push(all);
        }
        anyhow::Ok(heard)
    })?;
    world.stranger.run(|| async {
        let mut rude = Rude::dial(to, &ca, "frontend", 3600).await?;
        let all = [&OPEN[..], &data(b"first"), &FIN, &data(b"smuggled"), &FIN].concat();
        rude.say(&all).await?;
        rude.is_cut(LIMIT).await?;
        let mut rude = Rude::dial(to, &ca, "frontend", 3600).await?;
        let all = [&OPEN[..], &data(b"second"), &FIN, &OPEN, &data(b"third"), &FIN].concat();
        rude.say(&all).await?;
        rude.is_cut(LIMIT).await
    })?;
    let heard = app.join()?;
    for all in &heard {
        ensure!([&b""[..], b"first", b"second", b"third"].contains(&all.as_slice()), "{heard:?}");
    }
    ensure!(heard.len() >= 2, "{heard:?}");
    Ok(())
}

/// What ends without its `FIN` was cut short, and the app must not take it for the whole.
pub fn cut_short(world: &World) -> Result<()> {
    for torn in Torn::ALL {
        let (port, ca) = (world.port(), stolen(world)?);
        let to = address(&world.backend1, port);
        let listener = world.backend1.run(|| async { TcpListener::bind(to).await?.into_std() })?;
        let app = world.backend1.start(move || async move {
            let (mut io, _) = timeout(LIMIT, TcpListener::from_std(listener)?.accept()).await??;
            timeout(LIMIT, io.read_exact(&mut [0; 4])).await??;
            io.write_all(b"!").await?; // all that came is read
            let end = timeout(LIMIT, io.read(&mut [0; 4])).await.context("it was never ended")?;
            anyhow::Ok(end.map_err(|error| error.kind()))
        })?;
        world.stranger.run(|| async {
            let mut rude = Rude::dial(to, &ca, "frontend", 3600).await?;
            rude.say(&[&OPEN[..], &data(b"half")].concat()).await?;
            rude.hears(5).await?;
            rude.hears(2).await?;
            rude.tear(torn).await
        })?;
        let end = app.join()?;
        ensure!(end == Err(ErrorKind::ConnectionReset), "{torn:?}: {end:?}");
        let line = world.backend1.access_line(|l| l["destination_address"] == to.to_string())?;
        ensure!(line["result"] == "peer_gone", "{torn:?}: {line}");
    }
    Ok(())
}

pub fn refused_and_sending(world: &World) -> Result<()> {
    let (port, ca) = (world.port(), stolen(world)?);
    let to = address(&world.backend1, port);
    let (soonest, took) = world.stranger.run(|| async {
        let (mut soonest, mut took) = (LIMIT, Duration::ZERO);
        // A few: one is late on a busy machine, not all.
        for _ in 0..5 {
            let mut rude = Rude::dial(to, &ca, "intruder", 3600).await?;
            rude.say(&OPEN).await?;
            let flooded = rude.flood(&data(&[0; 60_000]), LIMIT).await?;
            (soonest, took) = (soonest.min(flooded), took.max(flooded));
        }
        // And one that drips, so that the bound in bytes is never reached.
        let mut rude = Rude::dial(to, &ca, "intruder", 3600).await?;
        rude.say(&OPEN).await?;
        let began = Instant::now();
        while began.elapsed() < LIMIT && rude.say(&data(b"x")).await.is_ok() {
            sleep(Duration::from_millis(20)).await;
        }
        anyhow::Ok((soonest, took.max(began.elapsed())))
    })?;
    ensure!(took < Duration::from_secs(4), "{took:?}");
    // By the bound in bytes: that in time alone lets each go on for a second.
    ensure!(soonest < Duration::from_millis(500), "{soonest:?}");
    Ok(())
}

pub fn broken_frames(world: &World) -> Result<()> {
    let (port, ca) = (world.port(), stolen(world)?);
    let to = address(&world.backend1, port);
    let listener = world.backend1.run(|| async { TcpListener::bind(to).await?.into_std() })?;
    let _app = world.backend1.start(move || async move {
        let listener = TcpListener::from_std(listener)?;
        while let Ok((mut io, _)) = listener.accept().await {
            tokio::spawn(async move { io.read_to_end(&mut Vec::new()).await });
        }
        anyhow::Ok(())
    })?;
    let critical = [&[1, 0, 0, 4][..], &[0x80, 1, 0, 0]].concat();
    let mut cases = vec![
        data(b"before OPEN"),
        FIN.to_vec(),
        vec![1, 0, 4, 1],
        critical,
        [&[1, 0, 0, 3][..], &[0, 1, 0]].concat(),
        [&OPEN[..], &[2, 1, 0, 1]].concat(),
        [&OPEN[..], &[2, 0, 0, 0].repeat(33)].concat(),
        [&OPEN[..], &OPEN].concat(),
        [&OPEN[..], &[5, 0, 0, 1, 0]].concat(),
        [&OPEN[..], &[6, 0, 0, 0]].concat(),
        [&OPEN[..], &FIN, &data(b"late")].concat(),
        [&OPEN[..], &[4, 0, 0, 1, 0]].concat(),
        [&OPEN[..], &[0x82, 0, 0, 1, 0]].concat(),
    ];
    cases.extend((0..40).map(|seed| garbage(seed, 5000)));
    cases.extend((100..140).map(|seed| [OPEN.to_vec(), data(b"ok"), garbage(seed, 5000)].concat()));
    let mut gone = world.stranger.run(|| async {
        let mut gone = Vec::new();
        for case in &cases {
            let mut rude = Rude::dial(to, &ca, "frontend", 3600).await?;
            gone.push(rude.local_address()?);
            let _ = rude.say(case).await;
            rude.leave().await;
        }
        for case in &cases[..13] {
            let mut rude = Rude::dial(to, &ca, "frontend", 3600).await?;
            gone.push(rude.local_address()?);
            let _ = rude.say(case).await;
            rude.is_cut(LIMIT).await.with_context(|| format!("{case:x?}"))?;
        }
        anyhow::Ok(gone)
    })?;
    gone.push(to); // the sidecar's own connections to the app
    nothing_is_left_of(&world.backend1, &gone)
}

pub fn never_reads(world: &World) -> Result<()> {
    let (port, ca) = (world.port(), stolen(world)?);
    let to = address(&world.backend1, port);
    let listener = world.backend1.run(|| async { TcpListener::bind(to).await?.into_std() })?;
    let app = world.backend1.start(move || async move {
        let (mut io, _) = timeout(LIMIT, TcpListener::from_std(listener)?.accept()).await??;
        let began = Instant::now();
        while timeout(LIMIT, io.write_all(&[7; 1 << 16])).await.context("it never ended")?.is_ok() {}
        anyhow::Ok(began.elapsed())
    })?;
    world.stranger.run(|| async {
        let mut rude = Rude::dial(to, &ca, "frontend", 3).await?;
        rude.say(&OPEN).await?;
        sleep(Duration::from_secs(6)).await;
        drop(rude);
        anyhow::Ok(())
    })?;
    let took = app.join()?;
    ensure!(took < Duration::from_secs(6), "{took:?}");
    Ok(())
}

pub fn no_port_left(world: &World) -> Result<()> {
    let (port, ca) = (world.port(), stolen(world)?);
    let to = address(&world.backend1, port);
    let _listener = world.backend1.run(|| async { TcpListener::bind(to).await?.into_std() })?;
    // From one address to one address and port there is one connection for each port: here, one in all.
    const RANGE: &str = "ipv4/ip_local_port_range";
    let range = world.backend1.inside(|| std::fs::read_to_string(format!("/proc/sys/net/{RANGE}")))?;
    world.backend1.sysctl(RANGE, "50001 50001")?;
    let said = world.stranger.run(|| async {
        let mut said = Vec::new();
        let mut held = Vec::new();
        for _ in 0..2 {
            let mut rude = Rude::dial(to, &ca, "frontend", 3600).await?;
            rude.say(&OPEN).await?;
            said.push(rude.hears(5).await?);
            held.push(rude);
        }
        anyhow::Ok(said)
    });
    world.backend1.sysctl(RANGE, range.trim())?;
    let said = said?;
    ensure!(said == [[0], [4]], "accepted, and overloaded: {said:?}");
    let line = world.backend1.access_line(|l| l["destination_address"] == to.to_string() && l["result"] != "ok")?;
    ensure!(line["result"] == "overloaded" && line["blame"] == "proxy", "{line}");
    Ok(())
}
