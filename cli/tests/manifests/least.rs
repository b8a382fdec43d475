//! What our own pods may, each permission and each way in and out, pinned: whoever widens one has to say so here, where a review sees it.
//!
//! The reasons stand in the manifests (`judged` demands one for each rule). Roads and values do not change permissions.

use std::collections::{BTreeMap, BTreeSet};

use countersign_api::ports;
use serde_json::{Value, json};

use super::{objects, plain, root};

const SYSTEM: &str = "countersign-system";
const ACCOUNTS: [&str; 3] = ["countersign-ca", "countersign-controller", "countersign-injector"];

/// Role, API groups, resources, names, verbs: one line a rule, sorted.
const RIGHTS: &str = r#"
ClusterRole countersign-ca: "" configmaps [countersign-bundle]: create get list patch watch
ClusterRole countersign-ca: "" namespaces pods: list watch
ClusterRole countersign-ca: "authentication.k8s.io" tokenreviews: create
ClusterRole countersign-controller: "" namespaces pods services: list watch
ClusterRole countersign-controller: "" nodes: list watch
ClusterRole countersign-controller: "discovery.k8s.io" endpointslices: list watch
ClusterRole countersign-controller: "networking.k8s.io" servicecidrs: list watch
ClusterRole countersign-controller: "policy.countersign.dev" authorizationpolicies/status: patch
ClusterRole countersign-controller: "policy.countersign.dev" authorizationpolicies: list watch
ClusterRole countersign-injector: "" namespaces: get
ClusterRole countersign-injector: "admissionregistration.k8s.io" mutatingwebhookconfigurations [countersign-injector]: get patch
ClusterRole countersign-injector: "admissionregistration.k8s.io" validatingwebhookconfigurations [countersign-policies]: get patch
Role countersign-ca: "" secrets [countersign-ca-key]: create get patch
Role countersign-ca: "" secrets [countersign-ca-state]: create get list patch watch
Role countersign-injector: "" secrets [countersign-injector-tls]: get update
"#;

/// Of each of our pods: from where at which ports, and to where. In the manifest's order.
const WAYS: &str = r#"
countersign-default-deny (all pods)
countersign-ca
in 15030 from [{"namespaceSelector":{}}]
in 15031 from [{"namespaceSelector":{}}]
out 15030 to [{"podSelector":{"matchLabels":{"app.kubernetes.io/name":"countersign-ca"}}}]
out 443 6443 to anywhere
countersign-controller
in 15040 from [{"namespaceSelector":{}}]
in 15041 from [{"namespaceSelector":{}}]
out 15030 to [{"podSelector":{"matchLabels":{"app.kubernetes.io/name":"countersign-ca"}}}]
out 443 6443 to anywhere
out UDP/53 53 to anywhere
countersign-injector
in 15050 from anywhere
in 15051 from [{"namespaceSelector":{}}]
out 443 6443 to anywhere
"#;

fn ours(values: &Value) -> Vec<Value> {
    objects(&plain(SYSTEM, values, &[]).unwrap())
}

fn of_kind<'a>(objects: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    objects.iter().filter(move |object| object["kind"] == kind)
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Words of a list, sorted: their order means nothing.
fn words(value: &Value) -> String {
    let mut words: Vec<_> = list(value).iter().map(|word| word.as_str().unwrap()).collect();
    words.sort_unstable();
    words.join(" ")
}

#[test]
fn every_permission_is_one_that_is_written_down_here() {
    let objects = ours(&json!({}));
    let mut lines = Vec::new();
    for role in of_kind(&objects, "ClusterRole").chain(of_kind(&objects, "Role")) {
        assert!(role.get("aggregationRule").is_none(), "{role}");
        assert_eq!(role["kind"] == "Role", role["metadata"]["namespace"] == SYSTEM, "{role}");
        for rule in role["rules"].as_array().unwrap() {
            let known = ["apiGroups", "resources", "resourceNames", "verbs"];
            let other: Vec<_> = rule.as_object().unwrap().keys().filter(|key| !known.contains(&key.as_str())).collect();
            assert!(other.is_empty(), "{}: {other:?}", name(role));
            let names = match list(&rule["resourceNames"]) {
                [] => String::new(),
                _ => format!(" [{}]", words(&rule["resourceNames"])),
            };
            let groups: Vec<_> = list(&rule["apiGroups"]).iter().map(Value::to_string).collect();
            let (kind, resources, verbs) =
                (role["kind"].as_str().unwrap(), words(&rule["resources"]), words(&rule["verbs"]));
            lines.push(format!("{kind} {}: {} {resources}{names}: {verbs}", name(role), groups.join(" ")));
        }
    }
    lines.sort();
    let there = lines.join("\n");
    assert!(there == RIGHTS.trim(), "permissions have changed; they are now\n{there}");
    // Whatever the values: no rule hangs on one.
    let template = std::fs::read_to_string(root().join("manifests/countersign/templates/rbac.yaml")).unwrap();
    assert!(!template.contains(".Values"), "a permission that hangs on a value is not seen here");
}

#[test]
fn each_role_is_bound_to_its_own_account_and_to_nobody_else() {
    let objects = ours(&json!({}));
    let mut bound = BTreeSet::new();
    for (binding, role) in [("ClusterRoleBinding", "ClusterRole"), ("RoleBinding", "Role")] {
        for object in of_kind(&objects, binding) {
            let name = name(object);
            assert_eq!(
                object["roleRef"],
                json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": name })
            );
            assert_eq!(object["subjects"], json!([{ "kind": "ServiceAccount", "name": name, "namespace": SYSTEM }]));
            bound.insert((role, name));
        }
        let roles: BTreeSet<_> = of_kind(&objects, role).map(|object| (role, name(object))).collect();
        assert!(roles.iter().all(|role| bound.contains(role) && ACCOUNTS.contains(&role.1)), "{roles:?}");
    }
    for deployment in of_kind(&objects, "Deployment") {
        assert_eq!(deployment["spec"]["template"]["spec"]["serviceAccountName"], name(deployment));
    }
    assert_eq!(of_kind(&objects, "ServiceAccount").map(name).collect::<BTreeSet<_>>(), ACCOUNTS.into());
}

fn ports_of(rule: &Value) -> String {
    let ports = list(&rule["ports"]).iter().map(|port| {
        assert!(port.get("endPort").is_none(), "{port}");
        let number = port["port"].as_u64().unwrap();
        match port["protocol"].as_str().unwrap_or("TCP") {
            "TCP" => number.to_string(),
            other => format!("{other}/{number}"),
        }
    });
    // Without ports a rule means all of them.
    let ports: Vec<_> = ports.collect();
    assert!(!ports.is_empty(), "{rule}");
    ports.join(" ")
}

#[test]
fn every_way_in_and_out_is_one_that_is_written_down_here() {
    let mut lines = Vec::new();
    for policy in of_kind(&ours(&json!({})), "NetworkPolicy") {
        let spec = &policy["spec"];
        assert_eq!(spec["policyTypes"], json!(["Ingress", "Egress"]), "{}", name(policy));
        if spec["podSelector"] == json!({}) {
            lines.push(format!("{} (all pods)", name(policy)));
        } else {
            let own = json!({ "matchLabels": { "app.kubernetes.io/name": name(policy) } });
            assert_eq!(spec["podSelector"], own);
            lines.push(name(policy).to_owned());
        }
        let peers = |peers: &Value| if peers.is_null() { "anywhere".to_owned() } else { peers.to_string() };
        for rule in list(&spec["ingress"]) {
            lines.push(format!("in {} from {}", ports_of(rule), peers(&rule["from"])));
        }
        for rule in list(&spec["egress"]) {
            lines.push(format!("out {} to {}", ports_of(rule), peers(&rule["to"])));
        }
    }
    let there = lines.join("\n");
    assert!(there == WAYS.trim(), "ways in and out have changed; they are now\n{there}");
}

/// A port that is open and that no policy names is closed where policies are enforced, and a port that a policy names and nobody listens at is one
/// that the next who listens there gets for nothing.
#[test]
fn policies_let_in_at_the_containers_ports_and_at_no_other() {
    let listens: BTreeMap<&str, [(&str, u16); 2]> = [
        ("countersign-ca", [("grpc", ports::CA), ("health", ports::CA_HEALTH)]),
        ("countersign-controller", [("grpc", ports::CONTROLLER), ("health", ports::CONTROLLER_HEALTH)]),
        ("countersign-injector", [("https", ports::INJECTOR), ("health", ports::INJECTOR_HEALTH)]),
    ]
    .into();
    for (values, metrics) in [(json!({}), true), (json!({ "networkPolicies": { "metricsFrom": [] } }), false)] {
        let objects = ours(&values);
        for deployment in of_kind(&objects, "Deployment") {
            let pod = &deployment["spec"]["template"];
            let containers = list(&pod["spec"]["containers"]);
            assert!(containers.len() == 1 && list(&pod["spec"]["initContainers"]).is_empty(), "{}", name(deployment));
            let open = list(&containers[0]["ports"]).iter().map(|port| {
                assert!(
                    port.get("hostPort").is_none() && matches!(port["protocol"].as_str(), None | Some("TCP")),
                    "{port}"
                );
                (port["name"].as_str().unwrap(), u16::try_from(port["containerPort"].as_u64().unwrap()).unwrap())
            });
            let open: Vec<_> = open.collect();
            assert_eq!(open, listens[name(deployment)], "{}", name(deployment));

            let labels = pod["metadata"]["labels"].as_object().unwrap();
            let selects = |policy: &&Value| {
                let wanted = policy["spec"]["podSelector"]["matchLabels"].as_object();
                wanted.is_some_and(|wanted| wanted.iter().all(|(key, value)| labels.get(key) == Some(value)))
            };
            let policies: Vec<_> = of_kind(&objects, "NetworkPolicy").filter(selects).collect();
            assert_eq!(policies.len(), 1, "{}", name(deployment));
            let let_in = list(&policies[0]["spec"]["ingress"]).iter().map(ports_of).collect::<Vec<_>>();
            let wanted: Vec<_> = open
                .iter()
                .filter(|(port, _)| metrics || *port != "health")
                .map(|(_, number)| number.to_string())
                .collect();
            assert_eq!(let_in, wanted, "{}", name(deployment));

            // Services lead to these ports, and webhooks to those of a service.
            let service = of_kind(&objects, "Service").find(|service| name(service) == name(deployment)).unwrap();
            for port in list(&service["spec"]["ports"]) {
                let to = open.iter().find(|(name, _)| port["targetPort"] == *name);
                assert!(to.is_some_and(|(name, _)| *name != "health"), "{port}");
            }
        }
    }
}
