//! Who gets in without our mutual TLS, and how soon.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use countersign_api::names::ALPN;
use countersign_kit::mesh::{MeshPod, MeshPodSpec};
use countersign_kit::testca::{Leaf, LeafSpec, TestCa, careless_client};
use countersign_kit::{Inside, Pod, PodSpec, wait_for};
use rustls::version::TLS13;
use serde_json::Value;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::explain::because;
use crate::rules::in_time;
use crate::stage::{PORT, SOON, Stage, at, policy, status_until};
use crate::talk::{Echo, End, Talk, exchange};

const PERMISSIVE: &str = "countersign.dev/mtls: Permissive";
/// What an unknown source is given to offer our mutual TLS.
const PATIENCE: Duration = Duration::from_millis(500);

/// Anybody of the IPv4 link may come in, on these ports.
fn strangers_welcome(to: &str) -> String {
    let rule = format!("from: [{{unauthenticated: true, ipBlocks: [10.77.0.0/24]}}]\n{to}");
    policy("strangers", "Allow", &rule)
}

fn permissive(inside: &Inside) -> Result<Stage> {
    let stage = Stage::new(inside)?;
    stage.mesh.object("strangers.yaml", &strangers_welcome(""))?;
    stage.modes(PERMISSIVE, ["Permissive", "Enforce", "Any"])?;
    status_until(&stage.server, |status| status["policy"]["rules"] == 2)?;
    Ok(stage)
}

/// The account of a connection that came to the server from this address.
fn came_from(stage: &Stage, pod: &Pod) -> Result<Value> {
    let from = format!("{}:", pod.v4());
    stage.server.access_line(|line| line["source_address"].as_str().is_some_and(|source| source.starts_with(&from)))
}

pub fn meshed_source(inside: &Inside) -> Result<()> {
    let stage = permissive(inside)?;
    // Known as meshed; but what it says goes out past any sidecar.
    let unguarded = stage.known(MeshPodSpec::new("unguarded", "unguarded", 35).without_sidecar())?;
    let mut talk = Talk::dial(&unguarded, stage.address())?;
    talk.tell("GET / HTTP/1.1\r\n\r\n")?;
    ensure!(talk.end(SOON)? == End::Reset);
    let line = came_from(&stage, &unguarded)?;
    ensure!(line["result"] == "plaintext_refused" && line["blame"] == "peer", "{line}");
    ensure!(stage.echo.greeted() == 0, "the app was reached");
    Ok(())
}

/// The soonest greeting of a few, each after these first words: one is late on a busy machine, not all.
fn soonest_greeting(from: &Pod, stage: &Stage, words: &str) -> Result<Duration> {
    let mut soonest = Duration::MAX;
    for _ in 0..5 {
        let mut talk = Talk::dial(from, stage.address())?;
        talk.tell(words)?;
        soonest = soonest.min(talk.greeted()?);
        talk.hear(words)?;
        talk.finish()?;
    }
    Ok(soonest)
}

pub fn unmeshed_source(inside: &Inside) -> Result<()> {
    let stage = permissive(inside)?;
    let stranger = stage.stranger(34)?;
    let took = soonest_greeting(&stranger, &stage, "")?;
    ensure!(took < PATIENCE / 2, "{took:?} until the greeting");
    let line = came_from(&stage, &stranger)?;
    ensure!(line["result"] == "ok" && line["security"] == "none" && line["source_id"].is_null(), "{line}");
    ensure!(line["rule"] == "shop/strangers#0", "{line}");
    // Only where rules allow: no block holds its IPv6 address.
    let mut talk = Talk::dial(&stranger, stage.address_v6())?;
    ensure!(talk.end(SOON)? == End::Reset);
    let line = stage.server.access_line(|line| line["result"] == "no_rule_matched")?;
    ensure!(line["security"] == "none" && line["denial_id"].is_string(), "{line}");
    // The meshed client is still asked for its certificate, and gives it.
    exchange(&stage.client, stage.address())?;
    stage.server.access_line(|line| line["security"] == "mutual_tls" && line["result"] == "ok")?;
    Ok(())
}

pub fn unknown_source(inside: &Inside) -> Result<()> {
    let stage = permissive(inside)?;
    // On the link, and in no object.
    let unknown = stage.mesh.net().pod(PodSpec::numbered("unknown", 60))?;
    let took = soonest_greeting(&unknown, &stage, "")?;
    ensure!((PATIENCE..4 * PATIENCE).contains(&took), "{took:?} until the greeting");
    let line = came_from(&stage, &unknown)?;
    ensure!(line["result"] == "ok" && line["security"] == "none" && line["source_id"].is_null(), "{line}");
    // Who speaks at once is not kept waiting.
    let took = soonest_greeting(&unknown, &stage, "first\n")?;
    ensure!(took < PATIENCE / 2, "{took:?} until the greeting of one who spoke");
    Ok(())
}

/// Offers our mutual TLS with this leaf and says `OPEN`; the answer, if there is one.
async fn offer(to: SocketAddr, leaf: Option<Leaf>) -> Result<Option<[u8; 5]>> {
    let config = careless_client(leaf, &[&TLS13], &[ALPN])?;
    let io = TcpStream::connect(to).await?;
    let name = IpAddr::from([0, 0, 0, 0]).into();
    // A TLS 1.3 client learns of its refusal after its own side of the handshake.
    let Ok(mut tls) = timeout(SOON, TlsConnector::from(config).connect(name, io)).await? else { return Ok(None) };
    let _ = tls.write_all(&[1, 0, 0, 0]).await;
    let mut answer = [0; 5];
    let heard = timeout(SOON, tls.read_exact(&mut answer)).await?;
    Ok(heard.is_ok().then_some(answer))
}

pub fn certificates(inside: &Inside) -> Result<()> {
    // On a busy machine too, the offer is there before its time is over.
    let stage = Stage::with_args(inside, &["--permissive-hello-timeout", "20s"])?;
    let to = stage.address();
    let ca = stage.mesh.folder().join("ca");
    let (ca, stranger) = (TestCa::stolen(&ca.join("state"), &ca.join("state.key"))?, TestCa::new("a stranger's root")?);
    // In no rule.
    let nobody = LeafSpec::of("spiffe://cluster.local/ns/shop/sa/nobody");
    let line = |pod: &Pod, key: &str, word: &str| {
        let from = format!("{}:", pod.v4());
        let has = |line: &Value, key: &str, word: &str| line[key].as_str().is_some_and(|text| text.contains(word));
        stage.server.access_line(|line| has(line, "source_address", &from) && has(line, key, word))
    };
    for (reached, (posture, number)) in [("Audit", 60), ("Off", 61)].into_iter().enumerate() {
        stage.modes(&format!("{PERMISSIVE}, countersign.dev/posture: '{posture}'"), ["Permissive", posture, "Any"])?;
        let unknown = stage.mesh.net().pod(PodSpec::numbered(&format!("unknown-{number}"), number))?;
        for (leaf, why) in [(None, "no certificate"), (Some(stranger.leaf(&nobody)?), "no path to a root")] {
            let answer = unknown.run(|| offer(to, leaf))?;
            ensure!(answer.is_none(), "{posture}, {why}: {answer:?}");
            let line = line(&unknown, "detail", why)?;
            ensure!(line["result"] == "handshake_failed" && line["blame"] == "peer", "{posture}: {line}");
        }
        ensure!(stage.echo.greeted() == reached, "{posture}: the app was reached");
        let leaf = ca.leaf(&nobody)?;
        let answer = unknown.run(|| offer(to, Some(leaf)))?;
        ensure!(answer == Some([5, 0, 0, 1, 0]), "{posture}: {answer:?}");
        let line = line(&unknown, "security", "mutual_tls")?;
        ensure!(line["source_id"] == nobody.uris[0].as_str(), "{posture}: {line}");
        wait_for(SOON, "the app is reached", || stage.echo.greeted() == reached + 1)?;
    }
    Ok(())
}

pub fn opened_port(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let closed = PORT + 1;
    let other = Echo::start(&stage.server, closed)?;
    let stranger = stage.stranger(34)?;
    let unknown = stage.mesh.net().pod(PodSpec::numbered("unknown", 60))?;
    stage.mesh.object("strangers.yaml", &strangers_welcome(&format!("    to: [{{ports: [{PORT}]}}]")))?;
    status_until(&stage.server, |status| status["policy"]["rules"] == 2)?;
    exchange(&stranger, stage.address())?;

    let refusals: [(&Pod, _, _); 3] = [
        (&stranger, at(&stage.server, closed), "another port"),
        (&stranger, stage.address_v6(), "from outside the blocks"),
        (&unknown, stage.address(), "by an unknown address inside the mesh"),
    ];
    for (from, to, what) in refusals {
        let mut talk = Talk::dial(from, to)?;
        talk.tell("let me in\n")?;
        ensure!(talk.end(SOON).context(what)? == End::Reset, "{what}");
    }
    ensure!((stage.echo.greeted(), other.greeted()) == (1, 0), "a refused one reached the app");
    let results =
        |pod: &MeshPod| -> Vec<Value> { pod.access_log().iter().map(|line| line["result"].clone()).collect() };
    because(&stage, &came_from(&stage, &unknown)?, "mtls is Strict, and the controller knows no workload")?;
    let results = results(&stage.server);
    ensure!(results == ["ok", "plaintext_refused", "plaintext_under_strict", "plaintext_refused"], "{results:?}");
    Ok(())
}

/// An open connection without identities that a change must end: what the server's sidecar, which alone knows why, says of it.
fn cut(stage: &Stage, open: &mut Talk) -> Result<Value> {
    ensure!(open.end(SOON)? == End::Reset);
    let source = open.local.to_string();
    let line = stage.server.access_line(|line| line["source_address"] == source.as_str())?;
    ensure!(line["blame"] == "policy" && line["denial_id"].is_string(), "{line}");
    ensure!(line["security"] == "none" && line["bytes_received"] != 0, "{line}");
    Ok(line)
}

pub fn let_in_no_longer(inside: &Inside) -> Result<()> {
    let stage = permissive(inside)?;
    let stranger = stage.stranger(34)?;
    let mut ours = Talk::open(&stage.client, stage.address()).context("opening ours")?;

    let mut theirs = Talk::open(&stranger, stage.address())?;
    let written = OffsetDateTime::now_utc();
    stage.mesh.remove_object("strangers.yaml")?;
    let line = cut(&stage, &mut theirs)?;
    in_time(&stage.server, &line, written, OffsetDateTime::now_utc())?;
    ensure!(line["result"] == "no_rule_matched", "{line}");

    // What only the posture lets in, a mode that no posture opens ends.
    stage.modes(&format!("{PERMISSIVE}, countersign.dev/posture: Audit"), ["Permissive", "Audit", "Any"])?;
    let mut theirs = Talk::open(&stranger, stage.address())?;
    stage.modes("countersign.dev/posture: Audit", ["Strict", "Audit", "Any"])?;
    let line = cut(&stage, &mut theirs)?;
    ensure!(line["result"] == "plaintext_under_strict", "{line}");

    ours.say("still here\n")?;
    ours.finish()?;
    Ok(())
}
