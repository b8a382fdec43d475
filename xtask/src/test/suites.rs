//! The programs that hold tests, one after the other, and the examples in the documentation.
//!
//! Called by `test` after the build. It must never lose a result: each program's counts go to the report.

use std::process::Command;
use std::time::{Duration, Instant};

use super::Run;
use crate::cargo::{self, TestProgram};
use crate::report::Tally;
use crate::suite;

/// For one program of ordinary tests.
pub const UNIT_LIMIT: Duration = Duration::from_secs(5 * 60);
/// For one program of namespace tests.
pub const NAMESPACE_LIMIT: Duration = Duration::from_secs(10 * 60);

impl Run {
    /// Runs programs of one kind. With `live`, what they print is shown as it comes.
    pub fn suites(&mut self, step: &str, mut programs: Vec<TestProgram>, limit: Duration, live: bool) {
        if !self.wants(step) && self.test_filter().is_none() {
            return;
        }
        programs.sort_by(|a, b| (&a.package, &a.kind, &a.target).cmp(&(&b.package, &b.kind, &b.target)));
        let began = self.report.begin(step);
        for program in &programs {
            self.suite(program, limit, live);
        }
        println!("   {} programs ({:.1} s)", programs.len(), began.elapsed().as_secs_f64());
    }

    fn suite(&mut self, program: &TestProgram, limit: Duration, live: bool) {
        let name = format!("{} {} {}", program.package, program.kind, program.target);
        let filter = self.test_filter().filter(|filter| !names(program, filter)).map(str::to_owned);
        let mut command = test_command(program);
        // What a passing test printed is looked through for the word that it did not run.
        command.arg("--show-output").args(&filter);
        let began = Instant::now();
        match suite::run(command, limit, live) {
            Ok(ran) => self.record(&name, began, &ran, live),
            Err(problem) => {
                self.report.failure(&format!("{name}: {problem:#}"));
                self.report.end(&name, began, Tally::one(false));
            }
        }
    }

    fn record(&mut self, name: &str, began: Instant, ran: &suite::Ran, live: bool) {
        if ran.tally.failed > 0 && !live {
            println!("{}", ran.output);
        }
        for (test, said) in &ran.failures {
            self.report.failure(format!("{name}: {test}\n{said}").trim_end());
        }
        for (test, reason) in &ran.skips {
            self.report.skipped(&format!("{name}: {test}"), reason);
        }
        let mut tally = Tally { skipped: 0, ..ran.tally };
        tally.add(self.report.skip_tally(ran.tally.skipped));
        if tally != Tally::default() {
            self.report.end(name, began, tally);
        }
    }

    /// Examples in the documentation.
    pub fn doc(&mut self) {
        let began = self.report.begin("doc: cargo test --workspace --doc");
        let mut command = cargo::cargo();
        command.args(["test", "--workspace", "--doc"]).args(cargo::features());
        match suite::run(command, UNIT_LIMIT, false) {
            Ok(ran) => self.record("doc", began, &ran, false),
            Err(problem) => {
                self.report.failure(&format!("doc: {problem:#}"));
                self.report.end("doc", began, Tally::one(false));
            }
        }
    }
}

/// Whether a filter names the whole program.
pub fn names(program: &TestProgram, filter: &str) -> bool {
    program.package == filter
        || program.target == filter
        || program.package.strip_prefix("countersign-") == Some(filter)
}

/// How a program of tests is run: in its package's folder, as cargo does.
pub fn test_command(program: &TestProgram) -> Command {
    let mut command = Command::new(&program.executable);
    command.current_dir(&program.folder).env("CARGO_MANIFEST_DIR", &program.folder);
    if let Some(built) = &program.built {
        command.env("CLUSTER_BUILT", built);
    }
    command
}
