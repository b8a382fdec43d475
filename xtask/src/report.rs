//! What was run, what came of it, and how long it took: the one place that prints steps and the summary.
//!
//! Called by `test`; `cluster` and `bench` tell their own steps by it. It must never turn a step that did not run into one that passed.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Counts of one suite or of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Ran, and held.
    pub passed: usize,
    /// Ran, and did not hold (or could not be run though it had to).
    pub failed: usize,
    /// Did not run; the reason was printed.
    pub skipped: usize,
}

impl Tally {
    /// One check that passed or failed.
    pub fn one(passed: bool) -> Self {
        Self { passed: usize::from(passed), failed: usize::from(!passed), skipped: 0 }
    }

    /// Adds another suite's counts.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// Everything that was run so far.
pub struct Report {
    total: Tally,
    /// Failures and skips with their reasons, for the end.
    notes: Vec<String>,
    /// With `CI=true` a skip is a failure.
    strict: bool,
    color: bool,
    started: Instant,
}

impl Report {
    /// Starts the clock. `CI=true` in the environment makes a skip a failure.
    pub fn new() -> Self {
        let strict = std::env::var("CI").is_ok_and(|value| value == "true" || value == "1");
        let color =
            std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) && std::io::stdout().is_terminal();
        Self { total: Tally::default(), notes: Vec::new(), strict, color, started: Instant::now() }
    }

    /// Says that a step begins.
    pub fn begin(&self, title: &str) -> Instant {
        println!("{}", self.paint("1", &format!("== {title}")));
        Instant::now()
    }

    /// Says how it ended, and counts it.
    pub fn end(&mut self, name: &str, began: Instant, tally: Tally) {
        self.total.add(tally);
        let word = if tally.failed > 0 { self.paint("31", "FAILED") } else { self.paint("32", "ok") };
        println!("   {name}: {word}, {} ({})", counts(tally), seconds(began.elapsed()));
    }

    /// Remembers why something failed, for the end of the run: in its first line what, behind it what was said of it.
    pub fn failure(&mut self, what: &str) {
        self.notes.push(format!("failed: {}", what.replace('\n', "\n    ")));
    }

    /// A step, suite or test that did not run, and why. Counted by the caller's tally through [`Report::skip_tally`].
    pub fn skipped(&mut self, what: &str, reason: &str) {
        let word = if self.strict { "failed (skipped, and CI=true)" } else { "skipped" };
        let note = format!("{word}: {what}: {reason}");
        println!("   {}", self.paint("33", &note));
        self.notes.push(note);
    }

    /// What `n` skips count as.
    pub fn skip_tally(&self, n: usize) -> Tally {
        if self.strict { Tally { failed: n, ..Tally::default() } } else { Tally { skipped: n, ..Tally::default() } }
    }

    /// A whole step that did not run.
    pub fn skip_step(&mut self, name: &str, reason: &str) {
        let began = self.begin(name);
        self.skipped(name, reason);
        let tally = self.skip_tally(1);
        self.end(name, began, tally);
    }

    /// Prints what went wrong and the summary line, which is the last line. Returns the exit code.
    pub fn finish(self) -> u8 {
        println!();
        for note in &self.notes {
            println!("{}", self.paint(if note.starts_with("failed") { "31" } else { "33" }, note));
        }
        println!("in {}", seconds(self.started.elapsed()));
        println!("{}", counts(self.total));
        u8::from(self.total.failed > 0 || self.total.passed == 0)
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// The plain form that a machine may read: `N passed, N failed[, N skipped]`.
fn counts(tally: Tally) -> String {
    let skipped = if tally.skipped > 0 { format!(", {} skipped", tally.skipped) } else { String::new() };
    format!("{} passed, {} failed{skipped}", tally.passed, tally.failed)
}

/// A step outside a test run that is done, and how long it took.
pub fn said(what: &str, began: Instant) {
    println!("   {what} ({:.1} s)", began.elapsed().as_secs_f64());
}

fn seconds(time: Duration) -> String {
    match time.as_secs() {
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        whole => format!("{} min {:02} s", whole / 60, whole % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(strict: bool) -> Report {
        Report { total: Tally::default(), notes: Vec::new(), strict, color: false, started: Instant::now() }
    }

    #[test]
    fn a_skip_is_a_failure_in_ci_and_only_there() {
        assert_eq!(report(true).skip_tally(2).failed, 2);
        assert_eq!(report(false).skip_tally(2).skipped, 2);
        let mut ci = report(true);
        ci.end("x", Instant::now(), Tally::one(true));
        ci.skip_step("y", "no such program");
        assert_eq!(ci.finish(), 1);
    }

    #[test]
    fn nothing_run_is_not_success() {
        assert_eq!(report(false).finish(), 1);
    }

    #[test]
    fn the_summary_has_its_plain_form() {
        assert_eq!(counts(Tally { passed: 3, failed: 0, skipped: 0 }), "3 passed, 0 failed");
        assert_eq!(counts(Tally { passed: 3, failed: 1, skipped: 2 }), "3 passed, 1 failed, 2 skipped");
    }
}
