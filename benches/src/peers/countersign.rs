//! Countersign itself, as in a pod: CA and controller, a sidecar in each of two pods, traffic redirected to them, an identity rule.
//!
//! Its pods are its own, as redirection concerns a whole pod; link and application are like the stage's.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;
use countersign_api::names;
use countersign_kit::mesh::{Mesh, MeshPod, MeshPodSpec, Settings as MeshSettings, binary};
use countersign_kit::{Namespace, Net};

use super::{Guarded, Peer, Place, Up, first_line};
use crate::decision::{RULES_IN_FILE, rule};
use crate::stage::{APP, Stage, start_app, tune};

const BINARIES: [&str; 3] = ["countersign-proxy", "countersign-ca", "countersign-controller"];

/// What may differ in the growth runs.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Worker threads of each sidecar.
    pub threads: usize,
    /// Rules that bind the server besides the one that lets the client in.
    pub more_rules: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { threads: 1, more_rules: 0 }
    }
}

/// Ours.
#[derive(Default)]
pub struct Countersign {
    /// See [`Settings`].
    pub settings: Settings,
    /// Another build of the sidecar, to be measured beside the present one.
    pub before: Option<PathBuf>,
}

struct Pods {
    _app: countersign_kit::Running,
    _backend: MeshPod,
    _mesh: Mesh,
}

/// A pod, by its namespace.
struct Own(MeshPod);

impl std::ops::Deref for Own {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.0
    }
}

impl Peer for Countersign {
    fn name(&self) -> &'static str {
        if self.before.is_some() { "countersign-before" } else { "countersign" }
    }

    fn about(&self) -> &'static str {
        if self.before.is_some() { "another build of it" } else { "Countersign, identity rules, interception" }
    }

    fn claims_mtls(&self) -> bool {
        true
    }

    fn lacks(&self) -> Option<String> {
        BINARIES.iter().find_map(|name| binary(name).err()).map(|error| format!("{error:#}"))
    }

    fn version(&self) -> String {
        first_line(self.binary(), "--version")
    }

    fn binary(&self) -> Option<PathBuf> {
        self.before.clone().or_else(|| binary(BINARIES[0]).ok())
    }

    fn start<'a>(&self, stage: &'a Stage) -> Result<Up<'a>> {
        let threads = self.settings.threads.to_string();
        let proxy_args = ["--access-log", "off", "--worker-threads", &threads].map(str::to_owned).to_vec();
        let settings = MeshSettings { proxy_args, proxy: self.before.clone(), ..MeshSettings::default() };
        let mesh = Mesh::start(Net::new(stage.inside())?, settings)?;
        mesh.object("rules.yaml", &rules())?;
        for (file, text) in more_rules(self.settings.more_rules) {
            mesh.object(&file, &text)?;
        }
        let frontend = mesh.pod(MeshPodSpec::new("frontend", "frontend", 51))?;
        let backend = mesh.pod(MeshPodSpec::new("backend", "backend", 52))?;
        let stranger = mesh.pod(MeshPodSpec::new("stranger", "stranger", 53).unmeshed())?;
        tune(&frontend)?;
        tune(&backend)?;
        let app = start_app(&backend)?;
        mesh.settle(&[&frontend, &backend])?;
        let target = SocketAddr::new(backend.v4().into(), APP);
        let pid = |pod: &MeshPod| pod.with_sidecar(|sidecar| Ok(sidecar.pid()));
        // OPEN, with nothing in it.
        let from = Place::Own(Box::new(Own(stranger)));
        let guarded = Guarded { from, address: target, alpn: vec![names::ALPN.to_vec()], question: vec![1, 0, 0, 0] };
        let up = Up {
            target,
            client: vec![pid(&frontend)?],
            server: vec![pid(&backend)?],
            guarded: Some(guarded),
            place: Place::Own(Box::new(Own(frontend))),
            keep: Box::new(Pods { _app: app, _backend: backend, _mesh: mesh }),
        };
        up.ready()?;
        Ok(up)
    }
}

/// Strict, and one Allow.
fn rules() -> String {
    let strict = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {countersign.dev/mtls: Strict}}\n";
    format!("{strict}{}", rule("frontend-to-backend", "backend", "frontend", APP))
}

/// Rules that name accounts which nobody has, in files of a size that the controller takes.
fn more_rules(more: usize) -> Vec<(String, String)> {
    let numbers: Vec<usize> = (0..more).collect();
    let one = |number: &usize| rule(&format!("other-{number}"), "backend", &format!("nobody-{number}"), APP);
    let file = |part: (usize, &[usize])| (format!("rules-{}.yaml", part.0), part.1.iter().map(one).collect());
    numbers.chunks(RULES_IN_FILE).enumerate().map(file).collect()
}
