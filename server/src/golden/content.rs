//! An image's bytes as they are published: a file's or a block device's, and behind them perhaps a hash tree that was made for them
//! and is in memory only. What was given is never written.

use std::fs::File;
use std::io;

use goldsync_proto::block::Geometry;
use goldsync_proto::digest::ImageId;
use goldsync_proto::verity::{self, Sealed};
use memmap2::{Mmap, MmapOptions};

use crate::store::regions::{ReadAt, id_of_file};

/// The bytes of an image.
#[derive(Debug)]
pub(super) struct Content {
    file: File,
    length: u64,
    tail: Vec<u8>,
    /// What the tail says.
    appended: Option<Sealed>,
}

impl Content {
    /// All that is in a file of so many bytes.
    pub(super) fn of(file: File, length: u64) -> Self {
        Self { file, length, tail: Vec::new(), appended: None }
    }

    /// All of it.
    pub(super) fn size(&self) -> u64 {
        self.length + self.tail.len() as u64
    }

    /// What the hash tree that it carries says, if it carries one over all of its data. Reads all of it.
    pub(super) fn sealed(&self) -> io::Result<Option<Sealed>> {
        if self.appended.is_some() {
            return Ok(self.appended.clone());
        }
        let image = self.map()?;
        Ok(Sealed::of(&image, &verity::find(&image)))
    }

    /// Appends a hash tree. Reads all of it, twice.
    pub(super) fn seal(&mut self) -> io::Result<Sealed> {
        let geometry = Geometry::new(self.length).map_err(io::Error::other)?;
        let id: ImageId = id_of_file(&self.file, geometry)?.ok_or_else(|| io::Error::other("regions are missing"))?;
        let (tail, sealed) = verity::seal(&self.map()?, id).map_err(io::Error::other)?;
        (self.tail, self.appended) = (tail, Some(sealed.clone()));
        Ok(sealed)
    }

    #[allow(
        unsafe_code,
        reason = "an image that does not fit into memory is hashed by its blocks, which lie far apart"
    )]
    fn map(&self) -> io::Result<Mmap> {
        let length = usize::try_from(self.length).map_err(io::Error::other)?;
        // SAFETY: nothing may write to an image while it is published; if something cuts it, the process dies of it. What was
        // hashed wrongly meanwhile is noticed by the file's times and by the hash of the whole, and nothing is signed then.
        unsafe { MmapOptions::new().len(length).map(&self.file) }
    }
}

impl ReadAt for Content {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let of_file = self.length.saturating_sub(offset).min(buffer.len() as u64) as usize;
        let (of_file, of_tail) = buffer.split_at_mut(of_file);
        if !of_file.is_empty() {
            ReadAt::read_exact_at(&self.file, of_file, offset)?;
        }
        if of_tail.is_empty() {
            return Ok(());
        }
        let start = offset.saturating_sub(self.length) as usize;
        let held = self.tail.get(start..).and_then(|rest| rest.get(..of_tail.len()));
        of_tail.copy_from_slice(held.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn is_hole(&self, start: u64, end: u64) -> bool {
        end <= self.length && self.file.is_hole(start, end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_tree_that_is_appended_reads_like_the_rest() {
        let bytes: Vec<u8> = (0..300 * 4096_u64).map(|i| ((i * i) >> 9) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let mut content = Content::of(file, bytes.len() as u64);
        assert_eq!(content.sealed().unwrap(), None);
        let sealed = content.seal().unwrap();
        let (tail, expected) = verity::seal(&bytes, ImageId::of(&bytes)).unwrap();
        assert_eq!(content.sealed().unwrap().as_ref(), Some(&sealed));
        assert_eq!((&sealed, content.size()), (&expected, (bytes.len() + tail.len()) as u64));
        let whole = [bytes, tail].concat();
        for (from, to) in [(0, whole.len()), (299 * 4096 + 5, 301 * 4096), (300 * 4096, 302 * 4096), (4, 5)] {
            let mut read = vec![0; to - from];
            content.read_exact_at(&mut read, from as u64).unwrap();
            assert_eq!(read, whole[from..to]);
        }
        let beyond = content.read_exact_at(&mut [0; 2], whole.len() as u64 - 1).unwrap_err();
        assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
        // Once it is in a file, it is found there.
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&whole).unwrap();
        assert_eq!(Content::of(file, whole.len() as u64).sealed().unwrap(), Some(sealed));
    }
}
