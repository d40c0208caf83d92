//! What a file's first bytes say of its content: whether it is compressed, so that a small change within changes all of it.

const MARKS: &[(&[u8], &str)] = &[
    (&[0x1f, 0x8b], "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
    (b"BZh", "bzip2"),
    (&[0x04, 0x22, 0x4d, 0x18], "lz4"),
    (&[0x02, 0x21, 0x4c, 0x18], "lz4"),
    (b"PK\x03\x04", "zip"),
    (b"hsqs", "squashfs"),
    (&[0x5d, 0x00, 0x00], "lzma"),
];

/// Names of files that are compressed inside, whatever they begin with: kernels unpack themselves, and an initrd may have a
/// plain archive of microcode before it.
const NAMES: &[(&str, &str)] = &[("/vmlinuz", "a kernel"), ("/initrd", "an initrd"), ("/initramfs", "an initrd")];

/// Which compression a file holds, if any.
pub fn compressed(head: &[u8], path: &str) -> Option<&'static str> {
    let mark = MARKS.iter().find(|(mark, _)| head.starts_with(mark)).map(|(_, name)| *name);
    let at = path.rfind('/').unwrap_or(0);
    let name = path.get(at..).unwrap_or_default();
    mark.or_else(|| NAMES.iter().find(|(begin, _)| name.starts_with(begin)).map(|(_, what)| *what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compressed_is_told_by_its_begin_or_its_name() {
        assert_eq!(compressed(&[0x1f, 0x8b, 8], "/usr/share/man/man1/ls.1.gz"), Some("gzip"));
        assert_eq!(compressed(b"MZ", "/boot/vmlinuz-6.1"), Some("a kernel"));
        assert_eq!(compressed(b"070701", "/boot/initrd.img-6.1"), Some("an initrd"));
        assert_eq!(compressed(b"\x7fELF", "/usr/bin/zstd"), None);
        assert_eq!(compressed(b"", ""), None);
    }
}
