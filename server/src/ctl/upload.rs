//! Sending an image: only the blocks that the server lacks, in frames, a few on the way at a time.
//!
//! ```text
//! begin ──▶ blocks section ──▶ missing runs ──▶ frames of 256 blocks ──▶ complete ──▶ the server's own sections
//!   stored already? ─────────────────────────────────────────────────────▶
//! ```
//! The server keeps every frame that it answered for. Whoever begins again sends the list again and is asked only for
//! what is still missing: resuming is not a case of its own.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use goldsync_proto::block::{Geometry, Run};
use goldsync_proto::limits::{BLOCK, PACK_RAW_MAX};
use goldsync_proto::pack;
use goldsync_proto::signature::{BlockHashes, Signature};
use std::sync::Arc;

use super::Desk;
use super::fail::{Code, Failure, Outcome};
use super::image::Image;
use super::progress::{Manner, Stage, Waiting};
use crate::api::types::Uploaded;

/// Blocks in a frame.
const FRAME_BLOCKS: usize = PACK_RAW_MAX / BLOCK as usize;
/// Frames on the way at a time: enough to keep a long line full, 2 MiB of memory each.
const IN_FLIGHT: usize = 4;
/// How hard to compress. Nodes fetch these frames as they are, so that effort here is spent once and saved often.
const LEVEL: i32 = 9;

/// What was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Blocks that the server lacked.
    pub blocks: u64,
    /// Bytes that they took on the way.
    pub bytes: u64,
}

/// Brings the server to hold the image, whole and proven.
pub async fn run(
    desk: &Desk,
    manner: Manner,
    image: &Arc<Image>,
    signature: &Arc<Signature>,
) -> Outcome<(Sent, Uploaded)> {
    let (id, geometry) = (signature.image, image.geometry());
    let mut sent = Sent::default();
    if !desk.client.begin_upload(id, geometry.size()).await?.stored {
        let missing = {
            let _waiting = Waiting::begin(manner, "the server looks what it holds already");
            desk.client.missing(id, Bytes::copy_from_slice(&signature.blocks)).await?
        };
        let blocks = flatten(geometry, &missing.runs)?;
        sent = send(desk, manner, image, signature, blocks).await?;
        image.unchanged()?;
    }
    let _waiting = Waiting::begin(manner, "the server reads the image back");
    Ok((sent, desk.client.complete_upload(id).await?))
}

/// The block numbers of runs that a server asked for, or why they cannot be.
fn flatten(geometry: Geometry, runs: &[Run]) -> Outcome<Vec<u32>> {
    let mut blocks = Vec::new();
    let mut end = 0;
    for &(first, count) in runs {
        if count == 0 || first < end || !geometry.holds(first, count) {
            let message = format!(
                "the server asks for {count} blocks from block {first}, which this image does not have in that order"
            );
            return Err(Failure::new(Code::Server, message).remedy("compare `goldsync --version` with the server's"));
        }
        end = first + count;
        blocks.extend(first..end);
    }
    Ok(blocks)
}

async fn send(
    desk: &Desk,
    manner: Manner,
    image: &Arc<Image>,
    signature: &Arc<Signature>,
    blocks: Vec<u32>,
) -> Outcome<Sent> {
    if blocks.is_empty() {
        return Ok(Sent::default());
    }
    desk.interrupted.leaves("what was sent is kept, nothing is published; the same command goes on from there");
    let stage = Stage::begin(manner, "send", blocks.len() as u64 * BLOCK);
    let frames = blocks.chunks(FRAME_BLOCKS).map(<[u32]>::to_vec);
    let sizes: Vec<u64> = stream::iter(frames)
        .map(|blocks| frame(desk, &stage, image, signature, blocks))
        .buffered(IN_FLIGHT)
        .try_collect()
        .await?;
    stage.end();
    Ok(Sent { blocks: blocks.len() as u64, bytes: sizes.iter().sum() })
}

/// Reads, proves, compresses and sends one frame; answers its size on the way.
async fn frame(
    desk: &Desk,
    stage: &Stage,
    image: &Arc<Image>,
    signature: &Arc<Signature>,
    blocks: Vec<u32>,
) -> Outcome<u64> {
    let (first, raw) = (blocks.first().copied().unwrap_or_default(), blocks.len() as u64 * BLOCK);
    let (image, signature, id) = (image.clone(), signature.clone(), signature.image);
    let made = tokio::task::spawn_blocking(move || -> Outcome<Vec<u8>> {
        let bytes = image.read_blocks(blocks.into_iter(), BlockHashes::new(&signature.blocks))?;
        Ok(pack::write_frame(&bytes, LEVEL))
    });
    let frame =
        made.await.map_err(|error| Failure::new(Code::Failed, format!("a frame could not be made: {error}")))??;
    let length = frame.len() as u64;
    desk.client.frame(id, first, Bytes::from(frame)).await?;
    stage.advance(raw);
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_blocks_that_the_image_has_are_sent_in_order_and_once() {
        let geometry = Geometry::new(10 * BLOCK).unwrap();
        assert_eq!(flatten(geometry, &[(0, 2), (2, 1), (9, 1)]).unwrap(), [0, 1, 2, 9]);
        assert_eq!(flatten(geometry, &[]), Ok(vec![]));
        for runs in [vec![(9, 2)], vec![(3, 0)], vec![(4, 2), (5, 1)], vec![(u32::MAX, 1)], vec![(5, u32::MAX)]] {
            let failure = flatten(geometry, &runs).unwrap_err();
            assert_eq!(failure.code, Code::Server, "{runs:?}");
        }
    }
}
