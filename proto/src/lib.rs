//! What the agent and the server must agree on: words, formats, and the pure algorithms that make and read them.
//!
//! ```text
//! image ─▶ block ─▶ signature ─▶ plan ─▶ pack
//!              grain ─┐ ▲   sketch  ▲
//!                     └┴── scan ───┘          wire: who may say what when
//!                          verity ┘
//! ```
//! This crate knows no clock, socket or path and no async runtime. Nothing in it can block, so all of it can be
//! tested without waiting, and fuzzed. Every decoder is total: it returns an error, it never panics, and it never
//! takes memory or time that its input's length does not pay for.

pub mod block;
pub mod codec;
pub mod content;
pub mod digest;
pub mod explain;
pub mod grain;
pub mod image;
pub mod limits;
pub mod make;
pub mod pack;
pub mod plan;
pub mod refusal;
pub mod release;
pub mod scan;
pub mod signature;
pub mod sketch;
#[cfg(test)]
mod testing;
pub mod trust;
pub mod units;
pub mod verity;
pub mod wire;
