//! `countersign demo exec POD COMMAND`: runs a command in a pod of a demo that was left running with `--keep`.
//!
//! Called by `demo`, outside of the demo's namespaces. It finds the demo by its process, and never starts anything of its own.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Names under /run/netns inside: the first net of the process, and the pod.
const PREFIX: &str = "n0-";

/// Becomes the command; returns only if that cannot be done.
pub fn run(pod: &str, command: &[OsString]) -> Result<std::convert::Infallible> {
    let process = find()?;
    let root = PathBuf::from(format!("/proc/{process}/root"));
    let netns = root.join("run/netns").join(format!("{PREFIX}{pod}"));
    if !netns.exists() {
        bail!("the demo has no pod {pod:?}; it has {}", pods(&root).join(", "));
    }
    let mut nsenter = Command::new("nsenter");
    nsenter.args(["--target", &process.to_string(), "--mount", "--pid"]);
    if !is_root() {
        nsenter.args(["--user", "--preserve-credentials"]);
    }
    nsenter.arg(format!("--net={}", netns.display())).arg("--").args(command);
    Err(nsenter.exec()).context("nsenter (Debian and Ubuntu: apt-get install util-linux)")
}

/// The process of a kept demo that runs inside its namespaces: our program, with the kit's mark in its environment.
fn find() -> Result<u32> {
    let own = own_program().context("own program")?;
    let entries = std::fs::read_dir("/proc").context("/proc")?.flatten();
    let mut found = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).filter(|process| {
        let proc = PathBuf::from(format!("/proc/{process}"));
        let read = |name: &str| std::fs::read(proc.join(name)).unwrap_or_default();
        let has = |bytes: &[u8], word: &[u8]| bytes.split(|byte| *byte == 0).any(|part| part.starts_with(word));
        std::fs::read_link(proc.join("exe")).is_ok_and(|exe| present(exe) == own)
            && has(&read("cmdline"), b"--keep")
            && has(&read("environ"), b"COUNTERSIGN_KIT_INSIDE=")
    });
    found.next().context("no demo is running here; start one with: countersign demo --keep")
}

/// This program's own path: absolute, since it is also typed inside the pods.
pub fn own_program() -> std::io::Result<PathBuf> {
    std::env::current_exe().map(present)
}

/// The path of a program whose file may have been replaced while it runs, as by a new build: the kernel then adds a word to it.
fn present(program: PathBuf) -> PathBuf {
    match program.to_str().and_then(|path| path.strip_suffix(" (deleted)")) {
        Some(path) if !program.exists() => PathBuf::from(path),
        _ => program,
    }
}

fn pods(root: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(root.join("run/netns")).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| Some(entry.file_name().to_str()?.strip_prefix(PREFIX)?.to_owned()));
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_was_built_anew_is_still_the_same_program() {
        let built = |path: &str| present(PathBuf::from(path));
        assert_eq!(built("/nowhere/target/countersign (deleted)"), PathBuf::from("/nowhere/target/countersign"));
        assert_eq!(built("/nowhere/target/countersign"), PathBuf::from("/nowhere/target/countersign"));
    }
}
