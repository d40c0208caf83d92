//! Images made from seeds: a few MiB that have what real ones have: noise, text, zeros, repeats.
//!
//! The next version of an image is made by changing the last one, so that a test says what changed: [`Image::edited`],
//! [`Image::shifted`], [`Image::grown`], [`Image::hashed`].

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use goldsync_proto::verity::{Salted, Tree};

use crate::seed::Seed;

/// Bytes in a block.
pub const BLOCK: usize = 4096;
/// Bytes in a MiB.
pub const MIB: usize = 1 << 20;

/// An image in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// All of it; whole blocks.
    pub bytes: Vec<u8>,
}

impl Image {
    /// `mib` MiB, as a file system would have them: of each 16 extents of 64 KiB, seven are text, five are noise, three are
    /// zeros and one repeats an earlier one.
    pub fn new(seed: u64, mib: usize) -> Self {
        const EXTENT: usize = 64 << 10;
        let mut seed = Seed::new(seed);
        let mut bytes = Vec::with_capacity(mib * MIB);
        while bytes.len() < mib * MIB {
            match bytes.len() / EXTENT % 16 {
                0 | 2 | 3 | 6 | 9 | 12 | 13 => bytes.extend(seed.text(EXTENT)),
                1 | 4 | 7 | 10 | 14 => bytes.extend(seed.noise(EXTENT)),
                5 | 8 | 11 => bytes.resize(bytes.len() + EXTENT, 0),
                _ => bytes.extend_from_within(..EXTENT),
            }
        }
        Self { bytes }
    }

    /// `mib` MiB of noise: what travels is what it weighs.
    pub fn noise(seed: u64, mib: usize) -> Self {
        Self { bytes: Seed::new(seed).noise(mib * MIB) }
    }

    /// `mib` MiB of zeros with one block of noise in each.
    pub fn sparse(seed: u64, mib: usize) -> Self {
        let mut image = Self { bytes: vec![0; mib * MIB] };
        let mut seed = Seed::new(seed);
        for start in (0..image.bytes.len()).step_by(MIB) {
            image.bytes[start + 5 * BLOCK..start + 6 * BLOCK].copy_from_slice(&seed.noise(BLOCK));
        }
        image
    }

    /// The same with `blocks` blocks, here and there, replaced by noise.
    pub fn edited(&self, seed: u64, blocks: usize) -> Self {
        let mut image = self.clone();
        let mut seed = Seed::new(seed);
        for _ in 0..blocks {
            let at = seed.below((image.bytes.len() / BLOCK) as u64) as usize * BLOCK;
            image.bytes[at..at + BLOCK].copy_from_slice(&seed.noise(BLOCK));
        }
        image
    }

    /// The same with one byte changed at each of `places` places: what a rebuild does to a binary.
    pub fn nudged(&self, seed: u64, places: usize) -> Self {
        let mut image = self.clone();
        let mut seed = Seed::new(seed);
        for _ in 0..places {
            let at = seed.below(image.bytes.len() as u64) as usize;
            image.bytes[at] ^= 1 + seed.below(255) as u8;
        }
        image
    }

    /// The same with `by` bytes inserted at `at`; as long as before. With `by` off the grid no block behind it stays equal.
    pub fn shifted(&self, seed: u64, at: usize, by: usize) -> Self {
        let mut bytes = self.bytes.clone();
        bytes.splice(at..at, Seed::new(seed).noise(by));
        bytes.truncate(self.bytes.len());
        Self { bytes }
    }

    /// The same with `mib` MiB more.
    pub fn grown(&self, seed: u64, mib: usize) -> Self {
        let mut image = self.clone();
        image.bytes.extend(Self::new(seed, mib).bytes);
        image
    }

    /// The same with a dm-verity hash tree behind it, as `veritysetup format --hash-offset` makes it.
    pub fn hashed(&self, salt: &[u8]) -> Self {
        let blocks = (self.bytes.len() / BLOCK) as u32;
        let tree = Tree { data: 0, blocks, at: blocks + 1, salted: Salted::Before, salt: salt.to_vec() };
        let mut bytes = self.bytes.clone();
        bytes.resize(tree.range().end as usize * BLOCK, 0);
        let mut put = |at: usize, what: &[u8]| bytes[self.bytes.len() + at..][..what.len()].copy_from_slice(what);
        put(0, b"verity\0\0");
        [8, 12].into_iter().for_each(|at| put(at, &1_u32.to_le_bytes()));
        put(32, b"sha256");
        [64, 68].into_iter().for_each(|at| put(at, &(BLOCK as u32).to_le_bytes()));
        put(72, &u64::from(blocks).to_le_bytes());
        put(80, &(salt.len() as u16).to_le_bytes());
        put(88, salt);
        for block in tree.levels().into_iter().flatten() {
            let (first, count) = tree.below(block).expect("a block of the tree");
            let made = tree.derive(&bytes[first as usize * BLOCK..][..count as usize * BLOCK]);
            bytes[block as usize * BLOCK..][..BLOCK].copy_from_slice(&made);
        }
        Self { bytes }
    }

    /// The first `mib` MiB of it.
    pub fn cut(&self, mib: usize) -> Self {
        Self { bytes: self.bytes[..mib * MIB].to_vec() }
    }

    /// As `b3sum` prints it.
    pub fn id(&self) -> String {
        blake3::hash(&self.bytes).to_hex().to_string()
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Writes it as a file, with holes where it is zero.
    pub fn write(&self, path: &Path) -> PathBuf {
        let file = File::create(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        file.set_len(self.len()).expect("length of an image");
        for (at, extent) in self.bytes.chunks(BLOCK).enumerate() {
            if extent.iter().any(|byte| *byte != 0) {
                file.write_all_at(extent, (at * BLOCK) as u64).expect("block of an image");
            }
        }
        path.to_owned()
    }

    /// Writes it over a device or a file, without changing its length.
    pub fn write_over(&self, path: &Path) {
        let file = File::options().write(true).open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        file.write_all_at(&self.bytes, 0).expect("image over a device");
        file.sync_all().expect("sync of a device");
    }
}

/// The BLAKE3 of a file, as `b3sum` prints it.
pub fn b3sum(path: &Path) -> String {
    let mut hasher = blake3::Hasher::new();
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    hasher.update_reader(file).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_what_they_say() {
        let image = Image::new(1, 2);
        assert_eq!(image.len(), 2 << 20);
        assert_eq!(image, Image::new(1, 2));
        assert_ne!(image, Image::new(2, 2));
        let differing =
            |a: &Image, b: &Image| a.bytes.chunks(BLOCK).zip(b.bytes.chunks(BLOCK)).filter(|(a, b)| a != b).count();
        assert!((1..=9).contains(&differing(&image, &image.edited(3, 9))));
        assert!((1..=9).contains(&differing(&image, &image.nudged(3, 9))));
        let shifted = image.shifted(4, 70_000, 100);
        assert_eq!(shifted.bytes[70_100..], image.bytes[70_000..image.bytes.len() - 100]);
        assert_eq!(image.grown(5, 1).cut(2), image);
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(b3sum(&image.write(&folder.path().join("i"))), image.id());
    }
}
