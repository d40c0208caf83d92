//! goldsync's server and the operator's tool.

pub mod api;
