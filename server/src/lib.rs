//! goldsync's server and the operator's tool.

pub mod api;
pub mod authority;
pub mod catalog;
pub mod channel;
pub mod config;
pub mod daemon;
mod disk;
pub mod golden;
pub mod hub;
pub mod init;
pub mod orders;
pub mod packs;
pub mod recover;
pub mod roster;
pub mod session;
pub mod store;
#[cfg(test)]
mod testing;
pub mod trust;
