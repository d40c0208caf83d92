//! Reading and writing a slot past the page cache (`O_DIRECT`).
//!
//! An image is read and written once, in large pieces, by a program that should not be noticed: through the page cache that
//! costs several times the processor time, and drives out what the machine's real work keeps there. And a read-back that
//! asks the medium, not the cache, proves more. Where the file system or the device cannot do it (`EINVAL`), the caller's
//! ordinary way takes over, for good. What is too small or not on the grid goes the ordinary way too.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};

use goldsync_proto::limits::BLOCK;

/// Where a piece may begin, in memory and in the slot: covers every device's logical block, and the largest common page.
const GRID: usize = BLOCK as usize;

/// A piece below this is written through the cache: the kernel gathers many small ones into few large ones.
const WRITE_MIN: usize = 256 << 10;

/// Room that a thread keeps for the next piece.
const KEPT_MAX: usize = 2 << 20;

/// A second way into a slot that is open already.
#[derive(Debug)]
pub(super) struct Direct {
    file: Option<File>,
    refused: AtomicBool,
}

impl Direct {
    /// Opens what `file` is once more. It cannot fail: where there is no such way, nothing is done that way.
    pub(super) fn beside(file: &File, write: bool) -> Self {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let opened = OpenOptions::new().read(true).write(write).custom_flags(libc::O_DIRECT).open(path);
        if let Err(error) = &opened {
            tracing::debug!(%error, "a slot without direct access");
        }
        Self { file: opened.ok(), refused: AtomicBool::new(false) }
    }

    /// Fills `buffer` from `offset`; `None`: to be done the ordinary way.
    pub(super) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Option<io::Result<()>> {
        let file = self.usable(offset, buffer.len())?;
        if !aligned(buffer) {
            return with_room(buffer.len(), |room| {
                let read = self.accept(file.read_exact_at(room, offset));
                buffer.copy_from_slice(room);
                read
            });
        }
        self.accept(file.read_exact_at(buffer, offset))
    }

    /// Writes `bytes` at `offset`; `None`: to be done the ordinary way, whole.
    pub(super) fn write_at(&self, offset: u64, bytes: &[u8]) -> Option<io::Result<()>> {
        let file = self.usable(offset, bytes.len()).filter(|_| bytes.len() >= WRITE_MIN)?;
        if !aligned(bytes) {
            return with_room(bytes.len(), |room| {
                room.copy_from_slice(bytes);
                self.accept(file.write_all_at(room, offset))
            });
        }
        self.accept(file.write_all_at(bytes, offset))
    }

    fn usable(&self, offset: u64, len: usize) -> Option<&File> {
        let on_grid = offset.is_multiple_of(BLOCK) && len.is_multiple_of(GRID);
        self.file.as_ref().filter(|_| on_grid && !self.refused.load(Ordering::Relaxed))
    }

    fn accept(&self, result: io::Result<()>) -> Option<io::Result<()>> {
        match result {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                tracing::debug!(%error, "direct access is refused; going through the page cache");
                self.refused.store(true, Ordering::Relaxed);
                None
            }
            done => Some(done),
        }
    }
}

fn aligned(bytes: &[u8]) -> bool {
    bytes.as_ptr().addr().is_multiple_of(GRID)
}

thread_local! {
    static ROOM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Frees what [`with_room`] keeps for this thread: for threads that outlive their work, in a daemon that then idles.
pub fn give_room_back() {
    drop(ROOM.take());
}

/// Hands out `len` bytes on the grid, of any content. A thread gets the same ones again: no allocation, no page faults.
pub fn with_room<T>(len: usize, work: impl FnOnce(&mut [u8]) -> T) -> T {
    // Taken out while it is used: who asks within `work` gets another.
    let mut room = ROOM.take();
    if room.len() < len + GRID {
        room = vec![0; len + GRID];
    }
    let start = room.as_ptr().align_offset(GRID).min(GRID);
    let (_, from_start) = room.split_at_mut(start);
    let (wanted, _) = from_start.split_at_mut(len);
    let result = work(wanted);
    if room.len() <= KEPT_MAX {
        ROOM.set(room);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_past_the_cache_is_what_goes_through_it() {
        let folder = tempfile::tempdir_in(".").unwrap();
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(folder.path().join("slot")).unwrap();
        file.set_len(4 * WRITE_MIN as u64).unwrap();
        let direct = Direct::beside(&file, true);
        let bytes: Vec<u8> = (0..WRITE_MIN + GRID).map(|at| (at % 251) as u8).collect();
        // Aligned and not, and at an offset that is not the first.
        for from in 0..3 {
            let piece = &bytes[from..from + WRITE_MIN];
            let written = direct.write_at(BLOCK, piece);
            if written.is_none() {
                file.write_all_at(piece, BLOCK).unwrap();
            }
            let mut through = vec![0; WRITE_MIN];
            file.read_exact_at(&mut through, BLOCK).unwrap();
            assert_eq!(through, piece);
            let mut past = vec![0; WRITE_MIN];
            if let Some(read) = direct.read_at(BLOCK, &mut past) {
                read.unwrap();
                assert_eq!(past, piece);
            }
        }
    }

    #[test]
    fn what_is_small_or_off_the_grid_goes_the_ordinary_way() {
        let file = tempfile::tempfile().unwrap();
        let direct = Direct::beside(&file, true);
        assert!(direct.write_at(0, &[0; GRID]).is_none());
        assert!(direct.write_at(1, &vec![0; WRITE_MIN]).is_none());
        assert!(direct.read_at(0, &mut [0; 100]).is_none());
    }

    #[test]
    fn the_end_of_a_slot_is_an_error_and_not_a_refusal() {
        let folder = tempfile::tempdir_in(".").unwrap();
        let path = folder.path().join("slot");
        std::fs::write(&path, vec![1; GRID]).unwrap();
        let direct = Direct::beside(&File::open(&path).unwrap(), false);
        if let Some(read) = direct.read_at(0, &mut vec![0; 2 * GRID]) {
            assert_eq!(read.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn room_is_on_the_grid_and_may_be_asked_for_within() {
        with_room(3 * GRID, |outer| {
            outer.fill(1);
            with_room(5 * GRID, |inner| {
                inner.fill(2);
                assert!(aligned(inner));
            });
            assert!(aligned(outer) && outer.iter().all(|byte| *byte == 1));
        });
        assert_eq!(with_room(GRID, |room| room.len()), GRID);
        give_room_back();
        assert_eq!(ROOM.take().capacity(), 0);
    }
}
