//! The judges, where `cargo xtask test` and `cargo xtask cluster up` build them: target/cluster/bin.
//!
//! It must never build or fetch anything itself, nor hide that a judge is missing.

use std::path::{Path, PathBuf};

/// The real Helm, or `None` with a word on why not.
pub fn helm() -> Option<PathBuf> {
    there("helm")
}

/// kubeconform, or `None` with a word on why not.
pub fn kubeconform() -> Option<PathBuf> {
    there("kubeconform")
}

/// The OpenAPI description of the very Kubernetes that the test cluster runs: it comes with its source.
pub fn openapi() -> Option<PathBuf> {
    there("openapi.json")
}

fn there(name: &str) -> Option<PathBuf> {
    // .../target/debug/countersign
    let target = Path::new(env!("CARGO_BIN_EXE_countersign")).ancestors().nth(2).unwrap();
    let file = target.join("cluster/bin").join(name);
    if file.is_file() {
        return Some(file);
    }
    println!("NOT RUN: there is no {}; `cargo xtask test` and `cargo xtask cluster up` build it", file.display());
    None
}
