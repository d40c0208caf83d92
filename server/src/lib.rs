//! goldsync's server and the operator's tool.

pub mod api;
pub mod authority;
pub mod catalog;
pub mod channel;
pub mod config;
mod disk;
pub mod orders;
pub mod roster;
pub mod trust;
