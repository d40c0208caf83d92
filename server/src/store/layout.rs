//! The layout of an image: where in the store each of its blocks lies.
//!
//! ```text
//! image    |  extent: 300 blocks of frame 0 and 1  | zero | extent: 2 blocks of frame 7 |
//! frames   |  0: segment A, byte 0  |  1: segment A, byte 91,022  | ... |  7: segment B, byte 12 |
//! segments |  A  |  B  |
//! ```
//! A *segment* is an object: *frames*, one after the other, each a compressed run of blocks that was new when some image
//! was published. An *extent* is a run of the image's blocks that lie side by side in one frame, or a run of zero
//! blocks, which are never stored. Extents cover the image once, in order. A frame may be compressed with a *prefix*:
//! blocks of frames before it, some of which are there for that alone.
//!
//! | field        | form                                                                             |
//! |--------------|----------------------------------------------------------------------------------|
//! | magic        | `gsl2`; another layout of these bytes takes another number                       |
//! | blocks       | varint, 1 ..= 2^28                                                               |
//! | segments     | varint count, then 32 bytes each: the object's name                              |
//! | frames       | varint count, then each: varint segment, varint offset, varint wire_len, varint raw blocks (1 ..= 256), u8 codec, 16 bytes wire hash, 16 bytes raw hash |
//! | prefixes     | for each frame: varint count, then each: varint frame + 1 (0 for zeros), varint first block, varint blocks |
//! | extents      | varint count, then each: varint (blocks << 1) for zeros, or varint (blocks << 1 + 1), varint frame, varint first block in the frame |
//! | checksum     | 32 bytes: BLAKE3 of everything before                                            |
//!
//! [`Layout::decode`] is total, and a decoded layout keeps all of the above: who holds one need not ask again.

use std::collections::HashMap;

use goldsync_proto::block::{Geometry, GeometryError};
use goldsync_proto::codec::{CodecError, Reader, Writer};
use goldsync_proto::digest::{DIGEST_LEN, Digest};
use goldsync_proto::limits::{BLOCK, IMAGE_MAX, PACK_RAW_MAX, PACK_WIRE_MAX, PREFIX_MAX};
use goldsync_proto::pack::Codec;
use serde::{Deserialize, Serialize};

const MAGIC: [u8; 4] = *b"gsl2";
const BLOCKS_MAX: u64 = IMAGE_MAX / BLOCK;
/// Blocks in the largest frame; a block's place in its frame fits a byte.
pub const FRAME_BLOCKS_MAX: u64 = PACK_RAW_MAX as u64 / BLOCK;
/// No object is larger: the largest image in one segment.
const OFFSET_MAX: u64 = IMAGE_MAX;
const FRAME_BYTES_MIN: usize = 1 + 1 + 1 + 1 + 1 + 16 + 16;

/// A frame, whichever layout names it: its segment, and where it begins there.
pub(crate) type FramePlace = (Digest, u64);

/// A compressed run of blocks in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Which of the layout's segments.
    pub segment: u32,
    /// Where in it the frame's bytes begin.
    pub offset: u64,
    /// Bytes there.
    pub wire_len: u32,
    /// Bytes unpacked; whole blocks.
    pub raw_len: u32,
    /// How to unpack them.
    pub codec: Codec,
    /// `hash16` of the bytes there.
    pub wire_hash: [u8; 16],
    /// `hash16` of the bytes unpacked.
    pub raw_hash: [u8; 16],
}

impl Frame {
    /// Blocks in it.
    pub fn blocks(&self) -> u32 {
        self.raw_len / BLOCK as u32
    }
}

/// Some of a frame's blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BlockSet([u64; FRAME_BLOCKS_MAX as usize / 64]);

impl BlockSet {
    /// Adds a run; what lies beyond the largest frame is no block.
    pub(crate) fn add(&mut self, from: u8, count: u32) {
        let end = (u32::from(from) + count).min(FRAME_BLOCKS_MAX as u32);
        for block in u32::from(from)..end {
            if let Some(word) = self.0.get_mut(block as usize / 64) {
                *word |= 1 << (block % 64);
            }
        }
    }

    /// Adds another's.
    pub(crate) fn join(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(word, other)| *word |= other);
    }

    pub(crate) fn holds(&self, block: u32) -> bool {
        self.0.get(block as usize / 64).is_some_and(|word| word >> (block % 64) & 1 == 1)
    }

    pub(crate) fn holds_all(&self, other: &Self) -> bool {
        self.0.iter().zip(other.0).all(|(word, other)| other & !word == 0)
    }

    /// Blocks in it.
    pub(crate) fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The blocks in it, ascending.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = u32> {
        (0..FRAME_BLOCKS_MAX as u32).filter(|block| self.holds(*block))
    }

    /// How many of its blocks come before that one.
    pub(crate) fn rank(&self, block: u8) -> u32 {
        self.blocks().take_while(|before| *before < u32::from(block)).count() as u32
    }
}

/// Where the wanted blocks of a frame lie in another: side by side, from `first` on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Move {
    /// Which blocks came along.
    pub(crate) blocks: BlockSet,
    /// The object that they lie in now.
    pub(crate) segment: Digest,
    /// The frame there; its own `segment` number means nothing here.
    pub(crate) frame: Frame,
    /// The place of the first of them.
    pub(crate) first: u8,
}

impl Move {
    /// A frame that is copied as it is.
    pub(crate) fn whole(segment: Digest, frame: &Frame) -> Self {
        let mut blocks = BlockSet::default();
        blocks.add(0, frame.blocks());
        Self { blocks, segment, frame: *frame, first: 0 }
    }

    /// Whether the frame is what it was, somewhere else.
    fn is_same(&self, old: &Frame) -> bool {
        self.first == 0 && self.blocks.len() == old.blocks() && self.frame.raw_hash == old.raw_hash
    }
}

/// Frames that lie behind each other by their prefixes, at most.
pub(crate) const LEVELS_MAX: u8 = 64;

/// Pieces of one prefix: a block each, at worst.
const PIECES_MAX: usize = PREFIX_MAX / BLOCK as usize;

/// A part of a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where its blocks lie.
    pub place: Place,
    /// How many.
    pub count: u32,
}

/// Where a run of blocks lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: they are zeros.
    Zero,
    /// In a frame.
    Stored {
        /// Which of the layout's frames.
        frame: u32,
        /// The first block's place in it.
        from: u8,
    },
}

/// A run of blocks that lie side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first block, in the image.
    pub first: u32,
    /// Blocks.
    pub count: u32,
    /// Where they lie.
    pub place: Place,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    geometry: Geometry,
    segments: Vec<Digest>,
    frames: Vec<Frame>,
    /// For each frame; empty for most.
    prefixes: Vec<Vec<Piece>>,
    /// For each frame, how many lie behind each other below it.
    levels: Vec<u8>,
    extents: Vec<Extent>,
}

/// Why bytes are not a layout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// A field does not read.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// Other bytes, or a newer form.
    #[error("it does not begin with `gsl2`: not a layout, or one of a newer server")]
    Magic,
    /// The bytes changed since they were written.
    #[error("its checksum does not fit its bytes")]
    Checksum,
    /// The size is not an image's.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// A frame is not possible.
    #[error("frame {frame} is not possible: {wire_len} bytes at {offset} of segment {segment}, {raw_len} unpacked")]
    Frame {
        /// Which.
        frame: usize,
        /// Its segment.
        segment: u32,
        /// Its offset.
        offset: u64,
        /// Its bytes.
        wire_len: u32,
        /// Its bytes unpacked.
        raw_len: u32,
    },
    /// A prefix is not made of frames before it, or of too many.
    #[error("the prefix of frame {frame} does not lie inside the frames before it, or too many lie behind each other")]
    Prefix {
        /// Whose.
        frame: usize,
    },
    /// An extent points outside its frame.
    #[error("the extent of {count} blocks from block {first} is empty or lies outside frame {frame}")]
    Extent {
        /// Its first block.
        first: u32,
        /// Its blocks.
        count: u32,
        /// Its frame.
        frame: u32,
    },
    /// The extents do not cover the image.
    #[error("the extents cover {covered} blocks of {blocks}")]
    Cover {
        /// Blocks covered.
        covered: u64,
        /// Blocks in the image.
        blocks: u32,
    },
}

impl Layout {
    /// Joins a layout's parts, `extents` as `(count, place)`.
    pub fn new(
        geometry: Geometry,
        segments: Vec<Digest>,
        frames: Vec<Frame>,
        extents: impl IntoIterator<Item = (u32, Place)>,
    ) -> Result<Self, LayoutError> {
        let prefixes = vec![Vec::new(); frames.len()];
        Self::with_prefixes(geometry, segments, frames, prefixes, extents)
    }

    /// The same, with a prefix for each frame.
    pub fn with_prefixes(
        geometry: Geometry,
        segments: Vec<Digest>,
        frames: Vec<Frame>,
        prefixes: Vec<Vec<Piece>>,
        extents: impl IntoIterator<Item = (u32, Place)>,
    ) -> Result<Self, LayoutError> {
        for (index, frame) in frames.iter().enumerate() {
            check_frame(index, frame, segments.len())?;
        }
        let extents = place_extents(geometry, &frames, extents)?;
        let levels = levels(&frames, &prefixes)?;
        Ok(Self { geometry, segments, frames, prefixes, levels, extents })
    }

    /// The image's size.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The objects that hold its blocks.
    pub fn segments(&self) -> &[Digest] {
        &self.segments
    }

    /// The frames that hold its blocks.
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// What must be unpacked before a frame.
    pub fn prefix(&self, frame: u32) -> &[Piece] {
        self.prefixes.get(frame as usize).map_or(&[], Vec::as_slice)
    }

    /// How many frames lie behind each other below a frame, zeros counted as one: 0 is a frame without a prefix.
    pub(crate) fn level(&self, frame: u32) -> u8 {
        self.levels.get(frame as usize).copied().unwrap_or(0)
    }

    /// Where its blocks lie, in order.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// The object that a frame of this layout lies in.
    pub fn segment_of(&self, frame: &Frame) -> Option<Digest> {
        self.segments.get(frame.segment as usize).copied()
    }

    /// Where a frame of this layout lies.
    pub(crate) fn place_of(&self, frame: &Frame) -> Option<FramePlace> {
        Some((self.segment_of(frame)?, frame.offset))
    }

    /// For each frame, the blocks of it that the image is made of.
    pub(crate) fn used(&self) -> Vec<BlockSet> {
        let mut used = vec![BlockSet::default(); self.frames.len()];
        self.extents.iter().for_each(|extent| mark(&mut used, extent.place, extent.count));
        used
    }

    /// The same, and the blocks that needed frames come after.
    pub(crate) fn needed(&self) -> Vec<BlockSet> {
        let mut needed = self.used();
        for (at, prefix) in self.prefixes.iter().enumerate().rev() {
            if needed.get(at).is_some_and(|blocks| !blocks.is_empty()) {
                prefix.iter().for_each(|piece| mark(&mut needed, piece.place, piece.count));
            }
        }
        needed
    }

    /// The same image with some frames elsewhere, as far as what it needs of them came along.
    pub(crate) fn moved(&self, moves: &HashMap<FramePlace, Move>) -> Result<Self, LayoutError> {
        let mut moved = Moved::default();
        for (at, needed) in self.needed().into_iter().enumerate() {
            moved.take(self, at, needed, moves).ok_or(LayoutError::Prefix { frame: at })?;
        }
        let extents = self.extents.iter().map(|extent| {
            let Extent { first, count, place } = *extent;
            let place = moved.place(place).ok_or(LayoutError::Extent { first, count, frame: 0 })?;
            Ok((count, place))
        });
        let extents: Vec<_> = extents.collect::<Result<_, LayoutError>>()?;
        let Moved { segments, frames, prefixes, .. } = moved;
        Self::with_prefixes(self.geometry, segments, frames, prefixes, extents)
    }

    /// The parts of extents that cover `count` blocks from `first`, in order.
    pub fn cover(&self, first: u32, count: u32) -> impl Iterator<Item = Extent> {
        let end = first.saturating_add(count);
        let start = self.extents.partition_point(|extent| extent.first + extent.count <= first);
        let rest = self.extents.get(start..).unwrap_or_default();
        rest.iter().take_while(move |extent| extent.first < end).map(move |extent| extent.within(first, end))
    }

    /// About how much memory it takes.
    pub fn weight(&self) -> u64 {
        (self.segments.len() * DIGEST_LEN
            + self.frames.len() * size_of::<Frame>()
            + self.prefixes.iter().map(|prefix| (prefix.len() + 3) * size_of::<Piece>()).sum::<usize>()
            + self.extents.len() * size_of::<Extent>()) as u64
    }

    /// As an object's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.bytes(&MAGIC).varint(u64::from(self.geometry.blocks()));
        writer.varint(self.segments.len() as u64);
        for segment in &self.segments {
            writer.bytes(segment.as_bytes());
        }
        writer.varint(self.frames.len() as u64);
        for frame in &self.frames {
            writer.varint(frame.segment.into()).varint(frame.offset).varint(frame.wire_len.into());
            writer.varint(frame.blocks().into()).u8(frame.codec as u8);
            writer.bytes(&frame.wire_hash).bytes(&frame.raw_hash);
        }
        for prefix in &self.prefixes {
            writer.varint(prefix.len() as u64);
            for piece in prefix {
                let (frame, from) = match piece.place {
                    Place::Zero => (0, 0),
                    Place::Stored { frame, from } => (u64::from(frame) + 1, from),
                };
                writer.varint(frame).varint(from.into()).varint(piece.count.into());
            }
        }
        writer.varint(self.extents.len() as u64);
        for extent in &self.extents {
            let count = u64::from(extent.count) << 1;
            match extent.place {
                Place::Zero => writer.varint(count),
                Place::Stored { frame, from } => writer.varint(count | 1).varint(frame.into()).varint(from.into()),
            };
        }
        let mut bytes = writer.finish();
        let checksum = Digest::of(&bytes);
        bytes.extend_from_slice(checksum.as_bytes());
        bytes
    }

    /// Reads an object's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, LayoutError> {
        let mut reader = Reader::new(bytes);
        if reader.array("magic")? != MAGIC {
            return Err(LayoutError::Magic);
        }
        let needed = MAGIC.len() + DIGEST_LEN;
        let (body, checksum) = bytes
            .split_last_chunk::<DIGEST_LEN>()
            .filter(|(body, _)| body.len() >= MAGIC.len())
            .ok_or(CodecError::Truncated { field: "checksum", needed, had: bytes.len() })?;
        if Digest::of(body).as_bytes() != checksum {
            return Err(LayoutError::Checksum);
        }
        let mut reader = Reader::new(body);
        reader.array::<4>("magic")?;
        let geometry = Geometry::new(reader.varint("blocks", BLOCKS_MAX)? * BLOCK)?;
        let segments = read_segments(&mut reader)?;
        let frames = read_frames(&mut reader)?;
        let prefixes = (0..frames.len()).map(|_| read_prefix(&mut reader)).collect::<Result<_, _>>()?;
        let extents = read_extents(&mut reader)?;
        reader.end("layout")?;
        Self::with_prefixes(geometry, segments, frames, prefixes, extents)
    }
}

fn mark(blocks: &mut [BlockSet], place: Place, count: u32) {
    if let Place::Stored { frame, from } = place
        && let Some(blocks) = blocks.get_mut(frame as usize)
    {
        blocks.add(from, count);
    }
}

/// A layout that is being drawn again, frame by frame.
#[derive(Default)]
struct Moved {
    segments: Vec<Digest>,
    segment_numbers: HashMap<Digest, u32>,
    frames: Vec<Frame>,
    prefixes: Vec<Vec<Piece>>,
    numbers: HashMap<FramePlace, u32>,
    /// For each old frame: its new number, and which of its blocks lie there from where on. `None`: it is not needed.
    places: Vec<Option<(u32, BlockSet, u8)>>,
}

impl Moved {
    /// Takes over one frame; those before it were taken.
    fn take(&mut self, old: &Layout, at: usize, needed: BlockSet, moves: &HashMap<FramePlace, Move>) -> Option<()> {
        let (frame, prefix) = (old.frames.get(at)?, old.prefixes.get(at)?);
        if needed.is_empty() {
            self.places.push(None);
            return Some(());
        }
        let from = old.place_of(frame)?;
        let stays = Move::whole(from.0, frame);
        let to = moves.get(&from).filter(|to| to.blocks.holds_all(&needed)).unwrap_or(&stays);
        let place = (to.segment, to.frame.offset);
        let number = match self.numbers.get(&place) {
            Some(number) => *number,
            None => {
                // What was packed anew comes after nothing.
                let prefix = if to.is_same(frame) { prefix.as_slice() } else { &[] };
                let piece = |piece: &Piece| Some(Piece { place: self.place(piece.place)?, ..*piece });
                let prefix = prefix.iter().map(piece).collect::<Option<_>>()?;
                self.add(place, to.frame, prefix)
            }
        };
        self.places.push(Some((number, to.blocks, to.first)));
        Some(())
    }

    fn add(&mut self, place: FramePlace, frame: Frame, prefix: Vec<Piece>) -> u32 {
        let segment = *self.segment_numbers.entry(place.0).or_insert_with(|| {
            self.segments.push(place.0);
            self.segments.len() as u32 - 1
        });
        let number = self.frames.len() as u32;
        self.frames.push(Frame { segment, ..frame });
        self.prefixes.push(prefix);
        self.numbers.insert(place, number);
        number
    }

    /// A run of needed blocks stays one: all that lies between its ends came along.
    fn place(&self, old: Place) -> Option<Place> {
        let Place::Stored { frame, from } = old else { return Some(old) };
        let (frame, blocks, first) = self.places.get(frame as usize)?.as_ref()?;
        Some(Place::Stored { frame: *frame, from: (u32::from(*first) + blocks.rank(from)) as u8 })
    }
}

impl Extent {
    /// The part that lies in `first..end`; at least one block must.
    fn within(&self, first: u32, end: u32) -> Self {
        let start = self.first.max(first);
        let skipped = start - self.first;
        let count = (self.first + self.count).min(end) - start;
        let place = match self.place {
            Place::Zero => Place::Zero,
            // An extent never leaves its frame, and a frame's blocks are numbered by a byte.
            Place::Stored { frame, from } => Place::Stored { frame, from: from + skipped as u8 },
        };
        Self { first: start, count, place }
    }
}

fn check_frame(index: usize, frame: &Frame, segments: usize) -> Result<(), LayoutError> {
    let Frame { segment, offset, wire_len, raw_len, .. } = *frame;
    let lengths = (1..=raw_len.min(PACK_WIRE_MAX as u32)).contains(&wire_len)
        && (1..=PACK_RAW_MAX as u32).contains(&raw_len)
        && u64::from(raw_len).is_multiple_of(BLOCK);
    if lengths && (segment as usize) < segments && offset <= OFFSET_MAX {
        return Ok(());
    }
    Err(LayoutError::Frame { frame: index, segment, offset, wire_len, raw_len })
}

/// Holds each prefix against the frames before its own, and counts how many lie behind each other.
fn levels(frames: &[Frame], prefixes: &[Vec<Piece>]) -> Result<Vec<u8>, LayoutError> {
    let mut levels: Vec<u8> = Vec::with_capacity(frames.len());
    for (index, prefix) in prefixes.iter().enumerate() {
        let refuse = || LayoutError::Prefix { frame: index };
        // Zeros lie nowhere, but a frame behind them cannot be unpacked without them either.
        let (mut blocks, mut level) = (0_u64, u8::from(!prefix.is_empty()));
        for piece in prefix {
            blocks += u64::from(piece.count);
            let Place::Stored { frame, from } = piece.place else { continue };
            let below = levels.get(frame as usize).copied().ok_or_else(refuse)?;
            let have = frames.get(frame as usize).map_or(0, Frame::blocks);
            if u64::from(from) + u64::from(piece.count) > u64::from(have) {
                return Err(refuse());
            }
            level = level.max(below + 1);
        }
        if blocks * BLOCK > PREFIX_MAX as u64 || level > LEVELS_MAX {
            return Err(refuse());
        }
        levels.push(level);
    }
    Ok(levels)
}

fn place_extents(
    geometry: Geometry,
    frames: &[Frame],
    extents: impl IntoIterator<Item = (u32, Place)>,
) -> Result<Vec<Extent>, LayoutError> {
    let (mut placed, mut covered) = (Vec::new(), 0_u64);
    let blocks = geometry.blocks();
    for (count, place) in extents {
        let first = covered as u32;
        if let Place::Stored { frame, from } = place {
            let have = frames.get(frame as usize).map_or(0, Frame::blocks);
            if u64::from(from) + u64::from(count) > u64::from(have) {
                return Err(LayoutError::Extent { first, count, frame });
            }
        }
        covered += u64::from(count);
        if count == 0 || covered > u64::from(blocks) {
            return Err(LayoutError::Cover { covered, blocks });
        }
        placed.push(Extent { first, count, place });
    }
    if covered == u64::from(blocks) { Ok(placed) } else { Err(LayoutError::Cover { covered, blocks }) }
}

fn read_segments(reader: &mut Reader<'_>) -> Result<Vec<Digest>, CodecError> {
    let count = reader.count("segments", BLOCKS_MAX as usize, DIGEST_LEN)?;
    (0..count).map(|_| reader.array("segment").map(Digest)).collect()
}

fn read_frames(reader: &mut Reader<'_>) -> Result<Vec<Frame>, CodecError> {
    let count = reader.count("frames", BLOCKS_MAX as usize, FRAME_BYTES_MIN)?;
    let mut frames = Vec::with_capacity(count);
    for _ in 0..count {
        frames.push(Frame {
            segment: reader.varint("segment", BLOCKS_MAX)? as u32,
            offset: reader.varint("offset", OFFSET_MAX)?,
            wire_len: reader.varint("wire_len", PACK_WIRE_MAX as u64)? as u32,
            raw_len: (reader.varint("raw blocks", FRAME_BLOCKS_MAX)? * BLOCK) as u32,
            codec: Codec::from_number(reader.u8("codec")?)?,
            wire_hash: reader.array("wire hash")?,
            raw_hash: reader.array("raw hash")?,
        });
    }
    Ok(frames)
}

fn read_prefix(reader: &mut Reader<'_>) -> Result<Vec<Piece>, CodecError> {
    let count = reader.count("prefix", PIECES_MAX, 3)?;
    let mut prefix = Vec::with_capacity(count);
    for _ in 0..count {
        let frame = reader.varint("prefix's frame", BLOCKS_MAX)?;
        let from = reader.varint("prefix's first block", FRAME_BLOCKS_MAX - 1)? as u8;
        let count = reader.varint("prefix's blocks", PIECES_MAX as u64)? as u32;
        let place = match frame.checked_sub(1) {
            Some(frame) => Place::Stored { frame: frame as u32, from },
            None if from == 0 => Place::Zero,
            None => return Err(CodecError::Unknown { field: "prefix's first block", got: from.into() }),
        };
        prefix.push(Piece { place, count });
    }
    Ok(prefix)
}

fn read_extents(reader: &mut Reader<'_>) -> Result<Vec<(u32, Place)>, CodecError> {
    let count = reader.count("extents", BLOCKS_MAX as usize, 1)?;
    let mut extents = Vec::with_capacity(count);
    for _ in 0..count {
        let head = reader.varint("extent", BLOCKS_MAX << 1 | 1)?;
        let place = if head & 1 == 0 {
            Place::Zero
        } else {
            let frame = reader.varint("frame", BLOCKS_MAX)? as u32;
            Place::Stored { frame, from: reader.varint("block in frame", FRAME_BLOCKS_MAX - 1)? as u8 }
        };
        extents.push(((head >> 1) as u32, place));
    }
    Ok(extents)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(segment: u32, offset: u64, blocks: u32) -> Frame {
        let raw_len = blocks * BLOCK as u32;
        Frame { segment, offset, wire_len: 100, raw_len, codec: Codec::Zstd, wire_hash: [1; 16], raw_hash: [2; 16] }
    }

    fn stored(frame: u32, from: u8) -> Place {
        Place::Stored { frame, from }
    }

    fn example() -> Layout {
        let geometry = Geometry::new(300 * BLOCK).unwrap();
        let segments = vec![Digest::of(b"a"), Digest::of(b"b")];
        let frames = vec![frame(0, 0, 256), frame(1, 77, 4)];
        let before = vec![Piece { place: Place::Zero, count: 3 }, Piece { place: stored(0, 200), count: 56 }];
        let extents = [(256, stored(0, 0)), (40, Place::Zero), (3, stored(1, 1)), (1, stored(1, 0))];
        Layout::with_prefixes(geometry, segments, frames, vec![vec![], before], extents).unwrap()
    }

    #[test]
    fn a_prefix_of_zeros_is_a_prefix() {
        let prefixes = vec![vec![], vec![Piece { place: Place::Zero, count: 4 }]];
        let levels = levels(&example().frames, &prefixes).unwrap();
        assert_eq!(levels, [0, 1]);
    }

    #[test]
    fn a_prefix_lies_in_the_frames_before_its_own() {
        assert_eq!((example().level(0), example().level(1), example().prefix(1).len()), (0, 1, 2));
        let geometry = Geometry::new(10 * BLOCK).unwrap();
        let make = |prefixes: Vec<Vec<Piece>>| {
            let frames = vec![frame(0, 0, 10); prefixes.len()];
            Layout::with_prefixes(geometry, vec![Digest::of(b"a")], frames, prefixes, [(10, Place::Zero)])
        };
        let piece = |frame, from, count| Piece { place: stored(frame, from), count };
        let chain =
            |length: u32| (0..length).map(|at| if at == 0 { vec![] } else { vec![piece(at - 1, 0, 1)] }).collect();
        assert!(make(chain(u32::from(LEVELS_MAX) + 1)).is_ok());
        for bad in [
            vec![vec![piece(0, 0, 1)]],
            vec![vec![piece(1, 0, 1)], vec![]],
            vec![vec![], vec![piece(0, 5, 6)]],
            vec![vec![], vec![piece(0, 0, 10); 103]],
            vec![vec![Piece { place: Place::Zero, count: 1025 }]],
            chain(u32::from(LEVELS_MAX) + 2),
        ] {
            assert!(matches!(make(bad), Err(LayoutError::Prefix { .. })));
        }
    }

    /// Goal: what is needed is what extents name and what needed frames come after, and nothing else.
    #[test]
    fn a_prefix_is_needed_for_as_long_as_its_frame_is() {
        let run = |from, count| {
            let mut blocks = BlockSet::default();
            blocks.add(from, count);
            blocks
        };
        let mut first = run(0, 256);
        assert_eq!(example().needed(), [first, run(0, 4)]);
        let geometry = Geometry::new(4 * BLOCK).unwrap();
        let piece = |frame, from, count| vec![Piece { place: stored(frame, from), count }];
        let make = |extents: Vec<(u32, Place)>| {
            let frames = vec![frame(0, 0, 256), frame(0, 500, 256), frame(0, 900, 256)];
            let prefixes = vec![vec![], piece(0, 7, 3), piece(1, 60, 70)];
            Layout::with_prefixes(geometry, vec![Digest::of(b"a")], frames, prefixes, extents).unwrap()
        };
        let deep = make(vec![(4, stored(2, 252))]);
        assert_eq!(deep.needed(), [run(7, 3), run(60, 70), run(252, 4)]);
        assert_eq!(deep.used()[..2], [BlockSet::default(); 2]);
        let flat = make(vec![(3, stored(0, 100)), (1, stored(0, 9))]);
        first = run(100, 3);
        first.add(9, 1);
        assert_eq!(flat.needed(), [first, BlockSet::default(), BlockSet::default()]);
        assert_eq!((first.len(), first.rank(9), first.rank(100), first.rank(102)), (4, 0, 1, 3));
    }

    /// Goal: an image that lies elsewhere is the same image, of no more than it needs.
    #[test]
    fn frames_move_as_they_are_or_join_others() {
        let geometry = Geometry::new(9 * BLOCK).unwrap();
        let [a, b, c] = [b"a", b"b", b"c"].map(|name| Digest::of(name));
        let frames = vec![frame(0, 0, 256), frame(0, 100, 256), frame(1, 0, 2), frame(1, 100, 2)];
        let after = vec![Piece { place: stored(1, 70), count: 3 }, Piece { place: Place::Zero, count: 1 }];
        let prefixes = vec![vec![], vec![], after, vec![]];
        let extents = [(4, stored(0, 9)), (1, Place::Zero), (2, stored(1, 200)), (2, stored(2, 0))];
        let layout = Layout::with_prefixes(geometry, vec![a, b], frames, prefixes, extents).unwrap();
        let needed = layout.needed();
        let joined = frame(9, 5, 30);
        let to = |at: usize, first| Move { blocks: needed[at], segment: c, frame: joined, first };
        let mut moves = HashMap::from([((a, 0), to(0, 3)), ((a, 100), to(1, 7))]);
        let moved = layout.moved(&moves).unwrap();
        assert_eq!(moved.segments(), [c, b], "what nothing is needed of is not named");
        assert_eq!(moved.frames(), [Frame { segment: 0, ..joined }, Frame { segment: 1, ..layout.frames()[2] }]);
        let places: Vec<_> = moved.extents().iter().map(|extent| (extent.count, extent.place)).collect();
        assert_eq!(places, [(4, stored(0, 3)), (1, Place::Zero), (2, stored(0, 10)), (2, stored(1, 0))]);
        assert_eq!(moved.prefix(1)[0], Piece { place: stored(0, 7), count: 3 });
        assert_eq!((moved.prefix(1)[1].place, moved.level(1)), (Place::Zero, 1));
        // A frame that moves as it is still comes after what it came after.
        moves.insert((b, 0), Move::whole(c, &frame(0, 900, 2)));
        let again = layout.moved(&moves).unwrap();
        assert_eq!((again.segments(), again.prefix(1)), (&[c][..], moved.prefix(1)));
        // What did not come along is found where it was.
        moves.get_mut(&(a, 0)).unwrap().blocks = BlockSet::default();
        let partly = layout.moved(&moves).unwrap();
        assert_eq!(partly.segments(), [a, c]);
        assert_eq!(partly.extents()[0].place, stored(0, 9));
    }

    #[test]
    fn a_layout_reads_back() {
        let layout = example();
        assert_eq!(Layout::decode(&layout.encode()), Ok(layout));
    }

    #[test]
    fn any_run_is_covered_once_and_in_order() {
        let layout = example();
        let parts: Vec<_> = layout.cover(250, 48).map(|part| (part.first, part.count, part.place)).collect();
        assert_eq!(parts, [(250, 6, stored(0, 250)), (256, 40, Place::Zero), (296, 2, stored(1, 1))]);
        let parts: Vec<_> = layout.cover(298, 2).map(|part| (part.first, part.count, part.place)).collect();
        assert_eq!(parts, [(298, 1, stored(1, 3)), (299, 1, stored(1, 0))]);
        assert_eq!(layout.cover(300, 5).count(), 0);
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let geometry = Geometry::new(10 * BLOCK).unwrap();
        let make = |frames: Vec<Frame>, extents: Vec<(u32, Place)>| {
            Layout::new(geometry, vec![Digest::of(b"a")], frames, extents).unwrap_err()
        };
        let zeros = vec![(10, Place::Zero)];
        assert!(matches!(make(vec![frame(1, 0, 1)], zeros.clone()), LayoutError::Frame { segment: 1, .. }));
        assert!(matches!(make(vec![frame(0, 0, 257)], zeros.clone()), LayoutError::Frame { .. }));
        assert!(matches!(make(vec![frame(0, OFFSET_MAX + 1, 1)], zeros.clone()), LayoutError::Frame { .. }));
        assert!(matches!(
            make(vec![Frame { wire_len: 0, ..frame(0, 0, 1) }], zeros.clone()),
            LayoutError::Frame { .. }
        ));
        assert!(matches!(make(vec![Frame { wire_len: 4097, ..frame(0, 0, 1) }], zeros), LayoutError::Frame { .. }));
        assert!(matches!(make(vec![frame(0, 0, 4)], vec![(4, stored(0, 1))]), LayoutError::Extent { count: 4, .. }));
        assert!(matches!(make(vec![], vec![(1, stored(0, 0))]), LayoutError::Extent { .. }));
        let cover = |covered| LayoutError::Cover { covered, blocks: 10 };
        assert_eq!(make(vec![], vec![(9, Place::Zero)]), cover(9));
        assert_eq!(make(vec![], vec![(9, Place::Zero), (2, Place::Zero)]), cover(11));
        assert_eq!(make(vec![], vec![(10, Place::Zero), (0, Place::Zero)]), cover(10));
        assert_eq!(make(vec![], vec![(u32::MAX, Place::Zero)]), cover(u64::from(u32::MAX)));
    }

    #[test]
    fn damage_is_told_apart() {
        let bytes = example().encode();
        assert_eq!(Layout::decode(b"gsl1 and so on, long enough to hold a checksum"), Err(LayoutError::Magic));
        assert!(matches!(Layout::decode(&bytes[..20]), Err(LayoutError::Codec(CodecError::Truncated { .. }))));
        for index in [4, 40, bytes.len() - 1] {
            let mut broken = bytes.clone();
            broken[index] ^= 1;
            assert_eq!(Layout::decode(&broken), Err(LayoutError::Checksum), "byte {index}");
        }
    }

    /// Bytes with a true checksum, so that what lies behind it is reached.
    fn sealed(mut body: Vec<u8>) -> Vec<u8> {
        let checksum = Digest::of(&body);
        body.extend_from_slice(checksum.as_bytes());
        body
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_a_layout_or_an_error(rest: Vec<u8>) {
            let _ = Layout::decode(&rest);
            let bytes = sealed([&MAGIC[..], &rest].concat());
            if let Ok(layout) = Layout::decode(&bytes) {
                prop_assert_eq!(layout.encode(), bytes);
            }
        }

        #[test]
        fn a_changed_field_never_leaves_the_bounds(index in 0_usize..200, value: u8) {
            let mut body = example().encode();
            body.truncate(body.len() - DIGEST_LEN);
            let index = index % body.len();
            body[index] = value;
            let bytes = sealed(body);
            if let Ok(layout) = Layout::decode(&bytes) {
                let blocks: u64 = layout.cover(0, u32::MAX).map(|extent| u64::from(extent.count)).sum();
                prop_assert_eq!(blocks, u64::from(layout.geometry().blocks()));
                prop_assert_eq!(layout.encode(), bytes);
            }
        }
    }
}
