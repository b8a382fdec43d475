//! The tests on a real Kubernetes cluster, which is started for them and stopped after them; and what the chart's tests are judged by.
//!
//! Called by `test`, as its last step and before the ordinary tests. Where there can be no cluster that is a skip, with the reason; anything else that keeps the tests
//! from running is a failure.

use std::time::Duration;

use super::Run;
use super::suites::{names, test_command};
use crate::cargo::TestProgram;
use crate::cluster::{self, Bed, Cannot};
use crate::report::Tally;

/// Its tests hold the chart's.
const CLI: &str = "countersign-cli";
/// For all tests on the cluster: they take 18 minutes.
const CLUSTER_LIMIT: Duration = Duration::from_secs(30 * 60);

impl Run {
    /// Builds what the tests of the chart are judged by; without it they say that they did not run.
    pub fn judges(&mut self, programs: &[TestProgram]) {
        let concerned: Vec<_> = programs
            .iter()
            .filter(|program| program.package == CLI && program.target == "manifests")
            .cloned()
            .collect();
        if !self.wants("unit") && !self.names_one_of(&concerned) {
            return;
        }
        let began = self.report.begin("judges: Helm and kubeconform (some minutes the first time)");
        match cluster::judges() {
            Ok(()) => self.report.end("judges", began, Tally::one(true)),
            Err(problem) => match problem.downcast_ref::<Cannot>() {
                Some(Cannot(reason)) => self.report.skip_step("judges", reason),
                None => {
                    self.report.failure(&format!("judges: {problem:#}"));
                    self.report.end("judges", began, Tally::one(false));
                }
            },
        }
    }

    /// Brings a cluster up for these programs and runs them.
    pub fn cluster(&mut self, programs: Vec<TestProgram>) {
        if !self.wants("cluster") && !self.names_one_of(&programs) {
            return;
        }
        let began = self.report.begin("cluster: building and starting it (about 10 minutes the first time)");
        match Bed::up() {
            Ok(bed) => {
                let programs = programs.into_iter().map(|program| bed.with(program)).collect();
                self.suites("cluster", programs, CLUSTER_LIMIT, true);
                let ended = bed.end();
                if let Err(problem) = &ended {
                    self.report.failure(&format!("cluster: {problem:#}"));
                }
                self.report.end("cluster: nothing is left of it", began, Tally::one(ended.is_ok()));
            }
            Err(problem) => match problem.downcast_ref::<Cannot>() {
                Some(Cannot(reason)) => self.report.skip_step("cluster", reason),
                None => {
                    self.report.failure(&format!("cluster: {problem:#}"));
                    self.report.end("cluster", began, Tally::one(false));
                }
            },
        }
    }

    /// Whether a filter that names no step names one of these tests: no cluster is started for any other.
    fn names_one_of(&self, programs: &[TestProgram]) -> bool {
        let Some(filter) = self.test_filter() else { return false };
        programs.iter().any(|program| {
            let listed = || {
                let output = test_command(program).args(["--list", filter]).output().ok()?;
                Some(String::from_utf8_lossy(&output.stdout).contains(": test"))
            };
            names(program, filter) || listed().unwrap_or(false)
        })
    }
}
