//! `countersign identity verify`: the mesh's own verifier, at the command line.
//!
//! Called by `identity`. It must never have an opinion of its own: what `verify_svid` refuses is refused.

use std::time::Duration;

use anyhow::{Context, Result};
use countersign_identity::{BundleSet, Purpose, TrustBundle, TrustDomain, utc, verify_svid};
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::chain;
use crate::args::{Side, VerifyArgs};
use crate::output::{self, Format, Style, Verdict};

/// Verifies for one side or for both.
pub fn run(args: &VerifyArgs, format: Format) -> Result<Verdict> {
    let now = at(args.at.as_deref())?;
    let peer = chain::read(&args.file)?;
    let trust_domain = TrustDomain::parse(&args.trust_domain).context("--trust-domain")?;
    let roots = chain::read(&args.bundle).context("--bundle")?;
    let bundle = TrustBundle::new(trust_domain, 1, roots, now).context("--bundle")?;
    let bundles = BundleSet::new(vec![bundle]).context("--bundle")?;
    let sides = args.purpose.map_or(vec![Side::Client, Side::Server], |side| vec![side]);
    let mut results = Vec::new();
    for side in sides {
        let (name, purpose) = match side {
            Side::Client => ("client", Purpose::Client),
            Side::Server => ("server", Purpose::Server),
        };
        results.push(match verify_svid(&peer, &bundles, purpose, now) {
            Ok(id) => {
                json!({ "as": name, "verified": true, "spiffe_id": id.id().as_str(), "not_after": utc(id.not_after()) })
            }
            Err(error) => json!({ "as": name, "verified": false, "reason": error.to_string(), "label": error.label() }),
        });
    }
    let holds = results.iter().all(|result| result["verified"] == true);
    output::either(format, &results, || text(&results, Style::detect()))?;
    Ok(Verdict::of(holds))
}

fn at(text: Option<&str>) -> Result<UnixTime> {
    let Some(text) = text else { return Ok(UnixTime::now()) };
    let time = OffsetDateTime::parse(text, &Rfc3339).context("--at: not an RFC 3339 time like 2026-11-21T12:00:00Z")?;
    let seconds = u64::try_from(time.unix_timestamp()).context("--at: before 1970")?;
    Ok(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
}

fn text(results: &[Value], style: Style) -> String {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let line = |result: &Value| match result["verified"] == true {
        true => format!(
            "{} as {}: {}, until {}\n",
            style.good("verified"),
            word(&result["as"]),
            word(&result["spiffe_id"]),
            word(&result["not_after"])
        ),
        false => format!("{} as {}: {}\n", style.bad("refused"), word(&result["as"]), word(&result["reason"])),
    };
    results.iter().map(line).collect()
}
