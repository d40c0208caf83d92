//! The publisher's side: an image file or block device, its signature, and the frames to upload.
//!
//! Nothing here talks to a server or waits for one; it reads, hashes and compresses, on all cores, and belongs on a
//! thread that may block. Memory is bounded for any size: the signature (0.5 % of the image), and a few frames.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::num::NonZero;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use goldsync_proto::block::{Geometry, GeometryError, Run, byte_of};
use goldsync_proto::content::{HEAD_LEN, detect};
use goldsync_proto::limits::{BLOCK, REGION};
use goldsync_proto::pack::write_frame;
use goldsync_proto::signature::Signature;
use goldsync_proto::verity::{Sealed, Tree};

use super::content::Content;
use super::sign::sign_file;
use crate::store::pieces;
use crate::store::regions::ReadAt;

/// zstd's level for an upload: its frames are stored as they come, and fetched by every node that starts cold.
pub const LEVEL: i32 = 9;

/// Why an image cannot be published.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrepareError {
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
    /// A folder, a pipe, a terminal.
    #[error("{} is neither a file nor a block device; give the raw image", path.display())]
    Kind {
        /// What was given.
        path: PathBuf,
    },
    /// Its size is no image's.
    #[error("{}: {source}", path.display())]
    Size {
        /// What was given.
        path: PathBuf,
        /// Why.
        source: GeometryError,
    },
}

/// An image that may be published.
#[derive(Debug)]
pub struct Prepared {
    path: PathBuf,
    content: Content,
    geometry: Geometry,
    /// Whether signing came across what may be the superblock of a hash tree.
    superblock: AtomicBool,
}

/// A literal frame to upload.
#[derive(Debug, PartialEq, Eq)]
pub struct UploadFrame {
    /// The first block in it.
    pub first: u32,
    /// Blocks in it.
    pub blocks: u32,
    /// The frame.
    pub bytes: Vec<u8>,
}

impl Prepared {
    /// Opens an image file or a block device, for reading.
    pub fn open(path: &Path) -> Result<Self, PrepareError> {
        let io = |action| {
            let path = path.to_owned();
            move |source| PrepareError::Io { action, path, source }
        };
        let kind = std::fs::metadata(path).map_err(io("open"))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(PrepareError::Kind { path: path.to_owned() });
        }
        let mut file = File::open(path).map_err(io("open"))?;
        // A block device has no length of its own; its end is where seeking ends.
        let size = file.seek(SeekFrom::End(0)).map_err(io("measure"))?;
        let geometry = Geometry::new(size).map_err(|source| PrepareError::Size { path: path.to_owned(), source })?;
        let (content, superblock) = (Content::of(file, size), AtomicBool::new(false));
        Ok(Self { path: path.to_owned(), content, geometry, superblock })
    }

    /// Its size.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Hashes and signs it. `progress` hears how many bytes are done.
    pub fn sign(&self, mut progress: impl FnMut(u64)) -> Result<Signature, PrepareError> {
        let size = self.geometry.size();
        let look = |bytes: &[u8]| {
            if bytes.chunks_exact(BLOCK as usize).any(|block| Tree::read(0, block).is_some()) {
                self.superblock.store(true, Ordering::Relaxed);
            }
        };
        let progress = |regions| progress((u64::from(regions) * REGION).min(size));
        sign_file(&self.content, self.geometry, look, progress).map_err(|source| self.io("read", source))
    }

    /// What the hash tree says that the image carries over all of its data. After signing, which tells whether it is worth looking.
    pub fn sealed(&self) -> Result<Option<Sealed>, PrepareError> {
        if !self.superblock.load(Ordering::Relaxed) {
            return Ok(None);
        }
        self.content.sealed().map_err(|source| self.io("look for a hash tree in", source))
    }

    /// Appends a hash tree to what is published, unless the image carries one. The file is not written.
    pub fn seal(&mut self) -> Result<Sealed, PrepareError> {
        let path = self.path.clone();
        let io = |source| PrepareError::Io { action: "make a hash tree for", path, source };
        let found = self.content.sealed().map_err(|source| self.io("look for a hash tree in", source))?;
        if let Some(sealed) = found {
            return Ok(sealed);
        }
        let sealed = self.content.seal().map_err(io)?;
        self.geometry = Geometry::new(self.content.size())
            .map_err(|source| PrepareError::Size { path: self.path.clone(), source })?;
        Ok(sealed)
    }

    /// What its first bytes look like, for people.
    pub fn file_system(&self) -> Result<Option<&'static str>, PrepareError> {
        let mut head = vec![0; self.geometry.size().min(HEAD_LEN) as usize];
        self.content.read_exact_at(&mut head, 0).map_err(|source| self.io("read", source))?;
        Ok(detect(&head))
    }

    /// The frames that hold `runs`, in order, compressed on all cores a few ahead of the one that is taken.
    pub fn frames(&self, runs: &[Run], level: i32) -> impl Iterator<Item = Result<UploadFrame, PrepareError>> + '_ {
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get).clamp(1, 16);
        let mut pieces = pieces(runs).into_iter();
        let mut ready = VecDeque::new();
        std::iter::from_fn(move || {
            if ready.is_empty() {
                let batch: Vec<_> = pieces.by_ref().take(2 * threads).collect();
                ready.extend(self.compress(&batch, threads, level));
            }
            ready.pop_front()
        })
    }

    fn compress(&self, batch: &[Vec<Run>], threads: usize, level: i32) -> Vec<Result<UploadFrame, PrepareError>> {
        let share = batch.len().div_ceil(threads).max(1);
        std::thread::scope(|scope| {
            let one = move |piece: &Vec<Run>| self.frame(piece, level);
            let work = move |part: &[Vec<Run>]| part.iter().map(one).collect::<Vec<_>>();
            let parts: Vec<_> = batch.chunks(share).map(|part| scope.spawn(move || work(part))).collect();
            let join = |part: std::thread::ScopedJoinHandle<'_, Vec<_>>| match part.join() {
                Ok(frames) => frames,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            parts.into_iter().flat_map(join).collect()
        })
    }

    fn frame(&self, piece: &[Run], level: i32) -> Result<UploadFrame, PrepareError> {
        let mut raw = Vec::new();
        for (first, count) in piece {
            let start = raw.len();
            raw.resize(start + byte_of(*count) as usize, 0);
            let part = raw.get_mut(start..).unwrap_or_default();
            self.content.read_exact_at(part, byte_of(*first)).map_err(|source| self.io("read", source))?;
        }
        Ok(UploadFrame {
            first: piece.first().map_or(0, |(first, _)| *first),
            blocks: piece.iter().map(|(_, count)| count).sum(),
            bytes: write_frame(&raw, level),
        })
    }

    fn io(&self, action: &'static str, source: io::Error) -> PrepareError {
        PrepareError::Io { action, path: self.path.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use goldsync_proto::digest::ImageId;
    use goldsync_proto::pack::read_frame;
    use std::io::Write;

    #[test]
    fn an_image_is_signed_and_its_runs_are_framed_in_order() {
        let bytes: Vec<u8> = (0..700 * 4096_u64).map(|i| ((i * i) >> 11) as u8).collect();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        let image = Prepared::open(file.path()).unwrap();
        let mut heard = Vec::new();
        assert_eq!(image.sign(|done| heard.push(done)).unwrap().image, ImageId::of(&bytes));
        assert_eq!(heard, [1 << 20, 2 << 20, 700 * 4096]);

        let frames: Vec<_> = image.frames(&[(0, 300), (500, 200)], 3).collect::<Result<_, _>>().unwrap();
        assert_eq!(frames.iter().map(|frame| (frame.first, frame.blocks)).collect::<Vec<_>>(), [(0, 256), (256, 244)]);
        let raw: Vec<u8> = frames.iter().flat_map(|frame| read_frame(&frame.bytes).unwrap()).collect();
        assert_eq!(raw, [&bytes[..300 * 4096], &bytes[500 * 4096..]].concat());
    }

    #[test]
    fn what_cannot_be_an_image_is_refused_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let ragged = folder.path().join("ragged");
        std::fs::write(&ragged, [1; 4097]).unwrap();
        std::fs::write(folder.path().join("empty"), []).unwrap();
        for (path, why) in [
            (ragged, "truncate"),
            (folder.path().join("empty"), "0 bytes"),
            (folder.path().join("none"), "No such file"),
            (folder.path().into(), "neither a file nor a block device"),
            ("/dev/null".into(), "neither a file nor a block device"),
        ] {
            let error = Prepared::open(&path).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(&path.display().to_string()), "{error}");
        }
    }
}
