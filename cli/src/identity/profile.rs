//! Everything that the SPIFFE profile has against one certificate, all of it at once (a verifier stops at the first).
//!
//! Called by `show`. It is no verifier: nothing that passes here is trusted by anybody (see `verify`).

use countersign_identity::SpiffeId;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, KeyUsage, ParsedExtension};
use x509_parser::x509::X509Version;

/// The problems, in words; `now` in seconds since 1970.
pub fn problems(certificate: &X509Certificate<'_>, now: i64) -> Vec<String> {
    let mut found = Vec::new();
    let mut problem = |is: bool, text: &str| {
        if is {
            found.push(text.to_owned());
        }
    };
    let validity = certificate.validity();
    problem(certificate.version() != X509Version::V3, "is not version 3");
    problem(now < validity.not_before.timestamp(), "is not valid yet");
    problem(now > validity.not_after.timestamp(), "has expired");
    problem(certificate.raw_serial().len() < 8, "its serial number has fewer than 64 bits");
    let parsed = |extension: &ParsedExtension<'_>| matches!(extension, ParsedExtension::ParseError { .. });
    problem(certificate.extensions().iter().any(|e| parsed(e.parsed_extension())), "an extension cannot be read");
    problem(certificate.extensions_map().is_err(), "an extension occurs twice");
    found.extend(extended_usage(certificate));
    found.extend(if certificate.is_ca() { signing(certificate) } else { leaf(certificate) });
    found
}

/// Every URI name; `None` for one that is no text.
pub fn uris<'a>(certificate: &'a X509Certificate<'_>) -> Vec<Option<&'a str>> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let uri = |name: &'a GeneralName<'_>| match name {
        GeneralName::URI(text) => Some(Some(*text)),
        GeneralName::Invalid(tag, _) if tag.0 == 6 => Some(None),
        _ => None,
    };
    names.value.general_names.iter().filter_map(uri).collect()
}

/// Key usage, if there is one and it can be read.
pub fn key_usage<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a KeyUsage> {
    certificate.key_usage().ok().flatten().map(|extension| extension.value)
}

fn leaf(certificate: &X509Certificate<'_>) -> Vec<String> {
    let mut found = Vec::new();
    if !matches!(certificate.basic_constraints(), Ok(Some(_))) {
        found.push("has no basic constraints: nothing says that it is no CA".to_owned());
    }
    match key_usage(certificate) {
        None => found.push("has no key usage".to_owned()),
        Some(usage) if !usage.digital_signature() => found.push("its key usage lacks digitalSignature".to_owned()),
        Some(usage) if usage.key_cert_sign() || usage.crl_sign() => {
            found.push("its key usage allows signing certificates or revocation lists".to_owned());
        }
        Some(_) => {}
    }
    let uris = uris(certificate);
    match uris.as_slice() {
        [] => found.push("has no URI name, so no SPIFFE id".to_owned()),
        [uri] => found.extend(leaf_id(*uri)),
        several => found.push(format!("has {} URI names; exactly one is allowed", several.len())),
    }
    let names = certificate.subject_alternative_name().ok().flatten();
    if certificate.subject().iter().next().is_none() && names.is_some_and(|names| !names.critical) {
        found.push("has no subject, but its alternative names are not marked critical".to_owned());
    }
    found
}

fn leaf_id(uri: Option<&str>) -> Option<String> {
    match uri.map(SpiffeId::parse) {
        None => Some("its URI name is not text".to_owned()),
        Some(Err(problem)) => Some(format!("its URI name is no SPIFFE id: {problem}")),
        Some(Ok(id)) if id.path().is_empty() => Some("its SPIFFE id has no path: it names a trust domain".to_owned()),
        Some(Ok(_)) => None,
    }
}

fn signing(certificate: &X509Certificate<'_>) -> Vec<String> {
    let mut found = Vec::new();
    if !key_usage(certificate).is_some_and(KeyUsage::key_cert_sign) {
        found.push("is a CA, but its key usage lacks keyCertSign".to_owned());
    }
    let uris = uris(certificate);
    if uris.len() > 1 {
        found.push(format!("has {} URI names; at most one is allowed", uris.len()));
    }
    // The specification's own example has a slash after the trust domain.
    let has_path = |uri: &Option<&str>| {
        uri.map(|text| text.strip_suffix('/').unwrap_or(text))
            .and_then(|text| SpiffeId::parse(text).ok())
            .is_none_or(|id| !id.path().is_empty())
    };
    if uris.iter().any(has_path) {
        found.push("is a CA whose SPIFFE id is not just a trust domain".to_owned());
    }
    let uri_constrained = certificate.name_constraints().ok().flatten().is_some_and(|constraints| {
        let all = constraints.value.permitted_subtrees.iter().chain(&constraints.value.excluded_subtrees).flatten();
        all.into_iter().any(|subtree| matches!(subtree.base, GeneralName::URI(_)))
    });
    if uri_constrained {
        found.push("has name constraints on URIs, which verifiers in the mesh refuse".to_owned());
    }
    found
}

fn extended_usage(certificate: &X509Certificate<'_>) -> Option<String> {
    let usage = certificate.extended_key_usage().ok().flatten()?.value;
    let both = usage.any || (usage.server_auth && usage.client_auth);
    (!both).then(|| "its extended key usage lacks serverAuth or clientAuth".to_owned())
}
