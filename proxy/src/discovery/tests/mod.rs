//! Discovery whole: against a controller over mutual TLS, and without one.

mod controller;

use countersign_api::controller as api;
use countersign_credentials::Credentials;

use super::workload as rules;
use super::*;
use crate::testing::TestCa;
use controller::{FakeController, Stream, pod, soon, workload};

const HOUR: Duration = Duration::from_secs(3600);

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn settings(addresses: &[SocketAddr]) -> Settings {
    Settings {
        trust_domain: TrustDomain::parse("cluster.local").unwrap(),
        controller: SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/controller").unwrap(),
        addresses: addresses.iter().map(ToString::to_string).collect(),
        namespace: "shop".to_owned(),
        pod_uid: "uid-1".to_owned(),
        mark: None,
    }
}

/// A proxy's discovery, its task running.
struct Proxy {
    discovery: Discovery,
    ours: watch::Sender<Option<Arc<Credentials>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    fn start(addresses: &[SocketAddr], credentials: Arc<Credentials>) -> Self {
        let (ours, watch) = watch::channel(Some(credentials));
        let (discovery, task) = Discovery::start(settings(addresses), watch, Metrics::new());
        Self { discovery, ours, task: tokio::spawn(task) }
    }

    fn revision(&self) -> Option<String> {
        self.discovery.rules().borrow().as_ref().map(|set| set.revision().to_owned())
    }

    fn ask(&self, address: &str) -> tokio::task::JoinHandle<Result<Who, LookupError>> {
        let (discovery, address) = (self.discovery.clone(), addr(address));
        tokio::spawn(async move { discovery.who(address).await })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A controller, a proxy, and the stream between them with first rules in force.
async fn pair(ca: &TestCa) -> (FakeController, Proxy, Stream) {
    let mut controller = FakeController::start(ca.credentials("controller", HOUR)).await;
    let proxy = Proxy::start(&[controller.address], ca.credentials("frontend", HOUR));
    let stream = controller.stream().await.begin().await;
    (controller, proxy, stream)
}

fn account_of(who: &Who) -> String {
    match who {
        Who::Endpoint(endpoint) => match &endpoint.identity {
            Identity::Meshed(id) => id.service_account().unwrap().1.to_owned(),
            Identity::NotMeshed => panic!("not meshed"),
        },
        other => panic!("{other:?}"),
    }
}

const BACKEND: &str = "10.77.0.11:8080";

#[tokio::test]
async fn the_proxy_says_hello_and_puts_rules_in_force_and_acknowledges_them() {
    let ca = TestCa::new("cluster.local");
    let mut controller = FakeController::start(ca.credentials("controller", HOUR)).await;
    let proxy = Proxy::start(&[controller.address], ca.credentials("frontend", HOUR));
    let mut stream = controller.stream().await;
    let hello = stream.hello().await;
    assert_eq!((hello.pod_uid.as_str(), hello.feature_level), ("uid-1", countersign_policy::FEATURE_LEVEL));
    assert_eq!(stream.peer.id.as_ref().unwrap().id().as_str(), "spiffe://cluster.local/ns/shop/sa/frontend");
    assert_eq!((proxy.revision(), proxy.discovery.in_mesh(addr(BACKEND).ip())), (None, None));
    stream.rules("r1").await;
    assert_eq!(proxy.revision().as_deref(), Some("r1"));
    assert_eq!(proxy.discovery.in_mesh(addr(BACKEND).ip()), Some(true));
    assert_eq!(proxy.discovery.in_mesh(addr("192.0.2.1:1").ip()), Some(false));
    assert_eq!(proxy.discovery.node().as_deref(), Some("node-a"));
    assert!(proxy.discovery.link().connected);
}

#[tokio::test]
async fn many_who_ask_at_once_share_one_lookup_and_later_ones_need_none() {
    let ca = TestCa::new("cluster.local");
    let (_controller, proxy, mut stream) = pair(&ca).await;
    let asking: Vec<_> = (0..20).map(|_| proxy.ask(BACKEND)).collect();
    assert_eq!(stream.lookup().await, addr(BACKEND));
    stream.answer(addr(BACKEND), pod(addr(BACKEND), "backend")).await;
    for one in asking {
        assert_eq!(account_of(&soon(one).await.unwrap().unwrap()), "backend");
    }
    assert_eq!(account_of(&proxy.discovery.who(addr(BACKEND)).await.unwrap()), "backend");
    // The next thing heard is this Ack: nothing else was asked.
    stream.rules("r2").await;
}

#[tokio::test]
async fn outside_the_ranges_nobody_is_asked() {
    let ca = TestCa::new("cluster.local");
    let (_controller, proxy, mut stream) = pair(&ca).await;
    assert_eq!(proxy.discovery.who(addr("192.0.2.1:443")).await, Ok(Who::Outside));
    assert_eq!(proxy.discovery.who(addr("[2001:db8::1]:443")).await, Ok(Who::Outside));
    stream.rules("r2").await;
}

#[tokio::test]
async fn an_ipv4_address_in_ipv6_clothes_is_the_same_address() {
    let ca = TestCa::new("cluster.local");
    let (_controller, proxy, mut stream) = pair(&ca).await;
    let asking = proxy.ask("[::ffff:10.77.0.11]:8080");
    assert_eq!(stream.lookup().await, addr(BACKEND));
    stream.answer(addr(BACKEND), pod(addr(BACKEND), "backend")).await;
    assert_eq!(account_of(&soon(asking).await.unwrap().unwrap()), "backend");
}

#[tokio::test]
async fn who_asks_before_the_first_rules_gets_an_answer_once_they_came() {
    let ca = TestCa::new("cluster.local");
    let mut controller = FakeController::start(ca.credentials("controller", HOUR)).await;
    let proxy = Proxy::start(&[controller.address], ca.credentials("frontend", HOUR));
    let mut stream = controller.stream().await;
    stream.hello().await;
    let asking = proxy.ask("192.0.2.1:443");
    stream.rules("r1").await;
    assert_eq!(soon(asking).await.unwrap(), Ok(Who::Outside));
}

#[tokio::test]
async fn rules_that_cannot_be_read_keep_the_last_good_ones_and_are_acknowledged_with_why() {
    let ca = TestCa::new("cluster.local");
    let (_controller, proxy, mut stream) = pair(&ca).await;
    let api::to_proxy::Kind::Workload(mut bad) = workload("r2") else { panic!() };
    bad.mesh_ranges.push("nonsense".to_owned());
    stream.say(api::to_proxy::Kind::Workload(bad)).await;
    let ack = stream.ack().await;
    assert_eq!(ack.revision, "r2");
    assert_eq!(ack.problem, r#"mesh_ranges[2]: "nonsense" is not a CIDR"#);
    assert_eq!(proxy.revision().as_deref(), Some("r1"));
    assert!(proxy.discovery.link().rules_problem.is_some());
    stream.rules("r3").await;
    assert_eq!(proxy.discovery.link().rules_problem, None);
}

#[tokio::test]
async fn rules_that_are_not_known_are_in_force_as_refusals_and_acknowledged_by_name() {
    let ca = TestCa::new("cluster.local");
    let (_controller, proxy, mut stream) = pair(&ca).await;
    let api::to_proxy::Kind::Workload(mut newer) = workload("r2") else { panic!() };
    let (namespace, name) = ("shop".to_owned(), "from-the-future".to_owned());
    newer.rules.push(api::Rule { namespace, name, action: 2, feature: 999, policy_json: "{}".to_owned() });
    stream.say(api::to_proxy::Kind::Workload(newer)).await;
    let ack = stream.ack().await;
    assert_eq!((ack.problem.as_str(), ack.unknown_rules), ("", vec!["shop/from-the-future".to_owned()]));
    assert_eq!(proxy.revision().as_deref(), Some("r2"));
}

/// One version older than whoever wrote the rules: a feature that this one does not know makes an Allow admit nobody and a Deny
/// refuse everybody, and it says so; beside what it knows, which goes on.
#[tokio::test]
async fn rules_of_a_newer_version_never_admit_and_always_refuse() {
    use countersign_policy::{Attempt, FEATURE_LEVEL, Principal, Source, decide};
    let ca = TestCa::new("cluster.local");
    let (_controller, proxy, mut stream) = pair(&ca).await;
    let known = "{from: [{namespaces: [shop]}], to: [{ports: [8080]}]}";
    let rule = |name: &str, action: &str, feature: u32| {
        let text = format!(
            "apiVersion: policy.countersign.dev/v1alpha1\nkind: AuthorizationPolicy\n\
             metadata: {{name: {name}, namespace: shop}}\nspec: {{action: {action}, rules: [{known}]}}\n"
        );
        let policy = countersign_policy::parse("rules.yaml", &text).unwrap().remove(0);
        api::Rule {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            action: if action == "Allow" { 1 } else { 2 },
            feature,
            // A newer form has what this version cannot parse.
            policy_json: if feature > FEATURE_LEVEL {
                policy.to_json().replacen('{', "{\"newer\":true,", 1)
            } else {
                policy.to_json()
            },
        }
    };
    let allowed = |port: u16| {
        let frontend = Principal::parse("spiffe://cluster.local/ns/shop/sa/frontend").unwrap();
        let source_ip = "10.77.0.9".parse().unwrap();
        let attempt = Attempt { source: Source::Authenticated(&frontend), source_ip, port };
        decide(proxy.discovery.rules().borrow().as_ref().unwrap(), &attempt).allowed()
    };
    let newer = FEATURE_LEVEL + 1;
    let steps = [
        (vec![rule("known", "Allow", FEATURE_LEVEL)], vec![], true),
        (vec![rule("newer", "Allow", newer)], vec!["shop/newer"], false),
        (vec![rule("known", "Allow", FEATURE_LEVEL), rule("newer", "Allow", newer)], vec!["shop/newer"], true),
        (vec![rule("known", "Allow", FEATURE_LEVEL), rule("newer", "Deny", newer)], vec!["shop/newer"], false),
        // An older controller says of its rules that they need less than this proxy knows.
        (vec![rule("older", "Allow", FEATURE_LEVEL.saturating_sub(1))], vec![], true),
    ];
    for (step, (rules, unknown, admits)) in steps.into_iter().enumerate() {
        let revision = format!("step-{step}");
        let api::to_proxy::Kind::Workload(mut message) = workload(&revision) else { panic!() };
        message.rules = rules;
        stream.say(api::to_proxy::Kind::Workload(message)).await;
        let ack = stream.ack().await;
        assert_eq!((ack.revision, ack.problem.as_str()), (revision, ""));
        assert_eq!(ack.unknown_rules, unknown, "step {step}");
        assert_eq!(allowed(8080), admits, "step {step}");
        assert!(!allowed(8081), "no rule speaks of it");
    }
}

#[tokio::test]
async fn what_a_newer_controller_says_beyond_what_is_known_changes_nothing() {
    let ca = TestCa::new("cluster.local");
    let (_controller, proxy, mut stream) = pair(&ca).await;
    stream.say_unknown().await;
    assert_eq!(proxy.revision().as_deref(), Some("r1"));
    stream.rules("r2").await;
    assert_eq!(proxy.revision().as_deref(), Some("r2"));
}

/// What is asserted is how they spread over time, which is theirs to choose, not how fast this machine is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_proxies_come_back_to_a_controller_that_restarted_without_a_storm() {
    const PROXIES: usize = 1000;
    const WINDOW: Duration = Duration::from_millis(250);
    countersign_credentials::raise_open_files(PROXIES * 3);
    let ca = TestCa::new("cluster.local");
    let mut controller = FakeController::start(ca.credentials("controller", HOUR)).await;
    let ours = ca.credentials("frontend", HOUR);
    let mut proxies = Vec::new();
    let mut streams = Vec::new();
    for _ in 0..PROXIES {
        proxies.push(Proxy::start(&[controller.address], Arc::clone(&ours)));
        streams.push(controller.stream().await);
    }
    // The best of three: what a busy machine holds up comes at once, but what has no jitter comes at once each time.
    let mut least = PROXIES;
    for _ in 0..3 {
        let address = controller.stop().await;
        streams.clear();
        controller = FakeController::start_at(address, ca.credentials("controller", HOUR)).await;
        let mut came = Vec::new();
        for _ in 0..PROXIES {
            streams.push(controller.stream().await);
            came.push(std::time::Instant::now());
        }
        let peak = (0..PROXIES).map(|at| came[at..].iter().take_while(|one| **one - came[at] < WINDOW).count()).max();
        least = least.min(peak.unwrap_or(PROXIES));
        if least <= PROXIES / 3 {
            return;
        }
    }
    panic!("{least} of {PROXIES} came within {WINDOW:?}");
}

#[tokio::test]
async fn a_thousand_rules_are_in_force_before_they_are_acknowledged() {
    let ca = TestCa::new("cluster.local");
    let (_controller, proxy, mut stream) = pair(&ca).await;
    let api::to_proxy::Kind::Workload(mut many) = workload("r2") else { panic!() };
    many.rules = (0..1000).map(|i| api::Rule { name: format!("rule-{i}"), ..api::Rule::default() }).collect();
    stream.say(api::to_proxy::Kind::Workload(many)).await;
    assert_eq!(stream.ack().await.revision, "r2");
    assert_eq!(proxy.discovery.rules().borrow().as_ref().unwrap().len(), 1000);
}

#[tokio::test]
async fn a_pushed_answer_replaces_the_remembered_one() {
    let ca = TestCa::new("cluster.local");
    let (_controller, proxy, mut stream) = pair(&ca).await;
    let asking = proxy.ask(BACKEND);
    stream.lookup().await;
    stream.answer(addr(BACKEND), api::answer::Who::Unknown(api::Nobody {})).await;
    assert_eq!(soon(asking).await.unwrap(), Ok(Who::Unknown));
    stream.answer(addr(BACKEND), pod(addr(BACKEND), "backend")).await;
    stream.rules("r2").await;
    assert_eq!(account_of(&proxy.discovery.who(addr(BACKEND)).await.unwrap()), "backend");
}

#[tokio::test]
async fn a_distrusted_answer_is_asked_once_more() {
    let ca = TestCa::new("cluster.local");
    let (_controller, proxy, mut stream) = pair(&ca).await;
    let asking = proxy.ask(BACKEND);
    stream.lookup().await;
    stream.answer(addr(BACKEND), pod(addr(BACKEND), "backend")).await;
    soon(asking).await.unwrap().unwrap();
    proxy.discovery.distrust(addr(BACKEND));
    let asking = proxy.ask(BACKEND);
    assert_eq!(stream.lookup().await, addr(BACKEND));
    stream.answer(addr(BACKEND), pod(addr(BACKEND), "other")).await;
    assert_eq!(account_of(&soon(asking).await.unwrap().unwrap()), "other");
}

#[tokio::test]
async fn an_outage_keeps_rules_and_answers_and_a_reconnect_asks_again() {
    let ca = TestCa::new("cluster.local");
    let (controller, proxy, mut stream) = pair(&ca).await;
    let asking = proxy.ask(BACKEND);
    stream.lookup().await;
    stream.answer(addr(BACKEND), pod(addr(BACKEND), "backend")).await;
    soon(asking).await.unwrap().unwrap();

    let address = controller.stop().await;
    drop(stream);
    assert_eq!(account_of(&proxy.discovery.who(addr(BACKEND)).await.unwrap()), "backend");
    assert_eq!(proxy.discovery.who(addr("10.77.0.99:1")).await, Err(LookupError::NoAnswer));
    assert_eq!(proxy.revision().as_deref(), Some("r1"));

    let mut controller = FakeController::start_at(address, ca.credentials("controller", HOUR)).await;
    let mut stream = controller.stream().await;
    stream.hello().await;
    assert_eq!(stream.lookup().await, addr(BACKEND));
    assert_eq!(account_of(&proxy.discovery.who(addr(BACKEND)).await.unwrap()), "backend", "kept until replaced");
    stream.answer(addr(BACKEND), api::answer::Who::Unknown(api::Nobody {})).await;
    stream.rules("r2").await;
    assert_eq!(proxy.discovery.who(addr(BACKEND)).await, Ok(Who::Unknown));
    assert_eq!(proxy.revision().as_deref(), Some("r2"));
}

#[tokio::test]
async fn a_controller_of_another_identity_is_never_spoken_to_and_the_next_address_is_tried() {
    let ca = TestCa::new("cluster.local");
    let stranger = TestCa::new("cluster.local");
    let mut impostor = FakeController::start(ca.credentials("backend", HOUR)).await;
    let mut forged = FakeController::start(stranger.credentials("controller", HOUR)).await;
    let nobody = FakeController::start(ca.credentials("controller", HOUR)).await.stop().await;
    let mut controller = FakeController::start(ca.credentials("controller", HOUR)).await;
    let addresses = [impostor.address, forged.address, nobody, controller.address];
    let proxy = Proxy::start(&addresses, ca.credentials("frontend", HOUR));
    controller.stream().await.begin().await;
    assert!(!impostor.was_reached() && !forged.was_reached());
    assert_eq!(proxy.discovery.link().address, Some(controller.address.to_string()));
}

#[tokio::test]
async fn a_renewed_svid_opens_a_new_stream_before_the_old_one_ends() {
    let ca = TestCa::new("cluster.local");
    let mut controller = FakeController::start(ca.credentials("controller", HOUR)).await;
    let proxy = Proxy::start(&[controller.address], ca.credentials("frontend", Duration::from_secs(5)));
    let mut first = controller.stream().await.begin().await;
    let renewed = ca.credentials("frontend", HOUR);
    proxy.ours.send_replace(Some(Arc::clone(&renewed)));
    let mut second = controller.stream().await;
    assert_eq!(*second.peer.id.as_ref().unwrap().spki_sha256(), renewed.svid().spki_sha256());
    second.hello().await;
    first.ended().await;
    assert_eq!(proxy.revision().as_deref(), Some("r1"));
}

#[tokio::test]
async fn a_stream_does_not_outlive_its_svid_and_comes_back_with_the_next_one() {
    let ca = TestCa::new("cluster.local");
    let mut controller = FakeController::start(ca.credentials("controller", HOUR)).await;
    let proxy = Proxy::start(&[controller.address], ca.credentials("frontend", Duration::from_secs(2)));
    let mut first = controller.stream().await.begin().await;
    first.ended().await;
    assert_eq!(proxy.revision().as_deref(), Some("r1"));
    assert!(!controller.was_reached(), "dialled with an SVID that has ended");
    proxy.ours.send_replace(Some(ca.credentials("frontend", HOUR)));
    controller.stream().await.begin().await;
}

#[tokio::test]
async fn the_admin_view_shows_rules_and_addresses() {
    let ca = TestCa::new("cluster.local");
    let (_controller, proxy, mut stream) = pair(&ca).await;
    let asking = proxy.ask(BACKEND);
    stream.lookup().await;
    stream.answer(addr(BACKEND), pod(addr(BACKEND), "backend")).await;
    soon(asking).await.unwrap().unwrap();
    let view = serde_json::to_value(proxy.discovery.snapshot_for_admin()).unwrap();
    assert_eq!(view["controller"]["connected"], true);
    assert_eq!(view["workload"]["revision"], "r1");
    assert_eq!(view["addresses"][0]["address"], BACKEND);
    assert_eq!(view["addresses"][0]["endpoints"][0]["id"], "spiffe://cluster.local/ns/shop/sa/backend");
}

/// Discovery whose task never runs: nobody ever answers.
fn alone() -> Discovery {
    let (_, watch) = watch::channel(None);
    Discovery::start(settings(&[]), watch, Metrics::new()).0
}

/// The same, with rules in force, so that the ranges are known.
fn alone_with_ranges() -> Discovery {
    let discovery = alone();
    let api::to_proxy::Kind::Workload(message) = workload("r1") else { panic!() };
    let read = rules::read(&discovery.0.settings, message).unwrap();
    discovery.0.in_force.store(Some(Arc::new(read.in_force)));
    discovery
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_a_connection_is_held_one_second_and_no_longer() {
    for discovery in [alone(), alone_with_ranges()] {
        let began = Instant::now();
        assert_eq!(discovery.who(addr(BACKEND)).await, Err(LookupError::NoAnswer));
        let held = began.elapsed();
        assert!(held >= HOLD && held < HOLD + Duration::from_millis(10), "{held:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_ranges_even_the_outside_is_refused() {
    assert_eq!(alone().who(addr("192.0.2.1:443")).await, Err(LookupError::NoAnswer));
}

#[tokio::test(start_paused = true)]
async fn what_no_longer_waits_is_not_remembered_as_waiting() {
    let discovery = alone_with_ranges();
    for _ in 0..3 * cache::MAX_WAITING {
        let waiting = discovery.who(addr(BACKEND));
        assert!(tokio::time::timeout(Duration::from_millis(20), waiting).await.is_err());
    }
    let left: usize = discovery.snapshot_for_admin().addresses.iter().map(|one| one.waiting).sum();
    assert_eq!(left, 0);
}

#[tokio::test(start_paused = true)]
async fn too_many_lookups_are_refused_at_once() {
    let discovery = alone_with_ranges();
    let asking: Vec<_> = (1..=cache::MAX_UNANSWERED + 10)
        .map(|port| {
            let discovery = discovery.clone();
            let address = SocketAddr::from(([10, 77, 0, 11], u16::try_from(port).unwrap()));
            tokio::spawn(async move { discovery.who(address).await })
        })
        .collect();
    let mut refused = 0;
    for one in asking {
        refused += usize::from(one.await.unwrap() == Err(LookupError::TooMany));
    }
    assert!(refused >= 10, "{refused}");
}
