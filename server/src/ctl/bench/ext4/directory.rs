//! Directories: from inodes to paths.

use std::collections::HashMap;

use super::inode::{Inode, Kind, ROOT};
use super::raw::{Super, u16_at, u32_at};

/// Bytes of a path, at most: a damaged tree may be a ring, and every inode holds its path.
const PATH_MAX: usize = 1024;

/// Gives every inode the path of one of its names, or its number in angle brackets as debugfs writes it.
pub(super) fn name_all(image: &[u8], sup: &Super, inodes: &mut [Inode]) {
    let mut names: HashMap<u32, (u32, &[u8])> = HashMap::new();
    for directory in inodes.iter().filter(|inode| inode.kind == Kind::Directory) {
        for (first, count) in &directory.extents {
            for block in (0..u64::from(*count)).map(|offset| first.saturating_add(offset)) {
                entries(sup.block(image, block).unwrap_or(&[]), |child, name| {
                    if name != b"." && name != b".." {
                        names.entry(child).or_insert((directory.number, name));
                    }
                });
            }
        }
    }
    for inode in inodes {
        inode.path = path(&names, inode.number).unwrap_or_else(|| format!("<{}>", inode.number));
    }
}

fn path(names: &HashMap<u32, (u32, &[u8])>, number: u32) -> Option<String> {
    if number == ROOT {
        return Some("/".into());
    }
    let (mut parts, mut at, mut length) = (Vec::new(), number, 0);
    while at != ROOT {
        let (parent, name) = names.get(&at)?;
        parts.push(String::from_utf8_lossy(name));
        at = *parent;
        length += name.len() + 1;
        if length > PATH_MAX {
            return None;
        }
    }
    Some(parts.iter().rev().map(|part| format!("/{part}")).collect())
}

/// The entries of one block of a directory. The inner blocks of a hashed one look like one entry that is free.
fn entries<'a>(block: &'a [u8], mut tell: impl FnMut(u32, &'a [u8])) {
    let mut rest = block;
    while rest.len() >= 8 {
        let (child, length, name) = (u32_at(rest, 0), usize::from(u16_at(rest, 4)), usize::from(rest[6]));
        // The length of an entry that fills a block of 64 KiB does not fit its field.
        let length = if length == 0 || length == 0xFFFF { rest.len() } else { length };
        let Some(entry) = rest.get(..length).filter(|entry| entry.len() >= 8) else { return };
        if let Some(name) = entry.get(8..8 + name).filter(|name| child != 0 && !name.is_empty()) {
            tell(child, name);
        }
        rest = rest.get(length..).unwrap_or(&[]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_of_folders_has_no_path() {
        let names =
            HashMap::from([(5, (6, &b"a"[..])), (6, (5, &b"b"[..])), (7, (ROOT, &b"c"[..])), (8, (7, &b"d"[..]))]);
        assert_eq!(path(&names, 5), None);
        assert_eq!(path(&names, 9), None);
        assert_eq!(path(&names, 8).as_deref(), Some("/c/d"));
        assert_eq!(path(&names, ROOT).as_deref(), Some("/"));
    }

    proptest::proptest! {
        #[test]
        fn any_block_ends(bytes: Vec<u8>) {
            entries(&bytes, |_, name| assert!(!name.is_empty()));
        }
    }
}
