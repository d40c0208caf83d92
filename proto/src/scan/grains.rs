//! The fine scan: grains of missing golden blocks, at any byte offset of local bytes.
//!
//! A window of a grain's length is moved over the local bytes with the grains' own hash, of which the upper 32 bits are what
//! it is looked up by; where they are met, the rest decides. Zeros are the caller's business ([`GrainHash::zero`]); a grain of
//! them is not searched for, and slices of them need not be passed in.

#[cfg(target_arch = "x86_64")]
use super::avx2::Avx2;
use super::contents::{Contents, Want};
use super::filter::Filter;
use super::kernel::Kernel;
use super::lanes::{self, LANES, Roller, Row, Tracks};
#[cfg(target_arch = "x86_64")]
use super::lanes::{Batch, WholeTracks};
use crate::grain::GrainHash;
use crate::limits::GRAIN;

/// Whether a round that found so many of its grains is the last: next to nothing of the image is here.
pub fn is_last_round(found: u32, of: u32) -> bool {
    found.saturating_mul(64) < of
}

/// The grains of one round, ready to be searched for. Shared by all threads.
#[derive(Debug)]
pub struct Grains {
    kernel: Kernel,
    hash: GrainHash,
    filter: Filter,
    contents: Contents,
}

impl Grains {
    /// Prepares the search for `wanted`: numbers of the caller's own, and the hashes of the grains they stand for.
    pub fn new(hash: GrainHash, wanted: impl IntoIterator<Item = (u32, u64)>) -> Self {
        let zero = hash.zero();
        let wanted = wanted.into_iter().filter(|(_, value)| *value != zero);
        let want = |(owner, value)| Want { key: hash.key_of_hash(value), hash: value, owner };
        let contents = Contents::new(wanted.map(want).collect());
        Self { kernel: Kernel::best(), hash, filter: Filter::new(contents.keys()), contents }
    }

    /// Without any instructions that not every processor has.
    pub fn portable(self) -> Self {
        Self { kernel: Kernel::Portable, ..self }
    }

    /// Contents that are looked for.
    pub fn len(&self) -> usize {
        self.contents.keys().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Contents that were not met yet.
    pub fn left(&self) -> u32 {
        self.contents.left()
    }

    /// Searches `slice`; tells the wanted grains whose content lies at an offset of it. Those that straddle its end are not
    /// found: overlap slices by a grain less one byte.
    pub fn search(&self, slice: &[u8], mut tell: impl FnMut(u32, usize)) {
        if self.left() == 0 {
            return;
        }
        lanes::search(self.kernel, &self.hash, &self.filter, &self.contents, slice, |key, offset| {
            let window = || slice.get(offset..offset + GrainHash::WINDOW).map_or(0, |window| self.hash.of(window));
            self.contents.meet(key, window, |owner| tell(owner, offset));
        });
    }
}

impl Roller for GrainHash {
    const WINDOW: usize = GRAIN as usize;
    type Values = [u64; LANES];

    fn begin(&self, windows: Tracks<'_>) -> [u64; LANES] {
        let mut values = [0; LANES];
        // Side by side: each is a chain of multiplications.
        for at in 0..Self::WINDOW {
            for (value, window) in values.iter_mut().zip(windows) {
                *value = self.push(*value, window[at]);
            }
        }
        values
    }

    fn keys(&self, values: &[u64; LANES]) -> Row {
        values.map(GrainHash::key)
    }

    fn roll(&self, values: &mut [u64; LANES], leaves: &Tracks<'_>, enters: &Tracks<'_>, keys: &mut [Row]) {
        for (step, row) in keys.iter_mut().enumerate() {
            for (lane, value) in values.iter_mut().enumerate() {
                *value = self.moved(*value, leaves[lane][step], enters[lane][step]);
            }
            *row = values.map(GrainHash::key);
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn roll_avx2(
        &self,
        avx2: Avx2,
        values: &mut [u64; LANES],
        leaves: &WholeTracks<'_>,
        enters: &WholeTracks<'_>,
        keys: &mut Batch,
    ) {
        avx2.grains(*self, values, leaves, enters, keys);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: usize = GrainHash::WINDOW;
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

    fn searched(golden: &[u8], local: &[u8], (seed, width): (u32, u8)) -> Vec<Option<usize>> {
        let hash = GrainHash::new(seed, width).unwrap();
        let grains = Grains::new(hash, (0..).zip(golden.chunks_exact(WINDOW).map(|grain| hash.of(grain))));
        let mut found = vec![None; golden.len() / WINDOW];
        grains.search(local, |owner, offset| {
            assert_eq!(found[owner as usize].replace(offset), None, "told twice");
        });
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
            let found = searched(&golden, &local, (9, 8));
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
            let (found, expected) = (searched(&golden, &local, (seed, 8)), plainly(&golden, &local));
            for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
                prop_assert_eq!(found.is_some(), expected.is_some(), "grain {}", at);
                let grain = &golden[at * WINDOW..(at + 1) * WINDOW];
                prop_assert!(found.is_none_or(|offset| &local[offset..offset + WINDOW] == grain));
            }
        }
    }
}
