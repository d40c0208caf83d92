//! Activation: the one atomic step that makes the standby slot the active one.
//!
//! A back-end answers two questions and knows nothing of images, servers or updates. What it must promise is one
//! thing: power lost at any moment of [`Activation::activate`] leaves the old slot active or the new one, never
//! neither. `activate` is idempotent, and is called only for a slot that the journal says is proven.
//!
//! | back-end  | active is                           | the atomic step                            |
//! |-----------|-------------------------------------|--------------------------------------------|
//! | `symlink` | what a link points at               | rename(2) of a new link over the old one   |
//! | `command` | what a site's own program says      | the program's duty                         |
//!
//! Boot loaders and live mounts come here as files of their own, each one `impl Activation` and one arm in [`open`]:
//! `systemd-boot` (boot-counted entries), `grub` (grubenv), `uboot` (environment), `uefi` (BootNext), `mount` (a mount
//! beneath the old one), and `soft-reboot`, which starts what another back-end has activated. What they need beyond
//! this seam (a trial with a deadline, confirm) grows beside it, in the update's phases, not in the back-ends.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use goldsync_proto::digest::ImageId;
use goldsync_proto::release::ReleaseRef;

use crate::config::{self, Config};
use crate::slot::SlotName;

mod command;
mod symlink;

pub use command::Command;
pub use symlink::Symlink;

/// A way to say which slot is active. Calls block.
pub trait Activation: Send + Sync {
    /// The active slot, if any was ever activated.
    fn active(&self) -> Result<Option<SlotName>, ActivationError>;

    /// Makes `slot` the active one, atomically and durably.
    fn activate(&self, slot: SlotName, holds: &Holds) -> Result<(), ActivationError>;
}

/// What a slot to be activated holds, for back-ends that label boot entries by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holds {
    /// The image.
    pub image: ImageId,
    /// Its release.
    pub release: ReleaseRef,
}

/// Why the active slot cannot be told or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ActivationError {
    /// The link, or its folder.
    #[error("activation by symlink: {what} {}: {error}", path.display())]
    Link {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// Something is there, but no link.
    #[error("activation by symlink: {} is not a symbolic link; move it away so that the link can take its place", path.display())]
    NotALink {
        /// Where.
        path: PathBuf,
    },
    /// The link leads elsewhere.
    #[error(
        "activation by symlink: {} points at {}, which is neither slot; point it at a slot, or remove it",
        link.display(), target.display()
    )]
    Foreign {
        /// The link.
        link: PathBuf,
        /// Where it points.
        target: PathBuf,
    },
    /// The program cannot be started.
    #[error("activation by command: {} cannot be started: {error}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The program did not end in time and was killed.
    #[error(
        "activation by command: `{call}` did not end within {limit:?} and was killed; raise activation.time_limit if it needs longer"
    )]
    Timeout {
        /// Program and verb.
        call: String,
        /// The limit.
        limit: Duration,
    },
    /// The program failed.
    #[error("activation by command: `{call}` ended with {status}: {complaint}")]
    Failed {
        /// Program and verb.
        call: String,
        /// Exit code or signal.
        status: String,
        /// The end of its standard error.
        complaint: String,
    },
    /// The program's answer is no answer.
    #[error("activation by command: `{call}` printed {printed:?}; a, b or none is expected")]
    Answer {
        /// Program and verb.
        call: String,
        /// What it printed, cut.
        printed: String,
    },
}

/// The back-end that the configuration names.
pub fn open(config: &Config) -> Box<dyn Activation> {
    match &config.activation {
        config::Activation::Symlink { link } => Box::new(Symlink::new(link.clone(), &config.slots)),
        config::Activation::Command { command, time_limit } => {
            Box::new(Command::new(command.clone(), *time_limit, &config.slots))
        }
    }
}
