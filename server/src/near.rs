//! Which image a node's unknown one is nearest to: an image that somebody changed in place is then the release that it came
//! from, drifted, and is updated by that release's plans.
//!
//! The candidates are the last releases of the name that is wanted. A release's sketch is read from its section `blocks` when
//! it is first needed, one at a time, and kept: 4 KiB each.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use goldsync_proto::block::{Geometry, GeometryError};
use goldsync_proto::digest::ImageId;
use goldsync_proto::signature::BlockHashes;
use goldsync_proto::sketch::{self, Likeness};
use goldsync_proto::wire::Near;
use tokio::sync::Mutex;

use crate::catalog::CatalogError;
use crate::hub::Hub;
use crate::store::StoreError;

/// Releases that a sketch is compared with.
const CANDIDATES: usize = 64;

/// Sketches kept: 16 MiB.
const KEPT: usize = 4096;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum NearError {
    /// The node's sketch is none.
    #[error("{got} bytes are no sketch for an image of {size} bytes: four for each of its positions, in order")]
    Sketch {
        /// Bytes that came.
        got: usize,
        /// The size of the image wanted.
        size: u64,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// The sketches that were asked for so far.
#[derive(Debug, Default)]
pub struct Sketches {
    kept: Mutex<HashMap<Sampled, Arc<[u32]>>>,
}

/// An image, and the size of the one that was wanted when it was sampled.
type Sampled = (ImageId, u64);

impl Sketches {
    /// The release that is nearest to what a node sampled, if a plan from it is worth while.
    pub async fn nearest(&self, hub: &Hub, target: ImageId, wire: &[u8]) -> Result<Option<Near>, NearError> {
        let record = hub.store.image(target).ok_or(StoreError::UnknownImage { image: target })?;
        let wanted = geometry(target, record.size)?;
        let (got, size) = (wire.len(), record.size);
        let sample = sketch::read(wanted, wire).ok_or(NearError::Sketch { got, size })?;
        // What is nearest to the golden image itself is best mended from its signature.
        let mut best = (Likeness::between(&sample, &self.of(hub, wanted, target).await?), None);
        for image in candidates(hub, target).await? {
            let sketch = match self.of(hub, wanted, image).await {
                Ok(sketch) => sketch,
                Err(error) => {
                    tracing::warn!(%image, %error, "an image is left out of a search for the nearest");
                    continue;
                }
            };
            let found = Likeness::between(&sample, &sketch);
            if found.is_near() && found.equal > best.0.equal {
                best = (found, Some(image));
            }
        }
        let Some(record) = best.1.and_then(|image| hub.store.image(image)) else { return Ok(None) };
        let (subtrees, blocks) = (record.sections.subtrees, record.sections.blocks);
        Ok(Some(Near { image: record.image, size: record.size, subtrees, blocks }))
    }

    async fn of(&self, hub: &Hub, wanted: Geometry, image: ImageId) -> Result<Arc<[u32]>, StoreError> {
        // Held while a sketch is read: a crowd of nodes reads each once, and none holds more than one section.
        let mut kept = self.kept.lock().await;
        if let Some(sketch) = kept.get(&(image, wanted.size())) {
            return Ok(sketch.clone());
        }
        let section = hub.store.block_hashes(image).await?;
        let hashes = BlockHashes::new(&section);
        let sample = |block| hashes.get(block).map_or(0, sketch::sample);
        let sketch: Arc<[u32]> = sketch::positions(wanted).map(sample).collect();
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert((image, wanted.size()), sketch.clone());
        Ok(sketch)
    }
}

/// The images of the last releases of the target's names, the newest first.
async fn candidates(hub: &Hub, target: ImageId) -> Result<Vec<ImageId>, CatalogError> {
    let releases = hub.catalog.releases().await?;
    let wanted = releases.iter().filter(|row| row.manifest.image == target);
    let names: BTreeSet<_> = wanted.map(|row| &row.manifest.release.name).collect();
    let mut seen = BTreeSet::from([target]);
    let named = releases.iter().filter(|row| names.contains(&row.manifest.release.name));
    let images = named.map(|row| row.manifest.image);
    Ok(images.filter(|image| hub.store.image(*image).is_some() && seen.insert(*image)).take(CANDIDATES).collect())
}

fn geometry(image: ImageId, size: u64) -> Result<Geometry, StoreError> {
    let damaged = |error: GeometryError| StoreError::damaged(image.0, error.to_string());
    Geometry::new(size).map_err(damaged)
}
