//! The client: requests at a steady rate, and what became of each.
//!
//! Called by `main`. A request that fails is counted with its reason and never tried again, not even on a kept connection that the server closed
//! just then: a server that means to close one says so first (`connection: close`), and such a one is not used again.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::CONNECTION;
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

const EACH: Duration = Duration::from_millis(50);
/// For connecting, asking and the whole answer.
const LIMIT: Duration = Duration::from_secs(5);
/// It goes on for so long once it was asked to end: what was done under it may show only then.
const AFTER: Duration = Duration::from_secs(10);
/// Each of so many is used once a second or so: far more often than a server that is to end goes on.
const MOST_KEPT: usize = 16;

#[derive(Default)]
struct Counts {
    good: u64,
    failed: BTreeMap<String, u64>,
    /// When the last good one was asked, in milliseconds after the start.
    last_good: u128,
    /// Which pods answered, and how often.
    by: BTreeMap<String, u64>,
    slowest: Duration,
    /// When the first failure and the last came, in milliseconds after the start.
    failures: Option<(u128, u128)>,
}

/// Asks 20 times a second, until so many seconds are over or 10 s after SIGTERM, and prints a report. The name is looked up once: how the cluster's DNS does is not
/// what is shown.
pub async fn run(url: &str, seconds: u64, keep: bool) -> anyhow::Result<()> {
    // First of all: the kernel drops a signal that the first process of a pod has not asked for.
    let mut asked_to_end = signal(SignalKind::terminate())?;
    let uri: Uri = url.parse().context("URL")?;
    let address = resolved(&uri).await?;
    let counts = Arc::new(Mutex::new(Counts::default()));
    let (began, epoch) = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH)?);
    let mut under_way = JoinSet::new();
    let kept: Arc<Kept> = Arc::default();
    let mut ticks = tokio::time::interval(EACH);
    let mut end = Duration::from_secs(seconds);
    let mut asked = false;
    while began.elapsed() < end {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = asked_to_end.recv(), if !asked => {
                asked = true;
                end = end.min(began.elapsed() + AFTER);
                continue;
            }
        }
        let (uri, counts, kept) = (uri.clone(), Arc::clone(&counts), Arc::clone(&kept));
        under_way.spawn(async move {
            let asked = Instant::now();
            let answer = match tokio::time::timeout(LIMIT, ask(&uri, address, keep.then_some(&*kept))).await {
                Ok(answer) => answer,
                Err(_) => Err(anyhow::anyhow!("no answer within {} s", LIMIT.as_secs())),
            };
            let Ok(mut counts) = counts.lock() else { return };
            counts.slowest = counts.slowest.max(asked.elapsed());
            match answer {
                Ok((StatusCode::OK, text)) => {
                    counts.good += 1;
                    counts.last_good = counts.last_good.max(asked.duration_since(began).as_millis());
                    let by = text.split_whitespace().nth(2).unwrap_or("?").to_owned();
                    *counts.by.entry(by).or_default() += 1;
                }
                Ok((status, _)) => counts.fail(status.to_string(), asked.duration_since(began)),
                Err(error) => counts.fail(format!("{error:#}"), asked.duration_since(began)),
            }
        });
        while under_way.try_join_next().is_some() {}
    }
    let lasted = began.elapsed();
    while under_way.join_next().await.is_some() {}
    let counts = counts.lock().map_err(|_| anyhow::anyhow!("a request panicked"))?;
    let report = json!({
        "good": counts.good,
        "failed": counts.failed.values().sum::<u64>(),
        "reasons": counts.failed,
        "lasted_s": lasted.as_secs(),
        "began_ms": u64::try_from(epoch.as_millis())?,
        "last_good_ms": u64::try_from(counts.last_good)?,
        "by": counts.by,
        "slowest_ms": u64::try_from(counts.slowest.as_millis())?,
        "failures_from_ms": counts.failures.map(|(first, _)| u64::try_from(first)).transpose()?,
        "failures_to_ms": counts.failures.map(|(_, last)| u64::try_from(last)).transpose()?,
    });
    println!("{report}");
    Ok(())
}

/// Asks once and prints the answer; an answer other than 200 is an error.
pub async fn get(url: &str) -> anyhow::Result<()> {
    let uri = url.parse()?;
    let asked = async { ask(&uri, resolved(&uri).await?, None).await };
    let (status, text) = tokio::time::timeout(LIMIT, asked).await??;
    print!("{text}");
    if status != StatusCode::OK {
        bail!("{status}");
    }
    Ok(())
}

impl Counts {
    fn fail(&mut self, why: String, at: Duration) {
        *self.failed.entry(why).or_default() += 1;
        let at = at.as_millis();
        let (first, last) = self.failures.unwrap_or((at, at));
        self.failures = Some((first.min(at), last.max(at)));
    }
}

/// The one that was used longest ago first, so that each of them is used, and hears whether its server is about to end, every few seconds.
type Kept = Mutex<VecDeque<SendRequest<Empty<Bytes>>>>;

async fn resolved(uri: &Uri) -> anyhow::Result<SocketAddr> {
    let host = uri.host().context("URL without a host")?;
    let mut found =
        tokio::net::lookup_host((host, uri.port_u16().unwrap_or(80))).await.context("looking up the name")?;
    found.next().context("a name without an address")
}

async fn ask(uri: &Uri, address: SocketAddr, kept: Option<&Kept>) -> anyhow::Result<(StatusCode, String)> {
    let mut connection = match waiting(kept).await {
        Some(connection) => connection,
        None => connect(address).await?,
    };
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let host = uri.authority().context("URL without a host")?.as_str();
    let request = Request::get(path).header("host", host).body(Empty::new())?;
    let response = connection.send_request(request).await.context("request")?;
    let (head, body) = response.into_parts();
    let body = body.collect().await.context("answer")?.to_bytes();
    let closes = head.headers.get(CONNECTION).is_some_and(|word| word.as_bytes().eq_ignore_ascii_case(b"close"));
    if let Some(kept) = kept
        && !closes
        && let Ok(mut kept) = kept.lock()
        && kept.len() < MOST_KEPT
    {
        kept.push_back(connection);
    }
    Ok((head.status, String::from_utf8_lossy(&body).into_owned()))
}

/// A kept connection that is still open. Those that were closed while nobody asked anything on them are no failures.
async fn waiting(kept: Option<&Kept>) -> Option<SendRequest<Empty<Bytes>>> {
    loop {
        let mut connection = kept?.lock().ok()?.pop_front()?;
        if connection.ready().await.is_ok() {
            return Some(connection);
        }
    }
}

async fn connect(address: SocketAddr) -> anyhow::Result<SendRequest<Empty<Bytes>>> {
    let stream = TcpStream::connect(address).await.context("connect")?;
    let (requests, connection) = http1::handshake(TokioIo::new(stream)).await.context("handshake")?;
    tokio::spawn(connection);
    Ok(requests)
}
