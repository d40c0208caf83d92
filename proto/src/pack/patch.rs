//! The codec `patch`: near copies, like `delta`, in columns of bytes that zstd compresses. Larger by a fifteenth to a quarter
//! than what the model of `delta` leaves, and unpacked some fifty times as fast.
//!
//! A pack is the same list of [`Piece`]s. Numbers and bytes of one kind stand together, in a column each, because they resemble
//! each other and nothing else:
//!
//! | column  | of each piece                                                                                     |
//! |---------|---------------------------------------------------------------------------------------------------|
//! | lengths | bytes of its copy, and of fresh ones after it: two varints                                        |
//! | steps   | if it copies: from where, as a signed varint from where the last copy ended                       |
//! | rights  | until its copy is over: a varint, how many bytes are right as they are                            |
//! | wrongs  | and, unless it is over then: a varint, how many after these are not; at least one                 |
//! | firsts  | what is added to the first byte of each such run, modulo 256: an address begins to differ here    |
//! | others  | the same of its other bytes                                                                       |
//! | fresh   | the fresh bytes                                                                                   |
//!
//! The wire is a varint for each column's length and for its length as it travels, in this order, then the columns: as they are
//! if both are the same, else a zstd frame each.
//!
//! Decoding is total and takes time by what it reads and writes: all columns together are at most [`columns_max`] bytes, each
//! round of it writes at least one byte, and a column that ends too soon or too late is an error.

use crate::codec::{CodecError, Reader, Writer};

use super::delta::Piece;
use super::{Codec, PackError, compress, decompress_zstd};

const COLUMNS: usize = 7;

/// Names for errors.
const NAMES: [&str; COLUMNS] = ["lengths", "steps", "rights", "wrongs", "firsts", "others", "fresh"];

/// Columns are short: the highest level costs little.
const LEVEL: i32 = 19;

/// Bytes of all columns of a pack. Twice what it gives is more than any patch worth having.
fn columns_max(raw_len: usize) -> usize {
    2 * raw_len
}

/// Writes `raw` as `pieces`, which must cover it, behind `prefix`; `None` if that takes more room than it can be worth.
pub fn encode(raw: &[u8], prefix: &[u8], pieces: &[Piece]) -> Option<Vec<u8>> {
    let columns = columns(raw, prefix, pieces);
    if columns.iter().map(Vec::len).sum::<usize>() > columns_max(raw.len()) {
        return None;
    }
    let (mut head, mut body) = (Writer::new(), Vec::new());
    for column in &columns {
        let (codec, wire) = if column.is_empty() { (Codec::Raw, Vec::new()) } else { compress(column, &[], LEVEL) };
        debug_assert_eq!(codec == Codec::Raw, wire.len() == column.len());
        head.varint(column.len() as u64).varint(wire.len() as u64);
        body.extend_from_slice(&wire);
    }
    let mut wire = head.finish();
    wire.extend_from_slice(&body);
    Some(wire)
}

fn columns(raw: &[u8], prefix: &[u8], pieces: &[Piece]) -> [Vec<u8>; COLUMNS] {
    let [mut lengths, mut steps, mut rights, mut wrongs] = [(); 4].map(|()| Writer::new());
    let [mut firsts, mut others, mut fresh] = [(); 3].map(|()| Vec::new());
    let (mut at, mut end) = (0, 0);
    for piece in pieces {
        lengths.varint(piece.copy as u64).varint(piece.fresh as u64);
        if piece.copy > 0 {
            steps.signed(piece.from as i64 - end);
            end = (piece.from + piece.copy) as i64;
        }
        let new = raw.get(at..at + piece.copy).unwrap_or(&[]);
        let old = (piece.from..).map(|from| window(prefix, raw, from));
        let errors: Vec<u8> = new.iter().zip(old).map(|(new, old)| new.wrapping_sub(old)).collect();
        let mut rest = errors.as_slice();
        while !rest.is_empty() {
            let right = rest.iter().take_while(|error| **error == 0).count();
            rights.varint(right as u64);
            rest = rest.get(right..).unwrap_or(&[]);
            let wrong = rest.iter().take_while(|error| **error != 0).count();
            let (run, tail) = rest.split_at(wrong);
            if let Some((first, run)) = run.split_first() {
                wrongs.varint(wrong as u64);
                firsts.push(*first);
                others.extend_from_slice(run);
            }
            rest = tail;
        }
        at += piece.copy + piece.fresh;
        fresh.extend_from_slice(raw.get(at - piece.fresh..at).unwrap_or(&[]));
    }
    [lengths.finish(), steps.finish(), rights.finish(), wrongs.finish(), firsts, others, fresh]
}

/// A byte of the prefix, or of what stands behind it.
fn window(prefix: &[u8], raw: &[u8], at: usize) -> u8 {
    let own = || raw.get(at.checked_sub(prefix.len())?);
    prefix.get(at).or_else(own).copied().unwrap_or(0)
}

/// Reads `raw_len` bytes behind `prefix`.
pub fn decode(wire: &[u8], raw_len: usize, prefix: &[u8]) -> Result<Vec<u8>, PackError> {
    let columns = read_columns(wire, columns_max(raw_len))?;
    let mut patch = Patch {
        prefix,
        raw_len,
        columns: std::array::from_fn(|at| Reader::new(columns.get(at).map_or(&[], Vec::as_slice))),
        out: Vec::with_capacity(raw_len),
        end: 0,
    };
    while patch.out.len() < raw_len {
        patch.piece()?;
    }
    for (column, name) in patch.columns.into_iter().zip(NAMES) {
        column.end(name)?;
    }
    Ok(patch.out)
}

fn read_columns(wire: &[u8], max: usize) -> Result<[Vec<u8>; COLUMNS], PackError> {
    let mut reader = Reader::new(wire);
    let (mut lengths, mut room) = ([(0, 0); COLUMNS], max as u64);
    for (length, name) in lengths.iter_mut().zip(NAMES) {
        let raw = reader.varint(name, room)?;
        room -= raw;
        *length = (raw as usize, reader.varint(name, raw)? as usize);
    }
    let mut columns = [const { Vec::new() }; COLUMNS];
    for ((column, (raw, wire)), name) in columns.iter_mut().zip(lengths).zip(NAMES) {
        let bytes = reader.bytes(name, wire)?;
        *column = if wire == raw { bytes.to_vec() } else { decompress_zstd(bytes, raw, &[])? };
    }
    reader.end("the columns")?;
    Ok(columns)
}

/// A pack on its way out of its columns.
struct Patch<'a> {
    prefix: &'a [u8],
    raw_len: usize,
    columns: [Reader<'a>; COLUMNS],
    out: Vec<u8>,
    /// Where the last copy ended.
    end: i64,
}

impl Patch<'_> {
    fn piece(&mut self) -> Result<(), PackError> {
        let room = (self.raw_len - self.out.len()) as u64;
        let [lengths, steps, _, _, _, _, fresh] = &mut self.columns;
        let copy = lengths.varint("a copy", room)?;
        let new = lengths.varint("fresh bytes", room - copy)? as usize;
        if copy + new as u64 == 0 {
            return Err(EMPTY);
        }
        let fresh = fresh.bytes("fresh", new)?;
        if copy > 0 {
            let window = (self.prefix.len() + self.raw_len) as u64;
            let from = self.end + steps.signed("a step", window)?;
            self.end = from + copy as i64;
            self.copy(usize::try_from(from).map_err(|_| OUTSIDE)?, copy as usize)?;
        }
        self.out.extend_from_slice(fresh);
        Ok(())
    }

    /// From the prefix, or from the output; not across the border, and never from what is not there yet. What is copied from
    /// the output may be a part of the copy itself.
    fn copy(&mut self, mut from: usize, mut left: usize) -> Result<(), PackError> {
        let inside = match from.checked_sub(self.prefix.len()) {
            None => left <= self.prefix.len() - from,
            Some(own) => own < self.out.len(),
        };
        if !inside {
            return Err(OUTSIDE);
        }
        while left > 0 {
            let right = self.number(RIGHTS, left)?;
            self.right(from, right);
            (from, left) = (from + right, left - right);
            if left == 0 {
                break;
            }
            let wrong = self.number(WRONGS, left)?;
            if wrong == 0 {
                return Err(EMPTY);
            }
            self.wrong(from, wrong)?;
            (from, left) = (from + wrong, left - wrong);
        }
        Ok(())
    }

    fn number(&mut self, column: usize, max: usize) -> Result<usize, CodecError> {
        let name = NAMES.get(column).copied().unwrap_or_default();
        self.columns
            .get_mut(column)
            .map_or(Ok(0), |column| column.varint(name, max as u64).map(|number| number as usize))
    }

    fn right(&mut self, from: usize, mut len: usize) {
        let Some(mut own) = from.checked_sub(self.prefix.len()) else {
            return self.out.extend_from_slice(self.prefix.get(from..from + len).unwrap_or(&[]));
        };
        while len > 0 {
            // What is behind `own` grows as it is copied: each round twice what was there.
            let part = len.min(self.out.len() - own);
            self.out.extend_from_within(own..own + part);
            (own, len) = (own + part, len - part);
        }
    }

    fn wrong(&mut self, from: usize, len: usize) -> Result<(), PackError> {
        let [.., firsts, others, _] = &mut self.columns;
        let first = firsts.u8("firsts")?;
        let rest = others.bytes("others", len - 1)?;
        for (from, error) in (from..).zip(std::iter::once(&first).chain(rest)) {
            let old = window(self.prefix, &self.out, from);
            self.out.push(old.wrapping_add(*error));
        }
        Ok(())
    }
}

const RIGHTS: usize = 2;
const WRONGS: usize = 3;

const OUTSIDE: PackError = PackError::Patch("a copy points outside the window");
const EMPTY: PackError = PackError::Patch("a piece or a run is empty");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::noise;
    use proptest::prelude::*;

    fn piece(from: usize, copy: usize, fresh: usize) -> Piece {
        Piece { from, copy, fresh }
    }

    #[test]
    fn near_copies_cost_what_is_wrong_with_them() {
        let prefix = noise(100_000, 1);
        let mut raw = prefix[50_000..].to_vec();
        raw.iter_mut().step_by(1000).for_each(|byte| *byte = byte.wrapping_add(7));
        raw.extend(noise(46, 2));
        let wire = encode(&raw, &prefix, &[piece(50_000, 50_000, 46)]).unwrap();
        assert!(wire.len() < 46 + 100, "{}", wire.len());
        assert_eq!(decode(&wire, raw.len(), &prefix).unwrap(), raw);
    }

    #[test]
    fn a_copy_may_run_into_itself_and_be_corrected_there() {
        let mut raw = vec![b'x'; 5000];
        raw[3000..].fill(b'y');
        let pieces = [piece(0, 0, 1), piece(3, 4999, 0)];
        let wire = encode(&raw, b"abc", &pieces).unwrap();
        assert!(wire.len() < 40, "{}", wire.len());
        assert_eq!(decode(&wire, 5000, b"abc").unwrap(), raw);
    }

    #[test]
    fn copies_from_nowhere_and_columns_too_long_or_short_are_refused() {
        let raw = noise(4096, 3);
        let good = encode(&raw, &raw, &[piece(0, 4096, 0)]).unwrap();
        assert_eq!(decode(&good, 4096, &raw).unwrap(), raw);
        let outside = Err(OUTSIDE);
        assert_eq!(decode(&good, 4096, &raw[..4000]), outside, "across the border");
        assert_eq!(decode(&good, 4096, &[]), outside, "of what is not there");
        assert!(decode(&good, 4095, &raw).is_err() && decode(&good, 8192, &raw).is_err());
        for cut in 0..good.len() {
            assert!(decode(&good[..cut], 4096, &raw).is_err(), "{cut}");
        }
        let mut longer = good.clone();
        longer.push(0);
        assert!(decode(&longer, 4096, &raw).is_err());
        // A column of zeros as long as an image, in a few bytes.
        let bomb = zstd::bulk::compress(&vec![0; 1 << 20], 3).unwrap();
        let mut wire = Writer::new();
        wire.varint(1 << 20).varint(bomb.len() as u64).bytes(&[0; 12]).bytes(&bomb);
        assert!(decode(&wire.finish(), 4096, &raw).unwrap_err().to_string().contains("8192"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            script in proptest::collection::vec((any::<prop::sample::Index>(), 0_usize..300, 0_usize..50, any::<u64>()), 1..30),
            prefix in 0_usize..2000,
        ) {
            let prefix = noise(prefix, 4);
            let (mut raw, mut pieces) = (Vec::new(), Vec::new());
            for (at, copy, fresh, seed) in script {
                let from = at.index(prefix.len() + raw.len() + 1);
                let room = if from < prefix.len() { prefix.len() - from } else { copy };
                let copy = if from == prefix.len() + raw.len() { 0 } else { copy.min(room) };
                if copy + fresh == 0 {
                    continue;
                }
                for k in 0..copy {
                    let old = window(&prefix, &raw, from + k);
                    raw.push(if seed >> (k % 64) & 3 == 3 { old.wrapping_add(seed as u8) } else { old });
                }
                raw.extend(noise(fresh, seed));
                pieces.push(piece(from, copy, fresh));
            }
            if let Some(wire) = encode(&raw, &prefix, &pieces) {
                prop_assert_eq!(decode(&wire, raw.len(), &prefix), Ok(raw));
            }
        }

        #[test]
        fn any_bytes_end_in_bytes_or_an_error(wire: Vec<u8>, prefix: Vec<u8>, raw_len in 0_usize..9000) {
            if let Ok(raw) = decode(&wire, raw_len, &prefix) {
                prop_assert_eq!(raw.len(), raw_len);
            }
        }
    }
}
