//! Two pods and what listens in them.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use countersign_kit::{Inside, Namespace, Net, Pod, PodSpec};
use countersign_proxy::intercept::{Family, Rules, install};
use socket2::{Domain, SockRef, Socket, Type};

/// For what must happen.
pub const SOON: Duration = Duration::from_secs(10);

/// A pod with rules, and its neighbour on the same link.
pub struct Stage {
    pub pod: Pod,
    pub neighbour: Pod,
    _net: Net, // ends last
}

impl Stage {
    pub fn new(inside: Inside) -> Self {
        let net = Net::new(inside).unwrap();
        let pod = net.pod(PodSpec::numbered("pod", 12)).unwrap();
        let neighbour = net.pod(PodSpec::numbered("neighbour", 13)).unwrap();
        Self { pod, neighbour, _net: net }
    }

    pub fn with_rules(inside: Inside, rules: &Rules) -> Self {
        let stage = Self::new(inside);
        stage.pod.inside(|| install(rules)).unwrap();
        stage
    }
}

/// The proxy's own traffic is known by its mark: that works with one user, too.
pub fn by_mark() -> Rules {
    Rules {
        family: Family::Both,
        inbound_port: 15006,
        outbound_port: 15001,
        health_port: 15020,
        exempt_uid: None,
        exempt_mark: Some(1337),
        skip_inbound_ports: Vec::new(),
        skip_outbound_ports: Vec::new(),
        skip_outbound_cidrs: Vec::new(),
    }
}

/// What reached a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Where it was going, by connection tracking.
    pub destination: SocketAddr,
    /// Who it said it was.
    pub source: SocketAddr,
}

/// Says `word` to each connection, then ends it.
pub fn listen(place: &Namespace, address: SocketAddr, word: &'static str) -> Receiver<Seen> {
    let listener = listener(place, address);
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        while let Ok((mut stream, source)) = listener.accept() {
            let destination = original_destination(&stream);
            let _ = stream.write_all(word.as_bytes());
            if sender.send(Seen { destination: canonical(destination), source: canonical(source) }).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Listens on a port of both families, or on one address.
pub fn listener(place: &Namespace, address: SocketAddr) -> TcpListener {
    place.inside(|| {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        if address.is_ipv6() {
            socket.set_only_v6(false).unwrap();
        }
        socket.set_reuse_address(true).unwrap();
        socket.bind(&address.into()).unwrap();
        socket.listen(1024).unwrap();
        TcpListener::from(socket)
    })
}

/// On every address of both families.
pub fn any(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)
}

fn original_destination(stream: &TcpStream) -> SocketAddr {
    let socket = SockRef::from(stream);
    let local = stream.local_addr().unwrap();
    let mapped = local.ip().to_canonical().is_ipv4();
    let told = if mapped { socket.original_dst_v4() } else { socket.original_dst_v6() };
    // Where there is no connection tracking, nothing was redirected.
    told.ok().and_then(|address| address.as_socket()).unwrap_or(local)
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Who answers there: the word of whatever listener it reached, or the error.
pub fn ask(from: &Namespace, target: SocketAddr, mark: Option<u32>) -> Result<String, std::io::Error> {
    from.inside(|| {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
        if let Some(mark) = mark {
            socket.set_mark(mark)?;
        }
        socket.connect_timeout(&target.into(), SOON)?;
        socket.set_read_timeout(Some(SOON))?;
        let mut word = String::new();
        TcpStream::from(socket).read_to_string(&mut word)?;
        Ok(word)
    })
}

/// Both families of a port.
pub fn both(pod: &Pod, port: u16) -> [SocketAddr; 2] {
    pod.addresses().map(|address: IpAddr| SocketAddr::new(address, port))
}
