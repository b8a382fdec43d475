//! `countersign policy check`: the controller's own parser, at the command line.
//!
//! Called by `main`. It must never accept a rule that the controller refuses: there is one parser. What else stands in a file it does not judge, and
//! says so.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use countersign_policy::{API_VERSION, Document, KIND, ParseError, Policy};
use serde_json::{Value, json};

use crate::args::PolicyCommand;
use crate::input;
use crate::output::{self, Format, Style, Verdict};

/// Larger than any file of rules should be.
const MAX_BYTES: u64 = 8 * 1024 * 1024;

/// Runs one of its commands.
pub fn run(command: &PolicyCommand, format: Format) -> Result<Verdict> {
    let files = match command {
        PolicyCommand::Check { files } => files,
        PolicyCommand::Why(why) => return crate::explain::why(why, format),
    };
    let results: Vec<Checked> = expand(files)?.iter().map(|file| check(file)).collect::<Result<_>>()?;
    let twice = named_twice(&results);
    let holds = twice.is_empty() && results.iter().all(|checked| checked.errors.is_empty());
    let value =
        json!({ "ok": holds, "files": results.iter().map(Checked::json).collect::<Vec<_>>(), "problems": twice });
    output::either(format, &value, || text(&results, &twice, Style::detect()))?;
    Ok(Verdict::of(holds))
}

struct Checked {
    file: String,
    policies: Vec<Policy>,
    /// Each of them, not only the first.
    errors: Vec<ParseError>,
    /// Documents that are no rules, as `line N: kind`.
    others: Vec<String>,
}

impl Checked {
    fn json(&self) -> Value {
        let error =
            |e: &ParseError| json!({ "line": e.line, "column": e.column, "field": e.field, "message": e.message });
        json!({
            "file": self.file,
            "policies": self.policies.iter().map(policy_json).collect::<Vec<_>>(),
            "errors": self.errors.iter().map(error).collect::<Vec<_>>(),
            "not_judged": self.others,
        })
    }
}

fn policy_json(policy: &Policy) -> Value {
    json!({
        "namespace": policy.namespace(),
        "name": policy.name(),
        "action": policy.action(),
        "mode": policy.mode(),
        "feature_level": policy.feature_level(),
    })
}

fn check(file: &Path) -> Result<Checked> {
    let name = file.display().to_string();
    let text = input::text(file, MAX_BYTES).with_context(|| name.clone())?;
    Ok(judge(name, &text))
}

fn judge(file: String, text: &str) -> Checked {
    let mut checked = Checked { file, policies: Vec::new(), errors: Vec::new(), others: Vec::new() };
    match countersign_policy::documents(&checked.file, text) {
        Err(error) => checked.errors.push(error),
        Ok(documents) => {
            for document in &documents {
                if !is_meant_as_a_rule(document) {
                    let kind = if document.kind.is_empty() { "no kind" } else { &document.kind };
                    checked.others.push(format!("line {}: {kind}", document.first_line));
                    continue;
                }
                match countersign_policy::parse_document(&checked.file, document) {
                    Ok(policy) => checked.policies.push(policy),
                    Err(error) => checked.errors.push(error),
                }
            }
        }
    }
    if checked.policies.is_empty() && checked.errors.is_empty() {
        let message = format!("holds no {KIND} of {API_VERSION}");
        checked.errors.push(ParseError {
            file: checked.file.clone(),
            line: 0,
            column: 0,
            field: String::new(),
            message,
        });
    }
    checked
}

/// By its kind or by its API group: whoever mistypes one of them hears of it.
fn is_meant_as_a_rule(document: &Document<'_>) -> bool {
    let group = |version: &str| version.split('/').next().unwrap_or_default().to_owned();
    // A List may hold rules, and is not taken apart: it is refused by its kind.
    document.kind.eq_ignore_ascii_case(KIND)
        || group(&document.api_version) == group(API_VERSION)
        || document.kind.ends_with("List") && document.text.contains(KIND)
}

/// Folders become the YAML files in them, sorted; a folder without any is an error, not an empty success.
fn expand(files: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for file in files {
        if !file.is_dir() {
            all.push(file.clone());
            continue;
        }
        let before = all.len();
        walk(file, &mut all)?;
        if all.len() == before {
            bail!("{}: holds no .yaml or .yml file", file.display());
        }
        all[before..].sort();
    }
    Ok(all)
}

fn walk(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry.with_context(|| dir.display().to_string())?.path();
        if path.is_dir() {
            walk(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            files.push(path);
        }
    }
    Ok(())
}

/// Two policies of one name, in one file or in two: the second would silently replace the first.
fn named_twice(results: &[Checked]) -> Vec<String> {
    let mut seen: BTreeMap<(String, String), &str> = BTreeMap::new();
    let mut twice = Vec::new();
    for checked in results {
        for policy in &checked.policies {
            let key = (policy.namespace().to_owned(), policy.name().to_owned());
            if let Some(first) = seen.get(&key) {
                twice.push(format!("{}: {}/{} is already in {first}", checked.file, key.0, key.1));
            } else {
                seen.insert(key, &checked.file);
            }
        }
    }
    twice
}

fn text(results: &[Checked], twice: &[String], style: Style) -> String {
    let mut text = String::new();
    for checked in results {
        for error in &checked.errors {
            text += &format!("{} {error}\n", style.bad("error"));
        }
        if !checked.policies.is_empty() {
            let names: Vec<_> =
                checked.policies.iter().map(|p| format!("{}/{} ({:?})", p.namespace(), p.name(), p.action())).collect();
            text += &format!("{} {}: {}\n", style.good("ok"), checked.file, names.join(", "));
        }
        if !checked.others.is_empty() {
            text += &format!("   {}: not judged, as they are no rules: {}\n", checked.file, checked.others.join(", "));
        }
    }
    for problem in twice {
        text += &format!("{} {problem}\n", style.bad("error"));
    }
    text
}
