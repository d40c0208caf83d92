//! What an image that no release knows came from: the release that it is nearest to. It then counts as that one, drifted, and
//! is updated by that one's plans, instead of from the signature alone.
//!
//! ```text
//! a sample of the active slot ─▶ the server's nearest release ─▶ its subtrees ─▶ regions that differ
//!                                                  its blocks, of those regions ─▶ few enough: a [`Base`]
//! ```
//! The usual case is a golden image that somebody wrote to a disk by hand and mounted read-write. Nothing here is proof: what
//! is wrongly taken for the base's is found by the read-back.

use std::path::PathBuf;
use std::sync::Arc;

use goldsync_proto::block::{Geometry, Run, byte_of};
use goldsync_proto::digest::{DIGEST_LEN, ImageId};
use goldsync_proto::image::region_hash;
use goldsync_proto::limits::BLOCK;
use goldsync_proto::signature::{block_hash, read_subtrees};
use goldsync_proto::sketch;
use goldsync_proto::wire::{Answer, Near, Request};
use tokio_util::sync::CancellationToken;

use crate::fetch::{self, entries};
use crate::job::{Base, Hashes, JobError, on_threads};
use crate::link::Link;
use crate::scratch::Words;
use crate::slot::{Source, with_room};
use crate::stage::StageError;
use crate::verify::RegionHash;

/// A slot whose image nobody knows.
#[derive(Debug)]
pub struct Stranger {
    /// The slot.
    pub active: Arc<Source>,
    /// Bytes of it that were hashed.
    pub hashed: u64,
    /// The hashes of their regions.
    pub regions: Vec<RegionHash>,
    /// The image wanted.
    pub target: ImageId,
    /// Its geometry.
    pub wanted: Geometry,
    /// Threads for hashing.
    pub threads: usize,
    /// Set to stop.
    pub stop: CancellationToken,
    /// Where words for each block may lie.
    pub folder: PathBuf,
}

/// Looks for the release that the slot's image came from, `None` if there is none that is near. A server that cannot tell, or
/// tells nonsense, costs what it would have saved, not the update.
pub async fn find(link: &Link, stranger: Stranger) -> Result<Option<Base>, JobError> {
    match look(link, Arc::new(stranger)).await {
        Err(error) if error.is_no_help() => {
            tracing::warn!(%error, "no nearest release from the server; going by the signature");
            Ok(None)
        }
        found => found,
    }
}

async fn look(link: &Link, stranger: Arc<Stranger>) -> Result<Option<Base>, JobError> {
    let sample = on_stranger(&stranger, Stranger::sketch).await?;
    let Some(near) = ask(link, stranger.target, &sample).await? else { return Ok(None) };
    let Some(geometry) = stranger.acceptable(&near) else { return Ok(None) };
    let max = u64::from(geometry.regions()) * DIGEST_LEN as u64;
    let section = fetch::object(link, near.subtrees, max, "the subtrees of the nearest release").await?;
    let Some(golden) = read_subtrees(geometry, near.image, &section) else { return Ok(None) };
    let differing = on_stranger(&stranger, move |stranger| stranger.differing(geometry, &golden)).await?;
    let hashes = Words::temporary(&stranger.folder, geometry.blocks());
    let hashes = hashes.map_err(|error| StageError::Scratch { blocks: geometry.blocks(), error })?;
    entries::fetch(link, &stranger.stop, near.blocks, &hashes, &differing).await?;
    let (drifted, hashes) = on_stranger(&stranger, move |stranger| {
        let drifted = stranger.drifted(&differing, &hashes)?;
        Ok((drifted, hashes))
    })
    .await?;
    tracing::info!(image = %near.image, drifted, "the active slot is nearest to that image");
    let blocks = Some(Hashes::Asked(hashes));
    let regions = stranger.regions.clone();
    Ok(sketch::is_near(drifted, geometry.blocks()).then_some(Base { image: near.image, blocks, regions }))
}

async fn ask(link: &Link, target: ImageId, sample: &[u8]) -> Result<Option<Near>, JobError> {
    let request = Request::Nearest { target, sketch: sample.len() as u64 };
    match link.ask_with(&request, sample).await? {
        (Answer::Nearest { near }, _) => Ok(near),
        (other, _) => Err(fetch::unexpected("a request for the nearest release", &other).into()),
    }
}

async fn on_stranger<T: Send + 'static>(
    stranger: &Arc<Stranger>,
    work: impl FnOnce(&Stranger) -> Result<T, JobError> + Send + 'static,
) -> Result<T, JobError> {
    let stranger = stranger.clone();
    let done = tokio::task::spawn_blocking(move || work(&stranger)).await;
    done.map_err(|error| JobError::Worker(error.to_string()))?
}

impl Stranger {
    fn sketch(&self) -> Result<Vec<u8>, JobError> {
        let mut bytes = vec![0; BLOCK as usize];
        let mut sample = |block| {
            if byte_of(block + 1) > self.active.len() {
                return Ok(0);
            }
            self.active.read_at(byte_of(block), &mut bytes).map_err(StageError::from)?;
            Ok::<_, JobError>(sketch::sample(block_hash(&bytes)))
        };
        let samples: Vec<u32> = sketch::positions(self.wanted).map(&mut sample).collect::<Result<_, _>>()?;
        Ok(sketch::write(&samples))
    }

    /// The geometry of what the server offers, if it can be a base here: not what is wanted itself, and all of it in the slot.
    fn acceptable(&self, near: &Near) -> Option<Geometry> {
        let geometry = Geometry::new(near.size).ok().filter(|_| near.image != self.target);
        geometry.filter(|geometry| geometry.size() <= self.active.len())
    }

    /// The blocks of the regions that are not as `golden` says.
    fn differing(&self, geometry: Geometry, golden: &[RegionHash]) -> Result<Vec<Run>, JobError> {
        // What was hashed as an image of the same size needs no second look.
        let known = (self.hashed == geometry.size()).then_some(&self.regions);
        let differs = on_threads(self.threads, &self.stop, geometry.regions(), |region| {
            let ours = match known.and_then(|known| known.get(region as usize)) {
                Some(hash) => *hash,
                None => self.with(geometry.region_blocks(region), |bytes| region_hash(geometry, region, bytes))?,
            };
            Ok(golden.get(region as usize) != Some(&ours))
        })?;
        let regions = (0_u32..).zip(differs).filter(|(_, differs)| *differs).map(|(region, _)| region);
        Ok(regions.map(|region| geometry.region_blocks(region)).map(|run| (run.start, run.end - run.start)).collect())
    }

    /// How many blocks of `runs` are not as `hashes` says.
    fn drifted(&self, runs: &[Run], hashes: &Words) -> Result<u32, JobError> {
        let drifted = on_threads(self.threads, &self.stop, runs.len() as u32, |at| {
            let Some((first, count)) = runs.get(at as usize).copied() else { return Ok(0) };
            self.with(first..first + count, |bytes| {
                let blocks = (first..).zip(bytes.chunks_exact(BLOCK as usize));
                blocks.filter(|(block, bytes)| hashes.get(*block) != block_hash(bytes)).count() as u32
            })
        })?;
        Ok(drifted.into_iter().sum())
    }

    fn with<T>(&self, blocks: std::ops::Range<u32>, look: impl FnOnce(&[u8]) -> T) -> Result<T, JobError> {
        with_room(byte_of(blocks.end - blocks.start) as usize, |bytes| {
            self.active.read_at(byte_of(blocks.start), bytes).map_err(StageError::from)?;
            Ok(look(bytes))
        })
    }
}
