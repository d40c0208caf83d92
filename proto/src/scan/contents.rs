//! What a scan looks for: each content once, with all who want it.
//!
//! A content is told to its owners where it is first met, and then not looked for again. Whether it was met is decided by the
//! window's hash, and computing that is paid for by the key: after [`MISSES_MAX`] windows in a row with a content's key that
//! were not what is wanted, nothing with that key is looked for any more. So the work that constant data, or a signature made
//! to match everywhere, can cause is bounded: at most so many hashes and one more for each content, however long the data.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

/// Windows hashed in vain before a key is given up. In honest data, two contents with one key are rare.
pub(super) const MISSES_MAX: u8 = 32;

/// One wish: this content for that owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Want {
    /// By what it is found.
    pub(super) key: u32,
    /// By what it is recognised.
    pub(super) hash: u64,
    /// A number of the caller's own.
    pub(super) owner: u32,
}

/// See the module's head. Shared by all threads. At most 29 bytes a content.
#[derive(Debug)]
pub(super) struct Contents {
    /// A key and a hash for each content, ascending.
    keys: Vec<u32>,
    hashes: Vec<u64>,
    /// `owners[spans[i]..spans[i + 1]]` want content `i`.
    owners: Vec<u32>,
    spans: Vec<u32>,
    /// Where the contents begin whose keys have the same upper bits.
    starts: Vec<u32>,
    shift: u32,
    /// Hashes computed in vain, kept at the first content of each key.
    misses: Vec<AtomicU8>,
    /// One bit for each content that was told.
    told: Vec<AtomicU64>,
    left: AtomicU32,
}

impl Contents {
    pub(super) fn new(mut wants: Vec<Want>) -> Self {
        wants.sort_unstable();
        let same = |a: &Want, b: &Want| (a.key, a.hash) == (b.key, b.hash);
        let count = wants.chunk_by(same).count();
        let mut keys = Vec::with_capacity(count);
        let mut hashes = Vec::with_capacity(count);
        let mut spans = Vec::with_capacity(count + 1);
        spans.push(0);
        for content in wants.chunk_by(same) {
            keys.extend(content.first().map(|want| want.key));
            hashes.extend(content.first().map(|want| want.hash));
            spans.push(spans.last().map_or(0, |last| last + content.len() as u32));
        }
        let owners = wants.iter().map(|want| want.owner).collect();
        let (starts, shift) = directory(&keys);
        let misses = keys.iter().map(|_| AtomicU8::new(0)).collect();
        let told = (0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { keys, hashes, owners, spans, starts, shift, misses, told, left: AtomicU32::new(count as u32) }
    }

    /// The keys of all contents, ascending.
    pub(super) fn keys(&self) -> &[u32] {
        &self.keys
    }

    /// Contents that were not met yet.
    pub(super) fn left(&self) -> u32 {
        self.left.load(Ordering::Relaxed)
    }

    /// Keeps the numbers of those keys that are wanted, and of a few others, at the front of `passed`; returns how many of
    /// `count`. Like the filter, without a branch that depends on the keys.
    pub(super) fn thin(&self, keys: &[u32], passed: &mut [u16], count: usize) -> usize {
        let mut kept = 0;
        for at in 0..count.min(passed.len()) {
            let number = passed[at];
            let key = keys[usize::from(number)];
            let (start, end) = self.bucket(key);
            let other = |at: usize| self.keys.get(at).is_some_and(|other| *other == key);
            passed[kept] = number;
            kept += usize::from(other(start) | other(start + 1) | (end > start + 2));
        }
        kept
    }

    /// The contents whose keys begin as `key` does.
    #[inline(always)]
    fn bucket(&self, key: u32) -> (usize, usize) {
        let bucket = (key >> self.shift) as usize;
        let at = |bucket: usize| self.starts.get(bucket).map_or(0, |start| *start as usize);
        (at(bucket), at(bucket + 1))
    }

    /// A window with this key was met: if its hash says that it is wanted, for the first time, tells the owners.
    pub(super) fn meet(&self, key: u32, hash: impl FnOnce() -> u64, tell: impl FnMut(u32)) {
        // Not one after the other: who makes a signature can make all its keys begin alike.
        let (start, end) = self.bucket(key);
        let bucket = self.keys.get(start..end).unwrap_or(&[]);
        let first = bucket.partition_point(|other| *other < key);
        let count = bucket.get(first..).map_or(0, |tail| tail.partition_point(|other| *other == key));
        let first = start + first;
        let Some(misses) = self.misses.get(first).filter(|_| count > 0) else { return };
        let one_more = |misses| (misses < MISSES_MAX).then_some(misses + 1);
        if misses.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_err() {
            return;
        }
        let contents = self.hashes.get(first..first + count).unwrap_or(&[]);
        let Ok(at) = contents.binary_search(&hash()) else { return };
        if self.first_time(first + at) {
            // Nothing else has this key: it is done. Otherwise the others shall have their tries.
            misses.store(if count == 1 { MISSES_MAX } else { 0 }, Ordering::Relaxed);
            self.owners_of(first + at).iter().copied().for_each(tell);
        }
    }

    fn first_time(&self, content: usize) -> bool {
        let bit = 1 << (content % 64);
        let first = self.told.get(content / 64).is_some_and(|word| word.fetch_or(bit, Ordering::Relaxed) & bit == 0);
        if first {
            self.left.fetch_sub(1, Ordering::Relaxed);
        }
        first
    }

    fn owners_of(&self, content: usize) -> &[u32] {
        let span = |index: usize| self.spans.get(index).map_or(0, |span| *span as usize);
        self.owners.get(span(content)..span(content + 1)).unwrap_or(&[])
    }
}

/// Where keys with the same upper bits begin, and how far those are to be shifted: less than one key each.
fn directory(keys: &[u32]) -> (Vec<u32>, u32) {
    let bits = (keys.len() + 1).next_power_of_two().ilog2().max(1);
    let shift = 32 - bits;
    let mut starts = vec![0_u32; (1 << bits) + 1];
    for key in keys {
        if let Some(count) = starts.get_mut((key >> shift) as usize + 1) {
            *count += 1;
        }
    }
    let mut sum = 0;
    for start in &mut starts {
        sum += *start;
        *start = sum;
    }
    (starts, shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(wants: &[(u32, u64)]) -> Contents {
        Contents::new((0..).zip(wants).map(|(owner, (key, hash))| Want { key: *key, hash: *hash, owner }).collect())
    }

    /// What is told of a window, and whether its hash was asked for.
    fn meet(contents: &Contents, key: u32, hash: u64) -> (Vec<u32>, bool) {
        let (mut told, mut asked) = (Vec::new(), false);
        let hash = || {
            asked = true;
            hash
        };
        contents.meet(key, hash, |owner| told.push(owner));
        (told, asked)
    }

    #[test]
    fn a_content_is_told_once_and_to_every_owner() {
        let contents = contents(&[(7, 1), (u32::MAX, 2), (7, 1), (7, 3), (0, 2)]);
        assert_eq!((contents.keys().len(), contents.left()), (4, 4));
        assert_eq!(meet(&contents, 8, 1), (vec![], false));
        assert_eq!(meet(&contents, 7, 2), (vec![], true));
        assert_eq!(meet(&contents, 7, 1), (vec![0, 2], true));
        assert_eq!(meet(&contents, 7, 1), (vec![], true), "another content has the same key");
        assert_eq!(meet(&contents, 7, 3), (vec![3], true));
        assert_eq!(meet(&contents, u32::MAX, 2), (vec![1], true));
        assert_eq!(meet(&contents, u32::MAX, 2), (vec![], false), "nothing else has this key");
        assert_eq!(meet(&contents, 0, 2), (vec![4], true));
        assert_eq!(contents.left(), 0);
    }

    #[test]
    fn thinning_keeps_what_is_wanted_and_little_else() {
        let wanted: Vec<u32> = (0..2000_u32).map(|at| at.wrapping_mul(0x9E37_79B1)).chain([0, u32::MAX]).collect();
        let contents = contents(&wanted.iter().map(|key| (*key, 1)).collect::<Vec<_>>());
        let keys: Vec<u32> = wanted.iter().flat_map(|key| [*key, key.wrapping_add(1)]).collect();
        let mut passed: Vec<u16> = (0..keys.len() as u16).collect();
        let kept = contents.thin(&keys, &mut passed, keys.len());
        assert!(passed[..kept].is_sorted() && kept < wanted.len() + wanted.len() / 4, "{kept}");
        for (number, key) in (0..).zip(&keys) {
            assert!(!wanted.contains(key) || passed[..kept].contains(&number));
        }
    }

    #[test]
    fn a_key_that_is_never_right_is_given_up() {
        let contents = contents(&[(7, 1), (7, 2), (9, 1)]);
        let asked = |key, hash| (0..1000).filter(|_| meet(&contents, key, hash).1).count();
        assert_eq!(asked(7, 3), 32);
        assert_eq!(meet(&contents, 7, 1), (vec![], false), "given up");
        assert_eq!(meet(&contents, 9, 1), (vec![2], true), "the others are not");
        assert_eq!((contents.left(), asked(9, 1)), (2, 0));
    }

    #[test]
    fn many_contents_of_one_key_get_their_tries_and_no_more() {
        let contents = contents(&(0..1000).map(|hash| (5, hash)).collect::<Vec<_>>());
        let mut asked = 0;
        for hash in 0..1000 {
            for wrong in 0..100 {
                asked += usize::from(meet(&contents, 5, 5000 + wrong).1);
            }
            asked += usize::from(meet(&contents, 5, hash).1);
        }
        assert_eq!((asked, contents.left()), (32, 1000), "the first wrong ones end it");

        let (contents, mut asked) = (self::contents(&(0..1000).map(|hash| (5, hash)).collect::<Vec<_>>()), 0);
        for hash in 0..1000 {
            asked += (0..31).filter(|wrong| meet(&contents, 5, 5000 + wrong).1).count();
            assert_eq!(meet(&contents, 5, hash), (vec![hash as u32], true));
            asked += 1;
        }
        assert_eq!((asked, contents.left()), (32 * 1000, 0), "each right one begins the count anew");

        assert_eq!(self::contents(&[]).left(), 0);
        assert_eq!(meet(&self::contents(&[]), 5, 5), (vec![], false));
    }
}
