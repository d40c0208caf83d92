//! goldsync's server and the operator's tool.

pub mod api;
pub mod golden;
pub mod packs;
pub mod store;
#[cfg(test)]
pub(crate) mod testing;
