//! Which disks may be found when power was lost, by what was written to one and what made it last.
//!
//! ```text
//! written and flushed, or written past the cache (FUA)   there
//! written since                                          each write there, not there, or some of its sectors; in any order
//! ```
//! One place is spared from being torn: ext4's superblock is two sectors, its checksum is in the second, and nothing but a disk that writes
//! both or neither keeps it whole.
//! Power is lost before each moment at which something becomes sure: every flush, every write past the cache. Pure: bytes in memory.
//! A state that is wrong only between the completion of a write and of a commit beside it is not seen: the log does not tell their
//! order (see [`super::write_log`]).

use std::ops::Range;

use super::write_log::{Event, SECTOR};
use crate::seed::Seed;

/// What becomes of what was not sure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is lost.
    Lost,
    /// It is all there.
    Kept,
    /// As it falls.
    Chance(u64),
}

/// A disk that may be found.
#[derive(Debug)]
pub struct Found<'a> {
    /// All of its bytes.
    pub disk: &'a [u8],
    /// For each part, a number that is another one whenever its bytes are.
    pub changes: &'a [u64],
    /// Behind so many events.
    pub event: usize,
    /// What became of the rest.
    pub fate: Fate,
}

/// A disk on which events happen.
#[derive(Debug)]
pub struct Replay<'a> {
    disk: Vec<u8>,
    parts: Vec<Range<u64>>,
    /// Sectors that are written together or not at all.
    whole: Range<u64>,
    changes: Vec<u64>,
    /// The last number given.
    number: u64,
    /// Written, and not sure.
    open: Vec<(u64, &'a [u8])>,
    events: usize,
    /// Whether what is sure was looked at.
    seen: bool,
}

impl<'a> Replay<'a> {
    /// A disk at rest, parts of it whose changes are of interest, and a place that is not torn.
    pub fn new(disk: Vec<u8>, parts: &[Range<u64>], whole: Range<u64>) -> Self {
        let changes = vec![0; parts.len()];
        Self { disk, parts: parts.to_vec(), whole, changes, number: 0, open: Vec::new(), events: 0, seen: false }
    }

    /// Another event. If it makes something sure, power is lost before it, in as many ways by chance as `seeds` says.
    pub fn happen<E>(
        &mut self,
        event: &'a Event,
        seeds: u64,
        mut see: impl FnMut(&Found<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        match event {
            Event::Mark(_) => {}
            Event::Write { offset, bytes, sure: false } => self.open.push((*offset, bytes)),
            Event::Write { offset, bytes, sure: true } => {
                self.open.push((*offset, bytes));
                self.lose(seeds, &mut see)?;
                self.open.pop();
                self.write(*offset, bytes);
                self.seen = false;
            }
            Event::Flush => {
                self.lose(seeds, &mut see)?;
                self.settle();
            }
        }
        self.events += 1;
        Ok(())
    }

    /// Looks at what is sure now.
    pub fn now<E>(&mut self, mut see: impl FnMut(&Found<'_>) -> Result<(), E>) -> Result<(), E> {
        self.found(Fate::Lost, &mut see)
    }

    /// Loses power behind the last event.
    pub fn end<E>(&mut self, seeds: u64, mut see: impl FnMut(&Found<'_>) -> Result<(), E>) -> Result<(), E> {
        self.lose(seeds, &mut see)?;
        self.found(Fate::Kept, &mut see)
    }

    fn settle(&mut self) {
        for (offset, bytes) in std::mem::take(&mut self.open) {
            self.write(offset, bytes);
            self.seen = false;
        }
    }

    /// All of it is there: the next moment's, if nothing is lost.
    fn lose<E>(&mut self, seeds: u64, see: &mut impl FnMut(&Found<'_>) -> Result<(), E>) -> Result<(), E> {
        if !self.seen {
            self.seen = true;
            self.found(Fate::Lost, see)?;
        }
        let seeds = if self.open.is_empty() { 0 } else { seeds };
        (0..seeds).try_for_each(|seed| self.found(Fate::Chance(seed), see))
    }

    /// Shows one disk, and takes back what was only perhaps there.
    fn found<E>(&mut self, fate: Fate, see: &mut impl FnMut(&Found<'_>) -> Result<(), E>) -> Result<(), E> {
        let changes = self.changes.clone();
        let mut undo = Vec::new();
        for (offset, bytes) in self.falls(fate) {
            let old = self.disk.get(span(offset, bytes)).map(<[u8]>::to_vec).unwrap_or_default();
            undo.push((offset, old));
            self.write(offset, bytes);
        }
        let shown = see(&Found { disk: &self.disk, changes: &self.changes, event: self.events, fate });
        for (offset, old) in undo.into_iter().rev() {
            self.write(offset, &old);
        }
        self.changes = changes;
        shown
    }

    /// What of the open writes is there, in the order in which it came.
    fn falls(&self, fate: Fate) -> Vec<(u64, &'a [u8])> {
        let seed = match fate {
            Fate::Lost => return Vec::new(),
            Fate::Kept => return self.open.clone(),
            Fate::Chance(seed) => seed,
        };
        // The same seed falls otherwise at each event.
        let mut seed = Seed::new(seed << 32 | self.events as u64);
        let mut order = self.open.clone();
        for last in (1..order.len()).rev() {
            order.swap(last, seed.below(last as u64 + 1) as usize);
        }
        // Much of it, little of it, or half.
        let share = [0.1, 0.5, 0.9][seed.below(3) as usize];
        let mut there = Vec::new();
        for (offset, bytes) in order {
            if seed.happens(0.3) {
                // Torn.
                let together = seed.happens(share);
                let sectors = (offset..).step_by(SECTOR).zip(bytes.chunks(SECTOR));
                there.extend(sectors.filter(|(at, _)| {
                    let alone = seed.happens(share);
                    if self.whole.contains(at) { together } else { alone }
                }));
            } else if seed.happens(share) {
                there.push((offset, bytes));
            }
        }
        there
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let span = span(offset, bytes);
        self.number += 1;
        for (part, change) in self.parts.iter().zip(&mut self.changes) {
            if offset < part.end && part.start < offset + bytes.len() as u64 {
                *change = self.number;
            }
        }
        if let Some(place) = self.disk.get_mut(span) {
            place.copy_from_slice(bytes);
        }
    }
}

fn span(offset: u64, bytes: &[u8]) -> Range<usize> {
    offset as usize..offset as usize + bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const S: u64 = SECTOR as u64;

    fn write(sector: u64, byte: u8, sectors: usize, sure: bool) -> Event {
        Event::Write { offset: sector * S, bytes: vec![byte; sectors * SECTOR], sure }
    }

    /// The first byte of each sector of all disks found before each event.
    fn found(events: &[Event], seeds: u64) -> Vec<HashSet<Vec<u8>>> {
        let mut replay = Replay::new(vec![0; 8 * SECTOR], &[0..4 * S, 4 * S..8 * S], 0..0);
        let mut all = vec![HashSet::new(); events.len() + 1];
        let mut see = |found: &Found<'_>| {
            all[found.event].insert(found.disk.iter().step_by(SECTOR).copied().collect());
            Ok::<_, ()>(())
        };
        for event in events {
            replay.happen(event, seeds, &mut see).unwrap();
        }
        replay.end(seeds, see).unwrap();
        all
    }

    #[test]
    fn what_was_flushed_is_there_and_what_was_not_may_be() {
        let events = [write(0, 1, 2, false), write(1, 2, 1, false), Event::Flush, write(5, 3, 1, false)];
        let found = found(&events, 200);
        assert!(found[0].is_empty() && found[1].is_empty() && found[3].is_empty());
        // Sector 0: old or new; sector 1: old, the first or the second, in either order.
        let expected: HashSet<_> = [0, 1]
            .into_iter()
            .flat_map(|first| [0, 1, 2].map(|second| vec![first, second, 0, 0, 0, 0, 0, 0]))
            .collect();
        assert_eq!(found[2], expected);
        assert_eq!(found[4], HashSet::from([vec![1, 2, 0, 0, 0, 0, 0, 0], vec![1, 2, 0, 0, 0, 3, 0, 0]]));
    }

    #[test]
    fn a_write_past_the_cache_is_torn_before_and_there_behind() {
        let events = [write(0, 1, 2, true), write(4, 2, 1, false), write(7, 3, 1, true), Event::Flush];
        let found = found(&events, 200);
        assert_eq!(found[0].len(), 4, "{:?}", found[0]);
        assert!(found[2].iter().all(|disk| disk[..2] == [1, 1]), "{:?}", found[2]);
        assert_eq!(found[2].len(), 4, "{:?}", found[2]);
        assert!(found[3].iter().all(|disk| disk[7] == 3), "{:?}", found[3]);
        assert_eq!(found[4], HashSet::from([vec![1, 1, 0, 0, 2, 0, 0, 3]]));
    }

    #[test]
    fn a_place_that_is_whole_is_not_torn() {
        let event = write(1, 1, 4, true);
        let mut replay = Replay::new(vec![0; 8 * SECTOR], &[], 2 * S..4 * S);
        let mut seen = HashSet::new();
        let see = |found: &Found<'_>| {
            let disk: Vec<u8> = found.disk.iter().step_by(SECTOR).copied().collect();
            assert_eq!(disk[2], disk[3]);
            seen.insert(disk);
            Ok::<_, ()>(())
        };
        replay.happen(&event, 300, see).unwrap();
        assert_eq!(seen.len(), 8, "{seen:?}");
    }

    #[test]
    fn a_part_has_another_number_when_it_may_be_another() {
        let events = [write(1, 1, 1, false), Event::Flush, write(6, 2, 1, false), Event::Flush];
        let mut replay = Replay::new(vec![0; 8 * SECTOR], &[0..4 * S, 4 * S..8 * S], 0..0);
        let mut seen: Vec<HashSet<(u64, Vec<u8>)>> = vec![HashSet::new(); 2];
        for event in &events {
            let see = |found: &Found<'_>| {
                for (part, half) in found.disk.chunks(4 * SECTOR).enumerate() {
                    seen[part].insert((found.changes[part], half.to_vec()));
                }
                Ok::<_, ()>(())
            };
            replay.happen(event, 20, see).unwrap();
        }
        for part in seen {
            let numbers: HashSet<u64> = part.iter().map(|(number, _)| *number).collect();
            assert_eq!(numbers.len(), part.len(), "one number, two contents");
        }
    }
}
