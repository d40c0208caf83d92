//! The next root: a slot mounted at `/run/nextroot`, where `systemctl soft-reboot` finds it (systemd 254).
//!
//! ```text
//! slot ─▶ [`Volume`] ─▶ /run/nextroot            read-only
//!                        /run/nextroot/etc, /var  bound from the machine as it runs, if so configured
//! ```
//! A soft-reboot ends all services and starts the next root's, under the same kernel. It is a way of restarting and no activation:
//! which slot the next real start takes is the boot loader's business, and `booted` tells from the root's device which slot runs.
//! systemd moves `/dev`, `/proc`, `/sys` and `/run` over by itself; whatever else shall be writable or kept must be named.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use goldsync_proto::verity::Sealed;
use rustix::mount::UnmountFlags;

use super::booted::slot_under;
use crate::config::Slots;
use crate::mounts;
use crate::slot::SlotName;
use crate::volume::{Volume, VolumeError};

/// Where systemd looks.
pub const PLACE: &str = "/run/nextroot";

/// By one of these systemd tells a root that is one; without, it would restart into the old root and say nothing.
const MARKS: [&str; 2] = ["etc/os-release", "usr/lib/os-release"];

/// Mounts over each other that an earlier attempt may have left.
const STACK_MAX: usize = 16;

/// Why the next root is not there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NextRootError {
    /// Attaching or mounting the slot.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A folder that shall be kept has no place in the image.
    #[error("the image in slot {slot} has no folder {} to put this machine's over; make one in the image", folder.display())]
    NoPlace {
        /// Which slot.
        slot: SlotName,
        /// The folder.
        folder: PathBuf,
    },
    /// A folder that shall be kept is an image's own.
    #[error(
        "{} lies in slot {slot} itself, and kept in the next root it would keep that slot in use; put it on a file system of this machine's, or take it out of restart.keep",
        folder.display()
    )]
    OnSlot {
        /// Which slot.
        slot: SlotName,
        /// The folder.
        folder: PathBuf,
    },
    /// It is no system.
    #[error(
        "the image in slot {slot} has neither /etc/os-release nor /usr/lib/os-release, so that systemd would not take it for a system"
    )]
    NoSystem {
        /// Which slot.
        slot: SlotName,
    },
}

/// How a slot becomes the next root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextRoot {
    /// Where: [`PLACE`], but for tests.
    pub place: PathBuf,
    /// How the slot is mounted.
    pub volume: Volume,
    /// This machine's folders that the next root gets: `/etc`, `/var`, and whatever else is not the image's. Absolute paths.
    pub keep: Vec<PathBuf>,
}

impl NextRoot {
    /// Mounts slot `slot` as the next root. If it cannot be whole, there is none.
    pub fn prepare(&self, slot: SlotName, slots: &Slots, sealed: Option<&Sealed>) -> Result<(), NextRootError> {
        self.outlast(slots)?;
        fs::create_dir_all(&self.place).map_err(VolumeError::io("making", &self.place))?;
        self.clear()?;
        self.volume.mount(slot, slots.path(slot), sealed)?.put(&self.place)?;
        self.furnish(slot).inspect_err(|_| {
            let _ = self.clear();
        })
    }

    /// Takes away what an earlier call prepared, with all that is mounted inside.
    pub fn clear(&self) -> Result<(), NextRootError> {
        for _ in 0..STACK_MAX {
            if mounts::on(&mounts::table(), &self.place).is_empty() {
                break;
            }
            let taken = rustix::mount::unmount(&self.place, UnmountFlags::DETACH).map_err(io::Error::from);
            taken.map_err(VolumeError::io("unmounting", &self.place))?;
        }
        Ok(())
    }

    /// What is kept must not lie on a slot: that one would stay in use for good, and never be written again.
    fn outlast(&self, slots: &Slots) -> Result<(), NextRootError> {
        self.keep.iter().try_for_each(|folder| {
            let number = fs::metadata(folder).map_err(VolumeError::io("looking at", folder))?.dev();
            match slot_under(number, slots) {
                Some(slot) => Err(NextRootError::OnSlot { slot, folder: folder.clone() }),
                None => Ok(()),
            }
        })
    }

    fn furnish(&self, slot: SlotName) -> Result<(), NextRootError> {
        if !MARKS.iter().any(|mark| self.place.join(mark).exists()) {
            return Err(NextRootError::NoSystem { slot });
        }
        for folder in &self.keep {
            let place = self.place.join(folder.strip_prefix("/").unwrap_or(folder));
            // Not through a link of the image's, which would lead out of it.
            if !fs::symlink_metadata(&place).is_ok_and(|meta| meta.is_dir()) {
                return Err(NextRootError::NoPlace { slot, folder: folder.clone() });
            }
            let bound = rustix::mount::mount_bind_recursive(folder, &place).map_err(io::Error::from);
            bound.map_err(VolumeError::io("binding", folder))?;
        }
        Ok(())
    }
}
