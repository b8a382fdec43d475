//! The whole source against an API server in memory: lists, watches, breaks, and statuses that are written.

#[path = "tests/api.rs"]
mod api;

use std::net::IpAddr;

use serde_json::{Value, json};
use tokio::sync::watch::Receiver;

use self::api::FakeApi;
use super::*;
use crate::index::Holder;
use crate::testing::trust_domain;

const PODS: &str = "/api/v1/pods";
const CIDRS: &str = "/apis/networking.k8s.io/v1/servicecidrs";
const POLICIES: &str = "/apis/policy.countersign.dev/v1alpha1/authorizationpolicies";

fn pod(name: &str, address: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}")},
        "spec": {
            "serviceAccountName": "backend",
            "initContainers": [{"name": "countersign-proxy", "restartPolicy": "Always"}],
        },
        "status": {"phase": "Running", "podIPs": [{"ip": address}]},
    })
}

fn policy(name: &str, generation: i64, port: i64) -> Value {
    json!({
        "apiVersion": "policy.countersign.dev/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": "shop", "uid": name, "generation": generation},
        "spec": {"action": "Allow", "rules": [{"to": [{"ports": [port]}]}]},
    })
}

struct Running {
    api: FakeApi,
    snapshots: Receiver<Arc<Snapshot>>,
    task: tokio::task::JoinHandle<Result<(), JoinError>>,
}

impl Running {
    fn start(api: &FakeApi) -> Self {
        Self::with(api, Ranges { pods: Vec::new(), services: Vec::new() })
    }

    fn with(api: &FakeApi, ranges: Ranges) -> Self {
        let (publish, snapshots) = tokio::sync::watch::channel(Arc::new(Snapshot::nothing()));
        let task = tokio::spawn(run(api.client(), trust_domain(), ranges, publish));
        Running { api: api.clone(), snapshots, task }
    }

    async fn until(&mut self, what: &str, holds: impl FnMut(&Arc<Snapshot>) -> bool) -> Arc<Snapshot> {
        let waiting = self.snapshots.wait_for(holds);
        let found = tokio::time::timeout(Duration::from_secs(300), waiting).await;
        found.unwrap_or_else(|_| panic!("{what}: never")).unwrap().clone()
    }

    async fn until_there(&mut self, address: &str, there: bool) {
        self.until(address, |snapshot| holds(snapshot, address) == there).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn holds(snapshot: &Snapshot, address: &str) -> bool {
    let address: IpAddr = address.parse().unwrap();
    snapshot.index.as_ref().is_some_and(|index| matches!(index.holder(address), Some(Holder::Workload(_))))
}

fn small() -> FakeApi {
    let api = FakeApi::new();
    api.put("/api/v1/nodes", json!({"metadata": {"name": "node-a"}, "spec": {"podCIDRs": ["10.77.0.0/24"]}}));
    let cidr = json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16"]}});
    api.put(CIDRS, cidr);
    api.put(PODS, pod("b1", "10.77.0.11"));
    api.put(POLICIES, policy("rule", 1, 8080));
    api
}

#[tokio::test(start_paused = true)]
async fn what_is_there_and_what_comes_later_is_known() {
    let mut running = Running::start(&small());
    running.until_there("10.77.0.11", true).await;
    running.api.put(PODS, pod("b2", "10.77.0.12"));
    running.until_there("10.77.0.12", true).await;
    running.api.delete(PODS, "b1");
    running.until_there("10.77.0.11", false).await;
    assert!(holds(&running.snapshots.borrow(), "10.77.0.12"));
}

/// Kubernetes has no ServiceCIDRs before 1.33: a watch that never lists would hold up the first picture.
#[tokio::test(start_paused = true)]
async fn service_ranges_that_the_operator_says_are_not_asked_for() {
    let api = small();
    api.forbid(CIDRS, true);
    let services = vec!["10.96.0.0/16".parse().unwrap()];
    let mut running = Running::with(&api, Ranges { pods: Vec::new(), services });
    running.until_there("10.77.0.11", true).await;
    // They are asked for where nobody says them: nothing is known then, and that is told.
    let mut asking = Running::start(&api);
    let refused = |snapshot: &Arc<Snapshot>| {
        snapshot
            .problems
            .iter()
            .any(|problem| problem.to_string().starts_with("servicecidrs.networking.k8s.io: is not watched: 403"))
    };
    let told = asking.until("the reason", refused).await;
    assert!(told.index.is_none());
}

#[tokio::test(start_paused = true)]
async fn more_than_a_page_is_listed_whole() {
    let api = small();
    for i in 0..1_201 {
        api.put(PODS, pod(&format!("many-{i}"), &format!("10.78.{}.{}", i / 250, i % 250)));
    }
    let mut running = Running::start(&api);
    let snapshot = running.until("a picture", |snapshot| snapshot.index.is_some()).await;
    assert_eq!(snapshot.index.as_ref().unwrap().members().len(), 1_202);
    assert!(api.lists(PODS) >= 3, "{} lists", api.lists(PODS));
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_breaks_goes_on_where_it_was_and_loses_nothing() {
    let mut running = Running::start(&small());
    running.until_there("10.77.0.11", true).await;
    let lists = running.api.lists(PODS);
    running.api.cut();
    running.api.refuse(true);
    // While nobody answers, things happen.
    running.api.put(PODS, pod("b2", "10.77.0.12"));
    running.api.delete(PODS, "b1");
    let broken = running.until("a problem", |snapshot| !snapshot.problems.is_empty()).await;
    assert!(holds(&broken, "10.77.0.11"), "what was known goes on");
    assert!(broken.problems[0].message.contains("what was known goes on"), "{}", broken.problems[0]);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(holds(&running.snapshots.borrow(), "10.77.0.11"));
    running.api.refuse(false);
    running.until_there("10.77.0.12", true).await;
    running.until_there("10.77.0.11", false).await;
    assert_eq!(running.api.lists(PODS), lists, "the watch goes on from where it was");
    running.until("no problem any more", |snapshot| snapshot.problems.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn where_the_api_server_has_forgotten_a_new_list_removes_what_is_gone() {
    let mut running = Running::start(&small());
    running.until_there("10.77.0.11", true).await;
    let lists = running.api.lists(PODS);
    running.api.cut();
    running.api.refuse(true);
    running.api.delete(PODS, "b1");
    running.api.put(PODS, pod("b2", "10.77.0.12"));
    running.api.forget();
    running.api.refuse(false);
    running.until_there("10.77.0.12", true).await;
    running.until_there("10.77.0.11", false).await;
    assert!(running.api.lists(PODS) > lists);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_known_while_one_kind_cannot_be_listed_and_the_reason_is_said() {
    let api = small();
    api.forbid(POLICIES, true);
    let mut running = Running::start(&api);
    let snapshot = running
        .until("the reason", |snapshot| snapshot.problems.iter().any(|problem| problem.message.contains("403")))
        .await;
    assert!(snapshot.index.is_none());
    let problem = snapshot.problems.iter().find(|problem| problem.message.contains("403")).unwrap();
    assert_eq!(
        problem.to_string(),
        "authorizationpolicies.policy.countersign.dev: is not watched: 403 you may not; nothing is answered before"
    );
    api.forbid(POLICIES, false);
    running.until("a picture", |snapshot| snapshot.index.is_some() && snapshot.problems.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn pictures_come_at_most_ten_a_second() {
    let mut running = Running::start(&small());
    running.until_there("10.77.0.11", true).await;
    let (before, at) = (running.snapshots.borrow().change, Instant::now());
    for i in 0..500 {
        running.api.put(PODS, pod("churn", &format!("10.77.0.{}", 20 + i % 200)));
        tokio::time::sleep(Duration::from_millis(4)).await;
    }
    let (pictures, seconds) = (running.snapshots.borrow().change - before, at.elapsed().as_secs_f64());
    assert!(pictures as f64 <= seconds * 10.0 + 2.0, "{pictures} in {seconds} s");
    assert!(pictures as f64 >= seconds * 5.0, "{pictures} in {seconds} s");
}

#[tokio::test(start_paused = true)]
async fn each_policy_is_told_once_whether_it_is_understood_also_by_two_replicas() {
    let api = small();
    api.put(POLICIES, policy("bad", 1, 70_000));
    let _one = Running::start(&api);
    let _other = Running::start(&api);
    tokio::time::sleep(Duration::from_secs(120)).await;
    let accepted = |name: &str| {
        let conditions = api.find(POLICIES, name).unwrap()["status"]["conditions"].clone();
        assert_eq!(conditions.as_array().unwrap().len(), 1);
        (conditions[0]["status"].as_str().unwrap().to_owned(), conditions[0]["message"].as_str().unwrap().to_owned())
    };
    assert_eq!(accepted("rule").0, "True");
    let (status, message) = accepted("bad");
    assert_eq!(status, "False");
    assert!(message.starts_with("spec.rules[0].to[0].ports[0]: 70000"), "{message}");
    let writes = api.writes();
    assert!((2..=4).contains(&writes), "each replica at most once for each: {writes}");
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(api.writes(), writes, "no fight");

    let mended = policy("bad", 2, 80);
    api.put(POLICIES, mended);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(accepted("bad").0, "True");
    assert_eq!(api.find(POLICIES, "bad").unwrap()["status"]["conditions"][0]["observedGeneration"], 2);
    assert!(api.writes() <= writes + 2);
}

#[tokio::test(start_paused = true)]
async fn a_status_that_cannot_be_written_takes_no_rule_away_and_is_tried_again() {
    let api = small();
    api.refuse_writes(409);
    let mut running = Running::start(&api);
    let rules = |snapshot: &Arc<Snapshot>| {
        let index = snapshot.index.as_ref();
        index.is_some_and(|index| index.namespace("shop").is_some_and(|shop| shop.rules.len() == 1))
    };
    running.until("the rule", rules).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert!(rules(&running.snapshots.borrow()));
    api.refuse_writes(500);
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert!(rules(&running.snapshots.borrow()));
    assert_eq!(api.writes(), 0);
    let asked = api.write_attempts();
    assert!((2..=60).contains(&asked), "{asked}");
    api.refuse_writes(0);
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(api.writes(), 1);
}
