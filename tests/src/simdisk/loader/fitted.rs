//! Machines with a boot loader, as the stories find them: its files in their places, slot a running, and what `[activation]` says of it.

use std::fs;
use std::path::Path;

use goldsync_agent::slot::SlotName;

use super::{Firmware, Grub, Loader, SystemdBoot, Uboot};
use crate::simdisk::cut::Laws;

/// A boot loader, and how a disk is fitted with it.
pub struct Fitted {
    /// It.
    pub loader: Box<dyn Loader>,
    /// What is promised where its files lie.
    pub laws: Laws,
    /// The keys of `[activation]`; `DISK` stands for the disk's folder.
    pub activation: String,
    /// Starts that it is told to allow a new slot.
    pub tries: u8,
    prepare: Box<dyn Fn(&Path)>,
}

impl Fitted {
    /// Puts its files onto a disk.
    pub fn prepare(&self, disk: &Path) {
        (self.prepare)(disk);
    }

    /// The keys of `[activation]` on that disk.
    pub fn activation(&self, disk: &Path) -> String {
        self.activation.replace("DISK", &disk.display().to_string())
    }

    /// GRUB, with grubenv on a file system with a journal.
    pub fn grub() -> Self {
        Self {
            loader: Box::new(Grub { folder: "boot".into() }),
            laws: Laws::default(),
            activation: "backend = \"grub\"\ngrubenv = \"DISK/boot/grubenv\"\n".into(),
            tries: 3,
            prepare: Box::new(grubenv),
        }
    }

    /// The same on the ESP.
    pub fn grub_on_fat() -> Self {
        Self { laws: Laws { fat: vec!["boot".into()], ..Laws::default() }, ..Self::grub() }
    }

    /// U-Boot, with two copies of its environment in a file.
    pub fn uboot() -> Self {
        Self {
            loader: Box::new(uboot()),
            laws: Laws::default(),
            activation: "backend = \"uboot\"\nenv_config = \"DISK/fw_env.config\"\n".into(),
            tries: 3,
            prepare: Box::new(environment),
        }
    }

    /// systemd-boot, for a kernel that is not the image's.
    pub fn systemd_boot() -> Self {
        let kernel = b"of both";
        let kernels = SlotName::ALL.map(|slot| (slot, kernel.to_vec()));
        let fixed = "kernel = \"/first\"\nkernel_from = \"esp\"\n";
        Self::systemd_boot_with(kernels.to_vec(), kernel.to_vec(), fixed)
    }

    /// systemd-boot, for such kernels and no others. Slot a was started from `first`, by an entry of somebody else's.
    pub fn systemd_boot_with(kernels: Vec<(SlotName, Vec<u8>)>, first: Vec<u8>, settings: &str) -> Self {
        let place = "backend = \"systemd-boot\"\nesp = \"DISK/esp\"\nefivars = \"DISK/efivars\"\noptions = \"root=/dev/{slot} ro\"\n";
        Self {
            loader: Box::new(SystemdBoot { esp: "esp".into(), kernels }),
            laws: Laws { fat: vec!["esp".into()], ..Laws::default() },
            activation: format!("{place}{settings}"),
            tries: 3,
            prepare: Box::new(move |disk| esp(disk, &first)),
        }
    }

    /// A firmware alone.
    pub fn uefi() -> Self {
        Self {
            loader: Box::new(firmware()),
            laws: Laws { variables: vec!["efivars".into()], ..Laws::default() },
            activation: "backend = \"uefi\"\nefivars = \"DISK/efivars\"\n".into(),
            tries: 1,
            prepare: Box::new(variables),
        }
    }
}

/// A block as `grub-editenv` makes it, with something of somebody else's.
fn grubenv(disk: &Path) {
    let mut block = b"# GRUB Environment Block\nsaved_entry=0\n".to_vec();
    block.resize(1024, b'#');
    fs::create_dir(disk.join("boot")).expect("a folder");
    fs::write(disk.join("boot/grubenv"), block).expect("grubenv");
}

fn uboot() -> Uboot {
    Uboot { file: "uboot.env".into(), size: 2048 }
}

/// Both copies, of which the checksum and what it covers lie in different sectors.
fn environment(disk: &Path) {
    let file = disk.join("uboot.env");
    let long = "board ".repeat(120);
    let variables = [("bootargs", long.as_str()), ("goldsync_slot", "a"), ("goldsync_good", "a")];
    fs::write(&file, uboot().made(&variables)).expect("the environment");
    let file = file.display();
    fs::write(disk.join("fw_env.config"), format!("{file} 0x0 0x800\n{file} 0x800 0x800\n")).expect("fw_env.config");
}

fn esp(disk: &Path, first: &[u8]) {
    let path = |name: &str| disk.join("esp").join(name);
    fs::create_dir_all(path("loader/entries")).expect("an ESP");
    fs::write(path("loader/loader.conf"), "timeout 0\ndefault goldsync-*\n").expect("loader.conf");
    fs::write(path("first"), first).expect("a kernel");
    let entry = "title first\nsort-key a\nversion 1\nlinux /first\noptions root=/dev/a goldsync.slot=a\n";
    fs::write(path("loader/entries/first.conf"), entry).expect("an entry");
}

fn firmware() -> Firmware {
    Firmware { variables: "efivars".into(), entries: vec![(1, SlotName::A), (2, SlotName::B)] }
}

/// It would rather start from the network, which has nothing to offer.
fn variables(disk: &Path) {
    fs::create_dir(disk.join("efivars")).expect("a folder");
    let entries = [(1, "goldsync a"), (2, "goldsync b"), (3, "network")];
    let entries = entries.map(|(number, description)| Firmware::entry(number, description));
    for (name, value) in entries.into_iter().chain([("BootOrder".into(), Firmware::list(&[3, 1]))]) {
        fs::write(disk.join("efivars").join(firmware().file(&name)), value).expect("a variable");
    }
}
