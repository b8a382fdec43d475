//! The gRPC server that proxies connect to: `Controller.Connect` over mutual TLS.
//!
//! Started by `run`. Read as a proxy meets it: `guard` (connections), `session` (one stream), `hello` (who is let in),
//! `registry` (one seat a pod), `wanted` (what was asked for). Here are only the bounds of connections and messages.

mod budget;
mod guard;
mod hello;
mod registry;
mod session;
mod wanted;

use std::time::Duration;

use countersign_api::controller::controller_server::{Controller, ControllerServer};
use countersign_api::controller::{FromProxy, ToProxy};
use countersign_credentials::{Incoming, STREAM_WINDOW, connection_window, grpc_server};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

pub use self::hello::{Claim, Refusal};
pub use self::registry::{Record, Registry, Told};
pub use self::session::{CallerLines, Shared};
use crate::server::guard::{Caller, guard};

/// The largest honest message is an `Ack` that names 100 rules which the proxy does not know, 32 KiB: as much as this, and no more,
/// each stream may have us hold.
const MAX_MESSAGE: usize = 64 * 1024;
/// One is used; another while it is replaced.
const STREAMS_PER_CONNECTION: u32 = 4;
/// The smallest message after `Hello`, with its gRPC header: a lookup of an IPv4 source.
const SMALLEST: u32 = 13;
/// All the lookups that fit a stream's window may wait there for their turn.
const CONNECTION_WINDOW: u32 = connection_window(STREAM_WINDOW, SMALLEST);
const PING_EACH: Duration = Duration::from_secs(20);
const PING_LIMIT: Duration = Duration::from_secs(10);

/// Serves until `shared.shutdown`, then lets connections end.
pub async fn serve(shared: Shared, incoming: Incoming) -> Result<(), tonic::transport::Error> {
    let connections = guard(incoming, shared.metrics.clone());
    let shutdown = shared.shutdown.clone().cancelled_owned();
    bounded().add_service(service(shared)).serve_with_incoming_shutdown(connections, shutdown).await
}

fn service(shared: Shared) -> ControllerServer<Service> {
    ControllerServer::new(Service { shared }).max_decoding_message_size(MAX_MESSAGE)
}

fn bounded() -> Server {
    grpc_server()
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .http2_keepalive_interval(Some(PING_EACH))
        .http2_keepalive_timeout(Some(PING_LIMIT))
}

struct Service {
    shared: Shared,
}

#[tonic::async_trait]
impl Controller for Service {
    type ConnectStream = ReceiverStream<Result<ToProxy, Status>>;

    async fn connect(&self, request: Request<Streaming<FromProxy>>) -> Result<Response<Self::ConnectStream>, Status> {
        let caller = request.extensions().get::<Caller>().cloned();
        let caller = caller.ok_or_else(|| Status::internal("a request without a connection"))?;
        let (out, messages) = mpsc::channel(1);
        tokio::spawn(session::run(self.shared.clone(), caller, request.into_inner(), out));
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

#[cfg(test)]
mod tests;
