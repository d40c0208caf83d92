//! Finding golden blocks in local bytes.
//!
//! ```text
//! golden hashes ─▶ [aligned]  blocks on the 4 KiB grid, by BLAKE3          most of ext4 and erofs
//!                     │ still missing
//!                     ▼
//!                  [rolling]  blocks at any byte offset, by fast_rsync     squashfs, grown files
//! ```
//! Both passes answer with candidates, found by eight bytes of hash. They may stop early at any time: what is not found
//! is fetched. The seam for faster scanners is [`rolling::Rolling`]'s two functions.

pub mod aligned;
pub mod rolling;
