//! The crates from outside: licences, sources, names we do without, and versions below which an advisory is known.
//!
//! Called by `lint`. It works from Cargo.lock alone, so it knows no newer advisory than its own table (docs/decisions).

use serde_json::Value;

use super::Found;

/// Licences that need nothing of us but their text.
const LICENCES: &[&str] = &[
    "MIT",
    "MIT-0",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "Unicode-3.0",
    "Unlicense",
    "CC0-1.0",
];

/// Crates that must not come in, by any road.
const BANNED: &[(&str, &str)] = &[
    ("openssl-sys", "a second TLS stack"),
    ("native-tls", "a second TLS stack"),
    ("serde_yaml", "archived; serde-saphyr is ours"),
    ("serde_yml", "RUSTSEC-2025-0068"),
    ("rustls-pemfile", "RUSTSEC-2025-0134; rustls-pki-types reads PEM"),
    ("async-std", "discontinued"),
];

/// The lowest version without a known advisory.
const FLOORS: &[(&str, [u64; 3], &str)] = &[
    ("h2", [0, 4, 16], "RUSTSEC-2026-0258"),
    ("rustls-webpki", [0, 103, 13], "RUSTSEC-2026-0049, 0098, 0099, 0104"),
    ("aws-lc-sys", [0, 39, 0], "RUSTSEC-2026-0044 to 0048"),
    ("tracing-subscriber", [0, 3, 20], "RUSTSEC-2025-0055"),
    ("prometheus-client", [0, 25, 2], "labels were not escaped"),
    ("anyhow", [1, 0, 103], "RUSTSEC-2026-0190"),
];

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Checks every crate of the dependency graph.
pub fn check(metadata: &Value, found: &mut Found) {
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let foreign: Vec<_> = packages.iter().filter(|package| !package["source"].is_null()).collect();
    for package in &foreign {
        found.problems.extend(problem(package));
    }
    found.checked.push(format!("licence, source and version of {} crates", foreign.len()));
}

fn problem(package: &Value) -> Option<String> {
    let text = |key: &str| package[key].as_str().unwrap_or_default();
    let (name, version, licence) = (text("name"), text("version"), text("license"));
    if text("source") != REGISTRY {
        return Some(format!("{name} {version}: comes from {}", text("source")));
    }
    if let Some((_, why)) = BANNED.iter().find(|(banned, _)| *banned == name) {
        return Some(format!("{name} {version}: {why}"));
    }
    if let Some((_, _, why)) = FLOORS.iter().find(|(floor, lowest, _)| *floor == name && numbers(version) < *lowest) {
        return Some(format!("{name} {version}: {why}"));
    }
    (!permitted(licence)).then(|| format!("{name} {version}: licence {licence:?} is not in our list"))
}

fn numbers(version: &str) -> [u64; 3] {
    let mut parts = version.split(['.', '-', '+']).map(|part| part.parse().unwrap_or(0));
    std::array::from_fn(|_| parts.next().unwrap_or(0))
}

/// Whether an SPDX expression can be met with licences of our list. `/` is the old way to write OR.
fn permitted(expression: &str) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    any(&mut words) && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any(words: &mut Words) -> bool {
    let mut met = all(words);
    while words.next_if_eq(&"OR").is_some() {
        met |= all(words);
    }
    met
}

fn all(words: &mut Words) -> bool {
    let mut met = single(words);
    while words.next_if_eq(&"AND").is_some() {
        met &= single(words);
    }
    met
}

fn single(words: &mut Words) -> bool {
    match words.next() {
        Some("(") => any(words) && words.next() == Some(")"),
        Some(name) => {
            let exception = words.next_if_eq(&"WITH").and_then(|_| words.next());
            LICENCES.contains(&name) && exception.is_none_or(|name| name == "LLVM-exception")
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_met_only_by_licences_of_the_list() {
        assert!(permitted("MIT OR Apache-2.0"));
        assert!(permitted("MIT/Apache-2.0"));
        assert!(permitted("GPL-3.0 OR MIT"));
        assert!(permitted("(MIT OR Apache-2.0) AND Unicode-3.0"));
        assert!(permitted("Apache-2.0 WITH LLVM-exception OR MIT"));
        assert!(!permitted("MIT AND GPL-3.0"));
        assert!(!permitted("(MIT OR Apache-2.0) AND LGPL-2.1"));
        assert!(!permitted(""));
        assert!(!permitted("MIT Apache-2.0"));
    }

    #[test]
    fn a_version_below_its_floor_a_banned_name_and_a_foreign_source_are_problems() {
        let package = |name: &str, version: &str, source: &str| serde_json::json!({ "name": name, "version": version, "source": source, "license": "MIT" });
        assert!(problem(&package("h2", "0.4.15", REGISTRY)).is_some());
        assert!(problem(&package("h2", "0.4.20", REGISTRY)).is_none());
        assert!(problem(&package("serde_yml", "1.0.0", REGISTRY)).is_some());
        assert!(problem(&package("fine", "1.0.0", "git+https://example.com/fine")).is_some());
    }
}
