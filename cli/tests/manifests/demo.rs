//! The demo app: its rules are read by the parser that the controller uses, and mean what its page says.

use std::process::Command;

use super::{objects, root, text};

#[test]
fn the_demos_rules_are_good_rules() {
    let output = Command::new(env!("CARGO_BIN_EXE_countersign"))
        .args(["policy", "check"])
        .arg(root().join("manifests/demo/rules.yaml"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn every_service_of_the_demo_has_an_account_of_its_own() {
    for name in ["frontend", "orders", "stock"] {
        let file = std::fs::read_to_string(root().join(format!("manifests/demo/app/{name}.yaml"))).unwrap();
        let objects = objects(&file);
        let account = |object: &serde_json::Value| object["spec"]["template"]["spec"]["serviceAccountName"] == name;
        assert!(objects.iter().any(account), "{name}");
        assert!(objects.iter().any(|object| object["kind"] == "ServiceAccount" && object["metadata"]["name"] == name));
    }
}
