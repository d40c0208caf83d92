//! Making the plan for a known base: which blocks are copied, which travel, and what each pack is compressed against.
//!
//! ```text
//! block hashes of base and target ─▶ match ─▶ literal blocks ─▶ gather into packs ─▶ prefix ─▶ compress ─▶ plan + packs
//! ```
//! A changed file's new blocks stand near the blocks that did not change, and its old version stands in the base near
//! what those were copied from. So each pack of up to 1 MiB is compressed with a *prefix* of up to 4 MiB out of the base:
//! first what lies *near* (around the neighbouring copies' sources, and the same offset), then what has most samples in
//! common with it by content (*votes*), the best last, nearest to the data. This beats one whole-image patch by far,
//! at bounded memory on the node. The server's work, once per pair; both images are mapped, not loaded.

use std::collections::HashMap;

use crate::block::{Geometry, Run};
use crate::digest::{Digest, ImageId};
use crate::limits::{BLOCK, PACK_RAW_MAX, PLAN_PACKS_MAX, PLAN_RUNS_MAX, PLAN_STEPS_MAX, PREFIX_MAX, PREFIX_RUNS_MAX};
use crate::pack::{self, Codec, delta, hash16, patch};
use crate::plan::{Pack, Plan, PlanError, Source, Step, fits};
use crate::scan::aligned::BlockIndex;
use crate::signature::{BlockHashes, zero_hash};
use crate::verity::{Derived, runs_derived};

mod search;
mod votes;

pub use votes::Votes;

/// An image whose bytes, section `blocks` and hash trees are at hand.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// Its id.
    pub id: ImageId,
    /// Its geometry.
    pub geometry: Geometry,
    /// All its bytes.
    pub bytes: &'a [u8],
    /// The section `blocks`.
    pub hashes: BlockHashes<'a>,
    /// What of it derives from the rest; a target's only.
    pub derived: &'a [Derived],
}

/// How hard to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// zstd's level.
    pub level: i32,
    /// Whether to look for near copies, and how to tell them.
    pub near: Near,
    /// Bytes of a pack before it is cut.
    pub pack: usize,
    /// Bytes of prefix a pack.
    pub prefix: usize,
    /// What speaks for a part of the base must be more than this for it to become prefix: each costs time.
    pub least: u32,
    /// Threads at most.
    pub threads: usize,
}

/// What becomes of near copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Near {
    /// They are not looked for.
    None,
    /// The codec `patch`: up to half as many bytes as zstd's, unpacked at hundreds of megabytes a second.
    Patch,
    /// The codec `delta`: the fewest bytes, and much to unpack.
    Delta,
}

impl Effort {
    /// A node is waiting.
    pub const QUICK: Self =
        Self { level: 9, near: Near::None, pack: PACK_RAW_MAX, prefix: PREFIX_MAX, least: 12, threads: usize::MAX };

    /// Nobody is waiting, and there is other work to do.
    pub const THOROUGH: Self = Self { near: Near::Patch, least: 0, threads: 1, ..Self::QUICK };

    /// Nor does it matter how long unpacking takes.
    pub const SMALLEST: Self = Self { near: Near::Delta, ..Self::THOROUGH };
}

/// Blocks that a plan's packs hold before they are cut early at a gap, and the gap in blocks.
const CUT_AT: usize = 64 << 12;
const CUT_GAP: u32 = 512;

/// Makes the plan from `base` to `target`. The packs' bytes go to `out`, one call a pack, in order; the plan's one object is
/// their concatenation.
///
/// Fails if `out` does, and if the plan would be too large for a node, before anything is compressed.
pub fn pair<E: From<PlanError>>(
    base: Image<'_>,
    target: Image<'_>,
    effort: Effort,
    mut out: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<Plan, E> {
    let (steps, gathered) = match_blocks(base, target, effort)?;
    let effort = Effort { prefix: effort.prefix.min(prefix_each(gathered.len())), ..effort };
    let votes = if gathered.is_empty() { Votes::default() } else { Votes::of(base.bytes, effort.threads) };
    let (mut packs, mut name, mut offset) = (Vec::with_capacity(gathered.len()), blake3::Hasher::new(), 0);
    for gathered in compress_all(base, target, effort, &votes, &gathered) {
        let (mut pack, wire) = gathered;
        pack.offset = offset;
        offset += wire.len() as u64;
        name.update(&wire);
        out(&wire)?;
        packs.push(pack);
    }
    let objects = if packs.is_empty() { vec![] } else { vec![Digest(*name.finalize().as_bytes())] };
    let trees = target.derived.iter().map(|derived| derived.tree.clone()).collect();
    let (base, target, geometry) = (Some(base.id), target.id, target.geometry);
    Ok(Plan { base, target, geometry, steps, objects, packs, trees }.with_trees_in_use())
}

/// The literal blocks of one pack, and the base blocks that lie near them.
#[derive(Debug, Default)]
struct Gathered {
    blocks: Vec<u32>,
    near: Vec<u32>,
}

/// Settles every target block: equal at the same offset, zero, equal elsewhere, derived, seen already in a pack, or literal.
fn match_blocks(base: Image<'_>, target: Image<'_>, effort: Effort) -> Result<(Vec<Step>, Vec<Gathered>), PlanError> {
    let index = BlockIndex::new(base.hashes, 0..base.hashes.len());
    let (derived, steps, packs) = (runs_derived(target.derived), Vec::new(), Vec::new());
    let mut matcher = Matcher { base, index, effort, derived, steps, packs, seen: HashMap::new() };
    for (block, hash) in (0..).zip(target.hashes.iter()) {
        matcher.settle(block, hash);
        fits("steps", matcher.steps.len(), PLAN_STEPS_MAX)?;
        fits("packs", matcher.packs.len(), PLAN_PACKS_MAX)?;
    }
    Ok((matcher.steps, matcher.packs))
}

struct Matcher<'a> {
    base: Image<'a>,
    index: BlockIndex<'a>,
    effort: Effort,
    /// What derives, ascending.
    derived: Vec<Run>,
    steps: Vec<Step>,
    packs: Vec<Gathered>,
    /// Literal blocks by hash: pack, and block in it.
    seen: HashMap<u64, (u32, u32)>,
}

impl Matcher<'_> {
    fn settle(&mut self, block: u32, hash: u64) {
        let step = if hash == zero_hash() {
            Step::Zero { count: 1 }
        } else if let Some(from) = self.copy_source(block, hash) {
            // Also of what derives: a copy reads one block where deriving reads 128.
            Step::Copy { source: Source::Active, from, count: 1 }
        } else if self.derives(block) {
            Step::Derive { count: 1 }
        } else {
            let (pack, from) = match self.seen.get(&hash) {
                Some(place) => *place,
                None => self.gather(block, hash),
            };
            Step::Patch { pack, from, count: 1 }
        };
        step.push_to(&mut self.steps);
    }

    fn derives(&self, block: u32) -> bool {
        let before = self.derived.partition_point(|(first, _)| *first <= block);
        before.checked_sub(1).and_then(|at| self.derived.get(at)).is_some_and(|(first, count)| block - first < *count)
    }

    /// The same offset costs no write where the standby slot holds the base; going on where the last copy ended keeps the
    /// plan short; else the occurrence nearest to this offset.
    fn copy_source(&self, block: u32, hash: u64) -> Option<u32> {
        let holds = |from: u32| self.base.hashes.get(from) == Some(hash);
        if holds(block) {
            return Some(block);
        }
        if let Some(Step::Copy { from, count, .. }) = self.steps.last()
            && holds(from + count)
        {
            return Some(from + count);
        }
        self.index.find(hash).iter().copied().min_by_key(|from| from.abs_diff(block))
    }

    fn gather(&mut self, block: u32, hash: u64) -> (u32, u32) {
        let full = self.effort.pack / BLOCK as usize;
        let cut = self.packs.last().is_none_or(|pack| {
            let gap = pack.blocks.last().is_some_and(|last| block - last > CUT_GAP);
            pack.blocks.len() >= full || (gap && pack.blocks.len() * BLOCK as usize >= CUT_AT)
        });
        if cut {
            self.packs.push(Gathered::default());
        }
        let number = self.packs.len() as u32 - 1;
        let near = [Some(block), self.last_copy_end()];
        let Some(pack) = self.packs.last_mut() else { return (0, 0) };
        pack.near.extend(near.into_iter().flatten());
        pack.blocks.push(block);
        let place = (number, pack.blocks.len() as u32 - 1);
        self.seen.insert(hash, place);
        place
    }

    fn last_copy_end(&self) -> Option<u32> {
        self.steps.iter().rev().take(4).find_map(|step| match step {
            Step::Copy { from, count, .. } => Some(from + count),
            _ => None,
        })
    }
}

/// Bytes of prefix that each of so many packs may have: a run each segment, at worst, and all runs of a plan are bounded.
fn prefix_each(packs: usize) -> usize {
    PLAN_RUNS_MAX / packs.max(1) * SEGMENT_BLOCKS as usize * BLOCK as usize
}

/// Compresses on as many threads as there are cores and may be used, and hands the packs over in order.
fn compress_all<'a>(
    base: Image<'a>,
    target: Image<'a>,
    effort: Effort,
    votes: &'a Votes,
    gathered: &'a [Gathered],
) -> impl Iterator<Item = (Pack, Vec<u8>)> + 'a {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(effort.threads).max(1);
    gathered.chunks(4 * threads).flat_map(move |batch| {
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|first| {
                    let mine: Vec<_> = batch.iter().enumerate().skip(first).step_by(threads).collect();
                    scope.spawn(move || {
                        let make = |(at, pack)| (at, compress_one(base, target, effort, votes, pack));
                        mine.into_iter().map(make).collect::<Vec<_>>()
                    })
                })
                .collect();
            let mut done: Vec<_> = workers
                .into_iter()
                .flat_map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect();
            done.sort_unstable_by_key(|(at, _)| *at);
            done.into_iter().map(|(_, made)| made).collect::<Vec<_>>()
        })
    })
}

fn compress_one(
    base: Image<'_>,
    target: Image<'_>,
    effort: Effort,
    votes: &Votes,
    gathered: &Gathered,
) -> (Pack, Vec<u8>) {
    let raw = gather_bytes(target.bytes, gathered.blocks.iter().map(|block| (*block, 1)));
    let dense = is_dense(&raw) && !is_edited(base, &gathered.blocks, &raw);
    let runs = choose_prefix(base.geometry, gathered, votes.count(&raw), dense, effort);
    let prefix = gather_bytes(base.bytes, runs.iter().copied());
    let (codec, wire) = if dense { compress_dense(&raw, &prefix, effort) } else { compress(&raw, &prefix, effort) };
    // Bytes that no base helps with are not worth a prefix that might have drifted.
    let prefix = if codec == Codec::Raw { vec![] } else { runs };
    let pack = Pack {
        object: 0,
        offset: 0,
        wire_len: wire.len() as u32,
        raw_len: raw.len() as u32,
        codec,
        wire_hash: hash16(&wire),
        raw_hash: hash16(&raw),
        prefix,
    };
    (pack, wire)
}

/// The smallest of what the effort allows.
fn compress(raw: &[u8], prefix: &[u8], effort: Effort) -> (Codec, Vec<u8>) {
    match near_copies(raw, prefix, effort.near) {
        // Where the base helps so much, zstd comes nowhere near the model.
        Some((Codec::Delta, delta)) if delta.len() < raw.len() / 2 => (Codec::Delta, delta),
        near => {
            let plain = pack::compress(raw, prefix, effort.level);
            near.filter(|(_, near)| near.len() < plain.1.len()).unwrap_or(plain)
        }
    }
}

fn near_copies(raw: &[u8], prefix: &[u8], near: Near) -> Option<(Codec, Vec<u8>)> {
    let pieces = || search::pieces(raw, prefix);
    match near {
        Near::None => None,
        Near::Patch => Some((Codec::Patch, patch::encode(raw, prefix, &pieces())?)),
        Near::Delta => Some((Codec::Delta, delta::encode(raw, prefix, &pieces()))),
    }
}

/// There are no near copies, and what is the same is long: more work finds no more of it.
fn compress_dense(raw: &[u8], prefix: &[u8], effort: Effort) -> (Codec, Vec<u8>) {
    pack::compress(raw, prefix, effort.level.min(LEVEL_DENSE))
}

/// zstd's level for bytes that are compressed already. Below it long matches are lost.
const LEVEL_DENSE: i32 = 7;

/// Whether nearly all blocks look like noise, as compressed bytes do: then nothing helps but bytes that are the same.
fn is_dense(raw: &[u8]) -> bool {
    let blocks = raw.as_chunks::<{ BLOCK as usize }>().0;
    let noise = blocks.iter().filter(|block| is_noise(block)).count();
    noise * 16 >= blocks.len() * 15
}

/// Whether blocks are nearly what stands at their place in the base: noise may have been edited, too.
fn is_edited(base: Image<'_>, blocks: &[u32], raw: &[u8]) -> bool {
    let (mut equal, mut looked_at) = (0, 0);
    for (block, new) in blocks.iter().zip(raw.as_chunks::<{ BLOCK as usize }>().0).step_by(16) {
        let old = gather_bytes(base.bytes, [(*block, 1)]);
        equal += old.iter().zip(new).filter(|(old, new)| old == new).count();
        looked_at += new.len();
    }
    equal * 8 > looked_at
}

/// In 4096 random bytes the squares of how often each value comes add up to 69,600, give or take 400. What deflate, zstd or xz
/// wrote is close to it; what lz4 wrote has four times as much, and text and programs more.
fn is_noise(block: &[u8; BLOCK as usize]) -> bool {
    let mut counts = [0_u32; 256];
    block.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
    counts.iter().map(|count| count * count).sum::<u32>() < 76_000
}

/// The bytes of runs of blocks, joined. What lies outside counts as nothing.
pub fn gather_bytes(bytes: &[u8], runs: impl IntoIterator<Item = Run>) -> Vec<u8> {
    let mut out = Vec::new();
    for (first, count) in runs {
        let start = first as usize * BLOCK as usize;
        out.extend_from_slice(bytes.get(start..start + count as usize * BLOCK as usize).unwrap_or(&[]));
    }
    out
}

/// Blocks in a segment, the unit in which a prefix is chosen.
const SEGMENT_BLOCKS: u32 = 16;

/// Which parts of the base a pack is compressed after. `score`: what the votes say of each segment. Dense bytes have nothing in
/// common with what merely lies near.
fn choose_prefix(
    base: Geometry,
    gathered: &Gathered,
    mut score: HashMap<u32, u32>,
    dense: bool,
    effort: Effort,
) -> Vec<Run> {
    let room = (effort.prefix / (SEGMENT_BLOCKS as usize * BLOCK as usize)).min(PREFIX_RUNS_MAX);
    let segments = base.blocks().div_ceil(SEGMENT_BLOCKS);
    for block in gathered.near.iter().filter(|_| !dense) {
        // The segment itself and, weaker, its neighbours: a file that grew goes on there.
        let segment = block / SEGMENT_BLOCKS;
        *score.entry(segment).or_default() += 2;
        *score.entry(segment + 1).or_default() += 1;
    }
    let counts = |(segment, score): &(u32, u32)| *segment < segments && *score > effort.least;
    let mut ranked: Vec<(u32, u32)> = score.into_iter().filter(counts).collect();
    ranked.sort_unstable_by_key(|(segment, score)| (std::cmp::Reverse(*score), *segment));
    ranked.truncate(room);
    // The best last: zstd codes near matches shorter and searches them first.
    let run = |(segment, _): (u32, u32)| {
        let first = segment * SEGMENT_BLOCKS;
        (first, SEGMENT_BLOCKS.min(base.blocks() - first))
    };
    let mut runs: Vec<Run> = Vec::with_capacity(ranked.len());
    for (first, count) in ranked.into_iter().rev().map(run) {
        match runs.last_mut() {
            Some((last, length)) if *last + *length == first => *length += count,
            _ => runs.push((first, count)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signature::sign_blocks;
    use crate::verity::{self, tests::hash_area};
    use proptest::prelude::*;

    fn noise(blocks: usize, seed: u64) -> Vec<u8> {
        crate::testing::noise(blocks * BLOCK as usize, seed)
    }

    fn make(base: &[u8], target: &[u8]) -> (Plan, Vec<u8>) {
        make_with(base, target, Effort::QUICK)
    }

    fn make_with(base: &[u8], target: &[u8], effort: Effort) -> (Plan, Vec<u8>) {
        let (base_hashes, target_hashes) = (sign_blocks(base), sign_blocks(target));
        let (mut object, derived) = (Vec::new(), verity::find(target));
        let target = Image { derived: &derived, ..image(target, &target_hashes) };
        let plan = pair(image(base, &base_hashes), target, effort, |wire| {
            object.extend_from_slice(wire);
            Ok::<_, PlanError>(())
        });
        (plan.unwrap(), object)
    }

    fn image<'a>(bytes: &'a [u8], hashes: &'a [u8]) -> Image<'a> {
        let geometry = Geometry::new(bytes.len() as u64).unwrap();
        Image { id: ImageId::of(bytes), geometry, bytes, hashes: BlockHashes::new(hashes), derived: &[] }
    }

    /// The plainest executor there is; the agent's own is tested against whole images.
    fn apply(plan: &Plan, base: &[u8], object: &[u8]) -> Vec<u8> {
        let raw: Vec<Vec<u8>> = plan
            .packs
            .iter()
            .map(|pack| {
                let wire = &object[pack.offset as usize..][..pack.wire_len as usize];
                assert_eq!(hash16(wire), pack.wire_hash);
                let prefix = gather_bytes(base, pack.prefix.iter().copied());
                let raw = pack::decompress(pack.codec, wire, pack.raw_len as usize, &prefix).unwrap();
                assert_eq!(hash16(&raw), pack.raw_hash);
                raw
            })
            .collect();
        let mut out = Vec::new();
        for step in &plan.steps {
            match *step {
                Step::Copy { from, count, .. } => out.extend(gather_bytes(base, [(from, count)])),
                Step::Zero { count } => out.resize(out.len() + count as usize * BLOCK as usize, 0),
                Step::Patch { pack, from, count } => out.extend(gather_bytes(&raw[pack as usize], [(from, count)])),
                Step::Derive { count } => out.resize(out.len() + count as usize * BLOCK as usize, 0),
                other => panic!("no server makes {other:?}"),
            }
        }
        // Root last, as levels come.
        for Derived { tree, runs } in plan.derived() {
            let blocks = tree.levels().into_iter().flatten();
            for block in
                blocks.filter(|block| runs.iter().any(|(first, count)| (*first..first + count).contains(block)))
            {
                let made = tree.derive(&gather_bytes(&out, tree.below(block)));
                out[block as usize * BLOCK as usize..][..BLOCK as usize].copy_from_slice(&made);
            }
        }
        out
    }

    /// Data with its hash tree behind it.
    fn hashed(data: &[u8], salt: &[u8]) -> Vec<u8> {
        [data, &hash_area(data, salt)].concat()
    }

    #[test]
    fn a_hash_tree_does_not_travel() {
        let data = noise(3000, 1);
        let mut edited = data.clone();
        edited[2_000_000] ^= 1;
        // Another salt: no hash is the same. 24 leaves and a root are 100 KiB that no compressor shrinks.
        let (base, target) = (hashed(&data, b"old"), hashed(&edited, b"new"));
        let (plan, object) = make(&base, &target);
        assert_eq!(plan.trees.len(), 1);
        assert_eq!(plan.derived()[0].runs, [(3001, 25)]);
        assert!(apply(&plan, &base, &object) == target);
        assert!(object.len() < 1000, "{} bytes", object.len());
        assert_eq!(Plan::decode(&plan.encode().unwrap()), Ok(plan));
    }

    #[test]
    fn what_is_equal_in_the_base_is_copied_and_not_derived() {
        let data = noise(3000, 1);
        let mut edited = data.clone();
        edited[2_000_000] ^= 1;
        // The same salt: the leaf over block 488 is another, and so is the root.
        let (base, target) = (hashed(&data, b"salt"), hashed(&edited, b"salt"));
        let (plan, object) = make(&base, &target);
        assert_eq!(plan.derived()[0].runs, [(3001, 1), (3002 + 488 / 128, 1)]);
        assert!(apply(&plan, &base, &object) == target);
        // Nothing to derive, nothing said of it.
        assert_eq!(make(&target, &target).0.trees, []);
    }

    #[test]
    fn a_small_change_in_a_moved_file_costs_little() {
        let base = noise(600, 1);
        let mut target = noise(3, 9);
        target.extend_from_slice(&base);
        target.extend_from_slice(&[0; 5 * 4096]);
        for at in [100_000, 700_000, 2_000_000] {
            target[at..at + 100].fill(b'!');
        }
        let (plan, object) = make(&base, &target);
        assert_eq!(plan.check(), Ok(()));
        assert_eq!(ImageId::of(&apply(&plan, &base, &object)), plan.target);
        // Three blocks are new; of the three changed ones hardly more than the change travels.
        assert!(object.len() < 3 * 4096 + 1500, "{} bytes", object.len());
        assert_eq!(Plan::decode(&plan.encode().unwrap()), Ok(plan));
    }

    #[test]
    fn a_program_with_other_addresses_in_it_costs_less_with_more_effort() {
        let base = noise(256, 1);
        let mut target = base.clone();
        // Every operand of a shifted part means something 0x40 further on.
        for operand in target.chunks_exact_mut(4).skip(3).step_by(9) {
            let word = u32::from_le_bytes([operand[0], operand[1], operand[2], operand[3]]);
            operand.copy_from_slice(&word.wrapping_add(0x40).to_le_bytes());
        }
        let [thorough, smallest] = [Effort::THOROUGH, Effort::SMALLEST].map(|effort| make_with(&base, &target, effort));
        let quick = make(&base, &target);
        for (plan, object) in [&quick, &thorough, &smallest] {
            assert!(apply(plan, &base, object) == target);
        }
        assert!(thorough.0.packs.iter().all(|pack| pack.codec == Codec::Patch));
        assert!(smallest.0.packs.iter().all(|pack| pack.codec == Codec::Delta));
        let [quick, thorough, smallest] = [quick, thorough, smallest].map(|(_, object)| object.len());
        assert!(thorough * 3 < quick && smallest * 4 < quick, "{quick}, {thorough} and {smallest} bytes");
    }

    #[test]
    fn a_plan_too_large_for_a_node_is_given_up_before_anything_is_compressed() {
        // Every other block is new: a step each.
        let blocks = PLAN_STEPS_MAX + 2;
        let hash = |block: usize| if block.is_multiple_of(2) { zero_hash() } else { block as u64 };
        let hashes: Vec<u8> = (0..blocks).flat_map(|block| hash(block).to_le_bytes()).collect();
        let geometry = Geometry::new(blocks as u64 * BLOCK).unwrap();
        // No bytes: who looks at them has gone too far.
        let (id, hashes) = (ImageId::of(b""), BlockHashes::new(&hashes));
        let target = Image { id, geometry, bytes: &[], hashes, derived: &[] };
        let empty = Image { hashes: BlockHashes::new(&[]), ..target };
        let made = pair(empty, target, Effort::QUICK, |_| panic!("a pack was made"));
        let (got, max) = (PLAN_STEPS_MAX + 1, PLAN_STEPS_MAX);
        assert_eq!(made, Err(PlanError::TooLarge { what: "steps", got, max }));
    }

    #[test]
    fn prefixes_shrink_before_a_plan_has_too_many_runs() {
        let runs = |packs: usize| packs * (prefix_each(packs).min(PREFIX_MAX) / (SEGMENT_BLOCKS as usize * 4096));
        for packs in [1, 100, 8192, 8193, 20_000, PLAN_PACKS_MAX] {
            assert!(runs(packs) <= PLAN_RUNS_MAX && prefix_each(packs) > 0, "{packs} packs");
        }
        assert!(prefix_each(8192) >= PREFIX_MAX);
    }

    #[test]
    fn equal_images_need_no_pack() {
        let base = noise(20, 1);
        let (plan, object) = make(&base, &base);
        assert_eq!((plan.steps.len(), plan.packs.len(), object.len()), (1, 0, 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn the_plan_always_gives_the_target(
            cuts in proptest::collection::vec((0_usize..40, 0_usize..40, 0_u8..4), 1..20),
            base_blocks in 1_usize..40,
        ) {
            let base = noise(base_blocks, 1);
            let mut target = Vec::new();
            for (from, len, kind) in cuts {
                let from = (from * 4096 + usize::from(kind == 1) * 7).min(base.len());
                let end = (from + len * 4096).min(base.len());
                match kind {
                    0 | 1 => target.extend_from_slice(&base[from..end]),
                    2 => target.resize(target.len() + len * 4096, 0),
                    _ => target.extend_from_slice(&noise(len, len as u64)),
                }
            }
            target.resize(target.len().next_multiple_of(4096).max(4096), 3);
            for effort in [Effort::QUICK, Effort::THOROUGH, Effort::SMALLEST] {
                let (plan, object) = make_with(&base, &target, effort);
                prop_assert_eq!(plan.check(), Ok(()));
                prop_assert!(apply(&plan, &base, &object) == target);
            }
        }
    }
}
