//! The applications of the demo: real nginx and curl, and a server that speaks first. None of them knows of the mesh.
//!
//! Called by `stage` and the claims.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use countersign_kit::{Finished, Here as _, Namespace, Pod, Running, wait_until};

/// Where nginx listens.
pub const HTTP: u16 = 8080;
/// Where the server that speaks first listens.
pub const BANNER: u16 = 2525;
/// What it says, as an SMTP server would.
const GREETING: &[u8] = b"220 mail.shop.example ESMTP ready\r\n";
/// A program of ours that is ready is so within this.
const READY: Duration = Duration::from_secs(10);
/// The header that curl sends and nginx gives back.
const MARKER_HEADER: &str = "X-Marker";
/// What the load asks for; its answers are not logged.
pub const LOAD_PATH: &str = "/kilobyte";

/// An answer that nginx gives slowly: it outlasts the demo.
pub const LONG_PATH: &str = "/long";
/// Its length, and how much of it goes in a second. The file is a hole: it takes no room.
const LONG_LENGTH: u64 = 64 << 20;
const LONG_RATE: &str = "16k";

/// Starts nginx in a pod; it is ready when this returns. Its access log is `FOLDER/access.log`.
pub fn nginx(pod: &Pod, folder: &Path) -> Result<Running> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string()).here()?;
    let long = folder.join("long");
    let made = std::fs::File::create(&long).and_then(|file| file.set_len(LONG_LENGTH));
    made.with_context(|| long.display().to_string()).here()?;
    let file = folder.join("nginx.conf");
    std::fs::write(&file, config(pod.name(), folder)).with_context(|| file.display().to_string()).here()?;
    let (folder, file) = (folder.display().to_string(), file.display().to_string());
    let mut server = pod.command("nginx").args(["-p", &folder, "-c", &file, "-e", "stderr"]).spawn()?;
    let address = SocketAddr::new(pod.v4().into(), HTTP);
    let listens = pod.inside(|| wait_until(READY, || TcpStream::connect_timeout(&address, READY)));
    let listens = listens
        .with_context(|| format!("nginx in {} does not listen; it said: {}", pod.name(), server.log().join("; ")));
    // A server that ended by itself is no fault of the mesh's; one that is there and cannot be reached may be.
    if server.ended() {
        listens.here()?
    } else {
        listens?
    };
    Ok(server)
}

/// An ordinary configuration; `user` only keeps nginx from looking for another account (there may be only one).
fn config(name: &str, folder: &Path) -> String {
    let (mut text, folder, kilobyte) = (String::new(), folder.display(), "k".repeat(1024));
    let _ = write!(
        text,
        "daemon off;\nuser root root;\nworker_processes 1;\npid {folder}/pid;\nerror_log stderr;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\n  default_type text/plain;\n  access_log {folder}/access.log;\n  keepalive_requests 10000000;\n"
    );
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        let _ = writeln!(text, "  {kind}_temp_path {folder}/{kind};");
    }
    let _ = write!(
        text,
        "  server {{\n    listen 0.0.0.0:{HTTP};\n    listen [::]:{HTTP};\n\
         \x20   location / {{ return 200 \"{name} got $http_x_marker\\n\"; }}\n\
         \x20   location {LOAD_PATH} {{ access_log off; return 200 \"{kilobyte}\"; }}\n\
         \x20   location {LONG_PATH} {{ access_log off; alias {folder}/long; limit_rate {LONG_RATE}; }}\n  }}\n}}\n"
    );
    text
}

/// Starts the server that speaks first; it runs until the demo ends.
pub fn banner(pod: &Pod) -> Result<()> {
    for address in [IpAddr::from(pod.v4()), pod.v6().into()] {
        let listener = pod.inside(|| TcpListener::bind((address, BANNER)));
        let listener = listener.context("the server that speaks first").here()?;
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                // A client that is gone is no concern of ours.
                let _ = stream.write_all(GREETING);
            }
        });
    }
    Ok(())
}

/// From the call of connect to the first byte that the server says. The rest is read, too: a connection that ends in order
/// can be used again by the sidecars.
pub fn first_byte(place: &Namespace, server: SocketAddr) -> Result<Duration> {
    use std::io::Read;
    place.inside(|| {
        let start = Instant::now();
        let mut stream =
            TcpStream::connect_timeout(&server, READY).with_context(|| format!("connecting to {server}"))?;
        stream.set_read_timeout(Some(READY))?;
        let mut byte = [0];
        stream.read_exact(&mut byte).with_context(|| format!("waiting for {server} to speak"))?;
        let took = start.elapsed();
        let mut rest = Vec::new();
        stream
            .take(GREETING.len() as u64)
            .read_to_end(&mut rest)
            .with_context(|| format!("reading on from {server}"))?;
        ensure!([&byte[..], &rest].concat() == GREETING, "{server} said something else");
        Ok(took)
    })
}

fn curl_args(url: &str, marker: &str) -> [String; 6] {
    ["-sS", "--max-time", "10", "-H", &format!("{MARKER_HEADER}: {marker}"), url].map(str::to_owned)
}

/// The command, as a person would type it.
pub fn curl_line(url: &str, marker: &str) -> String {
    format!("curl -sS --max-time 10 -H '{MARKER_HEADER}: {marker}' {url}")
}

/// Runs curl in a pod, whatever comes of it.
pub fn curl(place: &Namespace, url: &str, marker: &str) -> Result<Finished> {
    place.command("curl").args(curl_args(url, marker)).finish()
}

/// A long answer, read by curl as it comes; given up when this is dropped.
pub struct Download {
    curl: Running,
    file: PathBuf,
    line: String,
}

impl Download {
    /// Starts it; the first bytes are there when this returns.
    pub fn start(place: &Namespace, url: &str, file: PathBuf) -> Result<Self> {
        // What an earlier one left would count as received.
        let _ = std::fs::remove_file(&file);
        let out = file.display().to_string();
        let args = ["-sS", "-N", "-o", &out, url];
        let mut download = Self {
            curl: place.command("curl").args(args).spawn()?,
            line: format!("curl -sS -N -o {} {url} &", file.file_name().unwrap_or_default().display()),
            file,
        };
        download.goes_on()?;
        Ok(download)
    }

    /// The command, as a person would type it.
    pub fn line(&self) -> &str {
        &self.line
    }

    /// Bytes that have come.
    pub fn received(&self) -> u64 {
        std::fs::metadata(&self.file).map_or(0, |file| file.len())
    }

    /// More comes than had come when this is called.
    pub fn goes_on(&mut self) -> Result<()> {
        let before = self.received();
        wait_until(READY, || {
            if self.curl.ended() {
                return Err(format!("it ended: {}", self.curl.log().join("; ")));
            }
            if self.received() > before { Ok(()) } else { Err(format!("nothing more came after {before} bytes")) }
        })
    }

    /// Waits for its end; curl's last words.
    pub fn ends(&mut self, limit: Duration) -> Result<String> {
        let status = self.curl.wait(limit)?;
        ensure!(!status.success(), "it came to its end in order");
        Ok(self.curl.log_to_its_end(READY).join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_names_the_pod_and_keeps_to_its_folder() {
        let text = config("backend-1", Path::new("/run/x"));
        assert!(text.contains("backend-1 got $http_x_marker"));
        assert_eq!(text.matches('{').count(), text.matches('}').count());
        assert!(text.lines().filter(|line| line.contains("_temp_path")).all(|line| line.contains(" /run/x/")));
    }
}
