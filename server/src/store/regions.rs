//! Passing over a file region by region, on all cores, with results in order.
//!
//! Holes of a sparse file are not read: a region that is all hole is given as zeros.

use std::fs::File;
use std::io;
use std::num::NonZero;
use std::os::unix::fs::FileExt;

use goldsync_proto::block::Geometry;
use goldsync_proto::digest::ImageId;
use goldsync_proto::image::{id_of_regions, region_hash};
use goldsync_proto::limits::REGION;
use rustix::fs::SeekFrom;

/// Regions that each thread works on before results are handed over: bounds what waits for the slowest.
const TURN: u32 = 16;

static ZEROS: [u8; REGION as usize] = [0; REGION as usize];

/// Where regions are read from.
pub(crate) trait ReadAt: Sync {
    /// Fills `buffer` from `offset`; the end within it is an error.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Whether nothing was ever written there. `false` if that cannot be said.
    fn is_hole(&self, start: u64, end: u64) -> bool;
}

impl ReadAt for File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }

    fn is_hole(&self, start: u64, end: u64) -> bool {
        match rustix::fs::seek(self, SeekFrom::Data(start)) {
            Ok(data) => data >= end,
            // Nothing but hole until the end of the file, which may only be here if the file is that long.
            Err(rustix::io::Errno::NXIO) => self.metadata().is_ok_and(|meta| meta.len() >= end),
            Err(_) => false,
        }
    }
}

/// Calls `work` with each region's number and bytes, on several threads, and `sink` with the results, in order.
/// Ends at the first error of either.
pub(crate) fn each_region<T, E>(
    file: &impl ReadAt,
    geometry: Geometry,
    work: impl Fn(u32, &[u8]) -> T + Sync,
    mut sink: impl FnMut(T) -> Result<(), E>,
) -> Result<(), E>
where
    T: Send,
    E: From<io::Error>,
{
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get) as u32;
    let threads = threads.clamp(1, 16);
    for start in (0..geometry.regions()).step_by((threads * TURN) as usize) {
        let end = start.saturating_add(threads * TURN).min(geometry.regions());
        for result in one_turn(file, geometry, start..end, threads, &work) {
            sink(result?)?;
        }
    }
    Ok(())
}

fn one_turn<T: Send>(
    file: &impl ReadAt,
    geometry: Geometry,
    regions: std::ops::Range<u32>,
    threads: u32,
    work: &(impl Fn(u32, &[u8]) -> T + Sync),
) -> Vec<io::Result<T>> {
    let share = regions.len().div_ceil(threads as usize).max(1);
    let numbers: Vec<u32> = regions.collect();
    let pass = |part: &[u32]| {
        let mut buffer = Vec::new();
        part.iter().map(|&index| one_region(file, geometry, index, &mut buffer, work)).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let pass = &pass;
        let parts: Vec<_> = numbers.chunks(share).map(|part| scope.spawn(move || pass(part))).collect();
        let join = |part: std::thread::ScopedJoinHandle<'_, Vec<io::Result<T>>>| match part.join() {
            Ok(results) => results,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        parts.into_iter().flat_map(join).collect()
    })
}

fn one_region<T>(
    file: &impl ReadAt,
    geometry: Geometry,
    index: u32,
    buffer: &mut Vec<u8>,
    work: &impl Fn(u32, &[u8]) -> T,
) -> io::Result<T> {
    let range = geometry.region_bytes(index);
    let len = (range.end - range.start) as usize;
    if file.is_hole(range.start, range.end) {
        return Ok(work(index, ZEROS.get(..len).unwrap_or(&ZEROS)));
    }
    buffer.resize(len, 0);
    file.read_exact_at(buffer, range.start)?;
    Ok(work(index, buffer))
}

/// The id of the image that a file holds.
pub(crate) fn id_of_file(file: &File, geometry: Geometry) -> io::Result<Option<ImageId>> {
    let mut hashes = Vec::with_capacity(geometry.regions() as usize);
    each_region(
        file,
        geometry,
        |index, bytes| region_hash(geometry, index, bytes),
        |hash| {
            hashes.push(hash);
            Ok::<_, io::Error>(())
        },
    )?;
    Ok(id_of_regions(geometry, &hashes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use goldsync_proto::limits::BLOCK;

    #[test]
    fn regions_come_in_order_and_holes_read_as_zeros() {
        let file = tempfile::tempfile().unwrap();
        let geometry = Geometry::new(70 * REGION + 3 * BLOCK).unwrap();
        file.set_len(geometry.size()).unwrap();
        file.write_all_at(b"golden", 40 * REGION + 5).unwrap();
        let mut seen = Vec::new();
        let work =
            |index: u32, bytes: &[u8]| (index, bytes.len(), if bytes == &ZEROS[..bytes.len()] { 0 } else { bytes[5] });
        each_region(&file, geometry, work, |result| {
            seen.push(result);
            Ok::<_, io::Error>(())
        })
        .unwrap();
        let expected: Vec<_> = (0..71)
            .map(|index| {
                let len = if index == 70 { 3 * BLOCK } else { REGION };
                (index, len as usize, if index == 40 { b'g' } else { 0 })
            })
            .collect();
        assert_eq!(seen, expected);
    }

    #[test]
    fn the_id_is_the_hash_of_all_bytes() {
        let file = tempfile::tempfile().unwrap();
        let geometry = Geometry::new(3 * REGION + BLOCK).unwrap();
        file.set_len(geometry.size()).unwrap();
        file.write_all_at(b"golden", 2 * REGION).unwrap();
        let mut bytes = vec![0; geometry.size() as usize];
        bytes[2 * REGION as usize..][..6].copy_from_slice(b"golden");
        assert_eq!(id_of_file(&file, geometry).unwrap(), Some(ImageId::of(&bytes)));
    }

    #[test]
    fn a_file_that_is_too_short_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(REGION).unwrap();
        assert!(id_of_file(&file, Geometry::new(2 * REGION).unwrap()).is_err());
    }
}
