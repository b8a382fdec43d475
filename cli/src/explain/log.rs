//! The access log, where no proxy remembers a denial: the lines of either side, and each rule tried again where the rules that decided are
//! still in force.
//!
//! Called by `explain`. It must never decide by other rules than the line's: those of its revision, or none.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result};
use countersign_policy::{Attempt, Principal, Reason, Source, Trace, trace};
use serde_json::Value;

use crate::output::harmless;
use crate::places::{self, Place};

/// Longest line of a log that is looked at.
const MAX_LINE: usize = 64 * 1024;

/// Access-log lines of either side.
pub fn lines(path: &Path, id: &str) -> Result<Vec<Value>> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let mut found = Vec::new();
    for line in BufReader::new(file).lines() {
        let line = line.with_context(|| path.display().to_string())?;
        if line.len() <= MAX_LINE
            && line.contains(id)
            && let Ok(value) = serde_json::from_str::<Value>(&line)
            && value["denial_id"] == id
        {
            found.push(value);
        }
    }
    Ok(found)
}

/// One line, for people.
pub fn text(line: &Value) -> String {
    let field = |name: &str| line[name].as_str().map_or_else(|| "-".to_owned(), harmless);
    format!(
        "  {} {} {}\n    source      {} at {}\n    destination {} at {}\n    rule        {}\n    revision    {}\n    detail      {}\n",
        field("time"),
        field("direction"),
        field("result"),
        field("source_id"),
        field("source_address"),
        field("destination_id"),
        field("destination_address"),
        field("rule"),
        field("policy_revision"),
        field("detail"),
    )
}

/// What a sidecar's rules decided, as its line has it.
#[derive(Debug, PartialEq, Eq)]
pub struct Decided {
    result: String,
    /// Names the rules, and the workload that they bind: no two workloads share one.
    pub revision: String,
    source: Option<Principal>,
    source_ip: IpAddr,
    port: u16,
}

impl Decided {
    /// Of the last line of a side that decided by its rules, if there is one: what is refused before has none to try.
    pub fn last(lines: &[Value]) -> Option<Self> {
        lines.iter().rev().find_map(Self::of)
    }

    fn of(line: &Value) -> Option<Self> {
        let word = |name: &str| line[name].as_str();
        let address = |name: &str| word(name)?.parse::<SocketAddr>().ok();
        let by_rules = Reason::ALL.iter().any(|reason| line["result"] == reason.label());
        if !by_rules || line["direction"] != "inbound" {
            return None;
        }
        Some(Self {
            result: word("result")?.to_owned(),
            revision: word("policy_revision")?.to_owned(),
            source: word("source_id").map(Principal::parse).transpose().ok()?,
            source_ip: address("source_address")?.ip(),
            port: address("destination_address")?.port(),
        })
    }

    /// By these rules. None where they are others, or decide otherwise: then they would explain something else.
    fn again(&self, dump: &Value) -> Option<Trace> {
        let rules = super::rules(dump).ok().filter(|rules| rules.revision() == self.revision)?;
        let source = self.source.as_ref().map_or(Source::Unauthenticated, Source::Authenticated);
        let trace = trace(&rules, &Attempt { source, source_ip: self.source_ip, port: self.port });
        Some(trace).filter(|trace| !trace.allowed && trace.reason.label() == self.result)
    }

    /// Looks for the sidecar that has the rules of that revision in force, and tries them: its pod, and each rule tried.
    ///
    /// # Errors
    /// Asking was given up.
    pub async fn tried_again(&self, places: Vec<Place>) -> Result<Option<(String, Trace)>> {
        for (place, answer) in places::ask(places, "/status", |_| false).await? {
            if let Ok(Some(status)) = answer
                && status["policy"]["revision"] == self.revision.as_str()
                && let Some(name) = place.sidecar_of().or_else(|| super::pod_of(&status))
                && let Ok(Some(dump)) = place.get("/config_dump").await
                && let Some(trace) = self.again(&dump)
            {
                return Ok(Some((name, trace)));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::explain::tests::dump;

    #[test]
    fn a_log_gives_the_lines_of_one_denial_and_no_others() {
        let path = std::env::temp_dir().join(format!("countersign-explain-{}.log", std::process::id()));
        let line = |id: &str, result: &str| {
            json!({ "denial_id": id, "result": result, "source_id": "x\u{1b}[2J", "detail": "why" }).to_string()
        };
        let written = [
            line("00000000000000aa", "no_rule_matched"),
            line("00000000000000ab", "no_policy"),
            "00000000000000aa".into(),
        ];
        std::fs::write(&path, written.join("\n")).unwrap();
        let found = lines(&path, "00000000000000aa").unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(found.len(), 1);
        let text = text(&found[0]);
        assert!(text.contains("no_rule_matched") && !text.contains('\u{1b}'), "{text}");
        assert!(text.contains("detail      why\n") && text.contains("rule        -\n"), "{text}");
    }

    fn inbound(result: &str, revision: &str) -> Value {
        json!({
            "direction": "inbound", "result": result, "policy_revision": revision,
            "source_id": "spiffe://cluster.local/ns/shop/sa/intruder", "source_address": "10.0.0.9:40000",
            "destination_address": "10.0.0.7:80",
        })
    }

    #[test]
    fn rules_are_tried_again_only_where_they_are_those_of_the_line_and_say_the_same() {
        let decided = Decided::of(&inbound("no_rule_matched", "r1")).unwrap();
        let trace = decided.again(&dump()).unwrap();
        assert_eq!(trace.change().unwrap(), "add shop/intruder to `from[0].serviceAccounts` of shop/frontend#0");
        assert!(Decided::of(&inbound("no_rule_matched", "r2")).unwrap().again(&dump()).is_none(), "another revision");
        assert!(Decided::of(&inbound("no_policy", "r1")).unwrap().again(&dump()).is_none(), "another reason");
        let mut allowed = inbound("no_rule_matched", "r1");
        allowed["source_id"] = json!("spiffe://cluster.local/ns/shop/sa/frontend");
        assert!(Decided::of(&allowed).unwrap().again(&dump()).is_none(), "they allow it");
    }

    #[test]
    fn the_last_line_of_the_side_that_decided_counts_and_what_no_rule_decided_has_none_to_try() {
        let mut outbound = inbound("denied_by_peer", "r9");
        outbound["direction"] = json!("outbound");
        let both = [inbound("no_rule_matched", "r1"), inbound("no_rule_matched", "r2"), outbound];
        assert_eq!(Decided::last(&both).unwrap().revision, "r2");
        let mut odd = inbound("no_rule_matched", "r1");
        odd["source_id"] = json!("nobody");
        let mut away = inbound("no_rule_matched", "r1");
        away["direction"] = json!("outbound");
        for line in [inbound("plaintext_refused", "r1"), inbound("no_rules_known", "r1"), odd, away, json!({})] {
            assert_eq!(Decided::of(&line), None, "{line}");
        }
    }
}
