//! Which connections may be proven anew, and when.

use countersign_policy::PolicySet;
use tokio::sync::watch;

use super::*;
use crate::first_bytes::Replay;
use crate::permit::Permits;
use crate::testing::{TestCa, links_between, rules, tcp_pair};
use crate::tls::{self, accept};

const LIMIT: Duration = Duration::from_secs(10);
const HOUR: Duration = Duration::from_secs(3600);
const ALLOW: &str = "apiVersion: policy.countersign.dev/v1alpha1\nkind: AuthorizationPolicy\n\
     metadata: {name: a, namespace: shop}\nspec: {action: Allow, rules: [{from: [{namespaces: [shop]}]}]}\n";

struct Stage {
    ca: TestCa,
    rules: watch::Sender<Option<Arc<PolicySet>>>,
    permits: Arc<Permits>,
    reauth: Arc<Reauth>,
}

impl Stage {
    fn new() -> Self {
        let (rules, watch) = watch::channel(Some(rules(ALLOW)));
        Self { ca: TestCa::new("cluster.local"), rules, permits: Permits::new(watch), reauth: Reauth::new() }
    }

    /// An open connection from `frontend` to `backend`: the client's end, then the server's.
    async fn open(&self, life: Duration) -> (Arc<Peer>, Arc<Peer>) {
        let (frontend, backend) = (self.ca.credentials("frontend", life), self.ca.credentials("backend", life));
        let ((_, client), (_, server)) = links_between(tcp_pair().await, &frontend, &backend, LIMIT).await;
        (Arc::new(client), Arc::new(server))
    }

    /// One attempt to prove `client` anew: what each end makes of it.
    async fn prove(&self, client: &Peer) -> (Result<(), ReauthError>, Result<(), ReauthError>) {
        let (frontend, backend) = (self.ca.credentials("frontend", HOUR), self.ca.credentials("backend", HOUR));
        let (dialled, accepted) = tcp_pair().await;
        let answering = async {
            match accept(Replay::new(Vec::new(), accepted), &backend, LIMIT).await.unwrap() {
                tls::Accepted::Again(asked) => judge(&self.reauth, &self.permits, *asked).await,
                tls::Accepted::Link(..) => panic!("another protocol was agreed"),
            }
        };
        tokio::join!(ask(dialled, &frontend, client, LIMIT), answering)
    }
}

fn asking(peer: &Peer, port: u16) -> Asking {
    Asking::In { who: Some(Arc::clone(&peer.principal)), source_ip: [10, 0, 0, 1].into(), port }
}

#[tokio::test]
async fn only_what_is_open_and_was_accepted_here_can_be_proven_anew() {
    let stage = Stage::new();
    let (client, server) = stage.open(HOUR / 2).await;
    let before = server.not_after();
    // At the end that dialled, the same connection has no such name.
    let _dialled = stage.reauth.dialled(&server, ([10, 0, 0, 2], 80).into());
    let (asked, answered) = stage.prove(&client).await;
    assert!(asked.is_err() && matches!(answered, Err(ReauthError::UnknownName)), "{asked:?} {answered:?}");
    let registered = stage.reauth.accepted(&server, asking(&server, 80));
    let (asked, answered) = stage.prove(&client).await;
    assert!(asked.is_ok() && answered.is_ok(), "{asked:?} {answered:?}");
    assert!(server.not_after() > before && client.not_after() > before);
    drop(registered);
    let (_, answered) = stage.prove(&client).await;
    assert!(matches!(answered, Err(ReauthError::UnknownName)), "{answered:?}");
    assert!(lock(&stage.reauth.accepted).is_empty(), "what ended is forgotten");
}

#[tokio::test]
async fn rules_are_asked_with_the_old_connections_identity_and_port() {
    let stage = Stage::new();
    let (client, server) = stage.open(HOUR / 2).await;
    let _registered = stage.reauth.accepted(&server, asking(&server, 80));
    stage.rules.send_replace(Some(rules(&format!(
        "{ALLOW}---\n{}",
        ALLOW.replace("name: a", "name: d").replace("Allow", "Deny")
    ))));
    let (asked, answered) = stage.prove(&client).await;
    assert!(asked.is_err() && matches!(answered, Err(ReauthError::Denied("denied_by_rule"))), "{answered:?}");
    stage.rules.send_replace(None);
    let (_, answered) = stage.prove(&client).await;
    assert!(matches!(answered, Err(ReauthError::Denied("no_rules_known"))), "{answered:?}");
    stage.rules.send_replace(Some(rules(ALLOW)));
    assert!(stage.prove(&client).await.1.is_ok());
}

#[tokio::test]
async fn the_first_attempt_comes_before_half_of_the_time_and_failures_leave_room_for_more() {
    let stage = Stage::new();
    let (client, _) = stage.open(HOUR).await;
    let began = Instant::now();
    let registered = stage.reauth.dialled(&client, ([10, 0, 0, 2], 80).into());
    let due = |reauth: &Reauth| lock(&reauth.dialled).entries.values().next().unwrap().due;
    let first = due(&stage.reauth) - began;
    assert!((HOUR.mul_f64(0.39)..HOUR.mul_f64(0.5)).contains(&first), "{first:?}");
    let mut longest = Duration::ZERO;
    for failure in 0..20 {
        stage.reauth.done(1, false);
        let pause = due(&stage.reauth) - Instant::now();
        assert!(pause <= PAUSES.1, "failure {failure}: {pause:?}");
        longest = longest.max(pause);
    }
    assert!(longest > PAUSES.1 / 3, "it grows: {longest:?}");
    drop(registered);
    stage.reauth.done(1, true); // it ended meanwhile
    assert!(lock(&stage.reauth.dialled).entries.is_empty());

    let (short, _) = stage.open(Duration::from_secs(8)).await;
    let _registered = stage.reauth.dialled(&short, ([10, 0, 0, 2], 80).into());
    for _ in 0..10 {
        stage.reauth.done(2, false);
        assert!(due(&stage.reauth) - Instant::now() <= Duration::from_secs(2), "a quarter of what is left, at most");
    }
}

#[tokio::test]
async fn who_waits_for_longest_comes_first_and_what_stands_on_another_root_is_counted() {
    let mut stage = Stage::new();
    let (first, _) = stage.open(HOUR).await;
    let (second, accepted) = stage.open(HOUR).await;
    let address = ([10, 0, 0, 2], 80).into();
    let registered = [stage.reauth.dialled(&first, address), stage.reauth.dialled(&second, address)];
    let _accepted = stage.reauth.accepted(&accepted, asking(&accepted, 80));
    let ours = stage.ca.credentials("frontend", HOUR);
    assert!(stage.reauth.due(&ours).is_empty() && stage.reauth.behind() == 0);
    // Another root vouches for us from now on.
    stage.ca = TestCa::new("cluster.local");
    let ours = stage.ca.credentials("frontend", HOUR);
    assert!(stage.reauth.due(&ours).is_empty(), "they were opened just now");
    assert_eq!(stage.reauth.behind(), 3);
    for entry in lock(&stage.reauth.dialled).entries.values_mut() {
        entry.tried -= BEHIND;
    }
    assert_eq!(stage.reauth.due(&ours), [1, 2]);
    stage.reauth.begin(1).unwrap();
    assert!(stage.reauth.begin(1).is_none(), "it is under way");
    assert_eq!(stage.reauth.due(&ours), [2]);
    // It did not answer; when both are due again, the other one goes first.
    stage.reauth.done(1, false);
    for entry in lock(&stage.reauth.dialled).entries.values_mut() {
        entry.tried -= BEHIND;
    }
    assert_eq!(stage.reauth.due(&ours), [2, 1]);
    drop(registered);
    assert!(stage.reauth.begin(2).is_none() && stage.reauth.due(&ours).is_empty());
    assert_eq!(stage.reauth.behind(), 1, "the one that was accepted here");
}
