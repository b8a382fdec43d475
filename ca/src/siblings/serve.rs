//! What a sibling is answered: who this replica is, what it has in force, and its table, in pages. Served by `server` beside the CA's other
//! service, by the same TLS. Nobody else than the CA itself is answered: the table says who runs where.

use std::iter::once;
use std::pin::Pin;
use std::sync::Arc;

use countersign_api::ca::siblings_server::Siblings as Service;
use countersign_api::ca::{HoldersPage, HoldersRequest};
use tokio::sync::Semaphore;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::{Siblings, wire};
use crate::server::peer;

/// Holders in one message: about 1 KiB each.
const PAGE: usize = 256;
/// Tables that are told at once.
const AT_ONCE: usize = 8;

/// The service; one for the process.
pub struct Answers {
    siblings: Arc<Siblings>,
    slots: Arc<Semaphore>,
}

impl Answers {
    /// Nobody has asked yet.
    pub fn new(siblings: Arc<Siblings>) -> Self {
        Self { siblings, slots: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

type Pages = Pin<Box<dyn Stream<Item = Result<HoldersPage, Status>> + Send>>;

#[tonic::async_trait]
impl Service for Answers {
    type HoldersStream = Pages;

    async fn holders(&self, request: Request<HoldersRequest>) -> Result<Response<Pages>, Status> {
        let proven = peer(&request)?.id.as_ref().ok_or_else(|| Status::unauthenticated("a client SVID is needed"))?;
        if proven.id() != self.siblings.own.id() {
            return Err(Status::permission_denied("only the CA itself is told who holds what"));
        }
        let slot = Arc::clone(&self.slots).try_acquire_owned();
        let slot = slot.map_err(|_| Status::resource_exhausted("the table is told to too many at once"))?;
        // What is in force before the table: a leaf that is signed by an older state is then either in the table or not told of as signed by
        // a state that has been in force for a while.
        let facts = self.siblings.facts().ok_or_else(|| Status::unavailable("this replica is in no record yet"))?;
        let now = facts.now;
        let table = if request.get_ref().presence_only { Vec::new() } else { self.siblings.holders.living(now) };
        let mut rest = table.into_iter();
        let pages = std::iter::from_fn(move || {
            let _held = &slot;
            let holders: Vec<_> = rest.by_ref().take(PAGE).map(|holder| wire::told(&holder)).collect();
            (!holders.is_empty()).then(|| Ok(HoldersPage { replica: None, holders }))
        });
        let first = Ok(HoldersPage { replica: Some(facts), holders: Vec::new() });
        Ok(Response::new(Box::pin(tokio_stream::iter(once(first).chain(pages)))))
    }
}
