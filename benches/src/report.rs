//! The report: a table for people, JSON for programs, plots for both, and the figures beside the bars that we set ourselves.
//!
//! Called by `run`. In docs/performance.md only what stands between the two marks is replaced; what people wrote around it stays. It
//! must never print a ratio of figures from two runs.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::collect::{PeerResults, Results};
use crate::plot::{Axis, Bar, Scale, Series, bars, lines};
use crate::signing::Signing;

const MIB: f64 = 1024.0 * 1024.0;
/// What a first run puts around its figures.
const INTRODUCTION: &str = "\
# Performance

What the mesh costs, beside others in the same places, measured in one run by `cargo xtask bench mesh`. Absolute figures do not travel
from machine to machine, the ratios between rows of one run do.

";

/// One of our own bars (issue 4), as a ratio to a peer or as an absolute figure.
struct Target {
    what: &'static str,
    figure: Source,
    beside: Option<&'static str>,
    bar: f64,
    /// What would be far better; not every bar has one.
    moonshot: Option<f64>,
    /// Whether less is better.
    less: bool,
    unit: &'static str,
}

/// Where a figure is from.
#[derive(Clone, Copy)]
enum Source {
    /// One of the rounds' figures, by its name.
    Rounds(&'static str),
    /// Measured once, or made of several.
    Alone(fn(&Results, &PeerResults) -> Option<f64>),
}

impl Source {
    fn of(self, results: &Results, peer: &PeerResults) -> Option<f64> {
        match self {
            Self::Rounds(name) => peer.median(name),
            Self::Alone(figure) => figure(results, peer),
        }
    }

    /// Of each turn that both took, one beside the other.
    fn ratios(self, ours: &PeerResults, base: &PeerResults) -> Vec<f64> {
        let Self::Rounds(name) = self else { return Vec::new() };
        let (Some(ours), Some(base)) = (ours.figures.get(name), base.figures.get(name)) else { return Vec::new() };
        ours.rounds.iter().zip(&base.rounds).map(|(ours, base)| ours / base).collect()
    }
}

const fn ratio(what: &'static str, figure: Source, bar: f64, moonshot: f64, less: bool) -> Target {
    Target { what, figure, beside: Some("relay"), bar, moonshot: Some(moonshot), less, unit: "x" }
}

const TARGETS: [Target; 13] = [
    ratio("p50 at 1,000 req/s", Source::Rounds("rate.p50_ms"), 1.05, 0.8, true),
    ratio("p99 at 1,000 req/s", Source::Rounds("rate.p99_ms"), 1.05, 0.8, true),
    ratio("CPU per 10,000 requests at that rate", Source::Rounds("rate.cpu"), 1.1, 0.8, true),
    ratio("max requests/s, 64 connections", Source::Rounds("full.per_s"), 0.97, 1.3, false),
    ratio("new connections/s", Source::Rounds("fresh.per_s"), 1.1, 1.4, false),
    Target { moonshot: None, ..ratio("CPU per 10,000 new connections", Source::Rounds("fresh.cpu"), 0.85, 0.85, true) },
    Target {
        beside: Some("envoy-tcp"),
        ..ratio("bulk, one stream down: CPU per GB", Source::Rounds("down1.cpu"), 0.85, 0.7, true)
    },
    Target {
        beside: Some("envoy-tcp"),
        ..ratio("bulk, one stream up: CPU per GB", Source::Rounds("up1.cpu"), 0.85, 0.7, true)
    },
    Target { beside: None, unit: "MiB", ..ratio("one idle sidecar, RSS", Source::Alone(idle_rss), 8.0, 5.0, true) },
    Target {
        beside: None,
        unit: "KiB",
        ..ratio("one idle connection, both sidecars, PSS", Source::Alone(held_pss), 24.0, 8.0, true)
    },
    Target {
        beside: None,
        unit: "us",
        ..ratio("a decision with 10,000 rules, 20 of the workload", Source::Alone(decision), 2.0, 0.3, true)
    },
    Target {
        beside: None,
        unit: "/s",
        ..ratio(
            "SVIDs signed per second and core, RS256 tokens (Kubernetes' own)",
            Source::Alone(signing_rsa),
            4000.0,
            8000.0,
            false,
        )
    },
    Target {
        beside: None,
        unit: "/s",
        ..ratio("SVIDs signed per second and core, ES256 tokens", Source::Alone(signing_p256), 4000.0, 8000.0, false)
    },
];

fn decision(results: &Results, _: &PeerResults) -> Option<f64> {
    results.decision.map(|decision| decision.allowed_ns / 1000.0)
}

fn signing_rsa(results: &Results, _: &PeerResults) -> Option<f64> {
    signing(results, "RS256")
}

fn signing_p256(results: &Results, _: &PeerResults) -> Option<f64> {
    signing(results, "ES256")
}

fn signing(results: &Results, tokens: &str) -> Option<f64> {
    results.signing.iter().find(|signing| signing.tokens == tokens).map(Signing::per_core_second)
}

fn idle_rss(_: &Results, peer: &PeerResults) -> Option<f64> {
    peer.idle.map(|idle| idle.client.rss.max(idle.server.rss) as f64 / MIB)
}

fn held_pss(_: &Results, peer: &PeerResults) -> Option<f64> {
    peer.per_connection(|memory| memory.pss).map(|bytes| bytes / 1024.0)
}

/// How a bar was met.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Judged {
    /// The figure.
    pub what: &'static str,
    /// A ratio of medians, or with its unit.
    pub ours: f64,
    /// The lowest and the highest ratio of two turns side by side.
    pub turns: Option<[f64; 2]>,
    /// Beside whom.
    pub beside: Option<&'static str>,
    /// To be reached.
    pub bar: f64,
    /// Better than the bar by this share of it; negative: missed.
    pub margin: f64,
    /// In words.
    pub verdict: String,
}

/// Our own figures beside the bars, as far as they were measured.
#[must_use]
pub fn judge(results: &Results) -> Vec<Judged> {
    TARGETS.iter().filter_map(|target| judge_one(results, target)).collect()
}

fn peer<'a>(results: &'a Results, name: &str) -> Option<&'a PeerResults> {
    results.peers.iter().find(|peer| peer.name == name)
}

fn judge_one(results: &Results, target: &Target) -> Option<Judged> {
    let us = peer(results, "countersign")?;
    let own = target.figure.of(results, us)?;
    let (ours, turns) = match target.beside {
        Some(name) => {
            let base = peer(results, name)?;
            let mut turns = target.figure.ratios(us, base);
            turns.sort_unstable_by(f64::total_cmp);
            (own / target.figure.of(results, base)?, turns)
        }
        None => (own, Vec::new()),
    };
    let margin = |bar: f64| if target.less { (bar - ours) / bar } else { (ours - bar) / bar };
    let mut verdict = match (margin(target.bar), target.moonshot.map(margin)) {
        (missed, _) if missed < 0.0 => format!("missed by {:.0}%", -missed * 100.0),
        (_, Some(moon)) if moon >= 0.0 => "met, moonshot too".to_owned(),
        _ => "met".to_owned(),
    };
    let turns = turns.first().zip(turns.last()).map(|(low, high)| [*low, *high]);
    // Turns on both sides of the bar: the machine moves more than the figures are apart.
    if turns.is_some_and(|[low, high]| low < target.bar && target.bar < high) {
        verdict.push_str("; turns on both sides of the bar");
    }
    Some(Judged {
        what: target.what,
        ours,
        turns,
        beside: target.beside,
        bar: target.bar,
        margin: margin(target.bar),
        verdict,
    })
}

/// The whole report, Markdown.
#[must_use]
pub fn text(results: &Results) -> String {
    let mut text = String::new();
    head(&mut text, results);
    targets(&mut text, results);
    table(&mut text, results);
    details(&mut text, results);
    trust(&mut text, results);
    text
}

fn head(text: &mut String, results: &Results) {
    let sizes = &results.sizes;
    let _ = writeln!(
        text,
        "Measured {} on {}; {} interleaved rounds, {:.0} minutes. Path: load -> client's side -> \
         link -> server's side -> application, in two network namespaces. Medians of the rounds; in brackets lowest and highest. \
         {} take {} turns in a round, as bars compare them.\n",
        results.began.get(..16).unwrap_or(&results.began),
        results.machine,
        results.rounds,
        results.took / 60.0,
        crate::run::COMPARED.join(", "),
        results.turns
    );
    let _ = writeln!(
        text,
        "A request is a GET with {} bytes of answer. Fixed rate: {} requests/s, {} connections, {} s, latency from the intended time of \
         sending. Full load: {} connections, {} s. New connections: one for each request, {} under way, {} s. Bulk and back to back: {} s each.\n",
        sizes.payload,
        sizes.rate,
        sizes.connections,
        sizes.rate_s,
        sizes.full,
        sizes.full_s,
        sizes.opening,
        sizes.full_s,
        sizes.short_s
    );
}

fn targets(text: &mut String, results: &Results) {
    let judged = judge(results);
    if judged.is_empty() {
        return;
    }
    text.push_str(
        "## Countersign beside its bars\n\n| figure | Countersign | each turn by itself | bar | |\n| --- | --- | --- | --- | --- |\n",
    );
    for (judged, target) in judged.iter().filter_map(|j| Some((j, TARGETS.iter().find(|t| t.what == j.what)?))) {
        let (unit, beside) = (target.unit, judged.beside.map(|name| format!(" {name}")).unwrap_or_default());
        let sign = if target.less { "at most" } else { "at least" };
        let digits = match unit {
            "x" | "us" => 2,
            "/s" => 0,
            _ => 1,
        };
        let turns = judged.turns.map_or_else(|| "-".to_owned(), |[low, high]| format!("{low:.2}-{high:.2}"));
        let _ = writeln!(
            text,
            "| {} | {:.digits$} {unit}{beside} | {turns} | {sign} {:.digits$} {unit} | {} |",
            judged.what, judged.ours, judged.bar, judged.verdict
        );
    }
    text.push('\n');
}

fn table(text: &mut String, results: &Results) {
    text.push_str(
        "## Side by side\n\n| | p50 ms | p90 ms | p99 ms | p99.9 ms | max ms | CPU s per 10k, at that rate | at full load | max req/s | new connections/s | CPU s per 10k | bulk CPU s/GB down, up | GB/s down, up |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for peer in &results.peers {
        if let Some(reason) = &peer.not_run {
            let _ = writeln!(
                text,
                "| {} ({}) | not run: {} | | | | | | | | | | | |",
                peer.name,
                peer.about,
                reason.replace(['\n', '|'], "; ")
            );
            continue;
        }
        let cell = |name: &str, digits: usize| spread(peer, name, digits);
        let pair = |key: &str, digits: usize| {
            format!("{}, {}", cell(&format!("down1.{key}"), digits), cell(&format!("up1.{key}"), digits))
        };
        let p999 = peer.p999_ms.map_or_else(|| format!("({} samples)", peer.samples), |ms| format!("{ms:.2}"));
        let cpu = |name: &str, digits| if peer.name == "direct" { "-".into() } else { cell(name, digits) };
        let bulk = if peer.name == "direct" { "-".into() } else { pair("cpu", 2) };
        let _ = writeln!(
            text,
            "| {} ({}) | {} | {} | {} | {p999} | {} | {} | {} | {} | {} | {} | {bulk} | {} |",
            peer.name,
            peer.about,
            cell("rate.p50_ms", 3),
            cell("rate.p90_ms", 3),
            cell("rate.p99_ms", 2),
            cell("rate.max_ms", 1),
            cpu("rate.cpu", 3),
            cpu("full.cpu", 3),
            cell("full.per_s", 0),
            cell("fresh.per_s", 0),
            cpu("fresh.cpu", 2),
            pair("gb_per_s", 2)
        );
    }
    text.push('\n');
}

fn spread(peer: &PeerResults, name: &str, digits: usize) -> String {
    peer.figures.get(name).map_or("-".to_owned(), |figure| figure.told(digits))
}

fn details(text: &mut String, results: &Results) {
    text.push_str(
        "## Details\n\n| | back to back p50 ms | voluntary switches/request, back to back | system calls/request, client + server | CPU s per 10k at the fixed rate: client user + system, server user + system | \
         bulk down, CPU s/GB: the same | 4 streams GB/s down, up | idle RSS MiB, one side | idle PSS | RSS after load | KiB per idle connection, both: PSS, RSS | program MiB | version |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for peer in results.peers.iter().filter(|peer| peer.not_run.is_none()) {
        let median =
            |name: &str, digits: usize| peer.median(name).map_or("-".to_owned(), |value| format!("{value:.digits$}"));
        let mib = |sides: Option<crate::collect::Sides>, of: fn(&crate::proc::Memory) -> u64| {
            sides
                .map_or("-".to_owned(), |sides| format!("{:.1}", of(&sides.client).max(of(&sides.server)) as f64 / MIB))
        };
        let kib = |of| peer.per_connection(of).map_or("-".to_owned(), |bytes| format!("{:.1}", bytes / 1024.0));
        let calls = peer.calls.map_or("-".to_owned(), |calls| format!("{:.1} + {:.1}", calls.client, calls.server));
        let has = peer.idle.is_some();
        let after = if has { mib(peer.after, |memory| memory.rss) } else { "-".into() };
        let parts = |work: &str, digits: usize| match peer.cpu_parts(work).filter(|_| has) {
            Some([cu, cs, su, ss]) => format!("{cu:.digits$} + {cs:.digits$}, {su:.digits$} + {ss:.digits$}"),
            None => "-".to_owned(),
        };
        let size = peer.binary_bytes.map_or("-".to_owned(), |bytes| format!("{:.1}", bytes as f64 / MIB));
        let _ = writeln!(
            text,
            "| {} | {} | {} | {calls} | {} | {} | {}, {} | {} | {} | {after} | {}, {} | {size} | {} |",
            peer.name,
            median("single.p50_ms", 3),
            if has { median("single.switches", 1) } else { "-".into() },
            parts("rate", 3),
            parts("down1", 2),
            median("down4.gb_per_s", 2),
            median("up4.gb_per_s", 2),
            mib(peer.idle, |memory| memory.rss),
            mib(peer.idle, |memory| memory.pss),
            kib(|memory| memory.pss),
            kib(|memory| memory.rss),
            peer.version
        );
    }
    text.push_str(
        "\nIdle: after the first request. PSS shares a program's pages among all who run it then: of peers with one program the first to start shows the most. \
         Connections: up to 1,000, each used once, before any load. User and system time are told apart by the kernel's ticks: their sum is that of the table above, the parts of \
         a short run are not exact.\n\n",
    );
}

fn trust(text: &mut String, results: &Results) {
    text.push_str("## How far to trust it\n\n");
    let noise = &results.noise;
    let mut foreign: Vec<f64> = noise.runs.iter().filter(|run| run.counts).map(|run| run.foreign).collect();
    let kept_noisy = foreign.iter().filter(|foreign| **foreign > noise.limit).count();
    foreign.sort_unstable_by(f64::total_cmp);
    if let (Some(median), Some(most)) = (foreign.get(foreign.len() / 2), foreign.last()) {
        let _ = writeln!(
            text,
            "- Others kept {median:.2} processors busy during a run (median; {most:.2} at most). A run with over {:.2} was thrown away and repeated, \
             {} times; {} runs of {} count although they were noisy.",
            noise.limit,
            noise.thrown_away(),
            kept_noisy,
            foreign.len()
        );
    }
    if let Some(late) =
        results.peers.iter().find(|peer| peer.name == "direct").and_then(|peer| peer.median("rate.late_ms"))
    {
        let _ = writeln!(
            text,
            "- The generator sends {late:.3} ms late (median); that is part of every latency at the fixed rate, alike for all."
        );
    }
    for check in &results.generator {
        let _ = writeln!(
            text,
            "- Our generator beside wrk (one thread, {} connections, medians of three turns) on {}: {:.0} and {:.0} requests/s ({:+.1}%), p50 {:.3} and {:.3} ms.",
            results.sizes.full,
            check.peer,
            check.ours,
            check.wrk,
            (check.ours / check.wrk - 1.0) * 100.0,
            check.ours_p50_ms,
            check.wrk_p50_ms
        );
    }
    for signing in &results.signing {
        let _ = writeln!(text, "- {signing}");
    }
    if let Some(decision) = &results.decision {
        let _ = writeln!(
            text,
            "- A decision (the quickest of 50 turns): {} rules in the mesh, of which the controller selects {} for the workload; allowed by the last of them in {:.0} ns, \
             denied in {:.0} ns. Allowing takes no memory (`policy/tests/allocations.rs`).",
            decision.rules,
            crate::decision::CONCERNING,
            decision.allowed_ns,
            decision.denied_ns
        );
    }
    if let Some(reason) = &results.generator_unchecked {
        let _ = writeln!(text, "- Our generator was not checked against wrk: {reason}.");
    }
    for peer in &results.peers {
        if let Some(refused) = &peer.refused {
            let _ = writeln!(text, "- {} refused a client without a certificate {refused}.", peer.name);
        }
        if let Some(reason) = &peer.calls_uncounted {
            let _ = writeln!(text, "- {}: system calls were not counted: {}.", peer.name, reason.replace('\n', "; "));
        }
    }
    text.push('\n');
}

/// Writes performance.md (between its marks), and in performance/ the JSON and the plots.
///
/// # Errors
/// If a file cannot be written.
pub fn write(docs: &Path, results: &Results) -> Result<()> {
    let folder = docs.join("performance");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("mesh.json"), serde_json::to_string_pretty(results)? + "\n")?;
    let plots = draw(&folder, results)?;
    let mut section = text(results);
    section.push_str("## Plots\n\n");
    for (file, title) in plots {
        let _ = writeln!(section, "![{title}](performance/{file})\n");
    }
    section.push_str("Every figure, with every round: [mesh.json](performance/mesh.json).\n");
    replace_section(&docs.join("performance.md"), "mesh", &section)
}

/// Replaces what stands between the marks of `name`; puts it at the end where there are none.
///
/// # Errors
/// If the file cannot be written.
pub fn replace_section(file: &Path, name: &str, section: &str) -> Result<()> {
    let (from, to) = (format!("<!-- {name}: measured -->\n"), format!("<!-- {name}: end -->\n"));
    let old = std::fs::read_to_string(file).unwrap_or_else(|_| INTRODUCTION.to_owned());
    let new = match old.split_once(&from).and_then(|(before, rest)| Some((before, rest.split_once(&to)?.1))) {
        Some((before, after)) => format!("{before}{from}{section}{to}{after}"),
        None => format!("{}\n\n{from}{section}{to}", old.trim_end()),
    };
    std::fs::write(file, new).with_context(|| file.display().to_string())
}

fn draw(folder: &Path, results: &Results) -> Result<Vec<(&'static str, &'static str)>> {
    let ran: Vec<&PeerResults> = results.peers.iter().filter(|peer| peer.not_run.is_none()).collect();
    let series = |points: &dyn Fn(&PeerResults) -> Vec<(f64, f64)>| -> Vec<Series> {
        let one = |peer: &&PeerResults| Series {
            name: peer.name.clone(),
            points: points(peer),
            strong: peer.name == "countersign",
        };
        ran.iter().map(one).collect()
    };
    let mut drawn = Vec::new();
    let mut keep = |file: &'static str, title: &'static str, done: &dyn Fn(&Path, &str) -> Result<()>| match done(
        &folder.join(file),
        title,
    ) {
        Ok(()) => drawn.push((file, title)),
        Err(error) => eprintln!("{file}: {error:#}"),
    };
    let milliseconds = Axis { label: "milliseconds", scale: Scale::Log };
    keep("latency.svg", "Latency at the fixed rate", &|file, title| {
        let x = Axis { label: "share of requests", scale: Scale::Nines };
        lines(file, title, x, milliseconds, &series(&|peer| peer.percentiles.clone()))
    });
    keep("throughput.svg", "p99 against throughput, 64 connections", &|file, title| {
        let x = Axis { label: "requests/s answered", scale: Scale::Linear };
        lines(
            file,
            title,
            x,
            milliseconds,
            &series(&|peer| peer.curve.iter().map(|point| (point.per_s, point.p99_ms)).collect()),
        )
    });
    keep("memory.svg", "Memory of both sides with idle connections (PSS)", &|file, title| {
        let (x, y) =
            (Axis { label: "idle connections", scale: Scale::Linear }, Axis { label: "MiB", scale: Scale::Linear });
        let held = |peer: &PeerResults| {
            peer.held.iter().map(|(number, memory)| (*number as f64, memory.pss as f64 / MIB)).collect()
        };
        lines(file, title, x, y, &series(&held))
    });
    keep("cpu.svg", "CPU per 10,000 requests at the fixed rate", &|file, title| {
        let bar = |peer: &&PeerResults| {
            let parts = peer.cpu_parts("rate").filter(|_| peer.idle.is_some())?;
            Some(Bar { name: peer.name.clone(), parts: parts.to_vec() })
        };
        let all: Vec<Bar> = ran.iter().filter_map(bar).collect();
        bars(file, title, "CPU seconds", &["client: user", "client: system", "server: user", "server: system"], &all)
    });
    Ok(drawn)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(ours: f64, relay: f64) -> Results {
        let peer = |name: &str, value: f64| {
            let mut peer = PeerResults { name: name.into(), ..PeerResults::default() };
            peer.figures.entry("rate.p50_ms".into()).or_default().add(value);
            peer.figures.entry("full.per_s".into()).or_default().add(value);
            peer
        };
        Results {
            machine: crate::machine::Machine::this(),
            began: "2026-11-21T10:00:00Z".into(),
            took: 60.0,
            rounds: 1,
            turns: 1,
            sizes: crate::work::Sizes::SHORT,
            peers: vec![peer("relay", relay), peer("countersign", ours)],
            generator: Vec::new(),
            generator_unchecked: None,
            signing: Vec::new(),
            decision: None,
            noise: crate::collect::NoiseReport::default(),
        }
    }

    #[test]
    fn a_bar_is_met_or_missed_by_the_ratio_of_one_run() {
        let verdicts =
            |ours, relay| judge(&results(ours, relay)).into_iter().map(|judged| judged.verdict).collect::<Vec<_>>();
        assert_eq!(verdicts(1.0, 1.0), ["met", "met"]);
        assert_eq!(verdicts(0.7, 1.0), ["met, moonshot too", "missed by 28%"]);
        assert_eq!(verdicts(2.1, 1.0), ["missed by 100%", "met, moonshot too"]);
    }

    /// A median beside a bar says little where single turns lie on both sides of it.
    #[test]
    fn turns_on_both_sides_of_a_bar_are_told() {
        let mut results = results(1.0, 1.0);
        for (peer, turns) in results.peers.iter_mut().zip([[1.0, 1.0], [1.01, 1.3]]) {
            let figure = peer.figures.get_mut("rate.p50_ms").unwrap();
            turns.into_iter().for_each(|turn| figure.add(turn));
        }
        let p50 = judge(&results).swap_remove(0);
        assert_eq!((p50.verdict.as_str(), p50.turns), ("met; turns on both sides of the bar", Some([1.0, 1.3])));
        assert!(
            text(&results).contains("| 1.01 x relay | 1.00-1.30 | at most 1.05 x | met; turns"),
            "{}",
            text(&results)
        );
    }

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let file = std::env::temp_dir().join(format!("countersign-report-{}.md", std::process::id()));
        std::fs::write(&file, "# Mine\n\nwords\n").unwrap();
        replace_section(&file, "mesh", "one\n").unwrap();
        let text = std::fs::read_to_string(&file).unwrap() + "after\n";
        std::fs::write(&file, &text).unwrap();
        replace_section(&file, "mesh", "two\n").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text.replace("one", "two"));
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn a_peer_that_did_not_run_is_named_with_its_reason() {
        let mut results = results(1.0, 1.0);
        results.peers.push(PeerResults {
            name: "absent".into(),
            not_run: Some("no program".into()),
            ..PeerResults::default()
        });
        assert!(text(&results).contains("absent () | not run: no program"));
    }
}
