//! `countersign explain ID` and `countersign policy why`: why something was denied, and what would let it in.
//!
//! Called by `main` and `policy`. What is said comes from the proxy that denied it, or is decided here by the rules that it has in
//! force, with the proxy's own code. It must never guess: what no proxy remembers and no log (`log`) has is told as not found.

mod log;

use anyhow::{Context, Result, anyhow, bail, ensure};
use countersign_policy::{Attempt, Egress, Modes, Mtls, PolicySet, Posture, Principal, Received, Source, Trace, trace};
use serde_json::{Value, json};

use self::log::Decided;
use crate::args::{ExplainArgs, WhyArgs};
use crate::cluster::block_on;
use crate::output::{self, Format, Verdict, harmless};
use crate::places::{self, Place, Whose};

/// Pods that are named where one was not found.
const NAMED: usize = 20;

/// Asks every proxy for one denial, then the logs.
pub fn run(args: &ExplainArgs, format: Format) -> Result<Verdict> {
    let id = args.id.to_lowercase();
    ensure!(
        id.len() == 16 && id.bytes().all(|b| b.is_ascii_hexdigit()),
        "{:?} is not a denial's id: 16 hex digits",
        args.id
    );
    let (mut unasked, mut asked_in_vain) = (Vec::new(), Vec::new());
    let asked = async {
        let places = places::find(&args.places, Whose::Sidecars).await?;
        places::ask(places, &format!("/denials/{id}"), |answer| matches!(answer, Ok(Some(_)))).await
    };
    let answers = match block_on(asked) {
        Ok(answers) => answers,
        // Logs alone may do.
        Err(_) if !args.logs.is_empty() && !args.places.kubectl => Vec::new(),
        Err(error) => return Err(error),
    };
    for (place, answer) in answers {
        match answer {
            Ok(Some(mut explained)) => {
                let text = said_by(&place) + explained["text"].as_str().unwrap_or_default();
                if let Value::Object(explained) = &mut explained {
                    explained.extend(place.value());
                }
                output::either(format, &explained, || harmless(&text))?;
                return Ok(Verdict::Yes);
            }
            Ok(None) => asked_in_vain.push(place),
            Err(error) => unasked.push(places::problem(&place, &error)),
        }
    }
    let mut lines = Vec::new();
    for log in &args.logs {
        lines.extend(log::lines(log, &id)?);
    }
    if !lines.is_empty() {
        from_log(&id, &lines, asked_in_vain, format)?;
        return Ok(Verdict::Yes);
    }
    unasked.iter().for_each(|problem| eprintln!("{problem}"));
    let value = json!({ "denial": { "id": id }, "found": false, "problems": unasked });
    output::either(format, &value, || {
        format!("{id}: no proxy that was asked remembers it, and no log that was given has it\n")
    })?;
    Ok(if unasked.is_empty() { Verdict::No } else { Verdict::Unknown })
}

/// What the log has; and if rules decided, each of them, as long as a proxy that answers has them.
fn from_log(id: &str, lines: &[Value], places: Vec<Place>, format: Format) -> Result<()> {
    let mut text = format!("{id}: no proxy remembers it; in the log:\n");
    text.extend(lines.iter().map(log::text));
    let mut value = json!({ "denial": { "id": id }, "log": lines });
    if let Some(decided) = Decided::last(lines) {
        match block_on(decided.tried_again(places))? {
            Some((name, trace)) => {
                text +=
                    &format!("by the rules of that revision, which are in force there still:\n{}", told(&name, &trace));
                value["decided"] = json!({ "workload": name, "change": trace.change(), "trace": trace });
            }
            None => {
                let why =
                    format!("no sidecar that answers has the rules of revision {} in force any more", decided.revision);
                text += &harmless(&format!("{why}: countersign policy why decides by those of today\n"));
                value["not_decided"] = why.into();
            }
        }
    }
    output::either(format, &value, || text)
}

/// A decision, and what would make it another.
fn told(name: &str, trace: &Trace) -> String {
    let change = trace.change().map_or(String::new(), |change| format!("  change    {change}\n"));
    harmless(&format!("{name}: {trace}\n{change}"))
}

/// Whose word it is: in a cluster whoever may make a pod may put a program of his own in a sidecar's place.
fn said_by(place: &Place) -> String {
    place.sidecar_of().map_or_else(String::new, |pod| format!("said by the sidecar of {pod}:\n"))
}

/// Decides an attempt by the rules that a workload's proxy has in force.
pub fn why(args: &WhyArgs, format: Format) -> Result<Verdict> {
    let (workload, port) = args.to.rsplit_once(':').context("--to wants WORKLOAD:PORT")?;
    let port: u16 = port.parse().ok().filter(|port| *port > 0).context("--to wants a port from 1 to 65535")?;
    let principal = args.from.as_deref().map(Principal::parse).transpose().context("--from wants a SPIFFE id")?;
    let (name, dump) = block_on(dump_of(args, workload))?;
    let rules = rules(&dump)?;
    let source = principal.as_ref().map_or(Source::Unauthenticated, Source::Authenticated);
    let trace: Trace = trace(&rules, &Attempt { source, source_ip: args.source_ip, port });
    let value = json!({ "workload": name, "trace": trace, "change": trace.change() });
    output::either(format, &value, || told(&name, &trace))?;
    Ok(Verdict::of(trace.allowed))
}

/// The configuration of the sidecar of the pod, or of the pods of the workload, that is called so: `namespace/name`, or the name alone. Pods of one
/// workload are one as long as they have the same rules in force.
async fn dump_of(args: &WhyArgs, workload: &str) -> Result<(String, Value)> {
    let (sidecars, unasked) = sidecars(places::find(&args.places, Whose::Sidecars).await?).await?;
    let called = |is: fn(&str, &str) -> bool| {
        let of = |name: &str| name.split_once('/').is_some_and(|(_, pod)| is(pod, workload)) || is(name, workload);
        sidecars.iter().filter(|(name, _)| of(name)).collect::<Vec<_>>()
    };
    let found = Some(called(|name, wanted| name == wanted)).filter(|exactly| !exactly.is_empty());
    let found = found.unwrap_or_else(|| called(is_pod_of));
    if found.is_empty() {
        let seen: Vec<_> = sidecars.iter().map(|(name, _)| name.as_str()).collect();
        let mut problem = format!("no sidecar of {workload} was found; there are: {}", some(&seen));
        if !unasked.is_empty() {
            let unasked: Vec<_> = unasked.iter().map(String::as_str).collect();
            problem += &format!("; not answered: {}", some(&unasked));
        }
        bail!(problem)
    }
    let mut dumps = Vec::new();
    for (name, place) in found {
        let dump = place.get("/config_dump").await.map_err(|error| anyhow!(places::problem(place, &error)))?;
        dumps.push((name.clone(), dump.context("this sidecar shows no configuration")?));
    }
    one_of(dumps)
}

/// The first, if all have the same rules in force.
fn one_of(mut dumps: Vec<(String, Value)>) -> Result<(String, Value)> {
    let namespace = |name: &str| name.split_once('/').map(|(namespace, _)| namespace.to_owned());
    // Their revisions differ in any case: pod and node are in them.
    let of = |(name, dump): &(String, Value)| {
        let workload = &dump["discovery"]["workload"];
        (namespace(name), workload["rules"].clone(), workload["modes"].clone())
    };
    let first = dumps.first().map(of);
    if let Some((other, _)) = dumps.iter().find(|dump| Some(of(dump)) != first) {
        let name = dumps[0].0.as_str();
        bail!("{} sidecars have that name, and not the same rules: say one, {name} or {other}", dumps.len())
    }
    Ok(dumps.swap_remove(0))
}

/// Whether a pod's name is one that Kubernetes makes of this workload's: of a StatefulSet's by a number, else by five random letters, for a Deployment
/// behind the hash of its template.
fn is_pod_of(pod: &str, workload: &str) -> bool {
    // apimachinery's pkg/util/rand: no vowels, and nothing that looks like one.
    let random = |word: &str| word.bytes().all(|byte| b"bcdfghjklmnpqrstvwxz2456789".contains(&byte));
    let Some(rest) = pod.strip_prefix(workload).and_then(|rest| rest.strip_prefix('-')) else { return false };
    match rest.split_once('-') {
        None => rest.parse::<u32>().is_ok() || (rest.len() == 5 && random(rest)),
        Some((hash, last)) => (1..=10).contains(&hash.len()) && random(hash) && last.len() == 5 && random(last),
    }
}

/// Sidecars by the names of their pods, `namespace/name`, which a socket is asked for; and what did not answer.
async fn sidecars(places: Vec<Place>) -> Result<(Vec<(String, Place)>, Vec<String>)> {
    let (mut sidecars, mut nameless, mut unasked) = (Vec::new(), Vec::new(), Vec::new());
    for place in places {
        match place.sidecar_of() {
            Some(name) => sidecars.push((name, place)),
            None => nameless.push(place),
        }
    }
    for (place, answer) in places::ask(nameless, "/status", |_| false).await? {
        match answer {
            Ok(Some(status)) => sidecars.extend(pod_of(&status).map(|name| (name, place))),
            Ok(None) => {}
            Err(error) => unasked.push(places::problem(&place, &error)),
        }
    }
    Ok((sidecars, unasked))
}

/// The pod of a sidecar, `namespace/name`, as it says itself.
fn pod_of(status: &Value) -> Option<String> {
    Some(format!("{}/{}", status["pod"]["namespace"].as_str()?, status["pod"]["name"].as_str()?))
}

fn some(names: &[&str]) -> String {
    match names {
        [] => "none".to_owned(),
        _ => names[..names.len().min(NAMED)].join(", ") + if names.len() > NAMED { ", ..." } else { "" },
    }
}

/// The rules in force, as the proxy itself compiled them.
fn rules(dump: &Value) -> Result<PolicySet> {
    let workload = &dump["discovery"]["workload"];
    let revision =
        workload["revision"].as_str().context("this proxy has no rules yet: it denies everything (no_rules_known)")?;
    let trust_domain = dump["config"]["trust_domain"].as_str().context("no trust domain in the configuration")?;
    let word = |name: &str| workload["modes"][name].as_str().unwrap_or_default();
    let modes = Modes {
        mtls: Mtls::from_word(word("mtls")),
        posture: Posture::from_word(word("posture")),
        egress: Egress::from_word(word("egress")),
    };
    let received = workload["rules"].as_array().into_iter().flatten().map(|rule| {
        let (namespace, name) = rule["rule"].as_str().and_then(|rule| rule.split_once('/')).unwrap_or_default();
        let deny = !rule["action"].as_str().is_some_and(|action| action.eq_ignore_ascii_case("allow"));
        let feature = rule["feature"].as_u64().and_then(|feature| u32::try_from(feature).ok()).unwrap_or(u32::MAX);
        let json = rule["policy"].as_str().map_or_else(|| rule["policy"].to_string(), str::to_owned);
        Received::from_wire(namespace, name, deny, feature, &json).0
    });
    Ok(PolicySet::compile(trust_domain, modes, revision, received.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn dump() -> Value {
        let policy = json!({
            "apiVersion": "policy.countersign.dev/v1alpha1", "kind": "AuthorizationPolicy",
            "metadata": { "name": "frontend", "namespace": "shop" },
            "spec": { "action": "Allow", "rules": [{
                "from": [{ "serviceAccounts": [{ "namespace": "shop", "name": "frontend" }] }], "to": [{ "ports": [80] }]
            }] },
        });
        json!({
            "config": { "trust_domain": "cluster.local" },
            "discovery": { "workload": {
                "revision": "r1", "modes": { "mtls": "Strict", "posture": "Enforce", "egress": "Any" },
                "rules": [{ "rule": "shop/frontend", "action": "ALLOW", "feature": 1, "policy": policy }],
            } },
        })
    }

    fn asked(dump: &Value, id: &str, port: u16) -> Trace {
        let principal = Principal::parse(id).unwrap();
        let source = Source::Authenticated(&principal);
        trace(&rules(dump).unwrap(), &Attempt { source, source_ip: [0, 0, 0, 0].into(), port })
    }

    #[test]
    fn the_rules_in_force_are_those_of_the_dump() {
        assert!(asked(&dump(), "spiffe://cluster.local/ns/shop/sa/frontend", 80).allowed);
        let denied = asked(&dump(), "spiffe://cluster.local/ns/shop/sa/intruder", 80);
        assert_eq!((denied.allowed, denied.revision.as_str()), (false, "r1"));
        assert_eq!(denied.change().unwrap(), "add shop/intruder to `from[0].serviceAccounts` of shop/frontend#0");
    }

    #[test]
    fn what_the_proxy_could_not_read_is_not_read_here_either() {
        let mut newer = dump();
        newer["discovery"]["workload"]["rules"][0]["feature"] = json!(99);
        assert!(!asked(&newer, "spiffe://cluster.local/ns/shop/sa/frontend", 80).allowed);
        newer["discovery"]["workload"]["rules"][0]["action"] = json!("DENY");
        let denied = asked(&newer, "spiffe://cluster.local/ns/shop/sa/frontend", 80);
        assert_eq!(denied.reason.label(), "denied_by_unknown_rule");
        newer["discovery"]["workload"] = Value::Null;
        assert!(rules(&newer).unwrap_err().to_string().contains("no_rules_known"));
    }

    #[test]
    fn a_workload_is_known_by_the_names_of_its_pods() {
        for pod in ["orders-7c9f8b5d6-x2lkq", "orders-0", "orders-12", "orders-x2lkq"] {
            assert!(is_pod_of(pod, "orders"), "{pod}");
        }
        for pod in [
            "orders",
            "orders-api-7c9f8b5d6-x2lkq",
            "orders-api-0",
            "orders2-0",
            "orders-",
            "orders-api",
            "orders-7c9f8b5d6-",
        ] {
            assert!(!is_pod_of(pod, "orders"), "{pod}");
        }
        assert!(is_pod_of("shop/orders-0", "shop/orders"));
    }

    #[test]
    fn pods_of_a_workload_are_one_while_they_have_the_same_rules() {
        let named = |name: &str, dump: Value| (name.to_owned(), dump);
        let one = named("shop/orders-0", dump());
        let mut two = dump();
        two["discovery"]["workload"]["revision"] = json!("r2");
        assert_eq!(one_of(vec![one.clone(), named("shop/orders-1", two)]).unwrap().0, "shop/orders-0");
        let (mut newer, mut audited) = (dump(), dump());
        newer["discovery"]["workload"]["rules"][0]["action"] = json!("DENY");
        audited["discovery"]["workload"]["modes"]["posture"] = json!("Audit");
        for other in [("shop/orders-1", newer), ("shop/orders-1", audited), ("bank/orders-0", dump())] {
            let other = named(other.0, other.1);
            let said = one_of(vec![one.clone(), other.clone()]).unwrap_err().to_string();
            assert!(said.contains("not the same rules") && said.contains(&other.0), "{said}");
        }
    }
}
