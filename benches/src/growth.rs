//! Growth along one axis at a time, Countersign and the relay only: connections, rules, payload, worker threads.
//!
//! Called by `cargo xtask bench mesh --growth`. It must never change two things at once.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Result;
use countersign_kit::Inside;
use countersign_kit::load::Plan;
use serde::Serialize;

use crate::collect::Figure;
use crate::machine::Machine;
use crate::peers::{Countersign, Peer, Relay, Settings, Up};
use crate::plot::{Axis, Scale, Series, lines};
use crate::report::replace_section;
use crate::run::Options;
use crate::stage::Stage;
use crate::work::{Outcome, Work, requests};

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
}

impl Step {
    fn add(&mut self, outcome: &Outcome) {
        let of = |name: &str| outcome.figures.get(name).copied().unwrap_or(f64::NAN);
        self.per_s.add(of("per_s"));
        self.p50_ms.add(of("p50_ms"));
        self.p99_ms.add(of("p99_ms"));
        self.cpu.add(of("cpu"));
    }
}

#[derive(Serialize)]
struct Grown {
    machine: Machine,
    steps: Vec<Step>,
}

/// Runs all axes; the exit code.
///
/// # Errors
/// If something cannot be measured.
pub fn run(inside: Inside, options: &Options) -> Result<u8> {
    let stage = Stage::new(inside)?;
    let mut grown = Grown { machine: Machine::this(), steps: Vec::new() };
    let length = if options.short { 0.2 } else { 2.0 };
    {
        let (ours, relay) = (Countersign::default().start(&stage)?, Relay::small().start(&stage)?);
        let both = [("countersign", &ours), ("relay", &relay)];
        grown.axis(options.rounds, "connections", &CONNECTIONS, &both, |up, connections| {
            plan(up, connections, 1024, length)
        })?;
        grown.axis(options.rounds, "payload", &PAYLOADS, &both, |up, payload| plan(up, 64, payload, length))?;
    }
    for rules in RULES {
        let ours = Countersign { settings: Settings { more_rules: rules, ..Settings::default() }, before: None }
            .start(&stage)?;
        grown.axis(options.rounds, "rules", &[rules], &[("countersign", &ours)], |up, _| plan(up, 64, 1024, length))?;
    }
    for threads in THREADS {
        let ours = Countersign { settings: Settings { threads, ..Settings::default() }, before: None }.start(&stage)?;
        let relay = Relay::small().with_threads(threads).start(&stage)?;
        let both = [("countersign", &ours), ("relay", &relay)];
        grown.axis(options.rounds, "threads", &[threads], &both, |up, _| plan(up, 64, 1024, length))?;
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
    Ok(0)
}

fn plan(up: &Up<'_>, connections: usize, payload: usize, seconds: f64) -> Plan {
    Plan { connections, length: Duration::from_secs_f64(seconds), ..Plan::new(up.target, &format!("/{payload}")) }
}

impl Grown {
    fn axis(
        &mut self,
        rounds: usize,
        axis: &'static str,
        values: &[usize],
        peers: &[(&'static str, &Up<'_>)],
        plan: impl Fn(&Up<'_>, usize) -> Plan,
    ) -> Result<()> {
        for value in values {
            eprintln!("growth: {axis} {value}");
            let empty = |peer| Step {
                axis,
                value: *value,
                peer,
                per_s: Figure::default(),
                p50_ms: Figure::default(),
                p99_ms: Figure::default(),
                cpu: Figure::default(),
            };
            let mut steps: Vec<Step> = peers.iter().map(|(name, _)| empty(*name)).collect();
            for _ in 0..rounds {
                for (step, (_, up)) in steps.iter_mut().zip(peers) {
                    step.add(&requests(Work::Full, up, &plan(up, *value))?);
                }
            }
            self.steps.extend(steps);
        }
        Ok(())
    }

    fn text(&self) -> String {
        let mut text = String::from(
            "## Growth\n\nClosed loop; 64 connections, 1 KiB, one worker thread, one rule where nothing else is said. Medians.\n\n\
             | axis | value | peer | req/s | p50 ms | p99 ms | CPU s per 10k |\n| --- | --- | --- | --- | --- | --- | --- |\n",
        );
        for step in &self.steps {
            let _ = writeln!(
                text,
                "| {} | {} | {} | {:.0} | {:.3} | {:.2} | {:.3} |",
                step.axis,
                step.value,
                step.peer,
                step.per_s.median,
                step.p50_ms.median,
                step.p99_ms.median,
                step.cpu.median
            );
        }
        text.push('\n');
        text
    }

    fn draw(&self, folder: &std::path::Path) -> Result<String> {
        let mut text = String::new();
        for (axis, title) in [
            ("connections", "Requests/s as connections grow"),
            ("payload", "Requests/s as answers grow"),
            ("rules", "Requests/s as rules grow"),
        ] {
            let of = |peer: &'static str| Series {
                name: peer.to_owned(),
                points: self
                    .steps
                    .iter()
                    .filter(|step| step.axis == axis && step.peer == peer)
                    .map(|step| (step.value as f64, step.per_s.median))
                    .collect(),
                strong: peer == "countersign",
            };
            let file = format!("growth-{axis}.svg");
            let (x, y) = (Axis { label: axis, scale: Scale::Log }, Axis { label: "requests/s", scale: Scale::Linear });
            lines(&folder.join(&file), title, x, y, &[of("countersign"), of("relay")])?;
            let _ = writeln!(text, "![{title}](performance/{file})\n");
        }
        Ok(text)
    }
}
