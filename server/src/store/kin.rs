//! Which stored image a new one comes from.
//!
//! Nobody says so when an image is uploaded. But releases of one kind share most of their blocks, and blocks that were stored
//! already name their segments: of the newest images that have some of the same segments, the one with most blocks in
//! common is the next of kin. A sample of the blocks is enough to tell.

use std::collections::HashSet;
use std::sync::Arc;

use goldsync_proto::digest::{Digest, ImageId};
use goldsync_proto::signature::{BlockHashes, zero_hash};

use super::layout::Layout;
use super::{ImageRecord, Store};

/// Images that are looked at.
const CANDIDATES: usize = 8;

/// Of larger images one block in so many is looked at.
const SAMPLE: u64 = 64;

/// Blocks of an image that is small enough to be looked at whole.
const WHOLE: u32 = 1 << 16;

impl Store {
    /// The stored image that has most in common with another, which lies as `layout` says; `None` if none has anything.
    pub(crate) async fn next_of_kin(
        &self,
        image: ImageId,
        layout: &Layout,
        hashes: BlockHashes<'_>,
    ) -> Option<Arc<ImageRecord>> {
        let segments: HashSet<Digest> = layout.segments().iter().copied().collect();
        let mut records = self.images();
        records.sort_unstable_by_key(|record| std::cmp::Reverse(record.number));
        let wanted = sample(hashes);
        let (mut best, mut most, mut looked_at) = (None, 0, 0);
        for record in records.into_iter().filter(|record| record.image != image) {
            if looked_at == CANDIDATES {
                break;
            }
            // What cannot be read is no base to build on.
            let Ok(other) = self.layout(record.image).await else { continue };
            if !other.segments().iter().any(|segment| segments.contains(segment)) {
                continue;
            }
            let Ok(blocks) = self.block_hashes(record.image).await else { continue };
            looked_at += 1;
            let common = sample(BlockHashes::new(&blocks)).intersection(&wanted).count();
            if common > most {
                (best, most) = (Some(record), common);
            }
        }
        best
    }
}

/// Chosen by content, so that of two images the same blocks are in it.
fn sample(hashes: BlockHashes<'_>) -> HashSet<u64> {
    let all = hashes.len() <= WHOLE;
    hashes.iter().filter(|hash| *hash != zero_hash() && (all || hash.is_multiple_of(SAMPLE))).collect()
}
