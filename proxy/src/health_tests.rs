//! What the health port says, and what it bears.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use countersign_admin::health::{EACH, answer, bind, serve};
use http_body_util::BodyExt as _;
use hyper::Request;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::*;
use crate::drain::Drain;
use crate::proof::Proof;

fn health() -> Shown {
    let (credentials, rules) = (watch::Sender::new(None), watch::Sender::new(None));
    let drain = Drain::new(Duration::ZERO);
    let metrics = Metrics::new();
    let redirect = Proof::new(metrics.clone()).outbound();
    let readiness = Readiness::new(credentials.subscribe(), rules.subscribe(), redirect, drain);
    Shown { readiness, metrics }
}

async fn get(path: &str) -> (u16, String) {
    let answer = answer(&health(), &Request::get(path).body(()).unwrap());
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn alive_is_not_ready() {
    assert_eq!(get("/livez").await.0, 200);
    let (status, body) = get("/readyz").await;
    assert_eq!(status, 503);
    assert_eq!(
        body,
        "[-] credentials: no SVID yet\n[-] rules: no rules yet\n[-] listeners: not bound yet\n\
         [-] redirect: the outbound redirect is not proven yet\nnot ready\n"
    );
    let (_, verbose) = get("/readyz?verbose").await;
    assert!(verbose.contains("[+] drain\n"), "{verbose}");
}

/// A health port on loopback.
async fn listening() -> (SocketAddr, Shown) {
    let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = listener.local_addr().unwrap();
    let health = health();
    let metrics = health.metrics.clone();
    tokio::spawn(serve(listener, Arc::new(health.clone()), move |what| metrics.shed(what)));
    (address, health)
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
async fn connections_over_the_budget_are_closed_and_counted_and_others_served_afterwards() {
    let (address, health) = listening().await;
    let mut held = Vec::new();
    for _ in 0..EACH {
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
