//! The rolling pass: whole golden blocks at any byte offset.
//!
//! A window of a block's length is moved over the local bytes with librsync's weak sum, which the section `rolling` has for
//! each golden block. Where a wanted sum is met, the block's own hash decides; the four bytes of MD4 beside the sum are for
//! librsync's own programs and are not looked at. fast_rsync makes the section at publish, and in the tests says what has to be
//! found; it is not used for searching, because where nothing matches it looks every offset up in a hash map.

#[cfg(target_arch = "x86_64")]
use super::avx2::Avx2;
use super::contents::{Contents, Want};
use super::filter::Filter;
use super::kernel::Kernel;
use super::lanes::{self, LANES, Roller, Row, Tracks};
#[cfg(target_arch = "x86_64")]
use super::lanes::{Batch, WholeTracks};
use crate::limits::{BLOCK, ROLLING_ROUND};
use crate::signature::{ROLLING_ENTRY, block_hash};

/// A golden block that is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its number.
    pub block: u32,
    /// Its entry of the section `rolling`.
    pub entry: [u8; ROLLING_ENTRY],
    /// Its entry of the section `blocks`.
    pub hash: u64,
}

/// The golden blocks of one round, ready to be searched for. Shared by all threads.
#[derive(Debug)]
pub struct Rolling {
    kernel: Kernel,
    filter: Filter,
    contents: Contents,
}

impl Rolling {
    /// Prepares the search for `wanted`; at most [`ROLLING_ROUND`] of them count.
    pub fn new(wanted: impl IntoIterator<Item = Wanted>) -> Self {
        let want = |Wanted { block, entry, hash }| Want { key: key_of_entry(entry), hash, owner: block };
        let contents = Contents::new(wanted.into_iter().take(ROLLING_ROUND).map(want).collect());
        Self { kernel: Kernel::best(), filter: Filter::new(contents.keys()), contents }
    }

    /// Without any instructions that not every processor has.
    pub fn portable(self) -> Self {
        Self { kernel: Kernel::Portable, ..self }
    }

    /// Contents that were not met yet.
    pub fn left(&self) -> u32 {
        self.contents.left()
    }

    /// Searches `slice`; tells the wanted blocks whose content lies at an offset of it. Those that straddle its end are not
    /// found: overlap slices by a block less one byte.
    pub fn search(&self, slice: &[u8], tell: impl FnMut(u32, usize)) {
        self.search_by(slice, block_hash, tell);
    }

    /// [`Rolling::search`] with a hash of the caller's.
    fn search_by(&self, slice: &[u8], hash: impl Fn(&[u8]) -> u64, mut tell: impl FnMut(u32, usize)) {
        if self.left() == 0 {
            return;
        }
        lanes::search(self.kernel, &WeakSum, &self.filter, &self.contents, slice, |key, offset| {
            let window = || slice.get(offset..offset + WeakSum::WINDOW).map_or(0, &hash);
            self.contents.meet(key, window, |block| tell(block, offset));
        });
    }
}

/// Splits missing blocks into some that are searched for first, a sixteenth of them in runs that are asked for together, and the
/// others.
pub fn trial(missing: &[u32]) -> (Vec<u32>, Vec<u32>) {
    const RUN: usize = 64;
    const ONE_IN: usize = 16;
    let runs = missing.chunks(RUN).enumerate();
    let (tried, rest): (Vec<_>, Vec<_>) = runs.partition(|(at, _)| at % ONE_IN == 0);
    let blocks = |runs: Vec<(usize, &[u32])>| runs.into_iter().flat_map(|(_, run)| run.to_vec()).collect();
    (blocks(tried), blocks(rest))
}

/// Whether so many found in a trial make it worth asking for the others' entries: eight bytes for each, where its grains' hashes
/// would cost ten, and thirty more if they are found.
pub fn pays(found: usize, tried: usize) -> bool {
    found * 6 >= tried
}

/// librsync's weak sum, as it rolls.
///
/// librsync adds 31 to each byte, which adds the same to the sums of all blocks of one length; here it is left out:
///
/// ```text
/// a(b[0..4096]) = Σ b[i]                mod 2^16
/// d(b[0..4096]) = Σ (4096 - i) · b[i]   mod 2^16        librsync's sum: d + constant, a + constant, 16 bits each
/// ```
#[derive(Debug)]
pub(super) struct WeakSum;

/// The sums of all lanes' windows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) a: [u16; LANES],
    pub(super) d: [u16; LANES],
}

/// What 31 for each byte comes to.
const MAGIC: u64 = 31;
const A_MAGIC: u16 = (MAGIC * BLOCK) as u16;
const D_MAGIC: u16 = (MAGIC * BLOCK * (BLOCK + 1) / 2) as u16;

/// Multiplies a sum so that its upper bits depend on all of it; folding the result brings them back into the lower ones.
pub(super) const MIX: u32 = 0x9E37_79B1;
pub(super) const FOLD: i32 = 15;

fn key(a: u16, d: u16) -> u32 {
    let mixed = (u32::from(d) << 16 | u32::from(a)).wrapping_mul(MIX);
    mixed ^ mixed >> FOLD
}

/// The key of a block, from librsync's sum.
fn key_of_entry(entry: [u8; ROLLING_ENTRY]) -> u32 {
    let [d1, d0, a1, a0, ..] = entry;
    key(u16::from_be_bytes([a1, a0]).wrapping_sub(A_MAGIC), u16::from_be_bytes([d1, d0]).wrapping_sub(D_MAGIC))
}

impl Roller for WeakSum {
    const WINDOW: usize = BLOCK as usize;
    type Values = Sums;

    fn begin(&self, windows: Tracks<'_>) -> Sums {
        let sums = windows.map(|window| {
            let weighted = (0..window.len() as u16).rev().zip(window);
            weighted.fold((0_u16, 0_u16), |(a, d), (weight, byte)| {
                let byte = u16::from(*byte);
                (a.wrapping_add(byte), d.wrapping_add(byte.wrapping_mul(weight.wrapping_add(1))))
            })
        });
        Sums { a: sums.map(|(a, _)| a), d: sums.map(|(_, d)| d) }
    }

    fn keys(&self, values: &Sums) -> Row {
        std::array::from_fn(|lane| key(values.a[lane], values.d[lane]))
    }

    fn roll(&self, values: &mut Sums, leaves: &Tracks<'_>, enters: &Tracks<'_>, keys: &mut [Row]) {
        for (step, row) in keys.iter_mut().enumerate() {
            for lane in 0..LANES {
                let (leaves, enters) = (u16::from(leaves[lane][step]), u16::from(enters[lane][step]));
                values.a[lane] = values.a[lane].wrapping_add(enters).wrapping_sub(leaves);
                let leaves = leaves.wrapping_mul(BLOCK as u16);
                values.d[lane] = values.d[lane].wrapping_add(values.a[lane]).wrapping_sub(leaves);
            }
            *row = self.keys(values);
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn roll_avx2(
        &self,
        avx2: Avx2,
        values: &mut Sums,
        leaves: &WholeTracks<'_>,
        enters: &WholeTracks<'_>,
        keys: &mut Batch,
    ) {
        avx2.sums(values, leaves, enters, keys);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::contents::MISSES_MAX;
    use super::super::oracle;
    pub(in super::super) use super::WeakSum;
    use super::*;
    use crate::signature::sign_blocks;
    use crate::testing::noise;
    use proptest::prelude::*;
    use std::cell::Cell;

    #[test]
    fn a_trial_is_a_sixteenth_and_nothing_is_lost() {
        let missing: Vec<u32> = (0..64 * 40).map(|at| at * 3).collect();
        let (tried, rest) = trial(&missing);
        assert_eq!(tried.len(), 64 * 3);
        let mut both = [tried, rest].concat();
        both.sort_unstable();
        assert_eq!(both, missing);
        assert_eq!(trial(&missing[..50]), (missing[..50].to_vec(), vec![]));
        assert!(pays(1, 6) && !pays(1, 7) && pays(0, 0));
    }

    /// A window's key, from the sum that fast_rsync computes.
    pub(in super::super) fn key_by_librsync(window: &[u8]) -> u32 {
        key_of_entry(oracle::sign(window)[0])
    }

    /// The blocks of `golden`, but those of zeros.
    fn wanted(golden: &[u8]) -> Vec<Wanted> {
        let hashes = sign_blocks(golden);
        let hashes = hashes.as_chunks().0.iter().map(|hash| u64::from_le_bytes(*hash));
        let wanted = (0..).zip(oracle::sign(golden)).zip(hashes);
        wanted.map(|((block, entry), hash)| Wanted { block, entry, hash }).collect()
    }

    fn found(rolling: &Rolling, local: &[u8]) -> Vec<(u32, usize)> {
        let mut found = Vec::new();
        rolling.search(local, |block, offset| found.push((block, offset)));
        found.sort_unstable();
        found
    }

    #[test]
    fn blocks_are_found_at_any_offset_and_for_every_owner() {
        let mut golden = noise(16 * 4096, 1);
        golden.copy_within(0..4096, 9 * 4096);
        let mut local = noise(777, 2);
        local.extend_from_slice(&golden[..5 * 4096]);
        local.extend_from_slice(&noise(300, 3));
        local.extend_from_slice(&golden[12 * 4096..]);
        let rolling = Rolling::new(wanted(&golden));
        let (head, tail) = (777, 777 + 5 * 4096 + 300);
        let at = |base: usize, block: usize| base + block * 4096;
        let head = [(0, head), (1, at(head, 1)), (2, at(head, 2)), (3, at(head, 3)), (4, at(head, 4)), (9, head)];
        let tail = [(12, tail), (13, at(tail, 1)), (14, at(tail, 2)), (15, at(tail, 3))];
        assert_eq!(found(&rolling, &local), [&head[..], &tail].concat());
        assert_eq!(rolling.left(), 15 - 9);
        assert_eq!(found(&rolling, &local), [], "told already");
    }

    #[test]
    fn short_slices_and_nothing_wanted_find_nothing() {
        let rolling = Rolling::new(wanted(&noise(16 * 4096, 1)));
        for len in [0, 1, 4095, 4096, 4097, 4 << 20] {
            assert_eq!(found(&rolling, &vec![0; len]), []);
        }
        assert_eq!(found(&Rolling::new([]), &[0; 8192]), []);
    }

    /// A signature whose sums are met at every offset, with contents that are not there: what it costs is counted.
    #[test]
    fn sums_that_match_everywhere_cost_few_hashes() {
        let hashed = |wanted: Vec<Wanted>, local: &[u8]| {
            let (rolling, hashed) = (Rolling::new(wanted), Cell::new(0));
            let hash = |window: &[u8]| {
                hashed.set(hashed.get() + 1);
                block_hash(window)
            };
            rolling.search_by(local, hash, |_, _| panic!("nothing of this is there"));
            hashed.get()
        };
        let lie = |block: u32, window: &[u8]| Wanted { block, entry: oracle::sign(window)[0], hash: block.into() };

        let constant = vec![b'x'; 1 << 20];
        let one_sum: Vec<_> = (0..5000).map(|block| lie(block, &constant[..4096])).collect();
        assert_eq!(hashed(one_sum, &constant), u32::from(MISSES_MAX));

        let periodic: Vec<u8> = noise(300, 4).into_iter().cycle().take(1 << 20).collect();
        let every_sum: Vec<_> = (0..300).map(|block| lie(block, &periodic[block as usize..][..4096])).collect();
        assert_eq!(hashed(every_sum, &periodic), 300 * u32::from(MISSES_MAX));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_entries_can_be_searched_for(
            entries: Vec<([u8; 8], u64)>,
            local in proptest::collection::vec(any::<u8>(), 0..9000),
        ) {
            let wanted = || (0..).zip(&entries).map(|(block, (entry, hash))| Wanted { block, entry: *entry, hash: *hash });
            prop_assert_eq!(found(&Rolling::new(wanted()), &local), found(&Rolling::new(wanted()).portable(), &local));
        }

        #[test]
        fn what_fast_rsync_finds_is_found(
            script in proptest::collection::vec((0_usize..12, 1_usize..9000), 1..20),
            few in any::<bool>(),
        ) {
            let golden: Vec<u8> =
                if few { (0..6 * 4096).map(|i| (i / 700) as u8).collect() } else { noise(6 * 4096, 3) };
            let mut local = Vec::new();
            for (what, len) in script {
                match what {
                    0..6 => local.extend_from_slice(&golden[what * 4096..(what * 4096 + len).min(golden.len())]),
                    6..9 => local.extend(noise(len, what as u64)),
                    9 => local.resize(local.len() + 4 * len, 0),
                    _ => local.resize(local.len() + 3 * len, 5),
                }
            }
            let ours = found(&Rolling::new(wanted(&golden)), &local);
            prop_assert_eq!(&ours, &found(&Rolling::new(wanted(&golden)).portable(), &local));
            for (block, offset) in &ours {
                prop_assert_eq!(&golden[*block as usize * 4096..][..4096], &local[*offset..offset + 4096]);
            }
            for (block, _) in oracle::found(&oracle::sign(&golden), &local) {
                prop_assert!(ours.iter().any(|(ours, _)| *ours == block), "block {}", block);
            }
        }
    }
}
