//! The collector: gives back what no release needs any more.
//!
//! ```text
//! a release was pruned ──┐
//! a day has passed ──────┼──▶ plans of images that go ──▶ images ──▶ objects      (see `store::collect`)
//! something had to wait ─┘
//! ```
//! Then segments of which most is dead by now are written anew, so that they can go the next time; see `store::rewrite`.
//!
//! What must stay: the images of the catalog's releases, what was stored or asked for lately, and the plans between images
//! that stay. It sleeps until one of the three happens; a collection that was killed is done again at the next.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use goldsync_proto::digest::ImageId;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::catalog::CatalogError;
use crate::hub::Hub;
use crate::store::{Rewritten, StoreError, Swept, Unneeded};

/// How often it is looked without a reason: uploads that were given up, and what a dead server left.
const EVERY: Duration = Duration::from_secs(24 * 3600);

/// Why nothing was collected.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// What is needed could not be told.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Collects when there is reason to, until `quit`.
pub async fn keep_collecting(hub: Arc<Hub>, quit: CancellationToken) {
    let soon = hub.config.store.grace.0 + Duration::from_secs(1);
    let mut wait = soon;
    loop {
        tokio::select! {
            () = quit.cancelled() => return,
            _ = timeout(wait, hub.unneeded.notified()) => {}
        }
        // Being told to stop is a death like any other to it, and it may take long.
        let again = tokio::select! {
            () = quit.cancelled() => return,
            again = collect_and_rewrite(&hub) => again,
        };
        wait = match again {
            Ok(false) => EVERY,
            Ok(true) => soon,
            Err(error) => {
                tracing::error!(%error, "what no release needs could not be removed; it is tried again");
                soon
            }
        };
    }
}

/// Collects, and makes more collectable. Whether there is something for a next time.
async fn collect_and_rewrite(hub: &Hub) -> Result<bool, CollectError> {
    let collected = collect(hub).await?;
    Ok(rewrite(hub).await? > 0 || collected.later)
}

/// Writes segments anew of which most is dead. Returns how many nothing needs now.
pub async fn rewrite(hub: &Hub) -> Result<u64, CollectError> {
    let mut segments = 0;
    loop {
        let held = hub.packs.held(|_| true);
        let Rewritten { segments: more, dead, written, images } = hub.uploads.rewrite(&held).await?;
        if more == 0 {
            return Ok(segments);
        }
        hub.packs.forget_moved().await?;
        segments += more;
        let frees = dead.saturating_sub(written);
        tracing::info!(segments = more, images, dead, written, frees, "wrote segments anew of which most was dead");
    }
}

/// What a collection came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Collected {
    /// Images that went.
    pub images: usize,
    /// Objects that went.
    pub swept: Swept,
    /// Something has to wait.
    pub later: bool,
}

/// Removes what nothing needs, once.
pub async fn collect(hub: &Hub) -> Result<Collected, CollectError> {
    // Nobody may publish an image as a release that is going at this moment.
    let _alone = hub.publishing.lock().await;
    let released: HashSet<ImageId> = hub.catalog.releases().await?.iter().map(|row| row.manifest.image).collect();
    let pruned = hub.catalog.pruned_images().await?.into_iter().collect();
    let unneeded: Vec<ImageId> = hub.store.images().iter().map(|record| record.image).collect();
    let unneeded: Vec<ImageId> = unneeded.into_iter().filter(|image| !released.contains(image)).collect();
    let images = hub.store.idle(&unneeded, &pruned)?;
    let stays = |image: ImageId| hub.store.image(image).is_some() && !images.contains(&image);
    let names = hub.packs.retain(|base, target| base.is_none_or(stays) && stays(target)).await?;
    let swept = hub.uploads.collect(Unneeded { images: images.clone(), names }).await?;
    if !images.is_empty() || swept.files > 0 {
        tracing::info!(
            images = images.len(),
            files = swept.files,
            freed = swept.freed,
            "removed what no release needs"
        );
    }
    Ok(Collected { images: images.len(), swept, later: images.len() < unneeded.len() || swept.later > 0 })
}
