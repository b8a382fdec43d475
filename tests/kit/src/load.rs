//! An open-loop load generator: requests at a fixed rate, latency counted from when each was *meant* to be sent.
//!
//! Called by the demo and the benches, inside the namespace of the client. A server that stalls cannot slow the load down, and
//! so hides nothing (no coordinated omission): what waits for a free connection waits on the clock. It must never retry, and
//! never leave a failed request out of the counts.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;

/// No request waits longer than this for its response.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// Latencies are counted in microseconds up to a minute, to three digits.
const MAX_MICROS: u64 = 60_000_000;
/// A response head larger than this is an error.
const MAX_HEAD: usize = 16 * 1024;

/// What is asked of whom, how often.
#[derive(Clone, Debug)]
pub struct Load {
    /// Where each connection goes.
    pub target: SocketAddr,
    /// Path of a GET over kept HTTP/1.1 connections.
    pub path: String,
    /// Requests a second, over all connections.
    pub rate: u32,
    /// Connections, each with at most one request under way: a thread each, since a runtime's timers tick in milliseconds.
    pub connections: usize,
    /// For how long.
    pub length: Duration,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Microseconds from the intended time of sending to the last byte of the response; successes only.
    pub latency: Histogram<u64>,
    /// Microseconds by which requests left late though a connection was free: the generator's own error, which is part of
    /// every latency above, alike for all that is compared.
    pub lateness: Histogram<u64>,
    /// Requests that got a good response (status 200).
    pub answered: u64,
    /// Requests that did not.
    pub failed: u64,
    /// The first failure, in words.
    pub failure: Option<String>,
}

impl Measured {
    fn empty() -> Result<Self> {
        let latency: Histogram<u64> = Histogram::new_with_bounds(1, MAX_MICROS, 3).context("histogram")?;
        Ok(Self { lateness: latency.clone(), latency, answered: 0, failed: 0, failure: None })
    }

    /// Adds another round of the same load.
    ///
    /// # Errors
    /// If it was counted with other bounds.
    pub fn add(&mut self, other: &Self) -> Result<()> {
        self.latency.add(&other.latency).context("histogram")?;
        self.lateness.add(&other.lateness).context("histogram")?;
        self.answered += other.answered;
        self.failed += other.failed;
        self.failure = self.failure.take().or_else(|| other.failure.clone());
        Ok(())
    }

    /// Latency below which this share of the requests stayed (0.5 is the median).
    #[must_use]
    pub fn quantile(&self, share: f64) -> Duration {
        Duration::from_micros(self.latency.value_at_quantile(share))
    }
}

impl Load {
    /// How many requests are meant to be sent.
    #[must_use]
    pub fn planned(&self) -> u64 {
        let nanos = u64::try_from(self.length.as_nanos()).unwrap_or(u64::MAX);
        nanos.saturating_mul(self.rate.into()) / 1_000_000_000
    }

    /// Opens every connection (not measured: a request each passes before the clock starts), then runs the plan.
    ///
    /// # Errors
    /// If a connection cannot be opened or its first request fails; failures later are counted.
    pub fn run(&self) -> Result<Measured> {
        ensure!(self.rate > 0 && self.connections > 0, "a load without requests");
        let mut clients = Vec::new();
        for _ in 0..self.connections {
            let mut client = Client::new(self.target, &self.path);
            client.exchange().with_context(|| format!("the first request to {}", self.target))?;
            clients.push(client);
        }
        let (next, start) = (AtomicU64::new(0), Instant::now() + Duration::from_millis(5));
        let mut total = Measured::empty()?;
        let parts = std::thread::scope(|scope| {
            let work: Vec<_> =
                clients.into_iter().map(|client| scope.spawn(|| self.client(client, &next, start))).collect();
            work.into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect::<Result<Vec<_>>>()
        })?;
        for part in parts {
            total.add(&part)?;
        }
        Ok(total)
    }

    /// One connection: takes the next request of the common plan whenever it is free.
    fn client(&self, mut client: Client, next: &AtomicU64, start: Instant) -> Result<Measured> {
        let (mut measured, planned) = (Measured::empty()?, self.planned());
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= planned {
                return Ok(measured);
            }
            let intended = start + self.due(number);
            let early = intended.saturating_duration_since(Instant::now());
            if !early.is_zero() {
                std::thread::sleep(early);
                measured.lateness.saturating_record(micros_since(intended));
            }
            match client.exchange() {
                Ok(()) => {
                    measured.answered += 1;
                    measured.latency.saturating_record(micros_since(intended));
                }
                Err(error) => {
                    measured.failed += 1;
                    measured.failure.get_or_insert_with(|| error.to_string());
                    client.stream = None;
                }
            }
        }
    }

    /// When request `number` is meant to leave, after the start.
    fn due(&self, number: u64) -> Duration {
        Duration::from_nanos(number.saturating_mul(1_000_000_000) / u64::from(self.rate))
    }
}

fn micros_since(then: Instant) -> u64 {
    u64::try_from(then.elapsed().as_micros()).unwrap_or(MAX_MICROS).clamp(1, MAX_MICROS)
}

/// One HTTP/1.1 connection.
struct Client {
    target: SocketAddr,
    request: String,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
}

impl Client {
    fn new(target: SocketAddr, path: &str) -> Self {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {target}\r\n\r\n");
        Self { target, request, stream: None, buffer: vec![0; 64 * 1024] }
    }

    /// One request and its whole response.
    fn exchange(&mut self) -> io::Result<()> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => none.insert(connect(self.target)?),
        };
        stream.write_all(self.request.as_bytes())?;
        let mut have = 0;
        let (status, whole) = loop {
            if let Some(head) = head(&self.buffer[..have])? {
                break head;
            }
            if have >= MAX_HEAD {
                return Err(io::Error::new(ErrorKind::InvalidData, "the response's head is too large"));
            }
            have += read_some(stream, &mut self.buffer[have..])?;
        };
        while have < whole {
            // The body is only counted: its end may overwrite its beginning.
            let room = self.buffer.len().min(whole - have);
            have += read_some(stream, &mut self.buffer[..room])?;
        }
        if status == "200" && have == whole {
            return Ok(());
        }
        Err(io::Error::new(ErrorKind::InvalidData, format!("status {status}, {have} of {whole} bytes")))
    }
}

fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, REQUEST_LIMIT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(REQUEST_LIMIT))?;
    stream.set_write_timeout(Some(REQUEST_LIMIT))?;
    Ok(stream)
}

fn read_some(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    match stream.read(buffer)? {
        0 => Err(io::Error::new(ErrorKind::UnexpectedEof, "the connection ended before the response did")),
        n => Ok(n),
    }
}

/// Status and whole length (head and body) of a response whose head has come.
fn head(bytes: &[u8]) -> io::Result<Option<(String, usize)>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let bad = || io::Error::new(ErrorKind::InvalidData, "not an HTTP/1.1 response with a Content-Length");
    let text = std::str::from_utf8(&bytes[..end]).map_err(|_| bad())?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")).and_then(|rest| rest.get(..3));
    let length =
        lines.filter_map(|line| line.split_once(':')).find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|(_, value)| value.trim().parse::<usize>().ok());
    match (status, length) {
        (Some(status), Some(length)) => Ok(Some((status.to_owned(), end + 4 + length))),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;

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
    fn a_head_is_read_only_when_it_is_whole() {
        assert!(head(b"HTTP/1.1 200 OK\r\nContent-Le").unwrap().is_none());
        assert_eq!(head(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n").unwrap(), Some(("200".into(), 41)));
        assert!(head(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(head(b"SSH-2.0-x\r\n\r\n").is_err());
    }
}
