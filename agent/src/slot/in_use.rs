//! Whether somebody uses a slot: a mount, what lies over it, or readers of a mount that was taken away.
//!
//! A mount is found by device number in `/proc/self/mountinfo`, and by the mount's source, because some file systems
//! (btrfs) show a number of their own. A file is in use while a loop device is backed by it, mounted or not: the loop
//! device caches, and would not see what is written beneath it. Mounts in other namespaces are caught by `O_EXCL`
//! for devices, and by the loop device for files.
//!
//! A volume that was replaced while it was read goes on for who had it open: nothing shows it any more but its device, which stays
//! busy, and those processes' open files, which `pins` looks through.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::Identity;
use crate::mounts::{self, Entry, number_of, unescape};

mod pins;

/// Devices that may lie over each other: a loop device, dm-verity, and room for the unforeseen.
const LAYERS: usize = 8;

/// How a slot is used, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// By what, or whom.
    pub how: String,
    /// What ends it.
    pub remedy: String,
}

/// Who uses `identity`, if anybody. A `/proc` or `/sys` that cannot be read hides nothing that `O_EXCL` would not
/// find, so it is not an error.
pub(super) fn find(identity: Identity) -> Option<Use> {
    let mounts = mounts::table();
    let devices = over(identity);
    let is_slot = |number: u64| identity == Identity::Device(number);
    for (node, number) in &devices {
        if let Some(mount) = mount_of(&mounts, *number, device_number_of) {
            return Some(mounted(&mount, (!is_slot(*number)).then_some(node)));
        }
    }
    let (node, number) = devices.last().filter(|(_, number)| !is_slot(*number))?;
    Some(held(*number).unwrap_or_else(|| Use {
        how: format!("the device {} lies over it", node.display()),
        remedy: match node.to_str().filter(|node| node.starts_with("/dev/loop")) {
            Some(node) => format!("detach it with `losetup -d {node}`"),
            None => "`lsblk` shows what it is; remove it".into(),
        },
    }))
}

/// Who still reads from `identity` through a mount that is not there any more. For a device that the kernel says is busy.
pub(super) fn pinned(identity: Identity) -> Option<Use> {
    over(identity).into_iter().find_map(|(_, number)| held(number))
}

fn held(number: u64) -> Option<Use> {
    let by = pins::of(number);
    (!by.is_empty()).then(|| Use {
        how: format!("a mount of it that was taken away is still held by {}", pins::told(&by)),
        remedy: "restart what holds it, or let it close its files; then try again".into(),
    })
}

/// The devices that are the slot or lie over it, the lowest first.
fn over(identity: Identity) -> Vec<(PathBuf, u64)> {
    let mut found = match identity {
        Identity::Device(number) => vec![(node_of(Path::new("/sys/dev/block"), number), number)],
        Identity::File(..) => loops_over(identity),
    };
    let mut looked = 0;
    while let Some((_, number)) = found.get(looked).filter(|_| looked < LAYERS * LAYERS) {
        let holders = system(*number).join("holders");
        for entry in fs::read_dir(holders).into_iter().flatten().flatten() {
            let number = fs::read_to_string(entry.path().join("dev")).ok().and_then(|text| number_of(&text));
            found.extend(number.map(|number| (Path::new("/dev").join(entry.file_name()), number)));
        }
        looked += 1;
    }
    found
}

fn system(number: u64) -> PathBuf {
    format!("/sys/dev/block/{}:{}", rustix::fs::major(number), rustix::fs::minor(number)).into()
}

fn node_of(sys: &Path, number: u64) -> PathBuf {
    let link = fs::read_link(sys.join(format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number))));
    Path::new("/dev").join(link.ok().and_then(|link| Some(link.file_name()?.to_owned())).unwrap_or_default())
}

/// Whether the kernel lets nobody write the device. Opening one for writing may succeed all the same.
pub(super) fn read_only(identity: Identity) -> bool {
    let Identity::Device(number) = identity else { return false };
    fs::read_to_string(system(number).join("ro")).is_ok_and(|text| text.trim() == "1")
}

fn mounted(mount: &Mount, through: Option<&PathBuf>) -> Use {
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
fn mount_of(table: &[Entry], number: u64, source_number: impl Fn(&str) -> Option<u64>) -> Option<Mount> {
    let found = table.iter().find(|entry| entry.device == number || source_number(&entry.source) == Some(number))?;
    // The file system writes if its super block does, however this one mount looks.
    let writes = |options: &str| options.split(',').any(|option| option == "rw");
    let writable = writes(&found.super_options) || writes(&found.options);
    Some(Mount { point: found.point.clone(), writable })
}

fn device_number_of(source: &str) -> Option<u64> {
    let meta = source.starts_with('/').then(|| fs::metadata(source).ok()).flatten()?;
    match Identity::from_metadata(&meta) {
        Identity::Device(number) if meta.file_type().is_block_device() => Some(number),
        _ => None,
    }
}

/// The loop devices backed by the file `identity`: their nodes and numbers.
fn loops_over(identity: Identity) -> Vec<(PathBuf, u64)> {
    let of_entry = |entry: fs::DirEntry| {
        let backing = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        let backing = unescape(backing.trim_end_matches('\n'));
        let same = Identity::of(Path::new(&backing)).is_ok_and(|found| found == identity);
        let number = number_of(&fs::read_to_string(entry.path().join("dev")).ok()?)?;
        same.then(|| (Path::new("/dev").join(entry.file_name()), number))
    };
    fs::read_dir("/sys/block").into_iter().flatten().flatten().filter_map(of_entry).collect()
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
            let found = mount_of(&mounts::parse(MOUNTS), rustix::fs::makedev(major, minor), sources);
            let expected = expected.map(|(point, writable)| Mount { point: point.into(), writable });
            assert_eq!(found, expected, "{major}:{minor}");
        }
    }

    #[test]
    fn a_root_file_system_is_found_mounted() {
        use std::os::unix::fs::MetadataExt;
        let root = fs::metadata("/").unwrap();
        assert!(mount_of(&mounts::table(), root.dev(), |_| None).is_some());
    }
}
