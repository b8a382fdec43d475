//! A hostile neighbour sends whatever it likes to the pod's hardware address (docs/decisions/0002).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use countersign_kit::{Forger, Inside};
use countersign_proxy::intercept::guard::{BadDestination, Own};

use crate::Promise;
use crate::support::{SOON, Seen, Stage, any, by_mark, listen};

pub const PROMISES: &[Promise] = &[
    ("a_neighbour_cannot_name_another_host", a_neighbour_cannot_name_another_host),
    (
        "a_neighbour_that_names_loopback_is_refused_by_the_guard",
        a_neighbour_that_names_loopback_is_refused_by_the_guard,
    ),
    (
        "every_address_that_the_app_could_be_reached_at_is_redirected",
        every_address_that_the_app_could_be_reached_at_is_redirected,
    ),
    ("without_each_of_the_guards_a_neighbour_gets_further", without_each_of_the_guards_a_neighbour_gets_further),
];

/// Where a spoofed connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Nobody answered.
    Nothing,
    /// At the inbound listener, which was told this original destination.
    Listener(SocketAddr),
    /// At the app itself.
    App,
}

/// A neighbour with raw sockets, whose own kernel keeps quiet.
struct Neighbour {
    forger: Forger,
    own: SocketAddr,
    proxy: Receiver<Seen>,
    apps: Vec<Receiver<Seen>>,
    _stage: Stage, // ends last
}

impl Neighbour {
    fn new(stage: Stage) -> Self {
        let forger = Forger::new(&stage.neighbour, &stage.pod).unwrap();
        let proxy = listen(&stage.pod, any(15006), "inbound");
        // On all addresses, and on loopback alone: an admin port that believes it is local.
        let apps = [any(8080), "127.0.0.1:9999".parse().unwrap(), "[::1]:9999".parse().unwrap(), any(15001)];
        let apps = apps.map(|at| listen(&stage.pod, at, "app")).into();
        Self { own: SocketAddr::new(stage.pod.v4().into(), 8080), forger, proxy, apps, _stage: stage }
    }

    /// A whole handshake with `destination`, of which the kernel here knows nothing; then the same with an address that must
    /// answer: as frames keep their order, whatever the first did is done by then.
    fn knock(&mut self, destination: SocketAddr) -> Fate {
        let own = self.own;
        let answered = self.forger.handshake(destination, own).unwrap();
        // A third, as the last step of the first may still be on its way up.
        self.forger.handshake(own, own).unwrap();
        if let Some(seen) = self.seen_of(answered) {
            return seen;
        }
        Fate::Nothing
    }

    /// Which listener saw the connection from this port; it was answered, so one of them will.
    fn seen_of(&self, port: Option<u16>) -> Option<Fate> {
        let port = port?;
        let begun = Instant::now();
        while begun.elapsed() < SOON {
            for (fate, receiver) in
                std::iter::once((None, &self.proxy)).chain(self.apps.iter().map(|app| (Some(Fate::App), app)))
            {
                if let Some(seen) = receiver.try_iter().find(|seen| seen.source.port() == port) {
                    return Some(fate.unwrap_or(Fate::Listener(seen.destination)));
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("answered, but by nobody we know");
    }
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

const OTHER_HOSTS: [&str; 9] = [
    "10.77.0.13:8080",    // the neighbour itself
    "10.77.0.99:80",      // a third pod
    "169.254.169.254:80", // the cloud's metadata
    "198.51.100.7:443",
    "10.77.0.255:8080", // broadcast
    "224.0.0.1:8080",
    "[fd77::99]:80",
    "[2001:db8::7]:443",
    "[::ffff:127.0.0.1]:9999",
];

fn a_neighbour_cannot_name_another_host(inside: Inside) {
    let mut neighbour = Neighbour::new(Stage::with_rules(inside, &by_mark()));
    for host in OTHER_HOSTS {
        assert_eq!(neighbour.knock(at(host)), Fate::Nothing, "{host}");
    }
}

fn a_neighbour_that_names_loopback_is_refused_by_the_guard(inside: Inside) {
    let stage = Stage::with_rules(inside, &by_mark());
    let own = Own::new(stage.pod.addresses(), [15001, 15006, 15020, 15021]);
    let mut neighbour = Neighbour::new(stage);
    for named in [at("127.0.0.1:9999"), at("127.255.0.1:8080")] {
        assert_eq!(neighbour.knock(named), Fate::Listener(named), "redirected before routing can call it martian");
        assert_eq!(own.inbound(named), Err(BadDestination::Loopback(named)));
    }
    assert_eq!(neighbour.knock(at("[::1]:9999")), Fate::Nothing, "IPv6 drops it before any rule");
}

fn every_address_that_the_app_could_be_reached_at_is_redirected(inside: Inside) {
    let stage = Stage::with_rules(inside, &by_mark());
    stage.pod.ip("address add 10.99.0.1/32 dev lo\naddress add fd99::1/128 dev lo\n").unwrap();
    let link_local = stage
        .pod
        .command("ip")
        .args(["-6", "-o", "address", "show", "dev", "eth0", "scope", "link"])
        .succeed()
        .unwrap();
    let link_local = link_local.split_whitespace().find_map(|word| word.strip_suffix("/64")).unwrap().to_owned();
    let own = Own::new(stage.pod.addresses(), [15001, 15006, 15020, 15021]);
    let mut neighbour = Neighbour::new(stage);
    for named in ["10.77.0.12:8080", "[fd77::c]:8080"] {
        assert_eq!(neighbour.knock(at(named)), Fate::Listener(at(named)));
        assert_eq!(own.inbound(at(named)).unwrap().address(), at(named));
    }
    // The kernel would hand these to the app, whatever interface they came in by: better at the proxy, which refuses them.
    for named in ["10.99.0.1:8080".to_owned(), "[fd99::1]:8080".to_owned(), format!("[{link_local}]:8080")] {
        assert_eq!(neighbour.knock(at(&named)), Fate::Listener(at(&named)));
        assert_eq!(own.inbound(at(&named)), Err(BadDestination::NotOurs(at(&named))));
    }
    for named in ["10.77.0.12:15001", "10.77.0.12:15006", "[fd77::c]:15001"] {
        assert_eq!(neighbour.knock(at(named)), Fate::Listener(at(named)));
        assert_eq!(own.inbound(at(named)), Err(BadDestination::OwnPort(at(named))));
    }
}

/// The experiment itself: the same knocks under other rules, which show why ours are as they are.
fn without_each_of_the_guards_a_neighbour_gets_further(inside: Inside) {
    let rules = |condition: &str| {
        format!(
            "table inet t {{\nchain p {{\ntype nat hook prerouting priority -100; policy accept;\n{condition} meta l4proto tcp redirect to :15006\n}}\n}}\n"
        )
    };
    let variants = [
        ("no rules", String::new()),
        ("all", rules("iifname != \"lo\"")),
        ("fib daddr type local", rules("iifname != \"lo\" fib daddr type local")),
        ("fib daddr . iif type local", rules("iifname != \"lo\" fib daddr . iif type local")),
    ];
    let targets = [
        "10.77.0.12:8080",
        "127.0.0.1:9999",
        "[::1]:9999",
        "10.99.0.1:8080",
        "169.254.169.254:80",
        "10.77.0.99:80",
        "[2001:db8::7]:443",
        "[::ffff:127.0.0.1]:9999",
    ];
    let mut table = BTreeMap::new();
    for (name, ruleset) in &variants {
        let stage = Stage::new(inside);
        stage.pod.nft(ruleset).unwrap();
        stage.pod.ip("address add 10.99.0.1/32 dev lo\n").unwrap();
        let mut neighbour = Neighbour::new(stage);
        for target in targets {
            let fate = neighbour.knock(at(target));
            println!("| {name} | {target} | {fate:?} |");
            table.insert((*name, target), fate);
        }
    }
    let fate = |variant, target| table[&(variant, target)];
    assert_eq!(fate("all", "169.254.169.254:80"), Fate::Listener(at("169.254.169.254:80")), "any host can be named");
    assert_eq!(fate("all", "127.0.0.1:9999"), Fate::Listener(at("127.0.0.1:9999")));
    assert_eq!(fate("no rules", "127.0.0.1:9999"), Fate::Nothing, "it is the redirect that lets it in");
    assert_eq!(fate("fib daddr type local", "127.0.0.1:9999"), Fate::Listener(at("127.0.0.1:9999")));
    assert_eq!(fate("fib daddr . iif type local", "127.0.0.1:9999"), Fate::Nothing);
    assert_eq!(fate("fib daddr . iif type local", "10.99.0.1:8080"), Fate::App, "past the proxy");
}
