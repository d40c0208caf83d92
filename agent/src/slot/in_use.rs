//! Whether somebody uses a slot: a mount, or a loop device.
//!
//! A mount is found by device number in `/proc/self/mountinfo`, and by the mount's source, because some file systems
//! (btrfs) show a number of their own. A file is in use while a loop device is backed by it, mounted or not: the loop
//! device caches, and would not see what is written beneath it. Mounts in other namespaces are caught by `O_EXCL`
//! for devices, and by the loop device for files.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::Identity;

/// How a slot is used, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Use {
    pub(super) how: String,
    pub(super) remedy: String,
}

/// Who uses `identity`, if anybody. A `/proc` or `/sys` that cannot be read hides nothing that `O_EXCL` would not
/// find, so it is not an error.
pub(super) fn find(identity: Identity) -> Option<Use> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    match identity {
        Identity::Device(number) => mount_of(&mounts, number, device_number_of).map(|mount| mounted(&mount, None)),
        Identity::File(..) => {
            let (node, number) = loop_over(identity)?;
            Some(match mount_of(&mounts, number, device_number_of) {
                Some(mount) => mounted(&mount, Some(&node)),
                None => Use {
                    how: format!("the loop device {} is backed by it", node.display()),
                    remedy: format!("detach it with `losetup -d {}`", node.display()),
                },
            })
        }
    }
}

/// Whether the kernel lets nobody write the device. Opening one for writing may succeed all the same.
pub(super) fn read_only(identity: Identity) -> bool {
    let Identity::Device(number) = identity else { return false };
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/ro")).is_ok_and(|text| text.trim() == "1")
}

fn mounted(mount: &Mount, through: Option<&Path>) -> Use {
    let mode = if mount.writable { "read-write" } else { "read-only" };
    let through = through.map(|node| format!(" through {}", node.display())).unwrap_or_default();
    Use {
        how: format!("mounted {mode} on {}{through}", mount.point.display()),
        remedy: format!("unmount it with `umount {}`", mount.point.display()),
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Mount {
    point: PathBuf,
    writable: bool,
}

/// The first mount of the device `number`. `source_number` tells the device number behind a mount's source.
fn mount_of(mountinfo: &str, number: u64, source_number: impl Fn(&str) -> Option<u64>) -> Option<Mount> {
    let of_line = |line: &str| {
        // 36 35 98:0 /root /point options [optional...] - type source super-options
        let (left, right) = line.split_once(" - ")?;
        let fields: Vec<&str> = left.split(' ').collect();
        let [_, _, device, _, point, options, ..] = fields.as_slice() else { return None };
        let mut right = right.split(' ');
        let source = right.nth(1)?;
        let super_options = right.next().unwrap_or("ro");
        let same = number_of(device) == Some(number) || source_number(&unescape(source)) == Some(number);
        // The file system writes if its super block does, however this one mount looks.
        let writable = [super_options, options].iter().any(|all| all.split(',').any(|option| option == "rw"));
        same.then(|| Mount { point: unescape(point).into(), writable })
    };
    mountinfo.lines().find_map(of_line)
}

fn number_of(text: &str) -> Option<u64> {
    let (major, minor) = text.trim().split_once(':')?;
    Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
}

fn device_number_of(source: &str) -> Option<u64> {
    let meta = source.starts_with('/').then(|| fs::metadata(source).ok()).flatten()?;
    match Identity::from_metadata(&meta) {
        Identity::Device(number) if meta.file_type().is_block_device() => Some(number),
        _ => None,
    }
}

/// `mountinfo` writes space, tab, line feed and backslash as three octal digits.
fn unescape(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

/// The loop device backed by the file `identity`: its node and number.
fn loop_over(identity: Identity) -> Option<(PathBuf, u64)> {
    fs::read_dir("/sys/block").ok()?.flatten().find_map(|entry| {
        let name = entry.file_name();
        let backing = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        let backing = unescape(backing.trim_end_matches('\n'));
        let same = Identity::of(Path::new(&backing)).is_ok_and(|found| found == identity);
        let number = number_of(&fs::read_to_string(entry.path().join("dev")).ok()?)?;
        same.then(|| (Path::new("/dev").join(name), number))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
41 27 7:3 / /mnt/old\\040image ro,relatime shared:5 master:1 - squashfs /dev/loop3 ro
42 27 7:4 / /mnt/view ro,relatime - ext4 /dev/loop4 rw
43 27 0:44 /sub /data rw - btrfs /dev/vdb rw,space_cache
garbage without a dash
";

    #[test]
    fn a_mount_is_found_by_number_or_by_source() {
        let sources = |source: &str| (source == "/dev/vdb").then(|| rustix::fs::makedev(254, 16));
        let cases = [
            ((254, 0), Some(("/", true))),
            ((7, 3), Some(("/mnt/old image", false))),
            // Mounted read-only over a file system that still writes (its journal, another mount).
            ((7, 4), Some(("/mnt/view", true))),
            ((254, 16), Some(("/data", true))),
            ((7, 5), None),
        ];
        for ((major, minor), expected) in cases {
            let found = mount_of(MOUNTS, rustix::fs::makedev(major, minor), sources);
            let expected = expected.map(|(point, writable)| Mount { point: point.into(), writable });
            assert_eq!(found, expected, "{major}:{minor}");
        }
    }

    #[test]
    fn a_root_file_system_is_found_mounted() {
        use std::os::unix::fs::MetadataExt;
        let root = fs::metadata("/").unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(mount_of(&mounts, root.dev(), |_| None).is_some());
    }
}
