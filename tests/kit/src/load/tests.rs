use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

/// Answers each request after `pause(number)`, over any number of connections.
fn server(reply: &'static str, pause: fn(u64) -> Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let number = std::sync::Arc::new(AtomicU64::new(0));
        for stream in listener.incoming() {
            let (mut stream, number) = (stream.unwrap(), number.clone());
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut line = String::new();
                while matches!(reader.read_line(&mut line), Ok(n) if n > 0) {
                    if line == "\r\n" {
                        std::thread::sleep(pause(number.fetch_add(1, Ordering::Relaxed)));
                        if stream.write_all(reply.as_bytes()).is_err() {
                            return;
                        }
                    }
                    line.clear();
                }
            });
        }
    });
    address
}

fn load(target: SocketAddr) -> Load {
    Load { target, path: "/".into(), rate: 500, connections: 2, length: Duration::from_millis(400) }
}

const GOOD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

#[test]
fn every_planned_request_is_counted() {
    let load = load(server(GOOD, |_| Duration::ZERO));
    let measured = load.run().unwrap();
    assert_eq!(measured.answered, 200);
    assert_eq!((measured.failed, measured.latency.len()), (0, 200));
    assert!(measured.quantile(0.5) < Duration::from_millis(100));
}

#[test]
fn a_stall_is_paid_by_every_request_that_was_meant_to_be_sent_in_it() {
    // Both connections stall for 200 ms; a closed loop would count 2 slow requests, an open one about half of all.
    let measured =
        load(server(GOOD, |n| Duration::from_millis(if n == 20 || n == 21 { 200 } else { 0 }))).run().unwrap();
    assert_eq!(measured.answered, 200);
    let slow = measured.latency.count_between(20_000, MAX_MICROS);
    assert!(slow > 50, "{slow} slow requests");
}

#[test]
fn a_request_that_fails_is_counted_as_failed() {
    let measured = load(server(GOOD, |_| Duration::ZERO)).run().unwrap();
    assert_eq!(measured.failure, None);
    let bad = load(server("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", |_| Duration::ZERO)).run();
    assert!(format!("{:#}", bad.unwrap_err()).contains("status 503"));
}

#[test]
fn a_server_that_goes_away_fails_the_rest() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 512]);
            stream.write_all(GOOD.as_bytes()).unwrap();
            kept.push(stream);
        }
    });
    let measured = load(target).run().unwrap();
    assert_eq!((measured.answered, measured.failed), (0, 200));
    assert!(measured.failure.is_some());
}

#[test]
fn a_closed_loop_sends_as_soon_as_it_may_and_counts_only_its_own_time() {
    let plan = Plan {
        pace: Pace::Closed,
        connections: 2,
        length: Duration::from_millis(300),
        ..Plan::new(server(GOOD, |_| Duration::from_millis(10)), "/")
    };
    let measured = plan.run(&mut |_| true).unwrap();
    assert!((10..=60).contains(&measured.answered), "{measured:?}");
    assert_eq!(measured.elapsed, Duration::from_millis(300));
    assert!(measured.quantile(0.01) >= Duration::from_millis(9));
}

#[test]
fn a_fresh_connection_for_each_request_is_one_for_each() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap();
    let accepted = std::sync::Arc::new(AtomicU64::new(0));
    let count = accepted.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            count.fetch_add(1, Ordering::Relaxed);
            let _ = stream.read(&mut [0; 512]);
            let _ = stream.write_all(GOOD.as_bytes());
        }
    });
    let plan = Plan {
        pace: Pace::Rate(200),
        fresh: true,
        connections: 4,
        length: Duration::from_millis(200),
        ..Plan::new(target, "/")
    };
    let measured = plan.run(&mut |_| true).unwrap();
    assert_eq!((measured.answered, measured.failed), (40, 0), "{:?}", measured.failure);
    assert_eq!(accepted.load(Ordering::Relaxed), 40);
}

#[test]
fn a_watcher_may_end_it() {
    let plan = Plan { length: Duration::from_secs(60), ..Plan::new(server(GOOD, |_| Duration::ZERO), "/") };
    let began = std::time::Instant::now();
    let measured = plan.run(&mut |so_far| so_far.answered == 0).unwrap();
    assert!(measured.answered > 0 && began.elapsed() < Duration::from_secs(30));
}

#[test]
fn idle_connections_stay_open() {
    let idle = Idle::open(server(GOOD, |_| Duration::ZERO), "/", 3).unwrap();
    assert_eq!((idle.len(), idle.still_open()), (3, 3));
}
