//! The promises of `verify_svid`, bundles and SVIDs, and foreign judges of the same chains.
//!
//! `support` makes certificates, right and wrong; `leaf`, `path`, `bundle` and `svid` each name one promise a test;
//! `corpus` lists all the chains once more for `openssl` and `spiffe_rustls`, who must never refuse what we accept;
//! `beyond` asks them about what a chain alone does not show: its key, who was expected, a bundle that changed, a bad root.
#![allow(clippy::unwrap_used, missing_docs)]

mod beyond;
mod bundle;
mod corpus;
mod leaf;
mod openssl;
mod path;
mod spiffe_rustls_judge;
mod support;
mod svid;
mod workload_api;
