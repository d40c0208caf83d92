//! The two places on a node that can hold one image each: a file or a block device.
//!
//! ```text
//! active slot  ──▶ [Source]   read only, any number of readers; never opened for writing by this program
//! standby slot ──▶ [Standby]  read and write, one owner: O_EXCL on a block device, flock on a file
//! ```
//! [`Standby::open`] is the only door to writing, and it refuses whatever could hurt: the active slot under another
//! name, a slot that is mounted or otherwise in use, a device that is missing, read-only, or too small.
//! All calls block; they belong on threads of their own, not on the async ones.

use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use goldsync_proto::block::GeometryError;
use serde::{Deserialize, Serialize};

mod direct;
mod in_use;
mod source;
mod standby;

pub use direct::{give_room_back, with_room};
pub use in_use::Use;
pub use source::Source;
pub use standby::{Standby, Wanted};

/// Which of the two slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SlotName {
    /// The first.
    A,
    /// The second.
    B,
}

impl SlotName {
    /// Both, in order.
    pub const ALL: [Self; 2] = [Self::A, Self::B];

    /// The one that this one is not.
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// `a` or `b`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }
}

impl fmt::Display for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A text that names no slot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a slot: there are a and b")]
pub struct SlotNameError {
    text: String,
}

impl FromStr for SlotName {
    type Err = SlotNameError;

    fn from_str(text: &str) -> Result<Self, SlotNameError> {
        match text {
            "a" => Ok(Self::A),
            "b" => Ok(Self::B),
            _ => Err(SlotNameError { text: text.chars().take(80).collect() }),
        }
    }
}

/// What a slot is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file; grows and shrinks with its image.
    File,
    /// A block device of a fixed size.
    Device,
}

/// What makes two paths the same slot: the device number of a block device, or a file's inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Device number.
    Device(u64),
    /// Device number of the file system, and inode.
    File(u64, u64),
}

impl Identity {
    /// What `path` leads to, symbolic links followed.
    pub fn of(path: &Path) -> io::Result<Self> {
        std::fs::metadata(path).map(|meta| Self::from_metadata(&meta))
    }

    /// The same, from what `stat` said.
    pub fn from_metadata(meta: &Metadata) -> Self {
        if meta.file_type().is_block_device() { Self::Device(meta.rdev()) } else { Self::File(meta.dev(), meta.ino()) }
    }
}

/// Why a slot cannot be used. Exit code 5, [`SlotError::Read`] and [`SlotError::Write`] included.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SlotError {
    /// Nothing is there.
    #[error("slot {}: {} does not exist; {remedy}", slot, path.display())]
    Missing {
        /// Which slot.
        slot: SlotName,
        /// Its path.
        path: PathBuf,
        /// What to do.
        remedy: &'static str,
    },
    /// A folder, a terminal, a socket...
    #[error("slot {}: {} is {found}; a slot is a regular file or a block device", slot, path.display())]
    Kind {
        /// Which slot.
        slot: SlotName,
        /// Its path.
        path: PathBuf,
        /// What it is instead.
        found: &'static str,
    },
    /// It cannot be opened.
    #[error("slot {}: {} cannot be opened: {error}", slot, path.display())]
    Open {
        /// Which slot.
        slot: SlotName,
        /// Its path.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Two names for one place.
    #[error(
        "slot {}: {} is the active slot under another name ({}); writing it would destroy what runs; give each slot a place of its own",
        slot, path.display(), active.display()
    )]
    IsActive {
        /// The standby slot.
        slot: SlotName,
        /// Its path.
        path: PathBuf,
        /// The active slot's path.
        active: PathBuf,
    },
    /// Mounted, attached, or held by somebody.
    #[error("slot {}: {} is in use: {how}; {remedy}", slot, path.display())]
    InUse {
        /// Which slot.
        slot: SlotName,
        /// Its path.
        path: PathBuf,
        /// By whom or what.
        how: String,
        /// What to do.
        remedy: String,
    },
    /// The device does not take writes.
    #[error("slot {}: {} is read-only; make it writable (`blockdev --setrw`), or name another device", slot, path.display())]
    ReadOnly {
        /// Which slot.
        slot: SlotName,
        /// Its path.
        path: PathBuf,
    },
    /// The image does not fit.
    #[error("slot {}: {} holds {capacity} bytes, the image has {needed}; {remedy}", slot, path.display())]
    TooSmall {
        /// Which slot.
        slot: SlotName,
        /// Its path.
        path: PathBuf,
        /// Bytes that fit.
        capacity: u64,
        /// Bytes of the image.
        needed: u64,
        /// What to do.
        remedy: &'static str,
    },
    /// Two devices that should be twins are not.
    #[error(
        "slots of different sizes: {} has {size} bytes, {} has {other_size}; an image that fits one may not fit the other; make them equal",
        path.display(), other.display()
    )]
    SizesDiffer {
        /// The standby slot's path.
        path: PathBuf,
        /// Its bytes.
        size: u64,
        /// The active slot's path.
        other: PathBuf,
        /// Its bytes.
        other_size: u64,
    },
    /// The file system has no room.
    #[error("slot {}: {} needs {needed} more bytes, its file system has {free} free; free {} bytes", slot, path.display(), needed - free)]
    NoSpace {
        /// Which slot.
        slot: SlotName,
        /// Its path.
        path: PathBuf,
        /// Bytes still to be allocated.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// An image size off the limits.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// A read failed.
    #[error("slot {}: reading {length} bytes at {offset} of {} failed: {error}", slot, path.display())]
    Read {
        /// Which slot.
        slot: SlotName,
        /// Its path.
        path: PathBuf,
        /// First byte.
        offset: u64,
        /// Bytes.
        length: usize,
        /// Why.
        error: io::Error,
    },
    /// A write or sync failed.
    #[error("slot {}: writing {length} bytes at {offset} of {} failed: {error}", slot, path.display())]
    Write {
        /// Which slot.
        slot: SlotName,
        /// Its path.
        path: PathBuf,
        /// First byte.
        offset: u64,
        /// Bytes.
        length: usize,
        /// Why.
        error: io::Error,
    },
}

/// How a slot is about to be read, so that the kernel reads ahead or forgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// From start to end.
    Sequential,
    /// Here and there.
    Random,
    /// Drop what is cached (and synced), so that the next read comes from the medium.
    Forget,
}

/// The kind of what was opened, or the name of what it is instead.
fn kind_of(meta: &Metadata) -> Result<Kind, &'static str> {
    let kind = meta.file_type();
    if kind.is_file() {
        Ok(Kind::File)
    } else if kind.is_block_device() {
        Ok(Kind::Device)
    } else if kind.is_dir() {
        Err("a folder")
    } else if kind.is_char_device() {
        Err("a character device")
    } else {
        Err("neither a file nor a block device")
    }
}

/// What keeps the slot at `path` from being written, if anything can be seen that does.
pub fn used(path: &Path) -> Option<Use> {
    let identity = Identity::of(path).ok()?;
    in_use::find(identity).or_else(|| in_use::pinned(identity))
}

/// Bytes in a file or a block device: seeking finds both.
fn length_of(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

/// "failed to fill whole buffer" helps nobody.
fn cut_short(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::new(io::ErrorKind::UnexpectedEof, "the slot ends before that"),
        _ => error,
    }
}

/// The kernel may ignore advice, and so may we: correctness never depends on it.
fn advise(file: &File, advice: Advice) {
    let advice = match advice {
        Advice::Sequential => rustix::fs::Advice::Sequential,
        Advice::Random => rustix::fs::Advice::Random,
        Advice::Forget => rustix::fs::Advice::DontNeed,
    };
    if let Err(error) = rustix::fs::fadvise(file, 0, None, advice) {
        tracing::debug!(%error, "fadvise");
    }
}

fn open_error(slot: SlotName, path: &Path, error: io::Error) -> SlotError {
    match error.kind() {
        io::ErrorKind::NotFound => {
            let path = path.to_owned();
            let remedy = if path.starts_with("/dev") {
                "plug the device in or correct `slots` in the configuration"
            } else {
                "create its folder or correct `slots` in the configuration"
            };
            SlotError::Missing { slot, path, remedy }
        }
        io::ErrorKind::ReadOnlyFilesystem => SlotError::ReadOnly { slot, path: path.to_owned() },
        io::ErrorKind::ResourceBusy => {
            let unknown = || Use {
                how: "the kernel holds it (a mount, swap, RAID, device mapper or another exclusive user)".into(),
                remedy: "`lsblk` shows by what; release it".into(),
            };
            let Use { how, remedy } = Identity::of(path).ok().and_then(in_use::pinned).unwrap_or_else(unknown);
            SlotError::InUse { slot, path: path.to_owned(), how, remedy }
        }
        _ => SlotError::Open { slot, path: path.to_owned(), error },
    }
}

#[cfg(test)]
mod tests;
