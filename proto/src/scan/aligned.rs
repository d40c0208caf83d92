//! The aligned pass's index: from a block hash to the blocks that have it, at about five bytes a block.
//!
//! Block numbers are sorted by hash, with a directory on the hash's top bits; the hashes themselves stay where they
//! are (a mapped section), so that an image of 20 GiB is indexed in 25 MiB.

use crate::signature::BlockHashes;

/// An index over some of a section's blocks.
#[derive(Debug)]
pub struct BlockIndex<'a> {
    hashes: BlockHashes<'a>,
    order: Vec<u32>,
    starts: Vec<u32>,
    shift: u32,
}

impl<'a> BlockIndex<'a> {
    /// Indexes `blocks`; numbers outside the section do not count.
    pub fn new(hashes: BlockHashes<'a>, blocks: impl IntoIterator<Item = u32>) -> Self {
        let mut order: Vec<u32> = blocks.into_iter().filter(|block| *block < hashes.len()).collect();
        order.sort_unstable_by_key(|block| (hashes.get(*block), *block));
        let bits = (order.len().max(2).ilog2()).saturating_sub(2).clamp(1, 24);
        let shift = 64 - bits;
        let mut starts = vec![0_u32; (1 << bits) + 1];
        for block in &order {
            let bucket = (hashes.get(*block).unwrap_or(0) >> shift) as usize;
            if let Some(count) = starts.get_mut(bucket + 1) {
                *count += 1;
            }
        }
        let mut sum = 0;
        for start in &mut starts {
            sum += *start;
            *start = sum;
        }
        Self { hashes, order, starts, shift }
    }

    /// The indexed blocks with this hash, ascending.
    pub fn find(&self, hash: u64) -> &[u32] {
        let bucket = (hash >> self.shift) as usize;
        let (Some(start), Some(end)) = (self.starts.get(bucket), self.starts.get(bucket + 1)) else { return &[] };
        let bucket = self.order.get(*start as usize..*end as usize).unwrap_or(&[]);
        let first = bucket.partition_point(|block| self.hashes.get(*block) < Some(hash));
        let tail = bucket.get(first..).unwrap_or(&[]);
        let same = tail.partition_point(|block| self.hashes.get(*block) == Some(hash));
        tail.get(..same).unwrap_or(&[])
    }

    /// Blocks indexed.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_index_finds_what_a_plain_search_finds(
            hashes in proptest::collection::vec(0_u64..6, 0..60),
            spread in 0_u32..62,
            skip in 1_u32..4,
        ) {
            let section: Vec<u8> = hashes.iter().flat_map(|h| (h << spread).to_le_bytes()).collect();
            let blocks: Vec<u32> = (0..hashes.len() as u32 + 3).filter(|b| b % skip == 0).collect();
            let index = BlockIndex::new(BlockHashes::new(&section), blocks.iter().copied());
            for hash in 0..7_u64 {
                let plain: Vec<u32> = blocks.iter().copied()
                    .filter(|b| hashes.get(*b as usize).is_some_and(|h| h << spread == hash << spread)).collect();
                prop_assert_eq!(index.find(hash << spread), plain);
            }
        }
    }
}
