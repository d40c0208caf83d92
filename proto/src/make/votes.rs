//! Which parts of the base have most in common with some bytes, wherever they lie.
//!
//! A gear hash rolls over the base; where its top bits are zero (once in about 256 bytes, a place that content alone
//! decides) the hash is kept with the segment it fell into. Bytes that are asked about are sampled the same way, and each
//! sample votes for the segments that have it. Samples that many segments share say little and are not counted.

use std::collections::HashMap;

use crate::limits::BLOCK;

/// Bytes in a segment.
const SEGMENT: usize = super::SEGMENT_BLOCKS as usize * BLOCK as usize;

/// A sample that more segments than this share does not vote.
const SHARED_MAX: usize = 8;

/// The base's samples: `(hash, segment)` in one word each, sorted.
#[derive(Debug, Default)]
pub struct Votes {
    samples: Vec<u64>,
}

impl Votes {
    /// Samples a base, on all cores, but on no more threads than that.
    pub fn of(base: &[u8], threads: usize) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(threads).max(1);
        let part = base.len().div_ceil(threads).next_multiple_of(SEGMENT).max(SEGMENT);
        let mut samples: Vec<u64> = std::thread::scope(|scope| {
            let sample = |index: usize, bytes: &[u8]| {
                let mut samples = Vec::with_capacity(bytes.len() / 200);
                each_sample(bytes, |at, hash| {
                    let segment = (index * part + at) / SEGMENT;
                    samples.push(u64::from(hash) << 32 | segment as u64);
                });
                samples
            };
            let workers: Vec<_> =
                base.chunks(part).enumerate().map(|(index, bytes)| scope.spawn(move || sample(index, bytes))).collect();
            workers
                .into_iter()
                .flat_map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        samples.sort_unstable();
        samples.dedup();
        Self { samples }
    }

    /// Votes by segment for `bytes`.
    pub fn count(&self, bytes: &[u8]) -> HashMap<u32, u32> {
        let mut asked = Vec::with_capacity(bytes.len() / 200);
        each_sample(bytes, |_, hash| asked.push(hash));
        asked.sort_unstable();
        asked.dedup();
        let mut votes = HashMap::new();
        for hash in asked {
            let first = self.samples.partition_point(|sample| *sample < u64::from(hash) << 32);
            let shared: Vec<u32> = self
                .samples
                .iter()
                .skip(first)
                .take(SHARED_MAX + 1)
                .take_while(|sample| (*sample >> 32) as u32 == hash)
                .map(|sample| *sample as u32)
                .collect();
            if shared.len() <= SHARED_MAX {
                // A sample of one segment only is worth more than one of eight.
                let weight = (SHARED_MAX / shared.len().max(1)) as u32;
                shared.into_iter().for_each(|segment| *votes.entry(segment).or_default() += weight);
            }
        }
        votes
    }
}

/// Calls `take` with the place and the hash of each sample of `bytes`.
fn each_sample(bytes: &[u8], mut take: impl FnMut(usize, u32)) {
    let mut hash = 0_u64;
    for (at, byte) in bytes.iter().enumerate() {
        // 64 shifts push a byte out: the window is the last 64 bytes.
        hash = (hash << 1).wrapping_add(GEAR[*byte as usize]);
        if hash >> 56 == 0 && at >= 64 {
            take(at, (hash >> 24) as u32);
        }
    }
}

/// One random word a byte, by splitmix64 from a fixed seed: the same on every machine.
static GEAR: [u64; 256] = {
    let mut table = [0; 256];
    let mut state = 0x676f_6c64_7379_6e63_u64;
    let mut at = 0;
    while at < 256 {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        table[at] = word ^ (word >> 31);
        at += 1;
    }
    table
};
