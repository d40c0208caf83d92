//! The signature of a golden image: what a node needs to find out which of its own bytes are golden already.
//!
//! ```text
//! section   entry               bytes a GiB   read for
//! subtrees  32 B per 1 MiB            32 KiB   which regions differ at all; proves itself against the image id
//! blocks     8 B per 4 KiB             2 MiB   which blocks differ, and whether they lie elsewhere on the grid
//! rolling    8 B per 4 KiB             2 MiB   whether they lie at any byte offset; asked for only where `blocks` failed
//! ```
//! Made once, at publish. Each section is an immutable object named by its hash in the signed manifest and fetched by
//! range, so that a node pays for the part that it lacks. A block hash is the first 8 bytes of the block's own BLAKE3
//! (not of its subtree: that one depends on the offset and would not find a block that moved). Eight bytes find; they
//! do not prove: what was found so is proven with the whole slot's hash before it can be booted.
//! A rolling entry is librsync's: weak sum and the first four bytes of MD4, as fast_rsync writes them.

use fast_rsync::SignatureOptions;

use crate::block::Geometry;
use crate::digest::{DIGEST_LEN, Digest, ImageId};
use crate::image::{id_of_regions, region_hash};
use crate::limits::BLOCK;
use crate::release::{Section, Sections};

/// Bytes of one entry of the section `subtrees`.
pub const SUBTREE_ENTRY: usize = DIGEST_LEN;
/// Bytes of one entry of the section `blocks`.
pub const BLOCK_ENTRY: usize = 8;
/// Bytes of one entry of the section `rolling`.
pub const ROLLING_ENTRY: usize = 8;
/// Bytes of librsync's signature head, before the first entry.
pub(crate) const LIBRSYNC_HEAD: usize = 12;

/// The hash by which a block is found: the first 8 bytes of its BLAKE3, little-endian.
pub fn block_hash(block: &[u8]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *blake3::hash(block).as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// [`block_hash`] of 4096 zero bytes.
pub fn zero_hash() -> u64 {
    static HASH: std::sync::LazyLock<u64> = std::sync::LazyLock::new(|| block_hash(&[0; BLOCK as usize]));
    *HASH
}

/// The section `blocks`, read in place.
#[derive(Clone, Copy, Debug)]
pub struct BlockHashes<'a> {
    entries: &'a [[u8; BLOCK_ENTRY]],
}

impl<'a> BlockHashes<'a> {
    /// Reads a section; bytes beyond the last whole entry do not count.
    pub fn new(section: &'a [u8]) -> Self {
        Self { entries: section.as_chunks().0 }
    }

    /// Entries.
    pub fn len(self) -> u32 {
        u32::try_from(self.entries.len()).unwrap_or(u32::MAX)
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.entries.is_empty()
    }

    /// The hash of block `index`.
    pub fn get(self, index: u32) -> Option<u64> {
        self.entries.get(index as usize).map(|entry| u64::from_le_bytes(*entry))
    }

    /// All hashes in order.
    pub fn iter(self) -> impl Iterator<Item = u64> + 'a {
        self.entries.iter().map(|entry| u64::from_le_bytes(*entry))
    }
}

/// The signature of one region, so that regions can be signed on several threads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionSignature {
    hash: [u8; DIGEST_LEN],
    blocks: Vec<u8>,
    rolling: Vec<u8>,
}

/// Signs region `index`. `bytes` is the whole region.
pub fn sign_region(geometry: Geometry, index: u32, bytes: &[u8]) -> RegionSignature {
    let options = SignatureOptions { block_size: BLOCK as u32, crypto_hash_size: 4 };
    let mut rolling = fast_rsync::Signature::calculate(bytes, options).into_serialized();
    rolling.drain(..LIBRSYNC_HEAD.min(rolling.len()));
    RegionSignature { hash: region_hash(geometry, index, bytes), blocks: sign_blocks(bytes), rolling }
}

/// The section `blocks` of some blocks.
pub fn sign_blocks(bytes: &[u8]) -> Vec<u8> {
    bytes.chunks_exact(BLOCK as usize).flat_map(|block| block_hash(block).to_le_bytes()).collect()
}

/// A whole signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The image's id.
    pub image: ImageId,
    /// The section `subtrees`.
    pub subtrees: Vec<u8>,
    /// The section `blocks`.
    pub blocks: Vec<u8>,
    /// The section `rolling`.
    pub rolling: Vec<u8>,
}

impl Signature {
    /// Signs an image that is all in memory.
    pub fn of(geometry: Geometry, bytes: &[u8]) -> Option<Self> {
        let mut signer = Signer::new(geometry);
        for index in 0..geometry.regions() {
            let range = geometry.region_bytes(index);
            signer.push(sign_region(geometry, index, bytes.get(range.start as usize..range.end as usize)?));
        }
        signer.finish()
    }

    /// What the manifest says of the sections.
    pub fn sections(&self) -> Sections {
        let section = |bytes: &[u8]| Section { name: Digest::of(bytes), length: bytes.len() as u64 };
        Sections { subtrees: section(&self.subtrees), blocks: section(&self.blocks), rolling: section(&self.rolling) }
    }
}

/// Gathers the regions' signatures, in order.
#[derive(Debug)]
pub struct Signer {
    geometry: Geometry,
    hashes: Vec<[u8; DIGEST_LEN]>,
    blocks: Vec<u8>,
    rolling: Vec<u8>,
}

impl Signer {
    /// For an image of this geometry.
    pub fn new(geometry: Geometry) -> Self {
        Self { geometry, hashes: Vec::new(), blocks: Vec::new(), rolling: Vec::new() }
    }

    /// Takes the next region's.
    pub fn push(&mut self, region: RegionSignature) {
        self.hashes.push(region.hash);
        self.blocks.extend_from_slice(&region.blocks);
        self.rolling.extend_from_slice(&region.rolling);
    }

    /// The whole, or `None` if regions are missing.
    pub fn finish(self) -> Option<Signature> {
        let image = id_of_regions(self.geometry, &self.hashes)?;
        Some(Signature { image, subtrees: self.hashes.concat(), blocks: self.blocks, rolling: self.rolling })
    }
}

/// Reads the section `subtrees` and proves it against the image id.
pub fn read_subtrees(geometry: Geometry, image: ImageId, section: &[u8]) -> Option<Vec<[u8; DIGEST_LEN]>> {
    let (entries, rest) = section.as_chunks::<SUBTREE_ENTRY>();
    (rest.is_empty() && id_of_regions(geometry, entries) == Some(image)).then(|| entries.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::REGION;

    #[test]
    fn a_signature_is_as_long_as_the_size_says_and_proves_itself() {
        let bytes: Vec<u8> = (0..REGION + 3 * BLOCK).map(|i| ((i * i) >> 7) as u8).collect();
        let geometry = Geometry::new(bytes.len() as u64).unwrap();
        let signature = Signature::of(geometry, &bytes).unwrap();
        assert_eq!(signature.image, ImageId::of(&bytes));
        assert_eq!((signature.subtrees.len(), signature.blocks.len(), signature.rolling.len()), (64, 259 * 8, 259 * 8));
        let hashes = BlockHashes::new(&signature.blocks);
        assert_eq!(hashes.get(258), Some(block_hash(&bytes[258 * 4096..])));
        assert_eq!(hashes.get(259), None);
        assert_eq!(read_subtrees(geometry, signature.image, &signature.subtrees).unwrap().len(), 2);
        assert_eq!(read_subtrees(geometry, ImageId::of(b""), &signature.subtrees), None);
        assert_eq!(read_subtrees(geometry, signature.image, &signature.subtrees[..63]), None);
    }
}
