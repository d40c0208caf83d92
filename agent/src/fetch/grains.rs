//! Getting grains: the hashes of all grains of some blocks, and those grains that are not here.
//!
//! What arrives is counted against what was asked for, grain by grain; whether it is golden is for the block's own hash to
//! say, once the block is put together.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use goldsync_proto::block::{Run, runs_of};
use goldsync_proto::digest::ImageId;
use goldsync_proto::grain::write_masks;
use goldsync_proto::limits::{BLOCKS_PER_REQUEST, BLOCKS_RUNS_MAX, GRAIN};
use goldsync_proto::pack::Chain;
use goldsync_proto::wire::{Answer, Request};

use super::{FetchError, REQUESTS, frame, split, unexpected};
use crate::job::{Job, JobError};

/// The hashes of those grains of `runs` that `mask` names, in order, `width` bytes each.
pub async fn hashes(
    job: &Arc<Job>,
    image: ImageId,
    (seed, width): (u32, u8),
    mask: u8,
    runs: &[Run],
) -> Result<Vec<u8>, JobError> {
    let requests = stream::iter(split(runs)).map(|runs| async move {
        job.go_on()?;
        let blocks: u64 = runs.iter().map(|(_, count)| u64::from(*count)).sum();
        let expected = blocks * u64::from(mask.count_ones());
        let (answer, mut body) = job.link.ask(&Request::GrainHashes { image, seed, width, mask, runs }).await?;
        match answer {
            Answer::GrainHashes { grains } if grains == expected => {}
            Answer::GrainHashes { grains } => return Err(FetchError::Blocks { got: grains, expected }.into()),
            other => return Err(unexpected("a request for hashes of grains", &other).into()),
        }
        let length = expected * u64::from(width);
        let bytes = body.bytes(length, length, "hashes of grains").await?;
        body.end("hashes of grains").await?;
        Ok::<_, JobError>(bytes)
    });
    requests.buffered(REQUESTS).try_concat().await
}

/// Blocks and the grains of each that are asked for.
pub type Lacking = Vec<(u32, u8)>;

/// Those grains of blocks that their masks name, handed to `take` block by block, on threads, in any order.
pub async fn lacking(
    job: &Arc<Job>,
    image: ImageId,
    lacking: &[(u32, u8)],
    take: impl Fn(&Job, u32, u8, &[u8]) -> Result<(), JobError> + Clone + Send + 'static,
) -> Result<(), JobError> {
    let requests = stream::iter(cut(lacking)).map(|lacking| one_request(job, image, lacking, take.clone()));
    requests.buffer_unordered(REQUESTS).try_collect::<()>().await
}

/// Cuts what is lacking into requests that keep to the protocol's bounds.
fn cut(lacking: &[(u32, u8)]) -> Vec<Lacking> {
    let (mut requests, mut request, mut runs): (Vec<Lacking>, Lacking, usize) = (Vec::new(), Vec::new(), 0);
    for &(block, mask) in lacking {
        let goes_on = request.last().is_some_and(|(last, _)| last + 1 == block);
        if request.len() as u64 == BLOCKS_PER_REQUEST || (!goes_on && runs == BLOCKS_RUNS_MAX) {
            requests.push(std::mem::take(&mut request));
            runs = 0;
        }
        runs += usize::from(!goes_on || request.is_empty());
        request.push((block, mask));
    }
    if !request.is_empty() {
        requests.push(request);
    }
    requests
}

async fn one_request(
    job: &Arc<Job>,
    image: ImageId,
    lacking: Lacking,
    take: impl Fn(&Job, u32, u8, &[u8]) -> Result<(), JobError> + Clone + Send + 'static,
) -> Result<(), JobError> {
    job.go_on()?;
    let runs = runs_of(lacking.iter().map(|(block, _)| *block));
    let wire = write_masks(&lacking.iter().map(|(_, mask)| *mask).collect::<Vec<_>>());
    let expected: u64 = lacking.iter().map(|(_, mask)| u64::from(mask.count_ones())).sum();
    let request = Request::Grains { image, runs, masks: wire.len() as u64 };
    let (answer, mut body) = job.link.ask_with(&request, &wire).await?;
    match answer {
        Answer::Grains { grains } if grains == expected => {}
        Answer::Grains { grains } => return Err(FetchError::Blocks { got: grains, expected }.into()),
        other => return Err(unexpected("a request for grains", &other).into()),
    }
    let mut rest = lacking.into_iter().peekable();
    let mut chain = Chain::default();
    while let Some((first, _)) = rest.peek().copied() {
        let raw = frame(&mut body, &mut chain, first).await?;
        let mut blocks = Vec::new();
        let mut end = 0;
        while end < raw.len()
            && let Some((block, mask)) = rest.next()
        {
            blocks.push((block, mask, end));
            end += mask.count_ones() as usize * GRAIN as usize;
        }
        if end != raw.len() {
            let (got, expected) = ((raw.len() as u64) / GRAIN, end as u64 / GRAIN);
            return Err(FetchError::Blocks { got, expected }.into());
        }
        let take = take.clone();
        job.blocking(move |job| {
            blocks.into_iter().try_for_each(|(block, mask, from)| {
                let end = from + mask.count_ones() as usize * GRAIN as usize;
                take(job, block, mask, raw.get(from..end).unwrap_or(&[]))
            })
        })
        .await?;
    }
    Ok(body.end("the grains").await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_keep_to_the_bounds_and_lose_nothing() {
        let lacking: Lacking =
            (0..9000).map(|at| (if at < 5000 { at * 2 } else { at + 5000 }, 1 + (at % 255) as u8)).collect();
        let requests = cut(&lacking);
        for request in &requests {
            assert!(request.len() as u64 <= BLOCKS_PER_REQUEST);
            assert!(runs_of(request.iter().map(|(block, _)| *block)).len() <= BLOCKS_RUNS_MAX);
        }
        assert_eq!(requests.concat(), lacking);
        assert!(requests.len() <= 6, "{}", requests.len());
        assert_eq!(cut(&[]), Vec::<Lacking>::new());
    }
}
