//! Binary arithmetic coding, and probabilities that learn.
//!
//! A bit is coded with the probability that several *contexts* give it, each a slot of a table that has seen the bits which
//! came in the same context before. They are mixed in the logistic domain by weights that learn as well. Everything is
//! integer arithmetic: all machines compute the same.

/// Writes bits, or reads them: a model is written once, for both.
pub trait Bits {
    /// Codes a bit that is set with probability `p / 65536`. The writer codes `bit` and returns it, the reader does not
    /// look at it and returns what was written.
    fn code(&mut self, bit: bool, p: u32) -> bool;
}

/// The bits written so far.
#[derive(Debug)]
pub struct Encoder {
    low: u64,
    high: u64,
    out: Vec<u8>,
}

impl Encoder {
    /// Nothing yet.
    pub fn new() -> Self {
        Self { low: 0, high: u64::MAX, out: Vec::new() }
    }

    /// The bytes. Zeros are thought to follow them.
    pub fn finish(mut self) -> Vec<u8> {
        let (value, bytes) = ending(self.low, self.high);
        self.out.extend_from_slice(value.to_be_bytes().split_at(bytes).0);
        self.out
    }
}

/// The shortest number between the two, and its bytes: at least one, the rest of it is zeros.
fn ending(low: u64, high: u64) -> (u64, usize) {
    let rounded = |bytes: u32| {
        let rest = u64::MAX >> (8 * bytes);
        low.checked_add(rest).map(|value| (value & !rest, bytes as usize)).filter(|(value, _)| *value <= high)
    };
    (1..8).find_map(rounded).unwrap_or((low, WORD))
}

/// Bytes that are read ahead.
const WORD: usize = size_of::<u64>();

#[inline]
fn split(low: u64, high: u64, p: u32) -> u64 {
    low + ((high - low) >> 16) * u64::from(p)
}

impl Bits for Encoder {
    fn code(&mut self, bit: bool, p: u32) -> bool {
        let middle = split(self.low, self.high, p);
        if bit {
            self.high = middle
        } else {
            self.low = middle + 1
        }
        while (self.low ^ self.high) >> 56 == 0 {
            self.out.push((self.high >> 56) as u8);
            self.low <<= 8;
            self.high = self.high << 8 | 0xff;
        }
        bit
    }
}

/// Bytes being read as bits.
#[derive(Debug)]
pub struct Decoder<'a> {
    low: u64,
    high: u64,
    value: u64,
    rest: &'a [u8],
    beyond: usize,
}

impl<'a> Decoder<'a> {
    /// Begins to read.
    pub fn new(wire: &'a [u8]) -> Self {
        let mut decoder = Self { low: 0, high: u64::MAX, value: 0, rest: wire, beyond: 0 };
        (0..WORD).for_each(|_| decoder.shift());
        decoder
    }

    #[inline]
    fn shift(&mut self) {
        let byte = match self.rest.split_first() {
            Some((byte, rest)) => {
                self.rest = rest;
                *byte
            }
            None => {
                self.beyond += 1;
                0
            }
        };
        self.value = self.value << 8 | u64::from(byte);
    }

    /// Whether more was read than there is and can have been left out.
    pub fn is_beyond(&self) -> bool {
        self.beyond >= WORD
    }

    /// Whether the bytes end here, as the encoder would have ended them.
    pub fn is_at_end(&self) -> bool {
        let (value, bytes) = ending(self.low, self.high);
        self.rest.is_empty() && self.value == value && self.beyond + bytes == WORD
    }
}

impl Bits for Decoder<'_> {
    #[inline]
    fn code(&mut self, _: bool, p: u32) -> bool {
        let middle = split(self.low, self.high, p);
        let bit = self.value <= middle;
        if bit {
            self.high = middle
        } else {
            self.low = middle + 1
        }
        while (self.low ^ self.high) >> 56 == 0 {
            self.low <<= 8;
            self.high = self.high << 8 | 0xff;
            self.shift();
        }
        bit
    }
}

/// `65536 / (1 + e^-x)` at x = -12, -11.5 .. 12.
const LOGISTIC: [u32; 49] = [
    1, 1, 1, 2, 3, 5, 8, 13, 22, 36, 60, 98, 162, 267, 439, 720, 1179, 1921, 3108, 4971, 7812, 11979, 17625, 24743,
    32768, 40793, 47911, 53557, 57724, 60565, 62428, 63615, 64357, 64816, 65097, 65269, 65374, 65438, 65476, 65500,
    65514, 65523, 65528, 65531, 65533, 65534, 65535, 65535, 65535,
];

/// The largest stretched value: 12 in steps of 1/256.
const STRETCHED_MAX: i32 = 12 * 256 - 1;

/// The probability, in 65536ths, of a stretched one within its bounds.
#[inline]
const fn squash(stretched: i32) -> u32 {
    let at = stretched + STRETCHED_MAX + 1;
    let (step, part) = ((at >> 7) as usize, (at & 127) as u32);
    let (low, high) = (LOGISTIC[step], LOGISTIC[step + 1]);
    (low * (128 - part) + high * part + 64) >> 7
}

/// `ln(p / (1 - p))` in 256ths, for p in 4096ths.
static STRETCH: [i16; 4096] = {
    let mut table = [0; 4096];
    let (mut at, mut value) = (0, -STRETCHED_MAX);
    while at < 4096 {
        let wanted = at as u32 * 16 + 8;
        while value < STRETCHED_MAX && squash(value) < wanted {
            value += 1;
        }
        table[at] = value as i16;
        at += 1;
    }
    table
};

/// The part of the error that a slot takes over, in 65536ths, by the bits that it has seen.
static RATE: [u32; 256] = {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        table[at] = 655_360 / (at as u32 * 10 + 16);
        at += 1;
    }
    table
};

/// A probability that has seen some bits: 22 bits of it, 10 bits of count.
#[derive(Clone, Copy, Debug)]
struct Slot(u32);

impl Slot {
    const NEW: Self = Self(1 << 31);

    #[inline]
    fn p12(self) -> usize {
        (self.0 >> 20) as usize
    }

    #[inline]
    fn learn(&mut self, bit: bool, limit: u32) {
        let (p, count) = (self.0 >> 10, self.0 & 1023);
        let target = if bit { (1 << 22) - 1 } else { 0 };
        let step = ((i64::from(target) - i64::from(p)) * i64::from(RATE[count.min(255) as usize])) >> 16;
        let p = (i64::from(p) + step) as u32;
        self.0 = p << 10 | (count + 1).min(limit);
    }
}

/// No stream, however it was made, drives a weight beyond 64, in 65536ths.
const WEIGHT_MAX: i32 = 64 << 16;

/// Mixes the probabilities of `N` contexts.
#[derive(Debug)]
pub struct Mixer<const N: usize> {
    weights: Vec<[i32; N]>,
    tables: Vec<Slot>,
    log: u32,
    /// Bits after which a slot learns no slower.
    limit: u32,
}

impl<const N: usize> Mixer<N> {
    /// `sets` of weights; tables of `2^log` slots a context.
    pub fn new(sets: usize, log: u32, limit: u32) -> Self {
        let start = 85_197 / N as i32 + 9_830;
        Self { weights: vec![[start; N]; sets], tables: vec![Slot::NEW; N << log], log, limit }
    }

    /// Codes a bit in the given contexts (any numbers) with one set of weights.
    #[inline]
    pub fn code(&mut self, bits: &mut impl Bits, bit: bool, set: usize, contexts: &[u32; N]) -> bool {
        let mask = (1 << self.log) - 1;
        let mut at = [0_usize; N];
        let mut inputs = [0_i32; N];
        let weights = &mut self.weights[set];
        let mut sum = 0_i64;
        for i in 0..N {
            at[i] = i << self.log | (contexts[i] as usize & mask);
            inputs[i] = i32::from(STRETCH[self.tables[at[i]].p12()]);
            sum += i64::from(inputs[i]) * i64::from(weights[i]);
        }
        let stretched = (sum >> 16) as i32;
        let p = squash(stretched.clamp(-STRETCHED_MAX, STRETCHED_MAX)).clamp(1, 65535);
        let bit = bits.code(bit, p);
        let error = (if bit { 65536 } else { 0 }) - p as i32;
        for i in 0..N {
            let weight = weights[i] + ((inputs[i] * (error >> 4)) >> 11);
            weights[i] = weight.clamp(-WEIGHT_MAX, WEIGHT_MAX);
            self.tables[at[i]].learn(bit, self.limit);
        }
        bit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bits_read_back_at_any_probability_and_end_in_one_way(
            coded in proptest::collection::vec((any::<bool>(), prop_oneof![Just(1), Just(65535), 1_u32..65536]), 0..400),
            extra: u8,
        ) {
            let mut encoder = Encoder::new();
            for (bit, p) in &coded {
                encoder.code(*bit, *p);
            }
            let mut wire = encoder.finish();
            let read = |wire: &[u8]| {
                let mut decoder = Decoder::new(wire);
                let bits: Vec<bool> = coded.iter().map(|(_, p)| decoder.code(false, *p)).collect();
                (bits, decoder.is_at_end(), decoder.is_beyond())
            };
            let bits: Vec<bool> = coded.iter().map(|(bit, _)| *bit).collect();
            let good = (bits, true, false);
            prop_assert_eq!(read(&wire), good.clone());
            prop_assert_ne!(read(&wire[..wire.len() - 1]), good.clone(), "a byte too few");
            wire.push(extra);
            prop_assert_ne!(read(&wire), good, "a byte too many");
        }
    }

    #[test]
    fn what_was_learnt_is_cheap_and_nothing_overflows() {
        for (bits, bytes) in [(vec![true; 2_000_000], 40), (vec![false; 2_000_000], 40)] {
            let (mut encoder, mut mixer) = (Encoder::new(), Mixer::<3>::new(1, 8, 255));
            bits.iter().for_each(|bit| _ = mixer.code(&mut encoder, *bit, 0, &[0, 1, u32::MAX]));
            let len = encoder.finish().len();
            assert!(len < bytes, "{len} bytes");
        }
        // The worst that a stream can do: always the bit that was least expected.
        let mut mixer = Mixer::<3>::new(1, 4, 255);
        struct Contrary;
        impl Bits for Contrary {
            fn code(&mut self, _: bool, p: u32) -> bool {
                p < 32768
            }
        }
        for at in 0..1_000_000 {
            mixer.code(&mut Contrary, false, 0, &[at, at >> 4, 0]);
        }
        assert!(mixer.weights[0].iter().all(|weight| weight.abs() <= WEIGHT_MAX));
    }
}
