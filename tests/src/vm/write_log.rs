//! What the kernel wrote down of a disk's writes (dm-log-writes), read outside.
//!
//! ```text
//! sector 0   magic, version, number of entries: 8 bytes each; bytes in a sector: 4
//! then       an entry: sector, sectors, flags, bytes of its own: 8 bytes each, and a mark's name; up to the sector's end
//!            what was written there, if it is no discard and no mark
//! ```
//! Little-endian; see the kernel's `Documentation/admin-guide/device-mapper/log-writes.rst`. A write is written down when it was
//! *flushed*: the order is `FUA* write* FLUSH`, again and again, where a flush covers the writes that were completed before it
//! was asked for. Nothing of the log is believed before it is checked: what it names lies on the disk, and is not more than
//! [`LIMIT`].

use std::io::Read;

use anyhow::{Context, Result, ensure};

/// Bytes of a sector; the machines' disks have this one.
pub const SECTOR: usize = 512;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;
const METADATA: u64 = 16;

/// Bytes that were written, altogether: no story writes so much.
const LIMIT: u64 = 1 << 30;

/// What a disk may give back for what was discarded: anything.
const DISCARDED: u8 = 0xd1;

/// Something that happened to the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes were written.
    Write {
        /// Where they begin.
        offset: u64,
        /// They.
        bytes: Vec<u8>,
        /// Whether they were on the medium when the write was done (FUA).
        sure: bool,
    },
    /// All that was written before is on the medium.
    Flush,
    /// The story said where it was.
    Mark(String),
}

/// Reads a log of a disk of so many bytes.
pub fn read(log: &mut impl Read, disk: u64) -> Result<Vec<Event>> {
    let head = sector(log).context("the log's first sector")?;
    ensure!(word(&head, 0) == MAGIC, "this is no log of writes: it begins with {:x}", word(&head, 0));
    ensure!(word(&head, 8) == 1, "a log of version {}", word(&head, 8));
    ensure!(word(&head, 24) as u32 as usize == SECTOR, "its sectors are of {} bytes", word(&head, 24) as u32);
    let (mut events, mut left) = (Vec::new(), LIMIT);
    for number in 0..word(&head, 16) {
        let event = event(log, disk, &mut left).with_context(|| format!("entry {number} of the log"))?;
        events.extend(event.into_iter().flatten());
    }
    Ok(events)
}

/// What one entry says: nothing, a thing, or a flush and then a write.
fn event(log: &mut impl Read, disk: u64, left: &mut u64) -> Result<[Option<Event>; 2]> {
    let head = sector(log)?;
    let [at, count, flags, own] = [0, 8, 16, 24].map(|place| word(&head, place));
    ensure!(flags & !(FLUSH | FUA | DISCARD | MARK | METADATA) == 0, "flags {flags:x}");
    if flags & MARK != 0 {
        let name =
            usize::try_from(own).ok().and_then(|own| head.get(32..)?.get(..own)).context("a mark without end")?;
        return Ok([Some(Event::Mark(String::from_utf8_lossy(name).into_owned())), None]);
    }
    ensure!(own == 0, "{own} bytes of its own");
    let bytes = |sectors: u64| sectors.checked_mul(SECTOR as u64).context("a place beyond all disks");
    let (offset, length) = (bytes(at)?, bytes(count)?);
    let end = offset.checked_add(length).context("a place beyond all disks")?;
    ensure!(end <= disk, "bytes {offset} to {end} of a disk of {disk}");
    let flush = (flags & FLUSH != 0).then_some(Event::Flush);
    if length == 0 {
        return Ok([flush, None]);
    }
    *left = left.checked_sub(length).with_context(|| format!("more than {LIMIT} bytes"))?;
    let mut bytes = Vec::new();
    if flags & DISCARD != 0 {
        bytes.resize(length as usize, DISCARDED);
    } else {
        log.take(length).read_to_end(&mut bytes)?;
    }
    ensure!(bytes.len() as u64 == length, "{} bytes of {length}: the log ends", bytes.len());
    Ok([flush, Some(Event::Write { offset, bytes, sure: flags & FUA != 0 })])
}

fn sector(log: &mut impl Read) -> Result<[u8; SECTOR]> {
    let mut sector = [0; SECTOR];
    log.read_exact(&mut sector).context("the log ends")?;
    Ok(sector)
}

/// A number in a sector.
fn word(sector: &[u8; SECTOR], at: usize) -> u64 {
    sector.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DISK: u64 = 64 * SECTOR as u64;

    fn padded(words: &[u64], more: &[u8]) -> Vec<u8> {
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend(more);
        bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
        bytes
    }

    fn head(entries: u64) -> Vec<u8> {
        padded(&[MAGIC, 1, entries, SECTOR as u64], &[])
    }

    /// As the kernel writes it down.
    fn log() -> Vec<u8> {
        [
            head(7),
            padded(&[3, 1, METADATA, 0], &[]),
            vec![7; SECTOR],
            padded(&[0, 0, FLUSH, 0], &[]),
            padded(&[5, 2, FUA, 0], &[]),
            vec![8; 2 * SECTOR],
            padded(&[9, 1, FUA | FLUSH, 0], &[]),
            vec![9; SECTOR],
            padded(&[20, 40, DISCARD, 0], &[]),
            padded(&[0, 0, MARK, 4], b"here"),
            padded(&[0, 0, 0, 0], &[]),
        ]
        .concat()
    }

    #[test]
    fn a_log_is_read_as_it_was_written() {
        let write = |sector: u64, byte: u8, sectors: usize, sure| Event::Write {
            offset: sector * SECTOR as u64,
            bytes: vec![byte; sectors * SECTOR],
            sure,
        };
        let expected = [
            write(3, 7, 1, false),
            Event::Flush,
            write(5, 8, 2, true),
            Event::Flush,
            write(9, 9, 1, true),
            write(20, DISCARDED, 40, false),
            Event::Mark("here".into()),
        ];
        assert_eq!(read(&mut &log()[..], DISK).unwrap(), expected);
    }

    #[test]
    fn what_cannot_be_is_an_error() {
        for (entry, why) in [
            (padded(&[64, 1, 0, 0], &[]), "of a disk"),
            (padded(&[u64::MAX, 1, 0, 0], &[]), "beyond all disks"),
            (padded(&[1, u64::MAX / 512, 0, 0], &[]), "beyond all disks"),
            (padded(&[1, 2, 0, 0], &[0; SECTOR]), "the log ends"),
            (padded(&[0, 0, MARK, 481], &[]), "a mark without end"),
            (padded(&[0, 0, MARK, u64::MAX], &[]), "a mark without end"),
            (padded(&[0, 1, 0, 5], &[0; SECTOR]), "of its own"),
            (padded(&[0, 1, 32, 0], &[0; SECTOR]), "flags"),
            (padded(&[0, 65, DISCARD, 0], &[]), "of a disk"),
        ] {
            let error = read(&mut &[head(1), entry].concat()[..], DISK).unwrap_err();
            assert!(format!("{error:#}").contains(why), "{error:#}, not {why}");
        }
        let large = [head(1), padded(&[0, LIMIT / 512 + 1, 0, 0], &[])].concat();
        assert!(format!("{:#}", read(&mut &large[..], u64::MAX).unwrap_err()).contains("more than"));
    }

    #[test]
    fn a_log_that_ends_early_is_an_error() {
        let log = log();
        for end in 0..log.len() {
            assert!(read(&mut &log[..end], DISK).is_err(), "cut at {end}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let _ = read(&mut &bytes[..], DISK);
        }

        #[test]
        fn any_entry_is_read(words: [u64; 4], at in 0_usize..4096, byte: u8) {
            let _ = read(&mut &[head(1), padded(&words, &[0; 600])].concat()[..], DISK);
            let mut log = log();
            let at = at % log.len();
            log[at] = byte;
            let _ = read(&mut &log[..], DISK);
        }
    }
}
