//! Micro-benchmarks of what every connection and every decision is made of: `cargo xtask bench micro`.
//!
//! They say what one step costs alone and whether a change made it dearer; what the mesh costs is said by `cargo xtask bench mesh`.
#![allow(clippy::unwrap_used, missing_docs)]

mod issuance;
mod relay;

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use countersign_benches::decision::{attempt, rules, rules_all_binding};
use countersign_credentials::{Credentials, accept, connect, system_clock};
use countersign_identity::{BundleSet, Purpose, SpiffeId, Svid, TrustBundle, verify_svid};
use countersign_kit::testca::{LeafSpec, TestCa};
use countersign_policy::decide;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use rustls::pki_types::UnixTime;
use rustls::pki_types::pem::PemObject as _;

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/frontend";
const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/backend";
const ALPN: &[&[u8]] = &[b"countersign/1"];

/// A root, an issuer below it, and who is signed by the issuer: as in the mesh.
struct World {
    issuer: TestCa,
    bundles: BundleSet,
}

impl World {
    fn new() -> Self {
        let root = TestCa::new("bench root").unwrap();
        let certificate = rustls::pki_types::CertificateDer::from_pem_slice(root.root_pem().as_bytes()).unwrap();
        let domain = SpiffeId::parse(CLIENT).unwrap().trust_domain();
        let bundle = TrustBundle::new(domain, 1, vec![certificate], UnixTime::now()).unwrap();
        Self { issuer: root.issuer("bench issuer").unwrap(), bundles: BundleSet::new(vec![bundle]).unwrap() }
    }

    fn svid(&self, id: &str) -> Svid {
        let leaf = self.issuer.leaf(&LeafSpec::of(id)).unwrap();
        Svid::new(leaf.chain(), leaf.key).unwrap()
    }

    fn credentials(&self, id: &str) -> Credentials {
        Credentials::new(Arc::new(self.svid(id)), self.bundles.clone(), system_clock()).unwrap()
    }
}

/// Both sides of it, in memory: X25519MLKEM768, both identities verified, the expected one compared.
fn handshake(bench: &mut Criterion) {
    let world = World::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let limit = Duration::from_secs(10);
    let expected = SpiffeId::parse(SERVER).unwrap();
    let (ours, theirs) = (world.credentials(CLIENT), world.credentials(SERVER));
    bench.bench_function("handshake/both sides, chains seen before", |bench| {
        bench.iter(|| runtime.block_on(shake(&ours, &theirs, &expected, limit)));
    });
    bench.bench_function("handshake/both sides, chains never seen", |bench| {
        // New credentials have verified nobody yet; making them is not measured.
        bench.iter_batched(
            || (world.credentials(CLIENT), world.credentials(SERVER)),
            |(ours, theirs)| runtime.block_on(shake(&ours, &theirs, &expected, limit)),
            criterion::BatchSize::SmallInput,
        );
    });
}

async fn shake(ours: &Credentials, theirs: &Credentials, expected: &SpiffeId, limit: Duration) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (client, server) = tokio::join!(connect(near, ours, ALPN, expected, limit), accept(far, theirs, ALPN, limit));
    assert_eq!(client.unwrap().1.id(), expected);
    assert_eq!(server.unwrap().1.id().as_str(), CLIENT);
}

fn verify(bench: &mut Criterion) {
    let world = World::new();
    let svid = world.svid(CLIENT);
    bench.bench_function("verify_svid/leaf and issuer", |bench| {
        bench.iter(|| verify_svid(black_box(svid.chain()), &world.bundles, Purpose::Client, UnixTime::now()).unwrap());
    });
}

fn decisions(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("decide");
    for number in [10, 1_000, 10_000] {
        let (selected, all) = (rules(number).unwrap(), rules_all_binding(number).unwrap());
        for (name, rules) in [("20 of the workload", selected), ("all of the workload", all)] {
            for (outcome, client) in [("allowed by the last", &rules.last), ("denied", &rules.nobody)] {
                group.bench_with_input(
                    BenchmarkId::new(format!("{name}, {outcome}"), number),
                    client,
                    |bench, client| {
                        bench.iter(|| decide(&rules.set, &attempt(black_box(client))));
                    },
                );
            }
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(50).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = handshake, verify, decisions, issuance::signing, relay::relaying
}
criterion_main!(benches);
