//! What nodes fetch: signed metadata, ranges of objects, plans, blocks.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use goldsync_proto::block::Run;
use goldsync_proto::digest::{Digest, ImageId};
use goldsync_proto::grain::{GrainHash, read_masks};
use goldsync_proto::limits::{BLOCKS_PER_REQUEST, OBJECT_RANGE_MAX};
use goldsync_proto::refusal::{Reason, Refusal};
use goldsync_proto::wire::{Answer, Prefer, TrustFile};

use super::{Body, Reply, Session, internal};
use crate::near::NearError;
use crate::packs::{PlanError, PlanState};
use crate::store::{Blocks, StoreError};
use crate::trust::{Fault, TrustError};

/// An object is read and sent in pieces of this size, one of them read ahead.
const PIECE: u64 = 512 << 10;

impl Session {
    pub(super) fn trust(&self, have: &BTreeMap<String, u64>, want: &[String]) -> Result<Reply, Refusal> {
        let files = self.hub.trust.newer(have, want).map_err(distrust)?;
        let name = |(name, bytes): &(String, Bytes)| TrustFile { name: name.clone(), length: bytes.len() as u64 };
        let answer = Answer::Trust { files: files.iter().map(name).collect() };
        let bodies = stream::iter(files.into_iter().map(|(_, bytes)| Ok(bytes)));
        Ok(Reply { answer, body: Body::Pieces(bodies.boxed()) })
    }

    pub(super) async fn object(&self, name: Digest, offset: u64, length: u64) -> Result<Reply, Refusal> {
        if length > OBJECT_RANGE_MAX {
            let detail = format!("{length} bytes asked for, at most {OBJECT_RANGE_MAX} allowed; ask in parts");
            return Err(Refusal::new(Reason::BadRange, detail));
        }
        let objects = self.hub.store.objects().clone();
        let whole = objects.len(name).await.map_err(store)?;
        if offset > whole {
            let detail = format!("byte {offset} is outside object {name}, which has {whole} bytes");
            return Err(Refusal::new(Reason::BadRange, detail));
        }
        let end = whole.min(offset.saturating_add(length));
        let starts = (offset..end).step_by(PIECE as usize);
        let pieces = stream::iter(starts).map(move |start| {
            let objects = objects.clone();
            async move { objects.read(name, start..end.min(start + PIECE)).await.map_err(|error| broken(&error)) }
        });
        Ok(Reply { answer: Answer::Object { length: end - offset }, body: Body::Pieces(pieces.buffered(2).boxed()) })
    }

    pub(super) async fn plan(&self, base: Option<ImageId>, target: ImageId, prefer: Prefer) -> Result<Reply, Refusal> {
        let state = self.hub.packs.plan(base, target, prefer).await.map_err(|error| match error {
            PlanError::UnknownBase { .. } => Refusal::new(Reason::UnknownBase, error.to_string()),
            PlanError::UnknownTarget { .. } => Refusal::new(Reason::NotFound, error.to_string()),
            PlanError::TooLarge { .. } => Refusal::new(Reason::PlanTooLarge, error.to_string()),
            error => internal("making a plan", error),
        })?;
        Ok(Reply::from(match state {
            PlanState::Ready { name, length } => Answer::Plan { name, length },
            PlanState::Making { retry_ms } => Answer::Making { retry_ms },
        }))
    }

    pub(super) async fn blocks(&self, image: ImageId, runs: Vec<Run>) -> Result<Reply, Refusal> {
        let blocks = self.hub.store.blocks(image, runs).await.map_err(store)?;
        Ok(Reply { answer: Answer::Blocks { blocks: blocks.count }, body: pieces(blocks) })
    }

    pub(super) async fn grain_hashes(
        &self,
        image: ImageId,
        (seed, width): (u32, u8),
        mask: u8,
        runs: Vec<Run>,
    ) -> Result<Reply, Refusal> {
        let hash = GrainHash::new(seed, width).map_err(|error| Refusal::new(Reason::BadRequest, error.to_string()))?;
        if mask == 0 {
            return Err(Refusal::new(Reason::BadRequest, "a mask of 0 names no grain; 255 names all"));
        }
        let hashes = self.hub.store.grain_hashes(image, runs, hash, mask).await.map_err(store)?;
        Ok(Reply { answer: Answer::GrainHashes { grains: hashes.count }, body: pieces(hashes) })
    }

    pub(super) async fn grains(&self, image: ImageId, runs: Vec<Run>, masks: &[u8]) -> Result<Reply, Refusal> {
        let blocks: usize = runs.iter().map(|(_, count)| *count as usize).sum();
        let bound = blocks.min(BLOCKS_PER_REQUEST as usize + 1);
        let masks = read_masks(masks, bound).map_err(|error| Refusal::new(Reason::BadRequest, error.to_string()))?;
        let grains = self.hub.store.grains(image, runs, masks).await.map_err(store)?;
        Ok(Reply { answer: Answer::Grains { grains: grains.count }, body: pieces(grains) })
    }

    pub(super) async fn nearest(&self, target: ImageId, sketch: &[u8]) -> Result<Reply, Refusal> {
        let near = self.hub.near.nearest(&self.hub, target, sketch).await.map_err(|error| match error {
            NearError::Sketch { .. } => Refusal::new(Reason::BadRequest, error.to_string()),
            NearError::Store(error) => store(error),
            NearError::Catalog(error) => internal("looking for the nearest image", error),
        })?;
        Ok(Answer::Nearest { near }.into())
    }

    pub(super) fn trees(&self, image: ImageId) -> Result<Reply, Refusal> {
        let record = self.hub.store.image(image).ok_or_else(|| store(StoreError::UnknownImage { image }))?;
        Ok(Answer::Trees { trees: record.derived.iter().map(|derived| derived.tree.clone()).collect() }.into())
    }
}

fn pieces(blocks: Blocks) -> Body {
    Body::Pieces(blocks.frames.map(|frame| frame.map_err(|error| broken(&error))).boxed())
}

/// A piece that could not be read after the answer had begun.
fn broken(error: &StoreError) -> String {
    tracing::error!(%error, "an answer is broken off");
    error.to_string()
}

fn store(error: StoreError) -> Refusal {
    let reason = match error {
        StoreError::NotFound { .. } | StoreError::UnknownImage { .. } => Reason::NotFound,
        StoreError::BadRange { .. }
        | StoreError::BadRun { .. }
        | StoreError::BadMasks { .. }
        | StoreError::TooMany { .. } => Reason::BadRange,
        StoreError::Stopping => Reason::Busy,
        error => return internal("reading the store", error),
    };
    Refusal::new(reason, error.to_string())
}

fn distrust(error: TrustError) -> Refusal {
    match error.fault() {
        Fault::NotFound => Refusal::new(Reason::NotFound, error.to_string()),
        Fault::Request | Fault::Conflict => Refusal::new(Reason::BadRequest, error.to_string()),
        Fault::Local | Fault::Distrust => internal("reading the signed metadata", error),
    }
}
