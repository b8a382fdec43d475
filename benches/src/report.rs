//! The report: a table for people, JSON for programs, plots for both.
//!
//! Called by `run`. In docs/performance.md only what stands between the two marks is replaced; what people wrote around it stays. It
//! must never print a ratio of figures from two runs.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

use crate::bars::judge;
use crate::collect::{MIB, PeerResults, Results};
use crate::plot::{Axis, Bar, Scale, Series, bars, lines};

/// What a first run puts around its figures.
const INTRODUCTION: &str = "\
# Performance

What the mesh costs, beside others in the same places, measured in one run by `cargo xtask bench mesh`. Absolute figures do not travel
from machine to machine, the ratios between rows of one run do.

";

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
    for judged in judged {
        let (unit, beside) = (judged.unit, judged.beside.map(|name| format!(" {name}")).unwrap_or_default());
        let sign = if judged.less { "at most" } else { "at least" };
        let digits = match unit {
            "x" | "us" => 2,
            "/s" => 0,
            _ => 1,
        };
        let turns =
            judged.turns.map_or_else(|| "-".to_owned(), |[low, high]| format!("{low:.digits$}-{high:.digits$}"));
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
    use crate::bars::tests::results;

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
