//! The rolling pass, by fast_rsync, fenced.
//!
//! fast_rsync compares a signature with a buffer and writes librsync's delta. Here it is used the other way round: the
//! signature is the golden image's, the buffer is local, and of the delta only the copy commands are kept: each says
//! "this golden block lies at that local offset". The fence:
//!
//! - The signature is built here from section entries, with a block size of our own: a received block size of 0 would
//!   make fast_rsync loop for ever.
//! - It holds each content once, and only golden blocks that are still missing: fast_rsync reports one block per content,
//!   and its index takes 80 bytes a block. All owners of a content are told by [`Found::block`]'s duplicates.
//! - The caller cuts the local bytes into slices and may stop between them: a slice is the unit of bounded work.
//! - A match is a candidate: four bytes of rolling sum and four of MD4. The caller proves it by the block's own hash.

use std::io::{self, Write};

use super::Owners;
use crate::limits::{BLOCK, ROLLING_ROUND};
use crate::signature::{LIBRSYNC_HEAD, ROLLING_ENTRY};

/// librsync's magic numbers for an MD4 signature and for a delta.
const SIGNATURE_MAGIC: u32 = 0x7273_0136;
const DELTA_MAGIC: [u8; 4] = 0x7273_0236_u32.to_be_bytes();

/// The golden blocks of one round.
#[derive(Debug)]
pub struct Rolling {
    signature: fast_rsync::Signature,
    /// Golden blocks by content.
    owners: Owners,
}

/// A golden block that may lie at a local offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The golden block.
    pub block: u32,
    /// Where its first byte lies in the slice.
    pub offset: usize,
}

impl Rolling {
    /// Prepares the search for `wanted` golden blocks with their entries of the section `rolling`; at most
    /// [`ROLLING_ROUND`] of them count.
    pub fn new(wanted: &[(u32, [u8; ROLLING_ENTRY])]) -> Option<Self> {
        let mut wanted: Vec<_> = wanted.iter().take(ROLLING_ROUND).copied().collect();
        wanted.sort_unstable_by_key(|(block, entry)| (*entry, *block));
        let mut bytes = Vec::with_capacity(LIBRSYNC_HEAD + wanted.len() * ROLLING_ENTRY);
        bytes.extend_from_slice(&SIGNATURE_MAGIC.to_be_bytes());
        bytes.extend_from_slice(&(BLOCK as u32).to_be_bytes());
        bytes.extend_from_slice(&4_u32.to_be_bytes());
        let (contents, owners) = Owners::group(&wanted);
        contents.iter().for_each(|entry| bytes.extend_from_slice(entry));
        let signature = fast_rsync::Signature::deserialize(bytes).ok()?;
        Some(Self { signature, owners })
    }

    /// The index over the blocks; shared by all slices and threads.
    pub fn index(&self) -> Index<'_> {
        Index { rolling: self, indexed: self.signature.index() }
    }
}

/// [`Rolling`], ready to search.
#[derive(Debug)]
pub struct Index<'a> {
    rolling: &'a Rolling,
    indexed: fast_rsync::IndexedSignature<'a>,
}

impl Index<'_> {
    /// Searches `slice`. Blocks that straddle its end are not found: overlap slices by a block less one byte.
    pub fn search(&self, slice: &[u8]) -> Vec<Found> {
        if slice.len() < BLOCK as usize {
            return Vec::new();
        }
        let mut copies = Copies::default();
        // The sink never fails and the signature is our own, so that there is no error to pass on.
        if fast_rsync::diff(&self.indexed, slice, &mut copies).is_err() {
            return Vec::new();
        }
        let mut found = Vec::new();
        for copy in copies.done {
            for step in 0..copy.len / BLOCK {
                let offset = (copy.local + step * BLOCK) as usize;
                let owners = self.rolling.owners.of((copy.golden / BLOCK + step) as usize);
                found.extend(owners.iter().map(|block| Found { block: *block, offset }));
            }
        }
        found
    }
}

/// One copy command, with the local position that it stands for.
#[derive(Debug)]
struct Copy {
    golden: u64,
    local: u64,
    len: u64,
}

/// Takes librsync's delta byte by byte, and keeps the copies.
#[derive(Debug, Default)]
struct Copies {
    done: Vec<Copy>,
    local: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    Magic {
        seen: usize,
    },
    Command,
    /// `args` of `needs` bytes have come of command `op`.
    Arguments {
        op: u8,
        needs: usize,
        args: Vec<u8>,
    },
    Literal {
        left: u64,
    },
    End,
}

impl Default for State {
    fn default() -> Self {
        Self::Magic { seen: 0 }
    }
}

impl Write for Copies {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        while let Some((first, tail)) = rest.split_first() {
            if let State::Literal { left } = self.state {
                let skipped = left.min(rest.len() as u64);
                self.state = literal(left - skipped);
                self.pass(skipped)?;
                rest = rest.get(skipped as usize..).unwrap_or(&[]);
            } else {
                self.take(*first)?;
                rest = tail;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Copies {
    fn take(&mut self, byte: u8) -> io::Result<()> {
        match &mut self.state {
            State::Magic { seen } => {
                if DELTA_MAGIC.get(*seen) != Some(&byte) {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                *seen += 1;
                if *seen == DELTA_MAGIC.len() {
                    self.state = State::Command;
                }
            }
            State::Command => self.state = command(byte)?,
            State::Arguments { op, needs, args } => {
                args.push(byte);
                if args.len() == *needs {
                    let (op, args) = (*op, std::mem::take(args));
                    self.run(op, &args)?;
                }
            }
            State::Literal { .. } | State::End => return Err(io::ErrorKind::InvalidData.into()),
        }
        Ok(())
    }

    fn run(&mut self, op: u8, args: &[u8]) -> io::Result<()> {
        let number = |bytes: &[u8]| bytes.iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
        if op < op::COPY_FIRST {
            self.state = literal(number(args));
            return Ok(());
        }
        let (golden, len) = args.split_at_checked(op::copy_offset_len(op)).unwrap_or((args, &[]));
        let (golden, len) = (number(golden), number(len));
        self.done.push(Copy { golden, local: self.local, len });
        self.state = State::Command;
        self.pass(len)
    }

    /// `len` more bytes of what is here are spoken for.
    fn pass(&mut self, len: u64) -> io::Result<()> {
        self.local = self.local.checked_add(len).ok_or(io::ErrorKind::InvalidData)?;
        Ok(())
    }
}

/// librsync's commands.
mod op {
    pub const END: u8 = 0x00;
    pub const LITERAL_64: u8 = 0x40;
    pub const LITERAL_N1: u8 = 0x41;
    pub const LITERAL_N8: u8 = 0x44;
    pub const COPY_FIRST: u8 = 0x45;
    pub const COPY_LAST: u8 = 0x54;

    pub fn copy_offset_len(op: u8) -> usize {
        1 << ((op - COPY_FIRST) / 4)
    }

    pub fn copy_len_len(op: u8) -> usize {
        1 << ((op - COPY_FIRST) % 4)
    }
}

fn literal(left: u64) -> State {
    if left == 0 { State::Command } else { State::Literal { left } }
}

fn command(op: u8) -> io::Result<State> {
    let needs = match op {
        op::END => return Ok(State::End),
        1..=op::LITERAL_64 => return Ok(literal(u64::from(op))),
        op::LITERAL_N1..=op::LITERAL_N8 => 1 << (op - op::LITERAL_N1),
        op::COPY_FIRST..=op::COPY_LAST => op::copy_offset_len(op) + op::copy_len_len(op),
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    Ok(State::Arguments { op, needs, args: Vec::with_capacity(needs) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Geometry;
    use crate::signature::sign_region;
    use crate::testing::noise;
    use proptest::prelude::*;

    fn entries(golden: &[u8]) -> Vec<(u32, [u8; 8])> {
        let mut signer = crate::signature::Signer::new(Geometry::new(golden.len() as u64).unwrap());
        signer.push(sign_region(Geometry::new(golden.len() as u64).unwrap(), 0, golden));
        let rolling = signer.finish().unwrap().rolling;
        (0..).zip(rolling.as_chunks().0.iter().copied()).collect()
    }

    #[test]
    fn blocks_are_found_at_any_offset_and_for_every_owner() {
        let mut golden = noise(16 * 4096, 1);
        golden.copy_within(0..4096, 9 * 4096);
        let wanted = entries(&golden);
        let rolling = Rolling::new(&wanted).unwrap();
        let mut local = noise(777, 2);
        local.extend_from_slice(&golden[..5 * 4096]);
        local.extend_from_slice(&noise(300, 3));
        local.extend_from_slice(&golden[12 * 4096..]);
        let mut found = rolling.index().search(&local);
        found.sort_by_key(|f| f.block);
        let at = |block: u32, offset: usize| Found { block, offset };
        let head = 777;
        let tail = 777 + 5 * 4096 + 300;
        assert_eq!(
            found,
            vec![
                at(0, head),
                at(1, head + 4096),
                at(2, head + 8192),
                at(3, head + 12288),
                at(4, head + 16384),
                at(9, head),
                at(12, tail),
                at(13, tail + 4096),
                at(14, tail + 8192),
                at(15, tail + 12288),
            ]
        );
    }

    #[test]
    fn zeros_and_short_slices_end_quickly_and_find_nothing_false() {
        let wanted = entries(&noise(16 * 4096, 1));
        let rolling = Rolling::new(&wanted).unwrap();
        assert_eq!(rolling.index().search(&[0; 4 << 20]), vec![]);
        assert_eq!(rolling.index().search(&[0; 4095]), vec![]);
        assert_eq!(Rolling::new(&[]).unwrap().index().search(&[0; 8192]), vec![]);
    }

    #[test]
    fn copies_longer_than_any_file_are_refused() {
        let copy = |len: u64| [&[op::COPY_FIRST + 3, 0][..], &len.to_be_bytes()].concat();
        let mut copies = Copies::default();
        copies.write_all(&DELTA_MAGIC).unwrap();
        copies.write_all(&copy(u64::MAX)).unwrap();
        let refused = copies.write_all(&copy(1)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
    }

    proptest! {
        #[test]
        fn the_delta_reader_takes_any_bytes(bytes: Vec<u8>) {
            let mut copies = Copies::default();
            let _ = copies.write_all(&DELTA_MAGIC);
            let _ = copies.write_all(&bytes);
        }

        #[test]
        fn any_entries_can_be_searched_for(entries: Vec<(u32, [u8; 8])>, local in proptest::collection::vec(any::<u8>(), 0..9000)) {
            let rolling = Rolling::new(&entries).unwrap();
            for found in rolling.index().search(&local) {
                prop_assert!(found.offset + 4096 <= local.len());
            }
        }
    }
}
