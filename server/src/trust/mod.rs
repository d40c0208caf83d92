//! Signed metadata, after The Update Framework: who may say which image a node shall run.
//!
//! ```text
//! operator's folder                       server's folder                            node
//! ------------------                      ----------------                           ----
//! keys/root.pem ───────── signs ────────▶ 1.root.json ─────────────────────────────▶ pinned by the token
//! keys/targets.pem ─────────────────────▶ 1.targets.json: who may sign what
//! keys/releases.pem ──── sign_release ──▶ 4.releases.json: every release
//! keys/channel-dev.pem ─ sign_pointer ──▶ 2.channel-dev.json: where `dev` points
//!                                         7.snapshot.json, timestamp.json ─────────▶ verified by goldsync-agent
//!                                           ▲ signed with keys/snapshot.pem, keys/timestamp.pem
//! ```
//! [`operator`] holds the offline keys and never takes the server's word: what the server hands out is verified
//! against the root that the operator pinned and held against the versions last seen. [`hold`] is the server's side:
//! it checks what an operator submits, signs the two short-lived roles, and hands out what a node lacks.
//!
//! What can go wrong is [`TrustError`]. A stolen server can withhold an update until the timestamp expires on the
//! nodes, visibly; it cannot forge a release or a pointer, nor take one back.

mod check;
mod error;
mod held;
mod hold;
mod key;
mod operator;
mod role;
mod standing;
mod view;

#[cfg(test)]
mod tests;

use chrono::TimeDelta;

pub use error::{Fault, TrustError};
pub use hold::Trust;
pub use key::{Key, Keys, Online, OnlinePublic};
pub(crate) use key::{is_reserved, old_file_of};
pub use operator::{Delegate, NewRoot, Operator};
pub use standing::{KeyPlace, Standing};

/// How long signed metadata is good for, from its signing on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// `root`. When it is over, nodes take nothing new until an operator signs the next root.
    pub root: TimeDelta,
    /// `targets`: the list of who may sign what.
    pub targets: TimeDelta,
    /// `releases`.
    pub releases: TimeDelta,
    /// `channel-…`. A channel that nobody promotes to for that long stands still until its role is renewed.
    pub channels: TimeDelta,
    /// `snapshot`, re-signed by the server when half of it is over.
    pub snapshot: TimeDelta,
    /// `timestamp`, re-signed by the server when half of it is over. A node that hears nothing newer for that long
    /// says that it is cut off.
    pub timestamp: TimeDelta,
}

impl Default for Lifetimes {
    fn default() -> Self {
        let year = TimeDelta::days(365);
        Self {
            root: year,
            targets: year,
            releases: year,
            channels: year,
            snapshot: TimeDelta::days(30),
            timestamp: TimeDelta::days(7),
        }
    }
}
