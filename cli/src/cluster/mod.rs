//! The commands that ask a cluster: `check` and `uninstall`.
//!
//! Called by `main`. `api` is how it is asked, `kinds` what there can be; what is concluded is pure, from objects as JSON.

mod api;
pub mod check;
mod kinds;
pub mod meshed;
pub mod uninstall;

use anyhow::{Context, Result};

/// Runs a command's calls.
pub fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("runtime")?.block_on(work)
}
