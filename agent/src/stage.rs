//! Staging: putting golden blocks into the standby slot, and into nothing else.
//!
//! ```text
//! plan ──▶ fetch ──▶ verify ──▶ [stage] ──▶ read back ──▶ swap
//! ```
//! A [`Stage`] owns the standby slot from before its first byte until it is proven. Blocks come in any order, from several
//! threads, and may come twice. What is equal already is not written (flash wears); what was learned about each golden
//! block's hash on the way is kept, so that a wrong block can be named later without asking anybody. The active slot is
//! only ever read. All calls block: they belong on threads of their own.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use goldsync_proto::block::{Geometry, Run, byte_of, runs_of};
use goldsync_proto::limits::{BLOCK, REGION};
use goldsync_proto::signature::{block_hash, zero_hash};
use goldsync_proto::verity::Derived;

use crate::job::Hashes;
use crate::journal::Blocks;
use crate::scratch::Words;
use crate::slot::{Advice, Kind, SlotError, Source, Standby, with_room};

/// Bytes written before they are synced: what a power cut can cost, and what the kernel has to write out at the end.
const SYNC_EVERY: u64 = 32 << 20;

/// Bytes that are read or compared at once.
pub const CHUNK_BLOCKS: u32 = (REGION / BLOCK) as u32;

/// Why a block could not be staged.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// A slot failed.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// The state folder failed.
    #[error("state folder: scratch space for {blocks} blocks: {error}")]
    Scratch {
        /// How many.
        blocks: u32,
        /// Why.
        error: io::Error,
    },
    /// The plan reads beyond the source.
    #[error("the plan wants bytes {from}..{end} of the active slot, which ends at {len}")]
    Beyond {
        /// First byte.
        from: u64,
        /// Behind the last byte.
        end: u64,
        /// Bytes there are.
        len: u64,
    },
}

/// A standby slot being made golden.
#[derive(Debug)]
pub struct Stage {
    /// The slot that is written.
    pub standby: Standby,
    /// The slot that is read.
    pub active: Option<Source>,
    /// The golden image's.
    pub geometry: Geometry,
    /// The golden image's block hashes, as far as they are known by now; zero is not known.
    pub golden: Words,
    /// What the standby slot held when this run began.
    before: Before,
    /// Bytes that the standby slot had when this run began: beyond them there is nothing to compare with.
    old_len: u64,
    /// Blocks written, skipped, repaired, derived.
    pub tally: Tally,
    /// What derives from other blocks of the standby slot, and is right if those are.
    derived: Mutex<Vec<Derived>>,
    unsynced: AtomicU64,
}

/// What the standby slot holds when staging begins.
#[derive(Debug)]
pub enum Before {
    /// Nothing that is known: it is compared with before it is written.
    Unknown,
    /// An image that it was proven to hold, by its block hashes.
    Proven(Blocks),
    /// The active slot's bytes, shared with it.
    Cloned,
}

/// Counts, for the account.
#[derive(Debug, Default)]
pub struct Tally {
    /// Blocks written.
    pub written: AtomicU64,
    /// Blocks that were right already.
    pub skipped: AtomicU64,
    /// Drifted blocks that were fetched.
    pub repaired: AtomicU64,
    /// Blocks that were derived; of those written or skipped.
    pub derived: AtomicU64,
}

impl Tally {
    /// Written and skipped together: how far staging is.
    pub fn done(&self) -> u64 {
        self.written.load(Ordering::Relaxed) + self.skipped.load(Ordering::Relaxed)
    }
}

impl Stage {
    /// Takes over the slots. `before` must be true of the standby slot's present bytes.
    pub fn new(
        standby: Standby,
        active: Option<Source>,
        geometry: Geometry,
        before: Before,
        state: &Path,
    ) -> Result<Self, StageError> {
        let blocks = geometry.blocks();
        let golden = Words::temporary(state, blocks).map_err(|error| StageError::Scratch { blocks, error })?;
        let old_len = standby.len()?.min(geometry.size());
        standby.set_len(geometry.size())?;
        let (tally, derived, unsynced) = Default::default();
        Ok(Self { standby, active, geometry, golden, before, old_len, tally, derived, unsynced })
    }

    /// Whether the standby slot may hold golden blocks that the active slot does not.
    pub fn has_own(&self) -> bool {
        self.old_len > 0 && !self.cloned()
    }

    /// Whether the standby slot began as a clone of the active one.
    pub fn cloned(&self) -> bool {
        matches!(self.before, Before::Cloned)
    }

    /// Remembers the golden hash of block `index`.
    pub fn learn(&self, index: u32, hash: u64) {
        self.golden.set(index, hash);
    }

    /// Puts golden blocks in their place, from block `first` on. Their hashes are learned where none was known: a hash known
    /// before is what the block must have, and the read-back holds it against that.
    pub fn put(&self, first: u32, bytes: &[u8]) -> Result<(), StageError> {
        for (index, block) in (first..).zip(bytes.chunks_exact(BLOCK as usize)) {
            if self.golden.get(index) == 0 {
                self.learn(index, block_hash(block));
            }
        }
        self.write_unequal(first, bytes)
    }

    /// Remembers what derives; it is put by [`Stage::put_derived`] when the rest is there.
    pub fn set_derived(&self, derived: Vec<Derived>) {
        let count = derived.iter().map(Derived::count).sum();
        self.tally.derived.store(count, Ordering::Relaxed);
        *self.derived.lock().unwrap_or_else(PoisonError::into_inner) = derived;
    }

    /// What derives.
    pub fn derived(&self) -> Vec<Derived> {
        self.derived.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts derived blocks in their place. Nothing is learned: what they were derived from may be wrong.
    pub fn put_derived(&self, first: u32, bytes: &[u8]) -> Result<(), StageError> {
        self.write_unequal(first, bytes)
    }

    /// Copies `count` blocks from byte `from` of the active slot. `base`, if known, tells their hashes.
    pub fn copy(&self, first: u32, from: u64, count: u32, base: Option<&Hashes>) -> Result<(), StageError> {
        let mut at = 0;
        while at < count {
            let step = (count - at).min(CHUNK_BLOCKS);
            self.copy_chunk(first + at, from + byte_of(at), step, base)?;
            at += step;
        }
        Ok(())
    }

    fn copy_chunk(&self, first: u32, from: u64, count: u32, base: Option<&Hashes>) -> Result<(), StageError> {
        let from_block = (from / BLOCK) as u32;
        if let Some(base) = base.filter(|_| from.is_multiple_of(BLOCK)) {
            (0..count).for_each(|at| self.learn(first + at, base.get(from_block + at).unwrap_or(0)));
        }
        let in_place = self.cloned() && from == byte_of(first) && byte_of(first + count) <= self.old_len;
        if in_place || self.held_before(first, count) {
            self.tally.skipped.fetch_add(u64::from(count), Ordering::Relaxed);
            return Ok(());
        }
        with_room(byte_of(count) as usize, |bytes| {
            self.read_active(from, bytes)?;
            if base.is_none() || !from.is_multiple_of(BLOCK) {
                return self.put(first, bytes);
            }
            self.write_unequal(first, bytes)
        })
    }

    /// Moves `count` blocks from byte `from` of the standby slot's own old content down to block `first`. `from` is not
    /// before `first`: each piece is read before anything at or behind it is written.
    pub fn shift(&self, first: u32, from: u64, count: u32) -> Result<(), StageError> {
        let mut at = 0;
        while at < count {
            let step = (count - at).min(CHUNK_BLOCKS);
            with_room(byte_of(step) as usize, |bytes| {
                self.standby.read_at(from + byte_of(at), bytes)?;
                self.put(first + at, bytes)
            })?;
            at += step;
        }
        Ok(())
    }

    /// Counts blocks that are right already.
    pub fn keep(&self, count: u32) {
        self.tally.skipped.fetch_add(u64::from(count), Ordering::Relaxed);
    }

    /// Reads the active slot; beyond its end is an error that names both.
    pub fn read_active(&self, from: u64, bytes: &mut [u8]) -> Result<(), StageError> {
        let (end, len) = (from.saturating_add(bytes.len() as u64), self.active.as_ref().map_or(0, Source::len));
        match &self.active {
            Some(active) if end <= len => Ok(active.read_at(from, bytes)?),
            _ => Err(StageError::Beyond { from, end, len }),
        }
    }

    /// Makes `count` blocks zero.
    pub fn zero(&self, first: u32, count: u32) -> Result<(), StageError> {
        (first..first + count).for_each(|index| self.learn(index, zero_hash()));
        let mut at = first;
        while at < first + count {
            let step = (first + count - at).min(CHUNK_BLOCKS);
            self.zero_chunk(at, step)?;
            at += step;
        }
        Ok(())
    }

    fn zero_chunk(&self, first: u32, count: u32) -> Result<(), StageError> {
        if byte_of(first) >= self.old_len && self.standby.kind() == Kind::File {
            // Beyond the old end a file was extended with a hole: zero already.
            self.tally.skipped.fetch_add(u64::from(count), Ordering::Relaxed);
            return Ok(());
        }
        if self.held_before(first, count) {
            self.tally.skipped.fetch_add(u64::from(count), Ordering::Relaxed);
            return Ok(());
        }
        let unequal = self.with_standby(first, count, |old| {
            let blocks = (0_u32..).zip(old.chunks_exact(BLOCK as usize));
            Ok::<_, StageError>(runs_of(
                blocks.filter(|(_, block)| block.iter().any(|byte| *byte != 0)).map(|(index, _)| index),
            ))
        })?;
        let zero = |index, count| self.standby.zero_at(byte_of(first + index), byte_of(count));
        self.change(count, unequal, zero)
    }

    /// Whether the standby slot was proven to hold all these golden blocks before this run, with no need to read it.
    pub fn held_before(&self, first: u32, count: u32) -> bool {
        let Before::Proven(before) = &self.before else { return false };
        let held = |index| before.get(index).is_some_and(|hash| hash != 0 && hash == self.golden.get(index));
        byte_of(first + count) <= self.old_len && (first..first + count).all(held)
    }

    /// Shows blocks of the standby slot, as they are now, to `look`.
    pub fn with_standby<T, E: From<StageError>>(
        &self,
        first: u32,
        count: u32,
        look: impl FnOnce(&[u8]) -> Result<T, E>,
    ) -> Result<T, E> {
        show(count, |bytes| Ok(self.standby.read_at(byte_of(first), bytes)?), look)
    }

    /// The same for blocks of the active slot.
    pub fn with_active<T, E: From<StageError>>(
        &self,
        first: u32,
        count: u32,
        look: impl FnOnce(&[u8]) -> Result<T, E>,
    ) -> Result<T, E> {
        show(count, |bytes| self.read_active(byte_of(first), bytes), look)
    }

    fn write_unequal(&self, first: u32, bytes: &[u8]) -> Result<(), StageError> {
        let count = (bytes.len() as u64 / BLOCK) as u32;
        // What is written over a clone is what the plan found to be different there.
        let unequal = if byte_of(first) >= self.old_len || self.cloned() {
            vec![(0, count)]
        } else {
            self.with_standby(first, count, |old| {
                let pairs = (0_u32..).zip(old.chunks_exact(BLOCK as usize).zip(bytes.chunks_exact(BLOCK as usize)));
                Ok::<_, StageError>(runs_of(pairs.filter(|(_, (old, new))| old != new).map(|(index, _)| index)))
            })?
        };
        let span = |index: u32, count: u32| byte_of(index) as usize..byte_of(index + count) as usize;
        let write =
            |index, count| self.standby.write_at(byte_of(first + index), bytes.get(span(index, count)).unwrap_or(&[]));
        self.change(count, unequal, write)
    }

    /// Applies `write` to what is unequal of `count` blocks, and counts both kinds.
    fn change(
        &self,
        count: u32,
        unequal: Vec<Run>,
        write: impl Fn(u32, u32) -> Result<(), SlotError>,
    ) -> Result<(), StageError> {
        let mut written = 0;
        for (index, count) in unequal {
            write(index, count)?;
            written += u64::from(count);
        }
        self.tally.skipped.fetch_add(u64::from(count) - written, Ordering::Relaxed);
        self.wrote(written)
    }

    fn wrote(&self, blocks: u64) -> Result<(), StageError> {
        self.tally.written.fetch_add(blocks, Ordering::Relaxed);
        let unsynced = self.unsynced.fetch_add(blocks * BLOCK, Ordering::Relaxed) + blocks * BLOCK;
        if unsynced >= SYNC_EVERY {
            self.unsynced.store(0, Ordering::Relaxed);
            self.standby.sync_data()?;
        }
        Ok(())
    }

    /// Makes everything durable, and forgets what is cached, so that the read-back comes from the medium.
    pub fn settle(&self) -> Result<(), StageError> {
        self.standby.sync_data()?;
        self.standby.advise(Advice::Forget);
        Ok(())
    }
}

/// Reads so many blocks into a thread's room, and shows them to `look`.
fn show<T, E: From<StageError>>(
    count: u32,
    read: impl FnOnce(&mut [u8]) -> Result<(), StageError>,
    look: impl FnOnce(&[u8]) -> Result<T, E>,
) -> Result<T, E> {
    with_room(byte_of(count) as usize, |bytes| {
        read(bytes)?;
        look(bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Journal;
    use crate::slot::{SlotName, Wanted};

    struct Bench {
        folder: tempfile::TempDir,
    }

    fn blocks(letters: &str) -> Vec<u8> {
        let block = |letter| match letter {
            '0' => vec![0; BLOCK as usize],
            letter => vec![letter as u8; BLOCK as usize],
        };
        letters.chars().flat_map(block).collect()
    }

    impl Bench {
        fn new(active: &str, standby: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("a"), blocks(active)).unwrap();
            std::fs::write(folder.path().join("b"), blocks(standby)).unwrap();
            Self { folder }
        }

        fn stage(&self, size: u32, before: Option<&str>) -> Stage {
            let path = |name: &str| self.folder.path().join(name);
            let geometry = Geometry::new(byte_of(size)).unwrap();
            let active = Source::open(SlotName::A, &path("a")).unwrap();
            let (name, b) = (SlotName::B, path("b"));
            let wanted = Wanted { name, path: &b, image: geometry, limit: None, active: Some(&active) };
            let standby = Standby::open(&wanted).unwrap();
            let before = before.map_or(Before::Unknown, |letters| Before::Proven(self.kept(SlotName::B, letters)));
            Stage::new(standby, Some(active), geometry, before, self.folder.path()).unwrap()
        }

        fn kept(&self, slot: SlotName, letters: &str) -> Blocks {
            let journal = Journal::open(&self.folder.path().join("state")).unwrap();
            let image = goldsync_proto::digest::ImageId::of(letters.as_bytes());
            let mut writer = journal.write_blocks(slot, image).unwrap();
            let hashes: Vec<u64> = blocks(letters).chunks(BLOCK as usize).map(block_hash).collect();
            writer.push(&hashes).unwrap();
            writer.finish().unwrap();
            journal.blocks(slot, image).unwrap().unwrap()
        }

        fn standby(&self) -> Vec<u8> {
            std::fs::read(self.folder.path().join("b")).unwrap()
        }
    }

    fn counts(stage: &Stage) -> (u64, u64) {
        (stage.tally.written.load(Ordering::Relaxed), stage.tally.skipped.load(Ordering::Relaxed))
    }

    #[test]
    fn equal_blocks_are_not_written() {
        let bench = Bench::new("", "abcd");
        let stage = bench.stage(4, None);
        stage.put(0, &blocks("axcy")).unwrap();
        assert_eq!(counts(&stage), (2, 2));
        assert_eq!(bench.standby(), blocks("axcy"));
        assert_eq!(stage.golden.get(1), block_hash(&blocks("x")));
    }

    #[test]
    fn a_longer_image_extends_the_slot_and_a_shorter_one_cuts_it() {
        let bench = Bench::new("pqrstu", "ab");
        let stage = bench.stage(6, None);
        stage.copy(0, 0, 6, None).unwrap();
        assert_eq!((counts(&stage), bench.standby()), ((6, 0), blocks("pqrstu")));
        drop(stage);
        let stage = bench.stage(3, None);
        stage.copy(0, 0, 3, None).unwrap();
        assert_eq!((counts(&stage), bench.standby()), ((0, 3), blocks("pqr")));
    }

    #[test]
    fn zeros_are_made_where_they_are_not_yet() {
        let bench = Bench::new("", "a0c");
        let stage = bench.stage(5, None);
        stage.zero(0, 5).unwrap();
        assert_eq!((counts(&stage), bench.standby()), ((2, 3), blocks("00000")));
        assert_eq!(stage.golden.get(4), zero_hash());
    }

    #[test]
    fn what_was_proven_before_is_neither_read_nor_written() {
        let bench = Bench::new("abcd", "abcd");
        let base = bench.kept(SlotName::A, "abcd");
        let stage = bench.stage(4, Some("abcd"));
        // Drift under the proof: shows that the blocks were not looked at. The read-back finds it.
        std::fs::write(bench.folder.path().join("b"), blocks("abXd")).unwrap();
        stage.copy(0, 0, 4, Some(&Hashes::Kept(base))).unwrap();
        assert_eq!((counts(&stage), bench.standby()), ((0, 4), blocks("abXd")));
    }

    #[test]
    fn over_a_clone_only_what_differs_is_written() {
        let bench = Bench::new("abcd", "abcd");
        let stage = Stage { before: Before::Cloned, ..bench.stage(5, None) };
        assert!(!stage.has_own());
        stage.copy(0, 0, 2, None).unwrap();
        stage.copy(2, byte_of(3), 1, None).unwrap();
        stage.put(3, &blocks("x")).unwrap();
        stage.zero(4, 1).unwrap();
        assert_eq!((counts(&stage), bench.standby()), ((2, 3), blocks("abdx0")));
    }

    #[test]
    fn a_moved_block_is_copied_although_the_slot_held_another_there() {
        let bench = Bench::new("abcd", "abcd");
        let base = Hashes::Kept(bench.kept(SlotName::A, "abcd"));
        let stage = bench.stage(4, Some("abcd"));
        stage.copy(0, byte_of(1), 3, Some(&base)).unwrap();
        stage.copy(3, 0, 1, Some(&base)).unwrap();
        assert_eq!((counts(&stage), bench.standby()), ((4, 0), blocks("bcda")));
    }

    #[test]
    fn the_standby_slot_can_be_moved_down_within_itself() {
        let bench = Bench::new("", "abcdefgh");
        let stage = bench.stage(8, None);
        stage.shift(1, byte_of(3), 5).unwrap();
        assert_eq!(bench.standby(), blocks("adefghgh"));
    }

    #[test]
    fn a_plan_that_reads_beyond_the_source_is_refused_with_both_numbers() {
        let bench = Bench::new("ab", "");
        let stage = bench.stage(4, None);
        let error = stage.copy(0, byte_of(1), 2, None).unwrap_err().to_string();
        assert!(error.contains("4096..12288") && error.contains("8192"), "{error}");
    }
}
