//! Hard times: a log that was tampered with, a full disk, a clock that is wrong, no more files, a CA and a controller that were
//! away. Real processes, each test with a mesh of its own, which it may break.

#![allow(clippy::unwrap_used, missing_docs)]

mod audit;
mod disk;

use std::process::ExitCode;

use countersign_kit::Inside;

fn main() -> ExitCode {
    countersign_e2e::run::<Inside>(
        &[
            ("the_audit_log_of_a_real_ca_verifies_and_every_kind_of_tampering_is_found", audit::tampering),
            ("a_crash_that_tears_the_audit_log_is_told_and_the_ca_goes_on", audit::torn),
            ("a_full_disk_is_told_before_it_stops_the_signing_and_room_brings_it_back", disk::full),
        ],
        Ok,
        |_| (),
    )
}
