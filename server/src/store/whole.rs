//! Whole images as files, put together from their layouts, for work that needs every byte at hand: making packs.
//!
//! ```text
//! cache/<image id>.img    sparse; one for each image used lately
//! ```
//! A file is written beside its place, hashed, and renamed only if it is the image. It is not synced: after a restart a
//! file found here is hashed again before its first use. Frames are unpacked once each, in the store's order and not the
//! image's, because a shuffled image would unpack the same frame again for every few blocks.
//! The folder is kept within a number of bytes by removing what was used longest ago. Who holds a [`Whole`] keeps its
//! bytes: removing only takes away the name.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures::stream::{self, StreamExt, TryStreamExt};
use goldsync_proto::block::{Geometry, byte_of};
use goldsync_proto::digest::ImageId;
use goldsync_proto::limits::{BLOCK, PACK_RAW_MAX};
use memmap2::Mmap;

use super::files::{blocking, list, prepare_folder, temporary};
use super::frames::unpack;
use super::layout::{Extent, Layout, Piece, Place};
use super::regions::id_of_file;
use super::{Store, StoreError};

/// Frames read ahead while a file is put together.
const AHEAD: usize = 4;

/// A whole image in a file, proven.
#[derive(Debug)]
pub struct Whole {
    geometry: Geometry,
    file: File,
    path: PathBuf,
}

impl Whole {
    /// The image's size.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The file; its name may be gone already.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it was put.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All its bytes.
    pub fn map(&self) -> Result<Mmap, StoreError> {
        // SAFETY: the file lies in the store's own folder and is never written nor cut after it was renamed into place.
        unsafe { Mmap::map(&self.file) }.map_err(StoreError::io("map", &self.path))
    }

    /// The bytes of `count` blocks from `first`, added to `out`. The run must be inside the image.
    pub(crate) fn read(&self, first: u32, count: u32, out: &mut Vec<u8>) -> Result<(), StoreError> {
        let start = out.len();
        out.resize(start + (u64::from(count) * BLOCK) as usize, 0);
        let part = out.get_mut(start..).unwrap_or_default();
        self.file.read_exact_at(part, byte_of(first)).map_err(StoreError::io("read", &self.path))
    }
}

/// The folder of whole images.
#[derive(Debug)]
pub(crate) struct Wholes {
    folder: PathBuf,
    bound: u64,
    proven: Mutex<Proven>,
    /// One image at a time: each needs all cores and much disk.
    making: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Proven {
    images: HashMap<ImageId, (Arc<Whole>, u64)>,
    clock: u64,
}

impl Proven {
    fn get(&mut self, image: ImageId) -> Option<Arc<Whole>> {
        self.clock += 1;
        let (whole, used) = self.images.get_mut(&image)?;
        *used = self.clock;
        Some(whole.clone())
    }

    fn put(&mut self, image: ImageId, whole: Arc<Whole>) {
        self.clock += 1;
        self.images.insert(image, (whole, self.clock));
    }
}

/// A file that is being put together; it goes when this does, unless it was kept.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) file: Arc<File>,
    path: PathBuf,
    geometry: Geometry,
}

impl Draft {
    /// All its bytes, which nobody writes any more.
    pub(crate) fn map(&self) -> Result<Mmap, StoreError> {
        // SAFETY: the draft is its owner's alone, put together by now, and neither written nor cut until it is renamed.
        unsafe { Mmap::map(&*self.file) }.map_err(StoreError::io("map", &self.path))
    }

    /// The image that it holds.
    pub(crate) fn id(&self, geometry: Geometry) -> io::Result<Option<ImageId>> {
        id_of_file(&self.file, geometry)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Renamed away already if it was kept.
        let _ = fs::remove_file(&self.path);
    }
}

impl Wholes {
    pub(crate) fn open(folder: PathBuf, bound: u64) -> Result<Self, StoreError> {
        prepare_folder(&folder)?;
        Ok(Self { folder, bound, proven: Mutex::default(), making: tokio::sync::Mutex::default() })
    }

    /// The image's file, if it was proven since the start.
    pub(crate) fn proven(&self, image: ImageId) -> Option<Arc<Whole>> {
        self.proven.lock().unwrap_or_else(PoisonError::into_inner).get(image)
    }

    fn place(&self, image: ImageId) -> PathBuf {
        self.folder.join(format!("{image}.img"))
    }

    /// A file from before the start, if it still is the image.
    fn adopt_old(&self, image: ImageId, geometry: Geometry) -> Result<Option<Arc<Whole>>, StoreError> {
        let path = self.place(image);
        let Ok(file) = File::open(&path) else { return Ok(None) };
        let same = file.metadata().is_ok_and(|meta| meta.len() == geometry.size())
            && id_of_file(&file, geometry).map_err(StoreError::io("read", &path))? == Some(image);
        if !same {
            fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
            return Ok(None);
        }
        let whole = Arc::new(Whole { geometry, file, path });
        self.proven.lock().unwrap_or_else(PoisonError::into_inner).put(image, whole.clone());
        Ok(Some(whole))
    }

    /// An empty draft of the image's size, with room made for `incoming` bytes.
    fn draft(&self, image: ImageId, geometry: Geometry, incoming: u64) -> Result<Draft, StoreError> {
        self.make_room(incoming)?;
        let path = temporary(&self.place(image));
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        let file = Arc::new(file.map_err(StoreError::io("create", &path))?);
        let draft = Draft { file, path, geometry };
        draft.file.set_len(geometry.size()).map_err(StoreError::io("size", &draft.path))?;
        Ok(draft)
    }

    /// Gives a draft that was proven its name.
    pub(crate) fn keep(&self, image: ImageId, draft: &Draft) -> Result<Arc<Whole>, StoreError> {
        let path = self.place(image);
        let file = File::open(&draft.path).map_err(StoreError::io("open", &draft.path))?;
        fs::rename(&draft.path, &path).map_err(StoreError::io("put in place", &path))?;
        let whole = Arc::new(Whole { geometry: draft.geometry, file, path });
        self.proven.lock().unwrap_or_else(PoisonError::into_inner).put(image, whole.clone());
        Ok(whole)
    }

    /// Removes what was used longest ago until `incoming` bytes fit; what was not used since the start goes first.
    fn make_room(&self, incoming: u64) -> Result<(), StoreError> {
        let mut proven = self.proven.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut files, mut total) = (Vec::new(), incoming);
        for path in list(&self.folder)? {
            let Some(image) = image_of(&path) else { continue };
            let bytes = fs::metadata(&path).map_err(StoreError::io("read", &path))?.blocks() * 512;
            files.push((proven.images.get(&image).map_or(0, |(_, used)| *used), image, path, bytes));
            total += bytes;
        }
        files.sort_unstable();
        for (_, image, path, bytes) in files {
            if total <= self.bound {
                break;
            }
            fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
            proven.images.remove(&image);
            total -= bytes;
        }
        Ok(())
    }
}

fn image_of(path: &Path) -> Option<ImageId> {
    path.file_name()?.to_str()?.strip_suffix(".img")?.parse().ok()
}

impl Store {
    /// Removes the image's file; who holds it keeps its bytes.
    pub(crate) fn forget_whole(&self, image: ImageId) -> Result<(), StoreError> {
        self.wholes.proven.lock().unwrap_or_else(PoisonError::into_inner).images.remove(&image);
        let path = self.wholes.place(image);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StoreError::io("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// The whole image as a file, made if need be. Proven against its id, once since the start.
    pub async fn materialise(self: &Arc<Self>, image: ImageId) -> Result<Arc<Whole>, StoreError> {
        if let Some(whole) = self.wholes.proven(image) {
            return Ok(whole);
        }
        let layout = self.layout(image).await?;
        let _one_at_a_time = self.wholes.making.lock().await;
        if let Some(whole) = self.wholes.proven(image) {
            return Ok(whole);
        }
        let (store, geometry) = (self.clone(), layout.geometry());
        if let Some(whole) = blocking(move || store.wholes.adopt_old(image, geometry)).await? {
            return Ok(whole);
        }
        let draft = self.assemble(image, &layout).await?;
        let store = self.clone();
        blocking(move || {
            let got = id_of_file(&draft.file, geometry).map_err(StoreError::io("read", &draft.path))?;
            match got {
                Some(got) if got != image => Err(StoreError::NotTheImage { image, got }),
                _ => store.wholes.keep(image, &draft),
            }
        })
        .await
    }

    /// Puts an image's file together, not proven yet.
    pub(crate) async fn assemble(self: &Arc<Self>, image: ImageId, layout: &Layout) -> Result<Draft, StoreError> {
        let stored = |extent: &&Extent| extent.place != Place::Zero;
        let blocks: u64 = layout.extents().iter().filter(stored).map(|extent| u64::from(extent.count)).sum();
        let (store, geometry) = (self.clone(), layout.geometry());
        let draft = blocking(move || store.wholes.draft(image, geometry, blocks * BLOCK)).await?;
        let scratch = Scratch::of(&self.wholes.folder, layout)?;
        for level in by_level(layout) {
            stream::iter(level)
                .map(|(frame, extents)| self.write_frame(layout, frame, extents, draft.file.clone(), scratch.clone()))
                .buffer_unordered(AHEAD)
                .try_for_each(|()| std::future::ready(Ok(())))
                .await?;
        }
        Ok(draft)
    }

    async fn write_frame(
        &self,
        layout: &Layout,
        number: u32,
        extents: Vec<Extent>,
        file: Arc<File>,
        scratch: Scratch,
    ) -> Result<(), StoreError> {
        let Some(frame) = layout.frames().get(number as usize).copied() else { return Ok(()) };
        let Some(segment) = layout.segment_of(&frame) else { return Ok(()) };
        let wire = self.frames.fetch(segment, frame).await?;
        let (folder, prefix) = (self.wholes.folder.clone(), layout.prefix(number).to_vec());
        blocking(move || {
            let prefix = scratch.gather(&prefix).map_err(StoreError::io("read from", &folder))?;
            let raw = unpack(segment, &frame, &wire, &prefix)?;
            for extent in extents {
                let Place::Stored { from, .. } = extent.place else { continue };
                let start = byte_of(from.into()) as usize;
                let blocks = raw.get(start..start + byte_of(extent.count) as usize).unwrap_or_default();
                file.write_all_at(blocks, byte_of(extent.first)).map_err(StoreError::io("write", &folder))?;
            }
            scratch.keep(number, &raw).map_err(StoreError::io("write to", &folder))
        })
        .await
    }
}

/// Unpacked frames that others have as their prefix, in a file without a name.
#[derive(Clone, Debug)]
struct Scratch {
    file: Option<Arc<File>>,
    wanted: Arc<HashSet<u32>>,
}

impl Scratch {
    fn of(folder: &Path, layout: &Layout) -> Result<Self, StoreError> {
        let pieces = (0..layout.frames().len() as u32).flat_map(|frame| layout.prefix(frame));
        let wanted: HashSet<u32> = pieces
            .filter_map(|piece| match piece.place {
                Place::Stored { frame, .. } => Some(frame),
                Place::Zero => None,
            })
            .collect();
        let wanted = Arc::new(wanted);
        if wanted.is_empty() {
            return Ok(Self { file: None, wanted });
        }
        let path = temporary(&folder.join("frames"));
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(StoreError::io("create", &path))?;
        fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
        Ok(Self { file: Some(Arc::new(file)), wanted })
    }

    fn keep(&self, frame: u32, raw: &[u8]) -> io::Result<()> {
        match &self.file {
            Some(file) if self.wanted.contains(&frame) => {
                file.write_all_at(raw, u64::from(frame) * PACK_RAW_MAX as u64)
            }
            _ => Ok(()),
        }
    }

    fn gather(&self, prefix: &[Piece]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        for piece in prefix {
            let start = out.len();
            out.resize(start + byte_of(piece.count) as usize, 0);
            if let (Place::Stored { frame, from }, Some(file)) = (piece.place, &self.file) {
                let at = u64::from(frame) * PACK_RAW_MAX as u64 + byte_of(from.into());
                file.read_exact_at(out.get_mut(start..).unwrap_or_default(), at)?;
            }
        }
        Ok(out)
    }
}

/// A layout's frames, each with the extents that lie in it: first those without a prefix, then those whose prefix lies in
/// frames that came before, and so on; among themselves in the store's order.
fn by_level(layout: &Layout) -> Vec<Vec<(u32, Vec<Extent>)>> {
    let mut users: Vec<Vec<Extent>> = vec![Vec::new(); layout.frames().len()];
    for extent in layout.extents() {
        if let Place::Stored { frame, .. } = extent.place
            && let Some(users) = users.get_mut(frame as usize)
        {
            users.push(*extent);
        }
    }
    let mut levels: Vec<Vec<(u32, Vec<Extent>)>> = Vec::new();
    for (frame, users) in (0..).zip(users) {
        let level = usize::from(layout.level(frame));
        if level >= levels.len() {
            levels.resize(level + 1, Vec::new());
        }
        if let Some(level) = levels.get_mut(level) {
            level.push((frame, users));
        }
    }
    let place = |frame: &u32| layout.frames().get(*frame as usize).map(|frame| (frame.segment, frame.offset));
    levels.iter_mut().for_each(|level| level.sort_by_key(|(frame, _)| place(frame)));
    levels
}
