//! Many bytes.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use aws_lc_rs::digest::{Context, SHA256};
use countersign_kit::Net;
use countersign_kit::mesh::{Mesh, MeshPodSpec, Settings};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::listen;
use crate::programs::Place;
use crate::world::World;

const BLOCK: usize = 256 * 1024;
const BLOCKS: u64 = 4096;
/// For one gibibyte each way at once.
const LIMIT: Duration = Duration::from_secs(120);

const RULES: &str = "
apiVersion: policy.countersign.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: all-of-the-mesh, namespace: shop}
spec: {action: Allow, rules: [{from: [{namespaces: [shop]}]}]}
";

/// Over one connection, a gibibyte each way at the same time. In a mesh of its own: captures of other tests need not hold it.
pub fn gibibyte(world: &World) -> Result<()> {
    let mesh = Mesh::start(Net::new(world.mesh.net().inside())?, Settings::default())?;
    mesh.object("shop.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")?;
    mesh.object("rules.yaml", RULES)?;
    let client = mesh.pod(MeshPodSpec::new("frontend", "frontend", 10))?;
    let server = mesh.pod(MeshPodSpec::new("backend", "backend", 11))?;
    mesh.settle(&[&client, &server])?;
    let place = Place::new(&mesh, &server, world.port())?;
    for (listener, address) in listen(&place)?.into_iter().zip(place.addresses()) {
        let began = Instant::now();
        let serving = server.start(move || async move { timeout(LIMIT, serve(listener)).await })?;
        let ours = client.run(|| async { timeout(LIMIT, dial(address)).await })??;
        let theirs = serving.join()??;
        println!("to {address}: a gibibyte each way in {:.1} s", began.elapsed().as_secs_f64());
        ensure!(ours.sent == theirs.received, "what the server got is not what the client sent");
        ensure!(theirs.sent == ours.received, "what the client got is not what the server sent");
        ensure!(ours.sent != theirs.sent, "both sent the same: that shows nothing");
        let line = server.access_line(|line| line["destination_address"] == address.to_string())?;
        let all = BLOCKS * BLOCK as u64;
        ensure!(line["bytes_sent"] == all && line["bytes_received"] == all && line["result"] == "ok", "{line}");
    }
    Ok(())
}

async fn serve(listener: TcpListener) -> Result<Hashes> {
    let (stream, _) = tokio::net::TcpListener::from_std(listener)?.accept().await?;
    exchange(stream, b's').await
}

async fn dial(address: SocketAddr) -> Result<Hashes> {
    exchange(TcpStream::connect(address).await?, b'c').await
}

#[derive(Debug)]
struct Hashes {
    sent: Vec<u8>,
    received: Vec<u8>,
}

async fn exchange(stream: TcpStream, seed: u8) -> Result<Hashes> {
    let (reading, writing) = stream.into_split();
    let (sent, received) = tokio::try_join!(send(writing, seed), receive(reading))?;
    Ok(Hashes { sent, received })
}

/// Each block differs from all others, so that none can take another's place.
async fn send(mut stream: impl AsyncWrite + Unpin, seed: u8) -> Result<Vec<u8>> {
    let mut hash = Context::new(&SHA256);
    let mut block: Vec<u8> = (0..BLOCK).map(|at| ((at * at) >> 7) as u8 ^ seed).collect();
    for number in 0..BLOCKS {
        block[..8].copy_from_slice(&number.to_be_bytes());
        hash.update(&block);
        stream.write_all(&block).await?;
    }
    stream.shutdown().await?;
    Ok(hash.finish().as_ref().to_vec())
}

async fn receive(mut stream: impl AsyncRead + Unpin) -> Result<Vec<u8>> {
    let mut hash = Context::new(&SHA256);
    let mut buffer = vec![0; BLOCK];
    let mut length = 0;
    loop {
        match stream.read(&mut buffer).await? {
            0 => break,
            read => {
                hash.update(&buffer[..read]);
                length += read as u64;
            }
        }
    }
    ensure!(length == BLOCKS * BLOCK as u64, "{length} bytes");
    Ok(hash.finish().as_ref().to_vec())
}
