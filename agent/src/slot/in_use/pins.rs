//! Who holds a mount that nothing shows any more: processes with a file of it open or mapped, standing in it, or in a mount
//! namespace of their own that still has it.
//!
//! Open files whose mount is in our own table are not looked at: they cannot be of one that was taken away, and asking a server
//! that is gone about its file would hang. Of other users' processes only root with `CAP_SYS_PTRACE` learns; what cannot be read
//! is left out, and the device's being busy is what counts.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxFlags};

use crate::mounts;

/// Names that are told; of more, how many.
const TOLD: usize = 4;

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pin {
    name: String,
    number: u32,
}

/// The processes that hold the file system on device `number`.
pub(super) fn of(number: u64) -> Vec<Pin> {
    let shown: HashSet<u32> = mounts::table().iter().map(|mount| mount.id).collect();
    let own = fs::read_link("/proc/self/ns/mnt").ok();
    let mut pins: Vec<Pin> = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let folder = entry.path();
        let apart = || own.is_some() && fs::read_link(folder.join("ns/mnt")).is_ok_and(|other| Some(other) != own);
        let elsewhere = || {
            let mounts = fs::read_to_string(folder.join("mountinfo")).unwrap_or_default();
            mounts::parse(&mounts).iter().any(|mount| mount.device == number)
        };
        if stands_in(&folder, number)
            || opened(&folder, number, &shown)
            || maps(&folder, number)
            || (apart() && elsewhere())
        {
            let name = fs::read_to_string(folder.join("comm")).unwrap_or_default();
            pins.push(Pin { name: name.trim_end().to_owned(), number: process });
        }
    }
    pins
}

/// As words: `nginx (812), backup (901) and 3 more`.
pub(super) fn told(pins: &[Pin]) -> String {
    let names: Vec<_> = pins.iter().take(TOLD).map(|pin| format!("{} ({})", pin.name, pin.number)).collect();
    match pins.len().saturating_sub(TOLD) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

fn stands_in(process: &Path, number: u64) -> bool {
    ["cwd", "root", "exe"].iter().any(|link| device_of(&process.join(link)) == Some(number))
}

fn opened(process: &Path, number: u64, shown: &HashSet<u32>) -> bool {
    let files = fs::read_dir(process.join("fdinfo")).into_iter().flatten().flatten();
    files.into_iter().any(|entry| {
        let info = fs::read_to_string(entry.path()).unwrap_or_default();
        let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
        let hidden = mount.is_some_and(|mount| !shown.contains(&mount));
        hidden && device_of(&process.join("fd").join(entry.file_name())) == Some(number)
    })
}

/// `55d0a0000000-55d0a0001000 r--p 00000000 07:03 42   /file`
fn maps(process: &Path, number: u64) -> bool {
    let maps = fs::read_to_string(process.join("maps")).unwrap_or_default();
    let of_line = |line: &str| {
        let (major, minor) = line.split_ascii_whitespace().nth(3)?.split_once(':')?;
        Some(rustix::fs::makedev(u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?))
    };
    maps.lines().any(|line| of_line(line) == Some(number))
}

/// The device of the file system that a link of `/proc` leads into; as the kernel remembers it, without asking anybody.
fn device_of(link: &Path) -> Option<u64> {
    let found = rustix::fs::statx(CWD, link, AtFlags::STATX_DONT_SYNC, StatxFlags::empty()).ok()?;
    Some(rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_stands_in_a_file_system_is_found() {
        use std::os::unix::fs::MetadataExt;
        let number = fs::metadata("/proc/self/exe").unwrap().dev();
        assert!(of(number).iter().any(|pin| pin.number == std::process::id()));
        assert_eq!(of(rustix::fs::makedev(4095, 4095)), []);
    }

    #[test]
    fn few_are_named_and_the_rest_are_counted() {
        let pins: Vec<_> = (1..=6).map(|number| Pin { name: format!("p{number}"), number }).collect();
        assert_eq!(told(&pins[..2]), "p1 (1), p2 (2)");
        assert_eq!(told(&pins), "p1 (1), p2 (2), p3 (3), p4 (4) and 2 more");
    }
}
