//! Secrets, and a state in one, against the API server in memory.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value as Json;

use super::super::head_limit;
use super::super::testing::{ApiServer, Fault};
use super::*;
use crate::clock::seconds;
use crate::state::{Authority, Beside, KeySource, Opened, Place, Race, State, StateError, follow, open};
use crate::testing::{DAY, Hand, LIVES, START, domain, now};

const NAMESPACE: &str = "countersign-system";
const STATE: &str = names::CA_STATE_SECRET;
const KEY: &str = names::CA_KEY_SECRET;

fn cluster(server: &ApiServer) -> Cluster {
    Cluster::on(server.client(&head_limit()), NAMESPACE)
}

fn key_secret(server: &ApiServer) -> KeySource {
    KeySource::Secret(KeySecret::new(cluster(server), KEY.to_owned()))
}

fn place(server: &ApiServer) -> Place {
    Place::Secret(StateSecret::new(cluster(server), STATE.to_owned()))
}

async fn opened(server: &ApiServer) -> Result<Opened, StateError> {
    open(place(server), &key_secret(server), &domain(), LIVES, now()).await
}

/// A replica, as it is after its start.
async fn replica(server: &ApiServer) -> (State, Race) {
    match opened(server).await.unwrap() {
        Opened::Found(state) => (state, Race::Lost),
        Opened::Vacant(vacant) => {
            let draft = vacant.draft(now()).unwrap();
            vacant.commit(draft, now()).await.unwrap()
        }
    }
}

async fn failure(server: &ApiServer) -> StateError {
    opened(server).await.err().expect("an error")
}

fn value(server: &ApiServer, name: &str, key: &str) -> Option<Vec<u8>> {
    let secret = server.object("secrets", NAMESPACE, name)?;
    Some(STANDARD.decode(secret["data"][key].as_str()?).unwrap())
}

fn roots(state: &State) -> String {
    state.authority().bundle_pem()
}

fn issuer(state: &State) -> String {
    state.authority().issuer().serial().to_owned()
}

#[tokio::test]
async fn a_restarted_ca_goes_on_where_it_was() {
    let server = ApiServer::new();
    let (first, race) = replica(&server).await;
    assert_eq!(race, Race::Won);
    let Opened::Found(second) = opened(&server).await.unwrap() else { panic!("no state") };
    assert_eq!((roots(&first), issuer(&first)), (roots(&second), issuer(&second)));
    assert_eq!(second.authority().generation(), 1);
}

#[tokio::test]
async fn the_stored_state_is_sealed_by_us_and_the_key_lies_elsewhere() {
    let server = ApiServer::new();
    let (state, _) = replica(&server).await;
    let key = value(&server, KEY, names::CA_KEY_KEY).unwrap();
    assert_eq!(key.len(), 32);
    let sealed = value(&server, STATE, names::CA_STATE_KEY).unwrap();
    assert!(sealed.starts_with(b"countersign-ca state v1 key="));
    let secret = state.authority().issuer().secret_for_test();
    for hidden in [&key[..], &secret[36..68]] {
        assert!(!sealed.windows(hidden.len()).any(|window| window == hidden));
    }
    let logged: Vec<_> =
        server.asked().into_iter().filter(|asked| asked.name == STATE || asked.verb == "create").collect();
    assert!(logged.iter().all(|asked| asked.resource == "secrets"));
}

#[tokio::test]
async fn of_two_that_make_the_first_state_one_wins_and_both_have_it() {
    let server = ApiServer::new();
    let (Opened::Vacant(one), Opened::Vacant(two)) = (opened(&server).await.unwrap(), opened(&server).await.unwrap())
    else {
        panic!("a state is there")
    };
    let (first, second) = (one.draft(now()).unwrap(), two.draft(now()).unwrap());
    assert_ne!(first.authority().bundle_pem(), second.authority().bundle_pem());
    let (one, won) = one.commit(first, now()).await.unwrap();
    let (two, lost) = two.commit(second, now()).await.unwrap();
    assert_eq!((won, lost), (Race::Won, Race::Lost));
    assert_eq!((roots(&one), issuer(&one)), (roots(&two), issuer(&two)));
}

#[tokio::test]
async fn of_two_that_make_the_key_one_wins_and_both_have_it() {
    let server = ApiServer::new();
    let (one, two) =
        (KeySecret::new(cluster(&server), KEY.to_owned()), KeySecret::new(cluster(&server), KEY.to_owned()));
    let over = one.0.read().await.unwrap().1;
    let first = two.obtain(true).await.unwrap();
    assert_eq!(one.0.write(&[9; 32], &over).await.unwrap_err(), CallError::Conflict, "never written over");
    assert!(server.asked().iter().all(|asked| !asked.query.contains_key("force")));
    assert_eq!(format!("{first:?}"), format!("{:?}", one.obtain(true).await.unwrap()));
}

#[tokio::test]
async fn a_state_without_its_key_ends_the_start_and_nothing_is_written() {
    let server = ApiServer::new();
    replica(&server).await;
    server.remove("secrets", NAMESPACE, KEY);
    let error = failure(&server).await;
    assert!(matches!(&error, StateError::Key(KeySecretError::Missing(_))) && !error.may_pass(), "{error}");
    assert!(server.object("secrets", NAMESPACE, KEY).is_none(), "no new key, which would open nothing");
}

#[tokio::test]
async fn another_key_or_a_damaged_state_ends_the_start_and_nothing_is_written() {
    let server = ApiServer::new();
    replica(&server).await;
    let sealed = value(&server, STATE, names::CA_STATE_KEY).unwrap();
    let put = |name: &str, key: &str, bytes: &[u8]| {
        let data = json!({ key: STANDARD.encode(bytes) });
        server.put("secrets", json!({ "metadata": { "namespace": NAMESPACE, "name": name }, "data": data }));
    };
    let key = value(&server, KEY, names::CA_KEY_KEY).unwrap();
    put(KEY, names::CA_KEY_KEY, &[1; 32]);
    let writes = server.count("patch", "secrets");
    assert!(failure(&server).await.to_string().contains("wrong state key"));
    put(KEY, names::CA_KEY_KEY, b"too short");
    let error = failure(&server).await.to_string();
    assert!(error.contains("32 bytes") && !error.contains("too short"), "{error}");
    put(KEY, names::CA_KEY_KEY, &key);
    put(STATE, names::CA_STATE_KEY, &sealed[..sealed.len() - 1]);
    assert!(failure(&server).await.to_string().contains("damaged"));
    assert_eq!(server.count("patch", "secrets"), writes);
}

#[tokio::test]
async fn a_lost_secret_is_not_replaced_by_a_new_root() {
    let server = ApiServer::new();
    replica(&server).await;
    server.remove("secrets", NAMESPACE, STATE);
    let map = |data: Json| {
        let metadata = json!({ "namespace": NAMESPACE, "name": names::BUNDLE_CONFIG_MAP });
        server.put("configmaps", json!({ "metadata": metadata, "data": data }));
    };
    map(json!({}));
    assert!(matches!(opened(&server).await.unwrap(), Opened::Vacant(_)), "an empty one is no sign");
    map(json!({ names::BUNDLE_KEY: "-----BEGIN" }));
    let error = failure(&server).await;
    assert!(matches!(&error, StateError::Lost { .. }), "{error}");
    assert!(error.to_string().contains("ConfigMap countersign-system/countersign-bundle"), "{error}");
    assert!(server.object("secrets", NAMESPACE, STATE).is_none());
}

#[tokio::test]
async fn secrets_that_were_made_empty_beforehand_are_filled_and_keep_their_labels() {
    let server = ApiServer::new();
    for name in [STATE, KEY] {
        let metadata = json!({ "namespace": NAMESPACE, "name": name, "labels": { "team": "security" } });
        server.put("secrets", json!({ "metadata": metadata, "data": { "other": "b3RoZXI=" } }));
    }
    let (_, race) = replica(&server).await;
    assert_eq!(race, Race::Won);
    assert!(server.asked().iter().all(|asked| !asked.query.contains_key("fieldManager")), "nothing is made");
    for name in [STATE, KEY] {
        let secret = server.object("secrets", NAMESPACE, name).unwrap();
        assert_eq!(
            (&secret["metadata"]["labels"]["team"], &secret["data"]["other"]),
            (&json!("security"), &json!("b3RoZXI="))
        );
    }
}

#[tokio::test]
async fn a_lost_race_for_the_issuer_goes_on_with_the_winners() {
    let server = ApiServer::new();
    let (one, two) = (replica(&server).await.0, replica(&server).await.0);
    let at = seconds(START + 21 * DAY);
    let (first, second) = (one.draft_issuer(at).unwrap().unwrap(), two.draft_issuer(at).unwrap().unwrap());
    assert_eq!(two.commit(second, at).await.unwrap(), Race::Won);
    assert_eq!(one.commit(first, at).await.unwrap(), Race::Lost);
    assert_eq!(issuer(&one), issuer(&two));
    assert!(one.draft_issuer(at).unwrap().is_none(), "nothing is due any more");
    let Opened::Found(third) = opened(&server).await.unwrap() else { panic!("no state") };
    assert_eq!(issuer(&third), issuer(&two));
}

#[tokio::test]
async fn a_draft_of_what_is_no_longer_in_force_is_not_even_sent() {
    let server = ApiServer::new();
    let (one, two) = (replica(&server).await.0, replica(&server).await.0);
    let at = seconds(START + 21 * DAY);
    let stale = one.draft_issuer(at).unwrap().unwrap();
    let draft = two.draft_issuer(at).unwrap().unwrap();
    two.commit(draft, at).await.unwrap();
    assert!(one.refresh(at).await.unwrap());
    let writes = server.count("patch", "secrets");
    assert_eq!(one.commit(stale, at).await.unwrap(), Race::Lost);
    assert_eq!((server.count("patch", "secrets"), issuer(&one)), (writes, issuer(&two)));
}

#[tokio::test]
async fn a_write_that_fails_keeps_the_old_issuer_in_both_places() {
    let server = ApiServer::new();
    let (state, _) = replica(&server).await;
    let (before, at) = (issuer(&state), seconds(START + 21 * DAY));
    for fault in [Fault::Status(500, "InternalError"), Fault::Status(403, "Forbidden"), Fault::Status(422, "Invalid")] {
        server.fail("patch", "secrets", fault, 1);
        let draft = state.draft_issuer(at).unwrap().unwrap();
        assert!(matches!(state.commit(draft, at).await, Err(StateError::Secret { .. })));
        assert_eq!(issuer(&state), before);
    }
    let Opened::Found(stored) = opened(&server).await.unwrap() else { panic!("no state") };
    assert_eq!(issuer(&stored), before);
    let draft = state.draft_issuer(at).unwrap().unwrap();
    assert_eq!(state.commit(draft, at).await.unwrap(), Race::Won);
}

#[tokio::test]
async fn what_may_pass_is_told_from_what_may_not() {
    for (fault, passes) in [
        (Fault::Status(503, "ServiceUnavailable"), true),
        (Fault::Status(403, "Forbidden"), true),
        (Fault::Garbage("{"), true),
        (Fault::Status(400, "BadRequest"), false),
    ] {
        let server = ApiServer::new();
        server.fail("get", "secrets", fault.clone(), 1);
        assert_eq!(failure(&server).await.may_pass(), passes, "{fault:?}");
        assert_eq!(server.count("patch", "secrets"), 0, "nothing is written where nothing could be read");
    }
}

#[tokio::test]
async fn no_error_shows_what_a_secret_holds() {
    let server = ApiServer::new();
    server.fail("get", "secrets", Fault::Garbage("{\"data\": \"U0VDUkVU-SECRET\"}"), 1);
    let error = failure(&server).await;
    assert!(!format!("{error} {error:?}").contains("SECRET"), "{error}");
}

/// Stores another bundle under the seal of the state that is there.
async fn store(server: &ApiServer, generation: u64, of: &Authority) {
    let pair = |pair: &crate::state::Pair| (pair.certificate().to_vec(), pair.secret_for_test());
    let (root, issuer) = (pair(of.root()), pair(of.issuer()));
    let next =
        Authority::restore(&domain(), generation, (&root.0, &root.1), (&issuer.0, &issuer.1), Beside::default(), now())
            .unwrap();
    let (writer, _) = replica(server).await;
    let draft = writer.draft_for_test(next);
    assert_eq!(writer.commit(draft, now()).await.unwrap(), Race::Won);
}

fn following(state: State) -> (Arc<State>, tokio::task::JoinHandle<()>) {
    let state = Arc::new(state);
    let task = tokio::spawn(follow(Arc::clone(&state), Hand::at(START).clock()));
    (state, task)
}

#[tokio::test]
async fn replicas_see_what_another_stores() {
    let server = ApiServer::new();
    let (state, _) = replica(&server).await;
    let (state, task) = following(state);
    server.until_asked(|asked| asked.iter().any(|one| one.verb == "watch")).await;
    let mut authority = state.subscribe();
    store(&server, 2, &crate::testing::authority()).await;
    authority.wait_for(|now| now.generation() == 2).await.unwrap();
    let watched = server.asked().into_iter().find(|one| one.verb == "watch").unwrap();
    assert_eq!(watched.query["fieldSelector"], format!("metadata.name={STATE}"), "RBAC by name needs it");
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn what_happens_while_the_watch_is_broken_is_seen_afterwards() {
    let server = ApiServer::new();
    let (state, _) = replica(&server).await;
    let (state, task) = following(state);
    let mut authority = state.subscribe();
    let mut generation = 1;
    type Break = fn(&ApiServer);
    let breaks: [Break; 4] = [
        |server| server.end_watches(),
        |server| server.compact(),
        |server| {
            server.fail("watch", "secrets", Fault::Status(500, "InternalError"), 3);
            server.end_watches();
        },
        |server| {
            server.fail("watch", "secrets", Fault::Status(403, "Forbidden"), 2);
            server.fail("list", "secrets", Fault::Status(429, "TooManyRequests"), 2);
            server.compact();
        },
    ];
    for broken in breaks {
        let watches = server.count("watch", "secrets");
        server.until_asked(|asked| asked.iter().filter(|one| one.verb == "watch").count() >= watches.max(1)).await;
        broken(&server);
        generation += 1;
        store(&server, generation, &crate::testing::authority()).await;
        let began = tokio::time::Instant::now();
        authority.wait_for(|now| now.generation() == generation).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    }
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_died_without_a_word_is_noticed() {
    let server = ApiServer::new();
    let (state, _) = replica(&server).await;
    server.fail("watch", "secrets", Fault::Hang, 1);
    let (state, task) = following(state);
    server.until_asked(|asked| asked.iter().any(|one| one.verb == "watch")).await;
    let mut authority = state.subscribe();
    store(&server, 2, &crate::testing::authority()).await;
    let began = tokio::time::Instant::now();
    authority.wait_for(|now| now.generation() == 2).await.unwrap();
    assert!(began.elapsed() <= Duration::from_secs(40), "{:?}", began.elapsed());
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn an_older_or_a_strange_state_is_not_put_in_force_and_is_told() {
    let server = ApiServer::new();
    let (first, _) = replica(&server).await;
    let old = server.object("secrets", NAMESPACE, STATE).unwrap();
    store(&server, 2, &crate::testing::authority()).await;
    let good = server.object("secrets", NAMESPACE, STATE).unwrap();
    let (state, task) = following(first);
    let mut authority = state.subscribe();
    authority.wait_for(|now| now.generation() == 2).await.unwrap();
    let held = roots(&state);
    let told = async |wanted: Option<&str>| {
        while !match (state.problem(), wanted) {
            (None, None) => true,
            (Some(told), Some(wanted)) => told.contains(wanted),
            _ => false,
        } {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    server.put("secrets", old);
    told(Some("older than 2")).await;
    server.put("secrets", good.clone());
    told(None).await;
    let mut damaged = good.clone();
    damaged["data"][names::CA_STATE_KEY] = json!(STANDARD.encode(b"countersign-ca state v1 key=x\nhm"));
    server.put("secrets", damaged);
    told(Some("wrong state key")).await;
    assert_eq!(roots(&state), held);
    server.put("secrets", good);
    told(None).await;
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_state_removed_under_a_living_ca_is_put_back_but_not_at_once() {
    let server = ApiServer::new();
    let (state, _) = replica(&server).await;
    let held = roots(&state);
    let (state, task) = following(state);
    server.until_asked(|asked| asked.iter().any(|one| one.verb == "watch")).await;
    let began = tokio::time::Instant::now();
    server.remove("secrets", NAMESPACE, STATE);
    server.until("secrets", NAMESPACE, STATE, |secret| secret.is_some()).await;
    assert!(began.elapsed() >= Duration::from_secs(60), "an uninstallation ends us before that");
    while state.problem().is_some() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let Opened::Found(again) = opened(&server).await.unwrap() else { panic!("no state") };
    assert_eq!(roots(&again), held);
    task.abort();
}

#[tokio::test]
async fn a_label_on_the_secret_changes_nothing_and_the_next_write_still_goes_through() {
    let server = ApiServer::new();
    let (state, _) = replica(&server).await;
    let mut secret = server.object("secrets", NAMESPACE, STATE).unwrap();
    secret["metadata"]["labels"]["touched"] = json!("yes");
    server.put("secrets", secret);
    assert!(!state.refresh(now()).await.unwrap());
    let at = seconds(START + 21 * DAY);
    let draft = state.draft_issuer(at).unwrap().unwrap();
    assert_eq!(state.commit(draft, at).await.unwrap(), Race::Won);
}
