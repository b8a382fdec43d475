//! Nobody in between: what the application and the load themselves cost.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;

use super::{Peer, Place, Up};
use crate::stage::{APP, Stage};

/// No peer at all.
pub struct Direct;

impl Peer for Direct {
    fn name(&self) -> &'static str {
        "direct"
    }

    fn about(&self) -> &'static str {
        "nothing in between"
    }

    fn claims_mtls(&self) -> bool {
        false
    }

    fn lacks(&self) -> Option<String> {
        None
    }

    fn version(&self) -> String {
        String::new()
    }

    fn binary(&self) -> Option<PathBuf> {
        None
    }

    fn start<'a>(&self, stage: &'a Stage) -> Result<Up<'a>> {
        let target = SocketAddr::new(stage.server.v4().into(), APP);
        let place = Place::Stage(&stage.client);
        Ok(Up { place, target, client: Vec::new(), server: Vec::new(), guarded: None, keep: Box::new(()) })
    }
}
