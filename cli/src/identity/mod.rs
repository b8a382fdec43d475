//! `countersign identity`: what a certificate says, and whether the mesh would believe it.
//!
//! Called by `main`. It must never print a private key, even where the file holds one.

pub(crate) mod chain;
mod profile;
pub(crate) mod show;
mod verify;

use anyhow::Result;

use crate::args::IdentityCommand;
use crate::output::{Format, Verdict};

/// Runs one of its commands.
pub fn run(command: &IdentityCommand, format: Format) -> Result<Verdict> {
    match command {
        IdentityCommand::Show { file } => show::run(file, format),
        IdentityCommand::Verify(args) => verify::run(args, format),
    }
}
