//! What foreign judges say: Helm's own lint, kubeconform with the schemas of the Kubernetes that the test cluster runs; and what we demand
//! of our own pods and permissions.

use std::process::Command;

use serde_json::{Value, json};

use super::{objects, plain, root, schemas, text, tools};

#[test]
fn helm_lint_has_nothing_to_say() {
    let Some(helm) = tools::helm() else { return };
    let output = Command::new(helm)
        .args(["lint", "--strict", "--kube-version", super::KUBERNETES])
        .arg(root().join("manifests/countersign"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

/// An older cluster would take the sidecar for an init container like any other, and wait for its end.
#[test]
fn helm_refuses_a_cluster_before_native_sidecars() {
    let Some(helm) = tools::helm() else { return };
    let on = |version: &str| super::chart(&helm, "countersign-system", &json!({}), &["--kube-version", version]);
    for old in ["1.28.15", "v1.28.15-gke.1", "1.19.0"] {
        let said = on(old).expect_err(old);
        assert!(said.contains("requires kubeVersion: >=1.29.0-0"), "{said}");
    }
    // What providers append is no pre-release of an older version.
    for new in ["1.29.0", "v1.29.0-eks-a5ec690", "v1.34.4+k3s1"] {
        assert!(on(new).is_ok(), "{new}");
    }
}

#[test]
fn kubeconform_finds_every_object_valid_and_knows_every_kind() {
    let (Some(kubeconform), Some(openapi)) = (tools::kubeconform(), tools::openapi()) else { return };
    let folder = tempfile::tempdir().unwrap();
    schemas::write(&openapi, folder.path());
    let judge = |manifest: &str| {
        let file = folder.path().join("manifest.yaml");
        std::fs::write(&file, manifest).unwrap();
        let location = format!("{}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json", folder.path().display());
        Command::new(&kubeconform).args(["-strict", "-schema-location", &location]).arg(file).output().unwrap()
    };
    let ours = plain("countersign-system", &json!({}), &[]).unwrap();
    let output = judge(&ours);
    assert!(output.status.success(), "{}", text(&output));
    for name in ["rules", "app/namespace", "app/frontend", "app/orders", "app/stock"] {
        let output = judge(&std::fs::read_to_string(root().join(format!("manifests/demo/{name}.yaml"))).unwrap());
        assert!(output.status.success(), "{name}: {}", text(&output));
    }
    // A judge that finds nothing in a bad manifest is none.
    for (good, bad) in
        [("replicas: 2", "replicas: two"), ("\n  podSelector:", "\n  podSelectr:"), ("failurePolicy:", "failurePolcy:")]
    {
        let worse = ours.replacen(good, bad, 1);
        assert_ne!(worse, ours, "{good}");
        assert!(!judge(&worse).status.success(), "{bad} was not found");
    }
}

fn ours() -> Vec<Value> {
    objects(&plain("countersign-system", &json!({}), &[]).unwrap())
}

fn of_kind<'a>(objects: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    objects.iter().filter(move |object| object["kind"] == kind)
}

#[test]
fn every_object_is_labelled_so_that_uninstall_finds_it() {
    for object in ours() {
        assert_eq!(
            object["metadata"]["labels"]["app.kubernetes.io/part-of"], "countersign",
            "{}",
            object["metadata"]["name"]
        );
    }
}

/// The restricted Pod Security profile, which is enforced in our namespace, and a root file system that cannot be written.
#[test]
fn our_own_pods_are_restricted_bounded_and_probed() {
    let objects = ours();
    assert_eq!(of_kind(&objects, "Deployment").count(), 3);
    for deployment in of_kind(&objects, "Deployment") {
        let pod = &deployment["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        assert!(pod["topologySpreadConstraints"].is_array());
        assert!(deployment["spec"]["replicas"].as_i64() >= Some(2));
        for container in pod["containers"].as_array().unwrap() {
            let security = &container["securityContext"];
            assert_eq!(security["allowPrivilegeEscalation"], false);
            assert_eq!(security["readOnlyRootFilesystem"], true);
            assert_eq!(security["capabilities"], json!({ "drop": ["ALL"] }));
            assert!(container["resources"]["limits"]["memory"].is_string());
            for probe in ["readinessProbe", "livenessProbe"] {
                assert_eq!(container[probe]["httpGet"]["port"], "health");
            }
        }
        let name = &deployment["metadata"]["name"];
        for kind in ["PodDisruptionBudget", "Service", "ServiceAccount", "NetworkPolicy"] {
            assert!(of_kind(&objects, kind).any(|object| object["metadata"]["name"] == *name), "{name} has no {kind}");
        }
    }
}

#[test]
fn no_role_has_a_wildcard_or_may_read_the_clusters_secrets_or_escalate() {
    let objects = ours();
    for role in of_kind(&objects, "ClusterRole").chain(of_kind(&objects, "Role")) {
        for rule in role["rules"].as_array().unwrap() {
            let said = rule.to_string();
            assert!(!said.contains('*'), "{said}");
            for verb in ["escalate", "bind", "impersonate", "deletecollection"] {
                assert!(!said.contains(verb), "{said}");
            }
            let has = |key: &str, word: &str| {
                rule[key].as_array().is_some_and(|words| words.iter().any(|there| there == word))
            };
            if has("resources", "secrets") {
                assert_eq!(role["kind"], "Role", "{said}");
                // Who may make Secrets of any name may make one that holds another account's token.
                assert!(rule["resourceNames"].as_array().is_some_and(|names| !names.is_empty()), "{said}");
                let injectors = role["metadata"]["name"] == "countersign-injector";
                assert!(!injectors || !has("verbs", "create"), "{said}");
            }
            for resource in ["pods/exec", "pods/attach", "serviceaccounts/token", "nodes/proxy"] {
                assert!(!has("resources", resource), "{said}");
            }
        }
    }
}

/// "Each rule with its reason": a comment of its own stands right before it; that of the rule above does not count.
#[test]
fn every_permission_has_its_reason() {
    let text = plain("countersign-system", &json!({}), &[]).unwrap();
    let mut seen = 0;
    for document in text.split("\n---\n").filter(|document| document.contains("\nrules:\n")) {
        let rules = document.split_once("\nrules:\n").unwrap().1;
        let mut before = "";
        for line in rules.lines() {
            if line.starts_with("  - ") {
                seen += 1;
                assert!(before.starts_with("  # "), "{line} has no reason of its own in:\n{document}");
            }
            before = line;
        }
    }
    let objects = ours();
    let roles = of_kind(&objects, "ClusterRole").chain(of_kind(&objects, "Role"));
    assert_eq!(seen, roles.map(|role| role["rules"].as_array().unwrap().len()).sum::<usize>(), "rules not looked at");
}

#[test]
fn webhooks_fail_closed_and_leave_out_the_cluster_and_ourselves() {
    let objects = ours();
    let hooks: Vec<_> = of_kind(&objects, "MutatingWebhookConfiguration")
        .flat_map(|object| object["webhooks"].as_array().unwrap())
        .collect();
    assert_eq!(hooks.len(), 2);
    for hook in hooks {
        assert_eq!(
            (&hook["failurePolicy"], &hook["sideEffects"], &hook["reinvocationPolicy"]),
            (&json!("Fail"), &json!("None"), &json!("IfNeeded"))
        );
        let selector = hook["namespaceSelector"].to_string();
        assert!(selector.contains("kube-system") && selector.contains("countersign-system"), "{selector}");
        assert!(hook["clientConfig"]["caBundle"].is_null(), "an upgrade would take the injector's away");
    }
    let hooks = of_kind(&objects, "ValidatingWebhookConfiguration").next().unwrap()["webhooks"].as_array().unwrap();
    assert_eq!(hooks.len(), 2);
    for hook in hooks {
        assert_eq!((&hook["failurePolicy"], &hook["clientConfig"]["caBundle"]), (&json!("Fail"), &Value::Null));
    }
}

/// The injector fills it, and an upgrade must not empty it.
#[test]
fn the_injectors_secret_is_there_and_none_of_its_content_is_ours() {
    let objects = ours();
    let secrets: Vec<_> = of_kind(&objects, "Secret").collect();
    assert_eq!(secrets.len(), 1);
    let secret = secrets[0];
    assert_eq!((&secret["metadata"]["name"], &secret["type"]), (&json!("countersign-injector-tls"), &json!("Opaque")));
    assert!(secret.get("data").is_none() && secret.get("stringData").is_none(), "{secret}");
}
