//! What binds one workload: its namespace's modes, and of its namespace's policies those that select it. Pure.
//!
//! Called by `server` at the start of each stream and when the picture changes. It must never leave out a rule because a
//! proxy is old: the proxy decides by the rule's feature number, and an unknown Deny denies.

use countersign_api::controller as api;

use crate::digest::{Content, short};
use crate::index::{Index, Member, NamespaceRules};
use crate::model::Rule;

/// The rules that bind the workload, in order of name.
pub fn binding<'a>(index: &'a Index, member: &'a Member) -> impl Iterator<Item = &'a Rule> {
    let namespace = &*member.name.namespace;
    let rules = index.namespace(namespace).map(|rules| rules.rules.as_slice()).unwrap_or_default();
    rules.iter().map(|rule| &**rule).filter(move |rule| rule.policy.binds(namespace, &member.workload.labels))
}

/// Names the content of [`message`] without building it: the same on every replica and after every restart.
pub fn revision(index: &Index, member: &Member) -> String {
    let mut content = Content::of("workload").text(&member.name.namespace).text(&member.name.name);
    content = modes(index, member, |rules| rules.modes_content(content));
    content = content.number(ranges(index).count() as u64);
    for range in ranges(index) {
        content = content.text(&range);
    }
    content = content.text(&member.workload.node);
    for rule in binding(index, member) {
        content = content.bytes(&rule.digest);
    }
    short(&content.finish())
}

/// Everything that binds the workload, as it goes over the stream.
pub fn message(index: &Index, member: &Member) -> api::Workload {
    let modes = modes(index, member, |rules| api::Modes {
        mtls: rules.modes.mtls.as_str().to_owned(),
        posture: rules.modes.posture.as_str().to_owned(),
        egress: rules.modes.egress.as_str().to_owned(),
    });
    api::Workload {
        namespace: member.name.namespace.to_string(),
        name: member.name.name.to_string(),
        revision: revision(index, member),
        modes: Some(modes),
        rules: binding(index, member).map(|rule| rule.wire.clone()).collect(),
        mesh_ranges: ranges(index).collect(),
        node: member.workload.node.clone(),
    }
}

/// A namespace that nobody wrote down has no labels: the defaults hold.
fn modes<T>(index: &Index, member: &Member, read: impl FnOnce(&NamespaceRules) -> T) -> T {
    match index.namespace(&member.name.namespace) {
        Some(rules) => read(rules),
        None => read(&NamespaceRules::default()),
    }
}

fn ranges(index: &Index) -> impl Iterator<Item = String> + '_ {
    let mesh = index.mesh();
    mesh.pod_ranges.iter().chain(&mesh.service_ranges).map(ToString::to_string)
}

#[cfg(test)]
#[path = "rules/tests.rs"]
mod tests;
