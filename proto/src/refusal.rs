//! The numbered reasons for which a server turns a request down.
//!
//! A refusal is an answer, not a failure of the link: the connection stays up unless the reason says that the node is
//! not (or no longer) one of the fleet's.

use serde::{Deserialize, Serialize};

/// Why a request was turned down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// The frame could not be read, or is not allowed on this stream or connection.
    #[error("the request could not be read")]
    BadRequest,
    /// The connection shows no valid certificate of this fleet.
    #[error("this connection shows no valid certificate of this fleet; enrol the node first")]
    NotEnrolled,
    /// The node's certificate was revoked.
    #[error("this node was revoked; enrol it again with a new token if that was a mistake")]
    Revoked,
    /// The token is unknown, used up or expired.
    #[error("the token is unknown, used up or expired; ask for a new one (`goldsync token create`)")]
    BadToken,
    /// Nothing is stored under that name.
    #[error("nothing is stored under that name")]
    NotFound,
    /// The range lies outside the object, or a limit of the protocol is exceeded.
    #[error("the range asked for is outside the object or over a limit")]
    BadRange,
    /// The server does not hold the base, so that it cannot make a plan from it.
    #[error("the server does not know that base image")]
    UnknownBase,
    /// A plan for that pair would be more than a node can be asked to hold.
    #[error("a plan for that pair would be too large; plan by the signature, or fetch blocks")]
    PlanTooLarge,
    /// The server is at one of its limits, or is shutting down; ask again later.
    #[error("the server is busy; ask again later")]
    Busy,
    /// The server's own fault; its log says more.
    #[error("the server failed; its log says why")]
    Internal,
}

impl Reason {
    /// Whether the same request may succeed later with nothing changed on this side.
    pub fn retry(self) -> bool {
        matches!(self, Self::Busy | Self::Internal)
    }
}

/// A reason with the values that explain it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Refusal {
    /// The kind, for programs.
    pub reason: Reason,
    /// The values, for people.
    pub detail: String,
}

impl Refusal {
    /// A refusal with its detail.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

/// QUIC application error codes, used when a whole connection or stream is given up.
pub mod close {
    /// Done; nothing is wrong.
    pub const DONE: u32 = 0;
    /// The node is not of this fleet: no certificate where one is needed.
    pub const NOT_ENROLLED: u32 = 1;
    /// The node was revoked.
    pub const REVOKED: u32 = 2;
    /// The peer broke the protocol.
    pub const PROTOCOL: u32 = 3;
    /// The server is going down; reconnect with back-off.
    pub const SHUTDOWN: u32 = 4;
    /// A newer connection of the same node took this one's place.
    pub const REPLACED: u32 = 5;
    /// The server failed in the middle of an answer's body; its log says why. Only on streams.
    pub const INTERNAL: u32 = 6;
}
