//! `countersign identity show`: what a chain says about itself.
//!
//! Called by `identity`. Exit code 1 when the SPIFFE profile has something against a certificate; what was read is
//! shown all the same.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use super::{chain, profile};
use crate::output::{self, Format, Style, Verdict};

/// What one certificate says.
#[derive(Debug, Serialize)]
struct Shown {
    ca: bool,
    spiffe_id: Option<String>,
    subject: String,
    issuer: String,
    serial: String,
    not_before: String,
    not_after: String,
    /// Negative after the end.
    seconds_left: i64,
    key: String,
    /// SHA-256 of the SubjectPublicKeyInfo, by which the CA and the logs name a key.
    key_sha256: String,
    usages: Vec<&'static str>,
    problems: Vec<String>,
}

/// Reads and prints.
pub fn run(file: &Path, format: Format) -> Result<Verdict> {
    let now = OffsetDateTime::now_utc();
    let chain = chain::read(file)?;
    let shown = chain.iter().map(|der| shown(der, now)).collect::<Result<Vec<_>>>()?;
    output::either(format, &shown, || text(&shown, Style::detect()))?;
    Ok(Verdict::of(shown.iter().all(|one| one.problems.is_empty())))
}

fn shown(der: &[u8], now: OffsetDateTime) -> Result<Shown> {
    let (rest, certificate) = X509Certificate::from_der(der).ok().context("not the DER of an X.509 certificate")?;
    let mut problems = profile::problems(&certificate, now.unix_timestamp());
    if !rest.is_empty() {
        problems.push("bytes follow the certificate".to_owned());
    }
    let not_after = certificate.validity().not_after.to_datetime();
    Ok(Shown {
        ca: certificate.is_ca(),
        spiffe_id: profile::uris(&certificate).into_iter().flatten().next().map(str::to_owned),
        subject: certificate.subject().to_string(),
        issuer: certificate.issuer().to_string(),
        serial: hex(certificate.raw_serial()),
        not_before: certificate.validity().not_before.to_datetime().format(&Rfc3339)?,
        not_after: not_after.format(&Rfc3339)?,
        seconds_left: (not_after - now).whole_seconds(),
        key: key(&certificate),
        key_sha256: hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate.public_key().raw).as_ref()),
        usages: usages(&certificate),
        problems,
    })
}

fn key(certificate: &X509Certificate<'_>) -> String {
    let spki = certificate.public_key();
    match spki.parsed() {
        Ok(PublicKey::EC(point)) => format!("ECDSA P-{}", point.key_size()),
        Ok(PublicKey::RSA(rsa)) => format!("RSA {}", rsa.key_size()),
        _ if spki.algorithm.algorithm.to_id_string() == "1.3.101.112" => "Ed25519".to_owned(),
        _ => format!("algorithm {}", spki.algorithm.algorithm.to_id_string()),
    }
}

fn usages(certificate: &X509Certificate<'_>) -> Vec<&'static str> {
    let extended = certificate.extended_key_usage().ok().flatten().map(|extension| extension.value);
    let usage = profile::key_usage(certificate);
    let all = [
        (usage.is_some_and(|usage| usage.digital_signature()), "digitalSignature"),
        (usage.is_some_and(|usage| usage.key_encipherment()), "keyEncipherment"),
        (usage.is_some_and(|usage| usage.key_agreement()), "keyAgreement"),
        (usage.is_some_and(|usage| usage.key_cert_sign()), "keyCertSign"),
        (usage.is_some_and(|usage| usage.crl_sign()), "cRLSign"),
        (extended.is_some_and(|usage| usage.server_auth), "serverAuth"),
        (extended.is_some_and(|usage| usage.client_auth), "clientAuth"),
    ];
    all.into_iter().filter(|(is, _)| *is).map(|(_, name)| name).collect()
}

/// Lower case, two digits a byte.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn text(shown: &[Shown], style: Style) -> String {
    let mut text = String::new();
    for (number, one) in shown.iter().enumerate() {
        let kind = if one.ca { "CA" } else { "leaf" };
        let _ = writeln!(text, "{}", style.strong(&format!("certificate {} of {}: {kind}", number + 1, shown.len())));
        let lines = [
            ("SPIFFE id", one.spiffe_id.clone().unwrap_or_else(|| "none".to_owned())),
            ("subject", if one.subject.is_empty() { "empty".to_owned() } else { one.subject.clone() }),
            ("issuer", one.issuer.clone()),
            ("serial", one.serial.clone()),
            ("valid", format!("{} to {} (ends {})", one.not_before, one.not_after, output::span(one.seconds_left))),
            ("key", one.key.clone()),
            ("key hash", format!("sha256:{}", one.key_sha256)),
            ("usages", one.usages.join(", ")),
        ];
        for (name, value) in lines {
            let _ = writeln!(text, "  {name:10} {value}");
        }
        for problem in &one.problems {
            let _ = writeln!(text, "  {:10} {}", style.bad("problem"), problem);
        }
    }
    text
}
