//! The page for operators (docs/operations.md), as it stands, on a real cluster; and Helm's road, which the page tells of too. Before them, the
//! scripts that the cluster itself is started and stopped by.
//!
//! A program of its own: it installs and removes the mesh that the other promises stand on. Run by `cargo xtask test`, and by
//! `cargo xtask cluster test`.

mod kit;
mod page;
mod roads;

use std::process::ExitCode;

fn main() -> ExitCode {
    countersign_cluster_tests::run(&[kit::PROMISES, roads::PROMISES].concat())
}
