//! A SPIFFE Workload API of a few lines: it hands out one SVID and the bundles given, and keeps the stream open.
//!
//! Only there to feed `spiffe-rustls`, which takes its trust from nowhere else.

use prost::Message;
use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio_stream::{Stream, StreamExt};
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, ServerStreamingService};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

type Reply<T> = Pin<Box<dyn Future<Output = T> + Send>>;

#[derive(Clone, PartialEq, Message)]
pub struct FetchRequest {}

#[derive(Clone, PartialEq, Message)]
pub struct FetchResponse {
    #[prost(message, repeated, tag = "1")]
    pub svids: Vec<OneSvid>,
    #[prost(map = "string, bytes", tag = "3")]
    pub federated_bundles: HashMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub struct OneSvid {
    #[prost(string, tag = "1")]
    pub spiffe_id: String,
    /// DER certificates, one after the other, leaf first.
    #[prost(bytes = "vec", tag = "2")]
    pub x509_svid: Vec<u8>,
    /// PKCS#8.
    #[prost(bytes = "vec", tag = "3")]
    pub x509_svid_key: Vec<u8>,
    /// DER roots, one after the other.
    #[prost(bytes = "vec", tag = "4")]
    pub bundle: Vec<u8>,
}

#[derive(Clone)]
struct Api(FetchResponse);

impl NamedService for Api {
    const NAME: &'static str = "SpiffeWorkloadAPI";
}

impl ServerStreamingService<FetchRequest> for Api {
    type Response = FetchResponse;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<FetchResponse, Status>> + Send>>;
    type Future = Reply<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, _: Request<FetchRequest>) -> Self::Future {
        let first = tokio_stream::once(Ok(self.0.clone()));
        let stream: Self::ResponseStream = Box::pin(first.chain(tokio_stream::pending()));
        Box::pin(async { Ok(Response::new(stream)) })
    }
}

impl tower::Service<http::Request<Body>> for Api {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Reply<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        assert_eq!(request.uri().path(), "/SpiffeWorkloadAPI/FetchX509SVID");
        let api = self.clone();
        Box::pin(async move {
            let mut grpc = Grpc::new(ProstCodec::default());
            Ok(grpc.server_streaming(api, request).await)
        })
    }
}

/// Serves on a free port of the loopback until the runtime ends; the endpoint's address.
pub async fn serve(response: FetchResponse) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
    let server = tonic::transport::Server::builder().add_service(Api(response));
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    endpoint
}
