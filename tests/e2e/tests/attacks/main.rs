//! The data path under attack: by neighbours without an identity, by peers with one, by servers that lie, by the app itself.
//!
//! Each promise is what must still hold. The attacker is `stranger`, on the same link with no sidecar, who holds the mesh's own
//! issuer and so can be any peer; or `unguarded`, to whom the frontend's sidecar is led. Attacks on CA and controller: `plane`.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../e2e/world.rs"]
mod world;

mod client;
mod server;
mod sidecar;
mod stranger;

use anyhow::Result;
use world::World;

type Test = fn(&World) -> Result<()>;

fn main() -> std::process::ExitCode {
    countersign_e2e::run(TESTS, World::new, World::stop)
}

pub const TESTS: &[(&str, Test)] = &[
    ("a_flood_of_small_frames_does_not_outlive_its_certificate", client::flood_ends_with_the_certificate),
    ("a_flood_of_small_frames_does_not_outlive_its_rule", client::flood_ends_with_the_rule),
    ("status_is_the_first_frame_though_the_app_resets_at_once", client::status_comes_first),
    ("what_follows_fin_never_reaches_the_connection_before", client::smuggled_behind_fin),
    ("what_a_peer_cut_short_ends_by_a_reset_at_the_app", client::cut_short),
    ("a_refused_peer_that_goes_on_sending_is_cut", client::refused_and_sending),
    ("broken_frames_end_the_link_and_leave_nothing_behind", client::broken_frames),
    ("a_peer_that_never_reads_is_cut_when_its_certificate_ends", client::never_reads),
    ("a_sidecar_without_a_port_blames_itself_and_says_that_it_is_overloaded", client::no_port_left),
    ("bytes_that_a_server_took_are_never_sent_twice", server::never_twice),
    ("what_ended_without_status_is_not_tried_at_another_endpoint", server::never_elsewhere),
    ("a_link_on_which_a_server_refused_or_reset_is_given_up_though_it_stays_open", server::not_kept),
    ("a_server_that_speaks_before_status_is_not_heard", server::speaks_too_early),
    ("an_answer_kept_for_the_next_connection_does_not_reach_it", server::answer_beforehand),
    ("a_broken_handshake_never_sends_a_service's_client_to_a_plain_endpoint", server::never_downgraded),
    ("what_one_endpoint_refused_reaches_the_pod's_own_app_whole", server::refused_elsewhere),
    ("an_endpoint_that_swallows_every_dial_does_not_attract_the_others", server::swallowed),
    ("an_endpoint_with_an_outdated_certificate_does_not_attract_the_others", server::outdated),
    ("silent_neighbours_keep_no_peer_out", stranger::silent_neighbours),
    ("a_hello_without_an_end_to_the_handshake_leaves_nothing_behind", stranger::half_a_handshake),
    ("an_app_that_dials_its_sidecars_listener_harms_nobody", stranger::app_at_the_listener),
    ("before_the_first_svid_nobody_comes_in_and_nothing_goes_out", stranger::no_credentials_yet),
];
