//! Every condition alone keeps the proxy from being ready.

use super::*;
use crate::testing::TestCa;
use countersign_credentials::Credentials;
use countersign_policy::Modes;

const HOUR: Duration = Duration::from_secs(3600);

struct Parts {
    ca: TestCa,
    credentials: watch::Sender<Option<Arc<Credentials>>>,
    rules: watch::Sender<Option<Arc<PolicySet>>>,
    redirect: watch::Sender<Standing>,
    drain: Drain,
    readiness: Readiness,
}

impl Parts {
    fn new() -> Self {
        let (credentials, rules) = (watch::Sender::new(None), watch::Sender::new(None));
        let redirect = watch::Sender::new(Standing::Unproven);
        let drain = Drain::new(HOUR);
        let readiness = Readiness::new(credentials.subscribe(), rules.subscribe(), redirect.subscribe(), drain.clone());
        Self { ca: TestCa::new("cluster.local"), credentials, rules, redirect, drain, readiness }
    }

    fn missing(&self) -> Vec<&'static str> {
        self.readiness.checks().iter().filter(|check| !check.ok).map(|check| check.name).collect()
    }

    fn have_credentials(&self, life: Duration) {
        self.credentials.send_replace(Some(self.ca.credentials("backend", life)));
    }

    fn have_rules(&self) {
        let none = PolicySet::compile("cluster.local", Modes::default(), "r1", Vec::new());
        self.rules.send_replace(Some(Arc::new(none)));
    }

    fn ready() -> Self {
        let parts = Self::new();
        parts.have_credentials(HOUR);
        parts.have_rules();
        parts.readiness.listeners_bound();
        parts.redirect.send_replace(Standing::Proven);
        parts
    }
}

#[test]
fn ready_is_everything_at_once() {
    let parts = Parts::new();
    assert_eq!(parts.missing(), ["credentials", "rules", "listeners", "redirect"]);
    parts.have_credentials(HOUR);
    assert_eq!(parts.missing(), ["rules", "listeners", "redirect"]);
    parts.have_rules();
    assert_eq!(parts.missing(), ["listeners", "redirect"]);
    parts.readiness.listeners_bound();
    assert_eq!(parts.missing(), ["redirect"]);
    assert!(!parts.readiness.ready());
    parts.redirect.send_replace(Standing::Proven);
    assert!(parts.readiness.ready());
}

#[test]
fn a_lost_redirect_is_not_ready() {
    let parts = Parts::ready();
    parts.redirect.send_replace(Standing::Lost);
    assert_eq!(parts.missing(), ["redirect"]);
    assert_eq!(parts.readiness.checks()[3].detail, "the outbound redirect is lost");
}

#[test]
fn told_to_withdraw_is_not_ready() {
    let parts = Parts::ready();
    parts.drain.withdraw();
    assert_eq!(parts.missing(), ["drain"]);
}

#[test]
fn a_draining_proxy_is_not_ready() {
    let parts = Parts::ready();
    parts.drain.signal();
    assert_eq!(parts.missing(), ["drain"]);
}

/// The SVID ends one second from now; nothing is published at that moment.
#[tokio::test]
async fn an_svid_that_has_ended_is_not_ready() {
    let parts = Parts::ready();
    parts.have_credentials(Duration::from_secs(1));
    assert!(parts.readiness.ready());
    parts.readiness.end_of_svid().await;
    assert_eq!(parts.missing(), ["credentials"]);
    assert_eq!(parts.readiness.checks()[0].detail, "the SVID has ended");
}

#[tokio::test]
async fn the_ready_file_is_there_exactly_while_ready() {
    let file = std::env::temp_dir().join(format!("countersign-ready-{}", std::process::id()));
    let parts = Parts::ready();
    let task = tokio::spawn(parts.readiness.clone().keep_file(file.clone()));
    until(|| file.exists()).await;
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "ready\n");
    parts.drain.withdraw();
    until(|| !file.exists()).await;
    task.abort();
    let _ = task.await;

    let parts = Parts::ready();
    let task = tokio::spawn(parts.readiness.clone().keep_file(file.clone()));
    until(|| file.exists()).await;
    task.abort();
    let _ = task.await;
    assert!(!file.exists(), "left behind");
}

/// Lets the task run until it has done its part.
async fn until(done: impl Fn() -> bool) {
    let waiting = async {
        while !done() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap();
}
