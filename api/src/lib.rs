//! SAID: what two processes of the mesh say to each other. Protobuf messages, ports, environment names, label keys.
//!
//! Called by every binary. It must never hold a rule or a decision: a rule that two need lives in
//! `identity` or `policy`.

/// Messages and service of the CA (`proto/ca.proto`).
#[allow(missing_docs, clippy::all)]
pub mod ca {
    tonic::include_proto!("countersign.ca.v1");
}

/// Messages and service of the controller (`proto/controller.proto`).
#[allow(missing_docs, clippy::all)]
pub mod controller {
    tonic::include_proto!("countersign.controller.v1");
}

pub mod audit;
pub mod env;
pub mod names;
pub mod ports;
pub mod probes;
pub mod report;
