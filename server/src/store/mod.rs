//! The store: every image ever published, as blocks that are each stored once.
//!
//! ```text
//! objects/xx/<hash>    segments, layouts, sections, packs, plans: immutable, named by their BLAKE3
//! images/<image id>    one small file an image, written last: an image exists when this does
//! plans/               one small file a made plan; see `packs`
//! rewrite.json         where frames were copied that images do not name there yet; see `rewrite`
//! uploads/             images on their way in; see `golden`
//! cache/               whole images, put together when packs are made; may be removed at any time
//! ```
//! One process owns the folder. Objects never change, so that reading needs no lock. What is read back is held against
//! a hash before it is used; damage on disk is an error that names the object, never other bytes.
//!
//! Not here: who may read what (`session`, `api`), how an image comes in (`golden`), how plans are made (`packs`).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use goldsync_proto::digest::ImageId;
use goldsync_proto::signature::BLOCK_ENTRY;

pub mod cold;
mod collect;
mod damage;
pub(crate) mod delta;
mod error;
pub(crate) mod files;
mod frames;
mod images;
mod kin;
pub mod layout;
mod lru;
mod objects;
mod reader;
pub(crate) mod regions;
mod rewrite;
mod whole;

pub use collect::Unneeded;
pub use error::StoreError;
pub use images::ImageRecord;
pub(crate) use objects::older;
pub use objects::{Objects, Swept};
pub use reader::Blocks;
pub(crate) use reader::pieces;
pub use rewrite::Rewritten;
pub(crate) use whole::Draft;
pub use whole::Whole;

use files::blocking;
use frames::Frames;
use images::Images;
use layout::Layout;
pub(crate) use lru::Lru;
use whole::Wholes;

/// Decoded layouts kept in memory.
const LAYOUT_BYTES: u64 = 64 << 20;

/// How much the store may use.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    /// Bytes of whole images in `cache/`. The two images of a plan in the making are kept even if they are larger.
    pub cache_bytes: u64,
    /// What nothing needs any more is removed when nobody wrote or read it for so long.
    pub grace: Duration,
    /// Percent of a segment that may be dead before it is written anew.
    pub rewrite_above: u8,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { cache_bytes: 64 << 30, grace: Duration::from_secs(3600), rewrite_above: 50 }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    objects: Arc<Objects>,
    images: Images,
    layouts: Mutex<Lru<ImageId, Arc<Layout>>>,
    frames: Frames,
    wholes: Wholes,
    grace: Duration,
    rewrite_above: u8,
    /// When images were last asked for.
    asked: Mutex<HashMap<ImageId, Instant>>,
}

impl Store {
    /// Opens the store in a data folder, and makes it if need be.
    pub async fn open(folder: &Path, options: StoreOptions) -> Result<Arc<Self>, StoreError> {
        let folder = folder.to_owned();
        blocking(move || {
            let objects = Arc::new(Objects::open(folder.join("objects"))?);
            Ok(Arc::new(Self {
                images: Images::open(folder.join("images"))?,
                layouts: Mutex::new(Lru::new(LAYOUT_BYTES)),
                frames: Frames::new(objects.clone()),
                wholes: Wholes::open(folder.join("cache"), options.cache_bytes)?,
                objects,
                folder,
                grace: options.grace,
                rewrite_above: options.rewrite_above,
                asked: Mutex::default(),
            }))
        })
        .await
    }

    /// The data folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The objects.
    pub fn objects(&self) -> &Arc<Objects> {
        &self.objects
    }

    /// What is known of an image, if it is stored.
    pub fn image(&self, image: ImageId) -> Option<Arc<ImageRecord>> {
        self.images.get(image)
    }

    /// All stored images.
    pub fn images(&self) -> Vec<Arc<ImageRecord>> {
        self.images.all()
    }

    /// The number of the next image.
    pub(crate) fn next_number(&self) -> u64 {
        self.images().iter().map(|record| record.number + 1).max().unwrap_or(0)
    }

    /// Bytes in all objects.
    pub fn stored(&self) -> u64 {
        self.objects.stored()
    }

    fn known(&self, image: ImageId) -> Result<Arc<ImageRecord>, StoreError> {
        self.image(image).ok_or(StoreError::UnknownImage { image })
    }

    /// Where an image's blocks lie.
    pub async fn layout(&self, image: ImageId) -> Result<Arc<Layout>, StoreError> {
        let record = self.known(image)?;
        if let Some(layout) = self.layouts.lock().unwrap_or_else(PoisonError::into_inner).get(&image) {
            return Ok(layout);
        }
        let bytes = self.objects.whole(record.layout).await?;
        let name = record.layout.name;
        let layout = blocking(move || {
            let layout = Layout::decode(&bytes).map_err(|source| StoreError::Layout { name, source })?;
            Ok::<_, StoreError>(Arc::new(layout))
        })
        .await?;
        if layout.geometry().size() != record.size {
            let what = format!("it is for {} bytes, the image has {}", layout.geometry().size(), record.size);
            return Err(StoreError::damaged(name, what));
        }
        let weight = layout.weight();
        self.layouts.lock().unwrap_or_else(PoisonError::into_inner).put(image, layout.clone(), weight);
        Ok(layout)
    }

    /// An image's section `blocks`: 8 bytes a block.
    pub async fn block_hashes(&self, image: ImageId) -> Result<bytes::Bytes, StoreError> {
        let record = self.known(image)?;
        let section = record.sections.blocks;
        let bytes = self.objects.whole(section).await?;
        let entries = bytes.len() / BLOCK_ENTRY;
        if entries as u64 * goldsync_proto::limits::BLOCK != record.size {
            return Err(StoreError::damaged(section.name, format!("{entries} entries for {} bytes", record.size)));
        }
        Ok(bytes)
    }

    /// Makes an image exist, or lie elsewhere than before: everything that `record` names is stored already.
    pub(crate) async fn commit(self: &Arc<Self>, record: ImageRecord) -> Result<(), StoreError> {
        let (store, image) = (self.clone(), record.image);
        blocking(move || store.images.commit(record)).await?;
        self.layouts.lock().unwrap_or_else(PoisonError::into_inner).remove(&image);
        Ok(())
    }

    /// Gives a proven draft its place among the whole images.
    pub(crate) fn keep_whole(&self, image: ImageId, draft: &whole::Draft) -> Result<Arc<Whole>, StoreError> {
        self.wholes.keep(image, draft)
    }
}
