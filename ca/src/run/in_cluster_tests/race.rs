//! Two replicas that are told to take the same step at the same moment: the Secret's version lets one of them write, and the other one has to
//! say that what it made was never used.

use super::leader::exchange;
use super::*;

/// Chance has a part in who is where when the other writes. Far more than it takes.
const ROUNDS: usize = 40;

impl Replica {
    /// Serials of roots in its audit log with this outcome.
    fn roots_recorded(&self, outcome: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self._dir.path().join("state/audit.jsonl")).unwrap();
        let records = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let wanted = records.filter(|record| record["event"] == "root" && record["outcome"] == outcome);
        wanted.map(|record| record["serial"].as_str().unwrap().to_owned()).collect()
    }

    async fn follows(&self, stage: &str) -> Value {
        let began = tokio::time::Instant::now();
        loop {
            let seen = exchange(self, "GET", "/rotation").await.1;
            if seen["rotation"]["stage"] == stage {
                return seen;
            }
            assert!(began.elapsed() < Duration::from_secs(20), "{stage}: {seen}");
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn of_two_replicas_that_take_a_step_at_once_one_wins_and_the_other_says_it_was_superseded() {
    let (_server, api) = api_server().await;
    let (one, two) = tokio::join!(replica(api), replica(api));
    for round in 1..=ROUNDS {
        let prepare = "/rotation/prepare";
        let answers = tokio::join!(exchange(&one, "POST", prepare), exchange(&two, "POST", prepare));
        let (won, lost, loser) = match answers {
            (won, lost) if won.0 == 200 => (won.1, lost, &two),
            (lost, won) => (won.1, lost, &one),
        };
        assert_eq!(lost.0, 409, "round {round}: both took it: {}", lost.1);
        assert_eq!(won["rotation"]["stage"], "prepared", "{won}");
        let refused = lost.1["refused"].as_str().unwrap();
        assert!(refused.contains("prepared already"), "{refused}");
        let (first, second) = (one.follows("prepared").await, two.follows("prepared").await);
        assert_eq!(
            (&first["rotation"]["id"], &second["rotation"]["id"]),
            (&won["rotation"]["id"], &won["rotation"]["id"])
        );
        assert_eq!(first["bundle_generation"], second["bundle_generation"]);

        // It may have heard of the other's before it began; then it made nothing.
        let unused = loser.roots_recorded("superseded");
        if let Some(unused) = unused.last() {
            assert!(loser.roots_recorded("granted").contains(unused), "recorded before it was stored");
            assert!(!first.to_string().contains(unused.as_str()), "{first}");
            one.ask("good").await.unwrap();
            two.ask("good").await.unwrap();
            return;
        }
        let (code, back) = exchange(&one, "POST", "/rotation/abort").await;
        assert_eq!(code, 200, "{back}");
        tokio::join!(one.follows("aborted"), two.follows("aborted"));
    }
    panic!("in {ROUNDS} rounds they never met");
}
