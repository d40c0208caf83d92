//! The bitmap that nearly all offsets end at.
//!
//! Two bits of one word for each wanted key. It is made as small as it can be for the number of keys: how fast a scan is, is
//! first of all in which cache this lies.

#[cfg(target_arch = "x86_64")]
use super::avx2;
use super::kernel::Kernel;
use super::lanes::{LANES, Row, STEPS};

/// Bits for each key, at least: of keys that are not wanted, one in a hundred passes. Half as many let so many pass that looking
/// them up costs more than the smaller bitmap saves.
const BITS_PER_KEY: usize = 32;

/// 8 KiB and 1 MiB: a smaller bitmap gains nothing, a larger one costs as much as it saves.
const BITS_LOG: std::ops::RangeInclusive<u32> = 16..=23;

/// See the module's head.
#[derive(Debug)]
pub(super) struct Filter {
    /// A power of two of them.
    words: Vec<u32>,
    /// Which of a key's upper bits name its word.
    shift: u32,
}

/// Places for the numbers of a batch's keys that pass, with room for a vector to be written over the end.
#[derive(Debug)]
pub(super) struct Passed(pub(super) [u16; LANES * STEPS + 8]);

impl Default for Passed {
    fn default() -> Self {
        Self([0; _])
    }
}

#[cfg(target_arch = "x86_64")]
impl Passed {
    /// Eight places from `at` on.
    #[inline(always)]
    pub(super) fn eight(&mut self, at: usize) -> Option<&mut [u16; 8]> {
        if at > LANES * STEPS { None } else { self.0.get_mut(at..at + 8)?.first_chunk_mut() }
    }
}

impl Filter {
    /// Lets `keys` pass, and a few others.
    pub(super) fn new(keys: &[u32]) -> Self {
        let log = (keys.len() * BITS_PER_KEY).next_power_of_two().ilog2().clamp(*BITS_LOG.start(), *BITS_LOG.end());
        let mut filter = Self { words: vec![0; 1 << (log - 5)], shift: 32 - (log - 5) };
        for key in keys {
            if let Some(word) = filter.words.get_mut((key >> filter.shift) as usize) {
                *word |= mask(*key);
            }
        }
        filter
    }

    /// The numbers of the keys that pass, ascending: a key's is sixteen times its row's, and its lane.
    pub(super) fn sieve(&self, kernel: Kernel, keys: &[Row], passed: &mut Passed) -> usize {
        match kernel {
            Kernel::Portable => self.sieve_portably(keys, passed),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2(avx2) => avx2.sieve(avx2::Words::new(&self.words, self.shift), keys, passed),
        }
    }

    /// Every number is written, and counts if its key passes: there is no branch to be foreseen wrongly.
    fn sieve_portably(&self, keys: &[Row], passed: &mut Passed) -> usize {
        let mut count = 0;
        for (number, key) in keys.iter().flatten().enumerate() {
            let word = self.words.get((key >> self.shift) as usize).copied().unwrap_or(0);
            if let Some(place) = passed.0.get_mut(count) {
                *place = number as u16;
            }
            count += usize::from(word & mask(*key) == mask(*key));
        }
        count
    }
}

/// A key's bits in its word: they are named by the key's lower end.
fn mask(key: u32) -> u32 {
    (1 << 31 >> (key & 31)) | (1 << 31 >> (key >> 5 & 31))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_wanted_passes_and_both_kernels_agree(
            wanted in proptest::collection::vec(any::<u32>(), 0..3000),
            rows in proptest::collection::vec(any::<[u32; LANES]>(), 0..STEPS),
            places in proptest::collection::vec((0..STEPS, 0..LANES), 0..100),
        ) {
            let (filter, mut rows) = (Filter::new(&wanted), rows);
            for ((row, lane), key) in places.into_iter().zip(&wanted) {
                if let Some(row) = rows.get_mut(row) {
                    row[lane] = *key;
                }
            }
            let (mut passed, mut too) = (Passed::default(), Passed::default());
            let count = filter.sieve(Kernel::Portable, &rows, &mut passed);
            prop_assert_eq!(filter.sieve(Kernel::best(), &rows, &mut too), count);
            prop_assert_eq!(&passed.0[..count], &too.0[..count]);
            let plain: Vec<u16> = (0..).zip(rows.as_flattened()).filter(|(_, key)| {
                filter.words[(**key >> filter.shift) as usize] & mask(**key) == mask(**key)
            }).map(|(number, _)| number).collect();
            prop_assert_eq!(&passed.0[..count], plain);
            for (number, key) in (0..).zip(rows.as_flattened()).filter(|(_, key)| wanted.contains(key)) {
                prop_assert!(passed.0[..count].contains(&number), "{}", key);
            }
        }
    }

    #[test]
    fn few_of_what_is_not_wanted_passes() {
        let keys = |seed: u64, count: usize| -> Vec<u32> {
            let bytes = crate::testing::noise(4 * count, seed);
            bytes.as_chunks().0.iter().map(|key| u32::from_le_bytes(*key)).collect()
        };
        for wanted in [1, 1000, 100_000] {
            let (filter, mut passed) = (Filter::new(&keys(1, wanted)), Passed::default());
            let others = keys(2, LANES * STEPS * 40);
            let batches = others.as_chunks::<LANES>().0.chunks(STEPS);
            let count: usize = batches.map(|rows| filter.sieve(Kernel::best(), rows, &mut passed)).sum();
            assert!(count * 60 < others.len(), "{count} of {} with {wanted} wanted", others.len());
        }
    }
}
