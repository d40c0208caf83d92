//! Making the blocks of hash trees out of the standby slot's other blocks, once all of those are there.
//!
//! ```text
//! data, staged ─▶ leaves ─▶ the level above ─▶ ... ─▶ root        all read from the standby slot, and written to it
//! ```
//! A block depends on up to 128 of the level below, so that one level is done before the next begins; a level is made in
//! pieces, on threads. Nothing is kept in memory from one piece to the next, and nothing about it is written down: a run that was
//! interrupted derives again, and writes only what is not there yet.

use std::ops::Range;
use std::sync::Arc;

use goldsync_proto::block::{Run, byte_of};
use goldsync_proto::verity::{self, Derived, Tree};
use goldsync_proto::wire::{Answer, Request};

use crate::fetch::{self, FetchError};
use crate::job::{Job, JobError};

/// Blocks of a tree made by one thread at a time, and written at once: it reads up to 128 times as many, one after the other.
const PIECE: u32 = 16;

/// The target's hash trees, for a plan of our own. A server that does not know, or tells nonsense, costs what the truth would
/// have saved.
pub async fn trees(job: &Job) -> Result<Vec<Tree>, JobError> {
    match ask(job).await {
        Err(error) if error.is_no_help() => {
            tracing::warn!(%error, "no hash trees from the server; fetching their blocks like all else");
            Ok(Vec::new())
        }
        trees => trees,
    }
}

async fn ask(job: &Job) -> Result<Vec<Tree>, JobError> {
    const WHAT: &str = "a request for hash trees";
    match job.link.ask(&Request::Trees { image: job.target.image }).await? {
        (Answer::Trees { trees }, _) => match verity::apart(&trees, job.geometry) {
            Ok(_) => Ok(trees),
            Err(error) => Err(FetchError::Answer { what: WHAT, got: error.to_string() }.into()),
        },
        (other, _) => Err(fetch::unexpected(WHAT, &other).into()),
    }
}

/// Makes all that derives.
pub fn run(job: &Arc<Job>) -> Result<(), JobError> {
    for Derived { tree, runs } in job.stage.derived() {
        for level in tree.levels() {
            let pieces = pieces(&runs, &level);
            job.on_threads(pieces.len() as u32, |at| match pieces.get(at as usize) {
                Some(piece) => make(job, &tree, *piece),
                None => Ok(()),
            })?;
        }
    }
    Ok(())
}

/// What of `runs` lies in a level, in pieces.
fn pieces(runs: &[Run], level: &Range<u32>) -> Vec<Run> {
    let within = |(first, count): &Run| (*first).max(level.start)..(first + count).min(level.end);
    let cut = |run: Range<u32>| {
        let end = run.end;
        run.step_by(PIECE as usize).map(move |first| (first, PIECE.min(end - first)))
    };
    runs.iter().map(within).flat_map(cut).collect()
}

fn make(job: &Job, tree: &Tree, (first, count): Run) -> Result<(), JobError> {
    let mut made = Vec::with_capacity(byte_of(count) as usize);
    for (first, count) in (first..first + count).filter_map(|block| tree.below(block)) {
        job.go_on()?;
        job.stage.with_standby(first, count, |below| {
            made.extend(tree.derive(below));
            Ok::<_, JobError>(())
        })?;
    }
    Ok(job.stage.put_derived(first, &made)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_cut_into_pieces_and_nothing_else_is() {
        assert_eq!(pieces(&[(5, 50), (70, 3), (90, 9)], &(10..72)), [(10, 16), (26, 16), (42, 13), (70, 2)]);
        assert_eq!(pieces(&[(5, 5)], &(10..20)), []);
    }
}
