//! Finding golden blocks in local bytes.
//!
//! ```text
//! golden hashes ─▶ [aligned]  blocks on the 4 KiB grid, by BLAKE3          most of ext4 and erofs
//!                     │ still missing
//!                     ▼
//!                  [rolling]  blocks at any byte offset                    squashfs, grown files
//!                     │ still missing
//!                     ▼
//!                  [grains]   eighths of blocks at any byte offset         changed files
//! ```
//! The passes answer with candidates, found by five to eight bytes of hash. They may stop early at any time: what is not
//! found is fetched. The two that look at every offset differ in how a window is hashed, and share the rest: `lanes` moves
//! windows, `filter` keeps nearly all of them out, `contents` knows what is wanted and by whom, `kernel` and `avx2` are the
//! instructions. The seam for other scanners is [`rolling::Rolling`]'s and [`grains::Grains`]' two functions.

use crate::block::{Run, byte_of};
use crate::limits::BLOCK;

pub mod aligned;
#[cfg(target_arch = "x86_64")]
mod avx2;
mod contents;
mod filter;
pub mod grains;
mod kernel;
mod lanes;
#[cfg(test)]
mod oracle;
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
