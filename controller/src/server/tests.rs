use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};

use countersign_api::controller::answer::Who;
use countersign_api::controller::controller_client::ControllerClient;
use countersign_api::controller::{Ack, Address, Answer, Hello, Workload, from_proxy, to_proxy};
use countersign_credentials::PeerInfo;
use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::*;
use crate::answer::Asked;
use crate::index::Index;
use crate::server::guard::Guarded;
use crate::source::Snapshot;
use crate::testing::{MESH, SERVICES, TestCa, account, index, policy, workload, workloads};

mod floods;

static CA: LazyLock<TestCa> = LazyLock::new(TestCa::new);

/// A controller, as far as its server is concerned; connections are in memory.
struct Fixture {
    publish: watch::Sender<Arc<Snapshot>>,
    shared: Shared,
}

fn snapshot(index: Index) -> Snapshot {
    Snapshot { index: Some(Arc::new(index)), change: 1, ..Snapshot::nothing() }
}

fn small(policies: &[String]) -> Index {
    let workloads = workloads();
    let mut texts = vec![MESH, &workloads, SERVICES];
    texts.extend(policies.iter().map(String::as_str));
    index(&texts)
}

fn ready_backend() -> Index {
    index(&[MESH, &workloads().replace(", ready: false", ""), SERVICES])
}

impl Fixture {
    fn new(index: Index) -> Self {
        let (publish, snapshots) = watch::channel(Arc::new(snapshot(index)));
        let shared = Shared {
            snapshots,
            registry: Arc::default(),
            metrics: Arc::default(),
            lines: Arc::default(),
            shutdown: CancellationToken::new(),
        };
        Fixture { publish, shared }
    }

    fn publish(&self, index: Index) {
        self.publish.send_replace(Arc::new(snapshot(index)));
    }

    /// Somebody with an SVID, from somewhere; said nothing yet.
    async fn dial(&self, id: &str, from: &str) -> Proxy {
        let address = SocketAddr::new(from.parse().unwrap(), 40_000);
        let caller = Caller::new(PeerInfo { id: Some(CA.verified(id)), address });
        let (near, far) = tokio::io::duplex(64 * 1024);
        let service = service(self.shared.clone());
        let connections = tokio_stream::once(Ok::<_, std::io::Error>(Guarded::for_test(far, caller)));
        // Accepting ends after this one connection; serving goes on until it is closed.
        tokio::spawn(bounded().add_service(service).serve_with_incoming(connections));
        Proxy::over(in_memory(near).await).await
    }

    async fn frontend(&self) -> Proxy {
        let mut proxy = self.dial(&account("shop", "frontend"), "10.77.0.10").await;
        proxy.hello("uid-frontend").await;
        proxy
    }

    async fn backend(&self) -> Proxy {
        let mut proxy = self.dial(&account("shop", "backend"), "10.77.0.11").await;
        proxy.hello("uid-backend-1").await;
        proxy
    }

    fn told(&self, uid: &str) -> Told {
        let records = self.shared.registry.records();
        records.iter().find(|record| record.claim.pod_uid == uid).unwrap().told()
    }
}

async fn in_memory(io: DuplexStream) -> Channel {
    let mut io = Some(io);
    let connector = service_fn(move |_| {
        let io = io.take();
        async move { io.map(TokioIo::new).ok_or_else(|| std::io::Error::other("connected once already")) }
    });
    // A small window for the stream: what is sent and not read waits at the server, not on the way. The connection's is that
    // of a real proxy.
    let endpoint = Endpoint::from_static("http://controller")
        .initial_stream_window_size(64 * 1024)
        .initial_connection_window_size(4 * 1024 * 1024);
    endpoint.connect_with_connector(connector).await.unwrap()
}

/// The other end of a stream.
struct Proxy {
    out: mpsc::Sender<FromProxy>,
    from: Streaming<ToProxy>,
}

impl Proxy {
    async fn over(channel: Channel) -> Self {
        let (out, messages) = mpsc::channel(16);
        let mut client = ControllerClient::new(channel);
        let from = client.connect(ReceiverStream::new(messages)).await.unwrap().into_inner();
        Proxy { out, from }
    }

    async fn say(&self, kind: from_proxy::Kind) {
        self.out.send(FromProxy { kind: Some(kind) }).await.unwrap();
    }

    async fn hello(&mut self, uid: &str) {
        let hello = Hello { pod_uid: uid.into(), proxy_version: "test".into(), feature_level: 1 };
        self.say(from_proxy::Kind::Hello(hello)).await;
    }

    async fn lookup(&self, ip: &str, port: u16) {
        self.say(from_proxy::Kind::Lookup(address(ip, port))).await;
    }

    async fn next(&mut self) -> Result<to_proxy::Kind, Status> {
        let message = timeout(Duration::from_secs(60), self.from.message()).await.expect("nothing came");
        message.map(|message| message.expect("the stream ended without a status").kind.unwrap())
    }

    async fn workload(&mut self) -> Workload {
        match self.next().await.unwrap() {
            to_proxy::Kind::Workload(workload) => workload,
            other => panic!("{other:?}"),
        }
    }

    async fn answer(&mut self) -> Answer {
        match self.next().await.unwrap() {
            to_proxy::Kind::Answer(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    /// What was sent before this would come before it: so nothing else was sent.
    async fn nothing_else_came(&mut self) {
        self.lookup("10.77.0.77", 7777).await;
        let answer = self.answer().await;
        assert_eq!(answer.address, Some(address("10.77.0.77", 7777)));
        self.say(from_proxy::Kind::Forget(address("10.77.0.77", 7777))).await;
    }

    async fn end(&mut self) -> Status {
        loop {
            if let Err(status) = self.next().await {
                return status;
            }
        }
    }
}

fn address(ip: &str, port: u16) -> Address {
    Asked { ip: ip.parse().unwrap(), port }.to_wire()
}

fn rule_names(workload: &Workload) -> Vec<&str> {
    workload.rules.iter().map(|rule| rule.name.as_str()).collect()
}

#[tokio::test]
async fn hello_brings_the_workloads_own_rules() {
    let policies =
        [policy("shop", "ours", Some("frontend"), "Allow"), policy("shop", "theirs", Some("backend"), "Allow")];
    let fixture = Fixture::new(small(&policies));
    let workload = fixture.frontend().await.workload().await;
    assert_eq!((workload.namespace.as_str(), workload.name.as_str()), ("shop", "frontend"));
    assert_eq!(rule_names(&workload), ["ours"]);
    assert_eq!(workload.revision.len(), 32);
    assert_eq!(workload.mesh_ranges.len(), 4);
}

#[tokio::test]
async fn a_lookup_is_answered_and_followed_until_it_is_forgotten() {
    let fixture = Fixture::new(small(&[]));
    let mut proxy = fixture.frontend().await;
    proxy.workload().await;
    let ready = |answer: Answer| match answer.who {
        Some(Who::Service(service)) => service.endpoints.iter().map(|one| one.ready).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    proxy.lookup("10.96.0.10", 80).await;
    assert_eq!(ready(proxy.answer().await), [true, false]);
    proxy.lookup("10.77.0.11", 80).await;
    assert!(matches!(proxy.answer().await.who, Some(Who::Endpoint(_))));

    fixture.publish(ready_backend());
    assert_eq!(ready(proxy.answer().await), [true, true], "pushed without being asked");
    proxy.nothing_else_came().await;

    proxy.say(from_proxy::Kind::Forget(address("10.96.0.10", 80))).await;
    proxy.nothing_else_came().await;
    fixture.publish(small(&[]));
    proxy.nothing_else_came().await;
}

#[tokio::test]
async fn a_rule_that_changes_is_pushed_only_to_whom_it_binds() {
    let fixture = Fixture::new(small(&[]));
    let (mut frontend, mut backend) = (fixture.frontend().await, fixture.backend().await);
    let first = frontend.workload().await;
    backend.workload().await;
    fixture.publish(small(&[policy("shop", "new", Some("frontend"), "Deny")]));
    let second = frontend.workload().await;
    assert_ne!(first.revision, second.revision);
    assert_eq!(rule_names(&second), ["new"]);
    backend.nothing_else_came().await;
    fixture.publish(small(&[]));
    assert_eq!(frontend.workload().await.revision, first.revision, "the same content has the same name");
}

#[tokio::test]
async fn answers_are_given_while_rules_are_withheld() {
    let fixture = Fixture::new(small(&[]));
    let withheld = Snapshot { withheld: vec!["deny.yaml".into()], ..snapshot(small(&[])) };
    fixture.publish.send_replace(Arc::new(withheld));
    let mut proxy = fixture.frontend().await;
    proxy.lookup("10.77.0.11", 80).await;
    assert!(matches!(proxy.answer().await.who, Some(Who::Endpoint(_))), "no rules came before");
    fixture.publish(small(&[policy("shop", "deny", None, "Deny")]));
    assert_eq!(rule_names(&proxy.workload().await), ["deny"]);
}

#[tokio::test]
async fn who_is_not_the_pod_that_it_names_is_refused() {
    let fixture = Fixture::new(small(&[]));
    let (frontend, backend) = (account("shop", "frontend"), account("shop", "backend"));
    for (id, from, uid, said) in [
        (&backend, "10.77.0.12", "uid-backend-1", "does not have the address"),
        (&frontend, "10.77.0.10", "uid-backend-1", "does not run under the service account"),
        (&frontend, "10.77.0.11", "uid-backend-1", "does not run under the service account"),
        (&frontend, "10.77.0.10", "uid-nobody", "no workload has"),
        (&frontend, "10.77.0.10", "", "no workload has"),
    ] {
        let mut proxy = fixture.dial(id, from).await;
        proxy.hello(uid).await;
        let status = proxy.end().await;
        assert_eq!(status.code(), Code::PermissionDenied);
        assert!(status.message().contains(said), "{status:?}");
    }
    assert!(fixture.shared.registry.is_empty());
}

#[tokio::test]
async fn an_ipv4_address_that_comes_in_by_an_ipv6_socket_is_known() {
    let fixture = Fixture::new(small(&[]));
    let mut proxy = fixture.dial(&account("shop", "frontend"), "::ffff:10.77.0.10").await;
    proxy.hello("uid-frontend").await;
    assert_eq!(proxy.workload().await.name, "frontend");
}

#[tokio::test]
async fn a_pod_that_leaves_the_picture_is_sent_away() {
    let fixture = Fixture::new(small(&[]));
    let mut proxy = fixture.frontend().await;
    proxy.workload().await;
    // The name comes back as another pod, at the same address.
    fixture.publish(index(&[MESH, &workloads().replace("uid-frontend", "uid-reborn"), SERVICES]));
    let status = proxy.end().await;
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("no workload has"), "{status:?}");
}

#[tokio::test]
async fn without_a_picture_the_proxy_is_told_to_come_again() {
    let fixture = Fixture::new(small(&[]));
    fixture.publish.send_replace(Arc::new(Snapshot::nothing()));
    assert_eq!(fixture.frontend().await.end().await.code(), Code::Unavailable);
}

#[tokio::test]
async fn whatever_breaks_the_order_of_words_ends_the_stream() {
    let fixture = Fixture::new(small(&[]));
    let mut proxy = fixture.dial(&account("shop", "frontend"), "10.77.0.10").await;
    proxy.lookup("10.77.0.11", 1).await;
    assert_eq!(proxy.end().await.code(), Code::InvalidArgument, "a lookup before Hello");
    let mut proxy = fixture.frontend().await;
    proxy.hello("uid-frontend").await;
    assert_eq!(proxy.end().await.code(), Code::InvalidArgument, "Hello twice");
    for bad in [Address { ip: vec![1, 2, 3], port: 1 }, Address { ip: vec![1, 2, 3, 4], port: 65_536 }] {
        let mut proxy = fixture.frontend().await;
        proxy.say(from_proxy::Kind::Lookup(bad)).await;
        assert_eq!(proxy.end().await.code(), Code::InvalidArgument, "no address");
    }
    let mut proxy = fixture.frontend().await;
    proxy.workload().await;
    proxy.out.send(FromProxy { kind: None }).await.unwrap();
    proxy.nothing_else_came().await;
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_says_nothing_is_cut_off() {
    let fixture = Fixture::new(small(&[]));
    let mut proxy = fixture.dial(&account("shop", "frontend"), "10.77.0.10").await;
    let status = proxy.end().await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("Hello"), "{status:?}");
}

#[tokio::test]
async fn the_newer_stream_of_a_pod_takes_over() {
    let fixture = Fixture::new(small(&[]));
    let mut older = fixture.frontend().await;
    older.workload().await;
    let mut newer = fixture.frontend().await;
    newer.workload().await;
    assert_eq!(older.end().await.code(), Code::Aborted);
    newer.nothing_else_came().await;
    assert_eq!(fixture.shared.registry.len(), 1);
}

#[tokio::test]
async fn a_slow_reader_gets_the_newest_rules_and_not_each_that_passed_by() {
    let large = |n: usize| {
        // Over the client's window each, so that what is sent waits in no buffer for long.
        let rules: Vec<String> =
            (0..1000).map(|i| policy("shop", &format!("rule-{i}-of-change-{n}"), None, "Allow")).collect();
        small(&rules)
    };
    let fixture = Fixture::new(large(0));
    let mut proxy = fixture.frontend().await;
    let first = proxy.workload().await;
    assert!(first.rules.len() == 1000);
    const CHANGES: usize = 12;
    for n in 1..=CHANGES {
        fixture.publish(large(n));
        // The session sees each change: it answers nothing, since its reader is away, but it is not blocked.
        tokio::task::yield_now().await;
    }
    let mut seen = 0;
    loop {
        seen += 1;
        if proxy.workload().await.rules[0].name.ends_with(&format!("-{CHANGES}")) {
            break;
        }
    }
    assert!(seen <= 4, "{seen} of {CHANGES} sets came");
    proxy.nothing_else_came().await;
}

#[tokio::test]
async fn an_older_proxy_gets_all_rules_and_is_reported() {
    let fixture = Fixture::new(small(&[policy("shop", "p", None, "Allow")]));
    let mut proxy = fixture.dial(&account("shop", "frontend"), "10.77.0.10").await;
    let hello = Hello { pod_uid: "uid-frontend".into(), proxy_version: "0.0.1".into(), feature_level: 0 };
    proxy.say(from_proxy::Kind::Hello(hello)).await;
    assert_eq!(rule_names(&proxy.workload().await), ["p"]);
    assert_eq!(fixture.told("uid-frontend").beyond_level, ["shop/p"]);
}

#[tokio::test]
async fn a_newer_proxy_gets_all_rules_and_what_it_says_beyond_ours_is_passed_over() {
    let fixture = Fixture::new(small(&[policy("shop", "p", None, "Allow")]));
    let mut proxy = fixture.dial(&account("shop", "frontend"), "10.77.0.10").await;
    let hello = Hello { pod_uid: "uid-frontend".into(), proxy_version: "99.0.0".into(), feature_level: 99 };
    proxy.say(from_proxy::Kind::Hello(hello)).await;
    assert_eq!(rule_names(&proxy.workload().await), ["p"]);
    // A kind of message that came later: an older reader sees none.
    proxy.out.send(FromProxy { kind: None }).await.unwrap();
    fixture.publish(small(&[policy("shop", "q", None, "Deny")]));
    assert_eq!(rule_names(&proxy.workload().await), ["q"]);
    assert!(fixture.told("uid-frontend").beyond_level.is_empty());
}

#[tokio::test]
async fn what_a_proxy_confirms_is_recorded_and_its_lag_ends() {
    let fixture = Fixture::new(small(&[]));
    let mut proxy = fixture.frontend().await;
    let ack = |revision: String, problem: &str| {
        from_proxy::Kind::Ack(Ack { revision, problem: problem.into(), unknown_rules: Vec::new() })
    };
    let first = proxy.workload().await.revision;
    proxy.say(ack(first.clone(), "")).await;
    proxy.nothing_else_came().await;
    assert_eq!(fixture.told("uid-frontend").acked.as_deref(), Some(first.as_str()));
    fixture.publish(small(&[policy("shop", "p", None, "Deny")]));
    let second = proxy.workload().await.revision;
    assert!(fixture.told("uid-frontend").lag(std::time::Instant::now()).is_some());
    proxy.say(ack(second.clone(), "no room")).await;
    proxy.nothing_else_came().await;
    let told = fixture.told("uid-frontend");
    assert_eq!((told.acked, told.problem.as_deref()), (Some(first), Some("no room")));
    proxy.say(ack(second.clone(), "")).await;
    proxy.nothing_else_came().await;
    let told = fixture.told("uid-frontend");
    assert_eq!(told.acked, Some(second));
    assert!(told.problem.is_none() && told.lag(std::time::Instant::now()).is_none());
}

#[tokio::test]
async fn a_shutdown_tells_every_proxy() {
    let fixture = Fixture::new(small(&[]));
    let mut proxy = fixture.frontend().await;
    proxy.workload().await;
    fixture.shared.shutdown.cancel();
    assert_eq!(proxy.end().await.code(), Code::Unavailable);
}

#[tokio::test]
async fn a_proxy_that_goes_leaves_its_seat() {
    let fixture = Fixture::new(small(&[workload("shop", "x", "x", "10.77.0.70", "fd77::70", "")]));
    let mut proxy = fixture.frontend().await;
    proxy.workload().await;
    drop(proxy);
    let gone = async {
        while !fixture.shared.registry.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(20), gone).await.unwrap();
}

/// Counts what is logged on this thread, which is all of a test's runtime.
#[derive(Clone, Default)]
struct Logged(Arc<std::sync::atomic::AtomicUsize>);

impl tracing::Subscriber for Logged {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target().starts_with("countersign_controller")
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        if *event.metadata().level() <= tracing::Level::INFO {
            self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn a_proxy_that_complains_without_end_does_not_fill_the_log() {
    let logged = Logged::default();
    let _guard = tracing::subscriber::set_default(logged.clone());
    let fixture = Fixture::new(small(&[]));
    let mut proxy = fixture.frontend().await;
    proxy.workload().await;
    for n in 0..1000 {
        let (revision, problem) = (n.to_string(), format!("no {n}"));
        proxy.say(from_proxy::Kind::Ack(Ack { revision, problem, unknown_rules: Vec::new() })).await;
    }
    proxy.nothing_else_came().await;
    assert_eq!(fixture.told("uid-frontend").problem.as_deref(), Some("no 999"), "each was heard");
    let lines = logged.0.load(std::sync::atomic::Ordering::SeqCst);
    assert!((1..100).contains(&lines), "{lines} lines");
}

#[tokio::test(start_paused = true)]
async fn a_proxy_that_comes_and_goes_without_end_does_not_fill_the_log() {
    let lines = CallerLines::default();
    let began = (0..100_000).filter(|_| lines.stream()).count();
    assert!((1000..10_000).contains(&began), "{began} lines");
    assert!(lines.wrong(), "and leaves room for what went wrong");
}
