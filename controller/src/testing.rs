//! For tests only: directories that go away, a small mesh as text, and an index of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use countersign_credentials::{Credentials, system_clock};
use countersign_identity::{BundleSet, Purpose, Svid, TrustBundle, TrustDomain, VerifiedId, verify_svid};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use time::OffsetDateTime;

use crate::index::Index;
use crate::model::Object;
use crate::source::dir::Dir;
use crate::source::{Limits, Snapshot, yaml};

/// A directory below the system's temporary one, removed when dropped.
pub struct Temp(PathBuf);

impl Temp {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("countersign-controller-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Temp(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes like a careful editor: a hidden file first, then a rename.
    pub fn put(&self, name: &str, text: &str) {
        let path = self.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let hidden = self.join(".put");
        std::fs::write(&hidden, text).unwrap();
        std::fs::rename(hidden, path).unwrap();
    }

    /// Writes over what is there.
    pub fn overwrite(&self, name: &str, text: &str) {
        std::fs::write(self.join(name), text).unwrap();
    }

    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.join(name)).unwrap();
    }

    pub fn dir(&self) -> Dir {
        Dir::new(self.0.clone(), Limits::default(), trust_domain())
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn trust_domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").unwrap()
}

/// One look, long after the last write.
pub fn look(dir: &mut Dir) -> Option<Snapshot> {
    dir.scan(SystemTime::now() + Duration::from_secs(60)).snapshot
}

pub const MESH: &str = "\
apiVersion: countersign.dev/v1alpha1
kind: Mesh
metadata: {name: mesh}
spec:
  trustDomain: cluster.local
  podRanges: [10.77.0.0/24, 'fd77::/64']
  serviceRanges: [10.96.0.0/16, 'fd96::/112']
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {countersign.dev/mtls: Permissive}}
";

/// frontend, two backends of which one is not ready, a database without a sidecar, and in another namespace a stranger with
/// the backends' labels.
pub fn workloads() -> String {
    [
        workload("shop", "frontend", "frontend", "10.77.0.10", "fd77::10", ""),
        workload("shop", "backend-1", "backend", "10.77.0.11", "fd77::11", ""),
        workload("shop", "backend-2", "backend", "10.77.0.12", "fd77::12", ", ready: false"),
        workload("shop", "database", "database", "10.77.0.13", "fd77::13", "").replace("meshed: true", "meshed: false"),
        workload("other", "stranger", "backend", "10.77.0.20", "fd77::20", ""),
    ]
    .join("---\n")
}

pub fn workload(namespace: &str, name: &str, app: &str, v4: &str, v6: &str, more: &str) -> String {
    format!(
        "\
apiVersion: countersign.dev/v1alpha1
kind: Workload
metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {app}}}}}
spec: {{uid: uid-{name}, serviceAccount: {app}, addresses: [{v4}, '{v6}'], meshed: true, node: node-a{more}}}
"
    )
}

pub const SERVICES: &str = "\
apiVersion: countersign.dev/v1alpha1
kind: Service
metadata: {name: backend, namespace: shop}
spec:
  addresses: [10.96.0.10, 'fd96::10']
  selector: {app: backend}
  ports: [{port: 80, targetPort: 8080}, {port: 9090}]
---
apiVersion: countersign.dev/v1alpha1
kind: Service
metadata: {name: database, namespace: shop}
spec:
  addresses: [10.96.0.11]
  selector: {app: database}
  ports: [{port: 5432}]
  internalTrafficPolicy: Local
  sessionAffinity: ClientIP
---
apiVersion: countersign.dev/v1alpha1
kind: Service
metadata: {name: elsewhere, namespace: shop}
spec: {addresses: [10.96.0.12], ports: [{port: 80}]}
";

pub fn policy(namespace: &str, name: &str, app: Option<&str>, action: &str) -> String {
    let selector = app.map(|app| format!("selector: {{matchLabels: {{app: {app}}}}}, ")).unwrap_or_default();
    format!(
        "\
apiVersion: policy.countersign.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{{selector}action: {action}, rules: [{{from: [{{namespaces: [shop]}}]}}]}}
"
    )
}

/// Objects of one file.
pub fn objects(file: &str, text: &str) -> Vec<Object> {
    yaml::parse(file, text, &Limits::default()).unwrap()
}

/// The index of these texts.
pub fn index(texts: &[&str]) -> Index {
    let objects: Vec<Object> =
        texts.iter().enumerate().flat_map(|(i, text)| objects(&format!("{i}.yaml"), text)).collect();
    let objects: Vec<&Object> = objects.iter().collect();
    Index::build(&objects, &trust_domain()).unwrap()
}

/// The index of the small mesh, and of what else is to be in it.
pub fn small_mesh(more: &[&str]) -> Index {
    let workloads = workloads();
    let mut texts = vec![MESH, &workloads, SERVICES];
    texts.extend(more);
    index(&texts)
}

/// A root that signs leaves.
pub struct TestCa(CertifiedIssuer<'static, KeyPair>);

impl TestCa {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "test root");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        within(&mut params, Duration::from_secs(86_400));
        TestCa(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn root(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    pub fn bundles(&self) -> BundleSet {
        let bundle = TrustBundle::new(trust_domain(), 1, vec![self.root()], UnixTime::now()).unwrap();
        BundleSet::new(vec![bundle]).unwrap()
    }

    /// A chain of one for a key that somebody else holds.
    pub fn sign(&self, id: &str, key: &impl PublicKeyData) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        within(&mut params, Duration::from_secs(3600));
        params.signed_by(key, &*self.0).unwrap().der().clone()
    }

    pub fn svid(&self, id: &str) -> Svid {
        let key = KeyPair::generate().unwrap();
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Svid::new(vec![self.sign(id, &key)], private).unwrap()
    }

    pub fn credentials(&self, id: &str) -> Arc<Credentials> {
        Arc::new(Credentials::new(Arc::new(self.svid(id)), self.bundles(), system_clock()).unwrap())
    }

    pub fn verified(&self, id: &str) -> VerifiedId {
        verify_svid(self.svid(id).chain(), &self.bundles(), Purpose::Client, UnixTime::now()).unwrap()
    }
}

fn within(params: &mut CertificateParams, life: Duration) {
    params.not_before = OffsetDateTime::now_utc() - Duration::from_secs(60);
    params.not_after = OffsetDateTime::now_utc() + life;
}

pub fn account(namespace: &str, account: &str) -> String {
    format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")
}
