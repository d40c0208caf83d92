//! The index of stored blocks: from the eight bytes of a block's hash to its place in the store.
//!
//! Sorted arrays of 12 bytes a block, found through the hash's first 16 bits: 5 million blocks (20 GiB of different
//! bytes) take 60 MiB. Built at the start from the images' layouts and sections; an image that is published later is
//! merged in. A table never changes: who works with one keeps it while newer ones take its place.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use goldsync_proto::digest::Digest;
use goldsync_proto::signature::{BlockHashes, zero_hash};

use crate::store::layout::{Frame, Layout, Piece, Place};

/// Frames that a table can name: 2^24, or 16 TiB of full ones. Beyond that new blocks are not found again, and stored
/// twice.
const FRAMES_MAX: usize = 1 << 24;

/// A frame of the store.
#[derive(Clone, Debug)]
pub(crate) struct KnownFrame {
    /// The object it lies in.
    pub(crate) segment: Digest,
    /// Where; its own `segment` number means nothing here.
    pub(crate) frame: Frame,
    /// What must be unpacked before it; the pieces' frames are numbers of this table, smaller than its own.
    pub(crate) prefix: Arc<[Piece]>,
}

/// Blocks by hash.
#[derive(Debug, Default)]
pub(crate) struct Known {
    frames: Vec<KnownFrame>,
    numbers: HashMap<(Digest, u64), u32>,
    hashes: Vec<u64>,
    /// Frame number in the high 24 bits, block in the frame in the low 8.
    places: Vec<u32>,
    /// For each value of a hash's first 16 bits, where its hashes begin.
    starts: Vec<u32>,
}

impl Known {
    /// Where a block lies: its frame's number and its place in it.
    pub(crate) fn find(&self, hash: u64) -> Option<(u32, u8)> {
        let bucket = (hash >> 48) as usize;
        let (start, end) = (*self.starts.get(bucket)?, *self.starts.get(bucket + 1)?);
        let hashes = self.hashes.get(start as usize..end as usize)?;
        let at = start as usize + hashes.binary_search(&hash).ok()?;
        let place = *self.places.get(at)?;
        Some((place >> 8, place as u8))
    }

    /// A frame by its number.
    pub(crate) fn frame(&self, number: u32) -> Option<&KnownFrame> {
        self.frames.get(number as usize)
    }

    /// Blocks in it.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.hashes.len()
    }

    /// This table without the blocks of the frames that `lost` says are, so that they are stored again.
    pub(crate) fn without(&self, lost: impl Fn(&KnownFrame) -> bool) -> Self {
        let mut gone: Vec<bool> = Vec::with_capacity(self.frames.len());
        for frame in &self.frames {
            // What comes after a lost prefix is lost, too.
            let behind = frame.prefix.iter().any(|piece| match piece.place {
                Place::Stored { frame, .. } => gone.get(frame as usize).copied().unwrap_or(true),
                Place::Zero => false,
            });
            gone.push(behind || lost(frame));
        }
        let lost = gone;
        let is_lost = |place: u32| lost.get(place as usize >> 8).copied().unwrap_or(true);
        let blocks = self.hashes.iter().zip(&self.places).filter(|(_, place)| !is_lost(**place));
        let (hashes, places): (Vec<u64>, Vec<u32>) = blocks.unzip();
        let (frames, numbers) = (self.frames.clone(), self.numbers.clone());
        Self { frames, numbers, starts: starts_of(&hashes), hashes, places }
    }

    /// This table and the blocks of the segments that were made for one more image.
    pub(crate) fn with(&self, layout: &Layout, made: &[Digest], hashes: BlockHashes<'_>) -> Self {
        let made: HashSet<&Digest> = made.iter().collect();
        let mut merged = Self { frames: self.frames.clone(), numbers: self.numbers.clone(), ..Self::default() };
        let mut numbers: Vec<Option<u32>> = Vec::with_capacity(layout.frames().len());
        for (at, frame) in (0..).zip(layout.frames()) {
            let prefix =
                layout.prefix(at).iter().map(|piece| renumber(*piece, |frame| *numbers.get(frame as usize)?));
            let known = prefix.collect::<Option<_>>().and_then(|prefix| merged.frame_number(layout, frame, prefix));
            numbers.push(known);
        }
        let mut blocks = Vec::new();
        for extent in layout.extents() {
            let Place::Stored { frame, from } = extent.place else { continue };
            let own = layout.frames().get(frame as usize).and_then(|frame| layout.segment_of(frame));
            let Some(Some(number)) = numbers.get(frame as usize).filter(|_| own.is_some_and(|own| made.contains(&own)))
            else {
                continue;
            };
            for block in 0..extent.count {
                if let Some(hash) = hashes.get(extent.first + block).filter(|hash| *hash != zero_hash()) {
                    blocks.push((hash, number << 8 | (u32::from(from) + block)));
                }
            }
        }
        blocks.sort_unstable();
        blocks.dedup_by_key(|(hash, _)| *hash);
        self.merge(merged, &blocks)
    }

    /// A frame's number, a new one if need be.
    fn frame_number(&mut self, layout: &Layout, frame: &Frame, prefix: Arc<[Piece]>) -> Option<u32> {
        let segment = layout.segment_of(frame)?;
        if let Some(number) = self.number(segment, frame.offset) {
            return Some(number);
        }
        let number = Some(self.frames.len()).filter(|number| *number < FRAMES_MAX)? as u32;
        self.frames.push(KnownFrame { segment, frame: *frame, prefix });
        self.numbers.insert((segment, frame.offset), number);
        Some(number)
    }

    /// The number of the frame that begins there.
    pub(crate) fn number(&self, segment: Digest, offset: u64) -> Option<u32> {
        self.numbers.get(&(segment, offset)).copied()
    }

    /// With these frames, this table's blocks and some more.
    fn merge(&self, mut merged: Self, blocks: &[(u64, u32)]) -> Self {
        merged.hashes.reserve_exact(self.hashes.len() + blocks.len());
        merged.places.reserve_exact(self.hashes.len() + blocks.len());
        let mut old = self.hashes.iter().copied().zip(self.places.iter().copied()).peekable();
        let mut new = blocks.iter().copied().peekable();
        loop {
            // Of two blocks with one hash the older stays: layouts that are made now agree with those made before.
            let next = match (old.peek(), new.peek()) {
                (Some((left, _)), Some((right, _))) if left == right => {
                    new.next();
                    old.next()
                }
                (Some((left, _)), Some((right, _))) if left > right => new.next(),
                (Some(_), _) => old.next(),
                (None, _) => new.next(),
            };
            let Some((hash, place)) = next else { break };
            merged.hashes.push(hash);
            merged.places.push(place);
        }
        merged.starts = starts_of(&merged.hashes);
        merged
    }
}

/// The same piece with another number for its frame.
pub(crate) fn renumber(piece: Piece, number: impl FnOnce(u32) -> Option<u32>) -> Option<Piece> {
    let place = match piece.place {
        Place::Zero => Place::Zero,
        Place::Stored { frame, from } => Place::Stored { frame: number(frame)?, from },
    };
    Some(Piece { place, ..piece })
}

fn starts_of(hashes: &[u64]) -> Vec<u32> {
    let start = |bucket: u64| hashes.partition_point(|hash| hash >> 48 < bucket) as u32;
    (0..=1 << 16).map(start).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use goldsync_proto::block::Geometry;
    use goldsync_proto::limits::BLOCK;
    use goldsync_proto::pack::Codec;

    fn frame(segment: u32, offset: u64, blocks: u32) -> Frame {
        let raw_len = blocks * BLOCK as u32;
        Frame { segment, offset, wire_len: 9, raw_len, codec: Codec::Zstd, wire_hash: [0; 16], raw_hash: [0; 16] }
    }

    fn section(hashes: &[u64]) -> Vec<u8> {
        hashes.iter().flat_map(|hash| hash.to_le_bytes()).collect()
    }

    #[test]
    fn blocks_are_found_where_they_were_stored_first() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let stored = |frame, from| Place::Stored { frame, from };
        let geometry = Geometry::new(4 * BLOCK).unwrap();
        let one = Layout::new(geometry, vec![a], vec![frame(0, 5, 3)], [(3, stored(0, 0)), (1, stored(0, 1))]).unwrap();
        let hashes = section(&[70, 1 << 60, u64::MAX, 1 << 60]);
        let known = Known::default().with(&one, &[a], BlockHashes::new(&hashes));
        assert_eq!(known.len(), 3);
        assert_eq!(
            (known.find(70), known.find(1 << 60), known.find(u64::MAX)),
            (Some((0, 0)), Some((0, 1)), Some((0, 2)))
        );
        assert_eq!(known.find(71), None);

        let frames = vec![frame(0, 5, 3), frame(1, 8, 2)];
        let extents = [(1, stored(1, 1)), (1, Place::Zero), (2, stored(0, 0))];
        let two = Layout::new(geometry, vec![a, b], frames, extents).unwrap();
        let hashes = section(&[8, zero_hash(), 70, 1 << 60]);
        let known = known.with(&two, &[b], BlockHashes::new(&hashes));
        assert_eq!((known.find(8), known.find(70), known.len()), (Some((1, 1)), Some((0, 0)), 4));
        let found = known.frame(1).unwrap();
        assert_eq!((found.segment, found.frame.offset), (b, 8));
    }

    #[test]
    fn blocks_of_lost_frames_are_not_found_any_more() {
        let segment = Digest::of(b"a");
        let stored = |frame, from| Place::Stored { frame, from };
        let geometry = Geometry::new(4 * BLOCK).unwrap();
        let extents = [(2, stored(0, 0)), (2, stored(1, 0))];
        let layout = Layout::new(geometry, vec![segment], vec![frame(0, 5, 2), frame(0, 50, 2)], extents).unwrap();
        let hashes = section(&[1, 2 << 50, 3, 4 << 50]);
        let known = Known::default().with(&layout, &[segment], BlockHashes::new(&hashes));
        let left = known.without(|known| known.frame.offset == 5);
        let found = [1, 2 << 50, 3, 4 << 50].map(|hash| left.find(hash).is_some());
        assert_eq!(found, [false, false, true, true]);
        let again = left.with(&layout, &[segment], BlockHashes::new(&hashes));
        assert_eq!((again.len(), again.find(1)), (4, Some((0, 0))));
        assert_eq!(known.without(|_| true).len(), 0);
    }

    #[test]
    fn an_empty_table_finds_nothing() {
        assert_eq!(Known::default().find(0), None);
        assert_eq!(Known::default().find(u64::MAX), None);
    }
}
