//! What docs/errors.md explains, it says what to do about: a word's meaning alone helps nobody who meets it in a log at night.
//!
//! Called by `lint`. A table whose head has the column `meaning` must end in the column `what to do`, and in a table that ends in it
//! every row must say something there. What it says is for people to judge.

use std::path::Path;

use anyhow::{Context, Result};

use super::Found;

const PAGE: &str = "docs/errors.md";
const MEANING: &str = "meaning";
const ADVICE: &str = "what to do";
/// Heads of tables that explain what every line says, good or bad: nothing is to be done about that.
const WITHOUT: &[&str] = &["word | field | meaning"];

/// Checks the page.
pub fn check(root: &Path, found: &mut Found) -> Result<()> {
    let page = std::fs::read_to_string(root.join(PAGE)).with_context(|| PAGE.to_owned())?;
    let count = look(&page, found);
    found.checked.push(format!("{count} rows of {PAGE} for what to do"));
    Ok(())
}

/// How many rows say it.
fn look(page: &str, found: &mut Found) -> usize {
    let mut count = 0;
    let mut head: Option<Vec<&str>> = None;
    for (number, line) in page.lines().enumerate() {
        let mut problem = |what: &str| found.problems.push(format!("{PAGE}:{}: {what}", number + 1));
        if !line.starts_with('|') {
            head = None;
            continue;
        }
        let row = cells(line);
        match &head {
            None => {
                let advised = row.last() == Some(&ADVICE) || WITHOUT.contains(&row.join(" | ").as_str());
                if row.contains(&MEANING) && !advised {
                    problem("this table says what words mean, and not what to do");
                }
                head = Some(row);
            }
            Some(_) if line.starts_with("| ---") => {}
            Some(head) if head.last() == Some(&ADVICE) => {
                count += 1;
                if row.len() != head.len() {
                    problem("this row has not as many cells as the table's head");
                } else if row.last().is_none_or(|cell| cell.is_empty()) {
                    problem("this row does not say what to do");
                }
            }
            Some(_) => {}
        }
    }
    count
}

/// The cells of a row; `\|` is part of one.
fn cells(row: &str) -> Vec<&str> {
    let mut cells = Vec::new();
    let (mut from, mut escaped) = (1, false);
    for (at, byte) in row.bytes().enumerate().skip(1) {
        if byte == b'|' && !escaped {
            cells.push(row[from..at].trim());
            from = at + 1;
        }
        escaped = byte == b'\\' && !escaped;
    }
    cells
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn problems(page: &str) -> Vec<String> {
        let mut found = Found::default();
        look(page, &mut found);
        found.problems
    }

    #[test]
    fn a_word_without_advice_is_a_problem() {
        let page = "| word | meaning | what to do |\n| --- | --- | --- |\n| `a` | | b \\| c |\n";
        assert_eq!(problems(page), Vec::<String>::new());
        for (row, told) in
            [("| `d` | e | |", "does not say"), ("| `d` | e |", "cells"), ("| `d` | e | f | g |", "cells")]
        {
            let said = problems(&format!("{page}{row}\n"));
            assert!(said.len() == 1 && said[0].starts_with("docs/errors.md:4: ") && said[0].contains(told), "{said:?}");
        }
        let said = problems("text\n\n| `reason` | meaning |\n| --- | --- |\n| `a` | b |\n");
        assert_eq!(said, ["docs/errors.md:3: this table says what words mean, and not what to do"]);
    }

    #[test]
    fn the_page_says_it_of_everything_and_any_cell_taken_from_it_is_missed() {
        let page = std::fs::read_to_string(crate::cargo::root().join(PAGE)).unwrap();
        assert_eq!(problems(&page), Vec::<String>::new());
        assert!(look(&page, &mut Found::default()) > 250);
        for row in ["| `accept failed` |", "| `HTTP status N` |", "| `handshake` | no TLS"] {
            let line = page.lines().find(|line| line.starts_with(row)).unwrap();
            let (rest, _) = line.trim_end_matches(" |").rsplit_once(" | ").unwrap();
            assert_eq!(problems(&page.replace(line, &format!("{rest} | |"))).len(), 1, "{row}");
        }
    }
}
