//! `countersign ca`: how the CA's root is, and how another takes its place.
//!
//! Called by `main`. The CA decides whether a step may be taken (its `rotation`); here it is asked, waited for and told. It must never force a
//! step that nobody confirmed, and never call a rotation done that the CA does not.

mod drive;
mod report;
mod road;
mod say;

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use self::road::{Answer, Road};
use crate::args::{CaCommand, ReportCommand, RoadArgs};
use crate::audit;
use crate::output::{self, Format, Style, Verdict};

/// One of the commands.
pub fn run(command: &CaCommand, format: Format) -> Result<Verdict> {
    match command {
        CaCommand::Status(road) => status(road, format),
        CaCommand::Prepare(road) => step(road, "prepare", format),
        CaCommand::Activate(road) => step(road, "activate", format),
        CaCommand::Retire(road) => step(road, "retire", format),
        CaCommand::Abort(road) => drive::abort(&Road::of(road), format),
        CaCommand::Rotate(args) => drive::rotate(args, format),
        CaCommand::Audit(command) => audit::run(command, format),
        CaCommand::Report(ReportCommand::Fetch { road, file }) => fetch(&Road::of(road), file, format),
        CaCommand::Report(ReportCommand::Verify { file, bundle }) => report::verify(file, bundle.as_deref(), format),
    }
}

fn status(road: &RoadArgs, format: Format) -> Result<Verdict> {
    let status = Road::of(road).status()?;
    output::either(format, &status, || say::status(&status, Style::detect()))?;
    Ok(Verdict::Yes)
}

/// One step; refused is exit code 1, with what is missing.
fn step(road: &RoadArgs, step: &str, format: Format) -> Result<Verdict> {
    match Road::of(road).step(step)? {
        Answer::Done(status) => {
            output::either(format, &status, || say::status(&status, Style::detect()))?;
            Ok(Verdict::Yes)
        }
        Answer::Refused(refusal) => {
            output::either(format, &refusal, || say::refusal(&refusal, Style::detect()))?;
            Ok(Verdict::No)
        }
    }
}

fn fetch(road: &Road, file: &Path, format: Format) -> Result<Verdict> {
    let report = road.report()?;
    save(&report, file)?;
    output::either(format, &report, || say::report(&report["report"], file))?;
    Ok(Verdict::Yes)
}

/// Writes the CA's report to a file.
fn save(report: &Value, file: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(report).context("writing JSON")? + "\n";
    std::fs::write(file, text).with_context(|| file.display().to_string())
}
