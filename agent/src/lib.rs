//! What runs on a node: keeps one of two slots binary-identical to the golden image of its channel.
//!
//! ```text
//! check ─▶ plan ─▶ fetch ─▶ verify ─▶ stage ─▶ swap          what an update does
//!   │                │                  │        │
//! [link]           [link]            [slot]   [boot]          what it does it with
//! ```
//! * [`config`]: what the operator wrote, checked whole before anything is done.
//! * [`slot`]: the two places that can hold an image; the only door to writing one.
//! * [`journal`]: what this node has proven, durably; one run at a time.
//! * [`boot`]: which slot is active, and the atomic step that changes it; [`swap`]: the verbs that take it.
//! * [`volume`]: a slot attached and mounted read-only, checked by dm-verity where wanted.
//! * [`link`]: one QUIC connection to the server; [`identity`]: who we are to it; [`enrol`]: how that came about.
//! * [`trust`]: what the fleet's operators signed; [`update`]: the flow above; [`drift`]: is the active slot still golden?
//! * [`daemon`], [`schedule`]: being told when there is work, and looking anyway.
//! * [`init`], [`doctor`]: what a machine's configuration could be, and what would stop an update on it.
//! * [`node`], [`status`]: all of it together, and how it is; [`cli`]: the verbs.

pub mod boot;
pub mod budget;
pub mod cli;
pub mod config;
pub mod daemon;
mod disk;
pub mod doctor;
pub mod drift;
pub mod enrol;
pub mod explain;
pub mod fetch;
pub mod health;
pub mod identity;
pub mod init;
pub mod job;
pub mod journal;
pub mod link;
mod mounts;
pub mod node;
pub mod plan;
pub mod program;
pub mod restart;
pub mod schedule;
pub mod scratch;
pub mod slot;
pub mod stage;
pub mod status;
pub mod swap;
pub mod trial;
pub mod trust;
pub mod update;
pub mod verify;
pub mod volume;
