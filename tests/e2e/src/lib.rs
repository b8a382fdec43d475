//! How end-to-end tests are run: inside private namespaces, all tests of a program over one world that they share.
//!
//! Called by the `main` of each test program in `tests/`. Nothing is skipped silently: where the namespaces cannot be entered the
//! program fails and says why; a test whose foreign program is not installed is told as ignored, with the line to type.

use std::process::ExitCode;
use std::sync::OnceLock;

use countersign_kit::Inside;
use countersign_kit::programs::Missing;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// One promise: its name, and what shows it.
pub type Promise<W> = (&'static str, fn(&W) -> anyhow::Result<()>);

/// Runs `promises` as `cargo test` would. The world is made for the first of them, by `make`, and ended by `stop`.
#[must_use]
pub fn run<W: Send + Sync + 'static>(
    promises: &[Promise<W>],
    make: fn(Inside) -> anyhow::Result<W>,
    stop: fn(&W),
) -> ExitCode {
    let arguments = Arguments::from_args();
    let inside = if arguments.list { None } else { Some(countersign_kit::enter()) };
    let inside = match inside.transpose() {
        Ok(inside) => inside,
        Err(error) => {
            eprintln!("the end-to-end tests cannot run here: {error}");
            return ExitCode::from(2);
        }
    };
    // Leaked once a process: tests run on threads that want it for as long as the process lives.
    let world: &'static OnceLock<Result<W, String>> = Box::leak(Box::default());
    let trials = promises.iter().map(|(name, promise)| {
        let promise = *promise;
        Trial::ignorable_test(*name, move || {
            let world = world.get_or_init(|| match inside {
                Some(inside) => make(inside).map_err(|e| format!("{e:#}")),
                None => Err("not inside".into()),
            });
            let world = world.as_ref().map_err(|e| Failed::from(e.clone()))?;
            promise(world).map(|()| Completion::Completed).or_else(not_run)
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    if let Some(Ok(world)) = world.get() {
        stop(world);
    }
    conclusion.exit_code()
}

/// A test whose program is not installed did not run; any other error is a failure.
fn not_run(error: anyhow::Error) -> Result<Completion, Failed> {
    match error.downcast_ref::<Missing>() {
        Some(missing) => Ok(Completion::Ignored { reason: Some(missing.to_string()) }),
        None => Err(format!("{error:#}").into()),
    }
}
