//! For tests only: credentials of anybody, and pairs of connected sockets and links.

use std::sync::Arc;
use std::time::Duration;

use countersign_credentials::{Credentials, SharedClock, system_clock};
use countersign_identity::{BundleSet, SpiffeId, Svid, TrustBundle, TrustDomain};
use countersign_policy::{Modes, PolicySet};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::first_bytes::Replay;
use crate::permit::{Asking, Permit, Permits};
use crate::tls::{self, Accepted, Peer};
use crate::wire::link::Link;

/// A root that signs leaves directly.
pub struct TestCa {
    root: CertifiedIssuer<'static, KeyPair>,
    trust_domain: TrustDomain,
}

impl TestCa {
    pub fn new(trust_domain: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(rcgen::DnType::CommonName, "test root");
        let root = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { root, trust_domain: TrustDomain::parse(trust_domain).unwrap() }
    }

    pub fn bundle(&self, generation: u64) -> TrustBundle {
        let root = self.root.der().clone();
        TrustBundle::new(self.trust_domain.clone(), generation, vec![root], UnixTime::now()).unwrap()
    }

    /// Credentials of `account` in namespace `shop`, good for `life`.
    pub fn credentials(&self, account: &str, life: Duration) -> Arc<Credentials> {
        self.credentials_by(account, life, system_clock())
    }

    /// The same by another clock, which may step after this.
    pub fn credentials_by(&self, account: &str, life: Duration, clock: SharedClock) -> Arc<Credentials> {
        let id = SpiffeId::for_service_account(&self.trust_domain, "shop", account).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().unwrap())];
        let now = std::time::SystemTime::now();
        params.not_before = (now - Duration::from_secs(60)).into();
        params.not_after = (now + life).into();
        let leaf = params.signed_by(&key, &self.root).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let svid = Svid::new(vec![leaf.der().clone()], key).unwrap();
        let bundles = BundleSet::new(vec![self.bundle(1)]).unwrap();
        Arc::new(Credentials::new(Arc::new(svid), bundles, clock).unwrap())
    }
}

/// Two ends of one TCP connection.
pub async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (dialled, accepted) =
        tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), async { listener.accept().await });
    let (dialled, accepted) = (dialled.unwrap(), accepted.unwrap().0);
    dialled.set_nodelay(true).unwrap();
    accepted.set_nodelay(true).unwrap();
    (dialled, accepted)
}

/// A link between `frontend` and `backend`: the client's end, then the server's.
pub async fn link_pair() -> ((Box<Link>, Peer), (Box<Link>, Peer)) {
    let ca = TestCa::new("cluster.local");
    let hour = Duration::from_secs(3600);
    let (frontend, backend) = (ca.credentials("frontend", hour), ca.credentials("backend", hour));
    let (dialled, accepted) = tcp_pair().await;
    let limit = Duration::from_secs(10);
    links_between((dialled, accepted), &frontend, &backend, limit).await
}

/// A handshake over this connection: the client's end of the link, then the server's.
pub async fn links_between(
    (dialled, accepted): (TcpStream, TcpStream),
    client: &Credentials,
    server: &Credentials,
    limit: Duration,
) -> ((Box<Link>, Peer), (Box<Link>, Peer)) {
    let (client, server) = tokio::join!(
        tls::connect(dialled, client, server.id(), limit),
        tls::accept(Replay::new(Vec::new(), accepted), server, limit)
    );
    match server.unwrap() {
        Accepted::Link(link, peer) => (client.unwrap(), (link, Arc::into_inner(peer).unwrap())),
        Accepted::Again(_) => unreachable!("a link was asked for"),
    }
}

/// Rules of a workload, by policy text; empty text: no policy.
pub fn rules(text: &str) -> Arc<PolicySet> {
    let policies = if text.is_empty() { Vec::new() } else { countersign_policy::parse("test.yaml", text).unwrap() };
    let received = policies.into_iter().map(countersign_policy::Received::Known).collect();
    Arc::new(PolicySet::compile("cluster.local", Modes::from_labels(&Default::default()).0, "r1", received))
}

/// A permit that lets anything out.
pub fn a_permit() -> Permit {
    let (_sender, rules) = watch::channel(Some(rules("")));
    Permits::new(rules).admit(Asking::Out { meshed: true, address: ([10, 0, 0, 2], 80).into() }).unwrap()
}
