//! What should be meshed and what is, as far as this controller knows: its source says which workloads have a sidecar and which
//! namespaces ask for some, its streams say which sidecars are there. Called by `inside` for `/status`. It decides nothing.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use countersign_api::names::LABEL_INJECT;
use serde_json::{Value, json};

use crate::index::{Index, Member};
use crate::server::Record;

/// Names of each kind that are shown; of more there is only the number.
const SHOWN: usize = 200;

/// Whether a namespace's labels ask for sidecars.
pub fn asks_for_sidecars(labels: &BTreeMap<String, String>) -> bool {
    labels.get(LABEL_INJECT).is_some_and(|word| word == "enabled")
}

/// For `/status`. Each replica of the controller has its own streams: a sidecar is missing only if no replica has it.
pub fn drift(index: &Index, records: &[Arc<Record>]) -> Value {
    let connected: HashSet<&str> = records.iter().map(|record| &*record.claim.pod_uid).collect();
    let asking: HashSet<&str> = index.namespaces().filter(|(_, rules)| rules.inject).map(|(name, _)| name).collect();
    let meshed = index.members().iter().filter(|member| member.workload.meshed);
    let not_connected = meshed.clone().filter(|member| !connected.contains(&*member.workload.uid.value));
    let left_out = |member: &Member| member.workload.labels.get(LABEL_INJECT).is_some_and(|word| word == "disabled");
    let without = index
        .members()
        .iter()
        .filter(|member| !member.workload.meshed && asking.contains(&*member.name.namespace) && !left_out(member));
    json!({
        "meshed": meshed.count(),
        "connected": connected.len(),
        "not_connected": names(not_connected),
        "without_sidecar": names(without),
    })
}

fn names<'a>(members: impl Iterator<Item = &'a Arc<Member>>) -> Value {
    let mut count = 0;
    let mut shown = Vec::new();
    for member in members {
        count += 1;
        if shown.len() < SHOWN {
            let (namespace, name) = (&*member.name.namespace, &*member.name.name);
            shown.push(json!({ "namespace": namespace, "name": name, "uid": &*member.workload.uid.value }));
        }
    }
    json!({ "count": count, "workloads": shown })
}
