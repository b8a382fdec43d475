//! Proxy and controller of another version than the built ones, on a real mesh: they speak the protocol with one feature fewer, or with one
//! more, until there is a release to speak it.
//!
//! Called by end-to-end tests of versions N-1 and N. Their SVIDs are the mesh's own, by token, and so is the way they are met; only what they
//! say and understand differs. They must never be kinder than a real one: what is not understood is named, and decides nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use countersign_api::controller::controller_client::ControllerClient;
use countersign_api::controller::controller_server::{Controller, ControllerServer};
use countersign_api::controller::{self as api, FromProxy, ToProxy, from_proxy, to_proxy};
use countersign_api::{names, ports};
use countersign_credentials::{
    CaClient, ChannelSettings, ClientAuth, IncomingLimits, Tally, TlsAs, Watch, channel, grpc_server, incoming, start,
    system_clock,
};
use countersign_identity::{SpiffeId, TrustDomain};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::mesh::{Mesh, MeshPod};
use crate::namespace::Task;
use crate::tokens::{TokenClaims, replace_file};
use crate::wait::wait_until;

/// What one of them waits for comes within this time.
const SOON: Duration = Duration::from_secs(20);

/// How one of them gets its SVID.
struct Holder {
    client: CaClient,
    id: SpiffeId,
}

impl Holder {
    fn new(mesh: &Mesh, claims: &TokenClaims, namespace: &str, account: &str) -> Result<Self> {
        let domain = TrustDomain::parse(&mesh.describe().0)?;
        let id = |namespace: &str, account: &str| SpiffeId::for_service_account(&domain, namespace, account);
        let token_file = mesh.folder().join(format!("token-{namespace}-{account}"));
        replace_file(&token_file, &mesh.kubelet().token(&claims.json())?)?;
        let client = CaClient {
            trust_domain: domain.clone(),
            ca_address: mesh.ca_address(),
            ca_id: id(names::SYSTEM_NAMESPACE, names::CA_ACCOUNT)?,
            token_file,
            bootstrap: mesh.bundle(),
            mark: None,
            ttl: None,
            tally: Tally::none(),
        };
        Ok(Self { client, id: id(namespace, account)? })
    }

    async fn obtain(self) -> Result<Watch> {
        let started = start(self.client, self.id, system_clock());
        tokio::spawn(started.task);
        let mut credentials = started.credentials;
        let held = tokio::time::timeout(SOON, credentials.wait_for(Option::is_some)).await.context("no SVID came")?;
        held.context("the CA's client ended")?;
        Ok(credentials)
    }
}

/// A proxy that knows rules up to a feature, and no newer ones. It carries nothing.
pub struct Proxy {
    stop: Option<oneshot::Sender<()>>,
    task: Option<Task<Result<()>>>,
    heard: Arc<Mutex<Option<api::Workload>>>,
}

impl Proxy {
    /// Connects in place of the sidecar of `pod`, which has none.
    ///
    /// # Errors
    /// If its token cannot be written.
    pub fn start(mesh: &Mesh, pod: &MeshPod, knows: u32) -> Result<Self> {
        let spec = pod.spec().clone();
        let claims = TokenClaims::of(&spec.namespace, &spec.account, &spec.name, &spec.uid());
        let holder = Holder::new(mesh, &claims, &spec.namespace, &spec.account)?;
        let domain = TrustDomain::parse(&mesh.describe().0)?;
        let expected = SpiffeId::for_service_account(&domain, names::SYSTEM_NAMESPACE, names::CONTROLLER_ACCOUNT)?;
        let (address, heard) = (mesh.controller_address(), Arc::new(Mutex::new(None)));
        let (told, (stop, stopped)) = (Arc::clone(&heard), oneshot::channel());
        let task = pod.start(move || async move {
            let tls = TlsAs::Ourselves(holder.obtain().await?);
            let channel = channel(ChannelSettings { address, expected, tls, mark: None });
            let hello = api::Hello { pod_uid: spec.uid(), proxy_version: "older".into(), feature_level: knows };
            tokio::select! {
                _ = stopped => Ok(()),
                ended = listen(ControllerClient::new(channel), hello, &told) => ended,
            }
        })?;
        Ok(Self { stop: Some(stop), task: Some(task), heard })
    }

    /// The rules that it was sent last; waits until `wanted` accepts them.
    ///
    /// # Errors
    /// With the last, if they do not come.
    pub fn rules(&self, wanted: impl Fn(&[api::Rule]) -> bool) -> Result<Vec<api::Rule>> {
        wait_until(SOON, || match &*lock(&self.heard) {
            Some(workload) if wanted(&workload.rules) => Ok(workload.rules.clone()),
            other => Err(format!("{other:?}")),
        })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(task) = self.task.take() {
            let _ = task.join();
        }
    }
}

/// Acknowledges what comes as a proxy of that version does: rules of a newer feature are named.
async fn listen(
    mut client: ControllerClient<tonic::transport::Channel>,
    hello: api::Hello,
    told: &Mutex<Option<api::Workload>>,
) -> Result<()> {
    let (say, said) = mpsc::channel(4);
    let knows = hello.feature_level;
    say.send(FromProxy { kind: Some(from_proxy::Kind::Hello(hello)) }).await?;
    let mut incoming = client.connect(ReceiverStream::new(said)).await?.into_inner();
    while let Some(message) = incoming.message().await? {
        let Some(to_proxy::Kind::Workload(workload)) = message.kind else { continue };
        let newer = workload.rules.iter().filter(|rule| rule.feature > knows);
        let unknown_rules = newer.map(|rule| format!("{}/{}", rule.namespace, rule.name)).collect();
        let ack = api::Ack { revision: workload.revision.clone(), problem: String::new(), unknown_rules };
        *lock(told) = Some(workload);
        say.send(FromProxy { kind: Some(from_proxy::Kind::Ack(ack)) }).await?;
    }
    Err(anyhow!("the controller closed the stream"))
}

/// What a controller of another version has to say, and what it heard.
#[derive(Default)]
struct Known {
    /// By pod UID.
    workloads: BTreeMap<String, api::Workload>,
    meshed: BTreeMap<IpAddr, String>,
    /// Ids of others, told to the first who ask.
    mistakes: BTreeMap<IpAddr, String>,
    /// How often it was asked who is there.
    asked: BTreeMap<IpAddr, usize>,
    hellos: BTreeMap<String, api::Hello>,
    acks: BTreeMap<String, api::Ack>,
}

impl Known {
    /// Whose id it says is there.
    fn tell(&mut self, address: IpAddr) -> Option<String> {
        *self.asked.entry(address).or_default() += 1;
        self.mistakes.remove(&address).or_else(|| self.meshed.get(&address).cloned())
    }
}

/// A controller, at the address of the mesh's own, which must have ended.
pub struct OtherController {
    stop: Option<oneshot::Sender<()>>,
    task: Option<Task<Result<()>>>,
    desk: Desk,
}

#[derive(Clone, Default)]
struct Desk {
    known: Arc<Mutex<Known>>,
    changed: watch::Sender<u64>,
}

impl OtherController {
    /// Knows these pods; none of them has a rule.
    ///
    /// # Errors
    /// If its token cannot be written.
    pub fn start(mesh: &Mesh, pods: &[&MeshPod]) -> Result<Self> {
        let (namespace, account) = (names::SYSTEM_NAMESPACE, names::CONTROLLER_ACCOUNT);
        let claims = TokenClaims::of(namespace, account, "controller-0", "controller-uid");
        let holder = Holder::new(mesh, &claims, namespace, account)?;
        let (domain, ranges) = mesh.describe();
        let desk = Desk::default();
        for pod in pods {
            let spec = pod.spec();
            let workload = api::Workload {
                namespace: spec.namespace.clone(),
                name: spec.name.clone(),
                revision: "other-0".into(),
                mesh_ranges: ranges.clone(),
                ..api::Workload::default()
            };
            let mut known = lock(&desk.known);
            known.workloads.insert(spec.uid(), workload);
            for address in pod.addresses() {
                known.meshed.insert(address, format!("spiffe://{domain}{}", pod.id_path()));
            }
        }
        let (served, (stop, stopped)) = (desk.clone(), oneshot::channel());
        let task = mesh.system().start(move || async move {
            let credentials = holder.obtain().await?;
            let listener = TcpListener::bind(("::", ports::CONTROLLER)).await?;
            let connections = incoming(listener, credentials, ClientAuth::Required, IncomingLimits::default(), |_| ());
            let server = grpc_server().add_service(ControllerServer::new(served));
            tokio::select! {
                _ = stopped => Ok(()),
                ended = server.serve_with_incoming(connections) => Ok(ended?),
            }
        })?;
        Ok(Self { stop: Some(stop), task: Some(task), desk })
    }

    /// Gives a pod these rules, under this revision; in force there, as its proxy said, when this returns. What it said.
    ///
    /// # Errors
    /// If it did not take them.
    pub fn rules(&self, pod: &MeshPod, revision: &str, rules: Vec<api::Rule>) -> Result<api::Ack> {
        let uid = pod.spec().uid();
        {
            let mut known = lock(&self.desk.known);
            let workload = known.workloads.get_mut(&uid).context("an unknown pod")?;
            (workload.revision, workload.rules) = (revision.to_owned(), rules);
        }
        self.desk.changed.send_modify(|times| *times += 1);
        wait_until(SOON, || match lock(&self.desk.known).acks.get(&uid) {
            Some(ack) if ack.revision == revision => Ok(ack.clone()),
            other => Err(format!("{other:?}")),
        })
    }

    /// Takes a pod for one of another account, and tells so whoever asks first about either of its addresses.
    pub fn mistakes(&self, pod: &MeshPod, account: &str) {
        let mut known = lock(&self.desk.known);
        for address in pod.addresses() {
            let right = known.meshed.get(&address).map(String::as_str).unwrap_or_default();
            let wrong = right.replace(&pod.id_path(), &format!("/ns/{}/sa/{account}", pod.spec().namespace));
            known.mistakes.insert(address, wrong);
        }
    }

    /// How often it was asked who is at an address.
    #[must_use]
    pub fn asked(&self, address: IpAddr) -> usize {
        lock(&self.desk.known).asked.get(&address).copied().unwrap_or_default()
    }

    /// What a pod's proxy says of itself; waits for it.
    ///
    /// # Errors
    /// If it does not come.
    pub fn hello(&self, pod: &MeshPod) -> Result<api::Hello> {
        let uid = pod.spec().uid();
        wait_until(SOON, || lock(&self.desk.known).hellos.get(&uid).cloned().ok_or("it did not come"))
    }
}

impl Drop for OtherController {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(task) = self.task.take() {
            let _ = task.join();
        }
    }
}

#[tonic::async_trait]
impl Controller for Desk {
    type ConnectStream = ReceiverStream<Result<ToProxy, Status>>;

    async fn connect(&self, request: Request<Streaming<FromProxy>>) -> Result<Response<Self::ConnectStream>, Status> {
        let (say, said) = mpsc::channel(16);
        let (desk, heard) = (self.clone(), request.into_inner());
        tokio::spawn(async move { desk.converse(heard, say).await });
        Ok(Response::new(ReceiverStream::new(said)))
    }
}

impl Desk {
    /// Until either ends.
    async fn converse(self, mut heard: Streaming<FromProxy>, say: mpsc::Sender<Result<ToProxy, Status>>) -> Option<()> {
        let mut changed = self.changed.subscribe();
        let from_proxy::Kind::Hello(hello) = heard.message().await.ok()??.kind? else { return None };
        let uid = hello.pod_uid.clone();
        lock(&self.known).hellos.insert(uid.clone(), hello);
        loop {
            let workload = lock(&self.known).workloads.get(&uid).cloned()?;
            say.send(Ok(ToProxy { kind: Some(to_proxy::Kind::Workload(workload)) })).await.ok()?;
            loop {
                tokio::select! {
                    other = changed.changed() => break other.ok()?,
                    message = heard.message() => match message.ok()??.kind? {
                        from_proxy::Kind::Lookup(address) => {
                            let answer = self.answer(address);
                            say.send(Ok(ToProxy { kind: Some(to_proxy::Kind::Answer(answer)) })).await.ok()?;
                        }
                        from_proxy::Kind::Ack(ack) => drop(lock(&self.known).acks.insert(uid.clone(), ack)),
                        from_proxy::Kind::Hello(_) | from_proxy::Kind::Forget(_) => {}
                    },
                }
            }
        }
    }

    fn answer(&self, address: api::Address) -> api::Answer {
        let ip = <[u8; 4]>::try_from(address.ip.as_slice()).map(IpAddr::from);
        let ip = ip.or_else(|_| <[u8; 16]>::try_from(address.ip.as_slice()).map(IpAddr::from)).ok();
        let id = ip.and_then(|ip| lock(&self.known).tell(ip.to_canonical()));
        let who = match id {
            None => api::answer::Who::Unknown(api::Nobody {}),
            Some(id) => api::answer::Who::Endpoint(api::Endpoint {
                address: Some(address.clone()),
                identity: Some(api::endpoint::Identity::SpiffeId(id)),
                ready: true,
                ..api::Endpoint::default()
            }),
        };
        api::Answer { address: Some(address), who: Some(who) }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
