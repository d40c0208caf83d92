//! What an image's content looks like, by its first bytes: for people, and for who mounts it.

/// Bytes that [`detect`] looks at: btrfs keeps its mark furthest in.
pub const HEAD_LEN: u64 = 68 << 10;

/// Marks by which an image's content is recognised: offset, bytes, name. The first that fits counts, so that a file
/// system is told before the boot sector that it may carry, and a partition table before the sector that protects it.
const MARKS: &[(usize, &[u8], &str)] = &[
    (0, b"hsqs", "squashfs"),
    (1024, &[0xe2, 0xe1, 0xf5, 0xe0], "erofs"),
    (0, b"XFSB", "xfs"),
    (0x1_0040, b"_BHRfS_M", "btrfs"),
    (1024, &[0x10, 0x20, 0xf5, 0xf2], "f2fs"),
    (0, b"LUKS\xba\xbe", "luks"),
    (0x8001, b"CD001", "iso9660"),
    (512, b"EFI PART", "gpt"),
    (4096, b"EFI PART", "gpt"),
    (0x52, b"FAT32   ", "vfat"),
    (0x36, b"FAT16   ", "vfat"),
    (0x36, b"FAT12   ", "vfat"),
    (3, b"NTFS    ", "ntfs"),
    (3, b"EXFAT   ", "exfat"),
    (257, b"ustar", "tar"),
    (0, b"QFI\xfb", "qcow2"),
    (0, b"KDMV", "vmdk"),
    (0, &[0x1f, 0x8b], "gzip"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, &[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
    (510, &[0x55, 0xaa], "mbr"),
];

/// Names what an image's first bytes look like.
pub fn detect(head: &[u8]) -> Option<&'static str> {
    let holds = |offset: usize, mark: &[u8]| head.get(offset..offset + mark.len()) == Some(mark);
    if holds(0x438, &[0x53, 0xef]) {
        return Some(detect_ext(head));
    }
    MARKS.iter().find(|(offset, mark, _)| holds(*offset, mark)).map(|(_, _, name)| *name)
}

fn detect_ext(head: &[u8]) -> &'static str {
    let word = |offset: usize| head.get(offset..offset + 4).and_then(|bytes| bytes.try_into().ok());
    let features = |offset: usize| word(offset).map_or(0, u32::from_le_bytes);
    let (compatible, incompatible) = (features(0x45c), features(0x460));
    // Extents, 64-bit block numbers, flexible block groups: what only ext4 knows.
    if incompatible & (0x40 | 0x80 | 0x200) != 0 {
        "ext4"
    } else if compatible & 0x4 != 0 {
        "ext3"
    } else {
        "ext2"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(marks: &[(usize, &[u8])]) -> Vec<u8> {
        let mut head = vec![0; HEAD_LEN as usize];
        for (offset, mark) in marks {
            head[*offset..offset + mark.len()].copy_from_slice(mark);
        }
        head
    }

    #[test]
    fn file_systems_are_told_by_their_marks() {
        let boot: (usize, &[u8]) = (510, &[0x55, 0xaa]);
        let ext: (usize, &[u8]) = (0x438, &[0x53, 0xef]);
        for (marks, name) in [
            (vec![ext, (0x460, &[0x40, 0, 0, 0][..]), boot], Some("ext4")),
            (vec![ext, (0x45c, &[4])], Some("ext3")),
            (vec![ext], Some("ext2")),
            (vec![(0, &b"hsqs"[..])], Some("squashfs")),
            (vec![(1024, &[0xe2, 0xe1, 0xf5, 0xe0][..])], Some("erofs")),
            (vec![(0, &b"XFSB"[..])], Some("xfs")),
            (vec![(0x1_0040, &b"_BHRfS_M"[..])], Some("btrfs")),
            (vec![boot, (0x52, b"FAT32   ")], Some("vfat")),
            (vec![boot, (512, b"EFI PART")], Some("gpt")),
            (vec![boot], Some("mbr")),
            (vec![], None),
        ] {
            assert_eq!(detect(&head(&marks)), name);
        }
        assert_eq!(detect(b""), None);
        assert_eq!(detect(&[0x53; 0x439]), None);
    }
}
