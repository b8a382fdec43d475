//! Growth along one axis at a time, Countersign and the relay only: connections, rules, payload, worker threads.
//!
//! Called by `cargo xtask bench mesh --growth`. It must never change two things at once.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Result;
use countersign_kit::Inside;
use countersign_kit::load::Plan;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::collect::Figure;
use crate::machine::Machine;
use crate::peers::{Countersign, Peer, Relay, Settings, Up};
use crate::plot::{Axis, Scale, Series, lines};
use crate::report::replace_section;
use crate::run::{NOISY, Options};
use crate::stage::Stage;
use crate::work::{Outcome, Work, requests};

const OURS: &str = "countersign";
const RELAY: &str = "relay";
const CONNECTIONS: [usize; 5] = [1, 10, 64, 250, 1000];
const RULES: [usize; 4] = [10, 100, 1000, 10_000];
const PAYLOADS: [usize; 6] = [64, 256, 1024, 4096, 16 * 1024, 64 * 1024];
const THREADS: [usize; 2] = [1, 2];

/// One value on one axis, for one peer.
#[derive(Serialize)]
struct Step {
    axis: &'static str,
    value: usize,
    peer: &'static str,
    per_s: Figure,
    p50_ms: Figure,
    p99_ms: Figure,
    cpu: Figure,
    /// Processors that others kept busy meanwhile.
    foreign: Figure,
    /// Why it was not measured.
    failed: Option<String>,
}

impl Step {
    fn new(axis: &'static str, value: usize, peer: &'static str) -> Self {
        let [per_s, p50_ms, p99_ms, cpu, foreign] = [const { Figure::NONE }; 5];
        Self { axis, value, peer, per_s, p50_ms, p99_ms, cpu, foreign, failed: None }
    }

    fn add(&mut self, outcome: &Outcome) {
        let of = |name: &str| outcome.figures.get(name).copied().unwrap_or(f64::NAN);
        self.per_s.add(of("per_s"));
        self.p50_ms.add(of("p50_ms"));
        self.p99_ms.add(of("p99_ms"));
        self.cpu.add(of("cpu"));
        self.foreign.add(outcome.foreign);
    }
}

#[derive(Serialize)]
struct Grown {
    machine: Machine,
    /// RFC 3339.
    began: String,
    rounds: usize,
    /// Of one measurement.
    seconds: f64,
    steps: Vec<Step>,
}

/// Runs all axes; the exit code: 1 if a step could not be measured, which is named.
///
/// # Errors
/// If nothing can be measured, or the report not be written.
pub fn run(inside: Inside, options: &Options) -> Result<u8> {
    let stage = Stage::new(inside)?;
    let began = OffsetDateTime::now_utc().format(&Rfc3339)?;
    let seconds = if options.short { 0.2 } else { 2.0 };
    let mut grown = Grown { machine: Machine::this(), began, rounds: options.rounds, seconds, steps: Vec::new() };
    let some = |values: &'static [usize]| if options.short { &values[..2] } else { values };
    {
        let (ours, relay) = (Countersign::default().start(&stage)?, Relay::small().start(&stage)?);
        let both = [(OURS, &ours), (RELAY, &relay)];
        grown.axis("connections", some(&CONNECTIONS), &both, |up, connections| plan(up, connections, 1024, seconds));
        grown.axis("payload", some(&PAYLOADS), &both, |up, payload| plan(up, 64, payload, seconds));
    }
    for rules in some(&RULES) {
        let settings = Settings { more_rules: *rules, ..Settings::default() };
        let ours = Countersign { settings, before: None }.start(&stage);
        // It has no rules: it tells what the machine did from one step to the next.
        grown.started("rules", *rules, vec![(OURS, ours), (RELAY, Relay::small().start(&stage))]);
    }
    for threads in THREADS {
        let settings = Settings { threads, ..Settings::default() };
        let ours = Countersign { settings, before: None }.start(&stage);
        grown.started(
            "threads",
            threads,
            vec![(OURS, ours), (RELAY, Relay::small().with_threads(threads).start(&stage))],
        );
    }
    let text = grown.text();
    print!("{text}");
    if let Some(docs) = &options.docs {
        let folder = docs.join("performance");
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("growth.json"), serde_json::to_string_pretty(&grown)? + "\n")?;
        let plots = grown.draw(&folder)?;
        replace_section(&docs.join("performance.md"), "growth", &format!("{text}{plots}"))?;
    }
    Ok(u8::from(grown.steps.iter().any(|step| step.failed.is_some())))
}

fn plan(up: &Up<'_>, connections: usize, payload: usize, seconds: f64) -> Plan {
    Plan { connections, length: Duration::from_secs_f64(seconds), ..Plan::new(up.target, &format!("/{payload}")) }
}

impl Grown {
    fn axis(
        &mut self,
        axis: &'static str,
        values: &[usize],
        peers: &[(&'static str, &Up<'_>)],
        plan: impl Fn(&Up<'_>, usize) -> Plan,
    ) {
        for value in values {
            eprintln!("growth: {axis} {value}");
            let mut steps: Vec<Step> = peers.iter().map(|(name, _)| Step::new(axis, *value, name)).collect();
            for _ in 0..self.rounds {
                for (step, (_, up)) in steps.iter_mut().zip(peers) {
                    match requests(Work::Full, up, &plan(up, *value)) {
                        Ok(outcome) => step.add(&outcome),
                        Err(error) => step.failed = Some(format!("{error:#}")),
                    }
                }
            }
            self.steps.extend(steps);
        }
    }

    /// One value for which peers had to be started.
    fn started(&mut self, axis: &'static str, value: usize, peers: Vec<(&'static str, Result<Up<'_>>)>) {
        let mut up = Vec::new();
        for (peer, started) in &peers {
            match started {
                Ok(one) => up.push((*peer, one)),
                Err(error) => {
                    let failed = Some(format!("{error:#}"));
                    self.steps.push(Step { failed, ..Step::new(axis, value, peer) });
                }
            }
        }
        let seconds = self.seconds;
        self.axis(axis, &[value], &up, |up, _| plan(up, 64, 1024, seconds));
    }

    fn text(&self) -> String {
        let mut text = format!(
            "## Growth\n\nMeasured {} on {}; {} rounds of {} s. Closed loop; 64 connections, 1 KiB, one worker thread, one rule where nothing else is said. \
             Medians; in brackets lowest and highest.\n\n\
             | axis | value | peer | req/s | p50 ms | p99 ms | CPU s per 10k |\n| --- | --- | --- | --- | --- | --- | --- |\n",
            self.began.get(..16).unwrap_or(&self.began),
            self.machine,
            self.rounds,
            self.seconds
        );
        for step in &self.steps {
            let _ = write!(text, "| {} | {} | {} | ", step.axis, step.value, step.peer);
            let _ = match &step.failed {
                Some(reason) => writeln!(text, "not measured: {} | | | |", reason.replace(['\n', '|'], "; ")),
                None => writeln!(
                    text,
                    "{} | {} | {} | {} |",
                    step.per_s.told(0),
                    step.p50_ms.told(3),
                    step.p99_ms.told(2),
                    step.cpu.told(3)
                ),
            };
        }
        let noise = self.steps.iter().flat_map(|step| &step.foreign.rounds);
        let most = noise.clone().copied().fold(0.0, f64::max);
        let busy = noise.clone().filter(|foreign| **foreign > NOISY).count();
        let _ = writeln!(
            text,
            "\nOthers kept {most:.2} processors busy at most during a measurement; over {NOISY:.2} in {busy} of {}. None was repeated.\n",
            noise.count()
        );
        text
    }

    fn draw(&self, folder: &std::path::Path) -> Result<String> {
        let mut text = String::new();
        for (axis, title) in [
            ("connections", "Requests/s as connections grow"),
            ("payload", "Requests/s as answers grow"),
            ("rules", "Requests/s as rules grow"),
            ("threads", "Requests/s with more worker threads"),
        ] {
            let of = |peer: &'static str| Series {
                name: peer.to_owned(),
                points: self
                    .steps
                    .iter()
                    .filter(|step| step.axis == axis && step.peer == peer && step.failed.is_none())
                    .map(|step| (step.value as f64, step.per_s.median))
                    .collect(),
                strong: peer == OURS,
            };
            let file = format!("growth-{axis}.svg");
            let (x, y) = (Axis { label: axis, scale: Scale::Log }, Axis { label: "requests/s", scale: Scale::Linear });
            lines(&folder.join(&file), title, x, y, &[of(OURS), of(RELAY)])?;
            let _ = writeln!(text, "![{title}](performance/{file})\n");
        }
        Ok(text)
    }
}
