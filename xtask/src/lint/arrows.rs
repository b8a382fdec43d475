//! Who may import whom: the arrows between rooms, checked against every Cargo.toml.
//!
//! Called by `lint`. A package that is not in the table is a problem: nobody joins the house without a row.

use serde_json::Value;

use super::Found;

/// One package: which of our own it may depend on, and which crates from outside it must never name.
struct Room {
    package: &'static str,
    ours: &'static [&'static str],
    never: &'static [&'static str],
}

/// Crates of a runtime, a network or a clock: nothing for a pure leaf.
const IMPURE: &[&str] =
    &["tokio", "kube", "rustls", "tokio-rustls", "hyper", "tonic", "tracing", "rand", "clap", "rcgen"];
const NO_TLS: &[&str] = &["rustls", "tokio-rustls", "rcgen", "kube"];
const NO_CLUSTER: &[&str] = &["kube", "k8s-openapi"];

const ROOMS: &[Room] = &[
    Room { package: "countersign-identity", ours: &[], never: IMPURE },
    Room { package: "countersign-policy", ours: &[], never: IMPURE },
    Room { package: "countersign-api", ours: &[], never: &["tokio", "kube", "rustls", "tokio-rustls", "rcgen"] },
    Room {
        package: "countersign-admin",
        ours: &[],
        never: &["rustls", "tokio-rustls", "rcgen", "tonic", "kube", "k8s-openapi"],
    },
    Room { package: "countersign-credentials", ours: &["identity", "api"], never: NO_CLUSTER },
    Room {
        package: "countersign-proxy",
        ours: &["identity", "policy", "api", "admin", "credentials"],
        never: &["rcgen", "kube", "k8s-openapi"],
    },
    Room {
        package: "countersign-ca",
        ours: &["identity", "api", "admin", "credentials"],
        never: &["rustls", "tokio-rustls"],
    },
    Room {
        package: "countersign-controller",
        ours: &["identity", "policy", "api", "admin", "credentials"],
        never: &["rustls", "tokio-rustls", "rcgen"],
    },
    Room { package: "countersign-injector", ours: &["policy", "api", "admin"], never: &["tonic"] },
    Room {
        package: "countersign-cli",
        ours: &["identity", "policy", "api", "injector", "kit", "benches"],
        never: &["rustls", "tokio-rustls", "rcgen"],
    },
    Room { package: "countersign-programs", ours: &[], never: IMPURE },
    Room { package: "countersign-kit", ours: &["identity", "api", "credentials", "programs"], never: NO_CLUSTER },
    // Test-only, like the kit: it calls the CA as a pod does, and measures single steps.
    Room {
        package: "countersign-benches",
        ours: &["identity", "policy", "api", "credentials", "kit", "proxy", "ca"],
        never: NO_CLUSTER,
    },
    Room { package: "countersign-e2e", ours: &["identity", "api", "kit"], never: NO_CLUSTER },
    Room { package: "countersign-cluster-tests", ours: &["api"], never: NO_TLS },
    Room { package: "xtask", ours: &["programs"], never: IMPURE },
];

/// Checks every package of the workspace.
pub fn check(metadata: &Value, found: &mut Found) {
    let members: Vec<&str> = strings(&metadata["workspace_members"]);
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ours = packages.iter().filter(|package| package["id"].as_str().is_some_and(|id| members.contains(&id)));
    let mut arrows = 0;
    for package in ours {
        arrows += check_package(package, found);
    }
    found.checked.push(format!("{arrows} dependencies of {} packages against the arrows", members.len()));
}

fn check_package(package: &Value, found: &mut Found) -> usize {
    let name = package["name"].as_str().unwrap_or_default();
    let Some(room) = ROOMS.iter().find(|room| room.package == name) else {
        found.problems.push(format!("{name}: has no row in xtask/src/lint/arrows.rs"));
        return 0;
    };
    let dependencies = package["dependencies"].as_array().map(Vec::as_slice).unwrap_or_default();
    for dependency in dependencies {
        let on = dependency["name"].as_str().unwrap_or_default();
        // Tests may name more: foreign judges, certificates made wrong on purpose, the kit.
        if dependency["kind"].is_null() && !allowed(room, on) {
            found.problems.push(format!("{name}: must not depend on {on}"));
        }
        if dependency["kind"] == "dev"
            && on.starts_with("countersign-")
            && !allowed(room, on)
            && on != "countersign-kit"
        {
            found.problems.push(format!("{name}: must not depend on {on}, in tests neither"));
        }
    }
    dependencies.len()
}

fn allowed(room: &Room, on: &str) -> bool {
    match on.strip_prefix("countersign-") {
        Some(ours) => room.ours.contains(&ours),
        None => !room.never.contains(&on),
    }
}

fn strings(list: &Value) -> Vec<&str> {
    list.as_array().map(|list| list.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(name: &str, on: &str, kind: Option<&str>) -> Vec<String> {
        let mut found = Found::default();
        let package = serde_json::json!({ "id": "x", "name": name, "dependencies": [{ "name": on, "kind": kind }] });
        check(&serde_json::json!({ "workspace_members": ["x"], "packages": [package] }), &mut found);
        found.problems
    }

    #[test]
    fn a_leaf_with_a_runtime_is_a_problem() {
        assert_eq!(problems("countersign-policy", "tokio", None), ["countersign-policy: must not depend on tokio"]);
        assert!(problems("countersign-policy", "tokio", Some("dev")).is_empty());
    }

    #[test]
    fn two_processes_that_import_each_other_are_a_problem_even_in_tests() {
        assert_eq!(problems("countersign-proxy", "countersign-ca", None).len(), 1);
        assert_eq!(problems("countersign-proxy", "countersign-ca", Some("dev")).len(), 1);
        assert!(problems("countersign-proxy", "countersign-policy", None).is_empty());
    }

    #[test]
    fn a_package_without_a_row_is_a_problem() {
        assert_eq!(problems("countersign-util", "serde", None).len(), 1);
    }
}
