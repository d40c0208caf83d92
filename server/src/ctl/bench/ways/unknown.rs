//! The way of a node whose base the server does not know: the node's own passes, over bytes that are both at hand.
//!
//! The passes, their order, their bounds and their rounds are the agent's (its `plan::own` and `plan::mosaic`); the scans, the
//! hashes and the frames are the very same code. Requests' own heads are left to the transport's estimate.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use goldsync_proto::block::{Geometry, Run, runs_of};
use goldsync_proto::digest::DIGEST_LEN;
use goldsync_proto::grain::{self, GrainHash, select, width_for, write_masks};
use goldsync_proto::limits::{BLOCK, BLOCKS_PER_REQUEST, GRAIN_ROUND, GRAINS, REGION, ROLLING_ROUND};
use goldsync_proto::make::gather_bytes;
use goldsync_proto::pack::{Chain, write_frame_after};
use goldsync_proto::scan::aligned::BlockIndex;
use goldsync_proto::scan::grains::{Grains, is_last_round};
use goldsync_proto::scan::rolling::{self, Rolling, Wanted};
use goldsync_proto::scan::slices;
use goldsync_proto::signature::{BlockHashes, Signature, zero_hash};
use goldsync_proto::verity::{Derived, runs_derived};

use super::on_threads;
use crate::golden::prepare::LEVEL;
use crate::store::pieces;

/// What the search came to.
#[derive(Debug, Default)]
pub struct Unknown {
    /// Bytes of the signature's sections and of grains' hashes.
    pub signature: u64,
    /// Bytes of literal frames, and of the masks that ask for them.
    pub literals: u64,
    /// Blocks that lie in OLD at an offset that is not on the grid.
    pub off_grid: u64,
    /// Seconds that the node's part took.
    pub searched: Duration,
}

impl Unknown {
    /// All bytes that travel.
    pub fn payload(&self) -> u64 {
        self.signature + self.literals
    }
}

/// Goes the way.
pub fn go(old: &[u8], old_signature: &Signature, new: &[u8], signature: &Signature, derived: &[Derived]) -> Unknown {
    let began = Instant::now();
    let hashes = BlockHashes::new(&signature.blocks);
    let mut search = Search {
        old,
        new,
        hashes,
        old_hashes: BlockHashes::new(&old_signature.blocks),
        found: vec![false; hashes.len() as usize],
        recognised: vec![false; old.len() / BLOCK as usize],
        came: Unknown::default(),
    };
    search.regions();
    search.on_grid();
    let missing = search.derive(derived);
    let missing = search.roll(missing, &signature.rolling);
    let (leaders, masks) = search.grains(&missing);
    let mut came = search.came;
    came.searched = began.elapsed();
    came.literals = literals(new, &leaders, &masks);
    came
}

struct Search<'a> {
    old: &'a [u8],
    new: &'a [u8],
    hashes: BlockHashes<'a>,
    old_hashes: BlockHashes<'a>,
    /// NEW's blocks that are here.
    found: Vec<bool>,
    /// OLD's blocks that were recognised: the rolling scan leaves them out.
    recognised: Vec<bool>,
    came: Unknown,
}

impl Search<'_> {
    fn find(&mut self, block: u32) {
        if let Some(found) = self.found.get_mut(block as usize) {
            *found = true;
        }
    }

    fn recognise(&mut self, block: u32) {
        if let Some(recognised) = self.recognised.get_mut(block as usize) {
            *recognised = true;
        }
    }

    fn missing(&self) -> Vec<u32> {
        (0..).zip(&self.found).filter(|(_, found)| !**found).map(|(block, _)| block).collect()
    }

    /// The same region at the same offset; of the others the hashes of blocks are asked for, and the same block at the same
    /// offset, and zeros, are here.
    fn regions(&mut self) {
        let Ok(geometry) = Geometry::new(self.new.len() as u64) else { return };
        self.came.signature += u64::from(geometry.regions()) * DIGEST_LEN as u64;
        for region in 0..geometry.regions() {
            let bytes = geometry.region_bytes(region);
            let bytes = bytes.start as usize..bytes.end as usize;
            let same = self.old.get(bytes.clone()).is_some_and(|old| Some(old) == self.new.get(bytes));
            let blocks = geometry.region_blocks(region);
            self.came.signature += if same { 0 } else { u64::from(blocks.end - blocks.start) * 8 };
            for block in blocks {
                let hash = self.hashes.get(block);
                if same || self.old_hashes.get(block) == hash {
                    self.recognise(block);
                    self.find(block);
                } else if hash == Some(zero_hash()) {
                    self.find(block);
                }
            }
        }
    }

    /// Anywhere on the grid of 4 KiB.
    fn on_grid(&mut self) {
        let index = BlockIndex::new(self.hashes, self.missing());
        for (from, hash) in (0..).zip(self.old_hashes.iter()) {
            let blocks = index.find(hash);
            if hash == zero_hash() || !blocks.is_empty() {
                self.recognise(from);
            }
            blocks.iter().for_each(|block| self.find(*block));
        }
    }

    /// Blocks of hash trees.
    fn derive(&mut self, derived: &[Derived]) -> Vec<u32> {
        runs_derived(derived)
            .into_iter()
            .flat_map(|(first, count)| first..first + count)
            .for_each(|block| self.find(block));
        self.missing()
    }

    /// At any byte offset of what was not recognised, where there is enough of that to be worth the hashes.
    fn roll(&mut self, missing: Vec<u32>, section: &[u8]) -> Vec<u32> {
        let unknown = (0_u32..).zip(&self.recognised).filter(|(_, recognised)| !**recognised).map(|(block, _)| block);
        let unknown = runs_of(unknown);
        let blocks: usize = unknown.iter().map(|(_, count)| *count as usize).sum();
        if blocks * 2 <= missing.len() {
            return missing;
        }
        let slices = slices(&unknown, self.old.len() as u64);
        let (tried, rest) = rolling::trial(&missing);
        if rolling::pays(self.roll_for(&tried, section, &slices), tried.len()) {
            self.roll_for(&rest, section, &slices);
        }
        self.missing()
    }

    /// Looks for some of the blocks; how many of them are here now.
    fn roll_for(&mut self, blocks: &[u32], section: &[u8], slices: &[(u64, u64)]) -> usize {
        self.came.signature += blocks.len() as u64 * 8;
        let (entries, _) = section.as_chunks::<8>();
        for round in blocks.chunks(ROLLING_ROUND) {
            let wanted = round.iter().filter_map(|block| {
                let (entry, hash) = (*entries.get(*block as usize)?, self.hashes.get(*block)?);
                Some(Wanted { block: *block, entry, hash })
            });
            let rolling = Rolling::new(wanted);
            let found = on_threads(slices, |(start, end)| {
                let mut found = Vec::new();
                let bytes = self.old.get(*start as usize..*end as usize).unwrap_or(&[]);
                rolling.search(bytes, |block, _| found.push(block));
                found
            });
            for block in found.into_iter().flatten() {
                self.came.off_grid += u64::from(self.found.get(block as usize) == Some(&false));
                self.find(block);
            }
        }
        blocks.iter().filter(|block| self.found.get(**block as usize) == Some(&true)).count()
    }

    /// Eighths of what is still missing, each content once: the blocks to ask for, and of each what is lacking.
    fn grains(&mut self, missing: &[u32]) -> (Vec<u32>, Vec<u8>) {
        let mut seen = HashSet::new();
        let leaders: Vec<u32> = missing.iter().copied().filter(|block| seen.insert(self.hashes.get(*block))).collect();
        let masks = vec![grain::ALL; leaders.len()];
        let Ok(hash) = GrainHash::new(1, width_for(self.old.len() as u64)) else { return (leaders, masks) };
        let all: Vec<Run> =
            runs_of((0_u32..).zip(self.old.as_chunks::<{ BLOCK as usize }>().0).filter(not_zero).map(|(at, _)| at));
        let slices = slices(&all, self.old.len() as u64);
        let mut mosaic = Mosaic { old: self.old, new: self.new, hash, slices, leaders, masks, asked: 0 };
        mosaic.find();
        self.came.signature += mosaic.asked;
        (mosaic.leaders, mosaic.masks)
    }
}

/// Blocks, and which of their grains are lacking.
struct Mosaic<'a> {
    old: &'a [u8],
    new: &'a [u8],
    hash: GrainHash,
    /// Where OLD is not zero.
    slices: Vec<(u64, u64)>,
    leaders: Vec<u32>,
    masks: Vec<u8>,
    /// Bytes of hashes.
    asked: u64,
}

impl Mosaic<'_> {
    fn find(&mut self) {
        for first in (0..self.leaders.len()).step_by(GRAIN_ROUND) {
            let round: Vec<usize> = (first..self.leaders.len()).take(GRAIN_ROUND).collect();
            let (zeros, found) = self.look(&round, grain::PROBES);
            let holding: HashSet<usize> = found.iter().map(|grain| *grain as usize / GRAINS).collect();
            let blocks = self.leaders.get(first..first + round.len()).unwrap_or(&[]);
            let promising = grain::promising(blocks, |at| holding.contains(&(first + at)));
            self.look(&promising.into_iter().map(|at| first + at).collect::<Vec<_>>(), !grain::PROBES);
            let here = zeros.len() + found.len();
            if is_last_round(here as u32, round.len() as u32 * grain::PROBES.count_ones()) {
                break;
            }
        }
    }

    /// Looks for those grains that `mask` names, of blocks by their indices: the numbers of those that are zero, and of those
    /// that lie in OLD. Neither is lacking any more.
    fn look(&mut self, indices: &[usize], mask: u8) -> (Vec<u32>, Vec<u32>) {
        let blocks = indices.iter().filter_map(|at| self.leaders.get(*at));
        let sign = |block: &u32| self.hash.sign(&gather_bytes(self.new, [(*block, 1)]), mask);
        let wire: Vec<u8> = blocks.flat_map(sign).collect();
        self.asked += wire.len() as u64;
        let number = |at: &usize| grain::named(mask).map(|grain| (at * GRAINS + grain) as u32).collect::<Vec<_>>();
        let wanted: Vec<(u32, u64)> = indices.iter().flat_map(number).zip(self.hash.read(&wire)).collect();
        let zeros = wanted.iter().filter(|(_, value)| *value == self.hash.zero()).map(|(grain, _)| *grain).collect();
        let grains = Grains::new(self.hash, wanted);
        let found = on_threads(&self.slices, |(start, end)| {
            let (bytes, mut found) = (self.old.get(*start as usize..*end as usize).unwrap_or(&[]), Vec::new());
            grains.search(bytes, |grain, _| found.push(grain));
            found
        });
        let here: (Vec<u32>, Vec<u32>) = (zeros, found.concat());
        for grain in here.0.iter().chain(&here.1) {
            if let Some(mask) = self.masks.get_mut(*grain as usize / GRAINS) {
                *mask &= !(1 << (*grain as usize % GRAINS));
            }
        }
        here
    }
}

fn not_zero((_, block): &(u32, &[u8; BLOCK as usize])) -> bool {
    block.iter().any(|byte| *byte != 0)
}

/// What the server answers when it is asked for the grains that are lacking: literal frames, a chain for each request.
fn literals(new: &[u8], leaders: &[u32], masks: &[u8]) -> u64 {
    let lacking: Vec<(u32, u8)> =
        leaders.iter().copied().zip(masks.iter().copied()).filter(|(_, mask)| *mask != 0).collect();
    let requests: Vec<&[(u32, u8)]> = lacking.chunks(BLOCKS_PER_REQUEST as usize).collect();
    let answers = on_threads(&requests, |request| {
        let mut masks: &[u8] = &request.iter().map(|(_, mask)| *mask).collect::<Vec<_>>();
        let mut bytes = write_masks(masks).len() as u64;
        let mut chain = Chain::default();
        for piece in pieces(&runs_of(request.iter().map(|(block, _)| *block))) {
            let blocks = gather_bytes(new, piece);
            let (mine, rest) = masks.split_at((blocks.len() / BLOCK as usize).min(masks.len()));
            masks = rest;
            let raw = select(&blocks, mine);
            bytes += write_frame_after(chain.prefix(), &raw, LEVEL).len() as u64;
            chain.push(&raw);
        }
        bytes
    });
    answers.into_iter().sum()
}

// Regions are cut on the same grid as everything else here.
const _: () = assert!(REGION.is_multiple_of(BLOCK));
