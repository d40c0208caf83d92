//! Storing an image's new blocks after what they come from: as the packs of the plan from its next of kin.
//!
//! ```text
//! the image, proven ─┐
//! its next of kin ───┴▶ plan ─▶ packs ─▶ segments; their prefixes lie in the kin's frames
//! ```
//! The packs are the very object that nodes which run the older image will fetch, so that history and plans share it. Blocks
//! that lie in any image already are not packed again. It is worth it only if it takes less room than the frames as they came,
//! and only as long as putting the image together unpacks no more than [`UNPACKED_MAX`] times its bytes.

use std::sync::Arc;

use bytes::Bytes;
use goldsync_proto::block::{Geometry, Run, runs_of};
use goldsync_proto::digest::ImageId;
use goldsync_proto::limits::BLOCK;
use goldsync_proto::make::{self, Effort};
use goldsync_proto::plan::{Pack, Plan, PlanError, Step};
use goldsync_proto::signature::{BlockHashes, zero_hash};

use super::known::Known;
use super::parts::Part;
use super::segments::Received;
use crate::store::layout::{Layout, Piece, Place};

/// Times an image's bytes that putting it together may unpack.
pub(super) const UNPACKED_MAX: u64 = 3;

/// New bytes beyond which an image is no small change, and its packs would take too much memory.
const NEW_MAX: u64 = 512 << 20;

/// An image whose bytes are at hand.
pub(super) struct At<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) hashes: BlockHashes<'a>,
    pub(super) geometry: Geometry,
}

/// What becomes a segment's frame: its blocks, its bytes, and what it comes after.
pub(super) type Packed = (Part, Bytes, Arc<[Piece]>);

/// The new blocks of an image as packs after an older one. `None` if they cannot all be packed so.
pub(super) fn pack(
    base: &At<'_>,
    lies: &Layout,
    target: &At<'_>,
    received: &Received,
    known: &Known,
) -> Option<Vec<Packed>> {
    let own = (0..target.geometry.blocks()).filter(|block| received.block(*block).is_some()).count() as u64;
    if own == 0 || own * BLOCK > NEW_MAX {
        return None;
    }
    let wanted = only_new(base.hashes, target.hashes, received);
    let mut wires = Vec::new();
    let (from, to) = (image(base, base.hashes), image(target, BlockHashes::new(&wanted)));
    // What is too large a plan for a node may not be too large for us, but it is no small change either.
    let plan = make::pair::<PlanError>(from, to, Effort::QUICK, |wire| {
        wires.push(Bytes::copy_from_slice(wire));
        Ok(())
    });
    let plan = plan.ok()?;
    let blocks = blocks_of(&plan);
    let packed = blocks.iter().map(Vec::len).sum::<usize>() as u64;
    if packed != own || wires.len() != plan.packs.len() {
        return None;
    }
    let packs = plan.packs.iter().zip(blocks).zip(wires);
    packs.map(|((pack, blocks), wire)| Some((part(pack, blocks), wire, prefix(pack, lies, known)?))).collect()
}

fn image<'a>(at: &At<'a>, hashes: BlockHashes<'a>) -> make::Image<'a> {
    // Nobody reads the ids of a plan that is not kept.
    // The store holds every block: nothing is derived.
    make::Image { id: ImageId::of(b""), geometry: at.geometry, bytes: at.bytes, hashes, derived: &[] }
}

/// The target's hashes, with zeros in the place of blocks that are stored already, but not in the base.
fn only_new(base: BlockHashes<'_>, target: BlockHashes<'_>, received: &Received) -> Vec<u8> {
    let mut held: Vec<u64> = base.iter().collect();
    held.sort_unstable();
    let kept = |(block, hash): (u32, u64)| {
        let counts = received.block(block).is_some() || held.binary_search(&hash).is_ok();
        (if counts { hash } else { zero_hash() }).to_le_bytes()
    };
    (0..).zip(target.iter()).flat_map(kept).collect()
}

/// For each pack the blocks that it was made of, in order.
fn blocks_of(plan: &Plan) -> Vec<Vec<u32>> {
    let mut packs = vec![Vec::new(); plan.packs.len()];
    for (block, step) in plan.placed() {
        if let Step::Patch { pack, from, count } = step
            && let Some(pack) = packs.get_mut(pack as usize)
        {
            for at in 0..count {
                // A later one is the same block again.
                if (from + at) as usize == pack.len() {
                    pack.push(block + at);
                }
            }
        }
    }
    packs
}

fn part(pack: &Pack, blocks: Vec<u32>) -> Part {
    let Pack { codec, raw_len, wire_len, wire_hash, raw_hash, .. } = *pack;
    Part { runs: runs_of(blocks), codec, raw_len, wire_len, wire_hash, raw_hash }
}

/// A pack's prefix as parts of the frames in which the base lies.
fn prefix(pack: &Pack, lies: &Layout, known: &Known) -> Option<Arc<[Piece]>> {
    let piece = |(first, count): Run| {
        lies.cover(first, count).map(|extent| {
            let place = match extent.place {
                Place::Zero => Place::Zero,
                Place::Stored { frame, from } => {
                    let frame = lies.frames().get(frame as usize)?;
                    Place::Stored { frame: known.number(lies.segment_of(frame)?, frame.offset)?, from }
                }
            };
            Some(Piece { place, count: extent.count })
        })
    };
    pack.prefix.iter().copied().flat_map(piece).collect()
}

/// Whether an image that lies so is put together in bounded time.
pub(super) fn is_bounded(layout: &Layout) -> bool {
    let unpacked: u64 = layout.frames().iter().map(|frame| u64::from(frame.raw_len)).sum();
    unpacked <= UNPACKED_MAX * layout.geometry().size()
}
