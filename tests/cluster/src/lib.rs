//! How tests on a real cluster are run, and how they speak with it: by kubectl, as people do.
//!
//! Called by the test program in `tests/`. The cluster is started and stopped by `cargo xtask cluster`; where none is up the program
//! ends with code 2 and says so. Whatever a test makes it makes in namespaces of its own.

mod cluster;
mod namespace;
mod wait;

use std::process::ExitCode;
use std::sync::RwLock;

use libtest_mimic::{Arguments, Failed, Trial};

pub use cluster::Cluster;
pub use namespace::{Load, Namespace};
pub use wait::{throughout, until};

/// What shows a promise.
pub type Shown = fn(&Cluster) -> anyhow::Result<()>;

/// Whom a test disturbs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// Nobody: it stays in its own namespaces.
    Others,
    /// Everybody: it takes something away that all use.
    Nobody,
}

/// One promise: its name, whom it disturbs, and what shows it.
pub type Promise = (&'static str, Beside, Shown);

/// They wait more than they work.
const AT_ONCE: usize = 4;

/// Runs promises as `cargo test` would.
#[must_use]
pub fn run(promises: &[Promise]) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(AT_ONCE);
    let cluster: Option<&'static Cluster> = match (arguments.list, Cluster::running()) {
        (true, _) => None,
        // Leaked once a process: tests run on threads that want it for as long as the process lives.
        (false, Ok(cluster)) => Some(Box::leak(Box::new(cluster))),
        (false, Err(error)) => {
            eprintln!("no cluster to test on ({error:#}); type: cargo xtask cluster test");
            return ExitCode::from(2);
        }
    };
    let turns: &'static RwLock<()> = Box::leak(Box::default());
    let trials = promises.iter().map(|(name, beside, shown)| {
        let (beside, shown) = (*beside, *shown);
        Trial::test(*name, move || {
            let cluster = cluster.ok_or_else(|| Failed::from("no cluster"))?;
            // A test that panicked has taken nothing away that the next one would not notice by itself.
            let (_shared, _alone) = match beside {
                Beside::Others => (Some(turns.read().unwrap_or_else(std::sync::PoisonError::into_inner)), None),
                Beside::Nobody => (None, Some(turns.write().unwrap_or_else(std::sync::PoisonError::into_inner))),
            };
            shown(cluster).map_err(|error| format!("{error:#}").into())
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    if let Some(cluster) = cluster {
        cluster.clean();
    }
    conclusion.exit_code()
}
