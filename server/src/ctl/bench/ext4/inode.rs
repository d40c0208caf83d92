//! Inodes, and the blocks that they claim.

use super::raw::{Group, Super, u16_at, u32_at};
use super::{Ext4Error, Owner, code};

/// The root directory's number.
pub(super) const ROOT: u32 = 2;

const EXTENTS: u32 = 0x8_0000;
const INLINE: u32 = 0x1000_0000;
const EXTENT_MAGIC: u16 = 0xF30A;
/// Levels of an extent tree, at most.
const DEPTH_MAX: u16 = 5;

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A link, a device, a socket.
    Other,
}

/// A file, a directory, or something else that has a name.
#[derive(Clone, Debug)]
pub struct Inode {
    /// Its number.
    pub number: u32,
    /// What it is.
    pub kind: Kind,
    /// Its path, of one of its names; a number if it has none.
    pub path: String,
    /// Its blocks in order, as (first, count) of the file system's blocks.
    pub extents: Vec<(u64, u32)>,
    /// Where its record lies in the image.
    pub record: std::ops::Range<usize>,
}

impl Inode {
    /// Pieces that do not lie behind one another.
    pub fn fragments(&self) -> usize {
        let breaks = self.extents.windows(2).filter(|pair| pair[0].0 + u64::from(pair[0].1) != pair[1].0).count();
        breaks + usize::from(!self.extents.is_empty())
    }
}

/// What changed between two records of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    Same,
    /// Times, generation and checksum only.
    Times,
    /// More.
    More,
}

/// The fields of an inode's record that are made anew at every build unless one takes care: the four times with their finer
/// parts, the generation, and the checksum over all.
const TIMES: [std::ops::Range<usize>; 6] = [0x08..0x14, 0x64..0x68, 0x7C..0x7E, 0x82..0x84, 0x84..0x98, 0x98..0x9C];

impl Change {
    /// Compares two records.
    pub fn between(old: &[u8], new: &[u8]) -> Self {
        if old == new {
            return Self::Same;
        }
        let timeless = |at: usize| !TIMES.iter().any(|range| range.contains(&at));
        let same =
            old.len() == new.len() && old.iter().zip(new).enumerate().all(|(at, (a, b))| a == b || !timeless(at));
        if same { Self::Times } else { Self::More }
    }
}

/// Walks all inodes, and writes down what each block is for.
pub(super) struct Walk<'a> {
    image: &'a [u8],
    sup: &'a Super,
    owners: Vec<u32>,
    inodes: Vec<Inode>,
    /// Blocks that may yet be claimed: a whole file system claims each of its own once.
    budget: u64,
}

impl<'a> Walk<'a> {
    pub(super) fn new(image: &'a [u8], sup: &'a Super) -> Self {
        Self { image, sup, owners: vec![0; sup.blocks as usize], inodes: Vec::new(), budget: sup.blocks + 1024 }
    }

    pub(super) fn finish(self) -> (Vec<Inode>, Vec<u32>) {
        (self.inodes, self.owners)
    }

    pub(super) fn group(&mut self, number: u64, group: &Group) -> Result<(), Ext4Error> {
        self.used_and_free(number, group)?;
        self.claim(group.block_bitmap_at, 1, Owner::Bitmaps)?;
        self.claim(group.inode_bitmap_at, 1, Owner::Bitmaps)?;
        let table_len = u64::from(self.sup.inodes_per_group) * self.sup.inode_size as u64;
        let table_blocks = table_len.div_ceil(self.sup.block_size as u64) as u32;
        self.claim(group.inode_table, table_blocks, Owner::Inodes)?;
        let start = usize::try_from(group.inode_table).ok().and_then(|block| block.checked_mul(self.sup.block_size));
        for index in 0..group.inodes {
            let at = start.and_then(|start| start.checked_add(index as usize * self.sup.inode_size));
            let record = at.map(|at| at..at.saturating_add(self.sup.inode_size)).unwrap_or_default();
            let bytes = self.image.get(record.clone()).filter(|bytes| !bytes.is_empty());
            let number = number.saturating_mul(self.sup.inodes_per_group.into()).saturating_add(u64::from(index) + 1);
            self.inode(number as u32, record, bytes.ok_or(Ext4Error::Short("inode tables"))?)?;
        }
        Ok(())
    }

    /// What is used and owned by nothing in the end is the file system's own. What somebody owns already stays his.
    fn used_and_free(&mut self, number: u64, group: &Group) -> Result<(), Ext4Error> {
        let bitmap = match group.block_bitmap {
            Some(block) => self.sup.block(self.image, block).ok_or(Ext4Error::Short("block bitmaps"))?,
            None => &[],
        };
        let first = self.sup.first_data_block + number * self.sup.blocks_per_group;
        let count = self.sup.blocks_per_group.min(self.sup.blocks - first);
        for index in 0..count as usize {
            let used = bitmap.get(index / 8).is_some_and(|byte| byte >> (index % 8) & 1 == 1);
            if let Some(owner) = self.owners.get_mut(first as usize + index).filter(|owner| **owner == 0) {
                *owner = code(if used { Owner::Own } else { Owner::Free });
            }
        }
        Ok(())
    }

    /// Gives blocks to an owner. What lies outside is left out: the record is damaged, the rest may be good.
    fn claim(&mut self, first: u64, count: u32, owner: Owner) -> Result<(), Ext4Error> {
        self.budget = self.budget.checked_sub(count.into()).ok_or(Ext4Error::Tangled)?;
        let start = usize::try_from(first).unwrap_or(usize::MAX);
        let end = start.saturating_add(count as usize).min(self.owners.len());
        if let Some(blocks) = self.owners.get_mut(start.min(end)..end) {
            blocks.fill(code(owner));
        }
        Ok(())
    }

    fn inode(&mut self, number: u32, record: std::ops::Range<usize>, bytes: &[u8]) -> Result<(), Ext4Error> {
        let (mode, links, flags) = (u16_at(bytes, 0), u16_at(bytes, 26), u32_at(bytes, 32));
        let own = number < self.sup.first_inode && number != ROOT;
        if (mode == 0 || links == 0) && !own {
            return Ok(());
        }
        let owner = match number {
            journal if journal == self.sup.journal_inode => Owner::Journal,
            _ if own => Owner::Own,
            _ => Owner::Inode(self.inodes.len() as u32),
        };
        let kind = match mode & 0xF000 {
            0x8000 => Kind::File,
            0x4000 => Kind::Directory,
            _ => Kind::Other,
        };
        let attributes = u64::from(u32_at(bytes, 0x68)) | u64::from(u16_at(bytes, 0x76)) << 32;
        if attributes != 0 && !self.is_attributes(attributes) {
            self.claim(attributes, 1, Owner::Attributes)?;
        }
        let mut extents = Vec::new();
        // Links whose target fits and files that fit have it in the place of the list; devices have a number there.
        let listed =
            flags & INLINE == 0 && (kind != Kind::Other || mode & 0xF000 == 0xA000 && u32_at(bytes, 28) > 0 || own);
        if let Some(list) = bytes.get(40..100).filter(|_| listed) {
            if flags & EXTENTS != 0 {
                self.extents(list, owner, DEPTH_MAX, &mut extents)?;
            } else if !(mode & 0xF000 == 0xA000 && u32_at(bytes, 4) < 60) {
                self.listed(list, owner, &mut extents)?;
            }
        }
        if let Owner::Inode(_) = owner {
            self.inodes.push(Inode { number, kind, path: String::new(), extents, record });
        }
        Ok(())
    }

    /// A block of attributes may be shared by many inodes.
    fn is_attributes(&self, block: u64) -> bool {
        usize::try_from(block).is_ok_and(|at| self.owners.get(at) == Some(&code(Owner::Attributes)))
    }

    fn extents(&mut self, node: &[u8], owner: Owner, depth: u16, into: &mut Vec<(u64, u32)>) -> Result<(), Ext4Error> {
        // A node that is none: the file's record is damaged; its blocks stay the file system's own.
        if u16_at(node, 0) != EXTENT_MAGIC {
            return Ok(());
        }
        let (entries, level) = (u16_at(node, 2), u16_at(node, 6));
        for entry in node.chunks_exact(12).skip(1).take(entries.into()) {
            if level == 0 {
                // Above 32768 the extent is reserved and not written; its blocks are the file's all the same.
                let count = u32::from(u16_at(entry, 4));
                let count = if count > 0x8000 { count - 0x8000 } else { count };
                let first = u64::from(u32_at(entry, 8)) | u64::from(u16_at(entry, 6)) << 32;
                self.claim(first, count, owner)?;
                // One of no length would be noted without having been paid for.
                into.extend((count > 0).then_some((first, count)));
            } else if level <= depth.min(DEPTH_MAX) && depth > 0 {
                let child = u64::from(u32_at(entry, 4)) | u64::from(u16_at(entry, 8)) << 32;
                self.claim(child, 1, owner)?;
                let Some(bytes) = self.sup.block(self.image, child) else { continue };
                self.extents(bytes, owner, depth - 1, into)?;
            }
        }
        Ok(())
    }

    /// Twelve blocks, then a block of blocks, one of those, and one of those.
    fn listed(&mut self, list: &[u8], owner: Owner, into: &mut Vec<(u64, u32)>) -> Result<(), Ext4Error> {
        for (at, word) in list.chunks_exact(4).enumerate() {
            let levels = at.saturating_sub(11) as u32;
            self.indirect(u64::from(u32_at(word, 0)), levels, owner, into)?;
        }
        Ok(())
    }

    fn indirect(&mut self, block: u64, levels: u32, owner: Owner, into: &mut Vec<(u64, u32)>) -> Result<(), Ext4Error> {
        if block == 0 {
            return Ok(());
        }
        self.claim(block, 1, owner)?;
        if levels > 0 {
            let Some(bytes) = self.sup.block(self.image, block) else { return Ok(()) };
            return bytes
                .chunks_exact(4)
                .try_for_each(|word| self.indirect(u64::from(u32_at(word, 0)), levels - 1, owner, into));
        }
        match into.last_mut() {
            Some((first, count)) if *first + u64::from(*count) == block => *count += 1,
            _ => into.push((block, 1)),
        }
        Ok(())
    }
}
