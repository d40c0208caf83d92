//! Finding golden blocks in local bytes.
//!
//! ```text
//! golden hashes ─▶ [aligned]  blocks on the 4 KiB grid, by BLAKE3          most of ext4 and erofs
//!                     │ still missing
//!                     ▼
//!                  [rolling]  blocks at any byte offset, by fast_rsync     squashfs, grown files
//!                     │ still missing
//!                     ▼
//!                  [grains]   eighths of blocks at any byte offset         changed files
//! ```
//! The passes answer with candidates, found by five to eight bytes of hash. They may stop early at any time: what is not
//! found is fetched. The seam for faster scanners is [`rolling::Rolling`]'s and [`grains::Grains`]' two functions.

use crate::block::{Run, byte_of};
use crate::limits::BLOCK;

pub mod aligned;
pub mod grains;
pub mod rolling;

/// Bytes that are searched in one go: the unit after which a budget and a wish to stop are looked at.
const SLICE: u64 = 4 << 20;

/// The byte ranges to search for what may lie in `runs` of blocks, or begin or end a block beside them, in `len` bytes: slices
/// that overlap by a block, so that nothing is missed at their borders.
pub fn slices(runs: &[Run], len: u64) -> Vec<(u64, u64)> {
    let mut slices = Vec::new();
    for (first, count) in runs {
        let mut at = byte_of(first.saturating_sub(1));
        let end = byte_of(first + count + 1).min(len);
        while at + BLOCK <= end {
            let stop = (at + SLICE + BLOCK).min(end);
            slices.push((at, stop));
            if stop == end {
                break;
            }
            at += SLICE;
        }
    }
    slices
}

/// What has which content: `owners[spans[i]..spans[i + 1]]` have content `i`.
#[derive(Debug)]
struct Owners {
    owners: Vec<u32>,
    spans: Vec<u32>,
}

impl Owners {
    /// Groups owners, sorted by content; returns each content once, in that order.
    fn group<T: Copy + PartialEq>(sorted: &[(u32, T)]) -> (Vec<T>, Self) {
        let (mut contents, mut spans) = (Vec::new(), Vec::new());
        let owners = sorted.iter().map(|(owner, _)| *owner).collect();
        let mut at = 0;
        for same in sorted.chunk_by(|(_, a), (_, b)| a == b) {
            spans.push(at);
            at += same.len() as u32;
            contents.extend(same.first().map(|(_, content)| *content));
        }
        spans.push(at);
        (contents, Self { owners, spans })
    }

    fn of(&self, content: usize) -> &[u32] {
        let span = |index: usize| self.spans.get(index).map_or(0, |span| *span as usize);
        self.owners.get(span(content)..span(content + 1)).unwrap_or(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_overlap_by_a_block_and_stay_inside() {
        let len = 3 * SLICE;
        let cut = slices(&[(1, (3 * SLICE / BLOCK) as u32 - 1)], len);
        assert_eq!(cut, vec![(0, SLICE + BLOCK), (SLICE, 2 * SLICE + BLOCK), (2 * SLICE, 3 * SLICE)]);
        assert_eq!(slices(&[(0, 1)], 2 * BLOCK), vec![(0, 2 * BLOCK)]);
    }
}
