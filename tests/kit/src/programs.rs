//! Foreign programs: the one table of `countersign-programs`, with an eye to where we are.
//!
//! Called by tests, the demo and the benches.

pub use countersign_programs::{Missing, find, is_root, need, package, there};

use crate::enter::entered;

/// Sees to it that all of these are there: installs what is missing where that is allowed, and not yet inside (there is no network).
///
/// # Errors
/// What is still missing, with the line to type.
pub fn ensure(programs: &[&str]) -> Result<(), Missing> {
    if entered() { there(programs) } else { countersign_programs::ensure(programs) }
}
