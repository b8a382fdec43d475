//! Foreign programs: one table of all that the build, the tests, the demo and the benches use; where they are, which package
//! holds them, and having them installed.
//!
//! Called by `xtask` first of all, and through the kit by tests and the demo. It has no dependency, so that `cargo xtask` on a fresh
//! machine is there in seconds. It must never start a service, never ask a question, and never install anything unless it runs
//! as root.

mod install;
mod table;

use std::fmt;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

pub use install::install;
pub use table::{For, PROGRAMS, Program};

/// Folders outside of an ordinary PATH; `*` is any one name.
const FOLDERS: &[&str] =
    &["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin", "/usr/lib/postgresql/*/bin"];

/// What is not there, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The programs.
    pub programs: Vec<String>,
    /// The exact line to type.
    pub line: String,
    /// What `apt-get` said, where it was tried.
    pub said: Option<String>,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} not found; type: {}", self.programs.join(", "), self.line)?;
        match &self.said {
            Some(said) => write!(f, " (apt-get said: {said})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Missing {}

/// Where a program is: in PATH, or where the system's packages put it. What is no program (a Python module) is found by its name in the
/// table.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    if let Some(file) = PROGRAMS.iter().find(|known| known.name == program).and_then(|known| known.file) {
        return Some(PathBuf::from(file)).filter(|file| file.exists());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(FOLDERS.iter().flat_map(|folder| matching(folder)));
    folders.map(|folder| folder.join(program)).find(|file| is_program(file))
}

/// The same, for who cannot go on without.
///
/// # Errors
/// With the line to type.
pub fn need(program: &str) -> Result<PathBuf, Missing> {
    find(program).ok_or_else(|| Missing::of(&[program]))
}

/// The package of Debian 12 and Ubuntu 24.04 that holds a program.
#[must_use]
pub fn package(program: &str) -> &str {
    PROGRAMS.iter().find(|known| known.name == program).map_or(program, |known| known.package)
}

/// All that `who` needs.
pub fn needed_by(who: For) -> impl Iterator<Item = &'static Program> {
    PROGRAMS.iter().filter(move |program| program.who.contains(&who))
}

/// Those of these that are not there.
///
/// # Errors
/// What is missing, with the line to type.
pub fn there(programs: &[&str]) -> Result<(), Missing> {
    lacking(programs, |program| find(program).is_some())
}

/// Sees to it that all of these are there: installs what is missing where that is allowed (root, with `apt-get`).
///
/// # Errors
/// What is still missing, with the line to type.
pub fn ensure(programs: &[&str]) -> Result<(), Missing> {
    let Err(missing) = there(programs) else { return Ok(()) };
    if !is_root() || find("apt-get").is_none() {
        return Err(missing);
    }
    let said = install(&packages(&missing.programs));
    there(programs).map_err(|missing| Missing { said: said.err(), ..missing })
}

fn lacking(programs: &[&str], there: impl Fn(&str) -> bool) -> Result<(), Missing> {
    let lacking: Vec<&str> = programs.iter().copied().filter(|program| !there(program)).collect();
    if lacking.is_empty() { Ok(()) } else { Err(Missing::of(&lacking)) }
}

impl Missing {
    fn of(programs: &[&str]) -> Self {
        Self {
            line: line(&packages(programs)),
            programs: programs.iter().map(ToString::to_string).collect(),
            said: None,
        }
    }
}

/// What to type to get these packages.
#[must_use]
pub fn line(packages: &[&str]) -> String {
    format!("sudo apt-get install -y --no-install-recommends {}", packages.join(" "))
}

/// The packages of these programs, each once.
pub fn packages<S: AsRef<str>>(programs: &[S]) -> Vec<&str> {
    let mut packages: Vec<&str> = programs.iter().map(|program| package(program.as_ref())).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// Whether we may install and become somebody else.
#[must_use]
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}

/// The folders that a pattern names, the last by name first: the newest version.
fn matching(pattern: &str) -> Vec<PathBuf> {
    let Some((before, after)) = pattern.split_once("/*/") else { return vec![pattern.into()] };
    let Ok(entries) = std::fs::read_dir(before) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path().join(after)).collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    found
}

fn is_program(file: &Path) -> bool {
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_the_line_to_type() {
        let there = |program: &str| program == "nginx";
        let missing = lacking(&["nginx", "redis-cli", "redis-benchmark", "ip"], there).unwrap_err();
        assert_eq!(missing.programs, ["redis-cli", "redis-benchmark", "ip"]);
        assert_eq!(missing.line, "sudo apt-get install -y --no-install-recommends iproute2 redis-tools");
        assert_eq!(lacking(&["nginx"], there), Ok(()));
    }

    #[test]
    fn what_every_system_has_is_found_and_needs_nothing() {
        assert!(find("sh").is_some_and(|file| file.is_absolute()));
        assert_eq!(find("no-such-program-anywhere"), None);
        assert_eq!(ensure(&["sh", "cat"]), Ok(()));
        assert_eq!(need("no-such-program").unwrap_err().programs, ["no-such-program"]);
    }

    #[test]
    fn a_pattern_finds_the_newest_and_no_pattern_itself() {
        assert_eq!(matching("/usr/bin"), [PathBuf::from("/usr/bin")]);
        assert!(matching("/no/such/folder/*/bin").is_empty());
        let found = matching("/proc/self/task/*/ns");
        assert!(found.iter().any(|folder| folder.is_dir()));
    }

    #[test]
    fn each_program_stands_in_the_table_once() {
        let mut names: Vec<_> = PROGRAMS.iter().map(|program| program.name).collect();
        names.sort_unstable();
        let before = names.len();
        names.dedup();
        assert_eq!(before, names.len());
        assert!(PROGRAMS.iter().all(|program| program.file.is_none_or(|file| file.starts_with('/'))));
        assert_eq!(packages(&["redis-cli", "redis-benchmark"]), ["redis-tools"]);
        assert_eq!(packages(&["pkill", "sysctl"]), ["procps"]);
    }

    #[test]
    fn whoever_has_pip_bring_envoy_or_go_gets_python_and_pip() {
        for who in [For::Test, For::Bench, For::Cluster] {
            for name in ["python3", "python3-pip"] {
                assert!(needed_by(who).any(|program| program.name == name), "{name} for {who:?}");
            }
        }
    }
}
