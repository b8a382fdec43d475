//! `countersign ca report verify`: is this report what the CA of this bundle has signed?
//!
//! Called by `ca`. It must never call a report good whose signer nobody vouches for, and never judge by what the report says of itself.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_api::names;
use countersign_api::report::{ALGORITHM, FORMAT, canonical};
use countersign_identity::{BundleSet, Purpose, TrustBundle, TrustDomain, verify_svid};
use rustls_pki_types::{CertificateDer, UnixTime};
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::say;
use crate::identity::chain;
use crate::input;
use crate::output::{self, Format, Style, Verdict};

/// Largest report: some 100,000 holders.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// Exit code 0: the CA of this bundle has signed it. 1: it has not. 2: it is no report, or there is no bundle.
pub fn verify(file: &Path, bundle: Option<&Path>, format: Format) -> Result<Verdict> {
    let text = input::text(file, MAX_BYTES).with_context(|| file.display().to_string())?;
    let envelope: Value = serde_json::from_str(&text).with_context(|| format!("{}: not JSON", file.display()))?;
    let report = &envelope["report"];
    ensure!(report["format"] == FORMAT, "{}: not a report of a rotation", file.display());
    let Some(bundle) = bundle else {
        bail!("whose CA is it to be? --bundle FILE (the CA's bundle.pem, or the ConfigMap countersign-bundle)");
    };
    let roots = chain::read(bundle).context("--bundle")?;
    let judged = judge(&envelope, roots);
    let verdict = Verdict::of(judged.is_ok());
    let value = match &judged {
        Ok(id) => json!({ "verified": true, "signed_by": id, "report": report }),
        Err(why) => json!({ "verified": false, "reason": format!("{why:#}") }),
    };
    output::either(format, &value, || match &judged {
        Ok(id) => format!(
            "{} {id} has signed it\n{}{}",
            Style::detect().good("verified"),
            say::report(report, file),
            say::holders(report)
        ),
        Err(why) => format!("{} {why:#}\n", Style::detect().bad("refused")),
    })?;
    Ok(verdict)
}

/// Who has signed it, as the bundle vouches for at the time at which it was made.
fn judge(envelope: &Value, roots: Vec<CertificateDer<'static>>) -> Result<String> {
    let (report, signature) = (&envelope["report"], &envelope["signature"]);
    ensure!(signature["algorithm"] == ALGORITHM, "signed by an algorithm that is not {ALGORITHM}");
    let decode =
        |value: &Value| STANDARD.decode(value.as_str().unwrap_or_default()).context("the signature is not base64");
    let chain: Vec<CertificateDer<'static>> = signature["chain"]
        .as_array()
        .context("no chain")?
        .iter()
        .map(|der| Ok(CertificateDer::from(decode(der)?)))
        .collect::<Result<_>>()?;
    let made_at = report["made_at_unix"].as_u64().context("no time")?;
    let now = UnixTime::since_unix_epoch(Duration::from_secs(made_at));
    let domain = TrustDomain::parse(report["trust_domain"].as_str().unwrap_or_default()).context("trust domain")?;
    let bundle = TrustBundle::new(domain, 1, roots, now).context("--bundle")?;
    let bundles = BundleSet::new(vec![bundle]).context("--bundle")?;
    let signer =
        verify_svid(&chain, &bundles, Purpose::Server, now).context("the bundle does not vouch for the signer")?;
    let account = signer.id().service_account().map(|(_, account)| account);
    ensure!(account == Some(names::CA_ACCOUNT), "signed by {}, which is no CA", signer.id());
    let leaf = chain.first().context("no chain")?;
    let (_, leaf) = X509Certificate::from_der(leaf).ok().context("the signer's certificate does not parse")?;
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, leaf.public_key().subject_public_key.data.as_ref());
    key.verify(canonical(report).as_bytes(), &decode(&signature["value"])?)
        .ok()
        .context("the signature is not one of this report: it was changed")?;
    Ok(signer.id().as_str().to_owned())
}
