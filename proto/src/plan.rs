//! The plan: how every block of the golden image is made, from what a node has and what it must fetch.
//!
//! Whoever made it, the server for a known base or the agent from the signature, a plan is this one type, and one piece
//! of code checks it and one carries it out. Steps cover the target in ascending order, each block once.
//!
//! On the wire (only plans that a server made travel; they know one source, the base):
//! ```text
//! u32 raw_len | zstd( "GSPL" u8 version=2 | u8 has_base [32 base] | 32 target | u64 size
//!                     trees:   count, each: data, data blocks, tree, hash type u8, salt: count, bytes
//!                     objects: count, 32 each
//!                     packs:   count, each: object, offset after the last pack's end (signed), wire_len, raw blocks,
//!                              codec u8, wire_hash 16, raw_hash 16, prefix runs: count, each: first (signed delta), count
//!                     steps:   count, each: varint(blocks << 3 | kind) and what the kind needs )
//! kind 0 zero · 1 copy: source block, signed delta to where the last copy ended · 2 copy bytes: byte offset, likewise
//!      3 patch: pack (signed delta to the last), block in it · 4 next: goes on where the last patch ended
//!      5 derive: the tree that lies there says how
//! ```
//! All numbers without a width are varints. A plan is not signed and need not be: what it builds is proven by the image
//! id before it can be booted. It can waste a node's time, within the bounds of `limits`, never its image.

use std::ops::Range;

use crate::block::{Geometry, GeometryError, Run, byte_of};
use crate::codec::{CodecError, Reader, Writer};
use crate::digest::{Digest, ImageId};
use crate::limits::{
    BLOCK, IMAGE_MAX, PACK_RAW_MAX, PLAN_OBJECTS_MAX, PLAN_PACKS_MAX, PLAN_RAW_MAX, PLAN_RUNS_MAX, PLAN_STEPS_MAX,
    PLAN_TREES_MAX, PLAN_WIRE_MAX, PREFIX_MAX, PREFIX_RUNS_MAX,
};
use crate::pack::Codec;
use crate::verity::{Derived, Tree, TreeError, apart};

/// Something local that may hold wanted bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The active slot; in a server's plan, the base.
    Active,
    /// The standby slot's old content. Only at or ahead of the block being made.
    Standby,
}

/// How the next `count` blocks of the target are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The standby slot holds them already, in place.
    Keep {
        /// Blocks.
        count: u32,
    },
    /// Whole blocks of a source.
    Copy {
        /// Which.
        source: Source,
        /// First block there.
        from: u32,
        /// Blocks.
        count: u32,
    },
    /// Blocks that lie off the grid in a source.
    CopyBytes {
        /// Which.
        source: Source,
        /// First byte there.
        from: u64,
        /// Blocks.
        count: u32,
    },
    /// Zeros.
    Zero {
        /// Blocks.
        count: u32,
    },
    /// Blocks of a pack.
    Patch {
        /// Index in [`Plan::packs`].
        pack: u32,
        /// First block in the pack's raw bytes.
        from: u32,
        /// Blocks.
        count: u32,
    },
    /// Blocks to ask the server for.
    Fetch {
        /// Blocks.
        count: u32,
    },
    /// Blocks of the hash tree that lies there, made of the target's other blocks once those are there.
    Derive {
        /// Blocks.
        count: u32,
    },
}

impl Step {
    /// Blocks of the target that it makes.
    pub fn count(self) -> u32 {
        match self {
            Self::Keep { count }
            | Self::Copy { count, .. }
            | Self::CopyBytes { count, .. }
            | Self::Zero { count }
            | Self::Patch { count, .. }
            | Self::Fetch { count }
            | Self::Derive { count } => count,
        }
    }

    /// This step and the next as one, if that goes on where this one ends.
    pub fn join(self, next: Self) -> Option<Self> {
        let count = self.count() + next.count();
        match (self, next) {
            (Self::Keep { .. }, Self::Keep { .. }) => Some(Self::Keep { count }),
            (Self::Zero { .. }, Self::Zero { .. }) => Some(Self::Zero { count }),
            (Self::Fetch { .. }, Self::Fetch { .. }) => Some(Self::Fetch { count }),
            (Self::Derive { .. }, Self::Derive { .. }) => Some(Self::Derive { count }),
            (Self::Copy { source, from, count: done }, Self::Copy { source: same, from: next, .. })
                if source == same && from + done == next =>
            {
                Some(Self::Copy { source, from, count })
            }
            (Self::CopyBytes { source, from, count: done }, Self::CopyBytes { source: same, from: next, .. })
                if source == same && from + byte_of(done) == next =>
            {
                Some(Self::CopyBytes { source, from, count })
            }
            (Self::Patch { pack, from, count: done }, Self::Patch { pack: same, from: next, .. })
                if pack == same && from + done == next =>
            {
                Some(Self::Patch { pack, from, count })
            }
            _ => None,
        }
    }

    /// Adds this step to those before it, as a part of the last if it goes on there: whoever makes a plan makes it short.
    pub fn push_to(self, steps: &mut Vec<Self>) {
        match steps.last_mut().and_then(|last| last.join(self).map(|joined| (last, joined))) {
            Some((last, joined)) => *last = joined,
            None => steps.push(self),
        }
    }
}

/// Golden blocks in one compressed piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pack {
    /// Index in [`Plan::objects`].
    pub object: u32,
    /// Where it begins in that object.
    pub offset: u64,
    /// Bytes there.
    pub wire_len: u32,
    /// Bytes unpacked; whole blocks.
    pub raw_len: u32,
    /// How it is written.
    pub codec: Codec,
    /// `hash16` of the wire bytes: checked before the decoder sees them.
    pub wire_hash: [u8; 16],
    /// `hash16` of the raw bytes: tells whether the standby slot has them already, and whether the prefix was right.
    pub raw_hash: [u8; 16],
    /// Runs of base blocks, joined in this order.
    pub prefix: Vec<Run>,
}

/// How to make a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The image that `Source::Active` must hold; `None` if nothing is needed.
    pub base: Option<ImageId>,
    /// The image that comes out.
    pub target: ImageId,
    /// Its size.
    pub geometry: Geometry,
    /// What to do, in the target's order.
    pub steps: Vec<Step>,
    /// The objects that the packs lie in.
    pub objects: Vec<Digest>,
    /// The packs, in the order in which they are first used.
    pub packs: Vec<Pack>,
    /// The hash trees of the target that blocks are derived by. Neither they nor what they hash lie over each other: what a tree
    /// is derived from was not derived itself, and all derived blocks together hash the target once at most.
    pub trees: Vec<Tree>,
}

/// Why bytes are not a plan, or a plan not a good one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The bytes are not a plan's.
    #[error("the plan cannot be read: {0}")]
    Codec(#[from] CodecError),
    /// The target's size is none.
    #[error("the plan's target: {0}")]
    Geometry(#[from] GeometryError),
    /// zstd refused it.
    #[error("the plan does not unpack to the {expected} bytes that it promises")]
    Unpack {
        /// Bytes promised.
        expected: usize,
    },
    /// The steps cover less or more than the target.
    #[error("the plan's steps make {got} blocks, the target has {expected}")]
    Cover {
        /// Blocks made.
        got: u64,
        /// Blocks wanted.
        expected: u32,
    },
    /// A step of no blocks.
    #[error("step {step} of the plan makes no block")]
    Empty {
        /// Its index.
        step: usize,
    },
    /// A step points outside what it takes from.
    #[error("step {step} of the plan points outside {what}")]
    Outside {
        /// Its index.
        step: usize,
        /// What it takes from.
        what: &'static str,
    },
    /// More than a node can be asked to hold.
    #[error("the plan is too large: {got} {what}, at most {max} allowed; plan by the signature, or fetch blocks")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// How much there is.
        got: usize,
        /// The limit.
        max: usize,
    },
    /// A hash tree is impossible.
    #[error("the plan's {0}")]
    Tree(#[from] TreeError),
    /// A pack's numbers are impossible.
    #[error("pack {pack} of the plan: {why}")]
    Pack {
        /// Its index.
        pack: usize,
        /// What is wrong.
        why: &'static str,
    },
}

impl Plan {
    /// The steps, each with the first block of the target that it makes.
    pub fn placed(&self) -> impl Iterator<Item = (u32, Step)> + '_ {
        self.steps.iter().scan(0_u32, |next, step| {
            let first = *next;
            *next = first.saturating_add(step.count());
            Some((first, *step))
        })
    }

    /// Holds the whole plan against its bounds. What passes can be carried out without asking again, but for the
    /// sources' lengths, which only the node knows.
    pub fn check(&self) -> Result<(), PlanError> {
        for (index, pack) in self.packs.iter().enumerate() {
            self.check_pack(pack).map_err(|why| PlanError::Pack { pack: index, why })?;
        }
        let trees = apart(&self.trees, self.geometry)?;
        let mut made = 0_u64;
        for (index, step) in self.steps.iter().enumerate() {
            if step.count() == 0 {
                return Err(PlanError::Empty { step: index });
            }
            self.check_step(*step, made, &trees).map_err(|what| PlanError::Outside { step: index, what })?;
            made += u64::from(step.count());
        }
        let expected = self.geometry.blocks();
        if made == u64::from(expected) { Ok(()) } else { Err(PlanError::Cover { got: made, expected }) }
    }

    /// Whether a node can be asked to hold it. Only for plans that travel: what a node makes for itself, it answers for.
    fn check_size(&self) -> Result<(), PlanError> {
        fits("objects", self.objects.len(), PLAN_OBJECTS_MAX)?;
        fits("packs", self.packs.len(), PLAN_PACKS_MAX)?;
        fits("steps", self.steps.len(), PLAN_STEPS_MAX)?;
        fits("hash trees", self.trees.len(), PLAN_TREES_MAX)?;
        fits("prefix runs", self.packs.iter().map(|pack| pack.prefix.len()).sum(), PLAN_RUNS_MAX)
    }

    fn check_step(&self, step: Step, made: u64, trees: &[Range<u32>]) -> Result<(), &'static str> {
        let fits = |end: u64, max: u64, what| if end <= max { Ok(()) } else { Err(what) };
        match step {
            Step::Copy { source, from, count } => {
                self.check_source(source, u64::from(from) * BLOCK, made)?;
                fits(u64::from(from) + u64::from(count), IMAGE_MAX / BLOCK, "the largest image")
            }
            Step::CopyBytes { source, from, count } => {
                self.check_source(source, from, made)?;
                fits(from.saturating_add(u64::from(count) * BLOCK), IMAGE_MAX, "the largest image")
            }
            Step::Patch { pack, from, count } => {
                let blocks = self.packs.get(pack as usize).ok_or("the list of packs")?.raw_len / BLOCK as u32;
                fits(u64::from(from) + u64::from(count), u64::from(blocks), "its pack")
            }
            Step::Derive { count } => {
                let end = made + u64::from(count);
                let holds = |tree: &Range<u32>| u64::from(tree.start) <= made && end <= u64::from(tree.end);
                if trees.iter().any(holds) { Ok(()) } else { Err("the hash trees") }
            }
            Step::Keep { .. } | Step::Zero { .. } | Step::Fetch { .. } => Ok(()),
        }
    }

    /// The standby slot is overwritten in ascending order, so that only what lies ahead still is what it was.
    fn check_source(&self, source: Source, from: u64, made: u64) -> Result<(), &'static str> {
        if source == Source::Standby && from < made * BLOCK { Err("what the standby slot still holds") } else { Ok(()) }
    }

    fn check_pack(&self, pack: &Pack) -> Result<(), &'static str> {
        let raw = pack.raw_len as usize;
        if pack.object as usize >= self.objects.len() {
            return Err("it lies in an object that is not listed");
        }
        if raw == 0 || raw > PACK_RAW_MAX || !raw.is_multiple_of(BLOCK as usize) {
            return Err("its raw length is not 4096 bytes to 1 MiB of whole blocks");
        }
        if pack.wire_len == 0 || pack.wire_len > pack.raw_len {
            return Err("it is empty, or longer on the wire than unpacked");
        }
        if pack.prefix.len() > PREFIX_RUNS_MAX {
            return Err("its prefix has more than 64 runs");
        }
        let blocks: u64 = pack.prefix.iter().map(|(_, count)| u64::from(*count)).sum();
        if blocks * BLOCK > PREFIX_MAX as u64 {
            return Err("its prefix is longer than 4 MiB");
        }
        let inside = |(first, count): &Run| u64::from(*first) + u64::from(*count) <= IMAGE_MAX / BLOCK && *count > 0;
        if !pack.prefix.iter().all(inside) {
            return Err("its prefix lies outside the largest image");
        }
        Ok(())
    }

    /// What it derives: the blocks of each tree, ascending.
    pub fn derived(&self) -> Vec<Derived> {
        let derives = |(first, step)| matches!(step, Step::Derive { .. }).then_some((first, step.count()));
        let runs: Vec<Run> = self.placed().filter_map(derives).collect();
        let of = |tree: &Tree| {
            let range = tree.range();
            let runs = runs.iter().filter(|(first, _)| range.contains(first)).copied().collect();
            Derived { tree: tree.clone(), runs }
        };
        self.trees.iter().map(of).filter(|derived| !derived.runs.is_empty()).collect()
    }

    /// Leaves out the trees that no step needs.
    pub fn with_trees_in_use(mut self) -> Self {
        self.trees = self.derived().into_iter().map(|derived| derived.tree).collect();
        self
    }

    /// Bytes that carrying it out fetches, its packs only.
    pub fn wire_bytes(&self) -> u64 {
        self.packs.iter().map(|pack| u64::from(pack.wire_len)).sum()
    }

    /// The plan as it travels. Steps that no server makes (`Keep`, `Fetch`, the source standby) are an error, and so is a
    /// plan that no node would take.
    pub fn encode(&self) -> Result<Vec<u8>, PlanError> {
        self.check_size()?;
        self.check()?;
        let raw = encode::body(self)?;
        fits("bytes unpacked", raw.len(), PLAN_RAW_MAX)?;
        let mut wire = (raw.len() as u32).to_le_bytes().to_vec();
        let packed = zstd::bulk::compress(&raw, 15).map_err(|_| PlanError::Unpack { expected: raw.len() })?;
        wire.extend_from_slice(&packed);
        fits("bytes on the wire", wire.len(), PLAN_WIRE_MAX)?;
        Ok(wire)
    }

    /// Reads and checks a plan.
    pub fn decode(wire: &[u8]) -> Result<Self, PlanError> {
        fits("bytes on the wire", wire.len(), PLAN_WIRE_MAX)?;
        let mut reader = Reader::new(wire);
        let expected = reader.u32("plan raw_len")? as usize;
        fits("bytes unpacked", expected, PLAN_RAW_MAX)?;
        let packed = reader.bytes("plan", reader.left())?;
        let raw = zstd::bulk::decompress(packed, expected).map_err(|_| PlanError::Unpack { expected })?;
        if raw.len() != expected {
            return Err(PlanError::Unpack { expected });
        }
        let plan = decode::body(&raw)?;
        plan.check()?;
        Ok(plan)
    }
}

/// Holds one of a plan's sizes against its limit. Whoever makes a plan asks early, before the work is done.
pub(crate) fn fits(what: &'static str, got: usize, max: usize) -> Result<(), PlanError> {
    if got > max { Err(PlanError::TooLarge { what, got, max }) } else { Ok(()) }
}

const MAGIC: &[u8; 4] = b"GSPL";
const VERSION: u8 = 2;

mod kind {
    pub const ZERO: u64 = 0;
    pub const COPY: u64 = 1;
    pub const COPY_BYTES: u64 = 2;
    pub const PATCH: u64 = 3;
    pub const NEXT: u64 = 4;
    pub const DERIVE: u64 = 5;
}

mod encode {
    use super::*;

    pub fn body(plan: &Plan) -> Result<Vec<u8>, PlanError> {
        let mut out = Writer::new();
        out.bytes(MAGIC).u8(VERSION).u8(u8::from(plan.base.is_some()));
        if let Some(base) = plan.base {
            out.bytes(base.0.as_bytes());
        }
        out.bytes(plan.target.0.as_bytes()).u64(plan.geometry.size());
        out.varint(plan.trees.len() as u64);
        plan.trees.iter().for_each(|tree| tree.write(&mut out));
        out.varint(plan.objects.len() as u64);
        plan.objects.iter().for_each(|object| _ = out.bytes(object.as_bytes()));
        out.varint(plan.packs.len() as u64);
        let mut end = 0;
        plan.packs.iter().for_each(|pack| end = one_pack(&mut out, pack, end));
        steps(&mut out, &plan.steps)?;
        Ok(out.finish())
    }

    fn one_pack(out: &mut Writer, pack: &Pack, end: u64) -> u64 {
        out.varint(u64::from(pack.object)).signed(pack.offset as i64 - end as i64);
        out.varint(u64::from(pack.wire_len)).varint(u64::from(pack.raw_len) / BLOCK).u8(pack.codec as u8);
        out.bytes(&pack.wire_hash).bytes(&pack.raw_hash).varint(pack.prefix.len() as u64);
        let mut last = 0;
        for (first, count) in &pack.prefix {
            out.signed(i64::from(*first) - last).varint(u64::from(*count));
            last = i64::from(*first) + i64::from(*count);
        }
        pack.offset + u64::from(pack.wire_len)
    }

    fn steps(out: &mut Writer, steps: &[Step]) -> Result<(), PlanError> {
        out.varint(steps.len() as u64);
        let (mut copy_end, mut last_pack, mut patch_end) = (0_i64, 0_i64, 0_u32);
        for (index, step) in steps.iter().enumerate() {
            let mut head = |kind| _ = out.varint(u64::from(step.count()) << 3 | kind);
            match *step {
                Step::Zero { .. } => head(kind::ZERO),
                Step::Derive { .. } => head(kind::DERIVE),
                Step::Copy { source: Source::Active, from, count } => {
                    head(kind::COPY);
                    out.signed(i64::from(from) - copy_end / BLOCK as i64);
                    copy_end = (i64::from(from) + i64::from(count)) * BLOCK as i64;
                }
                Step::CopyBytes { source: Source::Active, from, count } => {
                    head(kind::COPY_BYTES);
                    out.signed(from as i64 - copy_end);
                    copy_end = from as i64 + i64::from(count) * BLOCK as i64;
                }
                Step::Patch { pack, from, count } => {
                    if i64::from(pack) == last_pack && from == patch_end {
                        head(kind::NEXT);
                    } else {
                        head(kind::PATCH);
                        out.signed(i64::from(pack) - last_pack).varint(u64::from(from));
                    }
                    (last_pack, patch_end) = (i64::from(pack), from + count);
                }
                Step::Keep { .. } | Step::Fetch { .. } | Step::Copy { .. } | Step::CopyBytes { .. } => {
                    return Err(PlanError::Outside { step: index, what: "what a server's plan may say" });
                }
            }
        }
        Ok(())
    }
}

mod decode {
    use super::*;

    const BLOCKS_MAX: u64 = IMAGE_MAX / BLOCK;

    pub fn body(raw: &[u8]) -> Result<Plan, PlanError> {
        let mut input = Reader::new(raw);
        let (magic, version) = (input.array::<4>("plan magic")?, input.u8("plan version")?);
        if magic != *MAGIC || version != VERSION {
            return Err(CodecError::Unknown { field: "plan version", got: u64::from(version) }.into());
        }
        let base = match input.u8("has_base")? {
            0 => None,
            1 => Some(ImageId(Digest(input.array("base")?))),
            other => return Err(CodecError::Unknown { field: "has_base", got: u64::from(other) }.into()),
        };
        let target = ImageId(Digest(input.array("target")?));
        let geometry = Geometry::new(input.u64("size")?)?;
        // Five bytes: the least that a tree takes.
        let trees = (0..input.count("hash trees", PLAN_TREES_MAX, 5)?)
            .map(|_| Tree::from_plan(&mut input))
            .collect::<Result<_, _>>()?;
        let objects = (0..input.count("objects", PLAN_OBJECTS_MAX, 32)?)
            .map(|_| input.array("object").map(Digest))
            .collect::<Result<_, _>>()?;
        // 39 bytes: the least that a pack takes, so that a count cannot ask for more memory than its bytes pay for.
        let count = input.count("packs", PLAN_PACKS_MAX, 39)?;
        let mut packs = Vec::with_capacity(count);
        let (mut end, mut runs) = (0, 0);
        for _ in 0..count {
            let pack = one_pack(&mut input, end)?;
            runs += pack.prefix.len();
            fits("prefix runs", runs, PLAN_RUNS_MAX)?;
            end = pack.offset.saturating_add(u64::from(pack.wire_len));
            packs.push(pack);
        }
        let steps = steps(&mut input)?;
        input.end("plan")?;
        Ok(Plan { base, target, geometry, steps, objects, packs, trees })
    }

    fn one_pack(input: &mut Reader<'_>, end: u64) -> Result<Pack, PlanError> {
        let object = input.varint("pack object", PLAN_OBJECTS_MAX as u64)? as u32;
        let offset = moved(input, "pack offset", end, 2 * IMAGE_MAX)?;
        let wire_len = input.varint("pack wire_len", PACK_RAW_MAX as u64)? as u32;
        let raw_len = (input.varint("pack blocks", PACK_RAW_MAX as u64 / BLOCK)? * BLOCK) as u32;
        let codec = Codec::from_number(input.u8("pack codec")?)?;
        let (wire_hash, raw_hash) = (input.array("wire_hash")?, input.array("raw_hash")?);
        let runs = input.count("prefix runs", PREFIX_RUNS_MAX, 2)?;
        // To the run: what grows by doubling would hold up to twice as much.
        let mut prefix = Vec::with_capacity(runs);
        let mut last = 0;
        for _ in 0..runs {
            let first = moved(input, "prefix run", last, BLOCKS_MAX)?;
            let count = input.varint("prefix count", BLOCKS_MAX)?;
            last = first + count;
            prefix.push((first as u32, count as u32));
        }
        Ok(Pack { object, offset, wire_len, raw_len, codec, wire_hash, raw_hash, prefix })
    }

    fn steps(input: &mut Reader<'_>) -> Result<Vec<Step>, PlanError> {
        let count = input.count("steps", PLAN_STEPS_MAX, 1)?;
        let mut steps = Vec::with_capacity(count);
        let (mut copy_end, mut last_pack, mut patch_end) = (0_u64, 0_u64, 0_u32);
        for _ in 0..count {
            let head = input.varint("step", BLOCKS_MAX << 3 | 7)?;
            let blocks = (head >> 3) as u32;
            let bytes = u64::from(blocks) * BLOCK;
            let step = match head & 7 {
                kind::ZERO => Step::Zero { count: blocks },
                kind::DERIVE => Step::Derive { count: blocks },
                kind::COPY => {
                    let from = moved(input, "copy from", copy_end / BLOCK, BLOCKS_MAX)?;
                    copy_end = from * BLOCK + bytes;
                    Step::Copy { source: Source::Active, from: from as u32, count: blocks }
                }
                kind::COPY_BYTES => {
                    let from = moved(input, "copy bytes from", copy_end, IMAGE_MAX)?;
                    copy_end = from + bytes;
                    Step::CopyBytes { source: Source::Active, from, count: blocks }
                }
                number @ (kind::PATCH | kind::NEXT) => {
                    if number == kind::PATCH {
                        last_pack = moved(input, "pack", last_pack, PLAN_PACKS_MAX as u64)?;
                        patch_end = input.varint("block in pack", PACK_RAW_MAX as u64 / BLOCK)? as u32;
                    }
                    let from = patch_end;
                    patch_end = patch_end.saturating_add(blocks);
                    Step::Patch { pack: last_pack as u32, from, count: blocks }
                }
                other => return Err(CodecError::Unknown { field: "step kind", got: other }.into()),
            };
            steps.push(step);
        }
        Ok(steps)
    }

    /// A position told as a step from the last one; below `max` whatever the input says.
    fn moved(input: &mut Reader<'_>, field: &'static str, last: u64, max: u64) -> Result<u64, CodecError> {
        let delta = input.signed(field, 4 * IMAGE_MAX)?;
        match (last as i64).checked_add(delta) {
            Some(position) if (0..=max as i64).contains(&position) => Ok(position as u64),
            _ => Err(CodecError::TooLarge { field, got: last.wrapping_add_signed(delta), max }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::SALT_MAX;
    use crate::verity::Salted;
    use proptest::prelude::*;

    fn example() -> Plan {
        let pack = |offset, prefix| Pack {
            object: 0,
            offset,
            wire_len: 100,
            raw_len: 8192,
            codec: Codec::Zstd,
            wire_hash: [1; 16],
            raw_hash: [2; 16],
            prefix,
        };
        Plan {
            base: Some(ImageId::of(b"base")),
            target: ImageId::of(b"target"),
            geometry: Geometry::new(12 * BLOCK).unwrap(),
            steps: vec![
                Step::Copy { source: Source::Active, from: 7, count: 2 },
                Step::Patch { pack: 0, from: 0, count: 1 },
                Step::Zero { count: 3 },
                Step::Patch { pack: 0, from: 1, count: 1 },
                Step::CopyBytes { source: Source::Active, from: 12345, count: 1 },
                Step::Copy { source: Source::Active, from: 0, count: 2 },
                Step::Patch { pack: 1, from: 0, count: 1 },
                Step::Patch { pack: 0, from: 1, count: 1 },
            ],
            objects: vec![Digest::of(b"packs")],
            packs: vec![pack(0, vec![(5, 16), (0, 1)]), pack(100, vec![])],
            trees: vec![],
        }
    }

    fn tree(data: u32, blocks: u32, at: u32) -> Tree {
        Tree { data, blocks, at, salted: Salted::Before, salt: b"salt".to_vec() }
    }

    /// Two trees of three blocks and one, all of the first and none of the second derived.
    fn deriving() -> Plan {
        Plan {
            geometry: Geometry::new(300 * BLOCK).unwrap(),
            steps: vec![
                Step::Zero { count: 201 },
                Step::Derive { count: 1 },
                Step::Derive { count: 2 },
                Step::Zero { count: 96 },
            ],
            trees: vec![tree(10, 150, 201), tree(210, 20, 250)],
            ..example()
        }
    }

    #[test]
    fn a_plan_that_derives_reads_back() {
        let plan = deriving();
        assert_eq!(Plan::decode(&plan.encode().unwrap()).as_ref(), Ok(&plan));
        assert_eq!(plan.derived(), [Derived { tree: plan.trees[0].clone(), runs: vec![(201, 1), (202, 2)] }]);
        assert_eq!(plan.clone().with_trees_in_use().trees, plan.trees[..1]);
    }

    #[test]
    fn only_blocks_of_a_tree_are_derived_and_only_from_blocks_that_are_not() {
        let refuse = |change: fn(&mut Plan), expected: PlanError| {
            let mut plan = deriving();
            change(&mut plan);
            assert_eq!(plan.check(), Err(expected.clone()));
            assert_eq!(plan.encode(), Err(expected.clone()));
            assert_eq!(Plan::decode(&unbounded(&plan)), Err(expected));
        };
        let outside = |step| PlanError::Outside { step, what: "the hash trees" };
        refuse(|plan| plan.trees.clear(), outside(1));
        refuse(|plan| plan.steps[2] = Step::Derive { count: 3 }, outside(2));
        refuse(|plan| (plan.trees[0].at, plan.trees[0].data) = (202, 20), outside(1));
        let wrong = |tree, why| PlanError::Tree(TreeError { tree, why });
        refuse(|plan| plan.trees[1].blocks = 1, wrong(1, "it hashes less than two blocks"));
        refuse(|plan| plan.trees[0].data = 200, wrong(0, "it lies outside the image, or its data does"));
        refuse(|plan| plan.trees[0].data = 100, wrong(0, "it hashes itself"));
        // A tree over another tree; one over the same data; one in the same place; one right behind, with no superblock between.
        let over = wrong(1, "it lies over another, or its data does");
        refuse(|plan| plan.trees[1].data = 203, over.clone());
        refuse(|plan| plan.trees[1].data = 159, over.clone());
        refuse(|plan| plan.trees[1].at = 203, over.clone());
        refuse(|plan| plan.trees[1].at = 50, over.clone());
        refuse(|plan| plan.trees[1].at = 204, over);
    }

    #[test]
    fn a_plan_reads_back() {
        let plan = example();
        assert_eq!(Plan::decode(&plan.encode().unwrap()), Ok(plan));
    }

    #[test]
    fn plans_that_point_outside_or_do_not_cover_are_refused() {
        let refuse = |change: fn(&mut Plan), expected: PlanError| {
            let mut plan = example();
            change(&mut plan);
            assert_eq!(plan.check(), Err(expected));
        };
        refuse(|p| _ = p.steps.pop(), PlanError::Cover { got: 11, expected: 12 });
        refuse(|p| p.steps.push(Step::Zero { count: 1 }), PlanError::Cover { got: 13, expected: 12 });
        refuse(
            |p| p.steps[1] = Step::Patch { pack: 2, from: 0, count: 1 },
            PlanError::Outside { step: 1, what: "the list of packs" },
        );
        refuse(
            |p| p.steps[1] = Step::Patch { pack: 0, from: 1, count: 2 },
            PlanError::Outside { step: 1, what: "its pack" },
        );
        refuse(|p| p.steps[2] = Step::Zero { count: 0 }, PlanError::Empty { step: 2 });
        refuse(
            |p| p.packs[1].wire_len = 8193,
            PlanError::Pack { pack: 1, why: "it is empty, or longer on the wire than unpacked" },
        );
        refuse(|p| p.packs[0].object = 1, PlanError::Pack { pack: 0, why: "it lies in an object that is not listed" });
        refuse(
            |p| p.packs[0].prefix = vec![(0, 1025)],
            PlanError::Pack { pack: 0, why: "its prefix is longer than 4 MiB" },
        );
        refuse(
            |p| p.steps[0] = Step::Copy { source: Source::Active, from: u32::MAX, count: 2 },
            PlanError::Outside { step: 0, what: "the largest image" },
        );
    }

    #[test]
    fn the_standby_slot_is_read_only_ahead_of_what_is_written() {
        let mut plan = example();
        plan.steps[5] = Step::Copy { source: Source::Standby, from: 7, count: 2 };
        assert_eq!(plan.check(), Err(PlanError::Outside { step: 5, what: "what the standby slot still holds" }));
        plan.steps[5] = Step::Copy { source: Source::Standby, from: 8, count: 2 };
        assert_eq!(plan.check(), Ok(()));
        assert!(plan.encode().is_err(), "a node's own plan does not travel");
    }

    #[test]
    fn a_plan_that_promises_more_than_it_holds_is_refused() {
        let mut wire = example().encode().unwrap();
        wire[0] ^= 1;
        assert!(matches!(Plan::decode(&wire), Err(PlanError::Unpack { .. })));
        wire[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(Plan::decode(&wire), Err(PlanError::TooLarge { what: "bytes unpacked", .. })));
    }

    /// A node promises 64 MiB for any image. Half of it is for the plan, at its worst; the other half for what carrying it
    /// out takes.
    #[test]
    fn a_plan_that_is_as_large_as_allowed_fits_a_nodes_memory() {
        use std::mem::size_of;
        // What an allocator adds to each prefix's own piece of memory, and rounds it up by.
        const PIECE: usize = 32;
        let packs = PLAN_PACKS_MAX * (size_of::<Pack>() + PIECE) + PLAN_RUNS_MAX * size_of::<Run>();
        let steps = PLAN_STEPS_MAX * size_of::<Step>();
        let objects = PLAN_OBJECTS_MAX * size_of::<Digest>();
        let trees = PLAN_TREES_MAX * (size_of::<Tree>() + SALT_MAX + PIECE);
        let held = PLAN_WIRE_MAX + PLAN_RAW_MAX + packs + steps + objects + trees;
        assert!(held <= 32 << 20, "{held} bytes");
        // What the least of everything takes in bytes does not outgrow the unpacked form: the bounds fit one another.
        const { assert!(PLAN_PACKS_MAX * 39 + PLAN_RUNS_MAX * 2 + PLAN_STEPS_MAX * 2 <= PLAN_RAW_MAX) };
    }

    /// Packed as a server would that does not keep to the bounds.
    fn unbounded(plan: &Plan) -> Vec<u8> {
        let raw = encode::body(plan).unwrap();
        [&(raw.len() as u32).to_le_bytes()[..], &zstd::bulk::compress(&raw, 1).unwrap()].concat()
    }

    #[test]
    fn a_plan_too_large_for_a_node_is_neither_made_nor_taken() {
        let too_large = |change: &dyn Fn(&mut Plan), expected: &str| {
            let mut plan = example();
            change(&mut plan);
            match plan.encode() {
                Err(PlanError::TooLarge { what, .. }) => assert_eq!(what, expected),
                other => panic!("{expected}: {other:?}"),
            }
            let refused = Plan::decode(&unbounded(&plan));
            let bounded =
                matches!(refused, Err(PlanError::TooLarge { .. } | PlanError::Codec(CodecError::TooLarge { .. })));
            assert!(bounded, "{expected}: {refused:?}");
        };
        too_large(&|plan| plan.objects = vec![plan.objects[0]; PLAN_OBJECTS_MAX + 1], "objects");
        too_large(&|plan| plan.packs = vec![plan.packs[1].clone(); PLAN_PACKS_MAX + 1], "packs");
        too_large(&|plan| plan.steps = vec![Step::Zero { count: 1 }; PLAN_STEPS_MAX + 1], "steps");
        too_large(&|plan| plan.trees = vec![tree(0, 2, 5); PLAN_TREES_MAX + 1], "hash trees");
        let many_runs = |plan: &mut Plan| {
            plan.packs[0].prefix = vec![(0, 1); PREFIX_RUNS_MAX];
            plan.packs = vec![plan.packs[0].clone(); PLAN_RUNS_MAX / PREFIX_RUNS_MAX + 1];
        };
        too_large(&many_runs, "prefix runs");
    }

    proptest! {
        #[test]
        fn any_body_ends_in_a_plan_or_an_error(bytes: Vec<u8>) {
            let _ = decode::body(&bytes);
            let _ = Plan::decode(&bytes);
        }

        #[test]
        fn a_flipped_byte_ends_in_a_plan_or_an_error(derives: bool, at in 0_usize..400, flip in 1_u8..) {
            let mut raw = encode::body(&if derives { deriving() } else { example() }).unwrap();
            let at = at % raw.len();
            raw[at] ^= flip;
            if let Ok(plan) = decode::body(&raw)
                && plan.check().is_ok()
            {
                prop_assert_eq!(Plan::decode(&plan.encode().unwrap()), Ok(plan));
            }
        }
    }
}
