//! Superblock and group descriptors, checked.

use super::Ext4Error;

/// Where the superblock lies, and how much of it is read.
const SUPER_AT: usize = 1024;
const SUPER_LEN: usize = 1024;

const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_64BIT: u32 = 0x80;
const RO_COMPAT_GDT_CSUM: u32 = 0x10;
const RO_COMPAT_BIGALLOC: u32 = 0x200;
const RO_COMPAT_METADATA_CSUM: u32 = 0x400;

/// Little-endian numbers at an offset; zero where there are no bytes, which the checks of who asks then refuse.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u16::from_le_bytes(*word))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u32::from_le_bytes(*word))
}

fn uuid_at(bytes: &[u8], at: usize) -> [u8; 16] {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default()
}

/// What the superblock says, as far as it is needed, and as far as it can be.
#[derive(Debug)]
pub(super) struct Super {
    pub(super) block_size: usize,
    /// Blocks, all of them inside the image.
    pub(super) blocks: u64,
    pub(super) first_data_block: u64,
    pub(super) blocks_per_group: u64,
    pub(super) inodes_per_group: u32,
    pub(super) inodes: u32,
    pub(super) inode_size: usize,
    /// Inodes below this are the file system's own, but for the root.
    pub(super) first_inode: u32,
    pub(super) journal_inode: u32,
    pub(super) uuid: [u8; 16],
    pub(super) hash_seed: [u8; 16],
    pub(super) written: u32,
    pub(super) mounts: u16,
    descriptor_size: usize,
    /// Whether descriptors may say that a bitmap or table was never written.
    lazy: bool,
}

/// A block group.
#[derive(Debug)]
pub(super) struct Group {
    /// `None` if it was never written: all is free but what something owns.
    pub(super) block_bitmap: Option<u64>,
    pub(super) block_bitmap_at: u64,
    pub(super) inode_bitmap_at: u64,
    pub(super) inode_table: u64,
    /// Inodes of the table that may be in use.
    pub(super) inodes: u32,
}

impl Super {
    pub(super) fn read(image: &[u8]) -> Result<Self, Ext4Error> {
        let sup = image.get(SUPER_AT..SUPER_AT + SUPER_LEN).ok_or(Ext4Error::Magic)?;
        if u16_at(sup, 56) != 0xEF53 {
            return Err(Ext4Error::Magic);
        }
        let (incompatible, read_only) = (u32_at(sup, 96), u32_at(sup, 100));
        for (bits, bit, feature) in [
            (incompatible, INCOMPAT_META_BG, "scattered group descriptors (meta_bg)"),
            (read_only, RO_COMPAT_BIGALLOC, "clusters (bigalloc)"),
        ] {
            if bits & bit != 0 {
                return Err(Ext4Error::Feature(feature));
            }
        }
        let wide = incompatible & INCOMPAT_64BIT != 0;
        let checked = |what, got: u64, good: bool| if good { Ok(got) } else { Err(Ext4Error::Field { what, got }) };
        let log = u64::from(u32_at(sup, 24));
        let block_size = 1024_usize << checked("block size", log, log <= 6)?;
        let high = if wide { u64::from(u32_at(sup, 0x150)) << 32 } else { 0 };
        let blocks = u64::from(u32_at(sup, 4)) | high;
        let held = image.len() as u64 / block_size as u64;
        let blocks_per_group = u64::from(u32_at(sup, 32));
        let inodes_per_group = u32_at(sup, 40);
        let old = u32_at(sup, 76) == 0;
        let inode_size = if old { 128 } else { u64::from(u16_at(sup, 88)) };
        let whole_size = inode_size.is_power_of_two() && (128..=block_size as u64).contains(&inode_size);
        let descriptor_size = if wide { u64::from(u16_at(sup, 0xFE)) } else { 32 };
        let bitmap_bits = 8 * block_size as u64;
        let sup = Self {
            block_size,
            blocks: checked("number of blocks", blocks, blocks > 0 && blocks <= held)?,
            first_data_block: u64::from(u32_at(sup, 20)),
            blocks_per_group: checked(
                "blocks in a group",
                blocks_per_group,
                (1..=bitmap_bits).contains(&blocks_per_group),
            )?,
            inodes_per_group: checked(
                "inodes in a group",
                inodes_per_group.into(),
                (1..=bitmap_bits).contains(&u64::from(inodes_per_group)),
            )? as u32,
            inodes: u32_at(sup, 0),
            inode_size: checked("inode size", inode_size, whole_size)? as usize,
            first_inode: if old { 11 } else { u32_at(sup, 84) },
            journal_inode: u32_at(sup, 0xE0),
            uuid: uuid_at(sup, 104),
            hash_seed: uuid_at(sup, 0xEC),
            written: u32_at(sup, 48),
            mounts: u16_at(sup, 52),
            descriptor_size: checked(
                "descriptor size",
                descriptor_size,
                (32..=1024).contains(&descriptor_size) && descriptor_size.is_power_of_two(),
            )? as usize,
            lazy: read_only & (RO_COMPAT_GDT_CSUM | RO_COMPAT_METADATA_CSUM) != 0,
        };
        checked("first data block", sup.first_data_block, sup.first_data_block < sup.blocks.min(2))?;
        Ok(sup)
    }

    pub(super) fn groups(&self) -> u64 {
        (self.blocks - self.first_data_block).div_ceil(self.blocks_per_group)
    }

    pub(super) fn descriptor(&self, image: &[u8], group: u64) -> Result<Group, Ext4Error> {
        let short = Ext4Error::Short("group descriptors");
        let table = (self.first_data_block as usize + 1) * self.block_size;
        let at =
            usize::try_from(group).ok().and_then(|group| group.checked_mul(self.descriptor_size)?.checked_add(table));
        let bytes = at.and_then(|at| image.get(at..)?.get(..self.descriptor_size)).ok_or(short)?;
        let wide = self.descriptor_size >= 64;
        let block = |low: usize| {
            u64::from(u32_at(bytes, low)) | if wide { u64::from(u32_at(bytes, low + 32)) << 32 } else { 0 }
        };
        let flags = if self.lazy { u16_at(bytes, 0x12) } else { 0 };
        let high = if wide { u32::from(u16_at(bytes, 0x32)) << 16 } else { 0 };
        let unused = if self.lazy { u32::from(u16_at(bytes, 0x1C)) | high } else { 0 };
        let left = u64::from(self.inodes).saturating_sub(group.saturating_mul(self.inodes_per_group.into()));
        let inodes = u64::from(self.inodes_per_group.saturating_sub(unused)).min(left) as u32;
        Ok(Group {
            block_bitmap: (flags & 2 == 0).then(|| block(0)),
            block_bitmap_at: block(0),
            inode_bitmap_at: block(4),
            inode_table: block(8),
            inodes: if flags & 1 == 0 { inodes } else { 0 },
        })
    }

    /// A block's bytes, if it is one of the file system's.
    pub(super) fn block<'a>(&self, image: &'a [u8], block: u64) -> Option<&'a [u8]> {
        let at = usize::try_from(block).ok().filter(|_| block < self.blocks)?.checked_mul(self.block_size)?;
        image.get(at..)?.get(..self.block_size)
    }
}
