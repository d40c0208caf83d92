//! The kernel's table of mounts, `/proc/self/mountinfo`.

use std::fs;
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The mount's number.
    pub id: u32,
    /// The number of the mount that it lies on.
    pub parent: u32,
    /// The device number of its file system.
    pub device: u64,
    /// Where.
    pub point: PathBuf,
    /// The mount's own options.
    pub options: String,
    /// What is mounted, as who mounted it put it.
    pub source: String,
    /// The file system's options.
    pub super_options: String,
}

/// All mounts of this process's namespace; none, if they cannot be read.
pub fn table() -> Vec<Entry> {
    parse(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

/// What `/proc/PID/mountinfo` says. Lines that are none are left out.
pub fn parse(text: &str) -> Vec<Entry> {
    text.lines().filter_map(entry).collect()
}

/// The mounts on `point`, one over the other: the last is the one that is seen.
pub fn on(table: &[Entry], point: &Path) -> Vec<Entry> {
    let mut here: Vec<&Entry> = table.iter().filter(|entry| entry.point == point).collect();
    let mut stack: Vec<Entry> = Vec::new();
    // The lowest lies on none of the others, each other one on the one before it.
    while let Some(next) = here.iter().position(|entry| match stack.last() {
        None => !here.iter().any(|other| other.id == entry.parent),
        Some(below) => entry.parent == below.id,
    }) {
        stack.push(here.swap_remove(next).clone());
    }
    stack
}

fn entry(line: &str) -> Option<Entry> {
    // 36 35 98:0 /root /point options [optional...] - type source super-options
    let (left, right) = line.split_once(" - ")?;
    let fields: Vec<&str> = left.split(' ').collect();
    let [id, parent, device, _, point, options, ..] = fields.as_slice() else { return None };
    let mut right = right.split(' ');
    Some(Entry {
        id: id.parse().ok()?,
        parent: parent.parse().ok()?,
        device: number_of(device)?,
        point: unescape(point).into(),
        options: (*options).to_owned(),
        source: unescape(right.nth(1)?),
        super_options: right.next().unwrap_or("ro").to_owned(),
    })
}

/// `254:0`, as the kernel writes device numbers.
pub fn number_of(text: &str) -> Option<u64> {
    let (major, minor) = text.trim().split_once(':')?;
    Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// The kernel writes space, tab, line feed and backslash as three octal digits.
pub fn unescape(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_and_what_is_none_is_left_out() {
        let text = "41 27 7:3 / /mnt/old\\040image ro,relatime shared:5 master:1 - squashfs /dev/loop3 ro\ngarbage\n1 2 3 - x\n";
        let expected = Entry {
            id: 41,
            parent: 27,
            device: rustix::fs::makedev(7, 3),
            point: "/mnt/old image".into(),
            options: "ro,relatime".into(),
            source: "/dev/loop3".into(),
            super_options: "ro".into(),
        };
        assert_eq!(parse(text), [expected]);
    }

    #[test]
    fn mounts_on_one_point_are_told_from_the_lowest_to_the_one_that_is_seen() {
        // 43 was put beneath 42 later: the table is in the order of making.
        let text = "\
27 1 254:0 / / rw - ext4 /dev/vda rw
42 43 7:1 / /srv/app ro - erofs /dev/loop1 ro
43 27 7:2 / /srv/app ro - erofs /dev/loop2 ro
44 27 7:2 / /srv/application ro - erofs /dev/loop2 ro
";
        let ids = |point: &str| on(&parse(text), Path::new(point)).iter().map(|entry| entry.id).collect::<Vec<_>>();
        assert_eq!(ids("/srv/app"), [43, 42]);
        assert!(ids("/srv").is_empty());
        assert!(!table().is_empty());
    }
}
