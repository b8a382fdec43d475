//! For tests only: a token issuer, CSRs, an authority, a clock that is set, openssl as a foreign judge.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::Command;
use std::sync::OnceLock;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use countersign_identity::{SpiffeId, TrustDomain, VerifiedId};
/// The kit's clock, held in a hand.
pub use countersign_kit::TestClock as Hand;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, RsaKeySize};
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::attest::{Caller, TokenRules};
use crate::clock::seconds;
use crate::grant::{self, Granter, Terms, Wish};
use crate::state::{Authority, KeySource, Lifetimes, Opened, Place, Race, State, StateError, StateKey, Vacant};

/// Where test time begins.
pub const START: u64 = 1_800_000_000;
pub const HOUR: u64 = 3600;
pub const DAY: u64 = 86_400;
pub const ISSUER: &str = "https://kubernetes.default.svc";
pub const AUDIENCE: &str = "countersign-ca";

pub const LIVES: Lifetimes = Lifetimes {
    root: Duration::from_secs(3650 * DAY),
    issuer: Duration::from_secs(30 * DAY),
    leaf: Duration::from_secs(HOUR),
};

pub fn now() -> UnixTime {
    seconds(START)
}

pub fn domain() -> TrustDomain {
    TrustDomain::parse("mesh.test").unwrap()
}

pub fn own_id() -> SpiffeId {
    SpiffeId::for_service_account(&domain(), "countersign-system", "countersign-ca").unwrap()
}

pub fn authority() -> Authority {
    Authority::create(&domain(), LIVES, now()).unwrap()
}

/// Signs tokens, and has a key set that says so.
pub struct TokenIssuer {
    pub kid: &'static str,
    algorithm: Algorithm,
    key: EncodingKey,
    jwk: Value,
}

impl TokenIssuer {
    pub fn es256(kid: &'static str) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        Self::new(kid, Algorithm::ES256, EncodingKey::from_ec_der(key.serialized_der()))
    }

    pub fn rs256(kid: &'static str) -> Self {
        Self::new(kid, Algorithm::RS256, EncodingKey::from_rsa_pem(rsa().serialize_pem().as_bytes()).unwrap())
    }

    fn new(kid: &'static str, algorithm: Algorithm, key: EncodingKey) -> Self {
        let mut jwk = Jwk::from_encoding_key(&key, algorithm).unwrap();
        jwk.common.key_id = Some(kid.to_owned());
        Self { kid, algorithm, key, jwk: serde_json::to_value(jwk).unwrap() }
    }

    /// The public key as a key set lists it.
    pub fn jwk(&self) -> Value {
        self.jwk.clone()
    }

    pub fn sign(&self, claims: &Value) -> String {
        self.sign_with(self.header(), claims)
    }

    pub fn header(&self) -> Header {
        Header { kid: Some(self.kid.to_owned()), ..Header::new(self.algorithm) }
    }

    pub fn sign_with(&self, header: Header, claims: &Value) -> String {
        jsonwebtoken::encode(&header, claims, &self.key).unwrap()
    }
}

/// RSA keys take long to make: one for all tests.
pub fn rsa() -> &'static KeyPair {
    static KEY: OnceLock<KeyPair> = OnceLock::new();
    KEY.get_or_init(|| KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap())
}

/// Claims as the kubelet gets them for a pod, issued at `iat`.
pub fn claims(namespace: &str, account: &str, pod: &str, iat: u64) -> Value {
    json!({
        "iss": ISSUER,
        "aud": [AUDIENCE],
        "sub": format!("system:serviceaccount:{namespace}:{account}"),
        "iat": iat, "nbf": iat, "exp": iat + HOUR,
        "jti": "token-1",
        "kubernetes.io": {
            "namespace": namespace,
            "serviceaccount": {"name": account, "uid": "5c2c5d2e-0000-0000-0000-000000000001"},
            "pod": {"name": pod, "uid": format!("uid-of-{pod}")},
            "node": {"name": "node-a", "uid": "5c2c5d2e-0000-0000-0000-000000000002"},
        },
    })
}

pub fn rules() -> TokenRules {
    TokenRules {
        issuer: ISSUER.to_owned(),
        audience: AUDIENCE.to_owned(),
        algorithms: vec![Algorithm::RS256, Algorithm::ES256, Algorithm::ES384],
        max_age: Duration::from_secs(DAY),
    }
}

pub fn write_jwks(path: &Path, keys: &[Value]) {
    std::fs::write(path, json!({ "keys": keys }).to_string()).unwrap();
}

/// A CSR with nothing in it but the key.
pub fn csr(key: &KeyPair) -> Vec<u8> {
    csr_of(CertificateParams::default(), key)
}

pub fn csr_of(params: CertificateParams, key: &KeyPair) -> Vec<u8> {
    params.serialize_request(key).unwrap().der().to_vec()
}

pub fn p256() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

/// Somebody with an SVID of `authority`.
pub fn peer(authority: &Authority) -> VerifiedId {
    let granter = Granter {
        trust_domain: authority.trust_domain(),
        issuer_end: authority.issuer().not_after(),
        own_id: &own_id(),
        terms: Terms { default: Duration::from_secs(HOUR), max: Duration::from_secs(DAY) },
    };
    let wish = Wish { ttl_seconds: 0, client_time_ms: START as i64 * 1000 };
    let grant = grant::decide(&Caller::for_test("shop", "frontend"), wish, granter, START * 1000).unwrap();
    crate::sign::leaf(authority, &grant, &p256(), seconds(START)).unwrap().verified().clone()
}

/// Runs openssl, a judge that shares no code with us. `None` where it is not installed, which under CI is a failure.
pub fn openssl(args: &[&str]) -> Option<String> {
    match Command::new("openssl").args(args).output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "openssl {args:?}: {text}");
            Some(text)
        }
        Err(error) => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "openssl cannot be run: {error}");
            eprintln!("NOT RUN: openssl is not installed");
            None
        }
    }
}

/// A directory as the state wants it.
pub fn private_dir() -> tempfile::TempDir {
    tempfile::Builder::new().permissions(Permissions::from_mode(0o700)).tempdir().unwrap()
}

/// The state of a directory, as the process opens it.
pub fn open_state(path: &Path, key: StateKey, domain: &TrustDomain, at: UnixTime) -> Result<Opened, StateError> {
    at_once(crate::state::open(Place::directory(path)?, &KeySource::Given(key), domain, LIVES, at))
}

/// Makes the first state of a directory.
pub fn first_state(vacant: Vacant, at: UnixTime) -> State {
    let draft = vacant.draft(at).unwrap();
    let (state, race) = at_once(vacant.commit(draft, at)).unwrap();
    assert_eq!(race, Race::Won);
    state
}

/// The result of what waits for nothing, as the state in a directory never does.
pub fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("it waits"),
    }
}

/// A file of a test.
pub fn file(dir: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

/// Says something, and hears the other end out.
pub async fn exchange(mut io: impl AsyncRead + AsyncWrite + Unpin, words: &str) -> std::io::Result<String> {
    io.write_all(words.as_bytes()).await?;
    let mut answer = String::new();
    io.read_to_string(&mut answer).await?;
    Ok(answer)
}
