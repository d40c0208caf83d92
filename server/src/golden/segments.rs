//! From parts to segments, and from hashes to a layout.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use goldsync_proto::block::Geometry;
use goldsync_proto::digest::Digest;
use goldsync_proto::release::Section;
use goldsync_proto::signature::{BlockHashes, zero_hash};

use super::UploadError;
use super::known::{Known, KnownFrame, renumber};
use super::parts::{Part, wire};
use crate::store::files::blocking;
use crate::store::layout::{Frame, Layout, Piece, Place};
use crate::store::{Objects, StoreError};

/// Bytes unpacked in one segment: what is held in memory to name it, and the granule of later clean-up.
/// Small in tests, so that an image of a few MiB has several.
const SEGMENT_RAW_MAX: u64 = if cfg!(test) { 4 << 20 } else { 64 << 20 };

/// An image's own blocks, stored.
#[derive(Debug, Default)]
pub(crate) struct Own {
    /// The segments that were made.
    pub(crate) segments: Vec<Section>,
    /// Those of them that were not there before.
    pub(crate) fresh: Vec<Digest>,
    /// The frame that each part became.
    frames: Vec<KnownFrame>,
}

/// Joins parts into segments and stores them. The same parts give the same segments.
pub(crate) async fn store_parts(objects: &Objects, folder: &Path, parts: &[Part]) -> Result<Own, StoreError> {
    let mut own = Own::default();
    for group in groups(parts) {
        let (folder, wanted) = (folder.to_owned(), group.to_vec());
        let wires = blocking(move || wanted.iter().map(|part| wire(&folder, part)).collect::<Result<Vec<_>, _>>());
        own.store(objects, group, wires.await?, &[]).await?;
    }
    Ok(own)
}

impl Own {
    /// Stores one segment of these frames, each after its prefix if there is one.
    async fn store(
        &mut self,
        objects: &Objects,
        group: &[Part],
        wires: Vec<Bytes>,
        prefixes: &[Arc<[Piece]>],
    ) -> Result<(), StoreError> {
        let (segment, fresh) = objects.put_new(wires).await?;
        let mut offset = 0;
        for (at, part) in group.iter().enumerate() {
            let Part { codec, raw_len, wire_len, wire_hash, raw_hash, .. } = *part;
            let frame = Frame { segment: 0, offset, wire_len, raw_len, codec, wire_hash, raw_hash };
            let prefix = prefixes.get(at).cloned().unwrap_or_default();
            self.frames.push(KnownFrame { segment: segment.name, frame, prefix });
            offset += u64::from(wire_len);
        }
        self.fresh.extend(fresh.then_some(segment.name));
        self.segments.push(segment);
        Ok(())
    }
}

/// Stores the packs of a plan from an older image as segments. `packs` are the plan's, each with its blocks as a part.
pub(crate) async fn store_packs(objects: &Objects, packs: Vec<(Part, Bytes, Arc<[Piece]>)>) -> Result<Own, StoreError> {
    let parts: Vec<Part> = packs.iter().map(|(part, _, _)| part.clone()).collect();
    let (mut own, mut packs) = (Own::default(), packs.into_iter());
    for group in groups(&parts) {
        let (wires, prefixes): (Vec<_>, Vec<_>) =
            packs.by_ref().take(group.len()).map(|(_, wire, prefix)| (wire, prefix)).unzip();
        own.store(objects, group, wires, &prefixes).await?;
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

    pub(crate) fn block(&self, block: u32) -> Option<u32> {
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
    let Drawing { segments, frames, prefixes, extents, .. } = drawing;
    Layout::with_prefixes(geometry, segments, frames, prefixes, extents).map_err(UploadError::Layout)
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
    prefixes: Vec<Vec<Piece>>,
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
            prefixes: Vec::new(),
            extents: Vec::new(),
        }
    }

    fn place(&mut self, found: Found, from: u8) -> Option<Place> {
        Some(Place::Stored { frame: self.number(found)?, from })
    }

    /// A frame's number in the layout; the frames of its prefix come before it.
    fn number(&mut self, found: Found) -> Option<u32> {
        if let Some(frame) = self.numbers.get(&found) {
            return Some(*frame);
        }
        let source = match found {
            Found::Own(part) => self.own.frames.get(part as usize)?,
            Found::Known(frame) => self.known.frame(frame)?,
        };
        // As deep as frames lie behind each other, and they were counted when they were stored.
        let pieces = source.prefix.iter().map(|piece| renumber(*piece, |frame| self.number(Found::Known(frame))));
        let prefix = pieces.collect::<Option<Vec<_>>>()?;
        let segment = *self.segment_numbers.entry(source.segment).or_insert_with(|| {
            self.segments.push(source.segment);
            self.segments.len() as u32 - 1
        });
        let frame = self.frames.len() as u32;
        self.frames.push(Frame { segment, ..source.frame });
        self.prefixes.push(prefix);
        self.numbers.insert(found, frame);
        Some(frame)
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
