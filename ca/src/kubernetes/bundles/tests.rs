//! ConfigMaps against the API server in memory.

use serde_json::Value;

use super::super::head_limit;
use super::super::testing::{ApiServer, Fault};
use super::*;
use crate::state::{Beside, KeySource, Opened, Place, StateKey};
use crate::testing::{Hand, LIVES, START, domain, first_state, now, private_dir};

const OWN: &str = "countersign-system";
const MAP: &str = names::BUNDLE_CONFIG_MAP;

struct Desk {
    server: ApiServer,
    state: Arc<State>,
    metrics: Arc<Metrics>,
    task: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn desk(server: ApiServer) -> Desk {
    let dir = private_dir();
    let key = KeySource::Given(StateKey::from_bytes("test", &[7; 32]).unwrap());
    let place = Place::directory(dir.path()).unwrap();
    let Opened::Vacant(vacant) = crate::state::open(place, &key, &domain(), LIVES, now()).await.unwrap() else {
        panic!("a state is there")
    };
    let state = Arc::new(first_state(vacant, now()));
    let metrics = Arc::new(Metrics::new());
    let publisher = Publisher {
        cluster: Cluster::on(server.client(&head_limit()), OWN),
        state: Arc::clone(&state),
        clock: Hand::at(START).clock(),
        metrics: Arc::clone(&metrics),
    };
    Desk { task: tokio::spawn(publisher.run()), server, state, metrics, _dir: dir }
}

fn namespace(server: &ApiServer, name: &str, inject: &str) {
    server.put("namespaces", json!({ "metadata": { "name": name, "labels": { names::LABEL_INJECT: inject } } }));
}

fn pod(server: &ApiServer, namespace: &str, name: &str, inject: &str) {
    let metadata = json!({ "namespace": namespace, "name": name, "labels": { names::LABEL_INJECT: inject } });
    server.put("pods", json!({ "metadata": metadata }));
}

impl Desk {
    fn text(&self) -> String {
        self.state.authority().bundle_pem()
    }

    /// Waits until the roots in force are there.
    async fn there(&self, namespace: &str) {
        let good = |map: Option<&Value>| map.is_some_and(|map| map["data"][names::BUNDLE_KEY] == self.text());
        self.server.until("configmaps", namespace, MAP, good).await;
    }

    async fn settled(&self) {
        while !self.behind(0) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn behind(&self, count: usize) -> bool {
        let facts = crate::metrics::Facts {
            root_end: 0,
            issuer_end: 0,
            own_end: 0,
            generation: 1,
            watchers: 0,
            state_in_step: true,
            audit: crate::audit::Audit::stuck().0.facts(),
            token_keys: None,
        };
        self.metrics.render(facts).unwrap().contains(&format!("countersign_ca_bundle_config_maps_behind {count}\n"))
    }

    /// A new root, which is the only one.
    async fn rotate(&self) {
        let other = crate::testing::authority();
        let pair = |pair: &crate::state::Pair| (pair.certificate().to_vec(), pair.secret_for_test());
        let (root, issuer) = (pair(other.root()), pair(other.issuer()));
        let generation = self.state.authority().generation() + 1;
        let next = Authority::restore(
            &domain(),
            generation,
            (&root.0, &root.1),
            (&issuer.0, &issuer.1),
            Beside::default(),
            now(),
        )
        .unwrap();
        self.state.commit(self.state.draft_for_test(next), now()).await.unwrap();
    }
}

#[tokio::test]
async fn our_own_namespace_has_the_roots_and_unlabelled_ones_have_not() {
    let desk = desk(ApiServer::new()).await;
    namespace(&desk.server, "plain", "disabled");
    pod(&desk.server, "plain", "p", "disabled");
    desk.there(OWN).await;
    namespace(&desk.server, "shop", "enabled");
    desk.there("shop").await;
    assert!(desk.server.object("configmaps", "plain", MAP).is_none());
    let map = desk.server.object("configmaps", "shop", MAP).unwrap();
    assert_eq!(map["metadata"]["labels"][names::LABEL_MANAGED_BY], "countersign-ca");
    assert_eq!(map["metadata"]["annotations"][GENERATION], "1");
    let apply = desk.server.asked().into_iter().find(|asked| asked.verb == "patch").unwrap();
    assert_eq!((apply.query["fieldManager"].as_str(), apply.query["force"].as_str()), ("countersign-ca", "true"));
}

#[tokio::test]
async fn a_namespace_is_given_the_roots_when_it_or_a_pod_in_it_is_labelled() {
    let desk = desk(ApiServer::new()).await;
    desk.there(OWN).await;
    namespace(&desk.server, "shop", "enabled");
    desk.there("shop").await;
    pod(&desk.server, "bank", "teller-1", "enabled");
    desk.there("bank").await;
    namespace(&desk.server, "later", "disabled");
    namespace(&desk.server, "later", "enabled");
    desk.there("later").await;
}

#[tokio::test]
async fn what_was_labelled_before_the_start_is_served_too() {
    let server = ApiServer::new();
    for index in 0..30 {
        namespace(&server, &format!("ns-{index}"), "enabled");
    }
    let desk = desk(server).await;
    for index in 0..30 {
        desk.there(&format!("ns-{index}")).await;
    }
    desk.settled().await;
    assert_eq!(desk.server.count("patch", "configmaps"), 31, "each once");
}

#[tokio::test]
async fn a_restart_writes_nothing_where_all_is_well() {
    let server = ApiServer::new();
    namespace(&server, "shop", "enabled");
    let desk = desk(server).await;
    desk.there("shop").await;
    desk.there(OWN).await;
    desk.settled().await;
    let writes = desk.server.count("patch", "configmaps");
    let again = Publisher {
        cluster: Cluster::on(desk.server.client(&head_limit()), OWN),
        state: Arc::clone(&desk.state),
        clock: Hand::at(START).clock(),
        metrics: Arc::new(Metrics::new()),
    };
    let watches = desk.server.count("watch", "configmaps");
    let task = tokio::spawn(again.run());
    desk.server
        .until_asked(|asked| {
            asked.iter().filter(|one| one.verb == "watch" && one.resource == "configmaps").count() > watches
        })
        .await;
    tokio::task::yield_now().await;
    task.abort();
    assert_eq!(desk.server.count("patch", "configmaps"), writes);
}

#[tokio::test(start_paused = true)]
async fn edits_and_removals_are_put_right() {
    let desk = desk(ApiServer::new()).await;
    namespace(&desk.server, "shop", "enabled");
    desk.there("shop").await;
    desk.settled().await;
    let good = desk.server.object("configmaps", "shop", MAP).unwrap();
    let changes: [fn(&mut Value); 5] = [
        |map| map["data"][names::BUNDLE_KEY] = json!("-----BEGIN CERTIFICATE-----"),
        |map| map["data"] = json!({}),
        |map| map["metadata"]["labels"] = json!({}),
        |map| map["metadata"]["annotations"] = json!({}),
        |map| map["metadata"]["annotations"][GENERATION] = json!("999"),
    ];
    for change in changes {
        let mut edited = good.clone();
        change(&mut edited);
        desk.server.put("configmaps", edited);
        desk.there("shop").await;
        let right = |map: Option<&Value>| {
            map.is_some_and(|map| {
                map["metadata"]["labels"][names::LABEL_MANAGED_BY] == "countersign-ca"
                    && map["metadata"]["annotations"][GENERATION] == "1"
            })
        };
        desk.server.until("configmaps", "shop", MAP, right).await;
    }
    desk.server.remove("configmaps", "shop", MAP);
    desk.there("shop").await;
    desk.server.remove("configmaps", OWN, MAP);
    desk.there(OWN).await;
}

#[tokio::test(start_paused = true)]
async fn who_undoes_it_at_once_does_not_make_us_write_without_end() {
    let desk = desk(ApiServer::new()).await;
    namespace(&desk.server, "shop", "enabled");
    desk.there("shop").await;
    let began = tokio::time::Instant::now();
    for _ in 0..10 {
        desk.server.remove("configmaps", "shop", MAP);
        desk.there("shop").await;
    }
    assert!(began.elapsed() >= FIRST_PAUSE * 9, "{:?}", began.elapsed());
}

#[tokio::test]
async fn new_roots_reach_every_namespace_that_has_the_old_ones() {
    let desk = desk(ApiServer::new()).await;
    for name in ["shop", "bank"] {
        namespace(&desk.server, name, "enabled");
        desk.there(name).await;
    }
    // No longer meshed: pods of that time may start again, and then need the roots of the day.
    namespace(&desk.server, "bank", "disabled");
    desk.rotate().await;
    for name in ["shop", "bank", OWN] {
        desk.there(name).await;
    }
    let map = desk.server.object("configmaps", "bank", MAP).unwrap();
    assert_eq!(map["metadata"]["annotations"][GENERATION], "2");
}

#[tokio::test]
async fn a_strangers_config_map_of_our_name_is_left_alone_where_nobody_is_meshed() {
    let desk = desk(ApiServer::new()).await;
    let metadata = json!({ "namespace": "plain", "name": MAP });
    desk.server.put("configmaps", json!({ "metadata": metadata, "data": { "theirs": "x" } }));
    namespace(&desk.server, "shop", "enabled");
    desk.there("shop").await;
    desk.settled().await;
    let map = desk.server.object("configmaps", "plain", MAP).unwrap();
    assert!(map["data"].get(names::BUNDLE_KEY).is_none());
    assert!(!desk.server.asked().iter().any(|asked| asked.verb == "patch" && asked.namespace == "plain"));
}

#[tokio::test]
async fn what_another_mesh_keeps_is_left_alone() {
    let desk = desk(ApiServer::new()).await;
    let labels = json!({ names::LABEL_MANAGED_BY: names::CA_ACCOUNT });
    let metadata = json!({
        "namespace": "other-system", "name": MAP, "labels": labels, "annotations": { SYSTEM: "other-system", GENERATION: "9" },
    });
    desk.server.put("configmaps", json!({ "metadata": metadata, "data": { names::BUNDLE_KEY: "theirs" } }));
    namespace(&desk.server, "shop", "enabled");
    desk.there("shop").await;
    desk.settled().await;
    let map = desk.server.object("configmaps", "other-system", MAP).unwrap();
    assert_eq!(map["data"][names::BUNDLE_KEY], "theirs");
}

#[tokio::test]
async fn a_namespace_on_its_way_out_is_left_alone() {
    let server = ApiServer::new();
    let metadata = json!({
        "name": "ending", "labels": { names::LABEL_INJECT: "enabled" }, "deletionTimestamp": "2026-11-21T12:00:00Z",
    });
    server.put("namespaces", json!({ "metadata": metadata }));
    let desk = desk(server).await;
    namespace(&desk.server, "shop", "enabled");
    desk.there("shop").await;
    desk.settled().await;
    assert!(desk.server.object("configmaps", "ending", MAP).is_none());
}

#[tokio::test(start_paused = true)]
async fn failures_are_tried_again_and_hold_up_nobody_else() {
    let server = ApiServer::new();
    server.fail("patch", "configmaps", Fault::Status(403, "Forbidden"), 3);
    server.fail("patch", "configmaps", Fault::Hang, 2);
    server.fail("patch", "configmaps", Fault::Status(500, "InternalError"), 2);
    for index in 0..4 {
        namespace(&server, &format!("ns-{index}"), "enabled");
    }
    let desk = desk(server).await;
    for index in 0..4 {
        desk.there(&format!("ns-{index}")).await;
    }
    desk.there(OWN).await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_listed_is_not_taken_for_being_in_step() {
    let server = ApiServer::new();
    server.fail("list", "configmaps", Fault::Status(403, "Forbidden"), 3);
    let desk = desk(server).await;
    desk.server.until_asked(|asked| asked.iter().any(|one| one.resource == "configmaps")).await;
    while !desk.behind(1) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(desk.server.count("patch", "configmaps"), 0, "nothing is written blindly");
    desk.there(OWN).await;
    desk.settled().await;
}

#[tokio::test(start_paused = true)]
async fn lists_and_watches_that_fail_only_cost_time() {
    let server = ApiServer::new();
    for resource in ["namespaces", "pods", "configmaps"] {
        server.fail("list", resource, Fault::Status(403, "Forbidden"), 2);
        server.fail("watch", resource, Fault::Status(500, "InternalError"), 2);
    }
    let desk = desk(server).await;
    namespace(&desk.server, "shop", "enabled");
    pod(&desk.server, "bank", "teller-1", "enabled");
    desk.there("shop").await;
    desk.there("bank").await;
    // What changes between the end of a watch and a list is seen in that list.
    desk.server.compact();
    namespace(&desk.server, "late", "enabled");
    desk.server.remove("configmaps", "shop", MAP);
    desk.there("late").await;
    desk.there("shop").await;
    let began = tokio::time::Instant::now();
    desk.server.end_watches();
    pod(&desk.server, "third", "p", "enabled");
    desk.there("third").await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_is_stored_otherwise_than_it_was_written_is_no_success() {
    let server = ApiServer::new();
    let answer = r#"{"metadata": {"namespace": "countersign-system", "name": "countersign-bundle"}, "data": {}}"#;
    server.fail("patch", "configmaps", Fault::Garbage(answer), 3);
    let began = tokio::time::Instant::now();
    let desk = desk(server).await;
    desk.there(OWN).await;
    assert!(began.elapsed() >= Duration::from_secs(1 + 2 + 4), "with growing pauses: {:?}", began.elapsed());
}
