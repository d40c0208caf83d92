//! goldsync's server and the operator's tool.

pub mod api;
pub mod catalog;
pub mod channel;
pub mod config;
pub mod orders;
pub mod roster;
