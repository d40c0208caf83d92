//! Every bound, on one page, each with its reason.
//!
//! A length, offset or count that comes from a peer or a disk is held against one of these before anything is
//! allocated or indexed by it.

/// Bytes in a block. File systems live on this grid: smaller blocks cost more in checksums than they save, larger
/// ones break the grid.
pub const BLOCK: u64 = 4096;

/// Bytes in a grain, the unit of the fine scan. On real upgrades 256 find 1 to 3 % more and cost as much more in hashes.
pub const GRAIN: u64 = 512;

/// Grains in a block: one bit each in a mask of a byte.
pub const GRAINS: usize = (BLOCK / GRAIN) as usize;

/// Bytes in a region, the unit of subtree hashes. A power of two, so that each whole region is a BLAKE3 subtree.
pub const REGION: u64 = 1 << 20;

/// Blocks in a whole region.
pub const REGION_BLOCKS: u64 = REGION / BLOCK;

/// The largest image: 1 TiB. Block numbers stay below 2^28, so that twice a block number fits a `u32`, and the
/// subtree section stays below 32 MiB.
pub const IMAGE_MAX: u64 = 1 << 40;

/// A control message's JSON. A node with many labels says what it must in 4 KiB; the rest is room to grow.
pub const MESSAGE_MAX: usize = 64 << 10;

/// One pack's bytes before compression. Bounds what a decoder holds at once.
pub const PACK_RAW_MAX: usize = 1 << 20;

/// One pack's bytes on the wire: never more than stored plainly (codec `raw`).
pub const PACK_WIRE_MAX: usize = PACK_RAW_MAX;

/// A pack's prefix, all its runs together.
pub const PREFIX_MAX: usize = 4 << 20;

/// Runs in one pack's prefix.
pub const PREFIX_RUNS_MAX: usize = 64;

// A node holds a plan whole, and promises to do with 64 MiB for any image, whatever a server sends. While it reads one it
// holds it packed, unpacked, and as what it says: together these seven bounds allow 30 MiB, which leaves as much for carrying
// it out. `plan::tests::a_plan_that_is_as_large_as_allowed_fits_a_nodes_memory` adds it up.

/// A plan as it travels (compressed). A plan above it is not worth having: plan by the signature, or fetch blocks.
pub const PLAN_WIRE_MAX: usize = 4 << 20;

/// A plan unpacked: every step, pack and run that the next bounds allow, at the length that such things usually have.
pub const PLAN_RAW_MAX: usize = 8 << 20;

/// Steps in a plan: 24 bytes each in memory. A full upgrade of a 2 GiB system takes a few thousand.
pub const PLAN_STEPS_MAX: usize = 256 << 10;

/// Packs in a plan: 64 GiB of new bytes in full packs. About 100 bytes each in memory.
pub const PLAN_PACKS_MAX: usize = 64 << 10;

/// Runs in all prefixes of a plan together: 8 bytes each in memory. 8192 packs may have as many as one pack can.
pub const PLAN_RUNS_MAX: usize = 512 << 10;

/// Objects that a plan's packs may lie in.
pub const PLAN_OBJECTS_MAX: usize = 16 << 10;

/// Hash trees that a plan derives blocks by: each has a partition of its own, of which a disk has few. 300 bytes each.
pub const PLAN_TREES_MAX: usize = 64;

/// Bytes of a hash tree's salt: what a dm-verity superblock has room for.
pub const SALT_MAX: usize = 256;

/// Entries of a partition table that are looked at: what every tool makes.
pub const PARTITIONS_MAX: usize = 128;

/// Runs of derived blocks that are kept of one hash tree. A sound one has one.
pub const TREE_RUNS_MAX: usize = 256;

/// Runs in one request for blocks, and blocks in all of them: 8 MiB, a few round trips' worth at 1 Gbit/s.
pub const BLOCKS_RUNS_MAX: usize = 2048;
/// Blocks in one request for blocks.
pub const BLOCKS_PER_REQUEST: u64 = 2048;

/// Bytes of the frames before it that a literal frame may refer to: with 1 MiB a frame, three quarters of what one
/// stream over the whole answer would gain, and no state that a slow reader could make a server hold.
pub const FRAME_PREFIX_MAX: usize = 2 << 20;

/// Bytes in one ranged request for an object.
pub const OBJECT_RANGE_MAX: u64 = 16 << 20;

/// One file of signed metadata. A channel with 4,000 releases stays below it.
pub const TRUST_FILE_MAX: u64 = 4 << 20;

/// All files of signed metadata that a node takes in one answer, and holds: what it needs in memory to verify them.
pub const TRUST_BYTES_MAX: u64 = 12 << 20;

/// Files of signed metadata in one answer.
pub const TRUST_FILES_MAX: usize = 1024;

/// Labels on a node or a release, and the length of a label's key or value.
pub const LABELS_MAX: usize = 64;
/// Bytes in a label's key or value.
pub const LABEL_LEN_MAX: usize = 128;

/// Bytes in a release's name, a version or a channel's name.
pub const NAME_LEN_MAX: usize = 64;

/// Golden blocks looked up in one round of the aligned pass: the index takes about 5 bytes a block.
pub const ALIGNED_ROUND: usize = 4 << 20;

/// Golden blocks searched for in one round of the rolling scan: 35 bytes a block, 50 while it is prepared; 13 MiB in all.
pub const ROLLING_ROUND: usize = 256 << 10;

/// Golden blocks whose grains are searched for in one round of the fine scan: 31 bytes a grain, 47 while it is prepared; 24 MiB
/// in all.
pub const GRAIN_ROUND: usize = 64 << 10;

/// Releases that a node remembers not to go to unasked. More failures than this in a row are one failure of another kind.
pub const HELD_MAX: usize = 16;
