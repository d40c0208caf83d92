//! What an image is, by its first bytes; for people, nothing depends on it.

/// How many bytes from the start are enough to tell.
pub const HEAD: usize = 68 << 10;

/// A mark at a fixed place.
struct Mark {
    name: &'static str,
    offset: usize,
    bytes: &'static [u8],
}

/// Those inside a disk's first sector come last: file systems may hold boot code too.
const MARKS: [Mark; 12] = [
    Mark { name: "squashfs", offset: 0, bytes: b"hsqs" },
    Mark { name: "xfs", offset: 0, bytes: b"XFSB" },
    Mark { name: "erofs", offset: 1024, bytes: &[0xe2, 0xe1, 0xf5, 0xe0] },
    Mark { name: "f2fs", offset: 1024, bytes: &[0x10, 0x20, 0xf5, 0xf2] },
    Mark { name: "btrfs", offset: 0x10040, bytes: b"_BHRfS_M" },
    Mark { name: "iso9660", offset: 0x8001, bytes: b"CD001" },
    Mark { name: "gpt", offset: 512, bytes: b"EFI PART" },
    Mark { name: "gpt", offset: 4096, bytes: b"EFI PART" },
    Mark { name: "luks", offset: 0, bytes: b"LUKS\xba\xbe" },
    Mark { name: "vfat", offset: 0x52, bytes: b"FAT32   " },
    Mark { name: "vfat", offset: 0x36, bytes: b"FAT16   " },
    Mark { name: "mbr", offset: 510, bytes: &[0x55, 0xaa] },
];

/// The name of what begins with `head`, if it is known.
pub fn recognise(head: &[u8]) -> Option<&'static str> {
    let at = |offset: usize, bytes: &[u8]| head.get(offset..offset + bytes.len()) == Some(bytes);
    if at(0x438, &[0x53, 0xef]) {
        return Some(ext_version(head));
    }
    MARKS.iter().find(|mark| at(mark.offset, mark.bytes)).map(|mark| mark.name)
}

/// ext2, 3 and 4 share one mark; their feature words tell them apart.
fn ext_version(head: &[u8]) -> &'static str {
    let word =
        |offset: usize| head.get(offset..).and_then(|rest| rest.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b));
    let (has_journal, extents_or_newer) = (word(0x45c) & 0x4 != 0, word(0x460) & !0x1f != 0);
    match (extents_or_newer, has_journal) {
        (true, _) => "ext4",
        (false, true) => "ext3",
        (false, false) => "ext2",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(offset: usize, bytes: &[u8]) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        head[offset..offset + bytes.len()].copy_from_slice(bytes);
        head
    }

    #[test]
    fn every_mark_is_known_by_its_place() {
        for mark in &MARKS {
            assert_eq!(recognise(&with(mark.offset, mark.bytes)), Some(mark.name));
            assert!(mark.offset + mark.bytes.len() <= HEAD, "{} lies behind the head", mark.name);
        }
        assert_eq!(recognise(&[0; HEAD]), None);
        assert_eq!(recognise(b"hsq"), None);
    }

    #[test]
    fn a_disk_with_both_tables_is_gpt_and_a_file_system_with_boot_code_is_itself() {
        let mut disk = with(512, b"EFI PART");
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(recognise(&disk), Some("gpt"));
        let mut ext4 = with(0x438, &[0x53, 0xef]);
        ext4[0x460] = 0x42;
        ext4[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(recognise(&ext4), Some("ext4"));
        ext4[0x460] = 0x02;
        assert_eq!(recognise(&ext4), Some("ext2"));
        ext4[0x45c] = 0x04;
        assert_eq!(recognise(&ext4), Some("ext3"));
    }
}
