//! Many connections at once.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{listen, only_the_frontend, place};
use crate::world::World;

const CONNECTIONS: usize = 1000;
const LIMIT: Duration = Duration::from_secs(60);

/// All are begun at once, all are open at once, and each hears its own words, before and after.
pub fn thousand(world: &World) -> Result<()> {
    // Both ends of all are in this one process.
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files)?;
    let place = place(world)?;
    for (listener, address) in listen(&place)?.into_iter().zip(place.addresses()) {
        let serving = world.backend1.start(move || async move { timeout(LIMIT, serve(listener)).await })?;
        world.frontend.run(|| async { timeout(LIMIT, dial(address)).await })??;
        serving.join()??;
        only_the_frontend(&world.backend1, address)?;
    }
    Ok(())
}

/// Gives back what comes, on a thousand connections.
async fn serve(listener: TcpListener) -> Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut open = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (mut stream, _) = listener.accept().await?;
        open.spawn(async move {
            let (mut reading, mut writing) = stream.split();
            tokio::io::copy(&mut reading, &mut writing).await
        });
    }
    while let Some(ended) = open.join_next().await {
        ensure!(ended?? == 16, "a connection without its words");
    }
    Ok(())
}

async fn dial(address: SocketAddr) -> Result<()> {
    let all = Arc::new(Barrier::new(CONNECTIONS));
    let mut open = JoinSet::new();
    for number in 0..CONNECTIONS as u64 {
        let all = Arc::clone(&all);
        open.spawn(async move { one(address, number, &all).await.with_context(|| format!("connection {number}")) });
    }
    while let Some(ended) = open.join_next().await {
        ended??;
    }
    Ok(())
}

async fn one(address: SocketAddr, number: u64, all: &Barrier) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    echo(&mut stream, number).await?;
    all.wait().await; // here a thousand are open
    echo(&mut stream, !number).await
}

async fn echo(stream: &mut TcpStream, number: u64) -> Result<()> {
    stream.write_u64(number).await?;
    ensure!(stream.read_u64().await? == number, "another's words");
    Ok(())
}
