//! `countersign bench`: a load on people's own services, by the generator that measures the mesh, with a live line and plots.
//!
//! Called by `main`. At a fixed rate latency counts from the intended time of sending. It must never send more than was asked for, nor
//! leave a failed request out.

use std::io::{IsTerminal as _, Write as _};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use countersign_benches::plot::{Axis, Scale, Series, lines};
use countersign_kit::load::{Measured, Pace, Plan};
use serde_json::json;

use crate::output::{self, Format, Verdict};

/// Between two samples of the plot over time.
const SAMPLE: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// What to ask for: http://HOST[:PORT][/PATH]. In a meshed pod the sidecar makes mutual TLS of it
    #[arg(long)]
    pub url: String,
    /// Requests a second, sent on time whatever the answers do; as many as go, if not given
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate: Option<u32>,
    /// For how long: 30s, 5m
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub duration: Duration,
    /// Connections, each with at most one request under way
    #[arg(long, value_name = "NUMBER", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    pub connections: u16,
    /// A new connection for each request
    #[arg(long)]
    pub fresh: bool,
    /// Draws latency.svg and throughput.svg into this folder
    #[arg(long, value_name = "FOLDER")]
    pub plots: Option<PathBuf>,
}

/// Runs the load; exit code 1 if a request failed.
pub fn run(args: &BenchArgs, format: Format) -> Result<Verdict> {
    let plan = plan(args)?;
    let (mut live, mut history) = (Live::new(), History::default());
    let measured = plan.run(&mut |so_far| {
        live.show(so_far);
        history.note(so_far);
        true
    })?;
    live.end();
    let drawn = args.plots.as_deref().map(|folder| draw(folder, &measured, &history)).transpose()?;
    output::either(format, &value(&measured), || table(&measured, args, drawn.as_deref()))?;
    Ok(Verdict::of(measured.failed == 0))
}

fn plan(args: &BenchArgs) -> Result<Plan> {
    let (host, path) = split(&args.url)?;
    let target = resolve(&host)?;
    Ok(Plan {
        host,
        pace: args.rate.map_or(Pace::Closed, Pace::Rate),
        connections: args.connections.into(),
        fresh: args.fresh,
        length: args.duration,
        ..Plan::new(target, &path)
    })
}

/// The authority and the path of an `http://` URL.
fn split(url: &str) -> Result<(String, String)> {
    let Some(rest) = url.strip_prefix("http://") else {
        bail!("--url: {url:?} does not begin with http:// (TLS is the sidecar's work; https:// is not spoken here)");
    };
    let rest = rest.split('#').next().unwrap_or_default();
    let at = rest.find(['/', '?']).unwrap_or(rest.len());
    let (host, path) = rest.split_at(at);
    ensure!(!host.is_empty() && !host.contains('@'), "--url: {url:?} names no host");
    ensure!(url.bytes().all(|byte| byte.is_ascii_graphic()), "--url: {url:?} holds what a URL cannot");
    let slash = if path.starts_with('/') { "" } else { "/" };
    Ok((host.to_owned(), format!("{slash}{path}")))
}

fn resolve(host: &str) -> Result<SocketAddr> {
    let named = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let host = if named { host.to_owned() } else { format!("{host}:80") };
    host.to_socket_addrs()
        .with_context(|| format!("--url: {host}"))?
        .next()
        .with_context(|| format!("--url: {host} has no address"))
}

fn duration(text: &str) -> Result<Duration, String> {
    let units = [("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let found = units.iter().find_map(|(unit, factor)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * factor));
    let seconds = found.filter(|seconds| (0.1..=86_400.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "a time like 30s or 5m, from 100ms to 24h".to_owned())
}

/// One line on a terminal, written over and over; none elsewhere.
struct Live {
    terminal: bool,
}

impl Live {
    fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal() }
    }

    fn show(&self, so_far: &Measured) {
        if self.terminal {
            // A terminal that is gone is no reason to stop measuring.
            let _ = write!(std::io::stderr(), "\r{}\x1b[K", progress(so_far));
        }
    }

    fn end(&mut self) {
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

fn progress(so_far: &Measured) -> String {
    format!(
        "{:6.1} s  {:>9.0} req/s  p50 {:.2} ms  p99 {:.2} ms  {} failed",
        so_far.elapsed.as_secs_f64(),
        so_far.throughput(),
        millis(so_far, 0.5),
        millis(so_far, 0.99),
        so_far.failed
    )
}

fn millis(measured: &Measured, share: f64) -> f64 {
    measured.quantile(share).as_secs_f64() * 1e3
}

/// Answers a second as time went by.
struct History {
    points: Vec<(f64, f64)>,
    last: Instant,
    answered: u64,
}

impl Default for History {
    fn default() -> Self {
        Self { points: Vec::new(), last: Instant::now(), answered: 0 }
    }
}

impl History {
    fn note(&mut self, so_far: &Measured) {
        let passed = self.last.elapsed();
        if passed >= SAMPLE {
            let answered = (so_far.answered - self.answered) as f64 / passed.as_secs_f64();
            self.points.push((so_far.elapsed.as_secs_f64(), answered));
            (self.last, self.answered) = (Instant::now(), so_far.answered);
        }
    }
}

const SHARES: [f64; 7] = [0.5, 0.75, 0.9, 0.99, 0.999, 0.9999, 1.0];

/// A share that so few samples cannot tell is left out.
fn shares(measured: &Measured) -> impl Iterator<Item = f64> {
    let samples = measured.latency.len() as f64;
    SHARES.into_iter().filter(move |share| *share == 1.0 || (1.0 - share) * samples >= 10.0)
}

fn value(measured: &Measured) -> serde_json::Value {
    let latency: serde_json::Map<String, serde_json::Value> =
        shares(measured).map(|share| (name(share), json!(millis(measured, share)))).collect();
    json!({
        "answered": measured.answered, "failed": measured.failed, "failure": measured.failure,
        "seconds": measured.elapsed.as_secs_f64(), "requests_per_second": measured.throughput(),
        "latency_ms": latency, "generator_late_p50_ms": measured.lateness.value_at_quantile(0.5) as f64 / 1e3,
    })
}

fn name(share: f64) -> String {
    if share >= 1.0 { "max".to_owned() } else { format!("p{}", (share * 1e6).round() / 1e4) }
}

fn table(measured: &Measured, args: &BenchArgs, drawn: Option<&str>) -> String {
    let mut text = format!(
        "{} answered, {} failed in {:.1} s: {:.0} requests/s over {} connections\n",
        measured.answered,
        measured.failed,
        measured.elapsed.as_secs_f64(),
        measured.throughput(),
        args.connections
    );
    for share in shares(measured).filter(|_| measured.answered > 0) {
        text.push_str(&format!("{:>8}  {:.3} ms\n", name(share), millis(measured, share)));
    }
    if args.rate.is_some() {
        let late = measured.lateness.value_at_quantile(0.5) as f64 / 1e3;
        text.push_str(&format!(
            "latency counts from the intended time of sending; {late:.3} ms of it is the generator's own (median)\n"
        ));
    }
    if let Some(failure) = &measured.failure {
        text.push_str(&format!("first failure: {failure}\n"));
    }
    if let Some(drawn) = drawn {
        text.push_str(&format!("plots: {drawn}\n"));
    }
    text
}

fn draw(folder: &Path, measured: &Measured, history: &History) -> Result<String> {
    ensure!(measured.answered > 0, "nothing to draw: no request was answered");
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let most = (measured.latency.len() as f64 / 10.0).max(10.0).log10().min(5.0);
    let steps = (0..=50).map(|step| 1.0 - 10_f64.powf(-most * f64::from(step) / 50.0));
    let points = steps.map(|share| (share, millis(measured, share))).collect();
    let one = |name: &str, points| [Series { name: name.to_owned(), points, strong: true }];
    let latency = folder.join("latency.svg");
    let (x, y) =
        (Axis { label: "share of requests", scale: Scale::Nines }, Axis { label: "milliseconds", scale: Scale::Log });
    lines(&latency, "Latency", x, y, &one("latency", points))?;
    let mut drawn = latency.display().to_string();
    if history.points.len() > 1 {
        let file = folder.join("throughput.svg");
        let (x, y) =
            (Axis { label: "seconds", scale: Scale::Linear }, Axis { label: "requests/s", scale: Scale::Linear });
        lines(&file, "Answers a second", x, y, &one("answered", history.points.clone()))?;
        drawn.push_str(&format!(", {}", file.display()));
    }
    Ok(drawn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_split_into_host_and_path() {
        let split = |url| split(url).unwrap();
        assert_eq!(split("http://shop"), ("shop".into(), "/".into()));
        assert_eq!(split("http://shop:8080/a/b?c=d#e"), ("shop:8080".into(), "/a/b?c=d".into()));
        assert_eq!(split("http://[::1]:80?q"), ("[::1]:80".into(), "/?q".into()));
        for bad in ["https://shop/", "shop", "http:///x", "http://a b/", "http://me@shop/"] {
            assert!(super::split(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_port_is_added_where_none_is_named() {
        assert_eq!(resolve("127.0.0.1").unwrap(), "127.0.0.1:80".parse().unwrap());
        assert_eq!(resolve("[::1]:8080").unwrap(), "[::1]:8080".parse().unwrap());
        assert_eq!(resolve("[::1]").unwrap(), "[::1]:80".parse().unwrap());
    }

    #[test]
    fn times_have_a_unit_and_bounds() {
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("200ms"), Ok(Duration::from_millis(200)));
        for bad in ["10", "0s", "-1s", "NaNs", "infs", "25h", ""] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shares_have_their_usual_names() {
        assert_eq!(SHARES.map(name), ["p50", "p75", "p90", "p99", "p99.9", "p99.99", "max"]);
    }
}
