//! Finding golden blocks in local bytes.
//!
//! ```text
//! golden hashes ─▶ [aligned]  blocks on the 4 KiB grid, by BLAKE3          most of ext4 and erofs
//!                     │ still missing
//!                     ▼
//!                  [rolling]  blocks at any byte offset, by fast_rsync     squashfs, grown files
//!                     │ still missing
//!                     ▼
//!                  [grains]   eighths of blocks at any byte offset         changed files
//! ```
//! The passes answer with candidates, found by five to eight bytes of hash. They may stop early at any time: what is not
//! found is fetched. The seam for faster scanners is [`rolling::Rolling`]'s and [`grains::Grains`]' two functions.

pub mod aligned;
pub mod grains;
pub mod rolling;

/// What has which content: `owners[spans[i]..spans[i + 1]]` have content `i`.
#[derive(Debug)]
struct Owners {
    owners: Vec<u32>,
    spans: Vec<u32>,
}

impl Owners {
    /// Groups owners, sorted by content; returns each content once, in that order.
    fn group<T: Copy + PartialEq>(sorted: &[(u32, T)]) -> (Vec<T>, Self) {
        let (mut contents, mut spans) = (Vec::new(), Vec::new());
        let owners = sorted.iter().map(|(owner, _)| *owner).collect();
        let mut at = 0;
        for same in sorted.chunk_by(|(_, a), (_, b)| a == b) {
            spans.push(at);
            at += same.len() as u32;
            contents.extend(same.first().map(|(_, content)| *content));
        }
        spans.push(at);
        (contents, Self { owners, spans })
    }

    fn of(&self, content: usize) -> &[u32] {
        let span = |index: usize| self.spans.get(index).map_or(0, |span| *span as usize);
        self.owners.get(span(content)..span(content + 1)).unwrap_or(&[])
    }
}
