//! Two images of real data, for machines that have no images of their own: an old one, and one a release later.
//!
//! The data are files of the Rust toolchain that built this program. They are packed as a plain archive: an index of
//! names and places, padded, then each file at a multiple of 4096 bytes, as a file system would lay it, then free space.
//! It is no file system and cannot be mounted; to goldsync that is all the same.
//!
//! The new image is what an upgrade does, on real content: of every 24 files one has lines inserted near its middle (so
//! that its second half moves off the grid), one is patched in place, one is gone, and one has come; all that follow a file
//! which changed its length move by whole blocks.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

const BLOCK: usize = 4096;

/// Two images, and what they are.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The old image.
    pub old: PathBuf,
    /// The new image.
    pub new: PathBuf,
    /// One line for people.
    pub what: String,
}

/// Makes a pair of about `mebibytes` each in `folder`.
pub fn from_toolchain(folder: &Path, mebibytes: u64) -> Result<Pair> {
    let sysroot = sysroot()?;
    let mut files = Vec::new();
    // Libraries and programs, as an operating system is made of; the documentation is many times as many small files.
    for part in ["lib/rustlib", "bin"] {
        collect(&sysroot.join(part), &mut files)?;
    }
    // By size, small first, within what fits: many files, and not one huge library.
    files.sort();
    files.sort_by_key(|(_, size)| *size);
    let mut room = mebibytes << 20;
    files.retain(|(_, size)| {
        let fits = *size <= room;
        room -= if fits { size.next_multiple_of(BLOCK as u64) } else { 0 };
        fits
    });
    ensure!(
        files.len() >= 48,
        "only {} files in the Rust toolchain at {}; give --old and --new",
        files.len(),
        sysroot.display()
    );
    files.sort();
    let names: Vec<PathBuf> = files.into_iter().map(|(path, _)| path).collect();

    let (old, new) = (folder.join("old.image"), folder.join("new.image"));
    let (kept, changed) = (|at: usize| at % 24 != 23, |at: usize| at % 24 != 11);
    pack(
        &sysroot,
        &old,
        names.iter().enumerate().filter(|(at, _)| kept(*at)).map(|(_, name)| (name.as_path(), Edit::None)),
    )?;
    let edited = names.iter().enumerate().filter(|(at, _)| changed(*at)).map(|(at, name)| {
        let edit = match at % 24 {
            5 => Edit::Insert,
            17 => Edit::Patch,
            _ => Edit::None,
        };
        (name.as_path(), edit)
    });
    pack(&sysroot, &new, edited)?;
    let what = format!(
        "{} files of the Rust toolchain in {}, packed as an archive on a grid of 4096 bytes",
        names.len(),
        sysroot.display()
    );
    Ok(Pair { old, new, what })
}

/// What happens to a file between the two images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edit {
    None,
    /// Bytes are inserted before its middle.
    Insert,
    /// Some bytes are overwritten.
    Patch,
}

fn sysroot() -> Result<PathBuf> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output =
        Command::new(rustc).args(["--print", "sysroot"]).output().context("cannot run rustc; give --old and --new")?;
    ensure!(output.status.success(), "rustc --print sysroot failed; give --old and --new");
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}

fn collect(folder: &Path, into: &mut Vec<(PathBuf, u64)>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            collect(&entry.path(), into)?;
        } else if kind.is_file() {
            into.push((entry.path(), entry.metadata()?.len()));
        }
    }
    Ok(())
}

fn pack<'a>(root: &Path, image: &Path, files: impl Iterator<Item = (&'a Path, Edit)> + Clone) -> Result<()> {
    let mut index = String::new();
    for (path, _) in files.clone() {
        index.push_str(&format!("{}\n", path.strip_prefix(root).unwrap_or(path).display()));
    }
    let mut out = BufWriter::new(File::create(image).with_context(|| format!("make {}", image.display()))?);
    let mut written = put(&mut out, index.as_bytes())?;
    for (path, edit) in files {
        let mut bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        apply(edit, &mut bytes);
        written += put(&mut out, &bytes)?;
    }
    // A file system has room left: an eighth, as a hole.
    let file = out.into_inner().context("write the image")?;
    file.set_len(written + (written / 8).next_multiple_of(BLOCK as u64)).context("write the image")
}

fn apply(edit: Edit, bytes: &mut Vec<u8>) {
    let middle = bytes.len() / 2;
    match edit {
        Edit::None => {}
        Edit::Insert => drop(bytes.splice(middle..middle, b"one line more, as of the next release\n".repeat(3))),
        Edit::Patch => bytes.iter_mut().skip(middle).take(64).for_each(|byte| *byte = byte.wrapping_add(1)),
    }
}

/// Writes bytes, padded to whole blocks. Returns how many it came to.
fn put(out: &mut impl Write, bytes: &[u8]) -> Result<u64> {
    let padded = bytes.len().next_multiple_of(BLOCK);
    out.write_all(bytes)?;
    out.write_all(&[0; BLOCK][..padded - bytes.len()])?;
    Ok(padded as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pair_is_on_the_grid_and_mostly_alike() {
        let folder = tempfile::tempdir().unwrap();
        let pair = from_toolchain(folder.path(), 8).unwrap();
        let (old, new) = (fs::read(&pair.old).unwrap(), fs::read(&pair.new).unwrap());
        assert!(old != new && old.len().is_multiple_of(BLOCK) && new.len().is_multiple_of(BLOCK));
        let known: std::collections::HashSet<_> = old.chunks(BLOCK).collect();
        let same = new.chunks(BLOCK).filter(|block| known.contains(block)).count();
        let all = new.len() / BLOCK;
        assert!(same * 10 > all * 7 && same < all, "{same} of {all} blocks are the old image's");
    }
}
