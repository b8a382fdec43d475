//! What the README shows as good is good.

#![allow(clippy::unwrap_used)]

use countersign_controller::index::Index;
use countersign_controller::rules;
use countersign_controller::source::{Limits, yaml};
use countersign_identity::TrustDomain;

#[test]
fn the_files_of_the_readme_make_a_mesh() {
    let readme = include_str!("../README.md");
    let example = readme.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let objects = yaml::parse("README.md", example, &Limits::default()).unwrap();
    let objects: Vec<_> = objects.iter().collect();
    let index = Index::build(&objects, &TrustDomain::parse("cluster.local").unwrap()).unwrap();
    assert_eq!(index.counts().map(|(_, count)| count), [1; 5]);
    let backend = index.by_uid("7c1d").unwrap();
    assert_eq!(backend.id.as_str(), "spiffe://cluster.local/ns/shop/sa/backend");
    assert_eq!(rules::message(&index, backend).rules.len(), 1);
    assert_eq!(index.services()[0].service.affinity_seconds, 600);
}
