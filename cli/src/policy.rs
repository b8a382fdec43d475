//! `countersign policy check`: the controller's own parser, at the command line.
//!
//! Called by `main`. It must never accept what the controller refuses: there is one parser.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use countersign_policy::{ParseError, Policy};
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
    let holds = twice.is_empty() && results.iter().all(|checked| checked.result.is_ok());
    let value =
        json!({ "ok": holds, "files": results.iter().map(Checked::json).collect::<Vec<_>>(), "problems": twice });
    output::either(format, &value, || text(&results, &twice, Style::detect()))?;
    Ok(Verdict::of(holds))
}

struct Checked {
    file: String,
    result: Result<Vec<Policy>, ParseError>,
}

impl Checked {
    fn json(&self) -> Value {
        match &self.result {
            Ok(policies) => {
                json!({ "file": self.file, "policies": policies.iter().map(policy_json).collect::<Vec<_>>() })
            }
            Err(e) => json!({
                "file": self.file,
                "error": { "line": e.line, "column": e.column, "field": e.field, "message": e.message }
            }),
        }
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
    let result = countersign_policy::parse(&name, &text);
    Ok(Checked { file: name, result })
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

/// Two policies of one name: the second would silently replace the first.
fn named_twice(results: &[Checked]) -> Vec<String> {
    let mut seen: BTreeMap<(String, String), &str> = BTreeMap::new();
    let mut twice = Vec::new();
    for checked in results {
        for policy in checked.result.iter().flatten() {
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
        match &checked.result {
            Ok(policies) => {
                let names: Vec<_> =
                    policies.iter().map(|p| format!("{}/{} ({:?})", p.namespace(), p.name(), p.action())).collect();
                text += &format!("{} {}: {}\n", style.good("ok"), checked.file, names.join(", "));
            }
            Err(error) => text += &format!("{} {error}\n", style.bad("error")),
        }
    }
    for problem in twice {
        text += &format!("{} {problem}\n", style.bad("error"));
    }
    text
}
