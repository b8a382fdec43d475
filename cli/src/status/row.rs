//! What one process said about itself, as a row for people.
//!
//! Called by `status`. The three processes say what they are in one shape where they say the same (`ready`, `version`,
//! `svid`), and in words of their own for the rest; `-o json` shows all of it. What is missing is shown as missing.

use std::path::Path;

use anyhow::Result;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::output;

/// The columns.
pub const HEAD: &[&str] =
    &["PROCESS", "STATE", "IDENTITY", "SVID ENDS", "BUNDLE", "RULES", "OPEN", "VERSION", "SOCKET"];

const IDENTITY: &[&str] = &["/own_svid/id", "/svid/id", "/identity", "/id"];
const ENDS: &[&str] = &["/own_svid/not_after", "/svid/not_after", "/svid/expires_at"];
const BUNDLE: &[&str] = &["/bundle_generation", "/bundle/generation", "/svid/bundle_generation"];
const RULES: &[&str] = &["/policy_revision", "/policy/revision", "/revision"];
const OPEN: &[&str] = &["/connections_open", "/connections/open", "/bundle_watchers", "/proxies"];
const PROBLEMS: &[&str] =
    &["/not_ready_because", "/token_keys_problem", "/problem", "/last_error", "/svid/last_error", "/source/problem"];

/// One row; a process that did not answer has one, too.
pub fn row(socket: &Path, answer: &Result<Value>, now: OffsetDateTime) -> Vec<String> {
    let Ok(status) = answer else {
        let name = socket.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut row = vec![name, "no answer".to_owned()];
        row.resize(HEAD.len() - 1, "-".to_owned());
        row.push(socket.display().to_string());
        return row;
    };
    let identity = first(status, IDENTITY);
    vec![
        process(socket, identity.as_deref()),
        state(status),
        identity.unwrap_or_else(missing),
        first(status, ENDS).map_or_else(missing, |end| ends(&end, now)),
        first(status, BUNDLE).unwrap_or_else(missing),
        first(status, RULES).unwrap_or_else(missing),
        first(status, OPEN).unwrap_or_else(missing),
        first(status, &["/version"]).unwrap_or_else(missing),
        socket.display().to_string(),
    ]
}

/// Whether it says that it is ready.
pub fn is_well(status: &Value) -> bool {
    status["ready"] == true
}

/// What it says is wrong.
pub fn problems(status: &Value) -> Vec<String> {
    let named = PROBLEMS.iter().filter_map(|pointer| status.pointer(pointer)).filter_map(said);
    let listed = status["problems"].as_array().into_iter().flatten().filter_map(said);
    named.chain(listed).collect()
}

fn state(status: &Value) -> String {
    match (first(status, &["/state", "/drain"]), &status["ready"]) {
        (Some(word), _) if word != "running" && word != "serving" && word != "open" => word,
        (_, Value::Bool(true)) => "ready".to_owned(),
        (_, Value::Bool(false)) => "not ready".to_owned(),
        _ => missing(),
    }
}

/// The pod's name where the folder or the file is called so, else the account.
fn process(socket: &Path, identity: Option<&str>) -> String {
    let account = identity.and_then(|id| id.rsplit('/').next());
    let stem = socket.file_stem().unwrap_or_default().to_string_lossy();
    let folder = socket.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    match (stem.as_ref(), folder.as_ref()) {
        ("proxy" | "admin", "countersign" | "") => account.unwrap_or(&stem).to_owned(),
        ("proxy" | "admin", folder) => folder.to_owned(),
        (stem, _) => stem.to_owned(),
    }
}

fn ends(end: &str, now: OffsetDateTime) -> String {
    match OffsetDateTime::parse(end, &Rfc3339) {
        Ok(time) => output::span((time - now).whole_seconds()),
        Err(_) => end.to_owned(),
    }
}

fn first(status: &Value, pointers: &[&str]) -> Option<String> {
    pointers.iter().filter_map(|pointer| status.pointer(pointer)).find_map(said)
}

/// A value as text; nothing for what says nothing. Control characters never reach the terminal.
fn said(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) if !text.is_empty() => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Object(error) => return error.get("text").or_else(|| error.get("message")).and_then(said),
        _ => return None,
    };
    Some(text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect())
}

fn missing() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ca() -> Value {
        json!({
            "version": "0.1.0", "ready": false, "not_ready_because": "our own SVID has expired",
            "bundle_generation": 3, "bundle_watchers": 4,
            "own_svid": { "id": "spiffe://cluster.local/ns/countersign-system/sa/countersign-ca", "not_after": "2026-11-21T12:00:00Z" },
        })
    }

    #[test]
    fn a_process_that_is_not_ready_is_told_with_its_reason() {
        let now = OffsetDateTime::parse("2026-11-21T11:30:00Z", &Rfc3339).unwrap();
        let row = row(Path::new("/run/countersign/ca.sock"), &Ok(ca()), now);
        assert_eq!(
            row[..5],
            ["ca", "not ready", "spiffe://cluster.local/ns/countersign-system/sa/countersign-ca", "in 30 min", "3"]
        );
        assert!(!is_well(&ca()));
        assert_eq!(problems(&ca()), ["our own SVID has expired"]);
    }

    #[test]
    fn a_process_that_does_not_answer_has_a_row() {
        let row = row(Path::new("/run/x/proxy.sock"), &Err(anyhow::anyhow!("refused")), OffsetDateTime::now_utc());
        assert_eq!(row.len(), HEAD.len());
        assert_eq!(row[1], "no answer");
    }

    #[test]
    fn what_is_missing_is_shown_as_missing_and_is_not_well() {
        let row = row(Path::new("/run/x/proxy.sock"), &Ok(json!({})), OffsetDateTime::now_utc());
        assert_eq!(row[0], "x");
        assert!(row[1..8].iter().all(|cell| cell == "-"), "{row:?}");
        assert!(!is_well(&json!({})));
    }

    #[test]
    fn nothing_that_a_terminal_acts_on_is_printed() {
        assert_eq!(said(&json!("a\u{1b}[31mb\n")).unwrap(), "a [31mb ");
    }
}
