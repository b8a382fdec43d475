//! Foreign programs: where they are, which package holds them, and having them installed.
//!
//! Called by tests, the demo and `xtask` before they enter their namespaces (there is no network inside). It must never
//! start a service, and never install anything unless it runs as root.

use std::fmt;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::enter::entered;

/// Packages of Debian 12 and Ubuntu 24.04, where they are not called like the program.
const PACKAGES: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("unshare", "util-linux"),
    ("redis-benchmark", "redis-tools"),
    ("redis-cli", "redis-tools"),
    ("mariadb", "mariadb-client-core"),
    ("mariadbd", "mariadb-server-core"),
    ("mariadb-install-db", "mariadb-server-core"),
    ("mysql", "mariadb-client-core"),
    ("psql", "postgresql-client"),
    ("postgres", "postgresql"),
    ("initdb", "postgresql"),
    ("smtpd", "opensmtpd"),
];

/// Folders outside of an ordinary PATH; `*` is any one name.
const FOLDERS: &[&str] =
    &["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin", "/usr/lib/postgresql/*/bin"];

/// Packages that hold no program, and the file by which they are known to be there.
const MODULES: &[(&str, &str)] = &[
    ("python3-aiosmtpd", "/usr/lib/python3/dist-packages/aiosmtpd/__init__.py"),
    ("python3-grpcio", "/usr/lib/python3/dist-packages/grpc/__init__.py"),
    ("python3-websockets", "/usr/lib/python3/dist-packages/websockets/__init__.py"),
];

/// Installs the packages named as arguments. Services must not start: policy-rc.d says so to every maintainer script. It is put there by
/// this shell and taken away by it, however `apt-get` ends and even if whoever started us is gone.
const INSTALL: &str = r#"
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    printf '#!/bin/sh\n# Put here by the tests of Countersign while they install packages; safe to remove.\nexit 101\n' > $policy
    chmod 755 $policy
fi
export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
install() { apt-get -o DPkg::Lock::Timeout=120 -qq install -y --no-install-recommends "$@"; }
install "$@" || { apt-get -o DPkg::Lock::Timeout=120 -qq update && install "$@"; }
"#;

/// What is not there, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
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

/// Where a program is: in PATH, or where the system's packages put it. (A Python module is found by its package's name.)
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    if let Some((_, file)) = MODULES.iter().find(|(package, _)| *package == program) {
        return Some(PathBuf::from(file)).filter(|file| file.is_file());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(FOLDERS.iter().flat_map(|folder| matching(folder)));
    folders.map(|folder| folder.join(program)).find(|file| is_program(file))
}

/// The package that holds a program.
#[must_use]
pub fn package(program: &str) -> &str {
    PACKAGES.iter().find(|(known, _)| *known == program).map_or(program, |(_, package)| package)
}

/// Sees to it that all of these are there: installs what is missing where that is allowed (root, with `apt-get`, and not yet
/// inside: there is no network).
///
/// # Errors
/// What is still missing, with the line to type.
pub fn ensure(programs: &[&str]) -> Result<(), Missing> {
    let Some(missing) = missing(programs, |program| find(program).is_some()) else { return Ok(()) };
    if entered() || !nix::unistd::geteuid().is_root() || find("apt-get").is_none() {
        return Err(missing);
    }
    let packages = missing.programs.iter().map(|program| package(program));
    let done = Command::new("sh").args(["-c", INSTALL, "sh"]).args(packages).stdin(Stdio::null()).output();
    let said = match done {
        Ok(done) => String::from_utf8_lossy(&done.stderr).trim().replace('\n', "; "),
        Err(error) => error.to_string(),
    };
    match self::missing(programs, |program| find(program).is_some()) {
        None => Ok(()),
        Some(missing) => Err(Missing { said: Some(said), ..missing }),
    }
}

fn missing(programs: &[&str], there: impl Fn(&str) -> bool) -> Option<Missing> {
    let programs: Vec<String> = programs.iter().filter(|program| !there(program)).map(ToString::to_string).collect();
    let mut packages: Vec<&str> = programs.iter().map(|program| package(program)).collect();
    packages.sort_unstable();
    packages.dedup();
    let line = format!("sudo apt-get install -y --no-install-recommends {}", packages.join(" "));
    (!programs.is_empty()).then_some(Missing { programs, line, said: None })
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
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_the_line_to_type() {
        let there = |program: &str| program == "nginx";
        let missing = missing(&["nginx", "redis-cli", "redis-benchmark", "ip"], there).unwrap();
        assert_eq!(missing.programs, ["redis-cli", "redis-benchmark", "ip"]);
        assert_eq!(missing.line, "sudo apt-get install -y --no-install-recommends iproute2 redis-tools");
        assert!(super::missing(&["nginx"], there).is_none());
    }

    #[test]
    fn what_every_system_has_is_found_and_needs_nothing() {
        assert!(find("sh").is_some_and(|file| file.is_absolute()));
        assert_eq!(find("no-such-program-anywhere"), None);
        assert_eq!(ensure(&["sh", "cat"]), Ok(()));
    }
}
