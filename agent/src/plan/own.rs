//! The node's own plan, from the golden image's signature: for a base that the server does not know.
//!
//! ```text
//! subtrees (32 B a MiB)  which regions are golden already, at the same offset, in either slot
//!    └▶ blocks (8 B a block, only of the regions that differ)
//!         same offset ─▶ zero ─▶ anywhere on the grid, in either slot
//!            └▶ hash trees (a request): what derives from the rest
//!            └▶ rolling (8 B a block, of some of the blocks still missing; of all, if those are found): any byte offset
//!                of what matched nothing
//!                 └▶ grains (10 B a block still missing, 30 more where they help): their eighths, anywhere; see `mosaic`
//! ```
//! A decision is kept for each block in a mapped word, so that memory does not grow with the image. Candidates are found by
//! eight bytes of hash; the read-back proves them. Sections are kept in the cache folder until the image is proven, so that a
//! run that was interrupted does not ask for them again.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use goldsync_proto::block::{Run, byte_of, runs_of};
use goldsync_proto::digest::DIGEST_LEN;
use goldsync_proto::image::region_hash;
use goldsync_proto::limits::{ALIGNED_ROUND, BLOCK, IMAGE_MAX, REGION, ROLLING_ROUND};
use goldsync_proto::plan::{Plan, Source, Step};
use goldsync_proto::release::Section;
use goldsync_proto::scan::aligned::BlockIndex;
use goldsync_proto::scan::rolling::{self, Rolling, Wanted};
use goldsync_proto::scan::slices;
use goldsync_proto::signature::{BlockHashes, block_hash, read_subtrees, zero_hash};
use goldsync_proto::verity::Tree;

use super::mosaic::Mosaic;
use super::{cached, derive};
use crate::fetch::{self, FetchError, entries};
use crate::job::{Job, JobError};
use crate::scratch::Words;
use crate::stage::StageError;
use crate::verify::RegionHash;

/// What is decided for one block. In a word: two bits of kind above, the source's byte offset below.
mod decision {
    pub const NONE: u64 = 0;
    pub const KEEP: u64 = 1 << 60;
    pub const ZERO: u64 = 2 << 60;
    pub const ACTIVE: u64 = 3 << 60;
    pub const STANDBY: u64 = 4 << 60;
    pub const DERIVE: u64 = 5 << 60;
    pub const KIND: u64 = 7 << 60;
}

/// What is known so far, shared by the passes.
#[derive(Debug)]
struct Search {
    /// A [`decision`] for each golden block.
    decided: Words,
    /// The golden block hashes that were asked for; zero elsewhere.
    hashes: Arc<Words>,
    /// One for each block of the active slot whose bytes were recognised: the rolling scan leaves it out.
    recognised: Words,
}

impl Search {
    fn decide(&self, block: u32, kind: u64, from: u64) {
        self.decided.set(block, kind | from);
    }

    fn undecided(&self, block: u32) -> bool {
        self.decided.get(block) == decision::NONE
    }

    fn missing(&self, blocks: impl IntoIterator<Item = u32>) -> Vec<u32> {
        blocks.into_iter().filter(|block| self.undecided(*block)).collect()
    }
}

/// A node's own plan.
#[derive(Debug)]
pub struct Own {
    /// The plan. Its `Fetch` steps cover every block that is not here.
    pub plan: Plan,
    /// Of those, blocks that are equal to another one which is fetched: `(leader, follower)`, sorted.
    pub followers: Vec<(u32, u32)>,
    /// Of the blocks to be fetched, the parts that are here.
    pub mosaic: Mosaic,
}

/// The blocks that are equal to `leader`.
pub fn followers_of(followers: &[(u32, u32)], leader: u32) -> impl Iterator<Item = u32> + '_ {
    let start = followers.partition_point(|(first, _)| *first < leader);
    followers.iter().skip(start).take_while(move |(first, _)| *first == leader).map(|(_, follower)| *follower)
}

/// Makes the plan. Fetches the signature's sections; stages nothing.
pub async fn make(job: &Arc<Job>) -> Result<Own, JobError> {
    let section = subtrees(job).await?;
    let golden = read_subtrees(job.geometry, job.target.image, &section)
        .ok_or(FetchError::Name { what: "the section of subtrees", name: job.target.sections.subtrees.name })?;
    let search = Arc::new(Search {
        decided: words(job, job.geometry.blocks(), None)?,
        hashes: Arc::new(words(job, job.geometry.blocks(), Some(job.target.sections.blocks))?),
        recognised: words(job, active_blocks(job), None)?,
    });
    let differing = on_search(job, &search, move |job, search| settle_regions(job, search, &golden)).await?;
    let wanted: Vec<Run> = differing.iter().map(|region| run(job.geometry.region_blocks(*region))).collect();
    entries::fetch(&job.link, &job.stop, job.target.sections.blocks, &search.hashes, &wanted).await?;
    let missing = on_search(job, &search, move |job, search| {
        settle_in_place(job, search, &differing)?;
        settle_on_grid(job, search)
    })
    .await?;
    let trees = if missing.is_empty() { Vec::new() } else { derive::trees(job).await? };
    let missing = settle_derived(&search, missing, &trees);
    roll(job, &search, missing).await?;
    let followers = followers(&search);
    let mosaic = Mosaic::find(job, &search.hashes, leaders(&search, &followers)).await?;
    let plan = Plan {
        base: None,
        target: job.target.image,
        geometry: job.geometry,
        steps: steps(&search),
        objects: vec![],
        packs: vec![],
        trees,
    };
    let plan = plan.with_trees_in_use();
    plan.check()?;
    Ok(Own { plan, followers, mosaic })
}

/// Settles blocks of hash trees; returns the others.
fn settle_derived(search: &Search, missing: Vec<u32>, trees: &[Tree]) -> Vec<u32> {
    let ranges: Vec<_> = trees.iter().map(Tree::range).collect();
    let (derived, missing): (Vec<u32>, Vec<u32>) =
        missing.into_iter().partition(|block| ranges.iter().any(|range| range.contains(block)));
    derived.into_iter().for_each(|block| search.decide(block, decision::DERIVE, 0));
    missing
}

/// The blocks to ask the server for: each content once.
fn leaders(search: &Search, followers: &[(u32, u32)]) -> Vec<u32> {
    let mut known: Vec<u32> = followers.iter().map(|(_, follower)| *follower).collect();
    known.sort_unstable();
    let missing = search.missing(0..search.decided.len());
    missing.into_iter().filter(|block| known.binary_search(block).is_err()).collect()
}

/// Finds blocks to be fetched that are equal among themselves.
fn followers(search: &Search) -> Vec<(u32, u32)> {
    let mut missing = search.missing(0..search.decided.len());
    missing.sort_unstable_by_key(|block| (search.hashes.get(*block), *block));
    let equal = missing.chunk_by(|a, b| search.hashes.get(*a) == search.hashes.get(*b));
    let mut pairs: Vec<(u32, u32)> = equal
        .filter_map(<[u32]>::split_first)
        .flat_map(|(leader, rest)| rest.iter().map(|follower| (*leader, *follower)))
        .collect();
    pairs.sort_unstable();
    pairs
}

async fn on_search<T: Send + 'static>(
    job: &Arc<Job>,
    search: &Arc<Search>,
    work: impl FnOnce(&Job, &Search) -> Result<T, JobError> + Send + 'static,
) -> Result<T, JobError> {
    let search = search.clone();
    job.blocking(move |job| work(job, &search)).await
}

pub(super) fn words(job: &Job, len: u32, kept: Option<Section>) -> Result<Words, JobError> {
    let made = match kept {
        Some(section) => Words::kept(&cached(job, section.name), len),
        None => Words::temporary(&job.cache, len),
    };
    Ok(made.map_err(|error| StageError::Scratch { blocks: len, error })?)
}

pub(super) fn active_blocks(job: &Job) -> u32 {
    let len = job.stage.active.as_ref().map_or(0, |active| active.len());
    (len.min(IMAGE_MAX) / BLOCK) as u32
}

fn run(blocks: std::ops::Range<u32>) -> Run {
    (blocks.start, blocks.end - blocks.start)
}

/// The section `subtrees`, from the cache or the server.
pub async fn subtrees(job: &Arc<Job>) -> Result<Vec<u8>, JobError> {
    let section = job.target.sections.subtrees;
    let path = cached(job, section.name);
    if let Ok(bytes) = std::fs::read(&path)
        && goldsync_proto::digest::Digest::of(&bytes) == section.name
    {
        return Ok(bytes);
    }
    let max = u64::from(job.geometry.regions()) * DIGEST_LEN as u64;
    let bytes = fetch::object(&job.link, section, max, "the section of subtrees").await?;
    // A cache: what cannot be kept is asked for again.
    let _ = std::fs::write(&path, &bytes);
    Ok(bytes)
}

/// Settles whole regions that are golden at the same offset; returns the others.
fn settle_regions(job: &Job, search: &Search, golden: &[RegionHash]) -> Result<Vec<u32>, JobError> {
    let differing = Mutex::new(Vec::new());
    job.on_threads(job.geometry.regions(), |region| {
        let blocks = job.geometry.region_blocks(region);
        let is_golden = |hash: RegionHash| golden.get(region as usize) == Some(&hash);
        let hash = |bytes: &[u8]| Ok::<_, JobError>(region_hash(job.geometry, region, bytes));
        let (first, count) = run(blocks.clone());
        if job.stage.has_own() && is_golden(job.stage.with_standby(first, count, hash)?) {
            blocks.for_each(|block| search.decide(block, decision::KEEP, 0));
        } else if blocks.end <= active_blocks(job) && is_golden(active_region(job, region)?) {
            for block in blocks {
                search.decide(block, decision::ACTIVE, byte_of(block));
                search.recognised.set(block, 1);
            }
        } else {
            differing.lock().unwrap_or_else(PoisonError::into_inner).push(region);
        }
        Ok(())
    })?;
    let mut differing = differing.into_inner().unwrap_or_else(PoisonError::into_inner);
    differing.sort_unstable();
    Ok(differing)
}

/// The hash of a whole region of the active slot: as it was found when the slot was hashed, or found now.
fn active_region(job: &Job, region: u32) -> Result<RegionHash, JobError> {
    if let Some(hash) = job.base.as_ref().and_then(|base| base.regions.get(region as usize)) {
        return Ok(*hash);
    }
    let (first, count) = run(job.geometry.region_blocks(region));
    job.stage.with_active(first, count, |bytes| Ok(region_hash(job.geometry, region, bytes)))
}

/// Settles blocks of the differing regions that are zero, or golden at the same offset.
fn settle_in_place(job: &Job, search: &Search, differing: &[u32]) -> Result<(), JobError> {
    job.on_threads(differing.len() as u32, |at| {
        let Some(region) = differing.get(at as usize) else { return Ok(()) };
        let blocks = job.geometry.region_blocks(*region);
        for block in blocks.clone() {
            let hash = search.hashes.get(block);
            job.stage.learn(block, hash);
            if hash == zero_hash() {
                search.decide(block, decision::ZERO, 0);
            }
        }
        if job.stage.has_own() {
            job.stage.with_standby(blocks.start, blocks.end - blocks.start, |bytes| {
                in_place(search, blocks.start, bytes, decision::KEEP, |_| 0);
                Ok::<_, JobError>(())
            })?;
        }
        let here = blocks.end.min(active_blocks(job)).saturating_sub(blocks.start);
        if here == 0 {
            return Ok(());
        }
        job.stage.with_active(blocks.start, here, |bytes| {
            in_place(search, blocks.start, bytes, decision::ACTIVE, byte_of);
            Ok(())
        })
    })
}

fn in_place(search: &Search, first: u32, bytes: &[u8], kind: u64, from: impl Fn(u32) -> u64) {
    for (block, bytes) in (first..).zip(bytes.chunks_exact(BLOCK as usize)) {
        if search.undecided(block) && search.hashes.get(block) == block_hash(bytes) {
            search.decide(block, kind, from(block));
        }
    }
}

/// Settles blocks that lie elsewhere on the grid of either slot; returns what is still missing.
fn settle_on_grid(job: &Job, search: &Search) -> Result<Vec<u32>, JobError> {
    let missing = search.missing(0..job.geometry.blocks());
    for round in missing.chunks(ALIGNED_ROUND) {
        let index = BlockIndex::new(BlockHashes::new(search.hashes.as_bytes()), round.iter().copied());
        let regions = active_blocks(job).div_ceil((REGION / BLOCK) as u32);
        job.on_threads(regions, |region| {
            let first = region * (REGION / BLOCK) as u32;
            let blocks = first..(first + (REGION / BLOCK) as u32).min(active_blocks(job));
            job.stage.with_active(first, blocks.end - first, |bytes| {
                for (from, bytes) in blocks.zip(bytes.chunks_exact(BLOCK as usize)) {
                    on_grid(search, &index, from, bytes);
                }
                Ok::<_, JobError>(())
            })
        })?;
        if job.stage.has_own() {
            standby_on_grid(job, search, &index)?;
        }
    }
    Ok(search.missing(missing))
}

fn on_grid(search: &Search, index: &BlockIndex<'_>, from: u32, bytes: &[u8]) {
    let hash = block_hash(bytes);
    if hash == zero_hash() || search.hashes.get(from) == hash {
        // Zeros are nobody's; and what is golden in place was settled before.
        search.recognised.set(from, 1);
    }
    for block in index.find(hash) {
        search.recognised.set(from, 1);
        if search.undecided(*block) {
            search.decide(*block, decision::ACTIVE, byte_of(from));
        }
    }
}

/// The standby slot's old content is a source only ahead of what is being made.
fn standby_on_grid(job: &Job, search: &Search, index: &BlockIndex<'_>) -> Result<(), JobError> {
    job.on_threads(job.geometry.regions(), |region| {
        let blocks = job.geometry.region_blocks(region);
        job.stage.with_standby(blocks.start, blocks.end - blocks.start, |bytes| {
            for (from, bytes) in blocks.zip(bytes.chunks_exact(BLOCK as usize)) {
                for block in index.find(block_hash(bytes)).iter().filter(|block| from >= **block) {
                    if search.undecided(*block) {
                        search.decide(*block, decision::STANDBY, byte_of(from));
                    }
                }
            }
            Ok(())
        })
    })
}

/// Looks for what is still missing at any byte offset of what was not recognised in the active slot.
async fn roll(job: &Arc<Job>, search: &Arc<Search>, missing: Vec<u32>) -> Result<(), JobError> {
    let unknown = runs_of((0..active_blocks(job)).filter(|block| search.recognised.get(*block) == 0));
    let blocks: usize = unknown.iter().map(|(_, count)| *count as usize).sum();
    // It finds at most what is unknown, and asks eight bytes for everything that is missing: where little is unknown, the
    // grains find the same for less.
    if blocks * 2 <= missing.len() || job.scan_budget == 0 {
        return Ok(());
    }
    let section = job.target.sections.rolling;
    let entries = Arc::new(words(job, job.geometry.blocks(), Some(section))?);
    let budget = Arc::new(AtomicI64::new(i64::try_from(job.scan_budget).unwrap_or(i64::MAX)));
    let unknown = Arc::new(unknown);
    let look = async |blocks: Vec<u32>| {
        entries::fetch(&job.link, &job.stop, section, &entries, &runs_of(blocks.iter().copied())).await?;
        let (entries, unknown, budget) = (entries.clone(), unknown.clone(), budget.clone());
        on_search(job, search, move |job, search| {
            for round in blocks.chunks(ROLLING_ROUND) {
                let wanted = round.iter().map(|block| {
                    let (entry, hash) = (entries.get(*block).to_le_bytes(), search.hashes.get(*block));
                    Wanted { block: *block, entry, hash }
                });
                roll_round(job, search, &Rolling::new(wanted), &unknown, &budget)?;
            }
            Ok(blocks.len() - search.missing(blocks).len())
        })
        .await
    };
    let (tried, rest) = rolling::trial(&missing);
    let of = tried.len();
    if rolling::pays(look(tried).await?, of) {
        look(rest).await?;
    }
    Ok(())
}

fn roll_round(
    job: &Job,
    search: &Search,
    rolling: &Rolling,
    unknown: &[Run],
    left: &AtomicI64,
) -> Result<(), JobError> {
    let slices = slices(unknown, byte_of(active_blocks(job)));
    job.on_threads(slices.len() as u32, |at| {
        let Some((start, end)) = slices.get(at as usize).copied() else { return Ok(()) };
        if rolling.left() == 0 || left.fetch_sub((end - start) as i64, Ordering::Relaxed) <= 0 {
            return Ok(());
        }
        let mut bytes = vec![0; (end - start) as usize];
        job.stage.read_active(start, &mut bytes)?;
        rolling.search(&bytes, |block, offset| search.decide(block, decision::ACTIVE, start + offset as u64));
        Ok(())
    })
}

fn steps(search: &Search) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for block in 0..search.decided.len() {
        let word = search.decided.get(block);
        let from = word & !decision::KIND;
        let step = match word & decision::KIND {
            decision::KEEP => Step::Keep { count: 1 },
            decision::ZERO => Step::Zero { count: 1 },
            decision::DERIVE => Step::Derive { count: 1 },
            decision::ACTIVE => copy(Source::Active, from),
            decision::STANDBY => copy(Source::Standby, from),
            _ => Step::Fetch { count: 1 },
        };
        step.push_to(&mut steps);
    }
    steps
}

fn copy(source: Source, from: u64) -> Step {
    if from.is_multiple_of(BLOCK) {
        Step::Copy { source, from: (from / BLOCK) as u32, count: 1 }
    } else {
        Step::CopyBytes { source, from, count: 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_content_is_asked_for_once() {
        let folder = tempfile::tempdir().unwrap();
        let words = || Words::temporary(folder.path(), 6).unwrap();
        let search = Search { decided: words(), hashes: Arc::new(words()), recognised: words() };
        for (block, hash) in [7, 9, 7, 5, 7, 9].into_iter().enumerate() {
            search.hashes.set(block as u32, hash);
        }
        search.decide(5, decision::KEEP, 0);
        let followers = followers(&search);
        assert_eq!(followers, vec![(0, 2), (0, 4)]);
        assert_eq!(leaders(&search, &followers), vec![0, 1, 3]);
        assert_eq!(followers_of(&followers, 0).collect::<Vec<_>>(), vec![2, 4]);
    }

    #[test]
    fn steps_join_only_what_goes_on() {
        let at = |from| copy(Source::Active, from);
        assert_eq!(at(0).join(at(4096)), Some(Step::Copy { source: Source::Active, from: 0, count: 2 }));
        assert_eq!(at(0).join(at(8192)), None);
        assert_eq!(at(7).join(at(4103)), Some(Step::CopyBytes { source: Source::Active, from: 7, count: 2 }));
        assert_eq!(at(7).join(copy(Source::Standby, 4103)), None);
    }
}
