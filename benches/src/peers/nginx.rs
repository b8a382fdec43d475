//! nginx as a pair of sidecars: mutual TLS between them, stream or http. It cannot match a SPIFFE id: the server is verified by a DNS
//! name, of the client any certificate of the CA passes.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{Pair, Peer, Up, find, first_line, missing};
use crate::stage::{SERVER_NAME, Stage};

/// Where Debian and Ubuntu put the module, in a package of its own.
const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// `stream` or `http`.
pub struct Nginx {
    /// Which.
    pub http: bool,
}

impl Peer for Nginx {
    fn name(&self) -> &'static str {
        if self.http { "nginx-http" } else { "nginx-stream" }
    }

    fn about(&self) -> &'static str {
        if self.http {
            "nginx, http, upstream connections kept; client: any certificate of the CA"
        } else {
            "nginx, stream; client: any certificate of the CA"
        }
    }

    fn claims_mtls(&self) -> bool {
        true
    }

    fn lacks(&self) -> Option<String> {
        let module = || format!("{STREAM_MODULE} is not there (apt-get install libnginx-mod-stream)");
        missing("nginx").or_else(|| (!self.http && !Path::new(STREAM_MODULE).exists()).then(module))
    }

    fn version(&self) -> String {
        first_line(find("nginx"), "-v")
    }

    fn binary(&self) -> Option<PathBuf> {
        find("nginx")
    }

    fn start<'a>(&self, stage: &'a Stage) -> Result<Up<'a>> {
        let pair = Pair::new(stage, self.name());
        let (client, server) = if self.http { http(&pair) } else { stream(&pair) };
        let mut commands = Vec::new();
        for (side, pod, text) in [("client", &stage.client, client), ("server", &stage.server, server)] {
            // The folder is in the text too, so it is made first.
            let (_, folder) = pair.configure(side, "")?;
            let (file, _) = pair.configure(side, &self.whole(&folder, &text))?;
            commands.push(pod.command("nginx").args(["-p", &folder, "-c", &file, "-e", "stderr"]));
        }
        match <[_; 2]>::try_from(commands) {
            Ok([client, server]) => pair.up(client, server, true),
            Err(_) => unreachable!("two sides"),
        }
    }
}

impl Nginx {
    fn whole(&self, folder: &str, text: &str) -> String {
        let mut whole = String::new();
        if !self.http {
            let _ = writeln!(whole, "load_module {STREAM_MODULE};");
        }
        let _ = write!(
            whole,
            "daemon off;\nuser root root;\nworker_processes 1;\npid {folder}/pid;\nerror_log stderr error;\n\
             events {{ worker_connections 4000; }}\n"
        );
        if !self.http {
            let _ = writeln!(whole, "stream {{\n  access_log off;\n  proxy_timeout 1h;\n{text}}}");
            return whole;
        }
        let _ = write!(
            whole,
            "http {{\n  access_log off;\n  keepalive_requests 1000000000;\n  keepalive_timeout 1h;\n  client_max_body_size 0;\n  \
             proxy_http_version 1.1;\n  proxy_set_header Connection \"\";\n  proxy_request_buffering off;\n  proxy_max_temp_file_size 0;\n"
        );
        for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            let _ = writeln!(whole, "  {kind}_temp_path {folder}/{kind};");
        }
        let _ = writeln!(whole, "{text}}}");
        whole
    }
}

fn client_tls(pair: &Pair) -> String {
    let [chain, key, _, ca] = pair.certificates("client");
    format!(
        "proxy_ssl_certificate {chain}; proxy_ssl_certificate_key {key}; proxy_ssl_trusted_certificate {ca}; proxy_ssl_verify on; \
         proxy_ssl_name {SERVER_NAME}; proxy_ssl_protocols TLSv1.3; proxy_ssl_session_reuse off;"
    )
}

fn server_tls(pair: &Pair) -> String {
    let [chain, key, _, ca] = pair.certificates("server");
    format!(
        "ssl_certificate {chain}; ssl_certificate_key {key}; ssl_client_certificate {ca}; ssl_verify_client on; ssl_protocols TLSv1.3; \
         ssl_session_tickets off; ssl_session_cache off;"
    )
}

fn stream(pair: &Pair) -> (String, String) {
    let (to, app) = (pair.server, pair.app);
    (
        format!("  server {{ listen {}; proxy_pass {to}; proxy_ssl on; {} }}\n", pair.client, client_tls(pair)),
        format!("  server {{ listen {to} ssl; proxy_pass {app}; {} }}\n", server_tls(pair)),
    )
}

fn http(pair: &Pair) -> (String, String) {
    let upstream = |to| {
        format!("  upstream u {{ server {to}; keepalive 128; keepalive_requests 1000000000; keepalive_timeout 1h; }}\n")
    };
    let (to, app) = (pair.server, pair.app);
    (
        format!(
            "{}  server {{ listen {}; location / {{ proxy_pass https://u; }} {} }}\n",
            upstream(to),
            pair.client,
            client_tls(pair)
        ),
        format!(
            "{}  server {{ listen {to} ssl; location / {{ proxy_pass http://u; }} {} }}\n",
            upstream(app),
            server_tls(pair)
        ),
    )
}
