//! dm-verity hash trees: blocks of an image that are the hashes of its other blocks, and so need not travel.
//!
//! ```text
//! at - 1        at                                                   data
//! superblock │ root │ level 1 ... │ level 0: the leaves │    ...     data block 0, 1, 2, ...
//!                 each block of the tree: the SHA-256 of each of 128 blocks of the level below it, or of the data
//! ```
//! Hashes cannot be compressed, each changes with the data, and all of them change with the salt: shipped, a tree is nearly one
//! percent of its image. A [`Tree`] says where one lies and what it hashes; [`find()`] finds those of an image and proves them;
//! [`seal`] makes one, and [`Sealed`] is what a publisher signs of it.
//! The format is cryptsetup's, of `veritysetup format`: superblock version 1, hash types 0 and 1, SHA-256, blocks of 4096
//! bytes. What is none of that is not derived, and travels like anything else. Nothing here is believed by who uses it: what
//! was derived is proven by the image id like all else.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::block::{Geometry, Run};
use crate::codec::{CodecError, Reader, Writer};
use crate::limits::{BLOCK, IMAGE_MAX, PLAN_TREES_MAX, SALT_MAX};

mod find;
mod salt;
mod sealed;

pub use find::find;
pub use sealed::{RootHash, RootHashError, SealError, Sealed, SealedError, seal};

/// What every superblock begins with.
const MAGIC: &[u8; 8] = b"verity\0\0";

/// Bytes in a SHA-256.
const HASH: usize = 32;

/// Hashes in a block of a tree.
pub const FAN: u32 = BLOCK as u32 / HASH as u32;

/// Blocks of the largest image.
const BLOCKS_MAX: u64 = IMAGE_MAX / BLOCK;

/// Where the salt goes: before the block that is hashed, or behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Salted {
    /// Hash type 0, Chrome OS's.
    Behind = 0,
    /// Hash type 1, everybody else's.
    Before = 1,
}

/// One hash tree of an image: all that it takes to derive its blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    /// The image's block with which the data begins.
    pub data: u32,
    /// Blocks of data.
    pub blocks: u32,
    /// The image's block with which the tree begins: its root.
    pub at: u32,
    /// Where the salt goes.
    pub salted: Salted,
    /// The salt.
    #[serde(with = "salt")]
    pub salt: Vec<u8>,
}

/// Blocks of an image that derive from others by one tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Derived {
    /// The tree.
    pub tree: Tree,
    /// Which of its blocks, as runs of the image's blocks; ascending.
    pub runs: Vec<Run>,
}

impl Tree {
    /// Reads a superblock that is the image's block `at`, of a tree behind it; the data is yet to be found. `None`: it is none, or
    /// of a kind that is not derived.
    pub fn read(at: u32, superblock: &[u8]) -> Option<Self> {
        read(at, superblock).ok().flatten()
    }

    /// Says why a tree cannot be one of an image's. What passes can be used without asking again.
    pub fn check(&self, geometry: Geometry) -> Result<(), &'static str> {
        if self.blocks < 2 {
            return Err("it hashes less than two blocks");
        }
        if self.salt.len() > SALT_MAX {
            return Err("its salt is longer than 256 bytes");
        }
        let range = self.range();
        if !geometry.holds(self.data, self.blocks) || !geometry.holds(range.start, range.len() as u32) {
            return Err("it lies outside the image, or its data does");
        }
        if overlap(&range, &self.data()) { Err("it hashes itself") } else { Ok(()) }
    }

    /// The image's blocks that it hashes.
    pub fn data(&self) -> Range<u32> {
        self.data..self.data.saturating_add(self.blocks)
    }

    /// The image's blocks that are the tree.
    pub fn range(&self) -> Range<u32> {
        self.at..self.levels().first().map_or(self.at, |leaves| leaves.end)
    }

    /// The same with the superblock before it: nothing else lies there, so that no two trees touch.
    fn place(&self) -> Range<u32> {
        self.at.saturating_sub(1)..self.range().end
    }

    /// Its levels as runs of the image's blocks: the leaves first, whose hashes are the data's, the root last.
    pub fn levels(&self) -> Vec<Range<u32>> {
        let mut counts = Vec::new();
        let mut below = self.blocks;
        while below > 1 {
            below = below.div_ceil(FAN);
            counts.push(below);
        }
        let mut end = self.at;
        let stored = counts.iter().rev().map(|count| {
            let first = end;
            end = first.saturating_add(*count);
            first..end
        });
        let mut levels: Vec<_> = stored.collect();
        levels.reverse();
        levels
    }

    /// The run of the image's blocks that the tree's block `block` holds the hashes of; `None` if it is not the tree's.
    pub fn below(&self, block: u32) -> Option<Run> {
        let mut below = self.data();
        for level in self.levels() {
            if level.contains(&block) {
                let first = below.start.saturating_add((block - level.start).saturating_mul(FAN)).min(below.end);
                return Some((first, FAN.min(below.end - first)));
            }
            below = level;
        }
        None
    }

    /// The tree's block over blocks of the level below it.
    pub fn derive(&self, below: &[u8]) -> Vec<u8> {
        let mut block = vec![0; BLOCK as usize];
        for (place, data) in block.chunks_exact_mut(HASH).zip(below.chunks_exact(BLOCK as usize)) {
            place.copy_from_slice(&self.hash(data));
        }
        block
    }

    fn hash(&self, block: &[u8]) -> [u8; HASH] {
        let (first, then) = match self.salted {
            Salted::Before => (self.salt.as_slice(), block),
            Salted::Behind => (block, self.salt.as_slice()),
        };
        Sha256::new_with_prefix(first).chain_update(then).finalize().into()
    }

    /// As a part of a plan.
    pub(crate) fn write(&self, out: &mut Writer) {
        out.varint(self.data.into()).varint(self.blocks.into()).varint(self.at.into());
        out.u8(self.salted as u8).varint(self.salt.len() as u64).bytes(&self.salt);
    }

    /// Reads what [`Tree::write`] wrote. It is yet to be checked.
    pub(crate) fn from_plan(input: &mut Reader<'_>) -> Result<Self, CodecError> {
        let mut block = |field| input.varint(field, BLOCKS_MAX).map(|number| number as u32);
        let (data, blocks, at) = (block("tree's data")?, block("tree's data blocks")?, block("tree")?);
        let salted = salted(input.u8("tree's hash type")?.into())?;
        let length = input.count("tree's salt", SALT_MAX, 1)?;
        Ok(Self { data, blocks, at, salted, salt: input.bytes("tree's salt", length)?.to_vec() })
    }
}

impl Derived {
    /// How many blocks.
    pub fn count(&self) -> u64 {
        self.runs.iter().map(|(_, count)| u64::from(*count)).sum()
    }
}

/// All derived blocks of an image, ascending.
pub fn runs_derived(all: &[Derived]) -> Vec<Run> {
    let mut runs: Vec<Run> = all.iter().flat_map(|derived| derived.runs.iter().copied()).collect();
    runs.sort_unstable();
    runs
}

/// Why some trees cannot all be an image's, or cannot all be derived.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("hash tree {tree}: {why}")]
pub struct TreeError {
    /// Its index.
    pub tree: usize,
    /// What is wrong.
    pub why: &'static str,
}

/// Holds trees against an image and each other: neither they nor what they hash lie over each other. Answers where they lie.
pub fn apart(trees: &[Tree], geometry: Geometry) -> Result<Vec<Range<u32>>, TreeError> {
    let (mut taken, mut ranges) = (Vec::with_capacity(2 * trees.len()), Vec::with_capacity(trees.len()));
    for (index, tree) in trees.iter().enumerate() {
        let wrong = |why| TreeError { tree: index, why };
        if index >= PLAN_TREES_MAX {
            return Err(wrong("there are too many"));
        }
        tree.check(geometry).map_err(wrong)?;
        let own = [tree.place(), tree.data()];
        if own.iter().any(|own| taken.iter().any(|taken| overlap(own, taken))) {
            return Err(wrong("it lies over another, or its data does"));
        }
        taken.extend(own);
        ranges.push(tree.range());
    }
    Ok(ranges)
}

/// Whether two runs of blocks have one in common.
fn overlap(a: &Range<u32>, b: &Range<u32>) -> bool {
    a.start < b.end && b.start < a.end
}

fn salted(number: u64) -> Result<Salted, CodecError> {
    match number {
        0 => Ok(Salted::Behind),
        1 => Ok(Salted::Before),
        got => Err(CodecError::Unknown { field: "tree's hash type", got }),
    }
}

/// The layout is `struct verity_sb` of cryptsetup.
fn read(at: u32, superblock: &[u8]) -> Result<Option<Tree>, CodecError> {
    let mut input = Reader::new(superblock);
    let known = input.array("magic")? == *MAGIC && input.u32("version")? == 1;
    if !known {
        return Ok(None);
    }
    let salted = salted(input.u32("hash type")?.into())?;
    input.bytes("uuid", 16)?;
    let mut algorithm = [0; 32];
    algorithm[..6].copy_from_slice(b"sha256");
    let sha256 = input.array("algorithm")? == algorithm;
    let sizes = [input.u32("data block size")?, input.u32("hash block size")?];
    let blocks = input.u64("data blocks")?;
    let [low, high, _padding @ ..] = input.array::<8>("salt size")?;
    let length = usize::from(u16::from_le_bytes([low, high]));
    let salt = input.bytes("salt", SALT_MAX)?;
    let fits = sha256 && sizes == [BLOCK as u32; 2] && (2..=BLOCKS_MAX).contains(&blocks);
    let (Some(salt), true, Some(at)) = (salt.get(..length), fits, at.checked_add(1)) else { return Ok(None) };
    Ok(Some(Tree { data: 0, blocks: blocks as u32, at, salted, salt: salt.to_vec() }))
}

#[cfg(test)]
pub(crate) mod tests;
