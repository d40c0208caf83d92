//! Getting what is missing: objects by range, blocks by number, packs by plan.
//!
//! Nothing here is retried on the same connection: the caller's next run goes on from what is staged. Every length is held
//! against its bound before anything is allocated; what names itself by a hash is checked against it.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use goldsync_proto::block::{Run, byte_of};
use goldsync_proto::digest::{Digest, ImageId};
use goldsync_proto::limits::{BLOCK, BLOCKS_PER_REQUEST, BLOCKS_RUNS_MAX, OBJECT_RANGE_MAX};
use goldsync_proto::pack::{self, Chain, FRAME_HEAD, PackError};
use goldsync_proto::release::Section;
use goldsync_proto::wire::{Answer, Request};

use crate::job::{Job, JobError};
use crate::link::{Body, Link};

pub mod entries;
pub mod grains;
pub mod packs;

/// Requests under way at once: enough to hide the way there and back, few enough to keep memory small.
const REQUESTS: usize = 3;

/// What the server sent is not what it should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// Another kind of answer.
    #[error("the server answers {what} with {got}; do the versions of agent and server fit?")]
    Answer {
        /// The request.
        what: &'static str,
        /// What came.
        got: String,
    },
    /// Fewer or more bytes than asked for.
    #[error("{what}: {got} bytes offered, {expected} expected")]
    Length {
        /// What was asked for.
        what: &'static str,
        /// As offered.
        got: u64,
        /// As signed, or asked for.
        expected: u64,
    },
    /// Bytes that do not hash to their name.
    #[error("{what} does not hash to its name {name}; the server's store is damaged, or it lies")]
    Name {
        /// What was asked for.
        what: &'static str,
        /// By which name.
        name: Digest,
    },
    /// A frame that does not decode.
    #[error("blocks from {first} on: {error}")]
    Frame {
        /// The first block of the frame.
        first: u32,
        /// Why.
        error: PackError,
    },
    /// Blocks that were not asked for, or none where some were.
    #[error("{got} blocks arrived where {expected} were asked for")]
    Blocks {
        /// How many came.
        got: u64,
        /// How many were asked for.
        expected: u64,
    },
}

/// A range of an object, as a stream of bytes still to be read.
pub async fn range(link: &Link, name: Digest, offset: u64, length: u64) -> Result<Body, JobError> {
    let (answer, body) = link.ask(&Request::Object { name, offset, length }).await?;
    match answer {
        Answer::Object { length: got } if got == length => Ok(body),
        Answer::Object { length: got } => Err(FetchError::Length { what: "an object", got, expected: length }.into()),
        other => Err(unexpected("a request for an object", &other).into()),
    }
}

/// A whole object, proven by its name.
pub async fn object(link: &Link, section: Section, max: u64, what: &'static str) -> Result<Vec<u8>, JobError> {
    let Section { name, length } = section;
    if length > max {
        return Err(FetchError::Length { what, got: length, expected: max }.into());
    }
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < length {
        let part = (length - bytes.len() as u64).min(OBJECT_RANGE_MAX);
        let mut body = range(link, name, bytes.len() as u64, part).await?;
        bytes.append(&mut body.bytes(part, OBJECT_RANGE_MAX, what).await?);
    }
    if Digest::of(&bytes) == name { Ok(bytes) } else { Err(FetchError::Name { what, name }.into()) }
}

/// Says what came instead.
pub fn unexpected(what: &'static str, answer: &Answer) -> FetchError {
    let got = format!("{answer:?}").chars().take(80).collect();
    FetchError::Answer { what, got }
}

/// Blocks of `image`, handed to `take` in pieces `(first block, bytes)`, on threads, in any order.
pub async fn blocks(
    job: &Arc<Job>,
    image: ImageId,
    runs: &[Run],
    take: impl Fn(&Job, u32, &[u8]) -> Result<(), JobError> + Clone + Send + 'static,
) -> Result<(), JobError> {
    let requests = stream::iter(split(runs)).map(|runs| one_request(job, image, runs, take.clone()));
    requests.buffer_unordered(REQUESTS).try_collect::<()>().await
}

/// Cuts runs into requests that keep to the protocol's bounds.
fn split(runs: &[Run]) -> Vec<Vec<Run>> {
    let (mut requests, mut request, mut room) = (Vec::new(), Vec::new(), BLOCKS_PER_REQUEST as u32);
    for (mut first, mut count) in runs.iter().copied() {
        while count > 0 {
            let part = count.min(room);
            request.push((first, part));
            (first, count, room) = (first + part, count - part, room - part);
            if room == 0 || request.len() == BLOCKS_RUNS_MAX {
                requests.push(std::mem::take(&mut request));
                room = BLOCKS_PER_REQUEST as u32;
            }
        }
    }
    if !request.is_empty() {
        requests.push(request);
    }
    requests
}

async fn one_request(
    job: &Arc<Job>,
    image: ImageId,
    runs: Vec<Run>,
    take: impl Fn(&Job, u32, &[u8]) -> Result<(), JobError> + Clone + Send + 'static,
) -> Result<(), JobError> {
    job.go_on()?;
    let expected: u64 = runs.iter().map(|(_, count)| u64::from(*count)).sum();
    let (answer, mut body) = job.link.ask(&Request::Blocks { image, runs: runs.clone() }).await?;
    match answer {
        Answer::Blocks { blocks } if blocks == expected => {}
        Answer::Blocks { blocks } => return Err(FetchError::Blocks { got: blocks, expected }.into()),
        other => return Err(unexpected("a request for blocks", &other).into()),
    }
    let (mut places, mut chain) = (Places { runs, at: 0, done: 0 }, Chain::default());
    let mut got = 0;
    while got < expected {
        let raw = frame(&mut body, &mut chain, places.next()).await?;
        let blocks = raw.len() as u64 / BLOCK;
        got += blocks;
        let pieces = places.take(blocks as u32);
        if got > expected || !(raw.len() as u64).is_multiple_of(BLOCK) {
            return Err(FetchError::Blocks { got, expected }.into());
        }
        let take = take.clone();
        job.blocking(move |job| {
            let mut from = 0;
            for (first, count) in pieces {
                let end = from + byte_of(count) as usize;
                take(job, first, raw.get(from..end).unwrap_or(&[]))?;
                from = end;
            }
            Ok(())
        })
        .await?;
    }
    Ok(body.end("the blocks").await?)
}

/// Reads one literal frame, the next of its chain, which begins with block `first`.
async fn frame(body: &mut Body, chain: &mut Chain, first: u32) -> Result<Vec<u8>, JobError> {
    let broken = |error| FetchError::Frame { first, error };
    let mut head = [0; FRAME_HEAD];
    body.read_exact(&mut head, "a frame of blocks").await?;
    let head = pack::frame_head(head).map_err(broken)?;
    let wire = body.bytes(head.wire_len as u64, head.wire_len as u64, "a frame of blocks").await?;
    let raw = pack::decompress(head.codec, &wire, head.raw_len, chain.prefix()).map_err(broken)?;
    chain.push(&raw);
    Ok(raw)
}

/// Where the blocks of an answer belong: the request's runs, walked in order.
struct Places {
    runs: Vec<Run>,
    at: usize,
    done: u32,
}

impl Places {
    fn next(&self) -> u32 {
        self.runs.get(self.at).map_or(0, |(first, _)| first + self.done)
    }

    fn take(&mut self, mut count: u32) -> Vec<Run> {
        let mut pieces = Vec::new();
        while let Some((first, len)) = self.runs.get(self.at).copied()
            && count > 0
        {
            let part = count.min(len - self.done);
            pieces.push((first + self.done, part));
            (self.done, count) = (self.done + part, count - part);
            if self.done == len {
                (self.at, self.done) = (self.at + 1, 0);
            }
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_keep_to_the_bounds_and_lose_nothing() {
        let runs: Vec<Run> = (0..3000).map(|i| (i * 10, 1 + i % 7)).chain([(100_000, 10_000)]).collect();
        let requests = split(&runs);
        for request in &requests {
            assert!(request.len() <= BLOCKS_RUNS_MAX);
            assert!(request.iter().map(|(_, count)| u64::from(*count)).sum::<u64>() <= BLOCKS_PER_REQUEST);
        }
        let flat = |runs: &[Run]| runs.iter().flat_map(|(first, count)| *first..first + count).collect::<Vec<_>>();
        assert_eq!(flat(&requests.concat()), flat(&runs));
    }

    #[test]
    fn an_answer_is_laid_out_over_the_runs() {
        let mut places = Places { runs: vec![(5, 2), (9, 3)], at: 0, done: 0 };
        assert_eq!((places.next(), places.take(3)), (5, vec![(5, 2), (9, 1)]));
        assert_eq!((places.next(), places.take(9)), (10, vec![(10, 2)]));
    }
}
