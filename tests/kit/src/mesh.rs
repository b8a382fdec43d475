//! A whole mesh on this machine: CA, controller, and pods with their sidecars, all real processes in private namespaces.
//!
//! Called by the end-to-end tests, the demo and the benches. It does what Kubernetes, the kubelet and the injector do in a
//! cluster: writes tokens and objects, installs the redirect, starts the sidecar as its own user.
//! Here are CA, controller and their objects; `pod` and `sidecar` are the rest, `process` what all processes of ours share.

mod pod;
mod process;
mod sidecar;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use countersign_api::{env, names, ports};
use serde_json::{Value, json};

use self::process::{become_ready, lock};
use crate::child::Running;
use crate::net::{Net, Pod, PodSpec};
use crate::tokens::{ISSUER, Kubelet, TokenClaims, TokenKey, replace_file};
use crate::wait::wait_for;

pub use self::pod::{MeshPod, MeshPodSpec};
pub use self::process::{admin_get, binary};

/// How long a process of ours may take to be ready.
const READY: Duration = Duration::from_secs(20);
/// Number of the pod in which CA and controller run.
const SYSTEM: u8 = 2;
/// The pod range: the whole link.
const POD_RANGES: [&str; 2] = ["10.77.0.0/24", "fd77::/64"];
/// The service range: no address in it is ever on the link.
pub const SERVICE_RANGES: [&str; 2] = ["10.96.0.0/16", "fd96::/112"];

static MESHES: AtomicUsize = AtomicUsize::new(0);

/// A running mesh. Pods borrow nothing of it, but end before it.
pub struct Mesh {
    net: Net,
    folder: PathBuf,
    kubelet: Kubelet,
    system: Pod,
    ca: Mutex<Option<Running>>,
    controller: Mutex<Option<Running>>,
    settings: Settings,
}

/// What may differ from mesh to mesh.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Trust domain.
    pub trust_domain: String,
    /// Further arguments of the CA.
    pub ca_args: Vec<String>,
    /// Further arguments of every sidecar.
    pub proxy_args: Vec<String>,
    /// The sidecars' program, where it is not the one that was just built: to compare two.
    pub proxy: Option<PathBuf>,
    /// What the kubelet's tokens are signed with.
    pub token_key: TokenKey,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            trust_domain: names::TRUST_DOMAIN.into(),
            ca_args: Vec::new(),
            proxy_args: Vec::new(),
            proxy: None,
            token_key: TokenKey::default(),
        }
    }
}
impl Mesh {
    /// Starts CA and controller in a pod of their own, and waits until both are ready. No pods, services or rules yet.
    ///
    /// # Errors
    /// If a binary is missing, or a process does not become ready; with the end of its log.
    pub fn start(net: Net, settings: Settings) -> Result<Self> {
        let number = MESHES.fetch_add(1, Ordering::Relaxed);
        let folder = net.inside().scratch().join(format!("mesh{number}"));
        for part in ["objects", "ca", "controller", "pods"] {
            fs::create_dir_all(folder.join(part))?;
        }
        let kubelet = Kubelet::new(settings.token_key)?;
        fs::write(folder.join("jwks.json"), kubelet.jwks())?;
        let system = net.pod(PodSpec::numbered("system", SYSTEM))?;
        let mesh = Self { net, folder, kubelet, system, ca: Mutex::default(), controller: Mutex::default(), settings };
        mesh.object("mesh.yaml", &mesh.describe_mesh())?;
        mesh.start_ca()?;
        mesh.start_controller()?;
        Ok(mesh)
    }

    fn describe_mesh(&self) -> String {
        let [pods_v4, pods_v6] = POD_RANGES;
        let [services_v4, services_v6] = SERVICE_RANGES;
        format!(
            "apiVersion: countersign.dev/v1alpha1\nkind: Mesh\nmetadata: {{name: mesh}}\nspec:\n  trustDomain: {}\n  \
             podRanges: [{pods_v4}, \"{pods_v6}\"]\n  serviceRanges: [{services_v4}, \"{services_v6}\"]\n",
            self.settings.trust_domain
        )
    }

    /// Its trust domain, and its ranges of pods and services.
    #[must_use]
    pub fn describe(&self) -> (String, Vec<String>) {
        let ranges = POD_RANGES.into_iter().chain(SERVICE_RANGES);
        (self.settings.trust_domain.clone(), ranges.map(str::to_owned).collect())
    }

    /// Starts the CA, or starts it again where it was.
    ///
    /// # Errors
    /// If it does not become ready.
    pub fn start_ca(&self) -> Result<()> {
        let folder = self.folder.join("ca");
        let key = folder.join("state.key");
        if !key.exists() {
            let bytes: [u8; 32] = rand::random();
            fs::write(&key, bytes)?;
            fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
        }
        let ready = folder.join("ready.json");
        let _ = fs::remove_file(&ready);
        let mut ca = self
            .system
            .command(binary("countersign-ca")?)
            .args(["--state-dir".into(), folder.join("state")])
            .args(["--state-key-file".into(), key])
            .args(["--jwks-file".into(), self.folder.join("jwks.json")])
            .args(["--bundle-file".into(), self.bundle()])
            .args(["--ready-file".into(), ready.clone()])
            .args(["--token-issuer", ISSUER, "--trust-domain", &self.settings.trust_domain])
            .args(self.settings.ca_args.clone())
            .spawn()?;
        become_ready(&mut ca, "the CA", &ready)?;
        *lock(&self.ca) = Some(ca);
        Ok(())
    }

    /// Starts the controller, or starts it again.
    ///
    /// # Errors
    /// If it does not become ready.
    pub fn start_controller(&self) -> Result<()> {
        let folder = self.folder.join("controller");
        let claims =
            TokenClaims::of(names::SYSTEM_NAMESPACE, names::CONTROLLER_ACCOUNT, "controller-0", "controller-uid");
        replace_file(&folder.join("token"), &self.kubelet.token(&claims.json())?)?;
        let ready = folder.join("ready.json");
        let _ = fs::remove_file(&ready);
        let mut controller = self
            .system
            .command(binary("countersign-controller")?)
            .args(["--source".into(), format!("dir:{}", self.folder.join("objects").display())])
            .args(["--ready-file".into(), ready.clone()])
            .args(["--admin-socket".into(), folder.join("admin.sock")])
            .env(env::TRUST_DOMAIN, &self.settings.trust_domain)
            .env(env::CA_ADDRESS, self.ca_address())
            .env(env::TOKEN_FILE, folder.join("token"))
            .env(env::BOOTSTRAP_BUNDLE, self.bundle())
            .spawn()?;
        become_ready(&mut controller, "the controller", &ready)?;
        *lock(&self.controller) = Some(controller);
        Ok(())
    }

    /// Kills the CA.
    pub fn stop_ca(&self) {
        lock(&self.ca).take();
    }

    /// The CA's process, if it runs.
    #[must_use]
    pub fn ca_pid(&self) -> Option<u32> {
        lock(&self.ca).as_ref().map(Running::pid)
    }

    /// The controller's process, if it runs.
    #[must_use]
    pub fn controller_pid(&self) -> Option<u32> {
        lock(&self.controller).as_ref().map(Running::pid)
    }

    /// Kills the controller.
    pub fn stop_controller(&self) {
        lock(&self.controller).take();
    }

    /// Writes objects for the controller: a file of its folder, replaced at once.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn object(&self, file: &str, text: &str) -> Result<()> {
        replace_file(&self.folder.join("objects").join(file), text)
    }

    /// Removes a file of objects.
    ///
    /// # Errors
    /// If it is not there.
    pub fn remove_object(&self, file: &str) -> Result<()> {
        Ok(fs::remove_file(self.folder.join("objects").join(file))?)
    }

    /// Writes a service: all pods of `app` in `namespace`, at 10.96.0.N and fd96::N.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn service(&self, namespace: &str, app: &str, number: u8, port_pairs: &[(u16, u16)]) -> Result<()> {
        let list: Vec<String> =
            port_pairs.iter().map(|(port, target)| format!("{{port: {port}, targetPort: {target}}}")).collect();
        let text = format!(
            "apiVersion: countersign.dev/v1alpha1\nkind: Service\nmetadata: {{name: {app}, namespace: {namespace}}}\n\
             spec:\n  addresses: [10.96.0.{number}, \"fd96::{number:x}\"]\n  selector: {{app: {app}}}\n  ports: [{}]\n",
            list.join(", ")
        );
        self.object(&format!("service-{namespace}-{app}.yaml"), &text)
    }

    /// Waits until the controller has read all that was written so far, and every given sidecar holds rules of the newest
    /// revision that the controller has for it.
    ///
    /// # Errors
    /// If that does not come about.
    pub fn settle(&self, pods: &[&MeshPod]) -> Result<()> {
        // A marker object, seen in the controller's state, proves that everything written before it was read.
        let marker = format!("marker-{}", MESHES.fetch_add(1, Ordering::Relaxed));
        let file = format!("{marker}.yaml"); // of its own: two may settle at the same time
        self.object(&file, &format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {marker}}}\n"))?;
        wait_for(READY, "the controller reads what was written", || {
            admin_get(&self.folder.join("controller/admin.sock"), "/config_dump")
                .is_ok_and(|dump| dump["mesh"].to_string().contains(&marker))
        })?;
        for pod in pods {
            wait_for(READY, &format!("{} holds the newest rules", pod.spec.name), || {
                self.is_current(pod).unwrap_or(false)
            })?;
        }
        Ok(())
    }

    fn is_current(&self, pod: &MeshPod) -> Result<bool> {
        let status = self.controller_status()?;
        let proxies = status["proxies"].as_array().context("no proxies in the controller's status")?;
        let ours = proxies.iter().find(|p| p["pod_uid"] == json!(pod.spec.uid())).context("not connected")?;
        Ok(!ours["sent_revision"].is_null() && ours["sent_revision"] == ours["acked_revision"])
    }

    /// The controller's `/status`.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn controller_status(&self) -> Result<Value> {
        admin_get(&self.folder.join("controller/admin.sock"), "/status")
    }

    /// The CA's `/status`.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn ca_status(&self) -> Result<Value> {
        admin_get(&self.ca_socket(), "/status")
    }

    /// The CA's admin socket.
    #[must_use]
    pub fn ca_socket(&self) -> PathBuf {
        self.folder.join("ca/state/admin.sock")
    }

    /// The roots that pods start with, each as PEM.
    ///
    /// # Errors
    /// If the public bundle cannot be read.
    pub fn roots(&self) -> Result<Vec<String>> {
        let text = fs::read_to_string(self.bundle()).context("the bundle")?;
        let blocks = text.split("-----END CERTIFICATE-----").map(str::trim);
        Ok(blocks.filter(|block| !block.is_empty()).map(str::to_owned).collect())
    }

    /// `host:port` of the CA.
    #[must_use]
    pub fn ca_address(&self) -> String {
        format!("{}:{}", self.system.v4(), ports::CA)
    }

    /// `host:port` of the controller.
    #[must_use]
    pub fn controller_address(&self) -> String {
        format!("{}:{}", self.system.v4(), ports::CONTROLLER)
    }

    /// The public bundle, PEM.
    #[must_use]
    pub fn bundle(&self) -> PathBuf {
        self.folder.join("bundle.pem")
    }

    /// The signer of tokens.
    #[must_use]
    pub fn kubelet(&self) -> &Kubelet {
        &self.kubelet
    }

    /// The link between the pods.
    #[must_use]
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// The pod in which CA and controller run.
    #[must_use]
    pub fn system(&self) -> &Pod {
        &self.system
    }

    /// The folder of this mesh, in memory.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}
