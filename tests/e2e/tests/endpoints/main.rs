//! Picking endpoints and dialling them under interception: what the kernel tells the proxy, what it dials, and what of that is on
//! the link. The experiment of docs/decisions/0003.
//!
//! `client` and `server` have sidecars, `bare` has none, `roadless` loses its routes. The app tells each caller whom it sees and
//! where it was reached, so that no word of a proxy is taken for what the app can say itself.

#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{self, ErrorKind, Read as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use countersign_kit::mesh::{Mesh, MeshPod, MeshPodSpec, Settings};
use countersign_kit::{Capture, Captured, Inside, Namespace, Net};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

type Test = fn(&World) -> Result<()>;

const TESTS: &[(&str, Test)] = &[
    ("a_service_address_is_on_no_interface_and_leads_nowhere_without_the_redirect", nowhere),
    ("a_service_address_is_told_to_the_proxy_and_the_endpoint_is_dialled_at_its_own", by_service),
    ("a_pod_address_is_told_to_the_proxy_and_dialled_as_it_is", by_pod),
    ("a_pod_that_calls_its_own_service_crosses_no_network", itself),
    ("without_a_route_the_kernel_refuses_before_the_redirect", without_route),
];

/// The service's port, and the port of its endpoints.
const PORTS: (u16, u16) = (80, 8080);
const SERVICE: [&str; 2] = ["10.96.0.10", "fd96::a"];
const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";
const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/server";
const PATIENCE: Duration = Duration::from_secs(10);
/// Far more than these connections make.
const CAPTURE_BOUND: usize = 16 * 1024 * 1024;

const RULES: &str = "
apiVersion: policy.countersign.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: to-server, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  action: Allow
  rules:
  - from: [{serviceAccounts: [{namespace: shop, name: client}, {namespace: shop, name: server}]}]
    to: [{ports: [8080]}]
";

struct World {
    client: MeshPod,
    server: MeshPod,
    bare: MeshPod,
    roadless: MeshPod,
    mesh: Mesh,
}

fn main() -> std::process::ExitCode {
    countersign_e2e::run(TESTS, World::new, World::stop)
}

impl World {
    fn new(inside: Inside) -> Result<Self> {
        let mesh = Mesh::start(Net::new(inside)?, Settings::default())?;
        mesh.object("rules.yaml", RULES)?;
        mesh.service("shop", "server", 10, &[PORTS])?;
        let pod = |name, number| mesh.pod(MeshPodSpec::new(name, name, number));
        let world = Self {
            client: pod("client", 11)?,
            server: pod("server", 12)?,
            roadless: pod("roadless", 13)?,
            bare: mesh.pod(MeshPodSpec::new("bare", "bare", 14).unmeshed())?,
            mesh,
        };
        for ip in world.server.addresses() {
            tell(&world.server, SocketAddr::new(ip, PORTS.1))?;
        }
        world.mesh.settle(&[&world.client, &world.server, &world.roadless])?;
        Ok(world)
    }

    fn stop(&self) {
        for pod in [&self.client, &self.server, &self.roadless] {
            pod.stop_sidecar();
        }
        self.mesh.stop_controller();
        self.mesh.stop_ca();
    }

    /// Each family's address of the service, and of the server behind it.
    fn pairs(&self) -> Result<[(SocketAddr, SocketAddr); 2]> {
        let [v4, v6] = self.server.addresses();
        let service = |text: &str| Ok::<_, anyhow::Error>(SocketAddr::new(text.parse()?, PORTS.0));
        Ok([(service(SERVICE[0])?, SocketAddr::new(v4, PORTS.1)), (service(SERVICE[1])?, SocketAddr::new(v6, PORTS.1))])
    }

    /// What the link carried while `work` was done.
    fn captured<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(Captured, T)> {
        let capture = Capture::start(self.mesh.net(), CAPTURE_BOUND)?;
        let done = work();
        let captured = capture.finish()?;
        ensure!(captured.whole(), "the capture did not see everything");
        Ok((captured, done?))
    }
}

/// The app: tells whom it sees and where it was reached, and ends.
fn tell(pod: &Namespace, at: SocketAddr) -> Result<()> {
    let (told, bound) = std::sync::mpsc::channel();
    pod.start(move || async move {
        let listener = match TcpListener::bind(at).await {
            Ok(listener) => listener,
            Err(error) => return drop(told.send(Err(error))),
        };
        let _ = told.send(Ok(()));
        while let Ok((mut io, peer)) = listener.accept().await {
            if let Ok(own) = io.local_addr() {
                let _ = io.write_all(format!("{} {own}", peer.ip()).as_bytes()).await;
            }
        }
    })?;
    Ok(bound.recv()??)
}

/// What the app at `to` says, if it is reached.
fn hear(from: &Namespace, to: SocketAddr) -> io::Result<String> {
    let mut stream = from.inside(|| TcpStream::connect_timeout(&to, PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}

fn nowhere(world: &World) -> Result<()> {
    for pod in [&world.client, &world.server, &world.bare] {
        let has = pod.command("ip").args(["-o", "address"]).succeed()?;
        ensure!(SERVICE.iter().all(|address| !has.contains(&format!(" {address}/"))), "{}: {has}", pod.name());
    }
    for (service, _) in world.pairs()? {
        let error =
            hear(&world.bare, service).err().with_context(|| format!("{service} was reached without a redirect"))?;
        ensure!(matches!(error.kind(), ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable), "{error:?}");
    }
    Ok(())
}

fn by_service(world: &World) -> Result<()> {
    for (service, endpoint) in world.pairs()? {
        let (captured, said) = world.captured(|| Ok(hear(&world.client, service)?))?;
        both_sides(world, &said, service, endpoint)?;
        // (`bare`, which has no redirect, sends to it in another test.)
        let mut ours = captured.segments().map(|segment| [segment.source.ip(), segment.destination.ip()]);
        let service_named =
            ours.any(|ends| ends.contains(&service.ip()) && ends.iter().any(|ip| has(&world.client, *ip)));
        ensure!(!service_named, "the service's address was on the link");
        // By the proxy, past its own redirect: else it would have met its own listener, and nothing would be here.
        let dialled = captured.flows_to(endpoint).into_iter().filter(|flow| has(&world.client, flow.client.ip()));
        ensure!(dialled.count() == 1, "the endpoint was not dialled once");
    }
    Ok(())
}

fn by_pod(world: &World) -> Result<()> {
    for (_, endpoint) in world.pairs()? {
        let said = hear(&world.client, endpoint)?;
        both_sides(world, &said, endpoint, endpoint)?;
    }
    Ok(())
}

/// What the app, the client's side and the server's side say of a connection that was made to `asked`.
fn both_sides(world: &World, said: &str, asked: SocketAddr, endpoint: SocketAddr) -> Result<()> {
    // Dialled at its pod address, by the pod itself.
    ensure!(said == format!("{} {endpoint}", endpoint.ip()), "the app at {endpoint} saw {said}");
    let (asked, endpoint) = (json!(asked.to_string()), json!(endpoint.to_string()));
    let ours =
        world.client.access_line(|line| line["direction"] == "outbound" && line["destination_address"] == asked)?;
    ensure!(ours["upstream_address"] == endpoint && ours["security"] == "mutual_tls", "{ours}");
    ensure!(ours["source_id"] == CLIENT && ours["destination_id"] == SERVER && ours["result"] == "ok", "{ours}");
    let theirs = world.server.access_line(|line| {
        line["direction"] == "inbound" && line["destination_address"] == endpoint && line["source_id"] == CLIENT
    })?;
    ensure!(theirs["upstream_address"] == endpoint && theirs["destination_id"] == SERVER, "{theirs}");
    let source: SocketAddr = theirs["source_address"].as_str().context("no source")?.parse()?;
    ensure!(has(&world.client, source.ip()), "{theirs}");
    Ok(())
}

fn itself(world: &World) -> Result<()> {
    for (service, endpoint) in world.pairs()? {
        for asked in [service, endpoint] {
            let (captured, said) = world.captured(|| Ok(hear(&world.server, asked)?))?;
            ensure!(said == format!("{} {endpoint}", endpoint.ip()), "the app at {endpoint} saw {said}");
            let asked = json!(asked.to_string());
            let line = world.server.access_line(|line| {
                line["direction"] == "outbound" && line["destination_address"] == asked && line["result"] == "ok"
            })?;
            ensure!(line["security"] == "local" && line["upstream_address"] == json!(endpoint.to_string()), "{line}");
            ensure!(line["source_id"] == SERVER && line["destination_id"] == SERVER, "{line}");
            let crossed =
                |source: IpAddr, to: IpAddr| to == service.ip() || (has(&world.server, source) && source == to);
            ensure!(
                !captured.segments().any(|segment| crossed(segment.source.ip(), segment.destination.ip())),
                "a call to itself was on the link"
            );
        }
    }
    let of_itself = |line: &Value| line["direction"] == "inbound" && line["source_id"] == SERVER;
    ensure!(!world.server.access_log().iter().any(of_itself), "it met its own inbound listener");
    Ok(())
}

fn without_route(world: &World) -> Result<()> {
    let pod = &world.roadless;
    for (service, _) in world.pairs()? {
        let told = || {
            let service = json!(service.to_string());
            pod.access_log().iter().filter(|line| line["destination_address"] == service).count()
        };
        // By no rule, but by its sidecar: refused there with a reset.
        ensure!(
            hear(pod, service).is_err_and(|error| error.kind() == ErrorKind::ConnectionReset),
            "not refused by rules"
        );
        countersign_kit::wait_until(PATIENCE, || if told() == 1 { Ok(()) } else { Err("no account of it") })?;
        let family = if service.is_ipv4() { "-4" } else { "-6" };
        pod.command("ip").args([family, "route", "del", "default"]).succeed()?;
        let error = hear(pod, service).err().context("reached without a route")?;
        ensure!(error.kind() == ErrorKind::NetworkUnreachable, "{error:?}");
        ensure!(told() == 1, "the sidecar saw it");
    }
    Ok(())
}

fn has(pod: &MeshPod, ip: IpAddr) -> bool {
    pod.addresses().contains(&ip.to_canonical())
}
