//! Real file systems, made by e2fsprogs from a small tree, and the same with bytes of them changed.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::*;

/// A tree with a large file, small ones, an empty one, a deep folder, a folder of many names, and links.
fn tree(folder: &Path) -> HashMap<String, Vec<u8>> {
    let mut files = HashMap::new();
    let mut big = vec![0; 300_000];
    blake3::Hasher::new().finalize_xof().fill(&mut big);
    files.insert("/big".to_owned(), big);
    files.insert("/a/b/c/deep".to_owned(), b"deep".repeat(1000));
    for number in 0..300 {
        files.insert(format!("/many/a-rather-long-name-of-a-file-{number}"), format!("file {number}").into_bytes());
    }
    files.insert("/empty".to_owned(), vec![]);
    for (path, bytes) in &files {
        let path = folder.join(&path[1..]);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    std::os::unix::fs::symlink("big", folder.join("short-link")).unwrap();
    std::os::unix::fs::symlink("x".repeat(100), folder.join("long-link")).unwrap();
    files
}

/// An image of the tree, or `None`, loudly, where there is no mke2fs.
pub fn make(options: &[&str], source: &Path, mebibytes: u32) -> Option<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let mut command = Command::new("mke2fs");
    command.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").args(["-q", "-F"]).args(options).arg("-d").arg(source);
    match command.arg(&image).arg(format!("{mebibytes}M")).output() {
        Err(_) => {
            eprintln!("SKIPPED: mke2fs is not installed (scripts/install-packages images)");
            None
        }
        Ok(output) => {
            assert!(output.status.success(), "mke2fs: {}", String::from_utf8_lossy(&output.stderr));
            Some(std::fs::read(image).unwrap())
        }
    }
}

/// A file's bytes, by its extents.
fn content(map: &Map, image: &[u8], inode: &Inode) -> Vec<u8> {
    let size = map.block_size as usize;
    let part = |(first, count): &(u64, u32)| image[*first as usize * size..][..*count as usize * size].to_vec();
    inode.extents.iter().flat_map(part).collect()
}

fn check(options: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let files = tree(folder.path());
    let Some(image) = make(options, folder.path(), 16) else { return };
    let map = Map::read(&image).unwrap();
    let by_path: HashMap<&str, &Inode> = map.inodes.iter().map(|inode| (inode.path.as_str(), inode)).collect();
    for (path, bytes) in &files {
        let inode = by_path.get(path.as_str()).unwrap_or_else(|| panic!("{options:?}: {path} is not found"));
        assert_eq!(inode.kind, Kind::File);
        if map.block_size < 4096 && options.contains(&"ext2") && path == "/big" {
            // The list of blocks itself is claimed, but not part of the content.
            assert!(inode.fragments() >= 1);
        }
        assert!(content(&map, &image, inode).starts_with(bytes), "{options:?}: {path} has another content");
        assert!(map.head(&image, inode).starts_with(&bytes[..bytes.len().min(1000)]));
    }
    for path in ["/", "/a/b", "/many", "/lost+found"] {
        assert_eq!(by_path[path].kind, Kind::Directory, "{path}");
    }
    assert_eq!(by_path["/long-link"].extents.len(), 1);
    assert_eq!(by_path["/short-link"].extents.len(), 0);
    owners(&map, &image, options);
}

/// What the superblock says is free is what nobody owns.
fn owners(map: &Map, image: &[u8], options: &[&str]) {
    let count = |owner: Owner| (0..image.len() as u32 / 4096).filter(|block| map.owner(*block) == owner).count() as u64;
    let free = u64::from(raw::u32_at(image, 1024 + 12)) * map.block_size / 4096;
    // Of several small blocks in one of 4 KiB the used one counts.
    let found = count(Owner::Free);
    assert!(found <= free && found + free / 20 + 8 >= free, "{options:?}: {found} of {free} free blocks found");
    for owner in [Owner::Inodes, Owner::Bitmaps, Owner::Own] {
        assert!(count(owner) > 0, "{options:?}: no {owner:?}");
    }
    let journal = count(Owner::Journal);
    assert_eq!(journal > 0, !options.contains(&"ext2"), "{options:?}: {journal} blocks of journal");
}

#[test]
fn every_file_is_found_with_its_bytes_whatever_made_the_image() {
    check(&["-t", "ext4"]);
    check(&["-t", "ext4", "-b", "1024", "-I", "256"]);
    check(&["-t", "ext4", "-b", "4096", "-O", "^64bit,^metadata_csum,^flex_bg"]);
    check(&["-t", "ext3", "-b", "4096"]);
    check(&["-t", "ext2", "-b", "1024"]);
    check(&["-t", "ext2", "-b", "2048", "-r", "0"]);
}

#[test]
fn what_cannot_be_read_says_why() {
    assert_eq!(Map::read(&[]).unwrap_err(), Ext4Error::Magic);
    assert_eq!(Map::read(&[7; 1 << 16]).unwrap_err(), Ext4Error::Magic);
    let folder = tempfile::tempdir().unwrap();
    let Some(image) = make(&["-t", "ext4"], folder.path(), 8) else { return };
    let damaged = |at: usize, bytes: &[u8]| {
        let mut image = image.clone();
        image[1024 + at..1024 + at + bytes.len()].copy_from_slice(bytes);
        Map::read(&image).unwrap_err()
    };
    assert_eq!(damaged(24, &[9]), Ext4Error::Field { what: "block size", got: 9 });
    assert_eq!(damaged(32, &[0; 4]), Ext4Error::Field { what: "blocks in a group", got: 0 });
    assert_eq!(damaged(40, &[0; 4]), Ext4Error::Field { what: "inodes in a group", got: 0 });
    assert_eq!(damaged(88, &[3, 0]), Ext4Error::Field { what: "inode size", got: 3 });
    assert!(matches!(damaged(4, &[0xFF; 4]), Ext4Error::Field { what: "number of blocks", .. }));
    assert!(matches!(damaged(96, &[0xFF; 4]), Ext4Error::Feature(_)));
    assert!(matches!(Map::read(&image[..image.len() / 2]), Err(Ext4Error::Field { .. })), "it is cut");
}

#[test]
fn inodes_that_claim_more_than_there_is_are_refused_in_bounded_time() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("f"), vec![1; 8192]).unwrap();
    let Some(mut image) = make(&["-t", "ext4", "-b", "4096"], folder.path(), 8) else { return };
    let file = Map::read(&image).unwrap().inodes.into_iter().find(|inode| inode.path == "/f").unwrap();
    // An extent of 32768 blocks, four times.
    let record = &mut image[file.record];
    record[40 + 2] = 4;
    for entry in 0..4 {
        record[52 + 12 * entry + 4..52 + 12 * entry + 6].copy_from_slice(&0x8000_u16.to_le_bytes());
    }
    assert_eq!(Map::read(&image).unwrap_err(), Ext4Error::Tangled);
}

#[test]
fn a_change_of_times_alone_is_told_from_others() {
    let mut record = vec![1; 256];
    let old = record.clone();
    assert_eq!(Change::between(&old, &record), Change::Same);
    record[0x08] = 2;
    record[0x90] = 2;
    assert_eq!(Change::between(&old, &record), Change::Times);
    record[4] = 2;
    assert_eq!(Change::between(&old, &record), Change::More);
    assert_eq!(Change::between(&old, &old[..128]), Change::More);
}

/// A good image, once for all cases below.
fn good() -> &'static [u8] {
    static IMAGE: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        tree(folder.path());
        let mut image = make(&["-t", "ext4", "-b", "1024"], folder.path(), 8).unwrap_or_default();
        image.truncate(2 << 20);
        // It ends here, and says so.
        if image.len() > 2048 {
            image[1024 + 4..1024 + 8].copy_from_slice(&2048_u32.to_le_bytes());
        }
        image
    });
    &IMAGE
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn damage_gives_an_error_or_a_map_and_nothing_else(
        changes in proptest::collection::vec((0.0_f64..1.0, any::<u8>(), any::<bool>()), 1..12),
    ) {
        let mut image = good().to_vec();
        for (at, value, head) in changes {
            // Half of it where the structure is.
            let len = if head { image.len().min(256 << 10) } else { image.len() };
            let at = (at * len as f64) as usize;
            if let Some(byte) = image.get_mut(at) {
                *byte = value;
            }
        }
        let _ = Map::read(&image);
    }

    #[test]
    fn any_superblock_gives_an_error_or_a_map(mut sup in proptest::collection::vec(any::<u8>(), 1024), small: bool) {
        sup[56..58].copy_from_slice(&[0x53, 0xEF]);
        // Often enough something that gets past the first checks.
        if small {
            sup[24..28].fill(0);
            sup[4..8].copy_from_slice(&64_u32.to_le_bytes());
            sup[96..104].fill(0);
            sup[20..24].copy_from_slice(&1_u32.to_le_bytes());
        }
        let image = [vec![0; 1024], sup, vec![0x5A; 62 << 10]].concat();
        let _ = Map::read(&image);
    }
}
