//! Real connections go where the rules say, over both families.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};

use countersign_kit::Inside;
use countersign_proxy::intercept::{Rules, install};

use crate::Promise;
use crate::support::{SOON, Seen, Stage, any, ask, both, by_mark, listen};

pub const PROMISES: &[Promise] = &[
    ("what_comes_from_outside_goes_to_the_inbound_listener", what_comes_from_outside_goes_to_the_inbound_listener),
    ("what_the_app_sends_goes_to_the_outbound_listener", what_the_app_sends_goes_to_the_outbound_listener),
    (
        "the_pods_own_address_is_redirected_outbound_and_not_twice",
        the_pods_own_address_is_redirected_outbound_and_not_twice,
    ),
    ("loopback_and_udp_pass_by", loopback_and_udp_pass_by),
    ("the_proxys_own_user_is_exempt", the_proxys_own_user_is_exempt),
    ("health_and_skipped_ports_and_networks_pass_by", health_and_skipped_ports_and_networks_pass_by),
    ("no_connection_slips_by_while_rules_are_replaced", no_connection_slips_by_while_rules_are_replaced),
];

fn what_comes_from_outside_goes_to_the_inbound_listener(inside: Inside) {
    let stage = Stage::with_rules(inside, &by_mark());
    let proxy = listen(&stage.pod, any(15006), "inbound");
    let app = listen(&stage.pod, any(8080), "app");
    for port in [8080, 9, 15001, 15006] {
        for target in both(&stage.pod, port) {
            assert_eq!(ask(&stage.neighbour, target, None).unwrap(), "inbound", "{target}");
            let seen = proxy.recv_timeout(SOON).unwrap();
            assert_eq!(seen.destination, target);
            assert!(stage.neighbour.addresses().contains(&seen.source.ip()), "the source is kept");
        }
    }
    assert!(app.try_recv().is_err());
}

fn what_the_app_sends_goes_to_the_outbound_listener(inside: Inside) {
    let stage = Stage::with_rules(inside, &by_mark());
    let proxies = ["127.0.0.1:15001", "[::1]:15001"].map(|at| listen(&stage.pod, at.parse().unwrap(), "outbound"));
    let server = listen(&stage.neighbour, any(80), "server");
    let nobody: [SocketAddr; 2] = ["10.96.0.10:80".parse().unwrap(), "[fd96::10]:443".parse().unwrap()];
    let metadata: SocketAddr = "169.254.169.254:80".parse().unwrap();
    for target in both(&stage.neighbour, 80).into_iter().chain(nobody).chain([metadata]) {
        assert_eq!(ask(&stage.pod, target, None).unwrap(), "outbound", "{target}");
        let Seen { destination, source } = proxies[usize::from(target.is_ipv6())].recv_timeout(SOON).unwrap();
        assert_eq!(destination, target);
        assert!(stage.pod.addresses().contains(&source.ip()), "{source}");
    }
    assert!(server.try_recv().is_err());
    // The same by the proxy itself reaches the server.
    for target in both(&stage.neighbour, 80) {
        assert_eq!(ask(&stage.pod, target, Some(1337)).unwrap(), "server");
        assert_eq!(server.recv_timeout(SOON).unwrap().destination, target);
    }
}

fn the_pods_own_address_is_redirected_outbound_and_not_twice(inside: Inside) {
    let stage = Stage::with_rules(inside, &by_mark());
    let _inbound = listen(&stage.pod, any(15006), "inbound");
    let _outbound = ["127.0.0.1:15001", "[::1]:15001"].map(|at| listen(&stage.pod, at.parse().unwrap(), "outbound"));
    let app = listen(&stage.pod, any(8080), "app");
    for target in both(&stage.pod, 8080) {
        assert_eq!(ask(&stage.pod, target, None).unwrap(), "outbound", "{target}");
        assert_eq!(ask(&stage.pod, target, Some(1337)).unwrap(), "app", "the proxy reaches the app at its pod address");
        let seen = app.recv_timeout(SOON).unwrap();
        assert_eq!((seen.destination, seen.source.ip()), (target, target.ip()), "no loopback address on either side");
    }
}

fn loopback_and_udp_pass_by(inside: Inside) {
    let stage = Stage::with_rules(inside, &by_mark());
    let _proxies = [listen(&stage.pod, any(15006), "inbound"), listen(&stage.pod, any(15001), "outbound")];
    let _app = listen(&stage.pod, any(8080), "app");
    for target in ["127.0.0.1:8080", "127.7.7.7:8080", "[::1]:8080"] {
        assert_eq!(ask(&stage.pod, target.parse().unwrap(), None).unwrap(), "app", "{target}");
    }
    for (here, there) in [(&stage.neighbour, &stage.pod), (&stage.pod, &stage.neighbour)] {
        for target in both(there, 53) {
            let server = there.inside(|| UdpSocket::bind(target).unwrap());
            server.set_read_timeout(Some(SOON)).unwrap();
            here.inside(|| UdpSocket::bind(any(0)).unwrap().send_to(b"?", mapped(target)).unwrap());
            let mut byte = [0; 1];
            assert_eq!(server.recv_from(&mut byte).unwrap().0, 1, "{target}");
        }
    }
}

/// For a socket of both families.
fn mapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
        SocketAddr::V6(_) => address,
    }
}

fn the_proxys_own_user_is_exempt(inside: Inside) {
    let stage = Stage::with_rules(inside, &Rules { exempt_uid: Some(1337), exempt_mark: None, ..by_mark() });
    let _proxies = ["127.0.0.1:15001", "[::1]:15001"].map(|at| listen(&stage.pod, at.parse().unwrap(), "outbound"));
    let _server = listen(&stage.neighbour, any(80), "server");
    for address in stage.neighbour.addresses() {
        let script = format!("exec 3<>/dev/tcp/{address}/80; cat <&3");
        let said = |uid| stage.pod.command("bash").args(["-c", &script]).uid(uid).succeed().unwrap();
        assert_eq!((said(1337).as_str(), said(1338).as_str()), ("server", "outbound"));
        // No mark was asked for: a mark exempts nobody.
        assert_eq!(ask(&stage.pod, SocketAddr::new(address, 80), Some(1337)).unwrap(), "outbound");
    }
}

fn health_and_skipped_ports_and_networks_pass_by(inside: Inside) {
    let rules = Rules {
        skip_inbound_ports: vec![22],
        skip_outbound_ports: vec![25],
        skip_outbound_cidrs: vec!["10.77.0.13/32".parse().unwrap(), "fd77::/125".parse().unwrap()],
        ..by_mark()
    };
    let stage = Stage::with_rules(inside, &rules);
    let _proxies = [listen(&stage.pod, any(15006), "inbound"), listen(&stage.pod, any(15001), "outbound")];
    let _apps = [15020, 22, 25].map(|port| listen(&stage.pod, any(port), "app"));
    let _servers = [22, 25, 15020].map(|port| listen(&stage.neighbour, any(port), "server"));
    for (port, expected) in [(15020, "app"), (22, "app"), (25, "inbound")] {
        for target in both(&stage.pod, port) {
            assert_eq!(ask(&stage.neighbour, target, None).unwrap(), expected, "{target}");
        }
    }
    let [v4, v6] = stage.neighbour.addresses();
    for (target, expected) in [
        (SocketAddr::new(v4, 22), "server"),   // its network
        (SocketAddr::new(v6, 25), "server"),   // its port
        (SocketAddr::new(v6, 22), "outbound"), // fd77::d is beyond fd77::/125
        (SocketAddr::new(v6, 15020), "outbound"),
    ] {
        assert_eq!(ask(&stage.pod, target, None).unwrap(), expected, "{target}");
    }
}

fn no_connection_slips_by_while_rules_are_replaced(inside: Inside) {
    let stage = Stage::with_rules(inside, &by_mark());
    let _proxies = [listen(&stage.pod, any(15006), "inbound"), listen(&stage.pod, any(15001), "outbound")];
    let (app, server) = (listen(&stage.pod, any(80), "app"), listen(&stage.neighbour, any(80), "server"));
    let replaced = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let installer = scope.spawn(|| {
            stage.pod.inside(|| {
                for _ in 0..50 {
                    install(&by_mark()).unwrap();
                    replaced.fetch_add(1, Ordering::Relaxed);
                }
            });
        });
        while replaced.load(Ordering::Relaxed) < 50 && !installer.is_finished() {
            for target in both(&stage.pod, 80) {
                assert_eq!(ask(&stage.neighbour, target, None).unwrap(), "inbound");
            }
            for target in both(&stage.neighbour, 80) {
                assert_eq!(ask(&stage.pod, target, None).unwrap(), "outbound");
            }
        }
        installer.join().unwrap();
    });
    assert!(app.try_recv().is_err() && server.try_recv().is_err());
}
