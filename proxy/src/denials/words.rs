//! An entry in words: what was seen, what decided, what would let it in. Called by `Denials::explain`. Must never say other than the
//! decision: rules are tried again by the set that decided, with the code that decided.

use countersign_policy::{Attempt, PolicySet, Reason, Source, Trace, trace};

use super::{DenialView, Explained, Ground, Refused};
use crate::permit::Asking;

pub(super) fn traced(rules: &PolicySet, asking: &Asking) -> Option<Trace> {
    match asking {
        Asking::Out { .. } => None,
        Asking::In { who, source_ip, port } => {
            let source = who.as_deref().map_or(Source::Unauthenticated, Source::Authenticated);
            Some(trace(rules, &Attempt { source, source_ip: *source_ip, port: *port }))
        }
    }
}

/// By rules, or for want of them.
pub(super) fn denied(denial: DenialView, trace: Option<Trace>) -> Explained {
    let change = trace.as_ref().and_then(Trace::change).unwrap_or_else(|| without_rules(denial.reason).to_owned());
    let head = match &trace {
        Some(trace) => trace.to_string(),
        None => {
            let revision = denial.revision.as_deref().unwrap_or("none");
            format!("denied: {}\n{}\n  revision  {revision}", denial.reason, ends(&denial))
        }
    };
    let text = whole(&denial, &head, &change);
    Explained { denial, change, trace, text }
}

/// Before any rule was asked. Only a port that no Allow opens is the rules' own doing: then all of them are shown.
pub(super) fn refused(
    denial: DenialView,
    refused: &Refused,
    rules: Option<&PolicySet>,
    trace: Option<Trace>,
) -> Explained {
    let change = change(refused.ground, trace.as_ref());
    let trace = trace.filter(|trace| refused.ground == Ground::Strict && !trace.allowed);
    let rest = match (&trace, rules) {
        // All but the verdict, which is not what happened.
        (Some(trace), _) => trace.to_string().lines().skip(1).collect::<Vec<_>>().join("\n"),
        (None, Some(rules)) => {
            let (modes, revision) = (rules.modes(), rules.revision());
            let modes = format!("mtls {}, posture {}, egress {}", modes.mtls, modes.posture, modes.egress);
            format!("{}\n  revision  {revision} ({modes})", ends(&denial))
        }
        (None, None) => {
            format!("{}\n  revision  {}", ends(&denial), denial.revision.as_deref().unwrap_or("none"))
        }
    };
    let (seen, ground) = (&refused.seen, why(refused.ground));
    let head = format!("refused: {}\n  seen      {seen}\n  because   {ground}\n{rest}", denial.reason);
    let text = whole(&denial, &head, &change);
    Explained { denial, change, trace, text }
}

fn whole(denial: &DenialView, head: &str, change: &str) -> String {
    let times = if denial.count == 1 { String::new() } else { format!(", {} times", denial.count) };
    let several = match denial.several_of {
        Some(network) => format!(
            "  several   addresses of {network} came under this id; this is the last one: ask who they are before you let one in\n"
        ),
        None => String::new(),
    };
    format!("{}{times}: {head}\n{several}  change    {change}\n", denial.id)
}

fn ends(denial: &DenialView) -> String {
    let from = denial.identity.as_deref().unwrap_or("no identity");
    match (denial.destination, denial.source_ip) {
        (Some(to), _) => format!("  source    the pod's own app\n  to        {to}"),
        (None, Some(ip)) => format!("  source    {from} at {ip}\n  port      {}", denial.port),
        (None, None) => format!("  source    {from}"),
    }
}

/// What to do where no rule was tried, or the rules are no longer held.
fn without_rules(reason: &'static str) -> &'static str {
    match reason {
        "no_rules_known" => "let this proxy reach its controller: it never got rules",
        "egress_mesh_only" => {
            "give the other end a sidecar; or label the namespace countersign.dev/egress: Any (a bad label counts as MeshOnly)"
        }
        _ => {
            "the rules of that revision are no longer held here: ask again after the next denial, or `countersign policy why`"
        }
    }
}

fn why(ground: Ground) -> &'static str {
    match ground {
        Ground::NoRules => "no rules came yet, and so nothing opens a port to sources without mutual TLS",
        Ground::Strict => "mtls is Strict, and no Allow opens the port to sources without identity",
        Ground::MeshedSource => {
            "the source's address is a meshed workload's, which must come by its sidecar in every mode"
        }
        Ground::UnknownSource => {
            "mtls is Strict, and the controller knows no workload at the source's address, or did not answer"
        }
        Ground::Handshake => "the handshake of mutual TLS failed, and without it nobody has an identity",
        Ground::OwnSvid => "this proxy has no SVID of its own that is good, and cannot show who it is",
        Ground::UnknownDestination => {
            "inside the mesh's ranges nobody is dialled but those whom the controller knows: it would be plaintext to a stranger"
        }
        Ground::NobodyReady => {
            "a service is reached at its ready endpoints alone, and what began with mutual TLS does not go on without"
        }
        Ground::NoAnswer => "nobody is dialled whom the controller has not named, and its earlier answers have run out",
        Ground::TooManyAddresses => "an app may ask for so many new addresses at a time, and no more",
        Ground::SomebodyElse => {
            "only the identity that the controller names is spoken to, and it named the same when it was asked again"
        }
        Ground::HandshakeOut => "the handshake of mutual TLS failed, and a meshed workload is never spoken to without",
    }
}

fn change(ground: Ground, trace: Option<&Trace>) -> String {
    const SIDECAR: &str = "give the source a sidecar";
    match ground {
        Ground::NoRules => "let this proxy reach its controller: it never got rules".into(),
        Ground::Strict => {
            let or = match trace {
                None => "an Allow with `unauthenticated: true` for its address and this port".into(),
                // A Deny stands in the way as well.
                Some(trace) if matches!(trace.reason, Reason::DeniedByRule | Reason::DeniedByUnknownRule) => {
                    trace.change().unwrap_or_default()
                }
                Some(trace) => trace.an_allow(),
            };
            format!("{SIDECAR}; or {or}")
        }
        Ground::MeshedSource => {
            "let the source come through its sidecar: is its redirect lost, or does it skip this port or address? If it has no sidecar, \
             what the controller knows of it is wrong"
                .into()
        }
        Ground::UnknownSource => {
            "let the controller know the source's workload (is it in reach? `countersign status` says so); or, for a while, label the namespace countersign.dev/mtls: Permissive".into()
        }
        Ground::Handshake => "let the source's sidecar show a certificate that is good here: docs/errors.md, TLS handshakes".into(),
        Ground::OwnSvid => "let this proxy reach its CA: countersign status says why its SVID is not renewed".into(),
        Ground::UnknownDestination => {
            "let the controller know the workload, or the service's port, if that address is meant: does it hold back a file (`countersign \
             status`)?"
                .into()
        }
        Ground::NobodyReady => {
            "let a workload of that service be ready, with a sidecar; if one is, does the service's selector match it, and is it on this node \
             where internalTrafficPolicy is Local?"
                .into()
        }
        Ground::NoAnswer => "let this proxy reach its controller: countersign status says why it is not connected".into(),
        Ground::TooManyAddresses => {
            "let the app dial fewer new addresses at a time; if it does not scan, is the controller in reach? `countersign status` says so"
                .into()
        }
        Ground::SomebodyElse => {
            "let the controller know who is at that address: is the workload's `serviceAccount` the pod's, and has the address gone to \
             another pod?"
                .into()
        }
        Ground::HandshakeOut => {
            "let both sidecars take each other's certificate: docs/errors.md, TLS handshakes, and the other one's log of that second"
                .into()
        }
    }
}
