//! The scans' three loops in AVX2: rolling librsync's sums, rolling the grains' hash, and sieving keys.
//!
//! The only unsafe code of the scans, and all of it is here. They do what the portable loops beside their callers do, with the
//! same result.

#![allow(unsafe_code, reason = "instructions that not every processor has, and loads and stores of whole vectors")]

use std::arch::x86_64::*;

use super::filter::Passed;
use super::lanes::{Batch, LANES, Row, WholeTracks};
use super::rolling::{FOLD, MIX, Sums};
use crate::grain::GrainHash;
use crate::limits::BLOCK;

/// A proof that the processor has AVX2.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx2(());

/// A filter's words, as many as a key's upper bits can name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words<'a> {
    words: &'a [u32],
    shift: u32,
}

impl<'a> Words<'a> {
    /// `key >> shift` names a word.
    pub(super) fn new(words: &'a [u32], shift: u32) -> Self {
        assert!(shift < 32 && words.len() as u64 >= 1 << (32 - shift));
        Self { words, shift }
    }

    /// The words of eight keys, by `key >> shift`.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn load(self, indices: __m256i) -> __m256i {
        let low = self.load_four(_mm256_castsi256_si128(indices));
        let high = self.load_four(_mm256_extracti128_si256(indices, 1));
        _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1)
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn load_four(self, indices: __m128i) -> __m128i {
        let [a, b] = halves(indices);
        let words = _mm_cvtsi32_si128(self.get(a & 0xFFFF_FFFF));
        let words = _mm_insert_epi32(words, self.get(a >> 32), 1);
        let words = _mm_insert_epi32(words, self.get(b & 0xFFFF_FFFF), 2);
        _mm_insert_epi32(words, self.get(b >> 32), 3)
    }

    #[inline(always)]
    fn get(self, index: u64) -> i32 {
        debug_assert!(index < self.words.len() as u64);
        // SAFETY: `index` is 32 bits shifted right by `shift`, and so below 2^(32 - shift): `new` has checked that there are
        // as many words.
        unsafe { *self.words.get_unchecked(index as usize) as i32 }
    }
}

impl Avx2 {
    /// If the processor has it.
    pub(super) fn here() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt")).then_some(Self(()))
    }

    /// Rolls sums as [`super::rolling`] does.
    pub(super) fn sums(self, sums: &mut Sums, leaves: &WholeTracks<'_>, enters: &WholeTracks<'_>, keys: &mut Batch) {
        // SAFETY: `self` proves that the processor has AVX2.
        unsafe { roll_sums(sums, leaves, enters, keys) }
    }

    /// Rolls values as [`super::grains`] does.
    pub(super) fn grains(
        self,
        hash: GrainHash,
        values: &mut [u64; LANES],
        leaves: &WholeTracks<'_>,
        enters: &WholeTracks<'_>,
        keys: &mut Batch,
    ) {
        // SAFETY: `self` proves that the processor has AVX2.
        unsafe { roll_grains(hash, values, leaves, enters, keys) }
    }

    /// Writes the numbers of the keys that pass to the front of `passed`; returns how many.
    pub(super) fn sieve(self, words: Words<'_>, keys: &[Row], passed: &mut Passed) -> usize {
        // SAFETY: `self` proves that the processor has AVX2 and POPCNT.
        unsafe { sieve(words, keys, passed) }
    }
}

// --------------------------------------------------------------------------------------------------------------------- sums

/// Unpacking works on the halves of a vector. So that keys come out in the lanes' order, the second and the third quarter of
/// the lanes change places.
const SUM_PLACES: [usize; LANES] = [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15];
const EXCHANGED: i32 = 0b11_01_10_00;

/// Shifting by it multiplies by a block's length.
const BLOCK_LOG: i32 = BLOCK.ilog2() as i32;

/// Sixteen bytes of each lane are turned round into sixteen vectors, a byte of each lane in each; those that leave stand in
/// a vector's upper half, those that enter in the lower.
#[target_feature(enable = "avx2")]
fn roll_sums(sums: &mut Sums, leaves: &WholeTracks<'_>, enters: &WholeTracks<'_>, keys: &mut Batch) {
    let [mut a, mut d] = [&sums.a, &sums.d].map(|sums| _mm256_permute4x64_epi64(from_shorts(sums), EXCHANGED));
    let mix = _mm256_set1_epi32(MIX as i32);
    for (chunk, rows) in keys.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let mut bytes = [_mm256_setzero_si256(); LANES];
        for (bytes, lane) in bytes.iter_mut().zip(SUM_PLACES) {
            let enters = from_bytes(&enters[lane].as_chunks().0[chunk]);
            let leaves = from_bytes(&leaves[lane].as_chunks().0[chunk]);
            *bytes = _mm256_inserti128_si256(_mm256_castsi128_si256(enters), leaves, 1);
        }
        for (row, bytes) in rows.iter_mut().zip(turn(bytes)) {
            let enters = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(bytes));
            let leaves = _mm256_cvtepu8_epi16(_mm256_extracti128_si256(bytes, 1));
            a = _mm256_add_epi16(a, _mm256_sub_epi16(enters, leaves));
            d = _mm256_add_epi16(d, _mm256_sub_epi16(a, _mm256_slli_epi16(leaves, BLOCK_LOG)));
            let sums = [_mm256_unpacklo_epi16(a, d), _mm256_unpackhi_epi16(a, d)];
            for (half, sums) in row.as_chunks_mut().0.iter_mut().zip(sums) {
                store_words(half, mixed(sums, mix));
            }
        }
    }
    [sums.a, sums.d] = [a, d].map(|sums| to_shorts(_mm256_permute4x64_epi64(sums, EXCHANGED)));
}

/// Turns a square of sixteen times sixteen bytes round, in both halves: each pass interleaves the first eight with the last.
#[target_feature(enable = "avx2")]
#[inline]
fn turn(mut rows: [__m256i; 16]) -> [__m256i; 16] {
    for _ in 0..4 {
        let before = rows;
        for at in 0..8 {
            rows[2 * at] = _mm256_unpacklo_epi8(before[at], before[at + 8]);
            rows[2 * at + 1] = _mm256_unpackhi_epi8(before[at], before[at + 8]);
        }
    }
    rows
}

#[target_feature(enable = "avx2")]
#[inline]
fn mixed(sums: __m256i, mix: __m256i) -> __m256i {
    let mixed = _mm256_mullo_epi32(sums, mix);
    _mm256_xor_si256(mixed, _mm256_srli_epi32(mixed, FOLD))
}

// ------------------------------------------------------------------------------------------------------------------- grains

/// How the lanes lie in four vectors of four values, so that their keys come out in order.
const GRAIN_PLACES: [[usize; 4]; 4] = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]];

#[target_feature(enable = "avx2")]
fn roll_grains(
    hash: GrainHash,
    values: &mut [u64; LANES],
    leaves: &WholeTracks<'_>,
    enters: &WholeTracks<'_>,
    keys: &mut Batch,
) {
    let step = Step::new(hash);
    let mut vectors = GRAIN_PLACES.map(|places| from_longs(places.map(|lane| values[lane])));
    for (chunk, rows) in keys.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let words = |at: usize, tracks: &WholeTracks<'_>| {
            let [a, b, c, d] = GRAIN_PLACES[at];
            let word = |lane: usize| u64::from_le_bytes(tracks[lane].as_chunks().0[chunk]);
            from_longs([word(a), word(b), word(c), word(d)])
        };
        let leave = [words(0, leaves), words(1, leaves), words(2, leaves), words(3, leaves)];
        let enter = [words(0, enters), words(1, enters), words(2, enters), words(3, enters)];
        for (row, byte) in rows.iter_mut().zip(&BYTE_OF_LONGS) {
            let byte = from_words(byte);
            for at in 0..4 {
                let (leave, enter) = (_mm256_shuffle_epi8(leave[at], byte), _mm256_shuffle_epi8(enter[at], byte));
                vectors[at] = step.roll(vectors[at], leave, enter);
            }
            for (half, [first, second]) in row.as_chunks_mut().0.iter_mut().zip(vectors.as_chunks().0) {
                let uppers =
                    _mm256_shuffle_ps(_mm256_castsi256_ps(*first), _mm256_castsi256_ps(*second), 0b11_01_11_01);
                store_words(half, _mm256_castps_si256(uppers));
            }
        }
    }
    for (places, vector) in GRAIN_PLACES.into_iter().zip(vectors) {
        places.into_iter().zip(to_longs(vector)).for_each(|(lane, value)| values[lane] = value);
    }
}

/// For a shuffle: the byte of each number in each word of 64 bits, and zeros above it.
static BYTE_OF_LONGS: [[u32; 8]; 8] = {
    const ZEROS: u32 = 0x8080_8080;
    let mut order = [[0; 8]; 8];
    let mut byte = 0;
    while byte < 8 {
        let (even, odd) = (0x8080_8000 | byte as u32, 0x8080_8008 | byte as u32);
        order[byte] = [even, ZEROS, odd, ZEROS, even, ZEROS, odd, ZEROS];
        byte += 1;
    }
    order
};

/// What four values are multiplied by and added to in each step. There is no multiplication of 64 bits: it is put together
/// from those of 32, of which the upper halves' product would be out of sight.
struct Step {
    multiplier: __m256i,
    /// With its halves exchanged.
    crosswise: __m256i,
    /// Minus what the byte that leaves was multiplied by, and its upper half.
    leaving: __m256i,
    leaving_upper: __m256i,
    ones: __m256i,
}

impl Step {
    #[target_feature(enable = "avx2")]
    fn new(hash: GrainHash) -> Self {
        let (multiplier, leaving, ones) = hash.factors();
        let all = |value: u64| _mm256_set1_epi64x(value as i64);
        let leaving = leaving.wrapping_neg();
        Self {
            multiplier: all(multiplier),
            crosswise: all(multiplier.rotate_left(32)),
            leaving: all(leaving),
            leaving_upper: all(leaving >> 32),
            ones: all(ones),
        }
    }

    /// Moves four windows by a byte each.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn roll(&self, values: __m256i, leave: __m256i, enter: __m256i) -> __m256i {
        let cross = _mm256_mullo_epi32(values, self.crosswise);
        let cross = _mm256_add_epi64(cross, _mm256_srli_epi64(cross, 32));
        let upper = _mm256_add_epi64(cross, _mm256_mul_epu32(leave, self.leaving_upper));
        let change = _mm256_add_epi64(enter, self.ones);
        let lower = _mm256_add_epi64(_mm256_mul_epu32(leave, self.leaving), change);
        let lower = _mm256_add_epi64(_mm256_mul_epu32(values, self.multiplier), lower);
        _mm256_add_epi64(lower, _mm256_slli_epi64(upper, 32))
    }
}

// -------------------------------------------------------------------------------------------------------------------- sieve

/// Eight keys at a time. Their words are loaded one by one: the instruction that gathers them is slower on the processors
/// that were tried, and is slowed down on purpose on others.
#[target_feature(enable = "avx2,popcnt")]
fn sieve(words: Words<'_>, keys: &[Row], passed: &mut Passed) -> usize {
    let shift = _mm_cvtsi32_si128(words.shift as i32);
    let (mut count, mut first) = (0, 0);
    for keys in keys.as_flattened().as_chunks::<8>().0 {
        let keys = from_words(keys);
        let found = words.load(_mm256_srl_epi32(keys, shift));
        let passes = movemask(_mm256_and_si256(named(found, keys), named(found, _mm256_srli_epi32(keys, 5))));
        // Eight numbers are written, and those count that pass: there is no branch to be foreseen wrongly.
        let order = _mm_cvtepu8_epi16(_mm_cvtsi64_si128(ORDER[usize::from(passes)] as i64));
        if let Some(place) = passed.eight(count) {
            store_shorts(place, _mm_add_epi16(order, _mm_set1_epi16(first)));
        }
        count += passes.count_ones() as usize;
        first += 8;
    }
    count
}

/// The bits of words that are named by the keys' lowest five, at the words' upper end.
#[target_feature(enable = "avx2")]
#[inline]
fn named(words: __m256i, keys: __m256i) -> __m256i {
    _mm256_sllv_epi32(words, _mm256_and_si256(keys, _mm256_set1_epi32(31)))
}

#[target_feature(enable = "avx2")]
#[inline]
fn movemask(words: __m256i) -> u8 {
    _mm256_movemask_ps(_mm256_castsi256_ps(words)) as u8
}

/// For each set of eight bits, the numbers of those that are set, a byte each, from the lowest.
static ORDER: [u64; 256] = {
    let mut order = [0; 256];
    let mut set = 0;
    while set < 256 {
        let (mut bit, mut at) = (0, 0);
        while bit < 8 {
            if set >> bit & 1 == 1 {
                order[set] |= bit << at;
                at += 8;
            }
            bit += 1;
        }
        set += 1;
    }
    order
};

// --------------------------------------------------------------------------------------------------------- loads and stores

#[target_feature(enable = "avx2")]
#[inline]
fn from_bytes(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: sixteen bytes are readable there, and no alignment is asked for.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn from_words(words: &[u32; 8]) -> __m256i {
    // SAFETY: eight words are readable there, and no alignment is asked for.
    unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn from_shorts(shorts: &[u16; LANES]) -> __m256i {
    // SAFETY: sixteen of them are readable there, and no alignment is asked for.
    unsafe { _mm256_loadu_si256(shorts.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn from_longs([a, b, c, d]: [u64; 4]) -> __m256i {
    _mm256_set_epi64x(d as i64, c as i64, b as i64, a as i64)
}

#[target_feature(enable = "avx2")]
#[inline]
fn halves(pair: __m128i) -> [u64; 2] {
    [_mm_cvtsi128_si64(pair) as u64, _mm_extract_epi64(pair, 1) as u64]
}

#[target_feature(enable = "avx2")]
#[inline]
fn to_longs(vector: __m256i) -> [u64; 4] {
    let ([a, b], [c, d]) = (halves(_mm256_castsi256_si128(vector)), halves(_mm256_extracti128_si256(vector, 1)));
    [a, b, c, d]
}

#[target_feature(enable = "avx2")]
#[inline]
fn to_shorts(vector: __m256i) -> [u16; LANES] {
    let mut shorts = [0; LANES];
    // SAFETY: sixteen of them are writable there, and no alignment is asked for.
    unsafe { _mm256_storeu_si256(shorts.as_mut_ptr().cast(), vector) };
    shorts
}

#[target_feature(enable = "avx2")]
#[inline]
fn store_words(words: &mut [u32; 8], vector: __m256i) {
    // SAFETY: eight words are writable there, and no alignment is asked for.
    unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), vector) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn store_shorts(shorts: &mut [u16; 8], vector: __m128i) {
    // SAFETY: eight of them are writable there, and no alignment is asked for.
    unsafe { _mm_storeu_si128(shorts.as_mut_ptr().cast(), vector) }
}
