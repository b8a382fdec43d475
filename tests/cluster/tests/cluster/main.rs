//! Promises on a real Kubernetes cluster.
//!
//! Run by `cargo xtask cluster test` and by `cargo xtask test`.

mod asked;
mod bed;
mod guard;
mod health;
mod install;
mod life;
mod mesh;
mod outage;
mod plane;
mod rotation;
mod rules;
mod talk;
mod tokens;

use std::process::ExitCode;

use countersign_cluster_tests::Promise;

fn main() -> ExitCode {
    let promises: Vec<Promise> = [
        bed::PROMISES,
        plane::PROMISES,
        asked::PROMISES,
        talk::PROMISES,
        life::PROMISES,
        health::PROMISES,
        guard::PROMISES,
        tokens::PROMISES,
        rules::PROMISES,
        outage::PROMISES,
        rotation::PROMISES,
        install::PROMISES,
    ]
    .concat();
    countersign_cluster_tests::run(&promises)
}
