//! Packets that connection tracking cannot place (docs/decisions/0002).

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use countersign_kit::packet::{Segment, flag};
use countersign_kit::{Inside, Raw};

use crate::Promise;
use crate::support::{SOON, Stage, any, by_mark, listen};

pub const PROMISES: &[Promise] = &[
    ("a_stray_segment_does_not_end_a_connection", a_stray_segment_does_not_end_a_connection),
    ("without_the_strays_chain_it_would", without_the_strays_chain_it_would),
];

fn a_stray_segment_does_not_end_a_connection(inside: Inside) {
    assert!(survives(&Stage::with_rules(inside, &by_mark())));
}

fn without_the_strays_chain_it_would(inside: Inside) {
    let stage = Stage::with_rules(inside, &by_mark());
    stage.pod.nft("flush chain inet countersign strays").unwrap();
    assert!(!survives(&stage));
}

/// A connection of the neighbour to the pod's port 8080, served by the inbound listener; then one segment of it that is far
/// beyond its window, as after a fault of hardware or a reused port. Does the connection live?
fn survives(stage: &Stage) -> bool {
    let _app = listen(&stage.pod, any(8080), "app");
    let proxy = stage.pod.inside(|| TcpListener::bind(("0.0.0.0", 15006)).unwrap());
    let target = SocketAddr::new(stage.pod.v4().into(), 8080);
    let wire = Raw::open(&stage.neighbour, "eth0").unwrap();
    wire.set_patience(Duration::from_millis(50)).unwrap();
    let mut client = stage.neighbour.inside(|| TcpStream::connect(target).unwrap());
    let (mut server, _) = proxy.accept().unwrap();
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(SOON)).unwrap();
    }
    client.write_all(b"ping").unwrap();
    let last = last_segment(&wire, |segment| segment.destination == target && segment.payload == b"ping");
    let mut word = [0; 4];
    server.read_exact(&mut word).unwrap();

    let stray =
        Segment { sequence: last.sequence.wrapping_add(1 << 30), payload: b"late".to_vec(), flags: flag::ACK, ..last };
    let victim = Raw::open(&stage.pod, "eth0").unwrap().hardware();
    let pod_wire = Raw::open(&stage.pod, "eth0").unwrap();
    pod_wire.set_patience(Duration::from_millis(50)).unwrap();
    wire.send(&stray.frame(wire.hardware(), victim)).unwrap();
    last_segment(&pod_wire, |segment| segment.payload == b"late");

    // What follows comes behind the stray, and behind whatever it caused.
    let answered = server.write_all(b"pong").and_then(|()| client.read_exact(&mut word));
    answered.is_ok() && word == *b"pong" && client.write_all(b"more").is_ok() && server.read_exact(&mut word).is_ok()
}

fn last_segment(wire: &Raw, wanted: impl Fn(&Segment) -> bool) -> Segment {
    let begun = Instant::now();
    let mut buffer = vec![0; 128 * 1024];
    while begun.elapsed() < SOON {
        if let Ok(length) = wire.receive(&mut buffer)
            && let Some(segment) = Segment::read(&buffer[..length]).filter(&wanted)
        {
            return segment;
        }
    }
    panic!("the segment was not seen on the wire");
}
