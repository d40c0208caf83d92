//! Which slot a machine was started from: what all boot loader back-ends must know, because the active slot is never written.
//!
//! 1. The file system on `/` lies on a slot: on its device, on a loop device over its file, or on a device mapper's device over
//!    one of those (dm-verity). This also holds after a soft-reboot, when the kernel's command line is that of the old slot.
//! 2. Else `goldsync.slot=a` (or `b`) on the kernel's command line: for roots that are put together by an initramfs.
//!
//! Neither: no slot is active, as on a machine that is about to be installed.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use goldsync_proto::verity::RootHash;

use super::ActivationError;
use crate::config::Slots;
use crate::slot::{Identity, SlotName};
use crate::volume;

/// The word on the kernel's command line.
const WORD: &str = "goldsync.slot=";

/// The kernel's name for this run of it.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// How often user space was started on this kernel: `/run` survives a soft-reboot.
const SOFT_REBOOTS: &str = "/run/goldsync/soft-reboots";

/// Device mapper devices over each other that are looked through.
const LAYERS: u32 = 8;

/// Which run of the machine this is: another one after each start, also of user space alone (soft-reboot). `cmdline` belongs to
/// it, because it is what tests exchange.
pub fn run(cmdline: &Path) -> String {
    let text = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let parts = [text(Path::new(BOOT_ID)), text(Path::new(SOFT_REBOOTS)), text(cmdline)];
    let [boot, soft, cmdline] = parts.each_ref().map(|part| part.trim());
    let hash = blake3::hash(cmdline.as_bytes()).to_hex();
    format!("{boot}.{}.{}", if soft.is_empty() { "0" } else { soft }, &hash[..8])
}

/// Counts that user space is about to start again, on the same kernel.
pub fn count_soft_reboot() -> io::Result<()> {
    let path = Path::new(SOFT_REBOOTS);
    let before: u64 = fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    fs::write(path, format!("{}\n", before.saturating_add(1)))
}

/// Where to look.
#[derive(Clone, Debug)]
pub struct Booted {
    cmdline: PathBuf,
    slots: Slots,
}

impl Booted {
    /// The kernel's command line is read from `cmdline`.
    pub fn new(cmdline: PathBuf, slots: &Slots) -> Self {
        Self { cmdline, slots: slots.clone() }
    }

    /// The slot that this machine runs from.
    pub fn slot(&self) -> Result<Option<SlotName>, ActivationError> {
        if let Some(slot) = self.under_root() {
            return Ok(Some(slot));
        }
        match fs::read_to_string(&self.cmdline) {
            Ok(text) => Ok(of_cmdline(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => {
                let (what, path) = ("reading", self.cmdline.clone());
                Err(ActivationError::File { backend: "a boot loader", what, path, error })
            }
        }
    }

    /// The root hash by which the kernel checks every read of `/`, if it does.
    pub fn root_hash(&self) -> Option<RootHash> {
        volume::running_root(fs::metadata("/").ok()?.dev())
    }

    fn under_root(&self) -> Option<SlotName> {
        slot_under(fs::metadata("/").ok()?.dev(), &self.slots)
    }
}

/// The slot that the file system on device `number` lies on.
pub(super) fn slot_under(number: u64, slots: &Slots) -> Option<SlotName> {
    let slots = SlotName::ALL.map(|name| (name, Identity::of(slots.path(name)).ok()));
    let is = |found: Identity| slots.iter().find(|(_, slot)| *slot == Some(found)).map(|(name, _)| *name);
    beneath(Path::new("/sys/dev/block"), number, LAYERS, &is)
}

/// Looks for a slot in the device `number`, then in what it lies on.
fn beneath(sys: &Path, number: u64, layers: u32, is: &impl Fn(Identity) -> Option<SlotName>) -> Option<SlotName> {
    if let Some(slot) = is(Identity::Device(number)) {
        return Some(slot);
    }
    let device = sys.join(format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number)));
    let file = fs::read_to_string(device.join("loop/backing_file")).ok();
    let slot = file.and_then(|file| is(Identity::of(Path::new(file.trim_end_matches('\n'))).ok()?));
    if slot.is_some() || layers == 0 {
        return slot;
    }
    fs::read_dir(device.join("slaves")).ok()?.flatten().find_map(|entry| {
        let text = fs::read_to_string(entry.path().join("dev")).ok()?;
        let (major, minor) = text.trim().split_once(':')?;
        beneath(sys, rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?), layers - 1, is)
    })
}

/// The last such word counts, as for the kernel's own.
fn of_cmdline(text: &str) -> Option<SlotName> {
    text.split_ascii_whitespace().rev().find_map(|word| word.strip_prefix(WORD))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_on_the_command_line_counts() {
        for (text, expected) in [
            ("quiet goldsync.slot=b ro\n", Some(SlotName::B)),
            ("goldsync.slot=a goldsync.slot=b", Some(SlotName::B)),
            ("goldsync.slot=c", None),
            ("xgoldsync.slot=a", None),
            ("", None),
        ] {
            assert_eq!(of_cmdline(text), expected, "{text}");
        }
    }

    #[test]
    fn a_slot_is_found_through_verity_and_a_loop_device() {
        let folder = tempfile::tempdir().unwrap();
        let (sys, slot) = (folder.path().join("sys"), folder.path().join("a.img"));
        fs::write(&slot, "x").unwrap();
        // 253:0 is a verity device over 7:3, a loop device over a file.
        fs::create_dir_all(sys.join("253:0/slaves/loop3")).unwrap();
        fs::write(sys.join("253:0/slaves/loop3/dev"), "7:3\n").unwrap();
        fs::create_dir_all(sys.join("7:3/loop")).unwrap();
        fs::write(sys.join("7:3/loop/backing_file"), format!("{}\n", slot.display())).unwrap();
        let wanted = Identity::of(&slot).unwrap();
        let is = |found: Identity| (found == wanted).then_some(SlotName::A);
        assert_eq!(beneath(&sys, rustix::fs::makedev(253, 0), LAYERS, &is), Some(SlotName::A));
        assert_eq!(beneath(&sys, rustix::fs::makedev(253, 0), 0, &is), None);
        assert_eq!(beneath(&sys, rustix::fs::makedev(8, 1), LAYERS, &is), None);
        let device = |found: Identity| (found == Identity::Device(rustix::fs::makedev(8, 1))).then_some(SlotName::B);
        assert_eq!(beneath(&sys, rustix::fs::makedev(8, 1), LAYERS, &device), Some(SlotName::B));
    }

    #[test]
    fn a_machine_without_slots_runs_from_none() {
        let folder = tempfile::tempdir().unwrap();
        let slots = Slots { a: folder.path().join("a"), b: folder.path().join("b"), size: None };
        let booted = Booted::new(folder.path().join("cmdline"), &slots);
        assert_eq!(booted.slot().unwrap(), None);
        fs::write(folder.path().join("cmdline"), "ro goldsync.slot=a").unwrap();
        assert_eq!(booted.slot().unwrap(), Some(SlotName::A));
    }
}
