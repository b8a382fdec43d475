//! The bars that we set ourselves (issue 4), and how our own figures stand beside them.
//!
//! Called by `report`. It must never judge by figures from two runs.

use crate::collect::{Figure, MIB, PeerResults, Results};

/// One bar, as a ratio to a peer or as an absolute figure.
struct Target {
    what: &'static str,
    figure: Source,
    beside: Option<&'static str>,
    bar: f64,
    /// What would be far better; not every bar has one.
    moonshot: Option<f64>,
    /// Whether less is better.
    less: bool,
    unit: &'static str,
}

/// Where a figure is from.
#[derive(Clone, Copy)]
enum Source {
    /// One of the rounds' figures, by its name.
    Rounds(&'static str),
    /// The CA's signing with these tokens, by turns.
    Signing(&'static str),
    /// Measured once, or made of several.
    Alone(fn(&Results, &PeerResults) -> Option<f64>),
}

impl Source {
    fn of(self, results: &Results, peer: &PeerResults) -> Option<f64> {
        match self {
            Self::Alone(figure) => figure(results, peer),
            _ => self.turns(results, peer).map(|figure| figure.median),
        }
    }

    fn turns<'a>(self, results: &'a Results, peer: &'a PeerResults) -> Option<&'a Figure> {
        match self {
            Self::Rounds(name) => peer.figures.get(name),
            Self::Signing(tokens) => Some(&results.signing.iter().find(|signing| signing.tokens == tokens)?.turns),
            Self::Alone(_) => None,
        }
    }
}

const fn ratio(what: &'static str, figure: Source, bar: f64, moonshot: f64, less: bool) -> Target {
    Target { what, figure, beside: Some("relay"), bar, moonshot: Some(moonshot), less, unit: "x" }
}

const fn signed(what: &'static str, tokens: &'static str) -> Target {
    Target { beside: None, unit: "/s", ..ratio(what, Source::Signing(tokens), 4000.0, 8000.0, false) }
}

const TARGETS: [Target; 13] = [
    ratio("p50 at 1,000 req/s", Source::Rounds("rate.p50_ms"), 1.05, 0.8, true),
    ratio("p99 at 1,000 req/s", Source::Rounds("rate.p99_ms"), 1.05, 0.8, true),
    ratio("CPU per 10,000 requests at that rate", Source::Rounds("rate.cpu"), 1.1, 0.8, true),
    ratio("max requests/s, 64 connections", Source::Rounds("full.per_s"), 0.97, 1.3, false),
    ratio("new connections/s", Source::Rounds("fresh.per_s"), 1.1, 1.4, false),
    Target { moonshot: None, ..ratio("CPU per 10,000 new connections", Source::Rounds("fresh.cpu"), 0.85, 0.85, true) },
    Target {
        beside: Some("envoy-tcp"),
        ..ratio("bulk, one stream down: CPU per GB", Source::Rounds("down1.cpu"), 0.85, 0.7, true)
    },
    Target {
        beside: Some("envoy-tcp"),
        ..ratio("bulk, one stream up: CPU per GB", Source::Rounds("up1.cpu"), 0.85, 0.7, true)
    },
    Target { beside: None, unit: "MiB", ..ratio("one idle sidecar, RSS", Source::Alone(idle_rss), 8.0, 5.0, true) },
    Target {
        beside: None,
        unit: "KiB",
        ..ratio("one idle connection, both sidecars, PSS", Source::Alone(held_pss), 24.0, 8.0, true)
    },
    Target {
        beside: None,
        unit: "us",
        ..ratio("a decision with 10,000 rules, 20 of the workload", Source::Alone(decision), 2.0, 0.3, true)
    },
    signed("SVIDs signed per second and core, RS256 tokens (Kubernetes' own)", "RS256"),
    signed("SVIDs signed per second and core, ES256 tokens", "ES256"),
];

fn decision(results: &Results, _: &PeerResults) -> Option<f64> {
    results.decision.map(|decision| decision.allowed_ns / 1000.0)
}

fn idle_rss(_: &Results, peer: &PeerResults) -> Option<f64> {
    peer.idle.map(|idle| idle.client.rss.max(idle.server.rss) as f64 / MIB)
}

fn held_pss(_: &Results, peer: &PeerResults) -> Option<f64> {
    peer.per_connection(|memory| memory.pss).map(|bytes| bytes / 1024.0)
}

/// How a bar was met.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// The figure.
    pub what: &'static str,
    /// A ratio of medians, or with its unit.
    pub ours: f64,
    /// The lowest and the highest of all turns, or of the ratios of two turns side by side.
    pub turns: Option<[f64; 2]>,
    /// Beside whom.
    pub beside: Option<&'static str>,
    /// To be reached.
    pub bar: f64,
    /// Of figure, turns and bar; `x` is a ratio.
    pub unit: &'static str,
    /// Whether less is better.
    pub less: bool,
    /// In words.
    pub verdict: String,
}

/// Our own figures beside the bars, as far as they were measured.
#[must_use]
pub fn judge(results: &Results) -> Vec<Judged> {
    TARGETS.iter().filter_map(|target| judge_one(results, target)).collect()
}

fn judge_one(results: &Results, target: &Target) -> Option<Judged> {
    let peer = |name: &str| results.peers.iter().find(|peer| peer.name == name);
    let (us, figure) = (peer("countersign")?, target.figure);
    let (own, own_turns) = (figure.of(results, us)?, figure.turns(results, us));
    let own_turns = own_turns.map(|figure| figure.rounds.as_slice()).unwrap_or_default();
    let (ours, mut turns) = match target.beside {
        Some(name) => {
            let base = peer(name)?;
            let theirs = figure.turns(results, base).map(|figure| figure.rounds.as_slice()).unwrap_or_default();
            let ratios = own_turns.iter().zip(theirs).map(|(ours, base)| ours / base).collect();
            (own / figure.of(results, base)?, ratios)
        }
        None => (own, own_turns.to_vec()),
    };
    turns.sort_unstable_by(f64::total_cmp);
    let turns = turns.first().zip(turns.last()).map(|(low, high)| [*low, *high]);
    let margin = |bar: f64| if target.less { (bar - ours) / bar } else { (ours - bar) / bar };
    let mut verdict = match (margin(target.bar), target.moonshot.map(margin)) {
        (missed, _) if missed < 0.0 => format!("missed by {:.0}%", -missed * 100.0),
        (_, Some(moon)) if moon >= 0.0 => "met, moonshot too".to_owned(),
        _ => "met".to_owned(),
    };
    // Turns on both sides of the bar: the machine moves more than the figures are apart.
    if turns.is_some_and(|[low, high]| low < target.bar && target.bar < high) {
        verdict.push_str("; turns on both sides of the bar");
    }
    let Target { what, beside, bar, unit, less, .. } = *target;
    Some(Judged { what, ours, turns, beside, bar, unit, less, verdict })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::report::text;
    use crate::signing::Signing;

    pub(crate) fn results(ours: f64, relay: f64) -> Results {
        let peer = |name: &str, value: f64| {
            let mut peer = PeerResults { name: name.into(), ..PeerResults::default() };
            peer.figures.entry("rate.p50_ms".into()).or_default().add(value);
            peer.figures.entry("full.per_s".into()).or_default().add(value);
            peer
        };
        Results {
            machine: crate::machine::Machine::this(),
            began: "2026-11-21T10:00:00Z".into(),
            took: 60.0,
            rounds: 1,
            turns: 1,
            sizes: crate::work::Sizes::SHORT,
            peers: vec![peer("relay", relay), peer("countersign", ours)],
            generator: Vec::new(),
            generator_unchecked: None,
            signing: Vec::new(),
            decision: None,
            noise: crate::collect::NoiseReport::default(),
        }
    }

    #[test]
    fn a_bar_is_met_or_missed_by_the_ratio_of_one_run() {
        let verdicts =
            |ours, relay| judge(&results(ours, relay)).into_iter().map(|judged| judged.verdict).collect::<Vec<_>>();
        assert_eq!(verdicts(1.0, 1.0), ["met", "met"]);
        assert_eq!(verdicts(0.7, 1.0), ["met, moonshot too", "missed by 28%"]);
        assert_eq!(verdicts(2.1, 1.0), ["missed by 100%", "met, moonshot too"]);
    }

    /// A median beside a bar says little where single turns lie on both sides of it.
    #[test]
    fn turns_on_both_sides_of_a_bar_are_told() {
        let mut results = results(1.0, 1.0);
        for (peer, turns) in results.peers.iter_mut().zip([[1.0, 1.0], [1.01, 1.3]]) {
            let figure = peer.figures.get_mut("rate.p50_ms").unwrap();
            turns.into_iter().for_each(|turn| figure.add(turn));
        }
        let p50 = judge(&results).swap_remove(0);
        assert_eq!((p50.verdict.as_str(), p50.turns), ("met; turns on both sides of the bar", Some([1.0, 1.3])));
        assert!(
            text(&results).contains("| 1.01 x relay | 1.00-1.30 | at most 1.05 x | met; turns"),
            "{}",
            text(&results)
        );
    }

    #[test]
    fn the_turns_of_what_has_no_peer_are_told_too() {
        let mut results = results(1.0, 1.0);
        let mut turns = Figure::default();
        [3740.0, 3853.0, 4265.0].into_iter().for_each(|turn| turns.add(turn));
        let (issued, seconds, user, system, foreign) = (1, 1.0, 1.0, 0.0, 0.0);
        results.signing = vec![Signing { tokens: "RS256", issued, seconds, user, system, turns, foreign }];
        let row = "(Kubernetes' own) | 3853 /s | 3740-4265 | at least 4000 /s | missed by 4%; turns on both sides of the bar |";
        assert!(text(&results).contains(row), "{}", text(&results));
    }
}
