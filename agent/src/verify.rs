//! The proof: the whole standby slot read back, and its BLAKE3 held against the image id.
//!
//! ```text
//! settle (sync, forget) ─▶ read back ─▶ the image id?  yes: proven
//!            ▲                             │ no
//!            └──── fetch those ◀── which blocks are wrong? by the golden hashes known here, or by the signed subtrees
//! ```
//! This is the one gate before the swap, and it does not care how the bytes came there: a drifted base, a lying server, a
//! broken plan, a collision and a bad disk all end here, mended or with an error. What was derived from wrong blocks is derived
//! again; what is wrong although they are right was derived by a wrong plan, and is fetched like all else.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use goldsync_proto::block::{Geometry, runs_of};
use goldsync_proto::digest::{DIGEST_LEN, ImageId};
use goldsync_proto::image::{id_of_regions, region_hash};
use goldsync_proto::limits::BLOCK;
use goldsync_proto::signature::{block_hash, read_subtrees};
use goldsync_proto::verity::runs_derived;
use tokio_util::sync::CancellationToken;

use crate::fetch;
use crate::job::{Job, JobError, on_threads};
use crate::plan;
use crate::slot::with_room;
use crate::stage::StageError;

/// How often wrong blocks are fetched before the disk, the memory or the server is blamed.
const ROUNDS: u32 = 3;

/// A region's chaining value.
pub type RegionHash = [u8; DIGEST_LEN];

/// Proves the standby slot, mending what is wrong. Returns when it is the golden image on the medium.
pub async fn prove(job: &Arc<Job>) -> Result<(), JobError> {
    let expected = job.target.image;
    for rounds in 0.. {
        let (got, regions) = job.blocking(read_back).await?;
        if got == expected {
            return Ok(());
        }
        if rounds == ROUNDS {
            return Err(JobError::Proof { got, expected, rounds });
        }
        mend(job, regions).await?;
    }
    Ok(())
}

fn read_back(job: &Arc<Job>) -> Result<(ImageId, Vec<RegionHash>), JobError> {
    job.stage.settle()?;
    let stage = &job.stage;
    hash_regions(job.threads, &job.stop, job.geometry, |at, bytes| Ok(stage.standby.read_medium(at, bytes)?))
}

/// The region hashes of anything that can be read, and the image id that they give.
pub fn hash_regions(
    threads: usize,
    stop: &CancellationToken,
    geometry: Geometry,
    read: impl Fn(u64, &mut [u8]) -> Result<(), StageError> + Sync,
) -> Result<(ImageId, Vec<RegionHash>), JobError> {
    let regions = on_threads(threads, stop, geometry.regions(), |region| {
        let range = geometry.region_bytes(region);
        with_room((range.end - range.start) as usize, |bytes| {
            read(range.start, bytes)?;
            Ok(region_hash(geometry, region, bytes))
        })
    })?;
    // The list is as long as the image has regions, so that there is always an id.
    let id = id_of_regions(geometry, &regions).ok_or_else(|| JobError::Worker("a region was not hashed".into()))?;
    Ok((id, regions))
}

/// Fetches what is wrong: block by block where the golden hashes tell, else what the signed subtrees tell.
async fn mend(job: &Arc<Job>, regions: Vec<RegionHash>) -> Result<(), JobError> {
    let wrong = job.blocking(|job| wrong_blocks(job, 0..job.geometry.regions())).await?;
    if !wrong.is_empty() {
        tracing::info!(blocks = wrong.len(), "the standby slot is not golden yet; fetching the wrong blocks");
        // A derived block of which a hash is known is fetched, and with it all that may be wrong by it: nothing is left to derive.
        let derived = derived_of(job, &wrong);
        if !derived.is_empty() {
            forget_derived(job, derived.len());
        }
        fetch_wrong(job, wrong).await?;
        return job.blocking(plan::derive::run).await;
    }
    let section = plan::own::subtrees(job).await?;
    let golden = read_subtrees(job.geometry, job.target.image, &section).unwrap_or_default();
    let differ = (0_u32..).zip(golden.iter().zip(&regions)).filter(|(_, (golden, got))| golden != got);
    let mut wrong: Vec<u32> = differ.flat_map(|(region, _)| job.geometry.region_blocks(region)).collect();
    let derived = derived_of(job, &wrong);
    forget_derived(job, derived.len());
    if derived.is_empty() {
        tracing::info!(blocks = wrong.len(), "the standby slot is not golden yet; fetching the wrong regions");
        // What was believed of these blocks led nowhere.
        wrong.iter().for_each(|block| job.stage.learn(*block, 0));
    } else {
        tracing::warn!(blocks = derived.len(), "blocks that the plan derives are not golden; fetching them plainly");
        wrong = derived;
    }
    fetch_wrong(job, wrong).await
}

async fn fetch_wrong(job: &Arc<Job>, wrong: Vec<u32>) -> Result<(), JobError> {
    job.stage.tally.repaired.fetch_add(wrong.len() as u64, Ordering::Relaxed);
    let runs = runs_of(wrong);
    fetch::blocks(job, job.target.image, &runs, |job, first, bytes| Ok(job.stage.put(first, bytes)?)).await
}

/// Which of `blocks`, ascending, derive.
fn derived_of(job: &Job, blocks: &[u32]) -> Vec<u32> {
    let derived = runs_derived(&job.stage.derived()).into_iter().flat_map(|(first, count)| first..first + count);
    derived.filter(|block| blocks.binary_search(block).is_ok()).collect()
}

/// Derives nothing any more: `fetched` derived blocks are about to be fetched.
fn forget_derived(job: &Job, fetched: usize) {
    let count = &job.stage.tally.derived;
    let left = count.load(Ordering::Relaxed).saturating_sub(fetched as u64);
    job.stage.set_derived(Vec::new());
    count.store(left, Ordering::Relaxed);
}

/// Blocks of the standby slot whose hash is known and is another.
fn wrong_blocks(job: &Arc<Job>, regions: std::ops::Range<u32>) -> Result<Vec<u32>, JobError> {
    let wrong = Mutex::new(Vec::new());
    job.on_threads(regions.end - regions.start, |at| {
        let blocks = job.geometry.region_blocks(regions.start + at);
        job.stage.with_standby(blocks.start, blocks.end - blocks.start, |bytes| {
            for (index, block) in blocks.zip(bytes.chunks_exact(BLOCK as usize)) {
                let golden = job.stage.golden.get(index);
                if golden != 0 && golden != block_hash(block) {
                    wrong.lock().unwrap_or_else(PoisonError::into_inner).push(index);
                }
            }
            Ok(())
        })
    })?;
    let mut wrong = wrong.into_inner().unwrap_or_else(PoisonError::into_inner);
    wrong.sort_unstable();
    Ok(wrong)
}

/// Learns the golden hashes that are not known yet from the standby slot, which was just proven.
pub fn learn_rest(job: &Arc<Job>) -> Result<(), JobError> {
    job.on_threads(job.geometry.regions(), |region| {
        let unknown = job.geometry.region_blocks(region).filter(|block| job.stage.golden.get(*block) == 0);
        for (first, count) in runs_of(unknown) {
            job.stage.with_standby(first, count, |bytes| {
                let pairs = (first..).zip(bytes.chunks_exact(BLOCK as usize));
                pairs.for_each(|(index, block)| job.stage.learn(index, block_hash(block)));
                Ok::<_, JobError>(())
            })?;
        }
        Ok(())
    })
}
