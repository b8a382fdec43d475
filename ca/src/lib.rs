//! See the binary.
