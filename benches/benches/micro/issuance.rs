//! A CSR made into an SVID, without the wire: what the CA does between attesting the caller and writing the record.

use std::hint::black_box;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use countersign_ca::grant::{self, Granter, Terms};
use countersign_ca::state::{Authority, Lifetimes};
use countersign_ca::{csr, sign};
use countersign_identity::{SpiffeId, TrustDomain};
use criterion::Criterion;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::UnixTime;

const HOUR: Duration = Duration::from_secs(3600);

pub fn signing(bench: &mut Criterion) {
    let domain = TrustDomain::parse("cluster.local").unwrap();
    let lifetimes = Lifetimes { root: HOUR * 1000, issuer: HOUR * 100, leaf: HOUR };
    let authority = Authority::create(&domain, lifetimes, UnixTime::now()).unwrap();
    let own_id = SpiffeId::for_service_account(&domain, "shop", "backend").unwrap();
    let granter = Granter {
        trust_domain: &domain,
        issuer_end: authority.issuer().not_after(),
        own_id: &own_id,
        terms: Terms { default: HOUR, max: HOUR },
    };
    let request = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap();
    let request = request.der().to_vec();
    bench.bench_function("csr/possession proven", |bench| {
        bench.iter(|| csr::verify(black_box(&request)).unwrap());
    });
    bench.bench_function("csr/possession proven, leaf signed and verified as both its peers will", |bench| {
        bench.iter(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            let key = csr::verify(black_box(&request)).unwrap();
            let grant = grant::for_self(granter, u64::try_from(now.as_millis()).unwrap()).unwrap();
            sign::leaf(&authority, &grant, key.public(), UnixTime::since_unix_epoch(now)).unwrap()
        });
    });
}
