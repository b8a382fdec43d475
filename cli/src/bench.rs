//! `countersign bench`: a load on people's own services, by the generator that measures the mesh, with a live line and plots.
//!
//! Called by `main`. At a fixed rate latency counts from the intended time of sending. It must never send more than was asked for, nor
//! leave a failed request out.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use countersign_benches::plot::{Axis, Scale, Series, lines};
use countersign_kit::load::{Measured, Pace, Plan, raise_open_files};
use serde_json::json;

use crate::output::{self, Format, Verdict};

/// Between two samples of the plot over time.
const SAMPLE: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// What to ask for: http://HOST[:PORT][/PATH]. In a meshed pod the sidecar makes mutual TLS of it
    #[arg(long)]
    pub url: String,
    /// Requests a second, sent on time whatever the answers do; as many as go, if not given. Several, rising, separated by commas: one after
    /// the other, until the service does not follow
    #[arg(long, value_name = "NUMBER", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate: Vec<u32>,
    /// For how long, at each rate: 30s, 5m
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub duration: Duration,
    /// Connections, each with at most one request under way
    #[arg(long, value_name = "NUMBER", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    pub connections: u16,
    /// A new connection for each request
    #[arg(long)]
    pub fresh: bool,
    /// Draws into this folder: latency.svg, over-time.svg, and throughput.svg (p99 against throughput) where there were several rates
    #[arg(long, value_name = "FOLDER")]
    pub plots: Option<PathBuf>,
}

/// One rate, or none, and what came of it.
struct Run {
    rate: Option<u32>,
    measured: Measured,
    history: History,
}

/// A service follows that answers so much of what it is asked.
const FOLLOWS: f64 = 0.93;

/// Runs the load; exit code 1 if a request failed.
pub fn run(args: &BenchArgs, format: Format) -> Result<Verdict> {
    ensure!(args.rate.is_sorted(), "--rate: several must rise");
    // More connections than the usual limit of files would be opened, and fail one by one.
    raise_open_files()?;
    let rates = if args.rate.is_empty() { vec![None] } else { args.rate.iter().copied().map(Some).collect() };
    let mut runs: Vec<Run> = Vec::new();
    for rate in rates {
        let one = at(args, rate)?;
        let follows = rate.is_none_or(|rate| one.measured.throughput() >= FOLLOWS * f64::from(rate));
        runs.push(one);
        if !follows {
            break;
        }
    }
    let drawn = args.plots.as_deref().map(|folder| draw(folder, &runs)).transpose()?;
    let values: Vec<_> = runs.iter().map(value).collect();
    let value = match <[_; 1]>::try_from(values) {
        Ok([one]) => one,
        Err(several) => json!(several),
    };
    output::either(format, &value, || table(&runs, args, drawn.as_deref()))?;
    Ok(Verdict::of(runs.iter().all(|run| run.measured.failed == 0)))
}

fn at(args: &BenchArgs, rate: Option<u32>) -> Result<Run> {
    let (mut live, mut history) = (Live::new(), History::default());
    let measured = plan(args, rate)?.run(&mut |so_far| {
        live.show(so_far);
        history.note(so_far);
        true
    })?;
    live.end();
    Ok(Run { rate, measured, history })
}

fn plan(args: &BenchArgs, rate: Option<u32>) -> Result<Plan> {
    let (host, path) = split(&args.url)?;
    let target = resolve(&host)?;
    Ok(Plan {
        host,
        pace: rate.map_or(Pace::Closed, Pace::Rate),
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

fn value(run: &Run) -> serde_json::Value {
    let measured = &run.measured;
    let latency: serde_json::Map<String, serde_json::Value> =
        shares(measured).map(|share| (name(share), json!(millis(measured, share)))).collect();
    json!({
        "rate": run.rate, "answered": measured.answered, "failed": measured.failed, "failure": measured.failure,
        "seconds": measured.elapsed.as_secs_f64(), "requests_per_second": measured.throughput(),
        "latency_ms": latency, "generator_late_p50_ms": measured.lateness.value_at_quantile(0.5) as f64 / 1e3,
    })
}

fn name(share: f64) -> String {
    if share >= 1.0 { "max".to_owned() } else { format!("p{}", (share * 1e6).round() / 1e4) }
}

fn table(runs: &[Run], args: &BenchArgs, drawn: Option<&str>) -> String {
    let mut text = String::new();
    for Run { rate, measured, .. } in runs {
        let wanted = rate.map_or(String::new(), |rate| format!("at {rate} requests/s: "));
        let _ = writeln!(
            text,
            "{wanted}{} answered, {} failed in {:.1} s: {:.0} requests/s over {} connections",
            measured.answered,
            measured.failed,
            measured.elapsed.as_secs_f64(),
            measured.throughput(),
            args.connections
        );
        for share in shares(measured).filter(|_| measured.answered > 0) {
            let _ = writeln!(text, "{:>8}  {:.3} ms", name(share), millis(measured, share));
        }
        if rate.is_some() {
            let late = measured.lateness.value_at_quantile(0.5) as f64 / 1e3;
            let _ = writeln!(
                text,
                "latency counts from the intended time of sending; {late:.3} ms of it is the generator's own (median)"
            );
        }
        if let Some(failure) = &measured.failure {
            let _ = writeln!(text, "first failure: {failure}");
        }
    }
    if let Some(left) = args.rate.get(runs.len()..).filter(|left| !left.is_empty()) {
        let _ = writeln!(text, "not tried, as the service did not follow: {left:?} requests/s");
    }
    if let Some(drawn) = drawn {
        let _ = writeln!(text, "plots: {drawn}");
    }
    text
}

fn draw(folder: &Path, runs: &[Run]) -> Result<String> {
    ensure!(runs.iter().any(|run| run.measured.answered > 0), "nothing to draw: no request was answered");
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let mut drawn = Vec::new();
    let mut keep = |file: &str, title: &str, [x, y]: [Axis; 2], all: Vec<Series>| {
        let file = folder.join(file);
        lines(&file, title, x, y, &all)?;
        drawn.push(file.display().to_string());
        Ok::<_, anyhow::Error>(())
    };
    let milliseconds = || Axis { label: "milliseconds", scale: Scale::Log };
    let nines = Axis { label: "share of requests", scale: Scale::Nines };
    keep("latency.svg", "Latency", [nines, milliseconds()], each(runs, percentiles))?;
    let per_second = |label| Axis { label, scale: Scale::Linear };
    if runs.iter().all(|run| run.history.points.len() > 1) {
        let axes = [per_second("seconds"), per_second("requests/s")];
        keep("over-time.svg", "Answers a second", axes, each(runs, |run| run.history.points.clone()))?;
    }
    if runs.len() > 1 {
        let points = runs.iter().map(|run| (run.measured.throughput(), millis(&run.measured, 0.99))).collect();
        let all = vec![Series { name: "p99".to_owned(), points, strong: true }];
        keep("throughput.svg", "p99 against throughput", [per_second("requests/s answered"), milliseconds()], all)?;
    }
    Ok(drawn.join(", "))
}

/// A line for each rate.
fn each(runs: &[Run], points: impl Fn(&Run) -> Vec<(f64, f64)>) -> Vec<Series> {
    let name = |run: &Run| run.rate.map_or("as many as go".to_owned(), |rate| format!("{rate}/s"));
    runs.iter().map(|run| Series { name: name(run), points: points(run), strong: true }).collect()
}

/// Evenly spread by nines, up to what the samples can tell.
fn percentiles(run: &Run) -> Vec<(f64, f64)> {
    let most = (run.measured.latency.len() as f64 / 10.0).max(10.0).log10().min(5.0);
    let shares = (0..=50).map(|step| 1.0 - 10_f64.powf(-most * f64::from(step) / 50.0));
    shares.map(|share| (share, millis(&run.measured, share))).collect()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::net::TcpListener;

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

    /// Answers every request at once, on each connection for as long as it is open.
    fn server() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut lines = BufReader::new(stream.unwrap());
                std::thread::spawn(move || {
                    let mut line = String::new();
                    while lines.read_line(&mut line).is_ok_and(|read| read > 0) {
                        if line == "\r\n" {
                            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                            let _ = lines.get_mut().write_all(answer);
                        }
                        line.clear();
                    }
                });
            }
        });
        address
    }

    fn asked(address: SocketAddr, rate: &[u32], plots: &Path) -> BenchArgs {
        BenchArgs {
            url: format!("http://{address}/a"),
            rate: rate.to_vec(),
            duration: Duration::from_millis(300),
            connections: 2,
            fresh: false,
            plots: Some(plots.to_owned()),
        }
    }

    #[test]
    fn several_rates_are_run_in_turn_and_drawn_against_latency() {
        let (server, folder) = (server(), tempfile::tempdir().unwrap());
        let args = asked(server, &[50, 100], folder.path());
        let runs: Vec<_> = args.rate.iter().map(|rate| at(&args, Some(*rate)).unwrap()).collect();
        for (one, rate) in runs.iter().zip([50_u64, 100]) {
            assert_eq!(one.measured.failed, 0, "{:?}", one.measured.failure);
            assert!(one.measured.answered * 10 >= rate * 2, "{} answered", one.measured.answered);
        }
        let told = table(&runs, &args, None);
        assert!(told.contains("at 50 requests/s: ") && told.contains("at 100 requests/s: "), "{told}");
        let drawn = draw(folder.path(), &runs).unwrap();
        assert!(drawn.contains("latency.svg") && drawn.contains("throughput.svg"), "{drawn}");
        assert!(progress(&runs[0].measured).contains("0 failed"));

        assert_eq!(run(&args, Format::Json).unwrap(), Verdict::Yes);
        let falling = asked(server, &[100, 50], folder.path());
        assert!(run(&falling, Format::Json).unwrap_err().to_string().contains("must rise"));
    }

    #[test]
    fn rates_beyond_one_that_is_not_followed_are_named_and_not_tried() {
        let folder = tempfile::tempdir().unwrap();
        let args = asked("127.0.0.1:1".parse().unwrap(), &[10, 20, 30], folder.path());
        let run = Run {
            rate: Some(10),
            measured: at(&asked(server(), &[], folder.path()), None).unwrap().measured,
            history: History::default(),
        };
        let told = table(&[run], &args, None);
        assert!(told.contains("not tried, as the service did not follow: [20, 30] requests/s"), "{told}");
    }

    #[test]
    fn shares_have_their_usual_names() {
        assert_eq!(SHARES.map(name), ["p50", "p75", "p90", "p99", "p99.9", "p99.99", "max"]);
    }
}
