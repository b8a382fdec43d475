//! What every source file must be, and which crate may be named where.
//!
//! Called by `lint`. It reads lines, not syntax: a rule here must be one that a line can break.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Found;

/// A name that may be written only under certain paths.
struct Named {
    name: &'static str,
    only: &'static [&'static str],
    /// Whether tests may name it anywhere.
    tests: bool,
}

const NAMED: &[Named] = &[
    Named {
        name: "rustls::",
        only: &["credentials/src/", "proxy/src/tls", "proxy/src/wire", "injector/src/tls", "tests/", "benches/"],
        tests: true,
    },
    Named {
        name: "tokio_rustls::",
        only: &["credentials/src/", "proxy/src/tls", "proxy/src/wire", "injector/src/tls", "tests/"],
        tests: true,
    },
    Named {
        name: "rcgen::",
        only: &["ca/src/", "credentials/src/", "injector/src/certificate", "tests/", "benches/", "fuzz/"],
        tests: true,
    },
    Named {
        name: "kube::",
        only: &["injector/src/kubernetes", "controller/src/source/kubernetes", "ca/src/kubernetes", "cli/src/cluster"],
        tests: true,
    },
    Named { name: "nix::", only: &["tests/"], tests: false },
];

/// Words of environment and clock: never in a pure leaf.
const IMPURE: &[&str] = &["std::env", "SystemTime::now", "Instant::now", "std::net::Tcp", "std::fs", "tokio::"];
const LEAVES: &[&str] = &["identity/src/", "policy/src/"];

/// Papers that a reader of this repository does not have: what they say must stand here.
const ABSENT: &[&str] = &["DESIGN section", "DESIGN,", "DESIGN.md", "SPIFFE.md", "STYLE.md", "CRATES.md", "PEERS.md"];

/// Our own tables spell the words they look for.
const SELF: &str = "xtask/src/lint";
const LONG: usize = 500;

/// Checks every Rust file of the workspace.
pub fn check(root: &Path, found: &mut Found) -> Result<()> {
    let mut files = Vec::new();
    walk(root, &mut files)?;
    files.sort();
    for file in &files {
        let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        let path = file.strip_prefix(root).unwrap_or(file).to_string_lossy().into_owned();
        check_file(&path, &text, found);
    }
    found.checked.push(format!("heads, names and length of {} files", files.len()));
    Ok(())
}

/// All Rust files below a folder.
pub(super) fn walk(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let hidden = name.to_string_lossy().starts_with('.');
        if path.is_dir() && !hidden && name != "target" {
            walk(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn check_file(path: &str, text: &str, found: &mut Found) {
    if !text.trim_start().starts_with("//!") && !is_split_off(path) {
        found.problems.push(format!("{path}: does not begin with //! (purpose, who calls it, what it must never do)"));
    }
    let length = text.lines().count();
    if length > LONG {
        found.notes.push(format!("{path}: {length} lines; over {LONG} there must be a reason"));
    }
    if path.starts_with(SELF) {
        return;
    }
    let mut in_tests = is_test_file(path);
    for (number, line) in text.lines().enumerate() {
        in_tests |= line.trim_start().starts_with("#[cfg(test)]");
        let code = line.split("//").next().unwrap_or_default();
        for problem in check_line(path, code, in_tests) {
            found.problems.push(format!("{path}:{}: {problem}", number + 1));
        }
        if let Some(paper) = ABSENT.iter().find(|paper| line.contains(**paper)) {
            found.problems.push(format!("{path}:{}: cites {paper:?}, which is not in this repository", number + 1));
        }
    }
}

/// The tests of one module, split off because they are long: the module's own head is theirs.
fn is_split_off(path: &str) -> bool {
    path.contains("/src/") && (path.ends_with("/tests.rs") || path.ends_with("_tests.rs"))
}

/// Files that are built for tests only, by their names. (In others tests stand last, so what follows the first
/// `#[cfg(test)]` is test code.)
pub(super) fn is_test_file(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    name == "testing.rs" || name.ends_with("tests.rs") || path.contains("/tests/") || path.starts_with("tests/")
}

fn check_line(path: &str, code: &str, in_tests: bool) -> Vec<String> {
    let mut problems = Vec::new();
    if ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "allow(unsafe_code)"]
        .iter()
        .any(|word| has(code, word))
    {
        problems.push("unsafe code".to_owned());
    }
    for named in NAMED {
        let allowed = named.only.iter().any(|prefix| path.starts_with(prefix)) || (in_tests && named.tests);
        if has(code, named.name) && !allowed {
            problems.push(format!("{} may be named only in {}", named.name, named.only.join(", ")));
        }
    }
    if !in_tests && LEAVES.iter().any(|leaf| path.starts_with(leaf)) {
        let impure = IMPURE.iter().filter(|word| has(code, word));
        problems.extend(impure.map(|word| format!("{word} in a pure leaf")));
    }
    problems
}

/// Whether `code` holds `word` as a word of its own: `rustls::` is not in `tokio_rustls::`.
fn has(code: &str, word: &str) -> bool {
    let part_of_a_word = |at: usize| code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
    code.match_indices(word).any(|(at, _)| !part_of_a_word(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(path: &str, text: &str) -> usize {
        let mut found = Found::default();
        check_file(path, text, &mut found);
        found.problems.len()
    }

    #[test]
    fn a_file_without_a_head_is_a_problem() {
        assert_eq!(problems("proxy/src/a.rs", "fn a() {}\n"), 1);
        assert_eq!(problems("proxy/src/a.rs", "//! What it is for.\nfn a() {}\n"), 0);
        assert_eq!(problems("proxy/tests/a.rs", "fn a() {}\n"), 1);
        assert_eq!(problems("proxy/src/a/tests.rs", "use super::*;\n"), 0, "split off from a.rs");
    }

    #[test]
    fn rustls_outside_the_tls_rooms_is_a_problem() {
        let text = "//! x\nuse rustls::ServerConfig;\n";
        assert_eq!(problems("controller/src/a.rs", text), 1);
        assert_eq!(problems("proxy/src/relay.rs", text), 1);
        assert_eq!(problems("proxy/src/tls.rs", text), 0);
        assert_eq!(problems("controller/src/a.rs", "//! x\nuse rustls_pki_types::UnixTime;\n"), 0);
        assert_eq!(problems("controller/src/a.rs", "//! x\n// rustls::ServerConfig\n"), 0);
    }

    #[test]
    fn a_paper_that_readers_do_not_have_is_a_problem() {
        assert_eq!(problems("ca/src/a.rs", "//! As SPIFFE.md 4.1 says.\n"), 1);
        assert_eq!(problems("ca/src/a.rs", "//! As X509-SVID, section 4, says.\n"), 0);
    }

    #[test]
    fn tests_may_name_what_the_code_they_test_may_not() {
        assert_eq!(problems("proxy/src/a.rs", "//! x\n#[cfg(test)]\nmod tests { use rcgen::KeyPair; }\n"), 0);
        assert_eq!(problems("proxy/src/a/tests.rs", "//! x\nuse rcgen::KeyPair;\n"), 0);
    }

    #[test]
    fn a_clock_in_a_leaf_is_a_problem() {
        assert_eq!(problems("policy/src/a.rs", "//! x\nlet now = SystemTime::now();\n"), 1);
        assert_eq!(problems("proxy/src/a.rs", "//! x\nlet now = SystemTime::now();\n"), 0);
    }

    #[test]
    fn unsafe_code_is_a_problem_everywhere() {
        assert_eq!(problems("tests/kit/src/a.rs", "//! x\nfn f() { unsafe { g() } }\n"), 1);
    }

    #[test]
    fn a_long_file_is_named() {
        let mut found = Found::default();
        check_file("proxy/src/a.rs", &format!("//! x\n{}", "\n".repeat(LONG)), &mut found);
        assert_eq!((found.problems.len(), found.notes.len()), (0, 1));
    }
}
