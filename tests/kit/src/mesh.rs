//! A whole mesh on this machine: CA, controller, and pods with their sidecars, all real processes in private namespaces.
//!
//! Called by the end-to-end tests, the demo and the benches. It does what Kubernetes, the kubelet and the injector do in a
//! cluster: writes tokens and objects, installs the redirect, starts the sidecar as its own user.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use countersign_api::{env, names, ports};
use serde_json::{Value, json};

use crate::child::Running;
use crate::command::PodCommand;
use crate::net::{Net, Pod, PodSpec};
use crate::tokens::{ISSUER, Kubelet, TokenClaims, replace_file};
use crate::wait::wait_for;

/// How long a process of ours may take to be ready.
const READY: Duration = Duration::from_secs(20);
/// Number of the pod in which CA and controller run.
const SYSTEM: u8 = 2;
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
}

impl Default for Settings {
    fn default() -> Self {
        Self { trust_domain: names::TRUST_DOMAIN.into(), ca_args: Vec::new(), proxy_args: Vec::new() }
    }
}

/// Who a pod of the mesh is.
#[derive(Clone, Debug)]
pub struct MeshPodSpec {
    /// Its name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Service account.
    pub account: String,
    /// Value of its label `app`.
    pub app: String,
    /// Last number of its addresses, 3 to 250.
    pub number: u8,
    /// Whether its address is known as meshed.
    pub meshed: bool,
    /// Whether it gets a sidecar and the redirect.
    pub sidecar: bool,
    /// Further arguments of its sidecar.
    pub proxy_args: Vec<String>,
}

impl MeshPodSpec {
    /// A meshed pod in namespace `shop`, whose account and label are its app's.
    #[must_use]
    pub fn new(name: &str, app: &str, number: u8) -> Self {
        Self {
            name: name.into(),
            namespace: "shop".into(),
            account: app.into(),
            app: app.into(),
            number,
            meshed: true,
            sidecar: true,
            proxy_args: Vec::new(),
        }
    }

    /// The same without a sidecar: its address is known, and known as un-meshed.
    #[must_use]
    pub fn unmeshed(mut self) -> Self {
        self.meshed = false;
        self.without_sidecar()
    }

    /// Known as meshed, though nothing guards it: what a pod is whose rules were lost.
    #[must_use]
    pub fn without_sidecar(mut self) -> Self {
        self.sidecar = false;
        self
    }

    fn uid(&self) -> String {
        format!("00000000-0000-4000-8000-{:012x}", self.number)
    }
}

/// A pod, with its sidecar if it has one.
pub struct MeshPod {
    pod: Pod,
    spec: MeshPodSpec,
    folder: PathBuf,
    sidecar: Mutex<Option<Running>>,
}

impl std::ops::Deref for MeshPod {
    type Target = Pod;

    fn deref(&self) -> &Pod {
        &self.pod
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
        let kubelet = Kubelet::new()?;
        fs::write(folder.join("jwks.json"), kubelet.jwks())?;
        let system = net.pod(PodSpec::numbered("system", SYSTEM))?;
        let mesh = Self { net, folder, kubelet, system, ca: Mutex::default(), controller: Mutex::default(), settings };
        mesh.object("mesh.yaml", &mesh.describe_mesh())?;
        mesh.start_ca()?;
        mesh.start_controller()?;
        Ok(mesh)
    }

    fn describe_mesh(&self) -> String {
        format!(
            "apiVersion: countersign.dev/v1alpha1\nkind: Mesh\nmetadata: {{name: mesh}}\nspec:\n  \
             trustDomain: {}\n  podRanges: [10.77.0.0/24, \"fd77::/64\"]\n  serviceRanges: [{}, \"{}\"]\n",
            self.settings.trust_domain, SERVICE_RANGES[0], SERVICE_RANGES[1]
        )
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
        let ca = self
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
        become_ready(&ca, "the CA", &ready)?;
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
        let controller = self
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
        become_ready(&controller, "the controller", &ready)?;
        *lock(&self.controller) = Some(controller);
        Ok(())
    }

    /// Kills the CA.
    pub fn stop_ca(&self) {
        lock(&self.ca).take();
    }

    /// Kills the controller.
    pub fn stop_controller(&self) {
        lock(&self.controller).take();
    }

    /// Adds a pod; with a sidecar it is ready when this returns. Its object is written first, as a scheduler would.
    ///
    /// # Errors
    /// If the pod cannot be made or its sidecar does not become ready; with the end of its log.
    pub fn pod(&self, spec: MeshPodSpec) -> Result<MeshPod> {
        let pod = self.net.pod(PodSpec::numbered(&spec.name, spec.number))?;
        let folder = self.folder.join("pods").join(&spec.name);
        fs::create_dir_all(&folder)?;
        self.write_workload(&pod, &spec)?;
        let pod = MeshPod { pod, spec, folder, sidecar: Mutex::default() };
        if pod.spec.sidecar {
            self.install_redirect(&pod)?;
            self.start_sidecar(&pod)?;
        }
        Ok(pod)
    }

    fn write_workload(&self, pod: &Pod, spec: &MeshPodSpec) -> Result<()> {
        let text = format!(
            "apiVersion: countersign.dev/v1alpha1\nkind: Workload\n\
             metadata: {{name: {}, namespace: {}, labels: {{app: {}}}}}\n\
             spec: {{uid: \"{}\", serviceAccount: {}, addresses: [{}, \"{}\"], meshed: {}, ready: true, node: node-a}}\n",
            spec.name,
            spec.namespace,
            spec.app,
            spec.uid(),
            spec.account,
            pod.v4(),
            pod.v6(),
            spec.meshed
        );
        self.object(&format!("pod-{}.yaml", spec.name), &text)
    }

    /// Runs the proxy's own `intercept` command in the pod, as the injected init container does.
    ///
    /// # Errors
    /// With what it said.
    pub fn intercept(&self, pod: &MeshPod, action: &str) -> Result<String> {
        let exempt = if self.net.inside().rootless() {
            ["--exempt-mark".to_owned(), ports::PROXY_MARK.to_string()]
        } else {
            ["--exempt-uid".to_owned(), ports::PROXY_UID.to_string()]
        };
        let exempt = exempt.into_iter().filter(|_| action != "remove");
        pod.command(binary("countersign-proxy")?).args(["intercept", action]).args(exempt).succeed()
    }

    fn install_redirect(&self, pod: &MeshPod) -> Result<()> {
        self.intercept(pod, "install").map(drop)
    }

    /// Starts the pod's sidecar, or starts it again after [`MeshPod::stop_sidecar`]; ready when this returns.
    ///
    /// # Errors
    /// If it does not become ready.
    pub fn start_sidecar(&self, pod: &MeshPod) -> Result<()> {
        let ready = pod.folder.join("ready");
        let _ = fs::remove_file(&ready);
        let sidecar = self.sidecar_command(pod)?.spawn()?;
        become_ready(&sidecar, &format!("the sidecar of {}", pod.spec.name), &ready)?;
        *lock(&pod.sidecar) = Some(sidecar);
        Ok(())
    }

    /// The sidecar's command line, for tests that start it otherwise.
    ///
    /// # Errors
    /// If its token cannot be written.
    pub fn sidecar_command(&self, pod: &MeshPod) -> Result<PodCommand> {
        let spec = &pod.spec;
        let token = pod.folder.join("token");
        let claims = TokenClaims::of(&spec.namespace, &spec.account, &spec.name, &spec.uid());
        replace_file(&token, &self.kubelet.token(&claims.json())?)?;
        let rootless = self.net.inside().rootless();
        if !rootless {
            for path in [&pod.folder, &token] {
                chown(path, Some(ports::PROXY_UID), Some(ports::PROXY_UID))?;
            }
        }
        let ips: Vec<String> = pod.addresses().iter().map(ToString::to_string).collect();
        let command = pod
            .command(binary("countersign-proxy")?)
            .arg("run")
            .args(self.settings.proxy_args.clone())
            .args(spec.proxy_args.clone())
            .args(["--ready-file".into(), pod.folder.join("ready")])
            .env(env::TRUST_DOMAIN, &self.settings.trust_domain)
            .env(env::CA_ADDRESS, self.ca_address())
            .env(env::CONTROLLER_ADDRESS, self.controller_address())
            .env(env::TOKEN_FILE, &token)
            .env(env::BOOTSTRAP_BUNDLE, self.bundle())
            .env(env::ADMIN_SOCKET, pod.admin_socket())
            .env(env::POD_NAME, &spec.name)
            .env(env::POD_UID, spec.uid())
            .env(env::POD_NAMESPACE, &spec.namespace)
            .env(env::SERVICE_ACCOUNT, &spec.account)
            .env(env::POD_IPS, ips.join(","));
        Ok(if rootless {
            command.args(["--mark".to_owned(), ports::PROXY_MARK.to_string()])
        } else {
            command.uid(ports::PROXY_UID)
        })
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
        admin_get(&self.folder.join("ca/state/admin.sock"), "/status")
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

impl MeshPod {
    /// Its SPIFFE id's path.
    #[must_use]
    pub fn id_path(&self) -> String {
        format!("/ns/{}/sa/{}", self.spec.namespace, self.spec.account)
    }

    /// Who it is.
    #[must_use]
    pub fn spec(&self) -> &MeshPodSpec {
        &self.spec
    }

    /// Its sidecar's admin socket.
    #[must_use]
    pub fn admin_socket(&self) -> PathBuf {
        self.folder.join("admin.sock")
    }

    /// A GET on its sidecar's admin socket.
    ///
    /// # Errors
    /// If it does not answer with JSON.
    pub fn admin(&self, path: &str) -> Result<Value> {
        admin_get(&self.admin_socket(), path)
    }

    /// Kills the sidecar; the redirect stays.
    pub fn stop_sidecar(&self) {
        lock(&self.sidecar).take();
    }

    /// What `work` makes of the running sidecar.
    ///
    /// # Errors
    /// If none runs.
    pub fn with_sidecar<T>(&self, work: impl FnOnce(&mut Running) -> Result<T>) -> Result<T> {
        work(lock(&self.sidecar).as_mut().context("no sidecar runs")?)
    }

    /// The access-log lines so far.
    #[must_use]
    pub fn access_log(&self) -> Vec<Value> {
        let lines = lock(&self.sidecar).as_ref().map(Running::log).unwrap_or_default();
        lines.iter().filter_map(|line| access_line(line)).collect()
    }

    /// The first access-log line that `wanted` accepts; waits for it.
    ///
    /// # Errors
    /// With the end of the log, if it does not come in time.
    pub fn access_line(&self, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let sidecar = lock(&self.sidecar);
        let running = sidecar.as_ref().context("no sidecar runs")?;
        let line = running.wait_for_line(READY, |line| access_line(line).is_some_and(|v| wanted(&v)))?;
        access_line(&line).context("it was one just now")
    }
}

fn access_line(line: &str) -> Option<Value> {
    let value: Value = serde_json::from_str(line).ok()?;
    value.get("direction").is_some().then_some(value)
}

/// A GET over a unix socket, as `countersign status` makes it.
///
/// # Errors
/// If nobody listens, or the answer is no JSON with status 200.
pub fn admin_get(socket: &Path, path: &str) -> Result<Value> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::os::unix::net::UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
    serde_json::from_str(body).with_context(|| body.to_owned())
}

fn become_ready(process: &Running, what: &str, ready: &Path) -> Result<()> {
    wait_for(READY, &format!("{what} becomes ready"), || ready.exists()).with_context(|| {
        let log = process.log();
        format!("its log ends:\n{}", log[log.len().saturating_sub(20)..].join("\n"))
    })
}

/// A binary of ours: in `COUNTERSIGN_BIN_DIR`, else beside the running program (or above it, for test programs).
///
/// # Errors
/// If it is not there.
pub fn binary(name: &str) -> Result<PathBuf> {
    let folders: Vec<PathBuf> = match std::env::var_os("COUNTERSIGN_BIN_DIR") {
        Some(folder) => vec![folder.into()],
        None => std::env::current_exe()?.ancestors().skip(1).take(2).map(Path::to_path_buf).collect(),
    };
    let found = folders.iter().map(|f| f.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("{name} is not in {folders:?}: build it first (cargo build --workspace)"))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
