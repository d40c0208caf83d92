//! An image that dm-verity checks as it is read: what a manifest says of its tree, and making that tree.
//!
//! ```text
//! 0                        hash_offset
//! │ data_blocks of data    │ superblock │ tree │      the whole image, and so the whole slot
//! ```
//! A *sealed* image has one tree that hashes it from its first block on. Its root hash stands for all of the data: the publisher
//! signs it, the node hands it to the kernel, and a machine that runs with it has proven what it runs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{Derived, HASH, MAGIC, Salted, Tree, salt};
use crate::block::Geometry;
use crate::codec::Writer;
use crate::digest::ImageId;
use crate::limits::{BLOCK, SALT_MAX};

/// The one algorithm, by the kernel's name.
pub const ALGORITHM: &str = "sha256";

/// What makes a salt of an image's id. Changing it changes the id of every image that is sealed from then on.
const SALT_CONTEXT: &str = "goldsync 2026-11-21 dm-verity salt";

/// The same for the UUID in the superblock.
const UUID_CONTEXT: &str = "goldsync 2026-11-21 dm-verity uuid";

/// The hash over a tree's root block, which stands for all of the data.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RootHash(pub [u8; HASH]);

impl fmt::Display for RootHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for RootHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no root hash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a root hash of SHA-256: 64 hexadecimal digits are needed, as veritysetup prints them")]
pub struct RootHashError {
    text: String,
}

impl FromStr for RootHash {
    type Err = RootHashError;

    fn from_str(text: &str) -> Result<Self, RootHashError> {
        let bytes = salt::from_hex(text).and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| RootHashError { text: text.chars().take(80).collect() })
    }
}

impl Serialize for RootHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RootHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// All that dm-verity needs to know of a sealed image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// The hash type: 1, salt before the block; 0, behind it.
    pub version: u32,
    /// The hash: `sha256`.
    pub algorithm: String,
    /// Bytes in a block of data: 4096.
    pub data_block_size: u32,
    /// Bytes in a block of the tree: 4096.
    pub hash_block_size: u32,
    /// Blocks of data, from the image's first on.
    pub data_blocks: u64,
    /// The image's byte at which the superblock begins; the tree begins a block later.
    pub hash_offset: u64,
    /// The salt.
    #[serde(with = "salt")]
    pub salt: Vec<u8>,
    /// What stands for all of it.
    pub root_hash: RootHash,
}

/// Why what a manifest says of an image's tree cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("dm-verity: {why}")]
pub struct SealedError {
    why: &'static str,
}

impl Sealed {
    /// What seals an image, given its hash trees as [`find`](super::find()) found them: the one that there is, if it hashes the
    /// image from its start and is whole, every hash of it what it should be.
    pub fn of(image: &[u8], found: &[Derived]) -> Option<Self> {
        let [Derived { tree, runs }] = found else { return None };
        let range = tree.range();
        let whole = tree.data == 0 && *runs == [(range.start, range.len() as u32)];
        let start = usize::try_from(u64::from(tree.at) * BLOCK).ok()?;
        let root = image.get(start..start + BLOCK as usize).filter(|_| whole)?;
        Some(Self::new(tree, root))
    }

    /// Of a tree whose data begins with the image, and its root block.
    fn new(tree: &Tree, root: &[u8]) -> Self {
        Self {
            version: tree.salted as u32,
            algorithm: ALGORITHM.to_owned(),
            data_block_size: BLOCK as u32,
            hash_block_size: BLOCK as u32,
            data_blocks: tree.blocks.into(),
            hash_offset: u64::from(tree.at.saturating_sub(1)) * BLOCK,
            salt: tree.salt.clone(),
            root_hash: RootHash(tree.hash(root)),
        }
    }

    /// Holds it against the image's size, and against what is known here.
    pub fn check(&self, geometry: Geometry) -> Result<Tree, SealedError> {
        let wrong = |why| SealedError { why };
        let salted = match self.version {
            0 => Salted::Behind,
            1 => Salted::Before,
            _ => return Err(wrong("its hash type is neither 0 nor 1")),
        };
        if self.algorithm != ALGORITHM || [self.data_block_size, self.hash_block_size] != [BLOCK as u32; 2] {
            return Err(wrong("only SHA-256 over blocks of 4096 bytes is known here"));
        }
        let at = (self.hash_offset / BLOCK).checked_add(1).and_then(|at| u32::try_from(at).ok());
        let (Some(at), Ok(blocks), true) =
            (at, u32::try_from(self.data_blocks), self.hash_offset.is_multiple_of(BLOCK))
        else {
            return Err(wrong("it lies outside the image, or its data does"));
        };
        let tree = Tree { data: 0, blocks, at, salted, salt: self.salt.clone() };
        tree.check(geometry).map_err(wrong)?;
        // The superblock before it is not data either.
        if u64::from(at - 1) < self.data_blocks { Err(wrong("it hashes itself")) } else { Ok(tree) }
    }

    /// The block at which the tree begins, behind the superblock: as the kernel counts.
    pub fn hash_start(&self) -> u64 {
        self.hash_offset / BLOCK + 1
    }
}

/// Why no tree can be made for an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "an image of {blocks} blocks cannot be sealed: it needs two blocks of data at least, and with its tree it must stay an image"
)]
pub struct SealError {
    blocks: u64,
}

/// Makes the superblock and the tree that seal `data`, on all cores: what to append to it. The salt is made of `id`, the data's, so
/// that sealing the same data again makes the same bytes.
pub fn seal(data: &[u8], id: ImageId) -> Result<(Vec<u8>, Sealed), SealError> {
    let error = SealError { blocks: data.len() as u64 / BLOCK };
    let blocks = Geometry::new(data.len() as u64).map_err(|_| error)?.blocks();
    let salt = blake3::derive_key(SALT_CONTEXT, id.0.as_bytes()).to_vec();
    let tree = Tree { data: 0, blocks, at: blocks.checked_add(1).ok_or(error)?, salted: Salted::Before, salt };
    let end = u64::from(tree.range().end) * BLOCK;
    Geometry::new(end).ok().and_then(|whole| tree.check(whole).ok()).ok_or(error)?;
    let mut area = superblock(&tree, id);
    area.resize((end - data.len() as u64) as usize, 0);
    for level in tree.levels() {
        grow(&tree, data, &mut area, level);
    }
    let root = area.get(BLOCK as usize..2 * BLOCK as usize).unwrap_or_default();
    let sealed = Sealed::new(&tree, root);
    Ok((area, sealed))
}

/// Fills one level of the tree in `area`, the superblock and what follows, from what lies below it.
fn grow(tree: &Tree, data: &[u8], area: &mut [u8], level: std::ops::Range<u32>) {
    // The leaves come last on disk and first here, so that what is below a level lies behind it, or is the data.
    let start = (u64::from(level.start - (tree.at - 1)) * BLOCK) as usize;
    let (_, rest) = area.split_at_mut(start);
    let (own, behind) = rest.split_at_mut((level.len() as u64 * BLOCK) as usize);
    let leaves = level.end == tree.range().end;
    let (below, first) = if leaves { (data, 0) } else { (&*behind, level.end) };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = level.len().div_ceil(threads).max(1);
    let fill = |(part, out): (usize, &mut [u8])| {
        let blocks = level.start + (part * share) as u32..;
        for (block, place) in blocks.zip(out.chunks_exact_mut(BLOCK as usize)) {
            let Some((from, count)) = tree.below(block) else { continue };
            let from = (u64::from(from - first) * BLOCK) as usize;
            let below = below.get(from..from + (u64::from(count) * BLOCK) as usize).unwrap_or_default();
            place.copy_from_slice(&tree.derive(below));
        }
    };
    std::thread::scope(|scope| {
        for part in own.chunks_mut(share * BLOCK as usize).enumerate() {
            let fill = &fill;
            scope.spawn(move || fill(part));
        }
    });
}

/// `struct verity_sb` of cryptsetup, in a block of its own.
fn superblock(tree: &Tree, id: ImageId) -> Vec<u8> {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&blake3::derive_key(UUID_CONTEXT, id.0.as_bytes())[..16]);
    // Version 8: made by a rule of one's own; and the variant that all use.
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    let mut algorithm = [0; 32];
    algorithm[..ALGORITHM.len()].copy_from_slice(ALGORITHM.as_bytes());
    let mut salt = [0; SALT_MAX];
    salt[..tree.salt.len().min(SALT_MAX)].copy_from_slice(&tree.salt[..tree.salt.len().min(SALT_MAX)]);
    let mut out = Writer::new();
    out.bytes(MAGIC).u32(1).u32(tree.salted as u32).bytes(&uuid).bytes(&algorithm);
    out.u32(BLOCK as u32).u32(BLOCK as u32).u64(tree.blocks.into());
    out.bytes(&(tree.salt.len() as u16).to_le_bytes()).bytes(&[0; 6]).bytes(&salt);
    let mut block = out.finish();
    block.resize(BLOCK as usize, 0);
    block
}
