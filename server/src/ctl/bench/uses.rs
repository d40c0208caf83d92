//! Where the bytes of the known base go: to which uses of blocks, to which files, to which regions.

use std::collections::HashMap;

use goldsync_proto::limits::{BLOCK, REGION, REGION_BLOCKS};
use serde::Serialize;

use super::costs::Costs;
use super::ext4::{Inode, Kind, Map, Owner};
use super::holds;

/// Parts of the image in a profile.
const PARTS: usize = 60;

/// Both images, and what is known of their blocks.
pub struct Sides<'a> {
    /// OLD's bytes.
    pub old: &'a [u8],
    /// NEW's.
    pub new: &'a [u8],
    /// OLD's blocks, if it is a file system that is looked into.
    pub old_map: Option<&'a Map>,
    /// NEW's.
    pub new_map: Option<&'a Map>,
}

/// What blocks are used for, and what it costs.
#[derive(Debug, Serialize)]
pub struct Use {
    /// What.
    pub what: &'static str,
    /// Blocks sent.
    pub blocks: u64,
    /// Bytes of packs.
    pub bytes: u64,
}

/// A file, and what it costs.
#[derive(Clone, Debug, Serialize)]
pub struct FileCost {
    /// One of its paths.
    pub path: String,
    /// Bytes of packs.
    pub bytes: u64,
    /// Its blocks that are sent.
    pub sent: u64,
    /// All its blocks.
    pub blocks: u64,
    /// What happened to it.
    pub change: Change,
    /// What it holds, if that is compressed.
    pub compressed: Option<&'static str>,
}

/// What happened to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// OLD has nothing of that path.
    New,
    /// OLD has another content there.
    Changed,
}

/// A region of NEW, and what it costs.
#[derive(Debug, Serialize)]
pub struct Region {
    /// Its first byte.
    pub offset: u64,
    /// Bytes of packs.
    pub bytes: u64,
}

fn title(map: &Map, owner: Owner) -> &'static str {
    match owner {
        Owner::Free => "free blocks (garbage)",
        Owner::Own => "the file system's own",
        Owner::Bitmaps => "bitmaps",
        Owner::Inodes => "inode tables",
        Owner::Journal => "the journal",
        Owner::Attributes => "extended attributes",
        Owner::Unknown => "unknown",
        Owner::Inode(_) => match map.inode(owner).map(|inode| inode.kind) {
            Some(Kind::Directory) => "directories",
            _ => "contents of files",
        },
    }
}

/// Costs by use, the dearest first; one line for file systems that are not looked into.
pub fn of(map: Option<&Map>, costs: &Costs) -> Vec<Use> {
    let mut sums: HashMap<&'static str, (u64, u64)> = HashMap::new();
    for (block, cost) in sent(costs) {
        let what = map.map_or("everything (not looked into)", |map| title(map, map.owner(block)));
        let sum = sums.entry(what).or_default();
        *sum = (sum.0 + 1, sum.1 + u64::from(cost));
    }
    let mut uses: Vec<Use> =
        sums.into_iter().map(|(what, (blocks, cost))| Use { what, blocks, bytes: cost >> 8 }).collect();
    uses.sort_unstable_by_key(|one| (std::cmp::Reverse(one.bytes), one.what));
    uses
}

/// Blocks that are sent, with what they cost in 1/256 of a byte.
pub fn sent(costs: &Costs) -> impl Iterator<Item = (u32, u32)> + '_ {
    (0..).zip(costs.all().iter().copied()).filter(|(_, cost)| *cost > 0)
}

/// The files of NEW that cost something, the dearest first.
pub fn files(sides: &Sides<'_>, costs: &Costs) -> Vec<FileCost> {
    let Some(map) = sides.new_map else { return Vec::new() };
    let known: HashMap<&str, &Inode> = sides
        .old_map
        .map(|map| map.inodes.iter().map(|inode| (inode.path.as_str(), inode)).collect())
        .unwrap_or_default();
    let mut sums: HashMap<Owner, (u64, u64)> = HashMap::new();
    for (block, cost) in sent(costs) {
        let owner = map.owner(block);
        if map.inode(owner).is_some_and(|inode| inode.kind == Kind::File) {
            let sum = sums.entry(owner).or_default();
            *sum = (sum.0 + 1, sum.1 + u64::from(cost));
        }
    }
    let file = |(owner, (sent, cost)): (Owner, (u64, u64))| {
        let inode = map.inode(owner)?;
        let change = if known.contains_key(inode.path.as_str()) { Change::Changed } else { Change::New };
        let bytes: u64 = inode.extents.iter().map(|(_, count)| u64::from(*count)).sum::<u64>() * map.block_size;
        let compressed = holds::compressed(map.head(sides.new, inode), &inode.path);
        let blocks = bytes.div_ceil(BLOCK);
        Some(FileCost { path: inode.path.clone(), bytes: cost >> 8, sent, blocks, change, compressed })
    };
    let mut files: Vec<FileCost> = sums.into_iter().filter_map(file).collect();
    files.sort_unstable_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.path.cmp(&b.path)));
    files
}

/// The dearest regions of 1 MiB, in that order.
pub fn regions(costs: &Costs, top: usize) -> Vec<Region> {
    let cost = |(index, blocks): (usize, &[u32])| Region {
        offset: index as u64 * REGION,
        bytes: blocks.iter().map(|cost| u64::from(*cost)).sum::<u64>() >> 8,
    };
    let mut regions: Vec<Region> = costs.all().chunks(REGION_BLOCKS as usize).enumerate().map(cost).collect();
    regions.retain(|region| region.bytes > 0);
    regions.sort_unstable_by_key(|region| (std::cmp::Reverse(region.bytes), region.offset));
    regions.truncate(top);
    regions
}

/// Costs of equal parts of the image, from its begin to its end.
pub fn profile(costs: &Costs) -> Vec<u64> {
    let blocks = costs.all();
    let part = blocks.len().div_ceil(PARTS).max(1);
    blocks.chunks(part).map(|part| part.iter().map(|cost| u64::from(*cost)).sum::<u64>() >> 8).collect()
}
