//! The system programs that the build, the tests and the demo use: one table, and how a fresh machine gets them.
//!
//! Called first by every command. It must never start a service, never ask a question, and never fail a run by itself:
//! what is missing is named, with the line to type, and the step that needs it says that it was skipped.

use std::path::{Path, PathBuf};
use std::process::Command;

/// One program, the Debian and Ubuntu package that brings it, and what it is for.
pub struct Program {
    /// What is looked for: a name on the path, or an absolute path, which may have one `*` in it.
    pub look_for: &'static str,
    package: &'static str,
    /// What goes missing without it.
    pub used_for: &'static str,
    who: &'static [For],
}

const fn program(
    look_for: &'static str,
    package: &'static str,
    used_for: &'static str,
    who: &'static [For],
) -> Program {
    Program { look_for, package, used_for, who }
}

const ALL: &[For] = &[For::Demo, For::Test, For::Bench];
const TESTS: &[For] = &[For::Test];
const PEERS: &[For] = &[For::Test, For::Bench];
const BENCHES: &[For] = &[For::Bench];
const CLUSTER: &[For] = &[For::Cluster];
const TESTS_AND_CLUSTER: &[For] = &[For::Test, For::Cluster];
const EVERYWHERE: &[For] = &[For::Demo, For::Test, For::Bench, For::Cluster];

/// Every program, once, and who needs it.
pub const PROGRAMS: &[Program] = &[
    program("make", "make", "building jemalloc, the sidecar's allocator", ALL),
    program("ip", "iproute2", "virtual pods: namespaces, links, addresses", EVERYWHERE),
    program("nsenter", "util-linux", "running a command inside a virtual pod", EVERYWHERE),
    program("curl", "curl", "the unmodified HTTP client", EVERYWHERE),
    program("nginx", "nginx", "the unmodified HTTP server", EVERYWHERE),
    program("nft", "nftables", "the tests' judge of the redirect rules", TESTS_AND_CLUSTER),
    program("openssl", "openssl", "a foreign judge of certificates; an app with its own TLS", TESTS_AND_CLUSTER),
    program("strace", "strace", "killing the CA at each write of its state", TESTS),
    program("redis-server", "redis-server", "a pipelined protocol", TESTS),
    program("redis-benchmark", "redis-tools", "a pipelined protocol", TESTS),
    program("mariadbd", "mariadb-server-core", "a protocol in which the server speaks first", TESTS),
    program("mariadb", "mariadb-client-core", "a protocol in which the server speaks first", TESTS),
    program("/usr/lib/postgresql/*/bin/postgres", "postgresql", "a database with its own handshake", TESTS),
    program("psql", "postgresql-client", "a database with its own handshake", TESTS),
    program("/usr/bin/python3", "python3", "servers and clients of gRPC, WebSocket and SMTP", TESTS),
    program("/usr/lib/python3/dist-packages/grpc", "python3-grpcio", "a gRPC pair", TESTS),
    program("/usr/lib/python3/dist-packages/websockets", "python3-websockets", "a WebSocket", TESTS),
    program(
        "/usr/lib/python3/dist-packages/aiosmtpd",
        "python3-aiosmtpd",
        "a protocol in which the server speaks first",
        TESTS,
    ),
    program("containerd", "containerd", "the cluster: the nodes' container runtime", CLUSTER),
    program("runc", "runc", "the cluster: the nodes' container runtime", CLUSTER),
    program("/usr/lib/cni/bridge", "containernetworking-plugins", "the cluster: the pods' network", CLUSTER),
    program("conntrack", "conntrack", "the cluster: kube-proxy", CLUSTER),
    program("iptables", "iptables", "the cluster: the pods' network", CLUSTER),
    program("socat", "socat", "the cluster: port-forward; a test app", CLUSTER),
    program("busybox", "busybox-static", "the cluster: test apps", CLUSTER),
    program("haproxy", "haproxy", "the bench: the plain relay, and a peer", PEERS),
    program("/usr/lib/nginx/modules/ngx_stream_module.so", "libnginx-mod-stream", "the bench: a peer", PEERS),
    program("wrk", "wrk", "the bench: a second opinion of our load generator", BENCHES),
    program("strace", "strace", "the bench: system calls a request", BENCHES),
];

/// Who asks: each needs other programs.
#[derive(Clone, Copy, PartialEq, Eq)]
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

/// Finds a program by its name or pattern.
pub fn find(look_for: &str) -> Option<PathBuf> {
    if let Some((before, after)) = look_for.split_once('*') {
        let found = std::fs::read_dir(before).ok()?.flatten();
        return found
            .map(|entry| PathBuf::from(format!("{}{after}", entry.path().display())))
            .find(|path| path.is_file());
    }
    if look_for.starts_with('/') {
        return Some(PathBuf::from(look_for)).filter(|path| path.exists());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|dir| dir.join(look_for)).find(|file| file.is_file())
}

/// What is missing of what `who` needs.
pub fn missing(who: For) -> Vec<&'static Program> {
    let wanted = |program: &&Program| program.who.contains(&who);
    PROGRAMS.iter().filter(wanted).filter(|program| find(program.look_for).is_none()).collect()
}

/// Installs what is missing where that is possible, else prints the line to type. Returns what is still missing.
pub fn ensure(who: For) -> Vec<&'static Program> {
    let lacking = missing(who);
    if lacking.is_empty() {
        return lacking;
    }
    let packages = packages(&lacking);
    if find("apt-get").is_none() {
        println!("These programs are missing, and this system has no apt-get to install them:");
    } else if !is_root() {
        println!("These programs are missing. To install them, type:");
        println!("    sudo apt-get install -y --no-install-recommends {}", packages.join(" "));
    } else {
        println!("Installing {} (apt-get, no service is started) ...", packages.join(" "));
        install(&packages);
    }
    let still = missing(who);
    for program in &still {
        println!("    missing: {} (package {}): {}", program.look_for, program.package, program.used_for);
    }
    still
}

/// `cargo xtask setup`: exit code 0 when nothing is missing.
pub fn setup() -> u8 {
    let still = ensure(For::Test);
    let wanted = PROGRAMS.iter().filter(|program| program.who.contains(&For::Test)).count();
    println!("{} of {wanted} programs are there", wanted - still.len());
    u8::from(!still.is_empty())
}

fn packages(programs: &[&Program]) -> Vec<&'static str> {
    let mut names: Vec<_> = programs.iter().map(|program| program.package).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Whether we may install and become somebody else.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}

/// The shell keeps the promise that no service starts, and cleans up after itself even when it is interrupted: a
/// policy-rc.d of ours (never one that was there before) forbids every start while packages are configured.
const INSTALL: &str = r#"
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ] || grep -qs 'made by cargo xtask' $policy; then
    trap 'rm -f $policy' EXIT
    trap 'exit 130' INT TERM HUP
    printf '#!/bin/sh\n# made by cargo xtask while it installs packages; safe to delete\nexit 101\n' >$policy
    chmod 755 $policy
fi
apt() { apt-get -q -y -o Acquire::Retries=3 -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 "$@"; }
apt update || true
if ! apt install --no-install-recommends "$@"; then
    for package in "$@"; do apt install --no-install-recommends "$package" || true; done
fi
"#;

fn install(packages: &[&str]) {
    let log = std::env::temp_dir().join(format!("countersign-apt-{}.log", std::process::id()));
    let ran = std::fs::File::create(&log).and_then(|file| {
        Command::new("sh")
            .args(["-c", INSTALL, "sh"])
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("NEEDRESTART_SUSPEND", "1")
            .stdin(std::process::Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .status()
    });
    match ran {
        Ok(status) if status.success() && packages_are_there(packages) => drop(std::fs::remove_file(&log)),
        Ok(_) => println!("    not everything could be installed; apt-get said: {}", log.display()),
        Err(problem) => println!("    apt-get could not be run: {problem}"),
    }
}

fn packages_are_there(packages: &[&str]) -> bool {
    PROGRAMS
        .iter()
        .filter(|program| packages.contains(&program.package))
        .all(|program| find(program.look_for).is_some())
}

/// A directory that is ours alone under the system's temporary one.
pub fn scratch(name: &str) -> std::io::Result<PathBuf> {
    let dir = Path::new("/tmp").join(format!("{name}-{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    Ok(dir)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_there_is_found_and_one_that_is_not_is_not() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-of-ours").is_none());
        assert!(find("/no/such/dir/*/bin/postgres").is_none());
        assert!(find("/usr/*/sh").is_some());
        assert!(find("/proc/self").is_some() && find("/no/such/file").is_none());
    }

    #[test]
    fn each_package_is_named_once() {
        let all: Vec<_> = PROGRAMS.iter().collect();
        let mut names = packages(&all);
        let before = names.len();
        names.dedup();
        assert_eq!(before, names.len());
    }

    #[test]
    fn the_install_script_is_a_shell_script() {
        let checked = Command::new("sh").args(["-n", "-c", INSTALL]).status().unwrap();
        assert!(checked.success());
    }
}
