//! The line, and that nobody ever waits for it.

use std::net::SocketAddr;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};

use countersign_identity::SpiffeId;

use super::*;
use crate::outcome::{Blame, Direction, Security};

fn outcome() -> Outcome {
    let id = |account: &str| SpiffeId::parse(&format!("spiffe://cluster.local/ns/shop/sa/{account}")).ok();
    let addr = |text: &str| text.parse::<SocketAddr>().unwrap();
    Outcome {
        connection: 42,
        direction: Direction::Inbound,
        started: SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_249_500_007),
        duration: Duration::from_micros(12_345),
        source: addr("10.77.0.9:40000"),
        destination: Some(addr("10.77.0.11:8080")),
        upstream: Some(addr("10.77.0.11:8080")),
        source_id: id("frontend"),
        destination_id: id("backend"),
        security: Security::MutualTls,
        tls_group: Some("X25519MLKEM768"),
        reused: true,
        rule: Some("shop/frontend-to-backend[0]".into()),
        revision: Some("r1".into()),
        sent: 321,
        received: 98_765,
        result: "ok",
        blame: Blame::Nobody,
        detail: String::new(),
        denial_id: None,
        would_deny: None,
    }
}

fn line(outcome: &Outcome) -> String {
    let mut out = Vec::new();
    write_line(&mut out, outcome).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn the_line_is_this_one() {
    let expected = concat!(
        r#"{"time":"2026-11-21T08:25:00.007Z","connection":42,"direction":"inbound","source_address":"10.77.0.9:40000","#,
        r#""destination_address":"10.77.0.11:8080","upstream_address":"10.77.0.11:8080","#,
        r#""source_id":"spiffe://cluster.local/ns/shop/sa/frontend","#,
        r#""destination_id":"spiffe://cluster.local/ns/shop/sa/backend","security":"mutual_tls","#,
        r#""tls_group":"X25519MLKEM768","reused":true,"rule":"shop/frontend-to-backend[0]","policy_revision":"r1","#,
        r#""bytes_sent":321,"bytes_received":98765,"duration_ms":12.345,"result":"ok","blame":"none","#,
        r#""detail":null,"denial_id":null,"would_deny":null}"#,
        "\n"
    );
    assert_eq!(line(&outcome()), expected);
}

#[test]
fn a_denial_shows_its_id_and_what_it_means() {
    let denied = Outcome {
        result: "denied",
        blame: Blame::Policy,
        detail: "no rule allows it".to_owned(),
        denial_id: Some(0xbeef),
        would_deny: Some("shop/strict[1]".into()),
        rule: None,
        ..outcome()
    };
    let value: serde_json::Value = serde_json::from_str(&line(&denied)).unwrap();
    assert_eq!(value["denial_id"], "000000000000beef");
    assert_eq!((&value["result"], &value["blame"]), (&"denied".into(), &"policy".into()));
    assert_eq!((&value["detail"], &value["would_deny"]), (&"no rule allows it".into(), &"shop/strict[1]".into()));
}

#[test]
fn nothing_in_a_line_can_act_on_who_reads_it() {
    let hostile = "a\nb\r\u{1b}[31m\u{7f}\u{85}\u{9b}\u{202e}\u{2066}\u{feff}\u{2028}\"\\";
    let text = line(&Outcome {
        detail: hostile.to_owned(),
        rule: Some(hostile.into()),
        revision: Some(hostile.into()),
        would_deny: Some(hostile.into()),
        ..outcome()
    });
    assert_eq!(text.matches('\n').count(), 1);
    assert!(text.trim_end().chars().all(|c| !c.is_control()), "{text:?}");
    for hidden in ['\u{202e}', '\u{2066}', '\u{feff}', '\u{2028}'] {
        assert!(!text.contains(hidden));
    }
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let shown = value["detail"].as_str().unwrap();
    assert!(shown.starts_with("a\u{fffd}b") && shown.ends_with("\"\\"), "{shown:?}");
}

#[test]
fn a_line_is_bounded_whatever_is_put_into_it() {
    let endless = "é".repeat(100_000);
    let text = line(&Outcome {
        detail: endless.clone(),
        rule: Some(endless.as_str().into()),
        revision: Some(endless.as_str().into()),
        would_deny: Some(endless.as_str().into()),
        ..outcome()
    });
    assert!(text.len() < 6000, "{} bytes", text.len());
    assert!(serde_json::from_str::<serde_json::Value>(&text).unwrap()["detail"].as_str().unwrap().ends_with('…'));
}

/// Keeps what is written; each write waits until it is let.
#[derive(Clone)]
struct Slow {
    written: Arc<Mutex<Vec<u8>>>,
    let_go: Arc<Mutex<mpsc::Receiver<()>>>,
}

impl Slow {
    fn new() -> (Self, mpsc::Sender<()>) {
        let (go, let_go) = mpsc::channel();
        (Self { written: Arc::default(), let_go: Arc::new(Mutex::new(let_go)) }, go)
    }

    fn lines(&self) -> usize {
        self.written.lock().unwrap().iter().filter(|byte| **byte == b'\n').count()
    }
}

impl Write for Slow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Once nobody holds it back any more, it is quick.
        let _ = self.let_go.lock().unwrap().recv();
        self.written.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn dropped(metrics: &Metrics) -> usize {
    let text = metrics.encode();
    let line = text.lines().find(|line| line.starts_with("countersign_access_log_dropped_total")).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_reader_that_stopped_stops_nobody_and_what_is_lost_is_counted() {
    let metrics = Metrics::new();
    let (slow, go) = Slow::new();
    let (log, writer) = AccessLog::start(slow.clone(), metrics.clone()).unwrap();
    let all = 10 * WAITING;
    for _ in 0..all {
        log.record(&outcome());
    }
    // This was reached although not one line could be written.
    assert_eq!(slow.lines(), 0);
    let lost = dropped(&metrics);
    assert!(lost >= all - 3 * WAITING, "{lost} of {all}");
    drop(go);
    writer.finish(Duration::from_secs(20));
    assert_eq!(slow.lines() + lost, all);
}

#[test]
fn the_end_does_not_wait_for_a_reader_that_stopped() {
    let (slow, go) = Slow::new();
    let (log, writer) = AccessLog::start(slow, Metrics::new()).unwrap();
    log.record(&outcome());
    let began = Instant::now();
    writer.finish(Duration::from_millis(100));
    assert!(began.elapsed() < Duration::from_secs(5));
    drop(go);
}

#[test]
fn all_lines_are_written_before_the_end() {
    let (slow, go) = Slow::new();
    drop(go);
    let metrics = Metrics::new();
    let (log, writer) = AccessLog::start(slow.clone(), metrics.clone()).unwrap();
    for _ in 0..1000 {
        log.record(&outcome());
    }
    writer.finish(Duration::from_secs(20));
    assert_eq!((slow.lines(), dropped(&metrics)), (1000, 0));
}

#[test]
fn a_reader_that_is_gone_is_no_error_of_the_connection() {
    struct Gone;
    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let metrics = Metrics::new();
    let (log, writer) = AccessLog::start(Gone, metrics.clone()).unwrap();
    log.record(&outcome());
    writer.finish(Duration::from_secs(20));
    log.record(&outcome());
    assert_eq!(dropped(&metrics), 1);
}

#[test]
fn off_is_off() {
    AccessLog::off().record(&outcome());
}
