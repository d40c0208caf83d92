//! Pruning: taking releases out of the fleet's history for good.
//!
//! ```text
//! who needs it? ──▶ nobody ──▶ intent ──▶ signed metadata ──▶ catalog: a tombstone, a line in the audit log ──▶ collect
//!               └─▶ a channel, a node ──▶ it stays, and whoever asked hears why
//! ```
//! A release stays while a channel points at it, or a node that is not revoked said last that it runs it or holds it in its
//! standby slot. Orders and daemons move nodes to where a channel points, and nowhere else. What a name and version stood for
//! is remembered for ever. The store's bytes go afterwards; see `collector`.

use std::collections::HashSet;

use goldsync_proto::digest::ImageId;
use goldsync_proto::release::{RELEASES_ROLE, ReleaseRef};
use goldsync_proto::wire::SlotReport;

use crate::api::problem::{ApiError, ApiResult};
use crate::api::trust::text_hash;
use crate::api::types::{PruneRequest, Pruning, PruningRelease};
use crate::catalog::Act;
use crate::channel;
use crate::hub::Hub;

/// What the audit log calls it.
pub(crate) const PRUNE: &str = "release.prune";

/// Takes releases out, or says what would come of it if the request is not signed.
pub(crate) async fn prune(hub: &Hub, request: &PruneRequest, act: Act) -> ApiResult<Pruning> {
    let _alone = hub.publishing.lock().await;
    let pruning = look(hub, &request.releases).await?;
    let Some(role) = &request.role else { return Ok(pruning) };
    if let Some(held) = pruning.releases.iter().find(|release| !release.needed_by.is_empty()) {
        let message = format!("{} is needed: {}", held.release, held.needed_by.join(", "));
        return Err(ApiError::needed(message).remedy("nothing was pruned; leave it out, or move what needs it first"));
    }
    let roles = [(RELEASES_ROLE.to_owned(), text_hash(role))].into();
    let intent = hub.catalog.intend(&act, &roles).await?;
    if let Err(error) = hub.trust.submit_removal(role, &request.releases).await {
        hub.catalog.settle(intent, None).await?;
        return Err(error.into());
    }
    hub.catalog.prune(&request.releases, &act).await?;
    hub.catalog.settle(intent, None).await?;
    tracing::info!(releases = request.releases.len(), frees = pruning.frees, "pruned");
    hub.unneeded.notify_one();
    Ok(pruning)
}

async fn look(hub: &Hub, releases: &[ReleaseRef]) -> ApiResult<Pruning> {
    let (rows, pointers) = (hub.catalog.releases().await?, hub.catalog.pointers().await?);
    let nodes: Vec<_> =
        channel::nodes(&hub.catalog, &hub.roster).await?.into_iter().filter(|node| !node.revoked).collect();
    let mut pruning = Vec::with_capacity(releases.len());
    for release in releases {
        let row = rows.iter().find(|row| row.manifest.release == *release);
        let row = row.ok_or_else(|| ApiError::not_found(format!("there is no release {release}")))?;
        let image = row.manifest.image;
        let points = pointers.iter().filter(|pointer| pointer.release == *release);
        let mut needed_by: Vec<String> =
            points.map(|pointer| format!("channel {} points at it", pointer.channel)).collect();
        for node in &nodes {
            let Some(report) = &node.report else { continue };
            let is_in = |slot: &Option<SlotReport>| slot.as_ref().is_some_and(|slot| holds(slot, release, image));
            if is_in(&report.active) {
                needed_by.push(format!("node {} runs it", node.node));
            } else if is_in(&report.standby) {
                needed_by.push(format!("node {} holds it in its standby slot", node.node));
            }
        }
        pruning.push(PruningRelease { release: release.clone(), image, needed_by });
    }
    let going: HashSet<&ReleaseRef> =
        pruning.iter().filter(|one| one.needed_by.is_empty()).map(|one| &one.release).collect();
    let stays: HashSet<ImageId> =
        rows.iter().filter(|row| !going.contains(&row.manifest.release)).map(|row| row.manifest.image).collect();
    let goes: HashSet<ImageId> = pruning.iter().map(|one| one.image).filter(|image| !stays.contains(image)).collect();
    let frees = hub.store.only_for(&goes).await?;
    let held = hub.packs.held(|image| !goes.contains(&image));
    let rewriting = hub.store.dead_without(&goes, &held).await?;
    Ok(Pruning { releases: pruning, frees, rewriting })
}

/// A slot that does not say as which release it was filled may have been filled as any with that image.
fn holds(slot: &SlotReport, release: &ReleaseRef, image: ImageId) -> bool {
    slot.release.as_ref().map_or(slot.image == Some(image), |held| held == release)
}
