//! How many SVIDs the CA signs: the real process, over connections that are kept, each call with a token and a CSR of its own pod.
//!
//! Called once a run. What counts is SVIDs for each second of the CA's own processor time; the callers share the machine with it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use countersign_api::ca::IssueSvidRequest;
use countersign_api::ca::certificate_authority_client::CertificateAuthorityClient;
use countersign_api::names;
use countersign_credentials::{ChannelSettings, TlsAs, channel, system_clock};
use countersign_identity::{BundleSet, SpiffeId, TrustBundle, TrustDomain};
use countersign_kit::mesh::{Mesh, Settings};
use countersign_kit::tokens::TokenClaims;
use countersign_kit::{Inside, Net};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::proc::usage;

const CONNECTIONS: usize = 4;
/// Calls under way on each.
const CALLERS: usize = 8;
/// Different pods, each with a token and a key of its own; then they ask again.
const PODS: usize = 512;

/// What the CA did.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Signing {
    /// SVIDs issued.
    pub issued: usize,
    /// Seconds on the clock.
    pub seconds: f64,
    /// Seconds of processor time that the CA took.
    pub cpu: f64,
}

impl Signing {
    /// SVIDs for each second of the CA's processor time.
    #[must_use]
    pub fn per_core_second(&self) -> f64 {
        self.issued as f64 / self.cpu
    }
}

/// Measures it: once to warm up, then for so long.
///
/// # Errors
/// If the CA does not start, or refuses a call.
pub fn measure(inside: Inside, length: Duration) -> Result<Signing> {
    // Its bounds for one source and one pod are for others than a bench.
    let bounds = ["--source-rate", "1000000/1000000", "--caller-rate", "1000000/1000000", "--log", "warn"];
    let settings = Settings { ca_args: bounds.map(str::to_owned).to_vec(), ..Settings::default() };
    let mesh = Mesh::start(Net::new(inside)?, settings)?;
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
        let (before, began) = (usage(&[ca])?, Instant::now());
        let issued = ask(&clients, &requests, length).await?;
        let seconds = began.elapsed().as_secs_f64();
        anyhow::Ok(Signing { issued, seconds, cpu: usage(&[ca])?.since(before).total() })
    })?;
    ensure!(asked.issued > 0 && asked.cpu > 0.0, "nothing was measured: {asked:?}");
    Ok(asked)
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
