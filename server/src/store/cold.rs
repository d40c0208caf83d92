//! The cold plan: how a node that holds nothing gets an image.
//!
//! The image's blocks lie compressed in segments already, so the plan's packs point straight at the segments' frames and a
//! cold fetch costs the server no compression. An image that is old segments' survivor uses only some blocks of many
//! frames: where that would make nodes fetch more than [`WASTE_PERCENT`] for nothing, the wanted blocks of the worst
//! frames are packed anew, once, into objects of their own. So are blocks that are stored after a prefix, and those that
//! share a frame with blocks that the node derives: hashes would be most of what it fetched.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use goldsync_proto::block::{Run, runs_of};
use goldsync_proto::digest::{Digest, ImageId};
use goldsync_proto::limits::{BLOCK, PLAN_PACKS_MAX, PLAN_STEPS_MAX};
use goldsync_proto::pack::{compress, hash16};
use goldsync_proto::plan::{Pack, Plan, PlanError, Step};
use goldsync_proto::signature::{BlockHashes, block_hash};
use goldsync_proto::verity::runs_derived;

use super::files::blocking;
use super::layout::{BlockSet, Extent, FRAME_BLOCKS_MAX, Layout, Place};
use super::{Store, StoreError};

/// Bytes fetched for nothing, of all bytes fetched, above which frames are packed anew.
const WASTE_PERCENT: u64 = 30;

/// A frame is packed anew if less than this much of it is wanted.
const WORTH_PERCENT: u32 = 70;

/// zstd's level for what is packed anew: made once, fetched by many.
const LEVEL: i32 = 9;

/// Bytes unpacked in one object of packs made anew.
const OBJECT_RAW_MAX: usize = 64 << 20;

const FULL: u32 = FRAME_BLOCKS_MAX as u32;
const NOWHERE: u32 = u32::MAX;

/// Makes an image's cold plan, and stores what it needs besides the segments.
pub(crate) async fn plan(store: &Arc<Store>, image: ImageId) -> Result<Plan, StoreError> {
    let layout = store.layout(image).await?;
    let derived = store.known(image)?.derived.clone();
    let draft = {
        let (layout, runs) = (layout.clone(), runs_derived(&derived));
        blocking(move || Draft::of(&layout, &runs)).await?
    };
    let made = if draft.anew.is_empty() { Ok(Vec::new()) } else { make_anew(store, image, &layout, &draft.anew).await };
    if made.is_err() {
        // The next attempt begins with a file that is proven anew.
        store.forget_whole(image)?;
    }
    let plan = draft.join(image, &layout, &made?);
    let trees = derived.into_iter().map(|derived| derived.tree).collect();
    Ok(Plan { trees, ..plan }.with_trees_in_use())
}

/// Where a pack of the plan comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// A frame of the layout.
    Frame(u32),
    /// A pack made anew: index into [`Draft::anew`].
    Anew(u32),
}

/// A plan whose packs are settled but for those that must be made.
#[derive(Debug, Default)]
struct Draft {
    steps: Vec<Step>,
    packs: Vec<Origin>,
    /// For each pack to be made: the target's blocks that go into it, ascending.
    anew: Vec<Vec<u32>>,
}

impl Draft {
    /// Gives up as soon as no node could take the plan: an image that is too large for one is fetched by its blocks.
    fn of(layout: &Layout, derived: &[Run]) -> Result<Self, StoreError> {
        let scattered = scattered_frames(layout, derived);
        let mut gathering = Gathering {
            draft: Self::default(),
            by_frame: vec![NOWHERE; layout.frames().len()],
            rows: rows_of(&scattered),
            places: Vec::new(),
            anew_pack: NOWHERE,
        };
        let rows = scattered.iter().filter(|scattered| **scattered).count();
        gathering.places = vec![(NOWHERE, 0); rows * FULL as usize];
        for piece in pieces(layout, derived) {
            match piece {
                Piece::Fetched(extent) => gathering.take(&extent),
                Piece::Derived(extent) => gathering.push(Step::Derive { count: extent.count }),
            }
            gathering.draft.fits()?;
        }
        Ok(gathering.draft)
    }

    fn fits(&self) -> Result<(), PlanError> {
        let count = |what, got, max| if got > max { Err(PlanError::TooLarge { what, got, max }) } else { Ok(()) };
        count("steps", self.steps.len(), PLAN_STEPS_MAX)?;
        count("packs", self.packs.len(), PLAN_PACKS_MAX)
    }

    fn join(self, image: ImageId, layout: &Layout, made: &[(Digest, Pack)]) -> Plan {
        let mut plan = Plan {
            base: None,
            target: image,
            geometry: layout.geometry(),
            steps: self.steps,
            objects: Vec::new(),
            packs: Vec::with_capacity(self.packs.len()),
            trees: Vec::new(),
        };
        let mut numbers = std::collections::HashMap::new();
        for origin in self.packs {
            let found = match origin {
                Origin::Frame(frame) => pack_of_frame(layout, frame),
                Origin::Anew(index) => made.get(index as usize).cloned(),
            };
            let Some((object, pack)) = found else { continue };
            let number = *numbers.entry(object).or_insert_with(|| {
                plan.objects.push(object);
                plan.objects.len() as u32 - 1
            });
            plan.packs.push(Pack { object: number, ..pack });
        }
        plan
    }
}

fn pack_of_frame(layout: &Layout, frame: u32) -> Option<(Digest, Pack)> {
    let frame = layout.frames().get(frame as usize)?;
    let pack = Pack {
        object: 0,
        offset: frame.offset,
        wire_len: frame.wire_len,
        raw_len: frame.raw_len,
        codec: frame.codec,
        wire_hash: frame.wire_hash,
        raw_hash: frame.raw_hash,
        prefix: vec![],
    };
    Some((layout.segment_of(frame)?, pack))
}

/// A part of the image that lies in one place.
#[derive(Clone, Copy, Debug)]
enum Piece {
    Fetched(Extent),
    Derived(Extent),
}

/// The image's extents, cut where what derives begins and ends.
fn pieces(layout: &Layout, derived: &[Run]) -> impl Iterator<Item = Piece> {
    let mut end = 0;
    let mut spans = Vec::with_capacity(2 * derived.len() + 1);
    for (first, count) in derived.iter().copied().filter(|(first, count)| layout.geometry().holds(*first, *count)) {
        spans.extend([(end, first.saturating_sub(end), false), (first, count, true)]);
        end = first + count;
    }
    spans.push((end, layout.geometry().blocks() - end, false));
    spans.into_iter().flat_map(|(first, count, derived)| {
        let piece = move |extent| if derived { Piece::Derived(extent) } else { Piece::Fetched(extent) };
        layout.cover(first, count).map(piece)
    })
}

/// Which frames shall be packed anew: those with a prefix or with blocks that derive, and others if the waste is worth it.
fn scattered_frames(layout: &Layout, derived: &[Run]) -> Vec<bool> {
    let mut wanted = vec![BlockSet::default(); layout.frames().len()];
    let mut derives = vec![false; layout.frames().len()];
    for piece in pieces(layout, derived) {
        let (Piece::Fetched(extent) | Piece::Derived(extent)) = piece;
        let Place::Stored { frame, from } = extent.place else { continue };
        match (piece, wanted.get_mut(frame as usize), derives.get_mut(frame as usize)) {
            (Piece::Fetched(_), Some(wanted), _) => wanted.add(from, extent.count),
            (Piece::Derived(_), _, Some(derives)) => *derives = true,
            _ => {}
        }
    }
    let (mut all, mut waste) = (0, 0);
    let mut scattered = Vec::with_capacity(layout.frames().len());
    for (frame, wanted) in layout.frames().iter().zip(wanted) {
        let (blocks, wanted) = (frame.blocks(), wanted.len());
        if wanted > 0 {
            all += u64::from(frame.wire_len);
            waste += u64::from(frame.wire_len) * u64::from(blocks - wanted.min(blocks)) / u64::from(blocks.max(1));
        }
        scattered.push(wanted * 100 < blocks * WORTH_PERCENT);
    }
    // A node that holds nothing has no prefix: such frames are always packed anew.
    let behind = |frame: u32| layout.level(frame) > 0;
    let worth = waste * 100 > all * WASTE_PERCENT;
    let anew = |((frame, scattered), derives)| behind(frame) || derives || (worth && scattered);
    (0..).zip(scattered).zip(derives).map(anew).collect()
}

/// Numbers the scattered frames.
fn rows_of(scattered: &[bool]) -> Vec<u32> {
    let mut next = 0;
    let number = |scattered: &bool| {
        if !*scattered {
            return NOWHERE;
        }
        next += 1;
        next - 1
    };
    scattered.iter().map(number).collect()
}

struct Gathering {
    draft: Draft,
    /// The plan's pack for each frame that is used as it is.
    by_frame: Vec<u32>,
    /// For each frame, its row in `places`, if its blocks are packed anew.
    rows: Vec<u32>,
    /// For each block of those frames: the plan's pack and the place in it.
    places: Vec<(u32, u32)>,
    /// The plan's number of the pack that is being filled.
    anew_pack: u32,
}

impl Gathering {
    fn take(&mut self, extent: &Extent) {
        let Place::Stored { frame, from } = extent.place else {
            return self.push(Step::Zero { count: extent.count });
        };
        match self.rows.get(frame as usize).copied().unwrap_or(NOWHERE) {
            NOWHERE => {
                let pack = self.frame_pack(frame);
                self.push(Step::Patch { pack, from: from.into(), count: extent.count });
            }
            row => {
                let first_place = row * FULL + u32::from(from);
                for (place, block) in (first_place..).zip(extent.first..extent.first + extent.count) {
                    let (pack, from) = self.anew_place(place, block);
                    self.push(Step::Patch { pack, from, count: 1 });
                }
            }
        }
    }

    fn frame_pack(&mut self, frame: u32) -> u32 {
        let Some(pack) = self.by_frame.get_mut(frame as usize) else { return NOWHERE };
        if *pack == NOWHERE {
            *pack = self.draft.packs.len() as u32;
            self.draft.packs.push(Origin::Frame(frame));
        }
        *pack
    }

    fn anew_place(&mut self, place: u32, block: u32) -> (u32, u32) {
        let Some(found) = self.places.get_mut(place as usize) else { return (NOWHERE, 0) };
        if found.0 != NOWHERE {
            return *found;
        }
        if self.draft.anew.last().is_none_or(|pack| pack.len() >= FULL as usize) {
            self.anew_pack = self.draft.packs.len() as u32;
            self.draft.packs.push(Origin::Anew(self.draft.anew.len() as u32));
            self.draft.anew.push(Vec::new());
        }
        if let Some(blocks) = self.draft.anew.last_mut() {
            *found = (self.anew_pack, blocks.len() as u32);
            blocks.push(block);
        }
        *found
    }

    fn push(&mut self, step: Step) {
        step.push_to(&mut self.draft.steps);
    }
}

/// Packs blocks anew and stores them, in objects of bounded size.
async fn make_anew(
    store: &Arc<Store>,
    image: ImageId,
    layout: &Arc<Layout>,
    anew: &[Vec<u32>],
) -> Result<Vec<(Digest, Pack)>, StoreError> {
    // Scattered blocks are read in the image's order: from the whole image, else each frame is unpacked over and over.
    store.materialise(image).await?;
    let hashes = store.block_hashes(image).await?;
    let mut made = Vec::with_capacity(anew.len());
    let per_object = OBJECT_RAW_MAX / (FULL as usize * BLOCK as usize);
    for group in anew.chunks(per_object) {
        let mut packs: Vec<(Pack, Bytes)> = Vec::with_capacity(group.len());
        let runs: Vec<Vec<Run>> = group.iter().map(|blocks| runs_of(blocks.iter().copied())).collect();
        let mut ready = stream::iter(runs).map(|runs| one_anew(store, image, layout, &hashes, runs)).buffered(2);
        let mut offset = 0;
        while let Some(next) = ready.next().await {
            let (pack, wire) = next?;
            packs.push((Pack { offset, ..pack }, wire.clone()));
            offset += wire.len() as u64;
        }
        drop(ready);
        let (packs, parts): (Vec<Pack>, Vec<Bytes>) = packs.into_iter().unzip();
        let object = store.objects().put_parts(parts).await?;
        made.extend(packs.into_iter().map(|pack| (object.name, pack)));
    }
    Ok(made)
}

async fn one_anew(
    store: &Arc<Store>,
    image: ImageId,
    layout: &Layout,
    hashes: &Bytes,
    runs: Vec<Run>,
) -> Result<(Pack, Bytes), StoreError> {
    let raw = store.gather(image, layout, &runs).await?;
    let hashes = hashes.clone();
    blocking(move || {
        // What every node will fetch is held against the signature first: a file in the cache may have rotted.
        let blocks = runs.iter().flat_map(|(first, count)| *first..first + count);
        for (block, bytes) in blocks.zip(raw.chunks_exact(BLOCK as usize)) {
            if BlockHashes::new(&hashes).get(block) != Some(block_hash(bytes)) {
                return Err(StoreError::Rotten { image, block });
            }
        }
        let (codec, wire) = compress(&raw, &[], LEVEL);
        let pack = Pack {
            object: 0,
            offset: 0,
            wire_len: wire.len() as u32,
            raw_len: raw.len() as u32,
            codec,
            wire_hash: hash16(&wire),
            raw_hash: hash16(&raw),
            prefix: vec![],
        };
        Ok((pack, Bytes::from(wire)))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::layout::Frame;
    use goldsync_proto::block::Geometry;
    use goldsync_proto::pack::Codec;

    /// Frames of one block each, a zero block behind each.
    fn layout(frames: usize) -> Layout {
        let frame = Frame {
            segment: 0,
            offset: 0,
            wire_len: 100,
            raw_len: BLOCK as u32,
            codec: Codec::Zstd,
            wire_hash: [1; 16],
            raw_hash: [2; 16],
        };
        let extents = (0..frames as u32).flat_map(|frame| [(1, Place::Stored { frame, from: 0 }), (1, Place::Zero)]);
        let geometry = Geometry::new(2 * frames as u64 * BLOCK).unwrap();
        Layout::new(geometry, vec![Digest::of(b"segment")], vec![frame; frames], extents).unwrap()
    }

    /// Two frames of four blocks.
    fn two_frames() -> Layout {
        let frame = |offset| {
            let (wire_hash, raw_hash) = ([1; 16], [2; 16]);
            Frame {
                segment: 0,
                offset,
                wire_len: 100,
                raw_len: 4 * BLOCK as u32,
                codec: Codec::Zstd,
                wire_hash,
                raw_hash,
            }
        };
        let extents = [0, 1].map(|frame| (4, Place::Stored { frame, from: 0 }));
        let geometry = Geometry::new(8 * BLOCK).unwrap();
        Layout::new(geometry, vec![Digest::of(b"segment")], vec![frame(0), frame(100)], extents).unwrap()
    }

    #[test]
    fn a_frame_of_blocks_that_derive_is_not_fetched() {
        let draft = Draft::of(&two_frames(), &[(4, 4)]).unwrap();
        assert_eq!(draft.steps, [Step::Patch { pack: 0, from: 0, count: 4 }, Step::Derive { count: 4 }]);
        assert_eq!((draft.packs, draft.anew), (vec![Origin::Frame(0)], vec![]));
    }

    #[test]
    fn what_shares_a_frame_with_blocks_that_derive_is_packed_anew() {
        let draft = Draft::of(&two_frames(), &[(2, 3), (5, 1)]).unwrap();
        let steps = [Step::Patch { pack: 0, from: 0, count: 2 }, Step::Derive { count: 4 }];
        assert_eq!(draft.steps, [&steps[..], &[Step::Patch { pack: 0, from: 2, count: 2 }]].concat());
        assert_eq!((draft.packs, draft.anew), (vec![Origin::Anew(0)], vec![vec![0, 1, 6, 7]]));
    }

    #[test]
    fn an_image_of_more_pieces_than_a_node_can_hold_has_no_cold_plan() {
        let full = Draft::of(&layout(PLAN_PACKS_MAX), &[]).unwrap();
        assert_eq!(full.packs.len(), PLAN_PACKS_MAX);
        let error = Draft::of(&layout(PLAN_PACKS_MAX + 1), &[]).unwrap_err();
        assert!(error.to_string().contains("65537 packs, at most 65536 allowed; plan by"), "{error}");
    }
}
