//! goldsync's server and the operator's tool.

pub mod api;
pub mod authority;
mod disk;
pub mod trust;
