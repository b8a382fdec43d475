//! The sidecar: the data path of the mesh. Modules stand in the order a byte meets them.

pub mod outcome;
