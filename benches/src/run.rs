//! One run: every peer started, held to its claim, then measured in interleaved rounds.
//!
//! Called by `countersign-bench` and by the short test. Peers take turns at each workload, so that a noisy moment of the machine hits
//! neighbours of one comparison alike. It must never drop a peer silently.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use countersign_kit::Inside;
use countersign_kit::load::{Idle, Pace, Plan};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::collect::{NoiseReport, PeerResults, Point, Results, RunNoise, Sides};
use crate::decision::Decision;
use crate::machine::Machine;
use crate::peers::{self, Peer, Up};
use crate::proc::{Memory, memory, tree};
use crate::signing::Signing;
use crate::stage::Stage;
use crate::work::{Sizes, Work, beside_others, once};
use crate::{decision, growth, report, signing, syscalls, wrk};

/// Others may keep so many processors busy, on average, before a run is repeated.
pub const NOISY: f64 = 0.15;
/// Repetitions of one noisy run, and of all of them: the whole stays bounded.
const REPEATS: usize = 2;
const MOST_REPEATS: usize = 60;
/// Idle connections at which memory is read.
const HELD: [usize; 4] = [0, 100, 300, 1000];
/// Requests a second offered for throughput against latency, until a peer cannot follow.
const CURVE: [u32; 9] = [1000, 4000, 8000, 12_000, 16_000, 20_000, 26_000, 34_000, 45_000];
/// Bars and docs/performance.md compare these: they take [`TURNS`] turns in a round.
pub const COMPARED: [&str; 4] = ["relay", "relay-redirected", "countersign", "envoy-tcp"];
const TURNS: usize = 2;
/// Turns of the CA's signing with each kind of token.
const SIGNING: usize = 3;
/// Between two runs: sockets that are closing, logs, allocators.
const PAUSE: Duration = Duration::from_millis(100);

/// What is wanted.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Interleaved rounds.
    pub rounds: usize,
    /// Correctness alone.
    pub short: bool,
    /// Growth instead of the table.
    pub growth: bool,
    /// Only these peers.
    pub only: Vec<String>,
    /// Only these workloads, by their keys, and nothing besides: to compare two builds. No run is repeated for its noise then.
    pub work: Vec<String>,
    /// Another build of the sidecar, measured beside the present one.
    pub before: Option<std::path::PathBuf>,
    /// Where the report goes.
    pub docs: Option<std::path::PathBuf>,
}

/// Runs, prints, writes; the exit code.
///
/// # Errors
/// If nothing could be measured.
pub fn run(inside: Inside, options: &Options) -> Result<u8> {
    if options.growth {
        return growth::run(inside, options);
    }
    let results = measure(inside, options)?;
    print!("{}", report::text(&results));
    if let Some(docs) = &options.docs {
        report::write(docs, &results)?;
        println!("written: {0}/performance.md, {0}/performance/", docs.display());
    }
    let broken =
        results.peers.iter().any(|peer| peer.not_run.as_ref().is_some_and(|reason| reason.starts_with("failed")));
    Ok(u8::from(broken))
}

/// Measures all that is wanted.
///
/// # Errors
/// If the stage cannot be made, or no peer could be measured.
pub fn measure(inside: Inside, options: &Options) -> Result<Results> {
    let began = Instant::now();
    let stamp = OffsetDateTime::now_utc().format(&Rfc3339)?;
    let sizes = if options.short { Sizes::SHORT } else { Sizes::FULL };
    let stage = Stage::new(inside)?;
    let mut run = Run {
        noise: NoiseReport { limit: NOISY, ..NoiseReport::default() },
        sizes,
        once: options.short || !options.work.is_empty(),
        turns: if options.short { 1 } else { TURNS },
        short: options.short,
        stage: &stage,
    };
    let mut peers = run.start(options)?;
    let (mut generator, mut generator_unchecked) = (Vec::new(), None);
    for round in 1..=options.rounds {
        for work in Work::ALL.into_iter().filter(|work| options.work.is_empty() || options.work.contains(&work.key())) {
            say(began, &format!("round {round} of {}: {}", options.rounds, work.key()));
            for turn in 0..run.turns {
                for peer in peers.iter_mut().filter(|peer| turn == 0 || peer.compared()) {
                    run.turn(work, peer);
                }
            }
        }
    }
    if options.work.is_empty() {
        say(began, "throughput against latency");
        peers.iter_mut().for_each(|peer| run.curve(peer));
    }
    if !options.short && options.work.is_empty() {
        say(began, "system calls; the generator beside wrk");
        for peer in &mut peers {
            run.calls(peer);
            if let Some(up) =
                peer.up.as_ref().filter(|_| ["direct", "relay-128k"].contains(&peer.results.name.as_str()))
            {
                match wrk::check(&peer.results.name, up, &sizes) {
                    Ok(check) => generator.push(check),
                    Err(error) => generator_unchecked = Some(format!("{error:#}")),
                }
            }
        }
    }
    let (signing, decision) = run.own(options)?;
    if options.short {
        // Of ours a test holds them: they do not depend on how busy the machine is.
        peers.iter_mut().filter(|peer| peer.results.name == "countersign").for_each(|peer| run.calls(peer));
    }
    for peer in &mut peers {
        peer.results.after = peer.up.as_ref().and_then(|up| sides(up).ok());
    }
    ensure!(peers.iter().any(|peer| !peer.results.figures.is_empty()), "no peer could be measured");
    Ok(Results {
        machine: Machine::this(),
        began: stamp,
        took: began.elapsed().as_secs_f64(),
        rounds: options.rounds,
        turns: run.turns,
        sizes,
        peers: peers.into_iter().map(|peer| peer.results).collect(),
        generator,
        generator_unchecked,
        signing,
        decision,
        noise: run.noise,
    })
}

struct Run<'a> {
    stage: &'a Stage,
    sizes: Sizes,
    short: bool,
    /// No run is repeated.
    once: bool,
    turns: usize,
    noise: NoiseReport,
}

struct Running<'a> {
    results: PeerResults,
    up: Option<Up<'a>>,
}

impl Running<'_> {
    fn compared(&self) -> bool {
        COMPARED.contains(&self.results.name.as_str()) || self.results.name == "countersign-before"
    }

    /// What cannot be measured is named, and not asked again.
    fn fail(&mut self, what: &str, error: &anyhow::Error) {
        let reason = format!("failed: {what}: {error:#}");
        eprintln!("{}: {reason}", self.results.name);
        self.results.not_run = Some(reason);
        self.up = None;
    }
}

impl<'a> Run<'a> {
    fn start(&mut self, options: &Options) -> Result<Vec<Running<'a>>> {
        let (only, all) = (&options.only, peers::all(options.before.as_deref()));
        for name in only {
            let names: Vec<&str> = all.iter().map(|peer| peer.name()).collect();
            ensure!(names.contains(&name.as_str()), "no peer {name}; there are {}", names.join(", "));
        }
        let wanted = |peer: &dyn Peer| only.is_empty() || only.iter().any(|name| name == peer.name());
        let mut running = Vec::new();
        for peer in all.iter().filter(|peer| wanted(peer.as_ref())) {
            let mut one = Running { results: describe(peer.as_ref()), up: None };
            match one.results.not_run.clone() {
                Some(reason) => eprintln!("{}: not run: {reason}", peer.name()),
                None => match self.bring_up(peer.as_ref(), &mut one.results) {
                    Ok(up) => one.up = Some(up),
                    Err(error) => one.fail("starting", &error),
                },
            }
            running.push(one);
        }
        Ok(running)
    }

    /// Started, held to its claim, and looked at before any load has touched it.
    fn bring_up(&self, peer: &dyn Peer, results: &mut PeerResults) -> Result<Up<'a>> {
        eprintln!("starting {}", peer.name());
        let up = peer.start(self.stage)?;
        up.ready()?;
        if peer.claims_mtls() {
            let guarded = up.guarded.as_ref().context("claims mutual TLS, and names no address to try it on")?;
            results.refused = Some(guarded.refusal()?);
        }
        if !up.client.is_empty() {
            results.idle = Some(sides(&up)?);
            results.held = self.hold(&up)?;
        }
        // Caches, lazy parts, kept connections.
        let plan = Plan { connections: self.sizes.full, length: PAUSE * 3, ..Plan::new(up.target, "/1024") };
        up.place.inside(|| plan.run(&mut |_| true))?;
        Ok(up)
    }

    /// Memory with more and more idle connections.
    fn hold(&self, up: &Up<'_>) -> Result<Vec<(usize, Memory)>> {
        let numbers: &[usize] = if self.short { &HELD[..2] } else { &HELD };
        up.place.inside(|| {
            let mut idle = Idle::open(up.target, "/16", 0)?;
            let mut held = Vec::new();
            for number in numbers {
                idle.grow_to(*number)?;
                std::thread::sleep(PAUSE * 3);
                held.push((*number, both(up.client.as_slice(), &up.server)?));
            }
            ensure!(
                idle.still_open() == idle.len(),
                "{} of {} idle connections were closed",
                idle.len() - idle.still_open(),
                idle.len()
            );
            Ok(held)
        })
    }

    /// What has no peer: the CA's signing, and a decision. Left out where only other peers or some workloads are wanted.
    fn own(&mut self, options: &Options) -> Result<(Vec<Signing>, Option<Decision>)> {
        let only = &options.only;
        let wanted = options.work.is_empty() && (only.is_empty() || only.iter().any(|name| name == "countersign"));
        if !wanted || peers::all(None).iter().any(|peer| peer.name() == "countersign" && peer.lacks().is_some()) {
            return Ok((Vec::new(), None));
        }
        eprintln!("the CA's signing; a decision");
        let length = if self.short { PAUSE * 2 } else { Duration::from_secs(4) };
        let mut signing: Vec<Signing> = Vec::new();
        for _ in 0..if self.short { 1 } else { SIGNING } {
            for tokens in signing::TOKENS {
                let one = signing::measure(self.stage.inside(), length, tokens).context("the CA's signing")?;
                let (peer, work, foreign) = ("ca".to_owned(), format!("signing {}", one.tokens), one.foreign);
                self.noise.runs.push(RunNoise { peer, work, foreign, counts: true });
                match signing.iter_mut().find(|sum| sum.tokens == one.tokens) {
                    Some(sum) => sum.add(&one),
                    None => signing.push(one),
                }
            }
        }
        let decision = decision::measure(if self.short { 100 } else { 10_000 }).context("a decision")?;
        Ok((signing, Some(decision)))
    }

    /// One workload, once, on one peer; again where others were too busy.
    fn turn(&mut self, work: Work, peer: &mut Running<'_>) {
        let Some(up) = &peer.up else { return };
        let mut best: Option<(usize, crate::work::Outcome)> = None;
        for attempt in 0..=REPEATS {
            std::thread::sleep(PAUSE);
            let outcome = match once(work, up, &self.sizes) {
                Ok(outcome) => outcome,
                Err(error) => return peer.fail(&work.key(), &error),
            };
            let foreign = outcome.foreign;
            let run = RunNoise { peer: peer.results.name.clone(), work: work.key(), foreign, counts: false };
            self.noise.runs.push(run);
            if best.as_ref().is_none_or(|(_, best)| foreign < best.foreign) {
                best = Some((self.noise.runs.len() - 1, outcome));
            }
            let again = foreign > NOISY && !self.once && attempt < REPEATS;
            if !again || self.noise.thrown_away() > MOST_REPEATS {
                break;
            }
        }
        if let Some((run, outcome)) = best {
            self.noise.runs[run].counts = true;
            if let Err(error) = peer.results.add(work, outcome) {
                peer.fail(&work.key(), &error);
            }
        }
    }

    fn curve(&mut self, peer: &mut Running<'_>) {
        let Some(up) = &peer.up else { return };
        let (rates, length) = if self.short { (&CURVE[..1], PAUSE * 2) } else { (&CURVE[..], Duration::from_secs(1)) };
        for &offered in rates {
            let plan = Plan {
                pace: Pace::Rate(offered),
                connections: self.sizes.full,
                length,
                ..Plan::new(up.target, &format!("/{}", self.sizes.payload))
            };
            std::thread::sleep(PAUSE);
            match up.place.inside(|| beside_others(|| plan.run(&mut |_| true))) {
                Err(error) => return peer.fail("throughput against latency", &error),
                Ok((measured, foreign)) => {
                    let (name, work) = (peer.results.name.clone(), format!("curve at {offered}"));
                    self.noise.runs.push(RunNoise { peer: name, work, foreign, counts: true });
                    let ms = |share| measured.quantile(share).as_secs_f64() * 1e3;
                    let per_s = measured.throughput();
                    peer.results.curve.push(Point {
                        offered: offered.into(),
                        per_s,
                        p50_ms: ms(0.5),
                        p99_ms: ms(0.99),
                    });
                    if per_s < 0.93 * f64::from(offered) {
                        return;
                    }
                }
            }
        }
    }

    fn calls(&self, peer: &mut Running<'_>) {
        let Some(up) = peer.up.as_ref().filter(|up| !up.client.is_empty()) else { return };
        match syscalls::count(up, self.stage, self.sizes.payload) {
            Ok(calls) => peer.results.calls = Some(calls),
            Err(error) => peer.results.calls_uncounted = Some(format!("{error:#}")),
        }
    }
}

/// What is known of a peer before it runs; `not_run` where it cannot.
fn describe(peer: &dyn Peer) -> PeerResults {
    let lacks = peer.lacks();
    let size = || peer.binary().and_then(|file| std::fs::metadata(file).ok()).map(|meta| meta.len());
    PeerResults {
        name: peer.name().to_owned(),
        about: peer.about().to_owned(),
        version: if lacks.is_none() { peer.version() } else { String::new() },
        claims_mtls: peer.claims_mtls(),
        binary_bytes: if lacks.is_none() { size() } else { None },
        not_run: lacks,
        ..PeerResults::default()
    }
}

fn sides(up: &Up<'_>) -> Result<Sides> {
    Ok(Sides { client: memory(&tree(&up.client)?)?, server: memory(&tree(&up.server)?)? })
}

fn both(client: &[u32], server: &[u32]) -> Result<Memory> {
    memory(&[tree(client)?, tree(server)?].concat())
}

fn say(began: Instant, what: &str) {
    eprintln!("[{:>5.0} s] {what}", began.elapsed().as_secs_f64());
}
