//! A rotation whose leader is lost: the replica that took a step dies, and another one goes on, or goes back. By a clock that the test moves, so
//! that a leaf's life passes at once.

use super::*;

pub(super) const HOUR: u64 = 3600;
/// A refresh of the state, a renewal of the own SVID: a second or so each.
const SOON: Duration = Duration::from_secs(20);

pub(super) async fn exchange(replica: &Replica, method: &str, path: &str) -> (u16, Value) {
    let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    let unix = tokio::net::UnixStream::connect(&replica.ca.admin).await.unwrap();
    let answer = crate::testing::exchange(unix, &request).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    (code, serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}")))
}

impl Replica {
    pub(super) async fn rotation(&self) -> Value {
        exchange(self, "GET", "/rotation").await.1
    }

    pub(super) async fn step(&self, step: &str) -> Value {
        let (code, answer) = exchange(self, "POST", &format!("/rotation/{step}")).await;
        assert_eq!(code, 200, "{step}: {answer}");
        answer
    }

    pub(super) async fn too_early(&self, step: &str) -> String {
        let (code, answer) = exchange(self, "POST", &format!("/rotation/{step}")).await;
        assert_eq!(code, 409, "{step}: {answer}");
        answer["refused"].as_str().unwrap().to_owned()
    }

    /// Until this replica has that in force, which another one has stored.
    pub(super) async fn until(&self, what: &str, good: impl Fn(&Value) -> bool) -> Value {
        let began = tokio::time::Instant::now();
        loop {
            let seen = self.rotation().await;
            if good(&seen) {
                return seen;
            }
            assert!(began.elapsed() < SOON, "{what}: {seen}");
            tokio::task::yield_now().await;
        }
    }

    pub(super) async fn at(&self, stage: &str) -> Value {
        self.until(stage, |seen| seen["rotation"]["stage"] == stage).await
    }

    /// Until a leaf's life has made the gate open, and its own SVID is that of the root that signs.
    async fn passable(&self, clock: &TestClock) {
        clock.advance(HOUR + 10);
        self.until("the gate is open", |seen| seen["gate"]["open"] == true).await;
        self.turned().await;
    }

    /// Until its own SVID is of the root that signs: it then trusts both.
    pub(super) async fn turned(&self) {
        let good = |seen: &Value| seen["own_svid_root_sha256"] == seen["signing_root"]["sha256"];
        self.until("its own SVID is of the root that signs", good).await;
    }

    fn roots(&self) -> usize {
        self.bundle().matches("BEGIN CERTIFICATE").count()
    }
}

/// Dies without a word: nothing is drained, nothing is stored any more.
pub(super) fn killed(replica: Replica) {
    drop(replica);
}

#[tokio::test]
async fn a_replica_lost_after_each_step_leaves_the_rotation_to_another_that_ends_it() {
    let (_server, api) = api_server().await;
    let clock = TestClock::from_now();
    let (one, two) = tokio::join!(replica_by(api, &clock), replica_by(api, &clock));
    one.ask("good").await.unwrap();
    let old = one.rotation().await["signing_root"]["sha256"].clone();
    let id = one.step("prepare").await["rotation"]["id"].clone();
    let lost = one.ca.listen.to_string();
    killed(one);

    assert_eq!(two.at("prepared").await["rotation"]["id"], id);
    let refused = two.too_early("activate").await;
    assert!(refused.contains("activate is too early"), "whom the lost one signed for nobody knows: {refused}");
    assert!(refused.contains(&format!("({lost}) does not answer")), "{refused}");
    two.passable(&clock).await;
    two.at("distributed").await;
    let three = replica_by(api, &clock).await;
    let active = two.step("activate").await;
    assert_ne!(active["signing_root"]["sha256"], old);
    killed(two);

    assert_eq!(three.at("active").await["signing_root"], active["signing_root"]);
    let leaf = three.ask("good").await.unwrap();
    assert_eq!(
        hex_of(&leaf.bundle.unwrap().signing_root_sha256),
        active["signing_root"]["sha256"],
        "it signs with the new root"
    );
    let refused = three.too_early("retire").await;
    assert!(refused.contains("retire is too early") && refused.contains(" does not answer"), "{refused}");
    three.passable(&clock).await;
    let four = replica_by(api, &clock).await;
    three.step("retire").await;
    killed(three);

    let over = four.at("retired").await;
    assert_eq!((&over["rotation"]["id"], &over["under_way"]), (&id, &Value::from(false)));
    assert_eq!(over["signing_root"], active["signing_root"]);
    let passed = over["rotation"]["stages"].as_array().unwrap();
    let stages: Vec<_> = passed.iter().map(|passed| passed["stage"].as_str().unwrap()).collect();
    assert_eq!(stages, ["prepared", "distributed", "active", "retired"]);
    assert!(passed.iter().all(|passed| passed["forced"] == false), "{over}");
    assert_eq!(four.roots(), 1);
    four.ask("good").await.unwrap();
    assert!(exchange(&four, "GET", "/rotation/report").await.1["report"]["rotation"]["id"] == id);
}

#[tokio::test]
async fn a_replica_lost_before_or_after_the_new_root_signs_leaves_the_way_back_to_another() {
    let (_server, api) = api_server().await;
    let clock = TestClock::from_now();
    let (one, two) = tokio::join!(replica_by(api, &clock), replica_by(api, &clock));
    let root = two.bundle();
    let old = two.rotation().await["signing_root"].clone();
    one.step("prepare").await;
    killed(one);
    two.at("prepared").await;
    let back = two.step("abort").await;
    assert_eq!((&back["rotation"]["stage"], &back["signing_root"]), (&Value::from("aborted"), &old));

    // Once more, and further.
    two.step("prepare").await;
    two.passable(&clock).await;
    let three = replica_by(api, &clock).await;
    two.step("activate").await;
    killed(two);
    three.at("active").await;
    let four = replica_by(api, &clock).await;
    assert_eq!(three.step("abort").await["rotation"]["stage"], "returning");
    killed(three);
    assert_eq!(four.at("returning").await["signing_root"], old);
    assert!(four.too_early("retire").await.contains("retire is too early"), "leaves of the new root may live");
    four.passable(&clock).await;
    let over = four.step("retire").await;
    assert_eq!((&over["rotation"]["stage"], &over["signing_root"]), (&Value::from("aborted"), &old));
    let began = tokio::time::Instant::now();
    while four.bundle() != root {
        assert!(began.elapsed() < SOON, "the bundle is as it was: {}", four.bundle());
        tokio::task::yield_now().await;
    }
    four.ask("good").await.unwrap();
}

fn hex_of(bytes: &[u8]) -> String {
    crate::state::hex(bytes)
}
