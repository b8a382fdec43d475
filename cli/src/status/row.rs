//! What one process said about itself, as a row for people.
//!
//! Called by `status`. The three processes say what they are in one shape where they say the same (`ready`, `version`,
//! `svid`), and in words of their own for the rest; `-o json` shows all of it. What is missing is shown as missing.

use anyhow::Result;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::output;
use crate::places::Place;

/// The columns.
pub const HEAD: &[&str] =
    &["PROCESS", "STATE", "IDENTITY", "SVID ENDS", "BUNDLE", "RULES", "LAG", "OPEN", "DENIALS", "VERSION", "ASKED AT"];

const IDENTITY: &[&str] = &["/own_svid/id", "/svid/id", "/id"];
const ENDS: &[&str] = &["/own_svid/not_after", "/svid/not_after", "/credentials/not_after"];
const BUNDLE: &[&str] = &["/bundle_generation", "/own_svid/bundle_generation", "/credentials/bundles/0/generation"];
const RULES: &[&str] = &["/policy/revision", "/source/revision"];
/// A revision is a hash: its beginning tells two apart.
const REVISION: usize = 8;
const PROBLEMS: &[&str] = &[
    "/not_ready_because",
    "/token_keys_problem",
    "/own_svid/problem",
    "/ca/last_error",
    "/ca/last_bundle_error",
    "/controller/last_problem",
    "/controller/rules_problem",
];

/// One row; a process that did not answer has one, too. `lag`: seconds for which it has not confirmed its rules, where that is known.
pub fn row(place: &Place, answer: &Result<Value>, lag: Option<f64>, now: OffsetDateTime) -> Vec<String> {
    let Ok(status) = answer else {
        let mut row = vec![place.name(), "no answer".to_owned()];
        row.resize(HEAD.len() - 1, "-".to_owned());
        row.push(place.to_string());
        return row;
    };
    vec![
        process(place, status),
        state(status),
        first(status, IDENTITY).unwrap_or_else(missing),
        first(status, ENDS).map_or_else(missing, |end| ends(&end, now)),
        first(status, BUNDLE).unwrap_or_else(missing),
        first(status, RULES).map_or_else(missing, |revision| revision.chars().take(REVISION).collect()),
        lag.map_or_else(missing, lagging),
        open(status).unwrap_or_else(missing),
        first(status, &["/denials/counted"]).unwrap_or_else(missing),
        first(status, &["/version"]).unwrap_or_else(missing),
        place.to_string(),
    ]
}

/// Whether it says that it is ready.
pub fn is_well(status: &Value) -> bool {
    status["ready"] == true
}

/// What it says is wrong.
pub fn problems(status: &Value) -> Vec<String> {
    let named = PROBLEMS.iter().filter_map(|pointer| status.pointer(pointer)).filter_map(said);
    let listed = |field: &str| status[field].as_array().into_iter().flatten();
    let checks = listed("checks").filter(|check| check["ok"] != true);
    let checks = checks.map(|check| format!("{}: {}", text(&check["name"]), text(&check["detail"])));
    let source = status.pointer("/source/problems").and_then(Value::as_array).into_iter().flatten().map(in_file);
    let of_proxy = |proxy: &Value| {
        Some(format!("{}/{}: {}", text(&proxy["namespace"]), text(&proxy["name"]), said(&proxy["problem"])?))
    };
    // The outbound half is one of the checks; the inbound one is no matter of readiness.
    let inbound = &status["interception"]["inbound"];
    let lost = Some(format!("inbound redirect: {}", text(&inbound["problem"]))).filter(|_| inbound["state"] == "lost");
    named.chain(lost).chain(source).chain(listed("proxies").filter_map(of_proxy)).chain(checks).collect()
}

/// What nobody should overlook, though nothing is broken: plaintext toward addresses inside the mesh's ranges.
pub fn notes(status: &Value) -> Vec<String> {
    let addresses: Vec<_> = status["plaintext_inside_mesh"].as_array().into_iter().flatten().filter_map(said).collect();
    if addresses.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "plaintext was sent to addresses inside the mesh's ranges that have no sidecar: {}",
        addresses.join(", ")
    )]
}

fn state(status: &Value) -> String {
    match (first(status, &["/phase"]), &status["ready"]) {
        (Some(phase), _) if phase != "serving" => phase,
        (_, Value::Bool(true)) => "ready".to_owned(),
        (_, Value::Bool(false)) => "not ready".to_owned(),
        _ => missing(),
    }
}

/// The pod of a sidecar, the account of another process; else what its place is called.
fn process(place: &Place, status: &Value) -> String {
    if let Some(pod) = first(status, &["/pod/name"]) {
        return format!("{}/{pod}", text(&status["pod"]["namespace"]));
    }
    let account = first(status, IDENTITY).and_then(|id| id.rsplit('/').next().map(str::to_owned));
    account.or_else(|| first(status, &["/process"])).unwrap_or_else(|| place.name())
}

/// Connections of a sidecar, streams of another process.
fn open(status: &Value) -> Option<String> {
    let connections = &status["open_connections"];
    match (said(&connections["inbound"]), said(&connections["outbound"])) {
        (Some(inbound), Some(outbound)) => Some(format!("{inbound} in, {outbound} out")),
        _ => status["proxies"]
            .as_array()
            .map(|proxies| proxies.len().to_string())
            .or_else(|| first(status, &["/bundle_watchers"])),
    }
}

fn lagging(seconds: f64) -> String {
    if seconds > 0.0 { format!("{seconds:.1} s") } else { "none".to_owned() }
}

fn ends(end: &str, now: OffsetDateTime) -> String {
    let unix = end.parse().ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    match unix.or_else(|| OffsetDateTime::parse(end, &Rfc3339).ok()) {
        Some(time) => output::span((time - now).whole_seconds()),
        None => end.to_owned(),
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
    Some(output::one_line(&text))
}

/// A problem of the source: where, and what.
fn in_file(problem: &Value) -> String {
    let place = format!("{}:{}:{}", text(&problem["file"]), problem["line"], problem["column"]);
    let parts = [place, text(&problem["field"]), text(&problem["message"])];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(": ")
}

fn text(value: &Value) -> String {
    said(value).unwrap_or_default()
}

fn missing() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn socket(path: &str) -> Place {
        Place::Socket(path.into())
    }

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
        let row = row(&socket("/run/countersign/ca.sock"), &Ok(ca()), None, now);
        assert_eq!(
            row[..5],
            [
                "countersign-ca",
                "not ready",
                "spiffe://cluster.local/ns/countersign-system/sa/countersign-ca",
                "in 30 min",
                "3"
            ]
        );
        assert!(!is_well(&ca()));
        assert_eq!(problems(&ca()), ["our own SVID has expired"]);
    }

    #[test]
    fn a_process_that_does_not_answer_has_a_row() {
        let row = row(&socket("/run/x/proxy.sock"), &Err(anyhow::anyhow!("refused")), None, OffsetDateTime::now_utc());
        assert_eq!(row.len(), HEAD.len());
        assert_eq!(row[1], "no answer");
    }

    #[test]
    fn a_lost_inbound_redirect_is_a_problem_and_one_that_nobody_witnesses_is_not() {
        let of = |state: &str| json!({ "interception": { "inbound": { "state": state, "problem": "no more" } } });
        assert_eq!(problems(&of("lost")), ["inbound redirect: no more"]);
        assert!(problems(&of("unproven")).is_empty() && problems(&of("proven")).is_empty());
    }

    #[test]
    fn what_is_missing_is_shown_as_missing_and_is_not_well() {
        let row = row(&socket("/run/x/proxy.sock"), &Ok(json!({})), None, OffsetDateTime::now_utc());
        assert_eq!(row[0], "proxy");
        assert!(row[1..10].iter().all(|cell| cell == "-"), "{row:?}");
        assert!(!is_well(&json!({})));
    }

    #[test]
    fn a_sidecar_is_called_by_its_pod_and_its_plaintext_is_noted() {
        let status = json!({
            "process": "countersign-proxy", "phase": "draining", "ready": false, "pod": { "namespace": "shop", "name": "backend-1" },
            "id": "spiffe://cluster.local/ns/shop/sa/backend", "open_connections": { "inbound": 2, "outbound": 0 },
            "credentials": { "not_after": 1_800_000_060, "bundles": [{ "generation": 1 }] }, "policy": { "revision": "r7" },
            "denials": { "remembered": 2, "counted": 7 },
            "checks": [{ "name": "rules", "ok": true, "detail": "" }, { "name": "drain", "ok": false, "detail": "draining" }],
            "ca": { "last_error": { "label": "refused", "text": "the CA refused", "at": 5 } },
            "plaintext_inside_mesh": ["10.77.0.52"],
        });
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let row = row(&socket("/run/countersign/proxy.sock"), &Ok(status.clone()), Some(0.25), now);
        assert_eq!(row[..2], ["shop/backend-1", "draining"]);
        assert_eq!(row[3..9], ["in 1 min", "1", "r7", "0.2 s", "2 in, 0 out", "7"]);
        assert_eq!(problems(&status), ["the CA refused", "drain: draining"]);
        assert!(notes(&status)[0].contains("10.77.0.52"));
        assert!(notes(&json!({})).is_empty());
    }

    #[test]
    fn a_controller_tells_what_its_files_and_its_proxies_lack() {
        let status = json!({
            "ready": true, "own_svid": { "problem": null },
            "source": { "problems": [{ "file": "a.yaml", "line": 3, "column": 7, "field": "spec", "message": "is missing" }] },
            "proxies": [{ "namespace": "shop", "name": "a", "problem": null }, { "namespace": "shop", "name": "b", "problem": "no such field" }],
        });
        assert_eq!(problems(&status), ["a.yaml:3:7: spec: is missing", "shop/b: no such field"]);
        assert_eq!(open(&status).unwrap(), "2");
    }

    #[test]
    fn nothing_that_a_terminal_acts_on_is_printed() {
        assert_eq!(said(&json!("a\u{1b}[31mb\n")).unwrap(), "a [31mb ");
    }
}
