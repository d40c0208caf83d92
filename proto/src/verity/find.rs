//! Finding the hash trees of an image, and proving which of their blocks derive.
//!
//! ```text
//! blocks that begin as superblocks do ─▶ where does the data begin? ─▶ every block derived and compared ─▶ runs that are equal
//!                                        right before the superblock; at 0;
//!                                        where a partition of the table begins
//! ```
//! A superblock tells how much data there is, but not where. Of all places it may begin at, the one counts of which most
//! samples have their hash in the leaves. Neither trees nor their data lie over each other, so that all the hashing together
//! is bounded by the image: of two that do, the larger stays, and the other travels like anything else.

use std::ops::Range;

use super::{Derived, FAN, HASH, MAGIC, Tree, overlap};
use crate::block::{Geometry, Run, runs_of};
use crate::codec::{CodecError, Reader};
use crate::limits::{BLOCK, PARTITIONS_MAX, PLAN_TREES_MAX, TREE_RUNS_MAX};

/// Data blocks by which a place is judged.
const SAMPLES: u32 = 16;

/// The hash trees of an image that is at hand, on all cores; each with the blocks that are what they should be.
pub fn find(image: &[u8]) -> Vec<Derived> {
    let Ok(geometry) = Geometry::new(image.len() as u64) else { return Vec::new() };
    let mut trees: Vec<Tree> = superblocks(image).collect();
    if trees.is_empty() {
        return Vec::new();
    }
    // Of nested ones the outer spares more. A stable sort: else in the image's order.
    trees.sort_by_key(|tree| std::cmp::Reverse(tree.blocks));
    let partitions = partitions(image);
    let (mut taken, mut found): (Vec<Range<u32>>, Vec<Derived>) = (Vec::new(), Vec::new());
    for tree in trees {
        let before = (tree.at - 1).checked_sub(tree.blocks);
        let starts = before.into_iter().chain([0]).chain(partitions.iter().copied());
        let placed = starts.map(|data| Tree { data, ..tree.clone() });
        let free = |tree: &Tree| {
            tree.check(geometry).is_ok()
                && !taken.iter().any(|taken| overlap(taken, &tree.data()) || overlap(taken, &tree.place()))
        };
        let Some(tree) = likeliest(image, placed.filter(free)) else { continue };
        let runs = equal_runs(image, &tree);
        if !runs.is_empty() {
            taken.extend([tree.data(), tree.place()]);
            found.push(Derived { tree, runs });
        }
    }
    found.sort_unstable_by_key(|derived| derived.tree.at);
    found
}

/// Those that may be, as many as there may be; the data is not placed yet.
fn superblocks(image: &[u8]) -> impl Iterator<Item = Tree> {
    let blocks = (0..).zip(image.chunks_exact(BLOCK as usize)).filter(|(_, block)| block.starts_with(MAGIC));
    blocks.filter_map(|(at, block)| Tree::read(at, block)).take(PLAN_TREES_MAX)
}

/// The first of those of which most samples fit, if any does.
fn likeliest(image: &[u8], placed: impl Iterator<Item = Tree>) -> Option<Tree> {
    let mut best = (0, None);
    for tree in placed {
        let fitting = fitting(image, &tree);
        if fitting > best.0 {
            best = (fitting, Some(tree));
        }
    }
    best.1
}

/// How many samples of the data have their hash in the leaves.
fn fitting(image: &[u8], tree: &Tree) -> usize {
    let samples = SAMPLES.min(tree.blocks);
    let Some(leaves) = tree.levels().into_iter().next() else { return 0 };
    let fits = |sample: u32| {
        let index = (u64::from(sample) * u64::from(tree.blocks) / u64::from(samples)) as u32;
        let leaf = bytes(image, (leaves.start + index / FAN, 1));
        let place = (index % FAN) as usize * HASH;
        leaf.get(place..place + HASH) == Some(tree.hash(bytes(image, (tree.data + index, 1))).as_slice())
    };
    (0..samples).filter(|sample| fits(*sample)).count()
}

/// The tree's blocks that are what derives from what lies below them in the image.
fn equal_runs(image: &[u8], tree: &Tree) -> Vec<Run> {
    let all: Vec<u32> = tree.range().collect();
    let derives = |block: &u32| {
        let below = tree.below(*block).map_or(&[][..], |below| bytes(image, below));
        tree.derive(below) == bytes(image, (*block, 1))
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = all.len().div_ceil(threads).max(1);
    let equal: Vec<u32> = std::thread::scope(|scope| {
        let work = |part: &[u32]| part.iter().copied().filter(derives).collect::<Vec<_>>();
        let parts: Vec<_> = all.chunks(share).map(|part| scope.spawn(move || work(part))).collect();
        let join = |part: std::thread::ScopedJoinHandle<'_, Vec<u32>>| match part.join() {
            Ok(equal) => equal,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        parts.into_iter().flat_map(join).collect()
    });
    let mut runs = runs_of(equal);
    runs.truncate(TREE_RUNS_MAX);
    runs
}

/// The bytes of a run; none if it is not all inside.
fn bytes(image: &[u8], (first, count): Run) -> &[u8] {
    let start = u64::from(first) * BLOCK;
    image.get(start as usize..(start + u64::from(count) * BLOCK) as usize).unwrap_or(&[])
}

/// The blocks with which the partitions of a GPT begin, of those on the grid. A disk's sectors have 512 or 4096 bytes.
pub(super) fn partitions(image: &[u8]) -> Vec<u32> {
    [512, BLOCK].into_iter().find_map(|sector| table(image, sector).ok().flatten()).unwrap_or_default()
}

fn table(image: &[u8], sector: u64) -> Result<Option<Vec<u32>>, CodecError> {
    let from = |at: u64| Reader::new(usize::try_from(at).ok().and_then(|at| image.get(at..)).unwrap_or(&[]));
    let mut header = from(sector);
    if header.array("signature")? != *b"EFI PART" {
        return Ok(None);
    }
    header.bytes("header", 64)?;
    let entries = header.u64("first sector of the entries")?.saturating_mul(sector);
    let (count, length) = (header.u32("entries")?, header.u32("bytes in an entry")?);
    let mut starts = Vec::new();
    for index in 0..u64::from(count).min(PARTITIONS_MAX as u64) {
        let mut entry = from(entries.saturating_add(index * u64::from(length)));
        // What it is, and which; then where it begins.
        entry.bytes("ids", 32)?;
        let start = entry.u64("first sector")?.saturating_mul(sector);
        if start > 0 && start.is_multiple_of(BLOCK) && start < image.len() as u64 {
            starts.push((start / BLOCK) as u32);
        }
    }
    Ok(Some(starts))
}
