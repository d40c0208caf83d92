//! Entries of a signature's sections: eight bytes a block, those that are wanted and not known yet.

use futures::{StreamExt, TryStreamExt, stream};
use goldsync_proto::block::{Run, runs_of};
use goldsync_proto::release::Section;
use tokio_util::sync::CancellationToken;

use super::range;
use crate::job::JobError;
use crate::link::Link;
use crate::scratch::Words;

/// Bytes in an entry.
const ENTRY: u64 = 8;

/// Entries fetched at once, and the gap that is fetched over rather than asked around.
const ENTRIES: u32 = 128 << 10;
const GAP: u32 = 32;

/// Requests under way at once.
const REQUESTS: usize = 4;

/// Fetches entries of a section into `into`, those of `wanted` that are not known (zero) yet.
pub async fn fetch(
    link: &Link,
    stop: &CancellationToken,
    section: Section,
    into: &Words,
    wanted: &[Run],
) -> Result<(), JobError> {
    let unknown = wanted.iter().flat_map(|(first, count)| *first..first + count).filter(|block| into.get(*block) == 0);
    let requests = stream::iter(coalesce(runs_of(unknown))).map(|(first, count)| async move {
        if stop.is_cancelled() {
            return Err(JobError::Stopped);
        }
        let mut body = range(link, section.name, u64::from(first) * ENTRY, u64::from(count) * ENTRY).await?;
        let bytes =
            body.bytes(u64::from(count) * ENTRY, u64::from(ENTRIES) * ENTRY, "a section of the signature").await?;
        for (block, entry) in (first..).zip(bytes.as_chunks::<{ ENTRY as usize }>().0) {
            into.set(block, u64::from_le_bytes(*entry));
        }
        Ok(())
    });
    requests.buffer_unordered(REQUESTS).try_collect::<()>().await
}

/// Joins runs over small gaps and cuts long ones: a request costs about as much as the entries of a gap.
fn coalesce(runs: Vec<Run>) -> Vec<Run> {
    let mut joined: Vec<Run> = Vec::new();
    for (mut first, mut count) in runs {
        if let Some((last, length)) = joined.last_mut()
            && first - (*last + *length) <= GAP
            && first + count - *last <= ENTRIES
        {
            *length = first + count - *last;
            continue;
        }
        while count > 0 {
            let part = count.min(ENTRIES);
            joined.push((first, part));
            (first, count) = (first + part, count - part);
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_asked_for_in_few_and_bounded_requests() {
        let runs = vec![(0, 10), (20, 5), (100, 1), (1000, 300_000)];
        let joined = coalesce(runs);
        assert_eq!(
            joined,
            vec![(0, 25), (100, 1), (1000, ENTRIES), (1000 + ENTRIES, ENTRIES), (1000 + 2 * ENTRIES, 37_856)]
        );
    }
}
