//! Blocks put together from grains that are here and grains that are fetched.
//!
//! ```text
//! missing blocks ─▶ hashes of two grains of each ─▶ scan of the whole active slot ┐
//!         those near to something found ─▶ of the other six ─▶ and once more      ┴▶ [Mosaic] ─▶ ask for the rest ─▶ block hash
//! ```
//! Also what the aligned pass recognised is searched: on a file system that was upgraded in place the old version of a file
//! is free space, golden garbage at its old offset. A place is found by five or six bytes of hash; a block that was put
//! together wrongly is told by its own hash and fetched whole. The active slot is only read, so that places stay true.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use goldsync_proto::block::{byte_of, runs_of};
use goldsync_proto::grain::{self, GrainHash, width_for};
use goldsync_proto::limits::{BLOCK, GRAIN, GRAIN_ROUND, GRAINS};
use goldsync_proto::scan::grains::{Grains, is_last_round};
use goldsync_proto::scan::slices;
use goldsync_proto::signature::block_hash;

use super::own::{active_blocks, words};
use crate::fetch::{self, FetchError};
use crate::job::{Job, JobError};
use crate::scratch::Words;

/// A grain of zeros: no place is needed. Otherwise a place is the byte offset in the active slot, plus one.
const ZEROS: u64 = u64::MAX;

/// Blocks that are missing, and where their grains are.
#[derive(Debug)]
pub struct Mosaic {
    blocks: Vec<u32>,
    /// For each grain of each block its place; zero if it is not here.
    places: Words,
    /// The golden block hashes.
    golden: Arc<Words>,
}

impl Mosaic {
    /// Looks for the grains of `blocks`, ascending, in the active slot.
    pub async fn find(job: &Arc<Job>, golden: &Arc<Words>, blocks: Vec<u32>) -> Result<Self, JobError> {
        let places = words(job, blocks.len() as u32 * GRAINS as u32, None)?;
        let mosaic = Arc::new(Self { blocks, places, golden: golden.clone() });
        let budget = Arc::new(AtomicI64::new(i64::try_from(job.scan_budget).unwrap_or(i64::MAX)));
        let mut first = 0;
        while first < mosaic.blocks.len() && active_blocks(job) > 0 && budget.load(Ordering::Relaxed) > 0 {
            let (found, of) = mosaic.round(job, first, &budget).await?;
            first += GRAIN_ROUND;
            if is_last_round(found, of) {
                break;
            }
        }
        // Every other holder was a thread that has ended.
        Arc::try_unwrap(mosaic).map_err(|_| JobError::Worker("a scan goes on".into()))
    }

    /// One round's blocks: how many of the grains that were looked for first are here, of how many.
    async fn round(
        self: &Arc<Self>,
        job: &Arc<Job>,
        first: usize,
        budget: &Arc<AtomicI64>,
    ) -> Result<(u32, u32), JobError> {
        let round: Vec<usize> = (first..self.blocks.len()).take(GRAIN_ROUND).collect();
        let looked = self.look(job, &round, grain::PROBES, budget).await?;
        let blocks = self.blocks.get(first..first + round.len()).unwrap_or(&[]);
        let promising = grain::promising(blocks, |at| self.holds_any(first + at, grain::PROBES));
        let promising: Vec<usize> = promising.into_iter().map(|at| first + at).collect();
        if !promising.is_empty() && budget.load(Ordering::Relaxed) > 0 {
            self.look(job, &promising, !grain::PROBES, budget).await?;
        }
        Ok(looked)
    }

    /// Looks for those grains that `mask` names, of blocks by their indices: how many are here, of how many.
    async fn look(
        self: &Arc<Self>,
        job: &Arc<Job>,
        indices: &[usize],
        mask: u8,
        budget: &Arc<AtomicI64>,
    ) -> Result<(u32, u32), JobError> {
        let width = width_for(byte_of(active_blocks(job)));
        let seed: u32 = rand::random();
        let hash = GrainHash::new(seed, width)
            .map_err(|error| FetchError::Answer { what: "a request for hashes of grains", got: error.to_string() })?;
        let runs = runs_of(indices.iter().filter_map(|at| self.blocks.get(*at).copied()));
        let wire = fetch::grains::hashes(job, job.target.image, (seed, width), mask, &runs).await?;
        let numbers: Vec<u32> = indices.iter().flat_map(|at| numbers(*at, mask)).collect();
        let (mosaic, budget) = (self.clone(), budget.clone());
        job.blocking(move |job| {
            let wanted = || numbers.iter().copied().zip(hash.read(&wire));
            let mut found = 0;
            for (grain, _) in wanted().filter(|(_, value)| *value == hash.zero()) {
                mosaic.places.set(grain, ZEROS);
                found += 1;
            }
            let grains = Grains::new(hash, wanted());
            mosaic.scan(job, &grains, &budget)?;
            found += grains.len() as u32 - grains.left();
            Ok((found, numbers.len() as u32))
        })
        .await
    }

    /// Whether one of a block's grains has a place. Zeros say nothing of their neighbours.
    fn holds_any(&self, at: usize, mask: u8) -> bool {
        numbers(at, mask).any(|grain| !matches!(self.places.get(grain), 0 | ZEROS))
    }

    fn scan(&self, job: &Job, grains: &Grains, budget: &AtomicI64) -> Result<(), JobError> {
        let slices = slices(&[(0, active_blocks(job))], byte_of(active_blocks(job)));
        job.on_threads(slices.len() as u32, |at| {
            let Some((start, end)) = slices.get(at as usize).copied() else { return Ok(()) };
            if grains.left() == 0 || budget.fetch_sub((end - start) as i64, Ordering::Relaxed) <= 0 {
                return Ok(());
            }
            let mut bytes = vec![0; (end - start) as usize];
            job.stage.read_active(start, &mut bytes)?;
            for (from, to) in not_zero(&bytes) {
                let part = bytes.get(from..to).unwrap_or(&[]);
                let place = |offset: usize| start + (from + offset) as u64 + 1;
                grains.search(part, |grain, offset| self.places.set(grain, place(offset)));
            }
            Ok(())
        })
    }

    /// The blocks, and of each the grains that have to be fetched.
    pub fn lacking(&self) -> fetch::grains::Lacking {
        let mask = |at: usize| {
            let lacks = |grain: &usize| self.places.get((at * GRAINS + grain) as u32) == 0;
            (0..GRAINS).filter(lacks).fold(0, |mask, grain| mask | 1 << grain)
        };
        self.blocks.iter().enumerate().map(|(at, block)| (*block, mask(at))).collect()
    }

    /// Fetches what is lacking and hands each block to `put`; returns the blocks that did not come out golden.
    pub async fn fetch(
        self,
        job: &Arc<Job>,
        put: impl Fn(&Job, u32, &[u8]) -> Result<(), JobError> + Clone + Send + 'static,
    ) -> Result<Vec<u32>, JobError> {
        let (whole, lacking): (Vec<_>, Vec<_>) = self.lacking().into_iter().partition(|(_, mask)| *mask == 0);
        let (mosaic, broken) = (Arc::new(self), Arc::new(Mutex::new(Vec::new())));
        let take = {
            let (mosaic, broken) = (mosaic.clone(), broken.clone());
            move |job: &Job, block: u32, mask: u8, grains: &[u8]| {
                let bytes = mosaic.assemble(job, block, mask, grains)?;
                if block_hash(&bytes) == mosaic.golden.get(block) {
                    return put(job, block, &bytes);
                }
                broken.lock().unwrap_or_else(PoisonError::into_inner).push(block);
                Ok(())
            }
        };
        let local = take.clone();
        job.blocking(move |job| whole.into_iter().try_for_each(|(block, _)| local(job, block, 0, &[]))).await?;
        fetch::grains::lacking(job, job.target.image, &lacking, take).await?;
        let mut broken = std::mem::take(&mut *broken.lock().unwrap_or_else(PoisonError::into_inner));
        broken.sort_unstable();
        Ok(broken)
    }

    fn assemble(&self, job: &Job, block: u32, mask: u8, fetched: &[u8]) -> Result<Vec<u8>, JobError> {
        let first = self.blocks.binary_search(&block).unwrap_or(0) * GRAINS;
        let mut bytes = vec![0; BLOCK as usize];
        let mut fetched = fetched.chunks_exact(GRAIN as usize);
        for (at, grain) in bytes.chunks_exact_mut(GRAIN as usize).enumerate() {
            if mask >> at & 1 == 1 {
                grain.copy_from_slice(fetched.next().unwrap_or(&[0; GRAIN as usize]));
                continue;
            }
            match self.places.get((first + at) as u32) {
                ZEROS => {}
                place => job.stage.read_active(place.saturating_sub(1), grain)?,
            }
        }
        Ok(bytes)
    }
}

/// The numbers of a block's grains that `mask` names.
fn numbers(at: usize, mask: u8) -> impl Iterator<Item = u32> {
    grain::named(mask).map(move |grain| (at * GRAINS + grain) as u32)
}

/// The parts of a slice outside its blocks of zeros, each with what a window over its edges needs.
fn not_zero(bytes: &[u8]) -> Vec<(usize, usize)> {
    let blocks = (0_u32..).zip(bytes.chunks(BLOCK as usize));
    let runs = runs_of(blocks.filter(|(_, block)| block.iter().any(|byte| *byte != 0)).map(|(index, _)| index));
    let part = |(first, count): (u32, u32)| {
        let (from, to) = (byte_of(first) as usize, byte_of(first + count) as usize);
        (from.saturating_sub(GRAIN as usize - 1), bytes.len().min(to + GRAIN as usize - 1))
    };
    runs.into_iter().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_zeros_are_left_out_with_no_window_lost() {
        let mut bytes = vec![0; 6 * 4096 + 100];
        assert_eq!(not_zero(&bytes), []);
        bytes[4096] = 1;
        bytes[3 * 4096 - 1] = 1;
        bytes[6 * 4096 + 7] = 1;
        assert_eq!(not_zero(&bytes), [(4096 - 511, 3 * 4096 + 511), (6 * 4096 - 511, 6 * 4096 + 100)]);
    }
}
