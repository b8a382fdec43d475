//! Real sockets and real TLS; each test is one promise of the wire. Over 500 lines, as the table of docs/decisions/0001 stands here whole.

use std::sync::Arc;
use std::time::Duration;

use countersign_credentials::{Credentials, system_clock};
use countersign_identity::{BundleSet, TrustBundle};
use rustls::pki_types::UnixTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::first_bytes::Replay;
use crate::listen::reset;
use crate::testing::{TestCa, a_permit, link_pair, tcp_pair};
use crate::tls;
use crate::wire::frame::{self, Event, ProtocolError, Status, Took};
use crate::wire::link::{Link, LinkError};

type Ended = (End, Flow, Box<Link>, TcpStream);

fn run(side: Side, mut app: TcpStream, mut link: Box<Link>, mut held: Held) -> JoinHandle<(Ended, Held)> {
    tokio::spawn(async move {
        let mut flow = Flow::default();
        let end = relay(&a_permit(), side, &mut app, &mut link, &mut held, &mut flow).await;
        ((end, flow, link, app), held)
    })
}

/// What the server side does between two application connections.
pub async fn next_open(link: &mut Link) -> Result<(), LinkError> {
    let mut opened = false;
    while !opened {
        std::future::poll_fn(|cx| {
            link.poll_events(cx, &mut |event| {
                assert_eq!(event, Event::Open);
                opened = true;
                Ok(Took::Stop)
            })
        })
        .await?;
    }
    Ok(())
}

struct Pair {
    client: TcpStream,
    server: TcpStream,
    client_side: JoinHandle<(Ended, Held)>,
    server_side: JoinHandle<(Ended, Held)>,
}

async fn pair_over(client_link: Box<Link>, mut server_link: Box<Link>) -> Pair {
    let (client, client_app) = tcp_pair().await;
    let (server, server_app) = tcp_pair().await;
    let client_side = run(Side::Client, client_app, client_link, Held::default());
    next_open(&mut server_link).await.unwrap();
    let server_side = run(Side::Server, server_app, server_link, Held::default());
    Pair { client, server, client_side, server_side }
}

async fn pair() -> Pair {
    let ((client_link, _), (server_link, _)) = link_pair().await;
    pair_over(client_link, server_link).await
}

async fn ended(side: JoinHandle<(Ended, Held)>) -> Ended {
    timeout(Duration::from_secs(10), side).await.unwrap().unwrap().0
}

async fn says(io: &mut TcpStream, expected: &[u8]) {
    let mut bytes = vec![0; expected.len()];
    timeout(Duration::from_secs(10), io.read_exact(&mut bytes)).await.unwrap().unwrap();
    assert_eq!(bytes, expected);
}

async fn is_over(io: &mut TcpStream) {
    assert_eq!(timeout(Duration::from_secs(10), io.read(&mut [0; 16])).await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn bytes_go_both_ways_and_the_link_carries_another_afterwards() {
    let ((mut client_link, _), (mut server_link, _)) = link_pair().await;
    for round in 0..3u8 {
        let mut p = pair_over(client_link, server_link).await;
        p.client.write_all(&[round; 100]).await.unwrap();
        says(&mut p.server, &[round; 100]).await;
        p.server.write_all(b"answer").await.unwrap();
        says(&mut p.client, b"answer").await;
        drop(p.client);
        is_over(&mut p.server).await;
        drop(p.server);
        let (c, s) = (ended(p.client_side).await, ended(p.server_side).await);
        assert!(matches!((&c.0, &s.0), (End::Done, End::Done)), "{:?} {:?}", c.0, s.0);
        assert_eq!((c.1, s.1), (Flow { sent: 100, received: 6 }, Flow { sent: 100, received: 6 }));
        (client_link, server_link) = (c.2, s.2);
        assert!(client_link.is_quiet());
    }
}

#[tokio::test]
async fn a_server_that_speaks_first_waits_for_no_client_byte() {
    let mut p = pair().await;
    p.server.write_all(b"220 ready\r\n").await.unwrap();
    says(&mut p.client, b"220 ready\r\n").await;
}

#[tokio::test]
async fn half_close_keeps_the_other_direction_alive() {
    let mut p = pair().await;
    p.client.write_all(b"all of it").await.unwrap();
    p.client.shutdown().await.unwrap();
    says(&mut p.server, b"all of it").await;
    is_over(&mut p.server).await;
    p.server.write_all(b"late answer").await.unwrap();
    says(&mut p.client, b"late answer").await;
    p.server.shutdown().await.unwrap();
    is_over(&mut p.client).await;
    assert!(matches!(ended(p.client_side).await.0, End::Done));
    assert!(matches!(ended(p.server_side).await.0, End::Done));
}

#[tokio::test]
async fn a_reset_stays_a_reset() {
    let mut p = pair().await;
    p.client.write_all(b"x").await.unwrap();
    says(&mut p.server, b"x").await;
    reset(p.client);
    let (end, _, mut link, _app) = ended(p.client_side).await;
    assert!(matches!(end, End::AppReset), "{end:?}");
    link.seal(&[&frame::RST]).unwrap();
    tokio::spawn(link.close());
    let (end, ..) = ended(p.server_side).await;
    assert!(matches!(end, End::PeerReset), "{end:?}");
}

#[tokio::test]
async fn a_reset_that_waits_behind_data_is_heard_though_our_own_write_fails() {
    let ((client_link, _), (mut server_link, _)) = link_pair().await;
    let (mut client, app) = tcp_pair().await;
    // An app that takes next to nothing, so that the reset lies behind data that has nowhere to go.
    socket2::SockRef::from(&client).set_recv_buffer_size(2304).unwrap();
    socket2::SockRef::from(&app).set_send_buffer_size(4608).unwrap();
    let side = run(Side::Client, app, client_link, Held::default());
    next_open(&mut server_link).await.unwrap();
    let data = [&frame::data_header(16_000)[..], &[7; 16_000]].concat();
    let status = frame::status(Status::Accepted);
    for frames in [&status[..], &data, &data, &data, &frame::RST] {
        server_link.seal(&[frames]).unwrap();
        std::future::poll_fn(|cx| server_link.poll_flush(cx)).await.unwrap();
    }
    socket2::SockRef::from(server_link.socket()).set_linger(Some(Duration::ZERO)).unwrap();
    drop(server_link);
    client.write_all(b"more").await.unwrap();
    let (end, ..) = ended(side).await;
    assert!(matches!(end, End::PeerReset), "{end:?}");
}

#[tokio::test]
async fn an_end_of_tls_without_fin_is_never_a_clean_end() {
    let p = pair().await;
    p.client_side.abort();
    let (end, ..) = ended(p.server_side).await;
    assert!(matches!(end, End::PeerGone(_)), "{end:?}");

    let p = pair().await;
    p.server_side.abort();
    let (end, ..) = ended(p.client_side).await;
    assert!(matches!(end, End::PeerGone(_)), "{end:?}");
}

#[tokio::test]
async fn a_slow_reader_slows_the_sender_and_nothing_piles_up_here() {
    let mut p = pair().await;
    let chunk = vec![7u8; 1 << 16];
    let mut taken = 0usize;
    // Until nothing more is taken for a while: what was taken sits in kernel buffers and at most one buffer of ours each way.
    while let Ok(written) = timeout(Duration::from_millis(300), p.client.write(&chunk)).await {
        taken += written.unwrap();
        assert!(taken < 64 << 20, "the sender is never slowed");
    }
    let mut seen = 0usize;
    let mut buffer = vec![0; 1 << 20];
    while seen < taken {
        let n = timeout(Duration::from_secs(10), p.server.read(&mut buffer)).await.unwrap().unwrap();
        assert!(buffer[..n].iter().all(|b| *b == 7));
        seen += n;
    }
    assert_eq!(seen, taken);
}

#[tokio::test]
async fn bulk_both_ways_at_once_arrives_whole_with_new_keys_in_between() {
    let ((mut client_link, _), (server_link, _)) = link_pair().await;
    client_link.refresh_keys().unwrap();
    let p = pair_over(client_link, server_link).await;
    let length = 20 << 20;
    let push = |mut io: tokio::net::tcp::OwnedWriteHalf, seed: u8| async move {
        let chunk: Vec<u8> = (0..100_003u32).map(|n| (n as u8).wrapping_mul(31).wrapping_add(seed)).collect();
        let mut left: usize = length;
        while left > 0 {
            let n = chunk.len().min(left);
            io.write_all(&chunk[..n]).await.unwrap();
            left -= n;
        }
        io.shutdown().await.unwrap();
    };
    let pull = |mut io: tokio::net::tcp::OwnedReadHalf, seed: u8| async move {
        let chunk: Vec<u8> = (0..100_003u32).map(|n| (n as u8).wrapping_mul(31).wrapping_add(seed)).collect();
        let (mut at, mut buffer) = (0usize, vec![0; 70_001]);
        loop {
            let n = io.read(&mut buffer).await.unwrap();
            if n == 0 {
                return at;
            }
            for byte in &buffer[..n] {
                assert_eq!(*byte, chunk[at % chunk.len()], "at {at}");
                at += 1;
            }
        }
    };
    let ((cr, cw), (sr, sw)) = (p.client.into_split(), p.server.into_split());
    let all = async { tokio::join!(push(cw, 1), push(sw, 2), pull(cr, 2), pull(sr, 1)) };
    let (.., back, forth) = timeout(Duration::from_secs(60), all).await.unwrap();
    assert_eq!((back, forth), (length, length));
    assert!(matches!(ended(p.client_side).await.0, End::Done));
}

/// The client side of a link against a server side that says exactly `frames`.
async fn client_against(frames: &[&[u8]], send: &[u8]) -> (End, Held) {
    let ((client_link, _), (mut server_link, _)) = link_pair().await;
    let (mut client, app) = tcp_pair().await;
    client.write_all(send).await.unwrap();
    let side = run(Side::Client, app, client_link, Held::default());
    next_open(&mut server_link).await.unwrap();
    // So that the bytes sent are in the client side's hands before it is refused.
    let mut seen = 0;
    while seen < send.len() {
        std::future::poll_fn(|cx| {
            server_link.poll_events(cx, &mut |event| {
                if let Event::Data(data) = event {
                    seen += data.len();
                }
                Ok(Took::All)
            })
        })
        .await
        .unwrap();
    }
    for frame in frames {
        server_link.seal(&[frame]).unwrap();
    }
    let closing = tokio::spawn(server_link.close());
    let ((end, _, link, _), held) = timeout(Duration::from_secs(10), side).await.unwrap().unwrap();
    drop(link);
    closing.await.unwrap();
    (end, held)
}

#[tokio::test]
async fn a_refusal_reaches_the_client_side_with_its_id_though_it_had_sent_already() {
    let (end, held) = client_against(&[&frame::status(Status::Denied(42))], b"GET / HTTP/1.1\r\n\r\n").await;
    assert!(matches!(end, End::Refused(Status::Denied(42))), "{end:?}");
    assert!(held.is_whole());
}

#[tokio::test]
async fn closing_in_place_of_accepted_leaves_every_byte_for_another_try() {
    let (end, held) = client_against(&[&frame::CLOSING], b"hello").await;
    assert!(matches!(end, End::Closing), "{end:?}");
    // The other try: a fresh link, the same bytes.
    let ((client_link, _), (mut server_link, _)) = link_pair().await;
    let (_client, client_app) = tcp_pair().await;
    let (mut server, server_app) = tcp_pair().await;
    let client_side = run(Side::Client, client_app, client_link, held);
    next_open(&mut server_link).await.unwrap();
    let server_side = run(Side::Server, server_app, server_link, Held::default());
    says(&mut server, b"hello").await;
    server_side.abort();
    assert_eq!(ended(client_side).await.1.sent, 5, "what is sent again counts");
}

#[tokio::test]
async fn more_bytes_than_are_held_make_a_refusal_final() {
    let (end, held) = client_against(&[&frame::status(Status::Draining)], &vec![1; Held::MOST + 1]).await;
    assert!(matches!(end, End::Refused(Status::Draining)), "{end:?}");
    assert!(!held.is_whole());
}

#[tokio::test]
async fn status_is_said_first_though_the_connection_ends_before_its_first_byte() {
    let ((client_link, _), (mut server_link, _)) = link_pair().await;
    let (_client, client_app) = tcp_pair().await;
    let (_server, mut server_app) = tcp_pair().await;
    let side = run(Side::Client, client_app, client_link, Held::default());
    next_open(&mut server_link).await.unwrap();
    // As where the rules change between the decision and the first byte.
    let (permit, mut held, mut flow) = (a_permit(), Held::default(), Flow::default());
    drop(relay(&permit, Side::Server, &mut server_app, &mut server_link, &mut held, &mut flow));
    server_link.seal(&[&held.reset()]).unwrap();
    tokio::spawn(server_link.close());
    let (end, ..) = ended(side).await;
    assert!(matches!(end, End::PeerReset), "{end:?}");
}

/// What the server side of a link says; `|` stands between what came at different times.
async fn said(link: &mut Link, until: &str) -> Vec<String> {
    let mut events = Vec::new();
    while !events.iter().any(|event: &String| event == until) {
        let step = std::future::poll_fn(|cx| {
            link.poll_events(cx, &mut |event| {
                events.push(match event {
                    Event::Data(bytes) => String::from_utf8_lossy(bytes).into_owned(),
                    other => other.name().to_owned(),
                });
                Ok(Took::All)
            })
        });
        timeout(Duration::from_secs(10), step).await.unwrap().unwrap();
        events.push("|".to_owned());
    }
    events
}

#[tokio::test]
async fn acceptance_and_the_first_bytes_and_the_end_leave_together() {
    let ((mut client_link, _), (server_link, _)) = link_pair().await;
    let (mut server, server_app) = tcp_pair().await;
    // Before the relay looks: all of it is there.
    server.write_all(b"answer").await.unwrap();
    server.shutdown().await.unwrap();
    while !server_app.ready(tokio::io::Interest::READABLE).await.unwrap().is_read_closed() {
        tokio::task::yield_now().await;
    }
    let _side = run(Side::Server, server_app, server_link, Held::default());
    assert_eq!(said(&mut client_link, "FIN").await, ["STATUS", "answer", "FIN", "|"]);
}

#[tokio::test]
async fn open_and_the_first_bytes_leave_together() {
    let ((client_link, _), (mut server_link, _)) = link_pair().await;
    let (mut client, app) = tcp_pair().await;
    // Before the relay looks: they are there.
    client.write_all(b"hello").await.unwrap();
    app.readable().await.unwrap();
    let _side = run(Side::Client, app, client_link, Held::default());
    assert_eq!(said(&mut server_link, "hello").await, ["OPEN", "hello", "|"]);
}

/// A connection that the server ends: the client side's `FIN` tells nobody anything, and would cost a packet and a wake-up.
#[tokio::test]
async fn a_fin_that_nobody_waits_for_leaves_with_the_next_open() {
    let ((mut client_link, _), (mut server_link, _)) = link_pair().await;
    for round in 0..3 {
        let (mut client, app) = tcp_pair().await;
        let side = run(Side::Client, app, client_link, Held::default());
        let begins: &[&str] = if round == 0 { &["OPEN", "|"] } else { &["FIN", "OPEN", "|"] };
        assert_eq!(said(&mut server_link, "OPEN").await, begins);
        let status = frame::status(Status::Accepted);
        server_link.seal(&[&status, &frame::data_header(2), b"hi", &frame::FIN]).unwrap();
        std::future::poll_fn(|cx| server_link.poll_flush(cx)).await.unwrap();
        says(&mut client, b"hi").await;
        is_over(&mut client).await;
        drop(client);
        let (end, _, link, _) = ended(side).await;
        assert!(matches!(end, End::Done), "{end:?}");
        assert!(link.owes_fin() && !link.wants_flush());
        client_link = link;
        assert!(client_link.is_quiet());
    }
    drop(client_link); // no next one: it pays
    assert_eq!(said(&mut server_link, "FIN").await, ["FIN", "|"]);
}

#[tokio::test]
async fn a_link_that_is_closed_says_its_fin_first() {
    let ((mut client_link, _), (mut server_link, _)) = link_pair().await;
    client_link.owe_fin();
    let closing = tokio::spawn(client_link.close());
    assert_eq!(said(&mut server_link, "FIN").await, ["FIN", "|"]);
    drop(server_link);
    closing.await.unwrap();
}

#[tokio::test]
async fn acceptance_does_not_wait_for_an_app_that_is_silent() {
    let ((mut client_link, _), (server_link, _)) = link_pair().await;
    let (_server, server_app) = tcp_pair().await;
    let _side = run(Side::Server, server_app, server_link, Held::default());
    assert_eq!(said(&mut client_link, "STATUS").await, ["STATUS", "|"]);
}

#[tokio::test]
async fn data_before_status_is_a_protocol_error() {
    let data = [&frame::data_header(1)[..], b"x"].concat();
    let (end, _) = client_against(&[&data], b"").await;
    let End::PeerGone(Some(LinkError::Frames(ProtocolError::OutOfTurn("DATA")))) = end else { panic!("{end:?}") };
}

#[tokio::test]
async fn a_fin_before_status_is_a_protocol_error_and_no_end() {
    let (end, _) = client_against(&[&frame::FIN], b"").await;
    let End::PeerGone(Some(LinkError::Frames(ProtocolError::OutOfTurn("FIN")))) = end else { panic!("{end:?}") };
}

#[tokio::test]
async fn a_second_open_before_fin_is_a_protocol_error() {
    let ((mut client_link, _), (mut server_link, _)) = link_pair().await;
    let (_server, server_app) = tcp_pair().await;
    client_link.seal(&[&frame::OPEN, &frame::OPEN]).unwrap();
    std::future::poll_fn(|cx| client_link.poll_flush(cx)).await.unwrap();
    next_open(&mut server_link).await.unwrap();
    let (end, ..) = ended(run(Side::Server, server_app, server_link, Held::default())).await;
    let End::PeerGone(Some(LinkError::Frames(ProtocolError::OutOfTurn("OPEN")))) = end else { panic!("{end:?}") };
}

#[tokio::test]
async fn the_next_open_may_lie_in_the_same_buffer_as_fin() {
    let ((mut client_link, _), (mut server_link, _)) = link_pair().await;
    let (mut server, server_app) = tcp_pair().await;
    let hi = [&frame::data_header(2)[..], b"hi"].concat();
    client_link.seal(&[&frame::OPEN]).unwrap();
    std::future::poll_fn(|cx| client_link.poll_flush(cx)).await.unwrap();
    next_open(&mut server_link).await.unwrap();
    server.shutdown().await.unwrap();
    let side = run(Side::Server, server_app, server_link, Held::default());
    // The server's FIN is here: the client ends its half, and begins the next connection in the same record.
    let mut fin = false;
    while !fin {
        std::future::poll_fn(|cx| {
            client_link.poll_events(cx, &mut |event| {
                fin |= event == Event::Fin;
                Ok(Took::All)
            })
        })
        .await
        .unwrap();
    }
    let parts = [&frame::FIN[..], &frame::OPEN, &hi, &frame::FIN];
    client_link.seal(&parts).unwrap();
    std::future::poll_fn(|cx| client_link.poll_flush(cx)).await.unwrap();
    let (end, flow, mut server_link, _) = ended(side).await;
    assert!(matches!(end, End::Done), "{end:?}");
    assert_eq!(flow.sent, 0, "no byte of the next connection went to this one");
    is_over(&mut server).await;
    next_open(&mut server_link).await.unwrap();
    let (mut second, second_app) = tcp_pair().await;
    let _side = run(Side::Server, second_app, server_link, Held::default());
    says(&mut second, b"hi").await;
    is_over(&mut second).await;
}

#[tokio::test]
async fn a_kept_link_with_anything_pending_is_not_used_again() {
    for pending in [&frame::CLOSING[..], &frame::RST, &frame::FIN, &[1, 0]] {
        let ((mut client_link, _), (mut server_link, _)) = link_pair().await;
        quiet(&mut client_link).await;
        server_link.seal(&[pending]).unwrap();
        std::future::poll_fn(|cx| server_link.poll_flush(cx)).await.unwrap();
        client_link.socket().readable().await.unwrap();
        assert!(!client_link.is_quiet(), "{pending:?}");
    }
    let ((mut client_link, _), (server_link, _)) = link_pair().await;
    quiet(&mut client_link).await;
    drop(server_link);
    client_link.socket().readable().await.unwrap();
    assert!(!client_link.is_quiet(), "the peer ended it");
    // By the end of TLS alone, before that of TCP.
    let ((mut client_link, _), (server_link, _)) = link_pair().await;
    let closing = tokio::spawn(server_link.close());
    client_link.socket().readable().await.unwrap();
    assert!(!client_link.is_quiet(), "the peer ended TLS");
    drop(client_link);
    closing.await.unwrap();
}

/// A peer may change its keys whenever it likes, and ask for ours: that is no frame.
#[tokio::test]
async fn new_keys_alone_leave_a_kept_link_good_and_the_next_connection_goes_over_them() {
    let ((mut client_link, _), (mut server_link, _)) = link_pair().await;
    quiet(&mut client_link).await;
    server_link.refresh_keys().unwrap();
    std::future::poll_fn(|cx| server_link.poll_flush(cx)).await.unwrap();
    client_link.socket().readable().await.unwrap();
    assert!(client_link.is_quiet());
    let mut p = pair_over(client_link, server_link).await;
    p.client.write_all(b"there").await.unwrap();
    says(&mut p.server, b"there").await;
    p.server.write_all(b"and back").await.unwrap();
    says(&mut p.client, b"and back").await;
}

/// Takes what the handshake left, so that the link stands between two application connections.
async fn quiet(link: &mut Link) {
    std::future::poll_fn(|cx| {
        assert!(link.poll_events(cx, &mut |_| Ok(Took::All)).is_pending());
        std::task::Poll::Ready(())
    })
    .await;
    assert!(link.is_quiet());
}

/// A TLS 1.3 client has done its side of the handshake when the server judges its certificate.
#[tokio::test]
async fn a_certificate_that_the_server_side_refuses_is_told_as_that() {
    let (ours, theirs) = (TestCa::new("cluster.local"), TestCa::new("cluster.local"));
    let (hour, limit) = (Duration::from_secs(3600), Duration::from_secs(10));
    let (frontend, backend) = (ours.credentials("frontend", hour), theirs.credentials("backend", hour));
    // The client side knows both roots, the server side only its own.
    let roots = [ours.bundle(1), theirs.bundle(1)].iter().flat_map(|bundle| bundle.roots().to_vec()).collect();
    let both = TrustBundle::new(frontend.id().trust_domain(), 1, roots, UnixTime::now()).unwrap();
    let bundles = BundleSet::new(vec![both]).unwrap();
    let frontend = Credentials::new(Arc::clone(frontend.svid()), bundles, system_clock()).unwrap();
    let (dialled, accepted) = tcp_pair().await;
    let (client, server) = tokio::join!(
        tls::connect(dialled, &frontend, backend.id(), limit),
        tls::accept(Replay::new(Vec::new(), accepted), &backend, limit)
    );
    assert!(server.is_err());
    let (_client, client_app) = tcp_pair().await;
    let (end, ..) = ended(run(Side::Client, client_app, client.unwrap().0, Held::default())).await;
    let End::PeerGone(Some(error)) = end else { panic!("{end:?}") };
    assert_eq!(error.label(), "handshake_failed", "{error}");
}

#[tokio::test]
async fn plain_relay_keeps_half_close_and_reset() {
    let (mut client, mut a) = tcp_pair().await;
    let (mut server, mut b) = tcp_pair().await;
    let side = tokio::spawn(async move {
        let mut flow = Flow::default();
        let end = splice(&a_permit(), &mut a, b"first ".to_vec(), &mut b, &mut flow).await;
        (end, flow)
    });
    client.write_all(b"then").await.unwrap();
    client.shutdown().await.unwrap();
    says(&mut server, b"first then").await;
    is_over(&mut server).await;
    server.write_all(b"back").await.unwrap();
    says(&mut client, b"back").await;
    drop(server);
    is_over(&mut client).await;
    assert_eq!(side.await.unwrap(), (PlainEnd::Done, Flow { sent: 10, received: 4 }));

    let (client, mut a) = tcp_pair().await;
    let (_server, mut b) = tcp_pair().await;
    let side = tokio::spawn(async move { splice(&a_permit(), &mut a, Vec::new(), &mut b, &mut Flow::default()).await });
    reset(client);
    assert_eq!(side.await.unwrap(), PlainEnd::ClientReset);
}

/// A server that answers, and closes without reading what was sent to it: its kernel resets. What its client, which sends until it
/// meets that reset, then finds.
async fn answer_early(mut client: TcpStream, mut server: TcpStream) -> Vec<u8> {
    let app = tokio::spawn(async move {
        server.read_exact(&mut [0; 1]).await.unwrap();
        server.write_all(b"413 too much").await.unwrap();
    });
    let mut answer = Vec::new();
    let talk = async {
        while client.write_all(&[7; 1 << 16]).await.is_ok() {}
        let _ = client.read_to_end(&mut answer).await;
    };
    timeout(Duration::from_secs(10), talk).await.unwrap();
    app.await.unwrap();
    answer
}

#[tokio::test]
async fn what_an_app_said_before_it_was_reset_still_arrives() {
    for _ in 0..10 {
        let (client, server) = tcp_pair().await;
        assert_eq!(answer_early(client, server).await, b"413 too much", "without us");

        let p = pair().await;
        tokio::spawn(async move {
            let (end, _, mut link, _app) = ended(p.server_side).await;
            assert!(matches!(end, End::AppReset), "{end:?}");
            link.seal(&[&frame::RST]).unwrap();
            link.close().await;
        });
        tokio::spawn(async move {
            let (end, _, _link, app) = ended(p.client_side).await;
            assert!(matches!(end, End::PeerReset), "{end:?}");
            reset(app);
        });
        assert_eq!(answer_early(p.client, p.server).await, b"413 too much");

        let ((client, mut a), (server, mut b)) = (tcp_pair().await, tcp_pair().await);
        tokio::spawn(async move {
            let end = splice(&a_permit(), &mut a, Vec::new(), &mut b, &mut Flow::default()).await;
            assert_eq!(end, PlainEnd::ServerReset);
            reset(a);
        });
        assert_eq!(answer_early(client, server).await, b"413 too much");
    }
}
