//! Finding where a pack's bytes come from, near enough: the pieces of the codec `delta`.
//!
//! Once a place of the window goes on like the pack does, it mostly stays so, with a wrong byte here and there. So an
//! *alignment* is kept for as long as nothing better is met: at each place where it fails, the longest equal piece among the
//! window's places with the same eight bytes is looked up, and taken if it explains more than the alignment does. Borders
//! between neighbours are then moved to where both together are wrong least. (The idea is Percival's, "Naive differences of
//! executable code"; the index here is a hash table with chains, ten times faster to make than a suffix array.)
//!
//! Bounded: chains are followed for so many links, equal bytes are skipped once found. Memory: four bytes for each byte of the
//! window, and 8 MiB of table at most: with fewer slots the chains of what is nowhere are long, with more the table is slow to fill.

use crate::limits::{PACK_RAW_MAX, PREFIX_MAX};
use crate::pack::delta::Piece;

/// Bytes that must be equal for a place to be looked at.
const SEED: usize = 8;

/// Links of a chain that are followed.
const DEPTH: usize = 24;

/// Equal bytes by which another place must beat the alignment.
const GAIN: usize = 8;

/// Bytes ahead by which an alignment is judged, and how many of them must be equal for it to stay unquestioned.
const AHEAD: usize = 32;
const TRUSTED: usize = 26;

/// The pieces that make `raw` behind `prefix`.
pub fn pieces(raw: &[u8], prefix: &[u8]) -> Vec<Piece> {
    let window = [prefix, raw].concat();
    settle(&window, prefix.len(), &alignments(&window, prefix.len()))
}

/// From byte `at` of the window on, the window goes on as it does from `from`.
#[derive(Clone, Copy, Debug)]
struct Alignment {
    at: usize,
    from: usize,
}

fn alignments(window: &[u8], start: usize) -> Vec<Alignment> {
    let mut index = Index::new(window);
    (0..start).for_each(|at| index.insert(at));
    let mut found: Vec<Alignment> = Vec::new();
    let (mut at, mut inserted) = (start, start);
    while at < window.len() {
        (inserted..at).for_each(|at| index.insert(at));
        inserted = at;
        let now = found.last().map(|last| last.from + (at - last.at));
        if let Some(now) = now {
            let equal = common(window, now, at);
            if equal >= 2 * SEED || likeness(window, now, at, AHEAD) >= TRUSTED {
                at += equal.max(1);
                continue;
            }
        }
        let (len, from) = index.longest(at);
        let explained = now.map_or(0, |now| likeness(window, now, at, len));
        if len > explained + GAIN {
            found.push(Alignment { at, from });
            at += len;
        } else {
            at += 1;
        }
    }
    found
}

/// Equal bytes at both places, at once.
fn common(window: &[u8], a: usize, b: usize) -> usize {
    let (a, b) = (window.get(a..).unwrap_or(&[]), window.get(b..).unwrap_or(&[]));
    let words = |bytes| <[u8]>::as_chunks::<8>(bytes).0.iter();
    let differs = |(a, b): (&[u8; 8], &[u8; 8])| u64::from_le_bytes(*a) ^ u64::from_le_bytes(*b);
    let whole = words(a).zip(words(b)).map(differs).take_while(|differs| *differs == 0).count();
    let rest = |bytes| <[u8]>::get(bytes, whole * 8..).unwrap_or(&[]).iter();
    whole * 8 + rest(a).zip(rest(b)).take_while(|(a, b)| a == b).count()
}

/// Equal bytes among the next `len`.
fn likeness(window: &[u8], a: usize, b: usize, len: usize) -> usize {
    let part = |at: usize| window.get(at..(at + len).min(window.len())).unwrap_or(&[]).iter();
    part(a).zip(part(b)).filter(|(a, b)| a == b).count()
}

/// Where each eight bytes of the window were met, the last first. A place is kept with some more bits of its hash above it:
/// what cannot be equal is passed over without a look at it.
struct Index<'a> {
    window: &'a [u8],
    log: u32,
    heads: Vec<u32>,
    links: Vec<u32>,
}

/// Bits of a place, and the table's at most.
const PLACE_BITS: u32 = 23;
const TABLE_LOG_MAX: u32 = 21;
const PLACE: u32 = (1 << PLACE_BITS) - 1;
const NOWHERE: u32 = u32::MAX;

const _: () = assert!(PREFIX_MAX + PACK_RAW_MAX < 1 << PLACE_BITS);

impl<'a> Index<'a> {
    fn new(window: &'a [u8]) -> Self {
        let log = window.len().next_power_of_two().trailing_zeros().clamp(1, TABLE_LOG_MAX);
        Self { window, log, heads: vec![NOWHERE; 1 << log], links: vec![NOWHERE; window.len()] }
    }

    /// The slot of the eight bytes at a place, and the bits of their hash that are kept with it.
    fn slot(&self, at: usize) -> Option<(usize, u32)> {
        let eight = self.window.get(at..at + SEED)?.first_chunk::<SEED>()?;
        let mixed = u64::from_le_bytes(*eight).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Some(((mixed >> (64 - self.log)) as usize, (mixed >> 8) as u32 & !PLACE))
    }

    fn insert(&mut self, at: usize) {
        if let Some((slot, tag)) = self.slot(at) {
            self.links[at] = self.heads[slot];
            self.heads[slot] = tag | at as u32;
        }
    }

    /// The longest equal piece, and where it is.
    fn longest(&self, at: usize) -> (usize, usize) {
        let mut best = (0, 0);
        let Some((slot, tag)) = self.slot(at) else { return best };
        let mut place = self.heads[slot];
        for _ in 0..DEPTH {
            if place == NOWHERE {
                break;
            }
            let from = (place & PLACE) as usize;
            if place & !PLACE == tag && self.window.get(from + best.0) == self.window.get(at + best.0) {
                let len = common(self.window, from, at);
                if len > best.0 {
                    best = (len, from);
                }
            }
            place = self.links[from];
        }
        best
    }
}

/// Gives each byte to an alignment or to none.
fn settle(window: &[u8], start: usize, found: &[Alignment]) -> Vec<Piece> {
    let mut pieces = Vec::with_capacity(found.len() + 1);
    let mut last: Option<Alignment> = None;
    let none = Alignment { at: window.len(), from: start };
    for next in found.iter().chain([&none]) {
        let from = last.map_or(start, |last| last.at);
        let mut forth = last.map_or(0, |last| reach(window, start, last, next.at));
        let mut back = if next.at == window.len() { 0 } else { reach_back(window, start, *next, from) };
        if let Some(last) = last
            && from + forth > next.at - back
        {
            let first = next.at - back;
            let border = first + best_border(window, last, *next, first, from + forth);
            (forth, back) = (border - from, next.at - border);
        }
        let end = next.at - back;
        let piece = Piece { from: last.map_or(0, |last| last.from), copy: forth, fresh: end - from - forth };
        if piece.copy + piece.fresh > 0 {
            pieces.push(piece);
        }
        last = Some(Alignment { at: end, from: next.from - back });
    }
    pieces
}

/// How far an alignment is worth following: to where it has been right most more often than wrong.
fn reach(window: &[u8], start: usize, of: Alignment, end: usize) -> usize {
    let limit = if of.from < start { (end - of.at).min(start - of.from) } else { end - of.at };
    best_prefix((0..limit).map(|k| window[of.from + k] == window[of.at + k]))
}

/// The same backwards, not beyond `end`.
fn reach_back(window: &[u8], start: usize, of: Alignment, end: usize) -> usize {
    let source = if of.from < start { of.from } else { of.from - start };
    best_prefix((1..=(of.at - end).min(source)).map(|k| window[of.from - k] == window[of.at - k]))
}

fn best_prefix(equal: impl Iterator<Item = bool>) -> usize {
    let (mut score, mut best, mut len) = (0_i64, 0, 0);
    for (at, equal) in (1..).zip(equal) {
        score += if equal { 1 } else { -1 };
        if score > best {
            (best, len) = (score, at);
        }
    }
    len
}

/// Where between `first` and `end` the one alignment is best left for the other.
fn best_border(window: &[u8], last: Alignment, next: Alignment, first: usize, end: usize) -> usize {
    let (mut score, mut best, mut border) = (0_i64, 0, 0);
    for at in first..end.min(next.at) {
        score += i64::from(window[last.from + (at - last.at)] == window[at]);
        score -= i64::from(window[next.from - (next.at - at)] == window[at]);
        if score > best {
            (best, border) = (score, at - first + 1);
        }
    }
    border
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::delta::{decode, encode};
    use crate::testing::noise;
    use proptest::prelude::*;

    #[test]
    fn an_edited_move_is_one_piece_and_what_is_new_stays_fresh() {
        let prefix = noise(50_000, 1);
        let mut raw = noise(300, 2);
        raw.extend_from_slice(&prefix[12_345..30_000]);
        raw.iter_mut().skip(700).step_by(61).for_each(|byte| *byte = byte.wrapping_add(9));
        let pieces = pieces(&raw, &prefix);
        assert_eq!(pieces, [Piece { from: 0, copy: 0, fresh: 300 }, Piece { from: 12_345, copy: 17_655, fresh: 0 }]);
    }

    #[test]
    fn constant_and_periodic_bytes_take_no_time_to_speak_of() {
        let (zeros, words) = (vec![0; 1 << 20], b"0123456".repeat(1 << 17));
        for (raw, prefix) in [(&zeros, &zeros), (&words, &zeros), (&words, &words)] {
            let pieces = pieces(raw, prefix);
            assert!(pieces.len() < 10, "{} pieces", pieces.len());
            assert!(decode(&encode(raw, prefix, &pieces), raw.len(), prefix).as_ref() == Ok(raw));
        }
    }

    proptest! {
        #[test]
        fn the_pieces_always_give_the_bytes(
            script in proptest::collection::vec((0_usize..2000, 0_usize..500, 0_u8..6), 0..15),
            prefix_len in 0_usize..2000,
        ) {
            let prefix = noise(prefix_len, 1);
            let mut raw = Vec::new();
            for (from, len, kind) in script {
                let source = if kind % 2 == 0 { &prefix } else { &raw };
                let from = from.min(source.len());
                let mut part = source[from..(from + len).min(source.len())].to_vec();
                match kind {
                    0 | 1 => part.iter_mut().step_by(17).for_each(|byte| *byte ^= 5),
                    2 => part = noise(len, from as u64),
                    3 => part = vec![3; len],
                    _ => {}
                }
                raw.extend_from_slice(&part);
            }
            let pieces = pieces(&raw, &prefix);
            prop_assert_eq!(pieces.iter().map(|piece| piece.copy + piece.fresh).sum::<usize>(), raw.len());
            prop_assert_eq!(decode(&encode(&raw, &prefix, &pieces), raw.len(), &prefix), Ok(raw));
        }
    }
}
