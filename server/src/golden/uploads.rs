//! Receiving a published image: which blocks are missing, keeping those that come, proving the whole, committing it.
//!
//! ```text
//! begin ──▶ index ──▶ frame, frame, ... ──▶ complete
//!   ▲         ▲              │                  │
//!   └─────────┴── a kill, a lost link: begin again, and only what is still missing is asked for
//! ```
//! `uploads/<image>/` holds `upload.json`, the section `blocks` as the publisher sent it, and the parts. Nothing of it is
//! visible to a node. The image exists when its record does, which is written last and synced; the folder goes after it.
//! An upload that nobody touched for 24 hours goes when the server starts.
//!
//! An image that is stored is looked over when it is published again. What is damaged or missing is asked for like blocks that
//! were never there; in the end the image lies in other segments, whole, and everything else about it is as before.
//!
//! The publisher is not believed: each block is held against its hash, and the image that comes out against its id. If
//! that fails (a file that changed while it was read, two blocks with one hash, a lie) nothing is stored, and the next
//! attempt asks for every block, so that a shared hash cannot stand in an image's way twice.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use goldsync_proto::block::{Geometry, GeometryError, Run, runs_of};
use goldsync_proto::digest::{Digest, ImageId};
use goldsync_proto::limits::BLOCK;
use goldsync_proto::pack::{FRAME_HEAD, FrameHead, PackError, decompress, frame_head, hash16};
use goldsync_proto::release::{Section, Sections};
use goldsync_proto::signature::{BLOCK_ENTRY, BlockHashes, block_hash};
use goldsync_proto::verity;
use serde::{Deserialize, Serialize};
use tokio::sync::RwLock;

use super::after::{self, At};
use super::known::{Known, KnownFrame};
use super::parts::{self, Part};
use super::segments::{Own, Received, lay_out, missing, store_packs, store_parts};
use super::sign::sign_file;
use crate::api::types::{Missing, UploadState, Uploaded};
use crate::memory;
use crate::store::files::{blocking, list, prepare_folder, write_durable};
use crate::store::layout::{Layout, LayoutError};
use crate::store::{ImageRecord, Rewritten, Store, StoreError, Swept, Unneeded, older};

/// An upload that nobody touched for so long is given up.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// Why an upload cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UploadError {
    /// No upload of that image.
    #[error("no upload of image {image} was begun; begin it first")]
    NotBegun {
        /// Its id.
        image: ImageId,
    },
    /// The size is no image's.
    #[error(transparent)]
    Size(#[from] GeometryError),
    /// The section does not fit the size.
    #[error("the section `blocks` is {got} bytes, {expected} expected for an image of {size} bytes")]
    Section {
        /// Bytes sent.
        got: u64,
        /// Bytes that the size demands.
        expected: u64,
        /// The image's size.
        size: u64,
    },
    /// Frames before the index.
    #[error("the server does not know yet which blocks this upload lacks; send the section `blocks` first")]
    NotIndexed,
    /// The frame begins with a block that was not asked for.
    #[error("block {first} is not one of the missing blocks; send the section `blocks` again to learn which are")]
    NotMissing {
        /// The block.
        first: u32,
    },
    /// The frame holds more than is missing.
    #[error("the frame holds {blocks} blocks from missing block {first} on, only {left} are missing from there")]
    TooLong {
        /// Its first block.
        first: u32,
        /// Its blocks.
        blocks: u32,
        /// Blocks that are missing from there on.
        left: u32,
    },
    /// Some of the frame's blocks came in another frame.
    #[error(
        "some but not all of the frame's {blocks} blocks from block {first} on were received before; send the section `blocks` again to learn which are missing"
    )]
    Overlap {
        /// Its first block.
        first: u32,
        /// Its blocks.
        blocks: u32,
    },
    /// The frame does not decode.
    #[error("the frame from block {first} on: {source}")]
    Frame {
        /// Its first block.
        first: u32,
        /// Why.
        source: PackError,
    },
    /// A block is not the one that was announced.
    #[error(
        "block {block} does not hash to what the section `blocks` says; was the image written to while it was read?"
    )]
    Block {
        /// Which.
        block: u32,
    },
    /// Not all blocks came.
    #[error("{blocks} blocks are still missing, the first of them block {first}; send the section `blocks` again")]
    Incomplete {
        /// How many.
        blocks: u64,
        /// The first.
        first: u32,
    },
    /// The blocks do not make the image.
    #[error(
        "image {image} reads back as {got}, so nothing was stored: the file was written to while it was read, or two of its blocks share a hash; publish it again, every block will be sent"
    )]
    WrongImage {
        /// Its id, as announced.
        image: ImageId,
        /// What the blocks make.
        got: ImageId,
    },
    /// A layout that does not hold together: the server's own fault.
    #[error("the image's layout does not hold together: {0}")]
    Layout(LayoutError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl UploadError {
    /// The word for programs, as in `Problem::code`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotBegun { .. } => "not_found",
            Self::NotIndexed | Self::NotMissing { .. } | Self::Overlap { .. } | Self::Incomplete { .. } => "conflict",
            Self::WrongImage { .. } => "conflict",
            Self::Size(_) | Self::Section { .. } | Self::TooLong { .. } | Self::Frame { .. } | Self::Block { .. } => {
                "bad_request"
            }
            Self::Store(StoreError::Stopping) => "stopping",
            Self::Layout(_) | Self::Store(_) => "internal",
        }
    }
}

/// All uploads of one server.
#[derive(Debug)]
pub struct Uploads {
    store: Arc<Store>,
    folder: PathBuf,
    known: Mutex<Arc<Known>>,
    open: tokio::sync::Mutex<HashMap<ImageId, Arc<Upload>>>,
    /// Stored images of which something is damaged, until they are whole again.
    healing: Mutex<HashSet<ImageId>>,
    /// One image is proven at a time: it takes all cores and much disk.
    completing: tokio::sync::Mutex<()>,
}

/// An image that is being stored.
struct New {
    image: ImageId,
    geometry: Geometry,
    section: Bytes,
    parts: Vec<Part>,
    known: Arc<Known>,
}

#[derive(Debug)]
struct Upload {
    folder: PathBuf,
    image: ImageId,
    geometry: Geometry,
    /// Held for reading by frames, for writing by what needs them to stand still.
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    /// Ask for every block, see the module.
    every: bool,
    /// The section `blocks`, if it was sent.
    section: Option<Bytes>,
    /// What the last `index` answered.
    asked: Option<Arc<Vec<Run>>>,
    received: Arc<Mutex<Parts>>,
}

#[derive(Debug, Default)]
struct Parts {
    by_first: BTreeMap<u32, Part>,
    /// One bit a block.
    bits: Vec<u64>,
}

impl Parts {
    fn holds(&self, block: u32) -> bool {
        self.bits.get(block as usize / 64).is_some_and(|word| word & (1 << (block % 64)) != 0)
    }

    fn add(&mut self, part: Part) {
        for block in part.blocks() {
            let word = block as usize / 64;
            if word >= self.bits.len() {
                self.bits.resize(word + 1, 0);
            }
            if let Some(word) = self.bits.get_mut(word) {
                *word |= 1 << (block % 64);
            }
        }
        if let Some((first, _)) = part.runs.first() {
            self.by_first.insert(*first, part);
        }
    }
}

/// `upload.json`
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    image: ImageId,
    size: u64,
    every: bool,
}

impl Uploads {
    /// Opens the uploads of a store, removes those that were given up, and reads which blocks are stored.
    pub async fn open(store: Arc<Store>) -> Result<Arc<Self>, StoreError> {
        let folder = store.folder().join("uploads");
        let known = known_blocks(&store).await;
        let cleaned = (folder.clone(), store.clone());
        let clean = move || prepare_folder(&cleaned.0).and_then(|()| clean(&cleaned.0, &cleaned.1, &HashSet::new()));
        blocking(clean).await?;
        let known = Mutex::new(Arc::new(known));
        let (open, healing, completing) = Default::default();
        Ok(Arc::new(Self { store, folder, known, open, healing, completing }))
    }

    fn known(&self) -> Arc<Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Begins an upload, or goes on with it.
    pub async fn begin(self: &Arc<Self>, image: ImageId, size: u64) -> Result<UploadState, UploadError> {
        let uploads = self.clone();
        to_the_end(async move { uploads.begin_now(image, size).await }).await
    }

    fn healing(&self) -> MutexGuard<'_, HashSet<ImageId>> {
        self.healing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image's record, if it is stored and nothing of it must be stored anew.
    fn whole(&self, image: ImageId) -> Option<Arc<ImageRecord>> {
        self.store.image(image).filter(|_| !self.healing().contains(&image))
    }

    /// Looks a stored image over. If something of it is damaged, it is uploaded like an image that is not stored.
    async fn look_over(&self, image: ImageId) -> Result<bool, UploadError> {
        let Some(damage) = self.store.damage(image).await? else { return Ok(true) };
        tracing::warn!(%image, frames = damage.frames.len(), "what is damaged will be stored anew");
        self.forget(move |known| damage.frames.contains(&(known.segment, known.frame.offset))).await?;
        self.healing().insert(image);
        Ok(false)
    }

    /// Does not find the blocks of lost frames any more: they are asked for and stored again.
    async fn forget(&self, lost: impl Fn(&KnownFrame) -> bool + Send + 'static) -> Result<(), StoreError> {
        let known = self.known();
        let left = Arc::new(blocking(move || Ok::<_, StoreError>(known.without(lost))).await?);
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = left;
        Ok(())
    }

    async fn begin_now(&self, image: ImageId, size: u64) -> Result<UploadState, UploadError> {
        self.store.ask(image);
        if self.whole(image).is_some() && self.look_over(image).await? {
            return Ok(UploadState { stored: true });
        }
        let geometry = Geometry::new(size)?;
        match self.upload(image).await {
            Ok(upload) if upload.geometry == geometry => {}
            Err(UploadError::NotBegun { .. }) => self.start(image, geometry).await?,
            // One id has one size: whoever came first with another was wrong, or this one is, and the proof will tell.
            Ok(_) => self.start(image, geometry).await?,
            Err(error) => return Err(error),
        }
        Ok(UploadState { stored: false })
    }

    async fn start(&self, image: ImageId, geometry: Geometry) -> Result<(), UploadError> {
        let mut open = self.open.lock().await;
        if let Some(old) = open.remove(&image) {
            // Frames that are on their way to the old one find nothing to belong to.
            *old.state.write().await = State::empty(false);
        }
        let folder = self.folder.join(image.to_string());
        let upload = blocking(move || Upload::create(folder, image, geometry)).await?;
        open.insert(image, Arc::new(upload));
        Ok(())
    }

    /// An upload that was begun, now or before a restart.
    async fn upload(&self, image: ImageId) -> Result<Arc<Upload>, UploadError> {
        let mut open = self.open.lock().await;
        if let Some(upload) = open.get(&image) {
            return Ok(upload.clone());
        }
        let folder = self.folder.join(image.to_string());
        let upload = blocking(move || Upload::load(folder, image)).await?;
        let upload = Arc::new(upload.ok_or(UploadError::NotBegun { image })?);
        open.insert(image, upload.clone());
        Ok(upload)
    }

    /// Takes the section `blocks`, and answers which blocks are missing.
    pub async fn index(self: &Arc<Self>, image: ImageId, section: Bytes) -> Result<Missing, UploadError> {
        let uploads = self.clone();
        to_the_end(async move { uploads.index_now(image, section).await }).await
    }

    async fn index_now(&self, image: ImageId, section: Bytes) -> Result<Missing, UploadError> {
        let upload = match self.upload(image).await {
            Err(UploadError::NotBegun { .. }) if self.whole(image).is_some() => {
                return Ok(Missing { runs: vec![] });
            }
            other => other?,
        };
        upload.check_section(&section)?;
        let mut state = upload.state.write().await;
        if self.whole(image).is_some() {
            return Ok(Missing { runs: vec![] });
        }
        if state.section.as_ref() != Some(&section) {
            let (folder, section, every) = (upload.folder.clone(), section.clone(), state.every);
            *state = blocking(move || State::anew(&folder, section, every)).await?;
        }
        let runs = Arc::new(self.missing(&state).await?);
        state.asked = Some(runs.clone());
        Ok(Missing { runs: Arc::unwrap_or_clone(runs) })
    }

    async fn missing(&self, state: &State) -> Result<Vec<Run>, UploadError> {
        let section = state.section.clone().ok_or(UploadError::NotIndexed)?;
        let (known, parts, every) = (self.known(), state.parts(), state.every);
        blocking(move || {
            let hashes = BlockHashes::new(&section);
            let received = Received::of(&parts, hashes);
            Ok(runs_of(missing(hashes, &known, &received, every)))
        })
        .await
    }

    /// Takes one literal frame: the next missing blocks in order, from block `first` on. Harmless if it came before.
    pub async fn frame(self: &Arc<Self>, image: ImageId, first: u32, frame: Bytes) -> Result<(), UploadError> {
        let uploads = self.clone();
        to_the_end(async move { uploads.frame_now(image, first, frame).await }).await
    }

    async fn frame_now(&self, image: ImageId, first: u32, frame: Bytes) -> Result<(), UploadError> {
        let upload = match self.upload(image).await {
            Err(UploadError::NotBegun { .. }) if self.whole(image).is_some() => return Ok(()),
            other => other?,
        };
        let state = upload.state.read().await;
        if self.whole(image).is_some() {
            return Ok(());
        }
        let (Some(section), Some(asked)) = (state.section.clone(), state.asked.clone()) else {
            return Err(UploadError::NotIndexed);
        };
        let (received, folder) = (state.received.clone(), upload.frames());
        blocking(move || take_frame(&folder, &section, &asked, &received, first, &frame)).await
    }

    /// Stores the image, proves it, and makes it exist.
    pub async fn complete(self: &Arc<Self>, image: ImageId) -> Result<Uploaded, UploadError> {
        let uploads = self.clone();
        to_the_end(async move { uploads.finish(image).await }).await
    }

    async fn finish(&self, image: ImageId) -> Result<Uploaded, UploadError> {
        let _one_at_a_time = self.completing.lock().await;
        if let Some(record) = self.whole(image) {
            return Ok(Uploaded { sections: record.sections, added: record.added, healed: false });
        }
        let upload = self.upload(image).await?;
        let mut state = upload.state.write().await;
        let missing = self.missing(&state).await?;
        if let Some((first, _)) = missing.first() {
            let blocks = missing.iter().map(|(_, count)| u64::from(*count)).sum();
            return Err(UploadError::Incomplete { blocks, first: *first });
        }
        match self.prove(&upload, &state).await {
            Ok(uploaded) => {
                *state = State::empty(false);
                self.open.lock().await.remove(&image);
                let folder = upload.folder.clone();
                blocking(move || remove_folder(&folder)).await?;
                Ok(uploaded)
            }
            Err(UploadError::Store(StoreError::Damaged { name, what })) => {
                // An older image's segment. Whatever of it we know is asked for; a disk that breaks at once is not asked twice.
                self.forget(move |known| known.segment == name).await?;
                let missing = self.missing(&state).await?;
                let blocks = missing.iter().map(|(_, count)| u64::from(*count)).sum();
                let error = StoreError::damaged(name, what);
                tracing::warn!(%image, %error, blocks, "what is damaged will be stored anew");
                let first = missing.first().map(|(first, _)| *first);
                Err(first.map_or(error.into(), |first| UploadError::Incomplete { blocks, first }))
            }
            Err(UploadError::WrongImage { image, got }) => {
                *state = State::empty(true);
                let (folder, size) = (upload.folder.clone(), upload.geometry.size());
                blocking(move || restart(&folder, &Request { image, size, every: true })).await?;
                Err(UploadError::WrongImage { image, got })
            }
            Err(error) => Err(error),
        }
    }

    /// Stores segments and layout, reads the image back, signs it, and commits it if it is what it should be.
    async fn prove(&self, upload: &Upload, state: &State) -> Result<Uploaded, UploadError> {
        let (image, geometry, store) = (upload.image, upload.geometry, &self.store);
        let parts = state.parts();
        let own = store_parts(store.objects(), &upload.frames(), &parts).await?;
        let section = state.section.clone().ok_or(UploadError::NotIndexed)?;
        let known = self.known();
        let plain = (section.clone(), parts.clone(), known.clone());
        let (layout, own) = blocking(move || draw(geometry, &plain.0, own, &plain.1, &plain.2)).await?;
        let layout = Arc::new(layout);
        let draft = Arc::new(store.assemble(image, &layout).await?);
        let signed = draft.clone();
        let folder = upload.folder.clone();
        let signature = blocking(move || {
            sign_file(&*signed.file, geometry, |_| (), |_| ())
                .map_err(StoreError::io("read back the image in", &folder))
        })
        .await?;
        if signature.image != image {
            return Err(UploadError::WrongImage { image, got: signature.image });
        }
        let blocks = Bytes::from(signature.blocks);
        let proven = draft.clone();
        let derived = blocking(move || Ok::<_, StoreError>(verity::find(&proven.map()?)));
        let derived = derived.await?;
        let kin = store.next_of_kin(image, &layout, BlockHashes::new(&blocks)).await;
        let new = New { image, geometry, section, parts, known };
        let (layout, own) = match &kin {
            Some(kin) if store.image(image).is_none() && !state.every => {
                self.store_after(kin, &new, &draft, layout, own).await?
            }
            _ => (layout, own),
        };
        let after = |of: fn(&ImageRecord) -> Section| kin.as_ref().map(|kin| of(kin));
        let objects = store.objects();
        let (stored_layout, mut kept) = objects.put_after(layout.encode().into(), after(|kin| kin.layout)).await?;
        let mut put = async |bytes: Bytes, of: fn(&ImageRecord) -> Section| {
            let (section, bytes) = objects.put_after(bytes, after(of)).await?;
            kept += bytes;
            Ok::<_, StoreError>(section)
        };
        let sections = Sections {
            subtrees: put(signature.subtrees.into(), |kin| kin.sections.subtrees).await?,
            blocks: put(blocks.clone(), |kin| kin.sections.blocks).await?,
            rolling: put(signature.rolling.into(), |kin| kin.sections.rolling).await?,
        };
        let added = kept + own.segments.iter().map(|section| section.length).sum::<u64>();
        let made: Vec<_> = own.segments.iter().map(|segment| segment.name).collect();
        let before = store.image(image);
        let kept = before.iter().flat_map(|record| &record.segments).filter(|segment| !made.contains(segment));
        let segments = made.iter().chain(kept).copied().collect();
        let number = before.as_ref().map_or_else(|| store.next_number(), |before| before.number);
        let record = ImageRecord::new(image, number, geometry, stored_layout, sections, added, segments);
        store.commit(record.deriving(derived)).await?;
        self.learn(layout, made, blocks).await?;
        memory::give_back();
        self.healing().remove(&image);
        let store = store.clone();
        blocking(move || store.keep_whole(image, &draft)).await?;
        Ok(Uploaded { sections, added, healed: before.is_some() })
    }

    /// Stores the new blocks of a proven image after its next of kin instead of as they came, if that takes less room and
    /// reads back as the image; answers where it lies then.
    async fn store_after(
        &self,
        kin: &ImageRecord,
        new: &New,
        draft: &Arc<crate::store::Draft>,
        layout: Arc<Layout>,
        own: Own,
    ) -> Result<(Arc<Layout>, Own), UploadError> {
        let store = &self.store;
        let lies = store.layout(kin.image).await?;
        // What cannot be read is no base to build on.
        let (Ok(base), Ok(hashes)) = (store.materialise(kin.image).await, store.block_hashes(kin.image).await) else {
            return Ok((layout, own));
        };
        let (draft, parts, known) = (draft.clone(), new.parts.clone(), new.known.clone());
        let (section, geometry) = (new.section.clone(), new.geometry);
        let packed = blocking(move || {
            let (from, to) = (base.map()?, draft.map()?);
            let hashes = BlockHashes::new(&hashes);
            let base = At { bytes: &from, hashes, geometry: base.geometry() };
            let target = At { bytes: &to, hashes: BlockHashes::new(&section), geometry };
            let received = Received::of(&parts, target.hashes);
            let packed = after::pack(&base, &lies, &target, &received, &known);
            memory::give_back();
            Ok::<_, StoreError>(packed)
        });
        let Some(packed) = packed.await? else { return Ok((layout, own)) };
        let plain: u64 = own.segments.iter().map(|segment| segment.length).sum();
        if packed.iter().map(|(part, _, _)| u64::from(part.wire_len)).sum::<u64>() >= plain {
            return Ok((layout, own));
        }
        let parts: Vec<Part> = packed.iter().map(|(part, _, _)| part.clone()).collect();
        let after = store_packs(store.objects(), packed).await?;
        let (section, known) = (new.section.clone(), new.known.clone());
        let drawn = blocking(move || draw(geometry, &section, after, &parts, &known));
        let (drawn, unused) = match drawn.await {
            Ok((drawn, after)) if after::is_bounded(&drawn) && self.reads_back(new.image, &drawn).await? => {
                (Some((Arc::new(drawn), after)), own.fresh.clone())
            }
            Ok((_, after)) => (None, after.fresh),
            // Too many frames behind each other; what it made goes with the next collection.
            Err(UploadError::Layout(_)) => (None, Vec::new()),
            Err(error) => return Err(error),
        };
        for name in unused {
            store.objects().take_back(name).await?;
        }
        Ok(drawn.unwrap_or((layout, own)))
    }

    /// Whether a layout gives the image.
    async fn reads_back(&self, image: ImageId, layout: &Layout) -> Result<bool, UploadError> {
        let draft = match self.store.assemble(image, layout).await {
            Err(StoreError::Damaged { name, what }) => {
                tracing::warn!(%image, %name, what, "blocks are stored as they came, not after older ones");
                return Ok(false);
            }
            draft => draft?,
        };
        let (folder, geometry) = (self.folder.clone(), layout.geometry());
        let got = blocking(move || draft.id(geometry).map_err(StoreError::io("read back the image in", &folder)));
        Ok(got.await? == Some(image))
    }

    /// Lets later uploads find this image's blocks.
    async fn learn(&self, layout: Arc<Layout>, made: Vec<Digest>, blocks: Bytes) -> Result<(), StoreError> {
        let known = self.known();
        let merge = move || Ok::<_, StoreError>(known.with(&layout, &made, BlockHashes::new(&blocks)));
        let merged = Arc::new(blocking(merge).await?);
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = merged;
        Ok(())
    }
}

/// Runs `work` to its end even if nobody waits for it any more: a publisher that hangs up must not leave a folder that
/// one thread still writes and the next request believes to be at rest.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, UploadError>> + Send + 'static,
) -> Result<T, UploadError> {
    match tokio::spawn(work).await {
        Ok(done) => done,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(StoreError::Stopping.into()),
        },
    }
}

fn draw(
    geometry: Geometry,
    section: &[u8],
    own: Own,
    parts: &[Part],
    known: &Arc<Known>,
) -> Result<(Layout, Own), UploadError> {
    let hashes = BlockHashes::new(section);
    let received = Received::of(parts, hashes);
    let layout = lay_out(geometry, hashes, &own, &received, known)?;
    Ok((layout, own))
}

impl Uploads {
    /// Removes images for good, and everything that then belongs to nothing. Nothing is proven meanwhile: what an image in
    /// the making is about to lie in is not taken from under it, but asked for anew.
    pub async fn collect(&self, unneeded: Unneeded) -> Result<Swept, StoreError> {
        let _nothing_is_completed = self.completing.lock().await;
        let segments = self.store.remove_images(&unneeded.images).await?;
        self.forget(move |known| !segments.contains(&known.segment)).await?;
        let (folder, store) = (self.folder.clone(), self.store.clone());
        let open: HashSet<ImageId> = self.open.lock().await.keys().copied().collect();
        blocking(move || clean(&folder, &store, &open)).await?;
        self.store.sweep(unneeded.names).await
    }

    /// Writes segments anew of which most is dead, but for those that are `held`. Copying disturbs nobody; while images move,
    /// nothing is proven, and later uploads find their blocks where they lie then.
    pub async fn rewrite(&self, held: &HashSet<Digest>) -> Result<Rewritten, StoreError> {
        let Some(begun) = self.store.begin_rewriting(held).await? else { return Ok(Rewritten::default()) };
        let _nothing_is_completed = self.completing.lock().await;
        let rewritten = self.store.carry_through(&begun).await;
        let known = Arc::new(known_blocks(&self.store).await);
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = known;
        rewritten
    }
}

/// Which blocks are stored. An image whose layout or section is damaged is left out: its blocks are stored again.
async fn known_blocks(store: &Arc<Store>) -> Known {
    let mut known = Known::default();
    let records = store.images();
    let made: HashSet<_> = records.iter().flat_map(|record| record.segments.iter().copied()).collect();
    for record in &records {
        match (store.layout(record.image).await, store.block_hashes(record.image).await) {
            (Ok(layout), Ok(blocks)) => {
                // A segment may outlive the image that it was made for; whoever uses it tells of its blocks.
                let orphans = layout.segments().iter().filter(|segment| !made.contains(*segment));
                let told: Vec<_> = record.segments.iter().chain(orphans).copied().collect();
                known = known.with(&layout, &told, BlockHashes::new(&blocks));
            }
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(image = %record.image, %error, "a stored image cannot be read");
            }
        }
    }
    known
}

/// Removes uploads that ended or were given up, but for those at work.
fn clean(folder: &Path, store: &Store, open: &HashSet<ImageId>) -> Result<(), StoreError> {
    for path in list(folder)? {
        let Some(image) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
        let touched = [path.join("frames"), path.join("upload.json")];
        let touched_lately = touched.iter().any(|path| fs::metadata(path).is_ok_and(|meta| !older(&meta, ABANDONED)));
        if !open.contains(&image) && (store.image(image).is_some() || !touched_lately) {
            remove_folder(&path)?;
        }
    }
    Ok(())
}

fn remove_folder(folder: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StoreError::io("remove", folder)(error)),
        _ => Ok(()),
    }
}

/// Forgets everything that was received.
fn restart(folder: &Path, request: &Request) -> Result<(), StoreError> {
    remove_folder(folder)?;
    prepare_folder(&folder.join("frames"))?;
    let path = folder.join("upload.json");
    let text = serde_json::to_vec(request)
        .map_err(|error| StoreError::Record { path: path.clone(), what: error.to_string() })?;
    write_durable(&path, &text)
}

impl State {
    fn empty(every: bool) -> Self {
        Self { every, section: None, asked: None, received: Arc::default() }
    }

    /// The publisher sent another section than before: what was received belongs to that one.
    fn anew(folder: &Path, section: Bytes, every: bool) -> Result<Self, StoreError> {
        remove_folder(&folder.join("frames"))?;
        prepare_folder(&folder.join("frames"))?;
        write_durable(&folder.join("blocks"), &section)?;
        Ok(Self { section: Some(section), ..Self::empty(every) })
    }

    fn parts(&self) -> Vec<Part> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).by_first.values().cloned().collect()
    }
}

impl Upload {
    fn frames(&self) -> PathBuf {
        self.folder.join("frames")
    }

    fn create(folder: PathBuf, image: ImageId, geometry: Geometry) -> Result<Self, StoreError> {
        restart(&folder, &Request { image, size: geometry.size(), every: false })?;
        Ok(Self { folder, image, geometry, state: RwLock::new(State::empty(false)) })
    }

    /// Takes up what a folder holds, if it holds an upload.
    fn load(folder: PathBuf, image: ImageId) -> Result<Option<Self>, StoreError> {
        let Ok(text) = fs::read(folder.join("upload.json")) else { return Ok(None) };
        let Ok(request) = serde_json::from_slice::<Request>(&text) else { return Ok(None) };
        let (true, Ok(geometry)) = (request.image == image, Geometry::new(request.size)) else { return Ok(None) };
        let mut state = State::empty(request.every);
        let mut received = Parts::default();
        prepare_folder(&folder.join("frames"))?;
        if let Ok(section) = fs::read(folder.join("blocks"))
            && section.len() / BLOCK_ENTRY == geometry.blocks() as usize
        {
            state.section = Some(section.into());
            let inside = |part: &Part| part.runs.iter().all(|(first, count)| geometry.holds(*first, *count));
            parts::scan(&folder.join("frames"))?.into_iter().filter(inside).for_each(|part| received.add(part));
        }
        state.received = Arc::new(Mutex::new(received));
        Ok(Some(Self { folder, image, geometry, state: RwLock::new(state) }))
    }

    fn check_section(&self, section: &[u8]) -> Result<(), UploadError> {
        let (got, expected) = (section.len() as u64, u64::from(self.geometry.blocks()) * BLOCK_ENTRY as u64);
        let size = self.geometry.size();
        if got == expected { Ok(()) } else { Err(UploadError::Section { got, expected, size }) }
    }
}

fn take_frame(
    folder: &Path,
    section: &[u8],
    asked: &[Run],
    received: &Mutex<Parts>,
    first: u32,
    frame: &[u8],
) -> Result<(), UploadError> {
    let refuse = |source| UploadError::Frame { first, source };
    let (head, wire) = frame.split_first_chunk::<FRAME_HEAD>().ok_or_else(|| {
        let truncated =
            goldsync_proto::codec::CodecError::Truncated { field: "frame head", needed: FRAME_HEAD, had: frame.len() };
        refuse(truncated.into())
    })?;
    let FrameHead { wire_len, raw_len, codec } = frame_head(*head).map_err(refuse)?;
    if wire.len() != wire_len {
        return Err(refuse(PackError::Short { got: wire.len(), expected: wire_len }));
    }
    let blocks = raw_len as u32 / BLOCK as u32;
    let Some(runs) = runs_from(asked, first, blocks)? else {
        let came_before = received.lock().unwrap_or_else(PoisonError::into_inner).holds(first);
        return if came_before { Ok(()) } else { Err(UploadError::NotMissing { first }) };
    };
    let part = |raw: &[u8]| Part {
        runs,
        codec,
        raw_len: raw_len as u32,
        wire_len: wire_len as u32,
        wire_hash: hash16(wire),
        raw_hash: hash16(raw),
    };
    let raw = decompress(codec, wire, raw_len, &[]).map_err(refuse)?;
    let part = part(&raw);
    let hashes = BlockHashes::new(section);
    for (block, bytes) in part.blocks().zip(raw.chunks_exact(BLOCK as usize)) {
        if hashes.get(block) != Some(block_hash(bytes)) {
            return Err(UploadError::Block { block });
        }
    }
    // Held while the file is written: of two frames with one name only the first is kept.
    let mut received = received.lock().unwrap_or_else(PoisonError::into_inner);
    match part.blocks().filter(|block| received.holds(*block)).count() as u32 {
        0 => {
            parts::keep(folder, &part, wire)?;
            received.add(part);
            Ok(())
        }
        all if all == blocks => Ok(()),
        _ => Err(UploadError::Overlap { first, blocks }),
    }
}

/// The next `blocks` of the asked blocks, from block `first` on; `None` if that one was not asked for.
fn runs_from(asked: &[Run], first: u32, blocks: u32) -> Result<Option<Vec<Run>>, UploadError> {
    let start = asked.partition_point(|(run, count)| run + count <= first);
    if asked.get(start).is_none_or(|(run, _)| *run > first) {
        return Ok(None);
    }
    let (mut runs, mut left) = (Vec::new(), blocks);
    for (run, count) in asked.iter().skip(start) {
        let from = (*run).max(first);
        let part = (run + count - from).min(left);
        runs.push((from, part));
        left -= part;
        if left == 0 {
            return Ok(Some(runs));
        }
    }
    Err(UploadError::TooLong { first, blocks, left: blocks - left })
}
