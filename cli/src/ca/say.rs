//! What the CA says of a rotation, for people.
//!
//! Called by `ca` and `drive`. Texts come from the CA and, through it, from tokens: control characters never reach the terminal.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

use crate::output::{self, Style};

/// Of those who are missing, so many are shown while something is waited for.
const SHOWN: usize = 5;

/// All of `GET /rotation`.
pub fn status(status: &Value, style: Style) -> String {
    let mut text = String::new();
    let mut line = |name: &str, what: String| {
        let _ = writeln!(text, "{name:<13} {what}");
    };
    line("trust domain", word(&status["trust_domain"]));
    line("bundle", format!("generation {}", word(&status["bundle_generation"])));
    let root = &status["signing_root"];
    line("signing root", format!("{}, until {}", word(&root["serial"]), word(&root["not_after"])));
    line("holders", format!("{} with a living leaf are known to this CA", word(&status["holders"])));
    for silent in status["replicas"].as_array().into_iter().flatten().filter(|replica| replica["told"] == false) {
        let (id, address, why) = (word(&silent["id"]), word(&silent["address"]), word(&silent["why"]));
        line("replica", style.unsure(&format!("{id} at {address} does not tell whom it knows: {why}")));
    }
    let rotation = &status["rotation"];
    if rotation.is_null() {
        line("rotation", "none yet".to_owned());
        return text;
    }
    line("rotation", format!("{}, {}", word(&rotation["id"]), style.strong(&word(&rotation["stage"]))));
    for passed in stages(rotation) {
        line("", passed);
    }
    if !status["gate"].is_null() {
        text += &gate(&status["gate"], style, usize::MAX);
    }
    text
}

/// The stages that it passed, with their times.
fn stages(rotation: &Value) -> impl Iterator<Item = String> {
    rotation["stages"].as_array().into_iter().flatten().map(|passed| {
        let forced = if passed["forced"] == true { ", forced" } else { "" };
        let (at, stage) = (word(&passed["at"]), word(&passed["stage"]));
        format!("{at}  {stage}, bundle {}{forced}", word(&passed["bundle_generation"]))
    })
}

/// A step that was not taken.
pub fn refusal(refusal: &Value, style: Style) -> String {
    let mut text = format!("{} {}\n", style.bad("refused"), word(&refusal["refused"]));
    if !refusal["gate"].is_null() {
        text += &gate(&refusal["gate"], style, usize::MAX);
    }
    text
}

/// Where it is and what it waits for, in as few lines as do.
pub fn progress(status: &Value, style: Style) -> String {
    let head = style.strong(&word(&status["rotation"]["stage"]));
    let bundle = word(&status["bundle_generation"]);
    if status["gate"].is_null() {
        return format!("{head}, bundle {bundle}\n");
    }
    format!("{head}, bundle {bundle}\n{}", gate(&status["gate"], style, SHOWN))
}

fn gate(gate: &Value, style: Style, most: usize) -> String {
    let open = if gate["open"] == true { style.good("may be taken") } else { style.unsure("is too early") };
    let (ready, holders) = (word(&gate["ready"]), word(&gate["holders"]));
    let mut text = format!("{:<13} {open}: {ready} of {holders} have reported\n", word(&gate["step"]));
    let missing: Vec<_> = gate["missing"].as_array().into_iter().flatten().collect();
    for one in missing.iter().take(most) {
        let _ = writeln!(
            text,
            "  {}  {}: {}; until {} at the latest",
            style.bad("missing"),
            who(one),
            word(&one["why"]),
            word(&one["until"])
        );
    }
    text += &others(gate, missing.len().min(most));
    if gate["open"] != true {
        for waits in gate["waits"].as_array().into_iter().flatten() {
            let _ = writeln!(text, "  {}    {}", style.unsure("waits"), word(waits));
        }
        let _ = writeln!(
            text,
            "  opens at {} whoever is missing: then all leaves of before have ended",
            word(&gate["opens_at"])
        );
    }
    text
}

/// How many are missing beside the `told` ones: the CA names a hundred.
fn others(gate: &Value, told: usize) -> String {
    let count = |value: &Value| value.as_u64().unwrap_or(0);
    let missing = count(&gate["holders"]).saturating_sub(count(&gate["ready"]));
    match missing.saturating_sub(told as u64) {
        0 => String::new(),
        left => format!("  and {left} more\n"),
    }
}

/// Before an emergency's forced steps: who will be cut.
pub fn emergency(status: &Value, style: Style) -> String {
    let mut text = format!(
        "{} the old root leaves the bundle now. Every open connection ends once, and every sidecar gets a new leaf within seconds.\n",
        style.bad("emergency")
    );
    let missing: Vec<_> = status["gate"]["missing"].as_array().into_iter().flatten().collect();
    if missing.is_empty() {
        text += "All holders of a leaf that this CA knows hold the new root already: nobody else is cut.\n";
    } else {
        let _ =
            writeln!(text, "These do not hold the new root. They are cut off until they are reached or start again:");
        for one in &missing {
            let _ = writeln!(text, "  {}  {}: {}", style.bad("cut"), who(one), word(&one["why"]));
        }
        text += &others(&status["gate"], missing.len());
    }
    for waits in status["gate"]["waits"].as_array().into_iter().flatten() {
        let _ = writeln!(text, "  {}  {}", style.unsure("not waited for"), word(waits));
    }
    text
}

/// The report's own words.
pub fn report(report: &Value, file: &Path) -> String {
    let mut text = String::new();
    let rotation = &report["rotation"];
    let _ = writeln!(
        text,
        "rotation {} of {}: {}",
        word(&rotation["id"]),
        word(&report["trust_domain"]),
        word(&rotation["stage"])
    );
    for passed in stages(rotation) {
        let _ = writeln!(text, "  {passed}");
    }
    let totals = &report["totals"];
    let known = if totals["all_holders_known"] == true { "all that there are" } else { "those that this CA knows" };
    let _ = writeln!(
        text,
        "  {} holders of a leaf, {known}: {} hold bundle {}, {} have a leaf of the new root",
        word(&totals["holders"]),
        word(&totals["holding_the_bundle"]),
        word(&report["bundle_generation"]),
        word(&totals["leaves_of_the_new_root"])
    );
    let _ = writeln!(
        text,
        "  connections during it, as {} holders told them: {} well, {} failed",
        word(&totals["holders_that_told_of_connections"]),
        word(&totals["connections_good"]),
        word(&totals["connections_failed"])
    );
    if let Some(since) = counted_late(report) {
        let _ = writeln!(
            text,
            "  those of some are counted since {since} only: the CA was started anew meanwhile, or they told late"
        );
    }
    for silent in report["replicas"].as_array().into_iter().flatten().filter(|replica| replica["told"] == false) {
        let _ =
            writeln!(text, "  not told: whom replica {} at {} knows", word(&silent["id"]), word(&silent["address"]));
    }
    let _ = writeln!(text, "  report: {}", file.display());
    text
}

/// Since when the connections of all are counted, where that is not from the beginning: before the second stage each is counted from when it said that
/// it has the new root, and nothing stands on that root yet.
fn counted_late(report: &Value) -> Option<String> {
    let second = report["rotation"]["stages"].get(1)?["at"].as_str()?;
    let since = report["totals"]["counted_since"].as_str()?;
    // Times of one form: as text they stand in their order.
    (since > second).then(|| output::one_line(since))
}

/// Each holder as a row.
pub fn holders(report: &Value) -> String {
    let head = ["POD", "BUNDLE", "LEAF", "ROOT", "GOOD", "FAILED", "REPORTED"];
    let rows: Vec<Vec<String>> = report["holders"].as_array().into_iter().flatten().map(row).collect();
    output::table(&head, &rows)
}

fn row(holder: &Value) -> Vec<String> {
    let leaf = holder["leaves"].as_array().and_then(|leaves| leaves.last()).cloned().unwrap_or_default();
    let short = |value: &Value| word(value).chars().take(16).collect::<String>();
    vec![
        who(holder),
        word(&holder["bundle_generation"]),
        short(&leaf["serial"]),
        short(&leaf["root_sha256"]),
        word(&holder["connections"]["good"]),
        word(&holder["connections"]["failed"]),
        word(&holder["reported_at"]),
    ]
}

fn who(one: &Value) -> String {
    match word(&one["namespace"]).as_str() {
        "-" => word(&one["pod"]),
        namespace => format!("{namespace}/{}", word(&one["pod"])),
    }
}

/// A value as text; `-` for none.
fn word(value: &Value) -> String {
    match value {
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => output::one_line(text),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_emergency_says_how_many_will_be_cut_beside_those_whom_the_ca_names() {
        let said = |named: usize, holders: usize| {
            let missing: Vec<_> = (0..named).map(|n| json!({ "pod": format!("pod-{n}"), "why": "behind" })).collect();
            let gate = json!({ "missing": missing, "holders": holders, "ready": 50 });
            emergency(&json!({ "gate": gate }), Style::of(None, false))
        };
        let many = said(100, 300);
        assert_eq!(many.matches("  cut  ").count(), 100);
        assert!(many.ends_with("pod-99: behind\n  and 150 more\n"), "{many}");
        assert!(!said(100, 150).contains(" more\n"), "all of them are named");
    }

    #[test]
    fn a_report_says_so_where_connections_are_not_counted_from_the_beginning() {
        let said = |since: Value| {
            let stages: Vec<_> = ["02:00:00Z", "02:00:12Z", "02:00:13Z"]
                .iter()
                .map(|at| json!({ "stage": "x", "at": format!("2026-11-22T{at}") }))
                .collect();
            let value = json!({ "rotation": { "stages": stages }, "totals": { "holders": 3, "counted_since": since } });
            report(&value, Path::new("r.json"))
        };
        assert!(said(json!("2026-11-22T02:00:40Z")).contains("counted since 2026-11-22T02:00:40Z only"));
        // As each of them came to have the new root; and a report of before, which does not tell.
        for since in [json!("2026-11-22T02:00:05Z"), json!("2026-11-22T02:00:12Z"), Value::Null] {
            assert!(!said(since).contains("counted since"));
        }
    }
}
