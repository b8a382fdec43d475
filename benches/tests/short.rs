//! The harness in its short form, for correctness alone: every peer that is installed runs, is held to its claim, and answers every
//! request of every workload. No timing is asserted.

#![allow(clippy::unwrap_used, missing_docs)]

use std::process::ExitCode;
use std::sync::{Mutex, OnceLock};

use countersign_benches::collect::Results;
use countersign_benches::run::{Options, measure, run};
use countersign_benches::work::Work;
use countersign_benches::{peers, report};
use countersign_kit::Inside;
use libtest_mimic::{Arguments, Failed, Trial};

static RESULTS: OnceLock<Result<Results, String>> = OnceLock::new();
static INSIDE: Mutex<Option<Inside>> = Mutex::new(None);

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if !arguments.list {
        match countersign_kit::enter() {
            Ok(inside) => *INSIDE.lock().unwrap() = Some(inside),
            Err(error) => {
                eprintln!("the harness cannot run here: {error}");
                return ExitCode::from(2);
            }
        }
    }
    let mut trials: Vec<Trial> = peers::all(None)
        .iter()
        .map(|peer| peer.name())
        .map(|name| Trial::test(format!("{}_carries_every_workload", name.replace('-', "_")), move || carries(name)))
        .collect();
    trials.push(Trial::test("a_request_costs_six_system_calls_on_each_side", called));
    trials.push(Trial::test("the_report_names_every_peer", reported));
    trials.push(Trial::test("growth_along_each_axis_is_measured_and_written", grown));
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn results() -> Result<&'static Results, Failed> {
    let results = RESULTS.get_or_init(|| {
        let inside = INSIDE.lock().unwrap().ok_or("not inside")?;
        measure(inside, &Options { rounds: 1, short: true, ..Options::default() }).map_err(|error| format!("{error:#}"))
    });
    results.as_ref().map_err(|error| Failed::from(error.clone()))
}

fn carries(name: &str) -> Result<(), Failed> {
    let peer = results()?.peers.iter().find(|peer| peer.name == name).ok_or("it is not in the results")?;
    match &peer.not_run {
        Some(reason) if reason.starts_with("failed") => return Err(reason.into()),
        Some(reason) => {
            println!("NOT RUN: {name}: {reason}");
            return Ok(());
        }
        None => {}
    }
    for work in Work::ALL {
        let figure = if matches!(work, Work::Bulk(..)) { "gb_per_s" } else { "per_s" };
        let value = peer.median(&format!("{}.{figure}", work.key()));
        assert!(value.is_some_and(|value| value > 0.0), "{}: {value:?}", work.key());
    }
    assert_eq!(peer.refused.is_some(), peer.claims_mtls);
    if name != "direct" {
        // Both sides were found and looked at.
        assert!(peer.median("full.cpu").is_some_and(|cpu| cpu > 0.0));
        assert!(peer.idle.is_some_and(|idle| idle.client.pss > 0 && idle.server.pss > 0));
        assert_eq!(peer.held.len(), 2);
    }
    // Too few samples for a 99.9th percentile, so there is none.
    assert_eq!(peer.p999_ms, None);
    Ok(())
}

/// Wait, read, write, there and back: what is beyond is a regression. Other threads and the control plane's connections are in it too.
fn called() -> Result<(), Failed> {
    let ours = results()?.peers.iter().find(|peer| peer.name == "countersign").ok_or("it is not in the results")?;
    let Some(calls) = ours.calls else {
        println!("NOT RUN: {}", ours.calls_uncounted.as_deref().or(ours.not_run.as_deref()).unwrap_or("no reason"));
        return Ok(());
    };
    assert!(calls.client < 6.6 && calls.server < 6.6, "{calls:?}");
    Ok(())
}

fn reported() -> Result<(), Failed> {
    let folder = tempfile::tempdir().unwrap();
    report::write(folder.path(), results()?).map_err(|error| format!("{error:#}"))?;
    let text = std::fs::read_to_string(folder.path().join("performance.md")).unwrap();
    for peer in peers::all(None) {
        assert!(text.contains(peer.about()), "{}", peer.name());
    }
    // Every row of a table has its head's columns.
    for table in text.split("\n\n").filter(|part| part.starts_with("| ")) {
        let columns: Vec<_> = table.lines().map(|line| line.matches('|').count()).collect();
        assert!(columns.len() > 2 && columns.iter().all(|number| *number == columns[0]), "{table}");
    }
    for file in ["mesh.json", "latency.svg", "throughput.svg", "memory.svg", "cpu.svg"] {
        let written = std::fs::read_to_string(folder.path().join("performance").join(file));
        let written = written.map_err(|error| format!("{file}: {error}"))?;
        assert!(written.len() > 500, "{file}: {written}");
    }
    Ok(())
}

fn grown() -> Result<(), Failed> {
    // After them: one stage at a time.
    let ours = results()?.peers.iter().find(|peer| peer.name == "countersign").ok_or("it is not in the results")?;
    if let Some(reason) = ours.not_run.as_deref().filter(|reason| !reason.starts_with("failed")) {
        println!("NOT RUN: {reason}");
        return Ok(());
    }
    let inside = INSIDE.lock().unwrap().ok_or("not inside")?;
    let folder = tempfile::tempdir().unwrap();
    let docs = Some(folder.path().to_owned());
    let options = Options { rounds: 1, short: true, growth: true, docs, ..Options::default() };
    let code = run(inside, &options).map_err(|error| format!("{error:#}"))?;
    let text = std::fs::read_to_string(folder.path().join("performance.md")).unwrap();
    assert_eq!(code, 0, "{text}");
    for axis in ["connections", "payload", "rules", "threads"] {
        let rows = text.lines().filter(|line| line.starts_with(&format!("| {axis} | "))).count();
        assert_eq!(rows, 4, "{axis}: {text}");
        let drawn = std::fs::read_to_string(folder.path().join(format!("performance/growth-{axis}.svg"))).unwrap();
        assert!(drawn.len() > 500, "{axis}: {drawn}");
    }
    Ok(())
}
