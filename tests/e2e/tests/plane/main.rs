//! CA and controller under attack: by a meshed pod that speaks HTTP/2 as it likes, and by a stranger without a certificate.
//!
//! The promise is the same each time: while it goes on, a sidecar that starts just then gets its SVID from the CA and its rules
//! from the controller; and neither grows beyond a bound, however much is sent.

#![allow(clippy::unwrap_used, missing_docs)]

mod h2;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use countersign_kit::mesh::{Mesh, MeshPod, MeshPodSpec, Settings};
use countersign_kit::testca::{LeafSpec, TestCa};
use countersign_kit::{Inside, Net};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use h2::{CONTINUATION, DATA, END_HEADERS, HEADERS, PING, RST_STREAM, SETTINGS, call, filler, frame, message};

type Test = fn(&World) -> Result<()>;

fn main() -> std::process::ExitCode {
    countersign_e2e::run(TESTS, World::new, World::stop)
}

const TESTS: &[(&str, Test)] = &[
    ("resets_without_end_at_the_controller_keep_nobody_out", |w| w.stands(Whom::Controller, resets)),
    ("pings_without_end_at_the_controller_keep_nobody_out", |w| w.stands(Whom::Controller, pings)),
    ("settings_without_end_at_the_controller_keep_nobody_out", |w| w.stands(Whom::Controller, settings)),
    ("headers_without_end_at_the_controller_keep_nobody_out", |w| w.stands(Whom::Controller, endless_headers)),
    ("large_headers_at_the_controller_keep_nobody_out", |w| w.stands(Whom::Controller, large_headers)),
    ("messages_longer_than_any_at_the_controller_keep_nobody_out", |w| w.stands(Whom::Controller, long_messages)),
    ("lookups_whose_answers_nobody_reads_keep_nobody_out", |w| w.stands(Whom::Controller, lookups)),
    ("idle_connections_at_the_controller_keep_nobody_out", |w| w.stands(Whom::Controller, nothing)),
    ("resets_without_end_at_the_ca_keep_nobody_out", |w| w.stands(Whom::Ca, resets)),
    ("pings_without_end_at_the_ca_keep_nobody_out", |w| w.stands(Whom::Ca, pings)),
    ("settings_without_end_at_the_ca_keep_nobody_out", |w| w.stands(Whom::Ca, settings)),
    ("headers_without_end_at_the_ca_keep_nobody_out", |w| w.stands(Whom::Ca, endless_headers)),
    ("messages_longer_than_any_at_the_ca_keep_nobody_out", |w| w.stands(Whom::Ca, long_messages)),
    ("idle_connections_of_strangers_at_the_ca_keep_nobody_out", |w| w.stands(Whom::Ca, nothing)),
];

/// What the attack lasts for, at the least: a sidecar starts meanwhile.
const LENGTH: Duration = Duration::from_secs(2);
/// A process may take so much more than before. What one pod's connections may have on their way to it is far less.
const GROWTH: u64 = 64 * 1024 * 1024;
/// Connections that attack at once; every other one reads nothing.
const AT_ONCE: u64 = 4;
/// Connections held, where they say nothing.
const IDLE: usize = 400;

/// Who is attacked, and by whom: the controller by a member of the mesh, the CA by a stranger.
#[derive(Clone, Copy)]
enum Whom {
    Controller,
    Ca,
}

/// The next bytes of an attack, the `n`th; none: it has said all.
type Flood = fn(Whom, u32) -> Vec<u8>;

struct World {
    /// Holds an identity of the mesh, and no sidecar.
    member: MeshPod,
    /// Starts while the attack goes on.
    late: MeshPod,
    mesh: Mesh,
    /// One attack at a time.
    turn: Mutex<()>,
}

impl World {
    fn new(inside: Inside) -> Result<Self> {
        let mesh = Mesh::start(Net::new(inside)?, Settings::default())?;
        let member = mesh.pod(MeshPodSpec::new("member", "member", 10).without_sidecar())?;
        let late = mesh.pod(MeshPodSpec::new("late", "late", 11))?;
        mesh.settle(&[&late])?;
        Ok(Self { member, late, mesh, turn: Mutex::default() })
    }

    fn stop(&self) {
        self.late.stop_sidecar();
        self.mesh.stop_controller();
        self.mesh.stop_ca();
    }

    fn stands(&self, whom: Whom, flood: Flood) -> Result<()> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let (to, pid) = match whom {
            Whom::Controller => (self.mesh.controller_address(), self.mesh.controller_pid()),
            Whom::Ca => (self.mesh.ca_address(), self.mesh.ca_pid()),
        };
        let (to, pid): (SocketAddr, u32) = (to.parse()?, pid.context("it does not run")?);
        let folder = self.mesh.folder().join("ca");
        let ca = Arc::new(TestCa::stolen(&folder.join("state"), &folder.join("state.key"))?);
        let before = resident(pid)?;
        let attack = Arc::new(Attack { to, whom, ca, flood, over: AtomicBool::new(false), said: AtomicU64::new(0) });
        let mut attackers = Vec::new();
        for n in 0..AT_ONCE {
            let attack = Arc::clone(&attack);
            attackers.push(self.member.start(move || async move { attack.go_on(n % 2 == 0).await })?);
        }
        let (began, mut most) = (Instant::now(), before);
        let started = loop {
            self.late.stop_sidecar();
            let started = self.mesh.start_sidecar(&self.late);
            most = most.max(resident(pid)?);
            if started.is_err() || began.elapsed() >= LENGTH {
                break started;
            }
        };
        attack.over.store(true, Ordering::Relaxed);
        for attacker in attackers {
            attacker.join();
        }
        started?;
        ensure!(attack.said.load(Ordering::Relaxed) > 0, "nobody attacked");
        ensure!(most < before + GROWTH, "it grew from {before} to {most} bytes");
        Ok(())
    }
}

/// Memory that a process holds, bytes.
fn resident(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
}

struct Attack {
    to: SocketAddr,
    whom: Whom,
    ca: Arc<TestCa>,
    flood: Flood,
    over: AtomicBool,
    said: AtomicU64,
}

impl Attack {
    async fn go_on(&self, reading: bool) {
        let mut idle = Vec::new();
        while !self.over.load(Ordering::Relaxed) {
            // What ends a connection is the defence: the next one, then.
            match self.one(reading).await {
                Ok(Some(silent)) if idle.len() < IDLE => idle.push(silent),
                _ => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    }

    /// One connection; given back if it is to be held.
    async fn one(&self, reading: bool) -> Result<Option<tokio_rustls::client::TlsStream<tokio::net::TcpStream>>> {
        let leaf = match self.whom {
            Whom::Controller => Some(self.ca.leaf(&LeafSpec::of("spiffe://cluster.local/ns/shop/sa/member"))?),
            Whom::Ca => None,
        };
        let io = h2::dial(self.to, leaf).await?;
        self.said.fetch_add(1, Ordering::Relaxed);
        if (self.flood)(self.whom, 0).is_empty() {
            return Ok(Some(io));
        }
        let (mut from, mut to) = tokio::io::split(io);
        let reader = reading
            .then(|| tokio::spawn(async move { while from.read(&mut [0; 16 * 1024]).await.is_ok_and(|n| n > 0) {} }));
        let mut n = 0;
        while !self.over.load(Ordering::Relaxed) {
            let mut bytes = Vec::new();
            while bytes.len() < 16 * 1024 {
                let next = (self.flood)(self.whom, n);
                n += 1;
                if next.is_empty() {
                    break;
                }
                bytes.extend(next);
            }
            if bytes.is_empty() {
                tokio::time::sleep(Duration::from_millis(100)).await;
                break;
            }
            timeout(Duration::from_secs(1), async {
                to.write_all(&bytes).await?;
                to.flush().await
            })
            .await??;
        }
        if let Some(reader) = reader {
            reader.abort();
        }
        Ok(None)
    }
}

impl Whom {
    fn path(self) -> &'static str {
        match self {
            Self::Controller => "/countersign.controller.v1.Controller/Connect",
            Self::Ca => "/countersign.ca.v1.CertificateAuthority/IssueSvid",
        }
    }
}

fn resets(whom: Whom, n: u32) -> Vec<u8> {
    let stream = 2 * n + 1;
    let reset = frame(RST_STREAM, 0, stream, &8u32.to_be_bytes());
    [frame(HEADERS, END_HEADERS, stream, &call(whom.path())), reset].concat()
}

fn pings(_: Whom, n: u32) -> Vec<u8> {
    frame(PING, 0, 0, &u64::from(n).to_be_bytes())
}

fn settings(_: Whom, n: u32) -> Vec<u8> {
    // The first window of streams, another one each time.
    frame(SETTINGS, 0, 0, &[&[0, 4][..], &(n % 60_000 + 1).to_be_bytes()].concat())
}

fn endless_headers(whom: Whom, n: u32) -> Vec<u8> {
    match n {
        0 => frame(HEADERS, 0, 1, &call(whom.path())),
        _ => frame(CONTINUATION, 0, 1, &filler(4000)),
    }
}

fn large_headers(whom: Whom, n: u32) -> Vec<u8> {
    let block = [call(whom.path()), filler(15_000)].concat();
    frame(HEADERS, END_HEADERS, 2 * n + 1, &block)
}

fn long_messages(whom: Whom, n: u32) -> Vec<u8> {
    match n {
        0 => [frame(HEADERS, END_HEADERS, 1, &call(whom.path())), frame(DATA, 0, 1, &message(u32::MAX, &[7; 8000]))]
            .concat(),
        1..7 => frame(DATA, 0, 1, &[7; 8000]),
        _ => Vec::new(),
    }
}

/// A good `Hello`, and then as many lookups as a stream's window takes.
fn lookups(whom: Whom, n: u32) -> Vec<u8> {
    let uid = MeshPodSpec::new("member", "member", 10).uid();
    let framed = |body: &[u8]| frame(DATA, 0, 1, &message(u32::try_from(body.len()).unwrap(), body));
    match n {
        0 => {
            let uid_field = [&[0x0a, u8::try_from(uid.len()).unwrap()][..], uid.as_bytes()].concat();
            let hello = [&[0x0a, u8::try_from(uid_field.len() + 2).unwrap()][..], &uid_field, &[0x18, 1]].concat();
            [frame(HEADERS, END_HEADERS, 1, &call(whom.path())), framed(&hello)].concat()
        }
        1..3500 => {
            let [.., a, b] = n.to_be_bytes();
            framed(&[0x12, 6, 0x0a, 4, 10, 77, a, b])
        }
        _ => Vec::new(),
    }
}

/// It says nothing at all.
fn nothing(_: Whom, _: u32) -> Vec<u8> {
    Vec::new()
}
