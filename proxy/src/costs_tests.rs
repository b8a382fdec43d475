//! What a connection costs, as far as noise cannot move it: bytes and allocations, held by bounds a little above what they are. Figures of
//! time are the bench's, system calls a request are counted by its short form.

use std::future::Future;
use std::mem::size_of;
use std::time::Duration;

use allocation_counter::{AllocationInfo, measure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use crate::relay::tests::next_open;
use crate::relay::{End, Flow, Held, Side, relay};
use crate::testing::{a_permit, link_pair, tcp_pair};
use crate::wire::link::Link;
use crate::{inbound, outbound};

/// Size of what an async function makes.
fn size_of_future<A, B, C, D, F: Future>(_: fn(A, B, C, D) -> F) -> usize {
    size_of::<F>()
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// The allocator rounds up, by an eighth or more: a little beyond a bound may cost a lot.
#[test]
fn the_future_of_a_connection_is_small() {
    let (inbound, outbound) = (size_of_future(inbound::serve), size_of_future(outbound::serve));
    println!("inbound {inbound}, outbound {outbound}, link {}", size_of::<Link>());
    assert!(inbound <= 2600, "inbound {inbound}");
    assert!(outbound <= 2250, "outbound {outbound}");
}

/// Both ends of one link, without their tasks and without what the C code of the cipher holds.
#[test]
fn an_idle_link_holds_little() {
    let runtime = runtime();
    let first = runtime.block_on(link_pair());
    let mut kept = None;
    let made = measure(|| kept = Some(runtime.block_on(link_pair())));
    let dropped = measure(|| drop(kept.take()));
    println!("made {made:?}, dropped {dropped:?}");
    assert!(-dropped.bytes_current <= 4096, "{dropped:?}");
    drop(first);
}

struct Relayed {
    client: TcpStream,
    server: TcpStream,
}

/// A relayed connection, both sides on this thread.
async fn relayed() -> Relayed {
    let ((client_link, _), (mut server_link, _)) = link_pair().await;
    let (client, client_app) = tcp_pair().await;
    let (server, server_app) = tcp_pair().await;
    tokio::spawn(one(Side::Client, client_app, client_link));
    next_open(&mut server_link).await.unwrap();
    tokio::spawn(one(Side::Server, server_app, server_link));
    Relayed { client, server }
}

async fn one(side: Side, mut app: TcpStream, mut link: Box<Link>) -> End {
    let (mut held, mut flow) = (Held::default(), Flow::default());
    relay(&a_permit(), side, &mut app, &mut link, &mut held, &mut flow).await
}

/// What so many requests of `length` bytes, and answers of as many, allocate.
async fn exchange(relayed: &mut Relayed, bytes: &mut [u8], times: usize) {
    for _ in 0..times {
        relayed.client.write_all(bytes).await.unwrap();
        relayed.server.read_exact(bytes).await.unwrap();
        relayed.server.write_all(bytes).await.unwrap();
        relayed.client.read_exact(bytes).await.unwrap();
    }
}

fn exchanged(length: usize, times: usize) -> AllocationInfo {
    let runtime = runtime();
    let mut bytes = vec![7; length];
    let mut relayed = runtime.block_on(async {
        let mut relayed = relayed().await;
        exchange(&mut relayed, &mut [7; 1024], 10).await;
        relayed
    });
    let info = measure(|| runtime.block_on(exchange(&mut relayed, &mut bytes, times)));
    // What is allocated while it is idle belongs to nobody's request.
    runtime.block_on(async { tokio::time::sleep(Duration::from_millis(5)).await });
    info
}

/// Both sides of a connection that has carried something and is silent now: links, buffers, tasks and the runtime's part of six sockets; without what the
/// C code of the cipher holds.
#[test]
fn an_idle_connection_holds_little() {
    let runtime = runtime();
    let used = || async {
        let mut relayed = relayed().await;
        exchange(&mut relayed, &mut [7; 1024], 2).await;
        // What the last answer woke has its turn.
        tokio::time::sleep(Duration::from_millis(5)).await;
        relayed
    };
    let first = runtime.block_on(used());
    let mut kept = None;
    let made = measure(|| kept = Some(runtime.block_on(used())));
    println!("made {made:?}");
    assert!(made.bytes_current <= 7 * 1024, "{made:?}");
    drop((first, kept));
}

#[test]
fn a_relayed_buffer_costs_few_allocations() {
    let small = exchanged(1024, 100);
    println!("small {small:?}");
    let each = small.count_total as f64 / 200.0;
    assert!(each <= 0.1, "{each} allocations for each small buffer");
    assert!(small.count_current <= 4 && small.bytes_current < 4096, "what is relayed stays: {small:?}");
    let large = exchanged(1 << 20, 8);
    println!("large {large:?}");
    // One where a read ends in the middle of a record: at most one in four records.
    let each = large.count_total as f64 / (16.0 * 64.0);
    assert!(each <= 0.5, "{each} allocations for each 16 KiB");
}
