//! What the kernel noted about the disks under slots and state: errors of a file system, the wear of flash memory.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Finding;
use crate::config::Config;
use crate::slot::{Identity, SlotName};

/// eMMC's own measure of its wear, in tenths: from here on, it should be replaced.
const WORN: u32 = 9;

/// All of it. `sys` is where the kernel's view is mounted.
pub(super) fn all(sys: &Path, config: &Config) -> Vec<Finding> {
    let mut disks: BTreeMap<u64, String> = BTreeMap::new();
    for name in SlotName::ALL {
        let number = match Identity::of(config.slots.path(name)) {
            Ok(Identity::Device(number) | Identity::File(number, _)) => number,
            Err(_) => continue,
        };
        disks.entry(number).or_insert_with(|| format!("slot {name}"));
    }
    let state = config.state.ancestors().find_map(|path| fs::metadata(path).ok());
    if let Some(state) = state {
        disks.entry(state.dev()).or_insert_with(|| "the state folder".to_owned());
    }
    disks.into_iter().flat_map(|(number, what)| disk(sys, number, &what)).collect()
}

fn disk(sys: &Path, number: u64, what: &str) -> Vec<Finding> {
    let device = sys.join(format!("dev/block/{}:{}", rustix::fs::major(number), rustix::fs::minor(number)));
    // A file system of no device: tmpfs, overlay.
    let Ok(device) = device.canonicalize() else { return Vec::new() };
    let name = device.file_name().unwrap_or_default().to_string_lossy().into_owned();
    [file_system(sys, &name, what), worn(&device, &name, what)].into_iter().flatten().collect()
}

fn file_system(sys: &Path, name: &str, what: &str) -> Option<Finding> {
    let errors = number(&sys.join("fs/ext4").join(name).join("errors_count")).filter(|errors| *errors > 0)?;
    let says = format!("the file system on {name}, of {what}, counted {errors} errors");
    Some(Finding::warning(
        "disk",
        says,
        format!("check it: `e2fsck -f /dev/{name}`, unmounted; look at the kernel's log"),
    ))
}

fn worn(device: &Path, name: &str, what: &str) -> Option<Finding> {
    // A partition's disk is the folder above it.
    let of_disk = [Some(device), device.parent()].into_iter().flatten().map(|it| it.join("device"));
    let disk: PathBuf = { of_disk }.find(|folder| folder.join("life_time").is_file())?;
    let text = fs::read_to_string(disk.join("life_time")).ok()?;
    let life = text.split_ascii_whitespace().filter_map(hex).max()?;
    let spare = fs::read_to_string(disk.join("pre_eol_info")).ok().and_then(|text| hex(text.trim())).unwrap_or(0);
    (life >= WORN || spare > 1).then(|| {
        let says = format!(
            "the flash memory {name}, of {what}, has used up {} % of its life",
            life.saturating_mul(10).min(100)
        );
        Finding::warning("disk", says, "replace it before it fails; goldsync writes only blocks that change")
    })
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn hex(text: &str) -> Option<u32> {
    u32::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_and_wear_are_told() {
        let sys = tempfile::tempdir().unwrap();
        let number = rustix::fs::makedev(179, 2);
        assert_eq!(disk(sys.path(), number, "slot a"), []);
        let device = sys.path().join("devices/mmcblk0/mmcblk0p2");
        fs::create_dir_all(&device).unwrap();
        fs::create_dir_all(sys.path().join("dev/block")).unwrap();
        std::os::unix::fs::symlink(&device, sys.path().join("dev/block/179:2")).unwrap();
        assert_eq!(disk(sys.path(), number, "slot a"), []);
        let (errors, life) = (sys.path().join("fs/ext4/mmcblk0p2"), sys.path().join("devices/mmcblk0/device"));
        fs::create_dir_all(&errors).unwrap();
        fs::create_dir_all(&life).unwrap();
        for (count, lived, spare, findings) in [
            ("0", "0x01 0x02", "0x01", 0),
            ("3", "0x01 0x0a", "0x01", 2),
            ("0", "0x01 0x01", "0x02", 1),
            ("x", "?", "", 0),
        ] {
            fs::write(errors.join("errors_count"), format!("{count}\n")).unwrap();
            fs::write(life.join("life_time"), format!("{lived}\n")).unwrap();
            fs::write(life.join("pre_eol_info"), format!("{spare}\n")).unwrap();
            let found = disk(sys.path(), number, "slot a");
            assert_eq!(found.len(), findings, "{found:?}");
            assert!(found.iter().all(|it| it.says.contains("mmcblk0p2, of slot a")), "{found:?}");
        }
    }

    #[test]
    fn this_machine_is_looked_at_without_harm() {
        let folder = tempfile::tempdir().unwrap();
        let node = crate::node::testing::node(folder.path());
        all(Path::new("/sys"), &node.config);
    }
}
