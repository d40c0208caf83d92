//! One word for every block of an image, without it counting as this process's own memory.
//!
//! An image of 20 GiB has five million blocks; forty megabytes of hashes or decisions about them do not fit an agent
//! that may take 64 MiB in all. So they live in a file in the state folder, mapped shared: the kernel may write them out
//! when it needs the room. Zero means "not known". Several threads may set words at once: each word is atomic, and
//! nothing is ordered between two of them but by the joins of the threads.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapMut, MmapOptions};

/// A file of words, mapped.
#[derive(Debug)]
pub struct Words {
    map: MmapMut,
}

impl Words {
    /// `len` words of zero that are gone with this value. `folder` says on which file system.
    pub fn temporary(folder: &Path, len: u32) -> io::Result<Self> {
        let path = folder.join("scratch");
        let file = options().truncate(true).open(&path)?;
        // Gone by name at once, so that no crash leaves it behind; the mapping keeps the bytes.
        std::fs::remove_file(&path)?;
        Self::map(&file, len)
    }

    /// The `len` words of a file that is kept, made if it is missing.
    pub fn kept(path: &Path, len: u32) -> io::Result<Self> {
        Self::map(&options().truncate(false).open(path)?, len)
    }

    fn map(file: &File, len: u32) -> io::Result<Self> {
        let bytes = u64::from(len) * 8;
        file.set_len(bytes)?;
        // SAFETY: the file lies in a folder that belongs to this program, and a lock keeps other runs of it away: nobody
        // shortens it while it is mapped.
        let map = unsafe { MmapOptions::new().len(bytes as usize).map_mut(file) }?;
        Ok(Self { map })
    }

    fn cells(&self) -> &[AtomicU64] {
        // SAFETY: every bit pattern is an AtomicU64, and all access to the mapping goes through these cells.
        let (_, cells, _) = unsafe { self.map.align_to::<AtomicU64>() };
        cells
    }

    /// Word `index`; zero beyond the end.
    pub fn get(&self, index: u32) -> u64 {
        self.cells().get(index as usize).map_or(0, |cell| cell.load(Ordering::Relaxed))
    }

    /// Sets word `index`; beyond the end there is nothing to set.
    pub fn set(&self, index: u32, word: u64) {
        if let Some(cell) = self.cells().get(index as usize) {
            cell.store(word, Ordering::Relaxed);
        }
    }

    /// Words.
    pub fn len(&self) -> u32 {
        self.cells().len() as u32
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The words as they lie in the file: little-endian, as on every machine that this runs on. To be read while no thread
    /// sets any, or a reader may see a word from before or after.
    pub fn as_bytes(&self) -> &[u8] {
        &self.map
    }
}

fn options() -> std::fs::OpenOptions {
    let mut options = File::options();
    options.read(true).write(true).create(true);
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_zero_until_set_and_kept_where_asked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kept");
        let words = Words::kept(&path, 3).unwrap();
        assert_eq!((words.get(2), words.get(3)), (0, 0));
        words.set(2, 7);
        words.set(3, 9);
        drop(words);
        assert_eq!(Words::kept(&path, 3).unwrap().get(2), 7);
        let temporary = Words::temporary(folder.path(), 2).unwrap();
        temporary.set(0, 1);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "a temporary one has no name");
    }
}
