//! The stage of a control test: a mesh of its own, which it may break. One client, one server, one rule between them.
//!
//! Called by all tests of this room. Meshes run side by side, each on a link of its own.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use countersign_api::ports;
use countersign_kit::mesh::{Mesh, MeshPod, MeshPodSpec, Settings};
use countersign_kit::{Inside, Namespace, Net, wait_for, wait_until};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::openmetrics;
use crate::talk::{Echo, Talk};

/// The server's port.
pub const PORT: u16 = 7000;
/// For what comes about by itself, on a busy machine.
pub const SOON: Duration = Duration::from_secs(20);
/// Who may reach the server, and the file that says so.
pub const CLIENT: &str = "from: [{serviceAccounts: [{namespace: shop, name: client}]}]";
pub const RULES: &str = "rules.yaml";
pub const CLIENT_ID: &str = "spiffe://cluster.local/ns/shop/sa/client";
pub const SERVER_ID: &str = "spiffe://cluster.local/ns/shop/sa/server";

/// In the order in which it ends.
pub struct Stage {
    pub echo: Echo,
    pub client: MeshPod,
    pub server: MeshPod,
    pub mesh: Mesh,
}

impl Stage {
    pub fn new(inside: &Inside) -> Result<Self> {
        Self::with(inside, Settings::default(), &[])
    }

    /// Both sidecars get these further arguments.
    pub fn with_args(inside: &Inside, args: &[&str]) -> Result<Self> {
        Self::with(inside, Settings::default(), args)
    }

    /// The CA gets these further arguments.
    pub fn with_ca_args(inside: &Inside, args: &[&str]) -> Result<Self> {
        let ca_args = args.iter().map(ToString::to_string).collect();
        Self::with(inside, Settings { ca_args, ..Settings::default() }, &[])
    }

    pub fn of_domain(inside: &Inside, trust_domain: &str) -> Result<Self> {
        Self::with(inside, Settings { trust_domain: trust_domain.into(), ..Settings::default() }, &[])
    }

    /// With these settings of the mesh; both sidecars get these further arguments.
    pub fn with(inside: &Inside, settings: Settings, args: &[&str]) -> Result<Self> {
        let mesh = Mesh::start(Net::new(*inside)?, settings)?;
        mesh.object(RULES, &policy("client-to-server", "Allow", CLIENT))?;
        let proxy_args: Vec<String> = args.iter().map(ToString::to_string).collect();
        let pod = |name, number| {
            mesh.pod(MeshPodSpec { proxy_args: proxy_args.clone(), ..MeshPodSpec::new(name, name, number) })
        };
        let (client, server) = (pod("client", 30)?, pod("server", 31)?);
        let echo = Echo::start(&server, PORT)?;
        Ok(Self { echo, client, server, mesh })
    }

    /// A further pod with a sidecar; account and label are its name.
    pub fn pod(&self, name: &str, number: u8) -> Result<MeshPod> {
        self.mesh.pod(MeshPodSpec::new(name, name, number))
    }

    /// A further pod without sidecar, known as such to the controller when this returns.
    pub fn stranger(&self, number: u8) -> Result<MeshPod> {
        self.known(MeshPodSpec::new("stranger", "stranger", number).unmeshed())
    }

    /// A further pod without sidecar, known to the controller when this returns.
    pub fn known(&self, spec: MeshPodSpec) -> Result<MeshPod> {
        let pod = self.mesh.pod(spec)?;
        self.mesh.settle(&[])?;
        Ok(pod)
    }

    pub fn address(&self) -> SocketAddr {
        at(&self.server, PORT)
    }

    pub fn address_v6(&self) -> SocketAddr {
        SocketAddr::new(self.server.v6().into(), PORT)
    }

    /// Writes the namespace of all pods with these labels, and waits until the server's sidecar has these modes.
    pub fn modes(&self, labels: &str, expected: [&str; 3]) -> Result<()> {
        self.mesh.object(
            "shop.yaml",
            &format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{{labels}}}}}\n"),
        )?;
        for pod in [&self.server, &self.client] {
            let modes = |status: &Value| {
                ["mtls", "posture", "egress"].map(|mode| status["policy"]["modes"][mode].as_str().map(str::to_owned))
            };
            status_until(pod, |status| modes(status) == expected.map(|word| Some(word.to_owned())))?;
        }
        Ok(())
    }
}

pub fn at(pod: &MeshPod, port: u16) -> SocketAddr {
    SocketAddr::new(pod.v4().into(), port)
}

/// One rule for the server, in namespace `shop`.
pub fn policy(name: &str, action: &str, rule: &str) -> String {
    format!(
        "apiVersion: policy.countersign.dev/v1alpha1\nkind: AuthorizationPolicy\n\
         metadata: {{name: {name}, namespace: shop}}\n\
         spec:\n  selector: {{matchLabels: {{app: server}}}}\n  action: {action}\n  rules:\n  - {rule}\n"
    )
}

/// The first `/status` of a sidecar that `wanted` accepts.
pub fn status_until(pod: &MeshPod, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    wait_until(SOON, || {
        let status = pod.admin("/status").map_err(|e| format!("{e:#}"))?;
        if wanted(&status) { Ok(status) } else { Err(status.to_string()) }
    })
}

/// The same of the controller.
pub fn controller_until(mesh: &Mesh, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    wait_until(SOON, || {
        let status = mesh.controller_status().map_err(|e| format!("{e:#}"))?;
        if wanted(&status) { Ok(status) } else { Err(status.to_string()) }
    })
}

/// The sum of a sidecar's samples of this name that carry this label.
pub fn metric(stage: &Stage, pod: &MeshPod, name: &str, label: (&str, &str)) -> Result<f64> {
    let answer = http(stage.mesh.system(), pod.v4().into(), ports::PROXY_HEALTH, "GET", "/metrics")?;
    let metrics = openmetrics::parse(&answer.body)?;
    Ok(metrics.samples(name).filter(|s| s.labels.get(label.0).is_some_and(|v| v == label.1)).map(|s| s.value).sum())
}

/// Sends a signal to a pod's sidecar.
pub fn signal(pod: &MeshPod, signal: Signal) -> Result<()> {
    pod.with_sidecar(|sidecar| {
        sidecar.signal(signal);
        Ok(())
    })
}

/// Waits until a sidecar that was told to end listens no more.
pub fn listeners_closed(stage: &Stage, pod: &MeshPod) -> Result<()> {
    wait_for(SOON, "the listeners close", || {
        Talk::dial(stage.mesh.system(), (pod.v4(), ports::INBOUND).into()).is_err()
    })
}

/// A text at a path of JSON.
pub fn text(value: &Value, pointer: &str) -> Result<String> {
    let found = value.pointer(pointer).and_then(Value::as_str);
    Ok(found.with_context(|| format!("no text at {pointer}: {value}"))?.to_owned())
}

/// An answer over HTTP.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub head: String,
    pub body: String,
}

/// A request on an admin socket.
pub fn admin(socket: &Path, method: &str, path: &str, body: &str) -> Result<Answer> {
    let stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
    stream.set_read_timeout(Some(SOON))?;
    ask(stream, method, path, body)
}

/// A request from a namespace to a TCP port.
pub fn http(from: &Namespace, ip: IpAddr, port: u16, method: &str, path: &str) -> Result<Answer> {
    let stream = from.inside(|| TcpStream::connect_timeout(&SocketAddr::new(ip, port), SOON))?;
    stream.set_read_timeout(Some(SOON))?;
    ask(stream, method, path, "")
}

fn ask(mut stream: impl std::io::Read + std::io::Write, method: &str, path: &str, body: &str) -> Result<Answer> {
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: test\r\nAccept: application/openmetrics-text\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { bail!("no HTTP answer: {answer:?}") };
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    ensure!(head.starts_with("HTTP/1.1 "), "{head}");
    Ok(Answer { code: code.context("no status code")?, head: head.to_lowercase(), body: body.to_owned() })
}
