//! How an image becomes golden: prepared by the publisher, received by the server block by block, proven, stored.
//!
//! ```text
//! publisher                                   server
//! [prepare] sign the image  ── blocks ──────▶ [uploads] which blocks has no stored image?
//!           read those      ◀─ missing runs ─
//!           compress        ── frames ──────▶ each block held against its hash, kept in uploads/
//!                           ── complete ────▶ segments, layout, whole image read back and hashed,
//!                           ◀─ sections ────── then, and only then, the image exists
//! ```
//! [`known`] is the server's index of stored blocks. Eight bytes of hash find a block; what proves it is the whole
//! image, read back through its layout and hashed before it is committed.

pub mod prepare;

mod after;
mod content;
#[cfg(test)]
mod history;
mod known;
mod parts;
mod segments;
mod sign;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod uploads;

pub use uploads::{UploadError, Uploads};
