//! Pods and their sidecars: what the scheduler, the init container and the injected container do.

use std::fs;
use std::os::unix::fs::chown;
use std::sync::Mutex;

use anyhow::Result;
use countersign_api::{env, ports};

use super::process::{become_ready, binary, lock};
use super::{Mesh, MeshPod, MeshPodSpec};
use crate::command::PodCommand;
use crate::net::{Pod, PodSpec};
use crate::tokens::{TokenClaims, replace_file};

impl Mesh {
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
        let mut sidecar = self.sidecar_command(pod)?.spawn()?;
        become_ready(&mut sidecar, &format!("the sidecar of {}", pod.spec.name), &ready)?;
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
        let program = self.settings.proxy.clone().map_or_else(|| binary("countersign-proxy"), Ok)?;
        let command = pod
            .command(program)
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
}
