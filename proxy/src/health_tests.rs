//! What the health port says, and what it bears.

use std::time::Instant;

use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::*;
use crate::drain::Drain;

fn health() -> Health {
    let (credentials, rules) = (watch::Sender::new(None), watch::Sender::new(None));
    let drain = Drain::new(Duration::ZERO);
    let readiness = Readiness::new(credentials.subscribe(), rules.subscribe(), drain);
    Health { readiness, metrics: Metrics::new() }
}

async fn ask(method: &str, path: &str, accept: &str) -> (u16, String, String) {
    let request = Request::builder().method(method).uri(path).header(ACCEPT, accept).body(()).unwrap();
    let answer = health().answer(&request);
    let content_type = answer.headers()["content-type"].to_str().unwrap().to_owned();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, content_type, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn alive_is_not_ready() {
    assert_eq!(ask("GET", "/livez", "").await.0, 200);
    let (status, _, body) = ask("GET", "/readyz", "").await;
    assert_eq!(status, 503);
    assert_eq!(
        body,
        "[-] credentials: no SVID yet\n[-] rules: no rules yet\n[-] listeners: not bound yet\nnot ready\n"
    );
    let (_, _, verbose) = ask("GET", "/readyz?verbose", "").await;
    assert!(verbose.contains("[+] drain\n"), "{verbose}");
}

#[tokio::test]
async fn metrics_are_openmetrics_to_whoever_asks_for_it_and_text_to_others() {
    let (status, content_type, body) =
        ask("GET", "/metrics", "application/openmetrics-text;version=1.0.0,*/*;q=0.1").await;
    assert_eq!((status, content_type.as_str()), (200, OPENMETRICS));
    assert!(body.ends_with("# EOF\n"));
    assert_eq!(ask("GET", "/metrics", "*/*").await.1, PLAIN_METRICS);
}

#[tokio::test]
async fn nothing_else_is_there_and_nothing_can_be_changed() {
    for path in ["/", "/status", "/config_dump", "/log", "/drain", "/readyz/", "/metrics/../status"] {
        assert_eq!(ask("GET", path, "").await.0, 404, "{path}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT"] {
        assert_eq!(ask(method, "/readyz", "").await.0, 405, "{method}");
    }
}

/// A health port on loopback.
async fn listening() -> (SocketAddr, Health) {
    let listener = bind(0).unwrap();
    let port = listener.local_addr().unwrap().port();
    let health = health();
    tokio::spawn(serve(listener, health.clone()));
    (SocketAddr::from(([127, 0, 0, 1], port)), health)
}

async fn livez(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    // A connection over budget may be reset.
    let _ = stream.read_to_string(&mut answer).await;
    answer
}

#[tokio::test]
async fn both_ip_versions_are_served() {
    let (address, _) = listening().await;
    assert!(livez(address).await.starts_with("HTTP/1.1 200"));
    let v6 = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), address.port());
    if std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
        assert!(livez(v6).await.starts_with("HTTP/1.1 200"));
    }
}

#[tokio::test]
async fn connections_over_the_budget_are_closed_and_counted_and_others_served_afterwards() {
    let (address, health) = listening().await;
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut first = [0; 15];
        stream.read_exact(&mut first).await.unwrap();
        held.push(stream);
    }
    assert_eq!(livez(address).await, "");
    assert!(health.metrics.encode().contains("countersign_connections_shed_total{reason=\"health_connections\"} 1"));
    drop(held);
    let served = async { while livez(address).await.is_empty() {} };
    tokio::time::timeout(Duration::from_secs(20), served).await.unwrap();
}

#[tokio::test]
async fn a_silent_client_is_cut() {
    let (address, _) = listening().await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /livez HT").await.unwrap();
    let began = Instant::now();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(15));
}

#[tokio::test]
async fn an_endless_head_is_refused() {
    let (address, _) = listening().await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut sent = 0_usize;
    let filler = [b'a'; 1024];
    let _ = stream.write_all(b"GET /livez HTTP/1.1\r\nX: ").await;
    while sent < 1024 * 1024 && stream.write_all(&filler).await.is_ok() {
        sent += filler.len();
    }
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
}
