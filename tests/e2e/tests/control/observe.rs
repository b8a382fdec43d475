//! What the processes tell of themselves: metrics, access log, status, dumps, logs.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use countersign_api::ports;
use countersign_kit::mesh::{MeshPodSpec, binary};
use countersign_kit::{Inside, wait_for, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::openmetrics::{self, Exposition};
use crate::stage::{CLIENT_ID, PORT, SERVER_ID, SOON, Stage, admin, http, status_until, text};
use crate::talk::{Talk, account, exchange, refused};

const PROXY: &[(&str, &str)] = &[
    ("countersign_build", "info"),
    ("countersign_tcp_connections_opened", "counter"),
    ("countersign_tcp_connections_open", "gauge"),
    ("countersign_tcp_connections_closed", "counter"),
    ("countersign_tcp_connection_ends", "counter"),
    ("countersign_tcp_connections_reused", "counter"),
    ("countersign_tcp_sent_bytes", "counter"),
    ("countersign_tcp_received_bytes", "counter"),
    ("countersign_authz_decisions", "counter"),
    ("countersign_tls_handshakes", "counter"),
    ("countersign_tls_handshake_duration_seconds", "histogram"),
    ("countersign_pool_idle_connections", "gauge"),
    ("countersign_identity_cert_expiration_timestamp_seconds", "gauge"),
    ("countersign_identity_cert_refresh", "counter"),
    ("countersign_trust_bundle_generation", "gauge"),
    ("countersign_controller_connected", "gauge"),
    ("countersign_policy_updates", "counter"),
    ("countersign_policy_rules", "gauge"),
    ("countersign_access_log_dropped", "counter"),
    ("process_cpu_seconds", "counter"),
    ("process_resident_memory_bytes", "gauge"),
    ("process_open_fds", "gauge"),
    ("process_start_time_seconds", "gauge"),
];
const CA: &[(&str, &str)] = &[
    ("countersign_ca_build", "info"),
    ("countersign_ca_svid_requests", "counter"),
    ("countersign_ca_svid_request_duration_seconds", "histogram"),
    ("countersign_ca_certificate_expiration_timestamp_seconds", "gauge"),
    ("countersign_ca_bundle_generation", "gauge"),
    ("countersign_ca_bundle_watchers", "gauge"),
    ("countersign_ca_token_keys", "gauge"),
];
const CONTROLLER: &[(&str, &str)] = &[
    ("countersign_controller_build", "info"),
    ("countersign_controller_source_problems", "gauge"),
    ("countersign_controller_streams", "gauge"),
    ("countersign_controller_answers", "counter"),
    ("countersign_controller_rules_sent", "counter"),
    ("countersign_controller_acks", "counter"),
    ("countersign_controller_propagation_seconds", "histogram"),
    ("countersign_controller_identity_cert_expiration_timestamp_seconds", "gauge"),
];

fn scrape(stage: &Stage, ip: std::net::IpAddr, port: u16, families: &[(&str, &str)]) -> Result<Exposition> {
    // From outside the mesh, as a scraper comes.
    let answer = http(stage.mesh.system(), ip, port, "GET", "/metrics")?;
    ensure!(answer.code == 200, "{answer:?}");
    ensure!(answer.head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{}", answer.head);
    let read = openmetrics::parse(&answer.body)?;
    for (family, kind) in families {
        ensure!(read.kind(family) == Some(kind), "{family} is {:?}, not a {kind}:\n{}", read.kind(family), answer.body);
    }
    Ok(read)
}

pub fn metrics(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let intruder = stage.pod("intruder", 32)?;
    refused(&intruder, stage.address())?;
    for _ in 0..3 {
        exchange(&stage.client, stage.address())?;
    }
    wait_for(SOON, "all accounts are closed", || {
        (stage.client.access_log().len(), stage.server.access_log().len()) == (3, 4)
    })?;
    let system = stage.mesh.system().v4().into();
    scrape(&stage, system, ports::CA_HEALTH, CA)?;
    let controller = scrape(&stage, system, ports::CONTROLLER_HEALTH, CONTROLLER)?;
    ensure!(controller.samples("countersign_controller_streams").all(|s| s.value == 3.0));

    let ours = scrape(&stage, stage.client.v4().into(), ports::PROXY_HEALTH, PROXY)?;
    ensure!(ours.kind("countersign_discovery_lookups") == Some("counter"));
    let theirs = scrape(&stage, stage.server.v6().into(), ports::PROXY_HEALTH, PROXY)?;
    let total = |read: &Exposition, name: &str, wanted: &[(&str, &str)]| -> f64 {
        let fits = |s: &&openmetrics::Sample| {
            wanted.iter().all(|(key, value)| s.labels.get(*key).is_some_and(|found| found == value))
        };
        read.samples(name).filter(fits).map(|s| s.value).sum()
    };
    let peers = [
        ("source_principal", CLIENT_ID),
        ("destination_principal", SERVER_ID),
        ("connection_security_policy", "mutual_tls"),
    ];
    let out: Vec<_> = peers.into_iter().chain([("direction", "outbound")]).collect();
    let inward: Vec<_> = peers.into_iter().chain([("direction", "inbound")]).collect();
    for (read, side) in [(&ours, &out), (&theirs, &inward)] {
        ensure!(total(read, "countersign_tcp_connections_closed_total", side) == 3.0);
        // "over\n" there, and "hello\nover\n" back.
        ensure!(total(read, "countersign_tcp_sent_bytes_total", side) == 3.0 * 5.0);
        ensure!(total(read, "countersign_tcp_received_bytes_total", side) == 3.0 * 11.0);
        ensure!(total(read, "countersign_tcp_connections_reused_total", &[]) == 2.0);
        let handshakes = [("result", "ok"), ("group", "X25519MLKEM768")];
        ensure!(total(read, "countersign_tls_handshakes_total", &handshakes) >= 1.0);
    }
    let rule = [("direction", "inbound"), ("decision", "allow"), ("policy", "shop/client-to-server#0")];
    ensure!(total(&theirs, "countersign_authz_decisions_total", &rule) == 3.0);
    ensure!(total(&theirs, "countersign_authz_decisions_total", &[("decision", "deny")]) == 1.0);
    ensure!(total(&theirs, "countersign_controller_connected", &[]) == 1.0);
    Ok(())
}

pub fn access_log(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let local = exchange(&stage.client, stage.address())?;
    let (ours, theirs) = (account(&stage.client, local)?, stage.server.access_line(|_| true)?);
    for (line, direction, pod) in [(&ours, "outbound", &stage.client), (&theirs, "inbound", &stage.server)] {
        let expected = [
            ("direction", json!(direction)),
            ("source_id", json!(CLIENT_ID)),
            ("destination_id", json!(SERVER_ID)),
            ("destination_address", json!(stage.address().to_string())),
            ("upstream_address", json!(stage.address().to_string())),
            ("security", json!("mutual_tls")),
            ("tls_group", json!("X25519MLKEM768")),
            ("reused", json!(false)),
            ("policy_revision", pod.admin("/status")?["policy"]["revision"].clone()),
            ("bytes_sent", json!(5)),
            ("bytes_received", json!(11)),
            ("result", json!("ok")),
            ("blame", json!("none")),
            ("detail", Value::Null),
            ("denial_id", Value::Null),
        ];
        for (key, value) in expected {
            ensure!(line[key] == value, "{key} is not {value}: {line}");
        }
        ensure!(line["duration_ms"].as_f64().is_some_and(|ms| (0.01..5000.0).contains(&ms)), "{line}");
        let time = text(line, "/time")?;
        ensure!(time.len() == 24 && time.ends_with('Z') && time.as_bytes()[10] == b'T', "{time}");
    }
    ensure!(ours["source_address"] == local.to_string() && ours["rule"].is_null(), "{ours}");
    ensure!(theirs["rule"] == "shop/client-to-server#0", "{theirs}");
    // One line for each connection, and no more.
    for n in 2..=4 {
        account(&stage.client, exchange(&stage.client, stage.address())?)?;
        ensure!(stage.client.access_log().len() == n, "{:?}", stage.client.access_log());
    }
    Ok(())
}

fn countersign(args: &[&str], dir: PathBuf) -> Result<(i32, String)> {
    let done = std::process::Command::new(binary("countersign")?).args(args).arg("--dir").arg(dir).output()?;
    let text = String::from_utf8(done.stdout)? + &String::from_utf8_lossy(&done.stderr);
    Ok((done.status.code().context("killed")?, text))
}

/// Two looks, a pause between them, and an end by Ctrl-C.
fn watched(dir: PathBuf) -> Result<()> {
    use std::io::{BufRead as _, BufReader};
    let mut command = std::process::Command::new(binary("countersign")?);
    command.args(["status", "--watch", "--interval", "1", "-o", "json", "--dir"]).arg(dir);
    let mut child = command.stdout(std::process::Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let began = std::time::Instant::now();
    for _ in 0..2 {
        let look: Value = serde_json::from_str(&lines.next().context("it ended")??)?;
        ensure!(look["processes"].as_array().is_some_and(|all| all.len() == 4), "{look}");
    }
    ensure!(began.elapsed() >= std::time::Duration::from_secs(1), "no pause between two looks");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id())?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
    ensure!(child.wait()?.code() == Some(0), "Ctrl-C is an end in order");
    // Nobody reads: it ends too, and not by a signal of the pipe.
    let mut child = command.spawn()?;
    drop(child.stdout.take());
    ensure!(child.wait()?.code().is_some(), "killed");
    Ok(())
}

/// What `countersign status` shows of one process, by column. No cell is empty, and none has two spaces in a row.
fn shown(dir: PathBuf, process: &str) -> Result<BTreeMap<String, String>> {
    let (_, table) = countersign(&["status"], dir)?;
    let cells = |line: &str| -> Vec<String> {
        line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect()
    };
    let head = cells(table.lines().next().context("no head")?);
    let row = table.lines().map(cells).find(|row| row.first().is_some_and(|first| first == process));
    let row = row.with_context(|| format!("no row of {process}:\n{table}"))?;
    ensure!(head.len() == 11 && row.len() == head.len(), "{head:?} and {row:?}");
    Ok(head.into_iter().zip(row).collect())
}

/// All that is promised of a sidecar, of a real one with an open connection: nothing is missing that it or the controller knows.
fn row_of_a_sidecar(stage: &Stage) -> Result<()> {
    let open = |row: &BTreeMap<String, String>| -> Option<u64> {
        let (_, outbound) = row["OPEN"].strip_suffix(" out")?.split_once(" in, ")?;
        outbound.parse().ok()
    };
    let look = || shown(stage.mesh.folder().to_owned(), "shop/client");
    let mut talk = Talk::open(&stage.client, stage.address())?;
    let row = look()?;
    for column in ["SVID ENDS", "BUNDLE", "RULES", "LAG", "OPEN", "DENIALS"] {
        ensure!(row.get(column).is_some_and(|cell| cell != "-"), "{column} is missing: {row:?}");
    }
    ensure!(open(&row).is_some_and(|open| open >= 1), "a connection is open: {row:?}");
    let revision = text(&stage.client.admin("/status")?, "/policy/revision")?;
    ensure!(revision.starts_with(&row["RULES"]) && row["IDENTITY"] == CLIENT_ID, "{revision}: {row:?}");
    talk.finish()?;
    wait_until(SOON, || {
        let row = look()?;
        ensure!(open(&row) == Some(0), "none is open any more: {row:?}");
        Ok(())
    })
}

pub fn status(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let dir = || stage.mesh.folder().to_owned();
    let (code, table) = countersign(&["status"], dir())?;
    ensure!(code == 0, "{code}: {table}");
    for word in ["shop/client", "shop/server", CLIENT_ID, SERVER_ID, "countersign-ca", "countersign-controller"] {
        ensure!(table.contains(word), "{word} is not shown:\n{table}");
    }
    let (code, all) = countersign(&["status", "-o", "json"], dir())?;
    let all: Value = serde_json::from_str(&all).context(all)?;
    ensure!(code == 0 && all["processes"].as_array().is_some_and(|all| all.len() == 4), "{all}");
    ensure!(all["drift"]["not_connected"] == serde_json::json!([]) && all["drift"]["controllers_asked"] == 1, "{all}");
    watched(dir())?;
    row_of_a_sidecar(&stage)?;

    // A denial is counted; what should be meshed and is not is told by name, and is exit code 1.
    refused(&stage.server, SocketAddr::new(stage.client.v4().into(), PORT))?;
    let missing = MeshPodSpec::new("missing", "missing", 60).without_sidecar();
    let _missing = stage.mesh.pod(missing)?;
    let labelled =
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: bare, labels: {countersign.dev/inject: enabled}}\n";
    stage.mesh.object("namespace-bare.yaml", labelled)?;
    let bare = MeshPodSpec { namespace: "bare".into(), ..MeshPodSpec::new("forgotten", "forgotten", 61).unmeshed() };
    let _bare = stage.mesh.pod(bare)?;
    stage.mesh.settle(&[&stage.client, &stage.server])?;
    let (code, all) = countersign(&["status", "-o", "json"], dir())?;
    let all: Value = serde_json::from_str(&all).context(all)?;
    ensure!(code == 1 && all["drift"]["not_connected"] == serde_json::json!(["shop/missing"]), "{code}: {all}");
    ensure!(all["drift"]["without_sidecar"] == serde_json::json!(["bare/forgotten"]), "{all}");
    let of = |all: &Value, name: &str| {
        let processes = all["processes"].as_array().cloned().unwrap_or_default();
        processes.into_iter().find(|one| one["status"]["pod"]["name"] == name).unwrap_or_default()
    };
    let counted = of(&all, "client")["status"]["denials"]["counted"].as_u64();
    ensure!(counted > Some(0), "{all}");
    let (_, table) = countersign(&["status"], dir())?;
    ensure!(table.contains("drift") && table.contains("shop/missing") && table.contains("bare/forgotten"), "{table}");
    let row = shown(dir(), "shop/client")?;
    ensure!(row["DENIALS"].parse::<u64>().ok() >= counted && row["LAG"] == "none", "{row:?}");

    // What is not well is told, and is exit code 1.
    stage.mesh.stop_controller();
    status_until(&stage.client, |status| status["controller"]["connected"] == false)?;
    admin(&stage.server.admin_socket(), "POST", "/drain", "")?;
    let (code, table) = countersign(&["status"], dir())?;
    ensure!(code == 1, "{code}: {table}");
    ensure!(table.contains("no answer") && table.contains("withdrawn"), "{table}");
    Ok(())
}

pub fn config_dump(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    exchange(&stage.client, stage.address())?;
    let dump = admin(&stage.client.admin_socket(), "GET", "/config_dump", "")?;
    let read: Value = serde_json::from_str(&dump.body)?;
    // It says something: the rule at the server, the address at the client.
    ensure!(read["config"]["id"] == CLIENT_ID, "{read}");
    ensure!(read["discovery"]["addresses"].to_string().contains(SERVER_ID), "{read}");
    let controller = admin(&stage.mesh.folder().join("controller/admin.sock"), "GET", "/config_dump", "")?;
    let ca = admin(&stage.mesh.ca_socket(), "GET", "/config_dump", "")?;
    let token = std::fs::read_to_string(stage.client.admin_socket().with_file_name("token"))?;
    let controllers = std::fs::read_to_string(stage.mesh.folder().join("controller/token"))?;
    let key = std::fs::read(stage.mesh.folder().join("ca/state.key"))?;
    let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    for dump in [dump, controller, ca] {
        ensure!(dump.code == 200 && dump.body.len() > 100, "{dump:?}");
        for secret in [token.trim(), controllers.trim(), &hex] {
            // Nor the signed part of it, nor its signature.
            for part in secret.split('.') {
                ensure!(!dump.body.contains(part), "a secret is in the dump");
            }
        }
        for word in ["PRIVATE", "BEGIN", "eyJ"] {
            ensure!(!dump.body.contains(word), "{word} is in the dump: {}", dump.body);
        }
    }
    Ok(())
}

pub fn log_level(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let socket = stage.client.admin_socket();
    let is_trace = |line: &str| line.contains("\"level\":\"TRACE\"");
    exchange(&stage.client, stage.address())?;
    let before = stage.client.with_sidecar(|sidecar| Ok(sidecar.log()))?;
    ensure!(!before.iter().any(|line| is_trace(line)), "traces without being asked");

    let answer = admin(&socket, "PUT", "/log", "trace")?;
    ensure!(answer.code == 200 && answer.body.contains("trace"), "{answer:?}");
    // A cold address: the controller is asked, and the stream to it traces.
    exchange(&stage.client, stage.address_v6())?;
    stage.client.with_sidecar(|sidecar| sidecar.wait_for_line(SOON, is_trace))?;
    let bad = admin(&socket, "PUT", "/log", "countersign_proxy=loud")?;
    ensure!(bad.code == 400, "{bad:?}");
    ensure!(admin(&socket, "GET", "/log", "")?.body.contains("trace"), "a bad filter changed something");

    let answer = admin(&socket, "PUT", "/log", "info")?;
    ensure!(answer.code == 200 && answer.body.contains("info"), "{answer:?}");
    // Another cold address: the stream is as busy as before, and silent.
    let line = refused(&stage.client, SocketAddr::new([10, 77, 0, 200].into(), PORT))?;
    ensure!(line["result"] == "unknown_destination", "{line}");
    let log = stage.client.with_sidecar(|sidecar| {
        sidecar.signal(Signal::SIGTERM);
        sidecar.wait(SOON)?;
        // Fails when the last line was read, and not before.
        let _ = sidecar.wait_for_line(SOON, |_| false);
        Ok(sidecar.log())
    })?;
    let after = log.iter().skip_while(|line| !(line.contains("another filter") && line.contains("\"info\"")));
    let after: Vec<_> = after.collect();
    ensure!(!after.is_empty() && !after.iter().any(|line| is_trace(line)), "{after:?}");
    Ok(())
}

pub fn health_port(inside: &Inside) -> Result<()> {
    let stage = Stage::new(inside)?;
    let (ip, port) = (stage.server.v4().into(), ports::PROXY_HEALTH);
    for path in ["/livez", "/readyz", "/metrics"] {
        let answer = http(stage.mesh.system(), ip, port, "GET", path)?;
        ensure!(answer.code == 200, "{path}: {answer:?}");
        let answer = http(stage.mesh.system(), ip, port, "POST", path)?;
        ensure!(answer.code == 405, "{path}: {answer:?}");
    }
    for path in ["/", "/status", "/config_dump", "/log", "/drain", "/metrics/", "/debug/pprof/", "//readyz"] {
        for method in ["GET", "PUT", "POST", "DELETE"] {
            let answer = http(stage.mesh.system(), ip, port, method, path)?;
            ensure!(answer.code == 404, "{method} {path}: {answer:?}");
            ensure!(answer.body.len() < 100, "{method} {path}: {answer:?}");
        }
    }
    ensure!(stage.server.admin("/status")?["phase"] == "serving");
    // What is no HTTP gets an error at most.
    let mut stream = stage.mesh.system().inside(|| TcpStream::connect_timeout(&SocketAddr::new(ip, port), SOON))?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    ensure!(said.is_empty() || said.starts_with("HTTP/1.1 400"), "{said:?}");
    Ok(())
}
