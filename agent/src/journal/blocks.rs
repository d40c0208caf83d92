//! The block hashes of a proven image, kept so that a pack's copies can be checked without reading the base's signature.
//!
//! | offset | size | field                                                        |
//! |-------:|-----:|--------------------------------------------------------------|
//! |      0 |    8 | `GSBLOCK1`                                                   |
//! |      8 |   32 | image id                                                     |
//! |     40 |   32 | BLAKE3 of everything from offset 72                          |
//! |     72 |    8 | n, the number of hashes, little-endian                       |
//! |     80 |  8·n | the hashes, little-endian: first 8 bytes of each block's BLAKE3 |
//!
//! Read through a mapping: an image of 20 GiB has 40 MiB of hashes, which must not count as this process's own memory.
//! The file is ours, replaced and never changed in place, so that the mapping stays whole.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use goldsync_proto::digest::{Digest, ImageId};
use goldsync_proto::limits::{BLOCK, IMAGE_MAX};
use memmap2::Mmap;

use super::{JournalError, beside, io_error, take_place};

const MAGIC: &[u8; 8] = b"GSBLOCK1";
const CHECKED: usize = 8 + 32 + 32;
const HEAD: usize = CHECKED + 8;

/// The hashes of an image's blocks, in order.
#[derive(Debug)]
pub struct Blocks {
    image: ImageId,
    map: Mmap,
}

impl Blocks {
    pub(super) fn open(path: &Path) -> Result<Option<Self>, JournalError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("opening", path)(error)),
        };
        // SAFETY: nobody shortens or changes the file while it is mapped: it is only ever replaced by a rename, in a
        // folder that belongs to this program.
        let map = unsafe { Mmap::map(&file) }.map_err(io_error("mapping", path))?;
        let image = check(&map).map_err(|why| JournalError::Blocks { path: path.to_owned(), why })?;
        Ok(Some(Self { image, map }))
    }

    /// The image they are of.
    pub fn image(&self) -> ImageId {
        self.image
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.map.len().saturating_sub(HEAD) / 8
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The hash of block `index`.
    pub fn get(&self, index: u32) -> Option<u64> {
        let at = HEAD + index as usize * 8;
        let bytes = self.map.get(at..at + 8)?;
        bytes.try_into().ok().map(u64::from_le_bytes)
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        let (hashes, _) = self.map.get(HEAD..).unwrap_or_default().as_chunks::<8>();
        hashes.iter().map(|bytes| u64::from_le_bytes(*bytes))
    }

    /// All of them as they lie in the file: the signature's `blocks` section, byte for byte.
    pub fn as_bytes(&self) -> &[u8] {
        self.map.get(HEAD..).unwrap_or_default()
    }
}

fn check(bytes: &[u8]) -> Result<ImageId, String> {
    let head = bytes.get(..HEAD).ok_or_else(|| format!("{} bytes, {HEAD} at least", bytes.len()))?;
    if head.get(..8) != Some(MAGIC) {
        return Err("it does not begin with GSBLOCK1".into());
    }
    let field = |from: usize| head.get(from..from + 32).and_then(|field| <[u8; 32]>::try_from(field).ok());
    let (Some(image), Some(expected)) = (field(8), field(40)) else { return Err("its head is cut".into()) };
    let count = head.last_chunk::<8>().map_or(0, |count| u64::from_le_bytes(*count));
    if count > IMAGE_MAX / BLOCK || bytes.len() as u64 != HEAD as u64 + count * 8 {
        return Err(format!("{} bytes for {count} hashes", bytes.len()));
    }
    let got = blake3::hash(bytes.get(CHECKED..).unwrap_or_default());
    if *got.as_bytes() != expected {
        return Err("its check does not match".into());
    }
    Ok(ImageId(Digest(image)))
}

/// Writes the hashes as they are found, in order, in bounded memory.
#[derive(Debug)]
pub struct BlocksWriter {
    path: PathBuf,
    temporary: PathBuf,
    image: ImageId,
    file: BufWriter<File>,
    count: u64,
}

impl BlocksWriter {
    pub(super) fn create(path: PathBuf, image: ImageId) -> Result<Self, JournalError> {
        let temporary = beside(&path);
        let fail = |error| io_error("writing", &temporary)(error);
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(true).open(&temporary).map_err(fail)?;
        let mut file = BufWriter::with_capacity(64 << 10, file);
        file.write_all(&[0; HEAD]).map_err(fail)?;
        Ok(Self { path, temporary, image, file, count: 0 })
    }

    /// The next blocks' hashes.
    pub fn push(&mut self, hashes: &[u64]) -> Result<(), JournalError> {
        let temporary = &self.temporary;
        self.count += hashes.len() as u64;
        hashes
            .iter()
            .try_for_each(|hash| self.file.write_all(&hash.to_le_bytes()))
            .map_err(|error| io_error("writing", temporary)(error))
    }

    /// Completes the file and lets it take the old one's place, durably.
    pub fn finish(self) -> Result<(), JournalError> {
        let fail = |error| io_error("writing", &self.temporary)(error);
        let mut file = self.file.into_inner().map_err(|error| fail(error.into_error()))?;
        let head_and_sync = |file: &mut File| -> io::Result<()> {
            file.seek(SeekFrom::Start(CHECKED as u64))?;
            file.write_all(&self.count.to_le_bytes())?;
            file.seek(SeekFrom::Start(CHECKED as u64))?;
            let mut hasher = blake3::Hasher::new();
            hasher.update_reader(&mut *file)?;
            file.rewind()?;
            file.write_all(MAGIC)?;
            file.write_all(self.image.0.as_bytes())?;
            file.write_all(hasher.finalize().as_bytes())?;
            file.sync_all()
        };
        head_and_sync(&mut file).map_err(fail)?;
        take_place(&self.temporary, &self.path)
    }
}
