//! Every bounded word that a process can log or count stands in docs/errors.md, in the section of its room; and no other does. Nor is a
//! cell of a table there left empty.
//!
//! Called by `lint`. A word is a string of `a-z 0-9 _` in one of three places: in a function `label` (or `..._label`) that
//! gives `&'static str`, as an argument or field that is known to be one (`SAID_BY`), or anywhere in a file that is named as
//! `whole` below. It reads text, not syntax trees: what it cannot place is a problem, never passed over.

mod scan;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Found;
use scan::{is_word, words};

const PAGE: &str = "docs/errors.md";
/// Whose sources are read.
const ROOMS: &[&str] = &["identity", "policy", "credentials", "admin", "proxy", "ca", "controller", "injector"];

/// Which words stand where: for each file, the lines with the longest path that fits count.
struct Place {
    path: &'static str,
    /// Every word of the file, not only those in known places.
    whole: bool,
    /// Second-level headings of the page: the word is in a table under one of them, in the first column.
    under: &'static [&'static str],
}

const fn place(path: &'static str, under: &'static [&'static str]) -> Place {
    Place { path, whole: false, under }
}

const fn whole(path: &'static str, under: &'static [&'static str]) -> Place {
    Place { path, whole: true, under }
}

const RESULTS: &str = "Connections: `result` in the access log";
const TLS: &str = "TLS handshakes";
const REFUSED: &str = "Connections that CA and controller refuse";
const SVID: &str = "SVID renewal";
const STREAM: &str = "The proxy's stream to the controller";
const OTHER: &str = "Other words in metrics and status";
/// Where an empty cell says something: the process never ends with that code.
const CODES: &str = "Exit codes of processes";

const PLACES: &[Place] = &[
    whole("proxy/src/inbound.rs", &[RESULTS, OTHER]),
    whole("proxy/src/outbound.rs", &[RESULTS, OTHER]),
    whole("proxy/src/route.rs", &[RESULTS]),
    whole("proxy/src/proxy.rs", &[RESULTS]),
    whole("proxy/src/permit.rs", &[RESULTS]),
    whole("proxy/src/account.rs", &[RESULTS]),
    place("proxy/src/wire/", &[RESULTS]),
    place("policy/src/decide.rs", &[RESULTS]),
    place("proxy/src/metrics/begin.rs", &[RESULTS, OTHER]),
    place("proxy/src/outcome.rs", &["Where to look", OTHER]),
    place("identity/src/", &[TLS]),
    place("credentials/src/handshake.rs", &[TLS]),
    place("credentials/src/peer.rs", &[TLS]),
    place("credentials/src/", &[SVID]),
    place("credentials/src/incoming.rs", &[REFUSED]),
    place("admin/src/", &[REFUSED]),
    place("admin/src/", &[OTHER]),
    place("credentials/src/channel.rs", &[SVID]),
    place("credentials/src/channel.rs", &[STREAM]),
    place("credentials/src/dial.rs", &[SVID]),
    place("credentials/src/dial.rs", &[STREAM]),
    whole("proxy/src/discovery/stream.rs", &[STREAM]),
    place("ca/src/", &["Refusals of the CA"]),
    place("controller/src/server/", &["Streams that the controller refuses or ends"]),
    place("controller/src/answer.rs", &[OTHER]),
    place("proxy/src/", &[OTHER]),
    place("injector/src/", &["Admission"]),
];

/// Checks the page against the sources.
pub fn check(root: &Path, found: &mut Found) -> Result<()> {
    let page = std::fs::read_to_string(root.join(PAGE)).with_context(|| PAGE.to_owned())?;
    let sources = sources(root)?;
    let count = compare(&page, &sources, found);
    found.checked.push(format!("{count} words of {} files against {PAGE}", sources.len()));
    Ok(())
}

/// Path and text of every source of the rooms.
fn sources(root: &Path) -> Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    for room in ROOMS {
        super::sources::walk(&root.join(room).join("src"), &mut files)?;
    }
    files.sort();
    let read = |file: &PathBuf| {
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        Ok((file.strip_prefix(root).unwrap_or(file).to_string_lossy().into_owned(), text))
    };
    files.iter().map(read).collect()
}

fn compare(page: &str, sources: &[(String, String)], found: &mut Found) -> usize {
    found.problems.extend(empty_cells(page));
    let tables = tables(page);
    let mut said: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut used = vec![false; PLACES.len()];
    let mut count = 0;
    for (path, text) in sources.iter().filter(|(path, _)| !super::sources::is_test_file(path)) {
        let places = places(path);
        for word in words(text).into_iter().filter(|word| word.known || places.iter().any(|at| PLACES[*at].whole)) {
            count += 1;
            if places.is_empty() {
                let problem = format!(
                    "{path}:{}: `{}` has no section in {PAGE} (see xtask/src/lint/words.rs)",
                    word.line, word.text
                );
                found.problems.push(problem);
            }
            for at in &places {
                let under = PLACES[*at].under;
                used[*at] = true;
                for heading in under {
                    said.entry(heading).or_default().insert(word.text.clone());
                }
                let stands = |heading: &&str| tables.get(*heading).is_some_and(|there| there.contains(&word.text));
                if !under.iter().any(stands) {
                    let wanted = under.join("\" or \"");
                    found
                        .problems
                        .push(format!("{path}:{}: `{}` is not in {PAGE} under \"{wanted}\"", word.line, word.text));
                }
            }
        }
    }
    for (place, _) in PLACES.iter().zip(used).filter(|(_, used)| !used) {
        found.problems.push(format!("xtask/src/lint/words.rs: no word is said in {}: was it moved?", place.path));
    }
    for (heading, said) in said {
        for word in tables.get(heading).into_iter().flatten().filter(|word| !said.contains(*word)) {
            found.problems.push(format!("{PAGE}, \"{heading}\": no code says `{word}`"));
        }
    }
    count
}

/// Indexes of the places that a file belongs to.
fn places(path: &str) -> Vec<usize> {
    let fits = |place: &&Place| path.starts_with(place.path);
    let longest = PLACES.iter().filter(fits).map(|place| place.path.len()).max().unwrap_or(0);
    (0..PLACES.len()).filter(|at| fits(&&PLACES[*at]) && PLACES[*at].path.len() == longest).collect()
}

/// Words in the first column of each table, its head left out, by the second-level heading above it.
fn tables(page: &str) -> BTreeMap<&str, BTreeSet<String>> {
    let mut tables: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut heading = "";
    let mut below_head = false;
    for line in page.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            heading = title;
        }
        below_head = line.starts_with('|') && (below_head || line.starts_with("| ---"));
        if below_head && let Some(first) = line.split(" | ").next() {
            let quoted = first.split('`').skip(1).step_by(2).filter(|text| is_word(text));
            tables.entry(heading).or_default().extend(quoted.map(str::to_owned));
        }
    }
    tables
}

/// Cells that say nothing: what is told is of no use without its meaning, nor without what to do.
fn empty_cells(page: &str) -> Vec<String> {
    let (mut heading, mut problems) = ("", Vec::new());
    for (number, line) in page.lines().enumerate() {
        heading = line.strip_prefix("## ").unwrap_or(heading);
        let Some(row) = line.strip_prefix('|').and_then(|row| row.strip_suffix('|')) else { continue };
        if heading != CODES && row.replace("\\|", "").split('|').any(|cell| cell.trim().is_empty()) {
            problems.push(format!("{PAGE}:{}: an empty cell: {line}", number + 1));
        }
    }
    problems
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn page() -> String {
        std::fs::read_to_string(crate::cargo::root().join(PAGE)).unwrap()
    }

    fn problems(page: &str, path: &str, text: &str) -> Vec<String> {
        let mut found = Found::default();
        compare(page, &[(path.to_owned(), text.to_owned())], &mut found);
        // Of the whole house only this one file is shown here.
        found.problems.retain(|problem| !problem.contains("was it moved?") && !problem.contains("no code says"));
        found.problems
    }

    #[test]
    fn a_word_that_is_not_on_the_page_is_a_problem() {
        let text = "fn f() { account.close(\"peer_bored\", Blame::Peer, \"\"); }";
        let said = problems(&page(), "proxy/src/inbound.rs", text);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].starts_with("proxy/src/inbound.rs:1: `peer_bored` is not in docs/errors.md"), "{said:?}");
        let text = "fn f() { account.close(\"peer_reset\", Blame::Peer, \"\"); }";
        assert_eq!(problems(&page(), "proxy/src/inbound.rs", text), Vec::<String>::new());
    }

    #[test]
    fn a_word_under_the_wrong_heading_is_a_problem() {
        let text = "fn label() -> &'static str { \"token_missing\" }";
        assert!(problems(&page(), "ca/src/attest/mod.rs", text).is_empty());
        assert_eq!(problems(&page(), "credentials/src/handshake.rs", text).len(), 1);
    }

    #[test]
    fn a_word_where_nobody_expects_one_is_a_problem() {
        let text = "fn label() -> &'static str { \"good\" }";
        assert!(problems(&page(), "controller/src/elsewhere.rs", text)[0].contains("has no section"));
    }

    #[test]
    fn a_cell_without_a_word_is_a_problem_but_where_a_process_never_ends_so() {
        let full = "| `is not UTF-8` | a byte of it is none | `iconv \\| tee` |\n";
        assert_eq!(empty_cells(full), Vec::<String>::new());
        for cell in ["a byte of it is none", "`iconv \\| tee`"] {
            let page = full.replace(cell, "");
            let problems = empty_cells(&page);
            assert!(problems.len() == 1 && problems[0].starts_with("docs/errors.md:1: "), "{page} {problems:?}");
            assert_eq!(empty_cells(&format!("## {CODES}\n{page}")), Vec::<String>::new());
        }
    }

    #[test]
    fn the_page_and_the_house_agree_and_any_line_taken_from_the_page_is_missed() {
        let sources = sources(&crate::cargo::root()).unwrap();
        let check = |page: &str| {
            let mut found = Found::default();
            compare(page, &sources, &mut found);
            found.problems
        };
        let page = page();
        assert_eq!(check(&page), Vec::<String>::new());
        for word in
            ["no_rule_matched", "token_audience", "unexpected_identity", "wrong_id", "other_account", "withdrawn"]
        {
            let without: Vec<_> = page.lines().filter(|line| !line.starts_with(&format!("| `{word}`"))).collect();
            assert!(check(&without.join("\n")).iter().any(|problem| problem.contains(word)), "{word}");
        }
        let more = page.replace("| `no_rule_matched` |", "| `no_such_word` |");
        assert!(check(&more).iter().any(|problem| problem.contains("no code says `no_such_word`")));
    }
}
