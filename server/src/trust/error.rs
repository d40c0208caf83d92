//! Why metadata was not signed, not taken or not handed out.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use goldsync_proto::release::{ManifestError, ReleaseRef};
use goldsync_proto::trust::FileNameError;

use crate::disk::DiskError;

/// Whose fault an error is, so that an API can choose its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// What was submitted is wrong; sending it again does not help.
    Request,
    /// Somebody else was faster; look again, sign again.
    Conflict,
    /// Not known here.
    NotFound,
    /// The disk or the keys on this machine.
    Local,
    /// What the other side showed is not to be trusted.
    Distrust,
}

/// Why metadata was not signed, not taken or not handed out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// A file of this machine.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// There is something already.
    #[error("{} exists already; remove it first if it shall be made anew (what it signed will no longer be trusted)", path.display())]
    Exists {
        /// What.
        path: PathBuf,
    },
    /// A key file that is not there.
    #[error("the key of role {role} is not in {}; only its holder can sign this", path.display())]
    NoKey {
        /// Which role's.
        role: String,
        /// Where it would be.
        path: PathBuf,
    },
    /// A key file that is not a key.
    #[error("{} is not an Ed25519 private key (PKCS#8, PEM): {reason}", path.display())]
    BadKey {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The key is one, but the metadata does not name it.
    #[error(
        "the key at hand for role {role} is not the one that the fleet's metadata names; use the right key, or have it named by a new {by}"
    )]
    ForeignKey {
        /// Which role's.
        role: String,
        /// The role that names the keys.
        by: &'static str,
    },
    /// Not readable.
    #[error("the metadata of role {role} cannot be read: {reason}")]
    Unreadable {
        /// Which role's.
        role: String,
        /// Why.
        reason: String,
    },
    /// Too many bytes.
    #[error("{what} is {got} bytes, at most {max} allowed")]
    TooLarge {
        /// What.
        what: String,
        /// Its bytes.
        got: u64,
        /// The limit.
        max: u64,
    },
    /// Not signed as it must be.
    #[error("role {role} is not signed by its keys: {reason}; sign it with the key that the fleet's metadata names")]
    Signature {
        /// Which role.
        role: String,
        /// The number of good signatures against the threshold, and such.
        reason: String,
    },
    /// The chain does not hold.
    #[error("the signed metadata does not hold together: {0}")]
    Unverified(String),
    /// Another version is next.
    #[error("role {role} is at version {held} here, so that version {next} is next; version {got} was sent: fetch the metadata and sign again", next = held + 1)]
    Version {
        /// Which role.
        role: String,
        /// As held.
        held: u64,
        /// As sent.
        got: u64,
    },
    /// Over.
    #[error("role {role} expired on {at}; sign it again")]
    Expired {
        /// Which role.
        role: String,
        /// When.
        at: DateTime<Utc>,
    },
    /// An older state than was seen before.
    #[error("the server shows version {got} of role {role}, but version {seen} was seen before: it was rolled back, or restored from an old backup; if that is known to be right, remove {}", path.display())]
    RolledBack {
        /// Which role.
        role: String,
        /// The newest seen.
        seen: u64,
        /// As shown.
        got: u64,
        /// Where the versions seen are kept.
        path: PathBuf,
    },
    /// No such role.
    #[error("there is no role {role}; the roles are {known}")]
    UnknownRole {
        /// As asked for.
        role: String,
        /// What there is.
        known: String,
    },
    /// No such target.
    #[error("there is no target file {target}")]
    UnknownTarget {
        /// As asked for.
        target: String,
    },
    /// A name that no file of signed metadata has.
    #[error(transparent)]
    Name(#[from] FileNameError),
    /// A target that the role may not sign.
    #[error("role {role} may not sign {target}")]
    Outside {
        /// Which role.
        role: String,
        /// Which target.
        target: String,
    },
    /// A target went missing from a role.
    #[error(
        "the new version of role {role} no longer lists {target}; releases are removed by `goldsync release prune` alone"
    )]
    Removed {
        /// Which role.
        role: String,
        /// Which target.
        target: String,
    },
    /// A target was changed in a role.
    #[error("the new version of role {role} changes {target}; a release never changes: publish under another version")]
    Changed {
        /// Which role.
        role: String,
        /// Which target.
        target: String,
    },
    /// A target's text is not what was signed, or was not sent.
    #[error("{target}: {reason}")]
    Target {
        /// Which target.
        target: String,
        /// What is wrong.
        reason: String,
    },
    /// The manifest cannot be used.
    #[error("{target}: {source}")]
    Manifest {
        /// Which target.
        target: String,
        /// Why.
        source: ManifestError,
    },
    /// Signed already.
    #[error(
        "release {release} is signed already with another manifest; a release never changes: choose another version"
    )]
    ReleaseExists {
        /// Which.
        release: ReleaseRef,
    },
    /// The root names other online keys.
    #[error("the root names a {role} key that this server does not hold; put it into {} first", path.display())]
    OnlineKey {
        /// `snapshot` or `timestamp`.
        role: &'static str,
        /// Where it would be.
        path: PathBuf,
    },
}

impl TrustError {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Version { .. } | Self::ReleaseExists { .. } => Fault::Conflict,
            Self::UnknownRole { .. } | Self::UnknownTarget { .. } => Fault::NotFound,
            Self::Disk(_) | Self::Exists { .. } | Self::NoKey { .. } | Self::BadKey { .. } | Self::OnlineKey { .. } => {
                Fault::Local
            }
            Self::RolledBack { .. } | Self::Unverified(_) => Fault::Distrust,
            _ => Fault::Request,
        }
    }

    pub(super) fn unreadable(role: &str, reason: impl ToString) -> Self {
        Self::Unreadable { role: role.to_owned(), reason: reason.to_string() }
    }
}
