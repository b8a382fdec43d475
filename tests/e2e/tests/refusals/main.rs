//! Promise 2, unknown means no: what is not our mutual TLS with a proven, allowed identity is refused, with a reason.
//!
//! The attacker is `stranger`: on the same link, with no sidecar, so that it can say anything to anybody.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../e2e/world.rs"]
mod world;

mod openssl;
mod spoofed;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use countersign_api::names::ALPN;
use countersign_api::ports;
use countersign_kit::hostile::OneByteWrites;
use countersign_kit::mesh::{MeshPod, MeshPodSpec};
use countersign_kit::testca::{Leaf, LeafSpec, TestCa, careless_client};
use rustls::version::TLS13;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use world::{FIRST_BYTES, World};

type Test = fn(&World) -> Result<()>;

fn main() -> std::process::ExitCode {
    countersign_e2e::run(TESTS, World::new, World::stop)
}

pub const TESTS: &[(&str, Test)] = &[
    ("a_good_certificate_passes_the_handshake_and_is_denied_by_rules", no_fault),
    ("openssl_speaks_the_wire_and_changes_its_keys", openssl::speaks),
    ("no_certificate_is_refused", no_certificate),
    ("a_strangers_ca_is_refused", strangers_ca),
    ("another_trust_domain_is_refused", another_trust_domain),
    ("an_expired_certificate_is_refused", expired),
    ("a_certificate_of_tomorrow_is_refused", not_yet_valid),
    ("two_uri_sans_are_refused", two_uri_sans),
    ("a_ca_certificate_as_leaf_is_refused", ca_as_leaf),
    ("another_alpn_is_refused", another_alpn),
    ("tls_1_2_is_refused", tls_1_2),
    ("garbage_is_refused", garbage),
    ("a_silent_client_is_cut", silent),
    ("a_client_hello_that_drips_is_cut", dripping),
    ("a_client_hello_in_one_byte_writes_is_judged_like_any", one_byte_writes),
    ("plaintext_under_strict_is_refused", plaintext),
    ("direct_connections_to_our_own_ports_are_refused", own_ports_from_outside),
    ("the_app_cannot_dial_our_listeners", own_ports_from_inside),
    ("a_mesh_connection_that_names_15020_gets_nothing", names_15020),
    ("a_foreign_destination_is_not_let_in", foreign_destination),
    ("a_forged_destination_reaches_no_app_and_is_refused_or_dropped", spoofed::destinations),
    ("a_meshed_intruder_is_denied_and_both_sides_log_the_same_id", intruder),
    ("an_unknown_address_in_the_mesh_is_refused_at_once", unknown_address),
    ("a_refused_tls_attempt_never_becomes_plaintext", never_plaintext),
    ("emfile_on_accept_does_not_spin_and_is_recovered_from", emfile),
];

const FRONTEND: &str = "spiffe://cluster.local/ns/shop/sa/frontend";
const LIMIT: Duration = Duration::from_secs(10);

/// The line of `pod`'s access log about this destination.
fn line(pod: &MeshPod, named: SocketAddr) -> Result<Value> {
    pod.access_line(|line| about(line, named))
}

fn about(line: &Value, named: SocketAddr) -> bool {
    line["destination_address"].as_str() == Some(named.to_string().as_str())
}

fn addresses(pod: &MeshPod, port: u16) -> [SocketAddr; 2] {
    pod.addresses().map(|ip: IpAddr| SocketAddr::new(ip, port))
}

/// Says hello with this leaf and waits for how it ends; the server's first word must be an end.
async fn shake(io: impl AsyncRead + AsyncWrite + Unpin, leaf: Option<Leaf>, alpn: &[u8]) -> Result<()> {
    let config = careless_client(leaf, &[&TLS13], &[alpn])?;
    let name = IpAddr::from([0, 0, 0, 0]).into();
    let connected = timeout(LIMIT, TlsConnector::from(config).connect(name, io)).await?;
    // A TLS 1.3 client learns of its refusal after its own side of the handshake.
    if let Ok(mut tls) = connected {
        let _ = tls.write_all(&[1, 0, 0, 0]).await;
        let said = timeout(LIMIT, tls.read(&mut [0; 64])).await?;
        ensure!(said.is_err() || said.is_ok_and(|n| n == 0), "the server went on talking");
    }
    Ok(())
}

/// `spec`, signed by the mesh's own issuer so that its fault is the only reason, is refused over IPv4 and IPv6.
fn refused(world: &World, spec: &LeafSpec, reason: &str) -> Result<()> {
    let ca = world.mesh.folder().join("ca");
    refused_of(world, &TestCa::stolen(&ca.join("state"), &ca.join("state.key"))?, Some(spec), reason)
}

fn refused_of(world: &World, ca: &TestCa, spec: Option<&LeafSpec>, reason: &str) -> Result<()> {
    let port = world.port();
    for address in addresses(&world.backend1, port) {
        let leaf = spec.map(|spec| ca.leaf(spec)).transpose()?;
        world.stranger.run(|| async { shake(TcpStream::connect(address).await?, leaf, ALPN).await })?;
        let line = line(&world.backend1, address)?;
        ensure!(line["result"] == "handshake_failed" && line["denial_id"].is_string(), "{line}");
        ensure!(line["detail"].as_str().is_some_and(|d| d.contains(reason)), "expected {reason:?}: {line}");
    }
    Ok(())
}

/// What the faults below are faults of: with the right issuer and no fault the handshake is good, so nothing else refuses them.
fn no_fault(world: &World) -> Result<()> {
    let ca = world.mesh.folder().join("ca");
    let ca = TestCa::stolen(&ca.join("state"), &ca.join("state.key"))?;
    for address in addresses(&world.backend1, world.port()) {
        let leaf = ca.leaf(&LeafSpec::of("spiffe://cluster.local/ns/shop/sa/intruder"))?;
        world.stranger.run(|| async {
            let config = careless_client(Some(leaf), &[&TLS13], &[ALPN])?;
            let io = TcpStream::connect(address).await?;
            let name = IpAddr::from([0, 0, 0, 0]).into();
            let mut tls = timeout(LIMIT, TlsConnector::from(config).connect(name, io)).await??;
            tls.write_all(&[1, 0, 0, 0]).await?; // OPEN
            let mut status = [0; 13];
            timeout(LIMIT, tls.read_exact(&mut status)).await??;
            ensure!(status[..5] == [5, 0, 0, 9, 1], "STATUS denied: {status:x?}");
            Ok(())
        })?;
        ensure!(line(&world.backend1, address)?["result"] == "no_rule_matched");
    }
    Ok(())
}

fn no_certificate(world: &World) -> Result<()> {
    refused_of(world, &TestCa::new("a stranger's root")?, None, "no certificate")
}

fn strangers_ca(world: &World) -> Result<()> {
    refused_of(world, &TestCa::new("a stranger's root")?, Some(&LeafSpec::of(FRONTEND)), "no path to a root")
}

fn another_trust_domain(world: &World) -> Result<()> {
    refused(world, &LeafSpec::of("spiffe://elsewhere.test/ns/shop/sa/frontend"), "elsewhere.test")
}

fn expired(world: &World) -> Result<()> {
    refused(world, &LeafSpec { begins: -3600, ends: -5, ..LeafSpec::of(FRONTEND) }, "expired")
}

fn not_yet_valid(world: &World) -> Result<()> {
    refused(world, &LeafSpec { begins: 3600, ends: 7200, ..LeafSpec::of(FRONTEND) }, "not valid before")
}

fn two_uri_sans(world: &World) -> Result<()> {
    let mut spec = LeafSpec::of(FRONTEND);
    spec.uris.push("spiffe://cluster.local/ns/shop/sa/other".into());
    refused(world, &spec, "URI")
}

fn ca_as_leaf(world: &World) -> Result<()> {
    refused(world, &LeafSpec { is_ca: true, ..LeafSpec::of(FRONTEND) }, "CA")
}

fn another_alpn(world: &World) -> Result<()> {
    let ca = TestCa::new("a stranger's root")?;
    for address in addresses(&world.backend1, world.port()) {
        let leaf = ca.leaf(&LeafSpec::of(FRONTEND))?;
        world.stranger.run(|| async { shake(TcpStream::connect(address).await?, Some(leaf), b"h2").await })?;
        ensure!(line(&world.backend1, address)?["result"] == "foreign_tls_refused");
    }
    Ok(())
}

fn tls_1_2(world: &World) -> Result<()> {
    for address in addresses(&world.backend1, world.port()) {
        let to = address.to_string();
        let done = world
            .stranger
            .command("openssl")
            .args(["s_client", "-tls1_2", "-alpn", std::str::from_utf8(ALPN)?, "-connect", &to])
            .finish()?;
        ensure!(!done.status.success(), "{}", done.text());
        let line = line(&world.backend1, address)?;
        ensure!(line["result"] == "handshake_failed" && line["detail"].to_string().contains("does not fit"), "{line}");
    }
    Ok(())
}

/// Sends `bytes` raw and wants an end, not an answer; after how long it came.
fn cut_off(world: &World, bytes: &[u8], address: SocketAddr) -> Result<Duration> {
    world.stranger.run(|| async {
        let began = Instant::now();
        let Ok(mut io) = TcpStream::connect(address).await else {
            return Ok(began.elapsed()); // reset before the first word
        };
        if io.write_all(bytes).await.is_err() {
            return Ok(began.elapsed());
        }
        match timeout(LIMIT, io.read(&mut [0; 64])).await.context("it was not cut")? {
            Ok(0) | Err(_) => Ok(began.elapsed()),
            Ok(n) => bail!("it answered with {n} bytes"),
        }
    })
}

fn garbage(world: &World) -> Result<()> {
    for (bytes, result) in [
        (&b"\x00\x01\x02garbage"[..], "plaintext_refused"),
        (&b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\xff"[..], "foreign_tls_refused"),
        (&b"\x16\x03\x01\xff\xff\x01"[..], "plaintext_refused"),
    ] {
        for address in addresses(&world.backend1, world.port()) {
            cut_off(world, bytes, address)?;
            let line = line(&world.backend1, address)?;
            ensure!(line["result"] == result && line["denial_id"].is_string(), "{bytes:x?}: {line}");
        }
    }
    Ok(())
}

fn silent(world: &World) -> Result<()> {
    for address in addresses(&world.backend1, world.port()) {
        let took = cut_off(world, b"", address)?;
        ensure!(took < FIRST_BYTES + Duration::from_secs(3), "cut only after {took:?}");
        let line = line(&world.backend1, address)?;
        ensure!(line["result"] == "silent" && line["denial_id"].is_string(), "{line}");
    }
    Ok(())
}

fn dripping(world: &World) -> Result<()> {
    for address in addresses(&world.backend1, world.port()) {
        let took = world.stranger.run(|| async {
            let mut io = TcpStream::connect(address).await?;
            let began = Instant::now();
            // The header of a long ClientHello, and then a byte now and then: each in time, all of them not.
            io.write_all(b"\x16\x03\x01\x10\x00\x01").await?;
            let mut ticks = tokio::time::interval(Duration::from_millis(50));
            while began.elapsed() < LIMIT {
                ticks.tick().await;
                if io.write_all(&[0]).await.is_err() {
                    return Ok(began.elapsed());
                }
            }
            bail!("a dripping hello was never cut")
        })?;
        ensure!(took < FIRST_BYTES + Duration::from_secs(3), "cut only after {took:?}");
        ensure!(line(&world.backend1, address)?["result"] == "silent");
    }
    Ok(())
}

fn one_byte_writes(world: &World) -> Result<()> {
    let ca = TestCa::new("a stranger's root")?;
    for address in addresses(&world.backend1, world.port()) {
        let leaf = ca.leaf(&LeafSpec::of("spiffe://elsewhere.test/ns/shop/sa/frontend"))?;
        world.stranger.run(|| async {
            let io = TcpStream::connect(address).await?;
            io.set_nodelay(true)?;
            shake(OneByteWrites(io), Some(leaf), ALPN).await
        })?;
        let line = line(&world.backend1, address)?;
        let named = line["detail"].to_string().contains("elsewhere.test");
        ensure!(named, "the handshake went as far as the certificate: {line}");
    }
    Ok(())
}

fn plaintext(world: &World) -> Result<()> {
    for address in addresses(&world.backend1, world.port()) {
        cut_off(world, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", address)?;
        let line = line(&world.backend1, address)?;
        ensure!(line["result"] == "plaintext_refused" && line["blame"] == "peer", "{line}");
    }
    Ok(())
}

fn own_ports_from_outside(world: &World) -> Result<()> {
    // 15021 is the one exception: what it answers is a test of `control`.
    for port in [ports::INBOUND, ports::OUTBOUND] {
        for address in addresses(&world.backend1, port) {
            cut_off(world, b"x", address)?;
            let line = line(&world.backend1, address)?;
            ensure!(line["result"] == "bad_destination", "{line}");
        }
    }
    Ok(())
}

fn own_ports_from_inside(world: &World) -> Result<()> {
    let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
    let dialled = loopback.map(|ip| SocketAddr::new(ip, ports::OUTBOUND)).into_iter();
    let own = [ports::OUTBOUND, ports::INBOUND, ports::SELF_PROOF].map(|port| addresses(&world.frontend, port));
    for address in dialled.chain(own.into_iter().flatten()) {
        world.frontend.run(|| async {
            let Ok(mut io) = TcpStream::connect(address).await else { return Ok(()) };
            match timeout(LIMIT, io.read(&mut [0; 1])).await.context("it was not cut")? {
                Ok(0) | Err(_) => Ok(()),
                Ok(_) => bail!("{address} answered"),
            }
        })?;
        let line = line(&world.frontend, address)?;
        ensure!(line["result"] == "bad_destination", "{line}");
    }
    Ok(())
}

fn names_15020(world: &World) -> Result<()> {
    for address in addresses(&world.backend1, ports::PROXY_HEALTH) {
        let url = format!("http://{address}/metrics");
        let direct = world.stranger.command("curl").args(["-sS", "--max-time", "5", &url]).succeed()?;
        ensure!(direct.contains("# EOF"), "a scraper without a sidecar reads the metrics");
        let done = world.frontend.command("curl").args(["-sS", "--max-time", "5", &url]).finish()?;
        ensure!(!done.status.success() && done.stdout.is_empty(), "through the mesh: {}", done.text());
        let line = line(&world.frontend, address)?;
        ensure!(line["result"] == "handshake_failed", "{line}");
    }
    Ok(())
}

fn foreign_destination(world: &World) -> Result<()> {
    // The stranger routes another host's address to the pod.
    let port = world.port();
    for (foreign, via) in ["192.0.2.77", "2001:db8::77"].into_iter().zip(world.backend1.addresses()) {
        let address = SocketAddr::new(foreign.parse()?, port);
        world.stranger.ip(&format!("route add {foreign} via {via}\n"))?;
        let connected = world.stranger.run(|| async {
            timeout(Duration::from_secs(1), TcpStream::connect(address)).await.is_ok_and(|c| c.is_ok())
        });
        world.stranger.ip(&format!("route del {foreign}\n"))?;
        ensure!(!connected, "the pod took a connection for {foreign}");
        ensure!(!world.backend1.access_log().iter().any(|l| about(l, address)), "it reached the listener");
    }
    Ok(())
}

fn intruder(world: &World) -> Result<()> {
    for address in addresses(&world.backend1, world.port()) {
        let done =
            world.intruder.command("curl").args(["-sS", "--max-time", "5", &format!("http://{address}/")]).finish()?;
        ensure!(!done.status.success(), "{}", done.text());
        let (theirs, ours) = (line(&world.intruder, address)?, line(&world.backend1, address)?);
        ensure!(ours["result"] == "no_rule_matched" && ours["blame"] == "policy", "{ours}");
        ensure!(theirs["result"] == "denied_by_peer" && theirs["denial_id"] == ours["denial_id"], "{theirs} {ours}");
        ensure!(ours["denial_id"].as_str().is_some_and(|id| id.len() == 16), "{ours}");
        ensure!(ours.to_string().contains("/ns/shop/sa/intruder"), "{ours}");
    }
    Ok(())
}

/// Within the second that a lookup may take at most; that it did not take it, the reason tells.
fn unknown_address(world: &World) -> Result<()> {
    let port = world.port();
    for address in ["10.77.0.250", "10.96.0.250", "fd77::fa", "fd96::fa"] {
        let address = SocketAddr::new(address.parse()?, port);
        let took = world.frontend.run(|| async {
            let began = Instant::now();
            if let Ok(mut io) = TcpStream::connect(address).await {
                let read = timeout(LIMIT, io.read(&mut [0; 1])).await.context("it was not cut")?;
                ensure!(!read.is_ok_and(|n| n > 0), "{address} answered");
            }
            Ok(began.elapsed())
        })?;
        let line = line(&world.frontend, address)?;
        ensure!(line["result"] == "unknown_destination" && line["denial_id"].is_string(), "{line}");
        ensure!(took < Duration::from_secs(1), "{address}: at once, not after {took:?}: {line}");
    }
    Ok(())
}

fn never_plaintext(world: &World) -> Result<()> {
    // The pod's redirect is gone and a plain server stands at a meshed address: the client side must not talk to it.
    let pod = &world.unguarded;
    for address in addresses(pod, world.port()) {
        let listener = pod.run(|| async { tokio::net::TcpListener::bind(address).await?.into_std().map(Arc::new) })?;
        let server = Arc::clone(&listener);
        let heard = pod.start(move || async move {
            let listener = tokio::net::TcpListener::from_std(server.try_clone()?)?;
            let (mut io, _) = timeout(LIMIT, listener.accept()).await??;
            let mut bytes = vec![0; 4096];
            let n = timeout(LIMIT, io.read(&mut bytes)).await??;
            bytes.truncate(n);
            // Whatever it was, it is answered as a plain server would.
            io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await?;
            anyhow::Ok(bytes)
        })?;
        let url = format!("http://{address}/secret-marker");
        let done = world.frontend.command("curl").args(["-sS", "--max-time", "5", &url]).finish()?;
        ensure!(!done.status.success() && done.stdout.is_empty(), "{}", done.text());
        let bytes = heard.join()?;
        ensure!(bytes.first() == Some(&22), "the first byte is a TLS handshake: {bytes:x?}");
        ensure!(!bytes.windows(13).any(|w| w == b"secret-marker"), "the request leaked");
        ensure!(line(&world.frontend, address)?["result"] == "handshake_failed");
    }
    Ok(())
}

/// Seconds of CPU that a process has used.
fn cpu(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().context("no fields")?.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(ticks as f64 / 100.0) // USER_HZ, the same on every Linux
}

fn emfile(world: &World) -> Result<()> {
    let pod = world.mesh.pod(MeshPodSpec::new("starved", "starved", 16))?;
    let pid = pod.with_sidecar(|sidecar| Ok(sidecar.pid()))?;
    let open = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    let limit = format!("--nofile={0}:{0}", open + 8);
    let starve = pod.command("prlimit").args(["--pid", &pid.to_string(), &limit]);
    let rootless = world.mesh.net().inside().rootless();
    if rootless { starve } else { starve.uid(ports::PROXY_UID) }.succeed()?;
    let (address, before) = (addresses(&pod, world.port())[0], cpu(pid)?);
    world.stranger.run(|| async {
        let mut held = Vec::new();
        for _ in 0..100 {
            held.push(TcpStream::connect(address).await?); // the kernel's queue takes what we cannot
        }
        // Until the first are cut for their silence: all that time the listener is readable, and has no file for anybody.
        let first = held.first_mut().context("none was held")?;
        timeout(LIMIT, first.read(&mut [0; 1])).await.context("it was not cut")?.ok();
        anyhow::Ok(())
    })?;
    let used = cpu(pid)? - before;
    let log = pod.with_sidecar(|sidecar| Ok(sidecar.log()))?;
    ensure!(log.iter().any(|line| line.contains("accept failed")), "it was never out of files");
    ensure!(used < 0.5, "{used} s of CPU in {FIRST_BYTES:?}: it spins");
    let address = addresses(&pod, world.port())[0];
    world.stranger.run(|| async {
        let mut io = TcpStream::connect(address).await?;
        io.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
        timeout(LIMIT, io.read(&mut [0; 1])).await.context("it did not recover")?.ok();
        anyhow::Ok(())
    })?;
    ensure!(line(&pod, address)?["result"] == "plaintext_refused");
    Ok(())
}
