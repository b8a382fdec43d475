use super::*;
use crate::audit::Audit;
use crate::grant::Terms;
use crate::kubernetes::testing::{ApiServer, Fault};
use crate::kubernetes::{KeySecret, StateSecret, on_server};
use crate::state::{KeySource, Opened, Place, Race, TRIES, open};
use crate::testing::{HOUR, Hand, LIVES, START, domain, now, own_id, private_dir};
use countersign_api::names;

/// Nobody listens there.
const NOWHERE: &str = "127.0.0.1:1";

async fn opened(server: &ApiServer) -> Opened {
    let cluster = on_server(server, "countersign-system");
    let key = KeySource::Secret(KeySecret::new(cluster.clone(), names::CA_KEY_SECRET.to_owned()));
    let place = Place::Secret(StateSecret::new(cluster, names::CA_STATE_SECRET.to_owned()));
    open(place, &key, &domain(), LIVES, now()).await.unwrap()
}

struct Desk {
    hand: Hand,
    siblings: Arc<Siblings>,
    _dir: tempfile::TempDir,
}

impl Desk {
    /// A replica as it is after its start, at an address of its own where nobody listens.
    async fn new(server: &ApiServer, hand: &Hand, port: u16) -> Self {
        let desk = Self::unregistered(server, hand).await;
        desk.siblings.register(Some(SocketAddr::from(([127, 0, 0, 1], port)))).await.unwrap();
        desk
    }

    async fn unregistered(server: &ApiServer, hand: &Hand) -> Self {
        let state = match opened(server).await {
            Opened::Found(state) => state,
            Opened::Vacant(vacant) => {
                let draft = vacant.draft(now()).unwrap();
                vacant.commit(draft, now()).await.unwrap().0
            }
        };
        let state = Arc::new(state);
        let life = Duration::from_secs(HOUR);
        let own = Arc::new(Own::new(own_id(), Terms { default: life, max: life }, hand.clock()));
        let dir = private_dir();
        own.renew(&state.authority(), &Audit::at(&dir.path().join("audit.jsonl")).unwrap()).await.unwrap();
        let siblings = Arc::new(Siblings::new(state, Arc::new(Holders::new(0)), own, hand.clock(), life));
        Self { hand: hand.clone(), siblings, _dir: dir }
    }

    fn state(&self) -> &State {
        &self.siblings.state
    }

    fn me(&self) -> &Replica {
        self.siblings.me.get().unwrap()
    }

    /// Who is in the record, as this replica has read it.
    async fn record(&self) -> Vec<String> {
        self.state().refresh(self.hand.clock().now()).await.unwrap();
        self.state().seen().replicas.all().iter().map(|one| one.id.clone()).collect()
    }

    async fn known(&self) -> Known {
        self.record().await;
        self.siblings.gather(&self.state().seen()).await
    }
}

#[tokio::test]
async fn each_replica_is_in_the_record_once_and_all_see_all() {
    let (server, hand) = (ApiServer::new(), Hand::at(START));
    let (one, two) = (Desk::new(&server, &hand, 1).await, Desk::new(&server, &hand, 2).await);
    let both = [one.me().id.clone(), two.me().id.clone()];
    assert_eq!(one.record().await, both);
    assert_eq!(two.record().await, both);
    one.siblings.keep_registered().await.unwrap();
    let writes = server.count("patch", "secrets");
    two.siblings.keep_registered().await.unwrap();
    assert_eq!(server.count("patch", "secrets"), writes, "what is there is not written again");
    assert_eq!(two.known().await.complete_since, Some(0), "of all time: they made the state");
}

#[tokio::test]
async fn a_state_of_before_has_no_record_and_what_was_signed_then_is_unknown_for_a_while() {
    let (server, hand) = (ApiServer::new(), Hand::at(START));
    drop(Desk::unregistered(&server, &hand).await);
    let mut secret = server.object("secrets", "countersign-system", names::CA_STATE_SECRET).unwrap();
    assert!(secret["data"].as_object_mut().unwrap().remove(names::CA_REPLICAS_KEY).is_some());
    server.put("secrets", secret);
    hand.advance(50);
    let one = Desk::unregistered(&server, &hand).await;
    let known = one.known().await;
    assert_eq!((known.complete_since, known.waits.len()), (None, 1), "{:?}", known.waits);
    one.siblings.register(None).await.unwrap();
    let known = one.known().await;
    assert_eq!((known.complete_since, known.waits), (Some(START + 50), Vec::new()));
}

#[tokio::test]
async fn a_record_that_cannot_be_read_holds_nobody_up_and_is_written_anew() {
    let (server, hand) = (ApiServer::new(), Hand::at(START));
    let one = Desk::new(&server, &hand, 1).await;
    let mut secret = server.object("secrets", "countersign-system", names::CA_STATE_SECRET).unwrap();
    secret["data"][names::CA_REPLICAS_KEY] = "AAAA".into();
    server.put("secrets", secret);
    hand.advance(50);
    assert!(one.record().await.is_empty());
    one.siblings.keep_registered().await.unwrap();
    assert_eq!(one.record().await, [one.me().id.clone()]);
    assert_eq!(one.known().await.complete_since, Some(START + 50), "who else there was nobody knows");
}

#[tokio::test]
async fn one_that_does_not_answer_is_told_and_leaves_the_record_when_nothing_of_its_lives() {
    let (server, hand) = (ApiServer::new(), Hand::at(START));
    let (one, gone) = (Desk::new(&server, &hand, 1).await, Desk::new(&server, &hand, 2).await);
    let gone = gone.me().clone();
    let known = one.known().await;
    assert_eq!(known.waits.len(), 1, "{:?}", known.waits);
    let said = format!("as a leaf does, {} s more", UNHEARD + ANSWERS + HOUR);
    assert!(
        known.waits[0].contains(&format!("replica {} (127.0.0.1:2) does not answer", gone.id)),
        "{:?}",
        known.waits
    );
    assert!(known.waits[0].ends_with(&said), "{:?}", known.waits);
    assert!(known.replicas[0].silent.is_none() && known.replicas[1].silent.is_some());
    hand.advance(UNHEARD);
    one.siblings.probe().await.unwrap();
    hand.advance(ANSWERS + HOUR - 1);
    one.siblings.probe().await.unwrap();
    assert_eq!(one.record().await.len(), 2);
    hand.advance(1);
    one.siblings.probe().await.unwrap();
    assert_eq!(one.record().await, [one.me().id.clone()]);
    let known = one.known().await;
    assert!(
        known.waits[0].contains("a replica left the record") && known.waits[0].ends_with("60 s"),
        "{:?}",
        known.waits
    );
    hand.advance(BACK);
    let known = one.known().await;
    assert_eq!((known.complete_since, known.waits), (Some(0), Vec::new()));
}

#[tokio::test]
async fn whoever_was_taken_out_and_lives_is_there_again_with_all_that_it_knows() {
    let (server, hand) = (ApiServer::new(), Hand::at(START));
    let (one, two) = (Desk::new(&server, &hand, 1).await, Desk::new(&server, &hand, 2).await);
    one.record().await;
    one.siblings.probe().await.unwrap();
    hand.advance(UNHEARD);
    one.siblings.probe().await.unwrap();
    hand.advance(ANSWERS + HOUR);
    one.record().await;
    one.siblings.probe().await.unwrap();
    assert_eq!(two.record().await, [one.me().id.clone()]);
    two.siblings.keep_registered().await.unwrap();
    assert_eq!(one.record().await.len(), 2);
    assert_eq!(one.state().seen().replicas.all()[1], *two.me());
}

#[tokio::test]
async fn one_that_lives_out_of_reach_is_never_taken_out() {
    let (server, hand) = (ApiServer::new(), Hand::at(START));
    let (one, two) = (Desk::new(&server, &hand, 1).await, Desk::new(&server, &hand, 2).await);
    one.record().await;
    one.siblings.probe().await.unwrap();
    for _ in 0..3 {
        hand.advance(UNHEARD);
        one.record().await;
        one.siblings.probe().await.unwrap();
        two.record().await;
        assert!(!two.state().seen().replicas.has(two.me()), "it was asked in the record");
        two.siblings.keep_registered().await.unwrap();
        hand.advance(ANSWERS + HOUR - UNHEARD);
    }
    one.record().await;
    one.siblings.probe().await.unwrap();
    assert_eq!(one.record().await.len(), 2, "it said each time that it lives, and may have signed until now");
}

#[tokio::test]
async fn a_step_is_not_stored_over_a_record_that_has_changed() {
    let (server, hand) = (ApiServer::new(), Hand::at(START));
    let one = Desk::new(&server, &hand, 1).await;
    assert_eq!(one.known().await.in_force_since, 0, "no call was under way at its start");
    let seen = one.state().seen();
    let draft = one.state().draft(|current| current.prepared(LIVES, HOUR, now())).unwrap();
    assert!(draft.is_of(&seen));
    let two = Desk::new(&server, &hand, 2).await;
    assert_eq!(one.state().commit(draft, now()).await.unwrap(), Race::Lost, "somebody came who was not asked");
    assert!(one.state().authority().rotation().is_none());
    let draft = one.state().draft(|current| current.prepared(LIVES, HOUR, now())).unwrap();
    assert!(!draft.is_of(&seen));
    assert_eq!(one.state().commit(draft, now()).await.unwrap(), Race::Won);
    assert_eq!(two.record().await.len(), 2, "and a step leaves the record as it is");
    assert!(two.state().authority().rotation().is_some());
    for replica in [one, two] {
        assert_eq!(replica.known().await.in_force_since, START + 1, "calls of before may still be under way");
    }
}

#[tokio::test]
async fn where_the_record_cannot_be_written_there_is_no_registration() {
    let (server, hand) = (ApiServer::new(), Hand::at(START));
    let one = Desk::unregistered(&server, &hand).await;
    server.fail("patch", "secrets", Fault::Status(503, "ServiceUnavailable"), 1);
    let error = one.siblings.register(Some(NOWHERE.parse().unwrap())).await.unwrap_err();
    assert!(error.may_pass(), "{error}");
    assert!(one.record().await.is_empty());
    assert!(one.known().await.waits[0].contains("not in the record"));
    one.siblings.register(Some(NOWHERE.parse().unwrap())).await.unwrap();
    assert_eq!(one.record().await.len(), 1);
}

#[tokio::test]
async fn a_record_that_others_write_all_the_time_does_not_end_a_start() {
    let (server, hand) = (ApiServer::new(), Hand::at(START));
    let one = Desk::unregistered(&server, &hand).await;
    server.fail("patch", "secrets", Fault::Status(409, "Conflict"), TRIES);
    let writes = server.count("patch", "secrets");
    let error = one.siblings.register(Some(NOWHERE.parse().unwrap())).await.unwrap_err();
    assert_eq!(server.count("patch", "secrets"), writes + TRIES);
    assert!(error.may_pass(), "{error}");
    one.siblings.register(Some(NOWHERE.parse().unwrap())).await.unwrap();
    assert_eq!(one.record().await.len(), 1);
}
