//! Whether the mesh that is installed is as it should be: objects, processes, webhooks, roots, certificates, rules, pods. Pure.
//!
//! Called by `check`, after the install.

use countersign_api::names;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::Value;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::cluster::init_status;
use super::world::World;
use super::{Finding, State, served, some_of};
use crate::cluster::api::CallError;
use crate::cluster::meshed;
use crate::output::span;

/// Two processes of three, and more than one replica, is no reason to look further.
const DEPLOYMENTS: [&str; 3] = [names::CA_ACCOUNT, names::CONTROLLER_ACCOUNT, names::INJECTOR_ACCOUNT];
/// A root that ends sooner than this is to be rotated now: new ones must reach everybody first.
const ROOT_SECONDS: i64 = 30 * 86_400;
/// Who asks the injector: for pods, and for rules.
const WEBHOOKS: [(&str, &str); 2] = [
    ("MutatingWebhookConfiguration", "countersign-injector"),
    ("ValidatingWebhookConfiguration", "countersign-policies"),
];
/// How long a sidecar may take to be ready, for whatever reason, before it is named.
const START_SECONDS: i64 = 60;

pub fn findings(world: &World) -> Vec<Finding> {
    vec![
        objects(world),
        processes(world),
        injection(world),
        validation(world),
        webhook_certificates(world),
        served::finding(world),
        roots(world),
        copies(world),
        rules(world),
        labels(world),
        misplaced(world),
        unmeshed(world),
        sidecars(world),
        versions(world),
    ]
}

fn objects(world: &World) -> Finding {
    let mut missing = Vec::new();
    let mut unseen = "";
    for (name, found) in &world.ours {
        match found {
            // Whoever may not read it may look at all the rest.
            Err(CallError::Forbidden(_)) if name.kind().kind == "Secret" => {
                unseen = "; a Secret, which you may not read, was not looked for";
            }
            Err(error) => return Finding::unknown("objects", error),
            Ok(None) => missing.push(format!("{name} is missing")),
            Ok(Some(_)) => {}
        }
    }
    let well = format!("all {} are there{unseen}", world.ours.len());
    Finding::none_of(
        "objects",
        well,
        &missing,
        "install again: `countersign install | kubectl apply -f -`, or helm upgrade",
    )
}

fn processes(world: &World) -> Finding {
    let mut down = Vec::new();
    let mut said = Vec::new();
    for name in DEPLOYMENTS {
        let Some(deployment) = world.our("Deployment", name) else { continue };
        let number = |at: &Value, key: &str| at[key].as_i64().unwrap_or(0);
        let (want, have) =
            (number(&deployment["spec"], "replicas"), number(&deployment["status"], "availableReplicas"));
        said.push(format!("{name} {have}/{want}"));
        if have < want {
            down.push(format!("{name}: {have} of {want} replicas are available"));
        }
    }
    if said.is_empty() {
        return Finding::problem("processes", "none is installed", "install the mesh");
    }
    let todo = format!("kubectl -n {} describe pods; kubectl -n {} logs deploy/NAME", world.namespace, world.namespace);
    Finding::none_of("processes", said.join(", "), &down, &todo)
}

/// A pod that is labelled in was shown to the API server, which asked the injector.
fn injection(world: &World) -> Finding {
    let todo = format!("kubectl -n {} logs deploy/{}", world.namespace, names::INJECTOR_ACCOUNT);
    match &world.tried_pod {
        Ok(pod) if meshed::has_sidecar(pod) => {
            Finding::ok("injection", "a pod that is labelled in gets its sidecar (tried, not made)")
        }
        Ok(_) => Finding::problem(
            "injection",
            "a pod that is labelled in gets no sidecar",
            "install again: the webhook configuration is not there",
        ),
        Err(CallError::Refused { message, .. })
            if message.contains("denied the request") && message.contains("countersign.dev") =>
        {
            Finding::ok(
                "injection",
                format!("the injector is reached; a pod in the namespace default it refuses: {message}"),
            )
        }
        Err(CallError::Refused { message, .. } | CallError::Unavailable(message)) if message.contains("webhook") => {
            Finding::problem(
                "injection",
                format!("the injector is not reached, pods that are labelled in are refused: {message}"),
                todo,
            )
        }
        // It asks the injector first: without the sidecar no level has anything against this pod.
        Err(CallError::Forbidden(message)) if message.contains("violates PodSecurity") => Finding::problem(
            "injection",
            format!("the injector is reached; in the namespace default the API server refuses the sidecar: {message}"),
            "label each namespace that is to be meshed pod-security.kubernetes.io/enforce=privileged; default too, \
             where this is tried",
        ),
        Err(error) => Finding::unknown("injection", error),
    }
}

/// A rule with an unknown field was shown to the API server, which must refuse it by its name.
fn validation(world: &World) -> Finding {
    let todo = format!("kubectl -n {} logs deploy/{}", world.namespace, names::INJECTOR_ACCOUNT);
    match &world.tried_policy {
        Err(CallError::Refused { message, .. }) if message.contains("checkedField") => {
            Finding::ok("validation", "a bad rule is refused with its field's name (tried, not made)")
        }
        Ok(Value::Null) => Finding::problem("validation", "the kind AuthorizationPolicy is not there", "install again"),
        Ok(_) => Finding::problem(
            "validation",
            "a bad rule is let in",
            "install again: the webhook configuration is not there",
        ),
        Err(CallError::Refused { message, .. } | CallError::Unavailable(message)) => {
            Finding::problem("validation", format!("rules cannot be changed: {message}"), todo)
        }
        Err(error) => Finding::unknown("validation", error),
    }
}

/// Well only if both configurations were seen, with a certificate in each of their webhooks.
fn webhook_certificates(world: &World) -> Finding {
    const CHECK: &str = "webhook certificate";
    let todo = format!(
        "kubectl -n {} logs deploy/{}: it renews them; what is missing comes with an install",
        world.namespace,
        names::INJECTOR_ACCOUNT
    );
    let now = world.server_time().unwrap_or_else(OffsetDateTime::now_utc);
    let (mut bad, mut ends, mut unseen) = (Vec::new(), Vec::new(), Vec::new());
    for (kind, name) in WEBHOOKS {
        let object = match world.answer(kind, name) {
            Some(Ok(Some(object))) => object,
            Some(Ok(None)) | None => {
                bad.push(format!("{kind} {name} is missing"));
                continue;
            }
            Some(Err(error)) => {
                unseen.push(error);
                continue;
            }
        };
        let hooks = object["webhooks"].as_array().map(Vec::as_slice).unwrap_or_default();
        if hooks.is_empty() {
            bad.push(format!("{kind} {name} has no webhook"));
        }
        for hook in hooks {
            let hook_name = hook["name"].as_str().unwrap_or_default();
            let bundle = hook["clientConfig"]["caBundle"].as_str().and_then(decode).unwrap_or_default();
            match last_end(&bundle) {
                None => bad.push(format!("{hook_name} has no caBundle")),
                Some(end) if end <= now => bad.push(format!("the caBundle of {hook_name} ended {}", until(end, now))),
                Some(end) => ends.push(end),
            }
        }
    }
    match (unseen.first(), ends.iter().min()) {
        (Some(error), _) if bad.is_empty() => Finding::unknown(CHECK, error),
        (None, Some(end)) if bad.is_empty() => {
            Finding::ok(CHECK, format!("the first caBundle ends {}", until(*end, now)))
        }
        _ => {
            bad.extend(unseen.iter().map(ToString::to_string));
            Finding::problem(CHECK, some_of(&bad), todo)
        }
    }
}

fn roots(world: &World) -> Finding {
    let maps = match &world.roots {
        Ok(maps) => maps,
        Err(error) => return Finding::unknown("roots", error),
    };
    let now = world.server_time().unwrap_or_else(OffsetDateTime::now_utc);
    let Some(own) = maps.iter().find(|map| map["metadata"]["namespace"] == world.namespace.as_str()) else {
        let todo = format!("kubectl -n {} logs deploy/{}: it writes them", world.namespace, names::CA_ACCOUNT);
        return Finding::problem(
            "roots",
            format!("ConfigMap {} is not in {}", names::BUNDLE_CONFIG_MAP, world.namespace),
            todo,
        );
    };
    match last_end(pem(own).as_bytes()) {
        None => Finding::problem("roots", "the ConfigMap holds no certificate", "restart the CA: it writes it anew"),
        Some(end) if (end - now).whole_seconds() < ROOT_SECONDS => {
            Finding::problem("roots", format!("the newest root ends {}", until(end, now)), "rotate the root now")
        }
        Some(end) => Finding::ok("roots", format!("the newest root ends {}", until(end, now))),
    }
}

/// Pods start with the roots of their own namespace.
fn copies(world: &World) -> Finding {
    let (maps, pods, namespaces) = match (&world.roots, &world.pods, &world.namespaces) {
        (Ok(maps), Ok(pods), Ok(namespaces)) => (maps, pods, namespaces),
        (Err(error), ..) | (_, Err(error), _) | (.., Err(error)) => {
            return Finding::unknown("copies of the roots", error);
        }
    };
    let own =
        maps.iter().find(|map| map["metadata"]["namespace"] == world.namespace.as_str()).map(pem).unwrap_or_default();
    let labelled = namespaces.iter().filter(|namespace| meshed::label(namespace) == Some("enabled"));
    let labelled = labelled.filter_map(|namespace| namespace["metadata"]["name"].as_str());
    let of_pods = pods
        .iter()
        .filter(|pod| meshed::label(pod) == Some("enabled"))
        .filter_map(|pod| pod["metadata"]["namespace"].as_str());
    let mut wanted: Vec<&str> = labelled.chain(of_pods).filter(|name| *name != "kube-system").collect();
    wanted.sort_unstable();
    wanted.dedup();
    let differs =
        |namespace: &&&str| !maps.iter().any(|map| map["metadata"]["namespace"] == **namespace && pem(map) == own);
    let behind: Vec<_> = wanted.iter().filter(differs).map(|name| format!("{name} has not the CA's roots")).collect();
    let todo = format!("kubectl -n {} logs deploy/{}: it writes them", world.namespace, names::CA_ACCOUNT);
    Finding::none_of("copies of the roots", format!("{} meshed namespaces have them", wanted.len()), &behind, &todo)
}

fn rules(world: &World) -> Finding {
    let policies = match &world.policies {
        Ok(policies) => policies,
        Err(error) => return Finding::unknown("rules", error),
    };
    let mut bad = Vec::new();
    for policy in policies {
        let conditions = policy["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
        match conditions.iter().find(|condition| condition["type"] == "Accepted") {
            Some(condition) if condition["status"] == "True" => {}
            Some(condition) => {
                bad.push(format!(
                    "{}: {}",
                    meshed::place(policy),
                    condition["message"].as_str().unwrap_or("not accepted")
                ));
            }
            None => bad.push(format!("{}: no controller has looked at it", meshed::place(policy))),
        }
    }
    let well = format!("the controller understands all {}", policies.len());
    Finding::none_of(
        "rules",
        well,
        &bad,
        "mend these rules; until then the last good version of each is in force, or none",
    )
}

/// A misspelled word is taken for the strictest, or, by the injector, for a reason to refuse pods.
fn labels(world: &World) -> Finding {
    let namespaces = match &world.namespaces {
        Ok(namespaces) => namespaces,
        Err(error) => return Finding::unknown("labels", error),
    };
    let mut bad = Vec::new();
    for namespace in namespaces {
        let name = namespace["metadata"]["name"].as_str().unwrap_or_default();
        let labels = namespace["metadata"]["labels"].as_object().into_iter().flatten();
        let labels = labels.filter_map(|(key, word)| Some((key.clone(), word.as_str()?.to_owned()))).collect();
        bad.extend(
            countersign_policy::Modes::from_labels(&labels).1.iter().map(|problem| format!("{name}: {problem}")),
        );
        if let Some(word) = meshed::label(namespace).filter(|word| !matches!(*word, "enabled" | "disabled")) {
            bad.push(format!(
                "{name}: label {}: {word:?} is not one of enabled, disabled; its pods are refused",
                names::LABEL_INJECT
            ));
        }
    }
    Finding::none_of(
        "labels",
        format!("{} namespaces have none that nobody knows", namespaces.len()),
        &bad,
        "spell them right",
    )
}

/// A pod that was annotated where it should have been labelled is nobody's but who looks at it: the injector is not asked for it.
fn misplaced(world: &World) -> Finding {
    let pods = match &world.pods {
        Ok(pods) => pods,
        Err(error) => return Finding::unknown("annotations", error),
    };
    let bad = pods.iter().filter(|pod| meshed::is_running(pod) && meshed::has_annotation_for_label(pod));
    let bad: Vec<_> = bad.map(meshed::place).collect();
    let well = format!("no pod has {} as an annotation", names::LABEL_INJECT);
    Finding::none_of(
        "annotations",
        well,
        &bad,
        &format!("{} is a label: move it to metadata.labels", names::LABEL_INJECT),
    )
}

fn unmeshed(world: &World) -> Finding {
    let (pods, namespaces) = match (&world.pods, &world.namespaces) {
        (Ok(pods), Ok(namespaces)) => (pods, namespaces),
        (Err(error), _) | (_, Err(error)) => return Finding::unknown("pods to be meshed", error),
    };
    let of =
        |pod: &Value| namespaces.iter().find(|namespace| namespace["metadata"]["name"] == pod["metadata"]["namespace"]);
    let should: Vec<_> = pods
        .iter()
        .filter(|pod| meshed::is_running(pod) && pod["metadata"]["namespace"] != world.namespace.as_str())
        .filter(|pod| meshed::should(pod, of(pod)))
        .collect();
    let not: Vec<_> = should.iter().filter(|pod| !meshed::has_sidecar(pod)).map(|pod| meshed::place(pod)).collect();
    let well = format!("all {} have their sidecar", should.len());
    Finding::none_of(
        "pods to be meshed",
        well,
        &not,
        "restart them (kubectl rollout restart): a pod gets its sidecar when it is made",
    )
}

fn sidecars(world: &World) -> Finding {
    let pods = match &world.pods {
        Ok(pods) => pods,
        Err(error) => return Finding::unknown("sidecars", error),
    };
    let now = world.server_time().unwrap_or_else(OffsetDateTime::now_utc);
    let format = &time::format_description::well_known::Rfc3339;
    let (mut ready, mut not) = (0, Vec::new());
    for pod in pods.iter().filter(|pod| meshed::has_sidecar(pod) && meshed::is_running(pod)) {
        let status = init_status(pod, names::SIDECAR_CONTAINER).unwrap_or(&Value::Null);
        if status["started"] == true {
            ready += 1;
            continue;
        }
        let made =
            pod["metadata"]["creationTimestamp"].as_str().and_then(|text| OffsetDateTime::parse(text, format).ok());
        if made.is_some_and(|made| (now - made).whole_seconds() > START_SECONDS) {
            let why = status["state"]["waiting"]["reason"].as_str().unwrap_or("not ready");
            not.push(format!("{}: {why}", meshed::place(pod)));
        }
    }
    let todo = format!("kubectl logs POD -c {}", names::SIDECAR_CONTAINER);
    Finding::none_of("sidecars", format!("{ready} have started"), &not, &todo)
}

/// Older sidecars go on working; whoever upgrades wants to know which are left.
fn versions(world: &World) -> Finding {
    let pods = match &world.pods {
        Ok(pods) => pods,
        Err(error) => return Finding::unknown("sidecar versions", error),
    };
    let injector = world.our("Deployment", names::INJECTOR_ACCOUNT).unwrap_or(&Value::Null);
    let args = injector["spec"]["template"]["spec"]["containers"][0]["args"].as_array().into_iter().flatten();
    let Some(current) = args.filter_map(|arg| arg.as_str()?.strip_prefix("--proxy-image=")).next() else {
        let says = "the injector does not say which image it injects";
        return Finding { state: State::Unknown, ..Finding::ok("sidecar versions", says) };
    };
    let image = |pod: &Value| {
        let inits = pod["spec"]["initContainers"].as_array()?;
        let ours = inits.iter().find(|container| container["name"] == names::SIDECAR_CONTAINER)?;
        Some(ours["image"].as_str()?.to_owned())
    };
    let meshed = pods.iter().filter(|pod| meshed::has_sidecar(pod) && meshed::is_running(pod));
    let older: Vec<_> = meshed.filter(|pod| image(pod).as_deref() != Some(current)).map(meshed::place).collect();
    match older.is_empty() {
        true => Finding::ok("sidecar versions", format!("all run {current}")),
        false => Finding {
            todo: Some("restart these pods when it suits".to_owned()),
            ..Finding::ok("sidecar versions", format!("{} do not run {current}: {}", older.len(), some_of(&older)))
        },
    }
}

fn pem(map: &Value) -> &str {
    map["data"][names::BUNDLE_KEY].as_str().unwrap_or_default()
}

/// The latest end among the certificates of a PEM text: whoever trusts any of them trusts until then.
fn last_end(pem: &[u8]) -> Option<OffsetDateTime> {
    let ends = CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).filter_map(|der| {
        let (_, certificate) = X509Certificate::from_der(&der).ok()?;
        OffsetDateTime::from_unix_timestamp(certificate.validity().not_after.timestamp()).ok()
    });
    ends.max()
}

fn until(end: OffsetDateTime, now: OffsetDateTime) -> String {
    span((end - now).whole_seconds())
}

fn decode(text: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

#[cfg(test)]
#[path = "mesh_tests.rs"]
mod tests;
