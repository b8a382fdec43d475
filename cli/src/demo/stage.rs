//! The demo's mesh: the pods, the applications in them, the service and its rules.
//!
//! Made by `demo` once it is inside its own namespaces; the claims only look at it. Everything ends with it.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use countersign_api::names;
use countersign_kit::mesh::{Mesh, MeshPod, MeshPodSpec, Settings, binary};
use countersign_kit::tokens::{TokenClaims, replace_file};
use countersign_kit::{Here as _, Inside, Net, Pod, PodCommand, PodSpec, Running};

use super::apps::{self, BANNER, HTTP};
use super::exec::own_program;

/// Namespace of the demo's pods.
const NAMESPACE: &str = "shop";
/// The service: HTTP on 80 and the server that speaks first on 25, at 10.96.0.10 and fd96::a.
const SERVICE_NUMBER: u8 = 10;
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, SERVICE_NUMBER);
const SERVICE_V6: Ipv6Addr = Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, SERVICE_NUMBER as u16);
const SERVICE_PORTS: [(u16, u16); 2] = [(80, HTTP), (25, BANNER)];

/// Who may talk to `backend`: `frontend`, on its two ports. `intruder` is in the mesh, and in no rule.
const RULES: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {countersign.dev/mtls: Strict}}
---
apiVersion: policy.countersign.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: frontend-to-backend, namespace: shop}
spec:
  selector: {matchLabels: {app: backend}}
  action: Allow
  rules:
  - from: [{serviceAccounts: [{namespace: shop, name: frontend}]}]
    to: [{ports: [8080, 2525]}]
";

/// Lets `intruder` in for a while: a file of its own, so that it can go again.
const VISIT_FILE: &str = "visit.yaml";
const VISIT: &str = "\
apiVersion: policy.countersign.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: visit, namespace: shop}
spec:
  selector: {matchLabels: {app: backend}}
  action: Allow
  rules:
  - from: [{serviceAccounts: [{namespace: shop, name: intruder}]}]
    to: [{ports: [8080]}]
";

/// Life of every SVID: so short that all are renewed while one looks on (an hour is usual), and long enough for a busy machine.
const LEAF_LIFE: &str = "20s";

/// All that runs. Pods end before the mesh, applications before their pods.
pub struct Stage {
    /// The nginx processes; they run as long as they are held.
    _servers: Vec<Running>,
    /// Asks.
    pub frontend: MeshPod,
    /// Answer, behind one service.
    pub backends: [MeshPod; 2],
    /// Has a sidecar, and no rule.
    pub intruder: MeshPod,
    /// Has no sidecar.
    pub stranger: MeshPod,
    /// Two pods without sidecars, to compare with.
    pub plain: Plain,
    /// CA, controller, link.
    pub mesh: Mesh,
    /// SPIFFE ids, as the rules and logs spell them.
    pub frontend_id: String,
    /// See `frontend_id`.
    pub intruder_id: String,
    folder: PathBuf,
}

/// A client and a server without sidecars, with the same applications.
pub struct Plain {
    /// As `frontend`.
    pub client: Pod,
    /// As a backend.
    pub server: Pod,
}

impl Plain {
    fn start(net: &Net) -> Result<Self> {
        let pod = |name, number| net.pod(PodSpec::numbered(name, number));
        Ok(Self { client: pod("plain-client", 51)?, server: pod("plain-server", 52)? })
    }
}

/// Our own processes, all needed.
pub fn binaries() -> Result<()> {
    for name in ["countersign-ca", "countersign-controller", "countersign-proxy"] {
        binary(name)?;
    }
    Ok(())
}

impl Stage {
    /// Starts everything; all of it is ready when this returns.
    pub fn start(inside: Inside) -> Result<Self> {
        let ca_args = ["--leaf-ttl", LEAF_LIFE, "--max-leaf-ttl", LEAF_LIFE].map(str::to_owned).into();
        let mesh = Mesh::start(Net::new(inside)?, Settings { ca_args, ..Settings::default() })?;
        mesh.object("rules.yaml", RULES)?;
        mesh.service(NAMESPACE, "backend", SERVICE_NUMBER, &SERVICE_PORTS)?;
        let pod = |name: &str, app: &str, number| mesh.pod(MeshPodSpec::new(name, app, number));
        let frontend = pod("frontend", "frontend", 11)?;
        let backends = [pod("backend-1", "backend", 21)?, pod("backend-2", "backend", 22)?];
        let intruder = pod("intruder", "intruder", 31)?;
        let stranger = mesh.pod(MeshPodSpec::new("stranger", "stranger", 41).unmeshed())?;
        let plain = Plain::start(mesh.net())?;
        let folder = inside.scratch().join("demo");
        let mut servers = Vec::new();
        for pod in [&*backends[0], &*backends[1], &plain.server] {
            servers.push(apps::nginx(pod, &folder.join(pod.name()))?);
            apps::banner(pod)?;
        }
        mesh.settle(&[&frontend, &backends[0], &backends[1], &intruder])?;
        Ok(Self {
            _servers: servers,
            frontend_id: id(&frontend),
            intruder_id: id(&intruder),
            frontend,
            backends,
            intruder,
            stranger,
            plain,
            mesh,
            folder,
        })
    }

    /// The pods with a sidecar.
    pub fn meshed(&self) -> [&MeshPod; 4] {
        [&self.frontend, &self.backends[0], &self.backends[1], &self.intruder]
    }

    /// Lets `intruder` in, by a further rule; it is in force when this returns.
    pub fn admit_intruder(&self) -> Result<()> {
        self.mesh.object(VISIT_FILE, VISIT)?;
        self.mesh.settle(&[&self.backends[0], &self.backends[1]])
    }

    /// Takes that rule away again, and waits for nothing.
    pub fn expel_intruder(&self) -> Result<()> {
        self.mesh.remove_object(VISIT_FILE)
    }

    /// `countersign`, as an operator types it where the admin sockets are.
    pub fn countersign(&self, args: &[&str]) -> Result<PodCommand> {
        Ok(self.mesh.system().command(own_program().here()?).args(args.iter().copied()))
    }

    /// Where a program of the demo may write.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The processes of ours that hold an identity, the CA apart: none of them may be started anew by what is shown.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let sidecars = self.meshed().into_iter().map(|pod| pod.with_sidecar(|sidecar| Ok(sidecar.pid())));
        let controller = self.mesh.controller_pid().context("the controller does not run");
        sidecars.chain([controller]).collect()
    }

    /// Where the service's HTTP is.
    pub fn http_service(&self) -> SocketAddr {
        SocketAddr::new(SERVICE.into(), SERVICE_PORTS[0].0)
    }

    /// Words that occur nowhere else: new ones each time.
    pub fn marker(&self) -> String {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        format!("marker-{:x}-{:x}", std::process::id(), now.as_nanos())
    }

    /// A URL of the service.
    pub fn service_url(&self, path: &str) -> String {
        format!("http://{SERVICE}{path}")
    }

    /// The same by the service's IPv6 address.
    pub fn service_url_v6(&self, path: &str) -> String {
        format!("http://[{SERVICE_V6}]{path}")
    }

    /// A URL of one pod.
    pub fn pod_url(&self, pod: &Pod, path: &str) -> String {
        format!("http://{}:{HTTP}{path}", pod.v4())
    }

    /// The server that speaks first, by the service's address.
    pub fn banner_service(&self) -> SocketAddr {
        SocketAddr::new(SERVICE.into(), SERVICE_PORTS[1].0)
    }

    /// What nginx in this pod was asked so far.
    pub fn nginx_log(&self, pod: &MeshPod) -> Result<String> {
        let path = self.folder.join(pod.name()).join("access.log");
        std::fs::read_to_string(&path).with_context(|| path.display().to_string()).here()
    }

    /// Does what the kubelet does: writes a new token for everybody, in good time.
    pub fn refresh_tokens(&self) -> Result<()> {
        for pod in self.meshed() {
            self.mesh.sidecar_command(pod)?;
        }
        let claims =
            TokenClaims::of(names::SYSTEM_NAMESPACE, names::CONTROLLER_ACCOUNT, "controller-0", "controller-uid");
        replace_file(&self.mesh.folder().join("controller/token"), &self.mesh.kubelet().token(&claims.json())?)
    }

    /// The folder of all admin sockets.
    pub fn sockets(&self) -> &Path {
        self.mesh.folder()
    }
}

/// Tokens live an hour.
pub const REFRESH: Duration = Duration::from_secs(20 * 60);

fn id(pod: &MeshPod) -> String {
    format!("spiffe://{}{}", names::TRUST_DOMAIN, pod.id_path())
}
