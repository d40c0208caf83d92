//! Sketches: a sample of an image's blocks, by which a server tells which of its images an unknown one is nearest to.
//!
//! ```text
//! position k  =  k · stride + spread(k) mod stride        stride = ⌈blocks of the image that is wanted / 1024⌉
//! sketch      =  u32 for each position, little-endian: the block's hash, cut short; 0 where there is no block
//! ```
//! Positions are settled by the size of the image that is wanted, so that a node and a server that look at images of other
//! sizes sample the same blocks. Blocks are compared where they are: an image that was changed in place keeps most of them,
//! and only of such a one a plan from its origin is of use. A sketch proves nothing; who uses what it points at looks at
//! the blocks themselves.

use crate::block::Geometry;
use crate::grain::spread;
use crate::signature::zero_hash;

/// Blocks in a sketch. Tells one part in a thousand apart, for 4 KiB on the wire.
pub const SAMPLES: u32 = 1024;

/// Bytes of the longest sketch.
pub const SKETCH_MAX: u64 = SAMPLES as u64 * ENTRY as u64;

/// Bytes of one sample.
const ENTRY: usize = 4;

/// An image that differs from another in one block of so many is too far from it: mending it costs as much as a plan from it
/// saves.
const NEAR: u64 = 32;

/// Samples that must tell something before a sketch is believed.
const TELLING: u32 = 16;

/// The blocks that are sampled when `wanted` is.
pub fn positions(wanted: Geometry) -> impl Iterator<Item = u32> {
    let blocks = wanted.blocks();
    let stride = blocks.div_ceil(SAMPLES).max(1);
    let within = move |k: u32| k * stride + (spread(u64::from(k)) % u64::from(stride)) as u32;
    (0..blocks.div_ceil(stride)).map(within).filter(move |block| *block < blocks)
}

/// A block's sample.
pub fn sample(hash: u64) -> u32 {
    // Zero says that there is no block.
    (hash as u32).max(1)
}

/// Writes samples as they travel.
pub fn write(samples: &[u32]) -> Vec<u8> {
    samples.iter().flat_map(|sample| sample.to_le_bytes()).collect()
}

/// Reads samples; `None` if there are not as many as `wanted` has positions.
pub fn read(wanted: Geometry, wire: &[u8]) -> Option<Vec<u32>> {
    let (samples, rest) = wire.as_chunks::<ENTRY>();
    let fits = rest.is_empty() && samples.len() == positions(wanted).count();
    fits.then(|| samples.iter().map(|sample| u32::from_le_bytes(*sample)).collect())
}

/// How alike two images are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Likeness {
    /// Samples that are the same in both.
    pub equal: u32,
    /// Samples that tell something: not zeros in both.
    pub of: u32,
}

impl Likeness {
    /// Compares two sketches of one image wanted.
    pub fn between(ours: &[u32], theirs: &[u32]) -> Self {
        let zero = sample(zero_hash());
        let empty = |sample: u32| sample == zero || sample == 0;
        let telling = ours.iter().zip(theirs).filter(|(a, b)| !(empty(**a) && empty(**b)));
        telling.fold(Self::default(), |sum, (a, b)| Self { equal: sum.equal + u32::from(a == b), of: sum.of + 1 })
    }

    /// Whether a plan from the one is worth while for the other.
    pub fn is_near(self) -> bool {
        self.of >= TELLING && u64::from(self.of - self.equal.min(self.of)) * NEAR <= u64::from(self.of)
    }
}

/// The same of all blocks: whether `differing` of `blocks` are few enough.
pub fn is_near(differing: u32, blocks: u32) -> bool {
    // Twice as many as of the samples, which may have missed some.
    u64::from(differing) * NEAR <= u64::from(blocks) * 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::BLOCK;
    use proptest::prelude::*;

    fn geometry(blocks: u64) -> Geometry {
        Geometry::new(blocks * BLOCK).unwrap()
    }

    #[test]
    fn a_small_image_is_sampled_whole_and_a_large_one_evenly() {
        assert_eq!(positions(geometry(5)).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        let large: Vec<u32> = positions(geometry(1 << 28)).collect();
        assert_eq!(large.len(), 1024);
        let stride = 1 << 18;
        assert!((0..).zip(&large).all(|(k, at)| (k * stride..(k + 1) * stride).contains(at)));
    }

    #[test]
    fn zeros_in_both_and_blocks_in_neither_tell_nothing() {
        let zero = sample(zero_hash());
        let ours = [vec![7; 100], vec![zero, 0, zero, 5]].concat();
        let theirs = [vec![7; 97], vec![8; 3], vec![zero, zero, 0, zero]].concat();
        let likeness = Likeness::between(&ours, &theirs);
        assert_eq!(likeness, Likeness { equal: 97, of: 101 });
        assert!(!likeness.is_near());
        assert!(Likeness { equal: 98, of: 101 }.is_near());
        assert!(!Likeness { equal: 15, of: 15 }.is_near(), "too few");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_nothing_else(blocks in 1_u64..5000, cut in 0_usize..5, seed: u32) {
            let wanted = geometry(blocks);
            let samples: Vec<u32> = positions(wanted).map(|at| at ^ seed).collect();
            prop_assert!(samples.len() <= SAMPLES as usize);
            let wire = write(&samples);
            prop_assert_eq!(read(wanted, &wire), Some(samples));
            let short = wire.get(..wire.len() - cut.min(wire.len())).unwrap();
            prop_assert_eq!(read(wanted, short).is_some(), cut == 0);
        }
    }
}
