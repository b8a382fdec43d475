//! `cargo xtask lint`: what no compiler checks about the house (who imports whom, heads of files, crates, words).
//!
//! Called by people and as a step of `test`. It must never guess: each rule is a line in a table, and a problem names the
//! file and the rule.

mod arrows;
mod cited;
mod crates;
mod sources;
mod words;

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
    cited::check(&root, &mut found)?;
    ci(&root, &mut found);
    Ok(found)
}

/// `cargo xtask lint`: exit code 1 on any problem.
pub fn run() -> Result<u8> {
    let found = check()?;
    found.print();
    println!("{} problems, {} notes", found.problems.len(), found.notes.len());
    Ok(u8::from(!found.problems.is_empty()))
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
