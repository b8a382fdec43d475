//! End-to-end promises, on real programs in private namespaces: `cargo test -p countersign-e2e [FILTER]`.
//!
//! Every test gets the same mesh (`world`) and servers on ports of its own. A test that cannot run here says why and fails: nothing
//! is skipped silently.

#![allow(clippy::unwrap_used, missing_docs)]

mod transparent;
mod world;

use std::process::ExitCode;
use std::sync::OnceLock;

use libtest_mimic::{Arguments, Failed, Trial};
use world::World;

type Test = fn(&World) -> anyhow::Result<()>;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if arguments.list {
        return libtest_mimic::run(&arguments, trials(|| unreachable!("listing runs nothing"))).exit_code();
    }
    let inside = match countersign_kit::enter() {
        Ok(inside) => inside,
        Err(error) => {
            eprintln!("the end-to-end tests cannot run here: {error}");
            return ExitCode::from(2);
        }
    };
    static WORLD: OnceLock<Result<World, String>> = OnceLock::new();
    let world = move || WORLD.get_or_init(|| World::new(inside).map_err(|e| format!("{e:#}"))).as_ref();
    let conclusion = libtest_mimic::run(&arguments, trials(world));
    if let Some(Ok(world)) = WORLD.get() {
        world.stop();
    }
    conclusion.exit_code()
}

fn trials(world: impl Fn() -> Result<&'static World, &'static String> + Copy + Send + 'static) -> Vec<Trial> {
    let all: [&[(&'static str, Test)]; 1] = [transparent::TESTS];
    let trial = |(name, test): &(&'static str, Test)| {
        let test = *test;
        Trial::test(*name, move || {
            let world = world().map_err(|e| Failed::from(e.clone()))?;
            test(world).map_err(|e| Failed::from(format!("{e:#}")))
        })
    };
    all.into_iter().flatten().map(trial).collect()
}
