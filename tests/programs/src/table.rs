//! The table itself. Package names are those of Debian 12 and Ubuntu 24.04, which have all of them under the same names.

/// One program (or module), the package that brings it, and what it is for.
pub struct Program {
    /// What it is called by: a name on the path, or the package of what is no program.
    pub name: &'static str,
    /// The package that brings it.
    pub package: &'static str,
    /// The file by which it is known to be there, where that is no program on the path.
    pub file: Option<&'static str>,
    /// What goes missing without it.
    pub used_for: &'static str,
    /// Who needs it.
    pub who: &'static [For],
}

/// Who asks: each needs other programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    /// `cargo xtask demo`.
    Demo,
    /// `cargo xtask test`.
    Test,
    /// `cargo xtask bench`.
    Bench,
    /// `cargo xtask cluster`, and the last step of `cargo xtask test`.
    Cluster,
}

const fn program(name: &'static str, package: &'static str, used_for: &'static str, who: &'static [For]) -> Program {
    Program { name, package, file: None, used_for, who }
}

const fn file(package: &'static str, file: &'static str, used_for: &'static str, who: &'static [For]) -> Program {
    Program { name: package, package, file: Some(file), used_for, who }
}

const BUILD: &[For] = &[For::Demo, For::Test, For::Bench];
const TESTS: &[For] = &[For::Test];
const PEERS: &[For] = &[For::Test, For::Bench];
const BENCHES: &[For] = &[For::Bench];
const CLUSTER: &[For] = &[For::Cluster];
const TESTS_AND_CLUSTER: &[For] = &[For::Test, For::Cluster];
const ALL_BUT_DEMO: &[For] = &[For::Test, For::Bench, For::Cluster];
const EVERYWHERE: &[For] = &[For::Demo, For::Test, For::Bench, For::Cluster];

/// Every program, once, and who needs it.
pub const PROGRAMS: &[Program] = &[
    program("make", "make", "building jemalloc, the allocator of sidecar and CA", BUILD),
    program("ip", "iproute2", "virtual pods: namespaces, links, addresses", EVERYWHERE),
    program("nsenter", "util-linux", "running a command inside a virtual pod", EVERYWHERE),
    program("unshare", "util-linux", "private namespaces", EVERYWHERE),
    program("setpriv", "util-linux", "becoming another user", EVERYWHERE),
    program("prlimit", "util-linux", "the tests: a process that is out of files", TESTS),
    program("curl", "curl", "the unmodified HTTP client", EVERYWHERE),
    program("nginx", "nginx", "the unmodified HTTP server", EVERYWHERE),
    program("nft", "nftables", "the tests' judge of the redirect rules", TESTS_AND_CLUSTER),
    program("openssl", "openssl", "a foreign judge of certificates; an app with its own TLS", TESTS_AND_CLUSTER),
    program("redis-server", "redis-server", "a pipelined protocol", TESTS),
    program("redis-benchmark", "redis-tools", "a pipelined protocol", TESTS),
    program("redis-cli", "redis-tools", "a pipelined protocol", TESTS),
    program("mariadbd", "mariadb-server-core", "a protocol in which the server speaks first", TESTS),
    program("mariadb-install-db", "mariadb-server-core", "a protocol in which the server speaks first", TESTS),
    program("mariadb", "mariadb-client-core", "a protocol in which the server speaks first", TESTS),
    program("postgres", "postgresql", "a database with its own handshake", TESTS),
    program("initdb", "postgresql", "a database with its own handshake", TESTS),
    program("psql", "postgresql-client", "a database with its own handshake", TESTS),
    file("python3", "/usr/bin/python3", "servers and clients of gRPC, WebSocket and SMTP; pip", ALL_BUT_DEMO),
    file(
        "python3-pip",
        "/usr/lib/python3/dist-packages/pip/__init__.py",
        "Envoy, and Go where there is none",
        ALL_BUT_DEMO,
    ),
    file("python3-grpcio", "/usr/lib/python3/dist-packages/grpc/__init__.py", "a gRPC pair", TESTS),
    file("python3-websockets", "/usr/lib/python3/dist-packages/websockets/__init__.py", "a WebSocket", TESTS),
    file(
        "python3-aiosmtpd",
        "/usr/lib/python3/dist-packages/aiosmtpd/__init__.py",
        "a protocol in which the server speaks first",
        TESTS,
    ),
    program("containerd", "containerd", "the cluster: the nodes' container runtime", CLUSTER),
    program("runc", "runc", "the cluster: the nodes' container runtime", CLUSTER),
    file("containernetworking-plugins", "/usr/lib/cni/bridge", "the cluster: the pods' network", CLUSTER),
    program("conntrack", "conntrack", "the cluster: kube-proxy", CLUSTER),
    program("iptables", "iptables", "the cluster: the pods' network", CLUSTER),
    program("socat", "socat", "the cluster: port-forward; a test app", CLUSTER),
    program("busybox", "busybox-static", "the cluster: test apps", CLUSTER),
    program("haproxy", "haproxy", "the bench: the plain relay, and a peer", PEERS),
    file("libnginx-mod-stream", "/usr/lib/nginx/modules/ngx_stream_module.so", "the bench: a peer", PEERS),
    program("wrk", "wrk", "the bench: a second opinion of our load generator", BENCHES),
    program("pkill", "procps", "the demo's test: all sidecars die at once", TESTS),
    program("sysctl", "procps", "the cluster: the host's settings, put back at its end", CLUSTER),
    program("strace", "strace", "killing the CA at each write of its state; the bench: system calls a request", PEERS),
];
