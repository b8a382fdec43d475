//! Promise 1: unmodified clients and servers talk over mutual TLS with no setting changed in either.
//!
//! One family of programs a file; each promise is kept over IPv4 and over IPv6. The client is in `frontend`, the server in
//! `backend-1`, on a port of its own, so that the access log tells what became of it.

mod burst;
mod bytes;
mod databases;
mod ends;
mod grpc;
mod http;
mod redis;
mod rotation;
mod server_first;
mod services;
mod tls;
mod websocket;
mod wire;

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context, Result, ensure};
use countersign_kit::Pod;
use countersign_kit::mesh::MeshPod;
use serde_json::{Value, json};

use crate::Test;
use crate::programs::Place;
use crate::world::World;

pub const TESTS: &[(&str, Test)] = &[
    // The long ones first, that they run beside the others.
    (
        "transparent::a_postgresql_session_a_websocket_and_a_grpc_stream_live_through_a_rotation_of_the_root",
        rotation::sessions,
    ),
    ("transparent::a_gibibyte_each_way_at_once_arrives_unchanged", bytes::gibibyte),
    ("transparent::a_thousand_connections_at_once_are_all_served", burst::thousand),
    ("transparent::mariadb_speaks_first_without_a_stall", databases::mariadb),
    ("transparent::postgresql_asks_for_the_password_as_of_any_stranger", databases::postgresql),
    ("transparent::curl_reaches_nginx_as_its_own_identity", http::one),
    ("transparent::http_2_with_prior_knowledge_stays_http_2", http::two),
    ("transparent::grpc_calls_and_streams_are_answered_one_by_one", grpc::pair),
    ("transparent::a_websocket_carries_both_sides_words_and_its_own_close", websocket::pair),
    ("transparent::redis_answers_a_pipelined_benchmark", redis::benchmark),
    ("transparent::an_smtp_server_speaks_first_without_a_stall", server_first::smtp),
    ("transparent::an_applications_own_tls_stays_end_to_end_inside_ours", tls::inside),
    ("transparent::the_link_holds_tls_1_3_only_and_never_the_marker", wire::marker),
    ("transparent::a_half_close_keeps_the_other_direction_open", ends::half_close),
    ("transparent::a_reset_stays_a_reset", ends::reset),
    ("transparent::a_service_address_reaches_both_endpoints", services::both_endpoints),
    ("transparent::a_pod_reaches_itself_by_its_own_address", services::own_address),
    ("transparent::a_service_whose_only_endpoint_calls_itself", services::only_itself),
];

const FRONTEND: &str = "spiffe://cluster.local/ns/shop/sa/frontend";
const BACKEND: &str = "spiffe://cluster.local/ns/shop/sa/backend";

/// Where a test's server runs: `backend-1`, on a port that no other test uses.
fn place(world: &World) -> Result<Place<'_>> {
    Place::new(&world.mesh, &world.backend1, world.port())
}

/// Listeners of the test's own, on both of a place's addresses.
fn listen(place: &Place) -> Result<[TcpListener; 2]> {
    let [v4, v6] = place.addresses().map(|address| bind(place.pod, address));
    Ok([v4?, v6?])
}

fn bind(pod: &Pod, address: SocketAddr) -> Result<TcpListener> {
    let listener = pod.inside(|| TcpListener::bind(address)).with_context(|| format!("listening on {address}"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The server's sidecar says of every connection to this address that it was the frontend's, over mutual TLS; and there was one.
fn only_the_frontend(pod: &MeshPod, address: SocketAddr) -> Result<()> {
    let about =
        |line: &Value| line["direction"] == "inbound" && line["destination_address"] == json!(address.to_string());
    pod.access_line(about)?;
    for line in pod.access_log().iter().filter(|line| about(line)) {
        let who = (&line["source_id"], &line["destination_id"], &line["security"]);
        ensure!(who == (&json!(FRONTEND), &json!(BACKEND), &json!("mutual_tls")), "{line}");
    }
    Ok(())
}
