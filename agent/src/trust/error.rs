//! Why signed metadata was not believed.

use std::error::Error as _;

use chrono::{DateTime, Utc};
use goldsync_proto::digest::ImageId;
use goldsync_proto::release::{ManifestError, ReleaseRef, Word};
use goldsync_proto::trust::FileNameError;
use tough::TransportErrorKind;
use tough::error::Error as Tough;

use crate::disk::DiskError;

/// Why signed metadata was not believed. What the node held before stays as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// The state folder.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// No root to begin with.
    #[error("this node has no trusted root yet; run `goldsync-agent enroll` with a token")]
    NoRoot,
    /// Nothing was received yet.
    #[error("no signed metadata was received yet; run `goldsync-agent check` when the server is reachable")]
    Nothing,
    /// A name that no file of signed metadata has.
    #[error(transparent)]
    Name(#[from] FileNameError),
    /// The same file twice in one answer.
    #[error("the file {name} came twice in one answer")]
    Twice {
        /// Which.
        name: String,
    },
    /// Beyond a limit.
    #[error("{what}: {got}, at most {max} allowed; the server is faulty or not ours")]
    TooMuch {
        /// What is too much.
        what: String,
        /// How much it is.
        got: u64,
        /// The limit.
        max: u64,
    },
    /// Over.
    #[error("the signed metadata of role {role} expired on {at} (now: {now}): {remedy}")]
    Expired {
        /// Which role's.
        role: String,
        /// When.
        at: DateTime<Utc>,
        /// By this machine's clock.
        now: DateTime<Utc>,
        /// What to do.
        remedy: &'static str,
    },
    /// An older state than was seen before.
    #[error(
        "role {role} was rolled back: version {held} is known here, version {got} was sent; the server was restored from an old backup, or is not ours"
    )]
    RolledBack {
        /// Which role.
        role: String,
        /// As held.
        held: u64,
        /// As sent.
        got: u64,
    },
    /// Not signed as it must be.
    #[error(
        "the metadata of role {role} is not signed by its keys: {reason}; it was forged, or keys were changed without a new root"
    )]
    Signature {
        /// Which role's; `targets` stands for every role that lists targets.
        role: String,
        /// The number of good signatures against the threshold, and such.
        reason: String,
    },
    /// A file that the rest refers to.
    #[error("{name} is missing; ask the server again")]
    Missing {
        /// Which.
        name: String,
    },
    /// The bytes are not those that were signed.
    #[error("a file is not what was signed: {0}; ask the server again")]
    Damaged(String),
    /// Everything else that does not fit together.
    #[error("the signed metadata does not hold together: {0}")]
    Inconsistent(String),
    /// This machine's clock went back.
    #[error(
        "this machine's clock says {now}, but it was {known} before; set the clock, or remove {path} if the clock was wrong then"
    )]
    Clock {
        /// By the clock.
        now: String,
        /// The latest time known.
        known: String,
        /// Where that is kept.
        path: String,
    },
    /// No such channel.
    #[error("there is no channel {channel}; the channels are {known}")]
    UnknownChannel {
        /// As configured.
        channel: Word,
        /// What there is.
        known: String,
    },
    /// No such release.
    #[error("release {release} is not among the signed releases")]
    UnknownRelease {
        /// Which.
        release: ReleaseRef,
    },
    /// The manifest cannot be used.
    #[error("release {release}: {source}")]
    Manifest {
        /// Which.
        release: ReleaseRef,
        /// Why.
        source: ManifestError,
    },
    /// The pointer and the manifest disagree.
    #[error("channel {channel} points at image {pointed}, but {release} is image {signed}; promote it again")]
    OtherImage {
        /// Which channel.
        channel: Word,
        /// The release that it points at.
        release: ReleaseRef,
        /// As the pointer says.
        pointed: Box<ImageId>,
        /// As the manifest says.
        signed: Box<ImageId>,
    },
}

impl TrustError {
    /// Whether files do not fit together: the answer's with those that are held, or those among themselves.
    pub fn misfit(&self) -> bool {
        matches!(
            self,
            Self::Damaged(_) | Self::Missing { .. } | Self::Inconsistent(_) | Self::Signature { .. } | Self::Nothing
        )
    }

    /// Says in our words what `tough` found; `clock` is where the latest known time is kept.
    pub(super) fn from_tough(error: Tough, clock: &std::path::Path) -> Self {
        let rolled_back = |role: &dyn ToString, held, got| Self::RolledBack { role: role.to_string(), held, got };
        match error {
            Tough::OlderMetadata { role, current_version, new_version, .. } => {
                rolled_back(&role, current_version, new_version)
            }
            Tough::OlderSnapshotInTimestamp { snapshot_old, snapshot_new, .. } => {
                rolled_back(&"snapshot", snapshot_old, snapshot_new)
            }
            Tough::SnapshotRoleRollback { role, old_role_version, new_role_version, .. } => {
                rolled_back(&role.trim_end_matches(".json"), old_role_version, new_role_version)
            }
            Tough::SnapshotRoleMissing { role, old_version, .. } => {
                rolled_back(&role.trim_end_matches(".json"), old_version, 0)
            }
            Tough::VerifyMetadata { role, source, .. } => {
                Self::Signature { role: role.to_string(), reason: source.to_string() }
            }
            Tough::VerifyTrustedMetadata { source, .. } => {
                Self::Signature { role: "root".to_owned(), reason: source.to_string() }
            }
            Tough::Transport { url, source, .. } if source.kind() == TransportErrorKind::FileNotFound => {
                let name = url.path().rsplit('/').next().unwrap_or_default();
                Self::Missing { name: name.to_owned() }
            }
            Tough::Transport { source, .. } => {
                Self::Damaged(source.source().map_or_else(|| source.to_string(), ToString::to_string))
            }
            Tough::SystemTimeSteppedBackward { sys_time, latest_known_time } => Self::Clock {
                now: sys_time.to_string(),
                known: latest_known_time.to_string(),
                path: clock.display().to_string(),
            },
            other => Self::Inconsistent(other.to_string()),
        }
    }
}
