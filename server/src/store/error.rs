//! What can go wrong with stored bytes, told apart by whose fault it is.

use std::io;
use std::path::{Path, PathBuf};

use goldsync_proto::digest::{Digest, ImageId};
use goldsync_proto::limits::{BLOCKS_PER_REQUEST, BLOCKS_RUNS_MAX};

use super::layout::LayoutError;

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No such object. The asker's fault.
    #[error("no object {name} is stored")]
    NotFound {
        /// Its name.
        name: Digest,
    },
    /// The range is not inside the object. The asker's fault.
    #[error("bytes {start}..{end} are not inside object {name}, which has {length} bytes")]
    BadRange {
        /// The object.
        name: Digest,
        /// First byte asked for.
        start: u64,
        /// First byte not asked for.
        end: u64,
        /// Bytes that there are.
        length: u64,
    },
    /// No such image. The asker's fault.
    #[error("no image {image} is stored; publish it first")]
    UnknownImage {
        /// Its id.
        image: ImageId,
    },
    /// The blocks asked for are not runs inside the image. The asker's fault.
    #[error(
        "the run of {count} blocks from block {first} is empty, not after the run before it, or not inside the image of {blocks} blocks"
    )]
    BadRun {
        /// First block.
        first: u32,
        /// Blocks.
        count: u32,
        /// Blocks in the image.
        blocks: u32,
    },
    /// Masks that do not fit the blocks. The asker's fault.
    #[error("{masks} masks for {blocks} blocks; each block needs one, and each mask a grain")]
    BadMasks {
        /// Blocks asked for.
        blocks: u64,
        /// Masks that came.
        masks: usize,
    },
    /// More than one request may ask for. The asker's fault.
    #[error(
        "{runs} runs of {blocks} blocks asked for, at most {BLOCKS_RUNS_MAX} runs of {BLOCKS_PER_REQUEST} blocks allowed; ask in parts"
    )]
    TooMany {
        /// Runs.
        runs: usize,
        /// Blocks in all of them.
        blocks: u64,
    },
    /// What is on disk is not what was stored.
    #[error("object {name} is damaged on disk: {what}; restore objects/{}/{name} from a backup, or publish the release's image again", .name.to_string().get(..2).unwrap_or_default())]
    Damaged {
        /// The object.
        name: Digest,
        /// How it shows.
        what: String,
    },
    /// A stored image does not add up to its id, though each of its parts is what it should be.
    #[error("image {image} reads back as {got}; restore the server's data folder from a backup")]
    NotTheImage {
        /// Its id.
        image: ImageId,
        /// What its bytes hash to.
        got: ImageId,
    },
    /// The image's file in the cache is not what was proven any more.
    #[error(
        "block {block} of cache/{image}.img changed since it was written; the file is made anew, look after the disk"
    )]
    Rotten {
        /// The image.
        image: ImageId,
        /// Which block.
        block: u32,
    },
    /// A layout does not decode.
    #[error("the layout {name} is damaged on disk: {source}; restore it from a backup")]
    Layout {
        /// The object.
        name: Digest,
        /// Where it breaks.
        source: LayoutError,
    },
    /// A small file of the data folder does not read.
    #[error("{} cannot be used: {what}; restore it from a backup, or remove it and publish again", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        what: String,
    },
    /// The cold plan cannot be made as a node could take it.
    #[error(transparent)]
    Plan(#[from] goldsync_proto::plan::PlanError),
    /// The disk.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The object store.
    #[error("object store: {0}")]
    Backend(#[from] object_store::Error),
    /// The server is going down.
    #[error("the server is going down")]
    Stopping,
}

impl StoreError {
    /// For `map_err`: `action` failed on `path`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn damaged(name: Digest, what: impl Into<String>) -> Self {
        Self::Damaged { name, what: what.into() }
    }
}
