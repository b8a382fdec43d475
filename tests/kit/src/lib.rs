//! Virtual pods in namespaces, a test CA, clocks, hostile and slow peers: what tests, the demo and the benches stand on.
//!
//! First `enter()`, then a `Net`, then its pods. Nothing here is part of the product.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod allocator;
mod capture;
mod child;
mod clock;
mod command;
pub mod enter;
mod flow;
mod forger;
pub mod hostile;
mod lacks;
pub mod load;
pub mod mesh;
pub mod nameless;
mod namespace;
mod net;
pub mod packet;
pub mod programs;
mod raw;
pub mod relay;
pub mod testca;
pub mod tls;
pub mod tokens;
pub mod versions;
mod wait;

pub use allocator::allocator_has_its_settings;
pub use capture::{Capture, Captured};
pub use child::{Finished, Running};
pub use clock::TestClock;
pub use command::PodCommand;
pub use enter::{EnterError, Inside, enter};
pub use flow::{Flow, Stream};
pub use forger::Forger;
pub use lacks::{Here, Lacks};
pub use namespace::{Namespace, Task};
pub use net::{LINK_V4, LINK_V6, Net, Pod, PodSpec};
pub use raw::Raw;
pub use wait::{uninterrupted, wait_for, wait_until};
