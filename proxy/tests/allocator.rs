//! The allocator in the sidecar's binary has the settings of .cargo/config.toml. They count only while it is built, and in a checkout: a
//! build that lost them would work, and hold three times the memory.

#![cfg(feature = "jemalloc")]
#![allow(clippy::unwrap_used)]

use std::process::Command;

/// The reasons are in docs/decisions/0008-generated-code-and-allocator.md.
const SETTINGS: [&str; 4] =
    ["opt.background_thread: true", "opt.dirty_decay_ms: 1000", "opt.muzzy_decay_ms: 0", "opt.narenas: 2"];

#[test]
fn the_sidecars_allocator_has_the_settings_that_it_was_built_with() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_countersign-proxy"));
    // It says all it knows of itself when the process ends.
    let done = command.arg("version").env("_RJEM_MALLOC_CONF", "stats_print:true").output().unwrap();
    assert!(done.status.success(), "{}", done.status);
    let told = String::from_utf8_lossy(&done.stderr);
    for setting in SETTINGS {
        // Behind some stands in brackets what is in force now.
        let stands = told.lines().any(|line| line.trim().split(" (").next() == Some(setting));
        assert!(stands, "no {setting}:\n{told}");
    }
}
