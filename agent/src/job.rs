//! One staging job: what every step from plan to proof needs, in one place.
//!
//! The job is shared by the async side, which waits for the network, and by threads that read, hash, decode and write. It
//! ends with the standby slot proven or with an error; the active slot is not touched in either case.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use goldsync_proto::block::Geometry;
use goldsync_proto::digest::ImageId;
use goldsync_proto::release::Manifest;
use goldsync_proto::wire::Prefer;
use tokio_util::sync::CancellationToken;

use crate::budget::{Ceiling, OverBudget};
use crate::fetch::FetchError;
use crate::journal::{Blocks, JournalError};
use crate::link::{Link, LinkError};
use crate::scratch::Words;
use crate::slot::give_room_back;
use crate::stage::{Stage, StageError};
use crate::verify::RegionHash;

/// What the active slot is believed to hold.
#[derive(Debug)]
pub struct Base {
    /// The image.
    pub image: ImageId,
    /// Its block hashes, if this node has them.
    pub blocks: Option<Hashes>,
    /// The hashes of its regions, if it was hashed to find out what it is; else empty.
    pub regions: Vec<RegionHash>,
}

/// What the blocks of a base should hash to. Told so that drift is found where it matters; the read-back proves.
#[derive(Debug)]
pub enum Hashes {
    /// All of them, kept since the slot was proven.
    Kept(Blocks),
    /// Asked of the server, those of regions that differ; elsewhere zero: the slot is as it should be.
    Asked(Words),
}

impl Hashes {
    /// The hash of block `index`, if it is known.
    pub fn get(&self, index: u32) -> Option<u64> {
        match self {
            Self::Kept(blocks) => blocks.get(index),
            Self::Asked(words) => Some(words.get(index)).filter(|hash| *hash != 0),
        }
    }
}

/// A standby slot on its way to being golden.
#[derive(Debug)]
pub struct Job {
    /// The slots.
    pub stage: Stage,
    /// The connection.
    pub link: Arc<Link>,
    /// The golden image, as signed.
    pub target: Manifest,
    /// Its geometry.
    pub geometry: Geometry,
    /// What the active slot is believed to hold.
    pub base: Option<Base>,
    /// Set when the operator, or the machine, wants us to stop.
    pub stop: CancellationToken,
    /// Threads for hashing, decoding and writing.
    pub threads: usize,
    /// Bytes of unmatched local data that the rolling scan may search.
    pub scan_budget: u64,
    /// What packs should spare.
    pub prefer: Prefer,
    /// The most bytes that it may take.
    pub ceiling: Option<Ceiling>,
    /// The folder for sections that may be asked for again after an interruption.
    pub cache: PathBuf,
}

/// Why a job ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JobError {
    /// The server, or the way to it.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// What the server sent.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// A slot.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// The state folder.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The staged image is not the golden one, and could not be made so.
    #[error(
        "the standby slot reads back as {got}, not as {expected}, after {rounds} rounds of repair: the disk or the memory is failing, or the server sends other bytes than it signed; the active slot is untouched"
    )]
    Proof {
        /// What was read.
        got: ImageId,
        /// What was signed.
        expected: ImageId,
        /// How often it was mended.
        rounds: u32,
    },
    /// More bytes than the budget.
    #[error(transparent)]
    Budget(#[from] OverBudget),
    /// Asked to stop.
    #[error("stopped on request; the active slot is untouched, and the next run goes on from what is staged")]
    Stopped,
    /// A thread died; a fault in this program.
    #[error("a worker ended early: {0}")]
    Worker(String),
}

impl JobError {
    /// Whether the server answered, and its answer is of no use: what was asked for as a help can be done without.
    pub fn is_no_help(&self) -> bool {
        matches!(self, Self::Fetch(_) | Self::Link(LinkError::Refused { .. }))
    }
}

impl Job {
    /// Refuses what would take more bytes than the budget allows, on top of what it has taken. `at_most`: that is a bound.
    pub fn afford(&self, bytes: u64, at_most: bool) -> Result<(), JobError> {
        Ok(self.ceiling.as_ref().map_or(Ok(()), |ceiling| ceiling.allow(bytes, at_most))?)
    }

    /// Stops here if asked to.
    pub fn go_on(&self) -> Result<(), JobError> {
        if self.stop.is_cancelled() { Err(JobError::Stopped) } else { Ok(()) }
    }

    /// Runs blocking work off the async threads.
    pub async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<Self>) -> Result<T, JobError> + Send + 'static,
    ) -> Result<T, JobError> {
        let job = self.clone();
        let work = move || {
            let done = work(&job);
            give_room_back();
            done
        };
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|error| JobError::Worker(error.to_string()))?
    }

    /// [`on_threads`] with this job's threads and wish to stop.
    pub fn on_threads(&self, count: u32, work: impl Fn(u32) -> Result<(), JobError> + Sync) -> Result<(), JobError> {
        on_threads(self.threads, &self.stop, count, work).map(|_| ())
    }
}

/// Runs `work` for every index below `count`, each once, roughly in order, on so many threads; the results in order. The
/// first error, or a wish to stop, ends it.
pub fn on_threads<T: Send>(
    threads: usize,
    stop: &CancellationToken,
    count: u32,
    work: impl Fn(u32) -> Result<T, JobError> + Sync,
) -> Result<Vec<T>, JobError> {
    let next = AtomicU32::new(0);
    let turn = || -> Result<Vec<(u32, T)>, JobError> {
        let mut mine = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return Ok(mine);
            }
            if stop.is_cancelled() {
                return Err(JobError::Stopped);
            }
            // On an error the others shall find nothing more to do. Not beyond the counter's end, whatever they add.
            mine.push((index, work(index).inspect_err(|_| next.store(count, Ordering::Relaxed))?));
        }
    };
    let died = |_| Err(JobError::Worker("a hashing thread panicked".into()));
    let done = std::thread::scope(|scope| {
        let workers: Vec<_> = (1..threads).map(|_| scope.spawn(turn)).collect();
        let mine = turn();
        let join = workers.into_iter().map(|worker| worker.join().unwrap_or_else(died));
        join.fold(mine, |all, part| {
            let (mut all, part) = (all?, part?);
            all.extend(part);
            Ok(all)
        })
    });
    give_room_back();
    let mut done = done?;
    done.sort_unstable_by_key(|(index, _)| *index);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_is_worked_once_and_an_error_ends_it() {
        let stop = CancellationToken::new();
        assert_eq!(on_threads(3, &stop, 100, Ok).unwrap(), (0..100).collect::<Vec<_>>());
        let seen = AtomicU32::new(0);
        let failed = on_threads(2, &stop, 1_000_000, |index| {
            seen.fetch_add(1, Ordering::Relaxed);
            if index == 5 { Err(JobError::Worker("five".into())) } else { Ok(()) }
        });
        assert!(matches!(failed, Err(JobError::Worker(why)) if why == "five"));
        assert!(seen.load(Ordering::Relaxed) < 1_000_000);
        stop.cancel();
        assert!(matches!(on_threads(1, &stop, 1, Ok), Err(JobError::Stopped)));
    }
}
