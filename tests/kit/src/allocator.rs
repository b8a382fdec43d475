//! Whether a program of ours was built with the allocator's settings of .cargo/config.toml, and for the C code in it too. The settings count only
//! while it is built, and in a checkout: a build that lost them would work, and hold three times the memory.
//!
//! Called by tests of each program that has jemalloc.

use std::process::Command;

use anyhow::{Result, ensure};

/// The reasons are in docs/decisions/0008-generated-code-and-allocator.md.
const SETTINGS: [&str; 4] =
    ["opt.background_thread: true", "opt.dirty_decay_ms: 1000", "opt.muzzy_decay_ms: 0", "opt.narenas: 2"];

/// Has jemalloc tell its settings as this command, which must end well by itself, ends.
///
/// # Errors
/// The command fails, or does not tell one of them.
pub fn allocator_has_its_settings(command: &mut Command) -> Result<()> {
    // One that served Rust alone would read `_RJEM_MALLOC_CONF`, and tell nothing.
    let done = command.env("MALLOC_CONF", "stats_print:true").output()?;
    ensure!(done.status.success(), "{}", done.status);
    let told = String::from_utf8_lossy(&done.stderr);
    for setting in SETTINGS {
        // Behind some stands in brackets what is in force now.
        let stands = told.lines().any(|line| line.trim().split(" (").next() == Some(setting));
        ensure!(stands, "no {setting}:\n{told}");
    }
    Ok(())
}
