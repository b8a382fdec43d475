//! Interception: the redirect rules of a pod, and the guards on what they let in.

pub mod guard;
