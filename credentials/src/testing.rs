//! For tests only: the kit's clock, a CA in memory, credentials of anybody, and time that stands still while sockets work.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use countersign_api::ca as wire;
use countersign_identity::{BundleSet, SpiffeId, Svid, TrustBundle, TrustDomain};
pub(crate) use countersign_kit::TestClock;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use time::OffsetDateTime;

use crate::clock::{Clock, SharedClock};
use crate::credentials::Credentials;

/// Where test time begins.
pub(crate) const START: u64 = 1_800_000_000;
pub(crate) const HOUR: u64 = 3600;

/// The kit's clock, for the trait as it is when this crate is under test.
impl Clock for TestClock {
    fn now(&self) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_millis(self.ms().unsigned_abs()))
    }

    fn now_ms(&self) -> i64 {
        self.ms()
    }
}

/// Begins at [`START`] and goes with tokio's clock.
pub(crate) fn clock() -> TestClock {
    TestClock::from(START)
}

/// As our own code takes it.
pub(crate) fn shared(clock: &TestClock) -> SharedClock {
    Arc::new(clock.clone())
}

pub(crate) fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

/// One root and one issuer below it.
pub(crate) struct TestCa {
    pub(crate) trust_domain: TrustDomain,
    root: CertifiedIssuer<'static, KeyPair>,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl TestCa {
    pub(crate) fn new(trust_domain: &str) -> Self {
        Self::ending(trust_domain, START + 1000 * HOUR)
    }

    /// Root and issuer end then.
    pub(crate) fn ending(trust_domain: &str, until: u64) -> Self {
        let number: u32 = rand::random();
        let params = |name: &str, path_len| {
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, format!("{name} {number}"));
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_len));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            params.not_before = at(START - 24 * HOUR);
            params.not_after = at(until);
            params.use_authority_key_identifier_extension = true;
            params
        };
        let root = CertifiedIssuer::self_signed(params("root", 1), KeyPair::generate().unwrap()).unwrap();
        let issuer = CertifiedIssuer::signed_by(params("issuer", 0), KeyPair::generate().unwrap(), &root).unwrap();
        Self { trust_domain: TrustDomain::parse(trust_domain).unwrap(), root, issuer }
    }

    pub(crate) fn root(&self) -> CertificateDer<'static> {
        self.root.der().clone()
    }

    pub(crate) fn root_pem(&self) -> String {
        self.root.pem()
    }

    pub(crate) fn bundle(&self, generation: u64) -> TrustBundle {
        bundle_of(generation, &[self])
    }

    pub(crate) fn bundles(&self) -> BundleSet {
        BundleSet::new(vec![self.bundle(1)]).unwrap()
    }

    pub(crate) fn wire_bundle(&self, generation: u64) -> wire::TrustBundle {
        wire_bundle(&self.trust_domain, generation, &[self])
    }

    /// A chain for a key that somebody else holds.
    pub(crate) fn sign(
        &self,
        id: &str,
        key: &impl PublicKeyData,
        from: u64,
        until: u64,
    ) -> Vec<CertificateDer<'static>> {
        self.sign_params(leaf_params(id, from, until), key)
    }

    pub(crate) fn sign_params(
        &self,
        params: CertificateParams,
        key: &impl PublicKeyData,
    ) -> Vec<CertificateDer<'static>> {
        let leaf = params.signed_by(key, &*self.issuer).unwrap();
        vec![leaf.der().clone(), self.issuer.der().clone()]
    }

    pub(crate) fn svid_during(&self, id: &str, from: u64, until: u64) -> Svid {
        let key = KeyPair::generate().unwrap();
        Svid::new(self.sign(id, &key, from, until), private(&key)).unwrap()
    }

    pub(crate) fn svid(&self, id: &str) -> Svid {
        self.svid_during(id, START - 60, START + HOUR)
    }

    pub(crate) fn credentials(&self, id: &str, clock: &TestClock) -> Credentials {
        Credentials::new(Arc::new(self.svid(id)), self.bundles(), shared(clock)).unwrap()
    }
}

/// The roots of several CAs of one trust domain.
pub(crate) fn bundle_of(generation: u64, cas: &[&TestCa]) -> TrustBundle {
    let now = UnixTime::since_unix_epoch(Duration::from_secs(START));
    let roots = cas.iter().map(|ca| ca.root()).collect();
    TrustBundle::new(cas[0].trust_domain.clone(), generation, roots, now).unwrap()
}

pub(crate) fn wire_bundle(trust_domain: &TrustDomain, generation: u64, cas: &[&TestCa]) -> wire::TrustBundle {
    let roots = cas.iter().map(|ca| ca.root().to_vec()).collect();
    wire::TrustBundle {
        trust_domain: trust_domain.as_str().to_owned(),
        generation,
        roots,
        ..wire::TrustBundle::default()
    }
}

pub(crate) fn private(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()))
}

pub(crate) fn leaf_params(id: &str, from: u64, until: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(SerialNumber::from(rand::random::<u64>() | 1));
    params.not_before = at(from);
    params.not_after = at(until);
    params
}

fn at(seconds: u64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(seconds as i64).unwrap()
}

/// Keeps tokio's paused time from running ahead while real sockets are awaited: it then moves by `advance` alone.
pub(crate) struct Frozen(#[allow(dead_code, reason = "its end is the signal")] mpsc::Sender<()>);

pub(crate) fn freeze() -> Frozen {
    let (held, gone) = mpsc::channel::<()>();
    // tokio does not advance a paused clock by itself while a blocking task runs.
    tokio::task::spawn_blocking(move || gone.recv());
    Frozen(held)
}

/// What must come without any time passing; a test that waits in vain fails by the real clock.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    let (_held, gone) = mpsc::channel::<()>();
    let mut too_late = tokio::task::spawn_blocking(move || gone.recv_timeout(Duration::from_secs(30)));
    tokio::select! {
        came = what => came,
        _ = &mut too_late => panic!("waited in vain"),
    }
}

/// Gives every task that can go on many turns; no time passes.
pub(crate) async fn settle() {
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
}

/// Lets time pass, after all who are about to wait for it have begun to.
pub(crate) async fn advance(time: Duration) {
    settle().await;
    tokio::time::advance(time).await;
}
