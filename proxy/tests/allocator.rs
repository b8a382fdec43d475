//! The allocator in the sidecar's binary has the settings of .cargo/config.toml.

#![cfg(feature = "jemalloc")]
#![allow(clippy::unwrap_used)]

use std::process::Command;

#[test]
fn the_sidecars_allocator_has_the_settings_that_it_was_built_with() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_countersign-proxy"));
    countersign_kit::allocator_has_its_settings(command.arg("version")).unwrap();
}
