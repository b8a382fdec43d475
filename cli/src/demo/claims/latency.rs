//! Claim 4: what the mesh costs in latency, beside nothing at all and beside two plain TCP relays in the same places.
//!
//! Called by `demo`. Open loop at a fixed rate, counted from the intended time of sending; rounds are interleaved, so that
//! a noisy moment of the machine hits all three. Every planned request must be answered.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use countersign_kit::load::{Load, Measured};
use countersign_kit::relay::relay;
use countersign_kit::{Here as _, Namespace, Pod};

use crate::demo::apps::{HTTP, LOAD_PATH};
use crate::demo::say::{Say, millis};
use crate::demo::stage::Stage;

const RATE: u32 = 1000;
const CONNECTIONS: usize = 8;
const ROUND: Duration = Duration::from_millis(1500);
const ROUNDS: usize = 3;
/// The relays' ports, in the client's and in the server's pod: where a sidecar would stand.
const RELAYS: [u16; 2] = [9001, 9006];
/// The mesh may add three times what two relays add, and this, at the median: a stall, Nagle's algorithm (40 ms) or a handshake for
/// each request would add far more.
const ALLOWANCE: Duration = Duration::from_millis(1);
/// The same at the 99th percentile: what stalls one request in a hundred. A busy machine speaks there too, so that each leg is judged by
/// its best round: what the mesh does by itself, it does in all.
const ALLOWANCE_P99: Duration = Duration::from_millis(30);

/// The one leg of which a failure is ours.
const MESH: &str = "mesh";

struct Leg<'a> {
    name: &'static str,
    key: &'static str,
    place: &'a Namespace,
    target: SocketAddr,
    measured: Option<Measured>,
    /// The 99th percentile of its best round.
    best: Duration,
}

/// Shows and checks it.
pub fn check(stage: &Stage, say: &mut Say) -> Result<()> {
    let relayed = relays(&stage.plain.client, &stage.plain.server)?;
    let mut legs = [
        leg("direct", "direct", &stage.plain.client, SocketAddr::new(stage.plain.server.v4().into(), HTTP)),
        leg("two plain TCP relays", "relays", &stage.plain.client, relayed),
        leg("the mesh", MESH, &stage.frontend, SocketAddr::new(stage.backends[0].v4().into(), HTTP)),
    ];
    say.fact(format!(
        "GET of 1 KiB, {RATE} a second over {CONNECTIONS} connections, {ROUNDS} rounds of {:.1} s each in turn:",
        ROUND.as_secs_f64()
    ));
    for _ in 0..ROUNDS {
        for leg in &mut legs {
            let round = leg.place.inside(|| load(leg.target).run()).with_context(|| leg.name);
            let round = if leg.key == MESH { round? } else { round.here()? };
            leg.best = leg.best.min(round.quantile(0.99));
            match &mut leg.measured {
                Some(sum) => sum.add(&round)?,
                none => *none = Some(round),
            }
        }
    }
    let [direct, relays, mesh] = &legs;
    say.fact(format!("{:22} {:>10} {:>10} {:>12} {:>12}", "", "p50", "p99", "added p50", "added p99"));
    for leg in &legs {
        row(say, leg, direct)?;
    }
    let late = direct.measured.as_ref().context("nothing was measured")?.lateness.value_at_quantile(0.5);
    say.fact(format!("({} of each is the generator's own lateness)", millis(Duration::from_micros(late))));
    verdict(say, direct, relays, mesh)
}

fn leg<'a>(name: &'static str, key: &'static str, place: &'a Namespace, target: SocketAddr) -> Leg<'a> {
    Leg { name, key, place, target, measured: None, best: Duration::MAX }
}

fn load(target: SocketAddr) -> Load {
    Load { target, path: LOAD_PATH.to_owned(), rate: RATE, connections: CONNECTIONS, length: ROUND }
}

/// One relay in each pod; the address that leads through both.
fn relays(client: &Pod, server: &Pod) -> Result<SocketAddr> {
    let (first, second) =
        (SocketAddr::from((Ipv4Addr::LOCALHOST, RELAYS[0])), SocketAddr::new(server.v4().into(), RELAYS[1]));
    start(server, second, SocketAddr::new(server.v4().into(), HTTP))?;
    start(client, first, second)?;
    Ok(first)
}

fn start(pod: &Pod, at: SocketAddr, target: SocketAddr) -> Result<()> {
    let listener = pod.inside(|| TcpListener::bind(at)).with_context(|| format!("a plain relay at {at}")).here()?;
    listener.set_nonblocking(true)?;
    // Runs until the demo ends.
    pod.start(move || async move { relay(tokio::net::TcpListener::from_std(listener)?, target).await })?;
    Ok(())
}

fn row(say: &mut Say, leg: &Leg<'_>, direct: &Leg<'_>) -> Result<()> {
    let (p50, p99) = (quantile(leg, 0.5)?, quantile(leg, 0.99)?);
    let added = |of: Duration, share| -> Result<String> {
        Ok(format!("{:+.2} ms", (of.as_secs_f64() - quantile(direct, share)?.as_secs_f64()) * 1e3))
    };
    let (more50, more99) = if leg.key == "direct" { Default::default() } else { (added(p50, 0.5)?, added(p99, 0.99)?) };
    say.fact(
        format!("{:22} {:>10} {:>10} {more50:>12} {more99:>12}", leg.name, millis(p50), millis(p99))
            .trim_end()
            .to_owned(),
    );
    say.figure(&format!("{}_p50_ms", leg.key), p50.as_secs_f64() * 1e3);
    say.figure(&format!("{}_p99_ms", leg.key), p99.as_secs_f64() * 1e3);
    Ok(())
}

fn quantile(leg: &Leg<'_>, share: f64) -> Result<Duration> {
    Ok(leg.measured.as_ref().context("nothing was measured")?.quantile(share))
}

fn verdict(say: &mut Say, direct: &Leg<'_>, relays: &Leg<'_>, mesh: &Leg<'_>) -> Result<()> {
    for leg in [mesh, direct, relays] {
        let measured = leg.measured.as_ref().context("nothing was measured")?;
        let planned = load(leg.target).planned() * ROUNDS as u64;
        let all = if measured.failed == 0 && measured.answered == planned {
            Ok(())
        } else {
            let why = measured.failure.as_deref().unwrap_or("no reason");
            Err(anyhow!("{}: {} of {planned} requests were answered: {why}", leg.name, measured.answered))
        };
        if leg.key == MESH { all? } else { all.here()? }
    }
    let medians = [quantile(direct, 0.5)?, quantile(relays, 0.5)?, quantile(mesh, 0.5)?];
    for (times, allowance, name) in [
        (medians, ALLOWANCE, "median"),
        ([direct.best, relays.best, mesh.best], ALLOWANCE_P99, "99th percentile of its best round"),
    ] {
        say.fact(within(times, allowance, name)?);
    }
    Ok(())
}

/// What the mesh adds, and what it may beside what two relays add.
fn within([direct, relays, mesh]: [Duration; 3], allowance: Duration, name: &str) -> Result<String> {
    let (floor, ours) = (relays.saturating_sub(direct), mesh.saturating_sub(direct));
    let allowed = floor * 3 + allowance;
    ensure!(ours <= allowed, "the mesh adds {} at the {name}, more than {}", millis(ours), millis(allowed));
    Ok(format!(
        "the mesh adds {} at the {name}; it may add {}, three times the relays and {}",
        millis(ours),
        millis(allowed),
        millis(allowance)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_is_too_much_and_a_few_times_the_relays_is_not() {
        let ms = |numbers: [u64; 3]| numbers.map(Duration::from_millis);
        assert!(within(ms([1, 2, 5]), ALLOWANCE, "median").is_ok());
        assert!(within(ms([1, 2, 6]), ALLOWANCE, "median").is_err());
        let nagle = within(ms([1, 2, 41]), ALLOWANCE_P99, "99th percentile").unwrap_err();
        assert_eq!(nagle.to_string(), "the mesh adds 40.00 ms at the 99th percentile, more than 33.00 ms");
        assert!(within(ms([5, 1, 2]), ALLOWANCE, "median").is_ok(), "less than direct is no debt");
    }
}
