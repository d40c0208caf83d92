//! What happens to bytes on disks.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::image::BLOCK;
use crate::seed::Seed;

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Flips one byte in each of `blocks` different blocks; returns their numbers, ascending.
pub fn flip(path: &Path, seed: u64, blocks: usize) -> Vec<u32> {
    let file = open(path);
    let count = file.metadata().expect("metadata").len() / BLOCK as u64;
    let mut seed = Seed::new(seed);
    let mut chosen = std::collections::BTreeSet::new();
    while chosen.len() < blocks {
        chosen.insert(seed.below(count) as u32);
    }
    for block in &chosen {
        let at = u64::from(*block) * BLOCK as u64 + seed.below(BLOCK as u64);
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("byte to flip");
        file.write_all_at(&[byte[0] ^ (1 + seed.below(255) as u8)], at).expect("byte to flip");
    }
    chosen.into_iter().collect()
}

/// Flips one bit of the byte at a part of a file's length; returns where.
pub fn flip_byte(path: &Path, at: f64) -> u64 {
    let file = open(path);
    let offset = (file.metadata().expect("metadata").len() as f64 * at) as u64;
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("byte to flip");
    file.write_all_at(&[byte[0] ^ 1], offset).expect("byte to flip");
    offset
}

/// Overwrites a range with noise.
pub fn scribble(path: &Path, seed: u64, at: u64, len: usize) {
    open(path).write_all_at(&Seed::new(seed).noise(len), at).expect("noise over a file");
}

/// Cuts a file to a part of its length, as a file system does that lost its last writes.
pub fn tear(path: &Path, keep: f64) {
    let len = fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).len();
    open(path).set_len((len as f64 * keep) as u64).expect("torn file");
}

/// Fills a file with zeros of its own length, as some file systems do after a power cut.
pub fn zero(path: &Path) {
    let len = fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).len();
    fs::write(path, vec![0; len as usize]).expect("zeroed file");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Image;

    #[test]
    fn flipping_changes_just_those_blocks() {
        let folder = tempfile::tempdir().unwrap();
        let (image, path) = (Image::new(1, 1), folder.path().join("i"));
        image.write(&path);
        let flipped = flip(&path, 2, 7);
        assert_eq!(flipped.len(), 7);
        let now = fs::read(&path).unwrap();
        let differ: Vec<u32> = (0_u32..)
            .zip(now.chunks(BLOCK).zip(image.bytes.chunks(BLOCK)))
            .filter(|(_, (a, b))| a != b)
            .map(|(at, _)| at)
            .collect();
        assert_eq!(differ, flipped);
    }
}
