//! A rotation that two replicas see together: pods that got their leaves from one and speak to the other, and a table that nobody else is told.

use countersign_api::ca::siblings_client::SiblingsClient;
use countersign_api::ca::{HoldersRequest, HoldingReport};
use countersign_credentials::Credentials;
use tokio::sync::watch;

use super::leader::{exchange, killed};
use super::*;

/// A pod, as its sidecar speaks for it.
struct Pod {
    token: &'static str,
    credentials: watch::Sender<Option<Arc<Credentials>>>,
}

impl Pod {
    async fn new(token: &'static str, from: &Replica) -> Self {
        let pod = Self { token, credentials: watch::Sender::new(None) };
        pod.renew(from, 0).await;
        pod
    }

    async fn renew(&self, from: &Replica, holds: u64) {
        let (_, svid) = from.leaf(self.token, holds).await.unwrap();
        let credentials = Credentials::new(Arc::new(svid), from.trusted(), from.clock.clone()).unwrap();
        self.credentials.send_replace(Some(Arc::new(credentials)));
    }

    fn channel(&self, to: &Replica) -> Channel {
        to.channel(TlsAs::Ourselves(self.credentials.subscribe()))
    }

    async fn tell(&self, to: &Replica, bundle_generation: u64) {
        let report = HoldingReport { bundle_generation, connections: None };
        CertificateAuthorityClient::new(self.channel(to)).report_holding(report).await.unwrap();
    }
}

fn missing(seen: &Value) -> Vec<&str> {
    let missing = seen["gate"]["missing"].as_array().unwrap();
    missing.iter().map(|missing| missing["pod"].as_str().unwrap()).collect()
}

/// Less than what the gate waits for after the last report, many times in a leaf's life.
const SETTLED: u64 = 12;

/// The gate opens by reports, long before time would open it.
async fn opens(replica: &Replica, clock: &TestClock) {
    clock.advance(SETTLED);
    let seen = replica.until("the gate is open", |seen| seen["gate"]["open"] == true).await;
    assert!(seen["gate"]["opens_at"].as_str().unwrap() > seen["time"].as_str().unwrap(), "not by time: {seen}");
    assert_eq!((&seen["gate"]["ready"], &seen["gate"]["holders"]), (&json!(3), &json!(3)), "{seen}");
}

#[tokio::test]
async fn a_rotation_of_two_replicas_opens_by_the_reports_that_each_has_heard_and_its_report_names_all() {
    let (_server, api) = api_server().await;
    let clock = TestClock::from_now();
    let (one, two) = tokio::join!(replica_by(api, &clock), replica_by(api, &clock));
    let pods = [Pod::new("good-a", &one).await, Pod::new("good-b", &two).await, Pod::new("good-c", &one).await];
    let [a, b, c] = &pods;
    one.step("prepare").await;
    two.at("prepared").await;
    let seen = two.rotation().await;
    assert_eq!(missing(&seen), ["frontend-1-a", "frontend-1-b", "frontend-1-c"], "{seen}");
    a.tell(&one, 2).await;
    b.tell(&two, 2).await;
    clock.advance(SETTLED);
    assert_eq!(missing(&one.rotation().await), ["frontend-1-c"]);
    assert!(one.too_early("activate").await.contains("1 of 3 holders"), "whoever it is that lacks");
    c.tell(&two, 2).await;
    opens(&one, &clock).await;
    two.step("activate").await;
    one.at("active").await;
    one.turned().await;
    two.turned().await;

    a.renew(&two, 2).await;
    b.renew(&one, 2).await;
    c.renew(&two, 2).await;
    for (pod, to) in [(a, &one), (b, &two)] {
        pod.tell(to, 2).await;
    }
    clock.advance(SETTLED);
    let seen = two.rotation().await;
    assert_eq!((missing(&seen), &seen["gate"]["open"]), (vec!["frontend-1-c"], &json!(false)), "{seen}");
    c.tell(&one, 2).await;
    opens(&two, &clock).await;
    one.step("retire").await;
    two.at("retired").await;

    let report = exchange(&two, "GET", "/rotation/report").await.1["report"].clone();
    let named: Vec<_> = report["holders"].as_array().unwrap().iter().map(|one| one["pod"].as_str().unwrap()).collect();
    assert_eq!(named, ["frontend-1-a", "frontend-1-b", "frontend-1-c"]);
    assert_eq!(report["totals"]["all_holders_known"], true, "{report}");
    assert_eq!(report["totals"]["leaves_of_the_new_root"], 3);
    let told: Vec<_> = report["replicas"].as_array().unwrap().iter().map(|one| one["told"] == true).collect();
    assert_eq!(told, [true, true], "{report}");
    assert!(report["rotation"]["stages"].as_array().unwrap().iter().all(|passed| passed["forced"] == false));
}

#[tokio::test]
async fn what_a_lost_replica_had_heard_is_missed_and_the_report_says_who_did_not_tell() {
    let (_server, api) = api_server().await;
    let clock = TestClock::from_now();
    let (one, two) = tokio::join!(replica_by(api, &clock), replica_by(api, &clock));
    let (a, _b) = (Pod::new("good-a", &one).await, Pod::new("good-b", &two).await);
    one.step("prepare").await;
    a.tell(&one, 2).await;
    two.at("prepared").await;
    let gone = two.ca.listen.to_string();
    killed(two);
    clock.advance(SETTLED);
    let seen = one.rotation().await;
    assert!(missing(&seen).is_empty() && seen["gate"]["open"] == false, "{seen}");
    assert!(seen["gate"]["waits"].to_string().contains(&format!("({gone}) does not answer")), "{seen}");
    let report = exchange(&one, "GET", "/rotation/report").await.1["report"].clone();
    assert_eq!(report["totals"]["all_holders_known"], false);
    let silent: Vec<_> = report["replicas"].as_array().unwrap().iter().filter(|one| one["told"] == false).collect();
    assert_eq!((silent.len(), &silent[0]["address"]), (1, &json!(gone)), "{report}");
    assert_eq!(one.step("abort").await["rotation"]["stage"], "aborted");
}

#[tokio::test]
async fn nobody_but_the_ca_itself_is_told_who_holds_what() {
    let (_server, api) = api_server().await;
    let one = replica(api).await;
    let pod = Pod::new("good", &one).await;
    let ask = |channel| async { SiblingsClient::new(channel).holders(HoldersRequest::default()).await.unwrap_err() };
    let refused = ask(pod.channel(&one)).await;
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let refused = ask(one.anonymous()).await;
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
}
