//! The codec `delta`: a pack as copies of what stands before it, near enough, and what they get wrong.
//!
//! A new version of a program is its old one with other addresses in it, so that no long piece is equal but nearly all of it
//! is nearly so. The *window* is the prefix and behind it the pack's own bytes as far as they are known. A pack is a list of
//! *pieces*, each a copy out of the window, to be corrected, and *fresh* bytes after it:
//!
//! ```text
//! until raw_len bytes stand there:  copy len | fresh len | if copy len > 0: from, as a signed step from where the last copy ended
//!                                   copy len bytes, 32 at a time:  clean?  yes: as they are
//!                                                                          no: each byte  right? no: what is added to it
//!                                   fresh len bytes
//! ```
//! All of it is one arithmetically coded stream ([`super::bits`]); what makes it small is the context in which each bit is
//! coded: the old bytes around it, what was wrong last and how long ago, and the address that the bytes would mean if they
//! were an operand. Encoder and decoder run the same code; the encoder is told the bytes.
//!
//! Decoding is total: lengths and sources are held against what is there, pieces are few ([`pieces_max`]), each byte costs a
//! bounded number of bits, and a stream that ends too soon or too late is an error. Memory: the output and 4 MiB of tables.

use super::bits::{Bits, Decoder, Encoder, Mixer};

/// One piece: a copy to be corrected, and the fresh bytes after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// Where in the window the copy begins; nothing if it is empty.
    pub from: usize,
    /// Its bytes.
    pub copy: usize,
    /// Bytes that follow it and come from nowhere.
    pub fresh: usize,
}

/// Bytes of a copy that are called clean by one bit.
const CHUNK: usize = 32;

/// Writes `raw` as `pieces`, which must cover it, behind `prefix`.
pub fn encode(raw: &[u8], prefix: &[u8], pieces: &[Piece]) -> Vec<u8> {
    let mut coder = Coder::new(Encoder::new(), prefix, raw.len(), raw);
    for piece in pieces {
        // The encoder's own pieces are inside; a test says so.
        let _ = coder.piece(*piece);
    }
    coder.bits.finish()
}

/// Reads `raw_len` bytes behind `prefix`.
pub fn decode(wire: &[u8], raw_len: usize, prefix: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut coder = Coder::new(Decoder::new(wire), prefix, raw_len, &[]);
    let mut pieces = 0;
    while coder.out.len() < raw_len {
        pieces += 1;
        if pieces > pieces_max(raw_len) {
            return Err("there are more pieces than any search finds");
        }
        coder.piece(Piece::default())?;
        if coder.bits.is_beyond() {
            return Err("the stream ends too soon");
        }
    }
    if coder.bits.is_at_end() { Ok(coder.out) } else { Err("the stream goes on after the last byte") }
}

/// The most pieces that so many bytes may come in. A piece's head takes as long to decode as a dozen bytes: one for every byte
/// would cost seconds. Every piece that [`crate::make`] finds explains more than eight bytes.
fn pieces_max(raw_len: usize) -> usize {
    raw_len / 8 + 16
}

/// Both directions: `known` is the whole output for the encoder, and nothing for the decoder.
struct Coder<'a, B> {
    bits: B,
    model: Model,
    prefix: &'a [u8],
    out: Vec<u8>,
    raw_len: usize,
    known: &'a [u8],
    /// Where the last copy ended.
    end: usize,
}

impl<'a, B: Bits> Coder<'a, B> {
    fn new(bits: B, prefix: &'a [u8], raw_len: usize, known: &'a [u8]) -> Self {
        Self { bits, model: Model::new(), prefix, out: Vec::with_capacity(raw_len), raw_len, known, end: 0 }
    }

    fn piece(&mut self, piece: Piece) -> Result<(), &'static str> {
        let room = self.raw_len - self.out.len();
        let copy = self.model.number(&mut self.bits, Number::Copy, piece.copy as u32) as usize;
        let fresh = self.model.number(&mut self.bits, Number::Fresh, piece.fresh as u32) as usize;
        if copy + fresh == 0 || copy + fresh > room {
            return Err("a piece is empty, or goes beyond the end");
        }
        if copy > 0 {
            let step = piece.from as i64 - self.end as i64;
            let step = self.model.number(&mut self.bits, Number::Step, zigzag(step));
            let from = usize::try_from(self.end as i64 + unzigzag(step)).map_err(|_| OUTSIDE)?;
            self.copy(from, copy)?;
            self.end = from + copy;
        }
        for _ in 0..fresh {
            let byte = self.known.get(self.out.len()).copied().unwrap_or(0);
            let byte = self.model.fresh(&mut self.bits, &self.out, byte);
            self.out.push(byte);
        }
        Ok(())
    }

    /// From the prefix, or from the output; not across the border, and never from what is not there yet.
    fn copy(&mut self, from: usize, len: usize) -> Result<(), &'static str> {
        let own = from.checked_sub(self.prefix.len());
        let inside = match own {
            None => len <= self.prefix.len() - from,
            Some(own) => own < self.out.len(),
        };
        if !inside {
            return Err(OUTSIDE);
        }
        let mut done = 0;
        while done < len {
            let chunk = CHUNK.min(len - done);
            let (at, here) = (from + done, self.out.len());
            let source = |k: usize, out: &[u8]| match own {
                None => self.prefix[at + k],
                Some(own) => out[own + done + k],
            };
            let equal = |k: usize| match own {
                // What is copied may itself be a part of the chunk.
                Some(own) => self.known.get(own + done + k) == self.known.get(here + k),
                None => self.known.get(here + k) == self.prefix.get(at + k),
            };
            let clean = !self.known.is_empty() && (0..chunk).all(equal);
            if self.model.clean(&mut self.bits, clean, chunk) {
                for k in 0..chunk {
                    self.out.push(source(k, &self.out));
                }
            } else {
                for k in 0..chunk {
                    let byte = self.known.get(here + k).copied().unwrap_or(0);
                    let old = match own {
                        None => around(self.prefix, at + k),
                        Some(own) => around(&self.out, own + done + k),
                    };
                    let byte = self.model.near(&mut self.bits, old, (at + k) as u32, &self.out, byte);
                    self.out.push(byte);
                }
            }
            done += chunk;
        }
        Ok(())
    }
}

const OUTSIDE: &str = "a copy points outside the window";

/// The eight bytes from three before `at`, little-endian; zeros for what is not there.
#[inline]
fn around(bytes: &[u8], at: usize) -> u64 {
    match at.checked_sub(3).and_then(|from| bytes.get(from..from + 8)).and_then(|eight| eight.try_into().ok()) {
        Some(eight) => u64::from_le_bytes(eight),
        None => (0..8).rev().fold(0, |word, k| {
            let byte = (at + k).checked_sub(3).and_then(|at| bytes.get(at)).copied().unwrap_or(0);
            word << 8 | u64::from(byte)
        }),
    }
}

fn zigzag(value: i64) -> u32 {
    (value << 1 ^ value >> 63) as u32
}

fn unzigzag(value: u32) -> i64 {
    i64::from(value >> 1) ^ -i64::from(value & 1)
}

/// What a number stands for: each kind learns by itself.
#[derive(Clone, Copy)]
enum Number {
    Copy = 0,
    Fresh = 1,
    Step = 2,
}

/// Binary digits of the largest number: steps across the largest window, zigzag.
const DIGITS_MAX: u32 = 24;

/// Everything that was learnt.
struct Model {
    numbers: Mixer<2>,
    cleans: Mixer<3>,
    rights: Mixer<7>,
    wrongs: Mixer<7>,
    freshes: Mixer<6>,
    /// Chunks that were clean, the last in bit 0.
    chunks: u32,
    /// Bytes of copies that were wrong, the last in bit 0.
    history: u32,
    /// Bytes since the last wrong one.
    since: u32,
    /// What the last three bytes were wrong by, the last in the lowest byte.
    errors: u32,
    /// What the last wrong byte was wrong by.
    error: u32,
}

impl Model {
    fn new() -> Self {
        Self {
            numbers: Mixer::new(1, 12, 60),
            cleans: Mixer::new(1, 12, 120),
            rights: Mixer::new(16, RIGHT_LOG, 250),
            wrongs: Mixer::new(256, WRONG_LOG, 120),
            freshes: Mixer::new(256, FRESH_LOG, 120),
            chunks: 0,
            history: 0,
            since: 0,
            errors: 0,
            error: 0,
        }
    }

    /// A number: how many binary digits it has, then those after the first.
    fn number(&mut self, bits: &mut impl Bits, kind: Number, value: u32) -> u32 {
        let kind = kind as u32;
        let value = value + 1;
        let mut digits = 0;
        while digits < DIGITS_MAX && !self.numbers.code(bits, value >> digits == 1, 0, &[kind << 6 | digits, 0xfff]) {
            digits += 1;
        }
        let mut read = 1;
        for place in (0..digits).rev() {
            let context = if read < 16 { kind << 10 | digits << 4 | read } else { 0xffff };
            let bit = value >> place & 1 == 1;
            let bit = self.numbers.code(bits, bit, 0, &[hash(context, 1), 0xfc0 | place]);
            read = read << 1 | u32::from(bit);
        }
        read - 1
    }

    /// Whether the next bytes of a copy are right as they are.
    fn clean(&mut self, bits: &mut impl Bits, clean: bool, len: usize) -> bool {
        let contexts = [
            self.chunks & 0xfff,
            hash(self.since.min(127) | (self.chunks & 7) << 8, 2),
            hash(len as u32 | (self.chunks & 15) << 8, 3),
        ];
        let clean = self.cleans.code(bits, clean, 0, &contexts);
        self.chunks = self.chunks << 1 | u32::from(clean);
        if clean {
            self.history = self.history.checked_shl(len as u32).unwrap_or(0);
            self.since = self.since.saturating_add(len as u32);
            self.errors = 0;
        }
        clean
    }

    /// A byte of a copy. `old` is the source's byte and what stands around it ([`around`]), `from` its place.
    #[inline]
    fn near(&mut self, bits: &mut impl Bits, old: u64, from: u32, out: &[u8], byte: u8) -> u8 {
        let around = |k: i32| (old >> (8 * (3 + k))) as u32 & 0xff;
        let plain = around(0);
        // If these bytes are an operand that begins with the first wrong one, it means an address; other operands that
        // mean the same were wrong by the same.
        let begun = match self.history & 7 {
            0 => 0,
            1 => 1,
            2 | 3 => 2,
            _ => 3,
        };
        let operand = (old >> (8 * (3 - begun))) as u32;
        let address = from.wrapping_sub(begun).wrapping_add(operand);
        let so_far = self.errors & ((1 << (8 * begun)) - 1);
        let meaning = hash(address, so_far | begun << 24);
        let fresh = last_bytes(out);
        let contexts = [
            self.history & 0xffff,
            hash(plain | around(-1) << 8 | (self.history & 3) << 16, 1),
            hash(plain | around(-1) << 8 | around(-2) << 16 | (self.history & 15) << 24, 2),
            hash(self.since.min(40) | self.error << 8, 3),
            hash(plain | around(-1) << 8 | around(1) << 16 | around(2) << 24, 4),
            hash(plain | (fresh & 0xffff) << 8 | (self.history & 1) << 24, 5),
            hash(meaning, 6),
        ];
        let set = (self.history & 15) as usize;
        let right = self.rights.code(bits, u32::from(byte) == plain, set, &contexts);
        let error = if right {
            self.since = self.since.saturating_add(1);
            0
        } else {
            let contexts = [
                hash(self.error, 11),
                hash(self.errors, 12),
                hash(plain, 13),
                hash(self.since.min(20) | self.error << 8, 14),
                hash(around(-1) | around(-2) << 8 | (self.history & 7) << 16, 15),
                hash(plain | (fresh & 0xff) << 8 | (self.history & 1) << 16, 16),
                hash(meaning, 17),
            ];
            let error = u32::from(byte).wrapping_sub(plain) & 0xff;
            let error = byte_of(&mut self.wrongs, bits, error, &contexts);
            self.since = 0;
            self.error = error;
            error
        };
        self.history = self.history << 1 | u32::from(!right);
        self.errors = (self.errors << 8 | error) & 0xff_ffff;
        plain.wrapping_add(error) as u8
    }

    /// A byte that comes from nowhere: the bytes before it say what there is to say.
    fn fresh(&mut self, bits: &mut impl Bits, out: &[u8], byte: u8) -> u8 {
        let last = last_bytes(out);
        let older = last_bytes(out.get(..out.len().saturating_sub(4)).unwrap_or(&[]));
        let contexts = [
            0,
            hash(last & 0xff, 21),
            hash(last & 0xffff, 22),
            hash(last & 0xff_ffff, 23),
            hash(last, 24),
            hash(hash(last, older & 0xffff), 25),
        ];
        byte_of(&mut self.freshes, bits, u32::from(byte), &contexts) as u8
    }
}

/// Slots for each context, as powers of two: 4 MiB in all.
const RIGHT_LOG: u32 = 16;
const WRONG_LOG: u32 = 15;
const FRESH_LOG: u32 = 16;

/// A byte, from its upper bit down, each bit in the contexts and what is known of the byte.
#[inline]
fn byte_of<const N: usize>(mixer: &mut Mixer<N>, bits: &mut impl Bits, byte: u32, contexts: &[u32; N]) -> u32 {
    let mut node = 1;
    for place in (0..8).rev() {
        let here = contexts.map(|context| hash(context, node));
        let bit = mixer.code(bits, byte >> place & 1 == 1, node as usize, &here);
        node = node << 1 | u32::from(bit);
    }
    node & 0xff
}

/// The last four bytes, the last in the lowest.
#[inline]
fn last_bytes(out: &[u8]) -> u32 {
    match out.last_chunk::<4>() {
        Some(four) => u32::from_be_bytes(*four),
        None => out.iter().fold(0, |word, byte| word << 8 | u32::from(*byte)),
    }
}

#[inline]
fn hash(a: u32, b: u32) -> u32 {
    let mixed = (a.wrapping_mul(0x2c1b_3c6d) ^ b).wrapping_mul(0x9e37_79b1);
    mixed ^ mixed >> 15
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::noise;
    use proptest::prelude::*;

    #[test]
    fn a_near_copy_costs_what_is_wrong_in_it() {
        let prefix = noise(100_000, 1);
        let mut raw = prefix[7..65_543].to_vec();
        raw.iter_mut().step_by(1000).for_each(|byte| *byte ^= 0x55);
        let pieces = [Piece { from: 7, copy: raw.len(), fresh: 0 }];
        let wire = encode(&raw, &prefix, &pieces);
        assert!(wire.len() < 66 * 5, "{} bytes", wire.len());
        assert_eq!(decode(&wire, raw.len(), &prefix), Ok(raw.clone()));
        let mut wrong = prefix.clone();
        wrong[500] ^= 1;
        assert_ne!(decode(&wire, raw.len(), &wrong), Ok(raw), "another prefix, other bytes or none");
    }

    #[test]
    fn a_copy_may_run_into_itself() {
        let raw = b"abc".repeat(1000);
        let pieces = [Piece { from: 0, copy: 0, fresh: 3 }, Piece { from: 0, copy: raw.len() - 3, fresh: 0 }];
        let wire = encode(&raw, b"", &pieces);
        assert!(wire.len() < 30, "{} bytes", wire.len());
        assert_eq!(decode(&wire, raw.len(), b""), Ok(raw));
    }

    /// A stream that says what no encoder does.
    fn hostile(copy: usize, fresh: usize, step: Option<i64>) -> Result<Vec<u8>, &'static str> {
        let raw = noise(4096, 2);
        let mut coder = Coder::new(Encoder::new(), &[7; 100], raw.len(), &raw);
        coder.model.number(&mut coder.bits, Number::Copy, copy as u32);
        coder.model.number(&mut coder.bits, Number::Fresh, fresh as u32);
        step.into_iter().for_each(|step| _ = coder.model.number(&mut coder.bits, Number::Step, zigzag(step)));
        decode(&coder.bits.finish(), raw.len(), &[7; 100])
    }

    #[test]
    fn a_stream_of_crumbs_is_refused() {
        let raw = noise(4096, 2);
        let crumbs = |size: usize| vec![Piece { from: 0, copy: 0, fresh: size }; raw.len() / size];
        assert!(decode(&encode(&raw, b"", &crumbs(1)), raw.len(), b"").is_err());
        assert_eq!(decode(&encode(&raw, b"", &crumbs(8)), raw.len(), b""), Ok(raw.clone()));
    }

    #[test]
    fn streams_that_point_outside_or_say_too_much_are_refused() {
        let beyond = Err("a piece is empty, or goes beyond the end");
        assert_eq!(hostile(0, 0, None), beyond);
        assert_eq!(hostile(4097, 0, Some(0)), beyond);
        assert_eq!(hostile(0, (1 << 24) - 2, None), beyond);
        assert_eq!(hostile((1 << 24) - 2, (1 << 24) - 2, Some(0)), beyond);
        for (copy, step) in [(1, -1), (101, 0), (1, 100), (1, 101), (2, 99), (1, (1 << 23) - 2), (1, -(1 << 23) + 2)] {
            assert_eq!(hostile(copy, 0, Some(step)), Err(OUTSIDE), "{copy} from {step}");
        }
        assert!(decode(&[], 4096, b"").is_err());
        assert!(hostile(0, 4000, None).is_err());
    }

    proptest! {
        #[test]
        fn pieces_read_back_and_broken_streams_end(
            script in proptest::collection::vec((0_usize..3000, 1_usize..400, 0_usize..80, any::<u8>()), 1..12),
            flip: (u16, u8),
            cut: u16,
        ) {
            let prefix = noise(2000, 3);
            let (mut raw, mut pieces) = (Vec::new(), Vec::new());
            for (from, copy, fresh, edit) in script {
                // Across the border of prefix and pack no copy goes, nor from what is not there yet.
                let from = from.min(prefix.len() + raw.len()).saturating_sub(1);
                let copy = if from < prefix.len() { copy.min(prefix.len() - from) } else { copy };
                for k in 0..copy {
                    let byte = match from.checked_sub(prefix.len()) {
                        None => prefix[from + k],
                        Some(own) => raw[own + k],
                    };
                    raw.push(if k % 50 == usize::from(edit % 64) { byte ^ edit } else { byte });
                }
                raw.extend_from_slice(&noise(fresh, from as u64));
                pieces.push(Piece { from, copy, fresh });
            }
            let mut wire = encode(&raw, &prefix, &pieces);
            prop_assert_eq!(decode(&wire, raw.len(), &prefix), Ok(raw.clone()));
            let wrong = |wire: &[u8], len: usize| {
                decode(wire, len, &prefix).is_ok_and(|bytes| bytes.len() != len || bytes == raw)
            };
            prop_assert!(!wrong(&wire[..usize::from(cut) % wire.len()], raw.len()));
            prop_assert!(!wrong(&wire, raw.len() + 1));
            let at = usize::from(flip.0) % wire.len();
            wire[at] ^= flip.1.max(1);
            prop_assert!(!wrong(&wire, raw.len()));
        }

        #[test]
        fn any_bytes_end_in_as_many_as_promised_or_an_error(wire: Vec<u8>, raw_len in 0_usize..20_000) {
            if let Ok(raw) = decode(&wire, raw_len, &[1, 2, 3]) {
                prop_assert_eq!(raw.len(), raw_len);
            }
        }
    }
}
