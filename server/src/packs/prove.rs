//! Carrying a plan out, before the first node gets it.
//!
//! Copies are found by eight bytes of hash, and whole images in the cache may rot: a plan that is wrong is wrong for every
//! node that asks, for ever. So the server makes the target from base and packs once itself, in memory and on all cores,
//! and holds its BLAKE3 against the target's id.
//!
//! What is derived is derived from the target's own bytes as they are at hand, and not from what the plan made of them a moment
//! ago: if all of it together has the target's id, the two are the same.

use std::num::NonZero;
use std::ops::Range;
use std::sync::Arc;

use goldsync_proto::block::byte_of;
use goldsync_proto::digest::{DIGEST_LEN, ImageId};
use goldsync_proto::image::{id_of_regions, region_hash};
use goldsync_proto::limits::REGION;
use goldsync_proto::make::gather_bytes;
use goldsync_proto::pack::{decompress, hash16};
use goldsync_proto::plan::{Plan, Step};

use crate::store::Lru;

/// Bytes of unpacked packs that each thread keeps: repeated blocks point back.
const KEPT_BYTES: u64 = 16 << 20;

/// The image that a server's plan from the first image to the second gives; its packs lie in `packs`, its one object. On all
/// cores, but on no more threads than that.
pub(crate) fn carry_out(
    plan: &Plan,
    [base, target]: [&[u8]; 2],
    packs: &[u8],
    threads: usize,
) -> Result<ImageId, String> {
    let job = Job { plan, base, target, packs, starts: plan.placed().map(|(first, _)| first).collect() };
    let regions = plan.geometry.regions();
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(threads).clamp(1, 16) as u32;
    let share = regions.div_ceil(threads).max(1);
    let job = &job;
    let hashes: Result<Vec<_>, String> = std::thread::scope(|scope| {
        let parts = (0..regions).step_by(share as usize);
        let parts: Vec<_> =
            parts.map(|first| scope.spawn(move || job.regions(first..(first + share).min(regions)))).collect();
        let join = |part: std::thread::ScopedJoinHandle<'_, _>| match part.join() {
            Ok(hashes) => hashes,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        parts.into_iter().map(join).collect()
    });
    id_of_regions(plan.geometry, &hashes?.concat()).ok_or_else(|| "regions are missing".to_owned())
}

struct Job<'a> {
    plan: &'a Plan,
    base: &'a [u8],
    target: &'a [u8],
    packs: &'a [u8],
    /// For each step the block that it begins with.
    starts: Vec<u32>,
}

impl Job<'_> {
    fn regions(&self, regions: Range<u32>) -> Result<Vec<[u8; DIGEST_LEN]>, String> {
        let mut kept = Lru::new(KEPT_BYTES);
        let mut bytes = Vec::with_capacity(REGION as usize);
        let mut hashes = Vec::with_capacity(regions.len());
        for index in regions {
            bytes.clear();
            self.make(self.plan.geometry.region_blocks(index), &mut kept, &mut bytes)?;
            hashes.push(region_hash(self.plan.geometry, index, &bytes));
        }
        Ok(hashes)
    }

    fn make(&self, blocks: Range<u32>, kept: &mut Lru<u32, Arc<Vec<u8>>>, out: &mut Vec<u8>) -> Result<(), String> {
        let first = self.starts.partition_point(|start| *start <= blocks.start).saturating_sub(1);
        for (step, start) in self.plan.steps.iter().zip(&self.starts).skip(first) {
            if *start >= blocks.end {
                break;
            }
            let skip = blocks.start.saturating_sub(*start);
            let count = (start + step.count()).min(blocks.end) - (start + skip);
            let len = byte_of(count) as usize;
            match *step {
                Step::Zero { .. } => out.resize(out.len() + len, 0),
                Step::Copy { from, .. } => out.extend(part(self.base, byte_of(from) + byte_of(skip), len)?),
                Step::CopyBytes { from, .. } => out.extend(part(self.base, from + byte_of(skip), len)?),
                Step::Patch { pack, from, .. } => {
                    let raw = self.unpack(pack, kept)?;
                    out.extend(part(&raw, byte_of(from + skip), len)?);
                }
                Step::Derive { .. } => self.derive(start + skip..start + skip + count, out)?,
                Step::Keep { .. } | Step::Fetch { .. } => return Err("it has a step that no server makes".into()),
            }
        }
        Ok(())
    }

    fn derive(&self, blocks: Range<u32>, out: &mut Vec<u8>) -> Result<(), String> {
        for block in blocks {
            let below = self.plan.trees.iter().find_map(|tree| Some((tree, tree.below(block)?)));
            let (tree, (first, count)) = below.ok_or("it derives a block of no hash tree")?;
            out.extend(tree.derive(part(self.target, byte_of(first), byte_of(count) as usize)?));
        }
        Ok(())
    }

    fn unpack(&self, number: u32, kept: &mut Lru<u32, Arc<Vec<u8>>>) -> Result<Arc<Vec<u8>>, String> {
        if let Some(raw) = kept.get(&number) {
            return Ok(raw);
        }
        let pack = self.plan.packs.get(number as usize).ok_or("it names a pack that is not listed")?;
        let wire = part(self.packs, pack.offset, pack.wire_len as usize)?;
        let prefix = gather_bytes(self.base, pack.prefix.iter().copied());
        let raw = decompress(pack.codec, wire, pack.raw_len as usize, &prefix).map_err(|error| error.to_string())?;
        if hash16(wire) != pack.wire_hash || hash16(&raw) != pack.raw_hash {
            return Err(format!("pack {number} is not what its hashes say"));
        }
        let raw = Arc::new(raw);
        kept.put(number, raw.clone(), raw.len() as u64);
        Ok(raw)
    }
}

fn part(bytes: &[u8], from: u64, len: usize) -> Result<&[u8], String> {
    let from = usize::try_from(from).unwrap_or(usize::MAX);
    let end = from.saturating_add(len);
    bytes.get(from..end).ok_or_else(|| format!("it takes bytes {from}..{end} of {}", bytes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::testing::noise;
    use goldsync_proto::block::Geometry;
    use goldsync_proto::limits::BLOCK;
    use goldsync_proto::make::{Effort, Image, pair};
    use goldsync_proto::plan::Source;
    use goldsync_proto::signature::{BlockHashes, sign_blocks};
    use goldsync_proto::verity::{Salted, Tree};

    fn made(base: &[u8], target: &[u8]) -> (Plan, Vec<u8>) {
        let sections = (sign_blocks(base), sign_blocks(target));
        let image = |bytes, section| {
            let geometry = Geometry::new(<[u8]>::len(bytes) as u64).unwrap();
            Image { id: ImageId::of(bytes), geometry, bytes, hashes: BlockHashes::new(section), derived: &[] }
        };
        let mut packs = Vec::new();
        let plan = pair(image(base, &sections.0), image(target, &sections.1), Effort::QUICK, |wire| {
            packs.extend_from_slice(wire);
            Ok::<_, goldsync_proto::plan::PlanError>(())
        });
        (plan.unwrap(), packs)
    }

    fn images() -> (Vec<u8>, Vec<u8>) {
        let base = noise(1000, 1);
        let fresh = noise(300, 2);
        let zeros = vec![0; 20 * BLOCK as usize];
        let target = [&base[BLOCK as usize * 3..], &fresh, &zeros, &fresh[..BLOCK as usize], &base].concat();
        (base, target)
    }

    #[test]
    fn a_good_plan_gives_its_target() {
        let (base, target) = images();
        let (plan, packs) = made(&base, &target);
        assert_eq!(carry_out(&plan, [&base, &target], &packs, 16), Ok(plan.target));
    }

    #[test]
    fn what_is_derived_is_proven_with_the_rest() {
        let data = noise(2, 3);
        let tree = Tree { data: 0, blocks: 2, at: 2, salted: Salted::Before, salt: b"salt".to_vec() };
        let target = [&data[..], &tree.derive(&data)].concat();
        let steps = vec![Step::Copy { source: Source::Active, from: 0, count: 2 }, Step::Derive { count: 1 }];
        let (id, geometry) = (ImageId::of(&target), Geometry::new(3 * BLOCK).unwrap());
        let (objects, packs) = (vec![], vec![]);
        let mut plan = Plan { base: None, target: id, geometry, steps, objects, packs, trees: vec![tree] };
        assert_eq!(carry_out(&plan, [&data, &target], &[], 1), Ok(id));
        // What is at hand of the target may have rotted, too.
        let mut rotten = target.clone();
        rotten[5000] ^= 1;
        assert!(carry_out(&plan, [&data, &rotten], &[], 1).is_ok_and(|got| got != id));
        plan.trees[0].salt.clear();
        assert!(carry_out(&plan, [&data, &target], &[], 1).is_ok_and(|got| got != id));
        plan.trees.clear();
        assert!(carry_out(&plan, [&data, &target], &[], 1).is_err());
    }

    #[test]
    fn a_wrong_one_gives_another_image_or_none() {
        let (base, target) = images();
        let (plan, packs) = made(&base, &target);
        let mut rotten = base.clone();
        rotten[500 * BLOCK as usize] ^= 1;
        assert!(carry_out(&plan, [&rotten, &target], &packs, 16) != Ok(plan.target));
        assert!(carry_out(&plan, [&base[BLOCK as usize..], &target], &packs, 16).is_err());
        assert!(carry_out(&plan, [&base, &target], &packs[1..], 16).is_err());
        let mut other = plan.clone();
        other.steps[0] = Step::Copy { source: Source::Active, from: 4, count: other.steps[0].count() - 1 };
        other.steps.insert(1, Step::Zero { count: 1 });
        assert!(carry_out(&other, [&base, &target], &packs, 16).is_ok_and(|id| id != plan.target));
        let mut other = plan;
        other.steps[0] = Step::Fetch { count: other.steps[0].count() };
        assert!(carry_out(&other, [&base, &target], &packs, 16).is_err());
    }
}
