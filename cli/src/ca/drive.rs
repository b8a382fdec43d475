//! `countersign ca rotate` and `abort`: one step after the other, each as soon as the CA takes it. What is done lies with the CA, so that this may
//! be interrupted at any time, and goes on where it was when it is called again.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::road::{Answer, Road};
use super::{save, say};
use crate::args::RotateArgs;
use crate::output::{self, Format, Style, Verdict};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// A CA that does not answer may be on its way up again.
const PATIENCE: Duration = Duration::from_secs(120);
/// After the last step sidecars say within seconds that they hold the last bundle, and what has become of their connections; a report that does not
/// have them all says so.
const LAST_REPORTS: Duration = Duration::from_secs(15);
/// What the last bundle ends is being ended while a sidecar says that it has it. It reports again some 4 to 6 s later; what came so long after the step
/// is that second report.
const SETTLED: time::Duration = time::Duration::seconds(3);
/// In an emergency the new bundle gets so long to reach those who are connected.
const LAST_CALL: Duration = Duration::from_secs(10);

/// Tells what is waited for, each time that it is something else. On standard error: results go to standard output.
struct Progress {
    style: Style,
    quiet: bool,
    told: String,
}

impl Progress {
    fn new(format: Format) -> Self {
        Self { style: Style::detect(), quiet: format == Format::Json, told: String::new() }
    }

    fn tell(&mut self, status: &Value) {
        self.line(say::progress(status, self.style));
    }

    fn line(&mut self, line: String) {
        // What only counts seconds down is no news.
        let is_word = |c: &char| !c.is_ascii_digit();
        let news = |line: &str| {
            if line.contains("  waits") { line.chars().filter(is_word).collect() } else { line.to_owned() }
        };
        let gist: String = line.split_inclusive('\n').map(news).collect();
        if gist != self.told && !self.quiet {
            // Nobody who reads is no reason to stop.
            let _ = io::stderr().write_all(line.as_bytes());
        }
        self.told = gist;
    }
}

/// Asks again while the CA does not answer, within bounds.
struct Patient<'a> {
    road: &'a Road,
    silent_since: Option<Instant>,
}

impl Patient<'_> {
    /// `None`: it did not answer; look again.
    fn status(&mut self, progress: &mut Progress) -> Result<Option<Value>> {
        let asked = self.road.status();
        self.heard(asked, progress)
    }

    fn heard<T>(&mut self, asked: Result<T>, progress: &mut Progress) -> Result<Option<T>> {
        match asked {
            Ok(answer) => {
                self.silent_since = None;
                Ok(Some(answer))
            }
            Err(error) if self.silent_since.get_or_insert_with(Instant::now).elapsed() < PATIENCE => {
                progress.line(format!("the CA does not answer ({error:#}); trying again\n"));
                Ok(None)
            }
            Err(error) => Err(error.context(format!("the CA did not answer for {} s", PATIENCE.as_secs()))),
        }
    }
}

fn stage(status: &Value) -> &str {
    status["rotation"]["stage"].as_str().unwrap_or("none")
}

/// From wherever it is to the end.
pub fn rotate(args: &RotateArgs, format: Format) -> Result<Verdict> {
    let road = Road::of(&args.road);
    let mut progress = Progress::new(format);
    let status = road.status()?;
    ensure!(stage(&status) != "returning", "an abort is under way: countersign ca abort");
    let status = match status["under_way"] == true {
        true => status,
        false => road.step("prepare")?.done()?,
    };
    let id = status["rotation"]["id"].as_str().unwrap_or_default().to_owned();
    if args.emergency && !emergency(args, &road, &mut progress)? {
        return Ok(Verdict::No);
    }
    let status = to_the_end(&road, &id, &mut progress)?;
    let done = stage(&status) == "retired";
    let report = last_report(&road)?;
    let file = args.report.clone().unwrap_or_else(|| PathBuf::from(format!("rotation-{id}.json")));
    save(&report, &file)?;
    let value = json!({ "rotation": status["rotation"], "report_file": file, "totals": report["report"]["totals"] });
    output::either(format, &value, || say::report(&report["report"], &file))?;
    Ok(Verdict::of(done))
}

/// Back to the old root, until the new one has left the bundle.
pub fn abort(road: &Road, format: Format) -> Result<Verdict> {
    let mut progress = Progress::new(format);
    let status = road.status()?;
    let status = match stage(&status) {
        "returning" => status, // begun before
        _ => match road.step("abort")? {
            Answer::Done(status) => status,
            Answer::Refused(refusal) => {
                output::either(format, &refusal, || say::refusal(&refusal, Style::detect()))?;
                return Ok(Verdict::No);
            }
        },
    };
    let id = status["rotation"]["id"].as_str().unwrap_or_default().to_owned();
    let status = to_the_end(road, &id, &mut progress)?;
    output::either(format, &status, || say::status(&status, Style::detect()))?;
    Ok(Verdict::of(stage(&status) == "aborted"))
}

/// Takes each step as soon as its gate is open.
fn to_the_end(road: &Road, id: &str, progress: &mut Progress) -> Result<Value> {
    let mut patient = Patient { road, silent_since: None };
    loop {
        if let Some(status) = patient.status(progress)? {
            ensure!(status["rotation"]["id"] == id, "another rotation was begun meanwhile");
            progress.tell(&status);
            if status["under_way"] != true {
                return Ok(status);
            }
            if status["gate"]["open"] == true {
                let step = status["gate"]["step"].as_str().context("a gate without a step")?;
                let asked = road.step(step);
                // Refused: something changed since we looked. We look again.
                patient.heard(asked, progress)?;
            }
        }
        std::thread::sleep(LOOK);
    }
}

/// The CA's report, once all holders have told it of the bundle without the old root and of what that did to their connections, or a while has passed.
fn last_report(road: &Road) -> Result<Value> {
    let until = Instant::now() + LAST_REPORTS;
    loop {
        let report = road.report()?;
        if all_told(&report["report"]) || Instant::now() >= until {
            return Ok(report);
        }
        std::thread::sleep(LOOK);
    }
}

/// Whether all holders have the bundle, and have reported since what the last step ended has ended.
fn all_told(report: &Value) -> bool {
    let time = |at: &Value| OffsetDateTime::parse(at.as_str()?, &Rfc3339).ok();
    let last = report["rotation"]["stages"].as_array().and_then(|stages| time(&stages.last()?["at"]));
    let Some(settled) = last.map(|last| last + SETTLED) else { return false };
    let (totals, holders) = (&report["totals"], report["holders"].as_array());
    totals["holding_the_bundle"] == totals["holders"]
        && holders.into_iter().flatten().all(|holder| time(&holder["reported_at"]).is_some_and(|at| at >= settled))
}

/// The steps without their gates. False: nobody confirmed.
fn emergency(args: &RotateArgs, road: &Road, progress: &mut Progress) -> Result<bool> {
    let until = Instant::now() + LAST_CALL;
    let mut status = road.status()?;
    while stage(&status) == "prepared" && status["gate"]["ready"] != status["gate"]["holders"] && Instant::now() < until
    {
        progress.tell(&status);
        std::thread::sleep(LOOK);
        status = road.status()?;
    }
    let domain = status["trust_domain"].as_str().unwrap_or_default();
    eprint!("{}", say::emergency(&status, progress.style));
    if !confirmed(args.confirm.as_deref(), domain)? {
        eprintln!("not confirmed; the new root is prepared and signs nothing: countersign ca abort");
        return Ok(false);
    }
    if matches!(stage(&status), "prepared" | "distributed") {
        status = road.step("activate/forced")?.done()?;
        progress.tell(&status);
    }
    // The CA's own leaf comes first: whoever has the new bundle must be able to reach it.
    let until = Instant::now() + LAST_CALL;
    while status["own_svid_root_sha256"] != status["signing_root"]["sha256"] && Instant::now() < until {
        std::thread::sleep(LOOK);
        status = road.status()?;
    }
    if stage(&status) == "active" {
        status = road.step("retire/forced")?.done()?;
        progress.tell(&status);
    }
    Ok(true)
}

fn confirmed(given: Option<&str>, domain: &str) -> Result<bool> {
    if let Some(given) = given {
        return Ok(given == domain);
    }
    ensure!(io::stdin().is_terminal(), "nobody is there to confirm: --confirm TRUST_DOMAIN");
    eprint!("Type the name of the trust domain ({domain}) to go on: ");
    let mut line = String::new();
    io::stdin().read_line(&mut line).context("standard input")?;
    Ok(line.trim() == domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_report_waits_for_what_the_last_step_did_to_the_connections_of_all() {
        let told = |holding: u64, reported: [Option<&str>; 2]| {
            let passed = |stage, at| json!({ "stage": stage, "at": at });
            let stages = [passed("prepared", "2026-11-22T01:59:30Z"), passed("retired", "2026-11-22T02:00:07Z")];
            let holders = reported.map(|at| json!({ "reported_at": at }));
            let totals = json!({ "holders": 2, "holding_the_bundle": holding });
            all_told(&json!({ "rotation": { "stages": stages }, "holders": holders, "totals": totals }))
        };
        // The root went at 02:00:07.
        let (first, second) = (Some("2026-11-22T02:00:07Z"), Some("2026-11-22T02:00:10Z"));
        assert!(told(2, [second, Some("2026-11-22T02:01:00Z")]));
        assert!(!told(2, [second, first]), "it has the bundle, and its connections are being cut");
        assert!(!told(2, [second, None]));
        assert!(!told(1, [second, second]), "one has an older bundle");
        assert!(!all_told(&Value::Null));
    }
}
