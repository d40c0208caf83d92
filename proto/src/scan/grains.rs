//! The fine scan: grains of missing golden blocks, at any byte offset of local bytes.
//!
//! Four windows are rolled side by side over four quarters of a slice, so that the processor works on one while another
//! waits for its multiplication. Two bits of one word of a bitmap of fixed size are looked at first: nearly all offsets end
//! there. Each content is reported once, where it is first met, and is not looked for again: constant and periodic data
//! cost a lookup an offset and no more. Zeros are the caller's business ([`GrainHash::zero`]); a grain of them is not
//! searched for, and slices of them need not be passed in.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::Owners;
use crate::grain::GrainHash;
use crate::limits::GRAIN;

/// Whether a round that found so many of its grains is the last: next to nothing of the image is here.
pub fn is_last_round(found: u32, of: u32) -> bool {
    found.saturating_mul(64) < of
}

/// Bytes in a window.
const WINDOW: usize = GRAIN as usize;

/// Words of the bitmap: 512 KiB, which stays in the second cache. A full round of grains lets one offset in twenty pass, a
/// sixth of it one in a thousand.
const FILTER_WORDS: usize = 1 << FILTER_LOG;
const FILTER_LOG: u32 = 16;

/// Windows rolled at once.
const LANES: usize = 4;

/// The grains of one round, ready to be searched for. Shared by all threads.
#[derive(Debug)]
pub struct Grains {
    hash: GrainHash,
    filter: Box<[u64; FILTER_WORDS]>,
    /// One hash for each content, ascending.
    hashes: Vec<u64>,
    owners: Owners,
    /// Where the contents with a hash's upper bits begin.
    starts: Vec<u32>,
    start_bits: u32,
    /// One bit for each content that was found.
    found: Vec<AtomicU64>,
    left: AtomicU32,
}

impl Grains {
    /// Prepares the search for `wanted`: numbers of the caller's own, and the hashes of the grains they stand for.
    pub fn new(hash: GrainHash, wanted: impl IntoIterator<Item = (u32, u64)>) -> Self {
        let zero = hash.zero();
        let mut wanted: Vec<_> = wanted.into_iter().filter(|(_, value)| *value != zero).collect();
        wanted.sort_unstable_by_key(|(owner, value)| (*value, *owner));
        let (hashes, owners) = Owners::group(&wanted);
        let bits = 8 * hash.width() as u32;
        let start_bits = hashes.len().max(2).ilog2().clamp(1, 20);
        let mut filter = vec![0_u64; FILTER_WORDS];
        let mut starts = vec![0_u32; (1 << start_bits) + 1];
        for value in &hashes {
            let (word, mask) = filter_at(value << (64 - bits));
            if let Some(word) = filter.get_mut(word) {
                *word |= mask;
            }
            if let Some(count) = starts.get_mut((value >> (bits - start_bits)) as usize + 1) {
                *count += 1;
            }
        }
        let mut sum = 0;
        for start in &mut starts {
            sum += *start;
            *start = sum;
        }
        let found = (0..hashes.len().div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let left = AtomicU32::new(hashes.len() as u32);
        // The length is the constant's.
        let filter = filter.into_boxed_slice().try_into().unwrap_or_else(|_| Box::new([0; FILTER_WORDS]));
        Self { hash, filter, hashes, owners, starts, start_bits, found, left }
    }

    /// Contents that are looked for.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Contents that were not met yet.
    pub fn left(&self) -> u32 {
        self.left.load(Ordering::Relaxed)
    }

    /// Searches `slice`; tells the wanted grains whose content lies at an offset of it. Those that straddle its end are not
    /// found: overlap slices by a grain less one byte.
    pub fn search(&self, slice: &[u8], mut tell: impl FnMut(u32, usize)) {
        let Some(windows) = (slice.len() + 1).checked_sub(WINDOW).filter(|_| self.left() > 0) else { return };
        let lane = windows / LANES;
        if lane < WINDOW {
            return self.lane(slice, 0, &mut tell);
        }
        let mut values = [0_u64; LANES];
        for (at, value) in values.iter_mut().enumerate() {
            *value = self.hash.value(slice.get(at * lane..at * lane + WINDOW).unwrap_or(&[]));
            self.look(*value, at * lane, &mut tell);
        }
        // One roll fewer than windows: each lane's first is looked up already. Slices of one length spare the bounds checks.
        let rolls = lane - 1;
        let part = |from: usize| slice.get(from..from + rolls).unwrap_or(&[]);
        let leaves: [&[u8]; LANES] = std::array::from_fn(|at| part(at * lane));
        let enters: [&[u8]; LANES] = std::array::from_fn(|at| part(at * lane + WINDOW));
        self.lanes(values, leaves, enters, rolls, |value, lane_at, step| {
            self.look(value, lane_at * lane + step, &mut tell)
        });
        // What the division left over.
        self.lane(slice.get(LANES * lane..).unwrap_or(&[]), LANES * lane, &mut tell);
    }

    #[inline(always)]
    fn lanes(
        &self,
        mut values: [u64; LANES],
        leaves: [&[u8]; LANES],
        enters: [&[u8]; LANES],
        rolls: usize,
        mut hit: impl FnMut(u64, usize, usize),
    ) {
        let [l0, l1, l2, l3] = leaves.map(|part| part.get(..rolls).unwrap_or(&[]));
        let [e0, e1, e2, e3] = enters.map(|part| part.get(..rolls).unwrap_or(&[]));
        let bytes = l0.iter().zip(e0).zip(l1.iter().zip(e1)).zip(l2.iter().zip(e2).zip(l3.iter().zip(e3)));
        for (step, (((a0, b0), (a1, b1)), ((a2, b2), (a3, b3)))) in bytes.enumerate() {
            values[0] = self.hash.roll(values[0], *a0, *b0);
            values[1] = self.hash.roll(values[1], *a1, *b1);
            values[2] = self.hash.roll(values[2], *a2, *b2);
            values[3] = self.hash.roll(values[3], *a3, *b3);
            let passed = values.map(|value| self.passes(value));
            if passed[0] | passed[1] | passed[2] | passed[3] {
                for (lane, value) in values.into_iter().enumerate() {
                    hit(value, lane, step + 1);
                }
            }
        }
    }

    /// One window over a short slice, which begins at `first`.
    fn lane(&self, slice: &[u8], first: usize, tell: &mut impl FnMut(u32, usize)) {
        let Some(window) = slice.get(..WINDOW) else { return };
        let mut value = self.hash.value(window);
        self.look(value, first, tell);
        let enters = slice.get(WINDOW..).unwrap_or(&[]);
        for (at, (leaves, enters)) in slice.iter().zip(enters).enumerate() {
            value = self.hash.roll(value, *leaves, *enters);
            self.look(value, first + at + 1, tell);
        }
    }

    #[inline(always)]
    fn passes(&self, value: u64) -> bool {
        let (word, mask) = filter_at(value);
        self.filter[word] & mask == mask
    }

    #[inline(always)]
    fn look(&self, value: u64, offset: usize, tell: &mut impl FnMut(u32, usize)) {
        if self.passes(value) {
            self.look_up(value, offset, tell);
        }
    }

    #[inline(never)]
    fn look_up(&self, value: u64, offset: usize, tell: &mut impl FnMut(u32, usize)) {
        let hash = self.hash.of_value(value);
        let bucket = (value >> (64 - self.start_bits)) as usize;
        let (Some(start), Some(end)) = (self.starts.get(bucket), self.starts.get(bucket + 1)) else { return };
        let bucket = self.hashes.get(*start as usize..*end as usize).unwrap_or(&[]);
        let Ok(at) = bucket.binary_search(&hash) else { return };
        let content = *start as usize + at;
        let bit = 1 << (content % 64);
        let seen = self.found.get(content / 64).is_none_or(|word| {
            // A plain read first: constant data comes here at every offset.
            word.load(Ordering::Relaxed) & bit != 0 || word.fetch_or(bit, Ordering::Relaxed) & bit != 0
        });
        if !seen {
            self.left.fetch_sub(1, Ordering::Relaxed);
            self.owners.of(content).iter().for_each(|owner| tell(*owner, offset));
        }
    }
}

/// A value's word of the filter and its bits in it. They are among the upper 28, which every hash has.
#[inline(always)]
fn filter_at(value: u64) -> (usize, u64) {
    let bit = |shift: u32| 1_u64 << (value >> (64 - FILTER_LOG - shift) & 63);
    ((value >> (64 - FILTER_LOG)) as usize % FILTER_WORDS, bit(6) | bit(12))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::noise;
    use proptest::prelude::*;

    /// Where each wanted grain is first found, by comparing bytes.
    fn plainly(golden: &[u8], local: &[u8]) -> Vec<Option<usize>> {
        let find = |grain: &[u8]| local.windows(WINDOW).position(|window| window == grain);
        golden
            .chunks_exact(WINDOW)
            .map(|grain| if grain.iter().all(|b| *b == 0) { None } else { find(grain) })
            .collect()
    }

    fn searched(golden: &[u8], local: &[u8], seed: u32) -> Vec<Option<usize>> {
        let hash = GrainHash::new(seed, 8).unwrap();
        let grains = Grains::new(hash, (0..).zip(golden.chunks_exact(WINDOW).map(|grain| hash.of(grain))));
        let mut found = vec![None; golden.len() / WINDOW];
        grains.search(local, |owner, offset| found[owner as usize] = Some(offset));
        found
    }

    #[test]
    fn grains_are_found_at_any_offset_and_for_every_owner() {
        let mut golden = noise(8 * WINDOW, 1);
        golden.copy_within(0..WINDOW, 5 * WINDOW);
        golden[6 * WINDOW..7 * WINDOW].fill(0);
        for (len, at) in [(600, 3), (5000, 777), (70_001, 69_001 - 512), (70_001, 17_500), (70_001, 0)] {
            let mut local = noise(len, 2);
            let end = local.len().min(at + 2 * WINDOW);
            local[at..end].copy_from_slice(&golden[..end - at]);
            let found = searched(&golden, &local, 9);
            let both = (end - at == 2 * WINDOW).then_some(at + WINDOW);
            let one = (end - at >= WINDOW).then_some(at);
            assert_eq!(found, [one, both, None, None, None, one, None, None], "{len} {at}");
        }
    }

    #[test]
    fn a_content_is_told_once_however_often_it_is_there() {
        let golden = vec![b'x'; WINDOW];
        let hash = GrainHash::new(1, 5).unwrap();
        let grains = Grains::new(hash, [(7, hash.of(&golden)), (8, hash.zero())]);
        assert_eq!((grains.len(), grains.left()), (1, 1), "zeros are not searched for");
        let mut told = Vec::new();
        grains.search(&vec![b'x'; 1 << 20], |owner, offset| told.push((owner, offset)));
        assert_eq!((told, grains.left()), (vec![(7, 0)], 0));
        grains.search(&vec![b'x'; 1 << 20], |_, _| panic!("found already"));
    }

    proptest! {
        #[test]
        fn what_is_found_is_what_comparing_finds(
            script in proptest::collection::vec((0_usize..12, 1_usize..900), 1..20),
            few in any::<bool>(),
            seed: u32,
        ) {
            let golden = if few { (0..6 * WINDOW).map(|i| (i / 700) as u8).collect() } else { noise(6 * WINDOW, 3) };
            let mut local = Vec::new();
            for (what, len) in script {
                match what {
                    0..6 => local.extend_from_slice(&golden[what * WINDOW..((what + 1) * WINDOW + len).min(golden.len())]),
                    6..9 => local.extend(noise(len, what as u64)),
                    9 => local.resize(local.len() + 4 * len, 0),
                    _ => local.resize(local.len() + 3 * len, b'x'),
                }
            }
            let (found, expected) = (searched(&golden, &local, seed), plainly(&golden, &local));
            for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
                prop_assert_eq!(found.is_some(), expected.is_some(), "grain {}", at);
                let grain = &golden[at * WINDOW..(at + 1) * WINDOW];
                prop_assert!(found.is_none_or(|offset| &local[offset..offset + WINDOW] == grain));
            }
        }
    }
}
