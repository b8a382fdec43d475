//! How tests on a real cluster are run, and how they speak with it: by kubectl, as people do.
//!
//! Called by the test program in `tests/`. The cluster is started and stopped by `cargo xtask cluster`; where none is up the program
//! ends with code 2 and says so. Whatever a test makes it makes in namespaces of its own.

mod cluster;
mod namespace;
mod wait;

use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use tokio::sync::RwLock;

pub use cluster::Cluster;
pub use namespace::{LONGEST, Load, Namespace};
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

/// So many promises are named with the time that they took.
const LONGEST_SAID: usize = 12;

/// A promise that takes longer is named while it runs: whoever ends the program has its name.
const LONG: Duration = Duration::from_secs(4 * 60);

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
    // First come, first served, unlike the standard library's: promises have their turns in the order of the list.
    let turns: &'static RwLock<()> = Box::leak(Box::default());
    let took: &'static Mutex<Vec<(f64, &str)>> = Box::leak(Box::default());
    let running: &'static Mutex<Vec<(Instant, &str)>> = Box::leak(Box::default());
    std::thread::spawn(move || say_running(running));
    let trials = promises.iter().map(|(name, beside, shown)| {
        let (name, beside, shown) = (*name, *beside, *shown);
        Trial::test(name, move || {
            let cluster = cluster.ok_or_else(|| Failed::from("no cluster"))?;
            // A test that panicked has taken nothing away that the next one would not notice by itself.
            let (_shared, _alone) = match beside {
                Beside::Others => (Some(turns.blocking_read()), None),
                Beside::Nobody => (None, Some(turns.blocking_write())),
            };
            let began = Instant::now();
            running.lock().unwrap_or_else(PoisonError::into_inner).push((began, name));
            let done = shown(cluster).map_err(|error| format!("{error:#}").into());
            running.lock().unwrap_or_else(PoisonError::into_inner).retain(|(_, other)| *other != name);
            took.lock().unwrap_or_else(PoisonError::into_inner).push((began.elapsed().as_secs_f64(), name));
            done
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    if let Some(cluster) = cluster {
        cluster.clean();
        say_longest(std::mem::take(&mut *took.lock().unwrap_or_else(PoisonError::into_inner)));
    }
    conclusion.exit_code()
}

fn say_running(running: &Mutex<Vec<(Instant, &str)>>) {
    loop {
        std::thread::sleep(LONG / 4);
        for (began, name) in running.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if began.elapsed() > LONG {
                println!("running for {} s: {name}", began.elapsed().as_secs());
            }
        }
    }
}

/// Where the time went.
fn say_longest(mut took: Vec<(f64, &str)>) {
    took.sort_by(|a, b| b.0.total_cmp(&a.0));
    if !took.is_empty() {
        println!("\nthe longest:");
    }
    for (seconds, name) in took.iter().take(LONGEST_SAID) {
        println!("{seconds:6.1} s  {name}");
    }
}
