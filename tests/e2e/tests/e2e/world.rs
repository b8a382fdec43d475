//! The mesh that all tests share: a frontend, two backends of one service, an intruder, and a stranger without a sidecar.

use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::Result;
use countersign_kit::mesh::{Mesh, MeshPod, MeshPodSpec, Settings};
use countersign_kit::{Inside, Net};

/// How long sidecars wait for first bytes; short, so that silence is soon over.
pub const FIRST_BYTES: Duration = Duration::from_secs(2);

/// Ports that tests get for their servers, one after another.
static NEXT_PORT: AtomicU16 = AtomicU16::new(20_000);

pub struct World {
    pub frontend: MeshPod,
    pub backend1: MeshPod,
    pub backend2: MeshPod,
    /// Meshed, and allowed nowhere.
    pub intruder: MeshPod,
    /// No sidecar; known to the controller as un-meshed.
    pub stranger: MeshPod,
    /// Known as meshed, but with neither sidecar nor redirect.
    pub unguarded: MeshPod,
    pub mesh: Mesh,
}

/// Frontends may reach every port of backends, and backends each other; nobody may reach anything else.
const RULES: &str = "
apiVersion: policy.countersign.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: frontend-to-backend, namespace: shop}
spec:
  selector: {matchLabels: {app: backend}}
  action: Allow
  rules:
  - from: [{serviceAccounts: [{namespace: shop, name: frontend}, {namespace: shop, name: backend}]}]
";

impl World {
    pub fn new(inside: Inside) -> Result<Self> {
        Self::with_ca(inside, &[])
    }

    /// The CA gets these further arguments.
    pub fn with_ca(inside: Inside, ca_args: &[&str]) -> Result<Self> {
        let ca_args = ca_args.iter().map(ToString::to_string).collect();
        let proxy_args = vec!["--first-bytes-timeout".into(), format!("{}s", FIRST_BYTES.as_secs())];
        let mesh = Mesh::start(Net::new(inside)?, Settings { proxy_args, ca_args, ..Settings::default() })?;
        mesh.object("shop.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")?;
        mesh.object("rules.yaml", RULES)?;
        // Ports below 20000 of the service go to the same port of its endpoints.
        let same: Vec<(u16, u16)> = [80, 3306, 5432, 6379, 8080].map(|p| (p, p)).to_vec();
        mesh.service("shop", "backend", 10, &same)?;
        let pod = |name, app, number| mesh.pod(MeshPodSpec::new(name, app, number));
        let world = Self {
            frontend: pod("frontend", "frontend", 10)?,
            backend1: pod("backend-1", "backend", 11)?,
            backend2: pod("backend-2", "backend", 12)?,
            intruder: pod("intruder", "intruder", 13)?,
            stranger: mesh.pod(MeshPodSpec::new("stranger", "stranger", 14).unmeshed())?,
            unguarded: mesh.pod(MeshPodSpec::new("unguarded", "unguarded", 15).without_sidecar())?,
            mesh,
        };
        let w = &world;
        w.mesh.settle(&[&w.frontend, &w.backend1, &w.backend2, &w.intruder])?;
        Ok(world)
    }

    /// A port that no other test uses, on any pod.
    pub fn port(&self) -> u16 {
        NEXT_PORT.fetch_add(1, Ordering::Relaxed)
    }

    /// Ends what runs. The rest goes with the namespaces.
    pub fn stop(&self) {
        for pod in [&self.frontend, &self.backend1, &self.backend2, &self.intruder] {
            pod.stop_sidecar();
        }
        self.mesh.stop_controller();
        self.mesh.stop_ca();
    }
}
