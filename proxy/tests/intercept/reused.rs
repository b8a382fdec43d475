//! Addresses and ports that the app and the proxy use one after the other (docs/decisions/0002).

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use countersign_kit::{Inside, Namespace};
use socket2::{Domain, SockRef, Socket, Type};

use crate::Promise;
use crate::support::{SOON, Stage, any, both, by_mark, listener};

pub const PROMISES: &[Promise] = &[
    ("the_proxy_does_not_meet_itself_on_a_port_that_the_app_had", the_proxy_does_not_meet_itself),
    ("the_app_does_not_pass_by_on_a_port_that_the_proxy_had", the_app_does_not_pass_by),
    ("without_the_apart_chain_both_would_happen", without_the_apart_chain_both_would_happen),
    ("each_kind_may_use_its_own_ports_again", each_kind_may_use_its_own_ports_again),
];

const PORT: u16 = 41_000;
const MARK: Option<u32> = Some(1337);
const APP: Option<u32> = None;
/// Longer than the kernel keeps an entry after a reset (10 s), and than the pause before the SYN that comes next.
const GONE: Duration = Duration::from_secs(30);
/// For what must not happen.
const WHILE: Duration = Duration::from_secs(2);

/// Answers with its word, or resets.
struct Server {
    resets: Arc<AtomicBool>,
}

impl Server {
    fn start(place: &Namespace, address: SocketAddr, word: &'static str) -> Self {
        let listener = listener(place, address);
        let resets = Arc::new(AtomicBool::new(false));
        let now = Arc::clone(&resets);
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                if now.load(Ordering::SeqCst) {
                    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                } else {
                    let _ = stream.write_all(word.as_bytes());
                }
            }
        });
        Self { resets }
    }

    fn resets(&self, from_now_on: bool) {
        self.resets.store(from_now_on, Ordering::SeqCst);
    }
}

struct Scene {
    stage: Stage,
    listener: Server,
    peer: Server,
}

impl Scene {
    fn new(inside: Inside) -> Self {
        let stage = Stage::with_rules(inside, &by_mark());
        let listener = Server::start(&stage.pod, any(15001), "listener");
        Server::start(&stage.pod, any(8080), "app");
        let peer = Server::start(&stage.neighbour, any(80), "peer");
        Self { stage, listener, peer }
    }

    /// From the one port, always the same; closed with a reset, so that the port is free at once.
    fn ask(&self, target: SocketAddr, mark: Option<u32>, patience: Duration) -> io::Result<String> {
        let own = both(&self.stage.pod, PORT)[usize::from(target.is_ipv6())];
        self.stage.pod.inside(|| {
            let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
            if let Some(mark) = mark {
                socket.set_mark(mark)?;
            }
            socket.set_reuse_address(true)?;
            socket.bind(&own.into())?;
            socket.set_linger(Some(Duration::ZERO))?;
            socket.connect_timeout(&target.into(), patience)?;
            socket.set_read_timeout(Some(SOON))?;
            let mut word = String::new();
            TcpStream::from(socket).read_to_string(&mut word)?;
            Ok(word)
        })
    }

    /// The app is reset by our listener: the entry stays behind, translated.
    fn app_is_refused(&self, target: SocketAddr) {
        self.listener.resets(true);
        let refused = self.ask(target, APP, SOON).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionReset, "{target}");
        self.listener.resets(false);
    }

    /// The proxy is reset by its peer: the entry stays behind, not translated.
    fn proxy_is_refused(&self, target: SocketAddr) {
        self.peer.resets(true);
        let refused = self.ask(target, MARK, SOON).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionReset, "{target}");
        self.peer.resets(false);
    }

    /// Whom they meet who dial next: the first on what the app left, the second on what the proxy left.
    fn meet(&self, next: [Option<u32>; 2], whom: [&str; 2]) {
        for target in both(&self.stage.pod, 8080) {
            self.app_is_refused(target);
            assert_eq!(self.ask(target, next[0], SOON).unwrap(), whom[0], "{target}");
        }
        for target in both(&self.stage.neighbour, 80) {
            self.proxy_is_refused(target);
            assert_eq!(self.ask(target, next[1], SOON).unwrap(), whom[1], "{target}");
        }
    }
}

fn the_proxy_does_not_meet_itself(inside: Inside) {
    let scene = Scene::new(inside);
    for target in both(&scene.stage.pod, 8080) {
        scene.app_is_refused(target);
        let refused = scene.ask(target, MARK, SOON).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "at once, so that it may dial from another port");
        let other = crate::support::ask(&scene.stage.pod, target, MARK).unwrap();
        assert_eq!(other, "app", "{target}");
    }
}

fn the_app_does_not_pass_by(inside: Inside) {
    let scene = Scene::new(inside);
    for target in both(&scene.stage.neighbour, 80) {
        scene.proxy_is_refused(target);
        let waits = scene.ask(target, APP, WHILE).unwrap_err();
        assert_eq!(waits.kind(), io::ErrorKind::TimedOut, "{target}");
        assert_eq!(scene.ask(target, APP, GONE).unwrap(), "listener", "{target}");
    }
}

fn without_the_apart_chain_both_would_happen(inside: Inside) {
    let scene = Scene::new(inside);
    scene.stage.pod.nft("flush chain inet countersign apart").unwrap();
    scene.meet([MARK, APP], ["listener", "peer"]);
}

fn each_kind_may_use_its_own_ports_again(inside: Inside) {
    Scene::new(inside).meet([APP, MARK], ["listener", "peer"]);
}
