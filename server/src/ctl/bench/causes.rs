//! What in the images' making spoils their delta, what it costs, and what helps.
//!
//! A cause is only named with evidence from these two images; what it costs are bytes of the known base's packs, or blocks that
//! a node writes though nothing in them changed.

use std::collections::HashMap;

use goldsync_proto::limits::BLOCK;
use serde::Serialize;

use super::super::show;
use super::costs::Costs;
use super::ext4::{Change, Inode, Kind, Map, Owner};
use super::uses::{FileCost, Sides, sent};
use super::ways::Blocks;

/// Bytes of packs, as a part of all, below which nothing is said.
const WORTH: f64 = 0.01;
/// The part of NEW's blocks that must have moved before anything is said of it.
const MOVED_WORTH: f64 = 0.02;

/// Something to do better.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cause {
    /// For programs.
    pub name: &'static str,
    /// What it is, with the figures.
    pub finding: String,
    /// What helps.
    pub remedy: &'static str,
    /// Bytes of packs that it costs, at most.
    pub bytes: u64,
    /// Blocks that a node copies for it.
    pub copied: u64,
}

/// What causes are looked for in.
pub struct Evidence<'a> {
    /// Both images.
    pub sides: &'a Sides<'a>,
    /// What each block costs.
    pub costs: &'a Costs,
    /// What each file costs.
    pub files: &'a [FileCost],
    /// How NEW's blocks come about.
    pub blocks: &'a Blocks,
    /// The plan's own bytes.
    pub plan_bytes: u64,
    /// What NEW looks like.
    pub file_system: Option<&'static str>,
}

/// All causes that there is evidence for, the dearest first.
pub fn find(evidence: &Evidence<'_>) -> Vec<Cause> {
    let mut causes: Vec<Cause> = [
        evidence.compressed_file_system(),
        evidence.compressed_files(),
        evidence.garbage(),
        evidence.journal(),
        evidence.identity(),
        evidence.times(),
        evidence.renumbered(),
        evidence.moved(),
        evidence.disordered(),
        evidence.off_grid(),
        evidence.fragmented(),
    ]
    .into_iter()
    .flatten()
    .collect();
    causes.sort_by_key(|cause| std::cmp::Reverse((cause.bytes, cause.copied)));
    causes
}

impl Evidence<'_> {
    fn worth(&self, bytes: u64) -> bool {
        bytes > 0 && bytes as f64 >= WORTH * self.costs.total as f64
    }

    /// Bytes of packs, and blocks, for blocks of some uses.
    fn cost(&self, map: &Map, of: impl Fn(Owner) -> bool) -> (u64, u64) {
        let blocks: Vec<u32> = sent(self.costs).map(|(block, _)| block).filter(|block| of(map.owner(*block))).collect();
        (self.costs.bytes(blocks.iter().copied()), blocks.len() as u64)
    }

    fn compressed_file_system(&self) -> Option<Cause> {
        let how = compression(self.file_system?, self.sides.new)?;
        let fs = self.file_system?;
        Some(Cause {
            name: "compressed_file_system",
            finding: format!(
                "{fs} compresses with {how}: one byte that changed gives a whole compressed cluster (up to 1 MiB of content) \
                 that looks like noise, and all of it travels"
            ),
            remedy: "make the image uncompressed (mkfs.erofs without -z, or ext4): packs compress better than any file system, \
                     because they see OLD; compress on the node if its disk is small",
            bytes: self.costs.total,
            copied: 0,
        })
    }

    fn compressed_files(&self) -> Option<Cause> {
        let files: Vec<&FileCost> = self.files.iter().filter(|file| file.compressed.is_some()).collect();
        let bytes = files.iter().map(|file| file.bytes).sum();
        let first = files.first()?;
        self.worth(bytes).then(|| Cause {
            name: "compressed_files",
            finding: format!(
                "{} compressed inside cost {} ({} of the packs), first of all {} ({})",
                show::count(files.len() as u64, "file that is", "files that are"),
                show::bytes(bytes),
                percent(bytes, self.costs.total),
                first.path,
                first.compressed.unwrap_or_default()
            ),
            remedy: "store them plain where you can: initramfs with COMPRESS=cat, modules and firmware without .xz or .zst, \
                     manual pages and documentation left out; the pack compresses what travels",
            bytes,
            copied: 0,
        })
    }

    fn garbage(&self) -> Option<Cause> {
        let map = self.sides.new_map?;
        let (bytes, blocks) = self.cost(map, |owner| owner == Owner::Free);
        let all = (0..self.costs.all().len() as u32)
            .filter(|block| map.owner(*block) == Owner::Free && !self.is_zero(*block));
        let all = all.count() as u64;
        (blocks > 0 && self.worth(bytes)).then(|| Cause {
            name: "free_block_garbage",
            finding: format!(
                "free blocks of NEW hold what deleted files left: {} of them are not zero, {} of those are sent, for {} ({} \
                 of the packs)",
                all,
                blocks,
                show::bytes(bytes),
                percent(bytes, self.costs.total)
            ),
            remedy: "zerofree the unmounted image, or fstrim it while it is loop-mounted; or make it afresh with mkfs.ext4 -d",
            bytes,
            copied: 0,
        })
    }

    fn is_zero(&self, block: u32) -> bool {
        let at = u64::from(block) as usize * BLOCK as usize;
        self.sides.new.get(at..at + BLOCK as usize).is_none_or(|bytes| bytes.iter().all(|byte| *byte == 0))
    }

    fn journal(&self) -> Option<Cause> {
        let (bytes, blocks) = self.cost(self.sides.new_map?, |owner| owner == Owner::Journal);
        self.worth(bytes).then(|| Cause {
            name: "journal",
            finding: format!(
                "{blocks} blocks of NEW's journal are sent, for {} ({} of the packs): they are the history of its making",
                show::bytes(bytes),
                percent(bytes, self.costs.total)
            ),
            remedy: "give the unmounted image a fresh journal: tune2fs -O ^has_journal, zerofree, tune2fs -O has_journal; or make it \
                     without one, if it is only ever mounted read-only",
            bytes,
            copied: 0,
        })
    }

    fn identity(&self) -> Option<Cause> {
        let (old, new) = (self.sides.old_map?, self.sides.new_map?);
        let what = match (old.uuid == new.uuid, old.hash_seed == new.hash_seed) {
            (true, true) => return None,
            (false, true) => "UUIDs differ",
            (true, false) => "seeds of directory hashes differ",
            (false, false) => "UUIDs and seeds of directory hashes differ",
        };
        let (bytes, blocks) = self.cost(new, |owner| self.is_metadata(new, owner));
        Some(Cause {
            name: "identity",
            finding: format!(
                "the file systems' {what}: every checksum of metadata depends on them, so that all metadata differs \
                 ({blocks} blocks, {})",
                show::bytes(bytes)
            ),
            remedy: "give every build the same: mkfs.ext4 -U UUID -E hash_seed=UUID; mkfs.erofs -U UUID",
            bytes,
            copied: 0,
        })
    }

    fn is_metadata(&self, map: &Map, owner: Owner) -> bool {
        match owner {
            Owner::Own | Owner::Bitmaps | Owner::Inodes | Owner::Attributes => true,
            Owner::Inode(_) => map.inode(owner).is_some_and(|inode| inode.kind == Kind::Directory),
            _ => false,
        }
    }

    /// Files of the same path and number: with what in their records differs.
    fn times(&self) -> Option<Cause> {
        let (old, new) = (self.sides.old_map?, self.sides.new_map?);
        let known: HashMap<u32, &Inode> = old.inodes.iter().map(|inode| (inode.number, inode)).collect();
        let changes = new.inodes.iter().filter_map(|inode| {
            let before = known.get(&inode.number).filter(|before| before.path == inode.path)?;
            Some(Change::between(self.sides.old.get(before.record.clone())?, self.sides.new.get(inode.record.clone())?))
        });
        let (mut touched, mut all) = (0, 0_u64);
        for change in changes {
            all += 1;
            touched += u64::from(change == Change::Times);
        }
        let (bytes, _) = self.cost(new, |owner| owner == Owner::Inodes);
        (touched * 50 > all && self.worth(bytes)).then(|| Cause {
            name: "timestamps",
            finding: format!(
                "of {all} files and folders that are in both, {touched} differ in nothing but their times or checksums; inode \
                 tables cost {} ({} of the packs)",
                show::bytes(bytes),
                percent(bytes, self.costs.total)
            ),
            remedy: "pin times at the build: SOURCE_DATE_EPOCH, `touch -d` over the tree, E2FSPROGS_FAKE_TIME for mkfs.ext4 -d; \
                     mount a golden master with noatime",
            bytes,
            copied: 0,
        })
    }

    fn renumbered(&self) -> Option<Cause> {
        let (old, new) = (self.sides.old_map?, self.sides.new_map?);
        let known: HashMap<&str, u32> = old.inodes.iter().map(|inode| (inode.path.as_str(), inode.number)).collect();
        let numbers = new.inodes.iter().filter_map(|inode| Some((inode.number, *known.get(inode.path.as_str())?)));
        let (mut other, mut all) = (0, 0_u64);
        for (now, before) in numbers {
            all += 1;
            other += u64::from(now != before);
        }
        let (bytes, _) = self.cost(new, |owner| {
            owner == Owner::Inodes || self.is_metadata(new, owner) && matches!(owner, Owner::Inode(_))
        });
        (other * 10 > all && self.worth(bytes)).then(|| Cause {
            name: "renumbered_inodes",
            finding: format!(
                "{other} of {all} files and folders that are in both have another inode number, which moves their records in \
                 the inode tables and changes every directory; both cost {} ({} of the packs)",
                show::bytes(bytes),
                percent(bytes, self.costs.total)
            ),
            remedy: "add files to the tree in one order (sorted by name, LC_ALL=C) before mkfs, or upgrade OLD in place \
                     instead of making the file system afresh",
            bytes,
            copied: 0,
        })
    }

    fn moved(&self) -> Option<Cause> {
        let blocks = self.blocks;
        let much = blocks.moved as f64 > MOVED_WORTH * blocks.all as f64;
        much.then(|| Cause {
            name: "moved_blocks",
            finding: format!(
                "{} blocks ({} of the image) are in OLD, but elsewhere: they do not travel, but every node copies {} in {}, \
                 and the plan takes {}",
                blocks.moved,
                percent(blocks.moved, blocks.all),
                show::bytes(blocks.moved * BLOCK),
                show::count(blocks.moved_runs, "step", "steps"),
                show::bytes(self.plan_bytes)
            ),
            remedy: "upgrade OLD in place rather than making the file system afresh, if writes matter to you: what did not \
                     change then stays where it is",
            bytes: self.plan_bytes,
            copied: blocks.moved,
        })
    }

    /// Only where order is what a packer chose: on a file system that was upgraded in place blocks lie where there was room.
    fn disordered(&self) -> Option<Cause> {
        let blocks = self.blocks;
        let packed = matches!(self.file_system, Some("squashfs" | "erofs"));
        let often = blocks.moved_backwards >= 8 && blocks.moved_backwards * 20 > blocks.moved_runs;
        (packed && often).then(|| Cause {
            name: "packing_order",
            finding: format!(
                "data stands in another order than in OLD: of {} that moved, {} came from before the last",
                show::count(blocks.moved_runs, "run of blocks", "runs of blocks"),
                blocks.moved_backwards
            ),
            remedy: "pack in one order: a sorted tree, mksquashfs -processors 1 or a release whose threads keep the order \
                     (4.6 and later with -reproducible), a fixed -sort file; mkfs.erofs with --workers=1 if it compresses",
            bytes: self.plan_bytes,
            copied: blocks.moved,
        })
    }

    /// Where files begin on blocks, what is off the grid moved within a file, and no builder can help it.
    fn off_grid(&self) -> Option<Cause> {
        let blocks = self.blocks.off_grid;
        let packed = !matches!(self.file_system, Some("ext2" | "ext3" | "ext4"));
        (packed && blocks as f64 > MOVED_WORTH * self.blocks.all as f64).then(|| Cause {
            name: "off_grid",
            finding: format!(
                "{blocks} blocks ({} of the image) are in OLD as they are, but shifted by something that is no multiple of 4 \
                 KiB: they are sent, at the price of a reference, and a node whose base is unknown searches for them",
                percent(blocks, self.blocks.all)
            ),
            remedy: "use a file system that begins every file on a block (ext4, or erofs without -Eztailpacking, fragments or \
                     inlined tails); squashfs packs files back to back, so that one longer file shifts all that follows",
            bytes: 0,
            copied: blocks,
        })
    }

    fn fragmented(&self) -> Option<Cause> {
        let (old, new) = (self.sides.old_map?, self.sides.new_map?);
        let pieces = |map: &Map| {
            let files = map.inodes.iter().filter(|inode| inode.kind == Kind::File);
            files
                .map(Inode::fragments)
                .fold((0_u64, 0_u64), |sum, pieces| (sum.0 + u64::from(pieces > 1), sum.1 + pieces as u64))
        };
        let ((before, _), (now, all)) = (pieces(old), pieces(new));
        let files = new.inodes.iter().filter(|inode| inode.kind == Kind::File).count() as u64;
        (now > before + before / 2 && now * 20 > files).then(|| Cause {
            name: "fragments",
            finding: format!(
                "{now} of {files} files lie in more than one piece ({all} pieces in all); in OLD it were {before}. Each piece is a \
                 step of the plan, and its packs find less beside it"
            ),
            remedy: "leave the golden master more free space, or make it afresh now and then (mkfs.ext4 -d)",
            bytes: 0,
            copied: 0,
        })
    }
}

fn percent(part: u64, of: u64) -> String {
    let value = 100.0 * part as f64 / of.max(1) as f64;
    if value < 10.0 { format!("{value:.1} %") } else { format!("{value:.0} %") }
}

/// How a squashfs or erofs compresses, from its superblock.
fn compression(file_system: &str, image: &[u8]) -> Option<&'static str> {
    let byte = |at: usize| image.get(at).copied().unwrap_or(0);
    match file_system {
        "squashfs" => Some(match byte(20) {
            1 => "gzip",
            2 => "lzma",
            3 => "lzo",
            4 => "xz",
            5 => "lz4",
            6 => "zstd",
            _ => return None,
        })
        // All of its data may be stored plain: nothing of it is compressed but small things.
        .filter(|_| byte(24) & 0b10 == 0),
        // Incompatible features: LZ4 with its input at the end of a block, or a configured compression.
        "erofs" if byte(1024 + 80) & 0b11 != 0 => Some("LZ4 or another codec"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compression_is_told_by_the_superblock() {
        let mut squashfs = vec![0; 4096];
        squashfs[20] = 6;
        assert_eq!(compression("squashfs", &squashfs), Some("zstd"));
        squashfs[24] = 2;
        assert_eq!(compression("squashfs", &squashfs), None, "its data is plain");
        let mut erofs = vec![0; 4096];
        assert_eq!(compression("erofs", &erofs), None);
        erofs[1104] = 1;
        assert!(compression("erofs", &erofs).is_some());
        assert_eq!(compression("ext4", &erofs), None);
        assert_eq!(compression("erofs", &[]), None);
    }

    #[test]
    fn parts_have_a_digit_more_when_they_are_small() {
        assert_eq!((percent(1, 100), percent(50, 100), percent(0, 0)), ("1.0 %".into(), "50 %".into(), "0.0 %".into()));
    }
}
