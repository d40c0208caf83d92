//! The publisher's side: an image file or block device, its signature, and the frames to upload.
//!
//! Nothing here talks to a server or waits for one; it reads, hashes and compresses, on all cores, and belongs on a
//! thread that may block. Memory is bounded for any size: the signature (0.5 % of the image), and a few frames.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::num::NonZero;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use goldsync_proto::block::{Geometry, GeometryError, Run, byte_of};
use goldsync_proto::limits::REGION;
use goldsync_proto::pack::write_frame;
use goldsync_proto::signature::Signature;

use super::sign::sign_file;
use crate::store::pieces;

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
    file: File,
    geometry: Geometry,
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
        Ok(Self { path: path.to_owned(), file, geometry })
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
        sign_file(&self.file, self.geometry, |regions| progress((u64::from(regions) * REGION).min(size)))
            .map_err(|source| self.io("read", source))
    }

    /// What its first bytes look like, for people.
    pub fn file_system(&self) -> Result<Option<&'static str>, PrepareError> {
        let mut head = vec![0; self.geometry.size().min(HEAD_LEN) as usize];
        self.file.read_exact_at(&mut head, 0).map_err(|source| self.io("read", source))?;
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
            self.file.read_exact_at(part, byte_of(*first)).map_err(|source| self.io("read", source))?;
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

/// Bytes that [`detect`] looks at: btrfs keeps its mark furthest in.
const HEAD_LEN: u64 = 68 << 10;

/// Marks by which an image's content is recognised: offset, bytes, name. The first that fits counts, so that a file
/// system is told before the boot sector that it may carry, and a partition table before the sector that protects it.
const MARKS: &[(usize, &[u8], &str)] = &[
    (0, b"hsqs", "squashfs"),
    (1024, &[0xe2, 0xe1, 0xf5, 0xe0], "erofs"),
    (0, b"XFSB", "xfs"),
    (0x1_0040, b"_BHRfS_M", "btrfs"),
    (1024, &[0x10, 0x20, 0xf5, 0xf2], "f2fs"),
    (0, b"LUKS\xba\xbe", "luks"),
    (0x8001, b"CD001", "iso9660"),
    (512, b"EFI PART", "gpt"),
    (4096, b"EFI PART", "gpt"),
    (0x52, b"FAT32   ", "vfat"),
    (0x36, b"FAT16   ", "vfat"),
    (0x36, b"FAT12   ", "vfat"),
    (3, b"NTFS    ", "ntfs"),
    (3, b"EXFAT   ", "exfat"),
    (257, b"ustar", "tar"),
    (0, b"QFI\xfb", "qcow2"),
    (0, b"KDMV", "vmdk"),
    (0, &[0x1f, 0x8b], "gzip"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, &[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
    (510, &[0x55, 0xaa], "mbr"),
];

/// Names what an image's first bytes look like.
pub fn detect(head: &[u8]) -> Option<&'static str> {
    let holds = |offset: usize, mark: &[u8]| head.get(offset..offset + mark.len()) == Some(mark);
    if holds(0x438, &[0x53, 0xef]) {
        return Some(detect_ext(head));
    }
    MARKS.iter().find(|(offset, mark, _)| holds(*offset, mark)).map(|(_, _, name)| *name)
}

fn detect_ext(head: &[u8]) -> &'static str {
    let word = |offset: usize| head.get(offset..offset + 4).and_then(|bytes| bytes.try_into().ok());
    let features = |offset: usize| word(offset).map_or(0, u32::from_le_bytes);
    let (compatible, incompatible) = (features(0x45c), features(0x460));
    // Extents, 64-bit block numbers, flexible block groups: what only ext4 knows.
    if incompatible & (0x40 | 0x80 | 0x200) != 0 {
        "ext4"
    } else if compatible & 0x4 != 0 {
        "ext3"
    } else {
        "ext2"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use goldsync_proto::digest::ImageId;
    use goldsync_proto::pack::read_frame;
    use std::io::Write;

    fn head(marks: &[(usize, &[u8])]) -> Vec<u8> {
        let mut head = vec![0; HEAD_LEN as usize];
        for (offset, mark) in marks {
            head[*offset..offset + mark.len()].copy_from_slice(mark);
        }
        head
    }

    #[test]
    fn file_systems_are_told_by_their_marks() {
        let boot: (usize, &[u8]) = (510, &[0x55, 0xaa]);
        let ext: (usize, &[u8]) = (0x438, &[0x53, 0xef]);
        for (marks, name) in [
            (vec![ext, (0x460, &[0x40, 0, 0, 0][..]), boot], Some("ext4")),
            (vec![ext, (0x45c, &[4])], Some("ext3")),
            (vec![ext], Some("ext2")),
            (vec![(0, &b"hsqs"[..])], Some("squashfs")),
            (vec![(1024, &[0xe2, 0xe1, 0xf5, 0xe0][..])], Some("erofs")),
            (vec![(0, &b"XFSB"[..])], Some("xfs")),
            (vec![(0x1_0040, &b"_BHRfS_M"[..])], Some("btrfs")),
            (vec![boot, (0x52, b"FAT32   ")], Some("vfat")),
            (vec![boot, (512, b"EFI PART")], Some("gpt")),
            (vec![boot], Some("mbr")),
            (vec![], None),
        ] {
            assert_eq!(detect(&head(&marks)), name);
        }
        assert_eq!(detect(b""), None);
        assert_eq!(detect(&[0x53; 0x439]), None);
    }

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
