//! A small reader of ext2, ext3 and ext4: which file, or what else, each block of an image belongs to. It only reads.
//!
//! ```text
//! superblock ─▶ group descriptors ─▶ bitmaps           which blocks are free
//!                                └─▶ inode tables ─▶ extents or block lists ─▶ owners
//!                                                └─▶ directories            ─▶ paths
//! ```
//! The image may be damaged or hostile: every offset is checked, no block is walked twice and all lengths together may not
//! exceed the file system, so that time and memory are bounded by the image's size. What cannot be made sense of is an error
//! or [`Owner::Unknown`], never a panic. Pure: no file, no clock; fuzzed by `fuzz/targets/ext4.rs`.

mod directory;
mod inode;
mod raw;

pub use inode::{Change, Inode, Kind};

use inode::Walk;
use raw::Super;

/// Bytes of an image's block, in which owners are told, whatever the file system's own is.
const IMAGE_BLOCK: usize = 4096;

/// Why an image cannot be read as ext2, ext3 or ext4.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ext4Error {
    /// It is something else.
    #[error("no ext2, ext3 or ext4 file system begins here")]
    Magic,
    /// A field that cannot be.
    #[error("its {what} cannot be: {got}")]
    Field {
        /// Which.
        what: &'static str,
        /// What it says.
        got: u64,
    },
    /// A feature that this reader does not know.
    #[error("it uses {0}, which this reader does not know")]
    Feature(&'static str),
    /// It ends before something that it names.
    #[error("it ends before its {0}")]
    Short(&'static str),
    /// Two things claim the same blocks, or one claims more than there are.
    #[error("its inodes claim more blocks than it has: it is damaged (e2fsck -fn tells more)")]
    Tangled,
}

/// What a block is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// Outside of the file system, or nothing that this reader knows.
    Unknown,
    /// Nothing: whatever it holds is garbage.
    Free,
    /// The file system itself: superblocks, descriptors and their spare room.
    Own,
    /// Bitmaps of blocks and inodes.
    Bitmaps,
    /// Inode tables.
    Inodes,
    /// The journal.
    Journal,
    /// Extended attributes.
    Attributes,
    /// An inode: index into [`Map::inodes`].
    Inode(u32),
}

/// A file system's blocks and what they are for.
#[derive(Debug)]
pub struct Map {
    /// Its own identity: changes with every `mkfs` that is not told one.
    pub uuid: [u8; 16],
    /// The seed of its directory hashes: likewise.
    pub hash_seed: [u8; 16],
    /// When it was last written to.
    pub written: u32,
    /// How often it was mounted since it was last checked.
    pub mounts: u16,
    /// Everything that has an inode, in the order of their numbers.
    pub inodes: Vec<Inode>,
    /// Bytes in a block of its own.
    pub block_size: u64,
    codes: Vec<u32>,
}

impl Map {
    /// Reads the file system in `image`.
    pub fn read(image: &[u8]) -> Result<Self, Ext4Error> {
        let sup = Super::read(image)?;
        let mut walk = Walk::new(image, &sup);
        for group in 0..sup.groups() {
            let descriptor = sup.descriptor(image, group)?;
            walk.group(group, &descriptor)?;
        }
        let (mut inodes, owners) = walk.finish();
        directory::name_all(image, &sup, &mut inodes);
        let codes = per_image_block(&owners, sup.block_size, image.len() / IMAGE_BLOCK);
        let (uuid, hash_seed) = (sup.uuid, sup.hash_seed);
        Ok(Self {
            uuid,
            hash_seed,
            written: sup.written,
            mounts: sup.mounts,
            inodes,
            block_size: sup.block_size as u64,
            codes,
        })
    }

    /// What a block of 4 KiB of the image is used for.
    pub fn owner(&self, block: u32) -> Owner {
        decoded(self.codes.get(block as usize).copied().unwrap_or(0))
    }

    /// A file's first bytes, up to the end of its first block.
    pub fn head<'a>(&self, image: &'a [u8], inode: &Inode) -> &'a [u8] {
        let first = inode.extents.first().and_then(|(first, _)| first.checked_mul(self.block_size));
        let at = first.and_then(|at| usize::try_from(at).ok()).unwrap_or(usize::MAX);
        image.get(at..).map_or(&[], |rest| rest.get(..self.block_size as usize).unwrap_or(rest))
    }

    /// The inode behind an owner.
    pub fn inode(&self, owner: Owner) -> Option<&Inode> {
        match owner {
            Owner::Inode(index) => self.inodes.get(index as usize),
            _ => None,
        }
    }
}

/// Owners as a word a block: an enum would take twice the memory.
const FILES: u32 = 16;

fn code(owner: Owner) -> u32 {
    match owner {
        Owner::Unknown => 0,
        Owner::Free => 1,
        Owner::Own => 2,
        Owner::Bitmaps => 3,
        Owner::Inodes => 4,
        Owner::Journal => 5,
        Owner::Attributes => 6,
        Owner::Inode(index) => index.saturating_add(FILES),
    }
}

fn decoded(code: u32) -> Owner {
    match code {
        0 => Owner::Unknown,
        1 => Owner::Free,
        2 => Owner::Own,
        3 => Owner::Bitmaps,
        4 => Owner::Inodes,
        5 => Owner::Journal,
        6 => Owner::Attributes,
        code => code.checked_sub(FILES).map_or(Owner::Unknown, Owner::Inode),
    }
}

/// From blocks of the file system's size to those of 4 KiB: of several small ones the one that is used for most counts.
fn per_image_block(owners: &[u32], block_size: usize, blocks: usize) -> Vec<u32> {
    let owner = |at: usize| owners.get(at).copied().unwrap_or(0);
    let of = |block: usize| {
        if block_size >= IMAGE_BLOCK {
            return owner(block / (block_size / IMAGE_BLOCK));
        }
        let parts = IMAGE_BLOCK / block_size;
        (block * parts..(block + 1) * parts).map(owner).max().unwrap_or(0)
    };
    (0..blocks).map(of).collect()
}

#[cfg(test)]
pub(super) mod tests;
