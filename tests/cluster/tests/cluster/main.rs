//! Promises on a real Kubernetes cluster.
//!
//! Run by `cargo xtask cluster test` and by `cargo xtask test`.

mod bed;

use std::process::ExitCode;

use countersign_cluster_tests::Promise;

fn main() -> ExitCode {
    let promises: Vec<Promise> = [bed::PROMISES].concat();
    countersign_cluster_tests::run(&promises)
}
