//! Hashing an image: its id, and the subtree hash of each region, in one pass.
//!
//! A region (1 MiB, the last may be short) is a BLAKE3 subtree, so that the regions' chaining values, merged, *are*
//! the image id: the subtree section proves itself, and a changed region is found without hashing the rest again.
//! An image of one region has no chaining value: its one entry is the image id itself.

use blake3::Hasher;
use blake3::hazmat::{HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};

use crate::block::Geometry;
use crate::digest::{DIGEST_LEN, Digest, ImageId};
use crate::limits::REGION;

/// The hash of region `index` of an image with this geometry. `bytes` is the whole region.
pub fn region_hash(geometry: Geometry, index: u32, bytes: &[u8]) -> [u8; DIGEST_LEN] {
    let mut hasher = Hasher::new();
    if geometry.regions() > 1 {
        hasher.set_input_offset(u64::from(index) * REGION);
        hasher.update(bytes).finalize_non_root()
    } else {
        *hasher.update(bytes).finalize().as_bytes()
    }
}

/// The image id that a full list of region hashes gives, or `None` if the list is not as long as the image.
pub fn id_of_regions(geometry: Geometry, regions: &[[u8; DIGEST_LEN]]) -> Option<ImageId> {
    if regions.len() != geometry.regions() as usize {
        return None;
    }
    let id = match regions {
        [only] => *only,
        _ => {
            let (left, right) = halves(regions, geometry.size());
            *merge_subtrees_root(&subtree(left.0, left.1), &subtree(right.0, right.1), Mode::Hash).as_bytes()
        }
    };
    Some(ImageId(Digest(id)))
}

type Part<'a> = (&'a [[u8; DIGEST_LEN]], u64);

/// BLAKE3's own rule: the left half is the largest power of two of chunks that leaves something for the right.
fn halves(regions: &[[u8; DIGEST_LEN]], len: u64) -> (Part<'_>, Part<'_>) {
    let left_len = left_subtree_len(len);
    let (left, right) = regions.split_at((left_len / REGION) as usize);
    ((left, left_len), (right, len - left_len))
}

fn subtree(regions: &[[u8; DIGEST_LEN]], len: u64) -> [u8; DIGEST_LEN] {
    match regions {
        [only] => *only,
        _ => {
            let (left, right) = halves(regions, len);
            merge_subtrees_non_root(&subtree(left.0, left.1), &subtree(right.0, right.1), Mode::Hash)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::BLOCK;

    #[test]
    fn merged_regions_are_what_b3sum_prints() {
        for blocks in [1, 255, 256, 257, 512, 513, 3 * 256 + 7, 9 * 256] {
            let bytes: Vec<u8> =
                (0..blocks * BLOCK as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
            let geometry = Geometry::new(bytes.len() as u64).unwrap();
            let regions: Vec<_> = bytes
                .chunks(REGION as usize)
                .zip(0..)
                .map(|(part, index)| region_hash(geometry, index, part))
                .collect();
            assert_eq!(id_of_regions(geometry, &regions), Some(ImageId::of(&bytes)), "{blocks} blocks");
        }
    }

    #[test]
    fn a_list_of_the_wrong_length_has_no_id() {
        let geometry = Geometry::new(2 * REGION).unwrap();
        assert_eq!(id_of_regions(geometry, &[[0; 32]]), None);
    }
}
