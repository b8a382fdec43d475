//! What an AuthorizationPolicy may hold, field by field. Called by `parse_document` and `Policy::from_json`.
//! Must never accept a matcher that matches nothing or everything by accident.

use ipnet::IpNet;

use super::cursor::{Cursor, Fields};
use super::{MAX_ENTRIES, MAX_RULES, ParseError, grammar};
use crate::model::{
    API_VERSION, Account, AccountName, Action, Destination, KIND, Mode, Names, Origin, Policy, Rule, Selector, Spec,
};
use crate::principal::{Principal, is_trust_domain};

type Read<T> = Result<T, ParseError>;

pub(super) fn policy(root: Cursor<'_>) -> Read<Policy> {
    let top = root.fields(&["apiVersion", "kind", "metadata", "spec"])?;
    exactly(top.required("apiVersion")?, API_VERSION)?;
    exactly(top.required("kind")?, KIND)?;
    // Labels and annotations are people's own: well-formed, not read.
    let metadata = top.required("metadata")?.fields(&["name", "namespace", "labels", "annotations"])?;
    let name = metadata.required("name")?;
    let namespace = metadata.required("namespace")?;
    Ok(Policy::new(
        named(&namespace, grammar::is_dns_label, "is not a namespace's name (a-z 0-9 -, at most 63)")?,
        named(&name, grammar::is_dns_subdomain, "is not a name (a-z 0-9 - ., at most 253)")?,
        spec(top.required("spec")?)?,
    ))
}

fn spec(at: Cursor<'_>) -> Read<Spec> {
    let fields = at.fields(&["selector", "action", "mode", "rules"])?;
    let action = fields.required("action")?;
    let rules = fields.required("rules")?;
    Ok(Spec {
        selector: fields.optional("selector").map(selector).transpose()?,
        action: word(&action, &[("Allow", Action::Allow), ("Deny", Action::Deny)])?,
        mode: match fields.optional("mode") {
            Some(mode) => word(&mode, &[("Enforce", Mode::Enforce), ("Audit", Mode::Audit)])?,
            None => Mode::Enforce,
        },
        rules: rules.some(MAX_RULES)?.into_iter().map(rule).collect::<Read<_>>()?,
    })
}

fn selector(at: Cursor<'_>) -> Read<Selector> {
    let labels = at.fields(&["matchLabels"])?.required("matchLabels")?;
    let mut match_labels = std::collections::BTreeMap::new();
    for (key, value) in labels.entries()? {
        if !grammar::is_label_key(key) {
            return Err(value.refuse(key, "is not a label's key"));
        }
        let value = named(&value, grammar::is_label_value, "is not a label's value")?;
        match_labels.insert(key.to_owned(), value);
    }
    if match_labels.is_empty() {
        return Err(labels.error("is empty: leave `selector` out to bind the whole namespace"));
    }
    Ok(Selector { match_labels })
}

fn rule(at: Cursor<'_>) -> Read<Rule> {
    let fields = at.fields(&["from", "to"])?;
    let from = fields.optional("from").map(|at| at.list(MAX_ENTRIES)).transpose()?;
    let to = fields.optional("to").map(|at| at.some(MAX_ENTRIES)).transpose()?;
    Ok(Rule {
        from: from.map(|entries| entries.into_iter().map(source).collect()).transpose()?,
        to: to.map(|entries| entries.into_iter().map(destination).collect()).transpose()?,
    })
}

fn source(at: Cursor<'_>) -> Read<Origin> {
    let fields =
        at.fields(&["spiffeIds", "serviceAccounts", "namespaces", "trustDomains", "unauthenticated", "ipBlocks"])?;
    if fields.is_empty() {
        return Err(fields.error("is empty: leave `from` out for any authenticated source"));
    }
    Ok(Origin {
        spiffe_ids: each(&fields, "spiffeIds", spiffe_id)?,
        service_accounts: each(&fields, "serviceAccounts", account)?,
        namespaces: names(
            &fields,
            "namespaces",
            grammar::is_dns_label,
            "is not a namespace's name (a-z 0-9 -, at most 63)",
        )?,
        trust_domains: names(
            &fields,
            "trustDomains",
            is_trust_domain,
            "is not a trust domain's name (a-z 0-9 . - _, at most 255, no scheme)",
        )?,
        unauthenticated: unauthenticated(&fields)?,
        ip_blocks: each(&fields, "ipBlocks", ip_block)?,
    })
}

/// Whether the entry asks for sources without an identity. Then it must say from where, and may not ask who they are.
fn unauthenticated(fields: &Fields<'_>) -> Read<bool> {
    let Some(at) = fields.optional("unauthenticated") else {
        return Ok(false);
    };
    if !at.truth()? {
        return Err(at.error("false is what leaving it out means: leave it out"));
    }
    for name in ["spiffeIds", "serviceAccounts", "namespaces", "trustDomains"] {
        if let Some(other) = fields.optional(name) {
            return Err(other.error(
                "cannot stand beside `unauthenticated`: such a source has no identity; use an entry of its own",
            ));
        }
    }
    if fields.optional("ipBlocks").is_none() {
        return Err(at.error("needs `ipBlocks` beside it (0.0.0.0/0 and ::/0 spell any address)"));
    }
    Ok(true)
}

fn spiffe_id(at: Cursor<'_>) -> Read<Principal> {
    let text = at.text()?;
    if text == "*" {
        return Err(at.error("\"*\" is not an id: `trustDomains: [\"*\"]` spells any authenticated source"));
    }
    let id = Principal::parse(text).map_err(|error| at.refuse(text, &error.to_string()))?;
    if id.as_str() != text {
        return Err(at.refuse(text, &format!("is not in lower case where it may be: write {id}")));
    }
    if id.path().is_empty() {
        return Err(at.refuse(text, "has no path, so nobody carries it: use `trustDomains`"));
    }
    Ok(id)
}

fn account(at: Cursor<'_>) -> Read<Account> {
    let fields = at.fields(&["namespace", "name"])?;
    let (namespace, name) = (fields.required("namespace")?, fields.required("name")?);
    if namespace.text()? == "*" {
        return Err(
            namespace.error("cannot be \"*\": whoever may create a namespace could take the name; list namespaces")
        );
    }
    Ok(Account {
        namespace: named(&namespace, grammar::is_dns_label, "is not a namespace's name (a-z 0-9 -, at most 63)")?,
        name: match name.text()? {
            "*" => AccountName::Any,
            _ => AccountName::Named(named(
                &name,
                grammar::is_dns_subdomain,
                "is not a service account's name (a-z 0-9 - ., at most 253)",
            )?),
        },
    })
}

fn ip_block(at: Cursor<'_>) -> Read<IpNet> {
    let text = at.text()?;
    if let Ok(address) = text.parse::<std::net::IpAddr>() {
        return Err(at.refuse(text, &format!("has no prefix length: write {}", IpNet::from(address))));
    }
    let net = cidr(text).ok_or_else(|| at.refuse(text, "is not a CIDR like 10.0.0.0/8 or fd00::/8"))?;
    if net != net.trunc() {
        return Err(at.refuse(text, &format!("has host bits set: write {}", net.trunc())));
    }
    if let IpNet::V6(v6) = net
        && let Some(v4) = v6.addr().to_ipv4_mapped()
        && let Some(bits) = v6.prefix_len().checked_sub(96)
    {
        return Err(at.refuse(text, &format!("is IPv4 in IPv6's clothes: write {v4}/{bits}")));
    }
    Ok(net)
}

/// Strictly: `ipnet`'s own parser takes `10.0.0/8` for a network.
fn cidr(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let plain = length.bytes().all(|b| b.is_ascii_digit()) && (length == "0" || !length.starts_with('0'));
    let length = length.parse().ok().filter(|_| plain)?;
    IpNet::new(address.parse().ok()?, length).ok()
}

fn destination(at: Cursor<'_>) -> Read<Destination> {
    let fields = at.fields(&["ports"])?;
    if fields.is_empty() {
        return Err(fields.error("is empty: leave `to` out for any port"));
    }
    let ports = fields.required("ports")?.some(MAX_ENTRIES)?;
    Ok(Destination { ports: ports.into_iter().map(port).collect::<Read<_>>()? })
}

fn port(at: Cursor<'_>) -> Read<u16> {
    let number = at.whole_number()?;
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(at.error(format!("{number} is not a port (1-65535)"))),
    }
}

/// The entries of an optional list; none if it is left out.
fn each<T>(fields: &Fields<'_>, name: &str, read: fn(Cursor<'_>) -> Read<T>) -> Read<Vec<T>> {
    match fields.optional(name) {
        Some(list) => list.some(MAX_ENTRIES)?.into_iter().map(read).collect(),
        None => Ok(Vec::new()),
    }
}

/// A list of names, or `["*"]` alone.
fn names(fields: &Fields<'_>, name: &str, fits: fn(&str) -> bool, why: &str) -> Read<Option<Names>> {
    let Some(list) = fields.optional(name) else {
        return Ok(None);
    };
    let entries = list.some(MAX_ENTRIES)?;
    let mut names = Vec::with_capacity(entries.len());
    for entry in &entries {
        if entry.text()? == "*" {
            if entries.len() > 1 {
                return Err(entry.error("\"*\" stands alone: beside it the other names say nothing"));
            }
            return Ok(Some(Names::Any));
        }
        names.push(named(entry, fits, why)?);
    }
    Ok(Some(Names::These(names)))
}

fn named(at: &Cursor<'_>, fits: fn(&str) -> bool, why: &str) -> Read<String> {
    let text = at.text()?;
    if fits(text) { Ok(text.to_owned()) } else { Err(at.refuse(text, why)) }
}

fn exactly(at: Cursor<'_>, word: &str) -> Read<()> {
    match at.text()? {
        text if text == word => Ok(()),
        other => Err(at.refuse(other, &format!("is not {word}"))),
    }
}

fn word<T: Copy>(at: &Cursor<'_>, words: &[(&str, T)]) -> Read<T> {
    let text = at.text()?;
    match words.iter().find(|(word, _)| *word == text) {
        Some((_, value)) => Ok(*value),
        None => {
            let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            Err(at.refuse(text, &format!("is not {}", known.join(" or "))))
        }
    }
}
