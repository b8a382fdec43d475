//! Promises on a real Kubernetes cluster.
//!
//! Run by `cargo xtask cluster test` and by `cargo xtask test`.

mod bed;

use std::process::ExitCode;

fn main() -> ExitCode {
    countersign_cluster_tests::run(bed::PROMISES)
}
