//! Promise 1 on real programs: `cargo test -p countersign-e2e --test e2e [FILTER]`.
//!
//! Every test gets the same mesh (`world`) and servers on ports of its own.

#![allow(clippy::unwrap_used, missing_docs)]

mod programs;
mod transparent;
#[expect(dead_code, reason = "other programs of tests use more of it")]
mod world;

use std::process::ExitCode;

use countersign_e2e::run;
use world::World;

type Test = fn(&World) -> anyhow::Result<()>;

fn main() -> ExitCode {
    if !std::env::args().any(|argument| argument == "--list") {
        // What is still missing, the tests name that need it.
        let _ = countersign_kit::programs::ensure(programs::ALL);
    }
    run(transparent::TESTS, World::new, World::stop)
}
