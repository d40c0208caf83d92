//! Grains: eighths of a block, the unit in which a node without a known base finds what it holds, and asks for the rest.
//!
//! A block of which one byte changed is a new block; seven of its eight grains may still lie somewhere in the node's image,
//! at any byte offset. A grain's hash is a polynomial over its bytes modulo 2^64, so that it can be rolled:
//!
//! ```text
//! value(b[0..512]) = Σ (b[i] + 1) · m^(511 - i)  mod 2^64        m odd, drawn by the node for each scan
//! hash             = the value's upper `width` bytes, little-endian
//! ```
//! It finds and proves nothing: a block put together from grains is held against the block's own hash, and the whole slot
//! against the image id. Because the node draws `m`, nobody can prepare bytes that collide.
//!
//! A *mask* says which grains of a block are asked for: bit `i` is grain `i`. Masks travel as one zstd frame.

use crate::codec::CodecError;
use crate::limits::{BLOCK, BLOCKS_PER_REQUEST, GRAIN, GRAINS};
use crate::pack::PackError;

/// How grains are hashed in one scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrainHash {
    multiplier: u64,
    /// The multiplier to the power of a grain's length: what the byte that leaves the window has been multiplied by.
    leaving: u64,
    /// What the two ones that the polynomial adds to bytes come to in a step.
    ones: u64,
    width: u32,
}

/// A mask of all grains.
pub const ALL: u8 = 0xFF;

/// The grains of each block that are looked for first: where neither of them is here, nor one of the blocks beside it, the
/// other six are hardly ever, and their hashes are not worth asking for. Neither stands at a block's edge, where what was moved
/// is cut off.
pub const PROBES: u8 = 1 << 1 | 1 << 6;

/// Of `blocks`, ascending, the indices of those whose other grains are worth asking for: a probe of theirs was found, or one of
/// a block beside it.
pub fn promising(blocks: &[u32], found: impl Fn(usize) -> bool) -> Vec<usize> {
    let found: Vec<bool> = (0..blocks.len()).map(found).collect();
    let beside = |at: usize, other: usize| {
        let next = blocks.get(at).zip(blocks.get(other)).is_some_and(|(a, b)| a.abs_diff(*b) == 1);
        next && found.get(other) == Some(&true)
    };
    let promising =
        |at: &usize| found.get(*at) == Some(&true) || beside(*at, at + 1) || beside(*at, at.wrapping_sub(1));
    (0..blocks.len()).filter(promising).collect()
}

/// The numbers of the grains that a mask names.
pub fn named(mask: u8) -> impl Iterator<Item = usize> {
    (0..GRAINS).filter(move |grain| mask >> grain & 1 == 1)
}

/// The shortest and the longest hash that may be asked for, in bytes.
pub const WIDTHS: std::ops::RangeInclusive<u8> = 4..=8;

/// Above this many bytes of local image five bytes of hash would mislead too often.
const NARROW_MAX: u64 = 512 << 20;

/// How wide the hashes should be for a search of `local` bytes.
pub fn width_for(local: u64) -> u8 {
    if local > NARROW_MAX { 6 } else { 5 }
}

impl GrainHash {
    /// Hashes of `width` bytes under the node's `seed`.
    pub fn new(seed: u32, width: u8) -> Result<Self, CodecError> {
        if !WIDTHS.contains(&width) {
            return Err(CodecError::Unknown { field: "the width of grain hashes", got: u64::from(width) });
        }
        let multiplier = spread(u64::from(seed)) | 1;
        let leaving = multiplier.wrapping_pow(GRAIN as u32);
        Ok(Self { multiplier, leaving, ones: 1_u64.wrapping_sub(leaving), width: u32::from(width) })
    }

    /// Bytes in a hash.
    pub fn width(self) -> usize {
        self.width as usize
    }

    /// The value of the window one byte further on.
    #[inline(always)]
    pub(crate) fn moved(self, value: u64, leaves: u8, enters: u8) -> u64 {
        let change =
            self.ones.wrapping_add(u64::from(enters)).wrapping_sub(u64::from(leaves).wrapping_mul(self.leaving));
        value.wrapping_mul(self.multiplier).wrapping_add(change)
    }

    /// The value of one byte more.
    #[inline(always)]
    pub(crate) fn push(self, value: u64, byte: u8) -> u64 {
        value.wrapping_mul(self.multiplier).wrapping_add(u64::from(byte) + 1)
    }

    /// What a value is multiplied by in a step, what the byte that leaves was, and what is added.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn factors(self) -> (u64, u64, u64) {
        (self.multiplier, self.leaving, self.ones)
    }

    /// The value of one window.
    fn value(self, window: &[u8]) -> u64 {
        window.iter().fold(0, |value, byte| self.push(value, *byte))
    }

    /// A value's hash, as a number.
    fn of_value(self, value: u64) -> u64 {
        value >> (64 - 8 * self.width)
    }

    /// The upper 32 bits of a value, which the shortest hash has: what a scan looks a window up by.
    #[inline(always)]
    pub(crate) fn key(value: u64) -> u32 {
        (value >> 32) as u32
    }

    /// The same of a hash.
    pub(crate) fn key_of_hash(self, hash: u64) -> u32 {
        (hash >> (8 * self.width - 32)) as u32
    }

    /// The hash of one grain, as a number.
    pub fn of(self, grain: &[u8]) -> u64 {
        self.of_value(self.value(grain))
    }

    /// The hash of a grain of zeros.
    pub fn zero(self) -> u64 {
        self.of(&[0; GRAIN as usize])
    }

    /// The hashes of those grains of whole blocks that `mask` names, as they travel.
    pub fn sign(self, blocks: &[u8], mask: u8) -> Vec<u8> {
        let mut out = Vec::with_capacity(blocks.len() / BLOCK as usize * mask.count_ones() as usize * self.width());
        for block in blocks.as_chunks::<{ BLOCK as usize }>().0 {
            let values = self.values(block);
            for value in named(mask).filter_map(|grain| values.get(grain)) {
                let bytes = self.of_value(*value).to_le_bytes();
                out.extend_from_slice(bytes.get(..self.width()).unwrap_or(&[]));
            }
        }
        out
    }

    /// The values of a block's grains, side by side: each is a chain of multiplications, and eight chains fill the time that
    /// one waits.
    fn values(self, block: &[u8; BLOCK as usize]) -> [u64; GRAINS] {
        let (grains, _) = block.as_chunks::<{ GRAIN as usize }>();
        let mut values = [0_u64; GRAINS];
        let Ok(grains) = <&[[u8; GRAIN as usize]; GRAINS]>::try_from(grains) else { return values };
        for at in 0..GRAIN as usize {
            for (value, grain) in values.iter_mut().zip(grains) {
                *value = self.push(*value, grain[at]);
            }
        }
        values
    }

    /// Reads hashes as they travel.
    pub fn read(self, wire: &[u8]) -> impl Iterator<Item = u64> + '_ {
        wire.chunks_exact(self.width())
            .map(|hash| hash.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }
}

/// splitmix64: neighbouring seeds give unrelated multipliers.
pub(crate) fn spread(seed: u64) -> u64 {
    let mut word = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

/// The most bytes that masks take on the wire: as many as blocks in a request, and what zstd adds to bytes that do not shrink.
pub const MASKS_WIRE_MAX: usize = BLOCKS_PER_REQUEST as usize + 64;

/// Writes masks as they travel.
pub fn write_masks(masks: &[u8]) -> Vec<u8> {
    // Between bytes in memory there is nothing to fail; and an empty body is refused by who reads it.
    zstd::bulk::compress(masks, 9).unwrap_or_default()
}

/// Reads the masks of `blocks` blocks.
pub fn read_masks(wire: &[u8], blocks: usize) -> Result<Vec<u8>, PackError> {
    let refused = PackError::Zstd("the masks do not unpack to one for each block");
    let masks = zstd::bulk::decompress(wire, blocks).map_err(|_| refused.clone())?;
    if masks.len() == blocks { Ok(masks) } else { Err(refused) }
}

/// The grains of `blocks` that their masks ask for, joined.
pub fn select(blocks: &[u8], masks: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(blocks.len());
    for (block, mask) in blocks.chunks_exact(BLOCK as usize).zip(masks) {
        for (at, grain) in block.chunks_exact(GRAIN as usize).enumerate() {
            if mask >> at & 1 == 1 {
                out.extend_from_slice(grain);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_hash_is_the_upper_end_of_the_polynomial() {
        let hash = GrainHash::new(7, 5).unwrap();
        let grain: Vec<u8> = (0..GRAIN).map(|i| ((i * i) >> 3) as u8).collect();
        let plain = grain.iter().enumerate().fold(0_u64, |sum, (at, byte)| {
            sum.wrapping_add((u64::from(*byte) + 1).wrapping_mul(hash.multiplier.wrapping_pow(511 - at as u32)))
        });
        assert_eq!(hash.of(&grain), plain >> 24);
        assert_eq!(hash.zero(), hash.of(&[0; 512]));
        assert_ne!(GrainHash::new(8, 5).unwrap().of(&grain), hash.of(&grain), "the seed counts");
        for width in [0, 3, 9, 255] {
            assert!(GrainHash::new(7, width).is_err());
        }
    }

    #[test]
    fn a_signature_reads_back_as_the_grains_hashes() {
        for width in WIDTHS {
            let hash = GrainHash::new(1, width).unwrap();
            let blocks: Vec<u8> = (0..2 * BLOCK).map(|i| ((i * 31) >> 4) as u8).collect();
            let wire = hash.sign(&blocks, ALL);
            assert_eq!(wire.len(), 2 * GRAINS * usize::from(width));
            let expected: Vec<u64> = blocks.chunks(GRAIN as usize).map(|grain| hash.of(grain)).collect();
            assert_eq!(hash.read(&wire).collect::<Vec<_>>(), expected);
            let probes = hash.sign(&blocks, PROBES);
            assert_eq!(hash.read(&probes).collect::<Vec<_>>(), [1, 6, 9, 14].map(|grain| expected[grain]));
        }
    }

    #[test]
    fn what_stands_beside_something_found_is_promising() {
        let found = |at: usize| [1, 5].contains(&at);
        assert_eq!(promising(&[3, 4, 5, 7, 8, 10, 12], found), [0, 1, 2, 5]);
        assert_eq!(promising(&[], found), [0; 0]);
    }

    #[test]
    fn selected_grains_are_joined_in_order() {
        let blocks: Vec<u8> = (0..2 * BLOCK).map(|i| (i / GRAIN) as u8).collect();
        let got = select(&blocks, &[0b1000_0001, 0b10]);
        assert_eq!(got.chunks(GRAIN as usize).map(|grain| grain[0]).collect::<Vec<_>>(), [0, 7, 9]);
    }

    proptest! {
        #[test]
        fn rolling_gives_what_hashing_gives(bytes in proptest::collection::vec(any::<u8>(), 513..700), seed: u32) {
            let hash = GrainHash::new(seed, 8).unwrap();
            let mut value = hash.value(&bytes[..512]);
            for at in 0..bytes.len() - 512 {
                value = hash.moved(value, bytes[at], bytes[at + 512]);
                prop_assert_eq!(value, hash.value(&bytes[at + 1..at + 513]));
            }
        }

        #[test]
        fn masks_read_back_and_any_bytes_end(masks: Vec<u8>, noise: Vec<u8>) {
            prop_assume!(!masks.is_empty());
            let wire = write_masks(&masks);
            prop_assert_eq!(read_masks(&wire, masks.len()).unwrap(), masks.clone());
            prop_assert!(read_masks(&wire, masks.len() + 1).is_err());
            prop_assert!(read_masks(&wire, masks.len() - 1).is_err());
            let _ = read_masks(&noise, masks.len());
        }
    }
}
