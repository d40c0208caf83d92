//! Carrying out a server's packs: fetch in order, hash, decode against the base, put in place.
//!
//! ```text
//! which packs does the standby hold already? ─▶ ranged requests ─▶ wire hash ─▶ decode ─▶ raw hash ─▶ standby
//!                                                                                │ wrong
//!                                            the base drifted: fetch what the prefix lacks, decode again
//!                                                                                │ still wrong
//!                                                                    fetch the pack's blocks plainly
//! ```
//! The standby slot is its own journal: a pack whose raw bytes lie there already, by their hash, is not fetched again, so
//! that a run that was killed costs what was in flight.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::{StreamExt, TryStreamExt, stream};
use goldsync_proto::block::{Run, byte_of, runs_of};
use goldsync_proto::digest::Digest;
use goldsync_proto::limits::BLOCK;
use goldsync_proto::pack::{self, hash16};
use goldsync_proto::plan::{Pack, Plan, Step};
use goldsync_proto::signature::block_hash;
use tokio::sync::Semaphore;

use super::range;
use crate::job::{Job, JobError};

/// Bytes of packs in one request.
const REQUEST: u64 = 4 << 20;

/// Requests under way at once.
const REQUESTS: usize = 2;

/// Where a pack's blocks go: `count` blocks from block `from` of the pack to block `first` of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Use {
    pack: u32,
    from: u32,
    first: u32,
    count: u32,
}

/// All uses of all packs, by pack.
#[derive(Debug)]
struct Uses {
    uses: Vec<Use>,
}

impl Uses {
    fn of(plan: &Plan) -> Self {
        let used = |(first, step)| match step {
            Step::Patch { pack, from, count } => Some(Use { pack, from, first, count }),
            _ => None,
        };
        let mut uses: Vec<Use> = plan.placed().filter_map(used).collect();
        uses.sort_unstable_by_key(|one| (one.pack, one.from, one.first));
        Self { uses }
    }

    fn of_pack(&self, pack: u32) -> &[Use] {
        let start = self.uses.partition_point(|one| one.pack < pack);
        let end = self.uses.partition_point(|one| one.pack <= pack);
        self.uses.get(start..end).unwrap_or(&[])
    }
}

/// Fetches and stages every pack of `plan` that the standby slot does not hold yet.
pub async fn run(job: &Arc<Job>, plan: &Arc<Plan>) -> Result<(), JobError> {
    let uses = Arc::new(Uses::of(plan));
    let missing = {
        let (plan, uses) = (plan.clone(), uses.clone());
        job.blocking(move |job| missing(job, &plan, &uses)).await?
    };
    // What is decoded at once bounds the memory: prefix, wire and raw bytes for each.
    let places = Arc::new(Semaphore::new(job.threads.clamp(1, 4)));
    let requests = stream::iter(requests(plan, &missing)).map(|request| {
        let (plan, uses, places) = (plan.clone(), uses.clone(), places.clone());
        async move { one_request(job, &plan, &uses, &places, request).await }
    });
    requests.buffered(REQUESTS).try_collect::<()>().await
}

fn missing(job: &Job, plan: &Plan, uses: &Uses) -> Result<Vec<u32>, JobError> {
    let numbers = 0..plan.packs.len() as u32;
    if !job.stage.has_own() {
        return Ok(numbers.collect());
    }
    let held: Vec<_> = numbers.clone().map(|_| std::sync::atomic::AtomicBool::new(false)).collect();
    job.on_threads(plan.packs.len() as u32, |number| {
        let (Some(pack), Some(held)) = (plan.packs.get(number as usize), held.get(number as usize)) else {
            return Ok(());
        };
        held.store(holds(job, pack, uses.of_pack(number))?, Ordering::Relaxed);
        Ok(())
    })?;
    Ok(numbers.zip(held).filter(|(_, held)| !held.load(Ordering::Relaxed)).map(|(number, _)| number).collect())
}

/// Whether the standby slot holds a pack's raw bytes, at all their places.
fn holds(job: &Job, pack: &Pack, uses: &[Use]) -> Result<bool, JobError> {
    let mut raw = vec![0; pack.raw_len as usize];
    let mut seen = vec![false; pack.raw_len as usize / BLOCK as usize];
    for one in uses {
        if !job.stage.with_standby(one.first, one.count, |bytes| {
            Ok::<_, JobError>(gather(one.from, bytes, &mut raw, &mut seen))
        })? {
            return Ok(false);
        }
    }
    if seen.contains(&false) || hash16(&raw) != pack.raw_hash {
        return Ok(false);
    }
    for one in uses {
        let bytes = raw.get(span(one.from, one.count)).unwrap_or(&[]);
        job.stage.put(one.first, bytes)?;
    }
    Ok(true)
}

/// Lays blocks into a pack from its block `from` on; `false` if they do not belong there, or another one lies there already.
fn gather(from: u32, bytes: &[u8], raw: &mut [u8], seen: &mut [bool]) -> bool {
    (from as usize..).zip(bytes.chunks_exact(BLOCK as usize)).all(|(index, block)| {
        let (Some(seen), Some(place)) =
            (seen.get_mut(index), raw.get_mut(index * BLOCK as usize..(index + 1) * BLOCK as usize))
        else {
            return false;
        };
        let fits = !*seen || place == block;
        *seen = true;
        place.copy_from_slice(block);
        fits
    })
}

fn span(from: u32, count: u32) -> std::ops::Range<usize> {
    byte_of(from) as usize..byte_of(from + count) as usize
}

/// Packs that lie one behind the other, to be had in one request.
#[derive(Debug, PartialEq, Eq)]
struct Packs {
    object: Digest,
    offset: u64,
    length: u64,
    numbers: Vec<u32>,
}

fn requests(plan: &Plan, missing: &[u32]) -> Vec<Packs> {
    let mut requests: Vec<Packs> = Vec::new();
    for number in missing {
        let Some(pack) = plan.packs.get(*number as usize) else { continue };
        let Some(object) = plan.objects.get(pack.object as usize) else { continue };
        let length = u64::from(pack.wire_len);
        match requests.last_mut() {
            Some(last)
                if last.object == *object
                    && last.offset + last.length == pack.offset
                    && last.length + length <= REQUEST =>
            {
                last.length += length;
                last.numbers.push(*number);
            }
            _ => requests.push(Packs { object: *object, offset: pack.offset, length, numbers: vec![*number] }),
        }
    }
    requests
}

async fn one_request(
    job: &Arc<Job>,
    plan: &Arc<Plan>,
    uses: &Arc<Uses>,
    places: &Arc<Semaphore>,
    request: Packs,
) -> Result<(), JobError> {
    job.go_on()?;
    let mut body = range(&job.link, request.object, request.offset, request.length).await?;
    let mut workers = tokio::task::JoinSet::new();
    for number in request.numbers {
        let Some(pack) = plan.packs.get(number as usize) else { continue };
        let place = places.clone().acquire_owned().await.map_err(|error| JobError::Worker(error.to_string()))?;
        let wire = body.bytes(u64::from(pack.wire_len), u64::from(pack.raw_len), "a pack").await?;
        let (worker, plan, uses) = (job.clone(), plan.clone(), uses.clone());
        workers.spawn(async move {
            let applied = apply_or_mend(&worker, &plan, &uses, number, wire).await;
            drop(place);
            applied
        });
        while let Some(done) = workers.try_join_next() {
            done.map_err(|error| JobError::Worker(error.to_string()))??;
        }
        job.go_on()?;
    }
    while let Some(done) = workers.join_next().await {
        done.map_err(|error| JobError::Worker(error.to_string()))??;
    }
    Ok(body.end("the packs").await?)
}

/// Base blocks that were fetched because the active slot's own had drifted.
type Overlay = HashMap<u32, Vec<u8>>;

async fn apply_or_mend(
    job: &Arc<Job>,
    plan: &Arc<Plan>,
    uses: &Arc<Uses>,
    number: u32,
    wire: Vec<u8>,
) -> Result<(), JobError> {
    let Some(pack) = plan.packs.get(number as usize).cloned() else { return Ok(()) };
    let wire = Arc::new(wire);
    if apply_on_thread(job, &pack, uses, number, &wire, Overlay::new()).await? {
        return Ok(());
    }
    let overlay = overlay(job, &pack).await?;
    if !overlay.is_empty() {
        job.stage.tally.repaired.fetch_add(overlay.len() as u64, Ordering::Relaxed);
        if apply_on_thread(job, &pack, uses, number, &wire, overlay).await? {
            return Ok(());
        }
    }
    // Not the base's fault, or a base whose hashes are not kept: the blocks themselves.
    tracing::warn!(pack = number, "a pack does not decode to what its plan promises; fetching its blocks plainly");
    let runs = runs_of({
        let mut blocks: Vec<u32> =
            uses.of_pack(number).iter().flat_map(|one| one.first..one.first + one.count).collect();
        blocks.sort_unstable();
        blocks
    });
    let blocks: u64 = runs.iter().map(|(_, count)| u64::from(*count)).sum();
    job.stage.tally.repaired.fetch_add(blocks, Ordering::Relaxed);
    super::blocks(job, job.target.image, &runs, |job, first, bytes| Ok(job.stage.put(first, bytes)?)).await
}

async fn apply_on_thread(
    job: &Arc<Job>,
    pack: &Pack,
    uses: &Arc<Uses>,
    number: u32,
    wire: &Arc<Vec<u8>>,
    overlay: Overlay,
) -> Result<bool, JobError> {
    let (pack, uses, wire) = (pack.clone(), uses.clone(), wire.clone());
    job.blocking(move |job| apply(job, &pack, uses.of_pack(number), &wire, &overlay)).await
}

/// Decodes a pack and stages it; `false` if it does not come out as promised.
fn apply(job: &Job, pack: &Pack, uses: &[Use], wire: &[u8], overlay: &Overlay) -> Result<bool, JobError> {
    if hash16(wire) != pack.wire_hash {
        return Ok(false);
    }
    let prefix = prefix(job, &pack.prefix, overlay)?;
    let Ok(raw) = pack::decompress(pack.codec, wire, pack.raw_len as usize, &prefix) else { return Ok(false) };
    if hash16(&raw) != pack.raw_hash {
        return Ok(false);
    }
    for one in uses {
        job.stage.put(one.first, raw.get(span(one.from, one.count)).unwrap_or(&[]))?;
    }
    Ok(true)
}

fn prefix(job: &Job, runs: &[Run], overlay: &Overlay) -> Result<Vec<u8>, JobError> {
    let blocks: u32 = runs.iter().map(|(_, count)| *count).sum();
    let mut prefix = vec![0; byte_of(blocks) as usize];
    let mut rest = prefix.as_mut_slice();
    for (first, count) in runs.iter().copied() {
        let Some((part, tail)) = rest.split_at_mut_checked(byte_of(count) as usize) else { break };
        rest = tail;
        job.stage.read_active(byte_of(first), part)?;
        for (index, block) in (first..).zip(part.chunks_exact_mut(BLOCK as usize)) {
            if let Some(right) = overlay.get(&index).filter(|right| right.len() == block.len()) {
                block.copy_from_slice(right);
            }
        }
    }
    Ok(prefix)
}

/// The blocks of a pack's prefix that are not the base's any more, fetched.
async fn overlay(job: &Arc<Job>, pack: &Pack) -> Result<Overlay, JobError> {
    let Some(base) = job.base.as_ref().map(|base| base.image) else { return Ok(Overlay::new()) };
    let runs = pack.prefix.clone();
    let drifted = job.blocking(move |job| drifted(job, &runs)).await?;
    if drifted.is_empty() {
        return Ok(Overlay::new());
    }
    let overlay = Arc::new(std::sync::Mutex::new(Overlay::new()));
    let into = overlay.clone();
    super::blocks(job, base, &runs_of(drifted), move |_, first, bytes| {
        let mut overlay = into.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        overlay.extend((first..).zip(bytes.chunks_exact(BLOCK as usize).map(<[u8]>::to_vec)));
        Ok(())
    })
    .await?;
    let overlay = std::mem::take(&mut *overlay.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    Ok(overlay)
}

fn drifted(job: &Job, runs: &[Run]) -> Result<Vec<u32>, JobError> {
    let Some(blocks) = job.base.as_ref().and_then(|base| base.blocks.as_ref()) else { return Ok(Vec::new()) };
    let mut drifted = Vec::new();
    for (first, count) in runs.iter().copied() {
        let mut bytes = vec![0; byte_of(count) as usize];
        job.stage.read_active(byte_of(first), &mut bytes)?;
        let pairs = (first..).zip(bytes.chunks_exact(BLOCK as usize));
        let is_other = |(at, block): &(u32, &[u8])| blocks.get(*at).is_some_and(|hash| hash != block_hash(block));
        drifted.extend(pairs.filter(is_other).map(|(at, _)| at));
    }
    drifted.sort_unstable();
    drifted.dedup();
    Ok(drifted)
}
