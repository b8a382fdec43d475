//! A decision is made on the data path: it takes no memory.
#![allow(clippy::unwrap_used, missing_docs)]

use countersign_policy::{Attempt, Modes, PolicySet, Principal, Received, Source, decide, parse};

#[test]
fn a_decision_does_not_allocate() {
    let text = (0..200).map(|i| {
        format!(
            "---\napiVersion: policy.countersign.dev/v1alpha1\nkind: AuthorizationPolicy\n\
             metadata: {{name: p{i}, namespace: shop}}\nspec:\n  action: {}\n  rules:\n  - from:\n    - serviceAccounts: \
             [{{namespace: shop, name: frontend}}]\n      ipBlocks: [10.0.0.0/8, 192.168.{i}.0/24]\n    to: [{{ports: [{}]}}]\n",
            if i % 50 == 49 { "Deny" } else { "Allow" },
            if i % 50 == 49 { 8081 } else { 8080 },
        )
    });
    let policies = parse("t", &text.collect::<String>()).unwrap();
    let received = policies.into_iter().map(Received::Known).collect();
    let set = PolicySet::compile("cluster.local", Modes::default(), "r", received);
    let principal = Principal::parse("spiffe://cluster.local/ns/shop/sa/frontend").unwrap();
    for (port, source, allowed) in [
        (8080, Source::Authenticated(&principal), true),
        (8081, Source::Authenticated(&principal), false),
        (8082, Source::Authenticated(&principal), false),
        (8080, Source::Unauthenticated, false),
    ] {
        let attempt = Attempt { source, source_ip: "::ffff:10.1.1.1".parse().unwrap(), port };
        let mut decision = None;
        let taken = allocation_counter::measure(|| decision = Some(decide(&set, &attempt)));
        assert_eq!(decision.unwrap().allowed(), allowed);
        assert_eq!(taken.count_total, 0, "port {port}");
    }
}

#[test]
fn the_counter_counts() {
    assert!(allocation_counter::measure(|| drop(std::hint::black_box(vec![0u8; 64]))).count_total > 0);
}
