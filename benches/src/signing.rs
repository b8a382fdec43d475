//! How many SVIDs the CA signs: the real process, over connections that are kept, each call with a token and a CSR of its own pod.
//!
//! Called once a run, and by `cargo xtask bench signing` alone. What counts is SVIDs for each second of the CA's own processor time; the callers share the machine with it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use countersign_api::ca::IssueSvidRequest;
use countersign_api::ca::certificate_authority_client::CertificateAuthorityClient;
use countersign_api::names;
use countersign_credentials::{ChannelSettings, TlsAs, channel, system_clock};
use countersign_identity::{BundleSet, SpiffeId, TrustBundle, TrustDomain};
use countersign_kit::mesh::{Mesh, Settings};
use countersign_kit::tokens::{TokenClaims, TokenKey};
use countersign_kit::{Inside, Net};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::collect::Figure;
use crate::proc::{Noise, usage};

const CONNECTIONS: usize = 4;
/// Calls under way on each.
const CALLERS: usize = 8;
/// Different pods, each with a token and a key of its own; then they ask again.
const PODS: usize = 512;

/// What the CA did.
#[derive(Clone, Debug, Serialize)]
pub struct Signing {
    /// What the callers' tokens were signed with.
    pub tokens: &'static str,
    /// SVIDs issued.
    pub issued: usize,
    /// Seconds on the clock.
    pub seconds: f64,
    /// Seconds of processor time that the CA took in user space.
    pub user: f64,
    /// Seconds of processor time that the kernel took for it.
    pub system: f64,
    /// Of each turn: SVIDs for each second of processor time.
    pub turns: Figure,
    /// Processors that others kept busy meanwhile; of the last turn.
    pub foreign: f64,
}

impl Signing {
    /// SVIDs for each second of the CA's processor time, median of the turns.
    #[must_use]
    pub fn per_core_second(&self) -> f64 {
        self.turns.median
    }

    /// Adds another turn.
    pub fn add(&mut self, turn: &Self) {
        self.issued += turn.issued;
        self.seconds += turn.seconds;
        self.user += turn.user;
        self.system += turn.system;
        self.foreign = turn.foreign;
        self.turns.add(turn.per_core_second());
    }

    fn cpu(&self) -> f64 {
        self.user + self.system
    }
}

impl fmt::Display for Signing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "The CA signed {} SVIDs in {:.1} s, {:.0} a second beside its callers on the same processors, and took {:.2} s of processor time \
             for it ({:.2} of them in the kernel), {} SVIDs for each second of it, {:.0} us for each: over kept connections, each call with the {} token and the P-256 CSR of \
             a pod, attested by a JWKS, recorded in the audit log (in /var/tmp) before the answer.",
            self.issued,
            self.seconds,
            self.issued as f64 / self.seconds,
            self.cpu(),
            self.system,
            self.turns.told(0),
            1e6 / self.per_core_second(),
            self.tokens,
        )
    }
}

/// Both kinds of tokens.
pub const TOKENS: [TokenKey; 2] = [TokenKey::Rsa2048, TokenKey::P256];

fn name(tokens: TokenKey) -> &'static str {
    match tokens {
        TokenKey::Rsa2048 => "RS256",
        TokenKey::P256 => "ES256",
    }
}

/// Measures it: once to warm up, then for so long.
///
/// # Errors
/// If the CA does not start, or refuses a call.
pub fn measure(inside: Inside, length: Duration, tokens: TokenKey) -> Result<Signing> {
    let disk = Disk::new()?;
    // Its bounds for one source and one pod are for others than a bench.
    let bounds = ["--source-rate", "1000000/1000000", "--caller-rate", "1000000/1000000", "--log", "warn"];
    let log = ["--audit-log".to_owned(), disk.0.join("audit.jsonl").display().to_string()];
    let ca_args = bounds.map(str::to_owned).into_iter().chain(log).collect();
    let mesh = Mesh::start(Net::new(inside)?, Settings { ca_args, token_key: tokens, ..Settings::default() })?;
    let requests = requests(&mesh)?;
    let (bundles, address) = (bundles(&mesh)?, mesh.ca_address());
    let ca = mesh.ca_pid().context("the CA runs")?;
    let asked = mesh.system().run(|| async {
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            let settings = ChannelSettings {
                address: address.clone(),
                expected: system_id(names::CA_ACCOUNT)?,
                tls: TlsAs::Nobody(bundles.clone(), system_clock()),
                mark: None,
            };
            clients.push(CertificateAuthorityClient::new(channel(settings)));
        }
        ask(&clients, &requests, length / 4).await?;
        let (before, noise, began) = (usage(&[ca])?, Noise::now()?, Instant::now());
        let issued = ask(&clients, &requests, length).await?;
        let seconds = began.elapsed().as_secs_f64();
        let used = usage(&[ca])?.since(before);
        let foreign = Noise::now()?.foreign_since(noise, seconds);
        let mut turns = Figure::default();
        turns.add(issued as f64 / (used.user + used.system).max(f64::MIN_POSITIVE));
        anyhow::Ok(Signing {
            tokens: name(tokens),
            issued,
            seconds,
            user: used.user,
            system: used.system,
            turns,
            foreign,
        })
    })?;
    ensure!(asked.issued > 0 && asked.cpu() > 0.0, "nothing was measured: {asked:?}");
    Ok(asked)
}

/// A folder for the audit log where its records have to reach a disk: the mesh's own is in memory. Removed when dropped.
struct Disk(PathBuf);

impl Disk {
    fn new() -> Result<Self> {
        let folder = Path::new("/var/tmp").join(format!("countersign-signing-{}", std::process::id()));
        std::fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        Ok(Self(folder))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What is left over is no reason to lose the figures.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

type Client = CertificateAuthorityClient<tonic::transport::Channel>;

async fn ask(clients: &[Client], requests: &[IssueSvidRequest], length: Duration) -> Result<usize> {
    let (next, end) = (std::sync::Arc::new(AtomicUsize::new(0)), Instant::now() + length);
    let requests: std::sync::Arc<[IssueSvidRequest]> = requests.into();
    let mut callers = JoinSet::new();
    for client in clients.iter().flat_map(|client| std::iter::repeat_n(client, CALLERS)) {
        let (mut client, next, requests) = (client.clone(), next.clone(), requests.clone());
        callers.spawn(async move {
            let mut issued = 0;
            while Instant::now() < end {
                let request = &requests[next.fetch_add(1, Ordering::Relaxed) % requests.len()];
                let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
                let request = IssueSvidRequest { client_time_ms: i64::try_from(now)?, ..request.clone() };
                let answer = client.issue_svid(request).await.context("a call was refused")?.into_inner();
                ensure!(answer.chain.len() == 2, "the chain has {} certificates", answer.chain.len());
                issued += 1;
            }
            Ok(issued)
        });
    }
    let mut sum = 0;
    while let Some(issued) = callers.join_next().await {
        sum += issued??;
    }
    Ok(sum)
}

fn requests(mesh: &Mesh) -> Result<Vec<IssueSvidRequest>> {
    let one = |number: usize| {
        let claims = TokenClaims::of("shop", "backend", &format!("backend-{number}"), &format!("00000000-{number:04}"));
        let key = KeyPair::generate()?;
        let csr = CertificateParams::default().serialize_request(&key)?.der().to_vec();
        Ok(IssueSvidRequest {
            csr,
            token: mesh.kubelet().token(&claims.json())?,
            client_time_ms: 0,
            ttl_seconds: 0,
            bundle_generation: 0,
        })
    };
    (0..PODS).map(one).collect()
}

fn system_id(account: &str) -> Result<SpiffeId> {
    let domain = TrustDomain::parse(names::TRUST_DOMAIN)?;
    Ok(SpiffeId::for_service_account(&domain, names::SYSTEM_NAMESPACE, account)?)
}

fn bundles(mesh: &Mesh) -> Result<BundleSet> {
    let roots = CertificateDer::pem_file_iter(mesh.bundle())?.collect::<Result<Vec<_>, _>>()?;
    let bundle = TrustBundle::new(TrustDomain::parse(names::TRUST_DOMAIN)?, 1, roots, UnixTime::now())?;
    Ok(BundleSet::new(vec![bundle])?)
}
