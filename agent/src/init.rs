//! `goldsync-agent init`: looks at a machine and proposes a configuration for it, saying why for every value.
//!
//! ```text
//! /proc, /sys, /dev, /etc ──▶ [Machine] ──▶ [Proposal] ──▶ printed, or agent.toml
//!      (below any folder)      facts         pure: text and notes
//! ```
//! Looking changes nothing, and nothing is run. What is proposed is always a configuration that can be used; whether it is what
//! the operator wants is for them to read. A slot is overwritten whole, so that a guess is called a guess.

mod machine;
mod proposal;

pub use machine::{Grub, Loaders, Machine, Partition, Space};
pub use proposal::{Proposal, Wishes};
