//! Promises about what happens while the parts around the data path come and go: controller, CA, certificates, rules, endpoints,
//! the sidecars themselves; and about what all of them tell.
//!
//! Each test has a mesh of its own (`stage`), because it breaks something.

#![allow(clippy::unwrap_used, missing_docs)]

mod bounds;
mod controller;
mod credentials;
mod domains;
mod egress;
mod ending;
mod endpoints;
mod explain;
mod files;
mod intercept;
mod loss;
mod modes;
mod observe;
mod openmetrics;
mod pool;
mod probes;
mod proof;
mod rotation;
mod rules;
mod stage;
mod talk;
mod told;
mod versions;

use anyhow::Result;
use countersign_kit::Inside;

type Test = fn(&Inside) -> Result<()>;

fn main() -> std::process::ExitCode {
    countersign_e2e::run(TESTS, Ok, |_| ())
}

const TESTS: &[(&str, Test)] = &[
    // First those that wait longest.
    ("a_root_is_replaced_under_load_and_no_connection_fails_and_the_report_proves_it", rotation::in_turn),
    (
        "a_step_too_early_is_refused_naming_who_is_missing_and_a_frozen_sidecar_holds_it_up_for_a_leafs_life",
        rotation::too_early,
    ),
    ("a_rotation_goes_on_where_it_was_when_the_ca_is_killed_and_can_be_given_up", rotation::ca_killed),
    ("a_rotation_goes_on_where_it_was_when_the_machine_is_restarted", rotation::machine_restarted),
    ("in_an_emergency_the_old_root_goes_at_once_and_only_when_confirmed", rotation::emergency),
    ("an_abort_is_ended_by_force_and_a_second_emergency_makes_another_root", rotation::forced),
    ("a_rotation_tells_at_the_terminal_how_far_it_is_and_who_is_missing_and_why", told::progress),
    ("an_emergency_tells_who_will_be_cut_and_does_nothing_before_the_name_is_typed", told::who_will_be_cut),
    ("renewals_fail_no_connection_old_or_new_and_the_old_links_are_not_used_again", credentials::renewals),
    ("a_connection_ends_with_the_certificates_of_the_side_that_cannot_renew", credentials::one_side_cannot),
    ("without_the_ca_traffic_ends_with_the_svid_and_comes_back_with_the_ca", credentials::ca_away),
    ("a_lost_state_key_is_told_and_a_new_root_brings_all_back_with_no_restart", loss::key),
    ("an_expired_root_stops_all_and_a_new_root_brings_all_back_with_no_restart", loss::root),
    ("without_the_controller_known_addresses_and_rules_go_on", controller::known_goes_on),
    ("without_the_controller_a_cold_address_is_refused_within_a_second", controller::cold_is_refused),
    ("a_restarted_controller_finds_the_same_revision_and_costs_no_connection", controller::restarted),
    (
        "a_proxy_with_one_feature_fewer_gets_no_lesser_rule_and_the_controller_tells_what_it_lacks",
        versions::older_proxy,
    ),
    ("a_controller_with_one_feature_fewer_rules_a_newer_proxy", versions::older_controller),
    ("what_a_newer_controller_says_beyond_a_proxy_admits_nobody_and_is_told", versions::newer_controller),
    ("a_new_allow_bites_within_two_seconds", rules::new_allow),
    ("a_removed_rule_ends_the_connection_that_it_allowed_within_a_second_and_no_other", rules::removed_rule),
    ("a_bad_rule_file_is_named_and_the_last_good_one_holds", rules::bad_file),
    ("a_deny_ends_what_is_open_and_its_removal_opens_again", rules::deny_and_back),
    ("an_audit_rule_only_reports", rules::audit_rule),
    ("the_audit_posture_admits_and_says_what_it_would_deny", rules::audit_posture),
    ("bad_labels_are_the_strictest_and_named", rules::bad_labels),
    ("permissive_refuses_plaintext_from_a_meshed_address", modes::meshed_source),
    ("permissive_relays_a_known_unmeshed_source_at_once", modes::unmeshed_source),
    ("permissive_gives_an_unknown_source_half_a_second", modes::unknown_source),
    ("a_bad_or_missing_certificate_is_refused_though_all_else_is_let_in", modes::certificates),
    ("a_strict_port_opened_to_strangers_is_the_only_one_open_to_them", modes::opened_port),
    ("open_plaintext_ends_when_neither_rule_nor_mode_lets_it_in_any_more", modes::let_in_no_longer),
    ("mesh_only_refuses_whoever_is_not_meshed_and_ends_what_is_open_to_them", egress::mesh_only),
    ("any_egress_passes_and_counts_plaintext_inside_the_mesh", egress::any),
    ("a_draining_sidecar_serves_to_the_end_of_its_connections_and_exits_0", ending::drained),
    ("the_drain_deadline_cuts_and_exits_3", ending::deadline),
    ("a_second_signal_cuts_at_once", ending::second_signal),
    ("a_second_connection_uses_the_first_ones_link", pool::reused),
    ("a_link_that_was_denied_or_reset_or_led_nowhere_is_never_used_again", pool::never_again),
    ("a_server_side_killed_between_two_uses_costs_no_connection", pool::killed),
    ("a_server_side_drained_just_before_a_use_costs_no_connection", pool::drained),
    ("a_link_closed_just_as_it_is_used_again_costs_no_connection", pool::crossed),
    ("a_link_idle_for_too_long_is_ended_by_the_server_side_and_costs_no_connection", pool::idle_at_the_server),
    ("an_endpoint_whose_app_is_down_gives_way_to_another", endpoints::app_down),
    ("an_endpoint_that_is_gone_gives_way_to_another", endpoints::gone),
    ("with_no_ready_endpoint_the_refusal_says_so", endpoints::none_ready),
    ("an_endpoint_that_is_somebody_else_gets_not_a_byte", endpoints::somebody_else),
    ("an_answer_that_proves_wrong_is_asked_for_once_more_and_costs_no_connection", versions::mistaken),
    (
        "an_address_reused_while_the_controller_hangs_is_refused_as_somebody_else",
        endpoints::reused_while_the_controller_hangs,
    ),
    (
        "an_address_reused_while_the_controller_is_away_is_refused_as_somebody_else",
        endpoints::reused_while_the_controller_is_away,
    ),
    ("connections_beyond_the_bound_are_shed_and_not_queued", bounds::connections),
    ("a_receiver_that_does_not_read_stalls_the_sender_and_costs_the_sidecars_no_memory", bounds::unread),
    ("installing_the_redirect_twice_is_installing_it_once", intercept::twice),
    ("a_lost_redirect_rule_is_named_and_mended_under_traffic", intercept::lost_rule),
    ("a_removed_redirect_leaves_nothing", intercept::removed),
    ("readiness_on_15021_is_answered_only_through_the_redirect", proof::answered),
    ("the_app_is_held_back_until_the_redirect_is_there", proof::held_back),
    ("a_lost_outbound_redirect_is_noticed_within_seconds", proof::lost_outbound),
    ("a_lost_inbound_redirect_is_noticed_within_seconds", proof::lost_inbound),
    ("probes_tell_the_apps_health_under_strict", probes::apps_health),
    ("the_drain_command_withdraws_and_waits_only_where_asked", ending::drain_command),
    ("the_judge_of_openmetrics_refuses_what_is_none", openmetrics::judged),
    ("colours_are_for_a_terminal_unless_no_color_is_set", told::no_color),
    ("every_process_tells_its_metrics_in_openmetrics", observe::metrics),
    ("the_access_log_tells_both_identities_rule_revision_and_group", observe::access_log),
    ("status_shows_every_process", observe::status),
    ("a_config_dump_holds_no_secret", observe::config_dump),
    ("a_denial_explains_itself_and_what_it_proposes_lets_in", explain::explained),
    ("a_plaintext_refusal_has_an_id_and_explains_itself", explain::without_identity),
    ("a_denial_is_explained_from_the_log_when_no_socket_answers", explain::from_the_log),
    ("a_ca_without_files_does_not_spin_and_recovers", files::ca),
    ("a_controller_without_files_does_not_spin_and_recovers", files::controller),
    ("the_log_level_changes_while_it_runs", observe::log_level),
    ("the_health_port_answers_nothing_else", observe::health_port),
    ("two_trust_domains_do_not_mix", domains::apart),
];
