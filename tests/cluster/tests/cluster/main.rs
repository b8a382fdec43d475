//! Promises on a real Kubernetes cluster.
//!
//! Run by `cargo xtask cluster test` and by `cargo xtask test`.

mod bed;
mod guard;
mod health;
mod install;
mod life;
mod mesh;
mod outage;
mod plane;
mod rules;
mod talk;

use std::process::ExitCode;

use countersign_cluster_tests::Promise;

fn main() -> ExitCode {
    let promises: Vec<Promise> = [
        bed::PROMISES,
        plane::PROMISES,
        talk::PROMISES,
        life::PROMISES,
        health::PROMISES,
        guard::PROMISES,
        rules::PROMISES,
        outage::PROMISES,
        install::PROMISES,
    ]
    .concat();
    countersign_cluster_tests::run(&promises)
}
