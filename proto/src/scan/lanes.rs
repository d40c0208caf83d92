//! A window moved over all of a slice, a byte at a time, in several places at once.
//!
//! ```text
//! slice ─▶ [Cut] 16 lanes, each a part of the slice ─▶ [Roller] a key for each offset
//!                                                         └▶ [Filter] one of a hundred ─▶ [Contents] ─▶ hit(key, offset)
//! ```
//! One window's key follows from the one before; sixteen windows side by side fill a vector, and the time that each waits for
//! its multiplication. Keys come a batch at a time, a row of sixteen for each step, and no branch depends on them before the
//! filter has thinned them out.

#[cfg(target_arch = "x86_64")]
use super::avx2::Avx2;
use super::contents::Contents;
use super::filter::{Filter, Passed};
use super::kernel::Kernel;

/// Windows that are moved at once.
pub(super) const LANES: usize = 16;

/// Steps in a batch. Its keys take 4 KiB, and stay in the first cache beside the filter.
pub(super) const STEPS: usize = 64;

/// The keys of all lanes' windows after one step.
pub(super) type Row = [u32; LANES];

/// The keys of a batch.
pub(super) type Batch = [Row; STEPS];

/// Bytes for each lane: as many as there are steps.
pub(super) type Tracks<'a> = [&'a [u8]; LANES];

/// The same for a whole batch.
#[cfg(target_arch = "x86_64")]
pub(super) type WholeTracks<'a> = [&'a [u8; STEPS]; LANES];

/// A way to hash a window so that moving it by a byte is cheap.
pub(super) trait Roller {
    /// Bytes in a window.
    const WINDOW: usize;

    /// What is known of the lanes' windows.
    type Values;

    /// Hashes the lanes' first windows.
    fn begin(&self, windows: Tracks<'_>) -> Self::Values;

    /// The windows' keys.
    fn keys(&self, values: &Self::Values) -> Row;

    /// Moves all windows `keys.len()` times: a byte of `leaves` for each byte of `enters`.
    fn roll(&self, values: &mut Self::Values, leaves: &Tracks<'_>, enters: &Tracks<'_>, keys: &mut [Row]);

    /// The same for a whole batch, with AVX2.
    #[cfg(target_arch = "x86_64")]
    fn roll_avx2(
        &self,
        avx2: Avx2,
        values: &mut Self::Values,
        leaves: &WholeTracks<'_>,
        enters: &WholeTracks<'_>,
        keys: &mut Batch,
    );
}

/// Calls `hit` with the key and the offset of every window of `slice` whose key is wanted, and of a few others, now and then
/// twice.
pub(super) fn search<R: Roller>(
    kernel: Kernel,
    roller: &R,
    filter: &Filter,
    contents: &Contents,
    slice: &[u8],
    mut hit: impl FnMut(u32, usize),
) {
    let Some(cut) = Cut::new(slice.len(), R::WINDOW) else { return };
    let mut values = roller.begin(cut.tracks(slice, 0, R::WINDOW));
    let (mut batch, mut passed): (Batch, _) = ([[0; LANES]; STEPS], Passed::default());
    batch[0] = roller.keys(&values);
    let (mut step, mut rows) = (0, 1);
    while rows > 0 {
        let count = filter.sieve(kernel, &batch[..rows], &mut passed);
        let count = contents.thin(batch.as_flattened(), &mut passed.0, count);
        for index in &passed.0[..count] {
            let (row, lane) = (usize::from(*index) / LANES, usize::from(*index) % LANES);
            hit(batch[row][lane], cut.starts[lane] + step + row);
        }
        step += rows;
        rows = STEPS.min(cut.steps - step);
        // To the windows of a step, from those before.
        let leaves = cut.tracks(slice, step - 1, rows);
        let enters = cut.tracks(slice, step - 1 + R::WINDOW, rows);
        roll(kernel, roller, &mut values, (&leaves, &enters), &mut batch[..rows]);
    }
}

fn roll<R: Roller>(
    kernel: Kernel,
    roller: &R,
    values: &mut R::Values,
    (leaves, enters): (&Tracks<'_>, &Tracks<'_>),
    keys: &mut [Row],
) {
    match kernel {
        Kernel::Portable => roller.roll(values, leaves, enters, keys),
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx2(avx2) => match (whole(leaves), whole(enters), keys.as_mut_array()) {
            (Some(leaves), Some(enters), Some(keys)) => roller.roll_avx2(avx2, values, &leaves, &enters, keys),
            _ => roller.roll(values, leaves, enters, keys),
        },
    }
}

/// Tracks of a whole batch.
#[cfg(target_arch = "x86_64")]
fn whole<'a>(tracks: &Tracks<'a>) -> Option<WholeTracks<'a>> {
    let mut whole = [&[0; STEPS]; LANES];
    for (whole, track) in whole.iter_mut().zip(tracks) {
        *whole = track.as_array()?;
    }
    Some(whole)
}

/// Where the lanes begin, and how many windows each looks at. They cover all of the slice's windows; the last ones may
/// overlap.
#[derive(Debug)]
struct Cut {
    starts: [usize; LANES],
    steps: usize,
}

impl Cut {
    fn new(len: usize, window: usize) -> Option<Self> {
        let windows = (len + 1).checked_sub(window).filter(|windows| *windows > 0)?;
        let steps = spread(windows.div_ceil(LANES));
        Some(Self { starts: std::array::from_fn(|lane| (lane * steps).min(windows - steps)), steps })
    }

    /// `len` bytes of each lane, `from` bytes after its beginning.
    fn tracks<'a>(&self, slice: &'a [u8], from: usize, len: usize) -> Tracks<'a> {
        self.starts.map(|start| slice.get(start + from..start + from + len).unwrap_or(&[]))
    }
}

/// Long lanes begin five cache lines further on in their pages than the one before: at a multiple of a page from each other,
/// all of them would share one set of the first cache, and be slower by two thirds.
fn spread(steps: usize) -> usize {
    const PAGE: usize = 4096;
    const APART: usize = 5 * 64;
    if steps < LANES * PAGE {
        return steps;
    }
    steps + (APART + PAGE - steps % PAGE) % PAGE
}

#[cfg(test)]
mod tests {
    use super::super::contents::Want;
    use super::super::rolling::tests::{WeakSum, key_by_librsync};
    use super::*;
    use crate::grain::GrainHash;
    use crate::testing::noise;
    use proptest::prelude::*;

    #[test]
    fn lanes_cover_every_window_and_stay_inside() {
        for windows in (1..200).chain([4095, 4096, 1 << 20, (1 << 20) + 1, (4 << 20) + 1, 5_000_000]) {
            let cut = Cut::new(windows + 511, 512).unwrap();
            let mut reached = 0;
            for start in cut.starts {
                assert!(start <= reached && start + cut.steps <= windows, "{windows}: {cut:?}");
                reached = start + cut.steps;
            }
            assert_eq!(reached, windows);
        }
        assert!(Cut::new(511, 512).is_none() && Cut::new(0, 512).is_none());
    }

    /// Every window's key, in the order in which they come.
    fn all<R: Roller>(kernel: Kernel, roller: &R, slice: &[u8], keys: &[u32]) -> Vec<(u32, usize)> {
        let wants = keys.iter().map(|key| Want { key: *key, hash: 0, owner: 0 }).collect();
        let contents = Contents::new(wants);
        let mut hits = Vec::new();
        let filter = Filter::new(contents.keys());
        search(kernel, roller, &filter, &contents, slice, |key, offset| hits.push((key, offset)));
        hits
    }

    fn check<R: Roller>(roller: &R, slice: &[u8], key: impl Fn(&[u8]) -> u32) -> Result<(), TestCaseError> {
        let expected: Vec<u32> = slice.windows(R::WINDOW).map(key).collect();
        let mut hits = all(Kernel::best(), roller, slice, &expected);
        prop_assert_eq!(&hits, &all(Kernel::Portable, roller, slice, &expected));
        hits.sort_unstable_by_key(|(_, offset)| *offset);
        hits.dedup();
        prop_assert_eq!(hits, expected.into_iter().zip(0..).collect::<Vec<_>>());
        Ok(())
    }

    /// Bytes of every kind: noise, one byte, zeros, a period, and pieces of all.
    fn bytes(kind: u8, len: usize, seed: u64, period: usize) -> Vec<u8> {
        match kind {
            0 => noise(len, seed),
            1 => vec![seed as u8; len],
            2 => vec![0; len],
            3 => noise(period, seed).into_iter().cycle().take(len).collect(),
            _ => (0..4).flat_map(|kind| bytes(kind, len / 4, seed, period)).collect(),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn every_grain_window_gets_its_key_from_both_kernels(
            kind in 0_u8..5, len in 0_usize..6000, start in 0_usize..64, seed: u32, period in 1_usize..700,
        ) {
            let (bytes, hash) = (bytes(kind, len + start, seed.into(), period), GrainHash::new(seed, 8).unwrap());
            let slice = bytes.get(start..).unwrap_or(&[]);
            check(&hash, slice, |window| (hash.of(window) >> 32) as u32)?;
        }

        #[test]
        fn every_block_window_gets_librsyncs_sum_from_both_kernels(
            kind in 0_u8..5, len in 3000_usize..9000, start in 0_usize..64, seed: u64, period in 1_usize..5000,
        ) {
            let bytes = bytes(kind, len + start, seed, period);
            check(&WeakSum, bytes.get(start..).unwrap_or(&[]), key_by_librsync)?;
        }
    }
}
