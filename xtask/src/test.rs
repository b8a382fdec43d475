//! `cargo xtask test`: everything CI runs, in the order in which it fails fastest.
//!
//! Called by people and by `.ci/run`. It must never go on silently without something: what did not run is named, with
//! the reason, and counts as failed under `CI=true`.

mod clusters;
mod demos;
mod suites;

use anyhow::{Context, Result};

pub use self::suites::test_command;
use self::suites::{NAMESPACE_LIMIT, UNIT_LIMIT, names};
use crate::programs::{self, For};
use crate::report::{Report, Tally};
use crate::{bench, cargo, cluster, lint};

/// Steps that a filter may name.
const STEPS: &[(&str, &str)] = &[
    ("fmt", "every file is formatted (cargo fmt --check)"),
    ("lint", "the house's own checks: who imports whom, file heads, crates, licences (cargo xtask lint)"),
    ("clippy", "no warning in any target (cargo clippy -D warnings)"),
    ("build", "everything is built once, for all later steps"),
    ("unit", "unit and integration tests of every package"),
    ("doc", "examples in the documentation"),
    ("e2e", "tests in namespaces (countersign-kit, countersign-benches, countersign-e2e)"),
    ("demo", "the demo, as root and as an ordinary user"),
    ("cluster", "tests on a real Kubernetes cluster (countersign-cluster-tests)"),
];

/// Packages whose tests need namespaces: they run last and print as they go.
const NAMESPACE_PACKAGES: &[&str] = &["countersign-kit", "countersign-benches", "countersign-e2e"];

/// Runs the steps that `args` ask for; exit code 0 when all passed.
pub fn run(args: &[String]) -> Result<u8> {
    let list = args.iter().any(|arg| arg == "--list");
    let filters: Vec<_> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    if let [_, second, ..] = filters[..] {
        anyhow::bail!("cargo xtask test: one filter at a time, not {second} too");
    }
    let filter = filters.first().map(|filter| (*filter).clone());
    if let Some(unknown) = args.iter().find(|arg| arg.starts_with('-') && *arg != "--list") {
        anyhow::bail!("cargo xtask test: no such option: {unknown}");
    }
    if list {
        return print_list(filter.as_deref());
    }
    let mut run = Run { report: Report::new(), filter };
    // Looking at the text alone needs no database.
    let lacking = if run.wants_build() { programs::ensure(For::Test) } else { Vec::new() };
    cargo::say_features();
    for program in lacking {
        println!("Without {}: {}.", program.name, program.used_for);
    }
    run.fmt();
    run.lint();
    run.clippy();
    if run.wants_build() {
        run.built()?;
    }
    Ok(run.report.finish())
}

struct Run {
    report: Report,
    filter: Option<String>,
}

impl Run {
    /// Whether a step was asked for: all are without a filter, else the one it names.
    fn wants(&self, step: &str) -> bool {
        self.filter.as_deref().is_none_or(|filter| filter == step)
    }

    /// A filter that names no step is a package, or part of a test's name.
    fn test_filter(&self) -> Option<&str> {
        self.filter.as_deref().filter(|filter| STEPS.iter().all(|(name, _)| name != filter))
    }

    fn wants_build(&self) -> bool {
        !["fmt", "lint", "clippy"].iter().any(|step| self.filter.as_deref() == Some(step))
    }

    fn fmt(&mut self) {
        if !self.wants("fmt") {
            return;
        }
        if !cargo::has_component("fmt", "rustfmt") {
            return self.report.skip_step("fmt", "rustfmt is not installed; type: rustup component add rustfmt");
        }
        self.cargo_step("fmt", &["fmt", "--all", "--check"]);
    }

    fn lint(&mut self) {
        if !self.wants("lint") {
            return;
        }
        let began = self.report.begin("lint");
        let passed = match lint::check() {
            Ok(found) => {
                found.print();
                found.problems.iter().for_each(|problem| self.report.failure(&format!("lint: {problem}")));
                found.problems.is_empty()
            }
            Err(problem) => {
                self.report.failure(&format!("lint could not run: {problem:#}"));
                false
            }
        };
        self.report.end("lint", began, Tally::one(passed));
    }

    fn clippy(&mut self) {
        if !self.wants("clippy") {
            return;
        }
        if !cargo::has_component("clippy", "clippy") {
            return self.report.skip_step("clippy", "clippy is not installed; type: rustup component add clippy");
        }
        let mut args = vec!["clippy", "--workspace", "--all-targets"];
        args.extend(cargo::features());
        args.extend(["--", "-D", "warnings"]);
        self.cargo_step("clippy", &args);
    }

    /// One call of cargo that passes or fails as a whole.
    fn cargo_step(&mut self, name: &str, args: &[&str]) {
        let began = self.report.begin(&format!("{name}: cargo {}", args.join(" ")));
        let passed = cargo::cargo().args(args).status().is_ok_and(|status| status.success());
        if !passed {
            self.report.failure(&format!("{name}; to see it again: cargo xtask test {name}"));
        }
        self.report.end(name, began, Tally::one(passed));
    }

    /// All steps that need the build.
    fn built(&mut self) -> Result<()> {
        let began = self.report.begin("build: cargo build --workspace --all-targets");
        let programs = match cargo::build_all() {
            Ok(programs) => programs,
            Err(problem) => {
                self.report.failure(&format!("build, and with it all tests: {problem:#}"));
                self.report.end("build", began, Tally::one(false));
                return Ok(());
            }
        };
        self.report.end("build", began, Tally::one(true));
        let (on_cluster, programs): (Vec<_>, Vec<_>) =
            programs.into_iter().partition(|program| program.package == cluster::PACKAGE && program.kind == "test");
        let (namespace, ordinary): (Vec<_>, Vec<_>) =
            programs.into_iter().partition(|program| NAMESPACE_PACKAGES.contains(&program.package.as_str()));
        self.judges(&ordinary);
        // The tests from here to the demo wait more than they work, and the demo measures.
        let ahead = if self.filter.is_none() { cluster::Ahead::begin() } else { None };
        self.suites("unit", ordinary, UNIT_LIMIT, false);
        if self.wants("doc") {
            self.doc();
        }
        if self.wants("e2e") || self.test_filter().is_some_and(|filter| "countersign-benches".contains(filter)) {
            bench::envoy(&cargo::target_dir()?.join("bench-peers"));
        }
        self.suites("e2e", namespace, NAMESPACE_LIMIT, true);
        if let Some(ahead) = ahead {
            let began =
                self.report.begin("ahead: what the cluster needs is built meanwhile; waiting for the rest of it");
            let ended = if ahead.join() {
                "all of it is there"
            } else {
                "it failed, and is tried again: target/cluster/log/build.log"
            };
            println!("   {ended} ({:.1} s)", began.elapsed().as_secs_f64());
        }
        if self.wants("demo") {
            self.demos()?;
        }
        self.cluster(on_cluster);
        Ok(())
    }
}

fn print_list(filter: Option<&str>) -> Result<u8> {
    for (name, what) in STEPS {
        println!("{name:8} {what}");
    }
    for program in cargo::build_all()? {
        let narrow = filter.filter(|filter| !names(&program, filter));
        let mut command = test_command(&program);
        command.arg("--list").args(narrow);
        let output = command.output().with_context(|| format!("listing {}", program.target))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        for test in text.lines().filter_map(|line| line.strip_suffix(": test")) {
            println!("{} {} {test}", program.package, program.target);
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(filter: Option<&str>) -> Run {
        Run { report: Report::new(), filter: filter.map(str::to_owned) }
    }

    #[test]
    fn without_a_filter_every_step_is_wanted() {
        assert!(STEPS.iter().all(|(step, _)| run(None).wants(step)));
        assert!(run(None).wants_build());
    }

    #[test]
    fn a_filter_that_names_a_step_runs_that_step_alone() {
        let run = run(Some("fmt"));
        assert!(run.wants("fmt") && !run.wants("lint") && !run.wants_build());
        assert_eq!(run.test_filter(), None);
    }

    #[test]
    fn any_other_filter_goes_to_the_tests() {
        let run = run(Some("two_uri_sans"));
        assert!(STEPS.iter().all(|(step, _)| !run.wants(step)));
        assert!(run.wants_build());
        assert_eq!(run.test_filter(), Some("two_uri_sans"));
    }
}
