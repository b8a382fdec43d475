//! The commands that reach a cluster's processes through kubectl, with a kubectl that answers from files.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};

use serde_json::{Value, json};

/// Lists from `pods.json` or `pods-NAMESPACE.json`; what a process says under PATH stands in `NAMESPACE/POD/PATH`. A pod without a folder is
/// not to be reached.
const KUBECTL: &str = r#"#!/bin/sh
echo "$*" >> "$FAKE/called"
case "$*" in
"get pods --output json --all-namespaces") exec cat "$FAKE/pods.json" ;;
"get pods --output json --namespace "*) exec cat "$FAKE/pods-$6.json" ;;
esac
at="$FAKE/$2/$4" program="$6"
if [ "$1 $3 $5 $7 $8 $9" != "--namespace exec --container -- /$program ask" ]; then
    echo "no such call: $*" >&2
    exit 64
fi
shift 9
[ -x "$FAKE/before" ] && "$FAKE/before"
if [ ! -d "$at" ]; then
    echo "error: unable to upgrade connection: container not found" >&2
    exit 1
fi
[ "$1" = --post ] && shift && at="$at/post"
if [ -f "$at$1" ]; then
    cat "$at$1"
    [ -f "$at$1.code" ] && exit "$(cat "$at$1.code")"
    exit 0
fi
echo "$program: $1 was answered with 404" >&2
echo "command terminated with exit code 3" >&2
exit 3
"#;

struct Cluster(tempfile::TempDir);

impl Cluster {
    /// With CA, controller and two meshed pods of `shop`, one of `other`, all well.
    fn new() -> Self {
        let cluster = Self(tempfile::tempdir().unwrap());
        cluster.program("kubectl", KUBECTL);
        let system = [runs("ca-1", "countersign-ca"), runs("controller-1", "countersign-controller")];
        let shop = [meshed("shop", "a"), meshed("shop", "b")];
        cluster.list("pods-countersign-system.json", &system);
        cluster.list("pods-shop.json", &shop);
        cluster.list("pods.json", &[&system[..], &shop, &[meshed("other", "c")]].concat());
        cluster.says(
            "countersign-system/ca-1/status",
            &json!({ "ready": true, "own_svid": { "id": "x/countersign-ca" } }),
        );
        cluster.says("countersign-system/controller-1/status", &controller(&[]));
        for (namespace, name) in [("shop", "a"), ("shop", "b"), ("other", "c")] {
            cluster.says(&format!("{namespace}/{name}/status"), &sidecar(namespace, name));
        }
        cluster
    }

    fn program(&self, name: &str, script: &str) {
        let file = self.0.path().join(name);
        std::fs::write(&file, script).unwrap();
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn list(&self, name: &str, pods: &[Value]) {
        std::fs::write(self.0.path().join(name), json!({ "kind": "List", "items": pods }).to_string()).unwrap();
    }

    fn says(&self, at: &str, what: &Value) {
        let file = self.0.path().join(at);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, what.to_string()).unwrap();
    }

    /// From now on it is not to be reached.
    fn cuts(&self, pod: &str) {
        std::fs::remove_dir_all(self.0.path().join(pod)).unwrap();
    }

    fn run(&self, args: &[&str]) -> Ran {
        let path = format!("{}:{}", self.0.path().display(), std::env::var("PATH").unwrap());
        let mut command = Command::new(env!("CARGO_BIN_EXE_countersign"));
        let output = command.args(args).env("PATH", path).env("FAKE", self.0.path()).env("NO_COLOR", "1").output();
        Ran(output.unwrap())
    }

    fn called(&self) -> String {
        std::fs::read_to_string(self.0.path().join("called")).unwrap_or_default()
    }
}

struct Ran(Output);

impl Ran {
    fn code(&self) -> i32 {
        self.0.status.code().unwrap()
    }

    /// Both outputs.
    fn said(&self) -> String {
        format!("{}{}", String::from_utf8_lossy(&self.0.stdout), String::from_utf8_lossy(&self.0.stderr))
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.0.stdout).unwrap()
    }
}

fn meshed(namespace: &str, name: &str) -> Value {
    json!({
        "metadata": { "namespace": namespace, "name": name, "uid": format!("uid-{name}") },
        "spec": { "initContainers": [{ "name": "countersign-proxy", "restartPolicy": "Always" }] },
        "status": { "phase": "Running" },
    })
}

fn runs(name: &str, program: &str) -> Value {
    json!({
        "metadata": { "namespace": "countersign-system", "name": name, "uid": format!("uid-{name}") },
        "spec": { "containers": [{ "name": program }] }, "status": { "phase": "Running" },
    })
}

fn sidecar(namespace: &str, name: &str) -> Value {
    json!({
        "process": "countersign-proxy", "ready": true, "phase": "serving", "controller": { "connected": true },
        "pod": { "namespace": namespace, "name": name, "uid": format!("uid-{name}") },
    })
}

fn controller(not_connected: &[&str]) -> Value {
    let one = |name: &&str| json!({ "namespace": "shop", "name": name, "uid": format!("uid-{name}") });
    let list: Vec<_> = not_connected.iter().map(one).collect();
    json!({
        "ready": true, "own_svid": { "id": "x/countersign-controller" }, "proxies": [],
        "drift": {
            "not_connected": { "count": list.len(), "workloads": list },
            "without_sidecar": { "count": 0, "workloads": [] },
        },
    })
}

const DENIAL: &str = "00000000000000aa";

#[test]
fn status_asks_every_meshed_pod_the_ca_and_the_controller() {
    let cluster = Cluster::new();
    let status = cluster.run(&["status", "--kubectl"]);
    assert_eq!(status.code(), 0, "{}", status.said());
    for place in ["pod countersign-system/ca-1", "pod countersign-system/controller-1", "pod shop/a", "pod other/c"] {
        assert!(status.said().contains(place), "{place} is not in {}", status.said());
    }
    let status = cluster.run(&["status", "--kubectl", "-n", "shop", "-o", "json"]).json();
    let pods: Vec<_> = status["processes"].as_array().unwrap().iter().map(|one| &one["pod"]).collect();
    assert_eq!(pods, ["countersign-system/ca-1", "countersign-system/controller-1", "shop/a", "shop/b"]);
    assert_eq!(status["drift"]["controllers_asked"], 1);
}

#[test]
fn a_pod_that_cannot_be_reached_has_its_row_and_its_reason() {
    let cluster = Cluster::new();
    cluster.cuts("shop/b");
    let status = cluster.run(&["status", "--kubectl"]);
    assert_eq!(status.code(), 1, "{}", status.said());
    let row = status.said().lines().find(|line| line.starts_with("shop/b ")).unwrap().to_owned();
    assert!(row.contains("no answer"), "{row}");
    assert!(status.said().contains("problem pod shop/b: kubectl: error: unable to upgrade"), "{}", status.said());
    let all = cluster.run(&["status", "--kubectl", "-o", "json"]).json();
    let b = all["processes"].as_array().unwrap().iter().find(|one| one["pod"] == "shop/b").unwrap();
    assert!(b["error"].as_str().unwrap().contains("container not found"), "{b}");
}

#[test]
fn a_system_namespace_without_a_controller_is_a_problem() {
    let cluster = Cluster::new();
    cluster.list("pods.json", &[runs("ca-1", "countersign-ca"), meshed("shop", "a")]);
    let status = cluster.run(&["status", "--kubectl"]);
    assert_eq!(status.code(), 1, "{}", status.said());
    let missing = "problem countersign-controller: no pod of it in namespace countersign-system";
    assert!(status.said().contains(missing), "{}", status.said());
}

#[test]
fn only_the_controller_says_who_is_missing_and_a_sidecar_says_nothing_for_others() {
    let cluster = Cluster::new();
    cluster.says("countersign-system/controller-1/status", &controller(&["gone"]));
    // Whoever may make pods may put a program of his own there.
    let mut liar = controller(&[]);
    liar["pod"] = json!({ "namespace": "shop", "name": "gone", "uid": "uid-gone" });
    liar["controller"] = json!({ "connected": true });
    cluster.says("shop/a/status", &liar);
    let status = cluster.run(&["status", "--kubectl", "-o", "json"]);
    assert_eq!((status.code(), &status.json()["drift"]["not_connected"]), (1, &json!(["shop/gone"])));
    assert_eq!(status.json()["drift"]["controllers_asked"], 1);
}

#[test]
fn explain_finds_the_sidecar_that_denied() {
    let cluster = Cluster::new();
    cluster.says(&format!("other/c/denials/{DENIAL}"), &json!({ "denial": { "id": DENIAL }, "text": "who came\n" }));
    let explained = cluster.run(&["explain", DENIAL, "--kubectl"]);
    let said = "said by the sidecar of other/c:\nwho came\n";
    assert_eq!((explained.code(), explained.said().as_str()), (0, said));
    assert_eq!(cluster.run(&["explain", DENIAL, "--kubectl", "-o", "json"]).json()["pod"], "other/c");
    assert!(!cluster.called().contains("countersign-system"), "only sidecars deny: {}", cluster.called());
    let elsewhere = cluster.run(&["explain", DENIAL, "--kubectl", "--namespace", "shop"]);
    assert_eq!(elsewhere.code(), 1, "{}", elsewhere.said());
}

#[test]
fn a_denial_that_an_unreachable_sidecar_may_remember_is_not_called_unknown() {
    let cluster = Cluster::new();
    cluster.cuts("shop/b");
    let explained = cluster.run(&["explain", DENIAL, "--kubectl"]);
    assert_eq!(explained.code(), 2, "{}", explained.said());
    assert!(explained.said().contains("pod shop/b: kubectl: error"), "{}", explained.said());
}

#[test]
fn why_decides_by_the_rules_of_the_named_pod() {
    let cluster = Cluster::new();
    let policy = json!({
        "apiVersion": "policy.countersign.dev/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": { "name": "frontend", "namespace": "shop" },
        "spec": { "action": "Allow", "rules": [{
            "from": [{ "serviceAccounts": [{ "namespace": "shop", "name": "frontend" }] }], "to": [{ "ports": [80] }]
        }] },
    });
    let dump = json!({
        "config": { "trust_domain": "cluster.local" },
        "discovery": { "workload": {
            "revision": "r1", "modes": { "mtls": "Strict", "posture": "Enforce", "egress": "Any" },
            "rules": [{ "rule": "shop/frontend", "action": "ALLOW", "feature": 1, "policy": policy }],
        } },
    });
    cluster.says("shop/b/config_dump", &dump);
    let why = |account: &str, to: &str| {
        let id = format!("spiffe://cluster.local/ns/shop/sa/{account}");
        cluster.run(&["policy", "why", "--kubectl", "--from", &id, "--to", to])
    };
    assert_eq!(why("frontend", "b:80").code(), 0);
    let denied = why("intruder", "shop/b:80");
    assert_eq!(denied.code(), 1, "{}", denied.said());
    assert!(denied.said().contains("add shop/intruder to"), "{}", denied.said());
    assert!(!cluster.called().contains("/status"), "pods have their names: {}", cluster.called());
    let nobody = why("frontend", "z:80");
    assert_eq!(nobody.code(), 2);
    assert!(nobody.said().contains("there are: shop/a, shop/b, other/c"), "{}", nobody.said());
    cluster.cuts("shop/b");
    let cut = why("frontend", "b:80");
    assert_eq!(cut.code(), 2);
    assert!(cut.said().contains("pod shop/b: kubectl: error: unable to upgrade"), "{}", cut.said());
}

#[test]
fn a_cluster_that_cannot_be_asked_is_exit_code_2() {
    let cluster = Cluster::new();
    std::fs::remove_file(cluster.0.path().join("pods.json")).unwrap();
    for command in [&["status"][..], &["explain", DENIAL], &["policy", "why", "--to", "b:80"]] {
        let ran = cluster.run(&[command, &["--kubectl"]].concat());
        assert_eq!(ran.code(), 2, "{command:?}: {}", ran.said());
        assert!(ran.said().contains("countersign: kubectl: cat: "), "{}", ran.said());
    }
    assert_eq!(cluster.run(&["status", "--kubectl", "--dir", "/run"]).code(), 2);
    assert_eq!(cluster.run(&["status", "-n", "shop"]).code(), 2, "it means nothing without --kubectl");
    assert_eq!(cluster.run(&["status", "--system-namespace", "x"]).code(), 2, "nor does this");
}

#[test]
fn no_more_than_eight_are_asked_at_once() {
    let cluster = Cluster::new();
    let pods: Vec<_> = (0..24).map(|n| meshed("shop", &format!("p{n}"))).collect();
    cluster.list("pods.json", &pods);
    (0..24).for_each(|n| cluster.says(&format!("shop/p{n}/none"), &json!({})));
    std::fs::create_dir(cluster.0.path().join("running")).unwrap();
    std::fs::create_dir(cluster.0.path().join("came")).unwrap();
    // Each goes on once eight have come, and tells how many there are beside it.
    let before = "#!/bin/sh\ntouch \"$FAKE/came/$$\" \"$FAKE/running/$$\"\n\
                  while [ \"$(ls \"$FAKE/came\" | wc -l)\" -lt 8 ]; do :; done\n\
                  ls \"$FAKE/running\" | wc -l >> \"$FAKE/counts\"\nrm \"$FAKE/running/$$\"\n";
    cluster.program("before", before);
    let explained = cluster.run(&["explain", DENIAL, "--kubectl"]);
    assert_eq!(explained.code(), 1, "{}", explained.said());
    let counts = std::fs::read_to_string(cluster.0.path().join("counts")).unwrap();
    let counts: Vec<usize> = counts.lines().map(|line| line.trim().parse().unwrap()).collect();
    assert!(counts.len() == 24 && counts.iter().all(|count| *count <= 8), "{counts:?}");
}

#[test]
fn the_ca_is_asked_by_the_same_road_and_a_refusal_is_told() {
    let cluster = Cluster::new();
    let at = "countersign-system/deployment/countersign-ca/post/rotation/activate";
    cluster.says(at, &json!({ "refused": "activate is too early", "gate": null }));
    std::fs::write(cluster.0.path().join(at).with_extension("code"), "1").unwrap();
    let refused = cluster.run(&["ca", "activate", "--kubectl"]);
    assert_eq!(refused.code(), 1, "{}", refused.said());
    assert!(refused.said().contains("activate is too early"), "{}", refused.said());
    cluster.cuts("countersign-system/deployment");
    let away = cluster.run(&["ca", "activate", "--kubectl"]);
    assert_eq!(away.code(), 2);
    assert!(away.said().contains("container not found"), "{}", away.said());
}
