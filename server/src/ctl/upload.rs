//! Sending an image: only the blocks that the server lacks, in frames, a few on the way at a time.
//!
//! ```text
//! begin ──▶ blocks section ──▶ missing runs ──▶ frames of 1 MiB ──▶ complete ──▶ the server's own sections
//!   stored already? ────────────────────────────────────────────────▶
//! ```
//! The server keeps every frame that it answered for. Whoever begins again sends the list again and is asked only for
//! what is still missing: resuming is not a case of its own.

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use goldsync_proto::block::{Geometry, Run};
use goldsync_proto::limits::BLOCK;
use goldsync_proto::signature::Signature;
use reqwest::StatusCode;
use tokio::sync::mpsc;

use super::Desk;
use super::client::Refusal;
use super::fail::{Code, Failure, Outcome};
use super::image::Image;
use super::progress::{Manner, Stage, Waiting};
use super::table::plain;
use crate::api::types::{Problem, Uploaded};
use crate::golden::prepare::UploadFrame;

/// Frames on the way at a time: enough to keep a long line full.
const IN_FLIGHT: usize = 4;
/// How often to begin with the list, at most.
const ROUNDS: u32 = 4;

/// What was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Blocks that the server lacked.
    pub blocks: u64,
    /// Bytes that they took on the way.
    pub bytes: u64,
}

/// Why a round of an upload ended early.
enum Stopped {
    /// The server lost the thread (a restart), or asks for more than it first thought: begin again with the list.
    Again(Problem),
    /// For good.
    Over(Failure),
}

impl From<Failure> for Stopped {
    fn from(failure: Failure) -> Self {
        Self::Over(failure)
    }
}

impl From<Refusal> for Stopped {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Problem(StatusCode::CONFLICT, problem) => Self::Again(problem),
            refusal => Self::Over(refusal.into()),
        }
    }
}

/// Brings the server to hold the image, whole and proven.
pub async fn run(desk: &Desk, manner: Manner, image: &Arc<Image>, signature: &Signature) -> Outcome<(Sent, Uploaded)> {
    let mut sent = Sent::default();
    for left in (0..ROUNDS).rev() {
        match round(desk, manner, image, signature, &mut sent).await {
            Ok(uploaded) => return Ok((sent, uploaded)),
            Err(Stopped::Over(failure)) => return Err(failure),
            Err(Stopped::Again(problem)) => {
                image.unchanged()?;
                if left == 0 {
                    return Err(Refusal::Problem(StatusCode::CONFLICT, problem).into());
                }
                manner.note(&format!("  again    {}", plain(&problem.message)));
            }
        }
    }
    Err(Failure::new(Code::Failed, "the upload was never tried"))
}

async fn round(
    desk: &Desk,
    manner: Manner,
    image: &Arc<Image>,
    signature: &Signature,
    sent: &mut Sent,
) -> Result<Uploaded, Stopped> {
    let (id, geometry) = (signature.image, image.geometry());
    let stored = {
        let _waiting = Waiting::begin(manner, "the server looks whether it holds the image, whole");
        desk.client.begin_upload(id, geometry.size()).await?.stored
    };
    if !stored {
        let missing = {
            let _waiting = Waiting::begin(manner, "the server looks what it holds already");
            desk.client.missing(id, Bytes::copy_from_slice(&signature.blocks)).await?
        };
        let blocks = count(geometry, &missing.runs)?;
        if blocks > 0 {
            desk.interrupted.leaves("what was sent is kept, nothing is published; the same command goes on from there");
            let stage = Stage::begin(manner, "send", blocks * BLOCK);
            send(desk, &stage, image, signature, missing.runs, sent).await?;
            stage.end();
        }
        image.unchanged()?;
    }
    let _waiting = Waiting::begin(manner, "the server reads the image back");
    Ok(desk.client.complete_upload(id).await??)
}

/// How many blocks the server asks for, if the image has them all and none twice.
fn count(geometry: Geometry, runs: &[Run]) -> Outcome<u64> {
    let (mut blocks, mut end) = (0, 0);
    for &(first, count) in runs {
        if count == 0 || first < end || !geometry.holds(first, count) {
            let message = format!(
                "the server asks for {count} blocks from block {first}, which this image does not have in that order"
            );
            return Err(Failure::new(Code::Server, message).remedy("compare `goldsync --version` with the server's"));
        }
        end = first + count;
        blocks += u64::from(count);
    }
    Ok(blocks)
}

/// Sends the frames as they are made, and counts those that the server took.
async fn send(
    desk: &Desk,
    stage: &Stage,
    image: &Arc<Image>,
    signature: &Signature,
    runs: Vec<Run>,
    sent: &mut Sent,
) -> Result<(), Stopped> {
    let (id, image) = (signature.image, image.clone());
    let (ready, frames) = mpsc::channel::<Outcome<UploadFrame>>(IN_FLIGHT);
    // Ends by itself when nobody takes frames any more.
    let make = move || image.frames(&runs).try_for_each(|frame| ready.blocking_send(frame).map_err(|_| broken_off()));
    let maker = tokio::task::spawn_blocking(make);
    let frames = stream::unfold(frames, async |mut frames| Some((frames.recv().await?, frames)));
    let sizes = frames.map(|frame| async {
        let UploadFrame { first, blocks, bytes } = frame?;
        let length = bytes.len() as u64;
        desk.client.frame(id, first, Bytes::from(bytes)).await?;
        Ok::<_, Stopped>((u64::from(blocks), length))
    });
    let mut sizes = pin!(sizes.buffer_unordered(IN_FLIGHT));
    while let Some((blocks, bytes)) = sizes.try_next().await? {
        stage.advance(blocks * BLOCK);
        *sent = Sent { blocks: sent.blocks + blocks, bytes: sent.bytes + bytes };
    }
    // A channel that closed because its maker died has not carried everything.
    Ok(maker.await.map_err(|_| broken_off())??)
}

fn broken_off() -> Failure {
    Failure::new(Code::Failed, "the making of frames broke off")
        .remedy("run the same command again; what was sent is kept")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_blocks_that_the_image_has_are_sent_in_order_and_once() {
        let geometry = Geometry::new(10 * BLOCK).unwrap();
        assert_eq!(count(geometry, &[(0, 2), (2, 1), (9, 1)]), Ok(4));
        assert_eq!(count(geometry, &[]), Ok(0));
        for runs in [vec![(9, 2)], vec![(3, 0)], vec![(4, 2), (5, 1)], vec![(u32::MAX, 1)], vec![(5, u32::MAX)]] {
            assert_eq!(count(geometry, &runs).unwrap_err().code, Code::Server, "{runs:?}");
        }
    }
}
