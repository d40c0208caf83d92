//! goldsync's server and the operator's tool.

pub mod api;
pub mod catalog;
pub mod config;
