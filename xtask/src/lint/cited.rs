//! What the pages cite must be there: tests and other names of code by their spelling, files by their path, links by their target.
//!
//! Called by `lint`. A page that names the test which shows a claim is worth no more than that name: a test that was renamed or
//! removed must be missed here. Only what is quoted as code, and links inside of the house, are looked at.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};

use super::Found;

/// So many underscores make a name that no ordinary word is taken for.
const UNDERSCORES: usize = 3;
/// Endings of what is taken for a file of ours, if there is a folder before it or not.
const ENDINGS: &[&str] = &[".rs", ".md", ".toml", ".proto", ".py"];
/// What our registries put before the names of their metrics.
const METRICS: &[&str] = &["countersign_", "countersign_ca_", "countersign_controller_", "countersign_injector_"];

/// Everything that may be cited.
struct House {
    /// Every path, folders with a slash at their end, relative to the root.
    paths: BTreeSet<String>,
    /// All Rust sources, one after the other.
    sources: String,
}

/// Checks every page.
pub fn check(root: &Path, found: &mut Found) -> Result<()> {
    let mut house = House { paths: BTreeSet::new(), sources: String::new() };
    let mut pages = Vec::new();
    walk(root, root, &mut house, &mut pages)?;
    let mut count = 0;
    for (path, text) in &pages {
        count += check_page(path, text, &house, found);
    }
    found.checked.push(format!("{count} names, files and links that {} pages cite", pages.len()));
    Ok(())
}

fn walk(root: &Path, dir: &Path, house: &mut House, pages: &mut Vec<(String, String)>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?.flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let relative = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && name != ".git" {
                house.paths.insert(format!("{relative}/"));
                walk(root, &path, house, pages)?;
            }
            continue;
        }
        let read = || std::fs::read_to_string(&path).with_context(|| format!("reading {relative}"));
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("rs") => house.sources.push_str(&read()?),
            Some("md") => pages.push((relative.clone(), read()?)),
            _ => {}
        }
        house.paths.insert(relative);
    }
    Ok(())
}

fn check_page(page: &str, text: &str, house: &House, found: &mut Found) -> usize {
    let mut count = 0;
    let mut problem = |line: usize, what: String| found.problems.push(format!("{page}:{}: {what}", line + 1));
    let mut fenced = false;
    for (number, line) in text.lines().enumerate() {
        fenced ^= line.starts_with("```");
        if fenced {
            continue;
        }
        for cited in line.split('`').skip(1).step_by(2) {
            if is_name(cited) {
                count += 1;
                if !house.knows(cited) {
                    problem(number, format!("`{cited}` is in no source"));
                }
            } else if is_path(cited) {
                count += 1;
                if !house.has(cited) {
                    problem(number, format!("there is no `{cited}`"));
                }
            }
        }
        for target in links(line) {
            count += 1;
            if !leads_somewhere(page, target, text, house) {
                problem(number, format!("the link to {target} leads nowhere"));
            }
        }
    }
    count
}

impl House {
    /// Whether the name, or the metric without what the registry adds to its name, stands in some source.
    fn knows(&self, name: &str) -> bool {
        let bare = name.strip_suffix("_total").unwrap_or(name);
        self.says(name) || METRICS.iter().any(|of| bare.strip_prefix(of).is_some_and(|bare| self.says(bare)))
    }

    /// Whether the name stands in some source as a whole.
    fn says(&self, name: &str) -> bool {
        let inner = |c: char| c.is_ascii_alphanumeric() || c == '_';
        self.sources
            .match_indices(name)
            .any(|(at, _)| !self.sources[..at].ends_with(inner) && !self.sources[at + name.len()..].starts_with(inner))
    }

    /// Whether a path is this, or ends with this.
    fn has(&self, cited: &str) -> bool {
        self.paths
            .iter()
            .any(|path| path.strip_suffix(cited).is_some_and(|before| before.is_empty() || before.ends_with('/')))
    }
}

fn is_name(cited: &str) -> bool {
    cited.matches('_').count() >= UNDERSCORES
        && cited.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        && !cited.starts_with('_')
        && !cited.ends_with('_')
}

fn is_path(cited: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'_' | b'-');
    let ending = cited.ends_with('/') || ENDINGS.iter().any(|ending| cited.ends_with(ending));
    ending && !cited.starts_with('/') && cited.len() > 3 && cited.bytes().all(plain)
}

/// Targets of the line's links.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split(')').next())
}

fn leads_somewhere(page: &str, target: &str, text: &str, house: &House) -> bool {
    if target.starts_with("https://") {
        return true;
    }
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    if file.is_empty() {
        return text.lines().filter(|line| line.starts_with('#')).any(|line| slug(line) == anchor);
    }
    let folder = Path::new(page).parent().unwrap_or(Path::new(""));
    let path = plain(&folder.join(file)).to_string_lossy().into_owned();
    house.paths.contains(&path) || house.paths.contains(&format!("{path}/"))
}

/// The path without `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(plain.pop()),
            Component::Normal(name) => plain.push(name),
            _ => {}
        }
    }
    plain
}

/// The anchor that a heading gets.
fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(page: &str, text: &str) -> Vec<String> {
        let paths = ["docs/", "docs/a.md", "proxy/src/wire/", "proxy/src/wire/link.rs", "README.md"];
        let house = House {
            paths: paths.iter().map(ToString::to_string).collect(),
            sources:
                "register(\"source_bad_file\")\nfn a_silent_client_is_cut() {}\n(\"two_uri_sans_are_refused\", two)"
                    .to_owned(),
        };
        let mut found = Found::default();
        check_page(page, text, &house, &mut found);
        found.problems
    }

    #[test]
    fn a_test_that_is_not_there_is_a_problem() {
        assert!(problems("docs/a.md", "`a_silent_client_is_cut`, `two_uri_sans_are_refused`, `a_word`").is_empty());
        let said = problems("docs/a.md", "\n| x | `a_silent_client_is` |");
        assert_eq!(said, ["docs/a.md:2: `a_silent_client_is` is in no source"]);
    }

    #[test]
    fn a_metric_is_found_by_the_name_that_is_registered() {
        assert!(problems("docs/a.md", "`countersign_controller_source_bad_file`").is_empty());
        assert_eq!(problems("docs/a.md", "`countersign_controller_source_good_file`").len(), 1);
    }

    #[test]
    fn a_file_that_is_not_there_is_a_problem() {
        assert!(
            problems("README.md", "`wire/link.rs`, `link.rs`, `proxy/src/wire/`, `/livez`, `rules.yaml`").is_empty()
        );
        assert_eq!(problems("README.md", "`ire/link.rs`"), ["README.md:1: there is no `ire/link.rs`"]);
        assert_eq!(problems("README.md", "`proxy/wire/`").len(), 1);
    }

    #[test]
    fn a_link_that_leads_nowhere_is_a_problem() {
        assert!(
            problems("docs/a.md", "# One's own `x`\n[b](../README.md) [c](#ones-own-x) [d](https://x.example)")
                .is_empty()
        );
        let said = problems("docs/a.md", "# One\n[b](b.md) [c](#two)");
        assert_eq!(said.len(), 2, "{said:?}");
    }
}
