//! What proves a redirect, and what does not.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::time::sleep;

use super::*;
use crate::drain::Drain;
use crate::testing::tcp_pair;

fn proof() -> Proof {
    Proof::new(Metrics::new())
}

fn has(proof: &Proof, line: &str) -> bool {
    proof.0.metrics.encode().lines().any(|each| each == line)
}

const PLACES: usize = 4;

async fn until(proof: &Proof, standing: Standing) {
    let mut outbound = proof.outbound();
    let wanted = outbound.wait_for(|now| *now == standing);
    tokio::time::timeout(Duration::from_secs(20), wanted).await.unwrap().unwrap();
}

#[tokio::test]
async fn only_the_nonce_that_is_awaited_proves_it() {
    let proof = proof();
    let (found, waiting) = tokio::sync::oneshot::channel();
    lock(&proof.0.awaited).push(outbound::Awaited::new([7; 16], found));
    for word in [&b"GET / HTTP/1.1\r\n"[..], &[6; 16]] {
        let (mut near, mut far) = tcp_pair().await;
        near.write_all(word).await.unwrap();
        assert!(!proof.heard(&mut far).await);
    }
    let (near, mut far) = tcp_pair().await;
    drop(near);
    assert!(!proof.heard(&mut far).await, "an app that dials there and says nothing");
    let (mut near, mut far) = tcp_pair().await;
    near.write_all(&[7; 16]).await.unwrap();
    assert!(proof.heard(&mut far).await);
    waiting.await.unwrap();
    let (mut near, mut far) = tcp_pair().await;
    near.write_all(&[7; 16]).await.unwrap();
    assert!(!proof.heard(&mut far).await, "a nonce is good once");
}

/// Plays the redirect: what comes to the reserved destination is handed to the listener. A loopback address stands for the pod's.
async fn redirected(proof: Proof, ip: IpAddr) {
    let listener = TcpListener::bind((ip, countersign_api::ports::SELF_PROOF)).await.unwrap();
    loop {
        let (mut io, _) = listener.accept().await.unwrap();
        proof.heard(&mut io).await;
    }
}

#[tokio::test]
async fn a_redirect_is_proven_then_lost_then_found_again_and_each_is_said_once() {
    let proof = proof();
    // Of its own: tests run side by side.
    let ip = IpAddr::from(Ipv4Addr::new(127, 15, 0, 21));
    let places = Arc::new(tokio::sync::Semaphore::new(PLACES));
    let drain = Drain::new(Duration::ZERO);
    let proving = tokio::spawn(proof.clone().keep_proving(vec![ip], None, Arc::clone(&places), drain.clone()));
    while lock(&proof.0.problem).is_none() {
        sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(*proof.0.outbound.borrow(), Standing::Unproven, "never seen is not lost");
    let redirect = tokio::spawn(redirected(proof.clone(), ip));
    until(&proof, Standing::Proven).await;
    assert!(has(&proof, "countersign_interception_lost{direction=\"outbound\"} 0"));
    redirect.abort();
    until(&proof, Standing::Lost).await;
    assert!(has(&proof, "countersign_interception_lost{direction=\"outbound\"} 1"));
    let view = serde_json::to_value(proof.view()).unwrap();
    assert_eq!(view["outbound"]["state"], "lost");
    assert!(view["outbound"]["problem"].as_str().unwrap().contains("127.15.0.21:15021"), "{view}");
    let redirect = tokio::spawn(redirected(proof.clone(), ip));
    until(&proof, Standing::Proven).await;

    // A listener that sheds everything, ours too, tells nothing: it is not even asked.
    let all = Arc::clone(&places).acquire_many_owned(u32::try_from(PLACES).unwrap()).await.unwrap();
    redirect.abort();
    let _ = redirect.await;
    let shedding = TcpListener::bind((ip, countersign_api::ports::SELF_PROOF)).await.unwrap();
    let mut outbound = proof.outbound();
    outbound.mark_unchanged();
    tokio::select! {
        _ = outbound.changed() => panic!("it turned"),
        _ = shedding.accept() => panic!("it dialled a listener that is full"),
        () = sleep(Duration::from_secs(3)) => {}
    }
    drop((all, shedding));
    until(&proof, Standing::Lost).await;
    drain.signal();
    proving.await.unwrap();
}

impl Proof {
    fn witnessed_now(&self) {
        self.witnessed(Instant::now());
    }
}

fn state(proof: &Proof) -> serde_json::Value {
    serde_json::to_value(proof.view()).unwrap()["inbound"].clone()
}

#[tokio::test(start_paused = true)]
async fn a_witness_that_falls_silent_is_noticed_and_one_that_never_was_is_not() {
    let proof = proof();
    proof.look(Instant::now());
    assert_eq!(state(&proof)["state"], "unproven");
    assert!(state(&proof)["problem"].as_str().unwrap().contains("nobody probes"));
    // A startup probe: it ends with its first good answer.
    proof.seen();
    proof.witnessed_now();
    tokio::time::advance(Duration::from_secs(3600)).await;
    proof.look(Instant::now());
    assert_eq!(state(&proof)["state"], "proven");

    for _ in 0..4 {
        proof.seen();
        proof.witnessed_now();
        tokio::time::advance(Duration::from_secs(2)).await;
        proof.look(Instant::now());
    }
    assert_eq!(state(&proof)["problem"], serde_json::Value::Null);
    // Twice what it was silent before, and a second.
    tokio::time::advance(Duration::from_secs(3)).await;
    proof.look(Instant::now());
    assert_eq!(state(&proof)["state"], "proven");
    tokio::time::advance(Duration::from_millis(100)).await;
    proof.look(Instant::now());
    assert_eq!(state(&proof)["state"], "lost");
    assert!(has(&proof, "countersign_interception_lost{direction=\"inbound\"} 1"));
    // Whoever comes through proves it, probe or not.
    proof.seen();
    proof.look(Instant::now());
    assert_eq!(state(&proof)["state"], "proven");
    assert!(has(&proof, "countersign_interception_lost{direction=\"inbound\"} 0"));
}
