//! The image that is published: opened once, read by offset, signed on all cores in bounded memory.
//!
//! ```text
//! readers (one a core) ── region k, signed ──▶ in order ──▶ Signer ──▶ Signature
//!       ▲── at most WINDOW regions ahead of the one that is awaited ──┘
//! ```
//! Nothing may write to the image meanwhile. If something does, it is noticed: by the file's times and size while it is
//! hashed, by each block's hash while it is sent, and by the server's own hash of the whole at the end.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use goldsync_proto::block::{Geometry, byte_of};
use goldsync_proto::limits::{BLOCK, REGION};
use goldsync_proto::signature::{BlockHashes, RegionSignature, Signature, Signer, block_hash, sign_region};

use super::fail::{Code, Failure, Outcome};
use super::progress::Stage;
use super::recognise;

/// Regions signed ahead of the one whose turn it is, for each reader. Bounds memory when one read is slow.
const WINDOW: u32 = 4;

/// An image on this machine.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    file: File,
    geometry: Geometry,
    seen: Seen,
}

/// What would change if a file were written to.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Seen {
    fn of(data: &Metadata, size: u64) -> Self {
        // A block device's own times tell of its node in /dev, not of its bytes.
        let times = data.file_type().is_file();
        let when = |s, ns| if times { (s, ns) } else { (0, 0) };
        Self { size, modified: when(data.mtime(), data.mtime_nsec()), changed: when(data.ctime(), data.ctime_nsec()) }
    }
}

impl Image {
    /// Opens a file or a block device and checks its size.
    pub fn open(path: &Path) -> Outcome<Self> {
        let failed = |error: io::Error| Failure::io("cannot read the image", path, &error);
        let data = std::fs::metadata(path).map_err(failed)?;
        let kind = data.file_type();
        // Checked before it is opened: opening a pipe that nobody writes to would wait for ever.
        if !kind.is_file() && !kind.is_block_device() {
            let what = if kind.is_dir() { "a folder" } else { "neither a file nor a block device" };
            return Err(Failure::new(Code::Usage, format!("{} is {what}", path.display()))
                .remedy("an image is a file or a block device; make one from a folder with mkfs.ext4 -d, mkfs.erofs or mksquashfs"));
        }
        let file = File::open(path).map_err(failed)?;
        let size = size_of(&file).map_err(failed)?;
        let geometry =
            Geometry::new(size).map_err(|error| Failure::new(Code::Failed, format!("{}: {error}", path.display())))?;
        let seen = Seen::of(&file.metadata().map_err(failed)?, size);
        Ok(Self { path: path.to_owned(), file, geometry, seen })
    }

    /// Its size, as blocks and regions.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// What it looks like, for people.
    pub fn recognise(&self) -> Outcome<Option<&'static str>> {
        let mut head = vec![0; recognise::HEAD.min(self.geometry.size() as usize)];
        self.read(&mut head, 0)?;
        Ok(recognise::recognise(&head))
    }

    /// Hashes it whole, into its signature. Blocks this thread; `stop` ends it early.
    pub fn sign(&self, stage: &Stage, stop: &AtomicBool) -> Outcome<Signature> {
        let readers = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
        let signature = self.sign_with(readers.min(self.geometry.regions()), stage, stop)?;
        self.unchanged()?;
        Ok(signature)
    }

    fn sign_with(&self, readers: u32, stage: &Stage, stop: &AtomicBool) -> Outcome<Signature> {
        let line = Line::new(self.geometry.regions(), readers.saturating_mul(WINDOW));
        let mut signer = Signer::new(self.geometry);
        std::thread::scope(|scope| -> Outcome {
            for _ in 0..readers {
                scope.spawn(|| self.sign_regions(&line, stage, stop));
            }
            while let Some(region) = line.take()? {
                signer.push(region);
            }
            Ok(())
        })?;
        signer.finish().ok_or_else(interrupted_here)
    }

    fn sign_regions(&self, line: &Line, stage: &Stage, stop: &AtomicBool) {
        let mut buffer = vec![0; REGION as usize];
        while let Some(index) = line.next() {
            let range = self.geometry.region_bytes(index);
            let bytes = &mut buffer[..(range.end - range.start) as usize];
            let signed =
                if stop.load(Ordering::Relaxed) { Err(interrupted_here()) } else { self.read(bytes, range.start) };
            let signed = signed.map(|()| sign_region(self.geometry, index, bytes));
            stage.advance(range.end - range.start);
            line.put(index, signed);
        }
    }

    /// The bytes of some blocks, each held against the hash that it had before.
    pub fn read_blocks(&self, blocks: impl Iterator<Item = u32>, hashes: BlockHashes<'_>) -> Outcome<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut buffer = [0; BLOCK as usize];
        for index in blocks {
            self.read(&mut buffer, byte_of(index))?;
            if hashes.get(index) != Some(block_hash(&buffer)) {
                return Err(self.changed(&format!("block {index}")));
            }
            bytes.extend_from_slice(&buffer);
        }
        Ok(bytes)
    }

    fn read(&self, bytes: &mut [u8], offset: u64) -> Outcome {
        self.file.read_exact_at(bytes, offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                self.changed(&format!("its end came before byte {}", offset + bytes.len() as u64))
            }
            _ => Failure::io(&format!("cannot read byte {offset} of the image"), &self.path, &error)
                .remedy("the medium may be failing: look at the kernel's log (dmesg)"),
        })
    }

    /// Whether the file is as it was when it was opened.
    pub fn unchanged(&self) -> Outcome {
        let failed = |error: io::Error| Failure::io("cannot read the image", &self.path, &error);
        let size = size_of(&self.file).map_err(failed)?;
        let now = Seen::of(&self.file.metadata().map_err(failed)?, size);
        match now.size {
            _ if now == self.seen => Ok(()),
            size if size != self.seen.size => Err(self.changed(&format!("from {} to {size} bytes", self.seen.size))),
            _ => Err(self.changed("its time of modification moved")),
        }
    }

    fn changed(&self, how: &str) -> Failure {
        let message = format!("{} changed while it was read: {how}", self.path.display());
        Failure::new(Code::Failed, message)
            .remedy("nothing was published; unmount it, or publish a snapshot or a copy that nothing writes to")
    }
}

fn interrupted_here() -> Failure {
    Failure::new(Code::Interrupted, "the hashing was interrupted")
}

/// A device says 0 where a file says its size; its end tells.
fn size_of(mut file: &File) -> io::Result<u64> {
    io::Seek::seek(&mut file, io::SeekFrom::End(0))
}

/// Hands out regions to readers, and hands their results on in order.
struct Line {
    state: Mutex<State>,
    moved: Condvar,
    regions: u32,
    window: u32,
}

struct State {
    /// The next region to be read.
    next: u32,
    /// The next region to be handed on.
    turn: u32,
    done: BTreeMap<u32, Outcome<RegionSignature>>,
    /// An error was handed on: readers stop.
    over: bool,
}

impl Line {
    fn new(regions: u32, window: u32) -> Self {
        let state = State { next: 0, turn: 0, done: BTreeMap::new(), over: false };
        Self { state: Mutex::new(state), moved: Condvar::new(), regions, window }
    }

    /// The next region to read, when it is near enough to the one that is awaited.
    fn next(&self) -> Option<u32> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let far =
            |state: &mut State| !state.over && state.next < self.regions && state.next - state.turn >= self.window;
        let mut state = self.moved.wait_while(state, far).unwrap_or_else(PoisonError::into_inner);
        let index = state.next;
        (!state.over && index < self.regions).then(|| {
            state.next += 1;
            index
        })
    }

    fn put(&self, index: u32, signed: Outcome<RegionSignature>) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).done.insert(index, signed);
        self.moved.notify_all();
    }

    /// The next region's result, in order; `None` after the last.
    fn take(&self) -> Outcome<Option<RegionSignature>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let absent = |state: &mut State| state.turn < self.regions && !state.done.contains_key(&state.turn);
        let mut state = self.moved.wait_while(state, absent).unwrap_or_else(PoisonError::into_inner);
        let turn = state.turn;
        let Some(signed) = state.done.remove(&turn) else { return Ok(None) };
        state.turn += 1;
        state.over = signed.is_err();
        drop(state);
        self.moved.notify_all();
        signed.map(Some)
    }
}

/// Tells the hashing threads to stop when the verb that waits for them is given up.
#[derive(Debug, Default)]
pub struct StopOnDrop(pub Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::progress::Manner;
    use goldsync_proto::digest::ImageId;
    use std::io::Write;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn sample(blocks: usize) -> Vec<u8> {
        (0..blocks * 4096).map(|i| ((i * i) >> 9) as u8).collect()
    }

    fn sign(image: &Image, readers: u32) -> Outcome<Signature> {
        image.sign_with(readers, &Stage::begin(Manner::Quiet, "hash", 0), &AtomicBool::new(false))
    }

    #[test]
    fn any_number_of_readers_gives_the_same_signature() {
        for blocks in [1, 256, 257, 3000] {
            let bytes = sample(blocks);
            let file = file(&bytes);
            let image = Image::open(file.path()).unwrap();
            let expected = Signature::of(image.geometry(), &bytes).unwrap();
            assert_eq!(expected.image, ImageId::of(&bytes));
            for readers in [1, 2, 7] {
                assert_eq!(sign(&image, readers).unwrap(), expected, "{blocks} blocks, {readers} readers");
            }
        }
    }

    #[test]
    fn a_sparse_file_is_an_image_like_any_other() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(5 << 20).unwrap();
        let image = Image::open(file.path()).unwrap();
        assert_eq!(sign(&image, 3).unwrap().image, ImageId::of(&vec![0; 5 << 20]));
        assert_eq!(image.recognise().unwrap(), None);
    }

    #[test]
    fn what_is_no_image_is_refused_with_the_cure() {
        for (bytes, code, words) in
            [(vec![], Code::Failed, vec!["0 bytes"]), (vec![7; 4097], Code::Failed, vec!["4097", "truncate -s %4096"])]
        {
            let file = file(&bytes);
            let failure = Image::open(file.path()).unwrap_err();
            assert_eq!(failure.code, code);
            for word in words {
                assert!(failure.message.contains(word), "{failure}");
            }
        }
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Image::open(folder.path()).unwrap_err().code, Code::Usage);
        let missing = Image::open(&folder.path().join("none")).unwrap_err();
        assert_eq!(missing.code, Code::Disk);
        assert!(missing.message.contains("none"), "{missing}");
    }

    #[test]
    fn a_change_is_noticed_by_time_by_size_and_by_content() {
        let bytes = sample(300);
        let file = file(&bytes);
        let image = Image::open(file.path()).unwrap();
        let signature = sign(&image, 2).unwrap();
        let hashes = BlockHashes::new(&signature.blocks);
        assert_eq!(image.read_blocks([3, 299].into_iter(), hashes).unwrap().len(), 8192);
        file.as_file().write_all_at(b"x", 299 * 4096).unwrap();
        let failure = image.read_blocks([299].into_iter(), hashes).unwrap_err();
        assert!(failure.message.contains("block 299"), "{failure}");
        file.as_file().set_len(4096).unwrap();
        let failure = image.unchanged().unwrap_err();
        assert!(failure.message.contains("from 1228800 to 4096 bytes"), "{failure}");
        let failure = sign(&image, 2).unwrap_err();
        assert!(failure.message.contains("changed while it was read"), "{failure}");
    }

    #[test]
    fn a_stop_ends_the_hashing() {
        let file = file(&sample(600));
        let image = Image::open(file.path()).unwrap();
        let stage = Stage::begin(Manner::Quiet, "hash", 0);
        let failure = image.sign_with(2, &stage, &AtomicBool::new(true)).unwrap_err();
        assert_eq!(failure.code, Code::Interrupted);
    }
}
