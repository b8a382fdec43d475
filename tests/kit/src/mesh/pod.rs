//! One pod of the mesh: who it is, and what its sidecar says.
//!
//! Made by [`super::Mesh::pod`].

use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::READY;
use super::process::{admin_get, lock};
use crate::child::Running;
use crate::net::Pod;

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

    /// Its UID, as Kubernetes would give it.
    #[must_use]
    pub fn uid(&self) -> String {
        format!("00000000-0000-4000-8000-{:012x}", self.number)
    }
}

/// A pod, with its sidecar if it has one.
pub struct MeshPod {
    pub(super) pod: Pod,
    pub(super) spec: MeshPodSpec,
    pub(super) folder: PathBuf,
    pub(super) sidecar: Mutex<Option<Running>>,
}

impl std::ops::Deref for MeshPod {
    type Target = Pod;

    fn deref(&self) -> &Pod {
        &self.pod
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
