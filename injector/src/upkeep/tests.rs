use std::sync::atomic::AtomicU64;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::apiserver::{ApiServer, MUTATING, SECRET, SYSTEM, VALIDATING, empty_secret};

const START: u64 = 1_800_000_000;
const HOUR: u64 = 3600;

/// A replica with a clock of its own.
struct Replica {
    upkeep: Upkeep,
    ring: Ring,
    now: Arc<AtomicU64>,
}

impl Replica {
    async fn new(server: &ApiServer) -> Self {
        let now = Arc::new(AtomicU64::new(START));
        let clock = Arc::clone(&now);
        let upkeep = Upkeep {
            cluster: Cluster::connect(Some(&server.kubeconfig()), SYSTEM).await.unwrap(),
            terms: Terms { names: vec!["i.s.svc".to_owned()], life: Duration::from_secs(24 * HOUR) },
            serving: Serving::default(),
            clock: Arc::new(move || clock.load(Ordering::Relaxed)),
            metrics: Arc::default(),
            published: Arc::default(),
        };
        Self { upkeep, ring: Ring::default(), now }
    }

    async fn look_at(&mut self, hours: u64) -> Result<(), UpkeepError> {
        self.now.store(START + hours * HOUR, Ordering::Relaxed);
        self.upkeep.look(&mut self.ring).await
    }
}

fn bundles(server: &ApiServer) -> Vec<String> {
    let entries = [MUTATING, VALIDATING].map(|path| server.object(path).unwrap()["webhooks"].clone());
    let decoded = entries.iter().flat_map(|entries| entries.as_array().unwrap()).map(|entry| {
        let bundle = entry["clientConfig"]["caBundle"].as_str().unwrap_or_default();
        String::from_utf8(STANDARD.decode(bundle).unwrap()).unwrap()
    });
    decoded.collect()
}

#[tokio::test]
async fn two_replicas_serve_one_certificate_and_every_entry_knows_its_root() {
    let server = ApiServer::start().await;
    let (mut one, mut two) = (Replica::new(&server).await, Replica::new(&server).await);
    one.look_at(0).await.unwrap();
    two.look_at(0).await.unwrap();
    assert_eq!(one.ring, two.ring);
    assert_eq!(bundles(&server), vec![one.ring.bundle(); 4]);
    assert_eq!(one.upkeep.serving.ends(), Some(START + 24 * HOUR));
    let writes = server.asked().iter().filter(|asked| !asked.starts_with("GET")).count();
    assert_eq!(writes, 3, "one Secret, two configurations");
}

#[tokio::test]
async fn a_renewal_announces_the_new_root_before_anybody_serves_its_leaf() {
    let server = ApiServer::start().await;
    let (mut one, mut two) = (Replica::new(&server).await, Replica::new(&server).await);
    one.look_at(0).await.unwrap();
    let old = one.ring.bundle();
    two.look_at(12).await.unwrap();
    one.look_at(12).await.unwrap();
    assert_eq!(one.ring.len(), 2);
    assert_eq!(bundles(&server), vec![one.ring.bundle(); 4]);
    assert!(one.ring.bundle().starts_with(&old), "the old root stays");
    for replica in [&one, &two] {
        assert_eq!(replica.upkeep.serving.ends(), Some(START + 24 * HOUR), "still the old leaf");
    }
    one.look_at(13).await.unwrap();
    assert_eq!(one.upkeep.serving.ends(), Some(START + 36 * HOUR));
}

#[tokio::test]
async fn a_new_leaf_is_not_served_while_its_root_cannot_be_published() {
    let server = ApiServer::start().await;
    let mut one = Replica::new(&server).await;
    one.look_at(0).await.unwrap();
    server.hook(|method, _, _| (method == "PATCH").then_some(403));
    assert_eq!(one.look_at(13).await.unwrap_err().label(), "webhooks");
    assert_eq!(one.look_at(14).await.unwrap_err().label(), "webhooks");
    assert_eq!(one.upkeep.serving.ends(), Some(START + 24 * HOUR), "its leaf would be refused");
    server.unhook();
    one.look_at(14).await.unwrap();
    assert_eq!(one.upkeep.serving.ends(), Some(START + 37 * HOUR));
}

#[tokio::test]
async fn of_two_that_write_at_once_one_gives_way() {
    let server = ApiServer::start().await;
    let (mut one, mut two) = (Replica::new(&server).await, Replica::new(&server).await);
    two.look_at(0).await.unwrap();
    let other = server.object(SECRET).unwrap();
    server.put(SECRET, empty_secret());
    // Between `one`'s read and its write, the other's content appears.
    let mut other = Some(other);
    server.hook(move |method, _, state| {
        if method == "PUT"
            && let Some(other) = other.take()
        {
            state.put(SECRET, other);
        }
        None
    });
    one.look_at(0).await.unwrap();
    assert_eq!(one.ring, two.ring);
}

#[tokio::test]
async fn a_configuration_that_changed_meanwhile_is_read_again() {
    let server = ApiServer::start().await;
    let mut one = Replica::new(&server).await;
    let mut changed = false;
    server.hook(move |method, path, state| {
        if method == "PATCH" && path == MUTATING && !changed {
            changed = true;
            let mut object = state.objects[MUTATING].clone();
            let entry = object["webhooks"][0].clone();
            object["webhooks"].as_array_mut().unwrap().insert(0, entry);
            state.put(MUTATING, object);
        }
        None
    });
    one.look_at(0).await.unwrap();
    assert_eq!(bundles(&server), vec![one.ring.bundle(); 5]);
}

#[tokio::test]
async fn what_an_upgrade_wiped_is_put_back_and_an_emptied_secret_is_filled_with_what_is_known() {
    let server = ApiServer::start().await;
    let mut one = Replica::new(&server).await;
    one.look_at(0).await.unwrap();
    let before = one.ring.clone();
    let mut wiped = server.object(MUTATING).unwrap();
    wiped["webhooks"][0]["clientConfig"]["caBundle"] = serde_json::Value::Null;
    server.put(MUTATING, wiped);
    server.put(SECRET, empty_secret());
    one.look_at(1).await.unwrap();
    assert_eq!(bundles(&server), vec![before.bundle(); 4]);
    assert_eq!(one.ring, before);
    let secret = server.object(SECRET).unwrap();
    assert!(secret["data"]["ring.json"].is_string());
    assert_eq!((&secret["type"], &secret["metadata"]["labels"]["of"]), (&"Opaque".into(), &"the chart".into()));
}

#[tokio::test]
async fn a_secret_that_is_not_there_is_told_and_never_made() {
    let server = ApiServer::start().await;
    let mut one = Replica::new(&server).await;
    one.look_at(0).await.unwrap();
    server.remove(SECRET);
    let error = one.look_at(1).await.unwrap_err();
    assert!(error.to_string().contains("apply the mesh's manifest again"), "{error}");
    assert!(server.object(SECRET).is_none());
    assert!(server.asked().iter().all(|asked| !asked.starts_with("POST")), "{:?}", server.asked());
    assert_eq!(one.upkeep.serving.ends(), Some(START + 24 * HOUR), "what is in force stays");
}

#[tokio::test]
async fn a_secret_that_is_no_ring_is_written_over() {
    let server = ApiServer::start().await;
    server.put(
        SECRET,
        serde_json::json!({ "metadata": { "name": "countersign-injector-tls" }, "data": { "ring.json": "e30K" } }),
    );
    let mut one = Replica::new(&server).await;
    one.look_at(0).await.unwrap();
    assert_eq!(one.ring.len(), 1);
    assert!(one.upkeep.serving.ends().is_some());
}

#[tokio::test]
async fn with_the_api_server_away_what_is_in_force_stays() {
    let server = ApiServer::start().await;
    let mut one = Replica::new(&server).await;
    one.look_at(0).await.unwrap();
    server.hook(|_, _, _| Some(500));
    assert!(one.look_at(13).await.is_err());
    assert_eq!(one.upkeep.serving.ends(), Some(START + 24 * HOUR));
}

#[tokio::test]
async fn before_the_webhooks_are_installed_there_is_a_certificate_already() {
    let server = ApiServer::start().await;
    server.remove(MUTATING);
    server.remove(VALIDATING);
    let mut one = Replica::new(&server).await;
    one.look_at(0).await.unwrap();
    assert!(one.upkeep.serving.ends().is_some());
}
