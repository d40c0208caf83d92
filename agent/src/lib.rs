//! goldsync's agent: what runs on every node.

mod disk;
pub mod identity;
pub mod trust;
