//! What agent and server say to each other over QUIC, version 1.
//!
//! ```text
//! A ──▶ S  one bidirectional stream a request:  frame(Request)  [body]  FIN
//! S ──▶ A  on the same stream:                  frame(Answer)   [body]  FIN
//!
//! A ──▶ S  one long-lived stream:  frame(Request::Control)  frame(NodeSays)* ...
//! S ──▶ A                          frame(Answer::Welcome)   frame(ServerSays)* ...
//! ```
//! A frame is a little-endian `u32` length and that many bytes of JSON, at most [`MESSAGE_MAX`]. Unknown fields are
//! ignored and new ones are optional, so that either side may be the newer one; an unknown `ask` is answered with
//! `Reason::BadRequest`. Bodies are raw bytes whose length the frame before them gives.
//!
//! A node shows its certificate on ALPN [`ALPN`]. On ALPN [`ALPN_ENROL`] no certificate is asked for and only
//! [`Request::Enrol`] is answered. Nothing here is trusted for what a node may boot: that is signed metadata's part.
//! The byte layouts are drawn in `docs/WIRE.md`, with vectors in `proto/vectors`.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::block::Run;
use crate::codec::CodecError;
use crate::digest::{Digest, ImageId};
use crate::grain;
use crate::limits::MESSAGE_MAX;
use crate::refusal::Refusal;
use crate::release::{ReleaseRef, Section, Word};
use crate::verity::Tree;

/// The protocol's name in the TLS handshake. A breaking change takes a new one.
pub const ALPN: &[u8] = b"goldsync/1";

/// The protocol's name for a machine that has no certificate yet.
pub const ALPN_ENROL: &[u8] = b"goldsync-enrol/1";

/// What a node would rather spare: time to unpack, or bytes on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prefer {
    /// Packs that unpack at hundreds of megabytes a second.
    #[default]
    Time,
    /// The smallest packs, which unpack at ten or twenty megabytes a second.
    Bytes,
}

impl Prefer {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What an agent asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
#[non_exhaustive]
#[allow(clippy::large_enum_variant, reason = "one message at a time; boxing would only blur it")]
pub enum Request {
    /// Become a node. Only on [`ALPN_ENROL`].
    Enrol {
        /// The token's secret part.
        token: String,
        /// A certificate signing request, PEM. Its subject is ignored: the server names the node.
        csr: String,
        /// The name that the machine would like; made unique by the server.
        name: Word,
        /// The node's labels.
        labels: BTreeMap<String, String>,
    },
    /// Get a fresh certificate for the same node.
    Renew {
        /// A certificate signing request, PEM.
        csr: String,
    },
    /// Make this stream the control stream.
    Control {
        /// Who speaks.
        hello: Hello,
    },
    /// Signed metadata that is newer than what the node holds. Body of the answer: the files, one after the other.
    Trust {
        /// Role to version, for the metadata held: `{"root": 1, "timestamp": 7, ...}`.
        have: BTreeMap<String, u64>,
        /// Target files wanted besides: `channel_production.json`, `release_web_1.json`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        want: Vec<String>,
    },
    /// A range of an immutable object. Body of the answer: the bytes.
    Object {
        /// Which.
        name: Digest,
        /// First byte.
        offset: u64,
        /// Bytes; at most `OBJECT_RANGE_MAX`.
        length: u64,
    },
    /// How to make `target` out of `base`, or out of nothing.
    Plan {
        /// What the node's active slot holds; `None` for a cold plan.
        base: Option<ImageId>,
        /// The image wanted.
        target: ImageId,
        /// Which of the server's plans for the pair, if it has both.
        #[serde(default, skip_serializing_if = "Prefer::is_default")]
        prefer: Prefer,
    },
    /// Blocks of an image. Body of the answer: literal frames, see `pack`.
    Blocks {
        /// Which image.
        image: ImageId,
        /// `(first, count)`, ascending and apart; at most `BLOCKS_RUNS_MAX` runs and `BLOCKS_PER_REQUEST` blocks.
        runs: Vec<Run>,
    },
    /// The hashes of grains of some blocks. Body of the answer: see `grain`.
    GrainHashes {
        /// Which image.
        image: ImageId,
        /// The node's own, so that nobody can prepare bytes that collide.
        seed: u32,
        /// Bytes in a hash: one of `grain::WIDTHS`.
        width: u8,
        /// Which grains of each block, as a mask; not none.
        #[serde(default = "all_grains", skip_serializing_if = "is_all_grains")]
        mask: u8,
        /// As in `Blocks`.
        runs: Vec<Run>,
    },
    /// Some grains of blocks. Body: one mask for each block, see `grain`. Body of the answer: literal frames, each of whole
    /// blocks' grains.
    Grains {
        /// Which image.
        image: ImageId,
        /// As in `Blocks`.
        runs: Vec<Run>,
        /// Bytes of the body.
        masks: u64,
    },
    /// Which image a node's unknown one is nearest to. Body: a sketch of what the node holds, see `sketch`.
    Nearest {
        /// The image wanted: settles which blocks are sampled.
        target: ImageId,
        /// Bytes of the body.
        sketch: u64,
    },
    /// The hash trees of an image: what a node that plans by the signature need not ask for.
    Trees {
        /// The image.
        image: ImageId,
    },
}

fn all_grains() -> u8 {
    grain::ALL
}

fn is_all_grains(mask: &u8) -> bool {
    *mask == grain::ALL
}

/// What a server answers. A body, if any, follows the frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Answer {
    /// To `Enrol`.
    Enrolled {
        /// The node's name from now on.
        node: Word,
        /// Its certificate, PEM.
        certificate: String,
        /// The fleet's CA, PEM.
        authority: String,
        /// The TUF root metadata to start from, as text. The token carries its hash.
        root: String,
    },
    /// To `Renew`.
    Renewed {
        /// The new certificate, PEM.
        certificate: String,
    },
    /// To `Control`; `ServerSays` frames follow.
    Welcome {
        /// The server's version.
        version: String,
    },
    /// To `Trust`. Body: the files' bytes in this order. Files not listed are as the node has them.
    Trust {
        /// What follows.
        files: Vec<TrustFile>,
    },
    /// To `Object`. Body: that many bytes.
    Object {
        /// Bytes; less than asked for only at the object's end.
        length: u64,
    },
    /// To `Plan`: the plan is an object; fetch it.
    Plan {
        /// Its name.
        name: Digest,
        /// Its length.
        length: u64,
    },
    /// To `Plan`: it is being made. Ask again after this many milliseconds, or plan by the signature.
    Making {
        /// The server's guess.
        retry_ms: u64,
    },
    /// To `Blocks`. Body: literal frames until FIN.
    Blocks {
        /// Blocks that follow.
        blocks: u64,
    },
    /// To `GrainHashes`. Body: the hashes, block by block.
    GrainHashes {
        /// Hashes that follow.
        grains: u64,
    },
    /// To `Grains`. Body: literal frames until FIN.
    Grains {
        /// Grains that follow.
        grains: u64,
    },
    /// To `Nearest`.
    Nearest {
        /// The image, if one is near enough for a plan from it to be of use.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        near: Option<Near>,
    },
    /// To `Trees`.
    Trees {
        /// They, as far as the server knows.
        trees: Vec<Tree>,
    },
    /// To anything.
    Refused {
        /// Why.
        refusal: Refusal,
    },
}

/// An image that another one is near to, and the parts of its signature that tell where the two differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Near {
    /// The image.
    pub image: ImageId,
    /// Its size in bytes.
    pub size: u64,
    /// The hashes of its regions.
    pub subtrees: Section,
    /// The hashes of its blocks.
    pub blocks: Section,
}

/// A file of signed metadata in an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustFile {
    /// `timestamp.json`, `2.root.json`, `7.snapshot.json`, ...
    pub name: String,
    /// Bytes.
    pub length: u64,
}

/// How a node introduces itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The agent's version.
    pub version: String,
    /// The channel that it follows.
    pub channel: Word,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Whether it stays connected; `false` for a one-shot command.
    pub daemon: bool,
    /// How it is.
    pub report: Report,
}

/// How a node is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The active slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<SlotReport>,
    /// The standby slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standby: Option<SlotReport>,
    /// What it is doing.
    pub phase: Phase,
    /// How far it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// What went wrong last, if nothing went right since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Drifted blocks in the active slot, as far as known: by the last `verify` or update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drifted: Option<u64>,
    /// What was activated and has not shown itself good yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<TrialReport>,
    /// What the node waits for before it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<Wait>,
    /// Releases that the node does not go to unasked; the latest last, at most `HELD_MAX`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<Held>,
}

/// A slot on trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrialReport {
    /// The slot's name.
    pub slot: Word,
    /// What it holds.
    pub release: ReleaseRef,
    /// When it was activated, RFC 3339.
    pub since: String,
    /// Whether it runs; if not, it will after the next restart.
    pub running: bool,
    /// How many more starts the boot loader allows it, where it counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tries: Option<u8>,
}

/// What a node waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// The kind of it.
    pub on: WaitOn,
    /// For people.
    pub why: String,
    /// Until when at most, RFC 3339, if that can be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
}

/// The kinds of what a node waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WaitOn {
    /// Its maintenance window.
    Window,
    /// A program that must not be interrupted.
    Inhibitor,
    /// Somebody who is logged in.
    Session,
    /// A restart of the machine, by somebody else.
    Restart,
    /// Something that this version has no word for.
    #[serde(other)]
    Other,
}

/// A release that a node does not go to unasked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Its image.
    pub image: ImageId,
    /// Its name.
    pub release: ReleaseRef,
    /// Since when, RFC 3339.
    pub since: String,
    /// Why: what failed, or who went back.
    pub why: String,
}

/// What a slot holds, by the node's own proof.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotReport {
    /// The slot's name: `a` or `b`.
    pub slot: Word,
    /// The image it was proven to hold; `None` while it is being written or was never proven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageId>,
    /// The release it was installed as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseRef>,
}

/// The step of an update that a node is in. The words of the design's flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Phase {
    /// Nothing to do.
    #[default]
    Idle,
    /// Is it new, signed, allowed, due?
    Check,
    /// Which bytes do I hold already?
    Plan,
    /// Getting what is missing, verifying it, and staging it into the standby slot.
    Fetch,
    /// Reading the whole slot back.
    Verify,
    /// Staged and proven, waiting to be activated.
    Staged,
    /// The one atomic step.
    Swap,
    /// Activated, and has to show itself good.
    Trial,
    /// Hashing the active slot, or repairing it.
    Repair,
    /// The last update failed; `error` says why.
    Failed,
}

/// How far a phase is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes of the image that are done.
    pub done: u64,
    /// Bytes of the image.
    pub total: u64,
    /// Bytes received so far in this update.
    pub received: u64,
}

/// What a node says on the control stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
#[non_exhaustive]
#[allow(clippy::large_enum_variant, reason = "one message at a time; boxing would only blur it")]
pub enum NodeSays {
    /// How it is now.
    Report {
        /// The whole state; the last one counts.
        report: Report,
    },
    /// An ordered sync is over.
    SyncDone {
        /// Which order.
        order: u64,
        /// How it ended.
        outcome: Outcome,
    },
}

/// What a server says on the control stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ServerSays {
    /// The node's channel may have moved. A hint, no order and no proof: the node looks at the signed metadata.
    Moved {
        /// Which channel.
        channel: Word,
    },
    /// Sync, by an operator's order.
    Sync {
        /// The order's number; answered by `SyncDone`.
        order: u64,
        /// At once, or after the node's own splay.
        now: bool,
    },
    /// Go back to what was active before, by an operator's order, if this release runs. At once.
    Rollback {
        /// The order's number; answered by `SyncDone`.
        order: u64,
        /// The release to go back from.
        from: ReleaseRef,
    },
}

impl ServerSays {
    /// The order's number, if it is one.
    pub fn order(&self) -> Option<u64> {
        match self {
            Self::Moved { .. } => None,
            Self::Sync { order, .. } | Self::Rollback { order, .. } => Some(*order),
        }
    }
}

/// How one update ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// The golden image runs already; nothing was written.
    UpToDate,
    /// Another image runs now.
    Updated {
        /// The account of it.
        account: Account,
    },
    /// All of it is here and proven; it is in use when what the node waits for has come.
    Waits {
        /// What it took so far.
        account: Account,
        /// For what.
        wait: Wait,
    },
    /// It did not work; the active slot is as it was.
    Failed {
        /// Why.
        error: String,
    },
}

/// What one update cost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Which way: `pack`, `signature`, `cold`, `repair`.
    pub path: String,
    /// UDP payload bytes received, handshake and all.
    pub received: u64,
    /// UDP payload bytes sent.
    pub sent: u64,
    /// Blocks written to the standby slot.
    pub written: u64,
    /// Blocks that were right already and were not written.
    pub skipped: u64,
    /// Drifted blocks found on the way and fetched.
    pub repaired: u64,
    /// Blocks of hash trees that were made here from others. They count as written or skipped, too.
    #[serde(default)]
    pub derived: u64,
    /// Milliseconds from the first request to the swap.
    pub elapsed_ms: u64,
}

/// Why a frame could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`MESSAGE_MAX`], or cut short.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// Not the JSON that is expected.
    #[error("a message could not be read: {0}")]
    Json(#[from] serde_json::Error),
}

/// Bytes before a frame's JSON.
pub const FRAME_HEAD: usize = 4;

/// A message as it travels.
///
/// # Panics
/// Never for the messages of this module: they have string keys only.
pub fn frame<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let json = serde_json::to_vec(message)?;
    check_len(json.len())?;
    let mut bytes = Vec::with_capacity(FRAME_HEAD + json.len());
    bytes.extend_from_slice(&(json.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&json);
    Ok(bytes)
}

/// The length of the JSON that follows a frame's head.
pub fn frame_len(head: [u8; FRAME_HEAD]) -> Result<usize, FrameError> {
    let len = u32::from_le_bytes(head) as usize;
    check_len(len)?;
    Ok(len)
}

/// Reads a frame's JSON.
pub fn unframe<T: DeserializeOwned>(json: &[u8]) -> Result<T, FrameError> {
    check_len(json.len())?;
    Ok(serde_json::from_slice(json)?)
}

fn check_len(len: usize) -> Result<(), CodecError> {
    if len > MESSAGE_MAX {
        return Err(CodecError::TooLarge { field: "message length", got: len as u64, max: MESSAGE_MAX as u64 });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_reads_back_and_unknown_fields_are_ignored() {
        let request = Request::Plan { base: None, target: ImageId::of(b"x"), prefer: Prefer::Time };
        let bytes = frame(&request).unwrap();
        let (head, json) = bytes.split_first_chunk::<4>().unwrap();
        assert_eq!(frame_len(*head).unwrap(), json.len());
        assert_eq!(unframe::<Request>(json).unwrap(), request);
        let newer = format!(r#"{{"ask":"plan","target":"{}","mood":7}}"#, ImageId::of(b"x"));
        assert_eq!(unframe::<Request>(newer.as_bytes()).unwrap(), request);
    }

    #[test]
    fn an_oversized_frame_is_refused_before_it_is_read() {
        let error = frame_len((MESSAGE_MAX as u32 + 1).to_le_bytes()).unwrap_err();
        assert!(error.to_string().contains("65537"), "{error}");
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_a_message_or_an_error(bytes: Vec<u8>) {
            let _ = unframe::<Request>(&bytes);
            let _ = unframe::<Answer>(&bytes);
            let _ = unframe::<NodeSays>(&bytes);
            let _ = unframe::<ServerSays>(&bytes);
        }
    }
}
