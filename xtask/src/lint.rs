//! `cargo xtask lint`: what no compiler checks about the house (who imports whom, heads of files, crates, words).
//!
//! Called by people and as a step of `test`. It must never guess: each rule is a line in a table, and a problem names the
//! file and the rule.

mod advice;
mod arrows;
mod cited;
mod crates;
mod sources;
mod words;

use std::process::{Command, Stdio};

use anyhow::Result;

use crate::cargo;

/// What the checks found.
#[derive(Default)]
pub struct Found {
    /// Each fails the step.
    pub problems: Vec<String>,
    /// Worth a look; fails nothing.
    pub notes: Vec<String>,
    checked: Vec<String>,
}

impl Found {
    /// Prints all of it.
    pub fn print(&self) {
        self.checked.iter().for_each(|what| println!("   checked {what}"));
        self.notes.iter().for_each(|note| println!("   note: {note}"));
        self.problems.iter().for_each(|problem| println!("   problem: {problem}"));
    }
}

/// All checks.
pub fn check() -> Result<Found> {
    let mut found = Found::default();
    let root = cargo::root();
    let metadata = cargo::metadata()?;
    arrows::check(&metadata, &mut found);
    crates::check(&metadata, &mut found);
    sources::check(&root, &mut found)?;
    words::check(&root, &mut found)?;
    advice::check(&root, &mut found)?;
    cited::check(&root, &mut found)?;
    ci(&root, &mut found);
    let tags = Command::new("git").args(["tag", "--list", "v*"]).current_dir(&root).stderr(Stdio::null()).output();
    let tags = tags.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    found.problems.extend(played(&tags, root.join(PLAYED).is_file()));
    Ok(found)
}

/// `cargo xtask lint`: exit code 1 on any problem.
pub fn run() -> Result<u8> {
    let found = check()?;
    found.print();
    println!("{} problems, {} notes", found.problems.len(), found.notes.len());
    Ok(u8::from(!found.problems.is_empty()))
}

/// What plays the version before this one in tests, as long as none was released.
const PLAYED: &str = "tests/kit/src/versions.rs";

/// From the first release on, its own programs are to be run.
fn played(tags: &str, played: bool) -> Option<String> {
    let release = tags.lines().last().filter(|_| played)?;
    Some(format!("{PLAYED}: plays the version before this one, and {release} is released: run its programs instead"))
}

/// CI runs the command that people run, and no other.
fn ci(root: &std::path::Path, found: &mut Found) {
    let script = std::fs::read_to_string(root.join(".ci/run")).unwrap_or_default();
    let said = |line: &&str| {
        !line.is_empty() && !line.starts_with('#') && !line.starts_with("set ") && !line.starts_with("cd ")
    };
    if script.lines().map(str::trim).filter(said).ne(["cargo xtask test"]) {
        found.problems.push(".ci/run: does something other than `cargo xtask test`".into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_not_played_but_run() {
        assert_eq!(played("", true), None);
        assert_eq!(played("v0.1.0\n", false), None);
        assert!(played("v0.1.0\nv0.2.0\n", true).is_some_and(|problem| problem.contains("v0.2.0")));
    }
}
