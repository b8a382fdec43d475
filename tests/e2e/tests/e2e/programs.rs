//! Real, unmodified programs in a pod: installed or named, started on a port of their own, listening when this returns.
//!
//! Called by every family of end-to-end tests. It must never make a program's life easier than it is without a mesh: no
//! setting here knows of a sidecar.

use std::ffi::OsString;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use countersign_kit::mesh::Mesh;
use countersign_kit::programs::need;
use countersign_kit::{Pod, PodCommand, Running};

/// How long a server may take until it listens: a database makes its first tables meanwhile.
const READY: Duration = Duration::from_secs(30);
/// A user that every system knows: PostgreSQL wants one with a name, and not root.
const NOBODY: u32 = 65_534;
/// The system's own, for which the packages' modules are; an ordinary PATH may name another first.
const PYTHON: &str = "/usr/bin/python3";

/// Foreign programs of the end-to-end tests; installed, where that is allowed, before the namespaces are entered.
pub const ALL: &[&str] = &[
    "curl",
    "nginx",
    "openssl",
    "redis-server",
    "redis-benchmark",
    "mariadbd",
    "mariadb-install-db",
    "mariadb",
    "postgres",
    "psql",
    "python3-aiosmtpd",
    "python3-grpcio",
    "python3-websockets",
];

/// A program about to be run in a pod. HTTP proxies of whoever runs the tests are not its own.
///
/// # Errors
/// What is missing.
pub fn command(pod: &Pod, name: &str) -> Result<PodCommand> {
    Ok(pod.command(need(name)?).env("no_proxy", "*").env("NO_PROXY", "*"))
}

/// curl, for one URL; it wants success of the transfer and of the request.
///
/// # Errors
/// What is missing.
pub fn curl(pod: &Pod, url: &str) -> Result<PodCommand> {
    Ok(command(pod, "curl")?.args(["-sS", "--fail", "--max-time", "20", url]))
}

/// The system's Python, for a module of this package; the arguments are still to come.
///
/// # Errors
/// What is missing.
pub fn python(pod: &Pod, package: &str) -> Result<PodCommand> {
    need(package)?;
    Ok(command(pod, PYTHON)?.env("PYTHONUNBUFFERED", "1"))
}

/// Where a server is to run: a pod, a port of its own and a folder of its own.
pub struct Place<'w> {
    pub pod: &'w Pod,
    pub port: u16,
    pub folder: PathBuf,
}

impl<'w> Place<'w> {
    /// Makes the folder.
    pub fn new(mesh: &Mesh, pod: &'w Pod, port: u16) -> Result<Self> {
        let folder = mesh.folder().join(format!("{}-{port}", pod.name()));
        fs::create_dir_all(&folder)?;
        Ok(Self { pod, port, folder })
    }

    /// Its port at both addresses of the pod.
    pub fn addresses(&self) -> [SocketAddr; 2] {
        self.pod.addresses().map(|ip| SocketAddr::new(ip, self.port))
    }

    /// The same at the pod's loopback, which no redirect touches: reached without a sidecar, from inside the pod only.
    pub fn direct(&self) -> [SocketAddr; 2] {
        [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()].map(|ip| SocketAddr::new(ip, self.port))
    }

    /// A file in its folder.
    pub fn file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    /// Starts a server; it listens on both families when this returns.
    pub fn start(&self, server: PodCommand) -> Result<Running> {
        self.wait(server.folder(&self.folder).spawn()?, &self.direct())
    }

    fn wait(&self, mut server: Running, addresses: &[SocketAddr]) -> Result<Running> {
        let began = Instant::now();
        for address in addresses {
            while let Err(error) = self.pod.inside(|| TcpStream::connect_timeout(address, READY)) {
                if server.ended() || began.elapsed() > READY {
                    bail!("{server:?} does not listen on {address}: {error}; it said:\n{}", server.log().join("\n"));
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(server)
    }

    /// nginx with one `server`, whose `listen` gets `options` (`http2`, `ssl`) and whose rest is `body`.
    pub fn nginx(&self, options: &str, body: &str) -> Result<Running> {
        let (port, folder) = (self.port, self.folder.display());
        let mut text = format!(
            "daemon off;\nuser root root;\nworker_processes 1;\npid {folder}/pid;\nerror_log stderr;\n\
             events {{ worker_connections 1024; }}\nhttp {{\n  access_log off;\n  default_type text/plain;\n"
        );
        for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            text += &format!("  {kind}_temp_path {folder}/{kind};\n");
        }
        text += &format!(
            "  server {{\n    listen {port} {options};\n    listen [::]:{port} {options};\n{body}\n  }}\n}}\n"
        );
        let config = self.file("nginx.conf", &text)?;
        let folder = self.folder.clone();
        let args: [OsString; 6] =
            ["-p".into(), folder.into(), "-c".into(), config.into(), "-e".into(), "stderr".into()];
        self.start(command(self.pod, "nginx")?.args(args))
    }

    /// redis, open to other hosts, writing nothing to disk.
    pub fn redis(&self) -> Result<Running> {
        let port = self.port.to_string();
        let args = ["--port", &port, "--bind", "0.0.0.0", "::", "--protected-mode", "no", "--save", ""];
        self.start(command(self.pod, "redis-server")?.args(args))
    }

    /// MariaDB with a database `shop` and a user `app` whose password is `secret`, from any host.
    pub fn mariadb(&self) -> Result<Running> {
        let data = format!("--datadir={}", self.folder.join("data").display());
        let small = [
            "--innodb-log-file-size=4M",
            "--innodb-buffer-pool-size=8M",
            "--innodb-data-file-path=ibdata1:4M:autoextend",
        ];
        let quick = ["--innodb-flush-log-at-trx-commit=0", "--skip-name-resolve"];
        command(self.pod, "mariadb-install-db")?
            .args(["--no-defaults", "--user=root", "--auth-root-authentication-method=normal", "--skip-test-db", &data])
            .args(small)
            .args(quick)
            .succeed()?;
        let first =
            "CREATE DATABASE shop;\nCREATE USER 'app'@'%' IDENTIFIED BY 'secret';\nGRANT ALL ON shop.* TO 'app'@'%';\n";
        let first = self.file("first.sql", first)?;
        let of_its_own = [
            format!("--port={}", self.port),
            format!("--socket={}", self.folder.join("socket").display()),
            format!("--pid-file={}", self.folder.join("pid").display()),
            format!("--init-file={}", first.display()),
        ];
        let server = command(self.pod, "mariadbd")?
            .args(["--no-defaults", "--user=root", "--bind-address=*", &data])
            .args(of_its_own)
            .args(small)
            .args(quick);
        self.start(server)
    }

    /// PostgreSQL as a user of its own, with a superuser `app` whose password is `secret`. Who comes over loopback needs no
    /// password; everybody else needs it.
    pub fn postgres(&self, rootless: bool) -> Result<Running> {
        let (postgres, initdb) = (need("postgres")?, need("initdb")?);
        let (data, socket) = (self.folder.join("data"), self.folder.display().to_string());
        let password = self.file("password", "secret\n")?;
        if !rootless {
            chown(&self.folder, Some(NOBODY), Some(NOBODY))?;
        }
        let args = ["--username=app", "--auth-local=trust", "--auth-host=trust", "--no-sync", "--locale=C"];
        as_nobody(self.pod, rootless, &initdb)
            .args(args)
            .args([
                OsString::from("--encoding=UTF8"),
                "--pwfile".into(),
                password.into(),
                "-D".into(),
                data.clone().into(),
            ])
            .succeed()?;
        let rules = data.join("pg_hba.conf");
        let others = "host all all 0.0.0.0/0 scram-sha-256\nhost all all ::/0 scram-sha-256\n";
        fs::write(&rules, fs::read_to_string(&rules)? + others)?;
        let port = self.port.to_string();
        let args = ["-p", &port, "-h", "*", "-k", &socket, "-F", "-c", "shared_buffers=8MB"];
        self.start(as_nobody(self.pod, rootless, &postgres).arg("-D").arg(data).args(args))
    }

    /// An SMTP server that prints the messages it gets; one process for each family.
    pub fn smtp(&self) -> Result<[Running; 2]> {
        let server = |any: &str, direct: SocketAddr| {
            let listen = format!("{any}:{}", self.port);
            let program = python(self.pod, "python3-aiosmtpd")?.folder(&self.folder);
            self.wait(program.args(["-m", "aiosmtpd", "--nosetuid", "--listen", &listen]).spawn()?, &[direct])
        };
        let [v4, v6] = self.direct();
        Ok([server("0.0.0.0", v4)?, server("::", v6)?])
    }
}

/// A program that refuses to be root. Where there is but one user, that one calls itself `nobody` in a namespace of its own.
fn as_nobody(pod: &Pod, rootless: bool, program: &Path) -> PodCommand {
    if rootless {
        let as_nobody = format!("--map-user={NOBODY}");
        return pod.command("unshare").args(["--user", &as_nobody, "--"]).arg(program);
    }
    pod.command(program).uid(NOBODY)
}
