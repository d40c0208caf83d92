//! Drift: is the active slot still the image that it was proven to be, and making it so again.
//!
//! `verify` hashes the active slot. If the id is right there is nothing to say; else the block hashes kept beside the proof
//! tell which blocks drifted, without the server. `repair` makes a standby copy in which only those are fetched, proves it and
//! swaps it in: the active slot is never written, so that a repair can fail without making anything worse.

use std::sync::{Mutex, PoisonError};

use goldsync_proto::block::{Geometry, Run, runs_of};
use goldsync_proto::digest::ImageId;
use goldsync_proto::limits::{BLOCK, IMAGE_MAX};
use goldsync_proto::release::{Manifest, ReleaseRef, Section};
use goldsync_proto::signature::{BlockHashes, block_hash, read_subtrees};
use goldsync_proto::wire::{Outcome, Phase};

use crate::fetch;
use crate::job::{JobError, on_threads};
use crate::slot::{SlotName, Source, with_room};
use crate::stage::StageError;
use crate::update::{self, Context, Event, UpdateError};
use crate::verify::{RegionHash, hash_regions};

/// What `verify` found.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DriftReport {
    /// The active slot.
    pub slot: SlotName,
    /// The release that it claims.
    pub release: ReleaseRef,
    /// That release's image.
    pub image: ImageId,
    /// What was read.
    pub found: ImageId,
    /// Blocks in the image.
    pub blocks: u32,
    /// Blocks that are not the image's.
    pub drifted: u64,
    /// Where they are: `(first, count)`.
    pub runs: Vec<Run>,
}

/// Hashes the active slot against the release that it claims. Writes nothing but the finding.
pub async fn verify(ctx: &mut Context) -> Result<DriftReport, UpdateError> {
    ctx.events.as_ref()(Event::Phase(Phase::Verify));
    let slot = ctx.activation.active()?.ok_or(UpdateError::NoActive)?;
    let proven = ctx.proven(slot)?.ok_or(UpdateError::Unclaimed { slot })?;
    let geometry = Geometry::new(proven.size)
        .map_err(|error| UpdateError::Manifest { release: proven.release.clone(), error: error.into() })?;
    let (found, regions) = hash(ctx, slot, geometry).await?;
    let runs = if found == proven.image { Vec::new() } else { locate(ctx, slot, geometry, regions).await? };
    let drifted = runs.iter().map(|(_, count)| u64::from(*count)).sum();
    if ctx.journal.drift()?.is_none_or(|last| (last.image, last.drifted) != (proven.image, drifted)) {
        ctx.journal.set_drift(proven.image, drifted)?;
    }
    ctx.events.as_ref()(Event::Phase(Phase::Idle));
    let (release, image, blocks) = (proven.release, proven.image, geometry.blocks());
    Ok(DriftReport { slot, release, image, found, blocks, drifted, runs })
}

/// Replaces a drifted active slot by a whole copy of the same release.
pub async fn repair(ctx: &mut Context) -> Result<Outcome, UpdateError> {
    // As long as what runs is on trial, the other slot is the way back and no room for a repair.
    update::settled(ctx).await?;
    let lock = ctx.journal.lock()?;
    let report = verify(ctx).await?;
    if report.drifted == 0 && report.found == report.image {
        return Ok(Outcome::UpToDate);
    }
    update::refresh(ctx).await?;
    let manifest = update::manifest(ctx, &report.release).await?;
    let account = update::stage_repair(ctx, &manifest).await?;
    update::swap(ctx, &lock)?;
    if ctx.activation.active()? != Some(report.slot) {
        // What drifted is the standby slot now, and nothing to go back to. (A crash before this line costs nothing: a rollback
        // reads the slot back first.)
        ctx.journal.set_empty(report.slot)?;
        ctx.journal.set_drift(report.image, 0)?;
    }
    drop(lock);
    update::in_use(ctx, account).await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, JobError> + Send + 'static,
) -> Result<T, UpdateError> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|error| JobError::Worker(error.to_string()))??)
}

async fn hash(ctx: &Context, slot: SlotName, geometry: Geometry) -> Result<(ImageId, Vec<RegionHash>), UpdateError> {
    let source = Source::open(slot, ctx.config.slots.path(slot))?;
    let (threads, stop) = (ctx.config.limits.threads, ctx.stop.clone());
    blocking(move || hash_regions(threads, &stop, geometry, |at, bytes| Ok(source.read_medium(at, bytes)?))).await
}

/// Which blocks differ: by the hashes kept here, or by the signed sections of the release.
async fn locate(
    ctx: &mut Context,
    slot: SlotName,
    geometry: Geometry,
    regions: Vec<RegionHash>,
) -> Result<Vec<Run>, UpdateError> {
    let proven = ctx.proven(slot)?.ok_or(UpdateError::Unclaimed { slot })?;
    if let Some(blocks) = ctx.journal.blocks(slot, proven.image).unwrap_or(None) {
        let all = (0..geometry.regions()).collect();
        return differing(ctx, slot, geometry, all, move |block| blocks.get(block)).await;
    }
    let manifest = update::manifest(ctx, &proven.release).await?;
    let (suspects, section) = signed(ctx, &manifest, geometry, &regions).await?;
    differing(ctx, slot, geometry, suspects, move |block| BlockHashes::new(&section).get(block)).await
}

async fn signed(
    ctx: &Context,
    manifest: &Manifest,
    geometry: Geometry,
    regions: &[RegionHash],
) -> Result<(Vec<u32>, Vec<u8>), UpdateError> {
    let link = ctx.link()?;
    let get = async |section: Section, what| fetch::object(&link, section, IMAGE_MAX / BLOCK * 8, what).await;
    let subtrees = get(manifest.sections.subtrees, "the section of subtrees").await?;
    let golden = read_subtrees(geometry, manifest.image, &subtrees).unwrap_or_default();
    let differ = (0_u32..).zip(golden.iter().zip(regions)).filter(|(_, (golden, got))| golden != got);
    let suspects = differ.map(|(region, _)| region).collect();
    Ok((suspects, get(manifest.sections.blocks, "the section of blocks").await?))
}

async fn differing(
    ctx: &Context,
    slot: SlotName,
    geometry: Geometry,
    regions: Vec<u32>,
    golden: impl Fn(u32) -> Option<u64> + Send + Sync + 'static,
) -> Result<Vec<Run>, UpdateError> {
    let source = Source::open(slot, ctx.config.slots.path(slot))?;
    let (threads, stop) = (ctx.config.limits.threads, ctx.stop.clone());
    blocking(move || {
        let found = Mutex::new(Vec::new());
        on_threads(threads, &stop, regions.len() as u32, |at| {
            let Some(region) = regions.get(at as usize) else { return Ok(()) };
            let range = geometry.region_bytes(*region);
            with_room((range.end - range.start) as usize, |bytes| {
                source.read_medium(range.start, bytes).map_err(StageError::from)?;
                for (block, bytes) in geometry.region_blocks(*region).zip(bytes.chunks_exact(BLOCK as usize)) {
                    if golden(block) != Some(block_hash(bytes)) {
                        found.lock().unwrap_or_else(PoisonError::into_inner).push(block);
                    }
                }
                Ok(())
            })
        })?;
        let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        found.sort_unstable();
        Ok(runs_of(found))
    })
    .await
}
