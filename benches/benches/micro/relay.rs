//! Bytes through both sidecars' relays, on one thread and over loopback: application, frames, records, and the same back.

use std::sync::Arc;
use std::time::Duration;

use countersign_credentials::Credentials;
use countersign_policy::{Modes, PolicySet};
use countersign_proxy::first_bytes::Replay;
use countersign_proxy::permit::{Asking, Permits};
use countersign_proxy::relay::{Flow, Held, Side, relay};
use countersign_proxy::tls::{self, Accepted};
use countersign_proxy::wire::frame::Took;
use countersign_proxy::wire::link::Link;
use criterion::{BenchmarkId, Criterion, Throughput};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::{CLIENT, SERVER, World};

/// Two ends of what applications see as one connection.
struct Through {
    client: TcpStream,
    server: TcpStream,
}

pub fn relaying(bench: &mut Criterion) {
    let world = World::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut through = runtime.block_on(through(&world.credentials(CLIENT), &world.credentials(SERVER)));
    let mut group = bench.benchmark_group("relay");
    for length in [64, 1024, 64 * 1024, 1024 * 1024] {
        group.throughput(Throughput::Bytes(length));
        let mut bytes = vec![7; usize::try_from(length).unwrap()];
        group.bench_function(BenchmarkId::new("there, then one byte back", length), |bench| {
            bench.iter(|| exchange(&runtime, &mut through, &mut bytes));
        });
    }
    group.finish();
}

fn exchange(runtime: &Runtime, Through { client, server }: &mut Through, bytes: &mut [u8]) {
    let mut there = vec![0; bytes.len()];
    let (sending, receiving) = (async { client.write_all(bytes).await.unwrap() }, async {
        server.read_exact(&mut there).await.unwrap();
        server.write_all(&[1]).await.unwrap();
    });
    runtime.block_on(async { tokio::join!(sending, receiving) });
    assert_eq!(runtime.block_on(client.read_u8()).unwrap(), 1);
}

async fn through(near: &Credentials, far: &Credentials) -> Through {
    let limit = Duration::from_secs(10);
    let (dialled, accepted) = tcp_pair().await;
    let (client, server) = tokio::join!(
        tls::connect(dialled, near, far.id(), limit),
        tls::accept(Replay::new(Vec::new(), accepted), far, limit)
    );
    let Accepted::Link(mut server_link, _) = server.unwrap() else { panic!("another protocol was agreed") };
    let (client, client_app) = (tcp_pair().await, client.unwrap().0);
    let (client, near_app) = client;
    tokio::spawn(one(Side::Client, near_app, client_app));
    std::future::poll_fn(|cx| server_link.poll_events(cx, &mut |_| Ok(Took::Stop))).await.unwrap();
    let (server, far_app) = tcp_pair().await;
    tokio::spawn(one(Side::Server, far_app, server_link));
    Through { client, server }
}

async fn one(side: Side, mut app: TcpStream, mut link: Box<Link>) {
    let rules = PolicySet::compile("cluster.local", Modes::from_labels(&Default::default()).0, "r1", Vec::new());
    let (_sender, rules) = watch::channel(Some(Arc::new(rules)));
    let asking = Asking::Out { meshed: true, address: ([10, 0, 0, 2], 80).into() };
    let permit = Permits::new(rules).admit(asking).unwrap();
    let (mut held, mut flow) = (Held::default(), Flow::default());
    relay(&permit, side, &mut app, &mut link, &mut held, &mut flow).await;
}

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (dialled, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (dialled, accepted) = (dialled.unwrap(), accepted.unwrap().0);
    dialled.set_nodelay(true).unwrap();
    accepted.set_nodelay(true).unwrap();
    (dialled, accepted)
}
