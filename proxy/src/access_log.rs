//! One JSON line on stdout for each application connection that ended.
//!
//! The journeys call [`AccessLog::record`] last; a thread of its own writes, so that a slow reader of stdout stops nobody: when
//! it is too slow, lines are dropped and counted. A line must never hold a byte of payload, a control character, or more
//! than a bounded length.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use time::OffsetDateTime;
use time::macros::format_description;

use crate::metrics::Metrics;
use crate::outcome::Outcome;

/// Lines that may wait to be written.
const WAITING: usize = 2048;
/// After the first line that wakes it the writer waits this long for more: one wake-up for many connections.
const GATHER: Duration = Duration::from_millis(10);
/// Longest sentence of `detail`, in characters.
const MAX_DETAIL: usize = 512;
/// Longest name of a rule or revision, in characters: `namespace/name[i]` with Kubernetes' longest names.
const MAX_NAME: usize = 330;
/// What stands in place of a character that a terminal or a log reader could act on.
const HIDDEN: char = '\u{fffd}';

/// Where outcomes go; clones share it.
#[derive(Clone, Debug)]
pub struct AccessLog(Option<Open>);

#[derive(Clone, Debug)]
struct Open {
    lines: SyncSender<Next>,
    metrics: Metrics,
}

/// What the writer is told.
#[derive(Debug)]
enum Next {
    Line(Box<Outcome>),
    Stop,
}

/// The writer's end of it; [`Writer::finish`] is called once, at the end of the process.
#[derive(Debug)]
pub struct Writer {
    lines: SyncSender<Next>,
    thread: JoinHandle<()>,
}

impl AccessLog {
    /// Writes nothing.
    #[must_use]
    pub fn off() -> Self {
        Self(None)
    }

    /// Starts the thread that writes to `out` (stdout, in the product).
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(out: impl Write + Send + 'static, metrics: Metrics) -> io::Result<(Self, Writer)> {
        let (lines, waiting) = sync_channel(WAITING);
        let thread = std::thread::Builder::new().name("access-log".to_owned());
        let thread = thread.spawn(move || write_all(&waiting, out))?;
        let writer = Writer { lines: lines.clone(), thread };
        Ok((Self(Some(Open { lines, metrics })), writer))
    }

    /// Hands a connection's outcome to the writer. Never waits.
    pub fn record(&self, outcome: &Outcome) {
        let Some(open) = &self.0 else {
            return;
        };
        match open.lines.try_send(Next::Line(Box::new(outcome.clone()))) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => open.metrics.access_log_dropped(),
        }
    }
}

impl Writer {
    /// Waits until all lines handed over so far are written, but no longer than `limit`: whoever reads stdout may have
    /// stopped. Blocks.
    pub fn finish(self, limit: Duration) {
        let until = Instant::now() + limit;
        let mut told = false;
        while !self.thread.is_finished() && Instant::now() < until {
            // Full: the writer makes room, or is stuck for good.
            told = told || self.lines.try_send(Next::Stop).is_ok();
            std::thread::sleep(GATHER);
        }
    }
}

fn write_all(waiting: &Receiver<Next>, out: impl Write) {
    let mut out = io::BufWriter::with_capacity(64 * 1024, out);
    while let Ok(first) = waiting.recv() {
        if matches!(first, Next::Line(_)) {
            std::thread::sleep(GATHER);
        }
        match write_batch(&mut out, first, waiting) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                // Nobody reads any more. Lines from here on are counted as dropped.
                tracing::error!("access log: {error}; no more lines are written");
                return;
            }
        }
    }
}

/// Writes what waits; false when told to stop.
fn write_batch(out: &mut impl Write, first: Next, waiting: &Receiver<Next>) -> io::Result<bool> {
    let mut go_on = true;
    for next in std::iter::once(first).chain(waiting.try_iter()).take(WAITING) {
        match next {
            Next::Line(outcome) => write_line(out, &outcome)?,
            Next::Stop => {
                go_on = false;
                break;
            }
        }
    }
    out.flush()?;
    Ok(go_on)
}

/// Writes one outcome as one line.
///
/// # Errors
/// Of `out`.
pub fn write_line(out: &mut impl Write, outcome: &Outcome) -> io::Result<()> {
    serde_json::to_writer(&mut *out, &Line::of(outcome))?;
    out.write_all(b"\n")
}

/// The keys, in the order of the line.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    connection: u64,
    direction: &'static str,
    source_address: SocketAddr,
    destination_address: Option<SocketAddr>,
    upstream_address: Option<SocketAddr>,
    source_id: Option<&'a str>,
    destination_id: Option<&'a str>,
    security: &'static str,
    tls_group: Option<&'static str>,
    reused: bool,
    rule: Option<String>,
    policy_revision: Option<String>,
    bytes_sent: u64,
    bytes_received: u64,
    duration_ms: f64,
    result: &'static str,
    blame: &'static str,
    detail: Option<String>,
    denial_id: Option<String>,
    would_deny: Option<String>,
}

impl<'a> Line<'a> {
    fn of(outcome: &'a Outcome) -> Self {
        let name = |name: &std::sync::Arc<str>| harmless(name, MAX_NAME);
        Self {
            time: rfc3339(outcome.started),
            connection: outcome.connection,
            direction: outcome.direction.label(),
            source_address: outcome.source,
            destination_address: outcome.destination,
            upstream_address: outcome.upstream,
            source_id: outcome.source_id.as_ref().map(|id| id.as_str()),
            destination_id: outcome.destination_id.as_ref().map(|id| id.as_str()),
            security: outcome.security.label(),
            tls_group: outcome.tls_group,
            reused: outcome.reused,
            rule: outcome.rule.as_ref().map(name),
            policy_revision: outcome.revision.as_ref().map(name),
            bytes_sent: outcome.sent,
            bytes_received: outcome.received,
            duration_ms: (outcome.duration.as_secs_f64() * 1e6).round() / 1e3,
            result: outcome.result,
            blame: outcome.blame.label(),
            detail: Some(&outcome.detail).filter(|text| !text.is_empty()).map(|text| harmless(text, MAX_DETAIL)),
            denial_id: outcome.denial_id.map(|id| format!("{id:016x}")),
            would_deny: outcome.would_deny.as_ref().map(name),
        }
    }
}

/// RFC 3339, UTC, milliseconds: `2026-11-21T08:25:00.123Z`.
fn rfc3339(at: SystemTime) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    OffsetDateTime::from(at).format(format).unwrap_or_default()
}

/// The text without what a terminal could act on (control characters, and those that turn the direction of writing), and
/// no longer than `most` characters.
fn harmless(text: &str, most: usize) -> String {
    let acts = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    let mut kept: String = text.chars().take(most).map(|c| if acts(c) { HIDDEN } else { c }).collect();
    if text.chars().nth(most).is_some() {
        kept.push('…');
    }
    kept
}

#[cfg(test)]
#[path = "access_log_tests.rs"]
mod tests;
