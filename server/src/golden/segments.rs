//! From parts to segments, and from hashes to a layout.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use goldsync_proto::block::Geometry;
use goldsync_proto::digest::Digest;
use goldsync_proto::release::Section;
use goldsync_proto::signature::{BlockHashes, zero_hash};

use super::UploadError;
use super::known::{Known, KnownFrame};
use super::parts::{Part, wire};
use crate::store::files::blocking;
use crate::store::layout::{Frame, Layout, Place};
use crate::store::{Objects, StoreError};

/// Bytes unpacked in one segment: what is held in memory to name it, and the granule of later clean-up.
/// Small in tests, so that an image of a few MiB has several.
const SEGMENT_RAW_MAX: u64 = if cfg!(test) { 4 << 20 } else { 64 << 20 };

/// An image's own blocks, stored.
#[derive(Debug, Default)]
pub(crate) struct Own {
    /// The segments that were made.
    pub(crate) segments: Vec<Section>,
    /// The frame that each part became.
    frames: Vec<KnownFrame>,
}

/// Joins parts into segments and stores them. The same parts give the same segments.
pub(crate) async fn store_parts(objects: &Objects, folder: &Path, parts: &[Part]) -> Result<Own, StoreError> {
    let mut own = Own::default();
    for group in groups(parts) {
        let (folder, wanted) = (folder.to_owned(), group.to_vec());
        let wires = blocking(move || wanted.iter().map(|part| wire(&folder, part)).collect::<Result<Vec<_>, _>>());
        let segment = objects.put_parts(wires.await?).await?;
        let mut offset = 0;
        for part in group {
            let Part { codec, raw_len, wire_len, wire_hash, raw_hash, .. } = *part;
            let frame = Frame { segment: 0, offset, wire_len, raw_len, codec, wire_hash, raw_hash };
            own.frames.push(KnownFrame { segment: segment.name, frame });
            offset += u64::from(wire_len);
        }
        own.segments.push(segment);
    }
    Ok(own)
}

fn groups(mut parts: &[Part]) -> Vec<&[Part]> {
    let mut groups = Vec::new();
    while !parts.is_empty() {
        let mut raw = 0;
        let fits = parts.iter().take_while(|part| {
            raw += u64::from(part.raw_len);
            raw <= SEGMENT_RAW_MAX
        });
        let (group, rest) = parts.split_at(fits.count().max(1));
        groups.push(group);
        parts = rest;
    }
    groups
}

/// The blocks that were uploaded, by number and by hash. A place is the part's number << 8 and the block's in it.
#[derive(Debug, Default)]
pub(crate) struct Received {
    by_block: Vec<(u32, u32)>,
    by_hash: Vec<(u64, u32)>,
}

impl Received {
    pub(crate) fn of(parts: &[Part], hashes: BlockHashes<'_>) -> Self {
        let places = (0_u32..)
            .zip(parts)
            .flat_map(|(part, blocks)| (0_u32..).zip(blocks.blocks()).map(move |(at, block)| (block, part << 8 | at)));
        let mut by_block: Vec<(u32, u32)> = places.collect();
        by_block.sort_unstable();
        by_block.dedup_by_key(|(block, _)| *block);
        let hash_of = |(block, place): &(u32, u32)| hashes.get(*block).map(|hash| (hash, *place));
        let mut by_hash: Vec<(u64, u32)> = by_block.iter().filter_map(hash_of).collect();
        by_hash.sort_unstable();
        by_hash.dedup_by_key(|(hash, _)| *hash);
        Self { by_block, by_hash }
    }

    fn block(&self, block: u32) -> Option<u32> {
        let at = self.by_block.binary_search_by_key(&block, |(block, _)| *block).ok()?;
        self.by_block.get(at).map(|(_, place)| *place)
    }

    fn hash(&self, hash: u64) -> Option<u32> {
        let at = self.by_hash.binary_search_by_key(&hash, |(hash, _)| *hash).ok()?;
        self.by_hash.get(at).map(|(_, place)| *place)
    }
}

/// Which blocks are still to be uploaded, ascending. Of equal ones the first. With `every`, all that are not zeros: then no
/// hash is believed to tell two blocks apart.
pub(crate) fn missing(hashes: BlockHashes<'_>, known: &Known, received: &Received, every: bool) -> Vec<u32> {
    let zero = zero_hash();
    let asked = (0..).zip(hashes.iter()).filter(|(block, hash)| {
        let have = *hash == zero || (!every && (known.find(*hash).is_some() || received.hash(*hash).is_some()));
        !have && received.block(*block).is_none()
    });
    if every {
        return asked.map(|(block, _)| block).collect();
    }
    let mut asked: Vec<(u64, u32)> = asked.map(|(block, hash)| (hash, block)).collect();
    asked.sort_unstable();
    asked.dedup_by_key(|(hash, _)| *hash);
    let mut blocks: Vec<u32> = asked.into_iter().map(|(_, block)| block).collect();
    blocks.sort_unstable();
    blocks
}

/// Writes down where each block lies: among the image's own, as zeros, or in an older image's segment.
pub(crate) fn lay_out(
    geometry: Geometry,
    hashes: BlockHashes<'_>,
    own: &Own,
    received: &Received,
    known: &Arc<Known>,
) -> Result<Layout, UploadError> {
    let mut drawing = Drawing::new(own, known);
    let zero = zero_hash();
    for (block, hash) in (0..).zip(hashes.iter()) {
        let place = if let Some(place) = received.block(block) {
            drawing.place(Found::Own(place >> 8), place as u8)
        } else if hash == zero {
            Some(Place::Zero)
        } else if let Some(place) = received.hash(hash) {
            drawing.place(Found::Own(place >> 8), place as u8)
        } else {
            known.find(hash).and_then(|(frame, from)| drawing.place(Found::Known(frame), from))
        };
        drawing.push(place.ok_or(UploadError::Incomplete { blocks: 1, first: block })?);
    }
    let Drawing { segments, frames, extents, .. } = drawing;
    Layout::new(geometry, segments, frames, extents).map_err(UploadError::Layout)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Found {
    Own(u32),
    Known(u32),
}

/// A layout that is being drawn: only what it uses, in the order of first use.
struct Drawing<'a> {
    own: &'a Own,
    known: &'a Known,
    numbers: HashMap<Found, u32>,
    segment_numbers: HashMap<Digest, u32>,
    segments: Vec<Digest>,
    frames: Vec<Frame>,
    extents: Vec<(u32, Place)>,
}

impl<'a> Drawing<'a> {
    fn new(own: &'a Own, known: &'a Known) -> Self {
        Self {
            own,
            known,
            numbers: HashMap::new(),
            segment_numbers: HashMap::new(),
            segments: Vec::new(),
            frames: Vec::new(),
            extents: Vec::new(),
        }
    }

    fn place(&mut self, found: Found, from: u8) -> Option<Place> {
        if let Some(frame) = self.numbers.get(&found) {
            return Some(Place::Stored { frame: *frame, from });
        }
        let source = match found {
            Found::Own(part) => self.own.frames.get(part as usize)?,
            Found::Known(frame) => self.known.frame(frame)?,
        };
        let segment = *self.segment_numbers.entry(source.segment).or_insert_with(|| {
            self.segments.push(source.segment);
            self.segments.len() as u32 - 1
        });
        let frame = self.frames.len() as u32;
        self.frames.push(Frame { segment, ..source.frame });
        self.numbers.insert(found, frame);
        Some(Place::Stored { frame, from })
    }

    fn push(&mut self, place: Place) {
        if let Some((count, last)) = self.extents.last_mut() {
            let goes_on = match (*last, place) {
                (Place::Zero, Place::Zero) => true,
                (Place::Stored { frame, from }, Place::Stored { frame: same, from: next }) => {
                    frame == same && u32::from(from) + *count == u32::from(next)
                }
                _ => false,
            };
            if goes_on {
                *count += 1;
                return;
            }
        }
        self.extents.push((1, place));
    }
}
